/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What a request does.
 *
 * A read looks at the active layer's bits, and for what is not allocated
 * there asks the map which layer has it; neighbours with one answer are one
 * system call.  It takes no lock and no claim.  What the active layer does
 * not have may be another's to read (copy-on-read, struct nc_cold).
 *
 * A write of allocated blocks goes straight to its place, without a claim:
 * bits never go back.  One that allocates holds a claim over the blocks
 * that it touches, looks at the bits again, writes whole blocks (its bytes
 * between those of the backing) and sets the bits.
 *
 * Nobody waits for a remote while it is in the view as a writer or holds a
 * claim: what a partial first write needs of the backing is fetched before,
 * and used only if the view is still the same (what the layers below say of
 * a block does not change within a view, and if the block became allocated
 * meanwhile the bytes are not needed).  When a remote cannot be reached the
 * request leaves everything, waits, and starts over.
 *
 * Every call in which a remote may block the thread of a client has a slot
 * (slots.h), so that not all threads of a connection are blocked at a time.
 */

#include <config.h>

#include "chain/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chain/owner-map.h"
#include "dev/dev.h"
#include "format/format.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

/* How much populate stores at a time, at least a block. */
#define POPULATE_CHUNK (1u << 20)

/* Zeros are left out where so many of them come together, or a block. */
#define ZEROS_MIN 4096u

/* How long who waits for a remote goes on before it looks whether the chain
 * still needs that. */
#define WAIT_SLICE 500000000    /* nanoseconds, less than a second */

/* A request that may have to start over. */
struct attempt {
  struct nc_layer *unreachable; /* set with ENOTCONN */
  struct nc_view *view;         /* that has it; pinned, NULL: not */
  uint64_t offset;              /* where it needed that, for the message */
  bool waited;
  unsigned asked, asked_remote; /* layers, how often */
  struct timespec deadline;     /* set when it first asks a remote */
};

static void
set_deadline (const struct nc_export *export, struct attempt *a)
{
  if (a->deadline.tv_sec == 0) {
    clock_gettime (CLOCK_MONOTONIC, &a->deadline);
    a->deadline.tv_sec += export->chain->retry;
  }
}

/* As in struct nc_fetched. */
static unsigned
times_asked (const struct nc_view *view, const struct attempt *a)
{
  return nc_view_has_remote (view) ? a->asked_remote : a->asked;
}

/* Waiting. */

enum why { RETRY_IS_OVER, TOO_MANY_WAIT };

static int
give_up (struct nc_export *export, const struct attempt *a, enum why cause)
{
  static const struct { const char *state, *why; } text[] = {
    [RETRY_IS_OVER] = { "not reachable", "waited as long as retry= allows" },
    [TOO_MANY_WAIT] = { "does not answer", "as many requests of this "
      "connection wait for it as max-waiting= allows" },
  };
  char more[NC_REPEAT_TEXT];

  if (nc_repeat_report (&export->chain->given_up, cause, more))
    nc_error ("%s: %s, and a request needs it at offset %" PRIu64 ": %s; data "
              "in local layers is served all the while%s",
              a->unreachable->path, text[cause].state, a->offset,
              text[cause].why, more);
  else
    nc_error_untold ("%s: %s, and needed at offset %" PRIu64 ": %s",
                     a->unreachable->path, text[cause].state, a->offset,
                     text[cause].why);
  errno = EIO;
  return -1;
}

/* No thread more of the client's may be blocked. */
static int
refuse_to_wait (struct nc_export *export, const struct attempt *a)
{
  export->chain->refused_waits++;
  return give_up (export, a, TOO_MANY_WAIT);
}

