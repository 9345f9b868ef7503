/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The fuzz targets in the ordinary build: fed with their seeds and with what
 * fuzzing once found (fuzz/regressions/TARGET).  A target that finds a fault
 * aborts, after the line that names the input.  And the two kinds of damage
 * that can be tried out completely: a file cut off at each sector, and each
 * byte of the metadata changed. */

#include <config.h>

#include "tap.h"

#include <dirent.h>

#include "format/format.h"
#include "format/layer.h"
#include "fuzz.h"

enum { INPUT_MAX = 1 << 20 };

static const struct fuzz_target *target;

static void
feed (void *opaque, const char *name, const uint8_t *data, size_t size)
{
  /* Of its own size, so that a sanitizer sees who reads past its end. */
  uint8_t *copy = malloc (size ? size : 1);

  must (copy != NULL, "memory");
  memcpy (copy, data, size);
  printf ("# %s: %s\n", target->name, name);
  fflush (stdout);
  target->run (copy, size);
  free (copy);
  ++*(unsigned *) opaque;
}

static void
feed_seed (void *opaque, const char *name, const uint8_t *data, size_t size)
{
  /* Whole, and cut at some places. */
  feed (opaque, name, data, size);
  for (size_t n = 0; n < size; n += 1 + size / 16)
    feed (opaque, name, data, n);
}

static void
feed_file (const char *dir, const char *name, unsigned *n)
{
  static uint8_t data[INPUT_MAX];
  char *path;
  FILE *fp;
  size_t size;

  must (asprintf (&path, "%s/%s", dir, name) > 0, "memory");
  fp = fopen (path, "r");
  must (fp != NULL, path);
  size = fread (data, 1, sizeof data, fp);
  must (!ferror (fp) && fclose (fp) == 0, path);
  feed (n, path, data, size);
  free (path);
}

static void
feed_regressions (const char *top, unsigned *n)
{
  const struct dirent *entry;
  char *dir;
  DIR *d;

  must (asprintf (&dir, "%s/fuzz/regressions/%s", top, target->name) > 0,
        "memory");
  d = opendir (dir);
  must (d != NULL || errno == ENOENT, dir);
  while (d && (entry = readdir (d)) != NULL)
    if (entry->d_name[0] != '.')
      feed_file (dir, entry->d_name, n);
  if (d)
    closedir (d);
  free (dir);
}

/* Which blocks the image has: a byte a block.  Returns -1 if it is refused,
 * at open or when a bit is read. */
static int
read_bits (struct mem_disk *disk, uint8_t *bits)
{
  const struct nc_layer_options opts = { .memory_fd = -1 };
  struct nc_layer *l = nc_layer_open (&nc_format_fvd,
                                      mem_dev_open (disk, false), "image",
                                      &opts);
  int r = l == NULL ? -1 : 0;

  memset (bits, 0, FUZZ_NBLOCKS);
  for (uint64_t b = 0; r == 0 && b < FUZZ_NBLOCKS; ++b) {
    bool set;
    uint64_t run;

    r = l->format->run (l, b * FUZZ_BLOCK, 1, &set, &run);
    bits[b] = r == 0 && set;
  }
  nc_layer_close (l);
  return r;
}

static void
test_truncated (enum fuzz_image_kind kind)
{
  uint8_t bits[FUZZ_NBLOCKS];
  const uint64_t size = fuzz_image_new (kind)->size;
  unsigned wrong = 0, n = 0;

  /* Each sector of the metadata, then some of the data, and its end. */
  for (uint64_t at = 0; at < size; ++n) {
    struct mem_disk *disk = fuzz_image_new (kind);

    disk->size = at;
    if (read_bits (disk, bits) == 0)
      wrong++;
    if (n % 32 == 0)
      fuzz_exercise (disk, true, true);
    at += at < 1 << 16 ? 512 : at + (1 << 16) < size ? 1 << 16
      : size - at > 512 ? 512 : 1;
  }
  ok (wrong == 0 && n > 700, "%s image cut off at %u places is refused",
      kind == FUZZ_CLEAN ? "a clean" : "an unclean", n);
}

static void
test_flipped (enum fuzz_image_kind kind, uint64_t *seed)
{
  static const struct { const char *what; unsigned at, count; } t[] = {
    { "header", 0, 8192 }, { "summary", FUZZ_SUMMARY_AT, 512 },
    { "bitmap", FUZZ_BITMAP_AT, FUZZ_PAGES * 512 },
    { "journal", FUZZ_JOURNAL_AT, 5 * 512 },
  };
  static uint8_t good[FUZZ_NBLOCKS], bits[FUZZ_NBLOCKS];

  must (read_bits (fuzz_image_new (kind), good) == 0, "a sound image");
  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i) {
    unsigned refused = 0, wrong = 0;

    for (unsigned at = t[i].at; at < t[i].at + t[i].count; ++at) {
      struct mem_disk *disk = fuzz_image_new (kind);

      disk->data[at] ^= 1u << rnd_below (seed, 8);
      if (read_bits (disk, bits) == -1)
        refused++;
      else if (memcmp (good, bits, sizeof bits) != 0)
        wrong++;
    }
    ok (wrong == 0, "%s image: with a bit of the %s flipped, in each of its "
        "%u bytes, it is refused (%u) or read rightly",
        kind == FUZZ_CLEAN ? "a clean" : "an unclean", t[i].what, t[i].count,
        refused);
  }
}

int
main (void)
{
  const char *top = getenv ("top_srcdir");

  uint64_t seed = tap_start (300);

  fuzz_start ();
  must (top != NULL, "top_srcdir");
  for (size_t i = 0; fuzz_targets[i]; ++i) {
    unsigned seeds = 0, found = 0;

    target = fuzz_targets[i];
    target->seeds (feed_seed, &seeds);
    feed_regressions (top, &found);
    ok (seeds > 0, "%s: %u seeds and %u findings do no harm",
        target->name, seeds, found);
  }
  test_truncated (FUZZ_CLEAN);
  test_truncated (FUZZ_UNCLEAN);
  test_flipped (FUZZ_CLEAN, &seed);
  test_flipped (FUZZ_UNCLEAN, &seed);
  return tap_done ();
}
