/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Compact images: where a chunk of the disk is in the file.
 *
 * A chunk gets a place when the first of its bytes is written, the next one
 * there is; so the file grows by what is written, also on storage without
 * holes.  A place is never given back.
 *
 *   a write    the place is in the table in memory, before the data is
 *              written; then as in fvd-flush.c
 *   a flush    records of the places come first, durable, and then those of
 *              the blocks
 *   a checkpoint   fdatasync, for the length of the file; the bound of the
 *              places in use goes into the header; then the table's sectors
 *              are written; then as in fvd-checkpoint.c
 *
 * Invariants:
 * - A chunk without a place reads as zeros where its blocks are allocated.
 *   So a place holds zeros before it gets into the table.
 * - Who sees that a block is allocated, in memory or on disk, sees the place
 *   that its data was written to: it is in the table, on each of the two,
 *   before the bit is.
 * - No place is given twice: those in the file's table are below the bound in
 *   its header, those in records are found when the journal is read.
 * - The file durably has room for every place that a header or a record in it
 *   names: a place gets into memory after the file has grown, and a sync lies
 *   between that and the write of a record or header that covers it.
 */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/dev.h"
#include "dev/grow.h"
#include "util/bytes.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* Entries between two sectors in memory. */
#define STRIDE 128
/* Sectors that are written at a time. */
#define BATCH 256

/* Memory: the number of places in use in a page of its own, whether each
 * sector is loaded, the entries. */

static size_t
states_size (uint64_t nsectors)
{
  return nc_round_up (nsectors, 4096);
}

size_t
fvd_chunks_memory (const struct fvd_header *h)
{
  const uint64_t n = nc_div_up (fvd_nchunks (h), FVD_TABLE_ENTRIES);

  return fvd_is_compact (h)
    ? 4096 + states_size (n) + n * STRIDE * sizeof (uint32_t) : 0;
}

/* The first place that the file, as it is now, has no room for. */
static int
measure (struct fvd *f, uint64_t *room)
{
  uint64_t size;

  if (f->dev->ops->measure (f->dev, &size) == -1)
    return -1;
  *room = size < f->h.data_offset ? 0
    : (size - f->h.data_offset) >> f->h.chunk_bits;
  return 0;
}

int
fvd_chunks_open (struct fvd *f, void *memory)
{
  struct fvd_chunks *c = &f->chunks;

  c->nsectors = nc_div_up (fvd_nchunks (&f->h), FVD_TABLE_ENTRIES);
  c->used = memory;
  c->loaded = (void *) ((char *) memory + 4096);
  c->entry = (void *) ((char *) memory + 4096 + states_size (c->nsectors));
  pthread_mutex_init (&c->lock, NULL);
  return measure (f, &c->room);
}

void
fvd_chunks_close (struct fvd *f)
{
  if (f->chunks.used == NULL)
    return;
  free (f->chunks.pending.v);
  free (f->chunks.taken.v);
  free (f->chunks.dirty);
  free (f->chunks.buf);
  pthread_mutex_destroy (&f->chunks.lock);
}

void
fvd_chunks_begin (struct fvd *f)
{
  *f->chunks.used = nc_max64 (*f->chunks.used, f->h.chunks);
}

int
fvd_chunks_begin_writing (struct fvd *f)
{
  f->chunks.dirty = calloc (fvd_nwords (f->chunks.nsectors), 8);
  f->chunks.buf = malloc (BATCH * FVD_SECTOR);
  if (f->chunks.dirty && f->chunks.buf)
    return 0;
  nc_error ("%s: memory for the table of chunks: %m", f->dev->name);
  return -1;
}

/* Drop what lies behind the places in use, so that new ones are zeros. */
int
fvd_chunks_truncate (struct fvd *f)
{
  const uint64_t end = f->h.data_offset +
    (*f->chunks.used << f->h.chunk_bits);

  f->chunks.zero_first = f->dev->ops->truncate (f->dev, end) == -1;
  if (f->chunks.zero_first && errno != ENOTSUP)
    return -1;
  return measure (f, &f->chunks.room);
}

