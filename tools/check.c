/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain check": its options, its findings and the verdict on an image,
 * or on each image of a chain. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chain/chain.h"
#include "image/image.h"
#include "util/report.h"

static const char help[] =
  "nbdchain check: check an image for errors\n"
  "\n"
  "Usage: nbdchain check [OPTIONS] IMAGE\n"
  "\n"
  "Checks every structure of the fvd image IMAGE against the specification\n"
  "of the format.  Nothing is written, and what the image names is not\n"
  "opened, unless --chain is given: then every fvd image of the chain is\n"
  "checked.  An image that was not closed in order is no error: the next\n"
  "server recovers it.  Do not check one that is being served.  Exits with\n"
  "0 when there is no error, with 3 when there is.\n"
  "\n"
  "      --repair       mend what a check warns of, and check again; nothing\n"
  "                     that the disk reads as is changed, and an image with\n"
  "                     an error is not touched\n"
  "      --chain        check the backings, too\n"
  "      --allow=X      with --chain: a directory or NBD URI that references\n"
  "                     in images may lead to; with --repair: a directory in\n"
  "                     which the image may be that IMAGE took over from; may\n"
  "                     be repeated\n"
  "      --base=REF     with --chain: use REF in place of the backing that\n"
  "                     the lowest image names\n"
  "      --json         print findings and verdict as JSON\n"
  "  -h, --help         show this\n"
  "\n"
  "Example:\n"
  "  nbdchain check top.fvd\n";

enum { OPT_REPAIR = 256, OPT_CHAIN, OPT_ALLOW, OPT_BASE, OPT_JSON };

