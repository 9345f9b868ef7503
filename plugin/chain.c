/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The nbdkit plugin: options and callbacks, nothing else.
 *
 * Order of start-up (nbdkit 1.32): .get_ready opens and locks the images and
 * probes remotes, so that an error still reaches the user; threads and
 * connections start in .after_fork.  "nbdchain serve" hands over one end of
 * a socket pair (keeper=) and the memory that outlives this process
 * (memory=).
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "chain/chain.h"
#include "chain/ref.h"
#include "control/qmp.h"
#include "job/job.h"
#include "job/record.h"
#include "job/stream.h"
#include "nbd/tls.h"
#include "serve/clients.h"
#include "serve/server.h"
#include "serve/supervise.h"
#include "serve/traffic.h"
#include "util/path.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/text.h"
#include "util/unix-socket.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define MAX_WAITING_DEFAULT 15  /* one less than nbdkit's default threads */

enum detect_zeroes { DETECT_OFF, DETECT_ON, DETECT_UNMAP };

static struct {
  char *image;
  char *format;
  char *base;
  char *data_file;
  char *enlarge;
  struct nc_allow *allow;
  char *tls_certificates, *tls_psk, *tls_username;      /* for remotes */
  char *control;                /* path of the control socket; NULL: none */
  char *jobs;                   /* path of the record of jobs; NULL: beside
                                   the image */
  unsigned retry, max_waiting;
  struct nc_clients_options clients;
  enum detect_zeroes detect_zeroes;
  int follow, read_only, resume;
  int keeper_fd, memory_fd;
} config = {
  .retry = NC_RETRY_DEFAULT,
  .max_waiting = MAX_WAITING_DEFAULT,
  .clients = {
    .handshake = NC_HANDSHAKE_DEFAULT, .memory = NC_TRAFFIC_MEMORY_DEFAULT,
  },
  .keeper_fd = -1,
  .memory_fd = -1,
};

static struct nc_chain *chain;
static struct nc_supervise *supervise;
static struct nc_jobs *jobs;
static struct nc_control *control;
static _Atomic (bool) was_quit; /* by a command */
static struct nc_path jobs_file = NC_PATH_NONE; /* where they are recorded */
static char jobs_uuid[37];      /* of the image that they are recorded for */

static void
to_nbdkit (enum nc_report_level level, const char *fmt, va_list args)
{
  /* References found in images are hostile: nothing in them may steer a
   * terminal, or look like a message of its own in a log. */
  NC_FREE char *text = nc_text_format (fmt, args);
  const char *shown = text ? text : "no memory for a message";

  /* nbdkit shows errors only, unless it is debugged. */
  if (level == NC_REPORT_DEBUG)
    nbdkit_debug ("%s", shown);
  else
    nbdkit_error ("%s", shown);
}

static void
chain_load (void)
{
  signal (SIGXFSZ, SIG_IGN);    /* a write beyond "ulimit -f" is EFBIG */
  nc_report_to (to_nbdkit);
  nc_clients_begin ();
  config.allow = nc_allow_new ();
}

/* Nothing moves data, and nobody can ask for it, before the chain stops. */
static int
stop_all (void)
{
  if (control)                  /* before jobs end that go on later */
    nc_control_say_end (control, was_quit);
  nc_server_stop ();
  if (jobs)
    nc_jobs_stop (jobs);
  if (control)
    nc_control_stop (control);
  return chain ? nc_chain_stop (chain) : 0;
}

static void
chain_unload (void)
{
  nc_supervise_end (supervise);
  stop_all ();
  nc_clients_end ();
  nc_server_end ();
  nc_control_close (control);
  nc_jobs_free (jobs);
  nc_chain_close (chain);
  nc_allow_free (config.allow);
  nc_path_close (&jobs_file);
  free (config.image);
  free (config.format);
  free (config.base);
  free (config.data_file);
  free (config.enlarge);
  free (config.tls_certificates);
  free (config.tls_psk);
  free (config.tls_username);
  free (config.control);
  free (config.jobs);
}

