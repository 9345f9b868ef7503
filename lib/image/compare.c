/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What a comparison feeds the ring with.
 *
 * The planning walks over both disks in order, by owners and extents, and
 * makes pieces of what cannot differ and of what must be read.  The reader of
 * a piece compares it, too; and since pieces are done in order, differences
 * come out in order of offsets.
 */

#include <config.h>

#include "image/compare.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "chain/chain.h"
#include "copy/ring.h"
#include "copy/side.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

#define PIECE_MAX (1u << 20)    /* bytes, of either disk */
/* What cannot differ is read all the same where passing it would split a
 * piece: a request costs more. */
#define PASS_MIN (32u << 10)
#define BLOCK 4096              /* compared as a whole first */

/* Why a range is passed, or which sides are to be read: the kind of a
 * piece. */
enum need {
  READ_A = 1, READ_B = 2, READ_BOTH = 3,
  PASS_ZERO = 4, PASS_SHARED = 8,
};

/* What differs in a piece. */
struct differences {
  struct nc_compare_range *v;
  size_t n, cap;
};

struct compare {
  const struct nc_compare_options *opts;
  struct nc_compare_result *result;     /* of done, as is the range */
  struct nc_side a, b;
  struct nc_shared shared;
  uint64_t size;                /* of the larger disk */
  struct nc_compare_range range;        /* may still grow; no count: none */
  _Atomic (bool) stop;          /* no more pieces */

  /* Of who plans. */
  uint64_t next;                /* all before it is planned */
  uint64_t planned;             /* pieces */

  struct differences differences[NC_RING_SLOTS];        /* by piece */
};

/* Planning. */

/* What is to be done with the bytes at OFFSET; *run, at first the most that
 * is asked for, is cut where the answer changes. */
static int
need_at (struct compare *c, uint64_t offset, enum need *need, uint64_t *run)
{
  int layer_a, layer_b;
  bool zero_a, zero_b;

  if (nc_side_owner (&c->a, offset, &layer_a, run) == -1 ||
      nc_side_owner (&c->b, offset, &layer_b, run) == -1)
    return -1;
  if (nc_is_shared (&c->shared, layer_a, layer_b)) {
    *need = PASS_SHARED;
    return 0;
  }
  if (nc_side_zero (&c->a, layer_a, offset, &zero_a, run) == -1 ||
      nc_side_zero (&c->b, layer_b, offset, &zero_b, run) == -1)
    return -1;
  *need = zero_a && zero_b ? PASS_ZERO
    : (zero_a ? 0 : READ_A) | (zero_b ? 0 : READ_B);
  return 0;
}

static bool
is_passed (enum need need)
{
  return need & (PASS_ZERO | PASS_SHARED);
}

/* Whether a piece of KIND may have bytes of which NEED is true.  What is shared
 * is the same on both sides, but where only one is read the other is taken for
 * zeros. */
static bool
goes_with (enum need need, unsigned kind)
{
  return need == PASS_ZERO ||
    (need == PASS_SHARED && kind == (READ_A | READ_B));
}

/* Let PIECE, which is to be read, go on with what comes behind it. */
static int
extend (struct compare *c, struct nc_piece *piece)
{
  const uint64_t limit = nc_min64 (c->size, piece->offset + PIECE_MAX);
  uint64_t run, passed = 0;
  enum need need;

  for (uint64_t at = piece->offset + piece->count; at < limit; at += run) {
    run = limit - at;
    if (need_at (c, at, &need, &run) == -1)
      return -1;
    if (goes_with (need, piece->kind)) {
      passed += run;
      if (passed >= PASS_MIN)
        break;
      continue;
    }
    if (need != piece->kind)
      break;
    passed = 0;
    piece->count = at + run - piece->offset;
  }
  return 0;
}

static int
next (void *opaque, struct nc_piece *piece)
{
  struct compare *c = opaque;
  uint64_t run = c->size - c->next;
  enum need need;

  if (run == 0 || c->stop)
    return 0;
  if (need_at (c, c->next, &need, &run) == -1)
    return -1;
  piece->offset = c->next;
  piece->count = run;
  piece->kind = need;
  piece->read = !is_passed (need);
  if (piece->read) {
    piece->count = nc_min64 (run, PIECE_MAX);
    if (extend (c, piece) == -1)
      return -1;
  }
  piece->context = &c->differences[c->planned++ % NC_RING_SLOTS];
  c->next += piece->count;
  return 1;
}

/* Comparing a piece. */

