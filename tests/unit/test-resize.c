/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/image/resize.c: random writes and changes of size against a flat
 * file in memory, the image read by a second reader, and an error at each
 * operation of a resize. */

#include <config.h>

#include "image/image.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "chain/chain.h"
#include "fvd-reader.h"
#include "tap.h"
#include "util/checked.h"

#define PAGE (UINT64_C (4032) * 4096)
#define MAX_SIZE (PAGE + 3000000)

/* One thread, which is slow where threads are looked at. */
#ifdef __SANITIZE_THREAD__
#define LESS(n) ((n) / 4)
#else
#define LESS(n) (n)
#endif

static char dir[] = "/tmp/test-resize-XXXXXX";
static char image[64], base[64], saved[64];

/* The image is compact, and its file as long as its chunks are. */
static bool compact;

/* The disk as it must be, zeros behind its end. */
static uint8_t *flat;
static uint64_t flat_size;

/* Changes of files by the library: the Nth from now on fails.  These
 * functions stand before those of the C library. */
static uint64_t fail_at, changes;

static bool
fails (void)
{
  if (++changes != fail_at)
    return false;
  errno = EIO;
  return true;
}

#define REAL(name, type) \
  __typeof__ (type) *real; \
  *(void **) &real = dlsym (RTLD_NEXT, name)

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  REAL ("pwrite", ssize_t (int, const void *, size_t, off_t));
  return fails () ? -1 : real (fd, buf, count, offset);
}

ssize_t
pwritev2 (int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
  REAL ("pwritev2", ssize_t (int, const struct iovec *, int, off_t, int));
  return fails () ? -1 : real (fd, iov, n, offset, flags);
}

int
fdatasync (int fd)
{
  REAL ("fdatasync", int (int));
  return fails () ? -1 : real (fd);
}

int
ftruncate (int fd, off_t size)
{
  REAL ("ftruncate", int (int, off_t));
  return fails () ? -1 : real (fd, size);
}

int
fallocate (int fd, int mode, off_t offset, off_t count)
{
  REAL ("fallocate", int (int, int, off_t, off_t));
  return fails () ? -1 : real (fd, mode, offset, count);
}

static void
write_file (const char *path, const uint8_t *data, uint64_t size)
{
  FILE *fp = fopen (path, "w");

  must (fp && fwrite (data, 1, size, fp) == size && fclose (fp) == 0, path);
}

static uint8_t *
slurp (const char *path, uint64_t *size)
{
  NC_CLOSE int fd = open (path, O_RDONLY);
  uint8_t *data;

  must (fd != -1, path);
  *size = lseek (fd, 0, SEEK_END);
  data = malloc (*size + 1);
  must (data && pread (fd, data, *size, 0) == (ssize_t) *size, path);
  return data;
}

/* The chain of the image, opened for as long as a few operations. */

static struct nc_chain *chain;
static struct nc_export *export;

static void
open_chain (bool read_only)
{
  struct nc_chain_options opts = {
    .image = image, .memory_fd = -1, .retry = 1, .read_only = read_only,
  };

  chain = nc_chain_open (&opts);
  must (chain && nc_chain_start (chain) == 0 &&
        (export = nc_export_open (chain, "", 0)) != NULL, image);
}

static void
close_chain (bool in_order)
{
  must (nc_export_flush (export) == 0, "flush");
  must (!in_order || nc_chain_stop (chain) == 0, "stop");
  nc_export_close (export);
  nc_chain_close (chain);
}

/* Whether the disk is FLAT. */
static bool
is_flat (void)
{
  static uint8_t buf[1 << 20];
  bool good;

  open_chain (true);
  good = nc_export_size (export) == flat_size ||
    note ("size %llu, not %llu",
          (unsigned long long) nc_export_size (export),
          (unsigned long long) flat_size);
  for (uint64_t at = 0, n; good && at < flat_size; at += n) {
    n = nc_min64 (sizeof buf, flat_size - at);
    good = nc_export_pread (export, buf, n, at) == 0 &&
      (memcmp (buf, flat + at, n) == 0 ||
       note ("differs between %llu and %llu", (unsigned long long) at,
             (unsigned long long) (at + n)));
  }
  close_chain (false);
  return good;
}

static void
set_flat_size (uint64_t size)
{
  if (size < flat_size)
    memset (flat + size, 0, flat_size - size);
  flat_size = size;
}

static void
random_bytes (uint64_t *seed, uint8_t *p, uint64_t n)
{
  const uint64_t r = rnd (seed);

  for (uint64_t i = 0; i < n; ++i)
    p[i] = 1 + (r + i * (r >> 48 | 1)) % 255;
}

