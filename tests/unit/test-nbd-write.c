/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/nbd/write.c, and of what lib/nbd/connection.c does with changes:
 * against nbdkit and qemu-nbd, killed and stopped at will, and against the
 * misbehaving server tests/peers/nbd-target.py. */

#include <config.h>

#include "dev/dev.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <sys/stat.h>

#include "nbd-server.h"
#include "tap.h"
#include "util/checked.h"

#define MB (UINT64_C (1) << 20)
#define PATIENT 30                     /* seconds, for servers that answer */

static char target_path[PATH_MAX], log_path[96], log_arg[128];
static uint64_t seed;
static _Atomic (unsigned) notices;

__attribute__ ((__format__ (printf, 2, 0)))
static void
sink (enum nc_report_level level, const char *fmt, va_list args)
{
  notices += level == NC_REPORT_NOTICE;
  tap_sink (level, fmt, args);
}

/* Servers. */

#define TARGET_SIZE MB

static pid_t
start_target_of_size (const char *size, const char *mode)
{
  unlink (log_path);
  return spawn ((const char *[]) {
      "python3", target_path, sock, size, mode, log_path, NULL
    });
}

static pid_t
start_target (const char *mode)
{
  return start_target_of_size ("1048576", mode);
}

/* How many lines of the server's log contain TEXT. */
static unsigned
count_in_log (const char *text)
{
  FILE *f = fopen (log_path, "r");
  char line[512];
  unsigned n = 0;

  while (f && fgets (line, sizeof line, f))
    n += strstr (line, text) != NULL;
  if (f)
    fclose (f);
  return n;
}

static struct nc_dev *
try_to_start (const char *where, unsigned retry)
{
  struct nc_dev *dev = nc_dev_open_nbd_writable (where, retry, NULL);

  if (dev && dev->ops->start (dev) == -1) {
    nc_dev_close (dev);
    dev = NULL;
  }
  return dev;
}

static struct nc_dev *
open_at (const char *where, unsigned retry)
{
  struct nc_dev *dev;

  must (EVENTUALLY ((dev = try_to_start (where, retry)) != NULL),
        "open for writing");
  tap_clear ();
  return dev;
}

static struct nc_dev *
open_started (unsigned retry)
{
  return open_at (uri, retry);
}

static bool
is_up (struct nc_dev *dev)
{
  const struct timespec past = in_seconds (0);

  return dev->ops->wait (dev, &past) == 0;
}

static bool
reported (const char *text)
{
  NC_LOCKED (&tap_lock);
  return strstr (tap_error, text) != NULL;
}

/* Whether CALL, an int, is -1 with errno ERROR. */
#define FAILS(call, error) ((call) == -1 && errno == (error))

static int
write_byte (struct nc_dev *dev, unsigned char c, uint64_t offset)
{
  unsigned char buf[4096];

  memset (buf, c, sizeof buf);
  return dev->ops->pwrite (dev, buf, sizeof buf, offset);
}

/* Whether the range has bytes C only. */
static bool
reads_as (struct nc_dev *dev, unsigned char c, size_t count, uint64_t offset)
{
  NC_FREE unsigned char *buf = malloc (count);

  memset (buf, ~c, count);
  if (dev->ops->pread (dev, buf, count, offset) == -1)
    return false;
  for (size_t i = 0; i < count; ++i)
    if (buf[i] != c)
      return note ("byte %zu at %" PRIu64 " is %u, not %u", i, offset, buf[i],
                   c);
  return true;
}

static bool
reads_back (struct nc_dev *dev, const void *data, size_t count,
            uint64_t offset)
{
  NC_FREE char *buf = malloc (count);
  const char *p = data;

  if (dev->ops->pread (dev, buf, count, offset) == -1)
    return note ("read at %" PRIu64 ": %s", offset, strerror (errno));
  for (size_t i = 0; i < count; ++i)
    if (buf[i] != p[i])
      return note ("byte %zu of %zu at %" PRIu64 " is %d, not %d", i, count,
                   offset, buf[i], p[i]);
  return true;
}

static void
fill_random (void *buf, size_t count, uint64_t *state)
{
  unsigned char *p = buf;

  for (size_t i = 0; i < count; ++i)
    p[i] = rnd (state);
}

/* Honest servers. */

static void
test_refused (void)
{
  pid_t pid = NBDKIT ("-r", "memory", "1M");
  struct nc_dev *dev;

  tap_clear ();
  ok (nc_dev_open_nbd_writable (uri, 0, NULL) == NULL && errno == EROFS &&
      tap_errors == 1 && reported ("reading only"),
      "an export that is read-only is refused");
  end_server (pid);

  pid = NBDKIT ("memory", "1M");
  dev = nc_dev_open_nbd (uri, 0, NULL, NULL);
  ok (dev && !dev->writable && dev->ops->pwrite == NULL,
      "a device that was opened for reading cannot write");
  nc_dev_close (dev);
  end_server (pid);
}

