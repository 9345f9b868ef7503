/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Files and block devices, through the page cache.
 *
 * Locks are open file description locks on the bytes that QEMU's raw driver
 * uses, so that both respect each other: byte 100+P says "I use permission
 * P", byte 200+P "I do not share permission P".  Both are taken as read
 * locks; a conflict is found by asking whether somebody holds the opposite
 * byte.  Taking first and asking later means that of two who come at once
 * both may fail, but never both succeed.  The kernel releases them when the
 * last copy of the file descriptor is gone, so a crash leaves none.
 */

#include <config.h>

#include "dev/dev.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "dev/holder.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/standback.h"

/* Who stands back writes so many bytes at a time.  Where the kernel does not
 * preempt itself, a guest's thread waits until the call of another one returns,
 * and copying 64 KiB into the page cache may take as long as its whole request.
 */
#define STEP_BACK (UINT64_C (16) << 10)

enum op { OP_READ, OP_WRITE, OP_WRITE_DATA, OP_ZERO, N_OPS };

struct file {
  struct nc_dev dev;
  int fd;
  bool block_device;
  dev_t st_dev;
  ino_t st_ino;
  struct nc_repeat failures[N_OPS];

  /* The system tells of lost writes once: to one of two syncs that run at a
   * time.  So there is one at a time, and who arrives meanwhile shares the
   * next. */
  pthread_mutex_t sync_lock;
  pthread_cond_t sync_ended;    /* or a write-out has */
  /* Guarded by sync_lock: */
  bool syncing;
  bool sync_failed;             /* for good */
  uint64_t syncs_started, syncs_ended;
  uint64_t write_outs_started, write_outs_ended;        /* one at a time */
};

static inline struct file *
file_of (const struct nc_dev *dev)
{
  return (struct file *) dev;
}

/* Report a failed operation.  ENOTCONN, which a FUSE mount without its
 * daemon gives, means something else to our callers. */
static int
failed (struct nc_dev *dev, enum op op, uint64_t offset)
{
  static const char *const what[] = {
    [OP_READ] = "read", [OP_WRITE] = "write", [OP_ZERO] = "zeroing",
    [OP_WRITE_DATA] = "write",
  };
  const bool full = errno == ENOSPC || errno == EDQUOT;
  /* Full is full everywhere; else a place is as large as this. */
  const unsigned cause = full ? (unsigned) errno
    : (unsigned) ((offset >> 20) * 251 + errno) & 0xffff;
  char more[NC_REPEAT_TEXT] = "";

  if (op == OP_READ)
    dev->read_failed = true;
  /* What is not of a request comes once. */
  if (op == OP_WRITE ||
      nc_repeat_report (&file_of (dev)->failures[op], cause, more))
    nc_error ("%s: %s at offset %" PRIu64 " of the file: %m%s%s", dev->name,
              what[op], offset,
              full ? "; make room: until then, what needs more room fails"
              : "", more);
  else
    nc_error_untold ("%s: %s at offset %" PRIu64 " of the file: %m",
                     dev->name, what[op], offset);
  if (errno == ENOTCONN)
    errno = EIO;
  return -1;
}

static void
file_close (struct nc_dev *dev)
{
  struct file *f = file_of (dev);

  if (f->fd >= 0)
    close (f->fd);
  pthread_mutex_destroy (&f->sync_lock);
  pthread_cond_destroy (&f->sync_ended);
  nc_dev_fini (dev);
  free (f);
}

static int
file_pread (struct nc_dev *dev, void *buf, size_t count, uint64_t offset)
{
  const int fd = file_of (dev)->fd;
  char *p = buf;

  while (count > 0) {
    ssize_t r = pread (fd, p, count, offset);

    if (r == -1) {
      if (errno == EINTR)
        continue;
      return failed (dev, OP_READ, offset);
    }
    if (r == 0) {               /* past the end */
      memset (p, 0, count);
      return 0;
    }
    p += r;
    count -= r;
    offset += r;
  }
  return 0;
}

