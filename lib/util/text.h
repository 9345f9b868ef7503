/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Text from images, peers and users, on its way to a terminal or a log: what
 * of it can be shown as it is. */
#ifndef NC_TEXT_H
#define NC_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

/* The length of the character at TEXT, which is not at its end.
 * *printable: it shows as itself.  What would act on a terminal, end or
 * reorder a line, or is no UTF-8 does not; each of its bytes is to be shown
 * as \xNN. */
extern size_t nc_text_next (const char *text, bool *printable)
  __attribute__ ((__nonnull__ (1, 2)));

/* TEXT with quotes around it, and with all that is odd in it escaped.
 * Allocated; NULL with errno ENOMEM, not reported. */
extern char *nc_text_quote (const char *text)
  __attribute__ ((__nonnull__ (1)));

/* The text of a message, with all of it that is not printable as \xNN.
 * Allocated; NULL with errno ENOMEM, not reported.  %m is the errno of the
 * call. */
extern char *nc_text_format (const char *fmt, va_list args)
  __attribute__ ((__format__ (printf, 1, 0), __nonnull__ (1)));

#endif /* NC_TEXT_H */
