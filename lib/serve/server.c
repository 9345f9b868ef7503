/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What this process serves, for plugin and filters, which are loaded without
 * knowing of each other.  There is one plugin in a process, so there is one
 * of this. */

#include <config.h>

#include "serve/server.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "util/report.h"
#include "util/scope.h"

static struct {
  struct nc_chain *chain;       /* these three: set before there are threads */
  struct nc_jobs *jobs;
  struct nc_control *control;
  pthread_mutex_t lock;         /* guards the rest; held while parts are
                                   started and stopped */
  struct nc_part part[NC_PARTS_MAX];
  size_t n, n_started, n_running;       /* started; not stopped yet */
} server = { .lock = PTHREAD_MUTEX_INITIALIZER };

void
nc_server_begin (struct nc_chain *chain, struct nc_jobs *jobs)
{
  server.chain = chain;
  server.jobs = jobs;
}

struct nc_chain *
nc_server_chain (void)
{
  return server.chain;
}

struct nc_jobs *
nc_server_jobs (void)
{
  return server.jobs;
}

void
nc_server_set_control (struct nc_control *control)
{
  server.control = control;
}

struct nc_control *
nc_server_control (void)
{
  return server.control;
}

int
nc_server_add (const struct nc_part *part)
{
  NC_LOCKED (&server.lock);
  errno = EINVAL;
  if (server.chain == NULL) {
    nc_error ("nbdkit --filter=%s works only over the plugin \"chain\"",
              part->name);
    return -1;
  }
  for (size_t i = 0; i < server.n; ++i)
    if (strcmp (server.part[i].name, part->name) == 0) {
      nc_error ("nbdkit --filter=%s was given twice: once is enough",
                part->name);
      return -1;
    }
  if (server.n == NC_PARTS_MAX) {
    nc_error ("nbdkit --filter=%s: there are %d others already", part->name,
              NC_PARTS_MAX);
    return -1;
  }
  server.part[server.n++] = *part;
  return 0;
}

int
nc_server_start (void)
{
  NC_LOCKED (&server.lock);
  while (server.n_started < server.n) {
    const struct nc_part *part = &server.part[server.n_started];

    if (part->start (part->opaque, server.chain) == -1)
      return -1;
    server.n_running = ++server.n_started;
  }
  return 0;
}

void
nc_server_stop (void)
{
  NC_LOCKED (&server.lock);
  while (server.n_running > 0) {
    const struct nc_part *part = &server.part[--server.n_running];

    part->stop (part->opaque);
  }
}

void
nc_server_end (void)
{
  NC_LOCKED (&server.lock);
  while (server.n_started > 0) {
    const struct nc_part *part = &server.part[--server.n_started];

    part->end (part->opaque);
  }
  server.chain = NULL;
  server.jobs = NULL;
  server.control = NULL;
  server.n = 0;
}
