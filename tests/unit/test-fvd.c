/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of the fvd format below the chain: what is on disk after power loss,
 * a kill or an error at any operation, what hostile images do, and whether
 * a reader made from the specification sees the same.
 *
 * The model knows of each sector of some blocks which contents it may have:
 * those that it had since the last flush that succeeded. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "dev-fault.h"
#include "fvd-reader.h"
#include "tap.h"
#include "util/bytes.h"
#include "util/checked.h"

#define BLOCK 4096
#define NBLOCKS 4034            /* two pages; the last block has 100 bytes */
#define SIZE (UINT64_C (4033) * BLOCK + 100)
#define SECTORS (BLOCK / 512)

/* What runs in one thread need not be run as often where only threads are
 * looked at, and all is slow. */
#ifdef __SANITIZE_THREAD__
#define LESS(n) ((n) / 6)
#else
#define LESS(n) (n)
#endif

static struct mem_disk disk;
static struct fault fault;
static uint8_t *pristine;       /* header and metadata after create */
static uint64_t pristine_size, data_offset;
static nc_uuid image_uuid;

/* The blocks whose contents are looked at; the rest is zero or not there. */
static const uint64_t blocks[] = {
  0, 1, 2, 3, 62, 63, 64, 65, 2000, 4029, 4030, 4031, 4032, 4033
};
enum { N = sizeof blocks / sizeof blocks[0], IDS = 24 };

struct sector_model {
  uint32_t ids[IDS];            /* contents since the last flush */
  unsigned n, current;          /* those from CURRENT on may be there now */
};

enum { NO, MAYBE, YES };

static struct model {
  uint8_t now[NBLOCKS], durable[NBLOCKS];       /* allocated? */
  uint8_t late[NBLOCKS];        /* first written while a flush went on */
  struct sector_model s[N][SECTORS];
  uint32_t next_id;
} model;

static pthread_t main_thread;
static bool compact;            /* the images that are created */

static unsigned
sector_bytes (uint64_t blk, unsigned s)
{
  uint64_t at = blk * BLOCK + s * 512;

  return at >= SIZE ? 0 : SIZE - at < 512 ? SIZE - at : 512;
}

/* The content ID of a sector; 0 is zeros. */
static void
fill (uint8_t *p, uint32_t id, uint64_t blk, unsigned s)
{
  uint64_t seed = (uint64_t) id << 32 ^ blk << 3 ^ s;

  if (id == 0)
    memset (p, 0, 512);
  else
    for (unsigned i = 0; i < 512; i += 16) {
      uint64_t v[2] = { rnd (&seed), id };

      memcpy (p + i, v, 16);
    }
}

static void
model_write (uint64_t blk, unsigned s, uint32_t id, bool good)
{
  for (unsigned i = 0; i < N; ++i)
    if (blocks[i] == blk) {
      struct sector_model *m = &model.s[i][s];

      if (model.now[blk] == NO)
        m->n = m->current = 0;
      must (m->n < IDS, "model is full");
      m->ids[m->n] = id;
      if (good)
        m->current = m->n;
      m->n++;
    }
}

static void
model_flushed (void)
{
  for (uint64_t b = 0; b < NBLOCKS; ++b)
    if (model.now[b] == YES && !model.late[b])
      model.durable[b] = YES;
  for (unsigned i = 0; i < N; ++i)
    for (unsigned s = 0; s < SECTORS && !model.late[blocks[i]]; ++s) {
      struct sector_model *m = &model.s[i][s];

      memmove (m->ids, m->ids + m->current,
               (m->n - m->current) * sizeof m->ids[0]);
      m->n -= m->current;
      m->current = 0;
    }
}

static bool
model_is_full (void)
{
  for (unsigned i = 0; i < N; ++i)
    for (unsigned s = 0; s < SECTORS; ++s)
      if (model.s[i][s].n + 3 > IDS)
        return true;
  return false;
}

/* Make the pristine image anew. */
static void
reset (void)
{
  mem_disk_clear (&disk);
  memcpy (disk.data, pristine, pristine_size);
  memset (&model, 0, sizeof model);
  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  fault.n_undo = 0;
  fault.track = true;
  fault.partly = false;
}

static void
create (uint64_t size, unsigned block_bits, uint64_t journal)
{
  static const struct nc_backing none;
  struct nc_fvd_create_options opts = {
    .size = size, .block_bits = block_bits, .journal_size = journal,
    .backing = &none, .compact = compact, .grow_unit = 1 << 20,
  };
  uint64_t file_size;
  struct nc_dev *dev;
  struct fvd_reader r;

  must (nc_fvd_file_size (&opts, &file_size) == 0, "nc_fvd_file_size");
  /* A chunk that was given a place before a crash may keep it. */
  mem_disk_init (&disk, file_size + (compact ? 1 << 30 : 0));
  dev = mem_dev_open (&disk, true);
  must (nc_uuid_generate (&image_uuid) == 0 &&
        nc_fvd_create (dev, &opts, &image_uuid) == 0, "nc_fvd_create");
  nc_dev_close (dev);
  must (fvd_reader_open (&r, disk.data, disk.size) == 0, r.why);
  data_offset = r.data_offset;
  fvd_reader_close (&r);
  pristine_size = data_offset;
  pristine = malloc (pristine_size);
  must (pristine != NULL, "malloc");
  memcpy (pristine, disk.data, pristine_size);
}

static void
drop (void)
{
  mem_disk_fini (&disk);
  free (pristine);
}

static struct nc_layer *
open_layer_fd (bool writable, int fd)
{
  struct nc_layer_options opts = { .writable = writable, .memory_fd = fd };

  return nc_layer_open (&nc_format_fvd,
                        fault_dev_open (&fault,
                                        mem_dev_open (&disk, writable)),
                        "test.fvd", &opts);
}

static struct nc_layer *
open_layer (bool writable)
{
  return open_layer_fd (writable, -1);
}

/* Operations on blocks, with the model. */

static int
do_write (struct nc_layer *l, uint64_t blk, unsigned n)
{
  uint32_t id = ++model.next_id;
  uint64_t count = nc_min64 ((blk + n) * BLOCK, SIZE) - blk * BLOCK;
  NC_FREE uint8_t *buf = malloc (n * BLOCK);
  struct iovec iov[2];
  bool whole = true;
  int r;

  must (buf != NULL, "malloc");
  for (unsigned i = 0; i < n * SECTORS; ++i)
    fill (buf + 512 * i, id, blk + i / SECTORS, i % SECTORS);
  for (unsigned i = 0; i < n; ++i)
    whole = whole && model.now[blk + i] == YES;
  iov[0] = (struct iovec) { buf, count / 2 };
  iov[1] = (struct iovec) { buf + count / 2, count - count / 2 };
  r = l->format->pwritev (l, iov, 2, blk * BLOCK);
  for (unsigned i = 0; i < n * SECTORS; ++i)
    if (r == 0 || model.now[blk + i / SECTORS] != NO)
      model_write (blk + i / SECTORS, i % SECTORS, id, r == 0);
  if (r == -1 || whole)
    return r;
  r = l->format->set_allocated (l, blk * BLOCK, count);
  for (unsigned i = 0; i < n; ++i)
    if (model.now[blk + i] != YES)
      model.now[blk + i] = r == 0 ? YES : MAYBE;
  return r;
}

static int
do_zero (struct nc_layer *l, uint64_t blk, unsigned n)
{
  uint64_t count = nc_min64 ((blk + n) * BLOCK, SIZE) - blk * BLOCK;
  int r = l->format->zero (l, blk * BLOCK, count, NC_ZERO_MAY_TRIM);

  for (unsigned i = 0; i < n * SECTORS; ++i)
    if (r == 0 || model.now[blk + i / SECTORS] != NO)
      model_write (blk + i / SECTORS, i % SECTORS, 0, r == 0);
  if (r == -1)
    return r;
  r = l->format->set_allocated (l, blk * BLOCK, count);
  for (unsigned i = 0; i < n; ++i)
    if (model.now[blk + i] != YES)
      model.now[blk + i] = r == 0 ? YES : MAYBE;
  return r;
}

/* A first write while a flush is going on, between any two of its steps. */
static uint64_t hook_seed;

static void
write_meanwhile (void *opaque)
{
  struct nc_layer *l = opaque;
  uint64_t blk;

  /* A checkpoint may be under way in another thread. */
  if (!pthread_equal (pthread_self (), main_thread))
    return;
  blk = blocks[rnd_below (&hook_seed, N)];
  if (rnd_below (&hook_seed, 3) == 0 && model.now[blk] == NO) {
    model.late[blk] = 1;
    do_write (l, blk, 1);
  }
}

static int
do_flush (struct nc_layer *l)
{
  int r;

  if (hook_seed) {
    fault.hook = write_meanwhile;
    fault.opaque = l;
  }
  r = l->format->flush (l);
  fault.hook = NULL;
  if (r == 0)
    model_flushed ();
  memset (model.late, 0, sizeof model.late);
  return r;
}

/* One random operation.  pages: sometimes zero whole pages.
 * Returns -1 if it failed; *flush: it was one. */
static int
do_any (struct nc_layer *l, uint64_t *seed, bool pages, bool *flush)
{
  uint64_t blk = blocks[rnd_below (seed, N)];
  unsigned n = 1 + (unsigned) rnd_below (seed, 3);

  if (blk + n > NBLOCKS)
    n = NBLOCKS - blk;
  *flush = false;
  switch (model_is_full () ? 0 : rnd_below (seed, 10)) {
  case 0: case 1: case 2:
    *flush = true;
    return do_flush (l);
  case 3: case 4:
    return do_zero (l, blk, n);
  case 5:
    if (pages) {
      switch (rnd_below (seed, 4)) {
      case 0: return do_zero (l, 0, 4032);
      case 1: return do_zero (l, 4032, 2);
      case 2: return do_zero (l, 0, NBLOCKS);
      default: return do_zero (l, 64, 4034 - 64);
      }
    }
    /* fall through */
  default:
    return do_write (l, blk, n);
  }
}

/* What the layer shows, against the model.  After it the model knows the
 * present state for certain. */
enum when { LIVE, KILLED, POWER };

