#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# nbdchain map --svg: that the drawing shows what is in the chain, and is XML
# whatever the names are.
# shellcheck disable=SC2154             # run-tests sets these

load common

# in_svg FILE PYTHON: run it with these:
#   svg: the root;  bars: their elements by id ("layer-0", "disk")
#   names: of the layers;  size: the number of bytes of the file
#   at (bar, column): None, or ("some" or "", colour or "zero")
in_svg ()
{
  /usr/bin/python3 - "$1" <<END
import os, re, sys
import xml.etree.ElementTree as ET
NS = "{http://www.w3.org/2000/svg}"
size = os.path.getsize(sys.argv[1])
svg = ET.parse(sys.argv[1]).getroot()
bars = {g.get("id"): g for g in svg.iter(NS + "g") if g.get("id")}
names = [bars["layer-%d" % i].find(".//" + NS + "tspan").text
         for i in range(sum(b.startswith("layer-") for b in bars))]
def at(bar, column):
    found = []
    for path in bars[bar].iter(NS + "path"):
        for x, w in re.findall(r"M(\d+) 0h(\d+)v24h-\2z", path.get("d")):
            if int(x) <= column < int(x) + int(w):
                found.append((path.get("class") or "", path.get("fill")))
    assert len(found) <= 1, found
    return found[0] if found else None
$2
END
}

# write IMAGE PYTHON: statements on the handle h.
write ()
{
  serve_plain "$1"
  nbdsh -u "$uri" -c "$2" -c 'h.flush()'
  stop "$pid"
}

# A disk of 1000 columns of 64 KiB: data of the base from 200 to 400, of mid.fvd
# from 300 to 500, zeros there from 500 to 600, of top.fvd from 350 to 360, and
# a block at 700.
three_layers ()
{
  truncate -s $((1000 * 65536)) base.raw
  dd if=/dev/urandom of=base.raw bs=64K seek=200 count=200 conv=notrunc \
    status=none
  make_overlay mid.fvd base.raw
  write mid.fvd 'h.pwrite(b"x" * 200 * 65536, 300 * 65536)
h.zero(100 * 65536, 500 * 65536)'
  nbdchain create -b mid.fvd -F fvd top.fvd
  write top.fvd 'h.pwrite(b"y" * 10 * 65536, 350 * 65536)
h.pwrite(b"y" * 4096, 700 * 65536)'
}

@test "the drawing shows what each layer holds, and what the disk is read from" {
  three_layers
  nbdchain map --svg top.fvd >top.svg
  in_svg top.svg '
assert svg.tag == NS + "svg"
assert names == ["top.fvd", "mid.fvd", "base.raw"], names
top, mid, base = [at(b, c)[1] for b, c in
                  [("layer-0", 350), ("layer-1", 300), ("layer-2", 200)]]
assert len({top, mid, base}) == 3
assert [at("layer-0", c) for c in (349, 350, 359, 360)] == \
    [None, ("", top), ("", top), None]
assert at("layer-0", 700) == ("some", top)
assert [at("layer-1", c) for c in (299, 300, 499, 500, 599, 600)] == \
    [None, ("", mid), ("", mid), ("zero", None), ("zero", None), None]
assert [at("layer-2", c) for c in (0, 199, 200, 399, 400, 999)] == \
    [("zero", None), ("zero", None), ("", base), ("", base),
     ("zero", None), ("zero", None)]
assert [at("disk", c)[1] for c in
        (0, 299, 300, 349, 350, 359, 360, 499, 599, 600, 999)] == \
    [base, base, mid, mid, top, top, mid, mid, mid, base, base]
assert at("disk", 700)[0] == "some"
text = "".join(bars["layer-1"].itertext())
assert "holds 12.5 MiB of data, 6.2 MiB of zeros" in text, text
assert bars["legend"].findall(NS + "rect")
'
}

@test "the drawing goes into a new file only" {
  nbdchain create disk.fvd 1M
  nbdchain map --svg=disk.svg disk.fvd
  in_svg disk.svg 'assert names == ["disk.fvd"] and at("disk", 0) is None'
  cp disk.fvd copy.fvd
  run -1 nbdchain map --svg=disk.fvd disk.fvd
  [[ $output == *'disk.fvd: File exists; give another name'* ]]
  cmp disk.fvd copy.fvd
  run -1 nbdchain map --svg=other.svg nosuch.fvd
  [ ! -e other.svg ]
}

@test "names cannot break out of the XML" {
  base=$'<&"]]>\x01\xff.raw'
  truncate -s 1M -- "$base"
  make_overlay $'<script>\'&.fvd' "./$base"
  nbdchain map --svg $'<script>\'&.fvd' >out.svg
  in_svg out.svg '
assert not list(svg.iter(NS + "script"))
assert names[0] == "<script>\x27&.fvd", names
assert names[1] == "<&\"]]>\ufffd\ufffd.raw", names
'
}

@test "the size of the drawing is bounded" {
  nbdchain create --block-size 4K many.fvd 16M
  write many.fvd 'for i in range(2048): h.pwrite(b"x" * 4096, i * 8192)'
  nbdchain map --svg=many.svg many.fvd
  nbdchain map --extents many.fvd >extents
  [ "$(wc -l <extents)" -gt 4000 ]
  in_svg many.svg '
assert size < 60000, size
assert at("disk", 0)[0] == at("disk", 999)[0] == "some"
'
  nbdchain create empty.fvd 0
  nbdchain map --svg=empty.svg empty.fvd
  in_svg empty.svg 'assert names == ["empty.fvd"] and at("disk", 0) is None'
}
