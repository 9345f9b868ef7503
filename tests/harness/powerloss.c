/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Loses power many times, on paper: rebuilds states that a loss of power could
 * have left (replay.h), lets the server open each, and compares the disk with
 * what the client had been told.
 *
 * Everything that a flush or FUA had made durable must be there; what was sent
 * later may be there or not; where nothing was written the base must be seen.
 * No repair is run before.  Some of the states are then written to, and must
 * hold that as well.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libnbd.h>

#include "client.h"
#include "replay.h"

static const char help[] =
"Usage: powerloss begin DIR LOG\n"
"       powerloss show LOG\n"
"       powerloss compare DIR LOG\n"
"       powerloss check [OPTION]... LOG -- SERVER [ARGUMENT]...\n"
"       powerloss run [OPTION]... LOG -- PROGRAM [ARGUMENT]...\n"
"\n"
"begin    starts LOG with what is in DIR; record.so then adds to it.\n"
"compare  fails if LOG, replayed in full, does not give what is in DIR.\n"
"check    rebuilds states and compares the disk that SERVER, a command that\n"
"         speaks NBD on stdin and stdout (nbdkit -s), serves of each.\n"
"run      rebuilds states and runs PROGRAM on each; it must exit with 0.\n"
"In arguments, @DIR@ stands for the directory with the state.\n"
"\n"
"  --states N      how many states (default 2000)\n"
"  --seed N        which (default 1)\n"
"  --only N        only state number N; with --keep to look at it\n"
"  --jobs N        processes at a time (default 2)\n"
"  --base FILE     the disk before the log began, zeros after its end\n"
"  --work DIR      where to put states (default a new directory in /tmp)\n"
"  --keep DIR      put the state there, leave it there\n"
"  --dump FILE     write the disk as seen to FILE (with --only)\n"
"  --rewrite N     write to every Nth state too (default 10, 0: none)\n"
"  --read-only ARG    open every second state with this added argument\n"
"  --also COMMAND  every 10th state, a shell command that must exit with 0\n"
"  --also-every N  every Nth state instead\n"
"  --near MAGIC    every second state is one while a write that begins with\n"
"                  these four characters is not yet durable\n"
"  --drop WHAT     leave syncs out, to see the check fail: data-sync (those\n"
"                  before a journal record), journal-sync (of the record)\n"
"Exit status: 0 all right, 1 a state was wrong, 2 trouble.\n";

enum {
  OPT_HELP = 256, OPT_STATES, OPT_SEED, OPT_ONLY, OPT_JOBS, OPT_BASE,
  OPT_WORK, OPT_KEEP, OPT_DUMP, OPT_REWRITE, OPT_ALSO, OPT_DROP,
  OPT_READ_ONLY, OPT_ALSO_EVERY, OPT_NEAR
};

static const struct option options[] = {
  { "help", no_argument, NULL, OPT_HELP },
  { "states", required_argument, NULL, OPT_STATES },
  { "seed", required_argument, NULL, OPT_SEED },
  { "only", required_argument, NULL, OPT_ONLY },
  { "jobs", required_argument, NULL, OPT_JOBS },
  { "base", required_argument, NULL, OPT_BASE },
  { "work", required_argument, NULL, OPT_WORK },
  { "keep", required_argument, NULL, OPT_KEEP },
  { "dump", required_argument, NULL, OPT_DUMP },
  { "rewrite", required_argument, NULL, OPT_REWRITE },
  { "read-only", required_argument, NULL, OPT_READ_ONLY },
  { "also", required_argument, NULL, OPT_ALSO },
  { "also-every", required_argument, NULL, OPT_ALSO_EVERY },
  { "near", required_argument, NULL, OPT_NEAR },
  { "drop", required_argument, NULL, OPT_DROP },
  { NULL, 0, NULL, 0 }
};

/* A part of the disk that the same operations cover. */
struct piece {
  uint64_t offset, count;
  struct op **ops;              /* in order of start */
  size_t nops;
};

