/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/nbd/tls.c: which libnbd verifies servers, whose key it is, and
 * that a directory which changes meanwhile is noticed.  Certificates that do
 * not load are in tls.bats. */

#include <config.h>

#include "nbd/tls.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "tap.h"

static char why[256];

static void
test_versions (void)
{
  static const struct { const char *version; bool has_hole; } cases[] = {
    { "1.14.2", true }, { "1.16.0", true }, { "1.16.5", true },
    { "1.18.4", true }, { "1.18.5", false }, { "1.18.12", false },
    { "1.19.9", true }, { "1.20.2", true }, { "1.20.3", false },
    { "1.21.1", true }, { "1.22.0", false }, { "1.24.1", false },
    { "2.0.0", false }, { "0.9.9", true }, { "1.22", true }, { "", true },
    { "libnbd", true },
  };

  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i)
    ok (nc_tls_has_hole (cases[i].version) == cases[i].has_hole,
        "libnbd '%s' %s", cases[i].version,
        cases[i].has_hole ? "is not trusted" : "is trusted");
}

static void
write_file (const char *path, const char *text, mode_t mode)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  if (fd == -1 || write (fd, text, strlen (text)) != (ssize_t) strlen (text)
      || fchmod (fd, mode) == -1) {
    perror (path);
    exit (1);
  }
  close (fd);
}

/* What nc_tls_find_user makes of TEXT for NAME: the user if WANT, or else
 * the errno ERROR, with something said. */
static bool
finds (const char *text, const char *name, const char *want, int error)
{
  char *user = NULL;
  bool good;
  int r;

  write_file ("keys", text, 0640);
  why[0] = '\0';
  r = nc_tls_find_user ("keys", name, &user, why, sizeof why);
  good = want ? r == 0 && strcmp (user, want) == 0
    : r == -1 && errno == error && strstr (why, "keys: ") == why;
  free (user);
  return good || note ("r %d, errno %d, why %s", r, errno, why);
}

static void
test_keys (void)
{
  char *user = NULL;

  ok (finds ("alice:00ff\n", NULL, "alice", 0) &&
      finds ("alice:00FF", NULL, "alice", 0) &&
      finds ("\n\r\nalice:00ff\r\n", NULL, "alice", 0),
      "the only user of a file is found, whatever ends its lines");
  ok (finds ("a:00\nbob:11\n", "bob", "bob", 0) &&
      finds ("a:00\nbob:11\n", "a", "a", 0) &&
      finds ("a:00\nbob:zz\n", "a", "a", 0),
      "a user is found by name");
  ok (finds ("a:00\nbob:11\n", NULL, NULL, ENOTUNIQ),
      "of two users none is chosen");
  ok (finds ("", NULL, NULL, ENOENT) && finds ("alice\n", NULL, NULL, ENOENT)
      && finds (":00\n", NULL, NULL, ENOENT) &&
      finds ("alice:00\n", "ali", NULL, ENOENT) &&
      finds ("alice:00\n", "alice:00", NULL, ENOENT) &&
      finds ("alice:00\n", "", NULL, ENOENT), "who is not there is not found");
  ok (finds ("alice:\n", NULL, NULL, EINVAL) &&
      finds ("alice:0\n", NULL, NULL, EINVAL) &&
      finds ("alice:0g\n", NULL, NULL, EINVAL) &&
      finds ("alice:00 \n", NULL, NULL, EINVAL) &&
      finds ("alice:00:11\n", NULL, NULL, EINVAL),
      "a key must be hexadecimal");

  write_file ("keys", "alice:00\n", 0604);
  ok (nc_tls_find_user ("keys", NULL, &user, why, sizeof why) == -1 &&
      errno == EPERM, "keys that all can read are refused");
  ok (nc_tls_find_user (".", NULL, &user, why, sizeof why) == -1 &&
      errno == EINVAL && mkfifo ("fifo", 0600) == 0 &&
      nc_tls_find_user ("fifo", NULL, &user, why, sizeof why) == -1 &&
      errno == EINVAL, "what is not a file is refused, without waiting");
  write_file ("keys", "alice:00\n", 0600);
  ok (truncate ("keys", 2 << 20) == 0 &&
      nc_tls_find_user ("keys", NULL, &user, why, sizeof why) == -1 &&
      errno == EFBIG, "an enormous file is refused");
}

