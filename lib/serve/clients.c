/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The sockets of clients, by file descriptor, from accept4 to close; and the
 * seats that their connections take.
 *
 * A client is known as long as its socket is open: nbdkit closes it when all
 * threads of the connection but one have ended, so a thread that reads or
 * sends needs no lock to find its client.  Any other one finds it in the
 * list, under the lock, which close takes before the descriptor can become
 * that of something else.
 *
 * A seat is counted until its thread ends: for a client that leaves during
 * the handshake nbdkit calls no function of the plugin. */

#include <config.h>

#include "serve/clients.h"

#include <dlfcn.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve/import.h"
#include "serve/traffic.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"

#define FILES_MAX (1 << 20)     /* descriptors that clients may have */
#define ACCEPT_PAUSE 10         /* milliseconds, where accept4 failed */
#define ACCEPT_EVICTS 8         /* handshakes that give way then */

struct seat {
  bool ending;                  /* its client's socket was shut down, so that
                                   another one may be seated already */
};

struct client {
  int fd;
  struct client *previous, *next;
  uint64_t deadline;            /* of the handshake; 0: none, or it is over */
  bool ending;                  /* the socket was shut down */
  struct seat *seat;            /* NULL before nc_clients_admit */
  pthread_t thread;             /* that has the seat: the connection's; the
                                   others are its workers */
  struct nc_traffic traffic;
};

enum { CAUSE_FULL = 1, CAUSE_HANDSHAKE, CAUSE_ACCEPT, CAUSE_STALLED };

static struct {
  _Atomic (struct client *) *by_fd; /* n_files of them; NULL: no calls are
                                   redirected */
  size_t n_files;
  struct nc_clients_options options; /* set before there are clients */
  pthread_key_t seat_key;
  bool has_key;

  pthread_mutex_t lock;         /* guards what follows, and clients */
  pthread_cond_t changed;       /* a deadline is to be waited for, or end */
  struct client *oldest, *newest;
  unsigned n_seats, n_ending;   /* counted; of them, those that end */
  bool running, end;
  pthread_t thread;
  struct nc_repeat repeat;
} clients = {
  .lock = PTHREAD_MUTEX_INITIALIZER,
  .changed = PTHREAD_COND_INITIALIZER,
};

/* The client whose name nbdkit has just asked for, in this thread. */
static _Thread_local struct client *named;
/* The client whose handshake this thread does. */
static _Thread_local struct client *greeted;

static struct client *
find (int fd)
{
  return fd >= 0 && (size_t) fd < clients.n_files ? clients.by_fd[fd] : NULL;
}

/* The same for a worker thread; NULL during the handshake, too. */
static struct client *
find_served (int fd)
{
  struct client *client = find (fd);

  return client && client->seat &&
    !pthread_equal (client->thread, pthread_self ()) ? client : NULL;
}

static void
shut_down_locked (struct client *client)
{
  client->ending = true;
  if (client->seat && !client->seat->ending) {
    client->seat->ending = true;
    clients.n_ending++;
  }
  shutdown (client->fd, SHUT_RDWR);
}

/* The client that has been in its handshake for longest, SELF excepted. */
static struct client *
oldest_handshake_locked (const struct client *self)
{
  struct client *client = clients.oldest;

  while (client && (client->deadline == 0 || client->ending ||
                    client == self))
    client = client->next;
  return client;
}

/* Sockets from accept4 to close. */

static int
add (int fd)
{
  struct client *client;

  if ((size_t) fd >= clients.n_files) {
    errno = EMFILE;
    return -1;
  }
  client = calloc (1, sizeof *client);
  if (client == NULL)
    return -1;
  client->fd = fd;
  if (clients.options.handshake > 0)
    client->deadline = nc_now () + clients.options.handshake * NC_SECOND;
  NC_LOCKED (&clients.lock);
  client->previous = clients.newest;
  *(clients.newest ? &clients.newest->next : &clients.oldest) = client;
  clients.newest = client;
  clients.by_fd[fd] = client;
  pthread_cond_signal (&clients.changed);
  return 0;
}

static void
drop (struct client *client)
{
  {
    NC_LOCKED (&clients.lock);
    clients.by_fd[client->fd] = NULL;
    *(client->previous ? &client->previous->next : &clients.oldest) =
      client->next;
    *(client->next ? &client->next->previous : &clients.newest) =
      client->previous;
  }
  nc_traffic_end (&client->traffic);
  free (client);
}

/* No descriptor or no memory is left, and nbdkit would call accept4 again at
 * once.  Some handshakes that have not ended give way. */
static void
make_room (int err)
{
  char times[NC_REPEAT_TEXT];

  {
    struct client *client;

    NC_LOCKED (&clients.lock);
    for (unsigned i = 0; i < ACCEPT_EVICTS &&
           (client = oldest_handshake_locked (NULL)); ++i)
      shut_down_locked (client);
  }
  errno = err;
  if (nc_repeat_report (&clients.repeat, CAUSE_ACCEPT, times))
    nc_error ("cannot accept a connection: %m%s", times);
  poll (NULL, 0, ACCEPT_PAUSE);
}

