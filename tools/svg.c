/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The SVG of a chain.  A bar is a row of columns, each one slice of the disk,
 * and columns that look alike are one path, in which neighbours are one
 * rectangle.  So a chain of 250 layers makes no more than a chain of 20.
 *
 * Names come from images and are hostile: all text goes through the XML
 * writer, and what XML cannot hold is replaced before. */

#include <config.h>

#include "svg.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <libxml/chvalid.h>
#include <libxml/xmlwriter.h>

#include "chain/chain.h"
#include "image/image.h"
#include "tools.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

#define COLUMNS_MAX 1000
#define COLUMNS_MIN 80
#define COLUMNS_ALL 20000       /* of all layers together */

/* In units of the drawing. */
#define WIDTH 1000              /* of the longest bar */
#define MARGIN 20
#define BAR_HEIGHT 24
#define ROW_HEIGHT 60
#define TITLE_HEIGHT 50

#define NAME_MAX_CHARS 80

/* What is in a slice of a layer. */
struct column {
  uint64_t data, zero;          /* bytes that the layer holds */
};

/* A slice of the disk. */
struct slice {
  int16_t layer;                /* that most of its data comes from; -1:
                                   there is none */
  bool whole;                   /* and all of it */
};

struct svg {
  struct nc_chain *chain;
  size_t n_layers;
  uint64_t size;                /* of the disk */
  uint64_t scale;               /* of the largest bar */

  struct slice *slices;
  size_t n_slices;
  uint64_t slice_size;
  uint64_t next;                /* all of the disk before it was added */
  uint64_t *in_slice;           /* by layer + 1, of the slice at NEXT */
  uint64_t *bytes;              /* the same, of all before */

  xmlTextWriterPtr xml;
  bool failed;                  /* something was not written to it */
  int y;                        /* where the next thing is drawn */
};

/* Sizes. */

/* The size of a column, so that there are at most N of them. */
static uint64_t
column_size (const struct svg *svg, size_t n)
{
  return nc_max64 (1, nc_div_up (svg->scale, n));
}

/* The largest bar. */
static int
find_scale (struct svg *svg)
{
  struct nc_image_info info = { 0 };
  int r = 0;

  svg->scale = svg->size;
  for (size_t i = 0; r == 0 && i < svg->n_layers; i++) {
    r = nc_chain_layer_info (svg->chain, i, &info);
    svg->scale = nc_max64 (svg->scale, info.size);
    nc_image_info_free (&info);
    memset (&info, 0, sizeof info);
  }
  return r;
}

struct svg *
svg_new (struct nc_chain *chain)
{
  struct svg *svg = calloc (1, sizeof *svg);

  if (svg == NULL)
    goto fail;
  svg->chain = chain;
  svg->n_layers = nc_chain_n_layers (chain);
  svg->size = nc_chain_size (chain);
  if (find_scale (svg) == -1) {
    svg_free (svg);
    return NULL;
  }
  svg->slice_size = column_size (svg, COLUMNS_MAX);
  svg->n_slices = nc_div_up (svg->size, svg->slice_size);
  svg->slices = calloc (svg->n_slices + 1, sizeof *svg->slices);
  svg->in_slice = calloc (svg->n_layers + 1, sizeof *svg->in_slice);
  svg->bytes = calloc (svg->n_layers + 1, sizeof *svg->bytes);
  if (svg->slices && svg->in_slice && svg->bytes)
    return svg;

 fail:
  nc_error ("out of memory for the drawing");
  svg_free (svg);
  return NULL;
}

void
svg_free (struct svg *svg)
{
  if (svg == NULL)
    return;
  free (svg->slices);
  free (svg->in_slice);
  free (svg->bytes);
  free (svg);
}

/* All bytes of SLICE are known. */
static void
finish_slice (struct svg *svg, struct slice *slice)
{
  uint64_t most = 0, all = 0;

  slice->layer = -1;
  for (size_t i = 0; i <= svg->n_layers; i++) {
    all += svg->in_slice[i];
    if (i > 0 && svg->in_slice[i] > most) {
      most = svg->in_slice[i];
      slice->layer = (int16_t) (i - 1);
    }
    svg->in_slice[i] = 0;
  }
  slice->whole = most == all;
}

