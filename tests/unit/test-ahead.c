/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/copyread/readahead.c: which reads are taken for sequential ones, and
 * what is asked for then.  A read takes nanosecond after nanosecond. */

#include <config.h>

#include "copyread/readahead.h"

#include "tap.h"

#define K UINT64_C (1024)
#define M (1024 * K)
#define SIZE (1024 * M)

static struct nc_ahead ahead;
static uint64_t t;

static void
begin (uint64_t size, uint64_t max)
{
  nc_ahead_init (&ahead, size, max);
  t = 0;
}

static bool
cold (uint64_t offset, uint64_t count)
{
  return nc_ahead_read (&ahead, offset, count, 4 * count, ++t);
}

/* Ask for all that is to be asked for.  Returns how many bytes; they must
 * follow FROM without a gap. */
static uint64_t
ask (uint64_t from)
{
  uint64_t offset, count, sum = 0;

  while (nc_ahead_next (&ahead, &offset, &count)) {
    if (offset != from + sum || count == 0 || count > NC_AHEAD_PIECE_MAX)
      return 0;
    sum += count;
  }
  return sum;
}

static void
test_begin (void)
{
  begin (SIZE, 8 * M);
  ok (!cold (0, 128 * K) && !cold (128 * K, 128 * K) && ask (0) == 0,
      "two reads are no stream");
  ok (cold (256 * K, 128 * K) && ask (384 * K) == 512 * K,
      "three are: four reads more are asked for");
  ok (ask (0) == 0, "and nothing else");

  begin (SIZE, 8 * M);
  for (unsigned i = 0; i < 31; i++)
    must (!cold (i * 4 * K, 4 * K), "short reads");
  ok (cold (31 * 4 * K, 4 * K), "short reads need to be more");

  begin (SIZE, 0);
  ok (!cold (0, M) && !cold (M, M) && !cold (2 * M, M) && ask (0) == 0,
      "a maximum of 0: never");
}

static void
test_order (void)
{
  static const unsigned char order[] = { 1, 0, 3, 2, 5, 6, 4, 7 };
  bool good = false;

  begin (SIZE, 8 * M);
  for (unsigned i = 0; i < sizeof order; i++)
    good = cold (M + order[i] * 128 * K, 128 * K);
  ok (good && ask (2 * M) >= 512 * K,
      "reads may overtake each other");
}

static void
test_random (uint64_t seed)
{
  const uint64_t n = 100000;
  uint64_t offset, count, sum = 0;

  begin (SIZE, 8 * M);
  for (unsigned i = 0; i < n; i++, t += 1000000) {
    cold (rnd_below (&seed, SIZE / (64 * K)) * 64 * K, 64 * K);
    while (nc_ahead_next (&ahead, &offset, &count))
      sum += count;
    if (i % 1000 == 0)
      nc_ahead_end (&ahead, t, false);
  }
  ok (sum < n * 64 * K / 100 ||
      note ("%llu bytes are", (unsigned long long) sum),
      "random reads, 100000, are no reason to ask for anything");
}

/* Read on in the stream that is asked for up to ASKED, waiting for each
 * piece; returns how far it is asked for then. */
static uint64_t
wait_on (uint64_t place, uint64_t end, uint64_t asked)
{
  for (; place < end; place += 128 * K) {
    nc_ahead_passed (&ahead, place, 128 * K, ++t);
    nc_ahead_waits (&ahead, place);
    asked += ask (asked);
  }
  return asked;
}

static void
test_window (void)
{
  uint64_t asked;

  begin (SIZE, 8 * M);
  for (unsigned i = 0; i < 3; i++)
    cold (i * 128 * K, 128 * K);
  asked = 384 * K + ask (384 * K);
  asked = wait_on (384 * K, M, asked);
  ok (asked > M + 512 * K && asked <= 2 * M,
      "the window grows, to what was read at most");
  asked = wait_on (M, 64 * M, asked);
  ok ((asked > 71 * M && asked <= 72 * M) ||
      note ("%llu", (unsigned long long) asked),
      "up to the maximum");
  for (uint64_t place = 64 * M; place < 80 * M; place += 128 * K) {
    if (nc_ahead_is_due (&ahead, place, 128 * K))
      nc_ahead_passed (&ahead, place, 128 * K, ++t);
    asked += ask (asked);
  }
  ok (asked >= 87 * M && asked <= 88 * M,
      "without waiting it stays");
  ok (!nc_ahead_is_due (&ahead, 0, 128 * K) &&
      !nc_ahead_is_due (&ahead, 900 * M, 128 * K),
      "reads elsewhere are of no interest");
  t += NC_AHEAD_IDLE / 2;
  nc_ahead_end (&ahead, t, false);
  ok (ahead.n_windows == 1, "a stream that rests a while is kept");
  t += NC_AHEAD_IDLE;
  nc_ahead_end (&ahead, t, false);
  ok (ahead.n_windows == 0 && ask (0) == 0 &&
      !nc_ahead_is_due (&ahead, 80 * M, 128 * K),
      "one that nobody reads any more is forgotten");
}

/* What was asked for in vain when a reader stops after END bytes. */
static uint64_t
in_vain (uint64_t end)
{
  uint64_t asked;

  begin (SIZE, 16 * M);
  for (unsigned i = 0; i < 3; i++)
    cold (i * 128 * K, 128 * K);
  asked = 384 * K + ask (384 * K);
  return wait_on (384 * K, end, asked) - end;
}

static void
test_in_vain (void)
{
  ok (in_vain (2 * M) <= 2 * M && in_vain (128 * M) <= 8 * M &&
      in_vain (512 * M) <= 16 * M && in_vain (512 * M) > 15 * M,
      "little is asked for in vain");
}

static void
test_end (void)
{
  begin (2 * M + 5, 8 * M);
  for (unsigned i = 0; i < 12; i++)
    cold (i * 128 * K, 128 * K);
  ok (ask (1536 * K) == 512 * K + 5, "nothing behind the end of the disk");
}

static void
test_streams (void)
{
  uint64_t offset, count, sum[4] = { 0 };
  bool good = true;

  begin (SIZE, 8 * M);
  for (unsigned i = 0; i < 3; i++)
    for (unsigned k = 0; k < 4; k++)
      cold (k * 100 * M + i * 128 * K, 128 * K);
  ok (ahead.n_windows == 4, "four streams at a time");
  /* Each in turn. */
  for (unsigned i = 0; nc_ahead_next (&ahead, &offset, &count); i++) {
    good = good && offset / (100 * M) == i % 4;
    sum[i % 4] += count;
  }
  for (unsigned k = 0; k < 4; k++)
    good = good && sum[k] == 512 * K;
  ok (good, "each gets its share");
  for (unsigned i = 0; i < 1000; i++)
    cold (500 * M + i * M / 3 * 2 % (400 * M), 4 * K);
  ok (ahead.n_windows == 4, "other reads do not end them");
  nc_ahead_end (&ahead, t, true);
  ok (ahead.n_windows == 0, "all can be ended");
}

int
main (void)
{
  const uint64_t seed = tap_start (60);

  test_begin ();
  test_order ();
  test_random (seed);
  test_window ();
  test_in_vain ();
  test_end ();
  test_streams ();
  return tap_done ();
}
