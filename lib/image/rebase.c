/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What a rebase feeds the ring with.
 *
 * The planning walks over the disk by owners and extents, passes what is
 * allocated in the image, what both sides take from the same layer and what
 * is zeros on both, and makes pieces, in whole blocks of the image, of what
 * must be looked at.  Such a piece is read on both sides, and its blocks that
 * differ are stored.
 *
 * Old and new side are the disk through the image, and the disk of the new
 * backing, cut at its end or that of the image.  The pieces do not overlap,
 * and nobody else writes, so that a block which was not allocated when it
 * was planned is not when it is stored.
 */

#include <config.h>

#include "image/rebase.h"

#include <errno.h>
#include <string.h>

#include "chain/internal.h"
#include "chain/ref.h"
#include "copy/ring.h"
#include "copy/side.h"
#include "dev/dev.h"
#include "format/format.h"
#include "format/fvd/fvd.h"
#include "image/internal.h"
#include "util/checked.h"
#include "util/report.h"

/* The largest block, too. */
#define PIECE_MAX (NC_RING_PIECE_MAX / 2)

/* What a range needs: the kind of a piece. */
enum need {
  NOTHING,
  MAKE_ZERO,                    /* zeros now, perhaps not over the other */
  COMPARE,
};

struct rebase {
  const struct nc_rebase_options *opts;
  struct nc_dev *image;         /* not locked */
  struct nc_side old, new;
  struct nc_shared shared;
  uint64_t block;
  uint64_t next;                /* all before it is planned */
  _Atomic (uint64_t) copied, zeroed;
};

/* What the bytes at OFFSET need; *run, at first the most that is asked for,
 * is cut where the answer changes. */
static int
need_at (struct rebase *r, uint64_t offset, enum need *need, uint64_t *run)
{
  int old, new;
  bool old_zero, new_zero;

  *need = NOTHING;
  if (nc_side_owner (&r->old, offset, &old, run) == -1)
    return -1;
  if (old == 0)
    return 0;
  /* Zeros go on behind the end of what the new side shows. */
  if (offset < r->new.size)
    *run = nc_min64 (*run, r->new.size - offset);
  if (nc_side_owner (&r->new, offset, &new, run) == -1)
    return -1;
  if (nc_is_shared (&r->shared, old, new))
    return 0;
  if (nc_side_zero (&r->old, old, offset, &old_zero, run) == -1 ||
      nc_side_zero (&r->new, new, offset, &new_zero, run) == -1)
    return -1;
  *need = !old_zero ? COMPARE : new_zero ? NOTHING : MAKE_ZERO;
  return 0;
}

static int
next (void *opaque, struct nc_piece *piece)
{
  struct rebase *r = opaque;
  uint64_t run = r->old.size - r->next, end;
  enum need need;

  if (run == 0)
    return 0;
  if (need_at (r, r->next, &need, &run) == -1)
    return -1;
  end = r->next + run;
  piece->offset = r->next;
  if (need != NOTHING) {
    /* Whole blocks: what else is in them is looked at, too. */
    piece->offset = nc_round_down (r->next, r->block);
    end = nc_min64 (end, piece->offset + PIECE_MAX);
    end = nc_min64 (nc_round_up (end, r->block), r->old.size);
    if (piece->offset < r->next || end > r->next + run)
      need = COMPARE;
  }
  piece->count = end - piece->offset;
  piece->kind = need;
  piece->read = need == COMPARE;
  r->next = end;
  return 1;
}

/* The old side in the first half of BUF, the new one in the other. */
static int
read_piece (void *opaque, struct nc_piece *piece, void *buf)
{
  struct rebase *r = opaque;

  return nc_sides_read (&r->old, buf, &r->new, (char *) buf + PIECE_MAX,
                        piece->count, piece->offset);
}

static bool
is_zero (const char *p, uint64_t n)
{
  return *p == 0 && memcmp (p, p + 1, n - 1) == 0;
}

