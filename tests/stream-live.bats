#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# A server streams while clients use the disk: block-stream, the job that it
# starts, and nbdchain stream with a control socket.
# shellcheck disable=SC2154,SC2153      # common.bash and env.bash set these
# shellcheck disable=SC2016             # what is quoted is for another shell
# shellcheck disable=SC2030,SC2031      # a test is a subshell

load common

size=8388613
qmp=$top_srcdir/tests/peers/qmp.py

# serve_chain [SIZE]: base.raw, mid.fvd, top.fvd, the latter two written by the
# oracle; what the disk is now is in disk.raw, and in the oracle's state.
serve_chain ()
{
  make_base base.raw "${1:-$size}"
  make_overlay mid.fvd base.raw
  serve_plain mid.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 65536 "$uri"
  nbdcopy "$uri" mid.raw
  stop "$pid"
  "$NBDCHAIN" create -b mid.fvd -F fvd --journal-size 16K top.fvd >/dev/null
  serve top.fvd --control qmp
  server=$pid
  oracle "$((seed + 1))" --ops 60 --base mid.raw --max-size 65536 \
    --state state "$uri"
  nbdcopy "$uri" disk.raw
}

# serve_over PLUGIN-OR-FILTER...: top.fvd over base.raw behind this nbdkit,
# whose pid is in $source.
serve_over ()
{
  make_base base.raw "$size"
  serve_by base "$NBDKIT" -f -r "$@" base.raw ${fail:+error-file="$PWD/fail"}
  source=$pid remote=$uri
  make_overlay top.fvd "$remote"
  serve top.fvd --control qmp --allow "$remote" --retry "${retry-60}"
  server=$pid
}

# ask COMMAND...: print a reply a line.
ask ()
{
  printf '%s\n' "$@" | "$qmp" script qmp
}

# block_stream [ARGUMENTS]: the reply.  ARGUMENTS: as in JSON, without braces.
block_stream ()
{
  ask '{"execute": "block-stream", "arguments": {"device": "disk"'"${1:+, $1}}}"
}

# job EXPRESSION: of the job J in Python; J is {} if there is none.
job ()
{
  ask '{"execute": "query-block-jobs"}' | python3 -c 'import json, sys
J = ([*json.loads(sys.stdin.read())["return"], {}])[0]
print(eval(sys.argv[1]))' "$1"
}

# job_is EXPRESSION: is it true of the job?
job_is ()
{
  [ "$(job "$1")" = True ]
}

# layers: their names.
layers ()
{
  ask '{"execute": "query-named-block-nodes"}' | python3 -c 'import json, sys
print(*[n["node-name"] for n in json.loads(sys.stdin.read())["return"]])'
}

# hears TEXT: has an event with TEXT come?
hears ()
{
  grep -q "$1" events.out
}

# listen: events go to events.out.
listen ()
{
  start events "$qmp" watch qmp
  wait_for 20 test -s events.out
}

# guest SEED OPS [OPTION...]: the oracle goes on with what it knows of the disk.
guest ()
{
  local seed=$1 ops=$2
  shift 2
  oracle "$seed" --ops "$ops" --state state --connections 4 --inflight 4 \
    --max-size 32768 "$@" "$uri"
}

# is_right: is the disk what the oracle knows?
is_right ()
{
  "$harness/oracle" --state state --verify-only "$uri"
}

# ends_with STATUS PID
ends_with ()
{
  local ended=0
  wait "$2" || ended=$?
  [ "$ended" -eq "$1" ]
}

# uses FILE: does a process of the server have it open?
uses ()
{
  local p
  for p in "$server" $(pgrep -P "$server"); do
    find "/proc/$p/fd" -lname "*/$1" 2>/dev/null
  done | grep -q .
}

@test "a chain goes into its top while a guest writes, and the rest is let go" {
  serve_chain
  sum=$(cat mid.fvd base.raw | sha256sum)
  start guest "$harness/oracle" --seed 5 --ops 6000 --state state \
    --connections 4 --inflight 4 --max-size 32768 "$uri"
  guest=$pid
  run -0 --separate-stderr "$NBDCHAIN" stream --speed 16M --watch --json qmp
  [[ $output == *'"copied": '* ]]
  ends_with 0 "$guest"
  [ "$(layers)" = top.fvd ]
  wait_for 20 run ! uses base.raw
  wait_for 20 run ! uses mid.fvd
  [ "$(cat mid.fvd base.raw | sha256sum)" = "$sum" ]
  rm mid.fvd base.raw
  guest 6 300
  stop "$server"
  "$NBDCHAIN" check top.fvd
  serve top.fvd
  is_right
}

