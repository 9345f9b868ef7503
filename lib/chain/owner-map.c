/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Owners of the units of a disk, a leaf of 4096 units at a time.
 *
 * A slot a leaf says "not known", "all units have the owner X", or where the
 * leaf's owners are: in a pool of fixed size, whose entries are reused in
 * clock order.  The pool's memory is never given back while the map lives,
 * so a reader may read an entry while it is being reused; it sees that from
 * the entry's tag, which says whose leaf it is, and how often the entry was
 * filled, and is taken away before the entry changes.  Everything shared is
 * accessed atomically; the acquire loads keep "read owners, then look at the
 * tag again" in order.
 *
 * A leaf is worked out from the layers without a lock; two threads may do
 * it at once and get the same.
 */

#include <config.h>

#include "chain/owner-map.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "format/format.h"
#include "format/layer.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/scope.h"

#define LEAF_BITS 12
#define LEAF_UNITS (1u << LEAF_BITS)
#define POOL_LEAVES 16384       /* 64 MiB */
#define UNIT_BITS_MAX 21        /* unless a layer has smaller blocks */
#define NOBODY 255

/* Values of a slot. */
enum { SLOT_UNKNOWN = 0, SLOT_EQUAL = 1, SLOT_POOL = 256 + SLOT_EQUAL };

struct nc_map {
  struct nc_layer *const *layers;
  size_t first, n;
  uint64_t *visible;            /* how much of each layer can be seen */
  unsigned unit_bits;
  uint64_t nleaves;
  _Atomic (uint32_t) *slot;     /* one a leaf */

  struct entry {
    _Atomic (uint64_t) tag;     /* 0 while it changes, else see make_tag */
    _Atomic (uint8_t) used;     /* since the clock's hand came by */
  } *entry;
  _Atomic (uint64_t) (*owners)[LEAF_UNITS / 8];

  pthread_mutex_t lock;         /* guards what follows, and changes of
                                   slots and entries */
  size_t used_entries, hand;
  uint64_t fills;
};

/* Leaves have numbers of 38 bits, for sizes are below 2^62. */
#define TAG_LEAF_BITS 40

static uint64_t
make_tag (uint64_t leaf, uint64_t fills)
{
  return fills << TAG_LEAF_BITS | (leaf + 1);
}

static uint64_t
leaf_of_tag (uint64_t tag)
{
  return (tag & ((UINT64_C (1) << TAG_LEAF_BITS) - 1)) - 1;
}

/* Memory that costs nothing until it is touched: the sizes of disks are not
 * ours to choose. */
