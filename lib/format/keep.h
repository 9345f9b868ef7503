/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Memory for the bits of the active layer that outlives the process.
 *
 * "nbdchain serve" holds a memfd and hands it to each server that it starts.
 * A bit is set there before its write is acknowledged, so that the server
 * after a crash knows every acknowledged write.  Power loss takes it away
 * together with the data it speaks of.  Without a memfd it is ordinary
 * memory and dies with the process.
 *
 * Layout: a head of 4096 bytes, the states of the pages, their bits, what
 * the format keeps besides; all zeros at first, which means that nothing is
 * known.
 */
#ifndef NC_KEEP_H
#define NC_KEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/bitmap.h"
#include "format/layer.h"

struct nc_keep {
  void *map;
  size_t size;
  bool shared;                  /* a memfd is behind it */
  void *extra;                  /* what the format keeps besides, zeros at
                                   first; NULL: nothing */
  struct nc_bitmap bitmap;      /* lies in the map */
};

/* Map the memfd FD (-1: ordinary memory) for a layer of NBLOCKS blocks, and
 * EXTRA bytes.  A memfd that another kind of layer has used is refused.
 * Returns -1 on error, reported with NAME. */
extern int nc_keep_open (struct nc_keep *keep, int fd, const char *name,
                         const nc_uuid *uuid, uint64_t nblocks, size_t extra)
  __attribute__ ((__nonnull__ (1, 3, 4)));
extern void nc_keep_close (struct nc_keep *keep)
  __attribute__ ((__nonnull__ (1)));

/* The life (see the format) that the memory belongs to; 0: none yet. */
extern uint64_t nc_keep_life (const struct nc_keep *keep)
  __attribute__ ((__nonnull__ (1)));

/* From now on the memory belongs to LIFE: call it when the life is durable
 * in the image. */
extern void nc_keep_set_life (struct nc_keep *keep, uint64_t life)
  __attribute__ ((__nonnull__ (1)));

/* A sync failed: what the memory says may not be in the file, for this and
 * any later process. */
extern void nc_keep_set_failed (struct nc_keep *keep)
  __attribute__ ((__nonnull__ (1)));
extern bool nc_keep_has_failed (const struct nc_keep *keep)
  __attribute__ ((__nonnull__ (1)));

/* Forget everything.  Returns -1 on error, reported. */
extern int nc_keep_reset (struct nc_keep *keep)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_KEEP_H */
