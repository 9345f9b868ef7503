/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The file in which it stands which jobs run.  Input: its text.
 *
 * What must hold: it is refused with a reason, or it is a list of jobs, no
 * more than there can be, each of which is written as it was read. */

#include <config.h>

#include "fuzz.h"

#include <string.h>

#include "job/record.h"

#define UUID "6ff5d1a4-7a3c-4c5e-8c3d-0b1f1f8f2a11"

static void
check_entry (json_t *json)
{
  struct nc_record_entry entry;
  json_t *again;

  fuzz_must (nc_record_decode (json, &entry) == 0, "each is a job");
  fuzz_must (json_is_object (entry.arguments) && entry.speed <= INT64_MAX &&
             entry.on_error <= NC_ON_ERROR_STOP, "as one can be");
  again = nc_record_encode (&entry);
  fuzz_must (json_equal (again, json), "which is written as it was read");
  json_decref (again);
}

static void
run (const uint8_t *data, size_t size)
{
  char why[NC_JOB_TEXT] = "";
  json_t *list = nc_record_parse ((const char *) data, size, UUID, why);
  json_t *json;
  size_t i;

  if (list == NULL) {
    fuzz_must (*why && memchr (why, '\0', sizeof why), "there is a reason");
    return;
  }
  fuzz_must (json_array_size (list) <= NC_JOBS_MAX, "there are not too many");
  json_array_foreach (list, i, json)
    check_entry (json);
  json_decref (list);
}

#define RECORD(jobs) \
  "{\"nbdchain-jobs\": 1, \"uuid\": \"" UUID "\", \"jobs\": [" jobs "]}"
#define JOB(id, more) \
  "{\"id\": \"" id "\", \"type\": \"stream\", \"arguments\": {" more "}, " \
  "\"speed\": 52428800, \"on-error\": \"enospc\", \"paused\": false, " \
  "\"auto-finalize\": true, \"auto-dismiss\": false}"

static void
seeds (fuzz_save_fn save, void *opaque)
{
  static const struct { const char *name, *input; } t[] = {
    { "none", RECORD ("") },
    { "one", RECORD (JOB ("disk", "\"base\": \"b\\u00e4se.raw\"")) },
    { "two", RECORD (JOB ("a", "") ", " JOB ("b", "\"x\": [1, null]")) },
    { "twice", RECORD (JOB ("a", "") ", " JOB ("a", "")) },
    { "other", "{\"nbdchain-jobs\": 1, \"uuid\": \"\", \"jobs\": []}" },
    { "later", "{\"nbdchain-jobs\": 2, \"uuid\": \"" UUID "\", \"jobs\": []}" },
    { "no-job", RECORD ("{}, [], 1") },
    { "half", "{\"nbdchain-jobs\": 1, \"uu" },
  };

  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i)
    save (opaque, t[i].name, (const uint8_t *) t[i].input,
          strlen (t[i].input));
}

const struct fuzz_target fuzz_jobs = {
  .name = "jobs", .run = run, .seeds = seeds
};
