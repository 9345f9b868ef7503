/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Options for the prefetch policy of an image, and how it is shown. */
#ifndef NBDCHAIN_PREFETCH_H
#define NBDCHAIN_PREFETCH_H

#include <getopt.h>

#include <jansson.h>

#include "image/image.h"

/* What getopt_long returns for them: no subcommand has others like these. */
enum {
  OPT_PREFETCH = 640, OPT_PREFETCH_PROFILE, OPT_PREFETCH_START_DELAY,
  OPT_PREFETCH_MAX_READ, OPT_PREFETCH_MAX_WRITE, OPT_PREFETCH_MIN_READ,
  OPT_PREFETCH_MIN_WRITE, OPT_PREFETCH_MAX_PAUSE, OPT_PREFETCH_UNIT,
  OPT_PREFETCH_SLOTS, OPT_PREFETCH_READ_TIME, OPT_PREFETCH_WRITE_TIME,
  OPT_PREFETCH_ALPHA,
};

#define PREFETCH_OPTION(name, value) \
  { "prefetch" name, required_argument, NULL, value }
#define PREFETCH_OPTIONS \
  PREFETCH_OPTION ("", OPT_PREFETCH), \
  PREFETCH_OPTION ("-profile", OPT_PREFETCH_PROFILE), \
  PREFETCH_OPTION ("-start-delay", OPT_PREFETCH_START_DELAY), \
  PREFETCH_OPTION ("-max-read-throughput", OPT_PREFETCH_MAX_READ), \
  PREFETCH_OPTION ("-max-write-throughput", OPT_PREFETCH_MAX_WRITE), \
  PREFETCH_OPTION ("-min-read-throughput", OPT_PREFETCH_MIN_READ), \
  PREFETCH_OPTION ("-min-write-throughput", OPT_PREFETCH_MIN_WRITE), \
  PREFETCH_OPTION ("-throttle-time", OPT_PREFETCH_MAX_PAUSE), \
  { "bytes-per-prefetch", required_argument, NULL, OPT_PREFETCH_UNIT }, \
  { "num-prefetch-slots", required_argument, NULL, OPT_PREFETCH_SLOTS }, \
  PREFETCH_OPTION ("-read-throughput-measure-time", \
                   OPT_PREFETCH_READ_TIME), \
  PREFETCH_OPTION ("-write-throughput-measure-time", \
                   OPT_PREFETCH_WRITE_TIME), \
  PREFETCH_OPTION ("-perf-calc-alpha", OPT_PREFETCH_ALPHA)

#define PREFETCH_HELP \
  "      --prefetch=on|off\n" \
  "                         prefetch the whole image (default: off)\n" \
  "      --prefetch-profile=on|off\n" \
  "                         prefetch what the profile names, first; if\n" \
  "                         it is not given, as --prefetch says\n" \
  "      --prefetch-start-delay=SECONDS\n" \
  "                         wait that long after the image was opened\n" \
  "      --prefetch-max-read-throughput=RATE\n" \
  "                         bytes a second to read at most; 0: no limit\n" \
  "      --prefetch-max-write-throughput=RATE\n" \
  "                         the same for writing\n" \
  "      --prefetch-min-read-throughput=RATE\n" \
  "                         pause when reading becomes slower; 0: never\n" \
  "      --prefetch-min-write-throughput=RATE\n" \
  "                         the same for writing\n" \
  "      --prefetch-throttle-time=MILLISECONDS\n" \
  "                         the longest pause; 0: 30000\n" \
  "      --bytes-per-prefetch=SIZE\n" \
  "                         bytes to prefetch at a time; 0: 512K\n" \
  "      --num-prefetch-slots=N\n" \
  "                         reads in flight at most; 0: as many as help\n" \
  "      --prefetch-read-throughput-measure-time=MILLISECONDS\n" \
  "                         how long reading is measured; 0: 100\n" \
  "      --prefetch-write-throughput-measure-time=MILLISECONDS\n" \
  "                         the same for writing\n" \
  "      --prefetch-perf-calc-alpha=PERCENT\n" \
  "                         weight of earlier measurements; 0: 80\n"

/* Take option C with ARG into *TO.  Returns 0; 1 if C is none of these; -1,
 * reported, if ARG is not allowed. */
extern int prefetch_option (int c, const char *arg,
                            struct nc_image_amendment *to)
  __attribute__ ((__nonnull__ (3)));

/* After the last option: what --prefetch says goes for the profile, too, if
 * nothing else was said of that. */
extern void prefetch_options_end (struct nc_image_amendment *to)
  __attribute__ ((__nonnull__ (1)));

/* Policy and profile, as lines of "info". */
extern void print_prefetch (const struct nc_image_info *info)
  __attribute__ ((__nonnull__ (1)));

extern json_t *prefetch_json (const struct nc_prefetch_policy *policy)
  __attribute__ ((__nonnull__ (1)));

#endif /* NBDCHAIN_PREFETCH_H */
