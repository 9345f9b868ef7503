/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/control/qmp.c, commands.c and events.c, and of lib/util/unix-socket.c: a
 * real socket, and jobs that do what a test tells them. */

#include <config.h>

#include "control/qmp.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "control/command.h"
#include "control/commands.h"
#include "job/job.h"
#include "tap.h"
#include "util/unix-socket.h"

static char path[300];
static struct nc_jobs *jobs;
static struct nc_control *control;
static _Atomic (unsigned) quits;

/* A job that waits for the end, or fails at once. */
static int
fake_run (struct nc_job *job, void *opaque)
{
  bool is_ready = false;

  nc_job_set_len (job, 100);
  nc_job_progress (job, 40);
  nc_job_count (job, NC_COUNT_COPIED, 30);
  nc_job_count (job, NC_COUNT_LOCAL, 6);
  nc_job_count (job, NC_COUNT_ZERO, 4);
  if (opaque) {
    nc_job_error (job, NC_JOB_WRITE, ENOSPC);
    nc_job_set_error (job, "disk full\xff");
    return -1;
  }
  for (;;) {
    if (nc_job_pause_point (job) == -1)
      return -1;
    if (nc_job_should_complete (job))
      return 0;
    /* Once, however many changes there were since it was looked at. */
    if (nc_job_speed (job) == 7 && !is_ready) {
      nc_job_ready (job);
      is_ready = true;
    }
    nc_job_sleep (job, UINT64_C (3600000000000));
  }
}

static const struct nc_job_type fake = { .name = "stream", .run = fake_run };

static void
quit (void *opaque)
{
  must (opaque == &quits, "quit");
  quits++;
}

static json_t *
echo (void *opaque, json_t *args, struct nc_command_error *error)
{
  (void) opaque;
  (void) error;
  return json_incref (args);
}

static const struct nc_arg echo_args[] = {
  { .name = "text", .type = NC_ARG_STRING }, { 0 }
};
static const struct nc_command echo_command = { "x-echo", echo_args, echo };

static void
start_server (void)
{
  const struct nc_control_options opts = {
    .jobs = jobs, .quit = quit, .opaque = &quits,
  };

  control = nc_control_open (path);
  must (control && nc_control_add (control, &echo_command, NULL) == 0 &&
        nc_control_start (control, &opts) == 0, "control");
}

/* Clients. */

struct peer {
  int fd;
  FILE *in;
  char *line;
  size_t size;
};

static int
dial (void)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  strcpy (addr.sun_path, path);
  must (fd >= 0 && connect (fd, (struct sockaddr *) &addr,
                            sizeof addr) == 0, "connect");
  return fd;
}

static void
say (struct peer *p, const char *text)
{
  must (send (p->fd, text, strlen (text), MSG_NOSIGNAL) ==
        (ssize_t) strlen (text), "send");
}

/* The next message; NULL at the end. */
static json_t *
hear (struct peer *p)
{
  ssize_t n = getline (&p->line, &p->size, p->in);

  return n <= 0 ? NULL : json_loadb (p->line, n, 0, NULL);
}

/* Whether the next message has the text, as it is sent; "..." stands for
 * anything. */
static bool
hears (struct peer *p, const char *expect)
{
  json_t *message = hear (p);
  const char *at = message ? p->line : NULL;
  const char *dots;

  json_decref (message);
  while (at && (dots = strstr (expect, "..."))) {
    char part[1024];

    snprintf (part, sizeof part, "%.*s", (int) (dots - expect), expect);
    at = strstr (at, part);
    if (at)
      at += strlen (part);
    expect = dots + 3;
  }
  if (at == NULL || strstr (at, expect) == NULL)
    return note ("%s instead of %s", p->line ? p->line : "", expect);
  return true;
}

