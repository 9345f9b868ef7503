/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The nbdkit filter that turns copy-on-read on: options, and a part of the
 * server.
 *
 * It intercepts no request by itself.  Which read is cold the chain finds out
 * anyway, with one look at its bitmap; a filter that looked as well would make
 * local reads slower, and would have to trust that no filter between it and
 * the plugin changes offsets or bytes.  So the chain hands over its cold reads
 * (struct nc_cold), those of the disk and not those of layers, wherever this
 * stands in the order of filters.
 */

#include <config.h>

#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "chain/chain.h"
#include "control/copyread.h"
#include "copyread/copyread.h"
#include "serve/server.h"

/* The largest block of an image, or it could never be stored. */
#define MIN_OUTSTANDING (INT64_C (2) << 20)
#define MAX_OUTSTANDING (INT64_C (1) << 30)

static struct nc_copyread_options options = {
  .max_outstanding = NC_COPYREAD_OUTSTANDING,
  .neighbourhood = NC_COPYREAD_NEIGHBOURHOOD,
  .read_ahead = NC_COPYREAD_AHEAD,
};
static char *bottom;
static struct nc_copyread *copyread;

static void
stream_unload (void)
{
  nc_copyread_free (copyread);
  free (bottom);
}

/* Options. */

/* A size from MIN to MAX, or 0 if that is allowed. */
static int
config_size (const char *key, const char *value, int64_t min, int64_t max,
             bool or_0, uint64_t *to)
{
  const int64_t size = nbdkit_parse_size (value);

  if (size == -1)
    return -1;
  if ((size < min || size > max) && !(or_0 && size == 0)) {
    nbdkit_error ("%s=%s: must be from %" PRIi64 " to %" PRIi64 " bytes%s",
                  key, value, min, max, or_0 ? ", or 0" : "");
    return -1;
  }
  *to = size;
  return 0;
}

static int
config_neighbourhood (const char *key, const char *value)
{
  if (config_size (key, value, 4096, NC_COPYREAD_NEIGHBOURHOOD_MAX, true,
                   &options.neighbourhood) == -1)
    return -1;
  if (options.neighbourhood & (options.neighbourhood - 1)) {
    nbdkit_error ("%s=%s: must be a power of two", key, value);
    return -1;
  }
  return 0;
}

static int
config_bottom (const char *key, const char *value)
{
  if (bottom) {
    nbdkit_error ("%s= was given twice, '%s' and '%s'", key, bottom, value);
    return -1;
  }
  options.bottom = bottom = strdup (value);
  if (bottom == NULL) {
    nbdkit_error ("%s=: %m", key);
    return -1;
  }
  return 0;
}

static int
stream_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
               const char *key, const char *value)
{
  if (strcmp (key, "max-outstanding") == 0)
    return config_size (key, value, MIN_OUTSTANDING, MAX_OUTSTANDING, false,
                        &options.max_outstanding);
  if (strcmp (key, "neighbourhood") == 0)
    return config_neighbourhood (key, value);
  if (strcmp (key, "read-ahead") == 0)
    return config_size (key, value, NC_AHEAD_PIECE_MIN,
                        NC_COPYREAD_AHEAD_MEMORY, true, &options.read_ahead);
  if (strcmp (key, "bottom") == 0)
    return config_bottom (key, value);
  return next (nxdata, key, value);
}

#define stream_config_help \
  "max-outstanding=<SIZE>  Bytes that wait to be stored, at most\n" \
  "                        (default: 8M).\n" \
  "neighbourhood=<SIZE>    What a small read brings along, a power of two;\n" \
  "                        0 is nothing (default: 64K).\n" \
  "read-ahead=<SIZE>       How far to read ahead of a sequential reader, at\n" \
  "                        most; 0 is never (default: 16M).\n" \
  "bottom=<LAYER>          Copy only from this layer and those above it.\n"

/* Start and stop. */

static int
start (void *opaque, struct nc_chain *chain)
{
  struct nc_control *control = nc_server_control ();

  if (control && nc_control_add_copyread (control, opaque) == -1)
    return -1;
  return nc_copyread_start (opaque, chain);
}

static void
stop (void *opaque)
{
  nc_copyread_stop (opaque);
}

static void
end (void *opaque)
{
  nc_copyread_end (opaque);
}

static int
stream_get_ready (int thread_model __attribute__ ((__unused__)))
{
  struct nc_part part = {
    .name = "stream", .start = start, .stop = stop, .end = end,
  };

  part.opaque = copyread = nc_copyread_new (&options);
  if (copyread == NULL || nc_server_add (&part) == -1)
    return -1;
  return nc_copyread_check (copyread, nc_server_chain ());
}

static struct nbdkit_filter filter = {
  .name = "stream",
  .longname = "nbdchain copy-on-read",
  .description = "Store what clients read of the layers below the active one.",
  .unload = stream_unload,
  .config = stream_config,
  .config_help = stream_config_help,
  .get_ready = stream_get_ready,
};

NBDKIT_REGISTER_FILTER (filter)
