/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/job/record.c, and of jobs that go on in the next server. */

#include <config.h>

#include "job/record.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tap.h"

#define UUID "6ff5d1a4-7a3c-4c5e-8c3d-0b1f1f8f2a11"

static char dir[] = "/tmp/nbdchain-record.XXXXXX";
static char path[64];
static struct nc_path file = NC_PATH_NONE;      /* the same */
static char why[NC_JOB_TEXT];
static struct nc_jobs *jobs;

static bool
error_says (const char *text)
{
  NC_LOCKED (&tap_lock);
  return strstr (tap_error, text) != NULL;
}

static void
put (const char *text)
{
  FILE *f = fopen (path, "w");

  must (f && fputs (text, f) >= 0 && fclose (f) == 0, "put");
}

static bool
is_there (void)
{
  return access (path, F_OK) == 0;
}

/* The number of entries in the file, read as the next server would. */
static size_t
n_recorded (void)
{
  json_t *list = nc_record_read (&file, UUID);
  const size_t n = json_array_size (list);

  json_decref (list);
  return n;
}

/* What is recorded of the job ID; a new reference, or NULL. */
static json_t *
recorded (const char *id)
{
  json_t *list = nc_record_read (&file, UUID), *json, *found = NULL;
  size_t i;

  json_array_foreach (list, i, json)
    if (strcmp (json_string_value (json_object_get (json, "id")), id) == 0)
      found = json_incref (json);
  json_decref (list);
  return found;
}

/* Whether the member KEY of what is recorded of ID is VALUE, as JSON. */
static bool
records (const char *id, const char *key, const char *value)
{
  json_t *entry = recorded (id);
  char *text = json_dumps (json_object_get (entry, key),
                           JSON_ENCODE_ANY | JSON_COMPACT);
  const bool same = text && strcmp (text, value) == 0;

  if (!same)
    note ("%s of %s: %s", key, id, text ? text : "none");
  free (text);
  json_decref (entry);
  return same;
}

/* The file. */

#define ENTRY(more) \
  "{\"id\":\"a\",\"type\":\"t\",\"arguments\":{},\"speed\":1," \
  "\"on-error\":\"stop\",\"paused\":false,\"auto-finalize\":true," \
  "\"auto-dismiss\":true" more "}"
#define RECORD(jobs) \
  "{\"nbdchain-jobs\":1,\"uuid\":\"" UUID "\",\"jobs\":" jobs "}"

