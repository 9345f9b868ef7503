/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Who holds a lock, for a message. */
#ifndef NC_HOLDER_H
#define NC_HOLDER_H

#include <fcntl.h>
#include <stddef.h>

/* Name the process that holds LOCK, as F_OFD_GETLK has returned it for FD:
 * "qemu-nbd (process 1234)", or "another process" where the system does not
 * tell.  Reads /proc, for half a second at most.  Keeps errno. */
extern void nc_holder_name (int fd, const struct flock *lock,
                            char *name, size_t len)
  __attribute__ ((__nonnull__ (2, 3)));

#endif /* NC_HOLDER_H */
