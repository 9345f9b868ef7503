/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Sends random operations and checks the answers.  Every operation has an
 * interval on the client's clock; model.c judges by these alone.  A wrong
 * answer ends the program with exit status 1 and the story of the byte. */

#include <config.h>

#include "client.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  ROUND = 200,                  /* operations between two quiet moments */
  MAX_EXTENTS = 4096,
};
#define HOT_SIZE (UINT64_C (256) << 10)

struct conn {
  struct nbd_handle *nbd;
  unsigned busy;
};

struct extent {
  uint64_t count;
  uint32_t type;
};

struct slot {
  struct client *client;
  struct conn *conn;            /* NULL: free */
  struct op *op;
  uint8_t *buf;
  size_t room;
  uint64_t mark;                /* number of the log's start */
  struct extent *extents;
  size_t nextents;
};

double
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void
nap (void)
{
  const struct timespec ms = { .tv_nsec = 1000000 };

  nanosleep (&ms, NULL);
}

static void *
grown (void *array, size_t *room, size_t needed, size_t size)
{
  if (needed <= *room)
    return array;
  *room = needed * 2 + 64;
  array = realloc (array, *room * size);
  if (array == NULL) {
    perror ("realloc");
    exit (2);
  }
  return array;
}

void
client_options_init (struct client_options *opts)
{
  static const unsigned weight[7] = { 30, 34, 10, 8, 4, 3, 11 };

  memset (opts, 0, sizeof *opts);
  opts->seed = 1;
  opts->connections = 1;
  opts->inflight = 16;
  opts->max_count = 4 << 20;
  opts->fua_percent = 10;
  memcpy (opts->weight, weight, sizeof weight);
}

void
client_init (struct client *c, const struct client_options *opts,
             uint64_t size)
{
  unsigned i;

  memset (c, 0, sizeof *c);
  c->opts = *opts;
  if (c->opts.max_count > size)
    c->opts.max_count = size;
  reference_init (&c->ref, size);
  c->rng.state = opts->seed * 1000003;
  c->next_id = 1;
  c->nslots = opts->connections * opts->inflight;
  c->slots = calloc (c->nslots, sizeof *c->slots);
  c->conns = calloc (opts->connections, sizeof *c->conns);
  if (c->slots == NULL || c->conns == NULL) {
    perror ("calloc");
    exit (2);
  }
  for (i = 0; i < c->nslots; i++)
    c->slots[i].client = c;
}

void
client_free (struct client *c)
{
  size_t i;

  client_disconnect (c);
  for (i = 0; i < c->nslots; i++) {
    free (c->slots[i].buf);
    free (c->slots[i].extents);
  }
  for (i = 0; i < c->nhistory; i++)
    free ((void *) c->history[i]);
  free (c->history);
  free (c->epoch);
  free (c->slots);
  free (c->conns);
  reference_free (&c->ref);
}

/* One connection, which the server may not be ready for yet. */
static struct nbd_handle *
connect_one (const char *uri, double deadline)
{
  struct nbd_handle *nbd;

  for (;;) {
    nbd = nbd_create ();
    if (nbd == NULL)
      goto fail;
    nbd_set_debug (nbd, false);
    nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
    nbd_set_strict_mode (nbd, 0);
    if (nbd_connect_uri (nbd, uri) == 0)
      return nbd;
    if (now () > deadline)
      goto fail;
    nbd_close (nbd);
    nap ();
  }
fail:
  fprintf (stderr, "cannot connect to %s: %s\n", uri, nbd_get_error ());
  nbd_close (nbd);
  return NULL;
}

int64_t
disk_size (const char *uri, double seconds)
{
  struct nbd_handle *nbd = connect_one (uri, now () + seconds);
  int64_t size;

  if (nbd == NULL)
    return -1;
  size = nbd_get_size (nbd);
  if (size == -1)
    fprintf (stderr, "%s: %s\n", uri, nbd_get_error ());
  nbd_shutdown (nbd, 0);
  nbd_close (nbd);
  return size;
}