/* Whether command NAME with ARGS has this reply; events may come before. */
static bool
does (struct peer *p, const char *name, const char *args, const char *expect)
{
  char text[1024];

  snprintf (text, sizeof text, "{\"execute\":\"%s\",\"arguments\":{%s},"
            "\"id\":\"%s\"}\n", name, args, name);
  say (p, text);
  for (;;) {
    json_t *message = hear (p);
    const bool is_event = json_object_get (message, "event") != NULL;

    json_decref (message);
    if (message == NULL)
      return note ("hung up");
    if (!is_event)
      break;
  }
  return strstr (p->line, expect) != NULL ||
    note ("%s: %s", name, p->line);
}

static void
hang_up (struct peer *p)
{
  fclose (p->in);
  free (p->line);
}

/* A client that the server has sent something, which P->line has. */
static struct peer
called (void)
{
  struct peer p = { .fd = dial () };
  json_t *message;

  p.in = fdopen (p.fd, "r");
  message = p.in ? hear (&p) : NULL;
  must (message != NULL, "the server speaks first");
  json_decref (message);
  return p;
}

static bool
is_served (const struct peer *p)
{
  return strstr (p->line, "{\"QMP\":{\"version\":{\"qemu\":{") != NULL &&
    strstr (p->line, "\"package\":\"nbdchain ") != NULL &&
    strstr (p->line, "\"capabilities\":[]}}") != NULL;
}

/* Clients of earlier tests may still be going, and take its place. */
static struct peer
greeted (void)
{
  struct peer p = called ();

  while (!is_served (&p)) {
    must (strstr (p.line, "as many clients") != NULL, "greeting");
    hang_up (&p);
    p = called ();
  }
  return p;
}

static struct peer
negotiated (void)
{
  struct peer p = greeted ();

  must (does (&p, "qmp_capabilities", "", "{\"return\":{}"), "negotiation");
  return p;
}

static int
create (const char *id, bool fails, bool keep)
{
  char why[NC_JOB_TEXT];

  return nc_job_create (jobs, id, &fake, &(struct nc_job_options) {
      .device = "disk", .manual_dismiss = keep, .speed = 5,
      .on_error = fails ? NC_ON_ERROR_ENOSPC : NC_ON_ERROR_REPORT,
    }, fails ? &quits : NULL, why);
}

static void
test_socket (void)
{
  struct stat st;
  mode_t before = umask (0);
  struct nc_control *other;
  int fd;

  start_server ();
  umask (before);
  ok (lstat (path, &st) == 0 && S_ISSOCK (st.st_mode) &&
      (st.st_mode & 07777) == 0600, "the socket is the owner's alone");
  tap_clear ();
  other = nc_control_open (path);
  ok (other == NULL && errno == EADDRINUSE && tap_errors == 1 &&
      strstr (tap_error, "another server"),
      "a socket that is served is not taken");
  close (dial ());
  nc_control_close (control);
  ok (lstat (path, &st) == -1 && errno == ENOENT,
      "the socket goes with the server");
  nc_control_close (NULL);

  fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  tap_clear ();
  other = nc_control_open (path);
  ok (fd >= 0 && close (fd) == 0 && other == NULL && errno == EEXIST &&
      tap_errors == 1 && stat (path, &st) == 0, "a file is left alone");
  must (unlink (path) == 0, "unlink");

  control = nc_control_open (path);
  must (control && rename (path, "old") == 0, "rename");
  fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  nc_control_close (control);
  ok (fd >= 0 && close (fd) == 0 && stat (path, &st) == 0,
      "what somebody else put there stays");
  /* Nobody listens at "old" any more. */
  must (rename ("old", path) == 0, "rename");
  start_server ();
  close (dial ());
  ok (true, "the socket of a server that died is replaced");
}

/* The name of the socket.  What follows stands before the functions of the
 * C library, also for the library under test. */

