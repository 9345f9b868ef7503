/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What a stream feeds the ring with.
 *
 * The planning looks at what is missing, some thousand extents at a time, and
 * makes pieces of whole blocks of the active layer: neighbours of one kind
 * become one piece; a block that is missing in part, or is zeros in part, is
 * data.  What the guest allocates between the look and the read is not read
 * (nc_export_fetch), between the read and the store is not stored.  Across a
 * pivot of somebody else the look and the read are made again.
 *
 * One pass is enough: nothing can become missing behind it.  Ranges that are
 * wanted first are passes of their own before it. */

#include <config.h>

#include "job/stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

#include "chain/activity.h"
#include "chain/chain.h"
#include "chain/ref.h"
#include "copy/pacer.h"
#include "copy/writeback.h"
#include "data/extents.h"
#include "image/image.h"
#include "job/job.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/standback.h"

#define LOOK_EXTENTS 8192       /* known at a time */
/* Stored under one claim. */
#define ZEROS_MAX (UINT64_C (256) << 20)

/* In the kind of a piece. */
#define MISSING 3u              /* NC_MISSING_* */
#define FIRST 4u                /* it is wanted first */
#define TWICE 8u                /* it is the sweep's, and something of it was
                                   wanted first and may be under way */

struct nc_stream {
  struct nc_chain *chain;
  struct nc_export *disk;
  const struct nc_layer *base;  /* NULL: none */
  char *ref;                    /* what BASE is to be called; NULL: as now */
  const struct nc_stream_hooks *hooks;
  void *opaque;
  struct nc_ring *ring;
  struct nc_flusher *flusher;   /* from the first run on */
  uint64_t size;
  uint32_t block, piece;        /* bytes */
  const struct nc_profile_range *first;
  size_t n_first;
  uint64_t first_size;          /* all of them together */
  bool no_sweep;                /* and nothing else */

  /* Planning, by one thread at a time: */
  size_t i_first;               /* ranges of FIRST that were begun */
  bool is_sweeping;             /* behind them */
  uint64_t offset, end;         /* of the next piece; of what is planned */
  struct nc_extents missing;    /* what is known */
  size_t i;                     /* extent that OFFSET is in, or before it */
  struct nc_fetched looked;     /* under which view */

  struct nc_stream_count count; /* these two: under the ring's lock */
  _Atomic (uint64_t) first_done;        /* but to be read without it */

  struct nc_job *job;           /* when it is one, under the same: */
  uint64_t spent_reading, spent_storing;
  bool is_job;
  pthread_mutex_t pace_lock;    /* guards what follows */
  struct nc_pace pace;          /* only for the share of the guest */
  struct nc_guest_look guest;
  _Atomic (bool) is_restrained; /* by the guest */
  struct nc_stream_count told;
};

/* Look at what is missing from the next piece on. */
static int
look (struct nc_stream *s)
{
  nc_extents_free (&s->missing);
  nc_extents_init (&s->missing, s->offset, s->end - s->offset);
  s->missing.limit = LOOK_EXTENTS;
  s->i = 0;
  return nc_export_missing (s->disk, s->base, &s->missing, &s->looked);
}

static uint64_t
end_of_extent (const struct nc_extent *e)
{
  return e->offset + e->count;
}

/* What the block at OFFSET is, which is known, and where the blocks that are
 * the same end: *END.  It may end in the block, where too much is unknown. */
static unsigned
kind_of_blocks (struct nc_stream *s, uint64_t offset, uint64_t *end)
{
  const struct nc_extent *e;

  while (end_of_extent (&s->missing.v[s->i]) <= offset)
    ++s->i;
  e = &s->missing.v[s->i];
  *end = end_of_extent (e) == s->size ? s->size
    : nc_round_down (end_of_extent (e), s->block);
  if (*end > offset)
    return e->type;
  *end = nc_min64 (offset + s->block, s->size);
  return NC_MISSING_DATA;       /* at least in part */
}

