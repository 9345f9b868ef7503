/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The job that a verb, or "jobs --watch", is for when none is named. */
#ifndef NBDCHAIN_PICK_H
#define NBDCHAIN_PICK_H

#include "job/job.h"
#include "qmp.h"

/* In place of a verb: to be watched. */
#define PICK_TO_WATCH NC_JOB_N_VERBS

/* The id of the one job, of those of the server behind QMP, that may be asked
 * for VERB as it is now; free it.  Returns NULL, reported, if there is none,
 * or more than one.  SOCKET: what the operator calls the server. */
extern char *pick_job (struct qmp *qmp, const char *socket,
                       enum nc_job_verb verb)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NBDCHAIN_PICK_H */