void
svg_add (struct svg *svg, uint64_t count, int layer)
{
  uint64_t end, n;

  svg->bytes[layer + 1] += count;
  for (; count > 0 && svg->next < svg->size; count -= n) {
    const uint64_t i = svg->next / svg->slice_size;

    end = nc_min64 ((i + 1) * svg->slice_size, svg->size);
    n = nc_min64 (count, end - svg->next);
    svg->in_slice[layer + 1] += n;
    svg->next += n;
    if (svg->next == end)
      finish_slice (svg, &svg->slices[i]);
  }
}

/* XML.  The writer's output is kept in memory; that there is none of it is
 * seen in the end. */

static void
check (struct svg *svg, int r)
{
  svg->failed = svg->failed || r < 0;
}

static void
begin (struct svg *svg, const char *name)
{
  check (svg, xmlTextWriterStartElement (svg->xml, BAD_CAST name));
}

static void
end (struct svg *svg)
{
  check (svg, xmlTextWriterEndElement (svg->xml));
}

/* A VALUE of NULL: no attribute. */
static void
attribute (struct svg *svg, const char *name, const char *value)
{
  if (value)
    check (svg, xmlTextWriterWriteAttribute (svg->xml, BAD_CAST name,
                                             BAD_CAST value));
}

#define FORMAT_ATTRIBUTE(svg, name, ...)                                \
  check (svg, xmlTextWriterWriteFormatAttribute ((svg)->xml,            \
                                                 BAD_CAST name,         \
                                                 __VA_ARGS__))
#define FORMAT_STRING(svg, ...)                                         \
  check (svg, xmlTextWriterWriteFormatString ((svg)->xml, __VA_ARGS__))

static void
number (struct svg *svg, const char *name, double value)
{
  FORMAT_ATTRIBUTE (svg, name, "%.6g", value);
}

/* TEXT as UTF-8 and without what XML does not allow: U+FFFD takes its
 * place.  Returns NULL if there is no memory. */
static char *
clean (const char *text)
{
  static const char replacement[] = "\xef\xbf\xbd";
  char *out = malloc (3 * strlen (text) + 1), *to = out;

  while (out && *text != '\0') {
    int n = (int) strnlen (text, 4);
    const int c = xmlGetUTF8Char (BAD_CAST text, &n);

    if (c > 0 && xmlIsCharQ (c))
      to = mempcpy (to, text, n);
    else {
      to = stpcpy (to, replacement);
      n = 1;
    }
    text += n;
  }
  if (out)
    *to = '\0';
  return out;
}

static void
text (struct svg *svg, const char *s)
{
  NC_FREE char *clean_text = clean (s);

  check (svg, clean_text ? xmlTextWriterWriteString (svg->xml,
                                                     BAD_CAST clean_text)
         : -1);
}

static void
element_with_text (struct svg *svg, const char *name, const char *s)
{
  begin (svg, name);
  text (svg, s);
  end (svg);
}

/* The first NAME_MAX_CHARS characters of S. */
static void
short_text (struct svg *svg, const char *s)
{
  NC_FREE char *copy = clean (s);

  if (copy && xmlUTF8Strlen (BAD_CAST copy) > NAME_MAX_CHARS)
    strcpy (copy + xmlUTF8Strsize (BAD_CAST copy, NAME_MAX_CHARS),
            "\xe2\x80\xa6");
  text (svg, copy ? copy : "");
}

static void
begin_text (struct svg *svg, double x, double y, const char *class)
{
  begin (svg, "text");
  number (svg, "x", x);
  number (svg, "y", y);
  attribute (svg, "class", class);
}

/* Left open for further attributes. */
static void
rectangle (struct svg *svg, double x, double y, double width, double height,
           const char *class)
{
  begin (svg, "rect");
  number (svg, "x", x);
  number (svg, "y", y);
  number (svg, "width", width);
  number (svg, "height", height);
  attribute (svg, "class", class);
}

/* Colours. */

#define COLOUR_TEXT 8

