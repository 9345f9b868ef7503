/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A client of a server's control socket. */
#ifndef NBDCHAIN_QMP_H
#define NBDCHAIN_QMP_H

#include <stdbool.h>

#include <jansson.h>

struct qmp;

/* Connect to the control socket PATH and negotiate.  Returns NULL, reported.
 */
extern struct qmp *qmp_open (const char *path) __attribute__ ((__nonnull__ (1)));

/* Call FN with each event that comes while a command runs; without it they
 * are dropped. */
typedef void (*qmp_event_fn) (void *opaque, const char *name, json_t *data);
extern void qmp_on_event (struct qmp *qmp, qmp_event_fn fn, void *opaque)
  __attribute__ ((__nonnull__ (1, 2)));

/* Run COMMAND with ARGUMENTS (taken over; NULL: none).  Returns what it
 * returned, a new reference; or NULL, reported in the server's words. */
extern json_t *qmp_execute (struct qmp *qmp, const char *command,
                            json_t *arguments)
  __attribute__ ((__nonnull__ (1, 2)));

/* From now on the end of the connection is not reported: qmp_execute just
 * returns NULL. */
extern void qmp_expect_loss (struct qmp *qmp) __attribute__ ((__nonnull__ (1)));

/* Whether the connection has ended. */
extern bool qmp_is_lost (const struct qmp *qmp)
  __attribute__ ((__nonnull__ (1)));

/* Connect again, and go on trying for SECONDS.  Returns -1, not reported, if
 * no server has answered. */
extern int qmp_reconnect (struct qmp *qmp, unsigned seconds)
  __attribute__ ((__nonnull__ (1)));

/* Hang up.  NULL is allowed. */
extern void qmp_close (struct qmp *qmp);

#endif /* NBDCHAIN_QMP_H */
