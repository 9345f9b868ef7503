/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/copy/rate.c, with a clock of their own. */

#include <config.h>

#include "copy/rate.h"

#include "tap.h"

#define SECOND UINT64_C (1000000000)
#define MIB UINT64_C (1048576)

static struct nc_rate rate;
static uint64_t t = 5 * SECOND;

/* Transfer pieces of COUNT bytes until END.  Returns the bytes. */
static uint64_t
transfer (uint64_t count, uint64_t end)
{
  uint64_t sum = 0, wait;

  while (t < end) {
    wait = nc_rate_take (&rate, count, t);
    if (wait == 0)
      sum += count;
    t += wait;
  }
  return sum;
}

/* Whether N is within 1 % of WANT, and one piece. */
static bool
is_near (uint64_t n, uint64_t want, uint64_t piece)
{
  const uint64_t slack = want / 100 + piece;

  return (n + slack >= want && n <= want + slack) ||
    note ("%llu instead of %llu", (unsigned long long) n,
          (unsigned long long) want);
}

static void
test_held (uint64_t seed)
{
  static const uint64_t pieces[] = { 1, 512, 4096, 65536, MIB };
  bool good = true;

  for (unsigned i = 0; i < 5; i++) {
    nc_rate_init (&rate, pieces[i] * 100, t);
    good = good && is_near (transfer (pieces[i], t + 60 * SECOND),
                            6000 * pieces[i], pieces[i]);
  }
  ok (good, "a rate is held, whatever the size of the pieces");

  nc_rate_init (&rate, 10000, t);
  ok (is_near (transfer (MIB, t + 1000 * SECOND), 10000000, MIB),
      "also where a piece takes longer than a slice");

  {
    uint64_t sum = 0, wait, end = t + 100 * SECOND;

    nc_rate_init (&rate, 7 * MIB, t);
    while (t < end) {
      const uint64_t n = 1 + rnd_below (&seed, 2 * MIB);

      while ((wait = nc_rate_take (&rate, n, t)) > 0)
        t += 1 + rnd_below (&seed, wait);
      sum += n;
    }
    ok (is_near (sum, 700 * MIB, 2 * MIB),
        "also for pieces and waits of any length");
  }
}

static void
test_idle (void)
{
  uint64_t start;

  nc_rate_init (&rate, MIB, t);
  t += 3600 * SECOND;
  start = t;
  ok (is_near (transfer (1024, start + SECOND), MIB + MIB / 10, 1024),
      "an idle hour saves up one slice");
}

static void
test_change (void)
{
  uint64_t wait, start;

  nc_rate_init (&rate, 0, t);
  ok (nc_rate_take (&rate, 1000 * MIB, t) == 0 &&
      nc_rate_take (&rate, 1000 * MIB, t) == 0, "0 is no limit");
  nc_rate_set (&rate, MIB, t);
  ok (nc_rate_take (&rate, 4 * MIB, t) == 0,
      "what went through without a limit is not owed");
  wait = nc_rate_take (&rate, 1, t);
  ok (wait > 0 && wait <= NC_RATE_SLICE, "nobody waits more than a slice");
  nc_rate_set (&rate, 4 * MIB, t);
  start = t;
  while ((wait = nc_rate_take (&rate, 1, t)) > 0)
    t += wait;
  ok (is_near (t - start, SECOND, 10),
      "after a change what is owed is paid at the new rate");
  nc_rate_take (&rate, 100 * MIB, t);
  nc_rate_set (&rate, 0, t);
  ok (nc_rate_take (&rate, 1, t) == 0, "no limit forgives what is owed");
  nc_rate_set (&rate, 2 * MIB, t);
  start = t;
  ok (is_near (transfer (4096, start + 10 * SECOND), 20 * MIB, 4096),
      "and a later limit is held");
}

static void
test_meter (void)
{
  struct nc_meter meter = { 0 };
  bool good;

  ok (nc_meter_rate (&meter, t) == 0, "a meter begins at 0");
  for (unsigned i = 0; i < 100; i++, t += SECOND / 100)
    nc_meter_add (&meter, MIB, t);
  ok (is_near (nc_meter_rate (&meter, t), 100 * MIB, 10 * MIB),
      "it shows what goes through");
  for (unsigned i = 0; i < 2000; i++, t += SECOND / 100)
    nc_meter_add (&meter, MIB / 2, t);
  good = is_near (nc_meter_rate (&meter, t), 50 * MIB, MIB);
  t += 60 * SECOND;
  ok (good && nc_meter_rate (&meter, t) < 2 * MIB,
      "it follows, and sinks when nothing does");
}

/* What a meter that has seen SPEED bytes a second for 20 s, until now, says of
 * COUNT bytes; UINT64_MAX: it does not know. */
static uint64_t
seconds_left (uint64_t count, uint64_t speed, uint64_t limit, bool is_held,
              uint64_t quiet)
{
  struct nc_meter meter = { 0 };
  uint64_t seconds;

  for (unsigned i = 0; i < 2000; i++, t += SECOND / 100)
    nc_meter_add (&meter, speed / 100, t);
  t += quiet;
  return nc_meter_left (&meter, count, limit, is_held, t, &seconds) ? seconds
    : UINT64_MAX;
}

static void
test_left (void)
{
  struct nc_meter meter = { 0 };
  uint64_t seconds;

  ok (is_near (seconds_left (1000 * MIB, 10 * MIB, 0, false, 0), 100, 1) &&
      is_near (seconds_left (1000 * MIB, 10 * MIB, 30 * MIB, false, 0), 100,
               1), "what is left takes its time at the measured rate");
  ok (seconds_left (1, 10 * MIB, 0, false, 0) == 1 &&
      seconds_left (0, 10 * MIB, 0, false, 0) == 0,
      "it is no time only when nothing is left");
  ok (seconds_left (1000, 200 * MIB, 1, true, 0) == 1000 &&
      seconds_left (1000, 200 * MIB, 1, false, 0) == 1000,
      "it is never less than the limit allows");
  ok (seconds_left (1000, 100, 500, true, 0) == 2 &&
      seconds_left (1000, 100, 500, true, 3600 * SECOND) == 2,
      "nor more, where the limit alone is what holds it");
  ok (seconds_left (1000, 2000, 0, false, 2 * SECOND) < UINT64_MAX &&
      seconds_left (1000, 2000, 0, false, 6 * SECOND) == UINT64_MAX &&
      seconds_left (1000, 2000, 500, false, 6 * SECOND) == UINT64_MAX &&
      !nc_meter_left (&meter, 1000, 0, false, t, &seconds),
      "it is not known when nothing has come for some seconds");
}

int
main (void)
{
  test_held (tap_start (60));
  test_idle ();
  test_change ();
  test_meter ();
  test_left ();
  return tap_done ();
}
