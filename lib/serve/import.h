/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Redirection of the calls that the main program (nbdkit) makes to functions
 * of shared libraries.
 *
 * nbdkit's plugin interface gives a plugin neither the socket of a
 * connection nor a say before nbdkit reads from it.  The calls that nbdkit's
 * core makes to libc and GnuTLS do; they go through its relocation table, as
 * a preloaded library would take them, but here only those of the main
 * program are redirected, and no environment variable is needed. */
#ifndef NC_IMPORT_H
#define NC_IMPORT_H

#include <stdbool.h>

/* Have the main program call FUNCTION in place of the imported function NAME.
 * FUNCTION calls the original by its name.  Returns false where the program
 * does not import NAME, or its table cannot be written; then nothing has
 * changed.  Call it while the program has one thread. */
extern bool nc_import_replace (const char *name, void *function)
  __attribute__ ((__nonnull__ (1, 2)));

#endif /* NC_IMPORT_H */
