#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Programs that others wrote, on a chain of two layers, whose base is another
# server, and on one of three: what they see and write is what a plain file
# would give.
#
# Each chain comes with disk.img, a file of what the disk should hold.
# shellcheck disable=SC2154             # common.bash sets these
# shellcheck disable=SC2016             # what is quoted is for another shell

load common

size=$((24 << 20))

# The commands of qemu-io that make the layers differ.
mid_writes=(-c 'write -P 0x61 1M 1M' -c 'write -P 0x62 3000k 100k'
            -c 'write -z 5M 1M' -c 'write -P 0x63 23M 512')
top_writes=(-c 'write -P 0x64 1280k 256k' -c 'write -P 0x65 5632k 1M'
            -c 'write -z 8M 512k' -c 'write -P 0x66 20971008 1024')

# two_layers: base.raw, as a remote, and top.fvd; sets $remote.
two_layers ()
{
  make_base base.raw "$size"
  cp base.raw disk.img
  serve_raw remote base.raw
  remote=$uri
  make_overlay top.fvd "$remote"
}

# three_layers: base.raw, mid.fvd and top.fvd, all of which hold something.
three_layers ()
{
  make_base base.raw "$size"
  cp base.raw disk.img
  make_overlay mid.fvd base.raw
  serve_plain mid.fvd
  on_both "${mid_writes[@]}"
  stop "$pid"
  cp disk.img mid.img
  "$NBDCHAIN" snapshot mid.fvd top.fvd
  serve_plain top.fvd
  on_both "${top_writes[@]}"
  stop "$pid"
}

# on_both COMMAND...: qemu-io does it to the disk and to disk.img.
on_both ()
{
  qemu-io -f raw "$@" "$uri" >qemu-io.out
  qemu-io -f raw "$@" disk.img >qemu-io.out
}

# assert_same FILE [URI]: a copy by nbdcopy is this file.
assert_same ()
{
  rm -f copy.img
  nbdcopy -- "${2-$uri}" copy.img
  cmp copy.img "$1"
}

# layer NAME: the URI of the export of a layer.
layer ()
{
  echo "nbd+unix:///$1?socket=$sock"
}

# data FILE: how many bytes are stored of it.
data ()
{
  echo $(($(stat -c '%b * %B' "$1")))
}

is_mounted ()
{
  [ -e "$1" ]
}

# fio_jobs ARGUMENT...: four jobs, each with a connection and a quarter of the
# disk, that check what they read.
fio_jobs ()
{
  fio --name=job --ioengine=nbd --uri="$uri" --numjobs=4 --size=4M \
    --offset_increment=6M --iodepth=16 --randseed="$seed" --thread \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --minimal "$@"
}

@test "nbdinfo shows the disk, and lists the layers" {
  three_layers
  serve_plain top.fvd
  nbdinfo --json "$uri" >info
  [ "$(jq '.exports | length' info)" = 1 ]
  [ "$(jq -r '.exports[0]["export-size"]' info)" = "$size" ]
  [ "$(jq -r '.exports[0].contexts[]' info)" = base:allocation ]
  [ "$(nbdinfo --size "$uri")" = "$size" ]
  nbdinfo --list --json "$uri" >list
  [ "$(jq -r '[.exports[]["export-name"]] | join(" ")' list)" = \
    "disk mid.fvd base.raw" ]
  [ "$(jq -r '[.exports[].is_read_only] | join(" ")' list)" = \
    "false true true" ]
  nbdinfo "$uri"
  nbdinfo --list "$uri"
  stop "$pid"
}

@test "nbdinfo --map tells data from zeros as the layers have it" {
  truncate -s "$size" base.raw
  qemu-io -f raw -c 'write -P 1 0 8M' base.raw
  make_overlay mid.fvd base.raw
  serve_plain mid.fvd
  qemu-io -f raw -c 'write -z -u 1M 1M' -c 'write -P 2 9M 1M' "$uri"
  stop "$pid"
  make_overlay top.fvd mid.fvd -F fvd $((32 << 20))
  serve_plain top.fvd
  qemu-io -f raw -c 'write -P 3 1M 64k' -c 'write -z -u 2M 1M' \
    -c 'write -P 4 30M 1M' "$uri"
  nbdinfo --map --json "$uri" >map
  jq -r '.[] | "\(.offset) \(.length) \(.type)"' map >found
  diff - found <<'END'
0 1114112 0
1114112 2031616 3
3145728 5242880 0
8388608 1048576 3
9437184 1048576 0
10485760 20971520 3
31457280 1048576 0
32505856 1048576 3
END
  nbdinfo --map --totals "$uri" | grep -E '^ *8454144 .*data'
  stop "$pid"
}

