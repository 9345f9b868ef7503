/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A second reader of fvd images, made from docs/formats/fvd.md alone.  It
 * shares no code with the library, so that what both of them see is what the
 * page says. */
#ifndef FVD_READER_H
#define FVD_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where fields of the header are. */
enum {
  FVD_AT_MAGIC = 0, FVD_AT_VERSION = 8, FVD_AT_LENGTH = 12, FVD_AT_SEQ = 16,
  FVD_AT_UUID = 24, FVD_AT_COMPAT = 40, FVD_AT_RO_COMPAT = 48,
  FVD_AT_INCOMPAT = 56, FVD_AT_SIZE = 64, FVD_AT_BLOCK_BITS = 72,
  FVD_AT_FLAGS = 76, FVD_AT_LIFE = 80, FVD_AT_SUMMARY = 88,
  FVD_AT_BITMAP = 104, FVD_AT_JOURNAL = 120, FVD_AT_TAIL = 136,
  FVD_AT_DATA = 144, FVD_AT_TABLE = 152, FVD_AT_PROFILE = 168,
  FVD_AT_BACKING_SIZE = 184, FVD_AT_BACKING_UUID = 192,
  FVD_AT_SUCCESSOR_UUID = 208, FVD_AT_CHUNK_BITS = 224,
  FVD_AT_GROW_UNIT = 232, FVD_AT_CHUNKS = 240,
  FVD_AT_STRINGS = 1024, FVD_AT_CHECKSUM = 4088,
};

struct fvd_reader {
  const uint8_t *file;
  uint64_t file_size;

  const uint8_t *header;        /* the copy that counts */
  unsigned copies;              /* valid ones */
  uint64_t seq, size, block, nblocks, data_offset, tail;
  uint64_t journal, journal_sectors;
  uint32_t flags;
  uint64_t backing_size;
  char string[6][1025];

  uint8_t *allocated;           /* a byte a block */
  uint64_t chunk, nchunks;      /* compact; else 0 */
  uint32_t *place;              /* of each chunk, + 1 */
  uint64_t records;             /* that count */
  char why[200];                /* what is wrong, after -1 */
};

/* Read the image that is in memory at FILE, which stays the caller's.
 * Returns 0, or -1 with r->why set; close it in any case. */
extern int fvd_reader_open (struct fvd_reader *r, const uint8_t *file,
                            uint64_t file_size);
extern void fvd_reader_close (struct fvd_reader *r);

/* Read the disk, with BACKING (BACKING_SIZE bytes) below it. */
extern void fvd_reader_pread (const struct fvd_reader *r, uint8_t *buf,
                              size_t count, uint64_t offset,
                              const uint8_t *backing, uint64_t backing_size);

/* Put the right checksum to a header copy, and to a sector of an image whose
 * UUID is at UUID: for tests that make images with wrong content. */
extern void fvd_reader_seal_header (uint8_t *header);
extern void fvd_reader_seal (const uint8_t *uuid, unsigned kind,
                             uint64_t index, uint8_t *sector);

extern uint64_t fvd_reader_le (const uint8_t *p, unsigned bytes);
extern void fvd_reader_put_le (uint8_t *p, unsigned bytes, uint64_t value);

#endif /* FVD_READER_H */
