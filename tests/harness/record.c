/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Preloaded into a program, this records all that the program does to the
 * files below a directory, so that powerloss can rebuild what a loss of power
 * would have left of them.
 *
 *   NC_RECORD_DIR=DIR NC_RECORD_LOG=FILE LD_PRELOAD=record.so PROGRAM ...
 *
 * Each call is recorded before it is made, with its data, and its return is
 * recorded as well (log.h).  What cannot be recorded, such as a writable
 * shared mapping of a file in DIR, stops the program: a log with a hole would
 * prove nothing.  Which file a descriptor stands for is asked of the kernel
 * each time, so inherited and passed descriptors are seen too.
 */

#include <config.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "log.h"

#define EXPORTED __attribute__ ((__visibility__ ("default")))

static struct log the_log;
static char directory[PATH_MAX];        /* without a slash at the end */
static size_t directory_len;
static bool enabled;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void __attribute__ ((__noreturn__))
give_up (const char *what)
{
  fprintf (stderr, "record: %s: cannot be recorded\n", what);
  abort ();
}

static void
start_once (void)
{
  const char *dir = getenv ("NC_RECORD_DIR");
  const char *file = getenv ("NC_RECORD_LOG");

  if (dir == NULL || file == NULL)
    return;
  if (realpath (dir, directory) == NULL || log_open (&the_log, file) == -1) {
    perror ("record");
    abort ();
  }
  directory_len = strlen (directory);
  enabled = true;
}

static bool
recording (void)
{
  const int saved = errno;

  pthread_once (&once, start_once);
  errno = saved;
  return enabled;
}

/* The part of PATH below the directory, or NULL if it is not there. */
static const char *
below (const char *path)
{
  if (strncmp (path, directory, directory_len) != 0)
    return NULL;
  if (path[directory_len] == '\0')
    return "";
  return path[directory_len] == '/' ? path + directory_len + 1 : NULL;
}

/* Is FD a file, a block device or a directory below the directory?  Then set
 * *INO. */
static bool
tracked (int fd, uint64_t *ino)
{
  const int saved = errno;
  char link[32], path[PATH_MAX];
  struct stat st;
  ssize_t n;
  bool r = false;

  if (recording ()) {
    snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink (link, path, sizeof path - 1);
    if (n > 0) {
      path[n] = '\0';
      r = below (path) != NULL && fstat (fd, &st) == 0 &&
        (S_ISREG (st.st_mode) || S_ISBLK (st.st_mode) ||
         S_ISDIR (st.st_mode));
      if (r)
        *ino = st.st_ino;
    }
  }
  errno = saved;
  return r;
}

/* PATH seen from DIRFD as a path below the directory, in OUT.  The last part
 * need not exist and is not followed. */
static bool
locate (int dirfd, const char *path, char out[PATH_MAX])
{
  const int saved = errno;
  char whole[2 * PATH_MAX], real[PATH_MAX], cwd[PATH_MAX];
  char *slash;
  const char *rel;
  bool r = false;

  if (path == NULL || !recording ())
    return false;
  if (path[0] == '/')
    snprintf (whole, sizeof whole, "%s", path);
  else {
    char link[32];
    ssize_t n;

    if (dirfd == AT_FDCWD)
      strcpy (link, "/proc/self/cwd");
    else
      snprintf (link, sizeof link, "/proc/self/fd/%d", dirfd);
    n = readlink (link, cwd, sizeof cwd - 1);
    if (n <= 0)
      goto out;
    cwd[n] = '\0';
    snprintf (whole, sizeof whole, "%s/%s", cwd, path);
  }
  while ((slash = strrchr (whole, '/')) != NULL && slash[1] == '\0' &&
         slash != whole)
    *slash = '\0';
  if (slash == NULL)
    goto out;
  *slash = '\0';
  if (realpath (whole[0] ? whole : "/", real) == NULL)
    goto out;
  rel = below (real);
  if (rel == NULL)
    goto out;
  if ((size_t) snprintf (out, PATH_MAX, "%s%s%s", rel, rel[0] ? "/" : "",
                         slash + 1) >= PATH_MAX)
    give_up ("a path this long");
  r = true;
out:
  errno = saved;
  return r;
}

