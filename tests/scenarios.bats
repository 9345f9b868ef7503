#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What QEMU's iotests (version 7.2) check of formats, chains, graphs, jobs and
# copy-on-read, and which test of ours does: the table below has their numbers.
# Scenarios that no other file covers are here.
# shellcheck disable=SC2016             # what is quoted is for another shell
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2154             # common.bash sets these

load common

# NUMBERS | FILE | TEST.  A .c file stands for the whole of it.
scenarios='
245 | references.bats | an image over itself, and a loop of images, are refused
245 | references.bats | a successor that is missing, another image, or goes in circles
245 | scenarios.bats | a chain that comes back through links is refused
114 110 161 | references.bats | a relative name starts at the image'"'"'s directory
114 110 161 | references.bats | a missing backing is named
114 110 161 | references.bats | a backing may have any name
114 110 161 | references.bats | an image may be in a directory of any name
060 138 080 | images.bats | extreme fields are refused, each with one message
060 138 080 | images.bats | areas that overlap or lie past the end are refused
060 138 080 | images.bats | records that cannot be are refused
060 138 080 | images.bats | random damage, with right checksums and without: served and written
060 138 080 | scenarios.bats | a damaged image is not written to, only refused
060 138 080 | unit/test-fuzz.c |
039 | scenarios.bats | an image that was not closed is read as it is, and recovered by who writes
039 | kill.bats | nbdkit alone: what was flushed or written with FUA is there
039 | plugin.bats | read-only media: served read-only by itself, closed in order or not
026 071 | unit/test-fvd.c |
026 071 | powerloss.bats | a new overlay: journal, wrap and checkpoint
026 071 | faults.bats | reads and writes of all kinds while the storage fails
026 071 | faults.bats | zeros and trims while the storage fails
026 071 | faults.bats | a checkpoint, and the end of the server, while the storage fails
033 034 154 179 271 | scenarios.bats | zeros of every alignment, over data of the base and of the image
033 034 154 179 271 | plugin.bats | zero: 64 MiB, 65 MiB, 200 MiB and 1 GiB over data of the base
033 034 154 179 271 | plugin.bats | fast zero: done, or refused without any change
033 034 154 179 271 | plugin.bats | trim: what is not allocated stays, what is never shows the base again
046 077 060 | oracle.bats | two layers, overlapping operations on four connections
046 077 060 | oracle.bats | many small operations in few blocks
046 077 060 | scenarios.bats | writers that share a block lose nothing of each other
122 028 | scenarios.bats | a chain over a short base is converted with zeros behind its end
122 028 | clients.bats | qemu-img convert to the export, whole and with a known-zero target
122 028 | plugin.bats | an overlay larger than its backing, which grows later
122 028 | plugin.bats | a short layer in the middle never shows the base behind its end
153 182 | plugin.bats | an image is written by one server only
153 182 | plugin.bats | QEMU and the chain respect each other'"'"'s locks
153 182 | locks.bats | while a chain is served, no program of QEMU'"'"'s writes a layer of it
153 182 | locks.bats | many read one base at a time, overlays of ours and of QEMU'"'"'s
153 182 | locks.bats | a lock is gone with the process that held it, however it ended
153 182 | unit/test-dev-file.c |
221 241 104 | scenarios.bats | the map of a disk of any size ends where the disk does
221 241 104 | plugin.bats | disks of any size, read and written at their ends
221 241 104 | oracle.bats | a disk of one byte, and one of a sector and a bit
223 205 | plugin.bats | exports: names, a name taken twice, and one that does not exist
223 205 | plugin.bats | each layer shows the disk as it was, also while the disk is written
223 205 | scenarios.bats | what one client has flushed another one reads
216 310 | prefetch.bats | what the guest writes, zeroes and trims meanwhile wins
143 162 | scenarios.bats | unknown exports and absurd ports are said so
143 162 | serve.bats | wrong usage names the option, the value and what is allowed
083 | remote.bats | a base that says nothing, or nonsense, or hangs up, gives errors
083 | remote.bats | a base that takes requests and never answers them is given up
083 | remote.bats | a base with a handshake that makes no sense is refused, or served
083 | remote.bats | a base that hangs up after each byte of the handshake
083 | remote.bats | a base that hangs up after each byte of a reply costs time only
083 | hostile.bats | nbdkit alone lives through nonsense in the handshake and in requests
083 | hostile.bats | clients that hang up with requests under way, again and again
030 | stream-live.bats | a chain goes into its top while a guest writes, and the rest is let go
030 | stream.bats | a whole chain comes into the top, and the rest can be deleted
030 | stream-live.bats | only what is above a layer comes in, under a guest; that one stays
030 | stream-live.bats | with nothing to do it ends at once, and well
030 | stream-live.bats | paused, nothing is copied; the disk works, and it goes on
030 | stream-live.bats | what makes no sense is refused, and nothing changes
030 | stream-live.bats | a second stream is refused while one runs, and welcome after it
030 | stream.bats | what is behind the end of a shorter base stays zeros
030 | stream-live.bats | behind the end of a shorter base there are zeros all the while
030 | stream-live.bats | what is data stays data, and what is zeros is none afterwards
030 | stream-live.bats | on-error=report: an error ends it, and the disk is as before
030 | stream-live.bats | on-error=ignore: errors for a while only cost time
030 | stream-live.bats | on-error=stop: an error lets it wait, and resume tries again
030 | stream-live.bats | on-error=enospc: full storage lets it wait, and guests lose nothing
030 | stream-live.bats | cancelled at any moment, the disk is the same, and the base needed
030 | stream-live.bats | a rate holds from the first byte, and another one at once
030 245 | stream-live.bats | the guest'"'"'s writes, trims and zeros race with it for the same blocks
161 245 | stream-live.bats | base, bottom and backing-file: what stays, and what it is called
stream-error-on-reset stream-under-throttle | stream-live.bats | clients come and go while it is slow
219 141 | control.bats | jobs of a chain and of a storage daemon live the same life
219 141 229 | unit/test-job.c |
185 | control.bats | a job that runs goes on after quit, and as it was told to
185 | stream-live.bats | a server that is stopped while its source hangs ends at once
264 | stream-live.bats | the source is gone for a while: local data is served, and it goes on
197 215 | copy-on-read.bats | what was read is local the next time
197 215 | copy-on-read.bats | reads of any alignment bring whole blocks, up to the end of the disk
197 215 | copy-on-read.bats | zeros are stored as holes, also where the base does not say so
197 215 | copy-on-read.bats | a request that is larger than what may wait is answered, not stored
197 215 | copy-on-read.bats | a base shorter than the disk: zeros behind its end need no copying
197 215 | copy-on-read.bats | an image that is not written is refused
216 310 | copy-on-read.bats | only down to the bottom: layers below it are read, not copied
216 310 | oracle.bats | copy-on-read over a slow base: what clients write, trim and zero wins
'

