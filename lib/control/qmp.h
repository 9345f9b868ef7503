/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The control socket: QMP for several clients at a time.
 *
 * A thread accepts, and each client has one.  What waits to be sent to a
 * client is bounded: one that does not read has no more commands taken from
 * it, and is dropped when events pile up.  So none can harm another, the
 * jobs or the disk.
 */
#ifndef NC_QMP_H
#define NC_QMP_H

#include <stdbool.h>

#include <jansson.h>

#include "job/job.h"

struct nc_chain;
struct nc_command;
struct nc_control;
struct nc_jobs;

#define NC_CONTROL_CLIENTS 64   /* at a time */
#define NC_CONTROL_BACKLOG 65536        /* bytes unsent: no commands taken */
#define NC_CONTROL_QUEUE (1 << 20)      /* bytes unsent: dropped */

/* Open the socket PATH, mode 0600, in place of one that nobody serves; it
 * appears when clients can connect.  No thread yet.  Returns NULL on error,
 * reported (EADDRINUSE: it is served). */
extern struct nc_control *nc_control_open (const char *path)
  __attribute__ ((__nonnull__ (1)));

/* Offer COMMAND, which must outlive the socket; before nc_control_start.
 * Returns -1 on error, reported. */
extern int nc_control_add (struct nc_control *control,
                           const struct nc_command *command, void *opaque)
  __attribute__ ((__nonnull__ (1, 2)));

struct nc_control_options {
  struct nc_chain *chain;
  struct nc_jobs *jobs;
  void (*quit) (void *opaque);  /* end the server; called from a client's
                                   thread: it must not wait for that */
  void *opaque;
};

/* Offer the commands about chain, jobs and server, become the sink of the
 * jobs' events, and serve.  Both must live until nc_control_stop.  Returns
 * -1 on error, reported. */
extern int nc_control_start (struct nc_control *control,
                             const struct nc_control_options *opts)
  __attribute__ ((__nonnull__ (1, 2)));

/* Send an event to all who have negotiated.  Takes over DATA; NULL sends
 * none, for want of memory.  Never waits; from any thread. */
extern void nc_control_event (struct nc_control *control, const char *name,
                              json_t *data)
  __attribute__ ((__nonnull__ (1, 2)));

/* Send SHUTDOWN: the server ends, because it was asked to (WAS_QUIT) or got a
 * signal.  As above. */
extern void nc_control_say_end (struct nc_control *control, bool was_quit)
  __attribute__ ((__nonnull__ (1)));

/* A request of a client of the disk failed with errno ERR: send
 * BLOCK_IO_ERROR, at most once a second for reads, for writes, and for
 * writes that found no space.  As above, and keeps errno. */
extern void nc_control_io_error (struct nc_control *control,
                                 enum nc_job_operation operation, int err)
  __attribute__ ((__nonnull__ (1)));

/* Remove the socket, send what can be sent at once, hang up.  Returns when
 * all threads have ended.  Not from a command.  Idempotent. */
extern void nc_control_stop (struct nc_control *control)
  __attribute__ ((__nonnull__ (1)));

/* nc_control_stop, and release everything.  NULL is allowed. */
extern void nc_control_close (struct nc_control *control);

#endif /* NC_QMP_H */
