/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What "nbdchain stream" was asked for, and its two ways: by itself, or by a
 * server. */
#ifndef NBDCHAIN_STREAM_H
#define NBDCHAIN_STREAM_H

#include <stdbool.h>
#include <stdint.h>

struct stream_request {
  const char *name;             /* of the image, or of the socket */
  const char *down_to;          /* NULL: all of it */
  const char *on_error;         /* a word of QMP; NULL: the server's default */
  uint64_t speed;               /* 0: no limit */
  bool watch, progress, json;
};

/* What became of the bytes. */
struct stream_result {
  uint64_t copied, zero, local;
};

/* Say that it was done to IMAGE. */
extern int stream_print (const char *image,
                         const struct stream_request *request,
                         const struct stream_result *result)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* stream-live.c: have the server do it.  Returns an exit code. */
extern int stream_live (const struct stream_request *request)
  __attribute__ ((__nonnull__ (1)));

#endif /* NBDCHAIN_STREAM_H */
