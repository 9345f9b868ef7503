/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Replacing a small file as a whole: whoever looks, also after power was
 * lost, finds the old one or the new one.  No locks. */
#ifndef NC_REPLACE_H
#define NC_REPLACE_H

#include <sys/types.h>

/* PATH with SUFFIX added, for a file that goes with PATH.  Where the name would
 * be longer than NAME_MAX, what does not fit of PATH's own is replaced by a
 * hash of it.  Allocated; NULL with errno ENOMEM, not reported. */
extern char *nc_path_beside (const char *path, const char *suffix)
  __attribute__ ((__nonnull__ (1, 2)));

/* Make TEXT the content of the file PATH, by a new file with a name beside it
 * that nothing else had; durable when it returns.  What PATH was is not looked
 * at: the caller has made sure that it may go.  A symbolic link is replaced,
 * not followed.  A process that is killed meanwhile may leave the new file,
 * PATH.new.NUMBER.
 * mode: as that of open.
 * Returns -1 with errno, not reported; then it is not known which of the two
 * will be found. */
extern int nc_replace_file (const char *path, const char *text, mode_t mode)
  __attribute__ ((__nonnull__ (1, 2)));

/* Make durable which names are in the directory of PATH.  Returns -1 with
 * errno, not reported. */
extern int nc_sync_directory (const char *path)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_REPLACE_H */
