/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/chain/owner-map.c: who owns a byte, against asking each layer in turn.
 * The layers have a format of the test's own: a function says which blocks
 * are allocated. */

#include <config.h>

#include "chain/owner-map.h"

#include "format/format.h"
#include "format/layer.h"
#include "tap.h"
#include "util/checked.h"

/* What a layer of the test is. */
struct sheet {
  struct nc_layer layer;
  bool (*has) (const struct sheet *s, uint64_t blk);
  uint64_t seed;
  unsigned percent;
  uint64_t only;                /* for has_one */
  _Atomic (uint64_t) asked;     /* calls of walk and run */
  _Atomic (int) fail;           /* errno of the next calls */
};

static struct sheet *
sheet_of (const struct nc_layer *layer)
{
  return (struct sheet *) layer;
}

static bool
sheet_has (const struct sheet *s, uint64_t blk)
{
  return s->has (s, blk);
}

/* Runs of up to 1000 blocks that belong together, PERCENT of them set. */
static bool
has_some (const struct sheet *s, uint64_t blk)
{
  uint64_t h = s->seed ^ (blk / 1000) * 3, g;

  g = s->seed ^ (blk / (1 + rnd (&h) % 1000)) * 5;
  return rnd_below (&g, 100) < s->percent;
}

static bool
has_all (const struct sheet *s __attribute__ ((__unused__)),
         uint64_t blk __attribute__ ((__unused__)))
{
  return true;
}

static bool
has_one (const struct sheet *s, uint64_t blk)
{
  return blk == s->only;
}

/* The first block of every 4096, and the sixth: no leaf is uniform. */
static bool
has_first (const struct sheet *s, uint64_t blk)
{
  return blk % 4096 == s->only;
}

static int
sheet_run (struct nc_layer *layer, uint64_t offset, uint64_t count,
           bool *allocated, uint64_t *run)
{
  struct sheet *s = sheet_of (layer);
  uint64_t blk = offset / layer->block_size, end;

  s->asked++;
  if (s->fail) {
    errno = s->fail;
    nc_error ("sheet: %m");
    return -1;
  }
  *allocated = sheet_has (s, blk);
  do
    end = ++blk * layer->block_size;
  while (end < offset + count && sheet_has (s, blk) == *allocated);
  *run = nc_min64 (end - offset, count);
  return 0;
}

static int
sheet_walk (struct nc_layer *layer, uint64_t offset, uint64_t count,
            nc_walk_fn fn, void *opaque)
{
  struct sheet *s = sheet_of (layer);
  uint64_t block = layer->block_size, end = offset + count;

  s->asked++;
  if (s->fail) {
    errno = s->fail;
    nc_error ("sheet: %m");
    return -1;
  }
  if (s->has == has_all)
    return fn (opaque, offset, count);
  if (s->has == has_first) {    /* the disk of this one is huge */
    for (uint64_t b = offset / block / 4096 * 4096 + s->only;
         b * block < end; b += 4096)
      if ((b + 1) * block > offset) {
        uint64_t from = nc_max64 (b * block, offset);

        if (fn (opaque, from, nc_min64 ((b + 1) * block, end) - from) == -1)
          return -1;
      }
    return 0;
  }
  while (offset < end) {
    uint64_t blk = offset / block, from = offset;

    if (!sheet_has (s, blk)) {
      offset = (blk + 1) * block;
      continue;
    }
    while (offset < end && sheet_has (s, offset / block))
      offset = nc_min64 ((offset / block + 1) * block, end);
    if (fn (opaque, from, offset - from) == -1)
      return -1;
  }
  return 0;
}

static const struct nc_format sheet_format = {
  .name = "sheet",
  .run = sheet_run,
  .walk = sheet_walk,
};

static void
sheet_init (struct sheet *s, uint64_t size, uint32_t block,
            bool (*has) (const struct sheet *, uint64_t))
{
  memset (s, 0, sizeof *s);
  s->layer.format = &sheet_format;
  s->layer.path = s->layer.name = (char *) "sheet";
  s->layer.size = size;
  s->layer.block_size = block;
  s->has = has;
}

