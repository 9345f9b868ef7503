/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What of commands and events the socket needs to know. */
#ifndef NC_COMMANDS_H
#define NC_COMMANDS_H

#include <pthread.h>
#include <stdint.h>

#include "control/command.h"
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

/* Which failures of clients' requests have been told. */
enum { NC_IO_READ, NC_IO_WRITE, NC_IO_WRITE_NOSPACE, NC_IO_KINDS };
struct nc_io_errors {
  pthread_mutex_t lock;         /* guards what follows */
  struct {
    uint64_t told;              /* nanoseconds; 0 = never */
    uint64_t count;             /* failures since then */
  } kind[NC_IO_KINDS];
};

/* What BLOCK_IO_ERROR says of a failure at NOW (nanoseconds that never go
 * back, not 0); NULL if it is too early to say it.  NODE: the active layer;
 * NULL: not known. */
extern json_t *nc_io_error_data (struct nc_io_errors *errors,
                                 enum nc_job_operation operation, int err,
                                 const char *node, uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* block-stream.c; OPAQUE is a struct nc_control_state. */
extern const struct nc_arg nc_block_stream_args[];
extern json_t *nc_block_stream (void *opaque, json_t *args,
                                struct nc_command_error *error)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* A sink (job.h) that sends the event to the clients of CONTROL. */
extern void nc_control_job_event (void *control,
                                  const struct nc_job_event *event);

#endif /* NC_COMMANDS_H */
