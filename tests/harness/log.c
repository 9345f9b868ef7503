/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Reading and appending to the log that log.h describes. */

#include <config.h>

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int
raw_open (const char *file, int flags)
{
  return syscall (SYS_openat, AT_FDCWD, file, flags | O_CLOEXEC, 0644);
}

int
log_open (struct log *log, const char *file)
{
  char seq[4096];
  int fd, n;
  void *map;

  n = snprintf (seq, sizeof seq, "%s.seq", file);
  if (n < 0 || (size_t) n >= sizeof seq) {
    errno = ENAMETOOLONG;
    return -1;
  }
  fd = raw_open (seq, O_RDWR | O_CREAT);
  if (fd == -1)
    return -1;
  if (syscall (SYS_ftruncate, fd, sizeof *log->counter) == -1) {
    syscall (SYS_close, fd);
    return -1;
  }
  map = (void *) syscall (SYS_mmap, NULL, sizeof *log->counter,
                          PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall (SYS_close, fd);
  if (map == MAP_FAILED)
    return -1;
  log->fd = raw_open (file, O_WRONLY | O_CREAT | O_APPEND);
  if (log->fd == -1) {
    munmap (map, sizeof *log->counter);
    return -1;
  }
  log->counter = map;
  return 0;
}

void
log_close (struct log *log)
{
  syscall (SYS_close, log->fd);
  munmap (log->counter, sizeof *log->counter);
}

uint64_t
log_next (struct log *log)
{
  return __atomic_add_fetch (log->counter, 1, __ATOMIC_SEQ_CST);
}

void
log_append (struct log *log, struct log_record *record, const void *payload,
            size_t count)
{
  struct iovec iov[2];
  long r;

  record->magic = LOG_MAGIC;
  record->payload = count;
  iov[0].iov_base = record;
  iov[0].iov_len = sizeof *record;
  iov[1].iov_base = (void *) payload;
  iov[1].iov_len = count;
  r = syscall (SYS_writev, log->fd, iov, count > 0 ? 2 : 1);
  if (r != (long) (sizeof *record + count)) {
    static const char msg[] = "harness: cannot append to the log\n";

    syscall (SYS_write, 2, msg, sizeof msg - 1);
    abort ();
  }
}

/* Whether the COUNT bytes at MAP begin with a whole record.  Of one that was
 * appended when its process was killed a part may be there, and where its end
 * should be are those that came later. */
static bool
is_whole (const uint8_t *map, size_t count)
{
  static const uint64_t magic = LOG_MAGIC;
  struct log_record record;
  size_t end;

  memcpy (&record, map, sizeof record);
  if (record.magic != magic || record.payload > count - sizeof record)
    return false;
  /* Another that begins in it may do so at its last byte. */
  end = sizeof record + record.payload + sizeof magic - 1;
  if (end > count)
    end = count;
  return memmem (map + sizeof magic, end - sizeof magic, &magic,
                 sizeof magic) == NULL;
}

void *
log_map (const char *file, size_t *size, log_reader fn, void *opaque)
{
  struct stat st;
  uint8_t *map;
  size_t at = 0;
  int fd = open (file, O_RDONLY | O_CLOEXEC);

  if (fd == -1 || fstat (fd, &st) == -1) {
    perror (file);
    if (fd != -1)
      close (fd);
    return NULL;
  }
  map = mmap (NULL, st.st_size ? st.st_size : 1, PROT_READ, MAP_PRIVATE, fd,
              0);
  close (fd);
  if (map == MAP_FAILED) {
    perror (file);
    return NULL;
  }
  *size = st.st_size;
  while (at + sizeof (struct log_record) <= *size) {
    struct log_record record;

    if (!is_whole (map + at, *size - at)) {
      at++;                     /* look for the next */
      continue;
    }
    memcpy (&record, map + at, sizeof record);
    fn (&record, map + at + sizeof record, opaque);
    at += sizeof record + record.payload;
  }
  return map;
}
