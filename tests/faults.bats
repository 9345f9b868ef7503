#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Storage that fails: the Nth operation on a file, for every N of a scenario
# (harness/faults.py has the scenarios and what must be true after each).
#
#   NBDCHAIN_FAULTS=all   every N in every way of failing (default: all N with
#                         EIO, a sample of the other ways)
#   NBDCHAIN_SEED         which sample (default 1)
# shellcheck disable=SC2154             # common.bash sets these

load common

# sweep SCENARIO...: all must be right at each N.
sweep ()
{
  local which=()
  scratch_dir
  if [ "${NBDCHAIN_FAULTS-}" = all ]; then
    which=(--all)
  elif slow; then
    which=(--every 12)
  fi
  env "ASAN_OPTIONS=detect_leaks=0" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 "$top_srcdir/tests/harness/faults.py" --seed "$seed" \
    --work "$scratch" "${which[@]}" "$@"
}

@test "an image that is opened while its storage fails" {
  sweep open open-closed open-used open-two
}

@test "reads and writes of all kinds while the storage fails" {
  sweep first-write part part-closed part-two overwrite fua cache status
}

@test "zeros and trims while the storage fails" {
  sweep zero zero-own trim
}

@test "a checkpoint, and the end of the server, while the storage fails" {
  sweep checkpoint finish
}

@test "an image with its data in another file while the storage fails" {
  sweep open-data write-data finish-data create-data snapshot-data
}

@test "a compact image while the storage fails" {
  sweep open-compact write-compact checkpoint-compact finish-compact
}

@test "resize and rebase while the storage fails" {
  sweep resize resize-compact rebase
}

@test "create and snapshot while the storage fails" {
  sweep create snapshot snapshot-used
}

@test "check, info and map while the storage fails" {
  sweep check info map
}

@test "each scenario is in one of these tests" {
  local name
  for name in $(/usr/bin/python3 "$top_srcdir/tests/harness/faults.py" --list)
  do
    grep -qE "^  sweep.* $name( |$)" "$BATS_TEST_FILENAME"
  done
}

# serve_failing IMAGE: by "nbdchain serve" with an nbdkit whose operations fail
# when the client says so.
serve_failing ()
{
  mkdir -p dir
  export NC_FAULT_DIR=$PWD/dir NC_FAULT_CONTROL=$PWD/control
  truncate -s 4096 control
  sock=$PWD/serve.sock
  uri="nbd+unix:///?socket=$sock"
  start serve env "LD_PRELOAD=$NBDCHAIN_FAULT" "ASAN_OPTIONS=detect_leaks=0" \
    "$NBDCHAIN" serve "$1" -U "$sock"
  wait_for 60 is_ready_or_gone serve.out "$pid"
  [ -s serve.out ]
}

# fail_a_sync URI: write, flush, and write what cannot be made durable.
fail_a_sync ()
{
  PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$top_srcdir/tests/harness \
    /usr/bin/python3 - "$1" <<'END'
import errno, mmap, nbd, struct, sys
from faults import SYNC

h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"a" * 8192, 0)
h.flush()
h.pwrite(b"b" * 8192, 4096)
with open("control", "r+b") as f:
    control = mmap.mmap(f.fileno(), 4096)
struct.pack_into("=5Q", control, 0, SYNC, 1, 1, 1, errno.EIO)
for request in (h.flush, h.flush, lambda: h.pwrite(b"c" * 512, 512),
                lambda: h.zero(4096, 0), h.flush):
    try:
        request()
    except nbd.Error as e:
        assert e.errnum == errno.EIO, e
    else:
        raise AssertionError("succeeded")
assert struct.unpack_from("=Q", control, 48)[0] == 1
assert h.pread(12288, 0) == b"a" * 4096 + b"b" * 8192
END
}

# ends_with CODE PID: that child has ended, with this exit code.
ends_with ()
{
  local code=0
  wait "$2" || code=$?
  [ "$code" -eq "$1" ]
}

# flushed_is_there: what fail_a_sync had flushed is, and what it had not is as
# it was before or as it was written.
flushed_is_there ()
{
  unset NC_FAULT_DIR NC_FAULT_CONTROL
  "$NBDCHAIN" check dir/top.fvd
  serve dir/top.fvd
  nbdsh -u "$uri" -c 'data = h.pread(12288, 0)' \
    -c 'assert data[:4096] == b"a" * 4096' \
    -c 'assert data[4096:8192] in (b"a" * 4096, b"b" * 4096)' \
    -c 'h.pwrite(b"d" * 4096, 0); h.flush()'
  stop "$pid"
}

@test "serve: a failed sync is final, and the end says that data may be lost" {
  mkdir dir
  "$NBDCHAIN" create dir/top.fvd 1M >/dev/null
  serve_failing dir/top.fvd
  fail_a_sync "$uri"
  kill "$pid"
  wait_for 10 is_gone "$pid"
  ends_with 1 "$pid"
  grep -q 'could not be made durable' serve.err
  grep -q 'may not be durable' serve.err
  flushed_is_there
}

@test "serve: a failed sync stays final when nbdkit dies and is started again" {
  mkdir dir
  "$NBDCHAIN" create dir/top.fvd 1M >/dev/null
  serve_failing dir/top.fvd
  fail_a_sync "$uri"
  kill -KILL "$(pgrep -P "$pid")"
  wait_for 20 grep -q 'a sync failed' serve.err
  # It is there to read, and says no to the rest.
  timeout 30 nbdsh -u "$uri" -c 'import errno' \
    -c 'assert h.pread(12288, 0) == b"a" * 4096 + b"b" * 8192' -c '
for request in (lambda: h.pwrite(b"c" * 512, 512), h.flush):
    try:
        request()
    except nbd.Error as e:
        assert e.errnum == errno.EIO, e
    else:
        raise AssertionError("succeeded")'
  kill "$pid"
  wait_for 5 is_gone "$pid"
  ends_with 1 "$pid"
  grep -q 'may not be durable' serve.err
  flushed_is_there
}

@test "serve: at its end the disk is full, and all is durable" {
  mkdir dir
  "$NBDCHAIN" create dir/top.fvd 1M >/dev/null
  serve_failing dir/top.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"a" * 8192, 0); h.flush()'
  PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$top_srcdir/tests/harness \
    /usr/bin/python3 - <<'END'
import errno, faults, struct
with open("control", "r+b") as f:
    f.write(struct.pack("=5Q", faults.WRITE | faults.DURABLE, 1,
                        faults.FOREVER, 1, errno.ENOSPC))
END
  kill "$pid"
  wait_for 10 is_gone "$pid"
  ends_with 0 "$pid"
  grep -q 'top.fvd: not closed in order: No space left on device; all of it' \
    serve.err
  unset NC_FAULT_DIR NC_FAULT_CONTROL
  "$NBDCHAIN" check dir/top.fvd
  serve dir/top.fvd
  nbdsh -u "$uri" -c 'assert h.pread(8192, 0) == b"a" * 8192'
  stop "$pid"
}
