/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Making a Unix socket: that of clients, or of control.
 *
 * Its name appears when a client can connect, and not before: it is bound
 * under another name beside it, and renamed when it listens.  What shows the
 * address of a socket (getsockname, ss) shows that name, which is its own and
 * a dot with four digits where there is room for them.
 */
#ifndef NC_LISTEN_H
#define NC_LISTEN_H

#include <sys/stat.h>

/* Listen at PATH, in place of a socket that nobody serves, for BACKLOG clients
 * at a time; WHAT says in messages whose socket it is.  Never has it another
 * mode than MODE, except that it may be 0600 before it has its name.  Returns
 * the socket, and in *MADE what lstat says of its name; or -1, reported, with
 * errno EINVAL (PATH is too long, or empty), EEXIST (it is no socket),
 * EADDRINUSE (it is served).  Where several do this at once, one of them gets
 * it.  Waits for them, a second at most. */
extern int nc_listen_unix (const char *what, const char *path, mode_t mode,
                           int backlog, struct stat *made)
  __attribute__ ((__nonnull__ (1, 2, 5)));

/* Whether that would succeed, without the name ever being there; what nobody
 * serves is removed.  Returns -1 as above. */
extern int nc_listen_check (const char *what, const char *path)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_LISTEN_H */
