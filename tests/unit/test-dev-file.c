/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/dev/file.c when the system says no: failed reads, writes and
 * syncs, alone and below a chain.
 *
 * The functions of the C library that it calls are replaced by those here,
 * which fail when they are told to. */

#include <config.h>

#include "dev/dev.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/uio.h>

#include "chain/chain.h"
#include "copy/writeback.h"
#include "image/image.h"
#include "tap.h"
#include "util/standback.h"

/* The errno of the next call on a file of ours; 0: none.  Each fails once,
 * as the system tells of lost writes once. */
static struct {
  int read, write, durable, write_out, sync, zero;
  _Atomic (unsigned) syncs;
  _Atomic (unsigned) writes_out;
  unsigned waits;
  bool cannot_write_out;
  _Atomic (unsigned) write_out_takes;   /* microseconds */
  _Atomic (bool) syncs_back, writes_back;       /* who did it stood back */
  _Atomic (bool) sync_hangs;
} fail;

static bool
fails (int *err)
{
  if (*err == 0)
    return false;
  errno = *err;
  *err = 0;
  return true;
}

ssize_t
pread (int fd, void *buf, size_t count, off_t offset)
{
  ssize_t (*real) (int, void *, size_t, off_t);

  if (fails (&fail.read))
    return -1;
  *(void **) &real = dlsym (RTLD_NEXT, "pread64");
  return real (fd, buf, count, offset);
}

/* Storage without locks. */
static bool has_no_locks;

int
fcntl (int fd, int command, ...)
{
  int (*real) (int, int, void *);
  va_list args;
  void *arg;

  va_start (args, command);
  arg = va_arg (args, void *);
  va_end (args);
  if (has_no_locks && (command == F_OFD_SETLK || command == F_OFD_GETLK)) {
    errno = ENOLCK;
    return -1;
  }
  *(void **) &real = dlsym (RTLD_NEXT, "fcntl64");
  return real (fd, command, arg);
}

/* Somebody who writes out fails late, after a sync has begun. */
static struct {
  _Atomic (bool) wanted, entered, synced;
} late_write_out;

/* One thread writes out twice, each time until it MAY_END.  The sync that waits
 * for the first wakes up late, when the second has begun. */
static struct {
  _Atomic (bool) wanted, synced;
  _Atomic (unsigned) begun, may_end;
  _Atomic (unsigned) waits;     /* of the sync */
} overtaking;

static _Thread_local bool wakes_up_late;

static _Atomic (size_t) largest_write;

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  ssize_t (*real) (int, const void *, size_t, off_t);

  if (fails (&fail.write))
    return -1;
  if (count > largest_write)
    largest_write = count;
  *(void **) &real = dlsym (RTLD_NEXT, "pwrite64");
  return real (fd, buf, count, offset);
}

ssize_t
pwritev2 (int fd, const struct iovec *iov, int niov, off_t offset, int flags)
{
  ssize_t (*real) (int, const struct iovec *, int, off_t, int);

  if (fails (flags ? &fail.durable : &fail.write))
    return -1;
  late_write_out.synced = true;
  *(void **) &real = dlsym (RTLD_NEXT, "pwritev64v2");
  return real (fd, iov, niov, offset, flags);
}

/* Syncs that run at a time, when LATE: the one that is to fail ends late, so
 * that another could overtake it. */
static struct {
  _Atomic (bool) late;
  _Atomic (unsigned) entered;
} overlap;

int
fdatasync (int fd)
{
  int (*real) (int);

  fail.syncs_back = nc_stands_back ();
  fail.syncs++;
  late_write_out.synced = true;
  while (fail.sync_hangs)
    usleep (1000);
  if (overlap.late && overlap.entered++ == 0) {
    for (unsigned i = 0; i < 300 && overlap.entered == 1; ++i)
      usleep (1000);
    errno = EIO;
    return -1;
  }
  if (fails (&fail.sync))
    return -1;
  *(void **) &real = dlsym (RTLD_NEXT, "fdatasync");
  return real (fd);
}

