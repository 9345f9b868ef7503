/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The export of an NBD server as a device: reads and block status, over
 * connections that are made again when they are lost.
 *
 *   requester                          thread of a connection
 *   ---------                          ----------------------
 *   struct request on its own stack
 *   append to conn->queue  --kick-->   issue with nbd_aio_*  ->  flight
 *   sem_wait                           poll, notify
 *     ...                              completion callback   ->  done
 *   returns                <--post--   retire the command, set the error
 *
 * A libnbd handle belongs to the thread of its connection; nobody else
 * touches it.  A request is completed only after its command has retired or
 * the handle is closed, so that nothing writes into its buffer any more.
 *
 * nbd->lock guards what the comments in the structs say; it is held for
 * list operations and kicks only, never across I/O, a call to libnbd or a
 * report.
 * nbd->changed is signalled with it when a connection comes up, when the
 * first attempt to connect ends, and on stop.  Everything else in struct
 * conn belongs to its thread.  A request belongs to the list it is on: to
 * the lock while queued, else to the thread; after sem_post to the
 * requester.
 *
 * Lost connections: the requests of one that is lost move to another that
 * is up, or fail with ENOTCONN; the thread reconnects with back-off until
 * it is told to stop.  A server that does not answer is lost too: when for
 * nbd->limit no request in flight has ended and what came was slower than
 * SLOWEST.  A connection is
 * used again only if the export has the size and identity it had at open.
 *
 * The server is not trusted: libnbd keeps replies inside the buffers; sizes,
 * limits and block status are checked here.  A reply with gaps must not show
 * memory of ours.  Clearing each buffer before a read, as libnbd does by
 * default, costs up to a tenth of the time of a copy; so only a reply that does
 * not come in order and whole is read again into a buffer that was cleared.
 *
 * TLS: nbds:// never goes on without.  The credentials are the operator's,
 * looked at anew for each connection (lib/tls.h), and a libnbd that would
 * trust an impostor is not asked to verify what it cannot.
 */

#include <config.h>

#include "remote.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "checked.h"
#include "clock.h"
#include "dev/dev.h"
#include "report.h"
#include "scope.h"
#include "tls.h"

#define MAX_CONNS 4
#define MAX_IN_FLIGHT 64               /* on one connection */
#define MAX_READ (32U << 20)           /* what every server accepts */
#define MAX_BOUNCE (1U << 20)          /* of a read that must be rounded */
#define MAX_STATUS (1ULL << 31)        /* range of one block status */
#define MAX_ENTRIES 65536              /* taken from one reply */

#define MSEC UINT64_C (1000000)        /* in nanoseconds, as all times here */
#define SEC (1000 * MSEC)
#define BACKOFF_MIN (50 * MSEC)
#define BACKOFF_MAX (2 * SEC)
#define STALL_LIMIT 10                 /* seconds: the first limit */
#define STALL_LIMIT_MAX 60             /* seconds: where doubling ends if
                                          requests may wait for ever */
#define SLOWEST 1024                   /* bytes a second of a live server */
#define CHILD_LIMIT SEC                /* from SIGTERM to SIGKILL */
#define DISCONNECT_LIMIT (500 * MSEC)

#ifndef __WNOTHREAD
#define __WNOTHREAD 0x20000000
#endif

struct request {
  struct request *prev, *next;
  struct conn *conn;                   /* while in flight */
  void *buf;                           /* NULL: block status */
  struct nc_extents *extents;          /* of block status */
  uint64_t offset, count;
  uint64_t skip;                       /* of the reply, before extents */
  bool answered;                       /* block status came */
  uint64_t came;                       /* of a read: bytes, in order */
  bool cleared;                        /* BUF was, before */
  int64_t cookie;
  uint64_t since;                      /* when it was made */
  unsigned moves;                      /* to another connection */
  sem_t wake;
  int error;                           /* 0 or an errno; set before wake */
};

struct list {
  struct request *head, *tail;
};

/* What a server says of its export. */
struct export {
  uint64_t size;
  uint32_t minimum, maximum;           /* bytes of a request */
  bool multi_conn;
  bool allocation;                     /* has base:allocation */
  char *identity;
};

struct conn {
  struct nbd *nbd;
  pthread_t thread;
  bool running;                        /* start and close: thread exists */
  int kick;                            /* eventfd */

  /* Guarded by nbd->lock. */
  bool up;
  bool asleep;                         /* must be kicked */
  unsigned load;                       /* requests queued and in flight */
  struct list queue;

  /* The thread's. */
  struct nbd_handle *h;
  struct export export;
  struct list flight, done, lost;
  unsigned n_flight, n_retired;
  uint64_t progress;                   /* when it was last seen alive */
  uint64_t came;                       /* bytes since then */
  bool asked, useful;                  /* had a request; had an answer */
  bool ending;                         /* the server says that it ends */
  bool stalled;
  uint64_t backoff;
  char reason[512];                    /* of the last failure */
};

struct nbd {
  struct nc_dev dev;
  char *words, **argv;                 /* of "[ command ]", else NULL */
  bool encrypted;                      /* nbds */
  char *certificates, *psk, *username; /* for that; NULL: not given */
  uint64_t first_limit, max_limit;     /* of a stall */
  bool absent;                         /* not probed at open */
  unsigned n_conns;
  struct nc_repeat failures;           /* of reads, as the server says */

  pthread_mutex_t lock;
  pthread_cond_t changed;              /* CLOCK_MONOTONIC */

  /* Guarded by lock. */
  bool stopping;
  int first;                           /* first attempt: 0, 1 = up, -1 */
  unsigned n_up;
  uint64_t limit;                      /* of a stall, as it is now */
  uint32_t minimum, maximum;           /* strictest seen so far */
  bool outage;                         /* reported, and not yet over */
  uint64_t outage_since;
  bool fruitless;                      /* no answer since the last loss */
  bool mismatch;                       /* reported, and not yet over */

  struct conn conns[MAX_CONNS];
};

static void
list_append (struct list *list, struct request *req)
{
  req->next = NULL;
  req->prev = list->tail;
  if (list->tail)
    list->tail->next = req;
  else
    list->head = req;
  list->tail = req;
}

static void
list_remove (struct list *list, struct request *req)
{
  if (req->prev)
    req->prev->next = req->next;
  else
    list->head = req->next;
  if (req->next)
    req->next->prev = req->prev;
  else
    list->tail = req->prev;
}

static struct request *
list_take (struct list *list)
{
  struct request *req = list->head;

  if (req)
    list_remove (list, req);
  return req;
}

