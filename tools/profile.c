/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain profile": which parts of a disk were read first, recorded by a
 * server, shown, and carried from image to image. */

#include <config.h>

#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/image.h"
#include "image/profile-text.h"
#include "qmp.h"
#include "timeline.h"
#include "util/atomic-file.h"
#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"

static const char help[] =
  "nbdchain profile: what is read first of a disk, for prefetching\n"
  "\n"
  "Usage: nbdchain profile record [--json] SOCKET start|stop\n"
  "       nbdchain profile show [--json] IMAGE\n"
  "       nbdchain profile export IMAGE [FILE]\n"
  "       nbdchain profile import [--force] IMAGE FILE\n"
  "\n"
  "record  lets the server of \"nbdchain serve --prefetch --control SOCKET\"\n"
  "        record what is read first from now on, or stop that and store it\n"
  "        in its active image\n"
  "show    draws what was first read when: the disk from top to bottom, the\n"
  "        time from left to right, darker where more was read\n"
  "export  writes the profile of the fvd image IMAGE as text, to FILE or\n"
  "        standard output ('-'); docs/formats/profile.md says how; of files\n"
  "        that are there, only an earlier profile or an empty one is replaced\n"
  "import  puts the profile in FILE ('-': standard input) into IMAGE, which\n"
  "        must not be in use\n"
  "\n"
  "      --json             show: print the ranges as JSON; record: print what\n"
  "                         the server says\n"
  "      --force            import: also one of another base\n"
  "  -h, --help             show this\n"
  "\n"
  "Example:\n"
  "  nbdchain profile export golden.fvd boot.profile\n";

enum { OPT_JSON = 256, OPT_FORCE };