static bool
is_before (const struct timespec *a, const struct timespec *b)
{
  return a->tv_sec < b->tv_sec ||
    (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

static struct timespec
end_of_slice (const struct timespec *now)
{
  struct timespec end = { now->tv_sec, now->tv_nsec + WAIT_SLICE };

  if (end.tv_nsec >= 1000000000) {
    end.tv_nsec -= 1000000000;
    end.tv_sec++;
  }
  return end;
}

static int
wait_for_device (struct nc_export *export, struct attempt *a)
{
  struct nc_dev *dev = a->unreachable->dev;
  const unsigned retry = export->chain->retry;
  struct timespec now, end;
  NC_SLOT slot = NULL;

  nc_slots_unreachable (&export->slots);
  slot = nc_slots_take (&export->slots);
  if (slot == NULL)
    return refuse_to_wait (export, a);
  set_deadline (export, a);
  clock_gettime (CLOCK_MONOTONIC, &now);
  if (!a->waited) {
    a->waited = true;
    export->chain->waits++;
  }
  /* It may have stalled, or come back at once and failed again. */
  if (retry && is_before (&a->deadline, &now))
    return give_up (export, a, RETRY_IS_OVER);
  for (;;) {
    /* After a pivot it may not be needed any more. */
    if (!export->view && a->view != export->chain->views.current)
      return 0;
    end = end_of_slice (&now);
    if (retry && is_before (&a->deadline, &end))
      end = a->deadline;
    if (dev->ops->wait (dev, &end) == 0) {
      nc_slots_answered (slot);
      return 0;
    }
    if (errno == ESHUTDOWN)
      return -1;
    clock_gettime (CLOCK_MONOTONIC, &now);
    if (errno != ETIMEDOUT || (retry && !is_before (&now, &a->deadline)))
      return give_up (export, a, RETRY_IS_OVER);
  }
}

/* A request failed.  Returns true if it is to start over, after having
 * waited where that helps; else errno is for the client. */
static bool
start_over (struct nc_export *export, struct attempt *a)
{
  int r;

  if (a->view == NULL || (errno != ENOTCONN && errno != EBUSY))
    return false;
  r = errno == EBUSY ? refuse_to_wait (export, a)
    : wait_for_device (export, a);
  nc_view_unpin (&export->chain->views, a->view);
  a->view = NULL;
  a->asked = a->asked_remote = 0;
  return r == 0;
}

/* LAYER of VIEW, in which the request still is, failed at OFFSET: with ENOTCONN
 * or, for want of a slot, EBUSY it can be waited for. */
static void
note_failure (struct nc_export *export, struct nc_view *view,
              struct nc_layer *layer, uint64_t offset, struct attempt *a)
{
  if ((errno != ENOTCONN && errno != EBUSY) || layer->dev->ops->wait == NULL)
    return;
  nc_view_pin_this (&export->chain->views, view);
  a->view = view;
  a->unreachable = layer;
  a->offset = offset;
}

/* Reading. */

static struct nc_view *
enter (struct nc_export *export, enum nc_view_use use)
{
  struct nc_views *views = &export->chain->views;

  if (export->view == NULL)
    return nc_view_enter (views, use);
  return nc_view_enter_this (views, export->view, use) ? export->view : NULL;
}

static void
leave (struct nc_export *export, struct nc_view *view, enum nc_view_use use)
{
  nc_view_leave (&export->chain->views, view, use);
}

/* Whether the byte at OFFSET lies beyond what the active layer sees of its
 * backing; *run, how far the question goes, is cut where the answer changes.
 */
static bool
is_cut_off (const struct nc_view *view, uint64_t offset, uint64_t *run)
{
  if (offset >= view->limit)
    return true;
  *run = nc_min64 (*run, view->limit - offset);
  return false;
}

/* Which layer of VIEW has the byte at OFFSET, as EXPORT sees it: an index,
 * or -1; and how many bytes from there on. */
static int
find (struct nc_export *export, struct nc_view *view, uint64_t offset,
      uint64_t count, int *layer, uint64_t *run)
{
  struct nc_map *map;
  size_t first = 0;

  if (export->layer)
    while (view->layers[first] != export->layer)
      ++first;
  else if (view->writable) {
    struct nc_layer *active = view->layers[0];
    bool allocated;

    if (active->format->run (active, offset, count, &allocated, run) == -1)
      return -1;
    *layer = 0;
    if (allocated)
      return 0;
    first = 1;
    if (is_cut_off (view, offset, run)) {
      *layer = -1;
      return 0;
    }
    count = *run;
  }
  map = nc_view_map (&export->chain->views, view, first);
  if (map == NULL)
    return -1;
  return nc_map_find (map, offset, count, layer, run);
}

/* A call of a remote has returned R, and errno: the holder of SLOT knows whether
 * the remote has answered. */
static void
note_answer (struct nc_slots *slot, int r)
{
  if (r == 0 || (errno != ENOTCONN && errno != ESHUTDOWN))
    nc_slots_answered (slot);
}

/* Have LAYER, a remote, read V[0..n-1].  EBUSY, not reported: too many requests
 * are blocked on it. */
static int
ask_remote (struct nc_export *export, struct nc_layer *layer,
            const struct nc_dev_read *v, size_t n)
{
  NC_SLOT slot = nc_slots_take (&export->slots);
  const bool counts = !export->background;
  int r;

  if (slot == NULL)
    return -1;
  if (counts)
    export->chain->cold_reads++;
  r = n > 1 ? layer->format->pread_many (layer, v, n)
    : layer->format->pread (layer, v->buf, v->count, v->offset);
  if (counts)
    export->chain->cold_reads--;
  note_answer (slot, r);
  return r;
}

/* Have LAYER read V[0..n-1]; several only of a remote. */
static int
ask (struct nc_export *export, struct nc_view *view, struct nc_layer *layer,
     const struct nc_dev_read *v, size_t n, struct attempt *a)
{
  int r;

  a->asked++;
  if (!layer->dev->remote)
    return layer->format->pread (layer, v->buf, v->count, v->offset);
  a->asked_remote++;
  set_deadline (export, a);
  r = ask_remote (export, layer, v, n);
  if (r == -1)
    note_failure (export, view, layer, v->offset, a);
  return r;
}

/* COUNT bytes at OFFSET, all of which layer I has, as find says. */
static int
read_layer (struct nc_export *export, struct nc_view *view, int i, char *buf,
            uint64_t count, uint64_t offset, struct attempt *a)
{
  const struct nc_dev_read v = { buf, count, offset };

  if (i != -1)
    return ask (export, view, view->layers[i], &v, 1, a);
  memset (buf, 0, count);
  return 0;
}

/* Reads of one remote, in order and for one buffer, to be made at a time: else
 * each would wait for the one before, where the layers above hold blocks here
 * and there. */
struct gather {
  struct nc_layer *layer;
  size_t n;
  struct nc_dev_read v[NC_DEV_READS];
};

static int
read_gathered (struct nc_export *export, struct nc_view *view,
               struct gather *g, struct attempt *a)
{
  const size_t n = g->n;

  g->n = 0;
  return n == 0 ? 0 : ask (export, view, g->layer, g->v, n, a);
}

static bool
can_gather (const struct nc_layer *layer)
{
  return layer->dev->ops->pread_many && layer->format->pread_many;
}

/* read_layer, now or with read_gathered. */
static int
gather (struct nc_export *export, struct nc_view *view, int i, char *buf,
        uint64_t count, uint64_t offset, struct gather *g, struct attempt *a)
{
  if (i == -1 || !can_gather (view->layers[i]))
    return read_layer (export, view, i, buf, count, offset, a);
  if (g->n > 0 && g->layer == view->layers[i] &&
      g->v[g->n - 1].offset + g->v[g->n - 1].count == offset) {
    g->v[g->n - 1].count += count;
    return 0;
  }
  if ((g->n == NC_DEV_READS || g->layer != view->layers[i]) &&
      read_gathered (export, view, g, a) == -1)
    return -1;
  g->layer = view->layers[i];
  g->v[g->n++] = (struct nc_dev_read) { buf, count, offset };
  return 0;
}

static int
gather_view (struct nc_export *export, struct nc_view *view, char *buf,
             uint64_t count, uint64_t offset, struct gather *g,
             struct attempt *a)
{
  while (count > 0) {
    uint64_t run;
    int i;

    if (find (export, view, offset, count, &i, &run) == -1 ||
        gather (export, view, i, buf, run, offset, g, a) == -1)
      return -1;
    buf += run;
    count -= run;
    offset += run;
  }
  return 0;
}

static int
read_view (struct nc_export *export, struct nc_view *view, char *buf,
           uint64_t count, uint64_t offset, struct attempt *a)
{
  struct gather g;

  g.layer = NULL;
  g.n = 0;                      /* the rest is not worth clearing */
  return gather_view (export, view, buf, count, offset, &g, a) == -1 ? -1
    : read_gathered (export, view, &g, a);
}

/* ASKED as for nc_export_pread_asked, or NULL. */
static int
read_plainly (struct nc_export *export, char *buf, uint64_t count,
              uint64_t offset, struct attempt *a, unsigned *asked)
{
  struct nc_view *view;
  int r;

  do {
    view = enter (export, NC_VIEW_READ);
    if (view == NULL)
      return -1;
    r = read_view (export, view, buf, count, offset, a);
    if (asked)
      *asked = times_asked (view, a);
    leave (export, view, NC_VIEW_READ);
  } while (r == -1 && start_over (export, a));
  return r;
}

/* Whether what layer I of VIEW has is COLD's. */
static bool
is_cold (const struct nc_cold *cold, const struct nc_view *view, int i)
{
  if (i < 1 || cold->bottom == NULL)
    return i >= 1;
  for (size_t k = i; k < view->n; ++k)
    if (strcmp (view->layers[k]->name, cold->bottom) == 0)
      return true;
  return false;
}

/* The bytes from OFFSET on that are not COLD's: *done.  *run: how many that
 * are follow. */
static int
read_warm (struct nc_export *export, const struct nc_cold *cold, char *buf,
           uint64_t count, uint64_t offset, uint64_t *done, uint64_t *run,
           struct attempt *a)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  int r = 0;
  int i;

  if (view == NULL)
    return -1;
  for (*done = 0; *done < count; *done += *run) {
    r = find (export, view, offset + *done, count - *done, &i, run);
    if (r == -1 || is_cold (cold, view, i))
      break;
    r = read_layer (export, view, i, buf + *done, *run, offset + *done, a);
    if (r == -1)
      break;
  }
  leave (export, view, NC_VIEW_READ);
  return r;
}

static int
read_with (struct nc_export *export, struct nc_cold *cold, char *buf,
           uint64_t count, uint64_t offset)
{
  const uint64_t first = offset, end = offset + count;
  struct attempt a = { 0 };
  bool is_warm = true;

  for (uint64_t n, run; offset < end; offset += n, buf += n) {
    if (read_warm (export, cold, buf, end - offset, offset, &n, &run,
                   &a) == -1) {
      if (!start_over (export, &a))
        return -1;
      n = 0;
    }
    else if (offset + n < end) {
      offset += n;
      buf += n;
      is_warm = false;
      set_deadline (export, &a);
      n = cold->read (cold->opaque, export, buf, end - offset, offset);
      if (n > 0)
        continue;
      n = run;
      if (read_plainly (export, buf, n, offset, &a, NULL) == -1)
        return -1;
    }
  }
  if (is_warm && atomic_load_explicit (&cold->watching,
                                       memory_order_relaxed))
    cold->passed (cold->opaque, end - first, first);
  return 0;
}

int
nc_export_pread (struct nc_export *export, void *buf, size_t count,
                 uint64_t offset)
{
  struct nc_cold *cold = export->layer ? NULL
    : atomic_load_explicit (&export->chain->cold, memory_order_acquire);
  struct attempt a = { 0 };

  nc_guest_note (&export->chain->guest);
  return cold ? read_with (export, cold, buf, count, offset)
    : read_plainly (export, buf, count, offset, &a, NULL);
}

int
nc_export_pread_asked (struct nc_export *export, void *buf, size_t count,
                       uint64_t offset, unsigned *asked)
{
  struct attempt a = { 0 };

  return read_plainly (export, buf, count, offset, &a, asked);
}

/* Writing. */

/* Enter as a writer; NULL with errno EROFS if this export has none. */
static struct nc_view *
enter_to_write (struct nc_export *export)
{
  if (export->writable)
    return enter (export, NC_VIEW_WRITE);
  errno = EROFS;
  return NULL;
}

/* Whether every block of the range is allocated in the active layer. */
static int
is_allocated (struct nc_layer *active, uint64_t offset, uint64_t count,
              bool *all)
{
  uint64_t run;

  if (active->format->run (active, offset, count, all, &run) == -1)
    return -1;
  *all = *all && run == count;
  return 0;
}

/* The blocks that a range touches, as bytes; the last one ends at the size.
 */
static void
whole_blocks (const struct nc_layer *active, uint64_t offset, uint64_t count,
              uint64_t *first, uint64_t *end)
{
  *first = nc_round_down (offset, active->block_size);
  *end = nc_min64 (nc_round_up (offset + count, active->block_size),
                   active->size);
}

/* Bytes of the backing around a write that does not cover its first or last
 * block: HEAD bytes before it and TAIL bytes behind it. */
struct fill {
  struct nc_view *view;         /* under which they were read */
  char *head, *tail;            /* NULL: the block was allocated, or whole */
};

static void
free_fill (struct fill *fill)
{
  free (fill->head);
  free (fill->tail);
  *fill = (struct fill) { 0 };
}

/* Read COUNT bytes at OFFSET, in a block that is partly written, unless the
 * block is allocated. */
static int
fetch_part (struct nc_export *export, struct nc_view *view, uint64_t offset,
            uint64_t count, char **part, struct attempt *a)
{
  bool allocated;

  if (count == 0)
    return 0;
  if (is_allocated (view->layers[0], offset, count, &allocated) == -1)
    return -1;
  if (allocated)
    return 0;
  *part = malloc (count);
  if (*part == NULL) {
    nc_error ("part of a block: %m");
    return -1;
  }
  return read_view (export, view, *part, count, offset, a);
}

static int
fetch_fill (struct nc_export *export, uint64_t offset, uint64_t count,
            struct fill *fill, struct attempt *a)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  uint64_t first, end;
  int r;

  if (view == NULL)
    return -1;
  free_fill (fill);
  whole_blocks (view->layers[0], offset, count, &first, &end);
  r = fetch_part (export, view, first, offset - first, &fill->head, a);
  if (r == 0)
    r = fetch_part (export, view, offset + count, end - (offset + count),
                    &fill->tail, a);
  fill->view = r == 0 ? view : NULL;
  leave (export, view, NC_VIEW_READ);
  return r;
}

