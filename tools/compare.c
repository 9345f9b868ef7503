/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain compare": its options, and what it says about two disks. */

#include <config.h>

#include "tools.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>

#include "chain/chain.h"
#include "image/compare.h"
#include "nbd/tls.h"
#include "progress.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

static const char help[] =
  "nbdchain compare: compare two disks by content\n"
  "\n"
  "Usage: nbdchain compare [OPTIONS] A B\n"
  "\n"
  "A and B are the disks to compare, each an fvd image with its whole chain,\n"
  "a raw file, an NBD URI, or \"[ command args ]\".  What is zeros on both\n"
  "sides is not read, nor is what both have from the same layer.  Where one\n"
  "disk is larger, the rest must be zeros.  Exits with 0 if they are equal,\n"
  "with 4 if they differ.\n"
  "\n"
  "  -f, --format=FORMAT    format of A, if it is a file: fvd (default) or raw\n"
  "  -F, --format-b=FORMAT  format of B\n"
  "      --all              count all differences and list them, instead of\n"
  "                         stopping at the first\n"
  "      --limit=N          with --all: list the first N ranges (default 100)\n"
  "      --strict           disks of different sizes differ\n"
  "      --allow=X          a directory or NBD URI that references in images\n"
  "                         may lead to; may be repeated\n"
  "      --base=REF         use REF in place of the backing that the lowest\n"
  "                         image of A names\n"
  "      --base-b=REF       the same for B\n"
  REMOTE_TLS_HELP
  "      --progress         show the progress, also where standard error is\n"
  "                         no terminal\n"
  "      --json             print the result as JSON\n"
  "  -h, --help             show this\n"
  "\n"
  "Example:\n"
  "  nbdchain compare --all top.fvd nbd://server/disk\n";

enum {
  OPT_ALL = 256, OPT_LIMIT, OPT_STRICT, OPT_ALLOW, OPT_BASE, OPT_BASE_B,
  OPT_PROGRESS, OPT_JSON
};

static const struct option options[] = {
  { "format", required_argument, NULL, 'f' },
  { "format-b", required_argument, NULL, 'F' },
  { "all", no_argument, NULL, OPT_ALL },
  { "limit", required_argument, NULL, OPT_LIMIT },
  { "strict", no_argument, NULL, OPT_STRICT },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "base-b", required_argument, NULL, OPT_BASE_B },
  REMOTE_TLS_OPTIONS,
  { "progress", no_argument, NULL, OPT_PROGRESS },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

#define LIMIT_DEFAULT 100
#define LIMIT_MAX 1000000

struct disk {
  const char *name, *format, *base;
  const char *format_option;
  struct nc_chain *chain;
  uint64_t size;
};

struct comparison {
  struct disk a, b;
  struct chain_args args;
  struct nc_tls tls;
  bool all, strict, json, progress;
  uint64_t limit;

  struct nc_compare_result result;
  struct nc_compare_range *ranges;      /* the first of them */
  size_t n_ranges;
};

/* Whether the sizes alone make a difference. */
static bool
sizes_matter (const struct comparison *c)
{
  return c->strict && c->a.size != c->b.size;
}

static bool
is_equal (const struct comparison *c)
{
  return c->result.equal && !sizes_matter (c);
}

static int
open_disk (struct disk *disk, const struct chain_args *args,
           const struct nc_tls *tls)
{
  disk->chain = nc_chain_open (&(struct nc_chain_options) {
      .image = disk->name,
      .is_ref = true,
      .format = disk->format,
      .base = disk->base,
      .allow = args->allow,
      .tls = tls,
      .retry = NC_RETRY_DEFAULT,
      .memory_fd = -1,
      .read_only = true,
    });
  if (disk->chain == NULL) {
    if (errno == EINVAL && disk->format == NULL)
      nc_error ("%s: if it is a raw disk, say so with %s raw: formats are"
                " never guessed", disk->name, disk->format_option);
    return -1;
  }
  disk->size = nc_chain_size (disk->chain);
  return nc_chain_start (disk->chain);
}

