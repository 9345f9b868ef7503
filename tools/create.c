/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain create": its options, and what it says about the new image. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>
#include <string.h>

#include "chain/ref.h"
#include "chain/chain.h"
#include "image/image.h"
#include "nbd/tls.h"
#include "prefetch.h"
#include "progress.h"
#include "util/checked.h"
#include "util/report.h"

static const char help[] =
  "nbdchain create: make an image\n"
  "\n"
  "Usage: nbdchain create [OPTIONS] IMAGE [SIZE]\n"
  "\n"
  "Makes the fvd image IMAGE, empty, or on top of a backing that is not\n"
  "changed.  SIZE is in bytes, or with K, M, G, T or P (powers of 1024);\n"
  "without it the image is as large as its backing.\n"
  "\n"
  "  -b, --backing=REF      what the image reads through to: a file, an NBD\n"
  "                         URI, or \"[ command args ]\"\n"
  "  -F, --backing-format=FORMAT\n"
  "                         raw or fvd; always needed with -b\n"
  "      --zero-in-base     record what is zeros in the backing, by what it says\n"
  "                         of itself: these blocks never need it again\n"
  "      --allow=X          for --zero-in-base: a directory or NBD URI that\n"
  "                         references in the backing may lead to\n"
  "      --retry=SECONDS    for --zero-in-base: how long to wait for a remote\n"
  "                         that cannot be reached (default: 60, 0 = for ever)\n"
  "      --progress         for --zero-in-base: show progress, also where\n"
  "                         there is no terminal\n"
  "      --block-size=N     unit of allocation, a power of two (default: 4K,\n"
  "                         more on disks beyond 1T)\n"
  "      --journal-size=N   room for the journal, 16K to 1G (default: 1M)\n"
  "      --data-file=FILE   keep the data in FILE, a new file or a block device:\n"
  "                         when everything is allocated it is a raw image\n"
  "      --compact          store chunks of 1M in the order in which they come:\n"
  "                         for storage that has no holes\n"
  "      --grow-unit=N      with --compact: by how much the file grows at a\n"
  "                         time (default: 64M)\n"
  PREFETCH_HELP
  REMOTE_TLS_HELP
  "      --json             describe the new image as JSON\n"
  "  -h, --help             show this\n"
  "\n"
  "Example:\n"
  "  nbdchain create -b nbd://server/base -F raw top.fvd\n";

enum {
  OPT_ALLOW = 256, OPT_ZERO_IN_BASE, OPT_RETRY, OPT_PROGRESS, OPT_BLOCK_SIZE,
  OPT_JOURNAL_SIZE, OPT_DATA_FILE, OPT_COMPACT, OPT_GROW_UNIT, OPT_JSON
};

static const struct option options[] = {
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "zero-in-base", no_argument, NULL, OPT_ZERO_IN_BASE },
  { "retry", required_argument, NULL, OPT_RETRY },
  { "progress", no_argument, NULL, OPT_PROGRESS },
  { "backing", required_argument, NULL, 'b' },
  { "backing-format", required_argument, NULL, 'F' },
  { "block-size", required_argument, NULL, OPT_BLOCK_SIZE },
  { "journal-size", required_argument, NULL, OPT_JOURNAL_SIZE },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  { "compact", no_argument, NULL, OPT_COMPACT },
  { "grow-unit", required_argument, NULL, OPT_GROW_UNIT },
  PREFETCH_OPTIONS,
  { "json", no_argument, NULL, OPT_JSON },
  REMOTE_TLS_OPTIONS,
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

/* What does not go together, before anything is touched. */
static int
check_options (const struct nc_image_create_options *opts)
{
  if (opts->backing != NULL && opts->backing_format == NULL) {
    nc_error ("-b needs -F raw or -F fvd: the format of a backing is never"
              " guessed, because a guest can write anything into a raw disk");
    return -1;
  }
  if (opts->backing == NULL && opts->backing_format != NULL) {
    nc_error ("-F is the format of a backing, and there is no -b");
    return -1;
  }
  if (opts->allow && !opts->zero_in_base) {
    nc_error ("--allow goes with --zero-in-base: otherwise nothing that the"
              " backing names is looked at");
    return -1;
  }
  if (opts->backing == NULL && !opts->has_size) {
    nc_error ("give the SIZE of the disk, or a backing (-b) to take it from");
    return -1;
  }
  return 0;
}

static int
print_created_json (const struct nc_image_info *info)
{
  const bool named = info->backing != NULL && *info->backing;

  return print_json (json_pack ("{s:o, s:I, s:I, s:I, s:I, s:s, s:o, s:o}",
                                "path", json_text (info->path),
                                "size", (json_int_t) info->size,
                                "block_size", (json_int_t) info->block_size,
                                "journal_size",
                                (json_int_t) info->journal_size,
                                "zero_in_base",
                                (json_int_t) info->allocated,
                                "uuid", info->uuid,
                                "backing",
                                json_text (named ? info->backing : NULL),
                                "backing_format",
                                json_text (info->has_backing ?
                                           info->backing_format : NULL)));
}

