/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The nbdkit filter that prefetches: its options, and what it sees of the
 * guest's requests, which is that there is one, and which part of the disk a
 * read touches.  It changes none of them.
 *
 * The clients of a layer's export are no guests: what they read is not the
 * disk.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <nbdkit-filter.h>

#include "chain/activity.h"
#include "chain/chain.h"
#include "control/prefetch.h"
#include "copyread/recorder.h"
#include "image/image.h"
#include "job/job.h"
#include "job/prefetch.h"
#include "serve/server.h"
#include "util/report.h"
#include "util/scope.h"

#define JOB_ID "prefetch"

enum whole { WHOLE_ON, WHOLE_OFF, WHOLE_IMAGE };

static struct {
  enum whole whole;
  int profile;                  /* use it; -1: not given */
  int record;
  struct nc_image_amendment amendment;
} config = { .profile = -1 };

static struct nc_prefetch_policy policy;        /* since get_ready */
static struct nc_control_prefetch state;

static void
prefetch_unload (void)
{
  nc_prefetch_free (state.prefetch);
  nc_profile_free (state.profile);
}

/* Options. */

/* What nbdkit takes as a boolean: it would not say what else is allowed.
 * Returns -1, not reported, for any other word. */
static int
parse_switch (const char *value)
{
  static const char *const words[] = {
    "off", "on", "false", "true", "no", "yes", "0", "1", "f", "t", "n", "y",
  };

  for (size_t i = 0; i < sizeof words / sizeof words[0]; ++i)
    if (strcasecmp (value, words[i]) == 0)
      return i % 2;
  return -1;
}

static int
config_whole (const char *value)
{
  const int on = parse_switch (value);

  if (on == -1 && strcmp (value, "image") != 0) {
    nbdkit_error ("prefetch=%s: must be on, off or image", value);
    return -1;
  }
  config.whole = on == -1 ? WHOLE_IMAGE : on ? WHOLE_ON : WHOLE_OFF;
  return 0;
}

static int
config_switch (const char *key, const char *value, int *to)
{
  *to = parse_switch (value);
  if (*to == -1)
    nbdkit_error ("%s=%s: must be true or false", key, value);
  return *to == -1 ? -1 : 0;
}

/* What can be said of one field without the others, and the image's. */
static int
check_field (const struct nc_prefetch_field *field, const char *value,
             uint64_t n)
{
  struct nc_prefetch_policy one = { 0 };
  struct nc_image_amendment alone = { 0 };
  NC_FREE char *whose = NULL;

  if (asprintf (&whose, "%s=%s", field->name, value) == -1) {
    nbdkit_error ("%s: %m", field->name);
    return -1;
  }
  nc_image_amendment_set (&alone, field->flag, n);
  nc_prefetch_policy_amend (&one, &alone);
  return nc_prefetch_policy_check (&one, whose);
}

static int
config_field (const struct nc_prefetch_field *field, const char *value)
{
  uint32_t number;
  int64_t n;

  if (field->unit == NC_BYTES || field->unit == NC_RATE)
    n = nbdkit_parse_size (value);
  else
    n = nbdkit_parse_uint32_t (field->name, value, &number) == -1 ? -1
      : (int64_t) number;
  if (n == -1)
    return -1;
  if ((uint64_t) n > field->max) {
    nbdkit_error ("%s=%s: must be at most %" PRIu64, field->name, value,
                  field->max);
    return -1;
  }
  if (check_field (field, value, (uint64_t) n) == -1)
    return -1;
  nc_image_amendment_set (&config.amendment, field->flag, (uint64_t) n);
  return 0;
}

static int
prefetch_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
                 const char *key, const char *value)
{
  if (strcmp (key, "prefetch") == 0)
    return config_whole (value);
  if (strcmp (key, "prefetch-profile") == 0)
    return config_switch (key, value, &config.profile);
  if (strcmp (key, "prefetch-record") == 0)
    return config_switch (key, value, &config.record);
  for (unsigned i = 0; i < NC_PREFETCH_FIELDS; ++i)
    if (strcmp (key, nc_prefetch_fields[i].name) == 0)
      return config_field (&nc_prefetch_fields[i], value);
  return next (nxdata, key, value);
}

#define prefetch_config_help \
  "prefetch=on|off|image      Make the whole disk local; image: if the image\n" \
  "                           says so (default: on).\n" \
  "prefetch-profile=<BOOL>    First what the profile names (default: true).\n" \
  "prefetch-record=<BOOL>     Record a profile until the end (default: false).\n" \
  "Each of the following has its default in the image:\n" \
  "prefetch-start-delay=<SECONDS>\n" \
  "                           Wait before the disk is read (not the profile).\n" \
  "num-prefetch-slots=<N>     Reads in flight at most; 0: as many as help.\n" \
  "bytes-per-prefetch=<SIZE>  Read so much at a time; 0: 512K.\n" \
  "prefetch-max-read-throughput=<SIZE>, prefetch-max-write-throughput=<SIZE>\n" \
  "                           Bytes a second at most; 0: no limit.\n" \
  "prefetch-min-read-throughput=<SIZE>, prefetch-min-write-throughput=<SIZE>\n" \
  "                           Pause when it gets slower; 0: never.\n" \
  "prefetch-throttle-time=<MILLISECONDS>\n" \
  "                           The longest pause; 0: 30000.\n" \
  "prefetch-read-throughput-measure-time=<MILLISECONDS>,\n" \
  "prefetch-write-throughput-measure-time=<MILLISECONDS>\n" \
  "                           How long a rate is measured; 0: 100.\n" \
  "prefetch-perf-calc-alpha=<PERCENT>\n" \
  "                           Weight of earlier measurements; 0: 80.\n"

