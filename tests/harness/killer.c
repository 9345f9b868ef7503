/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Kills the server with SIGKILL at random moments under load, again and again,
 * and looks each time whether the disk still holds what it must.
 *
 * plain: the server is nbdkit itself, and is started again by this program.
 * What was flushed or written with FUA must be there; the rest may be.
 * serve: the server is a supervisor, whose child is killed and which must
 * start another by itself.  Every write that was acknowledged must be there,
 * though nothing is ever flushed.
 */

#include <config.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client.h"

static const char help[] =
"Usage: killer [OPTION]... --socket PATH -- SERVER [ARGUMENT]...\n"
"Start SERVER, which must listen on the Unix socket PATH and stay in the\n"
"foreground, kill it with SIGKILL under load many times, and check the disk\n"
"each time.\n"
"\n"
"  --serve            SERVER is a supervisor: kill its child, which it must\n"
"                     replace; never flush, and lose no acknowledged write\n"
"  --kills N          how often (default 100)\n"
"  --seed N           what the operations depend on (default 1)\n"
"  --connections N    connections, up to 16 (default 2)\n"
"  --inflight N       operations in flight on each (default 8)\n"
"  --overlap          let operations in flight overlap\n"
"  --max-size BYTES   the longest read or write (default 262144)\n"
"  --live-ms N        let each server live this long before the load and its\n"
"                     death, for supervisors that pause after early ones\n"
"  --max-ops N        operations between two kills, at most (default 120)\n"
"  --base FILE        the initial content, zeros after its end\n"
"  --state FILE       save the content at the end, for oracle --state\n"
"  --pid-file FILE    the pid file of nbdkit, removed before a start\n"
"  --log FILE         add marks for powerloss to FILE\n"
"  --flush            with --serve: flush and use FUA all the same\n"
"  --flush-at-end     flush before the last stop\n"
"  --timeout SECONDS  how long to wait for the server (default 60)\n"
"Exit status: 0 nothing lost, 1 something was, 2 trouble.\n";

enum {
  OPT_HELP = 256, OPT_SERVE, OPT_KILLS, OPT_SEED, OPT_CONNECTIONS,
  OPT_INFLIGHT, OPT_OVERLAP, OPT_MAX_SIZE, OPT_MAX_OPS, OPT_BASE, OPT_STATE,
  OPT_PID_FILE, OPT_LOG, OPT_FLUSH_AT_END, OPT_TIMEOUT, OPT_SOCKET,
  OPT_LIVE_MS, OPT_FLUSH
};

static const struct option options[] = {
  { "help", no_argument, NULL, OPT_HELP },
  { "serve", no_argument, NULL, OPT_SERVE },
  { "kills", required_argument, NULL, OPT_KILLS },
  { "seed", required_argument, NULL, OPT_SEED },
  { "connections", required_argument, NULL, OPT_CONNECTIONS },
  { "inflight", required_argument, NULL, OPT_INFLIGHT },
  { "overlap", no_argument, NULL, OPT_OVERLAP },
  { "max-size", required_argument, NULL, OPT_MAX_SIZE },
  { "live-ms", required_argument, NULL, OPT_LIVE_MS },
  { "flush", no_argument, NULL, OPT_FLUSH },
  { "max-ops", required_argument, NULL, OPT_MAX_OPS },
  { "base", required_argument, NULL, OPT_BASE },
  { "state", required_argument, NULL, OPT_STATE },
  { "pid-file", required_argument, NULL, OPT_PID_FILE },
  { "log", required_argument, NULL, OPT_LOG },
  { "flush-at-end", no_argument, NULL, OPT_FLUSH_AT_END },
  { "timeout", required_argument, NULL, OPT_TIMEOUT },
  { "socket", required_argument, NULL, OPT_SOCKET },
  { NULL, 0, NULL, 0 }
};

struct settings {
  struct client_options opts;
  bool serve, flush, flush_at_end;
  uint64_t kills, max_ops, live_ms;
  const char *base, *state, *pid_file, *log, *socket;
  char **command;
  double timeout;
};

static pid_t server = -1;

static void
nap (void)
{
  const struct timespec ms = { .tv_nsec = 1000000 };

  nanosleep (&ms, NULL);
}

static bool supervised;

/* At exit.  nbdkit would wait for our open connections, a supervisor must
 * not. */
static void
end_server (void)
{
  const double deadline = now () + 10;

  if (server == -1)
    return;
  kill (server, supervised ? SIGTERM : SIGKILL);
  while (waitpid (server, NULL, WNOHANG) == 0) {
    if (now () > deadline)
      kill (server, SIGKILL);
    nap ();
  }
  server = -1;
}

