/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The command line tool: finds the subcommand and calls it.  Also what holds
 * for all of them: how errors look, and that output which could not be
 * written is an error. */

#include <config.h>

#include "tools.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "progress.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/standard-fds.h"
#include "util/text.h"

struct command {
  const char *name;
  int (*main) (int argc, char *argv[]);
  const char *summary;
};

static const struct command commands[] = {
  { "create", create_main, "make an image, empty or on top of a backing" },
  { "info", info_main, "describe an image, or the chain below it" },
  { "map", map_main, "picture which layer each part of the disk comes from" },
  { "check", check_main, "check an image for errors" },
  { "compare", compare_main, "compare two disks by content" },
  { "snapshot", snapshot_main, "retire an image; a new one on top goes on" },
  { "resize", resize_main, "make a disk larger or smaller" },
  { "rebase", rebase_main, "give an image another backing, or none" },
  { "amend", amend_main, "change what an image says of prefetching" },
  { "profile", profile_main, "record, show and carry what is read first of a disk" },
  { "stream", stream_main, "copy the data of the backing into an image" },
  { "serve", serve_main, "serve the disk to NBD clients" },
  { "jobs", jobs_main, "list what a server moves in the background" },
  { "pause", pause_main, "let a job wait" },
  { "resume", resume_main, "let a job that waits go on" },
  { "cancel", cancel_main, "end a job before it is done" },
  { "complete", complete_main, "let a job that is ready take effect" },
  { "set-speed", set_speed_main, "limit the rate of a job" },
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

static void
print_help (FILE *fp)
{
  size_t i;

  fprintf (fp,
           "nbdchain: disks made of a chain of images, served over NBD\n"
           "\n"
           "Usage: nbdchain COMMAND [OPTIONS] ARGUMENTS\n"
           "\n"
           "Commands:\n");
  for (i = 0; i < N_COMMANDS; i++)
    fprintf (fp, "  %-10s  %s\n", commands[i].name, commands[i].summary);
  fprintf (fp,
           "\n"
           "Options:\n"
           "  --help      show this, or the help of a command"
           " (nbdchain COMMAND --help)\n"
           "  --version   show the version\n"
           "\n"
           "First steps:\n"
           "  nbdchain create -b base.img -F raw top.fvd\n"
           "  nbdchain serve top.fvd -U /run/vm.sock\n"
           "\n"
           "Exit codes: 0 success; 1 failure; 2 wrong usage; 3 \"check\""
           " found errors;\n"
           "4 \"compare\" found a difference.\n"
           "The manual is nbdchain(1).\n");
}

/* How many letters must be added, dropped or changed to make B of A: the
 * edit distance, up to the length of a command. */
static size_t
distance (const char *a, const char *b)
{
  enum { MAX = 16 };
  size_t row[MAX + 1], i, j, diagonal, above;
  const size_t n = strlen (b);

  if (n > MAX || strlen (a) > MAX)
    return MAX;
  for (j = 0; j <= n; j++)
    row[j] = j;
  for (i = 1; a[i - 1] != '\0'; i++) {
    diagonal = row[0];
    row[0] = i;
    for (j = 1; j <= n; j++) {
      above = row[j];
      row[j] = diagonal + (a[i - 1] != b[j - 1]);
      if (row[j] > above + 1)
        row[j] = above + 1;
      if (row[j] > row[j - 1] + 1)
        row[j] = row[j - 1] + 1;
      diagonal = above;
    }
  }
  return row[n];
}

/* The command that NAME may have meant: one that it begins, or one that is
 * at most two letters away; NULL if there is none. */
static const struct command *
nearest_command (const char *name)
{
  const struct command *best = NULL;
  size_t i, d, best_distance = 3;

  for (i = 0; i < N_COMMANDS; i++) {
    d = *name && strncmp (name, commands[i].name, strlen (name)) == 0
      ? 0 : distance (name, commands[i].name);
    if (d < best_distance) {
      best = &commands[i];
      best_distance = d;
    }
  }
  return best;
}

static int
unknown_command (const char *name)
{
  const struct command *nearest = nearest_command (name);
  size_t i;

  if (nearest != NULL)
    nc_error ("there is no command '%s'; did you mean '%s'?", name,
              nearest->name);
  else
    nc_error ("there is no command '%s'", name);
  fputs ("The commands are:", stderr);
  for (i = 0; i < N_COMMANDS; i++)
    fprintf (stderr, "%s %s", i > 0 ? "," : "", commands[i].name);
  fputs (".\n", stderr);
  return usage_error ("nbdchain");
}

static bool hushed;

void
hush_reports (bool on)
{
  hushed = on;
}

/* The library's messages quote references found in images, and those are
 * hostile: nothing in them may steer the terminal. */
static void __attribute__ ((__format__ (printf, 2, 0)))
to_stderr (enum nc_report_level level, const char *fmt, va_list args)
{
  NC_FREE char *text = NULL, *line = NULL;
  int len;

  if (level == NC_REPORT_DEBUG || hushed)
    return;
  text = nc_text_format (fmt, args);
  len = asprintf (&line, "%snbdchain: %s\n",
                  !systemd_reads (STDERR_FILENO) ? "" :
                  level == NC_REPORT_ERROR ? SYSTEMD_ERROR : SYSTEMD_NOTICE,
                  text ? text : "no memory for a message");
  if (len == -1) {
    line = NULL;
    return;
  }
  flockfile (stderr);
  progress_hide ();
  if (!log_write (line, len))
    fputs (line, stderr);
  funlockfile (stderr);
}

/* Write out what is left of the output.  Whoever reads it may have seen
 * enough ("nbdchain map top.fvd | head"): that is no failure to report. */
static int
finish_output (int status)
{
  bool failed = ferror (stdout) != 0;

  errno = 0;
  if (fflush (stdout) == EOF)
    failed = true;
  if (!failed)
    return status;
  if (errno != EPIPE && errno != 0)
    nc_error ("cannot write the output: %m");
  return status == EXIT_DONE ? EXIT_FAILED : status;
}

static int
run_command (const struct command *command, int argc, char *argv[])
{
  NC_FREE char *name = NULL;

  if (asprintf (&name, "nbdchain %s", command->name) == -1) {
    name = NULL;
    nc_error ("out of memory");
    return EXIT_FAILED;
  }
  argv[0] = name;
  return command->main (argc, argv);
}

int
main (int argc, char *argv[])
{
  size_t i;

  if (nc_open_standard_fds () == -1)
    return EXIT_FAILED;         /* with nowhere to say so */
  /* A closed pipe, a peer that hangs up, and a file that may not be this
   * large (ulimit -f) are an error of one write. */
  signal (SIGPIPE, SIG_IGN);
  signal (SIGXFSZ, SIG_IGN);
  nc_report_to (to_stderr);

  if (argc < 2) {
    print_help (stderr);
    return EXIT_USAGE;
  }
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "-h") == 0
      || strcmp (argv[1], "help") == 0) {
    print_help (stdout);
    return finish_output (EXIT_DONE);
  }
  if (strcmp (argv[1], "--version") == 0 || strcmp (argv[1], "-V") == 0) {
    printf ("nbdchain %s\n", PACKAGE_VERSION);
    return finish_output (EXIT_DONE);
  }

  for (i = 0; i < N_COMMANDS; i++)
    if (strcmp (argv[1], commands[i].name) == 0)
      return finish_output (run_command (&commands[i], argc - 1, argv + 1));
  return unknown_command (argv[1]);
}