static void
test_parse (void)
{
  static const char *const bad[] = {
    "", "{", "[]", "null", "{}", "\xff", RECORD ("[]") "x", RECORD ("{}"),
    RECORD ("null"), RECORD ("[1]"), RECORD ("[{}]"),
    RECORD ("[" ENTRY (",\"more\":1") "]"),
    RECORD ("[" ENTRY (",\"id\":\"b\"") "]"),
    RECORD ("[" ENTRY ("") ",null]"),
    "{\"nbdchain-jobs\":2,\"uuid\":\"" UUID "\",\"jobs\":[]}",
    "{\"nbdchain-jobs\":1,\"uuid\":\"" UUID "\",\"jobs\":[],\"x\":1}",
    "{\"nbdchain-jobs\":1,\"uuid\":null,\"jobs\":[]}",
    "{\"nbdchain-jobs\":1,\"uuid\":\"\",\"jobs\":[]}",
    RECORD ("[{\"id\":1,\"type\":\"t\",\"arguments\":{},\"speed\":1,"
            "\"on-error\":\"stop\",\"paused\":false,\"auto-finalize\":true,"
            "\"auto-dismiss\":true}]"),
    RECORD ("[{\"id\":\"a\",\"type\":\"t\",\"arguments\":[],\"speed\":1,"
            "\"on-error\":\"stop\",\"paused\":false,\"auto-finalize\":true,"
            "\"auto-dismiss\":true}]"),
    RECORD ("[{\"id\":\"a\",\"type\":\"t\",\"arguments\":{},\"speed\":-1,"
            "\"on-error\":\"stop\",\"paused\":false,\"auto-finalize\":true,"
            "\"auto-dismiss\":true}]"),
    RECORD ("[{\"id\":\"a\",\"type\":\"t\",\"arguments\":{},\"speed\":1.5,"
            "\"on-error\":\"stop\",\"paused\":false,\"auto-finalize\":true,"
            "\"auto-dismiss\":true}]"),
    RECORD ("[{\"id\":\"a\",\"type\":\"t\",\"arguments\":{},\"speed\":1,"
            "\"on-error\":\"auto\",\"paused\":false,\"auto-finalize\":true,"
            "\"auto-dismiss\":true}]"),
    RECORD ("[{\"id\":\"a\",\"type\":\"t\",\"arguments\":{},\"speed\":1,"
            "\"on-error\":\"stop\",\"paused\":0,\"auto-finalize\":true,"
            "\"auto-dismiss\":true}]"),
  };
  const char *good = RECORD ("[" ENTRY ("") "]");
  json_t *list = nc_record_parse (good, strlen (good), UUID, why);
  bool refused = true;
  char *many;

  ok (list && json_array_size (list) == 1, "a record is read");
  json_decref (list);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    why[0] = '\0';
    list = nc_record_parse (bad[i], strlen (bad[i]), UUID, why);
    if (list || why[0] == '\0')
      refused = note ("taken: %s", bad[i]);
    json_decref (list);
  }
  ok (refused, "what is no record is refused, with a message");
  ok (nc_record_parse (good, strlen (good),
                       "00000000-0000-0000-0000-000000000000", why) == NULL &&
      strstr (why, UUID) != NULL, "so is that of another image");

  many = malloc (sizeof ENTRY ("") * (NC_JOBS_MAX + 2) + 200);
  must (many != NULL, "malloc");
  strcpy (many, "{\"nbdchain-jobs\":1,\"uuid\":\"" UUID "\",\"jobs\":[");
  for (int i = 0; i <= NC_JOBS_MAX; i++)
    strcat (strcat (many, i ? "," : ""), ENTRY (""));
  strcat (many, "]}");
  ok (nc_record_parse (many, strlen (many), UUID, why) == NULL,
      "and one of more jobs than there can be");
  free (many);
}

/* What stands under the name is refused, and stays. */
static bool
is_refused (const char *text)
{
  struct stat st;

  tap_clear ();
  return (n_recorded () == 0 && tap_errors == 1 &&
          error_says (path) && error_says (text) &&
          lstat (path, &st) == 0) || note ("not refused: %s", text);
}

static void
test_hostile_files (void)
{
  char other[80];

  tap_clear ();
  ok (n_recorded () == 0 && tap_errors == 0, "no file is no error");
  must (mkdir (path, 0700) == 0, "mkdir");
  ok (is_refused ("is no regular file"), "a directory is refused");
  must (rmdir (path) == 0 && mkfifo (path, 0600) == 0, "mkfifo");
  ok (is_refused ("is no regular file"), "so is a pipe, without waiting");
  snprintf (other, sizeof other, "%s.other", path);
  must (unlink (path) == 0 && symlink (other, path) == 0, "symlink");
  ok (is_refused ("symbolic"), "so is a symbolic link");
  must (unlink (path) == 0, "unlink");
  put (RECORD ("[" ENTRY ("") "]"));
  must (chmod (path, 0620) == 0, "chmod");
  ok (is_refused ("may write"), "so is one that others can write");
  must (chmod (path, 0600) == 0, "chmod");
  ok (n_recorded () == 1, "which else is good");
  must (truncate (path, NC_RECORD_MAX + 1) == 0, "truncate");
  ok (is_refused ("more than"), "so is a large one");
  must (unlink (path) == 0, "unlink");
}

/* What TEXT, of LEN bytes, is as a file. */
static bool
is_taken (const char *text, size_t len)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  must (fd >= 0 && write (fd, text, len) == (ssize_t) len && close (fd) == 0,
        "write");
  tap_clear ();
  if (nc_record_check (&file) == 0)
    return tap_errors == 0;
  must (errno == EEXIST && tap_errors == 1 && error_says (path) &&
        error_says ("is no record of jobs"), "the message");
  return false;
}

static bool
has_text (const char *name, const char *text)
{
  char buf[1000] = "";
  FILE *f = fopen (name, "r");

  must (f != NULL, "fopen");
  fread (buf, 1, sizeof buf - 1, f);
  fclose (f);
  return strcmp (buf, text) == 0;
}

