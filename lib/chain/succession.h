/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Succession: which image of a disk may be written.
 *
 * A snapshot makes an image that takes over from its backing.  It becomes the
 * active one when the backing is retired in its favour; until then the backing
 * is, and both would be written.  nc_layer_begin refuses a layer that takes
 * over and was not checked here, so no opening for writing can leave this
 * out. */
#ifndef NC_SUCCESSION_H
#define NC_SUCCESSION_H

struct nc_allow;
struct nc_layer;

/* Whether LAYER, which is written or below a layer that is, has taken over from
 * BACKING, if it is one that takes over.  If it is the one that is written,
 * that is durable when this returns.  Returns 0; or -1 on error, with errno
 * EROFS if it has not, reported. */
extern int nc_succession_check (struct nc_layer *layer,
                                const struct nc_layer *backing)
  __attribute__ ((__nonnull__ (1, 2)));

/* The same for LAYER, opened for writing without a chain, and what is below it:
 * opens backings to look at their headers, as far down as layers take over.
 * ALLOW: where they may be, besides the directory of the image that names them;
 * may be NULL.  Blocks on I/O. */
extern int nc_succession_check_alone (struct nc_layer *layer,
                                      const struct nc_allow *allow)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_SUCCESSION_H */
