#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What is named inside an image, which anybody may have made, leads only where
# the manual says or the operator allows; and leads there whatever the name
# looks like.
#
# All files of a test are below "here", the directory of the images, or
# "there", another one.
# shellcheck disable=SC2016             # what is quoted is for another shell
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common

# Whatever is opened, it must not hang.
patience=60

# common_setup: the setup of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"

setup ()
{
  common_setup
  mkdir here there
  top=$PWD
  cd here || return 1
  head -c 65536 /dev/urandom >"$top/there/base.raw"
  cp "$top/there/base.raw" base.raw
  want=$top/there/base.raw
}

# open_by HOW IMAGE [ALLOW...]: open the chain, of which the disk is $want.
open_by ()
{
  local how=$1 image=$2 allow nbdkit args=()
  shift 2
  for allow; do
    if [ "$how" = plugin ]; then
      args+=("allow=$allow")
    else
      args+=(--allow "$allow")
    fi
  done
  case $how in
    map) timeout "$patience" "$NBDCHAIN" map "${args[@]}" "$image" ;;
    check | info)
      timeout "$patience" "$NBDCHAIN" "$how" --chain "${args[@]}" "$image" ;;
    serve)
      timeout "$patience" "$NBDCHAIN" serve "$image" -U "$top/serve.sock" \
        "${args[@]}" ;;
    plugin)
      nbdkit_with_chain
      rm -f "$top/copy"
      copy=$top/copy timeout "$patience" "${nbdkit[@]}" -U - \
        "$NBDCHAIN_PLUGIN" "$image" "${args[@]}" \
        --run 'unset LD_PRELOAD; nbdcopy "$uri" "$copy"' &&
      cmp "$top/copy" "$want" ;;
  esac
}

# follows IMAGE [ALLOW...]: whatever opens the chain can do so.
follows ()
{
  local how
  for how in map check info plugin; do
    run -0 open_by "$how" "$@"
  done
}

# refuses [--text TEXT]... IMAGE [ALLOW...]: nothing opens the chain, and each
# says why with every TEXT, in one line.
refuses ()
{
  local how text texts=()
  while [ "$1" = --text ]; do
    texts+=("$2")
    shift 2
  done
  for how in map check info plugin serve; do
    run open_by "$how" "$@"
    if [ "$status" -ne 1 ] && { [ "$how" != check ] || [ "$status" -ne 3 ]; }
    then
      echo "$how: status $status: $output"
      return 1
    fi
    for text in "${texts[@]}"; do
      if [[ $output != *"$text"* ]]; then
        echo "$how: no '$text' in: $output"
        return 1
      fi
    done
  done
}

# overlay IMAGE REF [FORMAT]
overlay ()
{
  "$NBDCHAIN" create -b "$2" -F "${3-raw}" "$1" >/dev/null
}

# edit IMAGE FIELD=VALUE...: as a hostile author of IMAGE would do it.
edit ()
{
  /usr/bin/python3 - "$@" <<'END'
import ctypes, os, struct, sys

xxhash = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
xxhash.restype = ctypes.c_uint64
xxhash.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
STRINGS = ["reference", "format", "identity", "successor", "data_file",
           "data_format"]
NUMBERS = {"flags": (76, "<I"), "backing_size": (184, "<Q")}

with open(sys.argv[1], "r+b") as f:
    for copy in 0, 4096:
        f.seek(copy)
        header = bytearray(f.read(4096))
        if header[:8] != b"NBDCFVD\n":
            continue
        strings, at = [], 1024
        for _ in STRINGS:
            n, = struct.unpack_from("<H", header, at)
            strings.append(bytes(header[at + 2:at + 2 + n]))
            at += 2 + n
        for word in sys.argv[2:]:
            field, value = word.split("=", 1)
            if field in STRINGS:
                strings[STRINGS.index(field)] = os.fsencode(value)
            elif field in NUMBERS:
                where, kind = NUMBERS[field]
                struct.pack_into(kind, header, where, int(value))
            else:
                where = {"backing_uuid": 192, "successor_uuid": 208}[field]
                value = bytes.fromhex(value.replace("-", ""))
                header[where:where + 16] = value
        area = b"".join(struct.pack("<H", len(s)) + s for s in strings)
        header[1024:4088] = area.ljust(3064, b"\0")
        struct.pack_into("<Q", header, 4088, xxhash(bytes(header[:4088]), 4088))
        f.seek(copy)
        f.write(header)
END
}

# uuid IMAGE
uuid ()
{
  "$NBDCHAIN" info --json "$1" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["fvd"]["uuid"])'
}

# reference IMAGE: of its backing.
reference ()
{
  "$NBDCHAIN" info --json "$1" | python3 -c 'import json, sys
print(json.load(sys.stdin)["backing"]["reference"])'
}

# serve_tcp NAME FILE: on 127.0.0.1; sets $port and $pid.
serve_tcp ()
{
  local try
  for try in 1 2 3; do
    port=$(free_port)
    rm -f "$top/$1.pid"
    start "$top/$1" "$NBDKIT" -f -r -i 127.0.0.1 -p "$port" \
      -P "$top/$1.pid" file "$2"
    wait_for 20 is_ready_or_gone "$top/$1.pid" "$pid"
    [ ! -s "$top/$1.pid" ] || return 0
  done
  echo "no port in try $try"
  return 1
}

# serve_unix SOCKET FILE
serve_unix ()
{
  rm -f "$1.pid"
  start "$1" "$NBDKIT" -f -r -U "$1" -P "$1.pid" file "$2"
  wait_for 20 is_ready_or_gone "$1.pid" "$pid"
  [ -s "$1.pid" ]
}