@test "nbdcopy reads the disk and each layer, and leaves holes" {
  three_layers
  serve_plain top.fvd
  nbdcopy --connections 4 "$uri" copy.img
  cmp copy.img disk.img
  [ "$(data copy.img)" -lt $((size - (1 << 20))) ]
  assert_same mid.img "$(layer mid.fvd)"
  assert_same base.raw "$(layer base.raw)"
  nbdcopy --synchronous "$uri" - | cmp - disk.img
  stop "$pid"
}

@test "nbdcopy overwrites a disk whose base is remote, on four connections" {
  two_layers
  cp base.raw base.before
  make_base new.img "$size"
  # A file with other holes.
  qemu-io -f raw -c 'write -z -u 3M 3M' -c 'write -P 9 7M 2M' new.img
  seed=$((seed + 1)) make_base other.img "$size"
  serve_plain top.fvd allow="$remote"
  nbdcopy --connections 4 --flush other.img "$uri"
  assert_same other.img
  nbdcopy --connections 4 --requests 16 --request-size 65536 --flush \
    new.img "$uri"
  assert_same new.img
  stop "$pid"
  serve_plain top.fvd allow="$remote"
  assert_same new.img
  assert_same base.before \
    "$(nbdinfo --list --json "$uri" | jq -r '.exports[1].uri')"
  stop "$pid"
  cmp base.raw base.before
}

@test "nbdcopy from a layer of one chain to the disk of another" {
  three_layers
  serve_plain top.fvd
  local from pid_from=$pid nbdkit
  from=$(layer mid.fvd)
  mkdir other
  make_base other/base.raw "$size"
  make_overlay other/top.fvd other/base.raw
  nbdkit_with_chain valgrind
  serve_by other "${nbdkit[@]}" -f -- "$NBDCHAIN_PLUGIN" other/top.fvd
  nbdcopy --connections 4 "$from" "$uri"
  assert_same mid.img
  stop "$pid"
  stop "$pid_from"
}

@test "nbdsh: every request, and many in flight" {
  three_layers
  serve_plain top.fvd
  nbdsh --base-allocation -u "$uri" -c - <<'END'
h.pwrite(b"s" * 70001, 12345)
assert h.pread(70001, 12345) == b"s" * 70001
chunks = []
data = h.pread_structured(5346, 77000, lambda b, o, *_: chunks.append((o, b)))
assert data == b"s" * 5346 and sum(len(b) for o, b in chunks) == 5346
h.pwrite(b"f" * 10, 82000, nbd.CMD_FLAG_FUA)
h.zero(3000, 13000)
h.trim(8192, 40960)
assert h.pread(3000, 13000) == bytes(3000)
assert h.pread(8192, 40960) in (bytes(8192), b"s" * 8192)
h.pwrite(b"t" * 8192, 40960)
h.cache(1 << 20, 16 << 20)
h.flush()
found = []
h.block_status(h.get_size(), 0, lambda c, o, e, err: found.extend(e))
assert sum(found[::2]) <= h.get_size() and found

cookies = []
buffers = []
for i in range(512):
    buffers.append(nbd.Buffer.from_bytearray(bytearray([i % 255 + 1] * 3000)))
    cookies.append(h.aio_pwrite(buffers[-1], (10 << 20) + i * 3000))
while cookies:
    h.poll(-1)
    for cookie in list(cookies):
        if h.aio_command_completed(cookie):
            cookies.remove(cookie)
want = b"".join(bytes([i % 255 + 1] * 3000) for i in range(512))
assert h.pread(len(want), 10 << 20) == want
h.shutdown()
END
  qemu-io -f raw -c 'read -P 0x74 40960 8192' "$uri"
  stop "$pid"
}

