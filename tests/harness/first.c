/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Preloaded with the runtime of a sanitizer: has it set up before any other
 * library is (the linker's "initfirst").
 *
 * By itself it is set up by the first malloc, which in an nbdkit comes from
 * newlocale, called when p11-kit is loaded.  Setting up asks for a symbol
 * that is not there, and dlerror takes and gives back the lock on locales
 * that newlocale holds.  With that count wrong, the next message that has
 * an errno in it leaves p11-kit waiting for the lock at exit, for ever. */

#include <stdlib.h>

static void *volatile memory;

static void __attribute__ ((__constructor__))
set_up (void)
{
  memory = malloc (1);
  free (memory);
}
