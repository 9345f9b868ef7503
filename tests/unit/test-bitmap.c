/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/data/bitmap.c: pages and their states against a flat array, and
 * threads that set, load, look and copy at the same time. */

#include <config.h>

#include "data/bitmap.h"

#include "tap.h"
#include "util/checked.h"

#define P NC_PAGE_BLOCKS

static void
make (struct nc_bitmap *bm, uint64_t nblocks)
{
  bm->nblocks = nblocks;
  bm->npages = nc_bitmap_npages (nblocks);
  bm->state = calloc (1, nc_bitmap_state_size (bm->npages) + 1);
  bm->bits = calloc (1, nc_bitmap_bits_size (bm->npages) + 1);
  must (bm->state && bm->bits, "calloc");
}

static void
drop (struct nc_bitmap *bm)
{
  free (bm->state);
  free (bm->bits);
}

static bool
bit (const uint64_t *words, unsigned i)
{
  return words[i / 64] >> (i % 64) & 1;
}

/* Whether the run at BLK is what is expected: RUN 0 means any length. */
static bool
run_is (const struct nc_bitmap *bm, uint64_t blk, uint64_t max,
        enum nc_bitmap_found found, uint64_t run)
{
  uint64_t r = 12345;
  enum nc_bitmap_found f = nc_bitmap_run (bm, blk, max, &r);

  if (f == found && (f == NC_RUN_UNLOADED || r == run))
    return true;
  return note ("run at %llu, max %llu: found %d, run %llu; expected %d, "
               "%llu", (unsigned long long) blk, (unsigned long long) max,
               f, (unsigned long long) r, found, (unsigned long long) run);
}

static void
test_sizes (void)
{
  static const struct { uint64_t nblocks, npages; } t[] = {
    { 0, 0 }, { 1, 1 }, { P - 1, 1 }, { P, 1 }, { P + 1, 2 },
    { 2 * P, 2 }, { 2 * P + 1, 3 },
    { UINT64_MAX, UINT64_MAX / P + 1 },
  };
  struct nc_bitmap bm = { .nblocks = 2 * P + 1, .npages = 3 };
  bool good = true;

  for (size_t i = 0; i < sizeof t / sizeof t[0]; ++i)
    good = good && nc_bitmap_npages (t[i].nblocks) == t[i].npages;
  ok (good, "pages are counted right at the borders");
  ok (nc_bitmap_page_blocks (&bm, 0) == P &&
      nc_bitmap_page_blocks (&bm, 1) == P &&
      nc_bitmap_page_blocks (&bm, 2) == 1,
      "the last page has only the blocks that are left");
  ok (nc_word_mask (0, 64) == ~UINT64_C (0) && nc_word_mask (63, 1) >> 63 &&
      nc_word_mask (3, 2) == 0x18 && nc_word_mask (0, 1) == 1,
      "masks of a word reach to its ends");
}

static void
test_load (void)
{
  uint64_t words[NC_PAGE_WORDS] = { 0 };
  struct nc_bitmap bm;

  make (&bm, 3 * P + 7);
  ok (run_is (&bm, 0, 1, NC_RUN_UNLOADED, 0) &&
      run_is (&bm, 3 * P + 6, 1, NC_RUN_UNLOADED, 0),
      "zeroed memory means that every page is unloaded");
  nc_bitmap_load_equal (&bm, 0, false);
  nc_bitmap_load_equal (&bm, 1, false);
  ok (run_is (&bm, 5, 3 * P, NC_RUN_CLEAR, 2 * P - 5),
      "a run of clear blocks crosses pages and stops at an unloaded one");
  ok (run_is (&bm, 5, 3, NC_RUN_CLEAR, 3), "a run stops at the maximum");

  words[0] = 1;
  words[NC_PAGE_WORDS - 1] = UINT64_C (1) << 63;
  nc_bitmap_load (&bm, 2, words);
  ok (run_is (&bm, 2 * P, 2, NC_RUN_SET, 1) &&
      run_is (&bm, 2 * P + 1, P, NC_RUN_CLEAR, P - 2) &&
      run_is (&bm, 3 * P - 1, 1, NC_RUN_SET, 1),
      "the first and the last bit of a loaded page are where they were");
  nc_bitmap_load_equal (&bm, 2, true);
  nc_bitmap_load_equal (&bm, 2, false);
  words[0] = 0xff;
  nc_bitmap_load (&bm, 2, words);
  ok (run_is (&bm, 2 * P, 10, NC_RUN_SET, 1),
      "loading a page that is loaded changes nothing");
  drop (&bm);
}

