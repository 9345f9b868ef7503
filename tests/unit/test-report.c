/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A failure that many requests meet is told at once, and not once for each;
 * another one is told whatever came before. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "tap.h"
#include "util/report.h"

enum { N_THREADS = 8, N_EACH = 1000 };

static struct nc_repeat shared;
static _Atomic (unsigned) n_told;

static void *
meet_failure (void *opaque)
{
  char text[NC_REPEAT_TEXT];

  (void) opaque;
  for (unsigned i = 0; i < N_EACH; i++)
    if (nc_repeat_report (&shared, EIO, text))
      n_told++;
  return NULL;
}

/* As if it had been told long ago. */
static void
let_time_pass (struct nc_repeat *repeat)
{
  for (unsigned i = 0; i < NC_REPEAT_CAUSES; ++i)
    if (repeat->last[i] > 0)
      repeat->last[i] -= (uint64_t) (NC_REPEAT_SECONDS + 1) << 16;
}

static void
test_one_thread (void)
{
  struct nc_repeat repeat = { 0 };
  char text[NC_REPEAT_TEXT];
  unsigned n = 0;

  errno = EPIPE;
  ok (nc_repeat_report (&repeat, ENOSPC, text) && text[0] == '\0' &&
      errno == EPIPE, "the first is told");
  let_time_pass (&repeat);
  ok (nc_repeat_report (&repeat, ENOSPC, text) && text[0] == '\0',
      "one that comes long after is told, too");
  ok (nc_repeat_report (&repeat, EIO, text), "so is another failure at once");

  for (unsigned i = 0; i < 1000; i++)
    n += nc_repeat_report (&repeat, EIO, text);
  ok (n < 1000, "one that comes again and again is not told each time");
  repeat.untold = 17;
  let_time_pass (&repeat);
  ok (nc_repeat_report (&repeat, EIO, text) && strstr (text, "17 times"),
      "how often it was not told is told");
}

/* As threads do that fail at places of their own. */
static void
test_alternating (void)
{
  struct nc_repeat repeat = { 0 };
  char text[NC_REPEAT_TEXT];
  unsigned n = 0;

  for (unsigned i = 0; i < 900; i++)
    n += nc_repeat_report (&repeat, 1 + i % 3, text);
  ok (n >= 3 && n < 300, "failures that take turns are not told each time");
  for (unsigned i = 0; i < 900; i++)
    n += nc_repeat_report (&repeat, 100 + i, text);
  ok (n < 300, "nor are ever new ones");
  repeat.untold = 17;
  let_time_pass (&repeat);
  ok (nc_repeat_report (&repeat, 2000, text) && strstr (text, "17 times"),
      "they are counted");
}

static void
test_threads (void)
{
  pthread_t threads[N_THREADS];
  unsigned i;

  for (i = 0; i < N_THREADS; i++)
    if (pthread_create (&threads[i], NULL, meet_failure, NULL) != 0)
      return;
  for (i = 0; i < N_THREADS; i++)
    pthread_join (threads[i], NULL);
  ok (n_told >= 1 && n_told < N_THREADS * N_EACH,
      "of many threads, few tell it");
  ok (n_told > 1 || shared.untold == N_THREADS * N_EACH - 1,
      "and the others are counted");
}

int
main (void)
{
  tap_start (60);
  test_one_thread ();
  test_alternating ();
  test_threads ();
  return tap_done ();
}
