/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Which layers there are: following the backings from the top image down,
 * under the operator's policy, and checking each against what the image
 * above it recorded.  What requests do with them is in request.c. */

#include <config.h>

#include "chain/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "chain/data-file.h"
#include "chain/owner-map.h"
#include "chain/ref.h"
#include "chain/succession.h"
#include "dev/dev.h"
#include "format/format.h"
#include "image/image.h"
#include "util/checked.h"
#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/unix-socket.h"

/* Layers while the chain is being put together, top first. */
struct build {
  const struct nc_chain_options *opts;
  struct nc_layer **layers;     /* NC_LAYERS_MAX */
  size_t n;
  bool base_used;
  bool resuming;                /* a server that died had this chain open */
};

/* Whether the memory that outlives a server has been used by one. */
static bool
is_used (int memory_fd)
{
  struct stat st;

  return memory_fd >= 0 && fstat (memory_fd, &st) == 0 && st.st_size > 0;
}

/* The device of a remote that is not to be touched: it has a size. */

static void
offline_close (struct nc_dev *dev)
{
  nc_dev_fini (dev);
  free (dev);
}

static int
offline_pread (struct nc_dev *dev, void *buf __attribute__ ((__unused__)),
               size_t count __attribute__ ((__unused__)),
               uint64_t offset __attribute__ ((__unused__)))
{
  nc_error ("%s: is not read here", dev->name);
  errno = EIO;
  return -1;
}

static int
offline_extents (struct nc_dev *dev __attribute__ ((__unused__)),
                 struct nc_extents *extents, uint64_t end,
                 uint64_t shift __attribute__ ((__unused__)))
{
  return nc_extents_append (extents, end - nc_extents_next (extents), 0);
}

static const struct nc_dev_ops offline_ops = {
  .close = offline_close,
  .pread = offline_pread,
  .extents = offline_extents,
};

static struct nc_dev *
open_offline (const char *ref, const struct nc_backing *backing)
{
  struct nc_dev *dev = calloc (1, sizeof *dev);

  if (dev == NULL || nc_dev_init (dev, &offline_ops, ref) == -1) {
    free (dev);
    return NULL;
  }
  dev->size = backing->size;
  dev->remote = true;
  dev->identity = strdup (backing->identity);
  if (dev->identity)
    return dev;
  nc_error ("%s: %m", ref);
  offline_close (dev);
  return NULL;
}

/* Opening a backing. */

/* Refuse the file FD, called PATH, if it is in the chain already.  Before it
 * is opened as a device: its lock would be in the way of our own. */
static int
refuse_cycle (const struct build *b, const char *path, int fd)
{
  struct stat st;
  dev_t dev;
  ino_t ino;

  if (fstat (fd, &st) == -1) {
    nc_error ("%s: %m", path);
    return -1;
  }
  for (size_t i = 0; i < b->n; ++i)
    if (nc_dev_file_id (b->layers[i]->dev, &dev, &ino) == 0 &&
        dev == st.st_dev && ino == st.st_ino) {
      nc_error ("%s: the chain comes back to this image, which is above it "
                "already; correct the backing of '%s'", path,
                b->layers[b->n - 1]->path);
      errno = ELOOP;
      return -1;
    }
  return 0;
}

/* The device of the file REF, found in the image ABOVE or given by the
 * operator.  *name is set to what to call it. */
static struct nc_dev *
open_file_ref (struct build *b, const struct nc_layer *above,
               const char *ref, bool from_operator, char **name)
{
  struct nc_path path;
  int fd = from_operator
    ? nc_path_open (ref, O_RDONLY | O_NONBLOCK | O_NOCTTY, &path)
    : nc_ref_open_file (ref, &above->dev->path, b->opts->allow, O_RDONLY,
                        &path);

  if (fd == -1)
    return NULL;
  *name = from_operator ? strdup (ref) : nc_path_text (&path);
  if (*name == NULL)
    nc_error ("%s: %m", ref);
  else if (refuse_cycle (b, *name, fd) == 0)
    return nc_dev_open_path (fd, &path, *name, 0);
  close (fd);
  nc_path_close (&path);
  return NULL;
}

/* The device of the remote REF. */
static struct nc_dev *
open_remote_ref (struct build *b, const struct nc_layer *above,
                 const char *ref, struct nc_socket_finder *finder)
{
  const struct nc_chain_options *opts = b->opts;

  /* Clients are waiting, and most of what they need may be local. */
  return b->resuming
    ? nc_dev_open_nbd_absent (ref, opts->retry, opts->tls, finder,
                              above->backing.size, above->backing.identity)
    : nc_dev_open_nbd (ref, opts->retry, opts->tls, finder);
}