static void
sheet_set_backing (struct sheet *s, uint64_t size)
{
  s->layer.backing.present = true;
  s->layer.backing.size = size;
}

/* The rule of docs/formats/fvd.md, section 3, a layer at a time. */
static int
owner (struct nc_layer *const *layers, size_t first, size_t n,
       uint64_t offset)
{
  for (size_t i = first; i < n; ++i) {
    if (offset >= layers[i]->size)
      return -1;
    if (sheet_has (sheet_of (layers[i]), offset / layers[i]->block_size))
      return i;
    if (!layers[i]->backing.present || offset >= layers[i]->backing.size)
      return -1;
  }
  return -1;
}

/* Ask the map and compare; the run is checked at both ends and in between. */
static bool
agrees (struct nc_map *map, struct nc_layer *const *layers, size_t first,
        size_t n, uint64_t offset, uint64_t count, uint64_t *seed)
{
  int layer = -2, expected = owner (layers, first, n, offset);
  uint64_t run = 0;

  if (nc_map_find (map, offset, count, &layer, &run) == -1)
    return note ("failed at %llu", (unsigned long long) offset);
  if (layer != expected || run == 0 || run > count)
    return note ("%llu+%llu: layer %d, run %llu; expected layer %d",
                 (unsigned long long) offset, (unsigned long long) count,
                 layer, (unsigned long long) run, expected);
  for (unsigned i = 0; i < 20; ++i) {
    uint64_t p = i == 0 ? run - 1 : rnd_below (seed, run);

    if (owner (layers, first, n, offset + p) != layer)
      return note ("%llu: layer %d claimed for a run of %llu, but at +%llu "
                   "it is %d", (unsigned long long) offset, layer,
                   (unsigned long long) run, (unsigned long long) p,
                   owner (layers, first, n, offset + p));
  }
  return true;
}

/* Every byte where something changes, and the whole as one sequence. */
static bool
agrees_throughout (struct nc_layer *const *layers, size_t first, size_t n,
                   uint64_t step, uint64_t *seed)
{
  struct nc_map *map = nc_map_new (layers, first, n);
  uint64_t end = 0, at;
  bool good = map != NULL;

  for (size_t i = first; i < n; ++i)
    end = nc_max64 (end, layers[i]->size);
  for (size_t i = first; i < n && good; ++i)
    for (int d = -1; d <= 1 && good; ++d) {
      if (layers[i]->size + d < end + 5)
        good = agrees (map, layers, first, n, layers[i]->size + d, 1 + 7000,
                       seed);
      if (good && layers[i]->backing.size + d < end + 5)
        good = agrees (map, layers, first, n, layers[i]->backing.size + d,
                       1 + 7000, seed);
    }
  for (at = 0; at < end + 10000 && good; at += step) {
    good = agrees (map, layers, first, n, at, step, seed) &&
      agrees (map, layers, first, n, at + rnd_below (seed, step),
              1 + rnd_below (seed, 20 * step), seed);
  }
  nc_map_free (map);
  return good;
}

