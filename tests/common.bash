# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What the tests of the disk's data share: servers in the background that end
# with the test, images, comparison.
#
# load common
#
# Each test works in a directory of its own.  Whatever it starts by the
# functions below is stopped by teardown, by force if need be.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154      # used by tests; set by env.bash

bats_require_minimum_version 1.5.0

# By hand, without run-tests: take what configure knows from the build tree.
if [ -z "${NBDCHAIN_PLUGIN-}" ]; then
  top_srcdir=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
  # shellcheck disable=SC1090,SC1091
  . "${NBDCHAIN_BUILD:-$top_srcdir/build}/tests/env.bash"
fi

# shellcheck source=tests/children.bash
. "$top_srcdir/tests/children.bash"

harness=$top_builddir/tests/harness
peers=$top_builddir/tests/peers
PATH=$top_builddir:/usr/bin:$PATH

setup ()
{
  cd "$BATS_TEST_TMPDIR" || return 1
  started_pids=()
  scratch_dirs=()
  loop_devices=()
}

teardown ()
{
  local status=$? i pid device dir file
  # nbdkit waits for its clients to go, so all are told at once.
  for pid in "${started_pids[@]}"; do
    ! is_child "$pid" || kill "$pid" 2>/dev/null || :
  done
  for ((i = ${#started_pids[@]} - 1; i >= 0; i--)); do
    stop "${started_pids[i]}" >/dev/null 2>&1 || :
  done
  for device in "${loop_devices[@]}"; do
    losetup -d "$device" 2>/dev/null || :
  done
  for dir in "${scratch_dirs[@]}"; do
    rm -rf "$dir"
  done
  # Shown by bats if the test has failed.
  for file in "$BATS_TEST_TMPDIR"/*.err; do
    [ ! -s "$file" ] || sed "s|^|${file##*/}: |" "$file" | tail -n 40
  done
  return "$status"
}

# slow: are programs run in a way that makes them many times slower?
slow ()
{
  [ -n "${NBDCHAIN_VALGRIND-}${NBDCHAIN_SANITIZER-}" ]
}

# wait_for SECONDS COMMAND...: poll until COMMAND succeeds.  SECONDS are what it
# may take where nothing else runs; other tests do, so there are four times as
# many.
wait_for ()
{
  local deadline=$((SECONDS + 4 * $1))
  shift
  until "$@"; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "waited in vain: $*" >&2
      return 1
    fi
    sleep 0.01
  done
}

# start NAME COMMAND...: run it in the background, with NAME.out and NAME.err,
# and set $pid.
start ()
{
  local name=$1
  shift
  rm -f "$name.out" "$name.err"
  "$@" >"$name.out" 2>"$name.err" </dev/null 3>&- &
  pid=$!
  started_pids+=("$pid")
}

# stop PID: ask it to end, force it if it does not.  Status: 0 if its own was,
# also if it has ended before.
stop ()
{
  local children
  if is_child "$1"; then
    children=$(pgrep -P "$1" | tr '\n' ' ')
    kill "$1" 2>/dev/null || :
    # shellcheck disable=SC2086
    wait_for 10 is_gone "$1" || kill -KILL "$1" $children 2>/dev/null || :
  fi
  wait "$1"
}

# stop_hard PID: as a crash.  It must not have ended before.
stop_hard ()
{
  is_child "$1" || return 1
  kill -KILL "$1"
  wait "$1" 2>/dev/null || :
}

# scratch_dir: set $scratch to a directory in memory, if there is room, for
# files that are written again and again.
scratch_dir ()
{
  if [ -w /dev/shm ] &&
     [ "$(df --output=avail -k /dev/shm | tail -n 1)" -gt 1000000 ]; then
    scratch=$(mktemp -d /dev/shm/nbdchain.XXXXXX)
  else
    scratch=$(mktemp -d "$BATS_TEST_TMPDIR/scratch.XXXXXX")
  fi
  scratch_dirs+=("$scratch")
}

# need_mount: the test mounts something, which only root may.
need_mount ()
{
  [ "$(id -u)" -eq 0 ] || skip "needs root, to mount"
  unshare -m true 2>/dev/null || skip "may not mount"
}

# loop_device FILE: set $device to a block device on FILE, until the test ends.
loop_device ()
{
  [ "$(id -u)" -eq 0 ] || skip "needs root, for a loop device"
  device=$(losetup --find --show "$1")
  loop_devices+=("$device")
}

# detach_device: $device is free before the test ends.  It may soon be of
# another test, which teardown must not take it away from.
detach_device ()
{
  local i
  losetup -d "$device"
  for i in "${!loop_devices[@]}"; do
    [ "${loop_devices[i]}" != "$device" ] || unset "loop_devices[i]"
  done
}

# free_port: print a TCP port that nothing listens on.  It is none of those that
# the kernel gives to clients, for one of another test may get it before a
# server does, or while that is away; nor that of NBD, which is one without a
# number.
free_port ()
{
  /usr/bin/python3 -c 'import random, socket
while True:
    port = random.randrange(10810, 32768)
    try:
        socket.socket().bind(("127.0.0.1", port))
        print(port)
        break
    except OSError:
        pass'
}

# nbdkit_with_chain: set $nbdkit to the words that start an nbdkit which can
# load the plugin of this build.  For speed of tests that start thousands,
# valgrind only with the argument "valgrind".
nbdkit_with_chain ()
{
  nbdkit=()
  if [ -n "${NBDCHAIN_PRELOAD-}" ]; then
    nbdkit+=(env "LD_PRELOAD=$NBDCHAIN_PRELOAD")
  fi
  if [ -n "${NBDCHAIN_VALGRIND-}" ] && [ "${1-}" = valgrind ]; then
    nbdkit+=("$VALGRIND" -q --leak-check=no --max-threads=5000
             --suppressions="$top_srcdir/tests/valgrind.supp"
             ${NBDCHAIN_REPORTS:+--log-file="$NBDCHAIN_REPORTS/valgrind.%p"})
  fi
  nbdkit+=("$NBDKIT")
}

# serve_plain IMAGE [ARGUMENT...]: serve the chain by nbdkit alone; sets $uri,
# $sock and $pid.
serve_plain ()
{
  local nbdkit
  nbdkit_with_chain valgrind
  serve_by plain "${nbdkit[@]}" -f -t 16 -- "$NBDCHAIN_PLUGIN" "$@"
}

# serve_copying IMAGE [ARGUMENT...]: the same with copy-on-read, by the filter
# of this build.
serve_copying ()
{
  local nbdkit
  nbdkit_with_chain valgrind
  serve_by copying "${nbdkit[@]}" -f -t 16 \
    --filter="$NBDCHAIN_FILTERS/nbdkit-stream-filter.so" -- \
    "$NBDCHAIN_PLUGIN" "$@"
}

# serve_raw NAME FILE [ARGUMENT...]: serve a raw file, as a remote base.  With
# several threads nbdkit 1.32 aborts when a client goes away too early.
serve_raw ()
{
  local name=$1
  shift
  serve_by "$name" "$NBDKIT" -f -r -t 1 -- file "$@"
}

# serve_relayed FILE: at $remote, by a relay that does what is written to the
# file "control", as peers/flaky says.
serve_relayed ()
{
  serve_raw base "$1"
  start flaky "$peers/flaky" --calm --control control "$PWD/flaky.sock" \
    "$PWD/base.sock"
  wait_for 20 test -S flaky.sock
  # shellcheck disable=SC2034           # for the tests
  remote="nbd+unix:///?socket=$PWD/flaky.sock"
}

# serve_by NAME NBDKIT... -- PLUGIN ARGUMENT...: the socket is NAME.sock.
serve_by ()
{
  local name=$1 word words=()
  shift
  while [ "$1" != -- ]; do
    words+=("$1")
    shift
  done
  shift
  sock=$PWD/$name.sock
  uri="nbd+unix:///?socket=$sock"
  rm -f "$sock" "$name.pid"
  start "$name" "${words[@]}" -U "$sock" -P "$name.pid" "$@"
  wait_for 60 is_ready_or_gone "$name.pid" "$pid"
  [ -s "$name.pid" ] || return 1
  # It tells its process id before the plugin has its control socket.
  for word; do
    case $word in
      control=*) wait_for 60 listens_or_gone "${word#*=}" "$pid" ;;
    esac
  done
}

# listens_or_gone SOCKET PID: a control socket, and not one that was left
# behind.
listens_or_gone ()
{
  { [ -S "$1" ] && /usr/bin/python3 -c 'import socket, sys
socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1" 2>/dev/null; } ||
    is_gone "$2"
}

is_ready_or_gone ()
{
  [ -s "$1" ] || is_gone "$2"
}

# serve IMAGE [ARGUMENT...]: by "nbdchain serve"; sets $uri, $sock and $pid.
serve ()
{
  local image=$1
  shift
  sock=$PWD/serve.sock
  uri="nbd+unix:///?socket=$sock"
  rm -f "$sock"
  start serve "$NBDCHAIN" serve "$image" -U "$sock" "$@"
  wait_for 60 is_ready_or_gone serve.out "$pid"
  [ -s serve.out ]
}

# goes_behind PID: of the nbdkit of that "serve" a thread comes after others.
goes_behind ()
{
  [ "$(ps -L -o ni= -p "$(pgrep -P "$1")" | sort -un | wc -l)" -gt 1 ]
}

# make_base FILE BYTES: random bytes, none of them zero, and a few holes.
make_base ()
{
  "$harness/oracle" --seed "$seed" --make-base "$1" "$2"
}

# make_overlay IMAGE BASE [ARGUMENT...]: on a raw base, with a small journal,
# so that it wraps.
make_overlay ()
{
  local image=$1 base=$2
  shift 2
  "$NBDCHAIN" create -b "$base" -F raw --journal-size 16K "$image" "$@" \
    >/dev/null
}

# oracle SEED ARGUMENT... URI
oracle ()
{
  local seed=$1
  shift
  timeout 300 "$harness/oracle" --seed "$seed" "$@"
}

# assert_same_as FILE URI: the disk is FILE, byte for byte.
assert_same_as ()
{
  "$harness/oracle" --verify-only --base "$1" "$2"
}

# in_memory FILE: how many bytes of it the page cache has.
in_memory ()
{
  fincore --bytes --noheadings --output RES "$1" | tr -d ' '
}

# seed: what random tests depend on, to be set for another run.
seed=${NBDCHAIN_SEED:-1}
