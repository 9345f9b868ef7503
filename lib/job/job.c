/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The life of jobs.
 *
 * One lock guards the list and everything in the jobs; it is held for a few
 * instructions at a time, and over the sink, so that events come in the
 * order in which things happen.  No function of a type is called under it.
 *
 * A job belongs to the list until it is null.  Who uses it without the lock
 * holds a reference; who gives up the last one puts it on the list of the
 * dead.  Its thread has waited for that: it frees what the type's functions
 * work on, which may take as long as a read of a source that hangs, and then
 * it can be joined.  So no operator waits for a source.
 *
 * What is recorded is the list as it is at a moment, so that nobody needs to
 * know what changed: who changed something that is recorded calls record,
 * without the lock.
 */

#include <config.h>

#include "job/job.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "copy/rate.h"
#include "job/record.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/scope.h"

/* How long what limited a job is shown as that. */
#define LIMIT_SHOWN (2 * NC_RATE_SLICE)

/* Before what failed is tried again; it doubles with each try. */
#define RETRY_FIRST (NC_SECOND / 10)
#define RETRY_DOUBLINGS 5       /* at most */

struct nc_job {
  struct nc_jobs *jobs;
  struct nc_job *next;          /* in jobs->first or jobs->dead */
  const struct nc_job_type *type;
  void *opaque;
  json_t *arguments;            /* never changed; NULL: not recorded */
  pthread_t thread;
  pthread_cond_t changed;       /* anything below; asked for or happened */

  /* What follows is guarded by jobs->lock, but for wanted, which is read
   * without it. */
  unsigned refs;
  struct nc_job_info info;
  bool forced, complete, finalize;      /* asked for */
  bool ended;                   /* by itself: not to be done again */
  bool freed;                   /* the thread has nothing more to do */
  unsigned asked;               /* how often anything was, */
  unsigned seen;                /* and that at the last pause point */
  _Atomic (bool) wanted;
  bool all;                     /* the progress may show all */
  uint64_t done;                /* what was reported as done */
  struct nc_rate rate;
  struct nc_meter copied;
  uint64_t throttled;           /* when it last was; 0 = never */
  uint64_t failing_until;       /* shown as that */
  enum nc_job_limit limit;
};

struct nc_jobs {
  pthread_mutex_t lock;         /* guards everything here */
  pthread_cond_t ended;         /* n_threads went down */
  struct nc_job *first;         /* in the order of creation */
  struct nc_job *dead;
  unsigned n_threads;
  bool stopped;
  nc_job_sink sink;
  void *sink_opaque;

  pthread_mutex_t record_lock;  /* taken before lock, and held across the
                                   writing; guards what follows */
  struct nc_path record_path;   /* NC_PATH_NONE: nothing is recorded */
  char *record_uuid;
  json_t *recorded;             /* what is in the file, */
  bool record_failed;           /* or ought to be */
  json_t *dormant;              /* of that: could not be started */
};

/* Names and tables. */

const char *
nc_job_status_name (enum nc_job_status status)
{
  static const char *const names[NC_JOB_N_STATUS] = {
    [NC_JOB_UNDEFINED] = "undefined", [NC_JOB_CREATED] = "created",
    [NC_JOB_RUNNING] = "running", [NC_JOB_PAUSED] = "paused",
    [NC_JOB_READY] = "ready", [NC_JOB_STANDBY] = "standby",
    [NC_JOB_WAITING] = "waiting", [NC_JOB_PENDING] = "pending",
    [NC_JOB_ABORTING] = "aborting", [NC_JOB_CONCLUDED] = "concluded",
    [NC_JOB_NULL] = "null",
  };

  return names[status];
}

const char *
nc_job_verb_name (enum nc_job_verb verb)
{
  static const char *const names[NC_JOB_N_VERBS] = {
    [NC_VERB_CANCEL] = "cancel", [NC_VERB_PAUSE] = "pause",
    [NC_VERB_RESUME] = "resume", [NC_VERB_SET_SPEED] = "set-speed",
    [NC_VERB_COMPLETE] = "complete", [NC_VERB_FINALIZE] = "finalize",
    [NC_VERB_DISMISS] = "dismiss",
  };

  return names[verb];
}

const char *
nc_job_limit_name (enum nc_job_limit limit)
{
  static const char *const names[] = {
    [NC_LIMIT_NONE] = "none", [NC_LIMIT_RATE] = "rate",
    [NC_LIMIT_SOURCE] = "source", [NC_LIMIT_STORAGE] = "storage",
    [NC_LIMIT_GUEST] = "guest", [NC_LIMIT_CONTENTION] = "contention",
    [NC_LIMIT_PAUSE] = "pause", [NC_LIMIT_ERROR] = "error",
    [NC_LIMIT_DELAY] = "delay",
  };

  return names[limit];
}

static const char *const policies[] = {
  [NC_ON_ERROR_REPORT] = "report", [NC_ON_ERROR_IGNORE] = "ignore",
  [NC_ON_ERROR_ENOSPC] = "enospc", [NC_ON_ERROR_STOP] = "stop",
};

const char *
nc_on_error_name (enum nc_on_error policy)
{
  return policies[policy];
}