/* Send only what the server has: it may take the rest badly. */
static void
respect_server (struct client *c, struct nbd_handle *nbd)
{
  c->fast_zero = nbd_can_fast_zero (nbd) == 1;
  if (nbd_can_fua (nbd) != 1)
    c->opts.fua_percent = 0;
  if (nbd_can_zero (nbd) != 1)
    c->opts.weight[OP_ZERO] = 0;
  if (nbd_can_trim (nbd) != 1)
    c->opts.weight[OP_TRIM] = 0;
  if (nbd_can_flush (nbd) != 1)
    c->opts.weight[OP_FLUSH] = 0;
  if (nbd_can_cache (nbd) != 1)
    c->opts.weight[OP_CACHE] = 0;
  if (nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) != 1)
    c->opts.weight[OP_STATUS] = 0;
  if (nbd_is_read_only (nbd) == 1)
    c->opts.weight[OP_WRITE] = 0;
}

int
client_connect (struct client *c, const char *uri, double seconds)
{
  const double deadline = now () + seconds;
  unsigned i;

  client_disconnect (c);
  for (i = 0; i < c->opts.connections; i++) {
    do {
      c->conns[i].nbd = connect_one (uri, deadline);
      if (c->conns[i].nbd == NULL)
        return -1;
      /* The server may have died since. */
    } while (nbd_aio_is_ready (c->conns[i].nbd) != 1 && now () < deadline);
    if (nbd_get_size (c->conns[i].nbd) != (int64_t) c->ref.size) {
      fprintf (stderr, "%s: size %" PRIi64 ", but %" PRIu64 " expected\n",
               uri, nbd_get_size (c->conns[i].nbd), c->ref.size);
      return -1;
    }
  }
  respect_server (c, c->conns[0].nbd);
  c->lost = false;
  return 0;
}

void
client_disconnect (struct client *c)
{
  unsigned i;

  for (i = 0; i < c->opts.connections; i++) {
    if (c->conns[i].nbd == NULL)
      continue;
    if (!c->lost && c->busy == 0)
      nbd_shutdown (c->conns[i].nbd, 0);
    nbd_close (c->conns[i].nbd);
    c->conns[i].nbd = NULL;
    c->conns[i].busy = 0;
  }
}

static void
print_seed (const struct client *c)
{
  fprintf (stderr, "seed %" PRIu64 ", disk of %" PRIu64 " bytes, %u "
           "connections, %u in flight, %s\n", c->opts.seed, c->ref.size,
           c->opts.connections, c->opts.inflight,
           c->opts.overlap ? "overlapping" : "exclusive");
}

static void __attribute__ ((__noreturn__))
fail_op (const struct client *c, const struct op *op, const char *message)
{
  fprintf (stderr, "FAILED: %s\n", message);
  print_seed (c);
  op_print (stderr, op);
  exit (1);
}

static void
mark_certain (struct client *c, enum client_certain certain, uint64_t before)
{
  size_t i;

  for (i = 0; i < c->nepoch; i++)
    c->epoch[i]->certain = certain == CERTAIN_REPLIED ?
      c->epoch[i]->end < before : c->epoch[i]->durable < before;
}

/* Check what was seen at OFFSET, the operations being marked. */
static void
check (struct client *c, const struct op *op, const char *what,
       uint64_t offset, const uint8_t *seen, size_t count)
{
  const size_t good = model_check (&c->ref, c->epoch, c->nepoch, offset, seen,
                                   count);

  if (good == count)
    return;
  fprintf (stderr, "FAILED: %s\n", what);
  print_seed (c);
  if (op != NULL)
    op_print (stderr, op);
  model_explain (stderr, &c->ref, c->epoch, c->nepoch, c->history,
                 c->nhistory, offset + good, seen + good, count - good);
  exit (1);
}

/* What was seen is what is there from now on. */
static void
adopt (struct client *c, uint64_t offset, const uint8_t *seen, size_t count)
{
  memcpy (c->ref.bytes + offset, seen, count);
  memset (c->ref.loose + offset, 0, count);
}