void
fvd_chunks_adopt (struct fvd *f)
{
  for (uint64_t i = 0; i < f->chunks.nsectors; ++i)
    if (f->chunks.loaded[i])
      fvd_set_bit (f->chunks.dirty, i);
}

/* The table in memory. */

static _Atomic (uint32_t) *
entry_of (const struct fvd *f, uint64_t chunk)
{
  return &f->chunks.entry[chunk / FVD_TABLE_ENTRIES * STRIDE +
                          chunk % FVD_TABLE_ENTRIES];
}

static bool
is_empty_sector (const uint8_t *sector)
{
  return *sector == 0 && memcmp (sector, sector + 1, FVD_SECTOR - 1) == 0;
}

/* Read sector number I of the table.  Returns 1 if it is damaged. */
static int
read_sector (struct fvd *f, uint64_t i, uint8_t *sector)
{
  /* Again, for who looks at an image that is being written. */
  for (int tries = 0; tries < 2; ++tries) {
    if (f->dev->ops->pread (f->dev, sector, FVD_SECTOR,
                            f->h.table.offset + i * FVD_SECTOR) == -1)
      return -1;
    if (is_empty_sector (sector) ||
        fvd_sector_is_valid (&f->h.uuid, FVD_TABLE, i, sector))
      return 0;
  }
  return 1;
}

int
fvd_table_look (struct fvd *f, uint64_t i,
                uint32_t entries[FVD_TABLE_ENTRIES], char why[FVD_WHY])
{
  const uint64_t left = fvd_nchunks (&f->h) - i * FVD_TABLE_ENTRIES;
  uint8_t sector[FVD_SECTOR];
  const int r = read_sector (f, i, sector);

  if (r == -1)
    return -1;
  if (r == 1) {
    snprintf (why, FVD_WHY, "sector %" PRIu64 " (disk offset %" PRIu64
              ") has a wrong checksum", i,
              i * FVD_TABLE_ENTRIES << f->h.chunk_bits);
    return 1;
  }
  for (unsigned k = 0; k < FVD_TABLE_ENTRIES; ++k) {
    /* Those behind the end mean nothing. */
    entries[k] = k < left ? nc_get_le32 (sector + 4 * k) : 0;
    if (entries[k] > *f->chunks.used) {
      snprintf (why, FVD_WHY, "chunk %" PRIu64 " has place %" PRIu32
                ", and there are %" PRIu64, i * FVD_TABLE_ENTRIES + k,
                entries[k] - 1, *f->chunks.used);
      return 1;
    }
  }
  return 0;
}

static bool
is_loaded (const struct fvd *f, uint64_t i)
{
  return atomic_load_explicit (&f->chunks.loaded[i], memory_order_acquire);
}

static int
damaged (struct fvd *f, const char *why)
{
  nc_error ("%s: damaged table: %s", f->dev->name, why);
  errno = EIO;
  return -1;
}

int
fvd_table_read (struct fvd *f, uint64_t i,
                uint32_t entries[FVD_TABLE_ENTRIES])
{
  char why[FVD_WHY];
  const int r = fvd_table_look (f, i, entries, why);

  return r == 1 ? damaged (f, why) : r;
}

static int
load (struct fvd *f, uint64_t i)
{
  uint32_t entries[FVD_TABLE_ENTRIES];
  char why[FVD_WHY];
  const int r = fvd_table_look (f, i, entries, why);

  if (r == -1)
    return -1;
  /* Once another thread has loaded it a checkpoint may be writing it. */
  if (r == 1 && !is_loaded (f, i))
    return damaged (f, why);
  NC_LOCKED (&f->load_lock);
  if (f->chunks.loaded[i])
    return 0;
  for (unsigned k = 0; k < FVD_TABLE_ENTRIES; ++k)
    f->chunks.entry[i * STRIDE + k] = entries[k];
  atomic_store_explicit (&f->chunks.loaded[i], 1, memory_order_release);
  return 0;
}

