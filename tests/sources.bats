#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# The recipes of docs/sources.md, run as they stand: each disk shows all of its
# base, takes writes, and outlives what goes wrong as the recipe says.
# shellcheck disable=SC2154             # common.bash and examples.bash set these

load common
load examples

# common_setup, common_teardown: those of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"
eval "$(declare -f teardown | sed '1s/^teardown/common_teardown/')"

setup ()
{
  common_setup
  make_stage
  devices=()
  make_base base.img $((6 << 20))
  cp base.img base.before
  disk=nbd:unix:$PWD/run/vm.sock
}

teardown ()
{
  local status=$? device
  clear_stage
  for device in "${devices[@]}"; do
    losetup -d "$device"
  done
  common_teardown
  return "$status"
}

recipe ()
{
  example "$top_srcdir/docs/sources.md" "$1" | play
}

# What every recipe promises: the disk is the base, and takes writes that do
# not reach it.
shows_base_and_takes_writes ()
{
  recipe compare
  qemu-io -f raw -c 'write -P 0x5a 1000k 9k' -c flush "$disk"
  cp base.before expected.img
  qemu-io -f raw -c 'write -P 0x5a 1000k 9k' expected.img
  qemu-img compare -f raw -F raw expected.img "$disk"
  cmp base.img base.before
}

# server_pid: of the nbdchain that serves the disk, the last one started.
server_pid ()
{
  tail -n 1 servers
}

# child NAME: print the pid of the command under the disk's nbdkit.
child ()
{
  local nbdkit
  nbdkit=$(pgrep -P "$(server_pid)")
  pgrep -P "$nbdkit" -x "$1"
}

has_new_child ()
{
  local now
  now=$(child "$1") && [ "$now" != "$2" ]
}

# survives_its_command NAME: it is killed, and comes back by itself.
survives_its_command ()
{
  local old
  old=$(child "$1")
  kill -KILL "$old"
  # What is local is there at once; what is not, when the command is back.
  qemu-io -f raw -c 'read -P 0x5a 1000k 9k' "$disk"
  qemu-img compare -f raw -F raw expected.img "$disk"
  wait_for 20 has_new_child "$1" "$old"
}

# refused TEXT WORD...: the disk of top.fvd cannot be served so, for the reason
# TEXT.
refused ()
{
  local text=$1
  shift
  run -1 timeout 60 "$NBDCHAIN" serve top.fvd -U "$PWD/run/vm.sock" "$@"
  [[ $output == *"$text"* ]]
}

# web_up: the files of www/ at http://server/.
web_up ()
{
  start web busybox httpd -f -p "127.0.0.1:$web_port" -h www
  web_pid=$pid
  wait_for 20 serves_files
}

serves_files ()
{
  [ -n "$(ss -Hltn "sport = :$web_port")" ]
}

@test "http: a file on a web server" {
  mkdir www
  ln base.img www/base.img
  web_up
  recipe http
  shows_base_and_takes_writes
  survives_its_command nbdkit
  "$NBDCHAIN" info --json top.fvd | jq -e '.backing.reference == null'
  clear_stage
  refused "given each time"
  # Another size is noticed.
  truncate -s 5M www/short.img
  refused "was made when it had 6291456" \
    --base "[ nbdkit curl http://127.0.0.1:$web_port/short.img ]"
  stop "$web_pid" || :
  refused "cannot connect" \
    --base "[ nbdkit curl http://127.0.0.1:$web_port/base.img ]"
}

@test "http: reads wait for a web server that is away" {
  local server
  mkdir www
  ln base.img www/base.img
  web_up
  recipe http
  qemu-io -f raw -c 'write -P 0x5a 1000k 9k' "$disk"
  stop_hard "$web_pid"
  start reader qemu-io -r -f raw -c 'read 3M 64k' "$disk"
  local reader=$pid
  # The command has noticed, and the reader still waits.
  wait_for 20 grep -q "connect to server" serve.*.err
  qemu-io -f raw -c 'read -P 0x5a 1000k 9k' "$disk"
  kill -0 "$reader"
  web_up
  wait "$reader"
  run ! grep -i error reader.out
  grep -q "read 65536/65536" reader.out
  qemu-io -f raw -c 'write -P 0x5a 1000k 9k' base.before
  qemu-img compare -f raw -F raw base.before "$disk"
}

@test "http: without the retry filter an error reaches the guest at once" {
  mkdir www
  ln base.img www/base.img
  web_up
  "$NBDCHAIN" create -b "[ nbdkit curl http://127.0.0.1:$web_port/base.img ]" \
    -F raw top.fvd
  serve top.fvd --base "[ nbdkit curl http://127.0.0.1:$web_port/base.img ]"
  stop_hard "$web_pid"
  run qemu-io -r -f raw -c 'read 3M 64k' "nbd:unix:$sock"
  [[ $output == *"Input/output error"* ]]
  web_up
  qemu-img compare -f raw -F raw base.img "nbd:unix:$sock"
}

