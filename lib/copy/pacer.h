/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* When prefetching may go on: the policy of FVD, as numbers and a clock that
 * is passed in (nanoseconds that never go back).
 *
 *   wait = nc_pace_wait (pace, count, guest, now, &why);
 *   if (wait == 0)
 *     nc_pace_begin, read, nc_pace_end; the same for writing
 *   if that failed
 *     wait nc_pace_failed
 *
 * It stays below the maximal rates.  The rates of reading and of writing are
 * measured while something is being read, or written, as moving averages; one
 * that is below its minimum means that others are in need, and then, every
 * other time, it pauses for a random time, so that many on one source do not
 * pulse together.  While the guest is at work it takes a part of the rate
 * that it has alone, in steps that are as short as the way allows.  No lock
 * and no I/O of its own.
 */
#ifndef NC_PACE_H
#define NC_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "copy/rate.h"
#include "image/image.h"
#include "job/job.h"

/* Where the policy has 0. */
#define NC_PACE_MAX_PAUSE 30000         /* milliseconds */
#define NC_PACE_MEASURE_TIME 100        /* milliseconds */
#define NC_PACE_ALPHA 80                /* percent */
#define NC_PACE_UNIT (UINT32_C (512) << 10)

enum nc_pace_op { NC_PACE_READ, NC_PACE_WRITE };

enum nc_pace_guest {
  NC_GUEST_IDLE,
  NC_GUEST_BUSY,                /* it reads what is local, or writes */
  NC_GUEST_WAITS,               /* for the same source as we */
};

struct nc_pace_measure {
  unsigned under_way;
  uint64_t since;               /* busy is up to date as of then */
  uint64_t busy, bytes;         /* of this measurement */
  double average;               /* bytes a second; 0: not known */
};

struct nc_pace {
  struct nc_prefetch_policy policy;
  struct nc_pace_measure measure[2];    /* by nc_pace_op */
  struct nc_rate cap;
  uint64_t start;               /* not before */
  uint64_t paused_until, retry_at;
  unsigned pauses;              /* because of a low rate, so far */
  unsigned failures;            /* one after the other */
  uint64_t next;                /* not before, while the guest is at work */
  uint32_t shortest;            /* bytes at a time then, at least */
  bool restrained;              /* it was, when it last went on */
  uint64_t last;                /* when it last went on alone; 0: never, or
                                   something came in between */
  uint64_t alone_time, alone_bytes;
  double alone;                 /* bytes a second alone; 0: not known */
  uint64_t random;
};

/* Begin at NOW.  SHORTEST: how many bytes to read at a time while the guest is
 * at work, at least, unless the policy says less.  SEED makes the pauses
 * different from those of others. */
extern void nc_pace_init (struct nc_pace *pace,
                          const struct nc_prefetch_policy *policy,
                          uint32_t shortest, uint64_t seed, uint64_t now)
  __attribute__ ((__nonnull__ (1, 2)));

/* Another policy from now on; of the start delay, what is left counts. */
extern void nc_pace_set (struct nc_pace *pace,
                         const struct nc_prefetch_policy *policy,
                         uint64_t now)
  __attribute__ ((__nonnull__ (1, 2)));

/* How many bytes to read at a time, where that takes WAY nanoseconds at
 * least. */
extern uint32_t nc_pace_unit (const struct nc_pace *pace,
                              enum nc_pace_guest guest, uint64_t way)
  __attribute__ ((__nonnull__ (1)));

/* Whether COUNT bytes may be read, and then written, now.  Returns 0: yes,
 * and they are charged; else how many nanoseconds, at most NC_RATE_SLICE, to
 * wait before asking again, and *WHY. */
extern uint64_t nc_pace_wait (struct nc_pace *pace, uint64_t count,
                              enum nc_pace_guest guest, uint64_t now,
                              enum nc_job_limit *why)
  __attribute__ ((__nonnull__ (1, 5)));

/* The same for what the guest is known to need soon: only the maximal rate,
 * and what failed, count. */
extern uint64_t nc_pace_wait_urgent (struct nc_pace *pace, uint64_t count,
                                     uint64_t now, enum nc_job_limit *why)
  __attribute__ ((__nonnull__ (1, 4)));

/* An operation begins; it has ended, with COUNT bytes, 0 if it failed. */
extern void nc_pace_begin (struct nc_pace *pace, enum nc_pace_op op,
                           uint64_t now)
  __attribute__ ((__nonnull__ (1)));
extern void nc_pace_end (struct nc_pace *pace, enum nc_pace_op op,
                         uint64_t count, uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* Something failed: how many nanoseconds to wait before it is tried again.
 * They become more from time to time, up to 30 s. */
extern uint64_t nc_pace_failed (struct nc_pace *pace, uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* The average of the measurements, bytes a second; 0: not known yet. */
extern uint64_t nc_pace_measured (const struct nc_pace *pace,
                                  enum nc_pace_op op)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_PACE_H */
