#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# An ordinary user: no root, no account, no home, no right to write where it
# stands.  Run by an ordinary user, the tests are that user's.

load common

setup ()
{
  cd "$BATS_TEST_TMPDIR" || return 1
  started_pids=()
  scratch_dirs=()
  # A folder that anybody may enter, with the programs of this build, whose own
  # folder may be closed.
  scratch=$(mktemp -d /tmp/nbdchain-user.XXXXXX)
  scratch_dirs+=("$scratch")
  chmod 755 "$scratch"
  mkdir "$scratch/bin" "$scratch/own"
  cp "$top_builddir/tools/.libs/nbdchain" "$NBDCHAIN_PLUGIN" \
     "$top_builddir/lib/.libs/libnbdchain.so" \
     "$top_builddir/lib/.libs/libnbdchain-remote.so" "$scratch/bin"
  chmod -R a+rX "$scratch/bin"
  own=$scratch/own
  if [ "$(id -u)" -eq 0 ]; then
    become=(setpriv --reuid 54321 --regid 54321 --clear-groups)
    chown 54321:54321 "$own"
  else
    become=()
  fi
}

# user COMMAND...: as that user, in the root folder, without an environment.
user ()
{
  env -C / "${become[@]}" env -i PATH="$scratch/bin:/usr/sbin:/usr/bin:/bin" \
    LD_LIBRARY_PATH="$scratch/bin" LD_PRELOAD="$NBDCHAIN_PRELOAD" \
    NBDCHAIN_PLUGIN="$scratch/bin/nbdkit-chain-plugin.so" \
    ASAN_OPTIONS="${ASAN_OPTIONS-}" TSAN_OPTIONS="${TSAN_OPTIONS-}" \
    TMPDIR="${user_tmp-}" NBDCHAIN_TEST_RUN="${NBDCHAIN_TEST_RUN-}" "$@"
}

# user_serve ARGUMENT...: in the background; sets $uri and $pid.
user_serve ()
{
  start serve user nbdchain serve "$@"
  wait_for 60 is_ready_or_gone serve.out "$pid"
  uri=$(cat serve.out)
  [ -n "$uri" ]
}

# stop_server: $pid may be the shell that waits for it.
stop_server ()
{
  local server
  server=$(pgrep -P "$pid" -x nbdchain || echo "$pid")
  kill "$server"
  wait_for 20 is_gone "$pid"
  wait "$pid"
}

@test "create, serve, write, stop, snapshot, serve again, check" {
  user truncate -s 8M "$own/base.img"
  user nbdchain create -b "$own/base.img" -F raw "$own/top.fvd"
  user_serve "$own/top.fvd"
  # The default socket, in a folder that nobody else can enter.
  [[ $uri == nbd+unix:///?socket=/tmp/nbdchain-*/socket ]]
  socket=${uri#*socket=}
  [ "$(stat -c %a:%u "${socket%/*}")" = "700:$(stat -c %u "$own")" ]
  [ "$(stat -c %a "$socket")" = 600 ]
  user nbdsh -u "$uri" -c 'h.pwrite(b"old" * 1000, 1000)' -c 'h.flush()'
  stop_server
  [ ! -e "${socket%/*}" ]

  user nbdchain snapshot "$own/top.fvd" "$own/new.fvd"
  user_serve "$own/new.fvd" -U "$own/sock"
  user nbdsh -u "$uri" -c 'h.pwrite(b"new", 1000)' \
    -c 'assert h.pread(6, 1000) == b"newold"'
  stop_server
  user nbdchain check "$own/top.fvd"
  user nbdchain check "$own/new.fvd"
  user nbdchain map "$own/new.fvd"
  # Nothing but what it was asked for.
  [ "$(cd "$own" && echo *)" = "base.img new.fvd top.fvd" ]
}

@test "an image in a folder that cannot be written is served, and written" {
  user nbdchain create "$own/top.fvd" 8M
  chmod 555 "$own"
  [ -z "${become[*]}" ] || chown 0:0 "$own"
  user_serve "$own/top.fvd"
  user nbdsh -u "$uri" -c 'h.pwrite(b"x", 0)' -c 'h.flush()'
  stop_server
  user nbdchain check "$own/top.fvd"
  # A snapshot goes elsewhere.
  run -1 user nbdchain snapshot "$own/top.fvd" "$own/new.fvd"
  [[ $output == *"$own/new.fvd: Permission denied"* ]]
  chmod 755 "$own"
}

@test "an image of somebody else is served for reading" {
  user nbdchain create "$own/top.fvd" 8M
  chmod 444 "$own/top.fvd"
  [ -z "${become[*]}" ] || chown 0:0 "$own/top.fvd"
  user_serve "$own/top.fvd"
  [ "$(user nbdinfo --is read-only "$uri" && echo yes)" = yes ]
  stop_server
}

@test "what a user may not do is told with its name" {
  refuses () {
    local expected=$1
    shift
    run -1 user nbdchain "$@"
    [[ $output == *"$expected"* ]] || { echo "$output"; return 1; }
  }
  user nbdchain create "$own/top.fvd" 8M
  closed=$scratch/closed
  mkdir -m 555 "$closed"
  refuses "$closed/top.fvd: Permission denied" create "$closed/top.fvd" 8M
  refuses "$closed/sock: Permission denied" \
    serve "$own/top.fvd" -U "$closed/sock"
  user_tmp=$closed refuses "a directory for the socket in $closed: Perm" \
    serve "$own/top.fvd"
  user touch "$own/secret"
  user nbdchain create -b "$own/secret" -F raw "$own/over.fvd" 8M
  chmod 0 "$own/secret"
  refuses '"secret" cannot be opened: Permission denied' \
    serve "$own/over.fvd" -U "$own/sock"
  [ ! -e "$own/sock" ]
}

@test "another user cannot connect to the socket" {
  [ -n "${become[*]}" ] || skip "there is no other user to be"
  user nbdchain create "$own/top.fvd" 8M
  user_serve "$own/top.fvd" -U "$own/sock"
  run ! setpriv --reuid 54322 --regid 54322 --clear-groups \
    nbdinfo --size "$uri"
  [[ $output == *"Permission denied"* ]]
  user nbdinfo --size "$uri"
  stop_server
}
