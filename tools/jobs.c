/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain jobs", and the verbs that steer a job, which differ in their
 * arguments alone. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pick.h"
#include "progress.h"
#include "qmp.h"
#include "util/report.h"
#include "util/scope.h"
#include "watch.h"

static const char jobs_help[] =
  "nbdchain jobs: list what a server moves in the background\n"
  "\n"
  "Usage: nbdchain jobs [OPTIONS] SOCKET\n"
  "       nbdchain jobs --watch [OPTIONS] SOCKET [JOB]\n"
  "\n"
  "SOCKET is the one that the server was started with: nbdchain serve\n"
  "--control SOCKET.  JOB can be left out if just one has not ended.\n"
  "\n"
  "      --watch      wait until a job has ended, and show its progress\n"
  "      --progress   show that also where standard error is no terminal\n"
  "      --json       print them as JSON: what query-jobs returns, see\n"
  "                   docs/control.md\n"
  "  -h, --help       show this\n"
  "\n"
  "Example:\n"
  "  nbdchain jobs /run/vm.qmp\n"
  "  nbdchain jobs --watch /run/vm.qmp\n";

/* What one of the verbs is called, does and takes. */
struct verb {
  const char *help;
  enum nc_job_verb verb;
  const char *command, *key;    /* of QMP, and how it calls the job */
  bool has_speed, has_force;
};

#define VERB_OPTIONS \
  "      --json   print the job as JSON, as \"jobs\" does\n" \
  "  -h, --help   show this\n" \
  "\n" \
  "Example:\n"

static const struct verb pause_verb = {
  .help =
  "nbdchain pause: let a job wait\n"
  "\n"
  "Usage: nbdchain pause [OPTIONS] SOCKET [JOB]\n"
  "\n"
  "It moves nothing until \"resume\".  \"nbdchain jobs SOCKET\" lists the jobs.\n"
  "JOB can be left out if just one can be paused.\n"
  "\n"
  VERB_OPTIONS
  "  nbdchain pause /run/vm.qmp\n",
  .verb = NC_VERB_PAUSE,
  .command = "job-pause", .key = "id",
};

static const struct verb resume_verb = {
  .help =
  "nbdchain resume: let a job that waits go on\n"
  "\n"
  "Usage: nbdchain resume [OPTIONS] SOCKET [JOB]\n"
  "\n"
  "After an error on which it stopped, it tries again.  JOB can be left out\n"
  "if just one waits.\n"
  "\n"
  VERB_OPTIONS
  "  nbdchain resume /run/vm.qmp\n",
  .verb = NC_VERB_RESUME,
  .command = "job-resume", .key = "id",
};

static const struct verb cancel_verb = {
  .help =
  "nbdchain cancel: end a job before it is done\n"
  "\n"
  "Usage: nbdchain cancel [OPTIONS] SOCKET [JOB]\n"
  "\n"
  "What it has done stays.  JOB can be left out if just one has not ended.\n"
  "\n"
  "      --force  do not let a job that is ready end in its own way\n"
  VERB_OPTIONS
  "  nbdchain cancel /run/vm.qmp\n",
  .verb = NC_VERB_CANCEL,
  .command = "block-job-cancel", .key = "device", .has_force = true,
};

static const struct verb complete_verb = {
  .help =
  "nbdchain complete: let a job that is ready take effect\n"
  "\n"
  "Usage: nbdchain complete [OPTIONS] SOCKET [JOB]\n"
  "\n"
  "Only for a job whose status is \"ready\".  JOB can be left out if just one\n"
  "is.\n"
  "\n"
  VERB_OPTIONS
  "  nbdchain complete /run/vm.qmp\n",
  .verb = NC_VERB_COMPLETE,
  .command = "job-complete", .key = "id",
};

static const struct verb set_speed_verb = {
  .help =
  "nbdchain set-speed: limit the rate of a job\n"
  "\n"
  "Usage: nbdchain set-speed [OPTIONS] SOCKET [JOB] RATE\n"
  "\n"
  "RATE is in bytes a second: a number, or one and K, M or G (powers of\n"
  "1024); 0 is no limit.  It holds at once.  JOB, which begins with a letter,\n"
  "can be left out if just one has not ended.\n"
  "\n"
  VERB_OPTIONS
  "  nbdchain set-speed /run/vm.qmp 20M\n",
  .verb = NC_VERB_SET_SPEED,
  .command = "block-job-set-speed", .key = "device", .has_speed = true,
};

enum { OPT_JSON = 256, OPT_FORCE, OPT_WATCH, OPT_PROGRESS };