@test "beside a guest its threads go behind the server's" {
  serve_chain
  block_stream '"speed": 1048576'
  start guest "$harness/oracle" --seed 5 --ops 4000 --state state \
    --connections 4 --inflight 4 --max-size 32768 "$uri"
  guest=$pid
  wait_for 20 goes_behind "$server"
  ends_with 0 "$guest"
  "$NBDCHAIN" cancel qmp disk
  is_right
}

@test "only what is above a layer comes in, under a guest; that one stays" {
  serve_chain
  start guest "$harness/oracle" --seed 5 --ops 4000 --state state \
    --connections 4 --inflight 4 --max-size 32768 "$uri"
  guest=$pid
  "$NBDCHAIN" stream --down-to base.raw --watch qmp
  ends_with 0 "$guest"
  [ "$(layers)" = "top.fvd base.raw" ]
  rm mid.fvd
  is_right
  stop "$server"
  "$NBDCHAIN" info top.fvd | grep -q "backing: .*base.raw"
  serve top.fvd --control qmp
  server=$pid
  "$NBDCHAIN" stream --watch qmp
  rm base.raw
  is_right
}

@test "what is data stays data, and what is zeros is none afterwards" {
  serve_chain
  nbdinfo --map --json "$uri" >before
  "$NBDCHAIN" stream --watch qmp
  nbdinfo --map --json "$uri" >after
  nbdcopy "$uri" now.raw
  # Zeros that nobody knew of may have become such.
  python3 -c 'import json, sys
def known_zeros(path):
    return {block for e in json.load(open(path)) if e["type"] & 2
            for block in range(e["offset"], e["offset"] + e["length"], 512)}
before, after = map(known_zeros, sys.argv[1:3])
assert before and before <= after
disk = open(sys.argv[3], "rb").read()
for block in after:
    assert not any(disk[block:block + 512]), block' before after now.raw
  is_right
}

@test "base, bottom and backing-file: what stays, and what it is called" {
  serve_chain
  mkdir elsewhere
  block_stream '"bottom": "mid.fvd", "backing-file": "./base.raw", "auto-dismiss": false' |
    grep return
  wait_for 20 job_is 'J["status"] == "concluded"'
  job_is '"error" not in J and J["offset"] == J["len"]'
  [ "$(layers)" = "top.fvd base.raw" ]
  ask '{"execute": "job-dismiss", "arguments": {"id": "disk"}}'
  block_stream '"backing-file": "elsewhere/../base.raw", "base": "'"$PWD/base.raw\"" |
    grep return
  wait_for 20 job_is 'J == {}'
  stop "$server"
  "$NBDCHAIN" info top.fvd | grep -q "backing: *elsewhere/../base.raw"
}

@test "base can be what the image above calls it, unless two are called so" {
  mkdir -p e/e
  make_base e/e/base.raw 1048576
  (cd e/e && make_overlay m.fvd base.raw)
  (cd e && "$NBDCHAIN" create -b e/m.fvd -F fvd m.fvd >/dev/null)
  "$NBDCHAIN" create -b e/m.fvd -F fvd top.fvd >/dev/null
  serve top.fvd --control qmp
  [ "$(layers)" = "top.fvd m.fvd m.fvd.2 base.raw" ]
  block_stream '"base": "e/m.fvd"' |
    grep "'e/m.fvd' is what several images call .*: m.fvd, m.fvd.2, base.raw"
  block_stream '"base": "m.fvd"' | grep "no layer 'm.fvd'"
  block_stream '"base": "base.raw"' | grep return
  wait_for 20 job_is 'J == {}'
  [ "$(layers)" = "top.fvd base.raw" ]
}

@test "base is found by whatever path leads to its file" {
  serve_chain
  mkdir elsewhere
  ln -s .. elsewhere/up
  block_stream "\"base\": \"$PWD/elsewhere/up/./base.raw\"" | grep return
  wait_for 20 job_is 'J == {}'
  [ "$(layers)" = "top.fvd base.raw" ]
}

