/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One process-wide sink for messages, so that the library needs to know
 * neither nbdkit nor the terminal. */

#include <config.h>

#include "report.h"

#include <errno.h>
#include <stdio.h>

static void
to_stderr (enum nc_report_level level, const char *fmt, va_list args)
{
  if (level != NC_REPORT_ERROR)
    return;
  flockfile (stderr);
  fputs ("nbdchain: ", stderr);
  vfprintf (stderr, fmt, args);
  fputc ('\n', stderr);
  funlockfile (stderr);
}

static nc_report_sink sink = to_stderr;

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
  sink (NC_REPORT_ERROR, fmt, args);
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
