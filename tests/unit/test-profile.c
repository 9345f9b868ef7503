/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of the prefetch profile in an fvd image: what is read is what was
 * written last, or before, whatever part of a write reached the disk. */

#include <config.h>

#include "format/fvd/fvd.h"

#include "dev-fault.h"
#include "fvd-reader.h"
#include "tap.h"
#include "util/checked.h"

#define BLOCK 4096
#define SIZE (UINT64_C (5000) * BLOCK + 100)
#define NBLOCKS 5001

/* One thread, which is slow where threads are looked at. */
#ifdef __SANITIZE_THREAD__
#define LESS(n) ((n) / 10)
#define STEP 23
#else
#define LESS(n) (n)
#define STEP 3
#endif

static struct mem_disk disk;
static struct fault fault;
static uint64_t area_offset, area_size;

typedef struct nc_profile_range range;

static void
create (void)
{
  static const struct nc_backing none;
  struct nc_fvd_create_options opts = {
    .size = SIZE, .block_bits = 12, .journal_size = 16384, .backing = &none,
  };
  uint64_t file_size;
  struct nc_dev *dev;
  nc_uuid uuid;

  must (nc_fvd_file_size (&opts, &file_size) == 0, "nc_fvd_file_size");
  mem_disk_init (&disk, file_size);
  dev = mem_dev_open (&disk, true);
  must (nc_uuid_generate (&uuid) == 0 &&
        nc_fvd_create (dev, &opts, &uuid) == 0, "nc_fvd_create");
  nc_dev_close (dev);
  area_offset = fvd_reader_le (disk.data + FVD_AT_PROFILE, 8);
  area_size = fvd_reader_le (disk.data + FVD_AT_PROFILE + 8, 8);
}

/* Put VALUE into both copies of the header. */
static void
set_header (unsigned at, unsigned bytes, uint64_t value)
{
  for (unsigned i = 0; i < 2; ++i) {
    fvd_reader_put_le (disk.data + 4096 * i + at, bytes, value);
    fvd_reader_seal_header (disk.data + 4096 * i);
  }
}

/* The layer is not written, so its image stays as it is but for the
 * profile. */
static struct nc_layer *
open_layer (void)
{
  static const struct nc_layer_options read_only = { .memory_fd = -1 };
  struct nc_layer *layer =
    nc_layer_open (&nc_format_fvd,
                   fault_dev_open (&fault, mem_dev_open (&disk, true)),
                   "test.fvd", &read_only);

  must (layer != NULL, tap_error);
  return layer;
}

static int
put (const range *v, size_t n)
{
  struct nc_layer *layer = open_layer ();
  int r = nc_fvd_profile_write (layer, v, n);

  nc_layer_close (layer);
  return r;
}

/* Whether the profile is V now. */
static bool
is (const range *v, size_t n)
{
  struct nc_layer *layer = open_layer ();
  range *now;
  size_t n_now;
  bool same = nc_fvd_profile_read (layer, &now, &n_now) == 0 &&
    n_now == n;

  for (size_t i = 0; same && i < n; ++i)
    same = now[i].offset == v[i].offset && now[i].count == v[i].count &&
      now[i].time == v[i].time;
  free (now);
  nc_layer_close (layer);
  return same;
}

/* What a check says of them. */
static unsigned
torn_halves (void)
{
  struct nc_dev *dev = mem_dev_open (&disk, false);
  struct nc_check_result result;

  must (nc_fvd_check (dev, NULL, NULL, &result) == 0 && result.errors == 0,
        "check");
  nc_dev_close (dev);
  return result.warnings;
}

