/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of the stream and of the pivot at its end: threads that read, write
 * and zero the disk against a model all the time, and clients that read lower
 * layers, while the layers go one after the other. */

#include <config.h>

#include "job/stream.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "chain/chain.h"
#include "folder.h"
#include "image/image.h"
#include "tap.h"
#include "util/checked.h"

#define SIZE (UINT64_C (6) << 20)
#define THREADS 4
#define PART (SIZE / THREADS)

static struct nc_chain *
open_chain (const char *path)
{
  struct nc_chain_options opts = {
    .image = path, .memory_fd = -1, .retry = 1,
  };
  struct nc_chain *chain = nc_chain_open (&opts);

  must (chain && nc_chain_start (chain) == 0, tap_error);
  return chain;
}

/* Change the disk E, and its model, somewhere in [from, from+PART). */
static bool
change (struct nc_export *e, uint8_t *model, uint64_t from, uint64_t *seed)
{
  const uint64_t offset = from + rnd (seed) % PART;
  const uint64_t count = nc_min64 (1 + rnd (seed) % 20000,
                                   from + PART - offset);
  const unsigned flags = rnd (seed) % 8 == 0 ? NC_REQ_FUA : 0;

  if (rnd (seed) % 3 == 0) {
    memset (model + offset, 0, count);
    return nc_export_zero (e, offset, count, flags | NC_REQ_MAY_TRIM) == 0;
  }
  for (uint64_t i = 0; i < count; ++i)
    model[offset + i] = rnd (seed);
  return nc_export_pwrite (e, model + offset, count, offset, flags) == 0;
}

static bool
is_as_model (struct nc_export *e, const uint8_t *model, uint64_t offset,
             uint64_t count)
{
  NC_FREE uint8_t *buf = malloc (count);

  must (buf != NULL, "malloc");
  return nc_export_pread (e, buf, count, offset) == 0 &&
    memcmp (buf, model + offset, count) == 0;
}

/* The chain of base.raw, a.fvd, b.fvd, c.fvd; MODEL gets the disk, LOWER what
 * the disk of a.fvd is.  a.fvd is smaller than its base, and the overlays are
 * larger again: what a.fvd cuts off stays cut off. */
static void
make_chain (uint8_t *model, uint8_t *lower, uint64_t *seed)
{
  static const char *const names[] = { "base.raw", "a.fvd", "b.fvd",
                                       "c.fvd" };
  int fd = open (at ("base.raw"), O_CREAT | O_TRUNC | O_RDWR, 0666);

  for (uint64_t i = 0; i < SIZE; ++i)
    model[i] = i / 65536 % 3 == 2 ? 0 : rnd (seed);
  must (fd != -1 && write (fd, model, SIZE) == (ssize_t) SIZE, "base");
  close (fd);
  for (unsigned i = 1; i < 4; ++i) {
    struct nc_image_create_options opts = {
      .path = at (names[i]), .backing = at (names[i - 1]),
      .backing_format = i == 1 ? "raw" : "fvd",
      .has_size = true, .size = i == 1 ? SIZE - 300000 : SIZE,
      .block_size = i == 1 ? 4096 : i == 2 ? 65536 : 16384,
      .journal_size = 16384,
    };
    struct nc_chain *chain;
    struct nc_export *e;

    unlink (opts.path);
    must (nc_image_create (&opts) == 0, tap_error);
    if (i == 1)
      memset (model + opts.size, 0, SIZE - opts.size);
    chain = open_chain (opts.path);
    e = nc_export_open (chain, "", 0);
    for (unsigned k = 0; k < 8; ++k)
      must (change (e, model, rnd (seed) % 3 * PART, seed), "change");
    nc_export_close (e);
    must (nc_chain_stop (chain) == 0, "stop");
    nc_chain_close (chain);
    if (i == 1)
      memcpy (lower, model, SIZE);
  }
}

