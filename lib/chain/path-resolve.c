/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Resolves references under permits.
 *
 * The invariant: what is resolved was opened by its name in a directory that
 * is a permitted one, by its inode, or was itself opened that way below such a
 * one.  So it lies there whatever the text of the reference is, and whatever
 * anybody renames meanwhile.  Outside of the permitted directories nothing is
 * looked at but directories, and symbolic links, on the way to one of them.
 */

#include <config.h>

#include "chain/path-resolve.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "util/scope.h"

static size_t
n_permits (const struct nc_permits *permits)
{
  return 1 + permits->n_dirs;
}

static const struct nc_path *
get_permit (const struct nc_permits *permits, size_t i)
{
  return i == 0 ? permits->image : &permits->dirs[i - 1];
}

/* Whether ST is of a directory that permits what lies below it. */
static bool
is_permit (const struct nc_permits *permits, const struct stat *st)
{
  struct stat dir;

  for (size_t i = 0; i < n_permits (permits); ++i)
    if (fstat (get_permit (permits, i)->dir, &dir) == 0 &&
        dir.st_dev == st->st_dev && dir.st_ino == st->st_ino)
      return true;
  return false;
}

/* Whether PATH is DIR or above it.  Both are absolute. */
static bool
is_at_or_above (const char *path, const char *dir)
{
  const size_t len = strcmp (path, "/") == 0 ? 0 : strlen (path);

  return strncmp (path, dir, len) == 0 &&
    (dir[len] == '/' || dir[len] == '\0');
}

/* Whether the directory PATH may have to be passed to get to a permitted one.
 */
static bool
is_on_the_way (const struct nc_permits *permits, const char *path)
{
  for (size_t i = 0; i < n_permits (permits); ++i)
    if (is_at_or_above (path, get_permit (permits, i)->real) ||
        is_at_or_above (path, get_permit (permits, i)->given))
      return true;
  return false;
}

static int
come (struct nc_walk *walk, const struct stat *st,
      size_t rest __attribute__ ((__unused__)))
{
  const struct nc_permits *permits = walk->opaque;
  const unsigned here = walk->n - 1;
  const bool inside = (here > 0 && walk->level[here - 1].inside) ||
    is_permit (permits, st);

  walk->level[here].inside = inside;
  if (inside || is_on_the_way (permits, walk->text))
    return 0;
  errno = EPERM;
  return -1;
}

static int
follow (struct nc_walk *walk __attribute__ ((__unused__)),
        const struct stat *st __attribute__ ((__unused__)),
        size_t rest __attribute__ ((__unused__)))
{
  return 0;
}

static int
lost (struct nc_walk *walk, const char *text __attribute__ ((__unused__)))
{
  if (!walk->level[walk->n - 1].inside)
    errno = EPERM;
  return -1;
}

int
nc_resolve (const struct nc_permits *permits, const char *text,
            struct nc_path *path, bool *followed)
{
  static const struct nc_walk_rules rules = {
    .come = come, .follow = follow, .lost = lost, .from_root = true,
  };
  struct nc_walk walk = { .n = 0 };
  int fd = -1;

  *path = (struct nc_path) NC_PATH_NONE;
  if (nc_walk_begin (&walk, &rules, (void *) permits, permits->image->dir,
                     permits->image->real) == 0 &&
      nc_walk_along (&walk, text) == 0) {
    errno = EPERM;
    if (walk.level[walk.n - 1].inside &&
        nc_walk_get_path (&walk, NULL, path) == 0)
      fd = fcntl (walk.level[walk.n - 1].fd, F_DUPFD_CLOEXEC, 0);
  }
  *followed = walk.n_links > 0;
  if (fd == -1)
    nc_path_close (path);
  nc_walk_end (&walk);
  return fd;
}