/* What is something else stays, whatever is to be recorded. */
static void
test_foreign_files (void)
{
  static const char *const records[] = {
    "", RECORD ("[]"), RECORD ("["), " \n{\t\"nbdchain-jobs\"",
    "{\"jobs\": [], \"nbdchain-jobs\": 2}",
  };
  static const char *const others[] = {
    "hello\n", "{", "{}", "[]", "{\"jobs\": []}", "{\"nbdchain-jobs",
    "[{\"nbdchain-jobs\": 1}]",
  };
  static const struct nc_job_kind no_kind = { NULL, NULL };
  static const char image[] = RECORD ("[]") "\0";
  json_t *none = json_array (), *list = json_pack ("[{}]");
  bool right = true;

  for (size_t i = 0; i < sizeof records / sizeof records[0]; i++)
    if (!is_taken (records[i], strlen (records[i])))
      right = note ("refused: %s", records[i]);
  ok (right, "a record, a damaged one too, and an empty file may be replaced");
  for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
    if (is_taken (others[i], strlen (others[i])))
      right = note ("taken: %s", others[i]);
  ok (right && !is_taken (image, sizeof image - 1) && !is_taken ("", 1),
      "what does not begin as one, or goes on with zeros, may not");

  put ("hello\n");
  jobs = nc_jobs_new ();
  tap_clear ();
  ok (nc_record_read (&file, UUID) == NULL &&
      nc_jobs_resume (jobs, &file, UUID, "disk", &no_kind, NULL) == -1 &&
      tap_errors == 2 && error_says ("is no record of jobs"),
      "with that no jobs are gone on with");
  nc_jobs_free (jobs);
  tap_clear ();
  ok (nc_record_write (&file, UUID, list) == -1 &&
      nc_record_write (&file, UUID, none) == -1 && tap_errors == 2 &&
      error_says ("does not begin as one") && has_text (path, "hello\n"),
      "and it is neither replaced nor removed");
  must (unlink (path) == 0, "unlink");
  json_decref (none);
  json_decref (list);
}

/* What a killed server, or anybody, has left where the new file is made. */
static void
test_neighbours (void)
{
  json_t *list = json_pack ("[{}]");
  char old[80], other[80];

  snprintf (old, sizeof old, "%s.new", path);
  snprintf (other, sizeof other, "%s.new.%x", path, (unsigned) getpid ());
  for (const char *name = old; name; name = name == old ? other : NULL) {
    FILE *f = fopen (name, "w");

    must (f && fputs ("mine", f) >= 0 && fclose (f) == 0, "put");
  }
  ok (nc_record_write (&file, UUID, list) == 0 && is_there () &&
      has_text (old, "mine") && has_text (other, "mine"),
      "files beside it stay as they are");
  must (unlink (old) == 0 && unlink (other) == 0 && unlink (path) == 0,
        "unlink");
  json_decref (list);
}

/* A file in a directory that is then removed. */
static void
find_in_removed (struct nc_path *nowhere)
{
  char gone[80], in_it[90];

  snprintf (gone, sizeof gone, "%s/none", dir);
  snprintf (in_it, sizeof in_it, "%s/x.jobs", gone);
  must (mkdir (gone, 0700) == 0 && nc_path_find (in_it, nowhere) == 0 &&
        rmdir (gone) == 0, "directory");
}

static void
test_write (void)
{
  json_t *args = json_pack ("{s:s, s:[i]}", "base", "b\xc3\xa4se", "l", 7);
  const struct nc_record_entry entry = {
    .id = "a", .type = "t", .arguments = args, .speed = INT64_MAX,
    .on_error = NC_ON_ERROR_ENOSPC, .paused = true, .auto_dismiss = true,
  };
  json_t *list = json_array ();
  struct nc_record_entry back = { 0 };
  struct nc_path nowhere;
  struct stat st;
  json_t *json;

  json_array_append_new (list, nc_record_encode (&entry));
  must (nc_record_write (&file, UUID, list) == 0, "write");
  json = recorded ("a");
  ok (json && nc_record_decode (json, &back) == 0 &&
      strcmp (back.type, "t") == 0 && json_equal (back.arguments, args) &&
      back.speed == INT64_MAX && back.on_error == NC_ON_ERROR_ENOSPC &&
      back.paused && !back.auto_finalize && back.auto_dismiss,
      "what is written is read again");
  json_decref (json);
  ok (stat (path, &st) == 0 && (st.st_mode & 0777) == 0600,
      "the file is its owner's");
  json_array_clear (list);
  ok (nc_record_write (&file, UUID, list) == 0 && !is_there () &&
      nc_record_write (&file, UUID, list) == 0, "nothing is no file");
  tap_clear ();
  json_array_append_new (list, nc_record_encode (&entry));
  find_in_removed (&nowhere);
  ok (nc_record_write (&nowhere, UUID, list) == -1 &&
      tap_errors == 1 && error_says ("none/x.jobs"),
      "a directory that is not there any more is an error");
  nc_path_close (&nowhere);
  json_decref (list);
  json_decref (args);
}