/* The device that REF, found in the image ABOVE or given by the operator,
 * names.  *path is set to what to call it. */
static struct nc_dev *
open_ref (struct build *b, const struct nc_layer *above, const char *ref,
          bool from_operator, char **path)
{
  const struct nc_chain_options *opts = b->opts;
  __attribute__ ((__cleanup__ (nc_socket_finder_free)))
    struct nc_socket_finder finder = { 0 };
  enum nc_ref_kind kind;

  if (nc_ref_kind (ref, &kind) == -1) {
    nc_error ("%s: its backing cannot be used", above->path);
    return NULL;
  }
  if (kind == NC_REF_FILE)
    return open_file_ref (b, above, ref, from_operator, path);

  *path = strdup (ref);
  if (*path == NULL) {
    nc_error ("%s: %m", ref);
    return NULL;
  }
  if (kind == NC_REF_COMMAND && !from_operator) {
    nc_error ("%s: names a command as its backing, '%s'; a command is never "
              "taken from an image: give it with base= (\"nbdchain\": "
              "--base)", above->path, ref);
    errno = EPERM;
    return NULL;
  }
  if (kind == NC_REF_URI && !from_operator &&
      nc_ref_check_uri (ref, &above->dev->path, opts->allow, &finder) == -1)
    return NULL;
  if (strcmp (above->backing.format, "raw") != 0) {
    nc_error ("%s: its backing '%s' is of format %s; over NBD it can only "
              "be raw", above->path, ref, above->backing.format);
    errno = EINVAL;
    return NULL;
  }
  return opts->offline ? open_offline (ref, &above->backing)
    : open_remote_ref (b, above, ref, &finder);
}

/* Whether LAYER is what ABOVE recorded as its backing. */
static int
check_backing (const struct nc_layer *above, const struct nc_layer *layer)
{
  const struct nc_backing *b = &above->backing;
  char want[NC_UUID_TEXT], have[NC_UUID_TEXT];

  if (layer->size < b->size) {
    nc_error ("%s: has %" PRIu64 " bytes, but '%s' was made when it had %"
              PRIu64 "; put the whole image back", layer->path, layer->size,
              above->path, b->size);
    errno = EINVAL;
    return -1;
  }
  if (!nc_uuid_is_null (&b->uuid) && !nc_uuid_equal (&b->uuid, &layer->uuid)) {
    nc_uuid_format (&b->uuid, want);
    nc_uuid_format (&layer->uuid, have);
    nc_error ("%s: has the UUID %s, but '%s' was made over %s; this is a "
              "different image under the same name", layer->path, have,
              above->path, want);
    errno = EINVAL;
    return -1;
  }
  if (b->identity[0] && layer->dev->remote &&
      strcmp (b->identity, layer->dev->identity ? : "") != 0) {
    nc_error ("%s: calls itself '%s', but '%s' was made over '%s'; "
              "this is a different export; if it has the same content: "
              "nbdchain rebase --unsafe", layer->path,
              layer->dev->identity ? : "", above->path, b->identity);
    errno = EINVAL;
    return -1;
  }
  return 0;
}

static bool
is_same_file (const struct nc_dev *a, const struct nc_dev *b)
{
  dev_t dev_a, dev_b;
  ino_t ino_a, ino_b;

  return a && b && nc_dev_file_id (a, &dev_a, &ino_a) == 0 &&
    nc_dev_file_id (b, &dev_b, &ino_b) == 0 &&
    dev_a == dev_b && ino_a == ino_b;
}

/* A data file that is another layer would be written by two. */
static int
refuse_shared_data (const struct build *b, const struct nc_layer *layer)
{
  for (size_t i = 0; i < b->n; ++i) {
    const struct nc_layer *above = b->layers[i];

    if (is_same_file (layer->data_dev, above->dev) ||
        is_same_file (layer->data_dev, above->data_dev) ||
        is_same_file (layer->dev, above->data_dev)) {
      nc_error ("%s: shares a file with '%s': a data file belongs to one "
                "image", layer->path, above->path);
      errno = EINVAL;
      return -1;
    }
  }
  if (!is_same_file (layer->data_dev, layer->dev))
    return 0;
  nc_error ("%s: names itself as its data file", layer->path);
  errno = EINVAL;
  return -1;
}

/* Whether LAYER can be the next one of the chain. */
static int
check_next (const struct build *b, const struct nc_layer *layer)
{
  struct nc_layer *above = b->n > 0 ? b->layers[b->n - 1] : NULL;

  if (above && check_backing (above, layer) == -1)
    return -1;
  if (above && !b->opts->read_only &&
      nc_succession_check (above, layer) == -1)
    return -1;
  return refuse_shared_data (b, layer);
}

