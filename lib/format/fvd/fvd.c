/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The native format: opening and creating an image, and where a block is.
 * docs/formats/fvd.md is its specification; fvd-flush.c has the order in
 * which things become durable. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <endian.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "image/image.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* Two halves of about 10,000 ranges each. */
#define PROFILE_SIZE (UINT64_C (256) << 10)

static struct fvd *
fvd_of (const struct nc_layer *layer)
{
  return layer->priv;
}

/* Opening. */

static char *
copy_string (const struct fvd *f, enum fvd_string which)
{
  char *s = strdup (f->h.string[which]);

  if (s == NULL)
    nc_error ("%s: %m", f->dev->name);
  return s;
}

static int
fill_in_layer (struct nc_layer *layer)
{
  struct fvd *f = fvd_of (layer);
  struct nc_backing *b = &layer->backing;

  layer->size = f->h.size;
  layer->block_size = UINT32_C (1) << f->h.block_bits;
  layer->uuid = f->h.uuid;
  layer->was_closed = f->h.flags & FVD_CLEAN;
  layer->retired = f->h.flags & FVD_RETIRED;
  layer->successor = f->h.successor_uuid;
  layer->takes_over = f->h.flags & FVD_TAKES_OVER;
  layer->data_marked = f->h.flags & FVD_MARKED;
  b->present = f->h.flags & FVD_HAS_BACKING;
  b->size = f->h.backing_size;
  b->uuid = f->h.backing_uuid;
  b->ref = copy_string (f, FVD_BACKING_REF);
  b->format = copy_string (f, FVD_BACKING_FORMAT);
  b->identity = copy_string (f, FVD_BACKING_IDENTITY);
  return b->ref && b->format && b->identity ? 0 : -1;
}

/* A new life: durable in the header before anything else is written. */
static int
begin_life (struct fvd *f)
{
  int r;

  do {
    r = gnutls_rnd (GNUTLS_RND_NONCE, &f->h.life, sizeof f->h.life);
    if (r < 0) {
      nc_error ("%s: random numbers: %s", f->dev->name,
                gnutls_strerror (r));
      errno = EIO;
      return -1;
    }
  } while (f->h.life == 0);
  f->h.flags &= ~FVD_CLEAN;
  if (fvd_header_sync (f) == -1)
    return -1;
  nc_keep_set_life (&f->keep, f->h.life);
  return 0;
}

/* A server before this one saw a sync fail.  As it did itself, go on reading,
 * and let writes and flushes fail: a client that waits for an answer is no
 * better off without any.  Where it had not begun, nobody waits. */
static int
may_adopt_failed (struct fvd *f)
{
  nc_error ("%s: a sync failed, so writes since the last flush that "
            "succeeded may be missing: this image is only read, and flushes "
            "fail; check the storage, stop \"nbdchain serve\" and start it "
            "again to go on without them", f->dev->name);
  f->failed = true;
  if (nc_keep_life (&f->keep) != 0 && nc_keep_life (&f->keep) == f->h.life)
    return 1;
  errno = EIO;
  return -1;
}

/* Whether the memory handed over goes on with the life of the image.
 * Returns -1 if it belongs to another. */
static int
may_adopt (struct fvd *f)
{
  const uint64_t life = nc_keep_life (&f->keep);

  if (nc_keep_has_failed (&f->keep))
    return may_adopt_failed (f);
  /* Somebody may have been killed before his life began: what he has put
   * there may be out of date. */
  if (life == 0)
    return nc_keep_reset (&f->keep);
  if (life != f->h.life) {
    nc_error ("%s: another process has opened this image for writing since "
              "the server died; writes that were not flushed may be "
              "missing; stop \"nbdchain serve\" and start it again to go on "
              "without them", f->dev->name);
    errno = ESTALE;
    return -1;
  }
  if (!(f->h.flags & FVD_CLEAN))
    return 1;
  return nc_keep_reset (&f->keep) == -1 ? -1 : 0;
}