/* Write blocks of which some are not allocated.  If they became allocated
 * since FILL was fetched, that is not used. */
static int
write_and_allocate (struct nc_export *export, struct nc_layer *active,
                    const void *buf, uint64_t count, uint64_t offset,
                    const struct fill *fill)
{
  const uint64_t data_end = offset + count;
  uint64_t first, end;
  bool head = false, tail = false;
  struct iovec iov[3];
  int n = 0;

  whole_blocks (active, offset, count, &first, &end);
  NC_CLAIM (&export->chain->claims, first, end - first);
  if (fill->head && is_allocated (active, first, 1, &head) == -1)
    return -1;
  if (fill->tail && is_allocated (active, data_end, 1, &tail) == -1)
    return -1;
  head = fill->head && !head;
  tail = fill->tail && !tail;
  if (head)
    iov[n++] = (struct iovec) { fill->head, offset - first };
  iov[n++] = (struct iovec) { (void *) buf, count };
  if (tail)
    iov[n++] = (struct iovec) { fill->tail, end - data_end };
  if (active->format->pwritev (active, iov, n, head ? first : offset) == -1)
    return -1;
  return active->format->set_allocated (active, first, end - first);
}

/* Returns 1 if FILL must be fetched first, for this view. */
static int
write_view (struct nc_export *export, struct nc_view *view, const void *buf,
            uint64_t count, uint64_t offset, const struct fill *fill)
{
  struct nc_layer *active = view->layers[0];
  uint64_t first, end;
  bool all;

  if (is_allocated (active, offset, count, &all) == -1)
    return -1;
  if (all) {
    struct iovec iov = { (void *) buf, count };

    return active->format->pwritev (active, &iov, 1, offset);
  }
  whole_blocks (active, offset, count, &first, &end);
  if ((first < offset || end > offset + count) && fill->view != view)
    return 1;
  return write_and_allocate (export, active, buf, count, offset, fill);
}

