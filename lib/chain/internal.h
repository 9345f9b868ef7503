/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What chain.c (which layers there are) and request.c (what a request does)
 * share. */
#ifndef NC_CHAIN_INTERNAL_H
#define NC_CHAIN_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain/activity.h"
#include "chain/chain.h"
#include "chain/slots.h"
#include "chain/view.h"
#include "data/claims.h"
#include "format/layer.h"
#include "util/report.h"

struct nc_chain {
  struct nc_views views;
  struct nc_claims claims;
  uint64_t size;
  bool writable;
  unsigned retry;               /* seconds; 0 = for ever */

  pthread_mutex_t pivot_lock;   /* one pivot at a time, and none while a
                                   layer is described; held across I/O */
  pthread_mutex_t stop_lock;    /* held by who stops; guards stopped and
                                   stop_errno */
  bool stopped;
  int stop_errno;
  bool is_durable;              /* though stop_errno is set */

  _Atomic (struct nc_cold *) cold;      /* NULL: none */

  _Atomic (uint64_t) waits, refused_waits;
  _Atomic (unsigned) cold_reads;        /* of clients from a remote */
  struct nc_guest guest;        /* counts the requests of clients */
  struct nc_repeat given_up;    /* requests that a remote was needed for */
};

struct nc_export {
  struct nc_chain *chain;
  struct nc_layer *layer;       /* whose export it is; NULL: the disk's */
  struct nc_view *view;         /* that has the layer, pinned; NULL */
  uint64_t size;
  uint32_t block_size;
  bool writable;
  bool background;              /* no client's */
  char uuid[37];
  struct nc_slots slots;        /* of its threads that a remote blocks */
};

/* request.c: the index in VIEW of BASE, and for NULL how many layers there are;
 * 0 if a pivot has dropped BASE. */
extern size_t nc_view_base_index (const struct nc_view *view,
                                  const struct nc_layer *base)
  __attribute__ ((__nonnull__ (1)));

/* nc_export_missing in VIEW, with the index of the base. */
extern int nc_view_missing (struct nc_export *export, struct nc_view *view,
                            size_t base, struct nc_extents *missing)
  __attribute__ ((__nonnull__ (1, 2, 4)));

#endif /* NC_CHAIN_INTERNAL_H */