/* Whether the whole block at OFFSET is known. */
static bool
is_known (const struct nc_stream *s, uint64_t offset)
{
  return nc_min64 (offset + s->block, s->size) <=
    nc_extents_next (&s->missing);
}

/* Whole blocks, as many as one buffer holds. */
static uint64_t
unit (struct nc_stream *s)
{
  uint64_t bytes;

  if (s->hooks->unit == NULL)
    return s->piece;
  bytes = s->hooks->unit (s->opaque, nc_ring_way (s->ring));
  bytes = nc_round_down (bytes, s->block);
  return nc_min64 (nc_max64 (bytes, s->block), s->piece);
}

static uint64_t
longest_piece (struct nc_stream *s, unsigned kind)
{
  return kind == NC_MISSING_DATA ? unit (s)
    : kind == NC_MISSING_ZEROS ? ZEROS_MAX : UINT64_MAX;
}

/* RANGE as whole blocks of the disk. */
static void
blocks_of (const struct nc_stream *s, const struct nc_profile_range *range,
           uint64_t *offset, uint64_t *end)
{
  *offset = nc_round_down (nc_min64 (range->offset, s->size), s->block);
  *end = *offset;
  if (range->offset < s->size && range->count > 0)
    *end = nc_min64 (nc_round_up (range->offset +
                                  nc_min64 (range->count,
                                            s->size - range->offset),
                                  s->block), s->size);
}

/* What is to be planned next; false if that was all. */
static bool
next_pass (struct nc_stream *s)
{
  nc_extents_free (&s->missing);
  if (s->i_first < s->n_first)
    blocks_of (s, &s->first[s->i_first++], &s->offset, &s->end);
  else if (!s->is_sweeping && !s->no_sweep) {
    s->is_sweeping = true;
    s->offset = 0;
    s->end = s->size;
  }
  else
    return false;
  nc_extents_init (&s->missing, s->offset, 0);
  return true;
}

/* Whether PIECE, of the sweep, has something that is wanted first and may still
 * be under way. */
static bool
may_be_twice (const struct nc_stream *s, const struct nc_piece *piece)
{
  uint64_t offset, end;

  for (size_t i = 0; i < s->n_first && s->first_done < s->first_size; ++i) {
    blocks_of (s, &s->first[i], &offset, &end);
    if (offset < piece->offset + piece->count && piece->offset < end)
      return true;
  }
  return false;
}

static int
next (void *opaque, struct nc_piece *piece)
{
  struct nc_stream *s = opaque;
  uint64_t end, most;

  while (s->offset == s->end)
    if (!next_pass (s))
      return 0;
  /* What is planned from a look before a pivot would all be stale. */
  if ((!is_known (s, s->offset) || nc_export_is_stale (s->disk, &s->looked)) &&
      look (s) == -1)
    return -1;
  /* More extents in a block than we look at: it is read. */
  if (!is_known (s, s->offset)) {
    piece->kind = NC_MISSING_DATA;
    end = nc_min64 (s->offset + s->block, s->size);
  }
  else
    piece->kind = kind_of_blocks (s, s->offset, &end);
  most = longest_piece (s, piece->kind);
  while (end < s->end && end - s->offset < most && is_known (s, end)) {
    uint64_t more;

    if (kind_of_blocks (s, end, &more) != piece->kind)
      break;
    end = more;
  }
  piece->offset = s->offset;
  piece->count = nc_min64 (end - s->offset, most);
  piece->read = piece->kind == NC_MISSING_DATA;
  if (!s->is_sweeping)
    piece->kind |= FIRST;
  else if (may_be_twice (s, piece))
    piece->kind |= TWICE;
  piece->context = s->looked.view;
  s->offset += piece->count;
  /* A piece that was cut ends before what was looked at last. */
  while (s->i > 0 && s->i < s->missing.n &&
         s->missing.v[s->i].offset > s->offset)
    --s->i;
  return 1;
}

static int
throttle (void *opaque, uint64_t count)
{
  struct nc_stream *s = opaque;

  return s->hooks->throttle ? s->hooks->throttle (s->opaque, count) : 0;
}

