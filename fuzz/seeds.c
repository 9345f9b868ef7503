/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "seeds DIR": write the inputs that each target starts from to
 * DIR/TARGET/.  They are made from images that the library has just made, so
 * none is kept in the source. */

#include <config.h>

#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static const char *where, *target;

static void
write_seed (void *opaque, const char *name, const uint8_t *data,
            size_t size)
{
  unsigned *n = opaque;
  char *path;
  FILE *fp;

  fuzz_must (asprintf (&path, "%s/%s/seed-%u-%s", where, target, ++*n,
                       name) > 0, "memory");
  fp = fopen (path, "w");
  if (fp == NULL || fwrite (data, 1, size, fp) != size || fclose (fp) != 0) {
    perror (path);
    exit (1);
  }
  free (path);
}

static void
make_dir (const char *path)
{
  if (mkdir (path, 0777) == -1 && errno != EEXIST) {
    perror (path);
    exit (1);
  }
}

int
main (int argc, char *argv[])
{
  if (argc != 2) {
    fprintf (stderr, "usage: seeds DIR\n");
    return 2;
  }
  fuzz_start ();
  where = argv[1];
  make_dir (where);
  for (size_t i = 0; fuzz_targets[i]; ++i) {
    unsigned n = 0;
    char *path;

    target = fuzz_targets[i]->name;
    fuzz_must (asprintf (&path, "%s/%s", where, target) > 0, "memory");
    make_dir (path);
    fuzz_targets[i]->seeds (write_seed, &n);
    free (path);
  }
  return 0;
}
