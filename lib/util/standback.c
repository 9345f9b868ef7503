/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* On Linux each thread has a nice value and a set of processors of its own.
 *
 * One that has not stood back until now is where the scheduler put it.  One
 * that has is let go for a turn, in which it sleeps and is woken, where there
 * is room. */

#include <config.h>

#include "util/standback.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/report.h"

#define BEHIND 10               /* added to the nice value */
#define PERIOD NC_SECOND        /* from one choice of a processor to the next */

/* Of all threads that stand back. */
static _Atomic (int) processor = -1;
static _Atomic (uint64_t) chosen;       /* when */

static _Thread_local struct {
  bool stands_back, is_behind;
  bool is_kept;                 /* on PROCESSOR, and else it may be on: */
  int processor;
  cpu_set_t all;
  bool is_scout;                /* it is let go, to see where it is put */
} self;

static void
go_behind (void)
{
  if (self.is_behind)
    return;
  self.is_behind = true;
  errno = 0;
  if (nice (BEHIND) == -1 && errno)
    nc_debug ("nice: %m");
}

/* Whether the thread is where we put it, and not where an operator did. */
static bool
is_where_put (void)
{
  cpu_set_t set;

  return self.is_kept && sched_getaffinity (0, sizeof set, &set) == 0 &&
    CPU_COUNT (&set) == 1 && CPU_ISSET (self.processor, &set);
}

static void
let_go (void)
{
  if (is_where_put () &&
      sched_setaffinity (0, sizeof self.all, &self.all) == -1)
    nc_debug ("sched_setaffinity: %m");
  else
    self.is_kept = false;
}

static void
keep_to (int cpu)
{
  cpu_set_t set;

  if (cpu == -1 || (self.is_kept && self.processor == cpu))
    return;
  if (self.is_kept && !is_where_put ())
    self.is_kept = false;
  if (!self.is_kept &&
      sched_getaffinity (0, sizeof self.all, &self.all) == -1)
    return;                     /* more processors than a set has room for */
  if (!CPU_ISSET (cpu, &self.all))
    return;
  CPU_ZERO (&set);
  CPU_SET (cpu, &set);
  if (sched_setaffinity (0, sizeof set, &set) == -1)
    return;                     /* not allowed, or not ours any more */
  self.is_kept = true;
  self.processor = cpu;
}

static bool
is_time_to_choose (void)
{
  uint64_t last = chosen;
  const uint64_t now = nc_now ();       /* not before LAST */

  return now - last >= PERIOD &&
    atomic_compare_exchange_strong (&chosen, &last, now);
}

/* Where the others are, unless it is the turn of this one to lead. */
static void
gather (void)
{
  if (!self.is_scout && is_time_to_choose ()) {
    self.is_scout = true;
    if (self.is_kept) {
      let_go ();
      return;
    }
  }
  if (self.is_scout) {
    self.is_scout = false;
    processor = sched_getcpu ();
  }
  keep_to (processor);
}

void
nc_stand_back (bool on)
{
  self.stands_back = on;
  if (on) {
    go_behind ();
    gather ();
  }
  else
    let_go ();
}

bool
nc_stands_back (void)
{
  return self.stands_back;
}