@test "qemu-img: info, compare, map and convert from the export" {
  three_layers
  serve_plain top.fvd
  [ "$(qemu-img info --output json -f raw "$uri" |
       jq '."virtual-size"')" = "$size" ]
  qemu-img compare -f raw -F raw "$uri" disk.img
  qemu-img compare -f raw -F raw "$(layer mid.fvd)" mid.img
  qemu-img compare -f raw -F raw "$(layer base.raw)" base.raw
  run -1 qemu-img compare -f raw -F raw "$uri" mid.img
  [[ $output == *"mismatch"* ]]

  # What the map calls zero is zero, and it is not all of it data.
  qemu-img map --output json -f raw "$uri" >map.json
  [ "$(jq 'map(.length) | add' map.json)" = "$size" ]
  [ "$(jq 'map(select(.zero).length) | add' map.json)" -gt 0 ]
  jq -r '.[] | select(.zero) | "read -P 0 \(.start) \(.length)"' map.json >reads
  qemu-io -f raw disk.img <reads >reads.out
  run ! grep -i 'verification failed' reads.out

  qemu-img convert -f raw -O raw "$uri" copy.img
  cmp copy.img disk.img
  [ "$(data copy.img)" -lt "$size" ]
  qemu-img convert -f raw -O qcow2 -m 16 -W "$uri" copy.qcow2
  qemu-img compare -f qcow2 -F raw copy.qcow2 disk.img
  stop "$pid"
}

@test "qemu-img convert to the export, whole and with a known-zero target" {
  two_layers
  make_base new.img "$size"
  qemu-io -f raw -c 'write -z -u 2M 6M' -c 'write -P 9 9M 2M' new.img
  serve_plain top.fvd allow="$remote"
  qemu-img convert -n -f raw -O raw -m 16 -W new.img "$uri"
  qemu-img compare -f raw -F raw "$uri" new.img
  assert_same new.img
  stop "$pid"
  serve_plain top.fvd allow="$remote"
  assert_same new.img
  stop "$pid"

  "$NBDCHAIN" create empty.fvd "$size"
  serve_plain empty.fvd
  qemu-img convert -n --target-is-zero -f raw -O raw new.img "$uri"
  assert_same new.img
  stop "$pid"
  [ "$(data empty.fvd)" -lt "$size" ]
}

@test "qemu-img bench: 64 requests under way" {
  two_layers
  serve_plain top.fvd allow="$remote"
  qemu-img bench -f raw -c 2000 -d 64 -s 4096 -S 12288 "$uri"
  qemu-img bench -f raw -w --pattern=0x77 -c 2000 -d 64 -s 4096 -S 12288 \
    --flush-interval=200 "$uri"
  python3 - disk.img <<'END'
import sys
f = open(sys.argv[1], "r+b")
for i in range(2000):
    f.seek(i * 12288 % (24 << 20))
    f.write(b"\x77" * 4096)
END
  assert_same disk.img
  stop "$pid"
}

@test "qemu-io: writes, zeros, FUA and discards of every alignment" {
  three_layers
  serve_plain top.fvd
  on_both -c 'write -P 0x31 0 512' -c 'write -P 0x32 4608 3584' \
    -c 'write -P 0x33 2097664 1M' -c 'write -f -P 0x34 10M 64k' \
    -c 'write -z 10M 4096' -c 'write -z 10489344 9728' \
    -c 'write -z -u 11M 1M' -c 'write -z -u -f 12583424 70000' \
    -c 'writev -P 0x35 13M 512 1024 2048' -c flush
  assert_same disk.img

  # A block that is written is never the backing again.
  on_both -c 'write -P 0x36 14M 1M'
  qemu-io -f raw -c 'discard 14M 512k' "$uri"
  qemu-io -f raw -c 'read -P 0x36 14848k 512k' "$uri"
  run -0 qemu-io -f raw -c 'read -P 0 14M 512k' "$uri"
  run ! grep -i 'verification failed' <<<"$output"
  on_both -c 'write -z 14M 512k'
  # One that is not written stays as it is.
  qemu-io -f raw -c 'discard 16M 1M' "$uri"
  assert_same disk.img
  stop "$pid"
  serve_plain top.fvd
  assert_same disk.img
  stop "$pid"
}

@test "qemu-io: zeros that must be fast, or are not done" {
  two_layers
  serve_plain top.fvd allow="$remote"
  on_both -c 'write -z -u 1M 2M'
  qemu-io -f raw -c 'write -z -n -u 4M 1M' "$uri"
  on_both -c 'write -z 4M 1M'
  assert_same disk.img
  run -1 qemu-io -f raw -c 'write -z -n -u 8192512 512' "$uri"
  [[ $output == *"not supported"* ]]
  assert_same disk.img
  stop "$pid"
}

@test "qemu-io: asynchronous requests in flight" {
  local commands=() i
  two_layers
  serve_plain top.fvd allow="$remote"
  for i in {0..63}; do
    commands+=(-c "aio_write -P $((i + 1)) $((i * 150016)) 70144")
    commands+=(-c "aio_write -z $((i * 150016 + 70144)) 20480")
    commands+=(-c "aio_read $((i * 150016 + 100352)) 40960")
  done
  commands+=(-c aio_flush)
  on_both "${commands[@]}"
  assert_same disk.img
  stop "$pid"
}