static bool
verify_all (struct nc_layer *l, enum when when)
{
  static bool has[NBLOCKS];
  uint8_t want[512], got[BLOCK];

  for (uint64_t at = 0; at < SIZE;) {
    bool allocated;
    uint64_t run;

    if (l->format->run (l, at, SIZE - at, &allocated, &run) == -1 ||
        run == 0 || run > SIZE - at)
      return note ("run at %llu", (unsigned long long) at);
    for (uint64_t b = at / BLOCK; b * BLOCK < at + run; ++b)
      has[b] = allocated;
    at += run;
  }
  for (uint64_t b = 0; b < NBLOCKS; ++b) {
    if (!has[b] && (when == LIVE ? model.now[b] == YES
                    : model.durable[b] == YES))
      return note ("block %u is lost", (unsigned) b);
    if (has[b] && model.now[b] == NO)
      return note ("block %u was never written", (unsigned) b);
  }
  for (unsigned i = 0; i < N; ++i) {
    if (!has[blocks[i]])
      continue;
    if (l->format->pread (l, got, nc_min64 (BLOCK, SIZE - blocks[i] * BLOCK),
                          blocks[i] * BLOCK) == -1)
      return note ("pread of block %u", (unsigned) blocks[i]);
    for (unsigned s = 0; s < SECTORS; ++s) {
      struct sector_model *m = &model.s[i][s];
      /* Also the place of a chunk is known only after a flush. */
      unsigned j = when == POWER || (when == KILLED && compact) ? 0
        : m->current;

      for (; j < m->n; ++j) {
        fill (want, m->ids[j], blocks[i], s);
        if (memcmp (want, got + 512 * s,
                    sector_bytes (blocks[i], s)) == 0)
          break;
      }
      if (j == m->n && sector_bytes (blocks[i], s) > 0)
        return note ("block %u, sector %u: none of %u contents",
                     (unsigned) blocks[i], s, m->n);
      if (when != LIVE && (when == POWER || compact) && m->n > 0) {
        m->ids[0] = m->ids[j < m->n ? j : 0];
        m->n = 1;
        m->current = 0;
      }
    }
  }
  for (uint64_t b = 0; b < NBLOCKS && when != LIVE; ++b) {
    model.now[b] = has[b] ? YES : NO;
    if (when == POWER)
      model.durable[b] = model.now[b];
  }
  return true;
}

static bool
verify (struct nc_layer *l, enum when when)
{
  unsigned mask = fault.mask;
  bool good;

  fault.mask = 0;               /* what goes wrong is for others */
  good = verify_all (l, when);
  fault.mask = mask;
  return good;
}

/* Whether the other reader sees in the file what the library saw. */
static bool
reader_agrees (struct nc_layer *l, struct fvd_reader *r)
{
  uint8_t a[BLOCK], b[BLOCK];

  if (r->size != l->size || r->block != l->block_size)
    return note ("the reader has another geometry");
  for (uint64_t at = 0, run; at < r->size; at += run) {
    bool allocated;

    if (l->format->run (l, at, r->size - at, &allocated, &run) == -1)
      return note ("run: %m");
    for (uint64_t blk = at / r->block; blk * r->block < at + run; ++blk)
      if (allocated != r->allocated[blk])
        return note ("block %u: the reader says %d", (unsigned) blk,
                     r->allocated[blk]);
  }
  for (unsigned i = 0; i < N; ++i)
    if (r->allocated[blocks[i]]) {
      size_t n = nc_min64 (BLOCK, SIZE - blocks[i] * BLOCK);

      fvd_reader_pread (r, a, n, blocks[i] * BLOCK, NULL, 0);
      if (l->format->pread (l, b, n, blocks[i] * BLOCK) == -1 ||
          memcmp (a, b, n) != 0)
        return note ("block %u differs", (unsigned) blocks[i]);
    }
  return true;
}

/* The image opens without repair, and both readers see what they may. */
static struct nc_layer *
reopen (enum when when)
{
  struct fvd_reader r;
  struct nc_layer *l = NULL;
  bool good;

  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  if (fvd_reader_open (&r, disk.data, disk.size) == -1) {
    note ("the reader says: %s", r.why);
    fvd_reader_close (&r);
    return NULL;
  }
  l = open_layer (true);
  good = l != NULL || note ("it does not open: %s", tap_error);
  good = good && reader_agrees (l, &r) && verify (l, when);
  fvd_reader_close (&r);
  if (!good) {
    nc_layer_close (l);
    return NULL;
  }
  return l;
}

static bool
opens_and_holds (enum when when)
{
  struct nc_layer *l = reopen (when);
  bool good = l != NULL;

  nc_layer_close (l);
  return good;
}

/* Whether the image would be right after each of some ways of losing what
 * was not synced.  Nothing is changed by it. */
static bool
any_loss_is_harmless (uint64_t *seed)
{
  static struct model saved_model;
  struct fault_saved saved;
  bool good = true;

  saved_model = model;
  fault_save (&fault, &disk, &saved);
  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  for (unsigned i = 0; i < LESS (12) && good; ++i) {
    struct fvd_reader r;
    struct nc_layer *l = NULL;

    fault_lose (&fault, &disk, i == 0 ? LOSE_ALL : LOSE_SOME, seed);
    good = fvd_reader_open (&r, disk.data, disk.size) == 0 ||
      note ("the reader says: %s", r.why);
    good = good && ((l = open_layer (false)) != NULL ||
                    note ("it does not open: %s", tap_error));
    good = good && reader_agrees (l, &r) && verify (l, POWER);
    nc_layer_close (l);
    fvd_reader_close (&r);
    fault_restore (&fault, &disk, &saved);
    model = saved_model;
  }
  fault_saved_free (&saved);
  return good;
}

/* Random operations with a crash after each handful. */
static void
test_crashes (uint64_t *seed, unsigned rounds, bool pages, const char *what)
{
  bool good = true;
  unsigned states = 0;

  for (unsigned round = 0; round < rounds && good; ++round) {
    struct nc_layer *l;

    reset ();
    l = open_layer (true);
    good = l != NULL;
    for (unsigned crash = 0; crash < 12 && good; ++crash) {
      unsigned steps = rnd_below (seed, crash % 3 == 0 ? 120 : 12);
      enum fault_loss loss = rnd_below (seed, 3);
      bool flush, power = rnd_below (seed, 4) > 0;
      unsigned step;

      for (step = 0; step < steps && good; ++step)
        good = do_any (l, seed, pages, &flush) == 0 ||
          note ("step %u: %m", step);
      good = good && verify (l, LIVE);
      if (good && rnd_below (seed, 6) == 0) {
        good = l->format->finish (l) == 0 || note ("finish: %m");
        model_flushed ();
      }
      nc_layer_close (l);
      l = NULL;
      if (good) {
        if (power)
          fault_lose (&fault, &disk, loss, seed);
        states++;
        l = reopen (power ? POWER : KILLED);
        good = l != NULL || note ("round %u, crash %u, %s %d", round, crash,
                                  power ? "power" : "kill", loss);
      }
    }
    nc_layer_close (l);
  }
  ok (good, "%s (%u states)", what, states);
}

/* What goes wrong in a scenario. */
struct trouble {
  const char *what;
  unsigned mask;                /* operations that count */
  uint64_t n;                   /* how many fail in a row */
  bool partly;                  /* a write that fails was half done */
  int err;
  bool meanwhile;               /* others write while a flush goes on */
};

static bool
sync_failed_now (void)
{
  return fault.failed_kinds & (FAULT_SYNC | FAULT_DURABLE);
}

/* Whether step I of a scenario ended as it may, with RES and errno ERR.
 * FAILURES of the device were before it, and SYNC_FAILED if one of those was a
 * sync's. */
static bool
step_is_right (const struct trouble *t, unsigned i, bool flush, int res,
               int err, uint64_t failures, bool sync_failed)
{
  if (res == -1)
    return (tap_errors > 0 || sync_failed ||
            note ("step %u: failed without a report", i)) &&
      (fault.failures > 0 ||
       note ("step %u: failed with nothing wrong: %s", i, strerror (err))) &&
      (!sync_failed || !flush || err == EIO ||
       note ("step %u: a flush after a failed sync: errno %d", i, err)) &&
      (fault.failures == failures || flush || err == t->err ||
       note ("step %u: errno %d for a failed write", i, err));
  return !flush ||
    ((!sync_failed ||
      note ("step %u: a flush after a failed sync succeeded", i)) &&
     (fault.failures == failures ||
      (t->meanwhile && !sync_failed_now ()) ||
      note ("step %u: an error of the device was lost", i)));
}

/* Step I of a scenario. */
static int
do_step (struct nc_layer *l, unsigned i, uint64_t *seed, bool *flush)
{
  if (i == 5) {
    *flush = true;
    return do_flush (l);
  }
  if (i >= 4)
    return do_any (l, seed, i % 50 == 49, flush);
  *flush = false;
  return do_write (l, blocks[i * 4], 1);
}

/* Whether the end of a scenario is as it may be. */
static bool
finishes_right (struct nc_layer *l, bool sync_failed)
{
  uint64_t failures = fault.failures;

  if (l->format->finish (l) == -1)
    return fault.failures > 0 || note ("finish failed with nothing wrong: %m");
  model_flushed ();
  return (!sync_failed && fault.failures == failures) ||
    note ("finish succeeded in spite of an error");
}

/* Whether the image that a failed sync left says so. */
static bool
is_not_clean (void)
{
  struct fvd_reader r;
  bool good = fvd_reader_open (&r, disk.data, disk.size) == 0 ||
    note ("the reader says: %s", r.why);

  good = good && (!(r.flags & 1) || note ("marked clean after a failed sync"));
  fvd_reader_close (&r);
  return good;
}

/* A scenario with TROUBLE at the operation AT (0: none).  Everything that can
 * happen to an image: open, first writes, overwrites, zero, flushes until
 * the journal has wrapped, finish.
 * Returns how many operations it took, or 0 if something was wrong. */
static uint64_t
run_scenario (uint64_t seed, const struct trouble *t, uint64_t at)
{
  struct nc_layer *l;
  bool sync_failed = false, flush, good = true;
  uint64_t count;

  reset ();
  fault_set (&fault, t->mask, at, t->n, t->err);
  fault.partly = t->partly;
  hook_seed = t->meanwhile ? seed | 1 : 0;
  tap_clear ();
  l = open_layer (true);
  if (l == NULL) {
    good = (fault.failures > 0 && tap_errors > 0) ||
      note ("open failed without an error");
    return good ? fault.count : 0;
  }
  for (unsigned i = 0; i < 140 && good; ++i) {
    uint64_t failures = fault.failures;
    int res;

    tap_clear ();
    res = do_step (l, i, &seed, &flush);
    good = step_is_right (t, i, flush, res, errno, failures, sync_failed);
    sync_failed = sync_failed_now ();
    if (good && t->n == 1 && i % 20 == 19)
      good = verify (l, LIVE) || note ("step %u", i);
  }
  good = good && finishes_right (l, sync_failed);
  count = fault.count;
  nc_layer_close (l);
  good = good && (!sync_failed || is_not_clean ());
  return good ? count : 0;
}

