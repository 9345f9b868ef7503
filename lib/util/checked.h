/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Sums and roundings of offsets that cannot overflow unnoticed.  Numbers
 * read from a file or a peer go through these before they are used. */
#ifndef NC_CHECKED_H
#define NC_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

/* Largest offset or size that fits a file of this system. */
#define NC_OFFSET_MAX ((uint64_t) INT64_MAX)

/* Whether [offset, offset+count) lies inside [0, limit). */
static inline bool
nc_range_within (uint64_t offset, uint64_t count, uint64_t limit)
{
  return offset <= limit && count <= limit - offset;
}

static inline uint64_t
nc_min64 (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

static inline uint64_t
nc_max64 (uint64_t a, uint64_t b)
{
  return a > b ? a : b;
}

/* Roundings to a power of two; the caller knows that the sum fits. */
static inline uint64_t
nc_round_down (uint64_t n, uint64_t unit)
{
  return n & ~(unit - 1);
}

static inline uint64_t
nc_round_up (uint64_t n, uint64_t unit)
{
  return nc_round_down (n + unit - 1, unit);
}

static inline uint64_t
nc_div_up (uint64_t n, uint64_t unit)
{
  return n / unit + (n % unit != 0);
}

static inline bool
nc_is_power_of_2 (uint64_t n)
{
  return n != 0 && (n & (n - 1)) == 0;
}

#endif /* NC_CHECKED_H */
