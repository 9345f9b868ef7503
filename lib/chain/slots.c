/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Slots: a count under a mutex.  That is cheap beside a round trip, and nothing
 * else is done with the mutex held. */

#include <config.h>

#include "chain/slots.h"

#include <errno.h>
#include <time.h>

#include "util/clock.h"
#include "util/scope.h"

void
nc_slots_init (struct nc_slots *slots, unsigned max)
{
  pthread_condattr_t attr;

  *slots = (struct nc_slots) { .max = max };
  pthread_mutex_init (&slots->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&slots->changed, &attr);
  pthread_condattr_destroy (&attr);
}

void
nc_slots_fini (struct nc_slots *slots)
{
  pthread_cond_destroy (&slots->changed);
  pthread_mutex_destroy (&slots->lock);
}

/* Wait for a change.  Returns false if the remote has been silent for too long.
 */
static bool
wait_for_slot_locked (struct nc_slots *slots)
{
  const uint64_t until = slots->silent_since + NC_SLOT_PATIENCE;
  const struct timespec deadline = {
    .tv_sec = until / NC_SECOND, .tv_nsec = until % NC_SECOND,
  };

  if (slots->is_unreachable || nc_now () >= until)
    return false;
  pthread_cond_timedwait (&slots->changed, &slots->lock, &deadline);
  return true;
}

struct nc_slots *
nc_slots_take (struct nc_slots *slots)
{
  if (slots->max == 0)
    return slots;
  NC_LOCKED (&slots->lock);
  while (slots->taken == slots->max)
    if (!wait_for_slot_locked (slots)) {
      errno = EBUSY;
      return NULL;
    }
  if (slots->taken++ == 0)
    slots->silent_since = nc_now ();
  return slots;
}

void
nc_slots_answered (struct nc_slots *slots)
{
  if (slots->max == 0)
    return;
  NC_LOCKED (&slots->lock);
  slots->silent_since = nc_now ();
  slots->is_unreachable = false;
}

void
nc_slots_unreachable (struct nc_slots *slots)
{
  if (slots->max == 0)
    return;
  NC_LOCKED (&slots->lock);
  slots->is_unreachable = true;
  pthread_cond_broadcast (&slots->changed);
}

void
nc_slots_give (struct nc_slots *slots)
{
  if (slots == NULL || slots->max == 0)
    return;
  NC_LOCKED (&slots->lock);
  slots->taken--;
  pthread_cond_signal (&slots->changed);
}
