/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A device: where bytes are.  A file, a block device, or the export of an
 * NBD server.  A device knows no formats and no layers.
 *
 * All calls may be made from many threads at once; all of them block on
 * I/O, so hold no mutex.  Offsets and counts are bytes of any alignment.
 * Short transfers and EINTR are handled inside.  Errors are reported once,
 * by the device, with its name and the offset.
 */
#ifndef NC_DEV_H
#define NC_DEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include "data/extents.h"
#include "util/path.h"

struct nc_dev;
struct nc_socket_finder;
struct nc_tls;

enum {
  NC_ZERO_MAY_TRIM = 1,         /* the storage behind it may be given back */
  NC_ZERO_FAST = 2,             /* fail with ENOTSUP rather than write */
};

/* A read of a device, one of several. */
struct nc_dev_read {
  void *buf;
  size_t count;
  uint64_t offset;
};
#define NC_DEV_READS 16         /* that are made at a time, at most */

struct nc_dev_ops {
  /* Release everything.  Never NULL. */
  void (*close) (struct nc_dev *dev);

  /* Read; what lies past the end reads as zeros.
   * A remote that cannot be reached now: -1 with errno ENOTCONN, not
   * reported for each request; see .wait.  Never NULL. */
  int (*pread) (struct nc_dev *dev, void *buf, size_t count,
                uint64_t offset);

  /* Several, up to NC_DEV_READS, that do not wait for each other.  NULL: there
   * is nothing to be gained by that. */
  int (*pread_many) (struct nc_dev *dev, const struct nc_dev_read *v,
                     size_t n);

  /* Write.  NULL on a device that cannot be written.  pwritev changes IOV
   * as it goes.
   * A remote, for all four changes (pwrite, pwrite_durable, zero, trim):
   * - ENOTCONN, not reported: there is no connection (see .wait), or it was
   *   lost.  The change may have been made, in whole or in part; and a server
   *   that is alive may still make it, even after the reconnect and after newer
   *   changes of the same range.  Make it again, and compare the range if it
   *   is then written with other data.
   * - Errors of the server: ENOSPC, EPERM, EOVERFLOW and ENOMEM as such, others
   *   as EIO; reported once per cause every few seconds.
   * - EINVAL: beyond the end of the export.
   * - A range that is no multiple of the server's minimum block size costs a
   *   read; this is safe as long as no other client writes. */
  int (*pwrite) (struct nc_dev *dev, const void *buf, size_t count,
                 uint64_t offset);
  int (*pwritev) (struct nc_dev *dev, struct iovec *iov, int niov,
                  uint64_t offset);

  /* Write, durable when it returns; says nothing of other writes, but may fail
   * once a sync has. */
  int (*pwrite_durable) (struct nc_dev *dev, const void *buf, size_t count,
                         uint64_t offset);

  /* Everything written by calls that have returned is durable; of a device that
   * is not written: what others have written.  NULL for a remote that cannot be
   * written.
   * A writable remote: ENOTCONN, not reported, if there is no connection or it
   * was lost.  ESTALE, not reported, if writes that no sync had covered may be
   * lost: their connection was lost, or an earlier sync or pwrite_durable
   * failed.  All later syncs fail likewise until .renew.
   * With a server that has no flush command, which is reported once, 0 means
   * only that no such connection was lost. */
  int (*sync) (struct nc_dev *dev);

  /* The epoch of a remote: grows whenever a connection is lost, be it one of
   * several, and whenever a flush fails.  What was written after it was read is
   * durable if a later sync returns 0 and the epoch is still the same.
   * NULL: writes are lost with this system only. */
  uint64_t (*epoch) (struct nc_dev *dev);

  /* Acknowledge that writes of epochs before EPOCH may be lost: syncs are for
   * what is written from EPOCH on.  After ESTALE:
   *   1. read the epoch;
   *   2. mark everything written since the last successful sync as not written,
   *      including the ranges of calls that have not returned;
   *   3. renew, with the epoch of step 1; and write all that again.
   * So a range must be recorded as written before the call that writes it.
   * A sync that begins after renew does not cover what was written before; if
   * another thread may renew, compare what it sets in step 2 after the sync.
   * NULL where .epoch is. */
  void (*renew) (struct nc_dev *dev, uint64_t epoch);

