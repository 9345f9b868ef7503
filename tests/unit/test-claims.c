/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/data/claims.c: no two claims that overlap are held at a time, those
 * that do not overlap do not wait, and nobody waits for ever. */

#include <config.h>

#include "data/claims.h"

#include <sched.h>

#include "tap.h"

#define STRIPE (UINT64_C (1) << NC_CLAIM_STRIPE_BITS)

static struct nc_claims claims;

/* A thread that takes one claim, says so, and waits to be let go. */
struct holder {
  uint64_t offset, count;
  pthread_t thread;
  _Atomic (bool) holds, let_go, gone;
};

static void *
hold (void *arg)
{
  struct holder *h = arg;

  {
    NC_CLAIM (&claims, h->offset, h->count);
    h->holds = true;
    while (!h->let_go)
      usleep (100);
  }
  h->gone = true;
  return NULL;
}

static void
start (struct holder *h, uint64_t offset, uint64_t count)
{
  *h = (struct holder) { .offset = offset, .count = count };
  must (pthread_create (&h->thread, NULL, hold, h) == 0, "pthread_create");
}

/* Whether H gets its claim; the wait is long only when it does not. */
static bool
gets_it (struct holder *h)
{
  for (unsigned i = 0; i < 300000 && !h->holds; ++i)
    usleep (100);
  return h->holds;
}

/* Whether H is still waiting after some time in which it could have run. */
static bool
keeps_waiting (struct holder *h)
{
  for (unsigned i = 0; i < 200 && !h->holds; ++i)
    usleep (100);
  return !h->holds;
}

static void
finish (struct holder *h)
{
  h->let_go = true;
  pthread_join (h->thread, NULL);
}

static void
test_pair (const char *what, bool wait, uint64_t o1, uint64_t c1,
           uint64_t o2, uint64_t c2)
{
  struct holder a, b;
  bool good;

  start (&a, o1, c1);
  good = gets_it (&a);
  start (&b, o2, c2);
  good = good && (wait ? keeps_waiting (&b) : gets_it (&b));
  finish (&a);
  good = good && gets_it (&b);
  finish (&b);
  ok (good, "%s", what);
}

static void
test_pairs (void)
{
  test_pair ("claims on different blocks do not wait", false,
             0, 4096, 4096, 4096);
  test_pair ("nor the block before", false, 4096, 4096, 0, 4096);
  test_pair ("the same block waits", true, 0, 4096, 0, 4096);
  test_pair ("one byte of overlap at the end waits", true,
             0, 4097, 4096, 4096);
  test_pair ("one byte of overlap at the start waits", true,
             4095, 1, 0, 4096);
  test_pair ("a claim inside another waits", true,
             0, 8 * STRIPE, 3 * STRIPE, 4096);
  test_pair ("a claim around another waits", true,
             3 * STRIPE, 4096, 0, 8 * STRIPE);
  test_pair ("neighbours at a border of stripes do not wait", false,
             STRIPE - 4096, 4096, STRIPE, 4096);
  test_pair ("overlap across a border of stripes waits", true,
             STRIPE - 4096, 8192, STRIPE, 4096);
  test_pair ("stripes of the same shard do not wait for each other", false,
             0, 4096, NC_CLAIM_SHARDS * STRIPE, 4096);
  test_pair ("a claim over all shards waits for one in the last", true,
             (NC_CLAIM_SHARDS - 1) * STRIPE, 4096,
             0, NC_CLAIM_SHARDS * STRIPE);
  test_pair ("a claim over all shards twice waits for one in the middle",
             true, 100 * STRIPE, 1, 0, 2 * NC_CLAIM_SHARDS * STRIPE);
  test_pair ("big claims side by side do not wait", false,
             0, 100 * STRIPE, 100 * STRIPE, 100 * STRIPE);
  test_pair ("the end of the largest disk can be claimed", true,
             (UINT64_C (1) << 62) - 4096, 4096, 0, UINT64_C (1) << 62);
  test_pair ("the end of what 64 bits can say can be claimed", true,
             UINT64_MAX - 1, 1, UINT64_MAX - 4096, 4096);
}

/* Random claims; who holds a block says so in an array. */
enum { THREADS = 8, ROUNDS = 4000, CELLS = 160 };
static _Atomic (int) owner[CELLS];      /* of half stripes */
static unsigned guarded[CELLS];         /* changed under claims only */
static _Atomic (unsigned) overlaps, cells_taken;
static uint64_t start_seed;

static void *
worker (void *arg)
{
  int me = (int) (intptr_t) arg;
  uint64_t seed = start_seed + (uint64_t) me * 7919;

  for (unsigned i = 0; i < ROUNDS; ++i) {
    unsigned kind = rnd_below (&seed, 16), first, n;

    if (kind == 0)              /* everything */
      first = 0, n = CELLS;
    else if (kind < 4) {        /* many shards */
      first = rnd_below (&seed, CELLS);
      n = 1 + rnd_below (&seed, CELLS - first);
    }
    else {                      /* few, most of them wanted by others, too */
      first = rnd_below (&seed, kind < 10 ? 6 : CELLS - 3);
      n = 1 + rnd_below (&seed, 3);
    }
    NC_CLAIM (&claims, first * (STRIPE / 2), n * (STRIPE / 2));
    for (unsigned c = first; c < first + n; ++c) {
      if (atomic_exchange (&owner[c], me) != 0)
        overlaps++;
      guarded[c]++;
    }
    if (kind == 5)
      sched_yield ();
    for (unsigned c = first; c < first + n; ++c)
      if (atomic_exchange (&owner[c], 0) != me)
        overlaps++;
    cells_taken += n;
  }
  return NULL;
}

static void
test_random (void)
{
  pthread_t t[THREADS];
  uint64_t sum = 0;
  bool empty = true;

  for (int i = 0; i < THREADS; ++i)
    must (pthread_create (&t[i], NULL, worker,
                          (void *) (intptr_t) (i + 1)) == 0,
          "pthread_create");
  for (int i = 0; i < THREADS; ++i)
    pthread_join (t[i], NULL);
  ok (overlaps == 0, "8 threads never hold overlapping claims");
  for (unsigned c = 0; c < CELLS; ++c)
    sum += guarded[c];
  ok (sum == cells_taken, "what a claim guards needs no lock of its own");
  for (unsigned s = 0; s < NC_CLAIM_SHARDS; ++s)
    empty = empty && claims.shard[s].held == NULL &&
      claims.shard[s].waiting == 0;
  ok (empty, "nothing is held and nobody waits at the end");
}

/* All who wait for one claim get theirs when it is released. */
static void
test_crowd (void)
{
  struct holder first, h[8];
  bool good;

  start (&first, 0, NC_CLAIM_SHARDS * STRIPE);
  good = gets_it (&first);
  for (unsigned i = 0; i < 8; ++i)
    start (&h[i], i * 5 * STRIPE, 5 * STRIPE);
  for (unsigned i = 0; i < 8; ++i)
    good = good && (i > 0 || keeps_waiting (&h[i])) && !h[i].holds;
  finish (&first);
  for (unsigned i = 0; i < 8; ++i)
    good = good && gets_it (&h[i]);
  for (unsigned i = 0; i < 8; ++i)
    finish (&h[i]);
  ok (good, "one release wakes all who can go on");
}

int
main (void)
{
  start_seed = tap_start (60);

  nc_claims_init (&claims);
  test_pairs ();
  test_crowd ();
  test_random ();
  nc_claims_fini (&claims);
  return tap_done ();
}
