#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Images that anybody may have made or damaged, through the commands and the
# plugin: refused with a message that names the image, or read rightly; never
# a crash, a hang, or a terminal that obeys them.  Every truncation and every
# changed byte are in tests/unit/test-fuzz.c, references in references.bats.
# shellcheck disable=SC2016             # what is quoted is for another shell
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2154             # common.bash sets these

load common

# Whatever is opened, it must not hang.
patience=60

# fvdimage COMMAND IMAGE ARGUMENT...
fvdimage ()
{
  /usr/bin/python3 "$top_srcdir/tests/peers/fvdimage.py" "$@"
}

# a_byte_changes IMAGE OFFSET
a_byte_changes ()
{
  /usr/bin/python3 - "$@" <<'END'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    byte = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([byte ^ 4]))
END
}

# plugin IMAGE [ARGUMENT...]: nbdkit opens it, and the disk is copied to
# "copy".
plugin ()
{
  local nbdkit
  nbdkit_with_chain
  rm -f copy
  timeout "$patience" "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" "$@" \
    --run 'unset LD_PRELOAD; nbdcopy "$uri" copy'
}

# steers_nothing: $output, of the last run, has no control character but the
# ends of its lines.
steers_nothing ()
{
  ! LC_ALL=C grep -q $'[\001-\010\013-\037\177]' <<<"$output" || return 1
  ! LC_ALL=C grep -q $'\302[\200-\237]' <<<"$output" || return 1
  ! LC_ALL=C grep -q $'\342\200[\252-\256]' <<<"$output"
}

# refused IMAGE TEXT...: by everything that reads it, with a message that has
# the name and the TEXTs.
refused ()
{
  local image=$1 how text
  shift
  for how in info map check plugin; do
    case $how in
      plugin) run plugin "$image" ;;
      *) run timeout "$patience" "$NBDCHAIN" "$how" "$image" ;;
    esac
    case $how in
      check) [ "$status" -eq 3 ] || [ "$status" -eq 1 ] ;;
      *) [ "$status" -eq 1 ] ;;
    esac || { echo "$how: $status $output"; return 1; }
    for text in "$image" "$@"; do
      [[ $output == *"$text"* ]] || { echo "$how: $output"; return 1; }
    done
    steers_nothing
  done
}

@test "an image made from the specification alone is opened and written" {
  fvdimage new a.fvd 1000000
  run -0 "$NBDCHAIN" check a.fvd
  [[ $output == *"no errors"* ]]
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 5000, 995000)' -c 'h.flush()'
  stop_hard "$pid"
  # A record of another author counts as well.
  fvdimage record a.fvd 5 1 0:1 17:3
  run -0 "$NBDCHAIN" map --json a.fvd
  serve_plain a.fvd read-only=true
  nbdsh -u "$uri" -c 'assert h.pread(5000, 995000) == b"x" * 5000'
  run -0 nbdinfo --map "$uri"
  stop "$pid"
  run -0 "$NBDCHAIN" check --json a.fvd
  jq -e '.errors == 0 and .allocated == 28672 and .journal_records == 2' \
    <<<"$output" || { echo "$output"; false; }
}

@test "random damage, with right checksums and without: commands" {
  local command
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'for i in range(20): h.pwrite(b"x" * 4096, 40960 * i)' \
    -c 'h.flush()'
  stop_hard "$pid"
  for command in info map check "info --chain --json"; do
    # shellcheck disable=SC2086
    fvdimage sweep a.fvd "$seed" 80 "$NBDCHAIN" $command @
  done
  fvdimage sweep a.fvd "$seed" 40 \
    sh -c '"$NBDCHAIN" snapshot "$1" s.fvd; s=$?; rm -f s.fvd; exit $s' - @
}

