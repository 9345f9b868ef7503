/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/data/extents.c: lists of extents against a flat array. */

#include <config.h>

#include "data/extents.h"

#include "tap.h"

/* Whether E covers its range from the start up to nc_extents_next without
 * gaps, nothing empty, no two neighbours alike. */
static bool
is_sound (const struct nc_extents *e)
{
  uint64_t at = e->offset;

  for (size_t i = 0; i < e->n; ++i) {
    if (e->v[i].offset != at || e->v[i].count == 0)
      return false;
    if (i > 0 && e->v[i].type == e->v[i-1].type)
      return false;
    at += e->v[i].count;
  }
  return at == nc_extents_next (e) && at <= e->end;
}

static void
test_basics (void)
{
  struct nc_extents e;

  nc_extents_init (&e, 1000, 100);
  ok (nc_extents_next (&e) == 1000 && !nc_extents_full (&e) && e.n == 0,
      "a new list is empty and begins at its offset");
  ok (nc_extents_append (&e, 10, 0) == 0 && nc_extents_next (&e) == 1010 &&
      nc_extents_append (&e, 10, 0) == 0 && e.n == 1 && e.v[0].count == 20,
      "a neighbour in the same state is merged");
  ok (nc_extents_append (&e, 5, NC_EXTENT_ZERO) == 0 &&
      nc_extents_append (&e, 5, NC_EXTENT_HOLE | NC_EXTENT_ZERO) == 0 &&
      e.n == 3 && is_sound (&e),
      "zero is not the same as a hole that is zero");
  ok (nc_extents_append (&e, 1000, 0) == 0 && nc_extents_full (&e) &&
      nc_extents_next (&e) == 1100 && is_sound (&e),
      "what reaches past the range is cut");
  ok (nc_extents_append (&e, 1, NC_EXTENT_ZERO) == 0 &&
      nc_extents_next (&e) == 1100 && is_sound (&e) && e.n == 4,
      "a full list takes nothing more");
  nc_extents_free (&e);

  nc_extents_init (&e, 0, 0);
  ok (nc_extents_full (&e), "a list of an empty range is full");
  nc_extents_free (&e);

  nc_extents_init (&e, UINT64_MAX - 10, 10);
  ok (nc_extents_append (&e, UINT64_MAX, 0) == 0 && nc_extents_full (&e) &&
      nc_extents_next (&e) == UINT64_MAX && is_sound (&e),
      "a count that would overflow is cut, too");
  nc_extents_free (&e);

  nc_extents_init (&e, 5, UINT64_MAX - 5);
  ok (nc_extents_append (&e, 1, 0) == 0 &&
      nc_extents_append (&e, UINT64_MAX, 0) == 0 && nc_extents_full (&e) &&
      e.n == 1 && e.v[0].count == UINT64_MAX - 5,
      "merging does not overflow");
  nc_extents_free (&e);
}

static void
test_random (uint64_t seed)
{
  enum { SIZE = 3000 };
  bool good = true;

  for (unsigned round = 0; round < 300 && good; ++round) {
    uint8_t model[SIZE];
    uint64_t offset = rnd_below (&seed, 1000);
    uint64_t count = 1 + rnd_below (&seed, SIZE - 1);
    struct nc_extents e;
    uint64_t at = 0;

    nc_extents_init (&e, offset, count);
    while (at < count && good) {
      uint64_t n = 1 + rnd_below (&seed, round % 2 ? 3 : 400);
      unsigned type = rnd_below (&seed, 4);

      good = !nc_extents_full (&e) && nc_extents_append (&e, n, type) == 0;
      for (; n > 0 && at < count; --n)
        model[at++] = type;
      good = good && is_sound (&e) && nc_extents_next (&e) == offset + at;
    }
    good = good && nc_extents_full (&e);
    for (size_t i = 0; i < e.n && good; ++i)
      for (uint64_t p = e.v[i].offset;
           p < e.v[i].offset + e.v[i].count && good; ++p)
        good = model[p - offset] == e.v[i].type;
    nc_extents_free (&e);
    if (!good)
      note ("round %u", round);
  }
  ok (good, "300 random lists say the same as a flat array");
}

static void
test_limit (void)
{
  struct nc_extents e;
  bool good = true;

  nc_extents_init (&e, 0, 1000);
  e.limit = 3;
  for (unsigned i = 0; i < 3 && good; ++i)
    good = !nc_extents_full (&e) &&
      nc_extents_append (&e, 10, i % 2 ? NC_EXTENT_ZERO : 0) == 0;
  ok (good && nc_extents_full (&e) && nc_extents_next (&e) == 30,
      "a list is full when it has as many extents as are wanted");
  nc_extents_free (&e);
}

int
main (void)
{
  uint64_t seed = tap_start (60);

  test_basics ();
  test_limit ();
  test_random (seed);
  return tap_done ();
}