struct settings {
  bool run;                     /* a program judges, not the disk */
  uint64_t states, seed, only, rewrite, also_every;
  unsigned jobs;
  const char *base, *keep, *dump, *also, *read_only, *log, *near;
  char work[PATH_MAX];
  enum replay_drop drop;
  char **command;
};

struct checker {
  const struct settings *s;
  struct replay *replay;
  char dir[PATH_MAX];
  struct op **ops;
  size_t nops;
  struct reference ref;         /* set up once the size is known */
  struct piece *pieces;
  size_t npieces;
  uint8_t *seen;
  pid_t server;                 /* while a state is open */
};

struct state {
  uint64_t number, instant, seed;
};

static void
print_state (const struct checker *c, const struct state *state)
{
  fprintf (stderr, "state %" PRIu64 " of seed %" PRIu64 ": %s\n"
           "look at it with --seed %" PRIu64 " --states %" PRIu64
           " --only %" PRIu64 " --keep DIR\n",
           state->number, c->s->seed, replay_story (c->replay), c->s->seed,
           c->s->states, state->number);
}

/*----------------------------------------------------------------------
 * The server */

static char *
substitute (const char *text, const char *dir)
{
  const char *at = strstr (text, "@DIR@");
  char *out;

  if (at == NULL)
    return strdup (text);
  if (asprintf (&out, "%.*s%s%s", (int) (at - text), text, dir,
                at + strlen ("@DIR@")) == -1)
    return NULL;
  return out;
}

static char **
make_command (const struct checker *c, bool read_only)
{
  size_t i, n = 0, out = 0;
  char **argv;

  while (c->s->command[n] != NULL)
    n++;
  argv = calloc (n + 2, sizeof *argv);
  if (argv == NULL) {
    perror ("calloc");
    exit (2);
  }
  for (i = 0; i < n; i++)
    argv[out++] = substitute (c->s->command[i], c->dir);
  if (read_only && c->s->read_only != NULL)
    argv[out++] = strdup (c->s->read_only);
  return argv;
}

static void
free_command (char **argv)
{
  size_t i;

  for (i = 0; argv[i] != NULL; i++)
    free (argv[i]);
  free (argv);
}

/* Start the server with a socket as its stdin and stdout; returns the other end
 * of that and sets c->server.  libnbd's own way is a fork, which copies all the
 * tables of this process's memory, and costs as much as the server's start. */
static int
start_server (struct checker *c, char **argv)
{
  posix_spawn_file_actions_t actions;
  int sv[2], err;

  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == -1) {
    perror ("socketpair");
    exit (2);
  }
  err = posix_spawn_file_actions_init (&actions);
  if (err == 0)
    err = posix_spawn_file_actions_adddup2 (&actions, sv[1], STDIN_FILENO);
  if (err == 0)
    err = posix_spawn_file_actions_adddup2 (&actions, sv[1], STDOUT_FILENO);
  if (err == 0)
    err = posix_spawnp (&c->server, argv[0], &actions, NULL, argv, environ);
  if (err != 0) {
    fprintf (stderr, "%s: %s\n", argv[0], strerror (err));
    exit (2);
  }
  posix_spawn_file_actions_destroy (&actions);
  close (sv[1]);
  return sv[0];
}

/* End the server, by a clean shutdown or by killing it. */
static void
close_state (struct checker *c, struct nbd_handle *nbd, bool clean)
{
  if (clean)
    nbd_shutdown (nbd, 0);
  else
    kill (c->server, SIGKILL);
  nbd_close (nbd);
  if (waitpid (c->server, NULL, 0) == -1) {
    perror ("waitpid");
    exit (2);
  }
}

