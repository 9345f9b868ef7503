#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# "nbdchain resize": what it takes and says, and the disk that is served
# afterwards.  unit/test-resize compares at random sizes.
# shellcheck disable=SC2154             # common.bash sets these

load common

# size IMAGE: of its disk.
size ()
{
  "$NBDCHAIN" info --json "$1" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["size"])'
}

@test "sizes are absolute, or relative with + and -" {
  "$NBDCHAIN" create a.fvd 1M
  local argument want
  while read -r argument want; do
    "$NBDCHAIN" resize --shrink a.fvd "$argument"
    [ "$(size a.fvd)" = "$want" ]
    "$NBDCHAIN" check a.fvd
  done <<'END'
3M 3145728
+1 3145729
-2M 1048577
-1 1048576
100 100
+1.5K 1636
-1636 0
+0 0
8G 8589934592
END
  run -0 "$NBDCHAIN" resize --json a.fvd +1G
  python3 -c 'import json, sys
assert json.loads(sys.argv[1]) == {"path": "a.fvd", "old_size": 8 << 30,
                                   "size": 9 << 30}' "$output"
}

@test "what makes no sense is refused, and the image stays as it is" {
  "$NBDCHAIN" create a.fvd 1M
  local before argument
  before=$(sha256sum a.fvd)
  for argument in '' x 1X + - +x '--1' '+-1' ' 1'; do
    run -2 "$NBDCHAIN" resize --shrink a.fvd "$argument"
  done
  run -2 "$NBDCHAIN" resize a.fvd
  run -2 "$NBDCHAIN" resize 1M
  run -2 "$NBDCHAIN" resize a.fvd 1M 2M
  run -1 "$NBDCHAIN" resize a.fvd 1000K
  [[ $output == *"1024000"*--shrink* ]]
  run -1 "$NBDCHAIN" resize a.fvd -1
  [[ $output == *--shrink* ]]
  run -1 "$NBDCHAIN" resize --shrink a.fvd -2M
  [[ $output == *"cannot lose 2097152"* ]]
  run -1 "$NBDCHAIN" resize a.fvd 1P
  [[ $output == *"has room for"*"create -b"* ]]
  [ "$(sha256sum a.fvd)" = "$before" ]
}

@test "raw, retired and used images are refused, with what to do" {
  truncate -s 1M raw.img
  run -1 "$NBDCHAIN" resize raw.img 2M
  [[ $output == *"not an fvd image"*"truncate(1)"*"qemu-img resize"* ]]
  "$NBDCHAIN" create a.fvd 1M
  "$NBDCHAIN" snapshot a.fvd b.fvd
  run -1 "$NBDCHAIN" resize a.fvd 2M
  [[ $output == *retired*b.fvd* ]]
  serve_plain b.fvd
  run -1 "$NBDCHAIN" resize b.fvd 2M
  [[ $output == *"in use"* ]]
  stop "$pid"
  "$NBDCHAIN" resize b.fvd 2M
}

@test "a damaged copy of the header does not bring the old size back" {
  local at
  for at in 200 4296; do
    "$NBDCHAIN" create a.fvd 3M
    "$NBDCHAIN" resize --shrink a.fvd 2M
    printf rubbish | dd of=a.fvd bs=1 seek=$at conv=notrunc status=none
    [ "$(size a.fvd)" = 2097152 ]
    "$NBDCHAIN" resize a.fvd 5M
    printf rubbish | dd of=a.fvd bs=1 seek=$at conv=notrunc status=none
    [ "$(size a.fvd)" = 5242880 ]
    rm a.fvd
  done
}

@test "a compact image: the places of what was cut off never come back" {
  "$NBDCHAIN" create --compact --grow-unit 1M a.fvd 300000001
  serve_plain a.fvd
  # In three sectors of the table: the first two keep something.
  nbdsh -u "$uri" -c 'for i in (5, 100, 130, 200, 259, 286):
    h.pwrite(b"%c" % (i % 256) * 9000, (i << 20) - 4000)' -c 'h.flush()'
  stop "$pid"
  local before
  before=$(stat -c %s a.fvd)
  "$NBDCHAIN" resize --shrink a.fvd $(((130 << 20) - 999))
  serve_plain a.fvd
  # The sector with the end is written again.
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 5000, 128 << 20)' -c 'h.flush()'
  stop "$pid"
  "$NBDCHAIN" resize a.fvd 500M
  [ "$(size a.fvd)" = $((500 << 20)) ]
  [ "$(stat -c %s a.fvd)" -le $((before + (2 << 20))) ]
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'want = bytearray(500 << 20)
for i in (5, 100, 130):
    want[(i << 20) - 4000:(i << 20) + 5000] = b"%c" % i * 9000' \
    -c 'want[128 << 20:(128 << 20) + 5000] = b"x" * 5000' \
    -c 'end = (130 << 20) - 999' -c 'want[end:] = bytes(len(want) - end)' \
    -c 'for at in range(0, len(want), 25 << 20):
    assert h.pread(25 << 20, at) == want[at:at + (25 << 20)], at' \
    -c 'for i in (130, 200, 286, 400): h.pwrite(b"y" * 8192, i << 20)' \
    -c 'for i in (130, 200, 286, 400):
    assert h.pread(10000, (i << 20) - 999) == \
      bytes(999) + b"y" * 8192 + bytes(809), i'
  stop "$pid"
  # 13 before, and a new one for each of these.
  "$NBDCHAIN" info --json a.fvd | jq -e '.fvd.compact.chunks == 17'
  "$NBDCHAIN" check a.fvd
  run -1 "$NBDCHAIN" resize a.fvd 1T
  [[ $output == *"has room for"*"create -b"* ]]
}