struct client {
  pthread_t thread;
  struct nc_chain *chain;
  uint8_t *model;
  uint64_t from, seed;
  _Atomic (bool) *stop;
  _Atomic (unsigned) requests;
  bool good;
};

static void *
client (void *opaque)
{
  struct client *c = opaque;
  struct nc_export *e = nc_export_open (c->chain, "", 0);

  must (e != NULL, tap_error);
  c->good = true;
  while (c->good && !*c->stop) {
    const uint64_t offset = c->from + rnd (&c->seed) % (PART - 1);
    const uint64_t count = nc_min64 (1 + rnd (&c->seed) % 100000,
                                     c->from + PART - offset);

    c->good = is_as_model (e, c->model, offset, count) &&
      change (e, c->model, c->from, &c->seed) &&
      (rnd (&c->seed) % 16 != 0 || nc_export_flush (e) == 0);
    c->requests++;
  }
  if (!c->good)
    note ("client at %llu: %m", (unsigned long long) c->from);
  nc_export_close (e);
  return NULL;
}

struct load {
  struct client client[THREADS];
  _Atomic (bool) stop;
};

/* Until each client has had an answer. */
static void
load_start (struct load *load, struct nc_chain *chain, uint8_t *model,
            uint64_t *seed)
{
  load->stop = false;
  for (unsigned i = 0; i < THREADS; ++i) {
    load->client[i] = (struct client) {
      .chain = chain, .model = model, .from = i * PART, .seed = rnd (seed),
      .stop = &load->stop,
    };
    must (pthread_create (&load->client[i].thread, NULL, client,
                          &load->client[i]) == 0, "thread");
  }
  for (unsigned i = 0; i < THREADS; ++i)
    while (load->client[i].requests == 0)
      usleep (1000);
}

static bool
load_stop (struct load *load)
{
  bool good = true;

  load->stop = true;
  for (unsigned i = 0; i < THREADS; ++i) {
    pthread_join (load->client[i].thread, NULL);
    good = good && load->client[i].good;
  }
  return good;
}

static int
stream (struct nc_chain *chain, const char *base)
{
  static const struct nc_stream_hooks hooks = { 0 };
  struct nc_stream *s = nc_stream_new (chain, base, &hooks, NULL);
  int r;

  if (s == NULL)
    return -1;
  r = nc_stream_run (s);
  if (r == 0)
    r = nc_stream_finish (s);
  nc_stream_free (s);
  return r;
}

/* Whether this process has the file NAME of the test open. */
static bool
is_open (const char *name)
{
  char link[64], path[300];

  for (int fd = 0; fd < 256; ++fd) {
    ssize_t n;

    snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink (link, path, sizeof path - 1);
    if (n > 0 && (size_t) n == strlen (at (name)) &&
        memcmp (path, at (name), n) == 0)
      return true;
  }
  return false;
}

/* It is closed by a thread of the chain, soon. */
static bool
becomes_closed (const char *name)
{
  for (unsigned i = 0; is_open (name); ++i) {
    if (i == 3000)
      return note ("%s is still open", name);
    usleep (10000);
  }
  return true;
}

