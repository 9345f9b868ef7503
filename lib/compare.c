/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Two disks compared by a few threads.
 *
 * One thread at a time plans: it walks over both disks in order, by owners
 * and extents, passes what cannot differ, and makes a piece of what must be
 * read.  Then it reads and compares that piece while another plans the next
 * one.  Pieces wait in a ring until all before them are compared, so that
 * differences come out in order of offsets; whoever is too far ahead waits.
 *
 * compare->lock is held for the ring only, never while planning or reading.
 */

#include <config.h>

#include "compare.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "chain.h"
#include "checked.h"
#include "extents.h"
#include "report.h"
#include "scope.h"

#define THREADS 16
#define RING (4 * THREADS)      /* pieces begun and not yet in order */
#define PIECE_MAX (1u << 20)    /* bytes, of either disk */
/* What cannot differ is read all the same where passing it would split a
 * piece: a request costs more. */
#define PASS_MIN (32u << 10)
#define BLOCK 4096              /* compared as a whole first */

/* What is asked of a disk at a time. */
#define EXTENTS_RANGE (UINT64_C (4) << 30)
#define EXTENTS_MAX 4096

/* A disk; all but the first three belong to who plans. */
struct side {
  struct nc_chain *chain;
  struct nc_export *export;
  uint64_t size;
  struct nc_extents extents;    /* known ahead */
  size_t extent;                /* the one asked for last */
};

/* Why a range is passed, or which sides are to be read. */
enum need {
  READ_A = 1, READ_B = 2, READ_BOTH = 3,
  PASS_ZERO = 4, PASS_SHARED = 8,
};

struct piece {
  uint64_t offset, count;
  enum need need;               /* READ_* */
  bool done;                    /* guarded by compare->lock */
  struct nc_compare_range *v;   /* what differs */
  size_t n, cap;
};

struct compare {
  const struct nc_compare_options *opts;
  struct nc_compare_result *result;     /* under lock, or who plans */
  struct side a, b;
  bool *shared;                 /* by layer of A and of B */
  size_t n_b;                   /* layers of B */
  uint64_t size;                /* of the larger disk */
  _Atomic (uint64_t) done;

  /* Of who plans. */
  uint64_t next;                /* all before it is planned */

  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t changed;
  bool planning;                /* somebody is */
  bool stop;                    /* no more pieces */
  bool failed;
  struct piece ring[RING];
  uint64_t begun, ordered;      /* pieces */
  struct nc_compare_range range;        /* may still grow; no count: none */
};

/* What is where. */

static int
owner_at (struct side *side, uint64_t offset, int *layer, uint64_t *run)
{
  if (offset >= side->size) {
    *layer = -1;
    return 0;
  }
  return nc_chain_owner (side->chain, offset,
                         nc_min64 (*run, side->size - offset), layer, run);
}

/* Let the extents of SIDE cover OFFSET. */
static int
ask_extents (struct side *side, uint64_t offset)
{
  nc_extents_free (&side->extents);
  nc_extents_init (&side->extents, offset,
                   nc_min64 (side->size - offset, EXTENTS_RANGE));
  side->extents.limit = EXTENTS_MAX;
  side->extent = 0;
  return nc_export_extents (side->export, &side->extents, false);
}

/* Whether SIDE, where LAYER holds its bytes, reads as zeros at OFFSET; *run
 * is cut where the answer changes.  Mostly OFFSET is at or behind the last
 * one, or not far before it. */
static int
zero_at (struct side *side, int layer, uint64_t offset, bool *zero,
         uint64_t *run)
{
  const struct nc_extent *e;

  *zero = layer == -1;
  if (*zero)
    return 0;
  if ((offset < side->extents.offset ||
       offset >= nc_extents_next (&side->extents)) &&
      ask_extents (side, offset) == -1)
    return -1;
  e = &side->extents.v[side->extent];
  while (e->offset > offset)
    --e;
  while (e->offset + e->count <= offset)
    ++e;
  side->extent = e - side->extents.v;
  *zero = e->type & NC_EXTENT_ZERO;
  *run = nc_min64 (*run, e->offset + e->count - offset);
  return 0;
}

/* What is to be done with the bytes at OFFSET; *run, at first the most that
 * is asked for, is cut where the answer changes. */
static int
need_at (struct compare *c, uint64_t offset, enum need *need, uint64_t *run)
{
  int layer_a, layer_b;
  bool zero_a, zero_b;

  if (owner_at (&c->a, offset, &layer_a, run) == -1 ||
      owner_at (&c->b, offset, &layer_b, run) == -1)
    return -1;
  if (layer_a != -1 && layer_b != -1 &&
      c->shared[layer_a * c->n_b + layer_b]) {
    *need = PASS_SHARED;
    return 0;
  }
  if (zero_at (&c->a, layer_a, offset, &zero_a, run) == -1 ||
      zero_at (&c->b, layer_b, offset, &zero_b, run) == -1)
    return -1;
  *need = zero_a && zero_b ? PASS_ZERO
    : (zero_a ? 0 : READ_A) | (zero_b ? 0 : READ_B);
  return 0;
}

