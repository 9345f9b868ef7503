#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Copy-on-read: what clients read of the layers below is stored, and read from
# there once.  How that goes together with writes is in oracle.bats.
#
#   NBDCHAIN_SEED  what random operations depend on (default 1)
#   NBDCHAIN_OPS   how many (default 600)
#
# The base is served by an nbdkit that answers late and writes down what it was
# asked for.
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common
load qmp

size=8388613
M=1048576
ops=${NBDCHAIN_OPS:-600}
if [ -z "${NBDCHAIN_OPS-}" ] && slow; then
  ops=200
fi

# slow_base DELAY: base.raw behind the server "base"; sets $remote and
# $base_pid.  With several threads nbdkit 1.32 aborts when a client goes away
# too early, so it is to be started again after that.
slow_base ()
{
  [ -s base.raw ] || make_base base.raw "$size"
  serve_by base "$NBDKIT" -f -r -t 8 --filter=log --filter=delay -- \
    file base.raw "rdelay=$1" logfile=base.log
  remote=$uri
  base_pid=$pid
}

# lose_base: the server of the base is gone, if it is not so by then.
lose_base ()
{
  ! is_child "$base_pid" || stop_hard "$base_pid"
}

# copying IMAGE [PARAMETER...]: serve it with copy-on-read.
copying ()
{
  serve_copying "$@" allow="$remote"
}

# client PROGRAM [ARGUMENT...]: Python with DISK connected to the server and
# BASE, the bytes of the base.
client ()
{
  local program=$1
  shift
  timeout 300 /usr/bin/python3 -c "
import nbd, sys
URI = '$uri'
DISK = nbd.NBD()
DISK.connect_uri(URI)
BASE = open('base.raw', 'rb').read()
args = [int(i) for i in sys.argv[1:]]
def check(count, offset, disk=DISK):
    assert disk.pread(count, offset) == BASE[offset:offset+count], offset
$program" "$@"
}

# asked: what the base was asked for, a line OFFSET COUNT each, in order of
# offsets.
asked ()
{
  sed -nE 's/.* Read id=.* offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+) .*/\1 \2/p' \
    base.log | while read -r offset count; do
    echo "$((offset)) $((count))"
  done | sort -n
}

# asked_bytes: how many these are.
asked_bytes ()
{
  asked | awk '{ n += $2 } END { print n + 0 }'
}

# many: for client, reads of one block on several connections.
many='
more = [nbd.NBD() for i in range(3)]
reads = []
for h in more:
  h.connect_uri(URI)
  for i in range(8):
    b = nbd.Buffer(4096)
    reads.append((h, h.aio_pread(b, 4096 * i), b, 4096 * i))
def get(h, cookie, b, offset):
  while not h.aio_command_completed(cookie):
    h.poll(-1)
  assert b.to_bytearray() == BASE[offset:offset+4096]'

# has_asked BYTES: has the base been asked for more than that?
has_asked ()
{
  [ "$(asked_bytes)" -gt "$1" ]
}

# has_asked_or_all BYTES PID: the same, or the client has ended, for which all
# is local by then.
has_asked_or_all ()
{
  has_asked "$1" || ! is_child "$2"
}

# allocated IMAGE: bytes.
allocated ()
{
  "$NBDCHAIN" info --json "$1" |
    /usr/bin/python3 -c 'import json, sys
print(json.load(sys.stdin)["allocated"])'
}

@test "what was read is local the next time" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=0
  client 'check(*args)' 65536 131072
  stop "$pid"
  [ "$(allocated top.fvd)" -eq 65536 ]
  : >base.log
  copying top.fvd
  client 'check(*args)' 65536 131072
  [ "$(asked_bytes)" -eq 0 ]
  lose_base
  client 'check(*args)' 65536 131072
}

@test "reads of any alignment bring whole blocks, up to the end of the disk" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=0 neighbourhood=0
  client 'check(1, 5000); check(5000, 100000); check(17, len(BASE) - 17)'
  stop "$pid"
  [ "$(asked)" = "4096 4096
98304 8192
8384512 4101" ]
  [ "$(allocated top.fvd)" -eq $((4096 + 8192 + 8192)) ]
  serve_plain top.fvd allow="$remote"
  assert_same_as base.raw "$uri"
}

