/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of prefetching: its policy against a clock that we turn, and the job
 * over a chain that clients use all the time. */

#include <config.h>

#include "job/prefetch.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "chain/chain.h"
#include "copy/pacer.h"
#include "folder.h"
#include "image/image.h"
#include "tap.h"
#include "util/checked.h"

#define MS UINT64_C (1000000)
#define SECOND UINT64_C (1000000000)
#define MB 1000000
#define PIECE (64 << 10)

static const struct nc_prefetch_policy nothing;

/* A source that brings RATE bytes a second, one piece at a time. */
struct source {
  struct nc_pace pace;
  uint64_t now, rate;
  uint64_t bytes;               /* so far */
  unsigned waits[NC_LIMIT_DELAY + 1];   /* by reason */
  uint64_t longest, shortest;   /* pause */
};

static void
source_init (struct source *s, const struct nc_prefetch_policy *policy,
             uint64_t rate, uint64_t seed)
{
  *s = (struct source) {
    .now = 1000 * SECOND, .rate = rate, .shortest = UINT64_MAX,
  };
  nc_pace_init (&s->pace, policy, PIECE, seed, s->now);
}

/* Prefetch until T has passed, beside GUEST. */
static void
pass (struct source *s, uint64_t t, enum nc_pace_guest guest)
{
  const uint64_t end = s->now + t;
  enum nc_job_limit why;
  uint64_t wait, paused;

  while (s->now < end) {
    paused = s->pace.pauses;
    wait = nc_pace_wait (&s->pace, PIECE, guest, s->now, &why);
    must (wait <= NC_RATE_SLICE, "waits at most a slice");
    if (wait) {
      s->waits[why]++;
      s->now += wait;
      continue;
    }
    nc_pace_begin (&s->pace, NC_PACE_READ, s->now);
    s->now += PIECE * SECOND / s->rate;
    nc_pace_end (&s->pace, NC_PACE_READ, PIECE, s->now);
    s->bytes += PIECE;
    if (s->pace.pauses != paused) {
      s->longest = nc_max64 (s->longest, s->pace.paused_until - s->now);
      s->shortest = nc_min64 (s->shortest, s->pace.paused_until - s->now);
    }
  }
}

/* The rate, bytes a second, during T. */
static double
rate_of (struct source *s, uint64_t t, enum nc_pace_guest guest)
{
  const uint64_t since = s->now, bytes = s->bytes;

  pass (s, t, guest);
  return (double) (s->bytes - bytes) * SECOND / (double) (s->now - since);
}

static bool
is_about (double what, double wanted)
{
  return (what > wanted * 0.95 && what < wanted * 1.05) ||
    note ("%.0f, not %.0f", what, wanted);
}

static void
test_rates (uint64_t seed)
{
  struct nc_prefetch_policy policy = { .start_delay = 5 };
  struct source s;

  source_init (&s, &policy, 400 * MB, seed);
  pass (&s, 5 * SECOND - 1, NC_GUEST_IDLE);
  ok (s.bytes == 0 && s.waits[NC_LIMIT_DELAY] > 0, "the start is delayed");
  ok (is_about (rate_of (&s, SECOND, NC_GUEST_IDLE), 400 * MB),
      "then the source is used fully");
  ok (is_about ((double) nc_pace_measured (&s.pace, NC_PACE_READ), 400 * MB),
      "and its rate is known");

  policy.max_read = 20 * MB;
  nc_pace_set (&s.pace, &policy, s.now);
  ok (is_about (rate_of (&s, 10 * SECOND, NC_GUEST_IDLE), 20 * MB) &&
      s.waits[NC_LIMIT_RATE] > 0, "the maximal rate of reading is held");
  policy.max_write = 5 * MB;
  nc_pace_set (&s.pace, &policy, s.now);
  ok (is_about (rate_of (&s, 10 * SECOND, NC_GUEST_IDLE), 5 * MB),
      "that of writing, too");
  ok (nc_pace_unit (&s.pace, NC_GUEST_IDLE, 0) == 5 * MB / 10,
      "what is read at a time fits in a slice");
  ok (is_about (rate_of (&s, 10 * SECOND, NC_GUEST_BUSY), 5 * MB),
      "a low one also beside the guest");
  nc_pace_set (&s.pace, &nothing, s.now);
  ok (is_about (rate_of (&s, SECOND, NC_GUEST_IDLE), 400 * MB) &&
      nc_pace_unit (&s.pace, NC_GUEST_IDLE, 0) == NC_PACE_UNIT,
      "and no limit is none");
}

