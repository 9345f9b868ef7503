/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Follows references found inside an image, where that is permitted.
 *
 * The invariant: whatever the text of a reference is, and whatever somebody
 * renames meanwhile, a file that is opened here lies below the directory
 * that permits it.  The path is resolved twice.  First by us, a component
 * at a time, never looking at anything that lies outside of the permitted
 * directories and the way to them: so an error tells nothing about other
 * files, not even whether they exist.  Then the kernel opens what is left
 * of the canonical path, starting at the permitted directory and refusing
 * all symbolic links and "..".
 */

#include <config.h>

#include "chain/ref.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "nbd/uri.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"

#define LINKS_MAX 40            /* as the kernel's own limit */

/* A directory that permits what lies below it. */
struct dir {
  char *real;                   /* without symbolic links */
  char *given;                  /* absolute, as it was named; its symbolic
                                   links may be passed through */
  int fd;                       /* O_PATH of REAL */
  bool is_image_dir;            /* not allowed as such, but holds the image */
};

struct nc_allow {
  struct dir *dirs;
  size_t n_dirs;
  struct nc_uri *uris;
  size_t n_uris;
};

/* ------------------------------------------------------------------ */
/* Text for messages. */

/* As nc_text_quote; but that there is no memory is reported. */
static char *
quote (const char *text)
{
  char *quoted = nc_text_quote (text);

  if (quoted == NULL)
    nc_error ("malloc: %m");
  return quoted;
}

/* What starts every message about a reference: who names what.  The caller
 * frees it; NULL is reported. */
static char *
make_context (const char *text, const char *image_path)
{
  NC_FREE char *qtext = quote (text);
  NC_FREE char *qimage = quote (image_path);
  char *context;

  if (qtext == NULL || qimage == NULL)
    return NULL;
  if (asprintf (&context, "image %s: the reference %s", qimage, qtext) == -1) {
    nc_error ("asprintf: %m");
    return NULL;
  }
  return context;
}

/* ------------------------------------------------------------------ */
/* Kinds of reference. */

