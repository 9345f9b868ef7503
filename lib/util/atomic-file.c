/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Files that appear as a whole, all by their names in a directory that is held
 * open. */

#include <config.h>

#include "util/atomic-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/permissions.h"
#include "util/scope.h"

#define NAMES 1000              /* that are tried */

int
nc_sync_directory (const struct nc_path *path)
{
  NC_CLOSE int fd = openat (path->dir, ".",
                            O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  return fd == -1 ? -1 : fsync (fd);
}

/* It has no other name (any more). */
static void
forget_tmp (struct nc_new_file *nf)
{
  const int err = errno;

  free (nf->tmp);
  nf->tmp = NULL;
  errno = err;
}

int
nc_new_file_create (struct nc_new_file *nf, const struct nc_path *path,
                    mode_t mode)
{
  char suffix[16];
  struct stat st;
  int fd = -1;

  *nf = (struct nc_new_file) { .path = path };
  errno = EEXIST;
  for (unsigned i = 0; fd == -1 && errno == EEXIST && i < NAMES; i++) {
    free (nf->tmp);
    snprintf (suffix, sizeof suffix, ".new.%x", (unsigned) getpid () + i);
    nf->tmp = nc_path_name_beside (path->name, suffix);
    if (nf->tmp == NULL)
      return -1;
    fd = openat (path->dir, nf->tmp,
                 O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  }
  if (fd == -1)
    forget_tmp (nf);
  else if (fstat (fd, &st) == 0) {
    nf->dev = st.st_dev;
    nf->ino = st.st_ino;
  }
  return fd;
}

/* Neither way replaces a file that has appeared meanwhile. */
static int
link_new (struct nc_new_file *nf)
{
  const int dir = nf->path->dir;

  if (linkat (dir, nf->tmp, dir, nf->path->name, 0) == 0)
    return 0;
  if (errno == EEXIST || renameat2 (dir, nf->tmp, dir, nf->path->name,
                                    RENAME_NOREPLACE) == -1)
    return -1;
  forget_tmp (nf);
  return 0;
}

static int
rename_new (struct nc_new_file *nf)
{
  const int dir = nf->path->dir;

  if (renameat (dir, nf->tmp, dir, nf->path->name) == -1)
    return -1;
  forget_tmp (nf);
  return 0;
}

int
nc_new_file_publish (struct nc_new_file *nf, bool replace)
{
  int err;

  if ((replace ? rename_new (nf) : link_new (nf)) == -1)
    return -1;
  if (nc_sync_directory (nf->path) == 0)
    return 0;
  err = errno;
  if (!replace)
    nc_new_file_withdraw (nf);
  errno = err;
  return -1;
}

void
nc_new_file_withdraw (struct nc_new_file *nf)
{
  const struct nc_path *path = nf->path;
  struct stat st;

  if (path && nf->ino &&
      fstatat (path->dir, path->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      st.st_dev == nf->dev && st.st_ino == nf->ino)
    unlinkat (path->dir, path->name, 0);
}

void
nc_new_file_close (struct nc_new_file *nf)
{
  const int err = errno;

  if (nf->tmp)
    unlinkat (nf->path->dir, nf->tmp, 0);
  forget_tmp (nf);
  errno = err;
}

/* Replacing small ones. */

static int
write_all (int fd, const char *text, size_t len)
{
  while (len > 0) {
    const ssize_t n = write (fd, text, len);

    if (n == -1 && errno != EINTR)
      return -1;
    if (n > 0) {
      text += n;
      len -= n;
    }
  }
  return 0;
}

int
nc_replace_file (const struct nc_path *path, const char *text, mode_t mode,
                 int like)
{
  struct nc_new_file nf;
  NC_CLOSE int fd = nc_new_file_create (&nf, path, like >= 0 ? 0600 : mode);
  int r = -1;

  if (fd >= 0 && write_all (fd, text, strlen (text)) == 0 &&
      (like == -1 || nc_permissions_copy (like, fd) == 0) && fsync (fd) == 0)
    r = nc_new_file_publish (&nf, true);
  nc_new_file_close (&nf);
  return r;
}