/* On any server that has all a server can have. */
static void
check_changes (struct nc_dev *dev, const char *server)
{
  const size_t large = 40 * MB;
  NC_FREE char *data = malloc (large);
  uint64_t size, state = seed;
  struct iovec iov[20];
  size_t at = 0;

  fill_random (data, large, &state);
  ok (dev->writable && dev->ops->measure (dev, &size) == 0 && size == 256 * MB,
      "%s: the export has its size", server);
  ok (dev->ops->pwrite (dev, data, 777, 12345) == 0 &&
      reads_back (dev, data, 777, 12345), "%s: a write of any alignment",
      server);
  ok (dev->ops->pwrite (dev, data, 0, 5) == 0, "%s: a write of nothing",
      server);
  ok (dev->ops->pwrite (dev, data, large, 3) == 0 &&
      reads_back (dev, data, large, 3), "%s: a write above 32 MiB", server);
  for (unsigned i = 0; i < 20; ++i) {
    iov[i] = (struct iovec) { data + at, i % 3 ? 1 + i * 1111 : 0 };
    at += iov[i].iov_len;
  }
  ok (dev->ops->pwritev (dev, iov, 20, 50 * MB + 1) == 0 &&
      reads_back (dev, data, at, 50 * MB + 1), "%s: a write of many parts",
      server);
  ok (dev->ops->pwrite_durable (dev, data, 9999, 60 * MB) == 0 &&
      reads_back (dev, data, 9999, 60 * MB), "%s: a durable write", server);
  ok (dev->ops->zero (dev, 100, 39 * MB, NC_ZERO_MAY_TRIM) == 0 &&
      dev->ops->zero (dev, 50 * MB, 2 * MB, 0) == 0 &&
      reads_back (dev, data, 97, 3) && reads_as (dev, 0, 39 * MB, 100) &&
      reads_back (dev, data + 39 * MB + 97, MB - 97, 39 * MB + 100) &&
      reads_as (dev, 0, 2 * MB, 50 * MB), "%s: zeros", server);
  ok (dev->ops->trim (dev, 60 * MB, MB) == 0 &&
      dev->ops->trim (dev, 1, 256 * MB - 1) == 0, "%s: trims", server);
  ok (dev->ops->sync (dev) == 0 && dev->ops->epoch (dev) == 0,
      "%s: a sync", server);
  ok (FAILS (dev->ops->pwrite (dev, data, 2, 256 * MB - 1), EINVAL) &&
      FAILS (dev->ops->zero (dev, 256 * MB, 1, 0), EINVAL) &&
      FAILS (dev->ops->trim (dev, UINT64_MAX, 2), EINVAL) &&
      tap_errors == 3 && reported ("the export has"),
      "%s: what lies beyond the end is refused", server);
  ok (FAILS (dev->ops->truncate (dev, 1), ENOTSUP) && tap_errors == 3,
      "%s: its size stays", server);
}

static void
test_nbdkit (void)
{
  pid_t pid = NBDKIT ("--filter=log", "memory", "256M", log_arg);
  struct nc_dev *dev;

  dev = open_started (PATIENT);
  check_changes (dev, "nbdkit");
  ok (count_in_log (" fua=1") == 1 && count_in_log (" Flush ") == 1,
      "a durable write is one with FUA");
  unlink (log_path);
  nc_dev_close (dev);
  end_server (pid);

  pid = NBDKIT ("--filter=log", "memory", "256M", log_arg);
  dev = open_started (PATIENT);
  ok (dev->ops->zero (dev, 0, 130 * MB, 0) == 0 &&
      dev->ops->zero (dev, 0, 130 * MB, NC_ZERO_MAY_TRIM) == 0 &&
      dev->ops->trim (dev, 0, 130 * MB) == 0 &&
      count_in_log ("count=0x4000000") == 6 && count_in_log (" Zero ") == 6 &&
      count_in_log (" trim=1 fua=0 ") == 3 && count_in_log (" Trim ") == 3,
      "zeros and trims are split at 64 MiB");
  dev->ops->stop (dev);
  ok (FAILS (write_byte (dev, 1, 0), ESHUTDOWN) &&
      FAILS (dev->ops->sync (dev), ESHUTDOWN) &&
      FAILS (dev->ops->zero (dev, 0, 1, 0), ESHUTDOWN),
      "changes fail with ESHUTDOWN after stop");
  nc_dev_close (dev);
  end_server (pid);
}


static void
test_qemu_nbd (const char *format)
{
  char image[96], create[160];
  struct nc_dev *dev;
  pid_t pid;

  snprintf (image, sizeof image, "%s/image", dir);
  snprintf (create, sizeof create, "qemu-img create -q -f %s %s 256M", format,
            image);
  must (system (create) == 0, create);
  pid = spawn ((const char *[]) {
      "qemu-nbd", "-t", "-e", "8", "-f", format, "-k", sock, image, NULL
    });
  dev = open_started (PATIENT);
  check_changes (dev, format);
  nc_dev_close (dev);
  end_server (pid);
  unlink (image);
}

/* What servers may lack. */

static void
test_lacking (void)
{
  pid_t pid = NBDKIT ("--filter=log", "--filter=nozero", "--filter=fua",
                      "memory", "16M", log_arg);
  struct nc_dev *dev = open_started (PATIENT);

  must (write_byte (dev, 1, 5000) == 0, "write");
  ok (FAILS (dev->ops->zero (dev, 5000, MB, NC_ZERO_FAST), ENOTSUP) &&
      tap_errors == 0 && reads_as (dev, 1, 4096, 5000),
      "without write zeroes there are no fast ones");
  ok (dev->ops->zero (dev, 5001, 15 * MB, NC_ZERO_MAY_TRIM) == 0 &&
      reads_as (dev, 1, 1, 5000) && reads_as (dev, 0, 15 * MB, 5001) &&
      count_in_log (" Zero ") == 0, "others are written");
  ok (dev->ops->pwrite_durable (dev, "abc", 3, 1) == 0 &&
      reads_back (dev, "abc", 3, 1) && count_in_log ("fua=1") == 0 &&
      count_in_log (" Flush ") == 1,
      "without FUA a durable write is one with a flush");
  nc_dev_close (dev);
  end_server (pid);

  pid = start_target ("bare");
  dev = open_started (PATIENT);
  notices = 0;
  ok (write_byte (dev, 7, 4096) == 0 && dev->ops->sync (dev) == 0 &&
      dev->ops->sync (dev) == 0 &&
      dev->ops->pwrite_durable (dev, "abc", 3, 1) == 0 &&
      dev->ops->zero (dev, 4096, 8, 0) == 0 &&
      dev->ops->trim (dev, 8192, 4096) == 0 && reads_as (dev, 0, 8, 4096) &&
      reads_as (dev, 7, 4088, 4104) && reads_back (dev, "abc", 3, 1),
      "a server that can do nothing but read and write is written");
  ok (notices == 1 && tap_errors == 0 && count_in_log ("flush") == 0 &&
      count_in_log ("zero") == 0 && count_in_log ("trim") == 0,
      "that it has no flush is said once");
  nc_dev_close (dev);
  end_server (pid);

  pid = start_target_of_size ("134217728", "small-zero");
  dev = open_started (PATIENT);
  must (write_byte (dev, 1, 100 * MB) == 0, "write");
  ok (dev->ops->zero (dev, 1, 101 * MB, 0) == 0 && tap_errors == 0 &&
      reads_as (dev, 0, 4096, 100 * MB),
      "zeros that are too many for a server are sent in smaller parts");
  nc_dev_close (dev);
  end_server (pid);
}