/* Options. */

static int
config_string (const char *key, const char *value, char **to)
{
  if (*to) {
    nbdkit_error ("%s= was given twice, '%s' and '%s'", key, *to, value);
    return -1;
  }
  *to = strdup (value);
  if (*to == NULL) {
    nbdkit_error ("%s=: %m", key);
    return -1;
  }
  return 0;
}

/* A path that is used later, when the directory may be another one. */
static int
config_path (const char *key, const char *value, char **to)
{
  char *path = nbdkit_absolute_path (value);
  int r = path ? config_string (key, path, to) : -1;

  free (path);
  return r;
}

static int
config_detect_zeroes (const char *value)
{
  static const char *const words[] = {
    [DETECT_OFF] = "off", [DETECT_ON] = "on", [DETECT_UNMAP] = "unmap",
  };

  for (unsigned i = 0; i < sizeof words / sizeof words[0]; ++i)
    if (strcmp (value, words[i]) == 0) {
      config.detect_zeroes = i;
      return 0;
    }
  nbdkit_error ("detect-zeroes=%s: must be off, on or unmap", value);
  return -1;
}

static int
config_bool (const char *value, int *to)
{
  *to = nbdkit_parse_bool (value);
  return *to == -1 ? -1 : 0;
}

/* A file descriptor from "nbdchain serve", not for our own children. */
static int
config_fd (const char *key, const char *value, int *fd)
{
  if (nbdkit_parse_int (key, value, fd) == -1)
    return -1;
  if (fcntl (*fd, F_SETFD, FD_CLOEXEC) == -1) {
    nbdkit_error ("%s=%d: %m", key, *fd);
    return -1;
  }
  return 0;
}

static int
config_memory (const char *value)
{
  const int64_t bytes = nbdkit_parse_size (value);

  if (bytes == -1)
    return -1;
  if (bytes < (int64_t) NC_TRAFFIC_MEMORY_MIN) {
    nbdkit_error ("max-memory=%s: must be at least %" PRIu64 "M", value,
                  NC_TRAFFIC_MEMORY_MIN >> 20);
    return -1;
  }
  config.clients.memory = bytes;
  return 0;
}

static int
chain_config (const char *key, const char *value)
{
  if (strcmp (key, "image") == 0)
    return config_path (key, value, &config.image);
  if (strcmp (key, "format") == 0)
    return config_string (key, value, &config.format);
  if (strcmp (key, "base") == 0)
    return config_string (key, value, &config.base);
  if (strcmp (key, "data-file") == 0)
    return config_path (key, value, &config.data_file);
  if (strcmp (key, "enlarge") == 0)
    return config_string (key, value, &config.enlarge);
  if (strcmp (key, "allow") == 0)
    return config.allow ? nc_allow_add (config.allow, value) : -1;
  if (strcmp (key, "remote-tls-certificates") == 0)
    return config_path (key, value, &config.tls_certificates);
  if (strcmp (key, "remote-tls-psk") == 0)
    return config_path (key, value, &config.tls_psk);
  if (strcmp (key, "remote-tls-username") == 0)
    return config_string (key, value, &config.tls_username);
  if (strcmp (key, "retry") == 0)
    return nbdkit_parse_unsigned (key, value, &config.retry);
  if (strcmp (key, "max-waiting") == 0)
    return nbdkit_parse_unsigned (key, value, &config.max_waiting);
  if (strcmp (key, "max-connections") == 0)
    return nbdkit_parse_unsigned (key, value, &config.clients.max);
  if (strcmp (key, "handshake-timeout") == 0)
    return nbdkit_parse_unsigned (key, value, &config.clients.handshake);
  if (strcmp (key, "max-memory") == 0)
    return config_memory (value);
  if (strcmp (key, "detect-zeroes") == 0)
    return config_detect_zeroes (value);
  if (strcmp (key, "control") == 0)
    return config_path (key, value, &config.control);
  if (strcmp (key, "resume") == 0)
    return config_bool (value, &config.resume);
  if (strcmp (key, "jobs") == 0)
    return config_path (key, value, &config.jobs);
  if (strcmp (key, "follow") == 0)
    return config_bool (value, &config.follow);
  if (strcmp (key, "read-only") == 0)
    return config_bool (value, &config.read_only);
  if (strcmp (key, "keeper") == 0)
    return config_fd (key, value, &config.keeper_fd);
  if (strcmp (key, "memory") == 0)
    return config_fd (key, value, &config.memory_fd);
  nbdkit_error ("unknown parameter '%s'; see nbdkit-chain-plugin(1)", key);
  return -1;
}

