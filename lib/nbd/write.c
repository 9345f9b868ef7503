/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Writes, zeros, trims and syncs of a remote device.
 *
 * A change is split into requests that the server accepts.  Up to BATCH of them
 * are in flight at a time, with the caller's memory as their buffers.  If a
 * connection is lost before one is answered, the change fails with ENOTCONN.
 *
 * Minimum block size: a head or tail that is no whole block is made by
 * read-modify-write.  Every change of such a device holds a claim of its
 * blocks, so that no other change of them comes between the read and the
 * write.
 *
 * What the server lacks: without write zeroes, zeros are written; without trim,
 * a trim does nothing; without FUA, a durable write is followed by a flush.
 */

#include <config.h>

#include "nbd/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "data/claims.h"
#include "util/scope.h"

#define BATCH NC_DEV_READS             /* parts of a change in flight */
#define MAX_ZERO (64U << 20)           /* some servers zero only a part of a
                                          larger request */
#define MAX_BLOCK (64U << 10)          /* largest minimum block size */

/* Never written to. */
static char zeros[256 << 10];

/* A change of a range.  Data of a WRITE is in the parts of IOV; without any it
 * is zeros. */
struct change {
  enum kind kind;
  unsigned flags;                      /* LIBNBD_CMD_FLAG_* */
  uint64_t offset, count;
  const struct iovec *iov;
  size_t skip;                         /* of the first part */
  bool small;                          /* limit ZERO and TRIM like WRITE */
};

void
conn_learn_changes (struct conn *conn, struct export *export)
{
  struct nbd_handle *h = conn->h;
  const int64_t preferred = nbd_get_block_size (h, LIBNBD_SIZE_PREFERRED);

  export->preferred = export->minimum;
  if (preferred > export->minimum && preferred <= export->maximum &&
      nc_is_power_of_2 (preferred))
    export->preferred = preferred;
  export->read_only = nbd_is_read_only (h) != 0;
  export->can = 0;
  if (nbd_can_flush (h) == 1)
    export->can |= CAN_FLUSH;
  if (nbd_can_fua (h) == 1)
    export->can |= CAN_FUA;
  if (nbd_can_zero (h) == 1)
    export->can |= CAN_ZERO;
  if (nbd_can_fast_zero (h) == 1)
    export->can |= CAN_FAST_ZERO;
  if (nbd_can_trim (h) == 1)
    export->can |= CAN_TRIM;
}

/* Whether the server can do all of WHAT, CAN_*. */
static bool
can (struct nbd *nbd, unsigned what)
{
  NC_LOCKED (&nbd->lock);
  return (nbd->can & what) == what;
}

/* Report that the server fails a change.  Returns -1 with errno. */
static int
failed (struct nbd *nbd, const struct change *change, int error)
{
  static const char *const what[] = {
    [WRITE] = "write", [ZERO] = "zeroing", [TRIM] = "trim",
  };
  const bool full = error == ENOSPC;
  /* Full is full everywhere; else a place is as large as this. */
  const unsigned cause = full ? (unsigned) error
    : (unsigned) ((change->offset >> 20) * 251 + error) & 0xffff;
  const bool passed_on = full || error == EPERM || error == EOVERFLOW ||
    error == ENOMEM;
  char more[NC_REPEAT_TEXT] = "";

  if (error == ENOTCONN || error == ESHUTDOWN) {
    errno = error;
    return -1;
  }
  if (nc_repeat_report (&nbd->change_failures, cause, more))
    nc_error ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": the server "
              "says: %s%s%s", nbd->dev.name, what[change->kind],
              change->count, change->offset, strerror (error),
              full ? "; make room there" : "", more);
  else
    nc_error_untold ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": the "
                     "server says: %s", nbd->dev.name, what[change->kind],
                     change->count, change->offset, strerror (error));
  errno = passed_on ? error : EIO;
  return -1;
}

/* Returns -1, reported, unless the range lies in the export. */
static int
check_range (struct nbd *nbd, uint64_t offset, uint64_t count)
{
  if (nc_range_within (offset, count, nbd->dev.size))
    return 0;
  nc_error ("%s: %" PRIu64 " bytes at offset %" PRIu64 " cannot be written: "
            "the export has %" PRIu64 " bytes", nbd->dev.name, count, offset,
            nbd->dev.size);
  errno = EINVAL;
  return -1;
}

