/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The keeper waits until something was stored, then until a second has passed
 * since or enough has come together, has it flushed, and starts over.  Each
 * step on the way there is written out, and what has passed some steps ago,
 * which should be in storage by then, leaves the memory; what was not leaves it
 * behind the flush.  That something fails is reported below, and the image fails
 * every later flush, also that with which a job ends.
 *
 * The keeper stands back while those who store do.  The flush itself is another
 * thread's, which does not: a guest that flushes shares it, and would wait for
 * it. */

#include <config.h>

#include "job/flusher.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain.h"
#include "checked.h"
#include "clock.h"
#include "report.h"
#include "scope.h"
#include "standback.h"

#define PERIOD NC_SECOND
#define RANGES 256              /* known at a time; others stay in memory */
#define RANGE_MAX (UINT64_C (4) << 20)  /* bytes */
#define PASSING (UINT64_C (24) << 20)   /* on its way to storage */

struct range {
  uint64_t offset, end;         /* bytes of the disk */
};

struct nc_flusher {
  struct nc_export *disk;
  pthread_t keeper, flushing;
  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t changed;       /* for the keeper */
  pthread_cond_t wanted;        /* a flush is, or none will be any more */
  bool is_wanted, is_over;
  uint64_t stored;              /* bytes since the last flush began */
  uint64_t written_out;         /* of them, or as good as */
  struct range passed[RANGES];  /* since the last flush began, in order */
  unsigned n_passed;
  unsigned n_tried;             /* of them: they should have left the memory */
  uint64_t untried;             /* bytes of the others */
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

/* The ranges that should be in storage now go to GONE.  Returns how many. */
static unsigned
take_old_locked (struct nc_flusher *f, struct range gone[RANGES])
{
  unsigned n = 0;

  while (f->n_tried < f->n_passed && f->untried > PASSING) {
    gone[n] = f->passed[f->n_tried++];
    f->untried -= gone[n].end - gone[n].offset;
    n++;
  }
  return n;
}

/* The same for all of them, when they are. */
static unsigned
take_all_locked (struct nc_flusher *f, struct range gone[RANGES])
{
  const unsigned n = f->n_passed;

  memcpy (gone, f->passed, n * sizeof *gone);
  f->n_passed = f->n_tried = 0;
  f->untried = 0;
  return n;
}

static void
evict (struct nc_flusher *f, const struct range gone[RANGES], unsigned n)
{
  for (unsigned i = 0; i < n; ++i)
    nc_export_evict (f->disk, gone[i].offset, gone[i].end - gone[i].offset);
}

/* Have all that was stored until now flushed. */
static void
flush_locked (struct nc_flusher *f)
{
  f->stored = f->written_out = 0;
  f->is_wanted = true;
  pthread_cond_signal (&f->wanted);
  while (f->is_wanted)
    pthread_cond_wait (&f->changed, &f->lock);
}

static void
step_locked (struct nc_flusher *f, bool flush)
{
  struct range gone[RANGES];
  const unsigned n = flush ? take_all_locked (f, gone)
    : take_old_locked (f, gone);
  const bool stands_back = f->stands_back;
  bool may_go;

  if (flush)
    flush_locked (f);
  else
    f->written_out = f->stored;
  may_go = !f->has_failed;
  pthread_mutex_unlock (&f->lock);
  nc_stand_back (stands_back);
  if (!flush)
    nc_export_write_out (f->disk);
  if (may_go)
    evict (f, gone, n);
  pthread_mutex_lock (&f->lock);
}

/* Wait until it is time to flush.  Returns false at the end. */
static bool
wait_for_work_locked (struct nc_flusher *f)
{
  struct timespec ts;
  uint64_t end;

  while (f->stored == 0 && !f->is_ending)
    pthread_cond_wait (&f->changed, &f->lock);
  end = nc_now () + PERIOD;
  ts = (struct timespec) { .tv_sec = end / NC_SECOND,
                           .tv_nsec = end % NC_SECOND };
  while (f->stored < NC_FLUSHER_BYTES && !f->is_ending && nc_now () < end) {
    if (has_step_locked (f))
      step_locked (f, false);
    else
      pthread_cond_timedwait (&f->changed, &f->lock, &ts);
  }
  return !f->is_ending;
}

static void *
keeper (void *opaque)
{
  struct nc_flusher *f = opaque;

  NC_LOCKED (&f->lock);
  while (wait_for_work_locked (f))
    step_locked (f, true);
  return NULL;
}

static void *
flushing (void *opaque)
{
  struct nc_flusher *f = opaque;
  int r;

  NC_LOCKED (&f->lock);
  for (;;) {
    while (!f->is_wanted && !f->is_over)
      pthread_cond_wait (&f->wanted, &f->lock);
    if (f->is_over)
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
join_flushing (struct nc_flusher *f)
{
  {
    NC_LOCKED (&f->lock);
    f->is_over = true;
    pthread_cond_signal (&f->wanted);
  }
  pthread_join (f->flushing, NULL);
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
  if (err)
    join_flushing (f);
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
remove_locked (struct nc_flusher *f, unsigned i)
{
  f->n_passed--;
  memmove (f->passed + i, f->passed + i + 1,
           (f->n_passed - i) * sizeof *f->passed);
}

/* Pieces come nearly in order.  So that they make few ranges, and few calls,
 * one that closes a gap joins its neighbours. */
static void
pass_locked (struct nc_flusher *f, struct range range)
{
  const uint64_t count = range.end - range.offset;
  unsigned at = RANGES;         /* where the oldest of them was */

  for (unsigned i = f->n_tried; i < f->n_passed;) {
    const struct range *other = &f->passed[i];

    if (fit_together (other, &range))
      range.offset = other->offset;
    else if (fit_together (&range, other))
      range.end = other->end;
    else {
      ++i;
      continue;
    }
    at = nc_min64 (at, i);
    remove_locked (f, i);
  }
  if (f->n_passed == RANGES)
    return;
  at = nc_min64 (at, f->n_passed);
  memmove (f->passed + at + 1, f->passed + at,
           (f->n_passed - at) * sizeof *f->passed);
  f->passed[at] = range;
  f->n_passed++;
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
  struct range gone[RANGES];

  {
    NC_LOCKED (&f->lock);
    f->is_ending = true;
    pthread_cond_signal (&f->changed);
  }
  pthread_join (f->keeper, NULL);
  join_flushing (f);
  if (is_durable && !f->has_failed)
    evict (f, gone, take_all_locked (f, gone));
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
