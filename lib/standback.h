/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Standing back: what nobody waits for is done so that it is least in the way
 * of a guest who comes first.
 *
 * A thread says so before it asks for something.  Whoever has a choice looks:
 * a remote then uses one connection instead of the one with the least to do,
 * for each thread that receives keeps a processor from the guest.  And from
 * the first time on the thread goes behind others when processors are short;
 * an ordinary user cannot take that back.  It goes on getting a tenth of what
 * another one gets, so who waits for a lock that it holds is not forgotten.
 */
#ifndef NC_STANDBACK_H
#define NC_STANDBACK_H

#include <stdbool.h>

/* Whether what the calling thread asks for from now on comes behind. */
extern void nc_stand_back (bool on);

/* What the calling thread has said. */
extern bool nc_stands_back (void);

#endif /* NC_STANDBACK_H */
