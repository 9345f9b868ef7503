#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# The documents say what the programs do: options and parameters are the same
# in --help and in the man page, and examples marked as runnable run.
# shellcheck disable=SC2154             # common.bash and examples.bash set these

load common
load examples

# common_setup, common_teardown: those of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"
eval "$(declare -f teardown | sed '1s/^teardown/common_teardown/')"

setup ()
{
  common_setup
  cli_pod=$top_srcdir/tools/nbdchain.pod
  plugin_pod=$top_srcdir/plugin/nbdkit-chain-plugin.pod
  filter_pods=("$top_srcdir"/filters/*/*.pod)
}

teardown ()
{
  local status=$?
  [ -z "${stage-}" ] || clear_stage
  common_teardown
  return "$status"
}

# The plugin under nbdkit, as "nbdkit chain" when it is installed.
chain ()
{
  LD_LIBRARY_PATH=$top_builddir/lib/.libs LD_PRELOAD=$NBDCHAIN_PRELOAD \
    "$NBDKIT" "$NBDCHAIN_PLUGIN" "$@"
}

# Print the section of FILE that begins with "=head1 TITLE".
section ()
{
  awk -v title="=head1 $2" '/^=head1/ { on = $0 == title } on' "$1"
}

# Print the options in the indented lines of a help, one a line.
help_options ()
{
  sed -nE 's/^ +(-.*)/\1/p' | sed 's/  .*//' |
    grep -oE -- '(^|[ ,])-{1,2}[A-Za-z][A-Za-z-]*' | tr -d ' ,' | sort -u
}

# Print the options that are items of a pod, one a line.
pod_options ()
{
  sed -n 's/^=item //p' |
    grep -oE -- 'B<-{1,2}[A-Za-z][A-Za-z-]*' | sed 's/^B<//' | sort -u
}

# documents: print the names of all that may have examples.
documents ()
{
  printf '%s\n' "$top_srcdir"/README.md "$cli_pod" "$plugin_pod" \
    "${filter_pods[@]}"
  find "$top_srcdir/docs" -name '*.md'
}

# has_command TEXT: is the first word of one of its lines a program?
has_command ()
{
  local first rest
  while read -r first rest; do
    [[ $first != [a-z]* ]] || ! type -P "$first" >/dev/null || return 0
  done <<<"$1"
  return 1
}

# make_world: the stage, and on it the server that examples speak of, with NBD
# and with files.
make_world ()
{
  make_stage
  mkdir www
  truncate -s 64M base.raw www/disk.img
  start base "$NBDKIT" -f -r -t 1 -i 127.0.0.1 -p "$port" file base.raw
  start web busybox httpd -f -p "127.0.0.1:$web_port" -h www
  wait_for 20 listens "$port"
  wait_for 20 listens "$web_port"
}

listens ()
{
  [ -n "$(ss -Hltn "sport = :$1")" ]
}

# play_block MARK TEXT: in the directory of its own that $n counts.
play_block ()
{
  case $1 in
    runnable)
      n=$((n + 1))
      mkdir "$n"
      (cd "$n" && play <<<"$2") ;;
    "goes on")
      (cd "$n" && play <<<"$2") ;;
    "qemu options")
      n=$((n + 1))
      rm -f options.pid                 # nbdkit leaves it behind
      "$NBDKIT" -U run/vm.sock -P options.pid memory 1M 3>&-
      wait_for 20 test -s options.pid
      cat options.pid >>servers
      play <<<"qemu-system-x86_64 ${2//$'\n'/ }" ;;
    *)
      return 0 ;;
  esac
  clear_stage
}

# run_examples FILE: run those that are marked so; fail if there is none.
run_examples ()
{
  local line mark='' text='' n=0
  make_world
  while IFS= read -r line; do
    case $line in
      "%% "*) mark=${line#%% } text='' ;;
      %%) play_block "$mark" "$text" ;;
      *) text+=${text:+$'\n'}$line ;;
    esac
  done < <(blocks "$1")
  [ "$n" -gt 0 ]
}

@test "help and man page of nbdchain name the same options" {
  for command in create info map check compare snapshot resize rebase amend \
                 profile stream serve jobs pause resume cancel complete set-speed; do
    "$NBDCHAIN" "$command" --help | help_options >help
    section "$cli_pod" "nbdchain $command" | pod_options >pod
    [ -s help ]
    diff -u help pod
  done
}

@test "help and man page of nbdchain name the same commands" {
  "$NBDCHAIN" --help |
    sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' | sort >help
  sed -n 's/^=head1 nbdchain \([a-z-]*\)$/\1/p' "$cli_pod" | sort >pod
  [ -s help ]
  diff -u help pod
}

@test "the man page gives the exit codes of the program" {
  sed -nE 's/^ +EXIT_[A-Z]+ = ([0-9]+),.*/\1/p' \
    "$top_srcdir/tools/tools.h" >header
  section "$cli_pod" "EXIT STATUS" |
    sed -nE 's/^=item B<([0-9]+)>/\1/p' >pod
  [ -s header ]
  diff -u header pod
}

