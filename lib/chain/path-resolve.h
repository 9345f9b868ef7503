/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The path of a reference that was found inside an image, resolved without
 * leaving the directories that permit it. */
#ifndef NC_PATH_RESOLVE_H
#define NC_PATH_RESOLVE_H

#include <stdbool.h>
#include <stddef.h>

#include "util/path.h"

/* Directories, held open, below which a reference may lead. */
struct nc_permits {
  const struct nc_path *image;  /* the image that has the reference; its
                                   directory is one */
  const struct nc_path *dirs;   /* those that were allowed */
  size_t n_dirs;
};

/* Resolve TEXT, which starts at the image's directory if it is relative.
 * *path becomes the file that it leads to, and what is returned is a
 * descriptor (O_PATH) of that; *followed says whether a symbolic link was met.
 * -1 with errno, not reported: EPERM if it leads out; EISDIR if it is the
 * directory that it started at; only below a permitted directory the system's
 * errors, so that nothing is told of files elsewhere, not even that they
 * exist.  Then *path is NC_PATH_NONE. */
extern int nc_resolve (const struct nc_permits *permits, const char *text,
                       struct nc_path *path, bool *followed)
  __attribute__ ((__nonnull__ (1, 2, 3, 4)));

#endif /* NC_PATH_RESOLVE_H */