int
nc_on_error_parse (const char *word, enum nc_on_error *policy)
{
  for (unsigned i = 0; i < sizeof policies / sizeof policies[0]; i++)
    if (strcmp (word, policies[i]) == 0) {
      *policy = (enum nc_on_error) i;
      return 0;
    }
  return -1;
}

#define IN(status) (1u << NC_JOB_##status)
#define ALIVE \
  (IN (CREATED) | IN (RUNNING) | IN (PAUSED) | IN (READY) | IN (STANDBY))

bool
nc_job_may (enum nc_job_status status, enum nc_job_verb verb)
{
  static const unsigned states[NC_JOB_N_VERBS] = {
    [NC_VERB_CANCEL] = ALIVE | IN (WAITING) | IN (PENDING),
    [NC_VERB_PAUSE] = ALIVE,
    [NC_VERB_RESUME] = ALIVE,
    [NC_VERB_SET_SPEED] = ALIVE,
    [NC_VERB_COMPLETE] = IN (READY),
    [NC_VERB_FINALIZE] = IN (PENDING),
    [NC_VERB_DISMISS] = IN (CONCLUDED),
  };

  return states[verb] & 1u << status;
}

bool
nc_job_may_become (enum nc_job_status from, enum nc_job_status to)
{
  static const unsigned next[NC_JOB_N_STATUS] = {
    [NC_JOB_UNDEFINED] = IN (CREATED),
    [NC_JOB_CREATED] = IN (RUNNING) | IN (ABORTING) | IN (NULL),
    [NC_JOB_RUNNING] = IN (PAUSED) | IN (READY) | IN (WAITING) |
                       IN (ABORTING),
    [NC_JOB_PAUSED] = IN (RUNNING),
    [NC_JOB_READY] = IN (STANDBY) | IN (WAITING) | IN (ABORTING),
    [NC_JOB_STANDBY] = IN (READY),
    [NC_JOB_WAITING] = IN (PENDING) | IN (ABORTING),
    [NC_JOB_PENDING] = IN (ABORTING) | IN (CONCLUDED),
    [NC_JOB_ABORTING] = IN (CONCLUDED),
    [NC_JOB_CONCLUDED] = IN (NULL),
  };

  return next[from] & 1u << to;
}

/* Events and snapshots. */

/* Also while it is about to be, or about to go on. */
static bool
is_paused_locked (const struct nc_job *job)
{
  return job->info.paused || job->info.status == NC_JOB_PAUSED ||
    job->info.status == NC_JOB_STANDBY;
}

/* By its speed. */
static bool
is_held_locked (const struct nc_job *job, uint64_t t)
{
  return job->throttled && t - job->throttled < LIMIT_SHOWN;
}

static enum nc_job_limit
limit_locked (const struct nc_job *job, uint64_t t)
{
  if (job->info.paused)
    return job->info.io_status == NC_IO_OK ? NC_LIMIT_PAUSE : NC_LIMIT_ERROR;
  if (t < job->failing_until)
    return NC_LIMIT_ERROR;
  return is_held_locked (job, t) ? NC_LIMIT_RATE : job->limit;
}

/* What is skipped takes no time, and nobody knows how much of the rest will
 * be.  So the time left is that of copying all of it: the most it can be. */
static bool
time_left_locked (struct nc_job *job, uint64_t t, uint64_t *seconds)
{
  const struct nc_job_info *info = &job->info;

  if (info->status != NC_JOB_RUNNING || info->limit == NC_LIMIT_PAUSE ||
      info->limit == NC_LIMIT_ERROR || info->limit == NC_LIMIT_DELAY)
    return false;
  return nc_meter_left (&job->copied, info->len - info->offset, info->speed,
                        is_held_locked (job, t), t, seconds);
}

/* Bring what depends on the time up to date. */
static const struct nc_job_info *
snapshot_locked (struct nc_job *job)
{
  struct nc_job_info *info = &job->info;
  const uint64_t t = nc_now ();

  info->rate = is_paused_locked (job) ? 0 : nc_meter_rate (&job->copied, t);
  info->limit = limit_locked (job, t);
  info->seconds_left = 0;
  info->has_seconds_left = time_left_locked (job, t, &info->seconds_left);
  return info;
}

static void
tell_locked (struct nc_job *job, struct nc_job_event event)
{
  if (job->jobs->sink == NULL)
    return;
  event.info = snapshot_locked (job);
  job->jobs->sink (job->jobs->sink_opaque, &event);
}

static void
become_locked (struct nc_job *job, enum nc_job_status status)
{
  assert (nc_job_may_become (job->info.status, status));
  job->info.status = status;
  nc_debug ("job %s is %s", job->info.id, nc_job_status_name (status));
  tell_locked (job, (struct nc_job_event) { .kind = NC_EVENT_STATUS });
  pthread_cond_broadcast (&job->changed);
}

/* What is shown as done, after any of it changed. */
static void
show_locked (struct nc_job *job)
{
  struct nc_job_info *info = &job->info;
  const uint64_t most = info->len > 0 && !job->all ? info->len - 1
    : info->len;
  const uint64_t done = job->done < most ? job->done : most;

  if (done > info->offset)
    info->offset = done;
}