static int
accept4_client (int fd, struct sockaddr *address, socklen_t *len, int flags)
{
  int s = accept4 (fd, address, len, flags), err = errno;

  if (s >= 0 && add (s) == -1) {
    err = errno;
    close (s);
    s = -1;
  }
  if (s == -1 && (err == EMFILE || err == ENFILE || err == ENOBUFS ||
                  err == ENOMEM))
    make_room (err);
  errno = err;
  return s;
}

static int
close_client (int fd)
{
  struct client *client = find (fd);

  if (client)
    drop (client);
  return close (fd);
}

static int
getpeername_client (int fd, struct sockaddr *address, socklen_t *len)
{
  named = find (fd);
  return getpeername (fd, address, len);
}

/* What workers read and send. */

static ssize_t
read_client (int fd, void *buf, size_t len)
{
  struct client *client = find_served (fd);

  return client ? nc_traffic_read (&client->traffic, fd, buf, len)
    : read (fd, buf, len);
}

static ssize_t
send_client (int fd, const void *buf, size_t len, int flags)
{
  struct client *client = find_served (fd);

  return client ? nc_traffic_send (&client->traffic, fd, buf, len, flags)
    : send (fd, buf, len, flags);
}

static struct client *
find_session (gnutls_session_t session)
{
  return find_served (gnutls_transport_get_int (session));
}

static ssize_t
record_recv_client (gnutls_session_t session, void *buf, size_t len)
{
  const ssize_t n = gnutls_record_recv (session, buf, len);
  struct client *client = n > 0 ? find_session (session) : NULL;

  if (client)
    nc_traffic_received (&client->traffic, buf, n);
  return n;
}

static ssize_t
record_send_client (gnutls_session_t session, const void *buf, size_t len)
{
  struct client *client = find_session (session);
  ssize_t n;

  if (client == NULL)
    return gnutls_record_send (session, buf, len);
  nc_traffic_begin_send (&client->traffic, len);
  n = gnutls_record_send (session, buf, len);
  nc_traffic_end_send (&client->traffic, n == (ssize_t) len &&
                       gnutls_record_check_corked (session) == 0);
  return n;
}

static int
record_uncork_client (gnutls_session_t session, unsigned flags)
{
  struct client *client = find_session (session);
  int r;

  if (client == NULL)
    return gnutls_record_uncork (session, flags);
  nc_traffic_begin_send (&client->traffic,
                         gnutls_record_check_corked (session));
  r = gnutls_record_uncork (session, flags);
  nc_traffic_end_send (&client->traffic,
                       gnutls_record_check_corked (session) == 0);
  return r;
}

static void *
realloc_client (void *p, size_t size)
{
  void *buf = realloc (p, size);

  if (buf)
    nc_traffic_note_buffer (buf, size);
  return buf;
}

static void
end_stalled (void)
{
  char times[NC_REPEAT_TEXT];
  unsigned n = 0;

  {
    NC_LOCKED (&clients.lock);
    for (struct client *client = clients.oldest; client;
         client = client->next)
      if (!client->ending && nc_traffic_is_stalled (&client->traffic)) {
        shut_down_locked (client);
        n++;
      }
  }
  if (n > 0 && nc_repeat_report (&clients.repeat, CAUSE_STALLED, times))
    nc_error ("ended %u connection%s that did not take replies for %d s, "
              "while others waited for memory%s", n, n > 1 ? "s" : "",
              NC_TRAFFIC_STALLED, times);
}

/* The thread that ends handshakes. */

/* End those that are late.  Returns how many, and when to look again: *NEXT,
 * 0 for never. */
static unsigned
end_late_locked (uint64_t *next)
{
  struct client *client;
  const uint64_t now = nc_now ();
  unsigned n = 0;

  while ((client = oldest_handshake_locked (NULL)) &&
         client->deadline <= now) {
    shut_down_locked (client);
    n++;
  }
  *next = client ? client->deadline : 0;
  return n;
}

static void
wait_locked (uint64_t until)
{
  const struct timespec t = {
    .tv_sec = until / NC_SECOND, .tv_nsec = until % NC_SECOND,
  };

  if (until == 0)
    pthread_cond_wait (&clients.changed, &clients.lock);
  else
    pthread_cond_clockwait (&clients.changed, &clients.lock, CLOCK_MONOTONIC,
                            &t);
}

static void *
run (void *arg __attribute__ ((__unused__)))
{
  char times[NC_REPEAT_TEXT];
  uint64_t next;
  unsigned n;

  NC_LOCKED (&clients.lock);
  while (!clients.end) {
    n = end_late_locked (&next);
    if (n > 0) {
      pthread_mutex_unlock (&clients.lock);
      if (nc_repeat_report (&clients.repeat, CAUSE_HANDSHAKE, times))
        nc_error ("ended %u connection%s whose handshake took more than %u s"
                  "%s", n, n > 1 ? "s" : "", clients.options.handshake, times);
      pthread_mutex_lock (&clients.lock);
    }
    else
      wait_locked (next);
  }
  return NULL;
}

/* Public functions. */

