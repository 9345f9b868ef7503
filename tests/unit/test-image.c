/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/image/image.c: create, inspect, check and snapshot of images that
 * nobody serves. */

#include <config.h>

#include "image/image.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "chain/chain.h"
#include "folder.h"
#include "format/fvd/fvd.h"
#include "fvd-reader.h"
#include "image/find-zeros.h"
#include "tap.h"

/* What the library syncs.  These two stand before those of the C library. */
static struct {
  ino_t ino;                    /* of the file that is looked at */
  unsigned files, directories;
  const char *old;              /* an image that must not be retired when
                                   the directory is synced */
  bool too_late;
} synced;

static bool
is_retired (const char *path)
{
  struct nc_image_info info;
  bool retired = nc_image_inspect (path, NULL, &info) == 0 && info.retired;

  nc_image_info_free (&info);
  return retired;
}

int
fsync (int fd)
{
  int (*real) (int);
  struct stat st;

  *(void **) &real = dlsym (RTLD_NEXT, "fsync");
  if (fstat (fd, &st) == 0 && S_ISDIR (st.st_mode)) {
    synced.directories++;
    synced.too_late = synced.too_late || synced.files == 0 ||
      (synced.old && is_retired (synced.old));
  }
  return real (fd);
}

int
fdatasync (int fd)
{
  int (*real) (int);
  struct stat st;

  *(void **) &real = dlsym (RTLD_NEXT, "fdatasync");
  if (fstat (fd, &st) == 0 && st.st_ino == synced.ino)
    synced.files++;
  return real (fd);
}

static unsigned
n_files (void)
{
  DIR *dir = opendir (folder);
  unsigned n = 0;

  must (dir != NULL, folder);
  while (readdir (dir))
    n++;
  closedir (dir);
  return n - 2;
}

/* The file as it is; free it. */
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

static void
poke (const char *path, uint64_t offset, const void *data, size_t count)
{
  NC_CLOSE int fd = open (path, O_RDWR);

  must (fd != -1 && pwrite (fd, data, count, offset) == (ssize_t) count,
        path);
}

static int
create (const char *path, bool has_size, uint64_t size, const char *backing,
        const char *format, uint32_t block_size, uint64_t journal_size)
{
  struct nc_image_create_options opts = {
    .path = path, .has_size = has_size, .size = size, .backing = backing,
    .backing_format = format, .block_size = block_size,
    .journal_size = journal_size,
  };

  tap_clear ();
  return nc_image_create (&opts);
}

static bool
refused (const char *path, bool has_size, uint64_t size,
         const char *backing, const char *format, uint32_t block_size,
         uint64_t journal_size)
{
  unsigned before = n_files ();

  return (create (path, has_size, size, backing, format, block_size,
                  journal_size) == -1 || note ("created")) &&
    (errno != 0 || note ("no errno")) &&
    (tap_errors == 1 || note ("%u messages", tap_errors)) &&
    (n_files () == before || note ("something was left behind"));
}

/* Whether what was just created at a.fvd is an empty disk of SIZE. */
static bool
is_as_specified (uint64_t size)
{
  uint64_t file_size;
  NC_FREE uint8_t *file = slurp (at ("a.fvd"), &file_size);
  struct fvd_reader r;
  bool good = fvd_reader_open (&r, file, file_size) == 0 ||
    note ("the reader says: %s", r.why);

  good = good && r.size == size && (r.flags & 1) && r.copies == 2 &&
    r.records == 0;
  for (uint64_t b = 0; b < r.nblocks && good; ++b)
    good = !r.allocated[b];
  fvd_reader_close (&r);
  return good;
}

/* The same of what inspecting it says. */
static bool
is_told_right (uint64_t size)
{
  struct nc_image_info info;
  bool good = nc_image_inspect (at ("a.fvd"), NULL, &info) == 0;

  if (!good)
    return false;
  good = info.size == size && strcmp (info.format, "fvd") == 0 &&
    info.version == 1 && info.clean && !info.retired &&
    !info.has_backing && info.allocated == 0 && info.journal_used == 0 &&
    info.journal_size == 1 << 20 && strlen (info.uuid) == 36 &&
    info.file_size >= info.data_offset + info.size &&
    info.data_offset % info.block_size == 0 &&
    info.block_size == (size > UINT64_C (1) << 40 ? 8192 : 4096) &&
    info.storage <= 8 << 20 && !info.remote;
  if (!good)
    note ("blocks of %u, %llu bytes of storage", info.block_size,
          (unsigned long long) info.storage);
  nc_image_info_free (&info);
  return good;
}

