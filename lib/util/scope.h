/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Clean-up at the end of a scope: memory, file descriptors, mutexes. */
#ifndef NC_SCOPE_H
#define NC_SCOPE_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void
nc_scope_free (void *p)
{
  free (*(void **) p);
}

static inline void
nc_scope_close (int *fd)
{
  if (*fd >= 0)
    close (*fd);
}

static inline pthread_mutex_t *
nc_scope_lock (pthread_mutex_t *lock)
{
  pthread_mutex_lock (lock);
  return lock;
}

static inline void
nc_scope_unlock (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

/* NC_FREE char *s = NULL;    freed when S leaves the scope
 * NC_CLOSE int fd = -1;      closed when FD leaves the scope
 * NC_LOCKED (&obj->lock);    held from here to the closing brace */
#define NC_FREE __attribute__ ((__cleanup__ (nc_scope_free)))
#define NC_CLOSE __attribute__ ((__cleanup__ (nc_scope_close)))
#define NC_SCOPE_JOIN2(a, b) a##b
#define NC_SCOPE_JOIN(a, b) NC_SCOPE_JOIN2 (a, b)
#define NC_LOCKED(lock)                                         \
  __attribute__ ((__cleanup__ (nc_scope_unlock), __unused__))   \
  pthread_mutex_t *NC_SCOPE_JOIN (nc_locked_, __LINE__) =       \
    nc_scope_lock (lock)

#endif /* NC_SCOPE_H */
