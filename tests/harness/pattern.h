/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Random numbers and the bytes of a write, both as functions of a seed.
 *
 * A checker that knows the seed and the number of a write can say which bytes
 * the write had at any offset, so nothing but that number is kept or sent.
 * Every byte of a pattern is non-zero: zeros that turn up in place of data or
 * of the base are never mistaken for either.
 */

#ifndef HARNESS_PATTERN_H
#define HARNESS_PATTERN_H

#include <stddef.h>
#include <stdint.h>

struct rng {
  uint64_t state;
};

static inline uint64_t
mix64 (uint64_t x)
{
  x ^= x >> 30;
  x *= UINT64_C (0xbf58476d1ce4e5b9);
  x ^= x >> 27;
  x *= UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

static inline uint64_t
rng_next (struct rng *r)
{
  r->state += UINT64_C (0x9e3779b97f4a7c15);
  return mix64 (r->state);
}

/* A number from 0 to limit-1; limit must not be 0. */
static inline uint64_t
rng_below (struct rng *r, uint64_t limit)
{
  return rng_next (r) % limit;
}

/* A number from 1 to limit, small ones as likely as large ones. */
static inline uint64_t
rng_scaled (struct rng *r, uint64_t limit)
{
  unsigned bits = 64 - __builtin_clzll (limit);
  uint64_t n = rng_next (r) & ((UINT64_C (2) << rng_below (r, bits)) - 1);

  return 1 + n % limit;
}

/* How the bytes of write number ID look.  Number 0 is the base. */
enum pattern_fill { FILL_DATA, FILL_ZERO, FILL_MIXED };

static inline enum pattern_fill
pattern_fill (uint64_t seed, uint64_t id)
{
  if (id == 0)
    return FILL_DATA;
  switch (mix64 (seed ^ id * UINT64_C (0xd1342543de82ef95)) % 16) {
  case 0: return FILL_ZERO;
  case 1: return FILL_MIXED;
  default: return FILL_DATA;
  }
}

/* The bytes of write ID at OFFSET of the disk. */
extern void pattern_bytes (uint64_t seed, uint64_t id, uint64_t offset,
                           void *buf, size_t count)
  __attribute__ ((__nonnull__ (4)));

#endif /* HARNESS_PATTERN_H */
