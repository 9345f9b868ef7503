#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# "nbdchain serve" under systemd: its units, sockets that it inherits, what it
# tells systemd, and how its messages look in the journal.  No systemd has to
# run: its own tools stand in for it.

load common

# activate NAME ARGUMENT...: in place of systemd: listen as the options before
# "--" say, and start serve with the rest when a client comes; sets $pid.
activate ()
{
  local name=$1 words=()
  shift
  while [ "$1" != -- ]; do
    words+=("$1")
    shift
  done
  shift
  start "$name" systemd-socket-activate "${words[@]}" "$NBDCHAIN" serve "$@"
  wait_for 20 listens_or_gone "$name"
  grep -q '^Listening on' "$name.err"
}

# listens_or_gone NAME: what activate has started, in $pid.
listens_or_gone ()
{
  grep -q '^Listening on' "$1.err" || is_gone "$pid"
}

# refused_socket NAME ARGUMENT...: serve does not want the socket, and ends
# with code 1 or 2 and the message $expected.
refused_socket ()
{
  local name=$1 code=0
  activate "$@"
  python3 - "${client[@]}" <<'END_CLIENT'
import socket, sys
kind, path = sys.argv[1:]
if path[0] == "@":
    path = "\0" + path[1:]
s = socket.socket(socket.AF_UNIX, getattr(socket, kind))
s.connect(path)
# To connect is enough to be noticed, if there are connections; the server may
# be gone again by now.
if kind == "SOCK_DGRAM":
    s.send(b"x")
END_CLIENT
  wait_for 20 is_gone "$pid"
  wait "$pid" || code=$?
  [[ $code = 1 || $code = 2 ]]
  grep -q -- "$expected" "$name.err"
}

notices='
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(os.environ["NOTIFY_SOCKET"])
while True:
    print(s.recv(4096).decode(), flush=True)'

# receive_notices: in place of systemd, write what it is told to notices.out.
receive_notices ()
{
  export NOTIFY_SOCKET=$PWD/notify
  start notices python3 -c "$notices"
  wait_for 20 test -S notify
}

is_told ()
{
  [ "$(grep -cx -- "$2" notices.out)" -ge "$1" ]
}

# units: the units as installed, but with the program of this build, in u/.
units ()
{
  local unit
  mkdir u
  for unit in "$top_builddir"/systemd/nbdchain@.{service,socket}; do
    sed "s|^ExecStart=[^ ]*|ExecStart=$NBDCHAIN|" "$unit" >"u/${unit##*/}"
  done
}

@test "systemd finds nothing wrong with the units" {
  units
  run -0 systemd-analyze verify --man=no u/nbdchain@vm.service \
    u/nbdchain@vm.socket
  [ -z "$output" ]
  # That is, it would tell.
  echo 'Nonsense=1' >>u/nbdchain@.service
  run systemd-analyze verify --man=no u/nbdchain@vm.service
  [[ $output == *Nonsense* ]]
}

@test "the units go where configure was told, with the installed names" {
  make -s -C "$top_builddir/systemd" install DESTDIR="$PWD/root" \
    systemdsystemunitdir=/units sysconfdir=/conf >/dev/null
  [ -d root/conf/nbdchain ]
  service=root/units/nbdchain@.service
  [ -f root/units/nbdchain@.socket ]
  grep -q '^ExecStart=/.*/bin/nbdchain serve ' "$service"
  run ! grep -rE '@[a-z]+@[^.]' root/units
}

@test "the system calls of a server are those that the unit permits" {
  ! slow || skip "strace and sanitizers exclude each other"
  expand () {
    local name
    systemd-analyze syscall-filter "$1" | sed -n '2,$s/^ *\([^# ]\)/\1/p' |
    while read -r name; do
      case $name in
        @*) expand "$name" ;;
        *) echo "$name" ;;
      esac
    done
  }
  filter=$(sed -n 's/^SystemCallFilter=//p' \
             "$top_builddir/systemd/nbdchain@.service")
  expand "$filter" | sort -u >permitted
  grep -qx pread64 permitted
  run ! grep -qx mount permitted

  truncate -s 8M base.img
  "$NBDCHAIN" create -b base.img -F raw top.fvd >/dev/null
  # Its own end by a signal is strace's, too.
  start serve strace -f -qq -o trace "$NBDCHAIN" serve top.fvd -U "$PWD/sock" \
    --detect-zeroes unmap
  wait_for 60 is_ready_or_gone serve.out "$pid"
  nbdsh -u "nbd+unix:///?socket=$PWD/sock" \
    -c 'h.pwrite(b"x" * 65536, 1000)' -c 'h.zero(100000, 500)' \
    -c 'h.trim(4096, 4096)' -c 'h.cache(65536, 1 << 20)' -c 'h.flush()' \
    -c 'h.pread(1 << 20, 0)'
  kill "$(pgrep -P "$pid" | head -n 1)"
  wait_for 20 is_gone "$pid"
  sed -nE 's/^[0-9]+ +([a-z0-9_]+)\(.*/\1/p' trace | sort -u >used
  grep -qx fdatasync used
  run -0 comm -13 permitted used
  [ -z "$output" ]
}

