/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The commands about the server, its jobs and its chain.  Names, arguments
 * and members are QEMU's; what QEMU does not have begins with x-.
 * docs/control.md is the reference. */

#include <config.h>

#include "control/commands.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain/chain.h"
#include "control/command.h"
#include "job/job.h"

static json_t *
no_memory (struct nc_command_error *error)
{
  return nc_command_fail (error, NC_ERROR_GENERIC, "out of memory");
}

/* The server. */

static json_t *
query_version (void *opaque __attribute__ ((__unused__)),
               json_t *args __attribute__ ((__unused__)),
               struct nc_command_error *error)
{
  json_t *version = nc_qmp_version ();

  return version ? version : no_memory (error);
}

static json_t *
query_commands (void *opaque, json_t *args __attribute__ ((__unused__)),
                struct nc_command_error *error)
{
  const struct nc_commands *commands =
    ((const struct nc_control_state *) opaque)->commands;
  json_t *list = json_array ();

  json_array_append_new (list, json_pack ("{s:s}", "name",
                                          "qmp_capabilities"));
  for (size_t i = 0; i < commands->n; i++)
    json_array_append_new (list,
                           json_pack ("{s:s}", "name",
                                      commands->v[i].command->name));
  return list ? list : no_memory (error);
}

static json_t *
quit (void *opaque, json_t *args __attribute__ ((__unused__)),
      struct nc_command_error *error __attribute__ ((__unused__)))
{
  const struct nc_control_state *state = opaque;

  state->opts.quit (state->opts.opaque);
  return json_object ();
}

/* Jobs. */

/* What QEMU does not say of a job. */
static void
add_measures (json_t *job, const struct nc_job_info *info)
{
  json_t *more =
    json_pack ("{s:s, s:s, s:I, s:I, s:I, s:I}",
               "x-on-error", nc_on_error_name (info->on_error),
               "x-limit", nc_job_limit_name (info->limit),
               "x-rate", (json_int_t) info->rate,
               "x-copied", (json_int_t) info->count[NC_COUNT_COPIED],
               "x-local", (json_int_t) info->count[NC_COUNT_LOCAL],
               "x-zero", (json_int_t) info->count[NC_COUNT_ZERO]);

  if (more && info->has_seconds_left)
    json_object_set_new (more, "x-time-left",
                         json_integer ((json_int_t) info->seconds_left));
  json_object_update (job, more);
  json_decref (more);
}

static void
add_error (json_t *job, const struct nc_job_info *info)
{
  if (info->failed || info->cancelled)
    if (info->error[0] != '\0')
      json_object_set_new (job, "error", nc_json_text (info->error));
  if (info->trouble[0] != '\0')
    json_object_set_new (job, "x-trouble", nc_json_text (info->trouble));
}

static void
append_job (void *list, const struct nc_job_info *info)
{
  json_t *job =
    json_pack ("{s:s, s:s, s:s, s:I, s:I, s:I}", "id", info->id,
               "type", info->type,
               "status", nc_job_status_name (info->status),
               "current-progress", (json_int_t) info->offset,
               "total-progress", (json_int_t) info->len,
               "x-speed", (json_int_t) info->speed);

  add_error (job, info);
  add_measures (job, info);
  json_array_append_new (list, job);
}

static void
append_block_job (void *list, const struct nc_job_info *info)
{
  static const char *const io[] = {
    [NC_IO_OK] = "ok", [NC_IO_FAILED] = "failed",
    [NC_IO_NOSPACE] = "nospace",
  };
  json_t *job =
    json_pack ("{s:s, s:s, s:I, s:I, s:b, s:b, s:I, s:s, s:b, s:s, s:b, s:b}",
               "type", info->type, "device", info->id,
               "len", (json_int_t) info->len,
               "offset", (json_int_t) info->offset,
               "busy", (int) info->busy, "paused", (int) info->paused,
               "speed", (json_int_t) info->speed,
               "io-status", io[info->io_status],
               "ready", (int) info->ready,
               "status", nc_job_status_name (info->status),
               "auto-finalize", (int) info->auto_finalize,
               "auto-dismiss", (int) info->auto_dismiss);

  add_error (job, info);
  add_measures (job, info);
  json_array_append_new (list, job);
}

static json_t *
list_jobs (void *opaque, nc_job_fn append, struct nc_command_error *error)
{
  const struct nc_control_state *state = opaque;
  json_t *list = json_array ();

  if (list == NULL)
    return no_memory (error);
  nc_jobs_each (state->opts.jobs, append, list);
  return list;
}