static void
test_faults (uint64_t *seed)
{
  static const struct trouble trouble[] = {
    { "power goes at any change",
      FAULT_CHANGES, UINT64_MAX, false, EIO, false },
    { "power goes at any change, with writes while flushes go on",
      FAULT_CHANGES, UINT64_MAX, false, EIO, true },
    { "power goes in the middle of any change",
      FAULT_CHANGES, UINT64_MAX, true, EIO, false },
    { "any change fails once with EIO", FAULT_CHANGES, 1, false, EIO,
      false },
    { "any write fails once with ENOSPC, half done",
      FAULT_WRITE, 1, true, ENOSPC, false },
    { "any sync fails once with EIO", FAULT_SYNC | FAULT_DURABLE, 1, false,
      EIO, false },
    { "any sync or record fails once with ENOSPC",
      FAULT_SYNC | FAULT_DURABLE, 1, true, ENOSPC, false },
    { "any read fails once with EIO", FAULT_READ, 1, false, EIO, false },
  };

  for (size_t i = 0; i < sizeof trouble / sizeof trouble[0]; ++i) {
    const struct trouble *t = &trouble[i];
    uint64_t s = rnd (seed), total = run_scenario (s, t, 0);
    uint64_t stride = 1 + total / LESS (60);
    bool good = total > 0;
    unsigned runs = 0;

    /* Each of the first and the last operations, and a sample between. */
    for (uint64_t at = 1; at <= total && good; ++runs) {
      good = run_scenario (s, t, at) > 0 && any_loss_is_harmless (seed);
      fault_lose (&fault, &disk, at % 3, seed);
      good = good && opens_and_holds (POWER);
      if (!good)
        note ("at operation %u of %u, scenario %llu", (unsigned) at,
              (unsigned) total, (unsigned long long) s);
      at += at < LESS (30) || at + LESS (24) > total ? 1
        : 1 + rnd_below (seed, stride);
    }
    hook_seed = 0;
    ok (good, "%s: nothing lost that was flushed (%u of %u operations)",
        t->what, runs, (unsigned) total);
  }
}

/* Header copies torn at every sector, as if the write had stopped there. */
static void
test_torn_headers (void)
{
  bool good = true;

  for (unsigned when = 0; when < 3 && good; ++when)
    for (unsigned from = 0; from < 8 && good; ++from)
      for (unsigned to = from + 1; to <= 8 && good; ++to) {
        struct nc_layer *l;
        unsigned copy;

        /* The newer copy right after it was written, at open, and the older
         * one when the newer is durable. */
        reset ();
        l = open_layer (true);
        good = l != NULL;
        if (good && when > 0)
          good = do_write (l, 0, 1) == 0 && do_flush (l) == 0;
        if (good && when == 2) {
          good = l->format->finish (l) == 0;
          model_flushed ();
        }
        nc_layer_close (l);
        fault.n_undo = 0;
        copy = fvd_reader_le (disk.data + FVD_AT_SEQ, 8) >
          fvd_reader_le (disk.data + 4096 + FVD_AT_SEQ, 8) ? 0 : 1;
        if (when > 0)
          copy = 1 - copy;
        memset (disk.data + 4096 * copy + 512 * from, 0x5a,
                512 * (to - from));
        good = good && opens_and_holds (POWER);
        if (!good)
          note ("case %u, sectors %u to %u", when, from, to);
      }
  ok (good, "one header copy may be torn at any sector");

  reset ();
  disk.data[100] ^= 1;
  disk.data[4096 + 100] ^= 1;
  tap_clear ();
  errno = 0;
  ok (open_layer (false) == NULL && errno != 0 && tap_errors == 1,
      "with both copies gone the image is refused, reported once");
}

/* Let the sync after the first write fail from now on, as if the server had
 * been killed before it; see how many came before that write. */
static struct kill_at_header {
  bool written;
  uint64_t syncs;
} at_header;

static void
kill_after_header (void *opaque __attribute__ ((__unused__)))
{
  if (fault.writes == 1 && !at_header.written) {
    at_header.written = true;
    at_header.syncs = fault.syncs;
    fault.at = fault.count + 1;
    fault.n = UINT64_MAX;
    fault.err = EIO;
  }
}

/* Killed between a header and its sync, and opened again, twice: at no
 * moment may power loss tear both copies. */
static void
test_killed_openings (uint64_t *seed)
{
  bool good = true, first = true;

  for (unsigned round = 0; round < 1 + LESS (12) && good; ++round) {
    struct nc_layer *l;

    reset ();
    l = open_layer (true);
    good = l && do_write (l, 1, 1) == 0 && do_flush (l) == 0;
    nc_layer_close (l);
    for (unsigned i = 0; i < 3 && good; ++i) {
      at_header = (struct kill_at_header) { .written = false };
      fault_set (&fault, FAULT_SYNC, 0, 0, 0);
      fault.hook = kill_after_header;
      l = open_layer (true);
      fault.hook = NULL;
      good = (l == NULL && at_header.written) ||
        note ("the open did not fail");
      first = first && at_header.syncs > 0;
      nc_layer_close (l);
      good = good && any_loss_is_harmless (seed);
    }
  }
  ok (first, "a sync comes before the header of a new life");
  ok (good, "killed between a header and its sync, then power loss: the "
      "image opens");
}

static void
test_wrap (void)
{
  struct nc_layer *l;
  struct fvd_reader r;
  bool good;

  reset ();
  l = open_layer (true);
  good = l != NULL;
  /* A record a flush, several times round the ring of 32. */
  for (unsigned i = 0; i < 150 && good; ++i) {
    good = do_write (l, 100 + 2 * i, 1) == 0 && do_flush (l) == 0;
    if (good && i % 10 == 9) {
      nc_layer_close (l);
      fault_lose (&fault, &disk, LOSE_ALL, NULL);
      l = reopen (POWER);
      good = l != NULL || note ("record %u", i);
    }
  }
  nc_layer_close (l);
  ok (good, "the journal wraps, and every record counts when it must");

  reset ();
  l = open_layer (true);
  good = l != NULL;
  /* More ranges in one flush than the journal can hold. */
  for (unsigned i = 0; i < 1700 && good; ++i)
    good = do_write (l, 2 * i, 1) == 0;
  good = good && do_flush (l) == 0;
  nc_layer_close (l);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  ok (good && opens_and_holds (POWER),
      "a flush may have more ranges than the journal has room for");

  reset ();
  l = open_layer (true);
  good = l && do_write (l, 1, 1) == 0 && do_zero (l, 4032, 2) == 0 &&
    l->format->finish (l) == 0;
  model_flushed ();
  nc_layer_close (l);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  good = good && fvd_reader_open (&r, disk.data, disk.size) == 0;
  ok (good && (r.flags & 1) && r.records == 0 && r.copies == 2,
      "a finished image is clean and has no records");
  if (good)
    fvd_reader_close (&r);
  ok (opens_and_holds (POWER), "and opens again");
}

/* A checkpoint of a page that the file has already, with a first write to
 * that page (and every second time a flush) in each gap between its steps,
 * and power going at each. */
static struct {
  unsigned n, at;
  bool flush, elsewhere;        /* not in the main thread */
} gap;

static void
write_in_gap (void *opaque)
{
  struct nc_layer *l = opaque;

  if (pthread_equal (pthread_self (), main_thread) == gap.elsewhere ||
      gap.n++ != gap.at)
    return;
  model.late[4031] = 1;
  if (do_write (l, 4031, 1) == 0 && gap.flush && l->format->flush (l) == 0) {
    memset (model.late, 0, sizeof model.late);
    model_flushed ();
  }
}

/* Flush COUNT records into the journal. */
static bool
fill_journal (struct nc_layer *l, unsigned first, unsigned count)
{
  for (unsigned i = first; i < first + count; ++i)
    if (do_write (l, 70 + 2 * i, 1) == -1 || do_flush (l) == -1)
      return false;
  return true;
}

/* Let the checkpoint in the thread fail. */
static bool
fail_in_thread (struct nc_layer *l)
{
  if (do_write (l, 70 + 2 * 16, 1) == -1)
    return false;
  fault_set (&fault, FAULT_WRITE, 1, 1, EIO);
  if (do_flush (l) == -1)
    return false;
  while (fault.failures == 0)
    usleep (100);
  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  return true;
}

/* The flush that begins a checkpoint in the thread, or, IN_FLUSH, has one
 * itself because that in the thread has failed.  The journal has room for 32
 * records. */
static bool
checkpoint_with_fault (bool in_flush, unsigned operation)
{
  struct nc_layer *l = open_layer (true);
  /* In compact images the chunk's place takes one. */
  bool good = l && fill_journal (l, 0, compact ? 15 : 16) &&
    (!in_flush || (fail_in_thread (l) && fill_journal (l, 17, 15))) &&
    do_write (l, 70 + 2 * 40, 1) == 0;
  bool flushed;

  gap.n = 0;
  gap.elsewhere = !in_flush;
  fault.hook = write_in_gap;
  fault.opaque = l;
  /* A flush that does not have one itself has two operations. */
  fault_set (&fault, FAULT_CHANGES, operation + (in_flush ? 0 : 2),
             UINT64_MAX, EIO);
  flushed = good && l->format->flush (l) == 0;
  nc_layer_close (l);           /* waits for the thread */
  fault.hook = NULL;
  if (flushed)
    model_flushed ();
  memset (model.late, 0, sizeof model.late);
  return good || note ("no checkpoint");
}

static void
test_checkpoint (uint64_t *seed, bool in_flush)
{
  bool good = true;

  const unsigned operations = compact ? 20 : 14;

  for (unsigned run = 0; run < LESS (16) * operations && good; ++run) {
    reset ();
    gap.at = run / operations;
    gap.flush = !in_flush && gap.at % 2;
    good = checkpoint_with_fault (in_flush, 1 + run % operations) &&
      any_loss_is_harmless (seed);
    fault_lose (&fault, &disk, LOSE_SOME, seed);
    good = good && opens_and_holds (POWER);
    if (!good)
      note ("gap %u, operation %u", gap.at, 1 + run % operations);
  }
  ok (good, "power may go at each step of a checkpoint in %s, with a write in "
      "each gap", in_flush ? "a flush" : "the background");
}

