/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* On Linux each thread has a nice value of its own. */

#include <config.h>

#include "standback.h"

#include <errno.h>
#include <unistd.h>

#include "report.h"

#define BEHIND 10               /* added to the nice value */

static _Thread_local bool stands_back, is_behind;

void
nc_stand_back (bool on)
{
  stands_back = on;
  if (!on || is_behind)
    return;
  is_behind = true;
  errno = 0;
  if (nice (BEHIND) == -1 && errno)
    nc_debug ("nice: %m");
}

bool
nc_stands_back (void)
{
  return stands_back;
}
