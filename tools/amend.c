/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain amend": its options, and what an image says afterwards. */

#include <config.h>

#include "tools.h"

#include <getopt.h>

#include "image/image.h"
#include "prefetch.h"
#include "util/report.h"

static const char help[] =
  "nbdchain amend: change what an image says of prefetching\n"
  "\n"
  "Usage: nbdchain amend OPTIONS IMAGE\n"
  "\n"
  "Changes the prefetch policy that the fvd image IMAGE carries; what is not\n"
  "named stays as it is, and so does the disk.  IMAGE must not be in use.\n"
  "Rates and sizes are in bytes, or with K, M, G, T or P (powers of 1024).\n"
  "\n"
  PREFETCH_HELP
  "      --json             print the policy as JSON\n"
  "  -h, --help             show this\n"
  "\n"
  "Example:\n"
  "  nbdchain amend --prefetch=on --prefetch-max-read-throughput=20M top.fvd\n";

enum { OPT_JSON = 256 };

static const struct option options[] = {
  PREFETCH_OPTIONS,
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

static int
amend (const char *path, const struct nc_image_amendment *amendment,
       bool json)
{
  struct nc_image_info info = { 0 };
  int status = EXIT_DONE;

  if (nc_image_amend (path, amendment) == -1 ||
      nc_image_inspect (path, NULL, &info) == -1)
    return EXIT_FAILED;
  if (json)
    status = print_json (json_pack ("{s:o, s:o}", "path", json_text (path),
                                    "prefetch",
                                    prefetch_json (&info.prefetch)));
  else {
    print_text (stdout, path);
    putchar ('\n');
    print_prefetch (&info);
  }
  nc_image_info_free (&info);
  return status;
}

int
amend_main (int argc, char *argv[])
{
  struct nc_image_amendment amendment = { 0 };
  bool json = false;
  int c, r;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
    case OPT_JSON:
      json = true;
      break;
    case 'h':
      fputs (help, stdout);
      return EXIT_DONE;
    default:
      r = prefetch_option (c, optarg, &amendment);
      if (r != 0)
        return r == 1 ? usage_error (argv[0]) : EXIT_USAGE;
    }

  if (argc - optind != 1) {
    nc_error ("one name is needed: the IMAGE to amend");
    return usage_error (argv[0]);
  }
  if (amendment.fields == 0) {
    nc_error ("nothing to change: name at least one --prefetch option");
    return usage_error (argv[0]);
  }
  prefetch_options_end (&amendment);
  return amend (argv[optind], &amendment, json);
}
