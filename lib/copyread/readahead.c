/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What tells a sequential reader from a random one: a read near the place of a
 * stream belongs to it, but only streams of which three quarters were read get
 * a window.  Random reads make one stream each, which is forgotten when its
 * entry is needed. */

#include <config.h>

#include "copyread/readahead.h"

#include <stdatomic.h>
#include <stddef.h>

#include "util/checked.h"

/* Where pieces end, so that two streams over one range ask for the same. */
#define ALIGN (UINT64_C (64) << 10)

#define FIRST_WINDOW 4          /* reads */
#define SOON (UINT64_C (8) << 20)

void
nc_ahead_init (struct nc_ahead *ahead, uint64_t size, uint64_t max)
{
  *ahead = (struct nc_ahead) { .size = size, .max = max };
}

static uint64_t
distance (uint64_t a, uint64_t b)
{
  return a > b ? a - b : b - a;
}

/* How far from the beginning of disk or range. */
static uint64_t
minus (uint64_t a, uint64_t b)
{
  return a > b ? a - b : 0;
}

/* How much to ask for next in STREAM. */
static uint64_t
piece_of (const struct nc_ahead *ahead, const struct nc_ahead_stream *stream)
{
  const uint64_t quarter = stream->window / 4, asked = stream->asked;
  uint64_t piece = nc_min64 (nc_max64 (quarter, NC_AHEAD_PIECE_MIN),
                             NC_AHEAD_PIECE_MAX);

  piece = nc_round_down (asked + piece, ALIGN) - asked;
  return nc_min64 (piece, minus (ahead->size, asked));
}

/* More may be asked for when the place is there: a piece fits into the window
 * then. */
static void
set_due (const struct nc_ahead *ahead, struct nc_ahead_stream *stream)
{
  stream->due = minus (stream->asked + piece_of (ahead, stream),
                       stream->window);
}

static void
forget (struct nc_ahead *ahead, struct nc_ahead_stream *stream)
{
  if (stream->window)
    ahead->n_windows--;
  stream->reads = 0;
  stream->window = 0;
  stream->due = 0;
  stream->asked = 0;
}

/* The range was read in STREAM. */
static void
move_on (struct nc_ahead_stream *stream, uint64_t offset, uint64_t count,
         uint64_t now)
{
  stream->place = nc_max64 (stream->place, offset + count);
  stream->seen += count;
  stream->used = now;
}

static void
set_window (struct nc_ahead *ahead, struct nc_ahead_stream *stream,
            uint64_t window)
{
  if (stream->window == 0) {
    ahead->n_windows++;
    stream->grown = stream->place;
    stream->asked = stream->place;
  }
  stream->window = nc_min64 (window, ahead->max);
  set_due (ahead, stream);
}

/* How large a window may be, so that not much was asked for in vain if the
 * reader goes no further: what it has read, later a sixteenth of that. */
static uint64_t
limit_of (const struct nc_ahead_stream *stream)
{
  return nc_max64 (nc_min64 (stream->seen, SOON), stream->seen / 16);
}

/* The reader was faster, at OFFSET. */
static void
grow (struct nc_ahead *ahead, struct nc_ahead_stream *stream,
      uint64_t offset)
{
  if (offset < stream->grown)
    return;
  stream->grown = stream->asked;
  set_window (ahead, stream,
              nc_max64 (stream->window,
                        nc_min64 (2 * stream->window, limit_of (stream))));
}

/* The stream that the byte at OFFSET belongs to.  Requests that are under way
 * together are at most a window behind its place. */
static struct nc_ahead_stream *
find_stream (struct nc_ahead *ahead, uint64_t offset, uint64_t slack)
{
  for (size_t i = 0; i < NC_AHEAD_STREAMS; ++i) {
    struct nc_ahead_stream *stream = &ahead->stream[i];

    if (stream->reads > 0 &&
        (distance (offset, stream->place) <= slack ||
         (offset < stream->asked &&
          offset >= minus (stream->due, stream->window))))
      return stream;
  }
  return NULL;
}

