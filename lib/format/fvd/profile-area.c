/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The prefetch profile of an fvd image: which ranges of the disk were needed
 * first, in two halves of an area.  A writer overwrites the half that does
 * not count, and the first sector of a half binds all its others by their
 * checksum: so at any moment one half is whole. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "dev/dev.h"
#include "util/bytes.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

enum {
  P_MAGIC = 0, P_COUNT = 4, P_GENERATION = 8, P_HASH = 16, P_ZEROS = 24,
  P_CHECKSUM = 504, P_RANGE_SIZE = 16,
};
#define P_RANGES 31             /* in a sector */
static const uint8_t magic[4] = "FVDP";

static uint64_t
half_size (const struct fvd_header *h)
{
  return h->profile.size / 2;
}

/* How many ranges a half holds. */
static uint64_t
capacity (const struct fvd_header *h)
{
  return h->profile.size == 0 ? 0
    : (half_size (h) / FVD_SECTOR - 1) * P_RANGES;
}

static uint64_t
sector_index (const struct fvd_header *h, unsigned half)
{
  return half * (half_size (h) / FVD_SECTOR);
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  return n == 0 || (*p == 0 && memcmp (p, p + 1, n - 1) == 0);
}

/* A half in memory, whose first sector was looked at. */
struct half {
  uint8_t *bytes;
  uint64_t n, generation;       /* generation 0: it does not count */
};

static void
free_half (struct half *half)
{
  free (half->bytes);
}

/* Whether the sectors behind the first are those that it speaks of. */
static bool
ranges_are_valid (const struct fvd_header *h, unsigned index,
                  const struct half *half)
{
  const uint64_t sectors = nc_div_up (half->n, P_RANGES);

  for (uint64_t i = 1; i <= sectors; ++i)
    if (!fvd_sector_is_valid (&h->uuid, FVD_PROFILE,
                              sector_index (h, index) + i,
                              half->bytes + i * FVD_SECTOR))
      return false;
  return XXH3_64bits (half->bytes + FVD_SECTOR, sectors * FVD_SECTOR) ==
    nc_get_le64 (half->bytes + P_HASH);
}

/* Read half INDEX.  *empty: nothing was ever written there. */
static int
read_half (struct nc_dev *dev, const struct fvd_header *h, unsigned index,
           struct half *half, bool *empty)
{
  const uint64_t at = h->profile.offset + index * half_size (h);
  const uint8_t *first;

  half->bytes = malloc (half_size (h));
  if (half->bytes == NULL) {
    nc_error ("%s: prefetch profile: %m", dev->name);
    return -1;
  }
  if (dev->ops->pread (dev, half->bytes, half_size (h), at) == -1)
    return -1;
  first = half->bytes;
  *empty = is_zero (first, half_size (h));
  if (memcmp (first, magic, sizeof magic) != 0 ||
      !fvd_sector_is_valid (&h->uuid, FVD_PROFILE, sector_index (h, index),
                            first) ||
      !is_zero (first + P_ZEROS, P_CHECKSUM - P_ZEROS))
    return 0;
  half->n = nc_get_le32 (first + P_COUNT);
  if (half->n <= capacity (h) && ranges_are_valid (h, index, half))
    half->generation = nc_get_le64 (first + P_GENERATION);
  return 0;
}

/* Read the half that counts: *index, -1 if there is none. */
static int
read_current (struct nc_dev *dev, const struct fvd_header *h,
              struct half *current, int *index, unsigned *torn)
{
  *index = -1;
  *torn = 0;
  for (unsigned i = 0; i < 2 && h->profile.size > 0; ++i) {
    __attribute__ ((__cleanup__ (free_half))) struct half half = { 0 };
    bool empty;

    if (read_half (dev, h, i, &half, &empty) == -1)
      return -1;
    *torn += !empty && half.generation == 0;
    if (half.generation > current->generation) {
      free_half (current);
      *current = half;
      half.bytes = NULL;
      *index = i;
    }
  }
  return 0;
}

static const uint8_t *
range_at (const struct half *half, uint64_t i)
{
  return half->bytes + (1 + i / P_RANGES) * FVD_SECTOR +
    i % P_RANGES * P_RANGE_SIZE;
}

/* Range I as bytes, cut to the disk; false if nothing is left. */
static bool
get_range (const struct fvd_header *h, const struct half *half, uint64_t i,
           struct nc_profile_range *range)
{
  const uint8_t *p = range_at (half, i);
  const uint64_t nblocks = fvd_nblocks (h);
  const uint64_t blk = nc_get_le64 (p);
  const uint64_t count = nc_get_le32 (p + 8);
  uint64_t end;

  if (blk >= nblocks || count == 0)
    return false;
  end = blk + nc_min64 (count, nblocks - blk);
  range->offset = blk << h->block_bits;
  range->count = nc_min64 (end << h->block_bits, h->size) - range->offset;
  range->time = nc_get_le32 (p + 12);
  return true;
}

