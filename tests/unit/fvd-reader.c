/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A second reader of fvd images, see fvd-reader.h.  It follows the page
 * section by section, and is as simple as it can be: a byte a block. */

#include <config.h>

#include "fvd-reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define FAIL(r, ...)                                    \
  do {                                                  \
    snprintf ((r)->why, sizeof (r)->why, __VA_ARGS__);  \
    return -1;                                          \
  } while (0)

uint64_t
fvd_reader_le (const uint8_t *p, unsigned bytes)
{
  uint64_t v = 0;

  while (bytes-- > 0)
    v = v << 8 | p[bytes];
  return v;
}

void
fvd_reader_put_le (uint8_t *p, unsigned bytes, uint64_t value)
{
  for (unsigned i = 0; i < bytes; ++i)
    p[i] = value >> (8 * i);
}

#define LE16(p) ((unsigned) fvd_reader_le (p, 2))
#define LE32(p) ((uint32_t) fvd_reader_le (p, 4))
#define LE64(p) fvd_reader_le (p, 8)

/* Section 1: the checksum of a sector. */
static uint64_t
checksum (const uint8_t *uuid, unsigned kind, uint64_t index,
          const uint8_t *sector)
{
  uint8_t seed[32];

  memcpy (seed, uuid, 16);
  fvd_reader_put_le (seed + 16, 8, kind);
  fvd_reader_put_le (seed + 24, 8, index);
  return XXH3_64bits_withSeed (sector, 504,
                               XXH3_64bits_withSeed (seed, 32, 0));
}

void
fvd_reader_seal (const uint8_t *uuid, unsigned kind, uint64_t index,
                 uint8_t *sector)
{
  fvd_reader_put_le (sector + 504, 8, checksum (uuid, kind, index, sector));
}

void
fvd_reader_seal_header (uint8_t *header)
{
  fvd_reader_put_le (header + FVD_AT_CHECKSUM, 8,
                     XXH3_64bits_withSeed (header, FVD_AT_CHECKSUM, 0));
}

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return count == 0 || (p[0] == 0 && memcmp (p, p + 1, count - 1) == 0);
}

/* Section 2.1. */
static int
choose_header (struct fvd_reader *r)
{
  for (unsigned i = 0; i < 2; ++i) {
    const uint8_t *h = r->file + 4096 * i;

    if (r->file_size < 8192 || memcmp (h, "NBDCFVD\n", 8) != 0 ||
        LE32 (h + FVD_AT_LENGTH) != 4096 ||
        LE64 (h + FVD_AT_CHECKSUM) != XXH3_64bits_withSeed (h, 4088, 0) ||
        LE64 (h + FVD_AT_SEQ) % 2 != i)
      continue;
    r->copies++;
    if (r->header == NULL ||
        LE64 (h + FVD_AT_SEQ) > LE64 (r->header + FVD_AT_SEQ))
      r->header = h;
  }
  if (r->header == NULL)
    FAIL (r, "no valid header");
  return 0;
}

static int
read_strings (struct fvd_reader *r)
{
  const uint8_t *p = r->header + FVD_AT_STRINGS;
  const uint8_t *end = r->header + FVD_AT_CHECKSUM;

  for (unsigned i = 0; i < 6; ++i) {
    unsigned n;

    if (end - p < 2)
      FAIL (r, "strings reach past their area");
    n = LE16 (p);
    p += 2;
    if (n > end - p || n > 1024 || memchr (p, 0, n) != NULL)
      FAIL (r, "string %u of %u bytes", i, n);
    memcpy (r->string[i], p, n);
    p += n;
  }
  if (!is_zero (p, end - p))
    FAIL (r, "bytes behind the strings");
  if (r->string[4][0] || r->string[5][0])
    FAIL (r, "reserved strings");
  return 0;
}

static int
read_header (struct fvd_reader *r)
{
  static const unsigned areas[] = {
    FVD_AT_SUMMARY, FVD_AT_BITMAP, FVD_AT_JOURNAL
  };
  const uint8_t *h;
  uint64_t need[3], bits;

  if (choose_header (r) == -1)
    return -1;
  h = r->header;
  if (LE32 (h + FVD_AT_VERSION) != 1)
    FAIL (r, "version");
  if (is_zero (h + FVD_AT_UUID, 16))
    FAIL (r, "no UUID");
  if (LE64 (h + FVD_AT_INCOMPAT) != 0)
    FAIL (r, "features");
  r->seq = LE64 (h + FVD_AT_SEQ);
  r->size = LE64 (h + FVD_AT_SIZE);
  bits = LE32 (h + FVD_AT_BLOCK_BITS);
  r->flags = LE32 (h + FVD_AT_FLAGS);
  r->tail = LE64 (h + FVD_AT_TAIL);
  r->data_offset = LE64 (h + FVD_AT_DATA);
  r->backing_size = LE64 (h + FVD_AT_BACKING_SIZE);
  if (r->size > UINT64_C (1) << 62 || bits < 12 || bits > 21)
    FAIL (r, "size or block size");
  if (r->flags & ~15u)
    FAIL (r, "flags");
  if (!is_zero (h + FVD_AT_CHUNKS, 16) || !is_zero (h + FVD_AT_RESERVED, 32) ||
      !is_zero (h + FVD_AT_RESERVED + 96, 704))
    FAIL (r, "reserved bytes");
  if (read_strings (r) == -1)
    return -1;
  if ((r->flags & 2) ? strcmp (r->string[1], "raw") != 0 &&
      strcmp (r->string[1], "fvd") != 0
      : r->string[0][0] || r->string[1][0] || r->string[2][0] ||
      !is_zero (h + FVD_AT_BACKING_SIZE, 24))
    FAIL (r, "backing");

  r->block = UINT64_C (1) << bits;
  r->nblocks = r->size / r->block + (r->size % r->block != 0);
  need[1] = (r->nblocks + 4031) / 4032 * 512;
  need[0] = ((r->nblocks + 4031) / 4032 + 2015) / 2016 * 512;
  need[2] = 16384;
  for (unsigned i = 0; i < 3; ++i) {
    uint64_t offset = LE64 (h + areas[i]), size = LE64 (h + areas[i] + 8);

    if (offset % 4096 || size % 4096 || offset < 8192 || size < need[i] ||
        size > r->file_size || offset > r->file_size - size ||
        offset + size > r->data_offset)
      FAIL (r, "area %u: %" PRIu64 " bytes at %" PRIu64, i, size, offset);
  }
  if (r->data_offset % 4096 || r->data_offset % r->block ||
      r->data_offset > r->file_size ||
      r->size > r->file_size - r->data_offset)
    FAIL (r, "data area");
  r->journal = LE64 (h + FVD_AT_JOURNAL);
  r->journal_sectors = LE64 (h + FVD_AT_JOURNAL + 8) / 512;
  return 0;
}

