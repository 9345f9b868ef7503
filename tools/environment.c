/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Programs and libraries that the environment names.
 *
 * sudo may keep variables of the user who runs it, and the loader does not
 * take that for a program with other rights than its caller's.  So what root
 * runs by them must be root's: nobody else may be able to change it, now or
 * when nbdkit is started again.  That can be kept only if the same is true of
 * this program.
 */

#include <config.h>

#include "serve.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"

const char *
environment_get (const char *name, const char *otherwise)
{
  const char *value = getenv (name);

  return value && value[0] ? value : otherwise;
}

/* Whether somebody who is not root can change this program. */
static bool
is_changeable (void)
{
  char path[PATH_MAX];
  const ssize_t n = readlink ("/proc/self/exe", path, sizeof path - 1);
  NC_FREE char *why = NULL;

  if (n == -1)
    return false;
  path[n] = '\0';
  return !nc_path_is_roots (path, &why);
}

/* Check PATH, which the variable NAME has; what is missing is no matter, if
 * nobody else can put it there. */
static int
check_path (const char *name, const char *path)
{
  NC_FREE char *absolute = nc_path_absolute (*path ? path : ".");
  NC_FREE char *why = NULL;

  if (absolute && (nc_path_is_roots (absolute, &why) || errno == ENOENT))
    return 0;
  nc_error ("%s names %s: %s; what root runs must be root's, and so must all "
            "directories above it: unset %s, or name something else", name,
            *path ? path : "the current directory", why ? : strerror (errno),
            name);
  return -1;
}

static int
check_program (const char *name)
{
  const char *path = getenv (name);

  if (path == NULL || *path == '\0')
    return 0;
  if (strchr (path, '/'))
    return check_path (name, path);
  nc_error ("%s=%s: as root, give it with its directory", name, path);
  return -1;
}

/* The paths in the variable NAME, between any of the bytes in SEPARATORS; those
 * without a '/', unless ALL, are looked for elsewhere. */
static int
check_list (const char *name, const char *separators, bool all)
{
  const char *value = getenv (name);
  NC_FREE char *list = value ? strdup (value) : NULL;
  char *next = list, *path;

  if (value && list == NULL) {
    nc_error ("%s: %m", name);
    return -1;
  }
  if (value == NULL || *value == '\0')
    return 0;
  while ((path = strsep (&next, separators)) != NULL)
    if ((all || strchr (path, '/')) && check_path (name, path) == -1)
      return -1;
  return 0;
}

static int
check_filters (const char *const filters[])
{
  const char *dir = getenv ("NBDCHAIN_FILTERS");

  if (check_program ("NBDCHAIN_FILTERS") == -1)
    return -1;
  for (; dir && *dir && *filters; filters++) {
    NC_FREE char *path = environment_filter (*filters);

    if (path && check_path ("NBDCHAIN_FILTERS", path) == -1)
      return -1;
  }
  return 0;
}

char *
environment_filter (const char *name)
{
  char *path;

  return asprintf (&path, "%s/nbdkit-%s-filter.so",
                   environment_get ("NBDCHAIN_FILTERS", FILTERS_PATH),
                   name) == -1 ? NULL : path;
}

int
environment_check (void)
{
  static const char *const filters[] = { "stream", "prefetch", NULL };

  if (geteuid () != 0 || is_changeable ())
    return 0;
  return check_program ("NBDKIT") == -1 ||
    check_program ("NBDCHAIN_PLUGIN") == -1 ||
    check_filters (filters) == -1 ||
    check_list ("LD_LIBRARY_PATH", ":;", true) == -1 ||
    check_list ("LD_PRELOAD", ": ", false) == -1 ||
    check_list ("LD_AUDIT", ":", false) == -1 ? -1 : 0;
}
