/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What "nbdchain serve" and systemd tell each other: sockets that systemd
 * hands over, and notices for it.  All of it is quiet where systemd did not
 * start us. */

#include <config.h>

#include "serve.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "tools.h"
#include "util/report.h"

#ifdef HAVE_SYSTEMD

int
systemd_sockets (void)
{
  int n = sd_listen_fds (1);

  if (n < 0) {
    errno = -n;
    nc_error ("the sockets that systemd handed over: %m");
    return -1;
  }
  return n;
}

void
systemd_notify (const char *fmt, ...)
{
  char state[4096];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (state, sizeof state, fmt, ap);
  va_end (ap);
  sd_notify (0, state);
}

#else /* !HAVE_SYSTEMD */

int
systemd_sockets (void)
{
  const char *pid = getenv ("LISTEN_PID");

  if (pid == NULL || strtoimax (pid, NULL, 10) != getpid ())
    return 0;
  nc_error ("LISTEN_FDS is set, but this nbdchain was built without systemd: "
            "give --unix or --port, or build it with libsystemd");
  return -1;
}

void
systemd_notify (const char *fmt __attribute__ ((__unused__)), ...)
{
}

#endif

bool
systemd_reads (int fd)
{
  const char *stream = getenv ("JOURNAL_STREAM");
  uintmax_t dev, ino;
  struct stat st;

  return stream && sscanf (stream, "%ju:%ju", &dev, &ino) == 2 &&
    fstat (fd, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}
