/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of the ring: what is copied and in which order it is reported, the
 * limit in flight, errors, and sources that hang; and of its window. */

#include <config.h>

#include "copy/ring.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include "tap.h"
#include "util/checked.h"

#define SIZE (UINT64_C (1) << 20)
#define PIECE 4096
#define UNTOUCHED 0x55

enum { DATA, FILL, PASS };      /* kinds of pieces */

/* A copy between two arrays. */
struct copy {
  uint8_t from[SIZE], to[SIZE];
  uint64_t seed;
  uint64_t offset;              /* planned */
  uint64_t done;                /* reported, in order */
  bool in_order;

  _Atomic (unsigned) reading, most, stored;
  _Atomic (uint64_t) fail_at;   /* offset whose read or store fails */
  enum nc_ring_step fail_step;
  _Atomic (unsigned) fail_times;
  _Atomic (unsigned) asked;     /* what to do about it */
  _Atomic (unsigned) most_tries;
  bool again;

  _Atomic (bool) refuse;        /* throttled */
  struct nc_ring *interrupt;    /* on failure */

  pthread_mutex_t lock;         /* guards the rest */
  pthread_cond_t changed;
  bool hang;
  unsigned hanging;
};

static int
maybe_fail (struct copy *c, enum nc_ring_step step, uint64_t offset)
{
  unsigned times = c->fail_times;

  if (step != c->fail_step || offset < c->fail_at)
    return 0;
  /* Several threads come here at a time. */
  while (times > 0)
    if (atomic_compare_exchange_weak (&c->fail_times, &times, times - 1)) {
      errno = ENOSPC;
      return -1;
    }
  return 0;
}

static int
next (void *opaque, struct nc_piece *piece)
{
  struct copy *c = opaque;
  uint64_t n = 1 + rnd (&c->seed) % PIECE;

  if (c->offset == SIZE)
    return 0;
  if (maybe_fail (c, NC_RING_PLAN, c->offset) == -1)
    return -1;
  piece->offset = c->offset;
  piece->kind = rnd (&c->seed) % 8 < 6 ? DATA : 1 + rnd (&c->seed) % 2;
  piece->read = piece->kind == DATA;
  piece->count = nc_min64 (n, SIZE - c->offset);
  c->offset += piece->count;
  return 1;
}

static int
throttle (void *opaque, uint64_t count)
{
  struct copy *c = opaque;

  return c->refuse && count > 0 ? -1 : 0;
}

static void
hang (struct copy *c)
{
  NC_LOCKED (&c->lock);
  c->hanging++;
  pthread_cond_broadcast (&c->changed);
  while (c->hang)
    pthread_cond_wait (&c->changed, &c->lock);
  c->hanging--;
}

static int
read_piece (void *opaque, struct nc_piece *piece, void *buf)
{
  struct copy *c = opaque;
  unsigned n = ++c->reading, most = c->most;

  while (n > most && !atomic_compare_exchange_weak (&c->most, &most, n))
    ;
  hang (c);
  for (uint64_t i = piece->offset % 7; i > 0; --i)
    sched_yield ();
  memcpy (buf, c->from + piece->offset, piece->count);
  c->reading--;
  return maybe_fail (c, NC_RING_READ, piece->offset) == 0 ? 1 : -1;
}

static int
store_piece (void *opaque, const struct nc_piece *piece, const void *buf)
{
  struct copy *c = opaque;

  if (maybe_fail (c, NC_RING_STORE, piece->offset) == -1)
    return -1;
  if ((buf != NULL) != (piece->kind == DATA))
    return -1;
  if (piece->kind != PASS)
    c->stored++;
  if (piece->kind == DATA)
    memcpy (c->to + piece->offset, buf, piece->count);
  else if (piece->kind == FILL)
    memset (c->to + piece->offset, 0, piece->count);
  return 0;
}

static void
done (void *opaque, const struct nc_piece *piece)
{
  struct copy *c = opaque;

  c->in_order = c->in_order && piece->offset == c->done;
  c->done = piece->offset + piece->count;
}

static int
failed (void *opaque, enum nc_ring_step step, int err, unsigned tries)
{
  struct copy *c = opaque;
  unsigned most = c->most_tries;

  while (tries > most &&
         !atomic_compare_exchange_weak (&c->most_tries, &most, tries))
    ;
  c->asked++;
  if (c->interrupt)
    nc_ring_interrupt (c->interrupt);
  return c->again && step == c->fail_step && err == ENOSPC ? 0 : -1;
}

