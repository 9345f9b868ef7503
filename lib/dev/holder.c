/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Finds the process that holds a lock.
 *
 * The kernel does not say who holds an open file description lock, for such
 * a lock belongs to a file description and not to a process.  But each open
 * file is listed with its locks in /proc/PID/fdinfo/FD, of those processes
 * that we may look into.  First only these texts are compared: to touch the
 * files behind them could block, if a file server is away.
 */

#include <config.h>

#include "dev/holder.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/scope.h"

#define LIMIT_MS 500
#define FDS_BETWEEN 64          /* of one process, before the clock is read */

struct search {
  int own_fd;
  struct stat st;               /* of the file */
  off_t byte;                   /* that is locked */
  int64_t deadline;
};

static int64_t
now_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void
close_dir (DIR **dir)
{
  if (*dir)
    closedir (*dir);
}
#define DIR_CLEANUP __attribute__ ((__cleanup__ (close_dir)))

/* Read the beginning of the file PATH of /proc as text. */
static bool
read_proc (const char *path, char *text, size_t len)
{
  NC_CLOSE int fd = open (path, O_RDONLY | O_CLOEXEC);
  size_t n = 0;
  ssize_t r = 0;

  while (fd >= 0 && n < len - 1 && (r = read (fd, text + n, len - 1 - n)) > 0)
    n += r;
  text[n] = '\0';
  return fd >= 0 && r >= 0;
}

/* Whether a line of fdinfo, such as
 * "lock:\t1: OFDLCK  ADVISORY  READ  -1 fe:01:4711 100 101",
 * is of a lock on the byte, in a file of that number. */
static bool
line_matches (const struct search *s, const char *line)
{
  unsigned long long inode, first, last;
  char end[24];

  if (sscanf (line, "lock: %*u: %*s %*s %*s %*d %*x:%*x:%llu %llu %23s",
              &inode, &first, end) != 3 || inode != s->st.st_ino)
    return false;
  last = strcmp (end, "EOF") == 0 ? UINT64_MAX : strtoull (end, NULL, 10);
  return first <= (uint64_t) s->byte && (uint64_t) s->byte <= last;
}

static bool
holds_lock (const struct search *s, const char *pid, const char *fd)
{
  char path[64], text[4096], *next = text, *line;
  struct stat st;
  bool matches = false;

  snprintf (path, sizeof path, "/proc/%.16s/fdinfo/%.16s", pid, fd);
  if (!read_proc (path, text, sizeof text))
    return false;
  while (!matches && (line = strsep (&next, "\n")) != NULL)
    matches = line_matches (s, line);
  if (!matches)
    return false;
  /* Numbers of files repeat on other file systems. */
  snprintf (path, sizeof path, "/proc/%.16s/fd/%.16s", pid, fd);
  return stat (path, &st) == 0 && st.st_dev == s->st.st_dev &&
    st.st_ino == s->st.st_ino;
}

/* Whether the process PID holds it. */
static bool
process_holds_lock (const struct search *s, const char *pid)
{
  const bool is_self = strtol (pid, NULL, 10) == getpid ();
  DIR_CLEANUP DIR *dir = NULL;
  const struct dirent *d;
  char path[64];
  unsigned n = 0;

  snprintf (path, sizeof path, "/proc/%.16s/fdinfo", pid);
  dir = opendir (path);
  while (dir && (d = readdir (dir)) != NULL) {
    if (++n % FDS_BETWEEN == 0 && now_ms () >= s->deadline)
      return false;
    if (!isdigit ((unsigned char) d->d_name[0]) ||
        (is_self && strtol (d->d_name, NULL, 10) == s->own_fd))
      continue;
    if (holds_lock (s, pid, d->d_name))
      return true;
  }
  return false;
}

/* The holder's process; 0 if it was not found. */
static long
find_process (const struct search *s)
{
  DIR_CLEANUP DIR *dir = opendir ("/proc");
  const struct dirent *d;

  while (dir && (d = readdir (dir)) != NULL && now_ms () < s->deadline)
    if (isdigit ((unsigned char) d->d_name[0]) &&
        process_holds_lock (s, d->d_name))
      return strtol (d->d_name, NULL, 10);
  return 0;
}

/* What the process PID calls itself, made harmless: it may be anything. */
static bool
read_name (long pid, char *name, size_t len)
{
  char path[64], *p;

  snprintf (path, sizeof path, "/proc/%ld/comm", pid);
  if (!read_proc (path, name, len))
    return false;
  name[strcspn (name, "\n")] = '\0';
  for (p = name; *p; p++)
    if (*p < 0x20 || *p > 0x7e)
      *p = '?';
  return *name != '\0';
}

static long
read_parent (long pid)
{
  char path[64], text[2048];
  const char *line;

  snprintf (path, sizeof path, "/proc/%ld/status", pid);
  if (!read_proc (path, text, sizeof text))
    return 0;
  line = strstr (text, "\nPPid:");
  return line ? strtol (line + strlen ("\nPPid:"), NULL, 10) : 0;
}

void
nc_holder_name (int fd, const struct flock *lock, char *name, size_t len)
{
  struct search s = {
    .own_fd = fd, .byte = lock->l_start, .deadline = now_ms () + LIMIT_MS,
  };
  char comm[32], parent_comm[32];
  const int error = errno;
  long pid = 0, parent;

  if (lock->l_pid > 0)          /* not of this kind: the system tells */
    pid = lock->l_pid;
  else if (fstat (fd, &s.st) == 0)
    pid = find_process (&s);

  if (pid == 0 || !read_name (pid, comm, sizeof comm))
    snprintf (name, len, "another process");
  else {
    /* Who stops that nbdkit gets another one. */
    parent = strcmp (comm, "nbdkit") == 0 ? read_parent (pid) : 0;
    if (parent > 0 && read_name (parent, parent_comm, sizeof parent_comm) &&
        strcmp (parent_comm, "nbdchain") == 0)
      snprintf (name, len, "nbdchain serve (process %ld)", parent);
    else
      snprintf (name, len, "%s (process %ld)", comm, pid);
  }
  errno = error;
}
