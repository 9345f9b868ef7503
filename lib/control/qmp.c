/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Sockets, clients and their queues.
 *
 * Who has something for a client puts it into the client's queue and wakes
 * its thread; only that thread touches the socket, and it never blocks in
 * it.  One lock guards the list of clients and all queues; it is held for
 * the copying of a message at most.
 */

#include <config.h>

#include "control/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "chain/chain.h"
#include "control/command.h"
#include "control/commands.h"
#include "control/frame.h"
#include "job/job.h"
#include "util/report.h"
#include "util/scope.h"
#include "util/unix-socket.h"

#define INPUT_SIZE 4096

struct bytes {
  char *data;
  size_t len, size;
};

struct client {
  struct nc_control *control;
  struct client *next;          /* in control->clients or control->dead */
  int fd, wake_fd;
  pthread_t thread;

  /* Guarded by control->lock. */
  struct bytes queue;
  bool negotiated;              /* gets events */
  bool dropped, slow;           /* slow: that is why */

  /* Only of its thread. */
  enum nc_session session;
  struct nc_frame frame;
  char input[INPUT_SIZE];
  size_t input_at, input_len;
  struct bytes sending;
  size_t sent;                  /* of sending */
  bool ended;                   /* nothing more comes, or is taken */
};

struct nc_control {
  char *path;
  struct nc_socket_name name;   /* of the socket */
  int fd, wake_fd;              /* wake_fd: a client is gone, or all end */
  struct nc_commands commands;
  struct nc_control_state state;
  struct nc_io_errors io_errors;

  pthread_t thread;
  bool started, stopped;        /* of who starts and stops */

  pthread_mutex_t lock;         /* guards what follows */
  struct client *clients, *dead;
  unsigned n_clients;
  bool stopping;
};

/* Queues. */

static int
append (struct bytes *bytes, const char *data, size_t len)
{
  if (bytes->size - bytes->len < len) {
    const size_t size = 2 * (bytes->len + len);
    char *grown = realloc (bytes->data, size);

    if (grown == NULL)
      return -1;
    bytes->data = grown;
    bytes->size = size;
  }
  memcpy (bytes->data + bytes->len, data, len);
  bytes->len += len;
  return 0;
}

static void
wake (int fd)
{
  const uint64_t one = 1;

  if (write (fd, &one, sizeof one) == -1)
    nc_error ("control socket: eventfd: %m");
}

static void
drop_locked (struct client *client)
{
  client->dropped = true;
  wake (client->wake_fd);
}

/* A message as a line, in ASCII as QEMU's are. */
static char *
line_of (json_t *message, size_t *len)
{
  char *text = message ? json_dumps (message, JSON_COMPACT |
                                       JSON_ENSURE_ASCII) : NULL;
  char *line = text ? realloc (text, strlen (text) + 3) : NULL;

  if (line == NULL) {
    free (text);
    return NULL;
  }
  strcat (line, "\r\n");
  *len = strlen (line);
  return line;
}

/* Send MESSAGE, a new reference or NULL, to the client, from its thread. */
static void
send_message (struct client *client, json_t *message)
{
  size_t len;
  NC_FREE char *line = line_of (message, &len);

  json_decref (message);
  {
    NC_LOCKED (&client->control->lock);
    if (line == NULL || append (&client->queue, line, len) == -1)
      client->dropped = true;
  }
}

static json_t *
timestamp (void)
{
  struct timeval now;

  gettimeofday (&now, NULL);
  return json_pack ("{s:I, s:I}", "seconds", (json_int_t) now.tv_sec,
                    "microseconds", (json_int_t) now.tv_usec);
}

void
nc_control_event (struct nc_control *control, const char *name,
                  json_t *data)
{
  json_t *event = json_pack ("{s:o, s:s, s:o}", "timestamp", timestamp (),
                             "event", name, "data", data);
  size_t len;
  NC_FREE char *line = line_of (event, &len);

  json_decref (event);
  if (line == NULL)
    return;
  NC_LOCKED (&control->lock);
  for (struct client *c = control->clients; c; c = c->next) {
    if (!c->negotiated || c->dropped)
      continue;
    if (c->queue.len + len > NC_CONTROL_QUEUE ||
        append (&c->queue, line, len) == -1) {
      c->slow = true;
      drop_locked (c);
    }
    else
      wake (c->wake_fd);
  }
}

