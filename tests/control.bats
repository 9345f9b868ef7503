#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# The control socket of a server: who may come, what is answered, and that no
# client can harm another or the disk.
# shellcheck disable=SC2034,SC2154      # common.bash sets and uses these
# shellcheck disable=SC2016,SC2153      # for other shells; env.bash sets it
# shellcheck disable=SC2030,SC2031      # a test is a subshell

load common

qmp=$top_srcdir/tests/peers/qmp.py

# serve_chain: top.fvd on base.raw, with the control socket qmp.
serve_chain ()
{
  truncate -s 64M base.raw
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
}

# ask COMMAND...: print a reply a line.
ask ()
{
  printf '%s\n' "$@" | "$qmp" script qmp
}

# stream ARGUMENTS: a slow one.
stream ()
{
  local args='"device": "disk", "speed": 65536'
  [ "$(ask "{\"execute\": \"block-stream\", \"arguments\": {$args, $1}}")" = \
    '{"return": {}}' ]
}

no_jobs ()
{
  [ "$("$NBDCHAIN" jobs qmp 2>/dev/null)" = "No jobs" ]
}

# member EXPRESSION: the value that it has for the JSON D on stdin.
member ()
{
  /usr/bin/python3 -c 'import json, sys
D = json.loads(sys.stdin.read())
print(eval(sys.argv[1]))' "$1"
}

@test "the socket is the owner's alone, and goes with the server" {
  serve_chain
  [ "$(stat -c '%F %a' qmp)" = "socket 600" ]
  stop "$pid"
  [ ! -e qmp ]
}

@test "a client that waits for the socket can connect once it is there" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  for ((i = 0; i < 5; i++)); do
    start first "$qmp" first qmp
    first=$pid
    serve top.fvd --control qmp
    wait "$first"
    [ "$(member 'D["QMP"]["capabilities"]' <first.out)" = "[]" ]
    stop "$pid"
    [ "$(find . -name 'qmp*')" = "" ]
  done
}

@test "another user is refused, even if the socket lets it in" {
  [ "$(id -u)" -eq 0 ] || skip "needs root, to become another user"
  serve_chain
  chmod 711 . ..
  local dir=$PWD
  while [ "$dir" != / ]; do
    chmod o+x "$dir"
    dir=$(dirname "$dir")
  done
  [ "$("$qmp" as-user 65534 "$PWD/qmp")" = "permission denied" ]
  chmod 666 qmp
  run -0 "$qmp" as-user 65534 "$PWD/qmp"
  [[ $output == *GenericError*"only the user"* ]]
  grep -q "user 65534 is refused" serve.err
  ask '{"execute": "query-version"}' | grep -q nbdchain
}

@test "a socket in use, a file and a bad path are refused with a message" {
  serve_chain
  cp top.fvd other.fvd
  first=$pid
  run -1 "$NBDCHAIN" serve other.fvd -U other.sock --control qmp
  [[ $output == *"another server is using it"* ]]
  ask '{"execute": "query-jobs"}' | grep -q return
  run -1 "$NBDCHAIN" serve other.fvd -U other.sock --control top.fvd
  [[ $output == *"is no socket"* ]]
  run -1 "$NBDCHAIN" serve other.fvd -U other.sock --control no/dir/qmp
  [[ $output == *"No such file or directory"* ]]
  run -1 "$NBDCHAIN" serve other.fvd -U other.sock \
    --control "$(printf '%0200d' 0)"
  [[ $output == *"1 to 107 bytes"* ]]
  is_gone "$first" && return 1
  [ -S qmp ]
}

@test "it is there again after nbdkit was killed" {
  serve_chain
  nbdkit=$(pgrep -P "$pid")
  kill -KILL "$nbdkit"
  answers ()
  {
    ask '{"execute": "query-version"}' 2>/dev/null | grep -q nbdchain
  }
  wait_for 20 answers
  [ "$(pgrep -P "$pid")" != "$nbdkit" ]
}

