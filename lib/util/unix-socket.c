/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Making a Unix socket, so that its name is there when a client can connect,
 * and not before; and connecting to one.
 *
 * A socket has no name before it is bound, and cannot listen before that.  So
 * it is bound under a name that nobody looks for.  A name that refuses to
 * connect is then always one that nobody serves any more, and can be removed.
 * Two servers that both saw this would remove each other's; therefore who
 * looks and replaces has locked the directory.
 *
 * The system calls for this take paths.  The one that is used, by way of
 * /proc/self/fd, begins at the directory that is held open, or is that of the
 * socket itself: no name in between can be exchanged.  For the same reason the
 * mode is given to the socket before it has a name.
 */

#include <config.h>

#include "util/unix-socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
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

/* Connecting. */

int
nc_connect_unix (int sock, int fd)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int r;

  snprintf (addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d", fd);
  do
    r = connect (sock, (const struct sockaddr *) &addr, sizeof addr);
  while (r == -1 && errno == EINTR);
  return r;
}

static int
find_operators (void *opaque, char *why, size_t len)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;

  return nc_path_try (opaque, O_PATH, &path, why, len);
}

int
nc_socket_finder_init (struct nc_socket_finder *finder, const char *path)
{
  *finder = (struct nc_socket_finder) {
    .find = find_operators, .free = free, .opaque = strdup (path),
  };
  if (finder->opaque)
    return 0;
  nc_error ("%s: %m", path);
  *finder = (struct nc_socket_finder) { 0 };
  return -1;
}

void
nc_socket_finder_free (struct nc_socket_finder *finder)
{
  if (finder->find)
    finder->free (finder->opaque);
  *finder = (struct nc_socket_finder) { 0 };
}

/* Listening. */

static int
check_length (const char *what, const char *path)
{
  const size_t max = sizeof ((struct sockaddr_un *) NULL)->sun_path - 1;

  if (path[0] != '\0' && strlen (path) <= max)
    return 0;
  nc_error ("%s: '%s' is not a path of 1 to %zu bytes: give another, such "
            "as /run/NAME", what, path, max);
  errno = EINVAL;
  return -1;
}

/* Lock DIR until what is returned is closed.  One that cannot be locked (-1),
 * or that somebody else keeps locked, is done without: it matters only when
 * two replace the same socket at once. */