/* What a write, zero or trim does in the end. */
static int
flush_if (struct nc_view *view, unsigned flags)
{
  struct nc_layer *active = view->layers[0];

  return flags & NC_REQ_FUA ? active->format->flush (active) : 0;
}

int
nc_export_pwrite (struct nc_export *export, const void *buf, size_t count,
                  uint64_t offset, unsigned flags)
{
  struct attempt a = { 0 };
  struct fill fill = { 0 };
  struct nc_view *view;
  int r;

  nc_guest_note (&export->chain->guest);
  for (;;) {
    view = enter_to_write (export);
    if (view == NULL) {
      r = -1;
      break;
    }
    r = write_view (export, view, buf, count, offset, &fill);
    if (r == 0)
      r = flush_if (view, flags);
    leave (export, view, NC_VIEW_WRITE);
    if (r == 1 && fetch_fill (export, offset, count, &fill, &a) == -1)
      r = -1;
    if (r == 0 || (r == -1 && !start_over (export, &a)))
      break;
  }
  free_fill (&fill);
  return r;
}

/* Zeros. */

/* The part of the range that whole blocks make: [*from, *to), empty if
 * there is none. */
static void
inner_blocks (const struct nc_layer *active, uint64_t offset, uint64_t count,
              uint64_t *from, uint64_t *to)
{
  const uint64_t end = offset + count;

  *from = nc_round_up (offset, active->block_size);
  *to = end == active->size ? end
    : nc_round_down (end, active->block_size);
  if (*from >= *to)
    *from = *to = end;
}