static const struct option options[] = {
  { "repair", no_argument, NULL, OPT_REPAIR },
  { "chain", no_argument, NULL, OPT_CHAIN },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

static void
print_finding (void *opaque, bool error, const char *text)
{
  (void) opaque;
  fputs (error ? "error: " : "warning: ", stdout);
  print_text (stdout, text);
  putchar ('\n');
}

/* OPAQUE is a JSON array. */
static void
collect_finding (void *opaque, bool error, const char *text)
{
  json_array_append_new (opaque,
                         json_pack ("{s:s, s:o}",
                                    "severity", error ? "error" : "warning",
                                    "text", json_text (text)));
}

static void
print_repaired (void *opaque, const char *text)
{
  (void) opaque;
  fputs ("repaired: ", stdout);
  print_text (stdout, text);
  putchar ('\n');
}

/* OPAQUE is a JSON array. */
static void
collect_repaired (void *opaque, const char *text)
{
  json_array_append_new (opaque, json_text (text));
}

static void
print_count (uint64_t n, const char *what)
{
  printf ("%" PRIu64 " %s%s", n, what, n == 1 ? "" : "s");
}

static void
print_verdict (const char *image, const struct nc_check_result *result)
{
  char allocated[SIZE_TEXT];

  print_text (stdout, image);
  if (result->errors == 0)
    fputs (": no errors", stdout);
  else {
    fputs (": ", stdout);
    print_count (result->errors, "error");
  }
  if (result->warnings > 0) {
    fputs (", ", stdout);
    print_count (result->warnings, "warning");
  }
  fputs ("; ", stdout);
  print_count (result->blocks_checked, "block");
  printf (" checked, %s allocated, ",
          size_text (result->allocated, allocated));
  print_count (result->journal_records, "record");
  fputs (" in the journal\n", stdout);
  if (result->errors > 0 && result->blocks_checked == 0)
    fputs ("It is damaged, or not an fvd image at all.\n", stdout);
  else if (result->errors > 0)
    fputs ("Data may be wrong or lost.  Copy the image before you do anything"
           " else with it.\n", stdout);
}

/* What is checked: the paths of images, the top one first. */
struct images {
  char **paths;
  size_t n;
};

static void
images_free (struct images *images)
{
  size_t i;

  for (i = 0; i < images->n; i++)
    free (images->paths[i]);
  free (images->paths);
}

static int
images_add (struct images *images, const char *path)
{
  char **paths = realloc (images->paths,
                          (images->n + 1) * sizeof *images->paths);

  if (paths != NULL) {
    images->paths = paths;
    paths[images->n] = strdup (path);
  }
  if (paths == NULL || paths[images->n] == NULL) {
    nc_error ("out of memory");
    return -1;
  }
  images->n++;
  return 0;
}

/* Add the images of the chain of IMAGE that have something to
 * check. */
static int
images_add_chain (struct images *images, const struct chain_args *args,
                  const char *image)
{
  struct nc_chain *chain = chain_args_open (args, image);
  struct nc_image_info info = { 0 };
  int r = 0;
  size_t i;

  if (chain == NULL)
    return -1;
  for (i = 0; r == 0 && i < nc_chain_n_layers (chain); i++) {
    r = nc_chain_layer_info (chain, i, &info);
    if (r == 0 && !info.remote && info.uuid[0] != '\0' && info.path != NULL)
      r = images_add (images, info.path);
    nc_image_info_free (&info);
    memset (&info, 0, sizeof info);
  }
  nc_chain_close (chain);
  return r;
}

static int
check_image (const char *image, const struct chain_args *args, bool repair)
{
  struct nc_check_result result = { 0 };

  if (repair && nc_image_repair (image, args->allow, print_repaired, NULL,
                                 &result) == -1)
    return EXIT_FAILED;
  if (nc_image_check (image, print_finding, NULL, &result) == -1)
    return EXIT_FAILED;
  print_verdict (image, &result);
  return result.errors > 0 ? EXIT_DAMAGED : EXIT_DONE;
}

/* The same as JSON; NULL if it could not be checked, reported. */
static json_t *
check_image_json (const char *image, const struct chain_args *args,
                  bool repair, bool *damaged)
{
  struct nc_check_result result = { 0 };
  json_t *findings = json_array (), *repairs = json_array (), *json;

  if (findings == NULL || repairs == NULL)
    goto no_memory;
  if ((repair &&
       nc_image_repair (image, args->allow, collect_repaired, repairs,
                        &result) == -1) ||
      nc_image_check (image, collect_finding, findings, &result) == -1) {
    json_decref (findings);
    json_decref (repairs);
    return NULL;
  }
  *damaged = *damaged || result.errors > 0;
  json = json_pack ("{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}",
                    "path", json_text (image),
                    "errors", (json_int_t) result.errors,
                    "warnings", (json_int_t) result.warnings,
                    "blocks_checked", (json_int_t) result.blocks_checked,
                    "allocated", (json_int_t) result.allocated,
                    "journal_records", (json_int_t) result.journal_records,
                    "leaked", (json_int_t) result.leaked,
                    "findings", findings,
                    "repairs", repairs);
  if (json != NULL)
    return json;

 no_memory:
  nc_error ("out of memory for the JSON output");
  return NULL;
}

/* Check them all, whatever is wrong with the first ones: the worst of their
 * exit codes. */
static int
check_images (const struct images *images, const struct chain_args *args,
              bool repair)
{
  int status = EXIT_DONE, s;
  size_t i;

  for (i = 0; i < images->n; i++) {
    s = check_image (images->paths[i], args, repair);
    if (status == EXIT_DONE || s == EXIT_DAMAGED)
      status = s;
  }
  return status;
}

static int
check_images_json (const struct images *images,
                   const struct chain_args *args, bool repair, bool chain)
{
  json_t *layers = json_array (), *json;
  bool damaged = false, failed = false;
  int status;
  size_t i;

  for (i = 0; i < images->n; i++) {
    json = check_image_json (images->paths[i], args, repair, &damaged);
    if (json == NULL || json_array_append_new (layers, json) == -1)
      failed = true;
  }
  if (!chain) {
    status = failed ? EXIT_FAILED
                    : print_json (json_incref (json_array_get (layers, 0)));
    json_decref (layers);
  }
  else
    status = print_json (json_pack ("{s:o}", "layers", layers));
  if (damaged)
    return EXIT_DAMAGED;
  return failed ? EXIT_FAILED : status;
}

int
check_main (int argc, char *argv[])
{
  struct chain_args args = { 0 };
  struct images images = { 0 };
  bool json = false, follow = false, repair = false;
  int c, r, status = EXIT_USAGE;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
    case OPT_REPAIR:
      repair = true;
      break;
    case OPT_CHAIN:
      follow = true;
      break;
    case OPT_ALLOW:
      if (chain_args_allow (&args, optarg) == -1)
        goto out;
      break;
    case OPT_BASE:
      args.base = optarg;
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

  if (argc - optind != 1) {
    nc_error ("one name is needed: the IMAGE to check");
    usage_error (argv[0]);
    goto out;
  }
  if (repair && follow) {
    nc_error ("--repair is for one image at a time, without --chain");
    usage_error (argv[0]);
    goto out;
  }
  status = EXIT_FAILED;
  r = follow ? images_add_chain (&images, &args, argv[optind])
             : images_add (&images, argv[optind]);
  if (r == 0)
    status = json ? check_images_json (&images, &args, repair, follow)
                  : check_images (&images, &args, repair);

 out:
  images_free (&images);
  chain_args_free (&args);
  return status;
}