static int
fvd_begin (struct nc_layer *layer)
{
  struct fvd *f = fvd_of (layer);
  const int adopt = may_adopt (f);

  if (adopt == -1)
    return -1;
  if (fvd_is_compact (&f->h))
    fvd_chunks_begin (f);
  if (!(f->h.flags & FVD_CLEAN) && fvd_journal_replay (f, NULL, NULL) == -1)
    return -1;
  if (f->h.seq > FVD_NUMBER_MAX_BEGIN ||
      f->journal.next > FVD_NUMBER_MAX_BEGIN) {
    nc_error ("%s: header number %" PRIu64 " and record number %" PRIu64
              " can only come from damage; the image can be read, not "
              "written", f->dev->name, f->h.seq, f->journal.next);
    errno = EROFS;
    return -1;
  }
  if (fvd_flush_open (f) == -1)
    return -1;
  if (adopt) {
    nc_debug ("%s: goes on with the memory of the server that died",
              f->dev->name);
    fvd_flush_adopt (f);
    return 0;
  }
  /* What was replayed is to reach the bitmap before its records go. */
  fvd_flush_adopt (f);
  f->flush.must_checkpoint = false;
  /* Once the header says that the image is not clean, its journal counts. */
  if ((f->h.flags & FVD_CLEAN) && fvd_journal_clear (f) == -1)
    return -1;
  /* The other copy of the header may have been written a moment ago, by
   * somebody who was killed: one copy a round. */
  if (fvd_sync (f) == -1 || begin_life (f) == -1)
    return -1;
  return fvd_is_compact (&f->h) ? fvd_chunks_truncate (f) : 0;
}

static int
open_data_file (struct fvd *f, const struct nc_layer_options *opts)
{
  struct nc_layer *layer = f->layer;

  if (opts->open_data == NULL)
    return 0;
  f->data = layer->data_dev =
    opts->open_data (opts->opaque, layer, f->h.string[FVD_DATA_FILE]);
  if (f->data == NULL)
    return -1;
  if (f->data->size < f->h.size) {
    nc_error ("%s: has %" PRIu64 " bytes, but as the data file of '%s' it "
              "needs %" PRIu64 "; put the whole file back", f->data->name,
              f->data->size, layer->path, f->h.size);
    errno = EINVAL;
    return -1;
  }
  return 0;
}

static int
fvd_open (struct nc_layer *layer, const struct nc_layer_options *opts)
{
  struct fvd *f = calloc (1, sizeof *f);

  if (f == NULL) {
    nc_error ("%s: %m", layer->path);
    return -1;
  }
  layer->priv = f;
  f->layer = layer;
  f->dev = layer->dev;
  f->enlarge = opts->enlarge;
  f->bm = &f->keep.bitmap;
  pthread_mutex_init (&f->load_lock, NULL);

  if ((opts->writable ? fvd_header_read_to_write (f->dev, &f->h)
       : fvd_header_read (f->dev, &f->h)) == -1)
    return -1;
  if (fill_in_layer (layer) == -1)
    return -1;
  if (!fvd_has_data_file (&f->h))
    f->data = f->dev;
  else if (open_data_file (f, opts) == -1)
    return -1;
  f->journal.nsectors = f->h.journal.size / FVD_SECTOR;
  f->journal.next = f->journal.tail = f->h.journal_tail;
  if (fvd_summary_read (f) == -1 ||
      nc_keep_open (&f->keep, opts->writable ? opts->memory_fd : -1,
                    layer->path, &f->h.uuid, fvd_nblocks (&f->h),
                    fvd_chunks_memory (&f->h)) == -1)
    return -1;
  if (fvd_is_compact (&f->h)) {
    if (fvd_chunks_open (f, f->keep.extra) == -1)
      return -1;
    if (!opts->writable)
      fvd_chunks_begin (f);
  }
  if (opts->writable || (f->h.flags & FVD_CLEAN))
    return 0;
  return fvd_journal_replay (f, NULL, NULL);
}

