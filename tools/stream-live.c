/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* nbdchain stream with a control socket: the server streams while it serves.
 *
 * Whoever watches asks ten times a second how far the job is.  How it ended,
 * and with which numbers, an event tells, which comes before the answer that
 * there is no such job. */

#include <config.h>

#include "stream.h"

#include <string.h>
#include <time.h>

#include <jansson.h>

#include "job/job.h"
#include "progress.h"
#include "qmp.h"
#include "report.h"
#include "tools.h"

#define JOB "disk"              /* the id of a job that was given none */
#define SLICE 100000000         /* nanoseconds between looks at the job */

struct watching {
  const struct stream_request *request;
  struct qmp *qmp;
  struct progress *progress;
  bool is_paused;               /* as it was seen last */
  bool has_ended, was_cancelled;
  char error[NC_JOB_TEXT];      /* "": it did not fail */
  struct stream_result result;
};

static uint64_t
number (json_t *object, const char *key)
{
  return (uint64_t) json_integer_value (json_object_get (object, key));
}

static const char *
text (json_t *object, const char *key)
{
  const char *value = json_string_value (json_object_get (object, key));

  return value ? value : "";
}

/* An event. */
static void
hear (void *opaque, const char *name, json_t *data)
{
  struct watching *w = opaque;
  const bool completed = strcmp (name, "BLOCK_JOB_COMPLETED") == 0;

  if ((!completed && strcmp (name, "BLOCK_JOB_CANCELLED") != 0) ||
      strcmp (text (data, "device"), JOB) != 0)
    return;
  w->has_ended = true;
  w->was_cancelled = !completed;
  strncpy (w->error, text (data, "error"), sizeof w->error - 1);
  w->result = (struct stream_result) {
    .copied = number (data, "x-copied"), .zero = number (data, "x-zero"),
    .local = number (data, "x-local"),
  };
}

/* The constant that LIMIT, from the server, is; NULL: none known. */
static const char *
limit_word (const char *limit)
{
  for (int i = NC_LIMIT_NONE; i <= NC_LIMIT_ERROR; ++i)
    if (strcmp (limit, nc_job_limit_name (i)) == 0)
      return nc_job_limit_name (i);
  return NULL;
}

static void
show (struct watching *w, json_t *job)
{
  const bool paused = strcmp (text (job, "status"), "paused") == 0;

  progress_limit (w->progress, limit_word (text (job, "x-limit")));
  progress_update (w->progress, number (job, "current-progress"),
                   number (job, "total-progress"));
  if (paused && !w->is_paused && *text (job, "x-trouble"))
    nc_error ("%s: the job waits: %s; when that is mended, \"nbdchain resume "
              "%s " JOB "\" lets it go on", w->request->name,
              text (job, "x-trouble"), w->request->name);
  w->is_paused = paused;
}

/* The job, with its own reference; NULL: it is gone, or, with *FAILED, the
 * server does not answer, reported. */
static json_t *
ask (struct qmp *qmp, bool *failed)
{
  json_t *jobs = qmp_execute (qmp, "query-jobs", NULL), *job = NULL;
  size_t i;

  *failed = jobs == NULL;
  json_array_foreach (jobs, i, job)
    if (strcmp (text (job, "id"), JOB) == 0) {
      json_incref (job);
      break;
    }
  if (i == json_array_size (jobs))
    job = NULL;
  json_decref (jobs);
  return job;
}

static int
watch (struct watching *w)
{
  const struct timespec slice = { .tv_nsec = SLICE };
  bool failed = false;
  json_t *job;

  w->progress = progress_start ("streaming",
                                progress_style (w->request->progress,
                                                w->request->json));
  while (!w->has_ended && (job = ask (w->qmp, &failed)) != NULL) {
    show (w, job);
    json_decref (job);
    nanosleep (&slice, NULL);
  }
  progress_finish (w->progress, w->has_ended && !w->was_cancelled &&
                   !*w->error);
  if (failed)
    return EXIT_FAILED;
  if (!w->has_ended || w->was_cancelled)
    nc_error ("%s: the job was cancelled; what was copied stays, and the "
              "backing is still needed", w->request->name);
  else if (*w->error)
    nc_error ("%s: not finished: %s; what was copied stays, and the backing is "
              "still needed: start it again to go on", w->request->name,
              w->error);
  else
    return stream_print (w->request, &w->result);
  return EXIT_FAILED;
}

static int
print_started (struct watching *w)
{
  const char *socket = w->request->name;
  bool failed;
  json_t *job;

  if (!w->request->json) {
    fputs ("The server streams; \"nbdchain jobs ", stdout);
    print_text (stdout, socket);
    fputs ("\" shows how far it is\n", stdout);
    return EXIT_DONE;
  }
  job = ask (w->qmp, &failed);
  return failed ? EXIT_FAILED : print_json (job ? job : json_null ());
}

static json_t *
arguments (const struct stream_request *r)
{
  json_t *args = json_pack ("{s:s, s:I}", "device", "disk", "speed",
                            (json_int_t) r->speed);

  if (r->down_to)
    json_object_set_new (args, "base-node", json_text (r->down_to));
  if (r->on_error)
    json_object_set_new (args, "on-error", json_text (r->on_error));
  return args;
}

int
stream_live (const struct stream_request *request)
{
  struct watching w = { .request = request };
  int status = EXIT_FAILED;
  json_t *done;

  w.qmp = qmp_open (request->name);
  if (w.qmp == NULL)
    return EXIT_FAILED;
  qmp_on_event (w.qmp, hear, &w);
  done = qmp_execute (w.qmp, "block-stream", arguments (request));
  if (done)
    status = request->watch ? watch (&w) : print_started (&w);
  json_decref (done);
  qmp_close (w.qmp);
  return status;
}