static uint64_t
begin (uint32_t type, uint32_t flags, uint64_t ino, uint64_t offset,
       uint64_t count, const void *payload, size_t n)
{
  struct log_record record = {
    .type = type, .flags = flags, .ino = ino, .offset = offset,
    .count = count,
  };
  const int saved = errno;

  record.seq = log_next (&the_log);
  log_append (&the_log, &record, payload, n);
  errno = saved;
  return record.seq;
}

static void
end (uint64_t seq, int64_t result)
{
  struct log_record record = { .type = LOG_END, .ref = seq };
  const int saved = errno;

  record.result = result == -1 ? -saved : result;
  record.seq = log_next (&the_log);
  log_append (&the_log, &record, NULL, 0);
  errno = saved;
}

/* A change of names that was made after number BEFORE. */
static void
named (uint32_t type, uint64_t before, uint64_t ino, const char *path,
       const char *path2)
{
  struct log_record record = { .type = type, .ref = before, .ino = ino };
  char payload[2 * PATH_MAX];
  const size_t n = strlen (path) + 1;
  size_t n2 = 0;
  const int saved = errno;

  memcpy (payload, path, n);
  if (path2 != NULL) {
    n2 = strlen (path2) + 1;
    memcpy (payload + n, path2, n2);
  }
  record.seq = log_next (&the_log);
  log_append (&the_log, &record, payload, n + n2);
  errno = saved;
}