/* A thread may always wake up for nothing, or late. */
int
pthread_cond_wait (pthread_cond_t *cond, pthread_mutex_t *mutex)
{
  int (*real) (pthread_cond_t *, pthread_mutex_t *);

  if (wakes_up_late) {
    overtaking.waits++;
    pthread_mutex_unlock (mutex);
    do
      usleep (1000);
    while (overtaking.begun < 2);
    pthread_mutex_lock (mutex);
    return 0;
  }
  *(void **) &real = dlsym (RTLD_NEXT, "pthread_cond_wait");
  return real (cond, mutex);
}

int
sync_file_range (int fd, off64_t offset, off64_t count, unsigned flags)
{
  int (*real) (int, off64_t, off64_t, unsigned);

  if (fail.cannot_write_out) {
    errno = ENOSYS;
    return -1;
  }
  if (fails (&fail.write_out))
    return -1;
  if (flags && late_write_out.wanted) {
    late_write_out.entered = true;
    while (!late_write_out.synced)
      usleep (1000);
    usleep (20000);             /* so that it would be told of too late */
    errno = EIO;
    return -1;
  }
  if (flags && overtaking.wanted) {
    const unsigned mine = ++overtaking.begun;

    while (overtaking.may_end < mine)
      usleep (1000);
  }
  if (flags & ~SYNC_FILE_RANGE_WRITE)
    fail.waits++;
  usleep (fail.write_out_takes);
  fail.writes_back = nc_stands_back ();
  fail.writes_out++;
  *(void **) &real = dlsym (RTLD_NEXT, "sync_file_range");
  return real (fd, offset, count, flags);
}

int
fallocate (int fd, int mode, off_t offset, off_t count)
{
  int (*real) (int, int, off_t, off_t);

  if (fails (&fail.zero))
    return -1;
  *(void **) &real = dlsym (RTLD_NEXT, "fallocate64");
  return real (fd, mode, offset, count);
}

static struct {
  _Atomic (off_t) offset, count, end;   /* the end: of all together */
  _Atomic (unsigned) times;
  _Atomic (unsigned) step;      /* writes_out, the last time */
} evicted;

int
posix_fadvise (int fd, off_t offset, off_t count, int advice)
{
  int (*real) (int, off_t, off_t, int);

  if (advice == POSIX_FADV_DONTNEED) {
    evicted.offset = offset;
    evicted.count = count;
    if (offset + count > evicted.end)
      evicted.end = offset + count;
    evicted.step = fail.writes_out;
    evicted.times++;
  }
  *(void **) &real = dlsym (RTLD_NEXT, "posix_fadvise64");
  return real (fd, offset, count, advice);
}

enum { SIZE = 1 << 20 };
static char path[] = "/tmp/test-dev-file-XXXXXX";

static void
make_file (void)
{
  int fd;

  strcpy (path, "/tmp/test-dev-file-XXXXXX");
  fd = mkostemp (path, O_CLOEXEC);
  must (fd != -1 && ftruncate (fd, SIZE) == 0, path);
  close (fd);
}

static struct nc_dev *
open_dev (void)
{
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_WRITE);

  must (dev != NULL, path);
  memset (&fail, 0, sizeof fail);
  tap_clear ();
  return dev;
}

/* A FUSE mount without its daemon says ENOTCONN, which means of a device
 * that it may be waited for. */
static void
test_not_connected (void)
{
  uint8_t buf[8192] = { 1 };
  struct iovec iov[2] = { { buf, 4096 }, { buf + 4096, 4096 } };
  struct nc_dev *dev;

  make_file ();
  dev = open_dev ();
  fail.read = ENOTCONN;
  ok (dev->ops->pread (dev, buf, 4096, 0) == -1 && errno == EIO &&
      tap_errors == 1, "ENOTCONN of a read is EIO, reported once");
  tap_clear ();
  fail.write = ENOTCONN;
  ok (dev->ops->pwrite (dev, buf, 4096, 0) == -1 && errno == EIO &&
      tap_errors == 1, "and of a write");
  tap_clear ();
  fail.write = ENOTCONN;
  ok (dev->ops->pwritev (dev, iov, 2, 0) == -1 && errno == EIO &&
      tap_errors == 1, "of one with many parts");
  tap_clear ();
  fail.zero = ENOTCONN;
  ok (dev->ops->zero (dev, 0, 4096, 0) == -1 && errno == EIO &&
      tap_errors == 1, "of zeroing");
  tap_clear ();
  fail.write = ENOSPC;
  ok (dev->ops->pwrite (dev, buf, 4096, 0) == -1 && errno == ENOSPC &&
      tap_errors == 1, "ENOSPC stays ENOSPC");
  ok (dev->ops->pwrite (dev, buf, 4096, 0) == 0 &&
      dev->ops->sync (dev) == 0, "none of these is final");
  fail.sync = ENOTCONN;
  ok (dev->ops->sync (dev) == -1 && errno == EIO, "of a sync it is EIO");
  nc_dev_close (dev);
  unlink (path);
}