static void
finish_read (struct client *c, struct slot *slot)
{
  const struct op *op = slot->op;

  mark_certain (c, CERTAIN_REPLIED, op->start);
  check (c, op, "a read returned wrong data", op->offset, slot->buf,
         op->count);
  if (c->opts.settling == SETTLE_AT_ONCE)
    adopt (c, op->offset, slot->buf, op->count);
}

static void
finish_status (struct client *c, struct slot *slot)
{
  const struct op *op = slot->op;
  static uint8_t *zeros;
  static size_t zeros_room;
  uint64_t at = op->offset;
  size_t i;

  if (slot->nextents == 0)
    fail_op (c, op, "block status: no extent");
  if ((op->flags & LIBNBD_CMD_FLAG_REQ_ONE) && slot->nextents != 1)
    fail_op (c, op, "block status: more than one extent with REQ_ONE");
  mark_certain (c, CERTAIN_REPLIED, op->start);
  for (i = 0; i < slot->nextents; i++) {
    uint64_t n = slot->extents[i].count;

    if (c->opts.long_extents && n > op->offset + op->count - at)
      n = op->offset + op->count - at;
    if (n == 0)
      fail_op (c, op, "block status: an empty extent");
    if (n > op->offset + op->count - at)
      fail_op (c, op, "block status: an extent reaches past the request");
    if (slot->extents[i].type & LIBNBD_STATE_ZERO) {
      if (n > zeros_room) {
        free (zeros);
        zeros_room = n;
        zeros = calloc (1, n);
        if (zeros == NULL) {
          perror ("calloc");
          exit (2);
        }
      }
      check (c, op, "block status said zero where there is data", at, zeros,
             n);
      if (c->opts.settling == SETTLE_AT_ONCE)
        adopt (c, at, zeros, n);
    }
    at += n;
  }
}

static void
finish_flush (struct client *c, const struct op *op)
{
  size_t i;

  for (i = 0; i < c->nepoch; i++)
    if (c->epoch[i]->end < op->start && c->epoch[i]->durable == NEVER)
      c->epoch[i]->durable = op->end;
}

static void
finish_change (struct client *c, struct op *op)
{
  if (op->flags & LIBNBD_CMD_FLAG_FUA)
    op->durable = op->end;
  if (c->opts.settling == SETTLE_AT_ONCE)
    reference_apply (&c->ref, op);
}

static bool
error_is_loss (int error)
{
  return error == ENOTCONN || error == ESHUTDOWN || error == ECONNRESET ||
    error == EPIPE || error == EBADMSG;
}

static int
slot_completed (void *opaque, int *error)
{
  struct slot *slot = opaque;
  struct client *c = slot->client;
  struct op *op = slot->op;

  if (*error == 0 || !error_is_loss (*error)) {
    op->end = ++c->clock;
    if (c->opts.log != NULL) {
      struct log_record record = {
        .type = LOG_MARK_ACK, .ref = slot->mark, .result = -*error,
      };

      record.seq = log_next (c->opts.log);
      log_append (c->opts.log, &record, NULL, 0);
    }
  }
  if (*error == 0) {
    switch (op->kind) {
    case OP_READ: finish_read (c, slot); break;
    case OP_STATUS: finish_status (c, slot); break;
    case OP_FLUSH: finish_flush (c, op); break;
    case OP_CACHE: break;
    default: finish_change (c, op);
    }
  }
  else if (error_is_loss (*error) && c->opts.survive) {
    c->lost = true;
    c->unfinished++;
  }
  else if (op->flags & LIBNBD_CMD_FLAG_FAST_ZERO &&
           (*error == ENOTSUP || *error == EOPNOTSUPP))
    op->without_effect = true;
  else {
    char message[200];

    snprintf (message, sizeof message, "an operation failed: %s",
              strerror (*error));
    fail_op (c, op, message);
  }
  slot->conn->busy--;
  slot->conn = NULL;
  c->busy--;
  return 1;
}