@test "quit ends nbdchain serve, with everything durable" {
  serve_chain
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri"
  [ "$(ask '{"execute": "quit"}')" = '{"return": {}}' ]
  wait_for 20 is_gone "$pid"
  wait "$pid"
  [ ! -e qmp ]
  "$NBDCHAIN" check top.fvd
  [ "$("$NBDCHAIN" info --json top.fvd | member 'D["fvd"]["clean"]')" = True ]
}

@test "quit ends a plain nbdkit" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  export LD_LIBRARY_PATH=$top_builddir/lib/.libs
  start nbdkit env LD_PRELOAD="$NBDCHAIN_PRELOAD" "$NBDKIT" -f -U plain.sock \
    "$NBDCHAIN_PLUGIN" top.fvd control=qmp
  wait_for 20 test -S qmp
  [ "$(ask '{"execute": "quit"}')" = '{"return": {}}' ]
  wait_for 20 is_gone "$pid"
  [ ! -e qmp ]
}

@test "the layers are listed as they are" {
  serve_chain
  qemu-io -f raw -c 'write -P 7 0 64k' -c flush "$uri"
  ask '{"execute": "query-named-block-nodes"}' >nodes
  [ "$(member '[n["node-name"] for n in D["return"]]' <nodes)" = \
    "['top.fvd', 'base.raw']" ]
  [ "$(member '[n["drv"] for n in D["return"]]' <nodes)" = "['fvd', 'raw']" ]
  [ "$(member '[n["ro"] for n in D["return"]]' <nodes)" = "[False, True]" ]
  [ "$(member '[n["x-depth"] for n in D["return"]]' <nodes)" = "[0, 1]" ]
  [ "$(member '[n["x-allocated"] for n in D["return"]]' <nodes)" = \
    "[65536, 67108864]" ]
  [ "$(member 'D["return"][0]["file"]' <nodes)" = "$PWD/top.fvd" ]
  [ "$(member 'D["return"][0]["backing_file"]' <nodes)" = "$PWD/base.raw" ]
  [ "$(member '[n["image"]["virtual-size"] for n in D["return"]]' <nodes)" = \
    "[67108864, 67108864]" ]
  [ "$(member 'D["return"][0]["x-uuid"]' <nodes)" = \
    "$("$NBDCHAIN" info --json top.fvd | member 'D["fvd"]["uuid"]')" ]
}

@test "the layers can be listed while a guest writes" {
  serve_chain
  start asking bash -c 'while ! [ -e enough ]; do
      printf "{\"execute\": \"query-named-block-nodes\"}\n%.0s" {1..20}
    done | "$1" script qmp' bash "$qmp"
  asking=$pid
  wait_for 20 test -s asking.out
  for ((i = 0; i < 20; i++)); do
    qemu-io -f raw -c "write -P $i ${i}M 1M" -c flush "$uri" >/dev/null
  done
  touch enough
  wait "$asking"
  [ "$(wc -l <asking.out)" -ge 20 ]
  run ! grep -v '"return"' asking.out
}

