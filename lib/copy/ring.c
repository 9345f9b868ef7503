/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Threads that each take the next piece, read it, store it and say so.
 *
 * The thread of nc_ring_run only waits, and starts more threads when all are
 * busy and the limit allows more: so it can leave at any time, whatever the
 * others wait for.  A piece gets a slot when it is begun; the oldest slots
 * are given back, in order, as far as their pieces are copied.
 *
 * When there is no next piece the threads end, so that whoever frees the ring
 * need not wait while so many end at a time.
 *
 * A piece whose source hangs keeps its slot, and those behind it go on until
 * the slots are used up.  While nobody runs the ring, a thread that has read
 * waits before it stores. */

#include <config.h>

#include "copy/ring.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "util/checked.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"

#define PAGE 4096               /* whole pages are copied quickest */

struct slot {
  struct nc_piece piece;
  bool is_copied;
};

struct nc_ring {
  const struct nc_ring_ops *ops;
  void *opaque;
  uint32_t size;                /* of a buffer */

  pthread_mutex_t lock;         /* guards the rest */
  pthread_cond_t work;          /* for threads: there may be a piece to
                                   begin, or will be none any more, or the
                                   ring is at work, or ends */
  pthread_cond_t changed;       /* for who runs the ring */
  bool is_running, is_interrupted, is_ending;
  uint64_t runs;                /* how often it was run */
  int first_errno;

  bool is_planning;             /* a thread asks for the next piece */
  bool is_planned;              /* it is known, and not begun yet: */
  struct nc_piece planned;
  bool has_ended;               /* there is no next one */

  struct slot slot[NC_RING_SLOTS];
  uint64_t first, end;          /* slots in use, counted from the start */
  unsigned in_flight, storing;
  _Atomic (uint64_t) time_reading, time_storing;        /* nanoseconds */
  struct nc_window window;
  unsigned limit;

  pthread_t thread[NC_RING_THREADS];
  unsigned n_threads;
};

struct nc_ring *
nc_ring_new (const struct nc_ring_ops *ops, void *opaque, uint32_t size)
{
  struct nc_ring *ring = calloc (1, sizeof *ring);

  if (ring == NULL) {
    nc_error ("ring of buffers: %m");
    return NULL;
  }
  ring->ops = ops;
  ring->opaque = opaque;
  ring->size = size;
  ring->limit = nc_min64 (NC_RING_THREADS, NC_RING_MEMORY / size);
  nc_window_init (&ring->window, ring->limit);
  pthread_mutex_init (&ring->lock, NULL);
  pthread_cond_init (&ring->work, NULL);
  pthread_cond_init (&ring->changed, NULL);
  return ring;
}

static unsigned
limit_locked (const struct nc_ring *ring)
{
  return ring->window.limit < ring->limit ? ring->window.limit : ring->limit;
}

static bool
is_at_work_locked (const struct nc_ring *ring)
{
  return ring->is_running && !ring->is_interrupted;
}

static bool
is_over_locked (const struct nc_ring *ring)
{
  return ring->is_interrupted || ring->first_errno ||
    (ring->has_ended && ring->first == ring->end);
}

static bool
may_begin_locked (const struct nc_ring *ring)
{
  return is_at_work_locked (ring) && ring->first_errno == 0 &&
    !ring->is_planning && !ring->has_ended &&
    ring->in_flight < limit_locked (ring) &&
    ring->end - ring->first < NC_RING_SLOTS;
}

/* Whether another thread would find work: one that is planning is not at
 * work yet, but will be. */
static bool
needs_thread_locked (const struct nc_ring *ring)
{
  return ring->n_threads < limit_locked (ring) && !ring->has_ended &&
    ring->in_flight + ring->is_planning >= ring->n_threads;
}

/* One more piece may be begun: by a thread that waits, or by a new one.  It
 * does the same when it has begun one. */
static void
wake_next_locked (struct nc_ring *ring)
{
  if (may_begin_locked (ring))
    pthread_cond_signal (&ring->work);
  if (needs_thread_locked (ring))
    pthread_cond_signal (&ring->changed);
}

/* Something has changed for all. */
static void
wake_locked (struct nc_ring *ring)
{
  pthread_cond_broadcast (&ring->work);
  pthread_cond_signal (&ring->changed);
}

static void
fail_locked (struct nc_ring *ring, int err)
{
  if (ring->first_errno == 0)
    ring->first_errno = err;
  wake_locked (ring);
}

/* Wait until the ring is at work.  Returns false if it will not be. */
static bool
wait_for_work_locked (struct nc_ring *ring)
{
  while (!is_at_work_locked (ring) && !ring->is_ending)
    pthread_cond_wait (&ring->work, &ring->lock);
  return !ring->is_ending && ring->first_errno == 0;
}

