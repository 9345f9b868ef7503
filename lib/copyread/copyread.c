/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What is on its way from the layers below is a piece, from the moment that
 * somebody sets out to read it until it is stored.  Pieces are whole blocks
 * that were missing in the active layer, and never overlap; who needs a byte
 * of one waits for it instead of reading the byte again.
 *
 *   client                       writer threads        reader threads
 *   ------                       --------------        --------------
 *   in a piece: wait for it                            what ahead.c says:
 *   else: a new piece, read it                         a new piece, read it
 *   copy, bring up to date                             store it
 *   hand it over       ------->  store it
 *   answer
 *
 * What a piece has is what the layers below have, so it stays right for blocks
 * that are still missing in the active layer, and in the view it was read in.
 * Who takes bytes from a piece therefore looks at the bits afterwards, and
 * reads from the active layer what got allocated meanwhile
 * (nc_export_refresh); a store looks at them again under its claim.
 *
 * If anything fails the client reads as it would without this, with the
 * chain's rules for remotes that are away, and its errors.
 */

#include <config.h>

#include "copyread/copyread.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <search.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain/chain.h"
#include "chain/slots.h"
#include "util/checked.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"

#define MSEC UINT64_C (1000000) /* in nanoseconds, as all times here */

/* A writer without work sleeps so long before it has to be woken, and so many
 * pieces are left to one before another is woken. */
#define STAY_AWAKE (MSEC / 2)
#define MANY 16

/* After a store has failed nothing is stored for so long. */
#define STORE_PAUSE (1000 * MSEC)

/* Requests of a stream overtake each other by so many at most. */
#define OVERTAKING 4

/* What a small read brings along may take half as long again as the read
 * alone, or so much longer: a change of thread or two. */
#define UNNOTICED (MSEC / 10)
/* So many neighbourhoods, where the one before is here already. */
#define GO_ON 3
#define SAMPLE 32               /* one of so many reads is of the other kind */
#define PERIOD 64               /* samples after which the way may be another */

/* Reads of clients that take so many times the quickest are in the way of
 * those ahead. */
#define CROWDED 3

enum state { ON_ITS_WAY, HERE, FAILED };

struct piece {
  uint64_t offset, count;
  struct nc_fetched fetched;
  enum state state;
  bool ahead;                   /* read ahead: counts for no client */
  unsigned refs;
  pthread_cond_t changed;       /* STATE has */
  struct piece *next;           /* in the queue */
  char buf[];
};

/* The quickest of the last one or two periods. */
struct quickest {
  uint64_t now, before;         /* 0: none */
  unsigned n;
};

struct nc_copyread {
  struct nc_cold cold;
  struct nc_copyread_options opts;
  struct nc_export *export;     /* of our own: to read ahead and to store */
  uint64_t size;
  uint32_t block_size;

  pthread_t writer[NC_COPYREAD_WRITERS], reader[NC_COPYREAD_READERS];
  unsigned n_writers, n_readers;        /* that run; start and stop */

  pthread_mutex_t lock;         /* guards what follows, and pieces but for
                                   their bytes */
  pthread_cond_t to_store, to_read;
  void *pieces;                 /* tree (tsearch) */
  struct piece *queue, **tail;  /* to be stored */
  unsigned n_queued, n_awake;   /* pieces in it, and writers that will look */
  uint64_t paused_until;        /* nothing is stored */
  bool stopping;
  struct quickest alone, wide;  /* reads without and with neighbourhood */
  unsigned n_small;             /* small reads so far */
  struct nc_ahead ahead;
  unsigned busy, max_busy;      /* threads that read ahead */
  struct nc_copyread_count count;
};

/* Pieces. */

/* Ranges that overlap are equal. */
static int
compare (const void *x, const void *y)
{
  const struct piece *a = x, *b = y;

  if (a->offset + a->count <= b->offset)
    return -1;
  return b->offset + b->count <= a->offset;
}

static struct piece *
find_locked (struct nc_copyread *cr, uint64_t offset, uint64_t count)
{
  const struct piece key = { .offset = offset, .count = count };
  struct piece **found = tfind (&key, &cr->pieces, compare);

  return found ? *found : NULL;
}

/* Cut [*first, *end) so that it has AT in it and no part of a piece.  Returns
 * the piece that has AT, if there is one. */
