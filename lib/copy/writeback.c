/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The keeper has what is stored written out step by step, and what has passed
 * some steps ago, which should be in storage by then, leaves the memory.  A
 * second after something was stored, or when enough has come together, it has
 * it flushed, which is another thread's work; meanwhile it goes on, so that
 * storage is never without work.  What had not left the memory leaves it behind
 * the flush.  That something fails is reported below, and the image fails every
 * later flush, also that with which a job ends.
 *
 * The keeper stands back while those who store do.  Who flushes does not: a
 * guest that flushes shares the flush, and would wait for it. */

#include <config.h>

#include "copy/writeback.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain/chain.h"
#include "util/checked.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/standback.h"

#define PERIOD NC_SECOND
#define RANGES 256              /* known at a time; others stay in memory */
#define RANGE_MAX (UINT64_C (4) << 20)  /* bytes */
#define PASSING (UINT64_C (16) << 20)   /* on its way to storage */

struct range {
  uint64_t offset, end;         /* bytes of the disk */
};

struct ranges {
  struct range range[RANGES];
  unsigned n;
};

struct nc_flusher {
  struct nc_export *disk;
  pthread_t keeper, flushing;
  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t changed;       /* for the keeper */
  pthread_cond_t wanted;        /* a flush is, or none will be any more */
  bool is_wanted;
  uint64_t stored;              /* bytes since the last flush began */
  uint64_t written_out;         /* of them, or as good as */
  uint64_t due;                 /* when to flush; 0: nothing to flush, or not
                                   before the flush under way has ended */
  struct ranges passed;         /* since the last flush began, in order */
  unsigned n_tried;             /* of them: they should have left the memory */
  uint64_t untried;             /* bytes of the others */
  struct ranges flushed;        /* durable when the flush has ended well */
  bool stands_back;             /* who stored last */
  bool is_ending;
  bool has_failed;              /* a flush: memory may have what storage lacks,
                                   and keeps it */
};

static bool
has_step_locked (const struct nc_flusher *f)
{
  return f->stored - f->written_out >= NC_FLUSHER_STEP;
}

/* Whether something was flushed that has not left the memory. */
static bool
may_go_locked (const struct nc_flusher *f)
{
  return f->flushed.n > 0 && !f->is_wanted;
}

/* The ranges that should be in storage now go to GONE. */
static void
take_old_locked (struct nc_flusher *f, struct ranges *gone)
{
  while (f->n_tried < f->passed.n && f->untried > PASSING) {
    const struct range *range = &f->passed.range[f->n_tried++];

    f->untried -= range->end - range->offset;
    gone->range[gone->n++] = *range;
  }
}

static void
evict (struct nc_flusher *f, const struct ranges *gone)
{
  for (unsigned i = 0; i < gone->n; ++i)
    nc_export_evict (f->disk, gone->range[i].offset,
                     gone->range[i].end - gone->range[i].offset);
}

/* Write out and evict, as far as either is to be done.  What no flush has
 * confirmed leaves the memory only up to what may be stored between two. */
static void
step_locked (struct nc_flusher *f)
{
  const bool stands_back = f->stands_back, write_out = has_step_locked (f);
  struct ranges gone = { .n = 0 };

  if (may_go_locked (f)) {
    gone = f->flushed;
    f->flushed.n = 0;
  }
  if (write_out) {
    f->written_out = f->stored;
    if (gone.n == 0 && f->stored < NC_FLUSHER_BYTES)
      take_old_locked (f, &gone);
  }
  if (f->has_failed)
    gone.n = 0;
  pthread_mutex_unlock (&f->lock);
  nc_stand_back (stands_back);
  if (write_out)
    nc_export_write_out (f->disk);
  evict (f, &gone);
  pthread_mutex_lock (&f->lock);
}

/* Have all that was stored until now flushed. */
static void
flush_locked (struct nc_flusher *f)
{
  f->stored = f->written_out = f->due = 0;
  f->flushed = f->passed;
  f->passed.n = f->n_tried = 0;
  f->untried = 0;
  f->is_wanted = true;
  pthread_cond_signal (&f->wanted);
}

/* Wait for something to happen, or until it is time to flush. */
static void
wait_locked (struct nc_flusher *f)
{
  struct timespec ts;

  if (f->due == 0) {
    pthread_cond_wait (&f->changed, &f->lock);
    return;
  }
  ts = (struct timespec) { .tv_sec = f->due / NC_SECOND,
                           .tv_nsec = f->due % NC_SECOND };
  pthread_cond_timedwait (&f->changed, &f->lock, &ts);
}

static bool
must_flush_locked (const struct nc_flusher *f)
{
  return f->due != 0 && !may_go_locked (f) &&
    (f->stored >= NC_FLUSHER_BYTES || nc_now () >= f->due);
}

static void *
keeper (void *opaque)
{
  struct nc_flusher *f = opaque;

  NC_LOCKED (&f->lock);
  while (!f->is_ending) {
    if (f->due == 0 && f->stored > 0 && !f->is_wanted)
      f->due = nc_now () + PERIOD;
    if (must_flush_locked (f))
      flush_locked (f);
    else if (has_step_locked (f) || may_go_locked (f))
      step_locked (f);
    else
      wait_locked (f);
  }
  return NULL;
}

