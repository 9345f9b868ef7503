/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What an image wants of "nbdchain serve", which has to choose the filters of
 * nbdkit before nbdkit opens the image.
 *
 * The image is looked at as the plugin will do: the one that took over from
 * one that was retired counts.  Should it be another by then, nothing is
 * wrong: the filter asks the image that is served. */

#include <config.h>

#include "serve.h"

#include <stdio.h>
#include <string.h>

#include "chain/chain.h"
#include "chain/ref.h"
#include "image/image.h"
#include "tools.h"
#include "util/report.h"

static void
add_allowed (struct nc_allow *allow, const char *arg)
{
  if (strncmp (arg, "allow=", 6) == 0)
    nc_allow_add (allow, arg + 6);
}

static int
inspect (const char *image, char *const parameters[], size_t n,
         char *const extra[], struct nc_image_info *info)
{
  struct nc_allow *allow = nc_allow_new ();
  int r;

  if (allow == NULL)
    return -1;
  for (size_t i = 0; i < n; ++i)
    add_allowed (allow, parameters[i]);
  for (; *extra; ++extra)
    add_allowed (allow, *extra);
  r = nc_chain_inspect_top (&(struct nc_chain_options) {
      .image = image, .allow = allow, .memory_fd = -1, .read_only = true,
      .follow = true,
    }, info);
  nc_allow_free (allow);
  return r;
}

void
policy_read (const char *image, char *const parameters[], size_t n,
             char *const extra[], bool *whole, bool *profile)
{
  __attribute__ ((__cleanup__ (nc_image_info_free)))
    struct nc_image_info info = { 0 };
  int r;

  *whole = *profile = false;
  if (policy_has_filter (extra, "prefetch"))
    return;
  hush_reports (true);
  r = inspect (image, parameters, n, extra, &info);
  hush_reports (false);
  if (r == -1 || !info.has_backing)
    return;
  *whole = info.prefetch.whole;
  *profile = info.prefetch.profile;
  if (*whole || *profile)
    nc_notice ("%s: says --prefetch%s=on, so the filter for that is loaded "
               "(not with --no-prefetch)", info.path,
               *whole ? "" : "-profile");
}

/* VALUE is what nbdkit's --filter takes: a name, or a file. */
static bool
is_filter (const char *value, const char *name)
{
  const char *slash = strrchr (value, '/');
  char file[64];

  snprintf (file, sizeof file, "nbdkit-%s-filter.so", name);
  return strcmp (value, name) == 0 ||
    strcmp (slash ? slash + 1 : value, file) == 0;
}

bool
policy_has_filter (char *const argv[], const char *name)
{
  for (; *argv; ++argv)
    if ((strncmp (*argv, "--filter=", 9) == 0 &&
         is_filter (*argv + 9, name)) ||
        (strcmp (*argv, "--filter") == 0 && argv[1] &&
         is_filter (argv[1], name)))
      return true;
  return false;
}