/* Have LAYER, below one that will be written, in storage.  If the process that
 * wrote it was killed, what it wrote is read, but may be in memory only; and
 * the flush of a guest, which has seen it, goes to the active layer alone. */
static int
settle (const struct build *b, const struct nc_layer *layer)
{
  if (b->n == 0 || b->opts->read_only || layer->was_closed)
    return 0;
  return nc_layer_sync_below (b->layers[0], layer);
}

static int
push (struct build *b, struct nc_layer *layer)
{
  if (check_next (b, layer) == -1 || settle (b, layer) == -1) {
    nc_layer_close (layer);
    return -1;
  }
  b->layers[b->n++] = layer;
  return 0;
}

static int
open_backing (struct build *b)
{
  struct nc_data_policy data = {
    .allow = b->opts->allow, .unlocked = b->opts->offline,
  };
  const struct nc_layer_options read_only = {
    .memory_fd = -1, .open_data = nc_data_file_open, .opaque = &data,
  };
  const struct nc_layer *above = b->layers[b->n - 1];
  const struct nc_backing *backing = &above->backing;
  const struct nc_format *format = nc_format_need (backing->format,
                                                   above->path);
  const char *ref = backing->ref;
  bool from_operator = false;
  NC_FREE char *path = NULL;
  struct nc_dev *dev;
  struct nc_layer *layer;

  if (format == NULL)
    return -1;
  if (b->n == NC_LAYERS_MAX) {
    nc_error ("%s: the chain has more than %d layers; commit or stream some "
              "of them", b->layers[0]->path, NC_LAYERS_MAX);
    errno = EINVAL;
    return -1;
  }
  /* The lowest layer is the one that has no backing by its format. */
  if (b->opts->base && (*ref == '\0' || format == &nc_format_raw)) {
    ref = b->opts->base;
    from_operator = b->base_used = true;
  }
  if (*ref == '\0') {
    nc_error ("%s: its backing is not named in the image but given each "
              "time: add base= (\"nbdchain\": --base)", above->path);
    errno = EINVAL;
    return -1;
  }
  dev = open_ref (b, above, ref, from_operator, &path);
  if (dev == NULL)
    return -1;
  layer = nc_layer_open (format, dev, path, &read_only);
  return layer ? push (b, layer) : -1;
}

/* The top image. */

/* Fill in INFO for the image behind FD, which stays open. */
static int
inspect_fd (int fd, const char *path, struct nc_image_info *info)
{
  static const struct nc_layer_options read_only = { .memory_fd = -1 };
  const int own_fd = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  struct nc_dev *dev = own_fd == -1 ? NULL
    : nc_dev_open_fd (own_fd, path, NC_DEV_UNLOCKED);
  struct nc_layer *layer = dev == NULL ? NULL
    : nc_layer_open (&nc_format_fvd, dev, path, &read_only);
  int r;

  if (layer == NULL)
    return -1;
  r = nc_layer_info (layer, info);
  /* That it was retired must be durable before the other is written. */
  if (r == 0 && info->retired)
    r = dev->ops->sync (dev);
  nc_layer_close (layer);
  return r;
}

/* The top image while it is being found. */
struct top {
  int fd;
  struct nc_path path;
  char *name;                   /* for messages */
};

static void
close_top (struct top *top)
{
  if (top->fd >= 0)
    close (top->fd);
  nc_path_close (&top->path);
  free (top->name);
}
#define TOP_CLEANUP __attribute__ ((__cleanup__ (close_top)))

/* What a retired image says, which its author may have made up: so its
 * successor has to say the same, and to be of the same owner, for a UUID can be
 * copied. */
struct succession {
  char *retired;                /* the image, for messages; NULL: there is none
                                   yet */
  uid_t owner;
  bool on_device;
  char from[NC_UUID_TEXT], to[NC_UUID_TEXT];
};

static int
check_successor (const struct succession *s, const struct top *top,
                 const struct nc_image_info *info)
{
  struct stat st;

  errno = EINVAL;
  if (strcmp (s->to, info->uuid) != 0)
    nc_error ("%s: has the UUID %s, but the image that took over has %s",
              top->name, info->uuid, s->to);
  else if (strcmp (s->from, info->predecessor_uuid) != 0)
    nc_error ("%s: '%s' says that this image took over, but it does not say so "
              "itself: it took over from %s; if it is meant, open it by its "
              "own name", top->name, s->retired,
              *info->predecessor_uuid ? info->predecessor_uuid : "none");
  else if (fstat (top->fd, &st) == -1)
    nc_error ("%s: %m", top->name);
  else if (!s->on_device && S_ISREG (st.st_mode) && st.st_uid != s->owner)
    nc_error ("%s: belongs to user %u, and '%s', which says that this image "
              "took over, to user %u; if it is meant, open it by its own name",
              top->name, (unsigned) st.st_uid, s->retired,
              (unsigned) s->owner);
  else
    return 0;
  return -1;
}