static void
start_server (const struct settings *s)
{
  const pid_t parent = getpid ();

  unlink (s->socket);
  if (s->pid_file != NULL)
    unlink (s->pid_file);
  server = fork ();
  if (server == -1) {
    perror ("fork");
    exit (2);
  }
  if (server == 0) {
    prctl (PR_SET_PDEATHSIG, s->serve ? SIGTERM : SIGKILL);
    if (getppid () != parent)
      _exit (127);
    execvp (s->command[0], s->command);
    perror (s->command[0]);
    _exit (127);
  }
}

/* The parent of process PID, or 0. */
static pid_t
parent_of (const char *pid)
{
  char path[300], buf[512];
  const char *paren;
  ssize_t n;
  int fd, parent;

  snprintf (path, sizeof path, "/proc/%s/stat", pid);
  fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd == -1)
    return 0;
  n = read (fd, buf, sizeof buf - 1);
  close (fd);
  if (n <= 0)
    return 0;
  buf[n] = '\0';
  paren = strrchr (buf, ')');
  if (paren == NULL || paren[1] == '\0' || paren[2] == 'Z' ||
      sscanf (paren + 3, "%d", &parent) != 1)
    return 0;
  return parent;
}

/* The child of the supervisor, or -1 if it has none at the moment. */
static pid_t
child_of_server (void)
{
  DIR *dir = opendir ("/proc");
  struct dirent *entry;
  pid_t child = -1;

  while (dir != NULL && child == -1 && (entry = readdir (dir)) != NULL)
    if (isdigit ((unsigned char) entry->d_name[0]) &&
        parent_of (entry->d_name) == server)
      child = atoi (entry->d_name);
  if (dir != NULL)
    closedir (dir);
  return child;
}

static pid_t
wait_for_child (double seconds)
{
  const double deadline = now () + seconds;
  pid_t child;

  while ((child = child_of_server ()) == -1) {
    if (now () > deadline || waitpid (server, NULL, WNOHANG) != 0) {
      fprintf (stderr, "FAILED: the supervisor has no child and starts "
               "none\n");
      exit (1);
    }
    nap ();
  }
  return child;
}

static void
kill_server (const struct settings *s)
{
  int status;

  if (s->serve) {
    kill (wait_for_child (s->timeout), SIGKILL);
    return;
  }
  kill (server, SIGKILL);
  if (waitpid (server, &status, 0) == -1) {
    perror ("waitpid");
    exit (2);
  }
  server = -1;
  if (!WIFSIGNALED (status) || WTERMSIG (status) != SIGKILL) {
    fprintf (stderr, "FAILED: the server died before it was killed, status "
             "0x%x\n", status);
    exit (1);
  }
}

/* Stop the supervisor or server as a user would. */
static double
stop_server (const struct settings *s)
{
  const double began = now ();
  int status;

  kill (server, SIGTERM);
  for (;;) {
    const pid_t r = waitpid (server, &status, WNOHANG);

    if (r == server)
      break;
    if (r == -1 || now () - began > s->timeout) {
      kill (server, SIGKILL);
      fprintf (stderr, "FAILED: SIGTERM did not stop the server\n");
      exit (1);
    }
    nap ();
  }
  server = -1;
  if (status != 0) {
    fprintf (stderr, "FAILED: stopped by SIGTERM with status 0x%x\n", status);
    exit (1);
  }
  return now () - began;
}

/* Connect and look at the whole disk; again, if it dies meanwhile. */
static void
reconnect_and_check (const struct settings *s, struct client *c,
                     const char *uri, struct rng *rng, uint64_t *deaths)
{
  for (;;) {
    if (client_connect (c, uri, s->timeout) == -1)
      exit (1);
    if (s->serve && rng_below (rng, 8) == 0) {
      /* Another death at once. */
      kill_server (s);
      ++*deaths;
    }
    client_settle (c, s->serve ? CERTAIN_REPLIED : CERTAIN_DURABLE,
                   "wrong data after the death of the server");
    if (!c->lost)
      return;
  }
}

static void
spin (uint64_t microseconds)
{
  const double until = now () + microseconds / 1e6;

  while (now () < until)
    ;
}

/* A server that answered at time SINCE is not to be killed yet. */
static void
let_live (const struct settings *s, double since)
{
  while (now () - since < s->live_ms / 1e3)
    nap ();
}

static uint64_t
number (const char *text, uint64_t least, uint64_t most)
{
  char *end;
  const uint64_t n = strtoull (text, &end, 0);

  if (end == text || *end != '\0' || n < least || n > most) {
    fprintf (stderr, "killer: %s: expected a number from %" PRIu64 " to %"
             PRIu64 "\n", text, least, most);
    exit (2);
  }
  return n;
}

