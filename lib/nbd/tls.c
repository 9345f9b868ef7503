/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Credentials for TLS: are they there, do they load, can others read them?
 *
 * libnbd takes a directory by its name and looks itself what is in it.  One
 * with a hole (nc_tls_has_hole) trusts everybody if ca-cert.pem is missing
 * at that moment.  So the directory is held open, libnbd is given that one
 * (by /proc/self/fd), and when it has connected, nc_tls_dir_is_unchanged
 * tells whether it can have seen anything but what was checked before. */

#include <config.h>

#include "nbd/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "util/scope.h"

#define FILE_MAX (1 << 20)      /* bytes; a system's CA bundle has 0.2 M */

struct why {
  char *text;
  size_t len;
};

static int __attribute__ ((__format__ (printf, 3, 4)))
refuse (const struct why *why, int error, const char *fmt, ...)
{
  va_list args;

  errno = error;                /* for %m */
  va_start (args, fmt);
  vsnprintf (why->text, why->len, fmt, args);
  va_end (args);
  errno = error;
  return -1;
}

bool
nc_tls_has_hole (const char *libnbd_version)
{
  unsigned major, minor, patch;

  if (sscanf (libnbd_version, "%u.%u.%u", &major, &minor, &patch) != 3)
    return true;
  if (major != 1 || minor >= 22)
    return major < 1;
  return !(minor == 20 && patch >= 3) && !(minor == 18 && patch >= 5);
}

/* A file in memory; with secrets perhaps, so wiped. */
struct text {
  char *data;                   /* ends with a NUL that is not counted */
  size_t size;
};

static void
free_text (struct text *text)
{
  if (text->data)
    explicit_bzero (text->data, text->size);
  free (text->data);
}
#define TEXT_CLEANUP __attribute__ ((__cleanup__ (free_text)))

/* Read the whole of NAME in DIRFD, which is called PREFIX NAME in messages.
 * secret: others must not be able to read it.  *st is its state. */
static int
read_text (int dirfd, const char *prefix, const char *name, bool secret,
           struct text *text, struct stat *st, const struct why *why)
{
  NC_CLOSE int fd = openat (dirfd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK |
                            O_NOCTTY);
  ssize_t r;

  if (fd == -1 || fstat (fd, st) == -1)
    return refuse (why, errno, "%s%s: %m", prefix, name);
  if (!S_ISREG (st->st_mode))
    return refuse (why, EINVAL, "%s%s: not a file", prefix, name);
  if (secret && (st->st_mode & S_IRWXO))
    return refuse (why, EPERM, "%s%s: every user of this machine can get at "
                   "it, so it is no secret: take away their permissions "
                   "(chmod o= FILE)", prefix, name);
  if (st->st_size > FILE_MAX)
    return refuse (why, EFBIG, "%s%s: larger than %d bytes", prefix, name,
                   FILE_MAX);
  text->data = malloc (st->st_size + 1);
  if (text->data == NULL)
    return refuse (why, errno, "%s%s: %m", prefix, name);
  while (text->size < (size_t) st->st_size &&
         (r = read (fd, text->data + text->size,
                    st->st_size - text->size)) != 0) {
    if (r == -1 && errno != EINTR)
      return refuse (why, errno, "%s%s: %m", prefix, name);
    if (r > 0)
      text->size += r;
  }
  text->data[text->size] = '\0';
  return 0;
}

/* Certificates. */

static void
free_credentials (gnutls_certificate_credentials_t *creds)
{
  if (*creds)
    gnutls_certificate_free_credentials (*creds);
}

static gnutls_datum_t
datum (const struct text *text)
{
  return (gnutls_datum_t) { (unsigned char *) text->data, text->size };
}

/* Load the certificate ROLE-cert.pem with its key. */
static int
load_pair (gnutls_certificate_credentials_t creds, int dirfd,
           const char *prefix, const char *role, const struct why *why)
{
  TEXT_CLEANUP struct text cert = { 0 };
  TEXT_CLEANUP struct text key = { 0 };
  char cert_name[32], key_name[32];
  gnutls_datum_t cert_datum, key_datum;
  struct stat st;
  int r;

  snprintf (cert_name, sizeof cert_name, "%s-cert.pem", role);
  snprintf (key_name, sizeof key_name, "%s-key.pem", role);
  if (read_text (dirfd, prefix, cert_name, false, &cert, &st, why) == -1 ||
      read_text (dirfd, prefix, key_name, true, &key, &st, why) == -1)
    return -1;
  cert_datum = datum (&cert);
  key_datum = datum (&key);
  r = gnutls_certificate_set_x509_key_mem (creds, &cert_datum, &key_datum,
                                           GNUTLS_X509_FMT_PEM);
  if (r < 0)
    return refuse (why, EINVAL, "%s%s with %s: %s", prefix, cert_name,
                   key_name, gnutls_strerror (r));
  return 0;
}

