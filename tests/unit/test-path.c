/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/util/path.c: files by a directory that is held open, and which
 * symbolic links of others lead there. */

#include <config.h>

#include "util/path.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>

#include "folder.h"
#include "tap.h"
#include "util/atomic-file.h"

#define OTHER 54321             /* a user who is not us */

static void
make_file (const char *name)
{
  FILE *fp = fopen (at (name), "w");

  must (fp != NULL, name);
  fputs (name, fp);
  fclose (fp);
}

static void
make_dir (const char *name)
{
  must (mkdir (at (name), 0755) == 0, name);
}

static void
make_link (const char *to, const char *name)
{
  must (symlink (to, at (name)) == 0, name);
}

static void
make_others (const char *name)
{
  must (lchown (at (name), OTHER, OTHER) == 0, name);
}

static bool
has_content (int fd, const char *content)
{
  char text[256];
  const ssize_t n = read (fd, text, sizeof text - 1);

  text[n < 0 ? 0 : n] = '\0';
  return strcmp (text, content) == 0 ||
    note ("content '%s' instead of '%s'", text, content);
}

static bool
is_text (const char *text, const char *expected)
{
  return strcmp (text, expected) == 0 ||
    note ("'%s' instead of '%s'", text, expected);
}

/* TEXT opens the file CONTENT (a file contains its own name), which is NAME in
 * the directory REAL, below the folder. */
static void
opens (const char *text, const char *content, const char *real,
       const char *name, const char *sentence)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_CLOSE int fd = -1;
  struct stat st, st2;

  tap_clear ();
  fd = nc_path_open (text, O_RDONLY, &path);
  ok (fd >= 0 && has_content (fd, content) && tap_errors == 0 &&
      (fcntl (fd, F_GETFD) & FD_CLOEXEC) &&
      is_text (path.real, *real ? at (real) : folder) &&
      is_text (path.name, name) && fstat (fd, &st) == 0 &&
      fstatat (path.dir, path.name, &st2, AT_SYMLINK_NOFOLLOW) == 0 &&
      st.st_ino == st2.st_ino, "%s", sentence);
}

static void
refuses (const char *text, int error, const char *sentence)
{
  struct nc_path path;
  int fd;

  tap_clear ();
  fd = nc_path_open (text, O_RDONLY, &path);
  ok (fd == -1 && errno == error && tap_errors == 1 && path.dir == -1 &&
      path.name == NULL, "%s", sentence);
}

/* The same without a directory. */
static void
opens_none_but_reads (const char *text, const char *sentence)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_CLOSE int fd = nc_path_open (text, O_RDONLY, &path);

  ok (fd >= 0 && has_content (fd, "a/file") && path.dir == -1, "%s", sentence);
}

static void
test_open (void)
{
  char deep[PATH_MAX];

  make_dir ("a");
  make_dir ("a/b");
  make_file ("file");
  make_file ("a/file");
  make_file ("a/b/file");
  make_link ("b", "a/dir");
  make_link ("b/file", "a/link");
  make_link ("link", "a/twice");
  make_link (at ("a/b/"), "absolute");
  make_link ("../..", "a/b/up");
  make_link ("loop", "loop");
  make_link ("nothing", "dangling");

  opens (at ("a/file"), "a/file", "a", "file", "an absolute path");
  opens (at (".//a/./b/../file"), "a/file", "a", "file",
         "one with dots and slashes");
  opens (at ("a/link"), "a/b/file", "a/b", "file", "a link to a file");
  opens (at ("a/twice"), "a/b/file", "a/b", "file", "a link to a link");
  opens (at ("a/dir/file"), "a/b/file", "a/b", "file", "a linked directory");
  opens (at ("absolute/file"), "a/b/file", "a/b", "file",
         "an absolute link to a directory");
  opens (at ("a/dir/../file"), "a/file", "a", "file",
         ".. behind a link is that of what it leads to");
  opens (at ("a/b/up/file"), "file", "", "file", "a link upwards");

  must (chdir (at ("a")) == 0, "chdir");
  opens ("file", "a/file", "a", "file", "a relative path");
  opens ("./b/file", "a/b/file", "a/b", "file", "one below");
  opens ("../file", "file", "", "file", "one above");
  opens ("../a/b/../../file", "file", "", "file", "one up and down");
  must (chdir ("/") == 0, "chdir");

  refuses ("", ENOENT, "an empty path");
  refuses (at ("nothing"), ENOENT, "a missing file");
  refuses (at ("nothing/file"), ENOENT, "a missing directory");
  refuses (at ("file/file"), ENOTDIR, "a file as a directory");
  refuses (at ("loop"), ELOOP, "a loop of links");
  refuses (at ("dangling"), ENOENT, "a link to nothing");
  strcpy (deep, folder);
  for (unsigned i = 0; i < NC_WALK_LEVELS; i++) {
    strcat (deep, "/d");
    must (mkdir (deep, 0755) == 0, "mkdir");
  }
  refuses (deep, ENAMETOOLONG, "too many directories above each other");
}