/* The colour of LAYER, as "#rrggbb": neighbours are far apart, and all show on
 * white and on black, to the colour-blind too as long as there are few. */
static const char *
colour (int layer, char buf[COLOUR_TEXT])
{
  static const char *const few[] = {
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
  };
  const int n_few = sizeof few / sizeof *few;
  int hue, up, rgb[3] = { 60, 60, 60 };

  if (layer < n_few)
    return strcpy (buf, few[layer]);
  hue = layer * 137 % 360;      /* degrees; the golden angle */
  up = 60 + hue % 120 * 140 / 120;
  rgb[hue / 120] = 260 - up;
  rgb[(hue / 120 + 1) % 3] = up;
  snprintf (buf, COLOUR_TEXT, "#%02x%02x%02x", rgb[0] & 0xff, rgb[1] & 0xff,
            rgb[2] & 0xff);
  return buf;
}

static const char style[] =
  "\n"
  "text{font:14px system-ui,sans-serif;fill:#1a1a1a}\n"
  ".title{font-size:18px;font-weight:bold}\n"
  ".name{font-weight:bold}\n"
  ".small{font-size:12px}\n"
  ".paper{fill:#ffffff}\n"
  ".none{fill:#ececec}\n"
  ".zero{fill:#a8a8a8}\n"
  ".some{fill-opacity:.5}\n"
  "@media (prefers-color-scheme:dark){\n"
  "text{fill:#e6e6e6}\n"
  ".paper{fill:#161616}\n"
  ".none{fill:#2e2e2e}\n"
  ".zero{fill:#707070}\n"
  "}\n";

/* Bars. */

/* What a column looks like; compared as a number. */
typedef int (*look_fn) (const void *opaque, size_t i);

/* One path for all columns of the N that look like LOOK, or nothing. */
static void
path (struct svg *svg, const void *opaque, size_t n, look_fn look_at,
      int look, const char *class, const char *fill)
{
  bool begun = false;
  size_t i, from;

  for (i = 0; i < n; i++) {
    if (look_at (opaque, i) != look)
      continue;
    for (from = i; i + 1 < n && look_at (opaque, i + 1) == look; i++)
      ;
    if (!begun) {
      begun = true;
      begin (svg, "path");
      attribute (svg, "class", class);
      attribute (svg, "fill", fill);
      check (svg, xmlTextWriterStartAttribute (svg->xml, BAD_CAST "d"));
    }
    FORMAT_STRING (svg, "M%zu 0h%zuv%dh-%zuz", from, i + 1 - from,
                   BAR_HEIGHT, i + 1 - from);
  }
  if (begun) {
    check (svg, xmlTextWriterEndAttribute (svg->xml));
    end (svg);
  }
}

/* Begin a bar at svg->y: its columns are 1 wide. */
static void
begin_bar (struct svg *svg, uint64_t size, uint64_t per_column)
{
  const double all = svg->scale ? (double) svg->scale : 1;

  rectangle (svg, MARGIN, svg->y, WIDTH * ((double) size / all), BAR_HEIGHT,
             "none");
  end (svg);
  begin (svg, "g");
  FORMAT_ATTRIBUTE (svg, "transform", "translate(%d,%d) scale(%.8g,1)",
                    MARGIN, svg->y, WIDTH * ((double) per_column / all));
}

enum look { NOTHING, ZERO, SOME_DATA, DATA };

struct layer_bar {
  struct column *columns;
  size_t n;
  uint64_t per_column, size;
  uint64_t data, zero;
};

static int
layer_look (const void *opaque, size_t i)
{
  const struct layer_bar *bar = opaque;
  const struct column *c = &bar->columns[i];

  if (c->data == 0)
    return c->zero > 0 ? ZERO : NOTHING;
  return c->data == nc_min64 (bar->per_column,
                              bar->size - i * bar->per_column)
    ? DATA : SOME_DATA;
}