/* The entry of CHUNK: its place + 1, or 0.  Returns -1 on error. */
static int64_t
get (struct fvd *f, uint64_t chunk)
{
  const uint64_t i = chunk / FVD_TABLE_ENTRIES;

  if (!is_loaded (f, i) && load (f, i) == -1)
    return -1;
  return atomic_load_explicit (entry_of (f, chunk), memory_order_acquire);
}

static int
add (struct fvd_places *places, uint64_t chunk, uint32_t entry)
{
  if (places->n == places->cap) {
    const size_t cap = places->cap ? 2 * places->cap : 64;
    struct fvd_place *v = reallocarray (places->v, cap, sizeof *v);

    if (v == NULL)
      return -1;
    places->v = v;
    places->cap = cap;
  }
  places->v[places->n++] = (struct fvd_place) { chunk, entry };
  return 0;
}

/* Places. */

static int
full (struct fvd *f, uint64_t needed)
{
  nc_error ("%s: no room for another chunk: the image needs %" PRIu64
            " bytes of storage; enlarge it, or have it done by enlarge=",
            f->dev->name, needed);
  errno = ENOSPC;
  return -1;
}

/* Make the file, or have the device made, large enough for place N. */
static int
make_room_locked (struct fvd *f, uint64_t n)
{
  const uint64_t needed = f->h.data_offset + ((n + 1) << f->h.chunk_bits);
  const uint64_t wanted = nc_min64 (needed - (1 << f->h.chunk_bits) +
                                    f->h.grow_unit, NC_OFFSET_MAX);

  if (n < f->chunks.room)
    return 0;
  if (needed > NC_OFFSET_MAX)
    return full (f, needed);
  if (f->dev->ops->truncate (f->dev, wanted) == -1 && errno != ENOTSUP)
    return -1;
  if (measure (f, &f->chunks.room) == -1)
    return -1;
  if (n < f->chunks.room)
    return 0;
  if (f->enlarge == NULL ||
      nc_enlarge (f->enlarge, f->dev->name, needed, wanted) == -1 ||
      measure (f, &f->chunks.room) == -1 || n >= f->chunks.room)
    return full (f, needed);
  return 0;
}

static uint64_t
place_of (const struct fvd *f, int64_t entry)
{
  return f->h.data_offset + ((uint64_t) (entry - 1) << f->h.chunk_bits);
}

/* Give CHUNK, the sector of which is loaded, a place, unless it has one. */
static int
allocate (struct fvd *f, uint64_t chunk)
{
  _Atomic (uint32_t) *entry = entry_of (f, chunk);
  uint64_t n;

  NC_LOCKED (&f->chunks.lock);
  if (*entry != 0)
    return 0;
  n = *f->chunks.used;
  if (n >= FVD_CHUNKS_MAX)
    return full (f, (n + 1) << f->h.chunk_bits);
  if (make_room_locked (f, n) == -1)
    return -1;
  if (f->chunks.zero_first &&
      f->dev->ops->zero (f->dev, place_of (f, n + 1),
                         UINT64_C (1) << f->h.chunk_bits, 0) == -1)
    return -1;
  if (add (&f->chunks.pending, chunk, n + 1) == -1) {
    nc_error ("%s: list of chunks: %m", f->dev->name);
    return -1;
  }
  fvd_set_bit (f->chunks.dirty, chunk / FVD_TABLE_ENTRIES);
  /* In this order, for a process that is killed in between. */
  *f->chunks.used = n + 1;
  atomic_store_explicit (entry, n + 1, memory_order_release);
  return 0;
}

