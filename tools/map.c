/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain map": which layer each part of the disk comes from, as a picture,
 * as a drawing, as a list, or as JSON. */

#include <config.h>

#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <unistd.h>

#include "chain/chain.h"
#include "image/image.h"
#include "picture.h"
#include "svg.h"
#include "util/path.h"
#include "util/report.h"

static const char help[] =
  "nbdchain map: picture which layer each part of the disk comes from\n"
  "\n"
  "Usage: nbdchain map [OPTIONS] IMAGE\n"
  "\n"
  "Draws the disk as rows of cells.  A capital letter is a cell that one\n"
  "layer holds, a small one a cell that it holds most of; '.' is zeros, ':'\n"
  "zeros with data between them.  No remote is contacted.\n"
  "\n"
  "      --svg[=FILE]   draw the chain as SVG, into FILE, which must not\n"
  "                     exist, or on standard output\n"
  "      --extents      list the ranges instead: offset, size, layer\n"
  "      --allow=X      a directory or NBD URI that references in images may\n"
  "                     lead to; may be repeated\n"
  "      --base=REF     use REF in place of the backing that the lowest\n"
  "                     image names\n"
  "      --json         print layers and ranges as JSON\n"
  "  -h, --help         show this\n"
  "\n"
  "Example:\n"
  "  nbdchain map --allow=nbd://server/ top.fvd\n";

enum { OPT_SVG = 256, OPT_EXTENTS, OPT_ALLOW, OPT_BASE, OPT_JSON };

static const struct option options[] = {
  { "svg", optional_argument, NULL, OPT_SVG },
  { "extents", no_argument, NULL, OPT_EXTENTS },
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "json", no_argument, NULL, OPT_JSON },
  { "help", no_argument, NULL, 'h' },
  { NULL, 0, NULL, 0 }
};

/* Called for each range, in order; neighbours differ in their layer. */
typedef void (*range_fn) (void *opaque, uint64_t offset, uint64_t count,
                          int layer);

/* Call FN for every range of the disk.  Returns -1 on error, reported. */
static int
scan (struct nc_chain *chain, range_fn fn, void *opaque)
{
  const uint64_t size = nc_chain_size (chain);
  uint64_t offset, start = 0, run;
  int layer, previous = -1;

  for (offset = 0; offset < size; offset += run) {
    if (nc_chain_owner (chain, offset, size - offset, &layer, &run) == -1)
      return -1;
    if (layer != previous && offset > start) {
      fn (opaque, start, offset - start, previous);
      start = offset;
    }
    previous = layer;
  }
  if (size > start)
    fn (opaque, start, size - start, previous);
  return 0;
}

static void
add_to_picture (void *opaque, uint64_t offset, uint64_t count, int layer)
{
  (void) offset;
  picture_add (opaque, count, layer);
}

static void
print_range (void *opaque, uint64_t offset, uint64_t count, int layer)
{
  struct nc_chain *chain = opaque;

  printf ("%16" PRIu64 "  %16" PRIu64 "  ", offset, count);
  if (layer == -1)
    puts ("    -  zeros");
  else {
    printf ("%5d  ", layer);
    print_text (stdout, nc_chain_layer_name (chain, layer));
    putchar ('\n');
  }
}

/* OPAQUE: what separates this range from the one before. */
static void
print_range_json (void *opaque, uint64_t offset, uint64_t count, int layer)
{
  const char **separator = opaque;

  printf ("%s\n    {\"offset\": %" PRIu64 ", \"length\": %" PRIu64, *separator,
          offset, count);
  if (layer == -1)
    fputs (", \"layer\": null, \"zero\": true}", stdout);
  else
    printf (", \"layer\": %d, \"zero\": false}", layer);
  *separator = ",";
}

/* Up to here the legend lists layers that hold nothing, too. */
#define LEGEND_LINES 20

static void
print_legend_line (const struct picture *pic, int layer, const char *name,
                   int width, uint64_t disk_size, bool colour)
{
  char size[SIZE_TEXT], percent[PERCENT_TEXT];
  const uint64_t bytes = picture_bytes (pic, layer);

  fputs ("  ", stdout);
  picture_print_key (pic, layer, colour);
  if (layer >= 0)
    printf ("  %3d  ", layer);
  else
    fputs ("       ", stdout);
  print_padded (name, width);
  printf ("  %11s  %8s\n", size_text (bytes, size),
          percent_text (bytes, disk_size, percent));
}

static void
print_picture (struct nc_chain *chain, const struct picture *pic,
               const char *image)
{
  const uint64_t size = nc_chain_size (chain);
  const int n = (int) nc_chain_n_layers (chain);
  const bool colour = terminal_colour ();
  char size_buf[SIZE_TEXT], cell[SIZE_TEXT];
  int i, w, width = 5, hidden = 0;

  for (i = 0; i < n; i++)
    if ((w = text_width (nc_chain_layer_name (chain, i))) > width)
      width = w;

  print_text (stdout, image);
  printf (": %s, a cell is %s\n\n", size_text (size, size_buf),
          size_text (picture_cell_size (pic), cell));
  for (i = 0; i < n; i++)
    if (n <= LEGEND_LINES || picture_bytes (pic, i) > 0)
      print_legend_line (pic, i, nc_chain_layer_name (chain, i), width, size,
                         colour);
    else
      hidden++;
  print_legend_line (pic, -1, "zeros", width, size, colour);
  if (hidden > 0)
    printf ("  (of %d layers, %d hold nothing that is visible)\n", n, hidden);
  putchar ('\n');
  picture_print (pic, colour);
}

