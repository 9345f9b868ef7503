/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The fuzz targets in the ordinary build: fed with their seeds and with what
 * fuzzing once found (fuzz/regressions/TARGET).  A target that finds a fault
 * aborts, after the line that names the input. */

#include <config.h>

#include "tap.h"

#include <dirent.h>

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

int
main (void)
{
  const char *top = getenv ("top_srcdir");

  tap_start (300);
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
  return tap_done ();
}