static _Atomic (unsigned) listened;     /* so often, since watch_names */
static _Atomic (bool) was_early;        /* there, and nobody listened */
static _Atomic (bool) was_open; /* it had another mode than 0600 */
static int rename_errno;        /* what renameat2 fails with; 0: it works */
static int unlink_errno;        /* the same for unlink */
static bool exchanges;          /* the next bind: test_exchanged */
static char found[300], moved[310], elsewhere[310];
static struct nc_control *rival;
static pthread_t rival_thread;
static _Atomic (bool) rival_comes, rival_waits, rival_ended;

static void
look (const char *name, bool listening)
{
  struct stat st;

  if (lstat (name, &st) == -1)
    return;
  was_early |= !listening;
  was_open |= (st.st_mode & 07777) != 0600;
}

int
bind (int fd, const struct sockaddr *addr, socklen_t len)
{
  const struct sockaddr_un *un = (const struct sockaddr_un *) addr;
  int r;

  if (exchanges) {
    exchanges = false;
    must (rename (found, moved) == 0 && symlink (elsewhere, found) == 0,
          "exchange");
  }
  r = syscall (SYS_bind, fd, addr, len);
  if (r == 0 && addr->sa_family == AF_UNIX) {
    look (un->sun_path, true);
    look (path, false);
  }
  return r;
}

int
listen (int fd, int backlog)
{
  look (path, false);
  listened++;
  return syscall (SYS_listen, fd, backlog);
}

int
renameat2 (int from_dir, const char *from, int to_dir, const char *to,
           unsigned flags)
{
  if (rename_errno) {
    errno = rename_errno;
    return -1;
  }
  return syscall (SYS_renameat2, from_dir, from, to_dir, to, flags);
}

static void
watch_names (void)
{
  listened = 0;
  was_early = was_open = false;
}

/* How many files there are in the directory of the test. */
static unsigned
files (void)
{
  unsigned n = 0;
  DIR *dir = opendir (".");

  must (dir != NULL, "directory");
  while (readdir (dir))
    n++;
  closedir (dir);
  return n - 2;
}

static bool
opens (void)
{
  bool r;

  watch_names ();
  control = nc_control_open (path);
  r = control != NULL && listened == 1 && files () == 1;
  if (control)
    close (dial ());
  nc_control_close (control);
  return r && files () == 0;
}

static void
test_name (void)
{
  const mode_t before = umask (0);
  struct stat st;
  int fd;

  ok (opens () && !was_early, "its name is there once it can be connected to");
  ok (!was_open, "and has its mode, under each name");
  rename_errno = EINVAL;
  ok (opens () && !was_early && !was_open,
      "so it is where a file system cannot rename like that");
  rename_errno = EEXIST;
  tap_clear ();
  ok (nc_control_open (path) == NULL && errno == EADDRINUSE &&
      tap_errors == 1 && strstr (tap_error, path) && files () == 0,
      "what has come meanwhile is not replaced");
  rename_errno = 0;
  umask (before);

  watch_names ();
  ok (nc_listen_check ("socket", path) == 0 && listened == 0 && !was_early &&
      files () == 0, "that it could be made can be told without making it");
  fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  ok (fd >= 0 && close (fd) == 0 && nc_listen_check ("socket", path) == -1 &&
      errno == EEXIST && stat (path, &st) == 0 && unlink (path) == 0 &&
      nc_listen_check ("socket", "no/such/dir") == -1 && errno == ENOENT,
      "and that it could not");
}

/* A path that is as long as can be, with one character for the name. */
static void
test_long (void)
{
  static const char names[] = "0123456789abcdefq";
  const struct sockaddr_un addr;
  const size_t max = sizeof addr.sun_path - 1;
  char before[sizeof path];
  char *end;
  bool good = true;

  strcpy (before, path);
  *strrchr (path, '/') = '\0';
  end = path + strlen (path);
  *end++ = '/';
  memset (end, 'd', max);
  path[max - 2] = '\0';
  must (mkdir (path, 0700) == 0 && chdir (path) == 0, "a long directory");
  for (size_t i = 0; names[i]; i++) {
    path[max - 2] = '/';
    path[max - 1] = names[i];
    path[max] = '\0';
    good = opens () && !was_early && good;
  }
  ok (good, "so it is with a path as long as can be");
  path[max - 2] = '\0';
  must (rmdir (path) == 0, path);
  strcpy (path, before);
  *strrchr (path, '/') = '\0';
  must (chdir (path) == 0, path);
  strcpy (path, before);
}

