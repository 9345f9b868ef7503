/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The export of an NBD server as a device, over connections that are made again
 * when they are lost.  Here are the functions of the device but for those of
 * write.c, and what is checked when it is opened; nbd/internal.h
 * says what the rest is, and which lock guards what.
 *
 * A request is cut and rounded to what the server accepts.
 */

#include <config.h>

#include "nbd/remote.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "data/claims.h"
#include "nbd/internal.h"
#include "nbd/tls.h"
#include "util/clock.h"
#include "util/scope.h"

#define MAX_BOUNCE (1U << 20)          /* of a read that must be rounded */
#define MAX_STATUS (1ULL << 31)        /* range of one block status */

#define STALL_LIMIT 10                 /* seconds: the first limit */
#define STALL_LIMIT_MAX 60             /* seconds: where doubling ends if
                                          requests may wait for ever */
#define CHANGE_LIMIT_MAX 3600          /* the same with changes in flight;
                                          begins with STALL_LIMIT_MAX */

static void
get_limits (struct nbd *nbd, uint64_t *minimum, uint64_t *maximum)
{
  NC_LOCKED (&nbd->lock);
  *minimum = nbd->minimum;
  *maximum = nbd->maximum;
}

/* One request: as many of COUNT bytes as it can hold; all of them lie
 * inside the export.  Sets *done.  Returns an errno, not reported. */
static int
read_part (struct nbd *nbd, void *buf, size_t count, uint64_t offset,
           size_t *done)
{
  NC_FREE char *bounce = NULL;
  struct request req = { .buf = buf };
  uint64_t minimum, maximum, first, last;

  get_limits (nbd, &minimum, &maximum);
  first = nc_round_down (offset, minimum);
  count = nc_min64 (count, maximum - (offset - first));
  last = nc_min64 (nc_round_up (offset + count, minimum), nbd->dev.size);

  if (first != offset || last != offset + count) {
    maximum = nc_min64 (maximum, MAX_BOUNCE);
    last = nc_min64 (last, first + maximum);
    count = nc_min64 (count, last - offset);
    req.buf = bounce = malloc (last - first);
    if (bounce == NULL)
      return ENOMEM;
  }
  req.offset = first;
  req.count = last - first;
  conn_run (nbd, &req, 1);
  if (req.error)
    return req.error;
  if (bounce)
    memcpy (buf, bounce + (offset - first), count);
  *done = count;
  return 0;
}

static int
nbd_dev_pread (struct nc_dev *dev, void *buf, size_t count, uint64_t offset)
{
  struct nbd *nbd = (struct nbd *) dev;
  char more[NC_REPEAT_TEXT];
  char *p = buf;

  while (count > 0) {
    size_t n = 0;
    int error;

    if (offset >= dev->size) {
      memset (p, 0, count);
      return 0;
    }
    error = read_part (nbd, p, nc_min64 (count, dev->size - offset), offset,
                       &n);
    switch (error) {
    case 0:
      p += n;
      offset += n;
      count -= n;
      break;
    case EAGAIN:                       /* the limits have changed */
      break;
    case ENOTCONN: case ESHUTDOWN:
      errno = error;
      return -1;
    default:
      if (nc_repeat_report (&nbd->failures, ((offset >> 20) * 251 + error)
                            & 0xffff, more))
        nc_error ("%s: read of %zu bytes at offset %" PRIu64 ": the server "
                  "says: %s%s", dev->name, count, offset, strerror (error),
                  more);
      else
        nc_error_untold ("%s: read of %zu bytes at offset %" PRIu64 ": the "
                         "server says: %s", dev->name, count, offset,
                         strerror (error));
      errno = error == ENOMEM ? ENOMEM : EIO;
      return -1;
    }
  }
  return 0;
}

/* Whether V is a request as it is. */
static bool
is_request (struct nbd *nbd, const struct nc_dev_read *v)
{
  uint64_t minimum, maximum;

  get_limits (nbd, &minimum, &maximum);
  return ((v->offset | v->count) & (minimum - 1)) == 0 &&
    v->count <= maximum && v->offset <= nbd->dev.size &&
    v->count <= nbd->dev.size - v->offset;
}

/* What needs more than a request, or fails while there is a connection, is
 * done by itself. */
