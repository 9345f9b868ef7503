/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Rebuilds states of a directory after a loss of power; replay.h has the
 * model.
 *
 * The changes of a file are kept in the order in which they began.  The
 * longest beginning of that list that is durable at the instant is folded
 * into the file's image; the rest is replayed on a copy, each change being
 * certain or chosen.  So a change that is not durable never undoes a durable
 * one that was made later.
 */

#include <config.h>

#include "replay.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "log.h"

enum { SECTOR = 512, FS_BLOCK = 4096 };

static const char journal_magic[4] = "FVDJ";

struct change {
  uint32_t type, flags;
  uint64_t offset, count;
  const uint8_t *payload;
  uint64_t begin, end;          /* end: NEVER if the process died in it */
  uint64_t durable;             /* from this instant on */
  bool failed;
};

struct image {
  uint8_t *bytes;
  uint64_t size, room;
};

struct file {
  uint64_t ino;
  const char *mark;             /* extended attribute, "" if it has none */
  struct change *changes;
  size_t nchanges, room;
  struct image image;           /* changes 0 to folded-1 are in it */
  size_t folded;
  size_t settled;               /* those before are durable already */
};

struct name_change {
  uint32_t type;
  struct file *file;
  const char *path, *path2;
  uint64_t begin, end, durable;
};

struct directory {
  uint64_t ino;
  const char *path;
};

struct sync_point {
  uint64_t ino;
  bool all;
  uint64_t begin, end;
  bool dropped;
};

/* A file in the directory that was written last. */
struct written {
  char *path;
  const struct file *file;
  size_t folded;                /* the image as of then, if not 'replayed' */
  bool replayed;
};

struct name {
  const char *path;
  struct file *file;            /* NULL: a directory */
};

struct replay {
  void *map;
  size_t map_size;
  struct file **files;
  size_t nfiles, files_room;
  struct name_change *names;
  size_t nnames, names_room;
  struct directory *dirs;
  size_t ndirs, dirs_room;
  struct sync_point *syncs;
  size_t nsyncs, syncs_room;
  struct op **ops;
  size_t nops, ops_room;
  struct name *initial;
  size_t ninitial, initial_room;
  uint64_t *edges;              /* instants worth choosing */
  size_t nedges, edges_room;
  uint64_t first, last;
  size_t dropped;
  struct written *written;
  size_t nwritten, written_room;
  struct image scratch;
  char story[200];
};

static void *
grown (void *array, size_t *room, size_t needed, size_t size)
{
  if (needed <= *room)
    return array;
  *room = needed * 2 + 16;
  array = realloc (array, *room * size);
  if (array == NULL) {
    perror ("realloc");
    exit (2);
  }
  return array;
}

#define APPEND(r, array, n, room) \
  ((r)->array = grown ((r)->array, &(r)->room, (r)->n + 1, \
                       sizeof *(r)->array), \
   memset (&(r)->array[(r)->n], 0, sizeof *(r)->array), \
   &(r)->array[(r)->n++])

/*----------------------------------------------------------------------
 * Reading the log */

/* The file that has number INO now: the latest one made with it. */
static struct file *
file_by_ino (struct replay *r, uint64_t ino)
{
  size_t i;

  for (i = r->nfiles; i-- > 0;)
    if (r->files[i]->ino == ino)
      return r->files[i];
  return NULL;
}

static struct file *
new_file (struct replay *r, uint64_t ino)
{
  struct file *file = calloc (1, sizeof *file);

  if (file == NULL) {
    perror ("calloc");
    exit (2);
  }
  file->ino = ino;
  *APPEND (r, files, nfiles, files_room) = file;
  return file;
}

static void
image_resize (struct image *image, uint64_t size)
{
  if (size > image->room) {
    image->bytes = realloc (image->bytes, size);
    if (image->bytes == NULL) {
      perror ("realloc");
      exit (2);
    }
    image->room = size;
  }
  if (size > image->size)
    memset (image->bytes + image->size, 0, size - image->size);
  image->size = size;
}

struct sorted_record {
  struct log_record head;
  const uint8_t *payload;
};

struct collection {
  struct sorted_record *records;
  size_t n, room;
};

static void
collect (const struct log_record *record, const uint8_t *payload,
         void *opaque)
{
  struct collection *all = opaque;
  struct sorted_record *one = APPEND (all, records, n, room);

  one->head = *record;
  one->payload = payload;
}

static int
compare_records (const void *a, const void *b)
{
  const struct sorted_record *x = a, *y = b;

  return x->head.seq < y->head.seq ? -1 : x->head.seq > y->head.seq;
}

/* Names are recorded after the call, and a file may be written as soon as it
 * has its name, so order them by when they began. */