static const struct nc_ring_ops ops = {
  .next = next, .throttle = throttle, .read = read_piece,
  .store = store_piece, .done = done, .failed = failed,
};

static struct copy *
copy_new (uint64_t *seed)
{
  struct copy *c = calloc (1, sizeof *c);

  must (c != NULL, "calloc");
  for (uint64_t i = 0; i < SIZE; ++i)
    c->from[i] = rnd (seed);
  memset (c->to, UNTOUCHED, sizeof c->to);
  c->seed = rnd (seed);
  c->in_order = true;
  pthread_mutex_init (&c->lock, NULL);
  pthread_cond_init (&c->changed, NULL);
  return c;
}

/* What must be in TO: see store_piece. */
static bool
is_copied (const struct copy *c, uint64_t seed)
{
  struct copy *again = calloc (1, sizeof *again);
  bool good = true;

  must (again != NULL, "calloc");
  again->seed = seed;
  for (struct nc_piece p = { 0 }; good && next (again, &p);)
    for (uint64_t i = p.offset; good && i < p.offset + p.count; ++i)
      good = c->to[i] == (p.kind == DATA ? c->from[i]
                          : p.kind == FILL ? 0 : UNTOUCHED);
  free (again);
  return good;
}

static void
set_hang (struct copy *c, bool on)
{
  NC_LOCKED (&c->lock);
  c->hang = on;
  pthread_cond_broadcast (&c->changed);
}

static void
wait_until_hanging (struct copy *c, unsigned n)
{
  NC_LOCKED (&c->lock);
  while (c->hanging < n)
    pthread_cond_wait (&c->changed, &c->lock);
}

struct runner {
  struct nc_ring *ring;
  pthread_t thread;
  int r, err;
};

static void *
run_thread (void *opaque)
{
  struct runner *r = opaque;

  r->r = nc_ring_run (r->ring);
  r->err = errno;
  return NULL;
}

static void
run_start (struct runner *r, struct nc_ring *ring)
{
  r->ring = ring;
  must (pthread_create (&r->thread, NULL, run_thread, r) == 0, "thread");
}

static int
run_join (struct runner *r)
{
  pthread_join (r->thread, NULL);
  errno = r->err;
  return r->r;
}

static void
test_copy (uint64_t *seed, unsigned limit)
{
  struct copy *c = copy_new (seed);
  const uint64_t plan = c->seed;
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);

  must (ring != NULL, "ring");
  if (limit)
    nc_ring_set_limit (ring, limit);
  ok (nc_ring_run (ring) == 0 && c->done == SIZE && c->in_order &&
      is_copied (c, plan), "all is copied, and reported in order");
  ok (c->most >= 1 && c->most <= (limit ? limit : NC_RING_THREADS),
      "with no more in flight than allowed (%u)", c->most);
  ok (nc_ring_run (ring) == 0 && nc_ring_in_flight (ring) == 0,
      "and once more there is nothing to do");
  nc_ring_free (ring);
  free (c);
}

/* How often the calling thread has gone to sleep. */
static long
sleeps (void)
{
  struct rusage usage;

  must (getrusage (RUSAGE_THREAD, &usage) == 0, "getrusage");
  return usage.ru_nvcsw;
}

/* Beside a guest, whose processor that would be, most of all. */
static void
test_sleep (uint64_t *seed)
{
  struct copy *c = copy_new (seed);
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);
  long times = sleeps ();
  int r;

  must (ring != NULL, "ring");
  nc_ring_set_limit (ring, 1);
  r = nc_ring_run (ring);
  times = sleeps () - times;
  ok (r == 0 && c->stored > 100 && times < c->stored / 10,
      "who runs it is not woken for each piece (%ld times for %u)", times,
      c->stored);
  nc_ring_free (ring);
  free (c);
}

/* Of every other piece nothing is left to be read. */
static int
read_half (void *opaque, struct nc_piece *piece, void *buf)
{
  const int r = read_piece (opaque, piece, buf);

  if (r == 1 && piece->offset % 2)
    return 0;
  usleep (1000);
  return r;
}

/* Each piece is four asks, one after the other. */
static int
read_in_parts (void *opaque, struct nc_piece *piece, void *buf)
{
  usleep (20000);
  return read_piece (opaque, piece, buf) == -1 ? -1 : 4;
}

static void
test_parts (uint64_t *seed)
{
  struct nc_ring_ops parts = ops;
  struct copy *c = copy_new (seed);
  struct nc_ring *ring;

  parts.read = read_in_parts;
  ring = nc_ring_new (&parts, c, PIECE);
  must (ring != NULL && nc_ring_run (ring) == 0, "ring");
  ok (nc_ring_way (ring) >= 5000000 && nc_ring_way (ring) < 15000000,
      "the way is the time of one ask (%llu ns)",
      (unsigned long long) nc_ring_way (ring));
  nc_ring_free (ring);
  free (c);
}