@test "http: a server without ranges is refused" {
  mkdir www
  ln base.img www/base.img
  start web /usr/bin/python3 -m http.server -b 127.0.0.1 -d www "$web_port"
  wait_for 20 serves_files
  run ! "$NBDCHAIN" create -F raw top.fvd \
    -b "[ nbdkit curl http://127.0.0.1:$web_port/base.img ]"
  [[ $output == *"range"* ]]
  [ ! -e top.fvd ]
}

@test "vmdk: an image of another hypervisor" {
  qemu-img convert -f raw -O vmdk base.img base.vmdk
  recipe vmdk
  shows_base_and_takes_writes
  survives_its_command qemu-nbd
  # The same disk in another container is the same base; a larger one is cut,
  # a smaller one is none.
  qemu-img convert -f raw -O qcow2 base.img base.qcow2
  clear_stage
  serve top.fvd --base '[ qemu-nbd -r -f qcow2 base.qcow2 ]'
  qemu-img compare -f raw -F raw expected.img "nbd:unix:$sock"
  stop "$pid"
  qemu-img create -q -f vmdk small.vmdk 5M
  refused "was made when it had 6291456" \
    --base '[ qemu-nbd -r -f vmdk small.vmdk ]'
}

@test "qcow2: an image of QEMU's, its holes, and one that is being written" {
  truncate -s 6M base.img
  qemu-io -f raw -c 'write -z -u 4M 2M' base.img
  cp base.img base.before
  qemu-img convert -f raw -O qcow2 base.img base.qcow2
  recipe qcow2
  nbdinfo --map --json "nbd+unix:///?socket=$PWD/run/vm.sock" |
    jq -e 'last | .type == 3 and .length >= 2097152'
  shows_base_and_takes_writes
  survives_its_command qemu-nbd
  clear_stage
  # It locks the file some time after it listens, and before it tells its pid.
  start writer qemu-nbd -f qcow2 -k "$PWD/writer.sock" --pid-file writer.pid \
    -t base.qcow2
  wait_for 20 is_ready_or_gone writer.pid "$pid"
  [ -s writer.pid ]
  refused "cannot connect" --base '[ qemu-nbd -r -f qcow2 base.qcow2 ]'
}

@test "xz: a compressed image" {
  recipe xz
  shows_base_and_takes_writes
  survives_its_command nbdkit
}

@test "gzip: a compressed image" {
  recipe gzip
  shows_base_and_takes_writes
  survives_its_command nbdkit
}

@test "chain tcp: a layer of another nbdchain" {
  recipe "chain tcp server"
  local remote server
  server=$(server_pid)
  recipe "chain tcp"
  shows_base_and_takes_writes
  remote=nbd://127.0.0.1:$port/golden.fvd
  "$NBDCHAIN" info --json top.fvd |
    jq -e --arg remote "$remote" --arg uuid \
      "$("$NBDCHAIN" info --json golden.fvd | jq -r .fvd.uuid)" \
      '.backing | .reference == $remote and (.identity | contains ($uuid))'
  # Its nbdkit dies, and is started again by its own nbdchain.
  kill -KILL "$(pgrep -P "$server")"
  qemu-img compare -f raw -F raw expected.img "$disk"
  # Another disk in its place, of the same name and size, is not taken.
  clear_stage
  mkdir other
  cp base.img other/
  (cd other && recipe "chain tcp server")
  refused "$remote: calls itself" --allow "nbd://127.0.0.1:$port/"
}

@test "chain unix: a layer of another nbdchain" {
  recipe "chain unix"
  local server
  server=$(head -n 1 servers)
  shows_base_and_takes_writes
  kill -KILL "$(pgrep -P "$server")"
  qemu-img compare -f raw -F raw expected.img "$disk"
}

# needs_loop: skip where there are no loop devices, as in most containers.
needs_loop ()
{
  local device
  truncate -s 1M probe.img
  device=$(losetup --find --show probe.img 2>/dev/null) ||
    skip "no loop device can be set up here"
  losetup -d "$device"
}

# note_devices: the loop devices on base.img are ours.
note_devices ()
{
  mapfile -t devices < <(losetup -n -O NAME -j base.img)
  [ "${#devices[@]}" -eq 1 ]
}

@test "device: a base on a block device" {
  needs_loop
  recipe device
  note_devices
  shows_base_and_takes_writes
  "$NBDCHAIN" info --json top.fvd |
    jq -e --arg device "${devices[0]}" '.backing.reference == $device'
  # Not without leave, and not when it is smaller.
  clear_stage
  refused "--allow"
  truncate -s 5M base.img
  losetup -c "${devices[0]}"
  refused "was made when it had 6291456" --base "${devices[0]}"
}

@test "device active: a block device that is written" {
  needs_loop
  recipe "device active"
  note_devices
  qemu-img compare -f raw -F raw base.before "$disk"
  qemu-io -f raw -c 'write -P 0x5a 1000k 9k' -c 'write -z 2M 1M' \
    -c 'discard 3M 1M' -c flush "$disk"
  cp base.before expected.img
  qemu-io -f raw -c 'write -P 0x5a 1000k 9k' -c 'write -z 2M 1M' expected.img
  qemu-io -f raw -r -c 'read -P 0x5a 1000k 9k' "${devices[0]}"
  clear_stage
  cmp -n $((3 << 20)) base.img expected.img
  cmp -i $((4 << 20)) base.img expected.img
}
