/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The log of what programs did to their files, and of what a client sent.
 *
 * Everything that is recorded takes numbers from one counter, shared by all
 * processes through a mapped file: one before the call is made and one after
 * it has returned.  The order of these numbers is the only clock there is.
 * A record is appended by one call, so that processes never mix theirs up; a
 * process killed meanwhile leaves a broken record, which a reader skips.
 */

#ifndef HARNESS_LOG_H
#define HARNESS_LOG_H

#include <stddef.h>
#include <stdint.h>

#define LOG_MAGIC UINT64_C (0x31676f6c2d64626e)

enum log_type {
  /* The directory as it was when the log began. */
  LOG_INIT_DIR = 1,             /* ino, payload: path, "" for the top */
  LOG_INIT_FILE,                /* ino, count: size, payload: path, and its
                                   extended attribute "user.nbdchain.image",
                                   "" if it has none */
  LOG_INIT_DATA,                /* ino, offset, payload: bytes */

  /* Begun: written before the call, LOG_END after it. */
  LOG_WRITE = 10,               /* ino, offset, payload; LOG_DSYNC */
  LOG_PUNCH,                    /* ino, offset, count */
  LOG_ZERO_RANGE,               /* ino, offset, count; LOG_KEEP_SIZE */
  LOG_ALLOCATE,                 /* ino, offset, count; LOG_KEEP_SIZE */
  LOG_TRUNCATE,                 /* ino, count: the new size */
  LOG_SYNC,                     /* ino of a file or directory */
  LOG_SYNC_ALL,
  LOG_END,                      /* ref: the number of the begin, result */

  /* Names: one record written after the call, ref has the number of before. */
  LOG_CREATE = 30,              /* ino, payload: path, "" if it has none */
  LOG_LINK,                     /* ino, payload: path */
  LOG_RENAME,                   /* ino, payload: old path, new path */
  LOG_UNLINK,                   /* payload: path */
  LOG_MKDIR,                    /* ino, payload: path */
  LOG_RMDIR,                    /* payload: path */

  /* The client.  An operation is in the payload as struct log_mark. */
  LOG_MARK_START = 50,
  LOG_MARK_ACK,                 /* ref: the number of the start, result */
};

#define LOG_DSYNC 1
#define LOG_KEEP_SIZE 2

struct log_record {
  uint64_t magic;
  uint32_t type;
  uint32_t flags;
  uint64_t seq;
  uint64_t ref;
  uint64_t ino;
  uint64_t offset;
  uint64_t count;
  int64_t result;
  uint64_t payload;             /* bytes that follow */
};

struct log_mark {
  uint64_t seed, id, offset, count;
  uint32_t kind, flags;         /* enum op_kind, libnbd's flags */
};

struct log {
  int fd;
  uint64_t *counter;
};

/* Open the log FILE (and the counter FILE.seq) to add to it.
 * Returns 0 or -1 with errno set. */
extern int log_open (struct log *log, const char *file);
extern void log_close (struct log *log);

/* The next number of the counter. */
extern uint64_t log_next (struct log *log);

/* Append a record.  'magic' and 'payload' need not be filled in.  Makes
 * system calls only, never a function that a preloaded library replaces. */
extern void log_append (struct log *log, struct log_record *record,
                        const void *payload, size_t count);

/* Call FN for each whole record of FILE, in the file's order.  The payload is
 * valid until log_unmap.  Returns the mapping or NULL with a message. */
typedef void (*log_reader) (const struct log_record *record,
                            const uint8_t *payload, void *opaque);
extern void *log_map (const char *file, size_t *size, log_reader fn,
                      void *opaque);

#endif /* HARNESS_LOG_H */