/* Run requests.  Returns 0 or an errno: EAGAIN only if there is no other. */
static int
run (struct nbd *nbd, struct request *reqs, unsigned n)
{
  int error = 0;

  conn_run (nbd, reqs, n);
  for (unsigned i = 0; i < n; ++i)
    if (reqs[i].error && (error == 0 || error == EAGAIN))
      error = reqs[i].error;
  return error;
}

/* Take N bytes off the head of CHANGE. */
static void
advance (struct change *change, uint64_t n)
{
  change->offset += n;
  change->count -= n;
  if (change->iov == NULL)
    return;
  n += change->skip;
  for (; change->count > 0 && n >= change->iov->iov_len; change->iov++)
    n -= change->iov->iov_len;
  change->skip = n;
}

/* Bytes of the next request of CHANGE: at most LIMIT.  One that LIMIT cuts off
 * ends at a multiple of the preferred block size. */
static uint64_t
part_size (const struct nbd *nbd, const struct change *change, uint64_t limit)
{
  uint64_t size = nc_min64 (change->count, limit), end;

  if (change->iov)
    size = nc_min64 (size, change->iov->iov_len - change->skip);
  else if (change->kind == WRITE)
    size = nc_min64 (size, sizeof zeros);
  end = nc_round_down (change->offset + size, nbd->preferred);
  return size == limit && end > change->offset ? end - change->offset : size;
}

/* Take a request of SIZE bytes off the head of CHANGE. */
static struct request
take_part (struct change *change, uint64_t size)
{
  struct request req = {
    .kind = change->kind, .flags = change->flags,
    .offset = change->offset, .count = size,
  };

  if (change->iov)
    req.buf = (char *) change->iov->iov_base + change->skip;
  else if (change->kind == WRITE)
    req.buf = zeros;
  advance (change, size);
  return req;
}

/* Make a change of whole blocks.  Returns 0 or an errno. */
static int
change_blocks (struct nbd *nbd, struct change change)
{
  struct request reqs[BATCH];
  uint64_t limit;
  int error = 0;

  {
    NC_LOCKED (&nbd->lock);
    limit = change.kind == WRITE || change.small ? nbd->maximum : MAX_ZERO;
  }
  while (change.count > 0 && error == 0) {
    unsigned n;

    for (n = 0; n < BATCH && change.count > 0; ++n)
      reqs[n] = take_part (&change, part_size (nbd, &change, limit));
    error = run (nbd, reqs, n);
  }
  return error;
}

/* Copy the data of a change within a block to BUF. */
static void
copy_data (const struct nbd *nbd, struct change change, char *buf)
{
  if (change.iov == NULL)
    memset (buf, 0, change.count);
  while (change.iov && change.count > 0) {
    const struct request part =
      take_part (&change, part_size (nbd, &change, MAX_BLOCK));

    memcpy (buf, part.buf, part.count);
    buf += part.count;
  }
}

/* Make a change of part of a block: read-modify-write. */
static int
change_within_block (struct nbd *nbd, const struct change *change)
{
  const uint64_t begin = nc_round_down (change->offset, nbd->block);
  const uint64_t end = nc_min64 (begin + nbd->block, nbd->dev.size);
  char block[MAX_BLOCK];
  struct request req = {
    .kind = READ, .buf = block, .offset = begin, .count = end - begin,
  };
  int error = change->count < req.count ? run (nbd, &req, 1) : 0;

  if (error)
    return error;
  copy_data (nbd, *change, block + (change->offset - begin));
  req.kind = WRITE;
  req.flags = change->flags & LIBNBD_CMD_FLAG_FUA;
  return run (nbd, &req, 1);
}

/* Bytes at the head of CHANGE that are whole blocks, each in one part of IOV.
 * The last block may be cut short by the end of the export. */
static uint64_t
whole_blocks (const struct nbd *nbd, const struct change *change)
{
  const uint64_t end = change->offset + change->count;
  struct change rest = *change;

  if (change->offset & (nbd->block - 1))
    return 0;
  while (rest.count > 0) {
    uint64_t n = rest.iov
      ? nc_min64 (rest.count, rest.iov->iov_len - rest.skip) : rest.count;
    const bool last = n == rest.count && end == nbd->dev.size;

    if (!last && n & (nbd->block - 1))
      return rest.offset - change->offset + nc_round_down (n, nbd->block);
    advance (&rest, n);
  }
  return change->count;
}