@test "random damage, with right checksums and without: served and written" {
  local nbdkit
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  nbdkit_with_chain
  fvdimage sweep a.fvd "$seed" 40 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" @ \
    --run 'unset LD_PRELOAD
      nbdsh -u "$uri" -c "
n = h.get_size()
for at in {0, n // 2, max(n - 9000, 0)}:
  try:
    h.pread(min(n - at, 9000), at)
    h.pwrite(bytes(min(n - at, 4096)), at)
    h.flush()
  except nbd.Error as e:
    print(e)"'
}

@test "extreme fields are refused, each with one message" {
  local field
  for field in version=2 length=512 incompat=0x8000000000000000 \
      size=0x4000000000000001 size=0xffffffffffffffff size=0x4000000000000000 \
      block_bits=11 block_bits=22 block_bits=0xffffffff flags=0x80000001 \
      summary=0 summary=8191 summary=0xfffffffffffff000 summary_size=0 \
      bitmap=0x7ffffffffffff000 bitmap_size=0xffffffffffffffff \
      journal_size=0 journal_size=0x40001000 journal_size=16383 \
      journal=0xffffffffffffffff tail=0 tail=0xffffffffffffffff \
      data=0 data=0x7fffffffffe00000 data=0xffffffffffffffff data=4096 \
      table=8192 profile=1 profile_size=0xfffffffffffff000 seq=0; do
    fvdimage new a.fvd 1000000
    if [ "$field" = seq=0 ]; then
      fvdimage set a.fvd seq=0xfffffffffffffffe
    else
      fvdimage set a.fvd "$field"
    fi
    refused a.fvd || { echo "$field"; false; }
  done
}

@test "areas that overlap or lie past the end are refused" {
  local fields
  for fields in "bitmap=8192" "journal=12288" "summary=4096" \
      "journal=8192 bitmap=24576" "bitmap=16384 journal=12288" \
      "data=2097152 journal_size=4194304" "bitmap=1099511627776" \
      "journal=1099511627776" "data=1099511627776"; do
    fvdimage new a.fvd 1000000
    # shellcheck disable=SC2086
    fvdimage set a.fvd $fields
    refused a.fvd || { echo "$fields"; false; }
  done
}

@test "a disk of 2^62 bytes in a file that long costs nothing until it is there" {
  scratch_dir
  cd "$scratch"
  fvdimage new a.fvd 1000000 block_bits=21
  if ! truncate -s 5E a.fvd; then
    skip "no file system for files of 5 EiB"
  fi
  # 138 MB of summary that are not there, then 4 KiB blocks, for which it
  # would take 64 GiB.
  fvdimage set a.fvd size=0x4000000000000000 summary_size=0x10000000 \
    bitmap=0x20000000 bitmap_size=0x4200000000 journal=0x5000000000 \
    data=0x6000000000
  refused a.fvd summary
  fvdimage set a.fvd block_bits=12 summary_size=0x1100000000 \
    bitmap=0x2000000000 bitmap_size=0x900000000000 journal=0xa00000000000 \
    data=0xb00000000000
  refused a.fvd
}

@test "a journal of huge ranges, over and over, is opened at once" {
  scratch_dir
  cd "$scratch"
  # 80,000 times the whole of 8 TiB.
  fvdimage new a.fvd $((8 << 40)) journal_size=1048576
  fvdimage fill a.fvd 0:$((8 << 28))
  run -0 timeout "$patience" "$NBDCHAIN" info --json a.fvd
  jq -e '.allocated == 8796093022208 - 4096' <<<"$output"
  run -0 timeout "$patience" "$NBDCHAIN" check a.fvd
  [[ $output == *"no errors"* ]]
}

@test "records that cannot be are refused" {
  local record
  for record in "1 1 0:0" "1 1 244:2" "1 1 245:1" "1 1 0:4294967295" \
      "1 1 0xffffffffffffffff:1" "1 9 0:1" "1 1" \
      "0xfffffffffffffffe 1 0:1"; do
    fvdimage new a.fvd 1000000
    # shellcheck disable=SC2086
    fvdimage record a.fvd $record
    refused a.fvd || { echo "$record"; false; }
  done
}

@test "a header copy or a record that is damaged is not lost sight of" {
  local copy
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 4096, 0)' -c 'h.flush()'
  nbdcopy "$uri" want
  stop_hard "$pid"
  cp a.fvd sound.fvd
  for copy in 0 1; do
    cp sound.fvd a.fvd
    a_byte_changes a.fvd $((4096 * copy + 80))
    run -0 "$NBDCHAIN" check a.fvd
    [[ $output == *"one of the two header copies is damaged"* ]]
    run -0 plugin a.fvd
    cmp copy want
    # It is whole again now.
    run -0 "$NBDCHAIN" check a.fvd
    [[ $output == *"no errors;"* ]]
  done
  cp sound.fvd a.fvd
  a_byte_changes a.fvd $(($(od -An -t u8 -j 120 -N 8 a.fvd) + 512 + 30))
  refused a.fvd journal
  # Of one that was closed in order the journal is not needed.
  cp sound.fvd a.fvd
  run -0 plugin a.fvd
  a_byte_changes a.fvd $(($(od -An -t u8 -j 120 -N 8 a.fvd) + 512 + 30))
  run -0 plugin a.fvd
  cmp copy want
}