static void
test_guest (uint64_t seed)
{
  struct source s;
  enum nc_job_limit why;
  uint64_t wait;

  source_init (&s, &nothing, 300 * MB, seed);
  ok (nc_pace_wait (&s.pace, PIECE, NC_GUEST_BUSY, s.now, &why) == 0,
      "beside a guest it first finds out what the source can do");
  pass (&s, SECOND, NC_GUEST_IDLE);
  ok (is_about (rate_of (&s, 10 * SECOND, NC_GUEST_BUSY),
                300 * MB * 0.3) &&
      s.waits[NC_LIMIT_GUEST] > 0,
      "then it takes three tenths while the guest is busy");
  ok (is_about (rate_of (&s, 10 * SECOND, NC_GUEST_WAITS), 300.0 * MB / 8),
      "and less while the guest waits for the source");
  ok (nc_pace_unit (&s.pace, NC_GUEST_BUSY, 0) == PIECE,
      "in small pieces");
  do
    wait = nc_pace_wait (&s.pace, PIECE, NC_GUEST_WAITS, s.now, &why);
  while (wait == 0);
  ok (why == NC_LIMIT_GUEST &&
      nc_pace_wait_urgent (&s.pace, PIECE, s.now, &why) == 0,
      "but what the guest needs soon does not wait for the guest");
  ok (nc_pace_wait (&s.pace, PIECE, NC_GUEST_IDLE, s.now, &why) == 0 &&
      is_about (rate_of (&s, SECOND, NC_GUEST_IDLE), 300 * MB),
      "it takes all as soon as the guest is idle");
}

/* The rate beside the guest over a WAY, to a server that works on 16 requests
 * at a time, by somebody who is LATE whenever he has waited; *STEP is the last
 * one. */
static double
rate_over (struct source *s, uint64_t way, uint64_t late, uint32_t *step)
{
  const uint64_t since = s->now, end = since + 10 * SECOND;
  uint64_t ends[16] = { 0 }, bytes = 0;

  for (unsigned i = 0; s->now < end; i = (i + 1) % 16) {
    enum nc_job_limit why;
    uint64_t wait;

    *step = nc_pace_unit (&s->pace, NC_GUEST_BUSY, way);
    while ((wait = nc_pace_wait (&s->pace, *step, NC_GUEST_BUSY, s->now,
                                 &why)) > 0)
      s->now += wait + late;
    s->now = nc_max64 (s->now, ends[i]);
    ends[i] = s->now + way;
    bytes += *step;
  }
  return (double) bytes * SECOND / (double) (s->now - since);
}

static void
test_steps (uint64_t seed)
{
  const double share = 1000 * MB * 0.3;
  struct source s;
  uint32_t step;

  source_init (&s, &nothing, 1000 * MB, seed);
  pass (&s, SECOND, NC_GUEST_IDLE);
  ok (is_about (rate_over (&s, MS / 5, 0, &step), share) && step == PIECE,
      "over a short way it takes its share in the shortest steps");
  ok (is_about (rate_over (&s, 5 * MS, 0, &step), share) &&
      step == 2 * PIECE, "over a longer one in longer ones");
  ok (is_about (rate_over (&s, 20 * MS, 0, &step), share) &&
      step == NC_PACE_UNIT, "as long as they may be at all");
  ok (is_about (rate_over (&s, MS / 5, MS, &step), share),
      "it gets it also if it always comes a little late");
  /* What is in flight waits for what is before it, which is no way. */
  source_init (&s, &nothing, 4 * MB, seed);
  pass (&s, SECOND, NC_GUEST_IDLE);
  ok (nc_pace_unit (&s.pace, NC_GUEST_BUSY, 300 * MS) == PIECE,
      "over a slow link steps are short, however long they take");
}

