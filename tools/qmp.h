/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A client of a server's control socket. */
#ifndef NBDCHAIN_QMP_H
#define NBDCHAIN_QMP_H

#include <jansson.h>

struct qmp;

/* Connect to the control socket PATH and negotiate.  Returns NULL, reported.
 */
extern struct qmp *qmp_open (const char *path) __attribute__ ((__nonnull__ (1)));

/* Run COMMAND with ARGUMENTS (taken over; NULL: none).  Events that come
 * meanwhile are dropped.  Returns what it returned, a new reference; or
 * NULL, reported in the server's words. */
extern json_t *qmp_execute (struct qmp *qmp, const char *command,
                            json_t *arguments)
  __attribute__ ((__nonnull__ (1, 2)));

/* Hang up.  NULL is allowed. */
extern void qmp_close (struct qmp *qmp);

#endif /* NBDCHAIN_QMP_H */