static int
slot_extents (void *opaque, const char *context, uint64_t offset,
              uint32_t *entries, size_t n, int *error)
{
  struct slot *slot = opaque;
  size_t i;

  (void) error;
  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    return 0;
  if (offset != slot->op->offset)
    fail_op (slot->client, slot->op, "block status: wrong offset");
  if (slot->extents == NULL) {
    slot->extents = calloc (MAX_EXTENTS, sizeof *slot->extents);
    if (slot->extents == NULL) {
      perror ("calloc");
      exit (2);
    }
  }
  for (i = 0; i + 1 < n && slot->nextents < MAX_EXTENTS; i += 2) {
    slot->extents[slot->nextents].count = entries[i];
    slot->extents[slot->nextents].type = entries[i + 1];
    slot->nextents++;
  }
  return 0;
}

/* May OP go out beside what is in flight? */
static bool
is_free (const struct client *c, const struct op *op)
{
  unsigned i;

  if (c->opts.overlap || op->kind == OP_FLUSH)
    return true;
  for (i = 0; i < c->nslots; i++) {
    const struct op *other = c->slots[i].op;

    if (c->slots[i].conn == NULL || other->kind == OP_FLUSH)
      continue;
    if (!op_changes_data (op) && !op_changes_data (other))
      continue;
    if (op->offset < other->offset + other->count &&
        other->offset < op->offset + op->count)
      return false;
  }
  return true;
}

/* Choose the range of OP.  Half of the operations are dense in one place. */
static void
choose_range (struct client *c, struct op *op)
{
  static const unsigned units[] = { 1, 1, 512, 4096, 4096, 65536 };
  struct rng *r = &c->rng;
  const uint64_t size = c->ref.size;
  uint64_t unit = units[rng_below (r, 6)];
  uint64_t limit = c->opts.max_count, area = 0, area_size = size;

  if (c->opts.align != 0)
    unit = c->opts.align;
  if ((op->kind == OP_ZERO || op->kind == OP_TRIM) && rng_below (r, 24) == 0)
    limit = size;
  if (limit > UINT32_MAX / 2)
    limit = UINT32_MAX / 2;
  if (rng_below (r, 200) == 0)
    c->hot = rng_below (r, size);
  if (rng_below (r, 2) && size > HOT_SIZE) {
    area = c->hot > size - HOT_SIZE ? size - HOT_SIZE : c->hot;
    area_size = HOT_SIZE;
  }
  else if (rng_below (r, 20) == 0 && size > HOT_SIZE) {
    area = size - HOT_SIZE;             /* the end is a special place */
    area_size = HOT_SIZE;
  }
  if (unit > size)
    unit = 1;
  op->count = rng_scaled (r, (limit + unit - 1) / unit) * unit;
  if (op->count > size)
    op->count = size;
  op->offset = area + rng_below (r, area_size);
  op->offset -= op->offset % unit;
  if (op->offset + op->count > size) {
    if (rng_below (r, 2))
      op->count = size - op->offset;
    else
      op->offset = size - op->count;
  }
  if (c->opts.align != 0 &&
      (op->offset % c->opts.align || op->count % c->opts.align)) {
    op->offset -= op->offset % c->opts.align;
    op->count -= op->count % c->opts.align;
    if (op->count == 0)
      op->count = c->opts.align;
  }
}

static void
choose_op (struct client *c, struct op *op)
{
  struct rng *r = &c->rng;
  unsigned i, total = 0, n;

  for (i = 0; i < 7; i++)
    total += c->opts.weight[i];
  n = rng_below (r, total);
  for (i = 0; n >= c->opts.weight[i]; i++)
    n -= c->opts.weight[i];
  op->kind = i;
  op->flags = 0;
  op->offset = op->count = 0;
  if (op->kind != OP_FLUSH)
    choose_range (c, op);
  if (op_changes_data (op) && rng_below (r, 100) < c->opts.fua_percent)
    op->flags |= LIBNBD_CMD_FLAG_FUA;
  if (op->kind == OP_ZERO) {
    if (rng_below (r, 2))
      op->flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    if (rng_below (r, 4) == 0 && c->fast_zero)
      op->flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
  }
  if (op->kind == OP_STATUS && rng_below (r, 3) == 0)
    op->flags |= LIBNBD_CMD_FLAG_REQ_ONE;
}

