/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A balance in bytes, which time fills at the rate and each transfer draws
 * on.  A transfer is allowed whenever nothing is owed, so that one larger
 * than a slice also passes; the long average is exact, since what is owed is
 * never forgiven, also not when the rate changes. */

#include <config.h>

#include "copy/rate.h"

#define SECOND 1e9              /* nanoseconds */

/* Over how long a measured rate is averaged. */
#define METER_TIME 2e9          /* nanoseconds */
/* After so long without any it says nothing of what is to come. */
#define METER_QUIET UINT64_C (5000000000)

static void
settle (struct nc_rate *rate, uint64_t now)
{
  const double most = (double) rate->rate * (double) NC_RATE_SLICE / SECOND;

  if (now > rate->last) {
    rate->balance += (double) rate->rate * (double) (now - rate->last) /
      SECOND;
    rate->last = now;
  }
  if (rate->balance > most)
    rate->balance = most;
}

void
nc_rate_init (struct nc_rate *rate, uint64_t bytes_a_second, uint64_t now)
{
  rate->rate = bytes_a_second;
  rate->last = now;
  rate->balance = 0;
}

void
nc_rate_set (struct nc_rate *rate, uint64_t bytes_a_second, uint64_t now)
{
  settle (rate, now);
  rate->rate = bytes_a_second;
  if (bytes_a_second == 0)
    rate->balance = 0;
}

uint64_t
nc_rate_take (struct nc_rate *rate, uint64_t count, uint64_t now)
{
  double wait;

  if (rate->rate == 0)
    return 0;
  settle (rate, now);
  if (rate->balance >= 0) {
    rate->balance -= (double) count;
    return 0;
  }
  wait = -rate->balance / (double) rate->rate * SECOND;
  /* One more nanosecond, so that rounding does not make it ask twice. */
  return wait < (double) (NC_RATE_SLICE - 1) ? (uint64_t) wait + 1
    : NC_RATE_SLICE;
}

/* Close the slice that is being filled, if it is over. */
static void
roll (struct nc_meter *meter, uint64_t now)
{
  double elapsed, sample;

  if (meter->start == 0 || now < meter->start + NC_RATE_SLICE)
    return;
  elapsed = (double) (now - meter->start);
  sample = (double) meter->count * SECOND / elapsed;
  if (meter->average == 0)
    meter->average = sample;
  else
    meter->average += (sample - meter->average) *
      (elapsed / (elapsed + METER_TIME));
  meter->start = now;
  meter->count = 0;
}

void
nc_meter_add (struct nc_meter *meter, uint64_t count, uint64_t now)
{
  if (meter->start == 0)
    meter->start = now;
  roll (meter, now);
  meter->count += count;
  if (count > 0)
    meter->last = now;
}

uint64_t
nc_meter_rate (struct nc_meter *meter, uint64_t now)
{
  roll (meter, now);
  return (uint64_t) meter->average;
}

static uint64_t
seconds_for (uint64_t count, uint64_t rate)
{
  return count / rate + (count % rate != 0);
}

bool
nc_meter_left (struct nc_meter *meter, uint64_t count, uint64_t limit,
               bool is_held, uint64_t now, uint64_t *seconds)
{
  const uint64_t rate = nc_meter_rate (meter, now);

  if (limit > 0 && is_held) {
    *seconds = seconds_for (count, limit);
    return true;
  }
  if (rate == 0 || now - meter->last >= METER_QUIET)
    return false;
  *seconds = seconds_for (count, limit > 0 && limit < rate ? limit : rate);
  return true;
}
