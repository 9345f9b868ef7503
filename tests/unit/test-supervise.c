/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/serve/supervise.c: the server's end of the talk with serve. */

#include <config.h>

#include "serve/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/report.h"

static unsigned n_tests, n_failed;
static atomic_uint n_messages, n_stops;
static atomic_int stop_result;

static void
ok (bool good, const char *sentence)
{
  printf ("%sok %u - %s\n", good ? "" : "not ", ++n_tests, sentence);
  if (!good)
    n_failed++;
}

static void
sink (enum nc_report_level level, const char *fmt, va_list args)
{
  (void) fmt;
  (void) args;
  if (level == NC_REPORT_ERROR)
    n_messages++;
}

static int
stop (void *opaque)
{
  n_stops++;
  return opaque == &n_stops ? stop_result : -1;
}

static void
make_pair (int sv[2])
{
  n_messages = n_stops = 0;
  stop_result = 0;
  if (socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) == -1) {
    perror ("socketpair");
    exit (1);
  }
}

static void
say (int fd, const char *text)
{
  if (send (fd, text, strlen (text), MSG_NOSIGNAL) == -1)
    perror ("send");
}

static char heard[256];         /* the last message */

/* Whether the next message starts with TEXT. */
static bool
hears (int fd, const char *text)
{
  ssize_t n = recv (fd, heard, sizeof heard - 1, 0);

  heard[n < 0 ? 0 : n] = '\0';
  return n > 0 && strncmp (heard, text, strlen (text)) == 0 &&
    strchr (heard, '\n') == NULL;
}

static bool
is_quiet (int fd)
{
  struct pollfd p = { .fd = fd, .events = POLLIN };

  return poll (&p, 1, 50) == 0;
}

static void
test_stop (void)
{
  struct nc_supervise *supervise;
  int sv[2];

  make_pair (sv);
  supervise = nc_supervise_start (sv[0], stop, &n_stops);
  ok (supervise != NULL && hears (sv[1], "ready"), "it says ready");
  ok (is_quiet (sv[1]) && n_stops == 0, "and nothing more by itself");
  say (sv[1], "stop");
  ok (hears (sv[1], "stopped idle") && n_stops == 1,
      "stop is answered: stopped");
  say (sv[1], "stop");
  ok (hears (sv[1], "stopped") && n_stops == 1,
      "a second stop is answered, but not done again");
  nc_supervise_end (supervise);
  stop_result = 2;
  supervise = nc_supervise_start (sv[0], stop, &n_stops);
  say (sv[1], "stop");
  ok (hears (sv[1], "ready") && hears (sv[1], "stopped") &&
      strcmp (heard, "stopped") == 0, "with clients it is not idle");
  nc_supervise_end (supervise);
  ok (fcntl (sv[0], F_GETFD) != -1 && n_messages == 0,
      "the file descriptor stays open");
  close (sv[0]);
  close (sv[1]);
}

static void
test_failed (void)
{
  struct nc_supervise *supervise;
  int sv[2];

  make_pair (sv);
  stop_result = -1;
  supervise = nc_supervise_start (sv[0], stop, &n_stops);
  ok (supervise && hears (sv[1], "ready"), "ready again");
  say (sv[1], "stop");
  ok (hears (sv[1], "failed ") && n_stops == 1,
      "what is not durable is answered: failed");
  stop_result = 0;
  say (sv[1], "stop");
  ok (hears (sv[1], "failed ") && n_stops == 1, "and stays so");
  nc_supervise_end (supervise);
  close (sv[0]);
  close (sv[1]);
}

static void
test_end (void)
{
  struct nc_supervise *supervise;
  int sv[2];

  make_pair (sv);
  supervise = nc_supervise_start (sv[0], stop, &n_stops);
  nc_supervise_end (supervise);
  ok (n_stops == 0, "end does not stop");
  nc_supervise_end (NULL);
  close (sv[0]);
  close (sv[1]);

  make_pair (sv);
  supervise = nc_supervise_start (sv[0], stop, &n_stops);
  ok (hears (sv[1], "ready"), "ready for a riddle");
  /* An answer to the first would come before that to the second. */
  say (sv[1], "stop it");
  say (sv[1], "stop");
  ok (hears (sv[1], "stopped") && is_quiet (sv[1]) && n_stops == 1 &&
      n_messages == 1, "an unknown message is reported and ignored, and the "
      "next one is understood");
  nc_supervise_end (supervise);
  close (sv[0]);
  close (sv[1]);
}

static void
test_errors (void)
{
  int sv[2];

  make_pair (sv);
  close (sv[1]);
  ok (nc_supervise_start (sv[0], stop, NULL) == NULL && errno == EPIPE &&
      n_messages == 1, "a server without serve is an error");
  ok (nc_supervise_start (-1, stop, NULL) == NULL && errno == EBADF &&
      n_messages == 2, "so is a wrong file descriptor");
  close (sv[0]);
}

/* In a process of its own: how it ends when serve goes away. */
static int
exit_code (bool stop_first, int result)
{
  int sv[2], status;
  bool good;
  pid_t pid;

  make_pair (sv);
  stop_result = result;
  fflush (stdout);
  pid = fork ();
  if (pid == 0) {
    close (sv[1]);
    if (nc_supervise_start (sv[0], stop, &n_stops) == NULL)
      _exit (99);
    for (;;)
      pause ();
  }
  close (sv[0]);
  good = hears (sv[1], "ready");
  if (stop_first) {
    say (sv[1], "stop");
    good = hears (sv[1], result == 0 ? "stopped" : "failed") && good;
  }
  close (sv[1]);
  if (waitpid (pid, &status, 0) == -1 || !WIFEXITED (status) || !good)
    return -1;
  return WEXITSTATUS (status);
}

int
main (void)
{
  nc_report_to (sink);
  ok (exit_code (false, 0) == 0,
      "when serve goes away the server stops and exits");
  ok (exit_code (false, -1) == 1, "with an error if it could not");
  ok (exit_code (true, 0) == 0, "also after it was stopped");
  ok (exit_code (true, -1) == 1, "also after that failed");
  test_stop ();
  test_failed ();
  test_errors ();
  test_end ();
  printf ("1..%u\n", n_tests);
  return n_failed != 0;
}