int
fvd_chunks_replay (struct fvd *f, uint64_t chunk, uint32_t entry)
{
  const int64_t old = chunk < fvd_nchunks (&f->h) ? get (f, chunk) : 0;

  if (old == -1)
    return -1;
  if (entry == 0 || entry > f->chunks.room || chunk >= fvd_nchunks (&f->h) ||
      (old != 0 && old != entry)) {
    nc_error ("%s: damaged journal: chunk %" PRIu64 " at place %" PRIu32
              ", but it has %" PRId64 ", and the disk has %" PRIu64 " chunks, "
              "the file room for %" PRIu64, f->dev->name, chunk, entry, old,
              fvd_nchunks (&f->h), f->chunks.room);
    errno = EIO;
    return -1;
  }
  *f->chunks.used = nc_max64 (*f->chunks.used, entry);
  *entry_of (f, chunk) = entry;
  return 0;
}

/* Requests: pieces of the disk that are together in the file, too. */

struct piece {
  bool placed;
  uint64_t place;               /* of its first byte in the file */
  uint64_t count;
};

/* The piece that begins at OFFSET, of at most COUNT bytes. */
static int
find_piece (struct fvd *f, uint64_t offset, uint64_t count,
            struct piece *piece)
{
  const uint64_t size = UINT64_C (1) << f->h.chunk_bits;
  const uint64_t in = offset & (size - 1);
  uint64_t chunk = offset >> f->h.chunk_bits;
  const int64_t first = get (f, chunk);
  int64_t entry = first;

  if (first == -1)
    return -1;
  piece->placed = first != 0;
  piece->place = place_of (f, first) + in;
  piece->count = size - in;
  while (piece->count < count) {
    const int64_t next = get (f, ++chunk);

    if (next == -1)
      return -1;
    if (next != (entry ? entry + 1 : 0))
      break;
    entry = next;
    piece->count += size;
  }
  piece->count = nc_min64 (piece->count, count);
  return 0;
}

int
fvd_chunks_pread (struct fvd *f, void *buf, size_t count, uint64_t offset)
{
  struct piece piece;

  for (char *p = buf; count > 0; p += piece.count) {
    if (find_piece (f, offset, count, &piece) == -1)
      return -1;
    if (!piece.placed)
      memset (p, 0, piece.count);
    else if (f->dev->ops->pread (f->dev, p, piece.count, piece.place) == -1)
      return -1;
    offset += piece.count;
    count -= piece.count;
  }
  return 0;
}

/* Move the first bytes of IOV, at most COUNT, to PART. */
#define PARTS 4
static uint64_t
take_iov (struct iovec **iov, int *niov, uint64_t count,
          struct iovec part[PARTS], int *nparts)
{
  uint64_t taken = 0;

  for (*nparts = 0; *nparts < PARTS && *niov > 0 && taken < count;) {
    struct iovec *from = *iov, *to = &part[(*nparts)++];

    to->iov_base = from->iov_base;
    to->iov_len = nc_min64 (from->iov_len, count - taken);
    taken += to->iov_len;
    from->iov_base = (char *) from->iov_base + to->iov_len;
    from->iov_len -= to->iov_len;
    if (from->iov_len == 0) {
      ++*iov;
      --*niov;
    }
  }
  return taken;
}

static uint64_t
iov_size (const struct iovec *iov, int niov)
{
  uint64_t n = 0;

  for (int i = 0; i < niov; ++i)
    n += iov[i].iov_len;
  return n;
}

int
fvd_chunks_pwritev (struct fvd *f, struct iovec *iov, int niov,
                    uint64_t offset)
{
  uint64_t left = iov_size (iov, niov), n;
  struct piece piece;

  for (; left > 0; left -= n, offset += n) {
    struct iovec part[PARTS];
    int nparts;

    n = 0;
    if (find_piece (f, offset, left, &piece) == -1)
      return -1;
    if (!piece.placed) {
      if (allocate (f, offset >> f->h.chunk_bits) == -1)
        return -1;
      continue;
    }
    if (piece.count == left)
      return f->dev->ops->pwritev (f->dev, iov, niov, piece.place);
    n = take_iov (&iov, &niov, piece.count, part, &nparts);
    if (f->dev->ops->pwritev (f->dev, part, nparts, piece.place) == -1)
      return -1;
  }
  return 0;
}

