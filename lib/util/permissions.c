/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Owner first, since that may take bits away from the mode; the mode last,
 * since with an ACL it is its mask. */

#include <config.h>

#include "util/permissions.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "util/scope.h"

/* As many bytes as the system lets an attribute have. */
#define VALUE_MAX 65536

static const char *const attributes[] = {
  "system.posix_acl_access", "security.selinux", "security.SMACK64",
};

/* Read an attribute.  Returns its length; 0 if there is none, or the file
 * system has no such; -1 with errno. */
static ssize_t
get (int fd, const char *name, char value[VALUE_MAX])
{
  const ssize_t n = fgetxattr (fd, name, value, VALUE_MAX);

  return n == -1 && (errno == ENODATA || errno == ENOTSUP) ? 0 : n;
}

static int
copy_attribute (const char *name, int from, int to)
{
  NC_FREE char *value = malloc (VALUE_MAX);
  NC_FREE char *old = malloc (VALUE_MAX);
  ssize_t n, n_old;

  if (value == NULL || old == NULL)
    return -1;
  n = get (from, name, value);
  n_old = get (to, name, old);
  if (n == -1 || n_old == -1)
    return -1;
  if (n == n_old && memcmp (value, old, n) == 0)
    return 0;
  if (n > 0)
    return fsetxattr (to, name, value, n, 0);
  /* The directory has given it an ACL; a label is the system's. */
  return name == attributes[0] ? fremovexattr (to, name) : 0;
}

int
nc_permissions_copy (int from, int to)
{
  struct stat st, old;

  if (fstat (from, &st) == -1 || fstat (to, &old) == -1)
    return -1;
  if ((st.st_uid != old.st_uid || st.st_gid != old.st_gid) &&
      fchown (to, st.st_uid, st.st_gid) == -1)
    return -1;
  for (size_t i = 0; i < sizeof attributes / sizeof attributes[0]; ++i)
    if (copy_attribute (attributes[i], from, to) == -1)
      return -1;
  return fchmod (to, st.st_mode & 0777);
}
