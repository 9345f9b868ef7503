/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Jobs: their life, not what they do.
 *
 * States, and what may be asked for in each, are QEMU's:
 *
 *   created -> running <-> paused        running -> ready <-> standby
 *   running, ready -> waiting -> pending -> concluded -> null
 *   any of these before concluded -> aborting -> concluded
 *
 * A job has a thread, which runs the function of its type.  That function
 * comes to nc_job_pause_point often, and whatever else it waits for can be
 * ended by the type's wake; so what an operator asks for takes effect within
 * 100 ms, also while a source hangs.
 */
#ifndef NC_JOB_H
#define NC_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_t;
struct nc_path;
struct nc_job;
struct nc_jobs;

enum nc_job_status {
  NC_JOB_UNDEFINED, NC_JOB_CREATED, NC_JOB_RUNNING, NC_JOB_PAUSED,
  NC_JOB_READY, NC_JOB_STANDBY, NC_JOB_WAITING, NC_JOB_PENDING,
  NC_JOB_ABORTING, NC_JOB_CONCLUDED, NC_JOB_NULL,
  NC_JOB_N_STATUS
};

enum nc_job_verb {
  NC_VERB_CANCEL, NC_VERB_PAUSE, NC_VERB_RESUME, NC_VERB_SET_SPEED,
  NC_VERB_COMPLETE, NC_VERB_FINALIZE, NC_VERB_DISMISS,
  NC_JOB_N_VERBS
};

/* Words of QMP. */
extern const char *nc_job_status_name (enum nc_job_status status);
extern const char *nc_job_verb_name (enum nc_job_verb verb);

/* Whether VERB may be asked for in STATUS; whether FROM may become TO. */
extern bool nc_job_may (enum nc_job_status status, enum nc_job_verb verb);
extern bool nc_job_may_become (enum nc_job_status from,
                               enum nc_job_status to);

/* What to do about an error of storage or source. */
enum nc_on_error {
  NC_ON_ERROR_REPORT,           /* the job fails */
  NC_ON_ERROR_IGNORE,           /* try again */
  NC_ON_ERROR_ENOSPC,           /* stop if storage is full, else report */
  NC_ON_ERROR_STOP,             /* pause; resume tries again */
};

/* Words of QMP.  The latter returns -1 if WORD is none of them. */
extern const char *nc_on_error_name (enum nc_on_error policy);
extern int nc_on_error_parse (const char *word, enum nc_on_error *policy)
  __attribute__ ((__nonnull__ (1, 2)));

/* What nc_job_error decided. */
enum nc_job_action {
  NC_JOB_REPORT,                /* nc_job_set_error and return -1 */
  NC_JOB_IGNORE,                /* the same again, not at once */
  NC_JOB_STOP,                  /* come to the pause point, then the same
                                   again */
};

enum nc_job_operation { NC_JOB_READ, NC_JOB_WRITE };

enum nc_io_status { NC_IO_OK, NC_IO_FAILED, NC_IO_NOSPACE };

/* What keeps a job from being faster. */
enum nc_job_limit {
  NC_LIMIT_NONE, NC_LIMIT_RATE, NC_LIMIT_SOURCE, NC_LIMIT_STORAGE,
  NC_LIMIT_GUEST, NC_LIMIT_CONTENTION, NC_LIMIT_PAUSE, NC_LIMIT_ERROR,
  NC_LIMIT_DELAY,               /* it begins later */
};
extern const char *nc_job_limit_name (enum nc_job_limit limit);

/* What became of bytes; see nc_job_count. */
enum nc_job_counter {
  NC_COUNT_COPIED,              /* transferred */
  NC_COUNT_LOCAL,               /* skipped: there already */
  NC_COUNT_ZERO,                /* skipped: zeros need no copying */
  NC_JOB_N_COUNTERS
};

#define NC_JOB_ID_MAX 127       /* bytes */
#define NC_JOB_TEXT 512         /* a message, with its final NUL */
#define NC_JOBS_MAX 64          /* in the list at a time */

