/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Keeps an nbdkit running, and ends it so that nothing acknowledged is lost.
 *
 * What a client was told is done may so far be only in the page cache and
 * in the memory that we hold for nbdkit (a memfd).  Both survive nbdkit, so:
 *
 * - nbdkit died by a signal: another is started with the same memory.  Where
 *   one was ready before, this is tried until it works; the configuration
 *   was right once.
 * - We are to stop: nbdkit is asked to make everything durable, and ended
 *   once it has (lib/serve/supervise.h has the messages).  If it dies while we
 *   wait, another is started only to be asked the same.
 * - nbdkit exits by itself: before it was ever ready that ends us with its
 *   exit code; later another is started, to make everything durable.
 *
 * Only the third SIGINT abandons what is not durable.
 */

#include <config.h>

#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "tools.h"
#include "util/report.h"
#include "util/scope.h"

/* Milliseconds. */
#define HEALTHY_AFTER 1000      /* dying sooner after "ready" is a loop */
#define FIRST_PAUSE 100         /* between starts, doubled each time */
#define LONGEST_PAUSE 5000
#define FIRST_NOTICE 2000       /* of what a stop waits for */
#define NEXT_NOTICE 1000
#define LAST_GRACE 1500         /* for an nbdkit without work to end itself: a
                                   stop takes two seconds at most */

#define EARLY_DEATHS_MAX 5      /* by signals, never having been ready */
#define STOP_ATTEMPTS_MAX 12    /* about 40 s of starting it to stop it */

enum verdict { UNKNOWN, DURABLE, NOT_DURABLE };

struct supervisor {
  const struct supervisor_options *options;
  int signal_fd;
  int memory_fd;
  int keeper_fd;                /* to nbdkit; -1: none, or it hung up */
  pid_t pid;                    /* of nbdkit; 0: none runs */
  uint64_t ready_at;            /* 0: this nbdkit is not ready */
  bool ever_ready;
  uint64_t start_at;            /* when to start the next; 0: never */
  unsigned quick_deaths;        /* in a row */
  unsigned early_deaths;

  bool stopping;
  uint64_t notice_at;
  uint64_t stopping_since;
  unsigned stop_attempts;       /* nbdkits started for that */
  unsigned n_interrupts;

  enum verdict verdict;
  uint64_t kill_at;             /* nbdkit was asked to end; 0: not */
  int exit_code;
  bool ended;
};

static uint64_t
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ------------------------------------------------------------------ */
/* In the new process. */

static void __attribute__ ((__noreturn__))
fail_child (const char *what)
{
  nc_error ("cannot start nbdkit: %s: %m", what);
  _exit (EXIT_FAILED);
}

static void __attribute__ ((__noreturn__))
become_nbdkit (const struct supervisor *s, int keeper)
{
  const int from[] = { s->options->listen_fd, keeper, s->memory_fd };
  const int to[] = { LISTEN_FD, KEEPER_FD, MEMORY_FD };
  int high[3], null_fd, i;
  char pid[24];
  sigset_t none;

  /* The terminal's signals are for us alone. */
  setsid ();
  signal (SIGPIPE, SIG_DFL);
  signal (SIGHUP, SIG_DFL);
  signal (SIGXFSZ, SIG_DFL);
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);

  /* Standard output has our URI and nothing else. */
  if (dup2 (log_writing_fd (), 1) == -1 || dup2 (log_writing_fd (), 2) == -1)
    fail_child ("dup2");
  for (i = 0; i < 3; i++) {
    high[i] = fcntl (from[i], F_DUPFD_CLOEXEC, 10);
    if (high[i] == -1)
      fail_child ("fcntl");
  }
  for (i = 0; i < 3; i++)
    if (dup2 (high[i], to[i]) == -1)
      fail_child ("dup2");
  null_fd = open ("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null_fd == -1 || dup2 (null_fd, 0) == -1)
    fail_child ("/dev/null");

  snprintf (pid, sizeof pid, "%jd", (intmax_t) getpid ());
  if (setenv ("LISTEN_PID", pid, 1) == -1 ||
      setenv ("LISTEN_FDS", "1", 1) == -1)
    fail_child ("setenv");
  unsetenv ("LISTEN_FDNAMES");
  unsetenv ("NOTIFY_SOCKET");
  execvp (s->options->argv[0], s->options->argv);
  fail_child (s->options->argv[0]);
}