/* Jobs. */

static _Atomic (bool) finish, fail;
static _Atomic (unsigned) starts;

static int
run (struct nc_job *job, void *opaque)
{
  (void) opaque;
  nc_job_set_len (job, 1);
  for (;;) {
    if (nc_job_pause_point (job) == -1)
      return -1;
    if (finish)
      return 0;
    if (fail && nc_job_error (job, NC_JOB_READ, EIO) == NC_JOB_REPORT) {
      nc_job_set_error (job, "failed");
      return -1;
    }
    nc_job_sleep (job, 1000000);
  }
}

/* Does not hear that it is to end until FINISH. */
static int
run_deaf (struct nc_job *job, void *opaque)
{
  (void) opaque;
  while (!finish)
    usleep (500);
  return nc_job_pause_point (job);
}

static const struct nc_job_type type = { .name = "t", .run = run };
static const struct nc_job_type deaf = { .name = "t", .run = run_deaf };

static int
start (void *opaque, struct nc_jobs *list, const char *id, json_t *args,
       const struct nc_job_options *opts, char text[NC_JOB_TEXT])
{
  const char *base;

  must (opaque == &starts && opts->arguments == args, "start");
  if (json_unpack_ex (args, NULL, JSON_STRICT, "{s:s}", "base", &base) == -1) {
    strcpy (text, "no such base");
    errno = EINVAL;
    return -1;
  }
  starts++;
  return nc_job_create (list, id, &type, opts, NULL, text);
}

static const struct nc_job_kind kinds[] = { { "t", start }, { NULL, NULL } };

static void
boot (void)
{
  finish = fail = false;
  starts = 0;
  jobs = nc_jobs_new ();
  must (jobs && nc_jobs_resume (jobs, &file, UUID, "disk", kinds,
                                &starts) == 0, "resume");
}

static int
create (const char *id, const struct nc_job_type *t,
        struct nc_job_options opts)
{
  json_t *args = json_pack ("{s:s}", "base", "base.raw");
  int r;

  opts.device = "disk";
  opts.arguments = args;
  r = nc_job_create (jobs, id, t, &opts, NULL, why);
  json_decref (args);
  return r;
}

static void
until (const char *id, enum nc_job_status status)
{
  struct nc_job_info info;

  for (;;) {
    const int r = nc_job_get (jobs, id, &info);

    if (r == -1 ? status == NC_JOB_NULL : info.status == status)
      return;
    usleep (500);
  }
}

static void
test_killed (void)
{
  const pid_t child = fork ();
  struct nc_job_info info;
  int status;

  must (child >= 0, "fork");
  if (child == 0) {
    boot ();
    must (create ("a", &type, (struct nc_job_options) {
          .speed = 5, .on_error = NC_ON_ERROR_STOP,
          .manual_dismiss = true }) == 0 &&
      create ("b", &type, (struct nc_job_options) {
          .manual_finalize = true }) == 0 &&
      nc_job_set_speed (jobs, "a", 77, why) == 0 &&
      nc_job_pause (jobs, "b", why) == 0, "create");
    raise (SIGKILL);
  }
  must (waitpid (child, &status, 0) == child && WIFSIGNALED (status) &&
        WTERMSIG (status) == SIGKILL, "child");
  boot ();
  ok (starts == 2 && nc_job_get (jobs, "a", &info) == 0 &&
      info.speed == 77 && info.on_error == NC_ON_ERROR_STOP &&
      !info.auto_dismiss && info.auto_finalize && !info.paused &&
      strcmp (info.type, "t") == 0 && strcmp (info.device, "disk") == 0,
      "after kill -9 a job goes on as it was told to be");
  ok (nc_job_get (jobs, "b", &info) == 0 && info.paused &&
      info.auto_dismiss && !info.auto_finalize,
      "one that was paused waits on");
  ok (n_recorded () == 2 && records ("b", "arguments",
                                     "{\"base\":\"base.raw\"}"),
      "both stay recorded");
  nc_jobs_free (jobs);
  ok (n_recorded () == 2, "also when the server ends in order");
  boot ();
  ok (starts == 2, "and go on once more");
  ok (nc_job_cancel (jobs, "a", false, why) == 0 && n_recorded () == 1 &&
      nc_job_cancel (jobs, "b", false, why) == 0 && !is_there (),
      "until they are cancelled");
  nc_jobs_free (jobs);
}