/* Flushes go on while a checkpoint hangs. */
static struct {
  _Atomic (bool) hangs, go_on;
} hang;

static void
hang_in_thread (void *opaque __attribute__ ((__unused__)))
{
  if (pthread_equal (pthread_self (), main_thread))
    return;
  hang.hangs = true;
  while (!hang.go_on)
    usleep (100);
}

static void
test_no_stall (void)
{
  struct nc_layer *l;
  bool good;

  reset ();
  l = open_layer (true);
  must (l != NULL, "open");
  hang.hangs = hang.go_on = false;
  fault.hook = hang_in_thread;
  good = true;
  for (unsigned i = 0; i < (compact ? 31 : 32) && good; ++i)
    good = do_write (l, 70 + 2 * i, 1) == 0 && l->format->flush (l) == 0;
  model_flushed ();
  for (unsigned i = 0; i < 300000 && !hang.hangs; ++i)
    usleep (100);
  ok (good && hang.hangs, "flushes go on while a checkpoint hangs");
  hang.go_on = true;
  good = do_write (l, 70 + 2 * 32, 1) == 0 && l->format->flush (l) == 0;
  model_flushed ();
  fault.hook = NULL;
  ok (good, "and wait for it when the journal is full");
  nc_layer_close (l);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  ok (opens_and_holds (POWER), "and nothing is lost by it");
}

/* A thread that found a page not loaded, and goes on only when another has
 * loaded it and a checkpoint is at work: this stands before the library's
 * own, and can say what was true a while ago. */
static enum nc_bitmap_found (*real_run) (const struct nc_bitmap *, uint64_t,
                                         uint64_t, uint64_t *);
static bool late;
static unsigned times_late, times_wrong;

enum nc_bitmap_found
nc_bitmap_run (const struct nc_bitmap *bm, uint64_t blk, uint64_t max,
               uint64_t *run)
{
  if (late) {
    late = false;
    times_late++;
    return NC_RUN_UNLOADED;
  }
  return real_run (bm, blk, max, run);
}

static void
ask_late (void *opaque)
{
  struct nc_layer *l = opaque;
  bool allocated;
  uint64_t run;

  late = true;
  if (l->format->run (l, 0, BLOCK, &allocated, &run) == -1 || !allocated)
    times_wrong++;
  late = false;
}

static void
test_load_in_checkpoint (void)
{
  struct nc_layer *l;

  times_late = times_wrong = 0;
  reset ();
  l = open_layer (true);
  must (l && do_write (l, 0, 1) == 0, "write");
  tap_clear ();
  fault.hook = ask_late;
  fault.opaque = l;
  ok (l->format->finish (l) == 0 && times_late >= 4 && times_wrong == 0 &&
      tap_errors == 0,
      "who loads a page late does not read it while a checkpoint writes it");
  fault.hook = NULL;
  model_flushed ();
  nc_layer_close (l);
  ok (opens_and_holds (KILLED), "and nothing is lost by it");
}

/* In place of other threads: just before a thread reads a sector because it is
 * not loaded, one loads it, and a checkpoint has written half of it. */
struct tearing {
  struct nc_layer *layer;
  uint64_t sector;              /* in the file */
  bool table;                   /* it is one of the table of chunks */
  bool is_torn;
};

static void
load_and_tear (void *opaque)
{
  struct tearing *t = opaque;
  struct nc_layer *l = t->layer;
  uint8_t buf[BLOCK];
  bool allocated;
  uint64_t run;

  if (t->is_torn)
    return;
  must ((t->table ? l->format->pread (l, buf, BLOCK, 0)
         : l->format->run (l, 0, BLOCK, &allocated, &run)) == 0, "load");
  disk.data[t->sector + 300] ^= 0xff;
  t->is_torn = true;
}

static int
add_range (void *opaque, uint64_t offset, uint64_t count)
{
  uint64_t *sum = opaque;

  *sum += offset + count;
  return 0;
}

/* What a thread that comes late makes of it. */
static bool
works_late (struct nc_layer *l, unsigned how)
{
  uint64_t run, sum = 0;
  uint8_t buf[BLOCK];
  bool allocated;

  switch (how) {
  case 0:
    return l->format->walk (l, 0, SIZE, add_range, &sum) == 0 &&
      sum == BLOCK + 3 * BLOCK;
  case 1:
    return l->format->allocated (l, &sum) == 0 && sum == 2 * BLOCK;
  case 2:
    return l->format->run (l, 0, SIZE, &allocated, &run) == 0 && allocated &&
      run == BLOCK;
  default:
    return l->format->pread (l, buf, BLOCK, 0) == 0;
  }
}

static void
test_sectors_in_checkpoint (void)
{
  for (unsigned how = 0; how < (compact ? 4 : 3); ++how) {
    struct tearing t = { .table = how == 3 };
    struct fvd_reader r;

    reset ();
    t.layer = open_layer (true);
    must (t.layer && do_write (t.layer, 0, 1) == 0 &&
          do_write (t.layer, 2, 1) == 0 &&
          t.layer->format->finish (t.layer) == 0, "write");
    nc_layer_close (t.layer);
    must (fvd_reader_open (&r, disk.data, disk.size) == 0, r.why);
    t.sector = fvd_reader_le (r.header + (t.table ? FVD_AT_TABLE
                                          : FVD_AT_BITMAP), 8);
    fvd_reader_close (&r);
    t.layer = open_layer (true);
    must (t.layer != NULL, "open");
    tap_clear ();
    fault.read_hook = load_and_tear;
    fault.opaque = &t;
    ok (works_late (t.layer, how) && t.is_torn && tap_errors == 0,
        "who reads a sector late, for %s, is not told that it is damaged",
        how == 0 ? "a walk" : how == 1 ? "the sum" : how == 2 ? "a bit"
        : "the table");
    fault.read_hook = NULL;
    disk.data[t.sector + 300] ^= 0xff;
    nc_layer_close (t.layer);
  }
}

static void
test_errors (void)
{
  struct nc_layer *l;

  reset ();
  l = open_layer (true);
  must (l != NULL, "open");
  fault_set (&fault, FAULT_WRITE, 1, 1, ENOSPC);
  tap_clear ();
  ok (do_write (l, 0, 1) == -1 && errno == ENOSPC && tap_errors == 1,
      "ENOSPC of a write is returned as ENOSPC, reported once");
  ok (do_write (l, 0, 1) == 0 && do_flush (l) == 0 && verify (l, LIVE),
      "and the layer lives");
  fault_set (&fault, FAULT_SYNC, 0, 0, 0);
  ok (do_flush (l) == 0 && fault.syncs == 1 && fault.durable == 0 &&
      fault.writes == 0, "a flush with nothing new is one sync");
  ok (do_write (l, 0, 1) == 0 && do_flush (l) == 0 && fault.durable == 0,
      "overwriting needs no record");
  nc_layer_close (l);

  reset ();
  fault_set (&fault, FAULT_CHANGES, 0, 0, 0);
  l = open_layer (false);
  ok (l && fault.count == 0, "opening for reading changes nothing");
  nc_layer_close (l);
}

static void
test_failed_sync (void)
{
  uint8_t buf[BLOCK];
  struct nc_layer *l;
  uint64_t durable;

  reset ();
  l = open_layer (true);
  must (l && do_write (l, 0, 1) == 0 && do_flush (l) == 0 &&
        do_write (l, 5, 1) == 0, "write");
  fault_set (&fault, FAULT_SYNC, 1, 1, EIO);
  tap_clear ();
  ok (do_flush (l) == -1 && errno == EIO && tap_errors >= 1,
      "a failed sync is EIO");
  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  errno = 0;
  ok (do_flush (l) == -1 && errno == EIO, "so is every flush after it");
  do_write (l, 6, 1);
  errno = 0;
  ok (do_flush (l) == -1 && errno == EIO, "also when something was written");
  durable = fault.durable + fault.syncs;
  errno = 0;
  ok (l->format->finish (l) == -1 && errno == EIO, "it cannot be finished");
  ok (durable == 0 && fault.durable + fault.syncs == 0,
      "and no sync is tried again");
  ok (l->format->pread (l, buf, BLOCK, 0) == 0, "but it can be read");
  nc_layer_close (l);
}

/* Who has synced the guest's data in vain is all the same. */
static void
test_other_failed_syncs (void)
{
  struct nc_layer *l;

  for (unsigned at = 1; at <= 2; ++at) {
    reset ();
    l = open_layer (true);
    must (l && do_write (l, 5, 1) == 0, "write");
    fault_set (&fault, FAULT_SYNC, at, 1, EIO);
    errno = 0;
    ok (nc_fvd_profile_write (l, NULL, 0) == -1 && errno == EIO &&
        do_flush (l) == -1 && errno == EIO &&
        nc_fvd_profile_write (l, NULL, 0) == -1 && errno == EIO,
        "a sync, of two, that failed for a profile is final: %u", at);
    nc_layer_close (l);
  }

  reset ();
  l = open_layer (true);
  must (l && do_write (l, 5, 1) == 0, "write");
  fault_set (&fault, FAULT_DURABLE, 1, 1, EIO);
  ok (do_flush (l) == -1 && errno == EIO && do_flush (l) == -1 &&
      errno == EIO, "a record that could not be made durable is final, too");
  nc_layer_close (l);
}

/* Memory that outlives the process. */
static void
test_memory (uint64_t *seed)
{
  int fd = memfd_create ("test", MFD_CLOEXEC);
  bool good = true, flush;

  must (fd != -1, "memfd_create");
  reset ();
  for (unsigned i = 0; i < 30 && good; ++i) {
    struct nc_layer *l;

    fault_set (&fault, FAULT_ALL, 0, 0, 0);
    l = open_layer_fd (true, fd);
    good = (l || note ("%s", tap_error)) && (verify (l, LIVE) ||
                                             note ("death %u", i));
    for (unsigned j = rnd_below (seed, 30); j > 0 && good; --j)
      good = do_any (l, seed, i % 8 == 7, &flush) == 0;
    nc_layer_close (l);
  }
  ok (good, "with a memfd nothing is lost by a kill, flushed or not");
  if (good) {
    struct nc_layer *l = open_layer_fd (true, fd);

    good = l && do_flush (l) == 0;
    nc_layer_close (l);
    fault_lose (&fault, &disk, LOSE_ALL, NULL);
    ok (good && opens_and_holds (POWER),
        "and the next flush makes durable what the last process wrote");
  }
  close (fd);
}

