/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/job/job.c, with jobs that do what a test tells them. */

#include <config.h>

#include "job/job.h"

#include <limits.h>

#include "tap.h"

#define MS 1000000              /* nanoseconds */

/* What a fake job does, and what was done to it. */
struct fake {
  pthread_mutex_t lock;
  pthread_cond_t woken;
  _Atomic (unsigned) wakes, changes, frees, finalizes;
  _Atomic (bool) started, go;   /* go: finish */
  _Atomic (bool) get_ready, hang, hang_free;
  _Atomic (int) fail_read;      /* errno of the next operation */
  _Atomic (unsigned) attempts;
  _Atomic (uint64_t) taken;     /* bytes that the speed let through */
  _Atomic (uint64_t) piece;     /* bytes a step; 0: it does not throttle */
  _Atomic (enum nc_job_limit) limit;
  uint64_t len, skip;           /* bytes; of them there already */
  _Atomic (bool) was_shutdown;
  int result, finalize_result;
  const char *error;
};

/* Events, as text. */
static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static char events[8192];

static void
sink (void *opaque, const struct nc_job_event *event)
{
  static const char *const kinds[] = {
    [NC_EVENT_READY] = "READY", [NC_EVENT_PENDING] = "PENDING",
    [NC_EVENT_COMPLETED] = "COMPLETED", [NC_EVENT_CANCELLED] = "CANCELLED",
  };
  static const char *const actions[] = { "report", "ignore", "stop" };
  size_t n;

  NC_LOCKED (&events_lock);
  n = strlen (events);
  must (opaque == events && n + 100 < sizeof events, "events");
  if (event->kind == NC_EVENT_STATUS)
    strcpy (events + n, nc_job_status_name (event->info->status));
  else if (event->kind == NC_EVENT_ERROR)
    sprintf (events + n, "%s:%s",
             event->operation == NC_JOB_READ ? "read" : "write",
             actions[event->action]);
  else
    strcpy (events + n, kinds[event->kind]);
  strcat (events, " ");
}

static bool
events_are (const char *text)
{
  NC_LOCKED (&events_lock);
  if (strcmp (events, text) != 0)
    return note ("events: %s", events);
  return true;
}

static void
wait_for_source (struct nc_job *job, struct fake *fake)
{
  NC_LOCKED (&fake->lock);
  while (fake->hang && !nc_job_is_wanted (job))
    pthread_cond_wait (&fake->woken, &fake->lock);
}

/* One step.  Returns -1 if the job is to fail. */
static int
step (struct nc_job *job, struct fake *fake)
{
  const int err = fake->fail_read;

  wait_for_source (job, fake);
  nc_job_set_limit (job, fake->limit);
  if (err) {
    fake->attempts++;
    switch (nc_job_error (job, NC_JOB_READ, err)) {
    case NC_JOB_REPORT:
      nc_job_set_error (job, "disk: %s", strerror (err));
      nc_job_set_error (job, "not shown");
      return -1;
    case NC_JOB_IGNORE:
      nc_job_back_off (job, fake->attempts - 1);
      break;
    case NC_JOB_STOP:
      break;
    }
  }
  if (fake->piece && nc_job_throttle (job, fake->piece) == 0) {
    fake->taken += fake->piece;
    nc_job_count (job, NC_COUNT_COPIED, fake->piece);
  }
  else
    nc_job_sleep (job, MS);
  return 0;
}

static int
fake_run (struct nc_job *job, void *opaque)
{
  struct fake *fake = opaque;

  fake->started = true;
  nc_job_set_len (job, fake->len);
  nc_job_count (job, NC_COUNT_LOCAL, fake->skip);
  nc_job_progress (job, fake->skip);
  while (!fake->go) {
    if (nc_job_pause_point (job) == -1) {
      fake->was_shutdown = nc_job_is_shutdown (job);
      return -1;
    }
    if (step (job, fake) == -1)
      return -1;
  }
  if (fake->get_ready) {
    nc_job_ready (job);
    for (;;) {
      if (nc_job_pause_point (job) == -1)
        return nc_job_is_forced (job) ? -1 : 0;
      if (nc_job_should_complete (job))
        break;
      nc_job_sleep (job, 3600000 * (uint64_t) MS);
    }
  }
  if (fake->error)
    nc_job_set_error (job, "%s", fake->error);
  return fake->result;
}

static int
fake_finalize (struct nc_job *job, void *opaque)
{
  struct fake *fake = opaque;

  fake->finalizes++;
  if (fake->finalize_result == -1)
    nc_job_set_error (job, "cannot finalize");
  return fake->finalize_result;
}

static void
fake_wake (struct nc_job *job, void *opaque)
{
  struct fake *fake = opaque;

  (void) job;
  fake->wakes++;
  NC_LOCKED (&fake->lock);
  pthread_cond_broadcast (&fake->woken);
}

static void
fake_changed (struct nc_job *job, void *opaque)
{
  struct fake *fake = opaque;

  (void) nc_job_speed (job);
  fake->changes++;
}