static void
print_created (const struct nc_image_info *info,
               const struct nc_image_create_options *opts)
{
  char size[SIZE_TEXT], block_size[SIZE_TEXT];

  fputs ("Created ", stdout);
  print_text (stdout, opts->path);
  printf (": %s (%" PRIu64 " bytes), blocks of %s",
          size_text (info->size, size), info->size,
          size_text (info->block_size, block_size));
  if (!info->has_backing) {
    fputs (", no backing\n", stdout);
    return;
  }
  fputs (",\non top of ", stdout);
  print_text (stdout, *info->backing ? info->backing : opts->backing);
  printf (" (%s)\n", opts->backing_format);
  if (opts->zero_in_base)
    printf ("%s are zeros there, and recorded as such\n",
            size_text (info->allocated, size));
  if (*info->backing == '\0') {
    fputs ("An image records no command: name it whenever the image is used,"
           "\n  --base '", stdout);
    print_text (stdout, opts->backing);
    fputs ("'\n", stdout);
  }
}

/* Without what a command that serves the backing prints. */
static int
create_quietly (const struct nc_image_create_options *opts)
{
  const int saved = divert_stdout ();
  int r;

  if (saved == -1)
    return -1;
  r = nc_image_create (opts);
  return restore_stdout (saved) == -1 ? -1 : r;
}

static int
create (struct nc_image_create_options *opts, bool progress, bool json)
{
  struct nc_image_info info = { 0 };
  int status = EXIT_DONE, r;

  opts->opaque = progress_start ("looking for zeros", opts->zero_in_base
                                 ? progress_style (progress, json)
                                 : PROGRESS_NONE);
  opts->progress = progress_call;
  r = create_quietly (opts);
  progress_finish (opts->opaque, r == 0);
  if (r == -1)
    return EXIT_FAILED;
  if (nc_image_inspect (opts->path, NULL, &info) == -1)
    return EXIT_FAILED;
  if (json)
    status = print_created_json (&info);
  else
    print_created (&info, opts);
  nc_image_info_free (&info);
  return status;
}

static int
not_allowed (const char *option, const char *arg, const char *why)
{
  nc_error ("%s: '%s' is not allowed: %s", option, arg, why);
  return -1;
}

/* If C is an option that gives a size, take it from ARG.  Returns 0; 1 if it
 * is none of these; or -1 on error, reported. */
static int
size_option (int c, const char *arg, struct nc_image_create_options *opts)
{
  uint64_t size;

  switch (c) {
  case OPT_BLOCK_SIZE:
    if (parse_size ("--block-size", arg, &size) == -1)
      return -1;
    if (!nc_is_power_of_2 (size) || size > UINT32_MAX)
      return not_allowed ("--block-size", arg,
                          "it must be a power of two, from 4K to 2M");
    opts->block_size = (uint32_t) size;
    return 0;
  case OPT_JOURNAL_SIZE:
    if (parse_size ("--journal-size", arg, &opts->journal_size) == -1)
      return -1;
    if (opts->journal_size == 0)
      return not_allowed ("--journal-size", arg,
                          "an image cannot do without a journal");
    return 0;
  case OPT_GROW_UNIT:
    if (parse_size ("--grow-unit", arg, &opts->grow_unit) == -1)
      return -1;
    if (opts->grow_unit == 0)
      return not_allowed ("--grow-unit", arg, "a multiple of 1M is");
    return 0;
  default:
    return 1;
  }
}

int
create_main (int argc, char *argv[])
{
  struct nc_tls tls = { NULL, NULL, NULL };
  struct nc_image_create_options opts = {
    .tls = &tls, .retry = NC_RETRY_DEFAULT,
  };
  struct nc_image_amendment prefetch = { 0 };
  __attribute__ ((__cleanup__ (chain_args_free))) struct chain_args args =
    { 0 };
  bool json = false, progress = false;
  uint64_t retry;
  int c, r;

  while ((c = getopt_long (argc, argv, "b:F:h", options, NULL)) != -1)
    switch (c) {
    case 'b':
      opts.backing = optarg;
      break;
    case 'F':
      opts.backing_format = optarg;
      break;
    case OPT_ALLOW:
      if (chain_args_allow (&args, optarg) == -1)
        return EXIT_USAGE;
      opts.allow = args.allow;
      break;
    case OPT_ZERO_IN_BASE:
      opts.zero_in_base = true;
      break;
    case OPT_RETRY:
      if (parse_number ("--retry", optarg, 0, UINT32_MAX, &retry) == -1)
        return EXIT_USAGE;
      opts.retry = (unsigned) retry;
      break;
    case OPT_PROGRESS:
      progress = true;
      break;
    case OPT_DATA_FILE:
      opts.data_file = optarg;
      break;
    case OPT_COMPACT:
      opts.compact = true;
      break;
    case OPT_JSON:
      json = true;
      break;
    case 'h':
      fputs (help, stdout);
      return EXIT_DONE;
    default:
      if (remote_tls_option (&tls, c, optarg))
        break;
      r = size_option (c, optarg, &opts);
      if (r == 1)
        r = prefetch_option (c, optarg, &prefetch);
      if (r != 0)
        return r == 1 ? usage_error (argv[0]) : EXIT_USAGE;
    }

  if (optind == argc) {
    nc_error ("the name of the IMAGE to make is missing");
    return usage_error (argv[0]);
  }
  opts.path = argv[optind++];
  prefetch_options_end (&prefetch);
  opts.prefetch = prefetch.prefetch;
  if (optind < argc) {
    if (parse_size ("SIZE", argv[optind++], &opts.size) == -1)
      return EXIT_USAGE;
    opts.has_size = true;
  }
  if (optind < argc) {
    nc_error ("'%s' is one argument too many: IMAGE and SIZE are all",
              argv[optind]);
    return usage_error (argv[0]);
  }
  if (check_options (&opts) == -1 || remote_tls_check (&tls) == -1)
    return usage_error (argv[0]);
  return create (&opts, progress, json);
}