static void
test_create (void)
{
  static const uint64_t sizes[] = {
    0, 1, 511, 4095, 4096, 4097, 4032 * 4096, 4032 * 4096 + 1,
    UINT64_C (1) << 40, (UINT64_C (1) << 40) + 1,
  };
  bool good = true;

  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && good; ++i) {
    unlink (at ("a.fvd"));
    good = (create (at ("a.fvd"), true, sizes[i], NULL, NULL, 0, 0) == 0 &&
            is_told_right (sizes[i]) &&
            (sizes[i] >= 1 << 25 || is_as_specified (sizes[i]))) ||
      note ("size %llu", (unsigned long long) sizes[i]);
  }
  ok (good, "images of all sizes are created as the specification says");
  ok (refused (at ("a.fvd"), true, 4096, NULL, NULL, 0, 0),
      "an existing file is not overwritten");
  unlink (at ("a.fvd"));
}

static void
test_limits (void)
{
  ok (refused (at ("a.fvd"), false, 0, NULL, NULL, 0, 0),
      "without size and backing there is nothing to create");
  ok (refused (at ("a.fvd"), true, UINT64_MAX, NULL, NULL, 0, 0) &&
      refused (at ("a.fvd"), true, (UINT64_C (1) << 62) + 1, NULL, NULL, 0,
               0) &&
      refused (at ("a.fvd"), true, UINT64_C (1) << 63, NULL, NULL, 0, 0),
      "sizes beyond the limit are refused");
  ok (refused (at ("a.fvd"), true, 4096, NULL, NULL, 2048, 0) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 4097, 0) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 12288, 0) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 1 << 22, 0) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, UINT32_MAX, 0) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 1u << 31, 0),
      "block sizes that are not allowed are refused");
  ok (refused (at ("a.fvd"), true, 4096, NULL, NULL, 0, 1) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 0, 8192) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 0, 16385) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 0,
               (UINT64_C (1) << 30) + 4096) &&
      refused (at ("a.fvd"), true, 4096, NULL, NULL, 0, UINT64_MAX),
      "and so are sizes of the journal");
  ok (create (at ("a.fvd"), true, 4096, NULL, NULL, 1 << 21,
              UINT64_C (1) << 30) == 0,
      "the largest block and journal are allowed");
  unlink (at ("a.fvd"));
  ok (refused (at ("no/such/dir.fvd"), true, 4096, NULL, NULL, 0, 0),
      "a directory that is not there is an error");
  ok (refused (at ("a.fvd"), true, 4096, at ("none.raw"), "raw", 0, 0),
      "so is a backing that is not there");
}

static void
test_large_backing (void)
{
  const uint64_t max = UINT64_C (1) << 62;
  NC_CLOSE int fd = memfd_create ("backing", MFD_CLOEXEC);
  struct nc_image_info info;
  char path[40];

  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  must (ftruncate (fd, max + 4096) == 0, "ftruncate");
  ok (refused (at ("a.fvd"), true, 4096, path, "raw", 0, 0) &&
      errno == EFBIG && refused (at ("a.fvd"), false, 0, path, "raw", 0, 0),
      "a backing beyond the limit is refused, however small the image");
  must (ftruncate (fd, max) == 0, "ftruncate");
  ok (create (at ("a.fvd"), true, 4096, path, "raw", 0, 0) == 0 &&
      nc_image_inspect (at ("a.fvd"), NULL, &info) == 0 &&
      info.backing_size == max, "one of that size is not");
  nc_image_info_free (&info);
  unlink (at ("a.fvd"));
}

