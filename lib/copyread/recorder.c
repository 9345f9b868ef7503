/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Bits that go from 0 to 1, and a list of those that did.  Who turns a bit
 * adds it to the list; so each grain comes there once. */

#include <config.h>

#include "copyread/recorder.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

typedef _Atomic (uint64_t) word;

struct nc_profile {
  uint64_t size, grain;
  size_t n_words;
  word *touched;                /* a bit a grain */
  uint64_t *named;              /* NULL: nothing to compare with */
  _Atomic (bool) is_active;     /* somebody wants to know */

  pthread_mutex_t lock;         /* guards the rest */
  struct nc_profile_stats stats;
  struct nc_profile_range *ranges;
  size_t n, room;
  uint64_t start;               /* of the first touch, ms; 0: none yet */
};

static uint64_t
milliseconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

struct nc_profile *
nc_profile_new (uint64_t size, uint32_t block_size)
{
  struct nc_profile *p = calloc (1, sizeof *p);

  if (p == NULL) {
    nc_error ("profile: %m");
    return NULL;
  }
  p->size = size;
  p->grain = nc_max64 (block_size, NC_PROFILE_GRAIN);
  while (nc_div_up (size, p->grain) > NC_PROFILE_GRAINS)
    p->grain *= 2;
  p->n_words = nc_div_up (nc_div_up (size, p->grain), 64);
  p->touched = calloc (p->n_words + 1, sizeof *p->touched);
  if (p->touched == NULL) {
    nc_error ("profile: %m");
    free (p);
    return NULL;
  }
  pthread_mutex_init (&p->lock, NULL);
  return p;
}

void
nc_profile_free (struct nc_profile *p)
{
  if (p == NULL)
    return;
  pthread_mutex_destroy (&p->lock);
  free (p->ranges);
  free (p->named);
  free (p->touched);
  free (p);
}

/* Bits FIRST to LAST of word W. */
static uint64_t
mask_of (uint64_t w, uint64_t first, uint64_t last)
{
  uint64_t mask = UINT64_MAX;

  if (first / 64 == w)
    mask &= UINT64_MAX << first % 64;
  if (last / 64 == w)
    mask &= UINT64_MAX >> (63 - last % 64);
  return mask;
}

static bool
make_room_locked (struct nc_profile *p)
{
  const size_t room = p->room ? p->room * 2 : 256;
  void *ranges;

  if (p->n < p->room)
    return true;
  if (p->n == NC_PROFILE_RANGES)
    return false;
  ranges = realloc (p->ranges, room * sizeof *p->ranges);
  if (ranges == NULL)
    return false;
  p->ranges = ranges;
  p->room = room;
  return true;
}

/* Grains FIRST to END - 1 were read for the first time. */
static void
record_locked (struct nc_profile *p, uint64_t first, uint64_t end)
{
  const uint64_t offset = first * p->grain;
  const uint64_t count = nc_min64 (end * p->grain, p->size) - offset;
  struct nc_profile_range *last = p->n ? &p->ranges[p->n - 1] : NULL;
  const uint64_t t = milliseconds ();

  if (p->start == 0)
    p->start = t;
  if (last && last->offset + last->count == offset &&
      t - p->start - last->time < NC_PROFILE_TOGETHER)
    last->count += count;
  else if (make_room_locked (p))
    p->ranges[p->n++] = (struct nc_profile_range) {
      .offset = offset, .count = count,
      .time = (uint32_t) nc_min64 (t - p->start, UINT32_MAX),
    };
  else {
    p->stats.lost++;
    return;
  }
  p->stats.bytes += count;
}

static uint64_t
bytes_of (const struct nc_profile *p, uint64_t first, uint64_t end)
{
  return nc_min64 (end * p->grain, p->size) - first * p->grain;
}

/* The bits NEW of word W are new. */
static void
note (struct nc_profile *p, uint64_t w, uint64_t new)
{
  const uint64_t named = p->named ? p->named[w] : 0;

  NC_LOCKED (&p->lock);
  for (unsigned i = 0, end; i < 64; i = end) {
    const uint64_t bit = UINT64_C (1) << i;

    end = i + 1;
    if (!(new & bit))
      continue;
    while (end < 64 && (new >> end & 1) && (named >> end & 1) ==
           (named >> i & 1))
      ++end;
    p->stats.touched += bytes_of (p, w * 64 + i, w * 64 + end);
    if (named & bit)
      p->stats.hit += bytes_of (p, w * 64 + i, w * 64 + end);
    if (p->stats.is_recording)
      record_locked (p, w * 64 + i, w * 64 + end);
  }
}

void
nc_profile_touch (struct nc_profile *p, uint64_t offset, uint64_t count)
{
  const uint64_t first = offset / p->grain;
  const uint64_t last = (offset + count - 1) / p->grain;

  if (!atomic_load_explicit (&p->is_active, memory_order_relaxed))
    return;
  for (uint64_t w = first / 64; w <= last / 64; ++w) {
    const uint64_t mask = mask_of (w, first, last);
    uint64_t new = mask & ~atomic_load_explicit (&p->touched[w],
                                                 memory_order_relaxed);

    if (new == 0)
      continue;
    new = mask & ~atomic_fetch_or_explicit (&p->touched[w], mask,
                                            memory_order_relaxed);
    if (new)
      note (p, w, new);
  }
}

static void
set_named (struct nc_profile *p, const struct nc_profile_range *range)
{
  uint64_t first, last;

  if (range->offset >= p->size || range->count == 0)
    return;
  first = range->offset / p->grain;
  last = (range->offset + nc_min64 (range->count, p->size - range->offset) -
          1) / p->grain;
  for (uint64_t i = first; i <= last; ++i) {
    uint64_t *w = &p->named[i / 64];
    const uint64_t bit = UINT64_C (1) << i % 64;

    if (!(*w & bit))
      p->stats.named += bytes_of (p, i, i + 1);
    *w |= bit;
  }
}

int
nc_profile_compare (struct nc_profile *p,
                    const struct nc_profile_range *ranges, size_t n)
{
  NC_LOCKED (&p->lock);
  p->named = calloc (p->n_words + 1, sizeof *p->named);
  if (p->named == NULL) {
    nc_error ("profile: %m");
    return -1;
  }
  for (size_t i = 0; i < n; ++i)
    set_named (p, &ranges[i]);
  p->is_active = true;
  return 0;
}

void
nc_profile_start (struct nc_profile *p)
{
  NC_LOCKED (&p->lock);
  p->n = 0;
  p->start = 0;
  p->stats = (struct nc_profile_stats) {
    .is_recording = true, .named = p->stats.named,
  };
  for (size_t i = 0; i < p->n_words; ++i)
    atomic_store_explicit (&p->touched[i], 0, memory_order_relaxed);
  p->is_active = true;
}

int
nc_profile_stop (struct nc_profile *p, struct nc_profile_range **ranges,
                 size_t *n)
{
  NC_LOCKED (&p->lock);
  if (!p->stats.is_recording) {
    errno = ENOENT;
    return -1;
  }
  p->stats.is_recording = false;
  p->is_active = p->named != NULL;
  *ranges = p->ranges;
  *n = p->n;
  p->ranges = NULL;
  p->n = p->room = 0;
  return 0;
}

void
nc_profile_get (struct nc_profile *p, struct nc_profile_stats *stats)
{
  NC_LOCKED (&p->lock);
  *stats = p->stats;
  if (p->stats.is_recording)
    stats->ranges = p->n;
}
