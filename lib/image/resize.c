/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Another size for the disk of an image that nobody serves: what is asked for
 * is checked before anything is written. */

#include <config.h>

#include "image/image.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "chain/data-file.h"
#include "dev/dev.h"
#include "format/format.h"
#include "format/fvd/fvd.h"
#include "format/layer.h"
#include "image/internal.h"
#include "util/checked.h"
#include "util/report.h"

/* What is no fvd image is perhaps a raw disk. */
static int
refuse_raw (struct nc_dev *dev)
{
  uint8_t start[8];

  if (dev->ops->pread (dev, start, sizeof start, 0) == -1)
    return -1;
  if (memcmp (start, "NBDCFVD\n", sizeof start) == 0)
    return 0;
  nc_error ("%s: not an fvd image; a raw one gets another size by truncate(1)"
            " or \"qemu-img resize -f raw\"", dev->name);
  errno = EINVAL;
  return -1;
}

static int
new_size (const struct nc_image_resize_options *opts, uint64_t old,
          uint64_t *size)
{
  *size = opts->size;
  if (opts->relative > 0) {
    if (opts->size > NC_OFFSET_MAX - old) {
      nc_error ("%s: %" PRIu64 " bytes more than %" PRIu64 " are too many",
                opts->path, opts->size, old);
      errno = EFBIG;
      return -1;
    }
    *size = old + opts->size;
  }
  else if (opts->relative < 0) {
    if (opts->size > old) {
      nc_error ("%s: has %" PRIu64 " bytes, and so cannot lose %" PRIu64,
                opts->path, old, opts->size);
      errno = EINVAL;
      return -1;
    }
    *size = old - opts->size;
  }
  if (*size < old && !opts->shrink) {
    nc_error ("%s: has %" PRIu64 " bytes; making it %" PRIu64 " would lose "
              "what is behind: if that is meant, say so with --shrink",
              opts->path, old, *size);
    errno = EINVAL;
    return -1;
  }
  return 0;
}

static int
resize (struct nc_layer *layer, const struct nc_image_resize_options *opts,
        struct nc_image_resize_result *result)
{
  uint64_t size;

  if (new_size (opts, layer->size, &size) == -1 ||
      nc_fvd_can_resize (layer, size) == -1)
    return -1;
  result->old_size = layer->size;
  result->size = size;
  return nc_layer_begin (layer) == -1 ? -1 : nc_fvd_resize (layer, size);
}

int
nc_image_resize (const struct nc_image_resize_options *opts,
                 struct nc_image_resize_result *result)
{
  struct nc_data_policy data = {
    .allow = opts->allow, .file = opts->data_file,
  };
  struct nc_dev *dev = nc_dev_open_file (opts->path, NC_DEV_WRITE);
  struct nc_layer *layer;
  int r;

  if (dev == NULL)
    return -1;
  if (refuse_raw (dev) == -1) {
    nc_dev_close (dev);
    return -1;
  }
  layer = nc_image_open_to_change (dev, opts->path, opts->allow, &data);
  if (layer == NULL)
    return -1;
  r = resize (layer, opts, result);
  nc_layer_close (layer);
  return r;
}
