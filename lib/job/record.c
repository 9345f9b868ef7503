/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Reading and writing the file with the jobs of an image.
 *
 * A new file is made beside the old one, synced, given its name, and then the
 * directory is synced: whoever looks, also after power was lost, finds the
 * old one or the new one. */

#include <config.h>

#include "job/record.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "report.h"
#include "scope.h"

#define FORMAT 1                /* of the file */

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
                      "nbdchain-jobs", &format, "uuid", &owner,
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

/* Returns the file's text; NULL with errno, and a message in WHY if it is
 * not that of errno. */
static char *
load (const char *path, size_t *len, char why[NC_JOB_TEXT])
{
  NC_CLOSE int fd = open (path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW |
                          O_NONBLOCK);
  struct stat st;
  char *text;
  ssize_t n;

  if (fd == -1 || fstat (fd, &st) == -1)
    return NULL;
  errno = EINVAL;
  if (!S_ISREG (st.st_mode) || st.st_size > NC_RECORD_MAX)
    return (char *) refuse (why, "it is no file of at most %d bytes",
                            NC_RECORD_MAX);
  if ((st.st_uid != geteuid () && st.st_uid != 0) || (st.st_mode & 022))
    return (char *) refuse (why, "others than the server's user may write "
                            "to it");
  text = malloc (NC_RECORD_MAX);
  n = text ? read_all (fd, text, NC_RECORD_MAX) : -1;
  if (n == -1) {
    free (text);
    return NULL;
  }
  *len = n;
  return text;
}

json_t *
nc_record_read (const char *path, const char *uuid)
{
  char why[NC_JOB_TEXT] = "";
  size_t len = 0;
  NC_FREE char *text = load (path, &len, why);
  json_t *list = NULL;

  if (text == NULL && why[0] == '\0' && errno != ENOENT)
    refuse (why, "%s", strerror (errno));
  if (text)
    list = nc_record_parse (text, len, uuid, why);
  if (why[0] != '\0')
    nc_error ("%s: no job goes on from where it was: %s; the file is "
              "replaced when a job is started", path, why);
  if (list == NULL) {
    list = json_array ();
    if (list == NULL)
      nc_error ("%s: out of memory", path);
  }
  return list;
}

/* Writing. */

static int
sync_directory (const char *path)
{
  NC_FREE char *copy = strdup (path);
  NC_CLOSE int fd = copy ? open (dirname (copy),
                                 O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  return fd == -1 ? -1 : fsync (fd);
}

static int
write_all (int fd, const char *text, size_t len)
{
  while (len > 0) {
    const ssize_t n = write (fd, text, len);

    if (n == -1 && errno != EINTR)
      return -1;
    if (n > 0) {
      text += n;
      len -= n;
    }
  }
  return 0;
}

/* Make the file TMP, durable but for its name. */
static int
make_file (const char *tmp, const char *text)
{
  NC_CLOSE int fd = -1;

  if (unlink (tmp) == -1 && errno != ENOENT)
    return -1;
  fd = open (tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd == -1)
    return -1;
  return write_all (fd, text, strlen (text)) == -1 ? -1 : fsync (fd);
}

static int
replace (const char *path, const char *text)
{
  NC_FREE char *tmp = NULL;
  int err;

  if (asprintf (&tmp, "%s.new", path) == -1) {
    tmp = NULL;
    return -1;
  }
  if (make_file (tmp, text) == 0 && rename (tmp, path) == 0)
    return sync_directory (path);
  err = errno;
  unlink (tmp);
  errno = err;
  return -1;
}

static char *
text_of (const char *uuid, json_t *entries)
{
  json_t *file = json_pack ("{s:i, s:s, s:O}", "nbdchain-jobs", FORMAT,
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
remove_file (const char *path)
{
  if (unlink (path) == -1)
    return errno == ENOENT ? 0 : -1;
  return sync_directory (path);
}

int
nc_record_write (const char *path, const char *uuid, json_t *entries)
{
  NC_FREE char *text = NULL;
  int r;

  if (json_array_size (entries) == 0)
    r = remove_file (path);
  else {
    text = text_of (uuid, entries);
    r = text ? replace (path, text) : -1;
  }
  if (r == -1)
    nc_error ("%s: which jobs run could not be recorded: %m; after a restart "
              "of the server see whether they are as they should be", path);
  return r;
}