static void
keep_range (void *opaque, const struct nc_compare_range *range)
{
  struct comparison *c = opaque;

  if (c->n_ranges < c->limit)
    c->ranges[c->n_ranges++] = *range;
}

static int
compare_disks (struct comparison *c)
{
  struct progress *progress;
  int r;

  c->ranges = c->all ? calloc (c->limit + 1, sizeof *c->ranges) : NULL;
  if (c->all && c->ranges == NULL) {
    nc_error ("out of memory");
    return -1;
  }
  progress = progress_start ("comparing",
                             progress_style (c->progress, c->json));
  r = nc_compare (c->a.chain, c->b.chain, &(struct nc_compare_options) {
      .all = c->all,
      .difference = keep_range,
      .difference_opaque = c,
      .progress = progress_call,
      .progress_opaque = progress,
    }, &c->result);
  progress_finish (progress, r == 0 && (c->all || c->result.equal));
  return r;
}

/* Disks of different sizes are not read when that settles it. */
static int
open_and_compare (struct comparison *c)
{
  int r = open_disk (&c->a, &c->args, &c->tls) == -1 ||
    open_disk (&c->b, &c->args, &c->tls) == -1 ? -1 : 0;

  if (r == 0 && (c->all || !sizes_matter (c)))
    r = compare_disks (c);
  nc_chain_close (c->a.chain);
  nc_chain_close (c->b.chain);
  return r;
}

/* The result as text. */

static void
print_names (const struct comparison *c)
{
  print_text (stdout, c->a.name);
  fputs (" and ", stdout);
  print_text (stdout, c->b.name);
}

static void
print_larger (const struct disk *larger, const struct disk *smaller,
              bool equal)
{
  const uint64_t more = larger->size - smaller->size;
  char size[SIZE_TEXT];

  print_text (stdout, larger->name);
  printf (" is larger, by %s (%" PRIu64 " bytes)%s\n", size_text (more, size),
          more, equal ? " that are zeros" : "");
}

static void
print_sizes (const struct comparison *c)
{
  if (c->a.size > c->b.size)
    print_larger (&c->a, &c->b, is_equal (c));
  else if (c->b.size > c->a.size)
    print_larger (&c->b, &c->a, is_equal (c));
}

static void
print_ranges (const struct comparison *c)
{
  size_t i;

  if (c->n_ranges > 0)
    puts ("\n          offset              size     bytes differing");
  for (i = 0; i < c->n_ranges; i++)
    printf ("%16" PRIu64 "  %16" PRIu64 "  %18" PRIu64 "\n",
            c->ranges[i].offset, c->ranges[i].count, c->ranges[i].bytes);
  if (c->n_ranges < c->result.ranges)
    printf ("%16s  and %" PRIu64 " ranges more\n", "...",
            c->result.ranges - c->n_ranges);
}

static void
print_equal (const struct comparison *c)
{
  char size[SIZE_TEXT], compared[SIZE_TEXT], shared[SIZE_TEXT];
  char zero[SIZE_TEXT];

  print_names (c);
  printf (" are equal: %s (%s read, %s from the same layer, %s zeros)\n",
          size_text (nc_max64 (c->a.size, c->b.size), size),
          size_text (c->result.compared, compared),
          size_text (c->result.shared, shared),
          size_text (c->result.zero, zero));
}

static void
print_different (const struct comparison *c)
{
  print_names (c);
  if (c->result.equal) {
    puts (" differ in size");
    return;
  }
  printf (" differ, first at byte %" PRIu64 "\n",
          c->result.first);
  if (c->all)
    printf ("%" PRIu64 " byte%s in %" PRIu64 " range%s differ%s\n",
            c->result.bytes, c->result.bytes == 1 ? "" : "s",
            c->result.ranges, c->result.ranges == 1 ? "" : "s",
            c->result.bytes == 1 ? "s" : "");
}

static int
print_result (const struct comparison *c)
{
  if (is_equal (c))
    print_equal (c);
  else
    print_different (c);
  print_sizes (c);
  print_ranges (c);
  return EXIT_DONE;
}

