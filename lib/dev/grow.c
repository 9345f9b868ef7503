/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Running the command that makes storage larger. */

#include <config.h>

#include "dev/grow.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/report.h"
#include "util/scope.h"
#include "util/standback.h"

extern char **environ;

/* Our environment and the variables VARS, NULL at the end.  The caller frees
 * the array, not what is in it. */
static char **
environment_with (char *const *vars, size_t nvars)
{
  size_t n = 0;
  char **env;

  while (environ[n])
    ++n;
  env = calloc (n + nvars + 1, sizeof *env);
  if (env) {
    /* The first of a name counts. */
    memcpy (env, vars, nvars * sizeof *env);
    memcpy (env + nvars, environ, n * sizeof *env);
  }
  return env;
}

static int
spawn (const char *command, char **env, pid_t *pid)
{
  char *const argv[] = { "sh", "-c", (char *) command, NULL };
  posix_spawn_file_actions_t actions;
  int err = posix_spawn_file_actions_init (&actions);

  if (err)
    return err;
  err = posix_spawn_file_actions_addopen (&actions, STDIN_FILENO, "/dev/null",
                                          O_RDONLY, 0);
  /* What the client or the supervisor waits for is not on it. */
  if (err == 0)
    err = posix_spawn_file_actions_adddup2 (&actions, STDERR_FILENO,
                                            STDOUT_FILENO);
  if (err == 0)
    err = posix_spawn (pid, "/bin/sh", &actions, NULL, argv, env);
  posix_spawn_file_actions_destroy (&actions);
  return err;
}

int
nc_enlarge (const char *command, const char *path, uint64_t needed,
            uint64_t wanted)
{
  NC_FREE char *storage = NULL;
  char needed_var[64], wanted_var[64];
  NC_FREE char **env = NULL;
  int err, status;
  pid_t pid, r;

  snprintf (needed_var, sizeof needed_var, "NBDCHAIN_NEEDED=%" PRIu64,
            needed);
  snprintf (wanted_var, sizeof wanted_var, "NBDCHAIN_WANTED=%" PRIu64,
            wanted);
  if (asprintf (&storage, "NBDCHAIN_STORAGE=%s", path) == -1)
    storage = NULL;
  nc_stand_back (false);        /* the command would inherit it */
  env = storage ? environment_with ((char *[]) { storage, needed_var,
                                                 wanted_var }, 3) : NULL;
  err = env ? spawn (command, env, &pid) : ENOMEM;
  if (err) {
    errno = err;
    nc_error ("%s: enlarge=%s: %m", path, command);
    return -1;
  }
  do
    r = waitpid (pid, &status, 0);
  while (r == -1 && errno == EINTR);
  if (r == pid && WIFEXITED (status) && WEXITSTATUS (status) == 0)
    return 0;
  if (r == pid && WIFSIGNALED (status))
    nc_error ("%s: enlarge=%s: ended by signal %d", path, command,
              WTERMSIG (status));
  else
    nc_error ("%s: enlarge=%s: exit code %d", path, command,
              r == pid ? WEXITSTATUS (status) : -1);
  errno = ENOSPC;
  return -1;
}
