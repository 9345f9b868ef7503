/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A job of a server, watched until it has ended.
 *
 * Whoever watches asks ten times a second how far the job is.  How it ended,
 * and with which numbers, an event tells, which comes before the answer that
 * there is no such job.
 *
 * A server may end before the job does: it says so (SHUTDOWN), and then its
 * jobs are cancelled, only to go on later; or it dies.  "nbdchain serve" starts
 * it anew at once, jobs and all, so whoever watches connects again. */

#include <config.h>

#include "watch.h"

#include <string.h>
#include <time.h>

#include <jansson.h>

#include "util/report.h"

#define SLICE 100000000         /* nanoseconds between looks at the job */
#define ABSENCE 10              /* seconds that a server may be away */

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

/* DATA, an event's or a job's, says how it ended. */
static void
end (struct watch *w, json_t *data)
{
  w->has_ended = true;
  strncpy (w->error, text (data, "error"), sizeof w->error - 1);
  w->result = (struct stream_result) {
    .copied = number (data, "x-copied"), .zero = number (data, "x-zero"),
    .local = number (data, "x-local"),
  };
}

/* An event. */
static void
hear (void *opaque, const char *name, json_t *data)
{
  struct watch *w = opaque;
  const bool cancelled = strcmp (name, "BLOCK_JOB_CANCELLED") == 0;

  if (strcmp (name, "SHUTDOWN") == 0)
    w->server_ends = true;
  if ((!cancelled && strcmp (name, "BLOCK_JOB_COMPLETED") != 0) ||
      strcmp (text (data, "device"), w->id) != 0)
    return;
  if (cancelled && w->server_ends)
    return;                     /* it goes on with the next server */
  w->was_cancelled = cancelled;
  end (w, data);
}

/* The constant that LIMIT, from the server, is; NULL: none known. */
static const char *
limit_word (const char *limit)
{
  for (int i = NC_LIMIT_NONE; i <= NC_LIMIT_DELAY; ++i)
    if (strcmp (limit, nc_job_limit_name (i)) == 0)
      return nc_job_limit_name (i);
  return NULL;
}

static void
show (struct watch *w, json_t *job)
{
  const bool paused = strcmp (text (job, "status"), "paused") == 0;

  progress_limit (w->progress, limit_word (text (job, "x-limit")));
  progress_update (w->progress, number (job, "current-progress"),
                   number (job, "total-progress"));
  if (paused && !w->is_paused && *text (job, "x-trouble"))
    nc_error ("%s: the job waits: %s; when that is mended, \"nbdchain resume "
              "%s %s\" lets it go on", w->socket, text (job, "x-trouble"),
              w->socket, w->id);
  w->is_paused = paused;
}

/* The job, with its own reference; NULL: it is gone, or, with *FAILED, the
 * server does not answer. */
static json_t *
ask (struct watch *w, bool *failed)
{
  json_t *jobs = qmp_execute (w->qmp, "query-jobs", NULL), *job, *found = NULL;
  size_t i;

  *failed = jobs == NULL;
  json_array_foreach (jobs, i, job)
    if (strcmp (text (job, "id"), w->id) == 0)
      found = json_incref (job);
  json_decref (jobs);
  return found;
}

/* The connection has ended. */
static int
come_back (struct watch *w)
{
  w->server_ends = false;
  w->was_away = true;
  if (qmp_reconnect (w->qmp, ABSENCE) == 0)
    return 0;
  nc_error ("%s: the server has ended, and no other has come within %d "
            "seconds; the job goes on when the image is served again, unless "
            "it had ended", w->socket, ABSENCE);
  return -1;
}

static int
report_gone (const struct watch *w)
{
  if (w->was_away)
    nc_error ("%s: the server was started anew, and has no job '%s' any more: "
              "it had ended, or was not to go on (nbdchain serve --resume)",
              w->socket, w->id);
  else
    nc_error ("%s: there is no job '%s' any more; \"nbdchain jobs %s\" lists "
              "those that there are", w->socket, w->id, w->socket);
  return -1;
}

/* One look.  Returns 0; or -1, reported. */
static int
look (struct watch *w)
{
  bool failed;
  json_t *job = ask (w, &failed);
  int r = 0;

  if (w->has_ended)
    ;
  else if (qmp_is_lost (w->qmp))
    r = come_back (w);
  else if (failed)
    r = -1;
  else if (w->server_ends)
    ;                           /* its answers say nothing of the job now */
  else if (job == NULL)
    r = report_gone (w);
  else if (strcmp (text (job, "status"), "concluded") == 0)
    end (w, job);
  else
    show (w, job);
  json_decref (job);
  return r;
}

static int
report_end (const struct watch *w)
{
  const char *rest = strcmp (w->type, "stream") == 0
    ? ", and the backing is still needed" : "";

  if (w->was_cancelled)
    nc_error ("%s: the job was cancelled; what was copied stays%s", w->socket,
              rest);
  else if (*w->error)
    nc_error ("%s: not finished: %s; what was copied stays%s: start it again "
              "to go on", w->socket, w->error, rest);
  else
    return 0;
  return -1;
}

void
watch_begin (struct watch *w)
{
  qmp_on_event (w->qmp, hear, w);
}

int
watch_job (struct watch *w, enum progress_style style)
{
  const struct timespec slice = { .tv_nsec = SLICE };
  int r;

  qmp_expect_loss (w->qmp);
  w->progress = progress_start (strcmp (w->type, "stream") == 0 ? "streaming"
                                : w->type, style);
  while ((r = look (w)) == 0 && !w->has_ended)
    nanosleep (&slice, NULL);
  progress_finish (w->progress, r == 0 && !w->was_cancelled && !*w->error);
  return r == 0 ? report_end (w) : -1;
}