/* Step IOV over the first N bytes. */
static void
iov_advance (struct iovec **iov, int *niov, size_t n)
{
  while (*niov > 0 && n >= (*iov)->iov_len) {
    n -= (*iov)->iov_len;
    ++*iov;
    --*niov;
  }
  if (*niov > 0) {
    (*iov)->iov_base = (char *) (*iov)->iov_base + n;
    (*iov)->iov_len -= n;
  }
}

static int
write_all (struct nc_dev *dev, struct iovec *iov, int niov, uint64_t offset,
           int flags, enum op op)
{
  const size_t most = nc_stands_back () ? STEP_BACK : SIZE_MAX;
  const int fd = file_of (dev)->fd;

  iov_advance (&iov, &niov, 0);         /* drops empty leading parts */
  while (niov > 0) {
    ssize_t r;

    if (niov == 1 && flags == 0)
      r = pwrite (fd, iov->iov_base, nc_min64 (iov->iov_len, most), offset);
    else
      r = pwritev2 (fd, iov, niov, offset, flags);
    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      if (r == 0)
        errno = EIO;
      if (flags && errno == EOPNOTSUPP)
        return -1;
      return failed (dev, op, offset);
    }
    offset += r;
    iov_advance (&iov, &niov, r);
  }
  return 0;
}

static int
file_pwritev (struct nc_dev *dev, struct iovec *iov, int niov,
              uint64_t offset)
{
  return write_all (dev, iov, niov, offset, 0, OP_WRITE_DATA);
}

static int
file_pwrite (struct nc_dev *dev, const void *buf, size_t count,
             uint64_t offset)
{
  struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  return write_all (dev, &iov, 1, offset, 0, OP_WRITE);
}

/* Be the only one who syncs, from here to end_sync_lock, without the lock. */
static void
begin_sync_unlock (struct file *f)
{
  while (f->syncing)
    pthread_cond_wait (&f->sync_ended, &f->sync_lock);
  f->syncing = true;
  pthread_mutex_unlock (&f->sync_lock);
}

/* Take the lock again.  What was being written out meanwhile may be what was
 * to be synced, and then fails for both. */
static void
end_sync_lock (struct file *f, bool failure)
{
  uint64_t begun;

  pthread_mutex_lock (&f->sync_lock);
  begun = f->write_outs_started;
  while (f->write_outs_ended < begun)
    pthread_cond_wait (&f->sync_ended, &f->sync_lock);
  f->syncing = false;
  f->sync_failed |= failure;
  pthread_cond_broadcast (&f->sync_ended);
}

static int
file_sync (struct nc_dev *dev)
{
  struct file *f = file_of (dev);
  uint64_t mine;
  int r;

  NC_LOCKED (&f->sync_lock);
  mine = f->syncs_started + 1;
  while (f->syncs_ended < mine && !f->sync_failed) {
    if (f->syncing) {
      pthread_cond_wait (&f->sync_ended, &f->sync_lock);
      continue;
    }
    f->syncs_started++;
    begin_sync_unlock (f);
    r = fdatasync (f->fd);
    /* A file system that cannot be written has nothing to sync. */
    if (r == -1 && !dev->writable && (errno == EINVAL || errno == EROFS))
      r = 0;
    if (r == -1)
      nc_error ("%s: sync: %m", dev->name);
    end_sync_lock (f, r == -1);
    f->syncs_ended = f->syncs_started;
  }
  if (!f->sync_failed)
    return 0;
  errno = EIO;
  return -1;
}

/* Whether such files can be written out at all: with no flags nothing is done.
 */
static bool
can_write_out (const struct file *f)
{
  return sync_file_range (f->fd, 0, 0, 0) == 0;
}

/* It may run beside a sync: not waiting for what is under way does not use up
 * what an fdatasync is to be told.  But of a failure here it need not be told,
 * so it waits for us. */