/* Whether the ring has been interrupted since it was run for the RUN'th time.
 * What fails then, such as a read that has waited in vain all the while, was
 * told of by another, or belongs to what has been put right since. */
static bool
is_out_of_date (struct nc_ring *ring, uint64_t run)
{
  NC_LOCKED (&ring->lock);
  return !is_at_work_locked (ring) || ring->runs != run;
}

static uint64_t
current_run (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  return ring->runs;
}

/* Whether STEP, which was begun in RUN and failed, is to be tried again, and
 * now.  TRIES: how often it was asked about before. */
static bool
once_more (struct nc_ring *ring, enum nc_ring_step step, uint64_t run,
           unsigned *tries)
{
  const int err = errno;
  const bool again = is_out_of_date (ring, run) ||
    (ring->ops->failed &&
     ring->ops->failed (ring->opaque, step, err, (*tries)++) == 0);

  NC_LOCKED (&ring->lock);
  if (again)
    return wait_for_work_locked (ring);
  fail_locked (ring, err);
  return false;
}

/* The next piece, as it is to be begun.  Returns 1, 0 or -1 as .next; 0 also
 * when throttled: then it stays planned.  One thread at a time. */
static int
plan (struct nc_ring *ring)
{
  struct nc_piece *piece = &ring->planned;
  unsigned tries = 0;

  while (!ring->is_planned) {
    const uint64_t run = current_run (ring);
    int r;

    *piece = (struct nc_piece) { 0 };
    nc_error_forget ();
    r = ring->ops->next (ring->opaque, piece);
    if (r == 1)
      ring->is_planned = true;
    else if (r == 0 || !once_more (ring, NC_RING_PLAN, run, &tries))
      return r;
  }
  if (piece->read && ring->ops->throttle &&
      ring->ops->throttle (ring->opaque, piece->count) == -1)
    return 0;
  return 1;
}

/* Begin the next piece: *SLOT is its slot.  Returns false if there is none
 * for now. */
static bool
begin_locked (struct nc_ring *ring, struct slot **slot)
{
  int r;

  ring->is_planning = true;
  pthread_mutex_unlock (&ring->lock);
  r = plan (ring);
  pthread_mutex_lock (&ring->lock);
  ring->is_planning = false;
  if (r == 0 && ring->is_planned)
    ring->is_interrupted = true;        /* by whoever throttles */
  else if (r == 0) {
    ring->has_ended = true;
    pthread_cond_broadcast (&ring->work);
  }
  if (r != 1) {
    pthread_cond_signal (&ring->changed);
    return false;
  }
  *slot = &ring->slot[ring->end++ % NC_RING_SLOTS];
  **slot = (struct slot) { .piece = ring->planned };
  ring->is_planned = false;
  ring->in_flight++;
  wake_next_locked (ring);
  return true;
}

static bool
begin_storing (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  if (!wait_for_work_locked (ring))
    return false;
  ring->storing++;
  return true;
}

static void
end_storing (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  if (--ring->storing == 0 && !ring->is_running)
    pthread_cond_signal (&ring->changed);
}

static bool
read_piece (struct nc_ring *ring, struct nc_piece *piece, char *buf)
{
  uint64_t since, time, run;
  unsigned tries = 0;
  int r;

  for (;;) {
    since = nc_now ();
    run = current_run (ring);
    nc_error_forget ();
    r = ring->ops->read (ring->opaque, piece, buf);
    if (r != -1)
      break;
    if (!once_more (ring, NC_RING_READ, run, &tries))
      return false;
  }
  time = nc_now () - since;
  ring->time_reading += time;
  NC_LOCKED (&ring->lock);
  if (r > 0)
    nc_window_note (&ring->window, time / (unsigned) r);
  wake_next_locked (ring);
  return true;
}

static int
store_piece (struct nc_ring *ring, const struct nc_piece *piece,
             const char *buf)
{
  const uint64_t since = nc_now ();
  int r;

  nc_error_forget ();
  r = ring->ops->store (ring->opaque, piece, buf);
  ring->time_storing += nc_now () - since;
  return r;
}

/* Returns as .store, after it was tried as often as it was to be. */
static int
store_until_done (struct nc_ring *ring, const struct nc_piece *piece,
                  const char *buf)
{
  unsigned tries = 0;
  uint64_t run;
  int r;

  do {
    if (!begin_storing (ring))
      return -1;
    run = current_run (ring);
    r = store_piece (ring, piece, buf);
    end_storing (ring);
  } while (r == -1 && once_more (ring, NC_RING_STORE, run, &tries));
  return r;
}

/* Read and store PIECE, which fits the buffer, until it is not out of date when
 * it is stored. */
