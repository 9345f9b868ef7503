#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# nbdchain compare: what it says of two disks, what it does not read, and what
# it shows meanwhile.  That it finds every byte is for unit/test-compare.
# shellcheck disable=SC2154             # run-tests sets these

load common

MIB=1048576

# write_at IMAGE OFFSET TEXT: into the disk of the chain.
write_at ()
{
  serve_plain "$1"
  nbdsh -u "$uri" -c "h.pwrite(b'$3', $2)" -c 'h.flush()'
  stop "$pid"
}

# json EXPRESSION: of the object D in $output.
json ()
{
  /usr/bin/python3 -c 'import json, sys; D = json.loads(sys.argv[1])
print(eval(sys.argv[2]))' "$output" "$1"
}

# A base of 8 MiB and two overlays on it that show the same.
two_overlays ()
{
  make_base base.raw $((8 * MIB))
  make_overlay a.fvd base.raw
  make_overlay b.fvd base.raw
  write_at a.fvd 1000000 'the same'
  write_at b.fvd 1000000 'the same'
}

@test "two disks are equal" {
  two_overlays
  run -0 nbdchain compare a.fvd b.fvd
  [[ $output == 'a.fvd and b.fvd are equal: 8 MiB (4 KiB read, '* ]]
  run -0 nbdchain compare a.fvd a.fvd
  run -4 nbdchain compare a.fvd base.raw -F raw
  run -4 nbdchain compare -f raw base.raw b.fvd
}

@test "the first difference, and all of them" {
  two_overlays
  write_at b.fvd 3000000 xyz
  write_at b.fvd 5000000 x
  run -4 nbdchain compare a.fvd b.fvd
  [ "$output" = 'a.fvd and b.fvd differ, first at byte 3000000' ]

  run -4 nbdchain compare --all a.fvd b.fvd
  [ "${lines[1]}" = '4 bytes in 2 ranges differ' ]
  [ "$(awk '$1 == 3000000 { print $2, $3 }' <<<"$output")" = '3 3' ]
  [ "$(awk '$1 == 5000000 { print $2, $3 }' <<<"$output")" = '1 1' ]

  run -4 nbdchain compare --all --limit 1 a.fvd b.fvd
  [[ $output == *'...  and 1 ranges more'* ]]
  [[ $output != *5000000* ]]
}

@test "the result as JSON" {
  two_overlays
  run -0 nbdchain compare --json a.fvd b.fvd
  [ "$(json 'D["equal"], D["first"], D["bytes"], D["list"]')" = \
    '(True, None, None, None)' ]
  [ "$(json 'D["read"] + D["shared"] + D["zero"] == D["size_a"]')" = True ]

  write_at b.fvd 3000000 xyz
  run -4 nbdchain compare --json a.fvd b.fvd
  [ "$(json 'D["equal"], D["first"], D["ranges"]')" = '(False, 3000000, None)' ]
  run -4 nbdchain compare --json --all a.fvd b.fvd
  [ "$(json 'D["bytes"], D["ranges"], D["list"]')" = \
    "(3, 1, [{'offset': 3000000, 'length': 3, 'bytes': 3}])" ]
}

@test "the tail of the larger disk must be zeros" {
  make_base a.raw 100000
  cp a.raw b.raw
  truncate -s 1T b.raw
  run -0 nbdchain compare -f raw -F raw a.raw b.raw
  [[ ${lines[0]} == 'a.raw and b.raw are equal: 1 TiB '* ]]
  [[ ${lines[1]} == 'b.raw is larger, by '*' that are zeros' ]]
  run -4 nbdchain compare --strict -f raw -F raw b.raw a.raw
  [ "${lines[0]}" = 'b.raw and a.raw differ in size' ]
  run -4 nbdchain compare --strict --all -f raw -F raw b.raw a.raw
  [ "${lines[0]}" = 'b.raw and a.raw differ in size' ]

  printf x | dd of=b.raw bs=1 seek=500000000000 conv=notrunc status=none
  run -4 nbdchain compare -f raw -F raw a.raw b.raw
  [ "${lines[0]}" = 'a.raw and b.raw differ, first at byte 500000000000' ]
}

@test "holes on both sides are not read" {
  truncate -s 1T a.raw b.raw
  printf x | dd of=b.raw bs=1 seek=70000000000 conv=notrunc status=none
  serve_by a "$NBDKIT" -f -r --filter=log -- file a.raw logfile=a.log
  uri_a=$uri
  serve_by b "$NBDKIT" -f -r --filter=log -- file b.raw logfile=b.log
  run -4 nbdchain compare --json --all "$uri_a" "$uri"
  [ "$(json 'D["bytes"], D["first"], D["read"] < 2**20')" = \
    '(1, 70000000000, True)' ]
  run ! grep ' Read ' a.log
  [ "$(grep -c ' Read .*\.\.\.$' b.log)" -eq 1 ]
}

@test "a remote base that both have is not read" {
  make_base base.raw $((8 * MIB))
  serve_by base "$NBDKIT" -f -r --filter=log -- file base.raw logfile=base.log
  base=$uri
  mkdir images
  make_overlay images/a.fvd "$base"
  make_overlay images/b.fvd "$base"
  run -0 nbdchain compare --allow "$base" images/a.fvd images/b.fvd
  [[ $output == *'(0 bytes read, 8 MiB from the same layer, '* ]]
  run ! grep ' Read ' base.log
  run -1 nbdchain compare images/a.fvd images/b.fvd
  [[ $output == *--allow* ]]
}

