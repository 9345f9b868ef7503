#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Compact images: how the file grows, and devices that are made larger.  What
# the disk reads as is for oracle.bats and powerloss.bats.
# shellcheck disable=SC2154,SC2016      # common.bash sets these

load common

# file_size FILE: its length.
file_size ()
{
  stat -c %s "$1"
}

# chunks IMAGE: how many have a place.
chunks ()
{
  "$NBDCHAIN" info --json "$1" | jq .fvd.compact.chunks
}

# write_at URI OFFSET COUNT: 0x55, from OFFSET on.
write_at ()
{
  qemu-io -f raw -c "write -P 0x55 $2 $3" "$1"
}

# make_device SIZE: device.img as $device.
make_device ()
{
  truncate -s "$1" device.img
  loop_device device.img
}

@test "the file grows by what is written, in steps of the grow unit" {
  "$NBDCHAIN" create --compact --grow-unit 4M top.fvd 8T
  [ "$(file_size top.fvd)" -lt 200000000 ]
  serve_plain top.fvd
  local before
  before=$(file_size top.fvd)
  write_at "$uri" 7T 64k
  [ "$(file_size top.fvd)" -eq $((before + 4 * 1048576)) ]
  write_at "$uri" 1T 64k
  write_at "$uri" 2T 64k
  write_at "$uri" 3T 64k
  [ "$(file_size top.fvd)" -eq $((before + 4 * 1048576)) ]
  write_at "$uri" 4T 64k
  [ "$(file_size top.fvd)" -eq $((before + 8 * 1048576)) ]
  stop "$pid"
  [ "$(chunks top.fvd)" -eq 5 ]
  "$NBDCHAIN" check top.fvd
  "$NBDCHAIN" info top.fvd | grep "5 chunks of 1 MiB, the file grows by 4 MiB"
}

@test "zeroing a whole disk needs no place" {
  make_base base.raw 4000000
  make_overlay top.fvd base.raw 2T --compact
  serve_plain top.fvd
  nbdsh -u "$uri" -c 'for o in range(0, h.get_size(), 1 << 31):
            h.zero(1 << 31, o)'
  qemu-io -f raw -c "read -P 0 0 4M" "$uri"
  stop "$pid"
  [ "$(chunks top.fvd)" -eq 0 ]
  serve_plain top.fvd
  write_at "$uri" 4096 4096
  qemu-io -f raw -c "read -P 0 0 4k" -c "read -P 0x55 4k 4k" \
    -c "read -P 0 8k 1M" "$uri"
}

@test "what does not go together is refused" {
  run -1 "$NBDCHAIN" create --compact --data-file d.raw top.fvd 1G
  [[ $output == *"cannot be compact"* ]]
  run -1 "$NBDCHAIN" create --compact --block-size 2M top.fvd 1G
  [[ $output == *"larger than a chunk"* ]]
  run -1 "$NBDCHAIN" create --grow-unit 4M top.fvd 1G
  [[ $output == *"only a compact image has a grow unit"* ]]
  run -1 "$NBDCHAIN" create --compact --grow-unit 1500K top.fvd 1G
  [[ $output == *"must be a multiple of 1048576"* ]]
  [ ! -e top.fvd ]
}

