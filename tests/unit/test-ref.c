/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/chain/ref.c: which references of an image are followed. */

#include <config.h>

#include "chain/ref.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/unix-socket.h"

static unsigned n_tests, n_failed;
static char message[8192];      /* the last error */
static unsigned n_messages;
static char top[] = "/tmp/test-ref-XXXXXX";

static void
ok (bool good, const char *sentence)
{
  printf ("%sok %u - %s\n", good ? "" : "not ", ++n_tests, sentence);
  if (!good) {
    n_failed++;
    printf ("# errno %d (%s), %u messages, the last: %s\n",
            errno, strerror (errno), n_messages, message);
  }
}

__attribute__ ((__format__ (printf, 2, 0)))
static void
sink (enum nc_report_level level, const char *fmt, va_list args)
{
  if (level != NC_REPORT_ERROR)
    return;
  vsnprintf (message, sizeof message, fmt, args);
  n_messages++;
}

/* The file NAME as it is known to who has opened it. */
static struct nc_path
path_of (const char *name)
{
  struct nc_path path;
  int fd = nc_path_open (name, O_PATH, &path);

  if (fd == -1) {
    perror (name);
    exit (1);
  }
  close (fd);
  return path;
}

static void
clear (void)
{
  message[0] = '\0';
  n_messages = 0;
  errno = 0;
}

/* Paths below the test's directory; the result is good for 16 calls. */
static char *
at (const char *name)
{
  static char bufs[16][4096];
  static unsigned next;
  char *buf = bufs[next++ % 16];

  snprintf (buf, sizeof bufs[0], "%s/%s", top, name);
  return buf;
}

static void
must (int r, const char *what)
{
  if (r == -1) {
    perror (what);
    exit (1);
  }
}

/* A file that contains its own name. */
static void
make_file (const char *name)
{
  FILE *fp = fopen (at (name), "w");

  if (fp == NULL)
    must (-1, name);
  fputs (name, fp);
  fclose (fp);
}

static void
make_dir (const char *name)
{
  must (mkdir (at (name), 0755), name);
}

static void
make_link (const char *to, const char *name)
{
  must (symlink (to, at (name)), name);
}

static void
make_socket (const char *name)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM, 0);

  snprintf (sa.sun_path, sizeof sa.sun_path, "%s", at (name));
  must (bind (fd, (struct sockaddr *) &sa, sizeof sa), name);
  close (fd);
}

static struct nc_allow *
allowing (const char *first, const char *second)
{
  struct nc_allow *allow = nc_allow_new ();

  if (allow == NULL)
    exit (1);
  if (first)
    must (nc_allow_add (allow, first), message);
  if (second)
    must (nc_allow_add (allow, second), message);
  return allow;
}

/* ------------------------------------------------------------------ */

static void
kind_is (const char *text, int expected)
{
  enum nc_ref_kind kind = NC_REF_FILE;
  char sentence[256];
  int r;

  clear ();
  r = nc_ref_kind (text, &kind);
  snprintf (sentence, sizeof sentence, "\"%.60s\" is %s", text,
            expected == NC_REF_FILE ? "a file" :
            expected == NC_REF_URI ? "a URI" :
            expected == NC_REF_COMMAND ? "a command" : "refused");
  if (expected == -1)
    ok (r == -1 && errno == EINVAL && n_messages == 1, sentence);
  else
    ok (r == 0 && (int) kind == expected && n_messages == 0, sentence);
}

static void
test_kinds (void)
{
  static char text[NC_REF_MAX + 2];

  kind_is ("base.raw", NC_REF_FILE);
  kind_is ("/srv/base.raw", NC_REF_FILE);
  kind_is ("a:b", NC_REF_FILE);
  kind_is ("file:x", NC_REF_FILE);
  kind_is ("12:30", NC_REF_FILE);
  kind_is ("./nbd:x", NC_REF_FILE);
  kind_is ("./[x", NC_REF_FILE);
  kind_is ("nbdx:y", NC_REF_FILE);
  kind_is ("dir/nbd://x", NC_REF_FILE);
  kind_is ("nbd://server/x", NC_REF_URI);
  kind_is ("NBD://server/x", NC_REF_URI);
  kind_is ("nbds://server/x", NC_REF_URI);
  kind_is ("nbd+unix:///x?socket=/s", NC_REF_URI);
  kind_is ("nbds+unix:///x?socket=/s", NC_REF_URI);
  kind_is ("nbd:x", NC_REF_URI);
  kind_is ("[ nbdkit null ]", NC_REF_COMMAND);
  kind_is ("[nbdkit null]", NC_REF_COMMAND);
  kind_is ("", -1);
  kind_is ("http://server/x", -1);
  ok (strstr (message, "nbdkit curl") != NULL,
      "and the message says how to reach a web server");
  kind_is ("nbd+vsock://1/x", -1);

  memset (text, 'x', NC_REF_MAX + 1);
  kind_is (text, -1);
  text[NC_REF_MAX] = '\0';
  kind_is (text, NC_REF_FILE);
}

/* ------------------------------------------------------------------ */

