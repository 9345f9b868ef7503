/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Devices for tests: one that lives in memory, and one that goes wrong when
 * it is told to.
 *
 * A struct mem_disk is what a file is to the file device: it outlives the
 * devices that are opened on it.  A struct fault says what goes wrong, and
 * outlives its device, too.
 */
#ifndef DEV_FAULT_H
#define DEV_FAULT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dev/dev.h"

/* Bytes in memory; what was never written takes none.  It does not grow:
 * a write past the end fails with ENOSPC. */
struct mem_disk {
  uint8_t *data;
  uint64_t size;
};

extern void mem_disk_init (struct mem_disk *disk, uint64_t size);
extern void mem_disk_fini (struct mem_disk *disk);
/* All zeros again. */
extern void mem_disk_clear (struct mem_disk *disk);
extern struct nc_dev *mem_dev_open (struct mem_disk *disk, bool writable);

/* Kinds of operations, as a mask. */
enum {
  FAULT_READ = 1,
  FAULT_WRITE = 2,
  FAULT_DURABLE = 4,            /* pwrite_durable */
  FAULT_SYNC = 8,
  FAULT_ZERO = 16,
  FAULT_EXTENTS = 32,
  FAULT_CHANGES = FAULT_WRITE | FAULT_DURABLE | FAULT_SYNC | FAULT_ZERO,
  FAULT_ALL = 63,
};

struct fault {
  /* Set by the test, the first four also while a checkpoint is under way. */
  _Atomic (unsigned) mask;      /* which operations count */
  _Atomic (uint64_t) at;        /* the first that fails, from 1; 0: none */
  _Atomic (uint64_t) n;         /* how many fail from there on */
  _Atomic (int) err;            /* their errno */
  bool partly;                  /* a write that fails changes some sectors */
  bool track;                   /* remember what unsynced writes replaced */

  /* ENOTCONN for reads while set; .wait ends when it is not. */
  bool remote;
  _Atomic (bool) away;

  /* Reads and block status of a remote are not answered while set; those that
   * were begun count in .unanswered. */
  _Atomic (bool) silent;
  _Atomic (unsigned) unanswered;

  /* Called before each change and after each sync with nothing held, but not
   * from itself: what another thread might do at that moment. */
  void (*_Atomic hook) (void *opaque);
  /* The same, before each read. */
  void (*_Atomic read_hook) (void *opaque);
  void *_Atomic opaque;

  /* To be read by the test. */
  _Atomic (uint64_t) count;     /* operations of the mask */
  _Atomic (uint64_t) failures;
  _Atomic (uint64_t) reads, writes, durable, syncs, zeros;
  _Atomic (unsigned) failed_kinds;      /* as a mask */

  pthread_mutex_t lock;         /* guards the rest */
  pthread_cond_t changed;
  bool stopped;
  struct fault_undo *undo;
  size_t n_undo, cap_undo;
};

extern void fault_init (struct fault *fault);
extern void fault_fini (struct fault *fault);

/* Fail N operations of the kinds in MASK with ERR, counting from now on, the
 * AT-th first; what was counted is forgotten. */
extern void fault_set (struct fault *fault, unsigned mask, uint64_t at,
                       uint64_t n, int err);

/* Let a remote be reachable or not. */
extern void fault_set_away (struct fault *fault, bool away);

/* Let a remote answer or not; what was begun goes on when it does. */
extern void fault_set_silent (struct fault *fault, bool silent);

/* A device that passes all on to INNER (taken over). */
extern struct nc_dev *fault_dev_open (struct fault *fault,
                                      struct nc_dev *inner);

/* Power loss.  The device is closed; DISK is what was behind it.  Each
 * sector that was written since the last sync gets one of the contents that
 * it had since then: the oldest, the newest, or any of them. */
enum fault_loss { LOSE_ALL, LOSE_NONE, LOSE_SOME };
extern void fault_lose (struct fault *fault, struct mem_disk *disk,
                        enum fault_loss loss, uint64_t *seed);

/* What DISK and FAULT are now, to try another loss from the same moment.
 * Whatever else changes DISK in between is not put back. */
struct fault_saved {
  struct fault_undo *undo;
  size_t n;
  uint8_t (*now)[512];
};
extern void fault_save (const struct fault *fault,
                        const struct mem_disk *disk,
                        struct fault_saved *saved);
extern void fault_restore (struct fault *fault, struct mem_disk *disk,
                           const struct fault_saved *saved);
extern void fault_saved_free (struct fault_saved *saved);

#endif /* DEV_FAULT_H */
