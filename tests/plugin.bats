#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# What nbdkit-chain-plugin(1) says of the disk and of the exports below it:
# flags, requests of every kind and size, and who may open which image.
# shellcheck disable=SC2153,SC2154      # common.bash sets these
# shellcheck disable=SC2016             # what is quoted is for another shell

load common

# What scripts for nbdsh share.
prelude='
import errno, os, struct

M = 1 << 20

def connect(export=""):
    other = nbd.NBD()
    other.add_meta_context("base:allocation")
    other.connect_uri("nbd+unix:///%s?socket=%s" % (export, os.environ["sock"]))
    return other

# One request; the lengths and types that came back.
def status(offset, count, flags=0, handle=None):
    found = []
    (handle or h).block_status(count, offset,
                               lambda c, o, e, err: found.extend(e), flags)
    return list(zip(found[::2], found[1::2]))

# The whole range, neighbours of the same type merged: [(end, type)].
def extents(offset, end):
    found = []
    while offset < end:
        for length, kind in status(offset, end - offset):
            offset += length
            if found and found[-1][1] == kind:
                found[-1] = (offset, kind)
            else:
                found.append((offset, kind))
    return found

# The errno that a call fails with, or 0.
def error(call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as e:
        return e.errnum
    return 0
'

# on URI: run the script for nbdsh on stdin, connected to URI as h.
on ()
{
  sock=$sock nbdsh --base-allocation -u "$1" -c "$prelude" -c -
}

# random_file FILE BYTES: none of them zero, the same each time.
random_file ()
{
  python3 - "$seed" "$@" <<'END'
import random, sys
r = random.Random(int(sys.argv[1]))
bytes_without_zero = bytes.maketrans(b"\0", b"\1")
with open(sys.argv[2], "wb") as f:
    f.write(r.randbytes(int(sys.argv[3])).translate(bytes_without_zero))
END
}

# layer NAME: the URI of the export of a layer.
layer ()
{
  echo "nbd+unix:///$1?socket=$sock"
}

# assert_same FILE [URI]: a copy by nbdcopy is this file.
assert_same ()
{
  nbdcopy -- "${2-$uri}" - | cmp - "$1"
}

# of_info IMAGE FILTER: a value that nbdchain info tells.
of_info ()
{
  "$NBDCHAIN" info --json "$1" | jq -r "$2"
}

# marks FILE...: digest, times and storage, which is what it is to be when all
# is on the disk.
marks ()
{
  sha256sum "$@"
  sync "$@"
  stat -c '%n %s %b %y %z' "$@"
  ls -A "$(dirname "$1")"
}

# refused ARGUMENT...: the plugin does not start, and says so in $output.
refused ()
{
  local nbdkit
  nbdkit_with_chain
  run -1 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" "$@" --run true
}

# serve_as NAME WORDS... -- ARGUMENT...: as serve_plain, but nbdkit is run by
# the command WORDS.
serve_as ()
{
  local name=$1 words=() nbdkit
  shift
  while [ "$1" != -- ]; do
    words+=("$1")
    shift
  done
  shift
  nbdkit_with_chain valgrind
  serve_by "$name" "${words[@]}" "${nbdkit[@]}" -f -- "$NBDCHAIN_PLUGIN" "$@"
}

@test "--dump-plugin and --help tell what the manual tells" {
  run -0 "$NBDKIT" --dump-plugin "$NBDCHAIN_PLUGIN"
  for line in name=chain version="$NBDCHAIN_VERSION" thread_model=parallel \
              magic_config_key=image has_can_multi_conn=1 has_can_fua=1 \
              has_can_fast_zero=1 has_can_cache=1 has_extents=1 \
              has_list_exports=1 has_block_size=1; do
    grep -qx "$line" <<<"$output"
  done
  run -0 "$NBDKIT" "$NBDCHAIN_PLUGIN" --help
  for name in image format allow base retry max-waiting detect-zeroes follow \
              read-only; do
    [[ $output == *"$name"*"="* ]]
  done
}

@test "wrong parameters are refused with their name" {
  "$NBDCHAIN" create top.fvd 1M
  refused
  [[ $output == *image* ]]
  for argument in format=qcow2 retry=-1 retry=x max-waiting=x detect-zeroes=2 \
                  follow=perhaps read-only=2 frobnicate=1; do
    refused top.fvd "$argument"
    [[ $output == *"${argument%%=*}"* || $output == *"${argument#*=}"* ]]
  done
  refused missing.fvd
  [[ $output == *missing.fvd*"No such file"* ]]
}

@test "the flags of the disk and of a layer" {
  random_file base.raw 100000
  make_overlay top.fvd base.raw 200001
  serve_plain top.fvd
  on "$uri" <<'END'
assert h.get_size() == 200001
assert not h.is_read_only()
for can in "multi_conn", "fua", "flush", "fast_zero", "cache", "trim", "zero", \
           "df":
    assert getattr(h, "can_" + can)(), can
assert not h.is_rotational()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 64 * M
b = connect("base.raw")
assert b.get_size() == 100000
assert b.is_read_only() and b.can_multi_conn()
b.set_strict_mode(0)
assert error(b.pwrite, b"x", 0) == errno.EPERM
assert error(b.zero, 1, 0) == errno.EPERM
assert error(b.trim, 1, 0) == errno.EPERM
d = connect("disk")
assert d.get_size() == 200001 and not d.is_read_only()
d.pwrite(b"disk", 10)
assert h.pread(4, 10) == b"disk"
END
  stop "$pid"
}

@test "the preferred block size is that of the image" {
  "$NBDCHAIN" create --block-size 64K top.fvd 1M
  serve_plain top.fvd
  on "$uri" <<'END'
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 65536
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 64 * M
END
  stop "$pid"
}

@test "exports: names, a name taken twice, and one that does not exist" {
  mkdir -p a/b
  random_file a/b/base.raw 4096
  make_overlay a/b/disk.fvd a/b/base.raw
  make_overlay a/disk.fvd a/b/disk.fvd -F fvd
  make_overlay disk a/disk.fvd -F fvd
  make_overlay top.fvd disk -F fvd
  serve_plain top.fvd
  nbdinfo --list --json "$uri" | jq -r '.exports[]["export-name"]' >names
  diff - names <<'END'
disk
disk.2
disk.fvd
disk.fvd.2
base.raw
END
  on "$uri" <<'END'
h.pwrite(b"new", 0)
assert connect("disk").pread(3, 0) == b"new"
for name in "disk.2", "disk.fvd", "disk.fvd.2", "base.raw":
    layer = connect(name)
    assert layer.is_read_only(), name
    assert layer.pread(3, 0) != b"new", name
for name in "top.fvd", "disk.fvd.3", "nothing", "a/disk.fvd", "../base.raw", \
            "x" * 4096, "disk.fvd/", "DISK":
    assert error(connect, name), name
assert h.pread(3, 0) == b"new"
END
  run -1 nbdinfo "$(layer nothing)"
  grep "'top.fvd' does not exist" plain.err      # the first; others are counted
  stop "$pid"
}

@test "a remote layer is named after its reference" {
  random_file base.raw 100000
  serve_raw remote base.raw
  local remote=$uri
  make_overlay top.fvd "$remote"
  serve_plain top.fvd allow="$remote"
  nbdinfo --list --json "$uri" >list
  [ "$(jq -r '.exports[1]["export-name"]' list)" = "$remote" ]
  assert_same base.raw "$(jq -r '.exports[1].uri' list)"
  stop "$pid"
}

@test "each layer shows the disk as it was, also while the disk is written" {
  local i writer server
  random_file base.raw 6000001
  cp base.raw 0.copy
  make_overlay 1.fvd base.raw
  for i in 1 2 3; do
    serve_plain "$i.fvd"
    n=$i on "$uri" <<'END'
import random
n = int(os.environ["n"])
r = random.Random(n)
for i in range(60):
    offset = r.randrange(6000001)
    count = min(r.randrange(1, 200000), 6000001 - offset)
    if i % 3:
        h.pwrite(r.randbytes(count), offset)
    elif i % 2:
        h.zero(count, offset)
    else:
        h.trim(count, offset)
h.flush()
END
    nbdcopy "$uri" "$i.copy"
    stop "$pid"
    "$NBDCHAIN" snapshot "$i.fvd" $((i + 1)).fvd
  done

  serve_plain 4.fvd
  server=$pid
  start writer env sock="$sock" nbdsh -u "$uri" -c "$prelude" -c '
i = 0
while not os.path.exists("enough"):
    h.pwrite(bytes([i % 255 + 1]) * 50000, i * 70001 % 5950000)
    h.zero(3000, i * 90001 % 5950000)
    h.trim(9000, i * 50001 % 5950000)
    i += 1
    if i == 6:
        os.write(1, b"goes on\n")
h.flush()
'
  writer=$pid
  wait_for 60 is_ready_or_gone writer.out "$writer"
  [ -s writer.out ]
  for i in 1 2 3; do
    assert_same 3.copy "$(layer 3.fvd)"
    assert_same 2.copy "$(layer 2.fvd)"
    assert_same 1.copy "$(layer 1.fvd)"
    assert_same 0.copy "$(layer base.raw)"
  done
  touch enough
  wait "$writer"
  stop "$server"

  # The same from the images themselves.
  for i in 1 2 3; do
    serve_plain "$i.fvd" read-only=true
    assert_same "$i.copy"
    stop "$pid"
  done
  cmp base.raw 0.copy
}

@test "cache: what was populated needs the base no more" {
  random_file base.raw $((8 << 20))
  serve_raw remote base.raw
  local remote=$uri base=$pid allocated=$((5 * 1048576 + 8192))
  make_overlay top.fvd "$remote"
  serve_plain top.fvd allow="$remote" retry=3
  on "$uri" <<'END'
h.pwrite(b"mine" * 1024, 8192)
h.cache(4 * M, 0)
h.cache(5000, 6 * M + 100)
h.cache(M, 7 * M)
h.cache(M, 7 * M)
h.flush()
assert h.pread(4096, 8192) == b"mine" * 1024
END
  stop_hard "$base"
  on "$uri" <<'END'
data = bytearray(open("base.raw", "rb").read())
data[8192:12288] = b"mine" * 1024
for offset, count in (0, 4 * M), (6 * M + 100, 5000), (7 * M, M), \
                     (4 * M - 1, 1), (8 * M - 513, 513):
    assert h.pread(count, offset) == data[offset:offset + count]
h.pwrite(b"z" * 10, 100)
assert error(h.pread, 4096, 5 * M) == errno.EIO
assert h.pread(10, 100) == b"z" * 10
END
  stop "$pid"
  [ "$(of_info top.fvd .allocated)" -eq "$allocated" ]
}

@test "cache on a layer changes no file of it" {
  random_file base.raw 1000000
  make_overlay mid.fvd base.raw
  make_overlay top.fvd mid.fvd -F fvd
  sha256sum mid.fvd base.raw >sums
  serve_plain top.fvd
  on "$(layer mid.fvd)" <<'END'
h.cache(500000, 1000)
assert h.pread(1000000, 0) == open("base.raw", "rb").read()
END
  stop "$pid"
  sha256sum -c sums
}

@test "zero: 64 MiB, 65 MiB, 200 MiB and 1 GiB over data of the base" {
  local count holes storage data
  local counts=(64 65 200 1024)
  ! slow || counts=(65)
  # No byte of this takes storage, and no word of it but the first is zero.
  serve_by pattern "$NBDKIT" -f -r -- pattern 1100M
  local remote=$uri
  for holes in 1 0; do
    for count in "${counts[@]}"; do
      rm -f top.fvd
      make_overlay top.fvd "$remote"
      serve_plain top.fvd allow="$remote"
      count=$count holes=$holes on "$uri" <<'END'
offset = 12345
count = int(os.environ["count"]) * M
holes = os.environ["holes"] == "1"
h.zero(count, offset, 0 if holes else nbd.CMD_FLAG_NO_HOLE)
end = offset + count

def pattern(start, length):
    words = range(start // 8, (start + length + 7) // 8)
    data = b"".join(struct.pack(">Q", 8 * i) for i in words)
    return data[start % 8:start % 8 + length]

assert h.pread(offset, 0) == pattern(0, offset)
assert h.pread(10000, end) == pattern(end, 10000)
zeros = bytes(32 * M)
for at in range(offset, end, 32 * M):
    length = min(32 * M, end - at)
    assert h.pread(length, at) == memoryview(zeros)[:length], at
first, last = (offset + 4095) // 4096 * 4096, end // 4096 * 4096
if holes:
    assert extents(first, last) == [(last, 3)]
h.flush()
END
      stop "$pid"
      [ "$(of_info top.fvd .allocated)" -eq $((count * 1048576 + 4096)) ]
      storage=$(of_info top.fvd .storage)
      if [ "$holes" = 1 ]; then
        [ "$storage" -lt 8000000 ]
      else
        [ "$storage" -ge $((count * 1048576)) ]
      fi
      # And after a restart.
      serve_plain top.fvd allow="$remote"
      data=$(nbdinfo --map --json "$uri" |
             jq 'map(select(.type == 0).length) | add')
      if [ "$holes" = 1 ]; then
        [ "$data" -eq $(((1100 - count) * 1048576 + 4096)) ]
      fi
      stop "$pid"
      "$NBDCHAIN" check top.fvd
    done
  done
  rm top.fvd
}

@test "zero: over data of its own, whole blocks and parts" {
  random_file base.raw 3000001
  make_overlay top.fvd base.raw --block-size 64K
  serve_plain top.fvd
  on "$uri" <<'END'
size = h.get_size()
want = bytearray(open("base.raw", "rb").read())
h.pwrite(b"w" * M, 500000)
want[500000:500000 + M] = b"w" * M
flags = 0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, \
        nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA
ranges = (0, 1), (4095, 2), (65535, 65538), (131072, 65536), (499999, 3), \
         (600001, 1), (655360, 131072), (700000, 300000), (size - 1, 1), \
         (size - 70000, 70000), (1500000, 200000), (0, size)
for i, (offset, count) in enumerate(ranges):
    h.zero(count, offset, flags[i % 4])
    want[offset:offset + count] = bytes(count)
    assert h.pread(size, 0) == want, (offset, count)
END
  stop "$pid"
}

@test "a request of 64 MiB, the largest" {
  random_file base.raw $((1 << 20))
  make_overlay top.fvd base.raw 100M
  serve_plain top.fvd
  on "$uri" <<'END'
data = os.urandom(64 * M)
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(64 * M, 12345) == data
assert h.pread(12345, 0) == open("base.raw", "rb").read()[:12345]
assert h.pread(5000, 64 * M + 12345) == bytes(5000)
h.cache(100 * M - 1, 1)
h.trim(100 * M, 0)
END
  stop "$pid"
}

@test "fast zero: done, or refused without any change" {
  random_file base.raw $((4 << 20))
  serve_raw remote base.raw
  local remote=$uri
  make_overlay top.fvd "$remote"
  serve_plain top.fvd allow="$remote"
  on "$uri" <<'END'
fast = nbd.CMD_FLAG_FAST_ZERO
want = bytearray(open("base.raw", "rb").read())
for offset, count, flags in (M, 65536, fast), (2 * M, M, fast), \
        (3 * M, 4096, fast | nbd.CMD_FLAG_FUA):
    h.zero(count, offset, flags)
    want[offset:offset + count] = bytes(count)
assert h.pread(4 * M, 0) == want
before = extents(0, 4 * M)

for offset, count in (100, 200), (4096, 100), (8192 + 4000, 96), \
        (16384, 4097), (20479, 8193), (512, 65536):
    assert error(h.zero, count, offset, fast) == errno.ENOTSUP, (offset, count)
    assert h.pread(4 * M, 0) == want, (offset, count)
assert extents(0, 4 * M) == before
h.flush()
END
  stop "$pid"
  [ "$(of_info top.fvd .allocated)" -eq $((1048576 + 65536 + 4096)) ]
}

@test "trim: what is not allocated stays, what is never shows the base again" {
  for block in 4096 65536; do
    random_file base.raw 3000001
    rm -f top.fvd
    make_overlay top.fvd base.raw --block-size "$block"
    serve_plain top.fvd
    # The writes are of whole blocks, so that nothing else is allocated.
    on "$uri" <<'END'
size = h.get_size()
base = open("base.raw", "rb").read()
want = bytearray(base)
low, high = 655360, 1310720
h.pwrite(b"w" * (high - low), low)
want[low:high] = b"w" * (high - low)
tail = size // 65536 * 65536
h.pwrite(b"v" * (size - tail), tail)
want[tail:] = b"v" * (size - tail)

# Outside of what is written nothing changes, whatever is asked for.
h.trim(low, 0)
h.trim(tail - high, high)
h.trim(1, 0)
h.trim(4097, 4095)
assert h.pread(size, 0) == want

for offset, count in (low, 4096), (low + 8192, 1), (low + 20000, 50000), \
        (low - 5000, 10000), (low + 131072, 131072), (high - 3000, 100000), \
        (size - 1, 1), (size - 5000, 5000), (low + 300000, 2), (0, size):
    h.trim(count, offset)
    data = h.pread(size, 0)
    assert data[:low] == base[:low] and data[high:tail] == base[high:tail]
    for start, end, own in (low, high, b"w"), (tail, size, b"v"):
        assert not data[start:end].strip(own + b"\0"), (offset, count)
        for a, b in (start, max(start, offset)), (offset + count, end):
            a, b = max(a, start), min(b, end)
            if a < b:
                assert data[a:b] == want[a:b], (offset, count, a, b)
    want = bytearray(data)
assert want[low:high] == bytes(high - low), "no storage was given back"
h.flush()
open("want", "wb").write(want)
END
    stop "$pid"
    serve_plain top.fvd
    assert_same want
    stop "$pid"
  done
}

@test "block status never reaches past the request" {
  random_file base.raw 10001
  make_overlay mid.fvd base.raw 5G
  make_overlay top.fvd mid.fvd -F fvd $(((5 << 30) + 4097))
  serve_plain top.fvd
  on "$uri" <<'END'
size = h.get_size()
islands = []

def island(offset, count):
    h.pwrite(b"i" * count, offset)
    islands.append((offset, offset + count))

islands.append((0, 10001))
for offset, count in (1 * M, 1), (3 * M + 100, 70000), ((4 << 30) - 1, 3), \
        ((5 << 30) - 1, 2), (size - 1, 1):
    island(offset, count)
h.zero(3 << 30, 16 * M)
h.flush()

most = (1 << 32) - 1
layers = [h, connect("mid.fvd"), connect("base.raw")]
for handle in layers:
    end = handle.get_size()
    marks = {0, 1, 511, 4095, 4096, 9999, 10000, M - 1, M, M + 1, M + 4095,
             3 * M + 99, 3 * M + 70099, 16 * M, 16 * M + 1, 3 << 30,
             (4 << 30) - 2, most, 4 << 30, (5 << 30) - 4097, (5 << 30) - 1,
             5 << 30, end - 4098, end - 4097, end - 4096, end - 513, end - 2,
             end - 1}
    counts = {1, 2, 511, 512, 513, 4095, 4096, 4097, 65537, M, 64 * M - 1,
              64 * M, 64 * M + 1, 1 << 30, (1 << 31) - 1, 1 << 31, most - 4095,
              most - 511, most}
    for offset in sorted(m for m in marks if 0 <= m < end):
        for count in sorted(counts | {end - offset}):
            if count > min(most, end - offset):
                continue
            for flags in 0, nbd.CMD_FLAG_REQ_ONE:
                found = status(offset, count, flags, handle)
                where = handle.get_size(), offset, count, flags, found
                assert found and all(n > 0 for n, kind in found), where
                assert sum(n for n, kind in found) <= count, where
                if flags:
                    assert len(found) == 1, where
                if handle is not h:
                    continue
                at = offset
                for n, kind in found:
                    if kind & nbd.STATE_ZERO:
                        for a, b in islands:
                            assert at >= b or at + n <= a, where
                    at += n

# What is outside of the disk is an error, and no more.
h.set_strict_mode(0)
for offset, count in (size, 1), (size - 1, 2), (0, 0), (size, 0), \
        ((1 << 63) - 1, 1), ((1 << 64) - 1, most), (size - 1, most):
    for flags in 0, nbd.CMD_FLAG_REQ_ONE:
        error(h.block_status, count, offset, lambda *a: None, flags)
assert h.pread(1, size - 1) == b"i"
END
  run ! is_gone "$pid"
  nbdinfo --map "$uri" >/dev/null
  stop "$pid"
}

@test "block status of a disk in many pieces" {
  random_file base.raw $((16 << 20))
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  on "$uri" <<'END'
for i in range(0, 16 * M, 8192):
    h.zero(4096, i)
found = status(0, 16 * M)
assert all(n == 4096 and kind == (3 if i % 2 == 0 else 0)
           for i, (n, kind) in enumerate(found))
found = extents(0, 16 * M)
assert found == [(4096 * (i + 1), 0 if i % 2 else 3) for i in range(4096)]
assert extents(4097, 4098) == [(4098, 0)]
assert status(8191, 16 * M - 8191, nbd.CMD_FLAG_REQ_ONE) == [(1, 0)]
END
  stop "$pid"
}

@test "detect-zeroes: off, on and unmap" {
  local mode storage empty
  random_file base.raw $((8 << 20))
  for mode in off on unmap; do
    rm -f top.fvd
    make_overlay top.fvd base.raw
    empty=$(of_info top.fvd .storage)
    serve_plain top.fvd detect-zeroes=$mode
    mode=$mode on "$uri" <<'END'
want = bytearray(open("base.raw", "rb").read())
mode = os.environ["mode"]
h.pwrite(bytes(3 * M), M)
# As a request to zero would; asked before reading, for a file system may tell
# zeros that have been read from data that was written.
h.zero(M, 4 * M, {"on": nbd.CMD_FLAG_NO_HOLE}.get(mode, 0))
kind = status(4 * M, M)[0][1]
found = extents(M, 4 * M)
assert found == [(4 * M, 0 if mode == "off" else kind)], found
assert mode != "unmap" or kind == 3
want[M:5 * M] = bytes(4 * M)

for offset, data in (100, bytes(1000)), \
        (6 * M, bytes(4095) + b"x"), (6 * M + 8000, bytes(9000)), \
        (8 * M - 4096, bytes(4096)):
    h.pwrite(data, offset)
    want[offset:offset + len(data)] = data
assert h.pread(8 * M, 0) == want
h.flush()
assert status(6 * M, 4096)[0][1] == 0
# Over data of its own.
h.pwrite(b"d" * M, 2 * M)
h.pwrite(bytes(M), 2 * M)
assert mode == "on" or \
       extents(2 * M, 3 * M) == [(3 * M, 3 if mode == "unmap" else 0)]
want[0:8] = bytes(8)
h.pwrite(bytes(8), 0, nbd.CMD_FLAG_FUA)
assert h.pread(8 * M, 0) == want
open("want", "wb").write(want)
END
    stop "$pid"
    [ "$(of_info top.fvd .allocated)" -eq $(((4 << 20) + 7 * 4096)) ]
    storage=$(($(of_info top.fvd .storage) - empty))
    if [ "$mode" = unmap ]; then
      [ "$storage" -lt $((1 << 20)) ]
    else
      [ "$storage" -ge $((3 << 20)) ]
    fi
    serve_plain top.fvd
    assert_same want
    stop "$pid"
  done
}

@test "FUA: durable when it is answered" {
  random_file base.raw $((4 << 20))
  make_overlay top.fvd base.raw
  serve_plain top.fvd
  on "$uri" <<'END'
want = bytearray(open("base.raw", "rb").read())
fua = nbd.CMD_FLAG_FUA
for offset, count in (0, 1), (5000, 100), (65536, 65536), (M - 1, 70000), \
        (4 * M - 513, 513):
    h.pwrite(b"f" * count, offset, fua)
    want[offset:offset + count] = b"f" * count
for offset, count, flags in (70000, 100, 0), (2 * M, 8192, 0), \
        (2 * M + 65536, 8193, nbd.CMD_FLAG_NO_HOLE):
    h.zero(count, offset, fua | flags)
    want[offset:offset + count] = bytes(count)
h.pwrite(b"t" * 8192, 3 * M, fua)
h.trim(8192, 3 * M, fua)
want[3 * M:3 * M + 8192] = h.pread(8192, 3 * M)
open("want", "wb").write(want)
END
  stop_hard "$pid"
  serve_plain top.fvd
  assert_same want
  stop "$pid"
}

@test "disks of any size, read and written at their ends" {
  local size base
  for size in 0 1 511 513 4095 4097 $(((10 << 20) + 1)); do
    for base in with without; do
      rm -f top.fvd base.raw want
      random_file base.raw "$size"
      if [ "$base" = with ]; then
        make_overlay top.fvd base.raw
      else
        truncate -s 0 base.raw
        truncate -s "$size" base.raw
        "$NBDCHAIN" create top.fvd "$size"
      fi
      serve_plain top.fvd
      [ "$(nbdinfo --size "$uri")" -eq "$size" ]
      on "$uri" <<'END'
size = h.get_size()
want = bytearray(open("base.raw", "rb").read())

def same():
    assert size == 0 or h.pread(size, 0) == want

def write(offset, count):
    if offset >= 0 and count > 0:
        h.pwrite(b"t" * count, offset)
        want[offset:offset + count] = b"t" * count
        same()

def zero(offset, count):
    if offset >= 0 and count > 0:
        h.zero(count, offset)
        want[offset:offset + count] = bytes(count)
        same()

same()
for count in 1, 2, 511, 513, 4096, 4097:
    if count <= size:
        assert h.pread(count, size - count) == want[size - count:]
write(size - 1, 1)
zero(size - 1, 1)
write(size - 300, 200)
write(size - 513, 513)
zero(size - 4096, 4000)
write(0, min(size, 5000))
zero(0, min(size, 100))
if size:
    assert sum(n for n, kind in status(0, size)) <= size
    h.cache(size, 0)
    h.cache(1, size - 1)
same()
h.flush()

h.set_strict_mode(0)
for offset, count in (size, 1), (size - 1, 2), (size + 4096, 512), \
        (1 << 62, 1):
    if offset >= 0:
        assert error(h.pread, count, offset), (offset, count)
        assert error(h.pwrite, b"o" * count, offset), (offset, count)
        assert error(h.zero, count, offset), (offset, count)
        assert error(h.trim, count, offset), (offset, count)
same()
open("want", "wb").write(want)
END
      stop "$pid"
      "$NBDCHAIN" check top.fvd
      serve_plain top.fvd
      assert_same want
      if [ "$size" -gt 0 ]; then
        on "$uri" <<'END'
h.zero(h.get_size(), 0)
h.trim(h.get_size(), 0)
END
        truncate -s 0 want
        truncate -s "$size" want
        assert_same want
      fi
      stop "$pid"
    done
  done
}

@test "an overlay larger than its backing, which grows later" {
  random_file base.raw 10001
  make_overlay top.fvd base.raw 50001
  cp base.raw want
  truncate -s 50001 want
  seed=$((seed + 1)) random_file more 50000
  tail -c +10002 more >>base.raw
  [ "$(of_info top.fvd .backing.size)" -eq 10001 ]
  serve_plain top.fvd
  assert_same want
  # A write into the block where the backing was cut, and into one behind.
  on "$uri" <<'END'
want = bytearray(open("want", "rb").read())
for offset in 12000, 10001, 20000, 50000:
    h.pwrite(b"x", offset)
    want[offset:offset + 1] = b"x"
    assert h.pread(50001, 0) == want
h.cache(50001, 0)
assert h.pread(50001, 0) == want
open("want", "wb").write(want)
END
  stop "$pid"
  serve_plain top.fvd
  assert_same want
  stop "$pid"
}

@test "an overlay smaller than its backing" {
  random_file base.raw 50001
  make_overlay top.fvd base.raw 10001
  head -c 10001 base.raw >want
  serve_plain top.fvd
  [ "$(nbdinfo --size "$uri")" -eq 10001 ]
  assert_same want
  on "$uri" <<'END'
h.pwrite(b"x", 10000)
h.zero(10, 9000)
END
  printf x | dd of=want bs=1 seek=10000 conv=notrunc status=none
  dd if=/dev/zero of=want bs=1 seek=9000 count=10 conv=notrunc status=none
  assert_same want
  stop "$pid"
  # A larger overlay over this one does not see the base again.
  make_overlay wide.fvd top.fvd -F fvd 50001
  truncate -s 50001 want
  serve_plain wide.fvd
  assert_same want
  stop "$pid"
}

@test "a backing that became shorter is refused" {
  random_file base.raw 50001
  make_overlay top.fvd base.raw
  cp base.raw whole
  truncate -s 50000 base.raw
  refused top.fvd
  [[ $output == *base.raw*50000*50001* ]]
  refused top.fvd read-only=true
  [[ $output == *base.raw*50000*50001* ]]
  mv whole base.raw
  serve_plain top.fvd
  assert_same base.raw
  stop "$pid"
}

@test "an opening that is refused leaves the image as it was" {
  random_file base.raw 50001
  make_overlay top.fvd base.raw
  sha256sum top.fvd >sums
  mv base.raw whole
  refused top.fvd
  sha256sum -c sums
  head -c 50000 whole >base.raw
  refused top.fvd
  sha256sum -c sums
  [ "$(of_info top.fvd .fvd.clean)" = true ]
}

@test "another image in the place of a backing is refused" {
  random_file base.raw 50001
  make_overlay mid.fvd base.raw
  make_overlay top.fvd mid.fvd -F fvd
  rm mid.fvd
  make_overlay mid.fvd base.raw
  refused top.fvd
  [[ $output == *mid.fvd* ]]
  [[ $output == *UUID* ]]
  rm mid.fvd
  refused top.fvd
  [[ $output == *mid.fvd*missing* ]]
}

@test "a short layer in the middle never shows the base behind its end" {
  random_file base.raw $((2 << 20))
  make_overlay mid.fvd base.raw 1000001
  serve_plain mid.fvd
  on "$uri" <<'END'
h.pwrite(b"m" * 5, 999990)
h.pwrite(b"M" * 8192, 65536)
END
  nbdcopy "$uri" want
  stop "$pid"
  make_overlay top.fvd mid.fvd -F fvd 2M
  truncate -s 2M want
  serve_plain top.fvd
  assert_same want
  on "$uri" <<'END'
want = bytearray(open("want", "rb").read())
assert extents(1003520, 2 * M) == [(2 * M, 3)]
# Into the block where the middle ends, and into those behind.
for offset, count in (1000010, 1), (1003519, 2), (1500000, 5000), \
        (2 * M - 1, 1):
    h.pwrite(b"t" * count, offset)
    want[offset:offset + count] = b"t" * count
    assert h.pread(2 * M, 0) == want
h.cache(2 * M, 0)
h.trim(4096, 1196032)
assert h.pread(2 * M, 0) == want
open("want", "wb").write(want)
END
  stop "$pid"
  serve_plain top.fvd
  assert_same want
  stop "$pid"
}

@test "read-only=true leaves every byte of every file, and its time" {
  local first
  mkdir images
  random_file images/base.raw 1000001
  make_overlay images/mid.fvd images/base.raw
  make_overlay images/top.fvd images/mid.fvd -F fvd
  serve_plain images/top.fvd
  on "$uri" <<<'h.pwrite(b"x" * 300000, 5000); h.flush()'
  nbdcopy "$uri" want
  stop "$pid"
  marks images/* >before
  serve_plain images/top.fvd read-only=true
  first=$pid
  nbdinfo --json "$uri" | jq -e '.exports[0].is_read_only'
  assert_same want
  on "$uri" <<'END'
h.cache(500000, 300000)
extents(0, h.get_size())
h.set_strict_mode(0)
assert error(h.pwrite, b"x", 0) == errno.EPERM
assert error(h.zero, 10, 0) == errno.EPERM
END
  # Somebody else may read it, too.
  serve_as second -- images/top.fvd read-only=true
  assert_same want
  stop "$pid"
  stop "$first"
  marks images/* >after
  diff before after

  # Not closed in order.
  serve_plain images/top.fvd
  on "$uri" <<<'h.pwrite(b"y" * 300000, 50000); h.flush()'
  nbdcopy "$uri" want
  stop_hard "$pid"
  marks images/* >before
  serve_plain images/top.fvd read-only=true
  assert_same want
  stop "$pid"
  marks images/* >after
  diff before after
  [ "$(of_info images/top.fvd .fvd.clean)" = false ]
}

@test "nbdkit -r: clients cannot write" {
  random_file base.raw 100001
  make_overlay top.fvd base.raw
  local nbdkit
  nbdkit_with_chain valgrind
  serve_by plain "${nbdkit[@]}" -f -r -- "$NBDCHAIN_PLUGIN" top.fvd
  nbdinfo --json "$uri" | jq -e '.exports[0].is_read_only'
  assert_same base.raw
  on "$uri" <<'END'
h.set_strict_mode(0)
assert error(h.pwrite, b"x", 0) == errno.EPERM
END
  refused top.fvd
  [[ $output == *"in use"* ]]
  stop "$pid"
}

# assert_read_only WORDS...: with nbdkit run by WORDS, images/top.fvd is served
# read-only by itself: as $PWD/want, and nothing is changed.
assert_read_only ()
{
  marks images/* >before
  serve_as media "$@" -- images/top.fvd
  nbdinfo --json "$uri" | jq -e '.exports[0].is_read_only'
  assert_same want
  assert_same images/base.raw "$(layer base.raw)"
  on "$uri" <<'END'
h.cache(50000, 0)
h.set_strict_mode(0)
assert error(h.pwrite, b"x", 0) == errno.EPERM
END
  stop "$pid"
  marks images/* >after
  diff before after
}

# unclean_image: images/top.fvd, whose server was killed, and want.
unclean_image ()
{
  [ -d images ] || mkdir images
  random_file images/base.raw 1000001
  make_overlay images/top.fvd images/base.raw
  serve_plain images/top.fvd
  on "$uri" <<<'h.pwrite(b"x" * 300000, 5000); h.flush()'
  nbdcopy "$uri" want
  stop_hard "$pid"
  [ "$(of_info images/top.fvd .fvd.clean)" = false ]
}

@test "read-only media: served read-only by itself, closed in order or not" {
  need_mount
  local read_only='
mount --bind images images &&
mount -o remount,ro,bind images &&
! touch images/x 2>/dev/null &&
exec "$@"'
  unclean_image
  # The mount is seen by nbdkit only, and ends with it.
  assert_read_only unshare -m sh -c "$read_only" sh
  [ "$(of_info images/top.fvd .fvd.clean)" = false ]
  serve_plain images/top.fvd
  stop "$pid"
  [ "$(of_info images/top.fvd .fvd.clean)" = true ]
  assert_read_only unshare -m sh -c "$read_only" sh
}

@test "a file system mounted read-only from a loop device" {
  need_mount
  unclean_image
  truncate -s 32M fs.img
  mkfs.ext4 -q -F -d images fs.img
  mkdir media
  unshare -m sh -c 'mount -o loop,ro fs.img media' ||
    skip "no loop device"
  serve_as loop unshare -m \
    sh -c 'mount -o loop,ro fs.img media && exec "$@"' sh -- media/top.fvd
  nbdinfo --json "$uri" | jq -e '.exports[0].is_read_only'
  assert_same want
  stop "$pid"
  # The image at the top alone is on such media.
  mkdir copy
  cp images/base.raw copy
  serve_as loop unshare -m \
    sh -c 'mount -o loop,ro fs.img media && exec "$@"' sh -- \
    media/top.fvd base=copy/base.raw
  assert_same want
  stop "$pid"
}

@test "without the permission to write: served read-only by itself" {
  [ "$(id -u)" -eq 0 ] || skip "needs root"
  unclean_image
  chmod 444 images/*
  assert_read_only setpriv --inh-caps=-all \
    --bounding-set=-dac_override,-dac_read_search
}

@test "an image is written by one server only" {
  local first
  random_file base.raw 100001
  make_overlay mid.fvd base.raw
  make_overlay top.fvd mid.fvd -F fvd
  make_overlay other.fvd mid.fvd -F fvd
  serve_plain top.fvd
  first=$pid
  refused top.fvd
  [[ $output == *top.fvd*"in use"* ]]
  refused top.fvd read-only=true
  [[ $output == *top.fvd*"in use"* ]]
  # What others read through to is not written.
  refused mid.fvd
  [[ $output == *mid.fvd*"in use"* ]]
  run -1 "$NBDCHAIN" snapshot top.fvd new.fvd
  [[ $output == *"in use"* ]]
  [ ! -e new.fvd ]
  # But it is shared.
  serve_as second -- other.fvd
  assert_same base.raw
  stop "$pid"
  serve_as second -- mid.fvd read-only=true
  assert_same base.raw
  stop "$pid"
  stop "$first"

  serve_as second -- top.fvd read-only=true
  refused top.fvd
  [[ $output == *top.fvd*"in use"* ]]
  stop "$pid"
  serve_plain top.fvd
  stop "$pid"
  # A server that was killed holds nothing.
  serve_plain top.fvd
  stop_hard "$pid"
  serve_plain top.fvd
  stop "$pid"
}

@test "QEMU and the chain respect each other's locks" {
  local file
  random_file base.raw 65536
  make_overlay mid.fvd base.raw
  make_overlay top.fvd mid.fvd -F fvd
  serve_plain top.fvd
  for file in top.fvd mid.fvd base.raw; do
    run -1 qemu-io -f raw -c 'write 0 512' "$file"
    [[ $output == *'"write" lock'* ]]
  done
  qemu-io -r -f raw -c 'read 0 512' base.raw
  assert_same base.raw
  stop "$pid"

  for file in top.fvd mid.fvd base.raw; do
    sha256sum mid.fvd base.raw >sums
    start qemu qemu-nbd -f raw -t -k "$PWD/qemu.sock" --pid-file qemu.pid \
      "$file"
    wait_for 10 is_ready_or_gone qemu.pid "$pid"
    refused top.fvd
    [[ $output == *"$file"*"in use"* ]]
    refused top.fvd read-only=true
    [[ $output == *"$file"*"in use"* ]]
    sha256sum -c sums
    stop "$pid"
    rm qemu.pid
  done

  # QEMU may read what is only read here, too.
  start qemu qemu-nbd -r -f raw -t -k "$PWD/qemu.sock" --pid-file qemu.pid \
    base.raw
  wait_for 10 is_ready_or_gone qemu.pid "$pid"
  local qemu=$pid
  serve_plain top.fvd
  assert_same base.raw
  stop "$pid"
  stop "$qemu"
}

@test "a retired image is refused for writing, and its successor named" {
  random_file base.raw 100001
  make_overlay old.fvd base.raw
  serve_plain old.fvd
  on "$uri" <<<'h.pwrite(b"old", 0)'
  nbdcopy "$uri" want
  stop "$pid"
  "$NBDCHAIN" snapshot old.fvd new.fvd
  sha256sum old.fvd >sums
  refused old.fvd
  [[ $output == *old.fvd*retired*new.fvd* ]]
  refused old.fvd follow=false
  [[ $output == *new.fvd* ]]
  serve_plain new.fvd
  on "$uri" <<<'h.pwrite(b"new", 0)'
  stop "$pid"
  serve_plain old.fvd read-only=true
  assert_same want
  stop "$pid"
  serve_plain old.fvd follow=true
  on "$uri" <<<'assert h.pread(3, 0) == b"new"; h.pwrite(b"more", 100)'
  assert_same want "$(layer old.fvd)"
  stop "$pid"
  serve_plain new.fvd
  on "$uri" <<<'assert h.pread(4, 100) == b"more"'
  stop "$pid"
  sha256sum -c sums

  # Where the successor may not be followed to, nothing is.
  mkdir elsewhere
  "$NBDCHAIN" snapshot new.fvd elsewhere/newer.fvd
  mkdir moved
  mv elsewhere/newer.fvd moved
  refused new.fvd follow=true
  [[ $output == *newer.fvd* ]]
}

@test "requests without limit on 16 connections" {
  local requests=250
  ! slow || requests=40
  random_file base.raw $((32 << 20))
  make_overlay mid.fvd base.raw
  make_overlay top.fvd mid.fvd -F fvd
  serve_plain top.fvd
  requests=$requests on "$uri" <<'END'
import random
requests = int(os.environ["requests"])
base = open("base.raw", "rb").read()
handles = [connect() for i in range(16)]
area = 2 * M
want = bytearray(base)
failed = []

def done(err):
    if err:
        failed.append(err)
    return 1

def wait():
    for handle in handles:
        while handle.aio_in_flight():
            handle.poll(-1)
    assert not failed, failed

# Each connection writes a part of its own; the parts of blocks lie side by
# side with those of others.
r = random.Random(1)
kept = []
for i in range(requests):
    for c, handle in enumerate(handles):
        offset = (i * 16 + c) * (area // requests) + r.randrange(900)
        count = r.randrange(1, area // requests - 900)
        if i % 5 == 0:
            handle.aio_zero(count, offset, completion=done)
            want[offset:offset + count] = bytes(count)
        else:
            data = r.randbytes(count)
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            kept.append(buffer)
            handle.aio_pwrite(buffer, offset, completion=done)
            want[offset:offset + count] = data
        if i % 16 == c:
            handle.aio_flush(completion=done)
wait()

# Reads of each connection see what all of them wrote.
reads = []
for i in range(requests):
    for c, handle in enumerate(handles):
        offset = r.randrange(32 * M - 20000)
        count = r.randrange(1, 20000)
        buffer = nbd.Buffer(count)
        reads.append((offset, count, buffer))
        handle.aio_pread(buffer, offset, completion=done)
wait()
for offset, count, buffer in reads:
    assert buffer.to_bytearray() == want[offset:offset + count], offset

# A flush on one covers the writes of all.
handles[3].flush()
for handle in handles:
    handle.shutdown()
open("want", "wb").write(want)
END
  stop_hard "$pid"
  serve_plain top.fvd
  assert_same want
  stop "$pid"
}
