#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# A profile: what is read first is recorded, shown, carried to another image,
# and prefetched there before all else.
# shellcheck disable=SC2034,SC2154      # common.bash sets and uses these
# shellcheck disable=SC2030,SC2031      # a test is a subshell

load common
load qmp

# serve_overlay IMAGE [PARAMETER...]: by "nbdchain serve", with the filter.
serve_overlay ()
{
  local image=$1
  shift
  serve "$image" --prefetch --control qmp -- "$@"
}

# reads OFFSET COUNT...: a guest.
reads ()
{
  local commands=()
  while [ $# -gt 0 ]; do
    commands+=(-c "read $1 $2")
    shift 2
  done
  qemu-io -r -f raw "${commands[@]}" "$uri" >/dev/null
}

# ranges IMAGE: its profile, without the times.
ranges ()
{
  "$NBDCHAIN" profile show --json "$1" |
    member '[(r["offset"], r["length"]) for r in D["ranges"]]'
}

no_job ()
{
  [ "$(ask query-jobs | member D)" = "[]" ]
}

# local_bytes: that the active image holds, while it is served.
local_bytes ()
{
  ask query-named-block-nodes | member 'D[0]["x-allocated"]'
}

# holds BYTES
holds ()
{
  [ "$(local_bytes)" = "$1" ]
}

@test "what is read first is recorded, in order, and only once" {
  truncate -s 64M base.raw
  make_overlay top.fvd base.raw
  serve_overlay top.fvd prefetch=off
  reads 50M 4k
  run -0 "$NBDCHAIN" profile record qmp start
  [ "$output" = recording ]
  reads 32M 64k 1M 4k 32M 128k 1M 512
  qemu-io -f raw -c 'write 8M 64k' "$uri" >/dev/null
  [ "$(ask x-query-prefetch | member 'D["profile"]["recorded-bytes"]')" = \
    147456 ]
  run -0 "$NBDCHAIN" profile record qmp stop
  [ "${lines[0]}" = "stored a profile of 3 ranges, 144 KiB" ]
  [ "${lines[1]}" = "to have it read first: nbdchain serve --prefetch; or, for good, when the server has ended: nbdchain amend --prefetch-profile=on $PWD/top.fvd" ]
  [ "${#lines[@]}" -eq 2 ]
  # It can be looked at while the image is in use.
  [ "$(ranges top.fvd)" = \
    "[(33554432, 65536), (1048576, 16384), (33619968, 65536)]" ]
  run -1 "$NBDCHAIN" profile record qmp stop
  [[ $output == *"nothing is being recorded"* ]]
  stop "$pid"
  [ "$(ranges top.fvd)" = \
    "[(33554432, 65536), (1048576, 16384), (33619968, 65536)]" ]
  "$NBDCHAIN" check top.fvd
}

@test "without a recording, or what records, it is said what is missing" {
  truncate -s 64M base.raw
  make_overlay top.fvd base.raw
  local none="nbdchain: qmp: nothing is being recorded: start a recording first (one that was under way when a server was killed is lost)"
  serve_overlay top.fvd prefetch=off
  run -1 "$NBDCHAIN" profile record qmp stop
  [ "$output" = "$none" ]
  "$NBDCHAIN" profile record qmp start
  reads 1M 64k
  kill -KILL "$(pgrep -P "$pid")"
  is_lost ()
  {
    run "$NBDCHAIN" profile record qmp stop
    [ "$output" = "$none" ]
  }
  wait_for 20 is_lost
  stop "$pid"

  serve top.fvd --control qmp
  for what in start stop; do
    run -1 "$NBDCHAIN" profile record qmp $what
    [ "$output" = 'nbdchain: qmp: its server cannot record, as it does not prefetch: start it with "nbdchain serve --prefetch"' ]
  done
}

@test "the filter can record from the start to the end" {
  truncate -s 64M base.raw
  make_overlay top.fvd base.raw
  serve_overlay top.fvd prefetch=off prefetch-record=true
  reads 3M 16k
  stop "$pid"
  [ "$(ranges top.fvd)" = "[(3145728, 16384)]" ]
}

@test "it is drawn" {
  truncate -s 64M base.raw
  make_overlay top.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 0 65536' \
    '500 33554432 1048576' '2000 67043328 65536' >boot
  "$NBDCHAIN" profile import top.fvd boot
  COLUMNS=56 run -0 "$NBDCHAIN" profile show top.fvd
  [ "${lines[0]}" = "top.fvd: 3 ranges, 1.1 MiB of 64 MiB, in 2.0 s" ]
  [ "${#lines[@]}" -eq 18 ]
  [[ ${lines[1]} =~ ^\ +0\ \|[.:=+*%-]\ +\|$ ]]
  [[ ${lines[9]} =~ ^\ +32\ MiB\ \|\ {9,10}#\ +\|$ ]]
  [[ ${lines[16]} =~ ^\ +60\ MiB\ \|\ +[.:=+*%-]\|$ ]]
  [[ ${lines[17]} =~ ^\ +0\ +2\.0\ s$ ]]
}

@test "it goes out and in as text, to an image over the same base" {
  truncate -s 64M base.raw
  "$NBDCHAIN" create -b base.raw -F raw golden.fvd >/dev/null
  "$NBDCHAIN" create -b golden.fvd -F fvd one.fvd >/dev/null
  "$NBDCHAIN" create -b golden.fvd -F fvd two.fvd >/dev/null
  "$NBDCHAIN" create -b base.raw -F raw other.fvd >/dev/null
  "$NBDCHAIN" create -b other.fvd -F fvd three.fvd >/dev/null
  run -1 "$NBDCHAIN" profile export one.fvd
  [[ $output == *"has no profile"* ]]
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 4096 8192' \
    '7 1048576 65536' >boot
  run -0 "$NBDCHAIN" profile import one.fvd boot
  [ "${lines[0]}" = "one.fvd has a profile of 2 ranges, 72 KiB" ]
  [ "${lines[1]}" = "to have it read first: nbdchain serve --prefetch; or, for good: nbdchain amend --prefetch-profile=on one.fvd" ]
  [ "${#lines[@]}" -eq 2 ]
  "$NBDCHAIN" profile export one.fvd out
  grep -qx "base $("$NBDCHAIN" info --json golden.fvd |
    member 'D["fvd"]["uuid"]')" out
  "$NBDCHAIN" profile export one.fvd | cmp - out
  "$NBDCHAIN" profile import two.fvd - <out
  "$NBDCHAIN" profile export two.fvd | cmp - out

  run -1 "$NBDCHAIN" profile import three.fvd out
  [[ $output == *"was recorded over the base"*"--force"* ]]
  "$NBDCHAIN" profile import --force three.fvd out
  [ "$(ranges three.fvd)" = "[(4096, 8192), (1048576, 65536)]" ]
}

# refuses_to_replace FILE WHAT: an export says WHAT, and FILE stays as it is.
refuses_to_replace ()
{
  local found
  found=$(stat -c '%i %s %y' "$1")
  [ ! -f "$1" ] || cp "$1" before
  run -1 "$NBDCHAIN" profile export one.fvd "$1"
  [ "$output" = "nbdchain: $1: is there already, $2, and stays as it is: give the profile another name, or remove that first" ]
  [ "$(stat -c '%i %s %y' "$1")" = "$found" ]
  [ ! -f "$1" ] || cmp before "$1"
}

@test "an export replaces nothing but a profile" {
  truncate -s 64M base.raw
  make_overlay one.fvd base.raw
  make_overlay two.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 4096 8192' >boot
  "$NBDCHAIN" profile import one.fvd boot
  "$NBDCHAIN" profile export one.fvd >want

  # A profile and an empty file are, by a new file; with its mode.
  chmod 600 boot
  ln boot link
  "$NBDCHAIN" profile export one.fvd boot
  cmp want boot
  [ "$(stat -c %a boot)" = 600 ]
  run ! cmp -s want link
  : >empty
  "$NBDCHAIN" profile export one.fvd ./empty
  cmp want empty
  # What has the name that the new file would have had stays.
  # shellcheck disable=SC2016     # the inner shell's
  sh -c 'printf %x $$ >number; echo mine >new.new.$(cat number)
         exec "$@"' - "$NBDCHAIN" profile export one.fvd new
  cmp want new
  [ "$(cat "new.new.$(cat number)")" = mine ]
  rm "new.new.$(cat number)"
  run ! compgen -G '*.new.*'

  for file in one.fvd two.fvd base.raw; do
    refuses_to_replace $file "is no profile"
  done
  # A guest can write what a profile begins with.
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' >raw
  truncate -s 4096 raw
  refuses_to_replace raw "is no profile"
  for file in two.fvd want nowhere; do
    ln -sfn $file symlink
    refuses_to_replace symlink "is a symbolic link"
  done
  [ ! -e nowhere ]
  mkdir folder
  refuses_to_replace folder "is no regular file"
  run -1 "$NBDCHAIN" profile export one.fvd none/boot
  [[ $output == *"none/boot: No such file or directory" ]]
  run ! compgen -G '*.new.*'
  "$NBDCHAIN" check one.fvd
  "$NBDCHAIN" check two.fvd
}

@test "an export leaves an image that is served, and an old profile on a full disk" {
  truncate -s 64M base.raw
  make_overlay one.fvd base.raw
  make_overlay two.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 4096 8192' >boot
  "$NBDCHAIN" profile import one.fvd boot
  serve two.fvd
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri" >/dev/null
  refuses_to_replace two.fvd "is no profile"
  stop "$pid"
  "$NBDCHAIN" check two.fvd

  cp boot before
  # shellcheck disable=SC2016     # the inner shell's
  run -1 sh -c 'ulimit -f 0; trap "" XFSZ; exec "$@"' - \
    "$NBDCHAIN" profile export one.fvd boot
  [[ $output == *"boot: File too large" ]]
  cmp boot before
  run ! compgen -G 'boot.new.*'
}

@test "an export goes into a pipe, too" {
  truncate -s 64M base.raw
  make_overlay one.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 4096 8192' >boot
  "$NBDCHAIN" profile import one.fvd boot
  "$NBDCHAIN" profile export one.fvd >want
  "$NBDCHAIN" profile export one.fvd - | cmp - want
  "$NBDCHAIN" profile export one.fvd /dev/stdout | cmp - want
  [ ! -e ./- ]
  run -1 "$NBDCHAIN" profile export one.fvd /dev/full
  [[ $output == *"/dev/full: No space left on device" ]]
}

@test "what is no profile, or no image, is refused" {
  truncate -s 64M base.raw
  make_overlay top.fvd base.raw
  echo hello >boot
  run -1 "$NBDCHAIN" profile import top.fvd boot
  [[ $output == *"boot: line 1: not 'nbdchain-profile 1'"* ]]
  run -1 "$NBDCHAIN" profile import top.fvd nowhere
  [[ $output == *"nowhere: No such file"* ]]
  printf '%s\n' 'nbdchain-profile 1' 'size 9' '0 5 5' >boot
  run -1 "$NBDCHAIN" profile import top.fvd boot
  [[ $output == *"line 3: 5 bytes at 5 are not inside a disk of 9"* ]]
  run -1 "$NBDCHAIN" profile show base.raw
  [[ $output == *"not an fvd image"* ]]
  serve_overlay top.fvd prefetch=off
  printf '%s\n' 'nbdchain-profile 1' 'size 9' '0 0 5' >boot
  run -1 "$NBDCHAIN" profile import top.fvd boot
  [[ $output == *"in use"* ]]
  run -2 "$NBDCHAIN" profile record qmp begin
  [[ $output == *"start|stop"* ]]
}

@test "it is prefetched before the rest, without regard to the delay" {
  make_base base.raw 67108864
  make_overlay top.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 33554432 65536' \
    '7 1048576 16384' >boot
  "$NBDCHAIN" profile import top.fvd boot
  serve_overlay top.fvd prefetch-start-delay=600
  delayed ()
  {
    [ "$(ask query-jobs | member 'D[0]["x-limit"]')" = delay ]
  }
  wait_for 20 delayed
  wait_for 20 holds 81920
  reads 33554432 65536 1048576 4096 5M 16384
  ask x-query-prefetch >info
  [ "$(member 'D["profile"]["bytes"]' <info)" = 81920 ]
  [ "$(member 'D["profile"]["touched"]' <info)" = 98304 ]
  [ "$(member 'D["profile"]["hit"]' <info)" = 81920 ]
}

@test "an image that is to be prefetched has what it names read first" {
  make_base base.raw 67108864
  "$NBDCHAIN" create -b base.raw -F raw --prefetch=on one.fvd >/dev/null
  serve one.fvd --control qmp -- prefetch-start-delay=600
  run -0 "$NBDCHAIN" profile record qmp start
  reads 32M 64k
  run -0 "$NBDCHAIN" profile record qmp stop
  [ "$output" = "stored a profile of 1 range, 64 KiB" ]
  stop "$pid"
  "$NBDCHAIN" profile export one.fvd boot

  make_overlay two.fvd base.raw
  "$NBDCHAIN" amend --prefetch=on two.fvd
  run -0 "$NBDCHAIN" profile import two.fvd boot
  [ "$output" = "two.fvd has a profile of 1 range, 64 KiB" ]
  serve two.fvd --control qmp -- prefetch-start-delay=600
  wait_for 20 holds 65536
  [ "$(ask x-query-prefetch | member 'D["profile"]["bytes"]')" = 65536 ]
}

@test "a base has nothing to prefetch, and its profile is for its overlays" {
  "$NBDCHAIN" create golden.fvd 64M
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 4096 8192' >boot
  run -0 "$NBDCHAIN" profile import golden.fvd boot
  [ "$output" = "golden.fvd has a profile of 1 range, 8 KiB" ]
}

@test "it can be all that is prefetched, also that of a lower layer" {
  make_base base.raw 67108864
  make_overlay mid.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 33554432 65536' >boot
  "$NBDCHAIN" profile import mid.fvd boot
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd >/dev/null
  serve_overlay top.fvd prefetch=off
  wait_for 20 no_job
  [ "$(local_bytes)" = 65536 ]
  assert_same_as base.raw "$uri"
}

@test "a profile of a larger disk is cut" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  printf '%s\n' 'nbdchain-profile 1' 'size 67108864' '0 33554432 65536' \
    '7 1044480 65536' >boot
  "$NBDCHAIN" profile import top.fvd boot
  [ "$(ranges top.fvd)" = "[(1044480, 4096)]" ]
}