@test "behind the end of a shorter base there are zeros all the while" {
  make_base base.raw 3000001
  make_overlay top.fvd base.raw 9M
  cp base.raw disk.raw
  truncate -s 9M disk.raw
  serve top.fvd --control qmp
  assert_same_as disk.raw "$uri"
  "$NBDCHAIN" stream --speed 20K qmp
  wait_for 20 job_is 'J["x-copied"] > 0'
  assert_same_as disk.raw "$uri"
  job_is 'J["status"] == "running"'
  "$NBDCHAIN" set-speed qmp disk 0
  wait_for 60 job_is 'J == {}'
  assert_same_as disk.raw "$uri"
}

@test "with nothing to do it ends at once, and well" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
  run -0 "$NBDCHAIN" stream --watch qmp
  [[ $output == "$PWD/top.fvd needs no backing any more: "* ]]
  run -0 --separate-stderr "$NBDCHAIN" stream --watch --json qmp
  [[ $output == *'"local": 1048576'* ]]
  [[ $output == *"\"path\": \"$PWD/top.fvd\""* ]]
  run -1 "$NBDCHAIN" stream --down-to nobody qmp
  [[ $output == *"no layer 'nobody' below the active one, which has no backing" ]]
  [ "$(layers)" = top.fvd ]
}

@test "what makes no sense is refused, and nothing changes" {
  serve_chain
  refused ()
  {
    block_stream "$1" | tee refusal
    grep -q '"class": "GenericError"' refusal
    grep -qF "$2" refusal
  }
  refused '"base-node": "nobody"' "no layer 'nobody'"
  refused '"base-node": "top.fvd"' "no layer 'top.fvd' below the active one"
  refused '"base": "nobody"' "no layer 'nobody'"
  refused '"bottom": "nobody"' \
    "no layer 'nobody' in the chain; there are: top.fvd, mid.fvd, base.raw"
  refused '"base": "base.raw", "base-node": "base.raw"' "exclude each other"
  refused '"base": "base.raw", "bottom": "mid.fvd"' "exclude each other"
  refused '"bottom": "mid.fvd", "base-node": "base.raw"' "exclude each other"
  refused '"backing-file": "x"' "needs 'base'"
  refused '"bottom": "base.raw", "backing-file": "x"' "there is none below"
  refused '"base-node": "base.raw", "backing-file": "[ rm x ]"' "neither a file"
  refused '"base-node": "base.raw", "backing-file": "nbd://h/x?tls-psk-file=y"' \
    "neither a file"
  refused '"base-node": "base.raw", "backing-file": "nbd+unix:///?socket=s"' \
    "neither a file"
  refused '"speed": -1' "'speed' cannot be -1"
  refused '"speed": "1"' "'speed'"
  refused '"on-error": "panic"' "'on-error' cannot be 'panic'"
  refused '"job-id": "1"' "invalid job id"
  refused '"sideways": true' "sideways"
  ask '{"execute": "block-stream", "arguments": {"device": "mid.fvd"}}' |
    grep "cannot stream into 'mid.fvd'"
  ask '{"execute": "block-stream", "arguments": {"device": "top.fvd"}}' |
    grep "'job-id' is needed"
  ask '{"execute": "block-stream"}' | grep "needs the argument 'device'"
  run -1 "$NBDCHAIN" stream --down-to nobody qmp
  [[ $output == *"no layer 'nobody' below the active one; there are: mid.fvd, base.raw" ]]
  run -2 "$NBDCHAIN" stream --retry 3 qmp
  [[ $output == *"has its own --retry"* ]]
  run -2 "$NBDCHAIN" stream --on-error stop top.fvd
  [[ $output == *"no control socket"* ]]
  run -2 "$NBDCHAIN" stream --on-error panic qmp
  [ "$(layers)" = "top.fvd mid.fvd base.raw" ]
  is_right
  stop "$server"
  serve top.fvd --control qmp --read-only
  block_stream | grep "open for reading only"
}

@test "a second stream is refused while one runs, and welcome after it" {
  serve_chain
  block_stream '"speed": 1' | grep return
  for arguments in '' ', "base-node": "base.raw"' ', "base-node": "mid.fvd"' \
      ', "bottom": "mid.fvd"'; do
    block_stream "\"job-id\": \"b\"$arguments" | grep "job 'disk' (stream) changes the chain"
  done
  "$NBDCHAIN" cancel qmp disk
  wait_for 20 job_is 'J == {}'
  "$NBDCHAIN" stream --watch qmp
}