static int
nbd_dev_pread_many (struct nc_dev *dev, const struct nc_dev_read *v, size_t n)
{
  struct nbd *nbd = (struct nbd *) dev;
  struct request reqs[NC_DEV_READS] = { 0 };
  unsigned n_reqs = 0;

  for (size_t i = 0; i < n; ++i)
    if (is_request (nbd, &v[i]))
      reqs[n_reqs++] = (struct request) {
        .buf = v[i].buf, .count = v[i].count, .offset = v[i].offset,
      };
  if (n_reqs > 0)
    conn_run (nbd, reqs, n_reqs);
  for (unsigned k = 0; k < n_reqs; ++k)
    if (reqs[k].error == ENOTCONN || reqs[k].error == ESHUTDOWN) {
      errno = reqs[k].error;
      return -1;
    }
  for (size_t i = 0, k = 0; i < n; ++i) {
    if (k < n_reqs && reqs[k].buf == v[i].buf && reqs[k++].error == 0)
      continue;
    if (nbd_dev_pread (dev, v[i].buf, v[i].count, v[i].offset) == -1)
      return -1;
  }
  return 0;
}

static int
nbd_dev_extents (struct nc_dev *dev, struct nc_extents *extents,
                 uint64_t end, uint64_t shift)
{
  struct nbd *nbd = (struct nbd *) dev;
  struct request req = { .kind = BLOCK_STATUS, .extents = extents };
  uint64_t begin = nc_extents_next (extents), offset = begin + shift;
  uint64_t minimum, maximum, last;

  if (offset >= dev->size)
    return nc_extents_append (extents, end - begin,
                              NC_EXTENT_HOLE | NC_EXTENT_ZERO);
  end = nc_min64 (end, dev->size - shift);

  do {
    get_limits (nbd, &minimum, &maximum);
    req.offset = nc_round_down (offset, minimum);
    last = nc_min64 (end + shift, req.offset + MAX_STATUS);
    last = nc_min64 (nc_round_up (last, minimum), dev->size);
    req.count = last - req.offset;
    req.skip = offset - req.offset;
    conn_run (nbd, &req, 1);
  } while (req.error == EAGAIN);

  switch (req.error) {
  case 0:
    break;
  case ENOTCONN: case ESHUTDOWN: case ENOMEM:
    errno = req.error;                 /* no memory: reported */
    return -1;
  default:
    nc_debug ("%s: block status at offset %" PRIu64 ": %s; taken as data",
              dev->name, offset, strerror (req.error));
  }
  if (nc_extents_next (extents) > begin)
    return 0;
  return nc_extents_append (extents, nc_min64 (end, last - shift) - begin, 0);
}

static void
nbd_dev_stop (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  unsigned i;

  {
    NC_LOCKED (&nbd->lock);
    nbd->stopping = true;
    pthread_cond_broadcast (&nbd->changed);
  }
  for (i = 0; i < nbd->n_conns; i++)
    conn_kick (&nbd->conns[i]);
}

static int
nbd_dev_wait (struct nc_dev *dev, const struct timespec *deadline)
{
  struct nbd *nbd = (struct nbd *) dev;
  int r = 0;

  NC_LOCKED (&nbd->lock);
  while (!nbd->stopping && nbd->n_up == 0 && r == 0)
    r = deadline
      ? pthread_cond_timedwait (&nbd->changed, &nbd->lock, deadline)
      : pthread_cond_wait (&nbd->changed, &nbd->lock);
  if (nbd->stopping)
    r = ESHUTDOWN;
  else if (nbd->n_up > 0)
    return 0;
  errno = r;
  return -1;
}

static int
nbd_dev_start (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  bool reported;
  int first;
  unsigned i;

  if (conn_start (&nbd->conns[0]) == -1)
    return -1;
  if (nbd->absent)
    return 0;
  {
    NC_LOCKED (&nbd->lock);
    while (nbd->first == 0 && !nbd->stopping)
      pthread_cond_wait (&nbd->changed, &nbd->lock);
    first = nbd->first;
    reported = nbd->mismatch;
  }
  switch (first) {
  case 0:
    errno = ESHUTDOWN;
    return -1;
  case -1:
    if (!reported)
      nc_error ("%s: cannot connect: %s", dev->name, nbd->conns[0].reason);
    errno = ENOTCONN;
    return -1;
  }
  for (i = 1; i < nbd->n_conns; i++)
    if (conn_start (&nbd->conns[i]) == -1)
      break;                           /* works with fewer */
  return 0;
}