static bool
is_there (int dirfd, const char *name)
{
  return faccessat (dirfd, name, F_OK, 0) == 0;
}

/* Load all that is in the directory DIRFD for ROLE, "server" or "client". */
static int
load_all (int dirfd, const char *prefix, const char *role, struct stat *ca_st,
          const struct why *why)
{
  __attribute__ ((__cleanup__ (free_credentials)))
    gnutls_certificate_credentials_t creds = NULL;
  TEXT_CLEANUP struct text ca = { 0 };
  TEXT_CLEANUP struct text crl = { 0 };
  const bool is_server = strcmp (role, "server") == 0;
  gnutls_datum_t data;
  struct stat st;
  int r;

  r = gnutls_certificate_allocate_credentials (&creds);
  if (r < 0)
    return refuse (why, ENOMEM, "%s: %s", prefix, gnutls_strerror (r));

  if (read_text (dirfd, prefix, "ca-cert.pem", false, &ca, ca_st, why) == -1)
    return -1;
  data = datum (&ca);
  r = gnutls_certificate_set_x509_trust_mem (creds, &data,
                                             GNUTLS_X509_FMT_PEM);
  if (r <= 0)
    return refuse (why, EINVAL, "%sca-cert.pem: %s", prefix,
                   r < 0 ? gnutls_strerror (r) : "has no certificate");

  if (is_there (dirfd, "ca-crl.pem")) {
    if (read_text (dirfd, prefix, "ca-crl.pem", false, &crl, &st, why) == -1)
      return -1;
    data = datum (&crl);
    r = gnutls_certificate_set_x509_crl_mem (creds, &data,
                                             GNUTLS_X509_FMT_PEM);
    if (r <= 0)
      return refuse (why, EINVAL, "%sca-crl.pem: %s", prefix,
                     r < 0 ? gnutls_strerror (r) : "has no list");
  }

  /* Not every server asks who its clients are. */
  if (is_server || is_there (dirfd, "client-cert.pem") ||
      is_there (dirfd, "client-key.pem"))
    return load_pair (creds, dirfd, prefix, role, why);
  return 0;
}

/* Open the directory PATH; *prefix, "PATH/", is allocated. */
static int
open_dir (const char *path, char **prefix, const struct why *why)
{
  int fd = open (path, O_PATH | O_DIRECTORY | O_CLOEXEC);

  if (fd == -1)
    return refuse (why, errno, "%s: %m", path);
  if (asprintf (prefix, "%s/", path) == -1) {
    *prefix = NULL;
    close (fd);
    return refuse (why, ENOMEM, "%s: %m", path);
  }
  return fd;
}

