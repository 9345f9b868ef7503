/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Data files: which file an image names for its data, and whether it may be
 * written.
 *
 * An image is hostile input, and what it names is somebody's file.  To read it
 * is a matter of where it is (chain/ref.h).  To write it takes that the file
 * carries a mark with the UUID of the image, which whoever may write to the
 * file has put there, and that image and file are regular files of one owner:
 * for attributes do not tell who set them, and a UUID can be copied.  Or it
 * takes the operator's word, who names the file. */
#ifndef NC_DATA_FILE_H
#define NC_DATA_FILE_H

#include <stdbool.h>

struct nc_allow;
struct nc_dev;
struct nc_layer;

struct nc_data_policy {
  const struct nc_allow *allow; /* NULL: nothing */
  const char *file;             /* the operator's word; NULL: none */
  bool unlocked;                /* take no locks */
  bool used;                    /* it has been asked for */
};

/* As nc_layer_options.open_data; OPAQUE is a struct nc_data_policy.  FILE is
 * opened in place of what the image names, by the operator's rules
 * (nc_path_open).  A file that is marked for another image is refused in any
 * case. */
extern struct nc_dev *nc_data_file_open (void *opaque,
                                         const struct nc_layer *layer,
                                         const char *ref)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* After the layer of the image called PATH was opened: the operator has named a
 * data file, and there is none.  Returns -1 with errno EINVAL, reported. */
extern int nc_data_file_check_used (const struct nc_data_policy *policy,
                                    const char *path)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_DATA_FILE_H */