static void
test_slots (uint64_t seed)
{
  const struct nc_prefetch_policy policy = { .slots = 2 };
  struct source s;

  source_init (&s, &policy, 100 * MB, seed);
  pass (&s, SECOND, NC_GUEST_IDLE);
  ok (nc_pace_unit (&s.pace, NC_GUEST_BUSY, 20 * MS) == 8 * PIECE,
      "with few slots steps are longer");
}

static void
test_minimum (uint64_t seed)
{
  const struct nc_prefetch_policy policy = {
    .min_read = 5 * MB, .max_pause = 3000,
  };
  struct source s, other;
  unsigned pauses;

  source_init (&s, &policy, 8 * MB, seed);
  pass (&s, 60 * SECOND, NC_GUEST_IDLE);
  ok (s.pace.pauses == 0, "a source that is quick enough is not in need");
  s.rate = 2 * MB;
  pass (&s, 600 * SECOND, NC_GUEST_IDLE);
  pauses = s.pace.pauses;
  ok (pauses > 100 && s.waits[NC_LIMIT_CONTENTION] > 0 &&
      s.longest <= 3000 * MS && s.longest > 2500 * MS &&
      s.shortest >= MS && s.shortest < 500 * MS,
      "below the minimum it pauses, for a random time (%u times, from %u to "
      "%u ms)", pauses, (unsigned) (s.shortest / MS),
      (unsigned) (s.longest / MS));
  ok (s.bytes / PIECE > pauses * 4, "and now and then it does not");

  source_init (&other, &policy, 2 * MB, seed + 1);
  source_init (&s, &policy, 2 * MB, seed);
  pass (&s, 60 * SECOND, NC_GUEST_IDLE);
  pass (&other, 60 * SECOND, NC_GUEST_IDLE);
  ok (s.bytes != other.bytes || s.pace.pauses != other.pace.pauses ||
      s.longest != other.longest || s.shortest != other.shortest,
      "another one pauses at other times");

  source_init (&s, &nothing, MB, seed);
  pass (&s, 60 * SECOND, NC_GUEST_IDLE);
  ok (s.pace.pauses == 0, "without a minimum it never pauses");
  pass (&s, SECOND, NC_GUEST_BUSY);
  nc_pace_set (&s.pace, &policy, s.now);
  s.pace.measure[NC_PACE_READ].average = 0;
  pass (&s, 60 * SECOND, NC_GUEST_BUSY);
  ok (s.pace.pauses == 0, "nor because it stands back itself");
}

/* One read that takes T. */
static void
read_once (struct nc_pace *pace, uint64_t *now, uint64_t count, uint64_t t)
{
  nc_pace_begin (pace, NC_PACE_READ, *now);
  *now += t;
  nc_pace_end (pace, NC_PACE_READ, count, *now);
}

static void
test_average (void)
{
  const struct nc_prefetch_policy policy = { .alpha = 75, .read_time = 200 };
  struct nc_pace pace;
  uint64_t now = SECOND;

  nc_pace_init (&pace, &policy, PIECE, 1, now);
  read_once (&pace, &now, 10 * MB, 199 * MS);
  ok (nc_pace_measured (&pace, NC_PACE_READ) == 0,
      "a rate is known after the time that is set");
  now += 60 * SECOND;
  read_once (&pace, &now, 10 * MB, 201 * MS);
  ok (nc_pace_measured (&pace, NC_PACE_READ) == 50 * MB,
      "of which only that counts in which something was read");
  read_once (&pace, &now, 2 * MB, 200 * MS);
  ok (nc_pace_measured (&pace, NC_PACE_READ) == 40 * MB,
      "new measurements count as alpha says");
  nc_pace_begin (&pace, NC_PACE_READ, now);
  nc_pace_begin (&pace, NC_PACE_READ, now);
  now += 200 * MS;
  nc_pace_end (&pace, NC_PACE_READ, 8 * MB, now);
  nc_pace_end (&pace, NC_PACE_READ, 8 * MB, now);
  ok (nc_pace_measured (&pace, NC_PACE_READ) == 40 * MB,
      "reads at the same time share it");
  ok (nc_pace_measured (&pace, NC_PACE_WRITE) == 0,
      "writing is measured by itself");
}