static void
began (struct nc_stream *s, enum nc_ring_step step)
{
  if (s->hooks->began)
    s->hooks->began (s->opaque, step);
}

static void
ended (struct nc_stream *s, enum nc_ring_step step, uint64_t count)
{
  const int err = errno;

  if (s->hooks->ended)
    s->hooks->ended (s->opaque, step, count);
  errno = err;
}

static int
read_piece (void *opaque, struct nc_piece *piece, void *buf)
{
  struct nc_stream *s = opaque;
  struct nc_fetched fetched;
  int r;

  nc_stand_back (s->hooks->stands_back &&
                 s->hooks->stands_back (s->opaque));
  began (s, NC_RING_READ);
  r = nc_export_fetch (s->disk, buf, piece->count, piece->offset, &fetched);
  ended (s, NC_RING_READ, r == 0 ? piece->count : 0);
  if (r == -1)
    return -1;
  piece->context = fetched.view;
  return fetched.asked;
}

/* Whether nc_export_store, which returned STORED, has dealt with the range. */
static bool
is_done (int stored)
{
  return stored == NC_STORED || stored == NC_STORED_PART;
}

/* What the ring is told then: a stale piece is read again. */
static int
to_ring (int stored)
{
  return stored == -1 ? -1 : stored == NC_STORED_STALE;
}

static int
store_piece (void *opaque, const struct nc_piece *piece, const void *buf)
{
  struct nc_stream *s = opaque;
  const struct nc_fetched fetched = { .view = piece->context };
  int r;

  if ((piece->kind & MISSING) == NC_MISSING_NOTHING)
    return 0;
  if (!piece->read) {
    r = nc_export_store (s->disk, NULL, piece->count, piece->offset,
                         &fetched);
    /* There is next to nothing to be made durable, or done again. */
    if (is_done (r))
      nc_flusher_note (s->flusher, 1);
    return to_ring (r);
  }
  began (s, NC_RING_STORE);
  r = nc_export_store (s->disk, buf, piece->count, piece->offset, &fetched);
  ended (s, NC_RING_STORE, is_done (r) ? piece->count : 0);
  /* What the guest has written, or wants first, stays in the memory. */
  if (r == NC_STORED && !(piece->kind & (FIRST | TWICE)))
    nc_flusher_pass (s->flusher, piece->offset, piece->count);
  else if (is_done (r))
    nc_flusher_note (s->flusher, piece->count);
  return to_ring (r);
}

static void
done (void *opaque, const struct nc_piece *piece)
{
  struct nc_stream *s = opaque;

  const unsigned kind = piece->kind & MISSING;
  uint64_t so_far;

  /* What was there already is seen again by the sweep. */
  if (kind != NC_MISSING_NOTHING || !(piece->kind & FIRST))
    *(kind == NC_MISSING_DATA ? &s->count.copied
      : kind == NC_MISSING_ZEROS ? &s->count.zero
      : &s->count.local) += piece->count;
  if (piece->kind & FIRST) {
    s->first_done += piece->count;
    so_far = s->first_done;
  }
  else
    so_far = s->first_size + piece->offset + piece->count;
  if (s->hooks->progress)
    s->hooks->progress (s->opaque, so_far,
                        nc_stream_total (s), &s->count);
}

static int
failed (void *opaque, enum nc_ring_step step, int err, unsigned tries)
{
  struct nc_stream *s = opaque;

  return s->hooks->failed ? s->hooks->failed (s->opaque, step, err, tries)
    : -1;
}

static const struct nc_ring_ops ring_ops = {
  .next = next,
  .throttle = throttle,
  .read = read_piece,
  .store = store_piece,
  .done = done,
  .failed = failed,
};

/* Refuse what cannot be streamed before anything is done. */
static int
check (struct nc_stream *s, const char *base)
{
  if (base) {
    s->base = nc_chain_find_base (s->chain, base);
    if (s->base == NULL)
      return -1;
  }
  if (nc_export_is_writable (s->disk))
    return 0;
  nc_error ("%s: is open for reading only; a stream writes to it",
            nc_chain_layer_name (s->chain, 0));
  errno = EROFS;
  return -1;
}