static int
chain_config_complete (void)
{
  if (config.image == NULL) {
    nbdkit_error ("name the top image of the chain: nbdkit chain IMAGE");
    return -1;
  }
  if (config.tls_certificates && config.tls_psk) {
    nbdkit_error ("remote-tls-certificates= and remote-tls-psk= exclude each "
                  "other: there is one way to trust all remotes");
    return -1;
  }
  if (config.tls_username && config.tls_psk == NULL) {
    nbdkit_error ("remote-tls-username= goes with remote-tls-psk=, which is "
                  "missing");
    return -1;
  }
  if (config.jobs && !config.resume) {
    nbdkit_error ("jobs= goes with resume=true, which is missing");
    return -1;
  }
  return 0;
}

#define chain_config_help \
  "[image=]<IMAGE>       (required) The top image of the chain.\n" \
  "format=<FORMAT>       Its format, fvd or raw (default: fvd).\n" \
  "allow=<DIR>|<URI>     Follow references in images to this place, too;\n" \
  "                      may be repeated.\n" \
  "base=<REFERENCE>      Use this base in place of the one in the lowest\n" \
  "                      image: a file, an NBD URI or '[ command args ]'.\n" \
  "data-file=<FILE>      The data file of the image, in place of that named in\n" \
  "                      it; needed to write to one that carries no mark.\n" \
  "remote-tls-certificates=<DIR>\n" \
  "                      For remotes named nbds: the directory with the\n" \
  "                      ca-cert.pem that signed their certificates.\n" \
  "remote-tls-psk=<FILE> For remotes named nbds: a file of keys instead.\n" \
  "remote-tls-username=<NAME>\n" \
  "                      Whose key in that file; needed if it has several.\n" \
  "retry=<SECONDS>       How long requests wait for a remote that cannot be\n" \
  "                      reached; 0 is for ever (default: 60).\n" \
  "max-waiting=<N>       How many requests of a connection may be blocked on a\n" \
  "                      remote; 0 is no limit (default: 15).\n" \
  "max-connections=<N>   How many connections may be open at a time; 0 is no\n" \
  "                      limit (default: 0).\n" \
  "handshake-timeout=<SECONDS>\n" \
  "                      End connections whose handshake takes longer; 0 is\n" \
  "                      no limit (default: 20).\n" \
  "max-memory=<SIZE>     Memory for the data of large requests, of which a\n" \
  "                      connection may use half (default: 1G).\n" \
  "detect-zeroes=off|on|unmap\n" \
  "                      Store written zeros as zeros (default: off).\n" \
  "enlarge=<COMMAND>     Run this when the device of a compact image is full.\n" \
  "follow=<BOOL>         If the image was retired, serve the one that took\n" \
  "                      over (default: false).\n" \
  "read-only=<BOOL>      Open the image for reading only (default: false, but\n" \
  "                      true where it cannot be written).  nbdkit -r alone\n" \
  "                      only keeps clients from writing.\n" \
  "control=<SOCKET>      Answer to QMP on a Unix socket of this name\n" \
  "                      (default: none).\n" \
  "resume=<BOOL>         Record which jobs run, and go on with those that ran\n" \
  "                      when the last server ended (default: false).\n" \
  "jobs=<FILE>           Where (default: IMAGE.jobs).\n" \
  "keeper=<FD>, memory=<FD>\n" \
  "                      Used by \"nbdchain serve\".\n"

