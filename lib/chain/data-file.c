/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Opens data files.  All is decided by descriptors, of the image and of the
 * file that would be written, before any lock of that is taken. */

#include <config.h>

#include "chain/data-file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain/ref.h"
#include "dev/dev.h"
#include "format/layer.h"
#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"

/* A data file that is being opened. */
struct candidate {
  const struct nc_layer *layer; /* whose */
  int fd;
  const char *name;
  bool from_operator;
  char mark[NC_MARK_LENGTH + 1];        /* "": none */
  char uuid[NC_MARK_LENGTH + 1];        /* of the image, which it should be */
};

static bool
is_marked (const struct candidate *c)
{
  return strcmp (c->mark, c->uuid) == 0;
}

/* Refuse, for REASON, and say how the operator can have it all the same. */
__attribute__ ((__format__ (printf, 2, 3)))
static int
refuse (const struct candidate *c, const char *fmt, ...)
{
  NC_FREE char *reason = NULL;
  NC_FREE char *quoted = nc_text_quote (c->name);
  va_list args;

  va_start (args, fmt);
  if (vasprintf (&reason, fmt, args) == -1)
    reason = NULL;
  va_end (args);
  nc_error ("%s: %s; if this file is to be used, name it: data-file=%s "
            "(\"nbdchain\": --data-file %s)", c->name,
            reason ? : strerror (ENOMEM), quoted ? : "FILE",
            quoted ? : "FILE");
  errno = EPERM;
  return -1;
}

/* Whether it is the file of this image, as far as its mark says. */
static int
check_mark (const struct candidate *c)
{
  if (c->mark[0] && !is_marked (c)) {
    nc_error ("%s: is marked as the data file of another image (extended "
              "attribute user.nbdchain.image: '%s'; '%s' is %s); put the "
              "right file there; if it is the right one: setfattr -n "
              "user.nbdchain.image -v %s", c->name, c->mark, c->layer->path,
              c->uuid, c->uuid);
    errno = EINVAL;
    return -1;
  }
  if (c->layer->data_marked && !is_marked (c) && !c->from_operator)
    return refuse (c, "is not marked as the data file of '%s' (extended "
                   "attribute user.nbdchain.image: none), which had a mark; "
                   "put the right file there, or mark this one, if it was "
                   "copied without its attributes: setfattr -n "
                   "user.nbdchain.image -v %s", c->layer->path, c->uuid);
  return 0;
}

/* Whether it may be written because the image names it. */
static int
check_right (const struct candidate *c)
{
  const char *image = c->layer->path;
  struct stat st, image_st;

  if (fstat (c->fd, &st) == -1 ||
      fstat (nc_dev_fd (c->layer->dev), &image_st) == -1) {
    nc_error ("%s: %m", c->name);
    return -1;
  }
  if (!S_ISREG (st.st_mode))
    return refuse (c, "is a device, and is not written because '%s' names it",
                   image);
  if (!is_marked (c))
    return refuse (c, "carries no mark of '%s' (extended attribute "
                   "user.nbdchain.image), and is not written because that "
                   "image names it", image);
  if (!S_ISREG (image_st.st_mode))
    return refuse (c, "is not written because '%s' names it, which is on a "
                   "device: its owner may not be who made the image", image);
  if (st.st_uid != image_st.st_uid)
    return refuse (c, "belongs to user %u, and '%s' to user %u: it is not "
                   "written because that image names it",
                   (unsigned) st.st_uid, image, (unsigned) image_st.st_uid);
  return 0;
}

static int
check (struct candidate *c)
{
  nc_uuid_format (&c->layer->uuid, c->uuid);
  nc_file_get_mark (c->fd, c->mark);
  if (check_mark (c) == -1)
    return -1;
  return c->layer->writable && !c->from_operator ? check_right (c) : 0;
}

struct nc_dev *
nc_data_file_open (void *opaque, const struct nc_layer *layer, const char *ref)
{
  struct nc_data_policy *policy = opaque;
  const int mode = layer->writable ? O_RDWR : O_RDONLY;
  struct candidate c = { .layer = layer, .from_operator = policy->file };
  NC_FREE char *name = NULL;
  struct nc_path path;

  policy->used = true;
  c.fd = policy->file
    ? nc_path_open (policy->file, mode | O_NONBLOCK | O_NOCTTY, &path)
    : nc_ref_open_file (ref, &layer->dev->path, policy->allow, mode, &path);
  if (c.fd == -1)
    return NULL;
  c.name = name = policy->file ? strdup (policy->file) : nc_path_text (&path);
  if (name == NULL)
    nc_error ("%s: %m", ref);
  else if (check (&c) == 0)
    return nc_dev_open_path (c.fd, &path, name,
                             (layer->writable ? NC_DEV_WRITE : 0) |
                             (policy->unlocked ? NC_DEV_UNLOCKED : 0));
  close (c.fd);
  nc_path_close (&path);
  return NULL;
}

int
nc_data_file_check_used (const struct nc_data_policy *policy, const char *path)
{
  if (policy->file == NULL || policy->used)
    return 0;
  nc_error ("data-file=%s: '%s' has no data file that this could stand for",
            policy->file, path);
  errno = EINVAL;
  return -1;
}
