/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A layer: one element of a chain.  A device, and a format that gives its
 * bytes a meaning.  Layers know nothing of each other. */
#ifndef NC_LAYER_H
#define NC_LAYER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct nc_dev;
struct nc_format;

typedef struct { uint8_t bytes[16]; } nc_uuid;

extern bool nc_uuid_is_null (const nc_uuid *uuid);
extern bool nc_uuid_equal (const nc_uuid *a, const nc_uuid *b);
/* As text, 37 bytes with the final NUL; "" for the null UUID. */
extern void nc_uuid_format (const nc_uuid *uuid, char *text);
/* A new random one. */
extern int nc_uuid_generate (nc_uuid *uuid);

/* What an image says of its backing. */
struct nc_backing {
  bool present;
  char *ref;                    /* "" = given by the operator */
  char *format;
  char *identity;               /* of an NBD export; "" = unknown */
  uint64_t size;                /* how much of it this layer sees */
  nc_uuid uuid;                 /* null if it has none */
};

struct nc_layer {
  const struct nc_format *format;
  struct nc_dev *dev;           /* owned */
  struct nc_dev *data_dev;      /* owned; where the disk's bytes are, if the
                                   image names another file for them */
  void *priv;                   /* the format's */
  char *path;                   /* path or reference, for messages */
  char *name;                   /* unique in its chain */
  uint64_t size;                /* of the disk that this layer shows */
  uint32_t block_size;          /* unit of allocation */
  bool writable;
  nc_uuid uuid;                 /* null: it has none */
  struct nc_backing backing;
  bool was_closed;              /* in order, when it was opened; true also if
                                   the format does not tell */
  bool data_marked;             /* its data file carries its UUID */
  bool retired;                 /* another image took over: */
  nc_uuid successor;
  bool takes_over;              /* made by a snapshot: it is written only once
                                   its backing is retired in its favour */
  bool has_taken_over;          /* and that was checked (succession.h) */

  unsigned views;               /* that have it; these two: view.c */
  struct nc_layer *next;
};

struct nc_layer_options {
  bool writable;
  bool wait;                    /* nothing is written, not even a mark that
                                   the image is in use, before
                                   nc_layer_begin */
  int memory_fd;                /* memfd for the active layer; -1: none */

  const char *enlarge;          /* command that makes storage larger; NULL */

  /* Open the file REF that the image of LAYER names for its data, for
   * writing if LAYER is writable and that file may be written as its data (see
   * chain/data-file.h).  What the header says of LAYER is filled in.
   * Returns NULL on error, reported.
   * open_data NULL: it is not opened, and the layer's blocks can be neither
   * read nor written. */
  struct nc_dev *(*open_data) (void *opaque, const struct nc_layer *layer,
                               const char *ref);
  void *opaque;
};

/* Make a layer of DEV (taken over, also on failure), known as PATH.
 * Returns NULL on error, reported. */
extern struct nc_layer *nc_layer_open (const struct nc_format *format,
                                       struct nc_dev *dev, const char *path,
                                       const struct nc_layer_options *opts)
  __attribute__ ((__nonnull__ (1, 2, 3, 4)));

/* Begin to write to a layer that was opened with WAIT.  Refuses one that takes
 * over from its backing if nobody has checked that it did: EROFS.  Returns -1
 * on error, reported; the layer can then only be closed. */
extern int nc_layer_begin (struct nc_layer *layer)
  __attribute__ ((__nonnull__ (1)));

/* Sync the files of LAYER, which is below ACTIVE and no remote, before ACTIVE is
 * written.  If that fails, ACTIVE will not be written (nc_format.fail).
 * Returns -1 on error, reported. */
extern int nc_layer_sync_below (struct nc_layer *active,
                                const struct nc_layer *layer)
  __attribute__ ((__nonnull__ (1, 2)));

/* Close device and format, without writing; path and name stay.  Nothing but
 * nc_layer_close is allowed afterwards. */
extern void nc_layer_shut (struct nc_layer *layer)
  __attribute__ ((__nonnull__ (1)));

/* Release it without writing.  NULL is allowed. */
extern void nc_layer_close (struct nc_layer *layer);

#endif /* NC_LAYER_H */