@test "paused, nothing is copied; the disk works, and it goes on" {
  serve_chain
  "$NBDCHAIN" stream --speed 64K qmp
  wait_for 20 job_is 'J["offset"] > 0'
  "$NBDCHAIN" pause qmp disk
  wait_for 20 job_is 'J["status"] == "paused" and J["x-limit"] == "pause"'
  offset=$(job 'J["offset"]') copied=$(job 'J["x-copied"]')
  guest 5 400
  [ "$(job 'J["offset"]') $(job 'J["x-copied"]')" = "$offset $copied" ]
  "$NBDCHAIN" set-speed qmp disk 0
  "$NBDCHAIN" resume qmp disk
  wait_for 60 job_is 'J == {}'
  rm mid.fvd base.raw
  is_right
}

@test "a rate holds from the first byte, and another one at once" {
  make_base base.raw 134217728
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
  since=$(date +%s%N)
  "$NBDCHAIN" stream --speed 2M qmp
  # However slow we are: it is the bytes of the time that has passed, and what
  # may be saved up.
  for _ in 1 2 3 4; do
    wait_for 20 job_is "J['x-copied'] > ${copied-0}"
    copied=$(job 'J["x-copied"]')
    passed=$((($(date +%s%N) - since) / 1000000))
    [ "$copied" -le $((passed * 2097 + 1048576)) ]
  done
  job_is 'J["speed"] == 2097152'
  wait_for 20 job_is 'J["x-limit"] == "rate"'
  "$NBDCHAIN" set-speed qmp disk 1M
  since=$(date +%s%N)
  before=$(job 'J["x-copied"]')
  wait_for 20 job_is "J['x-copied'] > $before + 1000000"
  copied=$(job 'J["x-copied"]')
  passed=$((($(date +%s%N) - since) / 1000000))
  [ "$((copied - before))" -le $((passed * 1049 + 1048576)) ]
}

@test "cancelled at any moment, the disk is the same, and the base needed" {
  serve_chain
  for ms in 001 020 050 100 200; do
    # So slow that something is left for the last.
    "$NBDCHAIN" stream --speed 50K qmp
    sleep "0.$ms"
    "$NBDCHAIN" cancel qmp disk
    wait_for 20 job_is 'J == {}'
    [ "$(layers)" = "top.fvd mid.fvd base.raw" ]
    assert_same_as disk.raw "$uri"
  done
  listen
  "$NBDCHAIN" stream --speed 64K qmp
  run -1 "$NBDCHAIN" stream --watch qmp
  [[ $output == *"job id 'disk' is in use"*'"nbdchain jobs --watch qmp disk"'* ]]
  "$NBDCHAIN" cancel qmp disk
  wait_for 20 hears BLOCK_JOB_CANCELLED
  run ! hears BLOCK_JOB_COMPLETED
  stop "$server"
  "$NBDCHAIN" check top.fvd
  "$NBDCHAIN" compare top.fvd -F raw disk.raw
}

@test "who watches is told that it was cancelled, or that it failed" {
  fail=y serve_over --filter=error -- file error-pread-rate=100%
  start watcher "$NBDCHAIN" stream --speed 64K --watch qmp
  watcher=$pid
  wait_for 20 job_is 'J.get("status") == "running"'
  "$NBDCHAIN" cancel qmp disk
  ends_with 1 "$watcher"
  grep "was cancelled" watcher.err
  touch fail
  run -1 "$NBDCHAIN" stream --watch qmp
  [[ $output == *"not finished: "*"start it again"* ]]
  rm fail
  "$NBDCHAIN" stream --watch qmp
}

# nbdkit_of PID: of that "serve".
nbdkit_of ()
{
  pgrep -P "$1" | head -n 1
}

# says FILE PATTERN
says ()
{
  grep -qs -- "$2" "$1"
}

# has_lines_beyond N FILE
has_lines_beyond ()
{
  [ "$(wc -l <"$2")" -gt "$1" ]
}