@test "a chain and a storage daemon of QEMU answer in the same shapes" {
  serve_chain
  truncate -s 64M qemu.raw
  start qsd qemu-storage-daemon --blockdev \
    file,node-name=disk,filename=qemu.raw \
    --chardev socket,path=qsd.sock,id=c,server=on,wait=off --monitor chardev=c
  wait_for 20 test -S qsd.sock
  cat >commands <<'END'
{"execute": "query-version"}
{"execute": "query-version", "id": {"a": [1, "x", null]}}
{"execute": "query-version", "arguments": {}}
{"execute": "query-jobs", "id": 0}
{"execute": "query-block-jobs"}
{"execute": "query-commands"}
{"execute": "qmp_capabilities"}
{"execute": "no-such-command", "id": "x"}
{"execute": ""}
{"execute": 5}
{"execute": null}
{"arguments": {}}
{}
[1]
{"execute": "query-jobs", "more": 1}
{"execute": "query-jobs", "arguments": []}
{"execute": "query-jobs", "arguments": {"x": 1}}
{"execute": "query-jobs", "id": 1 "x"}
{"execute": "job-pause"}
{"execute": "job-pause", "arguments": {"id": 3}}
{"execute": "job-pause", "arguments": {"id": "x", "y": 1}}
{"execute": "job-pause", "arguments": {"id": "x"}}
{"execute": "job-resume", "arguments": {"id": "x"}}
{"execute": "job-cancel", "arguments": {"id": "x"}}
{"execute": "job-complete", "arguments": {"id": "x"}}
{"execute": "job-finalize", "arguments": {"id": "x"}}
{"execute": "job-dismiss", "arguments": {"id": "x"}}
{"execute": "block-job-pause", "arguments": {"device": "x"}}
{"execute": "block-job-pause", "arguments": {"id": "x"}}
{"execute": "block-job-resume", "arguments": {"device": "x"}}
{"execute": "block-job-complete", "arguments": {"device": "x"}}
{"execute": "block-job-cancel", "arguments": {"device": "x"}}
{"execute": "block-job-cancel", "arguments": {"device": "x", "force": true}}
{"execute": "block-job-cancel", "arguments": {"device": "x", "force": 1}}
{"execute": "block-job-finalize", "arguments": {"id": "x"}}
{"execute": "block-job-dismiss", "arguments": {"id": "x"}}
{"execute": "block-job-set-speed", "arguments": {"device": "x", "speed": 1}}
{"execute": "block-job-set-speed", "arguments": {"device": "x"}}
{"execute": "block-job-set-speed", "arguments": {"device": "x", "speed": 1.5}}
{"execute": "block-job-set-speed", "arguments": {"device": "x", "speed": "1"}}
{"execute": "block-stream"}
{"execute": "block-stream", "arguments": {"device": 1}}
{"execute": "block-stream", "arguments": {"device": "nobody"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "1"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "base": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "base-node": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "base-node": "disk"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "base": "x", "base-node": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "base": "x", "bottom": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "backing-file": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "bottom": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "speed": -1}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "speed": "1"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "on-error": "x"}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "auto-dismiss": 0}}
{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "a", "x": 0}}
{"execute": "query-jobs"}
{"execute": "quit", "arguments": {"x": 1}}
END
  "$qmp" shapes qsd.sock <commands >theirs
  "$qmp" shapes qmp <commands >ours
  [ "$(wc -l <ours)" -eq "$(wc -l <commands)" ]
  diff -u theirs ours
}

@test "jobs of a chain and of a storage daemon live the same life" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
  qemu-img create -q -f qcow2 -b "$PWD/base.raw" -F raw top.qcow2
  start qsd qemu-storage-daemon --blockdev \
    driver=qcow2,node-name=disk,file.driver=file,file.filename=top.qcow2 \
    --chardev socket,path=qsd.sock,id=c,server=on,wait=off --monitor chardev=c
  wait_for 20 test -S qsd.sock
  "$qmp" life qsd.sock >theirs
  "$qmp" life qmp >ours
  [ "$(grep -c BLOCK_JOB_COMPLETED ours)" -eq 2 ]
  diff -u theirs ours
}

@test "what QEMU always says of a node is said of a layer" {
  serve_chain
  truncate -s 64M qemu.raw
  start qsd qemu-storage-daemon --blockdev \
    file,node-name=disk,filename=qemu.raw \
    --chardev socket,path=qsd.sock,id=c,server=on,wait=off --monitor chardev=c
  wait_for 20 test -S qsd.sock
  command='{"execute": "query-named-block-nodes"}'
  "$qmp" script qsd.sock <<<"$command" >theirs
  "$qmp" script qmp <<<"$command" >ours
  # dirty-flag is optional, and of file locking in QEMU.
  /usr/bin/python3 - <<'END'
import json
def flat(node, at=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, at + key + ".")
        else:
            yield at + key, type(value).__name__
theirs = dict(flat(json.load(open("theirs"))["return"][0]))
ours = dict(flat(json.load(open("ours"))["return"][0]))
del theirs["image.dirty-flag"]
missing = {k: v for k, v in theirs.items() if ours.get(k) != v}
assert not missing, missing
END
}

