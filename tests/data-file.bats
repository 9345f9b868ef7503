#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Images whose data is in a file of its own: a raw image when everything is
# there, and never another image's.  What the disk reads as is for oracle.bats
# and powerloss.bats.
# shellcheck disable=SC2154             # common.bash sets these

load common

# make_pair [CREATE-OPTION...]: top.fvd over base.raw, data in data.raw.
make_pair ()
{
  make_base base.raw 3000001
  make_overlay top.fvd base.raw --data-file data.raw "$@"
}

# refused IMAGE TEXT: it cannot be served, and the message says TEXT.
refused ()
{
  nbdkit_with_chain
  run "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" "$1" --run true
  echo "$output"
  [ "$status" -ne 0 ]
  [[ $output == *"$2"* ]]
}

@test "populated, it is by itself a raw image of the disk" {
  make_pair
  serve_plain top.fvd
  qemu-io -f raw -c "write -P 7 5000 70000" "$uri" >/dev/null
  nbdsh -u "$uri" -c "h.cache(h.get_size() - 1, 0)" \
    -c "h.cache(1, h.get_size() - 1)"
  nbdcopy "$uri" disk.raw
  stop "$pid"
  qemu-img compare -f raw -F raw data.raw disk.raw
  cmp data.raw disk.raw
}

@test "info names it, and the image itself stays small" {
  make_pair
  "$NBDCHAIN" info top.fvd | grep "data file: *data.raw"
  [ "$("$NBDCHAIN" info --json top.fvd | jq -r .fvd.data_file)" = data.raw ]
  [ "$(stat -c %s data.raw)" -eq 3000001 ]
  [ "$(stat -c %s top.fvd)" -lt 20000000 ]
}

@test "one that exists already is not taken, and nothing is left" {
  echo precious >data.raw
  run -1 "$NBDCHAIN" create --data-file data.raw top.fvd 1M
  [[ $output == *"data.raw: exists"* ]]
  [ ! -e top.fvd ]
  echo precious | cmp - data.raw
  touch top2.fvd
  run -1 "$NBDCHAIN" create --data-file data2.raw top2.fvd 1M
  [ ! -e data2.raw ]
}

@test "another file in its place is refused" {
  make_pair
  "$NBDCHAIN" create --data-file other.raw other.fvd 3000001 >/dev/null
  mv data.raw aside.raw
  refused top.fvd "data.raw"
  mv other.raw data.raw
  refused top.fvd "is not marked as the data file of"
  rm data.raw
  cp aside.raw data.raw
  refused top.fvd "is not marked as the data file of"
  mv aside.raw data.raw
  serve_plain top.fvd
}

@test "a shorter one is refused" {
  make_pair
  truncate -s 3000000 data.raw
  refused top.fvd "has 3000000 bytes, but as the data file of"
}

@test "the path is followed like that of a backing" {
  make_base base.raw 1000000
  mkdir dir
  "$NBDCHAIN" create --data-file data.raw dir/top.fvd 1M >/dev/null
  refused dir/top.fvd "allow="
  serve_plain dir/top.fvd "allow=$PWD"
  stop "$pid"
  mkdir sub
  "$NBDCHAIN" create --data-file sub/data.raw below.fvd 1M >/dev/null
  serve_plain below.fvd
}

@test "one that somebody writes to is refused, and nobody else writes to ours" {
  make_pair
  # It locks the file some time after it listens, and before it tells its pid.
  start qemu qemu-nbd -f raw -k "$PWD/q" --pid-file qemu.pid -t data.raw
  wait_for 20 is_ready_or_gone qemu.pid "$pid"
  [ -s qemu.pid ]
  refused top.fvd "data.raw: in use"
  stop "$pid"
  serve_plain top.fvd
  run ! qemu-io -f raw -c "write 0 512" data.raw
  [[ $output == *lock* ]]
}

@test "an image that says it is its own data file, or shares one, is refused" {
  make_pair
  ln data.raw hard.raw
  make_overlay above.fvd base.raw --data-file above.raw
  # Both name one file then, with one mark: that of the lower one.
  rm above.raw
  ln data.raw above.raw
  refused above.fvd "is not marked"
  "$NBDCHAIN" create -b data.raw -F raw --data-file fresh.raw mad.fvd \
    >/dev/null
  rm fresh.raw
  refused mad.fvd "fresh.raw"
}

@test "no acknowledged write is lost when the server is killed" {
  make_pair
  "$harness/killer" --serve --kills 8 --seed "$seed" --max-ops 200 \
    --max-size 65536 --inflight 4 --base base.raw --socket "$PWD/s" -- \
    "$NBDCHAIN" serve top.fvd -U "$PWD/s" 2>serve.err
}

@test "a block device" {
  make_base base.raw 3000000
  truncate -s 4M device.raw
  yes old | head -c 4M | dd of=device.raw conv=notrunc status=none
  loop_device device.raw
  make_overlay top.fvd base.raw --data-file "$device"
  serve_plain top.fvd allow=/dev
  oracle "$seed" --ops 400 --base base.raw --state state --connections 2 \
    "$uri"
  stop "$pid"
  serve top.fvd --allow /dev
  oracle 7 --ops 400 --base base.raw --state state --connections 2 "$uri"
  stop "$pid"
}
