/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Unix sockets in directories that may belong to other users: making one, and
 * connecting to one.
 *
 * The name of a new one appears when a client can connect, and not before: it
 * is bound under another name beside it, and renamed when it listens.  What
 * shows the address of a socket (getsockname, ss) shows that name, below
 * /proc/self/fd: it and a dot with four digits where there is room for them.
 */
#ifndef NC_UNIX_SOCKET_H
#define NC_UNIX_SOCKET_H

#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "util/path.h"

/* The name of a socket that was made here. */
struct nc_socket_name {
  struct nc_path path;
  dev_t dev;
  ino_t ino;                    /* 0: it has not been made */
};
#define NC_SOCKET_NAME_NONE { .path = NC_PATH_NONE }

/* Listen at PATH, in place of a socket that nobody serves, for BACKLOG clients
 * at a time; WHAT says in messages whose socket it is.  Its mode is MODE, less
 * the bits of the umask.  Returns the socket, and in *NAME its name; or -1,
 * reported, with errno EINVAL (PATH is too long, or empty), EEXIST (it is no
 * socket), EADDRINUSE (it is served).  Where several do this at once, one of
 * them gets it.  Waits for them, a second at most. */
extern int nc_listen_unix (const char *what, const char *path, mode_t mode,
                           int backlog, struct nc_socket_name *name)
  __attribute__ ((__nonnull__ (1, 2, 5)));

/* Whether that would succeed, without the name ever being there; what nobody
 * serves is removed.  Returns -1 as above. */
extern int nc_listen_check (const char *what, const char *path)
  __attribute__ ((__nonnull__ (1, 2)));

/* Remove the name, unless something else has it by now, and release it; also
 * one that is NC_SOCKET_NAME_NONE, which it is afterwards. */
extern void nc_socket_name_remove (struct nc_socket_name *name)
  __attribute__ ((__nonnull__ (1)));

/* connect SOCK to the socket of which FD is a descriptor (O_PATH): to that and
 * no other, whatever has its name by now.  Returns -1 with errno, not reported.
 */
extern int nc_connect_unix (int sock, int fd);

/* Where a socket is, each time that it is connected to. */
struct nc_socket_finder {
  /* Returns a descriptor (O_PATH) of it; or -1, with the reason in WHY.  One
   * call at a time. */
  int (*find) (void *opaque, char *why, size_t len);
  void (*free) (void *opaque);
  void *opaque;
};

/* Of PATH (copied), named by the operator.  Returns -1, reported. */
extern int nc_socket_finder_init (struct nc_socket_finder *finder,
                                  const char *path)
  __attribute__ ((__nonnull__ (1, 2)));

/* Release it; also one that is all zeros, as it is afterwards. */
extern void nc_socket_finder_free (struct nc_socket_finder *finder)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_UNIX_SOCKET_H */