/* That URI is taken (expected 0) or refused (errno). */
static void
uri_gives (const char *uri, const struct nc_allow *allow, int expected,
           const char *sentence)
{
  NC_PATH struct nc_path image = path_of (at ("img/top.fvd"));
  struct nc_socket_finder finder;
  int r;

  clear ();
  r = nc_ref_check_uri (uri, &image, allow, &finder);
  nc_socket_finder_free (&finder);
  if (expected == 0)
    ok (r == 0 && n_messages == 0, sentence);
  else
    ok (r == -1 && errno == expected && n_messages == 1, sentence);
}

static void
test_tcp_uris (void)
{
  struct nc_allow *all = allowing ("nbd://Server", NULL);

  uri_gives ("nbd://server/vm", NULL, EPERM, "nothing allowed: no URI");
  ok (strstr (message, "allow=\"nbd://server/vm\"") != NULL &&
      strstr (message, "--allow") != NULL && strstr (message, "top.fvd"),
      "and the message names the image and what to add");
  uri_gives ("nbd://server/", all, 0, "a server allows its default export");
  uri_gives ("nbd://server/a/b", all, 0, "a server allows every export");
  uri_gives ("nbd://SERVER/x", all, 0, "hosts compare without case");
  uri_gives ("NBD://server/x", all, 0, "schemes compare without case");
  uri_gives ("nbd://server:10809/x", all, 0, "10809 is the default port");
  uri_gives ("nbd://s%65rver/x", all, 0, "escapes in a host are resolved");
  uri_gives ("nbd://server:10810/x", all, EPERM, "another port is refused");
  uri_gives ("nbds://server/x", all, EPERM, "another scheme is refused");
  uri_gives ("nbd://server.evil/x", all, EPERM,
             "a host that starts like the allowed one is refused");
  uri_gives ("nbd://server@evil/x", all, EPERM,
             "the allowed host as user information is refused");
  uri_gives ("nbd://evil/nbd://server/", all, EPERM,
             "the allowed URI inside the export is refused");
  uri_gives ("nbd://user@server/x", all, EPERM, "no user information");
  uri_gives ("nbd://@server/x", all, EPERM, "no empty user information");
  uri_gives ("nbd://server/x#f", all, EPERM, "no fragment");
  uri_gives ("nbd://server/x#", all, EPERM, "no empty fragment");
  nc_allow_free (all);
}

static void
test_uri_syntax (void)
{
  struct nc_allow *all = allowing ("nbd://Server", NULL);

  uri_gives ("nbd://server/x?tls-certificates=/etc", all, EPERM,
             "no tls-certificates");
  ok (strstr (message, "tls-certificates") != NULL,
      "and the message names the parameter");
  uri_gives ("nbds://server/x?tls-psk-file=/f", all, EPERM,
             "no tls-psk-file");
  uri_gives ("nbd://server/x?t%6cs-x=1", all, EPERM,
             "no escaped parameter");
  uri_gives ("nbd://server/x?=1", all, EPERM, "no parameter without name");
  uri_gives ("nbd://server/x?&;", all, 0, "an empty query is nothing");
  uri_gives ("nbd://server/x?socket=/s", all, EINVAL,
             "no socket with a scheme for TCP");
  uri_gives ("nbd:server", all, EINVAL, "no URI without //");
  uri_gives ("nbd:/server", all, EINVAL, "nor with one slash");
  uri_gives ("nbd://server/a b", all, EINVAL, "no unescaped space");
  uri_gives ("nbd://server/%zz", all, EINVAL, "no broken escape");
  uri_gives ("nbd://server/a%00b", all, EINVAL, "no escaped NUL");
  uri_gives ("nbd://server:65536/a", all, EINVAL, "no port 65536");
  uri_gives ("nbd://server:99999999999/a", all, EINVAL, "no endless port");
  nc_allow_free (all);
}

static void
test_uri_exports (void)
{
  struct nc_allow *vm = allowing ("nbd://server/vm", "nbd://other:7/");
  struct nc_allow *slash = allowing ("nbd://server/vm/", NULL);

  uri_gives ("nbd://server/vm", vm, 0, "the allowed export");
  uri_gives ("nbd://server/%76m", vm, 0, "escapes in an export count not");
  uri_gives ("nbd://server/vm/a", vm, 0, "an export below it");
  uri_gives ("nbd://server/vm%2fa", vm, 0, "also with an escaped slash");
  uri_gives ("nbd://server/vm2", vm, EPERM, "not one that starts like it");
  uri_gives ("nbd://server/VM", vm, EPERM, "exports compare with case");
  uri_gives ("nbd://server/vm/../x", vm, EPERM, "no way up in an export");
  uri_gives ("nbd://server/vm/%2e%2e/x", vm, EPERM, "nor an escaped one");
  uri_gives ("nbd://server/", vm, EPERM, "not the default export");
  uri_gives ("nbd://server//vm", vm, EPERM, "not the export \"/vm\"");
  uri_gives ("nbd://other:7/x", vm, 0, "a second allowed URI counts");
  uri_gives ("nbd://other/x", vm, EPERM, "its port counts");
  uri_gives ("nbd://server/vm/a", slash, 0, "\"vm/\" allows \"vm/a\"");
  uri_gives ("nbd://server/vma", slash, EPERM, "\"vm/\" not \"vma\"");
  nc_allow_free (vm);
  nc_allow_free (slash);
}

