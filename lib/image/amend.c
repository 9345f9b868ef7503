/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What an image says of prefetching: policy and profile.  Advice, so changing
 * it changes nothing that anybody reads. */

#include <config.h>

#include "chain/internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "dev/dev.h"
#include "format/format.h"
#include "format/fvd/fvd.h"
#include "image/image.h"
#include "util/report.h"
#include "util/scope.h"

const struct nc_prefetch_field nc_prefetch_fields[NC_PREFETCH_FIELDS] = {
  { "prefetch-start-delay", NC_AMEND_START_DELAY, NC_SECONDS,
    NC_START_DELAY_MAX },
  { "num-prefetch-slots", NC_AMEND_SLOTS, NC_NUMBER, NC_PREFETCH_SLOTS_MAX },
  { "bytes-per-prefetch", NC_AMEND_UNIT, NC_BYTES, NC_PREFETCH_UNIT_MAX },
  { "prefetch-read-throughput-measure-time", NC_AMEND_READ_TIME,
    NC_MILLISECONDS, NC_MEASURE_TIME_MAX },
  { "prefetch-write-throughput-measure-time", NC_AMEND_WRITE_TIME,
    NC_MILLISECONDS, NC_MEASURE_TIME_MAX },
  { "prefetch-perf-calc-alpha", NC_AMEND_ALPHA, NC_NUMBER, NC_ALPHA_MAX },
  { "prefetch-min-read-throughput", NC_AMEND_MIN_READ, NC_RATE, INT64_MAX },
  { "prefetch-min-write-throughput", NC_AMEND_MIN_WRITE, NC_RATE, INT64_MAX },
  { "prefetch-max-read-throughput", NC_AMEND_MAX_READ, NC_RATE, INT64_MAX },
  { "prefetch-max-write-throughput", NC_AMEND_MAX_WRITE, NC_RATE, INT64_MAX },
  { "prefetch-throttle-time", NC_AMEND_MAX_PAUSE, NC_MILLISECONDS,
    NC_MAX_PAUSE_MAX },
};

/* The field FLAG: one of the two is not NULL. */
struct field {
  uint32_t *number;
  uint64_t *rate;
};

static struct field
field_of (struct nc_prefetch_policy *p, unsigned flag)
{
  switch (flag) {
  case NC_AMEND_START_DELAY:
    return (struct field) { .number = &p->start_delay };
  case NC_AMEND_SLOTS:
    return (struct field) { .number = &p->slots };
  case NC_AMEND_UNIT:
    return (struct field) { .number = &p->unit };
  case NC_AMEND_READ_TIME:
    return (struct field) { .number = &p->read_time };
  case NC_AMEND_WRITE_TIME:
    return (struct field) { .number = &p->write_time };
  case NC_AMEND_ALPHA:
    return (struct field) { .number = &p->alpha };
  case NC_AMEND_MIN_READ:
    return (struct field) { .rate = &p->min_read };
  case NC_AMEND_MIN_WRITE:
    return (struct field) { .rate = &p->min_write };
  case NC_AMEND_MAX_READ:
    return (struct field) { .rate = &p->max_read };
  case NC_AMEND_MAX_WRITE:
    return (struct field) { .rate = &p->max_write };
  default:
    return (struct field) { .number = &p->max_pause };
  }
}

uint64_t
nc_prefetch_policy_get (const struct nc_prefetch_policy *policy,
                        unsigned flag)
{
  const struct field f = field_of ((struct nc_prefetch_policy *) policy,
                                   flag);

  return f.number ? *f.number : *f.rate;
}

void
nc_image_amendment_set (struct nc_image_amendment *amendment, unsigned flag,
                        uint64_t value)
{
  const struct field f = field_of (&amendment->prefetch, flag);

  if (f.number)
    *f.number = (uint32_t) value;
  else
    *f.rate = value;
  amendment->fields |= flag;
}

void
nc_prefetch_policy_amend (struct nc_prefetch_policy *policy,
                          const struct nc_image_amendment *amendment)
{
  const struct nc_prefetch_policy *from = &amendment->prefetch;

  if (amendment->fields & NC_AMEND_WHOLE)
    policy->whole = from->whole;
  if (amendment->fields & NC_AMEND_PROFILE)
    policy->profile = from->profile;
  for (unsigned i = 0; i < NC_PREFETCH_FIELDS; ++i) {
    const unsigned flag = nc_prefetch_fields[i].flag;
    const struct field f = field_of (policy, flag);

    if (!(amendment->fields & flag))
      continue;
    if (f.number)
      *f.number = (uint32_t) nc_prefetch_policy_get (from, flag);
    else
      *f.rate = nc_prefetch_policy_get (from, flag);
  }
}

static int
check_rates (const char *whose, const char *what, uint64_t max, uint64_t min)
{
  if (max == 0 || min <= max)
    return 0;
  nc_error ("%s: prefetching would never run: it pauses below %" PRIu64
            " bytes a second of %s, and may not exceed %" PRIu64, whose,
            min, what, max);
  errno = EINVAL;
  return -1;
}

