/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A stream whose throttle is the policy. */

#include <config.h>

#include "job/prefetch.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain/chain.h"
#include "copy/pacer.h"
#include "job/stream.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"

struct nc_prefetch {
  struct nc_guest guest;
  struct nc_profile_range *ranges;
  size_t n;

  struct nc_chain *chain;
  struct nc_stream *stream;     /* the job's */
  struct nc_job *job;
  struct nc_stream_count told;

  pthread_mutex_t lock;         /* guards the rest */
  struct nc_prefetch_policy policy;     /* as it was given */
  struct nc_pace pace;
  struct nc_guest_look look;
  bool has_stream;              /* whose limit can be set */
  uint64_t profile_size;
  bool is_at_profile;
};

/* Others on the same source must not pause when we do. */
static uint64_t
seed (const void *p)
{
  struct timespec t;

  clock_gettime (CLOCK_REALTIME, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec + (uintptr_t) p;
}

/* Beside the guest.  What is read at a time keeps a processor from it, and
 * nobody waits for prefetching. */
#define SHORTEST (UINT32_C (32) << 10)

struct nc_prefetch *
nc_prefetch_new (const struct nc_prefetch_policy *policy,
                 const struct nc_profile_range *ranges, size_t n)
{
  struct nc_prefetch *p = calloc (1, sizeof *p);

  if (p && policy->profile && n > 0) {
    p->ranges = calloc (n, sizeof *ranges);
    p->n = n;
  }
  if (p == NULL || (p->n > 0 && p->ranges == NULL)) {
    nc_error ("prefetch: %m");
    free (p);
    return NULL;
  }
  for (size_t i = 0; i < p->n; ++i) {
    p->ranges[i] = ranges[i];
    p->profile_size += ranges[i].count;
  }
  pthread_mutex_init (&p->lock, NULL);
  p->policy = *policy;
  nc_pace_init (&p->pace, policy, SHORTEST, seed (p), nc_now ());
  return p;
}

struct nc_guest *
nc_prefetch_guest (struct nc_prefetch *p)
{
  return &p->guest;
}

static enum nc_pace_guest
look_at_guest_locked (struct nc_prefetch *p, uint64_t time)
{
  const bool busy = nc_guest_is_busy (&p->guest, &p->look, time);

  if (nc_chain_cold_reads (p->chain) > 0)
    return NC_GUEST_WAITS;
  return busy ? NC_GUEST_BUSY : NC_GUEST_IDLE;
}

/* What the stream asks. */

static uint64_t
wait_locked (struct nc_prefetch *p, uint64_t count, enum nc_job_limit *why)
{
  const uint64_t time = nc_now ();

  p->is_at_profile = nc_stream_is_at_first (p->stream);
  if (p->is_at_profile)
    return nc_pace_wait_urgent (&p->pace, count, time, why);
  return nc_pace_wait (&p->pace, count, look_at_guest_locked (p, time), time,
                       why);
}

static int
throttle (void *opaque, uint64_t count)
{
  struct nc_prefetch *p = opaque;
  enum nc_job_limit why;
  uint64_t wait;

  for (;;) {
    {
      NC_LOCKED (&p->lock);
      wait = wait_locked (p, count, &why);
    }
    nc_job_set_limit (p->job, why);
    if (wait == 0)
      return nc_job_throttle (p->job, count);
    if (nc_job_sleep (p->job, wait) == -1)
      return -1;
  }
}

static uint32_t
unit (void *opaque, uint64_t way)
{
  struct nc_prefetch *p = opaque;

  NC_LOCKED (&p->lock);
  if (p->job == NULL)           /* the stream is being made */
    return p->pace.policy.unit;
  if (nc_stream_is_at_first (p->stream))
    return nc_pace_unit (&p->pace, NC_GUEST_IDLE, way);
  return nc_pace_unit (&p->pace, look_at_guest_locked (p, nc_now ()), way);
}

static enum nc_pace_op
op_of (enum nc_ring_step step)
{
  return step == NC_RING_STORE ? NC_PACE_WRITE : NC_PACE_READ;
}

static void
began (void *opaque, enum nc_ring_step step)
{
  struct nc_prefetch *p = opaque;

  NC_LOCKED (&p->lock);
  nc_pace_begin (&p->pace, op_of (step), nc_now ());
}

static void
ended (void *opaque, enum nc_ring_step step, uint64_t count)
{
  struct nc_prefetch *p = opaque;

  NC_LOCKED (&p->lock);
  nc_pace_end (&p->pace, op_of (step), count, nc_now ());
}

/* Wait before what failed is tried again, unless the operator wants
 * something. */
static void
back_off (struct nc_prefetch *p)
{
  uint64_t wait;

  nc_job_set_limit (p->job, NC_LIMIT_ERROR);
  {
    NC_LOCKED (&p->lock);
    wait = nc_pace_failed (&p->pace, nc_now ());
  }
  nc_job_sleep (p->job, wait);
}

/* OPERATION failed with errno ERR: it is tried again, later. */
static void
again (struct nc_prefetch *p, enum nc_job_operation operation, int err)
{
  nc_job_set_trouble (p->job, *nc_error_text () ? nc_error_text ()
                      : strerror (err));
  nc_job_error (p->job, operation, err);
  back_off (p);
}

static bool
stands_back (void *opaque)
{
  struct nc_prefetch *p = opaque;

  NC_LOCKED (&p->lock);
  return p->pace.restrained;
}

static int
failed (void *opaque, enum nc_ring_step step, int err, unsigned tries)
{
  (void) tries;                 /* the pace counts for all pieces */
  again (opaque, step == NC_RING_STORE ? NC_JOB_WRITE : NC_JOB_READ, err);
  return 0;
}

static void
tell (struct nc_prefetch *p, enum nc_job_counter which, uint64_t so_far,
      uint64_t *told)
{
  if (so_far != *told)
    nc_job_count (p->job, which, so_far - *told);
  *told = so_far;
}

static void
progress (void *opaque, uint64_t done, uint64_t total,
          const struct nc_stream_count *count)
{
  struct nc_prefetch *p = opaque;

  tell (p, NC_COUNT_COPIED, count->copied, &p->told.copied);
  tell (p, NC_COUNT_ZERO, count->zero, &p->told.zero);
  tell (p, NC_COUNT_LOCAL, count->local, &p->told.local);
  (void) total;                 /* it was told when the job was made */
  nc_job_progress (p->job, done);
}

static const struct nc_stream_hooks hooks = {
  .throttle = throttle,
  .failed = failed,
  .unit = unit,
  .stands_back = stands_back,
  .began = began,
  .ended = ended,
  .progress = progress,
};

/* The job. */

/* All is local: let go of the backing. */
static int
finish (struct nc_prefetch *p)
{
  for (;;) {
    nc_error_forget ();
    if (nc_stream_finish (p->stream) == 0)
      return 0;
    again (p, NC_JOB_WRITE, errno);
    if (nc_job_pause_point (p->job) == -1)
      return -1;
  }
}

static int
job_run (struct nc_job *job, void *opaque)
{
  struct nc_prefetch *p = opaque;
  int r;

  {
    NC_LOCKED (&p->lock);
    p->job = job;
  }
  nc_job_set_limit (job, NC_LIMIT_SOURCE);
  do {
    if (nc_job_pause_point (job) == -1)
      return -1;
    r = nc_stream_run (p->stream);
  } while (r == 1);
  if (r == 0)
    return p->policy.whole ? finish (p) : 0;
  nc_job_set_error (job, "%s", strerror (errno));
  return -1;
}

static void
job_wake (struct nc_job *job __attribute__ ((__unused__)), void *opaque)
{
  struct nc_prefetch *p = opaque;

  nc_stream_interrupt (p->stream);
}

static void
job_free (void *opaque)
{
  struct nc_prefetch *p = opaque;
  struct nc_stream *stream = p->stream;

  {
    NC_LOCKED (&p->lock);
    p->has_stream = false;
  }
  nc_stream_free (stream);
}

static const struct nc_job_type prefetch_type = {
  .name = "prefetch",
  .after_failure = "what it copied stays, and the backing is still needed",
  .run = job_run,
  .wake = job_wake,
  .free = job_free,
};

int
nc_prefetch_start (struct nc_prefetch *p, struct nc_jobs *jobs,
                   const char *id, struct nc_chain *chain,
                   const struct nc_job_options *opts, char why[NC_JOB_TEXT])
{
  struct nc_job_options job_opts = *opts;

  job_opts.on_error = NC_ON_ERROR_IGNORE;
  p->chain = chain;
  p->stream = nc_stream_new (chain, NULL, &hooks, p);
  if (p->stream == NULL) {
    snprintf (why, NC_JOB_TEXT, "%s", strerror (errno));
    return -1;
  }
  nc_stream_first (p->stream, p->ranges, p->n, !p->policy.whole);
  nc_stream_set_limit (p->stream, p->policy.slots);
  p->has_stream = true;
  job_opts.len = nc_stream_total (p->stream);
  if (nc_job_create (jobs, id, &prefetch_type, &job_opts, p, why) == 0)
    return 0;
  nc_error ("prefetch: %s", why);
  job_free (p);
  return -1;
}

/* At run time. */

int
nc_prefetch_amend (struct nc_prefetch *p,
                   const struct nc_image_amendment *amendment)
{
  struct nc_prefetch_policy policy;

  NC_LOCKED (&p->lock);
  policy = p->policy;
  nc_prefetch_policy_amend (&policy, amendment);
  policy.whole = p->policy.whole;
  policy.profile = p->policy.profile;
  if (nc_prefetch_policy_check (&policy, "prefetch") == -1)
    return -1;
  p->policy = policy;
  nc_pace_set (&p->pace, &policy, nc_now ());
  if (p->has_stream)
    nc_stream_set_limit (p->stream, policy.slots);
  return 0;
}

void
nc_prefetch_get (struct nc_prefetch *p, struct nc_prefetch_info *info)
{
  NC_LOCKED (&p->lock);
  *info = (struct nc_prefetch_info) {
    .policy = p->pace.policy,
    .read_rate = nc_pace_measured (&p->pace, NC_PACE_READ),
    .write_rate = nc_pace_measured (&p->pace, NC_PACE_WRITE),
    .alone_rate = (uint64_t) p->pace.alone,
    .pauses = p->pace.pauses,
    .profile_size = p->profile_size,
    .is_at_profile = p->is_at_profile,
  };
}

void
nc_prefetch_free (struct nc_prefetch *p)
{
  if (p == NULL)
    return;
  pthread_mutex_destroy (&p->lock);
  free (p->ranges);
  free (p);
}
