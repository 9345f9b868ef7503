/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A prefetch profile as text.  Input: the file.
 *
 * What must hold: it is refused, or its ranges lie inside the disk, and what
 * is written of it is read as the same. */

#include <config.h>

#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image/profile-text.h"
#include "util/checked.h"

static int
read_text (const void *data, size_t size, struct nc_profile_text *text)
{
  FILE *fp = fmemopen ((void *) data, size, "r");
  int r;

  fuzz_must (fp != NULL, "memory is a file");
  r = nc_profile_text_read (fp, "file", text);
  fclose (fp);
  return r;
}

static void
check_again (const struct nc_profile_text *text)
{
  struct nc_profile_text again;
  char *data = NULL;
  size_t size;
  FILE *fp = open_memstream (&data, &size);

  fuzz_must (fp != NULL, "a file is memory");
  nc_profile_text_write (fp, text);
  fclose (fp);
  fuzz_must (read_text (data, size, &again) == 0 && again.n == text->n &&
             again.size == text->size && strcmp (again.base, text->base) == 0,
             "what is written is read");
  for (size_t i = 0; i < text->n; ++i) {
    const struct nc_profile_range *r = &text->ranges[i];

    fuzz_must (r->count > 0 &&
               nc_range_within (r->offset, r->count, text->size),
               "ranges lie inside the disk");
    fuzz_must (again.ranges[i].offset == r->offset &&
               again.ranges[i].count == r->count &&
               again.ranges[i].time == r->time, "as they were");
  }
  nc_profile_text_free (&again);
  free (data);
}

static void
run (const uint8_t *data, size_t size)
{
  struct nc_profile_text text;

  if (size == 0)
    return;
  if (read_text (data, size, &text) == 0)
    check_again (&text);
  nc_profile_text_free (&text);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  static const struct { const char *name, *input; } t[] = {
    { "none", "nbdchain-profile 1\nsize 4096\n" },
    { "two", "nbdchain-profile 1\nsize 1048576\n"
      "base 6a8f4c1e-3b60-4a4e-9d2f-0d5f7a3c9b11\n# a comment\n\n"
      "0 0 16384\n4294967295 1048575 1\n" },
    { "outside", "nbdchain-profile 1\nsize 9\n0 5 5\n" },
  };

  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i)
    save (opaque, t[i].name, (const uint8_t *) t[i].input,
          strlen (t[i].input));
}

const struct fuzz_target fuzz_profile = { "profile", run, seeds };
