/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of the comparison of two disks: random contents in chains and raw
 * files, against arrays compared byte by byte. */

#include <config.h>

#include "image/compare.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "chain/chain.h"
#include "folder.h"
#include "image/image.h"
#include "tap.h"
#include "util/checked.h"

#define BLOCK 4096
#define MIB (UINT64_C (1) << 20)

/* What a disk must show; it goes on with zeros up to DISK_MAX. */
#define DISK_MAX (6 * MIB)

struct flat {
  uint8_t *data;
  uint64_t size;
};

static struct flat
new_flat (uint64_t size)
{
  struct flat f = { calloc (1, DISK_MAX), size };

  must (f.data != NULL, "calloc");
  return f;
}

static void
copy_flat (struct flat *to, const struct flat *from)
{
  memcpy (to->data, from->data, to->size);
  memset (to->data + to->size, 0, DISK_MAX - to->size);
}

static bool
is_zero (const uint8_t *p, uint64_t n)
{
  return n == 0 || (p[0] == 0 && memcmp (p, p + 1, n - 1) == 0);
}

/* Some data and some zeros here and there. */
static void
scribble (struct flat *f, unsigned n, uint64_t *seed)
{
  while (n-- > 0) {
    const uint64_t offset = rnd_below (seed, f->size);
    const uint64_t count = nc_min64 (1 + rnd_below (seed, 300000),
                                     f->size - offset);

    if (rnd_below (seed, 3) == 0)
      memset (f->data + offset, 0, count);
    else
      for (uint64_t i = 0; i < count; ++i)
        f->data[offset + i] = (uint8_t) rnd (seed);
  }
}

/* Change single bytes: anywhere, where pieces meet, and so near to one
 * another that they are one range or just two. */
static void
change_bytes (struct flat *f, unsigned n, uint64_t *seed)
{
  uint64_t offset = 0;

  while (n-- > 0) {
    switch (rnd_below (seed, 4)) {
    case 0:
      offset += NC_COMPARE_GAP - 1 + rnd_below (seed, 4);
      break;
    case 1:
      offset = MIB * rnd_below (seed, 5) - rnd_below (seed, 2);
      break;
    default:
      offset = rnd_below (seed, f->size);
    }
    if (offset < f->size)
      f->data[offset]++;
  }
}

static void
write_raw (const char *path, const struct flat *f)
{
  NC_CLOSE int fd = open (path, O_CREAT | O_WRONLY | O_TRUNC, 0666);

  must (fd != -1 && ftruncate (fd, f->size) == 0, path);
  for (uint64_t o = 0; o < f->size; o += BLOCK) {
    const uint64_t n = nc_min64 (BLOCK, f->size - o);

    if (!is_zero (f->data + o, n))
      must (pwrite (fd, f->data + o, n, o) == (ssize_t) n, path);
  }
}

static struct nc_chain *
open_chain (const char *path, const char *format, bool read_only)
{
  const struct nc_chain_options opts = {
    .image = path, .format = format, .is_ref = read_only, .memory_fd = -1,
    .read_only = read_only, .retry = 1,
  };
  struct nc_chain *chain = nc_chain_open (&opts);

  must (chain != NULL && nc_chain_start (chain) == 0, tap_error);
  return chain;
}

/* An fvd image over BACKING, which shows BELOW. */
static void
write_fvd (const char *path, const struct flat *f, const char *backing,
           const char *format, const struct flat *below, uint64_t *seed)
{
  const struct nc_image_create_options opts = {
    .path = path, .has_size = true, .size = f->size, .backing = backing,
    .backing_format = format,
  };
  struct nc_chain *chain;
  struct nc_export *e;
  bool good = true;

  unlink (path);
  must (nc_image_create (&opts) == 0, tap_error);
  chain = open_chain (path, "fvd", false);
  e = nc_export_open (chain, "", 0);
  must (e != NULL, "export");
  for (uint64_t o = 0; o < f->size; o += BLOCK) {
    const uint64_t n = nc_min64 (BLOCK, f->size - o);
    const uint8_t *p = f->data + o;

    if (memcmp (p, below->data + o, n) == 0 && rnd_below (seed, 20) > 0)
      continue;
    good = good && (is_zero (p, n)
                    ? nc_export_zero (e, o, n, NC_REQ_MAY_TRIM)
                    : nc_export_pwrite (e, p, n, o, 0)) == 0;
  }
  nc_export_close (e);
  must (good && nc_chain_stop (chain) == 0, tap_error);
  nc_chain_close (chain);
}

