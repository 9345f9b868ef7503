/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Inside the fvd format: what its files share.  docs/formats/fvd.md is the
 * specification; names here follow it. */
#ifndef NC_FVD_H
#define NC_FVD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain/ref.h"
#include "data/bitmap.h"
#include "format/format.h"
#include "format/keep.h"
#include "format/layer.h"
#include "image/image.h"

#define FVD_SECTOR 512
#define FVD_AREA_ALIGN 4096
#define FVD_HEADER_SIZE 4096
#define FVD_VERSION 1
#define FVD_BLOCK_BITS_MIN 12
#define FVD_BLOCK_BITS_MAX 21
#define FVD_JOURNAL_MIN (UINT64_C (16) << 10)
#define FVD_JOURNAL_MAX (UINT64_C (1) << 30)
#define FVD_SIZE_MAX (UINT64_C (1) << 62)
/* Largest number of a header or record.  Who opens an image for writing wants
 * a distance from it that no life of writing covers. */
#define FVD_NUMBER_MAX (UINT64_MAX / 2)
#define FVD_NUMBER_MAX_BEGIN (UINT64_MAX / 4)
#define FVD_SUMMARY_PAGES 2016  /* that a sector of the summary tells of */

#define FVD_CHUNK_BITS 20
#define FVD_CHUNKS_MAX UINT32_MAX       /* an entry is a number + 1 */
#define FVD_TABLE_ENTRIES 126   /* that a sector of the table has */
#define FVD_GROW_UNIT_MAX (UINT64_C (1) << 40)
#define FVD_PROFILE_MAX (UINT64_C (16) << 20)

enum {
  FVD_CLEAN = 1, FVD_HAS_BACKING = 2, FVD_RETIRED = 4, FVD_TAKES_OVER = 8,
  FVD_MARKED = 16
};
enum { FVD_COMPACT = 1, FVD_WITH_DATA_FILE = 2 };       /* incompatible */
enum fvd_kind {
  FVD_SUMMARY = 1, FVD_BITMAP = 2, FVD_JOURNAL = 3, FVD_TABLE = 4,
  FVD_PROFILE = 5
};
enum fvd_summary { FVD_NONE = 0, FVD_ALL = 1, FVD_MIXED = 2 };

enum fvd_string {
  FVD_BACKING_REF, FVD_BACKING_FORMAT, FVD_BACKING_IDENTITY,
  FVD_SUCCESSOR, FVD_DATA_FILE, FVD_DATA_FILE_FORMAT, FVD_N_STRINGS
};

struct fvd_area { uint64_t offset, size; };

/* A header, parsed. */
struct fvd_header {
  uint64_t seq;
  nc_uuid uuid;
  uint64_t features[3];
  uint64_t size;
  unsigned block_bits;
  uint32_t flags;
  uint64_t life;
  struct fvd_area summary, bitmap, journal;
  uint64_t journal_tail;
  uint64_t data_offset;
  uint64_t backing_size;
  nc_uuid backing_uuid, successor_uuid, predecessor_uuid;
  struct fvd_area table, profile;
  unsigned chunk_bits;          /* these three: compact */
  uint64_t grow_unit;
  uint64_t chunks;
  struct nc_prefetch_policy prefetch;
  char string[FVD_N_STRINGS][NC_REF_MAX + 1];
};

static inline bool
fvd_is_compact (const struct fvd_header *h)
{
  return h->features[2] & FVD_COMPACT;
}

static inline bool
fvd_has_data_file (const struct fvd_header *h)
{
  return h->features[2] & FVD_WITH_DATA_FILE;
}

/* Chunks of the disk. */
static inline uint64_t
fvd_nchunks (const struct fvd_header *h)
{
  uint64_t chunk = UINT64_C (1) << h->chunk_bits;

  return (h->size >> h->chunk_bits) + ((h->size & (chunk - 1)) != 0);
}

static inline uint64_t
fvd_nblocks (const struct fvd_header *h)
{
  uint64_t block = UINT64_C (1) << h->block_bits;

  return (h->size >> h->block_bits) + ((h->size & (block - 1)) != 0);
}

/* fvd-header.c */

/* Read both copies and check every field of the one that counts.  If it is
 * the only one, it is taken as not clean: the other may have been newer.
 * Returns -1 on error, reported with the name of DEV. */
extern int fvd_header_read (struct nc_dev *dev, struct fvd_header *h);

