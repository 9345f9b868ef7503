/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Another size for the disk of an fvd image that nobody else uses.
 *
 *   both       checkpoint: no record of the journal counts any more
 *   shrinking  header with the smaller size; sync; bits behind the last block
 *              cleared, file cut (not of a compact image: places there are
 *              in no order)
 *   growing    page with the old end, without bits behind it; sync; summary
 *              up to the new end; sync; file cut at the old end, then longer
 *              (compact: entries of the table up to the new end cleared);
 *              zeros in what was behind the old end of its block; sync;
 *              header with the new size and a backing that is seen up to the
 *              old one at most; sync
 *
 * While the header has one size, nothing that this size reads is changed. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "dev/dev.h"
#include "format/format.h"
#include "util/checked.h"
#include "util/report.h"

uint64_t
fvd_size_limit (const struct fvd_header *h)
{
  const uint64_t pages =
    nc_min64 (h->bitmap.size / FVD_SECTOR,
              h->summary.size / FVD_SECTOR * FVD_SUMMARY_PAGES);
  uint64_t limit = nc_min64 (FVD_SIZE_MAX, NC_OFFSET_MAX - h->data_offset);

  if (pages < (limit >> h->block_bits) / NC_PAGE_BLOCKS)
    limit = pages * NC_PAGE_BLOCKS << h->block_bits;
  if (fvd_is_compact (h))
    limit = nc_min64 (limit, nc_min64 (h->table.size / FVD_SECTOR *
                                       FVD_TABLE_ENTRIES, FVD_CHUNKS_MAX)
                      << h->chunk_bits);
  return limit;
}

static struct fvd *
fvd_of (const struct nc_layer *layer)
{
  return layer->priv;
}

int
nc_fvd_can_resize (const struct nc_layer *layer, uint64_t size)
{
  const struct fvd_header *h = &fvd_of (layer)->h;

  if (size <= fvd_size_limit (h))
    return 0;
  nc_error ("%s: %" PRIu64 " is too large: the image has room for %" PRIu64
            " bytes; make an overlay of that size on top of it (nbdchain "
            "create -b)", layer->path, size, fvd_size_limit (h));
  errno = EFBIG;
  return -1;
}

/* The page of the bitmap in which the last of NBLOCKS blocks is not the last
 * of the page, with no bits behind it: sealed in SECTOR.  Returns 1; or 0 if
 * there is no such page, or its sector is not read; -1 on error. */
static int
tail_page (struct fvd *f, uint64_t nblocks, uint64_t *page, uint8_t *sector)
{
  const unsigned n = nblocks % NC_PAGE_BLOCKS;
  uint64_t words[NC_PAGE_WORDS];

  *page = nblocks / NC_PAGE_BLOCKS;
  if (n == 0 || fvd_summary_get (f, *page) == FVD_NONE)
    return 0;
  if (fvd_page_load (f, *page) == -1)
    return -1;
  nc_bitmap_copy_page (f->bm, *page, words);
  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i) {
    const unsigned valid = n > i * 64 ? nc_min64 (64, n - i * 64) : 0;

    words[i] = htole64 (valid ? words[i] & nc_word_mask (0, valid) : 0);
  }
  memcpy (sector, words, sizeof words);
  fvd_sector_seal (&f->h.uuid, FVD_BITMAP, *page, sector);
  return 1;
}

static int
write_page (struct fvd *f, uint64_t page, const uint8_t *sector)
{
  return f->dev->ops->pwrite (f->dev, sector, FVD_SECTOR,
                              f->h.bitmap.offset + page * FVD_SECTOR);
}

/* Write the sectors of the summary from page FIRST to page LAST, in which
 * the pages from NONE on have no allocated block. */
static int
write_summary (struct fvd *f, uint64_t first, uint64_t last, uint64_t none)
{
  const uint64_t known = nc_div_up (f->bm->npages, FVD_SUMMARY_PAGES);

  for (uint64_t s = first / FVD_SUMMARY_PAGES;
       s <= last / FVD_SUMMARY_PAGES; ++s) {
    uint8_t sector[FVD_SECTOR] = { 0 };

    if (s < known)
      memcpy (sector, f->summary + s * FVD_SECTOR, FVD_SECTOR);
    for (unsigned i = 0; i < FVD_SUMMARY_PAGES; ++i)
      if (s * FVD_SUMMARY_PAGES + i >= none)
        sector[i / 4] &= ~(3u << 2 * (i % 4));
    fvd_sector_seal (&f->h.uuid, FVD_SUMMARY, s, sector);
    if (f->dev->ops->pwrite (f->dev, sector, FVD_SECTOR,
                             f->h.summary.offset + s * FVD_SECTOR) == -1)
      return -1;
  }
  return fvd_sync (f);
}

