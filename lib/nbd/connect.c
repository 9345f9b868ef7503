/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A connection to an NBD server, from the first packet to the last.
 *
 * The server is not trusted: sizes and limits are checked here, and what it
 * says is printed only after it has been made printable.
 *
 * TLS: nbds:// never goes on without.  The credentials are the operator's,
 * looked at anew for each connection (lib/nbd/tls.h), and a libnbd that would
 * trust an impostor is not asked to verify what it cannot.
 */

#include <config.h>

#include "nbd/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "nbd/tls.h"
#include "nbd/uri.h"
#include "util/clock.h"
#include "util/scope.h"

#define CHILD_LIMIT SEC                /* from SIGTERM to SIGKILL */
#define DISCONNECT_LIMIT (500 * MSEC)

#ifndef __WNOTHREAD
#define __WNOTHREAD 0x20000000
#endif

bool
conn_must_stop (struct conn *conn)
{
  NC_LOCKED (&conn->nbd->lock);
  return conn->nbd->stopping;
}

/* Text of a peer that goes into messages and must not break lines. */
static void
make_printable (char *s)
{
  for (; *s; s++)
    if ((unsigned char) *s < 0x20 || *s == 0x7f)
      *s = '?';
}

/* What TEXT, an error of libnbd's, means to somebody who set up TLS. */
static const char *
explain (const struct nbd *nbd, const char *text)
{
  if (strstr (text, "server requires TLS"))
    return " (the server wants TLS: name it nbds:, and give "
      "remote-tls-certificates or remote-tls-psk)";
  if (strstr (text, "server refused TLS"))
    return " (the server has no TLS, and nbds: never goes on without)";
  if (!nbd->encrypted || strstr (text, "gnutls_handshake") == NULL)
    return "";
  if (nbd->psk)
    return " (does the server have the same user and key?)";
  if (strstr (text, "certificate verification"))
    return " (the server's certificate is not of this host name, not signed "
      "by ca-cert.pem, or out of date)";
  return "";
}

void
conn_keep_reason (struct conn *conn)
{
  const char *text = nbd_get_error (), *colon;

  if (text == NULL)
    text = "unknown error";
  if (strncmp (text, "nbd_", 4) == 0 && (colon = strstr (text, ": ")) != NULL)
    text = colon + 2;
  snprintf (conn->reason, sizeof conn->reason, "%s%s", text,
            explain (conn->nbd, text));
  make_printable (conn->reason);
}

static struct nbd_handle *
new_handle (struct conn *conn)
{
  const int tls = conn->nbd->encrypted ? LIBNBD_TLS_REQUIRE
    : LIBNBD_TLS_DISABLE;
  struct nbd_handle *h = nbd_create ();

  if (h == NULL ||
      nbd_set_tls (h, tls) == -1 ||
      nbd_set_tls_verify_peer (h, true) == -1 ||
      (conn->nbd->uri.export_name &&
       nbd_set_export_name (h, conn->nbd->uri.export_name) == -1) ||
      nbd_set_pread_initialize (h, false) == -1 ||
      /* The tail of an export may be unaligned. */
      nbd_set_strict_mode (h, nbd_get_strict_mode (h)
                           & ~LIBNBD_STRICT_ALIGN) == -1 ||
      nbd_set_full_info (h, true) == -1 ||
      nbd_add_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1) {
    conn_keep_reason (conn);
    nbd_close (h);
    return NULL;
  }
  return h;
}

void
conn_made_progress (struct conn *conn)
{
  conn->progress = nc_now ();
  conn->came = 0;
}

/* Count what the socket has for us.  A byte now and then is no progress. */
static void
count_bytes (struct conn *conn)
{
  int n;

  if (ioctl (nbd_aio_get_fd (conn->h), FIONREAD, &n) == -1)
    return;
  conn->came += n;
  if (conn->came * SEC >= SLOWEST * (nc_now () - conn->progress))
    conn_made_progress (conn);
}

/* Let libnbd do what the socket is ready for.  Returns -1 if it fails,
 * reason kept; the handle may be dead also when it does not. */