/* References and the list. */

static struct nc_job *
find_locked (struct nc_jobs *jobs, const char *id)
{
  struct nc_job *job;

  for (job = jobs->first; job; job = job->next)
    if (strcmp (job->info.id, id) == 0)
      return job;
  return NULL;
}

static void
unlink_locked (struct nc_job *job)
{
  struct nc_job **p;

  for (p = &job->jobs->first; *p != job; p = &(*p)->next)
    ;
  *p = job->next;
}

static void
unref_locked (struct nc_job *job)
{
  if (--job->refs > 0)
    return;
  job->next = job->jobs->dead;
  job->jobs->dead = job;
  pthread_cond_broadcast (&job->changed);
}

static void
unref (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  unref_locked (job);
}

static void
release (struct nc_job *job)
{
  pthread_cond_destroy (&job->changed);
  json_decref (job->arguments);
  free (job);
}

static void
destroy (struct nc_job *job)
{
  pthread_join (job->thread, NULL);
  release (job);
}

/* Join the threads of jobs that are gone: those that have nothing more to
 * do, or ALL. */
static void
reap (struct nc_jobs *jobs, bool all)
{
  struct nc_job *gone = NULL, **p;

  {
    NC_LOCKED (&jobs->lock);
    for (p = &jobs->dead; *p;) {
      struct nc_job *job = *p;

      if (!all && !job->freed) {
        p = &job->next;
        continue;
      }
      *p = job->next;
      job->next = gone;
      gone = job;
    }
  }
  for (struct nc_job *next; gone; gone = next) {
    next = gone->next;
    destroy (gone);
  }
}

/* What is recorded. */

static int
append_entry_locked (json_t *entries, const struct nc_job *job)
{
  const struct nc_job_info *info = &job->info;
  const struct nc_record_entry entry = {
    .id = info->id, .type = info->type, .arguments = job->arguments,
    .speed = info->speed, .on_error = info->on_error,
    /* Not after an error: a new start is a new try. */
    .paused = info->paused && info->io_status == NC_IO_OK,
    .auto_finalize = info->auto_finalize, .auto_dismiss = info->auto_dismiss,
  };

  return json_array_append_new (entries, nc_record_encode (&entry));
}

static bool
is_to_be_recorded (const struct nc_job *job)
{
  return job->arguments && !job->ended && !job->forced;
}

static const char *
id_of_entry (const json_t *entry)
{
  return json_string_value (json_object_get (entry, "id"));
}

/* While jobs are stopped they leave the list, but not the file. */
static json_t *
entries_after_stop_locked (struct nc_jobs *jobs)
{
  json_t *entries = json_copy (jobs->recorded);

  for (size_t i = json_array_size (entries); i-- > 0; ) {
    const struct nc_job *job =
      find_locked (jobs, id_of_entry (json_array_get (entries, i)));

    if (job && !is_to_be_recorded (job))
      json_array_remove (entries, i);
  }
  return entries;
}

/* What was not started is forgotten for a job of its name. */
static void
forget_dormant_locked (struct nc_jobs *jobs)
{
  for (size_t i = json_array_size (jobs->dormant); i-- > 0; )
    if (find_locked (jobs, id_of_entry (json_array_get (jobs->dormant, i))))
      json_array_remove (jobs->dormant, i);
}

/* What is to be in the file; NULL if memory is short. */
static json_t *
entries_to_record (struct nc_jobs *jobs)
{
  json_t *entries;
  int r = 0;

  NC_LOCKED (&jobs->lock);
  if (jobs->stopped)
    return entries_after_stop_locked (jobs);
  forget_dormant_locked (jobs);
  entries = json_array ();
  for (const struct nc_job *job = jobs->first; job; job = job->next)
    if (is_to_be_recorded (job))
      r |= append_entry_locked (entries, job);
  r |= json_array_extend (entries, jobs->dormant);
  if (r == 0)
    return entries;
  json_decref (entries);
  return NULL;
}

/* Bring the file up to date. */
static void
record (struct nc_jobs *jobs)
{
  json_t *entries;

  NC_LOCKED (&jobs->record_lock);
  if (jobs->record_path.dir == -1)
    return;
  entries = entries_to_record (jobs);
  if (entries == NULL) {
    nc_error ("%s/%s: out of memory", jobs->record_path.real,
              jobs->record_path.name);
    return;
  }
  if (jobs->record_failed || !json_equal (entries, jobs->recorded))
    jobs->record_failed = nc_record_write (&jobs->record_path,
                                           jobs->record_uuid, entries) == -1;
  json_decref (jobs->recorded);
  jobs->recorded = entries;
}

/* The thread of a job. */

static bool
should_stop_locked (const struct nc_job *job)
{
  return job->info.cancelled || job->jobs->stopped;
}

/* Somebody asked for something. */
static void
ask_locked (struct nc_job *job)
{
  job->asked++;
  job->wanted = should_stop_locked (job) || job->info.paused;
  pthread_cond_broadcast (&job->changed);
}

