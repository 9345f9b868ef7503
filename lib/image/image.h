/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Images while nobody serves them: create, inspect, check, change.  Each
 * call opens what it needs and closes it again.  They block on I/O and are
 * not meant for the request path. */
#ifndef NC_IMAGE_H
#define NC_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nc_allow;
struct nc_tls;

#define NC_UUID_TEXT 37         /* "xxxxxxxx-...", with the final NUL */

/* How the operator wants an image to be made local.  Rates are bytes a
 * second, 0 = none; other fields 0 = default. */
struct nc_prefetch_policy {
  bool whole;                   /* prefetch the whole image */
  bool profile;                 /* what the profile names, before the rest */
  uint32_t start_delay;         /* seconds */
  uint64_t max_read, max_write;
  uint64_t min_read, min_write; /* below: others are in need, so pause */
  uint32_t max_pause;           /* milliseconds */
  uint32_t unit;                /* bytes */
  uint32_t slots;               /* in flight at most */
  uint32_t read_time, write_time;       /* milliseconds of a measurement */
  uint32_t alpha;               /* weight of what was measured before, % */
};

#define NC_START_DELAY_MAX 604800
#define NC_MAX_PAUSE_MAX 3600000
#define NC_PREFETCH_UNIT_MAX (UINT32_C (64) << 20)
#define NC_PREFETCH_SLOTS_MAX 64
#define NC_MEASURE_TIME_MAX 60000
#define NC_ALPHA_MAX 99

/* Everything about one image that can be known without its backing.
 * Strings are allocated and may be NULL. */
struct nc_image_info {
  char *path;
  char *format;                 /* "raw", "fvd" */
  bool remote;
  uint64_t size;                /* what the guest sees */
  uint64_t file_size;           /* length of the file */
  uint64_t storage;             /* bytes of storage it takes */
  uint64_t allocated;           /* bytes of the disk that this image holds */

  /* fvd only */
  uint32_t version;
  char uuid[NC_UUID_TEXT];      /* "" for raw */
  uint32_t block_size;
  uint64_t data_offset;         /* where the disk begins in the file */
  uint64_t max_size;            /* to which the disk can grow */
  uint64_t journal_size, journal_used;
  uint64_t features[3];         /* compatible, read-only, incompatible */
  bool clean;                   /* closed in order */
  struct nc_prefetch_policy prefetch;
  uint64_t profile_size;        /* room for it; 0: it can have none */
  uint64_t profile_ranges, profile_bytes;

  bool has_backing;
  char *backing;                /* reference; "" = given by the operator */
  char *backing_format;
  uint64_t backing_size;
  char backing_uuid[NC_UUID_TEXT];
  char *backing_identity;

  bool retired;                 /* a pivot made another image take over */
  char *successor;              /* its path, as stored */
  bool compact;
  uint32_t chunk_size;          /* compact: unit of placement, */
  uint64_t chunks;              /* how many have a place, */
  uint64_t grow_unit;           /* and by how much the file grows */
  char *data_file;              /* "" = the data is in the image itself */
  char successor_uuid[NC_UUID_TEXT];
  char predecessor_uuid[NC_UUID_TEXT];  /* the image that it took over from;
                                           "": none, or that is not known */
};

extern void nc_image_info_free (struct nc_image_info *info);

/* Fill in INFO for an open layer.  Returns -1 on error, reported; INFO can
 * be freed in any case. */
struct nc_layer;
extern int nc_layer_info (struct nc_layer *layer,
                          struct nc_image_info *info)
  __attribute__ ((__nonnull__ (1, 2)));

/* Fill in INFO from the image alone; its backing is not opened.
 * format: NULL = "fvd".  Returns -1 on error, reported. */
extern int nc_image_inspect (const char *path, const char *format,
                             struct nc_image_info *info)
  __attribute__ ((__nonnull__ (1, 3)));