static struct nbd_handle *
open_state (struct checker *c, bool read_only)
{
  struct nbd_handle *nbd = nbd_create ();
  char **argv = make_command (c, read_only);

  if (nbd == NULL ||
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1) {
    fprintf (stderr, "powerloss: %s\n", nbd_get_error ());
    exit (2);
  }
  if (nbd_connect_socket (nbd, start_server (c, argv)) == -1) {
    fprintf (stderr, "FAILED: the state cannot be opened%s: %s\n",
             read_only ? " for reading" : "", nbd_get_error ());
    close_state (c, nbd, true);
    nbd = NULL;
  }
  free_command (argv);
  return nbd;
}

static bool
read_disk (struct nbd_handle *nbd, uint8_t *buf, uint64_t size)
{
  const uint64_t most = 8 << 20;
  uint64_t at, n;

  for (at = 0; at < size; at += n) {
    n = size - at < most ? size - at : most;
    if (nbd_pread (nbd, buf + at, n, at, 0) == -1) {
      fprintf (stderr, "FAILED: read %" PRIu64 "+%" PRIu64 ": %s\n", at, n,
               nbd_get_error ());
      return false;
    }
  }
  return true;
}

/*----------------------------------------------------------------------
 * What must be there */

static int
compare_numbers (const void *a, const void *b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static void
add_to_piece (struct piece *piece, struct op *op)
{
  if (piece->nops % 16 == 0) {
    piece->ops = realloc (piece->ops,
                          (piece->nops + 16) * sizeof *piece->ops);
    if (piece->ops == NULL) {
      perror ("realloc");
      exit (2);
    }
  }
  piece->ops[piece->nops++] = op;
}

/* Cut the disk where an operation begins or ends. */
static void
cut_disk (struct checker *c, uint64_t size)
{
  uint64_t *cuts = calloc (2 * c->nops + 2, sizeof *cuts);
  size_t i, ncuts = 0;

  if (cuts == NULL) {
    perror ("calloc");
    exit (2);
  }
  cuts[ncuts++] = 0;
  cuts[ncuts++] = size;
  for (i = 0; i < c->nops; i++)
    if (op_changes_data (c->ops[i])) {
      cuts[ncuts++] = c->ops[i]->offset;
      cuts[ncuts++] = c->ops[i]->offset + c->ops[i]->count;
    }
  qsort (cuts, ncuts, sizeof *cuts, compare_numbers);
  c->pieces = calloc (ncuts, sizeof *c->pieces);
  if (c->pieces == NULL) {
    perror ("calloc");
    exit (2);
  }
  for (i = 0; i + 1 < ncuts; i++)
    if (cuts[i] != cuts[i + 1]) {
      c->pieces[c->npieces].offset = cuts[i];
      c->pieces[c->npieces++].count = cuts[i + 1] - cuts[i];
    }
  free (cuts);
  for (i = 0; i < c->nops; i++) {
    const uint64_t first = c->ops[i]->offset, last = first + c->ops[i]->count;
    size_t low = 0, high = c->npieces;

    if (!op_changes_data (c->ops[i]))
      continue;
    while (low < high) {
      const size_t mid = (low + high) / 2;

      if (c->pieces[mid].offset < first)
        low = mid + 1;
      else
        high = mid;
    }
    for (; low < c->npieces && c->pieces[low].offset < last; low++)
      add_to_piece (&c->pieces[low], c->ops[i]);
  }
}

/* Once it is known how large the disk is. */
static int
set_up_model (struct checker *c, uint64_t size)
{
  if (c->seen != NULL) {
    if (size == c->ref.size)
      return 0;
    fprintf (stderr, "FAILED: the disk has %" PRIu64 " bytes, not %" PRIu64
             "\n", size, c->ref.size);
    return -1;
  }
  reference_init (&c->ref, size);
  if (c->s->base != NULL && reference_load_raw (&c->ref, c->s->base) == -1)
    exit (2);
  c->seen = malloc (size + 1);
  if (c->seen == NULL) {
    perror ("malloc");
    exit (2);
  }
  cut_disk (c, size);
  return 0;
}

/* Those of the piece's operations that had begun. */
static size_t
begun (const struct piece *piece, uint64_t instant)
{
  size_t n = piece->nops;

  while (n > 0 && piece->ops[n - 1]->start >= instant)
    n--;
  return n;
}

static bool
check_disk (struct checker *c, const struct state *state)
{
  size_t i;

  for (i = 0; i < c->nops; i++)
    c->ops[i]->certain = c->ops[i]->durable < state->instant;
  for (i = 0; i < c->npieces; i++) {
    const struct piece *p = &c->pieces[i];
    const size_t n = begun (p, state->instant);
    const size_t good = model_check_segment (&c->ref, p->ops, n, p->offset,
                                             c->seen + p->offset, p->count);

    if (good < p->count) {
      const uint64_t bad = p->offset + good;

      fprintf (stderr, "FAILED: a disk that no loss of power may leave\n");
      model_explain (stderr, &c->ref, p->ops, n,
                     (const struct op *const *) c->ops, c->nops, bad,
                     c->seen + bad, p->count - good);
      return false;
    }
  }
  return true;
}

struct status_check {
  const struct checker *c;
  uint64_t next;
  bool failed;
};

static int
check_extents (void *opaque, const char *context, uint64_t offset,
               uint32_t *entries, size_t n, int *error)
{
  struct status_check *check = opaque;
  size_t i;

  (void) context;
  (void) error;
  for (i = 0; i + 1 < n; i += 2) {
    const uint64_t last = offset + entries[i];
    const uint8_t *p = check->c->seen;

    if (last > check->c->ref.size) {
      check->failed = true;
      return 0;
    }
    if (entries[i + 1] & LIBNBD_STATE_ZERO)
      for (; offset < last; offset++)
        if (p[offset] != 0) {
          fprintf (stderr, "byte %" PRIu64 " is said to be zero\n", offset);
          check->failed = true;
          return 0;
        }
    offset = last;
  }
  check->next = offset;
  return 0;
}

static bool
check_status (struct checker *c, struct nbd_handle *nbd)
{
  struct status_check check = { .c = c };
  const nbd_extent_callback callback = {
    .callback = check_extents, .user_data = &check,
  };

  if (nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) != 1)
    return true;
  while (check.next < c->ref.size) {
    const uint64_t before = check.next;
    uint64_t n = c->ref.size - before;

    if (n > 1 << 30)
      n = 1 << 30;
    if (nbd_block_status (nbd, n, before, callback, 0) == -1 ||
        check.failed || check.next <= before) {
      fprintf (stderr, "FAILED: block status at %" PRIu64 ": %s\n", before,
               check.failed ? "wrong" : nbd_get_error ());
      return false;
    }
  }
  return true;
}

