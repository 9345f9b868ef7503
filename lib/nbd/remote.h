/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What remotes alone need: a client of NBD, and a parser of its URIs.
 *
 * The libraries behind these take longer to load than an image takes to
 * open, and most chains are files of this host.  So this code is in
 * libnbdchain-remote.so, which is loaded when a remote or a URI is first
 * met.  That one is linked with libnbdchain.so, of which there is one copy;
 * nothing is linked with it.
 */
#ifndef NC_REMOTE_H
#define NC_REMOTE_H

#include <stdint.h>

struct nc_dev;
struct nc_socket_finder;
struct nc_tls;
struct nc_uri;

/* All that is called in libnbdchain-remote.so.  The contracts are those of
 * nc_dev_open_nbd and its siblings (dev/dev.h) and nc_uri_parse (uri.h), which
 * call these. */
struct nc_remote {
  const char *version;          /* of nbdchain; the first in every version */
  struct nc_dev *(*open_nbd) (const char *ref, unsigned retry,
                              const struct nc_tls *tls,
                              struct nc_socket_finder *finder);
  struct nc_dev *(*open_nbd_writable) (const char *ref, unsigned retry,
                                       const struct nc_tls *tls);
  struct nc_dev *(*open_nbd_absent) (const char *ref, unsigned retry,
                                     const struct nc_tls *tls,
                                     struct nc_socket_finder *finder,
                                     uint64_t size, const char *identity);
  int (*parse_uri) (const char *text, const char *context, int refused,
                    struct nc_uri *uri);
};

/* The table, after loading the library if that has not been done.  It stays
 * loaded.  NULL with errno ELIBACC if it cannot be loaded, reported at each
 * call; it is not tried again.
 * May be called from any thread; reads files, so hold no mutex. */
extern const struct nc_remote *nc_remote_load (void);

/* In libnbdchain-remote.so, which exports the table and nothing else. */
extern const struct nc_remote nc_remote_table;
extern struct nc_dev *nc_remote_open_nbd (const char *ref, unsigned retry,
                                          const struct nc_tls *tls,
                                          struct nc_socket_finder *finder)
  __attribute__ ((__nonnull__ (1)));
extern struct nc_dev *nc_remote_open_nbd_writable (const char *ref,
                                                   unsigned retry,
                                                   const struct nc_tls *tls)
  __attribute__ ((__nonnull__ (1)));
extern struct nc_dev *nc_remote_open_nbd_absent (const char *ref,
                                                 unsigned retry,
                                                 const struct nc_tls *tls,
                                                 struct nc_socket_finder
                                                 *finder, uint64_t size,
                                                 const char *identity)
  __attribute__ ((__nonnull__ (1, 6)));
extern int nc_remote_parse_uri (const char *text, const char *context,
                                int refused, struct nc_uri *uri)
  __attribute__ ((__nonnull__ (1, 2, 4)));

#endif /* NC_REMOTE_H */
