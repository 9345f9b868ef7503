/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The file in which it stands what jobs of an image run, so that the next
 * server can go on with them.
 *
 * It is JSON, replaced as a whole, and durably.  Nothing vouches for what is
 * found in it: who can write beside the image may have put it there.  So
 * every member is checked here, and the arguments of a job by who starts it,
 * as if a client had sent them.  docs/control.md describes it.
 *
 * No locks: one thread at a time.
 */
#ifndef NC_RECORD_H
#define NC_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "job/job.h"
#include "util/path.h"

#define NC_RECORD_MAX (1 << 20) /* bytes of the file */

struct nc_record_entry {
  const char *id, *type;        /* of the entry that was decoded */
  json_t *arguments;            /* an object; the same */
  uint64_t speed;               /* at most INT64_MAX */
  enum nc_on_error on_error;
  bool paused, auto_finalize, auto_dismiss;
};

/* A new reference; NULL if memory is short. */
extern json_t *nc_record_encode (const struct nc_record_entry *entry)
  __attribute__ ((__nonnull__ (1)));

/* Fill in ENTRY, which is valid as long as JSON is.  Returns -1 if that is
 * not what nc_record_encode makes, not reported. */
extern int nc_record_decode (json_t *json, struct nc_record_entry *entry)
  __attribute__ ((__nonnull__ (2)));

/* The list of entries in a file's TEXT, a new reference: at most NC_JOBS_MAX,
 * each of which nc_record_decode takes.  Returns NULL with a message in WHY
 * if it is anything else, or belongs to another image than UUID. */
extern json_t *nc_record_parse (const char *text, size_t len,
                                const char *uuid, char why[NC_JOB_TEXT])
  __attribute__ ((__nonnull__ (1, 3, 4)));

/* Whether the file PATH may be written to: there is none, it is empty, or a
 * record of jobs, of whatever image and however damaged.  Returns -1 with
 * errno EEXIST if it is something else, or cannot be read, reported.  It need
 * not be one that is used: nc_record_read. */
extern int nc_record_check (const struct nc_path *path)
  __attribute__ ((__nonnull__ (1)));

/* The list in the file PATH, as nc_record_parse; an empty one if there is no
 * such file, or none that can be used, which is reported.  NULL if it is
 * something else (nc_record_check), or if memory is short, reported. */
extern json_t *nc_record_read (const struct nc_path *path, const char *uuid)
  __attribute__ ((__nonnull__ (1, 2)));

/* Replace the file PATH by one with the list ENTRIES, or remove it if that is
 * empty; durable when it returns.  What nc_record_check refuses stays, which
 * is an error.  Returns -1 on error, reported; then it is not known which of
 * the two will be found. */
extern int nc_record_write (const struct nc_path *path, const char *uuid,
                            json_t *entries)
  __attribute__ ((__nonnull__ (1, 2, 3)));

#endif /* NC_RECORD_H */