static void
fake_free (void *opaque)
{
  struct fake *fake = opaque;

  while (fake->hang_free)
    usleep (500);
  fake->frees++;
}

static const struct nc_job_type type = {
  .name = "fake", .after_failure = "do it again",
  .run = fake_run, .finalize = fake_finalize,
  .wake = fake_wake, .changed = fake_changed, .free = fake_free,
};

static struct nc_jobs *jobs;
static char why[NC_JOB_TEXT];
static struct nc_job_info info;

static void
init (struct fake *fake)
{
  *fake = (struct fake) { .lock = PTHREAD_MUTEX_INITIALIZER,
                          .woken = PTHREAD_COND_INITIALIZER,
                          .len = 1000 };
  {
    NC_LOCKED (&events_lock);
    events[0] = '\0';
  }
}

static int
create (struct fake *fake, const char *id, struct nc_job_options opts)
{
  opts.device = "disk";
  return nc_job_create (jobs, id, &type, &opts, fake, why);
}

/* Poll until the job is in STATUS; NC_JOB_NULL: gone. */
static bool
comes_to (const char *id, enum nc_job_status status)
{
  for (unsigned i = 0; i < 20000; i++) {
    const int r = nc_job_get (jobs, id, &info);

    if (r == -1 ? status == NC_JOB_NULL : info.status == status)
      return true;
    usleep (500);
  }
  return note ("job %s is %s", id, nc_job_status_name (info.status));
}

/* The same for the freeing of what a job works on. */
static bool
is_freed (struct fake *fake)
{
  for (unsigned i = 0; i < 20000 && fake->frees == 0; i++)
    usleep (500);
  return fake->frees == 1;
}

/* Dismiss, and see that everything is gone. */
static bool
is_dismissed (struct fake *fake, const char *id)
{
  return nc_job_dismiss (jobs, id, why) == 0 &&
    nc_job_get (jobs, id, &info) == -1 && is_freed (fake);
}

/* The tables, written down as QEMU has them. */
static void
test_tables (void)
{
  static const char *const verbs[NC_JOB_N_VERBS] = {
    /* undefined created running paused ready standby waiting pending
     * aborting concluded null */
    [NC_VERB_CANCEL] = "01111111000", [NC_VERB_PAUSE] = "01111100000",
    [NC_VERB_RESUME] = "01111100000", [NC_VERB_SET_SPEED] = "01111100000",
    [NC_VERB_COMPLETE] = "00001000000", [NC_VERB_FINALIZE] = "00000001000",
    [NC_VERB_DISMISS] = "00000000010",
  };
  static const char *const states[NC_JOB_N_STATUS] = {
    [NC_JOB_UNDEFINED] = "01000000000", [NC_JOB_CREATED] = "00100000101",
    [NC_JOB_RUNNING] = "00011010100", [NC_JOB_PAUSED] = "00100000000",
    [NC_JOB_READY] = "00000110100", [NC_JOB_STANDBY] = "00001000000",
    [NC_JOB_WAITING] = "00000001100", [NC_JOB_PENDING] = "00000000110",
    [NC_JOB_ABORTING] = "00000000010", [NC_JOB_CONCLUDED] = "00000000001",
    [NC_JOB_NULL] = "00000000000",
  };
  bool good = true;

  for (unsigned v = 0; v < NC_JOB_N_VERBS; v++)
    for (unsigned s = 0; s < NC_JOB_N_STATUS; s++)
      good = good && nc_job_may (s, v) == (verbs[v][s] == '1');
  ok (good, "each verb is allowed in the states in which QEMU allows it");
  for (unsigned s = 0; s < NC_JOB_N_STATUS; s++)
    for (unsigned to = 0; to < NC_JOB_N_STATUS; to++)
      good = good && nc_job_may_become (s, to) == (states[s][to] == '1');
  ok (good, "each state is left for those for which QEMU leaves it");
}

static int
ask (enum nc_job_verb verb, const char *id)
{
  switch (verb) {
  case NC_VERB_CANCEL: return nc_job_cancel (jobs, id, true, why);
  case NC_VERB_PAUSE: return nc_job_pause (jobs, id, why);
  case NC_VERB_RESUME: return nc_job_resume (jobs, id, why);
  case NC_VERB_SET_SPEED: return nc_job_set_speed (jobs, id, 0, why);
  case NC_VERB_COMPLETE: return nc_job_complete (jobs, id, why);
  case NC_VERB_FINALIZE: return nc_job_finalize (jobs, id, why);
  default: return nc_job_dismiss (jobs, id, why);
  }
}

