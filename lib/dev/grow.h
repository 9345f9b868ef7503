/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The operator's command that makes storage larger.  It is an option of the
 * server: an image carries no commands. */
#ifndef NC_ENLARGE_H
#define NC_ENLARGE_H

#include <stdint.h>

/* Run COMMAND by the shell, because the storage PATH is to have at least
 * NEEDED bytes, and better WANTED.  It finds these in its environment:
 * NBDCHAIN_STORAGE, NBDCHAIN_NEEDED, NBDCHAIN_WANTED.  Its output goes where
 * ours goes, standard input is empty.
 * Blocks until it has ended.  Returns -1 if it did not succeed, reported. */
extern int nc_enlarge (const char *command, const char *path,
                       uint64_t needed, uint64_t wanted)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_ENLARGE_H */
