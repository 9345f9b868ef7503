/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain rebase": its options, progress, and what it says in the end. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>

#include "chain/chain.h"
#include "image/image.h"
#include "image/rebase.h"
#include "nbd/tls.h"
#include "progress.h"
#include "util/report.h"

static const char help[] =
  "nbdchain rebase: give an image another backing, or none\n"
  "\n"
  "Usage: nbdchain rebase [OPTIONS] -b REF -F FORMAT IMAGE\n"
  "       nbdchain rebase [OPTIONS] -b \"\" IMAGE\n"
  "\n"
  "Records REF as the backing of the fvd image IMAGE.  The disk stays the\n"
  "same: what would read otherwise over the new backing is copied into IMAGE\n"
  "first.  If it is interrupted, IMAGE has its old backing; run it again.\n"
  "IMAGE must not be in use.\n"
  "\n"
  "  -b, --backing=REF      the new backing: a file, an NBD URI, or\n"
  "                         \"[ command args ]\"; \"\" for none\n"
  "  -F, --backing-format=FORMAT\n"
  "                         raw or fvd; always needed, but for -b \"\"\n"
  "      --unsafe           copy nothing, do not even open the old backing:\n"
  "                         for a backing that was moved or replaced by one\n"
  "                         with the same content\n"
  "      --allow=X          a directory or NBD URI that references in images\n"
  "                         may lead to; may be repeated\n"
  "      --base=REF         use REF in place of the backing that the lowest\n"
  "                         image of the chain names\n"
  "      --new-base=REF     the same for the chain of the new backing\n"
  "      --data-file=FILE   the data file of IMAGE, in place of that named in\n"
  "                         it; needed for a device, or one without a mark\n"
  REMOTE_TLS_HELP
  "      --retry=SECONDS    how long to wait for a remote that cannot be\n"
  "                         reached (default: 60, 0 = for ever)\n"
  "      --progress         show progress, also where there is no terminal\n"
  "      --json             describe what was done as JSON\n"
  "  -h, --help             show this\n"
  "\n"
  "Example:\n"
  "  nbdchain rebase -b base.img -F raw top.fvd\n";

enum {
  OPT_UNSAFE = 256, OPT_ALLOW, OPT_BASE, OPT_NEW_BASE, OPT_RETRY,
  OPT_DATA_FILE, OPT_PROGRESS, OPT_JSON
};

static const struct option options[] = {
  { "backing", required_argument, NULL, 'b' },
  { "backing-format", required_argument, NULL, 'F' },
  { "unsafe", no_argument, NULL, OPT_UNSAFE },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "new-base", required_argument, NULL, OPT_NEW_BASE },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  { "retry", required_argument, NULL, OPT_RETRY },
  { "progress", no_argument, NULL, OPT_PROGRESS },
  { "json", no_argument, NULL, OPT_JSON },
  REMOTE_TLS_OPTIONS,
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

/* How things are shown. */
struct style {
  bool json, progress;
};

static int
check_options (const struct nc_rebase_options *opts)
{
  if (opts->backing == NULL) {
    nc_error ("name the new backing with -b, or give -b \"\" for none");
    return -1;
  }
  if (*opts->backing && opts->backing_format == NULL) {
    nc_error ("-b needs -F raw or -F fvd: the format of a backing is never"
              " guessed, because a guest can write anything into a raw disk");
    return -1;
  }
  if (*opts->backing == '\0' && opts->backing_format) {
    nc_error ("-F is the format of a backing, and -b \"\" means none");
    return -1;
  }
  return 0;
}

static void
print_rebased (const struct nc_rebase_options *opts,
               const struct nc_rebase_result *result)
{
  char copied[SIZE_TEXT], zeroed[SIZE_TEXT];

  print_text (stdout, opts->path);
  if (*opts->backing) {
    fputs (": on top of ", stdout);
    print_text (stdout, opts->backing);
    printf (" (%s) now", opts->backing_format);
  }
  else
    fputs (": has no backing now", stdout);
  if (opts->unsafe)
    puts ("; nothing was copied or compared");
  else
    printf ("; %s copied, %s zeroed\n", size_text (result->copied, copied),
            size_text (result->zeroed, zeroed));
}

static int
print_rebased_json (const struct nc_rebase_options *opts,
                    const struct nc_rebase_result *result)
{
  const char *backing = *opts->backing ? opts->backing : NULL;

  return print_json (json_pack ("{s:o, s:o, s:o, s:b, s:I, s:I}",
                                "path", json_text (opts->path),
                                "backing", json_text (backing),
                                "backing_format",
                                json_text (opts->backing_format),
                                "unsafe", opts->unsafe,
                                "copied", (json_int_t) result->copied,
                                "zeroed", (json_int_t) result->zeroed));
}

static int
rebase (struct nc_rebase_options *opts, const struct style *style)
{
  struct nc_rebase_result result;
  const int saved = divert_stdout ();
  int r;

  if (saved == -1)
    return EXIT_FAILED;
  opts->opaque = progress_start ("rebasing",
                                 opts->unsafe ? PROGRESS_NONE
                                 : progress_style (style->progress,
                                                   style->json));
  opts->progress = progress_call;
  r = nc_image_rebase (opts, &result);
  progress_finish (opts->opaque, r == 0);
  if (restore_stdout (saved) == -1 || r == -1)
    return EXIT_FAILED;
  if (style->json)
    return print_rebased_json (opts, &result);
  print_rebased (opts, &result);
  return EXIT_DONE;
}

int
rebase_main (int argc, char *argv[])
{
  struct nc_tls tls = { NULL, NULL, NULL };
  struct nc_rebase_options opts = {
    .retry = NC_RETRY_DEFAULT, .tls = &tls,
  };
  struct chain_args args = { 0 };
  struct style style = { false, false };
  int c, status = EXIT_USAGE;
  uint64_t retry;

  while ((c = getopt_long (argc, argv, "b:F:h", options, NULL)) != -1)
    switch (c) {
    case 'b':
      opts.backing = optarg;
      break;
    case 'F':
      opts.backing_format = optarg;
      break;
    case OPT_UNSAFE:
      opts.unsafe = true;
      break;
    case OPT_ALLOW:
      if (chain_args_allow (&args, optarg) == -1)
        goto out;
      break;
    case OPT_BASE:
      opts.base = optarg;
      break;
    case OPT_NEW_BASE:
      opts.new_base = optarg;
      break;
    case OPT_DATA_FILE:
      opts.data_file = optarg;
      break;
    case OPT_RETRY:
      if (parse_number ("--retry", optarg, 0, UINT32_MAX, &retry) == -1)
        goto out;
      opts.retry = (unsigned) retry;
      break;
    case OPT_PROGRESS:
      style.progress = true;
      break;
    case OPT_JSON:
      style.json = true;
      break;
    case 'h':
      fputs (help, stdout);
      status = EXIT_DONE;
      goto out;
    default:
      if (remote_tls_option (&tls, c, optarg))
        break;
      usage_error (argv[0]);
      goto out;
    }

  if (argc - optind != 1)
    nc_error ("one name is needed: the IMAGE to rebase");
  if (argc - optind != 1 || check_options (&opts) == -1 ||
      remote_tls_check (&tls) == -1) {
    usage_error (argv[0]);
    goto out;
  }
  opts.path = argv[optind];
  opts.allow = args.allow;
  status = rebase (&opts, &style);

 out:
  chain_args_free (&args);
  return status;
}
