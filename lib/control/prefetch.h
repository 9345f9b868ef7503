/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The commands about prefetching and profiles. */
#ifndef NC_CONTROL_PREFETCH_H
#define NC_CONTROL_PREFETCH_H

struct nc_chain;
struct nc_control;
struct nc_prefetch;
struct nc_profile;

/* What they work on. */
struct nc_control_prefetch {
  struct nc_chain *chain;
  struct nc_prefetch *prefetch;
  struct nc_profile *profile;
};

/* Offer them; before nc_control_start.  STATE must outlive the socket.
 * Returns -1 on error, reported. */
extern int nc_control_add_prefetch (struct nc_control *control,
                                    struct nc_control_prefetch *state)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_CONTROL_PREFETCH_H */
