/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What image.c and rebase.c share: finding out what is to be recorded of a
 * backing. */
#ifndef NC_IMAGE_INTERNAL_H
#define NC_IMAGE_INTERNAL_H

#include "format/layer.h"

struct nc_tls;

/* Open the backing REF of format FORMAT, as the operator gives it for the
 * image at PATH, and fill in B: how to name it in the image, size, UUID and
 * identity.  FORMAT may be NULL, which is refused, and so may
 * TLS.  Returns -1 on error,
 * reported; B can be freed in any case. */
extern int nc_backing_learn (const char *path, const char *ref,
                             const char *format, const struct nc_tls *tls,
                             struct nc_backing *b)
  __attribute__ ((__nonnull__ (1, 2, 5)));
extern void nc_backing_free (struct nc_backing *b)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_IMAGE_INTERNAL_H */
