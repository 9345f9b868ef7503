#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Random operations on chains, every answer compared with a flat reference
# (harness/oracle.c), across restarts, and over bases that come and go.
#
#   NBDCHAIN_SEED  what the operations depend on (default 1)
#   NBDCHAIN_OPS   operations a round (default 1500)
# shellcheck disable=SC2154             # common.bash sets these

load common

ops=${NBDCHAIN_OPS:-1500}
if [ -z "${NBDCHAIN_OPS-}" ] && slow; then
  ops=200
fi

# rounds IMAGE BASE [ORACLE-OPTION...]: operations with restarts between, of
# nbdkit alone and under serve, with a flush at the end or without.
rounds ()
{
  local image=$1 base=$2 round kind extra
  shift 2
  for round in 1 2 3 4; do
    extra=()
    kind=serve_plain
    [ "$round" -le 2 ] || kind=serve
    [ $((round % 2)) -eq 1 ] || extra=(--no-flush)
    "$kind" "$image"
    oracle $((seed * 100 + round)) --ops "$ops" --base "$base" \
      --state state "${extra[@]}" "$@" "$uri"
    stop "$pid"
    "$NBDCHAIN" check "$image"
  done
}

@test "one layer, without a base" {
  "$NBDCHAIN" create --journal-size 16K top.fvd 5242881
  rounds top.fvd /dev/null --connections 2
}

@test "two layers, operations that never overlap" {
  make_base base.raw 7340031
  cp base.raw copy.raw
  make_overlay top.fvd base.raw
  rounds top.fvd base.raw --connections 3 --max-size 262144
  cmp base.raw copy.raw
}

@test "two layers, overlapping operations on four connections" {
  make_base base.raw 7340031
  cp base.raw copy.raw
  make_overlay top.fvd base.raw
  rounds top.fvd base.raw --connections 4 --overlap --max-size 65536
  cmp base.raw copy.raw
}

@test "many small operations in few blocks" {
  make_base base.raw 100001
  make_overlay top.fvd base.raw
  rounds top.fvd base.raw --connections 4 --overlap --max-size 9000
}

@test "large blocks, partly written" {
  make_base base.raw 9000001
  make_overlay a.fvd base.raw --block-size 65536
  rounds a.fvd base.raw --connections 2 --max-size 30000
  rm state
  make_overlay b.fvd base.raw --block-size 2M
  rounds b.fvd base.raw --connections 2 --overlap --max-size 30000
}

@test "a data file, which is a raw image when everything is allocated" {
  make_base base.raw 7340031
  make_overlay top.fvd base.raw --data-file data.raw
  rounds top.fvd base.raw --connections 3 --overlap --max-size 100000
  serve_plain top.fvd
  nbdsh -u "$uri" -c 'h.set_strict_mode(0)' \
    -c 'for o in range(0, h.get_size(), 1 << 20):
            h.cache(min(1 << 20, h.get_size() - o), o)'
  assert_same_as data.raw "$uri"
  stop "$pid"
}

@test "a compact image, whose chunks come in any order" {
  make_base base.raw 33333333
  make_overlay top.fvd base.raw --compact --grow-unit 1M
  rounds top.fvd base.raw --connections 3 --overlap --max-size 100000
  make_overlay large.fvd base.raw --compact --block-size 1M
  rm state
  rounds large.fvd base.raw --connections 2 --max-size 2500000
}

@test "an image on a block device, with a base and without" {
  local i
  make_base base.raw 3000001
  truncate -s 8M device.img
  yes old | head -c 8M | dd of=device.img conv=notrunc status=none
  loop_device device.img
  make_overlay "$device" base.raw
  for i in 1 2; do
    serve_plain "$device" "allow=$PWD"
    oracle $((seed * 100 + i)) --ops "$ops" --base base.raw --state state \
      --connections 2 --overlap "$uri"
    stop "$pid"
    "$NBDCHAIN" check "$device"
  done
  detach_device
  yes old | head -c 8M | dd of=device.img conv=notrunc status=none
  loop_device device.img
  : >base.raw
  rm state
  "$NBDCHAIN" create "$device" 3000001
  rounds "$device" base.raw --connections 2
}

@test "zeros of the base are recorded, and writes to them are like any other" {
  make_base base.raw 7340031
  fallocate -p -o 1000000 -l 3000000 base.raw
  make_overlay top.fvd base.raw --zero-in-base
  rounds top.fvd base.raw --connections 3 --overlap --max-size 100000
  make_overlay big.fvd base.raw --zero-in-base --block-size 64K \
    --data-file data.raw
  rm state
  rounds big.fvd base.raw --connections 3 --max-size 100000
}

@test "an overlay larger than its base, and one that is smaller" {
  make_base base.raw 3000001
  make_overlay large.fvd base.raw 5000003
  rounds large.fvd base.raw --connections 2
  rm state
  make_overlay small.fvd base.raw 2000005
  rounds small.fvd base.raw --connections 2 --overlap
}

