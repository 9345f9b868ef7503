/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A device on the export of an NBD server: what its files share.
 *
 *   device.c      the device: opening, reads, block status
 *   write.c       its writes, zeros, trims and syncs
 *   connection.c  a connection while it is up, and the requests it serves
 *   connect.c     a connection from the first packet to the last: TLS, what
 *                 the server has, polling, ending
 *
 * Locks: conn->lock, then nbd->lock; they guard what the comments in the
 * structs say.  nbd->lock is held for list operations and kicks only, never
 * across I/O, a call to libnbd or a report; conn->lock across calls to libnbd
 * that do not wait, too.  Nobody waits for conn->lock while it is held to
 * receive: requests get to who has it by the queue.
 * nbd->changed is signalled with nbd->lock when a connection comes up, when
 * the first attempt to connect ends, and on stop.
 *
 * A request belongs to the list it is on: to nbd->lock while queued, to
 * conn->lock in flight; after its end to the requester.
 */
#ifndef NC_DEV_NBD_INTERNAL_H
#define NC_DEV_NBD_INTERNAL_H

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

#include "dev/dev.h"
#include "nbd/uri.h"
#include "util/checked.h"
#include "util/report.h"
#include "util/unix-socket.h"

#define MAX_CONNS 4
#define MAX_READ (32U << 20)           /* what every server accepts */

#define MSEC UINT64_C (1000000)        /* in nanoseconds, as all times here */
#define SEC (1000 * MSEC)
#define SLOWEST 1024                   /* bytes a second of a live server */
#define BACKOFF_MIN (50 * MSEC)

/* From WRITE on these are changes, which are not resent after a reconnect. */
enum kind { READ, BLOCK_STATUS, WRITE, ZERO, TRIM, FLUSH };

struct request {
  enum kind kind;
  struct request *prev, *next;
  struct conn *conn;                   /* while in flight */
  void *buf;                           /* of a read or (unchanged) write */
  struct nc_extents *extents;          /* of block status */
  uint64_t offset, count;
  uint32_t flags;                      /* of a change: LIBNBD_CMD_FLAG_* */
  uint64_t skip;                       /* of the reply, before extents */
  bool answered;                       /* block status came */
  uint64_t came;                       /* of a read: bytes, in order */
  bool cleared;                        /* BUF was, before */
  bool stands_back;                    /* others come first */
  bool passive;                        /* its thread does not receive on this
                                          connection */
  int64_t cookie;
  uint64_t since;                      /* when it was made */
  unsigned moves;                      /* to another connection */
  bool together;                       /* it stays with others that are made
                                          by the same thread */
  sem_t *wake;                         /* posted when it has ended, and when
                                          it is to receive; that thread's */
  _Atomic (bool) appointed;            /* it is to receive */
  int error;                           /* when it has ended: 0 or an errno */
};

struct list {
  struct request *head, *tail;
};

/* Whose a Unix socket is, and who listens at it. */
struct peer {
  uid_t owner, listener;
};

/* What a server may lack that takes writes. */
enum {
  CAN_FLUSH = 1,
  CAN_FUA = 2,
  CAN_ZERO = 4,
  CAN_FAST_ZERO = 8,
  CAN_TRIM = 16,
};

/* What a server says of its export. */
struct export {
  uint64_t size;
  uint32_t minimum, maximum;           /* bytes of a request */
  uint32_t preferred;                  /* a multiple of minimum */
  bool read_only;
  bool multi_conn;
  bool allocation;                     /* has base:allocation */
  unsigned can;                        /* CAN_* */
  char *identity;
};

struct conn {
  struct nbd *nbd;
  pthread_t thread;                    /* the keeper */
  bool running;                        /* start and close: thread exists */
  int kick, call;                      /* eventfds: for keeper, receiver */

  /* Guarded by nbd->lock. */
  bool up;
  bool fresh;                          /* something was queued since the
                                          queue was last looked at */
  unsigned load;                       /* requests queued and in flight */
  struct list queue;
  uint64_t written;                    /* number of volatile changes queued */
  uint64_t covered;                    /* of these, flushed or given up */
  unsigned writing;                    /* of these, not answered */

