/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A job of a server, watched until it has ended.
 *
 *   struct watch w = { .qmp = qmp, .socket = path, .id = "disk",
 *                      .type = "stream" };
 *   watch_begin (&w);
 *   ... start the job, if it does not run yet
 *   if (watch_job (&w, progress_style (wanted, json)) == 0) ...
 */
#ifndef NBDCHAIN_WATCH_H
#define NBDCHAIN_WATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "job/job.h"
#include "progress.h"
#include "qmp.h"
#include "stream.h"

struct watch {
  struct qmp *qmp;
  const char *socket;           /* what the operator calls the server */
  const char *id, *type;        /* of the job */

  struct stream_result result;  /* once it has ended well */

  /* Private. */
  struct progress *progress;
  bool is_paused;               /* as it was seen last */
  bool server_ends;             /* it has said so */
  bool was_away;                /* the server was, for a while */
  bool has_ended, was_cancelled;
  char error[NC_JOB_TEXT];      /* "": it did not fail */
};

/* Listen for the end of the job.  W and its strings must stay as long as
 * there is w->qmp. */
extern void watch_begin (struct watch *w) __attribute__ ((__nonnull__ (1)));

/* Show how far the job is until it has ended, also across restarts of the
 * server.  Returns 0 if it did what it was for; or -1, reported. */
extern int watch_job (struct watch *w, enum progress_style style)
  __attribute__ ((__nonnull__ (1)));

#endif /* NBDCHAIN_WATCH_H */