@test "who watches goes on when the server dies and is started anew" {
  serve_chain
  start watcher "$NBDCHAIN" stream --speed 64K --watch --progress --json qmp
  watcher=$pid
  wait_for 20 says watcher.err '"done":[1-9]'
  for _ in 1 2; do
    nbdkit=$(nbdkit_of "$server")
    kill -KILL "$nbdkit"
    wait_for 20 job_is 'J.get("status") == "running"'
    [ "$(nbdkit_of "$server")" != "$nbdkit" ]
  done
  lines=$(wc -l <watcher.err)
  wait_for 20 has_lines_beyond "$lines" watcher.err
  "$NBDCHAIN" set-speed qmp 0
  ends_with 0 "$watcher"
  says watcher.out '"copied": '
  says watcher.err '"complete":true'
  run ! says watcher.err nbdchain:
}

@test "who watches is told that the server has ended, and that the job goes on" {
  serve_chain
  start watcher "$NBDCHAIN" stream --speed 64K --watch qmp
  watcher=$pid
  wait_for 20 job_is 'J.get("x-copied", 0) > 0'
  listen
  stop "$server"
  ends_with 1 "$watcher"
  [ "$(wc -l <watcher.err)" = 1 ]
  says watcher.err "qmp: the server has ended, .*; the job goes on when"
  hears SHUTDOWN
  hears host-signal
}

@test "a job that runs is watched by another, also after a restart" {
  serve_chain
  run -1 "$NBDCHAIN" jobs --watch qmp
  [[ $output == *"qmp: there is no job, so none can be watched"* ]]
  run -1 "$NBDCHAIN" jobs --watch qmp disk
  [[ $output == *"qmp: there is no job 'disk'; \"nbdchain jobs qmp\" lists"* ]]
  run -2 "$NBDCHAIN" jobs qmp disk
  [[ $output == *"a JOB goes with --watch"* ]]
  run -2 "$NBDCHAIN" jobs --progress qmp
  "$NBDCHAIN" stream --speed 64K qmp
  start first "$NBDCHAIN" jobs --watch --progress --json qmp
  first=$pid
  wait_for 20 says first.err '"done":[0-9]'
  stop "$server"
  serve top.fvd --control qmp
  server=$pid
  start second "$NBDCHAIN" jobs --watch --progress qmp disk
  second=$pid
  wait_for 20 says second.err 'streaming: [0-9]'
  "$NBDCHAIN" set-speed qmp 0
  ends_with 0 "$second"
  says second.out '^disk (stream) is done: copied '
  ends_with 0 "$first"
  says first.out '"id": "disk"'
  is_right
}

# is_in_state LETTER PID: as ps has it; or it has ended, which the caller sees.
is_in_state ()
{
  grep -qs "^State:[[:space:]]*$1" "/proc/$2/status" || is_gone "$2"
}

is_there_or_gone ()
{
  [ -e "$1" ] || is_gone "$2"
}

@test "who asks a server may be stopped while it waits, and goes on" {
  # Such a server, which takes its time for each message.
  start slow python3 -c 'import os, socket, time
s = socket.socket(socket.AF_UNIX)
s.bind("slow~")
s.listen()
os.rename("slow~", "slow")
c = s.accept()[0]
f = c.makefile()
for n, message in enumerate(("QMP", "return", "return")):
    if n > 0:
        f.readline()
    open("asked%d" % n, "w").close()
    while not os.path.exists("answer%d" % n):
        time.sleep(0.005)
    c.sendall(b"{\"%s\": {}}\n" % message.encode())'
  wait_for 20 test -S slow
  start client "$NBDCHAIN" pause slow disk
  client=$pid
  for n in 0 1 2; do
    wait_for 20 is_there_or_gone "asked$n" "$client"
    wait_for 20 is_in_state S "$client"
    kill -STOP "$client"
    wait_for 20 is_in_state T "$client"
    kill -CONT "$client"
    wait_for 20 is_in_state S "$client"
    touch "answer$n"
  done
  ends_with 0 "$client"
}

@test "that nobody watches, the server's messages tell when it fails" {
  fail=y serve_over --filter=error -- file error-pread-rate=100%
  touch fail
  "$NBDCHAIN" stream qmp
  wait_for 20 job_is 'J == {}'
  grep "job 'disk' (stream) failed: .*server says.*start it again" \
    serve.err
  rm fail
  "$NBDCHAIN" stream qmp
  wait_for 20 job_is 'J == {}'
  [ "$(grep -c "job 'disk'" serve.err)" -eq 1 ]
}