/* Start and stop. */

/* On read-only media, or without the permission to write. */
static bool
cannot_be_written (void)
{
  if (access (config.image, W_OK) == 0 ||
      (errno != EROFS && errno != EACCES && errno != EPERM))
    return false;
  nbdkit_debug ("%s: %m: serving it read-only", config.image);
  return true;
}

/* Find out where jobs are recorded, and for which image: jobs_file stays
 * NC_PATH_NONE if they are not. */
static int
find_jobs_file (void)
{
  const struct nc_path *image = nc_chain_active_file (chain, jobs_uuid);

  /* Without a UUID nothing tells an image from one that took its name. */
  if (!config.resume || !nc_chain_is_writable (chain) || *jobs_uuid == '\0')
    return 0;
  if (config.jobs)
    return nc_path_find (config.jobs, &jobs_file);
  if (image)
    return nc_path_beside (image, ".jobs", &jobs_file);
  nc_debug ("%s: which jobs run is not recorded", config.image);
  return 0;
}

/* What a record of jobs would take the place of must be one.  A raw layer has
 * the bytes that a guest gave it, so these do not tell. */
static int
check_jobs (void)
{
  if (find_jobs_file () == -1)
    return -1;
  if (jobs_file.dir == -1)
    return 0;
  if (nc_chain_has_file (chain, &jobs_file)) {
    nc_error ("%s/%s: is a file of the disk that is to be served, and a record "
              "of jobs would take its place: have the record elsewhere "
              "(nbdchain serve --jobs FILE, jobs=FILE)", jobs_file.real,
              jobs_file.name);
    return -1;
  }
  return nc_record_check (&jobs_file);
}

static int
resume_jobs (void)
{
  static const struct nc_job_kind kinds[] = {
    { "stream", nc_stream_resume },
    { NULL, NULL }
  };

  return jobs_file.dir == -1 ? 0
    : nc_jobs_resume (jobs, &jobs_file, jobs_uuid, "disk", kinds, chain);
}

static int
chain_get_ready (void)
{
  const struct nc_tls tls = {
    .certificates = config.tls_certificates,
    .psk = config.tls_psk,
    .username = config.tls_username,
  };
  struct nc_chain_options opts = {
    .image = config.image,
    .format = config.format,
    .base = config.base,
    .data_file = config.data_file,
    .enlarge = config.enlarge,
    .allow = config.allow,
    .tls = &tls,
    .retry = config.retry,
    .memory_fd = config.memory_fd,
    .read_only = config.read_only || cannot_be_written (),
    .follow = config.follow,
  };

  /* Only to see that it can be made, while the user sees an error: nbdkit
   * may yet become another user, whose socket it must be. */
  if (config.control &&
      nc_listen_check ("control socket", config.control) == -1)
    return -1;
  jobs = nc_jobs_new ();
  chain = jobs ? nc_chain_open (&opts) : NULL;
  if (chain == NULL)
    return -1;
  if (check_jobs () == -1) {
    nc_chain_stop (chain);      /* nbdkit exits without a call of unload */
    return -1;
  }
  nc_server_begin (chain, jobs);
  return 0;
}

static int
stop (void *opaque __attribute__ ((__unused__)))
{
  return stop_all () == -1 && !nc_chain_is_durable (chain) ? -1
    : (int) nc_clients_count ();
}

/* The operator wants the server to end. */
static void
quit (void *opaque __attribute__ ((__unused__)))
{
  was_quit = true;
  if (supervise)
    nc_supervise_quit (supervise);
  else
    nbdkit_shutdown ();
}

