#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Prefetching: a disk becomes local while it is used, by a policy that comes
# from the image and the command line and is changed at run time.
# shellcheck disable=SC2034,SC2154      # common.bash sets and uses these
# shellcheck disable=SC2016             # for another shell
# shellcheck disable=SC2030,SC2031      # a test is a subshell

load common
load qmp

size=8388613

# make_remote [ARGUMENT...]: base.raw behind base.sock, and top.fvd over it;
# sets $base and $allow.
make_remote ()
{
  make_base base.raw "$size"
  serve_raw base base.raw "$@"
  base=$pid
  allow="nbd+unix:///?socket=$PWD/base.sock"
  rm -f top.fvd
  "$NBDCHAIN" create -b "$allow" -F raw --journal-size 16K top.fvd >/dev/null
}

# prefetch [PARAMETER...]: serve top.fvd, and prefetch.
prefetch ()
{
  serve top.fvd --allow "$allow" --prefetch --control qmp -- "$@"
}

# job MEMBER: of the job, nothing if there is none.
job ()
{
  ask query-jobs | member "D[0]['$1'] if D else ''"
}

job_is ()
{
  [ "$(job "$1")" = "$2" ]
}

# no_job: there is none, and the server says so.
no_job ()
{
  [ "$(ask query-jobs | member D)" = "[]" ]
}

# progressed BYTES: it has copied so much at least.
progressed ()
{
  local n
  n=$(job x-copied)
  [ "${n:-0}" -ge "$1" ]
}

layers ()
{
  ask query-named-block-nodes | member 'len(D)'
}

is_local ()
{
  [ "$(layers)" = 1 ]
}

@test "the disk becomes local while it is used, and needs its base no more" {
  make_remote
  prefetch prefetch-max-read-throughput=4M
  oracle "$seed" --ops 300 --base base.raw --max-size 65536 "$uri"
  wait_for 30 is_local
  stop "$base"
  rm base.raw
  nbdcopy "$uri" now.raw
  stop "$pid"
  [ "$("$NBDCHAIN" info --json top.fvd | member 'D["backing"]')" = None ]
  "$NBDCHAIN" check top.fvd
  serve top.fvd
  assert_same_as now.raw "$uri"
}

@test "what it brings does not stay in the memory of the host, but for the profile" {
  [ "$(stat -f -c %T .)" != tmpfs ] || skip "the files are memory here"
  make_remote
  printf '%s\n' 'nbdchain-profile 1' "size $size" '0 1048576 3145728' >boot
  "$NBDCHAIN" profile import top.fvd boot
  prefetch
  wait_for 30 no_job
  run -0 in_memory top.fvd
  [ "$output" -ge 3145728 ]
  # The sweep may have read it, too, with what is around it.
  [ "$output" -le $((6 << 20)) ]
  assert_same_as base.raw "$uri"
}

@test "what the guest writes meanwhile stays there" {
  [ "$(stat -f -c %T .)" != tmpfs ] || skip "the files are memory here"
  make_base base.raw "$size"
  serve_relayed base.raw
  allow=$remote
  "$NBDCHAIN" create -b "$allow" -F raw --journal-size 16K top.fvd >/dev/null
  prefetch prefetch-start-delay=600
  # It knows what to read first.
  wait_for 20 job_is x-limit delay
  echo stall >control
  ask x-prefetch-set '{"prefetch-start-delay": 0}' | member D
  wait_for 20 job_is x-limit source
  tr '\0-\377' '\1-\377\0' <base.raw >new.raw
  nbdcopy new.raw "$uri"
  echo go >control
  wait_for 60 no_job
  run -0 in_memory top.fvd
  [ "$output" -ge "$size" ]
  assert_same_as new.raw "$uri"
}

@test "it goes on where it was when the server was killed" {
  make_remote
  prefetch prefetch-max-read-throughput=128K
  wait_for 20 progressed 200000
  pkill -KILL -P "$pid"
  running ()
  {
    job_is status running 2>/dev/null
  }
  wait_for 20 running
  ask x-prefetch-set '{"prefetch-max-read-throughput": 0}' | member D
  wait_for 20 is_local
  assert_same_as base.raw "$uri"
}

