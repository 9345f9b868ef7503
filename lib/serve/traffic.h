/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What the connections of clients read and send, between nbdkit and the
 * socket: the memory that requests take, and how a connection ends.
 *
 * Memory.  A thread of nbdkit (1.32) has one buffer, as large as the largest
 * request that it has had, which it allocates and clears before a plugin
 * hears of the request, and keeps.  So memory is charged where the header of
 * a request is read: a thread that needs a larger buffer than it was charged
 * for waits there, and with it the connection, until that fits in the budget
 * of the connection (half of all) and of all connections.  A thread gives
 * its buffer's pages back after the reply if more than three quarters of a
 * budget are charged, or if another one waits; so idle buffers always leave
 * room for the largest request.
 * Requests of up to NC_TRAFFIC_SMALL bytes are neither charged nor delayed.
 * A connection that takes less than a MiB of its replies in
 * NC_TRAFFIC_STALLED seconds while others wait for memory is ended.
 *
 * End.  nbdkit before 1.34 aborts if it marks a connection as dead while
 * another of its threads is about to send a reply (raw_send_socket asserts
 * that the socket is there).  It marks it when a send fails, when it reads
 * part of a request, and when a request makes no sense.  So a send that
 * fails is reported to nbdkit as done, and the socket is shut down, which
 * nbdkit reads as the end of the connection; and what would make it mark
 * the connection is passed on once no reply is owed.
 */
#ifndef NC_TRAFFIC_H
#define NC_TRAFFIC_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define NC_TRAFFIC_SMALL (64 * 1024)
#define NC_TRAFFIC_STALLED 30   /* seconds */
#define NC_TRAFFIC_MEMORY_DEFAULT (UINT64_C (1) << 30)
/* A quarter of a connection's budget must have room for the largest request. */
#define NC_TRAFFIC_MEMORY_MIN (UINT64_C (512) << 20)

/* The state of a connection; all zeros to begin with. */
struct nc_traffic {
  /* Of the thread that reads; nbdkit lets one at a time. */
  unsigned char header[28];     /* of the request that is being read */
  size_t have;                  /* bytes of it */
  uint64_t payload;             /* bytes that belong to it and are to come */

  _Atomic (uint32_t) owed;      /* requests without a reply */
  _Atomic (bool) draining;      /* the reader waits for OWED to be 0 */
  _Atomic (uint64_t) charged;   /* bytes; changed under the budget's lock */
  _Atomic (uint64_t) sending_since; /* seconds; 0: nothing large */
};

/* Read and send for a worker thread of nbdkit, in place of read(2) and
 * send(2), on the socket FD of a client. */
extern ssize_t nc_traffic_read (struct nc_traffic *traffic, int fd, void *buf,
                                size_t len)
  __attribute__ ((__nonnull__ (1, 3)));
extern ssize_t nc_traffic_send (struct nc_traffic *traffic, int fd,
                                const void *buf, size_t len, int flags)
  __attribute__ ((__nonnull__ (1, 3)));

/* The same for TLS, which reads and sends by itself: LEN bytes of plaintext
 * were received in BUF; LEN bytes are about to be sent; some were, and the
 * reply is complete if DONE. */
extern void nc_traffic_received (struct nc_traffic *traffic, const void *buf,
                                 size_t len)
  __attribute__ ((__nonnull__ (1, 2)));
extern void nc_traffic_begin_send (struct nc_traffic *traffic, size_t len)
  __attribute__ ((__nonnull__ (1)));
extern void nc_traffic_end_send (struct nc_traffic *traffic, bool done)
  __attribute__ ((__nonnull__ (1)));

/* nbdkit has allocated SIZE bytes at BUF: the buffer of the calling thread,
 * if that was about to get one of this size. */
extern void nc_traffic_note_buffer (void *buf, size_t size);

/* The connection is over, and its threads have ended. */
extern void nc_traffic_end (struct nc_traffic *traffic)
  __attribute__ ((__nonnull__ (1)));

/* Whether the connection holds memory that others wait for, and has not taken
 * enough of a reply for NC_TRAFFIC_STALLED seconds. */
extern bool nc_traffic_is_stalled (const struct nc_traffic *traffic)
  __attribute__ ((__nonnull__ (1)));

/* Set the budget of all connections in bytes, and whether nbdkit aborts as
 * described above; before there are any.  END_STALLED is called from time to
 * time by a thread that waits for memory, without a lock. */
extern void nc_traffic_set (uint64_t memory, bool aborts,
                            void (*end_stalled) (void));

#endif /* NC_TRAFFIC_H */