  pthread_mutex_t lock;

  /* Guarded by lock while the connection is open, else the keeper's. */
  bool open;                           /* by lock at all times */
  struct request *receiver;            /* one in flight, or NULL */
  bool keeper_receives;                /* instead, as all are passive */
  struct nbd_handle *h;
  struct peer peer;                    /* behind a Unix socket */
  struct export export;
  struct list flight, done, lost;
  unsigned n_flight, n_retired;
  unsigned n_changes;                  /* in flight */
  unsigned n_written;                  /* volatile changes retired */
  uint64_t progress;                   /* when it was last seen alive */
  uint64_t came;                       /* bytes since then */
  uint64_t looked;                     /* progress, when unsent was set */
  int unsent;                          /* bytes in the kernel's send buffer */
  uint64_t limit, change_limit;        /* of a stall, as they are now */
  bool asked, useful;                  /* had a request; had an answer */
  bool hung_up;                        /* the server sends nothing more */
  bool ending;                         /* the server says that it ends */
  bool stalled;
  uint64_t backoff;
  char reason[512];                    /* of the last failure */
};

struct nbd {
  struct nc_dev dev;
  char *words, **argv;                 /* of "[ command ]", else NULL */
  struct nc_uri uri;                   /* unless it is one */
  pthread_mutex_t find_lock;           /* held while finder is called */
  struct nc_socket_finder finder;      /* of a Unix socket, else all zeros */
  bool encrypted;                      /* nbds */
  char *certificates, *psk, *username; /* for that; NULL: not given */
  uint64_t first_limit, max_limit;     /* of a stall */
  uint64_t max_change_limit;
  bool absent;                         /* not probed at open */
  unsigned n_conns;                    /* at most */
  struct nc_repeat failures;           /* of reads, as the server says */
  struct nc_repeat change_failures;
  uint32_t block, preferred;           /* minimum and preferred block size at
                                          open, if writable */
  struct nc_claims *claims;            /* of blocks; NULL: a block is a byte */

  pthread_mutex_t lock;
  pthread_cond_t changed;              /* CLOCK_MONOTONIC */

  /* Guarded by lock. */
  bool stopping;
  int first;                           /* first attempt: 0, 1 = up, -1 */
  unsigned n_up;
  uint64_t limit;                      /* of a stall, as it is now */
  uint64_t change_limit;               /* of a stall with changes in flight */
  uint32_t minimum, maximum;           /* strictest seen so far */
  unsigned can;                        /* CAN_*, of all seen so far */
  uint64_t epoch;                      /* number of connections lost and of
                                          flushes failed */
  uint64_t since;                      /* since this epoch no volatile change
                                          has been lost */
  struct {
    bool running;
    uint64_t begun, ended, good;       /* the last one that has begun, ended,
                                          succeeded */
    int error;                         /* of the last one that failed */
  } flush;
  bool reported_no_flush;
  bool outage;                         /* reported, and not yet over */
  uint64_t outage_since;
  bool fruitless;                      /* no answer since the last loss */
  bool mismatch;                       /* reported, and not yet over */
  bool has_peer;                       /* connected once, to: */
  struct peer peer;

  struct conn conns[MAX_CONNS];
};

/* connect.c.  For who has conn->lock, or the keeper where it is not
 * open. */

/* Connect, within nbd->first_limit, and learn what the server has.  Returns
 * -1 with the reason kept. */
extern int conn_connect (struct conn *conn, struct export *export)
  __attribute__ ((__nonnull__ (1, 2)));

/* The export was the right one: from now on its Unix socket must be of the
 * same users.  Nothing happens if it has none. */
extern void conn_remember_peer (struct conn *conn)
  __attribute__ ((__nonnull__ (1)));

/* Serving the socket has three steps: what to wait for, along with the
 * eventfd KICK; waiting, without the lock (deadline: 0 = none); and what it is
 * ready for.  The last returns -1 if the connection has failed, reason
 * kept. */
