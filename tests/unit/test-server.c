/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The order in which parts of a server are started and stopped. */

#include <config.h>

#include "serve/server.h"

#include "tap.h"

static char done[64];           /* a letter for each call */
static bool is_broken;

/* A chain is only passed on. */
static struct nc_chain *const chain = (struct nc_chain *) done;
static struct nc_jobs *const jobs = (struct nc_jobs *) (done + 1);

static void
remember (const char *what)
{
  strcat (done, what);
}

static int
start (void *opaque, struct nc_chain *c)
{
  if (c != chain || (is_broken && strcmp (opaque, "c") == 0))
    return -1;
  remember (opaque);
  return 0;
}

static void
stop (void *opaque)
{
  remember ("-");
  remember (opaque);
}

static void
end (void *opaque)
{
  remember ("/");
  remember (opaque);
}

static int
add (const char *name)
{
  const struct nc_part part = {
    .name = name, .opaque = (void *) name, .start = start, .stop = stop,
    .end = end,
  };

  return nc_server_add (&part);
}

int
main (void)
{
  tap_start (60);

  ok (nc_server_chain () == NULL && add ("a") == -1 && errno == EINVAL &&
      strstr (tap_error, "only over the plugin \"chain\""),
      "without our plugin no filter works");

  nc_server_begin (chain, jobs);
  ok (nc_server_chain () == chain && nc_server_jobs () == jobs &&
      add ("a") == 0 && add ("b") == 0 && add ("c") == 0,
      "filters are added");
  ok (add ("b") == -1 && strstr (tap_error, "--filter=b was given twice"),
      "no filter twice");

  ok (nc_server_start () == 0 && strcmp (done, "abc") == 0,
      "parts start in the order in which they were added");
  nc_server_stop ();
  nc_server_stop ();
  ok (strcmp (done, "abc-c-b-a") == 0,
      "parts stop once, the other way round");

  nc_server_end ();
  ok (strcmp (done, "abc-c-b-a/c/b/a") == 0, "and end so");

  *done = '\0';
  nc_server_begin (chain, jobs);
  must (add ("a") == 0 && add ("b") == 0 && add ("c") == 0, "add");
  is_broken = true;
  ok (nc_server_start () == -1 && strcmp (done, "ab") == 0,
      "a part that cannot start ends the start");
  nc_server_stop ();
  nc_server_end ();
  ok (strcmp (done, "ab-b-a/b/a") == 0, "those before it are stopped");
  ok (nc_server_chain () == NULL && add ("d") == -1,
      "afterwards there is no chain");
  return tap_done ();
}
