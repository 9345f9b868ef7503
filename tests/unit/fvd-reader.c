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
    FAIL (r, "a data file is for others to read");
  return 0;
}

/* What compact images have in the header. */
static int
read_compact (struct fvd_reader *r)
{
  const uint8_t *h = r->header;
  uint64_t grow_unit = LE64 (h + FVD_AT_GROW_UNIT);
  uint64_t table = LE64 (h + FVD_AT_TABLE);
  uint64_t table_size = LE64 (h + FVD_AT_TABLE + 8);

  if (LE32 (h + FVD_AT_CHUNK_BITS) != 20)
    FAIL (r, "chunk size");
  r->chunk = 1 << 20;
  r->nchunks = (r->size + r->chunk - 1) / r->chunk;
  if (grow_unit == 0 || grow_unit % r->chunk)
    FAIL (r, "grow unit");
  if (table % 4096 || table_size < (r->nchunks + 125) / 126 * 512 ||
      table > r->data_offset || table_size > r->data_offset - table)
    FAIL (r, "table area");
  if (LE64 (h + FVD_AT_CHUNKS) > (r->file_size - r->data_offset) / r->chunk)
    FAIL (r, "chunks behind the end of the file");
  return 0;
}

/* Section 2.5. */
static int
put_place (struct fvd_reader *r, uint64_t chunk, uint32_t place)
{
  if (chunk >= r->nchunks || place == 0 ||
      (r->place[chunk] && r->place[chunk] != place) ||
      place * r->chunk > r->file_size - r->data_offset)
    FAIL (r, "chunk %" PRIu64 " at place %u", chunk, place);
  r->place[chunk] = place;
  return 0;
}

static int
read_table (struct fvd_reader *r)
{
  const uint8_t *table = r->file + LE64 (r->header + FVD_AT_TABLE);

  for (uint64_t c = 0; c < r->nchunks; ++c) {
    const uint8_t *s = table + c / 126 * 512;
    uint32_t place = LE32 (s + c % 126 * 4);

    if (c % 126 == 0 && !is_zero (s, 512) &&
        LE64 (s + 504) != checksum (r->header + FVD_AT_UUID, 4, c / 126, s))
      FAIL (r, "table sector %" PRIu64, c / 126);
    if (place > LE64 (r->header + FVD_AT_CHUNKS))
      FAIL (r, "chunk %" PRIu64 " at place %u", c, place);
    if (place && put_place (r, c, place) == -1)
      return -1;
  }
  return 0;
}

static int
check_places (struct fvd_reader *r)
{
  for (uint64_t a = 0; a < r->nchunks; ++a)
    for (uint64_t b = 0; r->place[a] && b < a; ++b)
      if (r->place[a] == r->place[b])
        FAIL (r, "chunks %" PRIu64 " and %" PRIu64 " share a place", a, b);
  return 0;
}

/* Whether the areas are where they may be, and large enough. */
static int
check_areas (struct fvd_reader *r)
{
  static const unsigned areas[] = {
    FVD_AT_SUMMARY, FVD_AT_BITMAP, FVD_AT_JOURNAL
  };
  const uint64_t need[] = {
    ((r->nblocks + 4031) / 4032 + 2015) / 2016 * 512,
    (r->nblocks + 4031) / 4032 * 512,
    16384,
  };

  for (unsigned i = 0; i < 3; ++i) {
    uint64_t offset = LE64 (r->header + areas[i]);
    uint64_t size = LE64 (r->header + areas[i] + 8);

    if (offset % 4096 || size % 4096 || offset < 8192 || size < need[i] ||
        size > r->file_size || offset > r->file_size - size ||
        offset + size > r->data_offset)
      FAIL (r, "area %u: %" PRIu64 " bytes at %" PRIu64, i, size, offset);
  }
  return 0;
}

