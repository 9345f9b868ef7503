/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Devices for tests, see dev-fault.h.
 *
 * Loss of unsynced writes: a write goes through to the device behind at once,
 * and what it replaces is kept, sector by sector, until a sync that begins
 * after the write has returned.  Tracking takes a lock around every
 * operation, so that the order of what is kept is that of the writes; without
 * it there is none, and a race in the code under test stays visible.
 */

#include <config.h>

#include "dev-fault.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "util/report.h"
#include "util/scope.h"

#define SECTOR 512

/* Memory. */

struct mem_dev {
  struct nc_dev dev;
  struct mem_disk *disk;
};

void
mem_disk_init (struct mem_disk *disk, uint64_t size)
{
  disk->size = size;
  disk->data = mmap (NULL, size + 1, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (disk->data == MAP_FAILED) {
    perror ("mmap");
    exit (1);
  }
}

void
mem_disk_fini (struct mem_disk *disk)
{
  munmap (disk->data, disk->size + 1);
}

void
mem_disk_clear (struct mem_disk *disk)
{
  madvise (disk->data, disk->size + 1, MADV_DONTNEED);
}

static struct mem_disk *
mem_disk_of (struct nc_dev *dev)
{
  return ((struct mem_dev *) dev)->disk;
}

static void
mem_close (struct nc_dev *dev)
{
  nc_dev_fini (dev);
  free (dev);
}

static int
mem_pread (struct nc_dev *dev, void *buf, size_t count, uint64_t offset)
{
  struct mem_disk *disk = mem_disk_of (dev);
  size_t n = offset >= disk->size ? 0 : disk->size - offset;

  if (n > count)
    n = count;
  memcpy (buf, disk->data + offset, n);
  memset ((uint8_t *) buf + n, 0, count - n);
  return 0;
}

static int
mem_check (struct nc_dev *dev, uint64_t count, uint64_t offset)
{
  struct mem_disk *disk = mem_disk_of (dev);

  if (offset > disk->size || count > disk->size - offset) {
    errno = ENOSPC;
    nc_error ("%s: %" PRIu64 " bytes at %" PRIu64 ": %m", dev->name, count,
              offset);
    return -1;
  }
  return 0;
}

static int
mem_pwrite (struct nc_dev *dev, const void *buf, size_t count,
            uint64_t offset)
{
  if (mem_check (dev, count, offset) == -1)
    return -1;
  memcpy (mem_disk_of (dev)->data + offset, buf, count);
  return 0;
}

static int
mem_pwritev (struct nc_dev *dev, struct iovec *iov, int niov,
             uint64_t offset)
{
  for (int i = 0; i < niov; ++i) {
    if (mem_pwrite (dev, iov[i].iov_base, iov[i].iov_len, offset) == -1)
      return -1;
    offset += iov[i].iov_len;
    /* The caller may rely on nothing: "pwritev changes IOV". */
    iov[i].iov_base = NULL;
    iov[i].iov_len = 0;
  }
  return 0;
}

static int
mem_sync (struct nc_dev *dev __attribute__ ((__unused__)))
{
  return 0;
}

static int
mem_zero (struct nc_dev *dev, uint64_t offset, uint64_t count,
          unsigned flags __attribute__ ((__unused__)))
{
  uint8_t *p = mem_disk_of (dev)->data + offset;
  const uint64_t page = 4096;

  if (mem_check (dev, count, offset) == -1)
    return -1;
  if (count >= 16 * page) {     /* give the memory back */
    uint64_t head = -(uintptr_t) p % page;
    uint64_t body = (count - head) / page * page;

    memset (p, 0, head);
    madvise (p + head, body, MADV_DONTNEED);
    p += head + body;
    count -= head + body;
  }
  memset (p, 0, count);
  return 0;
}

static int
mem_extents (struct nc_dev *dev __attribute__ ((__unused__)),
             struct nc_extents *extents, uint64_t end,
             uint64_t shift __attribute__ ((__unused__)))
{
  return nc_extents_append (extents, end - nc_extents_next (extents), 0);
}

static int
mem_measure (struct nc_dev *dev, uint64_t *size)
{
  *size = mem_disk_of (dev)->size;
  return 0;
}

static int
mem_truncate (struct nc_dev *dev __attribute__ ((__unused__)),
              uint64_t size __attribute__ ((__unused__)))
{
  errno = ENOTSUP;
  return -1;
}

static const struct nc_dev_ops mem_ops = {
  .close = mem_close,
  .pread = mem_pread,
  .pwrite = mem_pwrite,
  .pwritev = mem_pwritev,
  .pwrite_durable = mem_pwrite,
  .sync = mem_sync,
  .measure = mem_measure,
  .truncate = mem_truncate,
  .zero = mem_zero,
  .extents = mem_extents,
};

struct nc_dev *
mem_dev_open (struct mem_disk *disk, bool writable)
{
  struct mem_dev *m = calloc (1, sizeof *m);

  if (m == NULL || nc_dev_init (&m->dev, &mem_ops, "memory") == -1) {
    perror ("memory device");
    exit (1);
  }
  m->disk = disk;
  m->dev.size = disk->size;
  m->dev.writable = writable;
  return &m->dev;
}

/* Faults. */

struct fault_undo {
  uint64_t sector;
  size_t order;
  uint8_t old[SECTOR];
};

struct fault_dev {
  struct nc_dev dev;
  struct nc_dev *inner;
  struct fault *fault;
};

static struct fault_dev *
fault_dev_of (struct nc_dev *dev)
{
  return (struct fault_dev *) dev;
}

void
fault_init (struct fault *fault)
{
  pthread_condattr_t attr;

  memset (fault, 0, sizeof *fault);
  fault->mask = FAULT_ALL;
  pthread_mutex_init (&fault->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&fault->changed, &attr);
  pthread_condattr_destroy (&attr);
}

void
fault_fini (struct fault *fault)
{
  free (fault->undo);
  pthread_mutex_destroy (&fault->lock);
  pthread_cond_destroy (&fault->changed);
}

void
fault_set (struct fault *fault, unsigned mask, uint64_t at, uint64_t n,
           int err)
{
  fault->mask = mask;
  fault->at = at;
  fault->n = n;
  fault->err = err;
  fault->count = fault->failures = 0;
  fault->reads = fault->writes = fault->durable = fault->syncs =
    fault->zeros = 0;
  fault->failed_kinds = 0;
}

void
fault_set_away (struct fault *fault, bool away)
{
  NC_LOCKED (&fault->lock);
  fault->away = away;
  pthread_cond_broadcast (&fault->changed);
}

void
fault_set_silent (struct fault *fault, bool silent)
{
  NC_LOCKED (&fault->lock);
  fault->silent = silent;
  pthread_cond_broadcast (&fault->changed);
}

/* Count an operation.  Returns -1 with errno set if it is to fail. */
static int
fault_count (struct nc_dev *dev, unsigned kind)
{
  struct fault *fault = fault_dev_of (dev)->fault;
  uint64_t i;

  switch (kind) {
  case FAULT_READ: fault->reads++; break;
  case FAULT_WRITE: fault->writes++; break;
  case FAULT_DURABLE: fault->durable++; break;
  case FAULT_SYNC: fault->syncs++; break;
  case FAULT_ZERO: fault->zeros++; break;
  }
  if (!(fault->mask & kind))
    return 0;
  i = ++fault->count;
  if (fault->at == 0 || i < fault->at || i - fault->at >= fault->n)
    return 0;
  fault->failures++;
  fault->failed_kinds |= kind;
  errno = fault->err;
  nc_error ("%s: operation %" PRIu64 ": %m", dev->name, i);
  errno = fault->err;
  return -1;
}

static bool
sector_is_zero (const uint8_t *p)
{
  return p[0] == 0 && memcmp (p, p + 1, SECTOR - 1) == 0;
}

/* Keep what the range holds now; of zeros to be zeroed there is no need. */
static void
fault_keep (struct nc_dev *dev, uint64_t count, uint64_t offset, bool zero)
{
  struct fault *fault = fault_dev_of (dev)->fault;
  struct nc_dev *inner = fault_dev_of (dev)->inner;

  if (count == 0)
    return;
  for (uint64_t s = offset / SECTOR; s <= (offset + count - 1) / SECTOR;
       ++s) {
    struct fault_undo *u;

    if (fault->n_undo == fault->cap_undo) {
      fault->cap_undo = fault->cap_undo ? 2 * fault->cap_undo : 256;
      fault->undo = realloc (fault->undo,
                             fault->cap_undo * sizeof *fault->undo);
      if (fault->undo == NULL) {
        perror ("realloc");
        exit (1);
      }
    }
    u = &fault->undo[fault->n_undo];
    u->sector = s;
    u->order = fault->n_undo;
    inner->ops->pread (inner, u->old, SECTOR, s * SECTOR);
    if (!zero || !sector_is_zero (u->old))
      fault->n_undo++;
  }
}

/* The range is durable: no older content can come back. */
static void
fault_forget (struct fault *fault, uint64_t count, uint64_t offset)
{
  size_t n = 0;

  for (size_t i = 0; i < fault->n_undo; ++i) {
    const struct fault_undo *u = &fault->undo[i];

    if (count > 0 && u->sector >= offset / SECTOR &&
        u->sector <= (offset + count - 1) / SECTOR)
      continue;
    fault->undo[n++] = *u;
  }
  fault->n_undo = n;
}

static pthread_mutex_t *
fault_enter (struct fault *fault)
{
  if (!fault->track)
    return NULL;
  pthread_mutex_lock (&fault->lock);
  return &fault->lock;
}

static void
fault_leave (pthread_mutex_t **lock)
{
  int err = errno;

  if (*lock)
    pthread_mutex_unlock (*lock);
  errno = err;
}

#define FAULT_ENTER(fault)                              \
  __attribute__ ((__cleanup__ (fault_leave)))           \
  pthread_mutex_t *fault_here = fault_enter (fault);    \
  (void) fault_here

static void
call_hook (struct nc_dev *dev, void (*hook) (void *))
{
  struct fault *fault = fault_dev_of (dev)->fault;
  static _Thread_local bool in_hook;

  if (hook && !in_hook) {
    in_hook = true;
    hook (fault->opaque);
    in_hook = false;
  }
}

static void
fault_call_hook (struct nc_dev *dev)
{
  call_hook (dev, fault_dev_of (dev)->fault->hook);
}

/* Wait for an answer.  Returns -1 with ESHUTDOWN if none will come. */
static int
fault_await_answer (struct fault *fault)
{
  if (!fault->silent)
    return 0;
  NC_LOCKED (&fault->lock);
  fault->unanswered++;
  while (fault->silent && !fault->stopped)
    pthread_cond_wait (&fault->changed, &fault->lock);
  fault->unanswered--;
  if (!fault->stopped)
    return 0;
  errno = ESHUTDOWN;
  return -1;
}

static void
fault_close (struct nc_dev *dev)
{
  nc_dev_close (fault_dev_of (dev)->inner);
  nc_dev_fini (dev);
  free (dev);
}

static int
fault_pread (struct nc_dev *dev, void *buf, size_t count, uint64_t offset)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;
  struct fault *fault = fault_dev_of (dev)->fault;

  call_hook (dev, fault->read_hook);
  if (fault->away) {
    errno = ENOTCONN;
    return -1;
  }
  if (fault_await_answer (fault) == -1)
    return -1;
  FAULT_ENTER (fault);
  if (fault_count (dev, FAULT_READ) == -1)
    return -1;
  return inner->ops->pread (inner, buf, count, offset);
}