/* Somebody who may rename the directory of a socket does so just before it is
 * bound, and puts a link to another one in its place. */
static void
test_exchanged (void)
{
  struct nc_socket_name name;
  char sock[320];
  struct stat st;
  int fd;

  strcpy (found, path);
  strcpy (strrchr (found, '/'), "/d");
  snprintf (moved, sizeof moved, "%s.moved", found);
  snprintf (elsewhere, sizeof elsewhere, "%s.other", found);
  must (mkdir (found, 0700) == 0 && mkdir (elsewhere, 0700) == 0, "mkdir");
  snprintf (sock, sizeof sock, "%s/sock", found);
  exchanges = true;
  fd = nc_listen_unix ("socket", sock, 0640, 1, &name);
  snprintf (sock, sizeof sock, "%s/sock", moved);
  ok (fd >= 0 && !exchanges && lstat (sock, &st) == 0 &&
      S_ISSOCK (st.st_mode) && (st.st_mode & 0777) == 0640,
      "a socket is made in the directory that was found");
  close (fd);
  nc_socket_name_remove (&name);
  ok (rmdir (moved) == 0 && rmdir (elsewhere) == 0,
      "and removed there, and nothing else was made");
  must (unlink (found) == 0, "unlink");
}

/* A rival that starts when a server has seen that its predecessor has died,
 * and is about to replace it. */

static void *
rival_main (void *arg)
{
  struct nc_control **got = arg;

  *got = nc_control_open (path);
  rival_ended = true;
  return NULL;
}

int
flock (int fd, int operation)
{
  const int r = syscall (SYS_flock, fd, operation);

  if (r == -1 && errno == EWOULDBLOCK)
    rival_waits = true;
  return r;
}

int
unlinkat (int dir, const char *name, int flags)
{
  if (rival_comes && strcmp (name, strrchr (path, '/') + 1) == 0) {
    rival_comes = false;
    must (pthread_create (&rival_thread, NULL, rival_main, &rival) == 0,
          "thread");
    while (!rival_waits && !rival_ended)
      poll (NULL, 0, 1);
  }
  if (unlink_errno) {
    errno = unlink_errno;
    return -1;
  }
  return syscall (SYS_unlinkat, dir, name, flags);
}

/* What a server leaves behind when it dies. */
static void
leave_socket (void)
{
  control = nc_control_open (path);
  must (control && rename (path, "old") == 0, "rename");
  nc_control_close (control);
  must (rename ("old", path) == 0, "rename");
}

static void
test_left (void)
{
  leave_socket ();
  unlink_errno = EACCES;
  tap_clear ();
  ok (nc_control_open (path) == NULL && errno == EACCES && tap_errors == 1 &&
      strstr (tap_error, "cannot be replaced: Permission denied"),
      "what keeps one that nobody serves from going is told");
  unlink_errno = 0;
  ok (nc_listen_check ("socket", path) == 0 && files () == 0, "else it goes");
}

static void
test_rival (void)
{
  leave_socket ();
  rival_comes = true;
  tap_clear ();
  control = nc_control_open (path);
  must (!rival_comes && pthread_join (rival_thread, NULL) == 0, "rival");
  ok (control && rival == NULL && tap_errors == 1 &&
      strstr (tap_error, "another server"),
      "of two servers that start at once one gets the socket");
  close (dial ());
  nc_control_close (rival);
  nc_control_close (control);
}