/* TOP was retired, as INFO says. */
static int
note_retired (struct succession *s, const struct top *top,
              const struct nc_image_info *info)
{
  struct stat st;

  free (s->retired);
  s->retired = strdup (top->name);
  if (s->retired == NULL || fstat (top->fd, &st) == -1) {
    nc_error ("%s: %m", top->name);
    return -1;
  }
  s->owner = st.st_uid;
  s->on_device = !S_ISREG (st.st_mode);
  memcpy (s->from, info->uuid, NC_UUID_TEXT);
  memcpy (s->to, info->successor_uuid, NC_UUID_TEXT);
  return 0;
}

/* If the image TOP was retired, replace it by its successor, which is yet to be
 * checked, and tell S of it.  Returns 1 if so, 0 if not, -1 on error. */
static int
follow_one (const struct nc_chain_options *opts, struct top *top,
            struct succession *s)
{
  __attribute__ ((__cleanup__ (nc_image_info_free)))
    struct nc_image_info info = { 0 };
  TOP_CLEANUP struct top next = { .fd = -1, .path = NC_PATH_NONE };
  struct top retired;
  int r;

  r = inspect_fd (top->fd, top->name, &info);
  if (r == 0 && s->retired)
    r = check_successor (s, top, &info);
  if (r == -1 || !info.retired)
    return r;
  if (note_retired (s, top, &info) == -1)
    return -1;
  next.fd = nc_ref_open_file (info.successor, &top->path, opts->allow,
                              opts->read_only ? O_RDONLY : O_RDWR,
                              &next.path);
  next.name = next.fd == -1 ? NULL : nc_path_text (&next.path);
  if (next.name == NULL)
    return -1;
  nc_notice ("%s: was retired, going on with %s, which took over", top->name,
             next.name);
  retired = *top;
  *top = next;
  next = retired;
  return 1;
}

/* Open the image to be served; TOP can be closed in any case. */
static int
find_top (const struct nc_chain_options *opts, bool follow, struct top *top)
{
  struct succession s = { .retired = NULL };
  int r = 0;

  *top = (struct top) { .path = NC_PATH_NONE };
  top->fd = nc_path_open (opts->image, (opts->read_only ? O_RDONLY : O_RDWR) |
                          O_NONBLOCK | O_NOCTTY, &top->path);
  if (top->fd == -1)
    return -1;
  /* A name that is not short anyway is shown as what it stands for. */
  top->name = opts->image[0] == '/' && top->path.real
    ? nc_path_text (&top->path) : strdup (opts->image);
  if (top->name == NULL) {
    nc_error ("%s: %m", opts->image);
    return -1;
  }
  for (int n = 0; follow && (r = follow_one (opts, top, &s)) == 1; ++n)
    if (n == NC_LAYERS_MAX) {
      nc_error ("%s: following the images that took over does not end",
                opts->image);
      errno = ELOOP;
      r = -1;
      break;
    }
  free (s.retired);
  return r;
}

int
nc_chain_inspect_top (const struct nc_chain_options *opts,
                      struct nc_image_info *info)
{
  TOP_CLEANUP struct top top = { .fd = -1, .path = NC_PATH_NONE };

  memset (info, 0, sizeof *info);
  return find_top (opts, opts->follow, &top) == -1 ? -1
    : inspect_fd (top.fd, top.name, info);
}

/* A remote as the top: a raw disk, since only a file can be an image. */
static struct nc_dev *
open_top_remote (const struct nc_chain_options *opts)
{
  if (opts->format && strcmp (opts->format, "raw") != 0) {
    nc_error ("%s: is served over NBD, so its format can only be raw, not "
              "'%s'", opts->image, opts->format);
    errno = EINVAL;
    return NULL;
  }
  if (!opts->read_only) {
    nc_error ("%s: is served over NBD, and is not written: put an image on "
              "top of it (nbdchain create -b)", opts->image);
    errno = EROFS;
    return NULL;
  }
  return nc_dev_open_nbd (opts->image, opts->retry, opts->tls, NULL);
}