@test "a disk of one byte, and one of a sector and a bit" {
  make_base base.raw 1000
  make_overlay one.fvd base.raw 1
  rounds one.fvd base.raw --connections 2 --overlap
  rm state
  make_overlay two.fvd base.raw 513
  rounds two.fvd base.raw --connections 2 --overlap
}

@test "64 layers, written one after the other, and what each layer was" {
  local i last
  make_base base.raw 4194305
  make_overlay 1.fvd base.raw
  for i in {1..63}; do
    serve_plain "$i.fvd"
    oracle $((seed * 1000 + i)) --ops 60 --base base.raw --state state \
      --max-size 200000 "$uri"
    stop "$pid"
    [ $((i % 9)) -ne 0 ] || cp state "state.$i"
    "$NBDCHAIN" snapshot "$i.fvd" $((i + 1)).fvd >/dev/null
  done
  serve_plain 64.fvd
  oracle "$seed" --ops "$ops" --connections 4 --base base.raw --state state \
    "$uri"
  oracle "$seed" --ops "$ops" --connections 4 --base base.raw --state state \
    --overlap "$uri"
  for i in 9 27 63; do
    last="nbd+unix:///$i.fvd?socket=$sock"
    oracle 1 --verify-only --state "state.$i" "$last"
  done
  assert_same_as base.raw "nbd+unix:///base.raw?socket=$sock"
  stop "$pid"
  serve 64.fvd
  oracle $((seed + 1)) --ops "$ops" --connections 4 --base base.raw \
    --state state "$uri"
  stop "$pid"
}

@test "layers of different sizes and block sizes" {
  make_base base.raw 3333333
  make_overlay 1.fvd base.raw 5000001
  serve_plain 1.fvd
  oracle "$seed" --ops 300 --base base.raw --state state "$uri"
  stop "$pid"
  # What a smaller layer does not show is gone for those above it.
  serve_plain 1.fvd
  nbdcopy "$uri" full.raw
  stop "$pid"
  truncate -s 2000003 full.raw
  "$NBDCHAIN" create -b 1.fvd -F fvd --block-size 64K 2.fvd 2000003
  "$NBDCHAIN" create -b 2.fvd -F fvd --block-size 8K 3.fvd 6000007
  rm state
  rounds 3.fvd full.raw --connections 3 --overlap --max-size 200000
}

@test "zeros in writes are found and stored as zeros" {
  make_base base.raw 5000001
  make_overlay top.fvd base.raw
  serve_plain top.fvd detect-zeroes=unmap
  oracle "$seed" --ops "$ops" --base base.raw --state state --connections 2 \
    "$uri"
  stop "$pid"
  serve top.fvd --detect-zeroes on
  oracle $((seed + 1)) --ops "$ops" --base base.raw --state state --overlap \
    --connections 3 "$uri"
  stop "$pid"
}

@test "a read-only disk" {
  make_base base.raw 5000001
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  oracle "$seed" --ops 300 --base base.raw --state state "$uri"
  stop "$pid"
  sha256sum top.fvd >before
  serve_plain top.fvd read-only=true
  oracle "$seed" --ops "$ops" --read-only --connections 3 --state state "$uri"
  stop "$pid"
  sha256sum -c before
}

# answers: does the server answer?  A remote that is away when a server starts
# keeps it from starting, which is not what these tests are about.
answers ()
{
  nbdinfo --size "$uri" >/dev/null
}

# remote_base FLAKY-OPTION...: serve base.raw behind peers/flaky, and make
# top.fvd on it; sets $remote_pid and $allow.
remote_base ()
{
  make_base base.raw 6000001
  serve_raw base base.raw
  remote_pid=$pid
  start flaky "$peers/flaky" --seed "$seed" --control control "$@" \
    "$PWD/flaky.sock" "$PWD/base.sock"
  wait_for 20 test -S flaky.sock
  allow="nbd+unix:///?socket=$PWD/flaky.sock"
  "$NBDCHAIN" create -b "$allow" -F raw --journal-size 16K \
    top.fvd >/dev/null
}

@test "a remote base whose connections break and stall all the time" {
  # Long enough for the connecting itself to get through.
  remote_base --cut-every 400000 --stall-every 600000 --stall-ms 100 \
    --refuse-ms 100 --calm
  serve_plain top.fvd allow="$allow"
  answers
  echo faults >control
  oracle "$seed" --ops "$ops" --base base.raw --state state --connections 2 \
    --inflight 6 --max-size 100000 "$uri"
  stop "$pid"
  echo calm >control
  # What it refuses after its last cut, it refuses for a while.
  uri=$allow wait_for 20 answers
  serve top.fvd --allow "$allow"
  echo faults >control
  oracle $((seed + 1)) --ops "$ops" --base base.raw --state state --overlap \
    --connections 3 --inflight 6 --max-size 100000 "$uri"
  stop "$pid"
}