struct nc_image_create_options {
  const char *path;             /* must not exist, or be a block device */
  bool has_size;
  uint64_t size;                /* without has_size: that of the backing */
  const char *backing;          /* reference as the operator gives it,
                                   relative to the current directory */
  const char *backing_format;   /* needed with a backing: never guessed */
  const struct nc_tls *tls;     /* for a backing with TLS, or NULL */
  bool zero_in_base;            /* what is zeros in the backing now is
                                   recorded as such, by block status */
  const struct nc_allow *allow; /* for that: as in nc_chain_options, */
  unsigned retry;               /* how long it waits for a remote, in seconds;
                                   0: for ever; */
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;                 /* and how far it is; NULL: not called */
  uint32_t block_size;          /* 0 = default */
  uint64_t journal_size;        /* 0 = default */
  const char *data_file;        /* where the data is to be, as the operator
                                   gives it: like path; NULL: in the image */
  bool compact;                 /* chunks in the order in which they come */
  uint64_t grow_unit;           /* compact; 0 = default */
  struct nc_prefetch_policy prefetch;
};

/* Create an fvd image.  It appears under its name complete and durable, or
 * not at all; a new data file appears before it.  Returns -1 on error,
 * reported. */
extern int nc_image_create (const struct nc_image_create_options *opts)
  __attribute__ ((__nonnull__ (1)));

/* Put the new empty image NEW_PATH on top of the fvd image PATH, which is
 * retired: durable in this order, so that at no moment two images could be
 * written.  May be run again after it was interrupted.  PATH must not be in
 * use, and is refused if it is not the active image of its disk.
 * ALLOW: where the backing that it took over from may be; may be NULL.
 * Returns -1 on error, reported. */
extern int nc_image_snapshot (const char *path, const char *new_path,
                              const struct nc_allow *allow)
  __attribute__ ((__nonnull__ (1, 2)));

struct nc_image_resize_options {
  const char *path;
  uint64_t size;
  int relative;                 /* 0: SIZE is the new size; 1: so much more;
                                   -1: so much less */
  bool shrink;                  /* a smaller disk is meant */
  const struct nc_allow *allow; /* where a data file may be, and the backing
                                   that it took over from; may be NULL */
  const char *data_file;        /* it, as the operator gives it; NULL */
};
struct nc_image_resize_result { uint64_t old_size, size; };

/* Give the disk of an fvd image, which is not in use, another size.  What is
 * new reads as zeros, whatever the backing has.  If it is interrupted, the
 * disk has one size or the other.  Returns -1 on error, reported. */
extern int nc_image_resize (const struct nc_image_resize_options *opts,
                            struct nc_image_resize_result *result)
  __attribute__ ((__nonnull__ (1, 2)));

/* What to change of an image, with nothing else of it: no block reads in
 * another way. */
enum {
  NC_AMEND_WHOLE = 1,           /* which fields of PREFETCH count */
  NC_AMEND_PROFILE = 2,
  NC_AMEND_START_DELAY = 4,
  NC_AMEND_MAX_READ = 8,
  NC_AMEND_MAX_WRITE = 16,
  NC_AMEND_MIN_READ = 32,
  NC_AMEND_MIN_WRITE = 64,
  NC_AMEND_MAX_PAUSE = 128,
  NC_AMEND_UNIT = 256,
  NC_AMEND_SLOTS = 512,
  NC_AMEND_READ_TIME = 1024,
  NC_AMEND_WRITE_TIME = 2048,
  NC_AMEND_ALPHA = 4096,
};
struct nc_image_amendment {
  unsigned fields;              /* NC_AMEND_* */
  struct nc_prefetch_policy prefetch;
};

/* The numbers of the policy, under the names that FVD has for them with
 * dashes, as options and arguments have them. */
enum nc_prefetch_unit { NC_SECONDS, NC_MILLISECONDS, NC_BYTES, NC_RATE,
                        NC_NUMBER };
struct nc_prefetch_field {
  const char *name;
  unsigned flag;                /* NC_AMEND_* */
  enum nc_prefetch_unit unit;
  uint64_t max;
};
#define NC_PREFETCH_FIELDS 11
extern const struct nc_prefetch_field nc_prefetch_fields[NC_PREFETCH_FIELDS];

