/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The oracle: seeded random operations on a served disk, every answer compared
 * with a flat reference.
 *
 * Exclusive: operations in flight never overlap, so each byte has one value at
 * all times.  Overlapping: they may, and what is read must be a result that
 * some order of the operations in flight allows.  The reference can be kept in
 * a file, so that the test goes on after a restart of the server and begins
 * there by comparing the whole disk.
 */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"

static const char help[] =
"Usage: oracle [OPTION]... URI\n"
"       oracle [--seed N] --make-base FILE BYTES\n"
"Send random operations to the NBD server at URI and check every answer.\n"
"Or make FILE, of non-zero random bytes and a few holes.\n"
"\n"
"  --seed N           what the operations depend on (default 1)\n"
"  --ops N            how many (default 2000)\n"
"  --connections N    connections, up to 16 (default 1)\n"
"  --inflight N       operations in flight on each (default 16)\n"
"  --overlap          let operations in flight overlap\n"
"  --max-size BYTES   the longest read or write (default 4194304)\n"
"  --align N          align offsets and lengths to N\n"
"  --base FILE        the initial content, zeros after its end\n"
"  --state FILE       load the reference if FILE exists, save it at the end\n"
"  --no-flush         neither flush nor FUA, nor a flush at the end\n"
"  --read-only        only reads, block status and cache\n"
"  --fua N            percentage of changes with FUA (default 10)\n"
"  --weights LIST     relative frequency of read,write,zero,trim,flush,\n"
"                     cache,status (default 30,34,10,8,4,3,11)\n"
"  --log FILE         add marks for powerloss to FILE\n"
"  --verify-only      compare the whole disk, change nothing\n"
"  --long-extents     tolerate extents that reach past the request, as other\n"
"                     servers may send\n"
"  --timeout SECONDS  how long to wait for the server (default 60)\n"
"Exit status: 0 all answers right, 1 a wrong one, 2 trouble.\n";

enum {
  OPT_HELP = 256, OPT_SEED, OPT_OPS, OPT_CONNECTIONS, OPT_INFLIGHT,
  OPT_OVERLAP, OPT_MAX_SIZE, OPT_ALIGN, OPT_BASE, OPT_STATE, OPT_NO_FLUSH,
  OPT_READ_ONLY, OPT_FUA, OPT_WEIGHTS, OPT_LOG, OPT_VERIFY_ONLY, OPT_TIMEOUT,
  OPT_LONG_EXTENTS, OPT_MAKE_BASE
};

static const struct option options[] = {
  { "help", no_argument, NULL, OPT_HELP },
  { "seed", required_argument, NULL, OPT_SEED },
  { "ops", required_argument, NULL, OPT_OPS },
  { "connections", required_argument, NULL, OPT_CONNECTIONS },
  { "inflight", required_argument, NULL, OPT_INFLIGHT },
  { "overlap", no_argument, NULL, OPT_OVERLAP },
  { "max-size", required_argument, NULL, OPT_MAX_SIZE },
  { "align", required_argument, NULL, OPT_ALIGN },
  { "base", required_argument, NULL, OPT_BASE },
  { "state", required_argument, NULL, OPT_STATE },
  { "no-flush", no_argument, NULL, OPT_NO_FLUSH },
  { "read-only", no_argument, NULL, OPT_READ_ONLY },
  { "fua", required_argument, NULL, OPT_FUA },
  { "weights", required_argument, NULL, OPT_WEIGHTS },
  { "log", required_argument, NULL, OPT_LOG },
  { "verify-only", no_argument, NULL, OPT_VERIFY_ONLY },
  { "long-extents", no_argument, NULL, OPT_LONG_EXTENTS },
  { "make-base", required_argument, NULL, OPT_MAKE_BASE },
  { "timeout", required_argument, NULL, OPT_TIMEOUT },
  { NULL, 0, NULL, 0 }
};

struct settings {
  struct client_options opts;
  uint64_t ops;
  const char *base, *state, *log, *uri, *make_base;
  bool no_flush, verify_only;
  double timeout;
};

static uint64_t
number (const char *text, uint64_t least, uint64_t most)
{
  char *end;
  const uint64_t n = strtoull (text, &end, 0);

  if (end == text || *end != '\0' || n < least || n > most) {
    fprintf (stderr, "oracle: %s: expected a number from %" PRIu64 " to %"
             PRIu64 "\n", text, least, most);
    exit (2);
  }
  return n;
}

static void
parse_weights (struct client_options *opts, const char *text)
{
  char *copy = strdup (text), *save = NULL, *part;
  unsigned i = 0;

  memset (opts->weight, 0, sizeof opts->weight);
  for (part = copy ? strtok_r (copy, ",", &save) : NULL;
       part != NULL && i < 7; part = strtok_r (NULL, ",", &save))
    opts->weight[i++] = number (part, 0, 1000);
  free (copy);
}

