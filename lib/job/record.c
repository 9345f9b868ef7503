/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Reading and writing the file with the jobs of an image.
 *
 * A file that is no record of jobs, by its content, is neither used nor
 * replaced nor removed: its name may have been given by mistake. */

#include <config.h>

#include "job/record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/atomic-file.h"
#include "util/report.h"
#include "util/scope.h"

#define FORMAT 1                /* of the file */
#define KEY "nbdchain-jobs"     /* what a record begins with */

/* Entries. */

json_t *
nc_record_encode (const struct nc_record_entry *entry)
{
  return json_pack ("{s:s, s:s, s:O, s:I, s:s, s:b, s:b, s:b}",
                    "id", entry->id, "type", entry->type,
                    "arguments", entry->arguments,
                    "speed", (json_int_t) entry->speed,
                    "on-error", nc_on_error_name (entry->on_error),
                    "paused", (int) entry->paused,
                    "auto-finalize", (int) entry->auto_finalize,
                    "auto-dismiss", (int) entry->auto_dismiss);
}

int
nc_record_decode (json_t *json, struct nc_record_entry *entry)
{
  int paused, auto_finalize, auto_dismiss;
  const char *policy;
  json_int_t speed;

  if (json_unpack_ex (json, NULL, JSON_STRICT,
                      "{s:s, s:s, s:o, s:I, s:s, s:b, s:b, s:b}",
                      "id", &entry->id, "type", &entry->type,
                      "arguments", &entry->arguments, "speed", &speed,
                      "on-error", &policy, "paused", &paused,
                      "auto-finalize", &auto_finalize,
                      "auto-dismiss", &auto_dismiss) == -1 ||
      !json_is_object (entry->arguments) || speed < 0 ||
      nc_on_error_parse (policy, &entry->on_error) == -1)
    return -1;
  entry->speed = (uint64_t) speed;
  entry->paused = paused;
  entry->auto_finalize = auto_finalize;
  entry->auto_dismiss = auto_dismiss;
  return 0;
}

/* Reading. */

__attribute__ ((__format__ (printf, 2, 3)))
static json_t *
refuse (char why[NC_JOB_TEXT], const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (why, NC_JOB_TEXT, fmt, args);
  va_end (args);
  return NULL;
}

static json_t *
check_entries (json_t *entries, char why[NC_JOB_TEXT])
{
  struct nc_record_entry entry;
  json_t *json;
  size_t i;

  if (!json_is_array (entries) || json_array_size (entries) > NC_JOBS_MAX)
    return refuse (why, "\"jobs\" is no list of at most %d", NC_JOBS_MAX);
  json_array_foreach (entries, i, json)
    if (nc_record_decode (json, &entry) == -1)
      return refuse (why, "entry %zu is no job as it is recorded", i + 1);
  return json_incref (entries);
}

json_t *
nc_record_parse (const char *text, size_t len, const char *uuid,
                 char why[NC_JOB_TEXT])
{
  json_error_t error;
  json_t *file = json_loadb (text, len, JSON_REJECT_DUPLICATES, &error);
  json_t *entries, *list = NULL;
  const char *owner;
  json_int_t format;

  if (json_unpack_ex (file, &error, JSON_STRICT, "{s:I, s:s, s:o}",
                      KEY, &format, "uuid", &owner,
                      "jobs", &entries) == -1)
    refuse (why, "%.100s", error.text);
  else if (format != FORMAT)
    refuse (why, "its format is %" JSON_INTEGER_FORMAT ", and not %d",
            format, FORMAT);
  else if (strcmp (owner, uuid) != 0)
    refuse (why, "it belongs to the image with the UUID %.36s, and this one "
            "has %.36s", owner, uuid);
  else
    list = check_entries (entries, why);
  json_decref (file);
  return list;
}

/* Up to SIZE bytes of a file.  Returns how many there are, or -1. */
static ssize_t
read_all (int fd, char *buf, size_t size)
{
  size_t len = 0;
  ssize_t n = 1;

  while (len < size && n != 0) {
    n = read (fd, buf + len, size - len);
    if (n == -1 && errno != EINTR)
      return -1;
    if (n > 0)
      len += n;
  }
  return len;
}

/* A record, or what is left of one that was damaged; an empty file is one,
 * too. */
static bool
is_record (const char *text, size_t len)
{
  static const char space[] = " \t\r\n";
  json_t *file = json_loadb (text, len, 0, NULL);
  const bool is = json_object_get (file, KEY) != NULL;

  json_decref (file);
  if (is || len == 0)
    return true;
  if (strlen (text) != len)
    return false;
  text += strspn (text, space);
  if (*text++ != '{')
    return false;
  text += strspn (text, space);
  return strncmp (text, "\"" KEY "\"", strlen ("\"" KEY "\"")) == 0;
}