struct nc_stream *
nc_stream_new (struct nc_chain *chain, const char *base,
               const struct nc_stream_hooks *hooks, void *opaque)
{
  struct nc_stream *s = calloc (1, sizeof *s);

  if (s == NULL) {
    nc_error ("stream: %m");
    return NULL;
  }
  s->chain = chain;
  s->hooks = hooks;
  s->opaque = opaque;
  s->disk = nc_export_open (chain, "", 0);
  if (s->disk == NULL)
    goto fail;
  s->size = nc_export_size (s->disk);
  s->block = nc_export_block_size (s->disk);
  s->piece = nc_max64 (s->block, NC_RING_PIECE);
  if (hooks->unit)
    s->piece = nc_min64 (nc_max64 (s->piece, hooks->unit (opaque, 0)),
                         NC_RING_PIECE_MAX);
  s->piece = nc_round_down (s->piece, s->block);
  nc_export_set_background (s->disk);
  if (check (s, base) == -1)
    goto fail;
  s->ring = nc_ring_new (&ring_ops, s, s->piece);
  if (s->ring == NULL)
    goto fail;
  return s;

 fail:
  nc_stream_free (s);
  return NULL;
}

void
nc_stream_first (struct nc_stream *s, const struct nc_profile_range *ranges,
                 size_t n, bool alone)
{
  s->first = ranges;
  s->n_first = n;
  s->no_sweep = alone;
  for (size_t i = 0; i < n; ++i) {
    uint64_t offset, end;

    blocks_of (s, &ranges[i], &offset, &end);
    s->first_size += end - offset;
  }
}

uint64_t
nc_stream_total (const struct nc_stream *s)
{
  return s->first_size + (s->no_sweep ? 0 : s->size);
}

bool
nc_stream_is_at_first (const struct nc_stream *s)
{
  return !s->is_sweeping;
}

void
nc_stream_set_limit (struct nc_stream *s, unsigned limit)
{
  const unsigned most = nc_min64 (NC_RING_THREADS, NC_RING_MEMORY / s->piece);

  nc_ring_set_limit (s->ring, limit ? nc_min64 (limit, most) : most);
}

int
nc_stream_run (struct nc_stream *s)
{
  if (s->flusher == NULL)
    s->flusher = nc_flusher_new (s->disk);
  return s->flusher ? nc_ring_run (s->ring) : -1;
}

void
nc_stream_interrupt (struct nc_stream *s)
{
  nc_ring_interrupt (s->ring);
}

int
nc_stream_finish (struct nc_stream *s)
{
  if (nc_chain_set_backing (s->chain, s->base, s->ref) == -1)
    return -1;
  /* Before the chain may be stopped. */
  nc_flusher_finish (s->flusher);
  s->flusher = NULL;
  return 0;
}

void
nc_stream_counted (const struct nc_stream *s, struct nc_stream_count *count)
{
  *count = s->count;
}

void
nc_stream_free (struct nc_stream *s)
{
  if (s == NULL)
    return;
  nc_ring_free (s->ring);
  nc_flusher_free (s->flusher);
  nc_export_close (s->disk);
  nc_extents_free (&s->missing);
  if (s->is_job)
    pthread_mutex_destroy (&s->pace_lock);
  free (s->ref);
  free (s);
}

/* As a job. */

#define LOOK UINT64_C (100000000)       /* nanoseconds, of all threads */
#define SHORTEST (UINT32_C (64) << 10)  /* step beside the guest */

static uint64_t
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

static enum nc_pace_guest
look_at_guest_locked (struct nc_stream *s, uint64_t time)
{
  const bool busy = nc_guest_is_busy (nc_chain_guest (s->chain), &s->guest,
                                      time);

  if (nc_chain_cold_reads (s->chain) > 0)
    return NC_GUEST_WAITS;
  return busy ? NC_GUEST_BUSY : NC_GUEST_IDLE;
}