static void
change_some (uint64_t *seed)
{
  open_chain (false);
  for (unsigned i = 0; i < 12 && flat_size > 0; ++i) {
    const uint64_t at = rnd_below (seed, 3) == 0 ? flat_size - 1 -
      rnd_below (seed, nc_min64 (flat_size, 9000))
      : rnd_below (seed, flat_size);
    uint64_t n = 1 + rnd_below (seed, nc_min64 (30000, flat_size - at));

    if (rnd_below (seed, 3) > 0) {
      random_bytes (seed, flat + at, n);
      must (nc_export_pwrite (export, flat + at, n, at, 0) == 0, "write");
      continue;
    }
    if (rnd_below (seed, 3) == 0)       /* whole pages */
      n = 1 + rnd_below (seed, flat_size - at);
    memset (flat + at, 0, n);
    must (nc_export_zero (export, at, n, rnd (seed) & NC_REQ_MAY_TRIM) == 0,
          "zero");
  }
  close_chain (rnd_below (seed, 3) > 0);
}

static uint64_t
random_size (uint64_t *seed)
{
  static const uint64_t places[] = { 0, 4096, PAGE, PAGE + 2000000 };
  const uint64_t place = places[rnd_below (seed, 4)];
  uint64_t off = rnd_below (seed, 20000);

  switch (rnd_below (seed, 5)) {
  case 0:
    return rnd_below (seed, MAX_SIZE);
  case 2:                       /* within what was written last */
    return flat_size - nc_min64 (rnd_below (seed, 9000), flat_size);
  case 1:
    return place + rnd_below (seed, 3) * 4096;
  default:
    return rnd (seed) & 1 ? place + off : place - nc_min64 (off, place);
  }
}

static int
resize (uint64_t size)
{
  const struct nc_image_resize_options opts = {
    .path = image, .size = size, .shrink = true,
  };
  struct nc_image_resize_result result;

  return nc_image_resize (&opts, &result);
}

/* What the second reader and the check say of the image.  The places of chunks
 * behind a smaller end belong to nobody: a warning, if there are any. */
static bool
is_proper (void)
{
  struct nc_check_result result;
  struct fvd_reader r;
  uint64_t size;
  uint8_t *file = slurp (image, &size);
  bool good = (fvd_reader_open (&r, file, size) == 0 && (r.flags & 1) &&
               r.size == flat_size &&
               (compact || size == r.data_offset + flat_size)) ||
    note ("the reader says: %s", r.why);

  fvd_reader_close (&r);
  free (file);
  return good && nc_image_check (image, NULL, NULL, &result) == 0 &&
    ((result.errors == 0 &&
      result.warnings == (compact && result.leaked > 0)) ||
     note ("check: %llu errors, %llu warnings",
           (unsigned long long) result.errors,
           (unsigned long long) result.warnings));
}

static void
create (uint64_t *seed, uint64_t size, uint32_t block_size)
{
  const uint64_t base_size = rnd_below (seed, PAGE + 100000);
  struct nc_image_create_options opts = {
    .path = image, .has_size = true, .size = size, .backing = base,
    .backing_format = "raw", .block_size = block_size,
    .journal_size = 16384, .compact = compact,
    .grow_unit = compact ? 1 << 20 : 0,
  };

  unlink (image);
  memset (flat, 0, MAX_SIZE + 50000);
  random_bytes (seed, flat, base_size);
  write_file (base, flat, base_size);
  flat_size = MAX_SIZE + 50000;
  set_flat_size (size);
  must (nc_image_create (&opts) == 0, "create");
}

static void
test_random (uint64_t *seed, uint32_t block_size, unsigned rounds)
{
  bool good;

  flat_size = 0;
  create (seed, random_size (seed), block_size);
  good = is_flat ();
  for (unsigned i = 0; good && i < rounds; ++i) {
    const uint64_t size = random_size (seed), old = flat_size;

    if (rnd (seed) & 1)
      change_some (seed);
    good = resize (size) == 0;
    set_flat_size (size);
    good = good && is_flat () && (size == old || is_proper ());
    if (!good)
      note ("round %u: from %llu to %llu", i, (unsigned long long) old,
            (unsigned long long) size);
  }
  ok (good, "%sresized at random, with blocks of %u, the disk is the flat one",
      compact ? "compact, " : "", block_size);
}

/* With its holes: what takes storage and is in no block is a leak. */
static void
copy_image (const char *from, const char *to)
{
  static const uint8_t zeros[4096];
  NC_CLOSE int fd = open (to, O_RDWR | O_CREAT | O_TRUNC, 0600);
  uint64_t size;
  uint8_t *file = slurp (from, &size);

  must (fd != -1 && ftruncate (fd, size) == 0, to);
  for (uint64_t at = 0, n; at < size; at += n) {
    n = nc_min64 (sizeof zeros, size - at);
    must (memcmp (file + at, zeros, n) == 0 ||
          pwrite (fd, file + at, n, at) == (ssize_t) n, to);
  }
  free (file);
}

