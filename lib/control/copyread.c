/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A command that QEMU does not have: what copy-on-read does.
 * docs/control.md is the reference. */

#include <config.h>

#include "control/copyread.h"

#include "control/command.h"
#include "control/qmp.h"
#include "copyread/copyread.h"

static json_t *
query_copyread (void *opaque, json_t *args __attribute__ ((__unused__)),
                struct nc_command_error *error)
{
  struct nc_copyread_count count;
  json_t *answer;

  nc_copyread_counted (opaque, &count);
  answer = json_pack ("{s:I, s:I, s:I, s:I, s:I}",
                      "fetched", (json_int_t) count.fetched,
                      "read-ahead", (json_int_t) count.ahead,
                      "joined", (json_int_t) count.joined,
                      "waiting", (json_int_t) count.waiting,
                      "not-stored", (json_int_t) count.not_stored);
  return answer ? answer
    : nc_command_fail (error, NC_ERROR_GENERIC, "out of memory");
}

int
nc_control_add_copyread (struct nc_control *control, struct nc_copyread *cr)
{
  static const struct nc_command command = {
    "x-query-copy-on-read", NULL, query_copyread
  };

  return nc_control_add (control, &command, cr);
}