/* The same for an image that is to be changed, in whatever way: refuses one that
 * was retired, with EROFS. */
extern int fvd_header_read_to_write (struct nc_dev *dev,
                                     struct fvd_header *h);

/* How many of the two copies in the file are valid; for "check". */
extern int fvd_header_copies (struct nc_dev *dev, unsigned *valid);

/* Write H as header number h->seq + 1, over the older copy; the caller
 * syncs.  On success h->seq is that number. */
extern int fvd_header_write (struct nc_dev *dev, struct fvd_header *h);

/* Write both copies of a new image. */
extern int fvd_header_create (struct nc_dev *dev, struct fvd_header *h);

/* Lay out the areas for h->features, size, block_bits, chunk_bits,
 * journal.size and profile.size, with room for the disk to grow. */
extern void fvd_header_lay_out (struct fvd_header *h);

/* Record B, whether or not it is present, as the backing, and that the image
 * takes over from nobody.  Returns -1 if it does not fit, reported for WHOSE;
 * then H can only be thrown away. */
extern int fvd_header_set_backing (struct fvd_header *h, const char *whose,
                                   const struct nc_backing *b);

/* Whether the strings fit their area together. */
extern bool fvd_header_strings_fit (const struct fvd_header *h);

/* The checksum of the first 504 bytes of a sector, and whether it stands in
 * the last 8. */
extern void fvd_sector_seal (const nc_uuid *uuid, enum fvd_kind kind,
                             uint64_t index, uint8_t *sector);
extern bool fvd_sector_is_valid (const nc_uuid *uuid, enum fvd_kind kind,
                                 uint64_t index, const uint8_t *sector);

/* fvd-profile.c: the prefetch profile, of an image in use as well as of one
 * that is not.  One writer at a time. */

/* The ranges that were recorded, inside the disk, in their order; *RANGES is
 * allocated, NULL if there are none.  TORN, unless NULL: how many halves hold
 * something that does not count. */
extern int fvd_profile_read (struct nc_dev *dev, const struct fvd_header *h,
                             struct nc_profile_range **ranges, size_t *n,
                             unsigned *torn);

struct fvd;

/* Replace them, durably; if not all fit, the first ones that do are kept.
 * F: the open layer of DEV, for which a failed sync is final, since it may
 * have been that of the guest's data; NULL: there is none. */
extern int fvd_profile_write (struct nc_dev *dev, const struct fvd_header *h,
                              const struct nc_profile_range *ranges,
                              size_t n, struct fvd *f);

/* Clear the halves that hold something which does not count: *N of them. */
extern int fvd_profile_clear_torn (struct nc_dev *dev,
                                   const struct fvd_header *h, unsigned *n);

struct fvd_range { uint64_t blk, count; };

/* Chunks that got a place. */
struct fvd_place { uint64_t chunk; uint32_t entry; };
struct fvd_places {
  struct fvd_place *v;
  size_t n, cap;
};

/* Growing list of ranges of blocks; neighbours are merged. */
struct fvd_ranges {
  struct fvd_range *v;
  size_t n, cap;
};

/* An open image.
 *
 * load_lock is held while a page's words are put into memory; flush.lock
 * guards what its comment names.  Neither is held across I/O.  Of flushes
 * there is one leader at a time, who alone touches what is marked "leader";
 * of checkpoints there is one at a time, by the leader or in a thread of its
 * own, which alone touches what is marked "checkpoint".  Neither holds a
 * lock while it does I/O. */
struct fvd {
  struct nc_layer *layer;
  struct nc_dev *dev;
  struct nc_dev *data;          /* where the blocks are: dev, or the data
                                   file; NULL: that was not opened */
  struct fvd_header h;          /* after open: checkpoint */
  uint8_t *summary;             /* as on disk, see fvd-bitmap.c */
  struct nc_keep keep;
  struct nc_bitmap *bm;         /* = &keep.bitmap */
  pthread_mutex_t load_lock;

  struct {
    uint64_t nsectors;
    _Atomic (uint64_t) next;    /* number of the next record; leader */
    _Atomic (uint64_t) tail;    /* from here on they are needed; checkpoint */
  } journal;

  struct {
    /* Blocks allocated since a flush last looked: a bit each, and a bit for
     * each page that may have some.  Anybody sets, the leader clears. */
    _Atomic (uint64_t) *pending;
    _Atomic (uint64_t) *pending_pages;