int
nc_prefetch_policy_check (const struct nc_prefetch_policy *policy,
                          const char *whose)
{
  errno = EINVAL;
  if (policy->start_delay > NC_START_DELAY_MAX) {
    nc_error ("%s: prefetch start delay %" PRIu32 " is too long: at most %d "
              "seconds", whose, policy->start_delay, NC_START_DELAY_MAX);
    return -1;
  }
  if (policy->max_pause > NC_MAX_PAUSE_MAX) {
    nc_error ("%s: longest prefetch pause %" PRIu32 " is too long: at most "
              "%d milliseconds", whose, policy->max_pause, NC_MAX_PAUSE_MAX);
    return -1;
  }
  if (policy->unit > NC_PREFETCH_UNIT_MAX || policy->unit % 4096 != 0) {
    nc_error ("%s: prefetch unit %" PRIu32 " must be a multiple of 4096, at "
              "most %" PRIu32, whose, policy->unit, NC_PREFETCH_UNIT_MAX);
    return -1;
  }
  if (policy->slots > NC_PREFETCH_SLOTS_MAX) {
    nc_error ("%s: %" PRIu32 " prefetch slots are too many: at most %d",
              whose, policy->slots, NC_PREFETCH_SLOTS_MAX);
    return -1;
  }
  if (policy->read_time > NC_MEASURE_TIME_MAX ||
      policy->write_time > NC_MEASURE_TIME_MAX) {
    nc_error ("%s: prefetch measurements of %" PRIu32 " (reading) and %"
              PRIu32 " ms (writing): at most %d ms", whose,
              policy->read_time, policy->write_time, NC_MEASURE_TIME_MAX);
    return -1;
  }
  if (policy->alpha > NC_ALPHA_MAX) {
    nc_error ("%s: prefetch alpha %" PRIu32 " must be at most %d percent",
              whose, policy->alpha, NC_ALPHA_MAX);
    return -1;
  }
  if (check_rates (whose, "reading", policy->max_read,
                   policy->min_read) == -1)
    return -1;
  return check_rates (whose, "writing", policy->max_write,
                      policy->min_write);
}

int
nc_image_amend (const char *path, const struct nc_image_amendment *amendment)
{
  struct nc_dev *dev = nc_dev_open_file (path, NC_DEV_WRITE);
  int r;

  if (dev == NULL)
    return -1;
  r = nc_fvd_amend (dev, amendment);
  nc_dev_close (dev);
  return r;
}

/* The profile, of an image by itself. */

static int
open_header (const char *path, unsigned flags, struct nc_dev **dev,
             struct fvd_header **h)
{
  *dev = NULL;
  *h = calloc (1, sizeof **h);
  if (*h == NULL) {
    nc_error ("%s: %m", path);
    return -1;
  }
  *dev = nc_dev_open_file (path, flags);
  if (*dev == NULL)
    return -1;
  return flags & NC_DEV_WRITE ? fvd_header_read_to_write (*dev, *h)
    : fvd_header_read (*dev, *h);
}

int
nc_image_profile_read (const char *path, struct nc_profile_range **ranges,
                       size_t *n)
{
  NC_FREE struct fvd_header *h = NULL;
  struct nc_dev *dev;
  int r = open_header (path, NC_DEV_UNLOCKED, &dev, &h);

  *ranges = NULL;
  *n = 0;
  if (r == 0)
    r = fvd_profile_read (dev, h, ranges, n, NULL);
  nc_dev_close (dev);
  return r;
}

int
nc_image_profile_write (const char *path,
                        const struct nc_profile_range *ranges, size_t n)
{
  NC_FREE struct fvd_header *h = NULL;
  struct nc_dev *dev;
  int r = open_header (path, NC_DEV_WRITE, &dev, &h);

  if (r == 0)
    r = fvd_profile_write (dev, h, ranges, n, NULL);
  nc_dev_close (dev);
  return r;
}

/* That of a chain that is open. */

int
nc_chain_profile_read (struct nc_chain *chain,
                       struct nc_profile_range **ranges, size_t *n)
{
  struct nc_view *view = nc_view_pin (&chain->views);
  int r = 0;

  *ranges = NULL;
  *n = 0;
  {
    NC_LOCKED (&chain->pivot_lock);
    for (size_t i = 0; r == 0 && *n == 0 && i < view->n; ++i) {
      struct nc_layer *layer = view->layers[i];

      free (*ranges);
      *ranges = NULL;
      if (layer->format->read_profile)
        r = layer->format->read_profile (layer, ranges, n);
    }
  }
  nc_view_unpin (&chain->views, view);
  return r;
}

int
nc_chain_profile_write (struct nc_chain *chain,
                        const struct nc_profile_range *ranges, size_t n)
{
  struct nc_view *view;
  struct nc_layer *active;
  int r = -1;

  if (!chain->writable) {
    nc_error ("%s: is open for reading only; no profile can be stored in it",
              nc_chain_layer_name (chain, 0));
    errno = EROFS;
    return -1;
  }
  NC_LOCKED (&chain->pivot_lock);
  view = nc_view_enter (&chain->views, NC_VIEW_WRITE);
  if (view == NULL)
    return -1;
  active = view->layers[0];
  if (active->format->write_profile)
    r = active->format->write_profile (active, ranges, n);
  else {
    nc_error ("%s: an image of the format %s holds no profile", active->path,
              active->format->name);
    errno = ENOTSUP;
  }
  nc_view_leave (&chain->views, view, NC_VIEW_WRITE);
  return r;
}