static json_t *
query_jobs (void *opaque, json_t *args __attribute__ ((__unused__)),
            struct nc_command_error *error)
{
  return list_jobs (opaque, append_job, error);
}

static json_t *
query_block_jobs (void *opaque, json_t *args __attribute__ ((__unused__)),
                  struct nc_command_error *error)
{
  return list_jobs (opaque, append_block_job, error);
}

typedef int (*verb_fn) (struct nc_jobs *jobs, const char *id,
                        char why[NC_JOB_TEXT]);

/* The result R of a verb as an answer.  ABSENT: the class of "no such job".
 */
static json_t *
verb_answer (int r, const char *why, enum nc_error_class absent,
             struct nc_command_error *error)
{
  if (r == 0)
    return json_object ();
  return nc_command_fail (error, errno == ENOENT ? absent : NC_ERROR_GENERIC,
                          "%s", why);
}

static json_t *
job_verb (void *opaque, json_t *args, struct nc_command_error *error,
          verb_fn verb, const char *key, enum nc_error_class absent)
{
  const struct nc_control_state *state = opaque;
  char why[NC_JOB_TEXT];
  const int r = verb (state->opts.jobs,
                      json_string_value (json_object_get (args, key)), why);

  return verb_answer (r, why, absent, error);
}

/* Two commands of one verb: job-VERB, which takes an id, and block-job-VERB,
 * of which some call that the device. */
#define VERB(verb, block_key) \
  static json_t * \
  job_##verb (void *opaque, json_t *args, struct nc_command_error *error) \
  { \
    return job_verb (opaque, args, error, nc_job_##verb, "id", \
                     NC_ERROR_GENERIC); \
  } \
  static json_t * \
  block_job_##verb (void *opaque, json_t *args, \
                    struct nc_command_error *error) \
  { \
    return job_verb (opaque, args, error, nc_job_##verb, block_key, \
                     NC_ERROR_DEVICE_NOT_ACTIVE); \
  }

VERB (pause, "device")
VERB (resume, "device")
VERB (complete, "device")
VERB (finalize, "id")
VERB (dismiss, "id")

static json_t *
job_cancel (void *opaque, json_t *args, struct nc_command_error *error)
{
  const struct nc_control_state *state = opaque;
  char why[NC_JOB_TEXT];
  const char *id = json_string_value (json_object_get (args, "id"));

  return verb_answer (nc_job_cancel (state->opts.jobs, id, true, why), why,
                      NC_ERROR_GENERIC, error);
}

static json_t *
block_job_cancel (void *opaque, json_t *args, struct nc_command_error *error)
{
  const struct nc_control_state *state = opaque;
  char why[NC_JOB_TEXT];
  const char *id = json_string_value (json_object_get (args, "device"));
  const bool force = json_is_true (json_object_get (args, "force"));

  return verb_answer (nc_job_cancel (state->opts.jobs, id, force, why), why,
                      NC_ERROR_DEVICE_NOT_ACTIVE, error);
}

static json_t *
block_job_set_speed (void *opaque, json_t *args,
                     struct nc_command_error *error)
{
  const struct nc_control_state *state = opaque;
  char why[NC_JOB_TEXT];
  const char *id = json_string_value (json_object_get (args, "device"));
  const json_int_t speed =
    json_integer_value (json_object_get (args, "speed"));

  return verb_answer (nc_job_set_speed (state->opts.jobs, id,
                                        (uint64_t) speed, why), why,
                      NC_ERROR_DEVICE_NOT_ACTIVE, error);
}

/* The chain. */

static json_t *
image_of (const struct nc_chain_layer *layer)
{
  json_t *image = json_pack ("{s:o, s:s, s:I, s:I}",
                             "filename", nc_json_text (layer->path),
                             "format", layer->format,
                             "virtual-size", (json_int_t) layer->size,
                             "actual-size", (json_int_t) layer->storage);

  if (image && layer->backing)
    json_object_set_new (image, "full-backing-filename",
                         nc_json_text (layer->backing));
  return image;
}

/* What QEMU says of a node and is always so here. */
static json_t *
node_constants (void)
{
  static const char *const zeros[] = {
    "iops", "iops_rd", "iops_wr", "bps", "bps_rd", "bps_wr",
    "write_threshold",
  };
  json_t *node =
    json_pack ("{s:b, s:s, s:{s:b, s:b, s:b}}", "encrypted", 0,
               "detect_zeroes", "off", "cache", "writeback", 1,
               "direct", 0, "no-flush", 0);

  for (size_t i = 0; i < sizeof zeros / sizeof zeros[0]; i++)
    json_object_set_new (node, zeros[i], json_integer (0));
  return node;
}