struct found {
  char *text;                   /* NULL: there is no file */
  size_t len;                   /* without the final NUL */
  struct stat st;
};

/* Look for the file PATH.  Returns -1 with a message in WHY if there is
 * something that is no record of jobs, or that cannot be looked at. */
static int
find (const struct nc_path *path, struct found *found, char why[NC_JOB_TEXT])
{
  NC_CLOSE int fd = openat (path->dir, path->name, O_RDONLY | O_CLOEXEC |
                            O_NOFOLLOW | O_NONBLOCK);
  ssize_t n = -1;

  *found = (struct found) { 0 };
  if (fd == -1 && errno == ENOENT)
    return 0;
  if (fd == -1 && errno == ELOOP)
    refuse (why, "it is a symbolic link");
  else if (fd == -1 || fstat (fd, &found->st) == -1)
    refuse (why, "%s", strerror (errno));
  else if (!S_ISREG (found->st.st_mode))
    refuse (why, "it is no regular file");
  else if (found->st.st_size > NC_RECORD_MAX)
    refuse (why, "it has more than %d bytes", NC_RECORD_MAX);
  else {
    found->text = malloc (NC_RECORD_MAX + 1);
    if (found->text)
      n = read_all (fd, found->text, NC_RECORD_MAX);
    if (n == -1)
      refuse (why, "%s", strerror (errno));
  }
  if (n >= 0) {
    found->text[n] = '\0';
    found->len = n;
    if (is_record (found->text, n))
      return 0;
    refuse (why, "it does not begin as one");
  }
  free (found->text);
  found->text = NULL;
  return -1;
}

static int
report_foreign (const struct nc_path *path, const char *why)
{
  nc_error ("%s/%s: is no record of jobs (%s), and one would take its place: "
            "move it away, or have the record elsewhere (nbdchain serve "
            "--jobs FILE, jobs=FILE)", path->real, path->name, why);
  errno = EEXIST;
  return -1;
}

int
nc_record_check (const struct nc_path *path)
{
  char why[NC_JOB_TEXT] = "";
  struct found found;
  const int r = find (path, &found, why);

  free (found.text);
  return r == 0 ? 0 : report_foreign (path, why);
}

json_t *
nc_record_read (const struct nc_path *path, const char *uuid)
{
  char why[NC_JOB_TEXT] = "";
  struct found found;
  json_t *list = NULL;

  if (find (path, &found, why) == -1) {
    report_foreign (path, why);
    return NULL;
  }
  if (found.text && ((found.st.st_uid != geteuid () && found.st.st_uid != 0) ||
                     (found.st.st_mode & 022)))
    refuse (why, "others than the server's user may write to it");
  else if (found.text)
    list = nc_record_parse (found.text, found.len, uuid, why);
  free (found.text);
  if (why[0] != '\0')
    nc_error ("%s/%s: no job goes on from where it was: %s; the file is "
              "replaced when a job is started", path->real, path->name, why);
  if (list == NULL) {
    list = json_array ();
    if (list == NULL)
      nc_error ("%s/%s: out of memory", path->real, path->name);
  }
  return list;
}

/* Writing. */

static char *
text_of (const char *uuid, json_t *entries)
{
  json_t *file = json_pack ("{s:i, s:s, s:O}", KEY, FORMAT,
                            "uuid", uuid, "jobs", entries);
  char *text = file ? json_dumps (file, JSON_INDENT (2)) : NULL;

  json_decref (file);
  if (text && strlen (text) > NC_RECORD_MAX) {
    free (text);
    errno = EFBIG;
    return NULL;
  }
  if (text == NULL)
    errno = ENOMEM;
  return text;
}

static int
remove_file (const struct nc_path *path)
{
  if (unlinkat (path->dir, path->name, 0) == -1)
    return errno == ENOENT ? 0 : -1;
  return nc_sync_directory (path);
}

static int
write_file (const struct nc_path *path, const char *uuid, json_t *entries)
{
  NC_FREE char *text = NULL;

  if (json_array_size (entries) == 0)
    return remove_file (path);
  text = text_of (uuid, entries);
  return text ? nc_replace_file (path, text, 0600, -1) : -1;
}

int
nc_record_write (const struct nc_path *path, const char *uuid, json_t *entries)
{
  char why[NC_JOB_TEXT] = "";
  struct found found;

  /* What is there may have changed since it was read. */
  if (find (path, &found, why) == -1)
    errno = EEXIST;
  else {
    free (found.text);
    if (write_file (path, uuid, entries) == 0)
      return 0;
    refuse (why, "%s", strerror (errno));
  }
  nc_error ("%s/%s: which jobs run could not be recorded: %s; after a restart "
            "of the server see whether they are as they should be",
            path->real, path->name, why);
  return -1;
}
