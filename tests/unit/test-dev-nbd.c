/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/dev/nbd*.c: against nbdkit, killed, stopped and replaced at
 * will, and against the misbehaving server tests/peers/nbd-peer.py. */

#include <config.h>

#include "dev/dev.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/report.h"
#include "util/scope.h"
#include "util/standback.h"

#include "nbd-server.h"

#define MB (UINT64_C (1) << 20)
#define SIZE_ARG "64M"
#define SIZE (64 * MB)

static unsigned n_tests, n_failed;
static char peer_path[4096];

static pthread_mutex_t messages_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned n_errors;              /* these three: messages_lock */
static bool is_back;
static char last_error[1024];

static void
ok (bool good, const char *sentence)
{
  printf ("%sok %u - %s\n", good ? "" : "not ", ++n_tests, sentence);
  fflush (stdout);
  if (!good) {
    printf ("# errno %d, last message: %s\n", errno, last_error);
    n_failed++;
  }
}

static void
sink (enum nc_report_level level, const char *fmt, va_list args)
{
  char text[sizeof last_error];

  vsnprintf (text, sizeof text, fmt, args);
  if (getenv ("VERBOSE"))
    fprintf (stderr, "# %c %s\n", level == NC_REPORT_ERROR ? 'E' : 'D', text);
  NC_LOCKED (&messages_lock);
  if (strstr (text, "is back after"))
    is_back = true;
  if (level != NC_REPORT_ERROR)
    return;
  n_errors++;
  memcpy (last_error, text, sizeof text);
}

static void
forget_messages (void)
{
  NC_LOCKED (&messages_lock);
  n_errors = 0;
  is_back = false;
  last_error[0] = '\0';
}

static unsigned
errors (void)
{
  NC_LOCKED (&messages_lock);
  return n_errors;
}

/* Whether the last error contains TEXT. */
static bool
reported (const char *text)
{
  NC_LOCKED (&messages_lock);
  return strstr (last_error, text) != NULL;
}

static bool
was_back (void)
{
  NC_LOCKED (&messages_lock);
  return is_back;
}

static pid_t
start_peer (const char *size, const char *mode)
{
  return spawn ((const char *[]) {
      "python3", peer_path, sock, size, mode, NULL
    });
}

/* A limit for peers that answer, if at a busy moment not at once. */
#define PATIENT 30

static struct nc_dev *
try_to_start (unsigned retry)
{
  struct nc_dev *dev = nc_dev_open_nbd (uri, retry, NULL, NULL);

  forget_messages ();
  if (dev && dev->ops->start (dev) == -1) {
    nc_dev_close (dev);
    dev = NULL;
  }
  return dev;
}

/* Open and start the server's export. */
static struct nc_dev *
open_started (unsigned retry)
{
  struct nc_dev *dev;

  /* With a small limit a slow server may take several attempts. */
  if (!EVENTUALLY ((dev = try_to_start (retry)) != NULL)) {
    fprintf (stderr, "cannot open and start %s\n", uri);
    exit (1);
  }
  return dev;
}

/* Whether BUF is what nbdkit's pattern plugin has at OFFSET. */
static bool
is_pattern (const unsigned char *buf, size_t count, uint64_t offset)
{
  size_t i;

  for (i = 0; i < count; i++) {
    uint64_t o = offset + i;

    if (buf[i] != (unsigned char) ((o & ~UINT64_C (7)) >> 8 * (7 - (o & 7))))
      return false;
  }
  return true;
}

static bool
read_is_right (struct nc_dev *dev, size_t count, uint64_t offset)
{
  NC_FREE unsigned char *buf = malloc (count);

  memset (buf, 0xee, count);
  return dev->ops->pread (dev, buf, count, offset) == 0 &&
    is_pattern (buf, count, offset);
}

/* As a caller does: wait while the server cannot be reached. */
static bool
read_with_patience (struct nc_dev *dev, size_t count, uint64_t offset,
                    const struct timespec *deadline)
{
  NC_FREE unsigned char *buf = malloc (count);

  while (dev->ops->pread (dev, buf, count, offset) == -1) {
    if (errno != ENOTCONN)
      return false;
    if (dev->ops->wait (dev, deadline) == -1)
      return false;
  }
  return is_pattern (buf, count, offset);
}

