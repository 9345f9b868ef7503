/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Repairing what costs room or a warning and means nothing: never a byte that
 * the disk reads.  An image with an error is not for this file: what is
 * lost of it nobody can know.
 *
 * Leaks are storage that no block needs: what was written to the place of a
 * block whose bit did not become durable, and what a disk that was shrunk has
 * left behind its end; in a compact image, places that were given to chunks
 * and are lost. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/dev.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* Extents asked for at a time. */
#define EXTENTS_MAX 1024

struct leaks {
  struct fvd *f;
  int (*fn) (struct fvd *f, uint64_t offset, uint64_t count);
  uint64_t next;                /* in the data area; before it is settled */
  uint64_t bytes;
};

/* From leaks->next to END nothing is allocated: what is there takes no
 * storage, or is a leak. */
static int
walk_gap (struct leaks *leaks, uint64_t end)
{
  struct fvd *f = leaks->f;
  struct nc_extents extents;
  int r = 0;

  while (r == 0 && leaks->next < end) {
    nc_extents_init (&extents, leaks->next, end - leaks->next);
    extents.limit = EXTENTS_MAX;
    r = f->dev->ops->extents (f->dev, &extents, end, f->h.data_offset);
    for (size_t i = 0; r == 0 && i < extents.n; ++i) {
      const struct nc_extent *e = &extents.v[i];

      if (e->type & NC_EXTENT_HOLE)
        continue;
      leaks->bytes += e->count;
      if (leaks->fn)
        r = leaks->fn (f, e->offset, e->count);
    }
    leaks->next = nc_extents_next (&extents);
    nc_extents_free (&extents);
  }
  return r;
}

static int
step_over (void *opaque, uint64_t offset, uint64_t count)
{
  struct leaks *leaks = opaque;

  if (walk_gap (leaks, offset) == -1)
    return -1;
  leaks->next = offset + count;
  return 0;
}

/* On a device each place takes the storage of a whole one. */
static int
lost_places (struct leaks *leaks)
{
  struct fvd *f = leaks->f;
  const unsigned bits = f->h.chunk_bits;
  NC_FREE uint64_t *owned = NULL;
  uint64_t shared;

  if (fvd_places_owned (f, &owned, &shared) == -1)
    return -1;
  for (uint64_t n = 0; n < *f->chunks.used; ++n) {
    if (owned[n / 64] >> (n % 64) & 1)
      continue;
    leaks->next = n << bits;
    if (!f->dev->has_holes)
      leaks->bytes += UINT64_C (1) << bits;
    else if (walk_gap (leaks, (n + 1) << bits) == -1)
      return -1;
  }
  return 0;
}

int
fvd_leaks (struct fvd *f,
           int (*fn) (struct fvd *f, uint64_t offset, uint64_t count),
           uint64_t *bytes)
{
  struct nc_layer layer = { .priv = f };
  struct leaks leaks = { .f = f, .fn = fn };
  const uint64_t end = f->h.data_offset + f->h.size;
  uint64_t size;

  *bytes = 0;
  if (fvd_is_compact (&f->h)) {
    if (lost_places (&leaks) == -1)
      return -1;
    *bytes = leaks.bytes;
    return 0;
  }
  if (!f->dev->has_holes || fvd_has_data_file (&f->h))
    return 0;
  if (f->dev->ops->measure (f->dev, &size) == -1)
    return -1;
  if (f->h.size > 0 &&
      (nc_format_fvd.walk (&layer, 0, f->h.size, step_over, &leaks) == -1 ||
       walk_gap (&leaks, f->h.size) == -1))
    return -1;
  *bytes = leaks.bytes + (size > end ? size - end : 0);
  return 0;
}

/* Nobody reads there, so nothing is lost if it cannot be done. */
static int
punch (struct fvd *f, uint64_t offset, uint64_t count)
{
  if (f->dev->ops->zero (f->dev, f->h.data_offset + offset, count,
                         NC_ZERO_MAY_TRIM | NC_ZERO_FAST) == -1 &&
      errno != ENOTSUP)
    return -1;
  return 0;
}

struct repair {
  nc_check_repaired repaired;
  void *opaque;
};

static void __attribute__ ((__format__ (printf, 2, 3)))
tell (const struct repair *r, const char *fmt, ...)
{
  char text[256];
  va_list args;

  if (r->repaired == NULL)
    return;
  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  r->repaired (r->opaque, text);
}

static int
give_back (const struct repair *r, struct fvd *f)
{
  const uint64_t end = f->h.data_offset + f->h.size;
  uint64_t bytes;

  if (!f->dev->has_holes)
    return 0;
  if (fvd_leaks (f, punch, &bytes) == -1)
    return -1;
  if (bytes == 0)
    return 0;
  if (!fvd_is_compact (&f->h) && f->dev->ops->truncate (f->dev, end) == -1)
    return -1;
  tell (r, "%" PRIu64 " bytes that belong to no block were given back",
        bytes);
  return 0;
}

int
nc_fvd_repair (struct nc_layer *layer, unsigned copies, bool clean,
               nc_check_repaired repaired, void *opaque)
{
  const struct repair r = { repaired, opaque };
  struct fvd *f = layer->priv;
  unsigned halves;
  int bits;

  if (nc_layer_begin (layer) == -1 || layer->format->finish (layer) == -1)
    return -1;
  if (copies < 2)
    tell (&r, "the damaged copy of the header was written again");
  if (!clean)
    tell (&r, "the image is closed in order, its journal empty");
  bits = fvd_tail_clear (f);
  if (bits == -1)
    return -1;
  if (bits == 1)
    tell (&r, "bits behind the last block were cleared");
  if (fvd_profile_clear_torn (f->dev, &f->h, &halves) == -1)
    return -1;
  if (halves > 0)
    tell (&r, "what does not count of the prefetch profile was cleared");
  if (give_back (&r, f) == -1)
    return -1;
  return fvd_sync (f);
}
