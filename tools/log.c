/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Standard error without blocking, and nbdkit's messages on their way there.
 *
 * The description of standard error is shared with other processes, so its
 * flags stay as they are.  A socket has a flag for each call; a pipe is opened
 * anew; for anything else poll says whether a write would block. */

#include <config.h>

#include "log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools.h"
#include "util/clock.h"
#include "util/report.h"
#include "util/text.h"

#define LINE_MAX_LENGTH 2048    /* a longer one is cut; escaped it may take
                                   four times as many bytes */
#define PIPE_SIZE (1 << 20)
#define READS_MAX 16            /* of a call of log_receive */
#define KINDS 32

/* Lines that differ in numbers and quoted text only. */
struct kind {
  uint64_t hash;
  uint64_t since;               /* seconds; 0: free */
  unsigned passed;
  uint64_t suppressed;
  char sample[200];             /* the last that was suppressed */
};

static struct {
  bool on;
  bool is_socket;               /* standard error */
  int own_fd;                   /* standard error, opened without blocking; -1:
                                   it cannot be */
  int reading, writing;         /* the pipe */

  char rest[4 * LINE_MAX_LENGTH + 2]; /* of a line that was written in part */
  size_t rest_length;
  uint64_t dropped;             /* lines that standard error did not take */

  char line[LINE_MAX_LENGTH];   /* of nbdkit, not complete */
  size_t length;
  bool cut;                     /* more of it came than there is room for */
  struct kind kind[KINDS];
  struct kind all;              /* whatever they say */
} l = { .own_fd = -1, .reading = -1, .writing = -1 };

static uint64_t
now (void)
{
  return nc_now () / NC_SECOND + 1; /* never 0 */
}

/* Standard error. */

