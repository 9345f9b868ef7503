/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Checking an fvd image against its specification, structure by structure,
 * without writing.  Unlike opening, it goes on after the first error. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

struct check {
  nc_check_finding finding;
  void *opaque;
  struct nc_check_result *result;
};

static void __attribute__ ((__format__ (printf, 3, 4)))
find (struct check *c, bool error, const char *fmt, ...)
{
  char text[256];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  if (error)
    c->result->errors++;
  else
    c->result->warnings++;
  if (c->finding)
    c->finding (c->opaque, error, text);
}

/* One page of the bitmap. */
static int
check_page (struct check *c, struct fvd *f, uint64_t page)
{
  uint8_t sector[FVD_SECTOR];
  const unsigned nblocks = nc_bitmap_page_blocks (f->bm, page);
  const uint64_t at = page * NC_PAGE_BLOCKS << f->h.block_bits;

  if (fvd_summary_get (f, page) != FVD_MIXED)
    return 0;
  if (f->dev->ops->pread (f->dev, sector, sizeof sector,
                          f->h.bitmap.offset + page * FVD_SECTOR) == -1)
    return -1;
  if (!fvd_sector_is_valid (&f->h.uuid, FVD_BITMAP, page, sector)) {
    find (c, true, "bitmap page %" PRIu64 " has a wrong checksum: what this "
          "image holds of the disk from %" PRIu64 " on is not known", page,
          at);
    return 0;
  }
  for (unsigned b = nblocks; b < NC_PAGE_BLOCKS; ++b)
    if (sector[b / 8] >> (b % 8) & 1) {
      find (c, false, "bitmap page %" PRIu64 " has bits behind the last "
            "block, which mean nothing", page);
      break;
    }
  return 0;
}

/* Each sector of the table.  Of one that is being written, the header may have
 * been read before it was written with a larger bound. */
static int
check_table (struct check *c, struct fvd *f)
{
  uint32_t entries[FVD_TABLE_ENTRIES];
  char why[FVD_WHY];
  int r;

  for (uint64_t i = 0; i < f->chunks.nsectors; ++i) {
    r = fvd_table_look (f, i, entries, why);
    if (r == 1) {
      NC_FREE struct fvd_header *now = calloc (1, sizeof *now);

      if (now == NULL || fvd_header_read (f->dev, now) == -1)
        return -1;
      *f->chunks.used = nc_max64 (*f->chunks.used, now->chunks);
      r = fvd_table_look (f, i, entries, why);
    }
    if (r == -1)
      return -1;
    if (r == 1)
      find (c, true, "damaged table of chunks: %s", why);
  }
  return 0;
}

/* With what records say. */
static int
check_places (struct check *c, struct fvd *f)
{
  NC_FREE uint64_t *owned = NULL;
  uint64_t shared;

  if (fvd_places_owned (f, &owned, &shared) == -1)
    return -1;
  if (shared > 0)
    find (c, true, "damaged table of chunks: %" PRIu64 " of them have the "
          "place of another one", shared);
  return 0;
}

static void
count_record (void *opaque, uint64_t record __attribute__ ((__unused__)))
{
  ++*(uint64_t *) opaque;
}

/* What was torn is overwritten next; the other half counts. */
static int
check_profile (struct check *c, struct fvd *f)
{
  NC_FREE struct nc_profile_range *ranges = NULL;
  unsigned torn;
  size_t n;

  if (fvd_profile_read (f->dev, &f->h, &ranges, &n, &torn) == -1)
    return -1;
  if (torn > 0)
    find (c, false, "%s of the prefetch profile was not written wholly; %s",
          torn == 2 ? "both halves" : "one half",
          torn == 2 ? "none is recorded" : "the other one counts");
  return 0;
}

static int
check_contents (struct check *c, struct fvd *f)
{
  uint64_t blocks;

  for (uint64_t page = 0; page < f->bm->npages; ++page)
    if (check_page (c, f, page) == -1)
      return -1;
  c->result->blocks_checked = f->bm->nblocks;
  if (fvd_is_compact (&f->h) && check_table (c, f) == -1)
    return -1;
  if (c->result->errors)
    return 0;

  if (!(f->h.flags & FVD_CLEAN)) {
    if (fvd_journal_replay (f, count_record,
                            &c->result->journal_records) == -1) {
      if (f->dev->read_failed)
        return -1;
      find (c, true, "a record of the journal is damaged");
      return 0;
    }
    find (c, false, "in use, or not closed in order: %" PRIu64
          " records of the journal are read at the next open",
          c->result->journal_records);
  }
  if (fvd_is_compact (&f->h) && check_places (c, f) == -1)
    return -1;
  if (fvd_bits_count (f, &blocks) == -1 ||
      fvd_leaks (f, NULL, &c->result->leaked) == -1)
    return -1;
  if (c->result->leaked)
    find (c, false, "%" PRIu64 " bytes of storage belong to no block",
          c->result->leaked);
  c->result->allocated = nc_min64 (blocks << f->h.block_bits, f->h.size);
  return 0;
}

int
nc_fvd_check (struct nc_dev *dev, nc_check_finding finding, void *opaque,
              struct nc_check_result *result)
{
  struct check c = {
    .finding = finding, .opaque = opaque, .result = result
  };
  struct fvd f = { .dev = dev, .load_lock = PTHREAD_MUTEX_INITIALIZER };
  unsigned copies;
  int r = 0;

  memset (result, 0, sizeof *result);
  f.bm = &f.keep.bitmap;
  if (fvd_header_copies (dev, &copies) == -1)
    return -1;
  if (copies == 0 || fvd_header_read (dev, &f.h) == -1) {
    if (dev->read_failed)
      return -1;
    find (&c, true, "the header cannot be used");
    return 0;
  }
  result->header_copies = copies;
  result->clean = f.h.flags & FVD_CLEAN;
  if (copies == 1)
    find (&c, false, "one of the two header copies is damaged; the next "
          "write of the header replaces it");
  f.journal.nsectors = f.h.journal.size / FVD_SECTOR;
  if (nc_keep_open (&f.keep, -1, dev->name, &f.h.uuid,
                    fvd_nblocks (&f.h), fvd_chunks_memory (&f.h)) == -1)
    return -1;
  if (fvd_is_compact (&f.h)) {
    if (fvd_chunks_open (&f, f.keep.extra) == -1)
      r = -1;
    fvd_chunks_begin (&f);
  }
  if (r == -1)
    ;
  else if (fvd_summary_read (&f) == 0)
    r = check_contents (&c, &f);
  else if (dev->read_failed)
    r = -1;
  else
    find (&c, true, "the summary of the bitmap cannot be used");
  if (r == 0)
    r = check_profile (&c, &f);
  fvd_chunks_close (&f);
  free (f.summary);
  nc_keep_close (&f.keep);
  return r;
}
