/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* nbdchain stream: populate an image until it needs its backing no more.
 * Here is how it is done where nobody serves the image: by the same job as in
 * a server, with a signal as the operator. */

#include <config.h>

#include "stream.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "chain/chain.h"
#include "job/job.h"
#include "job/stream.h"
#include "nbd/tls.h"
#include "progress.h"
#include "tools.h"
#include "util/report.h"

static const char help[] =
  "nbdchain stream: bring the data of the backing into an image\n"
  "\n"
  "Usage: nbdchain stream [OPTIONS] IMAGE|SOCKET\n"
  "\n"
  "Everything that the disk of IMAGE, an fvd image, reads from the layers\n"
  "below is copied into it; then it is recorded that IMAGE has no backing.\n"
  "Zeros are neither read, where that is known, nor stored.  What is\n"
  "interrupted goes on where it was when it is run again.\n"
  "\n"
  "If the image is being served, give the control SOCKET of the server\n"
  "(nbdchain serve --control SOCKET): it streams while it serves, and closes\n"
  "what it does not need any more.\n"
  "\n"
  "      --down-to=LAYER    copy only what is above LAYER, which becomes the\n"
  "                         backing; \"nbdchain info --chain\" shows the names\n"
  "      --speed=RATE       at most RATE bytes a second (suffixes: K, M, G,\n"
  "                         T, P)\n"
  "      --on-error=WHAT    in a server, when reading or storing fails: report\n"
  "                         (end the job; the default), ignore (go on trying),\n"
  "                         stop (wait for \"nbdchain resume\"), or enospc (stop\n"
  "                         if storage is full, else report)\n"
  "      --watch            wait until a server has done it, and show the\n"
  "                         progress\n"
  "      --retry=SECONDS    how long to wait for a remote that is away;\n"
  "                         0 is for ever (default 60)\n"
  "      --allow=X          a directory or NBD URI that references in images\n"
  "                         may lead to; may be repeated\n"
  "      --base=REF         use REF in place of the backing that the lowest\n"
  "                         image names\n"
  "      --data-file=FILE   the data file of IMAGE, in place of that named in\n"
  "                         it; needed for a device, or one without a mark\n"
  REMOTE_TLS_HELP
  "      --progress         show the progress, also where standard error is\n"
  "                         no terminal\n"
  "      --json             print the result as JSON\n"
  "  -h, --help             show this\n"
  "\n"
  "Example:\n"
  "  nbdchain stream --allow nbd://server/ --speed 50M top.fvd\n"
  "  nbdchain stream --watch /run/vm.qmp\n";

enum {
  OPT_DOWN_TO = 256, OPT_SPEED, OPT_RETRY, OPT_ALLOW, OPT_BASE,
  OPT_DATA_FILE, OPT_PROGRESS, OPT_JSON, OPT_ON_ERROR, OPT_WATCH
};

