/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Copy-on-read: what clients read of the layers below is stored in the active
 * layer, after they have got it.
 *
 *   cr = nc_copyread_new (&opts);
 *   nc_copyread_start (cr, chain);     after the last fork
 *     reads of clients
 *   nc_copyread_stop (cr);             stores what is waiting
 *   nc_chain_stop (chain);             ends reads that hang
 *   nc_copyread_end (cr);
 *   nc_copyread_free (cr);             no request is under way
 *
 * A small read brings its neighbourhood along, where that takes hardly longer
 * than the read alone; reads in sequence are read ahead of (ahead.h).  Several
 * readers of what is on its way wait for one read of the remote.
 *
 * Memory: at most MAX_OUTSTANDING bytes that were read for clients and wait to
 * be stored (who reads more is served, but it is not stored), and
 * NC_COPYREAD_AHEAD_MEMORY bytes that are read ahead.
 */
#ifndef NC_COPYREAD_H
#define NC_COPYREAD_H

#include <stdint.h>

#include "copyread/readahead.h"

struct nc_chain;
struct nc_copyread;

#define NC_COPYREAD_READERS 16          /* threads that read ahead */
#define NC_COPYREAD_WRITERS 2           /* threads that store */
#define NC_COPYREAD_AHEAD_MEMORY (NC_COPYREAD_READERS * NC_AHEAD_PIECE_MAX)

#define NC_COPYREAD_OUTSTANDING (UINT64_C (8) << 20)
#define NC_COPYREAD_NEIGHBOURHOOD (UINT64_C (64) << 10)
#define NC_COPYREAD_NEIGHBOURHOOD_MAX (UINT64_C (4) << 20)
#define NC_COPYREAD_AHEAD (UINT64_C (16) << 20)

struct nc_copyread_options {
  uint64_t max_outstanding;     /* bytes; 0: nothing is stored for reads of
                                   clients */
  uint64_t neighbourhood;       /* bytes, a power of two; 0: none */
  uint64_t read_ahead;          /* bytes, how far at most; 0: never; at most
                                   NC_COPYREAD_AHEAD_MEMORY */
  const char *bottom;           /* the lowest layer to copy from, by its name;
                                   NULL: all.  Must stay. */
};

/* What became of bytes so far. */
struct nc_copyread_count {
  uint64_t fetched;             /* for clients, neighbourhood included */
  uint64_t ahead;               /* read ahead */
  uint64_t joined;              /* requests that waited for one under way */
  uint64_t waiting;             /* for clients, and not stored yet */
  uint64_t not_stored;          /* read for clients, past max_outstanding */
};

/* Returns NULL on error, reported. */
extern struct nc_copyread *
nc_copyread_new (const struct nc_copyread_options *opts)
  __attribute__ ((__nonnull__ (1)));

/* Whether this is of use for CHAIN: -1, reported, if it is not writable.  Says
 * so if it has no layer OPTS->bottom. */
extern int nc_copyread_check (const struct nc_copyread *cr,
                              struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1, 2)));

/* Begin to copy what clients of CHAIN read.  Returns -1 on error, reported.
 */
extern int nc_copyread_start (struct nc_copyread *cr, struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1, 2)));

/* Copy no more; store what waits for that.  Does not wait for a remote. */
extern void nc_copyread_stop (struct nc_copyread *cr)
  __attribute__ ((__nonnull__ (1)));

/* End all threads.  Waits for reads that hang, and nc_chain_stop ends those.
 */
extern void nc_copyread_end (struct nc_copyread *cr)
  __attribute__ ((__nonnull__ (1)));

extern void nc_copyread_counted (struct nc_copyread *cr,
                                 struct nc_copyread_count *count)
  __attribute__ ((__nonnull__ (1, 2)));

/* NULL is allowed. */
extern void nc_copyread_free (struct nc_copyread *cr);

#endif /* NC_COPYREAD_H */