static void
submit (struct client *c, struct slot *slot)
{
  struct op *op = slot->op;
  struct nbd_handle *nbd = slot->conn->nbd;
  const nbd_completion_callback done = {
    .callback = slot_completed, .user_data = slot,
  };
  const nbd_extent_callback extents = {
    .callback = slot_extents, .user_data = slot,
  };
  int64_t r = -1;

  if ((op->kind == OP_READ || op->kind == OP_WRITE) &&
      op->count > slot->room) {
    free (slot->buf);
    slot->room = op->count;
    slot->buf = malloc (slot->room);
    if (slot->buf == NULL) {
      perror ("malloc");
      exit (2);
    }
  }
  slot->nextents = 0;
  if (c->opts.log != NULL) {
    const struct log_mark mark = {
      op->seed, op->id, op->offset, op->count, op->kind, op->flags
    };
    struct log_record record = { .type = LOG_MARK_START };

    slot->mark = record.seq = log_next (c->opts.log);
    log_append (c->opts.log, &record, &mark, sizeof mark);
  }
  switch (op->kind) {
  case OP_READ:
    memset (slot->buf, 0xdb, op->count);
    r = nbd_aio_pread (nbd, slot->buf, op->count, op->offset, done, 0);
    break;
  case OP_WRITE:
    pattern_bytes (op->seed, op->id, op->offset, slot->buf, op->count);
    r = nbd_aio_pwrite (nbd, slot->buf, op->count, op->offset, done,
                        op->flags);
    break;
  case OP_ZERO:
    r = nbd_aio_zero (nbd, op->count, op->offset, done, op->flags);
    break;
  case OP_TRIM:
    r = nbd_aio_trim (nbd, op->count, op->offset, done, op->flags);
    break;
  case OP_FLUSH:
    r = nbd_aio_flush (nbd, done, 0);
    break;
  case OP_CACHE:
    r = nbd_aio_cache (nbd, op->count, op->offset, done, 0);
    break;
  case OP_STATUS:
    r = nbd_aio_block_status (nbd, op->count, op->offset, extents, done,
                              op->flags);
    break;
  }
  if (r != -1)
    return;
  /* libnbd does not call back for what it has not accepted. */
  if (slot->conn != NULL) {
    int error = nbd_get_errno ();

    if (nbd_aio_is_dead (nbd) || nbd_aio_is_closed (nbd))
      error = ENOTCONN;
    slot_completed (slot, &error);
  }
}

static void
remember (struct client *c, struct op *op)
{
  c->history = grown (c->history, &c->history_room, c->nhistory + 1,
                      sizeof *c->history);
  c->history[c->nhistory++] = op;
  if (op_changes_data (op) && c->opts.settling != SETTLE_AT_ONCE) {
    c->epoch = grown (c->epoch, &c->epoch_room, c->nepoch + 1,
                      sizeof *c->epoch);
    c->epoch[c->nepoch++] = op;
  }
}

static void
send_op (struct client *c, struct conn *conn, const struct op *template)
{
  struct slot *slot = c->slots;
  struct op *op = malloc (sizeof *op);

  if (op == NULL) {
    perror ("malloc");
    exit (2);
  }
  while (slot->conn != NULL)
    slot++;
  *op = *template;
  op->seed = c->opts.seed;
  op->id = c->next_id++;
  op->start = ++c->clock;
  op->end = op->durable = NEVER;
  op->without_effect = op->certain = false;
  slot->op = op;
  slot->conn = conn;
  conn->busy++;
  c->busy++;
  c->sent[op->kind]++;
  c->bytes += op->count;
  remember (c, op);
  submit (c, slot);
}

