/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Views and who is inside.
 *
 * A request adds itself to a counter of the view that it found, and then
 * looks whether that view is still the current one; if not it takes itself
 * out again and starts over.  Who publishes a view does it the other way
 * round: store the new one, then read the old one's counters.  With
 * sequentially consistent accesses one of the two sees the other, so nobody
 * stays in a view that was found empty.  The same holds between entering
 * and STOPPING.  Views are freed with the chain, never before, so that the
 * counter of a view found a moment too late is still there; only their layers
 * and maps go when nobody can be using them.
 */

#include <config.h>

#include "chain/view.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "chain/owner-map.h"
#include "dev/dev.h"
#include "format/layer.h"
#include "util/report.h"
#include "util/scope.h"

int
nc_views_init (struct nc_views *views)
{
  int r;

  r = pthread_mutex_init (&views->lock, NULL);
  if (r == 0)
    r = pthread_cond_init (&views->left, NULL);
  if (r != 0) {
    errno = r;
    nc_error ("views: %m");
    return -1;
  }
  return 0;
}

/* Give up what VIEW has: layers that no other view has are put before
 * *LAST. */
static void
release_locked (struct nc_view *view, struct nc_layer **last)
{
  for (size_t i = 0; i <= view->n; ++i)
    nc_map_free (view->map[i]);
  for (size_t i = 0; i < view->n; ++i)
    if (--view->layers[i]->views == 0) {
      view->layers[i]->next = *last;
      *last = view->layers[i];
    }
  free (view->map);
  free (view->layers);
  view->map = NULL;
  view->layers = NULL;
  view->n = 0;
  view->is_released = true;
}

/* Their names are known until the end. */
static void
close_layers (struct nc_views *views, struct nc_layer *layer)
{
  for (struct nc_layer *next; layer; layer = next) {
    next = layer->next;
    nc_debug ("%s: no longer used, closing it", layer->path);
    nc_layer_shut (layer);
    NC_LOCKED (&views->lock);
    layer->next = views->closed;
    views->closed = layer;
  }
}

static int64_t
count_inside (const struct nc_view *view, enum nc_view_use use)
{
  int64_t n = 0;

  for (unsigned c = 0; c < NC_VIEW_COUNTERS; ++c)
    n += view->counter[c].inside[use];
  return n;
}

static bool
is_left_locked (const struct nc_views *views, const struct nc_view *view)
{
  return view != views->current && view->pins == 0 &&
    count_inside (view, NC_VIEW_READ) == 0 &&
    count_inside (view, NC_VIEW_WRITE) == 0;
}

/* The thread that closes layers. */
static void *
closer (void *opaque)
{
  struct nc_views *views = opaque;
  struct nc_layer *layers;

  for (;;) {
    layers = NULL;
    {
      NC_LOCKED (&views->lock);
      for (struct nc_view *view = views->all; view; view = view->next)
        if (!view->is_released && is_left_locked (views, view))
          release_locked (view, &layers);
      if (layers == NULL) {
        if (views->is_ending)
          return NULL;
        pthread_cond_wait (&views->left, &views->lock);
      }
    }
    close_layers (views, layers);
  }
}

static void
stop_closer (struct nc_views *views)
{
  if (!views->has_closer)
    return;
  {
    NC_LOCKED (&views->lock);
    views->is_ending = true;
    pthread_cond_broadcast (&views->left);
  }
  pthread_join (views->closer, NULL);
  views->has_closer = false;
}

void
nc_views_fini (struct nc_views *views)
{
  struct nc_layer *layers = NULL, *next_layer;
  struct nc_view *next;

  stop_closer (views);
  for (struct nc_view *view = views->all; view; view = next) {
    next = view->next;
    if (!view->is_released)
      release_locked (view, &layers);
    free (view);
  }
  close_layers (views, layers);
  for (struct nc_layer *layer = views->closed; layer; layer = next_layer) {
    next_layer = layer->next;
    nc_layer_close (layer);
  }
  views->all = NULL;
  views->closed = NULL;
  pthread_mutex_destroy (&views->lock);
  pthread_cond_destroy (&views->left);
}

/* A second view is the first pivot: what the old one leaves behind needs a
 * thread that closes it. */
static int
start_closer (struct nc_views *views)
{
  int r;

  if (views->all == NULL || views->has_closer)
    return 0;
  r = pthread_create (&views->closer, NULL, closer, views);
  if (r != 0) {
    errno = r;
    nc_error ("thread that closes layers: %m");
    return -1;
  }
  views->has_closer = true;
  return 0;
}