/* Let bitmap and summary be true of SIZE, too; for the old size they stay
 * the same. */
static int
grow_bitmap (struct fvd *f, uint64_t size)
{
  const struct fvd_header larger = {
    .size = size, .block_bits = f->h.block_bits,
  };
  const uint64_t npages = nc_bitmap_npages (fvd_nblocks (&larger));
  uint8_t sector[FVD_SECTOR];
  uint64_t page;
  int mixed = tail_page (f, f->bm->nblocks, &page, sector);

  if (mixed == -1)
    return -1;
  if (mixed) {
    if (write_page (f, page, sector) == -1 || fvd_sync (f) == -1)
      return -1;
    fvd_summary_set (f, page, FVD_MIXED);
  }
  return write_summary (f, page, nc_max64 (npages, 1) - 1, f->bm->npages);
}

/* Let the data end where a disk of SIZE bytes does; a device is as long as it
 * is, and must be long enough. */
static int
set_data_size (struct fvd *f, uint64_t size)
{
  const uint64_t end = f->h.data_offset + size;
  uint64_t now;

  if (f->data->ops->truncate (f->data, end) == 0)
    return 0;
  if (errno != ENOTSUP || f->data->ops->measure (f->data, &now) == -1)
    return -1;
  if (now >= end)
    return 0;
  nc_error ("%s: the device has %" PRIu64 " bytes, and %" PRIu64
            " are needed", f->data->name, now, end);
  errno = ENOSPC;
  return -1;
}

/* Whether the last block of the old size, which is not whole, is allocated. */
static int
tail_is_allocated (struct fvd *f, bool *allocated)
{
  const uint64_t last = f->bm->nblocks - 1;
  uint64_t run;

  *allocated = false;
  if (f->h.size % (UINT64_C (1) << f->h.block_bits) == 0)
    return 0;
  if (fvd_page_load (f, last / NC_PAGE_BLOCKS) == -1)
    return -1;
  *allocated = nc_bitmap_run (f->bm, last, 1, &run) == NC_RUN_SET;
  return 0;
}

/* What lies behind the old end reads as zeros. */
static int
grow_data (struct fvd *f, uint64_t size)
{
  const uint64_t old = f->h.size;
  const uint64_t block_end =
    nc_min64 (nc_round_up (old, UINT64_C (1) << f->h.block_bits), size);
  bool allocated;

  if (tail_is_allocated (f, &allocated) == -1)
    return -1;
  if (fvd_is_compact (&f->h)) {
    if (fvd_table_clear_tail (f, size) == -1)
      return -1;
  }
  else if (set_data_size (f, old) == -1 || set_data_size (f, size) == -1)
    return -1;
  /* A device keeps what was there, and so does a chunk. */
  if (allocated &&
      nc_format_fvd.zero (f->layer, old, block_end - old, 0) == -1)
    return -1;
  return fvd_sync_data (f);
}

static int
grow (struct fvd *f, uint64_t size)
{
  if (grow_bitmap (f, size) == -1 || grow_data (f, size) == -1)
    return -1;
  f->h.backing_size = nc_min64 (f->h.backing_size, f->h.size);
  f->h.size = size;
  return fvd_header_sync (f);
}

int
fvd_tail_clear (struct fvd *f)
{
  uint8_t sector[FVD_SECTOR], now[FVD_SECTOR];
  uint64_t page;
  int r = tail_page (f, fvd_nblocks (&f->h), &page, sector);

  if (r != 1 || fvd_summary_get (f, page) != FVD_MIXED)
    return r == -1 ? -1 : 0;
  if (f->dev->ops->pread (f->dev, now, sizeof now, f->h.bitmap.offset +
                          page * FVD_SECTOR) == -1)
    return -1;
  if (memcmp (sector, now, sizeof now) == 0)
    return 0;
  return write_page (f, page, sector) == -1 ? -1 : 1;
}

/* Also to the size that it has: what an interrupted one has left goes. */
static int
shrink (struct fvd *f, uint64_t size)
{
  f->h.size = size;
  if (fvd_header_sync (f) == -1 || fvd_tail_clear (f) == -1)
    return -1;
  if (!fvd_is_compact (&f->h) &&
      (set_data_size (f, size) == -1 || fvd_sync_data (f) == -1))
    return -1;
  return fvd_sync (f);
}

int
nc_fvd_resize (struct nc_layer *layer, uint64_t size)
{
  struct fvd *f = fvd_of (layer);

  if (nc_fvd_can_resize (layer, size) == -1 ||
      layer->format->finish (layer) == -1)
    return -1;
  if ((size > f->h.size ? grow (f, size) : shrink (f, size)) == -1)
    return -1;
  /* In both copies: with one of them damaged the file would not fit the
   * other, or the disk lose what was written behind its old end. */
  return fvd_header_sync (f);
}