/* Open files have names in /proc, and may have no other. */
static void
test_open_files (void)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_CLOSE int file = open (at ("a/file"), O_RDWR | O_CLOEXEC);
  NC_CLOSE int again = -1;
  char name[64];
  int pipes[2];

  must (file >= 0 && pipe (pipes) == 0, "open");
  snprintf (name, sizeof name, "/proc/self/fd/%d", file);
  opens (name, "a/file", "a", "file", "an open file is found by its own name");
  make_link (name, "by-link");
  snprintf (name, sizeof name, "/dev/fd/%d", pipes[1]);
  tap_clear ();
  again = nc_path_open (name, O_WRONLY, &path);
  ok (again >= 0 && path.dir == -1 && tap_errors == 0 &&
      write (again, "x", 1) == 1 && read (pipes[0], name, 1) == 1,
      "a pipe is opened again");
  must (rename (at ("a/file"), at ("a/gone")) == 0 &&
        unlink (at ("a/gone")) == 0, "unlink");
  opens_none_but_reads (at ("by-link"), "a file that was deleted, too");
  make_file ("a/file");
  if (geteuid () == 0) {
    make_others ("by-link");
    refuses (at ("by-link"), ENOENT, "but not by a link of another user");
  }
  else
    ok (true, "a link of another user # SKIP only root can make one");
  close (pipes[0]);
  close (pipes[1]);
}

static void
test_text (void)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_PATH struct nc_path beside = NC_PATH_NONE;
  NC_CLOSE int fd = nc_path_open (at ("a/dir/file"), O_PATH, &path);
  NC_FREE char *text = fd >= 0 ? nc_path_text (&path) : NULL;

  ok (text && is_text (text, at ("a/b/file")), "its text has no links");
  ok (fd >= 0 && is_text (path.given, at ("a/dir")),
      "the directory is also known as it was given");
  ok (nc_path_beside (&path, ".jobs", &beside) == 0 &&
      is_text (beside.name, "file.jobs") &&
      is_text (beside.real, path.real) && beside.dir != path.dir,
      "a file beside it");
  nc_path_close (&path);
  ok (path.dir == -1 && path.name == NULL && path.real == NULL,
      "nothing is left when it is closed");
  nc_path_close (&path);
}

static void
finds (const char *text, const char *real, const char *name,
       const char *sentence)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;

  tap_clear ();
  ok (nc_path_find (text, &path) == 0 && tap_errors == 0 &&
      is_text (path.name, name) &&
      is_text (path.real, *real ? at (real) : folder), "%s", sentence);
}

static void
finds_not (const char *text, int error, const char *sentence)
{
  struct nc_path path;

  tap_clear ();
  ok (nc_path_find (text, &path) == -1 && errno == error &&
      tap_errors == 1 && path.dir == -1, "%s", sentence);
}

static void
test_find (void)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;

  finds (at ("a/new"), "a", "new", "a file that is not there yet");
  finds (at ("a/dir/new"), "a/b", "new", "one in a linked directory");
  finds (at ("a/link"), "a", "link", "a link is found, not what it leads to");
  must (chdir (at ("a/b")) == 0, "chdir");
  finds ("new", "a/b", "new", "one without a directory");
  finds ("../new", "a", "new", "one above");
  must (chdir ("/") == 0, "chdir");
  finds_not ("", ENOENT, "nothing has no name");
  finds_not (at ("a/"), EISDIR, "a directory is none");
  finds_not (at ("a/.."), EISDIR, "nor is ..");
  finds_not (at ("nothing/new"), ENOENT, "nor is one in no directory");

  ok (nc_path_open_dir (at ("a/dir/."), &path) == 0 && path.name == NULL &&
      is_text (path.real, at ("a/b")) && is_text (path.given, at ("a/dir")),
      "a directory by a link");
  nc_path_close (&path);
  ok (nc_path_open_dir (at ("a/file"), &path) == -1 && errno == ENOTDIR &&
      path.given == NULL, "a file is no directory");
}

