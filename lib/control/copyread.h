/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The command about copy-on-read. */
#ifndef NC_CONTROL_COPYREAD_H
#define NC_CONTROL_COPYREAD_H

struct nc_control;
struct nc_copyread;

/* Offer it; before nc_control_start.  CR must outlive the socket.  Returns -1
 * on error, reported. */
extern int nc_control_add_copyread (struct nc_control *control,
                                    struct nc_copyread *cr)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_CONTROL_COPYREAD_H */
