#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What the nbdchain command says and which exit code it gives; what it does to
# images, as far as other tests do not see it.
# shellcheck disable=SC2154             # run-tests sets these
# shellcheck disable=SC2016             # what is quoted is for another shell

bats_require_minimum_version 1.5.0

setup ()
{
  cd "$BATS_TEST_TMPDIR" || return 1
  unset COLUMNS NO_COLOR
  # nbdsh needs the python3 that it was installed for.
  PATH=/usr/bin:$PATH
}

teardown ()
{
  if [ -n "${SERVER_PID-}" ]; then
    kill "$SERVER_PID" 2>/dev/null || :
    wait "$SERVER_PID" 2>/dev/null || :
  fi
}

# serve_raw FILE [NBDKIT-OPTION...]: serve FILE in the background; sets uri and
# SERVER_PID.
serve_raw ()
{
  local file=$1
  shift
  nbdkit -f -P "$PWD/pid" -U "$PWD/base.sock" file "$file" "$@" 3>&- &
  SERVER_PID=$!
  uri="nbd+unix:///?socket=$PWD/base.sock"
  until [ -s pid ]; do
    kill -0 "$SERVER_PID"
  done
}

# on_chain IMAGE PYTHON...: serve the chain of IMAGE for the length of these
# statements of nbdsh.
on_chain ()
{
  local image=$1 args=() statement
  shift
  for statement; do
    args+=(-c "$statement")
  done
  printf -v statement '%q ' "${args[@]}"
  LD_LIBRARY_PATH=$top_builddir/lib/.libs LD_PRELOAD=$NBDCHAIN_PRELOAD \
    "$NBDKIT" -U - "$NBDCHAIN_PLUGIN" "$image" allow="$PWD" \
    --run "unset LD_PRELOAD; nbdsh -u \"\$uri\" $statement"
}

# json FILTER: the value that the Python expression FILTER has for the JSON D
# in $output.
json ()
{
  python3 -c 'import json, sys
D = json.loads(sys.argv[1])
print(eval(sys.argv[2]))' "$output" "$1"
}

@test "help is on stdout, and names every command" {
  run -0 --separate-stderr "$NBDCHAIN" --help
  for command in create info map check compare snapshot resize rebase amend \
                 profile stream serve jobs pause resume cancel complete set-speed; do
    [[ $output == *"  $command "* ]]
  done
  [ -z "$stderr" ]
}

@test "every command has its own help" {
  for command in create info map check compare snapshot resize rebase amend \
                 profile stream serve jobs pause resume cancel complete set-speed; do
    run -0 --separate-stderr "$NBDCHAIN" "$command" --help
    [[ $output == "nbdchain $command: "* ]]
    [ -z "$stderr" ]
  done
}

@test "the version is that of the build" {
  run -0 "$NBDCHAIN" --version
  [ "$output" = "nbdchain $NBDCHAIN_VERSION" ]
}

@test "no command at all shows the help on stderr, and fails" {
  run -2 --separate-stderr "$NBDCHAIN"
  [ -z "$output" ]
  [[ $stderr == *"Commands:"* ]]
}

@test "an unknown command is answered with the nearest one and with all" {
  run -2 "$NBDCHAIN" snapshto
  [[ $output == *"no command 'snapshto'; did you mean 'snapshot'?"* ]]
  [[ $output == *"create, info, map, check, compare, snapshot, resize, rebase, amend, profile, stream, serve"* ]]
  run -2 "$NBDCHAIN" snap
  [[ $output == *"did you mean 'snapshot'?"* ]]
  run -2 "$NBDCHAIN" frobnicate
  [[ $output != *"did you mean"* ]]
  run -2 "$NBDCHAIN" ''
  [[ $output != *"did you mean"* ]]
}