static void
fvd_close (struct nc_layer *layer)
{
  struct fvd *f = fvd_of (layer);

  if (f == NULL)
    return;
  fvd_flush_close (f);
  fvd_chunks_close (f);
  nc_keep_close (&f->keep);
  pthread_mutex_destroy (&f->load_lock);
  free (f->summary);
  free (f);
}

/* Requests. */

/* The blocks that the bytes of a range touch. */
static void
blocks_of (const struct fvd *f, uint64_t offset, uint64_t count,
           uint64_t *blk, uint64_t *nblks)
{
  *blk = offset >> f->h.block_bits;
  *nblks = ((offset + count - 1) >> f->h.block_bits) - *blk + 1;
}

static int
fvd_run (struct nc_layer *layer, uint64_t offset, uint64_t count,
         bool *allocated, uint64_t *run)
{
  struct fvd *f = fvd_of (layer);
  enum nc_bitmap_found found, first = NC_RUN_UNLOADED;
  uint64_t blk, max, n = 0, more;

  blocks_of (f, offset, count, &blk, &max);
  /* A run that ends before a page that is not loaded may go on in it. */
  while (n < max) {
    found = nc_bitmap_run (f->bm, blk + n, max - n, &more);
    if (found == NC_RUN_UNLOADED) {
      if (fvd_page_load (f, (blk + n) / NC_PAGE_BLOCKS) == -1)
        return -1;
      continue;
    }
    if (first == NC_RUN_UNLOADED)
      first = found;
    if (found != first)
      break;
    n += more;
  }
  *allocated = first == NC_RUN_SET;
  *run = nc_min64 (count, ((blk + n) << f->h.block_bits) - offset);
  return 0;
}

/* Walking: ranges of blocks of one page become ranges of bytes, cut to what
 * was asked for. */
struct walk {
  uint64_t first_blk, offset, end;
  unsigned block_bits;
  nc_walk_fn fn;
  void *opaque;
};

static int
walk_blocks (void *opaque, unsigned blk, unsigned count)
{
  const struct walk *w = opaque;
  uint64_t from = (w->first_blk + blk) << w->block_bits;
  uint64_t to = (w->first_blk + blk + count) << w->block_bits;

  from = nc_max64 (from, w->offset);
  to = nc_min64 (to, w->end);
  return from < to ? w->fn (w->opaque, from, to - from) : 0;
}

static int
fvd_walk (struct nc_layer *layer, uint64_t offset, uint64_t count,
          nc_walk_fn fn, void *opaque)
{
  struct fvd *f = fvd_of (layer);
  struct walk w = {
    .offset = offset, .end = offset + count,
    .block_bits = f->h.block_bits, .fn = fn, .opaque = opaque,
  };
  uint64_t blk, nblks;

  blocks_of (f, offset, count, &blk, &nblks);
  for (uint64_t page = blk / NC_PAGE_BLOCKS;
       page <= (blk + nblks - 1) / NC_PAGE_BLOCKS; ++page) {
    const unsigned n = nc_bitmap_page_blocks (f->bm, page);
    uint64_t words[NC_PAGE_WORDS];
    int r = fvd_page_look (f, page, words);

    w.first_blk = page * NC_PAGE_BLOCKS;
    if (r == NC_PAGE_ALL)
      r = walk_blocks (&w, 0, n);
    else if (r == NC_PAGE_MIXED)
      r = nc_bitmap_walk_words (words, n, walk_blocks, &w);
    if (r == -1)
      return -1;
  }
  return 0;
}

/* Who opens an image only to look at it has not opened its data file. */
static int
refuse_without_data (struct fvd *f)
{
  if (f->data)
    return 0;
  nc_error ("%s: its data file was not opened", f->dev->name);
  errno = EIO;
  return -1;
}

static int
fvd_pread (struct nc_layer *layer, void *buf, size_t count, uint64_t offset)
{
  struct fvd *f = fvd_of (layer);

  if (refuse_without_data (f) == -1)
    return -1;
  if (fvd_is_compact (&f->h))
    return fvd_chunks_pread (f, buf, count, offset);
  return f->data->ops->pread (f->data, buf, count,
                              f->h.data_offset + offset);
}

