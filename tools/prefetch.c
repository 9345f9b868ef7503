/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The prefetch policy of an image on the command line and on paper: the same
 * options for "create" and "amend", the same words in "info". */

#include <config.h>

#include "prefetch.h"

#include <inttypes.h>
#include <string.h>

#include "tools.h"
#include "util/report.h"

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

  if (parse_size ("--bytes-per-prefetch", text, &unit) == -1)
    return -1;
  if (unit % 4096 != 0 || unit > NC_PREFETCH_UNIT_MAX) {
    nc_error ("--bytes-per-prefetch: '%s' is not allowed: it must be a "
              "multiple of 4K, at most 64M (0: the default)", text);
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
    return parse_number32 ("--prefetch-throttle-time", arg, NC_MAX_PAUSE_MAX,
                           &p->max_pause);
  case OPT_PREFETCH_UNIT:
    to->fields |= NC_AMEND_UNIT;
    return parse_unit (arg, &p->unit);
  case OPT_PREFETCH_SLOTS:
    to->fields |= NC_AMEND_SLOTS;
    return parse_number32 ("--num-prefetch-slots", arg,
                           NC_PREFETCH_SLOTS_MAX, &p->slots);
  case OPT_PREFETCH_READ_TIME:
    to->fields |= NC_AMEND_READ_TIME;
    return parse_number32 ("--prefetch-read-throughput-measure-time", arg,
                           NC_MEASURE_TIME_MAX, &p->read_time);
  case OPT_PREFETCH_WRITE_TIME:
    to->fields |= NC_AMEND_WRITE_TIME;
    return parse_number32 ("--prefetch-write-throughput-measure-time", arg,
                           NC_MEASURE_TIME_MAX, &p->write_time);
  case OPT_PREFETCH_ALPHA:
    to->fields |= NC_AMEND_ALPHA;
    return parse_number32 ("--prefetch-perf-calc-alpha", arg, NC_ALPHA_MAX,
                           &p->alpha);
  default:
    return 1;
  }
}

void
prefetch_options_end (struct nc_image_amendment *to)
{
  if ((to->fields & (NC_AMEND_WHOLE | NC_AMEND_PROFILE)) == NC_AMEND_WHOLE) {
    to->fields |= NC_AMEND_PROFILE;
    to->prefetch.profile = to->prefetch.whole;
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

static void
print_number (const char *label, uint32_t number, const char *of)
{
  if (number == 0)
    return;
  print_label (2, label);
  printf ("%" PRIu32 "%s\n", number, of);
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
  print_number ("delay", p->start_delay, " s");
  print_rate ("max read", p->max_read);
  print_rate ("max write", p->max_write);
  print_rate ("min read", p->min_read);
  print_rate ("min write", p->min_write);
  print_number ("throttle", p->max_pause, " ms");
  if (p->unit) {
    print_label (2, "unit");
    puts (size_text (p->unit, text));
  }
  print_number ("slots", p->slots, "");
  print_number ("measure", p->read_time, " ms of reading");
  print_number ("measure", p->write_time, " ms of writing");
  print_number ("alpha", p->alpha, " %");
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
  return json_pack ("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I,"
                    " s:I}",
                    "whole", p->whole,
                    "profile", p->profile,
                    "start_delay", (json_int_t) p->start_delay,
                    "max_read_throughput", (json_int_t) p->max_read,
                    "max_write_throughput", (json_int_t) p->max_write,
                    "min_read_throughput", (json_int_t) p->min_read,
                    "min_write_throughput", (json_int_t) p->min_write,
                    "throttle_time", (json_int_t) p->max_pause,
                    "bytes_per_prefetch", (json_int_t) p->unit,
                    "num_slots", (json_int_t) p->slots,
                    "read_measure_time", (json_int_t) p->read_time,
                    "write_measure_time", (json_int_t) p->write_time,
                    "perf_calc_alpha", (json_int_t) p->alpha);
}