static void
test_failed_sync (void)
{
  uint8_t buf[4096] = { 1 };
  struct nc_dev *dev;

  make_file ();
  dev = open_dev ();
  must (dev->ops->pwrite (dev, buf, 4096, 0) == 0, "write");
  fail.sync = EIO;
  ok (dev->ops->sync (dev) == -1 && errno == EIO && tap_errors == 1,
      "a failed sync is EIO, reported once");
  errno = 0;
  ok (dev->ops->sync (dev) == -1 && errno == EIO &&
      dev->ops->sync (dev) == -1 && fail.syncs == 1,
      "and so is every later one, without asking the system again");
  ok (dev->ops->pread (dev, buf, 4096, 0) == 0, "reading goes on");
  nc_dev_close (dev);

  dev = open_dev ();
  must (dev->ops->pwrite (dev, buf, 4096, 0) == 0, "write");
  fail.cannot_write_out = true;
  dev->ops->write_out (dev);
  fail.cannot_write_out = false;
  dev->ops->write_out (dev);
  ok (dev->ops->sync (dev) == 0 && fail.syncs == 1 && fail.waits == 0 &&
      tap_errors == 0, "writing out goes before a sync, where it can be had");
  fail.write_out = EIO;
  dev->ops->write_out (dev);
  errno = 0;
  ok (dev->ops->sync (dev) == -1 && errno == EIO && fail.syncs == 1 &&
      tap_errors == 1, "if it fails, so does the sync after it");
  nc_dev_close (dev);

  dev = open_dev ();
  dev->ops->evict (dev, 8192, 4096);
  ok (evicted.offset == 8192 && evicted.count == 4096 &&
      dev->ops->sync (dev) == 0 && fail.waits == 0,
      "evicting uses up no error that a sync is to be told");
  nc_dev_close (dev);

  dev = open_dev ();
  fail.durable = EIO;
  ok (dev->ops->pwrite_durable (dev, buf, 4096, 0) == -1 && errno == EIO &&
      tap_errors == 1, "a failed durable write is EIO");
  errno = 0;
  ok (dev->ops->sync (dev) == -1 && errno == EIO && fail.syncs == 0,
      "and the sync after it, too");
  nc_dev_close (dev);

  dev = open_dev ();
  fail.durable = EOPNOTSUPP;
  ok (dev->ops->pwrite_durable (dev, buf, 4096, 0) == 0 && fail.syncs == 1 &&
      dev->ops->sync (dev) == 0,
      "where durable writes are not to be had, a write and a sync do");
  fail.durable = EOPNOTSUPP;
  fail.sync = EIO;
  ok (dev->ops->pwrite_durable (dev, buf, 4096, 0) == -1 && errno == EIO &&
      dev->ops->sync (dev) == -1, "unless that sync fails");
  nc_dev_close (dev);
  unlink (path);
}

static void *
sync_too (void *opaque)
{
  struct nc_dev *dev = opaque;

  return (void *) (intptr_t) dev->ops->sync (dev);
}

/* The system tells of lost writes to one of those who sync at a time. */
static void
test_two_syncs (void)
{
  struct nc_dev *dev;
  pthread_t thread[2];
  void *r[2];

  make_file ();
  dev = open_dev ();
  overlap.late = true;
  overlap.entered = 0;
  for (unsigned i = 0; i < 2; ++i) {
    must (pthread_create (&thread[i], NULL, sync_too, dev) == 0, "thread");
    while (i == 0 && overlap.entered == 0)
      usleep (1000);
  }
  for (unsigned i = 0; i < 2; ++i)
    pthread_join (thread[i], &r[i]);
  overlap.late = false;
  ok (r[0] && r[1], "of two syncs at a time, one of which fails, both fail");
  nc_dev_close (dev);
  unlink (path);
}

