#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# The documents say what the programs do: options and parameters are the same
# in --help and in the man page, and examples marked as runnable run.
# shellcheck disable=SC2154             # run-tests sets these

bats_require_minimum_version 1.5.0

setup ()
{
  cd "$BATS_TEST_TMPDIR" || return 1
  cli_pod=$top_srcdir/tools/nbdchain.pod
  plugin_pod=$top_srcdir/plugin/nbdkit-chain-plugin.pod
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

# path_with_programs: make a folder for PATH in which nbdchain is that of the
# build, and nbdkit finds the plugin of the build as "chain"; print it.
path_with_programs ()
{
  mkdir -p bin
  ln -sf "$NBDCHAIN" bin/nbdchain
  cat >bin/nbdkit <<'END'
#!/usr/bin/env bash
args=()
for arg; do
  if [ "$arg" = chain ]; then
    arg=$NBDCHAIN_PLUGIN
    export LD_LIBRARY_PATH=$top_builddir/lib/.libs LD_PRELOAD=$NBDCHAIN_PRELOAD
  fi
  args+=("$arg")
done
exec "$NBDKIT" "${args[@]}"
END
  chmod +x bin/nbdkit
  echo "$PWD/bin"
}

# run_examples: run each script of standard input, they are separated by lines
# of "%%", in a folder of its own; fail if there is none.
run_examples ()
{
  local line script='' n=0 path
  path=$(path_with_programs)
  while IFS= read -r line || [ -n "$line" ]; do
    if [ "$line" = %% ]; then
      n=$((n + 1))
      mkdir "$n"
      (cd "$n" && PATH=$path:$PATH bash -euxc "$script" </dev/null 3>&-)
      script=''
    else
      script+=$line$'\n'
    fi
  done
  [ "$n" -gt 0 ]
}

# Print the examples in a pod that follow "=for example runnable".
pod_examples ()
{
  awk '/^=for example runnable/ { on = 1; next }
       on && /^ / { print substr($0, 2); inside = 1; next }
       on && inside { print "%%"; on = inside = 0 }' "$1"
}

# Print the examples in a Markdown file that follow "<!-- runnable -->".
markdown_examples ()
{
  awk '/^<!-- runnable -->/ { marked = 1; next }
       marked && /^```/ && !on { on = 1; next }
       on && /^```/ { print "%%"; on = marked = 0; next }
       on' "$1"
}

@test "help and man page of nbdchain name the same options" {
  for command in create info map check snapshot serve; do
    "$NBDCHAIN" "$command" --help | help_options >help
    section "$cli_pod" "nbdchain $command" | pod_options >pod
    [ -s help ]
    diff -u help pod
  done
}

@test "help and man page of nbdchain name the same commands" {
  "$NBDCHAIN" --help |
    sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | sort >help
  sed -n 's/^=head1 nbdchain \([a-z]*\)$/\1/p' "$cli_pod" | sort >pod
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

@test "help and man page of the plugin name the same parameters" {
  chain --help | sed '1,/^plugin: /d' >help
  grep -E '^[[a-z]' help | grep -oE '[a-z-]+\]?=[^ ]*(, |$)|^\[?[a-z-]+=' |
    grep -oE '^\[?[a-z-]+' | tr -d '[' | sort -u >keys
  section "$plugin_pod" PARAMETERS |
    sed -nE 's/^=item \[?B<([a-z-]+)=.*/\1/p' | sort -u >pod
  [ -s keys ]
  diff -u keys pod
}

@test "the plugin dumps what it can do" {
  run -0 chain --dump-plugin
  [[ $output == *"name=chain"* ]]
  [[ $output == *"version=$NBDCHAIN_VERSION"* ]]
  [[ $output == *"magic_config_key=image"* ]]
  [[ $output == *"max_thread_model=parallel"* ]]
}

@test "the man pages are proper pod" {
  podchecker "$cli_pod" "$plugin_pod"
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

@test "the examples in README.md run" {
  markdown_examples "$top_srcdir/README.md" | run_examples
}

@test "the examples in nbdchain(1) run" {
  pod_examples "$cli_pod" | run_examples
}

@test "the examples in nbdkit-chain-plugin(1) run" {
  pod_examples "$plugin_pod" | run_examples
}
