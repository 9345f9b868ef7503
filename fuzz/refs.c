/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* References found in an image: paths and URIs.  Input: what the operator
 * allowed, a zero byte, the reference.
 *
 * What must hold: a file that is opened lies below the directory of the
 * image, and a URI that is accepted can carry no parameter but a socket. */

#include <config.h>

#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain/ref.h"
#include "util/path.h"
#include "util/unix-socket.h"

/* The directory of the image, without symbolic links, and the image. */
static char *dir;
static struct nc_path image = NC_PATH_NONE;

static void
remove_files (void)
{
  static const char *const names[] = {
    "file", "sub/file", "out", "in", "loop", "fifo", "sub/up", "sub", "image",
    "nbd:x", "[x",
  };

  for (unsigned i = 0; i < sizeof names / sizeof names[0]; ++i) {
    char path[PATH_MAX];

    snprintf (path, sizeof path, "%s/%s", dir, names[i]);
    remove (path);
  }
  rmdir (dir);
}

static void
make_file (const char *name)
{
  int fd = open (name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

  fuzz_must (fd >= 0 && close (fd) == 0, "a file is made");
}

/* Files inside, and links that lead outside, inside and nowhere. */
static void
make_files (void)
{
  const char *tmp = getenv ("TMPDIR");
  char name[PATH_MAX];
  int here = open (".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  snprintf (name, sizeof name, "%s/nbdchain-fuzz.XXXXXX", tmp ? tmp : "/tmp");
  fuzz_must (here >= 0 && mkdtemp (name) && (dir = realpath (name, NULL)) &&
             chdir (dir) == 0,
             "a directory is made");
  atexit (remove_files);
  fuzz_must (mkdir ("sub", 0700) == 0 && mkfifo ("fifo", 0600) == 0 &&
             symlink ("/etc", "out") == 0 && symlink ("sub", "in") == 0 &&
             symlink ("loop", "loop") == 0 &&
             symlink ("../../", "sub/up") == 0, "links are made");
  make_file ("file");
  make_file ("sub/file");
  make_file ("image");
  fuzz_must (nc_path_find ("image", &image) == 0, "the image is found");
  make_file ("nbd:x");
  make_file ("[x");
  fuzz_must (fchdir (here) == 0 && close (here) == 0, "back again");
}

static void
try_file (const char *ref)
{
  char proc[64], real[PATH_MAX];
  struct nc_path path;
  char *text;
  struct stat st;
  ssize_t n;
  int fd = nc_ref_open_file (ref, &image, NULL, O_RDONLY, &path);

  if (fd == -1) {
    fuzz_must (errno != 0, "who refuses a file says why");
    return;
  }
  snprintf (proc, sizeof proc, "/proc/self/fd/%d", fd);
  n = readlink (proc, real, sizeof real - 1);
  fuzz_must (n > 0, "the file has a name");
  real[n] = '\0';
  fuzz_must (strncmp (real, dir, strlen (dir)) == 0 &&
             real[strlen (dir)] == '/', "a file is below the directory");
  fuzz_must (fstat (fd, &st) == 0 && S_ISREG (st.st_mode), "it is a file");
  text = nc_path_text (&path);
  fuzz_must (text && strcmp (text, real) == 0, "and called by its name");
  free (text);
  nc_path_close (&path);
  close (fd);
}

/* The scheme says what must be there, and a query can name a socket only. */
static void
check_accepted (const char *uri, bool allowed)
{
  const char *query = strchr (uri, '?');

  fuzz_must (strchr (uri, '#') == NULL, "no fragment");
  fuzz_must (allowed || strncasecmp (uri, "nbd+unix:", 9) == 0 ||
             strncasecmp (uri, "nbds+unix:", 10) == 0,
             "a host only if it was allowed");
  fuzz_must (query == NULL || strchr (query, '&') == NULL ||
             strstr (query, "tls-") == NULL, "no parameters of TLS");
}

static char *
string_of (const uint8_t *data, size_t n)
{
  char *s = malloc (n + 1);

  fuzz_must (s != NULL, "memory");
  memcpy (s, data, n);
  s[n] = '\0';
  return s;
}

static void
run (const uint8_t *data, size_t size)
{
  const uint8_t *zero = memchr (data, 0, size);
  const size_t n_allow = zero ? (size_t) (zero - data) : 0;
  char *allow_text = string_of (data, n_allow);
  char *ref = zero ? string_of (zero + 1, size - n_allow - 1)
    : string_of (data, size);
  struct nc_allow *allow = nc_allow_new ();
  struct nc_socket_finder finder;
  enum nc_ref_kind kind;
  bool allowed = false;

  fuzz_must (allow != NULL, "memory");
  if (dir == NULL)
    make_files ();
  /* No directory: then anything might be below it. */
  if (*allow_text && nc_ref_kind (allow_text, &kind) == 0 &&
      kind == NC_REF_URI)
    allowed = nc_allow_add (allow, allow_text) == 0;
  if (nc_ref_kind (ref, &kind) == 0) {
    if (kind == NC_REF_FILE)
      try_file (ref);
    else if (kind == NC_REF_URI &&
             nc_ref_check_uri (ref, &image, allow, &finder) == 0) {
      check_accepted (ref, allowed);
      nc_socket_finder_free (&finder);
    }
  }
  nc_allow_free (allow);
  free (allow_text);
  free (ref);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
  static const struct { const char *name, *allow, *ref; } t[] = {
    { "file", "", "file" }, { "sub", "", "./sub/../in//file" },
    { "out", "", "out/passwd" }, { "up", "", "sub/up/etc/passwd" },
    { "absolute", "", "/etc/passwd" }, { "loop", "", "loop/x" },
    { "fifo", "", "fifo" }, { "colon", "", "./nbd:x" },
    { "command", "", "[ true ]" }, { "http", "", "https://x/y?z=1#f" },
    { "host", "nbd://Server/vm", "nbd://server:10809/vm/a%20b" },
    { "ipv6", "nbd://[::1]:1/", "nbd://[0:0:0:0:0:0:0:1]:1/x" },
    { "user", "nbd://h", "nbds://user:pass@h/x?tls-certificates=/tmp" },
    { "unix", "", "nbd+unix:///x?socket=sub/sock" },
    { "unix-out", "nbd+unix:///?socket=/run/a",
      "nbd+unix:///?socket=/run/../run/a" },
    { "two", "", "nbd+unix:///x?socket=a&socket=/etc/b&tls-psk-file=c" },
  };

  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i) {
    char input[512];
    int n = snprintf (input, sizeof input, "%s%c%s", t[i].allow, 0, t[i].ref);

    save (opaque, t[i].name, (const uint8_t *) input, n);
  }
}

const struct fuzz_target fuzz_refs = {
  .name = "refs", .run = run, .seeds = seeds
};
