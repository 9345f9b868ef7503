#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Power loss: all that is done to the files is recorded (harness/record.c), and
# states that a loss of power could have left are rebuilt and opened, without
# repair (harness/powerloss.c).
#
#   NBDCHAIN_STATES  of how many states each test has its share; together
#                    they have 1.5 times as many (default 1500)
#   NBDCHAIN_SEED    which (default 1)
#   NBDCHAIN_KEEP    a directory for the log of a test that failed
#
# A failure prints the number of the state; from the log that was kept, the
# same options and --only NUMBER --keep DIR rebuild it.
# shellcheck disable=SC2154,SC2153      # common.bash sets these
# shellcheck disable=SC2016,SC2030,SC2031

load common

states=${NBDCHAIN_STATES:-1500}
parameters=()
if [ -z "${NBDCHAIN_STATES-}" ] && slow; then
  states=240
fi

# What the processes started from now on do to files in dir/ goes to the log.
record ()
{
  mkdir -p dir
  "$harness/powerloss" begin dir log
  export NC_RECORD_DIR=$PWD/dir NC_RECORD_LOG=$PWD/log
}

# The words that run a command with record.so.  A sanitizer that opens a log of
# its own would do so before either of the two is ready.
recorded=(env "LD_PRELOAD=${NBDCHAIN_PRELOAD:+$NBDCHAIN_PRELOAD:}$NBDCHAIN_RECORD"
          "ASAN_OPTIONS=detect_leaks=0" "TSAN_OPTIONS=" "UBSAN_OPTIONS=")

# start_recorded IMAGE [ARGUMENT...]: nbdkit, recorded.
start_recorded ()
{
  local image=$1
  shift
  serve_by plain "${recorded[@]}" "$NBDKIT" -f -t 16 -- "$NBDCHAIN_PLUGIN" \
    "$image" "$@"
}

# The log must give the files as they are, or it is not to be believed.
log_is_complete ()
{
  "$harness/powerloss" compare dir log
}

# check_states N IMAGE [OPTION...]: N states of the log, with the base as in
# base.raw.  The array "parameters" is for the plugin, too.
check_states ()
{
  local n=$1 image=$2 nbdkit
  shift 2
  nbdkit_with_chain
  [ -n "${scratch-}" ] || scratch_dir
  "$harness/powerloss" check --states "$n" --seed "$seed" --work "$scratch" \
    --base base.raw --read-only read-only=true \
    --also "env -u LD_PRELOAD $NBDCHAIN check @DIR@/$image" "$@" log -- \
    "${nbdkit[@]}" -s "$NBDCHAIN_PLUGIN" "@DIR@/$image" "${parameters[@]}" ||
    keep_log
}

# keep_log: for later.  Status: 1.
keep_log ()
{
  if [ -n "${NBDCHAIN_KEEP-}" ]; then
    mkdir -p "$NBDCHAIN_KEEP/$BATS_TEST_NUMBER"
    cp log base.raw "$NBDCHAIN_KEEP/$BATS_TEST_NUMBER"
  fi
  return 1
}

# workload OPS [ORACLE-OPTION...]: writes of all kinds, marked in the log.
workload ()
{
  local n=$1
  shift
  oracle "$seed" --ops "$n" --base base.raw --log log --connections 2 \
    --inflight 4 --max-size 65536 --state state "$@" "$uri"
}

# make_disk SIZE [CREATE-OPTION...]: dir/top.fvd on dir/base.raw.
make_disk ()
{
  local size=$1
  shift
  make_base base.raw "$size"
  mkdir -p dir
  cp base.raw dir/base.raw
  make_overlay dir/top.fvd dir/base.raw "$@"
}

# wraps: did the journal go round?  16 KiB have room for 32 records.
wraps ()
{
  [ "$("$harness/powerloss" show log | grep -c ' journal$')" -gt 33 ]
}

# workload_that_wraps OPS: the same behind requests that come one by one.  Of
# flushes that come together, on a slow disk all that are in flight, one alone
# has a record, and when every block is allocated there are none.
workload_that_wraps ()
{
  oracle "$seed" --ops 250 --base base.raw --log log --inflight 1 \
    --max-size 6000 --weights 0,50,0,0,50,0,0 --state state "$uri"
  wraps
  workload "$1"
}