int
nc_views_publish (struct nc_views *views, struct nc_layer **layers,
                  size_t n, bool writable)
{
  struct nc_view *view = aligned_alloc (64, sizeof *view);

  if (view)
    *view = (struct nc_view) {
      .map = calloc (n + 1, sizeof *view->map),
    };
  if (view == NULL || view->map == NULL) {
    nc_error ("view of %zu layers: %m", n);
    free (view);
    return -1;
  }
  if (start_closer (views) == -1) {
    free (view->map);
    free (view);
    return -1;
  }
  view->layers = layers;
  view->n = n;
  view->limit = layers[0]->backing.present ? layers[0]->backing.size : 0;
  view->writable = writable;

  NC_LOCKED (&views->lock);
  for (size_t i = 0; i < n; ++i)
    layers[i]->views++;
  view->next = views->all;
  views->all = view;
  views->current = view;
  return 0;
}

bool
nc_view_has_remote (const struct nc_view *view)
{
  for (size_t i = 0; i < view->n; ++i)
    if (view->layers[i]->dev->remote)
      return true;
  return false;
}

/* Threads are dealt to the counters in the order in which they come. */
static unsigned
counter_of_thread (void)
{
  static _Atomic (unsigned) threads;
  static __thread unsigned mine;        /* 1 more than the counter's index */

  if (mine == 0)
    mine = threads++ % NC_VIEW_COUNTERS + 1;
  return mine - 1;
}

static void
wake_all (struct nc_views *views)
{
  NC_LOCKED (&views->lock);
  pthread_cond_broadcast (&views->left);
}

struct nc_view *
nc_view_enter (struct nc_views *views, enum nc_view_use use)
{
  const unsigned c = counter_of_thread ();
  struct nc_view *view;

  for (;;) {
    view = views->current;
    view->counter[c].inside[use]++;
    if (views->stopping) {
      nc_view_leave (views, view, use);
      errno = ESHUTDOWN;
      return NULL;
    }
    if (view == views->current)
      return view;
    nc_view_leave (views, view, use);
  }
}

bool
nc_view_enter_this (struct nc_views *views, struct nc_view *view,
                    enum nc_view_use use)
{
  view->counter[counter_of_thread ()].inside[use]++;
  if (!views->stopping)
    return true;
  nc_view_leave (views, view, use);
  errno = ESHUTDOWN;
  return false;
}

void
nc_view_leave (struct nc_views *views, struct nc_view *view,
               enum nc_view_use use)
{
  int err = errno;

  view->counter[counter_of_thread ()].inside[use]--;
  if (views->stopping || view != views->current)
    wake_all (views);
  errno = err;
}

static bool
anybody_inside_locked (const struct nc_views *views)
{
  for (const struct nc_view *view = views->all; view; view = view->next)
    if (count_inside (view, NC_VIEW_READ) != 0 ||
        count_inside (view, NC_VIEW_WRITE) != 0)
      return true;
  return false;
}

void
nc_views_stop (struct nc_views *views)
{
  views->stopping = true;
  NC_LOCKED (&views->lock);
  while (anybody_inside_locked (views))
    pthread_cond_wait (&views->left, &views->lock);
}

struct nc_view *
nc_view_pin (struct nc_views *views)
{
  NC_LOCKED (&views->lock);
  views->current->pins++;
  return views->current;
}

void
nc_view_pin_this (struct nc_views *views, struct nc_view *view)
{
  NC_LOCKED (&views->lock);
  view->pins++;
}

void
nc_view_unpin (struct nc_views *views, struct nc_view *view)
{
  int err = errno;

  {
    NC_LOCKED (&views->lock);
    if (--view->pins == 0 && view != views->current)
      pthread_cond_broadcast (&views->left);
  }
  errno = err;
}

void
nc_views_wait_for_writers (struct nc_views *views, const struct nc_view *view)
{
  NC_LOCKED (&views->lock);
  while (count_inside (view, NC_VIEW_WRITE) != 0)
    pthread_cond_wait (&views->left, &views->lock);
}

void
nc_views_each_layer (struct nc_views *views,
                     void (*fn) (struct nc_layer *layer))
{
  NC_LOCKED (&views->lock);
  for (struct nc_view *view = views->all; view; view = view->next)
    for (size_t i = 0; i < view->n; ++i)
      fn (view->layers[i]);
}

struct nc_map *
nc_view_map (struct nc_views *views, struct nc_view *view, size_t first)
{
  struct nc_map *map = view->map[first];

  if (map)
    return map;
  NC_LOCKED (&views->lock);
  if (view->map[first] == NULL)
    view->map[first] = nc_map_new (view->layers, first, view->n);
  return view->map[first];
}
