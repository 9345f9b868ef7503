/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The memory that outlives the process.  Invariant: while the head names a
 * life, states and bits say at least what is on disk in that life, and
 * every block whose write was acknowledged in it. */

#include <config.h>

#include "format/keep.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/checked.h"
#include "util/report.h"

#define HEAD_SIZE 4096
#define MAGIC UINT64_C (0x315045454b44424e)     /* "NBDKEEP1" */

struct head {
  uint64_t magic;
  uint64_t nblocks;
  nc_uuid uuid;
  _Atomic (uint64_t) life;
  _Atomic (uint32_t) failed;
};

static struct head *
head_of (const struct nc_keep *keep)
{
  return keep->map;
}

static int
refuse (const char *name)
{
  nc_error ("%s: the memory handed over belongs to another image; stop "
            "\"nbdchain serve\" and start it again", name);
  errno = EINVAL;
  return -1;
}

/* Give a new memfd its size; one that was used has it already. */
static int
size_memfd (int fd, size_t size, const char *name)
{
  struct stat st;

  if (fstat (fd, &st) == -1 ||
      (st.st_size == 0 && ftruncate (fd, size) == -1)) {
    nc_error ("%s: memory of %zu bytes that outlives the server: %m",
              name, size);
    return -1;
  }
  return st.st_size == 0 || (size_t) st.st_size == size ? 0 : refuse (name);
}

int
nc_keep_open (struct nc_keep *keep, int fd, const char *name,
              const nc_uuid *uuid, uint64_t nblocks, size_t extra)
{
  uint64_t npages = nc_bitmap_npages (nblocks);
  size_t states = nc_round_up (nc_bitmap_state_size (npages), 4096);
  size_t bits = nc_bitmap_bits_size (npages);
  struct head *head;

  keep->shared = fd >= 0;
  keep->size = HEAD_SIZE + states + bits + extra;
  if (keep->shared && size_memfd (fd, keep->size, name) == -1)
    return -1;
  keep->map = mmap (NULL, keep->size, PROT_READ | PROT_WRITE,
                    keep->shared ? MAP_SHARED
                    : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, fd, 0);
  if (keep->map == MAP_FAILED) {
    keep->map = NULL;
    nc_error ("%s: memory for the bitmap: %m", name);
    return -1;
  }

  head = head_of (keep);
  if (head->magic == 0) {
    head->nblocks = nblocks;
    head->uuid = *uuid;
    head->magic = MAGIC;
  }
  if (head->magic != MAGIC || head->nblocks != nblocks ||
      !nc_uuid_equal (&head->uuid, uuid))
    return refuse (name);
  keep->bitmap.nblocks = nblocks;
  keep->bitmap.npages = npages;
  keep->bitmap.state = (void *) ((char *) keep->map + HEAD_SIZE);
  keep->bitmap.bits = (void *) ((char *) keep->map + HEAD_SIZE + states);
  if (extra)
    keep->extra = (char *) keep->map + HEAD_SIZE + states + bits;
  return 0;
}

void
nc_keep_close (struct nc_keep *keep)
{
  if (keep->map)
    munmap (keep->map, keep->size);
  keep->map = NULL;
}

uint64_t
nc_keep_life (const struct nc_keep *keep)
{
  return head_of (keep)->life;
}

void
nc_keep_set_life (struct nc_keep *keep, uint64_t life)
{
  head_of (keep)->life = life;
}

void
nc_keep_set_failed (struct nc_keep *keep)
{
  head_of (keep)->failed = 1;
}

bool
nc_keep_has_failed (const struct nc_keep *keep)
{
  return head_of (keep)->failed;
}

int
nc_keep_reset (struct nc_keep *keep)
{
  head_of (keep)->life = 0;
  if (madvise ((char *) keep->map + HEAD_SIZE, keep->size - HEAD_SIZE,
               keep->shared ? MADV_REMOVE : MADV_DONTNEED) == -1) {
    nc_error ("memory for the bitmap: %m");
    return -1;
  }
  return 0;
}