static void
order_by_begin (struct collection *all)
{
  size_t i;

  for (i = 0; i < all->n; i++) {
    struct log_record *head = &all->records[i].head;

    if (head->type >= LOG_CREATE && head->type <= LOG_RMDIR) {
      const uint64_t end = head->seq;

      head->seq = head->ref;
      head->ref = end;
    }
  }
  qsort (all->records, all->n, sizeof *all->records, compare_records);
}

static void
add_edge (struct replay *r, uint64_t instant)
{
  *APPEND (r, edges, nedges, edges_room) = instant;
}

static void
add_initial (struct replay *r, const struct sorted_record *one)
{
  struct file *file;

  switch (one->head.type) {
  case LOG_INIT_DIR: {
    struct directory *dir = APPEND (r, dirs, ndirs, dirs_room);

    dir->ino = one->head.ino;
    dir->path = (const char *) one->payload;
    if (dir->path[0])
      APPEND (r, initial, ninitial, initial_room)->path = dir->path;
    break;
  }
  case LOG_INIT_FILE: {
    struct name *name;

    file = new_file (r, one->head.ino);
    image_resize (&file->image, one->head.count);
    name = APPEND (r, initial, ninitial, initial_room);
    name->path = (const char *) one->payload;
    file->mark = name->path + strlen (name->path) + 1;
    name->file = file;
    break;
  }
  case LOG_INIT_DATA:
    file = file_by_ino (r, one->head.ino);
    memcpy (file->image.bytes + one->head.offset, one->payload,
            one->head.payload);
    break;
  }
}

static void
add_change (struct replay *r, const struct sorted_record *one)
{
  struct file *file = file_by_ino (r, one->head.ino);
  struct change *change;

  if (file == NULL) {
    fprintf (stderr, "powerloss: a change of file number %" PRIu64
             ", which nothing made\n", one->head.ino);
    exit (2);
  }
  change = APPEND (file, changes, nchanges, room);
  change->type = one->head.type;
  change->flags = one->head.flags;
  change->offset = one->head.offset;
  change->count = one->head.count;
  change->payload = one->payload;
  change->begin = one->head.seq;
  change->end = change->durable = NEVER;
  if (change->flags & LOG_DSYNC)
    add_edge (r, change->begin + 1);
}

static void
add_name_change (struct replay *r, const struct sorted_record *one)
{
  struct name_change *change = APPEND (r, names, nnames, names_room);

  change->type = one->head.type;
  change->begin = one->head.seq;
  change->end = one->head.ref;
  change->durable = NEVER;
  change->path = (const char *) one->payload;
  switch (one->head.type) {
  case LOG_CREATE:
    change->file = new_file (r, one->head.ino);
    break;
  case LOG_RENAME:
    change->path2 = change->path + strlen (change->path) + 1;
    change->file = file_by_ino (r, one->head.ino);
    break;
  case LOG_LINK:
    change->file = file_by_ino (r, one->head.ino);
    break;
  case LOG_MKDIR: {
    struct directory *dir = APPEND (r, dirs, ndirs, dirs_room);

    dir->ino = one->head.ino;
    dir->path = change->path;
    break;
  }
  }
  add_edge (r, change->end);
  add_edge (r, change->end + 1);
}

static void
add_mark (struct replay *r, const struct sorted_record *one)
{
  const struct log_mark *mark = (const struct log_mark *) one->payload;
  struct op *op = calloc (1, sizeof *op);
  struct log_mark copy;

  if (op == NULL) {
    perror ("calloc");
    exit (2);
  }
  memcpy (&copy, mark, sizeof copy);
  op->seed = copy.seed;
  op->id = copy.id;
  op->offset = copy.offset;
  op->count = copy.count;
  op->kind = copy.kind;
  op->flags = copy.flags;
  op->start = one->head.seq;
  op->end = op->durable = NEVER;
  *APPEND (r, ops, nops, ops_room) = op;
}

static struct op *
op_by_start (struct replay *r, uint64_t start)
{
  size_t i;

  for (i = r->nops; i-- > 0;)
    if (r->ops[i]->start == start)
      return r->ops[i];
  return NULL;
}

static void
set_durable_change (struct change *change, uint64_t instant)
{
  if (instant < change->durable)
    change->durable = instant;
}

