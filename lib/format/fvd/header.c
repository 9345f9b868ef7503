/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The header of an fvd image: bytes to a struct and back, every field
 * checked before anybody uses it.  Two copies, the newest valid one counts,
 * and only the older one is ever written over. */

#include <config.h>

#include "format/fvd/fvd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "dev/dev.h"
#include "util/bytes.h"
#include "util/checked.h"
#include "util/report.h"

static const uint8_t magic[8] = "NBDCFVD\n";

/* A new image gets room for a disk so many times its size, and at least so
 * large; less if it is compact, for storage on which room costs. */
#define GROWTH 8
#define GROWTH_MIN (UINT64_C (64) << 30)
#define GROWTH_COMPACT 2

/* Offsets of the fields; see the specification. */
enum {
  H_MAGIC = 0, H_VERSION = 8, H_LENGTH = 12, H_SEQ = 16, H_UUID = 24,
  H_FEATURES = 40, H_SIZE = 64, H_BLOCK_BITS = 72, H_FLAGS = 76,
  H_LIFE = 80, H_SUMMARY = 88, H_BITMAP = 104, H_JOURNAL = 120,
  H_JOURNAL_TAIL = 136, H_DATA_OFFSET = 144, H_TABLE = 152,
  H_PROFILE = 168, H_BACKING_SIZE = 184, H_BACKING_UUID = 192,
  H_SUCCESSOR_UUID = 208, H_CHUNK_BITS = 224, H_RESERVED1 = 228,
  H_GROW_UNIT = 232, H_CHUNKS = 240, H_RESERVED2 = 248,
  H_PREFETCH_FLAGS = 256, H_START_DELAY = 260, H_MAX_READ = 264,
  H_MAX_WRITE = 272, H_MIN_READ = 280, H_MIN_WRITE = 288,
  H_MAX_PAUSE = 296, H_PREFETCH_UNIT = 300,
  H_PREFETCH_SLOTS = 304, H_READ_TIME = 308, H_WRITE_TIME = 312,
  H_ALPHA = 316, H_PREDECESSOR_UUID = 320, H_RESERVED3 = 336,
  H_STRINGS = 1024,
  H_CHECKSUM = FVD_HEADER_SIZE - 8,
};

static uint64_t
header_checksum (const uint8_t *copy)
{
  return XXH3_64bits (copy, H_CHECKSUM);
}

/* Whether COPY is a header that was written whole. */
static bool
is_valid (const uint8_t *copy, unsigned index)
{
  return memcmp (copy, magic, sizeof magic) == 0 &&
    nc_get_le32 (copy + H_LENGTH) == FVD_HEADER_SIZE &&
    nc_get_le64 (copy + H_CHECKSUM) == header_checksum (copy) &&
    nc_get_le64 (copy + H_SEQ) % 2 == index;
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  return n == 0 || (*p == 0 && memcmp (p, p + 1, n - 1) == 0);
}

static void
get_area (const uint8_t *p, struct fvd_area *area)
{
  area->offset = nc_get_le64 (p);
  area->size = nc_get_le64 (p + 8);
}

static void
put_area (uint8_t *p, const struct fvd_area *area)
{
  nc_put_le64 (p, area->offset);
  nc_put_le64 (p + 8, area->size);
}

/* Report what is wrong with the image. */
static int
corrupt (const struct nc_dev *dev, const char *fmt, ...)
{
  char text[256];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  nc_error ("%s: damaged fvd header: %s", dev->name, text);
  errno = EIO;
  return -1;
}

static int
get_strings (const struct nc_dev *dev, const uint8_t *copy,
             struct fvd_header *h)
{
  size_t at = H_STRINGS;

  for (unsigned i = 0; i < FVD_N_STRINGS; ++i) {
    uint16_t len = nc_get_le16 (copy + at);

    at += 2;
    if (len > NC_REF_MAX || len > H_CHECKSUM - at ||
        (i + 1 < FVD_N_STRINGS && at + len + 2 > H_CHECKSUM))
      return corrupt (dev, "string %u has the length %u", i + 1, len);
    if (memchr (copy + at, 0, len))
      return corrupt (dev, "string %u holds a zero byte", i + 1);
    memcpy (h->string[i], copy + at, len);
    h->string[i][len] = '\0';
    at += len;
  }
  if (!is_zero (copy + at, H_CHECKSUM - at))
    return corrupt (dev, "something follows the strings");
  return 0;
}