/* Whether its end is that it was stopped. */
static bool
is_aborted_locked (const struct nc_job *job)
{
  return job->forced || job->jobs->stopped;
}

static int
finish_pending (struct nc_job *job)
{
  {
    NC_LOCKED (&job->jobs->lock);
    if (job->forced)
      return -1;
    job->all = true;
    job->done = job->info.len;
    show_locked (job);
    become_locked (job, NC_JOB_WAITING);
    become_locked (job, NC_JOB_PENDING);
    if (!job->info.auto_finalize) {
      tell_locked (job, (struct nc_job_event) { .kind = NC_EVENT_PENDING });
      while (!job->finalize && !is_aborted_locked (job))
        pthread_cond_wait (&job->changed, &job->jobs->lock);
      if (!job->finalize)
        return -1;
    }
  }
  return job->type->finalize ? job->type->finalize (job, job->opaque) : 0;
}

/* The job failed, or was stopped. */
static void
abort_locked (struct nc_job *job)
{
  struct nc_job_info *info = &job->info;

  info->cancelled = is_aborted_locked (job) ||
    (info->cancelled && info->error[0] == '\0');
  info->failed = !info->cancelled;
  if (info->cancelled)
    snprintf (info->error, sizeof info->error, "the job was cancelled");
  else if (info->error[0] == '\0')
    snprintf (info->error, sizeof info->error, "the job failed");
  become_locked (job, NC_JOB_ABORTING);
}

/* Who started it may not listen any more.  Its error does not change now. */
static void
report_failure (const struct nc_job *job)
{
  const char *then = job->type->after_failure;

  nc_error ("job '%s' (%s) failed: %s%s%s", job->info.id, job->type->name,
            job->info.error, then ? "; " : "", then ? then : "");
}

static void
conclude (struct nc_job *job, int r)
{
  struct nc_jobs *jobs = job->jobs;
  bool failed;

  {
    NC_LOCKED (&jobs->lock);
    job->info.busy = false;
    job->ended = r == 0 || !jobs->stopped;
  }
  record (jobs);                /* before anybody hears of the end */
  {
    NC_LOCKED (&jobs->lock);
    if (r == -1)
      abort_locked (job);
    else
      job->info.cancelled = false;
    failed = job->info.failed;
  }
  if (failed)
    report_failure (job);       /* this, too */
  {
    NC_LOCKED (&jobs->lock);
    tell_locked (job, (struct nc_job_event) {
        .kind = job->info.cancelled ? NC_EVENT_CANCELLED
          : NC_EVENT_COMPLETED });
    become_locked (job, NC_JOB_CONCLUDED);
    if (job->info.auto_dismiss) {
      become_locked (job, NC_JOB_NULL);
      unlink_locked (job);
      unref_locked (job);
    }
    jobs->n_threads--;
    pthread_cond_broadcast (&jobs->ended);
  }
}

/* Once nobody uses JOB any more. */
static void
free_opaque (struct nc_job *job)
{
  {
    NC_LOCKED (&job->jobs->lock);
    while (job->refs > 0)
      pthread_cond_wait (&job->changed, &job->jobs->lock);
  }
  if (job->type->free)
    job->type->free (job->opaque);
  {
    NC_LOCKED (&job->jobs->lock);
    job->freed = true;
  }
}

static void *
job_main (void *arg)
{
  struct nc_job *job = arg;
  int r;

  {
    NC_LOCKED (&job->jobs->lock);
    job->info.busy = true;
    become_locked (job, NC_JOB_RUNNING);
  }
  r = nc_job_pause_point (job);
  if (r == 0)
    r = job->type->run (job, job->opaque);
  if (r == 0)
    r = finish_pending (job);
  conclude (job, r);
  free_opaque (job);
  return NULL;
}

/* Creation. */

struct nc_jobs *
nc_jobs_new (void)
{
  struct nc_jobs *jobs = calloc (1, sizeof *jobs);

  if (jobs == NULL) {
    nc_error ("list of jobs: %m");
    return NULL;
  }
  jobs->record_path.dir = -1;
  pthread_mutex_init (&jobs->lock, NULL);
  pthread_mutex_init (&jobs->record_lock, NULL);
  pthread_cond_init (&jobs->ended, NULL);
  return jobs;
}

void
nc_jobs_set_sink (struct nc_jobs *jobs, nc_job_sink sink, void *opaque)
{
  NC_LOCKED (&jobs->lock);
  jobs->sink = sink;
  jobs->sink_opaque = opaque;
}

