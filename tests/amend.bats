#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# The prefetch policy of an image: set at create, changed by "nbdchain amend",
# shown by "nbdchain info".
# shellcheck disable=SC2154             # common.bash sets these

load common

# policy IMAGE: as Python prints it, without what is 0 or false.
policy ()
{
  "$NBDCHAIN" info --json "$1" | python3 -c 'import json, sys
p = json.load(sys.stdin)["fvd"]["prefetch"]
print({k: v for k, v in p.items() if v})'
}

@test "an image has no policy unless it was given one" {
  "$NBDCHAIN" create a.fvd 1M
  [ "$(policy a.fvd)" = "{}" ]
  run -0 "$NBDCHAIN" info a.fvd
  [[ $output == *"prefetch:   off"* ]]
}

@test "each field can be given at create, and changed alone later" {
  "$NBDCHAIN" create a.fvd 1M --prefetch on --prefetch-profile on \
    --prefetch-start-delay 30 --prefetch-max-read-throughput 20M \
    --prefetch-max-write-throughput 10M --prefetch-min-read-throughput 2M \
    --prefetch-min-write-throughput 1M --prefetch-throttle-time 500 \
    --bytes-per-prefetch 128K --num-prefetch-slots 7 \
    --prefetch-read-throughput-measure-time 200 \
    --prefetch-write-throughput-measure-time 300 \
    --prefetch-perf-calc-alpha 90
  all="{'whole': True, 'profile': True, 'start_delay': 30,"
  all+=" 'max_read_throughput': 20971520, 'max_write_throughput': 10485760,"
  all+=" 'min_read_throughput': 2097152, 'min_write_throughput': 1048576,"
  all+=" 'throttle_time': 500, 'bytes_per_prefetch': 131072,"
  all+=" 'num_slots': 7, 'read_measure_time': 200, 'write_measure_time': 300,"
  all+=" 'perf_calc_alpha': 90}"
  [ "$(policy a.fvd)" = "$all" ]
  run -0 "$NBDCHAIN" info a.fvd
  [[ $output == *"the whole image, the profile first"* ]]
  [[ $output == *"delay:    30 s"*"max read: 20 MiB/s"*"throttle: 500 ms"*"unit:"*"128 KiB"*"slots:    7"*"alpha:    90 %"* ]]

  local option value key
  while read -r option value key; do
    "$NBDCHAIN" amend "--$option" "$value" a.fvd
    all=$(python3 -c 'import ast, sys
p = ast.literal_eval(sys.argv[1]); del p[sys.argv[2]]; print(p)' "$all" "$key")
    [ "$(policy a.fvd)" = "$all" ]
  done <<'END'
prefetch-max-read-throughput 0 max_read_throughput
bytes-per-prefetch 0 bytes_per_prefetch
num-prefetch-slots 0 num_slots
prefetch-perf-calc-alpha 0 perf_calc_alpha
prefetch-read-throughput-measure-time 0 read_measure_time
prefetch-write-throughput-measure-time 0 write_measure_time
prefetch-profile off profile
prefetch off whole
prefetch-throttle-time 0 throttle_time
prefetch-min-write-throughput 0 min_write_throughput
prefetch-max-write-throughput 0 max_write_throughput
prefetch-start-delay 0 start_delay
prefetch-min-read-throughput 0 min_read_throughput
END
  [ "$all" = "{}" ]
  "$NBDCHAIN" check a.fvd
}

@test "what --prefetch says goes for the profile, unless that is named, too" {
  "$NBDCHAIN" create a.fvd 1M --prefetch=on
  [ "$(policy a.fvd)" = "{'whole': True, 'profile': True}" ]
  "$NBDCHAIN" amend --prefetch=off a.fvd
  [ "$(policy a.fvd)" = "{}" ]
  "$NBDCHAIN" amend --prefetch-profile=off --prefetch=on a.fvd
  [ "$(policy a.fvd)" = "{'whole': True}" ]
  # What does not name it leaves it.
  "$NBDCHAIN" amend --prefetch-max-read-throughput=0 a.fvd
  [ "$(policy a.fvd)" = "{'whole': True}" ]
  "$NBDCHAIN" amend --prefetch=on a.fvd
  [ "$(policy a.fvd)" = "{'whole': True, 'profile': True}" ]
  "$NBDCHAIN" amend --prefetch=off --prefetch-profile=on a.fvd
  [ "$(policy a.fvd)" = "{'profile': True}" ]
  "$NBDCHAIN" create b.fvd 1M --prefetch=on --prefetch-profile=off
  [ "$(policy b.fvd)" = "{'whole': True}" ]
  "$NBDCHAIN" create c.fvd 1M --prefetch-profile=on
  [ "$(policy c.fvd)" = "{'profile': True}" ]
}

@test "amend says what the policy is now" {
  "$NBDCHAIN" create a.fvd 1M
  run -0 "$NBDCHAIN" amend --prefetch=on --json a.fvd
  python3 -c 'import json, sys
d = json.loads(sys.argv[1])
assert d["path"] == "a.fvd" and d["prefetch"]["whole"] is True
assert d["prefetch"]["bytes_per_prefetch"] == 0' "$output"
  run -0 "$NBDCHAIN" amend --prefetch-max-write-throughput=1G a.fvd
  [[ $output == *"the whole image"*"max write: 1 GiB/s"* ]]
}

@test "values that make no sense are refused, and what is allowed is said" {
  "$NBDCHAIN" create a.fvd 1M
  local option value text
  while read -r option value text; do
    run -2 "$NBDCHAIN" amend "--$option=$value" a.fvd
    [[ $output == *"--$option: '$value' $text"* ]]
    run -2 "$NBDCHAIN" create "--$option=$value" b.fvd 1M
    [ ! -e b.fvd ]
  done <<'END'
prefetch maybe is neither 'on' nor 'off'
prefetch-profile 1 is neither 'on' nor 'off'
prefetch-start-delay 604801 is not a number from 0 to 604800
prefetch-throttle-time 3600001 is not a number from 0 to 3600000
prefetch-throttle-time -1 is not a number
bytes-per-prefetch 5000 is not allowed: it must be a multiple of 4K
bytes-per-prefetch 65M is not allowed
num-prefetch-slots 65 is not a number from 0 to 64
prefetch-perf-calc-alpha 100 is not a number from 0 to 99
prefetch-read-throughput-measure-time 60001 is not a number from 0 to 60000
prefetch-max-read-throughput fast is not a size
END
  run -1 "$NBDCHAIN" create b.fvd 1M --prefetch-max-read-throughput=1M \
    --prefetch-min-read-throughput=2M
  [[ $output == *"prefetching would never run"* ]]
  [ ! -e b.fvd ]
  "$NBDCHAIN" amend --prefetch-max-write-throughput=1M a.fvd
  run -1 "$NBDCHAIN" amend --prefetch-min-write-throughput=2M a.fvd
  [[ $output == *"prefetching would never run"* ]]
  [ "$(policy a.fvd)" = "{'max_write_throughput': 1048576}" ]
  run -2 "$NBDCHAIN" amend a.fvd
  [[ $output == *"nothing to change"* ]]
}

@test "what is no image, retired or in use is not amended" {
  truncate -s 1M raw.img
  run -1 "$NBDCHAIN" amend --prefetch=on raw.img
  [[ $output == *"not an fvd image"* ]]
  "$NBDCHAIN" create a.fvd 1M
  "$NBDCHAIN" snapshot a.fvd b.fvd
  run -1 "$NBDCHAIN" amend --prefetch=on a.fvd
  [[ $output == *retired*b.fvd* ]]
  cp a.fvd before
  run -1 "$NBDCHAIN" profile import a.fvd - <<<'nbdchain-profile 1
size 1048576'
  [[ $output == *retired*b.fvd* ]]
  cmp a.fvd before
  serve_plain b.fvd
  run -1 "$NBDCHAIN" amend --prefetch=on b.fvd
  [[ $output == *"in use"* ]]
  stop "$pid"
  "$NBDCHAIN" amend --prefetch=on b.fvd
}

@test "amending an image that was not closed in order loses nothing" {
  make_base base.raw 300001
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  "$NBDCHAIN" amend --prefetch=on top.fvd
  run -0 "$NBDCHAIN" info top.fvd
  [[ $output == *"not closed in order"* ]]
  serve_plain top.fvd
  assert_same_as now.raw "$uri"
}
