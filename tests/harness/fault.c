/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Preloaded into a program, this makes what the program does to the files
 * below a directory, and to its memfds, fail when it is told to.
 *
 *   NC_FAULT_DIR=DIR NC_FAULT_CONTROL=FILE LD_PRELOAD=fault.so PROGRAM ...
 *
 * FILE holds a struct control, shared with whoever tells; it may be changed at
 * any time.  Of the operations in its mask, which are counted, those from
 * number "at" on fail, "n" of them, or of these every one of "every".  A write
 * that fails has written the sectors of its first half before, as a disk may;
 * other operations that fail have done nothing.  With error 0 a transfer is
 * cut to its first half instead, in the middle of a sector, too, and nothing
 * else fails.
 */

#include <config.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORTED __attribute__ ((__visibility__ ("default")))

/* Kinds of operations; faults.py has the same numbers. */
enum {
  FAULT_READ = 1,
  FAULT_WRITE = 2,
  FAULT_DURABLE = 4,            /* a write that is to be durable */
  FAULT_SYNC = 8,
  FAULT_ALLOCATE = 16,          /* zeroing and punching holes, too */
  FAULT_TRUNCATE = 32,
  FAULT_OPEN = 64,
  FAULT_NAME = 128,             /* giving a file its name */
  FAULT_MEMORY = 256,           /* mapping or emptying a memfd */
  FAULT_SEEK = 512,             /* asking for data and holes */
};

struct control {
  _Atomic (uint64_t) mask, at, n, every, error;
  _Atomic (uint64_t) count;     /* operations of the mask */
  _Atomic (uint64_t) failures;
  _Atomic (uint64_t) kinds;     /* of those that failed */
};

static struct control *control; /* NULL: nothing ever fails */
static char directory[PATH_MAX];
static size_t directory_len;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
start_once (void)
{
  const char *dir = getenv ("NC_FAULT_DIR");
  const char *file = getenv ("NC_FAULT_CONTROL");
  void *map = MAP_FAILED;
  int fd;

  if (dir == NULL || file == NULL)
    return;
  fd = syscall (SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC);
  if (fd >= 0)
    map = (void *) syscall (SYS_mmap, NULL, sizeof *control,
                            PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED || realpath (dir, directory) == NULL) {
    perror ("fault");
    abort ();
  }
  close (fd);
  directory_len = strlen (directory);
  control = map;
}

/* Whether an operation of KIND that is about to be made is to fail. */
static bool
hit (uint64_t kind)
{
  uint64_t number, past;

  if (!(control->mask & kind))
    return false;
  number = ++control->count;
  if (control->at == 0 || number < control->at)
    return false;
  past = number - control->at;
  if (past / control->every >= control->n || past % control->every != 0)
    return false;
  ++control->failures;
  control->kinds |= kind;
  return true;
}

static bool
is_ours (const char *path)
{
  if (strncmp (path, "/memfd:", 7) == 0)
    return true;
  return strncmp (path, directory, directory_len) == 0 &&
    (path[directory_len] == '/' || path[directory_len] == '\0');
}

/* The path behind a link of /proc. */
static bool
read_link (const char *link, char path[PATH_MAX])
{
  ssize_t n = readlink (link, path, PATH_MAX - 1);

  if (n <= 0)
    return false;
  path[n] = '\0';
  return true;
}

static bool
fd_path (int fd, char path[PATH_MAX])
{
  char link[32];

  snprintf (link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd"
            : "/proc/self/fd/%d", fd);
  return read_link (link, path);
}

/* Whether an operation of KIND on FD is to fail. */
static bool
fails (int fd, uint64_t kind)
{
  const int saved = errno;
  char path[PATH_MAX];
  bool r;

  pthread_once (&once, start_once);
  r = control && (control->mask & kind) && fd_path (fd, path) &&
    is_ours (path) && hit (kind);
  errno = saved;
  return r;
}

/* The same for PATH as seen from DIRFD. */
static bool
fails_at (int dirfd, const char *path, uint64_t kind)
{
  const int saved = errno;
  char whole[2 * PATH_MAX], dir[PATH_MAX];
  bool r = false;

  pthread_once (&once, start_once);
  if (control && path && (control->mask & kind)) {
    if (path[0] == '/')
      snprintf (whole, sizeof whole, "%s", path);
    else if (fd_path (dirfd, dir))
      snprintf (whole, sizeof whole, "%s/%s", dir, path);
    else
      whole[0] = '\0';
    r = is_ours (whole) && hit (kind);
  }
  errno = saved;
  return r;
}