/*----------------------------------------------------------------------
 * Going on with a state */

/* Change the disk, and c->seen with it. */
static bool
change_disk (struct checker *c, struct nbd_handle *nbd, struct rng *rng)
{
  const uint64_t size = c->ref.size;
  const unsigned changes = 1 + rng_below (rng, 12);
  const uint64_t seed = rng_next (rng);
  unsigned i;

  for (i = 0; i < changes; i++) {
    uint64_t count = rng_scaled (rng, size < 65536 ? size : 65536);
    uint64_t offset = rng_below (rng, size - count + 1);
    int r;

    if (rng_below (rng, 3) == 0) {
      memset (c->seen + offset, 0, count);
      r = nbd_zero (nbd, count, offset, 0);
    }
    else {
      pattern_bytes (seed, i + 1, offset, c->seen + offset, count);
      r = nbd_pwrite (nbd, c->seen + offset, count, offset, 0);
    }
    if (r == -1) {
      fprintf (stderr, "FAILED: write %" PRIu64 "+%" PRIu64 ": %s\n", offset,
               count, nbd_get_error ());
      return false;
    }
  }
  if (nbd_flush (nbd, 0) == -1) {
    fprintf (stderr, "FAILED: flush: %s\n", nbd_get_error ());
    return false;
  }
  return true;
}

