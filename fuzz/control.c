/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* What a client of the control socket sends, as far as the commands.  Input:
 * the bytes as they come.
 *
 * What must hold: each JSON text has one reply, which is an object with
 * either "return" or "error", and with the id that was given; what a command
 * is called with is what its table says; where bytes are cut does not matter,
 * since they are taken one by one. */

#include <config.h>

#include "fuzz.h"

#include <string.h>

#include "control/command.h"
#include "control/frame.h"

static json_t *
take (void *opaque, json_t *args, struct nc_command_error *error)
{
  json_t *value = json_object_get (args, "word");
  const char *word = json_string_value (value);

  fuzz_must (opaque == &fuzz_control, "the function gets what is its");
  fuzz_must (json_is_string (json_object_get (args, "string")),
             "what is not optional is there");
  value = json_object_get (args, "integer");
  fuzz_must (value == NULL || (json_integer_value (value) >= -3 &&
                               json_integer_value (value) <= 1000),
             "an integer is in its range");
  fuzz_must (word == NULL || strcmp (word, "a") == 0 ||
             strcmp (word, "bc") == 0, "a word is one of those allowed");
  fuzz_must (json_object_size (args) <= 5, "nothing else is there");
  if (json_object_get (args, "boolean"))
    return nc_command_fail (error, NC_ERROR_DEVICE_NOT_ACTIVE, "failed %s",
                            json_string_value (json_object_get (args,
                                                                "string")));
  return json_incref (args);
}

static const char *const words[] = { "a", "bc", NULL };

static const struct nc_arg args[] = {
  { .name = "string", .type = NC_ARG_STRING },
  { .name = "integer", .type = NC_ARG_INTEGER, .optional = true,
    .min = -3, .max = 1000 },
  { .name = "boolean", .type = NC_ARG_BOOLEAN, .optional = true },
  { .name = "word", .type = NC_ARG_WORD, .optional = true, .words = words },
  { .name = "words", .type = NC_ARG_WORDS, .optional = true },
  { 0 }
};

static const struct nc_command command = { "take", args, take };

static void
check_reply (json_t *reply, const char *text, size_t len)
{
  json_t *request = json_loadb (text, len, JSON_REJECT_DUPLICATES, NULL);
  json_t *error = json_object_get (reply, "error");
  json_t *id = json_object_get (request, "id");

  fuzz_must (json_is_object (reply), "a reply is an object");
  fuzz_must ((error != NULL) != (json_object_get (reply, "return") != NULL),
             "it has a result or an error");
  fuzz_must (error == NULL ||
             (json_is_string (json_object_get (error, "class")) &&
              json_is_string (json_object_get (error, "desc"))),
             "an error has a class and a description");
  if (json_is_object (request))
    fuzz_must (id ? json_equal (id, json_object_get (reply, "id"))
               : json_object_get (reply, "id") == NULL, "it has the id");
  json_decref (request);
}

static void
run (const uint8_t *data, size_t size)
{
  struct nc_frame frame = { 0 };
  struct nc_commands commands = { 0 };
  enum nc_session session = NC_NEGOTIATING;

  fuzz_must (nc_commands_add (&commands, &command,
                              (void *) &fuzz_control) == 0, "a command");
  for (size_t i = 0; i < size; i++) {
    const enum nc_frame_result r = nc_frame_feed (&frame, (char) data[i]);

    fuzz_must (frame.len <= NC_FRAME_MAX && r != NC_FRAME_NO_MEMORY,
               "memory is bounded");
    if (r == NC_FRAME_TOO_LARGE)
      break;
    if (r == NC_FRAME_TEXT) {
      json_t *reply = nc_commands_answer (&commands, &session, frame.text,
                                          frame.len);

      check_reply (reply, frame.text, frame.len);
      json_decref (reply);
      nc_frame_reset (&frame);
    }
  }
  nc_frame_free (&frame);
}

static void
seeds (fuzz_save_fn save, void *opaque)
{
#define HELLO "{\"execute\":\"qmp_capabilities\"}"
#define TAKE(args) HELLO "{\"execute\":\"take\",\"arguments\":{" args "}}\n"
  static const struct { const char *name, *input; } t[] = {
    { "hello", HELLO "\r\n" },
    { "enable", "{\"execute\":\"qmp_capabilities\",\"arguments\":"
      "{\"enable\":[\"oob\"]}}" },
    { "early", "{\"execute\":\"take\",\"id\":[1,{\"a\":null}]}" },
    { "twice", HELLO HELLO },
    { "unknown", HELLO "{\"execute\":\"nothing\",\"id\":1.5}" },
    { "all", TAKE ("\"string\":\"x\",\"integer\":7,\"word\":\"bc\","
                   "\"words\":[\"y\"]") },
    { "fail", TAKE ("\"string\":\"\\u20ac\",\"boolean\":true") },
    { "wrong", TAKE ("\"string\":1") TAKE ("\"string\":\"\",\"x\":1") },
    { "range", TAKE ("\"string\":\"\",\"integer\":-4") },
    { "word", TAKE ("\"string\":\"\",\"word\":\"c\",\"words\":[1]") },
    { "garbage", "foo \"bar\n[1]{\"a\"\n:1}" HELLO },
    { "half", "{\"execute\":\"qmp" },
    { "string", "{\"execute\":\"a\n" HELLO },
    { "duplicate", "{\"execute\":\"a\",\"execute\":\"b\"}" },
    { "members", "{\"execute\":1}{\"arguments\":[]}{\"more\":1}{}" },
    { "deep", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[" },
    { "brackets", "{]}[}" },
  };

  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i)
    save (opaque, t[i].name, (const uint8_t *) t[i].input,
          strlen (t[i].input));
}

const struct fuzz_target fuzz_control = {
  .name = "control", .run = run, .seeds = seeds
};
