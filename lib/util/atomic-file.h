/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Files that appear as a whole: whoever looks, also after power was lost,
 * finds nothing, or the old one, or the new one.
 *
 * A new file is made in the directory in which it is to be, under another
 * name that nothing else has; it is written, synced and given its name, and
 * the directory is synced.  A process that is killed meanwhile may leave that
 * file, NAME.new.NUMBER.  Nothing else is touched: a symbolic link of the
 * name is replaced, or in the way, and never followed. */
#ifndef NC_ATOMIC_FILE_H
#define NC_ATOMIC_FILE_H

#include <stdbool.h>
#include <sys/types.h>

#include "util/path.h"

struct nc_new_file {
  const struct nc_path *path;   /* what it is to be */
  char *tmp;                    /* what it is called so far; NULL: nothing */
  dev_t dev;
  ino_t ino;
};

/* Make a file that is to be PATH (which has to stay), empty, for reading and
 * writing.  MODE as for open.  Returns its descriptor, or -1 with errno, not
 * reported. */
extern int nc_new_file_create (struct nc_new_file *nf,
                               const struct nc_path *path, mode_t mode)
  __attribute__ ((__nonnull__ (1, 2)));

/* Give it its name, durably; what was written must be durable already.  What
 * has that name is replaced, or (REPLACE is false) left alone: EEXIST.
 * Returns -1 with errno, not reported.  Then it does not have the name if
 * REPLACE is false, and may have it otherwise. */
extern int nc_new_file_publish (struct nc_new_file *nf, bool replace)
  __attribute__ ((__nonnull__ (1)));

/* Take its name away again, unless something else has it by now. */
extern void nc_new_file_withdraw (struct nc_new_file *nf)
  __attribute__ ((__nonnull__ (1)));

/* To be called in the end, in any case: remove one that was not published. */
extern void nc_new_file_close (struct nc_new_file *nf)
  __attribute__ ((__nonnull__ (1)));

/* Make TEXT the content of PATH, durably.  What PATH was is not looked at: the
 * caller has made sure that it may go.
 * mode: as for open, of the new file.  LIKE, unless it is -1, is the descriptor
 * of a file whose owner and permissions it gets instead.
 * Returns -1 with errno, not reported; then it is not known which of the two
 * will be found. */
extern int nc_replace_file (const struct nc_path *path, const char *text,
                            mode_t mode, int like)
  __attribute__ ((__nonnull__ (1, 2)));

/* Make durable which names are in the directory of PATH.  Returns -1 with
 * errno, not reported. */
extern int nc_sync_directory (const struct nc_path *path)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_ATOMIC_FILE_H */