static unsigned
zero_flags (unsigned flags)
{
  return (flags & NC_REQ_MAY_TRIM ? NC_ZERO_MAY_TRIM : 0) |
    (flags & NC_REQ_FAST ? NC_ZERO_FAST : 0);
}

/* Zero whole blocks, and allocate those that are not. */
static int
zero_and_allocate (struct nc_export *export, struct nc_layer *active,
                   uint64_t from, uint64_t to, unsigned flags)
{
  NC_CLAIM (&export->chain->claims, from, to - from);
  if (active->format->zero (active, from, to - from, flags) == -1)
    return -1;
  return active->format->set_allocated (active, from, to - from);
}

/* Zero what can be zeroed without data of the backing.  *edges: the parts
 * of the first and the last block are still to be written. */
static int
zero_view (struct nc_export *export, struct nc_view *view, uint64_t offset,
           uint64_t count, unsigned flags, bool *edges)
{
  struct nc_layer *active = view->layers[0];
  uint64_t from, to;
  bool all;

  if (is_allocated (active, offset, count, &all) == -1)
    return -1;
  *edges = false;
  if (all)
    return active->format->zero (active, offset, count, zero_flags (flags));
  inner_blocks (active, offset, count, &from, &to);
  *edges = from > offset || to < offset + count;
  if (*edges && (flags & NC_REQ_FAST)) {
    errno = ENOTSUP;
    return -1;
  }
  if (from == to)
    return 0;
  return zero_and_allocate (export, active, from, to, zero_flags (flags));
}

/* Write zeros over part of a block. */
static int
write_zeros (struct nc_export *export, uint64_t offset, uint64_t count,
             unsigned flags)
{
  static char zeros[64 * 1024]; /* never written */

  for (uint64_t n; count > 0; offset += n, count -= n) {
    n = nc_min64 (count, sizeof zeros);
    if (nc_export_pwrite (export, zeros, n, offset,
                          flags & NC_REQ_FUA) == -1)
      return -1;
  }
  return 0;
}

int
nc_export_zero (struct nc_export *export, uint64_t offset, uint64_t count,
                unsigned flags)
{
  struct nc_view *view = enter_to_write (export);
  uint64_t from, to;
  bool edges;
  int r;

  nc_guest_note (&export->chain->guest);
  if (view == NULL)
    return -1;
  r = zero_view (export, view, offset, count, flags, &edges);
  if (r == 0)
    r = flush_if (view, flags);
  inner_blocks (view->layers[0], offset, count, &from, &to);
  leave (export, view, NC_VIEW_WRITE);
  if (r == -1 || !edges)
    return r;
  if (write_zeros (export, offset, from - offset, flags) == -1)
    return -1;
  return write_zeros (export, to, offset + count - to, flags);
}

int
nc_export_trim (struct nc_export *export, uint64_t offset, uint64_t count,
                unsigned flags)
{
  struct nc_view *view = enter_to_write (export);
  int r = 0;

  nc_guest_note (&export->chain->guest);
  if (view == NULL)
    return -1;
  /* What is not allocated stays as it is: the backing shows. */
  while (r == 0 && count > 0) {
    struct nc_layer *active = view->layers[0];
    uint64_t run = count;
    bool allocated;

    r = active->format->run (active, offset, count, &allocated, &run);
    if (r == 0 && allocated) {
      r = active->format->zero (active, offset, run,
                                NC_ZERO_MAY_TRIM | NC_ZERO_FAST);
      if (r == -1 && errno == ENOTSUP)
        r = 0;                  /* nobody promised that it is gone */
    }
    offset += run;
    count -= run;
  }
  if (r == 0)
    r = flush_if (view, flags);
  leave (export, view, NC_VIEW_WRITE);
  return r;
}