/* A sync that returned makes durable what had ended before it began. */
static void
apply_sync (struct replay *r, const struct sync_point *sync)
{
  size_t i, j;

  for (i = 0; i < r->nfiles; i++) {
    struct file *file = r->files[i];

    if (!sync->all && file->ino != sync->ino)
      continue;
    while (file->settled < file->nchanges &&
           file->changes[file->settled].durable <= sync->begin)
      file->settled++;
    for (j = file->settled; j < file->nchanges; j++) {
      if (file->changes[j].begin >= sync->begin)
        break;
      if (file->changes[j].end < sync->begin)
        set_durable_change (&file->changes[j], sync->end + 1);
    }
  }
  for (i = 0; i < r->nnames; i++) {
    struct name_change *change = &r->names[i];
    const char *path = change->path2 ? change->path2 : change->path;
    const char *slash = strrchr (path, '/');
    const size_t n = slash ? (size_t) (slash - path) : 0;

    if (change->end >= sync->begin || change->durable != NEVER)
      continue;
    for (j = 0; j < r->ndirs; j++)
      if (sync->all || (r->dirs[j].ino == sync->ino &&
                        strlen (r->dirs[j].path) == n &&
                        memcmp (r->dirs[j].path, path, n) == 0))
        change->durable = sync->end + 1;
  }
}

/* Link ends to begins.  ALL is in order of begin. */
static void
add_ends (struct replay *r, const struct collection *all)
{
  /* seq -> change, by index of the record that began it */
  struct found { struct file *file; size_t index; } *begun;
  size_t i;

  begun = calloc (r->last + 2, sizeof *begun);
  if (begun == NULL) {
    perror ("calloc");
    exit (2);
  }
  for (i = 0; i < r->nfiles; i++) {
    size_t j;

    for (j = 0; j < r->files[i]->nchanges; j++) {
      begun[r->files[i]->changes[j].begin].file = r->files[i];
      begun[r->files[i]->changes[j].begin].index = j;
    }
  }
  for (i = 0; i < all->n; i++) {
    const struct log_record *head = &all->records[i].head;
    struct change *change;

    if (head->type != LOG_END || head->ref > r->last ||
        begun[head->ref].file == NULL)
      continue;
    change = &begun[head->ref].file->changes[begun[head->ref].index];
    change->end = head->seq;
    if (head->result < 0)
      change->failed = true;
    else if (change->type == LOG_WRITE &&
             (uint64_t) head->result < change->count)
      change->count = head->result;
    if ((change->flags & LOG_DSYNC) && !change->failed) {
      change->durable = head->seq + 1;
      add_edge (r, head->seq);
      add_edge (r, head->seq + 1);
    }
  }
  free (begun);
}

static void
add_syncs (struct replay *r, const struct collection *all)
{
  size_t i, j, from = 0;

  for (i = 0; i < all->n; i++) {
    const struct log_record *head = &all->records[i].head;
    struct sync_point *sync;

    if (head->type == LOG_SYNC || head->type == LOG_SYNC_ALL) {
      sync = APPEND (r, syncs, nsyncs, syncs_room);
      sync->ino = head->ino;
      sync->all = head->type == LOG_SYNC_ALL;
      sync->begin = head->seq;
      sync->end = NEVER;
    }
    else if (head->type == LOG_END && head->result >= 0) {
      while (from < r->nsyncs && r->syncs[from].end != NEVER)
        from++;
      for (j = from; j < r->nsyncs; j++)
        if (r->syncs[j].begin == head->ref) {
          r->syncs[j].end = head->seq;
          add_edge (r, head->seq);
          add_edge (r, head->seq + 1);
        }
    }
  }
}

static bool
is_journal_record (const struct change *change)
{
  return change->type == LOG_WRITE && change->count >= SECTOR &&
    memcmp (change->payload, journal_magic, sizeof journal_magic) == 0;
}

/* Leave out what DROP says, as an engine would that forgot it. */
static void
drop_syncs (struct replay *r, enum replay_drop drop)
{
  size_t i, j, k;

  for (i = 0; i < r->nfiles && drop != DROP_NOTHING; i++) {
    struct file *file = r->files[i];

    for (j = 0; j < file->nchanges; j++) {
      struct change *change = &file->changes[j];
      struct sync_point *best = NULL;

      if (!is_journal_record (change))
        continue;
      for (k = 0; k < r->nsyncs; k++) {
        struct sync_point *sync = &r->syncs[k];

        if (sync->ino != file->ino || sync->end == NEVER)
          continue;
        if (drop == DROP_BEFORE_JOURNAL && sync->end < change->begin &&
            (best == NULL || sync->end > best->end))
          best = sync;
        if (drop == DROP_JOURNAL && sync->begin > change->end &&
            (best == NULL || sync->begin < best->begin))
          best = sync;
      }
      if (drop == DROP_JOURNAL && (change->flags & LOG_DSYNC)) {
        change->flags &= ~LOG_DSYNC;
        change->durable = NEVER;
        r->dropped++;
      }
      else if (best != NULL && !best->dropped) {
        best->dropped = true;
        r->dropped++;
      }
    }
  }
}

