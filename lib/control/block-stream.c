/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* block-stream: QEMU's arguments, in its words, made into those of a stream
 * (job/stream.h).  What is wrong with them is refused before there is a job.
 *
 * QEMU streams into any node; here it is always the active layer.  It puts a
 * filter above that while it works, which filter-node-name names; there is
 * none here. */

#include <config.h>

#include "control/commands.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "chain/chain.h"
#include "control/command.h"
#include "job/job.h"
#include "job/stream.h"
#include "util/scope.h"

/* In the order of enum nc_on_error, and QEMU's default for a device. */
static const char *const on_error_words[] = {
  "report", "ignore", "enospc", "stop", "auto", NULL
};

const struct nc_arg nc_block_stream_args[] = {
  { .name = "device", .type = NC_ARG_STRING },
  { .name = "job-id", .type = NC_ARG_STRING, .optional = true },
  { .name = "base", .type = NC_ARG_STRING, .optional = true },
  { .name = "base-node", .type = NC_ARG_STRING, .optional = true },
  { .name = "backing-file", .type = NC_ARG_STRING, .optional = true },
  { .name = "bottom", .type = NC_ARG_STRING, .optional = true },
  { .name = "speed", .type = NC_ARG_INTEGER, .optional = true,
    .max = INT64_MAX },
  { .name = "on-error", .type = NC_ARG_WORD, .optional = true,
    .words = on_error_words },
  { .name = "filter-node-name", .type = NC_ARG_STRING, .optional = true },
  { .name = "auto-finalize", .type = NC_ARG_BOOLEAN, .optional = true },
  { .name = "auto-dismiss", .type = NC_ARG_BOOLEAN, .optional = true },
  { 0 }
};

#define NAMES_TEXT 256          /* a list of layers, with its final NUL */

/* What was asked for; strings are those of the command. */
struct request {
  struct nc_chain *chain;
  const char *device, *id, *base, *base_node, *backing_file, *bottom;

  bool base_is_file;            /* and these are its: */
  dev_t st_dev;
  ino_t st_ino;
  const char *same_file;        /* name of the layer below the active one that
                                   has that file; NULL: none */

  const char *active;           /* name of the active layer */
  char names[NAMES_TEXT];       /* of those that could be meant */
  bool is_full;                 /* they are not all of them */
  const char *down_to;          /* found: name of a layer; NULL: none */
  bool found;
};

static const char *
text (json_t *args, const char *name)
{
  return json_string_value (json_object_get (args, name));
}

static int __attribute__ ((__format__ (printf, 2, 3)))
refuse (struct nc_command_error *error, const char *fmt, ...)
{
  va_list args;

  error->class = NC_ERROR_GENERIC;
  va_start (args, fmt);
  vsnprintf (error->desc, sizeof error->desc, fmt, args);
  va_end (args);
  return -1;
}

static int
check_pairs (const struct request *r, struct nc_command_error *error)
{
  if (r->base && r->base_node)
    return refuse (error, "'base' and 'base-node' exclude each other");
  if (r->base && r->bottom)
    return refuse (error, "'base' and 'bottom' exclude each other");
  if (r->base_node && r->bottom)
    return refuse (error, "'base-node' and 'bottom' exclude each other");
  if (r->backing_file && !r->base && !r->base_node && !r->bottom)
    return refuse (error, "'backing-file' says what to call the layer that "
                   "stays as the backing: it needs 'base', 'base-node' or "
                   "'bottom'");
  return 0;
}

/* From the first that does not fit on there is "...". */
static void
add_name (struct request *r, const char *name)
{
  static const char rest[] = "...";
  const size_t len = strlen (r->names), room = sizeof r->names - len;
  const char *comma = len ? ", " : "";

  if (r->is_full)
    return;
  r->is_full = strlen (name) + strlen (", , ") + sizeof rest > room;
  snprintf (r->names + len, room, "%s%s", comma, r->is_full ? rest : name);
}

/* As nc_dev_file_id has it.  The path is only looked at, not opened. */
static void
look_at_base (struct request *r)
{
  struct stat st;

  if (r->base == NULL || stat (r->base, &st) == -1)
    return;
  r->base_is_file = true;
  r->st_dev = S_ISBLK (st.st_mode) ? 0 : st.st_dev;
  r->st_ino = S_ISBLK (st.st_mode) ? st.st_rdev : st.st_ino;
}