static int
fault_do_write (struct nc_dev *dev, unsigned kind, const void *buf,
                size_t count, uint64_t offset)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;
  struct fault *fault = fault_dev_of (dev)->fault;
  FAULT_ENTER (fault);
  int r = fault_count (dev, kind), err = errno;

  if (r == -1 && fault->partly) {
    /* Whole sectors that were done before. */
    uint64_t end = (offset + count / 2) / SECTOR * SECTOR;

    count = end > offset ? end - offset : 0;
  }
  else if (r == -1)
    return -1;
  if (fault->track)
    fault_keep (dev, count, offset, false);
  if (inner->ops->pwrite (inner, buf, count, offset) == -1)
    return -1;
  if (kind == FAULT_DURABLE && r == 0 && fault->track)
    fault_forget (fault, count, offset);
  errno = err;
  return r;
}

static int
fault_pwrite (struct nc_dev *dev, const void *buf, size_t count,
              uint64_t offset)
{
  fault_call_hook (dev);
  return fault_do_write (dev, FAULT_WRITE, buf, count, offset);
}

static int
fault_pwrite_durable (struct nc_dev *dev, const void *buf, size_t count,
                      uint64_t offset)
{
  fault_call_hook (dev);
  return fault_do_write (dev, FAULT_DURABLE, buf, count, offset);
}