  /* Begin to make durable what was written by anybody, and wait for no more
   * than that it is under way, so that a sync later on has less to wait for.
   * If it fails, so does a sync that runs meanwhile, and every later one.
   * NULL: nothing to begin. */
  void (*write_out) (struct nc_dev *dev);

  /* Keep in memory no more what is there and in storage, too; the rest stays.
   * NULL: it is not in our memory. */
  void (*evict) (struct nc_dev *dev, uint64_t offset, uint64_t count);

  /* How many bytes it has now; may differ from dev->size. */
  int (*measure) (struct nc_dev *dev, uint64_t *size);

  /* Cut it off at SIZE, or let it grow with zeros.  ENOTSUP, not reported:
   * its size is not ours to change. */
  int (*truncate) (struct nc_dev *dev, uint64_t size);

  /* Make the range read as zeros.  flags: NC_ZERO_*. */
  int (*zero) (struct nc_dev *dev, uint64_t offset, uint64_t count,
               unsigned flags);

  /* Discard the range: what it reads as is undefined from now on.  0 also if
   * the server does not support that.
   * NULL: use .zero with NC_ZERO_MAY_TRIM. */
  int (*trim) (struct nc_dev *dev, uint64_t offset, uint64_t count);

  /* Append to EXTENTS the state of its range from nc_extents_next on, up
   * to END at most and at least one byte; END > nc_extents_next.  Offsets
   * of the device are those of EXTENTS plus SHIFT.
   * ENOTCONN as for pread. */
  int (*extents) (struct nc_dev *dev, struct nc_extents *extents,
                  uint64_t end, uint64_t shift);

  /* Start threads and connections; called once, after the last fork and
   * before any other request of a remote.  NULL: nothing to start. */
  int (*start) (struct nc_dev *dev);

  /* Wake everybody in .wait and let later requests that would wait fail
   * with ESHUTDOWN.  NULL: nothing ever waits. */
  void (*stop) (struct nc_dev *dev);

  /* Wait until the device can be reached, or DEADLINE (CLOCK_MONOTONIC;
   * NULL = for ever).  Returns 0; or -1 with errno ETIMEDOUT or ESHUTDOWN,
   * or another errno when waiting is pointless; not reported.  The next
   * request may fail with ENOTCONN all the same.
   * NULL: it can always be reached. */
  int (*wait) (struct nc_dev *dev, const struct timespec *deadline);
};

struct nc_dev {
  const struct nc_dev_ops *ops;
  char *name;                   /* for messages: a path or URI */
  struct nc_path path;          /* of a file; NC_PATH_NONE: not known */
  uint64_t size;                /* bytes, fixed while the device is open
                                   (a file that is written may grow) */
  bool writable;
  bool has_holes;               /* a file: what .extents calls a hole takes
                                   no storage, and all else does */
  bool remote;                  /* may be unreachable for a while */
  _Atomic (bool) read_failed;   /* once; so what was read wrongly afterwards
                                   need not be damaged */
  char *identity;               /* what a remote says of itself, so that
                                   another one in its place is noticed;
                                   NULL if it says nothing */
};

enum {
  NC_DEV_WRITE = 1,             /* open for reading and writing */
  NC_DEV_UNLOCKED = 2,          /* take no lock (inspection only) */
};

/* Open the file or block device FD (taken over, also on failure) under the
 * name NAME (copied).  Refuses what is neither.  Takes the locks that QEMU
 * takes too, so that no image is written by two or changed under a reader.
 * flags: NC_DEV_*.  Returns NULL on error, reported. */
extern struct nc_dev *nc_dev_open_fd (int fd, const char *name,
                                      unsigned flags)
  __attribute__ ((__nonnull__ (2)));

