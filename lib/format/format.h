/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The table of functions that is a format.  Nothing above it knows one.
 *
 * Requests (run, pread ... flush) may come from many threads at once and
 * block on I/O.  Ranges lie inside layer->size and are never empty.  Each
 * returns 0, or -1 with errno set and the error reported once; ENOTCONN
 * (a remote is not reachable now) is passed on and not reported.
 *
 * Bits: a block of an open layer goes from "not allocated" to "allocated"
 * and never back.
 */
#ifndef NC_FORMAT_H
#define NC_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "data/extents.h"

struct nc_backing;
struct nc_dev_read;
struct nc_image_info;
struct nc_layer;
struct nc_layer_options;
struct nc_profile_range;

typedef int (*nc_walk_fn) (void *opaque, uint64_t offset, uint64_t count);

struct nc_format {
  const char *name;

  /* Read LAYER->dev and fill in layer: priv, size, block_size, uuid,
   * backing.  On failure close is called all the same. */
  int (*open) (struct nc_layer *layer, const struct nc_layer_options *opts);

  /* Free priv, which may be half made or NULL.  Does not write. */
  void (*close) (struct nc_layer *layer);

  /* Whether the byte at OFFSET is in an allocated block, and how many
   * bytes from OFFSET on, at most COUNT, share that. */
  int (*run) (struct nc_layer *layer, uint64_t offset, uint64_t count,
              bool *allocated, uint64_t *run);

  /* Call FN for each allocated run of the range, in order, without keeping
   * anything in memory: for layers that nobody writes.  While others write it,
   * a run is what was allocated at some moment. */
  int (*walk) (struct nc_layer *layer, uint64_t offset, uint64_t count,
               nc_walk_fn fn, void *opaque);

  /* Read from, or report the extents of, a range whose blocks are all
   * allocated.  extents: as nc_dev_ops.extents, offsets being the disk's. */
  int (*pread) (struct nc_layer *layer, void *buf, size_t count,
                uint64_t offset);
  int (*extents) (struct nc_layer *layer, struct nc_extents *extents,
                  uint64_t end);

  /* Several reads, where the device has nc_dev_ops.pread_many.  NULL: only
   * one at a time. */
  int (*pread_many) (struct nc_layer *layer, const struct nc_dev_read *v,
                     size_t n);

  /* The rest is for a writable layer.
   *
   * Called once before everything else here: mark the image as in use.
   * open has not written.  NULL: nothing to do. */
  int (*begin) (struct nc_layer *layer);

  /* Write bytes to their place.  For blocks that are not allocated the
   * caller holds a claim, writes them whole (the last one: up to the size)
   * and then says so with set_allocated.  pwritev changes IOV. */
  int (*pwritev) (struct nc_layer *layer, struct iovec *iov, int niov,
                  uint64_t offset);
  int (*zero) (struct nc_layer *layer, uint64_t offset, uint64_t count,
               unsigned flags);         /* NC_ZERO_* of dev.h */

  /* As nc_dev_ops.evict, for a range that is allocated; never NULL. */
  void (*evict) (struct nc_layer *layer, uint64_t offset, uint64_t count);

  /* The blocks of the range, which begins and ends at a block (or the size),
   * hold their data now.  The caller holds a claim. */
  int (*set_allocated) (struct nc_layer *layer, uint64_t offset,
                        uint64_t count);

  /* Everything that was written, and its being allocated, is durable.
   * Concurrent calls share their work. */
  int (*flush) (struct nc_layer *layer);

  /* The sync of a layer below, which was to come before any write, has failed:
   * nothing is written, also by a later process that has the memory of this
   * one.  NULL: there is no such memory. */
  void (*fail) (struct nc_layer *layer);

  /* Flush, and leave the image as one that was closed in order.  No other
   * request is under way or comes later, but set_backing. */
  int (*finish) (struct nc_layer *layer);

  /* How many bytes of the disk the layer holds.  While others write it, too:
   * then as many as at some moment, or nearly. */
  int (*allocated) (struct nc_layer *layer, uint64_t *bytes);

  /* Flush, and record B (present or not) durably as the backing, in the image
   * and in layer->backing.  Other requests go on; one call at a time, and
   * nobody looks at layer->backing meanwhile.  If it fails the old one is
   * still recorded, or both would be right.  NULL: it has no record. */
  int (*set_backing) (struct nc_layer *layer, const struct nc_backing *b);

  /* The prefetch profile, as nc_image_profile_read and _write; one call at a
   * time, other requests go on.  NULL: it has none. */
  int (*read_profile) (struct nc_layer *layer,
                       struct nc_profile_range **ranges, size_t *n);
  int (*write_profile) (struct nc_layer *layer,
                        const struct nc_profile_range *ranges, size_t n);

  /* For people: fill in what is the format's in INFO.  Not while others
   * write the layer. */
  int (*info) (struct nc_layer *layer, struct nc_image_info *info);
};

/* The format called NAME, or NULL. */
extern const struct nc_format *nc_format_find (const char *name)
  __attribute__ ((__nonnull__ (1)));

/* The same; if there is none, says which there are and sets EINVAL. */
extern const struct nc_format *nc_format_need (const char *name,
                                               const char *whose)
  __attribute__ ((__nonnull__ (1, 2)));

extern const struct nc_format nc_format_raw;
extern const struct nc_format nc_format_fvd;

#endif /* NC_FORMAT_H */
