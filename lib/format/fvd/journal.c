/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Records of the journal: ranges of blocks that became allocated, a sector
 * each, in a ring.  A sector stands for itself, so records may be lost, torn
 * and replayed in any way: one that is valid is true, because it was written
 * after the data it speaks of was durable.  One that is neither valid nor
 * zeros has been damaged, for a sector is never written in part: what it
 * said is not known, so the image is refused. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "util/bytes.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

enum {
  R_MAGIC = 0, R_TYPE = 4, R_COUNT = 6, R_NUMBER = 8, R_LIFE = 16,
  R_RANGES = 24, R_RANGE_SIZE = 12, R_MAX = 40,
};
enum { R_TYPE_ALLOCATED = 1, R_TYPE_PLACED = 2 };
static const uint8_t magic[4] = "FVDJ";

/* Ranges that are gathered before they go to the bitmap. */
#define GATHER 65536

/* Reading the journal. */
struct replay {
  struct fvd *f;
  void (*fn) (void *opaque, uint64_t record);
  void *opaque;
  struct fvd_ranges ranges;     /* read, and not yet in the bitmap */
};

static bool
is_zero (const uint8_t *sector)
{
  return sector[0] == 0 && memcmp (sector, sector + 1, FVD_SECTOR - 1) == 0;
}

/* Whether a sector, at place INDEX, is as it was written. */
static bool
is_intact (const struct fvd *f, const uint8_t *sector, uint64_t index)
{
  return is_zero (sector) ||
    fvd_sector_is_valid (&f->h.uuid, FVD_JOURNAL, index, sector);
}

/* Whether SECTOR, intact and at place INDEX, is a record that counts.  One
 * past the end of the ring does: the header may be the older copy, because
 * the newer one is damaged. */
static bool
is_record (const struct fvd *f, const uint8_t *sector, uint64_t index)
{
  uint64_t number = nc_get_le64 (sector + R_NUMBER);

  return memcmp (sector, magic, sizeof magic) == 0 &&
    number >= f->h.journal_tail && number % f->journal.nsectors == index;
}

static int
compare_ranges (const void *a, const void *b)
{
  const struct fvd_range *x = a, *y = b;

  return x->blk < y->blk ? -1 : x->blk > y->blk;
}

static int
set_range (struct fvd *f, uint64_t blk, uint64_t count)
{
  if (fvd_pages_load (f, blk, count) == -1)
    return -1;
  nc_bitmap_set (f->bm, blk, count);
  return 0;
}

/* Bring what was gathered into the bitmap, each block once: records may hold
 * the same huge ranges over and over, by design or by malice. */
static int
set_gathered (struct replay *replay)
{
  struct fvd_ranges *ranges = &replay->ranges;
  struct fvd_range now;

  if (ranges->n == 0)
    return 0;
  qsort (ranges->v, ranges->n, sizeof *ranges->v, compare_ranges);
  now = ranges->v[0];
  for (size_t i = 1; i < ranges->n; ++i) {
    const struct fvd_range *r = &ranges->v[i];
    const uint64_t end = now.blk + now.count;

    if (r->blk <= end)
      now.count = nc_max64 (end, r->blk + r->count) - now.blk;
    else {
      if (set_range (replay->f, now.blk, now.count) == -1)
        return -1;
      now = *r;
    }
  }
  ranges->n = 0;
  return set_range (replay->f, now.blk, now.count);
}

static int
gather_range (struct replay *replay, uint64_t number, uint64_t blk,
              uint32_t count)
{
  struct fvd *f = replay->f;
  const uint64_t nblocks = fvd_nblocks (&f->h);

  if (count == 0 || !nc_range_within (blk, count, nblocks)) {
    nc_error ("%s: damaged journal: record %" PRIu64 " has the range %"
              PRIu64 " + %" PRIu32 ", but the disk has %" PRIu64
              " blocks", f->dev->name, number, blk, count, nblocks);
    errno = EIO;
    return -1;
  }
  return fvd_ranges_add (&replay->ranges, blk, count);
}

