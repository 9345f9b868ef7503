/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A whole image, in two steps: changes of its fields and sectors, sealed
 * again; then a life of writes, zeros, flushes, kills and restarts, with a
 * model that knows what must be there.
 *
 * Input: a byte of flags, the number of changes (a byte), the changes (a byte
 * that says where, two bytes of offset, a byte that says how long, 1, 2, 4 or
 * 8, and the value), then the operations (a byte that says which, two bytes
 * for the block). */

#include <config.h>

#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "format/fvd/fvd.h"
#include "format/layer.h"
#include "fvd-reader.h"
#include "util/checked.h"

enum { KEEP_MASK = 15, UNCLEAN = 16, COMPACT = 32 };

struct input { const uint8_t *p; size_t left; };

/* The next N bytes as a number; 0 where there are none. */
static uint64_t
take (struct input *in, unsigned n)
{
  uint64_t v;

  n = n < in->left ? n : in->left;
  v = fvd_reader_le (in->p, n);
  in->p += n;
  in->left -= n;
  return v;
}

static void
change (struct mem_disk *disk, struct input *in)
{
  static const unsigned fields[] = {
    FVD_AT_SEQ, FVD_AT_COMPAT, FVD_AT_RO_COMPAT, FVD_AT_INCOMPAT,
    FVD_AT_SIZE, FVD_AT_BLOCK_BITS, FVD_AT_FLAGS, FVD_AT_LIFE,
    FVD_AT_SUMMARY, FVD_AT_SUMMARY + 8, FVD_AT_BITMAP, FVD_AT_BITMAP + 8,
    FVD_AT_JOURNAL, FVD_AT_JOURNAL + 8, FVD_AT_TAIL, FVD_AT_DATA,
    FVD_AT_BACKING_SIZE, FVD_AT_STRINGS,
  };
  static const unsigned more_fields[] = {       /* of compact images */
    FVD_AT_TABLE, FVD_AT_TABLE + 8, FVD_AT_CHUNK_BITS, FVD_AT_GROW_UNIT,
    FVD_AT_CHUNKS,
  };
  enum { N = sizeof fields / sizeof fields[0],
         MORE = sizeof more_fields / sizeof more_fields[0] };
  const unsigned where = take (in, 1), offset = take (in, 2);
  const unsigned bytes = 1u << take (in, 1) % 4;
  const uint64_t value = take (in, bytes);

  if (where < N) {
    fvd_reader_put_le (disk->data + fields[where], bytes, value);
    fvd_reader_put_le (disk->data + 4096 + fields[where], bytes, value);
  }
  else if (where < N + 4)               /* anywhere in the metadata */
    fvd_reader_put_le (disk->data + offset % 32768, bytes, value);
  else if (where < N + 6)               /* the file has another size */
    disk->size = value % (FUZZ_DATA_AT + FUZZ_SIZE + 1);
  else if (where < N + 6 + MORE) {
    const unsigned at = more_fields[where - N - 6];

    fvd_reader_put_le (disk->data + at, bytes, value);
    fvd_reader_put_le (disk->data + 4096 + at, bytes, value);
  }
}

/* The model: of each block the number of the last write to it, and of the
 * last one that a flush made durable. */
struct life {
  struct mem_disk *disk;
  struct nc_layer *layer;
  bool sound;                   /* at the start: else it may lose things */
  bool compact;
  uint64_t nblocks;
  uint32_t n;
  uint32_t *last, *durable;
};

static void
fill (uint8_t *buf, size_t count, uint64_t blk, uint32_t n)
{
  for (size_t i = 0; i < count; ++i)
    buf[i] = n ? (uint8_t) (n * 31 + blk * 7 + i) | 1 : 0;
}

static size_t
length_of (const struct life *life, uint64_t blk)
{
  const uint64_t left = life->layer->size - blk * life->layer->block_size;

  return left < life->layer->block_size ? left : life->layer->block_size;
}

static bool
is_block (const struct life *life, uint64_t blk, uint32_t n)
{
  const size_t count = length_of (life, blk);
  uint8_t *want = malloc (2 * count);
  bool same;

  fuzz_must (want != NULL, "memory");
  fill (want, count, blk, n);
  same = life->layer->format->pread (life->layer, want + count, count,
                                     blk * life->layer->block_size) == 0 &&
    memcmp (want, want + count, count) == 0;
  free (want);
  return same;
}

static bool
is_allocated (struct nc_layer *l, uint64_t blk)
{
  bool set;
  uint64_t run;

  return l->format->run (l, blk * l->block_size, 1, &set, &run) == 0 && set;
}

/* After a restart: what was durable is there.  Nothing is lost of what
 * reached the file, so it is there as it was written last, unless its chunk
 * has lost a place that no flush has made durable. */
static void
look (struct life *life)
{
  for (uint64_t b = 0; b < life->nblocks; ++b) {
    if (life->last[b] == 0)
      continue;
    if (!is_allocated (life->layer, b)) {
      fuzz_must (life->durable[b] == 0, "a flushed block is allocated");
      life->last[b] = 0;
      continue;
    }
    if (life->compact && life->durable[b] &&
        is_block (life, b, life->durable[b] - 1)) {
      life->last[b] = life->durable[b];
      continue;
    }
    fuzz_must (is_block (life, b, life->last[b] - 1),
               "an allocated block has its data");
  }
}

static bool
open_life (struct life *life)
{
  const struct nc_layer_options opts = { .writable = true, .memory_fd = -1 };

  life->layer = nc_layer_open (&nc_format_fvd, mem_dev_open (life->disk, true),
                               "image", &opts);
  return life->layer != NULL;
}

