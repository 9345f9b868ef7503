/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What the files of this folder share: opening an image to change it, and
 * finding out what is to be recorded of a backing. */
#ifndef NC_IMAGE_INTERNAL_H
#define NC_IMAGE_INTERNAL_H

#include "format/layer.h"

struct nc_allow;
struct nc_data_policy;
struct nc_dev;
struct nc_path;
struct nc_tls;

/* Open the fvd image DEV (taken over, also on failure), known as PATH, to
 * change it without its chain: for writing, waiting for nc_layer_begin.
 * Refuses an image that is not the active one of its disk.
 * ALLOW: where its backing may be that it took over from; may be NULL.
 * DATA: how its data file is to be opened; NULL: it is not.
 * Returns NULL on error, reported. */
extern struct nc_layer *nc_image_open_to_change (struct nc_dev *dev,
                                                 const char *path,
                                                 const struct nc_allow *allow,
                                                 struct nc_data_policy *data)
  __attribute__ ((__nonnull__ (1, 2)));

/* Open the backing REF of format FORMAT, as the operator gives it for IMAGE,
 * which is called NAME in messages, and fill in B: how to name it in the image,
 * size, UUID and identity.  FORMAT may be NULL, which is refused, and so may
 * TLS.  Returns -1 on error, reported; B can be freed in any case. */
extern int nc_backing_learn (const struct nc_path *image, const char *name,
                             const char *ref, const char *format,
                             const struct nc_tls *tls, struct nc_backing *b)
  __attribute__ ((__nonnull__ (1, 2, 3, 6)));
extern void nc_backing_free (struct nc_backing *b)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_IMAGE_INTERNAL_H */