static int
start_control (void)
{
  const struct nc_control_options opts = {
    .chain = chain, .jobs = jobs, .quit = quit,
  };

  return nc_control_start (control, &opts);
}

static int
chain_after_fork (void)
{
  if (nc_chain_start (chain) == -1 || nc_clients_start (&config.clients) == -1)
    return -1;
  /* There before serve says that it is ready, and answered once there is
   * whom to ask for the end. */
  if (config.control) {
    control = nc_control_open (config.control);
    if (control == NULL)
      return -1;
    nc_server_set_control (control);
  }
  if (nc_server_start () == -1)
    return -1;
  if (config.keeper_fd >= 0) {
    supervise = nc_supervise_start (config.keeper_fd, stop, NULL);
    if (supervise == NULL)
      return -1;
  }
  /* What is asked for comes after what was. */
  if (resume_jobs () == -1)
    return -1;
  return control ? start_control () : 0;
}

/* Exports. */

static int
chain_list_exports (int readonly __attribute__ ((__unused__)),
                    int is_tls __attribute__ ((__unused__)),
                    struct nbdkit_exports *exports)
{
  const size_t n = nc_chain_n_layers (chain);
  const char *name;

  if (nbdkit_add_export (exports, "disk", "the disk") == -1)
    return -1;
  for (size_t i = 1; i < n && (name = nc_chain_layer_name (chain, i)); ++i)
    if (nbdkit_add_export (exports, name,
                           "the disk as it was under this layer's overlay, "
                           "read-only") == -1)
      return -1;
  return 0;
}

static const char *
chain_default_export (int readonly __attribute__ ((__unused__)),
                      int is_tls __attribute__ ((__unused__)))
{
  return "disk";
}

/* Before the handshake: what is refused here costs one thread, and reads end
 * of file. */
static int
chain_preconnect (int readonly __attribute__ ((__unused__)))
{
  struct sockaddr_storage address;
  socklen_t len = sizeof address;

  if (nc_clients_have_sockets ())
    nbdkit_peer_name ((struct sockaddr *) &address, &len);
  return nc_clients_admit ();
}

static void *
chain_open (int readonly __attribute__ ((__unused__)))
{
  struct nc_export *export = nc_export_open (chain, nbdkit_export_name (),
                                             config.max_waiting);

  if (export)
    nc_clients_opened ();
  return export;
}

static void
chain_close (void *handle)
{
  nc_export_close (handle);
}

static const char *
chain_export_description (void *handle)
{
  const char *uuid = nc_export_uuid (handle);

  return *uuid ? nbdkit_printf_intern ("nbdchain disk %s", uuid) : NULL;
}

static int64_t
chain_get_size (void *handle)
{
  return nc_export_size (handle);
}

static int
chain_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                  uint32_t *maximum)
{
  *minimum = 1;
  *preferred = nc_export_block_size (handle);
  *maximum = 64 * 1024 * 1024;
  return 0;
}

static int
chain_can_write (void *handle)
{
  return nc_export_is_writable (handle);
}

static int
chain_yes (void *handle __attribute__ ((__unused__)))
{
  return 1;
}

static int
chain_can_cache (void *handle __attribute__ ((__unused__)))
{
  return NBDKIT_CACHE_NATIVE;
}

static int
chain_can_fua (void *handle __attribute__ ((__unused__)))
{
  return NBDKIT_FUA_NATIVE;
}

/* Requests. */

/* Also tell the operator that a request failed, if it did: R is -1 with errno
 * then.  Returns R. */
static int
telling (int r, enum nc_job_operation operation)
{
  if (r == -1 && control && errno != ESHUTDOWN && errno != ENOTSUP)
    nc_control_io_error (control, operation, errno);
  return r;
}

static unsigned
request_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? NC_REQ_FUA : 0) |
    (flags & NBDKIT_FLAG_MAY_TRIM ? NC_REQ_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? NC_REQ_FAST : 0);
}