static void
file_write_out (struct nc_dev *dev)
{
  struct file *f = file_of (dev);
  bool failure = false;
  int r, err;

  NC_LOCKED (&f->sync_lock);
  while (f->write_outs_ended < f->write_outs_started)
    pthread_cond_wait (&f->sync_ended, &f->sync_lock);
  f->write_outs_started++;
  pthread_mutex_unlock (&f->sync_lock);
  do
    r = sync_file_range (f->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
  while (r == -1 && errno == EINTR);
  err = errno;
  if (r == -1 && can_write_out (f)) {
    failure = true;
    errno = err;
    nc_error ("%s: writing out: %m", dev->name);
  }
  pthread_mutex_lock (&f->sync_lock);
  f->write_outs_ended++;
  f->sync_failed |= failure;
  pthread_cond_broadcast (&f->sync_ended);
}

static void
file_evict (struct nc_dev *dev, uint64_t offset, uint64_t count)
{
  posix_fadvise (file_of (dev)->fd, offset, count, POSIX_FADV_DONTNEED);
}

/* RWF_DSYNC.  Returns 1 where there is none. */
static int
write_dsync (struct file *f, struct iovec *iov, uint64_t offset)
{
  int r, err;

  NC_LOCKED (&f->sync_lock);
  begin_sync_unlock (f);
  r = write_all (&f->dev, iov, 1, offset, RWF_DSYNC, OP_WRITE);
  err = errno;
  if (r == -1 && err == EOPNOTSUPP)
    r = 1;
  end_sync_lock (f, r == -1);
  if (r == 0 && f->sync_failed) {
    err = EIO;
    r = -1;
  }
  errno = err;
  return r;
}

static int
file_pwrite_durable (struct nc_dev *dev, const void *buf, size_t count,
                     uint64_t offset)
{
  struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };
  int r = write_dsync (file_of (dev), &iov, offset);

  if (r != 1)
    return r;
  if (file_pwrite (dev, buf, count, offset) == -1)
    return -1;
  return file_sync (dev);
}

/* Without fallocate: write zeros. */
static int
write_zeros (struct nc_dev *dev, uint64_t offset, uint64_t count)
{
  static const char zeros[64 * 1024];

  while (count > 0) {
    size_t n = nc_min64 (count, sizeof zeros);

    if (file_pwrite (dev, zeros, n, offset) == -1)
      return -1;
    offset += n;
    count -= n;
  }
  return 0;
}

static bool
is_unsupported (int err)
{
  return err == EOPNOTSUPP || err == ENOSYS || err == ENODEV ||
    err == EINVAL;
}

static int
file_zero (struct nc_dev *dev, uint64_t offset, uint64_t count,
           unsigned flags)
{
  static const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  static const int zero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
  const int modes[] = { flags & NC_ZERO_MAY_TRIM ? punch : zero, zero };

  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; ++i) {
    int r;

    do
      r = fallocate (file_of (dev)->fd, modes[i], offset, count);
    while (r == -1 && errno == EINTR);
    if (r == 0)
      return 0;
    if (!is_unsupported (errno))
      return failed (dev, OP_ZERO, offset);
  }
  if (flags & NC_ZERO_FAST) {
    errno = ENOTSUP;
    return -1;
  }
  return write_zeros (dev, offset, count);
}

static int
file_extents (struct nc_dev *dev, struct nc_extents *extents, uint64_t end,
              uint64_t shift)
{
  const int fd = file_of (dev)->fd;
  const unsigned hole = NC_EXTENT_HOLE | NC_EXTENT_ZERO;

  while (nc_extents_next (extents) < end && !nc_extents_full (extents)) {
    uint64_t at = nc_extents_next (extents);
    off_t data = lseek (fd, at + shift, SEEK_DATA);
    off_t next;

    if (data == -1 && errno == ENXIO)   /* a hole up to the end */
      return nc_extents_append (extents, end - at, hole);
    if (data == -1)                     /* the system cannot tell */
      return nc_extents_append (extents, end - at, 0);
    if ((uint64_t) data - shift > at) {
      if (nc_extents_append (extents,
                             nc_min64 (data - shift, end) - at, hole) == -1)
        return -1;
      continue;
    }
    next = lseek (fd, data, SEEK_HOLE);
    if (next == -1 || (uint64_t) next - shift <= at)
      return nc_extents_append (extents, end - at, 0);
    if (nc_extents_append (extents, nc_min64 (next - shift, end) - at,
                           0) == -1)
      return -1;
  }
  return 0;
}

