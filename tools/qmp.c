/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A client of a server's control socket: one command at a time.  A server
 * that does not answer is given up after a while. */

#include <config.h>

#include "qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/unix-socket.h"

#define PATIENCE 60             /* seconds */
#define RETRY_INTERVAL 100000000 /* nanoseconds between attempts to connect */

struct qmp {
  const char *path;             /* not owned; for messages */
  int fd;
  FILE *in;                     /* what comes from it */
  char *line;
  size_t size;
  qmp_event_fn event;           /* NULL: none */
  void *opaque;
  bool expects_loss;            /* its end is not reported */
  bool is_lost;                 /* it has ended */
  bool is_quiet;                /* nothing is reported: an attempt */
};

/* nc_error, unless this is but an attempt. */
static void __attribute__ ((__format__ (printf, 2, 3)))
complain (const struct qmp *qmp, const char *fmt, ...)
{
  const int error = errno;
  NC_FREE char *text = NULL;
  va_list args;
  int r;

  if (qmp->is_quiet)
    return;
  va_start (args, fmt);
  r = vasprintf (&text, fmt, args);
  va_end (args);
  if (r == -1)
    text = NULL;
  nc_error ("%s: %s", qmp->path, text ? text : strerror (error));
}

/* With a limit of time, a call on a socket is interrupted (EINTR) also when
 * this process is stopped and goes on, as by Ctrl-Z and fg. */

static ssize_t
read_socket (void *opaque, char *buf, size_t size)
{
  const struct qmp *qmp = opaque;
  ssize_t n;

  do
    n = recv (qmp->fd, buf, size, 0);
  while (n == -1 && errno == EINTR);
  if (n == 0)
    errno = 0;                  /* the end is no error */
  return n;
}

static void
report_unreachable (const struct qmp *qmp)
{
  const int error = errno;
  struct stat st;

  if (stat (qmp->path, &st) == 0 && !S_ISSOCK (st.st_mode)) {
    complain (qmp, "is a %s, and no socket: give the control socket of its "
              "server, that of nbdchain serve --control",
              S_ISDIR (st.st_mode) ? "directory" : "file");
    return;
  }
  errno = error;
  complain (qmp, "%m%s", error == ECONNREFUSED ?
            ": no server is using it any more" : error == ENOENT ?
            ": give the socket that a server was started with "
            "(nbdchain serve --control)" : "");
}

static int
connect_to (struct qmp *qmp)
{
  const struct timeval patience = { .tv_sec = PATIENCE };
  NC_PATH struct nc_path path = NC_PATH_NONE;
  char why[NC_PATH_WHY];
  NC_CLOSE int found = nc_path_try (qmp->path, O_PATH, &path, why, sizeof why);

  if (found == -1 && errno == EPERM) {
    if (!qmp->is_quiet)
      nc_error ("%s", why);
    return -1;
  }
  if (found == -1) {
    report_unreachable (qmp);
    return -1;
  }
  qmp->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (qmp->fd == -1 ||
      setsockopt (qmp->fd, SOL_SOCKET, SO_RCVTIMEO, &patience,
                  sizeof patience) == -1 ||
      setsockopt (qmp->fd, SOL_SOCKET, SO_SNDTIMEO, &patience,
                  sizeof patience) == -1 ||
      nc_connect_unix (qmp->fd, found) == -1) {
    report_unreachable (qmp);
    return -1;
  }
  qmp->in = fopencookie (qmp, "r", (cookie_io_functions_t) {
                           .read = read_socket
                         });
  if (qmp->in == NULL) {
    complain (qmp, "%m");
    return -1;
  }
  return 0;
}

/* Nothing came, or goes; errno 0: the server closed the connection. */
static void
report_silence (struct qmp *qmp)
{
  if (errno == EAGAIN || errno == EWOULDBLOCK) {
    complain (qmp, "no answer within %d seconds", PATIENCE);
    return;
  }
  qmp->is_lost = true;
  if (!qmp->expects_loss)
    complain (qmp, "the server has hung up%s%s", errno ? ": " : "",
              errno ? strerror (errno) : "");
}

/* A message begins with a brace.  What does not is told at once: a server of
 * another kind may never end its line. */
static bool
begins (struct qmp *qmp)
{
  const int c = getc (qmp->in);

  if (c == EOF) {
    report_silence (qmp);
    return false;
  }
  if (c != '{') {
    complain (qmp, "what answers is no QMP server: give the socket of "
              "nbdchain serve --control");
    return false;
  }
  ungetc (c, qmp->in);
  return true;
}

