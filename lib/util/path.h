/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Paths, looked up once.
 *
 * A directory may belong to another user, who can rename, replace and link
 * what is in it at any moment.  So a path is taken apart here: each component
 * is opened (O_PATH) in the directory that was opened before, and what is
 * done later with the file (open, create, link, rename, connect) is done by
 * its name in the last one.  The text of a path is for messages, and to
 * begin with.
 *
 * No call may be made with a mutex held that a request takes: a file system
 * may be slow. */
#ifndef NC_PATH_H
#define NC_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/* A file, which need not exist: a directory that is held open, and a name in
 * it. */
struct nc_path {
  int dir;                      /* O_PATH; -1: not held */
  char *name;                   /* neither "", "." nor "..", without '/' */
  char *real;                   /* DIR when it was opened: absolute, without
                                   symbolic links, "." and ".." */
  char *given;                  /* DIR as it was named, absolute */
};
#define NC_PATH_NONE { .dir = -1 }      /* no file: all else is NULL */

/* Release it; also one that is NC_PATH_NONE, which it is afterwards. */
extern void nc_path_close (struct nc_path *path)
  __attribute__ ((__nonnull__ (1)));
#define NC_PATH __attribute__ ((__cleanup__ (nc_path_close)))

/* Close its directory only: what is left is text. */
extern void nc_path_let_go (struct nc_path *path)
  __attribute__ ((__nonnull__ (1)));

/* *to becomes another one of the same file.  Returns -1, reported. */
extern int nc_path_copy (const struct nc_path *from, struct nc_path *to)
  __attribute__ ((__nonnull__ (1, 2)));

/* NAME with SUFFIX added, for a file that goes with it.  Where that would be
 * longer than NAME_MAX, what does not fit of NAME is replaced by a hash of it.
 * Allocated; NULL with errno ENOMEM, not reported. */
extern char *nc_path_name_beside (const char *name, const char *suffix)
  __attribute__ ((__nonnull__ (1, 2)));

/* The file in the same directory that is so called.  Returns -1, reported. */
extern int nc_path_beside (const struct nc_path *from, const char *suffix,
                           struct nc_path *to)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Its absolute text, allocated; NULL with errno ENOMEM, not reported. */
extern char *nc_path_text (const struct nc_path *path)
  __attribute__ ((__nonnull__ (1)));

/* The file TEXT, named by the operator.  A symbolic link is followed if it
 * belongs to us or to root, or leads to what belongs to the link's owner: so
 * nobody but these makes us open what he could not open.  *path is where the
 * file is in the end; NC_PATH_NONE for an open file without a name that TEXT
 * finds in /proc.
 *
 * nc_path_open opens it (OFLAGS as for open, and O_CLOEXEC; O_PATH is
 * allowed, O_CREAT is not) and returns the descriptor.
 * nc_path_find opens nothing but the directory: the last component may be
 * missing, and if it is a symbolic link, that is what *path names.
 * Both return -1 with errno (EPERM: a link of another user), reported; *path
 * is then NC_PATH_NONE. */
extern int nc_path_open (const char *text, int oflags, struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 3)));
extern int nc_path_find (const char *text, struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 2)));

/* nc_path_open for what nc_path_find has found. */
extern int nc_path_follow (const struct nc_path *found, int oflags,
                           struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 3)));

/* nc_path_open, which reports nothing but writes into WHY, LEN bytes, what it
 * would have said. */
#define NC_PATH_WHY 4608
extern int nc_path_try (const char *text, int oflags, struct nc_path *path,
                        char *why, size_t len)
  __attribute__ ((__nonnull__ (1, 3, 4)));

/* The directory TEXT, named by the operator, likewise: DIR of *path is that
 * directory, and NAME is NULL.  errno tells why not (EPERM: as above), and
 * nothing is reported. */
extern int nc_path_open_dir (const char *text, struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 2)));

/* Whether nobody but root can change what TEXT, absolute, names: root owns it
 * and each directory above, and no other user can write to these (but to one
 * with the sticky bit, such as /tmp, in which he cannot replace what root
 * owns).  If not, errno is EPERM, and *why says what is wrong with which of
 * them: allocated, NULL if there is no memory.  With ENOENT something is
 * missing, in a directory in which only root can make it. */
extern bool nc_path_is_roots (const char *text, char **why)
  __attribute__ ((__nonnull__ (1, 2)));

/* For rules of other kinds: a walk along a path. */

#define NC_WALK_LEVELS 128      /* directories above each other, at most */
#define NC_WALK_LINKS 40        /* as the kernel follows */

struct nc_walk {
  const struct nc_walk_rules *rules;
  void *opaque;
  struct {
    int fd;                     /* O_PATH */
    size_t len;                 /* of its text */
    bool inside;                /* for the rules */
  } level[NC_WALK_LEVELS];      /* the first is where the walk began */
  unsigned n;                   /* the last is where it is */
  char *text;                   /* absolute, no links, of that */
  unsigned n_links;             /* that were followed; the last one with nothing
                                   behind it: */
  int link_dir;                 /* where it is */
  char *link;                   /* its name; NULL: there was none */
};

/* Each returns 0, or -1 with the errno with which the walk ends.  REST is how
 * many bytes of the path are yet to be walked, with those of links in it. */
struct nc_walk_rules {
  /* The walk has come to what ST tells of. */
  int (*come) (struct nc_walk *walk, const struct stat *st, size_t rest);

  /* The symbolic link that ST tells of is to be followed. */
  int (*follow) (struct nc_walk *walk, const struct stat *st, size_t rest);

  /* What is called TEXT could not be opened, see errno.  NULL: no matter. */
  int (*lost) (struct nc_walk *walk, const char *text);

  /* ".." of where the walk began is looked up from "/" on by its text, not by
   * the directory's own "..". */
  bool from_root;
};

/* Begin at the directory FD (a copy of it is made) that is called TEXT; FD is
 * -1: at the root.  Returns -1 with errno.  A walk is to be ended in any case.
 */
extern int nc_walk_begin (struct nc_walk *walk,
                          const struct nc_walk_rules *rules, void *opaque,
                          int fd, const char *text)
  __attribute__ ((__nonnull__ (1, 2, 5)));

/* Walk on along PATH (to the root first, if it is absolute), following symbolic
 * links.  Returns -1 with errno: that of the rules, ELOOP, or the system's. */
extern int nc_walk_along (struct nc_walk *walk, const char *path)
  __attribute__ ((__nonnull__ (1, 2)));

/* *path becomes the file to which the walk has come (not if it is where the
 * walk began); GIVEN is the text by which its directory was named, NULL: none
 * but the real one.  Returns -1 with errno: EISDIR if it is a directory, ENOMEM. */
extern int nc_walk_get_path (const struct nc_walk *walk, const char *given,
                             struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 3)));

extern void nc_walk_end (struct nc_walk *walk)
  __attribute__ ((__nonnull__ (1)));

/* PATH made absolute: "//" and "." are left out, ".." and symbolic links
 * stay.  NULL with errno, not reported. */
extern char *nc_path_absolute (const char *path)
  __attribute__ ((__nonnull__ (1)));

/* Cut the last component off the absolute PATH, which becomes that of its
 * directory; "/" stays. */
extern void nc_path_cut_last (char *path)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_PATH_H */