/* The same for several reads at a time. */
static bool
read_many_with_patience (struct nc_dev *dev, unsigned *seed,
                         const struct timespec *deadline)
{
  const size_t n = 1 + rand_r (seed) % NC_DEV_READS;
  NC_FREE unsigned char *buf = malloc (n * 16384);
  struct nc_dev_read v[NC_DEV_READS];

  for (size_t i = 0; i < n; i++) {
    v[i] = (struct nc_dev_read) {
      .buf = buf + i * 16384, .count = 1 + rand_r (seed) % 16384,
    };
    v[i].offset = rand_r (seed) % (SIZE - v[i].count);
  }
  while (dev->ops->pread_many (dev, v, n) == -1)
    if (errno != ENOTCONN || dev->ops->wait (dev, deadline) == -1)
      return false;
  for (size_t i = 0; i < n; i++)
    if (!is_pattern (v[i].buf, v[i].count, v[i].offset))
      return false;
  return true;
}

static void
test_reads (void)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = open_started (0);
  unsigned char buf[4096];
  double t;
  size_t i;

  ok (dev->size == SIZE && dev->remote && !dev->writable &&
      dev->identity == NULL, "an export has the size the server says");
  ok (read_is_right (dev, 4096, 8192), "a read gets the data");
  ok (read_is_right (dev, 1, 0) && read_is_right (dev, 777, 12345),
      "a read of any alignment gets the data");
  ok (read_is_right (dev, 40 * MB, 3), "a read above 32 MiB is split");

  memset (buf, 0xee, sizeof buf);
  ok (dev->ops->pread (dev, buf, sizeof buf, SIZE - 100) == 0 &&
      is_pattern (buf, 100, SIZE - 100), "a read across the end succeeds");
  for (i = 100; i < sizeof buf && buf[i] == 0; i++)
    ;
  ok (i == sizeof buf, "what lies past the end reads as zeros");
  memset (buf, 0xee, sizeof buf);
  ok (dev->ops->pread (dev, buf, sizeof buf, INT64_MAX) == 0 && buf[0] == 0,
      "a read far past the end reads zeros");

  t = seconds ();
  dev->ops->stop (dev);
  ok (dev->ops->pread (dev, buf, 1, 0) == -1 && errno == ESHUTDOWN,
      "a read after stop fails with ESHUTDOWN");
  ok (dev->ops->wait (dev, NULL) == -1 && errno == ESHUTDOWN,
      "wait after stop fails with ESHUTDOWN");
  nc_dev_close (dev);
  /* One that waits for an answer does so for ten seconds. */
  ok (seconds () - t < 9 && errors () == 0,
      "stop and close are quick and silent");
  end_server (pid);
}

static void
test_many (void)
{
  pid_t pid = NBDKIT ("--filter=delay", "pattern", SIZE_ARG,
                      "delay-read=300ms");
  struct nc_dev *dev = open_started (0);
  unsigned char buf[NC_DEV_READS][4096];
  struct nc_dev_read v[NC_DEV_READS];
  bool good = true;
  double t;
  int r;

  for (unsigned i = 0; i < NC_DEV_READS; i++)
    v[i] = (struct nc_dev_read) { buf[i], sizeof buf[i], i * MB };
  t = seconds ();
  r = dev->ops->pread_many (dev, v, NC_DEV_READS);
  t = seconds () - t;
  for (unsigned i = 0; i < NC_DEV_READS; i++)
    good &= is_pattern (buf[i], sizeof buf[i], i * MB);
  ok (r == 0 && good, "many reads at a time get the data");
  ok (t < 300e-3 * NC_DEV_READS / 2, "and do not wait for each other");

  memset (buf, 0xee, sizeof buf);
  v[1].offset = SIZE - 10;
  v[3].offset = SIZE + 4096;
  good = dev->ops->pread_many (dev, v, 4) == 0 &&
    is_pattern (buf[0], sizeof buf[0], 0) &&
    is_pattern (buf[1], 10, SIZE - 10) &&
    is_pattern (buf[2], sizeof buf[2], 2 * MB) && buf[3][0] == 0;
  for (unsigned i = 10; i < sizeof buf[1]; i++)
    good &= buf[1][i] == 0;
  ok (good, "those past the end among them read zeros there");

  dev->ops->stop (dev);
  ok (dev->ops->pread_many (dev, v, 4) == -1 && errno == ESHUTDOWN,
      "after stop they fail with ESHUTDOWN");
  nc_dev_close (dev);
  end_server (pid);
}

