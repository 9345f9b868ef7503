/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A folder for the files of a unit test, in TMPDIR. */
#ifndef FOLDER_H
#define FOLDER_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tap.h"

static char folder[256];

static inline void
make_folder (const char *test)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (folder, sizeof folder, "%s/%s-XXXXXX", tmp ? tmp : "/tmp", test);
  must (mkdtemp (folder) != NULL, folder);
}

/* A path in it; good for 8 calls. */
static inline const char *
at (const char *name)
{
  static char bufs[8][300];
  static unsigned next;
  char *buf = bufs[next++ % 8];

  snprintf (buf, sizeof bufs[0], "%s/%s", folder, name);
  return buf;
}

static inline int
remove_one (const char *path, const struct stat *st, int type,
            struct FTW *ftw)
{
  (void) st;
  (void) type;
  (void) ftw;
  return remove (path);
}

/* With all that is in it. */
static inline void
remove_folder (void)
{
  nftw (folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif /* FOLDER_H */
