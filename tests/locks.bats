#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Who may open an image beside whom: nbdchain and QEMU's programs keep each
# other from writing what somebody uses, and the message says who that is.
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common

# common_setup: the setup of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"

setup ()
{
  common_setup
  make_base base.raw 1048576
  make_overlay mid.fvd base.raw
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd >/dev/null
}

# hold_by_nbd, hold_by_daemon, hold_by_io FILE [PROGRAM]: a program of QEMU's
# that opens FILE for writing and keeps it open; sets $pid.
hold_by_nbd ()
{
  rm -f held.pid held.sock
  start held "${2-qemu-nbd}" -f raw -t -k "$PWD/held.sock" \
    --pid-file held.pid "$1"
  wait_for 20 is_ready_or_gone held.pid "$pid"
  [ -s held.pid ]
}

hold_by_daemon ()
{
  rm -f held.pid held.sock
  start held qemu-storage-daemon --pidfile held.pid \
    --blockdev "driver=file,node-name=held,filename=$1" \
    --nbd-server "addr.type=unix,addr.path=$PWD/held.sock" \
    --export type=nbd,id=held,node-name=held,writable=on
  wait_for 20 is_ready_or_gone held.pid "$pid"
  [ -s held.pid ]
}

hold_by_io ()
{
  rm -f commands
  mkfifo commands
  exec 8<>commands
  rm -f held.out
  qemu-io -f raw "$1" <commands >held.out 2>held.err 3>&- 8>&- &
  pid=$!
  started_pids+=("$pid")
  echo length >&8
  wait_for 20 grep -q MiB held.out
}

# refused_by NAME PROCESS IMAGE COMMAND...: it fails, and says that the process
# called NAME has IMAGE.
refused_by ()
{
  local name=$1 process=$2 image=$3
  shift 3
  run ! timeout 120 "$@"
  [[ $output == *"$image: in use by $name (process $process), which "* ]]
}

# qemu_refused FILE: no program of QEMU's opens it for writing.
qemu_refused ()
{
  run -1 qemu-io -f raw -c 'write 0 512' "$1"
  [[ $output == *'"write" lock'* ]]
  run -1 timeout 120 qemu-nbd -f raw -k "$PWD/refused.sock" "$1"
  [[ $output == *'"write" lock'* ]]
  run -1 timeout 120 qemu-storage-daemon \
    --blockdev "driver=file,node-name=held,filename=$1" \
    --nbd-server "addr.type=unix,addr.path=$PWD/refused.sock" \
    --export type=nbd,id=held,node-name=held,writable=on
  [[ $output == *'"write" lock'* ]]
}

@test "each program of QEMU's that writes a layer is refused to, and named" {
  local holder name file
  for holder in nbd daemon io; do
    case $holder in
      nbd) name=qemu-nbd ;;
      daemon) name=qemu-storage-da ;;  # the system keeps 15 letters
      io) name=qemu-io ;;
    esac
    for file in top.fvd mid.fvd base.raw; do
      "hold_by_$holder" "$file"
      refused_by "$name" "$pid" "$PWD/$file" "$NBDCHAIN" serve top.fvd
      [[ $output == *"which may write it; stop that first" ]]
      refused_by "$name" "$pid" "$PWD/$file" "$NBDCHAIN" serve -r top.fvd
      if [ "$file" != base.raw ]; then
        refused_by "$name" "$pid" "$file" "$NBDCHAIN" snapshot "$file" new.fvd
        [ ! -e new.fvd ]
      fi
      stop "$pid" || :
    done
  done
}

@test "while a chain is served, no program of QEMU's writes a layer of it" {
  local file
  sha256sum mid.fvd base.raw >sums
  serve top.fvd
  for file in top.fvd mid.fvd base.raw; do
    qemu_refused "$file"
  done
  sha256sum -c sums
  assert_same_as base.raw "$uri"
  stop "$pid"
}