static void
die (void *opaque __attribute__ ((__unused__)))
{
  _exit (7);
}

/* A server that is killed while it opens the image has put the journal into
 * the memory, but no life.  What another process writes then is not there. */
static void
test_memory_without_life (void)
{
  int status, fd = memfd_create ("test", MFD_CLOEXEC);
  struct nc_layer *l;
  bool good;
  pid_t pid;

  must (fd != -1, "memfd_create");
  reset ();
  l = open_layer (true);
  must (l && do_write (l, 70, 1) == 0 && do_flush (l) == 0, "write");
  nc_layer_close (l);

  pid = fork ();
  must (pid != -1, "fork");
  if (pid == 0) {
    fault.hook = die;
    nc_layer_close (open_layer_fd (true, fd));
    _exit (1);
  }
  must (waitpid (pid, &status, 0) == pid && WIFEXITED (status) &&
        WEXITSTATUS (status) == 7, "a server that dies as it opens");

  l = open_layer (true);
  must (l && do_write (l, 2000, 1) == 0 && l->format->finish (l) == 0,
        "another writer");
  model_flushed ();
  nc_layer_close (l);

  l = open_layer_fd (true, fd);
  good = l && verify (l, LIVE) && do_write (l, 64, 1) == 0 &&
    l->format->finish (l) == 0;
  model_flushed ();
  nc_layer_close (l);
  ok (good, "memory of a server that was killed before its life began is "
      "not believed");
  ok (opens_and_holds (KILLED), "and loses nothing for later ones");
  close (fd);
}

/* Whether the server that comes after a failed sync is right: one that had
 * begun is read by the next one and takes no write; one that had not is not
 * opened.  Nothing is written. */
static bool
stays_failed (int fd, bool had_begun)
{
  bool good, allocated;
  struct nc_layer *l;
  uint64_t run;

  fault_set (&fault, FAULT_CHANGES, 0, 0, 0);
  tap_clear ();
  l = open_layer_fd (true, fd);
  if (had_begun)
    good = l && tap_errors == 1 &&
      l->format->run (l, 5 * BLOCK, BLOCK, &allocated, &run) == 0 &&
      allocated && do_write (l, 6, 1) == -1 && errno == EIO &&
      do_flush (l) == -1 && errno == EIO &&
      l->format->finish (l) == -1 && errno == EIO;
  else
    good = l == NULL && errno == EIO && tap_errors == 1;
  nc_layer_close (l);
  return good && fault.count == 0;
}

/* A failed sync: what the memory says may not be in the file. */
static void
test_memory_after_failed_sync (void)
{
  for (unsigned when = 0; when < 3; ++when) {
    static const char *const what[] = {
      "at a flush", "of a record", "at the open",
    };
    int fd = memfd_create ("test", MFD_CLOEXEC);
    struct nc_layer *l;
    bool good = true;

    must (fd != -1, "memfd_create");
    reset ();
    if (when == 2)
      fault_set (&fault, FAULT_SYNC, 1, 1, EIO);
    l = open_layer_fd (true, fd);
    if (when < 2) {
      must (l && do_write (l, 5, 1) == 0, "write");
      fault_set (&fault, when ? FAULT_DURABLE : FAULT_SYNC, 1, 1, EIO);
      good = do_flush (l) == -1;
    }
    else
      good = l == NULL;
    nc_layer_close (l);
    for (unsigned i = 0; i < 2 && good; ++i)
      good = stays_failed (fd, when < 2);
    ok (good, "a sync that failed %s is known to the next server", what[when]);
    ok (opens_and_holds (KILLED), "without the memory it opens");
    close (fd);
  }
}

/* Put VALUE into both header copies, with right checksums. */
static void
put (unsigned at, unsigned bytes, uint64_t value)
{
  for (unsigned i = 0; i < 2; ++i) {
    uint8_t *h = disk.data + 4096 * i;

    fvd_reader_put_le (h + at, bytes, value);
    if (at == FVD_AT_SEQ)
      fvd_reader_put_le (h + at, 8, (value & ~UINT64_C (1)) | i);
    fvd_reader_seal_header (h);
  }
}

/* Use an image that may be nonsense: nothing may crash, and what it says
 * stays inside of what it says it is. */
static bool
survives (bool writable)
{
  uint8_t buf[5000];
  struct nc_layer *l;
  uint64_t at = 0, run;
  bool allocated, good = true;

  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  fault.track = false;
  tap_clear ();
  errno = 0;
  l = open_layer (writable);
  if (l == NULL)
    return (errno != 0 && tap_errors >= 1) || note ("refused, but silently");
  for (unsigned i = 0; i < 200 && at < l->size && good; ++i) {
    if (l->format->run (l, at, l->size - at, &allocated, &run) == -1)
      break;
    good = (run > 0 && run <= l->size - at) || note ("run of nothing");
    if (allocated)
      l->format->pread (l, buf, nc_min64 (nc_min64 (run, sizeof buf),
                                          l->size - at), at);
    at += run;
  }
  if (writable && l->size >= 2 * l->block_size && l->block_size < 1 << 16) {
    NC_FREE uint8_t *data = calloc (1, l->block_size);
    struct iovec iov = { data, l->block_size };

    if (l->format->pwritev (l, &iov, 1, l->block_size) == 0 &&
        l->format->set_allocated (l, l->block_size, l->block_size) == 0 &&
        l->format->flush (l) == 0)
      l->format->finish (l);
  }
  nc_layer_close (l);
  return good;
}

/* Whether the image is refused, with a message. */
static bool
refused (bool writable)
{
  struct nc_layer *l;
  bool good;

  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  tap_clear ();
  errno = 0;
  l = open_layer (writable);
  good = l == NULL && errno != 0 && tap_errors == 1;
  if (!good)
    note ("%s, errno %d, %u messages", l ? "accepted" : "refused",
          errno, tap_errors);
  nc_layer_close (l);
  return good;
}

struct field {
  unsigned at, bytes;
  uint64_t value;
};

/* None of them may be in a header, or not in one that is written to. */
static const struct field bad_fields[] = {
  { FVD_AT_MAGIC, 1, 'X' }, { FVD_AT_VERSION, 4, 0 },
  { FVD_AT_VERSION, 4, 2 }, { FVD_AT_VERSION, 4, UINT32_MAX },
  { FVD_AT_LENGTH, 4, 0 }, { FVD_AT_LENGTH, 4, 4095 },
  { FVD_AT_LENGTH, 4, UINT32_MAX },
  { FVD_AT_INCOMPAT, 8, 1 }, { FVD_AT_INCOMPAT, 8, UINT64_C (1) << 63 },
  { FVD_AT_RO_COMPAT, 8, 1 },         /* opened for writing here */
  { FVD_AT_SIZE, 8, (UINT64_C (1) << 62) + 1 },
  { FVD_AT_SIZE, 8, UINT64_MAX }, { FVD_AT_SIZE, 8, UINT64_C (1) << 63 },
  { FVD_AT_SIZE, 8, UINT64_C (1) << 62 },     /* the file is shorter */
  { FVD_AT_SIZE, 8, SIZE + 1 },
  { FVD_AT_BLOCK_BITS, 4, 0 }, { FVD_AT_BLOCK_BITS, 4, 11 },
  { FVD_AT_BLOCK_BITS, 4, 22 }, { FVD_AT_BLOCK_BITS, 4, 64 },
  { FVD_AT_BLOCK_BITS, 4, 255 }, { FVD_AT_BLOCK_BITS, 4, UINT32_MAX },
  { FVD_AT_FLAGS, 4, 16 }, { FVD_AT_FLAGS, 4, UINT32_MAX },
  { FVD_AT_FLAGS, 4, 2 },             /* a backing without a format */
  { FVD_AT_FLAGS, 4, 4 },             /* retired: not for writing */
  { FVD_AT_SUMMARY, 8, 0 }, { FVD_AT_SUMMARY, 8, 4096 },
  { FVD_AT_SUMMARY, 8, 8193 }, { FVD_AT_SUMMARY, 8, UINT64_MAX },
  { FVD_AT_SUMMARY, 8, UINT64_MAX - 4095 },
  { FVD_AT_SUMMARY + 8, 8, 0 }, { FVD_AT_SUMMARY + 8, 8, 4097 },
  { FVD_AT_SUMMARY + 8, 8, UINT64_MAX },
  { FVD_AT_SUMMARY + 8, 8, UINT64_MAX - 4095 },
  { FVD_AT_SUMMARY + 8, 8, 1 << 20 },         /* overlaps the next */
  { FVD_AT_BITMAP, 8, 0 }, { FVD_AT_BITMAP, 8, 8192 },
  { FVD_AT_BITMAP, 8, 8193 }, { FVD_AT_BITMAP, 8, UINT64_MAX - 4095 },
  { FVD_AT_BITMAP, 8, UINT64_MAX }, { FVD_AT_BITMAP + 8, 8, 0 },
  { FVD_AT_BITMAP + 8, 8, UINT64_MAX - 4095 },
  { FVD_AT_BITMAP + 8, 8, 8 << 20 },
  { FVD_AT_JOURNAL, 8, 0 }, { FVD_AT_JOURNAL, 8, 4096 },
  { FVD_AT_JOURNAL, 8, UINT64_MAX - 4095 },
  { FVD_AT_JOURNAL, 8, UINT64_MAX }, { FVD_AT_JOURNAL + 8, 8, 0 },
  { FVD_AT_JOURNAL + 8, 8, 12288 }, { FVD_AT_JOURNAL + 8, 8, 16384 + 512 },
  { FVD_AT_JOURNAL + 8, 8, (UINT64_C (1) << 30) + 4096 },
  { FVD_AT_JOURNAL + 8, 8, UINT64_C (1) << 30 },
  { FVD_AT_JOURNAL + 8, 8, UINT64_MAX - 4095 },
  { FVD_AT_DATA, 8, 0 }, { FVD_AT_DATA, 8, 8192 },
  { FVD_AT_DATA, 8, UINT64_MAX }, { FVD_AT_DATA, 8, UINT64_MAX - 4095 },
  { FVD_AT_DATA, 8, UINT64_C (1) << 62 },
  { FVD_AT_TABLE, 8, 8192 }, { FVD_AT_TABLE + 8, 8, 1 },
  { FVD_AT_PROFILE, 8, 8192 }, { FVD_AT_PROFILE + 8, 8, 1 },
  { FVD_AT_CHUNK_BITS, 4, 20 }, { FVD_AT_GROW_UNIT, 8, 1 << 20 },
  { FVD_AT_CHUNKS, 8, 1 }, { 228, 1, 1 }, { 248, 1, 1 }, { 304, 4, 65 },
  { 308, 4, 60001 }, { 312, 4, 60001 }, { 316, 4, 100 }, { 336, 1, 1 },
  { 1023, 1, 1 },
  { FVD_AT_STRINGS, 2, 1025 }, { FVD_AT_STRINGS, 2, UINT16_MAX },
  { FVD_AT_STRINGS, 2, 3000 }, { FVD_AT_CHECKSUM - 1, 1, 1 },
  { FVD_AT_STRINGS, 2, 3 },           /* three zero bytes */
  { FVD_AT_STRINGS + 8, 2, 2 },       /* the reserved ones */
};