static int
apply (struct replay *replay, const uint8_t *sector)
{
  struct fvd *f = replay->f;
  const unsigned type = nc_get_le16 (sector + R_TYPE);
  const uint64_t number = nc_get_le64 (sector + R_NUMBER);
  const unsigned n = nc_get_le16 (sector + R_COUNT);

  if ((type != R_TYPE_ALLOCATED &&
       (type != R_TYPE_PLACED || !fvd_is_compact (&f->h))) ||
      n == 0 || n > R_MAX || number > FVD_NUMBER_MAX) {
    nc_error ("%s: damaged journal: record %" PRIu64 " of type %u with %u "
              "ranges", f->dev->name, number, type, n);
    errno = EIO;
    return -1;
  }
  for (unsigned i = 0; i < n; ++i) {
    const uint8_t *p = sector + R_RANGES + i * R_RANGE_SIZE;
    uint64_t blk = nc_get_le64 (p);
    uint32_t count = nc_get_le32 (p + 8);

    if (type == R_TYPE_PLACED ? fvd_chunks_replay (f, blk, count) == -1
        : gather_range (replay, number, blk, count) == -1)
      return -1;
  }
  return replay->ranges.n >= GATHER ? set_gathered (replay) : 0;
}

static int
replay_sector (struct replay *replay, uint8_t *sector, uint64_t index)
{
  struct fvd *f = replay->f;
  uint64_t number;

  /* Who inspects an image in use may see a sector that is being written:
   * he looks again. */
  if (!is_intact (f, sector, index)) {
    if (f->dev->ops->pread (f->dev, sector, FVD_SECTOR, f->h.journal.offset +
                            index * FVD_SECTOR) == -1)
      return -1;
    if (!is_intact (f, sector, index)) {
      nc_error ("%s: damaged journal: sector %" PRIu64 " has a wrong "
                "checksum, so flushed writes may be missing; put the image "
                "back from a copy", f->dev->name, index);
      errno = EIO;
      return -1;
    }
  }
  if (!is_record (f, sector, index))
    return 0;
  if (apply (replay, sector) == -1)
    return -1;
  number = nc_get_le64 (sector + R_NUMBER);
  f->journal.next = nc_max64 (f->journal.next, number + 1);
  if (replay->fn)
    replay->fn (replay->opaque, number);
  return 0;
}

static int
replay_all (struct replay *replay, uint8_t *buf, size_t buf_size)
{
  struct fvd *f = replay->f;

  for (uint64_t at = 0; at < f->h.journal.size; at += buf_size) {
    size_t n = nc_min64 (buf_size, f->h.journal.size - at);

    if (f->dev->ops->pread (f->dev, buf, n, f->h.journal.offset + at) == -1)
      return -1;
    for (size_t i = 0; i < n; i += FVD_SECTOR)
      if (replay_sector (replay, buf + i, (at + i) / FVD_SECTOR) == -1)
        return -1;
  }
  return set_gathered (replay);
}

int
fvd_journal_replay (struct fvd *f,
                    void (*fn) (void *opaque, uint64_t record), void *opaque)
{
  const size_t buf_size = 64 * 1024;
  NC_FREE uint8_t *buf = malloc (buf_size);
  struct replay replay = { .f = f, .fn = fn, .opaque = opaque };
  int r;

  if (buf == NULL) {
    nc_error ("%s: journal: %m", f->dev->name);
    return -1;
  }
  f->journal.next = f->h.journal_tail;
  r = replay_all (&replay, buf, buf_size);
  free (replay.ranges.v);
  /* The tail of an older header: what has left the ring since was needed no
   * more. */
  if (r == 0 && f->journal.next - f->h.journal_tail > f->journal.nsectors) {
    f->h.journal_tail = f->journal.next - f->journal.nsectors;
    f->journal.tail = f->h.journal_tail;
  }
  return r;
}

/* Nobody looks at the journal of a clean image.  After the next death it will
 * be read, and a sector that was damaged long ago, and meant nothing any more,
 * would have the image refused. */
static int
clear_sector (struct fvd *f, const uint8_t *sector, uint64_t index)
{
  static const uint8_t zeros[FVD_SECTOR];

  if (is_intact (f, sector, index) && !is_record (f, sector, index))
    return 0;
  nc_debug ("%s: journal: sector %" PRIu64 " of a clean image is no record "
            "of it", f->dev->name, index);
  return f->dev->ops->pwrite (f->dev, zeros, sizeof zeros,
                              f->h.journal.offset + index * FVD_SECTOR);
}

int
fvd_journal_clear (struct fvd *f)
{
  const size_t buf_size = 64 * 1024;
  NC_FREE uint8_t *buf = malloc (buf_size);

  if (buf == NULL) {
    nc_error ("%s: journal: %m", f->dev->name);
    return -1;
  }
  for (uint64_t at = 0; at < f->h.journal.size; at += buf_size) {
    const size_t n = nc_min64 (buf_size, f->h.journal.size - at);

    if (f->dev->ops->pread (f->dev, buf, n, f->h.journal.offset + at) == -1)
      return -1;
    for (size_t i = 0; i < n; i += FVD_SECTOR)
      if (clear_sector (f, buf + i, (at + i) / FVD_SECTOR) == -1)
        return -1;
  }
  return 0;
}