@test "an unknown option and missing or superfluous arguments are wrong usage" {
  for command in create info map check compare snapshot resize rebase amend \
                 profile stream serve jobs pause resume cancel complete set-speed; do
    run -2 "$NBDCHAIN" "$command" --frobnicate
    [[ $output == *"--frobnicate"*"Try 'nbdchain $command --help'."* ]]
    run -2 "$NBDCHAIN" "$command"
    [[ $output == "nbdchain: "* ]]
  done
  run -2 "$NBDCHAIN" create a.fvd 1M extra
  [[ $output == *"'extra'"* ]]
  run -2 "$NBDCHAIN" check a.fvd b.fvd
  run -2 "$NBDCHAIN" snapshot a.fvd
  [ ! -e a.fvd ]
}

@test "output that cannot be written is a failure" {
  "$NBDCHAIN" create a.fvd 1M
  run -1 sh -c '"$NBDCHAIN" info a.fvd >/dev/full'
  [[ $output == *"No space left"* ]]
}

@test "a reader that has seen enough gets no complaint" {
  "$NBDCHAIN" create a.fvd 1M
  run -0 sh -c '{ "$NBDCHAIN" map --extents a.fvd; echo "$?" >status; } | :'
  [ -z "$output" ]
}

@test "create takes sizes with suffixes and fractions" {
  local size want
  while read -r size want; do
    rm -f a.fvd
    run -0 "$NBDCHAIN" create --json a.fvd "$size"
    [ "$(json 'D["size"]')" = "$want" ]
  done <<'END'
0 0
1 1
4097 4097
64K 65536
64k 65536
1.5M 1572864
1.25k 1280
0.1K 102
3MiB 3145728
2G 2147483648
8T 8796093022208
END
}

@test "create names a size that is none, and what is allowed" {
  local size
  for size in '' x 1X -1 1.5 0x10 1KB 1KiBs ' 1' '1 M' .5M; do
    run -2 "$NBDCHAIN" create -- a.fvd "$size"
    [[ $output == *"SIZE: '$size' is not a size: "*"K, M, G, T, P"* ]]
  done
  for size in 99999999999999999999 9000P 9223372036854775808; do
    run -2 "$NBDCHAIN" create a.fvd "$size"
    [[ $output == *"'$size' is too large"* ]]
  done
  [ ! -e a.fvd ]
}

@test "create without size and backing is refused" {
  run -2 "$NBDCHAIN" create a.fvd
  [[ $output == *SIZE* ]]
  [ ! -e a.fvd ]
}

@test "create wants the format of a backing, and says why" {
  truncate -s 1M base.img
  run -2 "$NBDCHAIN" create -b base.img a.fvd
  [[ $output == *"-F raw or -F fvd"*"never guessed"* ]]
  run -2 "$NBDCHAIN" create -F raw a.fvd 1M
  [[ $output == *"no -b"* ]]
  run -1 "$NBDCHAIN" create -b base.img -F frob a.fvd
  [[ $output == *frob* ]]
  [ ! -e a.fvd ]
}

@test "create refuses bad block and journal sizes" {
  for size in 0 1000 5000; do
    run -2 "$NBDCHAIN" create --block-size "$size" a.fvd 1M
    [[ $output == *"--block-size: '$size'"* ]]
  done
  for size in 512 2K 4M 1G; do
    run ! "$NBDCHAIN" create --block-size "$size" a.fvd 1M
  done
  for size in 0 4K 2G; do
    run ! "$NBDCHAIN" create --journal-size "$size" a.fvd 1M
  done
  [ ! -e a.fvd ]
  run -0 "$NBDCHAIN" create --json --block-size 64K --journal-size 2M a.fvd 1M
  [ "$(json 'D["block_size"], D["journal_size"]')" = "(65536, 2097152)" ]
}

@test "create does not touch what exists" {
  echo precious >a.fvd
  run -1 "$NBDCHAIN" create a.fvd 1M
  [[ $output == *a.fvd* ]]
  [ "$(cat a.fvd)" = precious ]
}

