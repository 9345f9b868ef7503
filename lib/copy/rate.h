/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A rate that is held in slices of 100 ms, and can be changed at any time.
 *
 * What is taken is charged at once and paid for by time: who comes while
 * something is owed waits, at most a slice at a time, so that a new rate is
 * obeyed within one.  At most one slice is saved up while nobody takes
 * anything.  The clock is passed in: nanoseconds that never go back.
 */
#ifndef NC_RATE_H
#define NC_RATE_H

#include <stdbool.h>
#include <stdint.h>

#define NC_RATE_SLICE UINT64_C (100000000)      /* nanoseconds */

/* No lock of its own: the caller holds one around each call. */
struct nc_rate {
  uint64_t rate;                /* bytes a second; 0 = no limit */
  uint64_t last;                /* when balance was brought up to date */
  double balance;               /* bytes; below 0: owed */
};

/* Begin with RATE bytes a second, 0 = no limit, and nothing saved up. */
extern void nc_rate_init (struct nc_rate *rate, uint64_t bytes_a_second,
                          uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* From now on, with what is owed still to be paid. */
extern void nc_rate_set (struct nc_rate *rate, uint64_t bytes_a_second,
                         uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* Take COUNT bytes.  Returns 0 if they were charged: go ahead.  Else they
 * were not, and it returns how many nanoseconds, at most NC_RATE_SLICE, to
 * wait before asking again. */
extern uint64_t nc_rate_take (struct nc_rate *rate, uint64_t count,
                              uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* A measured rate: a moving average over the last seconds.  No lock of its
 * own either. */
struct nc_meter {
  uint64_t start;               /* of the slice that is being filled; 0: none */
  uint64_t count;               /* bytes in it */
  uint64_t last;                /* when any came */
  double average;               /* bytes a second */
};

/* COUNT bytes went through at NOW. */
extern void nc_meter_add (struct nc_meter *meter, uint64_t count,
                          uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* Bytes a second, as of NOW. */
extern uint64_t nc_meter_rate (struct nc_meter *meter, uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* How many *SECONDS it takes as of NOW, rounded up, until COUNT bytes more
 * have gone through.  LIMIT: bytes a second that are allowed, 0 = any; IS_HELD:
 * that is what keeps it at the moment, whatever was measured before.
 * Returns false, and *SECONDS is not set, if that is unknown: nothing came in
 * the last seconds. */
extern bool nc_meter_left (struct nc_meter *meter, uint64_t count,
                           uint64_t limit, bool is_held, uint64_t now,
                           uint64_t *seconds)
  __attribute__ ((__nonnull__ (1, 6)));

#endif /* NC_RATE_H */
