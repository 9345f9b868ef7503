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
 * counter of a view found a moment too late is still there.
 */

#include <config.h>

#include "view.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "layer.h"
#include "map.h"
#include "report.h"
#include "scope.h"

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

static void
free_view (struct nc_view *view)
{
  for (size_t i = 0; view->map && i <= view->n; ++i)
    nc_map_free (view->map[i]);
  for (size_t i = 0; i < view->n; ++i)
    nc_layer_close (view->layers[i]);
  free (view->map);
  free (view->layers);
  free (view);
}

void
nc_views_fini (struct nc_views *views)
{
  struct nc_view *next;

  for (struct nc_view *view = views->all; view; view = next) {
    next = view->next;
    free_view (view);
  }
  views->all = NULL;
  pthread_mutex_destroy (&views->lock);
  pthread_cond_destroy (&views->left);
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
  view->layers = layers;
  view->n = n;
  view->writable = writable;

  NC_LOCKED (&views->lock);
  view->next = views->all;
  views->all = view;
  views->current = view;
  return 0;
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
wake_stopper (struct nc_views *views)
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

void
nc_view_leave (struct nc_views *views, struct nc_view *view,
               enum nc_view_use use)
{
  int err = errno;

  view->counter[counter_of_thread ()].inside[use]--;
  if (views->stopping)
    wake_stopper (views);
  errno = err;
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