/* Whether LAYER is the one to stop above; the one below it, for "bottom". */
static int
look_at_layer (void *opaque, const struct nc_chain_layer *layer)
{
  struct request *r = opaque;
  const char *name = r->base_node ? r->base_node : r->bottom;

  if (r->found && r->bottom && r->down_to == NULL)
    r->down_to = layer->name;
  if (layer->depth == 0)
    r->active = layer->name;
  if (layer->depth > 0 || r->bottom)
    add_name (r, layer->name);
  if (r->found || (layer->depth == 0 && !r->bottom))
    return 0;
  if (r->base_is_file && !layer->remote && layer->st_dev == r->st_dev &&
      layer->st_ino == r->st_ino)
    r->same_file = layer->name;
  if (r->base ? strcmp (layer->path, r->base) == 0
      : name && strcmp (layer->name, name) == 0) {
    r->found = true;
    if (!r->bottom)
      r->down_to = layer->name;
  }
  return 0;
}

/* "base" as an image records it, which is how QEMU takes it. */
static int
find_recorded (struct request *r, struct nc_command_error *error)
{
  const size_t n = nc_chain_n_layers (r->chain);

  for (size_t i = 0; i + 1 < n; ++i) {
    NC_FREE char *ref = nc_chain_backing_ref (r->chain, i);

    if (ref == NULL || strcmp (ref, r->base) != 0)
      continue;
    if (r->found)
      return refuse (error, "'%.100s' is what several images call their "
                     "backing: give the path of its file as 'base', or "
                     "'base-node'; there are: %s", r->base, r->names);
    r->down_to = nc_chain_layer_name (r->chain, i + 1);
    r->found = r->down_to != NULL;
  }
  return 0;
}

static int
find_layers (struct request *r, struct nc_command_error *error)
{
  const char *name = r->base ? r->base : r->base_node ? r->base_node
    : r->bottom;

  look_at_base (r);
  if (nc_chain_each_layer (r->chain, look_at_layer, r) == -1)
    return refuse (error, "the chain cannot be looked at: %s",
                   errno == ESHUTDOWN ? "the server is stopping"
                   : strerror (errno));
  if (strcmp (r->device, "disk") != 0 && strcmp (r->device, r->active) != 0)
    return refuse (error, "cannot stream into '%.100s': it must be 'disk', or "
                   "the node name of the active layer", r->device);
  if (r->base && !r->found && find_recorded (r, error) == -1)
    return -1;
  if (r->base && !r->found && r->same_file) {
    r->down_to = r->same_file;
    r->found = true;
  }
  if (name && !r->found)
    return refuse (error, "there is no layer '%.100s' %s%s%s", name,
                   r->bottom ? "in the chain" : "below the active one",
                   *r->names ? "; there are: " : ", which has no backing",
                   r->names);
  if (r->backing_file && r->down_to == NULL)
    return refuse (error, "'backing-file' says what to call the layer that "
                   "stays as the backing, and there is none below "
                   "'%.100s'", r->bottom);
  return 0;
}

static int
check_backing_file (const struct request *r, struct nc_command_error *error)
{
  if (r->backing_file == NULL || nc_stream_is_ref (r->backing_file))
    return 0;
  return refuse (error, "'backing-file': '%.100s' is neither a file nor an NBD "
                 "URI that could be followed when it is found in an image",
                 r->backing_file);
}

/* QEMU has a default for devices alone. */
static int
check_id (struct request *r, struct nc_command_error *error)
{
  if (r->id == NULL && strcmp (r->device, "disk") != 0)
    return refuse (error, "with the name of a node as 'device' a 'job-id' is "
                   "needed");
  return 0;
}

static enum nc_on_error
on_error (json_t *args)
{
  const char *word = text (args, "on-error");
  unsigned i = 0;

  while (word && strcmp (word, on_error_words[i]) != 0)
    ++i;
  return i <= NC_ON_ERROR_STOP ? (enum nc_on_error) i : NC_ON_ERROR_ENOSPC;
}

json_t *
nc_block_stream (void *opaque, json_t *args, struct nc_command_error *error)
{
  const struct nc_control_state *state = opaque;
  struct request r = {
    .chain = state->opts.chain,
    .device = text (args, "device"), .id = text (args, "job-id"),
    .base = text (args, "base"), .base_node = text (args, "base-node"),
    .backing_file = text (args, "backing-file"),
    .bottom = text (args, "bottom"),
  };
  const struct nc_job_options opts = {
    .device = "disk",
    .speed = json_integer_value (json_object_get (args, "speed")),
    .on_error = on_error (args),
    .manual_finalize = json_is_false (json_object_get (args,
                                                       "auto-finalize")),
    .manual_dismiss = json_is_false (json_object_get (args, "auto-dismiss")),
  };
  char why[NC_JOB_TEXT];

  if (check_pairs (&r, error) == -1 || find_layers (&r, error) == -1 ||
      check_backing_file (&r, error) == -1 || check_id (&r, error) == -1)
    return NULL;
  if (nc_stream_create (state->opts.jobs, r.id, r.chain, r.down_to,
                        r.backing_file, &opts, why) == -1) {
    refuse (error, "%s", why);
    return NULL;
  }
  return json_object ();
}
