#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Programs and libraries that variables name: root runs those that nobody else
# can change, an ordinary user his own.
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2154             # common.bash sets these

load common

# common_setup: the setup of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"

setup ()
{
  common_setup
  [ "$(id -u)" -eq 0 ] || skip "needs root, to be protected from others"
  # This build's programs, in a folder of root's; another one is a user's.
  scratch=$(mktemp -d /tmp/nbdchain-env.XXXXXX)
  scratch_dirs+=("$scratch")
  chmod 755 "$scratch"
  mkdir "$scratch/bin" "$scratch/his"
  cp "$top_builddir/tools/.libs/nbdchain" "$NBDCHAIN_PLUGIN" \
    "$top_builddir/lib/.libs/"*.so "$NBDCHAIN_FILTERS/"*.so "$scratch/bin"
  cp "$scratch/bin/"* "$scratch/his"
  chmod -R a+rX "$scratch"
  chown -R 54321:54321 "$scratch/his"
  "$NBDCHAIN" create "$scratch/top.fvd" 1M >/dev/null
  variables=(
    "LD_LIBRARY_PATH=$scratch/bin" "LD_PRELOAD=$NBDCHAIN_PRELOAD"
    "NBDCHAIN_PLUGIN=$scratch/bin/nbdkit-chain-plugin.so"
    "NBDCHAIN_FILTERS=$scratch/bin" "NBDKIT=$NBDKIT"
  )
}

# serve_with VARIABLE...: besides those that are right.
serve_with ()
{
  rm -f serve.out
  start serve env "${variables[@]}" "$@" "$scratch/bin/nbdchain" serve \
    "$scratch/top.fvd" -U "$PWD/serve.sock"
  wait_for 60 is_ready_or_gone serve.out "$pid"
}

# serves VARIABLE...
serves ()
{
  serve_with "$@"
  [ -s serve.out ]
  stop "$pid"
}

# refuses TEXT VARIABLE...: no nbdkit is run.
refuses ()
{
  serve_with "${@:2}"
  cat serve.err
  [ ! -s serve.out ]
  grep -qF -- "$1" serve.err
  run ! grep -q ^nbdkit: serve.err
}

@test "what root owns is run" {
  serves
  serves LD_LIBRARY_PATH="$scratch/bin:/nonexistent/dir:/usr/lib"
  # By a link of root's, too.
  ln -s bin "$scratch/link"
  serves NBDCHAIN_PLUGIN="$scratch/link/nbdkit-chain-plugin.so"
  serves NBDCHAIN_PLUGIN= NBDCHAIN_FILTERS= NBDKIT= \
    NBDCHAIN_PLUGIN="$scratch/bin/nbdkit-chain-plugin.so"
}

@test "what another user owns is not run by root" {
  local his=$scratch/his
  refuses "NBDCHAIN_PLUGIN names $his/nbdkit-chain-plugin.so: $his belongs to" \
    NBDCHAIN_PLUGIN="$his/nbdkit-chain-plugin.so"
  refuses "NBDCHAIN_FILTERS names $his: $his belongs to user 54321" \
    NBDCHAIN_FILTERS="$his"
  refuses "NBDKIT names $his/nbdkit: $his belongs to" NBDKIT="$his/nbdkit"
  refuses "NBDKIT=nbdkit: as root, give it with its directory" NBDKIT=nbdkit
  refuses "LD_LIBRARY_PATH names $his: $his belongs to user 54321" \
    LD_LIBRARY_PATH="$scratch/bin:$his"
  refuses "LD_PRELOAD names $his/libnbdchain.so: " \
    LD_PRELOAD="$NBDCHAIN_PRELOAD:$his/libnbdchain.so"
  # A file of his in a folder of root's, and one by his link.
  chown 54321 "$scratch/bin/nbdkit-stream-filter.so"
  refuses "nbdkit-stream-filter.so belongs to user 54321"
  chown 0 "$scratch/bin/nbdkit-stream-filter.so"
  ln -s bin "$scratch/link"
  chown -h 54321 "$scratch/link"
  refuses "a symbolic link" NBDCHAIN_FILTERS="$scratch/link"
}

@test "what others may write to is not run by root" {
  chmod 775 "$scratch/bin"
  run -0 env "${variables[@]}" "$scratch/bin/nbdchain" --version
  mkdir "$scratch/open"
  cp "$scratch/bin/"*.so "$scratch/open"
  chmod 755 "$scratch/bin"
  chmod 777 "$scratch/open"
  refuses "others than root may write to $scratch/open (mode 0777)" \
    NBDCHAIN_PLUGIN="$scratch/open/nbdkit-chain-plugin.so"
  chmod 755 "$scratch/open"
  chmod 664 "$scratch/open/nbdkit-chain-plugin.so"
  refuses "nbdkit-chain-plugin.so (mode 0664)" \
    NBDCHAIN_PLUGIN="$scratch/open/nbdkit-chain-plugin.so"
  refuses "others than root may write to /tmp" LD_LIBRARY_PATH="$scratch/bin:/tmp"
  refuses "others than root may make /tmp/no-such-nbdchain" \
    LD_LIBRARY_PATH="$scratch/bin:/tmp/no-such-nbdchain"
  # An empty path is the current directory.
  mkdir "$scratch/here"
  cd "$scratch/here"
  serves LD_LIBRARY_PATH="$scratch/bin:"
  chown 54321 .
  refuses "LD_LIBRARY_PATH names the current directory" \
    LD_LIBRARY_PATH="$scratch/bin:"
}

@test "a user's own build works for him, and as far as ever for root" {
  local his=$scratch/his
  chown 54321 "$scratch" "$scratch/top.fvd"
  for become in "setpriv --reuid 54321 --regid 54321 --clear-groups" ''; do
    # shellcheck disable=SC2086
    start serve $become env LD_LIBRARY_PATH="$his" \
      LD_PRELOAD="$NBDCHAIN_PRELOAD" NBDCHAIN_FILTERS="$his" \
      NBDCHAIN_PLUGIN="$his/nbdkit-chain-plugin.so" NBDKIT=nbdkit \
      "$his/nbdchain" serve "$scratch/top.fvd" -U "$scratch/sock"
    wait_for 60 is_ready_or_gone serve.out "$pid"
    [ -s serve.out ]
    stop "$pid"
  done
}
