/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A chain: layers, the active one first, read as one disk.
 *
 * Life: nc_chain_open (opens and locks the images, probes remotes; no
 * thread yet), nc_chain_start (threads and connections; after the last
 * fork), any number of exports with requests in any number of threads,
 * nc_chain_stop, nc_chain_close.  docs/concurrency.md has the rules inside.
 */
#ifndef NC_CHAIN_H
#define NC_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "data/extents.h"

struct nc_allow;
struct nc_chain;
struct nc_export;
struct nc_guest;
struct nc_image_info;
struct nc_path;
struct nc_tls;
struct nc_view;

struct nc_chain_options {
  const char *image;            /* path of the top image */
  const char *format;           /* its format; NULL = "fvd" */
  bool is_ref;                  /* IMAGE is a reference that the operator
                                   gives: a path as well as an NBD URI or a
                                   command, behind which is a raw disk.  With
                                   read_only, and not with offline. */
  const char *base;             /* reference that the operator gives in
                                   place of the one in the lowest image;
                                   NULL: none.  Needed where that image says
                                   its base is given by the operator. */
  const char *data_file;        /* file that the operator gives as the data
                                   file of the image, see data-file.h; NULL */
  const struct nc_allow *allow; /* NULL: nothing beyond the directories of
                                   the images; used only during the call */
  const struct nc_tls *tls;     /* for remotes with TLS; NULL: nothing given;
                                   used only during the call */
  unsigned retry;               /* seconds that a request waits for a
                                   remote; 0 = for ever */
  int memory_fd;                /* memfd that outlives the process, not
                                   taken over; -1: none */
  bool read_only;               /* the top image is not written */
  const char *enlarge;          /* command that makes the storage of a
                                   compact image larger, see enlarge.h; must
                                   stay until the chain is closed; NULL */
  bool follow;                  /* if the image was retired by a pivot, open
                                   the one that took over (by the same
                                   policy) instead of refusing */
  bool offline;                 /* do not touch remotes: their layers can be
                                   asked for size and owner only */
};

#define NC_RETRY_DEFAULT 60
#define NC_LAYERS_MAX 250

/* Open the chain of which opts->image is the top.  Returns NULL on error,
 * reported. */
extern struct nc_chain *nc_chain_open (const struct nc_chain_options *opts)
  __attribute__ ((__nonnull__ (1)));

/* Fill in INFO for the fvd image that would be the top of the chain, also
 * while it is in use; its backing is not opened.  Release it with
 * nc_image_info_free.  Returns -1 on error, reported. */
extern int nc_chain_inspect_top (const struct nc_chain_options *opts,
                                 struct nc_image_info *info)
  __attribute__ ((__nonnull__ (1, 2)));

/* Start threads and connections.  Returns -1 on error, reported. */
extern int nc_chain_start (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));

/* From now on requests fail with ESHUTDOWN and waiters wake up; wait for
 * requests under way, then make everything durable and mark the active
 * image clean.  Returns -1 if that failed, reported.  Idempotent. */
extern int nc_chain_stop (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));

/* After nc_chain_stop has failed: whether all that clients wrote is durable
 * nevertheless, only not in order. */
extern bool nc_chain_is_durable (const struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));

/* Release everything; does not write (an image that was not stopped stays
 * marked as in use, and loses nothing that was flushed).  No request may be
 * under way.  NULL is allowed. */
extern void nc_chain_close (struct nc_chain *chain);

/* The disk's size in bytes, and whether it can be written. */
extern uint64_t nc_chain_size (const struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));
extern bool nc_chain_is_writable (const struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));

/* Layers: 0 is the top.  The name is the base name of its file or the
 * reference of a remote, made unique within the chain ("base.raw",
 * "base.raw.2"); below the top it is also the name of its export.
 * A pivot can change how many there are at any time: for one that is not
 * there (any more) the functions return NULL or -1 with errno ENOENT, not
 * reported.  A name stays valid until the chain is closed. */
