/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* In place of lib/nbd/remote-load.c: the whole library is linked into the
 * target, so that libFuzzer sees it, and there is nothing to load. */

#include <config.h>

#include "nbd/remote.h"

const struct nc_remote *
nc_remote_load (void)
{
  return &nc_remote_table;
}