# set_entries IMAGE CHUNK=ENTRY...: in the table, with the right checksum.
set_entries ()
{
  PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$top_srcdir/tests/peers \
    /usr/bin/python3 - "$@" <<'END'
import struct, sys
from fvdimage import newest, read_headers, sealed

with open(sys.argv[1], "r+b") as f:
    header = newest(read_headers(f))
    for word in sys.argv[2:]:
        chunk, entry = map(int, word.split("="))
        at = header.get("table") + chunk // 126 * 512
        f.seek(at)
        sector = bytearray(f.read(504))
        struct.pack_into("<I", sector, chunk % 126 * 4, entry)
        f.seek(at)
        f.write(sealed(header.uuid(), 4, chunk // 126, bytes(sector)))
END
}

# faulty TEXT: the check of bad.fvd says so, and a repair leaves it alone.
faulty ()
{
  local before
  before=$(sha256sum bad.fvd)
  run -3 "$NBDCHAIN" check --repair bad.fvd
  [[ $output == *"error: "*"$1"* ]]
  [ "$(sha256sum bad.fvd)" = "$before" ]
  cp top.fvd bad.fvd
}

@test "check finds what is wrong with the table" {
  "$NBDCHAIN" create --compact --grow-unit 1M top.fvd 300M
  serve_plain top.fvd
  local at
  for at in 0 5M 200M; do
    write_at "$uri" "$at" 64k
  done
  stop "$pid"
  "$NBDCHAIN" check top.fvd
  cp top.fvd bad.fvd
  set_entries bad.fvd 5=1
  faulty "1 of them have the place of another one"
  set_entries bad.fvd 250=3 100=2 101=2
  faulty "3 of them have"
  set_entries bad.fvd 7=4
  faulty "chunk 7 has place 3, and there are 3"
  at=$(python3 -c 'f = open("top.fvd", "rb")
f.seek(152)
print(int.from_bytes(f.read(8), "little"))')
  printf rubbish |
    dd of=bad.fvd bs=1 seek=$((at + 600)) conv=notrunc status=none
  faulty "sector 1 (disk offset 132120576) has a wrong checksum"
  truncate -s -1M bad.fvd
  faulty "header"
  # A place without a chunk is only lost, if it is not one that comes next.
  set_entries bad.fvd 5=0
  run -0 --separate-stderr "$NBDCHAIN" check --json bad.fvd
  jq -e '.warnings == 1 and .leaked == 65536' <<<"$output"
  # So are entries of chunks that are behind the end.
  "$NBDCHAIN" resize --shrink top.fvd 6M
  set_entries top.fvd 5=3
  "$NBDCHAIN" check top.fvd
}

@test "no acknowledged write is lost when the server is killed" {
  make_base base.raw 9000001
  make_overlay top.fvd base.raw --compact --grow-unit 1M
  "$harness/killer" --serve --kills 10 --seed "$seed" --max-ops 200 \
    --max-size 65536 --inflight 4 --base base.raw --socket "$PWD/s" -- \
    "$NBDCHAIN" serve top.fvd -U "$PWD/s" 2>serve.err
}

@test "an image on a device that has held something else" {
  make_base base.raw 7000000
  make_device 48M
  yes "what was there before" | head -c 48M | dd of="$device" status=none
  "$NBDCHAIN" create --compact --grow-unit 1M --journal-size 16K \
    -b base.raw -F raw "$device" 30000001
  local i
  for i in 1 2; do
    serve_plain "$device" "allow=$PWD"
    oracle $((seed + i)) --ops 400 --base base.raw --state state \
      --connections 2 --max-size 200000 "$uri"
    stop "$pid"
    "$NBDCHAIN" check "$device"
  done
}

@test "a full device is ENOSPC, and nothing else is harmed" {
  make_device 8M
  "$NBDCHAIN" create --compact --grow-unit 1M "$device" 16G
  serve_plain "$device"
  write_at "$uri" 0 64k
  run ! qemu-io -f raw -c "write 1G 32M" "$uri"
  [[ $output == *"No space left"* ]]
  write_at "$uri" 65536 64k
  qemu-io -f raw -c "read -P 0x55 0 128k" -c "read -P 0 128k 512k" "$uri"
  grep "no room for another chunk" plain.err
  stop "$pid"
  "$NBDCHAIN" check "$device"
}

@test "the command of enlarge= makes the device larger, while others read" {
  make_device 4M
  "$NBDCHAIN" create --compact --grow-unit 4M "$device" 16G
  # The size must be what it asks for, and no more.
  cat >grow <<'EOF'
[ "$NBDCHAIN_NEEDED" -le "$NBDCHAIN_WANTED" ] || exit 1
truncate -s "$NBDCHAIN_WANTED" device.img
losetup -c "$NBDCHAIN_STORAGE"
echo "$NBDCHAIN_WANTED" >>grown
EOF
  serve_plain "$device" "enlarge=cd '$PWD' && . ./grow"
  write_at "$uri" 10G 64M
  qemu-io -f raw -c "read -P 0x55 10G 64M" "$uri"
  [ "$(wc -l <grown)" -ge 15 ]
  stop "$pid"
  serve "$device" --enlarge "exit 7"
  run ! qemu-io -f raw -c "write 5G 64M" "$uri"
  grep "enlarge=exit 7: exit code 7" serve.err
  qemu-io -f raw -c "read -P 0x55 10G 64M" "$uri"
  stop "$pid"
}