static void
nbd_dev_close (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  unsigned i;

  nbd_dev_stop (dev);
  for (i = 0; i < MAX_CONNS; i++) {
    if (nbd->conns[i].running)
      pthread_join (nbd->conns[i].thread, NULL);
    if (nbd->conns[i].kick >= 0)
      close (nbd->conns[i].kick);
    if (nbd->conns[i].call >= 0)
      close (nbd->conns[i].call);
    pthread_mutex_destroy (&nbd->conns[i].lock);
  }
  pthread_cond_destroy (&nbd->changed);
  pthread_mutex_destroy (&nbd->lock);
  pthread_mutex_destroy (&nbd->find_lock);
  nc_socket_finder_free (&nbd->finder);
  nc_uri_free (&nbd->uri);
  free (nbd->argv);
  free (nbd->words);
  free (nbd->certificates);
  free (nbd->psk);
  free (nbd->username);
  if (nbd->claims)
    nc_claims_fini (nbd->claims);
  free (nbd->claims);
  nc_dev_fini (dev);
  free (nbd);
}

#define READING                                 \
  .close = nbd_dev_close,                       \
  .pread = nbd_dev_pread,                       \
  .pread_many = nbd_dev_pread_many,             \
  .extents = nbd_dev_extents,                   \
  .start = nbd_dev_start,                       \
  .stop = nbd_dev_stop,                         \
  .wait = nbd_dev_wait

static const struct nc_dev_ops nbd_dev_ops = { READING };

static const struct nc_dev_ops writable_ops = {
  READING,
  .pwrite = nbd_dev_pwrite,
  .pwritev = nbd_dev_pwritev,
  .pwrite_durable = nbd_dev_pwrite_durable,
  .sync = nbd_dev_sync,
  .measure = nbd_dev_measure,
  .truncate = nbd_dev_truncate,
  .zero = nbd_dev_zero,
  .trim = nbd_dev_trim,
  .epoch = nbd_dev_epoch,
  .renew = nbd_dev_renew,
};

/* Opening. */

/* Split "[ command args ]" into words.  Blanks separate them; what is in
 * single quotes is taken as it is; in double quotes \" and \\ stand for the
 * second character.  Nothing else is special, no shell is involved. */
static int
parse_command (struct nbd *nbd, const char *ref)
{
  size_t n = strlen (ref);
  const char *s = ref + 1, *end;
  char *out;
  size_t argc = 0;

  while (n > 1 && strchr (" \t\n", ref[n-1]))
    n--;
  if (n < 2 || ref[n-1] != ']') {
    nc_error ("%s: a command must end with ']'", ref);
    errno = EINVAL;
    return -1;
  }
  end = ref + n - 1;

  out = nbd->words = malloc (n);
  nbd->argv = calloc (n, sizeof *nbd->argv);
  if (nbd->words == NULL || nbd->argv == NULL) {
    nc_error ("%s: %m", ref);
    return -1;
  }

  for (;;) {
    char quote = 0;

    while (s < end && strchr (" \t\n", *s))
      s++;
    if (s == end)
      break;
    nbd->argv[argc++] = out;
    for (; s < end && (quote || !strchr (" \t\n", *s)); s++) {
      if (quote ? *s == quote : *s == '"' || *s == '\'') {
        quote = quote ? 0 : *s;
        continue;
      }
      if (quote == '"' && *s == '\\' && s + 1 < end &&
          (s[1] == '"' || s[1] == '\\'))
        s++;
      *out++ = *s;
    }
    if (quote) {
      nc_error ("%s: a quote is not closed", ref);
      errno = EINVAL;
      return -1;
    }
    *out++ = '\0';
  }
  if (argc == 0) {
    nc_error ("%s: the command is missing", ref);
    errno = EINVAL;
    return -1;
  }
  return 0;
}

/* Connect, learn the export and disconnect; in a thread of its own, so that
 * end_child knows whose child it waits for. */
struct probe {
  struct conn *conn;
  struct export export;
  int r;
};

static void *
probe_thread (void *opaque)
{
  struct probe *probe = opaque;

  probe->r = conn_connect (probe->conn, &probe->export);
  if (probe->r == 0)
    conn_learn_changes (probe->conn, &probe->export);
  conn_disconnect (probe->conn);
  return NULL;
}

/* Returns -1, reported, if the export cannot be written. */
static int
make_writable (struct nbd *nbd, const struct export *export)
{
  if (export->read_only) {
    nc_error ("%s: the server offers this export for reading only; start the "
              "server without its option for that (nbdkit and qemu-nbd: -r)",
              nbd->dev.name);
    errno = EROFS;
    return -1;
  }
  nbd->block = export->minimum;
  nbd->preferred = export->preferred;
  nbd->can = export->can;
  if (nbd->block > 1) {
    nbd->claims = aligned_alloc (_Alignof (struct nc_claims),
                                 sizeof *nbd->claims);
    if (nbd->claims == NULL) {
      nc_error ("%s: %m", nbd->dev.name);
      return -1;
    }
    nc_claims_init (nbd->claims);
  }
  return 0;
}

