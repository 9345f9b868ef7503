/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of the chain and its requests: random operations against flat arrays,
 * one a layer; threads that write to the same blocks; kills and reopening;
 * remotes that are away; errors of the devices. */

#include <config.h>

#include "chain/chain.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "chain/internal.h"
#include "copyread/copyread.h"
#include "copy/side.h"
#include "dev-fault.h"
#include "folder.h"
#include "format/format.h"
#include "format/fvd/fvd.h"
#include "format/layer.h"
#include "fvd-reader.h"
#include "image/image.h"
#include "tap.h"
#include "util/checked.h"

static void
write_file (const char *path, const uint8_t *data, uint64_t size)
{
  NC_CLOSE int fd = open (path, O_CREAT | O_WRONLY | O_TRUNC, 0666);

  must (fd != -1 && write (fd, data, size) == (ssize_t) size, path);
}

static bool
create (const char *path, bool has_size, uint64_t size, const char *backing,
        const char *format, uint32_t block_size, uint64_t journal_size)
{
  struct nc_image_create_options opts = {
    .path = path, .has_size = has_size, .size = size, .backing = backing,
    .backing_format = format, .block_size = block_size,
    .journal_size = journal_size,
  };

  unlink (path);
  return nc_image_create (&opts) == 0 || note ("%s: %s", path, tap_error);
}

static struct nc_chain *
open_chain_with (const char *path, bool read_only, int memory_fd,
                 unsigned retry)
{
  struct nc_chain_options opts = {
    .image = path, .memory_fd = memory_fd, .read_only = read_only,
    .retry = retry,
  };
  struct nc_chain *chain = nc_chain_open (&opts);

  if (chain && nc_chain_start (chain) == -1) {
    nc_chain_close (chain);
    return NULL;
  }
  return chain;
}

static struct nc_chain *
open_chain (const char *path)
{
  return open_chain_with (path, false, -1, 1);
}

/* A layer and what it must show. */
struct flat {
  char path[300];
  uint8_t *data;
  uint64_t size;
};

static void
random_bytes (uint8_t *p, uint64_t n, uint64_t *seed)
{
  for (uint64_t i = 0; i < n; i += 8) {
    uint64_t v = rnd (seed);

    memcpy (p + i, &v, nc_min64 (8, n - i));
  }
}

static bool
same (struct nc_export *e, const struct flat *f, uint64_t offset,
      uint64_t count)
{
  NC_FREE uint8_t *buf = malloc (count + 1);

  must (buf != NULL, "malloc");
  if (count == 0)
    return true;
  if (nc_export_pread (e, buf, count, offset) == -1)
    return note ("pread %llu+%llu: %m", (unsigned long long) offset,
                 (unsigned long long) count);
  for (uint64_t i = 0; memcmp (buf, f->data + offset, count) != 0; ++i)
    if (buf[i] != f->data[offset + i])
      return note ("pread %llu+%llu: byte %llu is %02x, expected %02x",
                   (unsigned long long) offset, (unsigned long long) count,
                   (unsigned long long) (offset + i), buf[i],
                   f->data[offset + i]);
  return true;
}

static bool
is_zero (const uint8_t *p, uint64_t n)
{
  return n == 0 || (p[0] == 0 && memcmp (p, p + 1, n - 1) == 0);
}

static bool
extents_hold (struct nc_export *e, const struct flat *f, uint64_t offset,
              uint64_t count, bool one)
{
  struct nc_extents x;
  uint64_t pos = offset;
  bool good;

  nc_extents_init (&x, offset, count);
  good = nc_export_extents (e, &x, one) == 0;
  good = good && (one ? x.n >= 1 : nc_extents_full (&x));
  for (size_t i = 0; i < x.n && good; ++i) {
    good = x.v[i].offset == pos && x.v[i].count > 0 &&
      x.v[i].count <= offset + count - pos;
    if (good && (x.v[i].type & NC_EXTENT_ZERO))
      good = is_zero (f->data + pos, x.v[i].count) ||
        note ("not zero, though said to be");
    pos += x.v[i].count;
  }
  if (!good) {
    note ("%s of the extents of %llu+%llu", one ? "the first" : "all",
          (unsigned long long) offset, (unsigned long long) count);
    for (size_t i = 0; i < x.n; ++i)
      note ("  %llu+%llu, type %u", (unsigned long long) x.v[i].offset,
            (unsigned long long) x.v[i].count, x.v[i].type);
  }
  nc_extents_free (&x);
  return good;
}

static bool
owner_holds (struct nc_chain *chain, const struct flat *f, uint64_t offset,
             uint64_t count, bool populated)
{
  int layer;
  uint64_t run;

  while (count > 0) {
    if (nc_chain_owner (chain, offset, count, &layer, &run) == -1 ||
        run == 0 || run > count || layer < -1 ||
        layer >= (int) nc_chain_n_layers (chain))
      return note ("owner of %llu", (unsigned long long) offset);
    if (layer == -1 && !is_zero (f->data + offset, run))
      return note ("%llu: nobody's, but not zero",
                   (unsigned long long) offset);
    if (layer > 0 && populated)
      return note ("%llu: not populated", (unsigned long long) offset);
    offset += run;
    count -= run;
  }
  return true;
}

/* One random request, with its check. */
static bool
step (struct nc_chain *chain, struct nc_export *e, struct flat *f,
      uint64_t *seed)
{
  static const uint64_t units[] = { 1, 512, 4096, 65536 };
  uint64_t unit = units[rnd_below (seed, 4)];
  uint64_t offset = rnd_below (seed, f->size) / unit * unit;
  uint64_t count = 1 + rnd_below (seed, rnd_below (seed, 8) ? 9000 : 200000);
  unsigned flags = rnd_below (seed, 8) ? 0 : NC_REQ_FUA;
  NC_FREE uint8_t *buf = NULL;

  if (unit > 1)
    count = (count + unit - 1) / unit * unit;
  count = nc_min64 (count, f->size - offset);
  buf = malloc (count);
  must (buf != NULL, "malloc");
  errno = 0;
  switch (rnd_below (seed, 16)) {
  case 0: case 1: case 2: case 3: case 4:
    random_bytes (buf, count, seed);
    if (nc_export_pwrite (e, buf, count, offset, flags) == -1)
      return note ("pwrite: %m");
    memcpy (f->data + offset, buf, count);
    return true;
  case 5: case 6:
    if (rnd_below (seed, 2))
      flags |= NC_REQ_MAY_TRIM;
    if (rnd_below (seed, 4) == 0)
      flags |= NC_REQ_FAST;
    if (nc_export_zero (e, offset, count, flags) == -1) {
      if (!(flags & NC_REQ_FAST) || errno != ENOTSUP)
        return note ("zero: %m");
      return same (e, f, offset, count);
    }
    memset (f->data + offset, 0, count);
    return same (e, f, offset, count);
  case 7:
    if (nc_export_trim (e, offset, count, flags) == -1 ||
        nc_export_pread (e, buf, count, offset) == -1)
      return note ("trim: %m");
    for (uint64_t i = 0; i < count; ++i)
      if (buf[i] != 0 && buf[i] != f->data[offset + i])
        return note ("trim made something else");
    memcpy (f->data + offset, buf, count);
    return true;
  case 8:
    return nc_export_flush (e) == 0 || note ("flush: %m");
  case 9:
    return (nc_export_populate (e, offset, count) == 0 ||
            note ("populate: %m")) &&
      same (e, f, offset, count) &&
      owner_holds (chain, f, offset, count, true);
  case 10:
    return extents_hold (e, f, offset, count, rnd_below (seed, 2));
  case 11:
    return owner_holds (chain, f, offset, count, false);
  default:
    return same (e, f, offset, count);
  }
}

