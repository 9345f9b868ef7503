/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One of two disks that are walked side by side: which of its layers owns
 * what, and what is zeros without looking.
 *
 * Owners and zeros are asked for by one thread at a time, and offsets hardly
 * go back; reading is free to all.
 */
#ifndef NC_SIDE_H
#define NC_SIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/extents.h"

struct nc_chain;

struct nc_side {
  struct nc_chain *chain;       /* NULL: a disk of zeros */
  struct nc_export *export;
  uint64_t size;                /* zeros behind; may be made less */
  bool has_remote;
  struct nc_extents extents;    /* known ahead */
  size_t extent;                /* the one asked for last */
};

/* CHAIN, which has been started, stays the caller's.  Returns -1 on error,
 * reported; close it in any case. */
extern int nc_side_open (struct nc_side *side, struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1, 2)));
/* Also one that is all zeros, and was never opened. */
extern void nc_side_close (struct nc_side *side)
  __attribute__ ((__nonnull__ (1)));

/* Which layer the bytes at OFFSET come from: *LAYER; -1: none, they are
 * zeros.  *RUN, at first the most that is asked for, is cut where the answer
 * changes, but not at the end of the disk if OFFSET is behind it. */
extern int nc_side_owner (struct nc_side *side, uint64_t offset, int *layer,
                          uint64_t *run)
  __attribute__ ((__nonnull__ (1, 3, 4)));

/* Whether the bytes at OFFSET, which LAYER owns, are known to be zeros; *RUN
 * as above. */
extern int nc_side_zero (struct nc_side *side, int layer, uint64_t offset,
                         bool *zero, uint64_t *run)
  __attribute__ ((__nonnull__ (1, 4, 5)));

/* Read the sides A and B, into NULL not, with zeros behind their ends.
 * Returns what .read of a ring does; where a side has a remote, only such
 * sides count. */
extern int nc_sides_read (struct nc_side *a, void *buf_a, struct nc_side *b,
                          void *buf_b, size_t count, uint64_t offset)
  __attribute__ ((__nonnull__ (1, 3)));

/* Which layers are the same on both sides. */
struct nc_shared {
  bool *v;
  size_t n_b;
};

extern int nc_shared_find (struct nc_shared *shared, const struct nc_side *a,
                           const struct nc_side *b)
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern void nc_shared_free (struct nc_shared *shared)
  __attribute__ ((__nonnull__ (1)));
/* As nc_side_owner says. */
extern bool nc_is_shared (const struct nc_shared *shared, int layer_a,
                          int layer_b)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_SIDE_H */
