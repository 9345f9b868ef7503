/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Values on the command line, parsed once for all subcommands: a value that
 * makes no sense is named in the message, beside what is allowed. */

#include <config.h>

#include "tools.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chain/chain.h"
#include "chain/ref.h"
#include "nbd/tls.h"
#include "util/checked.h"
#include "util/report.h"

int
usage_error (const char *command)
{
  fprintf (stderr, "Try '%s --help'.\n", command);
  return EXIT_USAGE;
}

/* The factor that SUFFIX stands for ("", "K", "k", "KiB", ...); 0 if it is
 * none. */
static uint64_t
suffix_factor (const char *suffix)
{
  static const char letters[] = "KMGTP";
  const char *letter;
  char upper;

  if (*suffix == '\0')
    return 1;
  upper = *suffix >= 'a' && *suffix <= 'z' ? *suffix - 'a' + 'A' : *suffix;
  letter = strchr (letters, upper);
  if (letter == NULL || (suffix[1] != '\0' && strcmp (suffix + 1, "iB") != 0))
    return 0;
  return UINT64_C (1024) << 10 * (letter - letters);
}

/* What the DIGITS behind the point of "1.5G" add, in bytes.  Digits beyond
 * the 18th cannot matter. */
static uint64_t
parse_fraction (const char *digits, uint64_t factor)
{
  unsigned __int128 numerator = 0;
  uint64_t denominator = 1;
  int i;

  for (i = 0; i < 18 && digits[i] >= '0' && digits[i] <= '9'; i++) {
    numerator = 10 * numerator + (digits[i] - '0');
    denominator *= 10;
  }
  return (uint64_t) (numerator * factor / denominator);
}

int
parse_size (const char *what, const char *text, uint64_t *size)
{
  const char *suffix;
  char *end;
  uint64_t number, factor;

  errno = 0;
  number = strtoull (text, &end, 10);
  suffix = end;
  if (*suffix == '.')
    suffix += 1 + strspn (suffix + 1, "0123456789");
  factor = suffix_factor (suffix);
  if (*text < '0' || *text > '9' || factor == 0
      || (*end == '.' && factor == 1)) {
    nc_error ("%s: '%s' is not a size: give bytes, or a number and one of"
              " K, M, G, T, P (powers of 1024)", what, text);
    return -1;
  }
  if (errno == ERANGE || number > NC_OFFSET_MAX / factor) {
    nc_error ("%s: '%s' is too large: at most %" PRIu64 " bytes",
              what, text, NC_OFFSET_MAX);
    return -1;
  }
  *size = number * factor;
  if (*end == '.')
    *size += parse_fraction (end + 1, factor);
  return 0;
}

int
parse_number (const char *what, const char *text,
              uint64_t min, uint64_t max, uint64_t *number)
{
  char *end;

  errno = 0;
  *number = strtoull (text, &end, 10);
  if (*text < '0' || *text > '9' || *end != '\0' || errno == ERANGE
      || *number < min || *number > max) {
    nc_error ("%s: '%s' is not a number from %" PRIu64 " to %" PRIu64,
              what, text, min, max);
    return -1;
  }
  return 0;
}

bool
remote_tls_option (struct nc_tls *tls, int c, const char *value)
{
  switch (c) {
  case OPT_REMOTE_TLS_CERTIFICATES:
    tls->certificates = value;
    return true;
  case OPT_REMOTE_TLS_PSK:
    tls->psk = value;
    return true;
  case OPT_REMOTE_TLS_USERNAME:
    tls->username = value;
    return true;
  default:
    return false;
  }
}

int
remote_tls_check (const struct nc_tls *tls)
{
  if (tls->certificates && tls->psk) {
    nc_error ("--remote-tls-certificates and --remote-tls-psk exclude each "
              "other: there is one way to trust all remotes");
    return -1;
  }
  if (tls->username && tls->psk == NULL) {
    nc_error ("--remote-tls-username goes with --remote-tls-psk, which is "
              "missing");
    return -1;
  }
  return 0;
}

void
chain_args_free (struct chain_args *args)
{
  nc_allow_free (args->allow);
  args->allow = NULL;
}

int
chain_args_allow (struct chain_args *args, const char *text)
{
  if (args->allow == NULL) {
    args->allow = nc_allow_new ();
    if (args->allow == NULL)
      return -1;
  }
  return nc_allow_add (args->allow, text);
}

struct nc_chain *
chain_args_open (const struct chain_args *args, const char *image)
{
  return nc_chain_open (&(struct nc_chain_options) {
      .image = image,
      .base = args->base,
      .allow = args->allow,
      .retry = NC_RETRY_DEFAULT,
      .memory_fd = -1,
      .read_only = true,
      .offline = true,
    });
}

int
divert_stdout (void)
{
  const int saved = fcntl (STDOUT_FILENO, F_DUPFD_CLOEXEC, 0);

  if (saved != -1 && dup2 (STDERR_FILENO, STDOUT_FILENO) != -1)
    return saved;
  nc_error ("standard output: %m");
  if (saved != -1)
    close (saved);
  return -1;
}

int
restore_stdout (int saved)
{
  const int r = dup2 (saved, STDOUT_FILENO);

  if (r == -1)
    nc_error ("standard output: %m");
  close (saved);
  return r == -1 ? -1 : 0;
}
