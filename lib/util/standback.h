/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Standing back: what nobody waits for is done so that it is least in the way
 * of a guest who comes first.
 *
 * A thread says so before it asks for something.  Whoever has a choice looks:
 * a remote then uses one connection instead of the one with the least to do,
 * for each thread that receives keeps a processor from the guest.
 *
 * All threads that stand back keep to one processor, as long as they do: on a
 * small machine they would else be on each, wherever the guest's next request
 * wakes somebody.  Which one follows the scheduler: from time to time one of
 * them goes where it is put, and the others come after, so that they do not
 * stay where somebody else is at work.
 *
 * And from the first time on a thread goes behind others when processors are
 * short; an ordinary user cannot take that back.  It goes on getting a tenth
 * of what another one gets, so who waits for a lock that it holds is not
 * forgotten.
 */
#ifndef NC_STANDBACK_H
#define NC_STANDBACK_H

#include <stdbool.h>

/* Whether what the calling thread asks for from now on comes behind.  To be
 * called each time, also if nothing changes; at most the thread moves.  Threads
 * and processes that are made meanwhile inherit it. */
extern void nc_stand_back (bool on);

/* What the calling thread has said. */
extern bool nc_stands_back (void);

#endif /* NC_STANDBACK_H */
