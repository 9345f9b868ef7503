/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Brackets are counted, outside of strings; whether what is between them is
 * JSON, the parser says later.  As in QEMU, strings may be in single quotes,
 * and \' is an apostrophe: what the parser gets is JSON. */

#include <config.h>

#include "control/frame.h"

#include <stdlib.h>

void
nc_frame_reset (struct nc_frame *frame)
{
  frame->len = 0;
  frame->depth = 0;
  frame->quote = '\0';
  frame->escaped = frame->bad = false;
}

void
nc_frame_free (struct nc_frame *frame)
{
  free (frame->text);
  *frame = (struct nc_frame) { 0 };
}

static enum nc_frame_result
append (struct nc_frame *frame, char c)
{
  if (frame->len == NC_FRAME_MAX)
    return NC_FRAME_TOO_LARGE;
  if (frame->len == frame->size) {
    const size_t size = frame->size ? frame->size * 2 : 256;
    char *text = realloc (frame->text, size);

    if (text == NULL)
      return NC_FRAME_NO_MEMORY;
    frame->text = text;
    frame->size = size;
  }
  frame->text[frame->len++] = c;
  return NC_FRAME_MORE;
}

/* C is in a string, or ends it. */
static enum nc_frame_result
feed_string (struct nc_frame *frame, char c)
{
  const bool escaped = frame->escaped;

  frame->escaped = !escaped && c == '\\';
  if (frame->escaped)
    return NC_FRAME_MORE;       /* what follows says whether it stays */
  if (!escaped && c == frame->quote) {
    frame->quote = '\0';
    return append (frame, '"');
  }
  if ((escaped ? c != '\'' : c == '"') &&
      append (frame, '\\') == NC_FRAME_NO_MEMORY)
    return NC_FRAME_NO_MEMORY;
  return append (frame, c);
}

/* Between texts, or in a line that is none. */
static enum nc_frame_result
feed_outside (struct nc_frame *frame, char c)
{
  if (c == '\n') {
    const bool bad = frame->bad;

    nc_frame_reset (frame);
    return bad ? NC_FRAME_BAD : NC_FRAME_MORE;
  }
  if (c != ' ' && c != '\t' && c != '\r')
    frame->bad = true;
  return NC_FRAME_MORE;
}

enum nc_frame_result
nc_frame_feed (struct nc_frame *frame, char c)
{
  const bool opens = c == '{' || c == '[';
  enum nc_frame_result r;

  if (frame->bad || (frame->depth == 0 && !opens))
    return feed_outside (frame, c);
  /* No string has the end of a line in it. */
  if (frame->quote && c == '\n') {
    nc_frame_reset (frame);
    return NC_FRAME_BAD;
  }
  if (frame->quote)
    return feed_string (frame, c);
  if (c == '"' || c == '\'')
    frame->quote = c;
  r = append (frame, frame->quote ? '"' : c);
  if (r != NC_FRAME_MORE || frame->quote)
    return r;
  if (opens && ++frame->depth > NC_FRAME_DEPTH)
    return NC_FRAME_TOO_LARGE;
  else if ((c == '}' || c == ']') && --frame->depth == 0)
    return NC_FRAME_TEXT;
  return NC_FRAME_MORE;
}
