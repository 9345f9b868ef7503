#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# A base on another server: what comes from it, and what goes on without it
# while it is away, stalls, comes back as another one, or lies.
#
# "base" is the server of the base; it is there or not as the test says.  The
# client of the disk is a program in Python, which tells by files how far it is.
# shellcheck disable=SC2016             # what is quoted is for another shell
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common

# common_setup: the setup of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"

# No wait is longer than this; most end after milliseconds.
patience=60

size=1048576

setup ()
{
  common_setup
  export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1 patience
  head -c "$size" /dev/urandom >base.raw
  remote="nbd+unix:///?socket=$PWD/base.sock"
  base_pid=
  cat >disk.py <<'END'
# What the clients of a test share: requests that are waited for with a limit,
# and files that say how far they are.
import errno, nbd, os, sys, time

PATIENCE = float(os.environ["patience"])
BASE = open("base.raw", "rb").read()
BLOCK = 4096


def connect(uri=sys.argv[1]):
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def said(name):
    """Let the test go on that waits for this file."""
    open(name, "w").close()


def until(condition, what="condition"):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain: %s" % what
        time.sleep(0.005)


def heard(name):
    until(lambda: os.path.exists(name), name)


class Request:
    def __init__(self, h, cookie, buffer=None):
        self.h, self.cookie, self.buffer = h, cookie, buffer
        self.result = None              # True, or the errno

    def done(self):
        if self.result is None:
            try:
                self.h.poll(0)
                if self.h.aio_command_completed(self.cookie):
                    self.result = True
            except nbd.Error as e:
                self.result = e.errnum
        return self.result is not None

    def failed(self):
        return self.done() and self.result is not True

    def wait(self, patience=PATIENCE):
        end = time.monotonic() + patience
        while not self.done():
            assert time.monotonic() < end, "no answer for %s s" % patience
            try:
                self.h.poll(20)
            except nbd.Error:
                pass                    # done tells

    def get(self):
        """The data that was read, or True."""
        self.wait()
        assert self.result is True, "failed: %s" % self.result
        return bytes(self.buffer.to_bytearray()) if self.buffer else True

    def error(self, patience=PATIENCE):
        self.wait(patience)
        assert self.result is not True, "did not fail"
        return self.result


def read(h, count, offset):
    buffer = nbd.Buffer(count)
    return Request(h, h.aio_pread(buffer, offset), buffer)


def write(h, data, offset, flags=0):
    return Request(h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)),
                                   offset, flags=flags))


def flush(h):
    return Request(h, h.aio_flush())


def base_is_back(h, offset):
    """Wait until the base is read again: a connection is tried every two
    seconds or so, which may be longer than a read waits."""
    def answered():
        r = read(h, 1, offset)
        r.wait()
        return r.result is True
    until(answered, "the base")


def waits(requests, h, offset, data, limit=float("inf")):
    """While the server answers twenty requests of the local DATA at OFFSET,
    none of these is answered; but from the time LIMIT on, where that has come
    on a busy machine, they may have failed."""
    for i in range(20):
        assert read(h, len(data), offset).get() == data
    for r in requests:
        assert not r.done() or \
            time.monotonic() >= limit and r.result == errno.EIO, \
            "answered: %s" % r.result
END
}

# The servers that were stopped have to be woken to be ended.
eval "$(declare -f teardown | sed '1s/^teardown/common_teardown/')"

teardown ()
{
  local status=$? pid
  for pid in "${started_pids[@]}"; do
    ! is_child "$pid" || kill -CONT "$pid" 2>/dev/null || :
  done
  common_teardown
  return "$status"
}

# base_up [FILE [FILTER-OR-PARAMETER...]]: the server of the base.
# shellcheck disable=SC2034             # serve_by sets sock
base_up ()
{
  local uri sock pid word filters=() parameters=("${1-base.raw}")
  for word in "${@:2}"; do
    case $word in
      -*) filters+=("$word") ;;
      *) parameters+=("$word") ;;
    esac
  done
  # A thread a connection: nbdkit 1.32.5 aborts when a client hangs up on
  # several.
  serve_by base "$NBDKIT" -f -r -t 1 "${filters[@]}" -- file "${parameters[@]}"
  base_pid=$pid
}

base_down ()
{
  stop_hard "$base_pid"
}

# base_freeze: it hangs, until it gets SIGCONT.  One thread takes the signal and
# tells the others; until it gets to that they go on answering.
base_freeze ()
{
  kill -STOP "$base_pid"
  wait_for 20 has_stopped "$base_pid"
}

