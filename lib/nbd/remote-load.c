/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Loads libnbdchain-remote.so, once for the life of the process.
 *
 * It is taken from where libnbdchain.so was taken from, by its path: so no
 * search finds that of another nbdchain, in the build tree, in a prefix that
 * the system does not know, and with a sanitizer, whose dlopen forgets who
 * has called it.  That path is good for as long as nbdkit has not changed its
 * directory, even if it is relative: remotes and what is allowed are looked
 * at before nbdkit goes to the background and gives up its rights.
 *
 * A package may have been upgraded under a running server, so the library
 * has to be of this version. */

#include <config.h>

#include "nbd/remote.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "util/report.h"
#include "util/scope.h"

#define LIBRARY "libnbdchain-remote.so"

static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Written under "once". */
static const struct nc_remote *loaded;
static char failure[1024];

static void
fail (const char *reason)
{
  snprintf (failure, sizeof failure, "%s", reason ? : "unknown error");
}

/* The path of LIBRARY, allocated; NULL: not known. */
static char *
find_library (void)
{
  Dl_info self;
  const char *slash;
  char *path;

  if (dladdr (&once, &self) == 0 ||
      (slash = strrchr (self.dli_fname, '/')) == NULL)
    return NULL;
  if (asprintf (&path, "%.*s/%s", (int) (slash - self.dli_fname),
                self.dli_fname, LIBRARY) == -1)
    return NULL;
  return path;
}

static void
load (void)
{
  NC_FREE char *path = find_library ();
  /* Never closed: its threads and destructors live as long as we do. */
  void *library = dlopen (path ? : LIBRARY, RTLD_NOW | RTLD_LOCAL);
  const struct nc_remote *table;

  if (library == NULL) {
    fail (dlerror ());
    return;
  }
  table = dlsym (library, "nc_remote_table");
  if (table == NULL) {
    fail (dlerror ());
    return;
  }
  if (strcmp (table->version, PACKAGE_VERSION) != 0) {
    snprintf (failure, sizeof failure, "%s: of nbdchain %s, while this is %s",
              path ? : LIBRARY, table->version, PACKAGE_VERSION);
    return;
  }
  loaded = table;
}

const struct nc_remote *
nc_remote_load (void)
{
  pthread_once (&once, load);
  if (loaded)
    return loaded;
  nc_error ("what NBD servers as layers need cannot be loaded: %s; install "
            "nbdchain again, and start anew", failure);
  errno = ELIBACC;
  return NULL;
}