struct nodes {
  json_t *list;
  bool failed;
};

static int
append_node (void *opaque, const struct nc_chain_layer *layer)
{
  struct nodes *nodes = opaque;
  json_t *node = node_constants ();
  json_t *own =
    json_pack ("{s:o, s:o, s:s, s:b, s:i, s:o, s:i, s:I, s:I, s:b}",
               "node-name", nc_json_text (layer->name),
               "file", nc_json_text (layer->path),
               "drv", layer->format, "ro", (int) !layer->writable,
               "backing_file_depth", (int) layer->n_below,
               "image", image_of (layer), "x-depth", (int) layer->depth,
               "x-allocated", (json_int_t) layer->allocated,
               "x-block-size", (json_int_t) layer->block_size,
               "x-remote", (int) layer->remote);

  if (own && layer->backing)
    json_object_set_new (own, "backing_file", nc_json_text (layer->backing));
  if (own && layer->uuid[0])
    json_object_set_new (own, "x-uuid", json_string (layer->uuid));
  if (own && layer->depth == 0)
    json_object_set_new (own, "x-device", json_string ("disk"));
  if (own == NULL || json_object_update (node, own) == -1)
    nodes->failed = true;
  json_decref (own);
  json_array_append_new (nodes->list, node);
  return 0;
}

static json_t *
query_named_block_nodes (void *opaque,
                         json_t *args __attribute__ ((__unused__)),
                         struct nc_command_error *error)
{
  const struct nc_control_state *state = opaque;
  struct nodes nodes = { .list = json_array () };

  if (nodes.list == NULL)
    return no_memory (error);
  if (nc_chain_each_layer (state->opts.chain, append_node, &nodes) == -1)
    nc_command_fail (error, NC_ERROR_GENERIC, "the chain cannot be looked "
                     "at: %s", errno == ESHUTDOWN ? "the server is stopping"
                     : strerror (errno));
  else if (nodes.failed)
    no_memory (error);
  else
    return nodes.list;
  json_decref (nodes.list);
  return NULL;
}

/* The table. */

static const struct nc_arg arg_id[] = {
  { .name = "id", .type = NC_ARG_STRING },
  { 0 }
};

static const struct nc_arg arg_device[] = {
  { .name = "device", .type = NC_ARG_STRING },
  { 0 }
};

static const struct nc_arg arg_cancel[] = {
  { .name = "device", .type = NC_ARG_STRING },
  { .name = "force", .type = NC_ARG_BOOLEAN, .optional = true },
  { 0 }
};

static const struct nc_arg arg_speed[] = {
  { .name = "device", .type = NC_ARG_STRING },
  { .name = "speed", .type = NC_ARG_INTEGER, .max = INT64_MAX },
  { 0 }
};

/* Without "flat" QEMU nests what each node is made of; here nothing is. */
static const struct nc_arg arg_flat[] = {
  { .name = "flat", .type = NC_ARG_BOOLEAN, .optional = true },
  { 0 }
};

static const struct nc_command table[] = {
  { "query-version", NULL, query_version },
  { "query-commands", NULL, query_commands },
  { "query-named-block-nodes", arg_flat, query_named_block_nodes },
  { "query-jobs", NULL, query_jobs },
  { "query-block-jobs", NULL, query_block_jobs },
  { "job-cancel", arg_id, job_cancel },
  { "job-pause", arg_id, job_pause },
  { "job-resume", arg_id, job_resume },
  { "job-complete", arg_id, job_complete },
  { "job-finalize", arg_id, job_finalize },
  { "job-dismiss", arg_id, job_dismiss },
  { "block-job-cancel", arg_cancel, block_job_cancel },
  { "block-job-pause", arg_device, block_job_pause },
  { "block-job-resume", arg_device, block_job_resume },
  { "block-job-complete", arg_device, block_job_complete },
  { "block-job-finalize", arg_id, block_job_finalize },
  { "block-job-dismiss", arg_id, block_job_dismiss },
  { "block-job-set-speed", arg_speed, block_job_set_speed },
  { "block-stream", nc_block_stream_args, nc_block_stream },
  { "quit", NULL, quit },
};

int
nc_control_add_commands (struct nc_commands *commands,
                         struct nc_control_state *state)
{
  state->commands = commands;
  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
    if (nc_commands_add (commands, &table[i], state) == -1)
      return -1;
  return 0;
}