/* Make a change.  Returns 0 or an errno.  EAGAIN: after a reconnect the server
 * accepts less; make it again, from the start. */
static int
make_change (struct nbd *nbd, struct change change)
{
  int error = 0;

  advance (&change, 0);                /* to the first part with data */
  while (change.count > 0 && error == 0) {
    struct change head = change;

    head.count = whole_blocks (nbd, &change);
    if (head.count > 0)
      error = change_blocks (nbd, head);
    else {
      head.count =
        nc_min64 (change.count,
                  nbd->block - (change.offset & (nbd->block - 1)));
      error = change_within_block (nbd, &head);
    }
    advance (&change, head.count);
  }
  return error;
}

/* The same under a claim of the blocks, if there are claims. */
static int
make_claimed (struct nbd *nbd, const struct change *change)
{
  const uint64_t begin = nc_round_down (change->offset, nbd->block);
  const uint64_t end = nc_round_up (change->offset + change->count,
                                    nbd->block);

  if (nbd->claims == NULL || change->count == 0)
    return make_change (nbd, *change);
  NC_CLAIM (nbd->claims, begin, end - begin);
  return make_change (nbd, *change);
}

static void
report_no_flush (struct nbd *nbd)
{
  bool reported;

  {
    NC_LOCKED (&nbd->lock);
    reported = nbd->reported_no_flush;
    nbd->reported_no_flush = true;
  }
  if (!reported)
    nc_notice ("%s: the server has no flush command: writes that it holds in "
               "memory are lost if it or its host fails", nbd->dev.name);
}

/* Returns 0 or an errno; ENOTCONN and ESHUTDOWN are not reported. */
static int
flush (struct nbd *nbd)
{
  int error;

  while (can (nbd, CAN_FLUSH)) {
    error = conn_flush (nbd);
    switch (error) {
    case EAGAIN:
      continue;
    case 0: case ENOTCONN: case ESHUTDOWN:
      return error;
    }
    errno = error;
    nc_error ("%s: flush: the server says: %m", nbd->dev.name);
    return error == ENOSPC ? ENOSPC : EIO;
  }
  report_no_flush (nbd);
  return 0;
}

/* Wait for a flush that begins after this call.  One runs at a time, because
 * the server's kernel reports a failed write to one of two concurrent fsyncs
 * only; calls that arrive while one runs share the next.  Returns 0 or an
 * errno: ESTALE if the epoch is no longer EPOCH. */
static int
share_flush (struct nbd *nbd, uint64_t epoch)
{
  uint64_t mine;
  int error = 0;

  NC_LOCKED (&nbd->lock);
  mine = nbd->flush.begun + 1;
  while (nbd->flush.ended < mine) {
    if (nbd->flush.running) {
      pthread_cond_wait (&nbd->changed, &nbd->lock);
      continue;
    }
    nbd->flush.running = true;
    nbd->flush.begun++;
    pthread_mutex_unlock (&nbd->lock);
    error = flush (nbd);
    pthread_mutex_lock (&nbd->lock);
    nbd->flush.running = false;
    nbd->flush.ended = nbd->flush.begun;
    if (error)
      nbd->flush.error = error;
    else
      nbd->flush.good = nbd->flush.ended;
    pthread_cond_broadcast (&nbd->changed);
  }
  if (error)
    return error;
  if (nbd->epoch != epoch)
    return ESTALE;
  return nbd->flush.good >= mine ? 0 : nbd->flush.error;
}

/* Write the parts of IOV, or zeros if it is NULL. */
static int
write_parts (struct nbd *nbd, const struct iovec *iov, uint64_t count,
             uint64_t offset, bool durable)
{
  const uint64_t epoch = durable ? nbd_dev_epoch (&nbd->dev) : 0;
  struct change change = {
    .kind = WRITE, .offset = offset, .count = count, .iov = iov,
  };
  int error;

  if (check_range (nbd, offset, count) == -1)
    return -1;
  do {
    change.flags = durable && can (nbd, CAN_FUA) ? LIBNBD_CMD_FLAG_FUA : 0;
    error = make_claimed (nbd, &change);
  } while (error == EAGAIN);
  if (error) {
    if (change.flags && error != ENOTCONN && error != ESHUTDOWN) {
      /* It may be the failure of another write, of which a later flush is not
       * told again. */
      NC_LOCKED (&nbd->lock);
      nbd_begin_epoch_locked (nbd, true);
    }
    return failed (nbd, &change, error);
  }
  if (durable && change.flags == 0)
    error = share_flush (nbd, epoch);
  if (error == 0)
    return 0;
  errno = error == ESTALE ? ENOTCONN : error;
  return -1;
}

