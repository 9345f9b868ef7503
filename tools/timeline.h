/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A picture of a prefetch profile for the terminal: the disk from top to
 * bottom, the time from left to right, and how much was first read where and
 * when. */
#ifndef NBDCHAIN_TIMELINE_H
#define NBDCHAIN_TIMELINE_H

#include <stddef.h>
#include <stdint.h>

#include "image/image.h"

/* Print it on stdout: RANGES[0..N-1], of a disk of SIZE bytes, for a terminal
 * of WIDTH columns. */
extern void timeline_print (const struct nc_profile_range *ranges, size_t n,
                            uint64_t size, int width)
  __attribute__ ((__nonnull__ (1)));

/* "850 ms", "12.5 s" */
#define TIME_TEXT 24
extern const char *time_text (uint64_t milliseconds, char buf[TIME_TEXT])
  __attribute__ ((__nonnull__ (2)));

#endif /* NBDCHAIN_TIMELINE_H */