/* A job as it is at a moment. */
struct nc_job_info {
  char id[NC_JOB_ID_MAX + 1];
  const char *type;             /* as the type was created with */
  const char *device;
  enum nc_job_status status;
  uint64_t offset, len;         /* progress, bytes */
  uint64_t speed;               /* bytes a second, 0 = no limit */
  bool busy;                    /* its function is at work */
  bool paused;                  /* by the operator, or by on-error */
  bool ready;
  bool auto_finalize, auto_dismiss;
  enum nc_on_error on_error;
  enum nc_io_status io_status;
  bool failed, cancelled;       /* how it ended, or is about to */
  char error[NC_JOB_TEXT];      /* "" = none */
  char trouble[NC_JOB_TEXT];    /* what failed last and was ignored, or made
                                   it stop; "" = nothing since it resumed */

  uint64_t rate;                /* bytes copied a second, measured; 0 while it
                                   is paused */
  uint64_t seconds_left;        /* if all that is left is copied, at that rate
                                   or the speed that holds it */
  bool has_seconds_left;        /* else nobody knows */
  uint64_t count[NC_JOB_N_COUNTERS];
  enum nc_job_limit limit;
};

enum nc_job_event_kind {
  NC_EVENT_STATUS,              /* info.status is new */
  NC_EVENT_READY, NC_EVENT_PENDING, NC_EVENT_COMPLETED, NC_EVENT_CANCELLED,
  NC_EVENT_ERROR,               /* operation, action */
};

struct nc_job_event {
  enum nc_job_event_kind kind;
  const struct nc_job_info *info;
  enum nc_job_operation operation;
  enum nc_job_action action;
};

/* Receives events in the order in which they happen.  It is called with the
 * list locked: it must not wait, and must not call anything here. */
typedef void (*nc_job_sink) (void *opaque, const struct nc_job_event *event);

/* The list of jobs.  Returns NULL with errno ENOMEM, reported. */
extern struct nc_jobs *nc_jobs_new (void);

/* Send events to SINK; NULL: to nobody.  Once it returns, an earlier sink is
 * not running. */
extern void nc_jobs_set_sink (struct nc_jobs *jobs, nc_job_sink sink,
                              void *opaque)
  __attribute__ ((__nonnull__ (1)));

/* Stop all jobs because the process ends: their functions see
 * nc_job_should_stop, and nc_job_is_shutdown, and what was recorded for
 * going on later stays.  Returns when they have ended, but for their free;
 * new jobs are refused (ESHUTDOWN).  Idempotent. */
extern void nc_jobs_stop (struct nc_jobs *jobs)
  __attribute__ ((__nonnull__ (1)));

/* nc_jobs_stop, and release everything: waits for each free.  NULL is
 * allowed. */
extern void nc_jobs_free (struct nc_jobs *jobs);

/* Call FN for each job in the order of their creation, with the list
 * locked, as for a sink. */
typedef void (*nc_job_fn) (void *opaque, const struct nc_job_info *info);
extern void nc_jobs_each (struct nc_jobs *jobs, nc_job_fn fn, void *opaque)
  __attribute__ ((__nonnull__ (1, 2)));

/* What a kind of job does.  All but RUN may be NULL.  None is called with a
 * lock held. */
struct nc_job_type {
  const char *name;             /* "stream" */

  /* For people, after it has failed: what holds now, and what to do. */
  const char *after_failure;

  /* Its end changes which layers the chain has, or what is in those below
   * the top.  One such job at a time a device: another is refused. */
  bool changes_chain;

  /* The work, in the job's thread.  Returns 0 when it is done; or -1 with
   * nc_job_set_error called, or because nc_job_should_stop. */
  int (*run) (struct nc_job *job, void *opaque);

  /* After a run that returned 0, once the job is (automatically or by the
   * operator) finalized: what makes its result take effect.  Same thread,
   * same returns. */
  int (*finalize) (struct nc_job *job, void *opaque);

  /* End whatever RUN waits for, so that it comes to its pause point: called
   * from any thread when the job is to be cancelled, paused, resumed,
   * completed or stopped, also before RUN and after it. */
  void (*wake) (struct nc_job *job, void *opaque);