/* Every other piece of a quarter is not read, and is longer than a buffer. */
static int
next_quarter (void *opaque, struct nc_piece *piece)
{
  struct copy *c = opaque;

  if (c->offset == SIZE)
    return 0;
  piece->read = c->offset / (SIZE / 4) % 2 == 0;
  piece->kind = piece->read ? DATA : FILL;
  piece->offset = c->offset;
  piece->count = piece->read ? PIECE : SIZE / 4;
  c->offset += piece->count;
  return 1;
}

/* The first store from each quarter is out of date: the source has changed. */
static int
store_stale (void *opaque, const struct nc_piece *piece, const void *buf)
{
  struct copy *c = opaque;
  const unsigned quarter = 1u << piece->offset / (SIZE / 4);

  if (!(atomic_fetch_or (&c->asked, quarter) & quarter)) {
    memset (c->from + piece->offset, 7, nc_min64 (piece->count, PIECE));
    return 1;
  }
  c->stored++;
  if (buf == NULL || piece->count > PIECE)
    return -1;
  memcpy (c->to + piece->offset, buf, piece->count);
  return 0;
}

static void
test_stale (uint64_t *seed)
{
  struct nc_ring_ops stale = ops;
  struct copy *c = copy_new (seed);
  struct nc_ring *ring;

  stale.next = next_quarter;
  stale.store = store_stale;
  ring = nc_ring_new (&stale, c, PIECE);
  must (ring != NULL, "ring");
  ok (nc_ring_run (ring) == 0 && c->done == SIZE && c->in_order &&
      c->stored == SIZE / PIECE,
      "what is out of date when it is stored is read again");
  ok (memcmp (c->from, c->to, SIZE) == 0,
      "also what was not to be read, a buffer at a time");
  nc_ring_free (ring);
  free (c);
}

static void
test_way (uint64_t *seed)
{
  struct nc_ring_ops half = ops;
  struct copy *c = copy_new (seed);
  const uint64_t plan = c->seed;
  struct nc_ring *ring;

  half.read = read_half;
  ring = nc_ring_new (&half, c, PIECE);
  must (ring != NULL, "ring");
  ok (nc_ring_way (ring) == 0, "before anything is read no way is known");
  ok (nc_ring_run (ring) == 0 && is_copied (c, plan),
      "what need not be read any more is stored like the rest");
  ok (nc_ring_way (ring) >= 1000000,
      "and is not taken for a short way (%llu ns)",
      (unsigned long long) nc_ring_way (ring));
  nc_ring_free (ring);
  free (c);
}

static void
test_together (uint64_t *seed)
{
  struct copy *c = copy_new (seed);
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);
  struct runner r;

  c->hang = true;
  run_start (&r, ring);
  wait_until_hanging (c, NC_WINDOW_MIN);
  ok (nc_ring_in_flight (ring) >= NC_WINDOW_MIN,
      "%d reads are under way at a time from the start", NC_WINDOW_MIN);
  set_hang (c, false);
  ok (run_join (&r) == 0 && c->done == SIZE && c->in_order,
      "when they come back the copy ends");
  nc_ring_free (ring);
  free (c);
}

#define PIECES 4

static void
test_errors (uint64_t *seed, enum nc_ring_step step, const char *what)
{
  struct copy *c = copy_new (seed);
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);

  c->fail_step = step;
  c->fail_at = SIZE / 2;
  c->fail_times = 1;
  ok (nc_ring_run (ring) == -1 && errno == ENOSPC && c->in_order &&
      c->done < SIZE && c->asked == 1, "%s fails: so does the copy", what);
  ok (nc_ring_run (ring) == -1 && errno == ENOSPC, "for good");
  nc_ring_free (ring);
  free (c);

  c = copy_new (seed);
  ring = nc_ring_new (&ops, c, PIECE);
  c->fail_step = step;
  c->fail_at = SIZE / 2;
  c->fail_times = 20;
  c->again = true;
  nc_ring_set_limit (ring, PIECES); /* so that some fail more than once */
  ok (nc_ring_run (ring) == 0 && c->done == SIZE && c->in_order &&
      c->asked == 20, "or it is tried again until it works");
  ok (step == NC_RING_PLAN ? c->most_tries == 19
      : c->most_tries >= 20 / PIECES - 1 && c->most_tries < 20,
      "how often it was tried before is known, of each piece");
  nc_ring_free (ring);
  free (c);
}

