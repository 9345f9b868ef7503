/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Commands that QEMU does not have: what prefetching does, and recording a
 * profile.  docs/control.md is the reference. */

#include <config.h>

#include "control/prefetch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chain/chain.h"
#include "control/command.h"
#include "control/qmp.h"
#include "copyread/recorder.h"
#include "image/image.h"
#include "job/prefetch.h"
#include "util/scope.h"

static json_t *
answer (json_t *value, struct nc_command_error *error)
{
  return value ? value
    : nc_command_fail (error, NC_ERROR_GENERIC, "out of memory");
}

/* The policy. */

static json_t *
prefetch_set (void *opaque, json_t *args, struct nc_command_error *error)
{
  const struct nc_control_prefetch *state = opaque;
  struct nc_image_amendment amendment = { 0 };

  for (unsigned i = 0; i < NC_PREFETCH_FIELDS; ++i) {
    const struct nc_prefetch_field *field = &nc_prefetch_fields[i];
    json_t *value = json_object_get (args, field->name);

    if (value)
      nc_image_amendment_set (&amendment, field->flag,
                              (uint64_t) json_integer_value (value));
  }
  if (nc_prefetch_amend (state->prefetch, &amendment) == 0)
    return answer (json_object (), error);
  return nc_command_fail (error, NC_ERROR_GENERIC, "the policy would make no "
                          "sense: bytes-per-prefetch must be a multiple of "
                          "4096, and a maximal rate not below the minimal "
                          "one");
}

static json_t *
policy_json (const struct nc_prefetch_policy *policy)
{
  json_t *json = json_pack ("{s:b, s:b}", "prefetch", (int) policy->whole,
                            "prefetch-profile", (int) policy->profile);

  for (unsigned i = 0; i < NC_PREFETCH_FIELDS; ++i)
    json_object_set_new (
      json, nc_prefetch_fields[i].name,
      json_integer ((json_int_t) nc_prefetch_policy_get (
                      policy, nc_prefetch_fields[i].flag)));
  return json;
}

static json_t *
query_prefetch (void *opaque, json_t *args __attribute__ ((__unused__)),
                struct nc_command_error *error)
{
  const struct nc_control_prefetch *state = opaque;
  struct nc_prefetch_info info;
  struct nc_profile_stats stats;

  nc_prefetch_get (state->prefetch, &info);
  nc_profile_get (state->profile, &stats);
  return answer (
    json_pack ("{s:o, s:I, s:I, s:I, s:I, s:b, s:{s:I, s:I, s:I, s:b, s:I,"
               " s:I, s:I}}", "policy", policy_json (&info.policy),
               "read-throughput", (json_int_t) info.read_rate,
               "write-throughput", (json_int_t) info.write_rate,
               "alone-throughput", (json_int_t) info.alone_rate,
               "pauses", (json_int_t) info.pauses,
               "at-profile", (int) info.is_at_profile,
               "profile", "bytes", (json_int_t) stats.named,
               "touched", (json_int_t) stats.touched,
               "hit", (json_int_t) stats.hit,
               "recording", (int) stats.is_recording,
               "recorded-ranges", (json_int_t) stats.ranges,
               "recorded-bytes", (json_int_t) stats.bytes,
               "lost-ranges", (json_int_t) stats.lost), error);
}

/* Recording. */

static json_t *
profile_start (void *opaque, json_t *args __attribute__ ((__unused__)),
               struct nc_command_error *error)
{
  const struct nc_control_prefetch *state = opaque;

  nc_profile_start (state->profile);
  return answer (json_object (), error);
}

static json_t *
profile_stop (void *opaque, json_t *args, struct nc_command_error *error)
{
  const struct nc_control_prefetch *state = opaque;
  const json_t *store = json_object_get (args, "store");
  NC_FREE struct nc_profile_range *ranges = NULL;
  struct nc_profile_stats stats;
  size_t n;

  nc_profile_get (state->profile, &stats);
  if (nc_profile_stop (state->profile, &ranges, &n) == -1)
    return nc_command_fail (error, NC_ERROR_GENERIC, "nothing is being "
                            "recorded: start a recording first (one that "
                            "was under way when a server was killed is "
                            "lost)");
  if (!json_is_false (store) &&
      nc_chain_profile_write (state->chain, ranges, n) == -1)
    return nc_command_fail (error, NC_ERROR_GENERIC, "the profile could not "
                            "be stored in the active image: %s",
                            strerror (errno));
  return answer (json_pack ("{s:I, s:I, s:I}", "ranges", (json_int_t) n,
                            "bytes", (json_int_t) stats.bytes,
                            "lost-ranges", (json_int_t) stats.lost), error);
}

/* The table. */

static const struct nc_arg arg_store[] = {
  { .name = "store", .type = NC_ARG_BOOLEAN, .optional = true },
  { 0 }
};

static struct nc_arg arg_policy[NC_PREFETCH_FIELDS + 1];

static const struct nc_command table[] = {
  { "x-prefetch-set", arg_policy, prefetch_set },
  { "x-query-prefetch", NULL, query_prefetch },
  { "x-profile-start", NULL, profile_start },
  { "x-profile-stop", arg_store, profile_stop },
};

int
nc_control_add_prefetch (struct nc_control *control,
                         struct nc_control_prefetch *state)
{
  for (unsigned i = 0; i < NC_PREFETCH_FIELDS; ++i)
    arg_policy[i] = (struct nc_arg) {
      .name = nc_prefetch_fields[i].name, .type = NC_ARG_INTEGER,
      .optional = true, .max = (int64_t) nc_prefetch_fields[i].max,
    };
  for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
    if (nc_control_add (control, &table[i], state) == -1)
      return -1;
  return 0;
}