static int
notify (struct conn *conn, int revents)
{
  int r = 0;

  if ((revents & (POLLIN | POLLHUP | POLLERR)) &&
      (nbd_aio_get_direction (conn->h) & LIBNBD_AIO_DIRECTION_READ)) {
    count_bytes (conn);
    r = nbd_aio_notify_read (conn->h);
  }
  if (r == 0 && (revents & (POLLOUT | POLLHUP | POLLERR)) &&
      (nbd_aio_get_direction (conn->h) & LIBNBD_AIO_DIRECTION_WRITE))
    r = nbd_aio_notify_write (conn->h);
  if (r == -1)
    conn_keep_reason (conn);
  return r;
}

void
conn_prepare (struct conn *conn, int kick, struct pollfd fds[2])
{
  const unsigned direction = nbd_aio_get_direction (conn->h);

  fds[0] = (struct pollfd) { .fd = nbd_aio_get_fd (conn->h) };
  fds[1] = (struct pollfd) { .fd = kick, .events = POLLIN };
  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
}

void
conn_wait (struct pollfd fds[2], uint64_t deadline)
{
  struct timespec ts, *timeout = NULL;
  uint64_t n;

  if (deadline) {
    const uint64_t t = nc_now (), left = deadline > t ? deadline - t : 0;

    ts = (struct timespec) { .tv_sec = left / SEC, .tv_nsec = left % SEC };
    timeout = &ts;
  }
  if (ppoll (fds, 2, timeout, NULL) == -1) {
    fds[0].revents = errno == EINTR ? 0 : POLLNVAL;
    fds[1].revents = 0;
  }
  /* It can fail only when somebody else was quicker. */
  if (fds[1].revents && read (fds[1].fd, &n, sizeof n) == -1)
    return;
}

int
conn_take (struct conn *conn, const struct pollfd fds[2])
{
  if (fds[0].fd == -1 || fds[0].revents & POLLNVAL) {
    snprintf (conn->reason, sizeof conn->reason, "the socket is closed");
    return -1;
  }
  return notify (conn, fds[0].revents);
}

/* All three steps, for the keeper. */
static int
poll_once (struct conn *conn, uint64_t deadline)
{
  struct pollfd fds[2];

  conn_prepare (conn, conn->kick, fds);
  if (fds[0].fd != -1)
    conn_wait (fds, deadline);
  return conn_take (conn, fds);
}

bool
conn_is_finished (const struct conn *conn)
{
  return nbd_aio_is_dead (conn->h) != 0 ||
    nbd_aio_is_closed (conn->h) != 0;
}

/* End the child of "[ command ]", so that nbd_close, which waits for it,
 * does not wait for long.  This thread has no other child. */
static void
end_child (struct nbd_handle *h)
{
  uint64_t deadline = nc_now () + CHILD_LIMIT;

  if (nbd_kill_subprocess (h, SIGTERM) == -1)
    return;                            /* there is none */
  while (nc_now () < deadline) {
    siginfo_t info = { .si_pid = 0 };

    if (waitid (P_ALL, 0, &info,
                WEXITED | WNOHANG | WNOWAIT | __WNOTHREAD) == -1 ||
        info.si_pid != 0)
      return;
    poll (NULL, 0, 5);
  }
  nbd_kill_subprocess (h, SIGKILL);
}

void
conn_cut (struct conn *conn)
{
  int fd = nbd_aio_get_fd (conn->h);

  if (fd == -1 || shutdown (fd, SHUT_RDWR) == -1)
    return;
  /* What the socket still holds comes first; this is finite. */
  while (!conn_is_finished (conn)) {
    int direction = nbd_aio_get_direction (conn->h);
    int r;

    if (direction & LIBNBD_AIO_DIRECTION_READ)
      r = nbd_aio_notify_read (conn->h);
    else
      r = nbd_aio_notify_write (conn->h);
    if (r == -1)
      return;
  }
}

void
conn_close (struct conn *conn)
{
  if (conn->h == NULL)
    return;
  conn_cut (conn);
  end_child (conn->h);
  nbd_close (conn->h);
  conn->h = NULL;
}