@test "a disk that was made larger is zeros behind, whatever the base has" {
  make_base base.raw 1000001
  "$NBDCHAIN" create -b base.raw -F raw a.fvd 500001
  "$NBDCHAIN" resize a.fvd 1200001
  head -c 500001 base.raw >want.raw
  truncate -s 1200001 want.raw
  serve_plain a.fvd
  assert_same_as want.raw "$uri"
  # Parts of blocks on both sides of the old end, and whole ones.
  oracle "$seed" --ops 300 --base want.raw --max-size 60000 "$uri"
  stop "$pid"
  "$NBDCHAIN" check a.fvd
}

@test "what was behind a smaller disk never comes back" {
  local layout
  make_base base.raw 100000
  for layout in --block-size=4K --compact; do
    make_overlay a.fvd base.raw "$layout"
    serve_plain a.fvd
    oracle "$seed" --ops 60 --base base.raw --max-size 60000 "$uri"
    nbdsh -u "$uri" -c 'h.pwrite(b"x" * 20000, 40000)'
    nbdcopy "$uri" now.raw
    stop "$pid"
    "$NBDCHAIN" resize --shrink a.fvd 50001
    "$NBDCHAIN" resize a.fvd 100000
    truncate -s 50001 now.raw
    truncate -s 100000 now.raw
    serve_plain a.fvd
    assert_same_as now.raw "$uri"
    stop "$pid"
    rm a.fvd now.raw
  done
}

@test "an image with a data file is resized with its data file" {
  make_base base.raw 300001
  mkdir data
  "$NBDCHAIN" create -b base.raw -F raw --data-file data/d.raw a.fvd
  run -1 "$NBDCHAIN" resize a.fvd 290000
  [[ $output == *--shrink* ]]
  "$NBDCHAIN" resize --shrink a.fvd 290000
  "$NBDCHAIN" resize a.fvd 310001
  [ "$(stat -c %s data/d.raw)" = 310001 ]
  head -c 290000 base.raw >want.raw
  truncate -s 310001 want.raw
  serve_plain a.fvd
  assert_same_as want.raw "$uri"
  oracle "$seed" --ops 200 --base want.raw --max-size 60000 "$uri"
  nbdcopy "$uri" now.raw
  stop "$pid"
  "$NBDCHAIN" resize --shrink a.fvd 250000
  "$NBDCHAIN" resize a.fvd 260000
  truncate -s 250000 now.raw
  truncate -s 260000 now.raw
  serve_plain a.fvd
  assert_same_as now.raw "$uri"
  stop "$pid"
  mkdir elsewhere
  mv data/d.raw elsewhere
  mv a.fvd data
  ln -s ../elsewhere/d.raw data/
  mkdir data/data
  ln -s ../../elsewhere/d.raw data/data/d.raw
  run -1 "$NBDCHAIN" resize data/a.fvd +1
  [[ $output == *--allow* ]]
  "$NBDCHAIN" resize --allow elsewhere data/a.fvd +1
}

@test "after a crash, a resize recovers the image first" {
  make_base base.raw 300001
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  "$NBDCHAIN" resize a.fvd +77777
  truncate -s 377778 now.raw
  serve_plain a.fvd
  assert_same_as now.raw "$uri"
}

@test "an overlay refuses a base that was shrunk, and cuts one that has grown" {
  "$NBDCHAIN" create base.fvd 1M
  "$NBDCHAIN" create -b base.fvd -F fvd top.fvd
  "$NBDCHAIN" resize base.fvd 2M
  run -0 "$NBDCHAIN" info --chain top.fvd
  run -0 "$NBDCHAIN" resize --shrink base.fvd 1000K
  [[ $output == *"overlay"*"refuses"* ]]
  run -1 "$NBDCHAIN" info --chain top.fvd
  [[ $output == *"base.fvd: has 1024000 bytes"* ]]
}

@test "room to grow takes no storage, on huge disks either" {
  local image
  for image in "1M 8G" "1T 8T" "2T 14T"; do
    "$NBDCHAIN" create a.fvd "${image% *}"
    "$NBDCHAIN" resize a.fvd "${image#* }"
    [ "$(stat -c %b a.fvd)" -le 4096 ]
    "$NBDCHAIN" check a.fvd
    rm a.fvd
  done
}

@test "an image on a block device is resized within the device" {
  truncate -s 20M disk.img
  loop_device disk.img
  tr '\0' x <disk.img >rubbish
  dd if=rubbish of="$device" bs=1M status=none conv=fsync
  "$NBDCHAIN" create "$device" 1M
  serve_plain "$device"
  nbdsh -u "$uri" -c 'h.pwrite(b"a" * (1 << 20), 0)' -c 'h.flush()'
  stop "$pid"
  "$NBDCHAIN" resize "$device" 1234567 --json
  "$NBDCHAIN" resize --shrink "$device" 1000001
  "$NBDCHAIN" resize "$device" 1010000
  serve_plain "$device"
  nbdsh -u "$uri" -c 'd = h.pread(1010000, 0)' \
    -c 'assert d == b"a" * 1000001 + bytes(9999)'
  stop "$pid"
  "$NBDCHAIN" check "$device"
  run -1 "$NBDCHAIN" resize "$device" 19M
  [[ $output == *"the device has 20971520 bytes"* ]]
  [ "$(size "$device")" = 1010000 ]
}