/* What is made is made in the directory that was found, whatever has its name
 * by now. */
static void
test_made (void)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  struct nc_new_file nf;
  struct stat st;
  int fd;

  make_dir ("found");
  make_dir ("elsewhere");
  must (nc_path_find (at ("found/new"), &path) == 0 &&
        rename (at ("found"), at ("moved")) == 0, "rename");
  make_link ("elsewhere", "found");
  ok (nc_replace_file (&path, "text", 0640, -1) == 0 &&
      lstat (at ("moved/new"), &st) == 0 && st.st_size == 4 &&
      (st.st_mode & 0777) == 0640, "a file is made where it was to be");
  make_file ("like");
  must (chmod (at ("like"), 0604) == 0, "chmod");
  fd = open (at ("like"), O_RDONLY | O_CLOEXEC);
  ok (nc_replace_file (&path, "longer", 0600, fd) == 0 &&
      lstat (at ("moved/new"), &st) == 0 && st.st_size == 6 &&
      (st.st_mode & 0777) == 0604, "and replaced, with another's mode");
  close (fd);

  fd = nc_new_file_create (&nf, &path, 0600);
  ok (fd >= 0 && nc_new_file_publish (&nf, false) == -1 && errno == EEXIST,
      "what is there is not replaced unless it may be");
  nc_new_file_close (&nf);
  close (fd);
  must (unlink (at ("moved/new")) == 0, "unlink");
  fd = nc_new_file_create (&nf, &path, 0600);
  ok (fd >= 0 && nc_new_file_publish (&nf, false) == 0 &&
      lstat (at ("moved/new"), &st) == 0, "where nothing is there it appears");
  must (rename (at ("moved/new"), at ("moved/old")) == 0, "rename");
  must (link (at ("like"), at ("moved/new")) == 0, "link");
  nc_new_file_withdraw (&nf);
  ok (lstat (at ("moved/new"), &st) == 0,
      "it is not taken back if something else has its name");
  nc_new_file_close (&nf);
  close (fd);
  must (unlink (at ("moved/new")) == 0 && unlink (at ("moved/old")) == 0,
        "unlink");
  ok (rmdir (at ("elsewhere")) == 0 && rmdir (at ("moved")) == 0,
      "nothing else was made, and nothing is left");
}

/* What another user makes us open by a link. */
static void
test_owners (void)
{
  make_dir ("his");
  make_dir ("his/own");
  make_file ("his/own/file");
  make_file ("ours");
  make_link ("../ours", "his/to-ours");
  make_link ("own/file", "his/to-own");
  make_link ("own", "his/dir");
  make_link ("..", "his/up");
  make_link ("to-ours", "his/to-link");
  make_link ("his/to-ours", "our-link-to-his");
  make_link ("his/own/file", "our-link");
  make_link ("../our-link", "his/back");
  if (geteuid () != 0) {
    for (unsigned i = 0; i < 9; i++)
      ok (true, "links of another user # SKIP only root can make some");
    return;
  }
  make_others ("his");
  make_others ("his/own");
  make_others ("his/own/file");
  make_others ("his/to-ours");
  make_others ("his/to-own");
  make_others ("his/dir");
  make_others ("his/up");
  make_others ("his/to-link");
  make_others ("his/back");
  opens (at ("his/to-own"), "his/own/file", "his/own", "file",
         "his link leads to his file");
  opens (at ("his/dir/file"), "his/own/file", "his/own", "file",
         "his link leads to his directory");
  opens (at ("our-link"), "his/own/file", "his/own", "file",
         "our link leads to his file");
  opens (at ("his/back"), "his/own/file", "his/own", "file",
         "his link leads through ours to his file");
  refuses (at ("his/to-ours"), EPERM, "his link does not lead to our file");
  ok (strstr (tap_error, at ("ours")) && strstr (tap_error, "54321"),
      "the message says who led where");
  refuses (at ("his/to-link"), EPERM, "nor by another link of his");
  refuses (at ("our-link-to-his"), EPERM, "nor after one of ours");
  refuses (at ("his/up/ours"), EPERM, "nor by a directory of ours");
}

