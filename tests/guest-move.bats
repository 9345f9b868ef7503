#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# A real Linux guest over a base 20 ms away, while its data moves: a boot from
# afar, one with the profile of that, and one during which the disk becomes
# local and loses its base.  The guest compares what it reads with digests.
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

# serve_far IMAGE OPTION...: serve it with a control socket.
serve_far ()
{
  guest_serve "$1" --allow "$remote" -U "$PWD/s.sock" --control qmp "${@:2}"
}

# ask COMMAND EXPRESSION: what the server returns is D, in Python.
ask ()
{
  printf '{"execute": "%s"}\n' "$1" |
    "$top_srcdir/tests/peers/qmp.py" script qmp |
    /usr/bin/python3 -c 'import json, sys
D = json.loads(sys.stdin.read())["return"]
print(eval(sys.argv[1]))' "$2"
}

@test "a guest boots over a slow base; with the profile of that, the next boot finds there what it reads" {
  guest_remote "$guest/disk.raw" rdelay=20ms
  "$NBDCHAIN" create -b "$remote" -F raw first.fvd
  "$NBDCHAIN" create -b "$remote" -F raw second.fvd

  # Cold: nothing is stored; the filter takes notes.
  serve_far first.fvd -- prefetch=off \
    --filter="$top_builddir/filters/.libs/nbdkit-prefetch-filter.so"
  "$NBDCHAIN" profile record qmp start
  guest_boot "$guest" "$uri" sample:40
  "$NBDCHAIN" profile record qmp stop
  guest_end "$server"
  "$NBDCHAIN" profile export first.fvd boot.profile

  "$NBDCHAIN" profile import second.fvd boot.profile
  serve_far second.fvd --prefetch
  guest_boot "$guest" "$uri" sample:40
  ask x-query-prefetch 'D["profile"]'
  [ "$(ask x-query-prefetch \
    'D["profile"]["hit"] > 0.9 * D["profile"]["touched"] > 4e6')" = True ]
  guest_end "$server"
  "$NBDCHAIN" check --allow "$remote" second.fvd
}

@test "a guest writes on while its disk becomes local, and after that without the base" {
  guest_remote "$guest/disk.raw" rdelay=20ms
  "$NBDCHAIN" create -b "$remote" -F raw top.fvd
  truncate -s 4K signal
  : >console
  serve_far top.fvd --copy-on-read
  guest_start guest "${boot_guest[@]}" --disk2 "$PWD/signal" "$guest" "$uri" \
    sample:40 endure:/dev/vdb digests
  booted=$started
  until_true 120 said 'enduring'

  "$NBDCHAIN" stream --watch qmp
  [ "$(ask query-named-block-nodes 'len(D)')" = 1 ]
  said 'all jobs ok' && return 1
  guest_end "$base"
  rounds=$(grep -c '^guest: round' console || :)
  until_true 120 said 'round' "$((rounds + 2))"
  printf enough | dd of=signal conv=notrunc status=none
  wait "$booted" || {
    cat guest.out guest.err
    return 1
  }
  cat guest.out
  guest_end "$server"

  "$NBDCHAIN" check top.fvd
  guest_serve top.fvd -U "$PWD/s.sock"
  guest_boot "$guest" "$uri" fsck endured
}