static void
test_hostile_headers (void)
{
  bool good = true, right = true;

  for (size_t i = 0; i < sizeof bad_fields / sizeof bad_fields[0]; ++i) {
    const struct field *f = &bad_fields[i];

    reset ();
    put (f->at, f->bytes, f->value);
    if (!refused (true)) {
      note ("offset %u: %llu", f->at, (unsigned long long) f->value);
      right = false;
    }
    good = survives (false) && good;
  }
  ok (right, "%u headers with a wrong field are refused with one message",
      (unsigned) (sizeof bad_fields / sizeof bad_fields[0]));
  ok (good, "and do no harm to who reads");
}

static void
test_odd_headers (void)
{
  static const struct field odd[] = {
    { FVD_AT_SEQ, 8, 0 }, { FVD_AT_SEQ, 8, UINT64_MAX },
    { FVD_AT_SEQ, 8, UINT64_MAX - 2 }, { FVD_AT_COMPAT, 8, UINT64_MAX },
    { FVD_AT_LIFE, 8, 0 }, { FVD_AT_LIFE, 8, UINT64_MAX },
    { FVD_AT_TAIL, 8, 0 }, { FVD_AT_TAIL, 8, UINT64_MAX },
    { FVD_AT_TAIL, 8, UINT64_MAX - 3 },
    { FVD_AT_BACKING_SIZE, 8, 1 }, { FVD_AT_BACKING_SIZE, 8, UINT64_MAX },
    { FVD_AT_SIZE, 8, 0 }, { FVD_AT_SIZE, 8, 1 }, { FVD_AT_SIZE, 8, 4096 },
    { FVD_AT_BLOCK_BITS, 4, 13 }, { FVD_AT_FLAGS, 4, 0 },
  };
  bool good = true;

  for (size_t i = 0; i < sizeof odd / sizeof odd[0]; ++i) {
    reset ();
    put (odd[i].at, odd[i].bytes, odd[i].value);
    good = survives (false) && survives (true) && survives (true) && good;
  }
  ok (good, "odd ones do no harm");
}

static void
test_features (void)
{
  struct nc_layer *l;

  reset ();
  memset (disk.data + FVD_AT_UUID, 0, 16);
  memset (disk.data + 4096 + FVD_AT_UUID, 0, 16);
  put (FVD_AT_LIFE, 8, 1);
  ok (refused (true), "an image without a UUID is refused");
  reset ();
  put (FVD_AT_COMPAT, 8, UINT64_MAX);
  ok (opens_and_holds (KILLED), "unknown compatible features are ignored");
  reset ();
  put (FVD_AT_RO_COMPAT, 8, 2);
  l = open_layer (false);
  ok (l != NULL, "unknown read-only compatible ones allow reading");
  nc_layer_close (l);
}

static void
test_short_files (void)
{
  reset ();
  disk.size = data_offset + SIZE - 1;
  ok (refused (true), "a file shorter than its disk is refused");
  disk.size = 8191;
  ok (refused (false), "a file without room for the headers is refused");
  disk.size = 0;
  ok (refused (false), "an empty file is refused");
  disk.size = data_offset + SIZE;
}

/* A sector of the journal, as a hostile image may have it. */
static void
put_record (uint64_t number, unsigned type, unsigned n, uint64_t blk,
            uint32_t count)
{
  struct fvd_reader r;
  uint8_t *s;
  uint64_t index;

  must (fvd_reader_open (&r, disk.data, disk.size) == 0, r.why);
  index = number % r.journal_sectors;
  s = disk.data + r.journal + index * 512;
  fvd_reader_close (&r);
  memset (s, 0, 512);
  memcpy (s, "FVDJ", 4);
  fvd_reader_put_le (s + 4, 2, type);
  fvd_reader_put_le (s + 6, 2, n);
  fvd_reader_put_le (s + 8, 8, number);
  fvd_reader_put_le (s + 24, 8, blk);
  fvd_reader_put_le (s + 32, 4, count);
  fvd_reader_seal (image_uuid.bytes, 3, index, s);
}

/* Numbers at the end of their range must not come round to 0: what is
 * flushed has to be there, or the image be refused. */
static void
test_numbers_at_the_end (void)
{
  static const struct { const char *what; unsigned at; uint64_t value; }
  t[] = {
    { "journal tail", FVD_AT_TAIL, UINT64_MAX },
    { "journal tail", FVD_AT_TAIL, UINT64_MAX - 1 },
    { "header number", FVD_AT_SEQ, UINT64_MAX },
    { "header number", FVD_AT_SEQ, UINT64_MAX - 2 },
    { "journal tail", FVD_AT_TAIL, UINT64_MAX / 2 },
    { "journal tail", FVD_AT_TAIL, UINT64_MAX / 2 - 5 },
    { "header number", FVD_AT_SEQ, UINT64_MAX / 2 },
    { "header number", FVD_AT_SEQ, UINT64_MAX / 2 - 2 },
    { "record number", 0, UINT64_MAX / 2 },
    { "record number", 0, UINT64_MAX },
    { "record number", 0, UINT64_MAX - 2 },
  };

  static const unsigned flushes[] = { 1, 10, 40, 200 };

  for (size_t i = 0; i < 4 * sizeof t / sizeof t[0]; ++i) {
    struct nc_layer *l;
    static bool good;
    const unsigned n = flushes[i % 4];

    if (i % 4 == 0)
      good = true;
    reset ();
    if (t[i / 4].at)
      put (t[i / 4].at, 8, t[i / 4].value);
    else {
      put (FVD_AT_FLAGS, 4, 0);         /* not clean */
      put_record (t[i / 4].value, 1, 1, 4032, 1);
      model.now[4032] = YES;
    }
    l = open_layer (true);
    for (unsigned j = 0; j < n && l; ++j)
      if (do_write (l, 2 * j, 1) == -1 || do_flush (l) == -1)
        break;
    if (l) {
      nc_layer_close (l);
      fault_lose (&fault, &disk, LOSE_ALL, NULL);
      fault_set (&fault, FAULT_ALL, 0, 0, 0);
      l = open_layer (false);
      for (uint64_t b = 0; b < 400 && good && l; b += 2) {
        bool allocated;
        uint64_t run;

        good = model.durable[b] != YES ||
          (l->format->run (l, b * BLOCK, 1, &allocated, &run) == 0 &&
           allocated);
      }
      good = good && l != NULL;
      nc_layer_close (l);
    }
    if (i % 4 == 3)
      ok (good, "a %s of %llu: refused, or nothing flushed is lost",
          t[i / 4].what, (unsigned long long) t[i / 4].value);
  }
}

/* What is behind a header copy that is damaged long after it was written
 * durably: the copy before it, which knows less. */
static void
test_damaged_copy (void)
{
  static const unsigned flushes[] = { 1, 31, 40, 100 };
  bool good = true, right = true;

  for (unsigned i = 0; i < 8; ++i) {
    const bool finish = i & 1;
    struct nc_layer *l;

    reset ();
    l = open_layer (true);
    must (l != NULL, tap_error);
    for (unsigned j = 0; j < flushes[i / 2]; ++j)
      good = do_write (l, 2 * j, 1) == 0 && do_flush (l) == 0 && good;
    if (finish)
      good = l->format->finish (l) == 0 && good;
    nc_layer_close (l);
    fault_lose (&fault, &disk, LOSE_ALL, NULL);
    for (unsigned copy = 0; copy < 2; ++copy) {
      uint8_t *byte = disk.data + 4096 * copy + FVD_AT_LIFE;

      *byte ^= 0x10;
      l = open_layer (false);
      if (l == NULL || !verify (l, POWER)) {
        note ("copy %u after %u flushes%s", copy, flushes[i / 2],
              finish ? " and the end" : "");
        good = false;
      }
      nc_layer_close (l);
      *byte ^= 0x10;
    }
    /* And one may go on, and lose nothing. */
    disk.data[4096 * (i / 2 % 2) + FVD_AT_LIFE] ^= 0x10;
    right = opens_and_holds (POWER) && opens_and_holds (POWER) && right;
  }
  ok (good, "with either header copy damaged, nothing flushed is lost");
  ok (right, "and one can go on writing");
}

static void
test_damaged_journal (void)
{
  struct nc_layer *l;
  struct fvd_reader r;
  unsigned wrong = 0;
  uint8_t *journal;

  reset ();
  l = open_layer (true);
  must (l && do_write (l, 0, 1) == 0 && do_flush (l) == 0 &&
        do_write (l, 8, 1) == 0 && do_flush (l) == 0, "two records");
  nc_layer_close (l);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  must (fvd_reader_open (&r, disk.data, disk.size) == 0, r.why);
  journal = disk.data + r.journal;
  fvd_reader_close (&r);
  for (unsigned at = 0; at < 3 * 512; ++at) {
    journal[at + 512] ^= 1 << at % 8;
    if (!refused (false) || !refused (true))
      wrong++;
    journal[at + 512] ^= 1 << at % 8;
  }
  ok (wrong == 0, "a flipped bit in a record, or where none was, is noticed");
  ok (opens_and_holds (POWER), "without it the image opens");
}