static void
test_set (void)
{
  uint64_t words[NC_PAGE_WORDS] = { 1 }, copy[NC_PAGE_WORDS];
  struct nc_bitmap bm;

  make (&bm, 3 * P + 7);
  nc_bitmap_load_equal (&bm, 0, false);
  nc_bitmap_load_equal (&bm, 1, false);
  nc_bitmap_load (&bm, 2, words);
  nc_bitmap_set (&bm, 3 * P, 7);
  ok (run_is (&bm, 3 * P, 7, NC_RUN_SET, 7),
      "an unloaded last page may be set as a whole");
  ok (nc_bitmap_copy_page (&bm, 3, copy) == NC_PAGE_ALL &&
      nc_bitmap_weight (copy) == 7 && copy[0] == 0x7f,
      "the copy of the short last page has no bit behind the end");
  nc_bitmap_set (&bm, P - 1, 2);
  ok (run_is (&bm, 0, 2 * P, NC_RUN_CLEAR, P - 1) &&
      run_is (&bm, P - 1, P, NC_RUN_SET, 2) &&
      run_is (&bm, P + 1, P, NC_RUN_CLEAR, P - 1),
      "two bits across a border of pages");
  ok (nc_bitmap_copy_page (&bm, 0, copy) == NC_PAGE_MIXED &&
      nc_bitmap_weight (copy) == 1 && bit (copy, P - 1),
      "the copy of a mixed page has its bits");
  for (unsigned i = 0; i < P - 1; ++i)
    nc_bitmap_set (&bm, i, 1);
  ok (nc_bitmap_copy_page (&bm, 0, copy) == NC_PAGE_ALL &&
      nc_bitmap_weight (copy) == P,
      "a page that was filled bit by bit is found full");
  ok (bm.state[0] == NC_PAGE_ALL, "and its state says so from then on");
  nc_bitmap_set (&bm, 0, bm.nblocks);
  ok (run_is (&bm, 0, bm.nblocks, NC_RUN_SET, bm.nblocks),
      "all may be set at once");
  drop (&bm);
}

static void
test_late_load (void)
{
  uint64_t words[NC_PAGE_WORDS] = { 0 }, copy[NC_PAGE_WORDS];
  struct nc_bitmap bm;

  make (&bm, 4 * P);
  nc_bitmap_set (&bm, P, 2 * P);
  ok (run_is (&bm, P, 3 * P, NC_RUN_SET, 2 * P) &&
      run_is (&bm, 0, 1, NC_RUN_UNLOADED, 0),
      "pages covered wholly need not be loaded");
  nc_bitmap_load (&bm, 1, words);
  nc_bitmap_load_equal (&bm, 2, false);
  ok (run_is (&bm, P, 2 * P, NC_RUN_SET, 2 * P),
      "a page that was set is not cleared by loading it too late");
  nc_bitmap_load (&bm, 0, words);
  memset (words, 0xff, sizeof words);
  nc_bitmap_load (&bm, 3, words);
  ok (run_is (&bm, 0, 4 * P, NC_RUN_CLEAR, P) &&
      run_is (&bm, P, 3 * P, NC_RUN_SET, 3 * P) &&
      nc_bitmap_copy_page (&bm, 0, copy) != NC_PAGE_UNLOADED &&
      nc_bitmap_weight (copy) == 0 &&
      nc_bitmap_copy_page (&bm, 3, copy) == NC_PAGE_ALL &&
      nc_bitmap_weight (copy) == P,
      "words that are all equal are as good as the state");
  drop (&bm);
}

struct walked {
  uint8_t set[P];
  unsigned calls, stop_after, last_end;
  bool adjacent;
};

static int
walk (void *opaque, unsigned blk, unsigned count)
{
  struct walked *w = opaque;

  if (w->calls > 0 && blk <= w->last_end)
    w->adjacent = true;
  if (count == 0 || blk + count > P)
    return -1;
  memset (w->set + blk, 1, count);
  w->last_end = blk + count;
  return ++w->calls == w->stop_after ? -1 : 0;
}

static void
test_walk (uint64_t *seed)
{
  bool good = true;

  for (unsigned round = 0; round < 300 && good; ++round) {
    static const unsigned sizes[] = { 1, 63, 64, 65, P - 1, P };
    unsigned n = round % 2 ? sizes[round / 2 % 6]
      : 1 + (unsigned) rnd_below (seed, P);
    uint64_t words[NC_PAGE_WORDS];
    struct walked w = { .stop_after = 0 };

    for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
      switch (rnd_below (seed, 4)) {
      case 0: words[i] = 0; break;
      case 1: words[i] = ~UINT64_C (0); break;
      case 2: words[i] = rnd (seed); break;
      default: words[i] = UINT64_C (1) << rnd_below (seed, 64);
      }
    good = nc_bitmap_walk_words (words, n, walk, &w) == 0 && !w.adjacent;
    for (unsigned i = 0; i < P && good; ++i)
      good = w.set[i] == (i < n && bit (words, i)) ||
        note ("round %u: %u blocks, block %u", round, n, i);
  }
  ok (good, "a walk meets every run once, in order, and nothing behind the "
      "last block");

  {
    uint64_t words[NC_PAGE_WORDS] = { 0x5555 };
    struct walked w = { .stop_after = 3 };

    ok (nc_bitmap_walk_words (words, P, walk, &w) == -1 && w.calls == 3,
        "a walk stops when it is told to");
    memset (words, 0xff, sizeof words);
    w = (struct walked) { .stop_after = 0 };
    ok (nc_bitmap_walk_words (words, P, walk, &w) == 0 && w.calls == 1,
        "a full page is one run");
  }
}

