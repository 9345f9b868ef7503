/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The rules that say which content of a disk is legal; model.h has them in
 * words. */

#include <config.h>

#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pattern.h"

void
reference_init (struct reference *ref, uint64_t size)
{
  ref->size = size;
  ref->bytes = calloc (1, size + 1);
  ref->loose = calloc (1, size + 1);
  if (ref->bytes == NULL || ref->loose == NULL) {
    perror ("calloc");
    exit (2);
  }
}

void
reference_free (struct reference *ref)
{
  free (ref->bytes);
  free (ref->loose);
  ref->bytes = ref->loose = NULL;
}

int
reference_load_raw (struct reference *ref, const char *file)
{
  uint64_t done = 0;
  int fd = open (file, O_RDONLY | O_CLOEXEC);

  if (fd == -1) {
    perror (file);
    return -1;
  }
  while (done < ref->size) {
    ssize_t r = pread (fd, ref->bytes + done, ref->size - done, done);

    if (r == -1) {
      perror (file);
      close (fd);
      return -1;
    }
    if (r == 0)
      break;
    done += r;
  }
  close (fd);
  return 0;
}

void
reference_apply (struct reference *ref, const struct op *op)
{
  switch (op->kind) {
  case OP_WRITE:
    pattern_bytes (op->seed, op->id, op->offset, ref->bytes + op->offset,
                   op->count);
    memset (ref->loose + op->offset, 0, op->count);
    break;
  case OP_ZERO:
    memset (ref->bytes + op->offset, 0, op->count);
    memset (ref->loose + op->offset, 0, op->count);
    break;
  case OP_TRIM:
    memset (ref->loose + op->offset, 1, op->count);
    break;
  default:
    break;
  }
}

static bool
op_covers (const struct op *op, uint64_t offset)
{
  return op->offset <= offset && offset < op->offset + op->count;
}

/* The start of the latest certain operation that overwrites: whatever ended
 * before is gone.  0 when there is none. */
static uint64_t
overwritten_before (struct op *const *ops, size_t n, uint64_t offset)
{
  uint64_t latest = 0;
  size_t i;

  for (i = 0; i < n; i++)
    if (ops[i]->certain && !ops[i]->without_effect &&
        ops[i]->kind != OP_TRIM && ops[i]->start > latest &&
        op_covers (ops[i], offset))
      latest = ops[i]->start;
  return latest;
}

static bool
op_is_candidate (const struct op *op, uint64_t latest, uint64_t offset)
{
  return !op->without_effect && op->end >= latest && op_covers (op, offset);
}

/* Mark in LEGAL the bytes of the range that OP explains. */
static void
mark_legal (const struct op *op, uint64_t offset, const uint8_t *seen,
            size_t count, uint8_t *legal)
{
  uint8_t buf[4096];
  size_t done, n, i;

  for (done = 0; done < count; done += n) {
    n = count - done < sizeof buf ? count - done : sizeof buf;
    if (op->kind == OP_WRITE)
      pattern_bytes (op->seed, op->id, offset + done, buf, n);
    else
      memset (buf, 0, n);
    for (i = 0; i < n; i++)
      legal[done + i] |= buf[i] == seen[done + i];
  }
}

/* One piece of a segment, small enough for arrays on the stack. */
static size_t
check_piece (const struct reference *ref, struct op *const *ops, size_t n,
             uint64_t latest, uint64_t offset, const uint8_t *seen,
             size_t count)
{
  uint8_t legal[4096] = { 0 };
  const uint8_t *bad;
  size_t i;

  if (latest == 0) {
    if (memcmp (ref->bytes + offset, seen, count) == 0)
      return count;
    for (i = 0; i < count; i++)
      legal[i] = seen[i] == ref->bytes[offset + i] ||
        (ref->loose[offset + i] && seen[i] == 0);
  }
  for (i = n; i-- > 0;) {
    if (!op_is_candidate (ops[i], latest, offset))
      continue;
    mark_legal (ops[i], offset, seen, count, legal);
    if (memchr (legal, 0, count) == NULL)
      return count;
  }
  bad = memchr (legal, 0, count);
  return bad == NULL ? count : (size_t) (bad - legal);
}

size_t
model_check_segment (const struct reference *ref, struct op *const *ops,
                     size_t n, uint64_t offset, const uint8_t *seen,
                     size_t count)
{
  const uint64_t latest = overwritten_before (ops, n, offset);
  size_t done, piece, good;

  for (done = 0; done < count; done += piece) {
    piece = count - done < 4096 ? count - done : 4096;
    good = check_piece (ref, ops, n, latest, offset + done, seen + done,
                        piece);
    if (good < piece)
      return done + good;
  }
  return count;
}

