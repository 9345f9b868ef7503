/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* A prefetch profile as a text file, as docs/formats/profile.md says. */
#ifndef NC_PROFILE_TEXT_H
#define NC_PROFILE_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "image/image.h"

#define NC_PROFILE_TEXT_RANGES 1048576  /* at most */

struct nc_profile_text {
  uint64_t size;                /* of the disk */
  char base[NC_UUID_TEXT];      /* its base; "": not known */
  struct nc_profile_range *ranges;
  size_t n;
};

extern void nc_profile_text_free (struct nc_profile_text *text);

/* Read FP, called NAME in messages.  Ranges lie inside the disk.  Returns -1
 * on error, reported (EINVAL: it is not one); TEXT can be freed in any case.
 */
extern int nc_profile_text_read (FILE *fp, const char *name,
                                 struct nc_profile_text *text)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Write TEXT to FP.  The caller looks for errors when he closes it. */
extern void nc_profile_text_write (FILE *fp,
                                   const struct nc_profile_text *text)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_PROFILE_TEXT_H */