struct reader {
  pthread_t thread;
  struct nc_dev *dev;
  unsigned seed, n;
  bool stands_back;
  struct timespec deadline;
  bool good;
};

static void *
reader_thread (void *opaque)
{
  struct reader *r = opaque;
  unsigned i;

  r->good = true;
  nc_stand_back (r->stands_back);
  for (i = 0; i < r->n && r->good; i++) {
    size_t count = 1 + rand_r (&r->seed) % 65536;
    uint64_t offset = rand_r (&r->seed) % (SIZE - count);

    r->good = i % 2
      ? read_many_with_patience (r->dev, &r->seed, &r->deadline)
      : read_with_patience (r->dev, count, offset, &r->deadline);
  }
  return NULL;
}

#define N_READERS 16

static void
start_readers_that (bool stand_back, struct reader *readers,
                    struct nc_dev *dev, unsigned n)
{
  unsigned i;

  for (i = 0; i < N_READERS; i++) {
    readers[i] = (struct reader) {
      .dev = dev, .seed = i, .n = n, .stands_back = stand_back,
      .deadline = in_seconds (120),
    };
    pthread_create (&readers[i].thread, NULL, reader_thread, &readers[i]);
  }
}

static void
start_readers (struct reader *readers, struct nc_dev *dev, unsigned n)
{
  start_readers_that (false, readers, dev, n);
}

static bool
join_readers (struct reader *readers)
{
  bool good = true;
  unsigned i;

  for (i = 0; i < N_READERS; i++) {
    pthread_join (readers[i].thread, NULL);
    good &= readers[i].good;
  }
  return good;
}

static void
test_parallel_reads (void)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = open_started (0);
  struct reader readers[N_READERS];

  start_readers (readers, dev, 100);
  ok (join_readers (readers), "16 threads read at once");
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_one_connection (void)
{
  pid_t pid = NBDKIT ("--filter=multi-conn", "pattern", SIZE_ARG,
                      "multi-conn-mode=disable");
  struct nc_dev *dev = open_started (0);
  struct reader readers[N_READERS];

  start_readers (readers, dev, 50);
  ok (join_readers (readers), "16 threads read over a single connection");
  nc_dev_close (dev);
  end_server (pid);
}

/* More at once than a connection takes: the rest waits in its queue. */
static void
test_full_connection (void)
{
  pid_t pid = NBDKIT ("--filter=multi-conn", "--filter=delay", "pattern",
                      SIZE_ARG, "multi-conn-mode=disable", "delay-read=5ms");
  struct nc_dev *dev = open_started (0);
  struct reader readers[6][N_READERS];
  bool good = true;

  for (unsigned i = 0; i < 6; i++)
    start_readers (readers[i], dev, 20);
  for (unsigned i = 0; i < 6; i++)
    good &= join_readers (readers[i]);
  ok (good, "96 threads read over a single connection");
  nc_dev_close (dev);
  end_server (pid);
}

/* How many connections the server has read for since it was last asked.  LOG
 * is what it writes down. */
static unsigned
connections_in (FILE *log)
{
  char line[512];
  const char *p;
  uint64_t seen = 0;

  clearerr (log);
  while (fgets (line, sizeof line, log))
    if (strstr (line, " Read ") && (p = strstr (line, "connection=")) != NULL)
      seen |= UINT64_C (1) << atoi (p + strlen ("connection=")) % 64;
  return __builtin_popcountll (seen);
}

/* How many threads of ours go behind the first one. */
static unsigned
threads_behind (void)
{
  DIR *tasks = opendir ("/proc/self/task");
  const int mine = getpriority (PRIO_PROCESS, 0);
  struct dirent *task;
  unsigned n = 0;

  while ((task = readdir (tasks)) != NULL)
    if (*task->d_name != '.')
      n += getpriority (PRIO_PROCESS, atoi (task->d_name)) > mine;
  closedir (tasks);
  return n;
}

/* Returns over how many connections 16 readers read. */
static unsigned
read_by (bool stand_back, struct nc_dev *dev, FILE *log)
{
  struct reader readers[N_READERS];

  start_readers_that (stand_back, readers, dev, 5);
  return join_readers (readers) ? connections_in (log) : 0;
}

