/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Descriptors 0 to 2, which a parent process may have closed.  Without them
 * the first files that are opened get these numbers, and what is printed goes
 * into an image. */
#ifndef NC_STANDARD_FDS_H
#define NC_STANDARD_FDS_H

/* Open /dev/null as each of them that is closed.  To be called before
 * anything else is opened.  Returns -1 with errno, not reported, if one stays
 * closed. */
extern int nc_open_standard_fds (void);

#endif /* NC_STANDARD_FDS_H */
