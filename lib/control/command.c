/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* From a JSON text to a checked command and back to a reply.  The text may
 * be anything; sizes and depth were bounded before (frame.h). */

#include <config.h>

#include "control/command.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/report.h"
#include "util/scope.h"

json_t *
nc_command_fail (struct nc_command_error *error, enum nc_error_class class,
                 const char *fmt, ...)
{
  va_list args;

  error->class = class;
  va_start (args, fmt);
  vsnprintf (error->desc, sizeof error->desc, fmt, args);
  va_end (args);
  return NULL;
}

static int __attribute__ ((__format__ (printf, 2, 3)))
refuse (struct nc_command_error *error, const char *fmt, ...)
{
  va_list args;

  error->class = NC_ERROR_GENERIC;
  va_start (args, fmt);
  vsnprintf (error->desc, sizeof error->desc, fmt, args);
  va_end (args);
  return -1;
}

json_t *
nc_json_text (const char *text)
{
  static const char replacement[] = "\xef\xbf\xbd";
  NC_FREE char *copy = NULL;
  json_t *json;
  char *to;

  if (text == NULL)
    return json_null ();
  json = json_string (text);
  if (json)
    return json;
  copy = malloc (strlen (replacement) * strlen (text) + 1);
  if (copy == NULL)
    return NULL;
  for (to = copy; *text != '\0'; text++)
    if ((unsigned char) *text < 0x80)
      *to++ = *text;
    else
      to = stpcpy (to, replacement);
  *to = '\0';
  return json_string (copy);
}

json_t *
nc_qmp_version (void)
{
  int major = 0, minor = 0, micro = 0;

  sscanf (PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro);
  return json_pack ("{s:{s:i, s:i, s:i}, s:s}", "qemu", "micro", micro,
                    "minor", minor, "major", major,
                    "package", "nbdchain " PACKAGE_VERSION);
}

/* The table. */

int
nc_commands_add (struct nc_commands *commands,
                 const struct nc_command *command, void *opaque)
{
  for (size_t i = 0; i < commands->n; i++)
    if (strcmp (commands->v[i].command->name, command->name) == 0) {
      nc_error ("command '%s' is there already", command->name);
      errno = EEXIST;
      return -1;
    }
  if (commands->n == NC_COMMANDS_MAX) {
    nc_error ("no room for command '%s'", command->name);
    errno = ENOSPC;
    return -1;
  }
  commands->v[commands->n].command = command;
  commands->v[commands->n++].opaque = opaque;
  return 0;
}

/* Arguments. */

static bool
is_word (const struct nc_arg *arg, const char *text)
{
  for (const char *const *w = arg->words; *w; w++)
    if (strcmp (*w, text) == 0)
      return true;
  return false;
}

static int
check_word (const struct nc_arg *arg, json_t *value,
            struct nc_command_error *error)
{
  char list[NC_COMMAND_TEXT / 2] = "";
  size_t used = 0;

  if (!json_is_string (value))
    return refuse (error, "argument '%s' must be a string", arg->name);
  if (is_word (arg, json_string_value (value)))
    return 0;
  for (const char *const *w = arg->words; *w && used < sizeof list; w++)
    used += snprintf (list + used, sizeof list - used, "%s%s",
                      w == arg->words ? "" : ", ", *w);
  return refuse (error, "argument '%s' cannot be '%.64s': give one of %s",
                 arg->name, json_string_value (value), list);
}

static int
check_integer (const struct nc_arg *arg, json_t *value,
               struct nc_command_error *error)
{
  if (!json_is_integer (value))
    return refuse (error, "argument '%s' must be an integer", arg->name);
  if (json_integer_value (value) < arg->min ||
      json_integer_value (value) > arg->max)
    return refuse (error, "argument '%s' cannot be %" PRId64 ": give a "
                   "number from %" PRId64 " to %" PRId64, arg->name,
                   (int64_t) json_integer_value (value), arg->min, arg->max);
  return 0;
}

static int
check_words (const struct nc_arg *arg, json_t *value,
             struct nc_command_error *error)
{
  bool good = json_is_array (value);

  for (size_t i = 0; good && i < json_array_size (value); i++)
    good = json_is_string (json_array_get (value, i));
  return good ? 0 : refuse (error, "argument '%s' must be a list of strings",
                            arg->name);
}

static int
check_arg (const struct nc_arg *arg, json_t *value,
           struct nc_command_error *error)
{
  switch (arg->type) {
  case NC_ARG_STRING:
    return json_is_string (value) ? 0 :
      refuse (error, "argument '%s' must be a string", arg->name);
  case NC_ARG_BOOLEAN:
    return json_is_boolean (value) ? 0 :
      refuse (error, "argument '%s' must be true or false", arg->name);
  case NC_ARG_INTEGER:
    return check_integer (arg, value, error);
  case NC_ARG_WORD:
    return check_word (arg, value, error);
  case NC_ARG_WORDS:
    return check_words (arg, value, error);
  }
  return -1;
}

static int
check_args (const struct nc_command *command, json_t *args,
            struct nc_command_error *error)
{
  static const struct nc_arg none = { 0 };
  const struct nc_arg *const first = command->args ? command->args : &none;
  size_t known = 0;