extern size_t nc_chain_n_layers (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));
extern bool nc_chain_has_remote (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));
extern const char *nc_chain_layer_name (struct nc_chain *chain, size_t i)
  __attribute__ ((__nonnull__ (1)));

/* The file of the active layer, for as long as the chain is open, and its
 * UUID ("" = none).  NULL: it is no regular file, or it is not known where it
 * is. */
extern const struct nc_path *nc_chain_active_file (struct nc_chain *chain,
                                                   char uuid[37])
  __attribute__ ((__nonnull__ (1, 2)));

/* What layer I calls its backing, as it is recorded in the image; free it.
 * Returns NULL if nothing is, with errno ENOENT, not reported; or, reported,
 * if memory is short.  May wait for a pivot. */
extern char *nc_chain_backing_ref (struct nc_chain *chain, size_t i)
  __attribute__ ((__nonnull__ (1)));

/* Fill in INFO for layer I; release it with nc_image_info_free.  Not for one
 * that is being written: nc_chain_each_layer. */
extern int nc_chain_layer_info (struct nc_chain *chain, size_t i,
                                struct nc_image_info *info)
  __attribute__ ((__nonnull__ (1, 3)));

/* A layer as it is while it is served. */
struct nc_chain_layer {
  const char *name;             /* as nc_chain_layer_name */
  const char *path;             /* of its file, or reference of the remote */
  const char *format;
  const char *backing;          /* path of the layer below; NULL: none */
  size_t depth, n_below;        /* layers above and below it */
  bool remote, writable;
  uint64_t size;                /* of the disk that it shows */
  uint64_t storage;             /* bytes of storage its files take */
  uint64_t allocated;           /* bytes of the disk that it holds */
  uint32_t block_size;
  char uuid[37];                /* "" = none */
  dev_t st_dev;                 /* of its file, or of the device node; 0 and 0 */
  ino_t st_ino;                 /* of a remote */
};

/* Call FN for each layer, the active one first.  Layers may be written and
 * the chain changed meanwhile; what is told are the layers of one moment.
 * FN returns 0, or -1 to stop.  Returns -1 if FN did, on error, reported, or
 * with errno ESHUTDOWN, not reported. */
typedef int (*nc_chain_layer_fn) (void *opaque,
                                  const struct nc_chain_layer *layer);
extern int nc_chain_each_layer (struct nc_chain *chain,
                                nc_chain_layer_fn fn, void *opaque)
  __attribute__ ((__nonnull__ (1, 2)));

/* Which layer [offset, offset+count) of the disk comes from.
 * *layer: index, or -1 where no layer holds anything (zeros).
 * *run: bytes from OFFSET on that share the answer, at least 1, at most
 * COUNT.  Returns -1 on error, reported. */
extern int nc_chain_owner (struct nc_chain *chain, uint64_t offset,
                           uint64_t count, int *layer, uint64_t *run)
  __attribute__ ((__nonnull__ (1, 4, 5)));

/* Call FN for each range that layer I itself holds, in order of offsets, with
 * whether it is known to read as zeros there; offsets are the disk's.  FN
 * returns 0, or -1 to stop.  A remote that cannot be asked holds data, as
 * much as its size.  Returns -1 if FN did, or on error, reported. */
typedef int (*nc_holding_fn) (void *opaque, uint64_t offset, uint64_t count,
                              bool zero);
extern int nc_chain_layer_walk (struct nc_chain *chain, size_t i,
                                nc_holding_fn fn, void *opaque)
  __attribute__ ((__nonnull__ (1, 3)));

/* The prefetch profile of the highest layer that has one: see
 * nc_image_profile_read.  Write: into the active image, at any time; see
 * nc_image_profile_write (errno ENOTSUP: it has no room for one, EROFS). */
struct nc_profile_range;
extern int nc_chain_profile_read (struct nc_chain *chain,
                                  struct nc_profile_range **ranges,
                                  size_t *n)
  __attribute__ ((__nonnull__ (1, 2, 3)));