@test "each test that the table names exists" {
  local numbers file name missing=0
  while IFS='|' read -r numbers file name; do
    [ -n "$numbers" ] || continue
    file=${file// /} name=${name# }
    if [ -z "$name" ]; then
      [ -f "$BATS_TEST_DIRNAME/$file" ]
    else
      grep -qxF "@test \"$name\" {" "$BATS_TEST_DIRNAME/$file"
    fi || { echo "missing: $file: $name"; missing=1; }
  done <<<"$scenarios"
  [ "$missing" -eq 0 ]
  # And each number has a line.
  for number in 245 114 110 161 060 138 080 039 026 071 033 034 154 179 271 \
      046 077 122 028 153 182 221 241 104 223 205 143 162 083 \
      030 stream-error-on-reset stream-under-throttle 219 141 229 185 264 \
      197 215 216 310; do
    grep -qw -- "$number" <<<"$scenarios" || { echo "$number"; false; }
  done
}

@test "a chain that comes back through links is refused" {
  mkdir one two
  "$NBDCHAIN" create one/a.fvd 1M
  "$NBDCHAIN" create -b one/a.fvd -F fvd two/b.fvd
  ln -s ../two/b.fvd one/link.fvd
  # By hand, what no command does: a over b.
  local id
  id=$("$NBDCHAIN" info --json two/b.fvd | jq -r .fvd.uuid)
  /usr/bin/python3 "$top_srcdir/tests/peers/fvdimage.py" set one/a.fvd \
    flags=3 reference=link.fvd format=fvd backing_uuid="$id" \
    backing_size=1048576
  for image in one/a.fvd two/b.fvd; do
    for command in map "info --chain" "check --chain" serve; do
      # shellcheck disable=SC2086
      run -1 timeout 60 "$NBDCHAIN" $command --allow one --allow two "$image"
      [[ $output == *"comes back"* ]]
    done
  done
}

@test "a damaged image is not written to, only refused" {
  local nbdkit
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 4096, 0)'
  stop "$pid"
  nbdkit_with_chain
  # Summary, bitmap, both headers.
  for offset in 8200 12300 "20 4116"; do
    cp a.fvd bad.fvd
    for at in $offset; do
      printf '\377' | dd of=bad.fvd bs=1 seek="$at" conv=notrunc status=none
    done
    cp bad.fvd before
    run timeout 60 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" bad.fvd \
      --run 'unset LD_PRELOAD
        nbdsh -u "$uri" -c "h.pread(4096, 0)" -c "h.pwrite(b\"y\", 9)"'
    [ "$status" -ne 0 ] && [ "$status" -lt 124 ]
    [[ $output == *bad.fvd*damaged* ]]
    run -1 "$NBDCHAIN" snapshot bad.fvd new.fvd || [ "$offset" = 12300 ]
    rm -f new.fvd
    # The header of an image whose bitmap is damaged may say that it was
    # opened; its bits and its data are as they were.
    cmp --ignore-initial=8192 bad.fvd before
  done
}