/* Handle what the sockets have.  Waits for something if WAIT. */
static void
turn (struct client *c, bool wait)
{
  struct pollfd fds[64];
  struct conn *of[64];
  unsigned i, n = 0;

  for (i = 0; i < c->opts.connections && n < 64; i++) {
    struct nbd_handle *nbd = c->conns[i].nbd;
    unsigned dir;

    if (nbd == NULL || nbd_aio_is_dead (nbd) || nbd_aio_is_closed (nbd)) {
      c->lost = true;
      continue;
    }
    dir = nbd_aio_get_direction (nbd);
    fds[n].fd = nbd_aio_get_fd (nbd);
    fds[n].events = 0;
    fds[n].revents = 0;
    if (dir & LIBNBD_AIO_DIRECTION_READ)
      fds[n].events |= POLLIN;
    if (dir & LIBNBD_AIO_DIRECTION_WRITE)
      fds[n].events |= POLLOUT;
    of[n++] = &c->conns[i];
  }
  if (n == 0)
    return;
  if (poll (fds, n, wait ? 1000 : 0) == -1 && errno != EINTR) {
    perror ("poll");
    exit (2);
  }
  for (i = 0; i < n; i++) {
    const unsigned dir = nbd_aio_get_direction (of[i]->nbd);

    if ((fds[i].revents & (POLLIN | POLLHUP | POLLERR)) &&
        (dir & LIBNBD_AIO_DIRECTION_READ))
      nbd_aio_notify_read (of[i]->nbd);
    else if ((fds[i].revents & (POLLOUT | POLLHUP | POLLERR)) &&
             (dir & LIBNBD_AIO_DIRECTION_WRITE))
      nbd_aio_notify_write (of[i]->nbd);
  }
}

/* A connection with room for one more, or NULL. */
static struct conn *
free_connection (struct client *c)
{
  const unsigned first = rng_below (&c->rng, c->opts.connections);
  unsigned i;

  for (i = 0; i < c->opts.connections; i++) {
    struct conn *conn = &c->conns[(first + i) % c->opts.connections];

    if (conn->busy < c->opts.inflight)
      return conn;
  }
  return NULL;
}

void
client_send (struct client *c, uint64_t count)
{
  while (count > 0 && !c->lost) {
    struct conn *conn = free_connection (c);
    struct op op = { 0 };
    unsigned tries;

    if (c->opts.settling == SETTLE_ROUNDS && c->nepoch >= ROUND) {
      client_drain (c);
      client_settle_touched (c);
      continue;
    }
    if (conn == NULL) {
      turn (c, true);
      continue;
    }
    for (tries = 0; tries < 20; tries++) {
      choose_op (c, &op);
      if (is_free (c, &op))
        break;
    }
    if (tries == 20) {
      turn (c, true);
      continue;
    }
    send_op (c, conn, &op);
    count--;
    turn (c, false);
  }
}

void
client_drain (struct client *c)
{
  unsigned i;

  while (c->busy > 0) {
    turn (c, true);
    for (i = 0; i < c->opts.connections; i++)
      if (c->conns[i].busy > 0 && (nbd_aio_is_dead (c->conns[i].nbd) ||
                                   nbd_aio_is_closed (c->conns[i].nbd))) {
        fprintf (stderr, "FAILED: the connection died without an end of "
                 "its commands\n");
        exit (1);
      }
  }
}

void
client_flush (struct client *c)
{
  const struct op flush = { .kind = OP_FLUSH };

  client_drain (c);
  if (c->lost)
    return;
  send_op (c, &c->conns[0], &flush);
  client_drain (c);
}

