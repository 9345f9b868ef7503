/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of recording a profile, from many threads at once, and of profiles as
 * text. */

#include <config.h>

#include "copyread/recorder.h"

#include "image/profile-text.h"
#include "tap.h"
#include "util/checked.h"
#include "util/clock.h"

#define GRAIN UINT64_C (16384)
#define GRAINS 5000
#define SIZE (GRAINS * GRAIN - 100)
#define THREADS 4

typedef struct nc_profile_range range;

static bool
is_range (const range *r, uint64_t offset, uint64_t count)
{
  return (r->offset == offset && r->count == count) ||
    note ("%llu bytes at %llu", (unsigned long long) r->count,
          (unsigned long long) r->offset);
}

static void
test_order (void)
{
  struct nc_profile *p = nc_profile_new (SIZE, 4096);
  struct nc_profile_stats stats;
  range *v = NULL;
  uint64_t since;
  size_t n;

  must (p != NULL, "profile");
  nc_profile_touch (p, 0, 1);
  ok (nc_profile_stop (p, &v, &n) == -1 && errno == ENOENT,
      "nothing is recorded before it is started");
  /* What goes on must do so soon: anew, if we did not run meanwhile. */
  do {
    nc_profile_start (p);
    since = nc_now ();
    nc_profile_touch (p, 5 * GRAIN + 1, 1);
    nc_profile_touch (p, 6 * GRAIN - 1, 2);     /* goes on */
  } while (nc_now () - since >= NC_PROFILE_TOGETHER * NC_SECOND / 1000);
  nc_profile_touch (p, 5 * GRAIN, 2 * GRAIN);   /* nothing new */
  nc_profile_touch (p, 3 * GRAIN, 5 * GRAIN);   /* new around it */
  nc_profile_touch (p, SIZE - 1, 1);
  usleep (2 * NC_PROFILE_TOGETHER * 1000);
  nc_profile_touch (p, 100 * GRAIN, 200 * GRAIN);
  usleep (2 * NC_PROFILE_TOGETHER * 1000);
  nc_profile_touch (p, 300 * GRAIN, 1);         /* goes on, but later */
  nc_profile_get (p, &stats);
  ok (stats.is_recording && stats.ranges == 6 && stats.lost == 0 &&
      stats.bytes == 207 * GRAIN - 100, "it says how much was recorded");
  ok (nc_profile_stop (p, &v, &n) == 0 && n == 6 &&
      is_range (&v[0], 5 * GRAIN, 2 * GRAIN) &&
      is_range (&v[1], 3 * GRAIN, 2 * GRAIN) &&
      is_range (&v[2], 7 * GRAIN, GRAIN) &&
      is_range (&v[3], 4999 * GRAIN, GRAIN - 100) &&
      is_range (&v[4], 100 * GRAIN, 200 * GRAIN) &&
      is_range (&v[5], 300 * GRAIN, GRAIN),
      "first touches are recorded, whole grains, in their order");
  ok (v[0].time == 0 && v[4].time >= 2 * NC_PROFILE_TOGETHER &&
      v[5].time >= v[4].time + 2 * NC_PROFILE_TOGETHER,
      "with the time since the first");
  free (v);
  nc_profile_touch (p, 1000 * GRAIN, 1);
  nc_profile_start (p);
  nc_profile_touch (p, 5 * GRAIN, 1);
  nc_profile_touch (p, 1000 * GRAIN, 1);
  ok (nc_profile_stop (p, &v, &n) == 0 && n == 2 && v[0].time == 0 &&
      is_range (&v[0], 5 * GRAIN, GRAIN) &&
      is_range (&v[1], 1000 * GRAIN, GRAIN), "it can be started anew");
  free (v);
  nc_profile_free (p);
}

static void
test_hits (void)
{
  const range named[] = {
    { 10 * GRAIN, 10 * GRAIN, 0 }, { 15 * GRAIN, 1, 1 },
    { 4998 * GRAIN, UINT64_MAX, 2 }, { UINT64_MAX, 1, 3 }, { 0, 0, 4 },
  };
  struct nc_profile *p = nc_profile_new (SIZE, 4096);
  struct nc_profile_stats stats;

  must (p && nc_profile_compare (p, named, 5) == 0, "compare");
  nc_profile_touch (p, 0, 20 * GRAIN);
  nc_profile_touch (p, 12 * GRAIN, 1);
  nc_profile_touch (p, SIZE - 1, 1);
  nc_profile_get (p, &stats);
  ok (stats.named == 12 * GRAIN - 100 && stats.touched == 21 * GRAIN - 100 &&
      stats.hit == 11 * GRAIN - 100,
      "what is read is compared with what a profile names");
  nc_profile_start (p);
  nc_profile_touch (p, 12 * GRAIN, 1);
  nc_profile_get (p, &stats);
  ok (stats.named == 12 * GRAIN - 100 && stats.touched == GRAIN &&
      stats.hit == GRAIN, "anew with each recording");
  nc_profile_free (p);
}