/* Who stands back leaves all connections but one to others. */
static void
test_standing_back (void)
{
  const unsigned processors = sysconf (_SC_NPROCESSORS_ONLN);
  const unsigned all = processors < 3 ? processors + 1 : 4;
  char path[128], arg[160];
  struct nc_dev *dev;
  FILE *log;
  pid_t pid;

  snprintf (path, sizeof path, "%s/log", dir);
  snprintf (arg, sizeof arg, "logfile=%s", path);
  pid = NBDKIT ("--filter=log", "--filter=delay", "pattern", SIZE_ARG,
                "delay-read=20ms", arg);
  dev = open_started (0);
  log = fopen (path, "r");
  ok (EVENTUALLY (read_by (false, dev, log) == all),
      "16 readers use all connections, four at most");
  ok (threads_behind () == 0, "no thread goes behind another");
  ok (read_by (true, dev, log) == 1, "16 that stand back use one");
  ok (threads_behind () == 0, "and no thread of the device is behind after it");
  ok (EVENTUALLY (read_by (false, dev, log) == all),
      "after that, others use all again");
  fclose (log);
  unlink (path);
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_block_size (void)
{
  pid_t pid = NBDKIT ("--filter=blocksize-policy", "pattern", SIZE_ARG,
                      "blocksize-error-policy=error",
                      "blocksize-minimum=4096", "blocksize-preferred=4096",
                      "blocksize-maximum=64K");
  struct nc_dev *dev = open_started (0);
  struct timespec deadline = in_seconds (PATIENT);
  struct nc_extents extents;
  unsigned seed = 1;
  bool good = true;

  for (unsigned i = 0; i < 20 && good; i++)
    good = read_many_with_patience (dev, &seed, &deadline);
  ok (good, "of many reads those that must be rounded are");
  ok (read_is_right (dev, 777, 12345) && read_is_right (dev, 1, 4095) &&
      read_is_right (dev, 2, 4095),
      "reads are rounded to the server's minimum block size");
  ok (read_is_right (dev, MB, 4096) && read_is_right (dev, 3 * MB, 7) &&
      read_is_right (dev, 4096 - 7, SIZE - 4096 + 7),
      "reads are split at the server's maximum block size");
  nc_extents_init (&extents, 1000, 10000);
  ok (dev->ops->extents (dev, &extents, 11000, 5) == 0 && extents.n == 1 &&
      extents.v[0].offset == 1000 && extents.v[0].type == 0,
      "block status is rounded too");
  nc_extents_free (&extents);
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_extents (void)
{
  pid_t pid = NBDKIT ("data", "@0x1000000 1 @0x2000000 1", "size=64M");
  struct nc_dev *dev = open_started (0);
  struct nc_extents extents;
  bool good = true;

  nc_extents_init (&extents, 100, SIZE);
  while (good && !nc_extents_full (&extents))
    good = dev->ops->extents (dev, &extents, extents.end, 0) == 0;
  ok (good && extents.n == 5 &&
      extents.v[0].type == (NC_EXTENT_HOLE | NC_EXTENT_ZERO) &&
      extents.v[1].type == 0 && extents.v[1].offset == 0x1000000 &&
      extents.v[3].type == 0 && extents.v[3].offset == 0x2000000 &&
      extents.v[4].type == (NC_EXTENT_HOLE | NC_EXTENT_ZERO) &&
      nc_extents_next (&extents) == 100 + SIZE,
      "extents are the server's block status, and zero past the end");
  nc_extents_free (&extents);

  nc_extents_init (&extents, 0x800000, 0x1000000);
  good = true;
  while (good && !nc_extents_full (&extents))
    good = dev->ops->extents (dev, &extents, extents.end, 0x800000) == 0;
  ok (good && extents.n == 2 && extents.v[0].offset == 0x800000 &&
      extents.v[0].type == 0 && extents.v[0].count < 0x100000,
      "a shift moves the range asked for");
  nc_extents_free (&extents);
  nc_dev_close (dev);
  end_server (pid);

  pid = NBDKIT ("--filter=noextents", "--no-sr", "memory", SIZE_ARG);
  dev = open_started (0);
  nc_extents_init (&extents, 0, SIZE);
  ok (dev->ops->extents (dev, &extents, SIZE, 0) == 0 && extents.n == 1 &&
      extents.v[0].type == 0 && extents.v[0].count == SIZE,
      "without base:allocation everything is data");
  nc_extents_free (&extents);
  nc_dev_close (dev);
  end_server (pid);
}

static bool
is_up (struct nc_dev *dev)
{
  struct timespec past = in_seconds (0);

  return dev->ops->wait (dev, &past) == 0;
}

static void
test_restart (void)
{
  pid_t pid = NBDKIT ("--filter=delay", "pattern", SIZE_ARG,
                      "delay-read=2ms");
  struct nc_dev *dev = open_started (0);
  struct reader readers[N_READERS];
  unsigned char c;
  unsigned i;

  start_readers (readers, dev, 150);
  for (i = 0; i < 3; i++) {
    end_server (pid);
    if (!EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == -1))
      break;
    pid = NBDKIT ("pattern", SIZE_ARG);
    if (!EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == 0))
      break;
  }
  ok (join_readers (readers) && i == 3,
      "reads wait for a server that is killed and started again");
  ok (errors () == 3 && reported ("connection lost: ") &&
      reported ("; retrying"), "an outage is reported once");
  ok (was_back (), "its end is reported");

  end_server (pid);
  ok (EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == -1) &&
      errno == ENOTCONN, "without a server a read fails with ENOTCONN");
  {
    struct timespec past = in_seconds (0);

    ok (dev->ops->wait (dev, &past) == -1 && errno == ETIMEDOUT,
        "wait ends at its deadline");
  }
  nc_dev_close (dev);
}