static void
test_uri_addresses (void)
{
  struct nc_allow *v6 = allowing ("nbd://[::1]/", "nbd://[2001:DB8::0:1]/");
  struct nc_allow *local = allowing ("nbd://localhost/", NULL);

  uri_gives ("nbd://[::1]/x", v6, 0, "an IPv6 address");
  uri_gives ("nbd://[0:0::1]:10809/x", v6, 0, "in another spelling");
  uri_gives ("nbd://[2001:db8:0::1]/x", v6, 0, "with another case");
  uri_gives ("nbd://[::2]/x", v6, EPERM, "another IPv6 address is refused");
  uri_gives ("nbd:///x", local, 0, "no host means localhost");
  nc_allow_free (v6);
  nc_allow_free (local);
}

static void
unix_gives (const char *export, const char *socket,
            const struct nc_allow *allow, int expected, const char *sentence)
{
  char uri[4096];

  snprintf (uri, sizeof uri, "nbd+unix:///%s?socket=%s", export, socket);
  uri_gives (uri, allow, expected, sentence);
}

static void
test_unix_uris (void)
{
  char uri[4096];
  struct nc_allow *dir = allowing (at ("pool"), NULL);
  struct nc_allow *vm, *linked;

  snprintf (uri, sizeof uri, "nbd+unix:///vm?socket=%s", at ("out/sock"));
  vm = allowing (uri, NULL);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", at ("outlink/sock"));
  linked = allowing (uri, NULL);

  unix_gives ("x", at ("img/sock"), NULL, 0,
              "a socket in the image's directory");
  unix_gives ("x", at ("img/sub/soon"), NULL, 0,
              "one that is not there yet");
  unix_gives ("x", at ("out/sock"), NULL, EPERM, "a socket outside");
  ok (strstr (message, at ("out")) != NULL, "the message says what to allow");
  unix_gives ("x", at ("out/none"), NULL, EPERM, "one missing outside");
  unix_gives ("x", at ("img/outsock"), NULL, EPERM,
              "a symbolic link to a socket outside");
  unix_gives ("x", at ("img/../out/sock"), NULL, EPERM, "a way up");
  unix_gives ("x", at ("pool/sock"), dir, 0,
              "a socket in an allowed directory");
  unix_gives ("x", at ("poolx/sock"), dir, EPERM,
              "a directory that starts like it");
  unix_gives ("vm", at ("out/sock"), vm, 0, "an allowed socket and export");
  unix_gives ("vm/a", at ("out/sock"), vm, 0, "an export below");
  unix_gives ("other", at ("out/sock"), vm, EPERM, "another export");
  unix_gives ("vm", at ("out/sock2"), vm, EPERM, "another socket");
  unix_gives ("vm", at ("outlink/sock"), vm, 0,
              "the same socket through a linked directory");
  unix_gives ("x", at ("out/sock"), linked, 0,
              "allowed through a linked directory");
  unix_gives ("vm", at ("out/./sock"), vm, 0, "the same in other words");
  unix_gives ("x", at ("img/sock;&"), NULL, 0, "what follows a ';' is not");
  unix_gives ("x", at ("img/sock;sock"), NULL, EPERM, "part of a path");
  unix_gives ("vm&tls-certificates=/etc", at ("out/sock"), vm, EPERM,
              "a parameter in the path is part of the export");
  snprintf (uri, sizeof uri, "nbd+unix:///vm?socket=%s&tls-username=x",
            at ("out/sock"));
  uri_gives (uri, vm, EPERM, "no tls-username on an allowed socket");
  snprintf (uri, sizeof uri, "nbd+unix:///vm?socket=%s;socket=/x",
            at ("out/sock"));
  uri_gives (uri, vm, EINVAL, "not two sockets");
  snprintf (uri, sizeof uri, "nbd+unix:///vm?%%73ocket=%s", at ("out/sock"));
  uri_gives (uri, vm, 0, "\"socket\" may be escaped");
  uri_gives ("nbd+unix:///vm", vm, EINVAL, "no socket");
  uri_gives ("nbd+unix:///vm?socket", vm, EINVAL, "a socket without path");
  uri_gives ("nbd+unix:///vm?socket=img/sock", vm, EINVAL,
             "a relative socket");
  snprintf (uri, sizeof uri, "nbd+unix://host/vm?socket=%s", at ("out/sock"));
  uri_gives (uri, vm, EINVAL, "a host and a socket");
  snprintf (uri, sizeof uri, "nbds+unix:///vm?socket=%s", at ("out/sock"));
  uri_gives (uri, vm, EPERM, "TLS is another scheme");

  nc_allow_free (dir);
  nc_allow_free (vm);
  nc_allow_free (linked);
}