static int
fvd_extents (struct nc_layer *layer, struct nc_extents *extents,
             uint64_t end)
{
  struct fvd *f = fvd_of (layer);

  if (refuse_without_data (f) == -1)
    return -1;
  if (fvd_is_compact (&f->h))
    return fvd_chunks_extents (f, extents, end);
  return f->data->ops->extents (f->data, extents, end, f->h.data_offset);
}

static int
refuse_if_failed (struct fvd *f)
{
  if (!atomic_load_explicit (&f->failed, memory_order_relaxed))
    return refuse_without_data (f);
  errno = EIO;
  return -1;
}

static int
fvd_pwritev (struct nc_layer *layer, struct iovec *iov, int niov,
             uint64_t offset)
{
  struct fvd *f = fvd_of (layer);

  if (refuse_if_failed (f) == -1)
    return -1;
  if (fvd_is_compact (&f->h))
    return fvd_chunks_pwritev (f, iov, niov, offset);
  return f->data->ops->pwritev (f->data, iov, niov,
                                f->h.data_offset + offset);
}

static void
fvd_evict (struct nc_layer *layer, uint64_t offset, uint64_t count)
{
  struct fvd *f = fvd_of (layer);

  if (fvd_is_compact (&f->h))
    fvd_chunks_evict (f, offset, count);
  else if (f->data->ops->evict)
    f->data->ops->evict (f->data, f->h.data_offset + offset, count);
}

static int
fvd_zero (struct nc_layer *layer, uint64_t offset, uint64_t count,
          unsigned flags)
{
  struct fvd *f = fvd_of (layer);

  if (refuse_if_failed (f) == -1)
    return -1;
  if (fvd_is_compact (&f->h))
    return fvd_chunks_zero (f, offset, count, flags);
  return f->data->ops->zero (f->data, f->h.data_offset + offset, count,
                             flags);
}

static int
fvd_set_allocated (struct nc_layer *layer, uint64_t offset, uint64_t count)
{
  struct fvd *f = fvd_of (layer);
  uint64_t blk, nblks;

  blocks_of (f, offset, count, &blk, &nblks);
  return fvd_flush_set_allocated (f, blk, nblks);
}

static int
fvd_flush_layer (struct nc_layer *layer)
{
  return fvd_flush (fvd_of (layer));
}

static void
fvd_fail (struct nc_layer *layer)
{
  struct fvd *f = fvd_of (layer);

  nc_keep_set_failed (&f->keep);
  f->failed = true;
}

static int
fvd_finish (struct nc_layer *layer)
{
  return fvd_flush_finish (fvd_of (layer));
}

static int
copy_info (char **to, const char *from)
{
  *to = strdup (from);
  return *to ? 0 : -1;
}

static void
count_record (void *opaque, uint64_t record __attribute__ ((__unused__)))
{
  ++*(uint64_t *) opaque;
}

static int
profile_info (struct fvd *f, struct nc_image_info *info)
{
  NC_FREE struct nc_profile_range *ranges = NULL;
  size_t n;

  if (fvd_profile_read (f->dev, &f->h, &ranges, &n, NULL) == -1)
    return -1;
  info->profile_ranges = n;
  for (size_t i = 0; i < n; ++i)
    info->profile_bytes += ranges[i].count;
  return 0;
}

static int
fvd_allocated (struct nc_layer *layer, uint64_t *bytes)
{
  struct fvd *f = fvd_of (layer);
  uint64_t blocks;

  if (fvd_bits_count (f, &blocks) == -1)
    return -1;
  *bytes = nc_min64 (blocks << f->h.block_bits, f->h.size);
  return 0;
}

