/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Lines of words.  Whoever wrote the file may lie: each number is looked at
 * before it is used, and what a file can make us keep is bounded. */

#include <config.h>

#include "image/profile-text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "util/checked.h"
#include "util/report.h"

#define MAGIC "nbdchain-profile 1"
#define LINE_MAX 128            /* with newline and final NUL */

struct reader {
  FILE *fp;
  const char *name;
  unsigned long line;           /* number of the current one, from 1 */
  char buf[LINE_MAX];
  size_t room;                  /* for ranges */
};

void
nc_profile_text_free (struct nc_profile_text *text)
{
  free (text->ranges);
  *text = (struct nc_profile_text) { 0 };
}

__attribute__ ((__format__ (printf, 2, 3)))
static int
refuse (const struct reader *r, const char *fmt, ...)
{
  char why[200];
  va_list args;

  va_start (args, fmt);
  vsnprintf (why, sizeof why, fmt, args);
  va_end (args);
  nc_error ("%s: line %lu: %s", r->name, r->line, why);
  errno = EINVAL;
  return -1;
}

static bool
is_ascii (const char *text)
{
  while (*text && isascii ((unsigned char) *text))
    text++;
  return *text == '\0';
}

/* The next line that says something, without its newline.  Returns 1; 0 at
 * the end; or -1, reported. */
static int
next_line (struct reader *r)
{
  size_t len;

  while (fgets (r->buf, sizeof r->buf, r->fp)) {
    r->line++;
    len = strlen (r->buf);
    if (len == 0 || r->buf[len - 1] != '\n')
      return refuse (r, "longer than %d bytes, or without its end",
                     LINE_MAX - 2);
    r->buf[len - 1] = '\0';
    if (!is_ascii (r->buf))
      return refuse (r, "has what is no ASCII");
    if (*r->buf != '#' && *r->buf != '\0')
      return 1;
  }
  if (!ferror (r->fp))
    return 0;
  nc_error ("%s: %m", r->name);
  return -1;
}

/* Take a number, up to MAX, and the character AFTER it, from *P. */
static bool
take_number (const char **p, char after, uint64_t max, uint64_t *number)
{
  char *end;

  if (!isdigit ((unsigned char) **p))
    return false;
  errno = 0;
  *number = strtoull (*p, &end, 10);
  if (errno || *number > max || *end != after)
    return false;
  *p = end + 1;
  return true;
}

static bool
is_uuid (const char *text)
{
  if (strlen (text) != NC_UUID_TEXT - 1)
    return false;
  for (unsigned i = 0; text[i]; ++i)
    if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-'
        : !isxdigit ((unsigned char) text[i]))
      return false;
  return true;
}

/* A line of the head.  Returns 0 if it is none. */
static int
read_head (const struct reader *r, struct nc_profile_text *text)
{
  const char *p = r->buf;

  if (strncmp (p, "size ", 5) == 0) {
    p += 5;
    return text->size == 0 && take_number (&p, '\0', NC_OFFSET_MAX,
                                           &text->size) && text->size > 0 ? 1
      : refuse (r, "'size' needs the bytes of the disk, once");
  }
  if (strncmp (p, "base ", 5) == 0) {
    if (*text->base || !is_uuid (p + 5))
      return refuse (r, "'base' needs a UUID, once");
    memcpy (text->base, p + 5, NC_UUID_TEXT);
    return 1;
  }
  return 0;
}

static int
add_range (struct reader *r, struct nc_profile_text *text,
           const struct nc_profile_range *range)
{
  if (text->n == NC_PROFILE_TEXT_RANGES)
    return refuse (r, "more than %d ranges", NC_PROFILE_TEXT_RANGES);
  if (text->n == r->room) {
    const size_t room = r->room ? r->room * 2 : 256;
    void *ranges = realloc (text->ranges, room * sizeof *range);

    if (ranges == NULL) {
      nc_error ("%s: %m", r->name);
      return -1;
    }
    text->ranges = ranges;
    r->room = room;
  }
  text->ranges[text->n++] = *range;
  return 0;
}

static int
read_range (struct reader *r, struct nc_profile_text *text)
{
  struct nc_profile_range range;
  const char *p = r->buf;
  uint64_t time;

  if (!take_number (&p, ' ', UINT32_MAX, &time) ||
      !take_number (&p, ' ', UINT64_MAX, &range.offset) ||
      !take_number (&p, '\0', UINT64_MAX, &range.count))
    return refuse (r, "three numbers are needed, milliseconds, offset and "
                   "bytes, with one space between and nothing after");
  if (text->size == 0)
    return refuse (r, "'size', the bytes of the disk, must come before");
  if (range.count == 0 ||
      !nc_range_within (range.offset, range.count, text->size))
    return refuse (r, "%" PRIu64 " bytes at %" PRIu64 " are not inside a "
                   "disk of %" PRIu64, range.count, range.offset, text->size);
  range.time = (uint32_t) time;
  return add_range (r, text, &range);
}

int
nc_profile_text_read (FILE *fp, const char *name,
                      struct nc_profile_text *text)
{
  struct reader r = { .fp = fp, .name = name };
  int got = fgets (r.buf, sizeof r.buf, fp) != NULL, head;

  *text = (struct nc_profile_text) { 0 };
  r.line = 1;
  if (!got || strcmp (r.buf, MAGIC "\n") != 0)
    return refuse (&r, "not '" MAGIC "': this is no profile, or one of a "
                   "newer nbdchain");
  while ((got = next_line (&r)) == 1) {
    head = text->n == 0 ? read_head (&r, text) : 0;
    if (head == -1 || (head == 0 && read_range (&r, text) == -1))
      return -1;
  }
  if (got == 0 && text->size == 0)
    return refuse (&r, "'size', the bytes of the disk, is missing");
  return got;
}

void
nc_profile_text_write (FILE *fp, const struct nc_profile_text *text)
{
  fprintf (fp, MAGIC "\nsize %" PRIu64 "\n", text->size);
  if (*text->base)
    fprintf (fp, "base %s\n", text->base);
  fputs ("# milliseconds, offset, bytes\n", fp);
  for (size_t i = 0; i < text->n; ++i)
    fprintf (fp, "%" PRIu32 " %" PRIu64 " %" PRIu64 "\n",
             text->ranges[i].time, text->ranges[i].offset,
             text->ranges[i].count);
}