/* The oracle. */

#define RANGES_MAX 1000

struct ranges {
  struct nc_compare_range v[RANGES_MAX];
  size_t n;
};

static void
add_range (void *opaque, const struct nc_compare_range *range)
{
  struct ranges *r = opaque;

  must (r->n < RANGES_MAX, "more ranges than changes");
  r->v[r->n++] = *range;
}

static void
differences (const struct flat *a, const struct flat *b, struct ranges *r)
{
  struct nc_compare_range *last = NULL;

  r->n = 0;
  for (uint64_t o = 0; o < DISK_MAX; ++o)
    if (a->data[o] != b->data[o]) {
      if (last == NULL ||
          o - (last->offset + last->count) >= NC_COMPARE_GAP) {
        must (r->n < RANGES_MAX, "too many changes");
        last = &r->v[r->n++];
        *last = (struct nc_compare_range) { .offset = o };
      }
      last->count = o + 1 - last->offset;
      last->bytes++;
    }
}

struct progress {
  _Atomic (uint64_t) done;
  uint64_t total;
};

static void
add_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct progress *p = opaque;
  uint64_t old = p->done;

  while (old < done && !atomic_compare_exchange_weak (&p->done, &old, done))
    ;
  if (done > total || total != p->total)
    p->done = UINT64_MAX;
}

/* Whether the comparison of the chains says what WANT does. */
static bool
says (struct nc_chain *a, struct nc_chain *b, const struct ranges *want,
      uint64_t size, bool all)
{
  struct ranges *have = calloc (1, sizeof *have);
  struct progress progress = { .total = size };
  const struct nc_compare_options opts = {
    .all = all, .difference = add_range, .difference_opaque = have,
    .progress = add_progress, .progress_opaque = &progress,
  };
  struct nc_compare_result r;
  uint64_t bytes = 0;
  bool good;

  must (have != NULL, "calloc");
  if (nc_compare (a, b, &opts, &r) == -1) {
    free (have);
    return note ("failed: %s", tap_error);
  }
  good = r.equal == (want->n == 0) || note ("equal: %d", r.equal);
  good = good && (r.equal || r.first == want->v[0].offset ||
                  note ("first %llu", (unsigned long long) r.first));
  if (all) {
    for (size_t i = 0; i < want->n; ++i)
      bytes += want->v[i].bytes;
    good = good && ((r.bytes == bytes && r.ranges == want->n) ||
                    note ("counts"));
    good = good && ((have->n == want->n &&
                     memcmp (have->v, want->v,
                             want->n * sizeof want->v[0]) == 0) ||
                    note ("ranges"));
  }
  if (all || r.equal)
    good = good && ((r.compared + r.shared + r.zero == size &&
                     progress.done == size) || note ("all of the disk"));
  free (have);
  return good;
}

/* Compare A and B, either way round. */
static bool
compare_both_ways (const char *path_a, const char *format_a,
                   const struct flat *a, const char *path_b,
                   const char *format_b, const struct flat *b)
{
  struct nc_chain *chain_a = open_chain (path_a, format_a, true);
  struct nc_chain *chain_b = open_chain (path_b, format_b, true);
  struct ranges *want = calloc (1, sizeof *want);
  const uint64_t size = nc_max64 (a->size, b->size);
  bool good;

  must (want != NULL, "calloc");
  differences (a, b, want);
  good = says (chain_a, chain_b, want, size, true) &&
    says (chain_a, chain_b, want, size, false) &&
    says (chain_b, chain_a, want, size, true) &&
    says (chain_b, chain_a, want, size, false);
  if (!good)
    note ("%s (%llu bytes) and %s (%llu bytes), %zu ranges", path_a,
          (unsigned long long) a->size, path_b, (unsigned long long) b->size,
          want->n);
  free (want);
  nc_chain_close (chain_a);
  nc_chain_close (chain_b);
  return good;
}

/* Random sizes, of which the larger one may go on with zeros. */
static uint64_t
random_size (uint64_t *seed)
{
  return rnd_below (seed, 2) ? 4 * MIB
    : 3 * MIB + rnd_below (seed, 2 * MIB);
}