static struct piece *
cut_locked (struct nc_copyread *cr, uint64_t at, uint64_t *first,
            uint64_t *end)
{
  struct piece *piece;

  while ((piece = find_locked (cr, *first, *end - *first)) != NULL)
    if (piece->offset > at)
      *end = piece->offset;
    else if (piece->offset + piece->count <= at)
      *first = piece->offset + piece->count;
    else
      break;
  return piece;
}

/* A piece on its way, with a reference for who reads it.  Returns NULL without
 * memory, not reported: it is read in another way then. */
static struct piece *
new_piece_locked (struct nc_copyread *cr, uint64_t first, uint64_t end,
                  bool ahead)
{
  struct piece *piece = malloc (sizeof *piece + (end - first));

  if (piece == NULL)
    return NULL;
  *piece = (struct piece) {
    .offset = first, .count = end - first, .ahead = ahead, .refs = 1,
  };
  if (tsearch (piece, &cr->pieces, compare) == NULL) {
    free (piece);
    return NULL;
  }
  pthread_cond_init (&piece->changed, NULL);
  if (ahead)
    cr->count.ahead += piece->count;
  else {
    cr->count.waiting += piece->count;
    cr->count.fetched += piece->count;
  }
  return piece;
}

static void
release_locked (struct piece *piece)
{
  if (--piece->refs > 0)
    return;
  pthread_cond_destroy (&piece->changed);
  free (piece);
}

/* Nobody else will find it; and the reference goes. */
static void
remove_locked (struct nc_copyread *cr, struct piece *piece)
{
  tdelete (piece, &cr->pieces, compare);
  if (!piece->ahead)
    cr->count.waiting -= piece->count;
  release_locked (piece);
}

/* Read PIECE.  If that fails it is none any more, and the reference is gone.
 * Returns how long it took, or 0 if it failed. */
static uint64_t
read_piece (struct nc_copyread *cr, struct nc_export *export,
            struct piece *piece)
{
  const uint64_t since = nc_now ();
  const int r = nc_export_try_fetch (export, piece->buf, piece->count,
                                     piece->offset, &piece->fetched);
  const uint64_t taken = nc_now () - since + 1;

  NC_LOCKED (&cr->lock);
  piece->state = r == 0 ? HERE : FAILED;
  pthread_cond_broadcast (&piece->changed);
  if (r == 0)
    return taken;
  remove_locked (cr, piece);
  return 0;
}

/* Store PIECE, which is here; and the reference goes.  Its clients have its
 * bytes, so what a pivot has made stale is dropped: it is fetched again when
 * it is read again. */
static void
store_piece (struct nc_copyread *cr, struct piece *piece)
{
  const int r = nc_export_store (cr->export, piece->buf, piece->count,
                                 piece->offset, &piece->fetched);

  NC_LOCKED (&cr->lock);
  if (r == -1 && errno != ESHUTDOWN)
    cr->paused_until = nc_now () + STORE_PAUSE;
  if (r == NC_STORED_STALE)
    cr->count.not_stored += piece->count;
  remove_locked (cr, piece);
}

/* What a client gets of PIECE, of which it has a reference: the bytes from
 * OFFSET on.  Returns how many. */
static uint64_t
take (struct nc_export *export, const struct piece *piece, void *buf,
      uint64_t count, uint64_t offset)
{
  count = nc_min64 (count, piece->offset + piece->count - offset);
  memcpy (buf, piece->buf + (offset - piece->offset), count);
  return nc_export_refresh (export, buf, count, offset,
                            &piece->fetched) == 0 ? count : 0;
}

/* How much to read for a small read. */

static void
note_time (struct quickest *quickest, uint64_t taken)
{
  if (quickest->now == 0 || taken < quickest->now)
    quickest->now = taken;
  if (++quickest->n < PERIOD)
    return;
  *quickest = (struct quickest) { .before = quickest->now };
}

static uint64_t
time_of (const struct quickest *quickest)
{
  if (quickest->now == 0 || quickest->before == 0)
    return nc_max64 (quickest->now, quickest->before);
  return nc_min64 (quickest->now, quickest->before);
}

/* Whether N neighbourhoods may be read where one byte is needed, as far as is
 * known. */