static void
test_commands (void)
{
  struct peer p = negotiated ();

  ok (does (&p, "x-echo", "\"text\":\"hey\"",
            "{\"return\":{\"text\":\"hey\"},\"id\":\"x-echo\"}"),
      "a command can be added");
  ok (does (&p, "query-version", "", "\"package\":\"nbdchain "), "version");
  ok (does (&p, "query-commands", "", "\"query-block-jobs\"") &&
      strstr (p.line, "\"x-echo\"") && strstr (p.line, "qmp_capabilities"),
      "commands");
  ok (does (&p, "query-jobs", "", "{\"return\":[]") &&
      does (&p, "query-block-jobs", "", "{\"return\":[]"), "no jobs");
  ok (does (&p, "job-pause", "\"id\":\"x\"", "\"GenericError\"") &&
      does (&p, "block-job-pause", "\"device\":\"x\"",
            "\"DeviceNotActive\"") &&
      does (&p, "block-job-cancel", "\"device\":\"x\",\"force\":true",
            "\"DeviceNotActive\"") &&
      does (&p, "block-job-set-speed", "\"device\":\"x\",\"speed\":1",
            "\"DeviceNotActive\"") &&
      does (&p, "block-job-dismiss", "\"id\":\"x\"", "\"DeviceNotActive\"") &&
      does (&p, "job-dismiss", "\"id\":\"x\"", "\"GenericError\""),
      "jobs that are not there");
  ok (does (&p, "quit", "", "{\"return\":{}") && quits == 1, "quit");
  hang_up (&p);
}

/* Skip what is said of others. */
static void
skip_to (struct peer *watcher, const char *text)
{
  do
    must (hears (watcher, "{"), "event");
  while (strstr (watcher->line, text) == NULL);
}

static void
ask_until (struct peer *p, const char *text)
{
  do
    must (does (p, "query-jobs", "", "{"), "jobs");
  while (strstr (p->line, text) == NULL);
}

/* A job that comes to its end, and who hears of it. */
static void
test_good_job (struct peer *p, struct peer *watcher)
{
  must (create (NULL, false, true) == 0, "create");
  ok (hears (watcher, "{\"timestamp\":{\"seconds\":...,\"microseconds\":...}"
             ",\"event\":\"JOB_STATUS_CHANGE\",\"data\":{\"id\":\"disk\","
             "\"status\":\"created\"}}") &&
      hears (watcher, "\"running\""), "events are sent to all");
  ask_until (p, "\"x-zero\":4");
  ok (strstr (p->line, "{\"return\":[{\"id\":\"disk\",\"type\":\"stream\","
              "\"status\":\"running\",\"current-progress\":40,"
              "\"total-progress\":100,") &&
      strstr (p->line, "\"x-copied\":30") &&
      strstr (p->line, "\"x-local\":6") &&
      strstr (p->line, "\"x-on-error\":\"report\"") &&
      strstr (p->line, "\"error\"") == NULL, "query-jobs");
  ok (does (p, "query-block-jobs", "", "{\"return\":[{\"type\":\"stream\","
            "\"device\":\"disk\",\"len\":100,\"offset\":40,\"busy\":true,"
            "\"paused\":false,\"speed\":5,\"io-status\":\"ok\","
            "\"ready\":false,\"status\":\"running\",\"auto-finalize\":true,"
            "\"auto-dismiss\":false,"), "query-block-jobs");
  ok (does (p, "block-job-pause", "\"device\":\"disk\"", "\"return\"") &&
      hears (watcher, "\"paused\"") &&
      does (p, "job-pause", "\"id\":\"disk\"", "already paused") &&
      does (p, "job-resume", "\"id\":\"disk\"", "\"return\"") &&
      hears (watcher, "\"running\"") &&
      does (p, "block-job-resume", "\"device\":\"disk\"", "GenericError") &&
      does (p, "job-complete", "\"id\":\"disk\"", "cannot complete"),
      "pause and resume, under both names");
  ok (does (p, "block-job-set-speed", "\"device\":\"disk\",\"speed\":-1",
            "GenericError") &&
      does (p, "block-job-set-speed", "\"device\":\"disk\",\"speed\":7",
            "\"return\"") && hears (watcher, "\"ready\"") &&
      hears (watcher, "\"event\":\"BLOCK_JOB_READY\",\"data\":{\"type\":"
             "\"stream\",\"device\":\"disk\",\"len\":100,\"offset\":100,"
             "\"speed\":7}"), "set-speed, and a job that gets ready");
  ok (does (p, "job-complete", "\"id\":\"disk\"", "\"return\"") &&
      hears (watcher, "\"waiting\"") && hears (watcher, "\"pending\"") &&
      hears (watcher, "BLOCK_JOB_COMPLETED") &&
      hears (watcher, "\"concluded\"") &&
      does (p, "job-dismiss", "\"id\":\"disk\"", "\"return\"") &&
      hears (watcher, "\"null\""), "complete and dismiss");
}