static bool
is_letter (char c)
{
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool
is_valid_id (const char *id)
{
  size_t i;

  if (!is_letter (id[0]))
    return false;
  for (i = 1; id[i]; i++)
    if (!is_letter (id[i]) && !(id[i] >= '0' && id[i] <= '9') &&
        strchr ("-._", id[i]) == NULL)
      return false;
  return i <= NC_JOB_ID_MAX;
}

/* Set errno and WHY. */
static int __attribute__ ((__format__ (printf, 3, 4)))
refuse (int err, char why[NC_JOB_TEXT], const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (why, NC_JOB_TEXT, fmt, args);
  va_end (args);
  errno = err;
  return -1;
}

static struct nc_job *
new_job (struct nc_jobs *jobs, const char *id,
         const struct nc_job_type *type, const struct nc_job_options *opts,
         void *opaque)
{
  struct nc_job *job = calloc (1, sizeof *job);
  pthread_condattr_t attr;

  if (job == NULL)
    return NULL;
  if (opts->arguments &&
      (job->arguments = json_deep_copy (opts->arguments)) == NULL) {
    free (job);
    return NULL;
  }
  job->jobs = jobs;
  job->type = type;
  job->opaque = opaque;
  job->refs = 1;
  job->info = (struct nc_job_info) {
    .type = type->name,
    .device = opts->device,
    .len = opts->len,
    .speed = opts->speed,
    .paused = opts->paused,
    .auto_finalize = !opts->manual_finalize,
    .auto_dismiss = !opts->manual_dismiss,
    .on_error = opts->on_error,
  };
  strcpy (job->info.id, id);
  job->wanted = opts->paused;
  nc_rate_init (&job->rate, opts->speed, nc_now ());
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&job->changed, &attr);
  pthread_condattr_destroy (&attr);
  return job;
}

/* Signals are for the threads of the host. */
static int
start_thread (struct nc_job *job)
{
  sigset_t all, before;
  int err;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  err = pthread_create (&job->thread, NULL, job_main, job);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  return err;
}

/* The job that JOB has to wait for; NULL: none. */
static const struct nc_job *
excluding_locked (const struct nc_jobs *jobs, const struct nc_job *job)
{
  const struct nc_job *other;

  for (other = job->type->changes_chain ? jobs->first : NULL; other;
       other = other->next)
    if (other->type->changes_chain &&
        other->info.status != NC_JOB_CONCLUDED &&
        strcmp (other->info.device, job->info.device) == 0)
      return other;
  return NULL;
}

/* Put JOB at the end of the list, and let it run. */
static int
start_locked (struct nc_jobs *jobs, struct nc_job *job,
              char why[NC_JOB_TEXT])
{
  const struct nc_job *other;
  struct nc_job **p;
  unsigned n = 0;
  int err;

  if (jobs->stopped)
    return refuse (ESHUTDOWN, why, "the server is stopping");
  if (find_locked (jobs, job->info.id))
    return refuse (EEXIST, why, "job id '%s' is in use", job->info.id);
  other = excluding_locked (jobs, job);
  if (other)
    return refuse (EBUSY, why, "job '%s' (%s) changes the chain of '%s': "
                   "wait until it has ended, or cancel it", other->info.id,
                   other->info.type, other->info.device);
  for (p = &jobs->first; *p; p = &(*p)->next)
    n++;
  if (n >= NC_JOBS_MAX)
    return refuse (EBUSY, why, "there are %u jobs, the most there can be: "
                   "dismiss some that are concluded", n);
  err = start_thread (job);
  if (err)
    return refuse (err, why, "job '%s': thread: %s", job->info.id,
                   strerror (err));
  jobs->n_threads++;
  *p = job;
  become_locked (job, NC_JOB_CREATED);
  return 0;
}

int
nc_job_create (struct nc_jobs *jobs, const char *id,
               const struct nc_job_type *type,
               const struct nc_job_options *opts, void *opaque,
               char why[NC_JOB_TEXT])
{
  struct nc_job *job;
  int r;

  if (id == NULL)
    id = opts->device;
  if (!is_valid_id (id))
    return refuse (EINVAL, why, "invalid job id '%.64s': a letter first, "
                   "then letters, digits, '-', '.' and '_', at most %d in "
                   "all", id, NC_JOB_ID_MAX);
  reap (jobs, false);
  job = new_job (jobs, id, type, opts, opaque);
  if (job == NULL)
    return refuse (ENOMEM, why, "out of memory");
  {
    NC_LOCKED (&jobs->lock);
    r = start_locked (jobs, job, why);
  }
  if (r == -1) {
    const int err = errno;

    release (job);
    errno = err;
  }
  else
    record (jobs);
  return r;
}

/* Going on. */

static int
start_again (struct nc_jobs *jobs, const struct nc_job_kind *kind,
             void *opaque, const struct nc_record_entry *entry,
             const char *device, char why[NC_JOB_TEXT])
{
  const struct nc_job_options opts = {
    .device = device,
    .speed = entry->speed,
    .on_error = entry->on_error,
    .manual_finalize = !entry->auto_finalize,
    .manual_dismiss = !entry->auto_dismiss,
    .paused = entry->paused,
    .arguments = entry->arguments,
  };

  while (kind->type && strcmp (kind->type, entry->type) != 0)
    kind++;
  if (kind->type == NULL)
    return refuse (ENOTSUP, why, "this version of nbdchain has no such type "
                   "of job");
  return kind->start (opaque, jobs, entry->id, entry->arguments, &opts, why);
}