extern int nc_chain_profile_write (struct nc_chain *chain,
                                   const struct nc_profile_range *ranges,
                                   size_t n)
  __attribute__ ((__nonnull__ (1)));

/* Whether layer I of A and layer K of B have the same bytes because they are
 * one thing: the same file in the same format, or the same NBD URI. */
extern bool nc_chain_is_same_layer (struct nc_chain *a, size_t i,
                                    struct nc_chain *b, size_t k)
  __attribute__ ((__nonnull__ (1, 3)));

/* Whether PATH leads to a file that a layer has its bytes in. */
extern bool nc_chain_has_file (struct nc_chain *chain,
                               const struct nc_path *path)
  __attribute__ ((__nonnull__ (1, 2)));

/* Counters since nc_chain_open; see nc_chain_stats. */
struct nc_chain_stats {
  uint64_t waits;               /* requests that waited for a remote */
  uint64_t refused_waits;       /* failed: too many were blocked on one */
  uint64_t map_bytes;           /* memory of the merged view */
};
extern void nc_chain_stats (struct nc_chain *chain,
                            struct nc_chain_stats *stats)
  __attribute__ ((__nonnull__ (1, 2)));

/* An export: the disk ("" or "disk"), or the layer called NAME with all
 * below it, read-only, as the disk was then.  One a client connection.
 * max_waiting: how many of its requests may be blocked on a remote at a time
 * (slots.h); 0 = no limit.
 * That of a layer which a pivot drops goes on until it is closed, and keeps
 * the layers open that the chain had when it was opened.
 * All are closed before the chain is.
 * Returns NULL with errno ENOENT if there is no such export, reported. */
extern struct nc_export *nc_export_open (struct nc_chain *chain,
                                         const char *name,
                                         unsigned max_waiting)
  __attribute__ ((__nonnull__ (1, 2)));
extern void nc_export_close (struct nc_export *export);

/* Its slots, for who blocks its threads elsewhere. */
struct nc_slots;
extern struct nc_slots *nc_export_slots (struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));

extern uint64_t nc_export_size (const struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));
extern bool nc_export_is_writable (const struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));
/* The size of the blocks that are written without reading first. */
extern uint32_t nc_export_block_size (const struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));

/* What this export does is not for a client: see nc_chain_cold_reads. */
extern void nc_export_set_background (struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));

/* How many requests of clients read from a remote at this moment. */
extern unsigned nc_chain_cold_reads (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));

/* What counts the reads and changes that clients ask for. */
extern struct nc_guest *nc_chain_guest (struct nc_chain *chain)
  __attribute__ ((__nonnull__ (1)));

/* Requests.  The range lies inside the export: the caller has checked.
 * Each returns 0; or -1 with errno for the client (EIO, ENOSPC, EROFS,
 * ESHUTDOWN, ENOTSUP for a fast zero that would be slow), reported once.
 * They block; call them from any thread, holding no mutex. */
extern int nc_export_pread (struct nc_export *export, void *buf,
                            size_t count, uint64_t offset)
  __attribute__ ((__nonnull__ (1, 2)));

/* The same for who is no client, and wants to know how often it was *ASKED, as
 * in struct nc_fetched. */
extern int nc_export_pread_asked (struct nc_export *export, void *buf,
                                  size_t count, uint64_t offset,
                                  unsigned *asked)
  __attribute__ ((__nonnull__ (1, 2, 5)));

enum {
  NC_REQ_FUA = 1,               /* durable when it returns */
  NC_REQ_MAY_TRIM = 2,          /* zero: may give the storage back */
  NC_REQ_FAST = 4,              /* zero: only if it is faster than writing */
};
extern int nc_export_pwrite (struct nc_export *export, const void *buf,
                             size_t count, uint64_t offset, unsigned flags)
  __attribute__ ((__nonnull__ (1, 2)));
extern int nc_export_zero (struct nc_export *export, uint64_t offset,
                           uint64_t count, unsigned flags)
  __attribute__ ((__nonnull__ (1)));
extern int nc_export_trim (struct nc_export *export, uint64_t offset,
                           uint64_t count, unsigned flags)
  __attribute__ ((__nonnull__ (1)));
