/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain resize": its options, and what it says of the new size. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>
#include <string.h>

#include "image/image.h"
#include "util/report.h"

static const char help[] =
  "nbdchain resize: make a disk larger or smaller\n"
  "\n"
  "Usage: nbdchain resize [OPTIONS] IMAGE [+|-]SIZE\n"
  "\n"
  "Gives the disk of the fvd image IMAGE the size SIZE, or SIZE more (+) or\n"
  "less (-) than it has.  SIZE is in bytes, or with K, M, G, T or P (powers\n"
  "of 1024).  What is added reads as zeros.  IMAGE must not be in use.\n"
  "\n"
  "      --shrink    allow a smaller size: what is behind it is lost, and an\n"
  "                  overlay on top of IMAGE cannot be used any more\n"
  "      --allow=X   a directory in which the data file of IMAGE may be, or\n"
  "                  the image that it took over from; may be repeated\n"
  "      --data-file=FILE\n"
  "                  the data file of IMAGE, in place of that named in it;\n"
  "                  needed for a device, or one that carries no mark\n"
  "      --json      describe what was done as JSON\n"
  "  -h, --help      show this\n"
  "\n"
  "Example:\n"
  "  nbdchain resize top.fvd +10G\n";

enum { OPT_SHRINK = 256, OPT_ALLOW, OPT_DATA_FILE, OPT_JSON };

static const struct option options[] = {
  { "shrink", no_argument, NULL, OPT_SHRINK },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

static void
print_resized (const char *path, const struct nc_image_resize_result *result)
{
  char old[SIZE_TEXT], size[SIZE_TEXT];

  print_text (stdout, path);
  if (result->size == result->old_size) {
    printf (": has %s (%" PRIu64 " bytes) already\n",
            size_text (result->size, size), result->size);
    return;
  }
  printf (": %s, was %s (%" PRIu64 " bytes, was %" PRIu64 ")\n",
          size_text (result->size, size), size_text (result->old_size, old),
          result->size, result->old_size);
  if (result->size < result->old_size)
    puts ("An overlay that was made over the larger disk refuses this one.");
}

static int
resize (const struct nc_image_resize_options *opts, bool json)
{
  struct nc_image_resize_result result;

  if (nc_image_resize (opts, &result) == -1)
    return EXIT_FAILED;
  if (json)
    return print_json (json_pack ("{s:o, s:I, s:I}",
                                  "path", json_text (opts->path),
                                  "old_size", (json_int_t) result.old_size,
                                  "size", (json_int_t) result.size));
  print_resized (opts->path, &result);
  return EXIT_DONE;
}

/* "-10G" is no option.  Returns the size, and how many arguments are left
 * for getopt_long. */
static const char *
take_negative (int *argc, char *argv[])
{
  const char *last = *argc > 1 ? argv[*argc - 1] : "";

  if (last[0] != '-' || last[1] < '0' || last[1] > '9')
    return NULL;
  --*argc;
  return last;
}

static int
parse_new_size (const char *text, struct nc_image_resize_options *opts)
{
  opts->relative = *text == '+' ? 1 : *text == '-' ? -1 : 0;
  return parse_size ("SIZE", opts->relative ? text + 1 : text, &opts->size);
}

int
resize_main (int argc, char *argv[])
{
  struct nc_image_resize_options opts = { 0 };
  struct chain_args args = { 0 };
  const char *size = take_negative (&argc, argv);
  bool json = false;
  int c, status = EXIT_USAGE;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
    case OPT_SHRINK:
      opts.shrink = true;
      break;
    case OPT_ALLOW:
      if (chain_args_allow (&args, optarg) == -1)
        goto out;
      break;
    case OPT_DATA_FILE:
      opts.data_file = optarg;
      break;
    case OPT_JSON:
      json = true;
      break;
    case 'h':
      fputs (help, stdout);
      status = EXIT_DONE;
      goto out;
    default:
      usage_error (argv[0]);
      goto out;
    }

  if (size == NULL && argc - optind == 2)
    size = argv[--argc];
  if (size == NULL || argc - optind != 1) {
    nc_error ("two arguments are needed: the IMAGE, and its new SIZE");
    usage_error (argv[0]);
    goto out;
  }
  opts.path = argv[optind];
  opts.allow = args.allow;
  if (parse_new_size (size, &opts) == 0)
    status = resize (&opts, json);

 out:
  chain_args_free (&args);
  return status;
}