static int
open_top (struct build *b)
{
  const struct nc_chain_options *opts = b->opts;
  struct nc_data_policy data = {
    .allow = opts->allow, .file = opts->data_file, .unlocked = opts->offline,
  };
  const struct nc_layer_options layer_opts = {
    .writable = !opts->read_only, .wait = true,
    .memory_fd = opts->memory_fd, .enlarge = opts->enlarge,
    .open_data = nc_data_file_open, .opaque = &data,
  };
  const struct nc_format *format =
    nc_format_need (opts->format ? opts->format : "fvd", opts->image);
  TOP_CLEANUP struct top top = { .fd = -1, .path = NC_PATH_NONE };
  enum nc_ref_kind kind = NC_REF_FILE;
  struct nc_layer *layer;
  struct nc_dev *dev;
  int fd;

  if (format == NULL ||
      (opts->is_ref && nc_ref_kind (opts->image, &kind) == -1))
    return -1;
  if (kind != NC_REF_FILE) {
    dev = open_top_remote (opts);
    layer = dev ? nc_layer_open (&nc_format_raw, dev, opts->image,
                                 &layer_opts) : NULL;
    return layer ? push (b, layer) : -1;
  }
  if (find_top (opts, opts->follow && format == &nc_format_fvd, &top) == -1)
    return -1;
  fd = top.fd;
  top.fd = -1;
  dev = nc_dev_open_path (fd, &top.path, top.name,
                          (opts->read_only ? 0 : NC_DEV_WRITE) |
                          (opts->offline ? NC_DEV_UNLOCKED : 0));
  if (dev == NULL)
    return -1;
  layer = nc_layer_open (format, dev, top.name, &layer_opts);
  if (layer && nc_data_file_check_used (&data, top.name) == -1) {
    nc_layer_close (layer);
    return -1;
  }
  return layer ? push (b, layer) : -1;
}

/* Names: the base name of a path, or a reference; made unique. */

static bool
name_is_taken (const struct build *b, size_t i, const char *name)
{
  for (size_t k = 0; k < i; ++k)
    if (strcmp (b->layers[k]->name, name) == 0)
      return true;
  return i > 0 && strcmp (name, "disk") == 0;   /* the disk's own export */
}

static int
name_layers (struct build *b)
{
  for (size_t i = 0; i < b->n; ++i) {
    struct nc_layer *layer = b->layers[i];
    const char *slash = strrchr (layer->path, '/');
    const char *base = slash && !layer->dev->remote ? slash + 1 : layer->path;
    int r = asprintf (&layer->name, "%s", base);

    for (int n = 2; r != -1 && name_is_taken (b, i, layer->name); ++n) {
      free (layer->name);
      r = asprintf (&layer->name, "%s.%d", base, n);
    }
    if (r == -1) {
      layer->name = NULL;
      nc_error ("%s: %m", layer->path);
      return -1;
    }
  }
  return 0;
}

static int
open_layers (struct build *b)
{
  if (open_top (b) == -1)
    return -1;
  while (b->layers[b->n - 1]->backing.present)
    if (open_backing (b) == -1)
      return -1;
  /* Only beside the top anything is looked up from now on. */
  for (size_t i = 1; i < b->n; ++i)
    nc_path_let_go (&b->layers[i]->dev->path);
  if (b->opts->base && !b->base_used) {
    nc_error ("base=%s: '%s' has no backing that this could stand for",
              b->opts->base, b->layers[b->n - 1]->path);
    errno = EINVAL;
    return -1;
  }
  return name_layers (b);
}

struct nc_chain *
nc_chain_open (const struct nc_chain_options *opts)
{
  struct nc_chain *chain = calloc (1, sizeof *chain);
  struct build b = {
    .opts = opts, .layers = calloc (NC_LAYERS_MAX, sizeof *b.layers),
    .resuming = is_used (opts->memory_fd),
  };

  if (chain == NULL || b.layers == NULL) {
    nc_error ("%s: %m", opts->image);
    goto fail;
  }
  if (open_layers (&b) == -1)
    goto fail;
  /* Only now that nothing stands against it. */
  if (!opts->read_only && nc_layer_begin (b.layers[0]) == -1)
    goto fail;
  chain->size = b.layers[0]->size;
  chain->writable = !opts->read_only;
  chain->retry = opts->retry;
  if (nc_views_init (&chain->views) == -1)
    goto fail;
  pthread_mutex_init (&chain->stop_lock, NULL);
  pthread_mutex_init (&chain->pivot_lock, NULL);
  nc_claims_init (&chain->claims);
  if (nc_views_publish (&chain->views, b.layers, b.n, chain->writable) == -1)
    goto fail_layers;
  return chain;

 fail_layers:
  nc_claims_fini (&chain->claims);
  pthread_mutex_destroy (&chain->stop_lock);
  pthread_mutex_destroy (&chain->pivot_lock);
  nc_views_fini (&chain->views);
 fail:
  for (size_t i = 0; i < b.n; ++i)
    nc_layer_close (b.layers[i]);
  free (b.layers);
  free (chain);
  return NULL;
}

