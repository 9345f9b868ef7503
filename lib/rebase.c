/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Rebasing by a few threads.
 *
 * One thread at a time plans: it walks over the disk by owners and extents,
 * passes what is allocated in the image, what both sides take from the same
 * layer and what is zeros on both, and makes a piece, in whole blocks of the
 * image, of what must be looked at.  Then it reads that piece on both sides
 * and writes the blocks that differ, while another plans the next one.
 *
 * Old and new side are the disk through the image, and the disk of the new
 * backing, cut at its end or that of the image.  The pieces do not overlap,
 * and nobody else writes, so that a block which was not allocated when it
 * was planned is not when it is written.
 *
 * rebase->lock is held for taking turns only, never while planning or
 * reading.
 */

#include <config.h>

#include "rebase.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "chain-internal.h"
#include "checked.h"
#include "dev/dev.h"
#include "extents.h"
#include "format/format.h"
#include "format/fvd.h"
#include "image-internal.h"
#include "ref.h"
#include "report.h"
#include "scope.h"

#define THREADS 16
/* The largest block, too. */
#define PIECE_MAX (UINT64_C (2) << 20)

/* What is asked of a disk at a time. */
#define EXTENTS_RANGE (UINT64_C (4) << 30)
#define EXTENTS_MAX 4096

/* A disk; extents belong to who plans. */
struct side {
  struct nc_chain *chain;       /* NULL: zeros */
  struct nc_export *export;
  uint64_t size;                /* zeros behind */
  struct nc_extents extents;    /* known ahead */
  size_t extent;                /* the one asked for last */
};

/* What a range needs. */
enum need {
  NOTHING,
  MAKE_ZERO,                    /* zeros now, perhaps not over the other */
  COMPARE,
};

struct rebase {
  const struct nc_rebase_options *opts;
  struct side old, new;
  bool *shared;                 /* by layer of the old and of the new side */
  size_t n_new;
  uint64_t block;
  _Atomic (uint64_t) done, copied, zeroed;

  uint64_t next;                /* all before it is planned; of who plans */

  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t changed;
  bool planning;                /* somebody is */
  bool stop, failed;
};

struct piece {
  uint64_t offset, count;       /* blocks; the last one up to the size */
  uint64_t passes;              /* bytes that are settled with it */
  enum need need;
};

/* What is where. */

static int
owner_at (struct side *side, uint64_t offset, int *layer, uint64_t *run)
{
  *layer = -1;
  if (offset >= side->size)
    return 0;
  return nc_chain_owner (side->chain, offset,
                         nc_min64 (*run, side->size - offset), layer, run);
}

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
 * is cut where the answer changes.  OFFSET never goes back. */
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
  while (e->offset + e->count <= offset)
    ++e;
  side->extent = e - side->extents.v;
  *zero = e->type & NC_EXTENT_ZERO;
  *run = nc_min64 (*run, e->offset + e->count - offset);
  return 0;
}

/* What the bytes at OFFSET need; *run, at first the most that is asked for,
 * is cut where the answer changes. */
static int
need_at (struct rebase *r, uint64_t offset, enum need *need, uint64_t *run)
{
  int old, new;
  bool old_zero, new_zero;

  *need = NOTHING;
  if (owner_at (&r->old, offset, &old, run) == -1)
    return -1;
  if (old == 0)
    return 0;
  /* Zeros go on behind the end of what the new side shows. */
  if (offset < r->new.size)
    *run = nc_min64 (*run, r->new.size - offset);
  if (owner_at (&r->new, offset, &new, run) == -1)
    return -1;
  if (old != -1 && new != -1 && r->shared[old * r->n_new + new])
    return 0;
  if (zero_at (&r->old, old, offset, &old_zero, run) == -1 ||
      zero_at (&r->new, new, offset, &new_zero, run) == -1)
    return -1;
  *need = !old_zero ? COMPARE : new_zero ? NOTHING : MAKE_ZERO;
  return 0;
}

static void
add_done (struct rebase *r, uint64_t count)
{
  const uint64_t done = atomic_fetch_add (&r->done, count) + count;

  if (r->opts->progress)
    r->opts->progress (r->opts->opaque, done, r->old.size);
}

/* Planning. */

static bool
is_stopped (struct rebase *r)
{
  NC_LOCKED (&r->lock);
  return r->stop;
}