    pthread_mutex_t lock;
    pthread_cond_t round_done;
    /* Guarded by lock: */
    struct fvd_ranges spans;    /* pending too: ranges of whole pages */
    uint64_t started, completed;        /* rounds */
    int round_errno;            /* of the last completed round, or 0 */
    bool leading;               /* somebody leads a round */

    /* Leader: */
    struct fvd_ranges taken;    /* the set that the round makes durable */
    uint64_t *dirty_pages;      /* changed since the last checkpoint began */
    bool must_checkpoint;       /* records alone would not do */
  } flush;

  struct {
    /* Guarded by flush.lock: */
    bool running;               /* in its thread */
    bool has_failed;            /* there: the leader will see why */
    bool joinable;
    pthread_t thread;
    pthread_cond_t ended;

    /* Checkpoint: */
    uint64_t tail;              /* of the journal, when it has ended */
    uint64_t *pages, *summary;  /* to be written: a bit for each page, and
                                   for each sector of the summary */
    uint8_t *buf;               /* pages on their way to the file */
  } checkpoint;

  /* Compact images; see fvd-chunks.c. */
  struct fvd_chunks {
    uint64_t nsectors;          /* of the table */
    /* In memory that outlives the process; NULL: not compact. */
    _Atomic (uint64_t) *used;   /* places; the next one has this number */
    _Atomic (uint8_t) *loaded;  /* a byte for each sector */
    _Atomic (uint32_t) *entry;

    pthread_mutex_t lock;       /* held while storage grows */
    /* Guarded by lock: */
    uint64_t room;              /* places that the file has room for */
    bool zero_first;            /* new ones may hold anything */
    struct fvd_places pending;  /* given since a flush last looked */
    uint64_t *dirty;            /* sectors changed since they were written:
                                   a bit for each */

    struct fvd_places taken;    /* leader */
    uint8_t *buf;               /* checkpoint */
  } chunks;

  const char *enlarge;          /* command that makes storage larger */
  _Atomic (bool) failed;        /* a sync failed: never written again */
};

/* fvd-bitmap.c: pages and summary between file and memory.  The summary in
 * memory is that of the file: only a checkpoint changes it, and only for
 * pages that are loaded, so whoever loads a page reads a stable value. */

extern int fvd_summary_read (struct fvd *f);
extern enum fvd_summary fvd_summary_get (const struct fvd *f, uint64_t page);
/* Leader.  Returns true if that was a change. */
extern bool fvd_summary_set (struct fvd *f, uint64_t page,
                             enum fvd_summary value);

/* What page PAGE holds, without loading it, also while others write the layer.
 * Returns NC_PAGE_NONE, NC_PAGE_ALL, or NC_PAGE_MIXED and its WORDS; -1 on
 * error, reported. */
extern int fvd_page_look (struct fvd *f, uint64_t page, uint64_t *words);

/* Make page PAGE loaded. */
extern int fvd_page_load (struct fvd *f, uint64_t page);

/* Make the pages loaded that a change of these blocks covers in part. */
extern int fvd_pages_load (struct fvd *f, uint64_t blk, uint64_t count);

/* Blocks that are allocated in all. */
extern int fvd_bits_count (struct fvd *f, uint64_t *blocks);

/* fvd-journal.c: records. */

/* Read the journal of an image that was not closed in order into the
 * bitmap, and find the next record number.  FN, unless NULL, is called for
 * each record that counts. */
extern int fvd_journal_replay (struct fvd *f,
                               void (*fn) (void *opaque, uint64_t record),
                               void *opaque);

/* Before a clean image is written: put zeros where a record would count that
 * is none, or a sector is damaged.  Not durable. */
extern int fvd_journal_clear (struct fvd *f) __attribute__ ((__nonnull__ (1)));

/* How many sectors these take, and how many are free. */
extern uint64_t fvd_journal_need (const struct fvd_ranges *ranges,
                                  const struct fvd_places *places);
extern uint64_t fvd_journal_room (const struct fvd *f);

/* Append records for PLACES, and when these are durable for RANGES, durable;
 * there is room.  Leader. */
extern int fvd_journal_append (struct fvd *f,
                               const struct fvd_ranges *ranges,
                               const struct fvd_places *places);

/* fvd-flush.c: how a block that was written becomes durable. */

/* Words that have a bit for each of N. */
static inline uint64_t
fvd_nwords (uint64_t n)
{
  return n / 64 + 1;
}

