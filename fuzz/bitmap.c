/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Summary and pages of the bitmap, in an image that is else sound.  Input: a
 * byte of flags, a byte of summary, then the bits of each page. */

#include <config.h>

#include "fuzz.h"

#include <string.h>

enum { KEEP_SUMMARY = 1, KEEP_BITMAP = 2, WRITE = 4, UNCLEAN = 8 };
enum { PAGE_BYTES = 504 };

static void
run (const uint8_t *data, size_t size)
{
  const unsigned flags = size ? data[0] : 0;
  struct mem_disk *disk = fuzz_image_new (flags & UNCLEAN ? FUZZ_UNCLEAN
                                          : FUZZ_CLEAN);

  if (size > 1)
    disk->data[FUZZ_SUMMARY_AT] = data[1];
  for (unsigned page = 0; page < FUZZ_PAGES; ++page) {
    const size_t at = 2 + page * PAGE_BYTES;

    if (at < size)
      memcpy (disk->data + FUZZ_BITMAP_AT + page * 512, data + at,
              size - at < PAGE_BYTES ? size - at : PAGE_BYTES);
  }
  fuzz_seal (disk, (flags & KEEP_SUMMARY ? FUZZ_KEEP_SUMMARY : 0) |
             (flags & KEEP_BITMAP ? FUZZ_KEEP_BITMAP : 0));
  fuzz_exercise (disk, flags & WRITE, true);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  const struct mem_disk *disk = fuzz_image_new (FUZZ_CLEAN);
  uint8_t input[2 + FUZZ_PAGES * PAGE_BYTES];

  input[0] = WRITE;
  input[1] = disk->data[FUZZ_SUMMARY_AT];
  for (unsigned page = 0; page < FUZZ_PAGES; ++page)
    memcpy (input + 2 + page * PAGE_BYTES,
            disk->data + FUZZ_BITMAP_AT + page * 512, PAGE_BYTES);
  save (opaque, "image", input, sizeof input);
  input[1] = 1 | 2 << 2 | 1 << 4;
  save (opaque, "all", input, 2);
  input[1] = 2 | 2 << 2 | 2 << 4;
  memset (input + 2, 0x55, sizeof input - 2);
  save (opaque, "mixed", input, sizeof input - 504 + 125);
}

const struct fuzz_target fuzz_bitmap = {
  .name = "bitmap", .run = run, .seeds = seeds
};