@test "what a death has cut off of the log hides nothing that follows" {
  local n
  make_disk 300001
  record
  "$harness/powerloss" show log >whole.txt
  # Of the first record, which has 73 bytes.
  for n in 1 7 8 40 71 72; do
    head -c "$n" log | cat - log >cut
    "$harness/powerloss" show cut | diff whole.txt -
  done
  # Of the last one, and a few bytes of the second.
  for n in -1 -7 -8 -100 -5000 76; do
    head -c "$n" log | cat - log >cut
    head -n "$([ "$n" = 76 ] && echo 1 || echo -1)" whole.txt |
      cat - whole.txt >want.txt
    "$harness/powerloss" show cut | diff want.txt -
  done
}

@test "a new overlay: journal, wrap and checkpoint" {
  make_disk 5242883
  record
  start_recorded dir/top.fvd
  workload_that_wraps 2500
  stop "$pid"
  log_is_complete
  check_states $((states * 5 / 12)) top.fvd
}

@test "the process dies and starts again before power fails" {
  make_disk 4194301
  record
  start_recorded dir/top.fvd
  workload 600
  stop_hard "$pid"
  # What is there now is the truth, be it flushed or not: flush it.
  rm state
  start_recorded dir/top.fvd
  nbdcopy "$uri" base2.raw
  "$harness/oracle" --base base2.raw --log log --ops 600 --connections 2 \
    --inflight 4 --max-size 65536 --seed $((seed + 7)) "$uri"
  stop "$pid"
  log_is_complete
  check_states $((states / 8)) top.fvd
}

@test "small writes with a flush after each few, one connection" {
  make_disk 2097153
  record
  start_recorded dir/top.fvd
  oracle "$seed" --ops 1500 --base base.raw --log log --inflight 3 \
    --max-size 6000 --weights 5,50,8,4,20,0,0 --fua 20 "$uri"
  stop "$pid"
  log_is_complete
  check_states $((states / 6)) top.fvd
}

@test "large blocks" {
  make_disk 4500001 --block-size 64K
  record
  start_recorded dir/top.fvd
  workload 800
  stop "$pid"
  log_is_complete
  check_states $((states / 8)) top.fvd
}

@test "a data file" {
  make_disk 4194301 --data-file dir/data.raw
  record
  start_recorded dir/top.fvd
  workload_that_wraps 1200
  stop "$pid"
  log_is_complete
  check_states $((states / 6)) top.fvd
}

@test "a compact image" {
  make_disk 9000001 --compact --grow-unit 1M
  record
  start_recorded dir/top.fvd
  workload_that_wraps 1200
  stop "$pid"
  log_is_complete
  check_states $((states / 6)) top.fvd
}

# Each chunk, a MiB, has a block of data in the base, so that the file grows
# with each one that the stream comes to; the guest does little but flush, which
# is what fills the journal and starts checkpoints.
@test "a compact image grows beside checkpoints" {
  local i guest server
  mkdir dir
  truncate -s 64M base.raw
  for ((i = 0; i < 64; i++)); do
    printf '%04096d' "$i" |
      dd of=base.raw bs=4K seek=$((256 * i)) conv=notrunc status=none
  done
  cp base.raw dir/base.raw
  make_overlay dir/top.fvd dir/base.raw --compact --grow-unit 1M
  record
  start_recorded dir/top.fvd control=qmp
  server=$pid
  start guest "$harness/oracle" --seed "$seed" --ops 10000000 \
    --base base.raw --log log --inflight 1 --max-size 4096 \
    --weights 0,1,0,0,90,0,0 "$uri"
  guest=$pid
  wait_for 20 eval '"$harness/powerloss" show log | grep -q "client reply"'
  qmp '{"execute": "block-stream",
        "arguments": {"device": "disk", "speed": 6000000}}'
  wait_for 60 eval 'qmp "{\"execute\": \"query-jobs\"}" | grep -qF "[]"'
  stop_hard "$guest"
  stop "$server"
  log_is_complete
  scratch_dir
  "$harness/powerloss" run --states $((states / 4)) --seed "$seed" \
    --work "$scratch" --near NBDC log -- \
    sh -c "$NBDCHAIN check @DIR@/top.fvd >/dev/null"
  check_states $((states / 100)) top.fvd --near NBDC
}