@test "zeros are stored as holes, also where the base does not say so" {
  head -c "$M" /dev/zero >base.raw
  head -c "$M" /dev/urandom >>base.raw
  head -c "$M" /dev/zero >>base.raw
  slow_base 1ms
  make_overlay top.fvd "$remote"
  # What is read ahead may be dropped at the end, though a client had it.
  copying top.fvd read-ahead=0
  client 'check(2 << 20, 1 << 19)
for i in range(0, len(BASE), 65536): check(65536, i)'
  stop "$pid"
  lose_base
  [ "$(allocated top.fvd)" -eq $((3 * M)) ]
  [ "$(du -k top.fvd | cut -f 1)" -lt 1500 ]
  serve_plain top.fvd base="$PWD/base.raw"
  assert_same_as base.raw "$uri"
}

@test "a request that is larger than what may wait is answered, not stored" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  copying top.fvd max-outstanding=2M read-ahead=0
  client 'check(len(BASE), 0); check(4 << 20, 12345)'
  stop "$pid"
  [ "$(allocated top.fvd)" -eq 0 ]
}

# waiting: how many bytes are to be stored yet.
waiting ()
{
  ask x-query-copy-on-read | member 'D["waiting"]'
}

nothing_waits ()
{
  [ "$(waiting)" = 0 ]
}

@test "the control socket says what became of what was read" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  copying top.fvd control=qmp max-outstanding=2M read-ahead=0
  client 'check(100, 0); check(3 << 20, 1 << 20)'
  wait_for 20 nothing_waits
  ask x-query-copy-on-read >counts
  [ "$(member 'D["fetched"], D["read-ahead"], D["joined"]' <counts)" = \
    "(65536, 0, 0)" ]
  [ "$(member 'D["not-stored"]' <counts)" = $((3 * M)) ]
}

@test "a base shorter than the disk: zeros behind its end need no copying" {
  slow_base 1ms
  make_overlay top.fvd "$remote" 16M
  copying top.fvd
  client 'assert DISK.get_size() == 16 << 20
DATA = BASE.ljust(16 << 20, bytes(1))
for i in range(0, 16 << 20, 1 << 20):
  assert DISK.pread(1 << 20, i) == DATA[i:i+(1 << 20)]'
  stop "$pid"
  [ "$(allocated top.fvd)" -le $(((size + 4095) / 4096 * 4096)) ]
}

@test "an image that is not written is refused" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  run ! copying top.fvd read-only=true
  grep "copy-on-read: 'top.fvd' is open for reading only" copying.err
  run -2 "$NBDCHAIN" serve -U sock top.fvd --copy-on-read --read-only
  [[ $output == *"--copy-on-read stores what is read"* ]]
}

@test "concurrent cold reads of a block cost one read of the base" {
  slow_base 500ms
  make_overlay top.fvd "$remote"
  copying top.fvd
  client "$many
for r in reads: get(*r)"
  [ "$(asked)" = "0 65536" ]
}

@test "when the read that many wait for is lost, each of them tries again" {
  slow_base 100
  make_overlay top.fvd "$remote"
  copying top.fvd max-waiting=0
  client "$many
open('sent', 'w').close()
for r in reads: get(*r)" 3>&- &
  reader=$!
  started_pids+=("$reader")
  wait_for 20 test -e sent
  wait_for 20 has_asked 0
  lose_base
  slow_base 1ms
  wait "$reader"
}

@test "without a base that comes back, each of many gets an error" {
  slow_base 100
  make_overlay top.fvd "$remote"
  copying top.fvd max-waiting=0 retry=3
  client "$many
open('sent', 'w').close()
failed = 0
for r in reads:
  try: get(*r)
  except nbd.Error as e:
    assert 'Input/output error' in str(e), e
    failed += 1
assert failed == len(reads)" 3>&- &
  reader=$!
  started_pids+=("$reader")
  wait_for 20 test -e sent
  wait_for 20 has_asked 0
  lose_base
  wait "$reader"
}

