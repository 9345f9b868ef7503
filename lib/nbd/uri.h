/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* NBD URIs, taken apart once: for a policy that compares their parts, and for
 * connecting, which is done with the same parts.  What an image can name is
 * hostile: a URI that could mean more than its parts is refused. */
#ifndef NC_URI_H
#define NC_URI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct nc_uri {
  char *scheme;                 /* lower case */
  char *host;                   /* lower case, no brackets; NULL if unix */
  int port;                     /* 0 if unix */
  char *export_name;            /* "" = the default one */
  char *socket;                 /* NULL unless unix */
};

/* Free the strings of a URI that was parsed, or is all zeros. */
static inline void
nc_uri_free (struct nc_uri *uri)
{
  free (uri->scheme);
  free (uri->host);
  free (uri->export_name);
  free (uri->socket);
  memset (uri, 0, sizeof *uri);
}

/* Whether SCHEME, LEN bytes without the colon, is one of NBD's. */
static inline bool
nc_uri_is_nbd (const char *scheme, size_t len)
{
  static const char *const schemes[] = {
    "nbd", "nbds", "nbd+unix", "nbds+unix",
  };
  size_t i;

  for (i = 0; i < sizeof schemes / sizeof schemes[0]; ++i)
    if (strlen (schemes[i]) == len &&
        strncasecmp (schemes[i], scheme, len) == 0)
      return true;
  return false;
}

/* Parse TEXT into *uri, which is to be freed also after an error.  Refuses
 * what is no NBD URI and what is never taken from one: user information, a
 * fragment, any parameter but "socket".
 * CONTEXT starts the messages; REFUSED is the errno for a URI that is right
 * but has what is never taken.
 * Returns 0; or -1 with errno REFUSED, EINVAL, ENOMEM or ELIBACC (see
 * remote.h, also on locks), reported. */
extern int nc_uri_parse (const char *text, const char *context, int refused,
                         struct nc_uri *uri)
  __attribute__ ((__nonnull__ (1, 2, 4)));

#endif /* NC_URI_H */