@test "beside a guest its threads go behind the server's" {
  make_remote
  prefetch prefetch-max-read-throughput=128K
  server=$pid
  start guest /usr/bin/python3 -c 'import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
while True:
    h.pwrite(bytes(4096), 0)' "$uri"
  wait_for 20 goes_behind "$server"
}

@test "parameters come from the image, the command line and at run time" {
  make_remote
  "$NBDCHAIN" amend --prefetch-start-delay=600 --num-prefetch-slots=3 \
    --prefetch-min-read-throughput=1K top.fvd
  prefetch num-prefetch-slots=2 bytes-per-prefetch=64K
  ask x-query-prefetch >info
  [ "$(member 'D["policy"]["prefetch-start-delay"]' <info)" = 600 ]
  [ "$(member 'D["policy"]["prefetch-min-read-throughput"]' <info)" = 1024 ]
  [ "$(member 'D["policy"]["num-prefetch-slots"]' <info)" = 2 ]
  [ "$(member 'D["policy"]["bytes-per-prefetch"]' <info)" = 65536 ]
  [ "$(member 'D["policy"]["prefetch-throttle-time"]' <info)" = 30000 ]
  wait_for 20 job_is x-limit delay
  [ "$(job current-progress)" = 0 ]

  run ask x-prefetch-set '{"prefetch-max-read-throughput": 100}'
  [[ $output == *"would make no sense"* ]]
  run ask x-prefetch-set '{"prefetch-perf-calc-alpha": 100}'
  [[ $output == *GenericError* ]]
  run ask x-prefetch-set '{"prefetch": true}'
  [[ $output == *"no argument"* ]]
  local change='{"prefetch-max-read-throughput": 65536,'
  change+=' "prefetch-start-delay": 0, "prefetch-min-read-throughput": 0}'
  ask x-prefetch-set "$change" >answer
  [ "$(<answer)" = '{"return": {}}' ]
  wait_for 20 job_is x-limit rate
  progressed "$((size / 2))" && return 1
  ask x-prefetch-set '{"prefetch-max-read-throughput": 0}' >answer
  wait_for 20 is_local
  # The image keeps its own.
  stop "$pid"
  [ "$("$NBDCHAIN" info --json top.fvd |
    member 'D["fvd"]["prefetch"]["start_delay"]')" = 600 ]
}

@test "the operator pauses it, gives it a speed, and cancels it" {
  make_remote
  prefetch prefetch-max-write-throughput=128K
  wait_for 20 progressed 1
  "$NBDCHAIN" pause qmp prefetch
  wait_for 20 job_is status paused
  before=$(job x-copied)
  "$NBDCHAIN" set-speed qmp prefetch 64K
  ask x-prefetch-set '{"prefetch-max-write-throughput": 0}' >answer
  [ "$(job x-copied)" = "$before" ]
  "$NBDCHAIN" resume qmp prefetch
  wait_for 20 job_is x-limit rate
  "$NBDCHAIN" cancel qmp prefetch
  wait_for 20 no_job
  [ "$(layers)" = 2 ]
  assert_same_as base.raw "$uri"
}

@test "a source that fails for a while is no end" {
  make_remote --filter=error error-pread=EIO error-pread-rate=100% \
    error-pread-file="$PWD/fail"
  touch fail
  prefetch
  wait_for 20 job_is x-limit error
  [ "$(layers)" = 2 ]
  rm fail
  wait_for 60 is_local
  assert_same_as base.raw "$uri"
}

@test "storage that is full is no end" {
  need_mount
  make_base base.raw 16777216
  timeout 300 unshare --mount --propagation private bash -euc '
    mkdir full
    mount -t tmpfs -o size=6m none full
    nbdchain create -b base.raw -F raw full/top.fvd
    nbdchain serve full/top.fvd -U full.sock --allow . --prefetch \
      --control qmp 2>full.err &
    server=$!
    says ()
    {
      until nbdchain jobs qmp | grep -q "$1"; do sleep 0.1; done
    }
    until [ -S qmp ]; do sleep 0.1; done
    says "by: *error"
    mount -o remount,size=40m full
    says "No jobs"
    kill "$server"
    wait "$server"
    mv base.raw away.raw
    nbdchain compare full/top.fvd -F raw away.raw
    nbdchain check full/top.fvd' 3>&-
  grep "No space left" full.err
}