static int
read_header (struct fvd_reader *r)
{
  const uint8_t *h;
  uint64_t bits;

  if (choose_header (r) == -1)
    return -1;
  h = r->header;
  if (LE32 (h + FVD_AT_VERSION) != 1)
    FAIL (r, "version");
  if (is_zero (h + FVD_AT_UUID, 16))
    FAIL (r, "no UUID");
  if (LE64 (h + FVD_AT_INCOMPAT) > 1)
    FAIL (r, "features");
  r->seq = LE64 (h + FVD_AT_SEQ);
  r->size = LE64 (h + FVD_AT_SIZE);
  bits = LE32 (h + FVD_AT_BLOCK_BITS);
  r->flags = LE32 (h + FVD_AT_FLAGS);
  if (r->copies == 1)           /* the other one may have been newer */
    r->flags &= ~1u;
  r->tail = LE64 (h + FVD_AT_TAIL);
  r->data_offset = LE64 (h + FVD_AT_DATA);
  r->backing_size = LE64 (h + FVD_AT_BACKING_SIZE);
  if (r->size > UINT64_C (1) << 62 || bits < 12 || bits > 21)
    FAIL (r, "size or block size");
  if (r->seq >> 63 || r->tail >> 63)
    FAIL (r, "numbers");
  if (r->flags & ~15u)
    FAIL (r, "flags");
  if (!is_zero (h + 228, 4) || !is_zero (h + 248, 8) ||
      !is_zero (h + 336, 688))
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
  if (check_areas (r) == -1)
    return -1;
  if (r->data_offset % 4096 || r->data_offset % r->block ||
      r->data_offset > r->file_size)
    FAIL (r, "data area");
  if (LE64 (h + FVD_AT_INCOMPAT) & 1)
    return read_compact (r);
  if (!is_zero (h + FVD_AT_TABLE, 16) || !is_zero (h + FVD_AT_CHUNK_BITS, 24))
    FAIL (r, "not compact, but chunks");
  if (r->size > r->file_size - r->data_offset)
    FAIL (r, "data area");
  return 0;
}

static int
read_areas (struct fvd_reader *r)
{
  const uint8_t *h = r->header;

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

static bool
is_intact (const struct fvd_reader *r, uint64_t i)
{
  const uint8_t *s = r->file + r->journal + i * 512;

  return is_zero (s, 512) ||
    LE64 (s + 504) == checksum (r->header + FVD_AT_UUID, 3, i, s);
}

/* Section 2.4. */
static int
read_journal (struct fvd_reader *r)
{
  for (uint64_t i = 0; i < r->journal_sectors; ++i) {
    const uint8_t *s = r->file + r->journal + i * 512;
    uint64_t number = LE64 (s + 8);
    unsigned n = LE16 (s + 6);

    if (!(r->flags & 1) && !is_intact (r, i))
      FAIL (r, "journal sector %" PRIu64, i);
    if (memcmp (s, "FVDJ", 4) != 0 || number < r->tail ||
        number % r->journal_sectors != i ||
        LE64 (s + 504) != checksum (r->header + FVD_AT_UUID, 3, i, s))
      continue;
    r->records++;
    if ((LE16 (s + 4) != 1 && (LE16 (s + 4) != 2 || r->chunk == 0)) ||
        n < 1 || n > 40 || number >> 63 ||
        !is_zero (s + 24 + 12 * n, 480 - 12 * n))
      FAIL (r, "record %" PRIu64, number);
    for (unsigned j = 0; j < n; ++j) {
      uint64_t blk = LE64 (s + 24 + 12 * j);
      uint64_t count = LE32 (s + 24 + 12 * j + 8);

      if (LE16 (s + 4) == 2) {
        if (put_place (r, blk, count) == -1)
          return -1;
        continue;
      }
      if (count == 0 || blk > r->nblocks || count > r->nblocks - blk)
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
  if (read_header (r) == -1 || read_areas (r) == -1)
    return -1;
  r->allocated = calloc (1, r->nblocks + 1);
  r->place = calloc (r->nchunks + 1, sizeof *r->place);
  if (r->allocated == NULL || r->place == NULL)
    FAIL (r, "no memory");
  if (read_bitmap (r) == -1 || read_table (r) == -1 ||
      read_journal (r) == -1)
    return -1;
  return check_places (r);
}

void
fvd_reader_close (struct fvd_reader *r)
{
  free (r->allocated);
  r->allocated = NULL;
  free (r->place);
  r->place = NULL;
}

/* Where in the file byte OFFSET of the disk is, in an allocated block; NULL:
 * nowhere, it is zero. */
static const uint8_t *
data_at (const struct fvd_reader *r, uint64_t offset)
{
  if (r->chunk == 0)
    return r->file + r->data_offset + offset;
  if (r->place[offset / r->chunk] == 0)
    return NULL;
  return r->file + r->data_offset +
    (r->place[offset / r->chunk] - 1) * r->chunk + offset % r->chunk;
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
    if (r->allocated[offset / r->block]) {
      if (data_at (r, offset))
        memcpy (buf, data_at (r, offset), n);
    }
    else if ((r->flags & 2) && offset < shown)
      memcpy (buf, backing + offset, n < shown - offset ? n : shown - offset);
    buf += n;
    count -= n;
    offset += n;
  }
}
