/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Zeros in a backing, found when an image is made.  Only the status "reads as
 * zeros" counts: a hole alone promises nothing. */

#include <config.h>

#include "image/find-zeros.h"

#include "chain/chain.h"
#include "data/extents.h"
#include "format/fvd/fvd.h"
#include "util/checked.h"
#include "util/report.h"

/* What is asked at a time. */
#define RANGE (UINT64_C (4) << 30)
#define EXTENTS 65536

struct finder {
  struct fvd_ranges *ranges;
  uint64_t end;                 /* of what is looked at */
  unsigned block_bits;
  uint64_t zero_from;           /* zeros from here to where we are */
};

/* The zeros end at OFFSET. */
static int
end_of_zeros (struct finder *f, uint64_t offset)
{
  const uint64_t block = UINT64_C (1) << f->block_bits;
  const uint64_t first = nc_div_up (f->zero_from, block);
  /* What is behind the end is zeros, too. */
  const uint64_t last = offset == f->end ? nc_div_up (offset, block)
    : offset / block;

  return first < last ?
    fvd_ranges_add (f->ranges, first, last - first) : 0;
}

static int
add_extents (struct finder *f, const struct nc_extents *extents)
{
  for (size_t i = 0; i < extents->n; ++i) {
    const struct nc_extent *e = &extents->v[i];

    if (e->type & NC_EXTENT_ZERO)
      continue;
    if (end_of_zeros (f, e->offset) == -1)
      return -1;
    f->zero_from = e->offset + e->count;
  }
  return 0;
}

static int
find (struct nc_export *export, struct finder *f)
{
  for (uint64_t at = 0, next; at < f->end; at = next) {
    struct nc_extents extents;
    int r;

    nc_extents_init (&extents, at, nc_min64 (f->end - at, RANGE));
    extents.limit = EXTENTS;
    r = nc_export_extents (export, &extents, false);
    if (r == 0)
      r = add_extents (f, &extents);
    next = nc_extents_next (&extents);
    nc_extents_free (&extents);
    if (r == -1)
      return -1;
  }
  return end_of_zeros (f, f->end);
}

int
nc_zeroes_find (const struct nc_chain_options *opts, uint64_t size,
                unsigned block_bits, struct fvd_ranges *ranges)
{
  struct finder f = { .ranges = ranges, .block_bits = block_bits };
  struct nc_chain *chain = nc_chain_open (opts);
  struct nc_export *export = NULL;
  int r = -1;

  if (chain && nc_chain_start (chain) == 0)
    export = nc_export_open (chain, "", 0);
  if (export) {
    f.end = nc_min64 (size, nc_export_size (export));
    r = find (export, &f);
  }
  nc_export_close (export);
  if (chain && nc_chain_stop (chain) == -1)
    r = -1;
  nc_chain_close (chain);
  return r;
}
