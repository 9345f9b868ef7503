/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Two disks compared by content.
 *
 * What reads as zeros on both sides is not read, nor is what both take from
 * the same layer (one file, or one NBD URI, in one format), nor the side
 * that is zeros where the other is data.  For the rest many reads are under
 * way at a time, in order of offsets.
 *
 * A disk that ends before the other is taken as if it went on with zeros.
 */
#ifndef NC_COMPARE_H
#define NC_COMPARE_H

#include <stdbool.h>
#include <stdint.h>

struct nc_chain;

/* Bytes of the disk from the first that differs to the last one, with less
 * than NC_COMPARE_GAP equal ones at a time between them. */
struct nc_compare_range {
  uint64_t offset, count;
  uint64_t bytes;               /* that differ */
};

#define NC_COMPARE_GAP 512

struct nc_compare_options {
  bool all;                     /* do not stop at the first difference */

  /* Called for each range that differs, in order of offsets, one at a time;
   * not without ALL.  NULL: not called. */
  void (*difference) (void *opaque, const struct nc_compare_range *range);
  /* DONE of TOTAL bytes of the disk are compared; from any thread, one at a
   * time.  NULL: not called. */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *difference_opaque, *progress_opaque;
};

struct nc_compare_result {
  bool equal;
  uint64_t first;               /* the first byte that differs */
  uint64_t bytes, ranges;       /* that differ; counted only with ALL */

  /* Bytes of the larger disk, all of them if the comparison went through:
   * read and compared, from the same layer, zeros on both sides. */
  uint64_t compared, shared, zero;
};

/* Compare the disks of A and B, which have been started and are not written
 * meanwhile.  Starts threads, which have ended when it returns.
 * Returns 0 with *RESULT filled in, whether they are equal or not; or -1 if
 * one could not be read, reported. */
extern int nc_compare (struct nc_chain *a, struct nc_chain *b,
                       const struct nc_compare_options *opts,
                       struct nc_compare_result *result)
  __attribute__ ((__nonnull__ (1, 2, 3, 4)));

#endif /* NC_COMPARE_H */