/* Make P the next piece.  Returns 1; 0 at the end; -1 on error, reported. */
static int
plan (struct rebase *r, struct piece *p)
{
  uint64_t run, end;

  for (; r->next < r->old.size && !is_stopped (r); r->next += run) {
    run = nc_min64 (r->old.size - r->next, EXTENTS_RANGE);
    if (need_at (r, r->next, &p->need, &run) == -1)
      return -1;
    if (p->need == NOTHING) {
      add_done (r, run);
      continue;
    }
    /* Whole blocks: what else is in them is looked at, too. */
    p->offset = nc_round_down (r->next, r->block);
    end = nc_min64 (r->next + run, p->offset + PIECE_MAX);
    end = nc_min64 (nc_round_up (end, r->block), r->old.size);
    if (p->need == MAKE_ZERO &&
        (p->offset < r->next || end > r->next + run))
      p->need = COMPARE;
    p->count = end - p->offset;
    p->passes = end - r->next;
    r->next = end;
    return 1;
  }
  return 0;
}

/* Working. */

static int
read_side (struct side *side, char *buf, const struct piece *p)
{
  const uint64_t n = p->offset >= side->size ? 0
    : nc_min64 (p->count, side->size - p->offset);

  memset (buf + n, 0, p->count - n);
  return n == 0 ? 0 : nc_export_pread (side->export, buf, n, p->offset);
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
store_differing (struct rebase *r, const struct piece *p, const char *old,
                 const char *new)
{
  enum kind kind = SAME, next;
  uint64_t first = 0;

  for (uint64_t at = 0; at < p->count; at += r->block) {
    const uint64_t n = nc_min64 (r->block, p->count - at);

    next = memcmp (old + at, new + at, n) == 0 ? SAME
      : is_zero (old + at, n) ? ZERO : DATA;
    if (next == kind)
      continue;
    if (store (r, kind, old + first, p->offset + first, at - first) == -1)
      return -1;
    kind = next;
    first = at;
  }
  return store (r, kind, old + first, p->offset + first, p->count - first);
}

/* BUF: room for a piece of each side. */
static int
settle (struct rebase *r, const struct piece *p, char *buf)
{
  if (p->need == MAKE_ZERO)
    return make_zero (r, p->offset, p->count);
  if (read_side (&r->old, buf, p) == -1 ||
      read_side (&r->new, buf + PIECE_MAX, p) == -1)
    return -1;
  return store_differing (r, p, buf, buf + PIECE_MAX);
}

/* The threads. */

static bool
begin_plan (struct rebase *r)
{
  NC_LOCKED (&r->lock);
  while (!r->stop && r->planning)
    pthread_cond_wait (&r->changed, &r->lock);
  r->planning = !r->stop;
  return r->planning;
}

/* RESULT: what plan has returned. */
static void
end_plan (struct rebase *r, int result)
{
  NC_LOCKED (&r->lock);
  r->planning = false;
  r->stop = r->stop || result != 1;
  r->failed = r->failed || result == -1;
  pthread_cond_broadcast (&r->changed);
}

static void
fail (struct rebase *r)
{
  NC_LOCKED (&r->lock);
  r->stop = r->failed = true;
  pthread_cond_broadcast (&r->changed);
}

static void *
work (void *opaque)
{
  struct rebase *r = opaque;
  NC_FREE char *buf = malloc (2 * PIECE_MAX);
  struct piece p;
  int result;

  if (buf == NULL) {
    nc_error ("buffers to rebase: %m");
    fail (r);
    return NULL;
  }
  while (begin_plan (r)) {
    result = plan (r, &p);
    end_plan (r, result);
    if (result != 1)
      break;
    if (settle (r, &p, buf) == -1) {
      fail (r);
      break;
    }
    add_done (r, p.passes);
  }
  return NULL;
}

static int
run_threads (struct rebase *r)
{
  pthread_t threads[THREADS];
  size_t n = 0;
  int err = 0;

  while (n < THREADS &&
         (err = pthread_create (&threads[n], NULL, work, r)) == 0)
    n++;
  for (size_t i = 0; i < n; ++i)
    pthread_join (threads[i], NULL);
  if (n > 0)
    return r->failed ? -1 : 0;
  errno = err;
  nc_error ("threads to rebase: %m");
  return -1;
}

/* Opening and closing. */

static int
open_side (struct side *side, struct nc_chain *chain)
{
  side->chain = chain;
  side->size = nc_chain_size (chain);
  nc_extents_init (&side->extents, 0, 0);
  if (nc_chain_start (chain) == -1)
    return -1;
  side->export = nc_export_open (chain, "", 0);
  return side->export ? 0 : -1;
}

/* Returns -1 if an image that was written could not be closed in order. */
static int
close_side (struct side *side)
{
  int r = 0;

  nc_export_close (side->export);
  nc_extents_free (&side->extents);
  if (side->chain)
    r = nc_chain_stop (side->chain);
  nc_chain_close (side->chain);
  return r;
}

static int
refuse_cycle (const char *path, dev_t st_dev, ino_t st_ino,
              const struct nc_dev *dev)
{
  dev_t other_dev;
  ino_t other_ino;

  if (nc_dev_file_id (dev, &other_dev, &other_ino) == -1 ||
      st_dev != other_dev || st_ino != other_ino)
    return 0;
  nc_error ("%s: is in the chain of its new backing, and cannot be its own "
            "backing; choose one below it", path);
  errno = ELOOP;
  return -1;
}

/* Which file the image is. */
static int
identify (const char *path, dev_t *st_dev, ino_t *st_ino)
{
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_UNLOCKED);

  if (dev == NULL)
    return -1;
  nc_dev_file_id (dev, st_dev, st_ino);
  nc_dev_close (dev);
  return 0;
}