@test "a compact image, without its base" {
  mkdir dir
  : >base.raw
  "$NBDCHAIN" create --compact --journal-size 16K dir/top.fvd 20000001
  record
  start_recorded dir/top.fvd detect-zeroes=unmap
  oracle "$seed" --ops 800 --base base.raw --log log --connections 2 \
    --inflight 4 --max-size 3000000 --weights 5,30,20,8,20,0,0 "$uri"
  stop "$pid"
  log_is_complete
  check_states $((states / 12)) top.fvd
}

# qmp COMMAND: its reply, from the control socket "qmp".
qmp ()
{
  tr -d '\n' <<<"$1" | "$top_srcdir/tests/peers/qmp.py" script qmp
}

# device_in_dir SIZE NAME: dir/NAME is a block device that has held something
# else; what it has after a loss of power is given to the server as a file.
device_in_dir ()
{
  truncate -s "$1" device.img
  yes "something else" | head -c "$1" | dd of=device.img conv=notrunc status=none
  loop_device device.img
  mkdir -p dir
  mknod "dir/$2" b $((16#$(stat -c %t "$device"))) $((16#$(stat -c %T "$device")))
}

@test "an image on a block device" {
  device_in_dir 8M top.fvd
  make_disk 4194301
  record
  start_recorded dir/top.fvd
  workload_that_wraps 1000
  stop "$pid"
  log_is_complete
  check_states $((states / 12)) top.fvd
}

@test "a compact image on a block device" {
  device_in_dir 24M top.fvd
  make_disk 9000001 --compact --grow-unit 1M
  record
  start_recorded dir/top.fvd
  workload_that_wraps 1000
  stop "$pid"
  log_is_complete
  check_states $((states / 12)) top.fvd
}

@test "a data file on a block device" {
  device_in_dir 4194816 data.raw
  make_disk 4194301 --data-file dir/data.raw
  record
  start_recorded dir/top.fvd "data-file=$PWD/dir/data.raw"
  workload_that_wraps 1000
  stop "$pid"
  log_is_complete
  parameters=("data-file=@DIR@/data.raw")
  check_states $((states / 12)) top.fvd
}

@test "zeros of the base are recorded" {
  make_base base.raw 4194301
  fallocate -p -o 100000 -l 2500000 base.raw
  mkdir dir
  cp base.raw dir/base.raw
  make_overlay dir/top.fvd dir/base.raw --zero-in-base
  record
  start_recorded dir/top.fvd
  workload 700
  stop "$pid"
  log_is_complete
  check_states $((states / 12)) top.fvd
}

@test "zeros found in writes" {
  make_disk 3000001
  record
  start_recorded dir/top.fvd detect-zeroes=unmap
  workload 800
  stop "$pid"
  log_is_complete
  check_states $((states / 12)) top.fvd
}

@test "under serve, with deaths of nbdkit" {
  make_disk 3000001
  record
  "${recorded[@]}" "$harness/killer" --serve --flush --flush-at-end --kills 6 \
    --seed "$seed" --max-ops 150 --max-size 65536 --inflight 4 \
    --base base.raw --log log --socket "$PWD/s" -- \
    "$NBDCHAIN" serve dir/top.fvd -U "$PWD/s" 2>serve.err
  log_is_complete
  check_states $((states / 12)) top.fvd
}

@test "power fails again while the first loss is recovered from" {
  local i nbdkit
  make_disk 2097153
  record
  start_recorded dir/top.fvd
  workload 400
  stop "$pid"
  mv log log1
  mv base.raw base1.raw
  nbdkit_with_chain
  for i in 0 1 2 3 4 5; do
    rm -rf dir log log.seq
    # A state; what it shows is from now on the truth.
    "$harness/powerloss" check --states 6 --only "$i" --seed "$seed" \
      --keep "$PWD/dir" log1 -- true
    "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" dir/top.fvd read-only=true \
      --run "nbdcopy \"\$uri\" $PWD/base.raw"
    record
    start_recorded dir/top.fvd
    oracle $((seed + i)) --ops 150 --base base.raw --log log --inflight 4 \
      --max-size 30000 "$uri"
    stop "$pid"
    log_is_complete
    check_states $((states / 60)) top.fvd --rewrite 5
  done
}

@test "a chain of three layers, each with writes" {
  make_disk 2500001
  serve_plain dir/top.fvd
  oracle "$seed" --ops 150 --base base.raw --state state --max-size 50000 \
    "$uri"
  stop "$pid"
  "$NBDCHAIN" snapshot dir/top.fvd dir/two.fvd >/dev/null
  serve_plain dir/two.fvd
  oracle $((seed + 1)) --ops 100 --state state --max-size 50000 "$uri"
  nbdcopy "$uri" base.raw
  stop "$pid"
  "$NBDCHAIN" snapshot dir/two.fvd dir/three.fvd >/dev/null
  rm state
  record
  start_recorded dir/three.fvd
  workload 500
  stop "$pid"
  log_is_complete
  check_states $((states / 24)) three.fvd
}

# A program for "powerloss run": the new image is absent or whole.
write_judge ()
{
  local nbdkit
  nbdkit_with_chain
  {
    printf 'plugin=%q\nnbdchain=%q\n' "$NBDCHAIN_PLUGIN" "$NBDCHAIN"
    printf 'nbdkit () { %s "$@" ; }\n' "$(printf '%q ' "${nbdkit[@]}")"
    cat
  } >judge
}

@test "create: the image is there and whole, or not there" {
  make_base base.raw 300001
  mkdir dir
  cp base.raw dir/
  record
  (cd dir &&
   "${recorded[@]}" "$NBDCHAIN" create -b base.raw -F raw --journal-size 16K new.fvd)
  log_is_complete
  write_judge <<<'
    set -e
    ls "$STATE_DIR" | while read -r name; do
      case $name in
        *.fvd)
          "$nbdchain" check "$STATE_DIR/$name" >/dev/null
          nbdkit -U - "$plugin" "$STATE_DIR/$name" \
            --run "nbdcopy \"\$uri\" - | cmp - '"$PWD"'/base.raw" ;;
      esac
    done'
  scratch_dir
  "$harness/powerloss" run --states 150 --seed "$seed" --work "$scratch" \
    log -- bash judge
}

# overlay_on_killed [CREATE-OPTION...]: an image whose server was killed before
# it flushed gets an overlay.  What a guest of that has seen must not change
# any more when power fails after it has flushed.
overlay_on_killed ()
{
  make_disk 600001 "$@"
  record
  start_recorded dir/top.fvd
  # Of blocks that are allocated already, for others are lost with the process.
  nbdsh -u "$uri" -c 'h.pwrite(b"1" * 500000, 50000)' -c 'h.flush()' \
    -c 'h.pwrite(b"2" * 400000, 90000)'
  stop_hard "$pid"
  "${recorded[@]}" "$NBDCHAIN" create -b dir/top.fvd -F fvd dir/new.fvd
  start_recorded dir/new.fvd
  nbdcopy "$uri" now.raw
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 4096, 0)' -c 'h.flush()'
  stop "$pid"
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    [ -e new.fvd ] || exit 0
    nbdkit -U - "$plugin" new.fvd read-only=true --run "nbdcopy \"\$uri\" disk"
    [ "$(head -c 4 disk)" = xxxx ] || exit 0
    cmp -i 4096 disk '"$PWD"'/now.raw'
  scratch_dir
  "$harness/powerloss" run --states $((states / 15)) --seed "$seed" \
    --work "$scratch" log -- bash judge
}