static void
test_failures (void)
{
  struct nc_pace pace;
  enum nc_job_limit why;
  uint64_t now = SECOND, wait, before = 0, most = 0;
  bool good = true;

  nc_pace_init (&pace, &nothing, PIECE, 1, now);
  for (unsigned i = 0; i < 20; ++i) {
    wait = nc_pace_failed (&pace, now);
    good = good && wait > 0 && wait <= 30 * SECOND &&
      (i == 0 || i > 7 || wait > before / 2);
    before = wait;
    most = nc_max64 (most, wait);
    good = good && nc_pace_failed (&pace, now) == wait &&
      nc_pace_wait (&pace, PIECE, NC_GUEST_IDLE, now, &why) > 0 &&
      why == NC_LIMIT_ERROR;
    now += wait;
    good = good && nc_pace_wait (&pace, PIECE, NC_GUEST_IDLE, now,
                                 &why) == 0;
  }
  ok (good && most > 15 * SECOND,
      "what failed is tried again, less and less often, but for ever");
  read_once (&pace, &now, PIECE, MS);
  ok (nc_pace_failed (&pace, now) <= 100 * MS,
      "and soon, after a success");
}

/* The job. */

#define SIZE (UINT64_C (6) << 20)

static struct nc_chain *
open_chain (void)
{
  const struct nc_chain_options opts = {
    .image = at ("top.fvd"), .memory_fd = -1, .retry = 1,
  };
  struct nc_chain *chain = nc_chain_open (&opts);

  must (chain && nc_chain_start (chain) == 0, tap_error);
  return chain;
}

/* top.fvd over base.raw, of which MODEL gets the bytes. */
static struct nc_chain *
make_chain (uint8_t *model, uint64_t *seed)
{
  const struct nc_image_create_options opts = {
    .path = at ("top.fvd"), .backing = at ("base.raw"),
    .backing_format = "raw", .block_size = 4096,
  };
  int fd;

  for (uint64_t i = 0; i < SIZE; ++i)
    model[i] = i >> 16 & 1 ? rnd (seed) | 1 : i >> 18 & 1;
  fd = open (at ("base.raw"), O_CREAT | O_TRUNC | O_RDWR, 0666);
  must (fd != -1 && write (fd, model, SIZE) == (ssize_t) SIZE, "base");
  close (fd);
  unlink (opts.path);
  must (nc_image_create (&opts) == 0, tap_error);
  return open_chain ();
}

struct run {
  uint8_t *model;
  struct nc_chain *chain;
  struct nc_jobs *jobs;
  struct nc_prefetch *prefetch;
  struct nc_job_info info;
};

static void
run_start (struct run *run, const struct nc_prefetch_policy *policy,
           const struct nc_profile_range *ranges, size_t n, uint64_t *seed)
{
  const struct nc_job_options opts = {
    .device = "disk", .manual_dismiss = true,
  };
  char why[NC_JOB_TEXT];

  run->model = malloc (SIZE);
  must (run->model != NULL, "malloc");
  run->chain = make_chain (run->model, seed);
  run->jobs = nc_jobs_new ();
  run->prefetch = nc_prefetch_new (policy, ranges, n);
  must (run->jobs && run->prefetch &&
        nc_prefetch_start (run->prefetch, run->jobs, "p", run->chain, &opts,
                           why) == 0, tap_error);
}

/* Whether the job ends well. */
static bool
run_wait (struct run *run)
{
  return nc_job_wait (run->jobs, "p", -1, &run->info) == 0 &&
    !run->info.failed && !run->info.cancelled;
}