static void
test_layers_go (uint64_t *seed)
{
  uint8_t *model = malloc (SIZE), *lower = malloc (SIZE);
  struct nc_image_info info;
  struct nc_export *old, *e;
  struct nc_chain *chain, *other;
  struct load load;

  must (model && lower, "malloc");
  make_chain (model, lower, seed);
  tap_clear ();
  chain = open_chain (at ("c.fvd"));
  load_start (&load, chain, model, seed);
  old = nc_export_open (chain, "a.fvd", 0);

  ok (stream (chain, "b.fvd") == 0 && nc_chain_n_layers (chain) == 4,
      "nothing is to be done down to the layer that is the backing");
  ok (stream (chain, "a.fvd") == 0 && nc_chain_n_layers (chain) == 3 &&
      strcmp (nc_chain_layer_name (chain, 1), "a.fvd") == 0,
      "what is above a lower layer is brought in, and goes");
  ok (is_open ("b.fvd"), "but not while a client is in the old chain");
  ok (stream (chain, "base.raw") == 0 && nc_chain_n_layers (chain) == 2,
      "then another one");
  ok (nc_export_open (chain, "a.fvd", 0) == NULL && errno == ENOENT,
      "new clients do not get its export");
  ok (is_as_model (old, lower, 0, SIZE - 300000),
      "who has it goes on");
  nc_export_close (old);
  ok (becomes_closed ("a.fvd") && becomes_closed ("b.fvd") &&
      is_open ("base.raw"), "the files are closed when that client left");
  /* As somebody else sees it: a layer that is written cannot be asked. */
  other = nc_chain_open (&(struct nc_chain_options) {
      .image = at ("c.fvd"), .read_only = true, .offline = true,
      .memory_fd = -1 });
  ok (other && nc_chain_layer_info (other, 0, &info) == 0 &&
      info.has_backing && info.backing_size == SIZE - 300000 &&
      strcmp (info.backing, "base.raw") == 0,
      "the image names the base, and sees as much of it as before");
  nc_image_info_free (&info);
  nc_chain_close (other);

  ok (stream (chain, NULL) == 0 && nc_chain_n_layers (chain) == 1 &&
      becomes_closed ("base.raw"), "then there is no backing any more");
  must (unlink (at ("base.raw")) == 0 && unlink (at ("a.fvd")) == 0 &&
        unlink (at ("b.fvd")) == 0, "unlink");
  ok (stream (chain, NULL) == 0, "and no more to be done");
  ok (load_stop (&load), "clients saw their own bytes all the time");
  e = nc_export_open (chain, "", 0);
  ok (is_as_model (e, model, 0, SIZE), "and the disk is what it must be");
  nc_export_close (e);
  ok (nc_chain_stop (chain) == 0, "stopped");
  nc_chain_close (chain);

  chain = open_chain (at ("c.fvd"));
  e = nc_export_open (chain, "", 0);
  ok (nc_chain_n_layers (chain) == 1 && is_as_model (e, model, 0, SIZE),
      "so it is when it is opened again, without its backings");
  nc_export_close (e);
  nc_chain_close (chain);
  free (model);
  free (lower);
}

/* A stream that ends anywhere leaves the chain, and the rest for later. */
static void
test_interrupted (uint64_t *seed)
{
  static const struct nc_stream_hooks hooks = { 0 };
  uint8_t *model = malloc (SIZE), *lower = malloc (SIZE);
  struct nc_stream_count count;
  struct nc_chain *chain;
  struct nc_stream *s;
  struct nc_export *e;

  must (model && lower, "malloc");
  make_chain (model, lower, seed);
  tap_clear ();
  chain = open_chain (at ("c.fvd"));
  s = nc_stream_new (chain, NULL, &hooks, NULL);
  nc_stream_interrupt (s);
  ok (nc_stream_run (s) == 1, "a stream can be interrupted before it begins");
  ok (nc_chain_set_backing (chain, NULL, NULL) == -1 && errno == EBUSY &&
      tap_errors == 1 && nc_chain_n_layers (chain) == 4,
      "a backing that is needed is not let go");
  tap_clear ();
  e = nc_export_open (chain, "", 0);
  must (nc_export_populate (e, 0, SIZE / 2) == 0, "populate");
  ok (nc_stream_run (s) == 0, "it goes on");
  nc_stream_counted (s, &count);
  ok (count.copied + count.zero + count.local == SIZE,
      "what became of the bytes is known");
  nc_stream_free (s);
  ok (nc_chain_n_layers (chain) == 4 && is_as_model (e, model, 0, SIZE),
      "until it is finished nothing has changed");
  s = nc_stream_new (chain, NULL, &hooks, NULL);
  ok (nc_stream_run (s) == 0, "another one");
  nc_stream_counted (s, &count);
  ok (count.copied == 0 && count.zero == 0 && nc_stream_finish (s) == 0,
      "has only the record left to do");
  nc_stream_free (s);
  ok (is_as_model (e, model, 0, SIZE) && tap_errors == 0, "the disk is right");
  tap_clear ();
  ok (nc_stream_new (chain, "b.fvd", &hooks, NULL) == NULL &&
      errno == ENOENT && tap_errors == 1, "a layer that is gone is ENOENT");
  nc_export_close (e);
  must (nc_chain_stop (chain) == 0, "stop");
  nc_chain_close (chain);
  free (model);
  free (lower);
}

