/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* References: what names a backing, and which of those found inside an
 * image may be followed.
 *
 * A reference is a file path, an NBD URI, or "[ command args ]".  One that
 * the operator gave is followed as it is.  One found inside an image is
 * hostile input: a file must lie below the directory that holds the image
 * naming it (the directory after symbolic links of the image's own path),
 * or below a directory that was allowed; an NBD URI must have been allowed;
 * a command is never taken from an image.
 */
#ifndef NC_REF_H
#define NC_REF_H

#include <stdbool.h>
#include <stddef.h>

struct nc_path;
struct nc_socket_finder;

enum nc_ref_kind {
  NC_REF_FILE,
  NC_REF_URI,                   /* nbd, nbd+unix, nbds, nbds+unix */
  NC_REF_COMMAND,
};

/* What kind of reference TEXT is.  Anything that starts with "[ " or "[" is
 * a command; a known NBD scheme followed by ':' is a URI; the rest is a file
 * ("./nbd:x" names a file).  A path with a colon is a file unless what is
 * before the colon is an NBD scheme.  Returns -1 with errno EINVAL,
 * reported, for the empty string, one longer than NC_REF_MAX, or a URI of a
 * scheme that is not supported ("http://..."): the message says how to
 * reach it ("[ nbdkit curl ... ]"). */
#define NC_REF_MAX 1024
extern int nc_ref_kind (const char *text, enum nc_ref_kind *kind)
  __attribute__ ((__nonnull__ (1, 2)));

/* What the operator allowed: directories and URIs. */
struct nc_allow;

extern struct nc_allow *nc_allow_new (void);
extern void nc_allow_free (struct nc_allow *allow);

/* Allow TEXT: an existing directory, or an NBD URI.
 * A URI allows the references with the same scheme, host (compared without
 * case) and port (10809 when absent), and whose export name is equal to or
 * below its own path: "nbd://server/" or "nbd://server" allow every export
 * of the server, "nbd://server/vm" allows "vm" and "vm/a" but not "vm2".
 * For nbd+unix the socket (a path, resolved) must be equal, and the export
 * likewise.
 * Returns 0; or -1 with errno EINVAL or as given by the system, reported.
 * The first URI has libnbdchain-remote.so loaded (remote.h). */
extern int nc_allow_add (struct nc_allow *allow, const char *text)
  __attribute__ ((__nonnull__ (1, 2)));

/* Whether the URI found in IMAGE may be followed; ALLOW may be NULL.
 * Independent of ALLOW a URI from an image is refused when it has user
 * information, a fragment, or any query parameter other than "socket" (so no
 * tls-*); a socket must lie below the image's directory or an allowed
 * directory, or be allowed by an equal nbd+unix URI.
 * *finder becomes what finds that socket, by the same rules, each time that it
 * is connected to; it needs neither IMAGE nor ALLOW to stay, and is to be
 * handed on or freed if it has a find.
 * Returns 0; or -1 with errno EPERM (EINVAL if it cannot be parsed, ELIBACC
 * if the parser cannot be loaded), reported with the reference, the image
 * naming it, and the allow= (for "nbdchain": --allow) that would permit it. */
extern int nc_ref_check_uri (const char *uri, const struct nc_path *image,
                             const struct nc_allow *allow,
                             struct nc_socket_finder *finder)
  __attribute__ ((__nonnull__ (1, 2, 4)));

/* Open the file TEXT found in IMAGE, with OFLAGS.  A relative path starts at
 * the image's directory.  No symbolic link or ".." leads out of the directory
 * that permits it, also not while somebody renames things.  FIFOs and the like
 * do not block (O_NONBLOCK is added and cleared again); device nodes are
 * allowed only by the exact path's directory being allowed, never by lying
 * below the image.
 * *path becomes where the file is, for resolving its own references.
 * Returns a file descriptor; or -1 with errno EPERM, ENOENT, ... reported
 * with the reference, the image naming it, and what to add or mend. */
extern int nc_ref_open_file (const char *text, const struct nc_path *image,
                             const struct nc_allow *allow, int oflags,
                             struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 2, 5)));

/* The path of the backing PATH as to be stored in IMAGE: relative to the
 * image's directory where the backing is below it, else absolute.  Both are
 * only text here.
 * Returns an allocated string; NULL on error, reported. */
extern char *nc_ref_for_image (const struct nc_path *path,
                               const struct nc_path *image)
  __attribute__ ((__nonnull__ (1, 2)));

/* Whether an image may record REF as its backing: a file, or a URI that
 * nc_ref_check_uri could permit.  One that it never would (with a relative
 * socket, or parameters) could only be followed until the image is opened
 * next.  Returns 0; or -1 with errno EINVAL, reported. */
extern int nc_ref_check_recorded (const char *ref)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_REF_H */