void
nc_control_io_error (struct nc_control *control,
                     enum nc_job_operation operation, int err)
{
  struct nc_chain *chain = control->state.opts.chain;
  const int saved = errno;
  struct timespec now;
  json_t *data;

  clock_gettime (CLOCK_MONOTONIC, &now);
  data = nc_io_error_data (&control->io_errors, operation, err,
                           chain ? nc_chain_layer_name (chain, 0) : NULL,
                           (uint64_t) now.tv_sec * 1000000000 + now.tv_nsec);
  if (data)
    nc_control_event (control, "BLOCK_IO_ERROR", data);
  errno = saved;
}

/* A client, in its thread. */

static json_t *
greeting (void)
{
  return json_pack ("{s:{s:o, s:[]}}", "QMP", "version", nc_qmp_version (),
                    "capabilities");
}

static void
take_text (struct client *client)
{
  const enum nc_session before = client->session;
  json_t *reply = nc_commands_answer (&client->control->commands,
                                      &client->session, client->frame.text,
                                      client->frame.len);

  nc_frame_reset (&client->frame);
  send_message (client, reply);
  if (before != client->session) {
    NC_LOCKED (&client->control->lock);
    client->negotiated = true;
  }
}

static void
take_byte (struct client *client, char c)
{
  switch (nc_frame_feed (&client->frame, c)) {
  case NC_FRAME_MORE:
    break;
  case NC_FRAME_TEXT:
    take_text (client);
    break;
  case NC_FRAME_BAD:
    send_message (client, nc_command_error_reply (
        NC_ERROR_GENERIC, "this line is no JSON, and was dropped"));
    break;
  case NC_FRAME_TOO_LARGE:
    send_message (client, nc_command_error_reply (
        NC_ERROR_GENERIC, "a command has more than 65536 bytes, or more "
        "than 32 objects and lists in one another: hanging up"));
    client->ended = true;
    break;
  case NC_FRAME_NO_MEMORY:
    client->ended = true;
    break;
  }
}

/* Bytes that wait to be sent. */
static size_t
backlog (struct client *client)
{
  NC_LOCKED (&client->control->lock);
  return client->sending.len - client->sent + client->queue.len;
}

/* Take what was received, as long as the client reads the replies. */
static void
take_input (struct client *client)
{
  while (client->input_at < client->input_len && !client->ended &&
         (client->frame.depth > 0 || backlog (client) < NC_CONTROL_BACKLOG))
    take_byte (client, client->input[client->input_at++]);
}

static void
receive (struct client *client)
{
  const ssize_t n = recv (client->fd, client->input, sizeof client->input,
                          MSG_DONTWAIT);

  if (n > 0) {
    client->input_at = 0;
    client->input_len = n;
  }
  else if (n == 0 || (errno != EAGAIN && errno != EINTR))
    client->ended = true;
}

/* Move the queue to where it is sent from.  Returns whether there is
 * anything to send. */
static bool
fetch (struct client *client)
{
  struct bytes empty = client->sending;

  if (client->sent < client->sending.len)
    return true;
  empty.len = client->sent = 0;
  {
    NC_LOCKED (&client->control->lock);
    client->sending = client->queue;
    client->queue = empty;
  }
  return client->sending.len > 0;
}

static int
transmit (struct client *client)
{
  const ssize_t n = send (client->fd, client->sending.data + client->sent,
                          client->sending.len - client->sent,
                          MSG_DONTWAIT | MSG_NOSIGNAL);

  if (n >= 0)
    client->sent += n;
  else if (errno != EAGAIN && errno != EINTR)
    return -1;
  return 0;
}

static bool
is_dropped (struct client *client)
{
  static struct nc_repeat unread;
  char times[NC_REPEAT_TEXT];
  bool slow;

  {
    NC_LOCKED (&client->control->lock);
    if (!client->dropped)
      return false;
    slow = client->slow;
  }
  if (slow && nc_repeat_report (&unread, 1, times))
    nc_error ("control socket: a client that does not read its events is "
              "dropped%s", times);
  return true;
}

/* One round: wait for the socket or for a wake-up.  Returns -1 when the
 * client is to end. */
