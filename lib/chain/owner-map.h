/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The merged view of layers that nobody writes: which of them a byte comes
 * from, in one look-up whatever their number.
 *
 * A map never changes its answers, so it needs no lock to be read; it only
 * remembers, in bounded memory, what it has worked out from the layers'
 * bitmaps.  All calls may be made from any thread; a look-up blocks on I/O
 * when it must work something out.
 */
#ifndef NC_MAP_H
#define NC_MAP_H

#include <stddef.h>
#include <stdint.h>

struct nc_layer;
struct nc_map;

/* The layers LAYERS[first] ... LAYERS[n-1], top first, first <= n.  The array
 * must outlive the map.  Returns NULL on error, reported. */
extern struct nc_map *nc_map_new (struct nc_layer *const *layers,
                                  size_t first, size_t n)
  __attribute__ ((__nonnull__ (1)));
extern void nc_map_free (struct nc_map *map);

/* Which layer the byte at OFFSET comes from: its index in LAYERS, or -1 where
 * none holds it (it reads as zeros).  *run: how many bytes from OFFSET on,
 * at most COUNT (> 0), share the answer.  What lies past the end of the
 * layers is zeros.
 * Returns -1 with errno set if a bitmap could not be read, reported. */
extern int nc_map_find (struct nc_map *map, uint64_t offset, uint64_t count,
                        int *layer, uint64_t *run)
  __attribute__ ((__nonnull__ (1, 4, 5)));

/* Bytes of memory that it takes now. */
extern uint64_t nc_map_memory (const struct nc_map *map)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_MAP_H */
