#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# nbdchain stream: an image gets the data of the layers below, and goes without
# them.
# shellcheck disable=SC2154             # common.bash sets these

load common

size=8388613

# make_chain: base.raw, dir/mid.fvd and top.fvd on top of each other, written
# by turns; the disk is in disk.raw, that of mid.fvd in mid.raw.
make_chain ()
{
  make_base base.raw "$size"
  make_overlay mid.fvd base.raw
  serve_plain mid.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 65536 "$uri"
  nbdcopy "$uri" mid.raw
  stop "$pid"
  "$NBDCHAIN" create -b mid.fvd -F fvd --journal-size 16K top.fvd >/dev/null
  serve_plain top.fvd
  oracle "$((seed + 1))" --ops 60 --base mid.raw --max-size 65536 "$uri"
  nbdcopy "$uri" disk.raw
  stop "$pid"
}

# is_disk IMAGE FILE [ARGUMENT...]: its disk is FILE, byte for byte; no error
# in it.
is_disk ()
{
  local image=$1 file=$2
  shift 2
  "$NBDCHAIN" compare --strict -F raw "$image" "$file" "$@"
  "$NBDCHAIN" check "$image"
}

# info IMAGE FILTER: of "info --json", as a Python expression of D.
info ()
{
  "$NBDCHAIN" info --json "$1" |
    python3 -c 'import json, sys
D = json.load(sys.stdin)
print(eval(sys.argv[1]))' "$2"
}

# json FILTER: the same for $output.
json ()
{
  python3 -c 'import json, sys
D = json.loads(sys.argv[1])
print(eval(sys.argv[2]))' "$output" "$1"
}

# remote [OPTION...]: base.raw behind peers/flaky, and top.fvd over it; sets
# $allow.
remote ()
{
  serve_raw base base.raw
  start flaky "$peers/flaky" --seed "$seed" --control control "$@" \
    "$PWD/flaky.sock" "$PWD/base.sock"
  wait_for 20 test -S flaky.sock
  allow="nbd+unix:///?socket=$PWD/flaky.sock"
  make_overlay top.fvd "$allow"
}

# ends_with STATUS PID
ends_with ()
{
  local ended=0
  wait "$2" || ended=$?
  [ "$ended" -eq "$1" ]
}

# grows FILE: has data been stored in it?
grows ()
{
  [ "$(du -k "$1" | cut -f 1)" -gt 1500 ]
}

@test "a whole chain comes into the top, and the rest can be deleted" {
  make_chain
  sum=$(cat mid.fvd base.raw | sha256sum)
  run -0 "$NBDCHAIN" stream top.fvd
  [[ $output == "top.fvd needs no backing any more: copied "* ]]
  [ "$(cat mid.fvd base.raw | sha256sum)" = "$sum" ]
  rm mid.fvd base.raw
  is_disk top.fvd disk.raw
  run -0 "$NBDCHAIN" info --chain top.fvd
  [[ $output != *backing* ]]
}

@test "only what is above a layer comes in, and that one is the backing" {
  make_chain
  run -0 "$NBDCHAIN" stream --json --down-to base.raw top.fvd
  [ "$(json 'D["backing"]')" = base.raw ]
  [ "$(json 'D["copied"] > 0 and D["copied"] < D["local"]')" = True ]
  rm mid.fvd
  is_disk top.fvd disk.raw
  [ "$(info top.fvd 'D["backing"]["reference"]')" = base.raw ]
  run -0 "$NBDCHAIN" stream top.fvd
  rm base.raw
  is_disk top.fvd disk.raw
}

@test "a base in another directory is named so that it is found" {
  mkdir images bases
  truncate -s 1M bases/base.raw
  printf 'from the base' | dd of=bases/base.raw conv=notrunc status=none
  make_overlay bases/mid.fvd bases/base.raw
  "$NBDCHAIN" create -b bases/mid.fvd -F fvd images/top.fvd
  "$NBDCHAIN" stream --allow bases --down-to base.raw images/top.fvd
  rm bases/mid.fvd
  "$NBDCHAIN" compare -F raw --allow bases images/top.fvd bases/base.raw
}

@test "with nothing to do it ends at once, and well" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  "$NBDCHAIN" stream top.fvd
  sum=$(sha256sum top.fvd)
  run -0 "$NBDCHAIN" stream --json top.fvd
  [ "$(json 'D["copied"], D["zero"], D["local"]')" = "(0, 0, 1048576)" ]
  "$NBDCHAIN" create none.fvd 1M
  run -0 "$NBDCHAIN" stream none.fvd
  "$NBDCHAIN" check none.fvd
  "$NBDCHAIN" check top.fvd
  run -0 "$NBDCHAIN" stream --down-to base.raw \
    "$(make_overlay top2.fvd base.raw; echo top2.fvd)"
  [[ $output == *"copied 0 bytes"* ]]
}