@test "create takes the size from the backing, and says what it made" {
  truncate -s 1234567 base.img
  run -0 "$NBDCHAIN" create -b base.img -F raw a.fvd
  [[ $output == "Created a.fvd: 1.1 MiB (1234567 bytes), blocks of 4 KiB,"* ]]
  [[ $output == *"on top of base.img (raw)" ]]
  run -0 "$NBDCHAIN" create --json -b a.fvd -F fvd b.fvd
  [ "$(json 'D["size"], D["backing"], D["backing_format"]')" = \
    "(1234567, 'a.fvd', 'fvd')" ]
}

@test "create asks a remote for its size and reads nothing" {
  truncate -s 5M base.img
  serve_raw base.img --filter=log logfile="$PWD/log"
  run -0 "$NBDCHAIN" create --json -b "$uri" -F raw a.fvd
  [ "$(json 'D["size"]')" = 5242880 ]
  grep -q Connect log
  run ! grep -E ' (Read|Extents|Cache) ' log
}

@test "create records no command, and says how to name it" {
  local command='[ nbdkit --exit-with-parent memory 3M ]'
  run -0 "$NBDCHAIN" create -b "$command" -F raw a.fvd
  [[ $output == *"--base '$command'"* ]]
  run -0 "$NBDCHAIN" info --json a.fvd
  [ "$(json 'D["size"], D["backing"]["reference"]')" = "(3145728, None)" ]
  run -0 "$NBDCHAIN" info a.fvd
  [[ $output == *"given by the operator (--base)"* ]]
  run -0 "$NBDCHAIN" create --json -b "$command" -F raw b.fvd
  [ "$(json 'D["backing"], D["backing_format"]')" = "(None, 'raw')" ]
  run -0 "$NBDCHAIN" create --json c.fvd 1M
  [ "$(json 'D["backing"], D["backing_format"]')" = "(None, None)" ]
  run -1 "$NBDCHAIN" map a.fvd
  [[ $output == *--base* ]]
}

@test "info describes an image without opening what it names" {
  truncate -s 1M base.img
  "$NBDCHAIN" create -b base.img -F raw a.fvd
  rm base.img
  run -0 "$NBDCHAIN" info a.fvd
  [[ $output == *"size: "*"1 MiB (1048576 bytes)"* ]]
  [[ $output == *"state: "*"clean"* ]]
  [[ $output == *"backing: "*"base.img"* ]]
  run -0 "$NBDCHAIN" info --json a.fvd
  [ "$(json 'D["fvd"]["clean"], D["retired"], D["allocated"]')" = \
    "(True, False, 0)" ]
  [ "$(json 'D["backing"]["reference"]')" = base.img ]
}

@test "info counts what an image holds" {
  "$NBDCHAIN" create a.fvd 1M
  on_chain a.fvd 'h.pwrite(b"x" * 8192, 4096)' 'h.flush()'
  run -0 "$NBDCHAIN" info --json a.fvd
  [ "$(json 'D["allocated"], D["fvd"]["clean"]')" = "(8192, True)" ]
  run -0 "$NBDCHAIN" info a.fvd
  [[ $output == *"8 KiB (8192 bytes), 0.7 % of the disk"* ]] ||
    [[ $output == *"8 KiB (8192 bytes), 0.8 % of the disk"* ]]
}

@test "info and map work while the image is served" {
  "$NBDCHAIN" create a.fvd 1M
  # shellcheck disable=SC2016
  LD_LIBRARY_PATH=$top_builddir/lib/.libs LD_PRELOAD=$NBDCHAIN_PRELOAD \
    "$NBDKIT" -U - "$NBDCHAIN_PLUGIN" a.fvd \
    --run 'unset LD_PRELOAD LD_LIBRARY_PATH
           "$NBDCHAIN" info a.fvd >info && "$NBDCHAIN" map a.fvd >map'
  grep -q 'state: .*in use' info
  grep -q "a.fvd: 1 MiB" map
}

