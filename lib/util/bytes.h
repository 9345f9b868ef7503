/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Little-endian numbers in byte arrays of any alignment. */
#ifndef NC_BYTES_H
#define NC_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NC_BYTES_ACCESS(bits)                                           \
  static inline uint##bits##_t                                          \
  nc_get_le##bits (const uint8_t *p)                                    \
  {                                                                     \
    uint##bits##_t v;                                                   \
                                                                        \
    memcpy (&v, p, sizeof v);                                           \
    return le##bits##toh (v);                                           \
  }                                                                     \
                                                                        \
  static inline void                                                    \
  nc_put_le##bits (uint8_t *p, uint##bits##_t v)                        \
  {                                                                     \
    v = htole##bits (v);                                                \
    memcpy (p, &v, sizeof v);                                           \
  }

NC_BYTES_ACCESS (16)
NC_BYTES_ACCESS (32)
NC_BYTES_ACCESS (64)

#endif /* NC_BYTES_H */