/* Start and stop. */

/* What the image says, and then the options. */
static int
find_policy (struct nc_chain *chain)
{
  struct nc_image_info info = { 0 };
  int r = nc_chain_layer_info (chain, 0, &info);

  policy = info.prefetch;
  nc_image_info_free (&info);
  if (r == -1)
    return -1;
  if (config.whole != WHOLE_IMAGE) {
    policy.whole = config.whole == WHOLE_ON;
    policy.profile = true;
  }
  if (config.profile != -1)
    policy.profile = config.profile;
  nc_prefetch_policy_amend (&policy, &config.amendment);
  return nc_prefetch_policy_check (&policy, "prefetch filter");
}

static int
start_job (struct nc_chain *chain, size_t n)
{
  static const struct nc_job_options opts = { .device = "disk" };
  char why[NC_JOB_TEXT];

  if (!nc_chain_is_writable (chain) || nc_chain_n_layers (chain) == 1 ||
      (!policy.whole && (!policy.profile || n == 0))) {
    nc_debug ("prefetch: nothing to do");
    return 0;
  }
  return nc_prefetch_start (state.prefetch, nc_server_jobs (), JOB_ID, chain,
                            &opts, why);
}

static int
start (void *opaque __attribute__ ((__unused__)), struct nc_chain *chain)
{
  NC_FREE struct nc_profile_range *ranges = NULL;
  size_t n;

  state.chain = chain;
  if (nc_chain_profile_read (chain, &ranges, &n) == -1)
    return -1;
  state.prefetch = nc_prefetch_new (&policy, ranges, n);
  state.profile = nc_profile_new (nc_chain_size (chain), 4096);
  if (state.prefetch == NULL || state.profile == NULL ||
      (policy.profile && n > 0 &&
       nc_profile_compare (state.profile, ranges, n) == -1))
    return -1;
  if (config.record)
    nc_profile_start (state.profile);
  if (nc_server_control () &&
      nc_control_add_prefetch (nc_server_control (), &state) == -1)
    return -1;
  return start_job (chain, n);
}

/* What was recorded would be lost. */
static void
stop (void *opaque __attribute__ ((__unused__)))
{
  NC_FREE struct nc_profile_range *ranges = NULL;
  size_t n;

  if (nc_profile_stop (state.profile, &ranges, &n) == 0)
    nc_chain_profile_write (state.chain, ranges, n);
}

static void
end (void *opaque __attribute__ ((__unused__)))
{
}

/* The last moment at which an error keeps the server from serving. */
static int
prefetch_get_ready (int thread_model __attribute__ ((__unused__)))
{
  static const struct nc_part part = {
    .name = "prefetch", .start = start, .stop = stop, .end = end,
  };

  if (nc_server_add (&part) == -1)
    return -1;
  return find_policy (nc_server_chain ());
}

/* Requests. */

static char guest_handle;       /* its address marks a guest */

static void *
prefetch_open (nbdkit_next_open *next, nbdkit_context *context, int readonly,
               const char *exportname, int is_tls __attribute__ ((__unused__)))
{
  if (next (context, readonly, exportname) == -1)
    return NULL;
  if (strcmp (exportname, "") == 0 || strcmp (exportname, "disk") == 0)
    return &guest_handle;
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static void
note (void *handle)
{
  if (handle == &guest_handle)
    nc_guest_note (nc_prefetch_guest (state.prefetch));
}

static int
prefetch_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count,
                uint64_t offset, uint32_t flags, int *err)
{
  note (handle);
  if (handle == &guest_handle)
    nc_profile_touch (state.profile, offset, count);
  return next->pread (next, buf, count, offset, flags, err);
}

static int
prefetch_pwrite (nbdkit_next *next, void *handle, const void *buf,
                 uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  note (handle);
  return next->pwrite (next, buf, count, offset, flags, err);
}

static int
prefetch_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  note (handle);
  return next->flush (next, flags, err);
}

static int
prefetch_trim (nbdkit_next *next, void *handle, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  note (handle);
  return next->trim (next, count, offset, flags, err);
}

static int
prefetch_zero (nbdkit_next *next, void *handle, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  note (handle);
  return next->zero (next, count, offset, flags, err);
}

static struct nbdkit_filter filter = {
  .name = "prefetch",
  .longname = "nbdchain prefetch",
  .description = "Make the disk local while nobody needs the source.",
  .unload = prefetch_unload,
  .config = prefetch_config,
  .config_help = prefetch_config_help,
  .get_ready = prefetch_get_ready,
  .open = prefetch_open,
  .pread = prefetch_pread,
  .pwrite = prefetch_pwrite,
  .flush = prefetch_flush,
  .trim = prefetch_trim,
  .zero = prefetch_zero,
};

NBDKIT_REGISTER_FILTER (filter)