static int
failed (void)
{
  errno = control->error;
  return -1;
}

/* Whether a transfer that is hit is cut, and not failed. */
static bool
is_short (void)
{
  return control->error == 0;
}

#define REAL(name) \
  static __typeof__ (name) *real_##name; \
  if (__atomic_load_n (&real_##name, __ATOMIC_RELAXED) == NULL) \
    __atomic_store_n (&real_##name, \
                      (__typeof__ (name) *) dlsym (RTLD_NEXT, #name), \
                      __ATOMIC_RELAXED)

/* Transfers. */

#define SECTOR 512              /* is written whole, or not at all */

static size_t
half (size_t count)
{
  return count / 2 + count % 2;
}

#define DEFINE_PREAD(name, type) \
  EXPORTED ssize_t \
  name (int fd, void *buf, size_t count, type offset) \
  { \
    REAL (name); \
    if (fails (fd, FAULT_READ)) { \
      if (!is_short ()) \
        return failed (); \
      count = half (count); \
    } \
    return real_##name (fd, buf, count, offset); \
  }
DEFINE_PREAD (pread, off_t)
DEFINE_PREAD (pread64, off64_t)

/* Write the first half of COUNT bytes, and say so or fail. */
static ssize_t
write_half (int fd, const void *buf, size_t count, off_t offset)
{
  const off_t end = (offset + half (count)) / SECTOR * SECTOR;

  if (is_short ())
    return syscall (SYS_pwrite64, fd, buf, half (count), offset);
  if (control->error != EINTR && end > offset &&
      syscall (SYS_pwrite64, fd, buf, end - offset, offset) == -1)
    return -1;
  return failed ();
}

/* The half of a vector: of its first part that is not empty. */
static ssize_t
write_half_v (int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
  while (iovcnt > 1 && iov->iov_len == 0) {
    ++iov;
    --iovcnt;
  }
  return write_half (fd, iov->iov_base, iov->iov_len, offset);
}

#define DEFINE_PWRITE(name, type) \
  EXPORTED ssize_t \
  name (int fd, const void *buf, size_t count, type offset) \
  { \
    REAL (name); \
    if (fails (fd, FAULT_WRITE)) \
      return write_half (fd, buf, count, offset); \
    return real_##name (fd, buf, count, offset); \
  }
DEFINE_PWRITE (pwrite, off_t)
DEFINE_PWRITE (pwrite64, off64_t)

#define DEFINE_PWRITEV(name, parameters, arguments, kind) \
  EXPORTED ssize_t \
  name parameters \
  { \
    REAL (name); \
    if (fails (fd, kind)) \
      return write_half_v (fd, iov, iovcnt, offset); \
    return real_##name arguments; \
  }
DEFINE_PWRITEV (pwritev,
                (int fd, const struct iovec *iov, int iovcnt, off_t offset),
                (fd, iov, iovcnt, offset), FAULT_WRITE)
DEFINE_PWRITEV (pwritev64,
                (int fd, const struct iovec *iov, int iovcnt, off64_t offset),
                (fd, iov, iovcnt, offset), FAULT_WRITE)
DEFINE_PWRITEV (pwritev2,
                (int fd, const struct iovec *iov, int iovcnt, off_t offset,
                 int flags),
                (fd, iov, iovcnt, offset, flags),
                flags & RWF_DSYNC ? FAULT_DURABLE : FAULT_WRITE)
DEFINE_PWRITEV (pwritev64v2,
                (int fd, const struct iovec *iov, int iovcnt, off64_t offset,
                 int flags),
                (fd, iov, iovcnt, offset, flags),
                flags & RWF_DSYNC ? FAULT_DURABLE : FAULT_WRITE)

/* What is done or not: never cut. */

#define DEFINE_WHOLE(type, name, parameters, arguments, fails) \
  EXPORTED type \
  name parameters \
  { \
    REAL (name); \
    if (fails && !is_short ()) \
      return (type) (intptr_t) failed (); \
    return real_##name arguments; \
  }

DEFINE_WHOLE (int, fdatasync, (int fd), (fd), fails (fd, FAULT_SYNC))
DEFINE_WHOLE (int, fsync, (int fd), (fd), fails (fd, FAULT_SYNC))
DEFINE_WHOLE (int, fallocate, (int fd, int mode, off_t offset, off_t count),
              (fd, mode, offset, count), fails (fd, FAULT_ALLOCATE))
DEFINE_WHOLE (int, fallocate64,
              (int fd, int mode, off64_t offset, off64_t count),
              (fd, mode, offset, count), fails (fd, FAULT_ALLOCATE))
DEFINE_WHOLE (int, ftruncate, (int fd, off_t size), (fd, size),
              fails (fd, FAULT_TRUNCATE))
DEFINE_WHOLE (int, ftruncate64, (int fd, off64_t size), (fd, size),
              fails (fd, FAULT_TRUNCATE))
DEFINE_WHOLE (int, link, (const char *from, const char *to), (from, to),
              fails_at (AT_FDCWD, to, FAULT_NAME))
DEFINE_WHOLE (int, rename, (const char *from, const char *to), (from, to),
              fails_at (AT_FDCWD, to, FAULT_NAME))
DEFINE_WHOLE (int, renameat2,
              (int from_dir, const char *from, int to_dir, const char *to,
               unsigned flags),
              (from_dir, from, to_dir, to, flags),
              fails_at (to_dir, to, FAULT_NAME))

static bool
is_question (int whence)
{
  return whence == SEEK_DATA || whence == SEEK_HOLE;
}

DEFINE_WHOLE (off_t, lseek, (int fd, off_t offset, int whence),
              (fd, offset, whence),
              is_question (whence) && fails (fd, FAULT_SEEK))
DEFINE_WHOLE (off64_t, lseek64, (int fd, off64_t offset, int whence),
              (fd, offset, whence),
              is_question (whence) && fails (fd, FAULT_SEEK))

/* Memory.  A failed mapping is MAP_FAILED, which is -1 as well. */

static bool
memory_fails (int flags, int fd)
{
  return (flags & MAP_TYPE) == MAP_SHARED && !(flags & MAP_ANONYMOUS) &&
    fails (fd, FAULT_MEMORY);
}

DEFINE_WHOLE (void *, mmap,
              (void *addr, size_t count, int prot, int flags, int fd,
               off_t offset),
              (addr, count, prot, flags, fd, offset),
              memory_fails (flags, fd))
DEFINE_WHOLE (void *, mmap64,
              (void *addr, size_t count, int prot, int flags, int fd,
               off64_t offset),
              (addr, count, prot, flags, fd, offset),
              memory_fails (flags, fd))

/* Which memory it is cannot be seen; nobody else asks for this. */
static bool
removal_fails (int advice)
{
  pthread_once (&once, start_once);
  return control && advice == MADV_REMOVE && hit (FAULT_MEMORY);
}

DEFINE_WHOLE (int, madvise, (void *addr, size_t count, int advice),
              (addr, count, advice), removal_fails (advice))

/* Opening. */

static mode_t
mode_argument (int flags, va_list ap)
{
  return flags & (O_CREAT | __O_TMPFILE) ? va_arg (ap, mode_t) : 0;
}

#define DEFINE_OPEN(name, parameters, dirfd) \
  EXPORTED int \
  name parameters \
  { \
    va_list ap; \
    mode_t mode; \
    va_start (ap, flags); \
    mode = mode_argument (flags, ap); \
    va_end (ap); \
    if (fails_at (dirfd, path, FAULT_OPEN) && !is_short ()) \
      return failed (); \
    return syscall (SYS_openat, dirfd, path, flags, mode); \
  }
DEFINE_OPEN (open, (const char *path, int flags, ...), AT_FDCWD)
DEFINE_OPEN (open64, (const char *path, int flags, ...), AT_FDCWD)
DEFINE_OPEN (openat, (int dir, const char *path, int flags, ...), dir)
DEFINE_OPEN (openat64, (int dir, const char *path, int flags, ...), dir)

EXPORTED long
syscall (long number, ...)
{
  long a[6];
  va_list ap;
  REAL (syscall);

  va_start (ap, number);
  for (int i = 0; i < 6; ++i)
    a[i] = va_arg (ap, long);
  va_end (ap);
  if (number == SYS_openat2 &&
      fails_at (a[0], (const char *) a[1], FAULT_OPEN) && !is_short ())
    return failed ();
  return real_syscall (number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