static void
parse (struct settings *s, int argc, char *argv[])
{
  int c;

  client_options_init (&s->opts);
  s->opts.connections = 2;
  s->opts.inflight = 8;
  s->opts.max_count = 256 << 10;
  s->opts.survive = true;
  s->opts.long_extents = true;  /* the oracle's subject */
  s->opts.settling = SETTLE_BY_CALLER;
  s->kills = 100;
  s->max_ops = 120;
  s->timeout = 60;
  while ((c = getopt_long (argc, argv, "+", options, NULL)) != -1) {
    switch (c) {
    case OPT_HELP: fputs (help, stdout); exit (0);
    case OPT_SERVE: s->serve = true; break;
    case OPT_KILLS: s->kills = number (optarg, 1, UINT64_MAX); break;
    case OPT_SEED: s->opts.seed = number (optarg, 0, UINT64_MAX); break;
    case OPT_CONNECTIONS: s->opts.connections = number (optarg, 1, 16); break;
    case OPT_INFLIGHT: s->opts.inflight = number (optarg, 1, 256); break;
    case OPT_OVERLAP: s->opts.overlap = true; break;
    case OPT_MAX_SIZE: s->opts.max_count = number (optarg, 1, 32 << 20); break;
    case OPT_MAX_OPS: s->max_ops = number (optarg, 1, 1 << 20); break;
    case OPT_LIVE_MS: s->live_ms = number (optarg, 0, 60000); break;
    case OPT_FLUSH: s->flush = true; break;
    case OPT_BASE: s->base = optarg; break;
    case OPT_STATE: s->state = optarg; break;
    case OPT_PID_FILE: s->pid_file = optarg; break;
    case OPT_LOG: s->log = optarg; break;
    case OPT_FLUSH_AT_END: s->flush_at_end = true; break;
    case OPT_TIMEOUT: s->timeout = number (optarg, 1, 86400); break;
    case OPT_SOCKET: s->socket = optarg; break;
    default: fputs ("Try 'killer --help'.\n", stderr); exit (2);
    }
  }
  if (optind >= argc || s->socket == NULL) {
    fputs ("killer: --socket and a server are needed.  Try 'killer --help'."
           "\n", stderr);
    exit (2);
  }
  s->command = &argv[optind];
  if (s->serve && !s->flush) {
    s->opts.weight[OP_FLUSH] = 0;
    s->opts.fua_percent = 0;
  }
}

int
main (int argc, char *argv[])
{
  struct settings s = { 0 };
  struct client c;
  struct rng rng;
  struct log marks;
  char uri[4096];
  int64_t size;
  uint64_t i, deaths = 0;
  const double began = now ();
  double stop;

  parse (&s, argc, argv);
  rng.state = s.opts.seed * 77 + 5;
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", s.socket);
  if (s.log != NULL) {
    if (log_open (&marks, s.log) == -1) {
      perror (s.log);
      return 2;
    }
    s.opts.log = &marks;
  }
  supervised = s.serve;
  start_server (&s);
  atexit (end_server);
  size = disk_size (uri, s.timeout);
  if (size == -1)
    return 2;
  client_init (&c, &s.opts, size);
  if (s.base != NULL && reference_load_raw (&c.ref, s.base) == -1)
    return 2;
  if (client_connect (&c, uri, s.timeout) == -1)
    return 2;
  for (i = 0; i < s.kills; i++) {
    let_live (&s, now ());
    client_send (&c, rng_below (&rng, s.max_ops) + 1);
    spin (rng_below (&rng, 1000));
    kill_server (&s);
    deaths++;
    client_drain (&c);
    if (!s.serve)
      start_server (&s);
    reconnect_and_check (&s, &c, uri, &rng, &deaths);
  }
  if (s.flush_at_end)
    client_flush (&c);
  if (s.state != NULL && client_save (&c, s.state) == -1)
    return 2;
  if (!s.serve)
    client_disconnect (&c);     /* nbdkit waits for idle clients */
  stop = stop_server (&s);
  printf ("killer: seed %" PRIu64 ", %s: %" PRIu64 " deaths, %" PRIu64
          " writes, %" PRIu64 " zeros, %" PRIu64 " trims, %" PRIu64
          " flushes, %" PRIu64 " operations cut off, %.1f s, stopped in %.2f"
          " s: nothing lost\n", s.opts.seed, s.serve ? "serve" : "plain",
          deaths, c.sent[OP_WRITE], c.sent[OP_ZERO], c.sent[OP_TRIM],
          c.sent[OP_FLUSH], c.unfinished, now () - began, stop);
  client_free (&c);
  return 0;
}