@test "a small read brings its neighbourhood, but nothing that is there" {
  slow_base 5ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=0
  client 'check(4096, 4 * 65536 + 8192)
DISK.pwrite(bytes(4096), 8 * 65536 + 16384)
DISK.pwrite(bytes(4096), 8 * 65536 + 32768)
check(512, 8 * 65536 + 20480)
check(4096, 8 * 65536 + 61440)
assert DISK.pread(4096, 8 * 65536 + 16384) == bytes(4096)'
  [ "$(asked)" = "$((4 * 65536)) 65536
$((8 * 65536 + 20480)) 12288
$((8 * 65536 + 36864)) 28672" ]
}

@test "behind a neighbourhood that is there, two more are brought along" {
  # A way on which what else the machine does is little.
  slow_base 50ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=0
  # After these it knows how long a read takes with and without.
  client 'for i in range(0, 40, 2): check(4096, i * 65536)
for i in 100, 101, 105: check(4096, i * 65536)'
  [ "$(asked | tail -n 3)" = "$((100 * 65536)) 65536
$((101 * 65536)) $((3 * 65536))
$((105 * 65536)) 65536" ]
}

@test "neighbourhood=0 brings what was asked for" {
  slow_base 5ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=0 neighbourhood=0
  client 'check(4096, 4 * 65536 + 8192)'
  [ "$(asked)" = "$((4 * 65536 + 8192)) 4096" ]
}

@test "a client that reads in sequence is read ahead of, and nothing twice" {
  slow_base 5ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=1M
  # The third read begins it, with four more.
  client 'for i in range(0, 3 * 131072, 131072): check(131072, i)'
  wait_for 20 has_asked $((7 * 131072 - 1))
  client 'for i in range(3 * 131072, 4 << 20, 131072): check(131072, i)'
  wait_for 20 has_asked $((4 * M))
  stop "$pid"
  [ "$(asked_bytes)" -le $((5 * M)) ]
  [ "$(asked | awk '$1 < end { n++ } { end = $1 + $2 } END { print n + 0 }')" \
    -eq 0 ]
  serve_plain top.fvd allow="$remote"
  assert_same_as base.raw "$uri"
}

@test "several sequential clients at a time, each with many requests" {
  slow_base 5ms
  make_overlay top.fvd "$remote"
  copying top.fvd read-ahead=1M
  client 'more = [nbd.NBD() for i in range(4)]
reads = []
for k, h in enumerate(more):
  h.connect_uri("'"$uri"'")
for i in range(0, 2 << 20, 65536):
  for k, h in enumerate(more):
    b = nbd.Buffer(65536)
    o = (k << 21) + i
    reads.append((h, h.aio_pread(b, o), b, o))
  while len(reads) > 24:
    h, cookie, b, o = reads.pop(0)
    while not h.aio_command_completed(cookie):
      h.poll(-1)
    assert b.to_bytearray() == BASE[o:o+65536], o
for h, cookie, b, o in reads:
  while not h.aio_command_completed(cookie):
    h.poll(-1)
  assert b.to_bytearray() == BASE[o:o+65536], o'
  stop "$pid"
  [ "$(asked_bytes)" -le "$((size + 4096))" ]
  [ "$(asked | awk '$1 < end { n++ } { end = $1 + $2 } END { print n + 0 }')" \
    -eq 0 ]
}

@test "random reads start no read-ahead" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  copying top.fvd neighbourhood=0
  client 'import random
R = random.Random(args[0])
for i in R.sample(range(0, 8 << 20, 4096), 300): check(4096, i)' "$seed"
  [ "$(asked_bytes)" -le $((320 * 4096)) ]
}

@test "only down to the bottom: layers below it are read, not copied" {
  slow_base 1ms
  make_overlay mid.fvd "$remote"
  copying mid.fvd bottom=none
  grep "bottom=none: there is no layer of this name below 'mid.fvd'" copying.err
  client 'DISK.pwrite(BASE[:1 << 20], 0); check(1 << 20, 2 << 20)'
  stop "$pid"
  [ "$(allocated mid.fvd)" -eq "$M" ]
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd >/dev/null
  copying top.fvd bottom=mid.fvd
  client 'check(65536, 65536); check(65536, 3 << 20); check(1 << 20, 1 << 19)'
  stop "$pid"
  # Of mid.fvd: 64 KiB, and what the last read had of it.
  [ "$(allocated top.fvd)" -eq $((65536 + M / 2)) ]
}

@test "parameters are checked, and belong to this plugin only" {
  local parameters=(max-outstanding=1M 'from 2097152 to 1073741824 bytes'
    neighbourhood=5000 'must be a power of two'
    neighbourhood=8M 'from 4096 to 4194304 bytes, or 0'
    read-ahead=64K 'from 131072 to 16777216 bytes, or 0')
  slow_base 1ms
  make_overlay top.fvd "$remote"
  set -- "${parameters[@]}"
  while [ $# -gt 0 ]; do
    run ! copying top.fvd "$1"
    grep -F "$1" copying.err | grep -F "$2"
    shift 2
  done
  run ! env "LD_PRELOAD=$NBDCHAIN_PRELOAD" "$NBDKIT" -U - \
    --filter="$NBDCHAIN_FILTERS/nbdkit-stream-filter.so" null 1M --run true
  [[ $output == *'--filter=stream works only over the plugin "chain"'* ]]
}

@test "storage that fails: clients get what they read all the same" {
  mkdir dir
  slow_base 1ms
  make_overlay dir/top.fvd "$remote"
  # Every write and allocation, from the first one on.
  /usr/bin/python3 -c 'import errno, struct
print(end=struct.pack("=8Q", 22, 0, 0, 1, errno.ENOSPC, 0, 0, 0).decode())' \
    >control
  export NC_FAULT_DIR=$PWD/dir NC_FAULT_CONTROL=$PWD/control
  NBDCHAIN_PRELOAD=${NBDCHAIN_PRELOAD:+$NBDCHAIN_PRELOAD:}$NBDCHAIN_FAULT
  copying dir/top.fvd
  unset NC_FAULT_DIR NC_FAULT_CONTROL
  client 'import struct, time
f = open("control", "r+b")
f.write(struct.pack("=8Q", 22, 1, 1 << 40, 1, 28, 0, 0, 0)); f.close()
for i in range(0, 4 << 20, 65536): check(65536, i)
check(len(BASE), 0)
while struct.unpack("=8Q", open("control", "rb").read())[6] == 0:
  time.sleep(0.01)'
  wait_for 20 grep "No space left" copying.err
}

@test "the server of the base goes away and comes back while clients read" {
  make_base base.raw "$size"
  serve_raw base base.raw
  start flaky "$peers/flaky" --seed "$seed" --cut-every 2000000 \
    --stall-every 3000000 --stall-ms 50 --refuse-ms 100 \
    "$PWD/flaky.sock" "$PWD/base.sock"
  wait_for 20 test -S flaky.sock
  remote="nbd+unix:///?socket=$PWD/flaky.sock"
  make_overlay top.fvd "$remote"
  copying top.fvd max-waiting=0
  oracle "$seed" --ops "$ops" --connections 2 --read-only --base base.raw \
    --max-size 262144 --timeout 60 "$uri"
  client 'for i in range(0, len(BASE), 131072):
  check(min(131072, len(BASE) - i), i)'
  stop "$pid"
  "$NBDCHAIN" check top.fvd
}

@test "without the base: an error after the time to wait, and all is well later" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  copying top.fvd retry=3
  client 'check(4096, 65536)'
  lose_base
  client 'check(4096, 65536)
try:
  DISK.pread(4096, 1 << 20)
  raise SystemExit("no error")
except nbd.Error as e:
  assert e.errno == "EIO"
DISK.pwrite(bytes(4096), 2 << 20)
assert DISK.pread(4096, 2 << 20) == bytes(4096)'
  slow_base 1ms
  uri="nbd+unix:///?socket=$PWD/copying.sock"
  # Between attempts to connect there may be longer than retry=.
  wait_for 20 client 'check(4096, 1 << 20)'
}

@test "killed while it copies, many times: the image is right, and goes on" {
  slow_base 1ms
  make_overlay top.fvd "$remote"
  local i reader kills=8
  ! slow || kills=3
  for ((i = 0; i < kills; i++)); do
    copying top.fvd
    start reader "$harness/oracle" --seed "$i" --ops "$ops"00 --read-only \
      --connections 2 --base base.raw --max-size 131072 "$uri"
    reader=$pid
    wait_for 20 has_asked_or_all $((i * 100000)) "$reader"
    stop_hard "$(cat copying.pid)"
    stop "$reader" || :
    "$NBDCHAIN" check top.fvd
    lose_base
    slow_base 1ms
  done
  copying top.fvd
  assert_same_as base.raw "$uri"
}

# nbdkit_pid: of the server that serve has started.
nbdkit_pid ()
{
  pgrep -P "$pid" | head -n 1
}

# is_another PID: does it run?
is_another ()
{
  local new
  new=$(nbdkit_pid)
  [ -n "$new" ] && [ "$new" != "$1" ]
}

@test "nbdchain serve --copy-on-read, killed and started anew" {
  local old
  slow_base 1ms
  make_overlay top.fvd "$remote"
  serve top.fvd --allow "$remote" --copy-on-read -- read-ahead=0
  client 'check(65536, 65536)'
  old=$(nbdkit_pid)
  kill -KILL "$old"
  wait_for 20 is_another "$old"
  : >base.log
  client 'check(65536, 131072)'
  [ "$(asked)" = "131072 65536" ]
  assert_same_as base.raw "$uri"
  stop "$pid"
  "$NBDCHAIN" check top.fvd
}