/* When the client could know each operation to be durable. */
static void
add_acks (struct replay *r, const struct collection *all)
{
  size_t i, j;

  for (i = 0; i < all->n; i++) {
    const struct log_record *head = &all->records[i].head;
    struct op *op;

    if (head->type != LOG_MARK_ACK || head->result != 0)
      continue;
    op = op_by_start (r, head->ref);
    if (op == NULL)
      continue;
    op->end = head->seq;
    add_edge (r, head->seq + 1);
    if (op->flags & 1)          /* FUA */
      op->durable = op->end;
    if (op->kind != OP_FLUSH)
      continue;
    for (j = 0; j < r->nops; j++)
      if (r->ops[j]->end < op->start && r->ops[j]->durable == NEVER)
        r->ops[j]->durable = op->end;
  }
}

struct replay *
replay_open (const char *file, enum replay_drop drop)
{
  struct replay *r = calloc (1, sizeof *r);
  struct collection all = { NULL, 0, 0 };
  size_t i;

  if (r == NULL) {
    perror ("calloc");
    return NULL;
  }
  r->map = log_map (file, &r->map_size, collect, &all);
  if (r->map == NULL) {
    free (r);
    return NULL;
  }
  order_by_begin (&all);
  r->first = NEVER;
  for (i = 0; i < all.n; i++) {
    const struct sorted_record *one = &all.records[i];

    if (one->head.seq > r->last)
      r->last = one->head.seq;
    if (one->head.type >= LOG_WRITE && one->head.seq < r->first)
      r->first = one->head.seq;
    switch (one->head.type) {
    case LOG_INIT_DIR: case LOG_INIT_FILE: case LOG_INIT_DATA:
      add_initial (r, one);
      break;
    case LOG_WRITE: case LOG_PUNCH: case LOG_ZERO_RANGE: case LOG_ALLOCATE:
    case LOG_TRUNCATE:
      add_change (r, one);
      break;
    case LOG_CREATE: case LOG_LINK: case LOG_RENAME: case LOG_UNLINK:
    case LOG_MKDIR: case LOG_RMDIR:
      add_name_change (r, one);
      break;
    case LOG_MARK_START:
      add_mark (r, one);
      break;
    }
  }
  if (r->first == NEVER)
    r->first = r->last;
  add_ends (r, &all);
  add_syncs (r, &all);
  drop_syncs (r, drop);
  for (i = 0; i < r->nsyncs; i++)
    if (r->syncs[i].end != NEVER && !r->syncs[i].dropped)
      apply_sync (r, &r->syncs[i]);
  add_acks (r, &all);
  free (all.records);
  return r;
}

void
replay_close (struct replay *r)
{
  size_t i;

  for (i = 0; i < r->nfiles; i++) {
    free (r->files[i]->image.bytes);
    free (r->files[i]->changes);
    free (r->files[i]);
  }
  for (i = 0; i < r->nops; i++)
    free (r->ops[i]);
  replay_forget (r);
  free (r->written);
  free (r->scratch.bytes);
  free (r->files);
  free (r->names);
  free (r->dirs);
  free (r->syncs);
  free (r->ops);
  free (r->initial);
  free (r->edges);
  munmap (r->map, r->map_size ? r->map_size : 1);
  free (r);
}

void
replay_skip_unended (struct replay *r)
{
  size_t i, j;

  for (i = 0; i < r->nfiles; i++)
    for (j = 0; j < r->files[i]->nchanges; j++)
      if (r->files[i]->changes[j].end == NEVER)
        r->files[i]->changes[j].failed = true;
}

void
replay_range (const struct replay *r, uint64_t *first, uint64_t *last)
{
  *first = r->first;
  *last = r->last + 1;
}

size_t
replay_dropped (const struct replay *r)
{
  return r->dropped;
}

struct op **
replay_ops (const struct replay *r, size_t *n)
{
  *n = r->nops;
  return r->ops;
}

uint64_t
replay_choose (const struct replay *r, struct rng *rng)
{
  if (r->nedges > 0 && rng_below (rng, 2))
    return r->edges[rng_below (rng, r->nedges)];
  return r->first + rng_below (rng, r->last - r->first + 2);
}

uint64_t
replay_choose_near (const struct replay *r, const char wanted[4],
                    struct rng *rng)
{
  const struct change *chosen = NULL;
  uint64_t last, n = 0;
  size_t i, j;

  for (i = 0; i < r->nfiles; i++)
    for (j = 0; j < r->files[i]->nchanges; j++) {
      const struct change *change = &r->files[i]->changes[j];

      if (change->type == LOG_WRITE && change->count >= 4 &&
          memcmp (change->payload, wanted, 4) == 0 &&
          rng_below (rng, ++n) == 0)
        chosen = change;
    }
  if (chosen == NULL)
    return NEVER;
  last = chosen->durable <= r->last ? chosen->durable : r->last + 1;
  return chosen->begin + rng_below (rng, last - chosen->begin + 1);
}