static bool
pays_locked (const struct nc_copyread *cr, unsigned n)
{
  const uint64_t alone = time_of (&cr->alone), wide = time_of (&cr->wide);
  const uint64_t more = wide > alone ? wide - alone : 0;

  return n * more <= nc_max64 (alone / 2, UNNOTICED);
}

/* Whether a read of COUNT bytes is to bring its neighbourhood along.  Where
 * that takes much longer the client would wait for it; both are tried now and
 * then. */
static bool
is_wide_locked (struct nc_copyread *cr, uint64_t count)
{
  bool pays;

  if (count >= cr->opts.neighbourhood)
    return false;
  pays = time_of (&cr->alone) == 0 || pays_locked (cr, 1);
  return cr->n_small++ % SAMPLE == SAMPLE / 2 ? !pays : pays;
}

/* Reading ahead. */

static void
watch_locked (struct nc_copyread *cr)
{
  atomic_store_explicit (&cr->cold.watching, cr->ahead.n_windows > 0,
                         memory_order_relaxed);
  if (cr->ahead.n_windows > 0)
    pthread_cond_signal (&cr->to_read);
}

/* A read of a client that is no part of a stream took so long: those ahead
 * give way when they slow it down, and come back by and by. */
static void
give_way_locked (struct nc_copyread *cr, uint64_t taken, uint64_t quickest)
{
  if (cr->busy > 0 && taken > CROWDED * nc_max64 (quickest, MSEC))
    cr->max_busy = nc_max64 (cr->max_busy / 2, 1);
  else
    cr->max_busy = nc_min64 (cr->max_busy + 1, NC_COPYREAD_READERS);
}

/* Read ahead and store what is missing of the range. */
static void
read_ahead (struct nc_copyread *cr, uint64_t offset, uint64_t count)
{
  const uint64_t limit = nc_min64 (nc_round_up (offset + count,
                                                cr->block_size), cr->size);
  uint64_t first = nc_round_down (offset, cr->block_size), end;

  for (; first < limit; first = end) {
    struct piece *piece;

    end = limit;
    if (nc_export_absent (cr->export, &cr->cold, first, &first, &end) == -1 ||
        first == end)
      return;
    {
      NC_LOCKED (&cr->lock);
      if (cr->stopping)
        return;
      piece = cut_locked (cr, first, &first, &end);
      if (piece) {
        end = piece->offset + piece->count;
        continue;
      }
      piece = new_piece_locked (cr, first, end, true);
    }
    if (piece == NULL)
      return;
    if (read_piece (cr, cr->export, piece) == 0) {
      /* It may be away: clients will find out when it is back. */
      NC_LOCKED (&cr->lock);
      nc_ahead_end (&cr->ahead, 0, true);
      watch_locked (cr);
      return;
    }
    store_piece (cr, piece);
  }
}

/* Wait until there is something to be read ahead.  Returns false to end. */
static bool
next_ahead_locked (struct nc_copyread *cr, uint64_t *offset, uint64_t *count)
{
  while (!cr->stopping) {
    struct timespec t;

    if (cr->busy < cr->max_busy && nc_now () >= cr->paused_until &&
        nc_ahead_next (&cr->ahead, offset, count))
      return true;
    if (cr->ahead.n_windows == 0) {
      pthread_cond_wait (&cr->to_read, &cr->lock);
      continue;
    }
    clock_gettime (CLOCK_MONOTONIC, &t);
    t.tv_sec++;
    if (pthread_cond_timedwait (&cr->to_read, &cr->lock, &t) == ETIMEDOUT) {
      nc_ahead_end (&cr->ahead, nc_now (), false);
      watch_locked (cr);
    }
  }
  return false;
}

static void *
reader_thread (void *arg)
{
  struct nc_copyread *cr = arg;
  uint64_t offset, count;

  pthread_mutex_lock (&cr->lock);
  while (next_ahead_locked (cr, &offset, &count)) {
    cr->busy++;
    pthread_cond_signal (&cr->to_read); /* there may be more */
    pthread_mutex_unlock (&cr->lock);
    read_ahead (cr, offset, count);
    pthread_mutex_lock (&cr->lock);
    cr->busy--;
  }
  pthread_mutex_unlock (&cr->lock);
  return NULL;
}

/* Storing. */