/* The length of the URI scheme that TEXT starts with; 0 if there is none. */
static size_t
scheme_length (const char *text)
{
  static const char alpha[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  static const char more[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.";
  size_t len = strspn (text, more);

  return strspn (text, alpha) > 0 && text[len] == ':' ? len : 0;
}

int
nc_ref_kind (const char *text, enum nc_ref_kind *kind)
{
  size_t len = strlen (text), scheme;

  if (len == 0) {
    nc_error ("a reference must not be empty");
    errno = EINVAL;
    return -1;
  }
  if (len > NC_REF_MAX) {
    nc_error ("a reference of %zu bytes is too long: at most %d are "
              "supported", len, NC_REF_MAX);
    errno = EINVAL;
    return -1;
  }
  if (text[0] == '[') {
    *kind = NC_REF_COMMAND;
    return 0;
  }
  scheme = scheme_length (text);
  if (scheme > 0 && nc_uri_is_nbd (text, scheme)) {
    *kind = NC_REF_URI;
    return 0;
  }
  if (scheme > 0 && strncmp (text + scheme, "://", 3) == 0) {
    NC_FREE char *quoted = quote (text);

    if (quoted == NULL)
      return -1;
    nc_error ("%s: only the schemes nbd, nbds, nbd+unix and nbds+unix are "
              "supported; reach others through a server, for example "
              "\"[ nbdkit curl URL ]\" on the command line, or write "
              "\"./%.*s:...\" if a file is meant",
              quoted, (int) scheme, text);
    errno = EINVAL;
    return -1;
  }
  *kind = NC_REF_FILE;
  return 0;
}

/* ------------------------------------------------------------------ */
/* URIs. */

static void
free_uri (struct nc_uri *uri)
{
  free (uri->scheme);
  free (uri->host);
  free (uri->export_name);
  free (uri->socket);
  memset (uri, 0, sizeof *uri);
}

/* Whether one of the components of an export's name is "." or "..". */
static bool
has_dots (const char *name)
{
  for (;;) {
    size_t len = strcspn (name, "/");

    if ((len == 1 && name[0] == '.') ||
        (len == 2 && name[0] == '.' && name[1] == '.'))
      return true;
    if (name[len] == '\0')
      return false;
    name += len + 1;
  }
}

/* Whether allowing ALLOWED allows NAME: equal to it, or below it. */
static bool
export_is_allowed (const char *allowed, const char *name)
{
  size_t len = strlen (allowed);

  if (len == 0 || strcmp (allowed, name) == 0)
    return true;
  return strncmp (allowed, name, len) == 0 &&
    (allowed[len-1] == '/' || name[len] == '/') && !has_dots (name);
}

/* ------------------------------------------------------------------ */
/* Paths. */

static char *
join_path (const char *dir, const char *name)
{
  size_t len = strlen (dir);
  char *path;

  if (asprintf (&path, "%s%s%s", dir,
                len > 0 && dir[len-1] == '/' ? "" : "/", name) == -1) {
    nc_error ("asprintf: %m");
    return NULL;
  }
  return path;
}

/* Whether PATH lies below DIR, and not at it.  Both are canonical. */
static bool
is_below (const char *dir, const char *path)
{
  size_t len = strlen (dir);

  if (strcmp (dir, "/") == 0)
    return path[0] == '/' && path[1] != '\0';
  return strncmp (dir, path, len) == 0 && path[len] == '/';
}

static bool
is_at_or_below (const char *dir, const char *path)
{
  return strcmp (dir, path) == 0 || is_below (dir, path);
}

/* PATH made absolute; "//" and "." are left out, ".." and symbolic links
 * stay.  NULL is reported. */
static char *
absolute_path (const char *path)
{
  NC_FREE char *cwd = NULL;
  NC_FREE char *joined = NULL;
  const char *in;
  char *out, *p;

  if (path[0] != '/') {
    cwd = getcwd (NULL, 0);
    if (cwd == NULL) {
      nc_error ("the current directory: %m");
      return NULL;
    }
    joined = join_path (cwd, path);
    if (joined == NULL)
      return NULL;
  }
  in = joined ? joined : path;
  p = out = malloc (strlen (in) + 2);
  if (out == NULL) {
    nc_error ("malloc: %m");
    return NULL;
  }
  while (*(in += strspn (in, "/"))) {
    size_t len = strcspn (in, "/");

    if (len != 1 || in[0] != '.') {
      *p++ = '/';
      memcpy (p, in, len);
      p += len;
    }
    in += len;
  }
  if (p == out)
    *p++ = '/';
  *p = '\0';
  return out;
}

/* Cut the last component off the absolute PATH, and return it, allocated.
 * "/" stays. */
static char *
cut_last (char *path)
{
  char *slash = strrchr (path, '/');
  char *name = strdup (slash + 1);

  slash[slash == path ? 1 : 0] = '\0';
  return name;
}

static void
free_dir (struct dir *dir)
{
  free (dir->real);
  free (dir->given);
  if (dir->fd >= 0)
    close (dir->fd);
}

/* Open the directory PATH.  errno tells why not; nothing is reported. */
static int
open_dir (const char *path, struct dir *dir)
{
  *dir = (struct dir) { .fd = -1 };
  dir->given = absolute_path (path);
  dir->real = realpath (path, NULL);
  if (dir->given == NULL || dir->real == NULL)
    return -1;
  dir->fd = open (dir->real, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  return dir->fd == -1 ? -1 : 0;
}

/* Open the directory that holds the image, after the symbolic links of the
 * image's own path. */
static int
open_image_dir (const char *image_path, struct dir *dir)
{
  NC_FREE char *given = absolute_path (image_path);
  NC_FREE char *given_name = NULL;
  NC_FREE char *real = NULL;
  NC_FREE char *real_name = NULL;
  int r = -1;

  *dir = (struct dir) { .fd = -1 };
  if (given == NULL)
    return -1;
  real = realpath (image_path, NULL);
  given_name = cut_last (given);
  if (given_name == NULL)
    goto out;
  if (real) {
    real_name = cut_last (real);
    if (real_name == NULL)
      goto out;
  }
  r = open_dir (real ? real : given, dir);
  if (r == 0) {
    free (dir->given);
    dir->given = given;
    given = NULL;
    dir->is_image_dir = true;
  }
 out:
  if (r == -1) {
    NC_FREE char *quoted = quote (image_path);

    if (quoted)
      nc_error ("image %s: its directory: %m", quoted);
  }
  return r;
}

/* The directories that permit a reference: that of the image, then those
 * allowed. */
struct permits {
  struct dir image_dir;
  const struct nc_allow *allow;
};

static size_t
n_permits (const struct permits *permits)
{
  return 1 + (permits->allow ? permits->allow->n_dirs : 0);
}

static const struct dir *
get_permit (const struct permits *permits, size_t i)
{
  return i == 0 ? &permits->image_dir : &permits->allow->dirs[i-1];
}

/* The directory that permits PATH, or NULL. */
static const struct dir *
find_permit (const struct permits *permits, const char *path)
{
  size_t i;

  for (i = 0; i < n_permits (permits); ++i)
    if (is_at_or_below (get_permit (permits, i)->real, path))
      return get_permit (permits, i);
  return NULL;
}

/* Whether PATH may be looked at: permitted, or on the way to what is. */
static bool
is_on_the_way (const struct permits *permits, const char *path)
{
  size_t i;

  if (find_permit (permits, path))
    return true;
  for (i = 0; i < n_permits (permits); ++i)
    if (is_at_or_below (path, get_permit (permits, i)->real) ||
        is_at_or_below (path, get_permit (permits, i)->given))
      return true;
  return false;
}

/* Resolve the absolute PATH without looking at anything that is not on the
 * way.  Returns the canonical path, allocated, with *permit set; or NULL
 * with errno EPERM if it leads out (*followed tells whether a symbolic link
 * did that), ENOMEM, or, only for what lies below a permit, the cause.
 * Nothing is reported. */
static char *
resolve_path (const char *path, const struct permits *permits,
              const struct dir **permit, bool *followed)
{
  NC_FREE char *rest = strdup (path);
  NC_FREE char *done = strdup ("/");
  unsigned n_links = 0;
  char *in;

  *followed = false;
  if (rest == NULL || done == NULL)
    return NULL;
  in = rest;
  while (*(in += strspn (in, "/"))) {
    size_t len = strcspn (in, "/");
    NC_FREE char *candidate = NULL;
    struct stat st;
    char link[PATH_MAX];
    ssize_t n;
    int err = 0;

    if (len == 1 && in[0] == '.') {
      in += len;
      continue;
    }
    if (len == 2 && in[0] == '.' && in[1] == '.') {
      in += len;
      free (cut_last (done));
      if (!is_on_the_way (permits, done)) {
        errno = EPERM;
        return NULL;
      }
      continue;
    }

    if (asprintf (&candidate, "%s/%.*s", strcmp (done, "/") == 0 ? "" : done,
                  (int) len, in) == -1) {
      candidate = NULL;
      errno = ENOMEM;
      return NULL;
    }
    in += len;
    if (lstat (candidate, &st) == -1)
      err = errno;
    if (err == 0 && S_ISLNK (st.st_mode)) {
      char *text;

      n = readlink (candidate, link, sizeof link - 1);
      if (n == -1)
        err = errno;
      else if (n_links++ >= LINKS_MAX)
        err = ELOOP;
      else {
        link[n] = '\0';
        *followed = true;
        if (asprintf (&text, "%s/%s", link, in) == -1) {
          errno = ENOMEM;
          return NULL;
        }
        free (rest);
        in = rest = text;
        if (link[0] == '/')
          strcpy (done, "/");
        continue;
      }
    }
    /* Below a permit causes may be told; DONE says where we really are. */
    if (find_permit (permits, candidate) == NULL &&
        (err != 0 || !is_on_the_way (permits, candidate))) {
      errno = EPERM;
      return NULL;
    }
    if (err != 0) {
      errno = err;
      return NULL;
    }
    free (done);
    done = candidate;
    candidate = NULL;
  }

  *permit = find_permit (permits, done);
  if (*permit == NULL) {
    errno = EPERM;
    return NULL;
  }
  in = done;
  done = NULL;
  return in;
}

/* PATH without ".." and without looking at the disk: what to suggest. */
static char *
lexical_dir (const char *path)
{
  char *dir = absolute_path (path), *in, *p;

  if (dir == NULL)
    return NULL;
  for (in = p = dir; *in; ) {
    size_t len = 1 + strcspn (in + 1, "/");

    if (len == 3 && memcmp (in, "/..", 3) == 0)
      while (p > dir && *--p != '/')
        ;
    else if (len > 1) {
      memmove (p, in, len);
      p += len;
    }
    in += len;
  }
  *p = '\0';
  if (p == dir)
    strcpy (dir, "/");
  free (cut_last (dir));
  return dir;
}

/* ------------------------------------------------------------------ */
/* What is allowed. */

struct nc_allow *
nc_allow_new (void)
{
  struct nc_allow *allow = calloc (1, sizeof *allow);

  if (allow == NULL)
    nc_error ("calloc: %m");
  return allow;
}

void
nc_allow_free (struct nc_allow *allow)
{
  size_t i;

  if (allow == NULL)
    return;
  for (i = 0; i < allow->n_dirs; ++i)
    free_dir (&allow->dirs[i]);
  for (i = 0; i < allow->n_uris; ++i)
    free_uri (&allow->uris[i]);
  free (allow->dirs);
  free (allow->uris);
  free (allow);
}

static int
add_dir (struct nc_allow *allow, const char *text, const char *quoted)
{
  struct dir dir, *dirs;

  if (open_dir (text, &dir) == -1) {
    if (errno == ENOENT)
      nc_error ("allow=%s: there is no such directory", quoted);
    else if (errno == ENOTDIR)
      nc_error ("allow=%s is not a directory: allow the directory that holds "
                "the file, or an NBD URI", quoted);
    else
      nc_error ("allow=%s: %m", quoted);
    free_dir (&dir);
    return -1;
  }
  dirs = reallocarray (allow->dirs, allow->n_dirs + 1, sizeof dir);
  if (dirs == NULL) {
    nc_error ("realloc: %m");
    free_dir (&dir);
    return -1;
  }
  allow->dirs = dirs;
  allow->dirs[allow->n_dirs++] = dir;
  return 0;
}

static int
add_uri (struct nc_allow *allow, const char *text, const char *quoted)
{
  NC_FREE char *context = NULL;
  struct nc_uri uri, *uris;

  if (asprintf (&context, "allow=%s", quoted) == -1) {
    context = NULL;
    nc_error ("asprintf: %m");
    return -1;
  }
  if (nc_uri_parse (text, context, EINVAL, &uri) == -1) {
    free_uri (&uri);
    return -1;
  }
  uris = reallocarray (allow->uris, allow->n_uris + 1, sizeof uri);
  if (uris == NULL) {
    nc_error ("realloc: %m");
    free_uri (&uri);
    return -1;
  }
  allow->uris = uris;
  allow->uris[allow->n_uris++] = uri;
  return 0;
}

int
nc_allow_add (struct nc_allow *allow, const char *text)
{
  NC_FREE char *quoted = NULL;
  enum nc_ref_kind kind;

  if (nc_ref_kind (text, &kind) == -1)
    return -1;
  quoted = quote (text);
  if (quoted == NULL)
    return -1;
  switch (kind) {
  case NC_REF_FILE:
    return add_dir (allow, text, quoted);
  case NC_REF_URI:
    return add_uri (allow, text, quoted);
  case NC_REF_COMMAND:
    break;
  }
  nc_error ("allow=%s: a command is never taken from an image; what can be "
            "allowed is a directory or an NBD URI", quoted);
  errno = EINVAL;
  return -1;
}

/* ------------------------------------------------------------------ */
/* References in images. */

/* The path of a socket after symbolic links; where it does not exist, that
 * of its directory; where that does not either, as it is. */
static char *
resolve_socket (const char *path)
{
  char *real = realpath (path, NULL), *joined;
  NC_FREE char *dir = NULL;
  NC_FREE char *name = NULL;
  NC_FREE char *real_dir = NULL;

  if (real)
    return real;
  dir = absolute_path (path);
  if (dir == NULL)
    return NULL;
  name = cut_last (dir);
  if (name == NULL)
    return NULL;
  real_dir = realpath (dir, NULL);
  joined = join_path (real_dir ? real_dir : dir, name);
  return joined;
}

static bool
uri_is_allowed (const struct nc_uri *uri, const struct nc_allow *allow)
{
  NC_FREE char *socket = NULL;
  size_t i;

  if (allow == NULL || allow->n_uris == 0)
    return false;
  if (uri->socket) {
    socket = resolve_socket (uri->socket);
    if (socket == NULL)
      return false;
  }
  for (i = 0; i < allow->n_uris; ++i) {
    const struct nc_uri *a = &allow->uris[i];

    if (strcmp (a->scheme, uri->scheme) != 0 ||
        !export_is_allowed (a->export_name, uri->export_name))
      continue;
    if (uri->socket) {
      NC_FREE char *allowed = resolve_socket (a->socket);

      if (allowed && strcmp (allowed, socket) == 0)
        return true;
    }
    else if (strcmp (a->host, uri->host) == 0 && a->port == uri->port)
      return true;
  }
  return false;
}

/* Whether the socket lies in a directory that permits it. */
static int
socket_is_permitted (const char *socket, const char *image_path,
                     const struct nc_allow *allow, bool *permitted)
{
  struct permits permits = { .allow = allow };
  const struct dir *permit;
  NC_FREE char *path = NULL;
  bool followed;

  if (open_image_dir (image_path, &permits.image_dir) == -1) {
    free_dir (&permits.image_dir);
    return -1;
  }
  /* A server that is not there yet may come. */
  path = resolve_path (socket, &permits, &permit, &followed);
  *permitted = path != NULL || errno == ENOENT;
  free_dir (&permits.image_dir);
  return 0;
}

int
nc_ref_check_uri (const char *text, const char *image_path,
                  const struct nc_allow *allow)
{
  NC_FREE char *context = make_context (text, image_path);
  __attribute__ ((__cleanup__ (free_uri))) struct nc_uri uri = { 0 };
  NC_FREE char *dir = NULL;
  NC_FREE char *quoted_dir = NULL;
  bool permitted = false;

  if (context == NULL)
    return -1;
  if (nc_uri_parse (text, context, EPERM, &uri) == -1)
    return -1;
  if (uri_is_allowed (&uri, allow))
    return 0;
  if (uri.socket == NULL) {
    NC_FREE char *quoted = quote (text);

    if (quoted)
      nc_error ("%s has not been allowed: if you trust this image, add "
                "allow=%s (nbdchain: --allow %s)", context, quoted, quoted);
    errno = EPERM;
    return -1;
  }

  if (socket_is_permitted (uri.socket, image_path, allow, &permitted) == -1)
    return -1;
  if (permitted)
    return 0;
  dir = lexical_dir (uri.socket);
  quoted_dir = dir ? quote (dir) : NULL;
  if (quoted_dir)
    nc_error ("%s has its socket outside the directory of the image and all "
              "that was allowed: if you trust this image, add the URI or "
              "allow=%s (nbdchain: --allow %s)",
              context, quoted_dir, quoted_dir);
  errno = EPERM;
  return -1;
}

/* Refuse, with advice, what leads out of the permitted directories. */
static void
report_outside (const char *context, const char *full, bool followed)
{
  NC_FREE char *dir = NULL;
  NC_FREE char *quoted = NULL;

  if (followed) {
    nc_error ("%s leads, through a symbolic link, outside the directory of "
              "the image and all that was allowed: if you trust this image, "
              "allow the directory that the link leads to with allow=DIR "
              "(nbdchain: --allow DIR)", context);
    return;
  }
  dir = lexical_dir (full);
  quoted = dir ? quote (dir) : NULL;
  if (quoted)
    nc_error ("%s lies outside the directory of the image and all that was "
              "allowed: if you trust this image, add allow=%s (nbdchain: "
              "--allow %s)", context, quoted, quoted);
}

static void
report_cause (const char *context, const char *full)
{
  NC_FREE char *quoted = NULL;

  switch (errno) {
  case ENOENT:
    quoted = quote (full);
    if (quoted)
      nc_error ("%s is missing: no file %s; put it there, or give its place "
                "with base= (nbdchain: --base)", context, quoted);
    break;
  case ENOTDIR:
    nc_error ("%s is missing: a part of its path is not a directory",
              context);
    break;
  case ELOOP:
    nc_error ("%s is a loop of symbolic links, or was replaced by a link "
              "while it was opened", context);
    break;
  default:
    nc_error ("%s cannot be opened: %m", context);
  }
}

/* As open_beneath, a component at a time, for kernels without openat2 (and
 * valgrind, which does not know it).  REST has no "..". */
static int
walk_beneath (int dir_fd, const char *rest, int oflags)
{
  NC_FREE char *names = strdup (rest);
  NC_CLOSE int fd = -1;
  char *name, *next;

  if (names == NULL)
    return -1;
  for (name = names; (next = strchr (name, '/')) != NULL; name = next) {
    int below;

    *next++ = '\0';
    below = openat (fd == -1 ? dir_fd : fd, name,
                    O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below == -1)
      return -1;
    if (fd >= 0)
      close (fd);
    fd = below;
  }
  return openat (fd == -1 ? dir_fd : fd, name,
                 oflags | O_NOFOLLOW | O_CLOEXEC);
}

/* Open what lies at REST below the directory DIR_FD, and nowhere else. */
static int
open_beneath (int dir_fd, const char *rest, int oflags)
{
  struct open_how how = {
    .flags = (unsigned) oflags | O_CLOEXEC,
    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
  };
  int fd = syscall (SYS_openat2, dir_fd, rest, &how, sizeof how);

  if (fd == -1 && errno == ENOSYS)
    return walk_beneath (dir_fd, rest, oflags);
  return fd;
}

/* Refuse everything but files and block devices; those only in a directory
 * that was itself allowed. */
static int
check_type (int fd, const char *context, const char *path,
            const struct nc_allow *allow)
{
  NC_FREE char *parent = NULL;
  NC_FREE char *quoted = NULL;
  const char *what;
  struct stat st;
  size_t i;

  if (fstat (fd, &st) == -1) {
    nc_error ("%s: fstat: %m", context);
    return -1;
  }
  switch (st.st_mode & S_IFMT) {
  case S_IFREG: return 0;
  case S_IFBLK: what = NULL; break;
  case S_IFDIR: what = "a directory"; break;
  case S_IFIFO: what = "a FIFO"; break;
  case S_IFSOCK: what = "a socket (for a server behind it write "
      "nbd+unix:///EXPORT?socket=PATH)"; break;
  case S_IFCHR: what = "a character device"; break;
  case S_IFLNK: what = "a symbolic link that has just appeared"; break;
  default: what = "of a type that holds no data";
  }
  if (what) {
    nc_error ("%s is %s: an image is a file or a block device",
              context, what);
    errno = EPERM;
    return -1;
  }

  parent = strdup (path);
  if (parent == NULL) {
    nc_error ("strdup: %m");
    return -1;
  }
  free (cut_last (parent));
  for (i = 0; allow && i < allow->n_dirs; ++i)
    if (strcmp (allow->dirs[i].real, parent) == 0)
      return 0;
  quoted = quote (parent);
  if (quoted)
    nc_error ("%s is a block device: those are used only if their own "
              "directory is allowed; if you trust this image, add allow=%s "
              "(nbdchain: --allow %s)", context, quoted, quoted);
  errno = EPERM;
  return -1;
}

/* Open PATH, canonical and below PERMIT. */
static int
open_permitted (const char *path, const struct dir *permit,
                const char *context, const struct nc_allow *allow,
                int oflags)
{
  const char *rest = path + strlen (permit->real);
  NC_CLOSE int probe = -1;
  NC_CLOSE int fd = -1;
  int flags, r;

  rest += strspn (rest, "/");
  if (*rest == '\0')
    rest = ".";
  /* Opening a device can act on it: look first. */
  probe = open_beneath (permit->fd, rest, O_PATH);
  if (probe == -1) {
    report_cause (context, path);
    return -1;
  }
  if (check_type (probe, context, path, allow) == -1)
    return -1;
  fd = open_beneath (permit->fd, rest, oflags | O_NONBLOCK | O_NOCTTY);
  if (fd == -1) {
    report_cause (context, path);
    return -1;
  }
  /* Somebody may have put another file there meanwhile. */
  if (check_type (fd, context, path, allow) == -1)
    return -1;
  flags = fcntl (fd, F_GETFL);
  if (flags == -1 || fcntl (fd, F_SETFL, flags & ~O_NONBLOCK) == -1) {
    nc_error ("%s: fcntl: %m", context);
    return -1;
  }
  r = fd;
  fd = -1;
  return r;
}

int
nc_ref_open_file (const char *text, const char *image_path,
                  const struct nc_allow *allow, int oflags, char **path)
{
  NC_FREE char *context = make_context (text, image_path);
  struct permits permits = { .allow = allow };
  NC_FREE char *full = NULL;
  NC_FREE char *real = NULL;
  const struct dir *permit = NULL;
  bool followed;
  int fd = -1;

  permits.image_dir.fd = -1;
  if (context == NULL ||
      open_image_dir (image_path, &permits.image_dir) == -1)
    goto out;
  full = text[0] == '/' ? strdup (text) :
    join_path (permits.image_dir.real, text);
  if (full == NULL)
    goto out;
  real = resolve_path (full, &permits, &permit, &followed);
  if (real == NULL) {
    if (errno == EPERM)
      report_outside (context, full, followed);
    else
      report_cause (context, full);
    goto out;
  }
  fd = open_permitted (real, permit, context, allow, oflags);
  if (fd >= 0) {
    *path = real;
    real = NULL;
  }

 out:
  {
    int err = errno;

    free_dir (&permits.image_dir);
    errno = err;
  }
  return fd;
}

/* The canonical directory of PATH and its last component, which need not
 * exist; FOLLOW: if that is a symbolic link, those of what it leads to.
 * Returns -1 with errno set. */
static int
split_path (const char *path, bool follow, char **dir, char **name)
{
  NC_FREE char *absolute = follow ? realpath (path, NULL) : NULL;

  *dir = *name = NULL;
  if (absolute == NULL)
    absolute = absolute_path (path);
  if (absolute == NULL)
    return -1;
  *name = cut_last (absolute);
  if (*name == NULL)
    return -1;
  *dir = realpath (absolute, NULL);
  return *dir ? 0 : -1;
}

char *
nc_ref_for_image (const char *path, const char *image_path)
{
  NC_FREE char *image_dir = NULL;
  NC_FREE char *image_name = NULL;
  NC_FREE char *dir = NULL;
  NC_FREE char *name = NULL;
  NC_FREE char *full = NULL;
  const char *relative = NULL, *prefix = "";
  char *ref;

  if (split_path (image_path, true, &image_dir, &image_name) == -1) {
    NC_FREE char *quoted = quote (image_path);

    if (quoted)
      nc_error ("image %s: its directory: %m", quoted);
    return NULL;
  }
  /* A link that names the backing stays: it can be made to lead elsewhere
   * later.  Those in the directories are followed. */
  if (split_path (path, false, &dir, &name) == -1) {
    NC_FREE char *quoted = quote (path);

    if (quoted)
      nc_error ("the backing %s: its directory: %m", quoted);
    return NULL;
  }
  full = join_path (dir, name);
  if (full == NULL)
    return NULL;
  if (is_below (image_dir, full)) {
    relative = full + strlen (image_dir);
    relative += strspn (relative, "/");
    /* Not to be read as a URI or a command. */
    if (relative[0] == '[' || scheme_length (relative) > 0)
      prefix = "./";
  }
  if (asprintf (&ref, "%s%s", prefix, relative ? relative : full) == -1) {
    nc_error ("asprintf: %m");
    return NULL;
  }
  if (strlen (ref) > NC_REF_MAX) {
    nc_error ("the backing's path is %zu bytes long: at most %d can be "
              "stored; move it nearer to the image", strlen (ref),
              NC_REF_MAX);
    free (ref);
    errno = EINVAL;
    return NULL;
  }
  return ref;
}

int
nc_ref_check_recorded (const char *ref)
{
  struct nc_allow *allow;
  enum nc_ref_kind kind;
  int r;

  if (nc_ref_kind (ref, &kind) == -1)
    return -1;
  if (kind == NC_REF_COMMAND) {
    nc_error ("%s: a command is never recorded in an image", ref);
    errno = EINVAL;
    return -1;
  }
  if (kind == NC_REF_FILE)
    return 0;
  allow = nc_allow_new ();
  r = allow ? nc_allow_add (allow, ref) : -1;
  nc_allow_free (allow);
  return r;
}