static void
test_random (uint64_t *seed)
{
  struct flat base = new_flat (4 * MIB), mid = new_flat (4 * MIB);
  bool raw = true, mixed = true, chains = true;

  for (int round = 0; round < 6; ++round) {
    struct flat a = new_flat (random_size (seed));
    struct flat b = new_flat (random_size (seed));
    const unsigned changes = round < 2 ? 0 : 1 + rnd_below (seed, 40);

    memset (base.data, 0, DISK_MAX);
    scribble (&base, 12, seed);
    copy_flat (&mid, &base);
    scribble (&mid, 4, seed);
    copy_flat (&a, &mid);
    scribble (&a, 4, seed);
    copy_flat (&b, &a);
    /* Else one ends where the other still has data. */
    if (round % 2 == 0) {
      memset (a.data + nc_min64 (a.size, b.size), 0,
              DISK_MAX - nc_min64 (a.size, b.size));
      copy_flat (&b, &a);
    }
    change_bytes (&b, changes, seed);

    write_raw (at ("base.raw"), &base);
    write_fvd (at ("mid.fvd"), &mid, at ("base.raw"), "raw", &base, seed);
    write_raw (at ("a.raw"), &a);
    write_raw (at ("b.raw"), &b);
    write_fvd (at ("a.fvd"), &a, at ("mid.fvd"), "fvd", &mid, seed);
    write_fvd (at ("b.fvd"), &b, at ("mid.fvd"), "fvd", &mid, seed);
    raw = compare_both_ways (at ("a.raw"), "raw", &a,
                             at ("b.raw"), "raw", &b) && raw;
    mixed = compare_both_ways (at ("a.fvd"), "fvd", &a,
                               at ("b.raw"), "raw", &b) && mixed;
    mixed = compare_both_ways (at ("base.raw"), "raw", &base,
                               at ("b.fvd"), "fvd", &b) && mixed;
    chains = compare_both_ways (at ("a.fvd"), "fvd", &a,
                                at ("b.fvd"), "fvd", &b) && chains;
    chains = compare_both_ways (at ("mid.fvd"), "fvd", &mid,
                                at ("b.fvd"), "fvd", &b) && chains;
    free (a.data);
    free (b.data);
  }
  ok (raw, "raw files are compared byte by byte");
  ok (mixed, "a chain and a raw file");
  ok (chains, "chains that share layers");
  free (base.data);
  free (mid.data);
}

/* Around what both have from one layer, A has zeros, and B has not. */
static void
test_shared_between (uint64_t *seed)
{
  struct flat base = new_flat (MIB), a = new_flat (MIB), b = new_flat (MIB);

  memset (base.data, 0, DISK_MAX);
  memset (base.data + BLOCK, 'x', BLOCK);
  copy_flat (&a, &base);
  copy_flat (&b, &base);
  memset (b.data, 'y', BLOCK);
  memset (b.data + 2 * BLOCK, 'y', BLOCK);
  write_raw (at ("base.raw"), &base);
  write_raw (at ("a.raw"), &a);
  write_fvd (at ("a.fvd"), &a, at ("base.raw"), "raw", &a, seed);
  write_fvd (at ("b.fvd"), &b, at ("base.raw"), "raw", &base, seed);
  ok (compare_both_ways (at ("base.raw"), "raw", &base,
                         at ("b.fvd"), "fvd", &b) &&
      compare_both_ways (at ("a.fvd"), "fvd", &a, at ("b.fvd"), "fvd", &b),
      "what is shared is equal, also between what one side does not have");
  free (base.data);
  free (a.data);
  free (b.data);
}

/* How much of the images at PATH_A and PATH_B was read, shared, zero. */
static struct nc_compare_result
compare_paths (const char *path_a, const char *format_a,
               const char *path_b, const char *format_b)
{
  static const struct nc_compare_options opts = { .all = true };
  struct nc_chain *a = open_chain (path_a, format_a, true);
  struct nc_chain *b = open_chain (path_b, format_b, true);
  struct nc_compare_result r;

  must (nc_compare (a, b, &opts, &r) == 0, tap_error);
  nc_chain_close (a);
  nc_chain_close (b);
  return r;
}

