# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Booting a real Linux guest from a chain: what guest.bats needs besides the
# tests themselves.
# shellcheck shell=bash
# shellcheck disable=SC2034             # the tests use what is set here

: "${top_srcdir:=$(cd "$BATS_TEST_DIRNAME/.." && pwd)}"
: "${top_builddir:=${NBDCHAIN_BUILD:-$top_srcdir/build}}"
: "${NBDCHAIN:=$top_builddir/nbdchain}"

# shellcheck source=tests/children.bash
. "$top_srcdir/tests/children.bash"

# Made once, and kept in the build tree for the next run and for the demo.
guest=$top_builddir/guest

# Processes of this test, which teardown ends.
guest_pids=()

# guest_start NAME COMMAND...: run it in the background, with its output in
# NAME.out and NAME.err, and set $started to its process.
guest_start ()
{
  local name=$1
  shift
  "$@" >"$BATS_TEST_TMPDIR/$name.out" 2>"$BATS_TEST_TMPDIR/$name.err" \
       </dev/null 3>&- &
  started=$!
  guest_pids+=("$started")
}

# guest_end PID [SECONDS]: stop a process, by force after a minute or that
# long, and wait for it.  Status: its own, also if it has ended before.
guest_end ()
{
  local pid=$1 limit=$((${2-60} * 10)) tries=0
  if is_child "$pid"; then
    kill "$pid" 2>/dev/null || true
    while is_child "$pid"; do
      tries=$((tries + 1))
      if [ "$tries" -gt "$limit" ]; then
        kill -KILL "$pid" 2>/dev/null || true
        break
      fi
      sleep 0.1
    done
  fi
  wait "$pid"
}

# until_true SECONDS COMMAND...
until_true ()
{
  local tries=$(($1 * 10))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.1
  done
}

# guest_remote FILE [PARAMETER...]: serve it read-only, as another host would,
# with options of nbdkit and parameters of its delay filter; set $remote to its
# URI and $base to its process.
guest_remote ()
{
  local socket=$BATS_TEST_TMPDIR/remote.sock pid=$BATS_TEST_TMPDIR/remote.pid
  guest_start remote nbdkit -f -r -U "$socket" -P "$pid" --filter=delay file "$@"
  base=$started
  # Its socket is there before it can be connected to.
  until_true 60 test -s "$pid"
  remote="nbd+unix:///?socket=$socket"
}

# guest_serve IMAGE OPTION...: run "nbdchain serve", set $server to its process
# and $uri to what it prints.
guest_serve ()
{
  rm -f "$BATS_TEST_TMPDIR/serve.out"
  guest_start serve "$NBDCHAIN" serve "$@"
  server=$started
  until_true 60 grep -q '^nbd' "$BATS_TEST_TMPDIR/serve.out" || {
    cat "$BATS_TEST_TMPDIR/serve.err"
    return 1
  }
  uri=$(grep -m 1 '^nbd' "$BATS_TEST_TMPDIR/serve.out")
}

# guest_boot ARGUMENT...: boot-guest with this guest.
guest_boot ()
{
  "${boot_guest[@]}" "$@" 3>&-
}

# said TEXT [TIMES]: has the guest said it so often?
said ()
{
  [ "$(grep -c "^guest: $1" console)" -ge "${2-1}" ]
}

# What tests do first and last.
guest_setup ()
{
  # The limit is for a guest that hangs; valgrind and sanitizers slow down the
  # server that it waits for.
  local limit=300
  [ -z "${NBDCHAIN_VALGRIND-}${NBDCHAIN_SANITIZER-}" ] || limit=500
  boot_guest=("$top_srcdir/scripts/boot-guest" --limit "$limit"
              --log "$BATS_TEST_TMPDIR/console")
  cd "$BATS_TEST_TMPDIR" || return 1
}

guest_teardown ()
{
  local pid file
  # The last first: guest, then its server, then what the server reads from.
  for ((pid = ${#guest_pids[@]} - 1; pid >= 0; pid--)); do
    guest_end "${guest_pids[pid]}" 10 2>/dev/null || true
  done
  if [ -z "${BATS_TEST_COMPLETED-}" ]; then
    for file in remote.err serve.err console; do
      [ ! -s "$BATS_TEST_TMPDIR/$file" ] || {
        echo "--- $file:"
        tail -n 30 "$BATS_TEST_TMPDIR/$file"
      }
    done
  fi
}
