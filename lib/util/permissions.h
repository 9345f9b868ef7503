/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Who may do what with a file, for one that takes the place of another. */
#ifndef NC_PERMISSIONS_H
#define NC_PERMISSIONS_H

/* Give the file TO the owner, group, mode, ACL and security label (of SELinux
 * or Smack) of the file FROM; both are descriptors.  TO should be one that
 * nobody else can open yet.
 * Returns -1 with errno if one of them cannot be given (EPERM: only root gives
 * files away), not reported. */
extern int nc_permissions_copy (int from, int to);

#endif /* NC_PERMISSIONS_H */
