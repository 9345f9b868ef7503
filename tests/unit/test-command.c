/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Tests of lib/control/frame.c and command.c: from bytes to checked
 * commands, and the errors on the way. */

#include <config.h>

#include "control/command.h"
#include "control/frame.h"

#include "tap.h"

/* What the frames of TEXT are, each followed by '|', with "BAD" for a line
 * that was dropped and "LARGE" for the end. */
static const char *
frames_of (const char *text, size_t len)
{
  static char out[4096];
  struct nc_frame frame = { 0 };
  size_t n = 0;

  out[0] = '\0';
  for (size_t i = 0; i < len; i++) {
    const enum nc_frame_result r = nc_frame_feed (&frame, text[i]);

    if (r == NC_FRAME_TEXT) {
      must (n + frame.len + 2 < sizeof out, "out");
      memcpy (out + n, frame.text, frame.len);
      strcpy (out + n + frame.len, "|");
      nc_frame_reset (&frame);
    }
    else if (r == NC_FRAME_BAD)
      strcat (out, "BAD|");
    else if (r == NC_FRAME_TOO_LARGE) {
      strcat (out, "LARGE|");
      break;
    }
    n = strlen (out);
  }
  nc_frame_free (&frame);
  return out;
}

static bool
is_framed (const char *text, const char *expect)
{
  const char *frames = frames_of (text, strlen (text));

  return strcmp (frames, expect) == 0 || note ("%s: %s", text, frames);
}

static void
test_frames (void)
{
  static char big[NC_FRAME_MAX + 100];

  ok (is_framed ("{}", "{}|") && is_framed (" {} \r\n[1]\n", "{}|[1]|") &&
      is_framed ("{}{}[[]]", "{}|{}|[[]]|"),
      "texts need nothing between them");
  ok (is_framed ("{\"a\":\n\"b\"\n}", "{\"a\":\n\"b\"\n}|"),
      "a text may have lines");
  ok (is_framed ("{\"}\\\"{\":\"\\\\\"}{}", "{\"}\\\"{\":\"\\\\\"}|{}|"),
      "brackets and quotes in strings do not count");
  ok (is_framed ("foo {}\n{}", "BAD|{}|") &&
      is_framed ("}\n\xff{}\n{}", "BAD|BAD|{}|") &&
      is_framed ("{\"a\n{}", "BAD|{}|") && is_framed ("\"{}\"\n{}", "BAD|{}|"),
      "a line that is no JSON is dropped, and the next one is taken");
  ok (is_framed ("{\"a\":[", "") && is_framed ("", ""),
      "half a text is none");
  memset (big, '[', NC_FRAME_DEPTH + 1);
  ok (is_framed (big, "LARGE|"), "there is a limit to depth");
  memset (big, ' ', sizeof big);
  big[0] = '{';
  big[NC_FRAME_MAX - 1] = '}';
  ok (nc_frame_feed (&(struct nc_frame) { 0 }, 'x') == NC_FRAME_MORE &&
      strcmp (frames_of (big, NC_FRAME_MAX - 1), "") == 0,
      "the largest text is not complete before its end");
  big[NC_FRAME_MAX - 1] = ' ';
  ok (strcmp (frames_of (big, sizeof big), "LARGE|") == 0,
      "there is a limit to size");
}

static _Atomic (unsigned) called;

static json_t *
take (void *opaque, json_t *args, struct nc_command_error *error)
{
  must (opaque == &called, "opaque");
  called++;
  if (json_is_true (json_object_get (args, "boolean")))
    return nc_command_fail (error, NC_ERROR_DEVICE_NOT_FOUND, "no %s",
                            "device");
  return json_incref (args);
}

static const char *const words[] = { "one", "two", NULL };

static const struct nc_arg args[] = {
  { .name = "string", .type = NC_ARG_STRING },
  { .name = "integer", .type = NC_ARG_INTEGER, .optional = true,
    .max = 10 },
  { .name = "boolean", .type = NC_ARG_BOOLEAN, .optional = true },
  { .name = "word", .type = NC_ARG_WORD, .optional = true, .words = words },
  { .name = "words", .type = NC_ARG_WORDS, .optional = true },
  { 0 }
};