  /* Speed, or whether it is paused, was changed by the operator; for
   * algorithms that record these.  From any thread. */
  void (*changed) (struct nc_job *job, void *opaque);

  /* The job is gone from the list; in its thread.  It may take its time. */
  void (*free) (void *opaque);
};

struct nc_job_options {
  const char *device;           /* "disk"; must outlive the job */
  uint64_t len;                 /* all there is to do, if that is known: it is
                                   shown before the job runs */
  uint64_t speed;
  enum nc_on_error on_error;
  bool manual_finalize, manual_dismiss; /* auto-... = false */
  bool paused;                  /* starts paused, as before a restart */

  /* An object, from which its start (nc_jobs_resume) can make the job again
   * after a restart; it is copied.  NULL: it ends with the server. */
  struct json_t *arguments;
};

/* Create a job and start its thread.  ID NULL: the device's name.
 * OPAQUE is freed by TYPE->free, but stays the caller's on failure.
 * Returns -1 with a message in WHY and errno: EEXIST (the id is in use),
 * EINVAL (not a letter followed by letters, digits, '-', '.', '_', or too
 * long), EBUSY (NC_JOBS_MAX, or the job in WHY excludes it), ESHUTDOWN,
 * ENOMEM; not reported.  Not to be called from a sink.
 * When it returns 0, the job is recorded (nc_jobs_resume), as it is after a
 * verb below has returned; an error of that is reported, and no more. */
extern int nc_job_create (struct nc_jobs *jobs, const char *id,
                          const struct nc_job_type *type,
                          const struct nc_job_options *opts, void *opaque,
                          char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 3, 4, 6)));

/* Makes a job anew: nc_job_create with ID, OPTS (of which all is filled in)
 * and what ARGS say, which nothing vouches for; a type whose job wants OPTS
 * to be otherwise refuses.  What needs a remote is the job's to do.
 * Returns as nc_job_create. */
typedef int (*nc_job_start_fn) (void *opaque, struct nc_jobs *jobs,
                                const char *id, struct json_t *args,
                                const struct nc_job_options *opts,
                                char why[NC_JOB_TEXT]);

struct nc_job_kind {
  const char *type;             /* NULL ends a list */
  nc_job_start_fn start;
};

/* Start anew, on DEVICE, the jobs that are recorded in the file PATH (a copy is kept) for the
 * image with UUID (as text), by the KINDS, which get OPAQUE; and from now on
 * record there which jobs with arguments run, until each of them ends by
 * itself or is cancelled.  What nc_jobs_stop stops stays recorded, so does
 * what cannot be started, which is reported, until there is another job of
 * that id.  Once, and before others use JOBS; DEVICE outlives it.
 * Returns -1 if PATH is something else (nc_record_check), or if memory is
 * short, reported. */
extern int nc_jobs_resume (struct nc_jobs *jobs, const struct nc_path *path,
                           const char *uuid, const char *device,
                           const struct nc_job_kind *kinds, void *opaque)
  __attribute__ ((__nonnull__ (1, 2, 3, 4, 5)));

/* What an operator asks for.  Returns 0; or -1 with a message in WHY and
 * errno: ENOENT (no such job), EBUSY (not in this state); not reported.
 * They do not wait for the job to follow.
 * cancel: a job that is paused is resumed to end.  Without FORCE a job that
 * is ready may end in its own way (nc_job_is_forced). */
extern int nc_job_cancel (struct nc_jobs *jobs, const char *id, bool force,
                          char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 4)));
extern int nc_job_pause (struct nc_jobs *jobs, const char *id,
                         char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern int nc_job_resume (struct nc_jobs *jobs, const char *id,
                          char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern int nc_job_set_speed (struct nc_jobs *jobs, const char *id,
                             uint64_t speed, char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 4)));