@test "on-error=report: an error ends it, and the disk is as before" {
  fail=y serve_over --filter=error -- file error-pread-rate=100%
  listen
  touch fail
  block_stream '"auto-dismiss": false'
  wait_for 20 job_is 'J["status"] == "concluded"'
  job_is '"server says" in J["error"] and J["offset"] < J["len"]'
  wait_for 20 hears '"action": "report", "device": "disk", "operation": "read"'
  wait_for 20 hears BLOCK_JOB_COMPLETED
  [ "$(layers | wc -w)" -eq 2 ]
  rm fail
  assert_same_as base.raw "$uri"
  ask '{"execute": "job-dismiss", "arguments": {"id": "disk"}}'
  "$NBDCHAIN" stream --watch qmp
  stop "$source"
  assert_same_as base.raw "$uri"
}

@test "on-error=ignore: errors for a while only cost time" {
  fail=y serve_over --filter=error -- file error-pread-rate=100%
  listen
  touch fail
  block_stream '"on-error": "ignore"'
  wait_for 20 hears '"action": "ignore"'
  wait_for 20 job_is \
    'J["x-limit"] == "error" and "server says" in J["x-trouble"]'
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri"
  rm fail
  wait_for 30 job_is 'J == {}'
  stop "$source"
  qemu-io -r -f raw -c 'read -P 7 0 64k' "$uri"
  "$NBDCHAIN" compare --allow "$remote" top.fvd -F raw base.raw && return 1
  [ "$(layers)" = top.fvd ]
}

@test "on-error=ignore: a source that fails for good is cancelled" {
  fail=y serve_over --filter=error -- file error-pread-rate=100%
  touch fail
  block_stream '"on-error": "ignore"'
  wait_for 20 job_is '"x-trouble" in J'
  "$NBDCHAIN" cancel qmp disk
  wait_for 20 job_is 'J == {}'
  [ "$(layers | wc -w)" -eq 2 ]
}

@test "on-error=stop: an error lets it wait, and resume tries again" {
  fail=y serve_over --filter=error -- file error-pread-rate=100%
  listen
  touch fail
  start watcher "$NBDCHAIN" stream --on-error stop --watch qmp
  watcher=$pid
  wait_for 20 job_is 'J.get("status") == "paused"'
  job_is 'J["io-status"] == "failed" and J["x-limit"] == "error"'
  job_is '"server says" in J["x-trouble"]'
  wait_for 20 hears '"action": "stop"'
  wait_for 20 grep -q "the job waits: .*nbdchain resume" watcher.err
  # It fails still.
  "$NBDCHAIN" resume qmp disk
  wait_for 20 job_is 'J["status"] == "paused" and J["io-status"] == "failed"'
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri"
  rm fail
  "$NBDCHAIN" resume qmp disk
  ends_with 0 "$watcher"
  stop "$source"
  qemu-io -r -f raw -c 'read -P 7 0 64k' "$uri"
}

@test "on-error=enospc: full storage lets it wait, and guests lose nothing" {
  need_mount
  make_base base.raw 16777216
  mkdir full
  start serve unshare --mount --propagation private bash -euc '
    mount -t tmpfs -o size=6m none full
    "$1" create -b "$PWD/base.raw" -F raw full/top.fvd >/dev/null
    exec "$1" serve full/top.fvd -U serve.sock --control qmp --allow .' - \
    "$NBDCHAIN"
  server=$pid uri="nbd+unix:///?socket=$PWD/serve.sock"
  wait_for 60 test -s serve.out
  qemu-io -f raw -c 'write -P 7 1M 64k' -c flush "$uri"
  "$NBDCHAIN" stream --on-error enospc qmp
  wait_for 30 job_is 'J["status"] == "paused" and J["io-status"] == "nospace"'
  job_is '"No space left" in J["x-trouble"]'
  qemu-io -f raw -c 'write -P 9 1M 64k' -c flush -c 'read -P 9 1M 64k' "$uri"
  "$NBDCHAIN" resume qmp disk
  wait_for 30 job_is 'J["status"] == "paused" and J["io-status"] == "nospace"'
  nsenter -t "$server" -m -- mount -o remount,size=40m "$PWD/full"
  "$NBDCHAIN" resume qmp disk
  wait_for 60 job_is 'J == {}'
  [ "$(layers)" = top.fvd ]
  dd if=/dev/zero bs=65536 count=1 status=none | tr '\0' '\t' |
    dd of=base.raw bs=65536 seek=16 conv=notrunc status=none
  mv base.raw away.raw
  assert_same_as away.raw "$uri"
}

