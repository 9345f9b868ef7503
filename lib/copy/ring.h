/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The ring: many pieces on their way from a source to storage at a time,
 * begun in order and reported in order, by a bounded number of threads.
 * What is copied, from where and to where, its owner says by functions.
 *
 * How many are in flight follows the time that reads take (window.h), up to
 * the limit.  Memory: a thread for each piece in flight, and a buffer for each
 * thread, NC_RING_MEMORY bytes in all.
 *
 *   ring = nc_ring_new (&ops, opaque, size);
 *   while ((r = nc_ring_run (ring)) == 1)      interrupted
 *     wait while paused, or leave;
 *   nc_ring_free (ring);                       waits for reads that hang
 */
#ifndef NC_RING_H
#define NC_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "copy/window.h"

#define NC_RING_MEMORY (UINT32_C (64) << 20)
#define NC_RING_PIECE (UINT32_C (1) << 20)      /* fills all threads */
#define NC_RING_PIECE_MAX (UINT32_C (4) << 20)  /* two of the largest block */
#define NC_RING_THREADS NC_WINDOW_MAX
#define NC_RING_SLOTS 256       /* pieces begun and not yet done, at most */

struct nc_ring;

struct nc_piece {
  uint64_t offset, count;       /* bytes */
  bool read;                    /* it is read and counts for the rate; COUNT
                                   is at most the size of a buffer.  Else it
                                   is only stored, or passed over. */
  unsigned kind;                /* the owner's, */
  const void *context;          /* and this */
};

enum nc_ring_step { NC_RING_PLAN, NC_RING_READ, NC_RING_STORE };

/* Functions return 0, or -1 with errno set and the error reported, unless
 * they say otherwise.  They are called with nothing held and may block, and
 * those of several pieces run at once; but for what is said here. */
struct nc_ring_ops {
  /* Set PIECE, all zeros, to the next one.  One call at a time, and in order.
   * Returns 1; or 0 when there is no more. */
  int (*next) (void *opaque, struct nc_piece *piece);

  /* NULL: no limit.  Wait until COUNT bytes may be read.  Returns -1, which
   * is no error, when the ring has been interrupted. */
  int (*throttle) (void *opaque, uint64_t count);

  /* Read PIECE into BUF.  Returns how often the source was asked, one time
   * after the other, or -1.  0: it was not; then how long that took says
   * nothing about the source.  When the ring is interrupted it is not waited
   * for; what it brings is then stored after the ring has been run again. */
  int (*read) (void *opaque, struct nc_piece *piece, void *buf);

  /* Store PIECE; BUF is NULL if it is not read.  Returns 1 if nothing was
   * stored because what was read, or known without reading, is out of date:
   * then the piece is read (again) and stored, by calls for parts that fit a
   * buffer, all but the last of the size of one; these are not throttled. */
  int (*store) (void *opaque, const struct nc_piece *piece, const void *buf);

  /* Pieces up to this one are copied.  In order, with the ring's lock held.
   */
  void (*done) (void *opaque, const struct nc_piece *piece);

  /* STEP of a piece failed with errno ERR, and nc_error_text, "" if it
   * reported nothing, after it had failed TRIES times already.
   * Not called for what was begun before the ring was interrupted last: that is
   * tried again first.  Returns 0: once more, when the ring is run
   * (again, if it was interrupted meanwhile); -1: the ring fails.
   * NULL: it fails. */
  int (*failed) (void *opaque, enum nc_ring_step step, int err,
                 unsigned tries);
};

/* OPS and OPAQUE must stay.  SIZE of a buffer: at most NC_RING_PIECE_MAX.
 * Returns NULL on error, reported. */
extern struct nc_ring *nc_ring_new (const struct nc_ring_ops *ops,
                                    void *opaque, uint32_t size)
  __attribute__ ((__nonnull__ (1)));

/* Begin or go on.  Returns 0 when all is copied; 1 when interrupted: then
 * nothing is being stored, and reads that are under way are kept; or -1 with
 * errno of the first error, after which it can only be freed. */
extern int nc_ring_run (struct nc_ring *ring)
  __attribute__ ((__nonnull__ (1)));

/* Let nc_ring_run, or the next call of it, return soon, whatever hangs. */
extern void nc_ring_interrupt (struct nc_ring *ring)
  __attribute__ ((__nonnull__ (1)));

/* Never more than so many in flight (from 1 to NC_RING_THREADS); at any time.
 */
extern void nc_ring_set_limit (struct nc_ring *ring, unsigned limit)
  __attribute__ ((__nonnull__ (1)));

/* How many there are now. */
extern unsigned nc_ring_in_flight (struct nc_ring *ring)
  __attribute__ ((__nonnull__ (1)));

/* How many nanoseconds a read takes at least, lately; 0: not known. */
extern uint64_t nc_ring_way (struct nc_ring *ring)
  __attribute__ ((__nonnull__ (1)));

/* How many nanoseconds all threads have read and stored so far, from any
 * thread; also in the functions above. */
extern void nc_ring_spent (const struct nc_ring *ring, uint64_t *reading,
                           uint64_t *storing)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Wait for what is under way, which is not stored any more, and release
 * everything.  The ring is not being run.  NULL is allowed. */
extern void nc_ring_free (struct nc_ring *ring);

#endif /* NC_RING_H */