/* Whether the job was still recorded when its end was told. */
static _Atomic (unsigned) ends, early_ends;

static void
look (void *opaque, const struct nc_job_event *event)
{
  (void) opaque;
  if (event->kind == NC_EVENT_COMPLETED ||
      event->kind == NC_EVENT_CANCELLED) {
    ends++;
    early_ends += is_there ();
  }
}

static void
test_ends (void)
{
  boot ();
  nc_jobs_set_sink (jobs, look, NULL);
  must (create ("a", &type, (struct nc_job_options) { 0 }) == 0, "create");
  ok (records ("a", "paused", "false") && records ("a", "speed", "0"),
      "a job is recorded when its creation returns");
  must (nc_job_pause (jobs, "a", why) == 0, "pause");
  ok (records ("a", "paused", "true"), "that it is paused is, too");
  must (nc_job_resume (jobs, "a", why) == 0, "resume");
  ok (records ("a", "paused", "false"), "and that it is no more");
  finish = true;
  until ("a", NC_JOB_NULL);
  finish = false;
  must (create ("b", &type, (struct nc_job_options) { 0 }) == 0, "create");
  fail = true;
  until ("b", NC_JOB_NULL);
  fail = false;
  ok (!is_there () && ends == 2 && early_ends == 0,
      "one that ends is forgotten before that is told");

  must (create ("c", &deaf, (struct nc_job_options) { 0 }) == 0 &&
        n_recorded () == 1 && nc_job_cancel (jobs, "c", false, why) == 0,
        "create");
  ok (!is_there (), "one that is cancelled, when that was asked for");
  finish = true;
  until ("c", NC_JOB_NULL);
  finish = false;

  must (create ("d", &type, (struct nc_job_options) {
        .on_error = NC_ON_ERROR_STOP }) == 0, "create");
  fail = true;
  until ("d", NC_JOB_PAUSED);
  must (nc_job_set_speed (jobs, "d", 9, why) == 0, "set_speed");
  ok (records ("d", "speed", "9") && records ("d", "paused", "false"),
      "one that an error stopped tries again in the next server");
  nc_jobs_free (jobs);
  boot ();
  must (nc_job_cancel (jobs, "d", false, why) == 0 &&
        nc_job_create (jobs, "e", &type, &(struct nc_job_options) {
            .device = "disk" }, NULL, why) == 0, "create");
  ok (!is_there (), "one without arguments is not recorded");
  nc_jobs_free (jobs);
}

static void
test_dormant (void)
{
  put ("{\"nbdchain-jobs\":1,\"uuid\":\"" UUID "\",\"jobs\":["
       ENTRY ("") ",{\"id\":\"b\",\"type\":\"new\",\"arguments\":{\"x\":[1]},"
       "\"speed\":1,\"on-error\":\"stop\",\"paused\":false,"
       "\"auto-finalize\":true,\"auto-dismiss\":true}]}");
  tap_clear ();
  boot ();
  ok (starts == 0 && tap_errors == 2 && error_says ("'b'") &&
      error_says ("no such type"), "what cannot be started is reported");
  must (create ("c", &type, (struct nc_job_options) { 0 }) == 0, "create");
  ok (n_recorded () == 3 && records ("b", "arguments", "{\"x\":[1]}"),
      "and stays recorded beside others");
  must (create ("a", &type, (struct nc_job_options) { 0 }) == 0, "create");
  ok (n_recorded () == 3 && records ("a", "arguments",
                                     "{\"base\":\"base.raw\"}"),
      "until there is another of its name");
  must (nc_job_cancel (jobs, "a", false, why) == 0 &&
        nc_job_cancel (jobs, "c", false, why) == 0, "cancel");
  ok (n_recorded () == 1 && records ("b", "type", "\"new\""),
      "which takes it away when it ends");
  nc_jobs_free (jobs);
  must (unlink (path) == 0, "unlink");
}