/* The layer holds the range. */
static int
add_holding (void *opaque, uint64_t offset, uint64_t count, bool zero)
{
  struct layer_bar *bar = opaque;
  uint64_t n;

  *(zero ? &bar->zero : &bar->data) += count;
  for (; count > 0; offset += n, count -= n) {
    const uint64_t i = offset / bar->per_column;

    n = nc_min64 (count, (i + 1) * bar->per_column - offset);
    *(zero ? &bar->columns[i].zero : &bar->columns[i].data) += n;
  }
  return 0;
}

static void
label_layer (struct svg *svg, size_t i, const struct nc_image_info *info,
             const struct layer_bar *bar)
{
  char size[SIZE_TEXT], data[SIZE_TEXT], zero[SIZE_TEXT], read[SIZE_TEXT];
  char percent[PERCENT_TEXT];
  const uint64_t bytes = svg->bytes[i + 1];

  begin_text (svg, MARGIN, svg->y - 8, NULL);
  begin (svg, "tspan");
  attribute (svg, "class", "name");
  short_text (svg, nc_chain_layer_name (svg->chain, i));
  end (svg);
  FORMAT_STRING (svg,
    " \xc2\xa0 %s, %s; holds %s of data, %s of zeros; %s of the disk"
    " (%s) are read from it",
    info->format, size_text (info->size, size), size_text (bar->data, data),
    size_text (bar->zero, zero), size_text (bytes, read),
    percent_text (bytes, svg->size, percent));
  end (svg);
}

static int
draw_layer (struct svg *svg, size_t i, const struct nc_image_info *info)
{
  const size_t columns = nc_max64 (COLUMNS_MIN,
                                   nc_min64 (COLUMNS_MAX,
                                             COLUMNS_ALL / svg->n_layers));
  struct layer_bar bar = {
    .per_column = column_size (svg, columns), .size = info->size,
  };
  NC_FREE struct column *free_columns = NULL;
  char fill[COLOUR_TEXT];

  bar.n = nc_div_up (bar.size, bar.per_column);
  bar.columns = free_columns = calloc (bar.n + 1, sizeof *bar.columns);
  if (bar.columns == NULL) {
    nc_error ("out of memory for the drawing");
    return -1;
  }
  if (nc_chain_layer_walk (svg->chain, i, add_holding, &bar) == -1)
    return -1;

  begin (svg, "g");
  FORMAT_ATTRIBUTE (svg, "id", "layer-%zu", i);
  element_with_text (svg, "title", nc_chain_layer_name (svg->chain, i));
  label_layer (svg, i, info, &bar);
  begin_bar (svg, bar.size, bar.per_column);
  colour ((int) i, fill);
  path (svg, &bar, bar.n, layer_look, DATA, NULL, fill);
  path (svg, &bar, bar.n, layer_look, SOME_DATA, "some", fill);
  path (svg, &bar, bar.n, layer_look, ZERO, "zero", NULL);
  end (svg);
  end (svg);
  svg->y += ROW_HEIGHT;
  return 0;
}

static int
draw_layers (struct svg *svg)
{
  struct nc_image_info info = { 0 };
  int r = 0;

  for (size_t i = 0; r == 0 && i < svg->n_layers; i++) {
    r = nc_chain_layer_info (svg->chain, i, &info);
    if (r == 0)
      r = draw_layer (svg, i, &info);
    nc_image_info_free (&info);
    memset (&info, 0, sizeof info);
  }
  return r;
}

static int
slice_look (const void *slices, size_t i)
{
  const struct slice *s = (const struct slice *) slices + i;

  return 2 * s->layer + s->whole;
}

/* Offsets below the bar of the disk. */
static void
draw_offsets (struct svg *svg)
{
  const double width = svg->scale
    ? WIDTH * ((double) svg->size / (double) svg->scale) : 0;
  char buf[SIZE_TEXT];

  for (int i = 0; i <= 4; i++) {
    begin_text (svg, MARGIN + width * i / 4, svg->y + BAR_HEIGHT + 14,
                "small");
    attribute (svg, "text-anchor", i == 0 ? "start" : i == 4 ? "end"
               : "middle");
    text (svg, i == 0 ? "0" : size_text (svg->size / 4 * i, buf));
    end (svg);
    if (svg->size < 4)
      break;
  }
}