@test "info --chain shows every layer and a summary" {
  truncate -s 1M base.img
  "$NBDCHAIN" create -b base.img -F raw mid.fvd
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd 2M
  run -0 "$NBDCHAIN" info --chain top.fvd
  [[ $output == *"layer 0: top.fvd"*"layer 1: mid.fvd"*"layer 2: base.img"* ]]
  [ "${#lines[@]}" -gt 20 ]
  run -0 "$NBDCHAIN" info --chain --json top.fvd
  [ "$(json '[(l["index"], l["name"], l["format"]) for l in D["layers"]]')" = \
    "[(0, 'top.fvd', 'fvd'), (1, 'mid.fvd', 'fvd'), (2, 'base.img', 'raw')]" ]
}

@test "a backing elsewhere is followed only where --allow says" {
  mkdir here there
  truncate -s 1M there/base.img
  "$NBDCHAIN" create -b there/base.img -F raw here/top.fvd
  for command in "info --chain" map "check --chain"; do
    # shellcheck disable=SC2086
    run -1 "$NBDCHAIN" $command here/top.fvd
    [[ $output == *base.img*--allow* ]]
    # shellcheck disable=SC2086
    run -0 "$NBDCHAIN" $command --allow "$PWD/there" here/top.fvd
    # shellcheck disable=SC2086
    run -0 "$NBDCHAIN" $command --allow there here/top.fvd
    # shellcheck disable=SC2086
    run -0 "$NBDCHAIN" $command --base there/base.img here/top.fvd
  done
}

@test "map tells which layer each byte comes from" {
  dd if=/dev/urandom of=base.img bs=1M count=1 status=none
  "$NBDCHAIN" create -b base.img -F raw mid.fvd
  on_chain mid.fvd 'h.pwrite(b"m" * 16384, 65536)'
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd 2M
  on_chain top.fvd 'h.pwrite(b"t" * 4096, 65536)'
  run -0 "$NBDCHAIN" map --json top.fvd
  [ "$(json '[(e["offset"], e["length"], e["layer"]) for e in D["extents"]]')" \
    = "[(0, 65536, 2), (65536, 4096, 0), (69632, 12288, 1), (81920, 966656, 2), (1048576, 1048576, None)]" ]
  [ "$(json '[l["bytes"] for l in D["layers"]]')" = \
    "[4096, 12288, 1032192]" ]
  [ "$(json '[e["zero"] for e in D["extents"]]')" = \
    "[False, False, False, False, True]" ]

  run -0 "$NBDCHAIN" map --extents top.fvd
  [ "${#lines[@]}" -eq 6 ]
  [[ ${lines[2]} == *65536*4096*0*top.fvd ]]
  [[ ${lines[5]} == *1048576*1048576*zeros ]]
}

@test "map draws the disk as wide as the terminal, in letters" {
  dd if=/dev/urandom of=base.img bs=512K count=1 status=none
  "$NBDCHAIN" create -b base.img -F raw top.fvd 1M
  on_chain top.fvd 'h.pwrite(b"t" * 65536, 0)' 'h.pwrite(b"t" * 4096, 262144)'
  COLUMNS=52 run -0 "$NBDCHAIN" map top.fvd
  [ "${lines[0]}" = "top.fvd: 1 MiB, a cell is 4 KiB" ]
  [[ ${lines[1]} =~ ^\ \ A\ +0\ \ top.fvd\ +68\ KiB\ +6.6\ %$ ]]
  [[ ${lines[2]} =~ ^\ \ B\ +1\ \ base.img\ +444\ KiB\ +43.4\ %$ ]]
  [[ ${lines[3]} =~ ^\ \ \.\ +zeros\ +512\ KiB\ +50.0\ %$ ]]
  [ "${lines[4]}" = "           0 |AAAAAAAAAAAAAAAABBBBBBBBBBBBBBBB|" ]
  [ "${lines[6]}" = "     256 KiB |ABBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB|" ]
  [ "${lines[8]}" = "     512 KiB |................................|" ]
  [[ $output != *$'\e'* ]]
}

