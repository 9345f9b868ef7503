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
  refused top.fvd "is marked as the data file of another image"
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
  refused above.fvd "is marked as the data file of another image"
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
  run -0 make_overlay top.fvd base.raw --data-file "$device"
  # It cannot carry a mark, so it is named each time.
  [[ $output == *"--data-file "*"$device"* ]]
  refused top.fvd "allow="
  run "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" top.fvd allow=/dev --run true
  [[ $output == *"is a device"*"data-file=\"$device\""* ]]
  serve_plain top.fvd data-file="$device"
  oracle "$seed" --ops 400 --base base.raw --state state --connections 2 \
    "$uri"
  stop "$pid"
  serve_plain top.fvd allow=/dev read-only=true
  stop "$pid"
  serve top.fvd --data-file "$device"
  oracle 7 --ops 400 --base base.raw --state state --connections 2 "$uri"
  stop "$pid"
}

# --- the right to write to it ----------------------------------------------

# unmark FILE: as a copy that does not know such attributes leaves it.
unmark ()
{
  /usr/bin/python3 -c 'import os, sys
os.removexattr(sys.argv[1], "user.nbdchain.image")' "$1"
}

# mark FILE IMAGE: as that of IMAGE.
mark ()
{
  /usr/bin/python3 -c 'import os, sys
os.setxattr(sys.argv[1], "user.nbdchain.image", sys.argv[2].encode())' \
    "$1" "$("$NBDCHAIN" info --json "$2" | jq -r .fvd.uuid)"
}

# demark IMAGE: it does not say any more that its data file has a mark.
demark ()
{
  /usr/bin/python3 - "$1" <<'END'
import ctypes, struct, sys
xxhash = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
xxhash.restype = ctypes.c_uint64
xxhash.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
with open(sys.argv[1], "r+b") as f:
    for copy in 0, 4096:
        f.seek(copy)
        h = bytearray(f.read(4096))
        if h[:8] == b"NBDCFVD\n":
            struct.pack_into("<I", h, 76, struct.unpack_from("<I", h, 76)[0] & 15)
            struct.pack_into("<Q", h, 4088, xxhash(bytes(h[:4088]), 4088))
            f.seek(copy)
            f.write(h)
END
}

# not_written TEXT [OPTION...]: whatever would write to top.fvd refuses, with
# TEXT, and data.raw stays as it is.
not_written ()
{
  local text=$1 command
  shift
  cp data.raw data.before
  for command in serve "resize --shrink top.fvd 4096" "stream top.fvd" \
                 "rebase -b  top.fvd"; do
    case $command in
      serve) run -1 "$NBDCHAIN" serve top.fvd -U "$PWD/s" "$@" ;;
      rebase*) run -1 "$NBDCHAIN" rebase -b '' top.fvd "$@" ;;
      *)
        # shellcheck disable=SC2086
        run -1 "$NBDCHAIN" $command "$@" ;;
    esac
    echo "$command: $output"
    [[ $output == *"$text"* ]]
  done
  cmp data.raw data.before
}

@test "a file that carries no mark is written on the operator's word only" {
  make_pair
  unmark data.raw
  demark top.fvd
  not_written "--data-file \"$PWD/data.raw\""
  [[ $output == *"carries no mark"* ]]
  # To read it is another right.
  serve_plain top.fvd read-only=true
  assert_same_as base.raw "$uri"
  stop "$pid"
  "$NBDCHAIN" map top.fvd >/dev/null
  "$NBDCHAIN" check --chain top.fvd
  serve top.fvd --data-file data.raw
  qemu-io -f raw -c "write -P 7 5000 70000" "$uri" >/dev/null
  stop "$pid"
  serve_plain top.fvd data-file=data.raw
  qemu-io -f raw -c "read -P 7 5000 70000" "$uri" >/dev/null
  stop "$pid"
  "$NBDCHAIN" rebase -b base.raw -F raw --data-file data.raw top.fvd
  "$NBDCHAIN" stream --data-file data.raw top.fvd
  "$NBDCHAIN" resize --data-file data.raw top.fvd +4K
  [ "$(stat -c %s data.raw)" -eq 3004097 ]
}

@test "what the message of a refusal names is enough" {
  make_pair
  unmark data.raw
  demark top.fvd
  run -1 "$NBDCHAIN" serve top.fvd -U "$PWD/s"
  [[ $output =~ --data-file\ \"([^\"]+)\" ]]
  serve top.fvd --data-file "${BASH_REMATCH[1]}"
  stop "$pid"
}

@test "a file that lost its mark in a copy is written on the operator's word" {
  make_pair
  unmark data.raw
  refused top.fvd "data-file="
  not_written "is not marked as the data file"
  serve top.fvd --data-file data.raw
  stop "$pid"
  # A read-only disk of it, too.
  run ! "$NBDCHAIN" serve top.fvd -r -U "$PWD/s"
  serve top.fvd -r --data-file data.raw
  stop "$pid"
}

@test "the data file of another image is not written, whoever names it" {
  make_pair
  "$NBDCHAIN" create --data-file other.raw other.fvd 3000001 >/dev/null
  not_written "other.raw: is marked as the data file of another image" \
    --data-file other.raw
  mv other.raw data.raw
  not_written "is marked as the data file of another image"
  demark top.fvd
  not_written "is marked as the data file of another image"
}

@test "a mark counts only if image and data file have one owner" {
  [ "$(id -u)" -eq 0 ] || skip "needs root, to give files away"
  make_pair
  # Somebody who can read the image copies its UUID, and names the data file.
  cp top.fvd mine.fvd
  chown 54321 mine.fvd
  mv mine.fvd top.fvd
  not_written "top.fvd' to user 54321"
  [[ $output == *"--data-file \"$PWD/data.raw\""* ]]
  serve_plain top.fvd read-only=true
  stop "$pid"
  serve top.fvd --data-file data.raw
  stop "$pid"
  chown 54321 data.raw
  serve top.fvd
  stop "$pid"
}

@test "an image does not make anybody write to the backing of another" {
  make_base base.raw 1048576
  cp base.raw before
  make_overlay other.fvd base.raw
  "$NBDCHAIN" create --data-file data.raw top.fvd 1M >/dev/null
  mv base.raw data.raw
  demark top.fvd
  not_written "carries no mark"
  cmp data.raw before
}

@test "--data-file is for images with a data file" {
  make_base base.raw 4096
  make_overlay top.fvd base.raw
  touch data.raw
  not_written "has no data file" --data-file data.raw
}
