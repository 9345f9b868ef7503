/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Records of the journal, in an image that was not closed in order.  Input:
 * a byte of flags, the tail (8 bytes), then records, each a byte that says in
 * which sector it is, a byte that says how long it is (in 4 bytes), and so
 * much of the sector; each begins with the magic that it would have. */

#include <config.h>

#include "fuzz.h"

#include <string.h>

#include "fvd-reader.h"

enum { KEEP_JOURNAL = 1, KEEP_NUMBERS = 2, WRITE = 4 };

/* Let the record be at the right place, and count. */
static void
correct_number (uint8_t *sector, unsigned index, uint64_t tail)
{
  const uint64_t ring = FUZZ_JOURNAL_SECTORS;
  uint64_t number = tail - tail % ring + index;

  if (number < tail)
    number += ring;
  fvd_reader_put_le (sector + 8, 8, number);
}

static void
run (const uint8_t *data, size_t size)
{
  const unsigned flags = size ? data[0] : 0;
  struct mem_disk *disk = fuzz_image_new (FUZZ_UNCLEAN);
  uint64_t tail;

  if (size < 9)
    return;
  tail = fvd_reader_le (data + 1, 8);
  fvd_reader_put_le (disk->data + FVD_AT_TAIL, 8, tail);
  fvd_reader_put_le (disk->data + 4096 + FVD_AT_TAIL, 8, tail);
  memset (disk->data + FUZZ_JOURNAL_AT, 0, FUZZ_JOURNAL_SECTORS * 512);
  data += 9;
  size -= 9;
  while (size > 2) {
    const unsigned index = data[0] % FUZZ_JOURNAL_SECTORS;
    uint8_t *sector = disk->data + FUZZ_JOURNAL_AT + index * 512;
    size_t n = 4 * (size_t) (data[1] % 128);

    data += 2;
    size -= 2;
    n = n < size ? n : size;
    n = n < 504 ? n : 504;
    memset (sector, 0, 512);
    memcpy (sector, "FVDJ", 4);
    memcpy (sector + 4, data, n < 500 ? n : 500);
    if (!(flags & KEEP_NUMBERS))
      correct_number (sector, index, tail);
    data += n;
    size -= n;
  }
  fuzz_seal (disk, flags & KEEP_JOURNAL ? FUZZ_KEEP_JOURNAL : 0);
  fuzz_exercise (disk, flags & WRITE, tail > 0 && tail < UINT64_MAX / 4);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  const struct mem_disk *disk = fuzz_image_new (FUZZ_UNCLEAN);
  uint8_t input[9 + 2 * (2 + 504)] = { WRITE };
  size_t at = 9;

  memcpy (input + 1, disk->data + 4096 + FVD_AT_TAIL, 8);
  for (unsigned i = 0; i < FUZZ_JOURNAL_SECTORS; ++i) {
    const uint8_t *sector = disk->data + FUZZ_JOURNAL_AT + i * 512;

    if (memcmp (sector, "FVDJ", 4) != 0 || at + 2 + 64 > sizeof input)
      continue;
    input[at] = i;
    input[at + 1] = 16;
    memcpy (input + at + 2, sector + 4, 64);
    at += 2 + 64;
  }
  save (opaque, "image", input, at);
  /* Two records, the second with 40 ranges. */
  fvd_reader_put_le (input + 1, 8, 7);
  input[9] = 7;
  input[10] = 125;
  memset (input + 11, 0, sizeof input - 11);
  fvd_reader_put_le (input + 11, 2, 1);
  fvd_reader_put_le (input + 13, 2, 40);
  for (unsigned i = 0; i < 40; ++i) {
    fvd_reader_put_le (input + 31 + 12 * i, 8, 100 * i);
    fvd_reader_put_le (input + 39 + 12 * i, 4, 1 + i % 90);
  }
  save (opaque, "full", input, 11 + 500);
}

const struct fuzz_target fuzz_journal = {
  .name = "journal", .run = run, .seeds = seeds
};
