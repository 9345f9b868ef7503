/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Cells of a slice of the disk and a slice of the time.  How dark one is goes
 * with the logarithm of its bytes, so that a few reads are seen beside many.
 */

#include <config.h>

#include "timeline.h"

#include <inttypes.h>
#include <stdio.h>

#include "tools.h"
#include "util/checked.h"

#define ROWS 16
#define COLUMNS_MAX 128
#define OFFSET_WIDTH 12         /* at the left, and the frame */
#define FRAME_WIDTH 4
#define ROW_SIZE_MIN 65536

static const char shades[] = " .:-=+*%#";
#define DARKEST (sizeof shades - 2)

struct timeline {
  uint64_t bytes[ROWS][COLUMNS_MAX];
  uint64_t row_size, time;      /* bytes of a row, ms of all columns */
  unsigned rows, columns;
  uint64_t most;                /* bytes of a cell */
};

const char *
time_text (uint64_t ms, char buf[TIME_TEXT])
{
  if (ms < 1000)
    snprintf (buf, TIME_TEXT, "%" PRIu64 " ms", ms);
  else
    snprintf (buf, TIME_TEXT, "%" PRIu64 ".%" PRIu64 " s", ms / 1000,
              ms % 1000 / 100);
  return buf;
}

static void
add (struct timeline *t, const struct nc_profile_range *range)
{
  const unsigned column = range->time * (uint64_t) t->columns / t->time;
  uint64_t offset = range->offset, left = range->count, n;

  for (; left > 0; offset += n, left -= n) {
    uint64_t *cell = &t->bytes[offset / t->row_size][column];

    n = nc_min64 (left, t->row_size - offset % t->row_size);
    *cell += n;
    t->most = nc_max64 (t->most, *cell);
  }
}

static unsigned
log2_of (uint64_t n)
{
  return n ? 63 - __builtin_clzll (n) : 0;
}

/* The darkest cell, and seven halvings of it. */
static char
shade (const struct timeline *t, uint64_t bytes)
{
  const unsigned below = log2_of (t->most) - log2_of (bytes);

  if (bytes == 0)
    return shades[0];
  return shades[below < DARKEST ? DARKEST - below : 1];
}

static void
print_row (const struct timeline *t, unsigned row)
{
  char offset[SIZE_TEXT];

  printf ("%*s |", OFFSET_WIDTH,
          row == 0 ? "0" : size_text (row * t->row_size, offset));
  for (unsigned i = 0; i < t->columns; ++i)
    putchar (shade (t, t->bytes[row][i]));
  puts ("|");
}

void
timeline_print (const struct nc_profile_range *ranges, size_t n,
                uint64_t size, int width)
{
  struct timeline t = { .row_size = ROW_SIZE_MIN };
  char end[TIME_TEXT];

  width -= OFFSET_WIDTH + FRAME_WIDTH;
  t.columns = width < 16 ? 16 : width > COLUMNS_MAX ? COLUMNS_MAX : width;
  while (nc_div_up (size, t.row_size) > ROWS)
    t.row_size *= 2;
  t.rows = nc_div_up (size, t.row_size);
  for (size_t i = 0; i < n; ++i)
    t.time = nc_max64 (t.time, ranges[i].time);
  t.time++;
  for (size_t i = 0; i < n; ++i)
    add (&t, &ranges[i]);
  for (unsigned i = 0; i < t.rows; ++i)
    print_row (&t, i);
  printf ("%*s  0%*s\n", OFFSET_WIDTH, "", (int) t.columns - 1,
          time_text (t.time - 1, end));
}
