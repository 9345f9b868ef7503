/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What all devices have in common. */

#include <config.h>

#include "dev/dev.h"

#include <stdlib.h>
#include <string.h>

#include "util/report.h"

int
nc_dev_init (struct nc_dev *dev, const struct nc_dev_ops *ops,
             const char *name)
{
  dev->ops = ops;
  dev->path.dir = -1;
  dev->name = strdup (name);
  if (dev->name == NULL) {
    nc_error ("%s: %m", name);
    return -1;
  }
  return 0;
}

void
nc_dev_fini (struct nc_dev *dev)
{
  nc_path_close (&dev->path);
  free (dev->name);
  free (dev->identity);
}

void
nc_dev_close (struct nc_dev *dev)
{
  if (dev)
    dev->ops->close (dev);
}