/* Bring a new job to STATUS. */
static bool
bring (struct fake *fake, enum nc_job_status status)
{
  const bool ends = status == NC_JOB_PENDING || status == NC_JOB_CONCLUDED;

  init (fake);
  fake->get_ready = status == NC_JOB_READY || status == NC_JOB_STANDBY;
  fake->go = ends || fake->get_ready;
  if (create (fake, "job", (struct nc_job_options) {
        .manual_dismiss = true,
        .manual_finalize = status == NC_JOB_PENDING,
        .paused = status == NC_JOB_PAUSED }) == -1)
    return false;
  if (status == NC_JOB_STANDBY)
    return comes_to ("job", NC_JOB_READY) &&
      nc_job_pause (jobs, "job", why) == 0 && comes_to ("job", status);
  return comes_to ("job", status);
}

/* Of a job that does not end by itself. */
static bool
put_away (struct fake *fake)
{
  nc_job_cancel (jobs, "job", true, why);
  return comes_to ("job", NC_JOB_CONCLUDED) && is_dismissed (fake, "job");
}

static void
test_verbs (void)
{
  static const enum nc_job_status reached[] = {
    NC_JOB_RUNNING, NC_JOB_PAUSED, NC_JOB_READY, NC_JOB_STANDBY,
    NC_JOB_PENDING, NC_JOB_CONCLUDED,
  };

  for (unsigned s = 0; s < sizeof reached / sizeof reached[0]; s++) {
    const enum nc_job_status status = reached[s];
    bool good = true;

    for (enum nc_job_verb verb = 0; verb < NC_JOB_N_VERBS; verb++) {
      const bool is_paused =
        status == NC_JOB_PAUSED || status == NC_JOB_STANDBY;
      const bool expect = nc_job_may (status, verb) &&
        !(verb == NC_VERB_PAUSE && is_paused) &&
        !(verb == NC_VERB_RESUME && !is_paused);
      struct fake fake;

      good = good && bring (&fake, status);
      why[0] = '\0';
      errno = 0;
      if ((ask (verb, "job") == 0) != expect ||
          (!expect && (errno != EBUSY || strstr (why, "job 'job'") == NULL)))
        good = note ("%s: %s", nc_job_verb_name (verb), why);
      if (nc_job_get (jobs, "job", &info) == 0)
        good = good && put_away (&fake);
      else
        good = good && is_freed (&fake);
    }
    ok (good, "a job that is %s takes the verbs that its state allows",
        nc_job_status_name (status));
  }
}

static void
test_life (void)
{
  struct fake fake;

  init (&fake);
  fake.go = true;
  ok (create (&fake, NULL, (struct nc_job_options) { .speed = 5 }) == 0 &&
      comes_to ("disk", NC_JOB_NULL) && is_freed (&fake) &&
      events_are ("created running waiting pending COMPLETED concluded "
                  "null ") && fake.finalizes == 1,
      "a job runs, is finalized and dismissed by itself");

  init (&fake);
  fake.go = true;
  ok (create (&fake, "a", (struct nc_job_options) {
        .manual_finalize = true, .manual_dismiss = true }) == 0 &&
      comes_to ("a", NC_JOB_PENDING) && fake.finalizes == 0 &&
      nc_job_finalize (jobs, "a", why) == 0 &&
      nc_job_wait (jobs, "a", -1, &info) == 0 &&
      info.status == NC_JOB_CONCLUDED && fake.finalizes == 1 &&
      !info.failed && info.error[0] == '\0' && info.offset == info.len &&
      fake.frees == 0 && is_dismissed (&fake, "a") &&
      events_are ("created running waiting pending PENDING COMPLETED "
                  "concluded null "),
      "or when it is told to");

  init (&fake);
  fake.go = fake.get_ready = true;
  ok (create (&fake, "a", (struct nc_job_options) { 0 }) == 0 &&
      comes_to ("a", NC_JOB_READY) && info.ready &&
      info.offset == info.len && nc_job_complete (jobs, "a", why) == 0 &&
      comes_to ("a", NC_JOB_NULL) &&
      events_are ("created running ready READY waiting pending COMPLETED "
                  "concluded null "),
      "a job that is ready ends when it is told to complete");
  must (is_freed (&fake), "free");
}

static void
test_failure (void)
{
  struct fake fake;

  init (&fake);
  fake.go = true;
  fake.result = -1;
  fake.error = "no such thing";
  tap_clear ();
  ok (create (&fake, "a",
              (struct nc_job_options) { .manual_dismiss = true }) == 0 &&
      nc_job_wait (jobs, "a", -1, &info) == 0 && info.failed &&
      strcmp (info.error, "no such thing") == 0 && fake.finalizes == 0 &&
      info.offset < info.len && is_dismissed (&fake, "a") &&
      events_are ("created running aborting COMPLETED concluded null "),
      "a job that fails says why, and is not finalized");
  ok (tap_errors == 1 && strcmp (tap_error, "job 'a' (fake) failed: no such "
                                 "thing; do it again") == 0,
      "which is reported once, with what to do, though nobody may listen");

  init (&fake);
  fake.go = true;
  fake.finalize_result = -1;
  ok (create (&fake, "a",
              (struct nc_job_options) { .manual_dismiss = true }) == 0 &&
      nc_job_wait (jobs, "a", -1, &info) == 0 && info.failed &&
      strcmp (info.error, "cannot finalize") == 0 &&
      is_dismissed (&fake, "a") &&
      events_are ("created running waiting pending aborting COMPLETED "
                  "concluded null "),
      "so does one that cannot be finalized");
}

