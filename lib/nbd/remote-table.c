/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What libnbdchain-remote.so gives to libnbdchain.so. */

#include <config.h>

#include "nbd/remote.h"

const struct nc_remote nc_remote_table = {
  .version = PACKAGE_VERSION,
  .open_nbd = nc_remote_open_nbd,
  .open_nbd_writable = nc_remote_open_nbd_writable,
  .open_nbd_absent = nc_remote_open_nbd_absent,
  .parse_uri = nc_remote_parse_uri,
};
