/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* "nbdchain serve": its options, and the command line of nbdkit that they
 * make. */

#include <config.h>

#include "serve.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "nbd/tls.h"
#include "tools.h"
#include "util/report.h"
#include "util/scope.h"

/* Threads of each connection.  More than requests that clients keep under
 * way (the kernel's client 128, QEMU 16), so that requests which wait for a
 * remote leave some for the others; each costs about 0.1 ms when a client
 * connects, and nothing afterwards. */
#define THREADS_DEFAULT 160
#define THREADS_MAX 4096
/* Together with the threads of each fewer than a small system can have. */
#define CONNECTIONS_DEFAULT 128
#define CONNECTIONS_MAX 65536

#define ADDRESS_DEFAULT "127.0.0.1"
#define MODE_DEFAULT 0600

static const char help[] =
  "nbdchain serve: serve the disk to NBD clients\n"
  "\n"
  "Usage: nbdchain serve [OPTIONS] IMAGE [-- NBDKIT-OPTIONS...]\n"
  "\n"
  "Runs nbdkit in the foreground, and a new one should it crash.  Prints the\n"
  "URI for clients once they can come.  SIGTERM or Ctrl-C make everything\n"
  "durable and end it.\n"
  "\n"
  "Where to listen (under systemd, a socket unit says it instead):\n"
  "  -U, --unix SOCKET        a Unix socket (without -U and -p: one in a new\n"
  "                           directory of its own)\n"
  "      --socket-mode MODE   its permissions, octal (default 0600)\n"
  "  -p, --port PORT          TCP instead; 0 takes any free port\n"
  "  -i, --ipaddr ADDRESS     the address for -p (default 127.0.0.1: this\n"
  "                           machine only; 0.0.0.0 or :: for every one)\n"
  "\n"
  "Who may come (NBD has no passwords; see TLS in nbdchain(1)):\n"
  "      --tls-psk FILE       clients that show a key in this file; all is\n"
  "                           encrypted\n"
  "      --tls-certificates DIR\n"
  "                           encrypt, with server-cert.pem and\n"
  "                           server-key.pem of ca-cert.pem in this directory\n"
  "      --tls-verify-peer    with that: only clients that have a certificate\n"
  "                           signed by the same ca-cert.pem\n"
  "      --tls require|on|off refuse clients without TLS (require, which is\n"
  "                           the default with these options), or serve\n"
  "                           both (on)\n"
  "\n"
  "What to serve:\n"
  "  -r, --read-only          nothing is written, not even to the image\n"
  "      --allow DIR|URI      follow references in the images to files below\n"
  "                           DIR, or to URI and exports below it; can be\n"
  "                           repeated.  Without, only files below an\n"
  "                           image's own directory are.\n"
  "      --base REFERENCE     the base, in place of that named in the lowest\n"
  "                           image\n"
  "      --data-file FILE     the data file of the image, in place of that named\n"
  "                           in it; needed to write to a device, or to a file\n"
  "                           that carries no mark\n"
  "      --retry SECONDS      how long requests wait for a remote that is\n"
  "                           away (default 60; 0 = for ever)\n"
  "      --remote-tls-certificates DIR\n"
  "                           for remotes named nbds: the directory of\n"
  "                           ca-cert.pem, which their certificates are\n"
  "                           signed by\n"
  "      --remote-tls-psk FILE\n"
  "                           for remotes named nbds: a file of keys instead\n"
  "      --remote-tls-username NAME\n"
  "                           whose key in that file; needed if it has\n"
  "                           several\n"
  "      --detect-zeroes off|on|unmap\n"
  "                           store zeros that clients write as zeros;\n"
  "                           unmap: also give their storage back\n"
  "      --enlarge COMMAND    run this when the device of a compact image is\n"
  "                           full\n"
  "\n"
  "How:\n"
  "      --copy-on-read       store what clients read of the layers below, and\n"
  "                           read ahead of those that read in sequence\n"
  "      --control SOCKET     answer to QMP on this Unix socket: see \"nbdchain\n"
  "                           jobs\", and docs/control.md\n"
  "      --resume on|off      go on with the jobs that ran when the last\n"
  "                           server ended (default on)\n"
  "      --jobs FILE          where it is recorded which these are (default\n"
  "                           IMAGE.jobs; none for an image on a device)\n"
  "      --prefetch           make the disk local while nobody needs the source;\n"
  "                           without, if the image says so (see amend)\n"
  "      --no-prefetch        do not, whatever the image says\n"
  "      --threads N          requests of a connection that are served at a\n"
  "                           time, from 2 to 4096 (default 160)\n"
  "      --max-connections N  connections at a time, up to 65536 (default 128;\n"
  "                           0 = no limit)\n"
  "      --json               print the URI as JSON\n"
  "  -h, --help               show this\n"
  "\n"
  "What follows \"--\" goes to nbdkit: options, and parameters of filters.\n"
  "\n"
  "Examples:\n"
  "  nbdchain serve top.fvd -U /run/vm.sock --allow nbd://server/\n"
  "  nbdchain serve top.fvd -p 10809 -- --filter=stats statsfile=stats.txt\n";