static void
test_cancel (void)
{
  struct fake fake;

  init (&fake);
  fake.hang = true;
  tap_clear ();
  must (create (&fake, "a", (struct nc_job_options) {
        .manual_dismiss = true }) == 0, "create");
  while (!fake.started)
    usleep (500);
  ok (nc_job_wait (jobs, "a", 0, &info) == -1 && errno == ETIMEDOUT &&
      info.status == NC_JOB_RUNNING, "one can wait for a while only");
  ok (nc_job_cancel (jobs, "a", false, why) == 0 &&
      nc_job_wait (jobs, "a", -1, &info) == 0 && fake.wakes > 0 &&
      info.cancelled && !info.failed &&
      strstr (info.error, "cancelled") != NULL &&
      !fake.was_shutdown && is_dismissed (&fake, "a") &&
      events_are ("created running aborting CANCELLED concluded null "),
      "a job is cancelled while its source hangs");
  ok (tap_errors == 0, "that is no failure, and not reported");
}

static void
test_cancel_paused (void)
{
  struct fake fake;

  init (&fake);
  must (create (&fake, "a", (struct nc_job_options) {
        .paused = true, .len = 77 }) == 0, "create");
  ok (comes_to ("a", NC_JOB_PAUSED) && info.len == 77 && info.offset == 0,
      "a job that starts paused shows what there is to do");
  ok (!fake.started &&
      nc_job_cancel (jobs, "a", false, why) == 0 &&
      comes_to ("a", NC_JOB_NULL) && is_freed (&fake) && !fake.started &&
      events_are ("created running paused running aborting CANCELLED "
                  "concluded null "),
      "a job that is paused is resumed to be cancelled");
}

static void
test_cancel_late (void)
{
  struct fake fake;

  init (&fake);
  fake.go = true;
  must (create (&fake, "a", (struct nc_job_options) {
        .manual_finalize = true }) == 0, "create");
  ok (comes_to ("a", NC_JOB_PENDING) &&
      nc_job_cancel (jobs, "a", false, why) == 0 &&
      comes_to ("a", NC_JOB_NULL) && is_freed (&fake) &&
      fake.finalizes == 0 &&
      events_are ("created running waiting pending PENDING aborting "
                  "CANCELLED concluded null "),
      "a job that waits to be finalized can still be cancelled");

  init (&fake);
  fake.get_ready = fake.go = true;
  must (create (&fake, "a", (struct nc_job_options) { 0 }) == 0, "create");
  ok (comes_to ("a", NC_JOB_READY) &&
      nc_job_cancel (jobs, "a", false, why) == 0 &&
      comes_to ("a", NC_JOB_NULL) && is_freed (&fake) &&
      events_are ("created running ready READY waiting pending COMPLETED "
                  "concluded null "),
      "a job that is ready may end in its own way when it is cancelled");

  init (&fake);
  fake.get_ready = fake.go = true;
  must (create (&fake, "a", (struct nc_job_options) { 0 }) == 0, "create");
  ok (comes_to ("a", NC_JOB_READY) &&
      nc_job_cancel (jobs, "a", true, why) == 0 &&
      comes_to ("a", NC_JOB_NULL) && is_freed (&fake) &&
      events_are ("created running ready READY aborting CANCELLED "
                  "concluded null "), "but not with force");
}

static void
test_pause (void)
{
  struct fake fake;
  bool good;

  init (&fake);
  fake.hang = true;
  must (create (&fake, "a", (struct nc_job_options) { 0 }) == 0, "create");
  while (!fake.started)
    usleep (500);
  good = nc_job_pause (jobs, "a", why) == 0 &&
    comes_to ("a", NC_JOB_PAUSED) && info.paused && !info.busy &&
    info.limit == NC_LIMIT_PAUSE && fake.changes == 1;
  ok (good, "a job pauses while its source hangs");
  fake.hang = false;
  good = nc_job_resume (jobs, "a", why) == 0 &&
    comes_to ("a", NC_JOB_RUNNING) && !info.paused && info.busy &&
    info.limit == NC_LIMIT_NONE && fake.changes == 2;
  fake.go = true;
  ok (good && comes_to ("a", NC_JOB_NULL) && is_freed (&fake) &&
      events_are ("created running paused running waiting pending COMPLETED "
                  "concluded null "), "and goes on");
}

static void
test_report (void)
{
  struct fake fake;

  init (&fake);
  fake.fail_read = EIO;
  must (create (&fake, "a", (struct nc_job_options) {
        .manual_dismiss = true }) == 0, "create");
  ok (nc_job_wait (jobs, "a", -1, &info) == 0 && info.failed &&
      strstr (info.error, "disk: ") != NULL && is_dismissed (&fake, "a") &&
      events_are ("created running read:report aborting COMPLETED "
                  "concluded null "), "report: an error ends the job");
}