@test "the operator is told that requests of a client fail" {
  truncate -s 1M base.raw
  serve_by base "$NBDKIT" -f -r --filter=error -- file base.raw \
    error-pread-rate=100% error-file="$PWD/fail"
  local base=$uri
  make_overlay top.fvd "$base"
  serve top.fvd --allow "$base" --control qmp
  start watch "$qmp" watch qmp
  wait_for 20 test -s watch.out
  qemu-io -f raw -c 'read 0 64k' "$uri"
  touch fail
  # By one client, so that they fail within the same second or two.
  reads=()
  for ((i = 0; i < 100; i++)); do
    reads+=(-c 'read 0 64k')
  done
  run qemu-io -f raw "${reads[@]}" "$uri"
  [ "$(grep -c "read failed: Input/output error" <<<"$output")" -eq 100 ]
  wait_for 20 grep -q BLOCK_IO_ERROR watch.out
  sed 1d watch.out >events
  [ "$(wc -l <events)" -lt 50 ]
  head -n 1 events | member 'str(D["data"])' >data
  [ "$(cat data)" = "{'action': 'report', 'device': 'disk', 'node-name': \
'top.fvd', 'nospace': False, 'operation': 'read', 'reason': \
'Input/output error', 'x-count': 1}" ]
}

@test "every command is in docs/control.md, and the other way round" {
  serve_chain
  ask '{"execute": "query-commands"}' |
    member '"\n".join(c["name"] for c in D["return"])' | sort >have
  sed -n '/^## Commands/,/^## /s/^| \(`.*`\) |.*|.*|$/\1/p' \
    "$top_srcdir/docs/control.md" | cut -d'|' -f1 |
    grep -oE '`[a-z_-]+`' | tr -d '`' | grep -v '^x-' | sort >documented
  diff -u documented have
}

@test "a hostile client harms nobody" {
  serve_chain
  nbdkit=$(pgrep -P "$pid")
  for what in garbage huge deep half pipelined flood crowd too_many hasty; do
    echo "$what"
    "$qmp" hostile qmp "$what"
  done
  qemu-io -f raw -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' "$uri"
  # All of them are gone again.
  no_clients ()
  {
    [ "$(ss -xH | grep -cF "$PWD/qmp")" -eq 0 ]
  }
  wait_for 20 no_clients
  [ "$(pgrep -P "$pid")" = "$nbdkit" ]
}