@test "a remote base that stands still for a second, and goes on" {
  remote_base
  serve_plain top.fvd allow="$allow"
  answers
  start oracle "$harness/oracle" --seed "$seed" --ops $((ops * 2)) \
    --base base.raw --connections 2 --inflight 6 --max-size 50000 "$uri"
  local oracle_pid=$pid i
  for i in 1 2 3; do
    echo stall >control
    sleep 0.4
    echo "cut go" >control
    sleep 0.1
  done
  wait_for 120 is_gone "$oracle_pid"
  wait "$oracle_pid"
}

@test "a remote base that is stopped and started again" {
  remote_base
  serve_plain top.fvd allow="$allow"
  answers
  start oracle "$harness/oracle" --seed "$seed" --ops $((ops * 2)) \
    --base base.raw --connections 2 --inflight 6 --max-size 50000 "$uri"
  local oracle_pid=$pid i
  for i in 1 2 3; do
    stop_hard "$remote_pid"
    sleep 0.2
    serve_raw base base.raw
    remote_pid=$pid
    sleep 0.1
  done
  wait_for 120 is_gone "$oracle_pid"
  wait "$oracle_pid"
}

@test "the disk of a layered chain over a remote base, with a slow link" {
  make_base base.raw 3000001
  serve_by base "$NBDKIT" -f -r --filter=delay -- file base.raw \
    delay-read=3ms
  "$NBDCHAIN" create -b "$uri" -F raw --journal-size 16K top.fvd >/dev/null
  local allow=$uri
  serve_plain top.fvd allow="$allow"
  oracle "$seed" --ops $((ops / 2)) --base base.raw --state state \
    --connections 4 --inflight 3 --max-size 30000 "$uri"
  stop "$pid"
  serve_plain top.fvd allow="$allow"
  oracle "$seed" --ops $((ops / 2)) --base base.raw --state state --overlap \
    --connections 4 --inflight 3 --max-size 30000 "$uri"
}

@test "the oracle notices a server that answers wrongly" {
  make_base base.raw 1000000
  serve_by wrong "$NBDKIT" -f --filter=cow --filter=offset -- file base.raw \
    offset=512 range=999000
  run "$harness/oracle" --base base.raw --weights 1,0,0,0,0,0,0 "$uri"
  [ "$status" -eq 1 ]
  [[ $output == *"a read returned wrong data"* ]]
}

# slow_base: serve base.raw so that every read takes its time; sets $allow.
slow_base ()
{
  serve_by base "$NBDKIT" -f -r -t 8 --filter=delay -- file base.raw rdelay=2ms
  allow=$uri
}

# copying_rounds CREATE-OPTION... -- ORACLE-OPTION...: operations on an image over
# a slow base with copy-on-read, with as much room as there is by default and with
# little; then the disk without it.
copying_rounds ()
{
  local create=() parameters round=0
  while [ "$1" != -- ]; do
    create+=("$1")
    shift
  done
  shift
  rm -f top.fvd state
  make_overlay top.fvd "$allow" "${create[@]}"
  for parameters in '' 'read-ahead=0 max-outstanding=2M neighbourhood=4K'; do
    round=$((round + 1))
    # shellcheck disable=SC2086
    serve_copying top.fvd allow="$allow" max-waiting=0 $parameters
    oracle $((seed * 100 + round)) --ops "$ops" --base base.raw --state state \
      "$@" "$uri"
    stop "$pid"
    "$NBDCHAIN" check top.fvd
  done
  serve_plain top.fvd allow="$allow"
  oracle "$seed" --verify-only --base base.raw --state state "$uri"
  stop "$pid"
}

@test "copy-on-read over a slow base: what clients write, trim and zero wins" {
  make_base base.raw 8388613
  slow_base
  copying_rounds -- --connections 4 --overlap --max-size 65536
}

@test "copy-on-read in few blocks: every client sees what it must" {
  make_base base.raw 300001
  slow_base
  copying_rounds --block-size 4K -- --connections 4 --overlap --max-size 20000
  copying_rounds --block-size 64K -- --connections 3 --max-size 20000
}

@test "copy-on-read, a stream and clients at a time, until the base is not needed" {
  local qmp=$top_srcdir/tests/peers/qmp.py clients
  make_base base.raw 8388613
  slow_base
  base=$pid
  make_overlay top.fvd "$allow"
  serve_copying top.fvd allow="$allow" max-waiting=0 control="$PWD/qmp"
  start clients "$harness/oracle" --seed "$seed" --ops "$ops" --connections 4 \
    --overlap --max-size 65536 --base base.raw --state state "$uri"
  clients=$pid
  timeout 300 "$NBDCHAIN" stream qmp
  wait "$clients"
  ! is_child "$base" || stop_hard "$base"
  oracle "$seed" --verify-only --base base.raw --state state "$uri"
  run -0 "$qmp" script qmp <<<'{"execute": "query-named-block-nodes"}'
  [[ $output != *base.sock* ]]
}