/* The new side, opened before the image is, so that a cycle is seen as one. */
static int
open_new (struct rebase *r, const struct nc_backing *b)
{
  const struct nc_rebase_options *opts = r->opts;
  const struct nc_chain_options chain_opts = {
    .image = opts->backing, .format = opts->backing_format, .is_ref = true,
    .base = opts->new_base, .allow = opts->allow, .tls = opts->tls,
    .retry = opts->retry, .memory_fd = -1, .read_only = true,
  };
  struct nc_chain *chain;
  dev_t st_dev;
  ino_t st_ino;

  if (identify (opts->path, &st_dev, &st_ino) == -1)
    return -1;
  chain = nc_chain_open (&chain_opts);
  if (chain == NULL)
    return -1;
  if (open_side (&r->new, chain) == -1)
    return -1;
  for (size_t i = 0; i < chain->views.current->n; ++i)
    if (refuse_cycle (opts->path, st_dev, st_ino,
                      chain->views.current->layers[i]->dev) == -1)
      return -1;
  r->new.size = nc_min64 (r->new.size, b->size);
  return 0;
}

static int
open_old (struct rebase *r)
{
  const struct nc_rebase_options *opts = r->opts;
  const struct nc_chain_options chain_opts = {
    .image = opts->path, .base = opts->base, .allow = opts->allow,
    .tls = opts->tls, .retry = opts->retry, .memory_fd = -1,
  };
  struct nc_chain *chain = nc_chain_open (&chain_opts);

  if (chain == NULL || open_side (&r->old, chain) == -1)
    return -1;
  r->block = nc_export_block_size (r->old.export);
  r->new.size = nc_min64 (r->new.size, r->old.size);
  return 0;
}

static int
find_shared (struct rebase *r)
{
  const size_t n_old = nc_chain_n_layers (r->old.chain);

  r->n_new = r->new.chain ? nc_chain_n_layers (r->new.chain) : 0;
  r->shared = calloc (n_old * r->n_new + 1, sizeof *r->shared);
  if (r->shared == NULL) {
    nc_error ("table of layers: %m");
    return -1;
  }
  for (size_t i = 0; i < n_old; ++i)
    for (size_t k = 0; k < r->n_new; ++k)
      r->shared[i * r->n_new + k] =
        nc_chain_is_same_layer (r->old.chain, i, r->new.chain, k);
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
  if (open_old (r) == -1 || find_shared (r) == -1)
    return -1;
  result = run_threads (r);
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
  struct nc_dev *dev, *backing;
  dev_t st_dev;
  ino_t st_ino;
  int r = 0;

  if (identify (opts->path, &st_dev, &st_ino) == -1)
    return -1;
  if (b->present && is_file (opts->backing)) {
    backing = nc_dev_open_file (opts->backing, NC_DEV_UNLOCKED);
    r = backing ? refuse_cycle (opts->path, st_dev, st_ino, backing) : -1;
    nc_dev_close (backing);
  }
  if (r == -1)
    return -1;
  dev = nc_dev_open_file (opts->path, NC_DEV_WRITE);
  if (dev == NULL)
    return -1;
  r = nc_fvd_change_backing (dev, b);
  nc_dev_close (dev);
  return r;
}

int
nc_image_rebase (const struct nc_rebase_options *opts,
                 struct nc_rebase_result *result)
{
  __attribute__ ((__cleanup__ (nc_backing_free))) struct nc_backing b = { 0 };
  struct rebase r = {
    .opts = opts,
    .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER,
  };
  int err;

  *result = (struct nc_rebase_result) { 0 };
  if (*opts->backing &&
      nc_backing_learn (opts->path, opts->backing, opts->backing_format,
                        opts->tls, &b) == -1)
    return -1;
  err = opts->unsafe ? rebase_unsafely (opts, &b) : rebase (&r, &b);
  if (close_side (&r.old) == -1)
    err = -1;
  close_side (&r.new);
  free (r.shared);
  result->copied = r.copied;
  result->zeroed = r.zeroed;
  return err;
}
