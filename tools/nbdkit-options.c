/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Which of nbdkit's own arguments can go along with "nbdchain serve".
 *
 * All but those that would change how nbdkit listens or ends, since serve has
 * both in hand, and those with which nbdkit would serve nothing.  The table
 * below is nbdkit's; an option that is not in it is newer, and left to
 * nbdkit. */

#include <config.h>

#include "serve.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "util/report.h"
#include "util/scope.h"

/* Options are told apart by their letter; those without one get these. */
enum { FINE = 256, WITH_PARENT, RUN, VSOCK, NOT_SERVING };

static const char short_options[] = ":46D:e:fg:i:nop:P:rst:u:U:vV";
static const struct option options[] = {
  { "debug", required_argument, NULL, FINE },
  { "dump-config", no_argument, NULL, NOT_SERVING },
  { "dump-plugin", no_argument, NULL, NOT_SERVING },
  { "exit-with-parent", no_argument, NULL, WITH_PARENT },
  { "export", required_argument, NULL, FINE },
  { "export-name", required_argument, NULL, FINE },
  { "exportname", required_argument, NULL, FINE },
  { "filter", required_argument, NULL, FINE },
  { "foreground", no_argument, NULL, FINE },
  { "group", required_argument, NULL, FINE },
  { "help", no_argument, NULL, NOT_SERVING },
  { "ip-addr", required_argument, NULL, 'i' },
  { "ipaddr", required_argument, NULL, 'i' },
  { "ipv4-only", no_argument, NULL, FINE },
  { "ipv6-only", no_argument, NULL, FINE },
  { "log", required_argument, NULL, FINE },
  { "long-options", no_argument, NULL, NOT_SERVING },
  { "mask-handshake", required_argument, NULL, FINE },
  { "new-style", no_argument, NULL, FINE },
  { "newstyle", no_argument, NULL, FINE },
  { "no-fork", no_argument, NULL, FINE },
  { "no-sr", no_argument, NULL, FINE },
  { "old-style", no_argument, NULL, FINE },
  { "oldstyle", no_argument, NULL, FINE },
  { "pid-file", required_argument, NULL, FINE },
  { "pidfile", required_argument, NULL, FINE },
  { "port", required_argument, NULL, 'p' },
  { "read-only", no_argument, NULL, FINE },
  { "readonly", no_argument, NULL, FINE },
  { "run", required_argument, NULL, RUN },
  { "selinux-label", required_argument, NULL, FINE },
  { "short-options", no_argument, NULL, NOT_SERVING },
  { "single", no_argument, NULL, 's' },
  { "stdin", no_argument, NULL, 's' },
  { "swap", no_argument, NULL, FINE },
  { "threads", required_argument, NULL, 't' },
  { "tls", required_argument, NULL, FINE },
  { "tls-certificates", required_argument, NULL, FINE },
  { "tls-psk", required_argument, NULL, FINE },
  { "tls-verify-peer", no_argument, NULL, FINE },
  { "unix", required_argument, NULL, 'U' },
  { "user", required_argument, NULL, FINE },
  { "verbose", no_argument, NULL, FINE },
  { "version", no_argument, NULL, NOT_SERVING },
  { "vsock", no_argument, NULL, VSOCK },
  { NULL, 0, NULL, 0 }
};

/* Why the option C is refused; NULL if it is not. */
static const char *
why_not (int c)
{
  switch (c) {
  case 'U':
    return "give --unix before the \"--\"";
  case 'p':
    return "give --port before the \"--\"";
  case 'i':
    return "give --ipaddr before the \"--\"";
  case 't':
    return "give --threads before the \"--\"";
  case 's':
    return "serve has a socket to listen on, not a connection on standard "
      "input";
  case VSOCK:
    return "serve listens on a Unix socket or TCP, see --unix and --port";
  case RUN:
    return "start the command yourself, once serve has printed the URI; or "
      "use nbdkit without serve";
  case WITH_PARENT:
    return "nbdkit ends after serve by itself, once everything is durable";
  case 'V':
  case NOT_SERVING:
    return "nbdkit would serve nothing then; use it without serve";
  default:
    return NULL;
  }
}

/* Parameters that serve sets for the plugin, and that mean nothing from
 * elsewhere. */
static int
check_parameter (const char *arg)
{
  if (strncmp (arg, "keeper=", 7) != 0 && strncmp (arg, "memory=", 7) != 0)
    return 0;
  nc_error ("'%s' cannot be given: \"nbdchain serve\" sets it", arg);
  return -1;
}

static int
check (int argc, char *argv[])
{
  int c, index = -1;

  optind = 0;                   /* once more from the start */
  while ((c = getopt_long (argc, argv, short_options, options,
                           &index)) != -1) {
    const char *why = why_not (c);

    if (why && index >= 0)
      nc_error ("nbdkit's --%s cannot be given: %s", options[index].name, why);
    else if (why)
      nc_error ("nbdkit's -%c cannot be given: %s", c, why);
    if (why)
      return -1;
    index = -1;
  }
  for (; optind < argc; optind++)
    if (check_parameter (argv[optind]) == -1)
      return -1;
  return 0;
}

int
nbdkit_options_check (char *const argv[])
{
  NC_FREE char **copy = NULL;
  size_t n = 0;

  while (argv[n])
    n++;
  copy = calloc (n + 2, sizeof *copy);
  if (copy == NULL) {
    nc_error ("out of memory");
    return -1;
  }
  /* The copy, since getopt_long sorts it. */
  copy[0] = "nbdkit";
  memcpy (copy + 1, argv, n * sizeof *copy);
  return check (n + 1, copy);
}