const char *
replay_story (const struct replay *r)
{
  return r->story;
}

/*----------------------------------------------------------------------
 * Applying changes */

enum how { NOT, WHOLE, TORN };

static void
zero_range (struct image *image, uint64_t offset, uint64_t count)
{
  if (offset >= image->size)
    return;
  if (count > image->size - offset)
    count = image->size - offset;
  memset (image->bytes + offset, 0, count);
}

static void
apply_write (struct image *image, const struct change *change, enum how how,
             struct rng *rng)
{
  uint64_t at = 0;

  while (at < change->count) {
    const uint64_t offset = change->offset + at;
    uint64_t n = how == TORN ? SECTOR - offset % SECTOR : change->count - at;

    if (n > change->count - at)
      n = change->count - at;
    if (how == WHOLE || rng_below (rng, 2)) {
      if (offset + n > image->size)
        image_resize (image, offset + n);
      memcpy (image->bytes + offset, change->payload + at, n);
    }
    at += n;
  }
}

/* Of a range of zeros that is torn, one end is there. */
static void
tear_range (uint64_t *offset, uint64_t *count, struct rng *rng)
{
  uint64_t n = rng_below (rng, *count + 1);

  n -= n % FS_BLOCK;
  if (rng_below (rng, 2))
    *offset += *count - n;
  *count = n;
}

static void
apply_change (struct image *image, const struct change *change, enum how how,
              struct rng *rng)
{
  uint64_t offset = change->offset, count = change->count;

  if (how == NOT || change->failed)
    return;
  switch (change->type) {
  case LOG_WRITE:
    apply_write (image, change, how, rng);
    break;
  case LOG_TRUNCATE:
    image_resize (image, count);
    break;
  case LOG_PUNCH: case LOG_ZERO_RANGE: case LOG_ALLOCATE:
    if (how == TORN)
      tear_range (&offset, &count, rng);
    else if (!(change->flags & LOG_KEEP_SIZE) &&
             offset + count > image->size)
      image_resize (image, offset + count);
    if (change->type != LOG_ALLOCATE)
      zero_range (image, offset, count);
    break;
  }
}

/*----------------------------------------------------------------------
 * Choosing */

enum way {
  WAY_NONE, WAY_ALL, WAY_SOME, WAY_SOME_TORN, WAY_ALL_BUT_ONE, WAY_ONLY_ONE,
  WAY_LOW, WAY_HIGH, WAY_FIRST, WAY_LAST, WAY_ALL_TORN, WAY_SMALL, WAY_COUNT
};

static const char *const way_names[] = {
  "none", "all", "some", "some, torn", "all but one", "only one",
  "below an offset", "from an offset", "the first ones", "the last ones",
  "all, torn", "small ones"
};

struct choice {
  enum way way;
  uint64_t n, at;               /* open changes, and which one we are at */
  uint64_t pick;
  uint64_t offset;
};

static enum how
choose (struct choice *choice, const struct change *change, struct rng *rng)
{
  const uint64_t at = choice->at++;

  switch (choice->way) {
  case WAY_NONE: return NOT;
  case WAY_ALL: return WHOLE;
  case WAY_SOME: return rng_below (rng, 2) ? WHOLE : NOT;
  case WAY_SOME_TORN: return rng_below (rng, 3);
  case WAY_ALL_BUT_ONE: return at == choice->pick ? NOT : WHOLE;
  case WAY_ONLY_ONE: return at == choice->pick ? WHOLE : NOT;
  case WAY_LOW: return change->offset < choice->offset ? WHOLE : NOT;
  case WAY_HIGH: return change->offset >= choice->offset ? WHOLE : NOT;
  case WAY_FIRST: return at < choice->pick ? WHOLE : NOT;
  case WAY_LAST: return at >= choice->pick ? WHOLE : NOT;
  case WAY_ALL_TORN: return TORN;
  case WAY_SMALL: return change->count <= FS_BLOCK ? WHOLE : NOT;
  case WAY_COUNT: break;
  }
  return WHOLE;
}

/* A change that power loss at INSTANT may or may not have kept. */
static bool
is_open (const struct change *change, uint64_t instant)
{
  return change->begin < instant && change->durable > instant &&
    !change->failed;
}

static void
fold (struct file *file, uint64_t instant)
{
  struct rng unused = { 0 };

  while (file->folded < file->nchanges) {
    const struct change *change = &file->changes[file->folded];

    if (!change->failed && change->durable > instant)
      break;
    if (change->begin >= instant)
      break;
    apply_change (&file->image, change, WHOLE, &unused);
    file->folded++;
  }
}

static void
start_choice (struct replay *r, struct choice *choice, uint64_t instant,
              struct rng *rng)
{
  uint64_t offsets[64];
  size_t i, j, n = 0;