/* How long to stand back for the guest before COUNT bytes. */
static uint64_t
guest_wait (struct nc_stream *s, uint64_t count)
{
  const uint64_t time = now ();
  enum nc_job_limit why;
  uint64_t wait;

  NC_LOCKED (&s->pace_lock);
  wait = nc_pace_wait (&s->pace, count, look_at_guest_locked (s, time), time,
                       &why);
  s->is_restrained = why == NC_LIMIT_GUEST;
  return wait;
}

static int
job_throttle (void *opaque, uint64_t count)
{
  struct nc_stream *s = opaque;
  uint64_t wait;

  while ((wait = guest_wait (s, count)) > 0)
    if (nc_job_sleep (s->job, wait) == -1)
      return -1;
  return nc_job_throttle (s->job, count);
}

static uint32_t
job_unit (void *opaque, uint64_t way)
{
  struct nc_stream *s = opaque;
  uint64_t speed;
  uint32_t most;

  if (s == NULL)                /* the stream is being made */
    return NC_RING_PIECE;
  speed = nc_job_speed (s->job);
  NC_LOCKED (&s->pace_lock);
  most = nc_pace_unit (&s->pace, look_at_guest_locked (s, now ()), way);
  /* A rate is held in slices, so a piece should fit in one. */
  return speed ? nc_min64 (most, speed / 10) : most;
}

static bool
job_stands_back (void *opaque)
{
  const struct nc_stream *s = opaque;

  return s->is_restrained;
}

static int
job_failed (void *opaque, enum nc_ring_step step, int err, unsigned tries)
{
  struct nc_stream *s = opaque;
  const char *text = *nc_error_text () ? nc_error_text () : strerror (err);

  nc_job_set_trouble (s->job, text);
  switch (nc_job_error (s->job, step == NC_RING_STORE ? NC_JOB_WRITE
                        : NC_JOB_READ, err)) {
  case NC_JOB_IGNORE:
    nc_job_back_off (s->job, tries);
    return 0;
  case NC_JOB_STOP:
    nc_ring_interrupt (s->ring);
    return 0;
  case NC_JOB_REPORT:
    nc_job_set_error (s->job, "%s", text);
    break;
  }
  return -1;
}

/* Whether it stands back, or what takes the time is reading or storing. */
static void
look_at_limit (struct nc_stream *s)
{
  uint64_t reading, storing;

  if (s->is_restrained) {
    nc_job_set_limit (s->job, NC_LIMIT_GUEST);
    return;
  }
  nc_ring_spent (s->ring, &reading, &storing);
  if (reading + storing - s->spent_reading - s->spent_storing < LOOK)
    return;
  nc_job_set_limit (s->job, reading - s->spent_reading >=
                    storing - s->spent_storing
                    ? NC_LIMIT_SOURCE : NC_LIMIT_STORAGE);
  s->spent_reading = reading;
  s->spent_storing = storing;
}

static void
tell (struct nc_stream *s, enum nc_job_counter which, uint64_t now,
      uint64_t *told)
{
  if (now != *told)
    nc_job_count (s->job, which, now - *told);
  *told = now;
}

static void
job_progress (void *opaque, uint64_t done_bytes, uint64_t total,
              const struct nc_stream_count *count)
{
  struct nc_stream *s = opaque;

  (void) total;
  tell (s, NC_COUNT_COPIED, count->copied, &s->told.copied);
  tell (s, NC_COUNT_ZERO, count->zero, &s->told.zero);
  tell (s, NC_COUNT_LOCAL, count->local, &s->told.local);
  nc_job_progress (s->job, done_bytes);
  look_at_limit (s);
}

static const struct nc_stream_hooks job_hooks = {
  .unit = job_unit,
  .stands_back = job_stands_back,
  .throttle = job_throttle,
  .failed = job_failed,
  .progress = job_progress,
};