@test "an overlay on an image that was killed: what was seen stays" {
  overlay_on_killed
}

@test "an overlay on one that was killed, with a data file: what was seen stays" {
  overlay_on_killed --data-file dir/data.raw
}

@test "create: the image that it names as its backing is there and whole, too" {
  make_base base.raw 300001
  record
  "${recorded[@]}" dd if=base.raw of=dir/base.raw bs=64K status=none
  "${recorded[@]}" "$NBDCHAIN" create -b dir/base.raw -F raw dir/new.fvd
  "${recorded[@]}" bash -c ': >dir/done && exec sync dir'
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    [ ! -e done ] || cmp base.raw '"$PWD"'/base.raw'
  scratch_dir
  "$harness/powerloss" run --states $((states / 15)) --seed "$seed" \
    --work "$scratch" log -- bash judge
}

@test "snapshot: one image is active, and nothing is lost" {
  make_disk 600001
  serve_plain dir/top.fvd
  oracle "$seed" --ops 100 --base base.raw --max-size 30000 "$uri"
  nbdcopy "$uri" now.raw
  stop "$pid"
  record
  "${recorded[@]}" "$NBDCHAIN" snapshot dir/top.fvd dir/new.fvd
  log_is_complete
  # The old image shows the same in any case.  The active one can be written;
  # when it has been, the other cannot.
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    same () {
      nbdkit -U - "$plugin" "$1" read-only=true \
        --run "nbdcopy \"\$uri\" - | cmp - '"$PWD"'/now.raw"
    }
    write () {
      nbdkit -U - "$plugin" "$1" \
        --run "/usr/bin/nbdsh -u \"\$uri\" -c \"h.pwrite(b\\\"x\\\", 5)\" \
                 -c \"h.flush()\"" 2>errors
    }
    same top.fvd
    if [ -e new.fvd ]; then same new.fvd; fi
    written=0
    if [ -e new.fvd ] && write new.fvd; then written=1; fi
    if write top.fvd; then written=$((written + 1)); fi
    if [ "$written" -ne 1 ]; then
      echo "$written of the images can be written:"; ls -l; cat errors
      exit 1
    fi'
  scratch_dir
  "$harness/powerloss" run --states 150 --seed "$seed" --work "$scratch" \
    log -- bash judge
}