/* REQ may be gone when this returns. */
static void
complete (struct request *req, int error)
{
  req->error = error;
  sem_post (&req->wake);
}

static void
kick (struct conn *conn)
{
  const uint64_t one = 1;

  /* It can fail only when it is full, that is, kicked already. */
  if (write (conn->kick, &one, sizeof one) == -1)
    return;
}

static bool
is_stopping (struct nbd *nbd)
{
  NC_LOCKED (&nbd->lock);
  return nbd->stopping;
}

/* Text of a peer that goes into messages and must not break lines. */
static void
make_printable (char *s)
{
  for (; *s; s++)
    if ((unsigned char) *s < 0x20 || *s == 0x7f)
      *s = '?';
}

/* What TEXT, an error of libnbd's, means to somebody who set up TLS. */
static const char *
explain (const struct nbd *nbd, const char *text)
{
  if (strstr (text, "server requires TLS"))
    return " (the server wants TLS: name it nbds:, and give "
      "remote-tls-certificates or remote-tls-psk)";
  if (strstr (text, "server refused TLS"))
    return " (the server has no TLS, and nbds: never goes on without)";
  if (!nbd->encrypted || strstr (text, "gnutls_handshake") == NULL)
    return "";
  if (nbd->psk)
    return " (does the server have the same user and key?)";
  if (strstr (text, "certificate verification"))
    return " (the server's certificate is not of this host name, not signed "
      "by ca-cert.pem, or out of date)";
  return "";
}

/* Keep what libnbd says of the failure of the last call. */
static void
keep_reason (struct conn *conn)
{
  const char *text = nbd_get_error (), *colon;

  if (text == NULL)
    text = "unknown error";
  if (strncmp (text, "nbd_", 4) == 0 && (colon = strstr (text, ": ")) != NULL)
    text = colon + 2;
  snprintf (conn->reason, sizeof conn->reason, "%s%s", text,
            explain (conn->nbd, text));
  make_printable (conn->reason);
}

/* Connecting. */

static struct nbd_handle *
new_handle (struct conn *conn)
{
  const int tls = conn->nbd->encrypted ? LIBNBD_TLS_REQUIRE
    : LIBNBD_TLS_DISABLE;
  struct nbd_handle *h = nbd_create ();

  if (h == NULL ||
      nbd_set_tls (h, tls) == -1 ||
      nbd_set_uri_allow_tls (h, tls) == -1 ||
      nbd_set_tls_verify_peer (h, true) == -1 ||
      nbd_set_uri_allow_transports (h, LIBNBD_ALLOW_TRANSPORT_TCP |
                                    LIBNBD_ALLOW_TRANSPORT_UNIX) == -1 ||
      nbd_set_uri_allow_local_file (h, false) == -1 ||
      nbd_set_pread_initialize (h, false) == -1 ||
      /* The tail of an export may be unaligned. */
      nbd_set_strict_mode (h, nbd_get_strict_mode (h)
                           & ~LIBNBD_STRICT_ALIGN) == -1 ||
      nbd_set_full_info (h, true) == -1 ||
      nbd_add_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1) {
    keep_reason (conn);
    nbd_close (h);
    return NULL;
  }
  return h;
}

static void
made_progress (struct conn *conn)
{
  conn->progress = nc_now ();
  conn->came = 0;
}

/* Count what the socket has for us.  A byte now and then is no progress. */
static void
count_bytes (struct conn *conn)
{
  int n;

  if (ioctl (nbd_aio_get_fd (conn->h), FIONREAD, &n) == -1)
    return;
  conn->came += n;
  if (conn->came * SEC >= SLOWEST * (nc_now () - conn->progress))
    made_progress (conn);
}

/* Let libnbd do what the socket is ready for.  Returns -1 if it fails,
 * reason kept; the handle may be dead also when it does not. */
static int
notify (struct conn *conn, int revents)
{
  int r = 0;

  if ((revents & (POLLIN | POLLHUP | POLLERR)) &&
      (nbd_aio_get_direction (conn->h) & LIBNBD_AIO_DIRECTION_READ)) {
    count_bytes (conn);
    r = nbd_aio_notify_read (conn->h);
  }
  if (r == 0 && (revents & (POLLOUT | POLLHUP | POLLERR)) &&
      (nbd_aio_get_direction (conn->h) & LIBNBD_AIO_DIRECTION_WRITE))
    r = nbd_aio_notify_write (conn->h);
  if (r == -1)
    keep_reason (conn);
  return r;
}

/* Wait for the socket or a kick, and serve it.  deadline: 0 = none.
 * Returns -1 if the connection has failed, reason kept. */
static int
poll_once (struct conn *conn, uint64_t deadline)
{
  struct pollfd fds[2] = {
    { .fd = nbd_aio_get_fd (conn->h) },
    { .fd = conn->kick, .events = POLLIN },
  };
  unsigned direction = nbd_aio_get_direction (conn->h);
  struct timespec ts, *timeout = NULL;
  uint64_t t, n;

  if (fds[0].fd == -1) {
    keep_reason (conn);
    return -1;
  }
  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;

  if (deadline) {
    t = nc_now ();
    t = deadline > t ? deadline - t : 0;
    ts = (struct timespec) { .tv_sec = t / SEC, .tv_nsec = t % SEC };
    timeout = &ts;
  }

  if (ppoll (fds, 2, timeout, NULL) == -1) {
    if (errno == EINTR)
      return 0;
    snprintf (conn->reason, sizeof conn->reason, "poll: %s",
              strerror (errno));
    return -1;
  }
  if (fds[1].revents && read (conn->kick, &n, sizeof n) == -1 &&
      errno != EAGAIN && errno != EINTR) {
    snprintf (conn->reason, sizeof conn->reason, "eventfd: %s",
              strerror (errno));
    return -1;
  }
  if (fds[0].revents & POLLNVAL) {
    snprintf (conn->reason, sizeof conn->reason, "the socket is closed");
    return -1;
  }
  return notify (conn, fds[0].revents);
}

static bool
is_finished (struct nbd_handle *h)
{
  return nbd_aio_is_dead (h) != 0 || nbd_aio_is_closed (h) != 0;
}

/* End the child of "[ command ]", so that nbd_close, which waits for it,
 * does not wait for long.  This thread has no other child. */
static void
end_child (struct nbd_handle *h)
{
  uint64_t deadline = nc_now () + CHILD_LIMIT;

  if (nbd_kill_subprocess (h, SIGTERM) == -1)
    return;                            /* there is none */
  while (nc_now () < deadline) {
    siginfo_t info = { .si_pid = 0 };

    if (waitid (P_ALL, 0, &info,
                WEXITED | WNOHANG | WNOWAIT | __WNOTHREAD) == -1 ||
        info.si_pid != 0)
      return;
    poll (NULL, 0, 5);
  }
  nbd_kill_subprocess (h, SIGKILL);
}

