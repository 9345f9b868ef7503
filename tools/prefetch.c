/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The prefetch policy of an image on the command line and on paper: the same
 * options for "create" and "amend", the same words in "info". */

#include <config.h>

#include "prefetch.h"

#include <inttypes.h>
#include <string.h>

#include "report.h"
#include "tools.h"

static int
parse_bool (const char *what, const char *text, bool *value)
{
  if (strcmp (text, "on") != 0 && strcmp (text, "off") != 0) {
    nc_error ("%s: '%s' is neither 'on' nor 'off'", what, text);
    return -1;
  }
  *value = strcmp (text, "on") == 0;
  return 0;
}

static int
parse_number32 (const char *what, const char *text, uint32_t max,
                uint32_t *value)
{
  uint64_t number;

  if (parse_number (what, text, 0, max, &number) == -1)
    return -1;
  *value = (uint32_t) number;
  return 0;
}

static int
parse_unit (const char *text, uint32_t *value)
{
  uint64_t unit;

  if (parse_size ("--prefetch-unit", text, &unit) == -1)
    return -1;
  if (unit % 4096 != 0 || unit > NC_PREFETCH_UNIT_MAX) {
    nc_error ("--prefetch-unit: '%s' is not allowed: it must be a multiple of"
              " 4K, at most 64M (0: the default)", text);
    return -1;
  }
  *value = (uint32_t) unit;
  return 0;
}

int
prefetch_option (int c, const char *arg, struct nc_image_amendment *to)
{
  struct nc_prefetch_policy *p = &to->prefetch;

  switch (c) {
  case OPT_PREFETCH:
    to->fields |= NC_AMEND_WHOLE;
    return parse_bool ("--prefetch", arg, &p->whole);
  case OPT_PREFETCH_PROFILE:
    to->fields |= NC_AMEND_PROFILE;
    return parse_bool ("--prefetch-profile", arg, &p->profile);
  case OPT_PREFETCH_START_DELAY:
    to->fields |= NC_AMEND_START_DELAY;
    return parse_number32 ("--prefetch-start-delay", arg, NC_START_DELAY_MAX,
                           &p->start_delay);
  case OPT_PREFETCH_MAX_READ:
    to->fields |= NC_AMEND_MAX_READ;
    return parse_size ("--prefetch-max-read-throughput", arg, &p->max_read);
  case OPT_PREFETCH_MAX_WRITE:
    to->fields |= NC_AMEND_MAX_WRITE;
    return parse_size ("--prefetch-max-write-throughput", arg,
                       &p->max_write);
  case OPT_PREFETCH_MIN_READ:
    to->fields |= NC_AMEND_MIN_READ;
    return parse_size ("--prefetch-min-read-throughput", arg, &p->min_read);
  case OPT_PREFETCH_MIN_WRITE:
    to->fields |= NC_AMEND_MIN_WRITE;
    return parse_size ("--prefetch-min-write-throughput", arg,
                       &p->min_write);
  case OPT_PREFETCH_MAX_PAUSE:
    to->fields |= NC_AMEND_MAX_PAUSE;
    return parse_number32 ("--prefetch-max-pause", arg, NC_MAX_PAUSE_MAX,
                           &p->max_pause);
  case OPT_PREFETCH_UNIT:
    to->fields |= NC_AMEND_UNIT;
    return parse_unit (arg, &p->unit);
  default:
    return 1;
  }
}

static void
print_rate (const char *label, uint64_t rate)
{
  char text[SIZE_TEXT];

  if (rate == 0)
    return;
  print_label (2, label);
  printf ("%s/s\n", size_text (rate, text));
}

void
print_prefetch (const struct nc_image_info *info)
{
  const struct nc_prefetch_policy *p = &info->prefetch;
  char text[SIZE_TEXT];

  print_label (1, "prefetch");
  puts (p->whole && p->profile ? "the whole image, the profile first"
        : p->whole ? "the whole image"
        : p->profile ? "what the profile names" : "off");
  if (p->start_delay) {
    print_label (2, "delay");
    printf ("%" PRIu32 " s\n", p->start_delay);
  }
  print_rate ("max read", p->max_read);
  print_rate ("max write", p->max_write);
  print_rate ("min read", p->min_read);
  print_rate ("min write", p->min_write);
  if (p->max_pause) {
    print_label (2, "max pause");
    printf ("%" PRIu32 " ms\n", p->max_pause);
  }
  if (p->unit) {
    print_label (2, "unit");
    puts (size_text (p->unit, text));
  }
  if (info->profile_ranges) {
    print_label (1, "profile");
    printf ("%" PRIu64 " range%s, %s\n", info->profile_ranges,
            info->profile_ranges == 1 ? "" : "s",
            size_text (info->profile_bytes, text));
  }
}

json_t *
prefetch_json (const struct nc_prefetch_policy *p)
{
  return json_pack ("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                    "whole", p->whole,
                    "profile", p->profile,
                    "start_delay", (json_int_t) p->start_delay,
                    "max_read_throughput", (json_int_t) p->max_read,
                    "max_write_throughput", (json_int_t) p->max_write,
                    "min_read_throughput", (json_int_t) p->min_read,
                    "min_write_throughput", (json_int_t) p->min_write,
                    "max_pause", (json_int_t) p->max_pause,
                    "unit", (json_int_t) p->unit);
}