@test "the source is gone for a while: local data is served, and it goes on" {
  make_base base.raw "$size"
  serve_relayed base.raw
  make_overlay top.fvd "$remote"
  # More than a busy machine may keep the source from its work.
  serve top.fvd --control qmp --allow "$remote" --retry 4
  server=$pid
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri"
  "$NBDCHAIN" stream --speed 128K --on-error stop qmp
  wait_for 20 job_is 'J["x-copied"] > 200000'
  echo refuse >control
  echo cut >control
  qemu-io -f raw -c 'read -P 7 0 64k' -c 'write -P 9 0 64k' "$uri"
  wait_for 30 job_is 'J["status"] == "paused" and J["io-status"] == "failed"'
  job_is '"not reachable" in J["x-trouble"]'
  qemu-io -f raw -c 'read -P 9 0 64k' -c 'write -P 7 0 64k' "$uri"
  echo accept >control
  wait_for 60 timeout 20 qemu-io -r -f raw -c 'read 8M 512' "$uri"
  "$NBDCHAIN" set-speed qmp disk 0
  "$NBDCHAIN" resume qmp disk
  wait_for 30 job_is 'J == {}'
  echo refuse >control
  echo cut >control
  dd if=/dev/zero bs=65536 count=1 status=none | tr '\0' '\a' |
    dd of=base.raw bs=65536 conv=notrunc status=none
  assert_same_as base.raw "$uri"
}

@test "a source that hangs keeps neither pause nor cancel, nor another stream" {
  make_base base.raw "$size"
  serve_relayed base.raw
  make_overlay top.fvd "$remote"
  serve top.fvd --control qmp --allow "$remote" --retry 0
  server=$pid
  "$NBDCHAIN" stream --speed 128K qmp
  wait_for 20 job_is 'J["x-copied"] > 200000'
  echo stall >control
  # It hangs until it is told to go on, and nothing waits for that.
  timeout 60 "$NBDCHAIN" pause qmp disk
  wait_for 20 job_is 'J["status"] == "paused"'
  timeout 60 "$NBDCHAIN" cancel qmp disk
  wait_for 20 job_is 'J == {}'
  timeout 60 "$NBDCHAIN" stream qmp
  timeout 60 "$NBDCHAIN" cancel qmp disk
  wait_for 20 job_is 'J == {}'
  timeout 60 "$NBDCHAIN" stream qmp
  echo go >control
  wait_for 60 job_is 'J == {}'
  assert_same_as base.raw "$uri"
  [ "$(layers)" = top.fvd ]
}