/* Block sizes.  Threads that change parts of the same blocks must not undo what
 * the others do. */

#define BLOCK 4096
#define N_BLOCKS 32
#define N_SLICES 8
#define SLICE 507                      /* bytes; so many lie behind each other
                                          in a block */

struct slicer {
  pthread_t thread;
  struct nc_dev *dev;
  unsigned slice;
  uint64_t state;
  unsigned char model[N_BLOCKS][SLICE];
  bool good;
};

static uint64_t
place_of_slice (const struct slicer *s, unsigned block)
{
  return MB + block * BLOCK + 11 + s->slice * SLICE;
}

static bool
change_slice (struct slicer *s, unsigned block)
{
  const uint64_t offset = place_of_slice (s, block);
  unsigned char *model = s->model[block];
  struct iovec iov[2] = { { model, 100 }, { model + 100, SLICE - 100 } };

  fill_random (model, SLICE, &s->state);
  switch (rnd_below (&s->state, 4)) {
  case 0:
    memset (model, 0, SLICE);
    return s->dev->ops->zero (s->dev, offset, SLICE, NC_ZERO_MAY_TRIM) == 0;
  case 1:
    return s->dev->ops->pwritev (s->dev, iov, 2, offset) == 0;
  case 2:
    return s->dev->ops->pwrite_durable (s->dev, model, SLICE, offset) == 0;
  }
  return s->dev->ops->pwrite (s->dev, model, SLICE, offset) == 0;
}

static void *
slicer_thread (void *opaque)
{
  struct slicer *s = opaque;

  s->good = true;
  for (unsigned i = 0; i < 200 && s->good; ++i)
    s->good = change_slice (s, rnd_below (&s->state, N_BLOCKS)) ||
      note ("slice %u: %s", s->slice, strerror (errno));
  return NULL;
}

static void
check_slices (struct nc_dev *dev)
{
  struct slicer *slicers = calloc (N_SLICES, sizeof *slicers);
  bool good = dev->ops->zero (dev, MB, N_BLOCKS * BLOCK, 0) == 0;

  for (unsigned i = 0; i < N_SLICES; ++i) {
    slicers[i].dev = dev;
    slicers[i].slice = i;
    slicers[i].state = seed + i;
    pthread_create (&slicers[i].thread, NULL, slicer_thread, &slicers[i]);
  }
  for (unsigned i = 0; i < N_SLICES; ++i) {
    pthread_join (slicers[i].thread, NULL);
    good &= slicers[i].good;
  }
  for (unsigned i = 0; i < N_SLICES; ++i)
    for (unsigned b = 0; b < N_BLOCKS; ++b)
      good &= reads_back (dev, slicers[i].model[b], SLICE,
                          place_of_slice (&slicers[i], b)) ||
        note ("slice %u of block %u", i, b);
  ok (good, "changes of parts of the same blocks do not undo each other");
  free (slicers);
}

/* Make a random change of the device and of MODEL, its first 4 MiB. */
static bool
change_both (struct nc_dev *dev, unsigned char *model, uint64_t *state)
{
  const uint64_t unit = rnd_below (state, 2) ? 1 : BLOCK;
  const uint64_t offset = rnd_below (state, 3 * MB) & -unit;
  const uint64_t count = rnd_below (state, 300000) & -unit;
  const uint64_t first = rnd_below (state, count + 1) & -unit;
  unsigned char *p = model + offset;
  struct iovec iov[3] = {
    { p, first }, { NULL, 0 }, { p + first, count - first },
  };

  if (rnd_below (state, 4) == 0) {
    memset (p, 0, count);
    return dev->ops->zero (dev, offset, count, 0) == 0;
  }
  fill_random (p, count, state);
  return dev->ops->pwritev (dev, iov, 3, offset) == 0;
}

static void
test_block_sizes (void)
{
  pid_t pid = NBDKIT ("--filter=blocksize-policy", "memory", "5M",
                      "blocksize-error-policy=error",
                      "blocksize-minimum=4096", "blocksize-preferred=64K",
                      "blocksize-maximum=128K");
  struct nc_dev *dev = open_started (PATIENT);
  unsigned char *model = calloc (1, 4 * MB);
  uint64_t state = seed;
  bool good = true;

  for (unsigned i = 0; i < 100 && good; ++i)
    good = change_both (dev, model, &state);
  ok (good && tap_errors == 0 && reads_back (dev, model, 4 * MB, 0),
      "changes are rounded to blocks, and split");
  free (model);
  must (write_byte (dev, 1, 0) == 0 && write_byte (dev, 1, BLOCK) == 0 &&
        write_byte (dev, 1, 2 * BLOCK) == 0, "write");
  ok (dev->ops->trim (dev, 1, 3 * BLOCK - 2) == 0 && reads_as (dev, 1, BLOCK, 0)
      && reads_as (dev, 0, BLOCK, BLOCK) &&
      reads_as (dev, 1, BLOCK, 2 * BLOCK), "a trim leaves out parts of blocks");
  check_slices (dev);
  nc_dev_close (dev);
  end_server (pid);
}

/* A call in a thread of its own; its errno, 0 if it succeeds. */
struct call {
  pthread_t thread;
  struct nc_dev *dev;
  int (*function) (struct nc_dev *dev);
  int error;
};

static int
read_byte (struct nc_dev *dev)
{
  char c;

  return dev->ops->pread (dev, &c, 1, 0);
}

static int
write_first (struct nc_dev *dev)
{
  return write_byte (dev, 1, 0);
}