static json_t *
layer_json (struct nc_chain *chain, const struct picture *pic, int layer)
{
  struct nc_image_info info = { 0 };
  json_t *json;

  if (nc_chain_layer_info (chain, layer, &info) == -1)
    return NULL;
  json = json_pack ("{s:i, s:o, s:o, s:I}",
                    "index", layer,
                    "name", json_text (nc_chain_layer_name (chain, layer)),
                    "format", json_text (info.format),
                    "bytes", (json_int_t) picture_bytes (pic, layer));
  nc_image_info_free (&info);
  if (json == NULL)
    nc_error ("out of memory for the JSON output");
  return json;
}

/* The ranges may be many, so they are printed as they come instead of being
 * collected. */
static int
print_map_json (struct nc_chain *chain, const struct picture *pic)
{
  const int n = (int) nc_chain_n_layers (chain);
  const char *separator = "";
  json_t *layer;
  int i;

  printf ("{\n  \"size\": %" PRIu64 ",\n  \"layers\": [",
          nc_chain_size (chain));
  for (i = 0; i < n; i++) {
    layer = layer_json (chain, pic, i);
    if (layer == NULL)
      return EXIT_FAILED;
    fputs (i > 0 ? ",\n    " : "\n    ", stdout);
    json_dumpf (layer, stdout, 0);
    json_decref (layer);
  }
  fputs ("\n  ],\n  \"extents\": [", stdout);
  if (scan (chain, print_range_json, &separator) == -1)
    return EXIT_FAILED;
  puts ("\n  ]\n}");
  return EXIT_DONE;
}

/* The drawing. */

static void
add_to_svg (void *opaque, uint64_t offset, uint64_t count, int layer)
{
  (void) offset;
  svg_add (opaque, count, layer);
}

static int
print_svg (struct nc_chain *chain, const char *image, FILE *fp)
{
  struct svg *svg = svg_new (chain);
  int r = svg ? scan (chain, add_to_svg, svg) : -1;

  if (r == 0)
    r = svg_print (svg, image, fp);
  svg_free (svg);
  return r;
}

static FILE *
open_new (const struct nc_path *path)
{
  const int fd = openat (path->dir, path->name, O_WRONLY | O_CREAT | O_EXCL |
                         O_NOFOLLOW | O_CLOEXEC, 0666);

  return fd == -1 ? NULL : fdopen (fd, "w");
}

/* The same into the new file PATH, which is removed if it is not complete. */
static int
write_svg (struct nc_chain *chain, const char *image, const char *path)
{
  NC_PATH struct nc_path file = NC_PATH_NONE;
  FILE *fp;
  int r;

  if (nc_path_find (path, &file) == -1)
    return -1;
  fp = open_new (&file);
  if (fp == NULL) {
    nc_error ("%s: %m%s", path, errno == EEXIST
              ? "; give another name, or remove it first" : "");
    return -1;
  }
  r = print_svg (chain, image, fp);
  /* It is not closed before its errors were seen. */
  if (r == 0 && (fflush (fp) == EOF || ferror (fp))) {
    nc_error ("%s: %m", path);
    r = -1;
  }
  fclose (fp);
  if (r == -1)
    unlinkat (file.dir, file.name, 0);
  return r;
}

enum style { STYLE_PICTURE, STYLE_SVG, STYLE_EXTENTS, STYLE_JSON };

/* FILE: for the drawing; NULL: standard output. */
static int
map_chain (struct nc_chain *chain, const char *image, enum style style,
           const char *file)
{
  struct picture *pic;
  int r, status = EXIT_FAILED;

  if (style == STYLE_EXTENTS) {
    puts ("          offset              size  layer");
    return scan (chain, print_range, chain) == -1 ? EXIT_FAILED : EXIT_DONE;
  }
  if (style == STYLE_SVG) {
    r = file ? write_svg (chain, image, file)
      : print_svg (chain, image, stdout);
    return r == -1 ? EXIT_FAILED : EXIT_DONE;
  }

  pic = picture_new (nc_chain_size (chain), nc_chain_n_layers (chain),
                     terminal_width (STDOUT_FILENO));
  if (pic == NULL)
    return EXIT_FAILED;
  if (scan (chain, add_to_picture, pic) == -1)
    goto out;
  if (style == STYLE_JSON)
    status = print_map_json (chain, pic);
  else {
    print_picture (chain, pic, image);
    status = EXIT_DONE;
  }

 out:
  picture_free (pic);
  return status;
}

static int
map (const struct chain_args *args, const char *image, enum style style,
     const char *file)
{
  struct nc_chain *chain = chain_args_open (args, image);
  int status;

  if (chain == NULL)
    return EXIT_FAILED;
  status = map_chain (chain, image, style, file);
  nc_chain_close (chain);
  return status;
}

int
map_main (int argc, char *argv[])
{
  struct chain_args args = { 0 };
  enum style style = STYLE_PICTURE;
  const char *file = NULL;
  int c, status = EXIT_USAGE;

  while ((c = getopt_long (argc, argv, "h", options, NULL)) != -1)
    switch (c) {
    case OPT_SVG:
      style = STYLE_SVG;
      file = optarg;
      break;
    case OPT_EXTENTS:
      if (style != STYLE_JSON)
        style = STYLE_EXTENTS;
      break;
    case OPT_ALLOW:
      if (chain_args_allow (&args, optarg) == -1)
        goto out;
      break;
    case OPT_BASE:
      args.base = optarg;
      break;
    case OPT_JSON:
      style = STYLE_JSON;
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
    nc_error ("one name is needed: the IMAGE to draw");
    usage_error (argv[0]);
    goto out;
  }
  status = map (&args, argv[optind], style, file);

 out:
  chain_args_free (&args);
  return status;
}
