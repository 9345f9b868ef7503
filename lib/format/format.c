/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The table of formats: a new one is a line here. */

#include <config.h>

#include "format/format.h"

#include <errno.h>
#include <string.h>

#include "util/report.h"

static const struct nc_format *const formats[] = {
  &nc_format_fvd,
  &nc_format_raw,
};

const struct nc_format *
nc_format_find (const char *name)
{
  for (size_t i = 0; i < sizeof formats / sizeof formats[0]; ++i)
    if (strcmp (formats[i]->name, name) == 0)
      return formats[i];
  return NULL;
}

const struct nc_format *
nc_format_need (const char *name, const char *whose)
{
  const struct nc_format *format = nc_format_find (name);

  if (format == NULL) {
    nc_error ("%s: format '%s' is not known; there are 'raw' and 'fvd'",
              whose, name);
    errno = EINVAL;
  }
  return format;
}
