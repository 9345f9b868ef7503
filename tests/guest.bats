#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# A real Linux guest on a chain: its kernel, file system and NBD client find
# what no other client of ours asks for.  The guest compares everything it
# reads with digests; scripts/guest-init lists the jobs named here.
# shellcheck disable=SC2154             # guest.bash sets these

load guest

setup_file ()
{
  "$top_srcdir/scripts/make-guest" "$guest" 3>&-
}

setup ()
{
  guest_setup
}

teardown ()
{
  guest_teardown
}

digest ()
{
  sha256sum <"$1"
}

@test "a guest boots from an overlay over a remote disk, and finds its files again after a restart" {
  before=$(digest "$guest/disk.raw")
  guest_remote "$guest/disk.raw"
  "$NBDCHAIN" create -b "$remote" -F raw top.fvd

  guest_serve top.fvd --allow "$remote" -U "$PWD/s.sock"
  guest_boot "$guest" "$uri" fsck digests write:first
  guest_end "$server"
  "$NBDCHAIN" check --allow "$remote" top.fvd

  guest_serve top.fvd --allow "$remote" -U "$PWD/s.sock"
  guest_boot "$guest" "$uri" fsck verify:first write:second
  guest_end "$server"
  "$NBDCHAIN" check --allow "$remote" top.fvd
  [ "$(digest "$guest/disk.raw")" = "$before" ]
}

@test "a guest sees its files through a snapshot, and writes on above it" {
  guest_remote "$guest/disk.raw"
  "$NBDCHAIN" create -b "$remote" -F raw mid.fvd
  guest_serve mid.fvd --allow "$remote" -U "$PWD/s.sock"
  guest_boot "$guest" "$uri" write:below
  guest_end "$server"

  "$NBDCHAIN" snapshot --allow "$remote" mid.fvd top.fvd
  before=$(digest mid.fvd)
  guest_serve top.fvd --allow "$remote" -U "$PWD/s.sock"
  guest_boot "$guest" "$uri" fsck verify:below write:above
  guest_boot "$guest" "$uri" fsck digests verify:below verify:above
  guest_end "$server"
  [ "$(digest mid.fvd)" = "$before" ]
}

@test "a guest makes a file system on a second disk, and fsck finds no fault" {
  truncate -s 1G base.raw
  "$NBDCHAIN" create -b base.raw -F raw mid.fvd
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd
  guest_serve top.fvd -U "$PWD/s.sock"
  guest_boot --disk2 "$uri" "$guest" "$guest/disk.raw" format:/dev/vdb
  guest_end "$server"
  "$NBDCHAIN" check top.fvd
}

@test "the kernel's own NBD client attaches over TCP with four connections" {
  truncate -s 1G base.raw
  "$NBDCHAIN" create -b base.raw -F raw top.fvd
  guest_serve top.fvd -p 0 -i 127.0.0.1
  [[ $uri =~ ^nbd://127\.0\.0\.1:([0-9]+)/$ ]]
  port=${BASH_REMATCH[1]}
  guest_boot --net "$guest" "$guest/disk.raw" "attach:$port" | tee report
  guest_end "$server"
  grep -q 'with 4 connections' report
  grep -q 'all jobs ok' report
  "$NBDCHAIN" check top.fvd
}

@test "a guest lives through a server that is killed again and again" {
  # With several threads nbdkit 1.32 aborts when a client goes away too early.
  guest_remote "$guest/disk.raw" -t 1
  "$NBDCHAIN" create -b "$remote" -F raw top.fvd
  guest_serve top.fvd --allow "$remote" -U "$PWD/s.sock"

  : >console
  truncate -s 4K signal
  guest_start guest "${boot_guest[@]}" --disk2 "$PWD/signal" "$guest" "$uri" \
    fsck endure:/dev/vdb
  booted=$started
  until_true 120 grep -q '^guest: enduring' console

  # At times it dies again before the guest is back.
  kills=0
  RANDOM=1
  while [ "$kills" -lt 8 ] && is_child "$booted"; do
    sleep "0.$((RANDOM % 8 + 1))"
    if pkill -KILL -P "$server"; then
      kills=$((kills + 1))
    fi
  done
  rounds=$(grep -c '^guest: round' console || :)
  until_true 120 said 'round' "$((rounds + 2))"
  printf enough | dd of=signal conv=notrunc status=none
  status=0
  wait "$booted" || status=$?
  cat guest.out guest.err
  [ "$status" -eq 0 ]
  [ "$kills" -eq 8 ]

  guest_end "$server"
  "$NBDCHAIN" check --allow "$remote" top.fvd
  guest_serve top.fvd --allow "$remote" -U "$PWD/s.sock"
  guest_boot "$guest" "$uri" fsck endured
  guest_end "$server"
}

@test "what nbd-client makes of a restart of the server" {
  truncate -s 64M base.raw
  printf served | dd of=base.raw conv=notrunc status=none
  "$NBDCHAIN" create -b base.raw -F raw top.fvd
  guest_serve top.fvd -p 0 -i 127.0.0.1
  [[ $uri =~ ^nbd://127\.0\.0\.1:([0-9]+)/$ ]]
  port=${BASH_REMATCH[1]}

  : >console
  guest_start guest "${boot_guest[@]}" --net "$guest" "$guest/disk.raw" \
    "restart:$port"
  booted=$started
  for times in 1 2 3; do
    until_true 200 said 'attached with' "$times"
    pkill -KILL -P "$server"
  done
  status=0
  wait "$booted" || status=$?
  cat guest.out guest.err
  [ "$status" -eq 0 ]
  # What the manuals say works.  With -persist nbd-client 3.24 loses the device;
  # a later one may not.
  grep 'guest: after a restart' console
  [ "$(grep -c 'guest: attached anew, /dev/nbd0 reads' console)" -eq 2 ]
  grep -q 'guest: after a restart with a loop: /dev/nbd0 reads' console
}