# --- files ----------------------------------------------------------------

@test "a file below the image's directory is followed, at any depth" {
  mkdir -p sub/sub
  cp base.raw sub/sub/
  overlay a.fvd base.raw
  overlay b.fvd sub/sub/base.raw
  follows a.fvd
  follows b.fvd
  edit b.fvd reference=./sub//sub/../sub/base.raw
  follows b.fvd
  edit b.fvd "reference=$PWD/sub/sub/base.raw"
  follows b.fvd
}

@test "an absolute name outside is refused, and the message tells how" {
  overlay a.fvd base.raw
  edit a.fvd "reference=$top/there/base.raw"
  refuses --text '/a.fvd"' --text "\"$top/there/base.raw\"" \
    --text "allow=\"$top/there\"" --text "--allow \"$top/there\"" "$PWD/a.fvd"
  follows a.fvd "$top/there"
  follows a.fvd "$top/there/"
  follows a.fvd ../there
  follows a.fvd "$top"
  follows a.fvd /
}

@test "a name with .. that leads outside is refused, and the message tells how" {
  mkdir sub
  overlay a.fvd base.raw
  for ref in ../there/base.raw ./../there/base.raw sub/../../there/base.raw; do
    edit a.fvd "reference=$ref"
    refuses --text 'a.fvd"' --text "\"$ref\"" --text 'allow=' \
      --text '--allow ' a.fvd
    follows a.fvd "$top/there"
  done
  edit a.fvd reference=../here/base.raw
  follows a.fvd
}