/* The next message, a new reference; NULL, reported. */
static json_t *
receive (struct qmp *qmp)
{
  json_t *message;
  ssize_t n;

  errno = 0;
  if (!begins (qmp))
    return NULL;
  n = getline (&qmp->line, &qmp->size, qmp->in);
  if (n == -1 || qmp->line[n - 1] != '\n') {
    report_silence (qmp);
    return NULL;
  }
  message = json_loadb (qmp->line, n, 0, NULL);
  if (!json_is_object (message)) {
    complain (qmp, "the server's answer is no JSON");
    json_decref (message);
    return NULL;
  }
  return message;
}

/* That the server has hung up is found where it is received: there may be
 * events that it sent before. */
static int
send_all (struct qmp *qmp, const char *text)
{
  size_t left = strlen (text);

  while (left > 0) {
    const ssize_t n = send (qmp->fd, text, left, MSG_NOSIGNAL);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1 && (errno == EPIPE || errno == ECONNRESET))
      return 0;
    if (n == -1) {
      report_silence (qmp);
      return -1;
    }
    text += n;
    left -= n;
  }
  return 0;
}

/* Report the error in REPLY. */
static void
report (const struct qmp *qmp, json_t *reply)
{
  const char *desc =
    json_string_value (json_object_get (json_object_get (reply, "error"),
                                        "desc"));

  complain (qmp, "%s", desc ? desc : "the server's answer makes no sense");
}

void
qmp_on_event (struct qmp *qmp, qmp_event_fn fn, void *opaque)
{
  qmp->event = fn;
  qmp->opaque = opaque;
}

json_t *
qmp_execute (struct qmp *qmp, const char *command, json_t *arguments)
{
  json_t *request = json_pack ("{s:s, s:o}", "execute", command, "arguments",
                               arguments ? arguments : json_object ());
  NC_FREE char *text = request ? json_dumps (request, JSON_COMPACT) : NULL;
  json_t *reply, *value;

  json_decref (request);
  if (text == NULL) {
    nc_error ("out of memory");
    return NULL;
  }
  if (send_all (qmp, text) == -1 || send_all (qmp, "\n") == -1)
    return NULL;
  for (;;) {
    reply = receive (qmp);
    if (reply == NULL)
      return NULL;
    if (json_object_get (reply, "event") == NULL)
      break;
    if (qmp->event)
      qmp->event (qmp->opaque,
                  json_string_value (json_object_get (reply, "event")),
                  json_object_get (reply, "data"));
    json_decref (reply);
  }
  value = json_incref (json_object_get (reply, "return"));
  if (value == NULL)
    report (qmp, reply);
  json_decref (reply);
  return value;
}

static int
negotiate (struct qmp *qmp)
{
  json_t *message = receive (qmp);
  const bool good = json_object_get (message, "QMP") != NULL;

  if (message && !good)
    report (qmp, message);
  json_decref (message);
  if (!good)
    return -1;
  message = qmp_execute (qmp, "qmp_capabilities", NULL);
  json_decref (message);
  return message ? 0 : -1;
}

static void
hang_up (struct qmp *qmp)
{
  if (qmp->in)
    fclose (qmp->in);
  qmp->in = NULL;
  if (qmp->fd >= 0)
    close (qmp->fd);
  qmp->fd = -1;
}

static int
attempt (struct qmp *qmp)
{
  hang_up (qmp);
  qmp->is_lost = false;
  return connect_to (qmp) == 0 && negotiate (qmp) == 0 ? 0 : -1;
}

struct qmp *
qmp_open (const char *path)
{
  struct qmp *qmp = calloc (1, sizeof *qmp);

  if (qmp == NULL) {
    nc_error ("out of memory");
    return NULL;
  }
  qmp->path = path;
  qmp->fd = -1;
  if (attempt (qmp) == 0)
    return qmp;
  qmp_close (qmp);
  return NULL;
}

void
qmp_expect_loss (struct qmp *qmp)
{
  qmp->expects_loss = true;
}

bool
qmp_is_lost (const struct qmp *qmp)
{
  return qmp->is_lost;
}

int
qmp_reconnect (struct qmp *qmp, unsigned seconds)
{
  const struct timespec pause = { .tv_nsec = RETRY_INTERVAL };
  const uint64_t end = nc_now () + seconds * NC_SECOND;
  int r;

  qmp->is_quiet = true;
  while ((r = attempt (qmp)) == -1 && nc_now () < end)
    nanosleep (&pause, NULL);
  qmp->is_quiet = false;
  return r;
}

void
qmp_close (struct qmp *qmp)
{
  if (qmp == NULL)
    return;
  hang_up (qmp);
  free (qmp->line);
  free (qmp);
}