/* Whether each page of the range is loaded or covered wholly. */
static bool
may_set (const struct nc_bitmap *bm, const bool *loaded, uint64_t blk,
         uint64_t count)
{
  for (uint64_t p = blk / P; p <= (blk + count - 1) / P; ++p)
    if (!loaded[p] &&
        (blk > p * P || blk + count < p * P + nc_bitmap_page_blocks (bm, p)))
      return false;
  return true;
}

/* A bitmap, and what it has to be like. */
enum { PAGES = 5, N = 4 * P + 100 };
struct flat {
  struct nc_bitmap bm;
  uint8_t model[N];             /* the bits of the file, then all */
  bool loaded[PAGES];
};

static void
flat_init (struct flat *f, uint64_t *seed)
{
  memset (f, 0, sizeof *f);
  make (&f->bm, N);
  for (unsigned i = 0; i < 60; ++i) {
    uint64_t b = rnd_below (seed, N);

    memset (f->model + b, 1, nc_bitmap_page_blocks (&f->bm, b / P) < N - b
            ? rnd_below (seed, 100) % (N - b) : 1);
  }
}

static void
flat_set (struct flat *f, uint64_t blk, uint64_t count)
{
  count = nc_min64 (count, N - blk);
  if (!may_set (&f->bm, f->loaded, blk, count))
    return;
  for (uint64_t p = blk / P; p <= (blk + count - 1) / P; ++p)
    f->loaded[p] = true;
  nc_bitmap_set (&f->bm, blk, count);
  memset (f->model + blk, 1, count);
}

/* Load PAGE, which was found unloaded. */
static bool
flat_load (struct flat *f, uint64_t page)
{
  uint64_t words[NC_PAGE_WORDS] = { 0 };

  if (f->loaded[page])
    return note ("page %d was loaded", (int) page);
  for (unsigned i = 0; i < nc_bitmap_page_blocks (&f->bm, page); ++i)
    words[i / 64] |= (uint64_t) f->model[page * P + i] << (i % 64);
  nc_bitmap_load (&f->bm, page, words);
  f->loaded[page] = true;
  return true;
}

/* Whether the run at BLK is right. */
static bool
flat_run (struct flat *f, uint64_t blk, uint64_t max)
{
  uint64_t n = 1, run;
  enum nc_bitmap_found found = nc_bitmap_run (&f->bm, blk, max, &run);

  if (found == NC_RUN_UNLOADED)
    return flat_load (f, blk / P);
  while (n < max && f->model[blk + n] == f->model[blk] &&
         f->loaded[(blk + n) / P])
    n++;
  return (f->loaded[blk / P] && (found == NC_RUN_SET) == f->model[blk] &&
          run == n) ||
    note ("block %u max %u found %d run %u, expected %u", (unsigned) blk,
          (unsigned) max, found, (unsigned) run, (unsigned) n);
}

/* Whether the copy of PAGE is right. */
static bool
flat_copy (struct flat *f, uint64_t page)
{
  uint64_t copy[NC_PAGE_WORDS];
  enum nc_page_state s = nc_bitmap_copy_page (&f->bm, page, copy);
  unsigned n = nc_bitmap_page_blocks (&f->bm, page), weight = 0;
  bool good = true;

  for (unsigned i = 0; i < P; ++i) {
    good = good && bit (copy, i) == (i < n && f->model[page * P + i]);
    weight += bit (copy, i);
  }
  return good && weight == nc_bitmap_weight (copy) &&
    s != NC_PAGE_UNLOADED && (s == NC_PAGE_ALL) == (weight == n) &&
    (s != NC_PAGE_NONE || weight == 0);
}