static bool
check_rewritten (struct checker *c, struct rng *rng)
{
  uint8_t *again;
  bool ok = false;
  unsigned round;

  again = malloc (c->ref.size + 1);
  if (again == NULL) {
    perror ("malloc");
    exit (2);
  }
  replay_forget (c->replay);
  for (round = 0; round < 2; round++) {
    struct nbd_handle *nbd = open_state (c, false);

    if (nbd == NULL)
      goto out;
    ok = change_disk (c, nbd, rng);
    close_state (c, nbd, rng_below (rng, 2));
    if (!ok)
      goto out;
    nbd = open_state (c, rng_below (rng, 2));
    ok = nbd != NULL && read_disk (nbd, again, c->ref.size);
    if (nbd != NULL)
      close_state (c, nbd, true);
    if (ok && memcmp (again, c->seen, c->ref.size) != 0) {
      uint64_t at = 0;

      while (again[at] == c->seen[at])
        at++;
      fprintf (stderr, "FAILED: after writing to the state, a flush and a "
               "new start, byte %" PRIu64 " is 0x%02x, not 0x%02x\n", at,
               again[at], c->seen[at]);
      ok = false;
    }
    if (!ok)
      goto out;
  }
out:
  free (again);
  return ok;
}

/* Run the shell COMMAND, showing what it says only if it fails. */
static bool
check_also (struct checker *c, const char *command)
{
  char *text = substitute (command, c->dir), *line = NULL;
  int status;

  if (text == NULL || asprintf (&line, "{ %s ; } > %s.out 2>&1", text,
                                c->dir) == -1) {
    perror ("asprintf");
    exit (2);
  }
  status = system (line);
  if (status != 0) {
    fprintf (stderr, "FAILED: status 0x%x of: %s\n", status, text);
    free (line);
    if (asprintf (&line, "cat %s.out >&2", c->dir) != -1 &&
        system (line) != 0)
      fprintf (stderr, "it printed nothing that can be shown\n");
  }
  free (line);
  free (text);
  return status == 0;
}

static bool
run_program (struct checker *c)
{
  char **argv = make_command (c, false);
  int status;
  pid_t pid;

  replay_forget (c->replay);
  pid = fork ();
  if (pid == 0) {
    setenv ("STATE_DIR", c->dir, 1);
    execvp (argv[0], argv);
    perror (argv[0]);
    _exit (127);
  }
  if (pid == -1 || waitpid (pid, &status, 0) == -1) {
    perror ("fork");
    exit (2);
  }
  free_command (argv);
  if (status != 0)
    fprintf (stderr, "FAILED: the program's status was 0x%x\n", status);
  return status == 0;
}

static void
dump_disk (const struct checker *c)
{
  FILE *fp = fopen (c->s->dump, "w");

  if (fp == NULL || fwrite (c->seen, 1, c->ref.size, fp) != c->ref.size ||
      fclose (fp) == EOF) {
    perror (c->s->dump);
    exit (2);
  }
}

static bool
check_state (struct checker *c, const struct state *state, struct rng *rng)
{
  const bool read_only = state->number % 2 && c->s->read_only != NULL;
  struct nbd_handle *nbd;
  bool ok;

  if (c->s->run)
    return run_program (c);
  if (c->s->also != NULL &&
      state->number % c->s->also_every == c->s->also_every / 3 &&
      !check_also (c, c->s->also))
    return false;
  nbd = open_state (c, read_only);
  if (nbd == NULL)
    return false;
  if (!read_only)
    replay_forget (c->replay);
  ok = set_up_model (c, nbd_get_size (nbd)) == 0 &&
    read_disk (nbd, c->seen, c->ref.size) && check_disk (c, state) &&
    check_status (c, nbd);
  close_state (c, nbd, rng_below (rng, 4) != 0);
  if (ok && c->s->dump != NULL)
    dump_disk (c);
  if (ok && c->s->rewrite > 0 && state->number % c->s->rewrite == 0 &&
      c->s->dump == NULL)
    ok = check_rewritten (c, rng);
  return ok;
}

