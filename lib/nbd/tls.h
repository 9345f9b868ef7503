/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Credentials for TLS, checked before somebody else relies on them: libnbd
 * on the way to remotes, nbdkit for clients of ours.
 *
 * A directory of certificates has the files that nbdkit and libnbd look for:
 * ca-cert.pem (whom to trust), server-cert.pem and server-key.pem, or
 * client-cert.pem and client-key.pem, and if there is one ca-crl.pem.  A
 * file of pre-shared keys has lines "USER:KEY", as psktool makes them.
 *
 * What is wrong is not reported but written into WHY, LEN bytes, as one
 * phrase that names the file.  All calls read small files; none keeps state.
 */
#ifndef NC_TLS_H
#define NC_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/* What the operator gave for remotes with TLS; strings not owned.  At most
 * one of the first two is set. */
struct nc_tls {
  const char *certificates;     /* a directory, or NULL */
  const char *psk;              /* a file, or NULL */
  const char *username;         /* whose key; NULL: the only one in psk */
};

/* Whether this libnbd ("1.14.2") has CVE-2024-7383: it accepts a server
 * whose certificate was not verified when there is no ca-cert.pem, and over
 * a Unix socket. */
extern bool nc_tls_has_hole (const char *libnbd_version)
  __attribute__ ((__nonnull__ (1)));

/* A client's directory of certificates, held open. */
struct nc_tls_dir {
  int fd;                       /* O_PATH */
  struct stat dir, ca;
};

/* Open PATH and check that all certificates in it load.  Returns -1 with
 * errno set. */
extern int nc_tls_dir_open (struct nc_tls_dir *d, const char *path,
                            char *why, size_t len)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Whether nothing was put into the directory or taken away since, and
 * ca-cert.pem is the same. */
extern bool nc_tls_dir_is_unchanged (const struct nc_tls_dir *d)
  __attribute__ ((__nonnull__ (1)));

/* Close it; also one that was not opened, with fd = -1. */
extern void nc_tls_dir_close (struct nc_tls_dir *d)
  __attribute__ ((__nonnull__ (1)));

/* Check that nbdkit can serve with the certificates in PATH.  Returns -1
 * with errno set. */
extern int nc_tls_check_server (const char *path, char *why, size_t len)
  __attribute__ ((__nonnull__ (1, 2)));

/* Whether those certificates are valid at this time: server-cert.pem and what
 * is with it, and ca-cert.pem if it is one certificate and no collection.
 * Returns -1 with errno set if one is not, or cannot be read. */
extern int nc_tls_check_dates (const char *path, char *why, size_t len)
  __attribute__ ((__nonnull__ (1, 2)));

/* Find USERNAME in the file of keys PATH, which others must not be able to
 * read.  NULL: the only user in it.  Sets *user (allocated).
 * Returns -1 with errno set: ENOTUNIQ if there are several to choose from. */
extern int nc_tls_find_user (const char *path, const char *username,
                             char **user, char *why, size_t len)
  __attribute__ ((__nonnull__ (1, 3, 4)));

#endif /* NC_TLS_H */