static int
fault_pwritev (struct nc_dev *dev, struct iovec *iov, int niov,
               uint64_t offset)
{
  size_t count = 0, at = 0;
  NC_FREE uint8_t *buf = NULL;

  for (int i = 0; i < niov; ++i)
    count += iov[i].iov_len;
  buf = malloc (count + 1);
  if (buf == NULL)
    return -1;
  for (int i = 0; i < niov; ++i) {
    if (iov[i].iov_len > 0)
      memcpy (buf + at, iov[i].iov_base, iov[i].iov_len);
    at += iov[i].iov_len;
    iov[i] = (struct iovec) { NULL, 0 };
  }
  return fault_do_write (dev, FAULT_WRITE, buf, count, offset);
}

static int
fault_do_sync (struct nc_dev *dev)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;
  struct fault *fault = fault_dev_of (dev)->fault;
  FAULT_ENTER (fault);

  if (fault_count (dev, FAULT_SYNC) == -1 ||
      inner->ops->sync (inner) == -1)
    return -1;
  if (fault->track)
    fault->n_undo = 0;
  return 0;
}

static int
fault_sync (struct nc_dev *dev)
{
  int r, err;

  fault_call_hook (dev);
  r = fault_do_sync (dev);
  err = errno;
  fault_call_hook (dev);
  errno = err;
  return r;
}

