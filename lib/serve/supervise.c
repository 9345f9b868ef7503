/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Lets "nbdchain serve" stop the server in order.
 *
 * nbdkit 1.32 cannot do so: on a signal it waits for clients, idle ones
 * too, before a plugin hears of it.  Hence a thread that listens to serve.
 * It ends the process itself only when serve is gone, for then nobody else
 * would.
 */

#include <config.h>

#include "serve/supervise.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/report.h"

struct nc_supervise {
  int fd;                       /* to serve, not ours */
  int end_fd;                   /* readable: the thread is to return */
  int (*stop) (void *opaque);
  void *opaque;
  pthread_t thread;

  /* Only of the thread. */
  bool stopped;                 /* STOP was called */
  int n_clients;                /* and what it said; -1: not durable */
};

static int
say (int fd, const char *text)
{
  ssize_t n;

  do
    n = send (fd, text, strlen (text), MSG_NOSIGNAL);
  while (n == -1 && errno == EINTR);
  return n == -1 ? -1 : 0;
}

static void
stop_once (struct nc_supervise *supervise)
{
  if (supervise->stopped)
    return;
  supervise->stopped = true;
  supervise->n_clients = supervise->stop (supervise->opaque);
}

static void
serve_is_gone (struct nc_supervise *supervise)
{
  nc_debug ("nbdchain serve is gone: stopping");
  stop_once (supervise);
  _exit (supervise->n_clients == -1 ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* Receive a message and answer it. */
static void
answer (struct nc_supervise *supervise)
{
  char text[64];
  ssize_t n = recv (supervise->fd, text, sizeof text - 1, 0);

  if (n == -1 && (errno == EINTR || errno == EAGAIN))
    return;
  if (n <= 0)
    serve_is_gone (supervise);
  text[n] = '\0';
  if (strcmp (text, "stop") != 0) {
    nc_error ("nbdchain serve sent an unknown message, which is ignored");
    return;
  }
  stop_once (supervise);
  /* Should serve be gone by now, the next recv tells. */
  say (supervise->fd, supervise->n_clients > 0 ? "stopped" :
       supervise->n_clients == 0 ? "stopped idle" :
       "failed what was written last may not be durable; the messages of "
       "the server tell the cause");
}

static void *
run (void *arg)
{
  struct nc_supervise *supervise = arg;
  struct pollfd fds[] = {
    { .fd = supervise->end_fd, .events = POLLIN },
    { .fd = supervise->fd, .events = POLLIN },
  };

  for (;;) {
    if (poll (fds, 2, -1) == -1) {
      if (errno == EINTR)
        continue;
      nc_error ("poll: %m");
      serve_is_gone (supervise);
    }
    if (fds[0].revents)
      return NULL;
    if (fds[1].revents)
      answer (supervise);
  }
}

struct nc_supervise *
nc_supervise_start (int fd, int (*stop) (void *opaque), void *opaque)
{
  struct nc_supervise *supervise = calloc (1, sizeof *supervise);
  sigset_t all, before;
  int err;

  if (supervise == NULL) {
    nc_error ("calloc: %m");
    return NULL;
  }
  supervise->fd = fd;
  supervise->stop = stop;
  supervise->opaque = opaque;
  supervise->end_fd = eventfd (0, EFD_CLOEXEC);
  if (supervise->end_fd == -1) {
    nc_error ("eventfd: %m");
    goto fail;
  }
  if (say (fd, "ready") == -1) {
    nc_error ("cannot speak with nbdchain serve (file descriptor %d): %m",
              fd);
    goto fail;
  }
  /* Signals are for the threads of the host. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  err = pthread_create (&supervise->thread, NULL, run, supervise);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (err != 0) {
    errno = err;
    nc_error ("pthread_create: %m");
    goto fail;
  }
  return supervise;

 fail:
  err = errno;
  if (supervise->end_fd >= 0)
    close (supervise->end_fd);
  free (supervise);
  errno = err;
  return NULL;
}

int
nc_supervise_quit (struct nc_supervise *supervise)
{
  if (say (supervise->fd, "quit") == 0)
    return 0;
  nc_error ("cannot ask nbdchain serve to end: %m");
  return -1;
}

void
nc_supervise_end (struct nc_supervise *supervise)
{
  uint64_t one = 1;

  if (supervise == NULL)
    return;
  if (write (supervise->end_fd, &one, sizeof one) == -1)
    nc_error ("eventfd: %m");
  pthread_join (supervise->thread, NULL);
  close (supervise->end_fd);
  free (supervise);
}