/* Start what ENTRIES say.  Returns a list of those for which that fails. */
static json_t *
start_entries (struct nc_jobs *jobs, json_t *entries,
               const struct nc_job_kind *kinds, void *opaque,
               const char *device)
{
  json_t *failed = json_array (), *json;
  char why[NC_JOB_TEXT];
  size_t i;

  json_array_foreach (entries, i, json) {
    struct nc_record_entry entry;

    if (nc_record_decode (json, &entry) == -1)
      continue;                 /* it was checked when it was read */
    if (start_again (jobs, kinds, opaque, &entry, device, why) == 0)
      nc_notice ("job '%.*s' (%.40s) goes on: it ran when the last server "
                 "ended", NC_JOB_ID_MAX, entry.id, entry.type);
    else {
      nc_error ("job '%.*s' (%.40s) cannot go on from where it was: %s; it "
                "stays recorded until another of that name is started",
                NC_JOB_ID_MAX, entry.id, entry.type, why);
      json_array_append (failed, json);
    }
  }
  return failed;
}

int
nc_jobs_resume (struct nc_jobs *jobs, const struct nc_path *path,
                const char *uuid, const char *device,
                const struct nc_job_kind *kinds, void *opaque)
{
  json_t *entries = nc_record_read (path, uuid), *failed;
  struct nc_path path_copy = NC_PATH_NONE;
  char *uuid_copy;

  if (entries == NULL)
    return -1;
  uuid_copy = strdup (uuid);
  if (uuid_copy == NULL || nc_path_copy (path, &path_copy) == -1) {
    if (uuid_copy == NULL)
      nc_error ("%s/%s: out of memory", path->real, path->name);
    json_decref (entries);
    free (uuid_copy);
    return -1;
  }
  failed = start_entries (jobs, entries, kinds, opaque, device);
  {
    NC_LOCKED (&jobs->record_lock);
    jobs->record_path = path_copy;
    jobs->record_uuid = uuid_copy;
    jobs->recorded = entries;
    jobs->dormant = failed;
  }
  record (jobs);
  return 0;
}

/* Stopping. */

/* Call wake of every job; each is held by a reference meanwhile. */
static void
wake_all (struct nc_jobs *jobs)
{
  struct nc_job *v[NC_JOBS_MAX];
  unsigned n = 0;

  {
    NC_LOCKED (&jobs->lock);
    for (struct nc_job *job = jobs->first; job; job = job->next) {
      ask_locked (job);
      job->refs++;
      v[n++] = job;
    }
  }
  for (unsigned i = 0; i < n; i++) {
    if (v[i]->type->wake)
      v[i]->type->wake (v[i], v[i]->opaque);
    unref (v[i]);
  }
}

void
nc_jobs_stop (struct nc_jobs *jobs)
{
  {
    NC_LOCKED (&jobs->lock);
    jobs->stopped = true;
  }
  wake_all (jobs);
  {
    NC_LOCKED (&jobs->lock);
    while (jobs->n_threads > 0)
      pthread_cond_wait (&jobs->ended, &jobs->lock);
  }
}

void
nc_jobs_free (struct nc_jobs *jobs)
{
  if (jobs == NULL)
    return;
  nc_jobs_stop (jobs);
  while (jobs->first) {
    struct nc_job *job = jobs->first;

    jobs->first = job->next;
    unref (job);
  }
  reap (jobs, true);
  json_decref (jobs->recorded);
  json_decref (jobs->dormant);
  nc_path_close (&jobs->record_path);
  free (jobs->record_uuid);
  pthread_cond_destroy (&jobs->ended);
  pthread_mutex_destroy (&jobs->record_lock);
  pthread_mutex_destroy (&jobs->lock);
  free (jobs);
}

/* Looking. */

void
nc_jobs_each (struct nc_jobs *jobs, nc_job_fn fn, void *opaque)
{
  NC_LOCKED (&jobs->lock);
  for (struct nc_job *job = jobs->first; job; job = job->next)
    fn (opaque, snapshot_locked (job));
}

int
nc_job_get (struct nc_jobs *jobs, const char *id, struct nc_job_info *info)
{
  struct nc_job *job;

  NC_LOCKED (&jobs->lock);
  job = find_locked (jobs, id);
  if (job == NULL) {
    errno = ENOENT;
    return -1;
  }
  *info = *snapshot_locked (job);
  return 0;
}

static struct timespec
in_nanoseconds (uint64_t t)
{
  const uint64_t end = nc_now () + t;

  return (struct timespec) { .tv_sec = (time_t) (end / NC_SECOND),
                             .tv_nsec = (long) (end % NC_SECOND) };
}

/* Wait until the job, which the caller holds, is concluded. */
static int
wait_locked (struct nc_job *job, int milliseconds)
{
  const struct timespec end =
    in_nanoseconds (milliseconds > 0 ? (uint64_t) milliseconds * 1000000 : 0);

  while (job->info.status != NC_JOB_CONCLUDED &&
         job->info.status != NC_JOB_NULL) {
    if (milliseconds < 0)
      pthread_cond_wait (&job->changed, &job->jobs->lock);
    else if (pthread_cond_timedwait (&job->changed, &job->jobs->lock,
                                     &end) == ETIMEDOUT)
      return -1;
  }
  return 0;
}

int
nc_job_wait (struct nc_jobs *jobs, const char *id, int milliseconds,
             struct nc_job_info *info)
{
  struct nc_job *job;
  int r;