@test "an image that was not closed is read as it is, and recovered by who writes" {
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh -u "$uri" -c 'h.pwrite(b"x" * 10000, 3000)' -c 'h.flush()'
  nbdcopy "$uri" want
  stop_hard "$pid"
  sha256sum a.fvd >before
  run -0 "$NBDCHAIN" check a.fvd
  [[ $output == *"not closed in order"* ]]
  serve_plain a.fvd read-only=true
  assert_same_as want "$uri"
  stop "$pid"
  sha256sum -c before
  serve_plain a.fvd
  assert_same_as want "$uri"
  stop "$pid"
  run -0 "$NBDCHAIN" check --json a.fvd
  jq -e '.warnings == 0 and .journal_records == 0' <<<"$output"
}

@test "zeros of every alignment, over data of the base and of the image" {
  local size=$((1 << 20))
  /usr/bin/python3 -c 'open("base.raw", "wb").write(b"b" * (1 << 20))'
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh --base-allocation -u "$uri" -c - <<'END'
size = h.get_size()
want = bytearray(b"b" * size)

def check_map():
    """What is said to be zero is, and what can be said so, of whole blocks,
    is."""
    entries = []
    h.block_status(size, 0, lambda name, at, e, err: entries.extend(e))
    at = 0
    for count, flags in zip(entries[::2], entries[1::2]):
        if flags & nbd.STATE_ZERO:
            assert not any(want[at:at + count]), at
        at += count
    assert at == size
    return entries

for half in 0, size // 2:
    if half:                    # data of the image itself
        h.pwrite(b"t" * half, half)
        want[half:] = b"t" * half
    at = half
    for offset in 0, 1, 511, 512, 4095, 4096:
        for count in 1, 511, 512, 4095, 4096, 4097, 8192, 12289:
            for flags in 0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA:
                where = (at + offset) % (size // 2 - 16384) + half
                h.zero(count, where, flags)
                want[where:where + count] = bytes(count)
                at += 20480 + 37 * count
    assert h.pread(size, 0) == want
    check_map()
h.zero(65536, 131072)
want[131072:131072 + 65536] = bytes(65536)
entries, at, zeros = check_map(), 0, 0
for count, flags in zip(entries[::2], entries[1::2]):
    inside = min(at + count, 131072 + 65536) - max(at, 131072)
    if flags & nbd.STATE_ZERO and inside > 0:
        zeros += inside
    at += count
assert zeros == 65536, zeros
h.flush()
open("want", "wb").write(want)
END
  stop "$pid"
  serve_plain a.fvd
  assert_same_as want "$uri"
  stop "$pid"
  "$NBDCHAIN" map --json a.fvd >map.json
  [ "$(jq .size map.json)" -eq "$size" ]
}

@test "writers that share a block lose nothing of each other" {
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh -u "$uri" -c - <<'END'
import threading
uri = h.get_uri()
size = h.get_size()
want = bytearray(h.pread(size, 0))
def write(i):
    # Each the I-th of eight unaligned pieces of every block, all at once.
    c = nbd.NBD()
    c.connect_uri(uri)
    cookies = [c.aio_pwrite(bytes([65 + i]) * 509, at + 512 * i + 1)
               for at in range(0, size, 4096)]
    for cookie in cookies:
        while not c.aio_command_completed(cookie):
            c.poll(-1)
    c.shutdown()
threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
for at in range(0, size, 4096):
    for i in range(8):
        first = at + 512 * i + 1
        want[first:first + 509] = bytes([65 + i]) * 509
assert h.pread(size, 0) == want
h.flush()
open("want", "wb").write(want)
END
  stop "$pid"
  serve_plain a.fvd
  assert_same_as want "$uri"
  stop "$pid"
}

@test "a chain over a short base is converted with zeros behind its end" {
  make_base base.raw 1000001
  make_overlay a.fvd base.raw 2000003
  cp base.raw want
  truncate -s 2000003 want
  serve_plain a.fvd read-only=true
  # QEMU sees whole sectors.
  qemu-img convert -f raw -O raw "nbd:unix:$sock" converted.raw
  cmp --bytes=2000003 want converted.raw
  qemu-img convert -f raw -O qcow2 "nbd:unix:$sock" converted.qcow2
  qemu-img convert -O raw converted.qcow2 back.raw
  cmp --bytes=2000003 want back.raw
  nbdcopy "$uri" copied.raw
  cmp want copied.raw
  stop "$pid"
}

@test "the map of a disk of any size ends where the disk does" {
  local size
  for size in 0 1 511 513 4095 4097 1000001; do
    rm -f a.fvd base.raw
    head -c "$size" /dev/urandom | tr '\0' x >base.raw
    make_overlay a.fvd base.raw
    "$NBDCHAIN" map --json a.fvd >map.json
    [ "$(jq .size map.json)" -eq "$size" ]
    serve_plain a.fvd
    nbdinfo --map "$uri" >nbd.map
    awk -v size="$size" '{ if ($1 != at) exit 1; at += $2 }
                         END { exit at != size }' nbd.map
    [ "$size" -eq 0 ] || ! grep -q zero nbd.map
    stop "$pid"
  done
}

@test "what one client has flushed another one reads" {
  make_base base.raw 1048576
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  nbdsh -u "$uri" -c - <<'END'
assert h.can_multi_conn()
clients = [nbd.NBD() for i in range(4)]
for c in clients: c.connect_uri(h.get_uri())
for i in range(64):
    writer, flusher, reader = (clients[(i + k) % 4] for k in range(3))
    writer.pwrite(bytes([i + 1]) * 3000, i * 5000)
    flusher.flush()
    assert reader.pread(3000, i * 5000) == bytes([i + 1]) * 3000
END
  # A flush on one connection is one of what the others wrote.
  stop_hard "$pid"
  serve_plain a.fvd
  nbdsh -u "$uri" -c - <<'END'
for i in range(64):
    assert h.pread(3000, i * 5000) == bytes([i + 1]) * 3000, i
END
  stop "$pid"
}

@test "unknown exports and absurd ports are said so" {
  local port
  make_base base.raw 65536
  make_overlay a.fvd base.raw
  serve_plain a.fvd
  run -1 "$NBDCHAIN" create -b "nbd+unix:///nothing?socket=$sock" -F raw b.fvd
  [[ $output == *nothing* ]]
  stop "$pid"
  for port in 65536 99999999999999999999 -1 x ''; do
    run -2 timeout 60 "$NBDCHAIN" serve a.fvd -p "$port"
    [[ $output == *"'$port'"* ]]
    run -1 timeout 60 "$NBDCHAIN" create -b "nbd://127.0.0.1:$port/" -F raw b.fvd
    [[ $output == *"127.0.0.1:$port"* ]]
  done
  [ ! -e b.fvd ]
}
