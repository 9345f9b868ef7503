/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Whether the guest is at work, for jobs that stand back then.
 *
 * Who serves requests counts each of them, which costs one addition to a
 * counter that few threads share.  Who wants to know looks from time to time.
 */
#ifndef NC_GUEST_H
#define NC_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#define NC_GUEST_COUNTERS 16
/* It is at work for so long after a request was seen. */
#define NC_GUEST_HOLD UINT64_C (20000000)       /* nanoseconds */

/* All zeros to begin with. */
struct nc_guest {
  struct {
    _Atomic (uint64_t) requests;
  } __attribute__ ((__aligned__ (64))) counter[NC_GUEST_COUNTERS];
};

/* What one who looks remembers; all zeros to begin with, and guarded by him.
 */
struct nc_guest_look {
  uint64_t requests;            /* so many had been counted */
  uint64_t busy_until;
};

/* The guest begins a request. */
extern void nc_guest_note (struct nc_guest *guest)
  __attribute__ ((__nonnull__ (1)));

/* Whether it is at work at NOW, nanoseconds of a clock of the caller. */
extern bool nc_guest_is_busy (struct nc_guest *guest,
                              struct nc_guest_look *look, uint64_t now)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_GUEST_H */
