/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* How a block that was written becomes durable.
 *
 *   a write    data, then its bit in PENDING, then its bit in the bitmap
 *              (which is in memory that outlives the process, if any);
 *              acknowledge
 *   a flush    take PENDING; fdatasync; journal records, durable;
 *              acknowledge
 *
 * Invariants:
 * - What is in the bitmap of the file or in a record was set after its data
 *   was written and is written after an fdatasync that came later than that.
 * - What is in a record is in the bitmap in memory: the leader sets what it
 *   takes there too, for a writer may be between its two steps.  So a
 *   checkpoint (fvd-checkpoint.c) copies all that the records say.
 * - A bit is pending before it is visible: who overwrites a block because
 *   its bit is set, and flushes, finds it pending or already taken by a
 *   round that it waits for.
 *
 * Flushes share rounds.  A round takes its set and syncs when it starts, so
 * a flush needs one that has not started when the flush arrives; one of
 * those who wait leads it.
 */

#include <config.h>

#include "format/fvd/fvd.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "dev/dev.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

int
fvd_ranges_add (struct fvd_ranges *ranges, uint64_t blk, uint64_t count)
{
  struct fvd_range *last = ranges->n ? &ranges->v[ranges->n - 1] : NULL;

  if (last && last->blk + last->count == blk) {
    last->count += count;
    return 0;
  }
  if (ranges->n == ranges->cap) {
    size_t cap = ranges->cap ? 2 * ranges->cap : 256;
    struct fvd_range *v = reallocarray (ranges->v, cap, sizeof *v);

    if (v == NULL) {
      nc_error ("list of ranges: %m");
      return -1;
    }
    ranges->v = v;
    ranges->cap = cap;
  }
  ranges->v[ranges->n++] = (struct fvd_range) { blk, count };
  return 0;
}

static size_t
pending_size (const struct fvd *f)
{
  return nc_max64 (nc_bitmap_bits_size (f->bm->npages), 1);
}

