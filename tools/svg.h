/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A chain drawn as SVG: a bar for each layer with what it holds, the top one
 * first, and one for the disk, coloured by the layer each part is read from.
 * The size of the drawing is bounded, whatever the number of ranges. */
#ifndef NBDCHAIN_SVG_H
#define NBDCHAIN_SVG_H

#include <stdint.h>
#include <stdio.h>

struct nc_chain;
struct svg;

/* A drawing of CHAIN, which stays open as long.  Returns NULL if there is no
 * memory, reported. */
extern struct svg *svg_new (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));
extern void svg_free (struct svg *svg);

/* The next COUNT bytes of the disk come from LAYER; -1: they are zeros.  To
 * be called in order of offsets until the whole disk is covered. */
extern void svg_add (struct svg *svg, uint64_t count, int layer)
  __attribute__ ((__nonnull__ (1)));

/* Print the drawing, called TITLE, on FP.  Returns -1 on error, reported,
 * but for those of FP. */
extern int svg_print (struct svg *svg, const char *title, FILE *fp)
  __attribute__ ((__nonnull__ (1, 2, 3)));

#endif /* NBDCHAIN_SVG_H */