  choice->n = choice->at = 0;
  for (i = 0; i < r->nfiles; i++) {
    struct file *file = r->files[i];

    fold (file, instant);
    for (j = file->folded; j < file->nchanges; j++)
      if (is_open (&file->changes[j], instant)) {
        choice->n++;
        if (n < 64)
          offsets[n++] = file->changes[j].offset;
        else
          offsets[rng_below (rng, 64)] = file->changes[j].offset;
      }
  }
  choice->way = rng_below (rng, WAY_COUNT);
  choice->pick = choice->n ? rng_below (rng, choice->n) : 0;
  choice->offset = n ? offsets[rng_below (rng, n)] + rng_below (rng, 2) : 0;
}

/* The image of FILE at INSTANT; *REPLAYED tells if it is the scratch one. */
static const struct image *
image_at (struct replay *r, struct file *file, uint64_t instant,
          struct choice *choice, struct rng *rng, bool *replayed)
{
  size_t i;

  *replayed = false;
  for (i = file->folded; i < file->nchanges; i++) {
    const struct change *change = &file->changes[i];
    const bool open = is_open (change, instant);
    enum how how = WHOLE;

    if (change->begin >= instant)
      break;
    if (open && instant != NEVER)
      how = choose (choice, change, rng);
    if (how == NOT || change->failed)
      continue;
    if (!*replayed) {
      r->scratch.size = 0;
      image_resize (&r->scratch, file->image.size);
      if (file->image.size > 0)
        memcpy (r->scratch.bytes, file->image.bytes, file->image.size);
      *replayed = true;
    }
    apply_change (&r->scratch, change, how, rng);
  }
  return *replayed ? &r->scratch : &file->image;
}

/*----------------------------------------------------------------------
 * Names */

struct name_list {
  struct name *names;
  size_t n, room;
};

static struct name *
find_name (struct name_list *list, const char *path)
{
  size_t i;

  for (i = 0; i < list->n; i++)
    if (strcmp (list->names[i].path, path) == 0)
      return &list->names[i];
  return NULL;
}

static void
set_name (struct name_list *list, const char *path, struct file *file)
{
  struct name *name;

  if (path[0] == '\0')
    return;
  name = find_name (list, path);
  if (name == NULL)
    name = APPEND (list, names, n, room);
  name->path = path;
  name->file = file;
}

static void
remove_name (struct name_list *list, const char *path)
{
  struct name *name = find_name (list, path);

  if (name != NULL)
    *name = list->names[--list->n];
}

static void
apply_name_change (struct name_list *list, const struct name_change *change)
{
  switch (change->type) {
  case LOG_CREATE: case LOG_LINK:
    set_name (list, change->path, change->file);
    break;
  case LOG_RENAME:
    remove_name (list, change->path);
    set_name (list, change->path2, change->file);
    break;
  case LOG_UNLINK: case LOG_RMDIR:
    remove_name (list, change->path);
    break;
  case LOG_MKDIR:
    set_name (list, change->path, NULL);
    break;
  }
}

/* A file system keeps either the order of names or not even that. */
static void
names_at (struct replay *r, uint64_t instant, struct rng *rng,
          struct name_list *list, int64_t *open)
{
  const bool in_order = rng_below (rng, 2);
  size_t i, nopen = 0, keep;

  for (i = 0; i < r->ninitial; i++)
    set_name (list, r->initial[i].path, r->initial[i].file);
  for (i = 0; i < r->nnames; i++)
    nopen += r->names[i].begin < instant && r->names[i].durable > instant;
  keep = rng_below (rng, nopen + 1);
  *open += nopen;
  nopen = 0;
  for (i = 0; i < r->nnames; i++) {
    const struct name_change *change = &r->names[i];

    if (change->begin >= instant)
      continue;
    if (instant != NEVER && change->durable > instant &&
        (in_order ? nopen++ >= keep : rng_below (rng, 2)))
      continue;
    apply_name_change (list, change);
  }
}

/*----------------------------------------------------------------------
 * Writing the state */

#define MARK "user.nbdchain.image"

static bool
all_zero (const uint8_t *buf, size_t count)
{
  return count == 0 ||
    (buf[0] == 0 && memcmp (buf, buf + 1, count - 1) == 0);
}

static int
write_image (const struct image *image, const char *mark, const char *path)
{
  uint64_t at = 0, run;
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

  if (fd == -1 || ftruncate (fd, image->size) == -1)
    goto fail;
  if (mark && *mark && fsetxattr (fd, MARK, mark, strlen (mark), 0) == -1 &&
      errno != ENOTSUP)
    goto fail;
  while (at < image->size) {
    uint64_t n = 0;

    run = image->size - at < FS_BLOCK ? image->size - at : FS_BLOCK;
    if (all_zero (image->bytes + at, run)) {
      at += run;
      continue;
    }
    while (run > 0 && !all_zero (image->bytes + at + n, run)) {
      n += run;
      run = image->size - at - n < FS_BLOCK ? image->size - at - n : FS_BLOCK;
    }
    if (pwrite (fd, image->bytes + at, n, at) != (ssize_t) n)
      goto fail;
    at += n;
  }
  close (fd);
  return 0;

fail:
  perror (path);
  if (fd != -1)
    close (fd);
  return -1;
}