static int
sync_device (struct nc_dev *dev)
{
  return dev->ops->sync (dev);
}

static void *
call_thread (void *opaque)
{
  struct call *call = opaque;

  call->error = call->function (call->dev) == 0 ? 0 : errno;
  return NULL;
}

static void
start_call (struct call *call, struct nc_dev *dev,
            int (*function) (struct nc_dev *dev))
{
  *call = (struct call) { .dev = dev, .function = function };
  pthread_create (&call->thread, NULL, call_thread, call);
}

static int
join_call (struct call *call)
{
  pthread_join (call->thread, NULL);
  return call->error;
}

/* Many threads. */

#define N_WRITERS 16

struct writer {
  pthread_t thread;
  struct nc_dev *dev;
  unsigned n, number;
  bool good;
};

/* Write the writer's part of the first 16 MiB, and sync now and then. */
static void *
writer_thread (void *opaque)
{
  struct writer *w = opaque;

  w->good = true;
  for (unsigned i = 0; i < w->n && w->good; ++i)
    w->good = write_byte (w->dev, w->number + 1,
                          w->number * MB + i * 4096) == 0 &&
      (i % 8 || w->dev->ops->sync (w->dev) == 0);
  return NULL;
}

static bool
write_by_many (struct nc_dev *dev, unsigned n)
{
  struct writer writers[N_WRITERS];
  bool good = true;

  for (unsigned i = 0; i < N_WRITERS; ++i) {
    writers[i] = (struct writer) { .dev = dev, .n = n, .number = i };
    pthread_create (&writers[i].thread, NULL, writer_thread, &writers[i]);
  }
  for (unsigned i = 0; i < N_WRITERS; ++i) {
    pthread_join (writers[i].thread, NULL);
    good &= writers[i].good;
  }
  for (unsigned i = 0; i < N_WRITERS && good; ++i)
    good = reads_as (dev, i + 1, n * 4096, i * MB);
  return good;
}

/* How many connections the log of nbdkit has that took writes. */
static unsigned
connections_that_wrote (void)
{
  unsigned n = 0;

  for (unsigned i = 1; i < 10; ++i) {
    char text[64];

    snprintf (text, sizeof text, "connection=%u Write ", i);
    n += count_in_log (text) > 0;
  }
  return n;
}

static void
test_many (void)
{
  pid_t pid = NBDKIT ("--filter=log", "--filter=delay", "memory", "16M",
                      "delay-write=2ms", log_arg);
  struct nc_dev *dev = open_started (PATIENT);

  ok (write_by_many (dev, 64), "16 threads write at once");
  ok (EVENTUALLY (write_by_many (dev, 8) && connections_that_wrote () > 1),
      "over several connections, where the server says that it may be done");
  nc_dev_close (dev);
  end_server (pid);
  unlink (log_path);

  pid = NBDKIT ("--filter=log", "--filter=multi-conn", "--filter=delay",
                "memory", "16M", "delay-write=2ms", "multi-conn-mode=disable",
                log_arg);
  dev = open_started (PATIENT);
  ok (write_by_many (dev, 64) && connections_that_wrote () == 1,
      "else over one");
  nc_dev_close (dev);
  end_server (pid);
  unlink (log_path);

  /* Each part of a write is a request. */
  pid = start_target ("reverse");
  dev = open_started (PATIENT);
  {
    char bytes[] = "abcd";
    struct iovec iov[4] = {
      { bytes, 1 }, { bytes + 1, 1 }, { bytes + 2, 1 }, { bytes + 3, 1 },
    };

    ok (dev->ops->pwritev (dev, iov, 4, 8) == 0 &&
        reads_back (dev, bytes, 4, 8) && count_in_log ("write") == 4,
        "answers may come in another order");
  }
  nc_dev_close (dev);
  end_server (pid);
}

/* Errors. */