/* From what is there to SIZE, with an error at each change of a file. */
static bool
fail_each (uint64_t size)
{
  const uint64_t old_size = flat_size;
  NC_FREE uint8_t *old = malloc (old_size + 1);
  unsigned failed = 0;
  bool good = true;

  must (old != NULL, "malloc");
  memcpy (old, flat, old_size);
  copy_image (image, saved);
  for (uint64_t n = 1; good; ++n) {
    int r;

    copy_image (saved, image);
    set_flat_size (old_size);
    memcpy (flat, old, old_size);
    tap_clear ();
    changes = 0;
    fail_at = n;
    r = resize (size);
    fail_at = 0;
    if (changes < n) {
      set_flat_size (size);
      return r == 0 && is_flat () && is_proper () && failed > 5;
    }
    failed++;
    good = (r == -1 && tap_errors > 0) || note ("no error at %u", failed);
    open_chain (true);
    if (nc_export_size (export) != old_size)
      set_flat_size (size);
    close_chain (false);
    good = good && is_flat () && resize (size) == 0;
    set_flat_size (size);
    good = good && is_flat () && is_proper ();
  }
  return note ("failed at change %u", failed);
}

static void
test_errors (uint64_t *seed)
{
  create (seed, PAGE - 5000, 4096);
  change_some (seed);
  ok (fail_each (PAGE + 7000), "an error in growing leaves one size or the "
      "other, and it can be tried again");
  open_chain (false);
  must (nc_export_zero (export, 0, PAGE + 7000, 0) == 0, "zero");
  memset (flat, 0, flat_size);
  close_chain (true);
  ok (fail_each (PAGE - 3 * 4096 + 100) && fail_each (PAGE + 9000),
      "so it is with a page of which all blocks are allocated");
  change_some (seed);
  ok (fail_each (PAGE - 100000) && fail_each (0), "and in shrinking");
}

static bool
refused (struct nc_image_resize_options opts)
{
  struct nc_image_resize_result result;
  bool good;
  int err;

  tap_clear ();
  opts.path = image;
  good = nc_image_resize (&opts, &result) == -1 && tap_errors == 1 &&
    errno != 0;
  err = errno;
  good = good && is_flat ();
  errno = err;
  return good;
}

static void
test_refused (uint64_t *seed)
{
  struct nc_image_resize_options opts = { .path = image };
  struct nc_image_resize_result result;
  struct nc_image_info info;
  uint64_t max;
  struct stat before, after;

  create (seed, 100001, 0);
  must (nc_image_inspect (image, NULL, &info) == 0, "inspect");
  max = info.max_size;
  nc_image_info_free (&info);
  must (stat (image, &before) == 0, image);
  ok (max >= UINT64_C (64) << 30, "a small disk can grow to 64 GiB");
  opts.size = max + 1;
  ok (refused (opts) && errno == EFBIG, "but no further than there is room");
  opts.size = 100000;
  ok (refused (opts), "a smaller size must be meant");
  opts.relative = -1;
  opts.shrink = true;
  opts.size = 100002;
  ok (refused (opts), "there is nothing below 0");
  opts.relative = 1;
  opts.size = UINT64_MAX;
  ok (refused (opts), "nor beyond what a file can have");
  open_chain (false);
  opts.size = 1;
  tap_clear ();
  ok (nc_image_resize (&opts, &result) == -1 && errno == EBUSY &&
      tap_errors == 1, "an image in use is refused");
  close_chain (true);
  opts.path = base;
  tap_clear ();
  ok (nc_image_resize (&opts, &result) == -1 && tap_errors == 1 &&
      strstr (tap_error, "truncate"), "so is a raw one, with what to do");
  opts.path = image;
  opts.size = 1;
  ok (nc_image_resize (&opts, &result) == 0 && result.size == 100002 &&
      result.old_size == 100001, "a byte more");
  set_flat_size (100002);
  ok (is_flat (), "reads as zero");
  opts.relative = 0;
  opts.size = max;
  ok (nc_image_resize (&opts, &result) == 0 && stat (image, &after) == 0 &&
      after.st_blocks <= before.st_blocks + 200,
      "the largest disk takes no storage");
}

int
main (void)
{
  uint64_t seed = tap_start (800);

  must (mkdtemp (dir) != NULL, dir);
  snprintf (image, sizeof image, "%s/a.fvd", dir);
  snprintf (base, sizeof base, "%s/base", dir);
  snprintf (saved, sizeof saved, "%s/saved", dir);
  flat = calloc (1, MAX_SIZE + 50000);
  must (flat != NULL, "calloc");
  test_random (&seed, 4096, LESS (16));
  test_random (&seed, 65536, LESS (12));
  test_random (&seed, 4096, LESS (16));
  test_errors (&seed);
  test_refused (&seed);
  compact = true;
  test_random (&seed, 4096, LESS (16));
  test_random (&seed, 65536, LESS (12));
  test_errors (&seed);
  unlink (image);
  unlink (base);
  unlink (saved);
  rmdir (dir);
  free (flat);
  return tap_done ();
}
