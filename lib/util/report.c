/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One process-wide sink for messages, so that the library needs to know
 * neither nbdkit nor the terminal; and what keeps it from being flooded. */

#include <config.h>

#include "util/report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

static void
to_stderr (enum nc_report_level level, const char *fmt, va_list args)
{
  if (level == NC_REPORT_DEBUG)
    return;
  flockfile (stderr);
  fputs ("nbdchain: ", stderr);
  vfprintf (stderr, fmt, args);
  fputc ('\n', stderr);
  funlockfile (stderr);
}

static nc_report_sink sink = to_stderr;
static _Thread_local char last_error[NC_ERROR_TEXT];

void
nc_report_to (nc_report_sink s)
{
  sink = s ? s : to_stderr;
}

void
nc_error (const char *fmt, ...)
{
  int err = errno;
  va_list args;

  va_start (args, fmt);
  vsnprintf (last_error, sizeof last_error, fmt, args);
  va_end (args);
  errno = err;
  va_start (args, fmt);
  sink (NC_REPORT_ERROR, fmt, args);
  va_end (args);
  errno = err;
}

void
nc_error_untold (const char *fmt, ...)
{
  int err = errno;
  va_list args;

  va_start (args, fmt);
  vsnprintf (last_error, sizeof last_error, fmt, args);
  va_end (args);
  errno = err;
}

const char *
nc_error_text (void)
{
  return last_error;
}

void
nc_error_forget (void)
{
  last_error[0] = '\0';
}

void
nc_notice (const char *fmt, ...)
{
  int err = errno;
  va_list args;

  va_start (args, fmt);
  sink (NC_REPORT_NOTICE, fmt, args);
  va_end (args);
  errno = err;
}

void
nc_debug (const char *fmt, ...)
{
  int err = errno;
  va_list args;

  va_start (args, fmt);
  sink (NC_REPORT_DEBUG, fmt, args);
  va_end (args);
  errno = err;
}

/* Whether nobody has told CAUSE of late, nor too many others; then it counts
 * as told at T, in seconds. */
static bool
begin_to_tell (struct nc_repeat *repeat, unsigned cause, uint64_t t)
{
  uint64_t *found = NULL, last[NC_REPEAT_CAUSES];
  unsigned i;

  for (i = 0; i < NC_REPEAT_CAUSES; ++i) {
    last[i] = repeat->last[i];
    if ((last[i] >> 16) + NC_REPEAT_SECONDS <= t)
      found = &last[i];
    else if ((last[i] & 0xffff) == cause)
      return false;
  }
  return found &&
    atomic_compare_exchange_strong (&repeat->last[found - last], found,
                                    t << 16 | cause);
}

bool
nc_repeat_report (struct nc_repeat *repeat, unsigned cause,
                  char text[NC_REPEAT_TEXT])
{
  const int err = errno;
  uint64_t untold, t;
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  t = (uint64_t) now.tv_sec + NC_REPEAT_SECONDS; /* never 0 */
  if (!begin_to_tell (repeat, cause, t)) {
    repeat->untold++;
    errno = err;
    return false;
  }
  untold = atomic_exchange (&repeat->untold, 0);
  text[0] = '\0';
  if (untold > 0)
    snprintf (text, NC_REPEAT_TEXT, " (and %" PRIu64 " times since it was "
              "told)", untold);
  errno = err;
  return true;
}