@test "jobs and verbs of nbdchain say what they find" {
  serve_chain
  run -0 "$NBDCHAIN" jobs qmp
  [ "$output" = "No jobs" ]
  run -0 "$NBDCHAIN" jobs --json qmp
  [ "$output" = "[]" ]
  for verb in pause resume cancel complete; do
    run -1 "$NBDCHAIN" "$verb" qmp disk
    [ "$output" = "nbdchain: qmp: job 'disk' not found" ]
  done
  run -1 "$NBDCHAIN" set-speed qmp disk 20M
  [ "$output" = "nbdchain: qmp: job 'disk' not found" ]
  run -1 "$NBDCHAIN" cancel --force qmp disk
  for rate in "disk fast" disk; do
    # shellcheck disable=SC2086         # one word or two
    run -2 "$NBDCHAIN" set-speed qmp $rate
    [[ $output == *"RATE: '${rate#* }' is none: "*"after the JOB"* ]]
  done
  run -2 "$NBDCHAIN" set-speed qmp disk 1X
  [[ $output == *"RATE: '1X' is not a size"* ]]
  run -2 "$NBDCHAIN" set-speed qmp
  [[ $output == *"the control SOCKET, the JOB if there are several, and the RATE"* ]]
  run -2 "$NBDCHAIN" pause qmp disk more
  [[ $output == *"the control SOCKET, and the JOB if there are several"* ]]
  run -2 "$NBDCHAIN" jobs
  run -2 "$NBDCHAIN" pause --force qmp disk
  run -1 "$NBDCHAIN" jobs no.qmp
  [[ $output == *"nbdchain serve --control"* ]]
  for command in jobs pause resume cancel complete; do
    run -1 "$NBDCHAIN" "$command" top.fvd
    [[ $output == "nbdchain: top.fvd: is a file, and no socket: give the control socket of its server, "*"nbdchain serve --control" ]]
  done
  run -1 "$NBDCHAIN" set-speed . 1M
  [[ $output == *".: is a directory, and no socket"* ]]
  run -1 "$NBDCHAIN" jobs serve.sock
  [[ $output == *"no QMP server"* ]]
}

# have MEMBER VALUE...: of the jobs, in order.
have ()
{
  [ "$("$NBDCHAIN" jobs --json qmp |
    member "' '.join(str(j['$1']) for j in D)")" = "${*:2}" ]
}

@test "a verb without a job means the only one that it can be applied to" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
  for verb in pause resume cancel complete; do
    run -1 "$NBDCHAIN" "$verb" qmp
    [[ $output == "nbdchain: qmp: there is no job, so none can be $verb"*'"nbdchain jobs qmp"'* ]]
  done
  run -1 "$NBDCHAIN" set-speed qmp 20M
  [[ $output == "nbdchain: qmp: there is no job, so none can be given a rate "* ]]

  stream '"job-id": "j", "auto-dismiss": false'
  wait_for 20 have status running
  run -1 "$NBDCHAIN" complete qmp
  [[ $output == *"qmp: no job can be completed now: j (stream) is running ("* ]]
  run -1 "$NBDCHAIN" resume qmp
  [[ $output == *"no job can be resumed now: j (stream) is running ("* ]]
  [ "$("$NBDCHAIN" set-speed --json qmp 32K | member 'D["x-speed"]')" = 32768 ]
  "$NBDCHAIN" set-speed qmp j 16K
  have x-speed 16384
  run -0 "$NBDCHAIN" pause qmp
  [ -z "$output" ]
  # At once, too, when its status may not have followed.
  run -1 "$NBDCHAIN" pause qmp
  [[ $output == *"no job can be paused now: j (stream) is paused ("* ]]
  wait_for 20 have status paused
  [ "$("$NBDCHAIN" resume --json qmp | member 'D["id"]')" = j ]

  # One that has ended, and is not dismissed, does not count.
  "$NBDCHAIN" cancel qmp
  wait_for 20 have status concluded
  run -1 "$NBDCHAIN" cancel qmp
  [[ $output == *"no job can be cancelled now: j (stream) is concluded ("* ]]
  stream '"job-id": "k"'
  "$NBDCHAIN" set-speed qmp 8K
  "$NBDCHAIN" cancel qmp
  wait_for 20 have id j
}

@test "with several jobs a verb wants to know which" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp --prefetch -- prefetch-start-delay=600
  stream '"job-id": "j"'
  wait_for 20 have status running running
  run -1 "$NBDCHAIN" pause qmp
  [[ $output == *"qmp: 2 jobs can be paused: prefetch (prefetch) is running, j (stream) is running; name one: nbdchain pause qmp prefetch" ]]
  run -1 "$NBDCHAIN" cancel qmp
  [[ $output == *"2 jobs can be cancelled: "*"nbdchain cancel qmp prefetch" ]]
  run -1 "$NBDCHAIN" set-speed qmp 1M
  [[ $output == *"2 jobs can be given a rate: "*"nbdchain set-speed qmp prefetch RATE" ]]
  have status running running
  have x-speed 0 65536
  # Of one that waits and one that runs, it is clear.
  "$NBDCHAIN" pause qmp j
  [ "$("$NBDCHAIN" pause --json qmp | member 'D["id"]')" = prefetch ]
  "$NBDCHAIN" resume qmp j
  [ "$("$NBDCHAIN" resume --json qmp | member 'D["id"]')" = prefetch ]
}

