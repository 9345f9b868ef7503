/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The limit doubles while there is room, and gives up a quarter when there is
 * none; between the two it stays.  It is looked at once for as many requests
 * as are in flight, so that each look is at requests of the limit in force. */

#include <config.h>

#include "job/window.h"

#include "checked.h"

/* Below this, differences are those of a busy machine. */
#define QUICK UINT64_C (1000000)        /* nanoseconds */
#define ROOM 2                  /* times the quickest, at most: more */
#define CROWDED 4               /* at least: less */
#define PERIOD 64               /* rounds after which a way may have become
                                   longer for good */

void
nc_window_init (struct nc_window *window, unsigned max)
{
  *window = (struct nc_window) {
    .limit = max < NC_WINDOW_MIN ? max : NC_WINDOW_MIN,
    .max = max,
  };
}

static void
look (struct nc_window *window)
{
  const uint64_t mean = window->total / window->n;
  const uint64_t quick = nc_max64 (window->quickest, QUICK);
  const unsigned min = nc_min64 (window->max, NC_WINDOW_MIN);

  if (mean < ROOM * quick)
    window->limit = nc_min64 (window->limit * 2, window->max);
  else if (mean > CROWDED * quick)
    window->limit = nc_max64 (window->limit - window->limit / 4, min);
  window->n = 0;
  window->total = 0;
  if (++window->rounds < PERIOD)
    return;
  window->rounds = 0;
  window->quickest = window->quickest_now;
  window->quickest_now = 0;
}

void
nc_window_note (struct nc_window *window, uint64_t nanoseconds)
{
  if (window->quickest == 0 || nanoseconds < window->quickest)
    window->quickest = nanoseconds;
  if (window->quickest_now == 0 || nanoseconds < window->quickest_now)
    window->quickest_now = nanoseconds;
  window->total += nanoseconds;
  if (++window->n >= window->limit)
    look (window);
}
