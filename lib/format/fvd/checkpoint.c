/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What the records of the journal say goes into the bitmap of the file, so
 * that their place can be used again:
 *
 *   note the next record number; copy the changed pages; (compact images:
 *   the table, see fvd-chunks.c;) fdatasync; write them; fdatasync; summary;
 *   fdatasync; header with the new tail; fdatasync; now the records below it
 *   are free
 *
 * Flushes go on meanwhile and append records: it begins, in a thread of its
 * own, when the journal is half full, so that no flush waits for it unless
 * the other half is filled before it has ended.
 *
 * Pages are copied after the record number was noted, so they say all that
 * the records below it say.  They may say more, of blocks that no flush has
 * taken yet: hence the sync before they are written.
 */

#include <config.h>

#include "format/fvd/fvd.h"

#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* Pages that are copied at a time. */
#define BATCH 2048

/* Sectors of the summary. */
static uint64_t
nsummary (const struct fvd *f)
{
  return nc_div_up (f->bm->npages, FVD_SUMMARY_PAGES);
}

int
fvd_checkpoint_open (struct fvd *f)
{
  pthread_cond_init (&f->checkpoint.ended, NULL);
  f->checkpoint.pages = calloc (fvd_nwords (f->bm->npages), 8);
  f->checkpoint.summary = calloc (fvd_nwords (nsummary (f)), 8);
  f->checkpoint.buf = malloc (BATCH * FVD_SECTOR);
  if (f->checkpoint.pages && f->checkpoint.summary && f->checkpoint.buf)
    return 0;
  nc_error ("%s: memory for checkpoints: %m", f->dev->name);
  return -1;
}

void
fvd_checkpoint_close (struct fvd *f)
{
  fvd_checkpoint_wait (f);
  free (f->checkpoint.pages);
  free (f->checkpoint.summary);
  free (f->checkpoint.buf);
  pthread_cond_destroy (&f->checkpoint.ended);
}

/* Copy the next pages to be written, from *PAGE on, to the buffer.
 * Returns how many; pages[] says which. */
static size_t
copy_pages (struct fvd *f, uint64_t *page, uint64_t *pages)
{
  size_t n = 0;

  for (; *page < f->bm->npages && n < BATCH; ++*page) {
    uint64_t *words = (uint64_t *) (f->checkpoint.buf + n * FVD_SECTOR);
    enum nc_page_state state;
    enum fvd_summary value;

    if (f->checkpoint.pages[*page / 64] == 0) {
      *page |= 63;
      continue;
    }
    if (!(f->checkpoint.pages[*page / 64] >> (*page % 64) & 1))
      continue;
    state = nc_bitmap_copy_page (f->bm, *page, words);
    value = state == NC_PAGE_ALL ? FVD_ALL
      : state == NC_PAGE_NONE ? FVD_NONE : FVD_MIXED;
    if (fvd_summary_set (f, *page, value))
      fvd_set_bit (f->checkpoint.summary, *page / FVD_SUMMARY_PAGES);
    if (value != FVD_MIXED)
      continue;
    for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
      words[i] = htole64 (words[i]);
    fvd_sector_seal (&f->h.uuid, FVD_BITMAP, *page, (uint8_t *) words);
    pages[n++] = *page;
  }
  return n;
}

/* Write the N copied pages, neighbours together. */
static int
write_pages (struct fvd *f, const uint64_t *pages, size_t n)
{
  for (size_t i = 0, run; i < n; i += run) {
    for (run = 1; i + run < n && pages[i + run] == pages[i] + run; ++run)
      ;
    if (f->dev->ops->pwrite (f->dev, f->checkpoint.buf + i * FVD_SECTOR,
                             run * FVD_SECTOR,
                             f->h.bitmap.offset +
                             pages[i] * FVD_SECTOR) == -1)
      return -1;
  }
  return 0;
}

