/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A client that sends seeded random operations over several connections, many
 * in flight, and checks every answer against the model.
 *
 * One thread drives all connections, so the same seed sends the same
 * operations as long as the replies come in the same order.
 */

#ifndef HARNESS_CLIENT_H
#define HARNESS_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

#include "log.h"
#include "model.h"
#include "pattern.h"

/* What happens to operations whose result is not yet in the reference. */
enum client_settling {
  SETTLE_AT_ONCE,               /* never overlapping: applied on reply */
  SETTLE_ROUNDS,                /* overlapping: by reading, when all is quiet */
  SETTLE_BY_CALLER,             /* kept until client_settle */
};

struct client_options {
  uint64_t seed;
  unsigned connections, inflight;       /* inflight: of each connection */
  bool overlap;
  enum client_settling settling;
  uint64_t max_count;           /* the longest read or write */
  unsigned weight[7];           /* of each enum op_kind */
  unsigned fua_percent;
  unsigned align;               /* every offset and length, if not 0 */
  bool long_extents;            /* extents may reach past the request */
  bool survive;                 /* a lost connection is no failure */
  struct log *log;              /* add marks here, if not NULL */
};

struct conn;
struct slot;

struct client {
  struct client_options opts;
  struct reference ref;
  struct rng rng;
  uint64_t clock, next_id;
  struct conn *conns;
  struct slot *slots;
  unsigned nslots, busy;
  struct op **epoch;            /* changed something, not in the reference */
  size_t nepoch, epoch_room;
  const struct op **history;
  size_t nhistory, history_room;
  uint64_t sent[7], bytes, unfinished;
  bool lost;                    /* a connection has died */
  bool fast_zero;               /* the server has it */
  uint64_t hot;                 /* where operations are dense at the moment */
};

/* Defaults of everything. */
extern void client_options_init (struct client_options *opts);

/* Set up for a disk of SIZE bytes; the reference is all zero then. */
extern void client_init (struct client *c, const struct client_options *opts,
                         uint64_t size);
extern void client_free (struct client *c);

/* Connect all connections to URI, trying for up to SECONDS.
 * Returns 0, or -1 with a message. */
extern int client_connect (struct client *c, const char *uri,
                           double seconds);
extern void client_disconnect (struct client *c);

/* Send operations until COUNT more were sent or a connection is lost.  Does
 * not wait for the last replies. */
extern void client_send (struct client *c, uint64_t count);

/* Wait for all replies (or the loss of the connections). */
extern void client_drain (struct client *c);

/* One flush, waited for. */
extern void client_flush (struct client *c);

/* Which operations of the epoch are certain. */
enum client_certain { CERTAIN_REPLIED, CERTAIN_DURABLE };

/* Read the whole disk, check it, and take what was seen as the reference.
 * WHAT says on failure when that was.  Nothing may be in flight. */
extern void client_settle (struct client *c, enum client_certain certain,
                           const char *what);

/* Like client_settle for the places that operations of the epoch touched. */
extern void client_settle_touched (struct client *c);

/* The reference and the numbers in use, kept in FILE. */
extern int client_save (const struct client *c, const char *file);
extern int client_load (struct client *c, const char *file);

/* Seconds of a clock that only goes forward. */
extern double now (void);

/* The size of the disk at URI, waiting for the server for up to SECONDS.
 * Returns -1 with a message. */
extern int64_t disk_size (const char *uri, double seconds);

#endif /* HARNESS_CLIENT_H */
