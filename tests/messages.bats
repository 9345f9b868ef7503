#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What a server says when something fails: once, which layer, where, and why.

load common

# fail_all N COMMAND: run it in nbdsh N times, I being the count; each fails.
fail_all ()
{
  nbdsh -u "$uri" -c - <<END_SHELL
for i in range($1):
    try:
        $2
    except nbd.Error:
        continue
    assert False, i
END_SHELL
}

# remote_base PARAMETER...: a base of 64 MiB, served by nbdkit with these
# parameters of its filter "error", and top.fvd on it.
remote_base ()
{
  truncate -s 64M base.img
  start_base "$@"
  "$NBDCHAIN" create -b "$base_uri" -F raw top.fvd >/dev/null
}

start_base ()
{
  serve_by base "$NBDKIT" -f -r -t 1 --filter=error -- file base.img "$@"
  base_uri=$uri
  base_pid=$pid
}

# said TEXT: how many lines the server said that have it.
said ()
{
  grep -cF -- "$1" serve.err || :
}

has_said ()
{
  grep -qF -- "$1" serve.err
}

@test "a full disk: the file, the offset, what to do, and not for each write" {
  options=(-m)
  [ "$(id -u)" -eq 0 ] || options+=(-r)
  unshare "${options[@]}" true 2>/dev/null || skip "may not mount"
  mkdir full
  sock=$PWD/sock
  uri="nbd+unix:///?socket=$sock"
  # The space of names ends with the server.
  # shellcheck disable=SC2016
  start serve unshare "${options[@]}" sh -c '
    mount -t tmpfs -o size=4m none full && nbdchain create full/top.fvd 64M &&
      exec nbdchain serve full/top.fvd -U "$1"' sh "$sock"
  wait_for 60 grep -qs "^nbd" serve.out
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 65536, 0)' -c 'h.flush()'
  nbdsh -u "$uri" -c - <<'END_SHELL'
for i in range(64):
    try:
        h.pwrite(b"x" * 65536, i * 65536)
    except nbd.Error as e:
        assert e.errno == "ENOSPC", e
END_SHELL
  fail_all 100 'h.pwrite(b"x" * 65536, (100 + i) * 65536)'
  grep -qE "error: $PWD/full/top.fvd: write at offset [0-9]+ of the file: No \
space left on device; make room: " serve.err
  [ "$(said "No space left")" -lt 100 ]
  # And nothing else is lost.
  nbdsh -u "$uri" -c 'assert h.pread(65536, 0) == b"x" * 65536' -c 'h.flush()'
  # There is no room for what is written at the end, either.
  stop "$pid" || :
}

@test "a base that answers with errors: its URI, the offset, its reason, once" {
  remote_base error-pread=EIO error-rate=100% \
    error-file="$PWD/broken"
  serve top.fvd --allow "$base_uri"
  touch broken
  fail_all 100 'h.pread(4096, (2 + i) * 4096)'
  has_said "$base_uri: read of 4096 bytes at offset 8192: the server says: \
Input/output error"
  [ "$(said "the server says")" -lt 100 ]
  rm broken
  nbdsh -u "$uri" -c 'h.pread(4096, 0)'
  stop "$pid"
}

@test "a base that goes and comes back: why, who waited in vain, for how long" {
  remote_base
  serve top.fvd --allow "$base_uri" --retry 3
  served=$uri
  nbdsh -u "$uri" -c 'h.pread(4096, 0)'
  stop_hard "$base_pid"
  wait_for 20 has_said "$base_uri: connection lost: "
  # Twenty at once wait for three seconds.
  nbdsh -u "$uri" -c - <<'END_SHELL'
waiting = [h.aio_pread(nbd.Buffer(4096), 8192) for i in range(20)]
done = []
for cookie in waiting:
    while True:
        try:
            if h.aio_command_completed(cookie):
                assert False
            h.poll(-1)
        except nbd.Error:
            break
END_SHELL
  has_said "$base_uri: not reachable, and a request needs it at offset 8192: \
waited as long as retry= allows"
  [ "$(said "not reachable")" -lt 20 ]
  serve_pid=$pid
  start_base
  wait_for 20 has_said "$base_uri: is back after "
  nbdsh -u "$served" -c 'h.pread(4096, 8192)'
  stop "$serve_pid"
}

@test "an image that was retired: which one is served in its place" {
  "$NBDCHAIN" create top.fvd 1M >/dev/null
  "$NBDCHAIN" snapshot top.fvd new.fvd >/dev/null
  serve top.fvd
  has_said "$PWD/top.fvd: was retired, going on with $PWD/new.fvd"
  stop "$pid"
}

@test "a server that was killed: how, and that another one is started" {
  "$NBDCHAIN" create top.fvd 1M >/dev/null
  serve top.fvd
  # A sanitizer has other signals for itself.
  kill -ABRT "$(pgrep -P "$pid")"
  wait_for 20 has_said "was killed by SIGABRT: starting it again"
  nbdinfo "$uri" >/dev/null
  stop "$pid"
}