static int
fvd_info (struct nc_layer *layer, struct nc_image_info *info)
{
  struct fvd *f = fvd_of (layer);
  uint64_t records = 0;

  if (fvd_allocated (layer, &info->allocated) == -1)
    return -1;
  if (!layer->writable && !(f->h.flags & FVD_CLEAN) &&
      fvd_journal_replay (f, count_record, &records) == -1)
    return -1;
  info->version = FVD_VERSION;
  nc_uuid_format (&f->h.uuid, info->uuid);
  info->block_size = layer->block_size;
  info->data_offset = f->h.data_offset;
  info->max_size = fvd_size_limit (&f->h);
  info->journal_size = f->h.journal.size;
  info->journal_used = layer->writable ?
    (f->journal.next - f->journal.tail) * FVD_SECTOR :
    records * FVD_SECTOR;
  memcpy (info->features, f->h.features, sizeof info->features);
  info->clean = f->h.flags & FVD_CLEAN;
  if (fvd_is_compact (&f->h)) {
    info->compact = true;
    info->chunk_size = UINT32_C (1) << f->h.chunk_bits;
    info->chunks = *f->chunks.used;
    info->grow_unit = f->h.grow_unit;
  }
  info->prefetch = f->h.prefetch;
  info->profile_size = f->h.profile.size;
  if (profile_info (f, info) == -1)
    return -1;
  info->has_backing = layer->backing.present;
  info->backing_size = layer->backing.size;
  nc_uuid_format (&layer->backing.uuid, info->backing_uuid);
  info->retired = f->h.flags & FVD_RETIRED;
  nc_uuid_format (&f->h.successor_uuid, info->successor_uuid);
  nc_uuid_format (&f->h.predecessor_uuid, info->predecessor_uuid);
  if (copy_info (&info->backing, layer->backing.ref) == -1 ||
      copy_info (&info->backing_format, layer->backing.format) == -1 ||
      copy_info (&info->backing_identity, layer->backing.identity) == -1 ||
      copy_info (&info->successor, f->h.string[FVD_SUCCESSOR]) == -1 ||
      copy_info (&info->data_file, f->h.string[FVD_DATA_FILE]) == -1) {
    nc_error ("%s: %m", layer->path);
    return -1;
  }
  return 0;
}

const struct nc_format nc_format_fvd = {
  .name = "fvd",
  .open = fvd_open,
  .close = fvd_close,
  .run = fvd_run,
  .walk = fvd_walk,
  .pread = fvd_pread,
  .extents = fvd_extents,
  .begin = fvd_begin,
  .pwritev = fvd_pwritev,
  .evict = fvd_evict,
  .zero = fvd_zero,
  .set_allocated = fvd_set_allocated,
  .flush = fvd_flush_layer,
  .fail = fvd_fail,
  .finish = fvd_finish,
  .allocated = fvd_allocated,
  .set_backing = fvd_set_backing,
  .read_profile = nc_fvd_profile_read,
  .write_profile = nc_fvd_profile_write,
  .info = fvd_info,
};

/* Creating, and handing over. */

