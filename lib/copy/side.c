/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Extents are asked for some thousand at a time, and kept until an offset
 * outside them is looked at. */

#include <config.h>

#include "copy/side.h"

#include <stdlib.h>
#include <string.h>

#include "chain/chain.h"
#include "util/checked.h"
#include "util/report.h"

/* What is asked of a disk at a time. */
#define EXTENTS_RANGE (UINT64_C (4) << 30)
#define EXTENTS_MAX 4096

int
nc_side_open (struct nc_side *side, struct nc_chain *chain)
{
  side->chain = chain;
  side->size = nc_chain_size (chain);
  side->has_remote = nc_chain_has_remote (chain);
  nc_extents_init (&side->extents, 0, 0);
  side->export = nc_export_open (chain, "", 0);
  return side->export ? 0 : -1;
}

void
nc_side_close (struct nc_side *side)
{
  nc_export_close (side->export);
  nc_extents_free (&side->extents);
}

int
nc_side_owner (struct nc_side *side, uint64_t offset, int *layer,
               uint64_t *run)
{
  *layer = -1;
  if (offset >= side->size)
    return 0;
  return nc_chain_owner (side->chain, offset,
                         nc_min64 (*run, side->size - offset), layer, run);
}

static int
ask_extents (struct nc_side *side, uint64_t offset)
{
  nc_extents_free (&side->extents);
  nc_extents_init (&side->extents, offset,
                   nc_min64 (side->size - offset, EXTENTS_RANGE));
  side->extents.limit = EXTENTS_MAX;
  side->extent = 0;
  return nc_export_extents (side->export, &side->extents, false);
}

int
nc_side_zero (struct nc_side *side, int layer, uint64_t offset, bool *zero,
              uint64_t *run)
{
  const struct nc_extent *e;

  *zero = layer == -1;
  if (*zero)
    return 0;
  if ((offset < side->extents.offset ||
       offset >= nc_extents_next (&side->extents)) &&
      ask_extents (side, offset) == -1)
    return -1;
  e = &side->extents.v[side->extent];
  while (e->offset > offset)
    --e;
  while (e->offset + e->count <= offset)
    ++e;
  side->extent = e - side->extents.v;
  *zero = e->type & NC_EXTENT_ZERO;
  *run = nc_min64 (*run, e->offset + e->count - offset);
  return 0;
}

/* Returns how often a source was asked. */
static int
read_side (struct nc_side *side, void *buf, size_t count, uint64_t offset)
{
  const size_t n = offset >= side->size ? 0
    : nc_min64 (count, side->size - offset);
  unsigned asked = 0;

  memset ((char *) buf + n, 0, count - n);
  if (n > 0 &&
      nc_export_pread_asked (side->export, buf, n, offset, &asked) == -1)
    return -1;
  return asked;
}

int
nc_sides_read (struct nc_side *a, void *buf_a, struct nc_side *b, void *buf_b,
               size_t count, uint64_t offset)
{
  const bool remote = a->has_remote || b->has_remote;
  const int in_a = buf_a ? read_side (a, buf_a, count, offset) : 0;
  const int in_b = buf_b && in_a != -1 ? read_side (b, buf_b, count, offset)
    : 0;

  if (in_a == -1 || in_b == -1)
    return -1;
  return (a->has_remote == remote ? in_a : 0) +
    (b->has_remote == remote ? in_b : 0);
}

static size_t
n_layers (const struct nc_side *side)
{
  return side->chain ? nc_chain_n_layers (side->chain) : 0;
}

int
nc_shared_find (struct nc_shared *shared, const struct nc_side *a,
                const struct nc_side *b)
{
  const size_t n_a = n_layers (a), n_b = n_layers (b);

  shared->n_b = n_b;
  shared->v = calloc (n_a * n_b + 1, sizeof *shared->v);
  if (shared->v == NULL) {
    nc_error ("table of layers: %m");
    return -1;
  }
  for (size_t i = 0; i < n_a; ++i)
    for (size_t k = 0; k < n_b; ++k)
      shared->v[i * n_b + k] =
        nc_chain_is_same_layer (a->chain, i, b->chain, k);
  return 0;
}

void
nc_shared_free (struct nc_shared *shared)
{
  free (shared->v);
}

bool
nc_is_shared (const struct nc_shared *shared, int layer_a, int layer_b)
{
  return layer_a != -1 && layer_b != -1 &&
    shared->v[layer_a * shared->n_b + layer_b];
}