/* Whether FINDER finds the socket NAME; else WHY is what it says. */
static bool
finds (const struct nc_socket_finder *finder, const char *name,
       char why[1024])
{
  NC_CLOSE int fd = finder->find (finder->opaque, why, 1024);
  struct stat st, st2;

  return fd >= 0 && fstat (fd, &st) == 0 && lstat (at (name), &st2) == 0 &&
    st.st_dev == st2.st_dev && st.st_ino == st2.st_ino;
}

static void
find_in (const char *dir, const struct nc_allow *allow, const char *what)
{
  NC_PATH struct nc_path image = path_of (at ("img/top.fvd"));
  struct nc_socket_finder finder;
  char uri[4096], sock[64], moved[64], other[4096], why[1024] = "";

  snprintf (sock, sizeof sock, "%s/s", dir);
  snprintf (moved, sizeof moved, "%s/moved", dir);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", at (sock));
  must (nc_ref_check_uri (uri, &image, allow, &finder), message);
  nc_path_close (&image);
  ok (!finds (&finder, sock, why) && strstr (why, "No such file"), what);
  make_socket (sock);
  ok (finds (&finder, sock, why), "it is found once it is there");
  must (rename (at (sock), at (moved)), "rename");
  snprintf (other, sizeof other, "%s", at ("out/sock"));
  must (symlink (other, at (sock)), "symlink");
  ok (!finds (&finder, sock, why) && strstr (why, "leads outside"),
      "a link outside that has taken its place is not followed");
  must (rename (at (moved), at (sock)), "rename");
  ok (finds (&finder, sock, why), "it is found again");
  must (unlink (at (sock)), "unlink");
  nc_socket_finder_free (&finder);
}

/* A server that restarts makes its socket again. */
static void
test_finders (void)
{
  struct nc_allow *dir = allowing (at ("pool"), NULL);
  NC_PATH struct nc_path image = path_of (at ("img/top.fvd"));
  struct nc_socket_finder finder;
  char uri[4096], why[1024];
  struct nc_allow *run;

  find_in ("img", NULL, "a socket beside the image is not there");
  find_in ("pool", dir, "nor is one in an allowed directory");
  nc_allow_free (dir);

  make_dir ("run");
  make_dir ("run/server");
  make_socket ("run/server/s");
  run = allowing (at ("run/server"), NULL);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", at ("run/server/s"));
  must (nc_ref_check_uri (uri, &image, run, &finder), message);
  nc_allow_free (run);
  ok (finds (&finder, "run/server/s", why),
      "it is found when the allowed directories are not needed any more");
  must (unlink (at ("run/server/s")), "unlink");
  must (rmdir (at ("run/server")), "rmdir");
  ok (!finds (&finder, "run/server/s", why), "with its directory it is gone");
  make_dir ("run/server");
  make_socket ("run/server/s");
  ok (finds (&finder, "run/server/s", why),
      "it is found in an allowed directory that was made again");
  nc_socket_finder_free (&finder);

  snprintf (uri, sizeof uri, "nbd+unix:///vm?socket=%s", at ("out/sock"));
  run = allowing (uri, NULL);
  must (nc_ref_check_uri (uri, &image, run, &finder), message);
  nc_allow_free (run);
  ok (finds (&finder, "out/sock", why), "one that was allowed by its URI");
  nc_socket_finder_free (&finder);
}

/* ------------------------------------------------------------------ */

/* That REF in img/top.fvd opens the file CONTENT, or fails with -CONTENT.
 * A file contains its own name. */