int
fvd_flush_open (struct fvd *f)
{
  const uint64_t npages = f->bm->npages;
  void *map = mmap (NULL, pending_size (f), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  pthread_mutex_init (&f->flush.lock, NULL);
  pthread_cond_init (&f->flush.round_done, NULL);
  f->flush.pending = map == MAP_FAILED ? NULL : map;
  f->flush.pending_pages = calloc (fvd_nwords (npages), 8);
  f->flush.dirty_pages = calloc (fvd_nwords (npages), 8);
  if (f->flush.pending == NULL || f->flush.pending_pages == NULL ||
      f->flush.dirty_pages == NULL) {
    nc_error ("%s: memory for flushes: %m", f->dev->name);
    return -1;
  }
  if (fvd_is_compact (&f->h) && fvd_chunks_begin_writing (f) == -1)
    return -1;
  return fvd_checkpoint_open (f);
}

void
fvd_flush_close (struct fvd *f)
{
  if (f->flush.pending == NULL)
    return;
  fvd_checkpoint_close (f);
  munmap (f->flush.pending, pending_size (f));
  free (f->flush.pending_pages);
  free (f->flush.dirty_pages);
  free (f->flush.spans.v);
  free (f->flush.taken.v);
  pthread_mutex_destroy (&f->flush.lock);
  pthread_cond_destroy (&f->flush.round_done);
}

void
fvd_flush_adopt (struct fvd *f)
{
  for (uint64_t page = 0; page < f->bm->npages; ++page) {
    uint8_t state = f->bm->state[page];

    if (state == NC_PAGE_MIXED ||
        (state == NC_PAGE_ALL && fvd_summary_get (f, page) != FVD_ALL))
      fvd_set_bit (f->flush.dirty_pages, page);
  }
  if (fvd_is_compact (&f->h))
    fvd_chunks_adopt (f);
  f->flush.must_checkpoint = true;
}

/* Mark blocks of one page that are not yet allocated as pending. */
static void
set_pending (struct fvd *f, uint64_t page, unsigned bit, unsigned count)
{
  const uint64_t page_bit = UINT64_C (1) << (page % 64);
  const uint8_t state = atomic_load_explicit (&f->bm->state[page],
                                              memory_order_acquire);
  bool any = false;

  if (state == NC_PAGE_ALL)
    return;
  for (unsigned n; count > 0; bit += n, count -= n) {
    uint64_t i = page * NC_PAGE_STRIDE + bit / 64, mask;

    n = nc_min64 (64 - bit % 64, count);
    mask = nc_word_mask (bit % 64, n);
    if (state == NC_PAGE_MIXED)
      mask &= ~atomic_load_explicit (&f->bm->bits[i], memory_order_acquire);
    if (mask) {
      atomic_fetch_or (&f->flush.pending[i], mask);
      any = true;
    }
  }
  /* After the bits, and the leader clears it before it takes them. */
  if (any && !(f->flush.pending_pages[page / 64] & page_bit))
    atomic_fetch_or (&f->flush.pending_pages[page / 64], page_bit);
}

int
fvd_flush_set_allocated (struct fvd *f, uint64_t blk, uint64_t count)
{
  const uint64_t end = blk + count;
  uint64_t first = blk, n;

  if (fvd_pages_load (f, blk, count) == -1)
    return -1;
  for (; first < end; first += n) {
    const uint64_t page = first / NC_PAGE_BLOCKS;
    const unsigned bit = first % NC_PAGE_BLOCKS;

    n = nc_min64 (NC_PAGE_BLOCKS - bit, end - first);
    if (bit == 0 && n == nc_bitmap_page_blocks (f->bm, page)) {
      /* Whole pages, as many as there are: not bit by bit. */
      n = end == f->bm->nblocks ? end - first
        : nc_max64 (n, (end - first) / NC_PAGE_BLOCKS * NC_PAGE_BLOCKS);
      NC_LOCKED (&f->flush.lock);
      if (fvd_ranges_add (&f->flush.spans, first, n) == -1)
        return -1;
    }
    else
      set_pending (f, page, bit, n);
  }
  nc_bitmap_set (f->bm, blk, count);
  return 0;
}

/* Taking the pending set. */

struct taking {
  struct fvd *f;
  uint64_t first_blk;           /* of the page */
};

static int
take_range (void *opaque, unsigned bit, unsigned count)
{
  const struct taking *t = opaque;
  const uint64_t blk = t->first_blk + bit;

  nc_bitmap_set (t->f->bm, blk, count);
  /* It is in the bitmap and its page is dirty: a checkpoint has it. */
  if (fvd_ranges_add (&t->f->flush.taken, blk, count) == -1)
    t->f->flush.must_checkpoint = true;
  return 0;
}

static void
take_page (struct fvd *f, uint64_t page)
{
  struct taking t = { .f = f, .first_blk = page * NC_PAGE_BLOCKS };
  _Atomic (uint64_t) *pending = f->flush.pending + page * NC_PAGE_STRIDE;
  uint64_t words[NC_PAGE_WORDS];

  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
    words[i] = pending[i] ? atomic_exchange (&pending[i], 0) : 0;
  fvd_set_bit (f->flush.dirty_pages, page);
  nc_bitmap_walk_words (words, nc_bitmap_page_blocks (f->bm, page),
                        take_range, &t);
}

static void
take_spans (struct fvd *f)
{
  NC_LOCKED (&f->flush.lock);

  for (size_t i = 0; i < f->flush.spans.n; ++i) {
    const struct fvd_range *r = &f->flush.spans.v[i];

    nc_bitmap_set (f->bm, r->blk, r->count);
    for (uint64_t page = r->blk / NC_PAGE_BLOCKS;
         page * NC_PAGE_BLOCKS < r->blk + r->count; ++page)
      fvd_set_bit (f->flush.dirty_pages, page);
    if (fvd_ranges_add (&f->flush.taken, r->blk, r->count) == -1)
      f->flush.must_checkpoint = true;
  }
  f->flush.spans.n = 0;
}

/* Take everything that is pending: into TAKEN, the bitmap, and the pages
 * for the next checkpoint, which must come in this round if memory for
 * TAKEN runs out. */
static void
take_pending (struct fvd *f)
{
  f->flush.taken.n = 0;
  take_spans (f);
  for (uint64_t i = 0; i < fvd_nwords (f->bm->npages); ++i) {
    uint64_t pages = f->flush.pending_pages[i] ?
      atomic_exchange (&f->flush.pending_pages[i], 0) : 0;

    for (; pages; pages &= pages - 1)
      take_page (f, i * 64 + __builtin_ctzll (pages));
  }
  fvd_chunks_take (f);
}

/* Durability.  A failed sync is final: what it was to make durable may be
 * gone from the page cache. */

static int
fail (struct fvd *f)
{
  nc_keep_set_failed (&f->keep);
  if (!atomic_exchange (&f->failed, true))
    nc_error ("%s: data could not be made durable: from now on this image "
              "is only read, and flushes fail; check the storage, then "
              "start the server again: everything flushed before is there",
              f->dev->name);
  errno = EIO;
  return -1;
}

int
fvd_sync (struct fvd *f)
{
  return f->dev->ops->sync (f->dev) == -1 ? fail (f) : 0;
}

int
fvd_sync_data (struct fvd *f)
{
  /* Not opened: nothing was written to it. */
  if (f->data == NULL)
    return 0;
  return f->data->ops->sync (f->data) == -1 ? fail (f) : 0;
}

int
fvd_header_sync (struct fvd *f)
{
  if (fvd_header_write (f->dev, &f->h) == -1)
    return -1;
  return fvd_sync (f);
}

/* What a flush does.  Leader. */
static int
round_of_flush (struct fvd *f)
{
  uint64_t need;

  take_pending (f);
  if (fvd_sync_data (f) == -1)
    return -1;
  need = fvd_journal_need (&f->flush.taken, &f->chunks.taken);
  if (need > fvd_journal_room (f))
    fvd_checkpoint_wait (f);
  if (f->flush.must_checkpoint || need > fvd_journal_room (f)) {
    f->flush.must_checkpoint = true;    /* also if this one fails */
    return fvd_checkpoint (f, false);
  }
  if (need == 0)
    return 0;
  /* An error may be that of a sync, also of data, so it is final. */
  if (fvd_journal_append (f, &f->flush.taken, &f->chunks.taken) == -1)
    return fail (f);
  if (fvd_journal_room (f) < f->journal.nsectors / 2)
    fvd_checkpoint_start (f);
  return 0;
}

static void
end_round_locked (struct fvd *f, int err)
{
  f->flush.leading = false;
  f->flush.completed = f->flush.started;
  f->flush.round_errno = err;
  pthread_cond_broadcast (&f->flush.round_done);
}

int
fvd_flush_then (struct fvd *f, int (*fn) (struct fvd *f, void *opaque),
                void *opaque)
{
  int err, then_errno, r = -1;

  NC_LOCKED (&f->flush.lock);
  while (f->flush.leading)
    pthread_cond_wait (&f->flush.round_done, &f->flush.lock);
  f->flush.leading = true;
  f->flush.started++;
  pthread_mutex_unlock (&f->flush.lock);
  err = f->failed ? EIO : round_of_flush (f) == -1 ? errno : 0;
  if (err == 0) {
    fvd_checkpoint_wait (f);
    r = fn (f, opaque);
  }
  then_errno = err ? err : errno;
  pthread_mutex_lock (&f->flush.lock);
  end_round_locked (f, err);
  errno = then_errno;
  return r;
}

int
fvd_flush (struct fvd *f)
{
  uint64_t mine;
  int err;

  NC_LOCKED (&f->flush.lock);
  mine = f->flush.started + 1;
  while (f->flush.completed < mine) {
    if (f->flush.leading) {
      pthread_cond_wait (&f->flush.round_done, &f->flush.lock);
      continue;
    }
    f->flush.leading = true;
    f->flush.started++;
    pthread_mutex_unlock (&f->flush.lock);
    err = f->failed ? EIO : round_of_flush (f) == -1 ? errno : 0;
    pthread_mutex_lock (&f->flush.lock);
    end_round_locked (f, err);
  }
  errno = f->flush.round_errno;
  return errno ? -1 : 0;
}

int
fvd_flush_finish (struct fvd *f)
{
  if (fvd_flush (f) == -1)
    return -1;
  return fvd_checkpoint (f, true);
}