int
nc_chain_start (struct nc_chain *chain)
{
  const struct nc_view *view = chain->views.current;

  for (size_t i = 0; i < view->n; ++i) {
    struct nc_dev *dev = view->layers[i]->dev;

    if (dev->ops->start && dev->ops->start (dev) == -1)
      return -1;
  }
  return 0;
}

static void
stop_layer (struct nc_layer *layer)
{
  if (layer->dev->ops->stop)
    layer->dev->ops->stop (layer->dev);
}

/* Close the active layer in order; or, if there is no room for that, see that
 * all of it is durable.  Returns 0 or an errno. */
static int
finish (struct nc_chain *chain)
{
  struct nc_layer *active;
  int err;

  if (!chain->writable)
    return 0;
  /* Who pivots has left the view, but may still need what it knows. */
  NC_LOCKED (&chain->pivot_lock);
  active = chain->views.current->layers[0];
  if (active->format->finish (active) == 0)
    return 0;
  err = errno;
  chain->is_durable = active->format->flush (active) == 0;
  if (chain->is_durable)
    nc_error ("%s: not closed in order: %s; all of it is durable, and the "
              "next start goes on from there", active->path, strerror (err));
  return err;
}

int
nc_chain_stop (struct nc_chain *chain)
{
  NC_LOCKED (&chain->stop_lock);
  if (!chain->stopped) {
    chain->stopped = true;
    chain->views.stopping = true;
    nc_views_each_layer (&chain->views, stop_layer);
    nc_views_stop (&chain->views);
    chain->stop_errno = finish (chain);
  }
  errno = chain->stop_errno;
  return errno ? -1 : 0;
}

bool
nc_chain_is_durable (const struct nc_chain *chain)
{
  return chain->is_durable;
}

void
nc_chain_close (struct nc_chain *chain)
{
  if (chain == NULL)
    return;
  nc_views_fini (&chain->views);
  nc_claims_fini (&chain->claims);
  pthread_mutex_destroy (&chain->stop_lock);
  pthread_mutex_destroy (&chain->pivot_lock);
  free (chain);
}

uint64_t
nc_chain_size (const struct nc_chain *chain)
{
  return chain->size;
}

bool
nc_chain_is_writable (const struct nc_chain *chain)
{
  return chain->writable;
}

bool
nc_chain_has_remote (struct nc_chain *chain)
{
  struct nc_view *view = nc_view_pin (&chain->views);
  const bool has = nc_view_has_remote (view);

  nc_view_unpin (&chain->views, view);
  return has;
}

size_t
nc_chain_n_layers (struct nc_chain *chain)
{
  struct nc_view *view = nc_view_pin (&chain->views);
  const size_t n = view->n;

  nc_view_unpin (&chain->views, view);
  return n;
}

/* Layer I, with a view that has it pinned in *PIN; NULL with errno ENOENT if
 * a pivot has left fewer, not reported. */
static struct nc_layer *
pin_layer (struct nc_chain *chain, size_t i, struct nc_view **pin)
{
  *pin = nc_view_pin (&chain->views);
  if (i < (*pin)->n)
    return (*pin)->layers[i];
  nc_view_unpin (&chain->views, *pin);
  errno = ENOENT;
  return NULL;
}

const char *
nc_chain_layer_name (struct nc_chain *chain, size_t i)
{
  struct nc_view *pin;
  const struct nc_layer *layer = pin_layer (chain, i, &pin);

  if (layer == NULL)
    return NULL;
  nc_view_unpin (&chain->views, pin);
  return layer->name;           /* there until the chain is closed */
}

const struct nc_path *
nc_chain_active_file (struct nc_chain *chain, char uuid[37])
{
  struct nc_view *pin = nc_view_pin (&chain->views);
  const struct nc_layer *active = pin->layers[0];

  nc_uuid_format (&active->uuid, uuid);
  nc_view_unpin (&chain->views, pin);
  /* There until the chain is closed. */
  return active->dev->has_holes && active->dev->path.dir >= 0
    ? &active->dev->path : NULL;
}