void
fvd_chunks_evict (struct fvd *f, uint64_t offset, uint64_t count)
{
  struct piece piece;

  if (f->dev->ops->evict == NULL)
    return;
  for (; count > 0; offset += piece.count, count -= piece.count) {
    if (find_piece (f, offset, count, &piece) == -1)
      return;
    if (piece.placed)
      f->dev->ops->evict (f->dev, piece.place, piece.count);
  }
}

int
fvd_chunks_zero (struct fvd *f, uint64_t offset, uint64_t count,
                 unsigned flags)
{
  struct piece piece;

  for (; count > 0; offset += piece.count, count -= piece.count) {
    if (find_piece (f, offset, count, &piece) == -1)
      return -1;
    /* Without a place it is zeros when its blocks are allocated, and when it
     * gets one. */
    if (piece.placed &&
        f->dev->ops->zero (f->dev, piece.place, piece.count, flags) == -1)
      return -1;
  }
  return 0;
}

int
fvd_chunks_extents (struct fvd *f, struct nc_extents *extents, uint64_t end)
{
  const uint64_t at = nc_extents_next (extents);
  struct piece piece;

  if (find_piece (f, at, end - at, &piece) == -1)
    return -1;
  if (!piece.placed)
    return nc_extents_append (extents, piece.count,
                              NC_EXTENT_HOLE | NC_EXTENT_ZERO);
  return f->dev->ops->extents (f->dev, extents, at + piece.count,
                               piece.place - at);
}

/* Making places durable. */

void
fvd_chunks_take (struct fvd *f)
{
  struct fvd_places places;

  if (f->chunks.used == NULL)
    return;
  NC_LOCKED (&f->chunks.lock);
  places = f->chunks.taken;
  f->chunks.taken = f->chunks.pending;
  f->chunks.pending = places;
  f->chunks.pending.n = 0;
}

/* Copy the next changed sectors, from *I on.  Returns how many; number[]
 * says which. */
static size_t
copy_sectors (struct fvd *f, uint64_t *i, uint64_t *number)
{
  size_t n = 0;

  NC_LOCKED (&f->chunks.lock);
  for (; *i < f->chunks.nsectors && n < BATCH; ++*i) {
    uint8_t *sector = f->chunks.buf + n * FVD_SECTOR;
    uint64_t *word = &f->chunks.dirty[*i / 64];

    if (*word == 0) {
      *i |= 63;
      continue;
    }
    if (!(*word >> (*i % 64) & 1))
      continue;
    *word &= ~(UINT64_C (1) << (*i % 64));
    for (unsigned k = 0; k < FVD_TABLE_ENTRIES; ++k)
      nc_put_le32 (sector + 4 * k, f->chunks.entry[*i * STRIDE + k]);
    fvd_sector_seal (&f->h.uuid, FVD_TABLE, *i, sector);
    number[n++] = *i;
  }
  return n;
}

/* Write the bound of the places in use, which the copied sectors do not
 * exceed, durably into the header; no other header says more.  The file has
 * room for all places below the bound, and that must be durable first: an
 * image that is shorter than its header says is refused. */
static int
write_bound (struct fvd *f)
{
  const uint64_t old = f->h.chunks, used = *f->chunks.used;

  if (used == old)
    return 0;
  if (fvd_sync (f) == -1)
    return -1;
  f->h.chunks = used;
  if (fvd_header_sync (f) == 0)
    return 0;
  f->h.chunks = old;
  return -1;
}

