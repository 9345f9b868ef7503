/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A connection that cannot be relied on: passes bytes between clients and a
 * server, and stalls or cuts connections, by a seed or when told to.
 *
 * A remote base is put behind this to see that its loss costs time at most.
 * One thread; each direction of a connection has one buffer.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
"Usage: flaky [OPTION]... LISTEN SERVER\n"
"Listen on the Unix socket LISTEN and pass every connection to the Unix\n"
"socket SERVER.\n"
"\n"
"  --seed N           what random faults depend on (default 1)\n"
"  --cut-every N      cut a connection after about N bytes (default never)\n"
"  --stall-every N    stall all connections after about N bytes\n"
"  --stall-ms N       for about this long (default 200)\n"
"  --refuse-ms N      after a cut, refuse connections for about this long\n"
"  --calm             no faults until told\n"
"  --control FIFO     make FIFO, and obey the lines written to it:\n"
"                     faults, calm (as asked for above, or none),\n"
"                     cut (all connections), stall, go (end of a stall),\n"
"                     refuse (close new connections at once), accept\n";

enum { MAX_CONNECTIONS = 128, BUFFER = 65536 };

struct half {
  uint8_t buf[BUFFER];
  size_t from, to;              /* what waits to be sent */
};

struct connection {
  int fd[2];                    /* client, server; -1 in both: unused */
  struct half half[2];          /* from the client, from the server */
  uint64_t left;                /* bytes until it is cut */
};

static struct connection *connections[MAX_CONNECTIONS];
static uint64_t state, cut_every, stall_every, stall_left;
static unsigned stall_ms = 200, refuse_ms;
static double stalled_until, refused_until;
static bool stalled, refusing, calm;
static const char *server_path;

static double
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

static uint64_t
random_below (uint64_t limit)
{
  uint64_t x;

  state += UINT64_C (0x9e3779b97f4a7c15);
  x = state;
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return (x ^ (x >> 31)) % limit;
}

/* About N: from 1 to twice that. */
static uint64_t
about (uint64_t n)
{
  return n == 0 ? UINT64_MAX : 1 + random_below (2 * n);
}

static int
unix_socket (const char *path, struct sockaddr_un *addr)
{
  memset (addr, 0, sizeof *addr);
  addr->sun_family = AF_UNIX;
  if (strlen (path) >= sizeof addr->sun_path) {
    fprintf (stderr, "flaky: %s: too long\n", path);
    exit (2);
  }
  strcpy (addr->sun_path, path);
  return socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static void
close_connection (size_t i)
{
  close (connections[i]->fd[0]);
  close (connections[i]->fd[1]);
  free (connections[i]);
  connections[i] = NULL;
}

static void
cut_all (void)
{
  size_t i;

  for (i = 0; i < MAX_CONNECTIONS; i++)
    if (connections[i] != NULL)
      close_connection (i);
}

static void
accept_one (int listener)
{
  struct sockaddr_un addr;
  struct connection *c;
  size_t i;
  int client = accept4 (listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  int server;

  if (client == -1)
    return;
  for (i = 0; i < MAX_CONNECTIONS && connections[i] != NULL; i++)
    ;
  server = unix_socket (server_path, &addr);
  if (refusing || now () < refused_until || i == MAX_CONNECTIONS ||
      server == -1 ||
      connect (server, (struct sockaddr *) &addr, sizeof addr) == -1) {
    close (client);
    if (server != -1)
      close (server);
    return;
  }
  fcntl (server, F_SETFL, O_NONBLOCK);
  c = calloc (1, sizeof *c);
  if (c == NULL) {
    perror ("calloc");
    exit (2);
  }
  c->fd[0] = client;
  c->fd[1] = server;
  c->left = about (cut_every);
  connections[i] = c;
}

/* Pass on from side FROM of C.  Returns false when that side is at its end. */
static bool
pass (struct connection *c, int from, short got)
{
  struct half *half = &c->half[from];
  ssize_t n;

  if ((got & (POLLIN | POLLHUP | POLLERR)) && half->from == half->to) {
    n = read (c->fd[from], half->buf, sizeof half->buf);
    if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR))
      return false;
    half->from = 0;
    half->to = n > 0 ? n : 0;
  }
  if (half->from < half->to) {
    size_t count = half->to - half->from;

    if (count > c->left && !calm)
      count = c->left;
    n = write (c->fd[!from], half->buf + half->from, count);
    if (n == -1)
      return errno == EAGAIN || errno == EINTR;
    half->from += n;
    if (cut_every > 0 && !calm) {
      c->left -= n;
      if (c->left == 0) {
        refused_until = now () + about (refuse_ms) * (refuse_ms > 0) / 1e3;
        return false;
      }
    }
    if (stall_every > 0 && !calm) {
      if (stall_left <= (uint64_t) n) {
        stall_left = about (stall_every);
        stalled_until = now () + about (stall_ms) / 1e3;
      }
      else
        stall_left -= n;
    }
  }
  return true;
}

