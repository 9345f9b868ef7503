/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A new file is made beside the old one, synced, given its name, and then the
 * directory is synced.  Nothing is touched but that file and PATH: what has
 * the new file's name already stays, and another one is taken. */

#include <config.h>

#include "util/atomic-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "util/scope.h"

#define NAMES 1000              /* that are tried */

int
nc_sync_directory (const char *path)
{
  NC_FREE char *copy = strdup (path);
  NC_CLOSE int fd = copy ? open (dirname (copy),
                                 O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  return fd == -1 ? -1 : fsync (fd);
}

char *
nc_path_beside (const char *path, const char *suffix)
{
  const char *slash = strrchr (path, '/');
  const char *name = slash ? slash + 1 : path;
  const size_t room = NAME_MAX - strlen (suffix);
  char *beside;
  int r;

  if (strlen (name) <= room)
    r = asprintf (&beside, "%s%s", path, suffix);
  else
    r = asprintf (&beside, "%.*s%.*s-%016" PRIx64 "%s", (int) (name - path),
                  path, (int) (room - 17), name,
                  (uint64_t) XXH3_64bits (name, strlen (name)), suffix);
  if (r != -1)
    return beside;
  errno = ENOMEM;
  return NULL;
}

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

/* A new file, called *TMP.  Returns -1 with errno; *TMP is to be freed in any
 * case. */
static int
open_beside (const char *path, mode_t mode, char **tmp)
{
  char suffix[16];
  int fd = -1;

  *tmp = NULL;
  errno = EEXIST;
  for (unsigned i = 0; fd == -1 && errno == EEXIST && i < NAMES; i++) {
    free (*tmp);
    snprintf (suffix, sizeof suffix, ".new.%x", (unsigned) getpid () + i);
    *tmp = nc_path_beside (path, suffix);
    if (*tmp == NULL)
      return -1;
    fd = open (*tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
               mode);
  }
  return fd;
}

int
nc_replace_file (const char *path, const char *text, mode_t mode)
{
  NC_FREE char *tmp = NULL;
  NC_CLOSE int fd = open_beside (path, mode, &tmp);
  int err;

  if (fd == -1)
    return -1;
  if (write_all (fd, text, strlen (text)) == 0 && fsync (fd) == 0 &&
      rename (tmp, path) == 0)
    return nc_sync_directory (path);
  err = errno;
  unlink (tmp);
  errno = err;
  return -1;
}