/* The same for a path given by the operator, see nc_path_open; and for the
 * file FD that was opened as *path, which is taken over, too. */
extern struct nc_dev *nc_dev_open_file (const char *path, unsigned flags)
  __attribute__ ((__nonnull__ (1)));
extern struct nc_dev *nc_dev_open_path (int fd, struct nc_path *path,
                                        const char *name, unsigned flags)
  __attribute__ ((__nonnull__ (2, 3)));

/* The descriptor of a device made by the calls above, which stays its own. */
extern int nc_dev_fd (const struct nc_dev *dev)
  __attribute__ ((__nonnull__ (1)));

/* Bytes of storage that it takes; 0: not known. */
extern uint64_t nc_dev_storage (const struct nc_dev *dev)
  __attribute__ ((__nonnull__ (1)));

/* The inode behind a device made by the calls above, to notice cycles. */
extern int nc_dev_file_id (const struct nc_dev *dev, dev_t *st_dev,
                           ino_t *st_ino)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* A mark of 36 characters that a file carries beside its bytes, in an
 * extended attribute, so that another file in its place is noticed.
 * Return -1 with errno ENOTSUP where there are no such attributes; get also
 * with ENODATA if it has none; not reported.  A mark that was set is
 * durable.  (get is of a file that need not be a device yet.) */
#define NC_MARK_LENGTH 36
extern int nc_file_get_mark (int fd, char mark[NC_MARK_LENGTH + 1])
  __attribute__ ((__nonnull__ (2)));
extern int nc_dev_set_mark (const struct nc_dev *dev, const char *mark)
  __attribute__ ((__nonnull__ (1, 2)));

/* Open the export REF (an NBD URI, or "[ command args ]"), read-only.
 * Connects, learns size and identity, and disconnects again; ops->start
 * connects for good, checks that it is the same export (same size, same
 * identity where the server gives one) and so does every reconnect.
 * After start has failed DEV can only be closed.
 * retry: how long requests may stall, in seconds; 0 = no limit.
 * tls: for nbds: and nbds+unix: (copied; NULL: nothing given).  They are
 * refused where the server would not be verified.
 * finder: where the Unix socket is, taken over in any case (all zeros
 * afterwards).  NULL, or all zeros: where REF says, as the operator means it.
 * Returns NULL on error, reported; errno is ELIBACC if the code for it
 * cannot be loaded (remote.h). */
extern struct nc_dev *nc_dev_open_nbd (const char *ref, unsigned retry,
                                       const struct nc_tls *tls,
                                       struct nc_socket_finder *finder)
  __attribute__ ((__nonnull__ (1)));

/* The same for going on where a server died, when the export may be away: it
 * is not connected to before ops->start, which does not wait for it.  It
 * must have at least SIZE bytes (what lies behind is not seen), and IDENTITY
 * unless that is "". */
extern struct nc_dev *nc_dev_open_nbd_absent (const char *ref,
                                              unsigned retry,
                                              const struct nc_tls *tls,
                                              struct nc_socket_finder *finder,
                                              uint64_t size,
                                              const char *identity)
  __attribute__ ((__nonnull__ (1, 6)));

/* nc_dev_open_nbd for reading and writing, for a REF of the operator's; no other
 * client may write the export meanwhile.  Fails with EROFS if the server offers it read-only.  A reconnect
 * also checks that it is still writable, that its minimum block size has not
 * grown, and, where there are several connections, that the server still
 * allows that. */
extern struct nc_dev *nc_dev_open_nbd_writable (const char *ref,
                                                unsigned retry,
                                                const struct nc_tls *tls)
  __attribute__ ((__nonnull__ (1)));

/* For implementations: set up the common part.  Returns -1, reported. */
extern int nc_dev_init (struct nc_dev *dev, const struct nc_dev_ops *ops,
                        const char *name)
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern void nc_dev_fini (struct nc_dev *dev)
  __attribute__ ((__nonnull__ (1)));

/* Close DEV; NULL is allowed. */
extern void nc_dev_close (struct nc_dev *dev);

#endif /* NC_DEV_H */