static int
compare_offsets (const void *a, const void *b)
{
  const uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

size_t
model_check (const struct reference *ref, struct op *const *ops, size_t n,
             uint64_t offset, const uint8_t *seen, size_t count)
{
  const uint64_t limit = offset + count;
  struct op **near = malloc ((n + 1) * sizeof *near);
  uint64_t *cuts = malloc ((2 * n + 2) * sizeof *cuts);
  size_t i, nnear = 0, ncuts = 0, good = count;

  if (near == NULL || cuts == NULL) {
    perror ("malloc");
    exit (2);
  }
  cuts[ncuts++] = offset;
  cuts[ncuts++] = limit;
  for (i = 0; i < n; i++) {
    const uint64_t first = ops[i]->offset, last = first + ops[i]->count;

    if (first >= limit || last <= offset)
      continue;
    near[nnear++] = ops[i];
    if (first > offset)
      cuts[ncuts++] = first;
    if (last < limit)
      cuts[ncuts++] = last;
  }
  qsort (cuts, ncuts, sizeof *cuts, compare_offsets);
  for (i = 0; i + 1 < ncuts; i++) {
    const size_t len = cuts[i + 1] - cuts[i];
    size_t ok;

    if (len == 0)
      continue;
    ok = model_check_segment (ref, near, nnear, cuts[i],
                              seen + (cuts[i] - offset), len);
    if (ok < len) {
      good = cuts[i] - offset + ok;
      break;
    }
  }
  free (near);
  free (cuts);
  return good;
}

void
op_print (FILE *fp, const struct op *op)
{
  static const char *const names[] = {
    "read", "write", "zero", "trim", "flush", "cache", "status"
  };

  fprintf (fp, "  #%" PRIu64 " %s %" PRIu64 "+%" PRIu64
           " flags 0x%x sent %" PRIu64, op->id, names[op->kind], op->offset,
           op->count, op->flags, op->start);
  if (op->end != NEVER)
    fprintf (fp, " replied %" PRIu64, op->end);
  else
    fprintf (fp, " no reply");
  if (op->durable != NEVER)
    fprintf (fp, " durable %" PRIu64, op->durable);
  if (op->kind == OP_WRITE && pattern_fill (op->seed, op->id) != FILL_DATA)
    fprintf (fp, " (%s)", pattern_fill (op->seed, op->id) == FILL_ZERO ?
             "all zeros" : "some zeros");
  if (op->without_effect)
    fprintf (fp, " (refused)");
  fprintf (fp, "\n");
}

/* Whose data is this? */
static void
guess_origin (FILE *fp, const struct reference *ref,
              const struct op *const *history, size_t nhistory,
              uint64_t offset, const uint8_t *seen, size_t n)
{
  uint8_t buf[16];
  size_t i;

  for (i = 0; i < n && seen[i] == 0; i++)
    ;
  if (i == n) {
    fprintf (fp, "  the next %zu bytes seen are zeros\n", n);
    return;
  }
  if (memcmp (ref->bytes + offset, seen, n) == 0)
    fprintf (fp, "  the next %zu bytes seen are those of the reference\n", n);
  for (i = 0; i < nhistory; i++) {
    if (history[i]->kind != OP_WRITE)
      continue;
    pattern_bytes (history[i]->seed, history[i]->id, offset, buf, n);
    if (memcmp (buf, seen, n) == 0)
      fprintf (fp, "  the next %zu bytes seen are those of write #%" PRIu64
               "\n", n, history[i]->id);
  }
}

void
model_explain (FILE *fp, const struct reference *ref,
               struct op *const *ops, size_t n,
               const struct op *const *history, size_t nhistory,
               uint64_t offset, const uint8_t *seen, size_t left)
{
  const uint64_t latest = overwritten_before (ops, n, offset);
  size_t i, shown = 0;

  fprintf (fp, "wrong byte at offset %" PRIu64 " (sector %" PRIu64
           ", 4 KiB block %" PRIu64 "): 0x%02x\n",
           offset, offset / 512, offset / 4096, *seen);
  if (latest == 0)
    fprintf (fp, "  legal: reference 0x%02x%s\n", ref->bytes[offset],
             ref->loose[offset] ? " or, trimmed, 0x00" : "");
  for (i = 0; i < n; i++) {
    uint8_t byte = 0;

    if (!op_is_candidate (ops[i], latest, offset))
      continue;
    if (ops[i]->kind == OP_WRITE)
      pattern_bytes (ops[i]->seed, ops[i]->id, offset, &byte, 1);
    fprintf (fp, "  legal: 0x%02x of #%" PRIu64 "\n", byte, ops[i]->id);
  }
  guess_origin (fp, ref, history, nhistory, offset, seen,
                left < 16 ? left : 16);
  fprintf (fp, "operations that changed this byte, latest first:\n");
  for (i = nhistory; i-- > 0 && shown < 40;)
    if (op_changes_data (history[i]) && op_covers (history[i], offset)) {
      op_print (fp, history[i]);
      shown++;
    }
}