static void
leave_seat (void *opaque)
{
  struct seat *seat = opaque;

  {
    NC_LOCKED (&clients.lock);
    clients.n_seats--;
    clients.n_ending -= seat->ending;
  }
  free (seat);
}

/* Returns how many files can be open. */
static size_t
raise_file_limit (void)
{
  struct rlimit limit;

  if (getrlimit (RLIMIT_NOFILE, &limit) == -1)
    return 1024;
  if (limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max < FILES_MAX ? limit.rlim_max : FILES_MAX;
    setrlimit (RLIMIT_NOFILE, &limit);
    getrlimit (RLIMIT_NOFILE, &limit);
  }
  return limit.rlim_cur < FILES_MAX ? limit.rlim_cur : FILES_MAX;
}

/* Redirect what is needed to know the sockets: all of it, or none. */
static bool
redirect (void)
{
  static const struct { const char *name; void *function, *original; } calls[]
    = {
    { "close", close_client, close },
    { "getpeername", getpeername_client, getpeername },
    { "accept4", accept4_client, accept4 },
  };

  for (unsigned i = 0; i < sizeof calls / sizeof calls[0]; ++i)
    if (!nc_import_replace (calls[i].name, calls[i].function)) {
      while (i-- > 0)
        nc_import_replace (calls[i].name, calls[i].original);
      return false;
    }
  return true;
}

void
nc_clients_begin (void)
{
  clients.has_key = pthread_key_create (&clients.seat_key, leave_seat) == 0;
  clients.n_files = raise_file_limit ();
  clients.by_fd = calloc (clients.n_files, sizeof *clients.by_fd);
  if (clients.by_fd == NULL || !redirect ()) {
    nc_debug ("the sockets of clients are not known");
    free (clients.by_fd);
    clients.by_fd = NULL;
    clients.n_files = 0;
    return;
  }
  if (nc_import_replace ("realloc", realloc_client)) {
    nc_import_replace ("read", read_client);
    nc_import_replace ("send", send_client);
    nc_import_replace ("gnutls_record_recv", record_recv_client);
    nc_import_replace ("gnutls_record_send", record_send_client);
    nc_import_replace ("gnutls_record_uncork", record_uncork_client);
  }
}

int
nc_clients_start (const struct nc_clients_options *options)
{
  sigset_t all, before;
  int err;

  clients.options = *options;
  /* The call came with the version that no longer aborts. */
  nc_traffic_set (options->memory,
                  dlsym (RTLD_DEFAULT, "nbdkit_disconnect") == NULL,
                  end_stalled);
  if (clients.by_fd == NULL || options->handshake == 0)
    return 0;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  err = pthread_create (&clients.thread, NULL, run, NULL);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (err != 0) {
    errno = err;
    nc_error ("pthread_create: %m");
    return -1;
  }
  clients.running = true;
  return 0;
}

bool
nc_clients_have_sockets (void)
{
  NC_LOCKED (&clients.lock);
  return clients.oldest != NULL;
}

/* Give CLIENT (NULL: not known) the seat.  Returns false if all are taken. */
static bool
take_seat_locked (struct client *client, struct seat *seat)
{
  struct client *other;

  clients.n_seats++;            /* leave_seat takes that back */
  if (client) {
    client->seat = seat;
    client->thread = pthread_self ();
  }
  if (clients.options.max == 0 ||
      clients.n_seats - clients.n_ending <= clients.options.max)
    return true;
  other = oldest_handshake_locked (client);
  if (other == NULL) {
    seat->ending = true;
    clients.n_ending++;
    return false;
  }
  shut_down_locked (other);
  return true;
}

int
nc_clients_admit (void)
{
  struct seat *seat = calloc (1, sizeof *seat);
  char times[NC_REPEAT_TEXT];
  bool seated;

  greeted = named;
  named = NULL;
  if (seat == NULL || !clients.has_key ||
      pthread_setspecific (clients.seat_key, seat) != 0) {
    free (seat);
    errno = ENOMEM;
    nc_error ("cannot count a connection: %m");
    return -1;
  }
  {
    NC_LOCKED (&clients.lock);
    seated = take_seat_locked (greeted, seat);
  }
  if (seated)
    return 0;
  errno = EAGAIN;
  if (nc_repeat_report (&clients.repeat, CAUSE_FULL, times))
    nc_error ("refused a connection: %u are open, as many as "
              "max-connections= allows%s", clients.options.max, times);
  return -1;
}

void
nc_clients_opened (void)
{
  if (greeted == NULL)
    return;
  NC_LOCKED (&clients.lock);
  greeted->deadline = 0;
}

unsigned
nc_clients_count (void)
{
  NC_LOCKED (&clients.lock);
  return clients.n_seats;
}

void
nc_clients_shutdown (void)
{
  NC_LOCKED (&clients.lock);
  for (struct client *client = clients.oldest; client; client = client->next)
    shut_down_locked (client);
}

void
nc_clients_end (void)
{
  if (!clients.running)
    return;
  {
    NC_LOCKED (&clients.lock);
    clients.end = true;
    pthread_cond_signal (&clients.changed);
  }
  pthread_join (clients.thread, NULL);
  clients.running = false;
}