# has_stopped PID: all of its threads.
has_stopped ()
{
  [ "$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/task"/*/status |
    sort -u)" = T ]
}

# peer SIZE MODE: one that lies, in the base's place.
peer ()
{
  rm -f base.sock
  start peer /usr/bin/python3 "$top_srcdir/tests/peers/nbd-peer.py" \
    "$PWD/base.sock" "$@"
  wait_for 20 listens "$PWD/base.sock"
  base_pid=$pid
}

# listens SOCKET
listens ()
{
  [ -n "$(ss -Hlx src "$1")" ]
}

# overlay IMAGE [ARGUMENT...]: on the remote.
overlay ()
{
  local image=$1
  shift
  "$NBDCHAIN" create -b "$remote" -F raw "$image" "$@" >/dev/null
}

# client NAME [URI]: the program on stdin, in the background; sets $client.
client ()
{
  local pid
  { echo 'from disk import *'; cat; } >"$1.py"
  rm -f "$1.err"
  start "$1" /usr/bin/python3 "$1.py" "${2-$uri}"
  client=$pid
}

# go_on NAME: wait until the client says that.
go_on ()
{
  wait_for "$patience" exists_or_gone "$1" "$client"
  [ -e "$1" ]
}

exists_or_gone ()
{
  [ -e "$1" ] || is_gone "$2"
}

# finished: the client has ended, and found all as it should be.
finished ()
{
  wait_for "$patience" is_gone "$client"
  wait "$client"
}

# run_client: in the foreground.
run_client ()
{
  client client
  finished
}

# tells NAME TEXT: that server has said so.
tells ()
{
  grep -qF -- "$2" "$1.err"
}

# base_up_tcp: on $port.
base_up_tcp ()
{
  local pid
  rm -f base.pid
  start base "$NBDKIT" -f -r -t 1 -i 127.0.0.1 -p "$port" -P base.pid file base.raw
  wait_for 20 is_ready_or_gone base.pid "$pid"
  [ -s base.pid ]
  base_pid=$pid
}

# --- a base that is there -------------------------------------------------

# A disk on a remote is read and written like any other.
exercise='
import random
rnd = random.Random(7)
h = connect()
model = bytearray(BASE)
assert h.get_size() == len(model)
assert read(h, len(model), 0).get() == model
for i in range(300):
    # Whole blocks, parts of blocks, and what lies across.
    if i % 3 == 0:
        offset = rnd.randrange(len(model) // BLOCK - 4) * BLOCK
        count = rnd.randrange(1, 4) * BLOCK
    else:
        offset = rnd.randrange(len(model) - 3 * BLOCK)
        count = rnd.randrange(1, 3 * BLOCK)
    data = rnd.randbytes(count)
    write(h, data, offset).get()
    model[offset:offset + count] = data
    offset = rnd.randrange(len(model) - 3 * BLOCK)
    assert read(h, 3 * BLOCK, offset).get() == model[offset:offset + 3 * BLOCK]
h.zero(5000, 10000)
model[10000:15000] = bytes(5000)
assert read(h, len(model), 0).get() == model
open("model", "wb").write(model)
h.shutdown()
'

@test "a base on a Unix socket: what is written is merged with it" {
  base_up
  cp base.raw base.before
  overlay a.fvd
  serve_plain a.fvd
  run_client <<<"$exercise"
  stop "$pid"
  serve_plain a.fvd
  assert_same_as model "$uri"
  stop "$pid"
  cmp base.raw base.before
  "$NBDCHAIN" check a.fvd
}

@test "a base on TCP: what is written is merged with it" {
  port=$(free_port)
  base_up_tcp
  remote=nbd://127.0.0.1:$port/
  overlay a.fvd
  serve a.fvd --allow "$remote"
  run_client <<<"$exercise"
  stop "$pid"
  serve a.fvd --allow "$remote"
  assert_same_as model "$uri"
  stop "$pid"
  "$NBDCHAIN" check a.fvd
}

@test "a base on TCP that is killed and comes back" {
  port=$(free_port)
  base_up_tcp
  remote=nbd://127.0.0.1:$port/
  overlay a.fvd
  serve_plain a.fvd "allow=$remote"
  client client <<'END'
h = connect()
assert read(h, BLOCK, 0).get() == BASE[:BLOCK]
said("connected")
heard("down")
requests = [read(h, BLOCK, i * 9 * BLOCK) for i in range(1, 9)]
write(h, b"L" * BLOCK, 0).get()
waits(requests, h, 0, b"L" * BLOCK)
said("waiting")
for i, r in enumerate(requests, 1):
    assert r.get() == BASE[i * 9 * BLOCK:(i * 9 + 1) * BLOCK]
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up_tcp
  finished
}

@test "a write of whole blocks reads nothing of the base" {
  base_up base.raw --filter=log logfile=base.log
  overlay a.fvd --block-size 64K
  serve_plain a.fvd
  run_client <<'END'
h = connect()
write(h, b"w" * 3 * 65536, 65536).get()
h.zero(65536, 4 * 65536)
assert read(h, 4 * 65536, 65536).get() == b"w" * 3 * 65536 + bytes(65536)
write(h, b"w" * 65537, len(BASE) - 65537).get()
h.flush()
END
  stop "$pid"
  # The last write covers a block and one byte of the block before.
  run grep -c ' Read .*\.\.\.' base.log
  [ "$output" -ge 1 ]
  run grep ' Read .*\.\.\.' base.log
  for line in "${lines[@]}"; do
    [[ $line == *offset=0xe* ]]
  done
}

@test "the part of the disk behind a smaller remote is zeros" {
  base_up
  overlay a.fvd $((2 * size + 5))
  serve_plain a.fvd
  run_client <<'END'
h = connect()
whole = BASE + bytes(len(BASE) + 5)
assert read(h, len(whole), 0).get() == whole
write(h, b"x" * 10, len(BASE) - 5).get()
assert read(h, 2 * BLOCK, len(BASE) - BLOCK).get() == \
    BASE[-BLOCK:-5] + b"x" * 10 + bytes(BLOCK - 5)
END
}

# --- a base that goes away and comes back ---------------------------------

@test "reads wait for a base that was killed, and are right when it is back" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
assert read(h, BLOCK, 0).get() == BASE[:BLOCK]
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
requests = [read(h, BLOCK + i, i * 70000) for i in range(1, 13)]
waits(requests, h, 0, b"L" * BLOCK)
said("waiting")
for i, r in enumerate(requests, 1):
    assert r.get() == BASE[i * 70000:i * 70000 + BLOCK + i]
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up
  finished
}

@test "the base dies several times with requests for parts of it under way" {
  base_up base.raw --filter=delay rdelay=100ms
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
model = bytearray(BASE)
for at in range(0, len(model), 3 * BLOCK):
    write(h, b"L" * BLOCK, at).get()
    model[at:at + BLOCK] = b"L" * BLOCK
for round in range(4):
    requests = [read(h, 20000, i * 70001 + round * 20000)
                for i in range(1, 13)]
    said("sent%d" % round)
    for i, r in enumerate(requests, 1):
        at = i * 70001 + round * 20000
        assert r.get() == model[at:at + 20000]
END
  local round
  for round in 0 1 2 3; do
    go_on "sent$round"
    base_down
    base_up base.raw --filter=delay rdelay=100ms
  done
  finished
}

@test "without the base, what is local goes on, and a part of a block waits" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
write(h, b"A" * BLOCK, 0).get()
said("connected")
heard("down")
# A first write of part of a block, two of them in the same block, one across
# two blocks, and a zero of a part.
partial = [write(h, b"p" * 100, 10 * BLOCK + 50),
           write(h, b"q" * 100, 10 * BLOCK + 1000),
           write(h, b"r" * 200, 21 * BLOCK - 100),
           Request(h, h.aio_zero(300, 30 * BLOCK + 7))]
# Whole blocks, and what is then local.
write(h, b"B" * 3 * BLOCK, BLOCK).get()
write(h, b"C" * 100, BLOCK + 10).get()
Request(h, h.aio_zero(BLOCK, 5 * BLOCK)).get()
Request(h, h.aio_trim(BLOCK, 0)).get()
flush(h).get()
local = b"B" * 10 + b"C" * 100 + b"B" * (3 * BLOCK - 110)
assert read(h, 3 * BLOCK, BLOCK).get() == local
assert read(h, BLOCK, 5 * BLOCK).get() == bytes(BLOCK)
# Nor does the last block, which is whole, need the base.
write(h, b"D" * BLOCK, len(BASE) - BLOCK).get()
waits(partial, h, BLOCK, local)
said("waiting")
for r in partial:
    r.get()
want = bytearray(BASE)
want[BLOCK:4 * BLOCK] = local
want[5 * BLOCK:6 * BLOCK] = bytes(BLOCK)
want[-BLOCK:] = b"D" * BLOCK
want[10 * BLOCK + 50:10 * BLOCK + 150] = b"p" * 100
want[10 * BLOCK + 1000:10 * BLOCK + 1100] = b"q" * 100
want[21 * BLOCK - 100:21 * BLOCK + 100] = b"r" * 200
want[30 * BLOCK + 7:30 * BLOCK + 307] = bytes(300)
# What was trimmed is zeros, or as it was.
first = read(h, BLOCK, 0).get()
assert first in (bytes(BLOCK), b"A" * BLOCK)
want[:BLOCK] = first
assert read(h, len(want), 0).get() == want
open("want", "wb").write(want)
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up
  finished
  stop "$pid" || :
  serve a.fvd
  assert_same_as want "$uri"
}

@test "a request that waits longer than retry= fails, and the next ones work" {
  base_up
  overlay a.fvd
  serve_plain a.fvd retry=2
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
limit = time.monotonic() + 2
r, w = read(h, BLOCK, BLOCK), write(h, b"x", 3 * BLOCK)
waits([r, w], h, 0, b"L" * BLOCK, limit)
assert r.error() == errno.EIO
assert w.error() == errno.EIO
assert read(h, BLOCK, 0).get() == b"L" * BLOCK
write(h, b"M" * BLOCK, BLOCK).get()
said("failed")
heard("up")
base_is_back(h, 9 * BLOCK)
assert read(h, 3 * BLOCK, 0).get() == \
    b"L" * BLOCK + b"M" * BLOCK + BASE[2 * BLOCK:3 * BLOCK]
assert read(h, BLOCK, 3 * BLOCK).get() == BASE[3 * BLOCK:4 * BLOCK]
write(h, b"x", 3 * BLOCK).get()
assert read(h, BLOCK, 3 * BLOCK).get() == b"x" + BASE[3 * BLOCK + 1:4 * BLOCK]
END
  go_on connected
  base_down
  touch down
  go_on failed
  base_up
  touch up
  finished
}

@test "--retry of serve is a limit as well, and the loss is reported" {
  base_up
  overlay a.fvd
  # More than a busy machine may keep the base from its work.
  serve a.fvd --retry 4
  client client <<'END'
h = connect()
assert read(h, BLOCK, 0).get() == BASE[:BLOCK]
said("connected")
heard("down")
assert read(h, BLOCK, 5 * BLOCK).error() == errno.EIO
END
  go_on connected
  base_down
  touch down
  finished
  tells serve "$remote"
}

@test "a base that stalls costs time only" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
assert read(h, BLOCK, 0).get() == BASE[:BLOCK]
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("stalled")
requests = [read(h, BLOCK, i * 10 * BLOCK) for i in range(1, 9)]
partial = write(h, b"p" * 10, 5 * BLOCK)
write(h, b"W" * BLOCK, 2 * BLOCK).get()
waits(requests + [partial], h, 0, b"L" * BLOCK)
flush(h).get()
said("waiting")
for i, r in enumerate(requests, 1):
    assert r.get() == BASE[i * 10 * BLOCK:(i * 10 + 1) * BLOCK]
partial.get()
assert read(h, BLOCK, 5 * BLOCK).get() == b"p" * 10 + \
    BASE[5 * BLOCK + 10:6 * BLOCK]
END
  go_on connected
  base_freeze
  touch stalled
  go_on waiting
  kill -CONT "$base_pid"
  finished
}

@test "a base that stalls longer than retry= is an error, not for ever" {
  base_up
  overlay a.fvd
  serve a.fvd --retry 2
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("stalled")
limit = time.monotonic() + 2
requests = [read(h, BLOCK, i * 10 * BLOCK) for i in range(1, 5)]
waits(requests, h, 0, b"L" * BLOCK, limit)
for r in requests:
    assert r.error() == errno.EIO
said("failed")
heard("awake")
base_is_back(h, 9 * BLOCK)
assert read(h, BLOCK, 10 * BLOCK).get() == BASE[10 * BLOCK:11 * BLOCK]
END
  go_on connected
  base_freeze
  touch stalled
  go_on failed
  kill -CONT "$base_pid"
  touch awake
  finished
}

# --- a base that comes back as another ------------------------------------

# comes_back_as TEXT FILE [NBDKIT-WORD...]: this is refused, with TEXT; reads
# wait until the right one is there, which is started with $right.
comes_back_as ()
{
  local text=$1
  shift
  serve a.fvd
  client client <<'END'
h = connect()
assert read(h, BLOCK, 0).get() == BASE[:BLOCK]
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
requests = [read(h, BLOCK, i * 10 * BLOCK) for i in range(1, 5)]
requests.append(write(h, b"p", 7 * BLOCK))
said("sent")
heard("refused")
waits(requests, h, 0, b"L" * BLOCK)
said("waiting")
for i, r in enumerate(requests[:4], 1):
    assert r.get() == BASE[i * 10 * BLOCK:(i * 10 + 1) * BLOCK]
requests[4].get()
assert read(h, BLOCK, 7 * BLOCK).get() == b"p" + BASE[7 * BLOCK + 1:8 * BLOCK]
END
  go_on connected
  base_down
  touch down
  go_on sent
  base_up "$@"
  wait_for 20 tells serve "$text"
  tells serve "$remote"
  touch refused
  go_on waiting
  base_down
  base_up base.raw "${right[@]}"
  finished
}

@test "a base that comes back shorter or longer is refused; the right one heals" {
  local right=()
  head -c 500000 /dev/urandom >short.raw
  head -c $((size + 4096)) /dev/urandom >long.raw
  base_up
  overlay a.fvd
  comes_back_as 500000 short.raw
  stop "$pid" || :
  rm -f connected down sent refused waiting a.fvd
  overlay a.fvd
  comes_back_as "$((size + 4096))" long.raw
}

# The filter keeps what nbdkit says of an export.
says=(--filter=exportname "exportdesc=fixed:the golden disk")

@test "a base that comes back with another description is refused" {
  local right=("${says[@]}")
  base_up base.raw "${right[@]}"
  overlay a.fvd
  run -0 "$NBDCHAIN" info --json a.fvd
  [[ $output == *'"the golden disk"'* ]]
  head -c "$size" /dev/urandom >other.raw
  comes_back_as 'the golden disk' other.raw --filter=exportname \
    'exportdesc=fixed:an upgraded disk'
}

@test "at the start, too, another size or description is refused" {
  base_up base.raw "${says[@]}"
  overlay a.fvd
  nbdkit_with_chain
  open=("${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd --run true)
  run -0 "${open[@]}"
  base_down
  base_up base.raw --filter=exportname 'exportdesc=fixed:an upgraded disk'
  run -1 "${open[@]}"
  [[ $output == *"$remote"* ]]
  [[ $output == *"the golden disk"* && $output == *"an upgraded disk"* ]]
  run -1 timeout "$patience" "$NBDCHAIN" serve a.fvd -U "$PWD/serve.sock"
  [[ $output == *"an upgraded disk"* ]]
  base_down
  head -c 500000 /dev/urandom >short.raw
  base_up short.raw "${says[@]}"
  run -1 "${open[@]}"
  [[ $output == *"$remote"*500000* ]]
  base_down
  base_up base.raw "${says[@]}"
  run -0 "${open[@]}"
}

@test "a base that does not give its description any more is refused" {
  local right=("${says[@]}")
  base_up base.raw "${right[@]}"
  overlay a.fvd
  nbdkit_with_chain
  open=("${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd)
  base_down
  base_up base.raw
  run -1 "${open[@]}" --run true
  [[ $output == *"the golden disk"*"different export"* ]]
  # What is no server of another name: it was named by the operator.
  run -0 "${open[@]}" base=base.raw --run true
  # Nor is it when it happens meanwhile, or to a server that comes after one
  # that died.
  base_down
  base_up base.raw "${right[@]}"
  comes_back_as 'the golden disk' base.raw
  "$NBDCHAIN" map a.fvd >/dev/null
}

# --- many requests --------------------------------------------------------

@test "max-waiting bounds the requests that wait; the others fail at once" {
  base_up
  overlay a.fvd
  serve_plain a.fvd max-waiting=3
  client client <<'END'
h, other = connect(), connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
requests = [read(h, BLOCK, i * 10 * BLOCK) for i in range(1, 9)]
until(lambda: sum(r.failed() for r in requests) == 5)
waiting = [(i, r) for i, r in enumerate(requests, 1) if not r.failed()]
waits([r for i, r in waiting], h, 0, b"L" * BLOCK)
assert len(waiting) == 3
assert all(r.result == errno.EIO for r in requests if r.failed())
write(h, b"W" * BLOCK, 2 * BLOCK).get()
# The limit is one of each connection.
more = [read(other, BLOCK, i * 11 * BLOCK) for i in range(1, 4)]
waits(more, other, 0, b"L" * BLOCK)
assert read(h, BLOCK, 0).get() == b"L" * BLOCK
said("waiting")
for i, r in waiting:
    assert r.get() == BASE[i * 10 * BLOCK:(i * 10 + 1) * BLOCK]
for i, r in enumerate(more, 1):
    assert r.get() == BASE[i * 11 * BLOCK:(i * 11 + 1) * BLOCK]
# And it is one of those that wait, not of all.
requests = [read(h, BLOCK, i * 7 * BLOCK) for i in range(1, 31)]
for i, r in enumerate(requests, 1):
    assert r.get() == BASE[i * 7 * BLOCK:(i * 7 + 1) * BLOCK]
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up
  finished
}

# hangs SERVE...: the base is connected and silent; one thread of 16 is left for
# local data, and those requests that hold the others end well.
hangs ()
{
  base_up
  overlay a.fvd
  "$@" a.fvd
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("frozen")
# Two thirds of them read what another one reads.
requests = [read(h, 512, i // 3 * 5 * BLOCK + 600 * (i % 3))
            for i in range(3, 43)]
until(lambda: sum(r.failed() for r in requests) == 25)
more = [read(h, BLOCK, 17 * 5 * BLOCK), write(h, b"p" * 10, 18 * 5 * BLOCK),
        read(h, BLOCK, 19 * 5 * BLOCK)]
assert [r.error() for r in more] == [errno.EIO] * 3
write(h, b"W" * BLOCK, 20 * 5 * BLOCK).get()
flush(h).get()
waits([r for r in requests if not r.failed()], h, 0, b"L" * BLOCK)
assert all(r.result == errno.EIO for r in requests if r.failed())
said("waiting")
for i, r in enumerate(requests, 3):
    if not r.failed():
        at = i // 3 * 5 * BLOCK + 600 * (i % 3)
        assert r.get() == BASE[at:at + 512]
END
  go_on connected
  base_freeze
  touch frozen
  go_on waiting
  kill -CONT "$base_pid"
  finished
}

@test "a base that hangs leaves a thread for local data" {
  hangs serve_plain
}

@test "a base that hangs leaves one beside copy-on-read, too" {
  hangs serve_copying
}

@test "by default one thread of nbdkit's 16 is left for local data" {
  base_up
  overlay a.fvd
  serve_plain a.fvd
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
requests = [read(h, BLOCK, i * 5 * BLOCK) for i in range(1, 41)]
until(lambda: sum(r.failed() for r in requests) == 25)
waits([r for r in requests if not r.failed()], h, 0, b"L" * BLOCK)
assert all(r.result == errno.EIO for r in requests if r.failed())
said("waiting")
for i, r in enumerate(requests, 1):
    if not r.failed():
        assert r.get() == BASE[i * 5 * BLOCK:(i * 5 + 1) * BLOCK]
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up
  finished
}

@test "serve has threads for all that the kernel can have under way" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
requests = [read(h, BLOCK, (1 + i) * BLOCK) for i in range(127)]
waits(requests, h, 0, b"L" * BLOCK)
write(h, b"W" * BLOCK, 200 * BLOCK).get()
said("waiting")
for i, r in enumerate(requests, 1):
    assert r.get() == BASE[i * BLOCK:(i + 1) * BLOCK]
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up
  finished
}

# connections: of the base, that read something.
connections ()
{
  sed -n 's/.*connection=\([0-9]*\) Read .*\.\.\./\1/p' base.log | sort -u | wc -l
}

read_in_parallel='
h = connect()
requests = [read(h, BLOCK, i * BLOCK) for i in range(64)]
for i, r in enumerate(requests):
    assert r.get() == BASE[i * BLOCK:(i + 1) * BLOCK]
'

@test "a connection more than processors, four at most, if the base allows several" {
  local n
  n=$(getconf _NPROCESSORS_ONLN)
  n=$((n < 3 ? n + 1 : 4))
  base_up base.raw --filter=log --filter=delay logfile=base.log rdelay=10ms
  overlay a.fvd
  serve a.fvd
  # One that is not made yet gets nothing to do.
  wait_for 20 reads_over "$n"
  reads_over "$n"
}

# reads_over N: so many connections have been used, after more reads.
reads_over ()
{
  run_client <<<"$read_in_parallel" && [ "$(connections)" -eq "$1" ]
}

@test "one connection to a base that does not allow several" {
  serve_by base "$NBDKIT" -f -r -t 1 --filter=log -- eval logfile=base.log \
    get_size="echo $size" pread='dd if=base.raw skip=$4 count=$3 \
      iflag=skip_bytes,count_bytes,fullblock status=none'
  base_pid=$pid
  overlay a.fvd
  serve a.fvd
  run_client <<<"$read_in_parallel"
  run -0 connections
  [ "$output" -eq 1 ]
}

# --- create, and the end --------------------------------------------------

@test "create on a remote that cannot be reached says so" {
  local ref
  # Nobody listens on the second.
  /usr/bin/python3 -c 'import socket
socket.socket(socket.AF_UNIX).bind("dead.sock")'
  port=$(free_port)
  for ref in "nbd+unix:///?socket=$PWD/nothing.sock" \
             "nbd+unix:///?socket=$PWD/dead.sock" "nbd://127.0.0.1:$port/x" \
             nbd://host.invalid/x; do
    run -1 timeout "$patience" "$NBDCHAIN" create -b "$ref" -F raw a.fvd
    [[ $output == "nbdchain: $ref: "* ]]
    [ "${#lines[@]}" -eq 1 ]
    [ ! -e a.fvd ]
  done
}

@test "an image whose remote is away cannot be opened, which is said at once" {
  base_up
  overlay a.fvd
  base_down
  nbdkit_with_chain
  run -1 timeout "$patience" "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd --run true
  [[ $output == *"$remote"* ]]
  run -1 timeout "$patience" "$NBDCHAIN" serve a.fvd -U "$PWD/serve.sock"
  [[ $output == *"$remote"* ]]
  base_up
  serve a.fvd
  assert_same_as base.raw "$uri"
}

# ends_without_base base_down|base_freeze: serve ends with requests that wait.
ends_without_base ()
{
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
write(h, b"W" * BLOCK, 2 * BLOCK).get()
requests = [read(h, BLOCK, i * 10 * BLOCK) for i in range(1, 5)]
requests.append(write(h, b"p", 7 * BLOCK))
waits(requests, h, 2 * BLOCK, b"W" * BLOCK)
write(h, b"X" * BLOCK, 3 * BLOCK).get()
said("waiting")
# An error, or the connection is lost; not an answer that is none.
for r in requests:
    r.error()
END
  go_on connected
  "$1"
  touch down
  go_on waiting
  kill "$pid"
  wait_for 5 is_gone "$pid"
  wait "$pid"
  finished
  run -0 "$NBDCHAIN" check a.fvd
  if [ "$1" = base_down ]; then
    base_up
  else
    kill -CONT "$base_pid"
  fi
  cp base.raw want
  printf 'L%.0s' {1..4096} | dd of=want bs=4096 conv=notrunc status=none
  printf 'W%.0s' {1..4096} | dd of=want bs=4096 seek=2 conv=notrunc status=none
  printf 'X%.0s' {1..4096} | dd of=want bs=4096 seek=3 conv=notrunc status=none
  serve a.fvd
  assert_same_as want "$uri"
}

@test "serve ends in time while requests wait for a base that died" {
  ends_without_base base_down
}

@test "serve ends in time while requests wait for a base that stalls" {
  ends_without_base base_freeze
}

# The client of a disk of which nbdkit and the base are killed at once.
killed='
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("killed")
def back():
    global h
    try:
        h = connect()
        return True
    except nbd.Error:
        return False
until(back, "the server")
'

# kill_both: the base, and the nbdkit of serve.
kill_both ()
{
  base_down
  pkill -KILL -P "$pid" nbdkit
  touch killed
}

@test "nbdkit dies while the base is away: local data stays served" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<<"$killed"'
assert read(h, BLOCK, 0).get() == b"L" * BLOCK
write(h, b"W" * BLOCK, BLOCK).get()
r = read(h, BLOCK, 2 * BLOCK)
waits([r], h, 0, b"L" * BLOCK)
said("waiting")
assert r.get() == BASE[2 * BLOCK:3 * BLOCK]
'
  go_on connected
  kill_both
  go_on waiting
  base_up
  finished
}

@test "nbdkit dies while the base is away: all is well when it is back" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<<"$killed"'
assert read(h, len(BASE), 0).get() == b"L" * BLOCK + BASE[BLOCK:]
'
  go_on connected
  kill_both
  wait_for 20 tells serve 'starting it again'
  base_up
  finished
}

@test "nbdkit dies while the base is away: serve ends in time" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
END
  go_on connected
  kill_both
  wait_for 20 tells serve 'starting it again'
  kill "$pid"
  wait_for 5 is_gone "$pid"
  wait "$pid"
  base_up
  serve a.fvd
  client client <<'END'
assert read(connect(), BLOCK, 0).get() == b"L" * BLOCK
END
  finished
}

@test "a client that hangs up does not leave its waiting requests behind" {
  base_up
  overlay a.fvd
  serve a.fvd
  client client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
said("connected")
heard("down")
for i in range(5):
    c = connect()
    requests = [read(c, BLOCK, j * 10 * BLOCK) for j in range(1, 21)]
    waits(requests, c, 0, b"L" * BLOCK)
    del requests, c
said("waiting")
heard("up")
# The server may have died of that, and serve has started it again.
for i in range(100):
    try:
        h = connect()
        r = read(h, len(BASE), 0)
        r.wait()
        if r.result is True:
            break
    except nbd.Error:
        time.sleep(0.05)
assert r.get() == b"L" * BLOCK + BASE[BLOCK:]
END
  go_on connected
  base_down
  touch down
  go_on waiting
  base_up
  touch up
  finished
}

# --- a base that lies -----------------------------------------------------

# What an export of that size and these bytes may be answered with.
lies='
def received(request):
    data = request.get()
    # The half that was promised and never came is zeros.
    return data.replace(b"\0", b"\x55") if MODE == "twice" else data


h = connect()
local = b"L" * BLOCK
write(h, local, 0).get()
for offset, count in (BLOCK, 1), (BLOCK, BLOCK), (5000, 100000), (0, 65536):
    r = read(h, count, offset)
    r.wait()
    if r.result is True:
        want = local + b"\x55" * (1 << 20)
        assert received(r) == want[offset:offset + count], (offset, count)
    else:
        assert r.result in (errno.EIO, errno.ESHUTDOWN), r.result
        assert MODE not in ("honest", "scattered")
w = write(h, b"p" * 10, 100 * BLOCK + 7)
w.wait()
if w.result is True:
    got = read(h, BLOCK, 100 * BLOCK)
    got.wait()
    if got.result is True:
        assert received(got) == b"\x55" * 7 + b"p" * 10 + b"\x55" * (BLOCK - 17)
try:
    h2 = nbd.NBD()
    h2.add_meta_context("base:allocation")
    h2.connect_uri(sys.argv[1])
    seen = []
    r = Request(h2, h2.aio_block_status(1 << 20, 0,
                                        lambda c, o, e, err: seen.append(e) and 0))
    r.wait()
except nbd.Error:
    pass
assert read(h, BLOCK, 0).get() == local
write(h, b"M" * BLOCK, BLOCK).get()
assert read(h, BLOCK, BLOCK).get() == b"M" * BLOCK
flush(h).get()
'

# lie MODE: by that peer, in a directory of its own.
lie ()
{
  local mode=$1 retry=1 uri pid
  # These answer rightly, if at a busy moment not at once.
  case $mode in
    honest | scattered) retry=60 ;;
  esac
  mkdir "$mode"
  cd "$mode" || return 1
  cp ../disk.py ../a.fvd .
  ln -s ../base.raw base.raw
  peer "$size" "$mode"
  serve a.fvd --retry "$retry" --allow "$PWD" --base "nbd+unix:///?socket=$PWD/base.sock" ||
    { # It may be refused in so many words.
      grep -q '^nbd' serve.err
      return
    }
  { echo "from disk import *"; echo "MODE = '$mode'"; cat <<<"$lies"; } >lies.py
  timeout $((3 * patience)) /usr/bin/python3 lies.py "$uri"
  kill "$pid"
  wait_for 10 is_gone "$pid"
  wait "$pid"
  "$NBDCHAIN" check a.fvd
}

# lie_all MODE...: at the same time, for most of it is waiting.
lie_all ()
{
  local mode pids=() failed=0
  truncate -s "$size" zeros.raw
  base_up zeros.raw
  overlay a.fvd
  base_down
  for mode; do
    (
      started_pids=()
      trap 'for p in "${started_pids[@]}"; do
              ! is_child "$p" || kill "$p" 2>/dev/null || :
              wait "$p" || :
            done' EXIT
      set -e
      PYTHONPATH=$PWD/$mode
      lie "$mode"
    ) >"$mode.err" 2>&1 3>&- &
    pids+=("$mode:$!")
  done
  for pid in "${pids[@]}"; do
    if wait "${pid#*:}"; then
      rm "${pid%:*}.err"
    else
      echo "failed: ${pid%:*}"
      sed 's/^/  serve: /' "${pid%:*}/serve.err" || :
      failed=1
    fi
  done
  [ "$failed" -eq 0 ]
}

@test "a base that answers reads wrongly gives errors, not wrong data" {
  lie_all honest scattered eio eshutdown short twice outside
}

@test "a base whose replies make no sense gives errors, not wrong data" {
  lie_all eio-some cookie unasked magic simple none unknown chunk-long \
    hole-outside hole-long error-long error-lie error-zero error-offset \
    read-status
}

@test "a base with a handshake that makes no sense is refused, or served" {
  lie_all minimum-huge maximum-small option-other option-long option-flood \
    info-short meta-many
}

@test "a base that answers a byte at a time is given up" {
  lie_all drip drip-reply
}

@test "a base that hangs up after each byte of the handshake" {
  local n=0
  peer "$size" cut-handshake
  # It says more each time, until that is enough.
  until "$NBDCHAIN" create -b "$remote" -F raw a.fvd >out 2>&1; do
    grep -q "^nbdchain: $remote: " out
    [ "$(wc -l <out)" -eq 1 ]
    [ ! -e a.fvd ]
    n=$((n + 1))
    [ "$n" -lt 1000 ]
  done
  [ "$n" -gt 100 ]
}

@test "a base that hangs up after each byte of a reply costs time only" {
  peer "$size" cut-reply
  overlay a.fvd
  serve a.fvd
  run_client <<'END'
h = connect()
for i in range(60):
    assert read(h, 512, i * BLOCK).get() == b"\x55" * 512
END
}

@test "a base that says nothing, or nonsense, or hangs up, gives errors" {
  lie_all silent garbage drop minimum-odd
}

@test "a base that takes requests and never answers them is given up" {
  peer "$size" mute
  overlay a.fvd
  serve a.fvd --retry 3
  run_client <<'END'
h = connect()
write(h, b"L" * BLOCK, 0).get()
for i in range(1, 3):
    assert read(h, BLOCK, i * BLOCK).error() == errno.EIO
    assert read(h, BLOCK, 0).get() == b"L" * BLOCK
END
}

@test "a base with wrong extents gives the right data, or errors" {
  lie_all status-zero status-long status-tiny status-none status-error \
    status-twice status-read status-context status-flags status-odd
}

@test "a remote with an absurd size is refused, or served as it is" {
  local n
  for n in 0 1 1099511627776 4611686018427387904 4611686018427387905 \
           9223372036854775807 9223372036854775808 18446744073709551615; do
    echo "size $n"
    peer "$n" honest
    run timeout "$patience" "$NBDCHAIN" create -b "$remote" -F raw a.fvd
    if [ "$status" -eq 0 ]; then
      # The most that the format has, and some file systems; to go through a
      # bitmap of that takes minutes.
      if [ "$n" = 4611686018427387904 ]; then
        rm a.fvd
        continue
      fi
      [ "${#n}" -lt 19 ]
      run -0 timeout "$patience" "$NBDCHAIN" map --json a.fvd
      [[ $output == *"\"size\": $n"* ]]
      serve a.fvd
      [ "$(nbdinfo --size "$uri")" = "$n" ]
      stop "$pid" || :
      rm a.fvd
    else
      [ "$status" -eq 1 ]
      [[ $output == nbdchain:* ]]
      [ ! -e a.fvd ]
    fi
    case $n in
      9223372036854775808 | 18446744073709551615)
        [[ $output == *"larger than 9223372036854775807 bytes"* ]] ;;
    esac
    kill "$base_pid"
    wait "$base_pid" || :
  done
}

@test "create on a remote that talks nonsense is an error" {
  peer "$size" garbage
  run -1 timeout "$patience" "$NBDCHAIN" create -b "$remote" -F raw a.fvd
  [[ $output == "nbdchain: $remote: "* ]]
  [ ! -e a.fvd ]
  kill "$base_pid"
  wait "$base_pid" || :
  peer "$size" silent
  run -1 timeout "$patience" "$NBDCHAIN" create -b "$remote" -F raw a.fvd
  [[ $output == "nbdchain: $remote: "* ]]
  [ ! -e a.fvd ]
}

@test "of a host with two addresses the one that answers is used" {
  local port
  need_mount
  port=$(free_port)
  head -c 1M /dev/urandom >base.raw
  printf '127.0.0.1 two.test\n127.0.0.2 two.test\n' >hosts
  start base "$NBDKIT" -f -r -t 1 -i 127.0.0.2 -p "$port" -P base.pid \
    file base.raw
  wait_for 60 test -s base.pid
  # Where the queue of those that connect is full a SYN gets no answer.
  start hole /usr/bin/python3 -c '
import socket, sys, time
at = ("127.0.0.1", int(sys.argv[1]))
hole = socket.socket()
hole.bind(at)
hole.listen(0)
full = []
for _ in range(8):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(at)
    full.append(s)
print("full", flush=True)
time.sleep(600)' "$port"
  wait_for 60 test -s hole.out
  unshare -m sh -c 'mount --bind hosts /etc/hosts && exec "$@"' sh \
    "$NBDCHAIN" create -b "nbd://two.test:$port/" -F raw top.fvd
}
