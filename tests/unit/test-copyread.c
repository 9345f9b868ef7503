/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/copyread/copyread.c on a chain of files: what it fetches, and
 * threads that read at random and in sequence, write and zero against a model
 * while it copies. */

#include <config.h>

#include "copyread/copyread.h"

#include <fcntl.h>
#include <inttypes.h>

#include "chain/chain.h"
#include "image/image.h"
#include "tap.h"
#include "util/checked.h"

#define K UINT64_C (1024)
#define SIZE (8192 * K + 5)
#define THREADS 4
#define PART (2048 * K)
#define BLOCK (16 * K)

static char dir[] = "/tmp/test-copyread-XXXXXX";
static char base[64], top[64];
static uint8_t *model;

static const struct nc_copyread_options defaults = {
  .max_outstanding = NC_COPYREAD_OUTSTANDING,
  .neighbourhood = NC_COPYREAD_NEIGHBOURHOOD,
  .read_ahead = NC_COPYREAD_AHEAD,
};

/* A disk, and what copies for it. */
struct disk {
  struct nc_chain *chain;
  struct nc_export *e;
  struct nc_copyread *cr;
};

static void
make_base (uint64_t *seed)
{
  const int fd = open (base, O_CREAT | O_TRUNC | O_RDWR, 0666);

  for (uint64_t i = 0; i < SIZE; ++i)
    model[i] = i / (96 * K) % 4 == 3 ? 0 : 1 + rnd (seed) % 255;
  must (fd != -1 && write (fd, model, SIZE) == (ssize_t) SIZE, "base");
  close (fd);
}

static void
make_top (void)
{
  const struct nc_image_create_options opts = {
    .path = top, .backing = base, .backing_format = "raw",
    .block_size = BLOCK, .journal_size = 16384,
  };

  unlink (top);
  must (nc_image_create (&opts) == 0, tap_error);
}

static void
open_disk (struct disk *disk, const struct nc_copyread_options *opts)
{
  const struct nc_chain_options chain_opts = {
    .image = top, .memory_fd = -1, .retry = 1,
  };

  *disk = (struct disk) { .chain = nc_chain_open (&chain_opts) };
  must (disk->chain && nc_chain_start (disk->chain) == 0, tap_error);
  disk->e = nc_export_open (disk->chain, "", 0);
  if (opts) {
    disk->cr = nc_copyread_new (opts);
    must (disk->cr && nc_copyread_check (disk->cr, disk->chain) == 0 &&
          nc_copyread_start (disk->cr, disk->chain) == 0, tap_error);
  }
}

static bool
close_disk (struct disk *disk)
{
  bool good;

  if (disk->cr)
    nc_copyread_stop (disk->cr);
  good = nc_chain_stop (disk->chain) == 0;
  if (disk->cr)
    nc_copyread_end (disk->cr);
  nc_export_close (disk->e);
  nc_chain_close (disk->chain);
  nc_copyread_free (disk->cr);
  return good;
}

/* Whether the range reads as the model has it. */
static bool
reads (struct disk *disk, uint64_t offset, uint64_t count)
{
  NC_FREE uint8_t *buf = malloc (count);

  must (buf != NULL, "malloc");
  return nc_export_pread (disk->e, buf, count, offset) == 0 &&
    memcmp (buf, model + offset, count) == 0;
}

static uint64_t
fetched (struct disk *disk)
{
  struct nc_copyread_count count;

  nc_copyread_counted (disk->cr, &count);
  return count.fetched;
}

static uint64_t
not_stored (struct disk *disk)
{
  struct nc_copyread_count count;

  nc_copyread_counted (disk->cr, &count);
  return count.not_stored;
}

/* How many bytes top.fvd has. */
static uint64_t
allocated (void)
{
  struct disk disk;
  uint64_t sum = 0;

  open_disk (&disk, NULL);
  for (uint64_t offset = 0, run; offset < SIZE; offset += run) {
    int layer;

    must (nc_chain_owner (disk.chain, offset, SIZE - offset, &layer,
                          &run) == 0, tap_error);
    sum += layer == 0 ? run : 0;
  }
  close_disk (&disk);
  return sum;
}