/* The result as JSON. */

static json_t *
ranges_json (const struct comparison *c)
{
  json_t *array = json_array ();
  size_t i;

  for (i = 0; array != NULL && i < c->n_ranges; i++)
    if (json_array_append_new (array, json_pack ("{s:I, s:I, s:I}",
                                 "offset", (json_int_t) c->ranges[i].offset,
                                 "length", (json_int_t) c->ranges[i].count,
                                 "bytes", (json_int_t) c->ranges[i].bytes))
        == -1) {
      json_decref (array);
      return NULL;
    }
  return array;
}

/* VALUE, if it is KNOWN. */
static json_t *
known_json (bool known, uint64_t value)
{
  return known ? json_integer ((json_int_t) value) : json_null ();
}

static int
print_result_json (const struct comparison *c)
{
  const struct nc_compare_result *r = &c->result;

  return print_json (json_pack ("{s:b, s:I, s:I, s:o, s:o, s:o, s:I, s:I,"
                                " s:I, s:o}",
                                "equal", is_equal (c),
                                "size_a", (json_int_t) c->a.size,
                                "size_b", (json_int_t) c->b.size,
                                "first", known_json (!r->equal, r->first),
                                "bytes", known_json (c->all, r->bytes),
                                "ranges", known_json (c->all, r->ranges),
                                "read", (json_int_t) r->compared,
                                "shared", (json_int_t) r->shared,
                                "zero", (json_int_t) r->zero,
                                "list", c->all ? ranges_json (c)
                                : json_null ()));
}

static int
compare (struct comparison *c)
{
  const int saved = divert_stdout ();
  int r, status;

  if (saved == -1)
    return EXIT_FAILED;
  r = open_and_compare (c);
  if (restore_stdout (saved) == -1 || r == -1)
    return EXIT_FAILED;
  status = c->json ? print_result_json (c) : print_result (c);
  return status == EXIT_DONE && !is_equal (c) ? EXIT_DIFFERENT : status;
}

static int
parse_options (struct comparison *c, int argc, char *argv[], bool *ended)
{
  int opt;

  while ((opt = getopt_long (argc, argv, "f:F:h", options, NULL)) != -1)
    switch (opt) {
    case 'f':
      c->a.format = optarg;
      break;
    case 'F':
      c->b.format = optarg;
      break;
    case OPT_ALL:
      c->all = true;
      break;
    case OPT_LIMIT:
      if (parse_number ("--limit", optarg, 0, LIMIT_MAX, &c->limit) == -1)
        return EXIT_USAGE;
      break;
    case OPT_STRICT:
      c->strict = true;
      break;
    case OPT_ALLOW:
      if (chain_args_allow (&c->args, optarg) == -1)
        return EXIT_USAGE;
      break;
    case OPT_BASE:
      c->a.base = optarg;
      break;
    case OPT_BASE_B:
      c->b.base = optarg;
      break;
    case OPT_PROGRESS:
      c->progress = true;
      break;
    case OPT_JSON:
      c->json = true;
      break;
    case 'h':
      fputs (help, stdout);
      *ended = true;
      return EXIT_DONE;
    default:
      if (!remote_tls_option (&c->tls, opt, optarg))
        return usage_error (argv[0]);
    }

  if (remote_tls_check (&c->tls) == -1)
    return usage_error (argv[0]);
  if (argc - optind != 2) {
    nc_error ("two names are needed: the disks A and B");
    return usage_error (argv[0]);
  }
  c->a.name = argv[optind];
  c->b.name = argv[optind + 1];
  return EXIT_DONE;
}

int
compare_main (int argc, char *argv[])
{
  struct comparison c = {
    .a.format_option = "-f", .b.format_option = "-F",
    .limit = LIMIT_DEFAULT, .result.equal = true,
  };
  bool ended = false;
  int status = parse_options (&c, argc, argv, &ended);

  if (status == EXIT_DONE && !ended)
    status = compare (&c);
  free (c.ranges);
  chain_args_free (&c.args);
  return status;
}