/* Read, check and adopt one piece. */
static void
settle_range (struct client *c, const char *what, uint64_t offset,
              uint64_t count)
{
  static uint8_t *buf;
  const size_t most = 4 << 20;
  const size_t piece = c->opts.max_count < 65536 ? 65536 :
    c->opts.max_count < most ? c->opts.max_count : most;

  if (buf == NULL && (buf = malloc (most)) == NULL) {
    perror ("malloc");
    exit (2);
  }
  while (count > 0 && !c->lost) {
    const size_t n = count < piece ? count : piece;

    if (nbd_pread (c->conns[0].nbd, buf, n, offset, 0) == -1) {
      if (c->opts.survive && (nbd_aio_is_dead (c->conns[0].nbd) ||
                              nbd_aio_is_closed (c->conns[0].nbd) ||
                              error_is_loss (nbd_get_errno ()))) {
        c->lost = true;
        return;
      }
      fprintf (stderr, "FAILED: %s: read %" PRIu64 "+%zu: %s\n", what, offset,
               n, nbd_get_error ());
      print_seed (c);
      exit (1);
    }
    check (c, NULL, what, offset, buf, n);
    adopt (c, offset, buf, n);
    offset += n;
    count -= n;
  }
}

void
client_settle (struct client *c, enum client_certain certain,
               const char *what)
{
  mark_certain (c, certain, ++c->clock);
  settle_range (c, what, 0, c->ref.size);
  if (!c->lost)
    c->nepoch = 0;
}

static int
compare_op_offsets (const void *a, const void *b)
{
  const struct op *x = *(struct op *const *) a, *y = *(struct op *const *) b;

  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

void
client_settle_touched (struct client *c)
{
  struct op **sorted;
  uint64_t at = 0;
  size_t i;

  if (c->nepoch == 0 || c->lost)
    return;
  sorted = malloc (c->nepoch * sizeof *sorted);
  if (sorted == NULL) {
    perror ("malloc");
    exit (2);
  }
  memcpy (sorted, c->epoch, c->nepoch * sizeof *sorted);
  qsort (sorted, c->nepoch, sizeof *sorted, compare_op_offsets);
  mark_certain (c, CERTAIN_REPLIED, ++c->clock);
  for (i = 0; i < c->nepoch; i++) {
    const uint64_t last = sorted[i]->offset + sorted[i]->count;
    const uint64_t first = sorted[i]->offset > at ? sorted[i]->offset : at;

    if (last > first) {
      settle_range (c, "wrong data after all operations had ended", first,
                    last - first);
      at = last;
    }
  }
  free (sorted);
  if (!c->lost)
    c->nepoch = 0;
}

struct saved {
  uint64_t magic, size, next_id, clock, rng;
};
#define SAVED_MAGIC UINT64_C (0x6f7261636c650001)

int
client_save (const struct client *c, const char *file)
{
  const struct saved head = {
    SAVED_MAGIC, c->ref.size, c->next_id, c->clock, c->rng.state
  };
  FILE *fp = fopen (file, "w");

  if (fp == NULL || fwrite (&head, sizeof head, 1, fp) != 1 ||
      fwrite (c->ref.bytes, 1, c->ref.size, fp) != c->ref.size ||
      fwrite (c->ref.loose, 1, c->ref.size, fp) != c->ref.size ||
      fflush (fp) == EOF) {
    perror (file);
    if (fp != NULL)
      fclose (fp);
    return -1;
  }
  fclose (fp);
  return 0;
}

int
client_load (struct client *c, const char *file)
{
  struct saved head;
  FILE *fp = fopen (file, "r");

  if (fp == NULL) {
    perror (file);
    return -1;
  }
  if (fread (&head, sizeof head, 1, fp) != 1 || head.magic != SAVED_MAGIC ||
      head.size != c->ref.size ||
      fread (c->ref.bytes, 1, c->ref.size, fp) != c->ref.size ||
      fread (c->ref.loose, 1, c->ref.size, fp) != c->ref.size) {
    fprintf (stderr, "%s: not the state of a disk of %" PRIu64 " bytes\n",
             file, c->ref.size);
    fclose (fp);
    return -1;
  }
  fclose (fp);
  c->next_id = head.next_id;
  c->clock = head.clock;
  c->rng.state ^= head.rng;
  return 0;
}