/* A stream while another one pivots: the first read that ends has the other run
 * and finish, and those that end meanwhile wait for that, so that all of them
 * are stale. */
struct crossing {
  pthread_mutex_t lock;
  struct nc_chain *chain;
  const char *base;             /* of the other one */
  bool has_pivoted, good;
};

static void
pivot_once (void *opaque, enum nc_ring_step step, uint64_t count)
{
  struct crossing *c = opaque;

  if (step != NC_RING_READ || count == 0)
    return;
  pthread_mutex_lock (&c->lock);
  if (!c->has_pivoted)
    c->good = stream (c->chain, c->base) == 0;
  c->has_pivoted = true;
  pthread_mutex_unlock (&c->lock);
}

/* The stream goes down to BASE, the other one to OTHER; then the chain has
 * BETWEEN layers, and N in the end. */
static void
test_crossing (const char *base, const char *other, size_t between, size_t n,
               const char *what, uint64_t *seed)
{
  static const struct nc_stream_hooks hooks = { .ended = pivot_once };
  struct crossing c = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .base = other,
  };
  uint8_t *model = malloc (SIZE), *lower = malloc (SIZE);
  struct nc_stream_count count;
  struct nc_export *e;
  struct nc_stream *s;
  struct load load;

  must (model && lower, "malloc");
  make_chain (model, lower, seed);
  tap_clear ();
  c.chain = open_chain (at ("c.fvd"));
  load_start (&load, c.chain, model, seed);
  s = nc_stream_new (c.chain, base, &hooks, &c);
  must (s != NULL, tap_error);
  ok (nc_stream_run (s) == 0 && c.has_pivoted && c.good &&
      nc_chain_n_layers (c.chain) == between, "%s: it runs to its end", what);
  nc_stream_counted (s, &count);
  ok (count.copied + count.zero + count.local == SIZE,
      "%s: all bytes are accounted for", what);
  ok (nc_stream_finish (s) == 0 && nc_chain_n_layers (c.chain) == n &&
      tap_errors == 0, "%s: nothing is missing in the end", what);
  nc_stream_free (s);
  ok (load_stop (&load), "%s: clients saw their own bytes", what);
  e = nc_export_open (c.chain, "", 0);
  ok (is_as_model (e, model, 0, SIZE), "%s: the disk is right", what);
  nc_export_close (e);
  must (nc_chain_stop (c.chain) == 0, "stop");
  nc_chain_close (c.chain);
  free (model);
  free (lower);
}

int
main (void)
{
  uint64_t seed = tap_start (600);

  make_folder ("test-stream");
  for (unsigned i = 0; i < 3; ++i)
    test_layers_go (&seed);
  test_interrupted (&seed);
  test_crossing (NULL, "base.raw", 2, 1, "another stream drops layers between",
                 &seed);
  test_crossing ("a.fvd", NULL, 1, 1, "another stream drops all", &seed);
  test_crossing ("a.fvd", "base.raw", 2, 2, "another stream drops the base",
                 &seed);
  test_crossing ("base.raw", "a.fvd", 3, 2, "both have a base", &seed);
  remove_folder ();
  return tap_done ();
}
