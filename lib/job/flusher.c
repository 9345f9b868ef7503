/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One thread: it waits until something was stored, then until a second has
 * passed since or enough has come together, flushes, and starts over.  Each
 * step on the way there is written out.  That something fails is reported
 * below, and the image fails every later flush, also that with which a job
 * ends. */

#include <config.h>

#include "job/flusher.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "chain.h"
#include "report.h"
#include "scope.h"

#define PERIOD 1                /* seconds */

struct nc_flusher {
  struct nc_export *disk;
  pthread_t thread;
  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t changed;
  uint64_t stored;              /* bytes since the last flush began */
  uint64_t written_out;         /* of them, or as good as */
  bool is_ending;
};

static bool
has_step_locked (const struct nc_flusher *f)
{
  return f->stored - f->written_out >= NC_FLUSHER_STEP;
}

static void
write_out_locked (struct nc_flusher *f)
{
  f->written_out = f->stored;
  pthread_mutex_unlock (&f->lock);
  nc_export_write_out (f->disk);
  pthread_mutex_lock (&f->lock);
}

/* Wait until it is time to flush.  Returns false at the end. */
static bool
wait_for_work_locked (struct nc_flusher *f)
{
  struct timespec end;

  while (f->stored == 0 && !f->is_ending)
    pthread_cond_wait (&f->changed, &f->lock);
  clock_gettime (CLOCK_MONOTONIC, &end);
  end.tv_sec += PERIOD;
  while (f->stored < NC_FLUSHER_BYTES && !f->is_ending) {
    if (has_step_locked (f))
      write_out_locked (f);
    else if (pthread_cond_timedwait (&f->changed, &f->lock, &end) != 0)
      break;
  }
  return !f->is_ending;
}

static void *
thread (void *opaque)
{
  struct nc_flusher *f = opaque;

  NC_LOCKED (&f->lock);
  while (wait_for_work_locked (f)) {
    f->stored = f->written_out = 0;
    pthread_mutex_unlock (&f->lock);
    nc_export_flush (f->disk);
    pthread_mutex_lock (&f->lock);
  }
  return NULL;
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
  err = pthread_create (&f->thread, NULL, thread, f);
  if (err == 0)
    return f;
  errno = err;
  nc_error ("thread of a flusher: %m");
  pthread_cond_destroy (&f->changed);
  pthread_mutex_destroy (&f->lock);
  free (f);
  return NULL;
}

void
nc_flusher_note (struct nc_flusher *f, uint64_t count)
{
  NC_LOCKED (&f->lock);
  const bool is_first = f->stored == 0;

  f->stored += count;
  /* Those in between the thread need not see. */
  if (is_first || has_step_locked (f))
    pthread_cond_signal (&f->changed);
}

void
nc_flusher_free (struct nc_flusher *f)
{
  if (f == NULL)
    return;
  {
    NC_LOCKED (&f->lock);
    f->is_ending = true;
    pthread_cond_signal (&f->changed);
  }
  pthread_join (f->thread, NULL);
  pthread_cond_destroy (&f->changed);
  pthread_mutex_destroy (&f->lock);
  free (f);
}
