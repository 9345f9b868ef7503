/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What the subcommands of nbdchain share.
 *
 * A subcommand NAME is one file with one function, NAME_main (jobs.c has
 * several that are nearly the same).  It is called
 * with argv[0] = "nbdchain NAME", so that getopt_long's own messages name
 * it, and returns an exit code.  Errors go out by nc_error, which prints
 * "nbdchain: ..." on stderr; what the library reported is not said again.
 */
#ifndef NBDCHAIN_TOOLS_H
#define NBDCHAIN_TOOLS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

/* Exit codes, the same for every subcommand and documented in
 * nbdchain(1). */
enum exit_code {
  EXIT_DONE = 0,                /* it worked */
  EXIT_FAILED = 1,              /* it did not; why is on stderr */
  EXIT_USAGE = 2,               /* the command line makes no sense */
  EXIT_DAMAGED = 3,             /* check found errors in the image */
  EXIT_DIFFERENT = 4,           /* compare found a difference */
};

extern int create_main (int argc, char *argv[]);
extern int info_main (int argc, char *argv[]);
extern int map_main (int argc, char *argv[]);
extern int check_main (int argc, char *argv[]);
extern int snapshot_main (int argc, char *argv[]);
extern int resize_main (int argc, char *argv[]);
extern int rebase_main (int argc, char *argv[]);
extern int amend_main (int argc, char *argv[]);
extern int profile_main (int argc, char *argv[]);
extern int stream_main (int argc, char *argv[]);
extern int serve_main (int argc, char *argv[]);
extern int compare_main (int argc, char *argv[]);
extern int jobs_main (int argc, char *argv[]);
extern int pause_main (int argc, char *argv[]);
extern int resume_main (int argc, char *argv[]);
extern int cancel_main (int argc, char *argv[]);
extern int complete_main (int argc, char *argv[]);
extern int set_speed_main (int argc, char *argv[]);

/* nbdchain.c */

/* Show no messages from now on, or all again: for what is only tried.  Not
 * while other threads run. */
extern void hush_reports (bool on);

/* options.c */

/* Say "Try 'COMMAND --help'" on stderr, after a message; COMMAND is
 * argv[0].  Returns EXIT_USAGE. */
extern int usage_error (const char *command)
  __attribute__ ((__nonnull__ (1)));

/* Parse TEXT, a size such as "512", "64K", "1.5G" or "8TiB" (powers of
 * 1024), that was given as WHAT.  Returns 0; or -1, reported, if it is no
 * size or exceeds the largest file. */
extern int parse_size (const char *what, const char *text, uint64_t *size)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* Parse TEXT, a whole number from MIN to MAX, that was given as WHAT.
 * Returns 0; or -1, reported. */
extern int parse_number (const char *what, const char *text,
                         uint64_t min, uint64_t max, uint64_t *number)
  __attribute__ ((__nonnull__ (1, 2, 5)));

struct nc_allow;
struct nc_chain;
struct nc_tls;

/* Options of the subcommands that connect to remotes: for getopt_long, and
 * what it returns for them. */
enum {
  OPT_REMOTE_TLS_CERTIFICATES = 512,
  OPT_REMOTE_TLS_PSK,
  OPT_REMOTE_TLS_USERNAME,
};
#define REMOTE_TLS_OPTIONS                                              \
  { "remote-tls-certificates", required_argument, NULL,                 \
    OPT_REMOTE_TLS_CERTIFICATES },                                      \
  { "remote-tls-psk", required_argument, NULL, OPT_REMOTE_TLS_PSK },    \
  { "remote-tls-username", required_argument, NULL, OPT_REMOTE_TLS_USERNAME }

/* Their lines of --help. */
#define REMOTE_TLS_HELP \
  "      --remote-tls-certificates=DIR\n" \
  "                         for remotes named nbds: the directory of the\n" \
  "                         ca-cert.pem that signed their certificates\n" \
  "      --remote-tls-psk=FILE\n" \
  "                         for remotes named nbds: a file of keys instead\n" \
  "      --remote-tls-username=NAME\n" \
  "                         whose key in that file; needed if it has several\n"