static const struct nc_command take_command = { "take", args, take };
static const struct nc_command none_command = { "none", NULL, take };
static struct nc_commands commands;
static enum nc_session session;

/* Whether the reply to TEXT has CLASS and a description with DESC in it;
 * CLASS NULL: the result is DESC. */
static bool
answers (const char *text, const char *class, const char *desc)
{
  json_t *reply = nc_commands_answer (&commands, &session, text,
                                      strlen (text));
  json_t *error = json_object_get (reply, "error");
  char *dump = json_dumps (reply, JSON_COMPACT | JSON_SORT_KEYS);
  const char *have_class =
    json_string_value (json_object_get (error, "class"));
  const char *have_desc = json_string_value (json_object_get (error, "desc"));
  const bool good = class
    ? have_class && strcmp (have_class, class) == 0 && have_desc &&
      strstr (have_desc, desc) != NULL
    : dump && strcmp (dump, desc) == 0;

  if (!good)
    note ("%s: %s", text, dump);
  free (dump);
  json_decref (reply);
  return good;
}

#define GENERIC "GenericError"
#define NOT_FOUND "CommandNotFound"
#define TAKE(a) "{\"execute\":\"take\",\"arguments\":{" a "}}"

static void
test_negotiation (void)
{
  session = NC_NEGOTIATING;
  ok (answers ("{\"execute\":\"none\"}", NOT_FOUND, "qmp_capabilities") &&
      called == 0, "nothing is done before capabilities are negotiated");
  ok (answers ("{\"execute\":\"qmp_capabilities\",\"arguments\":"
               "{\"enable\":[\"oob\"]}}", GENERIC, "oob") &&
      answers ("{\"execute\":\"qmp_capabilities\",\"arguments\":"
               "{\"enable\":[1]}}", GENERIC, "strings") &&
      session == NC_NEGOTIATING, "what is not offered cannot be enabled");
  ok (answers ("{\"execute\":\"qmp_capabilities\",\"id\":{\"a\":[1]}}", NULL,
               "{\"id\":{\"a\":[1]},\"return\":{}}") &&
      session == NC_NEGOTIATED, "nothing is enabled by default");
  ok (answers ("{\"execute\":\"qmp_capabilities\"}", NOT_FOUND, "once"),
      "which is done once");
}

static void
test_requests (void)
{
  ok (answers ("[1]", GENERIC, "object") && answers ("{}", GENERIC, "execute")
      && answers ("{\"execute\":1}", GENERIC, "string") &&
      answers ("{\"execute\":\"none\",\"arguments\":[]}", GENERIC, "object") &&
      answers ("{\"execute\":\"none\",\"x\":1}", GENERIC, "'x'") &&
      answers ("{\"exec-oob\":\"none\"}", GENERIC, "exec-oob"),
      "what is no request says why");
  ok (answers ("{\"execute\":\"none\",\"execute\":\"none\"}", GENERIC,
               "JSON") &&
      answers ("{]}", GENERIC, "JSON") &&
      answers ("{\"execute\":\"\\u0000\"}", GENERIC, "JSON") &&
      answers ("{\"execute\":\"\xff\"}", GENERIC, "JSON"),
      "so does what is no JSON");
  ok (answers ("{\"execute\":\"nothing\",\"id\":7}", NOT_FOUND, "'nothing'") &&
      answers ("{\"execute\":\"\"}", NOT_FOUND, "''"),
      "an unknown command is named");
  called = 0;
  ok (answers ("{\"execute\":\"none\"}", NULL, "{\"return\":{}}") &&
      answers ("{\"execute\":\"none\",\"arguments\":{},\"id\":null}", NULL,
               "{\"id\":null,\"return\":{}}") &&
      called == 2, "a command without arguments takes none or {}");
}

