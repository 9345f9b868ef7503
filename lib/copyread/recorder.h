/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Recording which parts of the disk a guest reads first, and when: a profile.
 *
 * The disk is looked at in grains, of which each has a bit.  A read whose
 * grains all have been read before costs a look at their bits; only the first
 * one takes a lock.  Memory: a bit a grain, at most NC_PROFILE_GRAINS of
 * them, and the ranges, at most NC_PROFILE_RANGES.
 *
 * It also compares what is read with a profile that was recorded before.
 */
#ifndef NC_PROFILE_H
#define NC_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image/image.h"

struct nc_profile;

#define NC_PROFILE_GRAIN (UINT32_C (16) << 10)  /* bytes, at least */
#define NC_PROFILE_GRAINS (UINT64_C (8) << 20)
#define NC_PROFILE_RANGES 65536
/* What is read next to the last range so much later becomes one with it. */
#define NC_PROFILE_TOGETHER 100         /* milliseconds */

struct nc_profile_stats {
  bool is_recording;
  uint64_t ranges;              /* recorded so far */
  uint64_t bytes;               /* that they have */
  uint64_t lost;                /* ranges for which there was no room */
  uint64_t named;               /* bytes of the profile it is compared with */
  uint64_t touched;             /* bytes read since, each once */
  uint64_t hit;                 /* of these, bytes that it names */
};

/* For a disk of SIZE bytes in blocks of BLOCK_SIZE.  Returns NULL with errno
 * ENOMEM, reported. */
extern struct nc_profile *nc_profile_new (uint64_t size, uint32_t block_size);
extern void nc_profile_free (struct nc_profile *profile);

/* The guest reads COUNT bytes, at least 1, at OFFSET.  From any thread; it
 * does not block, but for the moment that a first touch takes. */
extern void nc_profile_touch (struct nc_profile *profile, uint64_t offset,
                              uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* Compare what is read from now on with RANGES.  Once only, before threads
 * touch it.  Returns -1 with errno ENOMEM, reported. */
extern int nc_profile_compare (struct nc_profile *profile,
                               const struct nc_profile_range *ranges,
                               size_t n)
  __attribute__ ((__nonnull__ (1)));

/* Forget what was read, and record what is read from now on.  The comparison
 * begins anew, too. */
extern void nc_profile_start (struct nc_profile *profile)
  __attribute__ ((__nonnull__ (1)));

/* End recording; *RANGES (allocated; the caller frees it) are those that were
 * read, in their order, with the time since the first.  Returns -1 with errno
 * ENOENT if nothing is being recorded, not reported. */
extern int nc_profile_stop (struct nc_profile *profile,
                            struct nc_profile_range **ranges, size_t *n)
  __attribute__ ((__nonnull__ (1, 2, 3)));

extern void nc_profile_get (struct nc_profile *profile,
                            struct nc_profile_stats *stats)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_PROFILE_H */
