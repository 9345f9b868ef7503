/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The active layer gets another backing while requests run.
 *
 *   nothing is missing in the active layer; flush; the record in its header;
 *   a new view; wait for the writes in the old one
 *
 * Before the record is durable the old layers are all needed and all there;
 * after it none of those that go is read by anybody who opens the image.  In
 * between both views show the same bytes, so the order in which requests
 * change over does not matter. */

#include <config.h>

#include "chain/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chain/ref.h"
#include "dev/dev.h"
#include "format/format.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* How much is looked at in one go. */
#define MISSING_EXTENTS 1024

static void
free_backing (struct nc_backing *b)
{
  free (b->ref);
  free (b->format);
  free (b->identity);
}

/* How the active image is to call layer BASE, which ABOVE calls REF: a file by
 * its path from there; what the operator gives stays so. */
static char *
ref_of_base (const struct nc_layer *active, const struct nc_layer *base,
             const char *ref)
{
  enum nc_ref_kind kind;
  char *copy;

  if (*ref && !base->dev->remote && nc_ref_kind (ref, &kind) == 0 &&
      kind == NC_REF_FILE && base->dev->path.real && active->dev->path.real)
    return nc_ref_for_image (&base->dev->path, &active->dev->path);
  copy = strdup (ref);
  if (copy == NULL)
    nc_error ("%s: %m", base->path);
  return copy;
}

/* What the active layer of VIEW is to record if layer number BASE, under the
 * name REF, is its backing.  What the layers in between cut off stays cut off.
 */
static int
backing_of (const struct nc_view *view, size_t base, const char *ref,
            struct nc_backing *b)
{
  const struct nc_backing *of_above;

  if (base == view->n)
    return 0;
  of_above = &view->layers[base - 1]->backing;
  b->present = true;
  b->size = view->limit;
  for (size_t i = 1; i < base; ++i)
    b->size = nc_min64 (b->size, nc_min64 (view->layers[i]->size,
                                           view->layers[i]->backing.size));
  b->uuid = of_above->uuid;
  b->format = strdup (of_above->format);
  b->identity = strdup (of_above->identity);
  b->ref = ref ? strdup (ref)
    : ref_of_base (view->layers[0], view->layers[base], of_above->ref);
  if (b->format && b->identity && b->ref)
    return 0;
  nc_error ("%s: %m", view->layers[0]->path);
  return -1;
}

/* Whether the active layer of VIEW has all that it needs to go without the
 * layers above BASE.  Returns -1 with errno EBUSY if not, reported. */
static int
refuse_if_missing (struct nc_chain *chain, struct nc_view *view, size_t base)
{
  struct nc_export disk = { .chain = chain, .writable = true };
  struct nc_extents missing;
  uint64_t offset = 0;
  int r = 0;

  while (r == 0 && offset < chain->size) {
    nc_extents_init (&missing, offset, chain->size - offset);
    missing.limit = MISSING_EXTENTS;
    r = nc_view_missing (&disk, view, base, &missing);
    for (size_t i = 0; r == 0 && i < missing.n; ++i)
      if (missing.v[i].type != NC_MISSING_NOTHING) {
        nc_error ("%s: still needs '%s', at offset %" PRIu64 " for one; "
                  "stream it first", view->layers[0]->path,
                  view->layers[1]->path, missing.v[i].offset);
        errno = EBUSY;
        r = -1;
      }
    offset = nc_extents_next (&missing);
    nc_extents_free (&missing);
  }
  return r;
}

/* Go on with the active layer of VIEW and those from BASE on. */
static int
publish (struct nc_chain *chain, const struct nc_view *view, size_t base)
{
  const size_t n = 1 + view->n - base;
  struct nc_layer **layers = calloc (n, sizeof *layers);

  if (layers == NULL) {
    nc_error ("%s: %m", view->layers[0]->path);
    return -1;
  }
  layers[0] = view->layers[0];
  for (size_t i = 1; i < n; ++i)
    layers[i] = view->layers[base + i - 1];
  if (nc_views_publish (&chain->views, layers, n, true) == 0)
    return 0;
  free (layers);
  return -1;
}

static int
pivot (struct nc_chain *chain, struct nc_view *view,
       const struct nc_layer *layer, const char *ref)
{
  __attribute__ ((__cleanup__ (free_backing))) struct nc_backing b = { 0 };
  struct nc_layer *active = view->layers[0];
  const size_t base = nc_view_base_index (view, layer);

  if (base == 0)                /* another pivot has dropped it */
    return 0;
  if (base == 1 && ref == NULL) /* it is the backing already, or there is */
    return 0;                   /* none */
  if (backing_of (view, base, ref, &b) == -1 ||
      refuse_if_missing (chain, view, base) == -1 ||
      active->format->set_backing (active, &b) == -1)
    return -1;
  return publish (chain, view, base);
}

int
nc_chain_set_backing (struct nc_chain *chain, const struct nc_layer *base,
                      const char *ref)
{
  struct nc_view *view;
  int r;

  if (!chain->writable) {
    nc_error ("%s: is open for reading only; its backing cannot change",
              nc_chain_layer_name (chain, 0));
    errno = EROFS;
    return -1;
  }
  NC_LOCKED (&chain->pivot_lock);
  view = nc_view_enter (&chain->views, NC_VIEW_WRITE);
  if (view == NULL)
    return -1;
  r = pivot (chain, view, base, ref);
  nc_view_leave (&chain->views, view, NC_VIEW_WRITE);
  if (r == 0 && view != chain->views.current)
    nc_views_wait_for_writers (&chain->views, view);
  return r;
}