@test "a retired image with a damaged header copy is still a retired one" {
  local copy
  "$NBDCHAIN" create --journal-size 16K a.fvd 1M
  "$NBDCHAIN" snapshot a.fvd b.fvd
  for copy in 0 1; do
    cp a.fvd c.fvd
    a_byte_changes c.fvd $((4096 * copy + 76))
    run -1 plugin c.fvd
    [[ $output == *"b.fvd"* ]]
  done
}

@test "an unknown feature that only matters to writers leaves the image readable" {
  fvdimage new a.fvd 1000000
  fvdimage set a.fvd ro_compat=4 compat=0x8000000000000000
  run -0 "$NBDCHAIN" info --json a.fvd
  run -0 plugin a.fvd read-only=true
  cp a.fvd before
  run -1 plugin a.fvd
  [[ $output == *a.fvd*newer*read-only* ]]
  cmp a.fvd before
}

@test "nothing in an image steers a terminal" {
  local evil=$'e\e]0;owned\a\n\rnbdkit: error: all is well\xc2\x9b31m\xe2\x80\xaex\xff\x9b'
  local field how
  for field in reference format identity successor; do
    fvdimage new a.fvd 1000000
    fvdimage set a.fvd flags=3 reference=base.raw format=raw
    case $field in
      successor) fvdimage set a.fvd flags=7 \
        successor_uuid=00000000-0000-4000-8000-000000000001 ;;
    esac
    fvdimage set a.fvd "$field=$evil"
    for how in "info" "info --json" "info --chain" map "map --json" check \
        "check --chain" serve; do
      # shellcheck disable=SC2086
      run timeout "$patience" "$NBDCHAIN" $how a.fvd
      [ "$status" -lt 124 ]
      steers_nothing || { echo "$field: $how: $output"; false; }
    done
    run ! plugin a.fvd
    steers_nothing || { echo "$field: plugin: $output"; false; }
    [[ $output == *"\\x1b]0;owned"* ]] || [ "$field" = identity ] ||
      { echo "$field: $output"; false; }
    run "$NBDCHAIN" create -b a.fvd -F fvd b.fvd
    steers_nothing
    run "$NBDCHAIN" snapshot a.fvd c.fvd
    steers_nothing || { echo "$field: snapshot: $output"; false; }
    rm -f b.fvd c.fvd
  done
  # The name of a file that is not hostile shows as it is.
  truncate -s 1M 'größe.raw'
  "$NBDCHAIN" create -b größe.raw -F raw d.fvd
  run -0 "$NBDCHAIN" info d.fvd
  [[ $output == *größe.raw* ]]
}

@test "what is no file is no image, at once" {
  mkfifo fifo
  mkdir dir
  ln -s loop loop
  nbdkit -f -U "$PWD/socket" null 1M 3>&- &
  started_pids+=("$!")
  wait_for 60 test -S socket
  for image in fifo dir loop socket /dev/zero /dev/tty missing; do
    for how in info map check; do
      run -1 timeout "$patience" "$NBDCHAIN" "$how" "$image"
      [[ $output == *"$image"* ]]
    done
    run -1 timeout "$patience" "$NBDCHAIN" snapshot "$image" new.fvd
    run ! plugin "$image"
    [ "$status" -lt 124 ]
    [ ! -e new.fvd ]
  done
}

# --- whose a new image is ---------------------------------------------------

# set_acl FILE: user 54323 may read it, too.  Fails where there are no ACLs.
set_acl ()
{
  /usr/bin/python3 -c 'import os, struct, sys
entries = [(1, 6, -1), (2, 4, 54323), (4, 0, -1), (16, 4, -1), (32, 0, -1)]
os.setxattr(sys.argv[1], "system.posix_acl_access", struct.pack("<I", 2) +
            b"".join(struct.pack("<HHi", *e) for e in entries))' "$1"
}

# acl FILE: in hexadecimal; nothing if it has none.
acl ()
{
  /usr/bin/python3 -c 'import os, sys
try:
    print(os.getxattr(sys.argv[1], "system.posix_acl_access").hex())
except OSError:
    pass' "$1"
}

