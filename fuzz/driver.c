/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* libFuzzer's entry points; TARGET is one of the targets, by its name in
 * C. */

#include <config.h>

#include "fuzz.h"

extern int LLVMFuzzerInitialize (int *argc, char ***argv);
extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

int
LLVMFuzzerInitialize (int *argc __attribute__ ((__unused__)),
                      char ***argv __attribute__ ((__unused__)))
{
  fuzz_start ();
  return 0;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  TARGET.run (data, size);
  return 0;
}
