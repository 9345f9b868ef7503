/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Raw: the device's bytes are the disk's.  Everything is allocated.  Any
 * device can be raw, an NBD export among them. */

#include <config.h>

#include "format/format.h"

#include <errno.h>
#include <inttypes.h>

#include "dev/dev.h"
#include "format/layer.h"
#include "image/image.h"
#include "util/checked.h"
#include "util/report.h"

static int
raw_open (struct nc_layer *layer,
          const struct nc_layer_options *opts __attribute__ ((__unused__)))
{
  if (layer->dev->size > NC_OFFSET_MAX) {
    nc_error ("%s: size %" PRIu64 " is not supported; the largest is %"
              PRIu64, layer->path, layer->dev->size, NC_OFFSET_MAX);
    errno = EFBIG;
    return -1;
  }
  layer->size = layer->dev->size;
  layer->block_size = 4096;
  return 0;
}

static void
raw_close (struct nc_layer *layer __attribute__ ((__unused__)))
{
}

static int
raw_run (struct nc_layer *layer __attribute__ ((__unused__)),
         uint64_t offset __attribute__ ((__unused__)), uint64_t count,
         bool *allocated, uint64_t *run)
{
  *allocated = true;
  *run = count;
  return 0;
}

static int
raw_walk (struct nc_layer *layer __attribute__ ((__unused__)),
          uint64_t offset, uint64_t count, nc_walk_fn fn, void *opaque)
{
  return fn (opaque, offset, count);
}

static int
raw_pread (struct nc_layer *layer, void *buf, size_t count, uint64_t offset)
{
  return layer->dev->ops->pread (layer->dev, buf, count, offset);
}

static int
raw_pread_many (struct nc_layer *layer, const struct nc_dev_read *v, size_t n)
{
  return layer->dev->ops->pread_many (layer->dev, v, n);
}

static int
raw_extents (struct nc_layer *layer, struct nc_extents *extents,
             uint64_t end)
{
  return layer->dev->ops->extents (layer->dev, extents, end, 0);
}

static int
raw_pwritev (struct nc_layer *layer, struct iovec *iov, int niov,
             uint64_t offset)
{
  return layer->dev->ops->pwritev (layer->dev, iov, niov, offset);
}

static void
raw_evict (struct nc_layer *layer, uint64_t offset, uint64_t count)
{
  if (layer->dev->ops->evict)
    layer->dev->ops->evict (layer->dev, offset, count);
}

static int
raw_zero (struct nc_layer *layer, uint64_t offset, uint64_t count,
          unsigned flags)
{
  return layer->dev->ops->zero (layer->dev, offset, count, flags);
}

static int
raw_set_allocated (struct nc_layer *layer __attribute__ ((__unused__)),
                   uint64_t offset __attribute__ ((__unused__)),
                   uint64_t count __attribute__ ((__unused__)))
{
  return 0;
}

static int
raw_flush (struct nc_layer *layer)
{
  return layer->dev->ops->sync (layer->dev);
}

static int
raw_allocated (struct nc_layer *layer, uint64_t *bytes)
{
  *bytes = layer->size;
  return 0;
}

static int
raw_info (struct nc_layer *layer, struct nc_image_info *info)
{
  info->clean = true;
  return raw_allocated (layer, &info->allocated);
}

const struct nc_format nc_format_raw = {
  .name = "raw",
  .open = raw_open,
  .close = raw_close,
  .run = raw_run,
  .walk = raw_walk,
  .pread = raw_pread,
  .pread_many = raw_pread_many,
  .extents = raw_extents,
  .pwritev = raw_pwritev,
  .evict = raw_evict,
  .zero = raw_zero,
  .set_allocated = raw_set_allocated,
  .flush = raw_flush,
  .finish = raw_flush,
  .allocated = raw_allocated,
  .info = raw_info,
};
