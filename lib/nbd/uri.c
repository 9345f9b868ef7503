/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Takes NBD URIs apart, with libxml2, of which this is the only user in
 * lib. */

#include <config.h>

#include "nbd/remote.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <libxml/uri.h>

#include "nbd/uri.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"

#define NBD_PORT 10809

static void
free_xml_uri (xmlURIPtr *xml)
{
  if (*xml)
    xmlFreeURI (*xml);
}

static void
free_xml_char (char **s)
{
  if (*s)
    xmlFree (*s);
}

static void
lower_case (char *s)
{
  for (; *s; ++s)
    if (*s >= 'A' && *s <= 'Z')
      *s += 'a' - 'A';
}

/* A host as the policy compares it: lower case, and one spelling for each
 * address.  Returns NULL if out of memory. */
static char *
normal_host (const char *server)
{
  char text[INET6_ADDRSTRLEN];
  struct in6_addr addr;
  size_t len = strlen (server);
  char *host;

  if (len >= 2 && server[0] == '[' && server[len-1] == ']')
    host = strndup (server + 1, len - 2);
  else
    host = strdup (server);
  if (host == NULL)
    return NULL;
  lower_case (host);
  if (inet_pton (AF_INET6, host, &addr) == 1 &&
      inet_ntop (AF_INET6, &addr, text, sizeof text)) {
    free (host);
    return strdup (text);
  }
  return host;
}

/* Take the socket from the raw query of a URI, and refuse all else there. */
static int
parse_query (const char *query, const char *context, int refused,
             struct nc_uri *uri)
{
  while (*query) {
    size_t len = strcspn (query, "&;");
    const char *equals = memchr (query, '=', len);
    size_t name_len = equals ? (size_t) (equals - query) : len;
    const char *value = equals ? equals + 1 : query + len;
    size_t value_len = len - (value - query);
    __attribute__ ((__cleanup__ (free_xml_char))) char *name =
      xmlURIUnescapeString (query, name_len, NULL);

    /* A length of 0 means the whole string to libxml2. */
    if (name_len > 0 && name == NULL) {
      nc_error ("%s cannot be parsed as a URI", context);
      errno = EINVAL;
      return -1;
    }
    if (len > 0) {
      if (name_len == 0 || strcmp (name, "socket") != 0) {
        NC_FREE char *quoted = nc_text_quote (name_len == 0 ? "" : name);

        if (quoted == NULL)
          nc_error ("malloc: %m");
        else
          nc_error ("%s has the parameter %s: none but \"socket\" is known "
                    "here; TLS is set up with remote-tls-certificates= or "
                    "remote-tls-psk= (\"nbdchain\": --remote-tls-...)",
                    context, quoted);
        errno = refused;
        return -1;
      }
      if (uri->socket) {
        nc_error ("%s names more than one socket", context);
        errno = EINVAL;
        return -1;
      }
      if (value_len > 0) {
        __attribute__ ((__cleanup__ (free_xml_char))) char *path =
          xmlURIUnescapeString (value, value_len, NULL);

        if (path == NULL) {
          nc_error ("%s cannot be parsed as a URI", context);
          errno = EINVAL;
          return -1;
        }
        uri->socket = strdup (path);
      }
      else
        uri->socket = strdup ("");
      if (uri->socket == NULL) {
        nc_error ("strdup: %m");
        return -1;
      }
    }
    query += len;
    if (*query)
      query++;
  }
  return 0;
}

static const char *
path_of (xmlURIPtr xml)
{
  return xml->path ? xml->path : "";
}

/* Refuse what is no NBD URI, or has parts that such a one never has.  XML is
 * NULL if TEXT is no URI at all. */
static int
check_parts (xmlURIPtr xml, const char *text, const char *context,
             int refused)
{
  const char *path;

  errno = EINVAL;
  /* An escaped NUL would end strings early. */
  if (xml == NULL || xml->scheme == NULL || strstr (text, "%00")) {
    nc_error ("%s cannot be parsed as a URI: bytes other than letters, "
              "digits and -._~ must be written as %%XX", context);
    return -1;
  }
  if (!nc_uri_is_nbd (xml->scheme, strlen (xml->scheme))) {
    nc_error ("%s is not an NBD URI: the schemes are nbd, nbds, nbd+unix "
              "and nbds+unix", context);
    return -1;
  }
  path = path_of (xml);
  if (xml->opaque || (path[0] != '\0' && path[0] != '/') ||
      (xml->server == NULL && strstr (text, "://") == NULL)) {
    nc_error ("%s lacks \"//\" after its scheme", context);
    return -1;
  }
  errno = refused;
  if (xml->user) {
    nc_error ("%s has a user name before an \"@\", which is never taken from "
              "there; that of a key for TLS is given with "
              "remote-tls-username= (\"nbdchain\": --remote-tls-username)",
              context);
    return -1;
  }
  if (xml->fragment) {
    nc_error ("%s has a fragment after \"#\", which means nothing in an NBD "
              "URI; write %%23 if the character belongs to the name",
              context);
    return -1;
  }
  return 0;
}

static int
check_socket (xmlURIPtr xml, const char *context, const struct nc_uri *uri)
{
  errno = EINVAL;
  if (xml->server && xml->server[0] != '\0') {
    nc_error ("%s has a host, which a Unix socket does not: write three "
              "slashes, %s:///EXPORT?socket=PATH", context, uri->scheme);
    return -1;
  }
  if (uri->socket == NULL || uri->socket[0] != '/') {
    nc_error ("%s must have the parameter \"socket\", an absolute path",
              context);
    return -1;
  }
  return 0;
}

static int
parse_host (xmlURIPtr xml, const char *context, struct nc_uri *uri)
{
  errno = EINVAL;
  if (uri->socket) {
    nc_error ("%s has a socket, but its scheme is for TCP: write %s+unix",
              context, uri->scheme);
    return -1;
  }
  if (xml->port > 65535) {
    nc_error ("%s has the port %d: it must be from 1 to 65535",
              context, xml->port);
    return -1;
  }
  uri->port = xml->port > 0 ? xml->port : NBD_PORT;
  /* libnbd connects to "localhost" where the host is absent. */
  uri->host = normal_host (xml->server && xml->server[0] != '\0' ?
                           xml->server : "localhost");
  if (uri->host)
    return 0;
  nc_error ("strdup: %m");
  return -1;
}

int
nc_remote_parse_uri (const char *text, const char *context, int refused,
                     struct nc_uri *uri)
{
  __attribute__ ((__cleanup__ (free_xml_uri))) xmlURIPtr xml =
    xmlParseURI (text);
  const char *path;

  memset (uri, 0, sizeof *uri);
  if (check_parts (xml, text, context, refused) == -1 ||
      (xml->query_raw &&
       parse_query (xml->query_raw, context, refused, uri) == -1))
    return -1;

  path = path_of (xml);
  uri->scheme = strdup (xml->scheme);
  uri->export_name = strdup (path[0] == '/' ? path + 1 : path);
  if (uri->scheme == NULL || uri->export_name == NULL) {
    nc_error ("strdup: %m");
    return -1;
  }
  lower_case (uri->scheme);
  return strstr (uri->scheme, "+unix") ? check_socket (xml, context, uri)
    : parse_host (xml, context, uri);
}