@test "amend: the policy is the old or the new one, and no block changes" {
  make_disk 600001
  serve_plain dir/top.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 30000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  record
  "${recorded[@]}" "$NBDCHAIN" amend --prefetch=on --bytes-per-prefetch=4K dir/top.fvd
  "${recorded[@]}" "$NBDCHAIN" amend --prefetch=off --bytes-per-prefetch=8K dir/top.fvd
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    "$nbdchain" check top.fvd >/dev/null
    "$nbdchain" info --json top.fvd | python3 -c "
import json, sys
p = json.load(sys.stdin)[\"fvd\"][\"prefetch\"]
now = p[\"whole\"], p[\"bytes_per_prefetch\"]
assert now in ((False, 0), (True, 4096), (False, 8192)), p"
    nbdkit -U - "$plugin" top.fvd \
      --run "nbdcopy \"\$uri\" - | cmp - '"$PWD"'/now.raw"'
  scratch_dir
  "$harness/powerloss" run --states 60 --seed "$seed" --work "$scratch" \
    log -- bash judge
}

# store_profiles FIRST LAST: a guest's reads are recorded and stored, each time
# more of them.  boot.K is the Kth profile; dir/stored-K is made durable once
# that was acknowledged.
store_profiles ()
{
  local k
  for ((k = $1; k <= $2; k++)); do
    "$NBDCHAIN" profile record qmp start
    nbdsh -u "$uri" -c "for i in range($k * 20): h.pread(512, i * 32768)"
    "$NBDCHAIN" profile record qmp stop
    "$NBDCHAIN" profile export dir/top.fvd "boot.$k"
    "${recorded[@]}" bash -c ': >"$1" && exec sync dir' - "dir/stored-$k"
  done
}

@test "profile: while it is stored, it is the old or the new one, and whole" {
  make_disk 8388613
  printf '%s\n' 'nbdchain-profile 1' 'size 8388613' '0 4096 8192' >boot
  "$NBDCHAIN" profile import dir/top.fvd boot
  "$NBDCHAIN" profile export dir/top.fvd boot.0
  record
  serve_by plain "${recorded[@]}" "$NBDKIT" -f -t 16 \
    --filter="$NBDCHAIN_FILTERS/nbdkit-prefetch-filter.so" -- \
    "$NBDCHAIN_PLUGIN" dir/top.fvd control=qmp prefetch=off
  server=$pid
  # Beside a guest that writes and flushes all the time.  It does not get to
  # its end, for its look at the disk would be recorded.  It has one request at
  # a time on a connection: nbdkit 1.32 may abort when a client dies to whom it
  # has several replies to send.
  start guest "$harness/oracle" --seed "$seed" --ops 10000000 \
    --base base.raw --log log --connections 8 --inflight 1 \
    --max-size 16384 --weights 0,50,10,8,6,0,0 "$uri"
  store_profiles 1 7
  stop_hard "$pid"
  # Alone, where no flush makes it durable by chance; and by the server's end.
  store_profiles 8 9
  "$NBDCHAIN" profile record qmp start
  nbdsh -u "$uri" -c 'for i in range(200): h.pread(512, i * 32768)'
  stop "$server"
  "$NBDCHAIN" profile export dir/top.fvd boot.10
  log_is_complete
  # No two of them are the same.
  [ "$(wc -l boot.? boot.10 | awk '{ print $1 }' | sort -u | wc -l)" -eq 12 ]
  cat >judge <<'END'
set -e
state=$1 k=$(ls "$1" | sed -n 's/^stored-//p' | sort -n | tail -n 1)
k=${k:-0}
nbdchain check "$state/top.fvd" >/dev/null
nbdchain profile export "$state/top.fvd" "$state.profile"
if ! cmp -s "$state.profile" "boot.$k" &&
   ! cmp -s "$state.profile" "boot.$((k + 1))"; then
  echo "profile $k was acknowledged, $((k + 1)) perhaps begun; this is:"
  cat "$state.profile"
  exit 1
fi
END
  check_states $((states / 10)) top.fvd --near FVDP --also-every 1 \
    --also "env -u LD_PRELOAD bash judge @DIR@"
}

# resizes ALLOCATED FROM TO...: from one size to the next, each state shows one
# of the disks that were there.  A part of the blocks is allocated before.
# $layout: options of create.
resizes ()
{
  local size i=0 allocated=$1
  shift
  # shellcheck disable=SC2086
  make_disk 300001 ${layout-}
  "$NBDCHAIN" resize --shrink dir/top.fvd "$1"
  shift
  serve_plain dir/top.fvd
  nbdsh -u "$uri" -c 'n = h.get_size()' -c "h.zero(n $allocated, 0)" \
    -c 'h.pwrite(b"z" * 9000, n - 9000)' -c 'h.flush()'
  stop_hard "$pid"
  record
  for size; do
    serve_plain dir/top.fvd read-only=true
    nbdcopy "$uri" "disk$i.raw"
    stop "$pid"
    "${recorded[@]}" "$NBDCHAIN" resize --shrink dir/top.fvd "$size"
    i=$((i + 1))
  done
  serve_plain dir/top.fvd read-only=true
  nbdcopy "$uri" "disk$i.raw"
  stop "$pid"
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    "$nbdchain" check top.fvd >/dev/null
    nbdkit -U - "$plugin" top.fvd --run "nbdcopy \"\$uri\" now.raw"
    for disk in '"$PWD"'/disk*.raw; do
      ! cmp -s now.raw "$disk" || exit 0
    done
    exit 1'
  scratch_dir
  "$harness/powerloss" run --states $((states / 16)) --seed "$seed" \
    --work "$scratch" log -- bash judge
}

@test "resize, within a page: the disk has the old size or the new one" {
  resizes '// 2' 290001 299001 500000 260001 290000
}

@test "resize, from page to page: the disk has the old size or the new one" {
  resizes '// 1' 16510000 16520001 16509001 16600000
}

@test "resize of a compact image: the disk has the old size or the new one" {
  layout="--compact --grow-unit 1M" \
    resizes '// 1' 3500001 3494001 4200000 2090001 4100000 2200001
}

@test "rebase: the disk stays the same, and it can be run again" {
  make_disk 600001
  make_base dir/new.raw 500001
  serve_plain dir/top.fvd
  oracle "$seed" --ops 40 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  record
  "${recorded[@]}" "$NBDCHAIN" rebase -b dir/new.raw -F raw dir/top.fvd
  "${recorded[@]}" "$NBDCHAIN" rebase -b '' dir/top.fvd
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    same () {
      "$nbdchain" check top.fvd >/dev/null
      nbdkit -U - "$plugin" top.fvd read-only=true \
        --run "nbdcopy \"\$uri\" - | cmp - '"$PWD"'/now.raw"
    }
    same
    "$nbdchain" rebase -b "" top.fvd >/dev/null
    same'
  scratch_dir
  "$harness/powerloss" run --states $((states / 30)) --seed "$seed" \
    --work "$scratch" log -- bash judge
}

@test "stream: the disk stays the same, and it can be run again" {
  make_disk 1600001
  "$NBDCHAIN" create -b dir/top.fvd -F fvd --journal-size 16K dir/new.fvd
  serve_plain dir/new.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  record
  "${recorded[@]}" "$NBDCHAIN" stream --down-to base.raw dir/new.fvd
  "${recorded[@]}" "$NBDCHAIN" stream dir/new.fvd
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    same () {
      "$nbdchain" check new.fvd >/dev/null
      nbdkit -U - "$plugin" new.fvd read-only=true \
        --run "nbdcopy \"\$uri\" - | cmp - '"$PWD"'/now.raw"
    }
    # What the image does not name any more is not needed.
    case $("$nbdchain" info new.fvd) in
      *top.fvd*) ;;
      *base.raw*) rm top.fvd ;;
      *) rm top.fvd base.raw ;;
    esac
    same
    "$nbdchain" stream new.fvd >/dev/null
    rm -f top.fvd base.raw
    same'
  scratch_dir
  "$harness/powerloss" run --states $((states / 30)) --seed "$seed" \
    --work "$scratch" log -- bash judge
}

