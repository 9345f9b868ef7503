/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Slices of a disk as cells on a terminal.  Memory goes with the number of
 * cells, not with that of the ranges. */

#include <config.h>

#include "picture.h"

#include <stdio.h>
#include <stdlib.h>

#include "tools.h"
#include "util/checked.h"
#include "util/report.h"

/* At most this many rows: with less, a cell is a smaller slice. */
#define ROWS 16
#define COLUMNS_MAX 256
#define CELL_SIZE_MIN 4096       /* no block is smaller */

/* Columns for the offset at the left, and for the frame. */
#define OFFSET_WIDTH 12
#define FRAME_WIDTH 4

struct cell {
  int16_t layer;                /* that holds most of it; -1: zeros */
  bool mixed;                   /* it does not hold all of it */
};

struct picture {
  uint64_t size, cell_size;
  size_t n_layers, columns, n_cells;
  struct cell *cells;
  uint64_t *bytes;              /* by layer + 1, of the whole disk */

  uint64_t next;                /* all before it has been added */
  uint64_t *in_cell;            /* by layer + 1, of the cell at NEXT */
};

struct picture *
picture_new (uint64_t size, size_t n_layers, int width)
{
  struct picture *pic = calloc (1, sizeof *pic);

  if (pic == NULL)
    goto fail;
  pic->size = size;
  pic->n_layers = n_layers;
  width -= OFFSET_WIDTH + FRAME_WIDTH;
  /* With a power of two every row begins at a round offset. */
  pic->columns = 16;
  while (pic->columns < COLUMNS_MAX && 2 * (int) pic->columns <= width)
    pic->columns *= 2;
  pic->cell_size = CELL_SIZE_MIN;
  while (nc_div_up (size, pic->cell_size) > ROWS * pic->columns)
    pic->cell_size *= 2;
  pic->n_cells = nc_div_up (size, pic->cell_size);

  pic->cells = calloc (pic->n_cells + 1, sizeof *pic->cells);
  pic->bytes = calloc (n_layers + 1, sizeof *pic->bytes);
  pic->in_cell = calloc (n_layers + 1, sizeof *pic->in_cell);
  if (pic->cells == NULL || pic->bytes == NULL || pic->in_cell == NULL)
    goto fail;
  return pic;

 fail:
  nc_error ("out of memory for the picture");
  picture_free (pic);
  return NULL;
}

void
picture_free (struct picture *pic)
{
  if (pic == NULL)
    return;
  free (pic->cells);
  free (pic->bytes);
  free (pic->in_cell);
  free (pic);
}

/* All bytes of CELL are known: see who holds most of it. */
static void
finish_cell (struct picture *pic, struct cell *cell)
{
  size_t i, best = 0, holders = 0;

  for (i = 0; i <= pic->n_layers; i++) {
    holders += pic->in_cell[i] > 0;
    if (pic->in_cell[i] > pic->in_cell[best])
      best = i;
  }
  cell->layer = (int16_t) ((int) best - 1);
  cell->mixed = holders > 1;
  for (i = 0; i <= pic->n_layers; i++)
    pic->in_cell[i] = 0;
}

void
picture_add (struct picture *pic, uint64_t count, int layer)
{
  uint64_t cell_end, n;

  pic->bytes[layer + 1] += count;
  for (; count > 0 && pic->next < pic->size; count -= n) {
    cell_end = nc_min64 (nc_round_down (pic->next, pic->cell_size)
                         + pic->cell_size, pic->size);
    n = nc_min64 (count, cell_end - pic->next);
    pic->in_cell[layer + 1] += n;
    pic->next += n;
    if (pic->next == cell_end)
      finish_cell (pic, &pic->cells[(cell_end - 1) / pic->cell_size]);
  }
}

uint64_t
picture_cell_size (const struct picture *pic)
{
  return pic->cell_size;
}

uint64_t
picture_bytes (const struct picture *pic, int layer)
{
  return pic->bytes[layer + 1];
}

/* How many layers above LAYER hold something: letters and colours go only
 * to those that do. */
static size_t
rank (const struct picture *pic, int layer)
{
  size_t n = 0;
  int i;

  for (i = 0; i < layer; i++)
    n += pic->bytes[i + 1] > 0;
  return n;
}

static char
glyph (const struct picture *pic, struct cell cell)
{
  size_t r;

  if (cell.layer == -1)
    return cell.mixed ? ':' : '.';
  r = rank (pic, cell.layer);
  if (r >= 26)
    return cell.mixed ? '+' : '#';
  return (cell.mixed ? 'a' : 'A') + (char) r;
}

static void
print_cell (const struct picture *pic, struct cell cell, bool colour)
{
  static const int colours[] = { 6, 3, 2, 5, 4, 1 };
  int c;

  if (!colour || cell.layer == -1) {
    putchar (glyph (pic, cell));
    return;
  }
  c = colours[rank (pic, cell.layer) % (sizeof colours / sizeof *colours)];
  if (cell.mixed)
    printf ("\033[3%dm%c\033[0m", c, glyph (pic, cell));
  else
    printf ("\033[30;4%dm%c\033[0m", c, glyph (pic, cell));
}

void
picture_print_key (const struct picture *pic, int layer, bool colour)
{
  if (pic->bytes[layer + 1] == 0)
    putchar (' ');
  else
    print_cell (pic, (struct cell) { .layer = (int16_t) layer }, colour);
}

void
picture_print (const struct picture *pic, bool colour)
{
  char offset[SIZE_TEXT];
  size_t i;

  for (i = 0; i < pic->n_cells; i++) {
    if (i % pic->columns == 0)
      printf ("%*s |", OFFSET_WIDTH,
              i == 0 ? "0" : size_text (i * pic->cell_size, offset));
    print_cell (pic, pic->cells[i], colour);
    if (i + 1 == pic->n_cells || (i + 1) % pic->columns == 0)
      puts ("|");
  }
}