/* Planning. */

static void
add_done (struct compare *c, uint64_t count)
{
  const uint64_t done = atomic_fetch_add (&c->done, count) + count;

  if (c->opts->progress)
    c->opts->progress (c->opts->progress_opaque, done, c->size);
}

static bool
is_stopped (struct compare *c)
{
  NC_LOCKED (&c->lock);
  return c->stop;
}

/* Pass what need not be read.  Returns 1 at what must be, for which NEED and
 * RUN are set; 0 at the end. */
static int
pass (struct compare *c, enum need *need, uint64_t *run)
{
  for (; c->next < c->size && !is_stopped (c); c->next += *run) {
    *run = nc_min64 (c->size - c->next, EXTENTS_RANGE);
    if (need_at (c, c->next, need, run) == -1)
      return -1;
    if (!(*need & (PASS_ZERO | PASS_SHARED)))
      return 1;
    if (*need == PASS_ZERO)
      c->result->zero += *run;
    else
      c->result->shared += *run;
    add_done (c, *run);
  }
  return 0;
}

/* Make P the next piece.  Returns 1; 0 at the end; -1 on error, reported. */
static int
plan (struct compare *c, struct piece *p)
{
  enum need need;
  uint64_t run, passed = 0;
  int r = pass (c, &need, &run);

  if (r != 1)
    return r;
  p->offset = c->next;
  p->need = need;
  p->count = nc_min64 (run, PIECE_MAX);
  for (uint64_t at = p->offset + p->count;
       at < c->size && at - p->offset < PIECE_MAX; at += run) {
    run = nc_min64 (c->size - at, PIECE_MAX - (at - p->offset));
    if (need_at (c, at, &need, &run) == -1)
      return -1;
    if (need & (PASS_ZERO | PASS_SHARED)) {
      passed += run;
      if (passed >= PASS_MIN)
        break;
      continue;
    }
    if (need != p->need)
      break;
    passed = 0;
    p->count = at + run - p->offset;
  }
  c->next = p->offset + p->count;
  c->result->compared += p->count;
  return 1;
}

/* Comparing a piece. */

/* The byte at OFFSET differs. */
static int
add_byte (struct piece *p, uint64_t offset)
{
  struct nc_compare_range *r = p->n > 0 ? &p->v[p->n - 1] : NULL;

  if (r && offset - (r->offset + r->count) < NC_COMPARE_GAP) {
    r->count = offset + 1 - r->offset;
    r->bytes++;
    return 0;
  }
  if (p->n == p->cap) {
    const size_t cap = p->cap ? 2 * p->cap : 4;

    r = reallocarray (p->v, cap, sizeof *p->v);
    if (r == NULL) {
      nc_error ("list of differences: %m");
      return -1;
    }
    p->v = r;
    p->cap = cap;
  }
  p->v[p->n++] = (struct nc_compare_range) {
    .offset = offset, .count = 1, .bytes = 1
  };
  return 0;
}

/* Compare what was read of both sides; NULL: zeros. */
static int
scan (struct piece *p, const char *a, const char *b, bool all)
{
  static const char zeros[BLOCK];
  uint64_t n;

  for (uint64_t at = 0; at < p->count; at += n) {
    const char *x = a ? a + at : zeros, *y = b ? b + at : zeros;

    n = nc_min64 (BLOCK, p->count - at);
    if (memcmp (x, y, n) == 0)
      continue;
    for (uint64_t i = 0; i < n; ++i) {
      if (x[i] == y[i])
        continue;
      if (add_byte (p, p->offset + at + i) == -1)
        return -1;
      if (!all)
        return 0;
    }
  }
  return 0;
}

/* BUF: room for a piece of each side. */
static int
compare_piece (struct compare *c, struct piece *p, char *buf)
{
  char *a = p->need & READ_A ? buf : NULL;
  char *b = p->need & READ_B ? buf + PIECE_MAX : NULL;

  if (a && nc_export_pread (c->a.export, a, p->count, p->offset) == -1)
    return -1;
  if (b && nc_export_pread (c->b.export, b, p->count, p->offset) == -1)
    return -1;
  return scan (p, a, b, c->opts->all);
}

/* Differences in order. */

/* C->range will not grow any more. */
static void
settle_range_locked (struct compare *c)
{
  if (c->range.count == 0)
    return;
  c->result->bytes += c->range.bytes;
  c->result->ranges++;
  if (c->opts->difference)
    c->opts->difference (c->opts->difference_opaque, &c->range);
  c->range.count = 0;
}

