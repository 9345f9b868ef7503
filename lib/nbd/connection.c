/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A connection while it is up, and the requests it serves.
 *
 * Who waits for an answer receives it, so that a request that is alone wakes
 * nobody.  Of the requests in flight on a connection one has the receiver: its
 * thread polls the socket, receives for all and wakes those whose requests
 * have ended; when its own has, the next one is appointed.  No other thread
 * polls for what comes: libnbd hangs if it is told to read what another one
 * has read.
 *
 *   requester                            the others meanwhile
 *   ---------                            --------------------
 *   struct request on its own stack
 *   append to conn->queue
 *   conn->lock, unless it is taken       who has it looks at the queue when
 *     issue with nbd_aio_*  ->  flight   it has let go of it
 *     appoint the receiver
 *   sem_wait                             the receiver completes this request,
 *     appointed: receive until it ends   or appoints it
 *   returns                              the keeper
 *
 * A thread may make several requests at a time, all on one connection and with
 * one semaphore.  Only a flush goes to several connections; its thread receives
 * on the first of them.  Its requests on the others are passive: where none but
 * such are in flight, the keeper receives until they have ended.
 *
 * The keeper, a thread a connection, connects, watches the socket where nobody
 * receives, and clears up when the connection is lost.  Nobody but the holder
 * of conn->lock, or the keeper of a connection that is not open, touches the
 * libnbd handle.  A request is completed only after its command has retired or
 * the handle is closed, so that nothing writes into its buffer any more.
 *
 * Lost connections: the reads of one that is lost move to another that
 * is up, or fail with ENOTCONN; the keeper reconnects with back-off until
 * it is told to stop.  A server that does not answer is lost too: when for
 * nbd->limit no request in flight has ended and next to nothing came or
 * went.  A connection is used again only if the export has the size and
 * identity it had at open.
 *
 * Changes: when a connection is lost, its queued and unanswered changes fail
 * with ENOTCONN; the server may have carried them out, or do so later.  Changes
 * that were answered but not flushed are volatile: a server that died has lost
 * them.  Each connection counts its own.  If it has any when it is lost,
 * nbd->since stays behind nbd->epoch, and syncs fail with ESTALE until
 * nc_dev_ops.renew.  A flush is sent on each connection with volatile changes,
 * not on one for all: the server may have been restarted, with one connection
 * leading to the new process and another one, whose end has not been noticed
 * yet, to the old.
 *
 * The server is not trusted: libnbd keeps replies inside the buffers; block
 * status is checked here.  A reply with gaps must not show memory of ours.
 * Clearing each buffer before a read, as libnbd does by default, costs up to
 * a tenth of the time of a copy; so only a reply that does not come in order
 * and whole is read again into a buffer that was cleared.
 */

#include <config.h>

#include "nbd/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/scope.h"
#include "util/standback.h"

#define MAX_IN_FLIGHT 64               /* on one connection */
#define MAX_ENTRIES 65536              /* taken from one reply */
#define BACKOFF_MAX (2 * SEC)

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

static bool
is_change (const struct request *req)
{
  return req->kind >= WRITE;
}

/* Whether REQ is a change that needs a flush to be durable. */
static bool
is_volatile (const struct request *req)
{
  return is_change (req) && req->kind != FLUSH &&
    (req->flags & LIBNBD_CMD_FLAG_FUA) == 0;
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
  sem_post (req->wake);
}

/* CONN, which holds REQ no more, is done with it. */
static void
finish (struct conn *conn, struct request *req, int error)
{
  conn->n_retired++;
  conn->n_written += is_volatile (req);
  if (conn->receiver == req)
    conn->receiver = NULL;
  complete (req, error);
}

static void
kick (int eventfd)
{
  const uint64_t one = 1;

  /* It can fail only when it is full, that is, kicked already. */
  if (write (eventfd, &one, sizeof one) == -1)
    return;
}

void
conn_kick (struct conn *conn)
{
  kick (conn->kick);
}

