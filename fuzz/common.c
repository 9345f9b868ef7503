/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The table of targets, and what is done with an image in memory: make one,
 * seal it, open it in all ways. */

#include <config.h>

#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/fvd/fvd.h"
#include "format/layer.h"
#include "fvd-reader.h"
#include "image/image.h"
#include "util/report.h"

const struct fuzz_target *const fuzz_targets[] = {
  &fuzz_header, &fuzz_bitmap, &fuzz_journal, &fuzz_image, &fuzz_refs,
  &fuzz_table, &fuzz_control, &fuzz_jobs, &fuzz_profile, NULL
};

void
fuzz_must (bool good, const char *what)
{
  if (good)
    return;
  fprintf (stderr, "fuzz: this must hold, and does not: %s\n", what);
  abort ();
}

static unsigned errors;         /* reported */

__attribute__ ((__format__ (printf, 2, 0)))
static void
count_errors (enum nc_report_level level, const char *fmt, va_list args)
{
  char text[4096];

  if (level != NC_REPORT_ERROR)
    return;
  errors++;
  /* Formatted in any case: what is printed may be at fault. */
  vsnprintf (text, sizeof text, fmt, args);
  if (getenv ("NBDCHAIN_FUZZ_VERBOSE"))
    fprintf (stderr, "%s\n", text);
}

void
fuzz_start (void)
{
  nc_report_to (count_errors);
}

/* Layers. */

static struct nc_layer *
open_layer (struct mem_disk *disk, bool write)
{
  const struct nc_layer_options opts = { .writable = write, .memory_fd = -1 };
  struct nc_layer *layer;

  errors = 0;
  errno = 0;
  layer = nc_layer_open (&nc_format_fvd, mem_dev_open (disk, write), "image",
                         &opts);
  fuzz_must (layer || (errno != 0 && errors > 0),
             "who refuses an image says why");
  return layer;
}

static void
fill (uint8_t *buf, uint64_t blk, uint8_t salt)
{
  for (unsigned i = 0; i < FUZZ_BLOCK; ++i)
    buf[i] = blk * 7 + i * 13 + salt;
}

/* How much of block BLK the disk has. */
static size_t
length_of (const struct nc_layer *l, uint64_t blk)
{
  const uint64_t left = l->size - blk * l->block_size;

  return left < FUZZ_BLOCK ? left : FUZZ_BLOCK;
}

static int
write_block (struct nc_layer *l, uint64_t blk, uint8_t salt)
{
  const uint64_t offset = blk * l->block_size;
  const uint64_t left = l->size - offset;
  const uint64_t whole = left < l->block_size ? left : l->block_size;
  uint8_t buf[FUZZ_BLOCK];
  struct iovec iov = { .iov_base = buf, .iov_len = length_of (l, blk) };

  fill (buf, blk, salt);
  if (l->format->pwritev (l, &iov, 1, offset) == -1)
    return -1;
  return l->format->set_allocated (l, offset, whole);
}

static bool
holds_block (struct nc_layer *l, uint64_t blk, uint8_t salt)
{
  const uint64_t offset = blk * l->block_size;
  uint8_t want[FUZZ_BLOCK], have[FUZZ_BLOCK];
  bool allocated;
  uint64_t run;

  fill (want, blk, salt);
  return l->format->run (l, offset, 1, &allocated, &run) == 0 && allocated &&
    l->format->pread (l, have, length_of (l, blk), offset) == 0 &&
    memcmp (want, have, length_of (l, blk)) == 0;
}

/* The image to start from. */

static struct mem_disk disk;
static uint8_t *pristine[FUZZ_KINDS];

static uint64_t
size_of (bool compact)
{
  return FUZZ_DATA_AT +
    (compact ? FUZZ_PLACES * (uint64_t) FUZZ_CHUNK : FUZZ_SIZE);
}

/* Put the areas close together: an image that is made has room to grow, which
 * would only take time here.  Summary and bitmap stay where they are, and what
 * comes behind them is zeros. */