char *
nc_chain_backing_ref (struct nc_chain *chain, size_t i)
{
  struct nc_view *pin;
  struct nc_layer *layer = pin_layer (chain, i, &pin);
  char *ref = NULL;

  if (layer == NULL)
    return NULL;
  {
    NC_LOCKED (&chain->pivot_lock);
    errno = ENOENT;
    if (layer->backing.present && *layer->backing.ref) {
      ref = strdup (layer->backing.ref);
      if (ref == NULL)
        nc_error ("%s: %m", layer->path);
    }
  }
  nc_view_unpin (&chain->views, pin);
  return ref;
}

int
nc_chain_layer_info (struct nc_chain *chain, size_t i,
                     struct nc_image_info *info)
{
  struct nc_view *pin;
  struct nc_layer *layer = pin_layer (chain, i, &pin);
  int r;

  if (layer == NULL)
    return -1;
  {
    NC_LOCKED (&chain->pivot_lock);
    r = nc_layer_info (layer, info);
  }
  nc_view_unpin (&chain->views, pin);
  return r;
}

static int
look_at_layer (const struct nc_view *view, size_t i,
               struct nc_chain_layer *info)
{
  struct nc_layer *layer = view->layers[i];

  *info = (struct nc_chain_layer) {
    .name = layer->name, .path = layer->path, .format = layer->format->name,
    .backing = i + 1 < view->n ? view->layers[i + 1]->path : NULL,
    .depth = i, .n_below = view->n - 1 - i,
    .remote = layer->dev->remote, .writable = i == 0 && view->writable,
    .size = layer->size, .block_size = layer->block_size,
    .storage = nc_dev_storage (layer->dev) +
      (layer->data_dev ? nc_dev_storage (layer->data_dev) : 0),
  };
  nc_uuid_format (&layer->uuid, info->uuid);
  nc_dev_file_id (layer->dev, &info->st_dev, &info->st_ino);
  return layer->format->allocated (layer, &info->allocated);
}

int
nc_chain_each_layer (struct nc_chain *chain, nc_chain_layer_fn fn,
                     void *opaque)
{
  struct nc_view *view = nc_view_enter (&chain->views, NC_VIEW_READ);
  int r = 0, err;

  if (view == NULL)
    return -1;
  for (size_t i = 0; r == 0 && i < view->n; ++i) {
    struct nc_chain_layer info;

    r = look_at_layer (view, i, &info);
    if (r == 0)
      r = fn (opaque, &info);
  }
  err = errno;
  nc_view_leave (&chain->views, view, NC_VIEW_READ);
  errno = err;
  return r;
}

/* Walking over what a layer holds. */

struct holding {
  struct nc_layer *layer;
  nc_holding_fn fn;
  void *opaque;
};

#define HOLDING_EXTENTS 1024    /* known at a time */

/* The range is allocated in the layer: see where it is zero. */
static int
walk_allocated (void *opaque, uint64_t offset, uint64_t count)
{
  struct holding *h = opaque;
  const uint64_t end = offset + count;
  struct nc_extents extents;
  int r = 0;

  while (r == 0 && offset < end) {
    nc_extents_init (&extents, offset, end - offset);
    extents.limit = HOLDING_EXTENTS;
    r = h->layer->format->extents (h->layer, &extents, end);
    if (r == -1 && errno == ENOTCONN)
      r = nc_extents_append (&extents, end - nc_extents_next (&extents), 0);
    for (size_t i = 0; r == 0 && i < extents.n; ++i)
      r = h->fn (h->opaque, extents.v[i].offset, extents.v[i].count,
                 extents.v[i].type & NC_EXTENT_ZERO);
    offset = nc_extents_next (&extents);
    nc_extents_free (&extents);
  }
  return r;
}

int
nc_chain_layer_walk (struct nc_chain *chain, size_t i, nc_holding_fn fn,
                     void *opaque)
{
  struct nc_view *pin;
  struct nc_layer *layer = pin_layer (chain, i, &pin);
  struct holding h = { layer, fn, opaque };
  int r = 0;

  if (layer == NULL)
    return -1;
  if (layer->size > 0)
    r = layer->format->walk (layer, 0, layer->size, walk_allocated, &h);
  nc_view_unpin (&chain->views, pin);
  return r;
}

static bool
is_same (const struct nc_layer *x, const struct nc_layer *y)
{
  enum nc_ref_kind kind;
  dev_t dev, dev2;
  ino_t ino, ino2;

  if (x->format != y->format)
    return false;
  if (nc_dev_file_id (x->dev, &dev, &ino) == 0)
    return nc_dev_file_id (y->dev, &dev2, &ino2) == 0 && dev == dev2 &&
      ino == ino2;
  /* Of two commands nobody knows whether they serve the same. */
  return x->dev->remote && y->dev->remote && strcmp (x->path, y->path) == 0 &&
    nc_ref_kind (x->path, &kind) == 0 && kind == NC_REF_URI;
}

