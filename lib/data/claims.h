/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Claims: exclusive holds on byte ranges of the disk, for changes that take
 * several steps (everything that allocates a block).
 *
 * The disk is cut into stripes and the stripes are dealt to shards, so that
 * claims far apart share no lock.  A claim enters its shards in ascending
 * order and waits in one while it is held in those before it; as nobody
 * waits for a lower shard while in a higher one, there is no deadlock
 * between claims.  A thread holds one claim at a time, and no mutex while
 * it takes one.
 */
#ifndef NC_CLAIMS_H
#define NC_CLAIMS_H

#include <pthread.h>
#include <stdint.h>

#define NC_CLAIM_SHARDS 64
#define NC_CLAIM_STRIPE_BITS 20

struct nc_claim;

struct nc_claim_link {
  struct nc_claim_link *next;
  const struct nc_claim *claim;
};

/* A claim lives on its holder's stack. */
struct nc_claim {
  struct nc_claims *claims;
  uint64_t offset, end;         /* bytes of the disk */
  uint64_t shards;              /* a bit for each shard it is in */
  struct nc_claim_link link[NC_CLAIM_SHARDS];   /* only those in use */
};

struct nc_claims {
  struct nc_claim_shard {
    pthread_mutex_t lock;       /* guards held and waiting */
    pthread_cond_t released;
    struct nc_claim_link *held;
    unsigned waiting;
  } __attribute__ ((__aligned__ (64))) shard[NC_CLAIM_SHARDS];
};

extern void nc_claims_init (struct nc_claims *claims)
  __attribute__ ((__nonnull__ (1)));
extern void nc_claims_fini (struct nc_claims *claims)
  __attribute__ ((__nonnull__ (1)));

/* Wait until nobody holds any part of [offset, offset+count), and hold it.
 * The caller has rounded to blocks.  count > 0. */
extern void nc_claim_take (struct nc_claims *claims, struct nc_claim *claim,
                           uint64_t offset, uint64_t count)
  __attribute__ ((__nonnull__ (1, 2)));
extern void nc_claim_release (struct nc_claim *claim)
  __attribute__ ((__nonnull__ (1)));

/* NC_CLAIM (&chain->claims, offset, count);   held to the closing brace */
#define NC_CLAIM(claims, offset, count)                                 \
  __attribute__ ((__cleanup__ (nc_claim_release))) struct nc_claim      \
    nc_claim_here;                                                      \
  nc_claim_take (claims, &nc_claim_here, offset, count)

#endif /* NC_CLAIMS_H */