static int
set_string (struct fvd_header *h, const char *whose, enum fvd_string which,
            const char *text)
{
  if (strlen (text) > NC_REF_MAX) {
    nc_error ("%s: '%.60s...' is too long: at most %d bytes fit", whose,
              text, NC_REF_MAX);
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy (h->string[which], text);
  if (!fvd_header_strings_fit (h)) {
    nc_error ("%s: '%.60s...' does not fit into the header with the other "
              "references", whose, text);
    errno = ENAMETOOLONG;
    return -1;
  }
  return 0;
}

int
fvd_header_set_backing (struct fvd_header *h, const char *whose,
                        const struct nc_backing *b)
{
  h->flags &= ~(FVD_HAS_BACKING | FVD_TAKES_OVER);
  h->flags |= b->present ? FVD_HAS_BACKING : 0;
  h->backing_size = b->size;
  h->backing_uuid = b->uuid;
  for (unsigned i = FVD_BACKING_REF; i <= FVD_BACKING_IDENTITY; ++i)
    h->string[i][0] = '\0';
  if (set_string (h, whose, FVD_BACKING_REF, b->ref ? b->ref : "") == -1 ||
      set_string (h, whose, FVD_BACKING_FORMAT,
                  b->format ? b->format : "") == -1)
    return -1;
  return set_string (h, whose, FVD_BACKING_IDENTITY,
                     b->identity ? b->identity : "");
}

/* The blocks of RANGES, in order, in a bitmap of which nothing is loaded. */
static void
set_ranges (struct nc_bitmap *bm, const struct fvd_ranges *ranges)
{
  for (size_t i = 0; i < ranges->n; ++i) {
    const struct fvd_range *r = &ranges->v[i];

    nc_bitmap_load_equal (bm, r->blk / NC_PAGE_BLOCKS, false);
    nc_bitmap_load_equal (bm, (r->blk + r->count - 1) / NC_PAGE_BLOCKS,
                          false);
    nc_bitmap_set (bm, r->blk, r->count);
  }
}

static int
create_page (struct fvd *f, uint64_t page)
{
  union {
    uint8_t bytes[FVD_SECTOR];
    uint64_t words[NC_PAGE_STRIDE];
  } sector;
  enum nc_page_state state;

  if (f->bm->state[page] == NC_PAGE_UNLOADED)
    return 0;
  state = nc_bitmap_copy_page (f->bm, page, sector.words);
  fvd_summary_set (f, page, state == NC_PAGE_ALL ? FVD_ALL
                   : state == NC_PAGE_MIXED ? FVD_MIXED : FVD_NONE);
  if (state != NC_PAGE_MIXED)
    return 0;
  for (unsigned i = 0; i < NC_PAGE_WORDS; ++i)
    sector.words[i] = htole64 (sector.words[i]);
  fvd_sector_seal (&f->h.uuid, FVD_BITMAP, page, sector.bytes);
  return f->dev->ops->pwrite (f->dev, sector.bytes, FVD_SECTOR,
                              f->h.bitmap.offset + page * FVD_SECTOR);
}

static int
create_pages (struct fvd *f, const struct fvd_ranges *zero, uint64_t nsectors)
{
  if (zero)
    set_ranges (f->bm, zero);
  for (uint64_t page = 0; page < f->bm->npages; ++page)
    if (create_page (f, page) == -1)
      return -1;
  for (uint64_t i = 0; i < nsectors; ++i)
    fvd_sector_seal (&f->h.uuid, FVD_SUMMARY, i,
                     f->summary + i * FVD_SECTOR);
  return f->dev->ops->pwrite (f->dev, f->summary, nsectors * FVD_SECTOR,
                              f->h.summary.offset);
}

/* Bitmap and summary, with the blocks of ZERO (NULL: none) allocated. */
static int
create_bitmap (struct nc_dev *dev, const struct fvd_header *h,
               const struct fvd_ranges *zero)
{
  const uint64_t npages = nc_bitmap_npages (fvd_nblocks (h));
  const uint64_t n = nc_max64 (nc_div_up (npages, FVD_SUMMARY_PAGES), 1);
  NC_FREE struct fvd *f = calloc (1, sizeof *f);
  NC_FREE uint8_t *summary = calloc (n, FVD_SECTOR);
  int r;

  if (f == NULL || summary == NULL) {
    nc_error ("%s: bitmap: %m", dev->name);
    return -1;
  }
  f->dev = dev;
  f->h = *h;
  f->summary = summary;
  f->bm = &f->keep.bitmap;
  if (nc_keep_open (&f->keep, -1, dev->name, &h->uuid, fvd_nblocks (h),
                    0) == -1)
    return -1;
  r = create_pages (f, zero, n);
  nc_keep_close (&f->keep);
  return r;
}

/* Real zeros, so that a record never needs storage. */
static int
create_journal (struct nc_dev *dev, const struct fvd_header *h)
{
  static const uint8_t zeros[64 * 1024];

  for (uint64_t at = 0, n; at < h->journal.size; at += n) {
    n = nc_min64 (sizeof zeros, h->journal.size - at);
    if (dev->ops->pwrite (dev, zeros, n, h->journal.offset + at) == -1)
      return -1;
  }
  return 0;
}

static void
lay_out (struct fvd_header *h, const struct nc_fvd_create_options *opts)
{
  if (opts->data_file)
    h->features[2] |= FVD_WITH_DATA_FILE;
  if (opts->compact) {
    h->features[2] |= FVD_COMPACT;
    h->chunk_bits = FVD_CHUNK_BITS;
    h->grow_unit = opts->grow_unit;
  }
  h->size = opts->size;
  h->block_bits = opts->block_bits;
  h->journal.size = opts->journal_size;
  h->profile.size = PROFILE_SIZE;
  fvd_header_lay_out (h);
}

int
nc_fvd_file_size (const struct nc_fvd_create_options *opts, uint64_t *size)
{
  NC_FREE struct fvd_header *h = calloc (1, sizeof *h);

  if (h == NULL || opts->size > FVD_SIZE_MAX)
    return -1;
  lay_out (h, opts);
  *size = opts->data_file ? h->profile.offset + h->profile.size
    : h->data_offset + (opts->compact ? 0 : h->size);
  return *size <= NC_OFFSET_MAX ? 0 : -1;
}

int
nc_fvd_create (struct nc_dev *dev, const struct nc_fvd_create_options *opts,
               const nc_uuid *uuid)
{
  NC_FREE struct fvd_header *h = calloc (1, sizeof *h);
  const struct nc_backing *b = opts->backing;

  if (h == NULL) {
    nc_error ("%s: %m", dev->name);
    return -1;
  }
  h->uuid = *uuid;
  lay_out (h, opts);
  h->flags = FVD_CLEAN;
  h->journal_tail = 1;
  h->prefetch = opts->prefetch;
  if (b->present) {
    if (fvd_header_set_backing (h, dev->name, b) == -1)
      return -1;
    if (opts->takes_over) {
      h->flags |= FVD_TAKES_OVER;
      h->predecessor_uuid = b->uuid;
    }
  }
  if (opts->data_file) {
    h->flags |= opts->marked ? FVD_MARKED : 0;
    if (set_string (h, dev->name, FVD_DATA_FILE, opts->data_file) == -1 ||
        set_string (h, dev->name, FVD_DATA_FILE_FORMAT, "raw") == -1)
      return -1;
  }
  /* On a device there may be anything. */
  if (opts->compact &&
      dev->ops->zero (dev, h->table.offset, h->table.size, 0) == -1)
    return -1;
  if (!dev->has_holes &&
      dev->ops->zero (dev, h->profile.offset, h->profile.size, 0) == -1)
    return -1;
  if (create_bitmap (dev, h, opts->zero) == -1 || create_journal (dev, h) == -1 ||
      fvd_header_create (dev, h) == -1)
    return -1;
  return 0;
}

int
nc_fvd_retire (struct nc_layer *layer, const nc_uuid *successor,
               const char *path)
{
  struct fvd *f = fvd_of (layer);

  if (set_string (&f->h, layer->path, FVD_SUCCESSOR, path) == -1)
    return -1;
  f->h.flags |= FVD_RETIRED;
  f->h.successor_uuid = *successor;
  /* In both copies: with one of them damaged there must not be two images
   * that can be written. */
  return fvd_header_sync (f) == -1 ? -1 : fvd_header_sync (f);
}

int
nc_fvd_profile_read (struct nc_layer *layer,
                     struct nc_profile_range **ranges, size_t *n)
{
  struct fvd *f = fvd_of (layer);

  return fvd_profile_read (f->dev, &f->h, ranges, n, NULL);
}

int
nc_fvd_profile_write (struct nc_layer *layer,
                      const struct nc_profile_range *ranges, size_t n)
{
  struct fvd *f = fvd_of (layer);

  if (f->failed) {
    nc_error ("%s: a sync failed, so no profile is stored in it", layer->path);
    errno = EIO;
    return -1;
  }
  return fvd_profile_write (f->dev, &f->h, ranges, n, f);
}