static void *
flushing (void *opaque)
{
  struct nc_flusher *f = opaque;
  int r;

  NC_LOCKED (&f->lock);
  for (;;) {
    while (!f->is_wanted && !f->is_ending)
      pthread_cond_wait (&f->wanted, &f->lock);
    if (f->is_ending)
      return NULL;
    pthread_mutex_unlock (&f->lock);
    r = nc_export_flush (f->disk);
    pthread_mutex_lock (&f->lock);
    f->has_failed |= r == -1;
    f->is_wanted = false;
    pthread_cond_signal (&f->changed);
  }
}

static void
end (struct nc_flusher *f)
{
  NC_LOCKED (&f->lock);
  f->is_ending = true;
  pthread_cond_signal (&f->changed);
  pthread_cond_signal (&f->wanted);
}

static void
destroy (struct nc_flusher *f)
{
  pthread_cond_destroy (&f->wanted);
  pthread_cond_destroy (&f->changed);
  pthread_mutex_destroy (&f->lock);
  free (f);
}

/* Returns 0, or an errno. */
static int
start (struct nc_flusher *f)
{
  int err = pthread_create (&f->flushing, NULL, flushing, f);

  if (err)
    return err;
  err = pthread_create (&f->keeper, NULL, keeper, f);
  if (err) {
    end (f);
    pthread_join (f->flushing, NULL);
  }
  return err;
}

struct nc_flusher *
nc_flusher_new (struct nc_export *disk)
{
  struct nc_flusher *f = calloc (1, sizeof *f);
  pthread_condattr_t attr;
  int err;

  if (f == NULL) {
    nc_error ("flusher: %m");
    return NULL;
  }
  f->disk = disk;
  pthread_mutex_init (&f->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&f->changed, &attr);
  pthread_condattr_destroy (&attr);
  pthread_cond_init (&f->wanted, NULL);
  err = start (f);
  if (err == 0)
    return f;
  errno = err;
  nc_error ("thread of a flusher: %m");
  destroy (f);
  return NULL;
}

static void
note_locked (struct nc_flusher *f, uint64_t count)
{
  const bool is_first = f->stored == 0;

  f->stored += count;
  f->stands_back = nc_stands_back ();
  /* Those in between the keeper need not see. */
  if (is_first || has_step_locked (f))
    pthread_cond_signal (&f->changed);
}

void
nc_flusher_note (struct nc_flusher *f, uint64_t count)
{
  NC_LOCKED (&f->lock);
  note_locked (f, count);
}

static bool
fit_together (const struct range *a, const struct range *b)
{
  return a->end == b->offset && b->end - a->offset <= RANGE_MAX;
}

static void
ranges_remove (struct ranges *ranges, unsigned i)
{
  ranges->n--;
  memmove (ranges->range + i, ranges->range + i + 1,
           (ranges->n - i) * sizeof *ranges->range);
}

static void
ranges_insert (struct ranges *ranges, unsigned i, struct range range)
{
  memmove (ranges->range + i + 1, ranges->range + i,
           (ranges->n - i) * sizeof *ranges->range);
  ranges->range[i] = range;
  ranges->n++;
}

/* Pieces come nearly in order.  So that they make few ranges, and few calls,
 * one that closes a gap joins its neighbours. */
static void
pass_locked (struct nc_flusher *f, struct range range)
{
  const uint64_t count = range.end - range.offset;
  unsigned at = RANGES;         /* where the oldest of them was */

  for (unsigned i = f->n_tried; i < f->passed.n;) {
    const struct range *other = &f->passed.range[i];

    if (fit_together (other, &range))
      range.offset = other->offset;
    else if (fit_together (&range, other))
      range.end = other->end;
    else {
      ++i;
      continue;
    }
    at = nc_min64 (at, i);
    ranges_remove (&f->passed, i);
  }
  if (f->passed.n == RANGES)
    return;
  ranges_insert (&f->passed, nc_min64 (at, f->passed.n), range);
  f->untried += count;
}

void
nc_flusher_pass (struct nc_flusher *f, uint64_t offset, uint64_t count)
{
  NC_LOCKED (&f->lock);
  pass_locked (f, (struct range) { offset, offset + count });
  note_locked (f, count);
}

/* Release it; when all that has passed is durable, it leaves the memory. */
static void
release (struct nc_flusher *f, bool is_durable)
{
  end (f);
  pthread_join (f->keeper, NULL);
  pthread_join (f->flushing, NULL);
  if (is_durable && !f->has_failed) {
    evict (f, &f->flushed);
    evict (f, &f->passed);
  }
  destroy (f);
}

void
nc_flusher_finish (struct nc_flusher *f)
{
  if (f)
    release (f, true);
}

void
nc_flusher_free (struct nc_flusher *f)
{
  if (f)
    release (f, false);
}
