/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Prefetch: a stream of the whole disk that nobody waits for, and so has
 * manners (pace.h).  First, and at once, what a profile names: that is waited
 * for.  When all is local the image needs no backing any more, as after a
 * stream, and the backing is let go.
 *
 * An error is not its end: it is tried again, later.
 */
#ifndef NC_PREFETCH_H
#define NC_PREFETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chain/activity.h"
#include "image/image.h"
#include "job/job.h"

struct nc_chain;
struct nc_prefetch;

/* As it is at a moment. */
struct nc_prefetch_info {
  struct nc_prefetch_policy policy;     /* with defaults put in */
  uint64_t read_rate, write_rate;       /* averages; bytes a second, 0: not
                                           measured yet */
  uint64_t alone_rate;          /* got while the guest was idle; 0: unknown */
  unsigned pauses;              /* because of a low rate */
  uint64_t profile_size;        /* bytes that are wanted first */
  bool is_at_profile;           /* and being read */
};

/* POLICY is copied: WHOLE says whether to go on behind the profile.  RANGES
 * is the profile, in bytes; copied; none if policy->profile is not set.
 * Returns NULL with errno ENOMEM, reported. */
extern struct nc_prefetch *
nc_prefetch_new (const struct nc_prefetch_policy *policy,
                 const struct nc_profile_range *ranges, size_t n)
  __attribute__ ((__nonnull__ (1)));

/* Where the requests of the guest are counted. */
extern struct nc_guest *nc_prefetch_guest (struct nc_prefetch *prefetch)
  __attribute__ ((__nonnull__ (1)));

/* Begin, as a job of JOBS; see nc_job_create for ID, OPTS, WHY and errno, and
 * nc_stream_new; an error is reported, too.  opts->on_error does not count.
 * Once only.  CHAIN and PREFETCH must stay until the job is gone. */
extern int nc_prefetch_start (struct nc_prefetch *prefetch,
                              struct nc_jobs *jobs, const char *id,
                              struct nc_chain *chain,
                              const struct nc_job_options *opts,
                              char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 4, 5, 6)));

/* Change the policy, at any time.  Whether to read the whole image, and the
 * profile, cannot be changed any more.
 * Returns -1 with errno EINVAL, reported, if it makes no sense. */
extern int nc_prefetch_amend (struct nc_prefetch *prefetch,
                              const struct nc_image_amendment *amendment)
  __attribute__ ((__nonnull__ (1, 2)));

extern void nc_prefetch_get (struct nc_prefetch *prefetch,
                             struct nc_prefetch_info *info)
  __attribute__ ((__nonnull__ (1, 2)));

/* Its job is gone.  NULL is allowed. */
extern void nc_prefetch_free (struct nc_prefetch *prefetch);

#endif /* NC_PREFETCH_H */