static int
make_zero (struct rebase *r, uint64_t offset, uint64_t count)
{
  r->zeroed += count;
  return nc_export_zero (r->old.export, offset, count, NC_REQ_MAY_TRIM);
}

enum kind { SAME, ZERO, DATA };

/* Store COUNT bytes of BUF, whole blocks, if they are to be. */
static int
store (struct rebase *r, enum kind kind, const char *buf, uint64_t offset,
       uint64_t count)
{
  switch (kind) {
  case ZERO:
    return make_zero (r, offset, count);
  case DATA:
    r->copied += count;
    return nc_export_pwrite (r->old.export, buf, count, offset, 0);
  default:
    return 0;
  }
}

/* Write the blocks of P that differ, neighbours of one kind together. */
static int
store_differing (struct rebase *r, const struct nc_piece *p, const char *old,
                 const char *new)
{
  enum kind kind = SAME, now;
  uint64_t first = 0;

  for (uint64_t at = 0; at < p->count; at += r->block) {
    const uint64_t n = nc_min64 (r->block, p->count - at);

    now = memcmp (old + at, new + at, n) == 0 ? SAME
      : is_zero (old + at, n) ? ZERO : DATA;
    if (now == kind)
      continue;
    if (store (r, kind, old + first, p->offset + first, at - first) == -1)
      return -1;
    kind = now;
    first = at;
  }
  return store (r, kind, old + first, p->offset + first, p->count - first);
}

static int
store_piece (void *opaque, const struct nc_piece *p, const void *buf)
{
  struct rebase *r = opaque;

  switch (p->kind) {
  case MAKE_ZERO:
    return make_zero (r, p->offset, p->count);
  case COMPARE:
    return store_differing (r, p, buf, (const char *) buf + PIECE_MAX);
  default:
    return 0;
  }
}

static void
done (void *opaque, const struct nc_piece *p)
{
  struct rebase *r = opaque;

  if (r->opts->progress)
    r->opts->progress (r->opts->opaque, p->offset + p->count, r->old.size);
}

static int
populate (struct rebase *r)
{
  static const struct nc_ring_ops ops = {
    .next = next, .read = read_piece, .store = store_piece, .done = done,
  };
  struct nc_ring *ring = nc_ring_new (&ops, r, 2 * PIECE_MAX);
  int result;

  if (ring == NULL)
    return -1;
  result = nc_ring_run (ring);
  nc_ring_free (ring);
  return result;
}

/* Opening and closing. */

static int
open_side (struct nc_side *side, struct nc_chain *chain)
{
  side->chain = chain;          /* who closes the side closes it, too */
  return nc_chain_start (chain) == -1 ? -1 : nc_side_open (side, chain);
}

/* Returns -1 if an image that was written could not be closed in order. */
static int
close_side (struct nc_side *side)
{
  int r = 0;

  nc_side_close (side);
  if (side->chain)
    r = nc_chain_stop (side->chain);
  nc_chain_close (side->chain);
  return r;
}

static bool
is_same_file (const struct nc_dev *a, const struct nc_dev *b)
{
  dev_t dev_a, dev_b;
  ino_t ino_a, ino_b;

  return nc_dev_file_id (a, &dev_a, &ino_a) == 0 &&
    nc_dev_file_id (b, &dev_b, &ino_b) == 0 &&
    dev_a == dev_b && ino_a == ino_b;
}

static int
refuse_cycle (const struct nc_dev *image, const struct nc_dev *dev)
{
  if (!is_same_file (image, dev))
    return 0;
  nc_error ("%s: is in the chain of its new backing, and cannot be its own "
            "backing; choose one below it", image->name);
  errno = ELOOP;
  return -1;
}

/* The new side, opened before the image is for writing, so that a cycle is
 * seen as one. */