static void
test_random (uint64_t *seed)
{
  static struct flat f;
  bool good = true;

  for (unsigned round = 0; round < 30 && good; ++round) {
    flat_init (&f, seed);
    for (unsigned step = 0; step < 400 && good; ++step) {
      uint64_t blk = rnd_below (seed, N);
      uint64_t max = 1 + rnd_below (seed, N - blk);

      if (rnd_below (seed, 3) == 0)
        flat_set (&f, blk, rnd_below (seed, 20) ? 1 + max % 50 : max);
      else
        good = flat_run (&f, blk, max) ||
          note ("round %u step %u", round, step);
    }
    for (uint64_t p = 0; p < PAGES && good; ++p)
      good = !f.loaded[p] || flat_copy (&f, p);
    drop (&f.bm);
  }
  ok (good, "random bits, loads and runs agree with a flat array");
}

/* Threads: setters write data and then set its bit; readers that see the bit
 * must see the data; a copier sees bits appear and never vanish. */
enum { TN = 6 * P + 50, SETTERS = 3 };
static struct nc_bitmap shared;
static unsigned data[TN];
static _Atomic (bool) done;
static _Atomic (unsigned) wrong;
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;

static void
load (uint64_t page)
{
  uint64_t words[NC_PAGE_WORDS] = { 0 };

  NC_LOCKED (&load_lock);
  if (page % 2)
    nc_bitmap_load (&shared, page, words);
  else
    nc_bitmap_load_equal (&shared, page, false);
}

static void *
setter (void *arg)
{
  unsigned me = (unsigned) (uintptr_t) arg;

  /* Every SETTERS-th block each, so that words are shared; the last page
   * but one is set as a whole by the first. */
  for (uint64_t blk = me; blk < TN; blk += SETTERS) {
    uint64_t page = blk / P, run;

    if (page == 4) {
      if (me == 0 && blk < 4 * P + SETTERS) {
        for (uint64_t b = 4 * P; b < 5 * P; ++b)
          data[b] = (unsigned) b + 1;
        nc_bitmap_set (&shared, 4 * P, P);
      }
      continue;
    }
    data[blk] = (unsigned) blk + 1;
    if (nc_bitmap_run (&shared, blk, 1, &run) == NC_RUN_UNLOADED)
      load (page);
    nc_bitmap_set (&shared, blk, 1);
    if (nc_bitmap_run (&shared, blk, 1, &run) != NC_RUN_SET)
      wrong++;
  }
  return NULL;
}

static void *
reader (void *arg)
{
  uint64_t seed = (uintptr_t) arg;
  uint8_t *seen = calloc (1, TN);

  must (seen != NULL, "calloc");
  while (!done) {
    uint64_t blk = rnd_below (&seed, TN), run;

    switch (nc_bitmap_run (&shared, blk, TN - blk, &run)) {
    case NC_RUN_SET:
      for (uint64_t b = blk; b < blk + run; ++b) {
        if (data[b] != b + 1)
          wrong++;
        seen[b] = 1;
      }
      break;
    case NC_RUN_CLEAR:
      if (seen[blk])
        wrong++;
      break;
    case NC_RUN_UNLOADED:
      if (seen[blk])
        wrong++;
      if (blk / P != 4)
        load (blk / P);
    }
  }
  free (seen);
  return NULL;
}

static void *
copier (void *arg)
{
  uint64_t before[NC_PAGE_WORDS] = { 0 }, words[NC_PAGE_WORDS];

  (void) arg;
  load (1);
  while (!done) {
    enum nc_page_state s = nc_bitmap_copy_page (&shared, 1, words);

    for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
      if (before[i] & ~words[i])
        wrong++;
    if ((s == NC_PAGE_ALL) != (nc_bitmap_weight (words) == P))
      wrong++;
    memcpy (before, words, sizeof words);
  }
  return NULL;
}

static void
test_threads (uint64_t seed)
{
  pthread_t t[SETTERS + 3];
  uint64_t run;

  make (&shared, TN);
  for (unsigned i = 0; i < SETTERS + 3; ++i)
    must (pthread_create (&t[i], NULL, i < SETTERS ? setter
                          : i < SETTERS + 2 ? reader : copier,
                          i < SETTERS ? (void *) (uintptr_t) i
                          : (void *) (uintptr_t) (seed + i)) == 0,
          "pthread_create");
  for (unsigned i = 0; i < SETTERS; ++i)
    pthread_join (t[i], NULL);
  done = true;
  for (unsigned i = SETTERS; i < SETTERS + 3; ++i)
    pthread_join (t[i], NULL);
  ok (wrong == 0, "who sees a bit sees the data, and no bit vanishes");
  ok (nc_bitmap_run (&shared, 0, TN, &run) == NC_RUN_SET && run == TN,
      "no bit is lost when threads share words and pages");
  drop (&shared);
}

int
main (void)
{
  uint64_t seed = tap_start (60);

  test_sizes ();
  test_load ();
  test_set ();
  test_late_load ();
  test_walk (&seed);
  test_random (&seed);
  test_threads (seed);
  return tap_done ();
}