static int
chain_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
             uint32_t flags __attribute__ ((__unused__)))
{
  return telling (nc_export_pread (handle, buf, count, offset), NC_JOB_READ);
}

static bool
is_zero (const char *buf, size_t count)
{
  return *buf == 0 && memcmp (buf, buf + 1, count - 1) == 0;
}

static int
chain_pwrite (void *handle, const void *buf, uint32_t count,
              uint64_t offset, uint32_t flags)
{
  unsigned f = request_flags (flags);

  if (config.detect_zeroes != DETECT_OFF && is_zero (buf, count)) {
    if (config.detect_zeroes == DETECT_UNMAP)
      f |= NC_REQ_MAY_TRIM;
    return telling (nc_export_zero (handle, offset, count, f), NC_JOB_WRITE);
  }
  return telling (nc_export_pwrite (handle, buf, count, offset, f),
                  NC_JOB_WRITE);
}

static int
chain_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return telling (nc_export_zero (handle, offset, count,
                                  request_flags (flags)), NC_JOB_WRITE);
}

static int
chain_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return telling (nc_export_trim (handle, offset, count,
                                  request_flags (flags)), NC_JOB_WRITE);
}

static int
chain_flush (void *handle, uint32_t flags __attribute__ ((__unused__)))
{
  return telling (nc_export_flush (handle), NC_JOB_WRITE);
}

static int
chain_cache (void *handle, uint32_t count, uint64_t offset,
             uint32_t flags __attribute__ ((__unused__)))
{
  return telling (nc_export_populate (handle, offset, count), NC_JOB_READ);
}

static int
add_extents (struct nbdkit_extents *to, const struct nc_extents *from)
{
  for (size_t i = 0; i < from->n; ++i) {
    const struct nc_extent *e = &from->v[i];

    if (nbdkit_add_extent (to, e->offset, e->count,
                           (e->type & NC_EXTENT_HOLE ?
                            NBDKIT_EXTENT_HOLE : 0) |
                           (e->type & NC_EXTENT_ZERO ?
                            NBDKIT_EXTENT_ZERO : 0)) == -1)
      return -1;
  }
  return 0;
}

static int
chain_extents (void *handle, uint32_t count, uint64_t offset,
               uint32_t flags, struct nbdkit_extents *extents)
{
  struct nc_extents list;
  int r;

  nc_extents_init (&list, offset, count);
  r = nc_export_extents (handle, &list, flags & NBDKIT_FLAG_REQ_ONE);
  if (r == 0)
    r = add_extents (extents, &list);
  nc_extents_free (&list);
  return r;
}

static struct nbdkit_plugin plugin = {
  .name = "chain",
  .longname = "nbdchain copy-on-write chain",
  .version = PACKAGE_VERSION,
  .description = "Serve a chain of copy-on-write images as one disk.",
  .load = chain_load,
  .unload = chain_unload,
  .config = chain_config,
  .config_complete = chain_config_complete,
  .config_help = chain_config_help,
  .magic_config_key = "image",
  .get_ready = chain_get_ready,
  .after_fork = chain_after_fork,
  .list_exports = chain_list_exports,
  .default_export = chain_default_export,
  .preconnect = chain_preconnect,
  .open = chain_open,
  .close = chain_close,
  .export_description = chain_export_description,
  .get_size = chain_get_size,
  .block_size = chain_block_size,
  .can_write = chain_can_write,
  .can_flush = chain_can_write,
  .can_trim = chain_can_write,
  .can_zero = chain_can_write,
  .can_fast_zero = chain_can_write,
  .can_extents = chain_yes,
  .can_cache = chain_can_cache,
  .can_fua = chain_can_fua,
  .can_multi_conn = chain_yes,
  .pread = chain_pread,
  .pwrite = chain_pwrite,
  .zero = chain_zero,
  .trim = chain_trim,
  .flush = chain_flush,
  .cache = chain_cache,
  .extents = chain_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
