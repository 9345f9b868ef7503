/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Follows references found inside an image, where that is permitted.
 *
 * The invariant: whatever the text of a reference is, and whatever somebody
 * renames meanwhile, a file that is opened here, and a socket that is
 * connected to, lies below the directory that permits it.  chain/path-resolve.c
 * resolves the path, once, from directories that are held open; what it found
 * is opened by its name in the directory in which it was found.
 */

#include <config.h>

#include "chain/ref.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "chain/path-resolve.h"
#include "nbd/uri.h"
#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"
#include "util/unix-socket.h"

struct nc_allow {
  struct nc_path *dirs;         /* without a name */
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
 * frees it; NULL is reported.  Without the directory of the image nothing can
 * be followed. */
static char *
make_context (const char *text, const struct nc_path *image)
{
  NC_FREE char *image_path = NULL;
  NC_FREE char *qtext = quote (text);
  NC_FREE char *qimage = NULL;
  char *context;

  if (image->dir == -1) {
    if (qtext)
      nc_error ("the reference %s: the directory of its image is not known",
                qtext);
    errno = EINVAL;
    return NULL;
  }
  image_path = nc_path_text (image);
  if (image_path == NULL)
    nc_error ("malloc: %m");
  qimage = image_path ? quote (image_path) : NULL;
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

/* Whether PATH lies below DIR, and not at it.  Both are canonical. */
static bool
is_below (const char *dir, const char *path)
{
  size_t len = strlen (dir);

  if (strcmp (dir, "/") == 0)
    return path[0] == '/' && path[1] != '\0';
  return strncmp (dir, path, len) == 0 && path[len] == '/';
}

/* The directory of PATH, absolute, by its text only: without "..", and without
 * looking at the disk: what to suggest. */
static char *
lexical_dir (const char *path)
{
  char *dir = nc_path_absolute (path), *in, *p;

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
  nc_path_cut_last (dir);
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
    nc_path_close (&allow->dirs[i]);
  for (i = 0; i < allow->n_uris; ++i)
    nc_uri_free (&allow->uris[i]);
  free (allow->dirs);
  free (allow->uris);
  free (allow);
}

static int
add_dir (struct nc_allow *allow, const char *text, const char *quoted)
{
  struct nc_path dir, *dirs;

  if (nc_path_open_dir (text, &dir) == -1) {
    if (errno == ENOENT)
      nc_error ("allow=%s: there is no such directory", quoted);
    else if (errno == ENOTDIR)
      nc_error ("allow=%s is not a directory: allow the directory that holds "
                "the file, or an NBD URI", quoted);
    else if (errno == EPERM)
      nc_error ("allow=%s: a symbolic link of another user leads to what is "
                "not his: name the directory itself", quoted);
    else
      nc_error ("allow=%s: %m", quoted);
    return -1;
  }
  dirs = reallocarray (allow->dirs, allow->n_dirs + 1, sizeof dir);
  if (dirs == NULL) {
    nc_error ("realloc: %m");
    nc_path_close (&dir);
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
    nc_uri_free (&uri);
    return -1;
  }
  uris = reallocarray (allow->uris, allow->n_uris + 1, sizeof uri);
  if (uris == NULL) {
    nc_error ("realloc: %m");
    nc_uri_free (&uri);
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

/* Whether SOCKET has the name of the socket ALLOWED, and is in the same
 * directory.  Neither need exist. */
static bool
is_same_socket (const char *allowed, const char *socket)
{
  NC_FREE char *allowed_dir = nc_path_absolute (allowed);
  NC_FREE char *dir = nc_path_absolute (socket);
  NC_PATH struct nc_path permit = NC_PATH_NONE;
  NC_PATH struct nc_path found = NC_PATH_NONE;
  const struct nc_permits permits = { .image = &permit };
  NC_CLOSE int fd = -1;
  struct stat st, st2;
  bool followed;

  if (allowed_dir == NULL || dir == NULL)
    return false;
  if (strcmp (allowed_dir, dir) == 0)
    return true;
  if (strcmp (strrchr (allowed_dir, '/'), strrchr (dir, '/')) != 0)
    return false;
  nc_path_cut_last (allowed_dir);
  nc_path_cut_last (dir);
  if (nc_path_open_dir (allowed_dir, &permit) == -1)
    return false;
  fd = nc_resolve (&permits, dir, &found, &followed);
  return fd >= 0 && fstat (fd, &st) == 0 && fstat (permit.dir, &st2) == 0 &&
    st.st_dev == st2.st_dev && st.st_ino == st2.st_ino;
}

/* The URI that allows URI, or NULL. */
static const struct nc_uri *
find_allowed (const struct nc_uri *uri, const struct nc_allow *allow)
{
  size_t i;

  for (i = 0; allow && i < allow->n_uris; ++i) {
    const struct nc_uri *a = &allow->uris[i];

    if (strcmp (a->scheme, uri->scheme) != 0 ||
        !export_is_allowed (a->export_name, uri->export_name))
      continue;
    if (uri->socket ? is_same_socket (a->socket, uri->socket)
        : strcmp (a->host, uri->host) == 0 && a->port == uri->port)
      return a;
  }
  return NULL;
}

/* A socket below a directory that permits it, wherever that is when it is
 * connected to. */
struct socket_ref {
  char *text;
  struct nc_path image;
  struct nc_path *dirs;         /* that were allowed */
  size_t n_dirs;
};

static void
socket_ref_free (void *opaque)
{
  struct socket_ref *ref = opaque;
  size_t i;

  nc_path_close (&ref->image);
  for (i = 0; i < ref->n_dirs; ++i)
    nc_path_close (&ref->dirs[i]);
  free (ref->dirs);
  free (ref->text);
  free (ref);
}

/* A server may make its directory again when it restarts: then what the
 * operator named is that one. */
static void
open_again_if_removed (struct nc_path *dir)
{
  struct nc_path again;
  struct stat st;

  if (fstat (dir->dir, &st) == -1 || st.st_nlink > 0 ||
      nc_path_open_dir (dir->given, &again) == -1)
    return;
  nc_path_close (dir);
  *dir = again;
}

static int
socket_ref_find (void *opaque, char *why, size_t len)
{
  struct socket_ref *ref = opaque;
  const struct nc_permits permits = {
    .image = &ref->image, .dirs = ref->dirs, .n_dirs = ref->n_dirs,
  };
  NC_PATH struct nc_path path = NC_PATH_NONE;
  bool followed;
  size_t i;
  int fd;

  for (i = 0; i < ref->n_dirs; ++i)
    open_again_if_removed (&ref->dirs[i]);
  fd = nc_resolve (&permits, ref->text, &path, &followed);
  if (fd == -1 && errno == EPERM)
    snprintf (why, len, "%s leads outside the directory of the image and all "
              "that was allowed", ref->text);
  else if (fd == -1)
    snprintf (why, len, "%s: %m", ref->text);
  return fd;
}

/* Find SOCKET by PERMITS from now on. */
static int
make_finder (const char *socket, const struct nc_permits *permits,
             struct nc_socket_finder *finder)
{
  struct socket_ref *ref = calloc (1, sizeof *ref);

  if (ref == NULL) {
    nc_error ("calloc: %m");
    return -1;
  }
  ref->image.dir = -1;
  ref->text = strdup (socket);
  ref->dirs = calloc (permits->n_dirs + 1, sizeof *ref->dirs);
  if (ref->text == NULL || ref->dirs == NULL) {
    nc_error ("malloc: %m");
    goto fail;
  }
  if (nc_path_copy (permits->image, &ref->image) == -1)
    goto fail;
  for (; ref->n_dirs < permits->n_dirs; ++ref->n_dirs)
    if (nc_path_copy (&permits->dirs[ref->n_dirs],
                      &ref->dirs[ref->n_dirs]) == -1)
      goto fail;
  *finder = (struct nc_socket_finder) {
    .find = socket_ref_find, .free = socket_ref_free, .opaque = ref,
  };
  return 0;

 fail:
  socket_ref_free (ref);
  return -1;
}

/* Whether the socket lies in a directory that permits it.  A server that is
 * not there yet may come. */
static bool
is_permitted (const char *socket, const struct nc_permits *permits)
{
  NC_PATH struct nc_path path = NC_PATH_NONE;
  bool followed;
  NC_CLOSE int fd = nc_resolve (permits, socket, &path, &followed);

  return fd >= 0 || errno == ENOENT;
}

static struct nc_permits
permits_of (const struct nc_path *image, const struct nc_allow *allow)
{
  return (struct nc_permits) {
    .image = image,
    .dirs = allow ? allow->dirs : NULL,
    .n_dirs = allow ? allow->n_dirs : 0,
  };
}

int
nc_ref_check_uri (const char *text, const struct nc_path *image,
                  const struct nc_allow *allow,
                  struct nc_socket_finder *finder)
{
  const struct nc_permits permits = permits_of (image, allow);
  NC_FREE char *context = make_context (text, image);
  __attribute__ ((__cleanup__ (nc_uri_free))) struct nc_uri uri = { 0 };
  const struct nc_uri *allowed;
  NC_FREE char *dir = NULL;
  NC_FREE char *quoted = NULL;

  *finder = (struct nc_socket_finder) { 0 };
  if (context == NULL)
    return -1;
  if (nc_uri_parse (text, context, EPERM, &uri) == -1)
    return -1;
  allowed = find_allowed (&uri, allow);
  /* What the operator named is trusted to lead where it leads. */
  if (allowed)
    return uri.socket ? nc_socket_finder_init (finder, allowed->socket) : 0;
  if (uri.socket == NULL) {
    quoted = quote (text);
    if (quoted)
      nc_error ("%s has not been allowed: if you trust this image, add "
                "allow=%s (nbdchain: --allow %s)", context, quoted, quoted);
    errno = EPERM;
    return -1;
  }
  if (is_permitted (uri.socket, &permits))
    return make_finder (uri.socket, &permits, finder);
  dir = lexical_dir (uri.socket);
  quoted = dir ? quote (dir) : NULL;
  if (quoted)
    nc_error ("%s has its socket outside the directory of the image and all "
              "that was allowed: if you trust this image, add the URI or "
              "allow=%s (nbdchain: --allow %s)", context, quoted, quoted);
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
                "with base=, that of a data file with data-file= (nbdchain: "
                "--base, --data-file)", context, quoted);
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

/* Whether the directory DIR_FD was allowed itself. */
static bool
is_allowed_dir (int dir_fd, const struct nc_allow *allow)
{
  struct stat st, dir;
  size_t i;

  if (fstat (dir_fd, &st) == -1)
    return false;
  for (i = 0; allow && i < allow->n_dirs; ++i)
    if (fstat (allow->dirs[i].dir, &dir) == 0 &&
        dir.st_dev == st.st_dev && dir.st_ino == st.st_ino)
      return true;
  return false;
}

/* Refuse everything but files and block devices; those only in a directory
 * that was itself allowed. */
static int
check_type (int fd, const char *context, const struct nc_path *path,
            const struct nc_allow *allow)
{
  NC_FREE char *quoted = NULL;
  const char *what;
  struct stat st;

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
  default: what = "of a type that holds no data";
  }
  if (what) {
    nc_error ("%s is %s: an image is a file or a block device",
              context, what);
    errno = EPERM;
    return -1;
  }
  if (is_allowed_dir (path->dir, allow))
    return 0;
  quoted = quote (path->real);
  if (quoted)
    nc_error ("%s is a block device: those are used only if their own "
              "directory is allowed; if you trust this image, add allow=%s "
              "(nbdchain: --allow %s)", context, quoted, quoted);
  errno = EPERM;
  return -1;
}

/* Open what was resolved as PATH, and is PROBE. */
static int
open_permitted (int probe, const struct nc_path *path, const char *context,
                const char *full, const struct nc_allow *allow, int oflags)
{
  NC_CLOSE int fd = -1;
  int flags, r;

  /* Opening a device can act on it: look first. */
  if (check_type (probe, context, path, allow) == -1)
    return -1;
  fd = openat (path->dir, path->name, oflags | O_NOFOLLOW | O_NONBLOCK |
               O_NOCTTY | O_CLOEXEC);
  if (fd == -1) {
    report_cause (context, full);
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

static void
report_unresolved (const char *context, const char *full, bool followed)
{
  switch (errno) {
  case EPERM:
    report_outside (context, full, followed);
    break;
  case EISDIR:
    nc_error ("%s is a directory: an image is a file or a block device",
              context);
    errno = EPERM;
    break;
  default:
    report_cause (context, full);
  }
}

int
nc_ref_open_file (const char *text, const struct nc_path *image,
                  const struct nc_allow *allow, int oflags,
                  struct nc_path *path)
{
  const struct nc_permits permits = permits_of (image, allow);
  NC_FREE char *context = make_context (text, image);
  NC_FREE char *full = NULL;
  NC_CLOSE int probe = -1;
  bool followed;
  int fd;

  *path = (struct nc_path) NC_PATH_NONE;
  if (context == NULL)
    return -1;
  if (asprintf (&full, "%s%s%s", text[0] == '/' ? "" : image->real,
                text[0] == '/' ? "" : "/", text) == -1) {
    full = NULL;
    nc_error ("asprintf: %m");
    return -1;
  }
  probe = nc_resolve (&permits, text, path, &followed);
  if (probe == -1) {
    report_unresolved (context, full, followed);
    return -1;
  }
  fd = open_permitted (probe, path, context, full, allow, oflags);
  if (fd == -1)
    nc_path_close (path);
  return fd;
}

char *
nc_ref_for_image (const struct nc_path *path, const struct nc_path *image)
{
  NC_FREE char *full = nc_path_text (path);
  const char *relative = NULL, *prefix = "";
  char *ref;

  if (full == NULL) {
    nc_error ("malloc: %m");
    return NULL;
  }
  if (is_below (image->real, full)) {
    relative = full + strlen (image->real);
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
