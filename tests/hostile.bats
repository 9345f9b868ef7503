#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Clients that misbehave (peers/nbd-client.py): the others are served, nothing
# acknowledged is lost, and the server lives.
# shellcheck disable=SC2154             # common.bash sets these

load common

client=$top_srcdir/tests/peers/nbd-client.py

# attack NAME...: one after the other, while an honest client works.
attack ()
{
  local name
  for name; do
    echo "$name"
    timeout 300 /usr/bin/python3 "$client" "$sock" "$name"
  done
}

disk ()
{
  "$NBDCHAIN" create top.fvd 64M >/dev/null
}

# soon_ends: SIGTERM ends the server at once and in order.
soon_ends ()
{
  kill "$pid"
  wait_for 5 is_gone "$pid"
  wait "$pid"
  "$NBDCHAIN" check top.fvd
}

# memory: kilobytes of nbdkit under serve; nothing if none runs.
memory ()
{
  sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' \
    "/proc/$(pgrep -P "$pid")/status" 2>/dev/null || :
}

memory_is_below ()
{
  local now
  now=$(memory)
  [ -n "$now" ] && [ "$now" -lt "$1" ]
}

# attack_and_end NAME [ARGUMENT...]: the server, which has these arguments, is
# ended while those clients are there.
attack_and_end ()
{
  local clients server
  disk
  serve top.fvd "${@:2}"
  server=$pid
  start clients timeout 300 /usr/bin/python3 "$client" "$sock" "$1" --stay
  clients=$pid pid=$server
  wait_for 60 is_done_or_gone clients.out "$clients"
  [ -s clients.out ]
  soon_ends
  wait_for 10 is_gone "$clients"
}

is_done_or_gone ()
{
  [ -s "$1" ] || is_gone "$2"
}

@test "nbdkit alone lives through nonsense in the handshake and in requests" {
  disk
  serve_plain top.fvd
  attack half_handshakes garbage options absurd cut_writes
  nbdsh -u "$uri" -c 'h.pread(512, 0)'
  stop "$pid"
  "$NBDCHAIN" check top.fvd
}

@test "nonsense in the handshake and in requests costs no memory" {
  local before nbdkit
  disk
  serve top.fvd
  attack half_handshakes garbage options absurd cut_writes
  before=$(memory)
  nbdkit=$(pgrep -P "$pid")
  for _ in 1 2; do
    attack half_handshakes garbage options absurd cut_writes
  done
  [ "$(pgrep -P "$pid")" = "$nbdkit" ]
  # Threads of connections that have hung up may take a moment to end.
  slow || wait_for 60 memory_is_below $((before + 16384))
  soon_ends
}

@test "clients that ask for much and do not read the replies" {
  disk
  serve top.fvd
  attack unread unread
  # Each of eight clients can keep a megabyte for each of its threads.  The
  # server that is looked at may be one that has yet to be started again.
  slow || wait_for 60 memory_is_below 2000000
  soon_ends
}

@test "clients that hang up with requests under way, again and again" {
  disk
  serve top.fvd
  attack vanish
  soon_ends
}

@test "clients that leave while they are owed replies end nobody else" {
  disk
  serve top.fvd
  attack owed
  soon_ends
}

@test "nor do they with nbdkit alone" {
  disk
  serve_plain top.fvd
  attack owed vanish
  stop "$pid"
}

@test "large requests take no more memory than max-memory" {
  local server
  disk
  serve top.fvd -- max-memory=512M
  server=$pid
  start clients timeout 300 /usr/bin/python3 "$client" "$sock" greedy --stay
  wait_for 60 is_done_or_gone clients.out "$pid"
  [ -s clients.out ]
  pid=$server
  # Besides, a few hundred threads.
  slow || memory_is_below $(((512 + 64) << 10))
  soon_ends
}

@test "a handshake that takes too long is ended" {
  disk
  serve top.fvd -- handshake-timeout=1
  attack late
  grep "handshake took more than 1 s" serve.err
  soon_ends
}

@test "handshakes that do not end keep nobody out" {
  disk
  serve top.fvd --max-connections 4 --threads 4
  attack loiter
  soon_ends
}

@test "handshakes that do not end use up no descriptors" {
  disk
  (
    ulimit -n 250
    serve top.fvd --max-connections 0 --threads 4
    echo "$pid" >pid
  )
  pid=$(cat pid) sock=$PWD/serve.sock
  attack loiter
  # A message for each call that failed would be thousands.
  [ "$(wc -l <serve.err)" -lt 300 ]
  kill "$pid"
  wait_for 10 is_gone "$pid"
}

# A connection has as many threads as it may, from the beginning; more of them
# would be more than all processes of a small machine can have together.
few_threads=(--threads 16 --max-connections 0)

@test "more connections than are allowed" {
  disk
  serve top.fvd
  attack refused
  grep "as many as max-connections= allows" serve.err
  soon_ends
}

@test "200 connections" {
  disk
  serve top.fvd "${few_threads[@]}"
  attack crowd
  soon_ends
}

@test "the server ends in time while handshakes hang" {
  attack_and_end half_handshakes
}

@test "the server ends in time while replies are not read" {
  attack_and_end unread
}

@test "the server ends in time with 200 connections" {
  attack_and_end crowd "${few_threads[@]}"
}

@test "a client that may only read can write nothing" {
  disk
  "$NBDCHAIN" snapshot top.fvd next.fvd >/dev/null
  serve next.fvd -r
  cp top.fvd top.before
  cp next.fvd next.before
  nbdsh -c '
import errno
for name in ("", "top.fvd"):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_export_name(name)
    h.connect_unix("'"$sock"'")
    for request in (lambda: h.pwrite(b"x" * 4096, 0),
                    lambda: h.pwrite(b"x" * 4096, 0, nbd.CMD_FLAG_FUA),
                    lambda: h.zero(4096, 0), lambda: h.trim(4096, 0),
                    lambda: h.zero(1, 0, nbd.CMD_FLAG_FUA)):
        try:
            request()
        except nbd.Error as e:
            assert e.errnum in (errno.EPERM, errno.EROFS, errno.EINVAL), e
        else:
            raise AssertionError("written")
    assert h.pread(4096, 0) == bytes(4096)
    h.shutdown()
'
  stop "$pid"
  cmp top.fvd top.before
  cmp next.fvd next.before
}