static bool
copy_read (struct nc_ring *ring, struct nc_piece *piece, char *buf)
{
  int r;

  do
    if (!read_piece (ring, piece, buf))
      return false;
  while ((r = store_until_done (ring, piece, buf)) == 1);
  return r == 0;
}

/* Read and store PIECE, of any size, a buffer at a time. */
static bool
copy_in_parts (struct nc_ring *ring, const struct nc_piece *piece, char *buf)
{
  for (uint64_t done = 0; done < piece->count; done += ring->size) {
    struct nc_piece part = *piece;

    part.offset += done;
    part.count = nc_min64 (ring->size, piece->count - done);
    part.read = true;
    if (!copy_read (ring, &part, buf))
      return false;
  }
  return true;
}

static bool
copy (struct nc_ring *ring, struct nc_piece *piece, char *buf)
{
  int r;

  if (piece->read)
    return copy_read (ring, piece, buf);
  r = store_until_done (ring, piece, NULL);
  return r == 1 ? copy_in_parts (ring, piece, buf) : r == 0;
}

/* Give back the slots of the pieces that come before one that is still being
 * copied. */
static void
give_back_locked (struct nc_ring *ring)
{
  struct slot *slot;

  while (ring->first < ring->end) {
    slot = &ring->slot[ring->first % NC_RING_SLOTS];
    if (!slot->is_copied)
      break;
    ring->ops->done (ring->opaque, &slot->piece);
    ring->first++;
  }
}

static void *
thread (void *opaque)
{
  struct nc_ring *ring = opaque;
  NC_FREE void *buf = NULL;
  struct slot *slot;
  bool is_copied;

  NC_LOCKED (&ring->lock);
  if (posix_memalign (&buf, PAGE, ring->size) != 0)
    fail_locked (ring, ENOMEM);
  while (!ring->is_ending && !ring->has_ended && ring->first_errno == 0) {
    if (!may_begin_locked (ring)) {
      pthread_cond_wait (&ring->work, &ring->lock);
      continue;
    }
    if (!begin_locked (ring, &slot))
      continue;
    pthread_mutex_unlock (&ring->lock);
    is_copied = copy (ring, &slot->piece, buf);
    pthread_mutex_lock (&ring->lock);
    ring->in_flight--;
    slot->is_copied = is_copied;
    give_back_locked (ring);
    if (is_over_locked (ring))
      pthread_cond_signal (&ring->changed);
  }
  return NULL;
}

/* Running. */

static void
start_thread_locked (struct nc_ring *ring)
{
  int r = pthread_create (&ring->thread[ring->n_threads], NULL, thread, ring);

  if (r == 0)
    ring->n_threads++;
  else if (ring->n_threads > 0) /* then with those that there are */
    ring->limit = ring->n_threads;
  else {
    errno = r;
    nc_error ("thread of a ring: %m");
    fail_locked (ring, r);
  }
}

int
nc_ring_run (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  ring->is_running = true;
  ring->runs++;
  wake_locked (ring);
  while (!is_over_locked (ring)) {
    if (needs_thread_locked (ring))
      start_thread_locked (ring);
    else
      pthread_cond_wait (&ring->changed, &ring->lock);
  }
  ring->is_running = false;
  while (ring->storing > 0)
    pthread_cond_wait (&ring->changed, &ring->lock);
  if (ring->first_errno) {
    errno = ring->first_errno;
    return -1;
  }
  if (ring->has_ended && ring->first == ring->end)
    return 0;
  ring->is_interrupted = false;
  return 1;
}

void
nc_ring_interrupt (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  ring->is_interrupted = true;
  wake_locked (ring);
}

void
nc_ring_set_limit (struct nc_ring *ring, unsigned limit)
{
  NC_LOCKED (&ring->lock);
  ring->limit = limit;
  wake_locked (ring);
}

unsigned
nc_ring_in_flight (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  return ring->in_flight;
}

uint64_t
nc_ring_way (struct nc_ring *ring)
{
  NC_LOCKED (&ring->lock);
  return ring->window.quickest;
}

void
nc_ring_spent (const struct nc_ring *ring, uint64_t *reading,
               uint64_t *storing)
{
  *reading = ring->time_reading;
  *storing = ring->time_storing;
}

void
nc_ring_free (struct nc_ring *ring)
{
  if (ring == NULL)
    return;
  {
    NC_LOCKED (&ring->lock);
    ring->is_ending = true;
    wake_locked (ring);
  }
  for (unsigned i = 0; i < ring->n_threads; ++i)
    pthread_join (ring->thread[i], NULL);
  pthread_cond_destroy (&ring->work);
  pthread_cond_destroy (&ring->changed);
  pthread_mutex_destroy (&ring->lock);
  free (ring);
}
