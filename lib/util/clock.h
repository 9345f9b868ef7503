/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The clock that never goes back. */
#ifndef NC_CLOCK_H
#define NC_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NC_SECOND UINT64_C (1000000000) /* nanoseconds */

static inline uint64_t
nc_now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * NC_SECOND + (uint64_t) t.tv_nsec;
}

#endif /* NC_CLOCK_H */
