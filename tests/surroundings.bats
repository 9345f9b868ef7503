#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What a process inherits: descriptors that are closed, standard error that
# nobody reads, a limit of file sizes, processes of others.
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common

disk ()
{
  truncate -s 8M base.raw
  "$NBDCHAIN" create -b base.raw -F raw top.fvd >/dev/null
}

io ()
{
  nbdsh -u "$uri" "$@"
}

# serve_with REDIRECTION...: serve top.fvd on serve.sock like that; sets $pid.
serve_with ()
{
  sock=$PWD/serve.sock uri="nbd+unix:///?socket=$PWD/serve.sock"
  start serve bash -c "exec $1" serve "$NBDCHAIN" serve top.fvd -U "$sock" \
    "${@:2}"
  wait_for 60 test -S "$sock"
}

another_serves ()
{
  pgrep -P "$pid" >now && ! cmp -s now before
}

@test "with descriptors 0 to 2 closed no command writes to an image" {
  local how
  disk
  cp top.fvd before.fvd
  for how in '2>&-' '>&-' '<&- >&- 2>&-'; do
    run bash -c "exec \"\$0\" \"\$@\" $how" "$NBDCHAIN" resize top.fvd 1K
    [ "$status" -eq 1 ]
    cmp top.fvd before.fvd
    run bash -c "exec \"\$0\" \"\$@\" $how" "$NBDCHAIN" rebase -b none top.fvd
    [ "$status" -ne 0 ]
    cmp top.fvd before.fvd
    bash -c "exec \"\$0\" \"\$@\" $how" "$NBDCHAIN" stream --progress top.fvd
    run -0 "$NBDCHAIN" check top.fvd
    cp before.fvd top.fvd
  done
}

@test "with descriptors 0 to 2 closed serve serves, and starts nbdkit again" {
  disk
  serve_with '"$@" <&- >&- 2>&-'
  io -c 'h.pwrite(b"x" * 4096, 0)'
  pgrep -P "$pid" >before
  kill -KILL "$(cat before)"
  wait_for 60 another_serves
  io -c 'assert h.pread(4096, 0) == b"x" * 4096'
  stop "$pid"
  "$NBDCHAIN" check top.fvd
}

@test "with standard error closed a command as a base works" {
  head -c 8M /dev/urandom >other.raw
  "$NBDCHAIN" create -b other.raw -F raw top.fvd >/dev/null
  serve_with '"$@" 2>&-' \
    --base "[ $NBDKIT -r -t 1 file $PWD/other.raw ]"
  assert_same_as other.raw "$uri"
  stop "$pid"
}

@test "standard error that nobody reads holds up nothing" {
  disk
  mkfifo log
  exec 7<>log
  # Full from the beginning.
  /usr/bin/python3 -c '
import os
fd = os.open("log", os.O_WRONLY | os.O_NONBLOCK)
try:
    while True:
        os.write(fd, b"x" * 4096)
except BlockingIOError:
    pass'
  serve_with '"$@" 2>log'
  run io -c 'h.set_strict_mode(0)' -c '
for i in range(2000):
    try:
        h.pread(512, 1 << 40)
    except nbd.Error:
        pass'
  [ "$status" -eq 0 ]
  pgrep -P "$pid" >before
  kill -KILL "$(cat before)"
  wait_for 60 another_serves
  io -c 'h.pwrite(b"x" * 4096, 0)'
  kill "$pid"
  wait_for 10 is_gone "$pid"
  exec 7<&-
  "$NBDCHAIN" check top.fvd
}

@test "what is missing of the messages is told where they can be read again" {
  disk
  mkfifo log
  exec 7<>log
  /usr/bin/python3 -c '
import os
fd = os.open("log", os.O_WRONLY | os.O_NONBLOCK)
try:
    while True:
        os.write(fd, b"x" * 4096)
except BlockingIOError:
    pass'
  serve_with '"$@" 2>log'
  pgrep -P "$pid" >before
  kill -KILL "$(cat before)"
  wait_for 60 another_serves
  cat log >read.txt 7<&- 3>&- &
  started_pids+=("$!")
  exec 7<&-
  wait_for 10 test -s read.txt
  pgrep -P "$pid" >before
  kill -KILL "$(cat before)"
  wait_for 60 another_serves
  wait_for 10 grep -q 'messages are missing here' read.txt
  stop "$pid"
}