static int
write_sectors (struct fvd *f, const uint64_t *number, size_t n)
{
  /* A place is zeros before the table names it. */
  if (write_bound (f) == -1 || fvd_sync_data (f) == -1)
    return -1;
  for (size_t i = 0; i < n; ++i)
    if (f->dev->ops->pwrite (f->dev, f->chunks.buf + i * FVD_SECTOR,
                             FVD_SECTOR, f->h.table.offset +
                             number[i] * FVD_SECTOR) == -1)
      return -1;
  return fvd_sync (f);
}

int
fvd_table_write (struct fvd *f)
{
  uint64_t number[BATCH];
  size_t n;

  if (f->chunks.used == NULL)
    return 0;
  for (uint64_t i = 0; i < f->chunks.nsectors;) {
    n = copy_sectors (f, &i, number);
    if (n > 0 && write_sectors (f, number, n) == -1) {
      NC_LOCKED (&f->chunks.lock);
      for (size_t k = 0; k < n; ++k)
        fvd_set_bit (f->chunks.dirty, number[k]);
      return -1;
    }
  }
  return 0;
}

/* Entries of sector I, as they are in memory if they are there. */
static int
entries_of (struct fvd *f, uint64_t i, uint32_t entries[FVD_TABLE_ENTRIES])
{
  if (!is_loaded (f, i))
    return fvd_table_read (f, i, entries);
  for (unsigned k = 0; k < FVD_TABLE_ENTRIES; ++k)
    entries[k] = f->chunks.entry[i * STRIDE + k];
  return 0;
}

int
fvd_places_owned (struct fvd *f, uint64_t **owned, uint64_t *shared)
{
  uint64_t *bits = calloc (fvd_nwords (*f->chunks.used), 8);
  uint32_t entries[FVD_TABLE_ENTRIES];

  *owned = bits;
  *shared = 0;
  if (bits == NULL) {
    nc_error ("%s: memory for %" PRIu64 " places: %m", f->dev->name,
              (uint64_t) *f->chunks.used);
    return -1;
  }
  for (uint64_t i = 0; i < f->chunks.nsectors; ++i) {
    if (entries_of (f, i, entries) == -1)
      return -1;
    for (unsigned k = 0; k < FVD_TABLE_ENTRIES; ++k) {
      const uint64_t place = (uint64_t) entries[k] - 1;

      if (entries[k] == 0)
        continue;
      *shared += bits[place / 64] >> (place % 64) & 1;
      fvd_set_bit (bits, place);
    }
  }
  return 0;
}

int
fvd_table_clear_tail (struct fvd *f, uint64_t size)
{
  const struct fvd_header larger = {
    .size = size, .chunk_bits = f->h.chunk_bits,
  };
  const uint64_t n = nc_div_up (fvd_nchunks (&larger), FVD_TABLE_ENTRIES);
  uint64_t i = fvd_nchunks (&f->h) / FVD_TABLE_ENTRIES;
  const unsigned keep = fvd_nchunks (&f->h) % FVD_TABLE_ENTRIES;
  uint8_t sector[FVD_SECTOR];

  if (keep > 0) {
    if (load (f, i) == -1)
      return -1;
    memset (sector, 0, sizeof sector);
    for (unsigned k = 0; k < keep; ++k)
      nc_put_le32 (sector + 4 * k, f->chunks.entry[i * STRIDE + k]);
    fvd_sector_seal (&f->h.uuid, FVD_TABLE, i, sector);
    if (f->dev->ops->pwrite (f->dev, sector, sizeof sector,
                             f->h.table.offset + i * FVD_SECTOR) == -1)
      return -1;
    ++i;
  }
  if (i < n && f->dev->ops->zero (f->dev, f->h.table.offset + i * FVD_SECTOR,
                                  (n - i) * FVD_SECTOR, 0) == -1)
    return -1;
  return fvd_sync (f);
}