static void
store (struct life *life, uint64_t blk, bool zero)
{
  struct nc_layer *l = life->layer;
  const size_t count = length_of (life, blk);
  const uint64_t offset = blk * l->block_size;
  uint8_t *buf = malloc (count);
  struct iovec iov = { .iov_base = buf, .iov_len = count };
  int r;

  fuzz_must (buf != NULL, "memory");
  fill (buf, count, blk, life->n + 1);
  r = zero ? l->format->zero (l, offset, count, 0)
    : l->format->pwritev (l, &iov, 1, offset);
  free (buf);
  /* Numbers are kept plus one, for 0 is "never". */
  if (r == 0 && l->format->set_allocated (l, offset, count) == 0)
    life->last[blk] = zero ? 1 : ++life->n + 1;
}

static void
operate (struct life *life, unsigned op, uint64_t blk)
{
  struct nc_layer *l = life->layer;

  switch (op % 8) {
  default:
    store (life, blk, false);
    break;
  case 3:
    store (life, blk, true);
    break;
  case 4:
    if (l->format->flush (l) == 0)
      memcpy (life->durable, life->last, life->nblocks * 4);
    break;
  case 5:                       /* killed */
  case 6:                       /* stopped */
    if (op % 8 == 6 && l->format->finish (l) == 0)
      memcpy (life->durable, life->last, life->nblocks * 4);
    nc_layer_close (l);
    if (!open_life (life))
      fuzz_must (!life->sound, "an image that was written opens again");
    else if (life->sound)
      look (life);
    break;
  }
}

static void
live (struct mem_disk *disk, struct input *in)
{
  struct life life = { .disk = disk };
  struct fvd_reader r;

  /* Numbers that only damage has made so large may come, in this life, to where
   * no writer begins. */
  life.sound = fvd_reader_open (&r, disk->data, disk->size) == 0 &&
    nc_max64 (r.seq, r.tail) < FVD_NUMBER_MAX_BEGIN / 2;
  life.compact = r.chunk != 0;
  fvd_reader_close (&r);
  if (!open_life (&life))
    return;
  life.nblocks = (life.layer->size + life.layer->block_size - 1) /
    life.layer->block_size;
  life.last = calloc (life.nblocks + 1, 4);
  life.durable = calloc (life.nblocks + 1, 4);
  fuzz_must (life.last && life.durable, "memory");
  for (unsigned i = 0; i < 64 && in->left > 0 && life.nblocks > 0 &&
         life.layer; ++i) {
    const unsigned op = take (in, 1);

    operate (&life, op, take (in, 2) % life.nblocks);
  }
  nc_layer_close (life.layer);
  free (life.last);
  free (life.durable);
}

static void
run (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  const unsigned flags = take (&in, 1);
  struct mem_disk *disk =
    fuzz_image_new ((flags & COMPACT ? FUZZ_COMPACT : FUZZ_CLEAN) +
                    (flags & UNCLEAN ? 1 : 0));

  for (unsigned n = take (&in, 1) % 32; n > 0; --n)
    change (disk, &in);
  if (disk->size >= 8192)
    fuzz_seal (disk, flags & KEEP_MASK);
  fuzz_exercise (disk, false, false);
  live (disk, &in);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  /* No change, then a life. */
  static const uint8_t plain[] = {
    0, 0, 0, 1, 0, 0, 2, 0, 4, 0, 0, 0, 0xc0, 0xf, 5, 0, 0, 3, 1, 0, 4, 0, 0,
    0, 9, 0, 6, 0, 0, 0, 1, 0, 4, 0, 0, 5, 0, 0,
  };
  /* Larger blocks, another number of the header, another tail. */
  static const uint8_t changed[] = {
    UNCLEAN, 3, 5, 0, 0, 2, 14, 0, 0, 0, 0, 0, 0, 3, 100, 0, 0, 0, 0, 0, 0, 0,
    14, 0, 0, 3, 40, 0, 0, 0, 0, 0, 0, 0,
    0, 1, 0, 4, 0, 0, 5, 0, 0, 3, 1, 0, 6, 0, 0,
  };
  /* A compact image: a life with several chunks; and one with fewer places
   * that count. */
  static const uint8_t compact[] = {
    COMPACT | UNCLEAN, 0, 0, 1, 0, 0, 2, 1, 4, 0, 0, 0, 0xc0, 0xf, 3, 0, 5,
    5, 0, 0, 3, 7, 8, 4, 0, 0, 0, 7, 8, 5, 0, 0, 3, 1, 0, 4, 0, 0, 0, 9, 7,
    6, 0, 0, 0, 1, 3, 4, 0, 0, 5, 0, 0,
  };
  static const uint8_t bound[] = {
    COMPACT, 2, 28, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0,
    27, 0, 0, 3, 0, 0, 0x20, 0, 0, 0, 0, 0,
    0, 1, 0, 0, 2, 1, 4, 0, 0, 5, 0, 0,
  };
  /* The file is shorter. */
  static const uint8_t cut[] = { 0, 1, 22, 0, 0, 2, 0, 0x20, 0, 0 };

  save (opaque, "plain", plain, sizeof plain);
  save (opaque, "changed", changed, sizeof changed);
  save (opaque, "compact", compact, sizeof compact);
  save (opaque, "bound", bound, sizeof bound);
  save (opaque, "cut", cut, sizeof cut);
}

const struct fuzz_target fuzz_image = {
  .name = "image", .run = run, .seeds = seeds
};