@test "map is coloured on a terminal only, and not with NO_COLOR" {
  "$NBDCHAIN" create a.fvd 1M
  on_chain a.fvd 'h.pwrite(b"x" * 65536, 0)'
  run -0 env TERM=xterm script -qec '"$NBDCHAIN" map a.fvd' /dev/null
  [[ $output == *$'\e['* ]]
  run -0 env TERM=xterm NO_COLOR=1 script -qec '"$NBDCHAIN" map a.fvd' /dev/null
  [[ $output == *A* ]]
  [[ $output != *$'\e['* ]]
  run -0 env TERM=dumb script -qec '"$NBDCHAIN" map a.fvd' /dev/null
  [[ $output != *$'\e['* ]]
}

@test "map marks a cell that several layers hold" {
  dd if=/dev/urandom of=base.img bs=32M count=1 status=none
  "$NBDCHAIN" create -b base.img -F raw top.fvd 64M
  on_chain top.fvd 'h.pwrite(b"t" * 4096, 0)' 'h.pwrite(b"t" * 4096, 63 << 20)'
  run -0 "$NBDCHAIN" map top.fvd
  [ "${lines[0]}" = "top.fvd: 64 MiB, a cell is 64 KiB" ]
  [[ ${lines[4]} == *"0 |bBBB"* ]]
  [[ ${lines[19]} == *"|................................................:..............."* ]]
}

@test "info and map do not contact a remote" {
  dd if=/dev/urandom of=base.img bs=1M count=1 status=none
  serve_raw base.img
  "$NBDCHAIN" create -b "$uri" -F raw a.fvd
  kill "$SERVER_PID"
  wait "$SERVER_PID" || :
  unset SERVER_PID
  run -0 "$NBDCHAIN" map --json --allow "$uri" a.fvd
  [ "$(json '[(e["length"], e["layer"]) for e in D["extents"]]')" = \
    "[(1048576, 1)]" ]
  run -0 "$NBDCHAIN" info --chain --allow "$uri" a.fvd
  [[ $output == *"raw, remote"* ]]
}

@test "a sound image passes the check, with the base gone" {
  truncate -s 1M base.img
  "$NBDCHAIN" create -b base.img -F raw a.fvd
  rm base.img
  run -0 "$NBDCHAIN" check a.fvd
  [[ $output == "a.fvd: no errors; "*"checked, 0 bytes allocated, 0 records in the journal" ]]
  run -0 "$NBDCHAIN" check --json a.fvd
  [ "$(json 'D["errors"], D["findings"], D["allocated"]')" = "(0, [], 0)" ]
}

@test "check finds damage, and its exit code tells" {
  "$NBDCHAIN" create a.fvd 64M
  on_chain a.fvd 'h.pwrite(b"x" * 65536, 65536)'
  # The summary is behind the two headers.
  printf '\377' | dd of=a.fvd bs=1 seek=8192 conv=notrunc status=none
  run -3 --separate-stderr "$NBDCHAIN" check a.fvd
  [[ $output == "error: "* ]]
  [[ ${lines[-2]} == "a.fvd: "*" error"*"; "* ]]
  run -3 --separate-stderr "$NBDCHAIN" check --json a.fvd
  [ "$(json 'D["errors"] > 0 and D["findings"][0]["severity"]')" = error ]
}

@test "check says of what is no image that it is none" {
  truncate -s 1M a.img
  run -3 "$NBDCHAIN" check a.img
  [[ $output == *"not an fvd image"* ]]
}

@test "a missing image is a failure, and said once" {
  for command in info check map; do
    run -1 "$NBDCHAIN" "$command" missing.fvd
    [[ $output == *"missing.fvd"*"No such file"* ]]
    [ "${#lines[@]}" -eq 1 ]
  done
}