static void
move_together (bool compact)
{
  for (unsigned i = 0; i < 2; ++i) {
    uint8_t *header = disk.data + 4096 * i;
    const uint64_t bitmap = fvd_reader_le (header + FVD_AT_BITMAP, 8);

    fvd_reader_put_le (header + FVD_AT_BITMAP + 8, 8,
                       FUZZ_JOURNAL_AT - bitmap);
    fvd_reader_put_le (header + FVD_AT_JOURNAL, 8, FUZZ_JOURNAL_AT);
    if (compact) {
      fvd_reader_put_le (header + FVD_AT_TABLE, 8, FUZZ_TABLE_AT);
      fvd_reader_put_le (header + FVD_AT_TABLE + 8, 8,
                         FUZZ_TABLE_END - FUZZ_TABLE_AT);
    }
    fvd_reader_put_le (header + FVD_AT_PROFILE, 8, FUZZ_TABLE_END);
    fvd_reader_put_le (header + FVD_AT_DATA, 8, FUZZ_DATA_AT);
    fvd_reader_seal_header (header);
  }
  disk.size = size_of (compact);
}

static void
create_image (bool compact)
{
  const struct nc_backing backing = {
    .present = true, .ref = (char *) "base.raw", .format = (char *) "raw",
    .identity = (char *) "", .size = FUZZ_SIZE,
  };
  const struct nc_fvd_create_options opts = {
    .size = FUZZ_SIZE, .block_bits = 12,
    .journal_size = FUZZ_JOURNAL_SECTORS * 512, .backing = &backing,
    .compact = compact, .grow_unit = compact ? FUZZ_CHUNK : 0,
  };
  /* Always the same, so that an input means the same in every run. */
  static const nc_uuid uuid = { { 0xf, 0x0, 0x2, 0x2 } };
  struct nc_dev *dev;
  uint64_t file_size;

  fuzz_must (nc_fvd_file_size (&opts, &file_size) == 0 &&
             (compact || file_size >= size_of (false)), "an image has a size");
  mem_disk_init (&disk, file_size < size_of (true) ? size_of (true)
                 : file_size);
  dev = mem_dev_open (&disk, true);
  fuzz_must (nc_fvd_create (dev, &opts, &uuid) == 0, "an image is created");
  nc_dev_close (dev);
  move_together (compact);
}

/* Copy what is in front of the data; behind the table it is all zeros. */
static uint8_t *
save (void)
{
  uint8_t *copy = malloc (FUZZ_TABLE_END);

  fuzz_must (copy != NULL, "memory");
  memcpy (copy, disk.data, FUZZ_TABLE_END);
  for (size_t at = FUZZ_TABLE_END; at < FUZZ_DATA_AT; ++at)
    fuzz_must (disk.data[at] == 0, "zeros behind the table");
  return copy;
}

static void
make_pristine (bool compact)
{
  const unsigned first = compact ? FUZZ_COMPACT : FUZZ_CLEAN;
  struct nc_layer *l;

  create_image (compact);
  l = open_layer (&disk, true);
  fuzz_must (l && write_block (l, 1, 0) == 0 &&
             write_block (l, FUZZ_NBLOCKS - 1, 0) == 0 &&
             l->format->finish (l) == 0, "an image is written");
  nc_layer_close (l);
  pristine[first] = save ();

  l = open_layer (&disk, true);
  fuzz_must (l && write_block (l, 3, 0) == 0 &&
             write_block (l, 4032 + 5, 0) == 0 &&
             l->format->flush (l) == 0, "and written again");
  nc_layer_close (l);
  pristine[first + 1] = save ();
  mem_disk_fini (&disk);
}

struct mem_disk *
fuzz_image_new (enum fuzz_image_kind kind)
{
  if (pristine[0] == NULL) {
    make_pristine (false);
    make_pristine (true);
    mem_disk_init (&disk, size_of (true));
  }
  disk.size = size_of (true);
  mem_disk_clear (&disk);
  memcpy (disk.data, pristine[kind], FUZZ_TABLE_END);
  disk.size = size_of (kind >= FUZZ_COMPACT);
  return &disk;
}

/* Sealing. */

