/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The progress of long work, drawn by the threads that do it.  None of them
 * waits for another: if one is drawing, the others go on. */

#include <config.h>

#include "progress.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "tools.h"
#include "util/checked.h"
#include "util/scope.h"

#define SECOND UINT64_C (1000000000)

/* Between two drawings; and what work may take before a bar appears. */
#define BAR_INTERVAL (SECOND / 10)
#define LINE_INTERVAL SECOND
#define BAR_DELAY (SECOND / 2)

/* The rate is that of the time which the samples cover. */
#define SAMPLES 16
#define SAMPLE_INTERVAL (SECOND / 2)

#define BAR_WIDTH_MAX 40

struct sample {
  uint64_t time, done;
};

struct progress {
  enum progress_style style;
  uint64_t start;               /* ns, as all times here */
  _Atomic (uint64_t) done, total;
  _Atomic (uint64_t) next;      /* nothing is drawn before */
  _Atomic (const char *) limit; /* NULL: not known */

  pthread_mutex_t drawing;      /* guards what follows */
  struct sample samples[SAMPLES];
  size_t n_samples;             /* ever taken; the last SAMPLES are kept */
  unsigned percent;             /* shown last */
  char what[];
};

/* Columns of the bar that stands on the terminal; guarded by flockfile
 * (stderr). */
static int shown;

static uint64_t
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t) ts.tv_sec * SECOND + (uint64_t) ts.tv_nsec;
}

enum progress_style
progress_style (bool wanted, bool json)
{
  if (wanted && json)
    return PROGRESS_JSON;
  if (isatty (STDERR_FILENO))
    return PROGRESS_BAR;
  return wanted ? PROGRESS_LINES : PROGRESS_NONE;
}

struct progress *
progress_start (const char *what, enum progress_style style)
{
  struct progress *p;

  if (style == PROGRESS_NONE)
    return NULL;
  p = calloc (1, sizeof *p + strlen (what) + 1);
  if (p == NULL)
    return NULL;
  p->style = style;
  p->start = now ();
  p->next = p->start + (style == PROGRESS_BAR ? BAR_DELAY : LINE_INTERVAL);
  pthread_mutex_init (&p->drawing, NULL);
  p->samples[p->n_samples++] = (struct sample) { .time = p->start };
  strcpy (p->what, what);
  return p;
}

/* What is shown. */

struct state {
  uint64_t done, total;
  uint64_t rate;                /* bytes a second */
  unsigned percent;
  uint64_t left;                /* seconds; UINT64_MAX: unknown */
  uint64_t taken;               /* seconds */
  bool complete;
  const char *limit;            /* NULL: none, or not known */
};

static uint64_t
rate_of (uint64_t bytes, uint64_t time)
{
  return time > 0
    ? (uint64_t) ((double) bytes * (double) SECOND / (double) time) : 0;
}

/* The rate of the last seconds. */
static uint64_t
recent_rate (struct progress *p, uint64_t time, uint64_t done)
{
  const size_t oldest = p->n_samples > SAMPLES ? p->n_samples % SAMPLES : 0;
  const struct sample *first = &p->samples[oldest];
  const struct sample *last = &p->samples[(p->n_samples - 1) % SAMPLES];
  const uint64_t rate = rate_of (done - first->done, time - first->time);

  if (time - last->time >= SAMPLE_INTERVAL)
    p->samples[p->n_samples++ % SAMPLES] =
      (struct sample) { .time = time, .done = done };
  return rate;
}

static unsigned
percent_of (uint64_t done, uint64_t total)
{
  return total > 0 ? (unsigned) ((unsigned __int128) done * 100 / total) : 0;
}

/* The percentage stays at 99 until the end, and where it was when TOTAL has
 * grown. */
static struct state
state_now (struct progress *p, bool complete)
{
  const uint64_t time = now ();
  struct state s = {
    .done = p->done, .total = p->total, .complete = complete,
    .left = UINT64_MAX, .taken = (time - p->start) / SECOND,
    .limit = p->limit,
  };

  s.total = nc_max64 (s.total, s.done);
  if (complete) {
    s.done = s.total;
    s.rate = rate_of (s.done, time - p->start);
    s.percent = 100;
    s.left = 0;
    return s;
  }
  s.rate = recent_rate (p, time, s.done);
  s.percent = percent_of (s.done, s.total);
  if (s.percent > 99)
    s.percent = 99;
  if (s.percent < p->percent)
    s.percent = p->percent;
  p->percent = s.percent;
  if (s.rate > 0)
    s.left = nc_div_up (s.total - s.done, s.rate);
  return s;
}

#define TIME_TEXT 32

static const char *
time_text (uint64_t seconds, char buf[TIME_TEXT])
{
  const uint64_t hours = seconds / 3600;
  const unsigned m = (unsigned) (seconds / 60 % 60), s = seconds % 60;

  if (seconds == UINT64_MAX)
    snprintf (buf, TIME_TEXT, "-:--");
  else if (hours >= 100)
    snprintf (buf, TIME_TEXT, "%" PRIu64 " days", hours / 24);
  else if (hours > 0)
    snprintf (buf, TIME_TEXT, "%" PRIu64 ":%02u:%02u", hours, m, s);
  else
    snprintf (buf, TIME_TEXT, "%u:%02u", m, s);
  return buf;
}

#define STATE_TEXT (3 * SIZE_TEXT + TIME_TEXT + 64)

