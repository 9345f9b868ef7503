/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Images while nobody serves them.  A new image gets its name only when it
 * is complete and durable (util/atomic-file.h). */

#include <config.h>

#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain/data-file.h"
#include "chain/internal.h"
#include "chain/ref.h"
#include "chain/succession.h"
#include "dev/dev.h"
#include "format/format.h"
#include "format/fvd/fvd.h"
#include "format/layer.h"
#include "image/find-zeros.h"
#include "image/internal.h"
#include "util/atomic-file.h"
#include "util/checked.h"
#include "util/path.h"
#include "util/permissions.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"

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
  info->storage = nc_dev_storage (layer->dev);
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
                         const struct nc_allow *allow,
                         struct nc_data_policy *data)
{
  const struct nc_layer_options opts = {
    .writable = true, .wait = true, .memory_fd = -1,
    .open_data = data ? nc_data_file_open : NULL, .opaque = data,
  };
  struct nc_layer *layer = nc_layer_open (&nc_format_fvd, dev, path, &opts);

  if (layer && ((data && nc_data_file_check_used (data, path) == -1) ||
                nc_succession_check_alone (layer, allow) == -1)) {
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
  struct nc_new_file file;      /* not created: a device, which has its name */
  struct nc_dev *dev;
};

static bool
is_block_device (const char *path)
{
  NC_PATH struct nc_path file = NC_PATH_NONE;
  char why[NC_PATH_WHY];
  NC_CLOSE int fd = nc_path_try (path, O_PATH, &file, why, sizeof why);
  struct stat st;

  return fd >= 0 && fstat (fd, &st) == 0 && S_ISBLK (st.st_mode);
}

/* What is called PATH already: a block device of SIZE bytes at least. */
static int
use_device (struct new_file *nf, const struct nc_path *path, const char *name,
            uint64_t size)
{
  struct nc_path file;
  NC_CLOSE int probe = nc_path_follow (path, O_PATH, &file);
  struct stat st;
  int fd;

  if (probe == -1)
    return -1;
  if (fstat (probe, &st) == -1 || !S_ISBLK (st.st_mode)) {
    nc_error ("%s: exists; give another name, or remove it first", name);
    nc_path_close (&file);
    errno = EEXIST;
    return -1;
  }
  fd = openat (file.dir, file.name, O_RDWR | O_NOFOLLOW | O_NONBLOCK |
               O_NOCTTY | O_CLOEXEC);
  if (fd == -1) {
    nc_error ("%s: %m", name);
    nc_path_close (&file);
    return -1;
  }
  nf->dev = nc_dev_open_path (fd, &file, name, NC_DEV_WRITE);
  if (nf->dev == NULL)
    return -1;
  if (nf->dev->has_holes) {     /* exchanged for a file meanwhile */
    nc_error ("%s: exists; give another name, or remove it first", name);
    errno = EEXIST;
    return -1;
  }
  if (nf->dev->size >= size)
    return 0;
  nc_error ("%s: the device has %" PRIu64 " bytes, and the image needs %"
            PRIu64, name, nf->dev->size, size);
  errno = ENOSPC;
  return -1;
}

/* Make a file that is to be PATH, which has to stay, and is called NAME in
 * messages; or take the device of that name.  LIKE, unless it is -1, is a file
 * whose owner and permissions a new one gets. */
static int
new_file_open (struct new_file *nf, const struct nc_path *path,
               const char *name, uint64_t size, int like)
{
  struct stat st;
  int fd;

  *nf = (struct new_file) { .dev = NULL };
  if (fstatat (path->dir, path->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
    return use_device (nf, path, name, size);
  fd = nc_new_file_create (&nf->file, path, like >= 0 ? 0600 : 0666);
  if (fd == -1 || ftruncate (fd, size) == -1) {
    nc_error ("%s: %m", name);
    if (fd >= 0)
      close (fd);
    return -1;
  }
  if (like >= 0 && nc_permissions_copy (like, fd) == -1) {
    nc_error ("%s: owner, mode, ACL or label of the image before it cannot be "
              "given to it: %m; do this as the owner of that, or as root", name);
    close (fd);
    return -1;
  }
  nf->dev = nc_dev_open_fd (fd, name, NC_DEV_WRITE);
  return nf->dev ? 0 : -1;
}

/* Take back a name that was given: what it was for has failed. */
static void
new_file_withdraw (struct new_file *nf)
{
  nc_new_file_withdraw (&nf->file);
}

/* Durable, then with its name, durably; on failure without. */
static int
new_file_publish (struct new_file *nf)
{
  if (nf->dev->ops->sync (nf->dev) == -1)
    return -1;
  if (nf->file.tmp == NULL ||
      nc_new_file_publish (&nf->file, false) == 0)
    return 0;
  nc_error ("%s: %m", nf->dev->name);
  return -1;
}

static void
new_file_close (struct new_file *nf)
{
  nc_new_file_close (&nf->file);
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

/* The file REF as a device, and in B how IMAGE is to call it.  A link that
 * names the backing stays: it can be made to lead elsewhere later. */
static struct nc_dev *
open_backing_file (const struct nc_path *image, const char *ref,
                   struct nc_backing *b)
{
  NC_PATH struct nc_path named = NC_PATH_NONE;
  struct nc_path file;
  int fd;

  if (nc_path_find (ref, &named) == -1)
    return NULL;
  b->ref = nc_ref_for_image (&named, image);
  if (b->ref == NULL)
    return NULL;
  fd = nc_path_follow (&named, O_RDONLY | O_NONBLOCK | O_NOCTTY, &file);
  return fd == -1 ? NULL : nc_dev_open_path (fd, &file, ref, 0);
}

int
nc_backing_learn (const struct nc_path *image, const char *name,
                  const char *ref, const char *format,
                  const struct nc_tls *tls, struct nc_backing *b)
{
  enum nc_ref_kind kind;
  struct nc_dev *dev;

  if (format == NULL) {
    nc_error ("%s: the format of the backing '%s' must be given: it is "
              "never guessed from content that a guest can write",
              name, ref);
    errno = EINVAL;
    return -1;
  }
  if (nc_ref_kind (ref, &kind) == -1)
    return -1;
  if (kind != NC_REF_FILE && strcmp (format, "raw") != 0) {
    nc_error ("%s: the backing '%s' is served over NBD, so its format can "
              "only be raw, not '%s'", name, ref,
              format);
    errno = EINVAL;
    return -1;
  }
  if (kind == NC_REF_URI && nc_ref_check_recorded (ref) == -1)
    return -1;
  b->present = true;
  if (kind == NC_REF_FILE)
    dev = open_backing_file (image, ref, b);
  else {
    b->ref = strdup (kind == NC_REF_URI ? ref : "");
    if (b->ref == NULL) {
      nc_error ("%s: %m", ref);
      return -1;
    }
    dev = nc_dev_open_nbd (ref, 10, tls, NULL);
  }
  return dev ? learn_from_device (dev, ref, format, b) : -1;
}

#define GROW_UNIT (UINT64_C (64) << 20)

/* Zeros of the backing that are recorded: 16 MiB of memory. */
#define ZERO_RANGES_MAX (1 << 20)

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

/* An image that is being made. */
struct creation {
  const struct nc_image_create_options *opts;
  const struct nc_path *path;   /* where it is to be */
  int like;                     /* whose owner and permissions it gets; -1 */
  nc_uuid uuid;
};

/* Whoever writes through the image needs to know. */
static void
report_unmarked (const struct creation *c)
{
  NC_FREE char *quoted = nc_text_quote (c->opts->data_file);

  nc_notice ("%s: cannot be marked as the data file of '%s': name it whenever "
             "that is to be written: data-file=%s (\"nbdchain\": "
             "--data-file %s)", c->opts->data_file, c->opts->path,
             quoted ? : "FILE", quoted ? : "FILE");
}

/* The data file of the image, ready under its name.  It is marked where that
 * can be. */
static int
create_data_file (struct new_file *nf, const struct creation *c,
                  const struct nc_path *path, uint64_t size, bool *marked)
{
  const char *name = c->opts->data_file;
  char mark[NC_UUID_TEXT];

  if (new_file_open (nf, path, name, size, -1) == -1)
    return -1;
  nc_uuid_format (&c->uuid, mark);
  *marked = nc_dev_set_mark (nf->dev, mark) == 0;
  if (!*marked && errno != ENOTSUP) {
    nc_error ("%s: extended attribute: %m", name);
    return -1;
  }
  if (new_file_publish (nf) == -1)
    return -1;
  if (!*marked)
    report_unmarked (c);
  return 0;
}

static int
create_image (const struct creation *c, const struct nc_fvd_create_options *fvd)
{
  const char *name = c->opts->path;
  struct new_file nf;
  uint64_t file_size;
  int r;

  if (nc_fvd_file_size (fvd, &file_size) == -1) {
    nc_error ("%s: size %" PRIu64 " is too large", name, fvd->size);
    errno = EFBIG;
    return -1;
  }
  r = new_file_open (&nf, c->path, name, file_size, c->like);
  if (r == 0)
    r = nc_fvd_create (nf.dev, fvd, &c->uuid);
  if (r == 0)
    r = new_file_publish (&nf);
  new_file_close (&nf);
  return r;
}

static int
create_with_data_file (const struct creation *c,
                       struct nc_fvd_create_options *fvd)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_FREE char *ref = NULL;
  struct new_file data = { .dev = NULL };
  int r;

  if (nc_path_find (c->opts->data_file, &path) == -1)
    return -1;
  ref = nc_ref_for_image (&path, c->path);
  if (ref == NULL)
    return -1;
  fvd->data_file = ref;
  r = create_data_file (&data, c, &path, fvd->size, &fvd->marked);
  if (r == 0) {
    r = create_image (c, fvd);
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
    .allow = opts->allow, .tls = opts->tls, .retry = opts->retry,
    .memory_fd = -1, .read_only = true,
  };
  const struct nc_zeroes_options zeroes = {
    .size = fvd->size, .block_bits = fvd->block_bits, .max = ZERO_RANGES_MAX,
    .progress = opts->progress, .opaque = opts->opaque,
  };

  fvd->zero = zero;
  return nc_zeroes_find (&chain_opts, &zeroes, zero);
}

/* Create the image with its backing already known. */
static int
create_over (struct creation *c, const struct nc_backing *b, bool takes_over)
{
  const struct nc_image_create_options *opts = c->opts;
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
  if (nc_uuid_generate (&c->uuid) == -1)
    return -1;
  if (!opts->zero_in_base || find_zeroes (opts, &fvd, &zero) == 0)
    r = opts->data_file ? create_with_data_file (c, &fvd)
      : create_image (c, &fvd);
  free (zero.v);
  return r;
}

int
nc_image_create (const struct nc_image_create_options *opts)
{
  __attribute__ ((__cleanup__ (nc_backing_free))) struct nc_backing b = { 0 };
  NC_PATH struct nc_path path = NC_PATH_NONE;
  struct creation c = { .opts = opts, .path = &path, .like = -1 };

  if (check_create_options (opts) == -1 ||
      nc_prefetch_policy_check (&opts->prefetch, opts->path) == -1 ||
      nc_path_find (opts->path, &path) == -1)
    return -1;
  if (opts->backing &&
      nc_backing_learn (&path, opts->path, opts->backing,
                        opts->backing_format, opts->tls, &b) == -1)
    return -1;
  return create_over (&c, &b, false);
}

/* Snapshots. */

/* Whether the file DEV has the owner and the mode of that of LAYER. */
static bool
is_as_private (const struct nc_dev *dev, const struct nc_layer *layer)
{
  struct stat st, old;

  return fstat (nc_dev_fd (dev), &st) == 0 &&
    fstat (nc_dev_fd (layer->dev), &old) == 0 &&
    (S_ISBLK (st.st_mode) ||
     (st.st_uid == old.st_uid && st.st_gid == old.st_gid &&
      (st.st_mode & 0777) == (old.st_mode & 0777)));
}

/* Whether the image OTHER is empty and over LAYER, as a snapshot makes it; it
 * and its name are durable then. */
static bool
is_interrupted (struct nc_layer *other, const struct nc_layer *layer)
{
  struct nc_image_info info = { 0 };
  const bool is = other->takes_over && other->size == layer->size &&
    other->backing.size == layer->size &&
    nc_uuid_equal (&other->backing.uuid, &layer->uuid) &&
    nc_layer_info (other, &info) == 0 && info.allocated == 0 &&
    !info.retired && is_as_private (other->dev, layer) &&
    other->dev->ops->sync (other->dev) == 0 &&
    nc_sync_directory (&other->dev->path) == 0;

  nc_image_info_free (&info);
  return is;
}

/* The image that an interrupted snapshot of LAYER has left at PATH, called
 * NAME.  Returns 1 and its UUID if there is one, 0 if PATH does not exist, -1
 * if something else is there. */
static int
find_interrupted (const struct nc_layer *layer, const struct nc_path *path,
                  const char *name, nc_uuid *uuid)
{
  struct nc_layer *other;
  struct nc_path file;
  struct nc_dev *dev;
  struct stat st;
  bool same;
  int fd;

  if (fstatat (path->dir, path->name, &st, AT_SYMLINK_NOFOLLOW) == -1 &&
      errno == ENOENT)
    return 0;
  fd = nc_path_follow (path, O_RDONLY | O_NONBLOCK | O_NOCTTY, &file);
  dev = fd == -1 ? NULL : nc_dev_open_path (fd, &file, name, NC_DEV_UNLOCKED);
  other = dev ? nc_layer_open (&nc_format_fvd, dev, name, &read_only) : NULL;
  if (other == NULL)
    return -1;
  same = is_interrupted (other, layer);
  *uuid = other->uuid;
  nc_layer_close (other);
  if (same)
    return 1;
  nc_error ("%s: exists, and is not an empty image over '%s' with the same "
            "owner and mode; give another name", name, layer->path);
  errno = EEXIST;
  return -1;
}

static int
put_on_top (struct nc_layer *layer, const struct nc_path *path,
            const char *name, nc_uuid *uuid)
{
  const struct nc_image_create_options opts = {
    .path = name, .has_size = true, .size = layer->size,
    .block_size = layer->block_size,
  };
  struct creation c = {
    .opts = &opts, .path = path, .like = nc_dev_fd (layer->dev),
  };
  __attribute__ ((__cleanup__ (nc_backing_free))) struct nc_backing b = {
    .present = true, .ref = nc_ref_for_image (&layer->dev->path, path),
    .format = strdup ("fvd"), .identity = strdup (""),
    .size = layer->size, .uuid = layer->uuid,
  };
  int r;

  if (b.ref == NULL || b.format == NULL || b.identity == NULL)
    return -1;
  r = find_interrupted (layer, path, name, uuid);
  if (r == 0) {
    r = create_over (&c, &b, true);
    *uuid = c.uuid;
  }
  return r == -1 ? -1 : 0;
}

int
nc_image_snapshot (const char *path, const char *new_path,
                   const struct nc_allow *allow)
{
  NC_PATH struct nc_path new_file = NC_PATH_NONE;
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_WRITE);
  struct nc_layer *layer;
  NC_FREE char *successor = NULL;
  nc_uuid uuid;
  int r = -1;

  if (dev == NULL)
    return -1;
  layer = nc_image_open_to_change (dev, path, allow, NULL);
  if (layer == NULL)
    return -1;
  /* Settle what a crash has left before anything is put on top of it. */
  if (nc_layer_begin (layer) == 0 && layer->format->finish (layer) == 0 &&
      nc_path_find (new_path, &new_file) == 0 &&
      put_on_top (layer, &new_file, new_path, &uuid) == 0) {
    successor = nc_ref_for_image (&new_file, &layer->dev->path);
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
  layer = nc_image_open_to_change (dev, path, allow, NULL);
  if (layer == NULL)
    return -1;
  r = nc_fvd_repair (layer, result->header_copies, result->clean, repaired,
                     opaque);
  nc_layer_close (layer);
  return r;
}