static bool
is_before (const struct timespec *a, const struct timespec *b)
{
  return a->tv_sec < b->tv_sec ||
    (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

/* The system's time stamps are coarse, a few milliseconds: wait until a
 * change from now on gets another one than the last change has. */
static void
let_settle (int dirfd)
{
  struct timespec t;
  struct stat dir, ca;
  unsigned i;

  for (i = 0; i < 100; i++) {
    clock_gettime (CLOCK_REALTIME_COARSE, &t);
    if (fstat (dirfd, &dir) == -1 ||
        fstatat (dirfd, "ca-cert.pem", &ca, 0) == -1 ||
        (is_before (&dir.st_ctim, &t) && is_before (&ca.st_ctim, &t)))
      return;
    poll (NULL, 0, 1);
  }
}

int
nc_tls_dir_open (struct nc_tls_dir *d, const char *path, char *text,
                 size_t len)
{
  const struct why why = { text, len };
  NC_FREE char *prefix = NULL;
  int error;

  d->fd = open_dir (path, &prefix, &why);
  if (d->fd == -1)
    return -1;
  let_settle (d->fd);
  /* The state of the directory first: what changes later must show. */
  if (fstat (d->fd, &d->dir) == -1)
    refuse (&why, errno, "%s: %m", path);
  else if (load_all (d->fd, prefix, "client", &d->ca, &why) == 0)
    return 0;
  error = errno;
  nc_tls_dir_close (d);
  errno = error;
  return -1;
}

static bool
is_same_state (const struct stat *a, const struct stat *b)
{
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
    a->st_size == b->st_size && a->st_mode == b->st_mode &&
    a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
    a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

bool
nc_tls_dir_is_unchanged (const struct nc_tls_dir *d)
{
  struct stat dir, ca;

  return fstat (d->fd, &dir) == 0 && is_same_state (&dir, &d->dir) &&
    fstatat (d->fd, "ca-cert.pem", &ca, 0) == 0 &&
    is_same_state (&ca, &d->ca);
}

void
nc_tls_dir_close (struct nc_tls_dir *d)
{
  if (d->fd >= 0)
    close (d->fd);
  d->fd = -1;
}

int
nc_tls_check_server (const char *path, char *text, size_t len)
{
  const struct why why = { text, len };
  NC_FREE char *prefix = NULL;
  NC_CLOSE int fd = open_dir (path, &prefix, &why);
  struct stat st;

  return fd == -1 ? -1 : load_all (fd, prefix, "server", &st, &why);
}

/* Times. */

static void
free_certificates (gnutls_x509_crt_t *v, unsigned n)
{
  for (unsigned i = 0; i < n; i++)
    gnutls_x509_crt_deinit (v[i]);
  gnutls_free (v);
}

/* Whether the certificate NAME is valid now. */
static int
check_time (gnutls_x509_crt_t crt, const char *prefix, const char *name,
            const struct why *why)
{
  const time_t now = time (NULL);
  const time_t from = gnutls_x509_crt_get_activation_time (crt);
  const time_t to = gnutls_x509_crt_get_expiration_time (crt);
  const bool early = from != -1 && now < from;
  char text[32] = "";
  struct tm tm;

  if (!early && (to == -1 || now <= to))
    return 0;
  if (gmtime_r (early ? &from : &to, &tm))
    strftime (text, sizeof text, "%Y-%m-%d %H:%M UTC", &tm);
  return refuse (why, EKEYEXPIRED, "%s%s: %s %s", prefix, name,
                 early ? "is valid from" : "expired on", text);
}

/* The same for all in the file NAME; several of them only if ALL. */
static int
check_times (int dirfd, const char *prefix, const char *name, bool all,
             const struct why *why)
{
  TEXT_CLEANUP struct text text = { 0 };
  gnutls_x509_crt_t *v;
  gnutls_datum_t data;
  struct stat st;
  unsigned n;
  int r;

  if (read_text (dirfd, prefix, name, false, &text, &st, why) == -1)
    return -1;
  data = datum (&text);
  r = gnutls_x509_crt_list_import2 (&v, &n, &data, GNUTLS_X509_FMT_PEM, 0);
  if (r < 0)
    return refuse (why, EINVAL, "%s%s: %s", prefix, name,
                   gnutls_strerror (r));
  r = 0;
  for (unsigned i = 0; r == 0 && i < n && (all || n == 1); i++)
    r = check_time (v[i], prefix, name, why);
  free_certificates (v, n);
  return r;
}

int
nc_tls_check_dates (const char *path, char *text, size_t len)
{
  const struct why why = { text, len };
  NC_FREE char *prefix = NULL;
  NC_CLOSE int fd = open_dir (path, &prefix, &why);

  return fd == -1 ||
    check_times (fd, prefix, "server-cert.pem", true, &why) == -1 ||
    check_times (fd, prefix, "ca-cert.pem", false, &why) == -1 ? -1 : 0;
}

/* Pre-shared keys. */

static bool
is_hex_key (const char *key)
{
  size_t n = strspn (key, "0123456789abcdefABCDEF");

  return n > 0 && n % 2 == 0 && key[n] == '\0';
}

int
nc_tls_find_user (const char *path, const char *username, char **user,
                  char *why_text, size_t len)
{
  const struct why why = { why_text, len };
  TEXT_CLEANUP struct text text = { 0 };
  const char *found = NULL, *key = NULL;
  char *line, *next, *colon;
  unsigned n = 0;
  struct stat st;

  if (read_text (AT_FDCWD, "", path, true, &text, &st, &why) == -1)
    return -1;
  for (next = text.data; (line = strsep (&next, "\r\n")) != NULL;) {
    colon = strchr (line, ':');
    if (colon == NULL || colon == line)
      continue;
    *colon = '\0';
    if (username && strcmp (line, username) != 0)
      continue;
    if (n++ == 0) {
      found = line;
      key = colon + 1;
    }
  }
  if (n == 0 && username)
    return refuse (&why, ENOENT, "%s: has no key of the user '%s'", path,
                   username);
  if (n == 0)
    return refuse (&why, ENOENT, "%s: has no key (\"psktool -u NAME -p FILE\""
                   " makes one)", path);
  if (n > 1 && !username)
    return refuse (&why, ENOTUNIQ, "%s: has keys of %u users: say whose is "
                   "to be used", path, n);
  if (!is_hex_key (key))
    return refuse (&why, EINVAL, "%s: the key of '%s' is not hexadecimal",
                   path, found);
  *user = strdup (found);
  if (*user == NULL)
    return refuse (&why, errno, "%s: %m", path);
  return 0;
}
