/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* How many requests to have in flight, found out from how long they take.
 *
 * While requests take about as long as the quickest did, the source has room
 * for more: so a long way is filled with requests.  When they take several
 * times as long, they only wait for each other, and the limit goes down.  No
 * clock and no lock of its own.
 */
#ifndef NC_WINDOW_H
#define NC_WINDOW_H

#include <stdint.h>

#define NC_WINDOW_START 16
#define NC_WINDOW_MIN 4
#define NC_WINDOW_MAX 64

struct nc_window {
  unsigned limit;               /* how many may be in flight */
  unsigned max;                 /* that the limit may come to */
  unsigned n;                   /* requests since it was last looked at */
  uint64_t total;               /* their nanoseconds */
  uint64_t quickest;            /* nanoseconds; 0 = none */
  uint64_t quickest_now;        /* since the limit was lowered to find out */
  unsigned rounds;              /* since it was last found out */
};

/* Begin with NC_WINDOW_START, or MAX if that is less. */
extern void nc_window_init (struct nc_window *window, unsigned max)
  __attribute__ ((__nonnull__ (1)));

/* A request, of the usual size, took NANOSECONDS. */
extern void nc_window_note (struct nc_window *window, uint64_t nanoseconds)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_WINDOW_H */