/* Cut the connection, so that libnbd retires every command. */
static void
cut (struct conn *conn)
{
  int fd = nbd_aio_get_fd (conn->h);

  if (fd == -1 || shutdown (fd, SHUT_RDWR) == -1)
    return;
  /* What the socket still holds comes first; this is finite. */
  while (!is_finished (conn->h)) {
    int direction = nbd_aio_get_direction (conn->h);
    int r;

    if (direction & LIBNBD_AIO_DIRECTION_READ)
      r = nbd_aio_notify_read (conn->h);
    else
      r = nbd_aio_notify_write (conn->h);
    if (r == -1)
      return;
  }
}

static void
close_handle (struct conn *conn)
{
  if (conn->h == NULL)
    return;
  cut (conn);
  end_child (conn->h);
  nbd_close (conn->h);
  conn->h = NULL;
}

/* Take leave from the server before closing. */
static void
disconnect (struct conn *conn)
{
  uint64_t deadline = nc_now () + DISCONNECT_LIMIT;

  if (conn->h && nbd_aio_is_ready (conn->h) == 1 &&
      nbd_aio_disconnect (conn->h, 0) == 0)
    while (!is_finished (conn->h) && nc_now () < deadline)
      if (poll_once (conn, deadline) == -1)
        break;
  close_handle (conn);
}

/* What the server says of itself: its own name for the export if it is not
 * the one asked for, and the description.  *identity is NULL if neither.
 * Returns -1 if there is no memory. */
static int
learn_identity (struct nbd_handle *h, char **identity)
{
  NC_FREE char *asked = nbd_get_export_name (h);
  NC_FREE char *name = nbd_get_canonical_export_name (h);
  NC_FREE char *description = nbd_get_export_description (h);
  bool has_name = name && *name && (!asked || strcmp (name, asked) != 0);
  bool has_description = description && *description;

  *identity = NULL;
  if (!has_name && !has_description)
    return 0;
  if (asprintf (identity, "%s%s%s", has_name ? name : "",
                has_name && has_description ? ": " : "",
                has_description ? description : "") == -1) {
    *identity = NULL;
    return -1;
  }
  make_printable (*identity);
  return 0;
}

static int
learn_export (struct conn *conn, struct export *export)
{
  struct nbd_handle *h = conn->h;
  int64_t size = nbd_get_size (h);
  int64_t minimum = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t maximum = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0) {
    keep_reason (conn);
    if (nbd_get_error () == NULL)      /* what was sent does not fit */
      snprintf (conn->reason, sizeof conn->reason,
                "its export is larger than %" PRIi64 " bytes, the most that a"
                " disk can have", INT64_MAX);
    return -1;
  }
  export->size = size;

  if (minimum <= 0)
    minimum = 1;
  if (!nc_is_power_of_2 (minimum) || minimum > 65536) {
    snprintf (conn->reason, sizeof conn->reason,
              "minimum block size %" PRIi64 " is not valid", minimum);
    return -1;
  }
  if (maximum <= 0 || maximum > MAX_READ)
    maximum = MAX_READ;
  export->minimum = minimum;
  export->maximum = nc_max64 (nc_round_down (maximum, minimum), minimum);

  export->multi_conn = nbd_can_multi_conn (h) == 1;
  export->allocation =
    nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  if (learn_identity (h, &export->identity) == -1) {
    snprintf (conn->reason, sizeof conn->reason, "%s", strerror (ENOMEM));
    return -1;
  }
  return 0;
}

/* Give the handle the keys for a server, as they are now. */
static int
use_psk (struct conn *conn)
{
  const struct nbd *nbd = conn->nbd;
  NC_FREE char *user = NULL;

  if (nc_tls_find_user (nbd->psk, nbd->username, &user, conn->reason,
                        sizeof conn->reason) == -1) {
    if (errno == ENOTUNIQ)
      strncat (conn->reason, " (remote-tls-username)",
               sizeof conn->reason - strlen (conn->reason) - 1);
    return -1;
  }
  if (nbd_set_tls_psk_file (conn->h, nbd->psk) == -1 ||
      nbd_set_tls_username (conn->h, user) == -1) {
    keep_reason (conn);
    return -1;
  }
  return 0;
}

/* Give the handle the directory of certificates, as it is now. */
static int
use_certificates (struct conn *conn, struct nc_tls_dir *dir)
{
  char path[32];

  if (nc_tls_dir_open (dir, conn->nbd->certificates, conn->reason,
                       sizeof conn->reason) == -1)
    return -1;
  snprintf (path, sizeof path, "/proc/self/fd/%d", dir->fd);
  /* If this cannot be looked into, libnbd would find nothing in it. */
  if (access (path, X_OK) == -1) {
    snprintf (conn->reason, sizeof conn->reason, "%s: %s", path,
              strerror (errno));
    return -1;
  }
  if (nbd_set_tls_certificates (conn->h, path) == -1) {
    keep_reason (conn);
    return -1;
  }
  return 0;
}

/* Connect, within a limit.  Returns -1 with the reason kept. */
static int
establish (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  uint64_t deadline = nc_now () + nbd->first_limit;
  int r;

  r = nbd->argv
    ? nbd_aio_connect_systemd_socket_activation (conn->h, nbd->argv)
    : nbd_aio_connect_uri (conn->h, nbd->dev.name);
  if (r == -1) {
    keep_reason (conn);
    return -1;
  }
  while (nbd_aio_is_ready (conn->h) != 1) {
    if (is_finished (conn->h)) {
      snprintf (conn->reason, sizeof conn->reason,
                "the server closed the connection");
      return -1;
    }
    if (is_stopping (nbd)) {
      snprintf (conn->reason, sizeof conn->reason, "%s",
                strerror (ESHUTDOWN));
      return -1;
    }
    if (nc_now () >= deadline) {
      snprintf (conn->reason, sizeof conn->reason,
                "no answer within %u s",
                (unsigned) (nbd->first_limit / SEC));
      return -1;
    }
    if (poll_once (conn, deadline) == -1)
      return -1;
  }
  return 0;
}

/* Connect, and learn what the server has.  Returns -1 with the reason
 * kept. */