# A job of a kind that there is not.
record ()
{
  local uuid
  uuid=$("$NBDCHAIN" info --json "$1" | member 'D["fvd"]["uuid"]')
  printf '{"nbdchain-jobs": 1, "uuid": "%s", "jobs": [%s]}' "$uuid" \
    '{"id": "disk", "type": "dance", "arguments": {}, "speed": 0,
      "on-error": "report", "paused": false, "auto-finalize": true,
      "auto-dismiss": true}'
}

@test "what cannot go on is reported, and stays recorded" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  record top.fvd >top.fvd.jobs
  cp top.fvd.jobs before
  serve top.fvd --control qmp
  wait_for 20 grep "job 'disk' (dance) cannot go on" serve.err
  [ "$(ask '{"execute": "query-jobs"}')" = '{"return": []}' ]
  stop "$pid"
  cmp before top.fvd.jobs
}

@test "jobs shows what a job is, how far it came, and what keeps it" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  serve_by base "$NBDKIT" -f -r --filter=error -- file base.raw \
    error-pread-rate=100% error-file="$PWD/fail"
  local base=$uri
  make_overlay top.fvd "$base"
  serve top.fvd --allow "$base" --control qmp
  touch fail
  stream '"job-id": "j", "on-error": "stop"'
  is_stopped ()
  {
    "$NBDCHAIN" jobs qmp >shown
    grep -qx 'j: stream, paused' shown
  }
  wait_for 20 is_stopped
  cat shown
  grep -qx '  Progress: *0 bytes of 4 MiB .*' shown
  grep -qx '  Limit: *64 KiB/s' shown
  grep -qx '  Slowed by: *error' shown
  grep -qx '  Trouble: .*Input/output error' shown
  run ! grep '  Error:' shown
  rm fail
  "$NBDCHAIN" set-speed qmp j 0
  "$NBDCHAIN" resume qmp j
  wait_for 20 no_jobs
}

@test "a job that runs goes on after quit, and as it was told to" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
  stream '"job-id": "j", "on-error": "stop"'
  "$NBDCHAIN" set-speed qmp j 128K
  "$NBDCHAIN" pause qmp j
  [ "$(member '[j["id"] for j in D["jobs"]]' <top.fvd.jobs)" = "['j']" ]
  ask '{"execute": "quit"}' >/dev/null
  wait "$pid"
  serve top.fvd --control qmp
  wait_for 20 paused_as_before
  grep "job 'j' (stream) goes on: it ran when the last server ended" serve.err
  "$NBDCHAIN" set-speed qmp j 0
  "$NBDCHAIN" resume qmp j
  wait_for 20 no_jobs
  [ ! -e top.fvd.jobs ]
  stop "$pid"
  [ "$("$NBDCHAIN" info --json top.fvd | member 'D["backing"]')" = None ]
  "$NBDCHAIN" compare top.fvd -F raw base.raw
}

paused_as_before ()
{
  [ "$("$NBDCHAIN" jobs --json qmp |
    member '[[j["id"], j["status"], j["x-speed"], j["x-on-error"],
              j["total-progress"]]
             for j in D]')" = "[['j', 'paused', 131072, 'stop', 4194304]]" ]
}

@test "a job that was cancelled, or has ended, does not go on" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  make_overlay top.fvd base.raw
  serve top.fvd --control qmp
  stream '"job-id": "disk"'
  [ -e top.fvd.jobs ]
  "$NBDCHAIN" cancel qmp disk
  [ ! -e top.fvd.jobs ]
  kill -KILL "$(pgrep -P "$pid")"
  wait_for 20 no_jobs
}

