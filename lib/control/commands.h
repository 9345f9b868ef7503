/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What of commands and events the socket needs to know. */
#ifndef NC_COMMANDS_H
#define NC_COMMANDS_H

#include "control/qmp.h"

struct nc_commands;
struct nc_job_event;

/* What the commands work on. */
struct nc_control_state {
  struct nc_control_options opts;
  const struct nc_commands *commands;
};

/* Add the commands about chain, jobs and server; STATE must live as long as
 * COMMANDS.  Returns -1 on error, reported. */
extern int nc_control_add_commands (struct nc_commands *commands,
                                    struct nc_control_state *state)
  __attribute__ ((__nonnull__ (1, 2)));

/* A sink (job.h) that sends the event to the clients of CONTROL. */
extern void nc_control_job_event (void *control,
                                  const struct nc_job_event *event);

#endif /* NC_COMMANDS_H */