int
nbd_dev_pwrite (struct nc_dev *dev, const void *buf, size_t count,
                uint64_t offset)
{
  const struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  return write_parts ((struct nbd *) dev, &iov, count, offset, false);
}

int
nbd_dev_pwritev (struct nc_dev *dev, struct iovec *iov, int niov,
                 uint64_t offset)
{
  uint64_t count = 0;

  for (int i = 0; i < niov; ++i)
    count += iov[i].iov_len;
  return write_parts ((struct nbd *) dev, iov, count, offset, false);
}

int
nbd_dev_pwrite_durable (struct nc_dev *dev, const void *buf, size_t count,
                        uint64_t offset)
{
  const struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  return write_parts ((struct nbd *) dev, &iov, count, offset, true);
}

int
nbd_dev_sync (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;
  uint64_t epoch;
  int error;

  {
    NC_LOCKED (&nbd->lock);
    epoch = nbd->epoch;
    error = nbd->stopping ? ESHUTDOWN : nbd->since != epoch ? ESTALE : 0;
  }
  if (error == 0)
    error = share_flush (nbd, epoch);
  if (error == 0)
    return 0;
  errno = error;
  return -1;
}

int
nbd_dev_measure (struct nc_dev *dev, uint64_t *size)
{
  *size = dev->size;
  return 0;
}

int
nbd_dev_truncate (struct nc_dev *dev, uint64_t size)
{
  (void) dev;
  (void) size;
  errno = ENOTSUP;
  return -1;
}

/* Make a ZERO or TRIM.  A server may limit their size without advertising that;
 * then use the limit of writes.  Returns 0 or an errno: ENOTSUP if the server
 * lacks NEEDED, or says so. */
static int
make_without_data (struct nbd *nbd, struct change *change, unsigned needed)
{
  int error;

  do {
    error = can (nbd, needed) ? make_claimed (nbd, change) : ENOTSUP;
    if (error == EOVERFLOW && !change->small) {
      change->small = true;
      error = EAGAIN;
    }
  } while (error == EAGAIN);
  return error;
}

int
nbd_dev_zero (struct nc_dev *dev, uint64_t offset, uint64_t count,
              unsigned flags)
{
  struct nbd *nbd = (struct nbd *) dev;
  const bool fast = flags & NC_ZERO_FAST;
  struct change change = {
    .kind = ZERO, .offset = offset, .count = count,
    .flags = (flags & NC_ZERO_MAY_TRIM ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
      (fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0),
  };
  int error;

  if (check_range (nbd, offset, count) == -1)
    return -1;
  error = make_without_data (nbd, &change,
                             CAN_ZERO | (fast ? CAN_FAST_ZERO : 0));
  if (error == ENOTSUP && fast) {
    errno = ENOTSUP;
    return -1;
  }
  if (error == ENOTSUP)
    return write_parts (nbd, NULL, count, offset, false);
  return error ? failed (nbd, &change, error) : 0;
}

int
nbd_dev_trim (struct nc_dev *dev, uint64_t offset, uint64_t count)
{
  struct nbd *nbd = (struct nbd *) dev;
  struct change change = { .kind = TRIM };
  uint64_t end;
  int error;

  if (check_range (nbd, offset, count) == -1)
    return -1;
  change.offset = nc_round_up (offset, nbd->block);
  end = offset + count == dev->size ? dev->size
    : nc_round_down (offset + count, nbd->block);
  if (change.offset >= end)
    return 0;
  change.count = end - change.offset;
  error = make_without_data (nbd, &change, CAN_TRIM);
  return error && error != ENOTSUP ? failed (nbd, &change, error) : 0;
}

uint64_t
nbd_dev_epoch (struct nc_dev *dev)
{
  struct nbd *nbd = (struct nbd *) dev;

  NC_LOCKED (&nbd->lock);
  return nbd->epoch;
}

void
nbd_dev_renew (struct nc_dev *dev, uint64_t epoch)
{
  struct nbd *nbd = (struct nbd *) dev;

  NC_LOCKED (&nbd->lock);
  nbd->since = nc_max64 (nbd->since, nc_min64 (epoch, nbd->epoch));
}
