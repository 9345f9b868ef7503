/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Which blocks of a backing are zeros, by what it says itself. */
#ifndef NC_ZEROES_H
#define NC_ZEROES_H

#include <stdint.h>

struct nc_chain_options;
struct fvd_ranges;

/* Add to RANGES, in order, the blocks of 1 << BLOCK_BITS bytes of which all
 * that is below SIZE and within the disk of the chain OPTS reads as zeros,
 * and something is.  By block status: nothing is read.  Blocks on that.
 * Returns -1 on error, reported. */
extern int nc_zeroes_find (const struct nc_chain_options *opts, uint64_t size,
                           unsigned block_bits, struct fvd_ranges *ranges)
  __attribute__ ((__nonnull__ (1, 4)));

#endif /* NC_ZEROES_H */