static bool
is_as_model (const struct run *run)
{
  NC_FREE uint8_t *buf = malloc (SIZE);
  struct nc_export *e = nc_export_open (run->chain, "", 0);
  bool same = nc_export_pread (e, buf, SIZE, 0) == 0 &&
    memcmp (buf, run->model, SIZE) == 0;

  nc_export_close (e);
  return same;
}

static void
run_end (struct run *run)
{
  nc_jobs_stop (run->jobs);
  must (nc_chain_stop (run->chain) == 0, "stop");
  nc_jobs_free (run->jobs);
  nc_prefetch_free (run->prefetch);
  nc_chain_close (run->chain);
  free (run->model);
}

/* Bytes of the range that the top layer holds. */
static uint64_t
local (const struct run *run, uint64_t offset, uint64_t count)
{
  uint64_t sum = 0, n;
  int layer;

  for (; count > 0; offset += n, count -= n) {
    must (nc_chain_owner (run->chain, offset, count, &layer, &n) == 0,
          "owner");
    sum += layer == 0 ? n : 0;
  }
  return sum;
}

struct client {
  pthread_t thread;
  struct run *run;
  uint64_t seed;
  _Atomic (bool) stop;
  bool good;
};

/* A guest that reads and writes. */
static void *
client (void *opaque)
{
  struct client *c = opaque;
  struct nc_export *e = nc_export_open (c->run->chain, "", 0);
  uint8_t buf[10000];

  c->good = e != NULL;
  while (c->good && !c->stop) {
    const uint64_t offset = rnd_below (&c->seed, SIZE - sizeof buf);
    const uint64_t count = 1 + rnd_below (&c->seed, sizeof buf);

    nc_guest_note (nc_prefetch_guest (c->run->prefetch));
    c->good = nc_export_pread (e, buf, count, offset) == 0 &&
      memcmp (buf, c->run->model + offset, count) == 0;
    for (uint64_t i = 0; i < count; ++i)
      c->run->model[offset + i] += rnd (&c->seed) % 2;
    c->good = c->good &&
      nc_export_pwrite (e, c->run->model + offset, count, offset, 0) == 0;
  }
  nc_export_close (e);
  return NULL;
}

/* What there is to do is known before anything is done. */
static void
test_total (uint64_t *seed)
{
  const struct nc_prefetch_policy policy = {
    .whole = true, .start_delay = 3600,
  };
  struct run run;

  run_start (&run, &policy, NULL, 0, seed);
  ok (nc_job_get (run.jobs, "p", &run.info) == 0 && run.info.len == SIZE &&
      run.info.offset < SIZE && !run.info.has_seconds_left,
      "in its start delay it shows all that it has to do, and no time left");
  run_end (&run);
}

static void
test_whole (uint64_t *seed)
{
  const struct nc_profile_range ranges[] = {
    { SIZE - 100, 5000, 0 }, { 3 << 20, 70000, 1 }, { 3 << 20, 4096, 2 },
    { SIZE * 2, 100, 3 }, { 1 << 20, 1, 4 },
  };
  const struct nc_prefetch_policy policy = { .whole = true, .profile = true };
  struct client c = { .seed = rnd (seed) };
  struct nc_image_info info;
  struct run run;
  bool good;

  c.run = &run;
  run_start (&run, &policy, ranges, 5, seed);
  must (pthread_create (&c.thread, NULL, client, &c) == 0, "thread");
  ok (run_wait (&run) && nc_chain_n_layers (run.chain) == 1,
      "the whole image becomes local, and the base is let go");
  c.stop = true;
  pthread_join (c.thread, NULL);
  ok (c.good, "a client saw its own bytes all the time");
  ok (run.info.offset == run.info.len && run.info.len > SIZE &&
      strcmp (run.info.type, "prefetch") == 0 &&
      run.info.count[NC_COUNT_COPIED] + run.info.count[NC_COUNT_LOCAL] +
      run.info.count[NC_COUNT_ZERO] >= SIZE, "it says what it did");
  must (unlink (at ("base.raw")) == 0, "unlink");
  must (nc_chain_stop (run.chain) == 0, "stop");
  nc_jobs_free (run.jobs);
  nc_chain_close (run.chain);
  run.chain = open_chain ();
  run.jobs = nc_jobs_new ();
  good = is_as_model (&run) &&
    nc_chain_layer_info (run.chain, 0, &info) == 0 && !info.has_backing;
  ok (good, "the image says so, and has all without its base");
  nc_image_info_free (&info);
  run_end (&run);
}