/* Why the export can no longer be written as it was at open, or NULL. */
static const char *
why_not_writable (const struct nbd *nbd, const struct export *export)
{
  if (!nbd->dev.writable)
    return NULL;
  if (export->read_only)
    return "it is read-only";
  if (export->minimum > nbd->minimum)
    return "its minimum block size is larger";
  if (nbd->n_conns > 1 && !export->multi_conn)
    return "it no longer allows several connections (multi-conn)";
  return NULL;
}

/* Whether the export is the one that was opened; report it if not. */
static bool
is_same_export (struct conn *conn, const struct export *export)
{
  struct nbd *nbd = conn->nbd;
  const char *was = nbd->dev.identity ? : "";
  const char *is = export->identity ? : "";
  const bool same = nbd->absent
    ? export->size >= nbd->dev.size && (!*was || strcmp (was, is) == 0)
    : export->size == nbd->dev.size && strcmp (was, is) == 0;
  const char *changed;
  bool report;

  {
    NC_LOCKED (&nbd->lock);
    changed = same ? why_not_writable (nbd, export) : "not the same export";
    report = changed && !nbd->mismatch;
    nbd->mismatch = changed != NULL;
  }
  if (changed == NULL)
    return true;
  if (report && !same)
    nc_error ("%s: the server has another export now: "
              "was %" PRIu64 " bytes (\"%s\"), is %" PRIu64 " bytes (\"%s\"); "
              "it is not used: bring the former one back, or open the chain "
              "again if this one is right",
              nbd->dev.name, nbd->dev.size, was, export->size, is);
  else if (report)
    nc_error ("%s: the export has changed: %s; it is not used: bring the "
              "former one back, or start again with this one", nbd->dev.name,
              changed);
  snprintf (conn->reason, sizeof conn->reason, "%s", changed);
  return false;
}

/* Connect for good. */
static int
connect_conn (struct conn *conn)
{
  struct export export = { .identity = NULL };

  if (conn_connect (conn, &export) == -1)
    return -1;
  conn_learn_changes (conn, &export);
  if (!is_same_export (conn, &export)) {
    free (export.identity);
    conn_disconnect (conn);
    return -1;
  }
  conn_remember_peer (conn);
  free (export.identity);
  export.identity = NULL;
  conn->export = export;
  conn->asked = conn->useful = conn->ending = conn->stalled = false;
  conn->hung_up = false;
  return 0;
}

/* The end of an outage, if there is one; nbd->lock is not held. */
static void
report_back (struct nbd *nbd, uint64_t since)
{
  nc_notice ("%s: is back after %.1f s", nbd->dev.name,
             (double) (nc_now () - since) / SEC);
}

/* CONN cannot connect.  That is news where the device was not connected to
 * yet; else mark_down has reported it. */
static void
mark_away (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  bool report;

  {
    NC_LOCKED (&nbd->lock);
    report = !nbd->stopping && nbd->n_up == 0 && !nbd->outage;
    if (report) {
      nbd->outage = true;
      nbd->outage_since = nc_now ();
    }
    report = report && !nbd->mismatch; /* that was reported */
  }
  if (report)
    nc_error ("%s: cannot connect: %s; retrying", nbd->dev.name,
              conn->reason);
  else
    nc_debug ("%s: cannot connect: %s", nbd->dev.name, conn->reason);
}