/* Open the layer, make STEPS random requests, compare the whole. */
static bool
work_on (struct flat *f, unsigned steps, uint64_t *seed)
{
  struct nc_chain *chain = open_chain (f->path);
  struct nc_export *e = chain ? nc_export_open (chain, "", 0) : NULL;
  bool good = e && nc_export_size (e) == f->size &&
    nc_chain_size (chain) == f->size && nc_export_is_writable (e);

  good = good && same (e, f, 0, f->size);
  for (unsigned i = 0; i < steps && good && f->size > 0; ++i)
    good = step (chain, e, f, seed) || note ("step %u", i);
  good = good && same (e, f, 0, f->size) &&
    (f->size == 0 || (extents_hold (e, f, 0, f->size, false) &&
                      owner_holds (chain, f, 0, f->size, false)));
  nc_export_close (e);
  if (chain)
    good = (nc_chain_stop (chain) == 0 || note ("stop")) && good;
  nc_chain_close (chain);
  return good;
}

/* What the other reader says, with the layers below as its backing. */
static bool
reader_agrees (const struct flat *f, const struct flat *below)
{
  struct fvd_reader r = { .allocated = NULL };
  NC_CLOSE int fd = open (f->path, O_RDONLY);
  uint64_t file_size = lseek (fd, 0, SEEK_END);
  NC_FREE uint8_t *buf = malloc (f->size + 1);
  uint8_t *file;
  bool good;

  must (fd != -1 && buf, f->path);
  file = mmap (NULL, file_size, PROT_READ, MAP_PRIVATE, fd, 0);
  must (file != MAP_FAILED, "mmap");
  good = (fvd_reader_open (&r, file, file_size) == 0 ||
          note ("%s: %s", f->path, r.why)) && r.size == f->size;
  if (good) {
    fvd_reader_pread (&r, buf, f->size, 0, below->data, below->size);
    good = memcmp (buf, f->data, f->size) == 0 ||
      note ("%s: the reader sees something else", f->path);
  }
  fvd_reader_close (&r);
  munmap (file, file_size);
  return good;
}

/* A chain of N layers of these sizes; each is worked on before the next is
 * put on top, and seen as an export of the last one. */
static bool
try_chain (const uint64_t *sizes, const uint32_t *block, unsigned n,
           unsigned steps, uint64_t *seed)
{
  struct flat *f = calloc (n, sizeof *f);
  struct nc_chain *chain = NULL;
  bool good = true;

  must (f != NULL, "calloc");
  for (unsigned i = 0; i < n && good; ++i) {
    char name[40];

    snprintf (name, sizeof name, i == 0 ? "base.raw" : "layer%u.fvd", i);
    snprintf (f[i].path, sizeof f[i].path, "%s", at (name));
    f[i].size = sizes[i];
    f[i].data = calloc (1, sizes[i] + 1);
    must (f[i].data != NULL, "calloc");
    if (i == 0) {
      random_bytes (f[i].data, sizes[i], seed);
      memset (f[i].data + sizes[i] / 3, 0, sizes[i] / 4);
      write_file (f[i].path, f[i].data, sizes[i]);
      continue;
    }
    memcpy (f[i].data, f[i-1].data, nc_min64 (sizes[i], sizes[i-1]));
    good = create (f[i].path, true, sizes[i], f[i-1].path,
                   i == 1 ? "raw" : "fvd", block[i], 16384) &&
      work_on (&f[i], steps, seed) && reader_agrees (&f[i], &f[i-1]);
  }
  if (good)
    good = (chain = open_chain_with (f[n-1].path, true, -1, 1)) != NULL &&
      nc_chain_n_layers (chain) == n && !nc_chain_is_writable (chain);
  for (unsigned i = 0; i < n && good; ++i) {
    const char *name = i == n - 1 ? ""
      : nc_chain_layer_name (chain, n - 1 - i);
    struct nc_export *e = nc_export_open (chain, name, 0);

    good = (e && nc_export_size (e) == f[i].size &&
            !nc_export_is_writable (e) && same (e, &f[i], 0, f[i].size) &&
            (f[i].size == 0 ||
             extents_hold (e, &f[i], 0, f[i].size, false))) ||
      note ("export %s", name);
    nc_export_close (e);
  }
  if (!good)
    for (unsigned i = 0; i < n; ++i)
      note ("layer %u: %llu bytes, blocks of %u", i,
            (unsigned long long) sizes[i], block[i]);
  nc_chain_close (chain);
  for (unsigned i = 0; i < n; ++i) {
    free (f[i].data);
    if (f[i].path[0])
      unlink (f[i].path);
  }
  free (f);
  return good;
}

static void
test_sizes (uint64_t *seed)
{
  static const uint64_t sizes[] = {
    0, 1, 511, 512, 4095, 4096, 4097, 12288, 100001,
  };
  enum { N = sizeof sizes / sizeof sizes[0] };
  static const uint32_t block[3] = { 0, 4096, 4096 };
  bool good = true;

  for (unsigned i = 0; i < N && good; ++i)
    for (unsigned j = 0; j < N && good; ++j) {
      uint64_t s[2] = { sizes[i], sizes[j] };

      good = try_chain (s, block, 2, 6, seed);
    }
  ok (good, "overlays smaller and larger than their base");

  good = true;
  for (unsigned i = 0; i < 14 && good; ++i) {
    static const uint32_t sb[] = { 4096, 8192, 65536, 1 << 21 };
    uint64_t s[4];
    uint32_t b[4];
    unsigned n = 3 + rnd_below (seed, 2);

    for (unsigned j = 0; j < n; ++j) {
      s[j] = rnd_below (seed, i % 3 ? 300000 : 3000000);
      b[j] = sb[rnd_below (seed, 4)];
    }
    good = try_chain (s, b, n, 60, seed);
  }
  ok (good, "three and four layers of different sizes and blocks");

  {
    static const uint64_t s[3] = {
      4031 * 4096 + 7, 4033 * 4096 + 1, 4034 * 4096 - 1
    };

    ok (try_chain (s, block, 3, 80, seed),
        "layers that end around the border of a page");
  }
}