static void
test_what (void)
{
  struct nc_copyread_options opts = defaults;
  struct disk disk;
  bool good;

  opts.neighbourhood = 0;
  opts.read_ahead = 0;
  make_top ();
  open_disk (&disk, &opts);
  good = reads (&disk, 5 * BLOCK + 10, 20) &&
    reads (&disk, 9 * BLOCK - 1, 2) && reads (&disk, SIZE - 1, 1);
  ok (good && fetched (&disk) == 3 * BLOCK + 5, "whole blocks are fetched");
  good = close_disk (&disk);
  ok (good && allocated () == 3 * BLOCK + 5, "and stored");

  make_top ();
  open_disk (&disk, &defaults);
  must (nc_export_zero (disk.e, 2 * BLOCK, BLOCK, 0) == 0, tap_error);
  memset (model + 2 * BLOCK, 0, BLOCK);
  good = reads (&disk, 0, 1);
  ok (good && fetched (&disk) == 2 * BLOCK,
      "a neighbourhood ends where the client has written");
  good = reads (&disk, BLOCK, 2 * BLOCK) && reads (&disk, 0, 64 * K);
  ok (good && close_disk (&disk) && allocated () == 64 * K,
      "and the rest comes with the next read");

  /* The source is next to it, and nothing is read in order. */
  opts.neighbourhood = 2 * BLOCK;
  make_top ();
  open_disk (&disk, &opts);
  for (unsigned i = 42; good && i-- > 0;)
    good = reads (&disk, i * 192 * K, 1);
  ok (good && fetched (&disk) >= 36 * 2 * BLOCK,
      "it is brought along where that takes next to no time (%" PRIu64 ")",
      fetched (&disk));
  close_disk (&disk);

  opts.neighbourhood = 0;
  opts.max_outstanding = 2 * BLOCK;
  make_top ();
  open_disk (&disk, &opts);
  good = reads (&disk, 64 * K, 3 * BLOCK) && reads (&disk, 128 * K, 2 * BLOCK);
  ok (good && fetched (&disk) == 2 * BLOCK &&
      not_stored (&disk) == 3 * BLOCK, "what is too much is only read");
  good = close_disk (&disk);
  ok (good && allocated () == 2 * BLOCK, "and not stored");
}

struct client {
  pthread_t thread;
  struct disk *disk;
  uint64_t from, seed;
  bool good;
};

/* Read in order what nobody writes, or write and read a part of our own. */
static void *
client_thread (void *arg)
{
  struct client *c = arg;

  c->good = true;
  for (unsigned i = 0; c->good && i < 400; ++i) {
    const uint64_t offset = c->from + rnd_below (&c->seed, PART);
    const uint64_t count = nc_min64 (1 + rnd_below (&c->seed, 40000),
                                     c->from + PART - offset);

    switch (c->from == 0 ? 4 : rnd_below (&c->seed, 4)) {
    case 0:
      for (uint64_t k = 0; k < count; ++k)
        model[offset + k] = rnd (&c->seed);
      c->good = nc_export_pwrite (c->disk->e, model + offset, count, offset,
                                  0) == 0;
      break;
    case 1:
      memset (model + offset, 0, count);
      c->good = nc_export_zero (c->disk->e, offset, count,
                                NC_REQ_MAY_TRIM) == 0;
      break;
    case 2: case 3:
      c->good = reads (c->disk, offset, count);
      break;
    case 4:
      c->good = reads (c->disk, i * 5 * K % PART, 5 * K);
    }
  }
  return NULL;
}

static void
test_clients (uint64_t seed, const struct nc_copyread_options *opts,
              const char *what)
{
  struct client clients[THREADS + 1];
  struct disk disk;
  bool good = true;

  make_base (&seed);
  make_top ();
  open_disk (&disk, opts);
  /* Two of them read in order. */
  for (unsigned i = 0; i <= THREADS; ++i) {
    clients[i] = (struct client) {
      .disk = &disk, .from = i % THREADS * PART, .seed = seed + i,
    };
    must (pthread_create (&clients[i].thread, NULL, client_thread,
                          &clients[i]) == 0, "thread");
  }
  for (unsigned i = 0; i <= THREADS; ++i) {
    pthread_join (clients[i].thread, NULL);
    good = good && clients[i].good;
  }
  ok (good && fetched (&disk) > 0, "clients find what they wrote: %s", what);
  good = reads (&disk, 0, SIZE) && close_disk (&disk);
  open_disk (&disk, NULL);
  good = good && reads (&disk, 0, SIZE);
  ok (good && close_disk (&disk), "and it is there afterwards");
}

int
main (void)
{
  struct nc_copyread_options opts = defaults;
  uint64_t seed = tap_start (120);

  model = malloc (SIZE);
  must (model && mkdtemp (dir), "preparation");
  snprintf (base, sizeof base, "%s/base.raw", dir);
  snprintf (top, sizeof top, "%s/top.fvd", dir);
  make_base (&seed);

  test_what ();
  test_clients (seed, &opts, "the defaults");
  opts.max_outstanding = 256 * K;
  opts.read_ahead = NC_AHEAD_PIECE_MIN;
  test_clients (seed, &opts, "hardly any room");
  opts.neighbourhood = 1024 * K;
  opts.max_outstanding = 64 * 1024 * K;
  test_clients (seed, &opts, "much room");

  unlink (base);
  unlink (top);
  rmdir (dir);
  free (model);
  return tap_done ();
}