static const struct option options[] = {
  { "json", no_argument, NULL, OPT_JSON },
  { "force", no_argument, NULL, OPT_FORCE },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

/* The profile of the image PATH, and whose it is. */
static int
read_image (const char *path, struct nc_profile_text *text)
{
  struct nc_image_info info = { 0 };
  int r = nc_image_inspect (path, NULL, &info);

  *text = (struct nc_profile_text) { .size = info.size };
  if (r == 0) {
    memcpy (text->base, info.backing_uuid, sizeof text->base);
    r = nc_image_profile_read (path, &text->ranges, &text->n);
  }
  nc_image_info_free (&info);
  return r;
}

static int
need_profile (const char *path, const struct nc_profile_text *text)
{
  if (text->n > 0)
    return 0;
  nc_error ("%s: has no profile: record one with \"nbdchain profile record\","
            " or import one", path);
  return -1;
}

/* What it takes that the profile of the image PATH is used, if that is not so
 * by itself.  WHEN: what comes before its policy is changed. */
static void
print_use (const struct nc_image_info *info, const char *path,
           const char *when)
{
  if (info->prefetch.profile || !info->has_backing)
    return;
  printf ("to have it read first: nbdchain serve --prefetch; or, for good%s:"
          " nbdchain amend --prefetch-profile=on ", when);
  print_text (stdout, path);
  printf ("\n");
}

/* Record. */

/* The same for the active image of a server, as far as it can be seen from
 * here. */
static void
print_recorded_use (struct qmp *qmp)
{
  __attribute__ ((__cleanup__ (nc_image_info_free)))
    struct nc_image_info info = { 0 };
  const char *path;
  json_t *nodes;
  int r = -1;

  hush_reports (true);
  nodes = qmp_execute (qmp, "query-named-block-nodes", NULL);
  path = json_string_value (json_object_get (json_array_get (nodes, 0),
                                             "file"));
  if (path)
    r = nc_image_inspect (path, NULL, &info);
  hush_reports (false);
  if (r == 0)
    print_use (&info, path, ", when the server has ended");
  json_decref (nodes);
}

static int
print_recorded (struct qmp *qmp, json_t *result)
{
  const uint64_t ranges =
    json_integer_value (json_object_get (result, "ranges"));
  const uint64_t lost =
    json_integer_value (json_object_get (result, "lost-ranges"));
  char bytes[SIZE_TEXT];

  printf ("stored a profile of %" PRIu64 " range%s, %s\n", ranges,
          ranges == 1 ? "" : "s",
          size_text (json_integer_value (json_object_get (result, "bytes")),
                     bytes));
  if (lost)
    printf ("there was no room for %" PRIu64 " more\n", lost);
  print_recorded_use (qmp);
  json_decref (result);
  return EXIT_DONE;
}

static int
print_result (struct qmp *qmp, json_t *result, bool start, bool json)
{
  if (json)
    return print_json (result);
  if (!start)
    return print_recorded (qmp, result);
  json_decref (result);
  puts ("recording");
  return EXIT_DONE;
}

/* Whether the server has COMMAND, which comes with the prefetch filter; else
 * reported. */
static bool
check_command (struct qmp *qmp, const char *socket, const char *command)
{
  json_t *list = qmp_execute (qmp, "query-commands", NULL), *json;
  const bool answered = list != NULL;
  bool has = false;
  size_t i;

  json_array_foreach (list, i, json) {
    const char *name = json_string_value (json_object_get (json, "name"));

    has |= name && strcmp (name, command) == 0;
  }
  json_decref (list);
  if (answered && !has)
    nc_error ("%s: its server cannot record, as it does not prefetch: start "
              "it with \"nbdchain serve --prefetch\"", socket);
  return has;
}

static int
record (const char *socket, bool start, bool json)
{
  const char *command = start ? "x-profile-start" : "x-profile-stop";
  struct qmp *qmp = qmp_open (socket);
  json_t *result = qmp && check_command (qmp, socket, command)
    ? qmp_execute (qmp, command, NULL) : NULL;
  const int status = result == NULL ? EXIT_FAILED
    : print_result (qmp, result, start, json);

  qmp_close (qmp);
  return status;
}

/* Show. */

static json_t *
ranges_json (const struct nc_profile_text *text)
{
  json_t *list = json_array ();

  for (size_t i = 0; i < text->n; ++i)
    json_array_append_new (
      list, json_pack ("{s:I, s:I, s:I}", "time",
                       (json_int_t) text->ranges[i].time, "offset",
                       (json_int_t) text->ranges[i].offset, "length",
                       (json_int_t) text->ranges[i].count));
  return list;
}

static uint64_t
bytes_of (const struct nc_profile_text *text)
{
  uint64_t bytes = 0;

  for (size_t i = 0; i < text->n; ++i)
    bytes += text->ranges[i].count;
  return bytes;
}

static int
show (const char *path, bool json)
{
  __attribute__ ((__cleanup__ (nc_profile_text_free)))
    struct nc_profile_text text;
  char bytes[SIZE_TEXT], size[SIZE_TEXT], time[TIME_TEXT];

  if (read_image (path, &text) == -1)
    return EXIT_FAILED;
  if (json)
    return print_json (json_pack ("{s:o, s:I, s:I, s:o}", "path",
                                  json_text (path), "size",
                                  (json_int_t) text.size, "bytes",
                                  (json_int_t) bytes_of (&text), "ranges",
                                  ranges_json (&text)));
  if (need_profile (path, &text) == -1)
    return EXIT_FAILED;
  print_text (stdout, path);
  printf (": %zu range%s, %s of %s, in %s\n", text.n, text.n == 1 ? "" : "s",
          size_text (bytes_of (&text), bytes), size_text (text.size, size),
          time_text (text.ranges[text.n - 1].time, time));
  timeline_print (text.ranges, text.n, text.size,
                  terminal_width (STDOUT_FILENO));
  return EXIT_DONE;
}

/* Export and import. */

/* The file that the operator names, with OFLAGS and the MODE for that; NULL,
 * reported. */
static FILE *
open_stream (const char *file, int oflags, const char *mode)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  const int fd = nc_path_open (file, oflags | O_NOCTTY, &path);
  FILE *fp = fd == -1 ? NULL : fdopen (fd, mode);

  if (fd >= 0 && fp == NULL) {
    nc_error ("%s: %m", file);
    close (fd);
  }
  return fp;
}

