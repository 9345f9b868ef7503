/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The job that a verb is for when none is named: the one that it can be
 * applied to.  Which these are the states of a job say, as in the server,
 * which looks again when it is asked. */

#include <config.h>

#include "pick.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/report.h"
#include "util/scope.h"

/* What becomes of a job. */
static const char *
participle (enum nc_job_verb verb)
{
  static const char *const words[] = {
    [NC_VERB_CANCEL] = "cancelled", [NC_VERB_PAUSE] = "paused",
    [NC_VERB_RESUME] = "resumed", [NC_VERB_SET_SPEED] = "given a rate",
    [NC_VERB_COMPLETE] = "completed", [NC_VERB_FINALIZE] = "finalized",
    [NC_VERB_DISMISS] = "dismissed", [PICK_TO_WATCH] = "watched",
  };

  return words[verb];
}

static const char *
text_of (json_t *job, const char *key)
{
  const char *text = json_string_value (json_object_get (job, key));

  return text ? text : "";
}

static const char *
command (enum nc_job_verb verb)
{
  return verb == PICK_TO_WATCH ? "jobs --watch" : nc_job_verb_name (verb);
}

/* It was asked to pause; its status follows a little later. */
static bool
is_paused (json_t *job)
{
  return json_is_true (json_object_get (job, "paused"));
}

static bool
is_fit (json_t *job, enum nc_job_verb verb)
{
  const char *status = text_of (job, "status");

  if (verb == (is_paused (job) ? NC_VERB_PAUSE : NC_VERB_RESUME))
    return false;
  for (int s = 0; s < NC_JOB_N_STATUS; s++)
    if (strcmp (status, nc_job_status_name (s)) == 0)
      return nc_job_may (s, verb == PICK_TO_WATCH ? NC_VERB_CANCEL : verb);
  return false;
}

/* "disk (stream) is running, ..."; NULL if memory is short. */
static char *
names_of (json_t *jobs)
{
  char *names = NULL;
  size_t len, i;
  FILE *fp = open_memstream (&names, &len);
  json_t *job;

  if (fp == NULL)
    return NULL;
  json_array_foreach (jobs, i, job)
    fprintf (fp, "%s%s (%s) is %s", i ? ", " : "", text_of (job, "device"),
             text_of (job, "type"),
             is_paused (job) ? "paused" : text_of (job, "status"));
  fclose (fp);
  return names;
}

static void
report_none (json_t *jobs, const char *socket, enum nc_job_verb verb)
{
  NC_FREE char *names = names_of (jobs);

  if (json_array_size (jobs) == 0)
    nc_error ("%s: there is no job, so none can be %s (\"nbdchain jobs %s\" "
              "lists them)", socket, participle (verb), socket);
  else
    nc_error ("%s: no job can be %s now: %s (\"nbdchain jobs %s\" says "
              "more)", socket, participle (verb), names ? names : "",
              socket);
}

static void
report_several (json_t *jobs, const char *socket, enum nc_job_verb verb)
{
  NC_FREE char *names = names_of (jobs);

  nc_error ("%s: %zu jobs can be %s: %s; name one: nbdchain %s %s %s%s",
            socket, json_array_size (jobs), participle (verb),
            names ? names : "", command (verb), socket,
            text_of (json_array_get (jobs, 0), "device"),
            verb == NC_VERB_SET_SPEED ? " RATE" : "");
}

char *
pick_job (struct qmp *qmp, const char *socket, enum nc_job_verb verb)
{
  json_t *jobs = qmp_execute (qmp, "query-block-jobs", NULL);
  json_t *fit = json_array (), *job;
  char *id = NULL;
  size_t i;

  json_array_foreach (jobs, i, job)
    if (is_fit (job, verb))
      json_array_append (fit, job);
  if (json_array_size (fit) == 1) {
    id = strdup (text_of (json_array_get (fit, 0), "device"));
    if (id == NULL)
      nc_error ("out of memory");
  }
  else if (json_array_size (fit) > 1)
    report_several (fit, socket, verb);
  else if (jobs)
    report_none (jobs, socket, verb);
  json_decref (fit);
  json_decref (jobs);
  return id;
}
