#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# "nbdchain rebase": the disk is the same before and after, whatever happens in
# between.
# shellcheck disable=SC2154             # common.bash sets these

load common

# write_to IMAGE SEED OPS BASE: random operations; IMAGE was BASE, a raw file,
# which becomes what the disk is then.
write_to ()
{
  serve_plain "$1" allow="$PWD"
  oracle "$2" --ops "$3" --base "$4" --max-size 60000 "$uri"
  nbdcopy "$uri" "$4.new"
  stop "$pid"
  mv "$4.new" "$4"
}

# is_disk IMAGE FILE [ARGUMENT...]: the disk is FILE, and the image is sound.
is_disk ()
{
  local image=$1 file=$2
  shift 2
  "$NBDCHAIN" check "$image"
  serve_plain "$image" read-only=true "$@"
  assert_same_as "$file" "$uri"
  stop "$pid"
}

# number KEY: of the JSON in $output.
number ()
{
  python3 -c 'import json, sys
print(json.loads(sys.argv[1])[sys.argv[2]])' "$output" "$1"
}

# make_chain SIZE: base.raw, a.fvd, b.fvd, c.fvd, each with writes, and of
# another size; disk.raw is what c.fvd shows, a.raw what a.fvd does.
make_chain ()
{
  make_base base.raw "$1"
  make_overlay a.fvd base.raw
  cp base.raw a.raw
  write_to a.fvd $((seed + 11)) 40 a.raw
  "$NBDCHAIN" create -b a.fvd -F fvd b.fvd $(($1 + 70001)) --block-size 8K
  cp a.raw b.raw
  truncate -s $(($1 + 70001)) b.raw
  write_to b.fvd $((seed + 12)) 40 b.raw
  "$NBDCHAIN" create -b b.fvd -F fvd c.fvd $(($1 + 30003)) --block-size 16K
  cp b.raw disk.raw
  truncate -s $(($1 + 30003)) disk.raw
  write_to c.fvd $((seed + 13)) 40 disk.raw
}

@test "a layer in the middle is dropped" {
  make_chain 2000001
  run -0 "$NBDCHAIN" rebase -b a.fvd -F fvd c.fvd
  [[ $output == *"c.fvd: on top of a.fvd (fvd) now; "*" copied, "*" zeroed" ]]
  rm b.fvd
  is_disk c.fvd disk.raw
  "$NBDCHAIN" rebase -b base.raw -F raw c.fvd
  rm a.fvd
  is_disk c.fvd disk.raw
}

@test "an image stands alone, and zeros take no room in it" {
  make_chain 2000001
  run -0 --separate-stderr "$NBDCHAIN" rebase -b '' --json c.fvd
  [ "$(number backing)" = None ]
  [ "$(number zeroed)" = 0 ]
  rm a.fvd b.fvd base.raw
  is_disk c.fvd disk.raw
  truncate -s 1G empty.raw
  "$NBDCHAIN" create -b empty.raw -F raw e.fvd
  run -0 --separate-stderr "$NBDCHAIN" rebase -b '' --json e.fvd
  [ "$(number copied)" = 0 ]
}

@test "any backing will do: larger, smaller, other content, none before" {
  make_chain 1000003
  make_base other.raw 1500001
  "$NBDCHAIN" rebase -b other.raw -F raw c.fvd
  is_disk c.fvd disk.raw
  truncate -s 700001 other2.raw
  "$NBDCHAIN" rebase -b other2.raw -F raw c.fvd
  is_disk c.fvd disk.raw
  # All that was not zeros is allocated by now.
  "$NBDCHAIN" create lone.fvd 900001
  head -c 900001 /dev/zero >zeros.raw
  write_to lone.fvd 5 20 zeros.raw
  run -0 --separate-stderr "$NBDCHAIN" rebase -b other.raw -F raw --json lone.fvd
  [ "$(number zeroed)" -gt 0 ]
  is_disk lone.fvd zeros.raw
  : >nothing.raw
  "$NBDCHAIN" rebase -b nothing.raw -F raw lone.fvd
  is_disk lone.fvd zeros.raw
}

@test "the disk can be written afterwards, in parts of blocks" {
  make_chain 1000003
  "$NBDCHAIN" rebase -b base.raw -F raw c.fvd
  write_to c.fvd 77 200 disk.raw
  is_disk c.fvd disk.raw
}

@test "images of each kind are rebased" {
  local kind
  make_base base.raw 2000001
  make_base other.raw 1900001
  for kind in --compact --data-file=data.raw; do
    "$NBDCHAIN" create -b base.raw -F raw "$kind" top.fvd
    cp base.raw disk.raw
    write_to top.fvd "$seed" 40 disk.raw
    "$NBDCHAIN" rebase -b other.raw -F raw top.fvd
    is_disk top.fvd disk.raw
    "$NBDCHAIN" rebase -b '' top.fvd
    is_disk top.fvd disk.raw
    rm top.fvd
  done
}

