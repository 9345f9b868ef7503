#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What the tests themselves stand on: that they end what they have started,
# and nothing else.

load common

# start_other: a process that is none of ours; sets $other.
start_other ()
{
  other=$(setsid bash -c 'sleep 100 >/dev/null 2>&1 3>&- & echo $!')
}

# runs PID: also if it waits for a disk, or is held up.
runs ()
{
  grep -qs '^State:[[:space:]]*[SRDT]' "/proc/$1/status"
}

@test "who has the number of a process that has ended is left alone" {
  start_other
  ! is_child "$other" || return 1
  ! stop "$other" || return 1
  runs "$other"
  started_pids=("$other")
  teardown
  runs "$other"
  kill "$other"
}

@test "a child is stopped, and how it ended is known also when it had ended before" {
  cp "$(command -v sleep)" $'a) R 1\n2 (b'
  for program in sleep ./$'a) R 1\n2 (b'; do
    start sleeping "$program" 100
    is_child "$pid"
    ! stop "$pid" || return 1
    ! runs "$pid" || return 1
  done
  for code in 0 7; do
    start ended bash -c "exit $code"
    wait_for 10 is_gone "$pid"
    ended=0
    stop "$pid" || ended=1
    [ "$ended" -eq $((code > 0)) ]
  done
}

@test "a process is gone when all of its threads are" {
  mkfifo go_on
  start threads /usr/bin/python3 -c 'import ctypes, threading
def stay():
    open("go_on").read()
threading.Thread(target=stay).start()
ctypes.CDLL(None).pthread_exit(None)'
  wait_for 20 grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"
  ! is_gone "$pid" || return 1
  : >go_on
  wait_for 20 is_gone "$pid"
}

@test "what a test has started is ended also when the test fails" {
  # Not "@test" at the beginning of a line, which bats looks for.
  cat >failing.bats <<END
load "$top_srcdir/tests/common"
${test:=@test} "fails" {
  start sleeping sleep 100
  echo "\$pid" >"$PWD/pid"
  false
}
END
  run timeout 60 "$BATS" --tap failing.bats
  [ "$status" -eq 1 ]
  wait_for 10 is_gone "$(cat pid)"
}