@test "what reads as zeros is neither read nor stored" {
  truncate -s 1G base.raw
  printf x | dd of=base.raw bs=1 seek=500000000 conv=notrunc status=none
  make_overlay top.fvd base.raw
  run -0 "$NBDCHAIN" stream --json top.fvd
  [ "$(json 'D["copied"] <= 65536')" = True ]
  [ "$(du -k top.fvd | cut -f 1)" -lt 3000 ]
  # Nor zeros that only a look can find.
  dd if=/dev/zero of=full.raw bs=1M count=8 status=none
  make_overlay top2.fvd full.raw
  run -0 "$NBDCHAIN" stream --json top2.fvd
  [ "$(json 'D["copied"]')" = 8388608 ]
  [ "$(du -k top2.fvd | cut -f 1)" -lt 3000 ]
  cp --sparse=always base.raw other.raw
  is_disk top.fvd other.raw
}

@test "what is behind the end of a shorter base stays zeros" {
  make_base base.raw 3000001
  make_overlay top.fvd base.raw 9M
  cp base.raw disk.raw
  truncate -s 9M disk.raw
  is_disk top.fvd disk.raw
  "$NBDCHAIN" stream top.fvd
  rm base.raw
  is_disk top.fvd disk.raw
}

@test "with a low speed it goes in small steps" {
  make_base base.raw $((1 << 20))
  serve_by base "$NBDKIT" -f -r --filter=log -- file base.raw logfile=base.log
  make_overlay top.fvd "$uri"
  "$NBDCHAIN" stream --allow "$uri" --speed 1M top.fvd
  # At least ten a second, of whole blocks.
  run -0 grep -c ' Read .*\.\.\.$' base.log
  [ "$output" -ge 10 ]
  is_disk top.fvd base.raw
}

@test "what is stored is written out before it is flushed" {
  ! slow || skip "strace and sanitizers exclude each other"
  make_base base.raw $((64 << 20))
  make_overlay top.fvd base.raw
  strace -f -qq -o trace -e trace=sync_file_range,fdatasync \
    "$NBDCHAIN" stream top.fvd
  is_disk top.fvd base.raw
  # All of the file, before the flush that is waited for in the end.
  local first last
  first=$(grep -n -m 1 'sync_file_range(.*, 0, 0, SYNC_FILE_RANGE_WRITE' trace |
    cut -d : -f 1)
  last=$(grep -n 'fdatasync(' trace | tail -n 1 | cut -d : -f 1)
  [ "$first" -lt "$last" ]
}

@test "what is copied does not stay in the memory of the host" {
  [ "$(stat -f -c %T .)" != tmpfs ] || skip "the files are memory here"
  make_base base.raw $((64 << 20))
  make_overlay top.fvd base.raw
  "$NBDCHAIN" stream top.fvd
  run -0 in_memory top.fvd
  [ "$output" -le $((8 << 20)) ]
  "$NBDCHAIN" create --compact -b base.raw -F raw compact.fvd >/dev/null
  "$NBDCHAIN" stream compact.fvd
  run -0 in_memory compact.fvd
  [ "$output" -le $((8 << 20)) ]
  is_disk top.fvd base.raw
  is_disk compact.fvd base.raw
}

@test "images of all kinds" {
  make_base base.raw "$size"
  make_overlay compact.fvd base.raw --compact
  make_overlay large.fvd base.raw --block-size 2M
  make_overlay data.fvd base.raw --data-file data.raw
  cp base.raw disk.raw
  for image in compact large data; do
    "$NBDCHAIN" stream "$image.fvd"
  done
  rm base.raw
  for image in compact large data; do
    is_disk "$image.fvd" disk.raw
  done
}

@test "wrong names and wrong values change nothing" {
  make_base base.raw 1048576
  make_overlay top.fvd base.raw
  sum=$(sha256sum top.fvd)
  run -1 "$NBDCHAIN" stream --down-to nobody top.fvd
  [[ $output == *"no layer called 'nobody'"* ]]
  run -1 "$NBDCHAIN" stream --down-to top.fvd top.fvd
  run -1 "$NBDCHAIN" stream missing.fvd
  [[ $output == *"missing.fvd"* ]]
  run -1 "$NBDCHAIN" stream base.raw
  run -2 "$NBDCHAIN" stream --speed fast top.fvd
  [[ $output == *"--speed: 'fast'"* ]]
  run -2 "$NBDCHAIN" stream --retry -1 top.fvd
  run -2 "$NBDCHAIN" stream top.fvd other.fvd
  is_disk top.fvd base.raw
  [ "$(info top.fvd 'D["backing"]["reference"]')" = base.raw ]
}

