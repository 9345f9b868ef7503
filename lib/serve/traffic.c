/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Requests and replies of clients on their way between nbdkit and the
 * socket.
 *
 * A thread knows what it was charged (`mine'), so a request that needs no
 * more than the ones before it costs no lock.  A connection's counters are
 * read without one, too. */

#include <config.h>

#include "serve/traffic.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/scope.h"

#define MAGIC 0x25609513
#define CMD_READ 0
#define CMD_WRITE 1
#define CMD_DISC 2

#define REQUEST_MAX (UINT32_C (64) << 20)  /* nbdkit refuses larger ones */
#define SKIP_MAX (2 * REQUEST_MAX) /* nbdkit gives the connection up */
#define SEND_STEP ((size_t) 1 << 20)

static struct {
  pthread_mutex_t lock;         /* guards changes of the charges, waiting */
  pthread_cond_t changed;       /* memory was given back, or a reply sent */
  uint64_t memory;              /* that may be charged to all */
  bool aborts;
  void (*end_stalled) (void);
  _Atomic (uint64_t) charged;   /* to all connections */
  _Atomic (unsigned) waiting;   /* threads, for memory */
} all = {
  .lock = PTHREAD_MUTEX_INITIALIZER,
  .changed = PTHREAD_COND_INITIALIZER,
  .memory = NC_TRAFFIC_MEMORY_DEFAULT,
};

/* Of a worker thread, which serves one connection. */
static _Thread_local struct {
  uint32_t count;               /* of the request that it reads or serves; 0:
                                   it needs no buffer */
  uint64_t charged;
  char *buf;                    /* nbdkit's buffer */
  size_t size;                  /* and its size; 0: not known */
} mine;

void
nc_traffic_set (uint64_t memory, bool aborts, void (*end_stalled) (void))
{
  all.memory = memory;
  all.aborts = aborts;
  all.end_stalled = end_stalled;
}

/* Memory. */

static bool
fits_locked (const struct nc_traffic *traffic, uint64_t need)
{
  return traffic->charged + need <= all.memory / 2 &&
    all.charged + need <= all.memory;
}

/* Wait up to a second. */
static void
wait_locked (void)
{
  struct timespec until;

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec++;
  pthread_cond_timedwait (&all.changed, &all.lock, &until);
}

/* Charge the calling thread for a request of COUNT bytes. */
static void
charge (struct nc_traffic *traffic, uint32_t count)
{
  uint64_t need;

  if (count <= mine.charged || count <= NC_TRAFFIC_SMALL)
    return;
  need = count - mine.charged;
  NC_LOCKED (&all.lock);
  all.waiting++;
  while (!fits_locked (traffic, need)) {
    wait_locked ();
    if (all.end_stalled) {
      pthread_mutex_unlock (&all.lock);
      all.end_stalled ();
      pthread_mutex_lock (&all.lock);
    }
  }
  all.waiting--;
  traffic->charged += need;
  all.charged += need;
  mine.charged = count;
}

static void
discharge_locked (struct nc_traffic *traffic, uint64_t bytes)
{
  traffic->charged -= bytes;
  all.charged -= bytes;
  pthread_cond_broadcast (&all.changed);
}

/* The pages that lie in the buffer as a whole: what else is in the others is
 * malloc's. */
static void
release_pages (void)
{
  const uintptr_t page = sysconf (_SC_PAGESIZE);
  const uintptr_t from = ((uintptr_t) mine.buf + page - 1) & ~(page - 1);
  const uintptr_t to = ((uintptr_t) mine.buf + mine.size) & ~(page - 1);

  if (from < to)
    madvise ((void *) from, to - from, MADV_DONTNEED);
}

/* The reply is sent, and the contents of the buffer are needed no more. */
static void
release_if_short (struct nc_traffic *traffic)
{
  if (mine.charged == 0 || mine.size == 0 ||
      (all.waiting == 0 && traffic->charged <= all.memory / 2 / 4 * 3 &&
       all.charged <= all.memory / 4 * 3))
    return;
  release_pages ();
  NC_LOCKED (&all.lock);
  discharge_locked (traffic, mine.charged);
  mine.charged = 0;
}

void
nc_traffic_note_buffer (void *buf, size_t size)
{
  if (mine.count == 0 || size != mine.count)
    return;
  mine.buf = buf;
  mine.size = size;
}

void
nc_traffic_end (struct nc_traffic *traffic)
{
  NC_LOCKED (&all.lock);
  discharge_locked (traffic, traffic->charged);
}

bool
nc_traffic_is_stalled (const struct nc_traffic *traffic)
{
  const uint64_t since = traffic->sending_since;

  return traffic->charged > 0 && since != 0 &&
    since + NC_TRAFFIC_STALLED <= nc_now () / NC_SECOND;
}

/* Requests. */

static uint32_t
get_be32 (const unsigned char *p)
{
  uint32_t v;

  memcpy (&v, p, sizeof v);
  return ntohl (v);
}

/* The header is complete.  Returns false if nbdkit will give up the
 * connection. */
static bool
begin_request (struct nc_traffic *traffic)
{
  const unsigned char *h = traffic->header;
  const uint16_t command = get_be32 (h + 4) & 0xffff;
  const uint32_t count = get_be32 (h + 24);
  const bool has_buffer = command == CMD_READ || command == CMD_WRITE;

  traffic->have = 0;
  mine.count = has_buffer && count <= REQUEST_MAX ? count : 0;
  if (get_be32 (h) != MAGIC || (command == CMD_WRITE && count > SKIP_MAX))
    return false;
  traffic->payload = command == CMD_WRITE ? count : 0;
  if (command != CMD_DISC && traffic->payload == 0)
    traffic->owed++;
  charge (traffic, mine.count);
  return true;
}

/* LEN bytes were read into BUF: part of a header, or of the data that follow
 * one, and never of both, as nbdkit reads them apart. */
static bool
received (struct nc_traffic *traffic, const void *buf, size_t len)
{
  const size_t room = sizeof traffic->header - traffic->have;

  if (traffic->payload > 0) {
    traffic->payload -= len < traffic->payload ? len : traffic->payload;
    if (traffic->payload == 0)
      traffic->owed++;
    return true;
  }
  memcpy (traffic->header + traffic->have, buf, len < room ? len : room);
  traffic->have += len < room ? len : room;
  return traffic->have < sizeof traffic->header || begin_request (traffic);
}

void
nc_traffic_received (struct nc_traffic *traffic, const void *buf, size_t len)
{
  received (traffic, buf, len);
}

/* nbdkit is about to mark the connection as dead: first have all replies
 * sent, or fail. */
static void
drain (struct nc_traffic *traffic, int fd)
{
  if (!all.aborts)
    return;
  shutdown (fd, SHUT_RDWR);
  traffic->draining = true;
  NC_LOCKED (&all.lock);
  while (traffic->owed > 0)
    pthread_cond_wait (&all.changed, &all.lock);
}

ssize_t
nc_traffic_read (struct nc_traffic *traffic, int fd, void *buf, size_t len)
{
  const ssize_t n = recv (fd, buf, len, 0);
  int err = errno;

  if (n > 0) {
    if (!received (traffic, buf, n))
      drain (traffic, fd);
    return n;
  }
  if (n == -1 && (err == EINTR || err == EAGAIN))
    return -1;
  if (traffic->have == 0 && traffic->payload == 0)
    return 0;                   /* between requests a reset is an end, too */
  drain (traffic, fd);
  errno = err;
  return n;
}

/* Replies. */

void
nc_traffic_begin_send (struct nc_traffic *traffic, size_t len)
{
  if (len > NC_TRAFFIC_SMALL)
    traffic->sending_since = nc_now () / NC_SECOND;
}

void
nc_traffic_end_send (struct nc_traffic *traffic, bool done)
{
  if (traffic->sending_since != 0)
    traffic->sending_since = 0;
  if (done)
    release_if_short (traffic);
}

static void
replied (struct nc_traffic *traffic)
{
  if (--traffic->owed > 0 || !traffic->draining)
    return;
  NC_LOCKED (&all.lock);
  pthread_cond_broadcast (&all.changed);
}

ssize_t
nc_traffic_send (struct nc_traffic *traffic, int fd, const void *buf,
                 size_t len, int flags)
{
  const size_t step = len < SEND_STEP ? len : SEND_STEP;
  const bool more = (flags & MSG_MORE) != 0 || step < len;
  ssize_t n;
  int err;

  nc_traffic_begin_send (traffic, step);
  n = send (fd, buf, step, more ? flags | MSG_MORE : flags);
  err = errno;
  if (n == -1 && err != EINTR && err != EAGAIN && all.aborts) {
    shutdown (fd, SHUT_RDWR);
    n = step;
  }
  nc_traffic_end_send (traffic, n == (ssize_t) step && !more);
  if (n == (ssize_t) step && !more)
    replied (traffic);
  errno = err;
  return n;
}