static void
test_bad_job (struct peer *p, struct peer *watcher)
{
  must (create ("bad", true, true) == 0, "create");
  ok (hears (watcher, "created") && hears (watcher, "running") &&
      hears (watcher, "\"event\":\"BLOCK_JOB_ERROR\",\"data\":{\"device\":"
             "\"bad\",\"operation\":\"write\",\"action\":\"stop\"}") &&
      hears (watcher, "aborting") &&
      hears (watcher, "BLOCK_JOB_COMPLETED...\"error\":\"disk full"),
      "an error is an event");
  ok (does (p, "query-block-jobs", "", "\"error\":\"disk full") &&
      strstr (p->line, "\"io-status\":\"nospace\"") &&
      does (p, "block-job-dismiss", "\"id\":\"bad\"", "\"return\""),
      "and can be looked at afterwards");
}

static void
test_cancelled_job (struct peer *p, struct peer *watcher)
{
  must (create ("c", false, false) == 0, "create");
  skip_to (watcher, "running");
  ask_until (p, "\"current-progress\":40");
  ok (does (p, "block-job-cancel", "\"device\":\"c\"", "\"return\"") &&
      hears (watcher, "aborting") &&
      hears (watcher, "BLOCK_JOB_CANCELLED...\"offset\":40"), "cancel");
  skip_to (watcher, "\"null\"");
}

static void
test_life (void)
{
  struct peer p = negotiated (), watcher = negotiated ();
  struct peer deaf = greeted ();

  test_good_job (&p, &watcher);
  test_bad_job (&p, &watcher);
  test_cancelled_job (&p, &watcher);
  say (&deaf, "{\"execute\":\"qmp_capabilities\"}");
  ok (hears (&deaf, "{\"return\":{}}"),
      "who has not negotiated gets no events");
  hang_up (&p);
  hang_up (&watcher);
  hang_up (&deaf);
}

/* What is said of a failed request at the millisecond MS; "" if nothing. */
static bool
io_error_is (struct nc_io_errors *errors, enum nc_job_operation operation,
             int err, uint64_t ms, const char *text)
{
  json_t *data = nc_io_error_data (errors, operation, err, "top.fvd",
                                   ms * 1000000);
  char *said = json_dumps (data, JSON_COMPACT);
  const bool good = said ? *text && strstr (said, text) != NULL
    : *text == '\0';

  if (!good)
    note ("%s", said ? said : "nothing");
  free (said);
  json_decref (data);
  return good;
}