static int
read_text (const char *file, struct nc_profile_text *text)
{
  FILE *fp = strcmp (file, "-") == 0 ? stdin
    : open_stream (file, O_RDONLY, "r");
  int r;

  *text = (struct nc_profile_text) { 0 };
  if (fp == NULL)
    return -1;
  r = nc_profile_text_read (fp, file, text);
  if (fp != stdin)
    fclose (fp);
  return r;
}

/* Whether FD, called FILE, is a profile to its end: that it begins as one says
 * little, as the beginning of a raw image is what a guest has written there. */
static bool
is_profile (int fd, const char *file)
{
  const int copy = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  FILE *fp = copy == -1 ? NULL : fdopen (copy, "r");
  struct nc_profile_text text = { 0 };
  bool is;

  if (fp == NULL) {
    if (copy >= 0)
      close (copy);
    return false;
  }
  hush_reports (true);
  is = nc_profile_text_read (fp, file, &text) == 0;
  hush_reports (false);
  fclose (fp);
  nc_profile_text_free (&text);
  return is;
}

/* Whether a profile may take the place of PATH, called FILE.  *old is what is
 * there, whose owner and permissions it is to get, or -1.  Else reported. */
static int
may_be_written (const struct nc_path *path, const char *file, int *old)
{
  const char *what = "is no profile";
  struct stat st;

  *old = openat (path->dir, path->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK |
                 O_NOCTTY | O_CLOEXEC);
  if (*old == -1 && errno == ENOENT)
    return 0;
  if (*old == -1 && errno != ELOOP) {
    nc_error ("%s: %m", file);
    return -1;
  }
  if (*old == -1)
    what = "is a symbolic link";
  else if (fstat (*old, &st) == -1 || !S_ISREG (st.st_mode))
    what = "is no regular file";
  else if (faccessat (path->dir, path->name, W_OK, 0) == -1)
    what = "may not be written";
  else if (st.st_size == 0 || is_profile (*old, file))
    return 0;
  nc_error ("%s: is there already, %s, and stays as it is: give the profile "
            "another name, or remove that first", file, what);
  return -1;
}

/* FP (NULL: it could not be opened) is closed.  Returns whether all is
 * written, not reported. */
static bool
write_to (FILE *fp, const struct nc_profile_text *text)
{
  bool failed;

  if (fp == NULL)
    return false;
  nc_profile_text_write (fp, text);
  failed = ferror (fp);
  failed |= fclose (fp) == EOF;
  return !failed;
}

/* The profile as a string, to be freed; NULL, reported. */
static char *
text_of (const struct nc_profile_text *text)
{
  char *string = NULL;
  size_t len;

  if (write_to (open_memstream (&string, &len), text))
    return string;
  nc_error ("out of memory");
  free (string);
  return NULL;
}

static int
write_file (const char *file, const struct nc_profile_text *text)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_FREE char *string = NULL;
  NC_CLOSE int old = -1;

  if (nc_path_find (file, &path) == -1 ||
      may_be_written (&path, file, &old) == -1)
    return EXIT_FAILED;
  string = text_of (text);
  if (string == NULL)
    return EXIT_FAILED;
  if (nc_replace_file (&path, string, 0666, old) == 0)
    return EXIT_DONE;
  nc_error ("%s: %m", file);
  return EXIT_FAILED;
}

/* Whether nothing can be lost in FD: a pipe or a terminal, for one. */
static bool
is_lossless (int fd)
{
  struct stat st;

  return fstat (fd, &st) == 0 &&
    (S_ISFIFO (st.st_mode) || S_ISCHR (st.st_mode));
}

static bool
is_stream (const char *file)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  char why[NC_PATH_WHY];
  NC_CLOSE int fd = nc_path_try (file, O_PATH, &path, why, sizeof why);

  return fd >= 0 && is_lossless (fd);
}