int
nc_export_flush (struct nc_export *export)
{
  struct nc_view *view;
  int r;

  if (!export->writable)
    return 0;
  view = enter (export, NC_VIEW_WRITE);
  if (view == NULL)
    return -1;
  r = flush_if (view, NC_REQ_FUA);
  leave (export, view, NC_VIEW_WRITE);
  return r;
}

static void
write_out (struct nc_dev *dev)
{
  if (dev && dev->ops->write_out)
    dev->ops->write_out (dev);
}

void
nc_export_write_out (struct nc_export *export)
{
  struct nc_view *view = export->writable ? enter (export, NC_VIEW_WRITE)
    : NULL;

  if (view == NULL)
    return;
  write_out (view->layers[0]->dev);
  write_out (view->layers[0]->data_dev);
  leave (export, view, NC_VIEW_WRITE);
}

void
nc_export_evict (struct nc_export *export, uint64_t offset, uint64_t count)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);

  if (view == NULL)
    return;
  view->layers[0]->format->evict (view->layers[0], offset, count);
  leave (export, view, NC_VIEW_READ);
}

/* Populating. */

static bool
is_zero (const char *buf, size_t count)
{
  return *buf == 0 && memcmp (buf, buf + 1, count - 1) == 0;
}

/* How much of BUF, up to COUNT bytes that begin with a block, is zeros only,
 * or has none that could be left out: *zeros. */
static uint64_t
run_of_zeros (const struct nc_layer *active, const char *buf, uint64_t count,
              bool *zeros)
{
  const uint64_t unit = nc_max64 (active->block_size, ZEROS_MIN);
  uint64_t run, n;

  if (buf == NULL) {
    *zeros = true;
    return count;
  }
  *zeros = is_zero (buf, nc_min64 (unit, count));
  for (run = nc_min64 (unit, count); run < count; run += n) {
    n = nc_min64 (unit, count - run);
    if (is_zero (buf + run, n) != *zeros)
      break;
  }
  return run;
}

/* Store COUNT bytes in blocks that are not allocated; they are claimed. */
static int
store_run (struct nc_layer *active, const char *buf, uint64_t offset,
           uint64_t count)
{
  int r = 0;

  for (uint64_t done = 0, run; r == 0 && done < count; done += run) {
    const char *from = buf ? buf + done : NULL;
    bool zeros;

    run = run_of_zeros (active, from, count - done, &zeros);
    if (zeros)
      r = active->format->zero (active, offset + done, run,
                                NC_ZERO_MAY_TRIM);
    else {
      struct iovec iov = { (void *) from, run };

      r = active->format->pwritev (active, &iov, 1, offset + done);
    }
  }
  return r == 0 ? active->format->set_allocated (active, offset, count) : -1;
}

/* Returns as nc_export_store. */
static int
store_view (struct nc_export *export, struct nc_layer *active,
            const char *buf, uint64_t offset, uint64_t count)
{
  bool all = true;

  NC_CLAIM (&export->chain->claims, offset, count);
  for (uint64_t done = 0, run; done < count; done += run) {
    const uint64_t at = offset + done;
    bool allocated;

    if (active->format->run (active, at, count - done, &allocated,
                             &run) == -1)
      return -1;
    if (!allocated &&
        store_run (active, buf ? buf + done : NULL, at, run) == -1)
      return -1;
    all = all && !allocated;
  }
  return all ? NC_STORED : NC_STORED_PART;
}

int
nc_export_store (struct nc_export *export, const void *buf, uint64_t count,
                 uint64_t offset, const struct nc_fetched *fetched)
{
  struct nc_view *view = enter_to_write (export);
  int r = NC_STORED_STALE;

  if (view == NULL)
    return -1;
  if (view == fetched->view)
    r = store_view (export, view->layers[0], buf, offset, count);
  leave (export, view, NC_VIEW_WRITE);
  return r;
}

bool
nc_export_is_stale (const struct nc_export *export,
                    const struct nc_fetched *fetched)
{
  return fetched->view != export->chain->views.current;
}

static int
fetch_view (struct nc_export *export, struct nc_view *view, char *buf,
            uint64_t count, uint64_t offset, struct nc_fetched *fetched,
            struct attempt *a)
{
  struct nc_layer *active = view->layers[0];
  struct gather g = { .n = 0 };

  for (uint64_t done = 0, run; done < count; done += run) {
    bool allocated;

    if (active->format->run (active, offset + done, count - done,
                             &allocated, &run) == -1)
      return -1;
    if (!allocated &&
        gather_view (export, view, buf + done, run, offset + done, &g,
                     a) == -1)
      return -1;
  }
  if (read_gathered (export, view, &g, a) == -1)
    return -1;
  *fetched = (struct nc_fetched) {
    .view = view, .asked = times_asked (view, a),
  };
  return 0;
}

