/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The messages of "nbdchain serve": its own, and those of nbdkit, which come
 * through a pipe.
 *
 * Nothing waits for whoever reads standard error: what it does not take at
 * once is dropped and counted, and the pipe is drained in any case.  nbdkit
 * has the writing end without blocking, so that none of its threads waits for
 * us, either.
 *
 * Messages that clients can cause at will must not fill a log: of nbdkit's
 * lines that differ in numbers and quoted names only, LOG_BURST are passed on
 * in LOG_SECONDS, and of all LOG_BURST_ALL; the others are counted.  Debug
 * messages, which nbdkit prints if it is told to, are all passed on. */
#ifndef NBDCHAIN_LOG_H
#define NBDCHAIN_LOG_H

#include <stdbool.h>
#include <stddef.h>

#define LOG_SECONDS 10
#define LOG_BURST 10
#define LOG_BURST_ALL 200

/* From now on nothing blocks on standard error.  Returns -1, reported. */
extern int log_begin (void);

/* The end of the pipe for nbdkit's standard error, and the one to be polled
 * for reading. */
extern int log_writing_fd (void);
extern int log_reading_fd (void);

/* Write LINE, which ends with a newline, to standard error.  Returns false if
 * log_begin was not called: then nothing was done. */
extern bool log_write (const char *line, size_t len)
  __attribute__ ((__nonnull__ (1)));

/* Pass on what nbdkit has written: some of it, so that a flood does not keep
 * the caller; or ALL, if nbdkit has ended. */
extern void log_receive (bool all);

/* Milliseconds until log_tick has something to do; -1: not before
 * log_receive. */
extern int log_time_left (void);

/* Say what was suppressed, when that is due; or at once, if this is the END. */
extern void log_tick (bool end);

#endif /* NBDCHAIN_LOG_H */