static void *
reserve (size_t size)
{
  void *p = mmap (NULL, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  return p == MAP_FAILED ? NULL : p;
}

static uint64_t
leaf_bytes (const struct nc_map *map)
{
  return (uint64_t) LEAF_UNITS << map->unit_bits;
}

/* A layer is seen through those above it: no further than each of them
 * reaches, and than each recorded of its backing. */
static void
find_visible (struct nc_map *map)
{
  uint64_t limit = UINT64_MAX;

  map->unit_bits = UNIT_BITS_MAX;
  for (size_t i = map->first; i < map->n; ++i) {
    const struct nc_layer *layer = map->layers[i];

    limit = nc_min64 (limit, layer->size);
    map->visible[i] = limit;
    if (layer->backing.present)
      limit = nc_min64 (limit, layer->backing.size);
    while (map->unit_bits > 12 &&
           (UINT32_C (1) << map->unit_bits) > layer->block_size)
      map->unit_bits--;
  }
}

#define OWNERS_SIZE ((size_t) POOL_LEAVES * LEAF_UNITS)

static size_t
slots_size (const struct nc_map *map)
{
  return (map->nleaves + 1) * sizeof *map->slot;
}

struct nc_map *
nc_map_new (struct nc_layer *const *layers, size_t first, size_t n)
{
  struct nc_map *map = calloc (1, sizeof *map);
  uint64_t size = first < n ? layers[first]->size : 0;

  if (map == NULL)
    goto fail;
  map->layers = layers;
  map->first = first;
  map->n = n;
  pthread_mutex_init (&map->lock, NULL);
  map->visible = calloc (n + 1, sizeof *map->visible);
  if (map->visible == NULL)
    goto fail;
  find_visible (map);
  map->nleaves = nc_div_up (size, leaf_bytes (map));
  map->slot = reserve (slots_size (map));
  map->entry = calloc (POOL_LEAVES, sizeof *map->entry);
  map->owners = reserve (OWNERS_SIZE);
  if (map->slot == NULL || map->entry == NULL || map->owners == NULL)
    goto fail;
  return map;

 fail:
  nc_error ("map of the layers: %m");
  nc_map_free (map);
  return NULL;
}

void
nc_map_free (struct nc_map *map)
{
  if (map == NULL)
    return;
  if (map->owners)
    munmap (map->owners, OWNERS_SIZE);
  if (map->slot)
    munmap (map->slot, slots_size (map));
  free (map->entry);
  free (map->visible);
  pthread_mutex_destroy (&map->lock);
  free (map);
}

uint64_t
nc_map_memory (const struct nc_map *map)
{
  struct nc_map *m = (struct nc_map *) map;

  NC_LOCKED (&m->lock);
  return map->nleaves * sizeof *map->slot +
    map->used_entries * (LEAF_UNITS + sizeof *map->entry);
}

/* Working out a leaf. */

struct leaf {
  uint64_t offset;              /* of the disk */
  unsigned unit_bits;
  uint8_t owner;                /* the layer being walked */
  unsigned left;                /* units without an owner */
  union {
    uint8_t owners[LEAF_UNITS];
    uint64_t words[LEAF_UNITS / 8];
  };
};

static int
own (void *opaque, uint64_t offset, uint64_t count)
{
  struct leaf *leaf = opaque;
  const unsigned first = (offset - leaf->offset) >> leaf->unit_bits;
  const unsigned last = (offset + count - 1 - leaf->offset) >>
    leaf->unit_bits;

  for (unsigned u = first; u <= last; ++u)
    if (leaf->owners[u] == NOBODY) {
      leaf->owners[u] = leaf->owner;
      leaf->left--;
    }
  return 0;
}

static int
work_out (const struct nc_map *map, uint64_t i, struct leaf *leaf)
{
  leaf->offset = i * leaf_bytes (map);
  leaf->unit_bits = map->unit_bits;
  leaf->left = LEAF_UNITS;
  memset (leaf->owners, NOBODY, sizeof leaf->owners);

  for (size_t k = map->first; k < map->n && leaf->left > 0; ++k) {
    struct nc_layer *layer = map->layers[k];
    uint64_t end = nc_min64 (leaf->offset + leaf_bytes (map),
                             map->visible[k]);

    if (leaf->offset >= end)
      break;
    leaf->owner = k;
    if (layer->format->walk (layer, leaf->offset, end - leaf->offset, own,
                             leaf) == -1)
      return -1;
  }
  return 0;
}

static bool
is_equal (const struct leaf *leaf)
{
  return memcmp (leaf->owners, leaf->owners + 1, LEAF_UNITS - 1) == 0;
}

/* An entry to be filled: a fresh one, or one that was not used lately. */
static size_t
take_entry_locked (struct nc_map *map)
{
  uint64_t tag;

  if (map->used_entries < POOL_LEAVES)
    return map->used_entries++;
  while (atomic_exchange (&map->entry[map->hand].used, 0))
    map->hand = (map->hand + 1) % POOL_LEAVES;
  tag = map->entry[map->hand].tag;
  map->entry[map->hand].tag = 0;
  map->slot[leaf_of_tag (tag)] = SLOT_UNKNOWN;
  return map->hand;
}

static void
remember (struct nc_map *map, uint64_t i, const struct leaf *leaf)
{
  size_t e;

  NC_LOCKED (&map->lock);
  if (map->slot[i] != SLOT_UNKNOWN)
    return;
  if (is_equal (leaf)) {
    map->slot[i] = SLOT_EQUAL + leaf->owners[0];
    return;
  }
  e = take_entry_locked (map);
  for (unsigned w = 0; w < LEAF_UNITS / 8; ++w)
    atomic_store_explicit (&map->owners[e][w], leaf->words[w],
                           memory_order_release);
  map->entry[e].used = 1;
  map->entry[e].tag = make_tag (i, ++map->fills);
  map->slot[i] = SLOT_POOL + e;
}

/* How many units from UNIT on, at most MAX, have the owner of UNIT.  WORDS
 * may change underneath; the caller finds out. */
static unsigned
run_of_owner (const _Atomic (uint64_t) *words, unsigned unit, unsigned max,
              uint8_t *owner)
{
  unsigned n = 0;

  while (n < max) {
    union { uint64_t word; uint8_t bytes[8]; } w;

    w.word = atomic_load_explicit (&words[(unit + n) / 8],
                                   memory_order_acquire);
    if (n == 0)
      *owner = w.bytes[unit % 8];
    for (unsigned b = (unit + n) % 8; b < 8 && n < max; ++b, ++n)
      if (w.bytes[b] != *owner)
        return n;
  }
  return n;
}

/* The owner of unit UNIT of leaf I, and the run of it within the leaf. */
static int
find_in_leaf (struct nc_map *map, uint64_t i, unsigned unit, unsigned max,
              uint8_t *owner, unsigned *run)
{
  for (;;) {
    uint32_t slot = atomic_load_explicit (&map->slot[i],
                                          memory_order_acquire);
    struct leaf leaf;

    if (slot == SLOT_UNKNOWN) {
      if (work_out (map, i, &leaf) == -1)
        return -1;
      remember (map, i, &leaf);
      *run = run_of_owner ((_Atomic (uint64_t) *) leaf.words, unit, max,
                           owner);
      return 0;
    }
    if (slot < SLOT_POOL) {
      *owner = slot - SLOT_EQUAL;
      *run = max;
      return 0;
    }

    struct entry *entry = &map->entry[slot - SLOT_POOL];
    const uint64_t tag = atomic_load_explicit (&entry->tag,
                                               memory_order_acquire);

    if (tag == 0 || leaf_of_tag (tag) != i)
      continue;
    *run = run_of_owner (map->owners[slot - SLOT_POOL], unit, max, owner);
    if (atomic_load_explicit (&entry->tag, memory_order_acquire) != tag)
      continue;
    if (!atomic_load_explicit (&entry->used, memory_order_relaxed))
      atomic_store_explicit (&entry->used, 1, memory_order_relaxed);
    return 0;
  }
}

int
nc_map_find (struct nc_map *map, uint64_t offset, uint64_t count,
             int *layer, uint64_t *run)
{
  const uint64_t size = map->first < map->n ? map->visible[map->first] : 0;
  const uint64_t end = nc_min64 (offset + count, size);
  uint8_t owner = NOBODY;
  uint64_t at = offset;

  *layer = -1;
  *run = count;
  if (offset >= size)
    return 0;

  while (at < end) {
    const uint64_t i = at / leaf_bytes (map);
    const unsigned unit = (at >> map->unit_bits) % LEAF_UNITS;
    const uint64_t last = (end - 1) >> map->unit_bits;
    const unsigned max = nc_min64 (LEAF_UNITS - unit,
                                   last - (at >> map->unit_bits) + 1);
    unsigned n;
    uint8_t this;

    if (find_in_leaf (map, i, unit, max, &this, &n) == -1)
      return -1;
    if (at == offset)
      owner = this;
    else if (this != owner)
      break;
    at = ((at >> map->unit_bits) + n) << map->unit_bits;
    if (n < max)
      break;
  }
  *run = nc_min64 (at, end) - offset;
  if (owner == NOBODY)
    return 0;
  if (offset >= map->visible[owner])
    return 0;
  *run = nc_min64 (*run, map->visible[owner] - offset);
  *layer = owner;
  return 0;
}
