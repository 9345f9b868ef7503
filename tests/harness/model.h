/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What a disk may hold, given what was sent to it.
 *
 * Each operation has the interval from the moment before it was sent to the
 * moment after its reply was seen, on one counter.  An observation of a byte
 * is legal when it has the value of
 *   - an operation that no certain operation overwrote, that is, none began
 *     after it had ended; or
 *   - the reference, when no certain operation covers the byte.
 * Which operations are certain depends on the question: for a read, those that
 * ended before the read began; after a death of the server those that it had
 * acknowledged or made durable.  A trim leaves the byte as it is or makes it
 * zero, so it adds zero and overwrites nothing.
 */

#ifndef HARNESS_MODEL_H
#define HARNESS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define NEVER UINT64_MAX

enum op_kind {
  OP_READ, OP_WRITE, OP_ZERO, OP_TRIM, OP_FLUSH, OP_CACHE, OP_STATUS
};

struct op {
  uint64_t seed, id;            /* what pattern_bytes needs */
  uint64_t offset, count;       /* bytes */
  uint64_t start;               /* before it was sent */
  uint64_t end;                 /* after its reply; NEVER without one */
  uint64_t durable;             /* when that was known; NEVER if not yet */
  enum op_kind kind;
  uint32_t flags;               /* as given to libnbd */
  bool without_effect;          /* refused by the server: changed nothing */
  bool certain;                 /* scratch of the one who asks */
};

static inline bool
op_changes_data (const struct op *op)
{
  return op->kind == OP_WRITE || op->kind == OP_ZERO || op->kind == OP_TRIM;
}

/* The known content.  A byte with LOOSE set may also be zero (trimmed, and
 * not looked at since). */
struct reference {
  uint64_t size;
  uint8_t *bytes;
  uint8_t *loose;
};

extern void reference_init (struct reference *ref, uint64_t size);
extern void reference_free (struct reference *ref);

/* Load the start of FILE as content; beyond its end there are zeros.
 * Returns 0 or -1 with a message printed. */
extern int reference_load_raw (struct reference *ref, const char *file);

/* Carry out OP, which nothing overlapped. */
extern void reference_apply (struct reference *ref, const struct op *op);

/* Check the bytes SEEN at OFFSET.  OPS are N operations, all with 'certain'
 * set right, each of which covers either all of the range or nothing of it.
 * Returns the number of bytes that are legal before the first that is not. */
extern size_t model_check_segment (const struct reference *ref,
                                   struct op *const *ops, size_t n,
                                   uint64_t offset, const uint8_t *seen,
                                   size_t count);

/* The same for operations that overlap the range in any way. */
extern size_t model_check (const struct reference *ref,
                           struct op *const *ops, size_t n,
                           uint64_t offset, const uint8_t *seen, size_t count);

/* Explain a wrong byte at OFFSET: SEEN points to it, LEFT bytes of the same
 * observation follow.  HISTORY is everything that was ever sent. */
extern void model_explain (FILE *fp, const struct reference *ref,
                           struct op *const *ops, size_t n,
                           const struct op *const *history, size_t nhistory,
                           uint64_t offset, const uint8_t *seen, size_t left);

/* One operation in words, with a newline. */
extern void op_print (FILE *fp, const struct op *op);

#endif /* HARNESS_MODEL_H */
