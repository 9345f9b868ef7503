# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What the scripts share: messages, root, and where the build is.
# shellcheck shell=bash
#
# Source it with:  . "$(dirname "${BASH_SOURCE[0]}")/lib.bash"
# It sets $top, the source tree.  NBDCHAIN_BUILD names another build tree than
# the one that build_dir would choose.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Messages go to stderr, so that stdout stays free for results.
say ()
{
  printf '%s\n' "$*" >&2
}

warn ()
{
  say "${0##*/}: warning: $*"
}

die ()
{
  say "${0##*/}: $*"
  exit 1
}

have ()
{
  command -v "$1" >/dev/null 2>&1
}

# Run a command as root: directly, or through sudo.
as_root ()
{
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "this needs root, and there is no sudo; as root, run: $*"
  fi
}

# quietly WHAT COMMAND...
# Run the command and show what it printed only if it fails.
quietly ()
{
  local what=$1 log status=0
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/nbdchain-log.XXXXXX")
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    say "${0##*/}: $what failed (exit code $status):"
    sed 's/^/  | /' "$log" | tail -n 100 >&2
  fi
  rm -f "$log"
  return "$status"
}

# Print the build tree: NBDCHAIN_BUILD, or the source if that is configured,
# or else build/ in it.
build_dir ()
{
  if [ -n "${NBDCHAIN_BUILD-}" ]; then
    mkdir -p "$NBDCHAIN_BUILD" && (cd "$NBDCHAIN_BUILD" && pwd)
  elif [ -f "$top/config.status" ]; then
    printf '%s\n' "$top"
  else
    printf '%s\n' "$top/build"
  fi
}

# configure_in DIR SOURCE ARGS...
# Configure SOURCE in DIR, unless that was done before.  From then on make
# itself configures again when it has to.
configure_in ()
{
  local dir=$1 source=$2
  shift 2
  if [ ! -x "$source/configure" ]; then
    (cd "$source" && quietly autoreconf autoreconf -i) || return 1
  fi
  [ -f "$dir/config.status" ] && [ -f "$dir/Makefile" ] && return 0
  mkdir -p "$dir"
  # A relative path keeps the names in compiler messages short.
  (cd "$dir" && quietly configure \
     "$(realpath --relative-to=. "$source")/configure" "$@")
}

# make_in DIR TARGETS...
make_in ()
{
  local dir=$1
  shift
  quietly "make${*:+ $*}" \
    make -s --no-print-directory -C "$dir" -j "$(nproc)" "$@"
}

# Configure and build what is out of date, quietly.
ensure_build ()
{
  local build
  build=$(build_dir) || return 1
  configure_in "$build" "$top" && make_in "$build"
}

# apt_for RELEASE DIR: write DIR/sources.list and DIR/apt.conf, with which a root
# of that release of Debian takes its packages from where this machine does.
apt_for ()
{
  local release=$1 dir=$2 ours
  ours=$(. /etc/os-release && echo "$VERSION_CODENAME")
  # shellcheck disable=SC2016      # apt's, not ours
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
          'Created-By: Packages' 'Component: main' |
    grep -E " $ours(-updates|-security)? main\$" |
    sed -E "s/ $ours(-updates|-security)? main/ $release\1 main/" | sort -u \
         >"$dir/sources.list" || die "apt of this machine has no $ours"
  apt-config dump --format '%f "%v";%n' Acquire |
    grep -Ei '^Acquire::(https?::Proxy|Check-Valid-Until|Check-Date|Retries)' \
         >"$dir/apt.conf" || :
}
