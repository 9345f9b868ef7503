/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Making a Unix socket, so that its name is there when a client can connect,
 * and not before.
 *
 * A socket has no name before it is bound, and cannot listen before that.  So
 * it is bound under a name that nobody looks for.  A name that refuses to
 * connect is then always one that nobody serves any more, and can be removed.
 * Two servers that both saw this would remove each other's; therefore who
 * looks and replaces has locked the directory.
 */

#include <config.h>

#include "util/unix-socket.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/report.h"
#include "util/scope.h"

#define NAMES 4096              /* to try */
#define LOCK_WAIT 100           /* times 10 milliseconds */

static int
set_address (const char *what, const char *path, struct sockaddr_un *addr)
{
  *addr = (struct sockaddr_un) { .sun_family = AF_UNIX };
  if (path[0] == '\0' || strlen (path) >= sizeof addr->sun_path) {
    nc_error ("%s: '%s' is not a path of 1 to %zu bytes: give another, such "
              "as /run/NAME", what, path, sizeof addr->sun_path - 1);
    errno = EINVAL;
    return -1;
  }
  strcpy (addr->sun_path, path);
  return 0;
}

static int
new_socket (const char *what, int flags)
{
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

  if (fd == -1)
    nc_error ("%s: %m", what);
  return fd;
}

/* Lock the directory of PATH until what is returned is closed.  One that
 * cannot be locked (-1), or that somebody else keeps locked, is done
 * without: it matters only when two replace the same socket at once. */
static int
lock_directory (const char *path)
{
  NC_FREE char *copy = strdup (path);
  const int fd = copy ? open (dirname (copy),
                              O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  for (int i = 0; fd >= 0 && i < LOCK_WAIT; i++) {
    if (flock (fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
      break;
    poll (NULL, 0, 10);
  }
  return fd;
}

/* Remove the socket of a server that died.  Returns -1 if what is there is
 * something else, reported. */
static int
remove_stale (const char *what, const struct sockaddr_un *addr)
{
  const char *path = addr->sun_path;
  NC_CLOSE int fd = -1;
  struct stat st;

  if (lstat (path, &st) == -1)
    return 0;                   /* bind tells what is wrong, if anything is */
  if (!S_ISSOCK (st.st_mode)) {
    nc_error ("%s: %s: exists, and is no socket: give another path", what,
              path);
    errno = EEXIST;
    return -1;
  }
  fd = new_socket (what, SOCK_NONBLOCK);
  if (fd == -1)
    return -1;
  /* EAGAIN: more clients are waiting than may. */
  if (connect (fd, (const struct sockaddr *) addr, sizeof *addr) == 0 ||
      errno == EAGAIN) {
    nc_error ("%s: %s: another server is using it: give another path", what,
              path);
    errno = EADDRINUSE;
    return -1;
  }
  if (errno == ENOENT || (errno == ECONNREFUSED &&
                          (unlink (path) == 0 || errno == ENOENT)))
    return 0;
  nc_error ("%s: %s: is there already and cannot be replaced: %m: give "
            "another path", what, path);
  return -1;
}

/* The Ith name beside PATH: it and four digits.  It is no longer than a path
 * may be: where there is less room, some of the name goes, or some digits. */
static void
set_beside (struct sockaddr_un *addr, const char *path, unsigned i)
{
  const char *slash = strrchr (path, '/');
  const int dir = slash ? (int) (slash + 1 - path) : 0;
  const int room = (int) sizeof addr->sun_path - 1 - dir;
  char end[6];
  const int n_end = room < 5 ? room : 5;

  snprintf (end, sizeof end, ".%04x", ((unsigned) getpid () + i) & 0xffff);
  snprintf (addr->sun_path, sizeof addr->sun_path, "%.*s%.*s%s", dir, path,
            room - n_end, path + dir, end + 5 - n_end);
}

/* A socket that has a name beside PATH, in *ADDR, and no other, and that
 * nobody else may use. */
static int
bind_beside (const char *what, const char *path, struct sockaddr_un *addr)
{
  NC_CLOSE int fd = new_socket (what, 0);
  int r = -1;

  if (fd == -1)
    return -1;
  /* The mode of the file is that of the socket, from the beginning. */
  if (fchmod (fd, 0600) == 0) {
    errno = EADDRINUSE;
    for (unsigned i = 0; r == -1 && errno == EADDRINUSE && i < NAMES; i++) {
      set_beside (addr, path, i);
      if (strcmp (addr->sun_path, path) != 0)
        r = bind (fd, (const struct sockaddr *) addr, sizeof *addr);
    }
  }
  if (r == -1) {
    nc_error ("%s: %s: %m", what, path);
    return -1;
  }
  r = fd;
  fd = -1;
  return r;
}

/* Not over what has appeared meanwhile; not every file system can rename
 * like that. */
static int
rename_new (const char *from, const char *to)
{
  if (renameat2 (AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
    return 0;
  if ((errno != EINVAL && errno != ENOSYS) || link (from, to) == -1)
    return -1;
  unlink (from);
  return 0;
}

/* Make FD, which is bound to BESIDE, known as PATH. */
static int
publish (int fd, int backlog, const char *beside, const char *path,
         mode_t mode, struct stat *made)
{
  struct stat st;
  int err;

  if (lstat (beside, &st) == 0 && chmod (beside, mode) == 0 &&
      listen (fd, backlog) == 0 && rename_new (beside, path) == 0) {
    *made = st;
    return 0;
  }
  err = errno == EEXIST ? EADDRINUSE : errno;
  unlink (beside);
  errno = err;
  return -1;
}

/* What both functions below begin with: a socket beside PATH, whose name is
 * free, as long as *LOCK is open. */
static int
begin (const char *what, const char *path, struct sockaddr_un *beside,
       int *lock)
{
  struct sockaddr_un addr;

  if (set_address (what, path, &addr) == -1)
    return -1;
  *lock = lock_directory (path);
  if (remove_stale (what, &addr) == -1)
    return -1;
  return bind_beside (what, path, beside);
}

int
nc_listen_unix (const char *what, const char *path, mode_t mode, int backlog,
                struct stat *made)
{
  struct sockaddr_un beside = { .sun_family = AF_UNIX };
  NC_CLOSE int lock = -1;
  const int fd = begin (what, path, &beside, &lock);

  if (fd == -1)
    return -1;
  if (publish (fd, backlog, beside.sun_path, path, mode, made) == 0)
    return fd;
  nc_error ("%s: %s: %m", what, path);
  close (fd);
  return -1;
}

int
nc_listen_check (const char *what, const char *path)
{
  struct sockaddr_un beside = { .sun_family = AF_UNIX };
  NC_CLOSE int lock = -1;
  NC_CLOSE int fd = begin (what, path, &beside, &lock);

  if (fd == -1)
    return -1;
  unlink (beside.sun_path);
  return 0;
}