/* N ranges, whole blocks, no two of them neighbours. */
static range *
some_ranges (uint64_t *seed, size_t n)
{
  range *v = calloc (n + 1, sizeof *v);
  uint64_t last_end = UINT64_MAX;

  must (v != NULL, "calloc");
  for (size_t i = 0; i < n; ++i) {
    uint64_t blk, count;

    do {
      blk = rnd_below (seed, NBLOCKS);
      count = 1 + rnd_below (seed, NBLOCKS - blk);
    } while (blk == last_end);
    last_end = blk + count;
    v[i].offset = blk * BLOCK;
    v[i].count = nc_min64 (last_end * BLOCK, SIZE) - v[i].offset;
    v[i].time = i * 10;
  }
  return v;
}

static void
test_ranges (uint64_t *seed)
{
  const size_t capacity = (area_size / 2 / 512 - 1) * 31;
  static const size_t counts[] = { 1, 30, 31, 32, 62, 63, 1000 };
  const range rough[] = {
    { 1, 1, 7 }, { BLOCK, 2 * BLOCK, 7 }, { 3 * BLOCK - 1, 2, 8 },
    { 0, 0, 8 }, { 4 * BLOCK, 1, 9 },
    { 4999 * BLOCK + 5, SIZE - 4999 * BLOCK - 5, 9 },
    { 4000 * BLOCK, UINT64_C (1) << 60, 9 }, { UINT64_C (1) << 60, 1, 9 },
  };
  const range smooth[] = {
    { 0, 3 * BLOCK, 7 }, { 2 * BLOCK, 2 * BLOCK, 8 },
    { 4 * BLOCK, BLOCK, 9 }, { 4999 * BLOCK, SIZE - 4999 * BLOCK, 9 },
    { 4000 * BLOCK, SIZE - 4000 * BLOCK, 9 },
  };
  bool good = true;
  range *v;

  ok (is (NULL, 0) && torn_halves () == 0, "a new image has no profile");
  for (size_t i = 0; i < sizeof counts / sizeof counts[0]; ++i) {
    v = some_ranges (seed, counts[i]);
    good = good && put (v, counts[i]) == 0 && is (v, counts[i]) &&
      torn_halves () == 0;
    free (v);
  }
  ok (good, "what is written is read, in the same order");
  ok (put (rough, sizeof rough / sizeof rough[0]) == 0 &&
      is (smooth, sizeof smooth / sizeof smooth[0]),
      "ranges are rounded to blocks, cut to the disk, and those of one time "
      "merged");
  v = some_ranges (seed, capacity + 10);
  ok (put (v, capacity + 10) == 0 && is (v, capacity),
      "of too many the first are kept");
  free (v);
  ok (put (NULL, 0) == 0 && is (NULL, 0), "a profile may be empty");

  v = some_ranges (seed, 3);
  v[1] = (range) { 100 * BLOCK, 100 * BLOCK, 2 };
  v[0] = (range) { 150 * BLOCK, 100 * BLOCK, 1 };
  v[2] = (range) { 50 * BLOCK, BLOCK, 3 };
  must (put (v, 3) == 0, "write");
  set_header (FVD_AT_SIZE, 8, 120 * BLOCK + 7);
  v[0] = (range) { 100 * BLOCK, 20 * BLOCK + 7, 2 };
  v[1] = v[2];
  ok (is (v, 2), "of a disk that was shrunk, what is left is read");
  set_header (FVD_AT_SIZE, 8, SIZE);
  free (v);
}

/* Write V over OLD, and lose any part of the write. */
static bool
tear (const range *old, size_t n_old, const range *v, size_t n,
      uint64_t *seed)
{
  const uint64_t size = area_size;
  uint8_t *area = disk.data + area_offset;
  NC_FREE uint8_t *before = malloc (size);
  NC_FREE uint8_t *after = malloc (size);
  bool good = true;

  must (before && after && put (old, n_old) == 0 && put (old, n_old) == 0,
        "old profile");
  memcpy (before, area, size);
  must (put (v, n) == 0, "new profile");
  memcpy (after, area, size);
  /* Neither has more sectors. */
  for (uint64_t k = 0; k <= 1 + (n_old > n ? n_old : n) / 31 + 1 && good;
       ++k) {
    memcpy (area, before, size);
    memcpy (area, after, k * 512);
    good = is (old, n_old) || is (v, n) ||
      note ("torn behind sector %u", (unsigned) k);
    memcpy (area, after, size);
    memcpy (area, before, k * 512);
    good = good && (is (old, n_old) || is (v, n) ||
                    note ("torn before sector %u", (unsigned) k));
  }
  for (unsigned i = 0; i < LESS (200) && good; ++i) {
    for (uint64_t k = 0; k < size; k += 512)
      memcpy (area + k, (rnd (seed) & 1 ? before : after) + k, 512);
    good = is (old, n_old) || is (v, n) || note ("torn anyhow");
  }
  memcpy (area, before, size);
  return good && is (old, n_old);
}

