/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Which blocks of a backing are zeros, by what it says itself. */
#ifndef NC_ZEROES_H
#define NC_ZEROES_H

#include <stddef.h>
#include <stdint.h>

struct nc_chain_options;
struct fvd_ranges;

/* Looking for zeros takes a request for each 4 GiB at least. */
#define NC_ZEROES_SIZE_MAX (UINT64_C (1) << 50)

struct nc_zeroes_options {
  uint64_t size;                /* look no further */
  unsigned block_bits;          /* blocks have 1 << BLOCK_BITS bytes */
  size_t max;                   /* ranges to find */

  /* DONE of TOTAL bytes have been looked at.  NULL: not called. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* Add to RANGES, in order, the blocks of which all that is below opts->size and
 * within the disk of CHAIN reads as zeros, and something is.  By block status:
 * no data is needed.  If there are more ranges than opts->max, the first ones
 * are found, and that is reported as a notice.
 * A remote that is unreachable, or silent, is waited for as in a read.
 * Blocks on that.  Returns -1 on error, reported; EFBIG: there is more to look
 * at than NC_ZEROES_SIZE_MAX. */
extern int nc_zeroes_find (const struct nc_chain_options *chain,
                           const struct nc_zeroes_options *opts,
                           struct fvd_ranges *ranges)
  __attribute__ ((__nonnull__ (1, 2, 3)));

#endif /* NC_ZEROES_H */