static int
connect_handle (struct conn *conn, struct export *export)
{
  const struct nbd *nbd = conn->nbd;
  __attribute__ ((__cleanup__ (nc_tls_dir_close))) struct nc_tls_dir dir =
    { .fd = -1 };

  conn->h = new_handle (conn);
  if (conn->h == NULL)
    return -1;
  if (nbd->encrypted && nbd->psk && use_psk (conn) == -1)
    goto fail;
  if (nbd->encrypted && nbd->certificates &&
      use_certificates (conn, &dir) == -1)
    goto fail;
  if (establish (conn) == -1)
    goto fail;
  if (nbd->encrypted && nbd_get_tls_negotiated (conn->h) != 1) {
    snprintf (conn->reason, sizeof conn->reason, "the connection has no TLS");
    goto fail;
  }
  if (dir.fd >= 0 && !nc_tls_dir_is_unchanged (&dir)) {
    snprintf (conn->reason, sizeof conn->reason,
              "%s: was changed just now", nbd->certificates);
    goto fail;
  }
  if (learn_export (conn, export) == -1)
    goto fail;
  return 0;

 fail:
  close_handle (conn);
  return -1;
}


/* Whether the export is the one that was opened; report it if not. */
static bool
is_same_export (struct conn *conn, const struct export *export)
{
  struct nbd *nbd = conn->nbd;
  const char *was = nbd->dev.identity ? : "";
  const char *is = export->identity ? : "";
  bool same = nbd->absent
    ? export->size >= nbd->dev.size && (!*was || strcmp (was, is) == 0)
    : export->size == nbd->dev.size && strcmp (was, is) == 0;
  bool report;

  {
    NC_LOCKED (&nbd->lock);
    report = !same && !nbd->mismatch;
    nbd->mismatch = !same;
  }
  if (report)
    nc_error ("%s: the server has another export now: "
              "was %" PRIu64 " bytes (\"%s\"), is %" PRIu64 " bytes (\"%s\"); "
              "it is not read: bring the former one back, or open the chain "
              "again if this one is right",
              nbd->dev.name, nbd->dev.size, was, export->size, is);
  if (!same)
    snprintf (conn->reason, sizeof conn->reason, "not the same export");
  return same;
}

/* Connect for good. */
static int
connect_conn (struct conn *conn)
{
  struct export export = { .identity = NULL };

  if (connect_handle (conn, &export) == -1)
    return -1;
  if (!is_same_export (conn, &export)) {
    free (export.identity);
    disconnect (conn);
    return -1;
  }
  free (export.identity);
  export.identity = NULL;
  conn->export = export;
  conn->asked = conn->useful = conn->ending = conn->stalled = false;
  return 0;
}

/* The end of an outage, if there is one; nbd->lock is not held. */
static void
report_back (struct nbd *nbd, uint64_t since)
{
  nc_notice ("%s: is back after %.1f s", nbd->dev.name,
             (double) (nc_now () - since) / SEC);
}

static void
mark_up (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  uint64_t since = 0;

  {
    NC_LOCKED (&nbd->lock);
    conn->up = true;
    conn->load = 0;
    nbd->n_up++;
    nbd->first = 1;
    nbd->minimum = nc_max64 (nbd->minimum, conn->export.minimum);
    nbd->maximum = nc_min64 (nbd->maximum, conn->export.maximum);
    nbd->maximum = nc_max64 (nc_round_down (nbd->maximum, nbd->minimum),
                             nbd->minimum);
    if (nbd->outage && !nbd->fruitless) {
      since = nbd->outage_since;
      nbd->outage = false;
    }
    pthread_cond_broadcast (&nbd->changed);
  }
  if (since)
    report_back (nbd, since);
}

/* The first answer on a connection: the server is of use. */
static void
mark_useful (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  uint64_t since = 0;

  conn->useful = true;
  conn->backoff = BACKOFF_MIN;
  {
    NC_LOCKED (&nbd->lock);
    nbd->fruitless = false;
    nbd->limit = nbd->first_limit;
    if (nbd->outage) {
      since = nbd->outage_since;
      nbd->outage = false;
    }
  }
  if (since)
    report_back (nbd, since);
}

/* The connection that is up and has the least to do; NULL if none. */
static struct conn *
choose_conn_locked (struct nbd *nbd)
{
  struct conn *best = NULL;
  unsigned i;

  for (i = 0; i < nbd->n_conns; i++)
    if (nbd->conns[i].up && (!best || nbd->conns[i].load < best->load))
      best = &nbd->conns[i];
  return best;
}

/* Returns true if CONN must be kicked. */
static bool
enqueue_locked (struct conn *conn, struct request *req)
{
  bool asleep = conn->asleep;

  list_append (&conn->queue, req);
  conn->load++;
  conn->asleep = false;
  return asleep;
}

/* CONN takes no more requests. */
static void
mark_down (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  bool fruitless = conn->asked && !conn->useful;
  bool stopping, report;

  if (!fruitless)
    conn->backoff = BACKOFF_MIN;

  {
    NC_LOCKED (&nbd->lock);
    conn->up = false;
    nbd->n_up--;
    stopping = nbd->stopping;
    if (fruitless)
      nbd->fruitless = true;
    if (fruitless && conn->stalled)
      nbd->limit = nc_min64 (nbd->limit * 2, nbd->max_limit);
    report = !stopping && nbd->n_up == 0 && !nbd->outage;
    if (report) {
      nbd->outage = true;
      nbd->outage_since = nc_now ();
    }
  }
  if (report)
    nc_error ("%s: connection lost: %s; retrying", nbd->dev.name,
              conn->reason);
  else if (!stopping)
    nc_debug ("%s: one connection lost: %s; retrying", nbd->dev.name,
              conn->reason);
}

/* Give away the requests that CONN leaves behind: to another connection,
 * unless they have waited long or have been moved a lot. */
static void
hand_over (struct conn *conn, uint64_t limit)
{
  struct nbd *nbd = conn->nbd;
  struct list failed = { NULL, NULL };
  struct request *req;
  uint64_t t = nc_now ();
  int error;

  {
    NC_LOCKED (&nbd->lock);
    error = nbd->stopping ? ESHUTDOWN : ENOTCONN;
    while ((req = list_take (&conn->lost)) != NULL ||
           (req = list_take (&conn->flight)) != NULL ||
           (req = list_take (&conn->queue)) != NULL) {
      struct conn *other = nbd->stopping ? NULL : choose_conn_locked (nbd);

      if (!other || req->answered || req->moves >= MAX_CONNS ||
          (conn->stalled && t - req->since >= limit))
        list_append (&failed, req);
      else {
        req->moves++;
        if (enqueue_locked (other, req))
          kick (other);
      }
    }
    conn->load = conn->n_flight = conn->n_retired = 0;
  }
  while ((req = list_take (&failed)) != NULL)
    complete (req, req->answered ? 0 : error);
}

