/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Changing a field of the header that no block depends on.  Nothing else
 * changes: an image that was not closed in order keeps its journal and its
 * life, so whoever recovers it finds it as it was.  Of an image that nobody
 * uses:
 *
 *   sync; header over the older copy; sync
 *
 * The first sync is for the newer copy, which may be on its way still: of the
 * two, one is durable at any moment. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "util/report.h"
#include "util/scope.h"

static int
write_durably (struct nc_dev *dev, struct fvd_header *h)
{
  if (dev->ops->sync (dev) == -1 || fvd_header_write (dev, h) == -1)
    return -1;
  return dev->ops->sync (dev);
}

int
nc_fvd_amend (struct nc_dev *dev, const struct nc_image_amendment *amendment)
{
  NC_FREE struct fvd_header *h = calloc (1, sizeof *h);

  if (h == NULL) {
    nc_error ("%s: %m", dev->name);
    return -1;
  }
  if (fvd_header_read_to_write (dev, h) == -1)
    return -1;
  nc_prefetch_policy_amend (&h->prefetch, amendment);
  if (nc_prefetch_policy_check (&h->prefetch, dev->name) == -1)
    return -1;
  return write_durably (dev, h);
}

int
nc_fvd_change_backing (struct nc_dev *dev, const struct nc_backing *b)
{
  NC_FREE struct fvd_header *h = calloc (1, sizeof *h);
  bool takes_over;

  if (h == NULL) {
    nc_error ("%s: %m", dev->name);
    return -1;
  }
  if (fvd_header_read_to_write (dev, h) == -1)
    return -1;
  /* The same image under another name has still to be retired first. */
  takes_over = (h->flags & FVD_TAKES_OVER) && b->present &&
    nc_uuid_equal (&h->backing_uuid, &b->uuid);
  if (fvd_header_set_backing (h, dev->name, b) == -1)
    return -1;
  h->flags |= takes_over ? FVD_TAKES_OVER : 0;
  return write_durably (dev, h);
}

/* Of a layer that is being written. */

/* The header says B, in both copies: the old backing may be gone soon.  The
 * leader of a flush, while no checkpoint runs. */
static int
record_backing (struct fvd *f, void *opaque)
{
  const struct nc_backing *b = opaque;
  NC_FREE struct fvd_header *h = malloc (sizeof *h);
  const uint32_t flags = f->h.flags;
  int err;

  if (h == NULL) {
    nc_error ("%s: %m", f->dev->name);
    return -1;
  }
  *h = f->h;
  if (fvd_header_set_backing (h, f->dev->name, b) == -1)
    return -1;
  fvd_header_set_backing (&f->h, f->dev->name, b);
  if (fvd_header_sync (f) == 0 && fvd_header_sync (f) == 0)
    return 0;
  err = errno;
  fvd_header_set_backing (&f->h, f->dev->name, &f->layer->backing);
  f->h.flags = flags;
  errno = err;
  return -1;
}

int
fvd_set_backing (struct nc_layer *layer, const struct nc_backing *b)
{
  struct nc_backing copy = *b;

  copy.ref = strdup (b->ref ? b->ref : "");
  copy.format = strdup (b->format ? b->format : "");
  copy.identity = strdup (b->identity ? b->identity : "");
  if (copy.ref == NULL || copy.format == NULL || copy.identity == NULL) {
    nc_error ("%s: %m", layer->path);
    goto fail;
  }
  if (fvd_flush_then (layer->priv, record_backing, &copy) == -1)
    goto fail;
  free (layer->backing.ref);
  free (layer->backing.format);
  free (layer->backing.identity);
  layer->backing = copy;
  layer->takes_over = false;
  return 0;

 fail:
  free (copy.ref);
  free (copy.format);
  free (copy.identity);
  return -1;
}