static void
test_base_changes (void)
{
  static uint8_t data[20000];
  struct flat f = { .data = data, .size = 10000 };
  struct nc_chain *chain;
  struct nc_export *e;

  memset (data, 7, sizeof data);
  write_file (at ("b.raw"), data, 10000);
  must (create (at ("t.fvd"), false, 0, at ("b.raw"), "raw", 0, 0),
        "create");
  chain = open_chain (at ("t.fvd"));
  ok (chain && nc_chain_size (chain) == 10000,
      "without a size an overlay has that of its backing");
  nc_chain_close (chain);

  write_file (at ("b.raw"), data, 9999);
  tap_clear ();
  ok (open_chain (at ("t.fvd")) == NULL && tap_errors == 1,
      "a base shorter than recorded is refused, reported once");

  must (create (at ("t.fvd"), true, 20000, at ("b.raw"), "raw", 0, 0),
        "create");
  write_file (at ("b.raw"), data, 20000);
  memset (data + 9999, 0, sizeof data - 9999);
  f.size = 20000;
  chain = open_chain (at ("t.fvd"));
  e = chain ? nc_export_open (chain, "", 0) : NULL;
  ok (e && same (e, &f, 0, 20000),
      "a base that has grown is cut at the size recorded");
  /* A first write to the block in which the cut is. */
  memset (data + 12000, 9, 100);
  ok (e && nc_export_pwrite (e, data + 12000, 100, 12000, 0) == 0 &&
      same (e, &f, 0, 20000) && nc_export_populate (e, 0, 20000) == 0 &&
      same (e, &f, 0, 20000), "also when its last block is populated");
  nc_export_close (e);
  nc_chain_close (chain);
  unlink (at ("b.raw"));
  unlink (at ("t.fvd"));
}

/* Exports have the names of layers, and "disk" is the disk's. */
static void
test_names (void)
{
  static uint8_t zeros[10000], low[10000], data[10000];
  struct flat disk = { .data = data, .size = sizeof data };
  struct flat base = { .data = low, .size = sizeof low };
  struct nc_chain *chain;
  struct nc_export *d, *b;

  memset (low, 3, sizeof low);
  memset (data, 3, sizeof data);
  write_file (at ("disk"), low, sizeof low);
  must (create (at ("t.fvd"), false, 0, at ("disk"), "raw", 0, 0), "create");
  chain = open_chain (at ("t.fvd"));
  must (chain != NULL, "open");
  d = nc_export_open (chain, "disk", 0);
  memset (data + 4096, 4, 100);
  ok (d && nc_export_is_writable (d) &&
      nc_export_pwrite (d, data + 4096, 100, 4096, 0) == 0 &&
      same (d, &disk, 0, disk.size),
      "\"disk\" is the disk though its base has that name");
  b = nc_export_open (chain, "disk.2", 0);
  ok (strcmp (nc_chain_layer_name (chain, 1), "disk.2") == 0 && b &&
      !nc_export_is_writable (b) && same (b, &base, 0, base.size),
      "and the base is \"disk.2\"");
  nc_export_close (d);
  nc_export_close (b);
  nc_chain_close (chain);
  unlink (at ("disk"));
  unlink (at ("t.fvd"));

  /* The image may have that name: it is the disk. */
  must (create (at ("disk"), true, sizeof zeros, NULL, NULL, 0, 0),
        "create");
  disk.data = zeros;
  chain = open_chain (at ("disk"));
  d = chain ? nc_export_open (chain, "disk", 0) : NULL;
  ok (d && strcmp (nc_chain_layer_name (chain, 0), "disk") == 0 &&
      same (d, &disk, 0, disk.size), "an image called \"disk\" is the disk");
  nc_export_close (d);
  nc_chain_close (chain);
  unlink (at ("disk"));
}

/* Bytes of memory that this process has touched. */
static uint64_t
resident (void)
{
  FILE *fp = fopen ("/proc/self/statm", "r");
  unsigned long long total, here = 0;

  must (fp && fscanf (fp, "%llu %llu", &total, &here) == 2, "statm");
  fclose (fp);
  return here * sysconf (_SC_PAGESIZE);
}