/* In the journal of a clean image nothing has a meaning. */
static void
test_stale_journal (void)
{
  struct nc_layer *l;
  struct fvd_reader r;
  uint8_t *journal;

  reset ();
  l = open_layer (true);
  must (l && do_write (l, 0, 1) == 0 && do_flush (l) == 0 &&
        l->format->finish (l) == 0, "closed in order");
  nc_layer_close (l);
  must (fvd_reader_open (&r, disk.data, disk.size) == 0, r.why);
  journal = disk.data + r.journal;
  fvd_reader_close (&r);
  for (unsigned i = 0; i < 32; ++i)
    journal[i * 512 + i] ^= 1;
  l = open_layer (true);
  ok (l != NULL, "a clean image opens, whatever its journal has");
  nc_layer_close (l);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  ok (opens_and_holds (POWER), "and again when only what was synced is there");
  l = open_layer (true);
  ok (l && do_write (l, 8, 1) == 0 && do_flush (l) == 0, "and is written");
  nc_layer_close (l);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  ok (opens_and_holds (POWER), "and what is flushed then is kept");
}

static void
test_damaged_retired (void)
{
  static const nc_uuid successor = { { 1, 2, 3 } };
  bool good = true;
  struct nc_layer *l;

  reset ();
  l = open_layer (true);
  must (l && l->format->finish (l) == 0 &&
        nc_fvd_retire (l, &successor, "next.fvd") == 0, "retired");
  nc_layer_close (l);
  for (unsigned copy = 0; copy < 2; ++copy) {
    disk.data[4096 * copy + FVD_AT_FLAGS] ^= 4;
    good = refused (true) && good;
    disk.data[4096 * copy + FVD_AT_FLAGS] ^= 4;
  }
  ok (good, "a retired image stays one with either header copy damaged");
}

static void
test_hostile_records (void)
{
  static const struct {
    uint64_t number; unsigned type, n; uint64_t blk; uint32_t count;
  } t[] = {
    { 2, 1, 0, 0, 0 }, { 2, 1, 41, 0, 1 }, { 2, 1, UINT16_MAX, 0, 1 },
    { 2, 0, 1, 0, 1 }, { 2, 2, 1, 0, 1 }, { 2, 1, 1, NBLOCKS, 1 },
    { 2, 1, 1, NBLOCKS - 1, 2 }, { 2, 1, 1, 0, UINT32_MAX },
    { 2, 1, 1, UINT64_MAX, 1 }, { 2, 1, 1, UINT64_MAX, UINT32_MAX },
    { 2, 1, 1, UINT64_C (1) << 63, 1 }, { 2, 1, 1, 0, 0 },
    { UINT64_MAX, 1, 1, 0, 1 }, { UINT64_MAX - 1, 1, 1, 0, 1 },
  };
  bool good = true;

  for (size_t i = 0; i < sizeof t / sizeof t[0]; ++i)
    for (unsigned writable = 0; writable < 2; ++writable) {
      reset ();
      put (FVD_AT_FLAGS, 4, 0);         /* not clean */
      put_record (t[i].number, t[i].type, t[i].n, t[i].blk, t[i].count);
      if (!survives (writable) || !survives (writable)) {
        note ("record %u", (unsigned) i);
        good = false;
      }
    }
  ok (good, "hostile records of the journal do no harm");
}

static void
test_last_blocks (void)
{
  struct nc_layer *l;
  bool allocated;
  uint64_t run;

  reset ();
  put (FVD_AT_FLAGS, 4, 0);
  put_record (1, 1, 1, 4030, 4);
  l = open_layer (false);
  ok (l && l->format->run (l, 4030 * BLOCK, SIZE - 4030 * BLOCK, &allocated,
                           &run) == 0 && allocated &&
      run == SIZE - 4030 * BLOCK,
      "a good record written by the test counts, up to the last block");
  nc_layer_close (l);
  put (FVD_AT_TAIL, 8, 2);
  l = open_layer (false);
  ok (l && l->format->run (l, 4030 * BLOCK, 1, &allocated, &run) == 0 &&
      !allocated, "and does not when the tail has passed it");
  nc_layer_close (l);
}

/* The ring has 32 sectors: 33 is in the place of 1.  A header that is older
 * than the journal must not hide it. */
static void
test_round_the_ring (void)
{
  struct nc_layer *l;
  bool allocated;
  uint64_t run;

  for (uint64_t number = 32; number < 34; ++number) {
    reset ();
    put (FVD_AT_FLAGS, 4, 0);
    put_record (number, 1, 1, 4032, 1);
    model.now[4032] = YES;
    for (unsigned i = 0; i < SECTORS; ++i)
      model_write (4032, i, 0, true);
    l = open_layer (true);
    ok (l && l->format->run (l, 4032 * BLOCK, 1, &allocated, &run) == 0 &&
        allocated && do_write (l, 2, 1) == 0 && do_flush (l) == 0,
        "record %u of a ring of 32 counts", (unsigned) number);
    nc_layer_close (l);
    fault_lose (&fault, &disk, LOSE_ALL, NULL);
    ok (opens_and_holds (POWER), "and what is flushed then is kept");
  }
}

/* Make the image anew; where an area of it begins, by its field. */
static uint8_t *
reset_area (unsigned at)
{
  struct fvd_reader r;
  uint8_t *area;

  reset ();
  must (fvd_reader_open (&r, disk.data, disk.size) == 0, r.why);
  area = disk.data + fvd_reader_le (r.header + at, 8);
  fvd_reader_close (&r);
  return area;
}

static void
test_hostile_bitmap (void)
{
  uint8_t *summary = reset_area (FVD_AT_SUMMARY);
  uint8_t *bitmap = reset_area (FVD_AT_BITMAP);
  struct nc_layer *l;
  bool allocated;
  uint64_t run;

  summary[0] = 3;
  fvd_reader_seal (image_uuid.bytes, 1, 0, summary);
  ok (survives (false) && survives (true), "an invalid state of a page");
  summary[0] = 2;
  fvd_reader_seal (image_uuid.bytes, 1, 0, summary);
  memset (bitmap, 0xff, 504);
  l = open_layer (false);
  errno = 0;
  ok (l == NULL || (l->format->run (l, 0, 1, &allocated, &run) == -1 &&
                    errno == EIO),
      "a mixed page with a wrong checksum is EIO");
  nc_layer_close (l);
  ok (survives (true), "and does no harm when it is written to");

  summary[0] = 2 << 2;
  fvd_reader_seal (image_uuid.bytes, 1, 0, summary);
  memset (bitmap + 512, 0xff, 504);
  fvd_reader_seal (image_uuid.bytes, 2, 1, bitmap + 512);
  ok (survives (false) && survives (true) && survives (false),
      "bits behind the last block do no harm");
  summary[0] ^= 1;
  ok (survives (false) && survives (true),
      "a summary with a wrong checksum does no harm");
}

static void
test_random_metadata (uint64_t *seed)
{
  uint8_t *summary = reset_area (FVD_AT_SUMMARY);
  uint8_t *bitmap = reset_area (FVD_AT_BITMAP);
  bool good = true;

  for (unsigned i = 0; i < LESS (400) && good; ++i) {
    unsigned n = 1 + rnd_below (seed, 4);

    reset ();
    while (n-- > 0) {
      unsigned at = rnd_below (seed, pristine_size);

      if (rnd_below (seed, 2))
        at = 8 + rnd_below (seed, 216) + 4096 * rnd_below (seed, 2);
      disk.data[at] = rnd (seed);
    }
    for (unsigned c = 0; c < 2; ++c)
      fvd_reader_seal_header (disk.data + 4096 * c);
    fvd_reader_seal (image_uuid.bytes, 1, 0, summary);
    fvd_reader_seal (image_uuid.bytes, 2, 0, bitmap);
    fvd_reader_seal (image_uuid.bytes, 2, 1, bitmap + 512);
    good = survives (i % 2) || note ("image %u", i);
  }
  ok (good, "images with random bytes and right checksums do no harm");
}

static void
test_hostile_metadata (uint64_t *seed)
{
  test_hostile_records ();
  test_last_blocks ();
  test_round_the_ring ();
  test_hostile_bitmap ();
  test_random_metadata (seed);
}

/* Threads: each writes blocks of its own, flushes, and knows which blocks
 * were flushed when power goes. */
enum { THREADS = 6, OWN = 120 };
static struct nc_layer *shared;
static _Atomic (unsigned) flushed[THREADS], wrong;

static void *
writer (void *arg)
{
  unsigned me = (unsigned) (uintptr_t) arg;
  uint8_t buf[BLOCK];

  for (unsigned i = 0; i < OWN; ++i) {
    uint64_t blk = me + i * THREADS + 3600;     /* across the page border */
    struct iovec iov = { buf, BLOCK };

    if (blk >= NBLOCKS - 1)
      blk -= 3600;
    memset (buf, me + 1, sizeof buf);
    if (shared->format->pwritev (shared, &iov, 1, blk * BLOCK) == -1 ||
        shared->format->set_allocated (shared, blk * BLOCK, BLOCK) == -1)
      wrong++;
    if (i % (me + 1) == 0) {
      if (shared->format->flush (shared) == -1)
        wrong++;
      flushed[me] = i + 1;
    }
  }
  return NULL;
}

static void
test_threads (bool track, const char *what)
{
  pthread_t t[THREADS];
  unsigned lost = 0, flushes = 0;
  uint64_t syncs;

  reset ();
  fault.track = track;
  wrong = 0;
  shared = open_layer (true);
  must (shared != NULL, "open");
  fault_set (&fault, FAULT_ALL, 0, 0, 0);
  for (uintptr_t i = 0; i < THREADS; ++i)
    must (pthread_create (&t[i], NULL, writer, (void *) i) == 0,
          "pthread_create");
  for (unsigned i = 0; i < THREADS; ++i)
    pthread_join (t[i], NULL);
  syncs = fault.syncs + fault.durable;
  nc_layer_close (shared);
  fault_lose (&fault, &disk, LOSE_ALL, NULL);
  shared = open_layer (true);
  for (unsigned me = 0; me < THREADS && shared; ++me) {
    flushes += (OWN + me) / (me + 1);
    for (unsigned i = 0; i < flushed[me]; ++i) {
      uint64_t blk = me + i * THREADS + 3600, run;
      uint8_t byte;
      bool allocated;

      if (blk >= NBLOCKS - 1)
        blk -= 3600;
      if (shared->format->run (shared, blk * BLOCK, BLOCK, &allocated,
                               &run) == -1 || !allocated ||
          shared->format->pread (shared, &byte, 1, blk * BLOCK + 7) == -1 ||
          byte != me + 1)
        lost++;
    }
  }
  note ("%u flushes, %u syncs", flushes, (unsigned) syncs);
  ok (shared && wrong == 0 && lost == 0, "%s", what);
  nc_layer_close (shared);
}