  {
    NC_LOCKED (&jobs->lock);
    job = find_locked (jobs, id);
    if (job == NULL) {
      errno = ENOENT;
      return -1;
    }
    job->refs++;
    r = wait_locked (job, milliseconds);
    *info = *snapshot_locked (job);
  }
  unref (job);
  if (r == -1)
    errno = ETIMEDOUT;
  return r;
}

/* Verbs. */

/* Change JOB as VERB says.  WHAT: what else it needs. */
static int
apply_locked (struct nc_job *job, enum nc_job_verb verb, uint64_t what,
              char why[NC_JOB_TEXT])
{
  struct nc_job_info *info = &job->info;

  switch (verb) {
  case NC_VERB_CANCEL:
    if (what || !info->ready || info->status == NC_JOB_WAITING ||
        info->status == NC_JOB_PENDING)
      job->forced = true;
    info->cancelled = true;
    info->paused = false;
    break;
  case NC_VERB_PAUSE:
    if (info->paused)
      return refuse (EBUSY, why, "job '%s' is already paused", info->id);
    info->paused = true;
    break;
  case NC_VERB_RESUME:
    if (!info->paused)
      return refuse (EBUSY, why, "job '%s' is not paused", info->id);
    info->paused = false;
    info->io_status = NC_IO_OK;
    info->trouble[0] = '\0';
    job->failing_until = 0;
    break;
  case NC_VERB_SET_SPEED:
    info->speed = what;
    nc_rate_set (&job->rate, what, nc_now ());
    break;
  case NC_VERB_COMPLETE:
    job->complete = true;
    break;
  case NC_VERB_FINALIZE:
    job->finalize = true;
    break;
  case NC_VERB_DISMISS:
    become_locked (job, NC_JOB_NULL);
    unlink_locked (job);
    break;
  case NC_JOB_N_VERBS:
    break;
  }
  ask_locked (job);
  return 0;
}

/* Call what the type wants to know of VERB. */
static void
tell_type (struct nc_job *job, enum nc_job_verb verb)
{
  const struct nc_job_type *type = job->type;

  if (type->changed && (verb == NC_VERB_PAUSE || verb == NC_VERB_RESUME ||
                        verb == NC_VERB_SET_SPEED))
    type->changed (job, job->opaque);
  if (type->wake && verb != NC_VERB_DISMISS)
    type->wake (job, job->opaque);
}

static int
act (struct nc_jobs *jobs, const char *id, enum nc_job_verb verb,
     uint64_t what, char why[NC_JOB_TEXT])
{
  struct nc_job *job;

  {
    NC_LOCKED (&jobs->lock);
    job = find_locked (jobs, id);
    if (job == NULL)
      return refuse (ENOENT, why, "job '%.*s' not found", NC_JOB_ID_MAX, id);
    if (!nc_job_may (job->info.status, verb))
      return refuse (EBUSY, why, "job '%s' is %s and cannot %s now", id,
                     nc_job_status_name (job->info.status),
                     nc_job_verb_name (verb));
    if (apply_locked (job, verb, what, why) == -1)
      return -1;
    if (verb != NC_VERB_DISMISS) /* that hands over the list's */
      job->refs++;
  }
  tell_type (job, verb);
  unref (job);
  record (jobs);
  reap (jobs, false);
  return 0;
}

int
nc_job_cancel (struct nc_jobs *jobs, const char *id, bool force,
               char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_CANCEL, force, why);
}

int
nc_job_pause (struct nc_jobs *jobs, const char *id, char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_PAUSE, 0, why);
}

int
nc_job_resume (struct nc_jobs *jobs, const char *id, char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_RESUME, 0, why);
}

int
nc_job_set_speed (struct nc_jobs *jobs, const char *id, uint64_t speed,
                  char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_SET_SPEED, speed, why);
}

int
nc_job_complete (struct nc_jobs *jobs, const char *id,
                 char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_COMPLETE, 0, why);
}

int
nc_job_finalize (struct nc_jobs *jobs, const char *id,
                 char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_FINALIZE, 0, why);
}

int
nc_job_dismiss (struct nc_jobs *jobs, const char *id, char why[NC_JOB_TEXT])
{
  return act (jobs, id, NC_VERB_DISMISS, 0, why);
}

/* For the functions of a type. */

bool
nc_job_should_stop (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  return should_stop_locked (job);
}

bool
nc_job_is_shutdown (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  return job->jobs->stopped;
}

bool
nc_job_is_wanted (struct nc_job *job)
{
  return job->wanted;
}

int
nc_job_pause_point (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  if (job->info.paused && !should_stop_locked (job)) {
    const bool ready = job->info.status == NC_JOB_READY;

    job->info.busy = false;
    become_locked (job, ready ? NC_JOB_STANDBY : NC_JOB_PAUSED);
    while (job->info.paused && !should_stop_locked (job))
      pthread_cond_wait (&job->changed, &job->jobs->lock);
    job->info.busy = true;
    job->copied = (struct nc_meter) { 0 };
    job->throttled = 0;
    become_locked (job, ready ? NC_JOB_READY : NC_JOB_RUNNING);
  }
  job->seen = job->asked;
  return should_stop_locked (job) ? -1 : 0;
}