static void
file_gives_from (const char *image, const char *ref,
                 const struct nc_allow *allow, const char *content,
                 int expected, const char *sentence)
{
  NC_PATH struct nc_path from = path_of (at (image));
  NC_PATH struct nc_path path = NC_PATH_NONE;
  char text[256];
  struct stat st, st2;
  ssize_t n;
  bool good;
  int fd;

  clear ();
  fd = nc_ref_open_file (ref, &from, allow, O_RDONLY, &path);
  if (expected != 0) {
    ok (fd == -1 && errno == expected && n_messages == 1 && path.dir == -1,
        sentence);
    if (fd >= 0)
      close (fd);
    return;
  }
  if (fd == -1) {
    ok (false, sentence);
    return;
  }
  n = read (fd, text, sizeof text - 1);
  text[n < 0 ? 0 : n] = '\0';
  good = strcmp (text, content) == 0 && n_messages == 0 &&
    fstatat (path.dir, path.name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
    fstat (fd, &st2) == 0 &&
    st.st_dev == st2.st_dev && st.st_ino == st2.st_ino &&
    !(fcntl (fd, F_GETFL) & O_NONBLOCK) &&
    (fcntl (fd, F_GETFD) & FD_CLOEXEC);
  ok (good, sentence);
  close (fd);
}

static void
file_gives (const char *ref, const struct nc_allow *allow,
            const char *content, int expected, const char *sentence)
{
  file_gives_from ("img/top.fvd", ref, allow, content, expected, sentence);
}

static void
test_files (void)
{
  file_gives ("base", NULL, "img/base", 0, "a file beside the image");
  file_gives ("./base", NULL, "img/base", 0, "the same with ./");
  file_gives (".//sub/./deep", NULL, "img/sub/deep", 0, "a file below");
  file_gives ("sub/../base", NULL, "img/base", 0, ".. inside");
  file_gives ("../img/base", NULL, "img/base", 0, ".. out and back");
  file_gives (at ("img/base"), NULL, "img/base", 0, "an absolute path");
  file_gives ("../base", NULL, NULL, EPERM, ".. out");
  file_gives ("../out/secret", NULL, NULL, EPERM, ".. out and down");
  ok (strstr (message, "\"../out/secret\"") && strstr (message, "top.fvd") &&
      strstr (message, at ("out\" (nbdchain: --allow")),
      "the message names reference, image and what to allow");
  file_gives (at ("out/secret"), NULL, NULL, EPERM, "absolute and outside");
  file_gives ("../img2/base", NULL, NULL, EPERM,
              "a directory that starts like the image's");
}

static void
test_links (void)
{
  file_gives ("link-in", NULL, "img/sub/deep", 0, "a symbolic link inside");
  file_gives ("link-abs-in", NULL, "img/base", 0,
              "an absolute symbolic link that leads inside");
  file_gives ("link-dir/deep", NULL, "img/sub/deep", 0,
              "a symbolic link to a directory inside");
  file_gives ("link-up/img/base", NULL, "img/base", 0,
              "a symbolic link out and a way back");
  file_gives ("link-dir/../base", NULL, "img/base", 0,
              ".. after a symbolic link is that of its target");
  file_gives ("link-out", NULL, NULL, EPERM, "a symbolic link out");
  ok (strstr (message, "symbolic link") != NULL,
      "and the message says that it is one");
  file_gives ("link-abs-out", NULL, NULL, EPERM, "an absolute one out");
  file_gives ("link-outdir/secret", NULL, NULL, EPERM, "through a directory");
  file_gives ("link-dangling", NULL, NULL, ENOENT, "one to nothing inside");
  file_gives ("link-loop", NULL, NULL, ELOOP, "a loop of them");
  ok (strstr (message, "loop") != NULL, "and the message says so");
  file_gives ("/proc/self/exe", NULL, NULL, EPERM, "a magic link");
  file_gives ("/proc/self/root/etc/passwd", NULL, NULL, EPERM,
              "a magic link to a directory");
}

static void
test_missing (void)
{
  char *missing;

  file_gives ("missing", NULL, NULL, ENOENT, "a missing file");
  ok (strstr (message, "missing") && strstr (message, "base="),
      "and the message says that it is missing, and what to do");
  file_gives ("sub/missing/x", NULL, NULL, ENOENT, "a missing directory");
  file_gives ("base/x", NULL, NULL, ENOTDIR, "a file as a directory");

  file_gives ("../out/missing", NULL, NULL, EPERM, "missing outside");
  missing = strdup (message);
  file_gives ("../out/another", NULL, NULL, EPERM, "there, but outside");
  ok (missing && strlen (missing) == strlen (message),
      "whether a file outside exists is not told");
  free (missing);
  file_gives ("link-out", NULL, NULL, EPERM, "a link to a file outside");
  missing = strdup (message);
  file_gives ("link-non", NULL, NULL, EPERM, "a link to nothing outside");
  ok (missing && strlen (missing) == strlen (message),
      "nor is it through a symbolic link");
  free (missing);
  file_gives ("../out/../img/base", NULL, NULL, EPERM,
              "no walk through a directory outside");
  file_gives ("../none/../img/base", NULL, NULL, EPERM,
              "nor through one that is missing");
  file_gives ("../out/secret/x", NULL, NULL, EPERM,
              "nor whether it is a directory");
}

static void
test_allowed (void)
{
  struct nc_allow *pool = allowing (at ("pool"), NULL);
  struct nc_allow *slash = allowing (at ("pool//"), NULL);
  struct nc_allow *linked = allowing (at ("poollink"), NULL);
  struct nc_allow *out = allowing (at ("out"), at ("pool"));
  struct nc_allow *root = allowing ("/", NULL);

  file_gives (at ("pool/base"), pool, "pool/base", 0, "an allowed directory");
  file_gives ("../pool/base", pool, "pool/base", 0, "by a relative path");
  file_gives (at ("pool/sub/deep"), pool, "pool/sub/deep", 0, "below it");
  file_gives (at ("poollink/base"), pool, "pool/base", 0,
              "by a link on the way that leads into it");
  file_gives ("link-pool", pool, "pool/base", 0,
              "by a symbolic link of the image's directory");
  file_gives (at ("pool/link-out"), pool, NULL, EPERM,
              "a symbolic link out of an allowed directory");
  file_gives (at ("poolx/base"), pool, NULL, EPERM,
              "a directory that starts like it");
  file_gives (at ("pool/base"), slash, "pool/base", 0,
              "allowed with trailing slashes");
  file_gives (at ("poollink/base"), linked, "pool/base", 0,
              "allowed through a symbolic link");
  file_gives (at ("pool/base"), linked, "pool/base", 0,
              "allowed through one, named without");
  file_gives (at ("out/secret"), out, "out/secret", 0, "the first of two");
  file_gives (at ("pool/base"), out, "pool/base", 0, "the second of two");
  file_gives (at ("pool/missing"), out, NULL, ENOENT,
              "missing in an allowed directory");
  file_gives (at ("out/secret"), root, "out/secret", 0, "/ allows all");
  file_gives ("link-abs-out", root, "out/secret", 0, "links, too");

  nc_allow_free (pool);
  nc_allow_free (slash);
  nc_allow_free (linked);
  nc_allow_free (out);
  nc_allow_free (root);
}

/* What a reference is relative to. */
static void
test_images (void)
{
  file_gives_from ("imglink.fvd", "base", NULL, "img/base", 0,
                   "an image named by a link: its real directory counts");
  file_gives_from ("imgdirlink/top.fvd", "base", NULL, "img/base", 0,
                   "an image in a linked directory");
  file_gives_from ("imgdirlink/top.fvd", at ("imgdirlink/base"), NULL,
                   "img/base", 0, "that way is also good in a reference");
  file_gives_from ("img/sub/mid.fvd", "../base", NULL, NULL, EPERM,
                   "an image below does not reach up");
}

/* The owner of the directories above an image puts another directory in the
 * place of the image's. */
static void
test_exchanged (void)
{
  NC_PATH struct nc_path image = NC_PATH_NONE;
  NC_PATH struct nc_path path = NC_PATH_NONE;
  NC_CLOSE int fd = -1;
  char text[64] = "";

  make_dir ("his");
  make_dir ("his/img");
  make_file ("his/img/top.fvd");
  make_file ("his/img/secret");
  image = path_of (at ("his/img/top.fvd"));
  must (rename (at ("his/img"), at ("his/moved")), "rename");
  make_link ("../out", "his/img");
  clear ();
  fd = nc_ref_open_file ("secret", &image, NULL, O_RDONLY, &path);
  ok (fd >= 0 && read (fd, text, sizeof text) > 0 &&
      strncmp (text, "his/img/secret", strlen ("his/img/secret")) == 0,
      "the directory that counts is that which the image was opened in");
  nc_path_close (&path);
  ok (nc_ref_open_file (at ("his/img/secret"), &image, NULL, O_RDONLY,
                        &path) == -1 && errno == EPERM,
      "and not one that has its name by now");
}

static void
test_types (void)
{
  struct nc_allow *pool = allowing (at ("pool"), NULL);
  struct nc_allow *sub = allowing (at ("pool/sub"), NULL);
  struct nc_allow *dev = allowing ("/dev", NULL);
  NC_PATH struct nc_path image = path_of (at ("img/top.fvd"));
  struct nc_path path;
  int fd;

  file_gives ("fifo", NULL, NULL, EPERM, "no FIFO, and no waiting for one");
  ok (strstr (message, "FIFO") != NULL, "the message says FIFO");
  file_gives ("sock", NULL, NULL, EPERM, "no socket");
  ok (strstr (message, "nbd+unix") != NULL, "the message says what to write");
  file_gives ("sub", NULL, NULL, EPERM, "no directory");
  file_gives (".", NULL, NULL, EPERM, "not the image's directory itself");
  file_gives (at ("pool"), pool, NULL, EPERM, "nor an allowed one");
  file_gives ("/dev/null", dev, NULL, EPERM, "no character device");
  ok (strstr (message, "character device") != NULL, "the message says so");
  file_gives ("/dev/null", NULL, NULL, EPERM, "nor one outside");

  /* A device number that nothing answers to. */
  if (mknod (at ("img/blk"), S_IFBLK | 0600, makedev (259, 1048575)) == -1 ||
      mknod (at ("pool/sub/blk"), S_IFBLK | 0600,
             makedev (259, 1048575)) == -1) {
    int i;

    for (i = 0; i < 4; ++i)
      printf ("ok %u - block device # SKIP cannot make one\n", ++n_tests);
  }
  else {
    file_gives ("blk", NULL, NULL, EPERM,
                "no block device beside the image");
    ok (strstr (message, "block device") != NULL, "the message says so");
    file_gives (at ("pool/sub/blk"), pool, NULL, EPERM,
                "nor below an allowed directory");
    clear ();
    fd = nc_ref_open_file (at ("pool/sub/blk"), &image, sub, O_RDONLY, &path);
    ok (fd >= 0 || (errno != EPERM && errno != 0 && n_messages == 1),
        "a block device right in an allowed directory is opened");
    if (fd >= 0)
      close (fd);
    nc_path_close (&path);
  }

  clear ();
  fd = nc_ref_open_file ("base", &image, NULL, O_RDWR, &path);
  ok (fd >= 0 && (fcntl (fd, F_GETFL) & O_ACCMODE) == O_RDWR,
      "opened with the flags asked for");
  if (fd >= 0)
    close (fd);
  nc_path_close (&path);

  nc_allow_free (pool);
  nc_allow_free (sub);
  nc_allow_free (dev);
}

/* What is recorded of PATH in the image, which may be a new one. */
static char *
stored (const char *path, const char *image)
{
  NC_PATH struct nc_path named = NC_PATH_NONE;
  NC_PATH struct nc_path new = NC_PATH_NONE;
  NC_PATH struct nc_path there = NC_PATH_NONE;
  NC_CLOSE int fd = -1;

  if (nc_path_find (path, &named) == -1 || nc_path_find (image, &new) == -1)
    return NULL;
  if (access (image, F_OK) == 0)
    fd = nc_path_follow (&new, O_PATH, &there);
  return nc_ref_for_image (&named, fd >= 0 ? &there : &new);
}

static void
test_odd_names (void)
{
  static const char *const names[] = {
    "a:b", "a b", "a,b", "a'b", "a\"b", "a\\b", "a\nb", "a\tb", "-a", "a=b",
    "\xc3\xa4\xe6\xbc\xa2", "\xff\xfe", "[x", "nbd:x", "%41", "a*?", "...",
    " ", "~", "$HOME",
  };
  char name[64], sentence[128], *ref;
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    snprintf (name, sizeof name, "img/%s", names[i]);
    make_file (name);
    ref = stored (at (name), at ("img/new.fvd"));
    snprintf (sentence, sizeof sentence,
              "odd file name number %zu is stored and opened", i);
    if (ref)
      file_gives (ref, NULL, name, 0, sentence);
    else
      ok (false, sentence);
    free (ref);
  }

  file_gives ("x\n\033[31m\"\\\xc2\x9b\xff\xe2\x80\xae\xc3\xa4", NULL, NULL,
              ENOENT, "a missing file with odd characters");
  ok (strstr (message, "\"x\\n\\x1b[31m\\\"\\\\\\xc2\\x9b\\xff"
              "\\xe2\\x80\\xae\xc3\xa4\"") != NULL,
      "control characters are escaped in messages, others not");
}

