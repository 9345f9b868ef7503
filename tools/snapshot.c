/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain snapshot": its options, and what it says of the two images. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>

#include "image/image.h"
#include "util/report.h"

static const char help[] =
  "nbdchain snapshot: keep the disk as it is now\n"
  "\n"
  "Usage: nbdchain snapshot [OPTIONS] IMAGE NEW\n"
  "\n"
  "Makes the empty image NEW on top of IMAGE.  From then on NEW is served\n"
  "and written; IMAGE keeps the disk as it is now and is never written\n"
  "again.  IMAGE must not be in use.\n"
  "\n"
  "      --allow=X   a directory in which the image may be that IMAGE took\n"
  "                  over from; may be repeated\n"
  "      --json      describe what was done as JSON\n"
  "  -h, --help      show this\n"
  "\n"
  "Example:\n"
  "  nbdchain snapshot top.fvd new-top.fvd\n";

enum { OPT_ALLOW = 256, OPT_JSON };

static const struct option options[] = {
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

static int
snapshot (const char *path, const char *new_path,
          const struct chain_args *args, bool json)
{
  struct nc_image_info info = { 0 };
  char size[SIZE_TEXT];
  int status = EXIT_DONE;

  if (nc_image_snapshot (path, new_path, args->allow) == -1)
    return EXIT_FAILED;
  if (nc_image_inspect (new_path, NULL, &info) == -1)
    return EXIT_FAILED;
  if (json)
    status = print_json (json_pack ("{s:o, s:o, s:s, s:s, s:I}",
                                    "retired", json_text (path),
                                    "active", json_text (new_path),
                                    "uuid", info.uuid,
                                    "backing_uuid", info.backing_uuid,
                                    "size", (json_int_t) info.size));
  else {
    fputs ("Created ", stdout);
    print_text (stdout, new_path);
    printf (": %s (%" PRIu64 " bytes), on top of ",
            size_text (info.size, size), info.size);
    print_text (stdout, path);
    fputs ("\n", stdout);
    print_text (stdout, path);
    fputs (" keeps the disk as it is now and is not written any more;"
           " serve ", stdout);
    print_text (stdout, new_path);
    fputs ("\n", stdout);
  }
  nc_image_info_free (&info);
  return status;
}

int
snapshot_main (int argc, char *argv[])
{
  struct chain_args args = { 0 };
  bool json = false;
  int c, status = EXIT_USAGE;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
    case OPT_ALLOW:
      if (chain_args_allow (&args, optarg) == -1)
        goto out;
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

  if (argc - optind != 2) {
    nc_error ("two names are needed: the IMAGE and the NEW one on top of it");
    usage_error (argv[0]);
    goto out;
  }
  status = snapshot (argv[optind], argv[optind + 1], &args, json);

 out:
  chain_args_free (&args);
  return status;
}
