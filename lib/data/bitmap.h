/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One bit a block, in pages, each with a state that spares looking at (and
 * having) its bits where all are equal.
 *
 * Bits only go from 0 to 1, and a page's state only forward:
 *
 *   unloaded -> none -> mixed -> all        (any step may be skipped)
 *
 * so readers need no lock: what they saw set stays set.  Setting a bit is a
 * release and seeing it set an acquire: who sees a bit also sees the data
 * that was written before.  The memory comes from the caller, zeroed, which
 * means that every page is unloaded; it may be shared with a later process.
 * No I/O and no locks here: who meets an unloaded page loads it.
 *
 * All functions may be called from any thread at any time.
 */
#ifndef NC_BITMAP_H
#define NC_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bits of a page: what fits a 512-byte sector with its checksum. */
#define NC_PAGE_BLOCKS 4032
#define NC_PAGE_WORDS (NC_PAGE_BLOCKS / 64)
/* Words between two pages in memory. */
#define NC_PAGE_STRIDE 64

enum nc_page_state {
  NC_PAGE_UNLOADED = 0,
  NC_PAGE_NONE,
  NC_PAGE_MIXED,
  NC_PAGE_ALL,
};

struct nc_bitmap {
  uint64_t nblocks, npages;
  _Atomic (uint8_t) *state;     /* npages */
  _Atomic (uint64_t) *bits;     /* npages * NC_PAGE_STRIDE */
};

/* Bytes that the two arrays need. */
static inline size_t
nc_bitmap_state_size (uint64_t npages)
{
  return npages;
}

static inline size_t
nc_bitmap_bits_size (uint64_t npages)
{
  return npages * NC_PAGE_STRIDE * sizeof (uint64_t);
}

static inline uint64_t
nc_bitmap_npages (uint64_t nblocks)
{
  return nblocks / NC_PAGE_BLOCKS + (nblocks % NC_PAGE_BLOCKS != 0);
}

/* How many blocks page PAGE has (the last one may have fewer). */
static inline unsigned
nc_bitmap_page_blocks (const struct nc_bitmap *bm, uint64_t page)
{
  uint64_t left = bm->nblocks - page * NC_PAGE_BLOCKS;

  return left < NC_PAGE_BLOCKS ? left : NC_PAGE_BLOCKS;
}

/* What nc_bitmap_run found. */
enum nc_bitmap_found {
  NC_RUN_CLEAR,
  NC_RUN_SET,
  NC_RUN_UNLOADED,              /* the page of BLK must be loaded first */
};

/* The state of block BLK, and in *RUN how many blocks from BLK on share it:
 * at least 1, at most MAX.  MAX > 0 and BLK + MAX <= nblocks.
 * For NC_RUN_UNLOADED *run is not set. */
extern enum nc_bitmap_found nc_bitmap_run (const struct nc_bitmap *bm,
                                           uint64_t blk, uint64_t max,
                                           uint64_t *run)
  __attribute__ ((__nonnull__ (1, 4)));

/* Set COUNT bits from BLK on.  No page of the range may be unloaded, except
 * those that it covers wholly. */
extern void nc_bitmap_set (struct nc_bitmap *bm, uint64_t blk,
                           uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* Make an unloaded page loaded, with the NC_PAGE_WORDS words at WORDS; the
 * caller lets nobody else load this page meanwhile.  If the page became
 * loaded in another way, nothing changes. */
extern void nc_bitmap_load (struct nc_bitmap *bm, uint64_t page,
                            const uint64_t *words)
  __attribute__ ((__nonnull__ (1, 3)));

/* The same for a page whose blocks are all equal. */
extern void nc_bitmap_load_equal (struct nc_bitmap *bm, uint64_t page,
                                  bool set)
  __attribute__ ((__nonnull__ (1)));

/* Copy the bits of a loaded page to WORDS, whatever its state.  A page found
 * full becomes NC_PAGE_ALL.  Returns the state that describes the copy. */
extern enum nc_page_state nc_bitmap_copy_page (struct nc_bitmap *bm,
                                               uint64_t page,
                                               uint64_t *words)
  __attribute__ ((__nonnull__ (1, 3)));

/* Number of bits set in a page's worth of words. */
extern unsigned nc_bitmap_weight (const uint64_t *words)
  __attribute__ ((__nonnull__ (1)));

/* The mask of bits [first, first+n) of a word; 0 < n, first + n <= 64. */
static inline uint64_t
nc_word_mask (unsigned first, unsigned n)
{
  return (~UINT64_C (0) >> (64 - n)) << first;
}

/* Call FN for each run of set bits in WORDS, block numbers being relative to
 * the page.  Stops when FN returns -1, and returns that. */
extern int nc_bitmap_walk_words (const uint64_t *words, unsigned nblocks,
                                 int (*fn) (void *opaque, unsigned blk,
                                            unsigned count),
                                 void *opaque)
  __attribute__ ((__nonnull__ (1, 3)));

#endif /* NC_BITMAP_H */