# help_parameters: print the parameters in the part of "nbdkit --help" that is
# read, one a line.
help_parameters ()
{
  grep -E '^[[a-z]' | grep -oE '[a-z-]+\]?=[^ ]*(, |$)|^\[?[a-z-]+=' |
    grep -oE '^\[?[a-z-]+' | tr -d '[' | sort -u
}

# pod_parameters FILE: print the parameters that are items of a pod.
pod_parameters ()
{
  section "$1" PARAMETERS | sed -nE 's/^=item \[?B<([a-z-]+)=.*/\1/p' | sort -u
}

@test "help and man page of the plugin name the same parameters" {
  chain --help | sed '1,/^plugin: /d' | help_parameters >keys
  pod_parameters "$plugin_pod" >pod
  [ -s keys ]
  diff -u keys pod
}

@test "help and man page of a filter name the same parameters" {
  local pod name
  for pod in "${filter_pods[@]}"; do
    name=$(basename "$pod" .pod)
    chain --filter="$NBDCHAIN_FILTERS/$name.so" --help |
      sed '1,/^filter: /d; /^plugin: /,$d' | help_parameters >keys
    pod_parameters "$pod" >items
    [ -s keys ]
    diff -u keys items
  done
}

@test "the plugin dumps what it can do" {
  run -0 chain --dump-plugin
  [[ $output == *"name=chain"* ]]
  [[ $output == *"version=$NBDCHAIN_VERSION"* ]]
  [[ $output == *"magic_config_key=image"* ]]
  [[ $output == *"max_thread_model=parallel"* ]]
}

@test "the Debian package has the version of the program" {
  [ "$(sed -n '1s/^nbdchain (\([^)]*\)).*/\1/p' \
         "$top_srcdir/debian/changelog")" = "$NBDCHAIN_VERSION" ]
}

@test "the man pages are proper pod" {
  podchecker "$cli_pod" "$plugin_pod" "${filter_pods[@]}"
}

@test "files that README.md and the release notes link to are there" {
  for file in README.md docs/release-notes/0.1.md; do
    grep -oE '\]\([^)#]+' "$top_srcdir/$file" | sed 's/^](//' |
    while IFS= read -r link; do
      case $link in
        http*) ;;
        *) ls -d "$top_srcdir/$(dirname "$file")/$link" ;;
      esac
    done
  done
}

@test "README.md begins with the commands for demo and tests" {
  [[ $(sed -n 1p "$top_srcdir/README.md") == *scripts/demo* ]]
  [[ $(sed -n 2p "$top_srcdir/README.md") == *scripts/test* ]]
  [ -x "$top_srcdir/scripts/demo" ]
  [ -x "$top_srcdir/scripts/test" ]
}

@test "every example is run, or the document says why not" {
  local file line mark text found=0 bad=0
  for file in $(documents); do
    while IFS= read -r line; do
      case $line in
        "%% "*) mark=${line#%% } text='' ;;
        %%)
          has_command "$text" || continue
          found=$((found + 1))
          case $mark in
            usage | drawing | runnable* | "goes on" | "qemu options" | \
              "not run: "*) ;;
            *)
              bad=$((bad + 1))
              printf '%s: not marked (see tests/examples.bash):\n%s\n' \
                "$file" "$text" ;;
          esac ;;
        *) text+=$line$'\n' ;;
      esac
    done < <(blocks "$file")
  done
  [ "$found" -gt 10 ]
  [ "$bad" -eq 0 ]
}

@test "an example with a name is run by a test of its own" {
  local file name
  for file in $(documents); do
    blocks "$file" | sed -n 's/^%% runnable: //p' | while IFS= read -r name; do
      grep -qE "(recipe|example) .*\\b$name\\b" "$top_srcdir"/tests/*.bats
    done
  done
}

@test "the man page shows the usage that help shows" {
  local command usage
  for command in $("$NBDCHAIN" --help |
                   sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
    usage=$(section "$cli_pod" "nbdchain $command" | sed -n '3s/^ //p')
    "$NBDCHAIN" "$command" --help | grep -F "$usage"
  done
}

@test "the examples in README.md run" {
  run_examples "$top_srcdir/README.md"
}

@test "the examples in nbdchain(1) run" {
  run_examples "$cli_pod"
}

@test "the examples in nbdkit-chain-plugin(1) run" {
  run_examples "$plugin_pod"
}

@test "the examples in nbdkit-prefetch-filter(1) run" {
  run_examples "$top_srcdir/filters/prefetch/nbdkit-prefetch-filter.pod"
}

@test "the examples in nbdkit-stream-filter(1) run" {
  run_examples "$top_srcdir/filters/stream/nbdkit-stream-filter.pod"
}