static int
fault_zero (struct nc_dev *dev, uint64_t offset, uint64_t count,
            unsigned flags)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;
  struct fault *fault = fault_dev_of (dev)->fault;
  FAULT_ENTER (fault);

  if (fault_count (dev, FAULT_ZERO) == -1)
    return -1;
  if (fault->track)
    fault_keep (dev, count, offset, true);
  return inner->ops->zero (inner, offset, count, flags);
}

static int
fault_extents (struct nc_dev *dev, struct nc_extents *extents, uint64_t end,
               uint64_t shift)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;
  struct fault *fault = fault_dev_of (dev)->fault;

  if (fault->away) {
    errno = ENOTCONN;
    return -1;
  }
  if (fault_await_answer (fault) == -1)
    return -1;
  if (fault_count (dev, FAULT_EXTENTS) == -1)
    return -1;
  return inner->ops->extents (inner, extents, end, shift);
}

static void
fault_stop (struct nc_dev *dev)
{
  struct fault *fault = fault_dev_of (dev)->fault;

  NC_LOCKED (&fault->lock);
  fault->stopped = true;
  pthread_cond_broadcast (&fault->changed);
}

static int
fault_wait (struct nc_dev *dev, const struct timespec *deadline)
{
  struct fault *fault = fault_dev_of (dev)->fault;
  int r = 0;

  NC_LOCKED (&fault->lock);
  while (fault->away && !fault->stopped && r == 0)
    r = deadline
      ? pthread_cond_timedwait (&fault->changed, &fault->lock, deadline)
      : pthread_cond_wait (&fault->changed, &fault->lock);
  if (!fault->away)
    return 0;
  errno = fault->stopped ? ESHUTDOWN : ETIMEDOUT;
  return -1;
}

static int
fault_measure (struct nc_dev *dev, uint64_t *size)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;

  return inner->ops->measure (inner, size);
}

static int
fault_truncate (struct nc_dev *dev, uint64_t size)
{
  struct nc_dev *inner = fault_dev_of (dev)->inner;

  return inner->ops->truncate (inner, size);
}