enum {
  OPT_ALLOW = 256, OPT_BASE, OPT_RETRY, OPT_THREADS, OPT_DETECT_ZEROES,
  OPT_ENLARGE, OPT_MAX_CONNECTIONS, OPT_CONTROL, OPT_RESUME, OPT_JOBS,
  OPT_DATA_FILE, OPT_COPY_ON_READ, OPT_PREFETCH_ALL, OPT_NO_PREFETCH, OPT_JSON,
  OPT_SOCKET_MODE,
  OPT_TLS, OPT_TLS_CERTIFICATES, OPT_TLS_PSK, OPT_TLS_VERIFY_PEER,
};

static const char short_options[] = "U:p:i:rh";
static const struct option options[] = {
  { "allow", required_argument, NULL, OPT_ALLOW },
  { "base", required_argument, NULL, OPT_BASE },
  { "control", required_argument, NULL, OPT_CONTROL },
  { "copy-on-read", no_argument, NULL, OPT_COPY_ON_READ },
  { "prefetch", no_argument, NULL, OPT_PREFETCH_ALL },
  { "data-file", required_argument, NULL, OPT_DATA_FILE },
  { "detect-zeroes", required_argument, NULL, OPT_DETECT_ZEROES },
  { "enlarge", required_argument, NULL, OPT_ENLARGE },
  { "help", no_argument, NULL, 'h' },
  { "ipaddr", required_argument, NULL, 'i' },
  { "jobs", required_argument, NULL, OPT_JOBS },
  { "json", no_argument, NULL, OPT_JSON },
  { "max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS },
  { "no-prefetch", no_argument, NULL, OPT_NO_PREFETCH },
  { "port", required_argument, NULL, 'p' },
  { "read-only", no_argument, NULL, 'r' },
  { "readonly", no_argument, NULL, 'r' },
  REMOTE_TLS_OPTIONS,
  { "resume", required_argument, NULL, OPT_RESUME },
  { "retry", required_argument, NULL, OPT_RETRY },
  { "socket-mode", required_argument, NULL, OPT_SOCKET_MODE },
  { "threads", required_argument, NULL, OPT_THREADS },
  { "tls", required_argument, NULL, OPT_TLS },
  { "tls-certificates", required_argument, NULL, OPT_TLS_CERTIFICATES },
  { "tls-psk", required_argument, NULL, OPT_TLS_PSK },
  { "tls-verify-peer", no_argument, NULL, OPT_TLS_VERIFY_PEER },
  { "unix", required_argument, NULL, 'U' },
  { NULL, 0, NULL, 0 }
};

/* A growing list of arguments; NULL-terminated, the strings are its own. */
struct args {
  char **v;
  size_t n;
  bool failed;                  /* out of memory */
};

/* What clients meet. */
struct tls {
  const char *mode;             /* require, on or off; NULL: by the others */
  const char *certificates, *psk; /* NULL: not given */
  bool verify_peer;
  char *path;                   /* of the one that was given, absolute */
  char *user;                   /* the only one in psk; NULL: several */
};

struct serve {
  const char *socket, *port, *address;
  mode_t socket_mode;
  bool has_socket_mode;
  bool inherited;               /* there is a socket already */
  bool read_only, json, no_resume, copy_on_read, prefetch, no_prefetch;
  struct tls tls;
  struct nc_tls remote_tls;
  uint64_t threads, max_connections;
  struct args parameters;       /* KEY=VALUE for the plugin */
  struct listener listener;
};

static void __attribute__ ((__format__ (printf, 2, 3)))
add_arg (struct args *args, const char *fmt, ...)
{
  char **v = reallocarray (args->v, args->n + 2, sizeof *v);
  va_list ap;
  int r;

  if (v == NULL) {
    args->failed = true;
    return;
  }
  args->v = v;
  va_start (ap, fmt);
  r = vasprintf (&v[args->n], fmt, ap);
  va_end (ap);
  if (r == -1)
    args->failed = true;
  else
    args->n++;
  v[args->n] = NULL;
}

static void
free_args (struct args *args)
{
  size_t i;

  for (i = 0; i < args->n; i++)
    free (args->v[i]);
  free (args->v);
}

static int
parse_mode (const char *text, mode_t *mode)
{
  char *end;
  unsigned long n = strtoul (text, &end, 8);

  if (*text < '0' || *text > '7' || *end != '\0' || n > 0777) {
    nc_error ("--socket-mode: '%s' is not a mode: give it in octal, from 0 "
              "to 0777", text);
    return -1;
  }
  *mode = n;
  return 0;
}

static int
parse_detect_zeroes (struct serve *serve, const char *text)
{
  if (strcmp (text, "off") != 0 && strcmp (text, "on") != 0 &&
      strcmp (text, "unmap") != 0) {
    nc_error ("--detect-zeroes: '%s' is not known: give off, on or unmap",
              text);
    return -1;
  }
  add_arg (&serve->parameters, "detect-zeroes=%s", text);
  return 0;
}

static int
parse_resume (struct serve *serve, const char *text)
{
  if (strcmp (text, "on") != 0 && strcmp (text, "off") != 0) {
    nc_error ("--resume: '%s' is not known: give on or off", text);
    return -1;
  }
  serve->no_resume = strcmp (text, "off") == 0;
  return 0;
}

static int
parse_tls_mode (struct serve *serve, const char *text)
{
  if (strcmp (text, "require") != 0 && strcmp (text, "on") != 0 &&
      strcmp (text, "off") != 0) {
    nc_error ("--tls: '%s' is not known: give require, on or off", text);
    return -1;
  }
  serve->tls.mode = text;
  return 0;
}

/* Handle one option.  Returns -1, reported. */
static int
parse_option (struct serve *serve, int c, const char *value)
{
  uint64_t n;

  switch (c) {
  case 'U':
    serve->socket = value;
    return 0;
  case 'p':
    serve->port = value;
    return parse_number ("--port", value, 0, 65535, &n);
  case 'i':
    serve->address = value;
    return 0;
  case 'r':
    serve->read_only = true;
    return 0;
  case OPT_SOCKET_MODE:
    serve->has_socket_mode = true;
    return parse_mode (value, &serve->socket_mode);
  case OPT_ALLOW:
    add_arg (&serve->parameters, "allow=%s", value);
    return 0;
  case OPT_BASE:
    add_arg (&serve->parameters, "base=%s", value);
    return 0;
  case OPT_DATA_FILE:
    add_arg (&serve->parameters, "data-file=%s", value);
    return 0;
  case OPT_RETRY:
    if (parse_number ("--retry", value, 0, UINT32_MAX, &n) == -1)
      return -1;
    add_arg (&serve->parameters, "retry=%" PRIu64, n);
    return 0;
  case OPT_ENLARGE:
    add_arg (&serve->parameters, "enlarge=%s", value);
    return 0;
  case OPT_DETECT_ZEROES:
    return parse_detect_zeroes (serve, value);
  case OPT_CONTROL:
    add_arg (&serve->parameters, "control=%s", value);
    return 0;
  case OPT_RESUME:
    return parse_resume (serve, value);
  case OPT_JOBS:
    add_arg (&serve->parameters, "jobs=%s", value);
    return 0;
  case OPT_COPY_ON_READ:
    serve->copy_on_read = true;
    return 0;
  case OPT_PREFETCH_ALL:
    serve->prefetch = true;
    return 0;
  case OPT_NO_PREFETCH:
    serve->no_prefetch = true;
    return 0;
  case OPT_THREADS:
    return parse_number ("--threads", value, 2, THREADS_MAX,
                         &serve->threads);
  case OPT_MAX_CONNECTIONS:
    return parse_number ("--max-connections", value, 0, CONNECTIONS_MAX,
                         &serve->max_connections);
  case OPT_TLS:
    return parse_tls_mode (serve, value);
  case OPT_TLS_CERTIFICATES:
    serve->tls.certificates = value;
    return 0;
  case OPT_TLS_PSK:
    serve->tls.psk = value;
    return 0;
  case OPT_TLS_VERIFY_PEER:
    serve->tls.verify_peer = true;
    return 0;
  case OPT_JSON:
    serve->json = true;
    return 0;
  default:
    remote_tls_option (&serve->remote_tls, c, value);
    return 0;
  }
}

static int
check_tls_options (const struct tls *tls)
{
  const bool is_off = tls->mode && strcmp (tls->mode, "off") == 0;

  if (tls->certificates && tls->psk) {
    nc_error ("--tls-certificates and --tls-psk exclude each other");
    return -1;
  }
  if (is_off && (tls->certificates || tls->psk)) {
    nc_error ("--tls=off contradicts %s",
              tls->psk ? "--tls-psk" : "--tls-certificates");
    return -1;
  }
  if (tls->mode && !is_off && !tls->certificates && !tls->psk) {
    nc_error ("--tls=%s needs --tls-psk or --tls-certificates", tls->mode);
    return -1;
  }
  if (tls->verify_peer && !tls->certificates) {
    nc_error ("--tls-verify-peer is for --tls-certificates, which is missing"
              "%s", tls->psk ? " (with --tls-psk no client without a key is "
              "served)" : "");
    return -1;
  }
  return 0;
}

/* Look at the credentials before nbdkit does, whose messages say less. */
static int
check_credentials (struct tls *tls)
{
  const char *given = tls->psk ? tls->psk : tls->certificates;
  char why[512];
  int r;

  if (given == NULL)
    return 0;
  tls->path = realpath (given, NULL);
  if (tls->path == NULL) {
    nc_error ("%s: %s: %m", tls->psk ? "--tls-psk" : "--tls-certificates",
              given);
    return -1;
  }
  if (tls->certificates) {
    r = nc_tls_check_server (tls->path, why, sizeof why);
    /* The clock may be what is wrong. */
    if (r == 0 && nc_tls_check_dates (tls->path, why, sizeof why) == -1)
      nc_error ("warning: %s: clients refuse such a server; make a new "
                "certificate, or set the clock", why);
  }
  else {
    r = nc_tls_find_user (tls->path, NULL, &tls->user, why, sizeof why);
    if (r == -1 && errno == ENOTUNIQ)
      r = 0;
  }
  if (r == -1)
    nc_error ("%s: %s", tls->psk ? "--tls-psk" : "--tls-certificates", why);
  return r;
}

/* Options that make no sense together. */
static int
check_options (const struct serve *serve)
{
  if (serve->inherited && (serve->socket || serve->port || serve->address ||
                           serve->has_socket_mode)) {
    nc_error ("--unix, --port, --ipaddr and --socket-mode make a socket, but "
              "one was inherited (LISTEN_FDS, as systemd sets it): leave them "
              "out; a .socket unit says where to listen");
    return -1;
  }
  if (serve->socket && serve->port) {
    nc_error ("--unix and --port exclude each other");
    return -1;
  }
  if (serve->socket && serve->socket[0] == '\0') {
    nc_error ("--unix: the path of the socket is empty");
    return -1;
  }
  if (serve->address && serve->port == NULL) {
    nc_error ("--ipaddr is for TCP: give --port, too");
    return -1;
  }
  if (serve->copy_on_read && serve->read_only) {
    nc_error ("--copy-on-read stores what is read in the image, and "
              "--read-only forbids that: leave one out");
    return -1;
  }
  if (serve->prefetch && serve->read_only) {
    nc_error ("--prefetch stores the disk in the image, and --read-only "
              "forbids that: leave one out");
    return -1;
  }
  if (serve->prefetch && serve->no_prefetch) {
    nc_error ("--prefetch and --no-prefetch exclude each other");
    return -1;
  }
  if (serve->has_socket_mode && serve->port) {
    nc_error ("--socket-mode is for a Unix socket, and --port makes none");
    return -1;
  }
  return 0;
}

/* The filters that move data: as the user says, else as the image does. */
struct filters {
  bool stream, prefetch;
  bool image_decides;           /* what is prefetched */
};

static struct filters
choose_filters (const struct serve *serve, const char *image, char *extra[])
{
  struct filters filters = {
    .stream = serve->copy_on_read || serve->prefetch,
    .prefetch = serve->prefetch,
  };
  bool whole, profile;

  if (serve->prefetch || serve->no_prefetch || serve->read_only)
    return filters;
  policy_read (image, serve->parameters.v, serve->parameters.n, extra,
               &whole, &profile);
  if (!whole && !profile)
    return filters;
  filters.prefetch = filters.image_decides = true;
  filters.stream |= whole && !policy_has_filter (extra, "stream");
  return filters;
}

static void
add_filter (struct args *command, const char *name)
{
  NC_FREE char *path = environment_filter (name);

  if (path)
    add_arg (command, "--filter=%s", path);
  else
    command->failed = true;
}

/* The command line of nbdkit.  EXTRA goes last, where nbdkit takes options,
 * too, so that they win over ours. */
static void
make_command (const struct serve *serve, const char *image, char *extra[],
              struct args *command)
{
  const struct filters filters = choose_filters (serve, image, extra);
  size_t i;

  add_arg (command, "%s", environment_get ("NBDKIT", NBDKIT_PATH));
  add_arg (command, "-t%" PRIu64, serve->threads);
  if (serve->tls.path)
    add_arg (command, "--tls=%s", serve->tls.mode ? : "require");
  if (serve->tls.certificates)
    add_arg (command, "--tls-certificates=%s", serve->tls.path);
  if (serve->tls.psk)
    add_arg (command, "--tls-psk=%s", serve->tls.path);
  if (serve->tls.verify_peer)
    add_arg (command, "--tls-verify-peer");
  if (filters.stream)
    add_filter (command, "stream");
  if (filters.prefetch)
    add_filter (command, "prefetch");
  add_arg (command, "%s", environment_get ("NBDCHAIN_PLUGIN", PLUGIN_PATH));
  /* Not to be read as an option or as KEY=VALUE. */
  add_arg (command, "%s%s", image[0] == '/' ? "" : "./", image);
  for (i = 0; i < serve->parameters.n; i++)
    add_arg (command, "%s", serve->parameters.v[i]);
  if (serve->remote_tls.certificates)
    add_arg (command, "remote-tls-certificates=%s",
             serve->remote_tls.certificates);
  if (serve->remote_tls.psk)
    add_arg (command, "remote-tls-psk=%s", serve->remote_tls.psk);
  if (serve->remote_tls.username)
    add_arg (command, "remote-tls-username=%s", serve->remote_tls.username);
  add_arg (command, "follow=true");
  add_arg (command, "resume=%s", serve->no_resume ? "false" : "true");
  if (serve->read_only)
    add_arg (command, "read-only=true");
  add_arg (command, "max-waiting=%" PRIu64, serve->threads - 1);
  add_arg (command, "max-connections=%" PRIu64, serve->max_connections);
  if (filters.image_decides)
    add_arg (command, "prefetch=image");
  add_arg (command, "keeper=%d", KEEPER_FD);
  add_arg (command, "memory=%d", MEMORY_FD);
  for (; *extra; extra++)
    add_arg (command, "%s", *extra);
}

/* One line, so that a script need not know where the object ends. */
static void
print_json_line (json_t *root)
{
  if (root == NULL || json_dumpf (root, stdout, JSON_COMPACT) == -1)
    nc_error ("cannot print the URI as JSON");
  putchar ('\n');
  json_decref (root);
}

static void
print_uri (const struct serve *serve, pid_t pid)
{
  if (systemd_reads (STDOUT_FILENO))
    fputs (SYSTEMD_INFO, stdout);
  if (serve->json)
    print_json_line (json_pack ("{s:o, s:I, s:I, s:o}",
                                "uri", json_text (serve->listener.uri),
                                "pid", (json_int_t) getpid (),
                                "nbdkit_pid", (json_int_t) pid,
                                "socket", json_text (serve->listener.path)));
  else
    puts (serve->listener.uri);
  fflush (stdout);
}

static void
announce (void *opaque, pid_t pid, bool first)
{
  const struct serve *serve = opaque;

  if (first)
    print_uri (serve, pid);
  systemd_notify ("%sSTATUS=serving %s", first ? "READY=1\n" : "",
                  serve->listener.uri);
}

static int
open_listener (struct serve *serve)
{
  if (serve->inherited)
    return listener_open_inherited (&serve->listener, SYSTEMD_FD);
  if (serve->port)
    return listener_open_tcp (&serve->listener,
                              serve->address ? serve->address
                              : ADDRESS_DEFAULT, serve->port);
  return listener_open_unix (&serve->listener, serve->socket,
                             serve->socket_mode);
}

/* The URI is for a client on this machine, who can read the same files. */
static int
add_tls_to_uri (struct serve *serve)
{
  const struct tls *tls = &serve->tls;

  if (tls->psk)
    return listener_add_tls (&serve->listener, tls->user, "tls-psk-file",
                             tls->path);
  if (tls->certificates == NULL)
    return 0;
  if (serve->listener.path)
    nc_error ("warning: most clients cannot verify a certificate over a Unix "
              "socket, since there is no host name: use --port, or --tls-psk");
  return listener_add_tls (&serve->listener, NULL, "tls-certificates",
                           tls->path);
}

static int
run (struct serve *serve, const char *image, char *extra[])
{
  struct supervisor_options supervisor = {
    .read_only = serve->read_only,
    .ready = announce,
    .opaque = serve,
  };
  struct args command = { NULL, 0, false };
  int status = EXIT_FAILED;

  if (environment_check () == -1 || check_credentials (&serve->tls) == -1)
    return EXIT_FAILED;
  make_command (serve, image, extra, &command);
  if (command.failed || serve->parameters.failed) {
    nc_error ("out of memory");
    free_args (&command);
    return EXIT_FAILED;
  }
  if (open_listener (serve) == 0) {
    supervisor.argv = command.v;
    supervisor.listen_fd = serve->listener.fd;
    if (add_tls_to_uri (serve) == 0)
      status = supervise (&supervisor);
    listener_close (&serve->listener);
  }
  free_args (&command);
  return status;
}

/* What is wrong with the command line as a whole, if anything is. */
static int
check_arguments (const struct serve *serve, int n_images, const char *image,
                 char *extra[])
{
  if (n_images != 1) {
    nc_error (n_images == 0 ? "the name of the IMAGE is missing" :
              "one IMAGE is served at a time (options for nbdkit go behind "
              "\"--\")");
    return -1;
  }
  if (image[0] == '\0') {
    nc_error ("the name of the IMAGE is empty");
    return -1;
  }
  return check_options (serve) == -1 ? -1 : nbdkit_options_check (extra);
}

/* Parse ARGV.  Returns -1, or the exit code if that is all there is to
 * do. */
static int
parse_options (struct serve *serve, int argc, char *argv[])
{
  int c;

  while ((c = getopt_long (argc, argv, short_options, options, NULL)) != -1) {
    if (c == 'h') {
      fputs (help, stdout);
      return EXIT_DONE;
    }
    if (c == '?' || parse_option (serve, c, optarg) == -1)
      return usage_error (argv[0]);
  }
  return -1;
}

int
serve_main (int argc, char *argv[])
{
  struct serve serve = {
    .socket_mode = MODE_DEFAULT,
    .threads = THREADS_DEFAULT, .max_connections = CONNECTIONS_DEFAULT,
  };
  int own = 1, image, status;
  char **extra;

  if (log_begin () == -1)
    return EXIT_FAILED;
  /* What follows "--" is not ours. */
  while (own < argc && strcmp (argv[own], "--") != 0)
    own++;
  extra = argv + own + (own < argc);

  status = parse_options (&serve, own, argv);
  image = optind;
  if (status == -1) {
    int n = systemd_sockets ();

    serve.inherited = n > 0;
    if (n > 1)
      nc_error ("%d sockets were inherited (LISTEN_FDS), but a disk is served "
                "on one: let the .socket unit have one ListenStream=", n);
    if (n == -1 || n > 1)
      status = EXIT_USAGE;
  }
  if (status == -1 && (remote_tls_check (&serve.remote_tls) == -1 ||
                       check_tls_options (&serve.tls) == -1))
    status = usage_error (argv[0]);
  if (status == -1 && check_arguments (&serve, own - image, argv[image],
                                       extra) == -1)
    status = usage_error (argv[0]);
  if (status == -1)
    status = run (&serve, argv[image], extra);
  free_args (&serve.parameters);
  free (serve.tls.path);
  free (serve.tls.user);
  return status;
}
