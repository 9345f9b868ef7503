/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What happens to jobs and to clients' requests, in the words of QMP. */

#include <config.h>

#include "control/commands.h"

#include <errno.h>
#include <string.h>

#include "control/command.h"
#include "job/job.h"
#include "util/scope.h"

#define IO_ERROR_PAUSE UINT64_C (1000000000)    /* nanoseconds */

static json_t *
status_data (const struct nc_job_info *info)
{
  return json_pack ("{s:s, s:s}", "id", info->id, "status",
                    nc_job_status_name (info->status));
}

/* What the events about the end of a job, and about its being ready, say. */
static json_t *
progress_data (const struct nc_job_info *info)
{
  json_t *data = json_pack ("{s:s, s:s, s:I, s:I, s:I}",
                            "type", info->type, "device", info->id,
                            "len", (json_int_t) info->len,
                            "offset", (json_int_t) info->offset,
                            "speed", (json_int_t) info->speed);

  if (data && info->failed)
    json_object_set_new (data, "error", nc_json_text (info->error));
  return data;
}

/* The same at the end, after which nobody can ask. */
static json_t *
end_data (const struct nc_job_info *info)
{
  json_t *data = progress_data (info);
  json_t *more = json_pack ("{s:I, s:I, s:I}",
                            "x-copied",
                            (json_int_t) info->count[NC_COUNT_COPIED],
                            "x-local",
                            (json_int_t) info->count[NC_COUNT_LOCAL],
                            "x-zero",
                            (json_int_t) info->count[NC_COUNT_ZERO]);

  json_object_update (data, more);
  json_decref (more);
  return data;
}

static json_t *
error_data (const struct nc_job_event *event)
{
  static const char *const actions[] = {
    [NC_JOB_REPORT] = "report", [NC_JOB_IGNORE] = "ignore",
    [NC_JOB_STOP] = "stop",
  };

  return json_pack ("{s:s, s:s, s:s}", "device", event->info->id,
                    "operation",
                    event->operation == NC_JOB_READ ? "read" : "write",
                    "action", actions[event->action]);
}

void
nc_control_job_event (void *control, const struct nc_job_event *event)
{
  const struct nc_job_info *info = event->info;

  switch (event->kind) {
  case NC_EVENT_STATUS:
    nc_control_event (control, "JOB_STATUS_CHANGE", status_data (info));
    break;
  case NC_EVENT_READY:
    nc_control_event (control, "BLOCK_JOB_READY", progress_data (info));
    break;
  case NC_EVENT_PENDING:
    nc_control_event (control, "BLOCK_JOB_PENDING",
                      json_pack ("{s:s, s:s}", "type", info->type,
                                 "id", info->id));
    break;
  case NC_EVENT_COMPLETED:
    nc_control_event (control, "BLOCK_JOB_COMPLETED", end_data (info));
    break;
  case NC_EVENT_CANCELLED:
    nc_control_event (control, "BLOCK_JOB_CANCELLED", end_data (info));
    break;
  case NC_EVENT_ERROR:
    nc_control_event (control, "BLOCK_JOB_ERROR", error_data (event));
    break;
  }
}

/* Whether a failure of this kind is to be told now; then *COUNT is how many
 * there were since one was told, with this one. */
static bool
is_due (struct nc_io_errors *errors, unsigned kind, uint64_t now,
        uint64_t *count)
{
  NC_LOCKED (&errors->lock);
  *count = ++errors->kind[kind].count;
  if (errors->kind[kind].told &&
      now - errors->kind[kind].told < IO_ERROR_PAUSE)
    return false;
  errors->kind[kind].told = now;
  errors->kind[kind].count = 0;
  return true;
}

json_t *
nc_io_error_data (struct nc_io_errors *errors,
                  enum nc_job_operation operation, int err, const char *node,
                  uint64_t now)
{
  const bool full = err == ENOSPC || err == EDQUOT;
  uint64_t count;
  json_t *data;

  if (!is_due (errors, operation == NC_JOB_READ ? NC_IO_READ
               : full ? NC_IO_WRITE_NOSPACE : NC_IO_WRITE, now, &count))
    return NULL;
  data = json_pack ("{s:s, s:s, s:s, s:b, s:s, s:I}", "device", "disk",
                    "operation",
                    operation == NC_JOB_READ ? "read" : "write",
                    "action", "report", "nospace", (int) full,
                    "reason", strerror (err), "x-count", (json_int_t) count);
  if (data && node)
    json_object_set_new (data, "node-name", nc_json_text (node));
  return data;
}