static struct nc_chain *
open_chain (const char *format)
{
  const struct nc_chain_options opts = {
    .image = path, .format = format, .memory_fd = -1, .retry = 1,
  };
  struct nc_chain *chain = nc_chain_open (&opts);

  memset (&fail, 0, sizeof fail);
  return chain && nc_chain_start (chain) == 0 ? chain : NULL;
}

static void *
write_out_thread (void *opaque)
{
  struct nc_dev *dev = opaque;

  dev->ops->write_out (dev);
  return NULL;
}

/* What is being written out may be what is to be synced. */
static void
test_sync_beside_write_out (bool durable)
{
  const char buf[512] = "x";
  struct nc_dev *dev;
  pthread_t thread;
  int r;

  make_file ();
  dev = open_dev ();
  late_write_out.entered = late_write_out.synced = false;
  late_write_out.wanted = true;
  must (pthread_create (&thread, NULL, write_out_thread, dev) == 0, "thread");
  while (!late_write_out.entered)
    usleep (1000);
  late_write_out.synced = false;
  r = durable ? dev->ops->pwrite_durable (dev, buf, sizeof buf, 0)
    : dev->ops->sync (dev);
  ok (r == -1 && errno == EIO, "%s fails with the write-out beside it",
      durable ? "a durable write" : "a sync");
  pthread_join (thread, NULL);
  late_write_out.wanted = false;
  nc_dev_close (dev);
  unlink (path);
}

static void *
write_out_twice (void *opaque)
{
  struct nc_dev *dev = opaque;

  dev->ops->write_out (dev);
  dev->ops->write_out (dev);
  return NULL;
}

static void *
sync_late (void *opaque)
{
  void *r;

  wakes_up_late = true;
  r = sync_too (opaque);
  overtaking.synced = true;
  return r;
}

/* However often somebody writes out, a sync comes to its end. */
static void
test_sync_not_overtaken (void)
{
  struct nc_dev *dev;
  pthread_t writing_out, syncing;
  void *r;

  make_file ();
  dev = open_dev ();
  overtaking.synced = false;
  overtaking.begun = overtaking.may_end = overtaking.waits = 0;
  overtaking.wanted = true;
  must (pthread_create (&writing_out, NULL, write_out_twice, dev) == 0,
        "thread");
  while (overtaking.begun == 0)
    usleep (1000);
  must (pthread_create (&syncing, NULL, sync_late, dev) == 0, "thread");
  while (overtaking.waits == 0 && !overtaking.synced)
    usleep (1000);
  ok (!overtaking.synced, "a sync waits for what is being written out");
  overtaking.may_end = 1;
  while (!overtaking.synced && overtaking.waits < 1000)
    usleep (1000);
  ok (overtaking.synced, "but not for what is written out later");
  overtaking.may_end = 2;
  pthread_join (syncing, &r);
  pthread_join (writing_out, NULL);
  ok (r == NULL, "and is told of no failure");
  overtaking.wanted = false;
  nc_dev_close (dev);
  unlink (path);
}