/* Opened while the export may be away, which it is or not. */
static void
test_absent (void)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = nc_dev_open_nbd_absent (uri, 0, NULL, NULL, SIZE, "");
  unsigned char c;

  forget_messages ();
  dev->ops->start (dev);
  ok (EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == 0) && errors () == 0 &&
      !was_back (), "a server that was not away is not said to be back");
  nc_dev_close (dev);
  end_server (pid);

  dev = nc_dev_open_nbd_absent (uri, 0, NULL, NULL, SIZE, "");
  forget_messages ();
  dev->ops->start (dev);
  ok (EVENTUALLY (reported ("cannot connect: ")) && reported ("; retrying"),
      "that one is away from the beginning is reported");
  pid = NBDKIT ("pattern", SIZE_ARG);
  ok (EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == 0) && errors () == 1 &&
      EVENTUALLY (was_back ()), "once; and its end, too");
  nc_dev_close (dev);
  end_server (pid);
}

/* Nobody reads, so nobody would see that the connections have ended. */
static void
test_idle (void)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = open_started (0);
  unsigned char c;

  dev->ops->pread (dev, &c, 1, 0);
  end_server (pid);
  ok (EVENTUALLY (reported ("connection lost: ")),
      "the end of connections is noticed while nobody reads");
  pid = NBDKIT ("pattern", SIZE_ARG);
  ok (EVENTUALLY (is_up (dev)) && dev->ops->pread (dev, &c, 1, 0) == 0,
      "and the device connects again");
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_replaced (void)
{
  pid_t pid = NBDKIT ("--filter=exportname", "pattern", SIZE_ARG,
                      "exportdesc=fixed:the first");
  struct nc_dev *dev = open_started (0);
  struct timespec soon;
  unsigned char c;

  ok (dev->identity && strstr (dev->identity, "the first"),
      "the identity is what the server says of its export");

  end_server (pid);
  EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == -1);
  pid = NBDKIT ("--filter=exportname", "pattern", SIZE_ARG,
                "exportdesc=fixed:another");
  ok (EVENTUALLY (reported ("\"another\"")) && reported ("\"the first\""),
      "an export with another identity is reported");
  soon = in_seconds (1);
  ok (dev->ops->wait (dev, &soon) == -1 && errno == ETIMEDOUT &&
      errors () == 2, "it is not used, and reported once");

  end_server (pid);
  pid = NBDKIT ("--filter=exportname", "pattern", "1M",
                "exportdesc=fixed:the first");
  soon = in_seconds (1);
  ok (dev->ops->wait (dev, &soon) == -1 && errno == ETIMEDOUT,
      "an export of another size is not used");

  end_server (pid);
  pid = NBDKIT ("--filter=exportname", "pattern", SIZE_ARG,
                "exportdesc=fixed:the first");
  soon = in_seconds (20);
  ok (dev->ops->wait (dev, &soon) == 0 && read_is_right (dev, 4096, 4096),
      "the right one is used again");
  nc_dev_close (dev);

  dev = nc_dev_open_nbd (uri, 0, NULL, NULL);
  end_server (pid);
  pid = NBDKIT ("pattern", SIZE_ARG);
  forget_messages ();
  ok (dev && dev->ops->start (dev) == -1 && errors () == 1 &&
      reported ("another export"),
      "start fails if the export has changed since open");
  nc_dev_close (dev);
  end_server (pid);

  pid = NBDKIT ("pattern", SIZE_ARG);
  dev = nc_dev_open_nbd (uri, 0, NULL, NULL);
  end_server (pid);
  forget_messages ();
  ok (dev && dev->ops->start (dev) == -1 && errno == ENOTCONN &&
      errors () == 1 && reported ("cannot connect: "),
      "start fails if the server has gone since open");
  ok (dev && dev->ops->pread (dev, &c, 1, 0) == -1 && errno == ENOTCONN,
      "without a start there is no connection");
  nc_dev_close (dev);
}