static void
remove_tree (int dirfd, const char *name)
{
  int fd;
  DIR *dir;
  struct dirent *entry;

  if (unlinkat (dirfd, name, 0) == 0 || errno == ENOENT)
    return;
  fd = openat (dirfd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  dir = fd == -1 ? NULL : fdopendir (fd);
  while (dir != NULL && (entry = readdir (dir)) != NULL)
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0)
      remove_tree (fd, entry->d_name);
  if (dir != NULL)
    closedir (dir);
  unlinkat (dirfd, name, AT_REMOVEDIR);
}

/* Remove from DIR all but what is in LIST. */
static void
remove_others (const char *dir, struct name_list *list)
{
  DIR *d = opendir (dir);
  struct dirent *entry;

  while (d != NULL && (entry = readdir (d)) != NULL)
    if (strcmp (entry->d_name, ".") != 0 &&
        strcmp (entry->d_name, "..") != 0 &&
        find_name (list, entry->d_name) == NULL)
      remove_tree (dirfd (d), entry->d_name);
  if (d != NULL)
    closedir (d);
}

void
replay_forget (struct replay *r)
{
  size_t i;

  for (i = 0; i < r->nwritten; i++)
    free (r->written[i].path);
  r->nwritten = 0;
}

/* Is PATH as it was written the last time? */
static bool
still_written (struct replay *r, const char *path, const struct file *file,
               bool replayed)
{
  struct written *w;
  size_t i;

  for (i = 0; i < r->nwritten; i++)
    if (strcmp (r->written[i].path, path) == 0)
      break;
  if (i == r->nwritten) {
    w = APPEND (r, written, nwritten, written_room);
    w->path = strdup (path);
    w->replayed = true;
  }
  w = &r->written[i];
  if (w->file == file && w->folded == file->folded && !replayed &&
      !w->replayed)
    return true;
  w->file = file;
  w->folded = file->folded;
  w->replayed = replayed;
  return false;
}

int64_t
replay_write (struct replay *r, uint64_t instant, struct rng *rng,
              const char *dir)
{
  struct name_list list = { NULL, 0, 0 };
  struct choice choice;
  char path[PATH_MAX];
  int64_t open = 0;
  size_t i;

  start_choice (r, &choice, instant, rng);
  names_at (r, instant, rng, &list, &open);
  remove_others (dir, &list);
  for (i = 0; i < list.n; i++) {
    snprintf (path, sizeof path, "%s/%s", dir, list.names[i].path);
    if (list.names[i].file == NULL)
      mkdir (path, 0755);
  }
  for (i = 0; i < list.n; i++) {
    struct file *file = list.names[i].file;
    const struct image *image;
    bool replayed;

    if (file == NULL)
      continue;
    image = image_at (r, file, instant, &choice, rng, &replayed);
    snprintf (path, sizeof path, "%s/%s", dir, list.names[i].path);
    if (still_written (r, list.names[i].path, file, replayed) &&
        access (path, F_OK) == 0)
      continue;
    unlink (path);
    if (write_image (image, file->mark, path) == -1)
      return -1;
  }
  free (list.names);
  snprintf (r->story, sizeof r->story, "instant %" PRIu64 ", %" PRIu64
            " changes not durable, kept: %s (%" PRIu64 ", offset %" PRIu64
            ")", instant, choice.n, way_names[choice.way], choice.pick,
            choice.offset);
  return open + choice.n;
}

/*----------------------------------------------------------------------
 * The beginning of a log */

static int
begin_file (struct log *log, int dirfd, const char *name, const char *rel,
            uint64_t ino)
{
  const size_t piece = 1 << 20;
  char names[PATH_MAX + 64] = "";
  const size_t length = strlen (rel) + 1;
  uint8_t *buf = malloc (piece);
  const int fd = openat (dirfd, name, O_RDONLY | O_CLOEXEC);
  const off_t size = fd == -1 ? -1 : lseek (fd, 0, SEEK_END);
  off_t at;
  struct log_record record = {
    .type = LOG_INIT_FILE, .ino = ino, .count = size
  };

  if (buf == NULL || size == -1) {
    perror (rel);
    free (buf);
    return -1;
  }
  record.seq = log_next (log);
  snprintf (names, PATH_MAX, "%s", rel);
  if (fgetxattr (fd, MARK, names + length, 63) == -1)
    names[length] = '\0';
  log_append (log, &record, names, length + strlen (names + length) + 1);
  for (at = 0; at < size; at += piece) {
    struct log_record data = {
      .type = LOG_INIT_DATA, .ino = ino, .offset = at
    };
    const ssize_t n = pread (fd, buf, piece, at);

    if (n == -1) {
      perror (rel);
      close (fd);
      free (buf);
      return -1;
    }
    if (n == 0 || all_zero (buf, n))
      continue;
    data.seq = log_next (log);
    log_append (log, &data, buf, n);
  }
  close (fd);
  free (buf);
  return 0;
}