@test "check --chain checks the images below, too" {
  "$NBDCHAIN" create mid.fvd 64M
  on_chain mid.fvd 'h.pwrite(b"x" * 65536, 65536)'
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd
  run -0 "$NBDCHAIN" check --chain top.fvd
  [ "${#lines[@]}" -eq 2 ]
  [[ ${lines[1]} == *"mid.fvd: no errors"*"64 KiB allocated"* ]]
  run -0 "$NBDCHAIN" check --chain --json top.fvd
  [ "$(json '[l["errors"] for l in D["layers"]]')" = "[0, 0]" ]
}

@test "snapshot keeps the disk as it is, and the new image goes on" {
  "$NBDCHAIN" create old.fvd 1M
  on_chain old.fvd 'h.pwrite(b"o" * 4096, 0)'
  run -0 "$NBDCHAIN" snapshot old.fvd new.fvd
  [[ $output == *"Created new.fvd: 1 MiB"*"on top of old.fvd"*"serve new.fvd" ]]
  on_chain new.fvd 'assert h.pread(4096, 0) == b"o" * 4096' \
    'h.pwrite(b"n" * 4096, 0)'

  run -0 "$NBDCHAIN" info --json old.fvd
  [ "$(json 'D["retired"], D["successor"]["path"]')" = "(True, 'new.fvd')" ]
  run -0 "$NBDCHAIN" info old.fvd
  [[ $output == *"retired by: new.fvd"* ]]
  run ! on_chain old.fvd 'h.pwrite(b"x" * 4096, 0)'
  [[ $output == *new.fvd* ]]
  run -1 "$NBDCHAIN" snapshot old.fvd other.fvd
  [[ $output == *new.fvd* ]]
  [ ! -e other.fvd ]
}

@test "snapshot does not touch what exists" {
  "$NBDCHAIN" create old.fvd 1M
  echo precious >new.fvd
  run -1 "$NBDCHAIN" snapshot old.fvd new.fvd
  [ "$(cat new.fvd)" = precious ]
  run -0 "$NBDCHAIN" info --json old.fvd
  [ "$(json 'D["retired"]')" = False ]
}

@test "snapshot tells the same as JSON" {
  "$NBDCHAIN" create old.fvd 1M
  run -0 "$NBDCHAIN" snapshot --json old.fvd new.fvd
  [ "$(json 'D["retired"], D["active"], D["size"]')" = \
    "('old.fvd', 'new.fvd', 1048576)" ]
  uuid=$(json 'D["uuid"]')
  run -0 "$NBDCHAIN" info --json old.fvd
  [ "$(json 'D["successor"]["uuid"]')" = "$uuid" ]
}

@test "a hostile name in an image cannot steer the terminal" {
  local name=$'b\e]0;owned\a\xc2\x9b31m.img'
  truncate -s 1M "$name"
  "$NBDCHAIN" create -b "$name" -F raw a.fvd
  run -0 "$NBDCHAIN" info a.fvd
  [[ $output == *'b\x1b]0;owned\x07\xc2\x9b31m.img'* ]]
  run -0 "$NBDCHAIN" info --chain a.fvd
  [[ $output != *$'\e'* ]]
  run -0 "$NBDCHAIN" map a.fvd
  [[ $output != *$'\e'* ]]
  rm "$name"
  run -1 "$NBDCHAIN" map a.fvd
  [[ $output == *'\x1b'* ]]
  [[ $output != *$'\e'* ]]
}

@test "JSON stays valid with names that are not UTF-8" {
  local name=$'b\xff\xfe.img'
  truncate -s 1M "$name"
  "$NBDCHAIN" create -b "$name" -F raw a.fvd
  run -0 "$NBDCHAIN" info --json a.fvd
  [ "$(json 'ascii(D["backing"]["reference"])')" = "'b\\ufffd\\ufffd.img'" ]
  run -0 "$NBDCHAIN" map --json a.fvd
  [ "$(json 'D["size"]')" = 1048576 ]
}