/* The owner of a directory exchanges it for a link, again and again: what is
 * opened in it is what was there, or nothing. */
static atomic_bool stop_swapping;

static void *
swap (void *arg)
{
  char dir[300], link[300];

  (void) arg;
  snprintf (dir, sizeof dir, "%s", at ("race/dir"));
  snprintf (link, sizeof link, "%s", at ("race/link"));
  while (!stop_swapping)
    renameat2 (AT_FDCWD, dir, AT_FDCWD, link, RENAME_EXCHANGE);
  return NULL;
}

static void
quiet (enum nc_report_level level, const char *fmt, va_list args)
{
  (void) level;
  (void) fmt;
  (void) args;
}

static void
test_race (void)
{
  unsigned inside = 0, outside = 0;
  pthread_t thread;
  char text[300];

  if (geteuid () != 0) {
    ok (true, "directories that are exchanged # SKIP only root can");
    return;
  }
  make_dir ("race");
  make_dir ("race/dir");
  make_file ("race/dir/ours");
  make_link ("..", "race/link");
  make_others ("race");
  make_others ("race/dir");
  make_others ("race/dir/ours");
  make_others ("race/link");
  snprintf (text, sizeof text, "%s", at ("race/dir/ours"));
  nc_report_to (quiet);
  must (pthread_create (&thread, NULL, swap, NULL) == 0, "thread");
  for (unsigned i = 0; i < 5000; i++) {
    NC_PATH struct nc_path path = NC_PATH_NONE;
    NC_CLOSE int fd = nc_path_open (text, O_RDONLY, &path);
    struct stat st, st2;

    if (fd == -1)
      continue;
    if (fstat (fd, &st) == 0 && st.st_uid == OTHER &&
        fstat (path.dir, &st2) == 0 && st2.st_uid == OTHER)
      inside++;
    else
      outside++;
  }
  stop_swapping = true;
  pthread_join (thread, NULL);
  nc_report_to (tap_sink);
  note ("opened %u times", inside);
  ok (outside == 0, "his directory is exchanged for a link to ours in vain");
}

static void
is_roots (const char *text, const char *why_not, const char *sentence)
{
  NC_FREE char *why = NULL;
  const bool is = nc_path_is_roots (text, &why);

  ok (why_not ? !is && why && strstr (why, why_not) : is && why == NULL,
      "%s", sentence);
  if (why)
    note ("%s", why);
}

static void
test_trust (void)
{
  is_roots ("/usr/bin/env", NULL, "a program of the system is root's");
  is_roots ("/tmp", "may write", "a directory for all is not");
  is_roots ("/nonexistent/x", "/nonexistent/x: No such",
            "what does not exist is not");
  ok (errno == ENOENT, "but only root could make it");
  is_roots ("/tmp/no such thing", "others than root may make",
            "what others could make is not");
  if (geteuid () != 0) {
    is_roots (at ("ours"), "belongs to user", "a file of ours is not");
    return;
  }
  is_roots (at ("ours"), NULL, "a file of root's below a sticky directory is");
  is_roots (at ("his/own/file"), "his belongs to user 54321",
            "the first directory of another user is named");
  make_dir ("open");
  make_file ("open/file");
  must (chmod (at ("open"), 0775) == 0, "chmod");
  is_roots (at ("open/file"), "may write to", "one that a group may write");
  must (chmod (at ("open"), 0755) == 0 &&
        chmod (at ("open/file"), 0646) == 0, "chmod");
  is_roots (at ("open/file"), "open/file (mode 0646)",
            "a file that others may write");
  make_link ("ours", "his-link");
  is_roots (at ("his-link"), NULL, "a link of root's");
  make_others ("his-link");
  is_roots (at ("his-link"), "symbolic link", "a link of another user");
}

int
main (void)
{
  tap_start (120);
  make_folder ("test-path");
  test_open ();
  test_open_files ();
  test_text ();
  test_find ();
  test_made ();
  test_owners ();
  test_race ();
  test_trust ();
  remove_folder ();
  return tap_done ();
}