static void
test_error_stops (void)
{
  struct fake fake;

  init (&fake);
  fake.fail_read = EIO;
  must (create (&fake, "a", (struct nc_job_options) {
        .on_error = NC_ON_ERROR_STOP }) == 0, "create");
  ok (comes_to ("a", NC_JOB_PAUSED) && info.io_status == NC_IO_FAILED &&
      info.paused && info.limit == NC_LIMIT_ERROR && fake.attempts == 1 &&
      events_are ("created running read:stop paused "),
      "stop: an error pauses the job");
  must (nc_job_resume (jobs, "a", why) == 0, "resume");
  while (fake.attempts < 2)
    usleep (500);
  ok (comes_to ("a", NC_JOB_PAUSED), "resume tries again");
  fake.fail_read = 0;
  fake.go = true;
  ok (nc_job_resume (jobs, "a", why) == 0 && comes_to ("a", NC_JOB_NULL) &&
      is_freed (&fake), "and goes on when it works");

  init (&fake);
  fake.fail_read = EIO;
  must (create (&fake, "a", (struct nc_job_options) {
        .on_error = NC_ON_ERROR_STOP }) == 0 &&
        comes_to ("a", NC_JOB_PAUSED), "create");
  ok (nc_job_cancel (jobs, "a", true, why) == 0 && is_freed (&fake) &&
      fake.attempts == 1, "a job that an error stopped is cancelled at once");
}

static void
test_error_ignored (void)
{
  struct fake fake;

  init (&fake);
  fake.fail_read = EIO;
  must (create (&fake, "a", (struct nc_job_options) {
        .on_error = NC_ON_ERROR_IGNORE }) == 0, "create");
  while (fake.attempts < 3)
    usleep (500);
  do
    must (nc_job_get (jobs, "a", &info) == 0, "get");
  while (info.limit != NC_LIMIT_ERROR);
  ok (info.status == NC_JOB_RUNNING && info.io_status == NC_IO_OK,
      "ignore: the job goes on trying");
  must (nc_job_cancel (jobs, "a", false, why) == 0 && is_freed (&fake),
        "cancel");
}

static void
test_retry_wait (void)
{
  uint64_t wait = nc_job_retry_wait (0);
  bool good = wait <= 100 * MS;

  for (unsigned tries = 1; tries < 100; tries++) {
    good = good && nc_job_retry_wait (tries) >= wait;
    wait = nc_job_retry_wait (tries);
  }
  ok (good && wait >= 1000 * (uint64_t) MS && wait <= 5000 * (uint64_t) MS &&
      nc_job_retry_wait (UINT_MAX) == wait,
      "what fails again and again is tried every few seconds");
}

static void
test_full (void)
{
  struct fake fake;

  init (&fake);
  fake.fail_read = ENOSPC;
  must (create (&fake, "a", (struct nc_job_options) {
        .on_error = NC_ON_ERROR_ENOSPC, .manual_dismiss = true }) == 0,
    "create");
  ok (comes_to ("a", NC_JOB_PAUSED) && info.io_status == NC_IO_NOSPACE,
      "enospc: a full disk pauses the job");
  fake.fail_read = EIO;
  ok (nc_job_resume (jobs, "a", why) == 0 &&
      nc_job_wait (jobs, "a", -1, &info) == 0 && info.failed &&
      is_dismissed (&fake, "a"), "another error ends it");
}

static void
test_create (void)
{
  static const char *const bad[] = {
    "", "1a", "_a", "a b", "a/b", "a\n", "\xc3\xa4", "#a",
  };
  struct fake fake[NC_JOBS_MAX + 1];
  char id[200];
  bool good = true;

  init (&fake[0]);
  for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
    good = good && create (&fake[0], bad[i],
                           (struct nc_job_options) { 0 }) == -1 &&
      errno == EINVAL;
  memset (id, 'a', sizeof id);
  id[NC_JOB_ID_MAX + 1] = '\0';
  ok (good && create (&fake[0], id, (struct nc_job_options) { 0 }) == -1 &&
      errno == EINVAL && fake[0].frees == 0, "bad ids are refused");
  id[NC_JOB_ID_MAX] = '\0';
  ok (create (&fake[0], id, (struct nc_job_options) { 0 }) == 0 &&
      create (&fake[0], id, (struct nc_job_options) { 0 }) == -1 &&
      errno == EEXIST, "so is an id that is in use");
  must (nc_job_cancel (jobs, id, false, why) == 0 && is_freed (&fake[0]),
        "cancel");

  for (unsigned i = 0; good && i <= NC_JOBS_MAX; i++) {
    init (&fake[i]);
    snprintf (id, sizeof id, "job-%u", i);
    good = create (&fake[i], id, (struct nc_job_options) { 0 }) ==
      (i < NC_JOBS_MAX ? 0 : -1);
  }
  ok (good && errno == EBUSY, "there are at most %d jobs", NC_JOBS_MAX);
  for (unsigned i = 0; i < NC_JOBS_MAX; i++) {
    snprintf (id, sizeof id, "job-%u", i);
    good = good && nc_job_cancel (jobs, id, false, why) == 0;
  }
  for (unsigned i = 0; good && i < NC_JOBS_MAX; i++)
    good = is_freed (&fake[i]);
  ok (good && nc_job_pause (jobs, "job-1", why) == -1 && errno == ENOENT &&
      strstr (why, "job-1") != NULL, "a job that is gone is not found");
}

