/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Where the plugin and the filters of one nbdkit meet: the chain that this
 * process serves, and the parts that move its data.
 *
 *   plugin .get_ready    nc_server_begin       the chain is open
 *   filter .get_ready    nc_server_add         each filter, from the inside
 *   plugin .after_fork   nc_server_start       the chain has been started
 *     requests
 *   plugin, at the end   nc_server_stop        the chain is about to stop
 *   plugin .unload       nc_server_end         the chain has been stopped
 *   filter .unload                             frees what is its own
 *
 * nbdkit calls the plugin's .get_ready, .after_fork and .unload before those
 * of the filters; so a filter has its threads started by the plugin, through
 * its part, and not by an .after_fork of its own.
 */
#ifndef NC_SERVER_H
#define NC_SERVER_H

struct nc_chain;
struct nc_control;
struct nc_jobs;

/* What a filter adds. */
struct nc_part {
  const char *name;             /* the filter's */
  void *opaque;

  /* Begin to work on CHAIN, and start threads.  Returns -1 on error,
   * reported. */
  int (*start) (void *opaque, struct nc_chain *chain);

  /* Called once each, if start succeeded.  stop: begin nothing any more, and
   * write what must not be lost; requests of clients may go on, and remotes
   * may hang, so wait for neither.  end: the chain has been stopped, so that
   * nothing hangs: end the threads, and let go of all exports. */
  void (*stop) (void *opaque);
  void (*end) (void *opaque);
};

#define NC_PARTS_MAX 16

/* CHAIN is what this process serves, and JOBS are what moves its data.  They
 * must stay until nc_server_end. */
extern void nc_server_begin (struct nc_chain *chain, struct nc_jobs *jobs)
  __attribute__ ((__nonnull__ (1, 2)));

/* These; NULL before nc_server_begin, and if the plugin is another one. */
extern struct nc_chain *nc_server_chain (void);
extern struct nc_jobs *nc_server_jobs (void);

/* The control socket, NULL if there is none, for parts to offer commands on:
 * set before nc_server_start, which it does not serve before. */
extern void nc_server_set_control (struct nc_control *control);
extern struct nc_control *nc_server_control (void);

/* Add PART (copied; its name must stay).  Returns -1 if the plugin is not
 * ours, or there is one of this name already; reported. */
extern int nc_server_add (const struct nc_part *part)
  __attribute__ ((__nonnull__ (1)));

/* Start all parts, in the order in which they were added.  Returns -1 if one
 * could not, reported; nc_server_stop stops the others. */
extern int nc_server_start (void);

/* Stop what was started, the last one first.  Blocks until then; from any
 * thread, any number of times. */
extern void nc_server_stop (void);

/* After nc_server_stop and nc_chain_stop: end the parts, and forget them and
 * the chain.  One thread. */
extern void nc_server_end (void);

#endif /* NC_SERVER_H */