static void
test_profile (uint64_t *seed)
{
  const struct nc_profile_range ranges[] = {
    { (5 << 20) + 1, 1, 0 }, { (3 << 20) - 4096, 70000, 1 },
  };
  const struct nc_prefetch_policy policy = { .profile = true };
  struct nc_prefetch_info info;
  struct run run;

  run_start (&run, &policy, ranges, 2, seed);
  ok (run_wait (&run) && local (&run, 0, SIZE) == 19 * 4096 &&
      local (&run, (3 << 20) - 4096, 18 * 4096) == 18 * 4096 &&
      local (&run, 5 << 20, 4096) == 4096,
      "what the profile names can be all that is prefetched");
  nc_prefetch_get (run.prefetch, &info);
  ok (info.profile_size == 70001 && nc_chain_n_layers (run.chain) == 2,
      "then the base stays");
  ok (is_as_model (&run), "the disk is what it was");
  run_end (&run);
}

static void
test_steered (uint64_t *seed)
{
  const struct nc_prefetch_policy policy = {
    .whole = true, .max_read = 4096,
  };
  struct nc_image_amendment change = { 0 };
  struct nc_prefetch_info info;
  char why[NC_JOB_TEXT];
  struct run run;

  run_start (&run, &policy, NULL, 0, seed);
  ok (nc_job_wait (run.jobs, "p", 300, &run.info) == -1 &&
      run.info.offset < SIZE / 2, "a low maximal rate is slow");
  ok (nc_job_pause (run.jobs, "p", why) == 0, "it is paused");
  while (run.info.status != NC_JOB_PAUSED)
    nc_job_wait (run.jobs, "p", 1, &run.info);
  tap_clear ();
  change.fields = NC_AMEND_MIN_READ;
  change.prefetch.min_read = 8192;
  ok (nc_prefetch_amend (run.prefetch, &change) == -1 && errno == EINVAL &&
      tap_errors == 1, "a policy that makes no sense is refused");
  tap_clear ();
  change.fields = NC_AMEND_MAX_READ | NC_AMEND_SLOTS | NC_AMEND_WHOLE;
  change.prefetch = (struct nc_prefetch_policy) { .slots = 1 };
  ok (nc_prefetch_amend (run.prefetch, &change) == 0, "another is taken");
  nc_prefetch_get (run.prefetch, &info);
  ok (info.policy.slots == 1 && info.policy.max_read == 0 &&
      info.policy.whole && info.policy.max_pause == NC_PACE_MAX_PAUSE,
      "and can be seen, with what is not set");
  ok (nc_job_resume (run.jobs, "p", why) == 0 && run_wait (&run) &&
      nc_chain_n_layers (run.chain) == 1 && is_as_model (&run),
      "resumed, it goes on by it");
  run_end (&run);

  run_start (&run, &policy, NULL, 0, seed);
  ok (nc_job_cancel (run.jobs, "p", false, why) == 0 && !run_wait (&run) &&
      run.info.cancelled && nc_chain_n_layers (run.chain) == 2 &&
      is_as_model (&run), "cancelled, it leaves the chain as it is");
  run_end (&run);
}

int
main (void)
{
  uint64_t seed = tap_start (600);

  test_rates (rnd (&seed));
  test_guest (rnd (&seed));
  test_steps (rnd (&seed));
  test_slots (rnd (&seed));
  test_minimum (rnd (&seed));
  test_average ();
  test_failures ();
  make_folder ("test-prefetch");
  test_total (&seed);
  for (unsigned i = 0; i < 3; ++i)
    test_whole (&seed);
  test_profile (&seed);
  test_steered (&seed);
  remove_folder ();
  return tap_done ();
}
