/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Errors, notices and debug messages of the library.
 *
 * Whoever learns the cause of a failure reports it here, once; callers
 * return -1 and add nothing.  The host (plugin or tool) installs a sink;
 * without one messages go to stderr.
 */
#ifndef NC_REPORT_H
#define NC_REPORT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

enum nc_report_level {
  NC_REPORT_ERROR,              /* what failed */
  NC_REPORT_NOTICE,             /* what a user must know and is no failure */
  NC_REPORT_DEBUG,              /* events: open, pivot, mode change */
};

typedef void (*nc_report_sink) (enum nc_report_level level,
                                const char *fmt, va_list args)
  __attribute__ ((__format__ (printf, 2, 0)));

/* Install SINK for the whole process; NULL restores stderr (no debug
 * messages).
 * Call it before any thread is started. */
extern void nc_report_to (nc_report_sink sink);

/* Report an error, a notice or an event.  All keep errno, expand %m, and may
 * be called from any thread. */
extern void nc_error (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2)));
extern void nc_notice (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2)));
extern void nc_debug (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2)));

/* An error that is reported once for many requests, and not for this one:
 * nc_error_text alone has it. */
extern void nc_error_untold (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2)));

/* The last error of the calling thread, cut at NC_ERROR_TEXT; "" if there is
 * none, or nc_error_forget was called since.  For who is told of a failure
 * elsewhere, too, such as the operator of a job.  Valid until the thread's
 * next error. */
#define NC_ERROR_TEXT 512
extern const char *nc_error_text (void);
extern void nc_error_forget (void);

/* For a failure that each of many requests may meet, such as a full disk:
 * one message at once, and then one each NC_REPEAT_SECONDS.  All zeros to
 * begin with. */
#define NC_REPEAT_SECONDS 10
#define NC_REPEAT_CAUSES 4      /* known at a time */
struct nc_repeat {
  _Atomic (uint64_t) last[NC_REPEAT_CAUSES]; /* what was reported, and when */
  _Atomic (uint64_t) untold;    /* how often it was not */
};

#define NC_REPEAT_TEXT 64
/* Whether the failure is to be reported now.  CAUSE, a number below 2^16,
 * tells failures apart: another one is reported at once, up to NC_REPEAT_CAUSES
 * in that time; they may come in any order.  TEXT, for the end of the message,
 * becomes how often any was not reported before; empty if never.  Keeps
 * errno. */
extern bool nc_repeat_report (struct nc_repeat *repeat, unsigned cause,
                              char text[NC_REPEAT_TEXT])
  __attribute__ ((__nonnull__ (1, 3)));

#endif /* NC_REPORT_H */