/* Several reads of a server that hangs: the limit counts once. */
static void
test_many_stall (void)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = open_started (4);
  unsigned char c[2];
  const struct nc_dev_read v[2] = { { &c[0], 1, 0 }, { &c[1], 1, MB } };
  struct reader readers[N_READERS];
  double t;

  start_readers (readers, dev, 20);    /* until all connections are up */
  join_readers (readers);
  freeze (pid);
  t = seconds ();
  ok (dev->ops->pread_many (dev, v, 2) == -1 && errno == ENOTCONN,
      "several reads from a server that hangs fail with ENOTCONN");
  t = seconds () - t;
  ok (t > 3.8 && t < 7.5, "after the limit, not once more after that");
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_stall (void)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = open_started (1);
  struct timespec deadline;
  unsigned char c;
  double t;

  freeze (pid);
  t = seconds ();
  ok (dev->ops->pread (dev, &c, 1, 0) == -1 && errno == ENOTCONN,
      "a read from a server that hangs fails with ENOTCONN");
  t = seconds () - t;
  ok (t > 0.8 && t < 15, "... after the limit");
  kill (pid, SIGCONT);
  deadline = in_seconds (20);
  ok (read_with_patience (dev, 4096, 0, &deadline),
      "when the server goes on, so do reads");

  freeze (pid);
  t = seconds ();
  nc_dev_close (dev);
  ok (seconds () - t < 15, "close does not wait for a server that hangs");
  end_server (pid);

  pid = NBDKIT ("--filter=delay", "pattern", SIZE_ARG, "delay-read=1500ms");
  dev = open_started (8);
  {
    struct reader readers[N_READERS];

    start_readers (readers, dev, 1);
    ok (join_readers (readers) && errors () == 0,
        "a slow server is not taken for one that hangs");
  }
  nc_dev_close (dev);
  end_server (pid);
}

struct waiter {
  pthread_t thread;
  struct nc_dev *dev;
  unsigned reads;                      /* 0: waits for the server */
  atomic_bool begun;
  double end;
  int error;
};

static void *
waiter_thread (void *opaque)
{
  struct waiter *w = opaque;
  unsigned char c[2];
  const struct nc_dev_read v[2] = { { &c[0], 1, 0 }, { &c[1], 1, MB } };

  w->begun = true;
  errno = 0;
  if (w->reads == 1)
    w->dev->ops->pread (w->dev, v[0].buf, 1, 0);
  else if (w->reads)
    w->dev->ops->pread_many (w->dev, v, w->reads);
  else
    w->dev->ops->wait (w->dev, NULL);
  w->error = errno;
  w->end = seconds ();
  return NULL;
}

static void
stop_with_waiter (struct nc_dev *dev, unsigned reads, const char *sentence)
{
  struct waiter w = { .dev = dev, .reads = reads };
  double t;

  pthread_create (&w.thread, NULL, waiter_thread, &w);
  while (!w.begun)
    nap ();
  nap ();
  nap ();
  t = seconds ();
  dev->ops->stop (dev);
  pthread_join (w.thread, NULL);
  ok (w.error == ESHUTDOWN && w.end - t < 10, sentence);
  nc_dev_close (dev);
}

static void
stop_with_reads (unsigned reads, const char *sentence)
{
  pid_t pid = NBDKIT ("pattern", SIZE_ARG);
  struct nc_dev *dev = open_started (0);

  freeze (pid);
  stop_with_waiter (dev, reads, sentence);
  kill (pid, SIGCONT);
  end_server (pid);
}