/* Take one of them, C with VALUE (not copied); false: C is another. */
extern bool remote_tls_option (struct nc_tls *tls, int c, const char *value)
  __attribute__ ((__nonnull__ (1)));

/* What makes no sense together.  Returns -1, reported. */
extern int remote_tls_check (const struct nc_tls *tls)
  __attribute__ ((__nonnull__ (1)));

/* Options of the subcommands that follow the references of an image. */
struct chain_args {
  struct nc_allow *allow;
  const char *base;             /* not owned */
};
extern void chain_args_free (struct chain_args *args)
  __attribute__ ((__nonnull__ (1)));

/* Add one --allow.  Returns -1, reported. */
extern int chain_args_allow (struct chain_args *args, const char *text)
  __attribute__ ((__nonnull__ (1, 2)));

/* Open the chain of IMAGE to look at it: nothing is written and no remote
 * is contacted.  Returns NULL, reported. */
extern struct nc_chain *chain_args_open (const struct chain_args *args,
                                         const char *image)
  __attribute__ ((__nonnull__ (1, 2)));

/* A command that serves a remote inherits standard output, which is to have
 * nothing but ours: in between, what it prints goes to standard error.
 * divert_stdout returns what restore_stdout takes; both -1 on error,
 * reported. */
extern int divert_stdout (void);
extern int restore_stdout (int saved);

/* systemd.c */

/* Whether what is written to FD goes to systemd's journal, which takes the
 * priority of a line from what stands before it. */
extern bool systemd_reads (int fd);
#define SYSTEMD_ERROR "<3>"
#define SYSTEMD_NOTICE "<5>"
#define SYSTEMD_INFO "<6>"

/* print.c */

#define SIZE_TEXT 24
/* "4 KiB", "1.5 GiB", "17 bytes".  A fraction is shown where the size is
 * not a multiple of the unit, so "8.0 GiB" is not exactly "8 GiB". */
extern const char *size_text (uint64_t size, char buf[SIZE_TEXT])
  __attribute__ ((__nonnull__ (2)));

#define PERCENT_TEXT 16
/* How much of WHOLE is PART: "15.0 %", "< 0.1 %", "0 %". */
extern const char *percent_text (uint64_t part, uint64_t whole,
                                 char buf[PERCENT_TEXT])
  __attribute__ ((__nonnull__ (3)));

/* Print TEXT so that it cannot steer a terminal: what is not printable
 * (text.h) comes out as \xNN.  Text from an image is hostile. */
extern void print_text (FILE *fp, const char *text)
  __attribute__ ((__nonnull__ (1, 2)));

/* How many columns print_text needs for TEXT. */
extern int text_width (const char *text) __attribute__ ((__nonnull__ (1)));

/* Print TEXT, padded with spaces to WIDTH columns. */
extern void print_padded (const char *text, int width)
  __attribute__ ((__nonnull__ (1)));

/* Print "LABEL:  ", padded so that values line up, INDENT levels in. */
extern void print_label (int indent, const char *label)
  __attribute__ ((__nonnull__ (2)));

/* Columns of the terminal that FD may be: COLUMNS, else what the terminal
 * says, else 80. */
extern int terminal_width (int fd);

/* Whether standard output shows colours: it is a terminal, and neither
 * NO_COLOR nor TERM=dumb is set. */
extern bool terminal_colour (void);

/* A JSON string of TEXT; null for NULL.  JSON is UTF-8: in other text each
 * byte beyond ASCII becomes U+FFFD. */
extern json_t *json_text (const char *text);

/* Print ROOT (taken over; NULL means that memory ran out) and a newline on
 * stdout.  Returns an exit code. */
extern int print_json (json_t *root);

#endif /* NBDCHAIN_TOOLS_H */