@test "what the message of a refusal names is enough" {
  overlay a.fvd base.raw
  edit a.fvd reference=../there/base.raw
  run -1 open_by map a.fvd
  [[ $output =~ --allow\ \"([^\"]+)\" ]]
  follows a.fvd "${BASH_REMATCH[1]}"
}

@test "a directory that is allowed does not allow those named alike" {
  mkdir "$top/there2" "$top/ther"
  cp base.raw "$top/there2/"
  overlay a.fvd base.raw
  edit a.fvd reference=../there2/base.raw
  refuses --text there2 a.fvd "$top/there" "$top/ther" "$PWD"
  follows a.fvd "$top/there" "$top/there2"
}

@test "a symbolic link does not lead outside" {
  ln -s ../there/base.raw file.raw
  ln -s "$top/there/base.raw" absolute.raw
  ln -s ../there folder
  ln -s file.raw twice.raw
  overlay a.fvd base.raw
  for ref in file.raw absolute.raw folder/base.raw twice.raw; do
    edit a.fvd "reference=$ref"
    refuses --text 'a.fvd"' --text "$ref" --text 'allow=' a.fvd
    follows a.fvd "$top/there"
  done
}

@test "a symbolic link that stays inside is followed" {
  mkdir sub
  cp base.raw sub/
  ln -s sub/base.raw file.raw
  ln -s sub folder
  ln -s ../base.raw sub/up.raw
  overlay a.fvd base.raw
  for ref in file.raw folder/base.raw sub/up.raw folder/up.raw; do
    edit a.fvd "reference=$ref"
    follows a.fvd
  done
}

@test "a link out of an allowed directory is refused as well" {
  mkdir "$top/third"
  mv "$top/there/base.raw" "$top/third/"
  want=$top/third/base.raw
  ln -s ../third/base.raw "$top/there/base.raw"
  overlay a.fvd base.raw
  edit a.fvd reference=../there/base.raw
  refuses --text a.fvd --text base.raw a.fvd "$top/there"
  follows a.fvd "$top/there" "$top/third"
}

@test "each image is bound to its own directory, not to that of the top" {
  mkdir sub
  overlay sub/mid.fvd base.raw
  edit sub/mid.fvd reference=../base.raw
  overlay a.fvd sub/mid.fvd fvd
  refuses --text 'mid.fvd"' --text '"../base.raw"' a.fvd
  follows a.fvd .
}

@test "a relative name starts at the image's directory" {
  mkdir sub
  head -c 65536 /dev/urandom >sub/base.raw
  want=$PWD/sub/base.raw
  overlay sub/a.fvd sub/base.raw
  [ "$(reference sub/a.fvd)" = base.raw ]
  cd "$top/there"
  follows ../here/sub/a.fvd
  cd "$top/here/sub"
  follows a.fvd
  cd /
  follows "$top/here/sub/a.fvd"
}

@test "image and backing can be moved together" {
  mkdir one
  cp base.raw one/
  overlay one/a.fvd one/base.raw
  mv one "$top/there/two"
  follows "$top/there/two/a.fvd"
}

@test "create -b may name a file outside; to open it is another thing" {
  mkdir sub
  overlay sub/a.fvd base.raw
  refuses --text a.fvd --text base.raw sub/a.fvd
  follows sub/a.fvd .
}

@test "--base is followed as it is" {
  overlay a.fvd base.raw
  rm base.raw
  refuses --text base.raw a.fvd
  run -0 "$NBDCHAIN" map --base ../there/base.raw a.fvd
  run -0 "$NBDCHAIN" info --chain --base ../there/base.raw a.fvd
  run -0 "$NBDCHAIN" check --chain --base ../there/base.raw a.fvd
  nbdkit_with_chain
  run -0 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd \
    base=../there/base.raw --run "unset LD_PRELOAD; nbdcopy \"\$uri\" copy"
  cmp copy "$want"
  # It stands for the backing of the lowest image.
  overlay b.fvd a.fvd fvd
  run -0 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" b.fvd \
    base=../there/base.raw --run "unset LD_PRELOAD; nbdcopy \"\$uri\" copy2"
  cmp copy2 "$want"
}

# --- names ----------------------------------------------------------------

@test "a backing may have any name" {
  local names=('a b' ' a ' 'a:b' 'a,b' "it's" 'a"b' 'a\b' 'ä€𝄞' $'a\nb'
               $'a\tb\e' $'\xff\xfe' '*' '$HOME' '`id`' '%41' 'a?b#c' '-F'
               '--help' './nbd:x' './nbd://localhost/b' './[ touch ran ]' '~'
               'base=x' "$(printf 'n%.0s' {1..255})")
  local name
  for name in "${names[@]}"; do
    echo "name: $name"
    mkdir -p -- "$(dirname -- "$name")"
    cp base.raw "./$name"
    rm -f a.fvd
    run -0 "$NBDCHAIN" create "--backing=$name" -F raw a.fvd
    run -0 open_by map a.fvd
    (cd /; run -0 open_by plugin "$top/here/a.fvd")
    run -0 "$NBDCHAIN" info a.fvd
    "$NBDCHAIN" info --json a.fvd | python3 -m json.tool >/dev/null
    rm "./$name"
    run -1 open_by plugin a.fvd
    [[ $output == *a.fvd* ]]
  done
  [ ! -e ran ]
}

@test "an image may be in a directory of any name" {
  local name
  for name in 'a b' 'a:b' 'a,b' "it's" 'a"b' 'ä€𝄞' $'a\nb' 'nbd:' '[ x ]'; do
    echo "name: $name"
    mkdir "$name"
    cp base.raw "$name/"
    overlay "./$name/a.fvd" "./$name/base.raw"
    run -0 open_by plugin "./$name/a.fvd"
    run -0 open_by map "./$name/a.fvd"
    edit "./$name/a.fvd" reference=../base.raw
    run -1 open_by plugin "./$name/a.fvd"
    [[ $output == *"../base.raw"* ]]
    run -0 open_by plugin "./$name/a.fvd" .
  done
}

@test "a path may be long, and one that is too long is refused" {
  local long=d
  while [ ${#long} -lt 1000 ]; do
    long+=/$(printf 'd%.0s' {1..99})
  done
  mkdir -p "$long"
  cp base.raw "$long/"
  overlay a.fvd "$long/base.raw"
  follows a.fvd
  mkdir -p "$long/$long"
  cp base.raw "$long/$long/"
  run -1 "$NBDCHAIN" create -b "$long/$long/base.raw" -F raw b.fvd
  [[ $output == *"too long"* || $output == *1024* ]]
  [ ! -e b.fvd ]
  edit a.fvd "reference=$(printf 'r%.0s' {1..1025})"
  refuses --text a.fvd a.fvd
}

# --- remotes --------------------------------------------------------------

@test "a TCP remote is refused until its scheme, host, port and path are allowed" {
  local allow
  serve_tcp server base.raw
  overlay a.fvd "nbd://127.0.0.1:$port/vm"
  refuses --text 'a.fvd"' --text "\"nbd://127.0.0.1:$port/vm\"" \
    --text "allow=\"nbd://127.0.0.1:$port/vm\"" \
    --text "--allow \"nbd://127.0.0.1:$port/vm\"" a.fvd
  for allow in nbd://127.0.0.1/ nbd://127.0.0.1/vm nbd://127.0.0.1:1/vm \
               "nbd://127.0.0.2:$port/vm" "nbd://localhost:$port/vm" \
               "nbd://127.0.0.1:$port/v" "nbd://127.0.0.1:$port/vm/a" \
               "nbd://127.0.0.1:$port/vm2" "nbd://127.0.0.1:$port/VM" \
               "nbd://127.0.0.1:${port%?}/vm" "nbds://127.0.0.1:$port/vm" \
               . / "$top"; do
    run ! open_by plugin a.fvd "$allow"
    echo "$allow: $output"
    [[ $output == *"nbd://127.0.0.1:$port/vm"* ]]
    run -1 open_by map a.fvd "$allow"
    [[ $output == *"nbd://127.0.0.1:$port/vm"* ]]
  done
  follows a.fvd "nbd://127.0.0.1:$port/"
  follows a.fvd "nbd://127.0.0.1:$port/vm"
  follows a.fvd nbd://example.org/ . "nbd://127.0.0.1:$port/vm"
}

@test "an allowed path stands for what is below it, and for nothing alike" {
  serve_tcp server base.raw
  overlay a.fvd "nbd://127.0.0.1:$port/vm/a"
  overlay b.fvd "nbd://127.0.0.1:$port/vm2"
  overlay c.fvd "nbd://127.0.0.1:$port/"
  follows a.fvd "nbd://127.0.0.1:$port/vm"
  run -1 open_by plugin b.fvd "nbd://127.0.0.1:$port/vm"
  run -1 open_by plugin c.fvd "nbd://127.0.0.1:$port/vm"
  for image in a.fvd b.fvd c.fvd; do
    run -0 open_by plugin "$image" "nbd://127.0.0.1:$port/"
  done
  # Nor does .. lead out of it.
  for ref in vm/../other vm/%2e%2e/other vm/./../other; do
    edit a.fvd "reference=nbd://127.0.0.1:$port/$ref"
    run -1 open_by map a.fvd "nbd://127.0.0.1:$port/vm"
    run -1 open_by plugin a.fvd "nbd://127.0.0.1:$port/vm"
  done
}

@test "the host of a URI is compared without case, and the default port is 10809" {
  overlay a.fvd base.raw
  edit a.fvd reference=nbd://Example.ORG/vm
  run -0 open_by map a.fvd nbd://eXAMPLE.org:10809/vm
  run -1 open_by map a.fvd nbd://example.org:10810/vm
  edit a.fvd reference=nbd://example.org:10809/vm
  run -0 open_by map a.fvd nbd://example.org/
  edit a.fvd reference=nbd://example.org.evil.net/vm
  run -1 open_by map a.fvd nbd://example.org/
  edit a.fvd 'reference=nbd://[::1]:10809/vm'
  run -0 open_by map a.fvd 'nbd://[::1]/'
  run -1 open_by map a.fvd 'nbd://[::2]/'
}

@test "a Unix socket below the image's directory is followed" {
  mkdir sub
  serve_unix "$PWD/sub/sock" base.raw
  overlay a.fvd "nbd+unix:///?socket=$PWD/sub/sock"
  overlay b.fvd "nbd+unix:///vm?socket=$PWD/sub/sock"
  follows a.fvd
  follows b.fvd
}

@test "a Unix socket outside is refused until it or its directory is allowed" {
  local sock=$top/there/sock allow
  serve_unix "$sock" base.raw
  overlay a.fvd "nbd+unix:///vm?socket=$sock"
  refuses --text 'a.fvd"' --text "$sock" --text 'allow=' --text '--allow ' a.fvd
  for allow in "nbd+unix:///?socket=$top/there/sock2" \
               "nbd+unix:///?socket=$top/there" \
               "nbd+unix:///v?socket=$sock" "nbd+unix:///vm2?socket=$sock" \
               nbd://localhost/ nbd://127.0.0.1/; do
    run -1 open_by plugin a.fvd "$allow"
    [[ $output == *"$sock"* ]]
    run -1 open_by map a.fvd "$allow"
  done
  follows a.fvd "nbd+unix:///?socket=$sock"
  follows a.fvd "nbd+unix:///vm?socket=$sock"
  follows a.fvd "$top/there"
}

@test "a Unix socket behind a symbolic link that leads outside is refused" {
  serve_unix "$top/there/sock" base.raw
  ln -s ../there/sock sock
  ln -s ../there folder
  overlay a.fvd "nbd+unix:///?socket=$top/there/sock"
  for ref in "$PWD/sock" "$PWD/folder/sock" "$PWD/../there/sock"; do
    edit a.fvd "reference=nbd+unix:///?socket=$ref"
    run -1 open_by plugin a.fvd
    [[ $output == *a.fvd* ]]
    run -1 open_by map a.fvd
    follows a.fvd "$top/there"
  done
}

@test "create -b with a socket relative to the current directory can be opened" {
  serve_unix "$PWD/sock" base.raw
  if "$NBDCHAIN" create -b 'nbd+unix:///?socket=sock' -F raw a.fvd; then
    follows a.fvd
  else
    [ ! -e a.fvd ]
  fi
}

@test "user names and parameters of TLS in an image are refused" {
  local ref uri
  serve_tcp server base.raw
  uri=nbd://127.0.0.1:$port/vm
  overlay a.fvd "$uri"
  follows a.fvd "$uri"
  for ref in "nbd://user@127.0.0.1:$port/vm" "nbd://user:x@127.0.0.1:$port/vm" \
             "$uri?tls-certificates=/etc" "$uri?tls-psk-file=/etc/shadow" \
             "$uri?tls-verify-peer=false" "$uri?socket=/run/x&tls-psk-file=/x" \
             "$uri#fragment" "$uri?frobnicate=1"; do
    edit a.fvd "reference=$ref"
    refuses --text 'a.fvd"' --text "$ref" a.fvd "$uri" / "nbd://127.0.0.1:$port/"
  done
  # Nor does it help that they are allowed in so many words.
  edit a.fvd "reference=$uri?tls-psk-file=/etc/shadow"
  run ! open_by map a.fvd "$uri?tls-psk-file=/etc/shadow"
  run ! open_by plugin a.fvd "$uri?tls-psk-file=/etc/shadow"
}

@test "no other scheme is known" {
  local ref
  overlay a.fvd base.raw
  for ref in http://127.0.0.1/x ssh://127.0.0.1/x file:///etc/passwd \
             NBD+VSOCK://1/x nbd+ssh://127.0.0.1/x nbd+vsock://1/x \
             fd:0 json:{} fat:/etc; do
    edit a.fvd "reference=$ref"
    refuses --text a.fvd a.fvd / nbd://127.0.0.1/
  done
}

# --- commands -------------------------------------------------------------

@test "a command in an image is never run" {
  local ref
  overlay a.fvd base.raw
  for ref in "[ touch $PWD/ran ]" "[touch $PWD/ran]" " [ touch $PWD/ran ]" \
             "[ sh -c 'touch $PWD/ran' ]" "|touch $PWD/ran" \
             "\$(touch $PWD/ran)" "\`touch $PWD/ran\`" "; touch $PWD/ran"; do
    edit a.fvd "reference=$ref"
    refuses --text a.fvd a.fvd / "$PWD"
    [ ! -e ran ]
  done
  run ! open_by map a.fvd "[ touch $PWD/ran ]"
  run ! open_by plugin a.fvd "[ touch $PWD/ran ]"
  [ ! -e ran ]
}

@test "a command as the successor of an image is never run" {
  overlay a.fvd base.raw
  "$NBDCHAIN" snapshot a.fvd b.fvd
  for ref in "[ touch $PWD/ran ]" "\$(touch $PWD/ran)" nbd://127.0.0.1/; do
    edit a.fvd "successor=$ref"
    run -1 open_by serve a.fvd /
    [[ $output == *a.fvd* ]]
    [ ! -e ran ]
  done
}

@test "a command on the command line is run, and none is recorded" {
  local command="[ nbdkit -r file $PWD/base.raw ]"
  run -0 "$NBDCHAIN" create -b "$command" -F raw a.fvd
  [[ $output == *"--base"* ]]
  [ "$(reference a.fvd)" = None ]
  run ! grep -aqF "$PWD/base.raw" a.fvd
  run ! grep -aqF '[ nbdkit' a.fvd
  refuses --text a.fvd --text --base a.fvd /
  nbdkit_with_chain
  run -0 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd "base=$command" \
    --run "unset LD_PRELOAD; nbdcopy \"\$uri\" copy"
  cmp copy "$want"
  serve a.fvd --base "$command"
  assert_same_as "$want" "$uri"
  stop "$pid"
}

@test "a command that fails or says nothing useful is an error" {
  local command
  for command in '[ false ]' '[ true ]' '[ /nonexistent/command ]' '[ ]' \
                 '[ echo hello ]'; do
    run ! timeout "$patience" "$NBDCHAIN" create -b "$command" -F raw a.fvd
    [ "$status" -lt 124 ]
    [[ $output == *"nbdchain: $command: "* ]]
    [ ! -e a.fvd ]
  done
}

# noisy: set $command to one that prints something before it serves.
noisy ()
{
  printf '#!/bin/sh\necho noise\nexec "$@"\n' >noisy
  chmod +x noisy
  command="[ $PWD/noisy nbdkit -r file $PWD/base.raw ]"
}

@test "what a command prints does not get into the output of create" {
  noisy
  run -0 --separate-stderr "$NBDCHAIN" create --json -b "$command" -F raw a.fvd
  python3 -m json.tool <<<"$output" >/dev/null
}

is_served ()
{
  grep -qxF "$uri" serve.out
}

@test "what a command prints does not get into the output of serve" {
  noisy
  "$NBDCHAIN" create -b "$command" -F raw a.fvd
  serve a.fvd --base "$command"
  wait_for 20 is_served
  assert_same_as "$want" "$uri"
  stop "$pid"
  [ "$(cat serve.out)" = "$uri" ]
}

# --- chains that make no sense --------------------------------------------

@test "an image over itself, and a loop of images, are refused" {
  "$NBDCHAIN" create a.fvd 64K
  overlay b.fvd a.fvd fvd
  edit a.fvd flags=3 reference=b.fvd format=fvd "backing_uuid=$(uuid b.fvd)" \
    backing_size=65536
  refuses --text .fvd a.fvd
  refuses --text .fvd b.fvd
  "$NBDCHAIN" create c.fvd 64K
  edit c.fvd flags=3 reference=c.fvd format=fvd "backing_uuid=$(uuid c.fvd)" \
    backing_size=65536
  refuses --text c.fvd c.fvd
  # By other names, too.
  mkdir sub
  ln c.fvd link.fvd
  edit c.fvd reference=sub/../link.fvd
  refuses --text .fvd c.fvd
  edit c.fvd reference=c.fvd format=raw
  refuses --text c.fvd c.fvd
}

@test "a missing backing is named" {
  overlay a.fvd base.raw
  overlay b.fvd a.fvd fvd
  mv base.raw away.raw
  refuses --text base.raw --text missing a.fvd
  refuses --text base.raw --text missing b.fvd
  mv away.raw base.raw
  mv a.fvd away.fvd
  refuses --text a.fvd --text missing b.fvd
  mv away.fvd a.fvd
  follows b.fvd
}

@test "a backing that another image has replaced is refused" {
  overlay mid.fvd base.raw
  overlay a.fvd mid.fvd fvd
  mv mid.fvd old.fvd
  overlay mid.fvd base.raw
  refuses --text a.fvd --text mid.fvd --text "$(uuid mid.fvd)" a.fvd
  mv old.fvd mid.fvd
  follows a.fvd
}

@test "a backing that has become shorter is refused, one that has grown is cut" {
  overlay a.fvd base.raw
  truncate -s 61440 base.raw
  refuses --text a.fvd --text base.raw --text 61440 a.fvd
  cp "$want" base.raw
  echo more >>base.raw
  follows a.fvd
  rm base.raw
  touch base.raw
  refuses --text base.raw a.fvd
}

@test "a backing image that was cut off is refused" {
  overlay mid.fvd base.raw
  overlay a.fvd mid.fvd fvd
  local size
  for size in $(($(stat -c %s mid.fvd) - 1)) 8192 4096 100 0; do
    truncate -s "$size" mid.fvd
    refuses --text mid.fvd a.fvd
  done
}

@test "the format is what the image says, and only raw or fvd" {
  local format
  "$NBDCHAIN" create mid.fvd 64K
  overlay a.fvd base.raw
  overlay b.fvd mid.fvd fvd
  for format in qcow2 RAW fvd2 'raw ' '' ../raw; do
    edit a.fvd "format=$format"
    refuses --text a.fvd a.fvd
  done
  edit a.fvd format=fvd
  refuses --text base.raw --text 'not an fvd image' a.fvd
  edit a.fvd format=raw
  follows a.fvd
  cp base.raw mid.fvd
  refuses --text mid.fvd --text 'not an fvd image' b.fvd
  run -1 "$NBDCHAIN" create -b base.raw -F fvd c.fvd
  [[ $output == *base.raw*"not an fvd image"* ]]
  [ ! -e c.fvd ]
}

@test "what is no image is not taken for one" {
  local file how
  head -c 4000 base.raw >short.raw
  : >empty.raw
  for file in base.raw short.raw empty.raw; do
    for how in map check plugin serve; do
      run ! open_by "$how" "$file"
      [ "$status" -lt 124 ]
      [[ $output == *"$file"*"not an fvd image"* ]]
    done
  done
  cmp base.raw "$want"
}

@test "what a guest writes does not make a raw disk an image" {
  # An image over a secret: its bytes, not what it leads to, are the disk.
  overlay evil.fvd base.raw
  edit evil.fvd "reference=$top/there/base.raw"
  cp evil.fvd disk.raw
  overlay a.fvd disk.raw
  want=$PWD/evil.fvd
  follows a.fvd
  # The guest writes it itself, to a raw disk.
  truncate -s "$(stat -c %s evil.fvd)" guest.raw
  serve_plain guest.raw format=raw
  nbdcopy evil.fvd "$uri"
  stop "$pid"
  cmp guest.raw evil.fvd
  serve_plain guest.raw format=raw
  assert_same_as evil.fvd "$uri"
  stop "$pid"
  cmp guest.raw evil.fvd
  overlay b.fvd guest.raw
  follows b.fvd
}

@test "what is no file does not hang" {
  local how
  overlay a.fvd base.raw
  rm base.raw
  mkfifo base.raw
  refuses --text base.raw a.fvd
  run -1 timeout "$patience" "$NBDCHAIN" create -b base.raw -F raw b.fvd
  [[ $output == *base.raw* ]]
  [ ! -e b.fvd ]
  run -1 timeout "$patience" "$NBDCHAIN" create -b base.raw -F fvd b.fvd
  for how in map plugin serve; do
    run -1 open_by "$how" base.raw
  done

  rm base.raw
  mkdir base.raw
  refuses --text base.raw a.fvd
  run -1 timeout "$patience" "$NBDCHAIN" create -b base.raw -F raw b.fvd
  [[ $output == *base.raw* ]]
  [ ! -e b.fvd ]
  for how in map check info plugin serve; do
    run ! open_by "$how" base.raw
    [ "$status" -lt 124 ]
  done
  rmdir base.raw

  serve_unix "$PWD/base.raw" "$want"
  refuses --text base.raw a.fvd
}

@test "a character device is no backing" {
  overlay a.fvd base.raw
  rm base.raw
  # /dev/zero and /dev/tty
  for device in '1 5' '5 0'; do
    # shellcheck disable=SC2086
    mknod base.raw c $device || skip "no device can be made"
    refuses --text base.raw a.fvd
    run -1 timeout "$patience" "$NBDCHAIN" create -b base.raw -F raw b.fvd
    [[ $output == *base.raw* ]]
    [ ! -e b.fvd ]
    rm base.raw
  done
  run -1 timeout "$patience" "$NBDCHAIN" map --base /dev/zero a.fvd
  [[ $output == */dev/zero* ]]
}

@test "a chain has 250 layers and not more" {
  local i
  scratch_dir
  cd "$scratch"
  cp "$want" 1
  overlay 2 1
  # The images behind the second are the same but for who they are.
  for ((i = 3; i <= 250; i++)); do
    "$NBDCHAIN" create --journal-size 16K -b $((i - 1)) -F fvd "$i"
  done >/dev/null
  follows 250
  if overlay 251 250 fvd; then
    refuses --text 250 251
  else
    run -1 "$NBDCHAIN" create -b 250 -F fvd 251
    [[ $output == *250* ]]
    [ ! -e 251 ]
  fi
}

# --- another user's directory -----------------------------------------------

# his_directory: "his" belongs to another user; "ours" only we may enter.  Both
# are where he can come to.
his_directory ()
{
  [ "$(id -u)" -eq 0 ] || skip "needs root, to be served by"
  his=54321
  scratch=$(mktemp -d /tmp/nbdchain-his.XXXXXX)
  scratch_dirs+=("$scratch")
  chmod 755 "$scratch"
  cd "$scratch" || return 1
  cp "$want" .
  mkdir his ours
  chmod 700 ours
}

# be_him COMMAND...
be_him ()
{
  setpriv --reuid "$his" --regid "$his" --clear-groups "$@"
}

# refuses_link IMAGE: nothing opens it, as a link of another user is not his.
refuses_link ()
{
  local how
  for how in map check info plugin serve; do
    run open_by "$how" "$1"
    if [ "$status" -eq 0 ] || [[ $output != *"link of user $his leads to"* ]]
    then
      echo "$how: status $status: $output"
      return 1
    fi
  done
}

@test "a link of another user is followed to what is his, and nowhere else" {
  his_directory
  cp base.raw ours/
  overlay ours/vm.fvd ours/base.raw
  cp ours/base.raw ours/vm.fvd his/
  ln -s ../ours/vm.fvd his/link.fvd
  ln -s ../ours his/folder
  chown -hR "$his:$his" his
  refuses_link his/link.fvd
  [[ $output == *"/ours/vm.fvd, of user 0"* ]]
  refuses_link his/folder/vm.fvd
  refuses_link "$PWD/his/folder/vm.fvd"
  # Nor is anything made, or taken for a base, behind it.
  run -1 "$NBDCHAIN" create -b his/link.fvd -F fvd new.fvd
  [[ $output == *"link of user $his"* ]]
  run -1 "$NBDCHAIN" create his/folder/new.fvd 1M
  [[ $output == *"link of user $his"* ]]
  run -1 "$NBDCHAIN" snapshot his/vm.fvd his/folder/new.fvd
  [[ $output == *"link of user $his"* ]]
  run -1 "$NBDCHAIN" serve his/vm.fvd -U "$PWD/his/folder/sock"
  [[ $output == *"link of user $his"* ]]
  run -1 "$NBDCHAIN" serve his/vm.fvd --jobs his/folder/jobs
  [[ $output == *"link of user $his"* ]]
  run ! "$NBDCHAIN" map --allow "$PWD/his/folder" his/vm.fvd
  [[ $output == *"link of another user"* ]]
  [ "$(ls ours)" = "base.raw
vm.fvd" ]

  rm his/link.fvd his/folder
  mkdir his/folder
  ln -s ../vm.fvd his/folder/link.fvd
  chown -hR "$his:$his" his
  ln -s his/folder/link.fvd ours.fvd
  follows his/folder/link.fvd
  follows ours.fvd
}

@test "who exchanges an image for a link meanwhile gets nothing of ours" {
  local i
  his_directory
  cp base.raw ours/secret
  overlay his/vm.fvd base.raw
  edit his/vm.fvd reference=secret
  chown -R "$his:$his" his
  # When the image is opened, its name becomes a link to the secret, so that
  # the directory of that link would be that of the image; and then not.
  cat >swap.py <<'END'
import ctypes, os, sys
image, secret = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, image.encode(), 0x20) > 0     # IN_OPEN
open("ready", "w").close()
while True:
    os.read(fd, 4096)
    os.rename(image, image + ".real")
    os.symlink(secret, image)
    for _ in range(2000):
        os.sched_yield()
    os.unlink(image)
    os.rename(image + ".real", image)
END
  cd his
  start "$top/swap" be_him python3 "$scratch/swap.py" "$scratch/his/vm.fvd" \
    "$scratch/ours/secret"
  wait_for 20 test -e ready
  nbdkit_with_chain
  for ((i = 0; i < 60; i++)); do
    run timeout "$patience" "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" \
      "$scratch/his/vm.fvd" --run 'unset LD_PRELOAD; nbdinfo --size "$uri"'
    [ "$status" -ne 0 ] || { echo "opened in round $i"; return 1; }
  done
}

# A server of his, and one of ours, which hold different disks.
two_servers ()
{
  his_directory
  head -c 65536 /dev/urandom >ours/disk.raw
  chmod 755 his
  serve_unix "$PWD/his/sock" base.raw
  his_server=$pid
  serve_unix "$PWD/ours/sock" ours/disk.raw
  overlay his/vm.fvd "nbd+unix:///?socket=$PWD/his/sock"
  chown -hR "$his:$his" his
}

says_lost ()
{
  grep -q "connection lost" serve.err
}

@test "a socket that was exchanged for a link is not connected to again" {
  two_servers
  serve his/vm.fvd --retry 1
  nbdsh -u "$uri" -c "assert h.pread(4096, 0) == open('$want', 'rb').read(4096)"
  mv his/sock his/mine
  be_him ln -s ../ours/sock his/sock
  stop_hard "$his_server"
  wait_for 20 says_lost
  run ! nbdsh -u "$uri" -c 'h.pread(4096, 8192)'
  [[ $output == *"Input/output error"* ]]
  # The same as the first thing that happens.
  run -1 open_by map his/vm.fvd
  [[ $output == *"has its socket outside"* ]]
  # His own server comes back.
  rm his/sock his/mine
  serve_unix "$PWD/his/sock" base.raw
  chown "$his" his/sock
  nbdsh -u "$uri" -c \
    "assert h.pread(4096, 8192) == open('$want', 'rb').read()[8192:12288]"
}

@test "a socket of another user in the place of the first is not connected to" {
  two_servers
  serve his/vm.fvd --retry 1
  nbdsh -u "$uri" -c 'h.pread(4096, 0)'
  rm his/sock
  cp base.raw another.raw
  serve_unix "$PWD/his/sock" another.raw
  chown 54322 his/sock
  stop_hard "$his_server"
  wait_for 20 says_lost
  run ! nbdsh -u "$uri" -c 'h.pread(4096, 8192)'
  [[ $output == *"Input/output error"* ]]
  chown "$his" his/sock
  nbdsh -u "$uri" -c 'h.pread(4096, 8192)'
}

@test "what is behind a ';' or a '&' in a URI is no part of its socket" {
  local ref
  serve_unix "$top/there/sock" base.raw
  overlay a.fvd base.raw
  for name in 's;' 's&' 's;x' 's%3B'; do
    ln -s ../there/sock "$name"
  done
  for ref in "s;&" "s;" "s&" "s;&;" "&socket=$PWD/s;" "s;x" "s%3B"; do
    edit a.fvd "reference=nbd+unix:///?socket=$PWD/$ref"
    run -1 open_by plugin a.fvd
    [[ $output == *a.fvd* || $output == *"$PWD/s: No such file"* ]]
  done
}

# --- images that were retired ---------------------------------------------

@test "serve goes on with the image that took over" {
  overlay a.fvd base.raw
  "$NBDCHAIN" snapshot a.fvd b.fvd
  "$NBDCHAIN" snapshot b.fvd c.fvd
  run -1 open_by plugin a.fvd
  [[ $output == *a.fvd*b.fvd* ]]
  cp a.fvd a.before
  cp b.fvd b.before
  serve a.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 4096, 8192)'
  stop "$pid"
  cmp a.fvd a.before
  cmp b.fvd b.before
  serve c.fvd
  nbdsh -u "$uri" -c 'assert h.pread(4096, 8192) == b"x" * 4096'
  stop "$pid"
}

@test "a retired image can be read" {
  overlay a.fvd base.raw
  "$NBDCHAIN" snapshot a.fvd b.fvd
  serve_plain a.fvd read-only=true
  assert_same_as "$want" "$uri"
  stop "$pid"
}

@test "an image that took over from one outside needs that allowed to be changed" {
  local command
  "$NBDCHAIN" create "$top/there/a.fvd" 1M
  "$NBDCHAIN" snapshot "$top/there/a.fvd" b.fvd
  for command in "resize b.fvd +1M" "check --repair b.fvd" \
                 "snapshot b.fvd c.fvd"; do
    # So that there is something to repair.
    truncate -s +4096 b.fvd
    # shellcheck disable=SC2086
    run -1 "$NBDCHAIN" $command
    [[ $output == *b.fvd*there/a.fvd*"--allow "* ]]
    # shellcheck disable=SC2086
    "$NBDCHAIN" $command --allow "$top/there"
  done
}

@test "serve follows no successor outside, unless it is allowed" {
  overlay a.fvd base.raw
  "$NBDCHAIN" snapshot a.fvd "$top/there/b.fvd"
  run -1 open_by serve a.fvd
  [[ $output == *a.fvd*there/b.fvd*"--allow "* ]]
  # The new one in turn is bound to its own directory.
  run -1 open_by serve a.fvd "$top/there"
  [[ $output == *b.fvd*a.fvd*"--allow "* ]]
  serve a.fvd --allow "$top/there" --allow .
  assert_same_as "$want" "$uri"
  stop "$pid"
  # follow= of the plugin is the same.
  nbdkit_with_chain
  run -1 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd follow=true --run true
  [[ $output == *a.fvd*there/b.fvd*"allow="* ]]
  run -0 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" a.fvd follow=true \
    allow="$top/there" allow=. --run 'unset LD_PRELOAD; nbdinfo --size "$uri"'
  [ "${lines[-1]}" = 65536 ]
}

@test "a successor that is missing, another image, or goes in circles" {
  overlay a.fvd base.raw
  "$NBDCHAIN" snapshot a.fvd b.fvd
  mv b.fvd away.fvd
  run -1 open_by serve a.fvd
  [[ $output == *b.fvd* ]]
  overlay b.fvd base.raw
  run -1 open_by serve a.fvd
  [[ $output == *b.fvd* ]]
  rm b.fvd
  ln -s ../there/b.fvd b.fvd
  mv away.fvd "$top/there/b.fvd"
  run -1 open_by serve a.fvd
  [[ $output == *b.fvd* ]]
  rm b.fvd
  mv "$top/there/b.fvd" .
  # b retired by a, a retired by b
  edit b.fvd flags=7 "successor=a.fvd" "successor_uuid=$(uuid a.fvd)"
  run -1 open_by serve a.fvd
  [[ $output == *.fvd* ]]
}

# goes_on IMAGE NAME: serve and plugin open IMAGE and go on with NAME.
goes_on ()
{
  local how
  for how in "$NBDCHAIN_PLUGIN" ''; do
    if [ -n "$how" ]; then
      serve_plain "$1" follow=true
      stop "$pid"
      cat plain.err
      grep -q "going on with .*$2, which took over" plain.err
    else
      serve "$1"
      stop "$pid"
      grep -q "going on with .*$2, which took over" serve.err
    fi
  done
}

# goes_nowhere IMAGE TEXT
goes_nowhere ()
{
  run -1 open_by serve "$1"
  [[ $output == *"$2"* ]]
  nbdkit_with_chain
  run -1 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" "$1" follow=true --run true
  [[ $output == *"$2"* ]]
}

@test "an image that says another's took over from it does not open that" {
  overlay victim.fvd base.raw
  overlay evil.fvd base.raw
  cp victim.fvd before
  edit evil.fvd flags=7 successor=victim.fvd \
    "successor_uuid=$(uuid victim.fvd)"
  goes_nowhere evil.fvd "does not say so itself"
  # Nor one that took over from yet another.
  "$NBDCHAIN" snapshot victim.fvd next.fvd
  edit evil.fvd successor=next.fvd "successor_uuid=$(uuid next.fvd)"
  cp next.fvd before
  goes_nowhere evil.fvd "it took over from $(uuid victim.fvd)"
  cmp next.fvd before
  goes_on victim.fvd next.fvd
}

@test "an image took over also when it has another backing, or none" {
  overlay a.fvd base.raw
  "$NBDCHAIN" snapshot a.fvd b.fvd
  "$NBDCHAIN" info b.fvd | grep "took over from: *$(uuid a.fvd)"
  [ "$("$NBDCHAIN" info --json b.fvd | jq -r .predecessor)" = \
    "$(uuid a.fvd)" ]
  [ "$("$NBDCHAIN" info --json a.fvd | jq .predecessor)" = null ]
  "$NBDCHAIN" rebase -b base.raw -F raw b.fvd
  goes_on a.fvd b.fvd
  "$NBDCHAIN" stream b.fvd
  goes_on a.fvd b.fvd
  "$NBDCHAIN" amend --prefetch=on b.fvd
  "$NBDCHAIN" resize b.fvd +1M
  goes_on a.fvd b.fvd
}

@test "an image of another user is not gone on with" {
  his_directory
  cp base.raw his/
  overlay his/a.fvd his/base.raw
  "$NBDCHAIN" snapshot his/a.fvd his/b.fvd
  goes_on his/a.fvd b.fvd
  chown "$his" his/a.fvd
  goes_nowhere his/a.fvd "belongs to user 0, and '"
  chown "$his" his/b.fvd
  goes_on his/a.fvd b.fvd
}
