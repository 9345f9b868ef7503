/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The header.  Input: a byte of flags, then the two copies, as long as they
 * go; what lies behind is that of a real image. */

#include <config.h>

#include "fuzz.h"

#include <string.h>

#include "fvd-reader.h"

enum { KEEP_MASK = 15, WRITE = 16, UNCLEAN = 32 };

static void
run (const uint8_t *data, size_t size)
{
  const unsigned flags = size ? data[0] : 0;
  struct mem_disk *disk = fuzz_image_new (flags & UNCLEAN ? FUZZ_UNCLEAN
                                          : FUZZ_CLEAN);

  if (size > 1)
    memcpy (disk->data, data + 1, size - 1 < 8192 ? size - 1 : 8192);
  fuzz_seal (disk, flags & KEEP_MASK);
  fuzz_exercise (disk, flags & WRITE, false);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  static const unsigned flags[] = { 0, WRITE, UNCLEAN, UNCLEAN | WRITE };
  static const char *const names[] = { "clean", "clean-write", "unclean",
                                       "unclean-write" };
  uint8_t input[1 + 8192];

  for (unsigned i = 0; i < 4; ++i) {
    const struct mem_disk *disk =
      fuzz_image_new (flags[i] & UNCLEAN ? FUZZ_UNCLEAN : FUZZ_CLEAN);

    input[0] = flags[i];
    memcpy (input + 1, disk->data, 8192);
    save (opaque, names[i], input, sizeof input);
    /* The first copy alone, the newer one: shorter inputs are quicker. */
    fvd_reader_put_le (input + 1 + FVD_AT_SEQ, 8, 100);
    save (opaque, names[i], input, 1 + 1100);
  }
}

const struct fuzz_target fuzz_header = {
  .name = "header", .run = run, .seeds = seeds
};
