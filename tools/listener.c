/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The socket that "nbdchain serve" listens on, made or inherited. */

#include <config.h>

#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/report.h"
#include "util/scope.h"
#include "util/unix-socket.h"

/* TEXT with all but unreserved characters and '/' as %XX.  NULL if out of
 * memory. */
static char *
percent_encode (const char *text)
{
  static const char plain[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/";
  char *out = malloc (3 * strlen (text) + 1), *p = out;

  if (out == NULL)
    return NULL;
  for (; *text; text++)
    if (strchr (plain, *text))
      *p++ = *text;
    else
      p += sprintf (p, "%%%02X", (unsigned char) *text);
  *p = '\0';
  return out;
}

#define LISTENER_NONE \
  { .fd = -1, .name = NC_SOCKET_NAME_NONE, .private_dir = NC_PATH_NONE }

static char *
absolute_path (const char *path)
{
  NC_FREE char *cwd = NULL;
  char *absolute;

  if (path[0] == '/')
    return strdup (path);
  cwd = getcwd (NULL, 0);
  if (cwd == NULL || asprintf (&absolute, "%s/%s", cwd, path) == -1)
    return NULL;
  return absolute;
}

/* A new directory that only we can enter, for "socket". */
static int
make_private_dir (struct listener *listener)
{
  const char *base = getenv ("XDG_RUNTIME_DIR");
  NC_FREE char *dir = NULL;

  if (base == NULL || base[0] != '/' || access (base, W_OK) == -1)
    base = getenv ("TMPDIR");
  if (base == NULL || base[0] != '/')
    base = "/tmp";
  if (asprintf (&dir, "%s/nbdchain-XXXXXX", base) == -1) {
    dir = NULL;
    nc_error ("out of memory");
    return -1;
  }
  if (mkdtemp (dir) == NULL) {
    nc_error ("cannot make a directory for the socket in %s: %m", base);
    return -1;
  }
  if (nc_path_find (dir, &listener->private_dir) == -1)
    return -1;
  if (asprintf (&listener->path, "%s/socket", dir) == -1) {
    listener->path = NULL;
    nc_error ("out of memory");
    return -1;
  }
  return 0;
}

static int
make_unix_uri (struct listener *listener)
{
  NC_FREE char *encoded = percent_encode (listener->path);

  if (encoded == NULL ||
      asprintf (&listener->uri, "nbd+unix:///?socket=%s", encoded) == -1) {
    listener->uri = NULL;
    nc_error ("out of memory");
    return -1;
  }
  return 0;
}

/* Listen at listener->path.  The mode is to be as it was asked for: no other
 * thread or process takes over this umask. */
static int
listen_unix (struct listener *listener, mode_t mode)
{
  const mode_t mask = umask (0);

  listener->fd = nc_listen_unix ("socket", listener->path, mode, SOMAXCONN,
                                 &listener->name);
  umask (mask);
  return listener->fd == -1 ? -1 : 0;
}

int
listener_open_unix (struct listener *listener, const char *path, mode_t mode)
{
  *listener = (struct listener) LISTENER_NONE;
  if (path == NULL) {
    if (make_private_dir (listener) == -1)
      goto fail;
  }
  else {
    listener->path = absolute_path (path);
    if (listener->path == NULL) {
      nc_error ("socket %s: %m", path);
      goto fail;
    }
  }
  if (listen_unix (listener, mode) == -1 || make_unix_uri (listener) == -1)
    goto fail;
  return 0;

 fail:
  listener_close (listener);
  return -1;
}

/* Bind to one of the addresses that a host name stands for. */
static int
bind_tcp (struct listener *listener, const struct addrinfo *addrs)
{
  const struct addrinfo *ai;
  int one = 1;

  for (ai = addrs; ai; ai = ai->ai_next) {
    listener->fd = socket (ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC,
                           ai->ai_protocol);
    if (listener->fd == -1)
      continue;
    setsockopt (listener->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind (listener->fd, ai->ai_addr, ai->ai_addrlen) == 0 &&
        listen (listener->fd, SOMAXCONN) == 0)
      return 0;
    {
      int err = errno;

      close (listener->fd);
      listener->fd = -1;
      errno = err;
    }
  }
  return -1;
}

/* Whether the socket listens on every address of the machine. */
static bool
is_wildcard (const struct sockaddr_storage *ss)
{
  if (ss->ss_family == AF_INET)
    return ((const struct sockaddr_in *) ss)->sin_addr.s_addr ==
      htonl (INADDR_ANY);
  return ss->ss_family == AF_INET6 &&
    IN6_IS_ADDR_UNSPECIFIED (&((const struct sockaddr_in6 *) ss)->sin6_addr);
}

static int
make_tcp_uri (struct listener *listener)
{
  struct sockaddr_storage ss;
  socklen_t len = sizeof ss;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  NC_FREE char *encoded = NULL;
  bool is_v6;
  int r;

  if (getsockname (listener->fd, (struct sockaddr *) &ss, &len) == -1) {
    nc_error ("getsockname: %m");
    return -1;
  }
  r = getnameinfo ((struct sockaddr *) &ss, len, host, sizeof host,
                   port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
  if (r != 0) {
    nc_error ("getnameinfo: %s", gai_strerror (r));
    return -1;
  }
  if (is_wildcard (&ss))
    strcpy (host, "localhost");
  is_v6 = strchr (host, ':') != NULL;
  /* Of an IPv6 address only the '%' of a scope must be encoded. */
  encoded = is_v6 ? strdup (host) : percent_encode (host);
  if (encoded && is_v6 && strchr (host, '%')) {
    free (encoded);
    if (asprintf (&encoded, "%.*s%%25%s", (int) strcspn (host, "%"), host,
                  strchr (host, '%') + 1) == -1)
      encoded = NULL;
  }
  if (encoded == NULL ||
      asprintf (&listener->uri, "nbd://%s%s%s:%s/", is_v6 ? "[" : "",
                encoded, is_v6 ? "]" : "", port) == -1) {
    listener->uri = NULL;
    nc_error ("out of memory");
    return -1;
  }
  return 0;
}

int
listener_open_tcp (struct listener *listener, const char *address,
                   const char *port)
{
  struct addrinfo hints = {
    .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    .ai_socktype = SOCK_STREAM,
  };
  struct addrinfo *addrs;
  int r;

  *listener = (struct listener) LISTENER_NONE;
  r = getaddrinfo (address, port, &hints, &addrs);
  if (r != 0) {
    nc_error ("address %s: %s", address,
              r == EAI_SYSTEM ? strerror (errno) : gai_strerror (r));
    return -1;
  }
  r = bind_tcp (listener, addrs);
  freeaddrinfo (addrs);
  if (r == -1) {
    nc_error ("cannot listen on port %s of address %s: %m", port, address);
    return -1;
  }
  if (make_tcp_uri (listener) == -1) {
    listener_close (listener);
    return -1;
  }
  return 0;
}

/* The integer socket option NAME of FD; -1 if it is no socket. */
static int
socket_option (int fd, int name)
{
  int value;
  socklen_t len = sizeof value;

  return getsockopt (fd, SOL_SOCKET, name, &value, &len) == -1 ? -1 : value;
}

static int
inherit_unix (struct listener *listener)
{
  struct sockaddr_un addr = { .sun_family = AF_UNSPEC };
  socklen_t len = sizeof addr;

  if (getsockname (listener->fd, (struct sockaddr *) &addr, &len) == -1) {
    nc_error ("getsockname: %m");
    return -1;
  }
  if (len <= offsetof (struct sockaddr_un, sun_path) ||
      addr.sun_path[0] != '/') {
    nc_error ("the inherited socket has no path that clients could be told: "
              "let ListenStream= be an absolute path, or ADDRESS:PORT");
    return -1;
  }
  /* A path of full length ends without '\0'. */
  listener->path = strndup (addr.sun_path, sizeof addr.sun_path);
  if (listener->path == NULL) {
    nc_error ("out of memory");
    return -1;
  }
  return make_unix_uri (listener);
}

int
listener_open_inherited (struct listener *listener, int fd)
{
  int family, r;

  *listener = (struct listener) LISTENER_NONE;
  listener->fd = fd;
  if (socket_option (fd, SO_TYPE) != SOCK_STREAM ||
      socket_option (fd, SO_ACCEPTCONN) != 1) {
    nc_error ("the inherited file descriptor %d is not a stream socket that "
              "listens: in the .socket unit, use ListenStream= and Accept=no",
              fd);
    r = -1;
  }
  else if ((family = socket_option (fd, SO_DOMAIN)) == AF_UNIX)
    r = inherit_unix (listener);
  else if (family == AF_INET || family == AF_INET6)
    r = make_tcp_uri (listener);
  else {
    nc_error ("the inherited socket is neither a Unix socket nor TCP: let "
              "ListenStream= be an absolute path, or ADDRESS:PORT");
    r = -1;
  }
  if (r == -1)
    listener_close (listener);
  return r;
}

int
listener_add_tls (struct listener *listener, const char *user,
                  const char *key, const char *value)
{
  NC_FREE char *encoded_user = percent_encode (user ? user : "");
  NC_FREE char *encoded = percent_encode (value);
  const char *old = listener->uri + strlen ("nbd");
  const char *rest = strstr (old, "://") + 3;
  char *uri;

  if (encoded_user == NULL || encoded == NULL ||
      asprintf (&uri, "nbds%.*s%s%s%s%c%s=%s", (int) (rest - old), old,
                encoded_user, user ? "@" : "", rest,
                strchr (rest, '?') ? '&' : '?', key, encoded) == -1) {
    nc_error ("out of memory");
    return -1;
  }
  free (listener->uri);
  listener->uri = uri;
  return 0;
}

void
listener_close (struct listener *listener)
{
  if (listener->fd >= 0)
    close (listener->fd);
  nc_socket_name_remove (&listener->name);
  if (listener->private_dir.dir >= 0)
    unlinkat (listener->private_dir.dir, listener->private_dir.name,
              AT_REMOVEDIR);
  nc_path_close (&listener->private_dir);
  free (listener->uri);
  free (listener->path);
  *listener = (struct listener) LISTENER_NONE;
}