static int
write_summary (struct fvd *f)
{
  const uint64_t n = nsummary (f);
  bool any = false;

  for (uint64_t i = 0; i < n; ++i) {
    uint8_t *sector = f->summary + i * FVD_SECTOR;

    if (!(f->checkpoint.summary[i / 64] >> (i % 64) & 1))
      continue;
    fvd_sector_seal (&f->h.uuid, FVD_SUMMARY, i, sector);
    if (f->dev->ops->pwrite (f->dev, sector, FVD_SECTOR,
                             f->h.summary.offset + i * FVD_SECTOR) == -1)
      return -1;
    any = true;
  }
  if (any && fvd_sync (f) == -1)
    return -1;
  memset (f->checkpoint.summary, 0, fvd_nwords (n) * 8);
  return 0;
}

/* Leader, while none is running: what is to be in the file when it has
 * ended. */
static void
begin (struct fvd *f)
{
  f->checkpoint.tail = f->journal.next;
  for (uint64_t i = 0; i < fvd_nwords (f->bm->npages); ++i) {
    f->checkpoint.pages[i] |= f->flush.dirty_pages[i];
    f->flush.dirty_pages[i] = 0;
  }
}

static int
write_bitmap (struct fvd *f)
{
  uint64_t pages[BATCH];
  size_t n;

  for (uint64_t page = 0; page < f->bm->npages;) {
    n = copy_pages (f, &page, pages);
    if (fvd_table_write (f) == -1)
      return -1;
    if (n > 0 &&
        (fvd_sync_data (f) == -1 || write_pages (f, pages, n) == -1))
      return -1;
  }
  /* The data of pages that are all allocated, and the pages written. */
  if (fvd_sync_data (f) == -1 || (f->data != f->dev && fvd_sync (f) == -1))
    return -1;
  return write_summary (f);
}

static int
run (struct fvd *f, bool clean)
{
  const uint64_t tail = f->h.journal_tail;

  if (write_bitmap (f) == -1)
    return -1;
  f->h.journal_tail = f->checkpoint.tail;
  f->h.flags |= clean ? FVD_CLEAN : 0;
  if (fvd_header_sync (f) == -1) {
    f->h.flags &= ~FVD_CLEAN;
    f->h.journal_tail = tail;
    return -1;
  }
  f->journal.tail = f->h.journal_tail;
  memset (f->checkpoint.pages, 0, fvd_nwords (f->bm->npages) * 8);
  nc_debug ("%s: checkpoint, journal from record %" PRIu64,
            f->dev->name, f->h.journal_tail);
  return 0;
}

int
fvd_checkpoint (struct fvd *f, bool clean)
{
  fvd_checkpoint_wait (f);
  begin (f);
  if (run (f, clean) == -1)
    return -1;
  f->flush.must_checkpoint = false;
  f->checkpoint.has_failed = false;
  return 0;
}

/* In the background. */

static void *
thread (void *opaque)
{
  struct fvd *f = opaque;
  const bool failed = run (f, false) == -1;

  NC_LOCKED (&f->flush.lock);
  f->checkpoint.has_failed = failed;
  f->checkpoint.running = false;
  pthread_cond_broadcast (&f->checkpoint.ended);
  return NULL;
}

void
fvd_checkpoint_start (struct fvd *f)
{
  NC_LOCKED (&f->flush.lock);
  if (f->checkpoint.running || f->checkpoint.has_failed)
    return;
  if (f->checkpoint.joinable)
    pthread_join (f->checkpoint.thread, NULL);
  begin (f);
  /* Without a thread the leader does it when the journal is full. */
  f->checkpoint.joinable =
    pthread_create (&f->checkpoint.thread, NULL, thread, f) == 0;
  f->checkpoint.running = f->checkpoint.joinable;
}

void
fvd_checkpoint_wait (struct fvd *f)
{
  NC_LOCKED (&f->flush.lock);
  while (f->checkpoint.running)
    pthread_cond_wait (&f->checkpoint.ended, &f->flush.lock);
  if (f->checkpoint.joinable)
    pthread_join (f->checkpoint.thread, NULL);
  f->checkpoint.joinable = false;
}
