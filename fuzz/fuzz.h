/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What the fuzz targets share.
 *
 * A target is one function that is fed with bytes and must come back,
 * whatever they are.  What must hold it says with fuzz_must, which aborts.
 * The targets use the library and a device in memory, no libFuzzer: so the
 * same functions run under it (driver.c), make seeds (seeds.c) and repeat
 * what was once found (tests/unit/test-fuzz.c). */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dev-fault.h"

typedef void (*fuzz_save_fn) (void *opaque, const char *name,
                              const uint8_t *data, size_t size);

struct fuzz_target {
  const char *name;
  /* Feed DATA to the parser. */
  void (*run) (const uint8_t *data, size_t size);
  /* Call SAVE for each input to start from. */
  void (*seeds) (fuzz_save_fn save, void *opaque);
};

/* One a file; a new one is added here and to the table in common.c. */
extern const struct fuzz_target fuzz_header, fuzz_bitmap, fuzz_journal,
  fuzz_image, fuzz_refs, fuzz_table, fuzz_control,
  fuzz_jobs, fuzz_profile;

/* All of them, ended by NULL. */
extern const struct fuzz_target *const fuzz_targets[];

/* Abort, unless GOOD. */
extern void fuzz_must (bool good, const char *what);

/* Count the errors that the library reports, and print none of them, unless
 * NBDCHAIN_FUZZ_VERBOSE is set.  Called before a target runs. */
extern void fuzz_start (void);

/* Images in memory. */

enum { FUZZ_PAGES = 3, FUZZ_BLOCK = 4096, FUZZ_NBLOCKS = 2 * 4032 + 1000 };
#define FUZZ_SIZE (FUZZ_NBLOCKS * (uint64_t) FUZZ_BLOCK - 1000)

/* The image that all targets start from: FUZZ_NBLOCKS blocks of FUZZ_BLOCK
 * bytes (the last one is shorter), a few of them allocated, made by the
 * library; closed in order, or killed after a flush; linear, or compact, on a
 * device with room for a few more chunks than the disk has.  The disk is the
 * target's until the next call. */
enum fuzz_image_kind {
  FUZZ_CLEAN, FUZZ_UNCLEAN, FUZZ_COMPACT, FUZZ_COMPACT_UNCLEAN, FUZZ_KINDS
};
extern struct mem_disk *fuzz_image_new (enum fuzz_image_kind kind);

/* Where its areas are. */
enum { FUZZ_SUMMARY_AT = 8192, FUZZ_BITMAP_AT = 12288,
       FUZZ_JOURNAL_AT = 16384, FUZZ_JOURNAL_SECTORS = 32,
       FUZZ_JOURNAL_END = FUZZ_JOURNAL_AT + FUZZ_JOURNAL_SECTORS * 512,
       FUZZ_TABLE_AT = FUZZ_JOURNAL_END,        /* compact */
       FUZZ_TABLE_END = FUZZ_TABLE_AT + 4096,
       FUZZ_DATA_AT = 1 << 20, FUZZ_CHUNK = 1 << 20, FUZZ_PLACES = 40 };

/* What is left as it is by fuzz_seal. */
enum {
  FUZZ_KEEP_HEADER = 1, FUZZ_KEEP_SUMMARY = 2, FUZZ_KEEP_BITMAP = 4,
  FUZZ_KEEP_JOURNAL = 8, FUZZ_KEEP_TABLE = 16,
};

/* Put right checksums everywhere, so that a parser sees what is behind
 * them. */
extern void fuzz_seal (struct mem_disk *disk, unsigned keep);

/* Open DISK in all ways and compare with a second reader; write to it, too,
 * if WRITE, and look whether what was flushed is there.  STRICT: an image in
 * which the second reader finds nothing wrong must not be refused. */
extern void fuzz_exercise (struct mem_disk *disk, bool write, bool strict);

#endif /* FUZZ_H */