static int
serve_once (struct client *client)
{
  struct pollfd fds[2] = {
    { .fd = client->wake_fd, .events = POLLIN },
    { .fd = client->fd },
  };
  uint64_t count;

  take_input (client);
  if (fetch (client))
    fds[1].events |= POLLOUT;
  else if (client->ended)
    return -1;
  if (!client->ended && client->input_at == client->input_len)
    fds[1].events |= POLLIN;
  if (poll (fds, 2, -1) == -1 && errno != EINTR)
    return -1;
  if (fds[0].revents && read (client->wake_fd, &count, sizeof count) == -1)
    return -1;
  if (is_dropped (client))
    return -1;
  if (fds[1].revents & (POLLOUT | POLLERR | POLLHUP) &&
      fds[1].events & POLLOUT && transmit (client) == -1)
    return -1;
  if (fds[1].revents & (POLLIN | POLLERR | POLLHUP) &&
      fds[1].events & POLLIN)
    receive (client);
  return 0;
}

static void
destroy (struct client *client)
{
  close (client->fd);
  close (client->wake_fd);
  nc_frame_free (&client->frame);
  free (client->queue.data);
  free (client->sending.data);
  free (client);
}

static void *
client_main (void *arg)
{
  struct client *client = arg;
  struct nc_control *control = client->control;
  struct client **p;

  send_message (client, greeting ());
  while (serve_once (client) == 0)
    ;
  /* The last reply of a server that ends. */
  if (fetch (client))
    transmit (client);
  shutdown (client->fd, SHUT_RDWR);
  {
    NC_LOCKED (&control->lock);
    for (p = &control->clients; *p != client; p = &(*p)->next)
      ;
    *p = client->next;
    client->next = control->dead;
    control->dead = client;
    control->n_clients--;
  }
  wake (control->wake_fd);
  return NULL;
}

/* Accepting. */

static void
reap (struct nc_control *control)
{
  struct client *client, *next;

  {
    NC_LOCKED (&control->lock);
    client = control->dead;
    control->dead = NULL;
  }
  for (; client; client = next) {
    next = client->next;
    pthread_join (client->thread, NULL);
    destroy (client);
  }
}

/* Tell a client that is not served why. */
static void
turn_away (int fd, const char *why)
{
  json_t *reply = nc_command_error_reply (NC_ERROR_GENERIC, why);
  size_t len;
  NC_FREE char *line = line_of (reply, &len);

  json_decref (reply);
  if (line && send (fd, line, len, MSG_DONTWAIT | MSG_NOSIGNAL) == -1)
    nc_debug ("control socket: %m");
}

static bool
is_our_user (int fd)
{
  static struct nc_repeat refused;
  char times[NC_REPEAT_TEXT];
  struct ucred peer;
  socklen_t len = sizeof peer;

  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == -1) {
    nc_error ("control socket: SO_PEERCRED: %m");
    return false;
  }
  if (peer.uid == geteuid ())
    return true;
  if (nc_repeat_report (&refused, 1, times))
    nc_error ("control socket: a client of user %u is refused: only user %u "
              "may come%s", (unsigned) peer.uid, (unsigned) geteuid (), times);
  return false;
}

static struct client *
new_client (struct nc_control *control, int fd)
{
  struct client *client = calloc (1, sizeof *client);

  if (client == NULL)
    return NULL;
  client->control = control;
  client->fd = fd;
  client->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (client->wake_fd == -1) {
    free (client);
    return NULL;
  }
  return client;
}

/* Serve the client behind FD.  Returns -1 if there is no room for it. */
static int
add_client (struct nc_control *control, int fd)
{
  struct client *client;
  int err;

  NC_LOCKED (&control->lock);
  if (control->n_clients == NC_CONTROL_CLIENTS)
    return -1;
  client = new_client (control, fd);
  if (client == NULL)
    return -1;
  err = pthread_create (&client->thread, NULL, client_main, client);
  if (err) {
    close (client->wake_fd);
    free (client);
    return -1;
  }
  client->next = control->clients;
  control->clients = client;
  control->n_clients++;
  return 0;
}

static void
accept_one (struct nc_control *control)
{
  const int fd = accept4 (control->fd, NULL, NULL, SOCK_CLOEXEC);

  if (fd == -1) {
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      nc_error ("control socket: %s: %m", control->path);
      /* Such as too many open files: it does not end by trying at once. */
      poll (NULL, 0, 100);
    }
    return;
  }
  if (!is_our_user (fd)) {
    turn_away (fd, "only the user that the server runs as may come");
    close (fd);
  }
  else if (add_client (control, fd) == -1) {
    turn_away (fd, "there are as many clients as can be served: try again "
               "when one has gone");
    close (fd);
  }
}