extern void conn_prepare (struct conn *conn, int kick, struct pollfd fds[2])
  __attribute__ ((__nonnull__ (1, 3)));
extern void conn_wait (struct pollfd fds[2], uint64_t deadline)
  __attribute__ ((__nonnull__ (1)));
extern int conn_take (struct conn *conn, const struct pollfd fds[2])
  __attribute__ ((__nonnull__ (1, 2)));

/* The server is alive. */
extern void conn_made_progress (struct conn *conn)
  __attribute__ ((__nonnull__ (1)));

/* Nothing comes any more. */
extern bool conn_is_finished (const struct conn *conn)
  __attribute__ ((__nonnull__ (1)));

/* Whether the device stops. */
extern bool conn_must_stop (struct conn *conn)
  __attribute__ ((__nonnull__ (1)));

/* Keep what libnbd says of the failure of the last call. */
extern void conn_keep_reason (struct conn *conn)
  __attribute__ ((__nonnull__ (1)));

/* Cut the connection, so that libnbd retires every command. */
extern void conn_cut (struct conn *conn) __attribute__ ((__nonnull__ (1)));

/* Cut and close it; or take leave from the server before.  Nothing happens if
 * there is none. */
extern void conn_close (struct conn *conn) __attribute__ ((__nonnull__ (1)));
extern void conn_disconnect (struct conn *conn)
  __attribute__ ((__nonnull__ (1)));

/* connection.c.  Any thread may call these. */

/* Start the keeper of CONN.  Returns -1, reported. */
extern int conn_start (struct conn *conn) __attribute__ ((__nonnull__ (1)));

/* Have the keeper of CONN look at what has changed. */
extern void conn_kick (struct conn *conn) __attribute__ ((__nonnull__ (1)));

/* Give N requests, at least one, to a connection and wait for the end of all.
 * The errors, not reported, are in them.  EAGAIN: the limits have changed, or
 * one of several has lost its connection, while another one is up. */
extern void conn_run (struct nbd *nbd, struct request *reqs, unsigned n)
  __attribute__ ((__nonnull__ (1, 2)));

/* Begin a new epoch.  LOST: volatile changes may be lost. */
extern void nbd_begin_epoch_locked (struct nbd *nbd, bool lost)
  __attribute__ ((__nonnull__ (1)));

/* Send a flush on each connection with volatile changes, or on any one if there
 * are none.  Returns 0 or an errno, not reported; an error that the server sent
 * begins a new epoch.  EAGAIN: after a reconnect the server has no flush. */
extern int conn_flush (struct nbd *nbd) __attribute__ ((__nonnull__ (1)));

/* write.c */

/* Learn what the export of a connection allows a writer. */
extern void conn_learn_changes (struct conn *conn, struct export *export)
  __attribute__ ((__nonnull__ (1, 2)));

/* Functions of a writable device (dev/dev.h). */
extern int nbd_dev_pwrite (struct nc_dev *dev, const void *buf, size_t count,
                           uint64_t offset);
extern int nbd_dev_pwritev (struct nc_dev *dev, struct iovec *iov, int niov,
                            uint64_t offset);
extern int nbd_dev_pwrite_durable (struct nc_dev *dev, const void *buf,
                                   size_t count, uint64_t offset);
extern int nbd_dev_sync (struct nc_dev *dev);
extern int nbd_dev_measure (struct nc_dev *dev, uint64_t *size);
extern int nbd_dev_truncate (struct nc_dev *dev, uint64_t size);
extern int nbd_dev_zero (struct nc_dev *dev, uint64_t offset, uint64_t count,
                         unsigned flags);
extern int nbd_dev_trim (struct nc_dev *dev, uint64_t offset, uint64_t count);
extern uint64_t nbd_dev_epoch (struct nc_dev *dev);
extern void nbd_dev_renew (struct nc_dev *dev, uint64_t epoch);

#endif /* NC_DEV_NBD_INTERNAL_H */