enum { PREFETCH_WHOLE = 1, PREFETCH_PROFILE = 2 };

static void
get_policy (const uint8_t *copy, struct nc_prefetch_policy *p)
{
  const uint32_t flags = nc_get_le32 (copy + H_PREFETCH_FLAGS);

  p->whole = flags & PREFETCH_WHOLE;
  p->profile = flags & PREFETCH_PROFILE;
  p->start_delay = nc_get_le32 (copy + H_START_DELAY);
  p->max_read = nc_get_le64 (copy + H_MAX_READ);
  p->max_write = nc_get_le64 (copy + H_MAX_WRITE);
  p->min_read = nc_get_le64 (copy + H_MIN_READ);
  p->min_write = nc_get_le64 (copy + H_MIN_WRITE);
  p->max_pause = nc_get_le32 (copy + H_MAX_PAUSE);
  p->unit = nc_get_le32 (copy + H_PREFETCH_UNIT);
  p->slots = nc_get_le32 (copy + H_PREFETCH_SLOTS);
  p->read_time = nc_get_le32 (copy + H_READ_TIME);
  p->write_time = nc_get_le32 (copy + H_WRITE_TIME);
  p->alpha = nc_get_le32 (copy + H_ALPHA);
}

static void
put_policy (const struct nc_prefetch_policy *p, uint8_t *copy)
{
  nc_put_le32 (copy + H_PREFETCH_FLAGS, (p->whole ? PREFETCH_WHOLE : 0) |
               (p->profile ? PREFETCH_PROFILE : 0));
  nc_put_le32 (copy + H_START_DELAY, p->start_delay);
  nc_put_le64 (copy + H_MAX_READ, p->max_read);
  nc_put_le64 (copy + H_MAX_WRITE, p->max_write);
  nc_put_le64 (copy + H_MIN_READ, p->min_read);
  nc_put_le64 (copy + H_MIN_WRITE, p->min_write);
  nc_put_le32 (copy + H_MAX_PAUSE, p->max_pause);
  nc_put_le32 (copy + H_PREFETCH_UNIT, p->unit);
  nc_put_le32 (copy + H_PREFETCH_SLOTS, p->slots);
  nc_put_le32 (copy + H_READ_TIME, p->read_time);
  nc_put_le32 (copy + H_WRITE_TIME, p->write_time);
  nc_put_le32 (copy + H_ALPHA, p->alpha);
}

/* Bytes to which the format gives no meaning. */
static bool
reserved_are_zero (const uint8_t *copy)
{
  const uint32_t flags = nc_get_le32 (copy + H_PREFETCH_FLAGS);

  return is_zero (copy + H_RESERVED1, 4) && is_zero (copy + H_RESERVED2, 8) &&
    is_zero (copy + H_RESERVED3, H_STRINGS - H_RESERVED3) &&
    (flags & ~(PREFETCH_WHOLE | PREFETCH_PROFILE)) == 0;
}

static void
parse (const uint8_t *copy, struct fvd_header *h)
{
  memset (h, 0, sizeof *h);
  h->seq = nc_get_le64 (copy + H_SEQ);
  memcpy (&h->uuid, copy + H_UUID, sizeof h->uuid);
  for (unsigned i = 0; i < 3; ++i)
    h->features[i] = nc_get_le64 (copy + H_FEATURES + 8 * i);
  h->size = nc_get_le64 (copy + H_SIZE);
  h->block_bits = nc_get_le32 (copy + H_BLOCK_BITS);
  h->flags = nc_get_le32 (copy + H_FLAGS);
  h->life = nc_get_le64 (copy + H_LIFE);
  get_area (copy + H_SUMMARY, &h->summary);
  get_area (copy + H_BITMAP, &h->bitmap);
  get_area (copy + H_JOURNAL, &h->journal);
  h->journal_tail = nc_get_le64 (copy + H_JOURNAL_TAIL);
  h->data_offset = nc_get_le64 (copy + H_DATA_OFFSET);
  h->backing_size = nc_get_le64 (copy + H_BACKING_SIZE);
  memcpy (&h->backing_uuid, copy + H_BACKING_UUID, sizeof h->backing_uuid);
  memcpy (&h->successor_uuid, copy + H_SUCCESSOR_UUID,
          sizeof h->successor_uuid);
  memcpy (&h->predecessor_uuid, copy + H_PREDECESSOR_UUID,
          sizeof h->predecessor_uuid);
  get_area (copy + H_TABLE, &h->table);
  get_area (copy + H_PROFILE, &h->profile);
  h->chunk_bits = nc_get_le32 (copy + H_CHUNK_BITS);
  h->grow_unit = nc_get_le64 (copy + H_GROW_UNIT);
  h->chunks = nc_get_le64 (copy + H_CHUNKS);
  get_policy (copy, &h->prefetch);
}

