/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Counters that are only ever added to: so no order between them matters. */

#include <config.h>

#include "chain/activity.h"

#include <stdatomic.h>

/* Threads take counters in turn. */
static _Atomic (unsigned) next_counter;
static _Thread_local unsigned my_counter;       /* + 1; 0: none yet */

void
nc_guest_note (struct nc_guest *guest)
{
  if (my_counter == 0)
    my_counter = 1 + next_counter++ % NC_GUEST_COUNTERS;
  atomic_fetch_add_explicit (&guest->counter[my_counter - 1].requests, 1,
                             memory_order_relaxed);
}

bool
nc_guest_is_busy (struct nc_guest *guest, struct nc_guest_look *look,
                  uint64_t now)
{
  uint64_t requests = 0;

  for (unsigned i = 0; i < NC_GUEST_COUNTERS; ++i)
    requests += atomic_load_explicit (&guest->counter[i].requests,
                                      memory_order_relaxed);
  if (requests != look->requests)
    look->busy_until = now + NC_GUEST_HOLD;
  look->requests = requests;
  return now < look->busy_until;
}
