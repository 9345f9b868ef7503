/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Zeros in a backing, found when an image is made.  Only the status "reads as
 * zeros" counts: a hole alone promises nothing. */

#include <config.h>

#include "image/find-zeros.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>

#include "chain/chain.h"
#include "data/extents.h"
#include "format/fvd/fvd.h"
#include "util/checked.h"
#include "util/report.h"

/* What is asked at a time. */
#define RANGE (UINT64_C (4) << 30)
#define EXTENTS 65536

/* Connections that are lost over the same question, before it is given up. */
#define LOSSES 3

struct finder {
  const struct nc_zeroes_options *opts;
  struct fvd_ranges *ranges;
  uint64_t end;                 /* of what is looked at */
  uint64_t zero_from;           /* zeros from here to where we are */
  bool is_full;                 /* there are more than may be found */
};

/* The zeros end at OFFSET. */
static int
end_of_zeros (struct finder *f, uint64_t offset)
{
  const uint64_t block = UINT64_C (1) << f->opts->block_bits;
  const uint64_t first = nc_div_up (f->zero_from, block);
  /* What is behind the end is zeros, too. */
  const uint64_t last = offset == f->end ? nc_div_up (offset, block)
    : offset / block;

  if (first >= last)
    return 0;
  if (f->ranges->n == f->opts->max) {
    f->is_full = true;
    return 0;
  }
  return fvd_ranges_add (f->ranges, first, last - first);
}

static int
add_extents (struct finder *f, const struct nc_extents *extents)
{
  for (size_t i = 0; i < extents->n && !f->is_full; ++i) {
    const struct nc_extent *e = &extents->v[i];

    if (e->type & NC_EXTENT_ZERO)
      continue;
    if (end_of_zeros (f, e->offset) == -1)
      return -1;
    f->zero_from = e->offset + e->count;
  }
  return 0;
}

/* Ask what there is from AT on, up to END.  A remote that cannot be reached is
 * waited for by a read, which says what is wrong if that takes too long. */
static int
ask (struct nc_export *export, uint64_t at, uint64_t end,
     struct nc_extents *extents)
{
  uint8_t byte;

  for (unsigned losses = 0;; ++losses) {
    nc_extents_init (extents, at, nc_min64 (end - at, RANGE));
    extents->limit = EXTENTS;
    if (nc_export_extents_known (export, extents) == 0)
      return 0;
    nc_extents_free (extents);
    if (errno != ENOTCONN)
      return -1;
    if (losses == LOSSES) {
      nc_error ("zeros at offset %" PRIu64 ": the server of the backing does "
                "not answer requests for block status", at);
      errno = EIO;
      return -1;
    }
    if (nc_export_pread (export, &byte, 1, at) == -1)
      return -1;
  }
}

static int
find (struct nc_export *export, struct finder *f)
{
  for (uint64_t at = 0, next; at < f->end && !f->is_full; at = next) {
    struct nc_extents extents;
    int r;

    if (ask (export, at, f->end, &extents) == -1)
      return -1;
    r = add_extents (f, &extents);
    next = nc_extents_next (&extents);
    nc_extents_free (&extents);
    if (r == -1)
      return -1;
    if (f->opts->progress)
      f->opts->progress (f->opts->opaque, next, f->end);
  }
  if (f->is_full)
    nc_notice ("zeros of the backing lie in more than %zu places: those "
               "behind offset %" PRIu64 " are not recorded", f->opts->max,
               f->zero_from);
  return f->is_full ? 0 : end_of_zeros (f, f->end);
}

static int
check_size (const struct finder *f, const struct nc_chain_options *chain)
{
  if (f->end <= NC_ZEROES_SIZE_MAX)
    return 0;
  nc_error ("%s: has %" PRIu64 " bytes; zeros can be looked for in at most %"
            PRIu64 ": leave them out (no --zero-in-base), or give a smaller "
            "size", chain->image, f->end, NC_ZEROES_SIZE_MAX);
  errno = EFBIG;
  return -1;
}

int
nc_zeroes_find (const struct nc_chain_options *chain_opts,
                const struct nc_zeroes_options *opts,
                struct fvd_ranges *ranges)
{
  struct finder f = { .opts = opts, .ranges = ranges };
  struct nc_chain *chain = nc_chain_open (chain_opts);
  struct nc_export *export = NULL;
  int r = -1;

  if (chain && nc_chain_start (chain) == 0)
    export = nc_export_open (chain, "", 0);
  if (export) {
    f.end = nc_min64 (opts->size, nc_export_size (export));
    r = check_size (&f, chain_opts);
    if (r == 0)
      r = find (export, &f);
  }
  nc_export_close (export);
  if (chain && nc_chain_stop (chain) == -1)
    r = -1;
  nc_chain_close (chain);
  return r;
}
