/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The server's end of the socket pair that it shares with "nbdchain serve".
 *
 * Messages are single packets of text (SOCK_SEQPACKET), without newline:
 *
 *   server -> serve   "ready"          the chain is open, clients may come
 *   serve -> server   "stop"           make everything durable
 *   server -> serve   "stopped"        it is; the process may be killed
 *   server -> serve   "stopped idle"   the same, and no client is connected,
 *                                      so that the process can also be asked
 *                                      to end
 *   server -> serve   "failed TEXT"    it is not, and why
 *   server -> serve   "quit"           an operator wants all to end
 *
 * When serve goes away (end of file) the server stops by itself and exits.
 */
#ifndef NC_SUPERVISE_H
#define NC_SUPERVISE_H

struct nc_supervise;

/* Start the thread that listens on FD (not taken over) and say "ready".
 * STOP is called once, from that thread, when the server is to stop; it
 * returns -1 if not everything is durable; else how many clients are
 * connected.
 * Returns NULL on error, reported. */
extern struct nc_supervise *nc_supervise_start (int fd,
                                                int (*stop) (void *opaque),
                                                void *opaque)
  __attribute__ ((__nonnull__ (2)));

/* Ask serve to end, which makes it stop the server.  Returns at once; -1 on
 * error, reported.  From any thread. */
extern int nc_supervise_quit (struct nc_supervise *supervise)
  __attribute__ ((__nonnull__ (1)));

/* End the thread without calling STOP.  NULL is allowed. */
extern void nc_supervise_end (struct nc_supervise *supervise);

#endif /* NC_SUPERVISE_H */