@test "a record that others could have made is refused, and the disk served" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  make_overlay other.fvd base.raw
  record other.fvd >top.fvd.jobs
  serve top.fvd --control qmp
  wait_for 20 grep "top.fvd.jobs: no job goes on.*belongs to the image with the UUID" \
    serve.err
  qemu-io -f raw -c 'write -P 7 0 64k' "$uri"
  stop "$pid"
  record top.fvd >top.fvd.jobs
  chmod 666 top.fvd.jobs
  serve top.fvd
  wait_for 20 grep "top.fvd.jobs: no job goes on.*may write" serve.err
}

# refuses_record FILE WHY [ARGUMENT...]: top.fvd is not served, since FILE is
# no record of jobs, and FILE stays as it is.
refuses_record ()
{
  local file=$1 why=$2 found
  shift 2
  found=$(stat -c '%i %s' "$file")
  run -1 timeout 20 "$NBDCHAIN" serve top.fvd -U s "$@"
  [[ $output == *"$file: $why"*"have the record elsewhere (nbdchain serve --jobs FILE, jobs=FILE)"* ]]
  [ "$(grep -c "$file: $why" <<<"$output")" -eq 1 ]
  [ "$(stat -c '%i %s' "$file")" = "$found" ]
  [ ! -e s ]
}

@test "what is no record of jobs is never replaced by one" {
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  make_overlay top.fvd base.raw
  make_overlay other.fvd base.raw
  local no="is no record of jobs" mine="is a file of the disk"
  refuses_record other.fvd "$no (it has more than 1048576 bytes)" \
    --jobs other.fvd
  refuses_record top.fvd "$mine" --jobs top.fvd
  refuses_record base.raw "$mine" --jobs ./base.raw
  ln -s other.fvd link
  refuses_record link "$no (it is a symbolic link)" --jobs link
  ln -sfn top.fvd link
  refuses_record link "$mine" --jobs link
  # The same for what is where the record is if nothing is said.
  mkfifo top.fvd.jobs
  refuses_record top.fvd.jobs "$no (it is no regular file)"
  rm top.fvd.jobs
  echo hello >top.fvd.jobs
  refuses_record top.fvd.jobs "$no (it does not begin as one)"
  run -0 "$NBDCHAIN" check top.fvd
  [[ $output != *warning:* ]]
  # What is not written to is not looked at.
  serve top.fvd --read-only --control qmp
  stop "$pid"
  serve top.fvd --resume off --control qmp
  stop "$pid"
  # An empty file is nothing to lose, and one that comes later is.
  : >empty
  serve top.fvd --control qmp --jobs empty
  stream '"job-id": "j"'
  [ "$(member '[j["id"] for j in D["jobs"]]' <empty)" = "['j']" ]
  echo hello >empty
  "$NBDCHAIN" cancel qmp j
  grep "empty: which jobs run could not be recorded: it does not begin as one" \
    serve.err
  [ "$(cat empty)" = hello ]
}

@test "a layer is not replaced by a record of jobs, whatever is in it" {
  truncate -s 1M base.raw
  make_overlay mid.fvd base.raw
  "$NBDCHAIN" create --data-file data.raw over.fvd 1M
  record mid.fvd >base.raw
  "$NBDCHAIN" create -b base.raw -F raw top.fvd
  refuses_record base.raw "is a file of the disk" --jobs base.raw
  cp over.fvd top.fvd
  refuses_record data.raw "is a file of the disk" --jobs data.raw
}