extern int nc_job_complete (struct nc_jobs *jobs, const char *id,
                            char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern int nc_job_finalize (struct nc_jobs *jobs, const char *id,
                            char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern int nc_job_dismiss (struct nc_jobs *jobs, const char *id,
                           char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Fill in INFO.  Returns -1 with errno ENOENT if there is no such job. */
extern int nc_job_get (struct nc_jobs *jobs, const char *id,
                       struct nc_job_info *info)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Wait at most MILLISECONDS (-1: for ever) until the job is concluded; INFO
 * is filled in, also when it is not.  Give such a job manual_dismiss.
 * Returns -1 with errno ETIMEDOUT, or ENOENT if there is no such job. */
extern int nc_job_wait (struct nc_jobs *jobs, const char *id,
                        int milliseconds, struct nc_job_info *info)
  __attribute__ ((__nonnull__ (1, 2, 4)));

/* For the functions of a type; from any thread while RUN or FINALIZE runs,
 * unless it says otherwise. */

/* Whether the job is cancelled or the process ends; the latter alone. */
extern bool nc_job_should_stop (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));
extern bool nc_job_is_shutdown (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));

/* Whether the job is to stop, or to come to its pause point: what waits for
 * something else asks this whenever it is woken. */
extern bool nc_job_is_wanted (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));

/* Come here often, in the thread of RUN, with nothing under way.  Blocks
 * while the job is paused.  Returns 0; or -1 when the job is to stop. */
extern int nc_job_pause_point (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));

/* Wait NANOSECONDS, or less if the operator asks for anything or has since
 * the last pause point: so come there, look at what may have been asked for,
 * and then sleep.  Returns -1 if nc_job_is_wanted. */
extern int nc_job_sleep (struct nc_job *job, uint64_t nanoseconds)
  __attribute__ ((__nonnull__ (1)));

/* Before COUNT bytes are transferred: wait until the job's speed allows it.
 * Returns 0; or -1, nothing charged, as soon as nc_job_is_wanted. */
extern int nc_job_throttle (struct nc_job *job, uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* All there is to do, and how much of it is done.  What is shown never goes
 * back, and is not all before the job is ready or RUN has returned 0. */
extern void nc_job_set_len (struct nc_job *job, uint64_t len)
  __attribute__ ((__nonnull__ (1)));
extern void nc_job_progress (struct nc_job *job, uint64_t offset)
  __attribute__ ((__nonnull__ (1)));

/* COUNT bytes were copied, or skipped.  NC_COUNT_COPIED is what the measured
 * rate is made of. */
extern void nc_job_count (struct nc_job *job, enum nc_job_counter which,
                          uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* What keeps the job from being faster, as far as its function knows: rate,
 * pause and error are known here, and win. */
extern void nc_job_set_limit (struct nc_job *job, enum nc_job_limit limit)
  __attribute__ ((__nonnull__ (1)));

/* An operation failed with errno ERR: what is to be done, by on-error.  Each
 * call sends an event.  Report the cause before, once. */
extern enum nc_job_action nc_job_error (struct nc_job *job,
                                        enum nc_job_operation operation,
                                        int err)
  __attribute__ ((__nonnull__ (1)));

/* After NC_JOB_IGNORE: sleep, as nc_job_sleep, before what has failed TRIES
 * times before is tried again: longer each time, up to some seconds. */
extern int nc_job_back_off (struct nc_job *job, unsigned tries)
  __attribute__ ((__nonnull__ (1)));
/* How long that is, in nanoseconds. */
extern uint64_t nc_job_retry_wait (unsigned tries);

/* What failed, for people; before nc_job_error. */
extern void nc_job_set_trouble (struct nc_job *job, const char *text)
  __attribute__ ((__nonnull__ (1, 2)));

/* Why the job fails; the first one is kept. */
extern void nc_job_set_error (struct nc_job *job, const char *fmt, ...)
  __attribute__ ((__nonnull__ (1, 2), __format__ (printf, 2, 3)));

/* The job is ready: all is done but the end, which waits for the operator;
 * its progress shows that.
 * Thread of RUN only. */
extern void nc_job_ready (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));
/* Whether the operator asked a job that is ready to complete. */
extern bool nc_job_should_complete (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));
/* Whether it was cancelled with FORCE. */
extern bool nc_job_is_forced (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));

/* The speed and whether the operator paused it, as of now. */
extern uint64_t nc_job_speed (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));
extern bool nc_job_is_paused (struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));
extern const char *nc_job_id (const struct nc_job *job)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_JOB_H */
