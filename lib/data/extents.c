/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The list of extents.  Invariant: no gap, no overlap, no empty extent, two
 * neighbours never in the same state, nothing outside the range asked for
 * (nbdkit 1.32 aborts on an extent that reaches past its request). */

#include <config.h>

#include "data/extents.h"

#include <stdlib.h>

#include "util/checked.h"
#include "util/report.h"

void
nc_extents_init (struct nc_extents *extents, uint64_t offset, uint64_t count)
{
  *extents = (struct nc_extents) { .offset = offset, .end = offset + count };
}

void
nc_extents_free (struct nc_extents *extents)
{
  free (extents->v);
  extents->v = NULL;
  extents->n = extents->cap = 0;
}

uint64_t
nc_extents_next (const struct nc_extents *extents)
{
  const struct nc_extent *last;

  if (extents->n == 0)
    return extents->offset;
  last = &extents->v[extents->n - 1];
  return last->offset + last->count;
}

bool
nc_extents_full (const struct nc_extents *extents)
{
  return nc_extents_next (extents) >= extents->end ||
    (extents->limit && extents->n >= extents->limit);
}

int
nc_extents_append (struct nc_extents *extents, uint64_t count, unsigned type)
{
  uint64_t offset = nc_extents_next (extents);

  count = nc_min64 (count, extents->end - offset);
  if (count == 0)
    return 0;

  if (extents->n > 0 && extents->v[extents->n - 1].type == type) {
    extents->v[extents->n - 1].count += count;
    return 0;
  }

  if (extents->n == extents->cap) {
    size_t cap = extents->cap ? 2 * extents->cap : 16;
    struct nc_extent *v = reallocarray (extents->v, cap, sizeof *v);

    if (v == NULL) {
      nc_error ("list of extents: %m");
      return -1;
    }
    extents->v = v;
    extents->cap = cap;
  }
  extents->v[extents->n++] =
    (struct nc_extent) { .offset = offset, .count = count, .type = type };
  return 0;
}
