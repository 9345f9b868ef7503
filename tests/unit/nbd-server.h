/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* NBD servers for unit tests: started on a Unix socket in a directory of the
 * test, stopped and killed. */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char dir[] = "/tmp/nbdchain-test.XXXXXX";
static char sock[64], uri[128];

/* Have servers from now on listen on the socket NAME. */
static inline void
use_socket (const char *name)
{
  snprintf (sock, sizeof sock, "%s/%s", dir, name);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", sock);
}

static inline void
make_server_dir (void)
{
  signal (SIGPIPE, SIG_DFL);
  if (mkdtemp (dir) == NULL) {
    perror (dir);
    exit (1);
  }
  use_socket ("sock");
}

static inline double
seconds (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

static inline struct timespec
in_seconds (unsigned n)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += n;
  return ts;
}

static inline void
nap (void)
{
  nanosleep (&(struct timespec) { .tv_nsec = 5000000 }, NULL);
}

/* Poll CONDITION for up to a minute. */
#define EVENTUALLY(condition)                           \
  ({                                                    \
    double until_ = seconds () + 60;                    \
    bool met_;                                          \
    while (!(met_ = (condition)) && seconds () < until_) \
      nap ();                                           \
    met_;                                               \
  })

/* Whether a server listens on the socket, whose file is there before. */
static inline bool
listens (void)
{
  FILE *f = fopen ("/proc/net/unix", "r");
  char line[512], path[300];
  unsigned long flags;
  bool found = false;

  while (f && !found && fgets (line, sizeof line, f))
    found = sscanf (line, "%*s %*s %*s %lx %*s %*s %*s %299s", &flags, path)
      == 2 && flags & 0x10000 && strcmp (path, sock) == 0;
  if (f)
    fclose (f);
  return found;
}

/* Start a server; returns when READY says so. */
static inline pid_t
spawn_until (const char *const *argv, bool (*ready) (void))
{
  pid_t pid;

  unlink (sock);
  pid = fork ();
  if (pid == -1) {
    perror ("fork");
    exit (1);
  }
  if (pid == 0) {
    prctl (PR_SET_PDEATHSIG, SIGKILL);  /* with this thread */
    unsetenv ("LD_PRELOAD");
    execvp (argv[0], (char **) argv);
    perror (argv[0]);
    _exit (127);
  }
  if (!EVENTUALLY (ready ())) {
    fprintf (stderr, "%s did not start\n", argv[0]);
    kill (pid, SIGKILL);
    exit (1);
  }
  return pid;
}

static inline pid_t
spawn (const char *const *argv)
{
  return spawn_until (argv, listens);
}

#define NBDKIT(...)                                                     \
  spawn ((const char *[]) {                                             \
      getenv ("NBDKIT") ? : "nbdkit", "--exit-with-parent", "-f", "-U", \
      sock, __VA_ARGS__, NULL                                           \
    })

/* Stop a server in the middle of what it does: none of its threads runs when
 * this returns. */
static inline void
freeze (pid_t pid)
{
  kill (pid, SIGSTOP);
  waitpid (pid, NULL, WUNTRACED);
}

static inline void
end_server (pid_t pid)
{
  kill (pid, SIGKILL);
  waitpid (pid, NULL, 0);
  unlink (sock);
}

#endif /* NBD_SERVER_H */
