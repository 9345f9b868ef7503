/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* nbdchain stream with a control socket: the server streams while it serves.
 */

#include <config.h>

#include "stream.h"

#include <string.h>

#include <jansson.h>

#include "progress.h"
#include "qmp.h"
#include "tools.h"
#include "util/report.h"
#include "watch.h"

#define JOB "disk"              /* the id of a job that was given none */

static const char *
text (json_t *object, const char *key)
{
  const char *value = json_string_value (json_object_get (object, key));

  return value ? value : "";
}

/* The job, with its own reference; NULL: there is none, or, with *FAILED, the
 * server does not answer, reported. */
static json_t *
find_job (struct qmp *qmp, bool *failed)
{
  json_t *jobs = qmp_execute (qmp, "query-jobs", NULL), *job, *found = NULL;
  size_t i;

  *failed = jobs == NULL;
  json_array_foreach (jobs, i, job)
    if (strcmp (text (job, "id"), JOB) == 0)
      found = json_incref (job);
  json_decref (jobs);
  return found;
}

/* The server would refuse a second job, and could not say what to do. */
static int
check_free (struct qmp *qmp, const char *socket)
{
  bool failed;
  json_t *job = find_job (qmp, &failed);
  const bool taken = job && strcmp (text (job, "status"), "concluded") != 0;

  if (taken)
    nc_error ("%s: job id '" JOB "' is in use: a job (%s) is %s; \"nbdchain "
              "jobs --watch %s " JOB "\" shows how far it comes, \"nbdchain "
              "cancel %s " JOB "\" ends it", socket, text (job, "type"),
              text (job, "status"), socket, socket);
  json_decref (job);
  return failed || taken ? -1 : 0;
}

static int
print_started (struct qmp *qmp, const struct stream_request *request)
{
  bool failed;
  json_t *job;

  if (!request->json) {
    fputs ("The server streams; \"nbdchain jobs ", stdout);
    print_text (stdout, request->name);
    fputs ("\" shows how far it is\n", stdout);
    return EXIT_DONE;
  }
  job = find_job (qmp, &failed);
  return failed ? EXIT_FAILED : print_json (job ? job : json_null ());
}

/* The file of the active layer, in NODES. */
static const char *
image_of (json_t *nodes)
{
  return text (json_array_get (nodes, 0), "file");
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

static int
stream_image (struct qmp *qmp, const char *image,
              const struct stream_request *request)
{
  struct watch w = {
    .qmp = qmp, .socket = request->name, .id = JOB, .type = "stream",
  };
  json_t *done;

  watch_begin (&w);
  done = qmp_execute (qmp, "block-stream", arguments (request));
  json_decref (done);
  if (done == NULL)
    return EXIT_FAILED;
  if (!request->watch)
    return print_started (qmp, request);
  return watch_job (&w, progress_style (request->progress, request->json)) == 0
    ? stream_print (image, request, &w.result) : EXIT_FAILED;
}

static int
stream_by (struct qmp *qmp, const struct stream_request *request)
{
  json_t *nodes = NULL;
  int status = EXIT_FAILED;

  if (check_free (qmp, request->name) == 0)
    nodes = qmp_execute (qmp, "query-named-block-nodes", NULL);
  if (nodes)
    status = stream_image (qmp, image_of (nodes), request);
  json_decref (nodes);
  return status;
}

int
stream_live (const struct stream_request *request)
{
  struct qmp *qmp = qmp_open (request->name);
  const int status = qmp ? stream_by (qmp, request) : EXIT_FAILED;

  qmp_close (qmp);
  return status;
}