@test "a server that is stopped while its source hangs ends at once" {
  make_base base.raw "$size"
  serve_relayed base.raw
  make_overlay top.fvd "$remote"
  serve top.fvd --control qmp --allow "$remote" --retry 0
  server=$pid
  "$NBDCHAIN" stream --speed 128K qmp
  wait_for 20 job_is 'J["x-copied"] > 200000'
  echo stall >control
  ask '{"execute": "quit"}'
  wait_for 20 is_gone "$server"
  ends_with 0 "$server"
  [ "$("$NBDCHAIN" info --json top.fvd |
    python3 -c 'import json, sys
print(json.load(sys.stdin)["fvd"]["clean"])')" = True ]
  # And it goes on where it was.
  echo go >control
  serve top.fvd --control qmp --allow "$remote"
  "$NBDCHAIN" set-speed qmp disk 0 || :
  wait_for 60 job_is 'J == {}'
  [ "$(layers)" = top.fvd ]
}

@test "killed again and again, it goes on by itself, under a guest" {
  serve_chain 33554432
  start guest "$harness/oracle" --seed 5 --ops 2000 --state state \
    --inflight 4 --max-size 32768 --timeout 60 "$uri"
  guest=$pid
  ends_with 0 "$guest"
  "$NBDCHAIN" stream --speed 100K qmp
  for ms in 300 100 500 050; do
    sleep "0.$ms"
    nbdkit=$(pgrep -P "$server")
    kill -KILL "$nbdkit"
    wait_for 20 ask '{"execute": "query-version"}' 2>/dev/null
    is_right
    guest $((seed + ${ms#0})) 50
  done
  job_is 'J["speed"] == 102400'
  "$NBDCHAIN" set-speed qmp disk 0
  wait_for 60 job_is 'J == {}'
  [ ! -e top.fvd.jobs ]
  rm mid.fvd base.raw
  is_right
}

@test "nbdkit alone, killed: what was copied before the last second is there" {
  make_base base.raw 67108864
  make_overlay top.fvd base.raw
  serve_plain top.fvd control=qmp
  "$NBDCHAIN" stream --speed 2M qmp
  # Ten seconds of copying: of the first two all must be there, also where a
  # sync takes seconds.
  wait_for 60 job_is 'J["x-copied"] >= 20971520'
  stop_hard "$pid"
  "$NBDCHAIN" check top.fvd
  allocated=$("$NBDCHAIN" info --json top.fvd | python3 -c 'import json, sys
print(json.load(sys.stdin)["allocated"])')
  [ "$allocated" -ge 4194304 ]
  serve_plain top.fvd control=qmp
  assert_same_as base.raw "$uri"
}

@test "the guest's writes, trims and zeros race with it for the same blocks" {
  for round in 1 2 3; do
    make_base base.raw 1048583
    serve_by base "$NBDKIT" -f -r --filter=delay -- file base.raw rdelay=20ms
    source=$pid remote=$uri
    rm -f state top.fvd
    make_overlay top.fvd "$remote"
    serve top.fvd --control qmp --allow "$remote"
    server=$pid
    start guest "$harness/oracle" --seed "$((seed + round))" --ops 900 \
      --base base.raw --state state --connections 4 --inflight 8 \
      --max-size 20000 --weights 10,40,20,20,4,0,3 "$uri"
    guest=$pid
    "$NBDCHAIN" stream --speed 600K --watch qmp
    ends_with 0 "$guest"
    stop "$source"
    is_right
    stop "$server"
    "$NBDCHAIN" check top.fvd
  done
}

@test "clients come and go while it is slow" {
  serve_chain
  "$NBDCHAIN" stream --speed 10K qmp
  for i in {1..30}; do
    timeout 60 qemu-io -f raw -c "read ${i}k 512" -c flush "$uri"
    timeout 60 nbdinfo --size "$uri"
  done
  timeout 60 nbdcopy "$uri" now.raw
  cmp now.raw disk.raw
  job_is 'J["status"] == "running"'
  "$NBDCHAIN" set-speed qmp disk 0
  wait_for 60 job_is 'J == {}'
}

@test "power is lost while it runs under a guest, or as the backing changes" {
  make_base base.raw 2097153
  mkdir -p dir
  cp base.raw dir/base.raw
  make_overlay dir/top.fvd dir/base.raw
  "$harness/powerloss" begin dir log
  export NC_RECORD_DIR=$PWD/dir NC_RECORD_LOG=$PWD/log
  serve_by plain env \
    "LD_PRELOAD=${NBDCHAIN_PRELOAD:+$NBDCHAIN_PRELOAD:}$NBDCHAIN_RECORD" \
    "ASAN_OPTIONS=detect_leaks=0" "TSAN_OPTIONS=" "UBSAN_OPTIONS=" \
    "$NBDKIT" -f -t 16 -- "$NBDCHAIN_PLUGIN" dir/top.fvd control=qmp
  server=$pid
  start guest "$harness/oracle" --seed "$seed" --ops 800 --base base.raw \
    --log log --connections 2 --inflight 4 --max-size 65536 "$uri"
  guest=$pid
  "$NBDCHAIN" stream --speed 2M --watch qmp
  ends_with 0 "$guest"
  stop "$server"
  "$harness/powerloss" compare dir log
  nbdkit_with_chain
  scratch_dir
  "$harness/powerloss" check --states "$(slow && echo 20 || echo 150)" \
    --seed "$seed" --work "$scratch" --base base.raw --read-only \
    read-only=true --also \
    "env -u LD_PRELOAD $NBDCHAIN check @DIR@/top.fvd" log -- \
    "${nbdkit[@]}" -s "$NBDCHAIN_PLUGIN" "@DIR@/top.fvd"
}
