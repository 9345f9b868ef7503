/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Rebuilds, from a log of what was done to a directory (log.h), the states in
 * which a loss of power could have left it.
 *
 * For an instant of the log, a change that began before it
 *   - is there, if it had ended when a sync of its file began that ended
 *     before the instant, or if it was a write that is itself synchronous and
 *     had ended;
 *   - otherwise is there, is not, or is there in part: of a write any of its
 *     512-byte sectors, of a punched hole or range of zeros one end, a change
 *     of size wholly.
 * A name is there for certain only once its directory was synced.
 */

#ifndef HARNESS_REPLAY_H
#define HARNESS_REPLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model.h"
#include "pattern.h"

/* What a deliberately wrong reading of the log leaves out. */
enum replay_drop {
  DROP_NOTHING,
  DROP_BEFORE_JOURNAL,          /* syncs right before a journal record */
  DROP_JOURNAL,                 /* syncs of and right after such records */
};

struct replay;

/* Read the log FILE.  Returns NULL with a message. */
extern struct replay *replay_open (const char *file, enum replay_drop drop);
extern void replay_close (struct replay *r);

/* The instants between which something happened. */
extern void replay_range (const struct replay *r, uint64_t *first,
                          uint64_t *last);

/* How many syncs were left out. */
extern size_t replay_dropped (const struct replay *r);

/* The client's operations in order of start. */
extern struct op **replay_ops (const struct replay *r, size_t *n);

/* Choose an instant: any, or one just beside the begin or end of a sync. */
extern uint64_t replay_choose (const struct replay *r, struct rng *rng);

/* Choose an instant while a write of data that begins with MAGIC is under
 * way, or not yet durable; NEVER if there is none. */
extern uint64_t replay_choose_near (const struct replay *r,
                                    const char magic[4], struct rng *rng);

/* Write into the directory DIR, which must exist, a state of INSTANT chosen
 * by RNG; instants must not decrease from call to call.  Files of a call
 * before are replaced or removed.  INSTANT NEVER: all there is, in order.
 * Returns how many changes were open to choice, or -1 with a message. */
extern int64_t replay_write (struct replay *r, uint64_t instant,
                             struct rng *rng, const char *dir);

/* Make replay_write write every file anew, because DIR was changed. */
extern void replay_forget (struct replay *r);

/* Leave out changes whose process died within them: whether they were made
 * is not known.  Before the first replay_write. */
extern void replay_skip_unended (struct replay *r);

/* How the last state was chosen, in words. */
extern const char *replay_story (const struct replay *r);

/* Begin a log: record what is in DIR.  Returns 0 or -1 with a message. */
extern int replay_begin (const char *dir, const char *file);

/* Print the log. */
extern int replay_show (const char *file);

#endif /* HARNESS_REPLAY_H */