static int
file_measure (struct nc_dev *dev, uint64_t *size)
{
  struct file *f = file_of (dev);
  struct stat st;

  if (f->block_device ? ioctl (f->fd, BLKGETSIZE64, size) == -1
      : fstat (f->fd, &st) == -1) {
    nc_error ("%s: its size: %m", dev->name);
    return -1;
  }
  if (!f->block_device)
    *size = st.st_size;
  return 0;
}

static int
file_truncate (struct nc_dev *dev, uint64_t size)
{
  struct file *f = file_of (dev);
  int r;

  if (f->block_device) {
    errno = ENOTSUP;
    return -1;
  }
  do
    r = ftruncate (f->fd, size);
  while (r == -1 && errno == EINTR);
  if (r == -1)
    nc_error ("%s: changing the size of the file to %" PRIu64 ": %m",
              dev->name, size);
  return r;
}

static const struct nc_dev_ops file_ops = {
  .close = file_close,
  .pread = file_pread,
  .pwrite = file_pwrite,
  .pwritev = file_pwritev,
  .pwrite_durable = file_pwrite_durable,
  .sync = file_sync,
  .write_out = file_write_out,
  .evict = file_evict,
  .measure = file_measure,
  .truncate = file_truncate,
  .zero = file_zero,
  .extents = file_extents,
};

/* Permissions, numbered as QEMU does. */
enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };
#define PERM(p) (1u << (p))
enum { LOCK_USED = 100, LOCK_UNSHARED = 200 };

/* One byte.  cmd: F_OFD_SETLK (take it) or F_OFD_GETLK (is it held by
 * somebody else?).  Returns 0, 1 (conflict, with *holder), or -1. */
static int
lock_byte (int fd, int cmd, off_t byte, struct flock *holder)
{
  const struct flock fl = {
    .l_type = cmd == F_OFD_GETLK ? F_WRLCK : F_RDLCK,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = 1,
  };

  *holder = fl;
  if (fcntl (fd, cmd, holder) == 0)
    return cmd == F_OFD_GETLK && holder->l_type != F_UNLCK;
  if (errno != EAGAIN && errno != EACCES)
    return -1;
  /* Somebody, not one of us or QEMU, has locked it for writing. */
  *holder = fl;
  if (fcntl (fd, F_OFD_GETLK, holder) == -1)
    return -1;
  return 1;
}

/* Apply CMD to the bytes of the permissions PERMS behind BASE. */
static int
lock_bytes (int fd, int cmd, off_t base, unsigned perms, struct flock *holder)
{
  for (unsigned p = 0; perms >> p; ++p) {
    int r = perms & PERM (p) ? lock_byte (fd, cmd, base + p, holder) : 0;

    if (r != 0)
      return r;
  }
  return 0;
}

/* Another one has the image, and HOLDER is its lock that is in our way. */
static int
report_holder (const struct file *f, const struct flock *holder)
{
  char name[64];

  nc_holder_name (f->fd, holder, name, sizeof name);
  nc_error ("%s: in use by %s, which %s; stop that first", f->dev.name, name,
            holder->l_start < LOCK_UNSHARED ? "may write it"
            : f->dev.writable ? "lets nobody else write it"
            : "lets nobody else read it");
  errno = EBUSY;
  return -1;
}

static _Atomic (bool) said_no_locks; /* once is enough */

static int
take_locks (struct file *f)
{
  const unsigned unshared = PERM (PERM_WRITE) | PERM (PERM_RESIZE);
  const unsigned used = PERM (PERM_READ) | (f->dev.writable ? unshared : 0);
  struct flock holder;
  int r;

  r = lock_bytes (f->fd, F_OFD_SETLK, LOCK_USED, used, &holder);
  if (r == 0)
    r = lock_bytes (f->fd, F_OFD_SETLK, LOCK_UNSHARED, unshared, &holder);
  /* A writer is what a user wants to know of first. */
  if (r == 0)
    r = lock_bytes (f->fd, F_OFD_GETLK, LOCK_USED, unshared, &holder);
  if (r == 0)
    r = lock_bytes (f->fd, F_OFD_GETLK, LOCK_UNSHARED, used, &holder);
  if (r == -1) {
    if (!atomic_exchange (&said_no_locks, true))
      nc_notice ("warning: %s: its storage has no locks (%m): nothing keeps "
                 "another program from writing to an image that is in use",
                 f->dev.name);
    return 0;
  }
  return r == 1 ? report_holder (f, &holder) : 0;
}

