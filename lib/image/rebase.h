/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Another backing for an image that nobody serves, and the same disk over
 * it: what would read otherwise is populated first.
 *
 * Until the new backing is recorded, which is one write of the header after
 * all else is durable, the image has its old one and reads as before; what
 * was populated stays, so a rebase that was interrupted is run again. */
#ifndef NC_REBASE_H
#define NC_REBASE_H

#include <stdbool.h>
#include <stdint.h>

struct nc_allow;
struct nc_tls;

struct nc_rebase_options {
  const char *path;             /* the fvd image; not in use */
  const char *backing;          /* the new one, as the operator gives it;
                                   "": none any more */
  const char *backing_format;   /* needed with a backing */
  bool unsafe;                  /* only record it; the disk is another one
                                   then unless both backings are equal */
  const char *base;             /* reference in place of the one in the
                                   lowest image of the chain; NULL: none */
  const char *new_base;         /* the same for the chain of the backing */
  const char *data_file;        /* that of the image, as the operator gives it;
                                   NULL: as the image names it */
  const struct nc_allow *allow; /* may be NULL */
  const struct nc_tls *tls;     /* how remotes prove who they are; may be
                                   NULL */
  unsigned retry;               /* seconds to wait for a remote; 0: for
                                   ever */

  /* DONE of TOTAL bytes of the disk are settled; from any thread, one at a
   * time.  NULL: not called. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* Bytes of the disk. */
struct nc_rebase_result {
  uint64_t copied;              /* written to the image */
  uint64_t zeroed;              /* recorded as zeros in it */
};

/* Rebase.  Starts threads, which have ended when it returns.  Returns 0; or
 * -1 on error, reported: then the image has its old backing. */
extern int nc_image_rebase (const struct nc_rebase_options *opts,
                            struct nc_rebase_result *result)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_REBASE_H */