@test "what the guest writes, zeroes and trims meanwhile wins" {
  make_remote --filter=delay delay-read=20ms
  prefetch bytes-per-prefetch=64K num-prefetch-slots=4
  oracle "$seed" --ops 400 --base base.raw --max-size 65536 "$uri"
  nbdcopy "$uri" before.raw
  wait_for 60 is_local
  assert_same_as before.raw "$uri"
}

@test "an image without a backing, and one that is read, need no job" {
  "$NBDCHAIN" create top.fvd 1M >/dev/null
  allow=$PWD
  prefetch
  no_job
  stop "$pid"
  run -2 "$NBDCHAIN" serve top.fvd -U x.sock --prefetch --read-only
  [[ $output == *"--read-only"*"forbids"* ]]
}

@test "with prefetch=image the image says whether" {
  make_remote
  prefetch prefetch=image
  no_job
  stop "$pid"
  "$NBDCHAIN" amend --prefetch=on top.fvd
  prefetch prefetch=image
  wait_for 20 is_local
}

# serve_alone [ARGUMENT...]: top.fvd, without a word of prefetching.
serve_alone ()
{
  serve top.fvd --allow "$allow" --control qmp "$@"
}

# does_not_prefetch: the filter is not there.
does_not_prefetch ()
{
  [[ $(ask x-query-prefetch) == *CommandNotFound* ]]
  [ "$(layers)" = "$1" ]
}

@test "an image that says so becomes local, unless the command line says no" {
  make_remote
  serve_alone
  does_not_prefetch 2
  stop "$pid"
  "$NBDCHAIN" amend --prefetch=on --prefetch-max-read-throughput=64M top.fvd
  for no in --no-prefetch --read-only; do
    serve_alone "$no"
    does_not_prefetch 2
    stop "$pid"
    run ! grep -e --prefetch serve.err
  done
  serve_alone -- prefetch=off
  [ "$(ask x-query-prefetch | member 'D["policy"]["prefetch"]')" = False ]
  no_job
  stop "$pid"

  serve_alone
  grep "top.fvd: says --prefetch=on.*--no-prefetch" serve.err
  [ "$(ask x-query-prefetch |
    member 'D["policy"]["prefetch-max-read-throughput"]')" = 67108864 ]
  wait_for 30 is_local
  stop "$pid"
  stop "$base"
  # Nothing is left to do.
  serve_alone
  does_not_prefetch 1
  assert_same_as base.raw "$uri"
}

# make_middle: mid.fvd with some data between top.fvd and the remote, which is
# the layer $remote.
make_middle ()
{
  make_base base.raw "$size"
  serve_relayed base.raw
  allow=$remote
  "$NBDCHAIN" create -b "$remote" -F raw mid.fvd >/dev/null
  serve_plain mid.fvd allow="$allow"
  qemu-io -f raw -c 'write -P 9 1M 2M' "$uri" >/dev/null
  nbdcopy "$uri" now.raw
  stop "$pid"
  "$NBDCHAIN" create -b mid.fvd -F fvd --journal-size 16K top.fvd >/dev/null
}

# stream_to_remote MEMBER...: a stream that keeps the remote as the backing.
stream_to_remote ()
{
  ask block-stream \
    "{\"device\": \"disk\", \"base-node\": \"$remote\" ${1:+, $1}}" | member D
}

@test "it ends though a stream has changed the chain while it was reading" {
  make_middle
  prefetch prefetch-start-delay=600
  wait_for 20 job_is x-limit delay
  echo stall >control
  ask x-prefetch-set '{"prefetch-start-delay": 0}' | member D
  wait_for 20 job_is x-limit source
  # It needs nothing of the remote.
  stream_to_remote
  wait_for 20 eval '[ "$(layers)" = 2 ]'
  echo go >control
  wait_for 60 no_job
  is_local
  assert_same_as now.raw "$uri"
}