static void
test_borders (uint64_t *seed)
{
  static const uint64_t sizes[] = {
    0, 1, 511, 512, 4095, 4096, 4097, 8191,
    4031 * 4096, 4032 * 4096, 4032 * 4096 + 1, 4033 * 4096,
    4095 * 4096, 4096 * 4096, 4096 * 4096 + 1, 4097 * 4096 - 1,
  };
  enum { N = sizeof sizes / sizeof sizes[0] };
  struct sheet a, b;
  struct nc_layer *layers[] = { &a.layer, &b.layer };
  bool good = true;
  int layer;
  uint64_t run;
  struct nc_map *map;

  for (size_t i = 0; i < N && good; ++i)
    for (size_t j = 0; j < N && good; ++j) {
      sheet_init (&a, sizes[i], 4096, has_some);
      a.percent = 50;
      a.seed = rnd (seed);
      sheet_set_backing (&a, sizes[j]);
      sheet_init (&b, sizes[j], 4096, has_all);
      good = agrees_throughout (layers, 0, 2, 900001, seed) ||
        note ("overlay %llu, base %llu", (unsigned long long) sizes[i],
              (unsigned long long) sizes[j]);
    }
  ok (good, "overlays and bases of all sizes around the borders");

  sheet_init (&a, 4096 * 3, 4096, has_one);
  a.only = 1;
  sheet_set_backing (&a, 5000);
  sheet_init (&b, 100000, 4096, has_all);
  map = nc_map_new (layers, 0, 2);
  ok (map && nc_map_find (map, 0, 100000, &layer, &run) == 0 &&
      layer == 1 && run == 4096 &&
      nc_map_find (map, 4096, 100000, &layer, &run) == 0 && layer == 0 &&
      run == 4096 &&
      nc_map_find (map, 8192, 100000, &layer, &run) == 0 && layer == -1,
      "a base that has grown is cut at the size recorded");
  nc_map_free (map);

  a.only = 0;
  map = nc_map_new (layers, 0, 2);
  ok (map && nc_map_find (map, 4097, 1, &layer, &run) == 0 && layer == 1 &&
      run == 1 && nc_map_find (map, 4999, 2, &layer, &run) == 0 &&
      layer == 1 && run == 1 &&
      nc_map_find (map, 5000, 1, &layer, &run) == 0 && layer == -1,
      "the cut is to the byte, not to the block");
  nc_map_free (map);

  map = nc_map_new (layers, 2, 2);
  ok (map && nc_map_find (map, 0, 10, &layer, &run) == 0 && layer == -1,
      "a map of no layers is zeros");
  nc_map_free (map);
}

static void
test_random (uint64_t *seed)
{
  static const uint32_t blocks[] = { 4096, 8192, 65536, 1 << 21 };
  bool good = true;

  for (unsigned round = 0; round < 60 && good; ++round) {
    struct sheet s[6];
    struct nc_layer *layers[6];
    size_t n = 1 + rnd_below (seed, 6), first = rnd_below (seed, n);

    for (size_t i = n; i-- > 0;) {
      sheet_init (&s[i], rnd_below (seed, 40 << 20),
                  round < 20 ? 4096 : blocks[rnd_below (seed, 4)],
                  i == n - 1 && round % 2 ? has_all : has_some);
      s[i].seed = rnd (seed);
      s[i].percent = rnd_below (seed, 101);
      if (i + 1 < n)
        sheet_set_backing (&s[i], rnd_below (seed, 4) == 0
                           ? rnd_below (seed, s[i+1].layer.size + 1)
                           : s[i+1].layer.size);
      layers[i] = &s[i].layer;
    }
    good = agrees_throughout (layers, first, n, 100003, seed) ||
      note ("round %u", round);
  }
  ok (good, "random layers of different sizes and blocks");
}

static void
test_middle (uint64_t *seed)
{
  struct sheet s[3];
  struct nc_layer *layers[3] = { &s[0].layer, &s[1].layer, &s[2].layer };
  struct nc_map *map;
  int layer;
  uint64_t run;

  /* What a short layer in the middle hides stays hidden. */
  sheet_init (&s[0], 50 << 20, 4096, has_one);
  s[0].only = UINT64_MAX;
  sheet_set_backing (&s[0], 50 << 20);
  sheet_init (&s[1], 1000001, 65536, has_one);
  s[1].only = UINT64_MAX;
  sheet_set_backing (&s[1], 50 << 20);
  sheet_init (&s[2], 50 << 20, 4096, has_all);
  map = nc_map_new (layers, 0, 3);
  ok (map && nc_map_find (map, 0, 50 << 20, &layer, &run) == 0 &&
      layer == 2 && run == 1000001 &&
      nc_map_find (map, 1000001, 50 << 20, &layer, &run) == 0 &&
      layer == -1, "a short layer in the middle hides what is below");
  nc_map_free (map);
  ok (agrees_throughout (layers, 0, 3, 333333, seed),
      "and all agrees with asking in turn");
}