static uint64_t
summary_sectors (uint64_t npages)
{
  return nc_div_up (npages, FVD_SUMMARY_PAGES);
}

static uint64_t
table_sectors (const struct fvd_header *h)
{
  return nc_div_up (fvd_nchunks (h), FVD_TABLE_ENTRIES);
}

/* How much of this file the data area needs at least. */
static uint64_t
data_size (const struct fvd_header *h)
{
  return fvd_has_data_file (h) ? 0
    : fvd_is_compact (h) ? h->chunks << h->chunk_bits : h->size;
}

/* Each area behind the one before, aligned, and as large as it must be. */
static int
check_areas (const struct nc_dev *dev, const struct fvd_header *h)
{
  const uint64_t npages = nc_bitmap_npages (fvd_nblocks (h));
  const struct {
    const char *name;
    struct fvd_area area;
    uint64_t min;
    bool absent;
  } areas[] = {
    { "summary", h->summary, summary_sectors (npages) * FVD_SECTOR, false },
    { "bitmap", h->bitmap, npages * FVD_SECTOR, false },
    { "journal", h->journal, FVD_JOURNAL_MIN, false },
    { "table", h->table, table_sectors (h) * FVD_SECTOR,
      !fvd_is_compact (h) },
    { "profile", h->profile, 0, h->profile.size == 0 },
    { "data", { h->data_offset, data_size (h) }, 0, fvd_has_data_file (h) },
  };
  uint64_t end = 2 * FVD_HEADER_SIZE;

  for (unsigned i = 0; i < sizeof areas / sizeof areas[0]; ++i) {
    const struct fvd_area *a = &areas[i].area;

    if (areas[i].absent && (a->offset | a->size) == 0)
      continue;
    if (areas[i].absent || a->offset < end || a->offset % FVD_AREA_ALIGN != 0 ||
        a->size < areas[i].min || !nc_range_within (a->offset, a->size,
                                                    NC_OFFSET_MAX))
      return corrupt (dev, "%s area of %" PRIu64 " bytes at %" PRIu64,
                      areas[i].name, a->size, a->offset);
    end = a->offset + a->size;
  }
  if (h->data_offset % (UINT64_C (1) << h->block_bits) != 0)
    return corrupt (dev, "data at %" PRIu64 " is not at a block",
                    h->data_offset);
  if (end > dev->size) {
    nc_error ("%s: the file has %" PRIu64 " bytes, but its header needs %"
              PRIu64 "; it was cut off, perhaps by a copy that failed",
              dev->name, dev->size, end);
    errno = EIO;
    return -1;
  }
  return 0;
}

static int
check_data_file (const struct nc_dev *dev, const struct fvd_header *h)
{
  const char *path = h->string[FVD_DATA_FILE];
  const char *format = h->string[FVD_DATA_FILE_FORMAT];

  if (!fvd_has_data_file (h))
    return *path || *format || (h->flags & FVD_MARKED) ?
      corrupt (dev, "a data file, but not the feature") : 0;
  if (*path == '\0' || strcmp (format, "raw") != 0)
    return corrupt (dev, "data file '%.60s' of format '%.20s'", path, format);
  return 0;
}

static int
check_compact (const struct nc_dev *dev, const struct fvd_header *h)
{
  if (!fvd_is_compact (h))
    return h->chunk_bits || h->grow_unit || h->chunks ?
      corrupt (dev, "chunks, but not the feature") : 0;
  if (fvd_has_data_file (h))
    return corrupt (dev, "both compact and a data file");
  if (h->chunk_bits != FVD_CHUNK_BITS || h->block_bits > h->chunk_bits)
    return corrupt (dev, "chunks of 2^%u bytes, blocks of 2^%u",
                    h->chunk_bits, h->block_bits);
  if (h->grow_unit == 0 || h->grow_unit > FVD_GROW_UNIT_MAX ||
      h->grow_unit % (UINT64_C (1) << h->chunk_bits) != 0)
    return corrupt (dev, "grow unit %" PRIu64, h->grow_unit);
  if (fvd_nchunks (h) > FVD_CHUNKS_MAX || h->chunks > FVD_CHUNKS_MAX)
    return corrupt (dev, "%" PRIu64 " chunks, %" PRIu64 " of them used",
                    fvd_nchunks (h), h->chunks);
  return 0;
}