/* A certificate of a CA, for a file: any will do here. */
static const char ca[] =
  "-----BEGIN CERTIFICATE-----\n"
  "MIIBaTCCAQ6gAwIBAgIUE+Cq0TL8S65j4nbFl2eqqqzTzT8wCgYIKoZIzj0EAwIw\n"
  "EjEQMA4GA1UEAxMHdGVzdCBDQTAeFw0yNjExMjEwNzU3NDJaFw0zNjExMTgwNzU3\n"
  "NDJaMBIxEDAOBgNVBAMTB3Rlc3QgQ0EwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC\n"
  "AAQtieJMyIq2s3Bul59YZjSWMI21/GY4O+bGB7zzshyqlkEh1mCHQaUykniEjpJA\n"
  "6ehfHDfoKhhPJpnyRDL5QapMo0IwQDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB\n"
  "/wQEAwICBDAdBgNVHQ4EFgQUdhlVcvYxRTL9+1HA+9exyk/kCcYwCgYIKoZIzj0E\n"
  "AwIDSQAwRgIhAOFj72LXZI9D0SBvLlK1hOUCFOkcKhNLDCiEbaefXFBLAiEAnaAW\n"
  "986nLQci1r3SBpjpuiV4miaPg3Z7rPwZjM0Vk+w=\n"
  "-----END CERTIFICATE-----\n";

/* Whether a directory is seen to be changed after the change. */
static bool
notices (int (*change) (void), bool expected)
{
  struct nc_tls_dir d;
  bool unchanged;

  if (nc_tls_dir_open (&d, "dir", why, sizeof why) == -1)
    return note ("%s", why);
  unchanged = nc_tls_dir_is_unchanged (&d);
  if (change () == -1)
    unchanged = false;
  unchanged = unchanged && nc_tls_dir_is_unchanged (&d) != expected;
  nc_tls_dir_close (&d);
  return unchanged;
}

static int
change_nothing (void)
{
  return 0;
}

static int
change_file (void)
{
  write_file ("dir/ca-cert.pem", ca, 0644);
  return 0;
}

static int
change_entry (void)
{
  if (rename ("dir/ca-cert.pem", "dir/x") == -1 ||
      rename ("dir/x", "dir/ca-cert.pem") == -1)
    return -1;
  return 0;
}

static int
remove_file (void)
{
  return unlink ("dir/ca-cert.pem");
}

static void
test_directory (void)
{
  struct nc_tls_dir d;

  ok (nc_tls_dir_open (&d, "dir", why, sizeof why) == -1 && errno == ENOENT &&
      d.fd == -1, "a directory that is missing is an error");
  mkdir ("dir", 0700);
  ok (nc_tls_dir_open (&d, "dir", why, sizeof why) == -1 && errno == ENOENT &&
      strcmp (why, "dir/ca-cert.pem: No such file or directory") == 0 &&
      d.fd == -1, "so is one without a CA");
  write_file ("dir/ca-cert.pem", ca, 0644);
  ok (notices (change_nothing, false), "a directory at rest is unchanged");
  ok (notices (change_file, true), "a file that is written is noticed");
  ok (notices (change_entry, true), "a file that was away is noticed");
  ok (notices (remove_file, true), "a file that is gone is noticed");
}

int
main (void)
{
  NC_FREE char *dir = strdup ("/tmp/test-tls-XXXXXX");

  tap_start (60);
  if (mkdtemp (dir) == NULL || chdir (dir) == -1) {
    perror (dir);
    return 1;
  }
  test_versions ();
  test_keys ();
  test_directory ();
  unlink ("keys");
  unlink ("fifo");
  rmdir ("dir");
  if (chdir ("/") == -1 || rmdir (dir) == -1)
    perror (dir);
  return tap_done ();
}