/* Returns how much was written; -1 if nothing can be now. */
static ssize_t
write_now (const char *text, size_t len)
{
  struct pollfd fd = { .fd = STDERR_FILENO, .events = POLLOUT };

  if (l.is_socket)
    return send (STDERR_FILENO, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (l.own_fd >= 0)
    return write (l.own_fd, text, len);
  /* A pipe that poll finds writable has room for this many. */
  return poll (&fd, 1, 0) == 1 && fd.revents == POLLOUT
    ? write (STDERR_FILENO, text, len < PIPE_BUF ? len : PIPE_BUF) : -1;
}

/* Returns false if some of what came before is still to be written. */
static bool
write_rest (void)
{
  ssize_t n;

  while (l.rest_length > 0) {
    n = write_now (l.rest, l.rest_length);
    if (n <= 0)
      return false;
    l.rest_length -= n;
    memmove (l.rest, l.rest + n, l.rest_length);
  }
  return true;
}

static bool
write_line (const char *line, size_t len)
{
  ssize_t n;

  if (!write_rest ())
    return false;
  n = write_now (line, len);
  if (n <= 0)
    return false;
  if ((size_t) n < len) {
    l.rest_length = len - n < sizeof l.rest ? len - n : sizeof l.rest;
    memcpy (l.rest, line + n, l.rest_length);
    l.rest[l.rest_length - 1] = '\n';
    write_rest ();
  }
  return true;
}

bool
log_write (const char *line, size_t len)
{
  char text[100];
  int n;

  if (!l.on)
    return false;
  if (l.dropped > 0) {
    n = snprintf (text, sizeof text, "nbdchain: %" PRIu64 " messages are "
                  "missing here: standard error was not read\n", l.dropped);
    if (write_line (text, n))
      l.dropped = 0;
  }
  if (l.dropped > 0 || !write_line (line, len))
    l.dropped++;
  return true;
}

/* nbdkit's lines. */

/* FNV-1a over what does not vary. */
static uint64_t
hash_line (const char *line, size_t len)
{
  uint64_t hash = UINT64_C (0xcbf29ce484222325);
  char quote = '\0';

  for (size_t i = 0; i < len; i++) {
    const char c = line[i];

    if (quote != '\0') {
      if (c == quote)
        quote = '\0';
      continue;
    }
    if (c == '\'' || c == '"')
      quote = c;
    else if (!isxdigit ((unsigned char) c))
      hash = (hash ^ (unsigned char) c) * UINT64_C (0x100000001b3);
  }
  return hash;
}

/* Say what of KIND was suppressed, and begin anew. */
static void
end_period (struct kind *kind)
{
  if (kind->suppressed > 0)
    nc_notice ("%" PRIu64 " messages like this one were suppressed: %s",
               kind->suppressed, kind->sample);
  *kind = (struct kind) { .since = 0 };
}

/* Take one of KIND's lines in this period.  Returns false if there were BURST
 * already. */
static bool
take (struct kind *kind, unsigned burst, const char *line, size_t len)
{
  if (kind->since == 0)
    kind->since = now ();
  if (kind->passed < burst) {
    kind->passed++;
    return true;
  }
  kind->suppressed++;
  snprintf (kind->sample, sizeof kind->sample, "%.*s", (int) len, line);
  return false;
}

/* The kind of a line; where there are too many at a time, some are one. */
static struct kind *
find_kind (uint64_t hash)
{
  struct kind *unused = NULL;

  for (size_t i = 0; i < KINDS; i++) {
    if (l.kind[i].since != 0 && l.kind[i].hash == hash)
      return &l.kind[i];
    if (l.kind[i].since == 0)
      unused = &l.kind[i];
  }
  if (unused == NULL)
    return &l.kind[hash % KINDS];
  unused->hash = hash;
  return unused;
}

static bool
is_debug (const char *line, size_t len)
{
  return memmem (line, len < 200 ? len : 200, ": debug: ", 9) != NULL;
}

/* Pass on the line in L; with nothing in it that would act on a terminal. */
static void
pass_on_line (void)
{
  char out[4 * LINE_MAX_LENGTH + 2], *p = out;
  const char *s = l.line;
  size_t n;
  bool printable;

  l.line[l.length] = '\0';
  if (!is_debug (l.line, l.length) &&
      (!take (find_kind (hash_line (l.line, l.length)), LOG_BURST, l.line,
              l.length) ||
       !take (&l.all, LOG_BURST_ALL, l.line, l.length)))
    return;
  while (*s)
    for (n = nc_text_next (s, &printable); n > 0; n--, s++)
      if (printable || *s == '\t')
        *p++ = *s;
      else
        p += sprintf (p, "\\x%02x", (unsigned char) *s);
  *p++ = '\n';
  log_write (out, p - out);
}

static void
pass_on (const char *text, size_t len)
{
  for (size_t i = 0; i < len; i++)
    if (text[i] == '\n') {
      pass_on_line ();
      l.length = 0;
    }
    else if (text[i] != '\0' && l.length < sizeof l.line - 1)
      l.line[l.length++] = text[i];
}

void
log_receive (bool all)
{
  char text[65536];
  ssize_t n = 0;

  for (int i = 0; l.on && i < (all ? 4 : 1) * READS_MAX; i++) {
    n = read (l.reading, text, sizeof text);
    if (n == -1 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    pass_on (text, n);
  }
  if (all && l.length > 0)
    pass_on ("\n", 1);
}

/* Periods. */

static void
end_if_due (struct kind *kind, uint64_t at, bool end)
{
  if (kind->since != 0 && (end || kind->since + LOG_SECONDS <= at))
    end_period (kind);
}

void
log_tick (bool end)
{
  const uint64_t at = now ();

  for (size_t i = 0; i < KINDS; i++)
    end_if_due (&l.kind[i], at, end);
  end_if_due (&l.all, at, end);
}

int
log_time_left (void)
{
  const uint64_t at = now ();
  uint64_t first = l.all.suppressed > 0 ? l.all.since : UINT64_MAX;

  for (size_t i = 0; i < KINDS; i++)
    if (l.kind[i].suppressed > 0 && l.kind[i].since < first)
      first = l.kind[i].since;
  if (first == UINT64_MAX)
    return -1;
  first += LOG_SECONDS;
  return first > at ? (int) (first - at) * 1000 : 0;
}

int
log_writing_fd (void)
{
  return l.writing;
}

int
log_reading_fd (void)
{
  return l.reading;
}

int
log_begin (void)
{
  struct stat st;
  int fds[2];

  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) == -1) {
    nc_error ("pipe: %m");
    return -1;
  }
  l.reading = fds[0];
  l.writing = fds[1];
  fcntl (l.writing, F_SETPIPE_SZ, PIPE_SIZE);   /* as much as is allowed */
  if (fstat (STDERR_FILENO, &st) == 0) {
    l.is_socket = S_ISSOCK (st.st_mode);
    if (S_ISFIFO (st.st_mode))
      l.own_fd = open ("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  }
  l.on = true;
  return 0;
}
