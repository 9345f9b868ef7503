/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* In place of lib/remote-load.c: all of the library is in the target, so that
 * libFuzzer sees it, and there is nothing to load. */

#include <config.h>

#include "remote.h"

const struct nc_remote *
nc_remote_load (void)
{
  return &nc_remote_table;
}
