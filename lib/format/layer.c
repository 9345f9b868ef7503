/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Layers: a device and a format, opened together and closed together. */

#include <config.h>

#include "format/layer.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "format/format.h"
#include "util/report.h"

bool
nc_uuid_is_null (const nc_uuid *uuid)
{
  static const nc_uuid null;

  return nc_uuid_equal (uuid, &null);
}

bool
nc_uuid_equal (const nc_uuid *a, const nc_uuid *b)
{
  return memcmp (a, b, sizeof *a) == 0;
}

void
nc_uuid_format (const nc_uuid *uuid, char *text)
{
  const uint8_t *b = uuid->bytes;

  *text = '\0';
  if (!nc_uuid_is_null (uuid))
    sprintf (text, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4], b[5],
             b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
}

int
nc_uuid_generate (nc_uuid *uuid)
{
  int r = gnutls_rnd (GNUTLS_RND_RANDOM, uuid->bytes, sizeof uuid->bytes);

  if (r < 0) {
    nc_error ("random numbers: %s", gnutls_strerror (r));
    errno = EIO;
    return -1;
  }
  uuid->bytes[6] = (uuid->bytes[6] & 0x0f) | 0x40;      /* version 4 */
  uuid->bytes[8] = (uuid->bytes[8] & 0x3f) | 0x80;      /* RFC 4122 */
  return 0;
}

struct nc_layer *
nc_layer_open (const struct nc_format *format, struct nc_dev *dev,
               const char *path, const struct nc_layer_options *opts)
{
  struct nc_layer *layer = calloc (1, sizeof *layer);

  if (layer == NULL) {
    nc_error ("%s: %m", path);
    nc_dev_close (dev);
    return NULL;
  }
  layer->format = format;
  layer->dev = dev;
  layer->writable = opts->writable;
  layer->was_closed = true;
  layer->path = strdup (path);
  if (layer->path == NULL) {
    nc_error ("%s: %m", path);
    goto fail;
  }
  if (format->open (layer, opts) == -1)
    goto fail;
  if (opts->writable && !opts->wait && nc_layer_begin (layer) == -1)
    goto fail;
  return layer;

 fail:
  nc_layer_close (layer);
  return NULL;
}

int
nc_layer_begin (struct nc_layer *layer)
{
  if (layer->takes_over && !layer->has_taken_over) {
    nc_error ("%s: is not written: it takes over from its backing '%s', which "
              "was not looked at", layer->path, layer->backing.ref);
    errno = EROFS;
    return -1;
  }
  return layer->format->begin ? layer->format->begin (layer) : 0;
}

static int
sync_dev (struct nc_dev *dev)
{
  return dev ? dev->ops->sync (dev) : 0;
}

int
nc_layer_sync_below (struct nc_layer *active, const struct nc_layer *layer)
{
  int err;

  if (sync_dev (layer->data_dev) == 0 && sync_dev (layer->dev) == 0)
    return 0;
  err = errno;
  if (active->format->fail)
    active->format->fail (active);
  errno = err;
  return -1;
}

void
nc_layer_shut (struct nc_layer *layer)
{
  if (layer->dev == NULL)
    return;
  layer->format->close (layer);
  nc_dev_close (layer->dev);
  nc_dev_close (layer->data_dev);
  layer->dev = layer->data_dev = NULL;
}

void
nc_layer_close (struct nc_layer *layer)
{
  if (layer == NULL)
    return;
  nc_layer_shut (layer);
  free (layer->backing.ref);
  free (layer->backing.format);
  free (layer->backing.identity);
  free (layer->path);
  free (layer->name);
  free (layer);
}
