/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* One rule for what may reach a terminal or a log as it is, so that a name
 * in a hostile image can neither steer the one nor forge a line of the
 * other. */

#include <config.h>

#include "util/text.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/scope.h"

/* The length of the valid UTF-8 character at S, or 0, and its code. */
static size_t
decode_utf8 (const unsigned char *s, uint32_t *code)
{
  static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
  size_t len, i;

  if (s[0] < 0x80) {
    *code = s[0];
    return 1;
  }
  len = s[0] >= 0xf5 ? 0 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 :
    s[0] >= 0xc2 ? 2 : 0;
  if (len == 0)
    return 0;
  *code = s[0] & (0xff >> (len + 1));
  for (i = 1; i < len; ++i) {
    if ((s[i] & 0xc0) != 0x80)
      return 0;
    *code = *code << 6 | (s[i] & 0x3f);
  }
  if (*code < least[len] || *code > 0x10ffff ||
      (*code >= 0xd800 && *code <= 0xdfff))
    return 0;
  return len;
}

/* Characters that would act on a terminal instead of being shown, or that
 * end or reorder a line. */
static bool
is_unprintable (uint32_t code)
{
  return code < 0x20 || (code >= 0x7f && code < 0xa0) ||
    code == 0x61c || (code >= 0x200b && code <= 0x200f) ||
    (code >= 0x2028 && code <= 0x202e) ||
    (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

size_t
nc_text_next (const char *text, bool *printable)
{
  uint32_t code = 0;
  const size_t len = decode_utf8 ((const unsigned char *) text, &code);

  *printable = len > 0 && !is_unprintable (code);
  return len > 0 ? len : 1;
}

char *
nc_text_quote (const char *text)
{
  const unsigned char *s = (const unsigned char *) text;
  char *out = malloc (strlen (text) * 4 + 3), *p = out;
  bool printable;
  size_t len, i;

  if (out == NULL)
    return NULL;
  *p++ = '"';
  while (*s) {
    len = nc_text_next ((const char *) s, &printable);
    if (*s == '"' || *s == '\\') {
      *p++ = '\\';
      *p++ = *s++;
    }
    else if (*s == '\n') {
      *p++ = '\\';
      *p++ = 'n';
      s++;
    }
    else if (!printable) {
      for (i = 0; i < len; ++i)
        p += sprintf (p, "\\x%02x", *s++);
    }
    else {
      memcpy (p, s, len);
      p += len;
      s += len;
    }
  }
  *p++ = '"';
  *p = '\0';
  return out;
}

char *
nc_text_format (const char *fmt, va_list args)
{
  NC_FREE char *text = NULL;
  const char *s;
  char *out, *p;

  if (vasprintf (&text, fmt, args) == -1) {
    text = NULL;
    return NULL;
  }
  p = out = malloc (strlen (text) * 4 + 1);
  for (s = text; out && *s;) {
    bool printable;
    size_t len = nc_text_next (s, &printable);

    for (; len > 0; --len, ++s)
      if (printable)
        *p++ = *s;
      else
        p += sprintf (p, "\\x%02x", (unsigned char) *s);
  }
  if (out)
    *p = '\0';
  return out;
}