/* Write the first, the last, and some blocks of a disk. */
static bool
write_blocks (struct nc_layer *l, uint64_t *seed)
{
  const uint64_t block = l->block_size, n = (l->size + block - 1) / block;
  NC_FREE uint8_t *buf = malloc (block);
  bool good = true;

  must (buf != NULL, "malloc");
  for (unsigned j = 0; j < 12 && n > 0 && good; ++j) {
    uint64_t blk = j == 0 ? n - 1 : j == 1 ? 0 : rnd_below (seed, n);
    uint64_t count = nc_min64 (block, l->size - blk * block);
    struct iovec iov = { buf, count };

    memset (buf, 1 + blk % 250, count);
    good = l->format->pwritev (l, &iov, 1, blk * block) == 0 &&
      l->format->set_allocated (l, blk * block, count) == 0;
  }
  return good;
}

/* Whether the image that these have been written to is the same to L and R. */
static bool
is_as_read (struct nc_layer *l, struct fvd_reader *r)
{
  bool good = true;

  for (uint64_t b = 0; good && b < r->nblocks; ++b) {
    uint8_t last = 0, other = 0;
    uint64_t at = nc_min64 ((b + 1) * r->block, l->size) - 1, run;
    bool allocated;

    good = l->format->run (l, at, 1, &allocated, &run) == 0 &&
      allocated == r->allocated[b];
    if (good && allocated) {
      fvd_reader_pread (r, &other, 1, at, NULL, 0);
      good = l->format->pread (l, &last, 1, at) == 0 && last == other &&
        last == 1 + b % 250;
    }
  }
  return good && (r->nblocks == 0 ||
                  (r->allocated[0] && r->allocated[r->nblocks - 1]));
}

/* Images of other sizes, as the other reader sees them. */
static void
test_sizes (uint64_t *seed)
{
  static const uint64_t sizes[] = {
    0, 1, 511, 512, 4095, 4096, 4097, 4031 * 4096, 4032 * 4096,
    4032 * 4096 + 1, 4033 * 4096, 2 * 4032 * 4096, 2 * 4032 * 4096 + 511,
  };
  bool good = true;

  for (size_t i = 0; i < 3 * sizeof sizes / sizeof sizes[0] && good; ++i) {
    uint64_t size = sizes[i / 3];
    unsigned bits = i % 3 == 0 ? 12 : i % 3 == 1 ? 16 : 21;
    struct nc_layer *l;
    struct fvd_reader r = { .nblocks = 0 };

    create (size, bits, 16384 + 4096 * (i % 3));
    reset ();
    fault.track = false;
    l = open_layer (true);
    good = l && l->size == size && l->block_size == 1u << bits &&
      write_blocks (l, seed) &&
      (i % 2 ? l->format->flush (l) : l->format->finish (l)) == 0;
    nc_layer_close (l);
    l = NULL;
    good = good && (fvd_reader_open (&r, disk.data, disk.size) == 0 ||
                    note ("the reader says: %s", r.why));
    good = good && (l = open_layer (false)) != NULL && is_as_read (l, &r);
    if (!good)
      note ("size %llu, %u block bits", (unsigned long long) size, bits);
    fvd_reader_close (&r);
    nc_layer_close (l);
    drop ();
  }
  ok (good, "disks of all sizes and blocks, as the other reader sees them");
}

/* A sparse file in memory that may have terabytes. */
static struct nc_dev *
open_large (int fd)
{
  return nc_dev_open_fd (dup (fd), "large", NC_DEV_WRITE);
}

/* Whether the first byte of block BLK is C; 0: it is not allocated. */
static bool
block_is (struct nc_layer *l, uint64_t blk, uint8_t c)
{
  bool allocated;
  uint64_t run;
  uint8_t byte = 0;

  return l->format->run (l, blk * BLOCK, 1, &allocated, &run) == 0 &&
    allocated == (c != 0) &&
    (!allocated || (l->format->pread (l, &byte, 1, blk * BLOCK) == 0 &&
                    byte == c));
}

/* Whether an empty image, which has just been opened, is one run. */
static bool
is_one_run (struct nc_dev *dev, uint64_t size)
{
  static const struct nc_layer_options read_only = { .memory_fd = -1 };
  struct nc_layer *l = nc_layer_open (&nc_format_fvd, dev, "large",
                                      &read_only);
  bool allocated = true, good;
  uint64_t run = 0;

  good = l && l->format->run (l, 0, size, &allocated, &run) == 0 &&
    !allocated && run == size;
  nc_layer_close (l);
  return good;
}

/* A summary whose sectors just fill a word of a bitmap of them, or three,
 * the last one not full. */
static void
test_full_summary (uint64_t sectors)
{
  static const struct nc_backing none;
  const uint64_t page = UINT64_C (4032) * BLOCK;
  const struct nc_fvd_create_options opts = {
    .size = (sectors * 2016 - 20) * page, .block_bits = 12,
    .journal_size = 16384, .backing = &none,
  };
  const struct nc_layer_options writable = {
    .writable = true, .memory_fd = -1
  };
  const uint64_t last = opts.size / BLOCK - 1;
  const uint64_t blks[] = { 0, last / 2, last - 4032, last };
  int fd = memfd_create ("large", MFD_CLOEXEC);
  uint8_t buf[BLOCK];
  uint64_t file_size;
  bool good = true;
  struct nc_dev *dev;
  nc_uuid uuid;

  must (fd != -1 && nc_fvd_file_size (&opts, &file_size) == 0 &&
        ftruncate (fd, file_size) == 0, "a large file in memory");
  dev = open_large (fd);
  must (dev && nc_uuid_generate (&uuid) == 0 &&
        nc_fvd_create (dev, &opts, &uuid) == 0, "nc_fvd_create");
  nc_dev_close (dev);
  ok (is_one_run (open_large (fd), opts.size),
      "a run goes on over pages that are not loaded");
  for (unsigned round = 0; round < 4 && good; ++round) {
    struct nc_layer *l = nc_layer_open (&nc_format_fvd, open_large (fd),
                                        "large", &writable);

    good = l != NULL;
    for (unsigned i = 0; i < 4 && good; ++i) {
      struct iovec iov = { buf, BLOCK };

      memset (buf, 1 + round, sizeof buf);
      good = block_is (l, blks[i], round) &&
        l->format->pwritev (l, &iov, 1, blks[i] * BLOCK) == 0 &&
        l->format->set_allocated (l, blks[i] * BLOCK, BLOCK) == 0 &&
        (i % 2 == 0 || l->format->flush (l) == 0) &&
        block_is (l, blks[i], 1 + round);
    }
    good = good && block_is (l, 1, 0) && block_is (l, last - 1, 0) &&
      (round % 2 == 0 || l->format->finish (l) == 0);
    nc_layer_close (l);
  }
  ok (good, "a disk of %llu bytes, with %u sectors of summary, is written, "
      "flushed, finished and opened again", (unsigned long long) opts.size,
      (unsigned) sectors);
  close (fd);
}

/* A device keeps what it held before, here rubbish. */
static void
test_used_device (void)
{
  static const struct nc_backing none;
  const struct nc_profile_range range = { .offset = 0, .count = BLOCK };
  struct nc_fvd_create_options opts = {
    .size = SIZE, .block_bits = 12, .journal_size = 16384,
    .backing = &none, .compact = compact, .grow_unit = 1 << 20,
  };
  struct nc_check_result result = { 0 };
  uint64_t file_size;
  struct nc_dev *dev;
  struct nc_layer *l;

  must (nc_fvd_file_size (&opts, &file_size) == 0, "nc_fvd_file_size");
  mem_disk_init (&disk, file_size + (compact ? 16 << 20 : 0));
  memset (disk.data, 0xa5, disk.size);
  dev = mem_dev_open (&disk, true);
  must (nc_uuid_generate (&image_uuid) == 0 &&
        nc_fvd_create (dev, &opts, &image_uuid) == 0, "nc_fvd_create");
  ok (nc_fvd_check (dev, NULL, NULL, &result) == 0 && result.errors == 0 &&
      result.warnings == 0, "a check of a new image on a used device is clean");
  nc_dev_close (dev);
  l = open_layer (true);
  ok (l && nc_fvd_profile_write (l, &range, 1) == 0,
      "and it takes a profile");
  nc_layer_close (l);
  mem_disk_fini (&disk);
}

int
main (void)
{
  uint64_t seed = tap_start (800);

  main_thread = pthread_self ();
  *(void **) &real_run = dlsym (RTLD_NEXT, "nc_bitmap_run");
  must (real_run != NULL, "nc_bitmap_run");
  fault_init (&fault);
  test_used_device ();
  test_sizes (&seed);
  test_full_summary (64);
  test_full_summary (192);
  create (SIZE, 12, 16384);
  reset ();
  ok (opens_and_holds (KILLED), "a new image opens and is empty");
  test_errors ();
  test_failed_sync ();
  test_other_failed_syncs ();
  test_torn_headers ();
  test_killed_openings (&seed);
  test_wrap ();
  test_checkpoint (&seed, false);
  test_checkpoint (&seed, true);
  test_no_stall ();
  test_load_in_checkpoint ();
  test_sectors_in_checkpoint ();
  test_memory (&seed);
  test_memory_without_life ();
  test_memory_after_failed_sync ();
  test_crashes (&seed, LESS (20), false, "random writes and crashes");
  test_crashes (&seed, 1 + LESS (3), true, "with whole pages, too");
  test_faults (&seed);
  test_hostile_headers ();
  test_odd_headers ();
  test_features ();
  test_short_files ();
  test_numbers_at_the_end ();
  test_damaged_copy ();
  test_damaged_journal ();
  test_stale_journal ();
  test_damaged_retired ();
  test_hostile_metadata (&seed);
  test_threads (true, "threads: what was flushed survives power loss");
  test_threads (false, "threads on a device without a lock");
  drop ();

  compact = true;
  test_used_device ();
  create (SIZE, 12, 16384);
  reset ();
  ok (opens_and_holds (KILLED), "a new compact image opens and is empty");
  test_wrap ();
  test_checkpoint (&seed, false);
  test_checkpoint (&seed, true);
  test_no_stall ();
  test_sectors_in_checkpoint ();
  test_memory (&seed);
  test_crashes (&seed, LESS (20), false, "random writes and crashes");
  test_crashes (&seed, 1 + LESS (3), true, "with whole pages, too");
  test_faults (&seed);
  test_hostile_metadata (&seed);
  test_threads (true, "threads: what was flushed survives power loss");
  drop ();
  fault_fini (&fault);
  return tap_done ();
}