static int
check_policy (const struct nc_dev *dev, const struct fvd_header *h)
{
  const struct nc_prefetch_policy *p = &h->prefetch;

  if (p->start_delay > NC_START_DELAY_MAX ||
      p->max_pause > NC_MAX_PAUSE_MAX ||
      p->unit > NC_PREFETCH_UNIT_MAX || p->unit % 4096 != 0)
    return corrupt (dev, "prefetch policy: start delay %" PRIu32 " s, pause %"
                    PRIu32 " ms, unit %" PRIu32, p->start_delay,
                    p->max_pause, p->unit);
  if (p->slots > NC_PREFETCH_SLOTS_MAX ||
      p->read_time > NC_MEASURE_TIME_MAX ||
      p->write_time > NC_MEASURE_TIME_MAX || p->alpha > NC_ALPHA_MAX)
    return corrupt (dev, "prefetch policy: %" PRIu32 " slots, measurements of"
                    " %" PRIu32 " and %" PRIu32 " ms, alpha %" PRIu32,
                    p->slots, p->read_time, p->write_time, p->alpha);
  if (h->profile.size % (2 * FVD_AREA_ALIGN) != 0 ||
      h->profile.size > FVD_PROFILE_MAX)
    return corrupt (dev, "profile of %" PRIu64 " bytes", h->profile.size);
  return 0;
}

static int
check (const struct nc_dev *dev, const struct fvd_header *h)
{
  const uint32_t known = FVD_CLEAN | FVD_HAS_BACKING | FVD_RETIRED |
    FVD_TAKES_OVER | FVD_MARKED;

  if (h->features[1] != 0 && dev->writable) {
    nc_error ("%s: uses features (%#" PRIx64 ") of a newer version of the "
              "format; it can be opened read-only", dev->name,
              h->features[1]);
    errno = ENOTSUP;
    return -1;
  }
  if (nc_uuid_is_null (&h->uuid))
    return corrupt (dev, "the UUID is 0");
  if (h->flags & ~known)
    return corrupt (dev, "flags %#" PRIx32, h->flags);
  if (h->block_bits < FVD_BLOCK_BITS_MIN ||
      h->block_bits > FVD_BLOCK_BITS_MAX)
    return corrupt (dev, "block size of 2^%u bytes", h->block_bits);
  if (h->size > FVD_SIZE_MAX)
    return corrupt (dev, "disk size %" PRIu64, h->size);
  if (h->journal.size % FVD_AREA_ALIGN != 0 ||
      h->journal.size > FVD_JOURNAL_MAX)
    return corrupt (dev, "journal of %" PRIu64 " bytes", h->journal.size);
  if (h->seq > FVD_NUMBER_MAX)
    return corrupt (dev, "sequence number %" PRIu64, h->seq);
  if (h->journal_tail == 0 || h->journal_tail > FVD_NUMBER_MAX)
    return corrupt (dev, "journal tail %" PRIu64, h->journal_tail);
  if (h->flags & FVD_HAS_BACKING) {
    if (h->string[FVD_BACKING_FORMAT][0] == '\0')
      return corrupt (dev, "the backing has no format");
    if (h->backing_size > FVD_SIZE_MAX)
      return corrupt (dev, "backing size %" PRIu64, h->backing_size);
  }
  else if (h->string[FVD_BACKING_REF][0] != '\0' ||
           (h->flags & FVD_TAKES_OVER))
    return corrupt (dev, "no backing, but a reference to one");
  if (check_data_file (dev, h) == -1 || check_compact (dev, h) == -1 ||
      check_policy (dev, h) == -1)
    return -1;
  return check_areas (dev, h);
}

static int
read_copies (struct nc_dev *dev, uint8_t copies[2][FVD_HEADER_SIZE])
{
  return dev->ops->pread (dev, copies, 2 * FVD_HEADER_SIZE, 0);
}

int
fvd_header_copies (struct nc_dev *dev, unsigned *valid)
{
  uint8_t copies[2][FVD_HEADER_SIZE];

  if (read_copies (dev, copies) == -1)
    return -1;
  *valid = is_valid (copies[0], 0) + is_valid (copies[1], 1);
  return 0;
}