static void
test_io_errors (void)
{
  struct nc_io_errors errors = { .lock = PTHREAD_MUTEX_INITIALIZER };
  struct peer p = negotiated ();
  unsigned n = 0;

  ok (io_error_is (&errors, NC_JOB_READ, EIO, 5000, "\"x-count\":1") &&
      io_error_is (&errors, NC_JOB_READ, EIO, 5000, "") &&
      io_error_is (&errors, NC_JOB_READ, ENOSPC, 5999, "") &&
      io_error_is (&errors, NC_JOB_READ, EIO, 6000, "\"x-count\":3") &&
      io_error_is (&errors, NC_JOB_READ, EIO, 6500, "") &&
      io_error_is (&errors, NC_JOB_READ, EIO, 60000, "\"x-count\":2"),
      "failed requests are told once a second, and counted");
  ok (io_error_is (&errors, NC_JOB_WRITE, EIO, 60000, "\"nospace\":false") &&
      io_error_is (&errors, NC_JOB_WRITE, ENOSPC, 60000,
                   "\"nospace\":true") &&
      io_error_is (&errors, NC_JOB_WRITE, EDQUOT, 60999, "") &&
      io_error_is (&errors, NC_JOB_WRITE, EDQUOT, 61000, "\"x-count\":2"),
      "each kind by itself");
  errno = EBADF;
  nc_control_io_error (control, NC_JOB_WRITE, ENOSPC);
  ok (errno == EBADF && hears (&p, "BLOCK_IO_ERROR...\"device\":\"disk\""
                               "...\"operation\":\"write\""),
      "a failed request is an event");
  for (unsigned i = 0; i < 10000; i++)
    nc_control_io_error (control, NC_JOB_WRITE, ENOSPC);
  nc_control_event (control, "X_TEST", json_object ());
  do {
    json_decref (hear (&p));
    n++;
  } while (strstr (p.line, "BLOCK_IO_ERROR"));
  ok (strstr (p.line, "X_TEST") != NULL && n < 1000,
      "a flood of them is a few events");
  hang_up (&p);
}

/* Whether the server hangs up on P after whatever it sends. */
static bool
is_hung_up (struct peer *p)
{
  char text[4096];
  ssize_t n;

  do
    n = recv (p->fd, text, sizeof text, 0);
  while (n > 0);
  return n == 0 || errno == ECONNRESET;
}

