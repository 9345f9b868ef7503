#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Zeros of the backing that are recorded when an image is made.
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2154             # common.bash sets these

load common

# zeros IMAGE: bytes recorded.
zeros ()
{
  "$NBDCHAIN" info --json "$1" | jq .allocated
}

# make_holes FILE: 16 MiB, of which 8 are holes, one of them in a block's
# middle, and an end that is no block.
make_holes ()
{
  head -c 14680064 /dev/urandom >"$1"
  fallocate -p -o 4194304 -l 6291456 "$1"
  truncate -s 16777000 "$1"
}

@test "whole blocks of zeros are recorded, also the short one at the end" {
  make_holes base.raw
  make_overlay top.fvd base.raw --zero-in-base
  [ "$(zeros top.fvd)" -eq $((6291456 + 2097152)) ]
  make_overlay big.fvd base.raw --zero-in-base --block-size 2M
  [ "$(zeros big.fvd)" -eq $((6291456 + 2097152)) ]
  make_overlay longer.fvd base.raw 20M --zero-in-base
  [ "$(zeros longer.fvd)" -eq $((6291456 + 2097152)) ]
  make_overlay shorter.fvd base.raw 5M --zero-in-base
  [ "$(zeros shorter.fvd)" -eq $((5 * 1048576 - 4194304)) ]
  "$NBDCHAIN" check top.fvd
  serve_plain top.fvd
  cmp base.raw <(nbdcopy "$uri" -)
}

@test "they need the base no more" {
  make_holes base.raw
  serve_raw base base.raw
  local base_pid=$pid base=$uri
  "$NBDCHAIN" create -b "$base" -F raw --zero-in-base top.fvd
  # A busy machine may keep the base from its work for longer than a second.
  serve_plain top.fvd allow="$base" retry=4
  # nbdkit has written its pid before the chain has its connections.
  [ "$(nbdinfo --size "$uri")" -eq 16777000 ]
  stop_hard "$base_pid"
  qemu-io -f raw -c "read -P 0 4M 6M" -c "write -P 9 5000000 100" \
    -c "read -P 9 5000000 100" "$uri"
  run ! qemu-io -f raw -c "read 0 4k" "$uri"
}

@test "a first write to them needs no record in the journal" {
  make_holes base.raw
  make_overlay top.fvd base.raw --zero-in-base
  serve_plain top.fvd
  qemu-io -f raw -c "write 4M 64k" -c flush -c "write 8M 8k" -c flush "$uri"
  [ "$("$NBDCHAIN" info --json top.fvd | jq .fvd.journal.used)" -eq 0 ]
  qemu-io -f raw -c "write 0 4k" -c flush "$uri"
  [ "$("$NBDCHAIN" info --json top.fvd | jq .fvd.journal.used)" -eq 512 ]
}

@test "a hole that does not say that it reads as zeros does not count" {
  make_base base.raw 1000000
  cat >odd.sh <<'EOF'
#!/bin/bash
case "$1" in
  thread_model) echo parallel ;;
  get_size) echo 8388608 ;;
  pread) dd if=/dev/zero bs="$3" count=1 status=none | tr '\0' x ;;
  can_extents) exit 0 ;;
  extents) echo 0 4194304 hole; echo 4194304 4194304 hole,zero ;;
  *) exit 2 ;;
esac
EOF
  chmod +x odd.sh
  serve_by odd "$NBDKIT" -f -- sh odd.sh
  "$NBDCHAIN" create -b "$uri" -F raw --zero-in-base top.fvd
  [ "$(zeros top.fvd)" -eq 4194304 ]
}

@test "the zeros of a whole chain below, whose references must be allowed" {
  make_holes base.raw
  mkdir a
  "$NBDCHAIN" create -b base.raw -F raw a/mid.fvd
  serve_plain a/mid.fvd "allow=$PWD"
  qemu-io -f raw -c "write 4M 1M" -c "write -z 0 1M" "$uri"
  stop "$pid"
  run -1 "$NBDCHAIN" create -b a/mid.fvd -F fvd --zero-in-base top.fvd
  [[ $output == *"allow"* ]]
  [ ! -e top.fvd ]
  "$NBDCHAIN" create -b a/mid.fvd -F fvd --zero-in-base --allow "$PWD" top.fvd
  [ "$(zeros top.fvd)" -eq $((6291456 + 2097152 - 1048576 + 1048576)) ]
}

@test "what does not go together is refused" {
  make_holes base.raw
  run -1 "$NBDCHAIN" create --zero-in-base top.fvd 1M
  [[ $output == *"only with a backing"* ]]
  run -1 "$NBDCHAIN" create -b base.raw -F raw --compact --zero-in-base top.fvd
  [[ $output == *"not in a compact image"* ]]
  run -2 "$NBDCHAIN" create -b base.raw -F raw --allow . top.fvd
  [[ $output == *"--allow goes with --zero-in-base"* ]]
}

# hostile SIZE MODE: the server of the base is peers/nbd-peer.py.
hostile ()
{
  start peer /usr/bin/python3 "$top_srcdir/tests/peers/nbd-peer.py" \
    "$PWD/peer.sock" "$@"
  wait_for 20 test -S peer.sock
  uri="nbd+unix:///?socket=$PWD/peer.sock"
}

# none_made TEXT [OPTION...]: no image is, and why is said in time.
none_made ()
{
  run -1 timeout 60 "$NBDCHAIN" create -b "$uri" -F raw --zero-in-base \
    --retry 1 top.fvd "${@:2}"
  [[ $output == *"$1"* ]]
  [ "$(echo top.fvd*)" = "top.fvd*" ]
}

@test "a remote that stalls is given up, as in a read" {
  hostile 1048576 mute
  none_made "peer.sock"
}

@test "a remote that answers reads, but not what is zeros, is given up" {
  hostile 1048576 status-mute
  none_made "does not answer requests for block status"
}

@test "a remote of absurd size is refused at once" {
  hostile 4611686018427387904 honest
  none_made "zeros can be looked for in at most 1125899906842624"
  # Not what is smaller.
  "$NBDCHAIN" create -b "$uri" -F raw --zero-in-base top.fvd 1M
}

@test "it is shown how far it is" {
  make_holes base.raw
  run -0 --separate-stderr "$NBDCHAIN" create -b base.raw -F raw \
    --zero-in-base --progress top.fvd
  [[ $stderr == *"looking for zeros"*"100 %"* ]]
}
