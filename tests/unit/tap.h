/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What the unit tests share: TAP on stdout, random numbers from a seed that
 * is printed, and the errors that the library reported.
 *
 * NBDCHAIN_SEED=N in the environment runs a test again with the seed that it
 * printed.
 */
#ifndef TAP_H
#define TAP_H

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "util/report.h"
#include "util/scope.h"

static unsigned tap_tests, tap_failed;

/* Errors reported since tap_clear, and the text of the last one. */
static _Atomic (unsigned) tap_errors;
static pthread_mutex_t tap_lock = PTHREAD_MUTEX_INITIALIZER;
static char tap_error[4096];    /* guarded by tap_lock */

__attribute__ ((__format__ (printf, 2, 3)))
static inline bool
ok (bool good, const char *fmt, ...)
{
  int err = errno;
  va_list args;

  printf ("%sok %u - ", good ? "" : "not ", ++tap_tests);
  va_start (args, fmt);
  vprintf (fmt, args);
  va_end (args);
  printf ("\n");
  if (!good) {
    NC_LOCKED (&tap_lock);
    tap_failed++;
    printf ("# errno %d (%s), %u errors reported, the last: %s\n",
            err, strerror (err), tap_errors, tap_error);
  }
  fflush (stdout);
  return good;
}

/* Something worth knowing when the test fails; returns false, so that a
 * check may end in "|| note (...)". */
__attribute__ ((__format__ (printf, 1, 2)))
static inline bool
note (const char *fmt, ...)
{
  va_list args;

  printf ("# ");
  va_start (args, fmt);
  vprintf (fmt, args);
  va_end (args);
  printf ("\n");
  fflush (stdout);
  return false;
}

/* For what the test itself needs. */
static inline void
must (bool good, const char *what)
{
  if (!good) {
    printf ("Bail out! %s: %s\n", what, strerror (errno));
    exit (1);
  }
}

static inline int
tap_done (void)
{
  printf ("1..%u\n", tap_tests);
  return tap_failed != 0;
}

__attribute__ ((__format__ (printf, 2, 0)))
static inline void
tap_sink (enum nc_report_level level, const char *fmt, va_list args)
{
  if (level != NC_REPORT_ERROR)
    return;
  NC_LOCKED (&tap_lock);
  vsnprintf (tap_error, sizeof tap_error, fmt, args);
  tap_errors++;
}

static inline void
tap_clear (void)
{
  NC_LOCKED (&tap_lock);
  tap_error[0] = '\0';
  tap_errors = 0;
  errno = 0;
}

/* The seed of this run.  A test that hangs dies by SIGALRM. */
static inline uint64_t
tap_start (unsigned seconds)
{
  const char *text = getenv ("NBDCHAIN_SEED");
  struct timespec now;
  uint64_t seed;

  clock_gettime (CLOCK_REALTIME, &now);
  seed = text ? strtoull (text, NULL, 0)
    : (uint64_t) now.tv_sec * 1000000007 + (uint64_t) now.tv_nsec;
  printf ("# seed %llu\n", (unsigned long long) seed);
  fflush (stdout);
  alarm (seconds);
  nc_report_to (tap_sink);
  return seed;
}

/* Random numbers (splitmix64). */
static inline uint64_t
rnd (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* One of 0 ... n-1. */
static inline uint64_t
rnd_below (uint64_t *state, uint64_t n)
{
  return rnd (state) % n;
}

#endif /* TAP_H */