static int
lock_directory (int dir)
{
  const int fd = openat (dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

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
remove_stale (const char *what, const char *text, const struct nc_path *path)
{
  NC_CLOSE int fd = openat (path->dir, path->name,
                            O_PATH | O_NOFOLLOW | O_CLOEXEC);
  NC_CLOSE int client = -1;
  struct stat st;

  if (fd == -1)
    return 0;                   /* bind tells what is wrong, if anything is */
  if (fstat (fd, &st) == -1 || !S_ISSOCK (st.st_mode)) {
    nc_error ("%s: %s: exists, and is no socket: give another path", what,
              text);
    errno = EEXIST;
    return -1;
  }
  client = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (client == -1) {
    nc_error ("%s: %m", what);
    return -1;
  }
  /* EAGAIN: more clients are waiting than may. */
  if (nc_connect_unix (client, fd) == 0 || errno == EAGAIN) {
    nc_error ("%s: %s: another server is using it: give another path", what,
              text);
    errno = EADDRINUSE;
    return -1;
  }
  if (errno == ECONNREFUSED && (unlinkat (path->dir, path->name, 0) == 0 ||
                                errno == ENOENT))
    return 0;
  nc_error ("%s: %s: is there already and cannot be replaced: %m: give "
            "another path", what, text);
  return -1;
}

/* The Ith name beside NAME: it and four digits.  Where there is no room for
 * that in an address, some of the name goes. */
static void
set_beside (struct sockaddr_un *addr, const struct nc_path *path, unsigned i)
{
  char end[8];
  int room;

  snprintf (end, sizeof end, ".%04x", ((unsigned) getpid () + i) & 0xffff);
  room = (int) sizeof addr->sun_path - 1 - (int) strlen (end) -
    snprintf (NULL, 0, "/proc/self/fd/%d/", path->dir);
  snprintf (addr->sun_path, sizeof addr->sun_path, "/proc/self/fd/%d/%.*s%s",
            path->dir, room, path->name, end);
}

/* The name in ADDR. */
static const char *
name_of (const struct sockaddr_un *addr)
{
  return strrchr (addr->sun_path, '/') + 1;
}

/* A socket with MODE that has a name beside PATH, in *ADDR, and no other. */
static int
bind_beside (const struct nc_path *path, mode_t mode, struct sockaddr_un *addr)
{
  NC_CLOSE int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int r = -1;

  if (fd == -1 || fchmod (fd, mode) == -1)
    return -1;
  errno = EADDRINUSE;
  for (unsigned i = 0; r == -1 && errno == EADDRINUSE && i < NAMES; i++) {
    set_beside (addr, path, i);
    if (strcmp (name_of (addr), path->name) != 0)
      r = bind (fd, (const struct sockaddr *) addr, sizeof *addr);
  }
  if (r == -1)
    return -1;
  r = fd;
  fd = -1;
  return r;
}

/* Not over what has appeared meanwhile; not every file system can rename
 * like that. */
static int
rename_new (int dir, const char *from, const char *to)
{
  if (renameat2 (dir, from, dir, to, RENAME_NOREPLACE) == 0)
    return 0;
  if ((errno != EINVAL && errno != ENOSYS) ||
      linkat (dir, from, dir, to, 0) == -1)
    return -1;
  unlinkat (dir, from, 0);
  return 0;
}

/* Make FD, which is called BESIDE, known as NAME. */
static int
publish (int fd, int backlog, const char *beside, struct nc_socket_name *name)
{
  const struct nc_path *path = &name->path;
  struct stat st;
  int err;

  if (fstatat (path->dir, beside, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      listen (fd, backlog) == 0 &&
      rename_new (path->dir, beside, path->name) == 0) {
    name->dev = st.st_dev;
    name->ino = st.st_ino;
    return 0;
  }
  err = errno == EEXIST ? EADDRINUSE : errno;
  unlinkat (path->dir, beside, 0);
  errno = err;
  return -1;
}

/* What both functions below begin with: a socket beside TEXT, whose name is
 * free, as long as *LOCK is open. */
static int
begin (const char *what, const char *text, mode_t mode,
       struct nc_socket_name *name, struct sockaddr_un *beside, int *lock)
{
  int fd;

  *name = (struct nc_socket_name) NC_SOCKET_NAME_NONE;
  if (check_length (what, text) == -1 ||
      nc_path_find (text, &name->path) == -1)
    return -1;
  *lock = lock_directory (name->path.dir);
  if (remove_stale (what, text, &name->path) == -1)
    return -1;
  fd = bind_beside (&name->path, mode, beside);
  if (fd == -1)
    nc_error ("%s: %s: %m", what, text);
  return fd;
}

int
nc_listen_unix (const char *what, const char *path, mode_t mode, int backlog,
                struct nc_socket_name *name)
{
  struct sockaddr_un beside = { .sun_family = AF_UNIX };
  NC_CLOSE int lock = -1;
  const int fd = begin (what, path, mode, name, &beside, &lock);

  if (fd >= 0) {
    if (publish (fd, backlog, name_of (&beside), name) == 0)
      return fd;
    nc_error ("%s: %s: %m", what, path);
    close (fd);
  }
  nc_path_close (&name->path);
  return -1;
}

int
nc_listen_check (const char *what, const char *path)
{
  struct sockaddr_un beside = { .sun_family = AF_UNIX };
  struct nc_socket_name name;
  NC_CLOSE int lock = -1;
  NC_CLOSE int fd = begin (what, path, 0600, &name, &beside, &lock);

  if (fd >= 0)
    unlinkat (name.path.dir, name_of (&beside), 0);
  nc_path_close (&name.path);
  return fd == -1 ? -1 : 0;
}

void
nc_socket_name_remove (struct nc_socket_name *name)
{
  const struct nc_path *path = &name->path;
  struct stat st;

  if (name->ino != 0 &&
      fstatat (path->dir, path->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      st.st_dev == name->dev && st.st_ino == name->ino)
    unlinkat (path->dir, path->name, 0);
  nc_path_close (&name->path);
  name->ino = 0;
}