static int
job_run (struct nc_job *job, void *opaque)
{
  struct nc_stream *s = opaque;
  int r;

  s->job = job;
  nc_job_set_limit (job, NC_LIMIT_SOURCE);
  do {
    if (nc_job_pause_point (job) == -1)
      return -1;
    r = nc_stream_run (s);
  } while (r == 1);
  if (r == -1)
    nc_job_set_error (job, "%s", strerror (errno));
  return r;
}

static int
job_finalize (struct nc_job *job, void *opaque)
{
  struct nc_stream *s = opaque;

  nc_error_forget ();
  if (nc_stream_finish (s) == 0)
    return 0;
  nc_job_set_error (job, "the new backing could not be recorded: %s",
                    *nc_error_text () ? nc_error_text () : strerror (errno));
  return -1;
}

static void
job_wake (struct nc_job *job __attribute__ ((__unused__)), void *opaque)
{
  nc_stream_interrupt (opaque);
}

static void
job_free (void *opaque)
{
  nc_stream_free (opaque);
}

static const struct nc_job_type stream_type = {
  .name = "stream",
  .after_failure = "what it copied stays, and the backing is still needed: "
    "start it again to go on",
  .changes_chain = true,
  .run = job_run,
  .finalize = job_finalize,
  .wake = job_wake,
  .free = job_free,
};

static void
prepare_job (struct nc_stream *s)
{
  const struct nc_prefetch_policy policy = { .unit = NC_RING_PIECE };

  s->opaque = s;
  s->is_job = true;
  pthread_mutex_init (&s->pace_lock, NULL);
  nc_pace_init (&s->pace, &policy, SHORTEST, now (), now ());
}

/* What the job is made of again after a restart. */
static json_t *
arguments (const char *base, const char *ref)
{
  json_t *args = json_object ();

  if (base)
    json_object_set_new (args, "base", json_string (base));
  if (ref)
    json_object_set_new (args, "backing-file", json_string (ref));
  return args;
}

int
nc_stream_create (struct nc_jobs *jobs, const char *id,
                  struct nc_chain *chain, const char *base, const char *ref,
                  const struct nc_job_options *opts, char why[NC_JOB_TEXT])
{
  struct nc_job_options with_arguments = *opts;
  struct nc_stream *s;
  int err, r = -1;

  nc_error_forget ();
  s = nc_stream_new (chain, base, &job_hooks, NULL);
  if (s == NULL || (ref && (s->ref = strdup (ref)) == NULL)) {
    err = errno;
    snprintf (why, NC_JOB_TEXT, "%s", *nc_error_text () ? nc_error_text ()
              : strerror (err));
  }
  else {
    prepare_job (s);
    with_arguments.len = nc_stream_total (s);
    with_arguments.arguments = arguments (base, ref);
    r = nc_job_create (jobs, id, &stream_type, &with_arguments, s, why);
    err = errno;
    json_decref (with_arguments.arguments);
  }
  if (r == 0)
    return 0;
  nc_stream_free (s);
  errno = err;
  return -1;
}

bool
nc_stream_is_ref (const char *ref)
{
  return nc_ref_check_recorded (ref) == 0;
}

int
nc_stream_resume (void *chain, struct nc_jobs *jobs, const char *id,
                  json_t *args, const struct nc_job_options *opts,
                  char why[NC_JOB_TEXT])
{
  const char *base = json_string_value (json_object_get (args, "base"));
  const char *ref =
    json_string_value (json_object_get (args, "backing-file"));

  if (json_object_size (args) == (base != NULL) + (size_t) (ref != NULL) &&
      (ref == NULL || (base && nc_stream_is_ref (ref)))) {
    /* A pivot has dropped all that was below: this stream ends well. */
    if (nc_chain_n_layers (chain) == 1)
      base = ref = NULL;
    return nc_stream_create (jobs, id, chain, base, ref, opts, why);
  }
  snprintf (why, NC_JOB_TEXT, "its arguments are not those of a stream");
  errno = EINVAL;
  return -1;
}