/* Find out what FD is and how large. */
static int
examine (struct file *f)
{
  struct stat st;
  int flags = fcntl (f->fd, F_GETFL);

  /* It was opened so that a FIFO would not block. */
  if (fstat (f->fd, &st) == -1 || flags == -1 ||
      fcntl (f->fd, F_SETFL, flags & ~O_NONBLOCK) == -1) {
    nc_error ("%s: %m", f->dev.name);
    return -1;
  }
  f->st_dev = st.st_dev;
  f->st_ino = st.st_ino;
  if (S_ISREG (st.st_mode)) {
    f->dev.size = st.st_size;
    f->dev.has_holes = true;
    return 0;
  }
  if (S_ISBLK (st.st_mode)) {
    f->block_device = true;
    f->st_dev = 0;
    f->st_ino = st.st_rdev;
    return file_measure (&f->dev, &f->dev.size);
  }
  nc_error ("%s: neither a file nor a block device", f->dev.name);
  errno = EINVAL;
  return -1;
}

struct nc_dev *
nc_dev_open_fd (int fd, const char *name, unsigned flags)
{
  struct file *f = calloc (1, sizeof *f);

  if (f == NULL) {
    nc_error ("%s: %m", name);
    close (fd);
    return NULL;
  }
  f->fd = fd;
  pthread_mutex_init (&f->sync_lock, NULL);
  pthread_cond_init (&f->sync_ended, NULL);
  f->dev.writable = flags & NC_DEV_WRITE;
  if (nc_dev_init (&f->dev, &file_ops, name) == -1 || examine (f) == -1)
    goto fail;
  if (!(flags & NC_DEV_UNLOCKED) && take_locks (f) == -1)
    goto fail;
  return &f->dev;

 fail:
  file_close (&f->dev);
  return NULL;
}

struct nc_dev *
nc_dev_open_path (int fd, struct nc_path *path, const char *name,
                  unsigned flags)
{
  struct nc_dev *dev = nc_dev_open_fd (fd, name, flags);

  if (dev == NULL) {
    nc_path_close (path);
    return NULL;
  }
  dev->path = *path;
  *path = (struct nc_path) NC_PATH_NONE;
  return dev;
}

struct nc_dev *
nc_dev_open_file (const char *name, unsigned flags)
{
  const int mode = flags & NC_DEV_WRITE ? O_RDWR : O_RDONLY;
  struct nc_path path;
  const int fd = nc_path_open (name, mode | O_NONBLOCK | O_NOCTTY, &path);

  return fd == -1 ? NULL : nc_dev_open_path (fd, &path, name, flags);
}

int
nc_dev_fd (const struct nc_dev *dev)
{
  return file_of (dev)->fd;
}

uint64_t
nc_dev_storage (const struct nc_dev *dev)
{
  struct stat st;

  if (dev->ops != &file_ops || fstat (file_of (dev)->fd, &st) == -1)
    return 0;
  return (uint64_t) st.st_blocks * 512;
}

int
nc_dev_file_id (const struct nc_dev *dev, dev_t *st_dev, ino_t *st_ino)
{
  if (dev->ops != &file_ops)
    return -1;
  *st_dev = file_of (dev)->st_dev;
  *st_ino = file_of (dev)->st_ino;
  return 0;
}

#define MARK "user.nbdchain.image"

int
nc_file_get_mark (int fd, char mark[NC_MARK_LENGTH + 1])
{
  ssize_t r = fgetxattr (fd, MARK, mark, NC_MARK_LENGTH);

  mark[r > 0 ? r : 0] = '\0';
  if (r == -1 && errno == EPERM)        /* of a device node */
    errno = ENOTSUP;
  return r == -1 ? -1 : 0;
}

int
nc_dev_set_mark (const struct nc_dev *dev, const char *mark)
{
  const int fd = file_of (dev)->fd;

  if (fsetxattr (fd, MARK, mark, strlen (mark), 0) == 0)
    return fsync (fd);
  if (errno == EPERM)
    errno = ENOTSUP;
  return -1;
}