static void
test_unwritable (void)
{
  NC_PATH struct nc_path nowhere = NC_PATH_NONE;

  find_in_removed (&nowhere);
  finish = fail = false;
  jobs = nc_jobs_new ();
  tap_clear ();
  must (jobs && nc_jobs_resume (jobs, &nowhere, UUID, "disk", kinds,
                                &starts) == 0 && tap_errors == 0, "resume");
  ok (create ("a", &type, (struct nc_job_options) { 0 }) == 0 &&
      tap_errors == 1 && error_says ("could not be recorded"),
      "a job runs also where it cannot be recorded, which is reported");
  nc_jobs_free (jobs);
}

/* Operators who do anything while jobs come and go, and a reader, as the next
 * server would be. */
static _Atomic (bool) storm_over;
static uint64_t storm_seed;
static _Atomic (unsigned) unreadable;

static void *
operate (void *arg)
{
  uint64_t state = storm_seed + (uintptr_t) arg;
  char text[NC_JOB_TEXT];

  while (!storm_over) {
    const char id[2] = { (char) ('a' + rnd_below (&state, 4)), '\0' };

    switch (rnd_below (&state, 6)) {
    case 0: nc_job_cancel (jobs, id, rnd_below (&state, 2), text); break;
    case 1: nc_job_pause (jobs, id, text); break;
    case 2: case 3: nc_job_resume (jobs, id, text); break;
    default: nc_job_set_speed (jobs, id, rnd_below (&state, 3), text);
    }
  }
  return NULL;
}

static void *
read_on (void *arg)
{
  (void) arg;
  while (!storm_over) {
    json_t *list = nc_record_read (&file, UUID);

    unreadable += list == NULL;
    json_decref (list);
  }
  return NULL;
}

static int
run_a_while (struct nc_job *job, void *opaque)
{
  (void) opaque;
  for (unsigned i = 0; i < 3; i++) {
    if (nc_job_pause_point (job) == -1)
      return -1;
    nc_job_sleep (job, 1000000);
  }
  return 0;
}

static void
test_storm (uint64_t seed)
{
  static const struct nc_job_type short_type = {
    .name = "t", .run = run_a_while,
  };
  pthread_t t[3];
  size_t n;

  boot ();
  tap_clear ();
  storm_seed = seed;
  must (pthread_create (&t[0], NULL, operate, (void *) 1) == 0 &&
        pthread_create (&t[1], NULL, operate, (void *) 2) == 0 &&
        pthread_create (&t[2], NULL, read_on, NULL) == 0, "thread");
  for (unsigned made = 0; made < 100; ) {
    const char id[2] = { (char) ('a' + rnd_below (&seed, 4)), '\0' };

    if (create (id, made % 3 ? &short_type : &type,
                (struct nc_job_options) { .paused = made % 2 }) == 0)
      made++;
    else
      usleep (100);
  }
  storm_over = true;
  for (unsigned i = 0; i < 3; i++)
    pthread_join (t[i], NULL);
  ok (tap_errors == 0 && unreadable == 0,
      "the file is whole whenever it is looked at");
  nc_jobs_free (jobs);
  n = n_recorded ();
  boot ();
  ok (starts == n && tap_errors == 0, "and each job in it goes on");
  for (char id[2] = "a"; id[0] <= 'd'; id[0]++)
    nc_job_cancel (jobs, id, true, why);
  ok (!is_there (), "until it is cancelled");
  nc_jobs_free (jobs);
}

int
main (void)
{
  const uint64_t seed = tap_start (600);

  must (mkdtemp (dir) != NULL, "mkdtemp");
  snprintf (path, sizeof path, "%s/image.jobs", dir);
  must (nc_path_find (path, &file) == 0, path);
  test_killed ();               /* forks: before there are threads */
  test_parse ();
  test_hostile_files ();
  test_foreign_files ();
  test_neighbours ();
  test_write ();
  test_ends ();
  test_dormant ();
  test_unwritable ();
  test_storm (seed);
  must (rmdir (dir) == 0, "rmdir: something is left");
  nc_path_close (&file);
  return tap_done ();
}
