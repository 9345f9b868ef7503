/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Sequential reads, found among the reads of all clients, and how far to read
 * ahead of each.
 *
 * A stream is a place that reads move on from.  It may be read by several
 * requests at a time that overtake each other a little, over one connection
 * or many, and there may be several streams.  After NC_AHEAD_READS reads in a
 * row, of NC_AHEAD_SEEN bytes, it gets a window: so much behind its place is
 * asked for.  The window doubles each time that the reader has to wait for
 * what was asked for, though never to more than the reader has read, more
 * than 8 MiB if that is not a sixteenth of it, or more than the maximum.
 *
 * No I/O, no clock (times are nanoseconds that never go back) and no lock of
 * its own: the caller holds one around each call but nc_ahead_is_due.
 */
#ifndef NC_AHEAD_H
#define NC_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

#define NC_AHEAD_STREAMS 16
#define NC_AHEAD_READS 3
#define NC_AHEAD_SEEN (UINT64_C (128) << 10)
#define NC_AHEAD_PIECE_MIN (UINT64_C (128) << 10)
#define NC_AHEAD_PIECE_MAX (UINT64_C (1) << 20)
#define NC_AHEAD_IDLE UINT64_C (2000000000)     /* ends a stream */

struct nc_ahead_stream {
  uint64_t start, place;        /* where it began and where it is, bytes */
  uint64_t seen;                /* bytes read in it */
  unsigned reads;               /* 0: not in use */
  uint64_t window;              /* bytes; 0: not sure yet */
  uint64_t grown;               /* waiting for what was asked for from here
                                   on makes the window grow */
  uint64_t used;                /* when it was last read */

  /* What nc_ahead_is_due looks at: a read that comes to DUE, and begins
   * before ASKED, lets more be asked for.  Both 0 without a window. */
  _Atomic (uint64_t) due, asked;
};

struct nc_ahead {
  uint64_t size;                /* of the disk */
  uint64_t max;                 /* of a window; 0: never read ahead */
  unsigned turn;                /* whose stream it is next */
  unsigned n_windows;           /* streams that have one */
  struct nc_ahead_stream stream[NC_AHEAD_STREAMS];
};

extern void nc_ahead_init (struct nc_ahead *ahead, uint64_t size,
                           uint64_t max)
  __attribute__ ((__nonnull__ (1)));

/* A client needs the range, which was not local and was not asked for.
 * slack: how far from the place of a stream it may be to belong there.
 * Returns whether it is part of a stream that has a window. */
extern bool nc_ahead_read (struct nc_ahead *ahead, uint64_t offset,
                           uint64_t count, uint64_t slack, uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* Whether nc_ahead_passed is worth a call for this range. */
extern bool nc_ahead_is_due (struct nc_ahead *ahead, uint64_t offset,
                             uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* A client has read the range, which was asked for before. */
extern void nc_ahead_passed (struct nc_ahead *ahead, uint64_t offset,
                             uint64_t count, uint64_t now)
  __attribute__ ((__nonnull__ (1)));

/* A client waits for what was asked for at OFFSET. */
extern void nc_ahead_waits (struct nc_ahead *ahead, uint64_t offset)
  __attribute__ ((__nonnull__ (1)));

/* Set the range that is to be asked for next.  Returns false if there is
 * none. */
extern bool nc_ahead_next (struct nc_ahead *ahead, uint64_t *offset,
                           uint64_t *count)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* End the streams that nobody reads any more, or all if ALL. */
extern void nc_ahead_end (struct nc_ahead *ahead, uint64_t now, bool all)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_AHEAD_H */