@test "what both chains share is not read, nor what is zeros in both" {
  truncate -s 1T base.raw
  printf data | dd of=base.raw bs=1 seek=500G conv=notrunc status=none
  "$NBDCHAIN" create -b base.raw -F raw a.fvd
  "$NBDCHAIN" create -b a.fvd -F fvd b.fvd
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"a" * 65536, 1 << 30)' -c 'h.flush()'
  stop "$pid"
  run -0 --separate-stderr timeout 300 "$NBDCHAIN" rebase -b base.raw -F raw \
    --json b.fvd
  [ "$(number copied)" = 65536 ]
  [ "$(number zeroed)" = 0 ]
  rm a.fvd
  serve_plain b.fvd
  nbdsh -u "$uri" -c 'assert h.pread(65536, 1 << 30) == b"a" * 65536' \
    -c 'assert h.pread(4, 500 << 30) == b"data"'
}

@test "remotes can be old and new backing" {
  make_base one.raw 1000001
  make_base two.raw 900001
  serve_raw one one.raw
  one=$uri
  serve_raw two two.raw
  two=$uri
  "$NBDCHAIN" create -b "$one" -F raw top.fvd
  "$NBDCHAIN" rebase -b "$two" -F raw --allow "$one" top.fvd
  is_disk top.fvd one.raw allow="$two"
  run -0 --separate-stderr "$NBDCHAIN" rebase --json --progress --allow "$two" \
    -b "[ nbdkit --exit-with-parent file two.raw ]" -F raw top.fvd
  number copied
  is_disk top.fvd one.raw base="[ nbdkit --exit-with-parent file two.raw ]"
  run -1 "$NBDCHAIN" rebase -b one.raw -F raw top.fvd
  [[ $output == *--base* ]]
  "$NBDCHAIN" rebase --base two.raw -b one.raw -F raw top.fvd
  is_disk top.fvd one.raw
  # The new backing is one whose base is given each time.
  "$NBDCHAIN" create -b "[ nbdkit --exit-with-parent file one.raw ]" -F raw \
    new.fvd
  run -1 "$NBDCHAIN" rebase -b new.fvd -F fvd top.fvd
  "$NBDCHAIN" rebase --new-base one.raw -b new.fvd -F fvd top.fvd
  is_disk top.fvd one.raw base=one.raw
}

@test "an old backing that goes away is an error, and nothing is lost" {
  make_base base.raw 3000001
  cat >slow.sh <<'END'
#!/bin/sh
case $1 in
  get_size) echo 3000001 ;;
  pread)
    [ "$4" -lt 2000000 ] || kill -KILL $PPID
    dd if=base.raw skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none ;;
  *) exit 2 ;;
esac
END
  chmod +x slow.sh
  serve_by remote "$NBDKIT" -f -- sh ./slow.sh
  "$NBDCHAIN" create -b "$uri" -F raw top.fvd
  run -1 "$NBDCHAIN" rebase -b '' --allow "$uri" --retry 3 top.fvd
  [[ $output == *"not reachable"* ]]
  run -0 "$NBDCHAIN" info top.fvd
  [[ $output == *"state:      clean"*"backing:"*remote.sock* ]]
  allow=$uri
  serve_raw remote base.raw
  is_disk top.fvd base.raw allow="$allow"
  run -0 --separate-stderr "$NBDCHAIN" rebase -b '' --allow "$uri" --json top.fvd
  is_disk top.fvd base.raw
}

@test "a full disk is an error, and it goes on when there is room" {
  need_mount
  make_base base.raw 12000000
  truncate -s 16M fs.img
  mkfs.ext4 -q -m 0 fs.img
  mkdir mnt
  mounted "$NBDCHAIN" create -b base.raw -F raw mnt/top.fvd
  mounted dd if=/dev/zero of=mnt/filler bs=1M count=8 status=none
  run -1 mounted "$NBDCHAIN" rebase -b '' --allow "$PWD" mnt/top.fvd
  [[ $output == *"No space left"* ]]
  # On a disk with room it is what it was.
  mounted cp --sparse=always mnt/top.fvd .
  is_disk top.fvd base.raw
  run -0 "$NBDCHAIN" info top.fvd
  [[ $output == *"backing:"*base.raw* ]]
  mounted rm mnt/filler
  mounted "$NBDCHAIN" rebase -b '' --allow "$PWD" mnt/top.fvd
  mounted cp --sparse=always mnt/top.fvd .
  mv base.raw want.raw
  is_disk top.fvd want.raw
}

# mounted COMMAND...: with fs.img on mnt, which nobody else sees.
mounted ()
{
  unshare -m sh -c 'mount -o loop fs.img mnt && "$@"' sh "$@"
}

