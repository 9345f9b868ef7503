/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Hands on what is asked of remotes to the library that has the code. */

#include <config.h>

#include "nbd/remote.h"

#include <stddef.h>

#include "dev/dev.h"
#include "nbd/uri.h"
#include "util/unix-socket.h"

struct nc_dev *
nc_dev_open_nbd (const char *ref, unsigned retry, const struct nc_tls *tls,
                 struct nc_socket_finder *finder)
{
  const struct nc_remote *remote = nc_remote_load ();

  if (remote)
    return remote->open_nbd (ref, retry, tls, finder);
  if (finder)
    nc_socket_finder_free (finder);
  return NULL;
}

struct nc_dev *
nc_dev_open_nbd_writable (const char *ref, unsigned retry,
                          const struct nc_tls *tls)
{
  const struct nc_remote *remote = nc_remote_load ();

  return remote ? remote->open_nbd_writable (ref, retry, tls) : NULL;
}

struct nc_dev *
nc_dev_open_nbd_absent (const char *ref, unsigned retry,
                        const struct nc_tls *tls,
                        struct nc_socket_finder *finder, uint64_t size,
                        const char *identity)
{
  const struct nc_remote *remote = nc_remote_load ();

  if (remote)
    return remote->open_nbd_absent (ref, retry, tls, finder, size, identity);
  if (finder)
    nc_socket_finder_free (finder);
  return NULL;
}

int
nc_uri_parse (const char *text, const char *context, int refused,
              struct nc_uri *uri)
{
  const struct nc_remote *remote = nc_remote_load ();

  *uri = (struct nc_uri) { 0 };
  return remote ? remote->parse_uri (text, context, refused, uri) : -1;
}