static void
test_arguments (void)
{
  called = 0;
  ok (answers (TAKE (""), GENERIC, "'string'") &&
      answers ("{\"execute\":\"take\"}", GENERIC, "'string'"),
      "what is missing is named");
  ok (answers (TAKE ("\"string\":1"), GENERIC, "must be a string") &&
      answers (TAKE ("\"string\":null"), GENERIC, "must be a string") &&
      answers (TAKE ("\"string\":\"\",\"integer\":1.0"), GENERIC, "integer") &&
      answers (TAKE ("\"string\":\"\",\"integer\":\"1\""), GENERIC,
               "integer") &&
      answers (TAKE ("\"string\":\"\",\"boolean\":1"), GENERIC, "true") &&
      answers (TAKE ("\"string\":\"\",\"word\":1"), GENERIC, "string") &&
      answers (TAKE ("\"string\":\"\",\"words\":\"a\""), GENERIC, "list") &&
      answers (TAKE ("\"string\":\"\",\"words\":[\"a\",1]"), GENERIC, "list"),
      "so is what has the wrong type");
  ok (answers (TAKE ("\"string\":\"\",\"integer\":11"), GENERIC, "0 to 10") &&
      answers (TAKE ("\"string\":\"\",\"integer\":-1"), GENERIC, "0 to 10") &&
      answers (TAKE ("\"string\":\"\",\"word\":\"x\""), GENERIC, "one, two"),
      "or a value that is not allowed, with those that are");
  ok (answers (TAKE ("\"string\":\"\",\"x\":1"), GENERIC, "'x'") &&
      answers ("{\"execute\":\"none\",\"arguments\":{\"x\":1}}", GENERIC,
               "'x'"), "or is unknown");
  ok (called == 0, "a command sees none of these");
  ok (answers (TAKE ("\"string\":\"a\",\"integer\":10,\"boolean\":false,"
                     "\"word\":\"two\",\"words\":[]"), NULL,
               "{\"return\":{\"boolean\":false,\"integer\":10,\"string\":"
               "\"a\",\"word\":\"two\",\"words\":[]}}") && called == 1,
      "it sees what was given, and no more");
  ok (answers (TAKE ("\"string\":\"\",\"boolean\":true"), "DeviceNotFound",
               "no device"), "its errors are passed on");
}

static void
test_table (void)
{
  static char names[NC_COMMANDS_MAX][16];
  static struct nc_command many[NC_COMMANDS_MAX];
  unsigned n = 0;

  tap_clear ();
  ok (nc_commands_add (&commands, &take_command, NULL) == -1 &&
      errno == EEXIST && tap_errors == 1, "a name is taken once");
  for (; n < NC_COMMANDS_MAX; n++) {
    snprintf (names[n], sizeof names[n], "many-%u", n);
    many[n].name = names[n];
    if (nc_commands_add (&commands, &many[n], NULL) == -1)
      break;
  }
  ok (n == NC_COMMANDS_MAX - 2 && errno == ENOSPC && tap_errors == 2,
      "there is a limit to their number");
}

static void
test_text (void)
{
  json_t *bad = nc_json_text ("a\xff""b"), *good = nc_json_text ("\xc3\xa4");
  json_t *null = nc_json_text (NULL);

  ok (strcmp (json_string_value (bad), "a\xef\xbf\xbd""b") == 0 &&
      strcmp (json_string_value (good), "\xc3\xa4") == 0 &&
      json_is_null (null), "text that is no UTF-8 can still be shown");
  json_decref (bad);
  json_decref (good);
  json_decref (null);
}

int
main (void)
{
  tap_start (60);
  must (nc_commands_add (&commands, &take_command, &called) == 0 &&
        nc_commands_add (&commands, &none_command, &called) == 0, "commands");
  test_frames ();
  test_negotiation ();
  test_requests ();
  test_arguments ();
  test_text ();
  test_table ();
  return tap_done ();
}
