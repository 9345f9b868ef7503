/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A list of byte ranges, each in one state, in order and without gaps:
 * what block status is made of. */
#ifndef NC_EXTENTS_H
#define NC_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  NC_EXTENT_HOLE = 1,           /* no storage behind it */
  NC_EXTENT_ZERO = 2,           /* reads as zeros */
};

struct nc_extent {
  uint64_t offset, count;       /* bytes; count is never 0 */
  unsigned type;                /* NC_EXTENT_* or 0 for data */
};

struct nc_extents {
  struct nc_extent *v;
  size_t n, cap;
  uint64_t offset, end;         /* the range asked for */
  size_t limit;                 /* no more extents are wanted than about as
                                   many, though they do not cover the range;
                                   0: as many as there are */
};

/* EXTENTS is to cover [offset, offset+count). */
extern void nc_extents_init (struct nc_extents *extents,
                             uint64_t offset, uint64_t count)
  __attribute__ ((__nonnull__ (1)));
extern void nc_extents_free (struct nc_extents *extents)
  __attribute__ ((__nonnull__ (1)));

/* Where the next extent must begin. */
extern uint64_t nc_extents_next (const struct nc_extents *extents)
  __attribute__ ((__nonnull__ (1)));

/* Whether the range asked for is covered, or the limit reached. */
extern bool nc_extents_full (const struct nc_extents *extents)
  __attribute__ ((__nonnull__ (1)));

/* Append COUNT bytes in state TYPE at nc_extents_next.  What reaches past
 * the range asked for is cut; a neighbour in the same state is merged.
 * Returns 0; or -1 with errno ENOMEM, reported. */
extern int nc_extents_append (struct nc_extents *extents,
                              uint64_t count, unsigned type)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_EXTENTS_H */