void
conn_disconnect (struct conn *conn)
{
  uint64_t deadline = nc_now () + DISCONNECT_LIMIT;

  if (conn->h && nbd_aio_is_ready (conn->h) == 1 &&
      nbd_aio_disconnect (conn->h, 0) == 0)
    while (!conn_is_finished (conn) && nc_now () < deadline)
      if (poll_once (conn, deadline) == -1)
        break;
  conn_close (conn);
}

/* What the server says of itself: its own name for the export if it is not
 * the one asked for, and the description.  *identity is NULL if neither.
 * Returns -1 if there is no memory. */
static int
learn_identity (struct nbd_handle *h, char **identity)
{
  NC_FREE char *asked = nbd_get_export_name (h);
  NC_FREE char *name = nbd_get_canonical_export_name (h);
  NC_FREE char *description = nbd_get_export_description (h);
  bool has_name = name && *name && (!asked || strcmp (name, asked) != 0);
  bool has_description = description && *description;

  *identity = NULL;
  if (!has_name && !has_description)
    return 0;
  if (asprintf (identity, "%s%s%s", has_name ? name : "",
                has_name && has_description ? ": " : "",
                has_description ? description : "") == -1) {
    *identity = NULL;
    return -1;
  }
  make_printable (*identity);
  return 0;
}

static int
learn_export (struct conn *conn, struct export *export)
{
  struct nbd_handle *h = conn->h;
  int64_t size = nbd_get_size (h);
  int64_t minimum = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t maximum = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0) {
    conn_keep_reason (conn);
    if (nbd_get_error () == NULL)      /* what was sent does not fit */
      snprintf (conn->reason, sizeof conn->reason,
                "its export is larger than %" PRIi64 " bytes, the most that a"
                " disk can have", INT64_MAX);
    return -1;
  }
  export->size = size;

  if (minimum <= 0)
    minimum = 1;
  if (!nc_is_power_of_2 (minimum) || minimum > 65536) {
    snprintf (conn->reason, sizeof conn->reason,
              "minimum block size %" PRIi64 " is not valid", minimum);
    return -1;
  }
  if (maximum <= 0 || maximum > MAX_READ)
    maximum = MAX_READ;
  export->minimum = minimum;
  export->maximum = nc_max64 (nc_round_down (maximum, minimum), minimum);

  export->multi_conn = nbd_can_multi_conn (h) == 1;
  export->allocation =
    nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  if (learn_identity (h, &export->identity) == -1) {
    snprintf (conn->reason, sizeof conn->reason, "%s", strerror (ENOMEM));
    return -1;
  }
  return 0;
}

/* Give the handle the keys for a server, as they are now. */
static int
use_psk (struct conn *conn)
{
  const struct nbd *nbd = conn->nbd;
  NC_FREE char *user = NULL;

  if (nc_tls_find_user (nbd->psk, nbd->username, &user, conn->reason,
                        sizeof conn->reason) == -1) {
    if (errno == ENOTUNIQ)
      strncat (conn->reason, " (remote-tls-username)",
               sizeof conn->reason - strlen (conn->reason) - 1);
    return -1;
  }
  if (nbd_set_tls_psk_file (conn->h, nbd->psk) == -1 ||
      nbd_set_tls_username (conn->h, user) == -1) {
    conn_keep_reason (conn);
    return -1;
  }
  return 0;
}

/* Give the handle the directory of certificates, as it is now. */
static int
use_certificates (struct conn *conn, struct nc_tls_dir *dir)
{
  char path[32];

  if (nc_tls_dir_open (dir, conn->nbd->certificates, conn->reason,
                       sizeof conn->reason) == -1)
    return -1;
  snprintf (path, sizeof path, "/proc/self/fd/%d", dir->fd);
  /* If this cannot be looked into, libnbd would find nothing in it. */
  if (access (path, X_OK) == -1) {
    snprintf (conn->reason, sizeof conn->reason, "%s: %s", path,
              strerror (errno));
    return -1;
  }
  if (nbd_set_tls_certificates (conn->h, path) == -1) {
    conn_keep_reason (conn);
    return -1;
  }
  return 0;
}