static void
add_range_locked (struct compare *c, const struct nc_compare_range *range)
{
  struct nc_compare_range *last = &c->range;

  if (c->result->equal) {
    c->result->equal = false;
    c->result->first = range->offset;
  }
  if (!c->opts->all)
    return;
  if (last->count > 0 &&
      range->offset - (last->offset + last->count) < NC_COMPARE_GAP) {
    last->count = range->offset + range->count - last->offset;
    last->bytes += range->bytes;
    return;
  }
  settle_range_locked (c);
  *last = *range;
}

/* P has been compared. */
static void
put_in_order (struct compare *c, struct piece *p)
{
  NC_LOCKED (&c->lock);
  p->done = true;
  if (p->n > 0 && !c->opts->all)
    c->stop = true;
  for (; c->ordered < c->begun && c->ring[c->ordered % RING].done;
       ++c->ordered) {
    struct piece *q = &c->ring[c->ordered % RING];

    for (size_t i = 0; i < q->n; ++i)
      add_range_locked (c, &q->v[i]);
    q->n = 0;
    q->done = false;
  }
  pthread_cond_broadcast (&c->changed);
}

/* The threads. */

/* Wait until a piece can be planned.  Returns where to put it; NULL if there
 * are no more. */
static struct piece *
begin_plan (struct compare *c)
{
  NC_LOCKED (&c->lock);
  while (!c->stop && (c->planning || c->begun - c->ordered == RING))
    pthread_cond_wait (&c->changed, &c->lock);
  if (c->stop)
    return NULL;
  c->planning = true;
  return &c->ring[c->begun % RING];
}

/* R: what plan has returned. */
static void
end_plan (struct compare *c, int r)
{
  NC_LOCKED (&c->lock);
  c->planning = false;
  if (r == 1)
    c->begun++;
  else
    c->stop = true;
  if (r == -1)
    c->failed = true;
  pthread_cond_broadcast (&c->changed);
}

static void
fail (struct compare *c)
{
  NC_LOCKED (&c->lock);
  c->stop = c->failed = true;
  pthread_cond_broadcast (&c->changed);
}

static void *
work (void *opaque)
{
  struct compare *c = opaque;
  NC_FREE char *buf = malloc (2 * PIECE_MAX);
  struct piece *p;
  int r;

  if (buf == NULL) {
    nc_error ("buffers to compare: %m");
    fail (c);
    return NULL;
  }
  while ((p = begin_plan (c)) != NULL) {
    r = plan (c, p);
    end_plan (c, r);
    if (r != 1)
      break;
    if (compare_piece (c, p, buf) == -1) {
      fail (c);
      break;
    }
    add_done (c, p->count);
    put_in_order (c, p);
  }
  return NULL;
}

/* Returns -1 if not even one thread could be started, reported. */
static int
run_threads (struct compare *c)
{
  const uint64_t pieces = nc_div_up (c->size, PIECE_MAX);
  pthread_t threads[THREADS];
  size_t n = 0;
  int err = 0;

  while (n < nc_max64 (1, nc_min64 (pieces, THREADS)) &&
         (err = pthread_create (&threads[n], NULL, work, c)) == 0)
    n++;
  for (size_t i = 0; i < n; ++i)
    pthread_join (threads[i], NULL);
  if (n > 0)
    return 0;
  errno = err;
  nc_error ("threads to compare: %m");
  return -1;
}

static int
open_side (struct side *side, struct nc_chain *chain)
{
  side->chain = chain;
  side->size = nc_chain_size (chain);
  nc_extents_init (&side->extents, 0, 0);
  side->export = nc_export_open (chain, "", 0);
  return side->export ? 0 : -1;
}

static void
close_side (struct side *side)
{
  nc_export_close (side->export);
  nc_extents_free (&side->extents);
}

static int
find_shared (struct compare *c)
{
  const size_t n_a = nc_chain_n_layers (c->a.chain);

  c->n_b = nc_chain_n_layers (c->b.chain);
  c->shared = calloc (n_a * c->n_b, sizeof *c->shared);
  if (c->shared == NULL) {
    nc_error ("table of layers: %m");
    return -1;
  }
  for (size_t i = 0; i < n_a; ++i)
    for (size_t k = 0; k < c->n_b; ++k)
      c->shared[i * c->n_b + k] =
        nc_chain_is_same_layer (c->a.chain, i, c->b.chain, k);
  return 0;
}

int
nc_compare (struct nc_chain *a, struct nc_chain *b,
            const struct nc_compare_options *opts,
            struct nc_compare_result *result)
{
  struct compare c = {
    .opts = opts, .result = result,
    .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER,
  };
  int r = -1;

  *result = (struct nc_compare_result) { .equal = true };
  if (open_side (&c.a, a) == 0 && open_side (&c.b, b) == 0 &&
      find_shared (&c) == 0) {
    c.size = nc_max64 (c.a.size, c.b.size);
    r = run_threads (&c);
  }
  if (r == 0 && c.failed)
    r = -1;
  settle_range_locked (&c);
  for (size_t i = 0; i < RING; ++i)
    free (c.ring[i].v);
  free (c.shared);
  close_side (&c.a);
  close_side (&c.b);
  return r;
}