static int
fetch (struct nc_export *export, void *buf, uint64_t count, uint64_t offset,
       struct nc_fetched *fetched, struct attempt *a)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  int r;

  if (view == NULL)
    return -1;
  r = fetch_view (export, view, buf, count, offset, fetched, a);
  leave (export, view, NC_VIEW_READ);
  return r;
}

int
nc_export_fetch (struct nc_export *export, void *buf, size_t count,
                 uint64_t offset, struct nc_fetched *fetched)
{
  struct attempt a = { 0 };
  int r;

  do
    r = fetch (export, buf, count, offset, fetched, &a);
  while (r == -1 && start_over (export, &a));
  return r;
}

int
nc_export_try_fetch (struct nc_export *export, void *buf, size_t count,
                     uint64_t offset, struct nc_fetched *fetched)
{
  struct attempt a = { 0 };
  const int r = fetch (export, buf, count, offset, fetched, &a);

  if (a.view)
    nc_view_unpin (&export->chain->views, a.view);
  return r;
}

int
nc_export_refresh (struct nc_export *export, void *buf, size_t count,
                   uint64_t offset, const struct nc_fetched *fetched)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  struct nc_layer *active;
  int r;

  if (view == NULL)
    return -1;
  active = view->layers[0];
  r = view == fetched->view ? 0 : 1;
  for (uint64_t done = 0, run; r == 0 && done < count; done += run) {
    bool allocated;

    r = active->format->run (active, offset + done, count - done, &allocated,
                             &run);
    if (r == 0 && allocated)
      r = active->format->pread (active, (char *) buf + done, run,
                                 offset + done);
  }
  leave (export, view, NC_VIEW_READ);
  return r;
}

/* nc_export_absent for who is in VIEW. */
static int
absent_view (struct nc_export *export, struct nc_view *view,
             const struct nc_cold *cold, uint64_t at, uint64_t *first,
             uint64_t *end)
{
  const uint64_t block = export->block_size, limit = *end;
  uint64_t from = *first, to = from;

  for (uint64_t pos = from, run; pos < limit; pos += run) {
    uint64_t last;
    int i;

    if (find (export, view, pos, limit - pos, &i, &run) == -1)
      return -1;
    last = pos + run;
    if (is_cold (cold, view, i)) {
      if (from == to)
        from = nc_round_down (pos, block);
      to = nc_min64 (nc_round_up (last, block), export->size);
    }
    else {
      /* Only whole blocks that are not cold come in between. */
      last = last == export->size ? last : nc_round_down (last, block);
      if (nc_round_up (pos, block) >= last)
        continue;
      if (from < to && to > at)
        break;
      from = to = last;
    }
  }
  *first = from;
  *end = to > at ? to : from;
  return 0;
}

int
nc_export_absent (struct nc_export *export, const struct nc_cold *cold,
                  uint64_t at, uint64_t *first, uint64_t *end)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  int r;

  if (view == NULL)
    return -1;
  r = absent_view (export, view, cold, at, first, end);
  leave (export, view, NC_VIEW_READ);
  return r;
}

void
nc_chain_set_cold (struct nc_chain *chain, struct nc_cold *cold)
{
  atomic_store_explicit (&chain->cold, cold, memory_order_release);
}

/* How many bytes from OFFSET on, up to END, there is one answer for: whether
 * they are allocated in the active layer. */
static int
run_of_allocated (struct nc_export *export, uint64_t offset, uint64_t end,
                  bool *allocated, uint64_t *run)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  int r;

  if (view == NULL)
    return -1;
  r = view->layers[0]->format->run (view->layers[0], offset, end - offset,
                                    allocated, run);
  leave (export, view, NC_VIEW_READ);
  return r;
}

int
nc_export_populate (struct nc_export *export, uint64_t offset,
                    uint64_t count)
{
  const uint64_t block = export->block_size;
  const uint64_t chunk = nc_max64 (block, POPULATE_CHUNK);
  const uint64_t end = nc_min64 (nc_round_up (offset + count, block),
                                 export->size);
  struct nc_fetched fetched;
  NC_FREE char *buf = NULL;
  bool allocated;
  int r;

  if (!export->writable)
    return 0;
  buf = malloc (chunk);
  if (buf == NULL) {
    nc_error ("populate: %m");
    return -1;
  }
  offset = nc_round_down (offset, block);
  for (uint64_t run; offset < end; offset += run) {
    if (run_of_allocated (export, offset, end, &allocated, &run) == -1)
      return -1;
    if (allocated)
      continue;
    run = nc_min64 (run, chunk);
    do
      if (nc_export_fetch (export, buf, run, offset, &fetched) == -1)
        return -1;
    while ((r = nc_export_store (export, buf, run, offset,
                                 &fetched)) == NC_STORED_STALE);
    if (r == -1)
      return -1;
  }
  return 0;
}

/* What populating has to bring in. */

