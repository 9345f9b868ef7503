/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* How far long work has come, on standard error: a bar on a terminal, lines
 * in a log, JSON for a program.
 *
 *   struct progress *p = progress_start ("comparing",
 *                                        progress_style (wanted, json));
 *   r = long_work (..., progress_call, p);
 *   progress_finish (p, r == 0);
 *
 * What it shows never goes back, and it says 100 % at the end only: when
 * progress_finish is told that the work is complete.
 */
#ifndef NBDCHAIN_PROGRESS_H
#define NBDCHAIN_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress;

enum progress_style {
  PROGRESS_NONE,
  PROGRESS_BAR,                 /* one line, drawn again 10 times a second
                                   at most, once the work takes longer */
  PROGRESS_LINES,               /* a line a second at most, and the last */
  PROGRESS_JSON,                /* the same as JSON: "done" and "total"
                                   (bytes), "rate" (bytes a second), "left"
                                   (seconds, or null), "complete", and
                                   "limit" if it was told */
};

/* The style for a subcommand with the options --progress (WANTED) and --json
 * (JSON): without --progress there is a bar if standard error is a terminal,
 * else nothing. */
extern enum progress_style progress_style (bool wanted, bool json);

/* Begin to show WHAT ("comparing", copied).  Returns NULL if there is nothing
 * to be shown, or no memory for it: the functions below take that. */
extern struct progress *progress_start (const char *what,
                                        enum progress_style style)
  __attribute__ ((__nonnull__ (1)));

/* DONE bytes of TOTAL are done; TOTAL may still change.  Cheap, and may be
 * called from any thread: whoever comes when it is time to draw draws. */
extern void progress_update (struct progress *progress,
                             uint64_t done, uint64_t total);

/* What keeps it from being faster, a word that stays; "none", or NULL. */
extern void progress_limit (struct progress *progress, const char *limit);

/* progress_update as a callback; OPAQUE is the struct progress. */
extern void progress_call (void *opaque, uint64_t done, uint64_t total);

/* The end; frees PROGRESS.  COMPLETE: all was done.  If not, a bar is wiped
 * out, for what is to be said comes from elsewhere. */
extern void progress_finish (struct progress *progress, bool complete);

/* Wipe out the bar, if one is shown, because something else is about to be
 * printed.  The caller holds stderr (flockfile). */
extern void progress_hide (void);

#endif /* NBDCHAIN_PROGRESS_H */