/* The same through the chain: what a client gets. */
static void
test_chain (const char *format)
{
  struct nc_chain *chain;
  struct nc_export *e;
  uint8_t buf[8192];

  make_file ();
  if (strcmp (format, "fvd") == 0) {
    const struct nc_image_create_options opts = {
      .path = path, .has_size = true, .size = SIZE,
    };

    unlink (path);
    must (nc_image_create (&opts) == 0, "nc_image_create");
  }
  chain = open_chain (format);
  e = chain ? nc_export_open (chain, "", 0) : NULL;
  must (e != NULL, "open");
  memset (buf, 1, sizeof buf);
  ok (nc_export_pwrite (e, buf, sizeof buf, 8192, 0) == 0 &&
      nc_export_flush (e) == 0, "%s: written and flushed", format);
  tap_clear ();
  fail.read = ENOTCONN;
  ok (nc_export_pread (e, buf, sizeof buf, 8192) == -1 && errno == EIO &&
      tap_errors == 1, "%s: ENOTCONN of a read reaches the client as EIO",
      format);
  tap_clear ();
  fail.write = ENOTCONN;
  ok (nc_export_pwrite (e, buf, sizeof buf, 8192, 0) == -1 &&
      errno == EIO && tap_errors == 1, "%s: and of a write", format);
  ok (nc_export_pread (e, buf, sizeof buf, 8192) == 0 && buf[0] == 1,
      "%s: it lives", format);

  must (nc_export_pwrite (e, buf, sizeof buf, 8192, 0) == 0, "write");
  fail.sync = EIO;
  tap_clear ();
  ok (nc_export_flush (e) == -1 && errno == EIO && tap_errors >= 1,
      "%s: a failed sync is EIO", format);
  fail.syncs = 0;
  errno = 0;
  ok (nc_export_flush (e) == -1 && errno == EIO &&
      nc_export_flush (e) == -1 && fail.syncs == 0,
      "%s: and so is every flush after it", format);
  errno = 0;
  ok (nc_export_pwrite (e, buf, 4096, 0, NC_REQ_FUA) == -1 && errno == EIO,
      "%s: FUA is EIO, too", format);
  ok (nc_export_pread (e, buf, sizeof buf, 8192) == 0 && buf[0] == 1,
      "%s: reading goes on", format);
  ok (nc_chain_stop (chain) == -1 && errno == EIO,
      "%s: the stop says that not all is durable", format);
  nc_export_close (e);
  nc_chain_close (chain);

  chain = open_chain (format);
  e = chain ? nc_export_open (chain, "", 0) : NULL;
  ok (e && nc_export_flush (e) == 0 && nc_chain_stop (chain) == 0,
      "%s: who opens it anew, begins anew", format);
  nc_export_close (e);
  nc_chain_close (chain);
  unlink (path);
}

/* A guest's flush shares the one of a job, but nobody waits for the rest. */
static void
test_flusher_back (struct nc_export *e)
{
  struct nc_flusher *flusher = nc_flusher_new (e);

  must (flusher != NULL, "flusher");
  nc_stand_back (true);
  fail.writes_out = fail.syncs = 0;
  nc_flusher_pass (flusher, 0, NC_FLUSHER_STEP);
  while (fail.writes_out == 0)
    usleep (1000);
  nc_flusher_pass (flusher, 0, NC_FLUSHER_BYTES);
  while (fail.syncs == 0)
    usleep (1000);
  nc_stand_back (false);
  nc_flusher_free (flusher);
  ok (fail.writes_back && !fail.syncs_back,
      "who flushes for those that stand back does not, who writes out does");
}

/* There is always something to be written out. */
static void
test_flusher_is_due (struct nc_export *e)
{
  struct nc_flusher *flusher = nc_flusher_new (e);
  uint64_t stored = 0;

  must (flusher != NULL, "flusher");
  fail.syncs = 0;
  fail.write_out_takes = 120000;
  for (unsigned i = 0; i < 14 && fail.syncs == 0; ++i) {
    nc_flusher_note (flusher, NC_FLUSHER_STEP);
    stored += NC_FLUSHER_STEP;
    usleep (100000);
  }
  ok (fail.syncs > 0 && stored < NC_FLUSHER_BYTES,
      "a flush comes after a second, however slow storage is");
  nc_flusher_free (flusher);
  fail.write_out_takes = 0;
}

/* While a flush hangs, a job stores twice what may be stored between two, step
 * by step: no flush has confirmed what leaves the memory meanwhile. */
static void
test_flusher_bound (struct nc_export *e)
{
  const off_t all = 2 * NC_FLUSHER_BYTES;
  struct nc_flusher *flusher = nc_flusher_new (e);

  must (flusher != NULL, "flusher");
  fail.syncs = fail.writes_out = 0;
  fail.sync_hangs = true;
  nc_flusher_note (flusher, NC_FLUSHER_BYTES);
  while (fail.syncs == 0)
    usleep (1000);
  evicted.times = 0;
  evicted.end = 0;
  for (off_t offset = 0; offset < all; offset += NC_FLUSHER_STEP) {
    const unsigned before = fail.writes_out;

    nc_flusher_pass (flusher, offset, NC_FLUSHER_STEP);
    while (fail.writes_out == before)
      usleep (1000);
  }
  ok (evicted.times > 0 && evicted.step * NC_FLUSHER_STEP < NC_FLUSHER_BYTES,
      "what no flush has confirmed leaves the memory only up to 64 MiB");
  fail.sync_hangs = false;
  while (evicted.end < all)
    usleep (1000);
  ok (fail.syncs == 2, "and the rest when it has been flushed");
  nc_flusher_free (flusher);
}

