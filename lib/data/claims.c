/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Claims.  Invariant: in a shard's list no two claims overlap, and a claim
 * is in the list of every shard that any of its bytes is dealt to; so two
 * claims that overlap always meet in a shard. */

#include <config.h>

#include "data/claims.h"

#include <stdbool.h>
#include <stddef.h>

#include "util/scope.h"

void
nc_claims_init (struct nc_claims *claims)
{
  for (unsigned i = 0; i < NC_CLAIM_SHARDS; ++i) {
    pthread_mutex_init (&claims->shard[i].lock, NULL);
    pthread_cond_init (&claims->shard[i].released, NULL);
    claims->shard[i].held = NULL;
    claims->shard[i].waiting = 0;
  }
}

void
nc_claims_fini (struct nc_claims *claims)
{
  for (unsigned i = 0; i < NC_CLAIM_SHARDS; ++i) {
    pthread_mutex_destroy (&claims->shard[i].lock);
    pthread_cond_destroy (&claims->shard[i].released);
  }
}

/* The shards that [offset, end) is dealt to. */
static uint64_t
shards_of (uint64_t offset, uint64_t end)
{
  uint64_t first = offset >> NC_CLAIM_STRIPE_BITS;
  uint64_t last = (end - 1) >> NC_CLAIM_STRIPE_BITS;
  uint64_t shards = 0;

  if (last - first >= NC_CLAIM_SHARDS - 1)
    return ~UINT64_C (0);
  for (uint64_t stripe = first; stripe <= last; ++stripe)
    shards |= UINT64_C (1) << (stripe % NC_CLAIM_SHARDS);
  return shards;
}

static bool
is_held_locked (const struct nc_claim_shard *shard,
                const struct nc_claim *claim)
{
  for (const struct nc_claim_link *l = shard->held; l; l = l->next)
    if (l->claim->offset < claim->end && claim->offset < l->claim->end)
      return true;
  return false;
}

void
nc_claim_take (struct nc_claims *claims, struct nc_claim *claim,
               uint64_t offset, uint64_t count)
{
  claim->claims = claims;
  claim->offset = offset;
  claim->end = offset + count;
  claim->shards = shards_of (offset, claim->end);

  for (unsigned i = 0; i < NC_CLAIM_SHARDS; ++i) {
    struct nc_claim_shard *shard = &claims->shard[i];

    if (!(claim->shards & (UINT64_C (1) << i)))
      continue;
    NC_LOCKED (&shard->lock);
    while (is_held_locked (shard, claim)) {
      shard->waiting++;
      pthread_cond_wait (&shard->released, &shard->lock);
      shard->waiting--;
    }
    claim->link[i].claim = claim;
    claim->link[i].next = shard->held;
    shard->held = &claim->link[i];
  }
}

void
nc_claim_release (struct nc_claim *claim)
{
  for (unsigned i = 0; i < NC_CLAIM_SHARDS; ++i) {
    struct nc_claim_shard *shard = &claim->claims->shard[i];
    struct nc_claim_link **p;

    if (!(claim->shards & (UINT64_C (1) << i)))
      continue;
    NC_LOCKED (&shard->lock);
    for (p = &shard->held; *p != &claim->link[i]; p = &(*p)->next)
      ;
    *p = claim->link[i].next;
    if (shard->waiting)
      pthread_cond_broadcast (&shard->released);
  }
}