static uint64_t
range_sectors (const struct fvd_ranges *ranges)
{
  uint64_t n = 0;

  for (size_t i = 0; i < ranges->n; ++i)
    n += nc_div_up (ranges->v[i].count, UINT32_MAX);
  return nc_div_up (n, R_MAX);
}

uint64_t
fvd_journal_need (const struct fvd_ranges *ranges,
                  const struct fvd_places *places)
{
  return range_sectors (ranges) + nc_div_up (places->n, R_MAX);
}

uint64_t
fvd_journal_room (const struct fvd *f)
{
  return f->journal.nsectors - (f->journal.next - f->journal.tail);
}

/* What is still to be recorded. */
struct source {
  const struct fvd_ranges *ranges;
  const struct fvd_places *places;
  size_t i;                     /* the next one */
  uint64_t done;                /* blocks of that range already recorded */
};

static void
put_entry (uint8_t *sector, unsigned n, uint64_t first, uint32_t second)
{
  nc_put_le64 (sector + R_RANGES + n * R_RANGE_SIZE, first);
  nc_put_le32 (sector + R_RANGES + n * R_RANGE_SIZE + 8, second);
}

static unsigned
fill_ranges (uint8_t *sector, struct source *src)
{
  unsigned n;

  for (n = 0; n < R_MAX && src->i < src->ranges->n; ++n) {
    const struct fvd_range *r = &src->ranges->v[src->i];
    uint64_t count = nc_min64 (r->count - src->done, UINT32_MAX);

    put_entry (sector, n, r->blk + src->done, count);
    src->done += count;
    if (src->done == r->count) {
      ++src->i;
      src->done = 0;
    }
  }
  return n;
}

static unsigned
fill_places (uint8_t *sector, struct source *src)
{
  unsigned n;

  for (n = 0; n < R_MAX && src->i < src->places->n; ++n, ++src->i)
    put_entry (sector, n, src->places->v[src->i].chunk,
               src->places->v[src->i].entry);
  return n;
}

/* Fill SECTOR as record NUMBER. */
static void
fill_record (const struct fvd *f, uint8_t *sector, uint64_t number,
             struct source *src)
{
  unsigned n;

  memset (sector, 0, FVD_SECTOR);
  memcpy (sector + R_MAGIC, magic, sizeof magic);
  nc_put_le16 (sector + R_TYPE,
               src->ranges ? R_TYPE_ALLOCATED : R_TYPE_PLACED);
  nc_put_le64 (sector + R_NUMBER, number);
  nc_put_le64 (sector + R_LIFE, f->h.life);
  n = src->ranges ? fill_ranges (sector, src) : fill_places (sector, src);
  nc_put_le16 (sector + R_COUNT, n);
  fvd_sector_seal (&f->h.uuid, FVD_JOURNAL, number % f->journal.nsectors,
                   sector);
}

/* Append NEED records. */
static int
append (struct fvd *f, uint64_t need, struct source *src)
{
  uint8_t buf[16 * FVD_SECTOR];

  while (need > 0) {
    const uint64_t index = f->journal.next % f->journal.nsectors;
    /* As many as fit the buffer before the ring turns. */
    const uint64_t n = nc_min64 (nc_min64 (need, sizeof buf / FVD_SECTOR),
                                 f->journal.nsectors - index);

    for (uint64_t k = 0; k < n; ++k)
      fill_record (f, buf + k * FVD_SECTOR, f->journal.next + k, src);
    if (f->dev->ops->pwrite_durable (f->dev, buf, n * FVD_SECTOR,
                                     f->h.journal.offset +
                                     index * FVD_SECTOR) == -1)
      return -1;
    f->journal.next += n;
    need -= n;
  }
  return 0;
}

int
fvd_journal_append (struct fvd *f, const struct fvd_ranges *ranges,
                    const struct fvd_places *places)
{
  struct source of_places = { .places = places };
  struct source of_ranges = { .ranges = ranges };

  if (append (f, nc_div_up (places->n, R_MAX), &of_places) == -1)
    return -1;
  return append (f, range_sectors (ranges), &of_ranges);
}