static void
test_slow (void)
{
  struct peer slow = negotiated (), p = negotiated ();
  const unsigned long room = NC_CONTROL_QUEUE;
  char text[2000];
  int size = 4096;
  unsigned n = 0;

  setsockopt (slow.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  memset (text, 'x', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  tap_clear ();
  while (tap_errors == 0 && n < 100000) {
    nc_control_event (control, "X_TEST", json_pack ("{s:s}", "x", text));
    must (hears (&p, "X_TEST"), "event");
    n++;
  }
  ok (n * sizeof text > room / 2 && n * sizeof text < 4 * room &&
      strstr (tap_error, "does not read"),
      "a client that does not read its events is dropped");
  ok (is_hung_up (&slow) && does (&p, "query-version", "", "return"),
      "and nobody else");
  hang_up (&slow);

  /* Replies are not even made. */
  slow = negotiated ();
  setsockopt (slow.fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  for (n = 0; n < 100000; n++) {
    struct pollfd fds = { .fd = slow.fd, .events = POLLOUT };
    static const char command[] = "{\"execute\":\"query-commands\"}\n";

    /* As many as there are replies to be looked at are taken in any case. */
    if (poll (&fds, 1, n < 5 ? -1 : 200) == 0 ||
        send (slow.fd, command, strlen (command),
              MSG_NOSIGNAL | MSG_DONTWAIT) <= 0)
      break;
  }
  ok (n < 100000 && does (&p, "query-version", "", "return"),
      "from a client that does not read no more commands are taken");
  n = 0;
  while (n < 5 && hears (&slow, "query-jobs"))
    n++;
  ok (n == 5, "until it does");
  hang_up (&slow);
  hang_up (&p);
}

static void
test_many (void)
{
  struct peer p[NC_CONTROL_CLIENTS];
  struct peer more;
  unsigned n = 0;

  while (n < NC_CONTROL_CLIENTS)
    p[n++] = greeted ();
  more.fd = dial ();
  more = (struct peer) { .fd = more.fd, .in = fdopen (more.fd, "r") };
  ok (hears (&more, "GenericError") && is_hung_up (&more),
      "there is a limit to the number of clients");
  hang_up (&more);
  for (unsigned i = 0; i < n; i++)
    must (does (&p[i], "qmp_capabilities", "", "return"), "all are served");
  hang_up (&p[0]);
  p[0] = greeted ();
  ok (true, "who goes makes room");
  for (unsigned i = 0; i < n; i++)
    hang_up (&p[i]);
}

/* Clients who do anything while events are sent. */
static _Atomic (bool) over;

static void *
noise (void *arg)
{
  uint64_t seed = (uintptr_t) arg;
  static const char *const texts[] = {
    "{\"execute\":\"qmp_capabilities\"}", "{\"execute\":\"query-jobs\"}",
    "x\n", "{\"execute\":", "\"query-block-jobs\"}", "{}", "[[[", "\n", "}",
    "{\"execute\":\"job-cancel\",\"arguments\":{\"id\":\"disk\"}}",
  };

  while (!over) {
    const int fd = dial ();
    char in[512];

    for (uint64_t n = rnd_below (&seed, 40); n > 0; n--) {
      const char *text = texts[rnd_below (&seed, 10)];

      send (fd, text, strlen (text), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (rnd_below (&seed, 3) == 0)
        recv (fd, in, sizeof in, MSG_DONTWAIT);
    }
    close (fd);
  }
  return NULL;
}

static void
test_storm (uint64_t seed)
{
  pthread_t t[4];
  struct peer p = greeted ();

  for (unsigned i = 0; i < 4; i++)
    must (pthread_create (&t[i], NULL, noise,
                          (void *) (uintptr_t) (seed + i)) == 0, "thread");
  for (unsigned i = 0; i < 300; i++) {
    create (NULL, false, false);
    nc_control_event (control, "X_TEST", json_object ());
    usleep (500);
  }
  over = true;
  for (unsigned i = 0; i < 4; i++)
    pthread_join (t[i], NULL);
  ok (does (&p, "qmp_capabilities", "", "return") &&
      does (&p, "query-jobs", "", "return"),
      "a client is served while others do anything");
  hang_up (&p);
}

static void
test_stop (void)
{
  struct peer p = negotiated (), q = greeted ();

  create ("last", false, false);
  nc_jobs_stop (jobs);
  nc_control_stop (control);
  nc_control_stop (control);
  ok (is_hung_up (&p) && is_hung_up (&q), "stop hangs up on everybody");
  nc_control_close (control);
  nc_jobs_free (jobs);
  hang_up (&p);
  hang_up (&q);
}

static void
test_paths (void)
{
  char dir[] = "/tmp/nbdchain-control.XXXXXX";
  char name[200];

  must (mkdtemp (dir) && chdir (dir) == 0, "directory");
  snprintf (path, sizeof path, "%s/qmp", dir);
  tap_clear ();
  memset (name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  ok (nc_control_open (name) == NULL && errno == EINVAL &&
      nc_control_open ("") == NULL && errno == EINVAL &&
      nc_control_open ("no/such/dir") == NULL && errno == ENOENT &&
      tap_errors == 3, "a path that cannot be is refused");
}

int
main (void)
{
  const uint64_t seed = tap_start (120);

  jobs = nc_jobs_new ();
  must (jobs != NULL, "jobs");
  test_paths ();
  test_name ();
  test_long ();
  test_exchanged ();
  test_left ();
  test_rival ();
  test_socket ();
  test_commands ();
  test_life ();
  test_io_errors ();
  test_slow ();
  test_many ();
  test_storm (seed);
  test_stop ();
  *strrchr (path, '/') = '\0';
  must (chdir ("/") == 0 && rmdir (path) == 0, "nothing is left");
  return tap_done ();
}
