/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Bitmap and summary between the file and memory.  A page comes into memory
 * when it is first needed, so that opening costs the summary alone. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* The byte of the summary that tells of PAGE, and where in it. */
static uint8_t *
summary_byte (const struct fvd *f, uint64_t page, unsigned *shift)
{
  *shift = 2 * (page % 4);
  return f->summary + page / FVD_SUMMARY_PAGES * FVD_SECTOR +
    page % FVD_SUMMARY_PAGES / 4;
}

enum fvd_summary
fvd_summary_get (const struct fvd *f, uint64_t page)
{
  unsigned shift;
  uint8_t *p = summary_byte (f, page, &shift);

  return __atomic_load_n (p, __ATOMIC_ACQUIRE) >> shift & 3;
}

bool
fvd_summary_set (struct fvd *f, uint64_t page, enum fvd_summary value)
{
  unsigned shift;
  uint8_t *p = summary_byte (f, page, &shift);

  if (fvd_summary_get (f, page) == value)
    return false;
  __atomic_store_n (p, (*p & ~(3u << shift)) | value << shift,
                    __ATOMIC_RELEASE);
  return true;
}

static bool
are_valid (const struct fvd *f, enum fvd_kind kind, uint64_t first,
           uint64_t n, const uint8_t *sectors)
{
  for (uint64_t i = 0; i < n; ++i)
    if (!fvd_sector_is_valid (&f->h.uuid, kind, first + i,
                              sectors + i * FVD_SECTOR))
      return false;
  return true;
}

/* Read N sectors of an area from number FIRST on.  EBADMSG, not reported: a
 * checksum is wrong, also when read again (who inspects an image that is
 * in use may see a sector that is just being written). */
static int
read_sectors (struct fvd *f, enum fvd_kind kind, uint64_t area,
              uint64_t first, uint64_t n, uint8_t *sectors)
{
  for (int tries = 0; tries < 2; ++tries) {
    if (f->dev->ops->pread (f->dev, sectors, n * FVD_SECTOR,
                            area + first * FVD_SECTOR) == -1)
      return -1;
    if (are_valid (f, kind, first, n, sectors))
      return 0;
  }
  errno = EBADMSG;
  return -1;
}

int
fvd_summary_read (struct fvd *f)
{
  const uint64_t npages = nc_bitmap_npages (fvd_nblocks (&f->h));
  const uint64_t n = nc_div_up (npages, FVD_SUMMARY_PAGES);

  f->summary = malloc (nc_max64 (n, 1) * FVD_SECTOR);
  if (f->summary == NULL) {
    nc_error ("%s: summary of the bitmap: %m", f->dev->name);
    return -1;
  }
  /* In pieces, so that a file that only claims to be huge fails early. */
  for (uint64_t i = 0, some; i < n; i += some) {
    some = nc_min64 (n - i, 128);
    if (read_sectors (f, FVD_SUMMARY, f->h.summary.offset, i, some,
                      f->summary + i * FVD_SECTOR) == -1) {
      if (errno == EBADMSG) {
        nc_error ("%s: damaged summary of the bitmap: one of the sectors %"
                  PRIu64 " to %" PRIu64 " has a wrong checksum",
                  f->dev->name, i, i + some - 1);
        errno = EIO;
      }
      return -1;
    }
  }
  for (uint64_t page = 0; page < npages; ++page)
    if (fvd_summary_get (f, page) > FVD_MIXED) {
      nc_error ("%s: damaged summary of the bitmap: page %" PRIu64
                " has the value 3", f->dev->name, page);
      errno = EIO;
      return -1;
    }
  return 0;
}

static bool
is_loaded (const struct fvd *f, uint64_t page)
{
  return atomic_load_explicit (&f->bm->state[page],
                               memory_order_acquire) != NC_PAGE_UNLOADED;
}

/* The words of page PAGE as they are in the file.  Returns 1 if the sector has
 * no valid checksum because another thread has loaded the page meanwhile, and
 * a checkpoint is writing it: then the words in memory count. */
static int
read_page (struct fvd *f, uint64_t page, uint64_t *words)
{
  union {
    uint8_t bytes[FVD_SECTOR];
    uint64_t words[NC_PAGE_STRIDE];
  } sector;
  const unsigned nblocks = nc_bitmap_page_blocks (f->bm, page);

  if (read_sectors (f, FVD_BITMAP, f->h.bitmap.offset, page, 1,
                    sector.bytes) == -1) {
    if (errno == EBADMSG && is_loaded (f, page))
      return 1;
    if (errno == EBADMSG) {
      nc_error ("%s: damaged bitmap: page %" PRIu64 " (disk offset %" PRIu64
                ") has a wrong checksum", f->dev->name, page,
                page * NC_PAGE_BLOCKS << f->h.block_bits);
      errno = EIO;
    }
    return -1;
  }
  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i) {
    unsigned valid = nblocks > i * 64 ? nc_min64 (64, nblocks - i * 64) : 0;

    words[i] = le64toh (sector.words[i]) &
      (valid ? nc_word_mask (0, valid) : 0);
  }
  return 0;
}

int
fvd_page_load (struct fvd *f, uint64_t page)
{
  uint64_t words[NC_PAGE_WORDS];
  enum fvd_summary summary = fvd_summary_get (f, page);
  int r;

  /* A checkpoint changes the summary only of a page that is loaded, and
   * before its sector: having read the summary, look at the state again. */
  if (is_loaded (f, page))
    return 0;
  if (summary != FVD_MIXED) {
    nc_bitmap_load_equal (f->bm, page, summary == FVD_ALL);
    return 0;
  }
  r = read_page (f, page, words);
  if (r != 0)
    return r == -1 ? -1 : 0;
  NC_LOCKED (&f->load_lock);
  nc_bitmap_load (f->bm, page, words);
  return 0;
}

int
fvd_page_look (struct fvd *f, uint64_t page, uint64_t *words)
{
  const enum fvd_summary summary = fvd_summary_get (f, page);
  int r;

  /* After the summary, as when loading. */
  if (is_loaded (f, page))
    return nc_bitmap_copy_page (f->bm, page, words);
  if (summary != FVD_MIXED)
    return summary == FVD_ALL ? NC_PAGE_ALL : NC_PAGE_NONE;
  r = read_page (f, page, words);
  return r == 0 ? NC_PAGE_MIXED
    : r == 1 ? (int) nc_bitmap_copy_page (f->bm, page, words) : -1;
}

int
fvd_pages_load (struct fvd *f, uint64_t blk, uint64_t count)
{
  /* Only the first and the last page can be covered in part. */
  if (fvd_page_load (f, blk / NC_PAGE_BLOCKS) == -1)
    return -1;
  return fvd_page_load (f, (blk + count - 1) / NC_PAGE_BLOCKS);
}

int
fvd_bits_count (struct fvd *f, uint64_t *blocks)
{
  *blocks = 0;
  for (uint64_t page = 0; page < f->bm->npages; ++page) {
    uint64_t words[NC_PAGE_WORDS];

    switch (fvd_page_look (f, page, words)) {
    case -1:
      return -1;
    case NC_PAGE_MIXED:
      *blocks += nc_bitmap_weight (words);
      break;
    case NC_PAGE_ALL:
      *blocks += nc_bitmap_page_blocks (f->bm, page);
    }
  }
  return 0;
}