/* The function that this library hides. */
#define REAL(name) \
  static __typeof__ (name) *real_##name; \
  if (__atomic_load_n (&real_##name, __ATOMIC_RELAXED) == NULL) \
    __atomic_store_n (&real_##name, \
                      (__typeof__ (name) *) dlsym (RTLD_NEXT, #name), \
                      __ATOMIC_RELAXED)

/*----------------------------------------------------------------------
 * Opening */

static int
open_tracked (int dirfd, const char *path, int flags, mode_t mode)
{
  char rel[PATH_MAX];
  struct stat st;
  uint64_t before, ino;
  int fd;

  if (!(flags & (O_CREAT | O_TRUNC | __O_TMPFILE)) || !recording ())
    return syscall (SYS_openat, dirfd, path, flags, mode);

  if ((flags & O_TMPFILE) == O_TMPFILE) {
    before = log_next (&the_log);
    fd = syscall (SYS_openat, dirfd, path, flags, mode);
    if (fd != -1 && tracked (fd, &ino))
      named (LOG_CREATE, before, ino, "", NULL);
    return fd;
  }
  if (!locate (dirfd, path, rel))
    return syscall (SYS_openat, dirfd, path, flags, mode);
  for (;;) {
    before = log_next (&the_log);
    if (!(flags & O_EXCL)) {
      const int plain = flags & ~(O_CREAT | O_TRUNC);

      fd = syscall (SYS_openat, dirfd, path, plain, mode);
      if (fd != -1) {
        if ((flags & O_TRUNC) && tracked (fd, &ino)) {
          before = begin (LOG_TRUNCATE, 0, ino, 0, 0, NULL, 0);
          end (before, syscall (SYS_ftruncate, fd, 0));
        }
        return fd;
      }
      if (errno != ENOENT || !(flags & O_CREAT))
        return -1;
    }
    fd = syscall (SYS_openat, dirfd, path, flags | O_EXCL, mode);
    if (fd != -1) {
      if (fstat (fd, &st) == 0 && S_ISREG (st.st_mode))
        named (LOG_CREATE, before, st.st_ino, rel, NULL);
      return fd;
    }
    if (errno != EEXIST || (flags & O_EXCL))
      return -1;
  }
}

static mode_t
mode_argument (int flags, va_list ap)
{
  return flags & (O_CREAT | __O_TMPFILE) ? va_arg (ap, mode_t) : 0;
}

#define DEFINE_OPEN(name) \
  EXPORTED int \
  name (const char *path, int flags, ...) \
  { \
    va_list ap; \
    mode_t mode; \
    va_start (ap, flags); \
    mode = mode_argument (flags, ap); \
    va_end (ap); \
    return open_tracked (AT_FDCWD, path, flags, mode); \
  }
DEFINE_OPEN (open)
DEFINE_OPEN (open64)

#define DEFINE_OPENAT(name) \
  EXPORTED int \
  name (int dirfd, const char *path, int flags, ...) \
  { \
    va_list ap; \
    mode_t mode; \
    va_start (ap, flags); \
    mode = mode_argument (flags, ap); \
    va_end (ap); \
    return open_tracked (dirfd, path, flags, mode); \
  }
DEFINE_OPENAT (openat)
DEFINE_OPENAT (openat64)

#define DEFINE_CREAT(name) \
  EXPORTED int \
  name (const char *path, mode_t mode) \
  { \
    return open_tracked (AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); \
  }
DEFINE_CREAT (creat)
DEFINE_CREAT (creat64)

#define DEFINE_MKSTEMP(name, parameters, arguments) \
  EXPORTED int \
  name parameters \
  { \
    char rel[PATH_MAX]; \
    struct stat st; \
    uint64_t before = recording () ? log_next (&the_log) : 0; \
    int fd; \
    REAL (name); \
    fd = real_##name arguments; \
    if (fd != -1 && locate (AT_FDCWD, template, rel) && \
        fstat (fd, &st) == 0) \
      named (LOG_CREATE, before, st.st_ino, rel, NULL); \
    return fd; \
  }
DEFINE_MKSTEMP (mkstemp, (char *template), (template))
DEFINE_MKSTEMP (mkostemp, (char *template, int flags), (template, flags))

/*----------------------------------------------------------------------
 * Data */

/* Record IOV as one write.  offset -1: where the descriptor stands. */
static uint64_t
begin_write (int fd, uint64_t ino, const struct iovec *iov, int iovcnt,
             off_t offset, bool dsync)
{
  const int fl = fcntl (fd, F_GETFL);
  size_t total = 0, at = 0;
  char *joined;
  uint64_t seq;
  struct stat st;
  int i;

  if (fl != -1 && (fl & (O_DSYNC | O_SYNC)))
    dsync = true;
  if (offset == -1) {
    if (fl != -1 && (fl & O_APPEND) && fstat (fd, &st) == 0)
      offset = st.st_size;
    else
      offset = lseek (fd, 0, SEEK_CUR);
  }
  for (i = 0; i < iovcnt; i++)
    total += iov[i].iov_len;
  if (iovcnt == 1)
    return begin (LOG_WRITE, dsync ? LOG_DSYNC : 0, ino, offset, total,
                  iov[0].iov_base, total);
  joined = malloc (total + 1);
  if (joined == NULL)
    give_up ("a write this large");
  for (i = 0; i < iovcnt; i++) {
    memcpy (joined + at, iov[i].iov_base, iov[i].iov_len);
    at += iov[i].iov_len;
  }
  seq = begin (LOG_WRITE, dsync ? LOG_DSYNC : 0, ino, offset, total, joined,
               total);
  free (joined);
  return seq;
}

/* Define a writing function: PARAMETERS and ARGUMENTS in parentheses, and
 * the parts of the record. */
#define DEFINE_WRITE(name, parameters, arguments, vec, veccnt, at, dsync) \
  EXPORTED ssize_t \
  name parameters \
  { \
    uint64_t ino, seq; \
    ssize_t r; \
    REAL (name); \
    if (!tracked (fd, &ino)) \
      return real_##name arguments; \
    seq = begin_write (fd, ino, vec, veccnt, at, dsync); \
    r = real_##name arguments; \
    end (seq, r); \
    return r; \
  }
#define ONE_PIECE (&(struct iovec) { (void *) buf, count })

DEFINE_WRITE (write, (int fd, const void *buf, size_t count),
              (fd, buf, count), ONE_PIECE, 1, -1, false)
DEFINE_WRITE (pwrite, (int fd, const void *buf, size_t count, off_t offset),
              (fd, buf, count, offset), ONE_PIECE, 1, offset, false)
DEFINE_WRITE (pwrite64,
              (int fd, const void *buf, size_t count, off64_t offset),
              (fd, buf, count, offset), ONE_PIECE, 1, offset, false)
DEFINE_WRITE (writev, (int fd, const struct iovec *iov, int iovcnt),
              (fd, iov, iovcnt), iov, iovcnt, -1, false)
DEFINE_WRITE (pwritev,
              (int fd, const struct iovec *iov, int iovcnt, off_t offset),
              (fd, iov, iovcnt, offset), iov, iovcnt, offset, false)
DEFINE_WRITE (pwritev64,
              (int fd, const struct iovec *iov, int iovcnt, off64_t offset),
              (fd, iov, iovcnt, offset), iov, iovcnt, offset, false)
DEFINE_WRITE (pwritev2,
              (int fd, const struct iovec *iov, int iovcnt, off_t offset,
               int flags),
              (fd, iov, iovcnt, offset, flags), iov, iovcnt, offset,
              flags & (RWF_DSYNC | RWF_SYNC))
DEFINE_WRITE (pwritev64v2,
              (int fd, const struct iovec *iov, int iovcnt, off64_t offset,
               int flags),
              (fd, iov, iovcnt, offset, flags), iov, iovcnt, offset,
              flags & (RWF_DSYNC | RWF_SYNC))

static uint64_t
begin_fallocate (uint64_t ino, int mode, off_t offset, off_t count)
{
  const uint32_t flags = mode & FALLOC_FL_KEEP_SIZE ? LOG_KEEP_SIZE : 0;

  switch (mode & ~FALLOC_FL_KEEP_SIZE) {
  case 0:
    return begin (LOG_ALLOCATE, flags, ino, offset, count, NULL, 0);
  case FALLOC_FL_PUNCH_HOLE:
    return begin (LOG_PUNCH, LOG_KEEP_SIZE, ino, offset, count, NULL, 0);
  case FALLOC_FL_ZERO_RANGE:
    return begin (LOG_ZERO_RANGE, flags, ino, offset, count, NULL, 0);
  default:
    give_up ("this mode of fallocate");
  }
}

#define DEFINE_FALLOCATE(name, parameters, arguments, mode, failed) \
  EXPORTED int \
  name parameters \
  { \
    uint64_t ino, seq; \
    int r; \
    REAL (name); \
    if (!tracked (fd, &ino)) \
      return real_##name arguments; \
    seq = begin_fallocate (ino, mode, offset, len); \
    r = real_##name arguments; \
    end (seq, failed ? -1 : 0); \
    return r; \
  }
DEFINE_FALLOCATE (fallocate, (int fd, int mode, off_t offset, off_t len),
                  (fd, mode, offset, len), mode, r == -1)
DEFINE_FALLOCATE (fallocate64,
                  (int fd, int mode, off64_t offset, off64_t len),
                  (fd, mode, offset, len), mode, r == -1)
DEFINE_FALLOCATE (posix_fallocate, (int fd, off_t offset, off_t len),
                  (fd, offset, len), 0, r != 0)
DEFINE_FALLOCATE (posix_fallocate64, (int fd, off64_t offset, off64_t len),
                  (fd, offset, len), 0, r != 0)

#define DEFINE_FTRUNCATE(name, type) \
  EXPORTED int \
  name (int fd, type size) \
  { \
    uint64_t ino, seq; \
    int r; \
    if (!tracked (fd, &ino)) \
      return syscall (SYS_ftruncate, fd, size); \
    seq = begin (LOG_TRUNCATE, 0, ino, 0, size, NULL, 0); \
    r = syscall (SYS_ftruncate, fd, size); \
    end (seq, r); \
    return r; \
  }
DEFINE_FTRUNCATE (ftruncate, off_t)
DEFINE_FTRUNCATE (ftruncate64, off64_t)

#define DEFINE_TRUNCATE(name, type) \
  EXPORTED int \
  name (const char *path, type size) \
  { \
    char rel[PATH_MAX]; \
    struct stat st; \
    uint64_t seq; \
    int r; \
    if (!locate (AT_FDCWD, path, rel) || stat (path, &st) == -1) \
      return syscall (SYS_truncate, path, size); \
    seq = begin (LOG_TRUNCATE, 0, st.st_ino, 0, size, NULL, 0); \
    r = syscall (SYS_truncate, path, size); \
    end (seq, r); \
    return r; \
  }
DEFINE_TRUNCATE (truncate, off_t)
DEFINE_TRUNCATE (truncate64, off64_t)

/* Record a copy as a write of the data that is about to be copied. */
static uint64_t
begin_copy (int in, off_t from, uint64_t ino, off_t to, size_t count)
{
  char *buf = malloc (count + 1);
  size_t done = 0;
  uint64_t seq;

  if (buf == NULL)
    give_up ("a copy this large");
  while (done < count) {
    ssize_t r = pread (in, buf + done, count - done, from + done);

    if (r <= 0)
      break;
    done += r;
  }
  seq = begin (LOG_WRITE, 0, ino, to, done, buf, done);
  free (buf);
  return seq;
}

#define DEFINE_COPY_FILE_RANGE(name, type) \
  EXPORTED ssize_t \
  name (int in, type *from, int out, type *to, size_t count, \
        unsigned flags) \
  { \
    uint64_t ino, seq; \
    ssize_t r; \
    REAL (name); \
    if (!tracked (out, &ino)) \
      return real_##name (in, from, out, to, count, flags); \
    seq = begin_copy (in, from ? *from : lseek (in, 0, SEEK_CUR), ino, \
                      to ? *to : lseek (out, 0, SEEK_CUR), count); \
    r = real_##name (in, from, out, to, count, flags); \
    end (seq, r); \
    return r; \
  }
DEFINE_COPY_FILE_RANGE (copy_file_range, off64_t)

#define DEFINE_SENDFILE(name, type) \
  EXPORTED ssize_t \
  name (int out, int in, type *from, size_t count) \
  { \
    uint64_t ino; \
    REAL (name); \
    if (tracked (out, &ino)) \
      give_up ("sendfile to a file"); \
    return real_##name (out, in, from, count); \
  }
DEFINE_SENDFILE (sendfile, off_t)
DEFINE_SENDFILE (sendfile64, off64_t)

EXPORTED ssize_t
splice (int in, off64_t *from, int out, off64_t *to, size_t count,
        unsigned flags)
{
  uint64_t ino;
  REAL (splice);

  if (tracked (out, &ino))
    give_up ("splice to a file");
  return real_splice (in, from, out, to, count, flags);
}

EXPORTED int
ioctl (int fd, unsigned long request, ...)
{
  va_list ap;
  void *arg;
  uint64_t ino, seq;
  struct stat st;
  int r;

  va_start (ap, request);
  arg = va_arg (ap, void *);
  va_end (ap);
  if (request == FICLONERANGE || request == FICLONE) {
    if (tracked (fd, &ino)) {
      struct file_clone_range whole = { .src_fd = (int) (intptr_t) arg };
      const struct file_clone_range *range =
        request == FICLONE ? &whole : arg;
      uint64_t count = range->src_length;

      if (count == 0 && fstat (range->src_fd, &st) == 0)
        count = st.st_size - range->src_offset;
      seq = begin_copy (range->src_fd, range->src_offset, ino,
                        range->dest_offset, count);
      r = syscall (SYS_ioctl, fd, request, arg);
      end (seq, r);
      return r;
    }
  }
  return syscall (SYS_ioctl, fd, request, arg);
}

#define DEFINE_MMAP(name, type) \
  EXPORTED void * \
  name (void *addr, size_t len, int prot, int flags, int fd, type offset) \
  { \
    uint64_t ino; \
    if ((flags & MAP_TYPE) != MAP_PRIVATE && (prot & PROT_WRITE) && \
        !(flags & MAP_ANONYMOUS) && tracked (fd, &ino)) \
      give_up ("a writable shared mapping"); \
    return (void *) syscall (SYS_mmap, addr, len, prot, flags, fd, offset); \
  }
DEFINE_MMAP (mmap, off_t)
DEFINE_MMAP (mmap64, off64_t)

/*----------------------------------------------------------------------
 * Making durable */

#define DEFINE_SYNC(name, number) \
  EXPORTED int \
  name (int fd) \
  { \
    uint64_t ino, seq; \
    int r; \
    if (!tracked (fd, &ino)) \
      return syscall (number, fd); \
    seq = begin (LOG_SYNC, 0, ino, 0, 0, NULL, 0); \
    r = syscall (number, fd); \
    end (seq, r); \
    return r; \
  }
DEFINE_SYNC (fsync, SYS_fsync)
DEFINE_SYNC (fdatasync, SYS_fdatasync)

EXPORTED int
syncfs (int fd)
{
  uint64_t seq;
  int r;

  if (!recording ())
    return syscall (SYS_syncfs, fd);
  seq = begin (LOG_SYNC_ALL, 0, 0, 0, 0, NULL, 0);
  r = syscall (SYS_syncfs, fd);
  end (seq, r);
  return r;
}

EXPORTED void
sync (void)
{
  uint64_t seq;

  if (!recording ()) {
    syscall (SYS_sync);
    return;
  }
  seq = begin (LOG_SYNC_ALL, 0, 0, 0, 0, NULL, 0);
  syscall (SYS_sync);
  end (seq, 0);
}

/*----------------------------------------------------------------------
 * Names */

static uint64_t
ino_of (int dirfd, const char *path)
{
  struct stat st;
  const int saved = errno;
  uint64_t ino = 0;

  if (fstatat (dirfd, path, &st, AT_SYMLINK_NOFOLLOW) == 0)
    ino = st.st_ino;
  errno = saved;
  return ino;
}

static int
rename_tracked (int fd1, const char *path1, int fd2, const char *path2,
                unsigned flags)
{
  char old[PATH_MAX], new[PATH_MAX];
  bool in1, in2;
  uint64_t before, ino;
  int r;

  in1 = locate (fd1, path1, old);
  in2 = locate (fd2, path2, new);
  if (!in1 && !in2)
    return syscall (SYS_renameat2, fd1, path1, fd2, path2, flags);
  if (in1 != in2 || (flags & ~RENAME_NOREPLACE))
    give_up ("this kind of rename");
  ino = ino_of (fd1, path1);
  before = log_next (&the_log);
  r = syscall (SYS_renameat2, fd1, path1, fd2, path2, flags);
  if (r == 0)
    named (LOG_RENAME, before, ino, old, new);
  return r;
}

EXPORTED int
rename (const char *old, const char *new)
{
  return rename_tracked (AT_FDCWD, old, AT_FDCWD, new, 0);
}

EXPORTED int
renameat (int fd1, const char *old, int fd2, const char *new)
{
  return rename_tracked (fd1, old, fd2, new, 0);
}

EXPORTED int
renameat2 (int fd1, const char *old, int fd2, const char *new,
           unsigned flags)
{
  return rename_tracked (fd1, old, fd2, new, flags);
}

static int
link_tracked (int fd1, const char *old, int fd2, const char *new, int flags)
{
  char rel[PATH_MAX];
  uint64_t before;
  int r;

  if (!locate (fd2, new, rel))
    return syscall (SYS_linkat, fd1, old, fd2, new, flags);
  before = log_next (&the_log);
  r = syscall (SYS_linkat, fd1, old, fd2, new, flags);
  if (r == 0)
    named (LOG_LINK, before, ino_of (fd2, new), rel, NULL);
  return r;
}

EXPORTED int
link (const char *old, const char *new)
{
  return link_tracked (AT_FDCWD, old, AT_FDCWD, new, 0);
}

EXPORTED int
linkat (int fd1, const char *old, int fd2, const char *new, int flags)
{
  return link_tracked (fd1, old, fd2, new, flags);
}

static int
unlink_tracked (int fd, const char *path, int flags)
{
  char rel[PATH_MAX];
  uint64_t before;
  int r;

  if (!locate (fd, path, rel))
    return syscall (SYS_unlinkat, fd, path, flags);
  before = log_next (&the_log);
  r = syscall (SYS_unlinkat, fd, path, flags);
  if (r == 0)
    named (flags & AT_REMOVEDIR ? LOG_RMDIR : LOG_UNLINK, before, 0, rel,
           NULL);
  return r;
}

EXPORTED int
unlink (const char *path)
{
  return unlink_tracked (AT_FDCWD, path, 0);
}

EXPORTED int
unlinkat (int fd, const char *path, int flags)
{
  return unlink_tracked (fd, path, flags);
}

EXPORTED int
rmdir (const char *path)
{
  return unlink_tracked (AT_FDCWD, path, AT_REMOVEDIR);
}

EXPORTED int
remove (const char *path)
{
  if (unlink_tracked (AT_FDCWD, path, 0) == 0)
    return 0;
  return errno == EISDIR ? unlink_tracked (AT_FDCWD, path, AT_REMOVEDIR) : -1;
}

static int
mkdir_tracked (int fd, const char *path, mode_t mode)
{
  char rel[PATH_MAX];
  uint64_t before;
  int r;

  if (!locate (fd, path, rel))
    return syscall (SYS_mkdirat, fd, path, mode);
  before = log_next (&the_log);
  r = syscall (SYS_mkdirat, fd, path, mode);
  if (r == 0)
    named (LOG_MKDIR, before, ino_of (fd, path), rel, NULL);
  return r;
}

EXPORTED int
mkdir (const char *path, mode_t mode)
{
  return mkdir_tracked (AT_FDCWD, path, mode);
}

EXPORTED int
mkdirat (int fd, const char *path, mode_t mode)
{
  return mkdir_tracked (fd, path, mode);
}