@test "a client cannot fill the log" {
  disk
  serve top.fvd
  io -c 'h.set_strict_mode(0)' -c '
for i in range(500):
    for request in (lambda: h.pread(512, i << 40), lambda: h.trim(0, 0)):
        try:
            request()
        except nbd.Error:
            pass'
  /usr/bin/python3 -c '
import os, socket
for i in range(1000):
    s = socket.socket(socket.AF_UNIX)
    s.connect("serve.sock")
    s.sendall(os.urandom(64))
    s.close()'
  stop "$pid"
  [ "$(wc -l <serve.err)" -lt 500 ]
  grep 'messages like this one were suppressed' serve.err
}

@test "beyond the limit of file sizes a write fails, and nothing else" {
  local nbdkit
  disk
  serve_with '"$@"'
  stop "$pid"
  start serve bash -c 'ulimit -f 8192; exec "$@"' serve \
    "$NBDCHAIN" serve top.fvd -U "$sock"
  wait_for 60 test -s serve.out
  nbdkit=$(pgrep -P "$pid")
  io -c '
import errno
h.pwrite(b"x" * 65536, 0)
try:
    h.pwrite(b"x" * 65536, 7 << 20)
except nbd.Error as e:
    assert e.errnum in (errno.ENOSPC, errno.EFBIG), e
else:
    raise AssertionError("written")
assert h.pread(65536, 0) == b"x" * 65536'
  [ "$(pgrep -P "$pid")" = "$nbdkit" ]
  stop "$pid"
  "$NBDCHAIN" check top.fvd
  run bash -c 'ulimit -f 64; exec "$@"' - "$NBDCHAIN" stream top.fvd
  [ "$status" -le 1 ]
}

@test "names of 255 bytes are those of images, and what goes with them is cut" {
  local name other
  name=$(printf '%0251d' 0).fvd other=$(printf '%0250d' 0)1.fvd
  head -c 1M /dev/urandom >base.raw
  "$NBDCHAIN" create -b base.raw -F raw "$name" >/dev/null
  "$NBDCHAIN" create -b base.raw -F raw "$other" >/dev/null
  start serve "$NBDCHAIN" serve "$name" -U "$PWD/serve.sock" --control qmp
  wait_for 60 test -s serve.out
  "$NBDCHAIN" stream --speed 10K qmp
  is_recorded () { compgen -G '*.jobs' >record; }
  wait_for 20 is_recorded
  [ "$(wc -c <record)" -eq 256 ]
  stop "$pid"
  # It is not the record of another one whose name begins so.
  start serve "$NBDCHAIN" serve "$other" -U "$PWD/serve.sock" --control qmp
  wait_for 60 test -s serve.out
  "$NBDCHAIN" jobs qmp | grep -q 'No jobs'
  stop "$pid"
  start serve "$NBDCHAIN" serve "$name" -U "$PWD/serve.sock" --control qmp
  wait_for 60 test -s serve.out
  "$NBDCHAIN" jobs qmp | grep -q stream
  stop "$pid"
}

@test "serve reaps processes that it has inherited" {
  disk
  # The child of a child that ends is that of the next subreaper.
  start serve /usr/bin/python3 -c '
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
    if os.fork() == 0:
        os.close(1)
        while not os.path.exists("end"):
            pass
    os._exit(0)
os.wait()
os.execv(sys.argv[1], sys.argv[1:])' "$NBDCHAIN" serve top.fvd
  wait_for 60 test -s serve.out
  [ "$(pgrep -cP "$pid")" -eq 2 ]
  touch end
  has_one_child () { [ "$(pgrep -cP "$pid")" -eq 1 ]; }
  wait_for 10 has_one_child
  stop "$pid"
}