/*----------------------------------------------------------------------
 * All states */

static int
compare_states (const void *a, const void *b)
{
  const struct state *x = a, *y = b;

  return x->instant < y->instant ? -1 : x->instant > y->instant;
}

/* One process: every state whose place modulo the number of jobs is JOB. */
static int
work (const struct settings *s, const struct state *states, unsigned job)
{
  struct checker c = { .s = s };
  uint64_t i;
  int r = 0;

  c.replay = replay_open (s->log, s->drop);
  if (c.replay == NULL)
    return 2;
  c.ops = replay_ops (c.replay, &c.nops);
  if (s->keep != NULL)
    snprintf (c.dir, sizeof c.dir, "%s", s->keep);
  else
    snprintf (c.dir, sizeof c.dir, "%.*s/state-%u", PATH_MAX - 20, s->work,
              job);
  if (mkdir (c.dir, 0755) == -1 && errno != EEXIST) {
    perror (c.dir);
    return 2;
  }
  for (i = job; i < s->states && r == 0; i += s->jobs) {
    struct rng rng = { states[i].seed };

    if (s->only != NEVER && states[i].number != s->only)
      continue;
    if (replay_write (c.replay, states[i].instant, &rng, c.dir) == -1)
      return 2;
    if (s->keep != NULL && s->dump == NULL) {
      print_state (&c, &states[i]);
      break;
    }
    if (!check_state (&c, &states[i], &rng)) {
      print_state (&c, &states[i]);
      r = 1;
    }
  }
  replay_close (c.replay);
  return r;
}

static struct state *
choose_states (const struct settings *s, const struct replay *replay)
{
  struct state *states = calloc (s->states + 1, sizeof *states);
  uint64_t i;

  if (states == NULL) {
    perror ("calloc");
    exit (2);
  }
  for (i = 0; i < s->states; i++) {
    struct rng rng = { mix64 (s->seed * 1000003 + i) };

    states[i].number = i;
    states[i].instant = s->near && i % 2
      ? replay_choose_near (replay, s->near, &rng)
      : replay_choose (replay, &rng);
    if (states[i].instant == NEVER) {
      fprintf (stderr, "powerloss: nothing begins with %s\n", s->near);
      exit (2);
    }
    states[i].seed = rng_next (&rng);
  }
  qsort (states, s->states, sizeof *states, compare_states);
  return states;
}

static int
run_jobs (const struct settings *s, const struct state *states)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < s->jobs; i++) {
    const pid_t pid = fork ();

    if (pid == 0)
      _exit (work (s, states, i));
    if (pid == -1) {
      perror ("fork");
      return 2;
    }
  }
  for (i = 0; i < s->jobs; i++) {
    int status;

    if (wait (&status) == -1)
      return 2;
    if (!WIFEXITED (status))
      r = 2;
    else if (WEXITSTATUS (status) > r)
      r = WEXITSTATUS (status);
  }
  return r;
}

static int
check (struct settings *s)
{
  struct replay *replay = replay_open (s->log, s->drop);
  struct state *states;
  uint64_t first, last;
  size_t dropped, nops;
  const double began = now ();
  int r;

  if (replay == NULL)
    return 2;
  replay_range (replay, &first, &last);
  dropped = replay_dropped (replay);
  if (s->drop != DROP_NOTHING && dropped == 0) {
    fprintf (stderr, "powerloss: there was no sync to leave out\n");
    return 2;
  }
  replay_ops (replay, &nops);
  states = choose_states (s, replay);
  replay_close (replay);
  if (s->only != NEVER)
    s->jobs = 1;
  r = run_jobs (s, states);
  free (states);
  if (r == 0)
    printf ("powerloss: seed %" PRIu64 ": %" PRIu64 " states between %" PRIu64
            " and %" PRIu64 ", %zu operations, %.1f s: all right\n", s->seed,
            s->only != NEVER ? 1 : s->states, first, last, nops,
            now () - began);
  return r;
}