int
fvd_profile_read (struct nc_dev *dev, const struct fvd_header *h,
                  struct nc_profile_range **ranges, size_t *n,
                  unsigned *torn)
{
  __attribute__ ((__cleanup__ (free_half))) struct half half = { 0 };
  struct nc_profile_range *v;
  unsigned n_torn;
  int index;

  *ranges = NULL;
  *n = 0;
  if (read_current (dev, h, &half, &index, torn ? torn : &n_torn) == -1)
    return -1;
  if (index == -1 || half.n == 0)
    return 0;
  v = calloc (half.n, sizeof *v);
  if (v == NULL) {
    nc_error ("%s: prefetch profile: %m", dev->name);
    return -1;
  }
  for (uint64_t i = 0; i < half.n; ++i)
    *n += get_range (h, &half, i, &v[*n]);
  *ranges = v;
  return 0;
}

/* Bytes to blocks, neighbours of one time merged, in order, as many as fit.
 */
static void
put_ranges (const struct fvd_header *h, struct half *half,
            const struct nc_profile_range *ranges, size_t n)
{
  const uint64_t max = capacity (h), nblocks = fvd_nblocks (h);
  uint64_t last_end = UINT64_MAX;

  for (size_t i = 0; i < n; ++i) {
    const struct nc_profile_range *r = &ranges[i];
    uint64_t blk = r->offset >> h->block_bits;
    uint64_t end = r->count == 0 ? blk
      : nc_min64 (nblocks,
                  ((r->offset + r->count - 1) >> h->block_bits) + 1);

    for (uint64_t count; blk < end; blk += count) {
      uint8_t *p = (uint8_t *) range_at (half, half->n);
      uint8_t *last = half->n == 0 ? NULL
        : (uint8_t *) range_at (half, half->n - 1);

      count = nc_min64 (end - blk, UINT32_MAX);
      if (blk == last_end && nc_get_le32 (last + 12) == r->time &&
          nc_get_le32 (last + 8) + count <= UINT32_MAX)
        nc_put_le32 (last + 8, nc_get_le32 (last + 8) + count);
      else if (half->n == max)
        return;
      else {
        nc_put_le64 (p, blk);
        nc_put_le32 (p + 8, count);
        nc_put_le32 (p + 12, r->time);
        half->n++;
      }
      last_end = blk + count;
    }
  }
}

static void
seal_half (const struct fvd_header *h, unsigned index, struct half *half)
{
  const uint64_t first = sector_index (h, index);
  const uint64_t sectors = nc_div_up (half->n, P_RANGES);

  for (uint64_t i = 1; i <= sectors; ++i)
    fvd_sector_seal (&h->uuid, FVD_PROFILE, first + i,
                     half->bytes + i * FVD_SECTOR);
  memcpy (half->bytes + P_MAGIC, magic, sizeof magic);
  nc_put_le32 (half->bytes + P_COUNT, half->n);
  nc_put_le64 (half->bytes + P_GENERATION, half->generation);
  nc_put_le64 (half->bytes + P_HASH,
               XXH3_64bits (half->bytes + FVD_SECTOR, sectors * FVD_SECTOR));
  fvd_sector_seal (&h->uuid, FVD_PROFILE, first, half->bytes);
}

static int
make_durable (struct nc_dev *dev, struct fvd *f)
{
  return f ? fvd_sync (f) : dev->ops->sync (dev);
}

int
fvd_profile_write (struct nc_dev *dev, const struct fvd_header *h,
                   const struct nc_profile_range *ranges, size_t n,
                   struct fvd *f)
{
  __attribute__ ((__cleanup__ (free_half))) struct half old = { 0 };
  __attribute__ ((__cleanup__ (free_half))) struct half new = { 0 };
  unsigned torn, target;
  int index;

  if (h->profile.size == 0) {
    nc_error ("%s: was made without room for a prefetch profile", dev->name);
    errno = ENOTSUP;
    return -1;
  }
  if (read_current (dev, h, &old, &index, &torn) == -1)
    return -1;
  target = index == 0;
  new.generation = old.generation + 1;
  new.bytes = calloc (1, half_size (h) + FVD_SECTOR);
  if (new.bytes == NULL) {
    nc_error ("%s: prefetch profile: %m", dev->name);
    return -1;
  }
  put_ranges (h, &new, ranges, n);
  seal_half (h, target, &new);
  /* The half that counts may have been written a moment ago. */
  if (make_durable (dev, f) == -1 ||
      dev->ops->pwrite (dev, new.bytes,
                        (1 + nc_div_up (new.n, P_RANGES)) * FVD_SECTOR,
                        h->profile.offset + target * half_size (h)) == -1)
    return -1;
  return make_durable (dev, f);
}

int
fvd_profile_clear_torn (struct nc_dev *dev, const struct fvd_header *h,
                        unsigned *n)
{
  *n = 0;
  for (unsigned i = 0; i < 2 && h->profile.size > 0; ++i) {
    __attribute__ ((__cleanup__ (free_half))) struct half half = { 0 };
    bool empty;

    if (read_half (dev, h, i, &half, &empty) == -1)
      return -1;
    if (empty || half.generation > 0)
      continue;
    if (dev->ops->zero (dev, h->profile.offset + i * half_size (h),
                        half_size (h), NC_ZERO_MAY_TRIM) == -1)
      return -1;
    ++*n;
  }
  return 0;
}