static inline void
fvd_set_bit (uint64_t *words, uint64_t i)
{
  words[i / 64] |= UINT64_C (1) << (i % 64);
}

extern int fvd_ranges_add (struct fvd_ranges *ranges, uint64_t blk,
                           uint64_t count);

/* Set up what writing needs; the bitmap is complete (replayed). */
extern int fvd_flush_open (struct fvd *f);
extern void fvd_flush_close (struct fvd *f);

/* The bitmap came from memory that outlived a process: what is in it may be
 * in no record. */
extern void fvd_flush_adopt (struct fvd *f);

/* The blocks hold their data: pending first, then visible. */
extern int fvd_flush_set_allocated (struct fvd *f, uint64_t blk,
                                    uint64_t count);

extern int fvd_flush (struct fvd *f);

/* The same, and then FN as the leader, while no checkpoint runs: it may
 * change the header. */
extern int fvd_flush_then (struct fvd *f,
                           int (*fn) (struct fvd *f, void *opaque),
                           void *opaque);

/* Flush, checkpoint, mark clean; nobody else is at work. */
extern int fvd_flush_finish (struct fvd *f);

/* Sync the metadata, or the data: of one file, unless there is a data file.
 * A failure is final. */
extern int fvd_sync (struct fvd *f);
extern int fvd_sync_data (struct fvd *f);

/* fvd-checkpoint.c: the journal's records go into the bitmap of the file. */

extern int fvd_checkpoint_open (struct fvd *f);
/* Waits for the thread. */
extern void fvd_checkpoint_close (struct fvd *f);

/* Leader: one that is running has ended when this returns. */
extern void fvd_checkpoint_wait (struct fvd *f);

/* Leader: what the flushes so far made durable goes into the bitmap, and
 * the journal is free.  clean: mark the image as closed in order.  If it
 * fails without a failed sync, nothing is lost and it
 * can be tried again. */
extern int fvd_checkpoint (struct fvd *f, bool clean);

/* Leader: begin one in a thread of its own, unless one is running, or the
 * last one there has failed. */
extern void fvd_checkpoint_start (struct fvd *f);

/* Write the header, with no more than the fields that the caller changed,
 * durable. */
extern int fvd_header_sync (struct fvd *f);

/* fvd-chunks.c: compact images. */

/* Bytes of memory that the table needs; 0: the image is not compact. */
extern size_t fvd_chunks_memory (const struct fvd_header *h);

/* Set up with that MEMORY, for reading. */
extern int fvd_chunks_open (struct fvd *f, void *memory);
extern void fvd_chunks_close (struct fvd *f);

/* The header counts; before the journal is read. */
extern void fvd_chunks_begin (struct fvd *f);

/* For writing, when it has been read. */
extern int fvd_chunks_begin_writing (struct fvd *f);

/* A new life has begun: what a crash has left behind the places in use
 * goes. */
extern int fvd_chunks_truncate (struct fvd *f);

/* As fvd_flush_adopt: what is in memory may not be in the file. */
extern void fvd_chunks_adopt (struct fvd *f);

/* A record of the journal. */
extern int fvd_chunks_replay (struct fvd *f, uint64_t chunk, uint32_t entry);

/* As the functions of the format. */
extern int fvd_chunks_pread (struct fvd *f, void *buf, size_t count,
                             uint64_t offset);
extern int fvd_chunks_pwritev (struct fvd *f, struct iovec *iov, int niov,
                               uint64_t offset);
extern void fvd_chunks_evict (struct fvd *f, uint64_t offset,
                              uint64_t count);
extern int fvd_chunks_zero (struct fvd *f, uint64_t offset, uint64_t count,
                            unsigned flags);
extern int fvd_chunks_extents (struct fvd *f, struct nc_extents *extents,
                               uint64_t end);

/* Leader: the places that are pending go to f->chunks.taken; after the
 * blocks were taken, so that it has the places of all of these. */
extern void fvd_chunks_take (struct fvd *f);

/* Checkpoint: the table in the file says what the one in memory says; after
 * pages were copied and before they are written. */
extern int fvd_table_write (struct fvd *f);

/* Entries of sector number I of the table in the file. */
extern int fvd_table_read (struct fvd *f, uint64_t i,
                           uint32_t entries[FVD_TABLE_ENTRIES]);

/* The same, of a table that may be damaged.  Returns 1 and WHY if that sector
 * is. */
#define FVD_WHY 160
extern int fvd_table_look (struct fvd *f, uint64_t i,
                           uint32_t entries[FVD_TABLE_ENTRIES],
                           char why[FVD_WHY]);