@test "a qcow2 overlay of QEMU's on a layer, and the disk as its backing" {
  three_layers
  serve_plain top.fvd
  qemu-img create -q -f qcow2 -F raw -b "$(layer mid.fvd)" over.qcow2
  qemu-io -c 'write -P 0x41 300k 300k' over.qcow2
  qemu-io -f raw -c 'write -P 0x41 300k 300k' mid.img
  qemu-img compare -f qcow2 -F raw over.qcow2 mid.img
  # And committed into the disk.
  qemu-img rebase -u -F raw -b "$uri" over.qcow2
  qemu-img commit -q over.qcow2
  qemu-io -f raw -c 'write -P 0x41 300k 300k' disk.img
  assert_same disk.img
  stop "$pid"
}

@test "fio: four jobs on four connections read what they wrote" {
  two_layers
  serve top.fvd --allow "$remote"
  fio_jobs --rw=randwrite --bssplit=4k/50:8k/20:64k/10:512/20 --do_verify=1
  # Again, over what is allocated, with reads between.
  fio_jobs --rw=randrw --bssplit=1k/30:4k/30:16k/20:512/20 --do_verify=1
  # Durable, and still the same after a restart.
  fio_jobs --rw=randwrite --bssplit=4k/50:2k/20:32k/10:512/20 --do_verify=0
  stop "$pid"
  serve top.fvd --allow "$remote"
  fio_jobs --rw=randwrite --bssplit=4k/50:2k/20:32k/10:512/20 --verify_only=1
  stop "$pid"
  "$NBDCHAIN" check top.fvd
  # Between the areas of the jobs nothing has changed.
  serve_plain top.fvd allow="$remote"
  nbdcopy "$uri" copy.img
  for i in 4 10 16 22; do
    cmp -n 2097152 -i $((i << 20)) copy.img disk.img
  done
  stop "$pid"
}

@test "fio: three layers, writes, trims and flushes" {
  three_layers
  serve_plain top.fvd
  fio_jobs --rw=randwrite --bs=4k --fsync=8 --do_verify=1
  fio_jobs --rw=randtrimwrite --bs=4k --do_verify=0
  fio_jobs --rw=randwrite --bsrange=512-32k --do_verify=1
  stop "$pid"
  "$NBDCHAIN" check --chain top.fvd
}

@test "nbdfuse: a file system on the chain" {
  two_layers
  cp base.raw base.before
  mkdir mnt
  serve_plain top.fvd allow="$remote"
  local server=$pid
  start fuse nbdfuse --connections 2 mnt/disk "$uri"
  if ! wait_for 10 is_mounted mnt/disk; then
    cat fuse.err
    false
  fi
  cmp mnt/disk disk.img
  mkfs.ext4 -q -F mnt/disk
  seq 300000 >numbers
  debugfs -w -R 'write numbers numbers' mnt/disk
  debugfs -w -R 'mkdir dir' mnt/disk
  debugfs -R 'cat numbers' mnt/disk | cmp - numbers
  e2fsck -fn mnt/disk
  fusermount3 -u mnt
  wait_for 10 is_gone "$pid"
  stop "$server"

  serve_plain top.fvd allow="$remote"
  nbdcopy "$uri" copy.img
  stop "$pid"
  e2fsck -fn copy.img
  debugfs -R 'cat numbers' copy.img | cmp - numbers
  cmp base.raw base.before
}

@test "qemu-storage-daemon: attached, and exported again" {
  three_layers
  serve_plain top.fvd
  local server=$pid chain=$sock blockdev
  blockdev=driver=nbd,node-name=disk,server.type=unix,server.path=$chain
  blockdev+=,reconnect-delay=10,discard=unmap
  start daemon qemu-storage-daemon --pidfile daemon.pid \
    --blockdev "$blockdev" \
    --nbd-server addr.type=unix,addr.path="$PWD/daemon.sock" \
    --export type=nbd,id=disk,node-name=disk,name=again,writable=on
  wait_for 10 is_ready_or_gone daemon.pid "$pid"
  uri="nbd+unix:///again?socket=$PWD/daemon.sock"
  qemu-img compare -f raw -F raw "$uri" disk.img
  on_both -c 'write -P 0x51 3M 2M' -c 'write -z -u 6M 1M' -c flush
  nbdcopy --connections 2 "$uri" copy.img
  cmp copy.img disk.img
  stop "$pid"
  sock=$chain
  assert_same disk.img "$(layer '')"
  stop "$server"
}
