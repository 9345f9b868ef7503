/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* The table of commands: what each is called, which arguments it takes, and
 * the function that answers it.  Input is checked against the table before
 * that function sees it. */
#ifndef NC_COMMAND_H
#define NC_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

/* Of QMP; all but the first say what kind of thing is missing. */
enum nc_error_class {
  NC_ERROR_GENERIC, NC_ERROR_COMMAND_NOT_FOUND, NC_ERROR_DEVICE_NOT_ACTIVE,
  NC_ERROR_DEVICE_NOT_FOUND,
};

#define NC_COMMAND_TEXT 512

/* Why a command fails. */
struct nc_command_error {
  enum nc_error_class class;
  char desc[NC_COMMAND_TEXT];
};

/* Fill in ERROR.  Returns NULL, for who answers with it. */
extern json_t *nc_command_fail (struct nc_command_error *error,
                                enum nc_error_class class,
                                const char *fmt, ...)
  __attribute__ ((__nonnull__ (1, 3), __format__ (printf, 3, 4)));

enum nc_arg_type {
  NC_ARG_STRING, NC_ARG_INTEGER, NC_ARG_BOOLEAN,
  NC_ARG_WORD,                  /* one of WORDS */
  NC_ARG_WORDS,                 /* a list of strings */
};

struct nc_arg {
  const char *name;             /* NULL ends a list */
  enum nc_arg_type type;
  bool optional;                /* absent if it was not given */
  const char *const *words;     /* NULL ends it */
  int64_t min, max;             /* of an integer */
};

/* Answer a command: ARGS is an object, has what is not optional, nothing
 * else than the table says, and right types.  Returns a new reference, {}
 * for "done"; or NULL with *ERROR filled in.  Called from several threads;
 * may block, which keeps only the client that asked. */
typedef json_t *(*nc_command_fn) (void *opaque, json_t *args,
                                  struct nc_command_error *error);

struct nc_command {
  const char *name;
  const struct nc_arg *args;    /* NULL: none */
  nc_command_fn fn;
};

#define NC_COMMANDS_MAX 128

/* Commands by name.  Filled before it is used, and not changed then. */
struct nc_commands {
  struct {
    const struct nc_command *command;
    void *opaque;
  } v[NC_COMMANDS_MAX];
  size_t n;
};

/* Add a command, which stays the caller's, to be called with OPAQUE.  Returns
 * -1 with errno EEXIST or ENOSPC, reported. */
extern int nc_commands_add (struct nc_commands *commands,
                            const struct nc_command *command, void *opaque)
  __attribute__ ((__nonnull__ (1, 2)));

/* What a client may do. */
enum nc_session { NC_NEGOTIATING, NC_NEGOTIATED };

/* Answer one JSON text.  *SESSION changes with qmp_capabilities.  Returns
 * the reply, an object with "return" or "error" and the "id" that was given;
 * NULL only if memory is short. */
extern json_t *nc_commands_answer (const struct nc_commands *commands,
                                   enum nc_session *session,
                                   const char *text, size_t len)
  __attribute__ ((__nonnull__ (1, 2, 3)));

/* A reply that is an error without a command. */
extern json_t *nc_command_error_reply (enum nc_error_class class,
                                       const char *desc)
  __attribute__ ((__nonnull__ (2)));

/* The version, as the greeting and query-version have it. */
extern json_t *nc_qmp_version (void);

/* TEXT as a JSON string; null if it is NULL.  Bytes that are not UTF-8 become
 * U+FFFD.  NULL if memory is short. */
extern json_t *nc_json_text (const char *text);

#endif /* NC_COMMAND_H */