/* Wait for something to store.  A writer that finds nothing looks once more
 * after a while: where there is much to do, those who bring it need not wake
 * anybody. */
static void
wait_for_pieces_locked (struct nc_copyread *cr)
{
  static const struct timespec a_while = { .tv_nsec = STAY_AWAKE };

  if (cr->queue == NULL && !cr->stopping) {
    pthread_mutex_unlock (&cr->lock);
    nanosleep (&a_while, NULL);
    pthread_mutex_lock (&cr->lock);
  }
  cr->n_awake--;
  while (cr->queue == NULL && !cr->stopping)
    pthread_cond_wait (&cr->to_store, &cr->lock);
  cr->n_awake++;
}

static void *
writer_thread (void *arg)
{
  struct nc_copyread *cr = arg;
  struct piece *piece;

  pthread_mutex_lock (&cr->lock);
  cr->n_awake++;
  for (;;) {
    wait_for_pieces_locked (cr);
    piece = cr->queue;
    if (piece == NULL)
      break;
    cr->queue = piece->next;
    if (cr->queue == NULL)
      cr->tail = &cr->queue;
    cr->n_queued--;
    pthread_mutex_unlock (&cr->lock);
    store_piece (cr, piece);
    pthread_mutex_lock (&cr->lock);
  }
  pthread_mutex_unlock (&cr->lock);
  return NULL;
}

/* PIECE was read and its client has its bytes; the reference goes. */
static void
hand_over (struct nc_copyread *cr, struct piece *piece)
{
  NC_LOCKED (&cr->lock);
  if (cr->stopping) {
    remove_locked (cr, piece);
    return;
  }
  *cr->tail = piece;
  cr->tail = &piece->next;
  if (++cr->n_queued > MANY * cr->n_awake)
    pthread_cond_signal (&cr->to_store);
}

/* Reads of clients. */

/* What to read for a client that needs the byte at OFFSET, and COUNT at most:
 * sets *first, *end and *wide.  Returns -1 if there is nothing to be had.
 *
 * A neighbourhood behind one that is here is hardly random: whoever reads a
 * file or a directory in pieces goes on.  It is followed further then, where
 * that costs the client nothing that it would notice. */
static int
plan (struct nc_copyread *cr, struct nc_export *export, uint64_t count,
      uint64_t offset, uint64_t *first, uint64_t *end, bool *wide)
{
  uint64_t unit = cr->block_size, start, limit;
  bool is_near = false;

  {
    NC_LOCKED (&cr->lock);
    *wide = is_wide_locked (cr, count);
    if (*wide)
      unit = cr->opts.neighbourhood;
    *first = start = nc_round_down (offset, unit);
    *end = limit = nc_min64 (nc_round_up (offset + count, unit), cr->size);
    if (*wide && start > 0 && pays_locked (cr, GO_ON)) {
      *first = start - cr->block_size;
      *end = nc_min64 (limit + (GO_ON - 1) * unit, cr->size);
      is_near = find_locked (cr, start - 1, 1) != NULL;
    }
  }
  if (nc_export_absent (export, &cr->cold, offset, first, end) == -1 ||
      *first > offset || *end <= offset)
    return -1;
  if (*first < start && !is_near)       /* what comes before is missing, too */
    *end = nc_min64 (*end, limit);
  *first = nc_max64 (*first, start);
  return 0;
}

/* The piece that has OFFSET: one that is there, and then *other is set, or a
 * new one of the range.  Returns NULL if nothing is to be stored. */
static struct piece *
piece_locked (struct nc_copyread *cr, uint64_t offset, uint64_t first,
              uint64_t end, bool *other)
{
  struct piece *piece = cut_locked (cr, offset, &first, &end);

  *other = piece != NULL;
  if (piece) {
    piece->refs++;
    return piece;
  }
  if (cr->stopping || nc_now () < cr->paused_until ||
      end - first > cr->opts.max_outstanding - cr->count.waiting) {
    cr->count.not_stored += end - first;
    return NULL;
  }
  return new_piece_locked (cr, first, end, false);
}