  for (const struct nc_arg *arg = first; arg->name; arg++) {
    json_t *value = json_object_get (args, arg->name);

    known += value != NULL;
    if (value == NULL && !arg->optional)
      return refuse (error, "%s needs the argument '%s'", command->name,
                     arg->name);
    if (value && check_arg (arg, value, error) == -1)
      return -1;
  }
  if (known < json_object_size (args)) {
    const char *name;
    json_t *value;

    json_object_foreach (args, name, value) {
      const struct nc_arg *arg = first;

      while (arg->name && strcmp (arg->name, name) != 0)
        arg++;
      if (arg->name == NULL)
        return refuse (error, "%s has no argument '%.64s'", command->name,
                       name);
    }
  }
  return 0;
}

/* Replies. */

json_t *
nc_command_error_reply (enum nc_error_class class, const char *desc)
{
  static const char *const names[] = {
    [NC_ERROR_GENERIC] = "GenericError",
    [NC_ERROR_COMMAND_NOT_FOUND] = "CommandNotFound",
    [NC_ERROR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
    [NC_ERROR_DEVICE_NOT_FOUND] = "DeviceNotFound",
  };

  return json_pack ("{s:{s:s, s:o}}", "error", "class", names[class],
                    "desc", nc_json_text (desc));
}

/* What is wrong with the members of REQUEST, NULL if nothing. */
static int
check_request (json_t *request, struct nc_command_error *error)
{
  json_t *value;
  const char *name;

  if (!json_is_object (request))
    return refuse (error, "a command is a JSON object");
  json_object_foreach (request, name, value) {
    if (strcmp (name, "execute") == 0) {
      if (!json_is_string (value))
        return refuse (error, "'execute' must be a string");
    }
    else if (strcmp (name, "arguments") == 0) {
      if (!json_is_object (value))
        return refuse (error, "'arguments' must be an object");
    }
    else if (strcmp (name, "id") != 0)
      return refuse (error, "'%.64s' has no meaning beside 'execute', "
                     "'arguments' and 'id'", name);
  }
  if (json_object_get (request, "execute") == NULL)
    return refuse (error, "'execute' is missing");
  return 0;
}

static json_t *
negotiate (enum nc_session *session, json_t *args,
           struct nc_command_error *error)
{
  static const struct nc_arg arg[] = {
    { .name = "enable", .type = NC_ARG_WORDS, .optional = true },
    { 0 }
  };
  static const struct nc_command command = {
    .name = "qmp_capabilities", .args = arg,
  };
  json_t *enable = json_object_get (args, "enable");

  if (check_args (&command, args, error) == -1)
    return NULL;
  if (json_array_size (enable) > 0)
    return nc_command_fail (error, NC_ERROR_GENERIC, "capability '%.64s' is "
                            "not offered",
                            json_string_value (json_array_get (enable, 0)));
  *session = NC_NEGOTIATED;
  return json_object ();
}

static json_t *
execute (const struct nc_commands *commands, enum nc_session *session,
         const char *name, json_t *args, struct nc_command_error *error)
{
  if (strcmp (name, "qmp_capabilities") == 0) {
    if (*session == NC_NEGOTIATING)
      return negotiate (session, args, error);
    return nc_command_fail (error, NC_ERROR_COMMAND_NOT_FOUND,
                            "capabilities are negotiated once, and have "
                            "been");
  }
  if (*session == NC_NEGOTIATING)
    return nc_command_fail (error, NC_ERROR_COMMAND_NOT_FOUND,
                            "qmp_capabilities must come before '%.64s'",
                            name);
  for (size_t i = 0; i < commands->n; i++) {
    const struct nc_command *command = commands->v[i].command;

    if (strcmp (command->name, name) != 0)
      continue;
    if (check_args (command, args, error) == -1)
      return NULL;
    return command->fn (commands->v[i].opaque, args, error);
  }
  return nc_command_fail (error, NC_ERROR_COMMAND_NOT_FOUND,
                          "there is no command '%.64s'; query-commands "
                          "lists them", name);
}

static json_t *
answer (const struct nc_commands *commands, enum nc_session *session,
        json_t *request)
{
  struct nc_command_error error = { .desc = "out of memory" };
  json_t *args, *value = NULL, *reply;

  if (check_request (request, &error) == 0) {
    args = json_object_get (request, "arguments");
    args = args ? json_incref (args) : json_object ();
    if (args)
      value = execute (commands, session,
                       json_string_value (json_object_get (request,
                                                           "execute")),
                       args, &error);
    json_decref (args);
  }
  reply = value ? json_pack ("{s:o}", "return", value)
    : nc_command_error_reply (error.class, error.desc);
  if (reply && json_object_get (request, "id"))
    json_object_set (reply, "id", json_object_get (request, "id"));
  return reply;
}

json_t *
nc_commands_answer (const struct nc_commands *commands,
                    enum nc_session *session, const char *text, size_t len)
{
  char desc[NC_COMMAND_TEXT];
  json_error_t where;
  json_t *request, *reply;

  request = json_loadb (text, len, JSON_REJECT_DUPLICATES, &where);
  if (request == NULL) {
    snprintf (desc, sizeof desc, "this is no JSON: %s", where.text);
    return nc_command_error_reply (NC_ERROR_GENERIC, desc);
  }
  reply = answer (commands, session, request);
  json_decref (request);
  return reply;
}
