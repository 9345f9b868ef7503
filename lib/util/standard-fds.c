/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Sees to it that descriptors 0 to 2 are open. */

#include <config.h>

#include "util/standard-fds.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int
nc_open_standard_fds (void)
{
  for (int fd = 0; fd <= 2; ++fd)
    if (fcntl (fd, F_GETFD) == -1 && errno == EBADF &&
        open ("/dev/null", O_RDWR) != fd)       /* the lowest free number */
      return -1;
  return 0;
}