static void
test_stop (void)
{
  struct nc_dev *dev;
  unsigned char c;
  pid_t pid;

  stop_with_reads (1, "stop ends a read in flight");
  stop_with_reads (2, "and several");

  pid = NBDKIT ("pattern", SIZE_ARG);
  dev = open_started (0);
  end_server (pid);
  EVENTUALLY (dev->ops->pread (dev, &c, 1, 0) == -1);
  stop_with_waiter (dev, 0, "stop wakes who waits for the server");
}

static bool
is_malformed (const char *command)
{
  return nc_dev_open_nbd (command, 0, NULL, NULL) == NULL && errno == EINVAL;
}

static void
test_command (void)
{
  struct nc_dev *dev;
  unsigned char buf[16];
  double t;

  forget_messages ();
  dev = nc_dev_open_nbd ("[ nbdkit data \"'hi' \\\"you\\\"\" size=1M ]", 0,
                         NULL, NULL);
  ok (dev == NULL && errors () == 1,
      "a command that fails is an error, reported once");
  dev = nc_dev_open_nbd ("[ nbdkit --exit-with-parent data "
                         "'0x41 0x42'  \"size=1M\" ]", 0, NULL, NULL);
  ok (dev && dev->size == MB, "a command is a server, its words quoted");
  ok (dev && dev->ops->start (dev) == 0 &&
      dev->ops->pread (dev, buf, 2, 0) == 0 && memcmp (buf, "AB", 2) == 0,
      "its export is read");
  t = seconds ();
  nc_dev_close (dev);
  ok (seconds () - t < 10 && waitpid (-1, NULL, WNOHANG) == -1,
      "close ends the command");

  t = seconds ();
  ok (nc_dev_open_nbd ("[ sh -c 'trap \"\" TERM; exec sleep 20' ]", 1, NULL,
                       NULL) == NULL && seconds () - t < 15,
      "a command that ignores SIGTERM and says nothing is killed");
  ok (is_malformed ("[ nbdkit") && is_malformed ("[ nbdkit 'a ]") &&
      is_malformed ("[ ]") && is_malformed ("["),
      "a malformed command is refused");
}

static void
test_refused (void)
{
  double t = seconds ();

  forget_messages ();
  ok (nc_dev_open_nbd ("nbds://localhost/x?tls-verify-peer=false", 0, NULL,
                       NULL) == NULL && errno == EPERM && errors () == 1 &&
      reported ("remote-tls-certificates="),
      "a URI with TLS brings no parameters");
  ok (nc_dev_open_nbd ("nbd+vsock:///", 0, NULL, NULL) == NULL,
      "URIs of other transports are refused");
  forget_messages ();
  ok (nc_dev_open_nbd (uri, 0, NULL, NULL) == NULL && errors () == 1 &&
      reported ("cannot connect") && reported (uri) && seconds () - t < 15,
      "a missing server is an error, reported once with its name");
}

/* Hostile servers. */