@test "an inherited Unix socket is used, and stays there at the end" {
  "$NBDCHAIN" create top.fvd 64M >/dev/null
  activate serve -l "$PWD/sock" -- top.fvd
  uri="nbd+unix:///?socket=$PWD/sock"
  # It is started by this client, who is served by it.
  [ "$(nbdinfo --size "$uri")" -eq $((64 << 20)) ]
  wait_for 20 test -s serve.out
  [ "$(cat serve.out)" = "$uri" ]
  nbdkit_pid=$(pgrep -P "$pid")
  run ! grep -zq '^LISTEN_FDNAMES=\|^NOTIFY_SOCKET=' "/proc/$nbdkit_pid/environ"
  # Another nbdkit takes clients on the same socket.
  kill -KILL "$nbdkit_pid"
  [ "$(nbdinfo --size "$uri")" -eq $((64 << 20)) ]
  stop "$pid"
  [ -S sock ]
}

@test "an inherited TCP socket is used" {
  "$NBDCHAIN" create top.fvd 64M >/dev/null
  for _ in {1..20}; do
    port=$((20000 + RANDOM % 10000))
    activate serve -l "127.0.0.1:$port" -- top.fvd || continue
    break
  done
  [ "$(nbdinfo --size "nbd://127.0.0.1:$port/")" -eq $((64 << 20)) ]
  wait_for 20 test -s serve.out
  [ "$(cat serve.out)" = "nbd://127.0.0.1:$port/" ]
  stop "$pid"
}

@test "a socket of another kind, or more than one, is refused" {
  "$NBDCHAIN" create top.fvd 64M >/dev/null
  client=(SOCK_STREAM "$PWD/two")
  expected="2 sockets were inherited"
  refused_socket many -l "$PWD/one" -l "$PWD/two" -- top.fvd
  client=(SOCK_STREAM "$PWD/option")
  expected="one was inherited"
  refused_socket option -l "$PWD/option" -- top.fvd -U other
  [ ! -e other ]
  client=(SOCK_STREAM "$PWD/tcp")
  refused_socket tcp -l "$PWD/tcp" -- top.fvd -p 0
  client=(SOCK_DGRAM "$PWD/datagram")
  expected="not a stream socket that listens"
  refused_socket datagram -d -l "$PWD/datagram" -- top.fvd
  client=(SOCK_STREAM "@nbdchain-test-$$")
  expected="no path that clients could be told"
  refused_socket abstract -l "@nbdchain-test-$$" -- top.fvd
}

@test "a socket that was inherited by somebody else is left alone" {
  "$NBDCHAIN" create top.fvd 64M >/dev/null
  export LISTEN_PID=1 LISTEN_FDS=2
  serve top.fvd
  [ "$(nbdinfo --size "$uri")" -eq $((64 << 20)) ]
  stop "$pid"
}

@test "systemd is told of start, restart and stop" {
  "$NBDCHAIN" create top.fvd 64M >/dev/null
  receive_notices
  serve top.fvd
  wait_for 20 is_told 1 READY=1
  wait_for 20 is_told 1 "STATUS=serving $uri"
  kill -KILL "$(pgrep -P "$pid")"
  wait_for 20 is_told 1 "STATUS=nbdkit was killed by SIGKILL: starting it again"
  wait_for 20 is_told 2 "STATUS=serving $uri"
  stop "$pid"
  wait_for 20 is_told 1 STOPPING=1
  # A start is told only once.
  [ "$(grep -cx READY=1 notices.out)" -eq 1 ]
}

@test "a server that cannot start does not say that it is ready" {
  receive_notices
  run -1 "$NBDCHAIN" serve missing.fvd -U "$PWD/sock"
  [ ! -s notices.out ]
}

@test "in the journal, messages have priorities; elsewhere they have none" {
  run -1 --separate-stderr env JOURNAL_STREAM=1:2 "$NBDCHAIN" info missing.fvd
  # shellcheck disable=SC2154 # run sets it
  [[ $stderr == "nbdchain: "* ]]

  : >journal
  JOURNAL_STREAM=$(stat -c %d:%i journal)
  export JOURNAL_STREAM
  "$NBDCHAIN" info missing.fvd 2>>journal || :
  grep -q '^<3>nbdchain: .*missing.fvd' journal

  "$NBDCHAIN" create top.fvd 64M >/dev/null
  "$NBDCHAIN" serve top.fvd -U "$PWD/sock" >>journal 2>>journal </dev/null 3>&- &
  pid=$!
  started_pids+=("$pid")
  wait_for 20 grep -q '^<6>nbd+unix:' journal
  kill -KILL "$(pgrep -P "$pid")"
  wait_for 20 grep -q '^<3>nbdchain: nbdkit .*SIGKILL' journal
  stop "$pid"
}