static int
write_stream (const char *file, const struct nc_profile_text *text)
{
  FILE *fp = open_stream (file, O_WRONLY | O_APPEND, "a");

  if (fp == NULL)
    return EXIT_FAILED;
  if (!is_lossless (fileno (fp))) {
    nc_error ("%s: has been replaced by another file meanwhile", file);
    fclose (fp);
    return EXIT_FAILED;
  }
  if (write_to (fp, text))
    return EXIT_DONE;
  nc_error ("%s: %m", file);
  return EXIT_FAILED;
}

static int
export (const char *path, const char *file)
{
  __attribute__ ((__cleanup__ (nc_profile_text_free)))
    struct nc_profile_text text;

  if (read_image (path, &text) == -1 || need_profile (path, &text) == -1)
    return EXIT_FAILED;
  if (file == NULL || strcmp (file, "-") == 0) {
    nc_profile_text_write (stdout, &text);
    return EXIT_DONE;           /* main looks for errors of stdout */
  }
  return is_stream (file) ? write_stream (file, &text)
    : write_file (file, &text);
}

/* Whether the profile is for an image such as INFO. */
static int
check_base (const struct nc_profile_text *text, const char *file,
            const struct nc_image_info *info, const char *path)
{
  if (!*text->base || strcmp (text->base, info->backing_uuid) == 0)
    return 0;
  nc_error ("%s: was recorded over the base %s, and %s is over %s: it would "
            "hardly help (--force takes it all the same)", file, text->base,
            path, *info->backing_uuid ? info->backing_uuid
            : "one without a UUID");
  return -1;
}

static int
import (const char *path, const char *file, bool force)
{
  __attribute__ ((__cleanup__ (nc_profile_text_free)))
    struct nc_profile_text text;
  __attribute__ ((__cleanup__ (nc_image_info_free)))
    struct nc_image_info info = { 0 };
  char bytes[SIZE_TEXT];

  if (read_text (file, &text) == -1 ||
      nc_image_inspect (path, NULL, &info) == -1 ||
      (!force && check_base (&text, file, &info, path) == -1) ||
      nc_image_profile_write (path, text.ranges, text.n) == -1)
    return EXIT_FAILED;
  nc_image_info_free (&info);
  info = (struct nc_image_info) { 0 };
  if (nc_image_inspect (path, NULL, &info) == -1)
    return EXIT_FAILED;
  print_text (stdout, path);
  printf (" has a profile of %" PRIu64 " range%s, %s\n", info.profile_ranges,
          info.profile_ranges == 1 ? "" : "s",
          size_text (info.profile_bytes, bytes));
  print_use (&info, path, "");
  return EXIT_DONE;
}

int
profile_main (int argc, char *argv[])
{
  bool json = false, force = false;
  const char *what;
  int c, n;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
    case OPT_JSON:
      json = true;
      break;
    case OPT_FORCE:
      force = true;
      break;
    case 'h':
      fputs (help, stdout);
      return EXIT_DONE;
    default:
      return usage_error (argv[0]);
    }

  n = argc - optind - 1;
  what = n >= 0 ? argv[optind] : "";
  argv += optind;
  if (strcmp (what, "record") == 0 && n == 2 &&
      (strcmp (argv[2], "start") == 0 || strcmp (argv[2], "stop") == 0))
    return record (argv[1], strcmp (argv[2], "start") == 0, json);
  if (strcmp (what, "show") == 0 && n == 1)
    return show (argv[1], json);
  if (strcmp (what, "export") == 0 && (n == 1 || n == 2))
    return export (argv[1], argv[2]);
  if (strcmp (what, "import") == 0 && n == 2)
    return import (argv[1], argv[2], force);
  nc_error ("needed: record SOCKET start|stop, show IMAGE, export IMAGE "
            "[FILE], or import IMAGE FILE");
  return usage_error ("nbdchain profile");
}
