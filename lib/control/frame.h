/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Where one JSON text ends and the next begins, in what a client sends.
 *
 * Nothing needs to stand between two of them.  What no JSON text can begin
 * with, or contain, is dropped up to the end of its line.  No locks, no I/O.
 */
#ifndef NC_FRAME_H
#define NC_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#define NC_FRAME_MAX 65536      /* bytes of a text */
#define NC_FRAME_DEPTH 32       /* objects and lists in one another */

struct nc_frame {
  char *text;                   /* what came of the current text */
  size_t len, size;
  unsigned depth;
  char quote;                   /* that ends the string; 0: in none */
  bool escaped, bad;
};

enum nc_frame_result {
  NC_FRAME_MORE,                /* nothing is complete */
  NC_FRAME_TEXT,                /* text[0..len-1] is, with strings in double
                                   quotes; nc_frame_reset */
  NC_FRAME_BAD,                 /* a line is no JSON, and dropped */
  NC_FRAME_TOO_LARGE,           /* longer or deeper than allowed: give up */
  NC_FRAME_NO_MEMORY,
};

/* Take one more byte of input.  FRAME is all zeros to begin with. */
extern enum nc_frame_result nc_frame_feed (struct nc_frame *frame, char c)
  __attribute__ ((__nonnull__ (1)));

/* Forget the text that is complete. */
extern void nc_frame_reset (struct nc_frame *frame)
  __attribute__ ((__nonnull__ (1)));

extern void nc_frame_free (struct nc_frame *frame)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_FRAME_H */
