/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Sockets of clients, seats, handshakes, and the end of a connection.  This
 * program is in the place of nbdkit: its calls of accept4 and so on are those
 * that are redirected. */

#include <config.h>

#include "serve/clients.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "serve/import.h"
#include "serve/traffic.h"
#include "tap.h"

static int listener;
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static socklen_t address_len;

/* A connection as nbdkit has it: its thread, which waits to be told to
 * leave. */
struct connection {
  int client, server;           /* sockets */
  int admitted;                 /* what nc_clients_admit said */
  bool open;                    /* the handshake gets done */
  _Atomic (bool) begun, leave;
  pthread_t thread;
};

static void
until (_Atomic (bool) *flag)
{
  while (!*flag)
    poll (NULL, 0, 1);
}

static void *
serve (void *arg)
{
  struct connection *c = arg;
  struct sockaddr_storage name;
  socklen_t len = sizeof name;

  must (nc_clients_have_sockets (), "the socket is known");
  must (getpeername (c->server, (struct sockaddr *) &name, &len) == 0,
        "getpeername");
  c->admitted = nc_clients_admit ();
  if (c->admitted == 0 && c->open)
    nc_clients_opened ();
  c->begun = true;
  until (&c->leave);
  close (c->server);
  return NULL;
}

static void
come (struct connection *c, bool open)
{
  *c = (struct connection) { .open = open };
  c->client = socket (AF_UNIX, SOCK_STREAM, 0);
  must (connect (c->client, (struct sockaddr *) &address, address_len) == 0,
        "connect");
  c->server = accept4 (listener, NULL, NULL, SOCK_CLOEXEC);
  must (c->server >= 0, "accept4");
  must (pthread_create (&c->thread, NULL, serve, c) == 0, "pthread_create");
  until (&c->begun);
}

static void
go (struct connection *c)
{
  c->leave = true;
  pthread_join (c->thread, NULL);
  close (c->client);
}

/* Whether the server's end has been shut down, or is within some time. */
static bool
is_ended (struct connection *c, int timeout)
{
  struct pollfd fd = { .fd = c->client, .events = POLLIN };
  char byte;

  return poll (&fd, 1, timeout) == 1 &&
    recv (c->client, &byte, 1, MSG_DONTWAIT) == 0;
}

static void
test_seats (void)
{
  struct connection a, b, c, d;

  come (&a, true);
  come (&b, false);
  ok (a.admitted == 0 && b.admitted == 0 && nc_clients_count () == 2,
      "connections are counted in the handshake");
  come (&c, true);
  ok (c.admitted == 0 && is_ended (&b, 10000) && !is_ended (&a, 0),
      "a handshake gives way to one connection more, and nothing else does");
  tap_clear ();
  come (&d, true);
  ok (d.admitted == -1 && tap_errors == 1,
      "where all handshakes are over, it is refused");
  go (&b);
  go (&d);
  ok (nc_clients_count () == 2, "a seat is free when its thread ends");
  go (&a);
  come (&d, true);
  ok (d.admitted == 0, "and taken again");
  nc_clients_shutdown ();
  ok (is_ended (&c, 0) && is_ended (&d, 0), "all sockets are shut down");
  go (&c);
  go (&d);
  ok (nc_clients_count () == 0 && !nc_clients_have_sockets (),
      "none is left");
}

static void
test_deadline (void)
{
  struct connection a, b;
  int pair[2];
  char byte = 0;

  come (&a, true);
  come (&b, false);
  must (socketpair (AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
  /* The number of the closed socket is soon that of another file. */
  go (&b);
  must (dup2 (pair[0], b.server) == b.server, "dup2");
  come (&b, false);
  ok (is_ended (&b, 20000), "a handshake that takes too long is ended");
  ok (!is_ended (&a, 0), "a connection that has finished it is not");
  ok (send (pair[0], &byte, 1, MSG_NOSIGNAL) == 1,
      "nor is a file that has the number of a closed socket");
  go (&a);
  go (&b);
  close (pair[0]);
  close (pair[1]);
}

/* A worker thread: reads two requests, the second of which is cut, and is
 * told of the end by the read of it. */

struct worker {
  struct connection *connection;
  _Atomic (bool) reading, done;
  ssize_t got;
};

static void *
work (void *arg)
{
  struct worker *w = arg;
  NC_FREE char *request = realloc (strdup ("buffer"), 28);
  size_t have = 0;

  must (request && read (w->connection->server, request, 28) == 28, "read");
  w->reading = true;
  do {
    w->got = read (w->connection->server, request + have, 28 - have);
    if (w->got > 0)
      have += w->got;
  } while (w->got > 0 && have < 28);
  w->done = true;
  return NULL;
}

static void
test_end (void)
{
  static const char request[28] = { 0x25, 0x60, (char) 0x95, 0x13, 0, 0, 0, 3 };
  struct connection c;
  struct worker w = { .connection = &c };
  pthread_t thread;

  come (&c, true);
  must (pthread_create (&thread, NULL, work, &w) == 0, "pthread_create");
  must (send (c.client, request, 28, 0) == 28, "send");
  until (&w.reading);
  must (send (c.client, request, 10, 0) == 10, "send");
  close (c.client);
  poll (NULL, 0, 50);           /* it has no more to wait for but us */
  ok (!w.done, "the end of a cut request waits for the reply that is owed");
  ok (send (c.server, request, 16, MSG_NOSIGNAL) == 16,
      "a reply that cannot be sent counts as sent");
  until (&w.done);
  ok (w.got <= 0, "then the end is told");
  pthread_join (thread, NULL);
  c.client = -1;
  go (&c);
}

int
main (void)
{
  const struct nc_clients_options options = {
    .max = 2, .handshake = 1, .memory = NC_TRAFFIC_MEMORY_MIN,
  };

  tap_start (120);
  ok (!nc_import_replace ("no_such_function", main),
      "a function that is not imported is not replaced");
  nc_clients_begin ();
  must (nc_clients_start (&options) == 0, "nc_clients_start");
  listener = socket (AF_UNIX, SOCK_STREAM, 0);
  address_len = offsetof (struct sockaddr_un, sun_path) + 1 +
    snprintf (address.sun_path + 1, 100, "nbdchain-test-%d", (int) getpid ());
  must (bind (listener, (struct sockaddr *) &address, address_len) == 0 &&
        listen (listener, 10) == 0, "listen");
  test_seats ();
  test_deadline ();
  test_end ();
  nc_clients_end ();
  close (listener);
  return tap_done ();
}
