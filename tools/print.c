/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* How things are shown: sizes, text that may be hostile, columns, JSON.  So
 * that every subcommand looks alike. */

#include <config.h>

#include "tools.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "control/command.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"

/* Columns of a label with its colon and the space behind. */
#define LABEL_WIDTH 14

const char *
size_text (uint64_t size, char buf[SIZE_TEXT])
{
  static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB",
                                       "EiB" };
  size_t u = 0;
  uint64_t unit = 1024;

  if (size < 1024) {
    snprintf (buf, SIZE_TEXT, "%" PRIu64 " %s", size,
              size == 1 ? "byte" : "bytes");
    return buf;
  }
  while (size / unit >= 1024) {
    unit *= 1024;
    u++;
  }
  if (size % unit == 0)
    snprintf (buf, SIZE_TEXT, "%" PRIu64 " %s", size / unit, units[u]);
  else
    /* Cut, not rounded: 1023.99 MiB must not become "1024.0 MiB". */
    snprintf (buf, SIZE_TEXT, "%" PRIu64 ".%u %s", size / unit,
              (unsigned) (size % unit / (unit / 1024) * 10 / 1024),
              units[u]);
  return buf;
}

const char *
percent_text (uint64_t part, uint64_t whole, char buf[PERCENT_TEXT])
{
  double percent = whole > 0 ? 100.0 * (double) part / (double) whole : 0;

  if (part == 0 || whole == 0)
    strcpy (buf, "0 %");
  else if (part == whole)
    strcpy (buf, "100 %");
  else if (percent < 0.1)
    strcpy (buf, "< 0.1 %");
  else if (percent > 99.9)
    strcpy (buf, "> 99.9 %");
  else
    snprintf (buf, PERCENT_TEXT, "%.1f %%", percent);
  return buf;
}

void
print_text (FILE *fp, const char *text)
{
  while (*text != '\0') {
    bool printable;
    size_t len = nc_text_next (text, &printable);

    for (; len > 0; len--, text++)
      if (printable)
        putc (*text, fp);
      else
        fprintf (fp, "\\x%02x", (unsigned char) *text);
  }
}

int
text_width (const char *text)
{
  int width = 0;

  while (*text != '\0') {
    bool printable;
    size_t len = nc_text_next (text, &printable);

    width += printable ? 1 : 4 * (int) len;
    text += len;
  }
  return width;
}

void
print_padded (const char *text, int width)
{
  int used = text_width (text);

  print_text (stdout, text);
  printf ("%*s", width > used ? width - used : 0, "");
}

void
print_label (int indent, const char *label)
{
  int width = LABEL_WIDTH - 2 * indent - (int) strlen (label) - 1;

  printf ("%*s%s:%*s", 2 * indent, "", label, width > 1 ? width : 1, "");
}

int
terminal_width (int fd)
{
  const char *columns = getenv ("COLUMNS");
  struct winsize ws;
  int width;

  if (columns != NULL && (width = atoi (columns)) > 0)
    return width;
  if (ioctl (fd, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0)
    return ws.ws_col;
  return 80;
}

bool
terminal_colour (void)
{
  const char *no_color = getenv ("NO_COLOR");
  const char *term = getenv ("TERM");

  return isatty (STDOUT_FILENO)
    && (no_color == NULL || *no_color == '\0')
    && (term == NULL || strcmp (term, "dumb") != 0);
}

json_t *
json_text (const char *text)
{
  return nc_json_text (text);
}

int
print_json (json_t *root)
{
  int r;

  if (root == NULL) {
    nc_error ("out of memory for the JSON output");
    return EXIT_FAILED;
  }
  /* ASCII: U+009B, for one, would steer a terminal. */
  r = json_dumpf (root, stdout, JSON_INDENT (2) | JSON_ENSURE_ASCII);
  json_decref (root);
  if (r == -1 || putchar ('\n') == EOF)
    return EXIT_FAILED;         /* main sees why when it closes stdout */
  return EXIT_DONE;
}