@test "who serves an image is named as the nbdchain that keeps it up" {
  serve top.fvd
  refused_by "nbdchain serve" "$pid" "$PWD/top.fvd" "$NBDCHAIN" serve top.fvd
  [[ $output == *"which may write it; stop that first" ]]
  refused_by "nbdchain serve" "$pid" top.fvd \
    "$NBDCHAIN" snapshot top.fvd new.fvd
  [ ! -e new.fvd ]
  # What it only reads is not to be changed under it.
  refused_by "nbdchain serve" "$pid" "$PWD/mid.fvd" "$NBDCHAIN" serve mid.fvd
  [[ $output == *"which lets nobody else write it; stop that first" ]]
  # The advice is right.
  stop "$pid"
  serve mid.fvd
  stop "$pid"
}

@test "many read one base at a time, overlays of ours and of QEMU's" {
  local i disk pids=() disks=()
  for i in 1 2; do
    make_overlay "over$i.fvd" base.raw
    serve "over$i.fvd" -U "$PWD/over$i.sock"
    pids+=("$pid")
    disks+=("nbd+unix:///?socket=$PWD/over$i.sock")
  done
  qemu-img create -q -f qcow2 -b base.raw -F raw other.qcow2
  start qcow2 qemu-nbd -f qcow2 -t -k "$PWD/qcow2.sock" --pid-file qcow2.pid \
    other.qcow2
  wait_for 20 is_ready_or_gone qcow2.pid "$pid"
  [ -s qcow2.pid ]
  disks+=("nbd+unix:///?socket=$PWD/qcow2.sock")
  for disk in "${disks[@]}"; do
    assert_same_as base.raw "$disk"
  done
  qemu-io -f raw -c 'write -P 9 0 64k' "${disks[2]}"
  # Nobody writes it as long as one of ours is there; QEMU allows it itself.
  for pid in "${pids[@]}"; do
    run -1 qemu-io -f raw -c 'write 0 512' base.raw
    [[ $output == *'"write" lock'* ]]
    stop "$pid" || :
  done
  qemu-io -f raw -c 'write 0 512' base.raw
}

@test "a lock is gone with the process that held it, however it ended" {
  local server
  serve top.fvd
  server=$(pgrep -P "$pid")
  stop_hard "$pid"
  # Its nbdkit ends, too, and lets go of one file after the other.
  wait_for 20 is_gone "$server"
  qemu-io -f raw -c 'write -P 7 0 512' base.raw
  hold_by_nbd base.raw
  refused_by qemu-nbd "$pid" "$PWD/base.raw" "$NBDCHAIN" serve top.fvd
  stop_hard "$pid"
  serve top.fvd
  assert_same_as base.raw "$uri"
  stop "$pid"
}

@test "where the system does not tell the holder, the image is refused, too" {
  [ "$(id -u)" -eq 0 ] || skip "needs root"
  hold_by_nbd base.raw
  # Its /proc has no process but its own.
  run -1 timeout 120 unshare --pid --fork --mount-proc \
    "$NBDCHAIN" serve top.fvd
  [[ $output == *"$PWD/base.raw: in use by another process, which may write"* ]]
  stop "$pid"
}

@test "a device that somebody uses gets no image" {
  [ "$(id -u)" -eq 0 ] || skip "needs root"
  truncate -s 8M disk.img
  loop_device disk.img
  hold_by_nbd "$device"
  run -1 "$NBDCHAIN" create "$device" 1M
  [[ $output == *"$device: in use by qemu-nbd (process $pid), which "* ]]
  stop "$pid"
  cmp -n 8388608 disk.img /dev/zero
  "$NBDCHAIN" create "$device" 1M >/dev/null
}

@test "a holder's name cannot steer the terminal" {
  local name=$'x\e[31m\ny'
  cp "$(command -v qemu-nbd)" "$name"
  hold_by_nbd base.raw "./$name"
  refused_by 'x?[31m' "$pid" "$PWD/base.raw" "$NBDCHAIN" serve top.fvd
  stop "$pid"
}