@test "an image that is served is refused" {
  make_base base.raw 1048576
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  run -1 "$NBDCHAIN" stream top.fvd
  [[ $output == *"in use"* ]]
  assert_same_as base.raw "$uri"
}

@test "a read error of the base ends it, and the image is as good as before" {
  make_base base.raw "$size"
  touch fail
  serve_by bad "$NBDKIT" -f -r --filter=error -- file base.raw \
    error-pread-rate=100% error-file="$PWD/fail"
  make_overlay top.fvd "$uri"
  run -1 "$NBDCHAIN" stream --allow "$uri" top.fvd
  [[ $output == *"backing is still needed"* ]]
  rm fail
  is_disk top.fvd base.raw --allow "$uri"
  "$NBDCHAIN" stream --allow "$uri" top.fvd
  stop "$pid"
  is_disk top.fvd base.raw
}

@test "storage that is full ends it, and the image is as good as before" {
  need_mount
  make_base base.raw 16777216
  unshare --mount --propagation private bash -euc '
    mkdir full
    mount -t tmpfs -o size=6m none full
    nbdchain create -b base.raw -F raw full/top.fvd
    ! nbdchain stream --allow . full/top.fvd 2>full.out
    nbdchain check full/top.fvd
    nbdchain compare --allow . full/top.fvd -F raw base.raw
    nbdchain info full/top.fvd | grep -q base.raw
    mount -o remount,size=40m full
    nbdchain stream --allow . full/top.fvd
    mv base.raw away.raw
    nbdchain compare full/top.fvd -F raw away.raw' 3>&-
  grep "No space left" full.out
}

@test "killed at any moment, it goes on where it was" {
  local kills=0
  make_base base.raw 50331648
  make_overlay top.fvd base.raw
  for ms in 20 60 100 140 180 40 80 120; do
    start killed "$NBDCHAIN" stream --speed 64M top.fvd
    sleep "$(printf '0.%03d' "$ms")"
    # On a busy machine it may have been longer, and all is done.
    if is_child "$pid"; then
      stop_hard "$pid"
      kills=$((kills + 1))
    else
      ends_with 0 "$pid"
    fi
    is_disk top.fvd base.raw
  done
  [ "$kills" -gt 0 ]
  "$NBDCHAIN" stream --speed 300M --json top.fvd >out
  mv base.raw away.raw
  is_disk top.fvd away.raw
}

@test "a signal ends it in order" {
  make_base base.raw 16777216
  make_overlay top.fvd base.raw
  start slow "$NBDCHAIN" stream --speed 1M --progress --json top.fvd
  wait_for 60 grep -q '"done":[1-9]' slow.err
  kill -INT "$pid"
  ends_with 1 "$pid"
  grep -q "run it again to go on" slow.err
  [ "$(info top.fvd 'D["fvd"]["clean"], D["backing"]["reference"]')" = "(True, 'base.raw')" ]
  run -0 "$NBDCHAIN" stream --json top.fvd
  [ "$(json 'D["local"] > 0 and D["copied"] > 0')" = True ]
  mv base.raw away.raw
  is_disk top.fvd away.raw
}

@test "connections that break and stall only cost time" {
  make_base base.raw "$size"
  remote --cut-every 3000000 --stall-every 4000000 --stall-ms 50
  "$NBDCHAIN" stream --allow "$allow" top.fvd
  is_disk top.fvd base.raw
}

@test "a remote that stalls for good ends it after the time given, or a signal" {
  make_base base.raw "$size"
  remote --calm
  start hangs "$NBDCHAIN" stream --allow "$allow" --speed 500K top.fvd
  wait_for 60 grows top.fvd
  echo stall >control
  kill -TERM "$pid"
  ends_with 1 "$pid"
  echo go >control
  [ "$(info top.fvd 'D["fvd"]["clean"]')" = True ]
  is_disk top.fvd base.raw --allow "$allow"
  echo refuse >control
  echo cut >control
  run -1 "$NBDCHAIN" stream --allow "$allow" --retry 1 top.fvd
  echo accept >control
  "$NBDCHAIN" stream --allow "$allow" top.fvd
  is_disk top.fvd base.raw
}