static void
test_error (const char *mode, int error, const char *text)
{
  pid_t pid = start_target (mode);
  struct nc_dev *dev = open_started (PATIENT);
  bool good = true;

  for (unsigned i = 0; i < 3; ++i) {
    errno = 0;
    good &= FAILS (write_byte (dev, 1, i * 4096), error);
  }
  ok (good && tap_errors == 1 && reported (text) &&
      reported ("write of 4096 bytes at offset 0"),
      "%s: the server's error is passed on, and reported once", mode);
  ok (FAILS (dev->ops->zero (dev, MB / 2, 4096, 0), error) &&
      FAILS (dev->ops->pwrite_durable (dev, "abc", 3, MB / 2), error) &&
      FAILS (dev->ops->trim (dev, MB / 2, 4096), error),
      "%s: also of other changes", mode);
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_errors (void)
{
  pid_t pid;
  struct nc_dev *dev;

  test_error ("error=28", ENOSPC, "make room");
  test_error ("simple-error=28", ENOSPC, "make room");
  test_error ("error=1", EPERM, "not permitted");
  test_error ("simple-error=75", EOVERFLOW, "too large");
  test_error ("error=5", EIO, "Input/output");
  test_error ("simple-error=22", EIO, "Invalid argument");

  pid = start_target ("error=108");
  dev = open_started (PATIENT);
  ok (FAILS (write_byte (dev, 1, 0), ENOTCONN) &&
      EVENTUALLY (reported ("shutting down")) && tap_errors == 1,
      "a server that shuts down is ENOTCONN");
  nc_dev_close (dev);
  end_server (pid);

  pid = NBDKIT ("--filter=error", "memory", "1M", "error=ENOSPC",
                "error-pwrite-rate=50%");
  dev = open_started (PATIENT);
  {
    unsigned bad = 0;

    for (unsigned i = 0; i < 100; ++i)
      bad += FAILS (write_byte (dev, i, i * 4096), ENOSPC);
    ok (bad > 10 && bad < 90 && tap_errors == 1 &&
        dev->ops->epoch (dev) == 0 && dev->ops->sync (dev) == 0,
        "errors of some writes are no others'");
  }
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_hostile (const char *mode)
{
  pid_t pid = start_target (mode);
  struct nc_dev *dev = open_started (PATIENT);
  int r = write_byte (dev, 1, 0);

  ok (r == -1 && (errno == ENOTCONN || errno == EIO) &&
      EVENTUALLY (tap_errors == 1), "%s: what is no answer to a write fails it",
      mode);
  nc_dev_close (dev);
  end_server (pid);
}

/* Lost connections. */

/* Make one write over a connection that is cut, and check what the device says
 * of it.  MADE: the server has made it. */
static bool
lose_write (struct nc_dev *dev, unsigned char c, bool made)
{
  const struct timespec deadline = in_seconds (PATIENT);
  const uint64_t before = dev->ops->epoch (dev);
  uint64_t epoch;

  if (!FAILS (write_byte (dev, c, 0), ENOTCONN))
    return note ("the write did not fail with ENOTCONN");
  if (dev->ops->wait (dev, &deadline) == -1)
    return note ("it was not connected to again");
  epoch = dev->ops->epoch (dev);
  if (epoch <= before)
    return note ("the epoch did not grow");
  if (!reads_as (dev, made ? c : c - 1, 4096, 0))
    return false;
  if (!FAILS (dev->ops->sync (dev), ESTALE) ||
      !FAILS (dev->ops->sync (dev), ESTALE))
    return note ("a sync did not fail with ESTALE");
  dev->ops->renew (dev, epoch);
  return write_byte (dev, c, 0) == 0 && dev->ops->sync (dev) == 0 &&
    reads_as (dev, c, 4096, 0) && dev->ops->trim (dev, 4096, 4096) == 0 &&
    EVENTUALLY (dev->ops->epoch (dev) > epoch) && EVENTUALLY (is_up (dev));
}

static void
test_cut (const char *mode, unsigned points, bool made)
{
  pid_t pid = start_target (mode);
  struct nc_dev *dev = open_started (PATIENT);
  bool good = true;

  for (unsigned i = 0; i < points && good; ++i)
    good = lose_write (dev, i + 1, made) || note ("cut %u", i);
  ok (good, "%s: a write whose connection is lost is not reported as made",
      mode);
  nc_dev_close (dev);
  end_server (pid);
}
static void
test_epochs (void)
{
  pid_t pid = NBDKIT ("memory", "1M");
  struct nc_dev *dev = open_started (PATIENT);
  uint64_t epoch;

  ok (write_byte (dev, 1, 0) == 0 && dev->ops->sync (dev) == 0 &&
      dev->ops->pwrite_durable (dev, "abc", 3, 8192) == 0,
      "writes are flushed, or durable");
  end_server (pid);
  ok (EVENTUALLY (dev->ops->epoch (dev) > 0) &&
      EVENTUALLY (FAILS (dev->ops->sync (dev), ENOTCONN)),
      "without a server a sync fails with ENOTCONN");
  pid = NBDKIT ("memory", "1M");
  ok (EVENTUALLY (is_up (dev)) && dev->ops->sync (dev) == 0,
      "a lost connection loses nothing that was flushed");

  must (write_byte (dev, 1, 0) == 0, "write");
  epoch = dev->ops->epoch (dev);
  end_server (pid);
  ok (EVENTUALLY (dev->ops->epoch (dev) > epoch) &&
      EVENTUALLY (FAILS (dev->ops->sync (dev), ESTALE)),
      "what was not flushed is lost with the connection");
  pid = NBDKIT ("memory", "1M");
  ok (EVENTUALLY (is_up (dev)) && FAILS (dev->ops->sync (dev), ESTALE) &&
      write_byte (dev, 1, 4096) == 0 && FAILS (dev->ops->sync (dev), ESTALE),
      "and with a new one it is still");
  dev->ops->renew (dev, epoch);
  ok (FAILS (dev->ops->sync (dev), ESTALE),
      "until the writer takes note, not of an earlier epoch");
  dev->ops->renew (dev, dev->ops->epoch (dev));
  ok (dev->ops->sync (dev) == 0, "but of this one");
  nc_dev_close (dev);
  end_server (pid);

  pid = start_target ("flush-error");
  dev = open_started (PATIENT);
  ok (write_byte (dev, 1, 0) == 0 && FAILS (dev->ops->sync (dev), EIO) &&
      tap_errors == 1 && reported ("flush"),
      "a flush that fails is EIO, and reported");
  ok (dev->ops->epoch (dev) == 1 && FAILS (dev->ops->sync (dev), ESTALE) &&
      tap_errors == 1, "that the next one succeeds means nothing");
  dev->ops->renew (dev, 1);
  ok (write_byte (dev, 1, 0) == 0 && dev->ops->sync (dev) == 0,
      "until it is written again");
  nc_dev_close (dev);
  end_server (pid);

  pid = start_target ("fua-error");
  dev = open_started (PATIENT);
  ok (write_byte (dev, 1, 0) == 0 &&
      FAILS (dev->ops->pwrite_durable (dev, "abc", 3, 8192), EIO) &&
      FAILS (dev->ops->sync (dev), ESTALE),
      "a durable write that fails may be the failure of another one");
  nc_dev_close (dev);
  end_server (pid);
}

/* A server in place of the one that was written. */
static bool
is_not_used (struct nc_dev *dev, const char *text)
{
  bool good = EVENTUALLY (reported (text));

  for (unsigned i = 0; i < 40 && good; ++i) {
    good = !is_up (dev);
    nap ();
  }
  return good;
}

static pid_t
replace_with_right (struct nc_dev *dev, pid_t pid)
{
  end_server (pid);
  pid = NBDKIT ("memory", "1M");
  must (EVENTUALLY (is_up (dev)), "reconnect");
  return pid;
}

static void
test_replaced (void)
{
  pid_t pid = NBDKIT ("memory", "1M");
  struct nc_dev *dev = open_started (PATIENT);

  end_server (pid);
  pid = NBDKIT ("-r", "memory", "1M");
  ok (is_not_used (dev, "read-only"),
      "an export that has become read-only is not used");
  pid = replace_with_right (dev, pid);
  end_server (pid);
  pid = NBDKIT ("memory", "2M");
  ok (is_not_used (dev, "another export"), "nor one of another size");
  pid = replace_with_right (dev, pid);
  end_server (pid);
  pid = NBDKIT ("--filter=blocksize-policy", "memory", "1M",
                "blocksize-minimum=4096");
  ok (is_not_used (dev, "block size"), "nor one of larger blocks");
  pid = replace_with_right (dev, pid);
  end_server (pid);
  pid = NBDKIT ("--filter=multi-conn", "memory", "1M",
                "multi-conn-mode=disable");
  ok (is_not_used (dev, "several connections"),
      "nor one that no longer allows several connections");
  pid = replace_with_right (dev, pid);
  ok (write_byte (dev, 1, 0) == 0, "the right one is");
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_shared_flush (void)
{
  pid_t pid = start_target ("late-flush");
  struct nc_dev *dev = open_started (PATIENT);
  struct call calls[16];
  bool good = write_first (dev) == 0;

  for (unsigned i = 0; i < 16; ++i)
    start_call (&calls[i], dev, sync_device);
  for (unsigned i = 0; i < 16; ++i)
    good &= join_call (&calls[i]) == 0;
  ok (good && count_in_log ("flush") < 16,
      "syncs that come while a flush runs share the next");
  nc_dev_close (dev);
  end_server (pid);
}

/* A write that is answered after a flush has begun. */
static void
test_late_write (void)
{
  pid_t pid = NBDKIT ("--filter=log", "--filter=delay", "memory", "1M",
                      "delay-write=500ms", log_arg);
  struct nc_dev *dev = open_started (PATIENT);
  struct call write;

  start_call (&write, dev, write_first);
  must (EVENTUALLY (count_in_log (" Write ") > 0), "write");
  must (dev->ops->sync (dev) == 0, "sync");
  must (join_call (&write) == 0, "write");
  end_server (pid);
  ok (EVENTUALLY (FAILS (dev->ops->sync (dev), ESTALE)),
      "a flush does not cover a write that was answered later");
  nc_dev_close (dev);
  unlink (log_path);
}

/* One connection leads to a server that has vanished without a word, another
 * one to its successor, which flushes gladly. */
static void
test_successor (void)
{
  pid_t first = start_target ("accept=2"), second;
  struct nc_dev *dev = open_started (3);
  struct call read, sync;
  int error;

  must (write_byte (dev, 1, 0) == 0, "write");
  freeze (first);
  start_call (&read, dev, read_byte);
  second = start_target ("honest");
  must (EVENTUALLY (count_in_log ("begin") > 0), "second connection");
  for (unsigned i = 0; i < 20; ++i)
    nap ();
  start_call (&sync, dev, sync_device);
  error = sync_device (dev) == 0 ? 0 : errno;
  ok (join_call (&sync) + error == ENOTCONN + ESTALE,
      "a flush of one server is none of another one's writes");
  ok (EVENTUALLY (FAILS (dev->ops->sync (dev), ESTALE)),
      "they are lost, then");
  dev->ops->renew (dev, dev->ops->epoch (dev));
  ok (write_byte (dev, 1, 0) == 0 && dev->ops->sync (dev) == 0,
      "and written again to the other one");
  join_call (&read);
  nc_dev_close (dev);
  end_server (first);
  end_server (second);
}

/* Servers that hang. */

static void
test_stall (void)
{
  pid_t pid = NBDKIT ("memory", "1M");
  struct nc_dev *dev = open_started (2);
  double t;

  must (write_byte (dev, 1, 0) == 0, "write");
  freeze (pid);
  t = seconds ();
  ok (FAILS (write_byte (dev, 2, 0), ENOTCONN),
      "a write to a server that hangs fails with ENOTCONN");
  t = seconds () - t;
  ok (t > 1.8 && t < 20, "after the limit");
  kill (pid, SIGCONT);
  ok (EVENTUALLY (write_byte (dev, 3, 0) == 0) &&
      FAILS (dev->ops->sync (dev), ESTALE), "when the server goes on, so do "
      "writes, and what was not flushed is lost");
  nc_dev_close (dev);
  end_server (pid);
}

static bool
has_port (void)
{
  return count_in_log ("port") > 0;
}

/* What the kernel has not delivered yet when a connection is given up. */
static void
test_unsent (void)
{
  const size_t count = 300 * 1000;
  NC_FREE char *data = calloc (1, count);
  struct nc_dev *dev;
  char where[64];
  unsigned port = 0;
  FILE *log;
  pid_t pid;

  unlink (log_path);
  pid = spawn_until ((const char *[]) {
      "python3", target_path, "tcp", "1048576", "simple", log_path, NULL
    }, has_port);
  log = fopen (log_path, "r");
  must (log && fscanf (log, "port %u", &port) == 1, "port");
  fclose (log);
  snprintf (where, sizeof where, "nbd://127.0.0.1:%u/", port);
  dev = open_at (where, 2);
  freeze (pid);
  must (FAILS (dev->ops->pwrite (dev, data, count, 0), ENOTCONN), "write");
  kill (pid, SIGCONT);
  ok (EVENTUALLY (write_byte (dev, 1, 0) == 0) &&
      EVENTUALLY (count_in_log ("1 end") == 1) &&
      count_in_log ("300000") == 0 && reads_as (dev, 1, 4096, 0),
      "an old write does not come after a new one");
  nc_dev_close (dev);
  end_server (pid);
}

/* Servers that are slow, but do not hang.  These take a while, so they wait
 * beside the other tests. */
struct slow {
  pthread_t thread;
  struct nc_dev *dev;
  pid_t pid;
  bool good;
};

static void
start_slow (struct slow *slow, const char *name, unsigned retry,
            void *(*test) (void *))
{
  use_socket (name);
  slow->pid = start_target (name);
  slow->dev = open_started (retry);
  use_socket ("sock");
  pthread_create (&slow->thread, NULL, test, slow);
}

static void
end_slow (struct slow *slow, const char *name, const char *sentence)
{
  pthread_join (slow->thread, NULL);
  ok (slow->good && slow->dev->ops->epoch (slow->dev) == 0, "%s", sentence);
  nc_dev_close (slow->dev);
  use_socket (name);
  end_server (slow->pid);
}

static void *
flush_slowly (void *opaque)
{
  struct slow *slow = opaque;

  slow->good = write_byte (slow->dev, 1, 0) == 0 &&
    slow->dev->ops->sync (slow->dev) == 0;
  return NULL;
}

static void *
write_slowly (void *opaque)
{
  static char data[24 << 10];
  struct slow *slow = opaque;
  struct iovec iov[16];

  for (unsigned i = 0; i < 16; ++i)
    iov[i] = (struct iovec) { data, sizeof data };
  slow->good = slow->dev->ops->pwritev (slow->dev, iov, 16, 0) == 0;
  return NULL;
}

/* The oracle: threads write, zero, trim and sync at random while the server is
 * killed and started again.  The server keeps what is not flushed in a cache
 * that dies with it, so its file then has what is durable.
 *
 * A block belongs to one thread, which numbers its changes.  What lies in the
 * file must be a change no older than the last one that a sync covered or that
 * was durable, and no newer than the last one made. */

#define O_THREADS 4
#define O_BLOCKS 256
#define O_VERSIONS 4096
#define O_BLOCK 4096

struct oracle {
  struct nc_dev *dev;
  pthread_rwlock_t running;            /* held by calls; exclusively to check */
  pthread_mutex_t renewing;
  _Atomic (bool) over;
  _Atomic (unsigned) done, syncs, losses;

  pthread_mutex_t lock;                /* guards the rest */
  uint64_t renewed;                    /* epoch */
  struct oracle_block {
    unsigned made, answered, durable;  /* versions */
    uint64_t epoch;                    /* read before that was made which was
                                          answered */
    char kind[O_VERSIONS];             /* w(rite), z(ero), t(rim) */
  } block[O_BLOCKS];
};

struct oracle_thread {
  pthread_t thread;
  struct oracle *o;
  unsigned number;
  uint64_t state;
  bool good;
};

static void
fill_version (uint64_t *buf, unsigned block, unsigned version)
{
  for (unsigned i = 0; i < O_BLOCK / 8; ++i)
    buf[i] = (uint64_t) version << 32 | block << 16 | i;
}

/* Whether BUF is what VERSION of the block looks like. */
static bool
is_version (const struct oracle_block *b, unsigned block, unsigned version,
            const uint64_t *buf)
{
  static const uint64_t zeros[O_BLOCK / 8];
  uint64_t expected[O_BLOCK / 8];

  if (version > 0 && b->kind[version] == 't')
    return true;
  if (version == 0 || b->kind[version] == 'z')
    return memcmp (buf, zeros, O_BLOCK) == 0;
  fill_version (expected, block, version);
  return memcmp (buf, expected, O_BLOCK) == 0;
}

static bool
is_explained (const struct oracle_block *b, unsigned block,
              const uint64_t *buf)
{
  for (unsigned v = b->durable; v <= b->made; ++v)
    if (is_version (b, block, v, buf))
      return true;
  return note ("block %u has %" PRIx64 ", durable is %u, made %u", block,
               buf[0], b->durable, b->made);
}

/* Change N blocks from FIRST on.  Returns what the device does. */
static int
make_versions (struct oracle_thread *t, unsigned first, unsigned n, char kind,
               bool durable)
{
  struct oracle *o = t->o;
  struct nc_dev *dev = o->dev;
  NC_FREE uint64_t *buf = malloc (n * O_BLOCK);
  const uint64_t epoch = dev->ops->epoch (dev), at = first * O_BLOCK;
  struct iovec iov[2] = {
    { buf, O_BLOCK }, { (char *) buf + O_BLOCK, (n - 1) * O_BLOCK },
  };
  int r;

  {
    NC_LOCKED (&o->lock);
    for (unsigned i = 0; i < n; ++i) {
      struct oracle_block *b = &o->block[first + i];

      must (++b->made < O_VERSIONS, "too many versions");
      b->kind[b->made] = kind;
      fill_version (buf + i * O_BLOCK / 8, first + i, b->made);
    }
  }
  r = kind == 't' ? dev->ops->trim (dev, at, n * O_BLOCK)
    : kind == 'z' ? dev->ops->zero (dev, at, n * O_BLOCK, NC_ZERO_MAY_TRIM)
    : durable ? dev->ops->pwrite_durable (dev, buf, n * O_BLOCK, at)
    : dev->ops->pwritev (dev, iov, 2, at);
  if (r == 0) {
    NC_LOCKED (&o->lock);
    for (unsigned i = 0; i < n; ++i) {
      struct oracle_block *b = &o->block[first + i];

      b->answered = b->made;
      b->epoch = epoch;
      if (durable)
        b->durable = b->made;
    }
  }
  return r;
}

/* As a job has to do it (dev.h). */
static void
take_note (struct oracle *o)
{
  uint64_t epoch;

  NC_LOCKED (&o->renewing);
  epoch = o->dev->ops->epoch (o->dev);
  {
    NC_LOCKED (&o->lock);
    o->renewed = epoch;
  }
  o->dev->ops->renew (o->dev, epoch);
  ++o->losses;
}

static int
sync_and_learn (struct oracle *o)
{
  unsigned covered[O_BLOCKS];
  uint64_t renewed;
  int r;

  {
    NC_LOCKED (&o->lock);
    renewed = o->renewed;
    for (unsigned i = 0; i < O_BLOCKS; ++i)
      covered[i] = o->block[i].epoch >= o->renewed ? o->block[i].answered : 0;
  }
  r = o->dev->ops->sync (o->dev);
  if (r == 0) {
    NC_LOCKED (&o->lock);
    if (o->renewed != renewed)         /* it may have begun after that */
      return 0;
    for (unsigned i = 0; i < O_BLOCKS; ++i)
      o->block[i].durable = nc_max64 (o->block[i].durable, covered[i]);
    ++o->syncs;
  }
  else if (errno == ESTALE) {
    take_note (o);
    r = 0;
  }
  return r;
}

static int
do_something (struct oracle_thread *t)
{
  const unsigned group = rnd_below (&t->state, O_BLOCKS / O_THREADS / 8);
  const unsigned first = (group * O_THREADS + t->number) * 8 +
    rnd_below (&t->state, 8);
  const unsigned n = 1 + rnd_below (&t->state, 8 - first % 8);

  switch (rnd_below (&t->state, 16)) {
  case 0: return make_versions (t, first, n, 't', false);
  case 1: return make_versions (t, first, n, 'z', false);
  case 2: return make_versions (t, first, n, 'w', true);
  case 3: case 4: return sync_and_learn (t->o);
  }
  return make_versions (t, first, n, 'w', false);
}

static void *
oracle_thread (void *opaque)
{
  struct oracle_thread *t = opaque;
  struct oracle *o = t->o;
  int r;

  t->good = true;
  while (!o->over && t->good) {
    const struct timespec soon = in_seconds (1);

    pthread_rwlock_rdlock (&o->running);
    r = do_something (t);
    t->good = r == 0 || errno == ENOTCONN ||
      note ("a change failed: %s", strerror (errno));
    pthread_rwlock_unlock (&o->running);
    ++o->done;
    if (r == -1)
      o->dev->ops->wait (o->dev, &soon);
  }
  return NULL;
}

/* Whether the file, whose server is dead, has what it must have. */
static bool
file_is_explained (struct oracle *o, const char *path)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  uint64_t buf[O_BLOCK / 8];
  bool good = true;

  pthread_rwlock_wrlock (&o->running);
  for (unsigned i = 0; i < O_BLOCKS; ++i)
    good &= pread (fd, buf, sizeof buf, i * sizeof buf) == sizeof buf &&
      is_explained (&o->block[i], i, buf);
  pthread_rwlock_unlock (&o->running);
  close (fd);
  return good;
}

/* By default the filter multi-conn drops flushes that it takes for needless,
 * and they are not. */
static pid_t
start_cache (bool one, const char *file)
{
  return one
    ? NBDKIT ("--filter=multi-conn", "--filter=cache", "file", file,
              "cache=writeback", "multi-conn-mode=disable",
              "multi-conn-track-dirty=off")
    : NBDKIT ("--filter=cache", "file", file, "cache=writeback");
}

static void
test_oracle (bool one, unsigned kills)
{
  char path[96], file[128];
  struct oracle *o = calloc (1, sizeof *o);
  struct oracle_thread threads[O_THREADS];
  bool good = true;
  pid_t pid;

  snprintf (path, sizeof path, "%s/file", dir);
  snprintf (file, sizeof file, "file=%s", path);
  must (close (open (path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)) == 0 &&
        truncate (path, O_BLOCKS * O_BLOCK) == 0, path);
  pid = start_cache (one, file);
  o->dev = open_started (PATIENT);
  pthread_rwlock_init (&o->running, NULL);
  pthread_mutex_init (&o->renewing, NULL);
  pthread_mutex_init (&o->lock, NULL);
  for (unsigned i = 0; i < O_THREADS; ++i) {
    threads[i] = (struct oracle_thread) {
      .o = o, .number = i, .state = seed + i,
    };
    pthread_create (&threads[i].thread, NULL, oracle_thread, &threads[i]);
  }
  for (unsigned i = 0; i < kills && good; ++i) {
    const unsigned until = o->done + 20 + rnd_below (&seed, 100);

    must (EVENTUALLY (o->done >= until), "progress");
    end_server (pid);
    good = file_is_explained (o, path) || note ("kill %u", i);
    pid = start_cache (one, file);
  }
  must (EVENTUALLY (sync_and_learn (o) == 0), "sync");
  o->over = true;
  for (unsigned i = 0; i < O_THREADS; ++i) {
    pthread_join (threads[i].thread, NULL);
    good &= threads[i].good;
  }
  note ("%u changes and syncs, %u syncs covered, %u losses", o->done,
        o->syncs, o->losses);
  ok (good && o->syncs > 0 && o->losses > 0,
      "what a sync has covered is there when the server dies, over %s",
      one ? "one connection" : "several connections");
  nc_dev_close (o->dev);
  end_server (pid);
  unlink (path);
  free (o);
}

int
main (void)
{
  const char *top = getenv ("top_srcdir");
  struct slow flush = { 0 }, sip = { 0 };

  seed = tap_start (300);
  nc_report_to (sink);
  make_server_dir ();
  snprintf (target_path, sizeof target_path, "%s/tests/peers/nbd-target.py",
            top ? top : ".");
  snprintf (log_path, sizeof log_path, "%s/log", dir);
  snprintf (log_arg, sizeof log_arg, "logfile=%s", log_path);

  start_slow (&flush, "slow-flush", 0, flush_slowly);
  start_slow (&sip, "sip", 2, write_slowly);
  test_refused ();
  test_nbdkit ();
  test_qemu_nbd ("raw");
  test_qemu_nbd ("qcow2");
  test_lacking ();
  test_block_sizes ();
  test_many ();
  test_errors ();
  test_hostile ("data");
  test_hostile ("status");
  test_hostile ("cookie");
  test_hostile ("chunk");
  test_cut ("cut-request", 6, false);
  test_cut ("cut-reply", 5, true);
  test_cut ("cut-simple", 4, true);
  test_epochs ();
  test_shared_flush ();
  test_late_write ();
  test_replaced ();
  test_successor ();
  test_stall ();
  test_unsent ();
  test_oracle (false, 8);
  test_oracle (true, 4);
  end_slow (&sip, "sip", "a server that receives slowly does not hang");
  end_slow (&flush, "slow-flush", "nor does one that takes long to flush");

  unlink (log_path);
  rmdir (dir);
  return tap_done ();
}