/* Which of the places in use chunks have: a bit for each in *OWNED, which is
 * to be freed in any case.  *SHARED: how often one has two. */
extern int fvd_places_owned (struct fvd *f, uint64_t **owned,
                             uint64_t *shared);

/* Write the entries of the chunks behind the end of the disk as 0, up to those
 * of a disk of SIZE bytes, durably.  F has been finished. */
extern int fvd_table_clear_tail (struct fvd *f, uint64_t size);

/* fvd.c: for image.c */

struct nc_fvd_create_options {
  uint64_t size;
  unsigned block_bits;
  uint64_t journal_size;
  const struct nc_backing *backing;
  bool takes_over;              /* from the backing, once that is retired */
  const struct fvd_ranges *zero;        /* blocks that are allocated, and read
                                   as zeros, from the beginning; in order;
                                   NULL: none */
  bool compact;
  uint64_t grow_unit;           /* compact */
  const char *data_file;        /* as to be stored; NULL: none */
  bool marked;                  /* it can carry a mark, and will */
  struct nc_prefetch_policy prefetch;
};

/* The length of the file that holds such an image.  Returns -1 if that is
 * more than a file can have. */
extern int nc_fvd_file_size (const struct nc_fvd_create_options *opts,
                             uint64_t *size);

/* Make DEV an fvd image; the caller syncs and gives it its name. */
extern int nc_fvd_create (struct nc_dev *dev,
                          const struct nc_fvd_create_options *opts,
                          const nc_uuid *uuid);

/* Record in the open, writable LAYER that SUCCESSOR took over; durable. */
extern int nc_fvd_retire (struct nc_layer *layer, const nc_uuid *successor,
                          const char *path);

/* The profile of an open layer; see nc_image_profile_read and _write. */
extern int nc_fvd_profile_read (struct nc_layer *layer,
                                struct nc_profile_range **ranges, size_t *n);
extern int nc_fvd_profile_write (struct nc_layer *layer,
                                 const struct nc_profile_range *ranges,
                                 size_t n);

/* fvd-amend.c: the header alone.  nc_fvd_amend: see nc_image_amend. */
extern int nc_fvd_amend (struct nc_dev *dev,
                         const struct nc_image_amendment *amendment);

/* Record B as the backing of an image that nobody uses; durable.  The blocks
 * stay as they are, so the caller knows that they are right. */
extern int nc_fvd_change_backing (struct nc_dev *dev,
                                  const struct nc_backing *b);

/* As in struct nc_format. */
extern int fvd_set_backing (struct nc_layer *layer,
                            const struct nc_backing *b);

/* fvd-resize.c */

/* The largest disk for which the areas of the image have room. */
extern uint64_t fvd_size_limit (const struct fvd_header *h);

/* Clear the bits behind the last block of a finished image; the caller syncs.
 * Returns 1 if there were any, 0 if not, -1 on error, reported. */
extern int fvd_tail_clear (struct fvd *f);

/* Whether the disk can have this size.  Returns -1 if not, reported. */
extern int nc_fvd_can_resize (const struct nc_layer *layer, uint64_t size);

/* Give the disk of a writable layer, that nobody else uses, the size SIZE.
 * Afterwards, and after an error (which leaves either size), the layer can
 * only be closed. */
extern int nc_fvd_resize (struct nc_layer *layer, uint64_t size);

/* fvd-repair.c */

/* How many bytes of storage no block of F, whose bitmap is complete, needs;
 * in a compact image, of places that no chunk has.  FN, unless NULL, is called
 * for each range of them, but for those behind the end; offsets are those in
 * the data area. */
extern int fvd_leaks (struct fvd *f,
                      int (*fn) (struct fvd *f, uint64_t offset,
                                 uint64_t count), uint64_t *bytes);

/* Repair the image of a writable layer that waits to begin, and in which a
 * check found no error; COPIES of its header were valid, and CLEAN says
 * whether it was closed in order.  Afterwards it can only be closed. */
extern int nc_fvd_repair (struct nc_layer *layer, unsigned copies, bool clean,
                          nc_check_repaired repaired, void *opaque);

/* fvd-check.c; see nc_image_check. */
extern int nc_fvd_check (struct nc_dev *dev, nc_check_finding finding,
                         void *opaque, struct nc_check_result *result);

#endif /* NC_FVD_H */
