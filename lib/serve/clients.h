/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The connections of clients to this server: their sockets, the time that a
 * handshake may take, and how many may be open.
 *
 *   plugin .load         nc_clients_begin
 *   plugin .after_fork   nc_clients_start
 *   plugin .preconnect   nc_clients_admit      in the connection's thread
 *   plugin .open         nc_clients_opened     in the connection's thread
 *   plugin .unload       nc_clients_end
 *
 * nbdkit has no call for any of it, so nc_clients_begin redirects some of
 * the calls that nbdkit's core makes (serve/import.h): accept4 and close, so
 * that each socket is known exactly from accept to close; getpeername, which
 * tells the socket of a connection to its thread; and what a connection reads
 * and sends by (serve/traffic.h).  Where nbdkit does not import these,
 * connections are counted, and the rest of this does nothing.
 *
 * A connection is in its handshake until nbdkit opens the disk for it, which
 * is after TLS authentication if that is required. */
#ifndef NC_CLIENTS_H
#define NC_CLIENTS_H

#include <stdbool.h>
#include <stdint.h>

/* Seconds that a handshake may take. */
#define NC_HANDSHAKE_DEFAULT 20

struct nc_clients_options {
  unsigned max;                 /* connections at a time; 0: no limit */
  unsigned handshake;           /* seconds; 0: no limit */
  uint64_t memory;              /* bytes, see serve/traffic.h */
};

/* Redirect nbdkit's calls, and raise the limit of open files to the hard
 * one.  Call it while there is one thread. */
extern void nc_clients_begin (void);

/* Start the thread that ends handshakes.  Returns -1 on error, reported. */
extern int nc_clients_start (const struct nc_clients_options *options)
  __attribute__ ((__nonnull__ (1)));

/* Whether the socket of the connection that the calling thread serves can be
 * found: if so, call nbdkit_peer_name before nc_clients_admit. */
extern bool nc_clients_have_sockets (void);

/* Count the connection of the calling thread, until that thread ends.  If
 * there are as many as may be, the oldest connection that is still in its
 * handshake is ended in its favour.  Returns -1 with errno EAGAIN, reported,
 * if there is none: nbdkit is then to close the connection. */
extern int nc_clients_admit (void);

/* The handshake of the connection of the calling thread is over. */
extern void nc_clients_opened (void);

/* How many connections are counted. */
extern unsigned nc_clients_count (void);

/* Shut down the sockets of all connections, both ways: their threads end as
 * if the clients had gone.  From any thread; returns at once. */
extern void nc_clients_shutdown (void);

/* End the thread of nc_clients_start, if it runs. */
extern void nc_clients_end (void);

#endif /* NC_CLIENTS_H */