/* Valgrind, for one, has no such ranges of addresses to give. */
static bool
can_reserve (size_t size)
{
  void *p = mmap (NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  if (p == MAP_FAILED)
    return false;
  munmap (p, size);
  return true;
}

enum { HUGE_BITS = 61 };

/* What a small disk over the huge base PATH shows: F; the base ends in END. */
static void
test_over_huge_base (const char *path, bool writable, struct flat *f,
                     const struct flat *end)
{
  const uint64_t huge = UINT64_C (1) << HUGE_BITS;
  struct nc_chain_options opts = {
    .image = at ("t.fvd"), .base = path, .memory_fd = -1,
    .read_only = !writable, .retry = 1,
  };
  uint64_t before = resident ();
  struct nc_chain *chain;
  struct nc_export *e, *b;
  uint8_t buf[8192];

  tap_clear ();
  chain = nc_chain_open (&opts);
  e = chain ? nc_export_open (chain, "", 0) : NULL;
  b = chain ? nc_export_open (chain, nc_chain_layer_name (chain, 1), 0)
    : NULL;
  ok (e && nc_chain_start (chain) == 0 && same (e, f, 0, f->size) &&
      extents_hold (e, f, 0, f->size, false),
      "a small disk over a base of 2^%d bytes is read%s", HUGE_BITS,
      writable ? ", writable" : "");
  if (writable) {
    memset (f->data + 9000, 5, 100);
    ok (e && nc_export_pwrite (e, f->data + 9000, 100, 9000, 0) == 0 &&
        same (e, f, 0, f->size), "and written");
  }
  ok (b && nc_export_size (b) == huge &&
      nc_export_pread (b, buf, sizeof buf, huge - sizeof buf) == 0 &&
      memcmp (buf, end->data, sizeof buf) == 0, "so is the base's export");
  ok (resident () < before + (UINT64_C (100) << 20) && tap_errors == 0,
      "with little memory");
  nc_export_close (e);
  nc_export_close (b);
  nc_chain_close (chain);
}

/* The size of a base is not ours to choose, and memory must not depend on
 * it. */
static void
test_huge_base (void)
{
  const uint64_t huge = UINT64_C (1) << HUGE_BITS;
  struct flat f = { .size = 1 << 20 };
  struct flat end = { .size = 8192 };
  char path[40];
  NC_CLOSE int fd = memfd_create ("huge", MFD_CLOEXEC);

  /* 4 bytes for each 16 MiB, never touched. */
  if (!can_reserve (huge >> 22)) {
    ok (true, "a huge base # SKIP too little address space");
    return;
  }
  must (fd != -1 && ftruncate (fd, huge) == 0, "a huge file in memory");
  f.data = calloc (1, f.size);
  end.data = calloc (1, end.size);
  must (f.data && end.data, "calloc");
  memset (f.data + 5000, 1, 5000);
  memset (end.data + 4096, 2, 4096);
  must (pwrite (fd, f.data + 5000, 5000, 5000) == 5000 &&
        pwrite (fd, end.data + 4096, 4096, huge - 4096) == 4096, "pwrite");
  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  must (create (at ("t.fvd"), true, f.size, path, "raw", 0, 0), "create");
  test_over_huge_base (path, false, &f, &end);
  test_over_huge_base (path, true, &f, &end);
  free (f.data);
  free (end.data);
  unlink (at ("t.fvd"));
}

static void
test_exports (struct nc_chain *chain, struct nc_export *e)
{
  struct nc_export *d, *l;

  tap_clear ();
  ok (nc_export_open (chain, "no such layer", 0) == NULL &&
      errno == ENOENT && tap_errors == 1,
      "an export that is not there is ENOENT, reported once");
  d = nc_export_open (chain, "disk", 0);
  l = nc_export_open (chain, "l.fvd", 0);
  ok (d && nc_export_is_writable (d) &&
      strlen (nc_export_uuid (d)) == 36 &&
      strcmp (nc_export_uuid (d), nc_export_uuid (e)) == 0,
      "\"disk\" is the disk, too");
  ok (l == NULL || !nc_export_is_writable (l),
      "the top layer's name gives no second way to write");
  nc_export_close (d);
  nc_export_close (l);
}

static void
test_stop (struct flat *f, uint64_t *seed)
{
  struct nc_image_info info;
  struct nc_chain *chain = open_chain (f->path);
  struct nc_export *e = chain ? nc_export_open (chain, "", 0) : NULL;
  uint8_t buf[10];

  must (e != NULL, "open");
  test_exports (chain, e);
  ok (open_chain (f->path) == NULL, "an image in use is not opened again");
  random_bytes (f->data + 1000, 5000, seed);
  ok (nc_export_pwrite (e, f->data + 1000, 5000, 1000, 0) == 0 &&
      nc_chain_stop (chain) == 0 && nc_chain_stop (chain) == 0,
      "a chain can be stopped twice");
  ok (nc_export_pread (e, buf, 10, 0) == -1 && errno == ESHUTDOWN &&
      nc_export_pwrite (e, buf, 10, 0, 0) == -1 && errno == ESHUTDOWN &&
      nc_export_flush (e) == -1 && errno == ESHUTDOWN,
      "requests after the stop are ESHUTDOWN");
  nc_export_close (e);
  nc_chain_close (chain);
  ok (nc_image_inspect (f->path, NULL, &info) == 0 && info.clean,
      "and the image is clean");
  nc_image_info_free (&info);
}

static void
test_read_only (const struct flat *f)
{
  struct nc_chain *chain = open_chain_with (f->path, true, -1, 1);
  struct nc_export *e = chain ? nc_export_open (chain, "", 0) : NULL;
  uint8_t buf[10] = { 0 };

  ok (e && same (e, f, 0, f->size) && !nc_export_is_writable (e),
      "what was written is there when it is opened for reading");
  ok (e && nc_export_pwrite (e, buf, 10, 0, 0) == -1 && errno == EROFS,
      "a write is EROFS then");
  ok (e && nc_export_zero (e, 0, 4096, 0) == -1 && errno == EROFS &&
      nc_export_trim (e, 0, 4096, 0) == -1 && errno == EROFS,
      "so are zero and trim");
  ok (e && nc_export_flush (e) == 0, "a flush has nothing to do");
  nc_export_close (e);
  nc_chain_close (chain);
}

/* Kills without a memfd: a flush or FUA is enough. */
static void
test_deaths (struct flat *f, uint64_t *seed)
{
  bool good = true;

  for (unsigned i = 0; i < 20 && good; ++i) {
    struct nc_chain *chain = open_chain (f->path);
    struct nc_export *e = chain ? nc_export_open (chain, "", 0) : NULL;
    uint64_t offset = rnd_below (seed, f->size - 9000);

    good = e && same (e, f, 0, f->size);
    random_bytes (f->data + offset, 9000, seed);
    good = good &&
      nc_export_pwrite (e, f->data + offset, 9000, offset,
                        i % 2 ? NC_REQ_FUA : 0) == 0 &&
      (i % 2 || nc_export_flush (e) == 0);
    nc_export_close (e);
    nc_chain_close (chain);
  }
  ok (good, "20 deaths: what was flushed or FUA is there");
}

static void
test_deaths_with_memory (struct flat *f, uint64_t *seed)
{
  NC_CLOSE int fd = memfd_create ("test", MFD_CLOEXEC);
  bool good = true;

  must (fd != -1, "memfd_create");
  for (unsigned i = 0; i < 20 && good; ++i) {
    struct nc_chain *chain = open_chain_with (f->path, false, fd, 1);
    struct nc_export *e = chain ? nc_export_open (chain, "", 0) : NULL;

    good = e && same (e, f, 0, f->size);
    for (unsigned j = 0; j < 10 && good; ++j)
      good = step (chain, e, f, seed);
    nc_export_close (e);
    nc_chain_close (chain);
  }
  ok (good, "20 deaths with a memfd: all is there, without a flush");
}

static void
test_life (uint64_t *seed)
{
  struct flat f = { .size = 300000 };

  f.data = calloc (1, f.size);
  must (f.data != NULL, "calloc");
  snprintf (f.path, sizeof f.path, "%s", at ("l.fvd"));
  must (create (f.path, true, f.size, NULL, NULL, 0, 16384), "create");
  test_stop (&f, seed);
  test_read_only (&f);
  test_deaths (&f, seed);
  test_deaths_with_memory (&f, seed);
  free (f.data);
  unlink (f.path);
}

/* Threads on the same blocks.  Thread T owns the bytes p with
 * p / 700 % THREADS == T: no slice is aligned to anything. */
enum { THREADS = 8, SLICE = 700, DISK = 60 * 4096 + 333 };
static struct nc_export *shared;
static struct flat *shared_flat;
static _Atomic (unsigned) wrong;
static uint64_t start_seed;

static void *
slicer (void *arg)
{
  uint64_t me = (uintptr_t) arg;

  for (uint64_t p = me * SLICE; p < DISK; p += THREADS * SLICE) {
    uint64_t n = nc_min64 (SLICE, DISK - p);

    if (p / SLICE / THREADS % 5 == 4) {
      if (nc_export_zero (shared, p, n, NC_REQ_MAY_TRIM) == -1)
        wrong++;
    }
    else if (nc_export_pwrite (shared, shared_flat->data + p, n, p, 0) == -1)
      wrong++;
    if (me == 0 && nc_export_flush (shared) == -1)
      wrong++;
  }
  return NULL;
}

static void *
populater (void *arg)
{
  uint64_t seed = start_seed + (uintptr_t) arg;
  uint8_t buf[5000];

  for (unsigned i = 0; i < 100; ++i) {
    uint64_t p = rnd_below (&seed, DISK - sizeof buf);

    if (nc_export_populate (shared, p, sizeof buf) == -1)
      wrong++;
  }
  return NULL;
}

static void
test_threads (uint64_t *seed)
{
  NC_FREE uint8_t *base = malloc (DISK), *data = malloc (DISK);
  struct flat f = { .data = data, .size = DISK };
  bool good = true;

  must (base && data, "malloc");
  random_bytes (base, DISK, seed);
  write_file (at ("c.raw"), base, DISK);
  for (unsigned round = 0; round < 8 && good; ++round) {
    struct nc_chain *chain;
    pthread_t t[THREADS + 1];

    random_bytes (data, DISK, seed);
    for (uint64_t p = 0; p < DISK; ++p)
      if (p / SLICE / THREADS % 5 == 4)
        data[p] = 0;
    must (create (at ("c.fvd"), false, 0, at ("c.raw"), "raw",
                  round % 2 ? 65536 : 4096, 16384), "create");
    chain = open_chain (at ("c.fvd"));
    must (chain != NULL, "open");
    shared = nc_export_open (chain, "", 0);
    shared_flat = &f;
    for (uintptr_t i = 0; i <= THREADS; ++i)
      must (pthread_create (&t[i], NULL, i < THREADS ? slicer : populater,
                            (void *) i) == 0, "pthread_create");
    for (unsigned i = 0; i <= THREADS; ++i)
      pthread_join (t[i], NULL);
    good = wrong == 0 && same (shared, &f, 0, DISK) &&
      nc_chain_stop (chain) == 0;
    nc_export_close (shared);
    nc_chain_close (chain);
    if (good) {
      chain = open_chain (at ("c.fvd"));
      shared = chain ? nc_export_open (chain, "", 0) : NULL;
      good = shared && same (shared, &f, 0, DISK);
      nc_export_close (shared);
      nc_chain_close (chain);
    }
  }
  ok (good, "first writes of 8 threads to the same blocks all land, beside "
      "zeros and populating");
  unlink (at ("c.raw"));
  unlink (at ("c.fvd"));
}

/* A chain whose layers are on devices of the test: its own image is replaced
 * by a view of them. */
struct rig {
  struct nc_chain *chain;
  struct nc_export *e;
  struct mem_disk top_disk, base_disk;
  struct fault top, base;
  struct flat flat;
};
enum { RIG = 10 * 4096 + 1000 };

/* An image, empty, of the size of a rig. */
static void
fvd_disk_init (struct mem_disk *disk)
{
  struct nc_backing backing = {
    .present = true, .ref = (char *) "base", .format = (char *) "raw",
    .identity = (char *) "", .size = RIG,
  };
  struct nc_fvd_create_options c = {
    .size = RIG, .block_bits = 12, .journal_size = 16384,
    .backing = &backing,
  };
  uint64_t file_size = 0;
  struct nc_dev *dev;
  nc_uuid uuid;

  must (nc_fvd_file_size (&c, &file_size) == 0, "size");
  mem_disk_init (disk, file_size);
  dev = mem_dev_open (disk, true);
  must (nc_uuid_generate (&uuid) == 0 &&
        nc_fvd_create (dev, &c, &uuid) == 0, "nc_fvd_create");
  nc_dev_close (dev);
}

static void
rig_init (struct rig *r, bool remote, unsigned retry, unsigned max_waiting)
{
  struct nc_layer **layers = calloc (2, sizeof *layers);
  struct nc_layer_options opts = { .writable = true, .memory_fd = -1 };
  struct nc_dev *dev;
  uint64_t seed = 1;

  must (layers != NULL, "calloc");
  fvd_disk_init (&r->top_disk);
  mem_disk_init (&r->base_disk, RIG);
  random_bytes (r->base_disk.data, RIG, &seed);
  r->flat.size = RIG;
  r->flat.data = malloc (RIG);
  must (r->flat.data != NULL, "malloc");
  memcpy (r->flat.data, r->base_disk.data, RIG);

  fault_init (&r->top);
  fault_init (&r->base);
  r->base.remote = remote;
  dev = fault_dev_open (&r->top, mem_dev_open (&r->top_disk, true));
  layers[0] = nc_layer_open (&nc_format_fvd, dev, "top", &opts);
  dev = fault_dev_open (&r->base, mem_dev_open (&r->base_disk, false));
  opts.writable = false;
  layers[1] = nc_layer_open (&nc_format_raw, dev, "base", &opts);
  must (layers[0] && layers[1], "layers");
  layers[0]->name = strdup ("top");
  layers[1]->name = strdup ("base");

  must (create (at ("rig.fvd"), true, RIG, NULL, NULL, 0, 16384), "create");
  r->chain = open_chain_with (at ("rig.fvd"), false, -1, retry);
  must (r->chain && nc_views_publish (&r->chain->views, layers, 2, true)
        == 0, "publish");
  r->e = nc_export_open (r->chain, "", max_waiting);
  must (r->e != NULL, "export");
  tap_clear ();
}

static void
rig_fini (struct rig *r)
{
  nc_export_close (r->e);
  nc_chain_close (r->chain);
  fault_fini (&r->top);
  fault_fini (&r->base);
  mem_disk_fini (&r->top_disk);
  mem_disk_fini (&r->base_disk);
  free (r->flat.data);
  unlink (at ("rig.fvd"));
}

/* A request in a thread. */
struct request {
  struct nc_export *e;
  pthread_t thread;
  bool write;
  uint64_t offset, count;
  uint8_t buf[8192];
  int result, err;
  _Atomic (bool) finished;
};

static void *
run_request (void *arg)
{
  struct request *q = arg;

  q->result = q->write
    ? nc_export_pwrite (q->e, q->buf, q->count, q->offset, 0)
    : nc_export_pread (q->e, q->buf, q->count, q->offset);
  q->err = errno;
  q->finished = true;
  return NULL;
}

static void
send_request (struct request *q, struct nc_export *e, bool write,
              uint64_t offset, uint64_t count)
{
  q->e = e;
  q->write = write;
  q->offset = offset;
  q->count = count;
  q->finished = false;
  memset (q->buf, 0xee, sizeof q->buf);
  must (pthread_create (&q->thread, NULL, run_request, q) == 0,
        "pthread_create");
}

static bool
waits (struct nc_chain *chain, uint64_t n)
{
  struct nc_chain_stats stats;

  for (unsigned i = 0; i < 300000; ++i) {
    nc_chain_stats (chain, &stats);
    if (stats.waits >= n)
      return true;
    usleep (100);
  }
  return note ("nobody waits");
}

static void
test_remote_away (void)
{
  struct rig r;

  rig_init (&r, true, 60, 1);
  memset (r.flat.data, 1, 4096);
  ok (same (r.e, &r.flat, 4096, RIG - 4096) &&
      nc_export_pwrite (r.e, r.flat.data, 4096, 0, 0) == 0 &&
      same (r.e, &r.flat, 0, RIG), "a remote base is read");
  fault_set_away (&r.base, true);
  ok (same (r.e, &r.flat, 0, 4096) &&
      nc_export_pwrite (r.e, r.flat.data, 1000, 100, 0) == 0 &&
      nc_export_pwrite (r.e, r.flat.data, 4096, 4096, 0) == 0 &&
      nc_export_flush (r.e) == 0,
      "while it is away, what is local is read and written");
  fault_set_away (&r.base, false);
  memmove (r.flat.data + 100, r.flat.data, 1000);
  memcpy (r.flat.data + 4096, r.flat.data, 4096);
  ok (same (r.e, &r.flat, 0, RIG), "and is there when it is back");
  rig_fini (&r);
}

static void
test_write_waits (void)
{
  struct nc_chain_stats stats;
  struct request q;
  uint8_t buf[4096];
  struct rig r;

  rig_init (&r, true, 60, 1);
  fault_set_away (&r.base, true);
  send_request (&q, r.e, true, 8192 + 10, 100);
  ok (waits (r.chain, 1) && !q.finished, "a partial first write waits");
  tap_clear ();
  errno = 0;
  ok (nc_export_pread (r.e, buf, 10, 20000) == -1 && errno == EIO,
      "one more than may wait is EIO at once");
  nc_chain_stats (r.chain, &stats);
  ok (stats.refused_waits == 1 && tap_errors == 1,
      "and is counted and reported once");
  memset (r.flat.data + 8192, 2, 4096);
  ok (nc_export_pwrite (r.e, r.flat.data + 8192, 4096, 8192, 0) == 0,
      "who waits keeps nobody from writing the same block");
  fault_set_away (&r.base, false);
  pthread_join (q.thread, NULL);
  memset (r.flat.data + 8192 + 10, 0xee, 100);
  ok (q.result == 0 && same (r.e, &r.flat, 0, RIG),
      "when it is back the write lands on top of that");
  rig_fini (&r);
}

static bool
is_unanswered (struct rig *r, unsigned n)
{
  for (unsigned i = 0; i < 300000; ++i) {
    if (r->base.unanswered == n)
      return true;
    usleep (100);
  }
  return note ("%u are unanswered, not %u", r->base.unanswered, n);
}

static uint64_t
refused (struct nc_chain *chain)
{
  struct nc_chain_stats stats;

  nc_chain_stats (chain, &stats);
  return stats.refused_waits;
}

/* A remote is connected and does not answer. */
static void
test_silent_remote (void)
{
  struct nc_extents x;
  struct request q[2];
  uint8_t buf[4096];
  struct rig r;

  rig_init (&r, true, 60, 2);
  memset (r.flat.data, 1, 4096);
  must (nc_export_pwrite (r.e, r.flat.data, 4096, 0, 0) == 0, "write");
  fault_set_silent (&r.base, true);
  send_request (&q[0], r.e, false, 20000, 3000);
  send_request (&q[1], r.e, true, 8192 + 10, 100);
  must (is_unanswered (&r, 2), "requests");
  tap_clear ();
  for (unsigned i = 0; i < 3; ++i) {
    errno = 0;
    ok (nc_export_pread (r.e, buf, 10, 40000) == -1 && errno == EIO &&
        refused (r.chain) == i + 1,
        "with as many reads in flight as may block, one more fails");
  }
  ok (tap_errors == 1, "which is reported");
  ok (nc_export_pwrite (r.e, buf, 10, 12288, 0) == -1 && errno == EIO &&
      nc_export_populate (r.e, 40960, 4096) == -1 && errno == EIO,
      "so do a write that needs the rest of a block, and populating");
  nc_extents_init (&x, 0, RIG);
  ok (nc_export_extents (r.e, &x, false) == 0 && x.n == 1 && x.v[0].type == 0,
      "block status says data");
  nc_extents_free (&x);
  memset (r.flat.data + 12288, 3, 4096);
  ok (same (r.e, &r.flat, 0, 4096) &&
      nc_export_pwrite (r.e, r.flat.data + 12288, 4096, 12288, 0) == 0 &&
      same (r.e, &r.flat, 12288, 4096) && nc_export_flush (r.e) == 0,
      "what is local is served");
  ok (!q[0].finished && !q[1].finished, "those in flight are still there");
  fault_set_silent (&r.base, false);
  pthread_join (q[0].thread, NULL);
  pthread_join (q[1].thread, NULL);
  memset (r.flat.data + 8192 + 10, 0xee, 100);
  ok (q[0].result == 0 && memcmp (q[0].buf, r.flat.data + 20000, 3000) == 0 &&
      q[1].result == 0 && same (r.e, &r.flat, 0, RIG),
      "and end well when the remote answers");
  rig_fini (&r);
}

static void
slowly (void *opaque __attribute__ ((__unused__)))
{
  usleep (2000);
}

/* More requests in flight than may block are no reason to fail one, as long as
 * the remote answers. */
static void
test_many_in_flight (void)
{
  struct request q[16];
  bool good = true;
  struct rig r;

  rig_init (&r, true, 60, 2);
  r.base.read_hook = slowly;
  for (unsigned k = 0; k < 8; ++k) {
    for (unsigned i = 0; i < 16; ++i)
      send_request (&q[i], r.e, false, (16 * k + i) * 997 % (RIG - 3000),
                    3000);
    for (unsigned i = 0; i < 16; ++i) {
      pthread_join (q[i].thread, NULL);
      good = good && q[i].result == 0 &&
        memcmp (q[i].buf, r.flat.data + q[i].offset, 3000) == 0;
    }
  }
  ok (good && refused (r.chain) == 0,
      "many requests share what may block, while the remote answers");
  rig_fini (&r);
}

/* A client that waits for what another one reads is blocked as well. */
static void
test_silent_copyread (void)
{
  const struct nc_copyread_options opts = {
    .max_outstanding = 1 << 20, .neighbourhood = 65536,
  };
  struct nc_copyread *cr = nc_copyread_new (&opts);
  struct request q;
  uint8_t buf[4096];
  struct rig r;

  rig_init (&r, true, 60, 1);
  memset (r.flat.data, 1, 4096);
  must (nc_export_pwrite (r.e, r.flat.data, 4096, 0, 0) == 0 && cr &&
        nc_copyread_start (cr, r.chain) == 0, "copy-on-read");
  fault_set_silent (&r.base, true);
  send_request (&q, r.e, false, 20000, 3000);
  must (is_unanswered (&r, 1), "a read");
  tap_clear ();
  ok (nc_export_pread (r.e, buf, 10, 20100) == -1 && errno == EIO &&
      refused (r.chain) == 1 && tap_errors == 1,
      "the read of another client is not waited for if too many are blocked");
  ok (same (r.e, &r.flat, 0, 4096), "what is local is served");
  fault_set_silent (&r.base, false);
  pthread_join (q.thread, NULL);
  ok (q.result == 0 && memcmp (q.buf, r.flat.data + 20000, 3000) == 0,
      "the first read ends well");
  nc_copyread_stop (cr);
  must (nc_chain_stop (r.chain) == 0, "stop");
  nc_copyread_end (cr);
  rig_fini (&r);
  nc_copyread_free (cr);
}

static void
test_read_waits (void)
{
  struct timespec t0, t1;
  struct request q;
  struct rig r;

  rig_init (&r, true, 60, 1);
  fault_set_away (&r.base, true);
  send_request (&q, r.e, false, 20000, 3000);
  ok (waits (r.chain, 1) && !q.finished, "a read waits");
  fault_set_away (&r.base, false);
  pthread_join (q.thread, NULL);
  ok (q.result == 0 && memcmp (q.buf, r.flat.data + 20000, 3000) == 0,
      "and gets its data");

  fault_set_away (&r.base, true);
  send_request (&q, r.e, false, 20000, 3000);
  waits (r.chain, 2);
  clock_gettime (CLOCK_MONOTONIC, &t0);
  ok (nc_chain_stop (r.chain) == 0, "a chain stops though somebody waits");
  pthread_join (q.thread, NULL);
  clock_gettime (CLOCK_MONOTONIC, &t1);
  ok (q.result == -1 && q.err == ESHUTDOWN && t1.tv_sec - t0.tv_sec < 20,
      "who waited gets ESHUTDOWN");
  rig_fini (&r);
}

static void
test_waits_in_vain (void)
{
  struct request q1, q2;
  struct timespec t0, t1;
  struct rig r;

  rig_init (&r, true, 1, 0);
  fault_set_away (&r.base, true);
  clock_gettime (CLOCK_MONOTONIC, &t0);
  send_request (&q1, r.e, true, 8192 + 10, 100);
  send_request (&q2, r.e, false, 20000, 10);
  pthread_join (q1.thread, NULL);
  pthread_join (q2.thread, NULL);
  clock_gettime (CLOCK_MONOTONIC, &t1);
  ok (q1.result == -1 && q1.err == EIO && q2.result == -1 && q2.err == EIO,
      "after the time to retry it is EIO");
  ok ((t1.tv_sec - t0.tv_sec) * 1000 + (t1.tv_nsec - t0.tv_nsec) / 1000000
      >= 990, "and not before");
  fault_set_away (&r.base, false);
  ok (same (r.e, &r.flat, 0, RIG), "the write that failed changed nothing");
  rig_fini (&r);
}

static void
test_lower_exports (void)
{
  struct nc_export *e;
  uint8_t buf[4096];
  struct rig r;

  rig_init (&r, false, 1, 0);
  e = nc_export_open (r.chain, "base", 0);
  memset (buf, 1, sizeof buf);
  ok (e && !nc_export_is_writable (e) && same (e, &r.flat, 0, RIG),
      "a lower layer is an export for reading");
  ok (e && nc_export_pwrite (e, buf, 4096, 4096, 0) == -1 && errno == EROFS,
      "a write to it is EROFS");
  ok (e && nc_export_zero (e, 0, 4096, 0) == -1 && errno == EROFS,
      "and so is a zero");
  ok (same (r.e, &r.flat, 0, RIG), "the disk above does not change by that");
  ok (nc_export_pwrite (r.e, buf, 4096, 4096, 0) == 0 && e &&
      same (e, &r.flat, 0, RIG),
      "nor the lower one when the disk is written");
  nc_export_close (e);
  rig_fini (&r);
}

/* Block status with "one" asks for the first extent, and no more. */
static void
test_one_extent (void)
{
  const uint64_t size = 10 * 4096 + 1000;
  struct nc_chain *chain;
  struct nc_export *e;
  struct nc_extents x;
  uint8_t buf[4096];
  bool good = true;

  memset (buf, 1, sizeof buf);
  must (create (at ("o.fvd"), true, size, NULL, NULL, 0, 0), "create");
  chain = open_chain (at ("o.fvd"));
  e = chain ? nc_export_open (chain, "", 0) : NULL;
  must (e && nc_export_pwrite (e, buf, 4096, 4096, 0) == 0 &&
        nc_export_pwrite (e, buf, 4096, 3 * 4096, 0) == 0, "write");
  for (uint64_t p = 0; p < size; p += 512) {
    nc_extents_init (&x, p, size - p);
    good = nc_export_extents (e, &x, true) == 0 && x.n == 1 && good;
    nc_extents_free (&x);
  }
  ok (good, "who asks for one extent gets one");
  nc_extents_init (&x, 0, size);
  ok (nc_export_extents (e, &x, false) == 0 && nc_extents_full (&x) &&
      x.n == 5, "who asks for all gets all");
  nc_extents_free (&x);
  nc_export_close (e);
  nc_chain_close (chain);
  unlink (at ("o.fvd"));
}

static void
test_errors (void)
{
  uint8_t buf[8192];
  struct rig r;

  memset (buf, 5, sizeof buf);
  rig_init (&r, false, 1, 0);
  fault_set (&r.top, FAULT_WRITE, 1, 1, ENOSPC);
  ok (nc_export_pwrite (r.e, buf, 4096, 0, 0) == -1 && errno == ENOSPC &&
      tap_errors == 1, "ENOSPC reaches the client, reported once");
  ok (same (r.e, &r.flat, 0, RIG), "the disk is as before");
  tap_clear ();
  fault_set (&r.base, FAULT_READ, 1, 1, EIO);
  ok (nc_export_pwrite (r.e, buf, 100, 5000, 0) == -1 && errno == EIO &&
      tap_errors == 1, "a base that cannot be read fails a partial write");
  ok (same (r.e, &r.flat, 0, RIG), "which changes nothing");
  /* Nobody is to be waited for. */
  tap_clear ();
  fault_set (&r.top, FAULT_WRITE | FAULT_ZERO, 1, 2, ENOTCONN);
  ok (nc_export_pwrite (r.e, buf, 4096, 0, 0) == -1 &&
      nc_export_zero (r.e, 0, 4096, 0) == -1 && tap_errors == 2 &&
      same (r.e, &r.flat, 0, RIG),
      "ENOTCONN of a write is an error like others");
  fault_set (&r.base, FAULT_READ, 1, UINT64_MAX, EIO);
  ok (nc_export_pwrite (r.e, buf, 8192, 4096, 0) == 0,
      "a write of whole blocks does not read the base");
  memcpy (r.flat.data + 4096, buf, 8192);
  ok (nc_export_pwrite (r.e, buf, 1000, RIG - 1000, 0) == 0,
      "nor does one of the whole tail block");
  memcpy (r.flat.data + RIG - 1000, buf, 1000);
  fault_set (&r.base, FAULT_READ, 0, 0, 0);
  ok (same (r.e, &r.flat, 0, RIG), "and both are there");

  rig_fini (&r);
}

/* What is populated keeps what a guest has written meanwhile. */
static void
test_store (void)
{
  uint8_t fetched[2 * 4096], guest[4096];
  struct nc_fetched from;
  struct rig r;

  memset (guest, 5, sizeof guest);
  rig_init (&r, false, 1, 0);
  must (nc_export_fetch (r.e, fetched, 8192, 0, &from) == 0 &&
        nc_export_pwrite (r.e, guest, 4096, 4096, 0) == 0, "fetch, write");
  memcpy (r.flat.data + 4096, guest, 4096);
  ok (nc_export_store (r.e, fetched, 8192, 0, &from) == NC_STORED_PART &&
      same (r.e, &r.flat, 0, RIG),
      "a store of which the guest has written a part says that it is not all");
  must (nc_export_fetch (r.e, fetched, 8192, 8192, &from) == 0, "fetch");
  ok (from.asked == 1 &&
      nc_export_store (r.e, fetched, 8192, 8192, &from) == NC_STORED &&
      same (r.e, &r.flat, 0, RIG), "and another one that it is");
  ok (nc_export_fetch (r.e, fetched, 8192, 8192, &from) == 0 &&
      from.asked == 0, "after that there is nothing to be fetched");
  rig_fini (&r);
}

/* Publish another view of R with the same layers. */
static void
pivot_now (struct rig *r)
{
  const struct nc_view *view = r->chain->views.current;
  struct nc_layer **layers = calloc (view->n, sizeof *layers);

  must (layers != NULL, "calloc");
  memcpy (layers, view->layers, view->n * sizeof *layers);
  must (nc_views_publish (&r->chain->views, layers, view->n, true) == 0,
        "publish");
}

static void
pivot_in_read (void *opaque)
{
  struct rig *r = opaque;

  r->base.read_hook = NULL;
  pivot_now (r);
}

/* What was fetched before a pivot is stored by nobody; who has to have it there
 * fetches it again. */
static void
test_stale (void)
{
  uint8_t fetched[2 * 4096], zeros[4096] = { 0 };
  struct nc_fetched from;
  struct rig r;
  bool allocated;
  uint64_t run;

  rig_init (&r, false, 1, 0);
  must (nc_export_fetch (r.e, fetched, 8192, 0, &from) == 0, "fetch");
  ok (!nc_export_is_stale (r.e, &from), "what was fetched is not stale");
  pivot_now (&r);
  ok (nc_export_is_stale (r.e, &from) &&
      nc_export_store (r.e, fetched, 8192, 0, &from) == NC_STORED_STALE,
      "after a pivot it is, and a store says so");
  ok (nc_export_store (r.e, NULL, 8192, 8192, &from) == NC_STORED_STALE,
      "that of zeros, too");
  ok (nc_export_refresh (r.e, fetched, 8192, 0, &from) == 1,
      "nor is it handed on to a client");
  must (nc_export_pwrite (r.e, zeros, 4096, 16384, 0) == 0, "write");
  memset (r.flat.data + 16384, 0, 4096);
  ok (r.chain->views.current->layers[0]->format->run
      (r.chain->views.current->layers[0], 0, 16384, &allocated, &run) == 0 &&
      !allocated && run == 16384, "nothing of it was stored");
  r.base.read_hook = pivot_in_read;
  r.base.opaque = &r;
  ok (nc_export_populate (r.e, 0, 8192) == 0 &&
      r.chain->views.current->layers[0]->format->run
      (r.chain->views.current->layers[0], 0, 8192, &allocated, &run) == 0 &&
      allocated && run == 8192,
      "populating goes on until what it has fetched is stored");
  ok (same (r.e, &r.flat, 0, RIG), "and the disk is right");
  rig_fini (&r);
}

/* Put an image between the layers of R, which holds the block at 4096. */
static void
rig_put_between (struct rig *r, struct mem_disk *disk)
{
  const struct nc_view *view = r->chain->views.current;
  struct nc_layer_options opts = { .writable = true, .memory_fd = -1 };
  struct nc_layer **layers = calloc (3, sizeof *layers);
  struct iovec iov = { r->flat.data + 4096, 4096 };
  struct nc_layer *middle;

  fvd_disk_init (disk);
  middle = nc_layer_open (&nc_format_fvd, mem_dev_open (disk, true), "middle",
                          &opts);
  must (layers && middle &&
        middle->format->pwritev (middle, &iov, 1, 4096) == 0 &&
        middle->format->set_allocated (middle, 4096, 4096) == 0, "middle");
  middle->name = strdup ("middle");
  layers[0] = view->layers[0];
  layers[1] = middle;
  layers[2] = view->layers[1];
  must (nc_views_publish (&r->chain->views, layers, 3, true) == 0, "publish");
}

/* How long a fetch took says something about a source only if it was asked. */
static void
test_asked (void)
{
  static const struct { uint64_t at, count; unsigned remote, local; } t[] = {
    { 0, 3 * 4096, 1, 3 }, { 4096, 4096, 0, 1 }, { 8192, 4096, 1, 1 },
  };
  uint8_t buf[3 * 4096];

  for (int remote = 0; remote < 2; ++remote) {
    struct nc_fetched from;
    struct mem_disk disk;
    struct nc_side side = { 0 };
    unsigned asked = 0;
    bool good = true;
    struct rig r;

    rig_init (&r, remote, 1, 0);
    rig_put_between (&r, &disk);
    for (size_t i = 0; i < sizeof t / sizeof *t; ++i)
      good = nc_export_fetch (r.e, buf, t[i].count, t[i].at, &from) == 0 &&
        memcmp (buf, r.flat.data + t[i].at, t[i].count) == 0 &&
        nc_export_pread_asked (r.e, buf, t[i].count, t[i].at, &asked) == 0 &&
        from.asked == (remote ? t[i].remote : t[i].local) &&
        asked == from.asked && good;
    ok (good, remote ? "a remote is asked once for the parts around an image, "
        "which does not count"
        : "who fetches, or reads, learns how often a layer was asked");
    must (nc_side_open (&side, r.chain) == 0, "side");
    ok (nc_sides_read (&side, buf, &side, buf, sizeof buf, 0)
        == (remote ? 2 : 6) &&
        nc_sides_read (&side, buf, &side, NULL, 4096, 4096)
        == (remote ? 0 : 1), "so does who reads two sides");
    nc_side_close (&side);
    rig_fini (&r);
    mem_disk_fini (&disk);
  }
}

static void
test_contiguous (void)
{
  uint8_t buf[8192] = { 5 };
  struct rig r;

  rig_init (&r, false, 1, 0);
  must (nc_export_pwrite (r.e, buf, 8192, 4096, 0) == 0, "write");
  fault_set (&r.top, FAULT_READ | FAULT_WRITE, 0, 0, 0);
  nc_export_pwrite (r.e, buf, 8192, 4096, 0);
  ok (r.top.writes == 1 && r.top.reads == 0,
      "a write of allocated blocks is one write");
  fault_set (&r.top, FAULT_READ, 0, 0, 0);
  nc_export_pread (r.e, buf, 8192, 4096);
  ok (r.top.reads == 1, "a read of a contiguous range is one read");
  rig_fini (&r);
}

static void
test_failed_sync (void)
{
  uint8_t buf[8192] = { 5 };
  struct rig r;
  bool good = true;

  rig_init (&r, false, 1, 0);
  nc_export_pwrite (r.e, buf, 4096, 5 * 4096, 0);
  memcpy (r.flat.data + 5 * 4096, buf, 4096);
  fault_set (&r.top, FAULT_SYNC, 1, 1, EIO);
  ok (nc_export_flush (r.e) == -1 && errno == EIO, "a failed sync is EIO");
  for (unsigned i = 0; i < 3; ++i)
    good = good && nc_export_flush (r.e) == -1 && errno == EIO;
  ok (good, "and so is every flush after it, for good");
  ok (nc_export_pwrite (r.e, buf, 4096, 0, NC_REQ_FUA) == -1 &&
      nc_export_zero (r.e, 0, 4096, NC_REQ_FUA) == -1,
      "FUA fails, too");
  ok (nc_export_pread (r.e, buf, 8192, 4096) == 0 &&
      same (r.e, &r.flat, 8192, RIG - 8192), "reading goes on");
  ok (nc_chain_stop (r.chain) == -1 && nc_chain_stop (r.chain) == -1,
      "and the stop says that not all is durable, each time");
  rig_fini (&r);
}

static void
test_failed_zero (void)
{
  struct rig r;

  rig_init (&r, false, 1, 0);
  fault_set (&r.top, FAULT_ZERO, 1, 1, ENOSPC);
  ok (nc_export_zero (r.e, 0, 8192, NC_REQ_MAY_TRIM) == -1 &&
      errno == ENOSPC && same (r.e, &r.flat, 0, RIG),
      "a zero that fails for lack of space is ENOSPC");
  ok (nc_export_zero (r.e, 0, 8192, NC_REQ_MAY_TRIM) == 0 &&
      nc_export_flush (r.e) == 0, "and succeeds when there is space");
  memset (r.flat.data, 0, 8192);
  ok (same (r.e, &r.flat, 0, RIG), "it reads as zeros");
  fault_set (&r.top, FAULT_CHANGES, 0, 0, 0);
  ok (nc_export_trim (r.e, 3 * 4096, 4096, 0) == 0 &&
      same (r.e, &r.flat, 0, RIG) && r.top.zeros == 0 && r.top.writes == 0,
      "a trim of what is not allocated changes nothing");
  rig_fini (&r);
}

int
main (void)
{
  uint64_t seed = start_seed = tap_start (120);

  make_folder ("test-chain");
  test_sizes (&seed);
  test_base_changes ();
  test_names ();
  test_huge_base ();
  test_life (&seed);
  test_threads (&seed);
  test_remote_away ();
  test_write_waits ();
  test_silent_remote ();
  test_many_in_flight ();
  test_silent_copyread ();
  test_read_waits ();
  test_waits_in_vain ();
  test_lower_exports ();
  test_one_extent ();
  test_errors ();
  test_store ();
  test_stale ();
  test_asked ();
  test_contiguous ();
  test_failed_sync ();
  test_failed_zero ();
  remove_folder ();
  return tap_done ();
}