static int
open_new (struct rebase *r, const struct nc_backing *b)
{
  const struct nc_rebase_options *opts = r->opts;
  const struct nc_chain_options chain_opts = {
    .image = opts->backing, .format = opts->backing_format, .is_ref = true,
    .base = opts->new_base, .allow = opts->allow, .tls = opts->tls,
    .retry = opts->retry, .memory_fd = -1, .read_only = true,
  };
  struct nc_chain *chain = nc_chain_open (&chain_opts);

  if (chain == NULL)
    return -1;
  if (open_side (&r->new, chain) == -1)
    return -1;
  for (size_t i = 0; i < chain->views.current->n; ++i)
    if (refuse_cycle (r->image, chain->views.current->layers[i]->dev) == -1)
      return -1;
  r->new.size = nc_min64 (r->new.size, b->size);
  return 0;
}

static int
open_old (struct rebase *r)
{
  const struct nc_rebase_options *opts = r->opts;
  const struct nc_chain_options chain_opts = {
    .image = opts->path, .base = opts->base, .data_file = opts->data_file,
    .allow = opts->allow, .tls = opts->tls, .retry = opts->retry,
    .memory_fd = -1,
  };
  struct nc_chain *chain = nc_chain_open (&chain_opts);

  if (chain == NULL || open_side (&r->old, chain) == -1)
    return -1;
  if (!is_same_file (r->image, chain->views.current->layers[0]->dev)) {
    nc_error ("%s: has been replaced by another file meanwhile", opts->path);
    errno = ESTALE;
    return -1;
  }
  r->block = nc_export_block_size (r->old.export);
  r->new.size = nc_min64 (r->new.size, r->old.size);
  return 0;
}

/* Populate, make it durable, then record the new backing. */
static int
rebase (struct rebase *r, const struct nc_backing *b)
{
  struct nc_layer *image;
  int result;

  if (b->present && open_new (r, b) == -1)
    return -1;
  if (open_old (r) == -1 ||
      nc_shared_find (&r->shared, &r->old, &r->new) == -1)
    return -1;
  result = populate (r);
  if (nc_chain_stop (r->old.chain) == -1 || result == -1)
    return -1;
  image = r->old.chain->views.current->layers[0];
  return image->format->set_backing (image, b);
}

static bool
is_file (const char *ref)
{
  enum nc_ref_kind kind;

  return nc_ref_kind (ref, &kind) == 0 && kind == NC_REF_FILE;
}

static int
rebase_unsafely (const struct nc_rebase_options *opts,
                 const struct nc_backing *b)
{
  struct nc_dev *dev = nc_dev_open_file (opts->path, NC_DEV_WRITE);
  struct nc_dev *backing;
  int r = 0;

  if (dev == NULL)
    return -1;
  if (b->present && is_file (opts->backing)) {
    backing = nc_dev_open_file (opts->backing, NC_DEV_UNLOCKED);
    r = backing ? refuse_cycle (dev, backing) : -1;
    nc_dev_close (backing);
  }
  if (r == 0)
    r = nc_fvd_change_backing (dev, b);
  nc_dev_close (dev);
  return r;
}

int
nc_image_rebase (const struct nc_rebase_options *opts,
                 struct nc_rebase_result *result)
{
  __attribute__ ((__cleanup__ (nc_backing_free))) struct nc_backing b = { 0 };
  struct rebase r = { .opts = opts };
  int err = 0;

  *result = (struct nc_rebase_result) { 0 };
  r.image = nc_dev_open_file (opts->path, NC_DEV_UNLOCKED);
  if (r.image == NULL)
    return -1;
  if (*opts->backing)
    err = nc_backing_learn (&r.image->path, opts->path, opts->backing,
                            opts->backing_format, opts->tls, &b);
  if (err == 0)
    err = opts->unsafe ? rebase_unsafely (opts, &b) : rebase (&r, &b);
  if (close_side (&r.old) == -1)
    err = -1;
  close_side (&r.new);
  nc_shared_free (&r.shared);
  nc_dev_close (r.image);
  result->copied = r.copied;
  result->zeroed = r.zeroed;
  return err;
}
