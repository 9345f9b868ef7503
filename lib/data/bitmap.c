/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The bitmap in memory.  Invariant: a bit that was seen set is set for ever,
 * and a page's state never goes back; that alone makes it safe without
 * locks.  A page's words mean something only while it is mixed: of a page
 * that is none they are 0, of one that is all they are ignored. */

#include <config.h>

#include "data/bitmap.h"

#include <stdatomic.h>
#include <string.h>

#include "util/checked.h"

static inline enum nc_page_state
page_state (const struct nc_bitmap *bm, uint64_t page)
{
  return atomic_load_explicit (&bm->state[page], memory_order_acquire);
}

static inline _Atomic (uint64_t) *
page_bits (const struct nc_bitmap *bm, uint64_t page)
{
  return &bm->bits[page * NC_PAGE_STRIDE];
}

/* Move PAGE from state FROM to state TO, unless it has left FROM. */
static void
advance (struct nc_bitmap *bm, uint64_t page,
         enum nc_page_state from, enum nc_page_state to)
{
  uint8_t expected = from;

  atomic_compare_exchange_strong (&bm->state[page], &expected, to);
}

/* How many bits from BIT on, at most MAX, are equal to bit BIT of a mixed
 * page; *set says what they are. */
static unsigned
run_in_page (const _Atomic (uint64_t) *bits, unsigned bit, unsigned max,
             bool *set)
{
  unsigned n = 0;
  uint64_t flip = 0;

  while (n < max) {
    unsigned first = (bit + n) % 64;
    unsigned len = nc_min64 (64 - first, max - n);
    uint64_t w = atomic_load_explicit (&bits[(bit + n) / 64],
                                       memory_order_acquire) >> first;

    if (n == 0) {
      *set = w & 1;
      flip = *set ? ~UINT64_C (0) : 0;
    }
    w = (w ^ flip) & nc_word_mask (0, len);
    if (w)
      return n + __builtin_ctzll (w);
    n += len;
  }
  return n;
}

enum nc_bitmap_found
nc_bitmap_run (const struct nc_bitmap *bm, uint64_t blk, uint64_t max,
               uint64_t *run)
{
  uint64_t n = 0;
  bool first_set = false;

  while (n < max) {
    uint64_t page = (blk + n) / NC_PAGE_BLOCKS;
    unsigned bit = (blk + n) % NC_PAGE_BLOCKS;
    unsigned len = nc_min64 (NC_PAGE_BLOCKS - bit, max - n);
    unsigned equal = len;
    bool set = false;

    switch (page_state (bm, page)) {
    case NC_PAGE_UNLOADED:
      if (n == 0)
        return NC_RUN_UNLOADED;
      equal = 0;
      break;
    case NC_PAGE_NONE:
      break;
    case NC_PAGE_ALL:
      set = true;
      break;
    case NC_PAGE_MIXED:
      equal = run_in_page (page_bits (bm, page), bit, len, &set);
      break;
    }
    if (n == 0)
      first_set = set;
    else if (equal == 0 || set != first_set)
      break;
    n += equal;
    if (equal < len)
      break;
  }
  *run = n;
  return first_set ? NC_RUN_SET : NC_RUN_CLEAR;
}

void
nc_bitmap_set (struct nc_bitmap *bm, uint64_t blk, uint64_t count)
{
  while (count > 0) {
    uint64_t page = blk / NC_PAGE_BLOCKS;
    unsigned bit = blk % NC_PAGE_BLOCKS;
    unsigned len = nc_min64 (NC_PAGE_BLOCKS - bit, count);

    blk += len;
    count -= len;
    if (bit == 0 && len == nc_bitmap_page_blocks (bm, page)) {
      atomic_store_explicit (&bm->state[page], NC_PAGE_ALL,
                             memory_order_release);
      continue;
    }
    if (page_state (bm, page) == NC_PAGE_ALL)
      continue;
    advance (bm, page, NC_PAGE_NONE, NC_PAGE_MIXED);
    for (unsigned n; len > 0; bit += n, len -= n) {
      unsigned first = bit % 64;

      n = nc_min64 (64 - first, len);
      atomic_fetch_or_explicit (&page_bits (bm, page)[bit / 64],
                                nc_word_mask (first, n),
                                memory_order_release);
    }
  }
}

void
nc_bitmap_load (struct nc_bitmap *bm, uint64_t page, const uint64_t *words)
{
  if (page_state (bm, page) != NC_PAGE_UNLOADED)
    return;
  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
    atomic_store_explicit (&page_bits (bm, page)[i], words[i],
                           memory_order_relaxed);
  advance (bm, page, NC_PAGE_UNLOADED, NC_PAGE_MIXED);
}

void
nc_bitmap_load_equal (struct nc_bitmap *bm, uint64_t page, bool set)
{
  advance (bm, page, NC_PAGE_UNLOADED, set ? NC_PAGE_ALL : NC_PAGE_NONE);
}

unsigned
nc_bitmap_weight (const uint64_t *words)
{
  unsigned n = 0;

  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
    n += __builtin_popcountll (words[i]);
  return n;
}

/* All bits of a page that has N blocks. */
static void
fill_words (uint64_t *words, unsigned n)
{
  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i) {
    unsigned len = n > i * 64 ? nc_min64 (64, n - i * 64) : 0;

    words[i] = len ? nc_word_mask (0, len) : 0;
  }
}

enum nc_page_state
nc_bitmap_copy_page (struct nc_bitmap *bm, uint64_t page, uint64_t *words)
{
  unsigned nblocks = nc_bitmap_page_blocks (bm, page);
  unsigned weight;

  switch (page_state (bm, page)) {
  case NC_PAGE_ALL:
    fill_words (words, nblocks);
    return NC_PAGE_ALL;
  case NC_PAGE_MIXED:
    break;
  default:
    memset (words, 0, NC_PAGE_WORDS * sizeof *words);
    return NC_PAGE_NONE;
  }

  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
    words[i] = atomic_load_explicit (&page_bits (bm, page)[i],
                                     memory_order_acquire);
  weight = nc_bitmap_weight (words);
  if (weight == nblocks)
    advance (bm, page, NC_PAGE_MIXED, NC_PAGE_ALL);
  return weight == 0 ? NC_PAGE_NONE
    : weight == nblocks ? NC_PAGE_ALL : NC_PAGE_MIXED;
}

int
nc_bitmap_walk_words (const uint64_t *words, unsigned nblocks,
                      int (*fn) (void *opaque, unsigned blk, unsigned count),
                      void *opaque)
{
  unsigned blk = 0;

  while (blk < nblocks) {
    uint64_t w = words[blk / 64] >> (blk % 64);
    unsigned start;

    if (w == 0) {
      blk = (blk / 64 + 1) * 64;
      continue;
    }
    start = blk += __builtin_ctzll (w);
    while (blk < nblocks) {
      uint64_t ones = ~(words[blk / 64] >> (blk % 64));
      unsigned left = 64 - blk % 64, n;

      n = ones ? nc_min64 (__builtin_ctzll (ones), left) : left;
      blk += n;
      if (n < left)
        break;
    }
    blk = nc_min64 (blk, nblocks);
    if (start < blk && fn (opaque, start, blk - start) == -1)
      return -1;
  }
  return 0;
}