/* "4.5 GiB of 10 GiB, 312.0 MiB/s, 0:18 left, slowed by source" */
static void
state_text (const struct state *s, char buf[STATE_TEXT])
{
  char done[SIZE_TEXT], total[SIZE_TEXT], rate[SIZE_TEXT];
  char time[TIME_TEXT];

  size_text (s->rate, rate);
  if (s->complete)
    snprintf (buf, STATE_TEXT, "%s in %s, %s/s", size_text (s->total, total),
              time_text (s->taken, time), rate);
  else
    snprintf (buf, STATE_TEXT, "%s of %s, %s/s, %s left%s%.16s",
              size_text (s->done, done), size_text (s->total, total), rate,
              time_text (s->left, time), s->limit ? ", slowed by " : "",
              s->limit ? s->limit : "");
}

/* Columns that are there for a bar beside TEXT. */
static int
bar_width (const struct progress *p, const char *text)
{
  /* The last column stays free: some terminals go to the next line. */
  const int width = terminal_width (STDERR_FILENO) - 1
    - (int) strlen (p->what) - (int) strlen (" []  100 %  ")
    - (int) strlen (text);

  return width > BAR_WIDTH_MAX ? BAR_WIDTH_MAX : width;
}

/* In one piece: stderr has no buffer. */
static void
print_bar (const struct progress *p, const struct state *s)
{
  char text[STATE_TEXT], bar[BAR_WIDTH_MAX + 3] = "";
  int width, filled, columns;

  state_text (s, text);
  width = bar_width (p, text);
  if (width >= 4) {
    filled = width * (int) s->percent / 100;
    bar[0] = '[';
    memset (bar + 1, '#', filled);
    memset (bar + 1 + filled, '-', width - filled);
    bar[1 + width] = ']';
  }
  else if (width < 0)
    *text = '\0';
  columns = (int) (strlen (p->what) + strlen (bar) + strlen (text)
                   + strlen ("   100 %  "));
  /* The spaces wipe out what a longer line has left. */
  fprintf (stderr, "\r%s %s  %3u %%  %s%*s%s", p->what, bar, s->percent, text,
           shown > columns ? shown - columns : 0, "",
           s->complete ? "\n" : "");
  shown = s->complete ? 0 : columns;
}

static void
print_line (const struct progress *p, const struct state *s)
{
  char text[STATE_TEXT];

  state_text (s, text);
  fprintf (stderr, "%s: %u %%, %s\n", p->what, s->percent, text);
}

static void
print_json_line (const struct state *s)
{
  json_t *json = json_pack ("{s:I, s:I, s:I, s:o, s:b}",
                            "done", (json_int_t) s->done,
                            "total", (json_int_t) s->total,
                            "rate", (json_int_t) s->rate,
                            "left", s->left == UINT64_MAX ? json_null ()
                            : json_integer ((json_int_t) s->left),
                            "complete", s->complete);
  NC_FREE char *text = NULL;

  if (json && s->limit)
    json_object_set_new (json, "limit", json_string (s->limit));
  text = json ? json_dumps (json, JSON_COMPACT) : NULL;
  if (text != NULL)
    fprintf (stderr, "%s\n", text);
  json_decref (json);
}

/* The caller holds p->drawing. */
static void
draw_locked (struct progress *p, bool complete)
{
  const struct state s = state_now (p, complete);

  flockfile (stderr);
  if (p->style == PROGRESS_BAR)
    print_bar (p, &s);
  else if (p->style == PROGRESS_LINES)
    print_line (p, &s);
  else
    print_json_line (&s);
  funlockfile (stderr);
}

/* Raise *VALUE to NEW, if it is below. */
static void
raise_to (_Atomic (uint64_t) *value, uint64_t new)
{
  uint64_t old = *value;

  while (old < new && !atomic_compare_exchange_weak (value, &old, new))
    ;
}

void
progress_update (struct progress *p, uint64_t done, uint64_t total)
{
  uint64_t time;

  if (p == NULL)
    return;
  p->total = total;
  raise_to (&p->done, done);
  time = now ();
  if (time < p->next || pthread_mutex_trylock (&p->drawing) != 0)
    return;
  if (time >= p->next) {
    p->next = time + (p->style == PROGRESS_BAR ? BAR_INTERVAL
                                               : LINE_INTERVAL);
    draw_locked (p, false);
  }
  pthread_mutex_unlock (&p->drawing);
}

void
progress_limit (struct progress *p, const char *limit)
{
  if (p)
    p->limit = limit && strcmp (limit, "none") != 0 ? limit : NULL;
}

void
progress_call (void *opaque, uint64_t done, uint64_t total)
{
  progress_update (opaque, done, total);
}

void
progress_hide (void)
{
  if (shown == 0)
    return;
  fprintf (stderr, "\r%*s\r", shown, "");
  shown = 0;
}

/* Work that was over before its bar appeared needs none. */
void
progress_finish (struct progress *p, bool complete)
{
  const bool drawn = p != NULL && (p->style != PROGRESS_BAR
                                   || p->next > p->start + BAR_DELAY);

  if (p == NULL)
    return;
  if (complete && drawn)
    draw_locked (p, true);
  flockfile (stderr);
  progress_hide ();
  funlockfile (stderr);
  pthread_mutex_destroy (&p->drawing);
  free (p);
}