extern int nc_export_flush (struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));

/* Begin to make durable what was written: a flush that comes later has less to
 * wait for, and reports what fails. */
extern void nc_export_write_out (struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));

/* As far as the range, which was stored, is in storage, it need not stay in the
 * memory of the host. */
extern void nc_export_evict (struct nc_export *export, uint64_t offset,
                             uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* Populating: what a range reads as is brought into the active layer, where
 * it is not allocated yet.  A guest write, zero or trim wins, also one that
 * comes between the fetch and the store.
 *
 * nc_export_fetch reads those blocks of the range that are not allocated in
 * the active layer; the rest of BUF is left as it is.  nc_export_store stores
 * in those that still are not.  Blocks that are zeros take no storage; BUF
 * NULL: all of them are.
 * The range begins and ends at blocks, or at the end of the disk.
 *
 * What nc_export_store returns, or -1 on error, and what follows from it:
 *   NC_STORED        all of the range was stored.
 *   NC_STORED_PART   some blocks were allocated already, by the guest or by
 *                    somebody else who populates: all of the range is
 *                    allocated now, and the caller is done with it.
 *   NC_STORED_STALE  a pivot came after the fetch: nothing was stored, and
 *                    blocks of the range may still be missing.  A caller that
 *                    has to populate the range fetches it again (stream and
 *                    prefetch, by the ring; nc_export_populate); one that
 *                    stores what it has anyway drops it (copy-on-read). */
enum nc_stored { NC_STORED, NC_STORED_PART, NC_STORED_STALE };

struct nc_fetched {
  const struct nc_view *view;   /* under which it was read */
  unsigned asked;               /* how often, one time after the other: the
                                   remotes of the chain, or, where it has
                                   none, its layers.  0: what it took says
                                   nothing about them */
};
extern int nc_export_fetch (struct nc_export *export, void *buf,
                            size_t count, uint64_t offset,
                            struct nc_fetched *fetched)
  __attribute__ ((__nonnull__ (1, 2, 5)));
extern int nc_export_store (struct nc_export *export, const void *buf,
                            uint64_t count, uint64_t offset,
                            const struct nc_fetched *fetched)
  __attribute__ ((__nonnull__ (1, 5)));

/* Whether a pivot came after the fetch. */
extern bool nc_export_is_stale (const struct nc_export *export,
                                const struct nc_fetched *fetched)
  __attribute__ ((__nonnull__ (1, 2)));

/* nc_export_fetch for who has other things to do than to wait for a remote:
 * if one cannot be reached it fails at once with ENOTCONN, and with EBUSY if
 * too many requests of EXPORT are blocked on it; not reported. */
extern int nc_export_try_fetch (struct nc_export *export, void *buf,
                                size_t count, uint64_t offset,
                                struct nc_fetched *fetched)
  __attribute__ ((__nonnull__ (1, 2, 5)));

/* BUF has what was FETCHED of the range, which may have any alignment: read
 * those of its blocks that are allocated by now, so that it is as new as this
 * call.  Returns 1 if a pivot came in between: then BUF is of no use. */
extern int nc_export_refresh (struct nc_export *export, void *buf,
                              size_t count, uint64_t offset,
                              const struct nc_fetched *fetched)
  __attribute__ ((__nonnull__ (1, 2, 5)));

/* Copy-on-read: who reads for clients of the disk what the active layer does
 * not have. */
struct nc_cold {
  void *opaque;

  /* Only what is in this layer and above; NULL: in all. */
  const char *bottom;

  /* Fill BUF with the bytes from OFFSET on, COUNT at most; the first one is
   * not in the active layer (as a moment ago).  Returns how many it did, or 0:
   * then the chain reads as if this were not here.  Called with nothing held,
   * may block, in many threads at once. */
  uint64_t (*read) (void *opaque, struct nc_export *export, void *buf,
                    uint64_t count, uint64_t offset);

  /* While WATCHING: a client has read a range that was in the active layer.
   * It must not block. */
  _Atomic (bool) watching;
  void (*passed) (void *opaque, uint64_t count, uint64_t offset);
};

/* From now on; NULL: nobody.  COLD, one at a time, must stay until the chain
 * is closed, as calls may be under way. */
extern void nc_chain_set_cold (struct nc_chain *chain, struct nc_cold *cold)
  __attribute__ ((__nonnull__ (1)));

/* The first run of whole blocks between *first and *end that are COLD's to
 * read, and go on behind AT: *first and *end, equal if there is none.  Given
 * ones are block boundaries, or the end of the disk.
 * Returns -1 on error, reported. */
extern int nc_export_absent (struct nc_export *export,
                             const struct nc_cold *cold, uint64_t at,
                             uint64_t *first, uint64_t *end)
  __attribute__ ((__nonnull__ (1, 2, 4, 5)));

/* The layer called NAME, which is not the active one, for the functions below.
 * It is theirs until the chain is closed, also if a pivot drops it from the
 * chain.  Returns NULL with errno ENOENT if there is none, reported. */
struct nc_layer;
extern const struct nc_layer *nc_chain_find_base (struct nc_chain *chain,
                                                  const char *name)
  __attribute__ ((__nonnull__ (1, 2)));

/* What of the range MISSING (initialized to it) the active layer would need
 * so that the layers between it and BASE, or all below it if that is NULL,
 * can go: an extent each of a type below, until its limit is reached.  If a
 * pivot has dropped BASE that is nothing, because the pivot found that all is
 * there.  *FETCHED is for storing zeros.  Does not wait for a remote: what
 * one cannot tell is data.
 * Returns -1 on error, reported. */
enum { NC_MISSING_NOTHING, NC_MISSING_DATA, NC_MISSING_ZEROS };
extern int nc_export_missing (struct nc_export *export,
                              const struct nc_layer *base,
                              struct nc_extents *missing,
                              struct nc_fetched *fetched)
  __attribute__ ((__nonnull__ (1, 3, 4)));

/* Record durably, in the active image, that BASE is its backing, or if that is
 * NULL that it has none; from then on the chain goes without the layers in
 * between, or all below, and closes them when nobody uses them any more.  If a
 * pivot has dropped BASE, the chain does without those already, and nothing
 * is done.  The disk's bytes stay the same: nothing may be missing
 * (nc_export_missing), which is checked.  Waits for writes under way, not for
 * reads.
 * REF is what the image is to call BASE; NULL: as it is called now, a file by
 * its path.
 * Returns 0; or -1 with errno, reported: EBUSY (something is missing), EROFS,
 * ENAMETOOLONG, an error of the image; then the chain is as it was. */
extern int nc_chain_set_backing (struct nc_chain *chain,
                                 const struct nc_layer *base,
                                 const char *ref)
  __attribute__ ((__nonnull__ (1)));

/* Fetch and store the range, of any alignment. */
extern int nc_export_populate (struct nc_export *export, uint64_t offset,
                               uint64_t count)
  __attribute__ ((__nonnull__ (1)));

/* Fill EXTENTS (initialized to the range asked for) completely or up to its
 * limit, or with its first extent if ONE. */
extern int nc_export_extents (struct nc_export *export,
                              struct nc_extents *extents, bool one)
  __attribute__ ((__nonnull__ (1, 2)));

/* The same, without ONE, for what must not be guessed: nc_export_extents calls
 * data what it could learn from an unreachable remote only.  Then this returns
 * -1 with errno ENOTCONN, not reported, and EXTENTS has what comes before. */
extern int nc_export_extents_known (struct nc_export *export,
                                    struct nc_extents *extents)
  __attribute__ ((__nonnull__ (1, 2)));

/* The UUID of the export's top layer as text; "" if it has none.  A client
 * that reconnects can tell by it that this is the same disk. */
extern const char *nc_export_uuid (const struct nc_export *export)
  __attribute__ ((__nonnull__ (1)));

#endif /* NC_CHAIN_H */
