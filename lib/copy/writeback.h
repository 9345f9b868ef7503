/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Makes durable, every now and then, what a job stores, so that a job that is
 * killed has little to do again: what it stored in the last second, or the last
 * NC_FLUSHER_BYTES, whichever is less, and while a flush took.  Threads of its
 * own do that, so that neither job nor operator waits for it.  It has what is
 * stored written out all the time, so that no flush takes long, also not the
 * last one of a job. */
#ifndef NC_FLUSHER_H
#define NC_FLUSHER_H

#include <stdint.h>

#define NC_FLUSHER_BYTES (UINT64_C (64) << 20)
#define NC_FLUSHER_STEP (UINT64_C (4) << 20)    /* written out at a time */

struct nc_export;
struct nc_flusher;

/* Flushes go to DISK, which must stay.  Returns NULL on error, reported. */
extern struct nc_flusher *nc_flusher_new (struct nc_export *disk)
  __attribute__ ((__nonnull__ (1)));

/* COUNT bytes were stored.  From any thread; never waits. */
extern void nc_flusher_note (struct nc_flusher *flusher, uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* COUNT bytes at OFFSET of the disk were stored, of which the same is true, and
 * which nobody reads soon: once they are in storage they leave the memory, a
 * second later at most, with what a guest has written there by then. */
extern void nc_flusher_pass (struct nc_flusher *flusher, uint64_t offset,
                             uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* Release it when all that was stored is durable, so that all that has passed
 * leaves the memory; else with nc_flusher_free.  Both wait for a flush that is
 * under way.  NULL is allowed. */
extern void nc_flusher_finish (struct nc_flusher *flusher);
extern void nc_flusher_free (struct nc_flusher *flusher);

#endif /* NC_FLUSHER_H */