/* The copy of the header that counts. */
static const uint8_t *
newest (const struct mem_disk *d)
{
  const uint8_t *a = d->data, *b = d->data + 4096;
  const uint64_t seq_a = fvd_reader_le (a + FVD_AT_SEQ, 8);
  const uint64_t seq_b = fvd_reader_le (b + FVD_AT_SEQ, 8);

  if (memcmp (a, "NBDCFVD\n", 8) != 0 || seq_a % 2 != 0)
    return b;
  if (memcmp (b, "NBDCFVD\n", 8) != 0 || seq_b % 2 != 1)
    return a;
  return seq_a > seq_b ? a : b;
}

static bool
is_zero (const uint8_t *sector)
{
  return *sector == 0 && memcmp (sector, sector + 1, 511) == 0;
}

static void
seal_area (struct mem_disk *d, const uint8_t *uuid, unsigned kind,
           const uint8_t *field)
{
  const uint64_t offset = fvd_reader_le (field, 8);
  const uint64_t size = fvd_reader_le (field + 8, 8);

  if (offset < 8192 || offset > d->size)
    return;
  for (uint64_t i = 0; i < 256 && i < size / 512 &&
         (i + 1) * 512 <= d->size - offset; ++i) {
    uint8_t *sector = d->data + offset + i * 512;

    if (kind == 4 ? !is_zero (sector)
        : kind != 3 || memcmp (sector, "FVDJ", 4) == 0)
      fvd_reader_seal (uuid, kind, i, sector);
  }
}

void
fuzz_seal (struct mem_disk *d, unsigned keep)
{
  uint8_t header[4096];

  if (!(keep & FUZZ_KEEP_HEADER)) {
    fvd_reader_seal_header (d->data);
    fvd_reader_seal_header (d->data + 4096);
  }
  memcpy (header, newest (d), sizeof header);
  if (!(keep & FUZZ_KEEP_TABLE))
    seal_area (d, header + FVD_AT_UUID, 4, header + FVD_AT_TABLE);
  if (!(keep & FUZZ_KEEP_SUMMARY))
    seal_area (d, header + FVD_AT_UUID, 1, header + FVD_AT_SUMMARY);
  if (!(keep & FUZZ_KEEP_BITMAP))
    seal_area (d, header + FVD_AT_UUID, 2, header + FVD_AT_BITMAP);
  if (!(keep & FUZZ_KEEP_JOURNAL))
    seal_area (d, header + FVD_AT_UUID, 3, header + FVD_AT_JOURNAL);
}

/* Opening. */

static void
try_check (struct mem_disk *d, bool *sound)
{
  struct nc_dev *dev = mem_dev_open (d, false);
  struct nc_check_result result;

  *sound = nc_fvd_check (dev, NULL, NULL, &result) == 0 &&
    result.errors == 0;
  nc_dev_close (dev);
}

/* A range that walk found, and whether such ranges are in order. */
struct walked {
  uint8_t *allocated;
  uint64_t end, block, size;
};

static int
note_range (void *opaque, uint64_t offset, uint64_t count)
{
  struct walked *w = opaque;

  fuzz_must (offset >= w->end && count > 0 && offset < w->size &&
             count <= w->size - offset, "walk stays inside and in order");
  w->end = offset + count;
  for (uint64_t b = offset / w->block; b * w->block < w->end; ++b)
    w->allocated[b] = 1;
  return 0;
}

/* What run says of each block, into ALLOCATED. */
static int
run_all (struct nc_layer *l, uint8_t *allocated)
{
  for (uint64_t at = 0, run; at < l->size; at += run) {
    bool set;

    if (l->format->run (l, at, l->size - at, &set, &run) == -1)
      return -1;
    fuzz_must (run > 0 && run <= l->size - at &&
               ((at + run) % l->block_size == 0 || at + run == l->size),
               "a run ends at a block");
    if (set)
      memset (allocated + at / l->block_size, 1,
              (run + l->block_size - 1) / l->block_size);
  }
  return 0;
}

/* Both ways of asking what is allocated agree with each other, and with R
 * unless that is NULL. */
