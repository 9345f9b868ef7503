/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Succession: following retirements down the chain.  The rule holds at every
 * depth: if a layer in the middle has not taken over from the one below, that
 * one can still be opened for writing by itself, and would change the disk. */

#include <config.h>

#include "chain/succession.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "chain/chain.h"
#include "chain/ref.h"
#include "dev/dev.h"
#include "format/format.h"
#include "format/layer.h"
#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"

static bool
has_taken_over (const struct nc_layer *layer, const struct nc_layer *backing)
{
  return !layer->takes_over ||
    (backing->retired && nc_uuid_equal (&backing->successor, &layer->uuid));
}

int
nc_succession_check (struct nc_layer *layer, const struct nc_layer *backing)
{
  if (!has_taken_over (layer, backing)) {
    nc_error ("%s: the snapshot that made this image was interrupted, and "
              "'%s' is still the active one: run it again (nbdchain snapshot)"
              ", or remove this image", layer->path, backing->path);
    errno = EROFS;
    return -1;
  }
  /* The process that retired the backing may have died before its sync. */
  if (layer->takes_over && layer->writable &&
      nc_layer_sync_below (layer, backing) == -1)
    return -1;
  layer->has_taken_over = true;
  return 0;
}

static struct nc_layer *
open_backing (const struct nc_layer *layer, const struct nc_allow *allow)
{
  static const struct nc_layer_options read_only = { .memory_fd = -1 };
  NC_FREE char *name = NULL;
  struct nc_path path;
  struct nc_dev *dev;
  int fd;

  if (strcmp (layer->backing.format, nc_format_fvd.name) != 0) {
    nc_error ("%s: takes over from its backing '%s', which is no fvd image",
              layer->path, layer->backing.ref);
    errno = EINVAL;
    return NULL;
  }
  fd = nc_ref_open_file (layer->backing.ref, &layer->dev->path, allow, O_RDONLY,
                         &path);
  if (fd == -1)
    return NULL;
  name = nc_path_text (&path);
  dev = nc_dev_open_path (fd, &path, name ? : layer->backing.ref,
                          NC_DEV_UNLOCKED);
  return dev ? nc_layer_open (&nc_format_fvd, dev, dev->name, &read_only)
    : NULL;
}

int
nc_succession_check_alone (struct nc_layer *layer,
                           const struct nc_allow *allow)
{
  struct nc_layer *above = layer, *below;
  int r = 0;

  for (int n = 0; r == 0 && above->takes_over; ++n) {
    if (n == NC_LAYERS_MAX) {
      nc_error ("%s: has more than %d layers below it", layer->path, n);
      errno = ELOOP;
      r = -1;
      break;
    }
    below = open_backing (above, allow);
    r = below ? nc_succession_check (above, below) : -1;
    if (above != layer)
      nc_layer_close (above);
    if (below == NULL)
      return -1;
    above = below;
  }
  if (above != layer)
    nc_layer_close (above);
  return r;
}