/* The field FLAG of POLICY; and set it, in AMENDMENT, to VALUE, at most its
 * max. */
extern uint64_t nc_prefetch_policy_get (
  const struct nc_prefetch_policy *policy, unsigned flag)
  __attribute__ ((__nonnull__ (1)));
extern void nc_image_amendment_set (struct nc_image_amendment *amendment,
                                    unsigned flag, uint64_t value)
  __attribute__ ((__nonnull__ (1)));

/* Copy the fields of AMENDMENT to POLICY. */
extern void nc_prefetch_policy_amend (
  struct nc_prefetch_policy *policy,
  const struct nc_image_amendment *amendment)
  __attribute__ ((__nonnull__ (1, 2)));

/* Whether every field of POLICY is within its limits, and a maximal rate not
 * below the minimal one; if not, reported for WHOSE with EINVAL. */
extern int nc_prefetch_policy_check (const struct nc_prefetch_policy *policy,
                                     const char *whose)
  __attribute__ ((__nonnull__ (1, 2)));

/* Amend the fvd image PATH, which is not in use; durable, and wholly or not
 * at all.  Returns -1 on error, reported. */
extern int nc_image_amend (const char *path,
                           const struct nc_image_amendment *amendment)
  __attribute__ ((__nonnull__ (1, 2)));

/* The prefetch profile: ranges of the disk, in bytes, in the order in which
 * they were first needed, and how long after the first one. */
struct nc_profile_range {
  uint64_t offset, count;
  uint32_t time;                /* milliseconds */
};

/* Read the profile of the fvd image PATH, also while it is in use.  *RANGES
 * is allocated; NULL if none was recorded.  Ranges begin and end at blocks
 * (or the size) and lie inside the disk.  Returns -1 on error, reported. */
extern int nc_image_profile_read (const char *path,
                                  struct nc_profile_range **ranges,
                                  size_t *n)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Replace the profile of PATH, which is not in use.  Ranges are rounded to
 * blocks; neighbours of one time become one; if not all fit, the first that
 * do are kept.
 * Durable when it returns; before, what was recorded earlier counts.
 * Returns -1 on error, reported. */
extern int nc_image_profile_write (const char *path,
                                   const struct nc_profile_range *ranges,
                                   size_t n)
  __attribute__ ((__nonnull__ (1)));

struct nc_check_result {
  uint64_t errors;              /* data may be wrong or lost */
  uint64_t warnings;            /* worth knowing, nothing is lost */
  uint64_t blocks_checked;
  uint64_t allocated;           /* bytes */
  uint64_t journal_records;     /* valid, not yet checkpointed */
  uint64_t leaked;              /* bytes of storage that no block needs */
  unsigned header_copies;       /* valid ones, of two */
  bool clean;                   /* closed in order */
};

/* Called for each finding; TEXT names place and value. */
typedef void (*nc_check_finding) (void *opaque, bool error,
                                  const char *text);

/* Check every structure of the fvd image PATH against its specification;
 * nothing is written.  Returns 0 with *RESULT filled in, also when errors
 * were found; -1 if it could not be checked at all, reported. */
extern int nc_image_check (const char *path, nc_check_finding finding,
                           void *opaque, struct nc_check_result *result)
  __attribute__ ((__nonnull__ (1, 4)));

/* Called for each thing that was repaired. */
typedef void (*nc_check_repaired) (void *opaque, const char *text);

/* Check the fvd image PATH, which is not in use, and repair what a check
 * warns of: nothing that any block reads as.  An image with an error is not
 * written; RESULT says so.  It may be interrupted and run again.  ALLOW as for
 * nc_image_snapshot.
 * Returns 0 with *RESULT as it was before; -1 on error, reported. */
extern int nc_image_repair (const char *path, const struct nc_allow *allow,
                            nc_check_repaired repaired, void *opaque,
                            struct nc_check_result *result)
  __attribute__ ((__nonnull__ (1, 5)));

#endif /* NC_IMAGE_H */