int
fvd_header_read (struct nc_dev *dev, struct fvd_header *h)
{
  uint8_t copies[2][FVD_HEADER_SIZE];
  const uint8_t *copy;
  bool valid[2];

  if (read_copies (dev, copies) == -1)
    return -1;
  valid[0] = is_valid (copies[0], 0);
  valid[1] = is_valid (copies[1], 1);
  if (!valid[0] && !valid[1]) {
    if (memcmp (copies[0], magic, sizeof magic) != 0 &&
        memcmp (copies[1], magic, sizeof magic) != 0)
      nc_error ("%s: not an fvd image", dev->name);
    else
      nc_error ("%s: both copies of the fvd header are damaged", dev->name);
    errno = EINVAL;
    return -1;
  }
  copy = copies[!valid[0] ||
                (valid[1] && nc_get_le64 (copies[1] + H_SEQ) >
                 nc_get_le64 (copies[0] + H_SEQ))];

  if (nc_get_le32 (copy + H_VERSION) != FVD_VERSION) {
    nc_error ("%s: fvd version %" PRIu32 " is not supported; this is "
              "version %d", dev->name, nc_get_le32 (copy + H_VERSION),
              FVD_VERSION);
    errno = ENOTSUP;
    return -1;
  }
  parse (copy, h);
  if (h->features[2] & ~(uint64_t) (FVD_COMPACT | FVD_WITH_DATA_FILE)) {
    nc_error ("%s: uses features (%#" PRIx64 ") of a newer version of the "
              "format", dev->name, h->features[2]);
    errno = ENOTSUP;
    return -1;
  }
  if (!reserved_are_zero (copy))
    return corrupt (dev, "reserved bytes are not 0");
  if (get_strings (dev, copy, h) == -1 || check (dev, h) == -1)
    return -1;
  if (!valid[0] || !valid[1])
    h->flags &= ~FVD_CLEAN;
  return 0;
}

int
fvd_header_read_to_write (struct nc_dev *dev, struct fvd_header *h)
{
  if (fvd_header_read (dev, h) == -1)
    return -1;
  if (!(h->flags & FVD_RETIRED))
    return 0;
  nc_error ("%s: was retired when '%s' took over, and is not written any more; "
            "use that one, or open this one read-only", dev->name,
            h->string[FVD_SUCCESSOR]);
  errno = EROFS;
  return -1;
}

bool
fvd_header_strings_fit (const struct fvd_header *h)
{
  size_t at = H_STRINGS;

  for (unsigned i = 0; i < FVD_N_STRINGS; ++i)
    at += 2 + strlen (h->string[i]);
  return at <= H_CHECKSUM;
}

static void
serialize (const struct fvd_header *h, uint8_t *copy)
{
  size_t at = H_STRINGS;

  memset (copy, 0, FVD_HEADER_SIZE);
  memcpy (copy + H_MAGIC, magic, sizeof magic);
  nc_put_le32 (copy + H_VERSION, FVD_VERSION);
  nc_put_le32 (copy + H_LENGTH, FVD_HEADER_SIZE);
  nc_put_le64 (copy + H_SEQ, h->seq);
  memcpy (copy + H_UUID, &h->uuid, sizeof h->uuid);
  for (unsigned i = 0; i < 3; ++i)
    nc_put_le64 (copy + H_FEATURES + 8 * i, h->features[i]);
  nc_put_le64 (copy + H_SIZE, h->size);
  nc_put_le32 (copy + H_BLOCK_BITS, h->block_bits);
  nc_put_le32 (copy + H_FLAGS, h->flags);
  nc_put_le64 (copy + H_LIFE, h->life);
  put_area (copy + H_SUMMARY, &h->summary);
  put_area (copy + H_BITMAP, &h->bitmap);
  put_area (copy + H_JOURNAL, &h->journal);
  nc_put_le64 (copy + H_JOURNAL_TAIL, h->journal_tail);
  nc_put_le64 (copy + H_DATA_OFFSET, h->data_offset);
  nc_put_le64 (copy + H_BACKING_SIZE, h->backing_size);
  memcpy (copy + H_BACKING_UUID, &h->backing_uuid, sizeof h->backing_uuid);
  memcpy (copy + H_SUCCESSOR_UUID, &h->successor_uuid,
          sizeof h->successor_uuid);
  memcpy (copy + H_PREDECESSOR_UUID, &h->predecessor_uuid,
          sizeof h->predecessor_uuid);
  put_area (copy + H_TABLE, &h->table);
  put_area (copy + H_PROFILE, &h->profile);
  nc_put_le32 (copy + H_CHUNK_BITS, h->chunk_bits);
  nc_put_le64 (copy + H_GROW_UNIT, h->grow_unit);
  nc_put_le64 (copy + H_CHUNKS, h->chunks);
  put_policy (&h->prefetch, copy);
  for (unsigned i = 0; i < FVD_N_STRINGS; ++i) {
    size_t len = strlen (h->string[i]);

    nc_put_le16 (copy + at, len);
    memcpy (copy + at + 2, h->string[i], len);
    at += 2 + len;
  }
  nc_put_le64 (copy + H_CHECKSUM, header_checksum (copy));
}

