/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of standing back: where threads that do so run, and how. */

#include <config.h>

#include "util/standback.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tap.h"
#include "util/clock.h"

#define PATIENCE (60 * NC_SECOND)

static cpu_set_t
processors (void)
{
  cpu_set_t set;

  must (sched_getaffinity (0, sizeof set, &set) == 0, "affinity");
  return set;
}

static int
nice_value (void)
{
  return getpriority (PRIO_PROCESS, gettid ());
}

/* A processor of ALL to which this thread is not kept. */
static cpu_set_t
another_of (const cpu_set_t *all)
{
  const cpu_set_t here = processors ();
  const bool is_kept = CPU_COUNT (&here) < CPU_COUNT (all);
  cpu_set_t set;
  int cpu = 0;

  while (!CPU_ISSET (cpu, all) || (is_kept && CPU_ISSET (cpu, &here)))
    ++cpu;
  CPU_ZERO (&set);
  CPU_SET (cpu, &set);
  return set;
}

/* Another thread that stands back: where it is before, and may be, and where
 * that puts it. */
struct other {
  cpu_set_t before, all, then;
};

static void *
stand_back_too (void *opaque)
{
  struct other *other = opaque;

  must (sched_setaffinity (0, sizeof other->before, &other->before) == 0 &&
        sched_setaffinity (0, sizeof other->all, &other->all) == 0,
        "affinity");
  nc_stand_back (true);
  other->then = processors ();
  return NULL;
}

static cpu_set_t
processors_of_other (const cpu_set_t *all)
{
  struct other other = { .before = another_of (all), .all = *all };
  pthread_t thread;

  must (pthread_create (&thread, NULL, stand_back_too, &other) == 0,
        "thread");
  pthread_join (thread, NULL);
  return other.then;
}

/* Whether they come together.  Of TRIES that take too little time for another
 * choice in between all should, though the other begins elsewhere. */
#define TRIES 100
static bool
come_together (const cpu_set_t *all)
{
  const uint64_t end = nc_now () + PATIENCE;
  unsigned tries = 0, together = 0;

  while (tries < TRIES && nc_now () < end) {
    const uint64_t begin = nc_now ();
    cpu_set_t mine, theirs;

    nc_stand_back (true);
    mine = processors ();
    theirs = processors_of_other (all);
    if (nc_now () - begin > NC_SECOND / 100)
      continue;
    tries++;
    together += CPU_COUNT (&mine) == 1 && CPU_EQUAL (&mine, &theirs);
  }
  return together >= TRIES * 8 / 10 ||
    note ("%u of %u", together, tries);
}

/* Whether this thread is let go at some time, and kept again the next. */
static bool
is_let_go (const cpu_set_t *all)
{
  const uint64_t end = nc_now () + PATIENCE;
  cpu_set_t set;

  do {
    sched_yield ();
    nc_stand_back (true);
    set = processors ();
  } while (!CPU_EQUAL (&set, all) && nc_now () < end);
  if (!CPU_EQUAL (&set, all))
    return false;
  nc_stand_back (true);
  set = processors ();
  return CPU_COUNT (&set) == 1;
}

/* Some sandboxes do not let anybody move. */
static bool
may_move (const cpu_set_t *all)
{
  cpu_set_t set;

  CPU_ZERO (&set);
  CPU_SET (sched_getcpu (), &set);
  return sched_setaffinity (0, sizeof set, &set) == 0 &&
    sched_setaffinity (0, sizeof *all, all) == 0;
}

static void
test_processors (const cpu_set_t *all)
{
  cpu_set_t set, now;

  ok (come_together (all) && nc_stands_back (),
      "threads that stand back are on one processor");
  ok (CPU_COUNT (all) == 1 || is_let_go (all),
      "from time to time one is let go");
  nc_stand_back (false);
  set = processors ();
  ok (!nc_stands_back () && CPU_EQUAL (&set, all),
      "afterwards they may be anywhere again");
  while (nc_stand_back (true), set = processors (),
         CPU_COUNT (&set) != 1)         /* it is its turn to be let go */
    ;
  set = another_of (all);
  must (sched_setaffinity (0, sizeof set, &set) == 0, "affinity");
  nc_stand_back (false);
  now = processors ();
  ok (CPU_EQUAL (&now, &set), "where an operator puts one, it stays");
}

int
main (void)
{
  const cpu_set_t all = processors ();
  const bool moves = may_move (&all);
  const int nice_before = nice_value ();
  cpu_set_t set;

  tap_start (180);
  nc_stand_back (false);
  set = processors ();
  ok (!nc_stands_back () && CPU_EQUAL (&set, &all) &&
      nice_value () == nice_before, "who does not stand back stays as it is");
  nc_stand_back (true);
  nc_stand_back (true);
  ok (nice_value () == (nice_before > 9 ? 19 : nice_before + 10),
      "who does goes behind others, once");
  if (moves)
    test_processors (&all);
  return tap_done ();
}