static void
draw_disk (struct svg *svg)
{
  char size[SIZE_TEXT], zeros[SIZE_TEXT], fill[COLOUR_TEXT];

  begin (svg, "g");
  attribute (svg, "id", "disk");
  begin_text (svg, MARGIN, svg->y - 8, NULL);
  begin (svg, "tspan");
  attribute (svg, "class", "name");
  text (svg, "the disk");
  end (svg);
  FORMAT_STRING (svg,
    " \xc2\xa0 %s; in the colour of the layer it is read from; %s that no"
    " layer holds", size_text (svg->size, size),
    size_text (svg->bytes[0], zeros));
  end (svg);
  begin_bar (svg, svg->size, svg->slice_size);
  for (size_t i = 0; i < svg->n_layers; i++) {
    if (svg->bytes[i + 1] == 0)
      continue;
    colour ((int) i, fill);
    begin (svg, "g");
    element_with_text (svg, "title", nc_chain_layer_name (svg->chain, i));
    path (svg, svg->slices, svg->n_slices, slice_look, 2 * (int) i + 1, NULL,
          fill);
    path (svg, svg->slices, svg->n_slices, slice_look, 2 * (int) i, "some",
          fill);
    end (svg);
  }
  end (svg);
  draw_offsets (svg);
  end (svg);
  svg->y += ROW_HEIGHT + 10;
}

static void
draw_legend (struct svg *svg)
{
  static const struct {
    const char *class, *fill, *text;
    int width;
  } entries[] = {
    { NULL, "#0072b2", "data (each layer has its colour)", 270 },
    { "some", "#0072b2", "data in a part of it", 190 },
    { "zero", NULL, "zeros that the layer holds", 230 },
    { "none", NULL, "not held: read from the layer below", 0 },
  };
  double x = MARGIN;

  begin (svg, "g");
  attribute (svg, "id", "legend");
  for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
    rectangle (svg, x, svg->y - 12, 16, 16, entries[i].class);
    attribute (svg, "fill", entries[i].fill);
    end (svg);
    begin_text (svg, x + 22, svg->y + 1, "small");
    text (svg, entries[i].text);
    end (svg);
    x += entries[i].width;
  }
  end (svg);
}

static int
draw (struct svg *svg, const char *title)
{
  const int width = WIDTH + 2 * MARGIN;
  const int height = TITLE_HEIGHT + ROW_HEIGHT * ((int) svg->n_layers + 1)
    + 50;

  check (svg, xmlTextWriterSetIndent (svg->xml, 1));
  check (svg, xmlTextWriterStartDocument (svg->xml, NULL, "UTF-8", NULL));
  begin (svg, "svg");
  attribute (svg, "xmlns", "http://www.w3.org/2000/svg");
  FORMAT_ATTRIBUTE (svg, "viewBox", "0 0 %d %d", width, height);
  number (svg, "width", width);
  number (svg, "height", height);
  attribute (svg, "role", "img");
  element_with_text (svg, "title", title);
  element_with_text (svg, "style", style);
  rectangle (svg, 0, 0, width, height, "paper");
  end (svg);

  begin_text (svg, MARGIN, 30, "title");
  short_text (svg, title);
  end (svg);
  svg->y = TITLE_HEIGHT + ROW_HEIGHT - BAR_HEIGHT - 12;
  if (draw_layers (svg) == -1)
    return -1;
  draw_disk (svg);
  draw_legend (svg);
  check (svg, xmlTextWriterEndDocument (svg->xml));
  return 0;
}

int
svg_print (struct svg *svg, const char *title, FILE *fp)
{
  xmlBufferPtr buf = xmlBufferCreate ();
  int r = -1;

  svg->xml = buf ? xmlNewTextWriterMemory (buf, 0) : NULL;
  svg->failed = svg->xml == NULL;
  if (svg->xml) {
    r = draw (svg, title);
    xmlFreeTextWriter (svg->xml);
  }
  if (svg->failed) {
    nc_error ("out of memory for the drawing");
    r = -1;
  }
  if (r == 0)
    fwrite (xmlBufferContent (buf), 1, xmlBufferLength (buf), fp);
  xmlBufferFree (buf);
  return r;
}
