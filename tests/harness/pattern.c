/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The bytes that a numbered write puts on the disk. */

#include <config.h>

#include "pattern.h"

#include <string.h>

enum { MIXED_UNIT = 4096 };     /* a mixed write has zeros in units of this */

static uint64_t
pattern_word (uint64_t key, uint64_t index)
{
  return mix64 (key + index * UINT64_C (0x9e3779b97f4a7c15)) |
    UINT64_C (0x0101010101010101);
}

static int
unit_is_zero (uint64_t key, uint64_t offset)
{
  return mix64 (key ^ (offset / MIXED_UNIT)) & 1;
}

void
pattern_bytes (uint64_t seed, uint64_t id, uint64_t offset,
               void *buf, size_t count)
{
  const uint64_t key = mix64 (seed * 2 + 1) ^ mix64 (id + 77);
  const enum pattern_fill fill = pattern_fill (seed, id);
  uint8_t *out = buf;

  while (count > 0) {
    const size_t skip = offset % 8;
    size_t n = 8 - skip;
    uint64_t word = pattern_word (key, offset / 8);

    if (n > count)
      n = count;
    if (fill == FILL_ZERO ||
        (fill == FILL_MIXED && unit_is_zero (key, offset)))
      word = 0;
    memcpy (out, (const uint8_t *) &word + skip, n);
    out += n;
    offset += n;
    count -= n;
  }
}
