#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Which libraries a server has in it: those for remotes take longer to load
# than a chain to open, so a chain of files does without them.
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common

# common_setup: the setup of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"

setup ()
{
  common_setup
  truncate -s 1M base.raw
  "$NBDCHAIN" create -b base.raw -F raw mid.fvd
  "$NBDCHAIN" create -b mid.fvd -F fvd top.fvd
}

# for_remotes PID: those of the process that only remotes need, in one line.
for_remotes ()
{
  grep -oE '/(libnbdchain-remote|libnbd|libxml2)\.so' "/proc/$1/maps" |
    sort -u | xargs
}

# use URI: read and write the whole disk.
use ()
{
  nbdcopy base.raw "$1"
  nbdcopy "$1" - | cmp - base.raw
}

# libraries_in DIR: a copy of those of nbdchain; only the plugin by its path
# stays in the build tree, and the system's search knows nothing of DIR.
libraries_in ()
{
  mkdir -p "$1"
  cp "$top_builddir"/lib/.libs/libnbdchain*.so "$1"
}

# refused_with TEXT ARGUMENT...: the libraries in $PWD/lib serve files, and the
# ARGUMENTs, which need remotes, are refused with TEXT and what to do.
refused_with ()
{
  local LD_LIBRARY_PATH=$PWD/lib text=$1 nbdkit
  export LD_LIBRARY_PATH
  shift
  serve_plain top.fvd
  use "$uri"
  stop "$pid"
  nbdkit_with_chain
  run -1 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" "$@" --run true
  echo "$output"
  [[ $output == *"what NBD servers as layers need cannot be loaded"* ]]
  [[ $output == *"$PWD/lib/libnbdchain-remote.so: $text"* ]]
  [[ $output == *"install nbdchain again, and start anew"* ]]
  [ "$(grep -c 'error:.*cannot be loaded' <<<"$output")" -eq 1 ]
}

@test "a chain of files is served without what remotes need" {
  serve_copying top.fvd
  use "$uri"
  grep -q /libnbdchain.so "/proc/$pid/maps"
  [ -z "$(for_remotes "$pid")" ]
}

@test "nbdchain serve serves it without that, too, with all of its filters" {
  serve top.fvd --prefetch --control "$PWD/control.sock"
  use "$uri"
  server=$(pgrep -P "$pid" -f nbdkit)
  grep -q /nbdkit-prefetch-filter.so "/proc/$server/maps"
  [ -z "$(for_remotes "$server")" ]
}

@test "one with a remote base has it" {
  serve_raw base base.raw
  make_overlay remote.fvd "$uri"
  serve_plain remote.fvd allow="$uri"
  use "$uri"
  [ "$(for_remotes "$pid" | wc -w)" -eq 3 ]
}

@test "one whose base is a command's has it" {
  serve_plain mid.fvd base='[ nbdkit --exit-with-parent file base.raw ]'
  use "$uri"
  [ "$(for_remotes "$pid" | wc -w)" -eq 3 ]
}

@test "it is found by a path that is good no more when nbdkit is in the background" {
  [ "${NBDCHAIN_SANITIZER-}" != tsan ] ||
    skip "ThreadSanitizer wants nbdkit in the foreground"
  serve_raw base base.raw
  make_overlay remote.fvd "$uri"
  libraries_in lib
  nbdkit_with_chain
  LD_LIBRARY_PATH=lib "${nbdkit[@]}" -U "$PWD/far.sock" -P "$PWD/far.pid" \
    "$NBDCHAIN_PLUGIN" "$PWD/remote.fvd" allow="$uri" 3>&-
  wait_for 60 test -s far.pid
  pid=$(cat far.pid)
  status=0
  [ "$(readlink "/proc/$pid/cwd")" = / ] || status=1
  use "nbd+unix:///?socket=$PWD/far.sock" || status=1
  grep -q "$(realpath lib)/libnbdchain-remote.so" "/proc/$pid/maps" ||
    status=1
  kill "$pid"
  wait_for 20 is_gone "$pid"
  [ "$status" -eq 0 ]
}

@test "without the library files are served, and a remote is refused with what to do" {
  libraries_in lib
  rm lib/libnbdchain-remote.so
  refused_with "cannot open shared object file" mid.fvd base='[ nbdkit null ]'
  refused_with "cannot open shared object file" top.fvd allow=nbd://localhost/
}

@test "one of another version is refused" {
  libraries_in lib
  # What comes before the string is the linker's choice.
  LC_ALL=C sed -i "s/\\b${NBDCHAIN_VERSION//./\\.}\\x00/9.9.9\\x00/" \
    lib/libnbdchain-remote.so
  refused_with "of nbdchain 9.9.9, while this is $NBDCHAIN_VERSION" \
    mid.fvd base='[ nbdkit null ]'
}

@test "one that is broken, or another library, is refused" {
  libraries_in lib
  echo broken >lib/libnbdchain-remote.so
  refused_with "file too short" mid.fvd base='[ nbdkit null ]'
  cp "$NBDCHAIN_RECORD" lib/libnbdchain-remote.so
  refused_with "undefined symbol: nc_remote_table" \
    mid.fvd base='[ nbdkit null ]'
}