static int
probe_export (struct nbd *nbd)
{
  struct probe probe = { .conn = &nbd->conns[0] };
  pthread_t thread;

  errno = pthread_create (&thread, NULL, probe_thread, &probe);
  if (errno) {
    nc_error ("%s: cannot start a thread: %m", nbd->dev.name);
    return -1;
  }
  pthread_join (thread, NULL);
  if (probe.r == -1) {
    nc_error ("%s: cannot connect: %s", nbd->dev.name,
              nbd->conns[0].reason);
    errno = ENOTCONN;
    return -1;
  }
  conn_remember_peer (&nbd->conns[0]);
  nbd->dev.size = probe.export.size;
  nbd->dev.identity = probe.export.identity;
  nbd->minimum = probe.export.minimum;
  nbd->maximum = probe.export.maximum;
  nbd->n_conns = probe.export.multi_conn && !nbd->argv ? nbd->n_conns : 1;
  return nbd->dev.writable ? make_writable (nbd, &probe.export) : 0;
}

static void
init_locks (struct nbd *nbd)
{
  pthread_condattr_t attr;

  pthread_mutex_init (&nbd->lock, NULL);
  pthread_mutex_init (&nbd->find_lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&nbd->changed, &attr);
  pthread_condattr_destroy (&attr);
}

static void
close_keeping_errno (struct nbd *nbd)
{
  int error = errno;

  nc_dev_close (&nbd->dev);
  errno = error;
}

static bool
libnbd_has_hole (void)
{
  struct nbd_handle *h = nbd_create ();
  const char *version = h ? nbd_get_version (h) : NULL;
  bool has_hole = version == NULL || nc_tls_has_hole (version);

  nbd_close (h);
  return has_hole;
}

/* Refuse what would not be verified.  Returns -1, reported. */
static int
check_tls (const char *ref, const struct nc_tls *tls, bool is_unix)
{
  static const char how[] = "remote-tls-certificates=DIRECTORY or "
    "remote-tls-psk=FILE (\"nbdchain\": --remote-tls-...)";

  if (tls->psk && tls->certificates)
    nc_error ("%s: there are both certificates and keys for it; give one: %s",
              ref, how);
  else if (tls->psk || !libnbd_has_hole ())
    return 0;
  else if (tls->certificates == NULL)
    nc_error ("%s: TLS needs to know whom to trust; give %s", ref, how);
  else if (is_unix)
    nc_error ("%s: this version of libnbd does not verify certificates over "
              "a Unix socket (CVE-2024-7383): use remote-tls-psk, or TCP",
              ref);
  else
    return 0;
  errno = EPERM;
  return -1;
}

static int
copy_string (const char *ref, const char *from, char **to)
{
  *to = from ? strdup (from) : NULL;
  if (*to || from == NULL)
    return 0;
  nc_error ("%s: %m", ref);
  return -1;
}

/* Take over what is needed for TLS. */
static int
set_up_tls (struct nbd *nbd, const struct nc_tls *tls)
{
  static const struct nc_tls none;
  const char *ref = nbd->dev.name;

  if (tls == NULL)
    tls = &none;
  nbd->encrypted = nbd->uri.scheme && strncmp (nbd->uri.scheme, "nbds", 4) == 0;
  if (!nbd->encrypted)
    return 0;
  return check_tls (ref, tls, nbd->uri.socket != NULL) == -1 ||
    copy_string (ref, tls->certificates, &nbd->certificates) == -1 ||
    copy_string (ref, tls->psk, &nbd->psk) == -1 ||
    copy_string (ref, tls->username, &nbd->username) == -1 ? -1 : 0;
}

/* On each connection one thread receives at a time: what more of them than
 * processors gain, they lose again by getting in each other's way. */
static unsigned
useful_conns (void)
{
  const long n = sysconf (_SC_NPROCESSORS_ONLN);

  return n > 0 ? nc_min64 (n + 1, MAX_CONNS) : MAX_CONNS;
}

/* Take REF apart.  FINDER, which is taken over, knows better than its text
 * where a socket is. */
