# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Examples as they stand in the documents, found and run.
#
# load examples                         # after "load common"
#
# An example is a block of code in Markdown, a verbatim paragraph in a pod, of
# which a line is a command.  Each is marked in the line above it:
#
#   Markdown                   pod
#   <!-- runnable -->          =for example runnable
#   <!-- runnable: NAME -->                               run by a test of its own
#   <!-- goes on -->           =for example goes on       in the folder of the last
#                              =for example qemu options         given to QEMU
#   <!-- not run: WHY -->      =for example not run: WHY
#   <!-- drawing -->           =for example drawing              no example
#
# What stands in a SYNOPSIS, or directly below the heading of a command, shows
# usage and is none.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154      # used by tests; set by common.bash

# blocks FILE: print every block of code, as a line "%% MARK", its text, and a
# line "%%".
blocks ()
{
  case $1 in
    *.pod)
      awk '/^=for example / { mark = substr($0, 14); next }
           /^=head1/ { mark = "usage" }
           /^ / { if (!on) print "%% " mark
                  on = 1; print substr($0, 2); next }
           on { print "%%"; mark = ""; on = 0 }
           /^[^=]/ { mark = "" }
           END { if (on) print "%%" }' "$1" ;;
    *)
      awk '!on && /^<!-- .* -->$/ { mark = substr($0, 6, length - 9); next }
           /^```/ { on = !on; print on ? "%% " mark : "%%"; mark = ""; next }
           on { print; next }
           /./ { mark = "" }' "$1" ;;
  esac
}

# example FILE NAME: print the example of that name; fail if it is not there.
example ()
{
  blocks "$1" | awk -v mark="%% runnable: $2" '
    $0 == "%%" { on = 0 } on; $0 == mark { on = found = 1 }
    END { exit !found }'
}

# make_stage: make bin/, a folder for PATH, and run/ in the current directory,
# and choose the ports of "server".  In bin/, "nbdkit chain" has the plugin and the
# filters of the build, "nbdchain serve" goes on in the background once it is ready, as
# nbdkit does, and qemu-system-x86_64 starts a guest that ends at once.
make_stage ()
{
  mkdir -p bin run
  stage=$PWD
  port=$(free_port)
  web_port=$port
  while [ "$web_port" = "$port" ]; do
    web_port=$(free_port)
  done
  export stage
  cat >bin/nbdchain <<'END'
#!/usr/bin/env bash
[ "${1-}" = serve ] && [ "${2-}" != --help ] || exec "$NBDCHAIN" "$@"
out=$(mktemp "$stage/serve.XXXXXX.out")
"$NBDCHAIN" "$@" >"$out" 2>"${out%.out}.err" </dev/null 3>&- &
echo "$!" >>"$stage/servers"
until [ -s "$out" ]; do
  kill -0 "$!" 2>/dev/null || { cat "${out%.out}.err" >&2; exit 1; }
  sleep 0.01
done
END
  cat >bin/nbdkit <<'END'
#!/usr/bin/env bash
set -e
args=() daemon=
for arg; do
  case $arg in
    chain)
      arg=$NBDCHAIN_PLUGIN
      export LD_LIBRARY_PATH=$top_builddir/lib/.libs
      export LD_PRELOAD=$NBDCHAIN_PRELOAD ;;
    --filter=stream | --filter=prefetch)
      arg=--filter=$NBDCHAIN_FILTERS/nbdkit-${arg#*=}-filter.so ;;
    -U | -p) daemon=yes ;;
    --run) daemon= ;;
  esac
  args+=("$arg")
done
[ -n "$daemon" ] || exec "$NBDKIT" "${args[@]}"
pid_file=$(mktemp -u "$stage/nbdkit.XXXXXX.pid")
"$NBDKIT" -P "$pid_file" "${args[@]}" 3>&-
until [ -s "$pid_file" ]; do
  sleep 0.01
done
cat "$pid_file" >>"$stage/servers"
END
  cat >bin/qemu-system-x86_64 <<'END'
#!/usr/bin/env bash
args=()
for arg; do
  [ "$arg" = ... ] || args+=("$arg")
done
exec /usr/bin/qemu-system-x86_64 -accel tcg -S -nodefaults -display none \
  -monitor stdio "${args[@]}" <<<quit
END
  chmod +x bin/*
}

# is_of_stage PID: a process that was started there, and runs.  None of them is
# a child of the test, and the number of one that has ended is soon another's.
is_of_stage ()
{
  grep -qszxF "stage=$stage" "/proc/$1/environ"
}

# has_left_stage PID: it has ended, and let go of its files, for which it needs
# some time when it has no environment any more; or another has its number.
has_left_stage ()
{
  is_gone "$1" ||
    { [ -n "$(tr -d '\0' 2>/dev/null <"/proc/$1/environ")" ] &&
        ! is_of_stage "$1"; }
}

# clear_stage: end every server that examples have started.
clear_stage ()
{
  local pid
  [ -e "$stage/servers" ] || return 0
  for pid in $(tac "$stage/servers"); do
    is_of_stage "$pid" || continue
    kill "$pid" 2>/dev/null || :
    wait_for 20 has_left_stage "$pid" || ! is_of_stage "$pid" ||
      kill -KILL "$pid"
  done
  rm -f "$stage/servers" "$stage"/run/*
}

# play: run the example on standard input on the stage, in the current
# directory, with the addresses and directories of the stage.
play ()
{
  sed -e "s|http://server/|http://127.0.0.1:$web_port/|g" \
    -e "s|nbd://server/|nbd://127.0.0.1:$port/|g" -e "s|-p 10809|-p $port|g" \
    -e 's|-i 0\.0\.0\.0|-i 127.0.0.1|g' -e "s|/run\>|$stage/run|g" >example.sh
  PATH=$stage/bin:$PATH bash -eux example.sh </dev/null 3>&-
}