static void
stored_as (const char *path, const char *image, const char *expected,
           const char *sentence)
{
  char *ref;

  clear ();
  ref = stored (path, at (image));
  ok (ref && strcmp (ref, expected) == 0 && n_messages == 0, sentence);
  if (ref && strcmp (ref, expected) != 0)
    printf ("# %s instead of %s\n", ref, expected);
  free (ref);
}

static void
test_stored (void)
{
  char cwd[4096];
  char *ref;

  if (getcwd (cwd, sizeof cwd) == NULL)
    must (-1, "getcwd");
  must (chdir (at ("img")), "chdir");
  stored_as ("base", "img/new.fvd", "base", "beside the image: its name");
  stored_as ("sub/deep", "img/new.fvd", "sub/deep", "below: relative");
  stored_as ("../img/./base", "img/new.fvd", "base", "in other words");
  stored_as (at ("imgdirlink/base"), "img/new.fvd", "base",
             "through a linked directory");
  stored_as ("base", "imgdirlink/new.fvd", "base", "or the image in one");
  stored_as ("base", "imglink.fvd", "base", "or the image a link");
  stored_as ("link-in", "img/new.fvd", "link-in", "a link keeps its name");
  stored_as ("base", "img/sub/new.fvd", at ("img/base"),
             "above the image: absolute");
  stored_as ("../out/secret", "img/new.fvd", at ("out/secret"),
             "elsewhere: absolute");
  stored_as ("nbd:x", "img/new.fvd", "./nbd:x", "not to be read as a URI");
  stored_as ("[x", "img/new.fvd", "./[x", "nor as a command");
  stored_as ("/x", "img/new.fvd", "/x", "in the root directory");
  clear ();
  ref = stored ("none/base", at ("img/new.fvd"));
  ok (ref == NULL && errno == ENOENT && n_messages == 1,
      "a missing directory is an error");
  free (ref);
  clear ();
  ref = stored ("base", at ("none/new.fvd"));
  ok (ref == NULL && errno == ENOENT && n_messages == 1,
      "also that of the image");
  free (ref);

  /* An image named relative to the current directory. */
  {
    NC_PATH struct nc_path image = path_of ("top.fvd");
    NC_PATH struct nc_path path = NC_PATH_NONE;
    int fd;

    clear ();
    fd = nc_ref_open_file ("base", &image, NULL, O_RDONLY, &path);
    ok (fd >= 0, "an image named without directory");
    close (fd);
  }
  must (chdir (cwd), "chdir");
}