static bool
is_stopping (struct nc_control *control)
{
  NC_LOCKED (&control->lock);
  return control->stopping;
}

static void *
control_main (void *arg)
{
  struct nc_control *control = arg;
  uint64_t count;
  struct pollfd fds[2] = {
    { .fd = control->wake_fd, .events = POLLIN },
    { .fd = control->fd, .events = POLLIN },
  };

  for (;;) {
    if (poll (fds, 2, -1) == -1 && errno != EINTR) {
      nc_error ("control socket: poll: %m");
      return NULL;
    }
    if (fds[0].revents &&
        read (control->wake_fd, &count, sizeof count) == -1)
      nc_debug ("control socket: eventfd: %m");
    if (is_stopping (control))
      return NULL;
    reap (control);
    if (fds[1].revents)
      accept_one (control);
  }
}

/* Opening and closing. */

struct nc_control *
nc_control_open (const char *path)
{
  struct nc_control *control = calloc (1, sizeof *control);
  int err;

  if (control == NULL) {
    nc_error ("control socket: %m");
    return NULL;
  }
  control->fd = -1;
  control->name = (struct nc_socket_name) NC_SOCKET_NAME_NONE;
  pthread_mutex_init (&control->lock, NULL);
  pthread_mutex_init (&control->io_errors.lock, NULL);
  control->path = strdup (path);
  control->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (control->path == NULL || control->wake_fd == -1)
    nc_error ("control socket: %m");
  else
    control->fd = nc_listen_unix ("control socket", path, 0600,
                                  NC_CONTROL_CLIENTS, &control->name);
  if (control->fd >= 0 && fcntl (control->fd, F_SETFL, O_NONBLOCK) == 0)
    return control;
  err = errno;
  nc_control_close (control);
  errno = err;
  return NULL;
}

int
nc_control_add (struct nc_control *control, const struct nc_command *command,
                void *opaque)
{
  return nc_commands_add (&control->commands, command, opaque);
}

int
nc_control_start (struct nc_control *control,
                  const struct nc_control_options *opts)
{
  sigset_t all, before;
  int err;

  control->state.opts = *opts;
  if (nc_control_add_commands (&control->commands, &control->state) == -1)
    return -1;
  /* Signals are for the threads of the host; clients' threads inherit. */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  err = pthread_create (&control->thread, NULL, control_main, control);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (err) {
    errno = err;
    nc_error ("control socket: thread: %m");
    return -1;
  }
  control->started = true;
  nc_jobs_set_sink (opts->jobs, nc_control_job_event, control);
  return 0;
}

void
nc_control_say_end (struct nc_control *control, bool was_quit)
{
  nc_control_event (control, "SHUTDOWN",
                    json_pack ("{s:b, s:s}", "guest", 0, "reason",
                               was_quit ? "host-qmp-quit" : "host-signal"));
}

/* Tell all clients to end, and wait until they have. */
static void
end_clients (struct nc_control *control)
{
  struct client *client;

  for (;;) {
    {
      NC_LOCKED (&control->lock);
      client = control->clients;
      for (struct client *c = client; c; c = c->next)
        drop_locked (c);
    }
    reap (control);
    if (client == NULL)
      return;
    poll (NULL, 0, 1);
  }
}

void
nc_control_stop (struct nc_control *control)
{
  if (control->stopped)
    return;
  control->stopped = true;
  if (control->started) {
    {
      NC_LOCKED (&control->lock);
      control->stopping = true;
    }
    wake (control->wake_fd);
    pthread_join (control->thread, NULL);
    nc_jobs_set_sink (control->state.opts.jobs, NULL, NULL);
    end_clients (control);
  }
  nc_socket_name_remove (&control->name);
}

void
nc_control_close (struct nc_control *control)
{
  if (control == NULL)
    return;
  nc_control_stop (control);
  if (control->fd >= 0)
    close (control->fd);
  if (control->wake_fd >= 0)
    close (control->wake_fd);
  pthread_mutex_destroy (&control->lock);
  pthread_mutex_destroy (&control->io_errors.lock);
  free (control->path);
  free (control);
}