static void
compare_bits (struct nc_layer *l, const struct fvd_reader *r)
{
  const uint64_t n = (l->size + l->block_size - 1) / l->block_size;
  uint8_t *runs = calloc (1, n + 1), *walks = calloc (1, n + 1);
  struct walked w = { walks, 0, l->block_size, l->size };
  int ran, walked = 0;

  fuzz_must (runs && walks, "memory");
  if (l->size > 0)
    walked = l->format->walk (l, 0, l->size, note_range, &w);
  ran = run_all (l, runs);
  if (ran == 0 && walked == 0)
    fuzz_must (memcmp (runs, walks, n) == 0, "run and walk agree");
  if (r) {
    fuzz_must (ran == 0 && walked == 0, "a sound image can be read");
    fuzz_must (l->size == r->size && memcmp (runs, r->allocated, n) == 0,
               "the second reader finds the same blocks");
  }
  free (runs);
  free (walks);
}

/* The chunks have the same places, as seen at their first bytes. */
static void
compare_places (struct nc_layer *l, const struct fvd_reader *r)
{
  for (uint64_t c = 0; c < r->nchunks; ++c) {
    const uint64_t at = c * r->chunk;
    const uint64_t left = r->size - at;
    uint8_t have[8], want[8];
    const size_t n = left < sizeof have ? left : sizeof have;

    if (!r->allocated[at / r->block])
      continue;
    fvd_reader_pread (r, want, n, at, NULL, 0);
    fuzz_must (l->format->pread (l, have, n, at) == 0 &&
               memcmp (have, want, n) == 0,
               "the second reader finds the same places");
  }
}

static void
try_read (struct mem_disk *d, const struct fvd_reader *r, bool strict)
{
  struct nc_layer *l = open_layer (d, false);
  struct nc_image_info info;

  if (l == NULL) {
    fuzz_must (!strict || r == NULL, "a sound image is opened");
    return;
  }
  compare_bits (l, r);
  if (r)
    compare_places (l, r);
  nc_layer_info (l, &info);
  nc_image_info_free (&info);
  nc_layer_close (l);
}

enum { N_WRITTEN = 5 };

static void
choose_blocks (const struct nc_layer *l, uint64_t blks[N_WRITTEN])
{
  const uint64_t n = (l->size + l->block_size - 1) / l->block_size;
  const uint64_t want[N_WRITTEN] = { 0, 7, n / 2, 4031, n - 1 };

  for (unsigned i = 0; i < N_WRITTEN; ++i)
    blks[i] = want[i] < n ? want[i] : 0;
}

/* Write, flush, and forget the layer as a crash would, then look.  Of an
 * image with faults (not SOUND) only that it does no harm is asked. */
static void
try_write (struct mem_disk *d, bool finish, bool sound)
{
  struct nc_layer *l = open_layer (d, true);
  uint64_t blks[N_WRITTEN];
  bool flushed = l != NULL;
  struct fvd_reader r;

  if (l == NULL || l->size == 0) {
    nc_layer_close (l);
    return;
  }
  choose_blocks (l, blks);
  for (unsigned i = 0; i < N_WRITTEN && flushed; ++i)
    flushed = write_block (l, blks[i], finish) == 0 &&
      l->format->flush (l) == 0;
  if (finish && flushed)
    flushed = l->format->finish (l) == 0;
  nc_layer_close (l);
  if (!flushed || !sound)
    return;

  l = open_layer (d, false);
  fuzz_must (l != NULL, "what was flushed can be opened again");
  for (unsigned i = 0; i < N_WRITTEN; ++i)
    fuzz_must (holds_block (l, blks[i], finish), "what was flushed is there");
  nc_layer_close (l);
  fuzz_must (fvd_reader_open (&r, d->data, d->size) == 0,
             "the second reader opens it, too");
  for (unsigned i = 0; i < N_WRITTEN; ++i)
    fuzz_must (r.allocated[blks[i]], "the second reader finds it, too");
  fvd_reader_close (&r);
}

void
fuzz_exercise (struct mem_disk *d, bool write, bool strict)
{
  struct fvd_reader r;
  const bool read = fvd_reader_open (&r, d->data, d->size) == 0;
  bool sound;

  try_check (d, &sound);
  fuzz_must (!strict || !read || sound, "check finds no fault in a sound "
             "image");
  try_read (d, read ? &r : NULL, strict);
  fvd_reader_close (&r);
  if (write) {
    try_write (d, false, read);
    try_write (d, true, read);
  }
}