@test "killed at any time, it is run again" {
  local i
  make_base base.raw 8000001
  make_base new.raw 8000001
  make_overlay top.fvd base.raw
  for i in 1 2 3 4 5 6 7 8; do
    # When so many bytes are in the image, it is killed.
    start rebase "$NBDCHAIN" rebase -b new.raw -F raw top.fvd
    wait_for 30 holds_or_gone "$pid" $((i * 900000))
    ! is_child "$pid" || kill -KILL "$pid" 2>/dev/null || :
    wait "$pid" || :
    run -0 "$NBDCHAIN" info --json top.fvd
    is_disk top.fvd base.raw
  done
  "$NBDCHAIN" rebase -b new.raw -F raw top.fvd
  cp base.raw want.raw
  rm base.raw
  is_disk top.fvd want.raw
}

# holds_or_gone PID BYTES: do the files of the image take so much storage?
holds_or_gone ()
{
  is_gone "$1" || [ $(($(stat -c %b top.fvd) * 512)) -gt "$2" ]
}

@test "--unsafe only records the name" {
  make_chain 300001
  mkdir moved
  cp b.fvd moved/copy.fvd
  cp a.fvd base.raw moved
  mv b.fvd gone.fvd
  run -1 "$NBDCHAIN" rebase -b moved/copy.fvd -F fvd c.fvd
  "$NBDCHAIN" rebase --unsafe -b moved/copy.fvd -F fvd c.fvd
  is_disk c.fvd disk.raw allow="$PWD"
  # Another content is another disk, but the image is sound.
  run -0 "$NBDCHAIN" rebase --unsafe -b a.fvd -F fvd c.fvd
  [[ $output == *"nothing was copied or compared"* ]]
  "$NBDCHAIN" check --chain c.fvd
  "$NBDCHAIN" rebase --unsafe -b gone.fvd -F fvd c.fvd
  is_disk c.fvd disk.raw
  "$NBDCHAIN" rebase --unsafe -b '' c.fvd
  run -0 "$NBDCHAIN" info c.fvd
  [[ $output != *backing* ]]
  # The new file is looked at.
  run -1 "$NBDCHAIN" rebase --unsafe -b none.fvd -F fvd c.fvd
  run -1 "$NBDCHAIN" rebase --unsafe -b base.raw -F fvd c.fvd
  run -1 "$NBDCHAIN" rebase --unsafe -b c.fvd -F fvd c.fvd
  [[ $output == *"cannot be its own backing"* ]]
}

@test "--unsafe of an image that was not closed in order loses nothing" {
  make_base base.raw 300001
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  oracle "$seed" --ops 60 --base base.raw --max-size 20000 "$uri"
  nbdcopy "$uri" now.raw
  stop_hard "$pid"
  cp base.raw base2.raw
  "$NBDCHAIN" rebase --unsafe -b base2.raw -F raw top.fvd
  rm base.raw
  is_disk top.fvd now.raw
}

@test "what cannot be is refused, and the image stays as it is" {
  make_chain 300001
  local before
  before=$(sha256sum ./*.fvd)
  run -2 "$NBDCHAIN" rebase c.fvd
  [[ $output == *"-b"* ]]
  run -2 "$NBDCHAIN" rebase -b a.fvd c.fvd
  [[ $output == *"-F raw or -F fvd"* ]]
  run -2 "$NBDCHAIN" rebase -b '' -F raw c.fvd
  run -2 "$NBDCHAIN" rebase -b a.fvd -F fvd
  run -2 "$NBDCHAIN" rebase -b a.fvd -F fvd --retry x c.fvd
  run -1 "$NBDCHAIN" rebase -b none.raw -F raw c.fvd
  run -1 "$NBDCHAIN" rebase -b base.raw -F fvd c.fvd
  [[ $output == *"not an fvd image"* ]]
  run -1 "$NBDCHAIN" rebase -b a.fvd -F qcow2 c.fvd
  run -1 "$NBDCHAIN" rebase -b c.fvd -F fvd a.fvd
  [[ $output == *"a.fvd: is in the chain of its new backing"* ]]
  run -1 "$NBDCHAIN" rebase -b a.fvd -F raw a.fvd
  [[ $output == *"is in the chain of its new backing"* ]]
  run -1 "$NBDCHAIN" rebase -b base.raw -F raw base.raw
  [ "$(sha256sum ./*.fvd)" = "$before" ]
  serve_plain c.fvd
  run -1 "$NBDCHAIN" rebase -b a.fvd -F fvd c.fvd
  [[ $output == *"in use"* ]]
  stop "$pid"
}

@test "an image that took over can be rebased, a retired one cannot" {
  make_chain 300001
  "$NBDCHAIN" snapshot c.fvd d.fvd
  run -1 "$NBDCHAIN" rebase -b a.fvd -F fvd c.fvd
  [[ $output == *retired*d.fvd* ]]
  run -1 "$NBDCHAIN" rebase --unsafe -b a.fvd -F fvd c.fvd
  [[ $output == *retired*d.fvd* ]]
  "$NBDCHAIN" rebase -b b.fvd -F fvd d.fvd
  mv c.fvd elsewhere
  write_to d.fvd 5 30 disk.raw
  is_disk d.fvd disk.raw
}