static void
test_allow_errors (void)
{
  static const struct { const char *text; int err; const char *sentence; }
  cases[] = {
    { "", EINVAL, "allow: not the empty string" },
    { "/nonexistent/x", ENOENT, "allow: not a missing directory" },
    { "[ nbdkit null ]", EINVAL, "allow: not a command" },
    { "http://server/", EINVAL, "allow: not another scheme" },
    { "nbd://user@server/", EINVAL, "allow: no user information" },
    { "nbd://server/?tls-certificates=/x", EINVAL, "allow: no tls-*" },
    { "nbd+unix:///", EINVAL, "allow: no nbd+unix without socket" },
    { "nbd://server/a b", EINVAL, "allow: no unescaped space" },
  };
  struct nc_allow *allow = nc_allow_new ();
  size_t i;
  int r;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    clear ();
    r = nc_allow_add (allow, cases[i].text);
    ok (r == -1 && errno == cases[i].err && n_messages == 1,
        cases[i].sentence);
  }
  clear ();
  r = nc_allow_add (allow, at ("img/base"));
  ok (r == -1 && errno == ENOTDIR && n_messages == 1, "allow: not a file");
  nc_allow_free (allow);
  nc_allow_free (NULL);
}

/* Somebody exchanges a directory for a symbolic link out, again and again:
 * the reference never opens what lies outside. */
