/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Images while nobody serves them.  A new image gets its name only when it
 * is complete and durable: it is written to a file of another name in the
 * same directory, synced, linked, and the directory synced. */

#include <config.h>

#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain/internal.h"
#include "chain/ref.h"
#include "chain/succession.h"
#include "dev/dev.h"
#include "format/format.h"
#include "format/fvd/fvd.h"
#include "format/layer.h"
#include "image/find-zeros.h"
#include "image/internal.h"
#include "util/checked.h"
#include "util/atomic-file.h"
#include "util/report.h"
#include "util/scope.h"

static const struct nc_layer_options read_only = { .memory_fd = -1 };

void
nc_image_info_free (struct nc_image_info *info)
{
  if (info == NULL)
    return;
  free (info->path);
  free (info->format);
  free (info->backing);
  free (info->backing_format);
  free (info->backing_identity);
  free (info->successor);
  free (info->data_file);
  memset (info, 0, sizeof *info);
}

int
nc_layer_info (struct nc_layer *layer, struct nc_image_info *info)
{
  struct stat st;

  memset (info, 0, sizeof *info);
  info->path = strdup (layer->path);
  info->format = strdup (layer->format->name);
  if (info->path == NULL || info->format == NULL) {
    nc_error ("%s: %m", layer->path);
    return -1;
  }
  info->remote = layer->dev->remote;
  info->size = layer->size;
  info->file_size = layer->dev->size;
  if (!info->remote && stat (layer->path, &st) == 0)
    info->storage = (uint64_t) st.st_blocks * 512;
  return layer->format->info (layer, info);
}

/* Open an image by itself, without a lock: it may be in use. */
static struct nc_layer *
open_alone (const char *path, const char *format_name)
{
  const struct nc_format *format = nc_format_need (format_name, path);
  struct nc_dev *dev;

  if (format == NULL)
    return NULL;
  dev = nc_dev_open_file (path, NC_DEV_UNLOCKED);
  return dev ? nc_layer_open (format, dev, path, &read_only) : NULL;
}

struct nc_layer *
nc_image_open_to_change (struct nc_dev *dev, const char *path,
                         const struct nc_allow *allow, bool with_data)
{
  const struct nc_chain_options data = { .allow = allow };
  const struct nc_layer_options opts = {
    .writable = true, .wait = true, .memory_fd = -1,
    .open_data = with_data ? nc_chain_open_data : NULL,
    .opaque = (void *) &data,
  };
  struct nc_layer *layer = nc_layer_open (&nc_format_fvd, dev, path, &opts);

  if (layer && nc_succession_check_alone (layer, allow) == -1) {
    nc_layer_close (layer);
    return NULL;
  }
  return layer;
}

int
nc_image_inspect (const char *path, const char *format,
                  struct nc_image_info *info)
{
  struct nc_layer *layer;
  int r;

  memset (info, 0, sizeof *info);
  layer = open_alone (path, format ? format : "fvd");
  if (layer == NULL)
    return -1;
  r = nc_layer_info (layer, info);
  nc_layer_close (layer);
  return r;
}

/* Files that appear whole. */

struct new_file {
  const char *path;
  char *tmp;                    /* NULL: a device, which has its name */
  bool created;                 /* tmp */
  struct nc_dev *dev;
};