@test "a stream ends though prefetching has dropped its base" {
  make_middle
  prefetch prefetch-start-delay=600
  wait_for 20 job_is x-limit delay
  stream_to_remote '"speed": 1, "auto-dismiss": false'
  ask x-prefetch-set '{"prefetch-start-delay": 0}' | member D
  wait_for 60 is_local
  [ "$(ask query-jobs | member '[j["id"] for j in D]')" = "['disk']" ]
  # Also if the server ends before the stream does.
  ask quit >/dev/null
  wait_for 20 is_gone "$pid"
  serve top.fvd --control qmp
  "$NBDCHAIN" set-speed qmp disk 0 || :
  wait_for 20 job_is status concluded
  [ "$(ask query-jobs | member '"error" in D[0]')" = False ]
  run ! grep "cannot go on" serve.err
  assert_same_as now.raw "$uri"
}

@test "what an image says counts, not what one that was retired said" {
  make_remote
  "$NBDCHAIN" amend --prefetch=on top.fvd
  "$NBDCHAIN" snapshot top.fvd new.fvd
  serve_alone
  does_not_prefetch 3
  stop "$pid"
  "$NBDCHAIN" amend --prefetch=on new.fvd
  serve_alone
  wait_for 30 is_local
  assert_same_as base.raw "$uri"
}

@test "the profile alone can be what an image wants" {
  make_remote
  "$NBDCHAIN" amend --prefetch-profile=on top.fvd
  printf '%s\n' 'nbdchain-profile 1' "size $size" '0 1048576 65536' >boot
  "$NBDCHAIN" profile import top.fvd boot
  serve_alone
  grep "top.fvd: says --prefetch-profile=on" serve.err
  wait_for 20 no_job
  # What is read besides is not stored.
  nbdcopy "$uri" now.raw
  cmp now.raw base.raw
  stop "$pid"
  [ "$("$NBDCHAIN" info --json top.fvd | member 'D["allocated"]')" = 65536 ]
}

@test "wrong parameters are refused, and what is allowed is said" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  allow=$PWD
  local parameter text
  while read -r parameter text; do
    run -1 "$NBDCHAIN" serve top.fvd --allow "$allow" -U x.sock --prefetch \
      -- "$parameter"
    [[ $output == *"$text"* ]]
  done <<'END'
num-prefetch-slots=65 must be at most 64
prefetch-perf-calc-alpha=100 must be at most 99
bytes-per-prefetch=5000 must be a multiple of 4096
prefetch-throttle-time=fast prefetch-throttle-time
prefetch-max-read-throughput=fast fast
prefetch=maybe prefetch=maybe: must be on, off or image
prefetch-profile=maybe prefetch-profile=maybe: must be true or false
prefetch-minimum=1 unknown parameter
END
  run -1 "$NBDCHAIN" serve top.fvd --allow "$allow" -U x.sock --prefetch -- \
    prefetch-max-read-throughput=1M prefetch-min-read-throughput=2M
  [[ $output == *"would never run"* ]]
}

@test "wrong parameters are found before anything is served, also by a daemon" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  nbdkit_with_chain
  local filter parameters text
  while IFS=: read -r filter parameters text; do
    # shellcheck disable=SC2086         # words
    set -- "${nbdkit[@]}" \
      --filter="$NBDCHAIN_FILTERS/nbdkit-$filter-filter.so" -U x.sock \
      "$NBDCHAIN_PLUGIN" top.fvd $parameters
    run -1 "$@"
    [[ $output == *"$text"* ]]
    run -1 "$@" --run 'touch served'
    [ ! -e served ]
  done <<'END'
prefetch:bytes-per-prefetch=3:bytes-per-prefetch=3: prefetch unit 3 must be a multiple of 4096
prefetch:prefetch-max-read-throughput=1M prefetch-min-read-throughput=2M:would never run
stream:max-outstanding=3:max-outstanding=3: must be from
stream:neighbourhood=5000:must be a power of two
END
}

@test "the filter over another plugin is an error" {
  export LD_LIBRARY_PATH=$top_builddir/lib/.libs
  run -1 env LD_PRELOAD="$NBDCHAIN_PRELOAD" "$NBDKIT" -f -U x.sock \
    --filter="$NBDCHAIN_FILTERS/nbdkit-prefetch-filter.so" memory 1M
  [[ $output == *"only over the plugin"* ]]
}
