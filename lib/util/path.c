/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Walks along paths, a component at a time.
 *
 * The invariant: a walk holds a descriptor of each directory that it is in,
 * and a component is opened relative to the one before it, never by a longer
 * path.  ".." goes back to the directory that the walk came from, which is
 * held, and not to what is above it by now.  Symbolic links are read, never
 * followed by the kernel; magic links of /proc are taken for their text.
 */

#include <config.h>

#include "util/path.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <xxhash.h>

#include "util/report.h"
#include "util/scope.h"

/* Text. */

void
nc_path_cut_last (char *path)
{
  char *slash = strrchr (path, '/');

  slash[slash == path ? 1 : 0] = '\0';
}

/* DIR/NAME, or /NAME for the root. */
static char *
join (const char *dir, const char *name)
{
  char *path;

  return asprintf (&path, "%s/%s", strcmp (dir, "/") == 0 ? "" : dir,
                   name) == -1 ? NULL : path;
}

char *
nc_path_absolute (const char *path)
{
  NC_FREE char *cwd = path[0] == '/' ? NULL : getcwd (NULL, 0);
  NC_FREE char *joined = NULL;
  const char *in = path;
  char *out, *p;

  if (path[0] != '/') {
    in = joined = cwd ? join (cwd, path) : NULL;
    if (in == NULL)
      return NULL;
  }
  p = out = malloc (strlen (in) + 2);
  if (out == NULL)
    return NULL;
  while (*(in += strspn (in, "/"))) {
    const size_t len = strcspn (in, "/");

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

char *
nc_path_name_beside (const char *name, const char *suffix)
{
  const size_t room = NAME_MAX - strlen (suffix);
  char *beside;
  int r;

  if (strlen (name) <= room)
    r = asprintf (&beside, "%s%s", name, suffix);
  else
    r = asprintf (&beside, "%.*s-%016" PRIx64 "%s", (int) (room - 17), name,
                  (uint64_t) XXH3_64bits (name, strlen (name)), suffix);
  return r == -1 ? NULL : beside;
}

/* Walks. */

static void
pop (struct nc_walk *walk)
{
  close (walk->level[--walk->n].fd);
  if (walk->n > 0)
    walk->text[walk->level[walk->n - 1].len] = '\0';
}

/* Take over FD, known as TEXT (taken over, too). */
static int
push (struct nc_walk *walk, int fd, char *text)
{
  if (walk->n == NC_WALK_LEVELS) {
    close (fd);
    free (text);
    errno = ENAMETOOLONG;
    return -1;
  }
  free (walk->text);
  walk->text = text;
  walk->level[walk->n].fd = fd;
  walk->level[walk->n].len = strlen (text);
  walk->level[walk->n].inside = false;
  walk->n++;
  return 0;
}

/* The walk is somewhere: ask the rules. */
static int
come (struct nc_walk *walk, size_t rest)
{
  struct stat st;

  if (fstat (walk->level[walk->n - 1].fd, &st) == -1)
    return -1;
  return walk->rules->come (walk, &st, rest);
}

int
nc_walk_begin (struct nc_walk *walk, const struct nc_walk_rules *rules,
               void *opaque, int fd, const char *text)
{
  char *copy = strdup (text);

  walk->rules = rules;
  walk->opaque = opaque;
  walk->n = walk->n_links = 0;
  walk->text = walk->link = NULL;
  if (copy == NULL)
    return -1;
  fd = fd == -1 ? open ("/", O_PATH | O_DIRECTORY | O_CLOEXEC)
    : fcntl (fd, F_DUPFD_CLOEXEC, 0);
  if (fd == -1) {
    free (copy);
    return -1;
  }
  return push (walk, fd, copy) == -1 ? -1 : come (walk, SIZE_MAX);
}

static void
forget_link (struct nc_walk *walk)
{
  if (walk->link)
    close (walk->link_dir);
  free (walk->link);
  walk->link = NULL;
}

void
nc_walk_end (struct nc_walk *walk)
{
  const int err = errno;

  forget_link (walk);
  while (walk->n > 0)
    pop (walk);
  free (walk->text);
  walk->text = NULL;
  errno = err;
}

static int
go_to_root (struct nc_walk *walk, size_t rest)
{
  const int fd = open ("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  char *text = strdup ("/");

  if (fd == -1 || text == NULL) {
    if (fd >= 0)
      close (fd);
    free (text);
    return -1;
  }
  while (walk->n > 0)
    pop (walk);
  return push (walk, fd, text) == -1 ? -1 : come (walk, rest);
}

/* Go to the directory above.  Where the walk began there may be none that is
 * held: with rules that have it looked up from the root, *link (allocated) is
 * the path of it. */
static int
go_up (struct nc_walk *walk, size_t rest, char **link)
{
  int fd;

  if (walk->n == 1 && strcmp (walk->text, "/") != 0) {
    if (walk->rules->from_root) {
      *link = strdup (walk->text);
      if (*link == NULL)
        return -1;
      nc_path_cut_last (*link);
      return 0;
    }
    fd = openat (walk->level[0].fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd == -1)
      return -1;
    close (walk->level[0].fd);
    nc_path_cut_last (walk->text);
    walk->level[0].fd = fd;
    walk->level[0].len = strlen (walk->text);
    walk->level[0].inside = false;
  }
  else if (walk->n > 1)
    pop (walk);
  return come (walk, rest);
}

/* Open the component NAME.  A directory is opened as one, which mounts it if
 * it is to be (autofs). */
static int
open_component (const struct nc_walk *walk, const char *name)
{
  const int dir = walk->level[walk->n - 1].fd;
  const int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  const int fd = openat (dir, name, flags | O_DIRECTORY);

  return fd == -1 && errno == ENOTDIR ? openat (dir, name, flags) : fd;
}

/* The last link that was followed is NAME, here. */
static int
note_link (struct nc_walk *walk, const char *name)
{
  const int dir = fcntl (walk->level[walk->n - 1].fd, F_DUPFD_CLOEXEC, 0);
  char *copy = strdup (name);

  forget_link (walk);
  if (dir >= 0 && copy) {
    walk->link_dir = dir;
    walk->link = copy;
    return 0;
  }
  if (dir >= 0)
    close (dir);
  free (copy);
  return -1;
}

/* Read the symbolic link FD, called NAME, which may be followed. */
static char *
read_link (struct nc_walk *walk, int fd, const char *name,
           const struct stat *st, size_t rest)
{
  char text[PATH_MAX];
  const ssize_t n = readlinkat (fd, "", text, sizeof text);

  if (n == -1)
    return NULL;
  if (n == sizeof text || walk->n_links++ == NC_WALK_LINKS) {
    errno = n == sizeof text ? ENAMETOOLONG : ELOOP;
    return NULL;
  }
  if (walk->rules->follow (walk, st, rest) == -1 ||
      (rest == 0 && note_link (walk, name) == -1))
    return NULL;
  return strndup (text, n);
}

/* Go to NAME; or, if that is a symbolic link, set *link (allocated) to what it
 * says. */
static int
go_down (struct nc_walk *walk, const char *name, size_t rest, char **link)
{
  char *text = join (walk->text, name);
  struct stat st;
  int fd, r;

  if (text == NULL)
    return -1;
  fd = open_component (walk, name);
  if (fd == -1) {
    r = walk->rules->lost ? walk->rules->lost (walk, text) : -1;
    free (text);
    return r;
  }
  if (fstat (fd, &st) == 0 && !S_ISLNK (st.st_mode))
    return push (walk, fd, text) == -1 ? -1
      : walk->rules->come (walk, &st, rest);
  *link = read_link (walk, fd, name, &st, rest);
  close (fd);
  free (text);
  return *link ? 0 : -1;
}

/* What is to be walked yet: the link, then what came behind it. */
static char *
insert_link (char *link, const char *behind)
{
  char *path;
  const int r = asprintf (&path, "%s%s%s", link, *behind ? "/" : "", behind);

  free (link);
  return r == -1 ? NULL : path;
}

int
nc_walk_along (struct nc_walk *walk, const char *path)
{
  NC_FREE char *rest = strdup (path);
  char *in = rest, *name, *link;
  int r = 0;

  if (rest == NULL)
    return -1;
  for (;;) {
    if (*in == '/') {
      in += strspn (in, "/");
      if (go_to_root (walk, strlen (in)) == -1)
        return -1;
    }
    link = NULL;
    while (*in && r == 0 && link == NULL) {
      name = in;
      in += strcspn (in, "/");
      if (*in)
        *in++ = '\0';
      in += strspn (in, "/");
      if (strcmp (name, ".") == 0)
        r = come (walk, strlen (in));
      else if (strcmp (name, "..") == 0)
        r = go_up (walk, strlen (in), &link);
      else
        r = go_down (walk, name, strlen (in), &link);
    }
    if (r == -1 || link == NULL)
      return r;
    link = insert_link (link, in);
    if (link == NULL)
      return -1;
    free (rest);
    rest = in = link;
  }
}

int
nc_walk_get_path (const struct nc_walk *walk, const char *given,
                  struct nc_path *path)
{
  *path = (struct nc_path) NC_PATH_NONE;
  if (walk->n < 2) {
    errno = EISDIR;
    return -1;
  }
  path->dir = fcntl (walk->level[walk->n - 2].fd, F_DUPFD_CLOEXEC, 0);
  path->name = strdup (strrchr (walk->text, '/') + 1);
  path->real = strndup (walk->text, walk->level[walk->n - 2].len);
  path->given = given ? strdup (given)
    : strndup (walk->text, walk->level[walk->n - 2].len);
  if (path->dir >= 0 && path->name && path->real && path->given)
    return 0;
  nc_path_close (path);
  return -1;
}

/* Files by directory and name. */

void
nc_path_close (struct nc_path *path)
{
  const int err = errno;

  if (path->dir >= 0)
    close (path->dir);
  free (path->name);
  free (path->real);
  free (path->given);
  *path = (struct nc_path) NC_PATH_NONE;
  errno = err;
}

void
nc_path_let_go (struct nc_path *path)
{
  if (path->dir >= 0)
    close (path->dir);
  path->dir = -1;
}

char *
nc_path_text (const struct nc_path *path)
{
  return join (path->real, path->name);
}

static int
copy (const struct nc_path *from, const char *suffix, struct nc_path *to)
{
  *to = (struct nc_path) {
    .dir = fcntl (from->dir, F_DUPFD_CLOEXEC, 0),
    .real = strdup (from->real),
    .given = strdup (from->given),
  };
  if (from->name)
    to->name = nc_path_name_beside (from->name, suffix);
  if (to->dir >= 0 && to->real && to->given &&
      (to->name || from->name == NULL))
    return 0;
  nc_error ("%s/%s%s: %m", from->real, from->name ? : "", suffix);
  nc_path_close (to);
  return -1;
}

int
nc_path_copy (const struct nc_path *from, struct nc_path *to)
{
  return copy (from, "", to);
}

int
nc_path_beside (const struct nc_path *from, const char *suffix,
                struct nc_path *to)
{
  return copy (from, suffix, to);
}

/* The operator's paths. */

/* Links of others that are being followed, the last one first. */
struct owners {
  struct {
    uid_t uid;
    size_t rest;                /* of the path, behind the link */
  } link[NC_WALK_LINKS];
  unsigned n;
  bool refused;                 /* one led to what is not its owner's: */
  uid_t link_uid, uid;
  char *target;
};

/* What a link of another user leads to must be his. */
static int
check_owner (struct nc_walk *walk, const struct stat *st, size_t rest)
{
  struct owners *owners = walk->opaque;

  for (; owners->n > 0 && owners->link[owners->n - 1].rest >= rest;
       owners->n--)
    if (owners->link[owners->n - 1].uid != st->st_uid) {
      owners->refused = true;
      owners->link_uid = owners->link[owners->n - 1].uid;
      owners->uid = st->st_uid;
      owners->target = strdup (walk->text);
      errno = EPERM;
      return -1;
    }
  return 0;
}

static int
note_owner (struct nc_walk *walk, const struct stat *st, size_t rest)
{
  struct owners *owners = walk->opaque;

  if (st->st_uid == 0 || st->st_uid == geteuid ())
    return 0;
  owners->link[owners->n].uid = st->st_uid;
  owners->link[owners->n++].rest = rest;
  return 0;
}

static const struct nc_walk_rules operator_rules = {
  .come = check_owner,
  .follow = note_owner,
};

static int
walk_operators (struct nc_walk *walk, struct owners *owners, const char *text)
{
  NC_CLOSE int cwd = -1;
  NC_FREE char *cwd_text = NULL;

  if (text[0] != '/') {
    cwd = open (".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    cwd_text = cwd == -1 ? NULL : getcwd (NULL, 0);
    if (cwd_text == NULL)
      return -1;
  }
  if (*text == '\0') {
    errno = ENOENT;
    return -1;
  }
  return nc_walk_begin (walk, &operator_rules, owners, cwd,
                        cwd_text ? : "/") == -1 ? -1
    : nc_walk_along (walk, text);
}

/* Why TEXT was not opened.  errno stays. */
static void
explain (const char *text, const struct owners *owners, char *why, size_t len)
{
  if (!owners->refused)
    snprintf (why, len, "%s: %m", text);
  else
    snprintf (why, len, "%s: a symbolic link of user %u leads to %s, of user "
              "%u: links of another user are followed only to what is his; if "
              "that is meant, name it itself", text,
              (unsigned) owners->link_uid, owners->target ? : "a file",
              (unsigned) owners->uid);
}

/* TEXT without its last component, absolute. */
static char *
given_dir (const char *text)
{
  char *given = nc_path_absolute (text);

  if (given)
    nc_path_cut_last (given);
  return given;
}

/* Open the file to which the walk has come. */
static int
open_found (const struct nc_walk *walk, const char *given, int oflags,
            struct nc_path *path)
{
  if (nc_walk_get_path (walk, given, path) == -1)
    return -1;
  if (oflags & O_PATH)
    return fcntl (walk->level[walk->n - 1].fd, F_DUPFD_CLOEXEC, 0);
  return openat (path->dir, path->name, oflags | O_NOFOLLOW | O_CLOEXEC);
}

/* The last resort where a path leads nowhere: one of the open files in /proc
 * need not have another name.  /dev/stdout, /dev/fd/3 lead there.  A link of
 * another user does not. */
static int
open_open_file (const struct nc_walk *walk, const struct owners *owners,
                int oflags)
{
  struct statfs fs;

  if (walk->link && owners->n == 0 && fstatfs (walk->link_dir, &fs) == 0 &&
      fs.f_type == PROC_SUPER_MAGIC)
    return openat (walk->link_dir, walk->link, oflags | O_CLOEXEC);
  errno = ENOENT;
  return -1;
}

/* The directory of TEXT, and a copy of what comes behind it. */
static int
split (const char *text, char **dir, char **name)
{
  const char *slash = strrchr (text, '/');
  const char *last = slash ? slash + 1 : text;

  if (*last == '\0' || strcmp (last, ".") == 0 || strcmp (last, "..") == 0) {
    errno = *text ? EISDIR : ENOENT;
    return -1;
  }
  *name = strdup (last);
  *dir = slash == NULL ? strdup (".") : slash == text ? strdup ("/")
    : strndup (text, slash - text);
  return *name && *dir ? 0 : -1;
}

/* nc_path_find, with the reason in WHY. */
static int
find (const char *text, struct nc_path *path, char *why, size_t len)
{
  NC_FREE char *dir = NULL;
  struct nc_walk walk = { .n = 0 };
  struct owners owners = { .n = 0 };

  *path = (struct nc_path) NC_PATH_NONE;
  if (split (text, &dir, &path->name) == 0 &&
      walk_operators (&walk, &owners, dir) == 0) {
    path->given = given_dir (text);
    path->real = strdup (walk.text);
    path->dir = path->given && path->real
      ? fcntl (walk.level[walk.n - 1].fd, F_DUPFD_CLOEXEC, 0) : -1;
  }
  if (path->dir == -1) {
    explain (text, &owners, why, len);
    nc_path_close (path);
  }
  nc_walk_end (&walk);
  free (owners.target);
  return path->dir >= 0 ? 0 : -1;
}

int
nc_path_try (const char *text, int oflags, struct nc_path *path, char *why,
             size_t len)
{
  NC_FREE char *given = given_dir (text);
  struct nc_walk walk = { .n = 0 };
  struct owners owners = { .n = 0 };
  int fd = -1;

  *path = (struct nc_path) NC_PATH_NONE;
  if (given && walk_operators (&walk, &owners, text) == 0)
    fd = open_found (&walk, given, oflags, path);
  if (fd == -1 && errno == ENOENT)
    fd = open_open_file (&walk, &owners, oflags);
  if (fd == -1) {
    explain (text, &owners, why, len);
    nc_path_close (path);
  }
  nc_walk_end (&walk);
  free (owners.target);
  return fd;
}

int
nc_path_open (const char *text, int oflags, struct nc_path *path)
{
  char why[NC_PATH_WHY];
  const int fd = nc_path_try (text, oflags, path, why, sizeof why);

  if (fd == -1)
    nc_error ("%s", why);
  return fd;
}

int
nc_path_follow (const struct nc_path *found, int oflags, struct nc_path *path)
{
  struct nc_walk walk = { .n = 0 };
  struct owners owners = { .n = 0 };
  char why[NC_PATH_WHY];
  int fd = -1;

  *path = (struct nc_path) NC_PATH_NONE;
  if (nc_walk_begin (&walk, &operator_rules, &owners, found->dir,
                     found->real) == 0 &&
      nc_walk_along (&walk, found->name) == 0)
    fd = open_found (&walk, found->given, oflags, path);
  if (fd == -1 && errno == ENOENT)
    fd = open_open_file (&walk, &owners, oflags);
  if (fd == -1) {
    NC_FREE char *text = nc_path_text (found);

    explain (text ? : found->name, &owners, why, sizeof why);
    nc_error ("%s", why);
    nc_path_close (path);
  }
  nc_walk_end (&walk);
  free (owners.target);
  return fd;
}

int
nc_path_open_dir (const char *text, struct nc_path *path)
{
  struct nc_walk walk = { .n = 0 };
  struct owners owners = { .n = 0 };
  struct stat st;

  *path = (struct nc_path) NC_PATH_NONE;
  path->given = nc_path_absolute (text);
  if (path->given && walk_operators (&walk, &owners, text) == 0 &&
      fstat (walk.level[walk.n - 1].fd, &st) == 0) {
    errno = ENOTDIR;
    if (S_ISDIR (st.st_mode)) {
      path->real = strdup (walk.text);
      path->dir = path->real
        ? fcntl (walk.level[walk.n - 1].fd, F_DUPFD_CLOEXEC, 0) : -1;
    }
  }
  nc_walk_end (&walk);
  free (owners.target);
  if (path->dir >= 0)
    return 0;
  nc_path_close (path);
  return -1;
}

int
nc_path_find (const char *text, struct nc_path *path)
{
  char why[NC_PATH_WHY];
  const int r = find (text, path, why, sizeof why);

  if (r == -1)
    nc_error ("%s", why);
  return r;
}

/* What nobody but root can change. */

/* Say what is wrong. */
__attribute__ ((__format__ (printf, 2, 3)))
static int
distrust (struct nc_walk *walk, const char *fmt, ...)
{
  char **why = walk->opaque;
  va_list args;
  int r;

  va_start (args, fmt);
  r = vasprintf (why, fmt, args);
  va_end (args);
  if (r == -1)
    *why = NULL;
  errno = EPERM;
  return -1;
}

static int
check_trust (struct nc_walk *walk, const struct stat *st, size_t rest)
{
  const bool sticky = S_ISDIR (st->st_mode) && (st->st_mode & S_ISVTX);

  if (st->st_uid != 0)
    return distrust (walk, "%s belongs to user %u", walk->text,
                     (unsigned) st->st_uid);
  if ((st->st_mode & 022) && !(sticky && rest > 0))
    return distrust (walk, "others than root may write to %s (mode %04o)",
                     walk->text, (unsigned) st->st_mode & 07777);
  return 0;
}

static int
check_link (struct nc_walk *walk, const struct stat *st,
            size_t rest __attribute__ ((__unused__)))
{
  return st->st_uid == 0 ? 0
    : distrust (walk, "a symbolic link in %s belongs to user %u", walk->text,
                (unsigned) st->st_uid);
}

/* Who could make what is missing? */
static int
check_missing (struct nc_walk *walk, const char *text)
{
  const int err = errno;
  struct stat st;

  if (err == ENOENT && fstat (walk->level[walk->n - 1].fd, &st) == 0 &&
      (st.st_mode & 022))
    return distrust (walk, "others than root may make %s", text);
  errno = err;
  return -1;
}

bool
nc_path_is_roots (const char *text, char **why)
{
  static const struct nc_walk_rules rules = {
    .come = check_trust, .follow = check_link, .lost = check_missing,
  };
  struct nc_walk walk = { .n = 0 };
  bool is;
  int err;

  *why = NULL;
  is = nc_walk_begin (&walk, &rules, why, -1, "/") == 0 &&
    nc_walk_along (&walk, text) == 0;
  err = errno;
  if (!is && *why == NULL && asprintf (why, "%s: %m", text) == -1)
    *why = NULL;
  nc_walk_end (&walk);
  errno = err;
  return is;
}