static void
test_depth (uint64_t *seed)
{
  enum { DEPTH = 250, SIZE = 8 << 20 };
  struct sheet *s = calloc (DEPTH, sizeof *s);
  struct nc_layer *layers[DEPTH];
  uint64_t asked = 0, again = 0, run;
  bool good = true;
  struct nc_map *map;
  int layer;

  must (s != NULL, "calloc");
  for (size_t i = 0; i < DEPTH; ++i) {
    sheet_init (&s[i], SIZE, 4096, i == DEPTH - 1 ? has_all : has_one);
    s[i].only = i * 7 % (SIZE / 4096);
    if (i < DEPTH - 1)
      sheet_set_backing (&s[i], SIZE);
    layers[i] = &s[i].layer;
  }
  map = nc_map_new (layers, 0, DEPTH);
  must (map != NULL, "nc_map_new");
  for (uint64_t at = 0; at < SIZE && good; at += 4096)
    good = agrees (map, layers, 0, DEPTH, at, SIZE, seed);
  ok (good, "250 layers");
  for (size_t i = 0; i < DEPTH; ++i)
    asked += s[i].asked;
  for (uint64_t at = 0; at < SIZE; at += 4096)
    good = good && nc_map_find (map, at, 4096, &layer, &run) == 0;
  for (size_t i = 0; i < DEPTH; ++i)
    again += s[i].asked;
  ok (good && asked == again, "what is known is not asked for again");
  ok (nc_map_memory (map) > 0 && nc_map_memory (map) < (8 << 20),
      "a small disk takes little memory");
  nc_map_free (map);
  free (s);
}

static void
test_failure (void)
{
  struct sheet s[2];
  struct nc_layer *layers[2] = { &s[0].layer, &s[1].layer };
  struct nc_map *map;
  int layer;
  uint64_t run;

  sheet_init (&s[0], 1 << 20, 4096, has_one);
  s[0].only = 5;
  sheet_set_backing (&s[0], 1 << 20);
  sheet_init (&s[1], 1 << 20, 4096, has_one);
  s[1].only = 6;
  map = nc_map_new (layers, 0, 2);
  must (map != NULL, "nc_map_new");
  s[0].fail = s[1].fail = EIO;
  tap_clear ();
  ok (nc_map_find (map, 0, 4096, &layer, &run) == -1 && errno == EIO,
      "a bitmap that cannot be read is an error");
  ok (tap_errors == 1, "reported once");
  s[0].fail = s[1].fail = 0;
  ok (nc_map_find (map, 20480, 8192, &layer, &run) == 0 && layer == 0 &&
      run == 4096 && nc_map_find (map, 24576, 4096, &layer, &run) == 0 &&
      layer == 1 && nc_map_find (map, 0, 4096, &layer, &run) == 0 &&
      layer == -1, "and is not remembered as an answer");
  nc_map_free (map);
}

/* More mixed leaves than the map will remember, from several threads. */
enum { HUGE_LEAVES = 17500, THREADS = 4 };
static struct sheet huge[2];
static struct nc_layer *huge_layers[2] = { &huge[0].layer, &huge[1].layer };
static struct nc_map *huge_map;
static _Atomic (unsigned) wrong;
static uint64_t start_seed;

static void *
searcher (void *arg)
{
  uint64_t me = (uintptr_t) arg, seed = start_seed + me;

  /* A sweep over all, together, and now and then somewhere else. */
  for (uint64_t i = 0; i < 9 * HUGE_LEAVES / (8 * THREADS); ++i) {
    uint64_t leaf = i % 9 == 8 ? rnd_below (&seed, HUGE_LEAVES)
      : (i - i / 9) * THREADS + me;
    uint64_t unit = leaf * 4096 + rnd_below (&seed, 7), run;
    int layer;

    if (nc_map_find (huge_map, unit * 4096, 4096, &layer, &run) == -1 ||
        layer != owner (huge_layers, 0, 2, unit * 4096) || run != 4096)
      wrong++;
  }
  return NULL;
}