bool
nc_chain_is_same_layer (struct nc_chain *a, size_t i, struct nc_chain *b,
                        size_t k)
{
  struct nc_view *view_a = nc_view_pin (&a->views);
  struct nc_view *view_b = nc_view_pin (&b->views);
  const bool same = i < view_a->n && k < view_b->n &&
    is_same (view_a->layers[i], view_b->layers[k]);

  nc_view_unpin (&a->views, view_a);
  nc_view_unpin (&b->views, view_b);
  return same;
}

static bool
is_file (const struct nc_dev *dev, const struct stat *st)
{
  dev_t st_dev;
  ino_t st_ino;

  return dev && nc_dev_file_id (dev, &st_dev, &st_ino) == 0 &&
    st_dev == st->st_dev && st_ino == st->st_ino;
}

bool
nc_chain_has_file (struct nc_chain *chain, const struct nc_path *path)
{
  struct nc_view *pin;
  struct stat st;
  bool has = false;

  if (fstatat (path->dir, path->name, &st, 0) == -1)
    return false;
  pin = nc_view_pin (&chain->views);
  for (size_t i = 0; !has && i < pin->n; i++)
    has = is_file (pin->layers[i]->dev, &st) ||
      is_file (pin->layers[i]->data_dev, &st);
  nc_view_unpin (&chain->views, pin);
  return has;
}

void
nc_chain_stats (struct nc_chain *chain, struct nc_chain_stats *stats)
{
  struct nc_view *view = nc_view_pin (&chain->views);

  *stats = (struct nc_chain_stats) {
    .waits = chain->waits,
    .refused_waits = chain->refused_waits,
  };
  for (size_t i = 0; i <= view->n; ++i) {
    struct nc_map *map = view->map[i];

    stats->map_bytes += map ? nc_map_memory (map) : 0;
  }
  nc_view_unpin (&chain->views, view);
}

/* Exports. */

struct nc_export *
nc_export_open (struct nc_chain *chain, const char *name,
                unsigned max_waiting)
{
  struct nc_view *view = nc_view_pin (&chain->views);
  struct nc_layer *layer = view->layers[0];
  struct nc_export *export;
  static struct nc_repeat unknown;      /* names that clients ask for */
  char times[NC_REPEAT_TEXT];
  bool disk = *name == '\0' || strcmp (name, "disk") == 0;

  for (size_t i = 1; !disk && i < view->n; ++i)
    if (strcmp (view->layers[i]->name, name) == 0)
      layer = view->layers[i];
  if (!disk && layer == view->layers[0]) {
    if (nc_repeat_report (&unknown, 1, times))
      nc_error ("export '%s' does not exist; there are \"\" (the disk) and "
                "the layers below it by name%s", name, times);
    errno = ENOENT;
    goto fail;
  }

  export = calloc (1, sizeof *export);
  if (export == NULL) {
    nc_error ("export '%s': %m", name);
    goto fail;
  }
  export->chain = chain;
  if (!disk) {
    export->layer = layer;
    export->view = view;
  }
  export->size = layer->size;
  export->block_size = layer->block_size;
  export->writable = disk && chain->writable;
  nc_slots_init (&export->slots, max_waiting);
  nc_uuid_format (&layer->uuid, export->uuid);
  if (disk)
    nc_view_unpin (&chain->views, view);
  return export;

 fail:
  nc_view_unpin (&chain->views, view);
  return NULL;
}

void
nc_export_close (struct nc_export *export)
{
  if (export == NULL)
    return;
  if (export->view)
    nc_view_unpin (&export->chain->views, export->view);
  nc_slots_fini (&export->slots);
  free (export);
}

uint64_t
nc_export_size (const struct nc_export *export)
{
  return export->size;
}

bool
nc_export_is_writable (const struct nc_export *export)
{
  return export->writable;
}

void
nc_export_set_background (struct nc_export *export)
{
  export->background = true;
}

unsigned
nc_chain_cold_reads (struct nc_chain *chain)
{
  return chain->cold_reads;
}

struct nc_guest *
nc_chain_guest (struct nc_chain *chain)
{
  return &chain->guest;
}

uint32_t
nc_export_block_size (const struct nc_export *export)
{
  return export->block_size;
}

struct nc_slots *
nc_export_slots (struct nc_export *export)
{
  return &export->slots;
}

const char *
nc_export_uuid (const struct nc_export *export)
{
  return export->uuid;
}