static void
note_read (struct nc_copyread *cr, const struct piece *piece, bool wide,
           bool in_stream, uint64_t taken)
{
  struct quickest *kind = wide ? &cr->wide : &cr->alone;

  NC_LOCKED (&cr->lock);
  /* Those of other sizes cannot be compared, nor what was at hand. */
  if (piece->fetched.asked == 0)
    return;
  if (wide ? piece->count != cr->opts.neighbourhood
      : piece->count > cr->opts.neighbourhood / 4)
    return;
  note_time (kind, taken);
  if (!in_stream)
    give_way_locked (cr, taken, time_of (kind));
}

/* A client needs COUNT bytes at OFFSET of PIECE.  Returns the piece's state. */
static enum state
note_join (struct nc_copyread *cr, struct piece *piece, uint64_t count,
           uint64_t offset)
{
  NC_LOCKED (&cr->lock);
  cr->count.joined += piece->state == ON_ITS_WAY;
  if (piece->ahead) {
    nc_ahead_passed (&cr->ahead, offset, count, nc_now ());
    if (piece->state == ON_ITS_WAY)
      nc_ahead_waits (&cr->ahead, offset);
    watch_locked (cr);
  }
  return piece->state;
}

/* Wait until PIECE, of which the caller has a reference, is read.  It comes from
 * a remote, perhaps, and then blocks this thread of EXPORT as a read of its
 * own would.  Returns whether it is here. */
static bool
wait_for (struct nc_copyread *cr, struct nc_export *export,
          struct piece *piece)
{
  NC_SLOT slot = nc_slots_take (nc_export_slots (export));
  bool is_here;

  if (slot == NULL)
    return false;
  {
    NC_LOCKED (&cr->lock);
    while (piece->state == ON_ITS_WAY)
      pthread_cond_wait (&piece->changed, &cr->lock);
    is_here = piece->state == HERE;
  }
  if (is_here)
    nc_slots_answered (slot);
  return is_here;
}

static uint64_t
read_other (struct nc_copyread *cr, struct nc_export *export,
            struct piece *piece, void *buf, uint64_t count, uint64_t offset)
{
  enum state state;
  uint64_t n = 0;

  count = nc_min64 (count, piece->offset + piece->count - offset);
  state = note_join (cr, piece, count, offset);
  if (state == HERE ||
      (state == ON_ITS_WAY && wait_for (cr, export, piece)))
    n = take (export, piece, buf, count, offset);
  NC_LOCKED (&cr->lock);
  release_locked (piece);
  return n;
}

static uint64_t
cold_read (void *opaque, struct nc_export *export, void *buf, uint64_t count,
           uint64_t offset)
{
  struct nc_copyread *cr = opaque;
  uint64_t first, end, n, taken;
  bool wide, other, in_stream = false;
  struct piece *piece;

  if (plan (cr, export, count, offset, &first, &end, &wide) == -1)
    return 0;
  {
    NC_LOCKED (&cr->lock);
    piece = piece_locked (cr, offset, first, end, &other);
    if (piece == NULL)
      return 0;
    if (!other) {
      in_stream = nc_ahead_read (&cr->ahead, piece->offset, piece->count,
                                 wide ? 0 : OVERTAKING * piece->count,
                                 nc_now ());
      watch_locked (cr);
    }
  }
  if (other)
    return read_other (cr, export, piece, buf, count, offset);

  taken = read_piece (cr, export, piece);
  if (taken == 0)
    return 0;
  note_read (cr, piece, wide, in_stream, taken);
  n = take (export, piece, buf, count, offset);
  hand_over (cr, piece);
  return n;
}

static void
cold_passed (void *opaque, uint64_t count, uint64_t offset)
{
  struct nc_copyread *cr = opaque;

  if (!nc_ahead_is_due (&cr->ahead, offset, count))
    return;
  NC_LOCKED (&cr->lock);
  nc_ahead_passed (&cr->ahead, offset, count, nc_now ());
  watch_locked (cr);
}

/* Life. */

struct nc_copyread *
nc_copyread_new (const struct nc_copyread_options *opts)
{
  struct nc_copyread *cr = calloc (1, sizeof *cr);
  pthread_condattr_t attr;

  if (cr == NULL) {
    nc_error ("copy-on-read: %m");
    return NULL;
  }
  cr->opts = *opts;
  cr->cold = (struct nc_cold) {
    .opaque = cr, .bottom = opts->bottom, .read = cold_read,
    .passed = cold_passed,
  };
  cr->tail = &cr->queue;
  cr->max_busy = NC_COPYREAD_READERS;
  pthread_mutex_init (&cr->lock, NULL);
  pthread_cond_init (&cr->to_store, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&cr->to_read, &attr);
  pthread_condattr_destroy (&attr);
  return cr;
}