/* Jobs that change the chain come one after the other. */
static void
test_exclusion (void)
{
  static const struct nc_job_type changes = {
    .name = "changes", .changes_chain = true, .run = fake_run,
    .wake = fake_wake, .free = fake_free,
  };
  const struct nc_job_options disk = {
    .device = "disk", .manual_dismiss = true,
  };
  struct fake a, b, c, d;

  init (&a);
  init (&b);
  init (&c);
  init (&d);
  must (nc_job_create (jobs, "a", &changes, &disk, &a, why) == 0, "create");
  ok (nc_job_create (jobs, "b", &changes, &disk, &b, why) == -1 &&
      errno == EBUSY && strstr (why, "'a' (changes)") != NULL,
      "a second job that changes the chain is refused, and the first named");
  ok (create (&c, "c", (struct nc_job_options) { 0 }) == 0 &&
      nc_job_create (jobs, "d", &changes, &(struct nc_job_options) {
          .device = "other" }, &d, why) == 0,
      "not one that does not, nor one on another device");
  a.go = true;
  must (nc_job_wait (jobs, "a", -1, &info) == 0, "wait");
  ok (nc_job_create (jobs, "b", &changes, &disk, &b, why) == 0,
      "the second may come when the first has ended");
  must (nc_job_dismiss (jobs, "a", why) == 0, "dismiss");
  b.go = true;
  must (nc_job_wait (jobs, "b", -1, &info) == 0 &&
        nc_job_dismiss (jobs, "b", why) == 0 &&
        nc_job_cancel (jobs, "c", true, why) == 0 &&
        nc_job_cancel (jobs, "d", true, why) == 0 && is_freed (&a) &&
        is_freed (&b) && is_freed (&c) && is_freed (&d), "end");
}

/* Progress is driven from a job's own thread. */
static _Atomic (unsigned) bad_progress;

static bool
shows (struct nc_job *job, uint64_t offset, uint64_t len)
{
  struct nc_job_info i;

  return (nc_job_get (jobs, nc_job_id (job), &i) == 0 &&
          i.offset == offset && i.len == len) ||
    note ("progress %llu of %llu", (unsigned long long) i.offset,
          (unsigned long long) i.len);
}

static int
progress_run (struct nc_job *job, void *opaque)
{
  (void) opaque;
  bad_progress += !shows (job, 0, 0);
  nc_job_progress (job, 5);
  bad_progress += !shows (job, 0, 0);
  nc_job_set_len (job, 100);
  bad_progress += !shows (job, 5, 100);
  nc_job_progress (job, 50);
  nc_job_progress (job, 40);
  bad_progress += !shows (job, 50, 100);
  nc_job_progress (job, 100);
  bad_progress += !shows (job, 99, 100);
  nc_job_progress (job, 1000);
  nc_job_set_len (job, 200);
  bad_progress += !shows (job, 199, 200);
  nc_job_set_len (job, 150);
  bad_progress += !shows (job, 199, 200);
  nc_job_ready (job);
  bad_progress += !shows (job, 200, 200);
  nc_job_set_len (job, 300);
  bad_progress += !shows (job, 300, 300);
  nc_job_set_len (job, 2000);
  bad_progress += !shows (job, 1000, 2000);
  return 0;
}

static void
test_progress (void)
{
  static const struct nc_job_type progress = {
    .name = "progress", .run = progress_run,
  };

  ok (nc_job_create (jobs, "p", &progress, &(struct nc_job_options) {
        .device = "disk", .manual_dismiss = true }, NULL, why) == 0 &&
    nc_job_wait (jobs, "p", -1, &info) == 0 && bad_progress == 0,
    "progress never goes back, and is not all before it is");
  ok (info.offset == 2000 && info.len == 2000 &&
      nc_job_dismiss (jobs, "p", why) == 0, "but all of it at the end");
}