/* Find the Unix socket.  Returns a descriptor (O_PATH) of it, or -1 with the
 * reason kept. */
static int
find_socket (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;

  NC_LOCKED (&nbd->find_lock);
  return nbd->finder.find (nbd->finder.opaque, conn->reason,
                           sizeof conn->reason);
}

/* Whether it is the user who was there before, if anybody was: in a directory
 * where several users make sockets, the name of one that has gone may be
 * another's next. */
static bool
is_same_user (struct conn *conn, const char *what, uid_t was, uid_t is)
{
  if (was == is)
    return true;
  snprintf (conn->reason, sizeof conn->reason, "%s is user %u now, and was "
            "user %u before", what, (unsigned) is, (unsigned) was);
  return false;
}

static bool
is_same_peer (struct conn *conn)
{
  const struct nbd *nbd = conn->nbd;
  struct peer before;

  {
    NC_LOCKED (&conn->nbd->lock);
    if (!nbd->has_peer)
      return true;
    before = nbd->peer;
  }
  return is_same_user (conn, "the owner of its socket", before.owner,
                       conn->peer.owner) &&
    is_same_user (conn, "the user who runs its server", before.listener,
                  conn->peer.listener);
}

void
conn_remember_peer (struct conn *conn)
{
  NC_LOCKED (&conn->nbd->lock);
  conn->nbd->has_peer = conn->nbd->finder.find != NULL;
  conn->nbd->peer = conn->peer;
}

/* A socket that is connected to the server's; or -1 with the reason kept. */
static int
connect_unix (struct conn *conn)
{
  NC_CLOSE int path = find_socket (conn);
  NC_CLOSE int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC |
                              SOCK_NONBLOCK, 0);
  struct ucred cred;
  socklen_t len = sizeof cred;
  struct stat st;
  int r;

  if (path == -1)
    return -1;
  if (sock == -1 || fstat (path, &st) == -1 ||
      nc_connect_unix (sock, path) == -1 ||
      getsockopt (sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) == -1) {
    snprintf (conn->reason, sizeof conn->reason, "%s: %s",
              conn->nbd->uri.socket, strerror (errno));
    make_printable (conn->reason);
    return -1;
  }
  conn->peer = (struct peer) { .owner = st.st_uid, .listener = cred.uid };
  if (!is_same_peer (conn))
    return -1;
  r = sock;
  sock = -1;
  return r;
}

/* Begin to connect, to what was parsed when the device was opened: the text is
 * not taken apart again by somebody who may see other parts in it. */
static int
begin_to_connect (struct conn *conn)
{
  const struct nbd *nbd = conn->nbd;
  char port[8];
  int r, sock;

  if (nbd->argv)
    r = nbd_aio_connect_systemd_socket_activation (conn->h, nbd->argv);
  else if (nbd->uri.socket) {
    sock = connect_unix (conn);
    if (sock == -1)
      return -1;
    r = nbd_aio_connect_socket (conn->h, sock);
  }
  else {
    snprintf (port, sizeof port, "%d", nbd->uri.port);
    r = nbd_aio_connect_tcp (conn->h, nbd->uri.host, port);
  }
  if (r == -1)
    conn_keep_reason (conn);
  return r;
}

/* Whether FD gets connected by then.  An error of it stays. */
static bool
is_connected (const struct conn *conn, int fd, uint64_t until)
{
  struct pollfd ready = { .fd = fd, .events = POLLOUT };

  while (nc_now () < until && !conn_must_stop ((struct conn *) conn))
    if (poll (&ready, 1, 100) == 1)
      return ready.revents == POLLOUT;
  return false;
}

/* Connect to ADDRESS.  Returns a socket that does not block, or -1. */
static int
connect_address (const struct conn *conn, const struct addrinfo *address,
                 uint64_t until)
{
  const int one = 1;
  const int fd = socket (address->ai_family, SOCK_STREAM | SOCK_CLOEXEC |
                         SOCK_NONBLOCK, address->ai_protocol);

  if (fd == -1)
    return -1;
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if ((connect (fd, address->ai_addr, address->ai_addrlen) == 0 ||
       errno == EINPROGRESS) && is_connected (conn, fd, until))
    return fd;
  close (fd);
  return -1;
}

