#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# "nbdchain check --repair": it mends what means nothing, and nothing else.
# shellcheck disable=SC2154             # common.bash sets these

load common

# field IMAGE OFFSET BYTES: a number in the header that counts.
field ()
{
  python3 -c 'import sys
f = open(sys.argv[1], "rb").read(8192)
h = max(f[:4096], f[4096:], key=lambda h: int.from_bytes(h[16:24], "little"))
at, n = int(sys.argv[2]), int(sys.argv[3])
print(int.from_bytes(h[at:at + n], "little"))' "$@"
}

# poke IMAGE OFFSET: put rubbish of 300 bytes there.
poke ()
{
  head -c 300 /dev/zero | tr '\0' x |
    dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# make_disk: top.fvd on base.raw, with writes; disk.raw is what it shows.
make_disk ()
{
  make_base base.raw 400001
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  oracle "$seed" --ops 40 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" disk.raw
  stop "$pid"
}

is_disk ()
{
  serve_plain top.fvd read-only=true
  assert_same_as disk.raw "$uri"
  stop "$pid"
}

# repaired TEXT: a check warns, a repair mends TEXT, and then all is well.
repaired ()
{
  run -0 "$NBDCHAIN" check top.fvd
  [[ $output == *"warning: "* ]]
  run -0 "$NBDCHAIN" check --repair top.fvd
  [[ $output == *"repaired: "*"$1"*"top.fvd: no errors; "* ]]
  run -0 "$NBDCHAIN" check --repair top.fvd
  [[ $output != *"repaired"* ]]
  [[ $output != *"warning"* ]]
  is_disk
}

# free_place: set $place to where a block is in top.fvd that is not allocated.
free_place ()
{
  local data_offset
  data_offset=$(field top.fvd 144 8)
  place=$("$NBDCHAIN" map --json top.fvd |
    python3 -c 'import json, sys
for e in json.load(sys.stdin)["extents"]:
  first = -(-e["offset"] // 4096) * 4096
  if e["layer"] != 0 and first + 4096 <= e["offset"] + e["length"]:
    print(int(sys.argv[1]) + first)
    break' "$data_offset")
  [ -n "$place" ]
}

@test "a sound image is not written" {
  make_disk
  local before
  before=$(sha256sum top.fvd)
  run -0 "$NBDCHAIN" check --repair top.fvd
  [[ $output != *repaired* ]]
  [ "$(sha256sum top.fvd)" = "$before" ]
}

@test "storage in blocks that are not allocated is given back" {
  make_disk
  local place
  free_place
  poke top.fvd "$place"
  run -0 --separate-stderr "$NBDCHAIN" check --json top.fvd
  [ "$(python3 -c 'import json, sys
print(json.loads(sys.argv[1])["leaked"])' "$output")" = 4096 ]
  repaired "4096 bytes that belong to no block were given back"
}

@test "so is what lies behind the end of the disk" {
  make_disk
  local size
  size=$(stat -c %s top.fvd)
  truncate -s +1M top.fvd
  poke top.fvd $((size + 700000))
  repaired "1048576 bytes that belong to no block were given back"
  [ "$(stat -c %s top.fvd)" = "$size" ]
}

@test "so are the places of a compact image that no chunk has" {
  make_base base.raw 400001
  make_overlay top.fvd base.raw --compact --grow-unit 1M 8M
  serve_plain top.fvd
  nbdsh -u "$uri" -c 'for i in (5, 1, 3, 0): h.pwrite(b"x" * 65536, i << 20)'
  stop "$pid"
  local before
  before=$(stat -c %s top.fvd)
  # The first and the third place: of a file only what was written.
  "$NBDCHAIN" resize --shrink top.fvd 1100000
  "$NBDCHAIN" resize top.fvd 7M
  serve_plain top.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"y" * 9000, 6 << 20)'
  nbdcopy "$uri" disk.raw
  stop "$pid"
  repaired "131072 bytes that belong to no block were given back"
  [ "$(stat -c %s top.fvd)" = $((before + (1 << 20))) ]
}

@test "on a device such places are told, and stay" {
  truncate -s 20M disk.img
  loop_device disk.img
  "$NBDCHAIN" create --compact --grow-unit 1M "$device" 8M
  serve_plain "$device"
  nbdsh -u "$uri" -c 'for i in (5, 1, 3, 0): h.pwrite(b"x" * 65536, i << 20)'
  stop "$pid"
  "$NBDCHAIN" resize --shrink "$device" 1100000
  run -0 --separate-stderr "$NBDCHAIN" check --repair --json "$device"
  jq -e '.leaked == 2097152 and .repairs == []' <<<"$output"
  serve_plain "$device" read-only=true
  nbdsh -u "$uri" -c 'assert h.pread(65536, 0) == h.pread(1100000 - 1048576, 1 << 20) + \
    b"x" * (65536 - 1100000 + 1048576)'
}

@test "a damaged copy of the header is written again, whichever it is" {
  make_disk
  poke top.fvd 200
  repaired "the damaged copy of the header was written again"
  poke top.fvd 4296
  repaired "the damaged copy of the header was written again"
  poke top.fvd 200
  is_disk
}

@test "an image that was not closed in order is recovered" {
  make_disk
  serve_plain top.fvd
  oracle $((seed + 1)) --ops 30 --base disk.raw --max-size 20000 "$uri"
  nbdcopy "$uri" disk.raw.new
  stop_hard "$pid"
  mv disk.raw.new disk.raw
  repaired "the image is closed in order, its journal empty"
}

@test "bits behind the last block are cleared" {
  make_disk
  serve_plain top.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 100000, 300001)' -c 'h.flush()'
  stop "$pid"
  local page
  page=$(field top.fvd 104 8)
  dd if=top.fvd of=page bs=512 skip=$((page / 512)) count=1 status=none
  "$NBDCHAIN" resize --shrink top.fvd 350000
  dd if=page of=top.fvd bs=512 seek=$((page / 512)) conv=notrunc status=none
  serve_plain top.fvd read-only=true
  nbdcopy "$uri" disk.raw
  stop "$pid"
  repaired "bits behind the last block were cleared"
}

@test "a torn profile is cleared" {
  make_disk
  poke top.fvd $(($(field top.fvd 168 8) + 100))
  repaired "of the prefetch profile"
}

@test "all at once, and told as JSON" {
  make_disk
  local place
  free_place
  poke top.fvd "$place"
  poke top.fvd 4296
  poke top.fvd "$(field top.fvd 168 8)"
  truncate -s +5000 top.fvd
  run -0 --separate-stderr "$NBDCHAIN" check --repair --json top.fvd
  python3 -c 'import json, sys
d = json.loads(sys.argv[1])
assert len(d["repairs"]) == 4, d
assert d["errors"] == d["warnings"] == d["leaked"] == 0, d' "$output"
  is_disk
}

@test "an image with an error is not touched" {
  make_disk
  local before page place
  page=$(field top.fvd 104 8)
  free_place
  poke top.fvd "$place"
  poke top.fvd "$page"
  before=$(sha256sum top.fvd)
  run -3 "$NBDCHAIN" check --repair top.fvd
  [[ $output == *"error: bitmap page 0"* ]]
  [[ $output != *repaired* ]]
  [ "$(sha256sum top.fvd)" = "$before" ]
}

@test "a retired image, one in use, and a chain are refused" {
  make_disk
  "$NBDCHAIN" snapshot top.fvd new.fvd
  truncate -s +5000 top.fvd
  run -1 "$NBDCHAIN" check --repair top.fvd
  [[ $output == *retired*new.fvd* ]]
  serve_plain new.fvd
  run -1 "$NBDCHAIN" check --repair new.fvd
  [[ $output == *"in use"* ]]
  stop "$pid"
  run -2 "$NBDCHAIN" check --repair --chain new.fvd
  [[ $output == *"--repair"*"--chain"* ]]
}