static void
test_torn (uint64_t *seed)
{
  range *a = some_ranges (seed, 400), *b = some_ranges (seed, 500);
  bool good = true;

  ok (tear (a, 400, b, 500, seed) && tear (a, 400, b, 10, seed) &&
      tear (b, 1, a, 400, seed) && tear (b, 31, a, 32, seed) &&
      tear (a, 400, NULL, 0, seed),
      "of a torn write either the old or the new profile is read");

  /* The half that counts must be durable before the other one goes. */
  for (unsigned i = 0; i < 60 && good; ++i) {
    uint64_t at = 1 + i % 3;

    fault_set (&fault, FAULT_CHANGES, 0, 0, 0);
    fault.track = true;
    must (put (a, 400) == 0, "write");
    fault_set (&fault, FAULT_CHANGES, at, 1, EIO);
    good = put (b, 500) == -1 || note ("no error at %u", (unsigned) at);
    fault_lose (&fault, &disk, LOSE_SOME, seed);
    fault_set (&fault, FAULT_CHANGES, 0, 0, 0);
    good = good && (is (a, 400) || is (b, 500) || note ("after %u", i));
  }
  ok (good, "power loss in a write that failed leaves one of them");
  ok (put (b, 500) == 0 && is (b, 500), "and it can be written again");
  free (a);
  free (b);
}

static void
test_hostile (uint64_t *seed)
{
  range *a = some_ranges (seed, 90), *b = some_ranges (seed, 80);
  uint8_t *area = disk.data + area_offset;
  bool good = true;

  must (put (a, 90) == 0 && put (b, 80) == 0, "write");
  for (uint64_t i = 0; i < area_size && good; i += STEP) {
    if (i % (area_size / 2) > 3 * 512)
      continue;
    area[i] ^= 1 << rnd_below (seed, 8);
    good = is (a, 90) || is (b, 80) || note ("byte %u", (unsigned) i);
    must (put (a, 90) == 0 && put (b, 80) == 0, "write");
  }
  ok (good, "a changed byte is never believed");
  memset (area, 0xff, area_size);
  ok (is (NULL, 0) && torn_halves () == 1, "nor is rubbish");

  /* Valid checksums over absurd numbers. */
  must (put (a, 90) == 0, "write");
  for (unsigned i = 0; i < 2; ++i) {
    const uint64_t first = i * (area_size / 2 / 512);
    uint8_t *s = area + i * (area_size / 2);

    memset (s + 4, 0xff, 12);
    fvd_reader_seal (disk.data + FVD_AT_UUID, 5, first, s);
  }
  ok (is (NULL, 0), "nor numbers that cannot be");
  set_header (FVD_AT_PROFILE, 8, 0);
  set_header (FVD_AT_PROFILE + 8, 8, 0);
  tap_clear ();
  ok (is (NULL, 0) && put (a, 90) == -1 && tap_errors == 1,
      "an image without room for a profile has none");
  free (a);
  free (b);
}

int
main (void)
{
  uint64_t seed = tap_start (600);

  fault_init (&fault);
  create ();
  test_ranges (&seed);
  test_torn (&seed);
  test_hostile (&seed);
  mem_disk_fini (&disk);
  fault_fini (&fault);
  return tap_done ();
}