/* Sections 2.2 and 2.3. */
static int
read_bitmap (struct fvd_reader *r)
{
  const uint8_t *summary = r->file + LE64 (r->header + FVD_AT_SUMMARY);
  const uint8_t *bitmap = r->file + LE64 (r->header + FVD_AT_BITMAP);
  const uint8_t *uuid = r->header + FVD_AT_UUID;

  for (uint64_t page = 0; page * 4032 < r->nblocks; ++page) {
    const uint8_t *s = summary + page / 2016 * 512;
    const uint8_t *p = bitmap + page * 512;
    unsigned value;

    if (page % 2016 == 0 &&
        LE64 (s + 504) != checksum (uuid, 1, page / 2016, s))
      FAIL (r, "summary sector %" PRIu64, page / 2016);
    value = s[page % 2016 / 4] >> (page % 4 * 2) & 3;
    if (value == 3 ||
        (value == 2 && LE64 (p + 504) != checksum (uuid, 2, page, p)))
      FAIL (r, "page %" PRIu64 ", state %u", page, value);
    for (uint64_t b = 0; b < 4032; ++b) {
      bool bit = value == 1 || (value == 2 && (p[b / 8] >> (b % 8) & 1));

      if (page * 4032 + b < r->nblocks)
        r->allocated[page * 4032 + b] = bit;
      else if (value == 2 && bit)
        FAIL (r, "bit behind the last block");
    }
  }
  return 0;
}

/* Section 2.4. */
static int
read_journal (struct fvd_reader *r)
{
  for (uint64_t i = 0; i < r->journal_sectors; ++i) {
    const uint8_t *s = r->file + r->journal + i * 512;
    uint64_t number = LE64 (s + 8);
    unsigned n = LE16 (s + 6);

    if (memcmp (s, "FVDJ", 4) != 0 || number < r->tail ||
        number % r->journal_sectors != i ||
        LE64 (s + 504) != checksum (r->header + FVD_AT_UUID, 3, i, s))
      continue;
    r->records++;
    if (LE16 (s + 4) != 1 || n < 1 || n > 40 ||
        !is_zero (s + 24 + 12 * n, 480 - 12 * n))
      FAIL (r, "record %" PRIu64, number);
    for (unsigned j = 0; j < n; ++j) {
      uint64_t blk = LE64 (s + 24 + 12 * j);
      uint64_t count = LE32 (s + 24 + 12 * j + 8);

      if (blk > r->nblocks || count > r->nblocks - blk)
        FAIL (r, "record %" PRIu64 ": range outside the disk", number);
      memset (r->allocated + blk, 1, count);
    }
  }
  if (r->records > 0 && (r->flags & 1))
    FAIL (r, "a clean image with %" PRIu64 " records", r->records);
  return 0;
}

int
fvd_reader_open (struct fvd_reader *r, const uint8_t *file,
                 uint64_t file_size)
{
  memset (r, 0, sizeof *r);
  r->file = file;
  r->file_size = file_size;
  if (read_header (r) == -1)
    return -1;
  r->allocated = calloc (1, r->nblocks + 1);
  if (r->allocated == NULL)
    FAIL (r, "no memory");
  if (read_bitmap (r) == -1)
    return -1;
  return read_journal (r);
}

void
fvd_reader_close (struct fvd_reader *r)
{
  free (r->allocated);
  r->allocated = NULL;
}

/* Section 3. */
void
fvd_reader_pread (const struct fvd_reader *r, uint8_t *buf, size_t count,
                  uint64_t offset, const uint8_t *backing,
                  uint64_t backing_size)
{
  const uint64_t shown = r->backing_size < backing_size
    ? r->backing_size : backing_size;

  memset (buf, 0, count);
  while (count > 0 && offset < r->size) {
    uint64_t n = r->block - offset % r->block;

    if (n > count)
      n = count;
    if (n > r->size - offset)
      n = r->size - offset;
    if (r->allocated[offset / r->block])
      memcpy (buf, r->file + r->data_offset + offset, n);
    else if ((r->flags & 2) && offset < shown)
      memcpy (buf, backing + offset, n < shown - offset ? n : shown - offset);
    buf += n;
    count -= n;
    offset += n;
  }
}