int
nc_job_sleep (struct nc_job *job, uint64_t nanoseconds)
{
  const struct timespec end = in_nanoseconds (nanoseconds);

  NC_LOCKED (&job->jobs->lock);
  while (!job->wanted && job->asked == job->seen &&
         pthread_cond_timedwait (&job->changed, &job->jobs->lock,
                                 &end) != ETIMEDOUT)
    ;
  return job->wanted ? -1 : 0;
}

int
nc_job_throttle (struct nc_job *job, uint64_t count)
{
  NC_LOCKED (&job->jobs->lock);
  while (!job->wanted) {
    const uint64_t t = nc_now (), wait = nc_rate_take (&job->rate, count, t);
    struct timespec end;

    if (wait == 0)
      return 0;
    job->throttled = t;
    end = in_nanoseconds (wait);
    pthread_cond_timedwait (&job->changed, &job->jobs->lock, &end);
  }
  return -1;
}

void
nc_job_set_len (struct nc_job *job, uint64_t len)
{
  NC_LOCKED (&job->jobs->lock);
  job->info.len = len;
  if (len <= job->info.offset && job->info.offset > 0)
    job->info.len = job->info.offset + !job->all;
  show_locked (job);
}

void
nc_job_progress (struct nc_job *job, uint64_t offset)
{
  NC_LOCKED (&job->jobs->lock);
  if (offset > job->done)
    job->done = offset;
  show_locked (job);
}

void
nc_job_count (struct nc_job *job, enum nc_job_counter which, uint64_t count)
{
  NC_LOCKED (&job->jobs->lock);
  job->info.count[which] += count;
  if (which == NC_COUNT_COPIED)
    nc_meter_add (&job->copied, count, nc_now ());
}

void
nc_job_set_limit (struct nc_job *job, enum nc_job_limit limit)
{
  NC_LOCKED (&job->jobs->lock);
  job->limit = limit;
}

/* It shows for TIME, at least, that something failed. */
static void
fails_locked (struct nc_job *job, uint64_t time)
{
  const uint64_t until = nc_now () + time;

  if (until > job->failing_until)
    job->failing_until = until;
}

enum nc_job_action
nc_job_error (struct nc_job *job, enum nc_job_operation operation, int err)
{
  const bool full = err == ENOSPC || err == EDQUOT;
  struct nc_job_info *info = &job->info;
  enum nc_job_action action;

  NC_LOCKED (&job->jobs->lock);
  if (info->on_error == NC_ON_ERROR_IGNORE)
    action = NC_JOB_IGNORE;
  else if (info->on_error == NC_ON_ERROR_STOP ||
           (info->on_error == NC_ON_ERROR_ENOSPC && full))
    action = NC_JOB_STOP;
  else
    action = NC_JOB_REPORT;
  fails_locked (job, NC_SECOND);
  if (action == NC_JOB_STOP && !info->cancelled) {
    info->io_status = full ? NC_IO_NOSPACE : NC_IO_FAILED;
    info->paused = true;
    ask_locked (job);
  }
  tell_locked (job, (struct nc_job_event) {
      .kind = NC_EVENT_ERROR, .operation = operation, .action = action });
  return action;
}

uint64_t
nc_job_retry_wait (unsigned tries)
{
  return RETRY_FIRST << (tries < RETRY_DOUBLINGS ? tries : RETRY_DOUBLINGS);
}

int
nc_job_back_off (struct nc_job *job, unsigned tries)
{
  const uint64_t wait = nc_job_retry_wait (tries);

  {
    NC_LOCKED (&job->jobs->lock);
    fails_locked (job, wait + LIMIT_SHOWN);
  }
  return nc_job_sleep (job, wait);
}

void
nc_job_set_trouble (struct nc_job *job, const char *text)
{
  NC_LOCKED (&job->jobs->lock);
  snprintf (job->info.trouble, sizeof job->info.trouble, "%s", text);
}

void
nc_job_set_error (struct nc_job *job, const char *fmt, ...)
{
  va_list args;

  NC_LOCKED (&job->jobs->lock);
  if (job->info.error[0] != '\0')
    return;
  va_start (args, fmt);
  vsnprintf (job->info.error, sizeof job->info.error, fmt, args);
  va_end (args);
}

void
nc_job_ready (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  job->info.ready = job->all = true;
  if (job->done < job->info.len)
    job->done = job->info.len;
  show_locked (job);
  become_locked (job, NC_JOB_READY);
  tell_locked (job, (struct nc_job_event) { .kind = NC_EVENT_READY });
}

bool
nc_job_should_complete (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  return job->complete;
}

bool
nc_job_is_forced (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  return job->forced;
}

uint64_t
nc_job_speed (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  return job->info.speed;
}

bool
nc_job_is_paused (struct nc_job *job)
{
  NC_LOCKED (&job->jobs->lock);
  return job->info.paused;
}

const char *
nc_job_id (const struct nc_job *job)
{
  return job->info.id;          /* never changes */
}