static void
test_speed (void)
{
  struct fake fake;
  uint64_t before;

  init (&fake);
  fake.piece = 1 << 20;
  must (create (&fake, "a", (struct nc_job_options) { .speed = 1000 }) == 0,
        "create");
  while (fake.taken == 0)
    usleep (500);
  do
    must (nc_job_get (jobs, "a", &info) == 0, "get");
  while (info.limit != NC_LIMIT_RATE);
  before = fake.taken;
  ok (before == 1 << 20 && info.speed == 1000,
      "a job waits for what its speed allows, and says so");
  ok (nc_job_set_speed (jobs, "a", 0, why) == 0 && fake.changes == 1,
      "its speed is changed while it waits");
  while (fake.taken < before + (10 << 20))
    usleep (500);
  ok (nc_job_get (jobs, "a", &info) == 0 && info.speed == 0 &&
      info.count[NC_COUNT_COPIED] >= before, "which takes effect");
  must (nc_job_set_speed (jobs, "a", 1, why) == 0, "set_speed");
  ok (nc_job_cancel (jobs, "a", false, why) == 0 && is_freed (&fake),
      "a job that waits for its speed is cancelled");
}

/* Poll until the job "a" has a measured rate. */
static void
wait_for_rate (void)
{
  do
    must (nc_job_get (jobs, "a", &info) == 0, "get");
  while (info.rate == 0);
}

static void
test_time_left (void)
{
  struct fake fake;

  init (&fake);
  fake.len = 1000000;
  fake.skip = 500000;
  fake.piece = 1 << 20;
  must (create (&fake, "a", (struct nc_job_options) { .speed = 1000 }) == 0,
        "create");
  wait_for_rate ();
  do
    must (nc_job_get (jobs, "a", &info) == 0, "get");
  while (info.limit != NC_LIMIT_RATE);
  ok (info.offset == 500000 && info.has_seconds_left &&
      info.seconds_left == 500, "what is skipped does not make it look fast");
  must (nc_job_set_speed (jobs, "a", 1, why) == 0, "set_speed");
  do
    must (nc_job_get (jobs, "a", &info) == 0, "get");
  while (info.limit != NC_LIMIT_RATE);
  ok (info.has_seconds_left && info.seconds_left == 500000,
      "a new speed is reckoned with at once");
  ok (nc_job_pause (jobs, "a", why) == 0 && comes_to ("a", NC_JOB_PAUSED) &&
      !info.has_seconds_left && info.rate == 0,
      "while it is paused it has no rate, and no time left");
  fake.piece = 0;
  ok (nc_job_resume (jobs, "a", why) == 0 &&
      comes_to ("a", NC_JOB_RUNNING) && !info.has_seconds_left &&
      info.rate == 0, "nor from before when it goes on");
  must (nc_job_cancel (jobs, "a", false, why) == 0 && is_freed (&fake),
        "cancel");

  init (&fake);
  fake.len = 1000000;
  fake.piece = 1 << 20;
  must (create (&fake, "a", (struct nc_job_options) {
        .on_error = NC_ON_ERROR_STOP }) == 0, "create");
  wait_for_rate ();
  ok (info.has_seconds_left, "a job that works has a time left");
  fake.limit = NC_LIMIT_DELAY;
  do
    must (nc_job_get (jobs, "a", &info) == 0, "get");
  while (info.limit != NC_LIMIT_DELAY);
  ok (!info.has_seconds_left, "not one that is in its start delay");
  fake.limit = NC_LIMIT_SOURCE;
  fake.fail_read = EIO;
  ok (comes_to ("a", NC_JOB_PAUSED) && !info.has_seconds_left &&
      info.rate == 0, "nor one that an error stopped");
  must (nc_job_cancel (jobs, "a", false, why) == 0 && is_freed (&fake),
        "cancel");
}

/* A read of a source that hangs keeps what a job works on. */
static void
test_free (void)
{
  struct fake gone, dismissed, next;

  init (&gone);
  init (&dismissed);
  init (&next);
  gone.hang_free = dismissed.hang_free = true;
  dismissed.go = true;
  must (create (&gone, "a", (struct nc_job_options) { 0 }) == 0 &&
        create (&dismissed, "b", (struct nc_job_options) {
          .manual_dismiss = true }) == 0, "create");
  must (nc_job_cancel (jobs, "a", false, why) == 0 &&
        comes_to ("a", NC_JOB_NULL) && comes_to ("b", NC_JOB_CONCLUDED),
        "two jobs that end");
  ok (nc_job_dismiss (jobs, "b", why) == 0 &&
      create (&next, "a", (struct nc_job_options) { 0 }) == 0 &&
      nc_job_cancel (jobs, "a", false, why) == 0 && is_freed (&next),
      "no operator waits for what a job still has to free");
  ok (gone.frees == 0 && dismissed.frees == 0, "which it has not");
  gone.hang_free = dismissed.hang_free = false;
  ok (is_freed (&gone) && is_freed (&dismissed), "until it can");
}