static void
obey (const char *word)
{
  if (strcmp (word, "cut") == 0)
    cut_all ();
  else if (strcmp (word, "calm") == 0 || strcmp (word, "faults") == 0)
    calm = strcmp (word, "calm") == 0;
  else if (strcmp (word, "stall") == 0)
    stalled = true;
  else if (strcmp (word, "go") == 0)
    stalled = false;
  else if (strcmp (word, "refuse") == 0)
    refusing = true;
  else if (strcmp (word, "accept") == 0)
    refusing = false;
  else
    fprintf (stderr, "flaky: unknown command: %s\n", word);
}

static void
read_control (int fd)
{
  char buf[512], *save = NULL, *word;
  const ssize_t n = read (fd, buf, sizeof buf - 1);

  if (n <= 0)
    return;
  buf[n] = '\0';
  for (word = strtok_r (buf, " \n", &save); word != NULL;
       word = strtok_r (NULL, " \n", &save))
    obey (word);
}

/* Add the sockets that can go on to FDS. */
static size_t
gather (struct pollfd *fds, struct connection **of, size_t n)
{
  size_t i;
  int side;

  for (i = 0; i < MAX_CONNECTIONS; i++)
    for (side = 0; connections[i] != NULL && side < 2; side++) {
      const struct half *in = &connections[i]->half[side];
      const struct half *out = &connections[i]->half[!side];

      fds[n].fd = connections[i]->fd[side];
      fds[n].events = (in->from == in->to ? POLLIN : 0) |
        (out->from < out->to ? POLLOUT : 0);
      fds[n].revents = 0;
      of[n++] = connections[i];
    }
  return n;
}

static void
serve_connections (const struct pollfd *fds, struct connection **of, size_t n)
{
  size_t i, j;

  for (i = 2; i + 1 < n; i += 2) {
    struct connection *c = of[i];

    for (j = 0; j < MAX_CONNECTIONS && connections[j] != c; j++)
      ;
    if (j == MAX_CONNECTIONS || (fds[i].revents | fds[i + 1].revents) == 0)
      continue;
    if (!pass (c, 0, fds[i].revents) || !pass (c, 1, fds[i + 1].revents))
      close_connection (j);
  }
}

static void
loop (int listener, int control)
{
  static struct pollfd fds[2 + 2 * MAX_CONNECTIONS];
  static struct connection *of[2 + 2 * MAX_CONNECTIONS];

  for (;;) {
    const double t = now ();
    const bool still = stalled || t < stalled_until;
    size_t n = 2;

    fds[0].fd = listener;
    fds[1].fd = control;
    fds[0].events = fds[1].events = POLLIN;
    fds[0].revents = fds[1].revents = 0;
    if (!still)
      n = gather (fds, of, n);
    if (poll (fds, n, t < stalled_until ? 1 : -1) == -1 && errno != EINTR) {
      perror ("poll");
      exit (2);
    }
    serve_connections (fds, of, n);
    if (fds[1].revents & POLLIN)
      read_control (control);
    if (fds[0].revents & POLLIN)
      accept_one (listener);
  }
}

static uint64_t
number (const char *text)
{
  char *end;
  const uint64_t n = strtoull (text, &end, 0);

  if (end == text || *end != '\0') {
    fprintf (stderr, "flaky: %s: not a number\n", text);
    exit (2);
  }
  return n;
}

int
main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "seed", required_argument, NULL, 's' },
    { "cut-every", required_argument, NULL, 'c' },
    { "stall-every", required_argument, NULL, 't' },
    { "stall-ms", required_argument, NULL, 'm' },
    { "refuse-ms", required_argument, NULL, 'r' },
    { "calm", no_argument, NULL, 'l' },
    { "control", required_argument, NULL, 'f' },
    { NULL, 0, NULL, 0 }
  };
  struct sockaddr_un addr;
  char made[sizeof addr.sun_path + 1];
  int listener, control = -1, c;

  state = 1;
  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1) {
    switch (c) {
    case 'h': fputs (help, stdout); return 0;
    case 's': state = number (optarg); break;
    case 'c': cut_every = number (optarg); break;
    case 't': stall_every = number (optarg); break;
    case 'm': stall_ms = number (optarg); break;
    case 'r': refuse_ms = number (optarg); break;
    case 'l': calm = true; break;
    case 'f':
      if ((mkfifo (optarg, 0600) == -1 && errno != EEXIST) ||
          (control = open (optarg, O_RDWR | O_NONBLOCK | O_CLOEXEC)) == -1) {
        perror (optarg);
        return 2;
      }
      break;
    default: fputs ("Try 'flaky --help'.\n", stderr); return 2;
    }
  }
  if (optind != argc - 2) {
    fputs ("flaky: two sockets are needed.  Try 'flaky --help'.\n", stderr);
    return 2;
  }
  signal (SIGPIPE, SIG_IGN);
  stall_left = about (stall_every);
  server_path = argv[optind + 1];
  /* Who sees the socket can connect to it. */
  snprintf (made, sizeof made, "%s~", argv[optind]);
  listener = unix_socket (made, &addr);
  unlink (made);
  if (listener == -1 ||
      bind (listener, (struct sockaddr *) &addr, sizeof addr) == -1 ||
      listen (listener, 64) == -1 || rename (made, argv[optind]) == -1) {
    perror (argv[optind]);
    return 2;
  }
  loop (listener, control);
}