static void
test_bounds (void)
{
  struct nc_profile *p = nc_profile_new (UINT64_C (8) << 40, 4096);
  struct nc_profile_stats stats;
  const uint64_t grain = 1 << 20;
  range *v = NULL;
  size_t n;

  must (p != NULL, "profile");
  nc_profile_start (p);
  for (uint64_t i = 0; i < NC_PROFILE_RANGES + 10; ++i)
    nc_profile_touch (p, i * 2 * grain, 1);
  nc_profile_get (p, &stats);
  ok (stats.ranges == NC_PROFILE_RANGES && stats.lost == 10 &&
      stats.bytes == NC_PROFILE_RANGES * grain &&
      nc_profile_stop (p, &v, &n) == 0 && n == NC_PROFILE_RANGES,
      "memory is bounded on a huge disk, and what was lost is known");
  free (v);
  nc_profile_free (p);
}

struct toucher {
  pthread_t thread;
  struct nc_profile *p;
  uint64_t seed;
  uint8_t touched[GRAINS];
};

static void *
touch (void *opaque)
{
  struct toucher *t = opaque;

  for (unsigned i = 0; i < 20000; ++i) {
    const uint64_t offset = rnd_below (&t->seed, SIZE);
    const uint64_t count =
      nc_min64 (1 + rnd_below (&t->seed, 10) * 10000, SIZE - offset);

    nc_profile_touch (t->p, offset, count);
    for (uint64_t g = offset / GRAIN; g <= (offset + count - 1) / GRAIN; ++g)
      t->touched[g] = 1;
  }
  return NULL;
}

static void
test_threads (uint64_t *seed)
{
  static struct toucher t[THREADS];
  struct nc_profile *p = nc_profile_new (SIZE, 4096);
  static uint8_t seen[GRAINS];
  bool good = true;
  range *v = NULL;
  size_t n;

  must (p != NULL, "profile");
  nc_profile_start (p);
  for (unsigned i = 0; i < THREADS; ++i) {
    t[i].p = p;
    t[i].seed = rnd (seed);
    must (pthread_create (&t[i].thread, NULL, touch, &t[i]) == 0, "thread");
  }
  for (unsigned i = 0; i < THREADS; ++i)
    pthread_join (t[i].thread, NULL);
  must (nc_profile_stop (p, &v, &n) == 0, "stop");
  for (size_t i = 0; i < n; ++i)
    for (uint64_t g = v[i].offset / GRAIN;
         g * GRAIN < v[i].offset + v[i].count; ++g)
      seen[g]++;
  for (unsigned g = 0; g < GRAINS && good; ++g) {
    uint8_t any = 0;

    for (unsigned i = 0; i < THREADS; ++i)
      any |= t[i].touched[g];
    good = seen[g] == any || note ("grain %u: %u", g, seen[g]);
  }
  ok (good, "many threads: each grain that was read is there, and once");
  free (v);
  nc_profile_free (p);
}

/* Text. */

static int
parse (const char *text, struct nc_profile_text *to)
{
  FILE *fp = fmemopen ((void *) text, strlen (text), "r");
  int r, err;

  must (fp != NULL, "fmemopen");
  tap_clear ();
  r = nc_profile_text_read (fp, "file", to);
  err = errno;
  fclose (fp);
  errno = err;
  return r;
}

#define UUID "6a8f4c1e-3b60-4a4e-9d2f-0d5f7a3c9b11"