/* Of many zeros the first ones are found, in memory that is bounded. */
static void
test_many_zeros (void)
{
  const struct nc_chain_options chain = {
    .image = at ("z.raw"), .is_ref = true, .format = "raw", .memory_fd = -1,
    .read_only = true,
  };
  struct nc_zeroes_options opts = {
    .size = 1 << 20, .block_bits = 16, .max = 3,
  };
  struct fvd_ranges ranges = { 0 };
  const int fd = open (at ("z.raw"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  uint64_t places = 0;

  must (fd >= 0 && ftruncate (fd, 1 << 20) == 0, "file");
  for (off_t offset = 0; offset < 1 << 20; offset += 2 << 16, ++places)
    must (pwrite (fd, "x", 1, offset) == 1, "pwrite");
  close (fd);
  tap_clear ();
  ok (nc_zeroes_find (&chain, &opts, &ranges) == 0 && ranges.n == 3 &&
      ranges.v[0].blk == 1 && ranges.v[0].count == 1 &&
      ranges.v[2].blk == 5 && tap_errors == 0,
      "of many zeros the first ones are found");
  ranges.n = 0;
  opts.max = places;
  ok (nc_zeroes_find (&chain, &opts, &ranges) == 0 && ranges.n == places &&
      ranges.v[places - 1].blk == 2 * places - 1, "all, if there is room");
  free (ranges.v);
  unlink (at ("z.raw"));
}

static void
test_backing (void)
{
  struct nc_image_info info;

  must (create (at ("b.fvd"), true, 10000, NULL, NULL, 0, 0) == 0,
        "create");
  ok (refused (at ("a.fvd"), false, 0, at ("b.fvd"), NULL, 0, 0),
      "the format of a backing is never guessed");
  ok (refused (at ("a.fvd"), false, 0, at ("b.fvd"), "qcow2", 0, 0),
      "nor is an unknown one taken");
  ok (refused (at ("b.fvd"), false, 0, at ("b.fvd"), "fvd", 0, 0),
      "an image is not its own backing");
  ok (create (at ("a.fvd"), false, 0, at ("b.fvd"), "fvd", 0, 0) == 0 &&
      nc_image_inspect (at ("a.fvd"), NULL, &info) == 0 &&
      info.size == 10000 && info.has_backing &&
      strcmp (info.backing, "b.fvd") == 0 &&
      strcmp (info.backing_format, "fvd") == 0 &&
      info.backing_size == 10000 && strlen (info.backing_uuid) == 36,
      "size, UUID and relative path of the backing are recorded");
  nc_image_info_free (&info);
  ok (nc_image_inspect (at ("b.fvd"), "raw", &info) == 0 &&
      strcmp (info.format, "raw") == 0 && info.size == info.file_size &&
      info.uuid[0] == '\0', "an image can be inspected as raw");
  nc_image_info_free (&info);
  tap_clear ();
  ok (nc_image_inspect (at ("none"), NULL, &info) == -1 && tap_errors == 1,
      "inspecting what is not there is an error, reported once");
  nc_image_info_free (&info);
  unlink (at ("a.fvd"));
  unlink (at ("b.fvd"));
}

static unsigned errors_found, others_found;

static void
finding (void *opaque, bool error, const char *text)
{
  if (opaque != &errors_found || text == NULL || text[0] == '\0')
    others_found += 1000;
  if (error)
    errors_found++;
  else
    others_found++;
}

/* Check PATH.  Returns the number of errors, or -1. */
static int
check (const char *path, struct nc_check_result *result)
{
  errors_found = others_found = 0;
  tap_clear ();
  if (nc_image_check (path, finding, &errors_found, result) == -1)
    return -1;
  if (result->errors != errors_found || result->warnings != others_found)
    note ("counted %u errors and %u warnings, found %u and %u",
          (unsigned) result->errors, (unsigned) result->warnings,
          errors_found, others_found);
  return result->errors;
}

static bool
write_some (const char *path, bool stop)
{
  struct nc_chain_options opts = {
    .image = path, .memory_fd = -1, .retry = 1
  };
  struct nc_chain *chain = nc_chain_open (&opts);
  struct nc_export *e = NULL;
  char buf[10000];
  bool good = chain && nc_chain_start (chain) == 0 &&
    (e = nc_export_open (chain, "", 0)) != NULL;

  memset (buf, 'x', sizeof buf);
  good = good && nc_export_pwrite (e, buf, sizeof buf, 100, 0) == 0 &&
    nc_export_pwrite (e, buf, sizeof buf, 4032 * 4096 - 5000, 0) == 0 &&
    nc_export_flush (e) == 0 && (!stop || nc_chain_stop (chain) == 0);
  nc_export_close (e);
  nc_chain_close (chain);
  return good;
}

/* What check says of PATH, a faultless image, when it is damaged. */
static void
test_damage (const char *path)
{
  struct nc_check_result result;
  struct fvd_reader r;
  uint64_t file_size, after_size, summary, bitmap;
  NC_FREE uint8_t *file = NULL, *after = NULL;
  uint8_t sector[512];

  file = slurp (path, &file_size);
  must (fvd_reader_open (&r, file, file_size) == 0, r.why);
  summary = fvd_reader_le (r.header + FVD_AT_SUMMARY, 8);
  bitmap = fvd_reader_le (r.header + FVD_AT_BITMAP, 8);

  poke (path, bitmap + 10, "\x55", 1);
  ok (check (path, &result) > 0, "a changed sector of the bitmap is found");
  poke (path, bitmap, file + bitmap, 512);
  poke (path, summary + 400, "\x55", 1);
  ok (check (path, &result) != 0, "a changed sector of the summary is found");
  memcpy (sector, file + summary, 512);
  sector[0] = 2 | 3 << 2;
  fvd_reader_seal (r.header + FVD_AT_UUID, 1, 0, sector);
  poke (path, summary, sector, 512);
  ok (check (path, &result) != 0, "an invalid state of a page is found");
  poke (path, summary, file + summary, 512);
  memcpy (sector, file + bitmap + 512, 512);
  sector[1] |= 1;
  fvd_reader_seal (r.header + FVD_AT_UUID, 2, 1, sector);
  poke (path, bitmap + 512, sector, 512);
  ok (check (path, &result) == 0 && result.warnings == 1,
      "a bit behind the last block is found, and is no error");
  poke (path, bitmap + 512, file + bitmap + 512, 512);
  poke (path, r.header == file ? 200 : 4096 + 200, "\x55", 1);
  ok (check (path, &result) != 0 || result.warnings > 0,
      "a damaged header copy is told");
  poke (path, 0, file, 8192);
  poke (path, 4096 * (r.header == file) + 200, "\x55", 1);
  ok (check (path, &result) == 0 && result.warnings > 0,
      "the other one, too, as a warning");
  poke (path, 0, file, 8192);
  ok (check (path, &result) == 0 && result.warnings == 0,
      "put back as it was it is faultless");

  after = slurp (path, &after_size);
  ok (after_size == file_size && memcmp (file, after, file_size) == 0,
      "checking changes nothing");
  must (truncate (path, file_size - 1) == 0, "truncate");
  ok (check (path, &result) != 0, "a file that is too short is found");
  must (truncate (path, 100) == 0, "truncate");
  ok (check (path, &result) != 0 && tap_errors + errors_found > 0,
      "what is no image is not called good");
  fvd_reader_close (&r);
}

static void
test_check (void)
{
  NC_FREE char *path = strdup (at ("c.fvd"));
  struct nc_check_result result;

  must (create (path, true, 4036 * 4096 - 7, NULL, NULL, 0, 16384) == 0,
        "create");
  ok (check (path, &result) == 0 && result.warnings == 0 &&
      result.allocated == 0 && result.journal_records == 0,
      "a new image is faultless");
  must (write_some (path, false), "write");
  ok (check (path, &result) == 0 && result.journal_records > 0 &&
      result.allocated == 7 * 4096,
      "so is one that was not closed; its records are counted");
  must (write_some (path, true), "write");
  ok (check (path, &result) == 0 && result.journal_records == 0 &&
      result.allocated == 7 * 4096 && result.warnings == 0 &&
      result.blocks_checked == 4036, "so is one that was closed");
  test_damage (path);
  unlink (path);
}

/* Bytes of the disk, through the chain, read-only. */
static bool
shows (const char *path, bool follow, char expected)
{
  struct nc_chain_options opts = {
    .image = path, .memory_fd = -1, .retry = 1, .read_only = true,
    .follow = follow,
  };
  struct nc_chain *chain = nc_chain_open (&opts);
  struct nc_export *e = NULL;
  char c = 1;
  bool good = chain && nc_chain_start (chain) == 0 &&
    (e = nc_export_open (chain, "", 0)) != NULL &&
    nc_export_pread (e, &c, 1, 200) == 0;

  nc_export_close (e);
  nc_chain_close (chain);
  return good && c == expected;
}

/* The images of the snapshots, the oldest first, and the header of the second
 * one before it was retired. */
static char old_path[300], new_path[300], third[300], fourth[300];
static uint8_t unretired[8192];

static void
test_snapshot (void)
{
  struct nc_image_info old, new;

  must (create (old_path, true, 4034 * 4096 - 7, NULL, NULL, 8192, 16384)
        == 0 && write_some (old_path, true), "create");
  tap_clear ();
  ok (nc_image_snapshot (old_path, new_path, NULL) == 0 && tap_errors == 0,
      "a snapshot is made");
  must (nc_image_inspect (old_path, NULL, &old) == 0 &&
        nc_image_inspect (new_path, NULL, &new) == 0, "inspect");
  ok (old.retired && old.successor && strcmp (old.successor_uuid, new.uuid)
      == 0, "the old image is retired and names its successor");
  ok (new.has_backing && strcmp (new.backing_uuid, old.uuid) == 0 &&
      strcmp (new.backing_format, "fvd") == 0 && new.size == old.size &&
      new.backing_size == old.size && new.allocated == 0 && new.clean &&
      strcmp (new.uuid, old.uuid) != 0,
      "the new one is empty and has the old one as its backing");
  nc_image_info_free (&old);
  nc_image_info_free (&new);
  ok (shows (new_path, false, 'x') && write_some (new_path, true),
      "the disk is the same and can be written");
}

static void
test_refused_snapshot (void)
{
  struct nc_chain_options opts = {
    .image = old_path, .memory_fd = -1, .retry = 1,
  };
  struct nc_chain *chain;

  tap_clear ();
  ok ((chain = nc_chain_open (&opts)) == NULL && tap_errors == 1,
      "the old image cannot be opened for writing any more");
  nc_chain_close (chain);
  opts.follow = true;
  chain = nc_chain_open (&opts);
  ok (chain && nc_chain_n_layers (chain) == 2,
      "but leads to the new one when asked to follow");
  tap_clear ();
  ok (nc_image_snapshot (new_path, third, NULL) == -1 && tap_errors == 1,
      "an image in use gets no snapshot");
  nc_chain_close (chain);
  ok (access (third, F_OK) == -1, "and nothing is left of the attempt");

  tap_clear ();
  ok (nc_image_snapshot (old_path, third, NULL) == -1 && tap_errors == 1,
      "a retired image gets no second successor");
  ok (nc_image_snapshot (new_path, new_path, NULL) == -1,
      "an image is not its own successor");
  ok (nc_image_snapshot (new_path, old_path, NULL) == -1,
      "an existing image is not overwritten");
  ok (nc_image_snapshot (at ("none"), third, NULL) == -1,
      "what is not there gets no snapshot");
}

/* PATH has not taken over yet: no other opening for writing may pass, either.
 */
static void
refuses_to_change (const char *path)
{
  const struct nc_image_resize_options larger = {
    .path = path, .size = 4096, .relative = 1,
  };
  struct nc_image_resize_result resized;
  struct nc_check_result checked;
  struct nc_image_info info;
  uint64_t size, size_after;
  NC_FREE uint8_t *file = slurp (path, &size), *after = NULL;

  tap_clear ();
  errno = 0;
  ok (nc_image_snapshot (path, fourth, NULL) == -1 && errno == EROFS &&
      tap_errors == 1 && access (fourth, F_OK) == -1,
      "no snapshot is made of it");
  ok (nc_image_inspect (path, NULL, &info) == 0 && !info.retired,
      "and it is not retired by that");
  nc_image_info_free (&info);
  errno = 0;
  ok (nc_image_resize (&larger, &resized) == -1 && errno == EROFS,
      "it gets no other size");
  poke (path, 200 + (fvd_reader_le (file + 16, 8) <
                     fvd_reader_le (file + 4112, 8) ? 0 : 4096), "\x55", 1);
  errno = 0;
  ok (nc_image_repair (path, NULL, NULL, NULL, &checked) == -1 &&
      errno == EROFS, "and is not repaired");
  poke (path, 0, file, 8192);
  after = slurp (path, &size_after);
  ok (size == size_after && memcmp (file, after, size) == 0,
      "nothing of it has changed");
}

/* With the image in the middle put back to what it was when it had not taken
 * over: it is the one below that is active. */
static void
test_middle_not_taken_over (void)
{
  uint64_t size;
  NC_FREE uint8_t *file = slurp (new_path, &size);
  struct stat st;

  must (stat (new_path, &st) == 0, new_path);
  memset (&synced, 0, sizeof synced);
  synced.ino = st.st_ino;
  ok (write_some (third, true) && synced.files == 1,
      "that its backing was retired is durable before an image is written");
  must (nc_image_snapshot (third, fourth, NULL) == 0, "a fourth layer");
  ok (write_some (fourth, true), "a chain of snapshots is written");
  /* As new_path was before it was retired in favour of the third. */
  must (is_retired (new_path), new_path);
  poke (new_path, 0, unretired, 8192);
  tap_clear ();
  ok (!write_some (fourth, false) && tap_errors == 1,
      "a chain is not written if a layer in it has not taken over");
  ok (shows (fourth, false, 'x'), "but read");
  poke (new_path, 0, file, 8192);
  ok (write_some (fourth, true), "it is when that has been put right");
}

/* Interrupted between the two steps: the new image is there, the old one
 * not retired.  Both header copies are put back. */
static void
test_interrupted_snapshot (void)
{
  uint64_t size;
  NC_FREE uint8_t *file = slurp (new_path, &size);
  struct nc_image_info old;
  struct stat st;

  ok (nc_image_snapshot (new_path, third, NULL) == 0, "a third layer");
  poke (new_path, 0, file, 8192);
  tap_clear ();
  must (stat (third, &st) == 0 && !is_retired (new_path), third);
  ok (shows (third, false, 'x') && !write_some (third, false) &&
      tap_errors == 1,
      "an image whose snapshot was interrupted is not written yet");
  refuses_to_change (third);
  memset (&synced, 0, sizeof synced);
  synced.ino = st.st_ino;
  synced.old = new_path;
  ok (nc_image_snapshot (new_path, third, NULL) == 0,
      "a snapshot that was interrupted can be made again");
  ok (synced.files > 0 && synced.directories > 0 && !synced.too_late,
      "and makes the new image and then its name durable, before the old "
      "one is retired");
  ok (nc_image_inspect (new_path, NULL, &old) == 0 && old.retired &&
      shows (third, false, 'x'), "it ends as if it had not been");
  nc_image_info_free (&old);
  ok (shows (old_path, true, 'x'), "following goes on to the last");
  memcpy (unretired, file, sizeof unretired);
}

static void
test_snapshots (void)
{
  snprintf (old_path, sizeof old_path, "%s", at ("s.fvd"));
  snprintf (new_path, sizeof new_path, "%s", at ("new.fvd"));
  snprintf (third, sizeof third, "%s", at ("third.fvd"));
  snprintf (fourth, sizeof fourth, "%s", at ("fourth.fvd"));
  test_snapshot ();
  test_refused_snapshot ();
  test_interrupted_snapshot ();
  test_middle_not_taken_over ();
  unlink (old_path);
  unlink (new_path);
  unlink (third);
  unlink (fourth);
}

int
main (void)
{
  tap_start (60);

  make_folder ("test-image");
  test_create ();
  test_limits ();
  test_large_backing ();
  test_many_zeros ();
  test_backing ();
  test_check ();
  test_snapshots ();
  ok (n_files () == 0, "no file is left behind");
  remove_folder ();
  return tap_done ();
}