static const struct option options[] = {
  { "down-to", required_argument, NULL, OPT_DOWN_TO },
  { "speed", required_argument, NULL, OPT_SPEED },
  { "retry", required_argument, NULL, OPT_RETRY },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  REMOTE_TLS_OPTIONS,
  { "progress", no_argument, NULL, OPT_PROGRESS },
  { "json", no_argument, NULL, OPT_JSON },
  { "on-error", required_argument, NULL, OPT_ON_ERROR },
  { "watch", no_argument, NULL, OPT_WATCH },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

#define RETRY_MAX 86400         /* seconds */
#define SLICE 100               /* milliseconds between looks at the job */

struct streaming {
  struct stream_request request;
  struct chain_args args;
  const char *data_file;
  struct nc_tls tls;
  uint64_t retry;
  bool is_for_image;            /* an option that a server has its own of */
  struct nc_job_info info;      /* of the job, when it has ended */
};

static volatile sig_atomic_t is_interrupted;

static void
interrupt (int sig __attribute__ ((__unused__)))
{
  is_interrupted = 1;
}

/* The first signal ends the stream in order, the second one the process. */
static void
catch_signals (void)
{
  const struct sigaction action = {
    .sa_handler = interrupt, .sa_flags = SA_RESETHAND,
  };

  sigaction (SIGINT, &action, NULL);
  sigaction (SIGTERM, &action, NULL);
}

static struct nc_chain *
open_chain (const struct streaming *s)
{
  const struct nc_chain_options opts = {
    .image = s->request.name, .base = s->args.base,
    .data_file = s->data_file, .allow = s->args.allow, .tls = &s->tls, .retry = s->retry, .memory_fd = -1,
  };
  struct nc_chain *chain = nc_chain_open (&opts);

  if (chain == NULL || nc_chain_start (chain) == 0)
    return chain;
  nc_chain_close (chain);
  return NULL;
}

/* Wait until the job is concluded, and show how far it is. */
static int
watch (struct streaming *s, struct nc_jobs *jobs)
{
  struct progress *progress =
    progress_start ("streaming", progress_style (s->request.progress,
                                                 s->request.json));
  char why[NC_JOB_TEXT];
  bool is_cancelled = false;
  int r;

  while ((r = nc_job_wait (jobs, "stream", SLICE, &s->info)) == -1 &&
         errno == ETIMEDOUT) {
    progress_limit (progress, nc_job_limit_name (s->info.limit));
    progress_update (progress, s->info.offset, s->info.len);
    if (is_interrupted && !is_cancelled)
      is_cancelled = nc_job_cancel (jobs, "stream", true, why) == 0;
  }
  progress_finish (progress, r == 0 && !s->info.failed && !s->info.cancelled);
  return r;
}

static int
run_job (struct streaming *s, struct nc_chain *chain, struct nc_jobs *jobs)
{
  const struct nc_job_options opts = {
    .device = "disk", .speed = s->request.speed, .manual_dismiss = true,
  };
  char why[NC_JOB_TEXT];

  if (nc_stream_create (jobs, "stream", chain, s->request.down_to, NULL,
                        &opts, why) == -1)
    return -1;                  /* reported */
  if (watch (s, jobs) == -1)
    return -1;
  if (s->info.cancelled)
    nc_error ("%s: interrupted; what was copied stays, and its backing is "
              "still needed: run it again to go on", s->request.name);
  else if (s->info.failed)
    nc_error ("%s: not finished (%s); what was copied stays, and its backing "
              "is still needed: run it again to go on", s->request.name,
              s->info.error);
  return s->info.failed || s->info.cancelled ? -1 : 0;
}

static int
stream (struct streaming *s)
{
  struct nc_chain *chain = open_chain (s);
  struct nc_jobs *jobs = chain ? nc_jobs_new () : NULL;
  int r = jobs ? run_job (s, chain, jobs) : -1;

  /* Ends reads that hang, so that the job can be freed. */
  if (chain && nc_chain_stop (chain) == -1)
    r = -1;
  nc_jobs_free (jobs);
  nc_chain_close (chain);
  return r;
}

int
stream_print (const char *image, const struct stream_request *request,
              const struct stream_result *result)
{
  char copied[SIZE_TEXT], zero[SIZE_TEXT], local[SIZE_TEXT];

  if (request->json)
    return print_json (json_pack (
      "{s:o, s:o, s:I, s:I, s:I}", "path", json_text (image),
      "backing", json_text (request->down_to),
      "copied", (json_int_t) result->copied,
      "zero", (json_int_t) result->zero,
      "local", (json_int_t) result->local));
  print_text (stdout, image);
  if (request->down_to) {
    fputs (" needs nothing between it and ", stdout);
    print_text (stdout, request->down_to);
    fputs (" any more", stdout);
  }
  else
    fputs (" needs no backing any more", stdout);
  printf (": copied %s, %s of zeros, nothing to do for %s\n",
          size_text (result->copied, copied), size_text (result->zero, zero),
          size_text (result->local, local));
  return EXIT_DONE;
}

static int
print_result (const struct streaming *s)
{
  const struct stream_result result = {
    .copied = s->info.count[NC_COUNT_COPIED],
    .zero = s->info.count[NC_COUNT_ZERO],
    .local = s->info.count[NC_COUNT_LOCAL],
  };

  return stream_print (s->request.name, &s->request, &result);
}

static int
parse_on_error (struct streaming *s, const char *word)
{
  static const char *const words[] = { "report", "ignore", "stop", "enospc" };

  for (size_t i = 0; i < sizeof words / sizeof words[0]; ++i)
    if (strcmp (word, words[i]) == 0) {
      s->request.on_error = words[i];
      return 0;
    }
  nc_error ("--on-error: '%s': must be report, ignore, stop or enospc", word);
  return -1;
}

static bool
is_socket (const char *name)
{
  struct stat st;

  return stat (name, &st) == 0 && S_ISSOCK (st.st_mode);
}

/* What goes with an image, and what with a server. */
static int
check_options (const struct streaming *s)
{
  if (is_socket (s->request.name)) {
    if (!s->is_for_image)
      return 0;
    nc_error ("%s: is the socket of a server, which has its own --retry, "
              "--allow, --base and TLS options", s->request.name);
    return -1;
  }
  if (!s->request.on_error)
    return 0;
  nc_error ("--on-error: %s is no control socket of a server, and without one "
            "an error always ends it", s->request.name);
  return -1;
}

static int
parse_options (struct streaming *s, int argc, char *argv[], bool *ended)
{
  int opt;

  while ((opt = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (opt) {
    case OPT_DOWN_TO:
      s->request.down_to = optarg;
      break;
    case OPT_SPEED:
      if (parse_size ("--speed", optarg, &s->request.speed) == -1)
        return EXIT_USAGE;
      break;
    case OPT_ON_ERROR:
      if (parse_on_error (s, optarg) == -1)
        return EXIT_USAGE;
      break;
    case OPT_WATCH:
      s->request.watch = true;
      break;
    case OPT_RETRY:
      s->is_for_image = true;
      if (parse_number ("--retry", optarg, 0, RETRY_MAX, &s->retry) == -1)
        return EXIT_USAGE;
      break;
    case OPT_ALLOW:
      s->is_for_image = true;
      if (chain_args_allow (&s->args, optarg) == -1)
        return EXIT_USAGE;
      break;
    case OPT_BASE:
      s->is_for_image = true;
      s->args.base = optarg;
      break;
    case OPT_DATA_FILE:
      s->is_for_image = true;
      s->data_file = optarg;
      break;
    case OPT_PROGRESS:
      s->request.progress = true;
      break;
    case OPT_JSON:
      s->request.json = true;
      break;
    case 'h':
      fputs (help, stdout);
      *ended = true;
      return EXIT_DONE;
    default:
      if (!remote_tls_option (&s->tls, opt, optarg))
        return usage_error (argv[0]);
      s->is_for_image = true;
    }

  if (remote_tls_check (&s->tls) == -1)
    return usage_error (argv[0]);
  if (argc - optind != 1) {
    nc_error ("one name is needed: the IMAGE to bring the data into, or the "
              "control SOCKET of its server");
    return usage_error (argv[0]);
  }
  s->request.name = argv[optind];
  if (check_options (s) == -1)
    return usage_error (argv[0]);
  return EXIT_DONE;
}

static int
stream_image (struct streaming *s)
{
  const int saved = divert_stdout ();
  int status;

  catch_signals ();
  status = saved == -1 || stream (s) == -1 ? EXIT_FAILED : EXIT_DONE;
  if (saved != -1 && restore_stdout (saved) == -1)
    status = EXIT_FAILED;
  return status == EXIT_DONE ? print_result (s) : status;
}

int
stream_main (int argc, char *argv[])
{
  struct streaming s = { .retry = NC_RETRY_DEFAULT };
  bool ended = false;
  int status = parse_options (&s, argc, argv, &ended);

  if (status == EXIT_DONE && !ended)
    status = is_socket (s.request.name) ? stream_live (&s.request)
      : stream_image (&s);
  chain_args_free (&s.args);
  return status;
}