static int
begin_dir (struct log *log, int parent, const char *name, const char *rel)
{
  int fd = openat (parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
  DIR *dir = fd == -1 ? NULL : fdopendir (fd);
  struct dirent *entry;
  struct stat st;
  struct log_record record = { .type = LOG_INIT_DIR };

  if (dir == NULL || fstat (fd, &st) == -1) {
    perror (name);
    return -1;
  }
  record.ino = st.st_ino;
  record.seq = log_next (log);
  log_append (log, &record, rel, strlen (rel) + 1);
  while (r == 0 && (entry = readdir (dir)) != NULL) {
    char path[PATH_MAX];

    if (strcmp (entry->d_name, ".") == 0 || strcmp (entry->d_name, "..") == 0)
      continue;
    if ((size_t) snprintf (path, sizeof path, "%s%s%s", rel,
                           rel[0] ? "/" : "", entry->d_name) >= sizeof path ||
        fstatat (fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == -1) {
      perror (entry->d_name);
      r = -1;
    }
    else if (S_ISDIR (st.st_mode))
      r = begin_dir (log, fd, entry->d_name, path);
    else if (S_ISREG (st.st_mode) || S_ISBLK (st.st_mode))
      r = begin_file (log, fd, entry->d_name, path, st.st_ino);
  }
  closedir (dir);
  return r;
}

int
replay_begin (const char *dir, const char *file)
{
  struct log log;
  int r;

  if (log_open (&log, file) == -1) {
    perror (file);
    return -1;
  }
  r = begin_dir (&log, AT_FDCWD, dir, "");
  log_close (&log);
  return r;
}

static void
show_record (const struct log_record *record, const uint8_t *payload,
             void *opaque)
{
  static const char *const names[] = {
    [LOG_INIT_DIR] = "initial directory", [LOG_INIT_FILE] = "initial file",
    [LOG_INIT_DATA] = "initial data", [LOG_WRITE] = "write",
    [LOG_PUNCH] = "punch", [LOG_ZERO_RANGE] = "zero range",
    [LOG_ALLOCATE] = "allocate", [LOG_TRUNCATE] = "truncate",
    [LOG_SYNC] = "sync", [LOG_SYNC_ALL] = "sync all", [LOG_END] = "end",
    [LOG_CREATE] = "create", [LOG_LINK] = "link", [LOG_RENAME] = "rename",
    [LOG_UNLINK] = "unlink", [LOG_MKDIR] = "mkdir", [LOG_RMDIR] = "rmdir",
    [LOG_MARK_START] = "client sent", [LOG_MARK_ACK] = "client reply",
  };
  const char *name = NULL;

  (void) opaque;
  if (record->type < sizeof names / sizeof names[0])
    name = names[record->type];
  printf ("%" PRIu64 " %s ino %" PRIu64 " offset %" PRIu64 " count %" PRIu64
          " ref %" PRIu64 " result %" PRIi64 "%s%s",
          record->seq, name ? name : "?", record->ino, record->offset,
          record->count, record->ref, record->result,
          record->flags & LOG_DSYNC && record->type == LOG_WRITE ?
          " dsync" : "",
          record->type == LOG_WRITE && record->payload >= SECTOR &&
          memcmp (payload, journal_magic, 4) == 0 ? " journal" : "");
  if (record->type == LOG_MARK_START) {
    static const char *const kinds[] = {
      "read", "write", "zero", "trim", "flush", "cache", "status"
    };
    struct log_mark mark;

    memcpy (&mark, payload, sizeof mark);
    printf (" #%" PRIu64 " %s %" PRIu64 "+%" PRIu64 " flags 0x%x", mark.id,
            kinds[mark.kind % 7], mark.offset, mark.count, mark.flags);
  }
  else if (record->payload > 0 && record->type != LOG_WRITE &&
           record->type != LOG_INIT_DATA)
    printf (" %s", (const char *) payload);
  putchar ('\n');
}

int
replay_show (const char *file)
{
  size_t size;
  void *map = log_map (file, &size, show_record, NULL);

  if (map == NULL)
    return -1;
  munmap (map, size ? size : 1);
  return 0;
}