/* The whole of a file, or NULL.  With an extra byte, so never of no size. */
static uint8_t *
read_file (const char *dir, const char *name, size_t *size)
{
  char path[PATH_MAX];
  uint8_t *buf = NULL;
  off_t end;
  int fd;

  snprintf (path, sizeof path, "%s/%s", dir, name);
  fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd == -1)
    return NULL;
  end = lseek (fd, 0, SEEK_END);        /* of a device, too */
  if (end != -1 && (buf = malloc (end + 1)) != NULL) {
    *size = 0;
    while (*size < (size_t) end) {
      const ssize_t r = pread (fd, buf + *size, end - *size, *size);

      if (r <= 0)
        break;
      *size += r;
    }
  }
  close (fd);
  return buf;
}

/* Every byte of the file is as in one of the two replays. */
static bool
compare_file (const char *dir, char *const replays[2], const char *name)
{
  uint8_t *real, *with, *without;
  size_t size = 0, size1 = 0, size2 = 0, i = 0;
  bool ok = false;

  real = read_file (dir, name, &size);
  with = read_file (replays[0], name, &size1);
  without = read_file (replays[1], name, &size2);
  if (real != NULL && with != NULL && without != NULL &&
      (size == size1 || size == size2)) {
    while (i < size && ((i < size1 && real[i] == with[i]) ||
                        (i < size2 && real[i] == without[i])))
      i++;
    ok = i == size;
  }
  if (!ok)
    fprintf (stderr, "FAILED: %s/%s is not what the log says, from byte %zu "
             "of %zu (%zu or %zu in the log)\n", dir, name, i, size, size1,
             size2);
  free (real);
  free (with);
  free (without);
  return ok;
}

static bool
compare_files (const char *dir, char *const replays[2])
{
  DIR *d = opendir (dir);
  struct dirent *entry;
  bool ok = d != NULL;

  while (d != NULL && (entry = readdir (d)) != NULL)
    if (entry->d_type == DT_REG || entry->d_type == DT_BLK)
      ok = compare_file (dir, replays, entry->d_name) && ok;
  if (d != NULL)
    closedir (d);
  d = opendir (replays[0]);
  while (d != NULL && (entry = readdir (d)) != NULL)
    if (entry->d_type == DT_REG) {
      char path[PATH_MAX];

      snprintf (path, sizeof path, "%s/%s", dir, entry->d_name);
      if (access (path, F_OK) == -1) {
        fprintf (stderr, "FAILED: %s is only in the log\n", path);
        ok = false;
      }
    }
  if (d != NULL)
    closedir (d);
  return ok;
}

/* Is what the log says the whole truth?  A process that was killed may have
 * made the change it had begun, or a part of it. */
static int
compare (const char *dir, const char *log)
{
  char tmp[] = "/tmp/powerloss-XXXXXX", *replays[2], *line;
  unsigned i;
  bool ok;

  if (mkdtemp (tmp) == NULL) {
    perror (tmp);
    return 2;
  }
  for (i = 0; i < 2; i++) {
    struct replay *replay = replay_open (log, DROP_NOTHING);
    struct rng rng = { 1 };

    if (replay == NULL || asprintf (&replays[i], "%s/%u", tmp, i) == -1 ||
        mkdir (replays[i], 0755) == -1)
      return 2;
    if (i == 1)
      replay_skip_unended (replay);
    if (replay_write (replay, NEVER, &rng, replays[i]) == -1)
      return 2;
    replay_close (replay);
  }
  ok = compare_files (dir, replays);
  if (asprintf (&line, "rm -r '%s'", tmp) != -1) {
    if (system (line) != 0)
      fprintf (stderr, "powerloss: %s remains\n", tmp);
    free (line);
  }
  free (replays[0]);
  free (replays[1]);
  return ok ? 0 : 1;
}