/* After a pivot it may be gone, and then there is nothing to copy. */
static void
look_for_bottom (const struct nc_copyread *cr, struct nc_chain *chain)
{
  const char *name;

  for (size_t i = 1; (name = nc_chain_layer_name (chain, i)) != NULL; ++i)
    if (strcmp (name, cr->opts.bottom) == 0)
      return;
  nc_notice ("copy-on-read: bottom=%s: there is no layer of this name below "
             "'%s', so nothing will be copied; \"nbdchain info --chain\" "
             "shows the names", cr->opts.bottom,
             nc_chain_layer_name (chain, 0));
}

int
nc_copyread_check (const struct nc_copyread *cr, struct nc_chain *chain)
{
  if (!nc_chain_is_writable (chain)) {
    nc_error ("copy-on-read: '%s' is open for reading only, and what clients "
              "read would have to be stored in it",
              nc_chain_layer_name (chain, 0));
    errno = EROFS;
    return -1;
  }
  if (cr->opts.bottom)
    look_for_bottom (cr, chain);
  return 0;
}

static int
start_threads (struct nc_copyread *cr, pthread_t *threads, unsigned *n,
               unsigned wanted, void *(*fn) (void *))
{
  for (; *n < wanted; ++*n) {
    const int r = pthread_create (&threads[*n], NULL, fn, cr);

    if (r) {
      errno = r;
      nc_error ("copy-on-read: cannot start a thread: %m");
      return -1;
    }
  }
  return 0;
}

int
nc_copyread_start (struct nc_copyread *cr, struct nc_chain *chain)
{
  cr->export = nc_export_open (chain, "disk", 0);
  if (cr->export == NULL)
    return -1;
  cr->size = nc_export_size (cr->export);
  cr->block_size = nc_export_block_size (cr->export);
  if (cr->opts.neighbourhood)
    cr->opts.neighbourhood = nc_max64 (cr->opts.neighbourhood,
                                       cr->block_size);
  nc_ahead_init (&cr->ahead, cr->size, cr->opts.read_ahead);
  if (start_threads (cr, cr->writer, &cr->n_writers, NC_COPYREAD_WRITERS,
                     writer_thread) == -1 ||
      start_threads (cr, cr->reader, &cr->n_readers,
                     cr->opts.read_ahead ? NC_COPYREAD_READERS : 0,
                     reader_thread) == -1) {
    nc_copyread_stop (cr);
    nc_copyread_end (cr);
    return -1;
  }
  nc_chain_set_cold (chain, &cr->cold);
  return 0;
}

static void
join (pthread_t *threads, unsigned *n)
{
  while (*n > 0)
    pthread_join (threads[--*n], NULL);
}

void
nc_copyread_stop (struct nc_copyread *cr)
{
  {
    NC_LOCKED (&cr->lock);
    cr->stopping = true;
    pthread_cond_broadcast (&cr->to_store);
    pthread_cond_broadcast (&cr->to_read);
  }
  join (cr->writer, &cr->n_writers);
}

void
nc_copyread_end (struct nc_copyread *cr)
{
  join (cr->reader, &cr->n_readers);
  nc_export_close (cr->export);
  cr->export = NULL;
  nc_debug ("copy-on-read: %" PRIu64 " bytes read for clients, %" PRIu64
            " ahead; %" PRIu64 " requests waited for another one's read; "
            "%" PRIu64 " bytes not stored", cr->count.fetched,
            cr->count.ahead, cr->count.joined, cr->count.not_stored);
}

void
nc_copyread_counted (struct nc_copyread *cr, struct nc_copyread_count *count)
{
  NC_LOCKED (&cr->lock);
  *count = cr->count;
}

void
nc_copyread_free (struct nc_copyread *cr)
{
  if (cr == NULL)
    return;
  pthread_cond_destroy (&cr->to_read);
  pthread_cond_destroy (&cr->to_store);
  pthread_mutex_destroy (&cr->lock);
  free (cr);
}