const struct nc_layer *
nc_chain_find_base (struct nc_chain *chain, const char *name)
{
  struct nc_view *view = nc_view_pin (&chain->views);
  const struct nc_layer *base = NULL;

  for (size_t i = 1; i < view->n && base == NULL; ++i)
    if (strcmp (view->layers[i]->name, name) == 0)
      base = view->layers[i];
  if (base == NULL) {
    nc_error ("%s: there is no layer called '%s' below it; \"nbdchain info "
              "--chain\" shows the names", view->layers[0]->path, name);
    errno = ENOENT;
  }
  nc_view_unpin (&chain->views, view);
  return base;
}

size_t
nc_view_base_index (const struct nc_view *view, const struct nc_layer *base)
{
  for (size_t i = 1; base && i < view->n; ++i)
    if (view->layers[i] == base)
      return i;
  return base ? 0 : view->n;
}

/* LAYER holds the range of MISSING from its next byte on, up to END: say what
 * it reads as. */
static int
missing_of_layer (struct nc_layer *layer, struct nc_extents *missing,
                  uint64_t end)
{
  const uint64_t offset = nc_extents_next (missing);
  __attribute__ ((__cleanup__ (nc_extents_free))) struct nc_extents status;
  int r;

  nc_extents_init (&status, offset, end - offset);
  status.limit = missing->limit;
  r = layer->format->extents (layer, &status, end);
  if (r == -1 && errno == ENOTCONN)
    r = nc_extents_append (&status, end - nc_extents_next (&status), 0);
  for (size_t i = 0; r == 0 && i < status.n; ++i)
    r = nc_extents_append (missing, status.v[i].count,
                           status.v[i].type & NC_EXTENT_ZERO
                           ? NC_MISSING_ZEROS : NC_MISSING_DATA);
  return r;
}

int
nc_view_missing (struct nc_export *export, struct nc_view *view, size_t base,
                 struct nc_extents *missing)
{
  int r = 0;

  while (r == 0 && !nc_extents_full (missing)) {
    const uint64_t at = nc_extents_next (missing);
    uint64_t run;
    int i;

    if (find (export, view, at, missing->end - at, &i, &run) == -1)
      return -1;
    r = i >= 1 && (size_t) i < base
      ? missing_of_layer (view->layers[i], missing, at + run)
      : nc_extents_append (missing, run, NC_MISSING_NOTHING);
  }
  return r;
}

int
nc_export_missing (struct nc_export *export, const struct nc_layer *base,
                   struct nc_extents *missing, struct nc_fetched *fetched)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  int r;

  if (view == NULL)
    return -1;
  fetched->view = view;
  r = nc_view_missing (export, view, nc_view_base_index (view, base),
                       missing);
  leave (export, view, NC_VIEW_READ);
  return r;
}

/* Block status. */

/* GUESS: what a remote that is unreachable, or has no slot, would have to tell
 * is data.  Else that is -1 with errno ENOTCONN. */
static int
remote_extents (struct nc_export *export, struct nc_layer *layer,
                struct nc_extents *extents, uint64_t end, bool guess)
{
  NC_SLOT slot = nc_slots_take (&export->slots);
  int r = slot ? layer->format->extents (layer, extents, end) : -1;

  if (slot)
    note_answer (slot, r);
  if (r == 0 || (errno != ENOTCONN && errno != EBUSY))
    return r;
  /* "Data" is always true, and nobody need wait to hear it. */
  if (guess)
    return nc_extents_append (extents, end - nc_extents_next (extents), 0);
  errno = ENOTCONN;
  return -1;
}

static int
fill_extents (struct nc_export *export, struct nc_extents *extents, bool one,
              bool guess)
{
  struct nc_view *view = enter (export, NC_VIEW_READ);
  int r = 0;

  if (view == NULL)
    return -1;
  while (r == 0 && !nc_extents_full (extents) && !(one && extents->n > 1)) {
    const uint64_t at = nc_extents_next (extents);
    struct nc_layer *layer;
    uint64_t run;
    int i;

    r = find (export, view, at, extents->end - at, &i, &run);
    if (r == -1)
      break;
    if (i == -1) {
      r = nc_extents_append (extents, run, NC_EXTENT_HOLE | NC_EXTENT_ZERO);
      continue;
    }
    layer = view->layers[i];
    r = layer->dev->remote
      ? remote_extents (export, layer, extents, at + run, guess)
      : layer->format->extents (layer, extents, at + run);
  }
  leave (export, view, NC_VIEW_READ);
  if (one)                      /* the second was there to end the first */
    extents->n = nc_min64 (extents->n, 1);
  return r;
}

int
nc_export_extents (struct nc_export *export, struct nc_extents *extents,
                   bool one)
{
  return fill_extents (export, extents, one, true);
}

int
nc_export_extents_known (struct nc_export *export, struct nc_extents *extents)
{
  return fill_extents (export, extents, false, false);
}

int
nc_chain_owner (struct nc_chain *chain, uint64_t offset, uint64_t count,
                int *layer, uint64_t *run)
{
  struct nc_export disk = { .chain = chain };
  struct nc_view *view = enter (&disk, NC_VIEW_READ);
  int r;

  if (view == NULL)
    return -1;
  r = find (&disk, view, offset, count, layer, run);
  leave (&disk, view, NC_VIEW_READ);
  return r;
}