int
fvd_header_write (struct nc_dev *dev, struct fvd_header *h)
{
  uint8_t copy[FVD_HEADER_SIZE];

  h->seq++;
  serialize (h, copy);
  if (dev->ops->pwrite (dev, copy, sizeof copy,
                        h->seq % 2 * FVD_HEADER_SIZE) == -1) {
    h->seq--;
    return -1;
  }
  return 0;
}

int
fvd_header_create (struct nc_dev *dev, struct fvd_header *h)
{
  h->seq = 0;
  return fvd_header_write (dev, h) == -1 ? -1 : fvd_header_write (dev, h);
}

/* H as it will be when the disk has grown as much as there is room for. */
static struct fvd_header
grown (const struct fvd_header *h)
{
  const uint64_t times = fvd_is_compact (h) ? GROWTH_COMPACT : GROWTH;
  const uint64_t least = fvd_is_compact (h) ? UINT64_C (1) << h->chunk_bits
    : GROWTH_MIN;
  const uint64_t most = h->size > FVD_SIZE_MAX / times ? FVD_SIZE_MAX
    : nc_max64 (h->size * times, least);
  struct fvd_header larger = {
    .size = most, .block_bits = h->block_bits, .chunk_bits = h->chunk_bits,
  };

  if (fvd_is_compact (h) && fvd_nchunks (&larger) > FVD_CHUNKS_MAX)
    larger.size = nc_max64 (h->size, (uint64_t) FVD_CHUNKS_MAX
                            << h->chunk_bits);
  return larger;
}

void
fvd_header_lay_out (struct fvd_header *h)
{
  const struct fvd_header most = grown (h);
  const uint64_t npages = nc_bitmap_npages (fvd_nblocks (&most));
  const uint64_t block = UINT64_C (1) << h->block_bits;
  uint64_t end;

  h->summary.offset = 2 * FVD_HEADER_SIZE;
  h->summary.size = nc_round_up (summary_sectors (npages) * FVD_SECTOR,
                                 FVD_AREA_ALIGN);
  h->bitmap.offset = h->summary.offset + h->summary.size;
  h->bitmap.size = nc_round_up (npages * FVD_SECTOR, FVD_AREA_ALIGN);
  h->journal.offset = h->bitmap.offset + h->bitmap.size;
  end = h->journal.offset + h->journal.size;
  if (fvd_is_compact (h)) {
    h->table.offset = end;
    h->table.size = nc_round_up (table_sectors (&most) * FVD_SECTOR,
                                 FVD_AREA_ALIGN);
    end += h->table.size;
  }
  h->profile.offset = end;
  end += h->profile.size;
  if (fvd_has_data_file (h))
    return;
  /* At a place that suits large blocks and striped storage. */
  h->data_offset = nc_round_up (end, nc_max64 (block, UINT64_C (1) << 20));
}

static uint64_t
sector_checksum (const nc_uuid *uuid, enum fvd_kind kind, uint64_t index,
                 const uint8_t *sector)
{
  uint8_t seed[32];

  memcpy (seed, uuid, sizeof *uuid);
  nc_put_le64 (seed + 16, kind);
  nc_put_le64 (seed + 24, index);
  return XXH3_64bits_withSeed (sector, FVD_SECTOR - 8,
                               XXH3_64bits (seed, sizeof seed));
}

void
fvd_sector_seal (const nc_uuid *uuid, enum fvd_kind kind, uint64_t index,
                 uint8_t *sector)
{
  nc_put_le64 (sector + FVD_SECTOR - 8,
               sector_checksum (uuid, kind, index, sector));
}

bool
fvd_sector_is_valid (const nc_uuid *uuid, enum fvd_kind kind,
                     uint64_t index, const uint8_t *sector)
{
  return nc_get_le64 (sector + FVD_SECTOR - 8) ==
    sector_checksum (uuid, kind, index, sector);
}