/* Requests. */

static int
on_complete (void *opaque, int *error)
{
  struct request *req = opaque;

  (void) error;                        /* learnt when it is retired */
  list_remove (&req->conn->flight, req);
  list_append (&req->conn->done, req);
  return 0;
}

static int
on_chunk (void *opaque, const void *data, size_t count, uint64_t offset,
          unsigned status, int *error)
{
  struct request *req = opaque;

  (void) data;
  (void) error;
  if (status != LIBNBD_READ_ERROR && offset == req->offset + req->came)
    req->came += count;
  return 0;
}

static int
on_extents (void *opaque, const char *context, uint64_t offset,
            uint32_t *entries, size_t n, int *error)
{
  struct request *req = opaque;
  uint64_t left = req->count, skip = req->skip;
  size_t i;

  (void) error;
  if (req->answered || offset != req->offset ||
      strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    return 0;
  n = nc_min64 (n & ~(size_t) 1, 2 * MAX_ENTRIES);

  for (i = 0; i < n && left > 0; i += 2) {
    uint64_t count = nc_min64 (entries[i], left);
    uint64_t before = nc_min64 (skip, count);
    unsigned type = 0;

    if (count == 0)                    /* against the protocol */
      break;
    left -= count;
    skip -= before;
    count -= before;
    if (count == 0)
      continue;
    if (entries[i+1] & LIBNBD_STATE_HOLE)
      type |= NC_EXTENT_HOLE;
    if (entries[i+1] & LIBNBD_STATE_ZERO)
      type |= NC_EXTENT_ZERO;
    if (nc_extents_append (req->extents, count, type) == -1) {
      req->error = ENOMEM;
      return 0;
    }
    req->answered = true;
  }
  return 0;
}

/* Whether the connection allows the request as it is. */
static bool
is_allowed (const struct conn *conn, const struct request *req)
{
  uint64_t mask = conn->export.minimum - 1;
  uint64_t end = req->offset + req->count;

  return (req->offset & mask) == 0 &&
    ((end & mask) == 0 || end == conn->export.size) &&
    (!req->buf || req->count <= conn->export.maximum);
}

static void
issue (struct conn *conn, struct request *req)
{
  nbd_completion_callback completion = {
    .callback = on_complete, .user_data = req,
  };

  if (!is_allowed (conn, req)) {
    conn->n_retired++;
    complete (req, EAGAIN);
    return;
  }
  if (!req->buf && !conn->export.allocation) {
    conn->n_retired++;
    complete (req, 0);
    return;
  }

  if (conn->n_flight == 0)
    made_progress (conn);
  conn->asked = true;
  req->conn = conn;
  req->error = 0;
  req->came = 0;
  list_append (&conn->flight, req);
  conn->n_flight++;
  if (req->buf)
    req->cookie =
      nbd_aio_pread_structured (conn->h, req->buf, req->count, req->offset,
                                (nbd_chunk_callback) {
                                  .callback = on_chunk, .user_data = req,
                                }, completion, 0);
  else
    req->cookie =
      nbd_aio_block_status (conn->h, req->count, req->offset,
                            (nbd_extent_callback) {
                              .callback = on_extents, .user_data = req,
                            }, completion, 0);
  if (req->cookie != -1)
    return;

  /* Not issued: libnbd has forgotten it. */
  keep_reason (conn);
  list_remove (&conn->flight, req);
  conn->n_flight--;
  if (is_finished (conn->h))
    list_append (&conn->lost, req);
  else {
    int error = nbd_get_errno ();

    conn->n_retired++;
    complete (req, error == ENOMEM ? ENOMEM : EIO);
  }
}

/* A read has ended well, and libnbd has checked that as much came as was
 * asked for.  But was it all of it? */
static bool
may_have_gaps (const struct request *req)
{
  return req->buf && !req->cleared && req->came < req->count;
}

static void
read_again (struct conn *conn, struct request *req)
{
  memset (req->buf, 0, req->count);
  req->cleared = true;
  issue (conn, req);
}

/* Retire what has ended. */
static void
retire (struct conn *conn)
{
  struct request *req;

  while ((req = list_take (&conn->done)) != NULL) {
    int r = nbd_aio_command_completed (conn->h, req->cookie);
    int error = r == 1 ? 0 : r == 0 ? EIO : nbd_get_errno ();

    conn->n_flight--;
    made_progress (conn);
    if (r == -1 && error == 0)
      error = EIO;
    if (error == ENOTCONN || error == ESHUTDOWN) {
      if (error == ESHUTDOWN)
        conn->ending = true;
      list_append (&conn->lost, req);
      continue;
    }
    if (!conn->useful)
      mark_useful (conn);
    if (error == 0 && may_have_gaps (req)) {
      read_again (conn, req);
      continue;
    }
    conn->n_retired++;
    complete (req, error ? error : req->error);
  }
}

/* Serve requests until the connection is lost or the device stops. */
static void
serve (struct conn *conn, uint64_t *limit)
{
  struct nbd *nbd = conn->nbd;
  struct list batch = { NULL, NULL };
  struct request *req;

  for (;;) {
    unsigned n = conn->n_flight;

    {
      NC_LOCKED (&nbd->lock);
      conn->load -= conn->n_retired;
      conn->n_retired = 0;
      *limit = nbd->limit;
      if (nbd->stopping)
        return;
      while (n < MAX_IN_FLIGHT && (req = list_take (&conn->queue)) != NULL) {
        list_append (&batch, req);
        n++;
      }
      conn->asleep = n < MAX_IN_FLIGHT && batch.head == NULL;
    }

    if (batch.head) {
      while ((req = list_take (&batch)) != NULL)
        issue (conn, req);
    }
    else if (poll_once (conn, conn->n_flight == 0 ? 0
                        : conn->progress + *limit) == -1) {
      retire (conn);
      return;
    }
    retire (conn);

    if (is_finished (conn->h)) {
      if (conn->reason[0] == '\0')
        snprintf (conn->reason, sizeof conn->reason,
                  "the server closed the connection");
      return;
    }
    if (conn->ending) {
      snprintf (conn->reason, sizeof conn->reason,
                "the server is shutting down");
      return;
    }
    if (conn->n_flight > 0 && nc_now () >= conn->progress + *limit) {
      conn->stalled = true;
      snprintf (conn->reason, sizeof conn->reason,
                "no answer for %u s", (unsigned) (*limit / SEC));
      return;
    }
  }
}

/* Sleep before the next attempt, shorter when the device stops. */
static void
back_off (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  uint64_t t = nc_now ();
  uint64_t until = t + conn->backoff + t % (conn->backoff / 4);
  struct timespec ts = { .tv_sec = until / SEC, .tv_nsec = until % SEC };

  conn->backoff = nc_min64 (conn->backoff * 2, BACKOFF_MAX);
  NC_LOCKED (&nbd->lock);
  while (!nbd->stopping &&
         pthread_cond_timedwait (&nbd->changed, &nbd->lock, &ts) == 0)
    ;
}

static int start_thread (struct conn *conn);

/* Where the export was not known at open, the first connection finds out
 * whether there may be more. */
static void
add_connections (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;

  if (!nbd->absent || conn != &nbd->conns[0] || !conn->export.multi_conn ||
      nbd->argv)
    return;
  for (unsigned i = 1; i < MAX_CONNS; i++)
    if (!nbd->conns[i].running && start_thread (&nbd->conns[i]) == -1)
      break;                           /* works with fewer */
}

static void *
conn_thread (void *opaque)
{
  struct conn *conn = opaque;
  struct nbd *nbd = conn->nbd;
  uint64_t limit = nbd->first_limit;

  while (!is_stopping (nbd)) {
    conn->reason[0] = '\0';
    if (connect_conn (conn) == -1) {
      {
        NC_LOCKED (&nbd->lock);
        if (nbd->first == 0) {
          nbd->first = -1;
          pthread_cond_broadcast (&nbd->changed);
          break;                       /* nc_dev.start reports it */
        }
      }
      nc_debug ("%s: cannot connect: %s", nbd->dev.name, conn->reason);
      back_off (conn);
      continue;
    }

    mark_up (conn);
    add_connections (conn);
    conn->reason[0] = '\0';
    serve (conn, &limit);
    mark_down (conn);
    if (is_stopping (nbd) && conn->n_flight == 0 && !is_finished (conn->h)) {
      hand_over (conn, limit);
      disconnect (conn);
      break;
    }
    cut (conn);
    retire (conn);
    if (conn->n_flight > 0)
      close_handle (conn);             /* now nothing is written any more */
    hand_over (conn, limit);
    close_handle (conn);
    if (!is_stopping (nbd))
      back_off (conn);
  }
  return NULL;
}

/* Give REQ to a connection and wait for its end.  Returns an errno. */
static int
run (struct nbd *nbd, struct request *req)
{
  struct conn *conn;
  bool asleep;

  req->since = nc_now ();
  sem_init (&req->wake, 0, 0);
  {
    NC_LOCKED (&nbd->lock);
    conn = nbd->stopping ? NULL : choose_conn_locked (nbd);
    if (conn == NULL) {
      sem_destroy (&req->wake);
      return nbd->stopping ? ESHUTDOWN : ENOTCONN;
    }
    asleep = enqueue_locked (conn, req);
  }
  if (asleep)
    kick (conn);
  while (sem_wait (&req->wake) == -1)
    ;                                  /* EINTR */
  sem_destroy (&req->wake);
  return req->error;
}

static void
get_limits (struct nbd *nbd, uint64_t *minimum, uint64_t *maximum)
{
  NC_LOCKED (&nbd->lock);
  *minimum = nbd->minimum;
  *maximum = nbd->maximum;
}

/* The vtable's functions. */

/* One request: as many of COUNT bytes as it can hold; all of them lie
 * inside the export.  Sets *done.  Returns an errno, not reported. */
static int
read_part (struct nbd *nbd, void *buf, size_t count, uint64_t offset,
           size_t *done)
{
  NC_FREE char *bounce = NULL;
  struct request req = { .buf = buf };
  uint64_t minimum, maximum, first, last;
  int error;

  get_limits (nbd, &minimum, &maximum);
  first = nc_round_down (offset, minimum);
  count = nc_min64 (count, maximum - (offset - first));
  last = nc_min64 (nc_round_up (offset + count, minimum), nbd->dev.size);

  if (first != offset || last != offset + count) {
    maximum = nc_min64 (maximum, MAX_BOUNCE);
    last = nc_min64 (last, first + maximum);
    count = nc_min64 (count, last - offset);
    req.buf = bounce = malloc (last - first);
    if (bounce == NULL)
      return ENOMEM;
  }
  req.offset = first;
  req.count = last - first;
  error = run (nbd, &req);
  if (error)
    return error;
  if (bounce)
    memcpy (buf, bounce + (offset - first), count);
  *done = count;
  return 0;
}

static int
nbd_dev_pread (struct nc_dev *dev, void *buf, size_t count, uint64_t offset)
{
  struct nbd *nbd = (struct nbd *) dev;
  char more[NC_REPEAT_TEXT];
  char *p = buf;

  while (count > 0) {
    size_t n = 0;
    int error;

    if (offset >= dev->size) {
      memset (p, 0, count);
      return 0;
    }
    error = read_part (nbd, p, nc_min64 (count, dev->size - offset), offset,
                       &n);
    switch (error) {
    case 0:
      p += n;
      offset += n;
      count -= n;
      break;
    case EAGAIN:                       /* the limits have changed */
      break;
    case ENOTCONN: case ESHUTDOWN:
      errno = error;
      return -1;
    default:
      if (nc_repeat_report (&nbd->failures, ((offset >> 20) * 251 + error)
                            & 0xffff, more))
        nc_error ("%s: read of %zu bytes at offset %" PRIu64 ": the server "
                  "says: %s%s", dev->name, count, offset, strerror (error),
                  more);
      else
        nc_error_untold ("%s: read of %zu bytes at offset %" PRIu64 ": the "
                         "server says: %s", dev->name, count, offset,
                         strerror (error));
      errno = error == ENOMEM ? ENOMEM : EIO;
      return -1;
    }
  }
  return 0;
}

static int
nbd_dev_extents (struct nc_dev *dev, struct nc_extents *extents,
                 uint64_t end, uint64_t shift)
{
  struct nbd *nbd = (struct nbd *) dev;
  struct request req = { .extents = extents };
  uint64_t begin = nc_extents_next (extents), offset = begin + shift;
  uint64_t minimum, maximum, last;
  int error;

  if (offset >= dev->size)
    return nc_extents_append (extents, end - begin,
                              NC_EXTENT_HOLE | NC_EXTENT_ZERO);
  end = nc_min64 (end, dev->size - shift);

  do {
    get_limits (nbd, &minimum, &maximum);
    req.offset = nc_round_down (offset, minimum);
    last = nc_min64 (end + shift, req.offset + MAX_STATUS);
    last = nc_min64 (nc_round_up (last, minimum), dev->size);
    req.count = last - req.offset;
    req.skip = offset - req.offset;
    error = run (nbd, &req);
  } while (error == EAGAIN);

  switch (error) {
  case 0:
    break;
  case ENOTCONN: case ESHUTDOWN: case ENOMEM:
    errno = error;                     /* no memory: reported */
    return -1;
  default:
    nc_debug ("%s: block status at offset %" PRIu64 ": %s; taken as data",
              dev->name, offset, strerror (error));
  }
  if (nc_extents_next (extents) > begin)
    return 0;
  return nc_extents_append (extents, nc_min64 (end, last - shift) - begin, 0);
}

static void
nbd_dev_stop (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  unsigned i;

  {
    NC_LOCKED (&nbd->lock);
    nbd->stopping = true;
    pthread_cond_broadcast (&nbd->changed);
  }
  for (i = 0; i < nbd->n_conns; i++)
    kick (&nbd->conns[i]);
}

static int
nbd_dev_wait (struct nc_dev *dev, const struct timespec *deadline)
{
  struct nbd *nbd = (struct nbd *) dev;
  int r = 0;

  NC_LOCKED (&nbd->lock);
  while (!nbd->stopping && nbd->n_up == 0 && r == 0)
    r = deadline
      ? pthread_cond_timedwait (&nbd->changed, &nbd->lock, deadline)
      : pthread_cond_wait (&nbd->changed, &nbd->lock);
  if (nbd->stopping)
    r = ESHUTDOWN;
  else if (nbd->n_up > 0)
    return 0;
  errno = r;
  return -1;
}

static int
start_thread (struct conn *conn)
{
  int r = pthread_create (&conn->thread, NULL, conn_thread, conn);

  if (r) {
    errno = r;
    nc_error ("%s: cannot start a thread: %m", conn->nbd->dev.name);
    return -1;
  }
  conn->running = true;
  return 0;
}

static int
nbd_dev_start (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  bool reported;
  int first;
  unsigned i;

  if (start_thread (&nbd->conns[0]) == -1)
    return -1;
  if (nbd->absent)
    return 0;
  {
    NC_LOCKED (&nbd->lock);
    while (nbd->first == 0 && !nbd->stopping)
      pthread_cond_wait (&nbd->changed, &nbd->lock);
    first = nbd->first;
    reported = nbd->mismatch;
  }
  switch (first) {
  case 0:
    errno = ESHUTDOWN;
    return -1;
  case -1:
    if (!reported)
      nc_error ("%s: cannot connect: %s", dev->name, nbd->conns[0].reason);
    errno = ENOTCONN;
    return -1;
  }
  for (i = 1; i < nbd->n_conns; i++)
    if (start_thread (&nbd->conns[i]) == -1)
      break;                           /* works with fewer */
  return 0;
}

static void
nbd_dev_close (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  unsigned i;

  nbd_dev_stop (dev);
  for (i = 0; i < MAX_CONNS; i++) {
    if (nbd->conns[i].running)
      pthread_join (nbd->conns[i].thread, NULL);
    if (nbd->conns[i].kick >= 0)
      close (nbd->conns[i].kick);
  }
  pthread_cond_destroy (&nbd->changed);
  pthread_mutex_destroy (&nbd->lock);
  free (nbd->argv);
  free (nbd->words);
  free (nbd->certificates);
  free (nbd->psk);
  free (nbd->username);
  nc_dev_fini (dev);
  free (nbd);
}

static const struct nc_dev_ops nbd_dev_ops = {
  .close = nbd_dev_close,
  .pread = nbd_dev_pread,
  .extents = nbd_dev_extents,
  .start = nbd_dev_start,
  .stop = nbd_dev_stop,
  .wait = nbd_dev_wait,
};

/* Opening. */

/* Split "[ command args ]" into words.  Blanks separate them; what is in
 * single quotes is taken as it is; in double quotes \" and \\ stand for the
 * second character.  Nothing else is special, no shell is involved. */
static int
parse_command (struct nbd *nbd, const char *ref)
{
  size_t n = strlen (ref);
  const char *s = ref + 1, *end;
  char *out;
  size_t argc = 0;

  while (n > 1 && strchr (" \t\n", ref[n-1]))
    n--;
  if (n < 2 || ref[n-1] != ']') {
    nc_error ("%s: a command must end with ']'", ref);
    errno = EINVAL;
    return -1;
  }
  end = ref + n - 1;

  out = nbd->words = malloc (n);
  nbd->argv = calloc (n, sizeof *nbd->argv);
  if (nbd->words == NULL || nbd->argv == NULL) {
    nc_error ("%s: %m", ref);
    return -1;
  }

  for (;;) {
    char quote = 0;

    while (s < end && strchr (" \t\n", *s))
      s++;
    if (s == end)
      break;
    nbd->argv[argc++] = out;
    for (; s < end && (quote || !strchr (" \t\n", *s)); s++) {
      if (quote ? *s == quote : *s == '"' || *s == '\'') {
        quote = quote ? 0 : *s;
        continue;
      }
      if (quote == '"' && *s == '\\' && s + 1 < end &&
          (s[1] == '"' || s[1] == '\\'))
        s++;
      *out++ = *s;
    }
    if (quote) {
      nc_error ("%s: a quote is not closed", ref);
      errno = EINVAL;
      return -1;
    }
    *out++ = '\0';
  }
  if (argc == 0) {
    nc_error ("%s: the command is missing", ref);
    errno = EINVAL;
    return -1;
  }
  return 0;
}

/* Connect, learn the export and disconnect; in a thread of its own, so that
 * end_child knows whose child it waits for. */
struct probe {
  struct conn *conn;
  struct export export;
  int r;
};

static void *
probe_thread (void *opaque)
{
  struct probe *probe = opaque;

  probe->r = connect_handle (probe->conn, &probe->export);
  disconnect (probe->conn);
  return NULL;
}

static int
probe_export (struct nbd *nbd)
{
  struct probe probe = { .conn = &nbd->conns[0] };
  pthread_t thread;

  errno = pthread_create (&thread, NULL, probe_thread, &probe);
  if (errno) {
    nc_error ("%s: cannot start a thread: %m", nbd->dev.name);
    return -1;
  }
  pthread_join (thread, NULL);
  if (probe.r == -1) {
    nc_error ("%s: cannot connect: %s", nbd->dev.name,
              nbd->conns[0].reason);
    errno = ENOTCONN;
    return -1;
  }
  nbd->dev.size = probe.export.size;
  nbd->dev.identity = probe.export.identity;
  nbd->minimum = probe.export.minimum;
  nbd->maximum = probe.export.maximum;
  nbd->n_conns = probe.export.multi_conn && !nbd->argv ? MAX_CONNS : 1;
  return 0;
}

static void
init_locks (struct nbd *nbd)
{
  pthread_condattr_t attr;

  pthread_mutex_init (&nbd->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&nbd->changed, &attr);
  pthread_condattr_destroy (&attr);
}

static void
close_keeping_errno (struct nbd *nbd)
{
  int error = errno;

  nc_dev_close (&nbd->dev);
  errno = error;
}

/* Whether the URI REF has a user name, or a parameter other than "socket".
 * Credentials are ours to give, and so is whether they matter. */
static bool
has_credentials (const char *ref)
{
  const char *authority = strstr (ref, "://"), *query = strchr (ref, '?');

  if (authority &&
      authority[3 + strcspn (authority + 3, "/?#@")] == '@')
    return true;
  if (query == NULL)
    return false;
  for (query++; *query && *query != '#';) {
    size_t len = strcspn (query, "&;#");

    if (len > 0 && strncmp (query, "socket=", 7) != 0)
      return true;
    query += len;
    query += *query && *query != '#';
  }
  return false;
}

static bool
libnbd_has_hole (void)
{
  struct nbd_handle *h = nbd_create ();
  const char *version = h ? nbd_get_version (h) : NULL;
  bool has_hole = version == NULL || nc_tls_has_hole (version);

  nbd_close (h);
  return has_hole;
}

/* Refuse what would not be verified.  Returns -1, reported. */
static int
check_tls (const char *ref, const struct nc_tls *tls)
{
  static const char how[] = "remote-tls-certificates=DIRECTORY or "
    "remote-tls-psk=FILE (\"nbdchain\": --remote-tls-...)";

  if (has_credentials (ref))
    nc_error ("%s: neither a user name nor a parameter other than \"socket\" "
              "is taken from a URI with TLS; give %s", ref, how);
  else if (tls->psk && tls->certificates)
    nc_error ("%s: there are both certificates and keys for it; give one: %s",
              ref, how);
  else if (tls->psk || !libnbd_has_hole ())
    return 0;
  else if (tls->certificates == NULL)
    nc_error ("%s: TLS needs to know whom to trust; give %s", ref, how);
  else if (strncasecmp (ref, "nbds+unix", 9) == 0)
    nc_error ("%s: this version of libnbd does not verify certificates over "
              "a Unix socket (CVE-2024-7383): use remote-tls-psk, or TCP",
              ref);
  else
    return 0;
  errno = EPERM;
  return -1;
}

static int
copy_string (const char *ref, const char *from, char **to)
{
  *to = from ? strdup (from) : NULL;
  if (*to || from == NULL)
    return 0;
  nc_error ("%s: %m", ref);
  return -1;
}

/* Take over what is needed for TLS. */
static int
set_up_tls (struct nbd *nbd, const struct nc_tls *tls)
{
  static const struct nc_tls none;
  const char *ref = nbd->dev.name;

  if (tls == NULL)
    tls = &none;
  nbd->encrypted = strncasecmp (ref, "nbds:", 5) == 0 ||
    strncasecmp (ref, "nbds+", 5) == 0;
  if (!nbd->encrypted)
    return 0;
  return check_tls (ref, tls) == -1 ||
    copy_string (ref, tls->certificates, &nbd->certificates) == -1 ||
    copy_string (ref, tls->psk, &nbd->psk) == -1 ||
    copy_string (ref, tls->username, &nbd->username) == -1 ? -1 : 0;
}

/* The device before anything is known of its export. */
static struct nbd *
new_device (const char *ref, unsigned retry, const struct nc_tls *tls)
{
  struct nbd *nbd = calloc (1, sizeof *nbd);
  unsigned i;

  if (nbd == NULL) {
    nc_error ("%s: %m", ref);
    return NULL;
  }
  if (nc_dev_init (&nbd->dev, &nbd_dev_ops, ref) == -1) {
    free (nbd);
    return NULL;
  }
  init_locks (nbd);
  nbd->dev.remote = true;
  nbd->first_limit =
    (retry ? nc_min64 (retry, STALL_LIMIT) : STALL_LIMIT) * SEC;
  nbd->max_limit = (retry ? retry : STALL_LIMIT_MAX) * SEC;
  nbd->limit = nbd->first_limit;
  nbd->n_conns = MAX_CONNS;
  for (i = 0; i < MAX_CONNS; i++) {
    nbd->conns[i].nbd = nbd;
    nbd->conns[i].backoff = BACKOFF_MIN;
    nbd->conns[i].kick = -1;
  }
  for (i = 0; i < MAX_CONNS; i++) {
    nbd->conns[i].kick = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (nbd->conns[i].kick == -1) {
      nc_error ("%s: eventfd: %m", ref);
      goto fail;
    }
  }

  if (*ref == '[' && parse_command (nbd, ref) == -1)
    goto fail;
  if (set_up_tls (nbd, tls) == -1)
    goto fail;
  return nbd;

 fail:
  close_keeping_errno (nbd);
  return NULL;
}

struct nc_dev *
nc_remote_open_nbd (const char *ref, unsigned retry,
                    const struct nc_tls *tls)
{
  struct nbd *nbd = new_device (ref, retry, tls);

  if (nbd == NULL)
    return NULL;
  if (probe_export (nbd) == -1) {
    close_keeping_errno (nbd);
    return NULL;
  }
  nc_debug ("%s: %" PRIu64 " bytes, identity \"%s\", %u connections",
            ref, nbd->dev.size, nbd->dev.identity ? : "", nbd->n_conns);
  return &nbd->dev;
}

struct nc_dev *
nc_remote_open_nbd_absent (const char *ref, unsigned retry,
                           const struct nc_tls *tls, uint64_t size,
                           const char *identity)
{
  struct nbd *nbd = new_device (ref, retry, tls);

  if (nbd == NULL)
    return NULL;
  nbd->absent = true;
  nbd->first = 1;                      /* no attempt is the last one */
  nbd->minimum = 1;
  nbd->maximum = MAX_READ;
  nbd->outage = true;
  nbd->outage_since = nc_now ();
  nbd->dev.size = size;
  nbd->dev.identity = strdup (identity);
  if (nbd->dev.identity == NULL) {
    nc_error ("%s: %m", ref);
    close_keeping_errno (nbd);
    return NULL;
  }
  return &nbd->dev;
}
