/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The policy of prefetching.  What it measures of the source it measures only
 * while the guest leaves it alone: else it would take its own restraint for
 * the need of others. */

#include <config.h>

#include "copy/pacer.h"

#include "util/checked.h"

#define SECOND UINT64_C (1000000000)
#define MILLISECOND UINT64_C (1000000)

/* Of the rate that it has alone, while the guest is busy, or waits for the
 * source.  A quarter is promised. */
#define PART_BUSY 0.3
#define PART_WAITS 0.125
/* Nobody notices this little. */
#define FLOOR (16.0 * 1024 * 1024)      /* bytes a second */
#define ALONE_TIME (100 * MILLISECOND)  /* long enough to know a rate */
#define LATE (2 * MILLISECOND)  /* it may come so, and get its share */

/* A server works on 16 requests of a connection at a time, nbdkit by default
 * and QEMU always; more of them wait. */
#define IN_FLIGHT 14

#define RETRY_FIRST (100 * MILLISECOND)
#define RETRY_LONGEST (30 * SECOND)

/* splitmix64 */
static uint64_t
random_number (struct nc_pace *pace)
{
  uint64_t z = pace->random += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* What is read is written, so the lower one of the two is the limit. */
static uint64_t
maximal_rate (const struct nc_prefetch_policy *p)
{
  if (p->max_read == 0 || p->max_write == 0)
    return nc_max64 (p->max_read, p->max_write);
  return nc_min64 (p->max_read, p->max_write);
}

static void
replace (uint32_t *field, uint32_t by)
{
  if (*field == 0)
    *field = by;
}

static void
set_policy (struct nc_pace *pace, const struct nc_prefetch_policy *policy)
{
  struct nc_prefetch_policy *p = &pace->policy;

  *p = *policy;
  replace (&p->max_pause, NC_PACE_MAX_PAUSE);
  replace (&p->unit, NC_PACE_UNIT);
  replace (&p->read_time, NC_PACE_MEASURE_TIME);
  replace (&p->write_time, NC_PACE_MEASURE_TIME);
  replace (&p->alpha, NC_PACE_ALPHA);
}

void
nc_pace_init (struct nc_pace *pace, const struct nc_prefetch_policy *policy,
              uint32_t shortest, uint64_t seed, uint64_t now)
{
  *pace = (struct nc_pace) {
    .shortest = shortest, .random = seed,
  };
  set_policy (pace, policy);
  pace->start = now + policy->start_delay * SECOND;
  nc_rate_init (&pace->cap, maximal_rate (policy), now);
}

void
nc_pace_set (struct nc_pace *pace, const struct nc_prefetch_policy *policy,
             uint64_t now)
{
  const uint64_t begun = pace->start - pace->policy.start_delay * SECOND;

  set_policy (pace, policy);
  pace->start = begun + policy->start_delay * SECOND;
  nc_rate_set (&pace->cap, maximal_rate (policy), now);
  /* A shorter longest pause is meant for the one under way, too. */
  pace->paused_until =
    nc_min64 (pace->paused_until,
              now + pace->policy.max_pause * MILLISECOND);
}

/* Bytes a second of those that we have alone; 0: not known. */
static double
part (const struct nc_pace *pace, enum nc_pace_guest guest)
{
  return pace->alone * (guest == NC_GUEST_WAITS ? PART_WAITS : PART_BUSY);
}

/* Bytes a second that are left to us beside the guest; 0: not known. */
static double
share (const struct nc_pace *pace, enum nc_pace_guest guest)
{
  const double rate = part (pace, guest);

  return rate > 0 && rate < FLOOR && guest == NC_GUEST_BUSY ? FLOOR : rate;
}

/* Beside the guest a step is short, for it is in the way of the guest; but not
 * so short that more would have to be in flight than a server works on.  Where
 * a link is so slow that steps take long for their length, there is no need
 * for longer ones: so the floor does not count. */
static uint64_t
step_beside (const struct nc_pace *pace, enum nc_pace_guest guest,
             uint64_t way)
{
  const double on_the_way = part (pace, guest) * (double) way / SECOND;
  const uint32_t slots = pace->policy.slots;
  const uint32_t in_flight = slots && slots < IN_FLIGHT ? slots : IN_FLIGHT;
  uint64_t bytes = pace->shortest;

  while (bytes < pace->policy.unit && bytes * in_flight < on_the_way)
    bytes *= 2;
  return bytes;
}

/* A rate is held in slices, so a piece should fit in one. */
uint32_t
nc_pace_unit (const struct nc_pace *pace, enum nc_pace_guest guest,
              uint64_t way)
{
  uint64_t unit = pace->policy.unit;

  if (guest != NC_GUEST_IDLE || pace->restrained)
    unit = nc_min64 (unit, step_beside (pace, guest, way));
  if (pace->cap.rate)
    unit = nc_min64 (unit, nc_max64 (4096, pace->cap.rate / 10));
  return (uint32_t) unit;
}

/* At most the rest of a slice. */
static uint64_t
until (uint64_t time, uint64_t now)
{
  return nc_min64 (time - now, NC_RATE_SLICE);
}

/* It went on alone: learn how fast that is. */
static void
note_alone (struct nc_pace *pace, uint64_t count, uint64_t now)
{
  double sample;

  if (pace->last) {
    pace->alone_time += now - pace->last;
    pace->alone_bytes += count;
  }
  pace->last = now;
  if (pace->alone_time < ALONE_TIME)
    return;
  sample = (double) pace->alone_bytes * SECOND / (double) pace->alone_time;
  pace->alone = pace->alone > 0 ? (pace->alone + sample) / 2 : sample;
  pace->alone_time = pace->alone_bytes = 0;
}

/* It went on beside the guest: say when it may again.  What it came late is
 * made good, but no more than one step, or LATE, which may be several at a
 * time. */
static void
note_beside (struct nc_pace *pace, uint64_t count, double rate, uint64_t now)
{
  const double step = (double) count * SECOND / rate;
  const uint64_t time = step < SECOND ? (uint64_t) step : SECOND;
  const uint64_t late = nc_max64 (time, LATE);

  pace->next = nc_max64 (pace->next + late, now) - late + time;
  pace->last = 0;
}

/* Something keeps it: WHY. */
static uint64_t
hold (struct nc_pace *pace, uint64_t wait, enum nc_job_limit limit,
      enum nc_job_limit *why)
{
  pace->last = 0;
  *why = limit;
  return wait;
}

uint64_t
nc_pace_wait (struct nc_pace *pace, uint64_t count, enum nc_pace_guest guest,
              uint64_t now, enum nc_job_limit *why)
{
  const double rate = guest == NC_GUEST_IDLE ? 0 : share (pace, guest);
  uint64_t wait;

  if (now < pace->start)
    return hold (pace, until (pace->start, now), NC_LIMIT_DELAY, why);
  if (now < pace->paused_until)
    return hold (pace, until (pace->paused_until, now), NC_LIMIT_CONTENTION,
                 why);
  if (now < pace->retry_at)
    return hold (pace, until (pace->retry_at, now), NC_LIMIT_ERROR, why);
  pace->restrained = rate > 0;
  if (rate > 0 && now < pace->next)
    return hold (pace, until (pace->next, now), NC_LIMIT_GUEST, why);
  wait = nc_rate_take (&pace->cap, count, now);
  *why = wait ? NC_LIMIT_RATE : rate > 0 ? NC_LIMIT_GUEST : NC_LIMIT_SOURCE;
  if (wait)
    return wait;
  if (rate > 0)
    note_beside (pace, count, rate, now);
  else
    note_alone (pace, count, now);
  return 0;
}

uint64_t
nc_pace_wait_urgent (struct nc_pace *pace, uint64_t count, uint64_t now,
                     enum nc_job_limit *why)
{
  uint64_t wait;

  pace->last = 0;
  pace->restrained = false;
  if (now < pace->retry_at)
    return hold (pace, until (pace->retry_at, now), NC_LIMIT_ERROR, why);
  wait = nc_rate_take (&pace->cap, count, now);
  *why = wait ? NC_LIMIT_RATE : NC_LIMIT_SOURCE;
  return wait;
}

/* Measuring. */

static void
settle (struct nc_pace_measure *m, uint64_t now)
{
  if (m->under_way > 0 && now > m->since)
    m->busy += now - m->since;
  m->since = now;
}

static bool
is_below (const struct nc_pace_measure *m, uint64_t min)
{
  return m->average > 0 && m->average < (double) min;
}

/* A measurement is complete: are others in need? */
static void
judge (struct nc_pace *pace, uint64_t now)
{
  const struct nc_prefetch_policy *p = &pace->policy;

  if (!is_below (&pace->measure[NC_PACE_READ], p->min_read) &&
      !is_below (&pace->measure[NC_PACE_WRITE], p->min_write))
    return;
  pace->measure[NC_PACE_READ].average = 0;
  pace->measure[NC_PACE_WRITE].average = 0;
  if (random_number (pace) % 2)
    return;
  pace->paused_until = now +
    (1 + random_number (pace) % p->max_pause) * MILLISECOND;
  pace->pauses++;
}

void
nc_pace_begin (struct nc_pace *pace, enum nc_pace_op op, uint64_t now)
{
  settle (&pace->measure[op], now);
  pace->measure[op].under_way++;
}

void
nc_pace_end (struct nc_pace *pace, enum nc_pace_op op, uint64_t count,
             uint64_t now)
{
  struct nc_pace_measure *m = &pace->measure[op];
  const double alpha = pace->policy.alpha / 100.0;
  const uint64_t time = op == NC_PACE_READ ? pace->policy.read_time
    : pace->policy.write_time;
  double rate;

  settle (m, now);
  m->under_way--;
  m->bytes += count;
  if (count > 0)
    pace->failures = 0;
  if (pace->restrained || count == 0)
    m->busy = m->bytes = 0;     /* says nothing about others */
  if (m->busy < time * MILLISECOND)
    return;
  rate = (double) m->bytes * SECOND / (double) m->busy;
  m->average = m->average > 0 ? alpha * m->average + (1 - alpha) * rate
    : rate;
  m->busy = m->bytes = 0;
  judge (pace, now);
}

uint64_t
nc_pace_failed (struct nc_pace *pace, uint64_t now)
{
  uint64_t most;

  if (now >= pace->retry_at) {
    most = nc_min64 (RETRY_FIRST << nc_min64 (pace->failures, 20),
                     RETRY_LONGEST);
    pace->failures++;
    pace->retry_at = now + most / 2 + random_number (pace) % (most / 2 + 1);
  }
  return pace->retry_at - now;
}

uint64_t
nc_pace_measured (const struct nc_pace *pace, enum nc_pace_op op)
{
  return (uint64_t) pace->measure[op].average;
}