static int
sync_directory (const char *path)
{
  NC_FREE char *copy = strdup (path);
  NC_CLOSE int fd = copy ? open (dirname (copy),
                                 O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  if (fd == -1 || fsync (fd) == -1) {
    nc_error ("%s: its directory could not be synced: %m", path);
    return -1;
  }
  return 0;
}

static bool
is_block_device (const char *path)
{
  struct stat st;

  return stat (path, &st) == 0 && S_ISBLK (st.st_mode);
}

static int
new_file_open (struct new_file *nf, const char *path, uint64_t size)
{
  char suffix[20];
  struct stat st;
  int fd;

  *nf = (struct new_file) { .path = path };
  if (is_block_device (path)) {
    nf->dev = nc_dev_open_file (path, NC_DEV_WRITE);
    if (nf->dev == NULL)
      return -1;
    if (nf->dev->size >= size)
      return 0;
    nc_error ("%s: the device has %" PRIu64 " bytes, and the image needs %"
              PRIu64, path, nf->dev->size, size);
    errno = ENOSPC;
    return -1;
  }
  if (lstat (path, &st) == 0) {
    nc_error ("%s: exists; give another name, or remove it first", path);
    errno = EEXIST;
    return -1;
  }
  snprintf (suffix, sizeof suffix, ".new.%d", (int) getpid ());
  nf->tmp = nc_path_beside (path, suffix);
  if (nf->tmp == NULL) {
    nc_error ("%s: %m", path);
    return -1;
  }
  fd = open (nf->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
             0666);
  nf->created = fd != -1;
  if (fd == -1 || ftruncate (fd, size) == -1) {
    nc_error ("%s: %m", path);
    if (fd >= 0)
      close (fd);
    return -1;
  }
  nf->dev = nc_dev_open_fd (fd, path, NC_DEV_WRITE);
  return nf->dev ? 0 : -1;
}

/* Take back a name that was given: what it was for has failed. */
static void
new_file_withdraw (struct new_file *nf)
{
  if (nf->tmp)
    unlink (nf->path);
}

/* Durable, then with its name, durably; on failure without. */
static int
new_file_publish (struct new_file *nf)
{
  if (nf->dev->ops->sync (nf->dev) == -1)
    return -1;
  if (nf->tmp == NULL)
    return 0;
  /* Neither replaces a file that has appeared meanwhile. */
  if (link (nf->tmp, nf->path) == -1 &&
      (errno == EEXIST || renameat2 (AT_FDCWD, nf->tmp, AT_FDCWD, nf->path,
                                     RENAME_NOREPLACE) == -1)) {
    nc_error ("%s: %m", nf->path);
    return -1;
  }
  if (sync_directory (nf->path) == 0)
    return 0;
  new_file_withdraw (nf);
  return -1;
}

static void
new_file_close (struct new_file *nf)
{
  if (nf->created)
    unlink (nf->tmp);
  free (nf->tmp);
  nc_dev_close (nf->dev);
}

/* Creating. */

/* Open the backing that the operator names, to learn its size and what
 * tells it from another. */
static int
learn_from_device (struct nc_dev *dev, const char *ref, const char *format_name,
                   struct nc_backing *b)
{
  const struct nc_format *format = nc_format_need (format_name, ref);
  struct nc_layer *layer;

  if (format == NULL) {
    nc_dev_close (dev);
    return -1;
  }
  layer = nc_layer_open (format, dev, ref, &read_only);
  if (layer == NULL)
    return -1;
  /* The new image is durable when it has its name, so what it shows is, too. */
  if (!dev->remote && dev->ops->sync (dev) == -1) {
    nc_layer_close (layer);
    return -1;
  }
  if (layer->size > FVD_SIZE_MAX) {
    nc_error ("%s: has %" PRIu64 " bytes; a backing can have %" PRIu64,
              ref, layer->size, FVD_SIZE_MAX);
    nc_layer_close (layer);
    errno = EFBIG;
    return -1;
  }
  b->size = layer->size;
  b->uuid = layer->uuid;
  b->identity = strdup (dev->identity ? dev->identity : "");
  b->format = strdup (format_name);
  nc_layer_close (layer);
  if (b->identity && b->format)
    return 0;
  nc_error ("%s: %m", ref);
  return -1;
}

int
nc_backing_learn (const char *path, const char *ref, const char *format,
                  const struct nc_tls *tls, struct nc_backing *b)
{
  enum nc_ref_kind kind;
  struct nc_dev *dev;

  if (format == NULL) {
    nc_error ("%s: the format of the backing '%s' must be given: it is "
              "never guessed from content that a guest can write",
              path, ref);
    errno = EINVAL;
    return -1;
  }
  if (nc_ref_kind (ref, &kind) == -1)
    return -1;
  if (kind != NC_REF_FILE && strcmp (format, "raw") != 0) {
    nc_error ("%s: the backing '%s' is served over NBD, so its format can "
              "only be raw, not '%s'", path, ref,
              format);
    errno = EINVAL;
    return -1;
  }
  if (kind == NC_REF_URI && nc_ref_check_recorded (ref) == -1)
    return -1;
  b->present = true;
  b->ref = kind == NC_REF_FILE ? nc_ref_for_image (ref, path)
    : strdup (kind == NC_REF_URI ? ref : "");
  if (b->ref == NULL)
    return -1;
  dev = kind == NC_REF_FILE ? nc_dev_open_file (ref, 0)
    : nc_dev_open_nbd (ref, 10, tls);
  return dev ? learn_from_device (dev, ref, format, b) : -1;
}

#define GROW_UNIT (UINT64_C (64) << 20)

/* 4 KiB up to 1 TiB, then larger, so that the bitmap stays moderate. */
static unsigned
default_block_bits (uint64_t size)
{
  const uint64_t moderate = UINT64_C (1) << 28;
  unsigned bits = FVD_BLOCK_BITS_MIN;

  while (bits < FVD_BLOCK_BITS_MAX &&
         nc_div_up (size, UINT64_C (1) << bits) > moderate)
    ++bits;
  return bits;
}

static int
check_layout (const struct nc_image_create_options *opts)
{
  const uint64_t chunk = UINT64_C (1) << FVD_CHUNK_BITS;

  if (opts->zero_in_base &&
      (opts->backing == NULL || opts->compact ||
       is_block_device (opts->data_file ? opts->data_file : opts->path))) {
    nc_error ("%s: zeros of the backing can be recorded only with a backing, "
              "in a regular file, and not in a compact image: they take no "
              "room only where the storage reads as zeros by itself",
              opts->path);
    errno = EINVAL;
    return -1;
  }
  if (opts->compact && opts->data_file) {
    nc_error ("%s: an image with a data file cannot be compact: the data "
              "file is laid out like the disk", opts->path);
    errno = EINVAL;
    return -1;
  }
  if (opts->compact && opts->block_size > chunk) {
    nc_error ("%s: block size %" PRIu32 " is larger than a chunk of a compact "
              "image, %" PRIu64, opts->path, opts->block_size, chunk);
    errno = EINVAL;
    return -1;
  }
  if (opts->grow_unit && !opts->compact) {
    nc_error ("%s: only a compact image has a grow unit", opts->path);
    errno = EINVAL;
    return -1;
  }
  if (opts->grow_unit > FVD_GROW_UNIT_MAX || opts->grow_unit % chunk != 0) {
    nc_error ("%s: grow unit %" PRIu64 " must be a multiple of %" PRIu64
              ", at most %" PRIu64, opts->path, opts->grow_unit, chunk,
              FVD_GROW_UNIT_MAX);
    errno = EINVAL;
    return -1;
  }
  return 0;
}

static int
check_create_options (const struct nc_image_create_options *opts)
{
  const uint64_t max = UINT64_C (1) << FVD_BLOCK_BITS_MAX;
  const uint64_t min = UINT64_C (1) << FVD_BLOCK_BITS_MIN;

  if (!opts->has_size && opts->backing == NULL) {
    nc_error ("%s: give a size, or a backing to take it from", opts->path);
    errno = EINVAL;
    return -1;
  }
  if (opts->block_size &&
      (!nc_is_power_of_2 (opts->block_size) || opts->block_size < min ||
       opts->block_size > max)) {
    nc_error ("%s: block size %" PRIu32 " must be a power of two from %"
              PRIu64 " to %" PRIu64, opts->path, opts->block_size, min, max);
    errno = EINVAL;
    return -1;
  }
  if (opts->journal_size &&
      (opts->journal_size % FVD_AREA_ALIGN != 0 ||
       opts->journal_size < FVD_JOURNAL_MIN ||
       opts->journal_size > FVD_JOURNAL_MAX)) {
    nc_error ("%s: journal size %" PRIu64 " must be a multiple of %d from %"
              PRIu64 " to %" PRIu64, opts->path, opts->journal_size,
              FVD_AREA_ALIGN, FVD_JOURNAL_MIN, FVD_JOURNAL_MAX);
    errno = EINVAL;
    return -1;
  }
  return check_layout (opts);
}

void
nc_backing_free (struct nc_backing *b)
{
  free (b->ref);
  free (b->format);
  free (b->identity);
}

/* The data file of the image with UUID, ready under its name.  It is marked
 * where that can be. */
static int
create_data_file (struct new_file *nf, const char *path, uint64_t size,
                  const nc_uuid *uuid, bool *marked)
{
  char mark[NC_UUID_TEXT];

  if (new_file_open (nf, path, size) == -1)
    return -1;
  nc_uuid_format (uuid, mark);
  *marked = nc_dev_set_mark (nf->dev, mark) == 0;
  if (!*marked && errno != ENOTSUP) {
    nc_error ("%s: extended attribute: %m", path);
    return -1;
  }
  return new_file_publish (nf);
}

static int
create_image (const char *path, const struct nc_fvd_create_options *fvd,
              const nc_uuid *uuid)
{
  struct new_file nf;
  uint64_t file_size;
  int r;

  if (nc_fvd_file_size (fvd, &file_size) == -1) {
    nc_error ("%s: size %" PRIu64 " is too large", path, fvd->size);
    errno = EFBIG;
    return -1;
  }
  r = new_file_open (&nf, path, file_size);
  if (r == 0)
    r = nc_fvd_create (nf.dev, fvd, uuid);
  if (r == 0)
    r = new_file_publish (&nf);
  new_file_close (&nf);
  return r;
}

static int
create_with_data_file (const struct nc_image_create_options *opts,
                       struct nc_fvd_create_options *fvd,
                       const nc_uuid *uuid)
{
  NC_FREE char *ref = nc_ref_for_image (opts->data_file, opts->path);
  struct new_file data = { 0 };
  int r;

  if (ref == NULL)
    return -1;
  fvd->data_file = ref;
  r = create_data_file (&data, opts->data_file, fvd->size, uuid,
                        &fvd->marked);
  if (r == 0) {
    r = create_image (opts->path, fvd, uuid);
    if (r == -1)
      new_file_withdraw (&data);
  }
  new_file_close (&data);
  return r;
}

static int
find_zeroes (const struct nc_image_create_options *opts,
             struct nc_fvd_create_options *fvd, struct fvd_ranges *zero)
{
  const struct nc_chain_options chain_opts = {
    .image = opts->backing, .is_ref = true, .format = opts->backing_format,
    .allow = opts->allow, .tls = opts->tls, .retry = NC_RETRY_DEFAULT,
    .memory_fd = -1, .read_only = true,
  };

  fvd->zero = zero;
  return nc_zeroes_find (&chain_opts, fvd->size, fvd->block_bits, zero);
}

/* Create the image with its backing already known.  *uuid is the new one's.
 */
static int
create_over (const struct nc_image_create_options *opts,
             const struct nc_backing *b, bool takes_over, nc_uuid *uuid)
{
  const uint64_t size = opts->has_size ? opts->size : b->size;
  struct nc_fvd_create_options fvd = {
    .size = size,
    .block_bits = opts->block_size
      ? (unsigned) __builtin_ctz (opts->block_size)
      : default_block_bits (size),
    .journal_size = opts->journal_size ? opts->journal_size
      : UINT64_C (1) << 20,
    .backing = b,
    .takes_over = takes_over,
    .compact = opts->compact,
    .grow_unit = opts->grow_unit ? opts->grow_unit : GROW_UNIT,
    .prefetch = opts->prefetch,
  };
  struct fvd_ranges zero = { 0 };
  int r = -1;

  if (opts->compact && size > (uint64_t) FVD_CHUNKS_MAX << FVD_CHUNK_BITS) {
    nc_error ("%s: size %" PRIu64 " is too large for a compact image: at most "
              "%" PRIu64, opts->path, size,
              (uint64_t) FVD_CHUNKS_MAX << FVD_CHUNK_BITS);
    errno = EFBIG;
    return -1;
  }
  if (nc_uuid_generate (uuid) == -1)
    return -1;
  if (!opts->zero_in_base || find_zeroes (opts, &fvd, &zero) == 0)
    r = opts->data_file ? create_with_data_file (opts, &fvd, uuid)
      : create_image (opts->path, &fvd, uuid);
  free (zero.v);
  return r;
}

int
nc_image_create (const struct nc_image_create_options *opts)
{
  __attribute__ ((__cleanup__ (nc_backing_free))) struct nc_backing b = { 0 };
  nc_uuid uuid;

  if (check_create_options (opts) == -1 ||
      nc_prefetch_policy_check (&opts->prefetch, opts->path) == -1)
    return -1;
  if (opts->backing &&
      nc_backing_learn (opts->path, opts->backing, opts->backing_format,
                        opts->tls, &b) == -1)
    return -1;
  return create_over (opts, &b, false, &uuid);
}

/* Snapshots. */

/* The image that an interrupted snapshot of LAYER has left at PATH: an empty
 * one over it; it and its name are durable then.  Returns 1 and its UUID if
 * there is one, 0 if PATH does not exist, -1 if something else is there. */
static int
find_interrupted (const struct nc_layer *layer, const char *path,
                  nc_uuid *uuid)
{
  struct nc_image_info info = { 0 };
  struct nc_layer *other;
  struct stat st;
  bool same;

  if (lstat (path, &st) == -1 && errno == ENOENT)
    return 0;
  other = open_alone (path, "fvd");
  if (other == NULL)
    return -1;
  same = other->takes_over && other->size == layer->size &&
    other->backing.size == layer->size &&
    nc_uuid_equal (&other->backing.uuid, &layer->uuid) &&
    nc_layer_info (other, &info) == 0 && info.allocated == 0 &&
    !info.retired && other->dev->ops->sync (other->dev) == 0 &&
    sync_directory (path) == 0;
  *uuid = other->uuid;
  nc_image_info_free (&info);
  nc_layer_close (other);
  if (same)
    return 1;
  nc_error ("%s: exists, and is not an empty image over '%s'; give another "
            "name", path, layer->path);
  errno = EEXIST;
  return -1;
}

static int
put_on_top (const char *path, struct nc_layer *layer, const char *new_path,
            nc_uuid *uuid)
{
  const struct nc_image_create_options opts = {
    .path = new_path, .has_size = true, .size = layer->size,
    .block_size = layer->block_size,
  };
  __attribute__ ((__cleanup__ (nc_backing_free))) struct nc_backing b = {
    .present = true, .ref = nc_ref_for_image (path, new_path),
    .format = strdup ("fvd"), .identity = strdup (""),
    .size = layer->size, .uuid = layer->uuid,
  };
  int r;

  if (b.ref == NULL || b.format == NULL || b.identity == NULL)
    return -1;
  r = find_interrupted (layer, new_path, uuid);
  return r == 0 ? create_over (&opts, &b, true, uuid) : r == 1 ? 0 : -1;
}

int
nc_image_snapshot (const char *path, const char *new_path,
                   const struct nc_allow *allow)
{
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_WRITE);
  struct nc_layer *layer;
  NC_FREE char *successor = NULL;
  nc_uuid uuid;
  int r = -1;

  if (dev == NULL)
    return -1;
  layer = nc_image_open_to_change (dev, path, allow, false);
  if (layer == NULL)
    return -1;
  /* Settle what a crash has left before anything is put on top of it. */
  if (nc_layer_begin (layer) == 0 && layer->format->finish (layer) == 0 &&
      put_on_top (path, layer, new_path, &uuid) == 0) {
    successor = nc_ref_for_image (new_path, path);
    if (successor)
      r = nc_fvd_retire (layer, &uuid, successor);
  }
  nc_layer_close (layer);
  return r;
}

int
nc_image_check (const char *path, nc_check_finding finding, void *opaque,
                struct nc_check_result *result)
{
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_UNLOCKED);
  int r;

  if (dev == NULL)
    return -1;
  r = nc_fvd_check (dev, finding, opaque, result);
  nc_dev_close (dev);
  return r;
}

int
nc_image_repair (const char *path, const struct nc_allow *allow,
                 nc_check_repaired repaired, void *opaque,
                 struct nc_check_result *result)
{
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_WRITE);
  struct nc_layer *layer;
  int r;

  if (dev == NULL)
    return -1;
  r = nc_fvd_check (dev, NULL, NULL, result);
  if (r == -1 || result->errors > 0 || result->warnings == 0) {
    nc_dev_close (dev);
    return r;
  }
  layer = nc_image_open_to_change (dev, path, allow, false);
  if (layer == NULL)
    return -1;
  r = nc_fvd_repair (layer, result->header_copies, result->clean, repaired,
                     opaque);
  nc_layer_close (layer);
  return r;
}
