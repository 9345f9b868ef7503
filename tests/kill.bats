#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Sudden death of the server under load, many times (harness/killer.c).
#
#   NBDCHAIN_KILLS  deaths of each kind (default 200)
#   NBDCHAIN_SEED   what the operations depend on (default 1)
# shellcheck disable=SC2154             # common.bash sets these

load common

kills=${NBDCHAIN_KILLS:-200}
if [ -z "${NBDCHAIN_KILLS-}" ] && slow; then
  kills=40
fi

# kill_plain KILLS [OPTION...]: nbdkit alone, started again by the program.
kill_plain ()
{
  local n=$1 nbdkit
  shift
  nbdkit_with_chain
  "$harness/killer" --kills "$n" --seed "$seed" --base base.raw \
    --state state --socket "$PWD/s" "$@" -- \
    "${nbdkit[@]}" -f -U "$PWD/s" "$NBDCHAIN_PLUGIN" top.fvd 2>killer.err
  verify_at_rest top.fvd
}

# What the program last saw is still there.
verify_at_rest ()
{
  "$NBDCHAIN" check "$1"
  serve_plain "$1"
  oracle 1 --verify-only --state state "$uri"
  stop "$pid"
}

# A supervisor pauses when its server dies soon after the start, so each server
# lives for a second, and several supervisors run at a time.
# kill_serve NAME SEED KILLS [OPTION...]
kill_serve ()
{
  local name=$1 n=$3 s=$2
  shift 3
  mkdir "$name"
  ln base.raw "$name/"
  make_overlay "$name/top.fvd" "$name/base.raw"
  start "$name" "$harness/killer" --serve --kills "$n" --seed "$s" \
    --live-ms 1010 --base base.raw --state "$name/state" \
    --socket "$PWD/$name/s" "$@" -- \
    "$NBDCHAIN" serve "$name/top.fvd" -U "$PWD/$name/s"
}

# finish PID...: all must have ended well.
finish ()
{
  local one
  for one in "$@"; do
    wait "$one"
  done
  cat [a-z].out
}

@test "nbdkit alone: what was flushed or written with FUA is there" {
  make_base base.raw 4194303
  make_overlay top.fvd base.raw
  kill_plain $((kills / 2))
}

@test "nbdkit alone, operations that overlap, and large blocks" {
  make_base base.raw 4194303
  make_overlay top.fvd base.raw --block-size 64K
  kill_plain $((kills / 2)) --overlap --connections 4 --max-size 30000
}

@test "serve: every acknowledged write is there, without any flush" {
  local pids=() i=0 name
  make_base base.raw 4194303
  for name in a b c d e f g h; do
    i=$((i + 1))
    case $name in
      [a-e]) kill_serve "$name" $((seed + i)) $((kills / 8)) ;;
      *) kill_serve "$name" $((seed + i)) $((kills / 8)) --overlap \
           --connections 4 --max-size 30000 ;;
    esac
    pids+=("$pid")
  done
  finish "${pids[@]}"
  for name in a b c d e f g h; do
    cp "$name/state" state
    verify_at_rest "$name/top.fvd"
  done
}

@test "serve: one death after the other, as fast as it restarts" {
  make_base base.raw 4194303
  make_overlay top.fvd base.raw
  "$harness/killer" --serve --kills 6 --seed "$seed" --base base.raw \
    --state state --socket "$PWD/s" -- \
    "$NBDCHAIN" serve top.fvd -U "$PWD/s" 2>killer.err
  verify_at_rest top.fvd
}

@test "serve: the supervisor itself dies: what was flushed is there" {
  make_base base.raw 4194303
  make_overlay top.fvd base.raw
  serve top.fvd
  oracle "$seed" --ops 300 --base base.raw --state state "$uri"
  local nbdkit_pid
  nbdkit_pid=$(pgrep -P "$pid")
  stop_hard "$pid"
  wait_for 20 is_gone "$nbdkit_pid"
  verify_at_rest top.fvd
}

@test "serve: nbdkit dies while the remote base is away" {
  local base allow
  make_base base.raw 3000001
  serve_raw base base.raw
  base=$pid
  allow=$uri
  "$NBDCHAIN" create -b "$uri" -F raw --journal-size 16K top.fvd >/dev/null
  serve top.fvd --allow "$allow"
  oracle "$seed" --ops 150 --no-flush --base base.raw --state state "$uri"
  local serve_pid=$pid serve_uri=$uri
  stop_hard "$base"
  stop_hard_child "$serve_pid"
  # It is started again without the base, which comes back later.
  wait_for 20 grep -q "starting it again" serve.err
  serve_raw base base.raw
  oracle 1 --verify-only --state state "$serve_uri"
  stop "$serve_pid"
  serve_plain top.fvd allow="$allow"
  oracle 1 --verify-only --state state "$uri"
}

# stop_hard_child PID: kill the nbdkit that is the child of PID.
stop_hard_child ()
{
  kill -KILL "$(pgrep -P "$1")"
}

@test "a write that was not flushed may be lost without serve, not with it" {
  # So the two tests above do tell a difference: the same run, checked for
  # acknowledged writes, fails for nbdkit alone.
  make_base base.raw 4194303
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  oracle "$seed" --ops 100 --no-flush --base base.raw --state state "$uri"
  stop_hard "$pid"
  serve_plain top.fvd
  run "$harness/oracle" --verify-only --state state "$uri"
  [ "$status" -eq 1 ]
  [[ $output == *"wrong data at the start"* ]]
}
