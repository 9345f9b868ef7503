/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The table of chunks, in a compact image that is else sound.  Input: a byte
 * of flags, how many places are in use (a byte), then entries of the table, a
 * byte each: all are small numbers. */

#include <config.h>

#include "fuzz.h"

#include <string.h>

#include "fvd-reader.h"

/* UNCLEAN: records name places, too.  ALL: each block is allocated.  WIDE: an
 * entry has four bytes. */
enum { KEEP_TABLE = 1, WRITE = 2, UNCLEAN = 4, ALL = 8, WIDE = 16 };
enum { ENTRIES = 126 };

/* What is at a place tells which one it is. */
static void
mark_places (struct mem_disk *disk)
{
  for (unsigned n = 0; n < FUZZ_PLACES; ++n)
    fvd_reader_put_le (disk->data + FUZZ_DATA_AT + n * (size_t) FUZZ_CHUNK,
                       8, UINT64_C (0x5a5a5a5a00) + n);
}

static void
run (const uint8_t *data, size_t size)
{
  const unsigned flags = size ? data[0] : 0;
  const unsigned width = flags & WIDE ? 4 : 1;
  struct mem_disk *disk = fuzz_image_new (flags & UNCLEAN
                                          ? FUZZ_COMPACT_UNCLEAN
                                          : FUZZ_COMPACT);

  if (size < 2)
    return;
  for (unsigned i = 0; i < 2; ++i)
    fvd_reader_put_le (disk->data + 4096 * i + FVD_AT_CHUNKS, 8, data[1]);
  for (unsigned k = 0; k < ENTRIES && 2 + (k + 1) * width <= size; ++k)
    fvd_reader_put_le (disk->data + FUZZ_TABLE_AT + 4 * k, 4,
                       fvd_reader_le (data + 2 + k * width, width));
  if (flags & ALL)
    disk->data[FUZZ_SUMMARY_AT] = 1 | 1 << 2 | 1 << 4;
  mark_places (disk);
  fuzz_seal (disk, flags & KEEP_TABLE ? FUZZ_KEEP_TABLE : 0);
  fuzz_exercise (disk, flags & WRITE, true);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  static const uint8_t flags[] = {
    0, WRITE, UNCLEAN | WRITE, ALL, ALL | WRITE, ALL | WIDE,
    UNCLEAN | KEEP_TABLE,
  };
  uint8_t input[2 + 4 * 36];

  for (unsigned i = 0; i < sizeof flags; ++i) {
    const unsigned width = flags[i] & WIDE ? 4 : 1;

    memset (input, 0, sizeof input);
    input[0] = flags[i];
    input[1] = 36;
    /* Each chunk has a place, the last one first. */
    for (unsigned k = 0; k < 36; ++k)
      input[2 + k * width] = 36 - k;
    save (opaque, "all", input, 2 + 36 * width);
    /* Some; one that is named twice; one that is past the end. */
    memset (input + 2 + 3 * width, 0, sizeof input - 2 - 3 * width);
    save (opaque, "some", input, 2 + 5 * width);
    input[2 + 4 * width] = 35;
    save (opaque, "twice", input, 2 + 5 * width);
    input[2 + 4 * width] = 37;
    save (opaque, "behind", input, 2 + 5 * width);
    input[1] = 41;
    save (opaque, "long", input, 2 + 5 * width);
  }
}

const struct fuzz_target fuzz_table = {
  .name = "table", .run = run, .seeds = seeds
};
