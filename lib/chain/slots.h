/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Slots: how many threads of a connection may be blocked on a remote at a time.
 *
 * Every call that may block a client's thread until a remote answers, or is
 * connected again, or until another thread's read of it ends, holds a slot
 * meanwhile.  There are fewer slots than the connection has threads, so one
 * is left to serve local data while a remote is unreachable or hangs.  Calls
 * that need no remote never come here.
 *
 * A thread that finds no free slot fails at once if the remote is known to be
 * unreachable, or has answered nothing on this connection for NC_SLOT_PATIENCE.
 * Else the client has more requests in flight than there are slots, and none of
 * them has to fail: the thread waits for a slot, until that time is over.
 */
#ifndef NC_SLOTS_H
#define NC_SLOTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define NC_SLOT_PATIENCE (2 * NC_SECOND)

struct nc_slots {
  unsigned max;                 /* 0: no limit, and the rest is not used */

  pthread_mutex_t lock;         /* guards the rest; not held while blocked */
  pthread_cond_t changed;       /* a slot is free, or is_unreachable */
  unsigned taken;
  uint64_t silent_since;        /* when the remote last answered, or the first
                                   slot was taken after that */
  bool is_unreachable;          /* and has not answered since */
};

extern void nc_slots_init (struct nc_slots *slots, unsigned max)
  __attribute__ ((__nonnull__ (1)));
extern void nc_slots_fini (struct nc_slots *slots)
  __attribute__ ((__nonnull__ (1)));

/* Take a slot, before blocking.  Returns SLOTS; or NULL with errno EBUSY, not
 * reported.  Blocks for NC_SLOT_PATIENCE at most. */
extern struct nc_slots *nc_slots_take (struct nc_slots *slots)
  __attribute__ ((__nonnull__ (1)));

/* The remote has answered the caller, who has a slot. */
extern void nc_slots_answered (struct nc_slots *slots)
  __attribute__ ((__nonnull__ (1)));

/* The remote is unreachable: until it answers nobody waits for a slot. */
extern void nc_slots_unreachable (struct nc_slots *slots)
  __attribute__ ((__nonnull__ (1)));

/* Give a slot back; errno stays as it is.  NULL is allowed. */
extern void nc_slots_give (struct nc_slots *slots);

static inline void
nc_scope_give_slot (struct nc_slots **slots)
{
  nc_slots_give (*slots);
}

/* NC_SLOT slot = nc_slots_take (slots);   given back when it leaves the scope */
#define NC_SLOT __attribute__ ((__cleanup__ (nc_scope_give_slot))) \
  struct nc_slots *

#endif /* NC_SLOTS_H */