static void
test_stop (void)
{
  struct fake fake[3];

  for (unsigned i = 0; i < 3; i++)
    init (&fake[i]);
  fake[0].hang = true;
  fake[1].go = true;
  must (create (&fake[0], "a", (struct nc_job_options) { 0 }) == 0 &&
        create (&fake[1], "b", (struct nc_job_options) {
          .manual_finalize = true }) == 0 &&
        create (&fake[2], "c", (struct nc_job_options) {
          .paused = true, .manual_dismiss = true }) == 0, "create");
  while (!fake[0].started)
    usleep (500);
  must (comes_to ("b", NC_JOB_PENDING) && comes_to ("c", NC_JOB_PAUSED),
        "three jobs");
  nc_jobs_stop (jobs);
  ok (is_freed (&fake[0]) && fake[0].was_shutdown && is_freed (&fake[1]) &&
      fake[2].frees == 0 && nc_job_get (jobs, "c", &info) == 0 &&
      info.status == NC_JOB_CONCLUDED,
      "stop ends a job that hangs, one that is pending and one that is "
      "paused");
  nc_jobs_stop (jobs);
  ok (create (&fake[0], "d", (struct nc_job_options) { 0 }) == -1 &&
      errno == ESHUTDOWN, "and no other can be made");
  nc_jobs_free (jobs);
  ok (fake[2].frees == 1, "what is not dismissed is freed at the end");
  nc_jobs_free (NULL);
}

/* Everybody does anything. */
static _Atomic (bool) storm_over;
static uint64_t storm_seed;

static void *
storm (void *arg)
{
  uint64_t seed = storm_seed + (uintptr_t) arg;
  char text[NC_JOB_TEXT];
  struct nc_job_info i;

  while (!storm_over) {
    const char id[2] = { (char) ('a' + rnd_below (&seed, 4)), '\0' };

    switch (rnd_below (&seed, 8)) {
    case 0: nc_job_cancel (jobs, id, rnd_below (&seed, 2), text); break;
    case 1: nc_job_pause (jobs, id, text); break;
    case 2: case 3: nc_job_resume (jobs, id, text); break;
    case 4: nc_job_set_speed (jobs, id, rnd_below (&seed, 3), text); break;
    case 5: nc_job_complete (jobs, id, text); break;
    case 6: nc_job_finalize (jobs, id, text); break;
    default:
      nc_job_dismiss (jobs, id, text);
      nc_job_wait (jobs, id, 1, &i);
    }
  }
  return NULL;
}

static int
storm_run (struct nc_job *job, void *opaque)
{
  uint64_t seed = storm_seed ^ (uintptr_t) opaque;
  unsigned steps = rnd_below (&seed, 50);

  nc_job_set_len (job, steps);
  for (unsigned i = 0; i < steps; i++) {
    if (nc_job_pause_point (job) == -1)
      return -1;
    nc_job_throttle (job, 1);
    nc_job_progress (job, i);
    if (rnd_below (&seed, 40) == 0 &&
        nc_job_error (job, NC_JOB_WRITE, EIO) == NC_JOB_REPORT)
      return -1;
  }
  if (rnd_below (&seed, 2)) {
    nc_job_ready (job);
    while (nc_job_pause_point (job) == 0 && !nc_job_should_complete (job))
      nc_job_sleep (job, 100 * MS);
  }
  return 0;
}

static _Atomic (unsigned) storm_frees;

static void
storm_free (void *opaque)
{
  (void) opaque;
  storm_frees++;
}

static void
test_storm (uint64_t seed)
{
  static const struct nc_job_type stormy = {
    .name = "storm", .run = storm_run, .free = storm_free,
  };
  pthread_t t[4];
  unsigned made = 0;

  storm_seed = seed;
  jobs = nc_jobs_new ();
  must (jobs != NULL, "jobs");
  for (uintptr_t i = 0; i < 4; i++)
    must (pthread_create (&t[i], NULL, storm, (void *) i) == 0, "thread");
  for (unsigned i = 0; made < 300; i++) {
    const char id[2] = { (char) ('a' + rnd_below (&seed, 4)), '\0' };
    const struct nc_job_options opts = {
      .device = "disk", .on_error = rnd_below (&seed, 4),
      .manual_finalize = rnd_below (&seed, 2),
      .manual_dismiss = rnd_below (&seed, 2),
      .paused = rnd_below (&seed, 2),
    };

    if (nc_job_create (jobs, id, &stormy, &opts, (void *) (uintptr_t) i,
                       why) == 0)
      made++;
    else
      usleep (100);
  }
  storm_over = true;
  for (unsigned i = 0; i < 4; i++)
    pthread_join (t[i], NULL);
  nc_jobs_free (jobs);
  ok (storm_frees == made, "jobs survive four operators who do anything");
}

int
main (void)
{
  const uint64_t seed = tap_start (120);

  jobs = nc_jobs_new ();
  must (jobs != NULL, "jobs");
  nc_jobs_set_sink (jobs, sink, events);
  test_tables ();
  test_life ();
  test_failure ();
  test_verbs ();
  test_cancel ();
  test_cancel_paused ();
  test_cancel_late ();
  test_pause ();
  test_report ();
  test_error_stops ();
  test_error_ignored ();
  test_retry_wait ();
  test_full ();
  test_create ();
  test_exclusion ();
  test_progress ();
  test_speed ();
  test_time_left ();
  test_free ();
  test_stop ();
  test_storm (seed);
  return tap_done ();
}