@test "the record can be elsewhere, and is looked at only if it is wanted" {
  truncate -s 1M base.raw
  make_overlay top.fvd base.raw
  mkdir elsewhere
  record top.fvd | sed 's/dance/sing/' >elsewhere/jobs
  record top.fvd >top.fvd.jobs
  serve top.fvd --jobs elsewhere/jobs
  wait_for 20 grep "(sing) cannot go on" serve.err
  run ! grep dance serve.err
  stop "$pid"
  serve top.fvd --resume off --control qmp
  ask '{"execute": "query-jobs"}' | grep -q return   # after it would be told
  run ! grep "cannot go on" serve.err
  stop "$pid"
  serve top.fvd --read-only --control qmp
  ask '{"execute": "query-jobs"}' | grep -q return   # after it would be told
  run ! grep "cannot go on" serve.err
  stop "$pid"
  run -1 "$NBDCHAIN" serve top.fvd -U s --resume off --jobs elsewhere/jobs
  [[ $output == *"jobs= goes with resume=true"* ]]
  run -2 "$NBDCHAIN" serve top.fvd -U s --resume maybe
  [[ $output == *"--resume: 'maybe' is not known: give on or off"* ]]
}

@test "an image on a device has its jobs recorded where it is told, or not" {
  [ "$(id -u)" -eq 0 ] || skip "needs root, for a loop device"
  dd if=/dev/urandom of=base.raw bs=1M count=4 status=none
  truncate -s 32M device.img
  loop_device device.img
  "$NBDCHAIN" create -b "$PWD/base.raw" -F raw --journal-size 16K "$device"
  serve "$device" --allow "$PWD" --control qmp
  stream '"job-id": "j"'
  stop "$pid"
  [ ! -e "$device.jobs" ]
  serve "$device" --allow "$PWD" --control qmp --jobs top.jobs
  [ "$(ask '{"execute": "query-jobs"}')" = '{"return": []}' ]
  stream '"job-id": "j"'
  stop "$pid"
  [ ! -e "$device.jobs" ]
  serve "$device" --allow "$PWD" --control qmp --jobs top.jobs
  ask '{"execute": "query-jobs"}' | grep -q '"id": "j"'
}

@test "nbdkit as another user: the socket is that user's, and root is refused" {
  [ "$(id -u)" -eq 0 ] || skip "needs root, to become another user"
  scratch_dir
  chmod 755 "$scratch"
  mkdir "$scratch/own"
  dd if=/dev/urandom of="$scratch/own/base.raw" bs=1M count=4 status=none
  make_overlay "$scratch/own/top.fvd" "$scratch/own/base.raw"
  chown -R 54321:54321 "$scratch/own"
  serve "$scratch/own/top.fvd" --control "$scratch/own/qmp" -- -u 54321 -g 54321
  [ "$(stat -c '%u %a' "$scratch/own/qmp")" = "54321 600" ]
  "$qmp" as-user 54321 "$scratch/own/qmp" | member 'D["QMP"]'
  # Root could open the socket.
  run -0 "$qmp" as-user 0 "$scratch/own/qmp"
  [[ $output == *GenericError*"only the user"* ]]
}

@test "strings may be in single quotes, as QEMU takes them" {
  serve_chain
  [ "$(ask "{'execute': 'query-version', 'id': 'it\\'s \"one\"'}" |
       member "D['id']")" = "it's \"one\"" ]
  ask "{'execute': \"query-status\", 'id': {'a\\\\': '{[\\u00e4'}}" |
    member "D['id']" | grep -F "{'a\\\\': '{[ä'}"
  ask "{'execute': 'x" | grep -q error
}

@test "messages are ASCII, whatever names they contain" {
  truncate -s 1M base.raw
  make_overlay 'ä€😀.fvd' base.raw
  serve 'ä€😀.fvd' --control qmp
  ask '{"execute": "query-named-block-nodes", "id": "ü"}' >reply
  run ! LC_ALL=C grep -P '[^\x00-\x7f]' reply
  [ "$(member "D['id']" <reply)" = ü ]
  member "D['return'][0]['file']" <reply | grep -q 'ä€😀.fvd'
}