static const struct nc_dev_ops fault_ops = {
  .close = fault_close,
  .pread = fault_pread,
  .pwrite = fault_pwrite,
  .pwritev = fault_pwritev,
  .pwrite_durable = fault_pwrite_durable,
  .sync = fault_sync,
  .measure = fault_measure,
  .truncate = fault_truncate,
  .zero = fault_zero,
  .extents = fault_extents,
};

static int
fault_pread_many (struct nc_dev *dev, const struct nc_dev_read *v, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    if (fault_pread (dev, v[i].buf, v[i].count, v[i].offset) == -1)
      return -1;
  return 0;
}

static const struct nc_dev_ops fault_remote_ops = {
  .close = fault_close,
  .pread = fault_pread,
  .pread_many = fault_pread_many,
  .extents = fault_extents,
  .stop = fault_stop,
  .wait = fault_wait,
};

struct nc_dev *
fault_dev_open (struct fault *fault, struct nc_dev *inner)
{
  struct fault_dev *f = calloc (1, sizeof *f);

  if (f == NULL ||
      nc_dev_init (&f->dev, fault->remote ? &fault_remote_ops : &fault_ops,
                   "faulty") == -1) {
    perror ("faulty device");
    exit (1);
  }
  f->fault = fault;
  f->inner = inner;
  f->dev.size = inner->size;
  f->dev.writable = inner->writable && !fault->remote;
  f->dev.remote = fault->remote;
  return &f->dev;
}

static int
compare_undo (const void *a, const void *b)
{
  const struct fault_undo *x = a, *y = b;

  if (x->sector != y->sector)
    return x->sector < y->sector ? -1 : 1;
  return x->order < y->order ? -1 : x->order > y->order;
}

static uint64_t
loss_random (uint64_t *seed)
{
  *seed = *seed * UINT64_C (6364136223846793005) + 1442695040888963407;
  return *seed >> 33;
}

void
fault_lose (struct fault *fault, struct mem_disk *disk, enum fault_loss loss,
            uint64_t *seed)
{
  struct fault_undo *u = fault->undo;
  size_t n;

  if (fault->n_undo > 0)
    qsort (u, fault->n_undo, sizeof *u, compare_undo);
  for (size_t i = 0; i < fault->n_undo && loss != LOSE_NONE; i += n) {
    size_t pick = 0, left = disk->size - u[i].sector * SECTOR;

    for (n = 1; i + n < fault->n_undo && u[i + n].sector == u[i].sector; )
      n++;
    if (loss == LOSE_SOME)
      pick = loss_random (seed) % (n + 1);      /* n: the newest stays */
    if (pick < n)
      memcpy (disk->data + u[i].sector * SECTOR, u[i + pick].old,
              left < SECTOR ? left : SECTOR);
  }
  fault->n_undo = 0;
}

static uint64_t
sector_bytes (const struct mem_disk *disk, uint64_t sector)
{
  uint64_t left = disk->size - sector * SECTOR;

  return left < SECTOR ? left : SECTOR;
}

void
fault_save (const struct fault *fault, const struct mem_disk *disk,
            struct fault_saved *saved)
{
  saved->n = fault->n_undo;
  saved->undo = malloc (saved->n * sizeof *saved->undo + 1);
  saved->now = malloc (saved->n * sizeof *saved->now + 1);
  if (saved->undo == NULL || saved->now == NULL) {
    perror ("malloc");
    exit (1);
  }
  if (saved->n > 0)
    memcpy (saved->undo, fault->undo, saved->n * sizeof *saved->undo);
  for (size_t i = 0; i < saved->n; ++i)
    memcpy (saved->now[i], disk->data + saved->undo[i].sector * SECTOR,
            sector_bytes (disk, saved->undo[i].sector));
}

void
fault_restore (struct fault *fault, struct mem_disk *disk,
               const struct fault_saved *saved)
{
  fault->n_undo = saved->n;
  if (saved->n > 0)
    memcpy (fault->undo, saved->undo, saved->n * sizeof *saved->undo);
  for (size_t i = 0; i < saved->n; ++i)
    memcpy (disk->data + saved->undo[i].sector * SECTOR, saved->now[i],
            sector_bytes (disk, saved->undo[i].sector));
}

void
fault_saved_free (struct fault_saved *saved)
{
  free (saved->undo);
  free (saved->now);
}