static void
test_text (void)
{
  range v[] = { { 0, 4096, 0 }, { UINT64_C (1) << 40, 1, UINT32_MAX } };
  struct nc_profile_text text = { .size = (UINT64_C (1) << 40) + 1,
                                  .base = UUID, .ranges = v, .n = 2 };
  struct nc_profile_text back;
  char *buf = NULL;
  size_t len;
  FILE *fp = open_memstream (&buf, &len);

  must (fp != NULL, "open_memstream");
  nc_profile_text_write (fp, &text);
  fclose (fp);
  ok (parse (buf, &back) == 0 && back.size == text.size &&
      strcmp (back.base, UUID) == 0 && back.n == 2 &&
      is_range (&back.ranges[0], v[0].offset, v[0].count) &&
      is_range (&back.ranges[1], v[1].offset, v[1].count) &&
      back.ranges[1].time == UINT32_MAX, "what is written is read");
  nc_profile_text_free (&back);
  free (buf);
  ok (parse ("nbdchain-profile 1\n\n# none\nsize 5\n", &back) == 0 &&
      back.n == 0 && back.size == 5 && !*back.base,
      "a file may have no ranges and no base");
  nc_profile_text_free (&back);
}

static void
test_refused (void)
{
  static const struct { const char *text, *message; } wrong[] = {
    { "", "line 1: not 'nbdchain-profile 1'" },
    { "nbdchain-profile 2\nsize 5\n", "line 1: not" },
    { "nbdchain-profile 1\n", "'size', the bytes of the disk, is missing" },
    { "nbdchain-profile 1\n0 0 1\n", "line 2: 'size'" },
    { "nbdchain-profile 1\nsize 0\n", "line 2: 'size' needs" },
    { "nbdchain-profile 1\nsize 9\nsize 9\n", "line 3: 'size' needs" },
    { "nbdchain-profile 1\nsize 9223372036854775808\n", "'size' needs" },
    { "nbdchain-profile 1\nsize 9 9\n", "'size' needs" },
    { "nbdchain-profile 1\nbase x\n", "'base' needs a UUID" },
    { "nbdchain-profile 1\nbase " UUID "0\n", "'base' needs a UUID" },
    { "nbdchain-profile 1\nbase " UUID "\nbase " UUID "\n", "once" },
    { "nbdchain-profile 1\nsize 9\n0 0\n", "line 3: three numbers" },
    { "nbdchain-profile 1\nsize 9\n0 0 1 1\n", "three numbers" },
    { "nbdchain-profile 1\nsize 9\n-1 0 1\n", "three numbers" },
    { "nbdchain-profile 1\nsize 9\n4294967296 0 1\n", "three numbers" },
    { "nbdchain-profile 1\nsize 9\n0 0x1 1\n", "three numbers" },
    { "nbdchain-profile 1\nsize 9\n0  1 1\n", "three numbers" },
    { "nbdchain-profile 1\nsize 9\n0 99999999999999999999 1\n",
      "three numbers" },
    { "nbdchain-profile 1\nsize 9\n0 0 1 \n", "line 3: three numbers" },
    { "nbdchain-profile 1\nsize 9\n 0 0 1\n", "line 3: three numbers" },
    { "nbdchain-profile 1\nsize 9\n0 0 1\r\n", "line 3: three numbers" },
    { "nbdchain-profile 1\nsize 9 \n", "line 2: 'size' needs" },
    { "nbdchain-profile 1\nbase " UUID " \n", "line 2: 'base' needs a UUID" },
    { "nbdchain-profile 1\n# caf\xc3\xa9\n", "line 2: has what is no ASCII" },
    { "nbdchain-profile 1\nsize 9\n0 9 1\n", "are not inside a disk of 9" },
    { "nbdchain-profile 1\nsize 9\n0 0 0\n", "are not inside" },
    { "nbdchain-profile 1\nsize 9\n0 2 18446744073709551615\n",
      "are not inside" },
    { "nbdchain-profile 1\nsize 9\n0 0 1\nsize 9\n", "line 4: three" },
    { "nbdchain-profile 1\nsize 9\n0 0 1", "or without its end" },
    { "nbdchain-profile 1\nsize 9\n# 0000000000000000000000000000000000000"
      "00000000000000000000000000000000000000000000000000000000000000000000"
      "00000000000000000000000000000000000000000000\n", "longer than 126" },
  };
  struct nc_profile_text text;

  for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
    int r = parse (wrong[i].text, &text);

    ok (r == -1 && errno == EINVAL && tap_errors == 1 &&
        strstr (tap_error, wrong[i].message), "refused: %s", tap_error);
    nc_profile_text_free (&text);
  }
}

int
main (void)
{
  uint64_t seed = tap_start (600);

  test_order ();
  test_hits ();
  test_bounds ();
  test_threads (&seed);
  test_text ();
  test_refused ();
  return tap_done ();
}
