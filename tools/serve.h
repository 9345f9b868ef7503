/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The parts of "nbdchain serve": the socket that clients connect to, the
 * supervisor of the nbdkit that serves them, what is said to systemd, which
 * variables and options nbdkit may be given, and what the image wants. */
#ifndef NBDCHAIN_SERVE_H
#define NBDCHAIN_SERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "util/path.h"
#include "util/unix-socket.h"

/* listener.c */

/* A listening socket.  It outlives every nbdkit, so that clients who come
 * while none runs wait instead of being refused. */
struct listener {
  int fd;
  char *uri;                    /* where clients find it */
  char *path;                   /* of a Unix socket, absolute; else NULL */
  struct nc_socket_name name;   /* of one that was made */
  struct nc_path private_dir;   /* directory made for it, or NC_PATH_NONE */
};

/* Listen on the Unix socket PATH with permissions MODE.  NULL: a new one in
 * a directory of its own.  One that is left over, where nobody listens, is
 * replaced.  Returns -1, reported. */
extern int listener_open_unix (struct listener *listener, const char *path,
                               mode_t mode) __attribute__ ((__nonnull__ (1)));

/* Listen on PORT ("0": any) of the address or host name ADDRESS.
 * Returns -1, reported. */
extern int listener_open_tcp (struct listener *listener, const char *address,
                              const char *port)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Take over the listening socket FD, which is not removed at the end.
 * Returns -1, reported, if it is no listening stream socket of a kind that
 * has an NBD URI. */
extern int listener_open_inherited (struct listener *listener, int fd)
  __attribute__ ((__nonnull__ (1)));

/* Make it the URI of a server with TLS, for clients of this machine: with
 * the parameter KEY=VALUE, and USER unless that is NULL.
 * Returns -1, reported. */
extern int listener_add_tls (struct listener *listener, const char *user,
                             const char *key, const char *value)
  __attribute__ ((__nonnull__ (1, 3, 4)));

/* Close it, and remove what was made for it. */
extern void listener_close (struct listener *listener)
  __attribute__ ((__nonnull__ (1)));

/* systemd.c */

/* How many sockets systemd has handed over: the file descriptors from
 * SYSTEMD_FD on.  They are not for our children, who do not learn of them
 * either.  Returns -1, reported. */
enum { SYSTEMD_FD = 3 };
extern int systemd_sockets (void);

/* Tell systemd, with assignments as in sd_notify(3), a line each. */
extern void systemd_notify (const char *fmt, ...)
  __attribute__ ((__format__ (printf, 1, 2), __nonnull__ (1)));

/* environment.c */

/* The variable NAME; OTHERWISE if it is not set, or empty. */
extern const char *environment_get (const char *name, const char *otherwise)
  __attribute__ ((__nonnull__ (1, 2)));

/* The path of the filter NAME, allocated; NULL if out of memory. */
extern char *environment_filter (const char *name)
  __attribute__ ((__nonnull__ (1)));

/* As root: whether nobody else can change the programs and libraries that
 * variables name for nbdkit and for us, NBDKIT, NBDCHAIN_PLUGIN,
 * NBDCHAIN_FILTERS and those of the loader.  Returns -1, reported. */
extern int environment_check (void);

/* nbdkit-options.c */

/* Whether nbdkit may get the arguments ARGV, which end with NULL, besides
 * ours.  Returns 0; or -1, reported, if one of them would take away from
 * "nbdchain serve" what it relies on. */
extern int nbdkit_options_check (char *const argv[])
  __attribute__ ((__nonnull__ (1)));

/* policy.c */

/* What the image that nbdkit is going to serve says of prefetching: *WHOLE,
 * make it local; *PROFILE, read what its profile names; if so, the user is
 * told.  PARAMETERS are those of the plugin, N of them, and EXTRA what the
 * user gives nbdkit, which ends with NULL.  Both false, and nothing told, if
 * the image needs no backing, if it cannot be read (nbdkit will say why), or
 * if EXTRA has the filter that prefetches. */
extern void policy_read (const char *image, char *const parameters[],
                         size_t n, char *const extra[], bool *whole,
                         bool *profile)
  __attribute__ ((__nonnull__ (1, 4, 5, 6)));

/* Whether one of the arguments ARGV, which end with NULL, has nbdkit load the
 * filter NAME. */
extern bool policy_has_filter (char *const argv[], const char *name)
  __attribute__ ((__nonnull__ (1, 2)));

/* supervisor.c */

/* File descriptors of nbdkit: the listening socket is where socket
 * activation wants it. */
enum { LISTEN_FD = 3, KEEPER_FD = 4, MEMORY_FD = 5 };

struct supervisor_options {
  char **argv;                  /* of nbdkit; argv[0] is searched in PATH */
  int listen_fd;
  bool read_only;               /* nothing can be lost */
  void (*ready) (void *opaque, pid_t pid, bool first); /* nbdkit PID takes
                                   clients; FIRST: none has before */
  void *opaque;
};

/* Run nbdkit until it is told to stop, or gives up by itself.  Returns an
 * exit code; with EXIT_DONE everything acknowledged is durable. */
extern int supervise (const struct supervisor_options *options)
  __attribute__ ((__nonnull__ (1)));

#endif /* NBDCHAIN_SERVE_H */