@test "many requests are under way" {
  make_base base.raw $((32 * MIB))
  serve_by slow "$NBDKIT" -f -r -t 16 --filter=log --filter=delay \
    -- file base.raw logfile=slow.log rdelay=100ms
  run -0 nbdchain compare "$uri" base.raw -F raw
  most=$(awk '/ Read .* \.\.\.$/ && ++n > most { most = n }
              /\.\.\.Read / { n-- }
              END { print most }' slow.log)
  [ "$most" -ge 8 ]
}

@test "commands, and a base for each side" {
  make_base base.raw $((2 * MIB))
  cat >noisy <<'END'
#!/bin/sh
echo noise
exec nbdkit file base.raw
END
  chmod +x noisy
  # A shell does not run with the runtime of a sanitizer.
  command="[ env -u LD_PRELOAD $PWD/noisy ]"
  make_overlay a.fvd "$command"
  make_overlay b.fvd base.raw
  run -0 --separate-stderr nbdchain compare --json --base "$command" \
    --base-b base.raw a.fvd b.fvd
  [ "$(json 'D["equal"], D["read"] > 0')" = '(True, True)' ]
  run -0 --separate-stderr nbdchain compare --json -f raw base.raw "$command"
  [ "$(json 'D["equal"]')" = True ]
  run -1 nbdchain compare a.fvd b.fvd
  [[ $output == *--base* ]]
}

@test "an image in use is refused, its server is not" {
  two_overlays
  serve a.fvd
  run -1 nbdchain compare a.fvd b.fvd
  [[ $output == *a.fvd* ]]
  nbdsh -u "$uri" -c 'h.pwrite(b"x", 7000000)'
  run -4 nbdchain compare "$uri" b.fvd
  [[ $output == *'differ, first at byte 7000000' ]]
}

@test "a disk that cannot be read is neither equal nor different" {
  truncate -s 4M a.raw
  run -1 --separate-stderr nbdchain compare a.raw -f raw \
    '[ nbdkit --filter=error pattern 4M error-pread=EIO error-pread-rate=100% ]'
  [ -z "$output" ]
  [[ $stderr == *'nbdchain: '* ]]
  run -1 nbdchain compare -f raw a.raw nosuch.fvd
  run -1 nbdchain compare a.raw -F raw a.raw
  [[ $output == *'a.raw: if it is a raw disk, say so with -f raw'* ]]
  run -1 nbdchain compare -f fvd nbd+unix:///?socket=none -F raw a.raw
  [[ $output == *'can only be raw'* ]]
}

@test "wrong usage is told from failure" {
  run -2 nbdchain compare a.fvd
  run -2 nbdchain compare a.fvd b.fvd c.fvd
  run -2 nbdchain compare --limit x a.fvd b.fvd
  run -2 nbdchain compare --frob a.fvd b.fvd
}

slow_disk='[ nbdkit -t 8 --filter=noextents --filter=delay memory 40M rdelay=200ms ]'

# In the numbers of standard input, one a line, none is below the one before,
# and 100 is the last one, and there once.
never_goes_back ()
{
  awk '$1 < last { exit 1 } { last = $1; n += $1 == 100 }
       END { if (last != 100 || n != 1) exit 1 }'
}

@test "progress as lines and as JSON" {
  truncate -s 40M a.raw
  run -0 --separate-stderr nbdchain compare --progress -f raw a.raw "$slow_disk"
  [[ $output == *'are equal'* ]]
  [ "${#stderr_lines[@]}" -ge 2 ]
  printf '%s\n' "${stderr_lines[@]}" >lines
  run ! grep -vE '^comparing: [0-9]+ %, .*[0-9] [KM]iB' lines
  sed 's/comparing: \([0-9]*\) .*/\1/' lines | never_goes_back

  run -0 --separate-stderr nbdchain compare --progress --json -f raw a.raw \
    "$slow_disk"
  [ "$(json 'D["equal"]')" = True ]
  printf '%s\n' "${stderr_lines[@]}" >lines
  jq -r 'if .complete then 100 else 99 * .done / .total end' lines |
    never_goes_back
  jq -e '.total == 40 * 1048576 and (.rate | type) == "number"' lines

  run -0 --separate-stderr nbdchain compare -f raw a.raw "$slow_disk"
  [ -z "$stderr" ]
}

@test "a bar on a terminal, wiped out before anything else is printed" {
  truncate -s 40M a.raw
  on_terminal="nbdchain compare -f raw a.raw '$slow_disk'"
  COLUMNS=100 run -0 script -qec "$on_terminal" /dev/null </dev/null
  tr '\r' '\n' <<<"$output" >lines
  grep -c '^comparing \[#*-*\] ' lines
  run ! grep -E '^.{100}' <(grep comparing lines)
  sed -n 's/^comparing .* \([0-9]*\) %.*/\1/p' lines | never_goes_back
  grep '^a.raw and .* are equal' lines

  # The last MiB differs; here and with an error nothing of the bar is left.
  printf x | dd of=a.raw bs=1M seek=39 conv=notrunc status=none
  run -4 script -qec "$on_terminal" /dev/null </dev/null
  tr '\r' '\n' <<<"$output" >lines
  run ! grep '100 %' lines
  grep -B 1 '^a.raw and .* differ' lines | grep '^ *$'
}
