/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Errors and debug messages of the library.
 *
 * Whoever learns the cause of a failure reports it here, once; callers
 * return -1 and add nothing.  The host (plugin or tool) installs a sink;
 * without one messages go to stderr.
 */
#ifndef NC_REPORT_H
#define NC_REPORT_H

#include <stdarg.h>

enum nc_report_level {
  NC_REPORT_ERROR,              /* what a user must know */
  NC_REPORT_DEBUG,              /* events: open, pivot, mode change */
};

typedef void (*nc_report_sink) (enum nc_report_level level,
                                const char *fmt, va_list args)
  __attribute__ ((__format__ (printf, 2, 0)));

/* Install SINK for the whole process; NULL restores stderr (errors only).
 * Call it before any thread is started. */
extern void nc_report_to (nc_report_sink sink);

/* Report an error or an event.  Both keep errno, expand %m, and may be
 * called from any thread. */
extern void nc_error (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2)));
extern void nc_debug (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2)));

#endif /* NC_REPORT_H */
