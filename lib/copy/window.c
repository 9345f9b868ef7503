/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The limit doubles while there is room, and gives up a quarter when there is
 * none; between the two it stays.  It is looked at once for as many requests
 * as are in flight, so that each look is at requests of the limit in force.
 *
 * The quickest may be out of date, when the way has become longer.  So from
 * time to time the limit is low for a moment, and what is quickest then counts
 * from there on: without that, requests that wait for each other all the time
 * would be taken for a long way. */

#include <config.h>

#include "copy/window.h"

#include <stdbool.h>

#include "util/checked.h"

/* Below this, differences are those of a busy machine. */
#define QUICK UINT64_C (1000000)        /* nanoseconds */
#define ROOM 3                  /* times the quickest, at most: more */
#define CROWDED 4               /* at least: less */
#define PERIOD 64               /* rounds from one time to the next */
#define MOMENT 2                /* rounds */
#define LOW 4                   /* part of the limit */

void
nc_window_init (struct nc_window *window, unsigned max)
{
  *window = (struct nc_window) {
    .limit = nc_min64 (max, NC_WINDOW_START),
    .max = max,
  };
}

static void
look (struct nc_window *window)
{
  const uint64_t mean = window->total / window->n;
  const uint64_t quick = nc_max64 (window->quickest, QUICK);
  const unsigned min = nc_min64 (window->max, NC_WINDOW_MIN);
  const bool is_low = window->rounds >= PERIOD;

  if (mean < ROOM * quick && !is_low)
    window->limit = nc_min64 (window->limit * 2, window->max);
  else if (mean > CROWDED * quick)
    window->limit = nc_max64 (window->limit - window->limit / 4, min);
  window->n = 0;
  window->total = 0;
  if (++window->rounds == PERIOD) {
    window->limit = nc_max64 (window->limit / LOW, min);
    window->quickest_now = 0;
  }
  else if (window->rounds == PERIOD + MOMENT) {
    window->quickest = window->quickest_now;
    window->rounds = 0;
  }
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