static const struct option plain_options[] = {
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

static const struct option jobs_options[] = {
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { "watch", no_argument, NULL, OPT_WATCH },
  { "progress", no_argument, NULL, OPT_PROGRESS },
  { NULL, 0, NULL, 0 }
};

static const struct option force_options[] = {
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { "force", no_argument, NULL, OPT_FORCE },
  { NULL, 0, NULL, 0 }
};

/* Printing. */

static uint64_t
number_of (json_t *job, const char *key)
{
  return (uint64_t) json_integer_value (json_object_get (job, key));
}

static const char *
string_of (json_t *job, const char *key)
{
  const char *text = json_string_value (json_object_get (job, key));

  return text ? text : "";
}

static void
print_rate (const char *label, uint64_t rate)
{
  char size[SIZE_TEXT];

  print_label (1, label);
  printf ("%s/s\n", size_text (rate, size));
}

/* Nothing if there is no TEXT. */
static void
print_line (const char *label, const char *text)
{
  if (*text == '\0')
    return;
  print_label (1, label);
  print_text (stdout, text);
  printf ("\n");
}

static void
print_time_left (uint64_t seconds)
{
  print_label (1, "Time left");
  if (seconds >= 3600)
    printf ("%" PRIu64 " h %" PRIu64 " min\n", seconds / 3600,
            seconds / 60 % 60);
  else if (seconds >= 60)
    printf ("%" PRIu64 " min %" PRIu64 " s\n", seconds / 60, seconds % 60);
  else
    printf ("%" PRIu64 " s\n", seconds);
}

static void
print_sizes (json_t *job)
{
  char a[SIZE_TEXT], b[SIZE_TEXT], percent[PERCENT_TEXT];
  const uint64_t done = number_of (job, "current-progress");
  const uint64_t all = number_of (job, "total-progress");

  print_label (1, "Progress");
  printf ("%s of %s (%s)\n", size_text (done, a), size_text (all, b),
          percent_text (done, all, percent));
  print_label (1, "Copied");
  printf ("%s", size_text (number_of (job, "x-copied"), a));
  printf (", local already %s", size_text (number_of (job, "x-local"), a));
  printf (", zero %s\n", size_text (number_of (job, "x-zero"), a));
}

static void
print_job (json_t *job)
{
  json_t *left = json_object_get (job, "x-time-left");

  print_text (stdout, string_of (job, "id"));
  printf (": ");
  print_text (stdout, string_of (job, "type"));
  printf (", ");
  print_text (stdout, string_of (job, "status"));
  printf ("\n");
  print_sizes (job);
  print_rate ("Rate", number_of (job, "x-rate"));
  if (number_of (job, "x-speed") > 0)
    print_rate ("Limit", number_of (job, "x-speed"));
  print_line ("Slowed by", string_of (job, "x-limit"));
  if (left)
    print_time_left ((uint64_t) json_integer_value (left));
  print_line ("Trouble", string_of (job, "x-trouble"));
  print_line ("Error", string_of (job, "error"));
}

static int
print_jobs (json_t *jobs, bool json)
{
  size_t i;
  json_t *job;

  if (json)
    return print_json (json_incref (jobs));
  if (json_array_size (jobs) == 0)
    printf ("No jobs\n");
  json_array_foreach (jobs, i, job)
    print_job (job);
  return EXIT_DONE;
}

/* The job ID of JOBS, with its own reference; NULL if it has gone. */
static json_t *
find_job (json_t *jobs, const char *id)
{
  size_t i;
  json_t *job;

  json_array_foreach (jobs, i, job)
    if (strcmp (string_of (job, "id"), id) == 0)
      return json_incref (job);
  return NULL;
}

/* Running. */

static int
list_jobs (const char *path, bool json)
{
  struct qmp *qmp = qmp_open (path);
  json_t *jobs = qmp ? qmp_execute (qmp, "query-jobs", NULL) : NULL;
  const int status = jobs ? print_jobs (jobs, json) : EXIT_FAILED;

  json_decref (jobs);
  qmp_close (qmp);
  return status;
}

static int
print_watched (const struct watch *w, bool json)
{
  char copied[SIZE_TEXT], zero[SIZE_TEXT], local[SIZE_TEXT];

  if (json)
    return print_json (json_pack (
      "{s:o, s:o, s:I, s:I, s:I}", "id", json_text (w->id),
      "type", json_text (w->type),
      "copied", (json_int_t) w->result.copied,
      "zero", (json_int_t) w->result.zero,
      "local", (json_int_t) w->result.local));
  print_text (stdout, w->id);
  fputs (" (", stdout);
  print_text (stdout, w->type);
  printf (") is done: copied %s, %s of zeros, nothing to do for %s\n",
          size_text (w->result.copied, copied),
          size_text (w->result.zero, zero),
          size_text (w->result.local, local));
  return EXIT_DONE;
}

static int
watch_one (struct qmp *qmp, const char *socket, const char *id, bool progress,
           bool json)
{
  struct watch w = { .qmp = qmp, .socket = socket, .id = id };
  json_t *jobs, *job;
  int status = EXIT_FAILED;

  watch_begin (&w);
  jobs = qmp_execute (qmp, "query-jobs", NULL);
  job = find_job (jobs, id);
  if (job) {
    w.type = string_of (job, "type");
    if (watch_job (&w, progress_style (progress, json)) == 0)
      status = print_watched (&w, json);
  }
  else if (jobs)
    nc_error ("%s: there is no job '%s'; \"nbdchain jobs %s\" lists them",
              socket, id, socket);
  json_decref (job);
  json_decref (jobs);
  return status;
}

/* ID NULL: the one job that there is. */
static int
run_watch (const char *socket, const char *id, bool progress, bool json)
{
  struct qmp *qmp = qmp_open (socket);
  NC_FREE char *picked = NULL;
  int status = EXIT_FAILED;

  if (qmp && id == NULL)
    id = picked = pick_job (qmp, socket, PICK_TO_WATCH);
  if (qmp && id)
    status = watch_one (qmp, socket, id, progress, json);
  qmp_close (qmp);
  return status;
}

/* The job after the verb, as JSON; null if it is gone. */
static int
print_after (struct qmp *qmp, const char *id)
{
  json_t *jobs = qmp_execute (qmp, "query-jobs", NULL);
  json_t *job;

  if (jobs == NULL)
    return EXIT_FAILED;
  job = find_job (jobs, id);
  json_decref (jobs);
  return print_json (job ? job : json_null ());
}

static int
apply_verb (const struct verb *verb, struct qmp *qmp, const char *id,
            uint64_t speed, bool force, bool json)
{
  json_t *args = json_pack ("{s:o}", verb->key, json_text (id));
  json_t *value;

  if (verb->has_speed)
    json_object_set_new (args, "speed", json_integer ((json_int_t) speed));
  if (force)
    json_object_set_new (args, "force", json_true ());
  value = qmp_execute (qmp, verb->command, args);
  if (value == NULL)
    return EXIT_FAILED;
  json_decref (value);
  return json ? print_after (qmp, id) : EXIT_DONE;
}

/* ID NULL: of the one job that it can be. */
static int
run_verb (const struct verb *verb, const char *socket, const char *id,
          uint64_t speed, bool force, bool json)
{
  struct qmp *qmp = qmp_open (socket);
  NC_FREE char *picked = NULL;
  int status = EXIT_FAILED;

  if (qmp && id == NULL)
    id = picked = pick_job (qmp, socket, verb->verb);
  if (qmp && id)
    status = apply_verb (verb, qmp, id, speed, force, json);
  qmp_close (qmp);
  return status;
}

/* A JOB begins with a letter, and a RATE with a digit. */
static int
parse_rate (const char *word, uint64_t *rate)
{
  if ((*word >= 'a' && *word <= 'z') || (*word >= 'A' && *word <= 'Z')) {
    nc_error ("RATE: '%s' is none: it is a number such as 20M, and comes "
              "after the JOB if that is given", word);
    return -1;
  }
  return parse_size ("RATE", word, rate);
}

static int
verb_main (const struct verb *verb, int argc, char *argv[])
{
  const int least = verb->has_speed ? 2 : 1;
  bool json = false, force = false;
  uint64_t speed = 0;
  int c, n;

  while ((c = getopt_long (argc, argv, "h", verb->has_force ? force_options :
                           plain_options, NULL)) != -1)
    switch (c) {
    case OPT_JSON:
      json = true;
      break;
    case OPT_FORCE:
      force = true;
      break;
    case 'h':
      fputs (verb->help, stdout);
      return EXIT_DONE;
    default:
      return usage_error (argv[0]);
    }
  n = argc - optind;
  if (n != least && n != least + 1) {
    nc_error ("give the control SOCKET%s the JOB if there are several%s",
              verb->has_speed ? "," : ", and",
              verb->has_speed ? ", and the RATE" : "");
    return usage_error (argv[0]);
  }
  if (verb->has_speed && parse_rate (argv[argc - 1], &speed) == -1)
    return usage_error (argv[0]);
  return run_verb (verb, argv[optind], n == least ? NULL : argv[optind + 1],
                   speed, force, json);
}

int
jobs_main (int argc, char *argv[])
{
  bool json = false, watch = false, progress = false;
  int c, n;

  while ((c = getopt_long (argc, argv, "h", jobs_options, NULL)) != -1)
    switch (c) {
    case OPT_JSON:
      json = true;
      break;
    case OPT_WATCH:
      watch = true;
      break;
    case OPT_PROGRESS:
      progress = true;
      break;
    case 'h':
      fputs (jobs_help, stdout);
      return EXIT_DONE;
    default:
      return usage_error (argv[0]);
    }
  n = argc - optind;
  if (n != 1 && (n != 2 || !watch)) {
    nc_error ("give the control SOCKET of a server%s",
              n == 2 ? "; a JOB goes with --watch" : "");
    return usage_error (argv[0]);
  }
  if (progress && !watch) {
    nc_error ("--progress goes with --watch");
    return usage_error (argv[0]);
  }
  return watch ? run_watch (argv[optind], argv[optind + 1], progress, json)
    : list_jobs (argv[optind], json);
}

int
pause_main (int argc, char *argv[])
{
  return verb_main (&pause_verb, argc, argv);
}

int
resume_main (int argc, char *argv[])
{
  return verb_main (&resume_verb, argc, argv);
}

int
cancel_main (int argc, char *argv[])
{
  return verb_main (&cancel_verb, argc, argv);
}

int
complete_main (int argc, char *argv[])
{
  return verb_main (&complete_verb, argc, argv);
}

int
set_speed_main (int argc, char *argv[])
{
  return verb_main (&set_speed_verb, argc, argv);
}