static void
test_eviction (void)
{
  const uint64_t size = HUGE_LEAVES * 4096ull * 4096;
  pthread_t t[THREADS];
  uint64_t asked, memory, run;
  int layer;

  sheet_init (&huge[0], size, 4096, has_first);
  sheet_set_backing (&huge[0], size);
  sheet_init (&huge[1], size, 4096, has_first);
  huge[1].only = 5;
  huge_map = nc_map_new (huge_layers, 0, 2);
  must (huge_map != NULL, "nc_map_new");
  for (uintptr_t i = 0; i < THREADS; ++i)
    must (pthread_create (&t[i], NULL, searcher, (void *) i) == 0,
          "pthread_create");
  for (unsigned i = 0; i < THREADS; ++i)
    pthread_join (t[i], NULL);
  for (uint64_t leaf = 0; leaf < HUGE_LEAVES; leaf += 7)
    if (nc_map_find (huge_map, leaf << 24, 8192, &layer, &run) == -1 ||
        layer != 0 || run != 4096)
      wrong++;
  ok (wrong == 0, "answers stay right while leaves are forgotten");
  memory = nc_map_memory (huge_map);
  note ("%llu bytes for %u mixed leaves", (unsigned long long) memory,
        HUGE_LEAVES);
  ok (memory < UINT64_C (80) << 20, "memory is bounded");
  asked = huge[0].asked;        /* now those that were not asked for again */
  for (uint64_t leaf = 3; leaf < HUGE_LEAVES; leaf += 7)
    nc_map_find (huge_map, leaf << 24, 8192, &layer, &run);
  ok (huge[0].asked > asked, "some of it was forgotten indeed");
  nc_map_free (huge_map);
}

/* Threads that ask for the same unknown leaves at once. */
static struct sheet same[3];
static struct nc_layer *same_layers[3] = {
  &same[0].layer, &same[1].layer, &same[2].layer
};

static void *
asker (void *arg)
{
  uint64_t seed = start_seed + (uintptr_t) arg * 31;

  for (unsigned i = 0; i < 3000; ++i) {
    uint64_t offset = rnd_below (&seed, 70 << 20);

    if (!agrees (huge_map, same_layers, 0, 3, offset,
                 1 + rnd_below (&seed, 1 << 20), &seed))
      wrong++;
  }
  return NULL;
}

static void
test_threads (void)
{
  pthread_t t[THREADS];

  wrong = 0;
  sheet_init (&same[0], 70 << 20, 4096, has_some);
  sheet_init (&same[1], 60 << 20, 8192, has_some);
  sheet_init (&same[2], 65 << 20, 65536, has_all);
  sheet_set_backing (&same[0], 60 << 20);
  sheet_set_backing (&same[1], (50 << 20) + 77);
  for (unsigned i = 0; i < 2; ++i) {
    same[i].percent = 40;
    same[i].seed = start_seed + i;
  }
  huge_map = nc_map_new (same_layers, 0, 3);
  must (huge_map != NULL, "nc_map_new");
  for (uintptr_t i = 0; i < THREADS; ++i)
    must (pthread_create (&t[i], NULL, asker, (void *) i) == 0,
          "pthread_create");
  for (unsigned i = 0; i < THREADS; ++i)
    pthread_join (t[i], NULL);
  ok (wrong == 0, "threads that ask for the same at once agree");
  nc_map_free (huge_map);
}

int
main (void)
{
  uint64_t seed = start_seed = tap_start (100);

  test_borders (&seed);
  test_random (&seed);
  test_middle (&seed);
  test_depth (&seed);
  test_failure ();
  test_eviction ();
  test_threads ();
  return tap_done ();
}