static uint64_t
number (const char *text, uint64_t least)
{
  char *end;
  const uint64_t n = strtoull (text, &end, 0);

  if (end == text || *end != '\0' || n < least) {
    fprintf (stderr, "powerloss: %s: not a number that fits\n", text);
    exit (2);
  }
  return n;
}

static void __attribute__ ((__noreturn__))
usage (void)
{
  fputs ("Try 'powerloss --help'.\n", stderr);
  exit (2);
}

static void
parse (struct settings *s, int argc, char *argv[])
{
  int c;

  s->states = 2000;
  s->seed = 1;
  s->only = NEVER;
  s->jobs = 2;
  s->rewrite = s->also_every = 10;
  while ((c = getopt_long (argc, argv, "+", options, NULL)) != -1) {
    switch (c) {
    case OPT_HELP: fputs (help, stdout); exit (0);
    case OPT_STATES: s->states = number (optarg, 1); break;
    case OPT_SEED: s->seed = number (optarg, 0); break;
    case OPT_ONLY: s->only = number (optarg, 0); break;
    case OPT_JOBS: s->jobs = number (optarg, 1); break;
    case OPT_BASE: s->base = optarg; break;
    case OPT_WORK: snprintf (s->work, sizeof s->work, "%s", optarg); break;
    case OPT_KEEP: s->keep = optarg; break;
    case OPT_DUMP: s->dump = optarg; break;
    case OPT_REWRITE: s->rewrite = number (optarg, 0); break;
    case OPT_READ_ONLY: s->read_only = optarg; break;
    case OPT_ALSO: s->also = optarg; break;
    case OPT_ALSO_EVERY: s->also_every = number (optarg, 1); break;
    case OPT_NEAR:
      if (strlen (optarg) != 4)
        usage ();
      s->near = optarg;
      break;
    case OPT_DROP:
      if (strcmp (optarg, "data-sync") == 0)
        s->drop = DROP_BEFORE_JOURNAL;
      else if (strcmp (optarg, "journal-sync") == 0)
        s->drop = DROP_JOURNAL;
      else
        usage ();
      break;
    default: usage ();
    }
  }
  if (optind >= argc)
    usage ();
  s->log = argv[optind++];
  if (optind < argc && strcmp (argv[optind], "--") == 0)
    optind++;
  if (optind >= argc || ((s->keep || s->dump) && s->only == NEVER))
    usage ();
  s->command = &argv[optind];
}

/* check and run, in a directory of their own. */
static int
check_in_work (struct settings *s)
{
  const bool own = s->work[0] == '\0';
  char *line;
  int r;

  if (own) {
    strcpy (s->work, "/tmp/powerloss-XXXXXX");
    if (mkdtemp (s->work) == NULL) {
      perror (s->work);
      return 2;
    }
  }
  r = check (s);
  if (own && asprintf (&line, "rm -rf '%s'", s->work) != -1) {
    if (system (line) != 0)
      fprintf (stderr, "powerloss: %s remains\n", s->work);
    free (line);
  }
  return r;
}

int
main (int argc, char *argv[])
{
  struct settings s = { 0 };
  const char *what = argc > 1 ? argv[1] : "";

  if (strcmp (what, "--help") == 0) {
    fputs (help, stdout);
    return 0;
  }
  if (strcmp (what, "begin") == 0 && argc == 4)
    return replay_begin (argv[2], argv[3]) == 0 ? 0 : 2;
  if (strcmp (what, "show") == 0 && argc == 3)
    return replay_show (argv[2]) == 0 ? 0 : 2;
  if (strcmp (what, "compare") == 0 && argc == 4)
    return compare (argv[2], argv[3]);
  if (strcmp (what, "check") != 0 && strcmp (what, "run") != 0)
    usage ();
  s.run = strcmp (what, "run") == 0;
  parse (&s, argc - 1, argv + 1);
  return check_in_work (&s);
}