@test "check --repair: the disk stays the same, and it can be run again" {
  make_disk 600001
  serve_plain dir/top.fvd
  oracle "$seed" --ops 40 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  # A leak, and the older copy of the header torn.
  truncate -s +300000 dir/top.fvd
  printf rubbish >>dir/top.fvd
  printf rubbish |
    dd of=dir/top.fvd bs=1 conv=notrunc status=none \
      seek="$(python3 -c 'f = open("dir/top.fvd", "rb").read(8192)
print(900 + (4096 if f[4112:4120] < f[16:24] else 0))')"
  record
  "${recorded[@]}" "$NBDCHAIN" check --repair dir/top.fvd
  log_is_complete
  write_judge <<<'
    set -e
    cd "$STATE_DIR"
    same () {
      "$nbdchain" check top.fvd >/dev/null
      nbdkit -U - "$plugin" top.fvd read-only=true \
        --run "nbdcopy \"\$uri\" - | cmp - '"$PWD"'/now.raw"
    }
    same
    "$nbdchain" check --repair top.fvd >/dev/null
    same'
  scratch_dir
  "$harness/powerloss" run --states $((states / 30)) --seed "$seed" \
    --work "$scratch" log -- bash judge
}

# Without a sync that the format needs, states must be wrong.
must_fail ()
{
  scratch_dir
  run check_states 600 top.fvd --drop "$1"
  echo "$output" | tail -n 20
  [ "$status" -eq 1 ]
  [[ $output == *"a disk that no loss of power may leave"* ]]
}

@test "the check fails if the data is not synced before its journal record" {
  make_disk 3000001
  record
  start_recorded dir/top.fvd
  workload 600
  stop "$pid"
  must_fail data-sync
}

@test "the check fails if the journal record is not synced" {
  make_disk 3000001
  record
  start_recorded dir/top.fvd
  workload 600
  stop "$pid"
  must_fail journal-sync
}

@test "the check fails for a server that answers a flush without doing it" {
  make_base base.raw 1000001
  mkdir dir
  cp base.raw dir/disk.raw
  record
  serve_by lying "${recorded[@]}" "$NBDKIT" -f --filter=fua -- file dir/disk.raw \
    fuamode=discard
  workload 400 --long-extents --weights 0,50,5,5,5,0,0
  stop "$pid"
  log_is_complete
  run "$harness/powerloss" check --states 400 --seed "$seed" --rewrite 0 \
    --base base.raw log -- "$NBDKIT" -s file @DIR@/disk.raw
  [ "$status" -eq 1 ]
}
