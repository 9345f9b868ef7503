/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Stream: populate the active layer from everything above a base, or from
 * everything, and then let it go without what was above the base.
 *
 *   stream = nc_stream_new (chain, base, &hooks, opaque);
 *   while ((r = nc_stream_run (stream)) == 1)     interrupted
 *     ...
 *   if (r == 0) r = nc_stream_finish (stream);
 *   nc_stream_free (stream);
 *
 * It can be left, or the process killed, at any time: what was brought in
 * stays, but for a little (flusher.h), and another stream goes on from there.
 * Clients may use the disk meanwhile; what they write wins.  As a job it is
 * nc_stream_create.
 */
#ifndef NC_STREAM_H
#define NC_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "copy/ring.h"
#include "job/job.h"

struct nc_chain;
struct nc_profile_range;
struct nc_stream;

/* What became of the bytes so far. */
struct nc_stream_count {
  uint64_t copied;              /* read, and stored where not zeros */
  uint64_t zero;                /* known to be zeros: not read */
  uint64_t local;               /* nothing to be done */
};

/* May all be NULL. */
struct nc_stream_hooks {
  /* As in struct nc_ring_ops. */
  int (*throttle) (void *opaque, uint64_t count);
  int (*failed) (void *opaque, enum nc_ring_step step, int err,
                 unsigned tries);

  /* How many bytes to read at a time, where a read takes WAY nanoseconds at
   * least; asked before each piece, and when the stream is made: more than
   * that, or NC_RING_PIECE, it will not be. */
  uint32_t (*unit) (void *opaque, uint64_t way);

  /* Whether what is about to be read comes behind the guest (standback.h).
   * From any thread. */
  bool (*stands_back) (void *opaque);

  /* A read or store begins; it has ended, with COUNT bytes, 0 if it failed.
   * From any thread. */
  void (*began) (void *opaque, enum nc_ring_step step);
  void (*ended) (void *opaque, enum nc_ring_step step, uint64_t count);

  /* DONE bytes of TOTAL are dealt with.  Called with a lock held: it must not
   * wait, and must not call anything here. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total,
                    const struct nc_stream_count *count);
};

/* Stream CHAIN, which has been started, down to the layer called BASE; NULL:
 * all of it.  HOOKS and OPAQUE must stay.  Returns NULL on error, reported:
 * errno EROFS (the chain is not writable), ENOENT (no such layer). */
extern struct nc_stream *nc_stream_new (struct nc_chain *chain,
                                        const char *base,
                                        const struct nc_stream_hooks *hooks,
                                        void *opaque)
  __attribute__ ((__nonnull__ (1, 3)));

/* Before it first runs: copy what is missing of these ranges, in this order,
 * before the rest, or, with ALONE, and nothing else.  They are cut to the
 * disk, and may overlap; RANGES must stay.  They count once more in the
 * progress. */
extern void nc_stream_first (struct nc_stream *stream,
                             const struct nc_profile_range *ranges, size_t n,
                             bool alone)
  __attribute__ ((__nonnull__ (1)));

/* In throttle: whether what is about to be read is one of those. */
extern bool nc_stream_is_at_first (const struct nc_stream *stream)
  __attribute__ ((__nonnull__ (1)));

/* What the progress counts up to. */
extern uint64_t nc_stream_total (const struct nc_stream *stream)
  __attribute__ ((__nonnull__ (1)));

/* Never more than so many reads in flight; at any time.  0: as many as help.
 */
extern void nc_stream_set_limit (struct nc_stream *stream, unsigned limit)
  __attribute__ ((__nonnull__ (1)));

/* Copy.  Returns as nc_ring_run. */
extern int nc_stream_run (struct nc_stream *stream)
  __attribute__ ((__nonnull__ (1)));

/* Let nc_stream_run return soon; from any thread. */
extern void nc_stream_interrupt (struct nc_stream *stream)
  __attribute__ ((__nonnull__ (1)));

/* All was copied, and it is not run any more: make it durable, record the new
 * backing, and go on without the layers that are not needed; see
 * nc_chain_set_backing. */
extern int nc_stream_finish (struct nc_stream *stream)
  __attribute__ ((__nonnull__ (1)));

/* What became of the bytes; not while it runs. */
extern void nc_stream_counted (const struct nc_stream *stream,
                               struct nc_stream_count *count)
  __attribute__ ((__nonnull__ (1, 2)));

/* Waits for reads that hang (nc_chain_stop ends those).  NULL is allowed. */
extern void nc_stream_free (struct nc_stream *stream);

/* A job of JOBS that streams; see nc_job_create for ID, OPTS, WHY and errno,
 * nc_stream_new for BASE, and nc_chain_set_backing for REF, with which there
 * is a BASE.  Errors of nc_stream_new are reported, too.
 * CHAIN must stay until the job is gone from the list, which waits for reads
 * that hang. */
extern int nc_stream_create (struct nc_jobs *jobs, const char *id,
                             struct nc_chain *chain, const char *base,
                             const char *ref,
                             const struct nc_job_options *opts,
                             char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 3, 6, 7)));

/* Whether REF, which an operator gave or a record has, is what an image may
 * call its backing: not a command.  What is wrong with it is reported. */
extern bool nc_stream_is_ref (const char *ref)
  __attribute__ ((__nonnull__ (1)));

/* nc_stream_create after a restart: an nc_job_start_fn, with the chain. */
extern int nc_stream_resume (void *chain, struct nc_jobs *jobs,
                             const char *id, struct json_t *args,
                             const struct nc_job_options *opts,
                             char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 4, 5, 6)));

#endif /* NC_STREAM_H */