/* The entry to be used anew: one that is free, or the oldest of those without
 * a window, or the oldest. */
static struct nc_ahead_stream *
oldest_stream (struct nc_ahead *ahead)
{
  struct nc_ahead_stream *best = &ahead->stream[0];

  for (size_t i = 0; i < NC_AHEAD_STREAMS; ++i) {
    struct nc_ahead_stream *stream = &ahead->stream[i];

    if (stream->reads == 0)
      return stream;
    if (!stream->window != !best->window
        ? stream->window == 0 : stream->used < best->used)
      best = stream;
  }
  return best;
}

bool
nc_ahead_read (struct nc_ahead *ahead, uint64_t offset, uint64_t count,
               uint64_t slack, uint64_t now)
{
  struct nc_ahead_stream *stream = find_stream (ahead, offset, slack);

  if (ahead->max == 0)
    return false;
  if (stream == NULL) {
    stream = oldest_stream (ahead);
    forget (ahead, stream);
    stream->start = stream->place = offset;
    stream->seen = 0;
  }
  stream->reads++;
  stream->start = nc_min64 (stream->start, offset);
  move_on (stream, offset, count, now);
  /* It has overtaken what was asked for. */
  if (stream->window && stream->asked < stream->place) {
    stream->asked = stream->place;
    set_due (ahead, stream);
    grow (ahead, stream, offset);
  }
  if (stream->window == 0 && stream->reads >= NC_AHEAD_READS &&
      stream->seen >= NC_AHEAD_SEEN &&
      stream->seen >= (stream->place - stream->start) / 4 * 3)
    set_window (ahead, stream,
                nc_max64 (FIRST_WINDOW * count, 2 * NC_AHEAD_PIECE_MIN));
  return stream->window > 0;
}

bool
nc_ahead_is_due (struct nc_ahead *ahead, uint64_t offset, uint64_t count)
{
  for (size_t i = 0; i < NC_AHEAD_STREAMS; ++i) {
    struct nc_ahead_stream *stream = &ahead->stream[i];

    if (offset < atomic_load_explicit (&stream->asked,
                                       memory_order_relaxed) &&
        offset + count >= atomic_load_explicit (&stream->due,
                                                memory_order_relaxed))
      return true;
  }
  return false;
}

void
nc_ahead_passed (struct nc_ahead *ahead, uint64_t offset, uint64_t count,
                 uint64_t now)
{
  struct nc_ahead_stream *stream = find_stream (ahead, offset, 0);

  if (stream && stream->window)
    move_on (stream, offset, count, now);
}

void
nc_ahead_waits (struct nc_ahead *ahead, uint64_t offset)
{
  struct nc_ahead_stream *stream = find_stream (ahead, offset, 0);

  if (stream && stream->window)
    grow (ahead, stream, offset);
}

bool
nc_ahead_next (struct nc_ahead *ahead, uint64_t *offset, uint64_t *count)
{
  for (size_t i = 0; i < NC_AHEAD_STREAMS; ++i) {
    const unsigned turn = (ahead->turn + i) % NC_AHEAD_STREAMS;
    struct nc_ahead_stream *stream = &ahead->stream[turn];

    if (stream->window == 0 || stream->asked >= ahead->size ||
        stream->place < stream->due)
      continue;
    *offset = stream->asked;
    *count = piece_of (ahead, stream);
    stream->asked = *offset + *count;
    set_due (ahead, stream);
    ahead->turn = turn + 1;
    return true;
  }
  return false;
}

void
nc_ahead_end (struct nc_ahead *ahead, uint64_t now, bool all)
{
  for (size_t i = 0; i < NC_AHEAD_STREAMS; ++i) {
    struct nc_ahead_stream *stream = &ahead->stream[i];

    if (stream->reads > 0 &&
        (all || minus (now, stream->used) > NC_AHEAD_IDLE))
      forget (ahead, stream);
  }
}