/* ------------------------------------------------------------------ */
/* In ours. */

static void
ask_to_stop (struct supervisor *s)
{
  /* If it is gone, SIGCHLD tells. */
  if (s->keeper_fd >= 0)
    send (s->keeper_fd, "stop", 4, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void
kill_nbdkit (const struct supervisor *s)
{
  if (s->pid > 0)
    kill (s->pid, SIGKILL);
}

/* Nobody needs it any more, but its filters may have something to write when
 * it ends in order.  With clients connected it would not: it waits for them,
 * and those that are busy would get errors where they could reconnect. */
static void
ask_to_end (struct supervisor *s)
{
  if (s->pid > 0 && kill (s->pid, SIGTERM) == 0)
    s->kill_at = now () + LAST_GRACE;
}

static void
kill_when_due (struct supervisor *s)
{
  if (s->kill_at == 0 || now () < s->kill_at)
    return;
  s->kill_at = 0;
  kill_nbdkit (s);
}

/* When to start the next nbdkit: at once, but ever later if they die one
 * after the other. */
static void
plan_start (struct supervisor *s)
{
  uint64_t pause = 0;

  if (s->ready_at != 0 && now () - s->ready_at >= HEALTHY_AFTER)
    s->quick_deaths = 0;
  if (s->quick_deaths > 0) {
    pause = s->quick_deaths > 8 ? LONGEST_PAUSE :
      (uint64_t) FIRST_PAUSE << (s->quick_deaths - 1);
    if (pause > LONGEST_PAUSE)
      pause = LONGEST_PAUSE;
  }
  s->quick_deaths++;
  s->start_at = now () + pause;
}

static void
end (struct supervisor *s, int exit_code)
{
  s->exit_code = exit_code;
  s->ended = true;
}

static int
start_nbdkit (struct supervisor *s)
{
  int pair[2];

  s->start_at = 0;
  s->ready_at = 0;
  if (socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == -1) {
    nc_error ("socketpair: %m");
    return -1;
  }
  s->pid = fork ();
  if (s->pid == -1) {
    nc_error ("fork: %m");
    s->pid = 0;
    close (pair[0]);
    close (pair[1]);
    return -1;
  }
  if (s->pid == 0)
    become_nbdkit (s, pair[1]);
  close (pair[1]);
  if (s->keeper_fd >= 0)
    close (s->keeper_fd);
  s->keeper_fd = pair[0];
  if (s->stopping) {
    s->stop_attempts++;
    ask_to_stop (s);
  }
  return 0;
}

static void
start_when_due (struct supervisor *s)
{
  if (s->start_at == 0 || now () < s->start_at)
    return;
  if (start_nbdkit (s) == -1) {
    if (s->ever_ready)
      plan_start (s);
    else
      end (s, EXIT_FAILED);
  }
}

static void
begin_stop (struct supervisor *s)
{
  if (s->stopping)
    return;
  s->stopping = true;
  s->stopping_since = now ();
  s->notice_at = s->stopping_since + FIRST_NOTICE;
  systemd_notify ("STOPPING=1\nSTATUS=making everything durable");
  if (s->start_at != 0)
    s->start_at = now ();       /* no more pause */
  if (s->ever_ready)
    ask_to_stop (s);
  else {
    /* No client was told anything. */
    s->verdict = DURABLE;
    kill_nbdkit (s);
    if (s->pid == 0)
      end (s, EXIT_DONE);
  }
}

static void
handle_message (struct supervisor *s, const char *text)
{
  if (strcmp (text, "ready") == 0) {
    s->ready_at = now ();
    s->options->ready (s->options->opaque, s->pid, !s->ever_ready);
    s->ever_ready = true;
  }
  else if (strcmp (text, "quit") == 0)
    begin_stop (s);
  else if (strcmp (text, "stopped") == 0 && s->stopping) {
    s->verdict = DURABLE;
    kill_nbdkit (s);
  }
  else if (strcmp (text, "stopped idle") == 0 && s->stopping) {
    s->verdict = DURABLE;
    ask_to_end (s);
  }
  else if (strncmp (text, "failed", 6) == 0) {
    nc_error ("the server failed%s%s", text[6] == ' ' ? ": " : "",
              text[6] == ' ' ? text + 7 : "");
    s->verdict = NOT_DURABLE;
    kill_nbdkit (s);
  }
}

static void
receive_messages (struct supervisor *s)
{
  char text[512];
  ssize_t n;

  while (s->keeper_fd >= 0) {
    n = recv (s->keeper_fd, text, sizeof text - 1, MSG_DONTWAIT);
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1 && errno == EAGAIN)
      return;
    if (n <= 0) {
      close (s->keeper_fd);
      s->keeper_fd = -1;
      return;
    }
    text[n] = '\0';
    handle_message (s, text);
  }
}

/* How nbdkit ended, in words. */
static const char *
describe_status (int status, char *buf, size_t len)
{
  const char *name;

  if (WIFSIGNALED (status)) {
    name = sigabbrev_np (WTERMSIG (status));
    snprintf (buf, len, "was killed by %s%s", name ? "SIG" : "a signal",
              name ? name : "");
  }
  else
    snprintf (buf, len, "exited with code %d", WEXITSTATUS (status));
  return buf;
}

/* nbdkit ended while we wait for it to make everything durable. */
static void
handle_end_in_stop (struct supervisor *s, const char *how)
{
  if (s->options->read_only) {
    end (s, s->exit_code);
    return;
  }
  if (s->stop_attempts >= STOP_ATTEMPTS_MAX) {
    nc_error ("nbdkit %s before everything was durable, again: giving up; "
              "writes that no client has flushed may be lost", how);
    end (s, EXIT_FAILED);
    return;
  }
  nc_error ("nbdkit %s before everything was durable: starting it once more "
            "for that", how);
  plan_start (s);
}

static void
handle_end (struct supervisor *s, int status)
{
  const bool was_ready = s->ready_at != 0;
  const pid_t pid = s->pid;
  char how[64];

  describe_status (status, how, sizeof how);
  s->pid = 0;
  if (s->verdict != UNKNOWN)
    end (s, s->verdict == DURABLE ? s->exit_code : EXIT_FAILED);
  else if (s->stopping)
    handle_end_in_stop (s, how);
  else if (!s->ever_ready) {
    if (WIFEXITED (status))
      end (s, WEXITSTATUS (status)); /* it has said why */
    else if (++s->early_deaths >= EARLY_DEATHS_MAX) {
      nc_error ("nbdkit %s before it was ready, %u times: giving up", how,
                s->early_deaths);
      end (s, EXIT_FAILED);
    }
    else {
      nc_error ("nbdkit (process %jd) %s before it was ready: starting it "
                "again", (intmax_t) pid, how);
      plan_start (s);
    }
  }
  else if (WIFEXITED (status) && was_ready) {
    /* By an option of nbdkit's or one of its filters, or told by another. */
    nc_notice ("nbdkit (process %jd) %s by itself: %s\"serve\" ends, too",
               (intmax_t) pid, how,
               s->options->read_only ? "" : "everything is made durable, and ");
    s->exit_code = WEXITSTATUS (status);
    plan_start (s);
    begin_stop (s);
    if (s->options->read_only)
      end (s, s->exit_code);
  }
  else {
    nc_error ("nbdkit (process %jd) %s: starting it again", (intmax_t) pid,
              how);
    systemd_notify ("STATUS=nbdkit %s: starting it again", how);
    plan_start (s);
  }
  s->ready_at = 0;
}

static void
reap (struct supervisor *s)
{
  int status;
  pid_t pid;

  /* As process 1 of a container we inherit the processes of others. */
  while ((pid = waitpid (-1, &status, WNOHANG)) > 0)
    if (pid == s->pid) {
      /* What it said before it ended comes first. */
      log_receive (true);
      receive_messages (s);
      handle_end (s, status);
    }
}

static void
handle_interrupt (struct supervisor *s)
{
  s->n_interrupts++;
  if (s->n_interrupts == 2)
    nc_notice ("everything is being made durable; a third SIGINT abandons "
               "writes that no client has flushed");
  if (s->n_interrupts < 3 || s->verdict != UNKNOWN)
    return;
  nc_error ("interrupted three times: writes that no client has flushed may "
            "be lost");
  s->verdict = NOT_DURABLE;
  kill_nbdkit (s);
  if (s->pid == 0)
    end (s, EXIT_FAILED);
}

static void
receive_signals (struct supervisor *s)
{
  struct signalfd_siginfo info;

  while (!s->ended && read (s->signal_fd, &info, sizeof info) == sizeof info)
    switch (info.ssi_signo) {
    case SIGCHLD:
      reap (s);
      break;
    case SIGINT:
      begin_stop (s);
      handle_interrupt (s);
      break;
    case SIGTERM:
      begin_stop (s);
      break;
    }
}

/* Say what a stop is waiting for, if it takes long. */
static void
give_notice (struct supervisor *s)
{
  if (!s->stopping || s->ended || now () < s->notice_at)
    return;
  s->notice_at += NEXT_NOTICE;
  nc_notice ("stopping for %" PRIu64 " s: waiting for %s",
             (now () - s->stopping_since) / 1000,
             s->verdict != UNKNOWN ? "nbdkit to end" :
             s->pid == 0 ? "the next start of nbdkit" :
             s->ready_at == 0 ? "nbdkit to open the image again" :
             "nbdkit to make everything durable");
}

/* Milliseconds until something is to be done without being woken. */
static int
time_left (const struct supervisor *s)
{
  uint64_t next = s->start_at, t = now ();

  if (s->stopping && (next == 0 || s->notice_at < next))
    next = s->notice_at;
  if (s->kill_at != 0 && (next == 0 || s->kill_at < next))
    next = s->kill_at;
  if (next == 0)
    return log_time_left ();
  next = next > t ? next - t : 0;
  return log_time_left () >= 0 && log_time_left () < (int) next
    ? log_time_left () : (int) next;
}

static void
run (struct supervisor *s)
{
  struct pollfd fds[3] = {
    { .events = POLLIN }, { .events = POLLIN },
    { .fd = log_reading_fd (), .events = POLLIN },
  };

  s->start_at = now ();
  start_when_due (s);
  while (!s->ended) {
    fds[0].fd = s->signal_fd;
    fds[1].fd = s->keeper_fd;   /* -1 is ignored */
    if (poll (fds, 3, time_left (s)) == -1 && errno != EINTR) {
      nc_error ("poll: %m");
      end (s, EXIT_FAILED);
      break;
    }
    log_receive (false);
    log_tick (false);
    receive_messages (s);
    receive_signals (s);
    if (!s->ended)
      start_when_due (s);
    kill_when_due (s);
    give_notice (s);
  }
}

int
supervise (const struct supervisor_options *options)
{
  struct supervisor s = {
    .options = options,
    .signal_fd = -1,
    .memory_fd = -1,
    .keeper_fd = -1,
  };
  sigset_t mask, before;

  sigemptyset (&mask);
  sigaddset (&mask, SIGCHLD);
  sigaddset (&mask, SIGINT);
  sigaddset (&mask, SIGTERM);
  sigprocmask (SIG_BLOCK, &mask, &before);
  signal (SIGHUP, SIG_IGN);
  s.signal_fd = signalfd (-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
  s.memory_fd = memfd_create ("nbdchain", MFD_CLOEXEC);
  if (s.signal_fd == -1 || s.memory_fd == -1) {
    nc_error ("%s: %m", s.signal_fd == -1 ? "signalfd" : "memfd_create");
    end (&s, EXIT_FAILED);
  }
  else
    run (&s);

  log_receive (true);
  log_tick (true);
  /* Closing the socket pair also ends an nbdkit that still runs. */
  if (s.keeper_fd >= 0)
    close (s.keeper_fd);
  if (s.memory_fd >= 0)
    close (s.memory_fd);
  if (s.signal_fd >= 0)
    close (s.signal_fd);
  sigprocmask (SIG_SETMASK, &before, NULL);
  return s.exit_code;
}