@test "a snapshot is as private as the image before it" {
  (umask 077; "$NBDCHAIN" create a.fvd 1M >/dev/null)
  (umask 000; "$NBDCHAIN" snapshot a.fvd b.fvd >/dev/null)
  [ "$(stat -c %a b.fvd)" = 600 ]
  chmod 664 b.fvd
  (umask 077; "$NBDCHAIN" snapshot b.fvd c.fvd >/dev/null)
  [ "$(stat -c %a c.fvd)" = 664 ]
}

@test "root's snapshot of an image belongs to the owner of that, with its ACL" {
  [ "$(id -u)" -eq 0 ] || skip "needs root, to give files away"
  "$NBDCHAIN" create a.fvd 1M >/dev/null
  chown 54321:54322 a.fvd
  chmod 600 a.fvd
  "$NBDCHAIN" snapshot a.fvd b.fvd >/dev/null
  [ "$(stat -c %u:%g:%a b.fvd)" = 54321:54322:600 ]
  [ -z "$(acl b.fvd)" ]
  set_acl b.fvd || skip "no ACLs here"
  "$NBDCHAIN" snapshot b.fvd c.fvd >/dev/null
  [ "$(stat -c %u:%g:%a c.fvd)" = 54321:54322:640 ]
  [ -n "$(acl b.fvd)" ]
  [ "$(acl c.fvd)" = "$(acl b.fvd)" ]
}

@test "a snapshot whose owner cannot be kept is not made" {
  local his=(setpriv --reuid 54321 --regid 54321 --clear-groups)
  [ "$(id -u)" -eq 0 ] || skip "needs root, to be another user"
  "$NBDCHAIN" create a.fvd 1M >/dev/null
  chmod 666 a.fvd
  scratch=$(mktemp -d /tmp/nbdchain-his.XXXXXX)
  scratch_dirs+=("$scratch")
  chmod 777 "$scratch"
  mkdir "$scratch/bin"
  mv a.fvd "$scratch"
  cp "$top_builddir/tools/.libs/nbdchain" "$top_builddir/lib/.libs/"*.so \
    "$scratch/bin"
  chmod -R a+rX "$scratch/bin"
  cd "$scratch"
  run -1 "${his[@]}" env LD_LIBRARY_PATH="$scratch/bin" \
    LD_PRELOAD="$NBDCHAIN_PRELOAD" "$scratch/bin/nbdchain" snapshot a.fvd b.fvd
  [[ $output == *"b.fvd: owner, mode, ACL or label"*"cannot be given"* ]]
  [ "$(echo *)" = "a.fvd bin" ]
  [ "$("$NBDCHAIN" info --json a.fvd | jq .retired)" = false ]
}

@test "what another user has put there is not taken for a snapshot of ours" {
  [ "$(id -u)" -eq 0 ] || skip "needs root, to give files away"
  "$NBDCHAIN" create a.fvd 1M >/dev/null
  cp a.fvd before
  "$NBDCHAIN" snapshot a.fvd b.fvd >/dev/null
  # As if it had been interrupted.
  cp before a.fvd
  chown 54321 b.fvd
  run -1 "$NBDCHAIN" snapshot a.fvd b.fvd
  [[ $output == *"b.fvd: exists"*"owner"* ]]
  [ "$("$NBDCHAIN" info --json a.fvd | jq .retired)" = false ]
  chown 0 b.fvd
  chmod 666 b.fvd
  run -1 "$NBDCHAIN" snapshot a.fvd b.fvd
  [[ $output == *"b.fvd: exists"*"mode"* ]]
  chmod 644 b.fvd
  "$NBDCHAIN" snapshot a.fvd b.fvd >/dev/null
}

@test "a profile that replaces another keeps owner and mode" {
  "$NBDCHAIN" create a.fvd 1M >/dev/null
  printf 'nbdchain-profile 1\nsize 1048576\n0 0 4096\n' >in
  "$NBDCHAIN" profile import a.fvd in
  install -m 640 in out
  [ "$(id -u)" -ne 0 ] || chown 54321:54322 out
  before=$(stat -c %u:%g:%a out)
  "$NBDCHAIN" profile export a.fvd out
  [ "$(stat -c %u:%g:%a out)" = "$before" ]
}
