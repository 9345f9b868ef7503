#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Completion for bash: what is offered is what there is.
# shellcheck disable=SC2154             # run-tests sets these

load common

completion=$top_srcdir/completions/bash/nbdchain

# offered WORD...: print, one a line, what is offered for the last word, and
# whatever else comes, which would stand in the middle of a command line.
offered ()
{
  # shellcheck disable=SC2016
  bash 2>&1 -c '. "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_nbdchain
printf "%s\n" "${COMPREPLY[@]}"' bash "$completion" "$@"
}

commands ()
{
  nbdchain --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'
}

@test "the subcommands are offered" {
  offered nbdchain '' | sort >have
  { commands; echo --help; echo --version; } | sort >want
  grep -qx compare want
  diff -u want have
  [ "$(offered nbdchain compa)" = compare ]
}

@test "the options of each subcommand are offered" {
  for command in $(commands); do
    offered nbdchain "$command" - | sed 's/=$//' | sort >have
    nbdchain "$command" --help |
      sed -nE 's/^ +(-.*)/\1/p' | sed 's/  .*//' |
      grep -oE -- '(^|[ ,])-{1,2}[A-Za-z][A-Za-z-]*' | tr -d ' ,' | sort >want
    [ "$(wc -l <want)" -ge 3 ]
    diff -u want have
  done
}

@test "an option that needs a value is offered with =" {
  [ "$(offered nbdchain create --backing-f)" = --backing-format= ]
  [ "$(offered nbdchain serve --soc)" = --socket-mode= ]
  [ "$(offered nbdchain map --js)" = --json ]
  [ "$(offered nbdchain map --sv)" = --svg ]
}

@test "values are offered" {
  formats=$(printf '%s\n' raw fvd)
  [ "$(offered nbdchain create -b x -F '')" = "$formats" ]
  [ "$(offered nbdchain create --backing-format '')" = "$formats" ]
  [ "$(offered nbdchain create --backing-format = f)" = fvd ]
  [ "$(offered nbdchain create --backing-format =)" = "$formats" ]
  [ "$(offered nbdchain create --backing-format=r)" = --backing-format=raw ]
  [ "$(offered nbdchain compare a b -f r)" = raw ]
  [ "$(offered nbdchain serve --detect-zeroes u)" = unmap ]
  [ "$(offered nbdchain serve --detect-zeroes '')" = \
    "$(printf '%s\n' off on unmap)" ]
}

@test "elsewhere it leaves the word to bash, which offers files" {
  [ -z "$(offered nbdchain info '')" ]
  [ -z "$(offered nbdchain compare --all a.fvd to)" ]
  [ -z "$(offered nbdchain create -b '')" ]
  [ -z "$(offered nbdchain map --svg = '')" ]
  [ -z "$(offered nbdchain serve top.fvd -- --fil)" ]
}

@test "in a shell, with the Tab key" {
  touch top.fvd
  /usr/bin/python3 - "$completion" <<'END'
import os, pty, select, signal, sys, time

pid, fd = pty.fork()
if pid == 0:
    os.environ.update(PS1="ready> ", TERM="dumb", INPUTRC="/dev/null")
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

seen = ""
def expect(text):
    global seen
    end = time.monotonic() + 60
    while text not in seen:
        assert select.select([fd], [], [], end - time.monotonic())[0], seen
        seen += os.read(fd, 4096).decode()
    seen = seen[seen.index(text) + len(text):]
def send(text):
    os.write(fd, text.encode())

expect("ready> ")
send(". '%s'\r" % sys.argv[1])
expect("ready> ")
send("nbdchain compa\t")
expect("compare ")
send("-F r\t")
expect("-F raw ")
send("--base-\t")
expect("--base-b=")
send("to\t")
expect("top.fvd ")
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
END
}

@test "make install puts it where bash looks" {
  make -C "$top_builddir" install-dist_bashcompletionDATA \
    DESTDIR="$PWD/root" >make.log
  run -0 find root -name nbdchain -path '*/bash-completion/completions/*'
  cmp "$completion" "$output"
}