static void
test_handshake (const char *mode, const char *size, const char *sentence)
{
  pid_t pid = start_peer (size, mode);
  struct nc_dev *dev;
  double t = seconds ();

  forget_messages ();
  dev = nc_dev_open_nbd (uri, 1, NULL, NULL);
  ok (dev == NULL && !reported ("refused") && seconds () - t < 60, sentence);
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_reply (const char *mode, int error, const char *message,
            const char *sentence)
{
  pid_t pid = start_peer ("1048576", mode);
  struct nc_dev *dev = open_started (PATIENT);
  unsigned char buf[4096];

  ok (dev->ops->pread (dev, buf, sizeof buf, 8192) == (error ? -1 : 0) &&
      (!error || errno == error) && EVENTUALLY (reported (message)) &&
      errors () <= 1, sentence);
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_status (const char *mode, size_t n, const char *sentence)
{
  pid_t pid = start_peer ("1048576", mode);
  struct nc_dev *dev = open_started (PATIENT);
  struct nc_extents extents;
  bool good = true;
  uint64_t end = 1000;

  nc_extents_init (&extents, 1000, 500000);
  while (good && !nc_extents_full (&extents)) {
    good = dev->ops->extents (dev, &extents, extents.end, 0) == 0 &&
      nc_extents_next (&extents) > end;
    end = nc_extents_next (&extents);
  }
  ok (good && end == 501000 && (n == 0 || extents.n == n), sentence);
  nc_extents_free (&extents);
  nc_dev_close (dev);
  end_server (pid);
}

static void
test_twice (void)
{
  pid_t pid = start_peer ("1048576", "twice");
  struct nc_dev *dev = open_started (PATIENT);
  unsigned char buf[4096];
  int i;

  /* It counts as full, but shows nothing of ours: it is read again. */
  memset (buf, 0xee, sizeof buf);
  dev->ops->pread (dev, buf, sizeof buf, 0);
  for (i = 2048; i < 4096 && buf[i] == 0; i++)
    ;
  ok (i == 4096, "data sent twice does not leave memory uncleared");
  nc_dev_close (dev);
  end_server (pid);
}

/* A server that takes requests and never answers: nothing ends early, and
 * reports do not pile up. */
static void
test_mute (void)
{
  pid_t pid = start_peer ("1048576", "mute");
  struct nc_dev *dev = open_started (3);
  unsigned char c;
  double t = seconds ();
  unsigned i;
  bool good = true;

  for (i = 0; i < 2; i++) {
    struct timespec deadline = in_seconds (20);

    good &= dev->ops->wait (dev, &deadline) == 0;
    good &= dev->ops->pread (dev, &c, 1, 0) == -1 && errno == ENOTCONN;
  }
  ok (good && seconds () - t > 1.5, "a server that never answers is left");
  end_server (pid);
  ok (EVENTUALLY (reported ("connection lost")) && errors () == 1,
      "and reported once, however often it is tried");
  nc_dev_close (dev);
}

static void
test_hostile (void)
{
  test_handshake ("silent", "4096", "a server that says nothing is given up");
  test_handshake ("garbage", "4096", "a server that says nonsense is refused");
  test_handshake ("honest", "9223372036854775808",
                  "a size above 2^63-1 is refused");

  test_reply ("honest", 0, "", "the peer's honest answer is a read");
  test_reply ("minimum-odd", 0, "", "an odd minimum block size is ignored");
  test_reply ("eio", EIO, "at offset 8192",
              "a server's error is EIO, reported with its offset");
  test_reply ("short", EIO, "at offset 8192", "half of the data is EIO");
  test_reply ("drop", ENOTCONN, "connection lost",
              "a closed connection is ENOTCONN, reported once");
  test_reply ("eshutdown", ENOTCONN, "shutting down",
              "a server that shuts down is ENOTCONN");
  test_reply ("outside", ENOTCONN, "connection lost",
              "data outside the request ends the connection");
  test_twice ();
  test_mute ();

  test_status ("honest", 1, "the peer's honest block status");
  test_status ("status-zero", 1, "an empty extent is taken as data");
  test_status ("status-long", 0, "an extent beyond the request is cut");
  test_status ("status-tiny", 0, "very many extents are taken in part");
  test_status ("status-none", 1, "no extents are taken as data");
  test_status ("status-error", 1, "an error is taken as data");
  test_status ("status-twice", 1, "a second answer is ignored");
}

/* A server that answers after its reads were given up. */
static void
test_buffers (void)
{
  pid_t pid = NBDKIT ("--filter=delay", "pattern", SIZE_ARG,
                      "delay-read=300ms");
  struct nc_dev *dev = open_started (1);
  unsigned char *buf = malloc (8 * MB);
  size_t i;

  freeze (pid);
  if (dev->ops->pread (dev, buf, 8 * MB, 0) != -1)
    ok (false, "a read from a stopped server fails");
  memset (buf, 0xaa, 8 * MB);
  kill (pid, SIGCONT);
  for (i = 0; i < 100; i++)
    nap ();
  for (i = 0; i < 8 * MB && buf[i] == 0xaa; i++)
    ;
  ok (i == 8 * MB, "nothing is written into a buffer after its read failed");
  free (buf);
  nc_dev_close (dev);
  end_server (pid);
}

int
main (void)
{
  const char *top = getenv ("top_srcdir");

  make_server_dir ();
  snprintf (peer_path, sizeof peer_path, "%s/tests/peers/nbd-peer.py",
            top ? top : ".");
  nc_report_to (sink);

  test_reads ();
  test_many ();
  test_parallel_reads ();
  test_one_connection ();
  test_full_connection ();
  test_standing_back ();
  test_block_size ();
  test_extents ();
  test_restart ();
  test_absent ();
  test_idle ();
  test_replaced ();
  test_stall ();
  test_many_stall ();
  test_stop ();
  test_command ();
  test_refused ();
  test_hostile ();
  test_buffers ();

  rmdir (dir);
  printf ("1..%u\n", n_tests);
  return n_failed > 0;
}
