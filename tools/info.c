/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain info": what is known about an image, or about each layer of its
 * chain.  Without --chain nothing that the image names is opened. */

#include <config.h>

#include "tools.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>

#include "chain/chain.h"
#include "image/image.h"
#include "prefetch.h"
#include "util/report.h"

static const char help[] =
  "nbdchain info: describe an image, or the chain below it\n"
  "\n"
  "Usage: nbdchain info [OPTIONS] IMAGE\n"
  "\n"
  "Describes the fvd image IMAGE, also while it is being served.  What the\n"
  "image names is not opened, unless --chain is given: then each layer is\n"
  "described, the top one first.  No remote is contacted.\n"
  "\n"
  "      --chain        follow the backings\n"
  "      --allow=X      with --chain: a directory or NBD URI that references\n"
  "                     in images may lead to; may be repeated\n"
  "      --base=REF     with --chain: use REF in place of the backing that\n"
  "                     the lowest image names\n"
  "      --json         print JSON\n"
  "  -h, --help         show this\n"
  "\n"
  "Example:\n"
  "  nbdchain info --chain --allow=nbd://server/ top.fvd\n";

enum { OPT_CHAIN = 256, OPT_ALLOW, OPT_BASE, OPT_JSON };

static const struct option options[] = {
  { "chain", no_argument, NULL, OPT_CHAIN },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

static void
print_size (int indent, const char *label, uint64_t size)
{
  char text[SIZE_TEXT];

  print_label (indent, label);
  if (size < 1024)
    printf ("%s\n", size_text (size, text));
  else
    printf ("%s (%" PRIu64 " bytes)\n", size_text (size, text), size);
}

static void
print_string (int indent, const char *label, const char *text)
{
  if (text == NULL || *text == '\0')
    return;
  print_label (indent, label);
  print_text (stdout, text);
  putchar ('\n');
}

static void
print_allocated (const struct nc_image_info *info)
{
  char text[SIZE_TEXT], percent[PERCENT_TEXT];

  print_label (1, "allocated");
  printf ("%s", size_text (info->allocated, text));
  if (info->allocated >= 1024)
    printf (" (%" PRIu64 " bytes)", info->allocated);
  printf (", %s of the disk\n",
          percent_text (info->allocated, info->size, percent));
}

static void
print_storage (const struct nc_image_info *info)
{
  char storage[SIZE_TEXT], file_size[SIZE_TEXT];

  print_label (1, "storage");
  printf ("%s, in a file of %s\n", size_text (info->storage, storage),
          size_text (info->file_size, file_size));
}

static void
print_features (const uint64_t features[3])
{
  static const char *const names[] = { "compatible", "read-only",
                                       "incompatible" };
  const char *separator = "";
  size_t i;

  if (features[0] == 0 && features[1] == 0 && features[2] == 0)
    return;
  print_label (1, "features");
  for (i = 0; i < 3; i++)
    if (features[i] != 0) {
      printf ("%s%s 0x%" PRIx64, separator, names[i], features[i]);
      separator = ", ";
    }
  putchar ('\n');
}

/* What an fvd image has and a raw one has not. */
static void
print_fvd (const struct nc_image_info *info)
{
  char used[SIZE_TEXT], room[SIZE_TEXT];

  print_string (1, "uuid", info->uuid);
  print_size (1, "grows to", info->max_size);
  print_size (1, "block size", info->block_size);
  print_label (1, "journal");
  printf ("%s used of %s\n", size_text (info->journal_used, used),
          size_text (info->journal_size, room));
  print_string (1, "data file", info->data_file);
  if (info->compact) {
    print_label (1, "compact");
    printf ("%" PRIu64 " chunks of %s, the file grows by %s\n",
            info->chunks, size_text (info->chunk_size, used),
            size_text (info->grow_unit, room));
  }
  print_features (info->features);
  print_label (1, "state");
  puts (info->clean ? "clean" :
        "in use, or not closed in order (the next server recovers it)");
  print_prefetch (info);
}

static void
print_backing (const struct nc_image_info *info)
{
  if (!info->has_backing)
    return;
  print_string (1, "backing",
                info->backing != NULL && *info->backing ? info->backing :
                "given by the operator (--base)");
  print_string (2, "format", info->backing_format);
  print_size (2, "size", info->backing_size);
  print_string (2, "uuid", info->backing_uuid);
  print_string (2, "identity", info->backing_identity);
}

static void
print_retired (const struct nc_image_info *info)
{
  if (*info->predecessor_uuid)
    print_string (1, "took over from", info->predecessor_uuid);
  if (!info->retired)
    return;
  print_string (1, "retired by",
                info->successor != NULL && *info->successor ?
                info->successor : "another image");
  print_string (2, "uuid", info->successor_uuid);
}

static void
print_info (const char *title, const struct nc_image_info *info)
{
  const bool fvd = info->uuid[0] != '\0';

  print_text (stdout, title);
  putchar ('\n');
  print_label (1, "format");
  print_text (stdout, info->format != NULL ? info->format : "unknown");
  if (fvd)
    printf (", version %" PRIu32, info->version);
  fputs (info->remote ? ", remote\n" : "\n", stdout);
  print_size (1, "size", info->size);
  if (!info->remote) {
    print_allocated (info);
    print_storage (info);
  }
  if (fvd)
    print_fvd (info);
  print_backing (info);
  print_retired (info);
}

static json_t *
backing_json (const struct nc_image_info *info)
{
  const bool given = info->backing == NULL || *info->backing == '\0';

  if (!info->has_backing)
    return json_null ();
  return json_pack ("{s:o, s:o, s:I, s:o, s:o}",
                    "reference", json_text (given ? NULL : info->backing),
                    "format", json_text (info->backing_format),
                    "size", (json_int_t) info->backing_size,
                    "uuid", json_text (*info->backing_uuid ?
                                       info->backing_uuid : NULL),
                    "identity", json_text (info->backing_identity));
}

static json_t *
successor_json (const struct nc_image_info *info)
{
  if (!info->retired)
    return json_null ();
  return json_pack ("{s:o, s:o}",
                    "path", json_text (info->successor),
                    "uuid", json_text (*info->successor_uuid ?
                                       info->successor_uuid : NULL));
}

static json_t *
compact_json (const struct nc_image_info *info)
{
  if (!info->compact)
    return json_null ();
  return json_pack ("{s:I, s:I, s:I}",
                    "chunk_size", (json_int_t) info->chunk_size,
                    "chunks", (json_int_t) info->chunks,
                    "grow_unit", (json_int_t) info->grow_unit);
}

static json_t *
fvd_json (const struct nc_image_info *info)
{
  return json_pack ("{s:I, s:s, s:I, s:I, s:I, s:{s:I, s:I},"
                    " s:o, s:o, s:{s:I, s:I, s:I}, s:b, s:o, s:{s:I, s:I, s:I}}",
                    "version", (json_int_t) info->version,
                    "uuid", info->uuid,
                    "block_size", (json_int_t) info->block_size,
                    "data_offset", (json_int_t) info->data_offset,
                    "max_size", (json_int_t) info->max_size,
                    "journal",
                    "size", (json_int_t) info->journal_size,
                    "used", (json_int_t) info->journal_used,
                    "data_file",
                    json_text (info->data_file && *info->data_file ?
                               info->data_file : NULL),
                    "compact", compact_json (info),
                    "features",
                    "compatible", (json_int_t) info->features[0],
                    "read_only", (json_int_t) info->features[1],
                    "incompatible", (json_int_t) info->features[2],
                    "clean", info->clean,
                    "prefetch", prefetch_json (&info->prefetch),
                    "profile",
                    "room", (json_int_t) info->profile_size,
                    "ranges", (json_int_t) info->profile_ranges,
                    "bytes", (json_int_t) info->profile_bytes);
}

static json_t *
info_json (const struct nc_image_info *info)
{
  return json_pack ("{s:o, s:o, s:b, s:I, s:I, s:I, s:I, s:o, s:o, s:b,"
                    " s:o, s:o}",
                    "path", json_text (info->path),
                    "format", json_text (info->format),
                    "remote", info->remote,
                    "size", (json_int_t) info->size,
                    "file_size", (json_int_t) info->file_size,
                    "storage", (json_int_t) info->storage,
                    "allocated", (json_int_t) info->allocated,
                    "fvd", info->uuid[0] != '\0' ? fvd_json (info)
                                                 : json_null (),
                    "backing", backing_json (info),
                    "retired", info->retired,
                    "predecessor", json_text (*info->predecessor_uuid ?
                                              info->predecessor_uuid : NULL),
                    "successor", successor_json (info));
}

static int
show_image (const char *image, bool json)
{
  struct nc_image_info info = { 0 };
  int status = EXIT_DONE;

  if (nc_image_inspect (image, NULL, &info) == -1)
    return EXIT_FAILED;
  if (json)
    status = print_json (info_json (&info));
  else
    print_info (image, &info);
  nc_image_info_free (&info);
  return status;
}

/* One line a layer; LAYERS as filled in by show_chain. */
static void
print_summary (struct nc_chain *chain, const struct nc_image_info *layers,
               size_t n)
{
  char size[SIZE_TEXT], allocated[SIZE_TEXT], percent[PERCENT_TEXT];
  size_t i;
  int width = 4, w;

  for (i = 0; i < n; i++)
    if ((w = text_width (nc_chain_layer_name (chain, i))) > width)
      width = w;

  fputs ("layer  ", stdout);
  print_padded ("name", width);
  puts ("  format        size   allocated");
  for (i = 0; i < n; i++) {
    printf ("%5zu  ", i);
    print_padded (nc_chain_layer_name (chain, i), width);
    printf ("  %-6s  %10s  ", layers[i].format,
            size_text (layers[i].size, size));
    if (layers[i].remote)
      puts ("    remote");
    else
      printf ("%10s  %s\n", size_text (layers[i].allocated, allocated),
              percent_text (layers[i].allocated, layers[i].size, percent));
  }
}

static void
print_chain (struct nc_chain *chain, const struct nc_image_info *layers,
             size_t n)
{
  size_t i;

  for (i = 0; i < n; i++) {
    printf ("layer %zu: ", i);
    print_info (nc_chain_layer_name (chain, i), &layers[i]);
    putchar ('\n');
  }
  print_summary (chain, layers, n);
}

static int
print_chain_json (struct nc_chain *chain,
                  const struct nc_image_info *layers, size_t n)
{
  json_t *array = json_array (), *layer;
  size_t i;

  for (i = 0; i < n; i++) {
    layer = info_json (&layers[i]);
    if (layer != NULL) {
      json_object_set_new (layer, "index", json_integer (i));
      json_object_set_new (layer, "name",
                           json_text (nc_chain_layer_name (chain, i)));
    }
    if (json_array_append_new (array, layer) == -1) {
      json_decref (array);
      return print_json (NULL);
    }
  }
  return print_json (json_pack ("{s:I, s:o}", "size",
                                (json_int_t) nc_chain_size (chain),
                                "layers", array));
}

static int
show_chain (const struct chain_args *args, const char *image, bool json)
{
  struct nc_image_info *layers = NULL;
  struct nc_chain *chain;
  size_t i, n;
  int status = EXIT_FAILED;

  chain = chain_args_open (args, image);
  if (chain == NULL)
    return EXIT_FAILED;
  n = nc_chain_n_layers (chain);
  layers = calloc (n, sizeof *layers);
  if (layers == NULL) {
    nc_error ("out of memory for %zu layers", n);
    goto out;
  }
  for (i = 0; i < n; i++)
    if (nc_chain_layer_info (chain, i, &layers[i]) == -1)
      goto out;

  if (json)
    status = print_chain_json (chain, layers, n);
  else {
    print_chain (chain, layers, n);
    status = EXIT_DONE;
  }

 out:
  for (i = 0; layers != NULL && i < n; i++)
    nc_image_info_free (&layers[i]);
  free (layers);
  nc_chain_close (chain);
  return status;
}

int
info_main (int argc, char *argv[])
{
  struct chain_args args = { 0 };
  bool json = false, follow = false;
  int c, status = EXIT_USAGE;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
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
    nc_error ("one name is needed: the IMAGE to describe");
    usage_error (argv[0]);
    goto out;
  }
  status = follow ? show_chain (&args, argv[optind], json)
                  : show_image (argv[optind], json);

 out:
  chain_args_free (&args);
  return status;
}