/* As on-error=stop: the one that fails interrupts, and is tried again when
 * the ring is run again. */
static void
test_stop_on_error (uint64_t *seed)
{
  struct copy *c = copy_new (seed);
  const uint64_t plan = c->seed;
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);
  unsigned runs = 0;
  int r;

  c->fail_step = NC_RING_READ;
  c->fail_at = SIZE / 2;
  c->fail_times = 3;
  c->again = true;
  c->interrupt = ring;
  while ((r = nc_ring_run (ring)) == 1)
    ++runs;
  ok (r == 0 && runs >= 1 && runs <= 3 && c->done == SIZE && c->in_order &&
      is_copied (c, plan), "an error that interrupts is tried again later");
  nc_ring_free (ring);
  free (c);
}

static void
test_throttle (uint64_t *seed)
{
  struct copy *c = copy_new (seed);
  const uint64_t plan = c->seed;
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);

  c->refuse = true;
  ok (nc_ring_run (ring) == 1 && c->most == 0,
      "who throttles can interrupt before anything is read");
  c->refuse = false;
  ok (nc_ring_run (ring) == 0 && c->done == SIZE && c->in_order &&
      is_copied (c, plan), "then nothing is left out");
  nc_ring_free (ring);
  free (c);
}

static void
test_hang (uint64_t *seed)
{
  struct copy *c = copy_new (seed);
  const uint64_t plan = c->seed;
  struct nc_ring *ring = nc_ring_new (&ops, c, PIECE);
  unsigned stored;
  struct runner r;

  c->hang = true;
  run_start (&r, ring);
  wait_until_hanging (c, 1);
  nc_ring_interrupt (ring);
  ok (run_join (&r) == 1 && nc_ring_in_flight (ring) >= 1,
      "a ring is interrupted while its source hangs");
  stored = c->stored;
  set_hang (c, false);
  while (c->reading > 0)
    sched_yield ();
  ok (c->stored == stored && c->done < SIZE,
      "what comes back later is not stored while nobody runs it");
  ok (nc_ring_run (ring) == 0 && c->done == SIZE && c->in_order &&
      is_copied (c, plan), "but when it is run again");
  nc_ring_free (ring);
  free (c);

  c = copy_new (seed);
  ring = nc_ring_new (&ops, c, PIECE);
  c->hang = true;
  run_start (&r, ring);
  wait_until_hanging (c, 2);
  nc_ring_interrupt (ring);
  must (run_join (&r) == 1, "interrupted");
  stored = c->stored;
  set_hang (c, false);
  nc_ring_free (ring);
  ok (c->stored == stored && c->reading == 0,
      "freeing waits for reads, and stores nothing");
  free (c);
}

static void
test_window (void)
{
  struct nc_window w;
  unsigned i, most = 0;

  nc_window_init (&w, 64);
  for (i = 0; i < 200; ++i)
    nc_window_note (&w, 20000000);
  ok (w.limit == 64, "a long way is filled as far as allowed");

  /* A link for 8 at a time: more only wait, but for the first. */
  nc_window_init (&w, 64);
  for (i = 0; i < 50000; ++i) {
    nc_window_note (&w, i < 8 ? 20000000
                    : 20000000 * nc_max64 (w.limit, 8) / 8);
    most = nc_max64 (most, w.limit);
  }
  ok (most >= 8 && most <= 32, "a full link is never overfilled (%u)", most);

  for (i = most = 0; i < 5000; ++i) {
    nc_window_note (&w, 500000000);
    most = nc_max64 (most, w.limit);
  }
  ok (most == 64, "a way that became longer is found out, and filled");
  nc_window_init (&w, 2);
  for (i = 0; i < 100; ++i)
    nc_window_note (&w, i % 2 ? 1 : 1000000000);
  ok (w.limit >= 1 && w.limit <= 2, "a small limit is kept");
}

int
main (void)
{
  uint64_t seed = tap_start (120);

  test_copy (&seed, 0);
  test_copy (&seed, 1);
  test_copy (&seed, 3);
  test_sleep (&seed);
  test_parts (&seed);
  test_stale (&seed);
  test_way (&seed);
  test_together (&seed);
  test_errors (&seed, NC_RING_PLAN, "planning");
  test_errors (&seed, NC_RING_READ, "a read");
  test_errors (&seed, NC_RING_STORE, "a store");
  test_stop_on_error (&seed);
  test_throttle (&seed);
  test_hang (&seed);
  test_window ();
  return tap_done ();
}
