/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A picture of the disk for the terminal: rows of cells, each one slice of
 * the disk, drawn as the layer that holds most of it.
 *
 * A layer is drawn as a capital letter where it holds the whole cell, as the
 * small one where others hold a part.  Cells of zeros are '.', and ':' where
 * there is data between the zeros.
 */
#ifndef NBDCHAIN_PICTURE_H
#define NBDCHAIN_PICTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct picture;

/* A picture of SIZE bytes from N_LAYERS layers, for a terminal of WIDTH
 * columns.  Returns NULL if there is no memory, reported. */
extern struct picture *picture_new (uint64_t size, size_t n_layers,
                                    int width);
extern void picture_free (struct picture *pic);

/* The next COUNT bytes come from LAYER; -1: they are zeros.  To be called
 * in order of offsets until the whole disk is covered. */
extern void picture_add (struct picture *pic, uint64_t count, int layer)
  __attribute__ ((__nonnull__ (1)));

/* Bytes in a cell, and bytes that come from LAYER (or -1) so far. */
extern uint64_t picture_cell_size (const struct picture *pic)
  __attribute__ ((__nonnull__ (1)));
extern uint64_t picture_bytes (const struct picture *pic, int layer)
  __attribute__ ((__nonnull__ (1)));

/* Print what a cell that LAYER holds looks like; a space if there is
 * none. */
extern void picture_print_key (const struct picture *pic, int layer,
                               bool colour)
  __attribute__ ((__nonnull__ (1)));

/* Print the picture on stdout. */
extern void picture_print (const struct picture *pic, bool colour)
  __attribute__ ((__nonnull__ (1)));

#endif /* NBDCHAIN_PICTURE_H */