static void
mark_up (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  uint64_t since = 0;

  {
    NC_LOCKED (&conn->lock);
    conn->open = true;
  }
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
    nbd->can &= conn->export.can;
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

/* The connection for REQ, one that is up: with the least to do, or, where
 * others come first, the last.  NULL if there is none. */
static struct conn *
choose_conn_locked (struct nbd *nbd, const struct request *req)
{
  struct conn *best = NULL;
  unsigned i;

  for (i = 0; i < nbd->n_conns; i++)
    if (nbd->conns[i].up && (!best || req->stands_back ||
                             nbd->conns[i].load < best->load))
      best = &nbd->conns[i];
  return best;
}

/* To be followed by submit. */
static void
enqueue_locked (struct conn *conn, struct request *req)
{
  req->conn = conn;
  list_append (&conn->queue, req);
  conn->load++;
  if (is_volatile (req)) {
    conn->written++;
    conn->writing++;
  }
  conn->fresh = true;
}

void
nbd_begin_epoch_locked (struct nbd *nbd, bool lost)
{
  if (!lost && nbd->since == nbd->epoch)
    nbd->since++;
  nbd->epoch++;
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
    nbd_begin_epoch_locked (nbd, conn->written != conn->covered);
    conn->covered = conn->written;
    if (conn->stalled && conn->n_changes > 0)
      nbd->change_limit = nc_min64 (nbd->change_limit * 2,
                                    nbd->max_change_limit);
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

/* What of CAN_* the request needs. */
static unsigned
needs (const struct request *req)
{
  static const unsigned of_kind[] = {
    [ZERO] = CAN_ZERO, [TRIM] = CAN_TRIM, [FLUSH] = CAN_FLUSH,
  };

  return of_kind[req->kind] |
    (req->flags & LIBNBD_CMD_FLAG_FUA ? CAN_FUA : 0) |
    (req->flags & LIBNBD_CMD_FLAG_FAST_ZERO ? CAN_FAST_ZERO : 0);
}

/* Whether the connection allows the request as it is. */
static bool
is_allowed (const struct conn *conn, const struct request *req)
{
  uint64_t mask = conn->export.minimum - 1;
  uint64_t end = req->offset + req->count;
  const bool has_data = req->kind == READ || req->kind == WRITE;

  return (req->offset & mask) == 0 &&
    ((end & mask) == 0 || end == conn->export.size) &&
    (!has_data || req->count <= conn->export.maximum) &&
    (needs (req) & ~conn->export.can) == 0;
}

/* Returns the cookie, or -1. */
static int64_t
send_request (struct nbd_handle *h, struct request *req)
{
  const nbd_completion_callback completion = {
    .callback = on_complete, .user_data = req,
  };

  switch (req->kind) {
  case READ:
    return nbd_aio_pread_structured (h, req->buf, req->count, req->offset,
                                     (nbd_chunk_callback) {
                                       .callback = on_chunk, .user_data = req,
                                     }, completion, 0);
  case BLOCK_STATUS:
    return nbd_aio_block_status (h, req->count, req->offset,
                                 (nbd_extent_callback) {
                                   .callback = on_extents, .user_data = req,
                                 }, completion, 0);
  case WRITE:
    return nbd_aio_pwrite (h, req->buf, req->count, req->offset, completion,
                           req->flags);
  case ZERO:
    return nbd_aio_zero (h, req->count, req->offset, completion, req->flags);
  case TRIM:
    return nbd_aio_trim (h, req->count, req->offset, completion, req->flags);
  case FLUSH:
    return nbd_aio_flush (h, completion, 0);
  }
  return -1;
}

static void
issue (struct conn *conn, struct request *req)
{
  if (!is_allowed (conn, req)) {
    finish (conn, req, EAGAIN);
    return;
  }
  if (req->kind == BLOCK_STATUS && !conn->export.allocation) {
    finish (conn, req, 0);
    return;
  }

  if (conn->n_flight == 0)
    conn_made_progress (conn);
  conn->asked = true;
  req->error = 0;
  req->came = 0;
  list_append (&conn->flight, req);
  conn->n_flight++;
  conn->n_changes += is_change (req);
  req->cookie = send_request (conn->h, req);
  if (req->cookie != -1)
    return;

  /* Not issued: libnbd has forgotten it. */
  conn_keep_reason (conn);
  list_remove (&conn->flight, req);
  conn->n_flight--;
  conn->n_changes -= is_change (req);
  if (conn_is_finished (conn))
    list_append (&conn->lost, req);
  else {
    int error = nbd_get_errno ();

    finish (conn, req, error == ENOMEM ? ENOMEM : EIO);
  }
}

/* A read has ended well, and libnbd has checked that as much came as was
 * asked for.  But was it all of it? */
static bool
may_have_gaps (const struct request *req)
{
  return req->kind == READ && !req->cleared && req->came < req->count;
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
    conn->n_changes -= is_change (req);
    conn_made_progress (conn);
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
    finish (conn, req, error ? error : req->error);
  }
}

/* CONN is of no use any more, for the reason that was kept. */
static void
lose (struct conn *conn)
{
  conn->open = false;
  kick (conn->call);
  kick (conn->kick);
}

/* Changes, flushes above all, may take long, and if their connection is given
 * up the server may still carry them out after newer ones.  So their limit is
 * longer. */
static uint64_t
stall_limit (const struct conn *conn)
{
  return conn->n_changes > 0 ? conn->change_limit : conn->limit;
}

/* When to check for a stall. */
static uint64_t
next_look (const struct conn *conn)
{
  const uint64_t limit = stall_limit (conn);

  return conn->progress + (conn->looked == conn->progress ? limit : limit / 2);
}

/* Whether the server hangs: nothing comes, and the kernel's send buffer has not
 * shrunk in the second half of the limit. */
static bool
is_stalled (struct conn *conn)
{
  const uint64_t limit = stall_limit (conn);
  int unsent = 0;

  if (conn->n_flight == 0 || nc_now () < next_look (conn))
    return false;
  if (ioctl (nbd_aio_get_fd (conn->h), SIOCOUTQ, &unsent) == -1)
    unsent = 0;
  if (conn->looked != conn->progress) {
    conn->looked = conn->progress;
    conn->unsent = unsent;
    return false;
  }
  if (conn->unsent - unsent < (int64_t) (SLOWEST * limit / 2 / SEC))
    return true;
  conn_made_progress (conn);
  return false;
}

/* Whether CONN is of use still, after something came or should have come. */
static void
examine (struct conn *conn)
{
  if (conn_is_finished (conn)) {
    if (conn->reason[0] == '\0')
      snprintf (conn->reason, sizeof conn->reason,
                "the server closed the connection");
  }
  else if (conn->ending)
    snprintf (conn->reason, sizeof conn->reason,
              "the server is shutting down");
  else if (is_stalled (conn)) {
    conn->stalled = true;
    snprintf (conn->reason, sizeof conn->reason,
              "no answer for %u s", (unsigned) (stall_limit (conn) / SEC));
  }
  else
    return;
  lose (conn);
}

/* Have the thread of a request in flight receive: of the first one that is not
 * passive, but of one that stands back only if all do.  Without any, the
 * keeper does. */
static void
appoint (struct conn *conn)
{
  struct request *req, *last = NULL;

  for (req = conn->flight.head; req; req = req->next)
    if (!req->passive) {
      if (!req->stands_back)
        break;
      if (last == NULL)
        last = req;
    }
  if (req == NULL)
    req = last;
  conn->receiver = req;
  if (req) {
    req->appointed = true;
    sem_post (req->wake);
  }
  else if (conn->flight.head) {
    conn->keeper_receives = true;
    kick (conn->kick);
  }
}

/* Issue what is queued, and have somebody receive. */
static void
settle (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  struct list batch = { NULL, NULL };
  struct request *req;

  {
    NC_LOCKED (&nbd->lock);
    conn->fresh = false;
    if (!conn->open)                   /* the keeper gives it away */
      return;
    conn->load -= conn->n_retired;
    conn->writing -= conn->n_written;
    conn->n_retired = conn->n_written = 0;
    conn->limit = nbd->limit;
    conn->change_limit = nbd->change_limit;
    for (unsigned n = conn->n_flight; n < MAX_IN_FLIGHT &&
           (req = list_take (&conn->queue)) != NULL; n++)
      list_append (&batch, req);
  }
  if (batch.head) {
    while ((req = list_take (&batch)) != NULL)
      issue (conn, req);
    examine (conn);
    /* The receiver may wait for less than what is to be done now. */
    if ((conn->receiver || conn->keeper_receives) &&
        nbd_aio_get_direction (conn->h) & LIBNBD_AIO_DIRECTION_WRITE)
      kick (conn->receiver ? conn->call : conn->kick);
    if (conn->open && conn->n_flight == 0) {    /* all were refused */
      NC_LOCKED (&nbd->lock);
      conn->fresh = conn->queue.head != NULL;
    }
  }
  if (conn->open && conn->receiver == NULL && !conn->keeper_receives)
    appoint (conn);
}

static bool
has_fresh (struct conn *conn)
{
  NC_LOCKED (&conn->nbd->lock);
  return conn->fresh;
}

/* Let go of CONN.  Who could not get it meanwhile has left something in the
 * queue. */
static void
leave (struct conn *conn)
{
  do {
    settle (conn);
    pthread_mutex_unlock (&conn->lock);
  } while (has_fresh (conn) && pthread_mutex_trylock (&conn->lock) == 0);
}

/* Something was queued; nbd->lock is not held. */
static void
submit (struct conn *conn)
{
  if (pthread_mutex_trylock (&conn->lock) == 0)
    leave (conn);
}

/* Receive what has come on CONN, and send more if there is room.  The send
 * buffer was full then, and the server has taken a good part of it. */
static void
take (struct conn *conn, const struct pollfd fds[2])
{
  if (fds[0].revents & POLLOUT)
    conn_made_progress (conn);
  if (conn_take (conn, fds) == -1)
    lose (conn);
  retire (conn);
  if (conn->open)
    examine (conn);
}

/* Receive on CONN until REQ, which is appointed for that, has ended, or the
 * connection is lost. */
static void
receive (struct conn *conn, const struct request *req)
{
  pthread_mutex_lock (&conn->lock);
  while (conn->open && conn->receiver == req) {
    struct pollfd fds[2];
    const uint64_t deadline = next_look (conn);

    conn_prepare (conn, conn->call, fds);
    leave (conn);
    conn_wait (fds, deadline);
    pthread_mutex_lock (&conn->lock);
    if (conn->open)
      take (conn, fds);
  }
  if (conn->receiver == req)
    conn->receiver = NULL;
  if (conn->receiver == NULL && (!conn->open || conn->hung_up))
    kick (conn->kick);
  leave (conn);
}

/* Give away the requests that CONN leaves behind: reads to another connection,
 * unless they have waited long or have been moved a lot.  Those that are made
 * together would come apart, and one thread cannot receive on two connections:
 * they go back.  Changes fail. */
static void
hand_over (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  struct list failed = { NULL, NULL };
  bool moved = false;
  struct request *req;
  uint64_t t = nc_now ();
  int error;

  {
    NC_LOCKED (&nbd->lock);
    error = nbd->stopping ? ESHUTDOWN : ENOTCONN;
    while ((req = list_take (&conn->lost)) != NULL ||
           (req = list_take (&conn->flight)) != NULL ||
           (req = list_take (&conn->queue)) != NULL) {
      struct conn *other = nbd->stopping ? NULL
        : choose_conn_locked (nbd, req);

      if (!other || is_change (req) || req->answered ||
          req->moves >= MAX_CONNS ||
          (conn->stalled && t - req->since >= conn->limit)) {
        req->error = req->answered ? 0 : error;
        list_append (&failed, req);
      }
      else if (req->together) {
        req->error = EAGAIN;
        list_append (&failed, req);
      }
      else {
        req->moves++;
        enqueue_locked (other, req);
        moved = true;
      }
    }
    conn->load = conn->n_flight = conn->n_retired = 0;
    conn->writing = conn->n_changes = conn->n_written = 0;
  }
  while ((req = list_take (&failed)) != NULL)
    complete (req, req->error);
  for (unsigned i = 0; moved && i < MAX_CONNS; i++)
    submit (&nbd->conns[i]);
}

/* Keepers. */

/* Whether the keeper goes on receiving. */
static bool
has_passive (const struct conn *conn)
{
  const struct request *req = conn->flight.head;

  while (req && !req->passive)
    req = req->next;
  return req != NULL;
}

/* Wait until CONN is lost or the device stops, and no thread receives any
 * more.  Receive where requests in flight have no thread for that. */
static void
watch (struct conn *conn)
{
  pthread_mutex_lock (&conn->lock);
  for (;;) {
    struct pollfd fds[2] = {
      { .fd = -1 }, { .fd = conn->kick, .events = POLLIN },
    };
    uint64_t deadline = 0;
    bool receives;

    if (conn->open && conn_must_stop (conn))
      lose (conn);
    /* Where somebody receives, that thread will see it. */
    if (conn->open && conn->hung_up && conn->receiver == NULL) {
      snprintf (conn->reason, sizeof conn->reason,
                "the server closed the connection");
      lose (conn);
    }
    if (!conn->open && conn->receiver == NULL)
      break;
    conn->keeper_receives &= conn->open && has_passive (conn);
    receives = conn->keeper_receives;
    if (receives) {
      conn_prepare (conn, conn->kick, fds);
      deadline = next_look (conn);
    }
    else if (conn->open && !conn->hung_up)
      fds[0] = (struct pollfd) {
        .fd = nbd_aio_get_fd (conn->h), .events = POLLRDHUP,
      };
    leave (conn);
    conn_wait (fds, deadline);
    pthread_mutex_lock (&conn->lock);
    if (!receives)
      conn->hung_up |= fds[0].revents != 0;
    else if (conn->open)
      take (conn, fds);
  }
  pthread_mutex_unlock (&conn->lock);  /* what is queued will be given away */
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

/* Where the export was not known at open, the first connection finds out
 * whether there may be more. */
static void
add_connections (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;

  if (!nbd->absent || conn != &nbd->conns[0] || !conn->export.multi_conn ||
      nbd->argv)
    return;
  for (unsigned i = 1; i < nbd->n_conns; i++)
    if (!nbd->conns[i].running && conn_start (&nbd->conns[i]) == -1)
      break;                           /* works with fewer */
}

/* Have close drop what the kernel has not sent yet: delivered when the link is
 * up again, an old write could overwrite a newer one of the next connection. */
static void
drop_unsent (struct conn *conn)
{
  const struct linger none = { .l_onoff = 1, .l_linger = 0 };

  if (setsockopt (nbd_aio_get_fd (conn->h), SOL_SOCKET, SO_LINGER, &none,
                  sizeof none) == -1)
    nc_debug ("%s: SO_LINGER: %m", conn->nbd->dev.name);
}

static void *
keeper_thread (void *opaque)
{
  struct conn *conn = opaque;
  struct nbd *nbd = conn->nbd;

  while (!conn_must_stop (conn)) {
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
      mark_away (conn);
      back_off (conn);
      continue;
    }

    conn->reason[0] = '\0';
    mark_up (conn);
    add_connections (conn);
    watch (conn);
    mark_down (conn);
    if (conn_must_stop (conn) && conn->n_flight == 0 &&
        !conn_is_finished (conn)) {
      hand_over (conn);
      conn_disconnect (conn);
      break;
    }
    if (conn->n_changes > 0)
      drop_unsent (conn);
    conn_cut (conn);
    retire (conn);
    if (conn->n_flight > 0)
      conn_close (conn);             /* now nothing is written any more */
    hand_over (conn);
    conn_close (conn);
    if (!conn_must_stop (conn))
      back_off (conn);
  }
  return NULL;
}

static void
prepare (struct request *reqs, unsigned n, sem_t *wake)
{
  const uint64_t now = nc_now ();
  const bool stands_back = nc_stands_back ();

  for (unsigned i = 0; i < n; ++i) {
    reqs[i].since = now;
    reqs[i].stands_back = stands_back;
    reqs[i].together = n > 1;
    reqs[i].wake = wake;
  }
}

/* Put the requests into the queue of one connection.  Returns an errno if there
 * is none. */
static int
enqueue (struct nbd *nbd, struct request *reqs, unsigned n)
{
  struct conn *conn;

  {
    NC_LOCKED (&nbd->lock);
    conn = nbd->stopping ? NULL : choose_conn_locked (nbd, reqs);
    if (conn == NULL)
      return nbd->stopping ? ESHUTDOWN : ENOTCONN;
    for (unsigned i = 0; i < n; ++i)
      enqueue_locked (conn, &reqs[i]);
  }
  submit (conn);
  return 0;
}

/* If one of the requests is appointed, receive.  Returns how many were. */
static unsigned
receive_if_appointed (struct request *reqs, unsigned n)
{
  for (unsigned i = 0; i < n; ++i)
    if (reqs[i].appointed) {
      reqs[i].appointed = false;
      receive (reqs[i].conn, &reqs[i]);
      return 1;
    }
  return 0;
}

/* Wait for the end of all.  The semaphore is posted once for each end and once
 * for each appointment, and who posts has no use for the request any more: so
 * all have ended, and nobody will post, when that many posts have been
 * taken. */
static void
await (struct request *reqs, unsigned n, sem_t *wake)
{
  for (unsigned posts = n; posts > 0; --posts) {
    while (sem_wait (wake) == -1)
      ;                                /* EINTR */
    posts += receive_if_appointed (reqs, n);
  }
}

void
conn_run (struct nbd *nbd, struct request *reqs, unsigned n)
{
  sem_t wake;
  int error;

  sem_init (&wake, 0, 0);
  prepare (reqs, n, &wake);
  error = enqueue (nbd, reqs, n);
  for (unsigned i = 0; error && i < n; ++i)
    reqs[i].error = error;
  if (error == 0)
    await (reqs, n, &wake);
  sem_destroy (&wake);
}

/* A flush of one connection, and how many of its changes it covers. */
struct flush {
  struct conn *conn;
  uint64_t covers;
};

/* Queue a flush on each connection that needs one.  All but the first are
 * passive.  Returns their number. */
static unsigned
enqueue_flushes_locked (struct nbd *nbd, struct flush *flushes,
                        struct request *reqs)
{
  unsigned n = 0;

  for (unsigned i = 0; i < nbd->n_conns; i++)
    if (nbd->conns[i].up && nbd->conns[i].written != nbd->conns[i].covered)
      flushes[n++].conn = &nbd->conns[i];
  if (n == 0 && nbd->n_up > 0)
    flushes[n++].conn = choose_conn_locked (nbd, reqs);
  for (unsigned i = 0; i < n; i++) {
    struct conn *conn = flushes[i].conn;

    /* It covers those answered by now.  If others are unanswered, it is not
     * known which of its number these are. */
    flushes[i].covers = conn->writing > 0 ? conn->covered : conn->written;
    reqs[i].kind = FLUSH;
    reqs[i].passive = i > 0;
    enqueue_locked (conn, &reqs[i]);
  }
  return n;
}

/* Returns the error of the flushes, the server's first. */
static int
conclude_flushes_locked (struct nbd *nbd, const struct flush *flushes,
                         const struct request *reqs, unsigned n)
{
  int error = 0;

  for (unsigned i = 0; i < n; i++) {
    struct conn *conn = flushes[i].conn;

    if (reqs[i].error == 0)
      conn->covered = nc_max64 (conn->covered, flushes[i].covers);
    else if (error == 0 || error == ENOTCONN || error == EAGAIN)
      error = reqs[i].error;
  }
  if (error && error != ENOTCONN && error != ESHUTDOWN && error != EAGAIN)
    nbd_begin_epoch_locked (nbd, true);
  return error;
}

int
conn_flush (struct nbd *nbd)
{
  struct request reqs[MAX_CONNS] = { 0 };
  struct flush flushes[MAX_CONNS];
  sem_t wake;
  unsigned n = 0;
  int error;

  sem_init (&wake, 0, 0);
  prepare (reqs, MAX_CONNS, &wake);
  {
    NC_LOCKED (&nbd->lock);
    if (!nbd->stopping)
      n = enqueue_flushes_locked (nbd, flushes, reqs);
    error = nbd->stopping ? ESHUTDOWN : n == 0 ? ENOTCONN : 0;
  }
  for (unsigned i = 0; i < n; i++)
    submit (flushes[i].conn);
  await (reqs, n, &wake);
  sem_destroy (&wake);
  if (error)
    return error;
  NC_LOCKED (&nbd->lock);
  return conclude_flushes_locked (nbd, flushes, reqs, n);
}

int
conn_start (struct conn *conn)
{
  int r = pthread_create (&conn->thread, NULL, keeper_thread, conn);

  if (r) {
    errno = r;
    nc_error ("%s: cannot start a thread: %m", conn->nbd->dev.name);
    return -1;
  }
  conn->running = true;
  return 0;
}