static void
parse (struct settings *s, int argc, char *argv[])
{
  int c;

  client_options_init (&s->opts);
  s->ops = 2000;
  s->timeout = 60;
  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1) {
    switch (c) {
    case OPT_HELP: fputs (help, stdout); exit (0);
    case OPT_SEED: s->opts.seed = number (optarg, 0, UINT64_MAX); break;
    case OPT_OPS: s->ops = number (optarg, 0, UINT64_MAX); break;
    case OPT_CONNECTIONS: s->opts.connections = number (optarg, 1, 16); break;
    case OPT_INFLIGHT: s->opts.inflight = number (optarg, 1, 256); break;
    case OPT_OVERLAP: s->opts.overlap = true; break;
    case OPT_MAX_SIZE: s->opts.max_count = number (optarg, 1, 32 << 20); break;
    case OPT_ALIGN: s->opts.align = number (optarg, 1, 1 << 20); break;
    case OPT_BASE: s->base = optarg; break;
    case OPT_STATE: s->state = optarg; break;
    case OPT_NO_FLUSH: s->no_flush = true; break;
    case OPT_READ_ONLY:
      s->opts.weight[OP_WRITE] = s->opts.weight[OP_ZERO] = 0;
      s->opts.weight[OP_TRIM] = s->opts.weight[OP_FLUSH] = 0;
      s->no_flush = true;
      break;
    case OPT_FUA: s->opts.fua_percent = number (optarg, 0, 100); break;
    case OPT_WEIGHTS: parse_weights (&s->opts, optarg); break;
    case OPT_LOG: s->log = optarg; break;
    case OPT_VERIFY_ONLY: s->verify_only = true; break;
    case OPT_LONG_EXTENTS: s->opts.long_extents = true; break;
    case OPT_MAKE_BASE: s->make_base = optarg; break;
    case OPT_TIMEOUT: s->timeout = number (optarg, 0, 86400); break;
    default: fputs ("Try 'oracle --help'.\n", stderr); exit (2);
    }
  }
  if (optind != argc - 1) {
    fputs ("oracle: one URI is needed.  Try 'oracle --help'.\n", stderr);
    exit (2);
  }
  s->uri = argv[optind];
  if (s->no_flush) {
    s->opts.weight[OP_FLUSH] = 0;
    s->opts.fua_percent = 0;
  }
  s->opts.settling = s->opts.overlap ? SETTLE_ROUNDS : SETTLE_AT_ONCE;
}

/* Hole or data, in units of 64 KiB. */
static int
make_base (const char *file, uint64_t seed, uint64_t size)
{
  uint8_t buf[65536];
  uint64_t at, n;
  FILE *fp = fopen (file, "w");

  for (at = 0; fp != NULL && at < size; at += n) {
    n = size - at < sizeof buf ? size - at : sizeof buf;
    if (mix64 (seed + at) % 16 == 0)
      continue;
    pattern_bytes (seed, 0, at, buf, n);
    if (fseek (fp, at, SEEK_SET) == -1 || fwrite (buf, 1, n, fp) != n)
      break;
  }
  if (fp == NULL || at < size || fflush (fp) == EOF ||
      ftruncate (fileno (fp), size) == -1) {
    perror (file);
    if (fp != NULL)
      fclose (fp);
    return 2;
  }
  fclose (fp);
  return 0;
}

int
main (int argc, char *argv[])
{
  struct settings s = { 0 };
  struct client c;
  struct log marks;
  int64_t size;
  const double began = now ();

  parse (&s, argc, argv);
  if (s.make_base != NULL)
    return make_base (s.make_base, s.opts.seed,
                      number (s.uri, 0, INT64_MAX));
  size = disk_size (s.uri, s.timeout);
  if (size == -1)
    return 2;
  if (s.log != NULL) {
    if (log_open (&marks, s.log) == -1) {
      perror (s.log);
      return 2;
    }
    s.opts.log = &marks;
  }
  client_init (&c, &s.opts, size);
  if (s.state != NULL && access (s.state, F_OK) == 0) {
    if (client_load (&c, s.state) == -1)
      return 2;
  }
  else if (s.base != NULL && reference_load_raw (&c.ref, s.base) == -1)
    return 2;
  if (client_connect (&c, s.uri, s.timeout) == -1)
    return 2;

  if (s.verify_only || s.state != NULL)
    client_settle (&c, CERTAIN_REPLIED, "wrong data at the start");
  if (!s.verify_only) {
    client_send (&c, s.ops);
    client_drain (&c);
    client_settle_touched (&c);
    client_settle (&c, CERTAIN_REPLIED, "wrong data at the end");
    if (!s.no_flush)
      client_flush (&c);
  }
  if (s.state != NULL && client_save (&c, s.state) == -1)
    return 2;
  printf ("oracle: seed %" PRIu64 ": %" PRIu64 " reads, %" PRIu64 " writes, %"
          PRIu64 " zeros, %" PRIu64 " trims, %" PRIu64 " flushes, %" PRIu64
          " cache, %" PRIu64 " status, %" PRIu64 " MiB, %.1f s: all right\n",
          s.opts.seed, c.sent[OP_READ], c.sent[OP_WRITE], c.sent[OP_ZERO],
          c.sent[OP_TRIM], c.sent[OP_FLUSH], c.sent[OP_CACHE],
          c.sent[OP_STATUS], c.bytes >> 20, now () - began);
  client_free (&c);
  return 0;
}