static atomic_bool stop_swapping;

static void *
swap (void *arg)
{
  (void) arg;
  while (!stop_swapping)
    renameat2 (AT_FDCWD, at ("race/dir"), AT_FDCWD, at ("race/link"),
               RENAME_EXCHANGE);
  return NULL;
}

static void
quiet (enum nc_report_level level, const char *fmt, va_list args)
{
  (void) level;
  (void) fmt;
  (void) args;
}

static void
test_race (void)
{
  pthread_t thread;
  struct nc_path image;
  char text[64];
  unsigned i, inside = 0, outside = 0;

  make_dir ("race");
  make_dir ("race/dir");
  make_file ("race/dir/secret");
  make_file ("race/top.fvd");
  make_link (at ("out"), "race/link");
  image = path_of (at ("race/top.fvd"));
  nc_report_to (quiet);
  if (pthread_create (&thread, NULL, swap, NULL) != 0)
    exit (1);
  for (i = 0; i < 5000; ++i) {
    NC_PATH struct nc_path path = NC_PATH_NONE;
    ssize_t n;
    int fd = nc_ref_open_file ("dir/secret", &image, NULL, O_RDONLY, &path);

    if (fd >= 0) {
      n = read (fd, text, sizeof text - 1);
      text[n < 0 ? 0 : n] = '\0';
      if (strcmp (text, "race/dir/secret") == 0)
        inside++;
      else
        outside++;
      close (fd);
    }
  }
  nc_path_close (&image);
  stop_swapping = true;
  pthread_join (thread, NULL);
  nc_report_to (sink);
  ok (outside == 0, "no file outside is opened while links are swapped");
  printf ("# opened inside %u times of %u\n", inside, i);
}

static int
remove_one (const char *path, const struct stat *st, int type,
            struct FTW *ftw)
{
  (void) st;
  (void) type;
  (void) ftw;
  return remove (path);
}

static void
make_tree (void)
{
  static const char *const dirs[] = {
    "img", "img/sub", "img2", "out", "pool", "pool/sub", "poolx",
  };
  static const char *const files[] = {
    "base", "img/top.fvd", "img/base", "img/sub/deep", "img2/base",
    "out/secret", "out/another", "pool/base", "pool/sub/deep", "poolx/base",
    "img/sub/mid.fvd",
  };
  size_t i;

  if (mkdtemp (top) == NULL)
    must (-1, "mkdtemp");
  for (i = 0; i < sizeof dirs / sizeof dirs[0]; ++i)
    make_dir (dirs[i]);
  for (i = 0; i < sizeof files / sizeof files[0]; ++i)
    make_file (files[i]);
  make_link ("sub/deep", "img/link-in");
  make_link (at ("img/base"), "img/link-abs-in");
  make_link ("sub", "img/link-dir");
  make_link ("..", "img/link-up");
  make_link ("../out/secret", "img/link-out");
  make_link ("../out/nonono", "img/link-non");
  make_link (at ("out/secret"), "img/link-abs-out");
  make_link ("../out", "img/link-outdir");
  make_link ("nothing", "img/link-dangling");
  make_link ("link-loop", "img/link-loop");
  make_link ("../pool/base", "img/link-pool");
  make_link ("../out/sock", "img/outsock");
  make_link ("../out/secret", "pool/link-out");
  make_link ("pool", "poollink");
  make_link ("out", "outlink");
  make_link ("img", "imgdirlink");
  make_link ("img/top.fvd", "imglink.fvd");
  make_socket ("img/sock");
  make_socket ("out/sock");
  make_socket ("out/sock2");
  make_socket ("pool/sock");
  make_socket ("poolx/sock");
  must (mkfifo (at ("img/fifo"), 0600), "mkfifo");
}

int
main (void)
{
  nc_report_to (sink);
  make_tree ();
  test_kinds ();
  test_tcp_uris ();
  test_uri_syntax ();
  test_uri_exports ();
  test_uri_addresses ();
  test_unix_uris ();
  test_finders ();
  test_files ();
  test_links ();
  test_missing ();
  test_allowed ();
  test_images ();
  test_exchanged ();
  test_types ();
  test_odd_names ();
  test_stored ();
  test_allow_errors ();
  test_race ();

  nftw (top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  printf ("1..%u\n", n_tests);
  return n_failed != 0;
}