static void
test_passed (uint64_t *seed)
{
  struct flat base = new_flat (4 * MIB), top = new_flat (4 * MIB);
  struct nc_compare_result r;

  memset (base.data + MIB, 1, MIB);
  write_raw (at ("base.raw"), &base);
  write_raw (at ("copy.raw"), &base);
  r = compare_paths (at ("base.raw"), "raw", at ("copy.raw"), "raw");
  ok (r.equal && r.compared == MIB && r.zero == 3 * MIB && r.shared == 0,
      "what both sides do not hold is not read");
  r = compare_paths (at ("base.raw"), "raw", at ("base.raw"), "raw");
  ok (r.equal && r.compared == 0 && r.shared == 4 * MIB,
      "a file is not compared with itself");

  copy_flat (&top, &base);
  memset (top.data + 2 * MIB, 2, BLOCK);
  write_fvd (at ("top.fvd"), &top, at ("base.raw"), "raw", &top, seed);
  write_fvd (at ("top2.fvd"), &top, at ("base.raw"), "raw", &base, seed);
  r = compare_paths (at ("top2.fvd"), "fvd", at ("base.raw"), "raw");
  ok (!r.equal && r.first == 2 * MIB && r.bytes == BLOCK &&
      r.compared < MIB && r.shared > 2 * MIB,
      "of an overlay and its base only what the overlay holds is read");

  r = compare_paths (at ("top.fvd"), "raw", at ("top.fvd"), "fvd");
  ok (!r.equal, "a file is not the same in another format");

  base.size = top.size = 0;
  write_raw (at ("none.raw"), &base);
  r = compare_paths (at ("none.raw"), "raw", at ("none.raw"), "raw");
  ok (r.equal && r.compared + r.zero + r.shared == 0, "disks of no bytes");
  free (base.data);
  free (top.data);
}

/* Data and zeros in turns, too many to be known at a time. */
static void
test_many_extents (void)
{
  struct nc_compare_result r;
  struct flat f = new_flat (DISK_MAX);
  NC_CLOSE int fd = -1;

  write_raw (at ("many.raw"), &f);
  write_raw (at ("zero.raw"), &f);
  fd = open (at ("many.raw"), O_RDWR);
  must (fd != -1 && ftruncate (fd, 80 * MIB) == 0, "many.raw");
  for (uint64_t o = 0; o < 80 * MIB; o += 2 * BLOCK)
    must (pwrite (fd, o == 79 * MIB ? "\1" : "\0", 1, o) == 1, "many.raw");
  r = compare_paths (at ("many.raw"), "raw", at ("zero.raw"), "raw");
  ok (!r.equal && r.first == 79 * MIB && r.bytes == 1 && r.ranges == 1 &&
      r.compared + r.zero == 80 * MIB, "more extents than are kept");
  free (f.data);
}

static void
test_failure (void)
{
  static const struct nc_compare_options opts = { 0 };
  struct nc_chain_options remote = {
    .image = "nbd://localhost/", .is_ref = true, .format = "fvd",
    .read_only = true, .memory_fd = -1, .retry = 1,
  };
  struct nc_compare_result r;
  struct nc_chain *a, *b;

  tap_clear ();
  ok (nc_chain_open (&remote) == NULL && errno == EINVAL &&
      tap_errors == 1 && strstr (tap_error, "only be raw"),
      "a remote is raw, and nothing else");
  remote.format = "raw";
  remote.read_only = false;
  ok (nc_chain_open (&remote) == NULL && errno == EROFS &&
      tap_errors == 2, "a remote is not written");

  a = open_chain ("[ nbdkit --filter=error pattern 40M error-pread=EIO"
                  " error-pread-rate=100% ]", NULL, true);
  b = open_chain ("[ nbdkit pattern 40M ]", NULL, true);
  tap_clear ();
  ok (nc_compare (a, b, &opts, &r) == -1 && tap_errors > 0,
      "a disk that cannot be read is a failure");
  r.equal = false;
  ok (nc_compare (b, b, &opts, &r) == 0 && r.equal && r.compared == 40 * MIB,
      "a command is read on both sides");
  nc_chain_close (a);
  nc_chain_close (b);
}

int
main (void)
{
  uint64_t seed = tap_start (800);

  make_folder ("test-compare");
  test_random (&seed);
  test_shared_between (&seed);
  test_passed (&seed);
  test_many_extents ();
  test_failure ();
  remove_folder ();
  return tap_done ();
}