/* The addresses of a host name; NULL: there is one at most. */
static struct addrinfo *
several_addresses (const struct nbd *nbd)
{
  const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
  struct addrinfo *addresses = NULL;
  char port[8];

  if (nbd->uri.host) {
    snprintf (port, sizeof port, "%d", nbd->uri.port);
    if (getaddrinfo (nbd->uri.host, port, &hints, &addresses) != 0)
      addresses = NULL;
  }
  if (addresses == NULL || addresses->ai_next)
    return addresses;
  freeaddrinfo (addresses);
  return NULL;
}

/* A host name may have several addresses.  libnbd takes the first that does
 * not refuse at once, and the kernel goes on for two minutes with one that
 * never answers.  So if that does not get connected, try the others, each of
 * which shares what is left of the limit with those after it.  The socket
 * takes the place of libnbd's, for the handle has the host name that a
 * certificate is checked with. */
static void
connect_any (struct conn *conn, uint64_t deadline)
{
  struct addrinfo *addresses = several_addresses (conn->nbd), *a;
  const int libnbd_fd = nbd_aio_get_fd (conn->h);
  uint64_t n = 1;
  int fd = -1;

  for (a = addresses; a; a = a->ai_next)
    n++;
  if (addresses == NULL || libnbd_fd == -1 ||
      is_connected (conn, libnbd_fd,
                    nc_now () + (deadline - nc_now ()) / n))
    goto out;
  for (a = addresses->ai_next; a && fd == -1 && nc_now () < deadline;
       a = a->ai_next)
    fd = connect_address (conn, a,
                          nc_now () + (deadline - nc_now ()) / --n);
  if (fd >= 0) {
    dup3 (fd, libnbd_fd, O_CLOEXEC);
    close (fd);
  }

 out:
  if (addresses)
    freeaddrinfo (addresses);
}

/* Connect, within a limit.  Returns -1 with the reason kept. */
static int
establish (struct conn *conn)
{
  struct nbd *nbd = conn->nbd;
  uint64_t deadline = nc_now () + nbd->first_limit;

  if (begin_to_connect (conn) == -1)
    return -1;
  connect_any (conn, deadline);
  while (nbd_aio_is_ready (conn->h) != 1) {
    if (conn_is_finished (conn)) {
      snprintf (conn->reason, sizeof conn->reason,
                "the server closed the connection");
      return -1;
    }
    if (conn_must_stop (conn)) {
      snprintf (conn->reason, sizeof conn->reason, "%s",
                strerror (ESHUTDOWN));
      return -1;
    }
    if (nc_now () >= deadline) {
      snprintf (conn->reason, sizeof conn->reason,
                "no answer within %u s",
                (unsigned) (nbd->first_limit / SEC));
      return -1;
    }
    if (poll_once (conn, deadline) == -1)
      return -1;
  }
  return 0;
}

int
conn_connect (struct conn *conn, struct export *export)
{
  const struct nbd *nbd = conn->nbd;
  __attribute__ ((__cleanup__ (nc_tls_dir_close))) struct nc_tls_dir dir =
    { .fd = -1 };

  conn->h = new_handle (conn);
  if (conn->h == NULL)
    return -1;
  if (nbd->encrypted && nbd->psk && use_psk (conn) == -1)
    goto fail;
  if (nbd->encrypted && nbd->certificates &&
      use_certificates (conn, &dir) == -1)
    goto fail;
  if (establish (conn) == -1)
    goto fail;
  if (nbd->encrypted && nbd_get_tls_negotiated (conn->h) != 1) {
    snprintf (conn->reason, sizeof conn->reason, "the connection has no TLS");
    goto fail;
  }
  if (dir.fd >= 0 && !nc_tls_dir_is_unchanged (&dir)) {
    snprintf (conn->reason, sizeof conn->reason,
              "%s: was changed just now", nbd->certificates);
    goto fail;
  }
  if (learn_export (conn, export) == -1)
    goto fail;
  return 0;

 fail:
  conn_close (conn);
  return -1;
}