/* The byte at OFFSET differs. */
static int
add_byte (struct differences *d, uint64_t offset)
{
  struct nc_compare_range *r = d->n > 0 ? &d->v[d->n - 1] : NULL;

  if (r && offset - (r->offset + r->count) < NC_COMPARE_GAP) {
    r->count = offset + 1 - r->offset;
    r->bytes++;
    return 0;
  }
  if (d->n == d->cap) {
    const size_t cap = d->cap ? 2 * d->cap : 4;

    r = reallocarray (d->v, cap, sizeof *d->v);
    if (r == NULL) {
      nc_error ("list of differences: %m");
      return -1;
    }
    d->v = r;
    d->cap = cap;
  }
  d->v[d->n++] = (struct nc_compare_range) {
    .offset = offset, .count = 1, .bytes = 1
  };
  return 0;
}

/* Compare what was read of both sides at OFFSET; NULL: zeros. */
static int
scan (struct differences *d, const char *a, const char *b, uint64_t count,
      uint64_t offset, bool all)
{
  static const char zeros[BLOCK];
  uint64_t n;

  for (uint64_t at = 0; at < count; at += n) {
    const char *x = a ? a + at : zeros, *y = b ? b + at : zeros;

    n = nc_min64 (BLOCK, count - at);
    if (memcmp (x, y, n) == 0)
      continue;
    for (uint64_t i = 0; i < n; ++i) {
      if (x[i] == y[i])
        continue;
      if (add_byte (d, offset + at + i) == -1)
        return -1;
      if (!all)
        return 0;
    }
  }
  return 0;
}

/* BUF: room for a piece of each side. */
static int
read_piece (void *opaque, struct nc_piece *piece, void *buf)
{
  struct compare *c = opaque;
  struct differences *d = (void *) piece->context;
  char *a = piece->kind & READ_A ? buf : NULL;
  char *b = piece->kind & READ_B ? (char *) buf + PIECE_MAX : NULL;
  const int asked = nc_sides_read (&c->a, a, &c->b, b, piece->count,
                                   piece->offset);

  if (asked == -1 ||
      scan (d, a, b, piece->count, piece->offset, c->opts->all) == -1)
    return -1;
  if (d->n > 0 && !c->opts->all)
    c->stop = true;
  return asked;
}

static int
store_nothing (void *opaque __attribute__ ((__unused__)),
               const struct nc_piece *piece __attribute__ ((__unused__)),
               const void *buf __attribute__ ((__unused__)))
{
  return 0;
}

/* Differences in order. */

/* C->range will not grow any more. */
static void
settle_range (struct compare *c)
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
add_range (struct compare *c, const struct nc_compare_range *range)
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
  settle_range (c);
  *last = *range;
}

static void
done (void *opaque, const struct nc_piece *piece)
{
  struct compare *c = opaque;
  struct differences *d = (void *) piece->context;

  *(piece->kind == PASS_ZERO ? &c->result->zero
    : piece->kind == PASS_SHARED ? &c->result->shared
    : &c->result->compared) += piece->count;
  for (size_t i = 0; i < d->n; ++i)
    add_range (c, &d->v[i]);
  d->n = 0;
  if (c->opts->progress)
    c->opts->progress (c->opts->progress_opaque, piece->offset + piece->count,
                       c->size);
}

static int
compare (struct compare *c)
{
  static const struct nc_ring_ops ops = {
    .next = next, .read = read_piece, .store = store_nothing, .done = done,
  };
  struct nc_ring *ring = nc_ring_new (&ops, c, 2 * PIECE_MAX);
  int r;

  if (ring == NULL)
    return -1;
  r = nc_ring_run (ring);
  nc_ring_free (ring);
  return r;
}

int
nc_compare (struct nc_chain *a, struct nc_chain *b,
            const struct nc_compare_options *opts,
            struct nc_compare_result *result)
{
  NC_FREE struct compare *c = calloc (1, sizeof *c);
  int r = -1;

  *result = (struct nc_compare_result) { .equal = true };
  if (c == NULL) {
    nc_error ("compare: %m");
    return -1;
  }
  c->opts = opts;
  c->result = result;
  if (nc_side_open (&c->a, a) == 0 && nc_side_open (&c->b, b) == 0 &&
      nc_shared_find (&c->shared, &c->a, &c->b) == 0) {
    c->size = nc_max64 (c->a.size, c->b.size);
    r = compare (c);
  }
  settle_range (c);
  for (size_t i = 0; i < NC_RING_SLOTS; ++i)
    free (c->differences[i].v);
  nc_shared_free (&c->shared);
  nc_side_close (&c->a);
  nc_side_close (&c->b);
  return r;
}