/* Where a flush has failed, memory may be the only place that has the data. */
static void
test_flusher (void)
{
  struct nc_chain *chain;
  struct nc_flusher *flusher;
  struct nc_export *e;

  make_file ();
  chain = open_chain ("raw");
  e = chain ? nc_export_open (chain, "", 0) : NULL;
  flusher = e ? nc_flusher_new (e) : NULL;
  must (flusher != NULL, "flusher");
  evicted.times = 0;
  nc_flusher_pass (flusher, 0, SIZE);
  nc_flusher_finish (flusher);
  ok (evicted.times == 1 && evicted.count == SIZE,
      "what has passed and is durable leaves the memory");
  test_flusher_back (e);
  test_flusher_is_due (e);
  test_flusher_bound (e);

  flusher = nc_flusher_new (e);
  must (flusher != NULL, "flusher");
  evicted.times = 0;
  fail.syncs = 0;
  fail.sync = EIO;
  nc_flusher_pass (flusher, 0, NC_FLUSHER_BYTES);
  while (fail.syncs == 0)
    usleep (1000);
  nc_flusher_finish (flusher);
  ok (evicted.times == 0, "after a failed flush nothing does");
  nc_export_close (e);
  nc_chain_stop (chain);
  nc_chain_close (chain);
  unlink (path);
}

/* A guest's thread waits until the system call of another one returns. */
static void
test_standing_back (void)
{
  static char buf[100 << 10], got[sizeof buf];
  struct nc_dev *dev;

  make_file ();
  dev = open_dev ();
  memset (buf, 'x', sizeof buf);
  largest_write = 0;
  must (dev->ops->pwrite (dev, buf, sizeof buf, 4096) == 0, "write");
  ok (largest_write == sizeof buf, "a write is one call");
  nc_stand_back (true);
  largest_write = 0;
  memset (buf, 'y', sizeof buf);
  ok (dev->ops->pwrite (dev, buf, sizeof buf, 4096) == 0 &&
      largest_write <= 16 << 10 &&
      dev->ops->pread (dev, got, sizeof got, 4096) == 0 &&
      memcmp (buf, got, sizeof got) == 0,
      "one of a thread that stands back is several, and complete");
  nc_stand_back (false);
  nc_dev_close (dev);
  unlink (path);
}

/* Messages that begin with "warning:". */
static unsigned warnings;

static void __attribute__ ((__format__ (printf, 2, 0)))
count_warnings (enum nc_report_level level,
                const char *fmt, va_list args __attribute__ ((__unused__)))
{
  warnings += level == NC_REPORT_NOTICE && strncmp (fmt, "warning:", 8) == 0;
}

static void
test_no_locks (void)
{
  char image[] = "/tmp/nbdchain-test.XXXXXX";
  const int fd = mkstemp (image);
  unsigned opened = 0;

  must (fd >= 0, "mkstemp");
  close (fd);
  nc_report_to (count_warnings);
  has_no_locks = true;
  for (unsigned i = 0; i < 3; ++i) {
    struct nc_dev *dev = nc_dev_open_file (image, NC_DEV_WRITE);

    opened += dev != NULL;
    if (dev)
      nc_dev_close (dev);
  }
  has_no_locks = false;
  nc_report_to (tap_sink);
  unlink (image);
  ok (opened == 3 && warnings == 1,
      "storage without locks is used, and that is told once");
}

/* As on a file system that is read-only by its kind. */
static void
test_nothing_to_sync (void)
{
  struct nc_dev *dev = nc_dev_open_file ("/proc/version", 0);

  must (dev != NULL, tap_error);
  tap_clear ();
  ok (dev->ops->sync (dev) == 0 && dev->ops->sync (dev) == 0 &&
      tap_errors == 0,
      "a file that is not written, and cannot be synced, needs no sync");
  nc_dev_close (dev);
}

int
main (void)
{
  tap_start (60);

  test_no_locks ();
  test_not_connected ();
  test_failed_sync ();
  test_two_syncs ();
  test_sync_beside_write_out (false);
  test_sync_beside_write_out (true);
  test_sync_not_overtaken ();
  test_flusher ();
  test_standing_back ();
  test_nothing_to_sync ();
  test_chain ("raw");
  test_chain ("fvd");
  return tap_done ();
}
