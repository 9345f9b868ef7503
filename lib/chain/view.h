/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Views: the order of the layers at one moment, never changed once it is
 * published.
 *
 * Every request enters the current view, as a read or a write, and leaves
 * it again; a new view may be published meanwhile, and who is in the old
 * one finishes there.  Entering costs an atomic addition on a counter that
 * few threads share, and no lock.
 *
 * Who needs a view's layers for longer than a request pins it.  A view that
 * is not the current one, with nobody inside and no pin, gives up its
 * layers; a layer that no view has any more is closed, by a thread of its
 * own, so that no request waits for that.
 */
#ifndef NC_VIEW_H
#define NC_VIEW_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nc_layer;
struct nc_map;
struct nc_views;

enum nc_view_use { NC_VIEW_READ, NC_VIEW_WRITE };

#define NC_VIEW_COUNTERS 16

struct nc_view {
  struct nc_layer **layers;     /* top first; each counts its views */
  size_t n;
  uint64_t limit;               /* how much of its backing layers[0] sees */
  bool writable;                /* layers[0] is written */
  _Atomic (struct nc_map *) *map;       /* of the layers from i on; made when
                                           first asked for */
  struct nc_view *next;         /* of all views; these three: guarded by
                                   views->lock */
  unsigned pins;
  bool is_released;             /* has given up its layers */

  struct {
    _Atomic (int64_t) inside[2];        /* by enum nc_view_use */
  } __attribute__ ((__aligned__ (64))) counter[NC_VIEW_COUNTERS];
};

struct nc_views {
  _Atomic (struct nc_view *) current;
  _Atomic (bool) stopping;      /* nobody may enter any more */
  pthread_mutex_t lock;         /* guards the rest, and making of maps */
  pthread_cond_t left;          /* somebody left an old view, or any while
                                   stopping; or is_ending */
  struct nc_view *all;
  struct nc_layer *closed;      /* layers that are only names any more */
  pthread_t closer;             /* closes layers; runs from the first pivot
                                   on */
  bool has_closer, is_ending;
};

extern int nc_views_init (struct nc_views *views)
  __attribute__ ((__nonnull__ (1)));

/* Free every view with its layers; nobody is inside, or uses a pin. */
extern void nc_views_fini (struct nc_views *views)
  __attribute__ ((__nonnull__ (1)));

/* Make LAYERS[0..n-1] (the array is taken over on success) the current
 * view.  One thread at a time.  Returns -1 on error, reported. */
extern int nc_views_publish (struct nc_views *views,
                             struct nc_layer **layers, size_t n,
                             bool writable)
  __attribute__ ((__nonnull__ (1, 2)));

extern bool nc_view_has_remote (const struct nc_view *view)
  __attribute__ ((__nonnull__ (1)));

/* Enter the current view; NULL with errno ESHUTDOWN while stopping.  Never
 * blocks. */
extern struct nc_view *nc_view_enter (struct nc_views *views,
                                      enum nc_view_use use)
  __attribute__ ((__nonnull__ (1)));
extern void nc_view_leave (struct nc_views *views, struct nc_view *view,
                           enum nc_view_use use)
  __attribute__ ((__nonnull__ (1, 2)));

/* The current view, or one that the caller knows to have its layers (it is
 * inside): they stay open until it is unpinned.  Also while stopping. */
extern struct nc_view *nc_view_pin (struct nc_views *views)
  __attribute__ ((__nonnull__ (1)));
extern void nc_view_pin_this (struct nc_views *views, struct nc_view *view)
  __attribute__ ((__nonnull__ (1, 2)));
extern void nc_view_unpin (struct nc_views *views, struct nc_view *view)
  __attribute__ ((__nonnull__ (1, 2)));

/* Enter VIEW, which the caller has pinned, whether or not it is the current
 * one.  Returns false with errno ESHUTDOWN while stopping.  Never blocks. */
extern bool nc_view_enter_this (struct nc_views *views, struct nc_view *view,
                                enum nc_view_use use)
  __attribute__ ((__nonnull__ (1, 2)));

/* VIEW is not the current one any more: wait until its writers have left. */
extern void nc_views_wait_for_writers (struct nc_views *views,
                                       const struct nc_view *view)
  __attribute__ ((__nonnull__ (1, 2)));

/* Call FN for each layer of the views, with the lock held. */
extern void nc_views_each_layer (struct nc_views *views,
                                 void (*fn) (struct nc_layer *layer))
  __attribute__ ((__nonnull__ (1, 2)));

/* Let nobody in any more and wait until all have left. */
extern void nc_views_stop (struct nc_views *views)
  __attribute__ ((__nonnull__ (1)));

/* The map of VIEW's layers from FIRST on.  Returns NULL on error, reported.
 */
extern struct nc_map *nc_view_map (struct nc_views *views,
                                   struct nc_view *view, size_t first)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_VIEW_H */
