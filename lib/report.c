/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One process-wide sink for messages, so that the library needs to know
 * neither nbdkit nor the terminal; and what keeps it from being flooded. */

#include <config.h>

#include "report.h"

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

bool
nc_repeat_report (struct nc_repeat *repeat, unsigned cause,
                  char text[NC_REPEAT_TEXT])
{
  const int err = errno;
  uint64_t last = repeat->last, untold, t;
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  t = (uint64_t) now.tv_sec + NC_REPEAT_SECONDS; /* never 0 */
  if (((last & 0xffff) == cause && t - (last >> 16) < NC_REPEAT_SECONDS) ||
      !atomic_compare_exchange_strong (&repeat->last, &last,
                                       t << 16 | cause)) {
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