static int
parse_ref (struct nbd *nbd, const char *ref, struct nc_socket_finder *finder)
{
  NC_FREE char *context = NULL;

  if (finder) {
    nbd->finder = *finder;
    *finder = (struct nc_socket_finder) { 0 };
  }
  if (*ref == '[')
    return parse_command (nbd, ref);
  if (asprintf (&context, "%s:", ref) == -1) {
    context = NULL;
    nc_error ("%s: %m", ref);
    return -1;
  }
  if (nc_remote_parse_uri (ref, context, EPERM, &nbd->uri) == -1)
    return -1;
  if (nbd->uri.socket && nbd->finder.find == NULL)
    return nc_socket_finder_init (&nbd->finder, nbd->uri.socket);
  return 0;
}

/* The device before anything is known of its export. */
static struct nbd *
new_device (const char *ref, bool writable, unsigned retry,
            const struct nc_tls *tls, struct nc_socket_finder *finder)
{
  struct nbd *nbd = calloc (1, sizeof *nbd);
  unsigned i;

  if (nbd == NULL ||
      nc_dev_init (&nbd->dev, writable ? &writable_ops : &nbd_dev_ops,
                   ref) == -1) {
    if (nbd == NULL)
      nc_error ("%s: %m", ref);
    free (nbd);
    if (finder)
      nc_socket_finder_free (finder);
    return NULL;
  }
  init_locks (nbd);
  nbd->dev.remote = true;
  nbd->dev.writable = writable;
  nbd->first_limit =
    (retry ? nc_min64 (retry, STALL_LIMIT) : STALL_LIMIT) * SEC;
  nbd->max_limit = (retry ? retry : STALL_LIMIT_MAX) * SEC;
  nbd->limit = nbd->first_limit;
  nbd->change_limit = nbd->max_limit;
  nbd->max_change_limit = (retry ? retry : CHANGE_LIMIT_MAX) * SEC;
  nbd->n_conns = useful_conns ();
  for (i = 0; i < MAX_CONNS; i++) {
    nbd->conns[i].nbd = nbd;
    nbd->conns[i].backoff = BACKOFF_MIN;
    nbd->conns[i].kick = nbd->conns[i].call = -1;
    pthread_mutex_init (&nbd->conns[i].lock, NULL);
  }
  if (parse_ref (nbd, ref, finder) == -1)
    goto fail;
  for (i = 0; i < MAX_CONNS; i++) {
    nbd->conns[i].kick = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
    nbd->conns[i].call = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (nbd->conns[i].kick == -1 || nbd->conns[i].call == -1) {
      nc_error ("%s: eventfd: %m", ref);
      goto fail;
    }
  }

  if (set_up_tls (nbd, tls) == -1)
    goto fail;
  return nbd;

 fail:
  close_keeping_errno (nbd);
  return NULL;
}

static struct nc_dev *
open_nbd (const char *ref, bool writable, unsigned retry,
          const struct nc_tls *tls, struct nc_socket_finder *finder)
{
  struct nbd *nbd = new_device (ref, writable, retry, tls, finder);

  if (nbd == NULL)
    return NULL;
  if (probe_export (nbd) == -1) {
    close_keeping_errno (nbd);
    return NULL;
  }
  nc_debug ("%s: %" PRIu64 " bytes, identity \"%s\", %u connections",
            ref, nbd->dev.size, nbd->dev.identity ? : "", nbd->n_conns);
  return &nbd->dev;
}

struct nc_dev *
nc_remote_open_nbd (const char *ref, unsigned retry,
                    const struct nc_tls *tls, struct nc_socket_finder *finder)
{
  return open_nbd (ref, false, retry, tls, finder);
}

struct nc_dev *
nc_remote_open_nbd_writable (const char *ref, unsigned retry,
                             const struct nc_tls *tls)
{
  return open_nbd (ref, true, retry, tls, NULL);
}

struct nc_dev *
nc_remote_open_nbd_absent (const char *ref, unsigned retry,
                           const struct nc_tls *tls,
                           struct nc_socket_finder *finder, uint64_t size,
                           const char *identity)
{
  struct nbd *nbd = new_device (ref, false, retry, tls, finder);

  if (nbd == NULL)
    return NULL;
  nbd->absent = true;
  nbd->first = 1;                      /* no attempt is the last one */
  nbd->minimum = 1;
  nbd->maximum = MAX_READ;
  nbd->dev.size = size;
  nbd->dev.identity = strdup (identity);
  if (nbd->dev.identity == NULL) {
    nc_error ("%s: %m", ref);
    close_keeping_errno (nbd);
    return NULL;
  }
  return &nbd->dev;
}
