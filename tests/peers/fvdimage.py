#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Make and change fvd images as a hostile author would: with whatever in their
fields, and right checksums all the same.  Written from docs/formats/fvd.md
alone; shares no code with the library.

usage: fvdimage.py new IMAGE SIZE [FIELD=VALUE...]   an image made here
       fvdimage.py set IMAGE FIELD=VALUE...          change both headers
       fvdimage.py record IMAGE NUMBER TYPE FIRST:COUNT...
       fvdimage.py fill IMAGE FIRST:COUNT            each sector of the journal
                                                     with 40 such ranges
       fvdimage.py seal IMAGE                        correct the checksums
       fvdimage.py sweep IMAGE SEED N COMMAND...     see there
"""

import json
import os
import random
import struct
import subprocess
import sys
import uuid

import xxhash

SECTOR = 512
FIELDS = {
    "version": (8, 4), "length": (12, 4), "seq": (16, 8), "compat": (40, 8),
    "ro_compat": (48, 8), "incompat": (56, 8), "size": (64, 8),
    "block_bits": (72, 4), "flags": (76, 4), "life": (80, 8),
    "summary": (88, 8), "summary_size": (96, 8), "bitmap": (104, 8),
    "bitmap_size": (112, 8), "journal": (120, 8), "journal_size": (128, 8),
    "tail": (136, 8), "data": (144, 8), "table": (152, 8),
    "table_size": (160, 8), "profile": (168, 8), "profile_size": (176, 8),
    "backing_size": (184, 8),
}
UUIDS = {"uuid": 24, "backing_uuid": 192, "successor_uuid": 208}
STRINGS = ["reference", "format", "identity", "successor", "data_file",
           "data_format"]
CLEAN, HAS_BACKING = 1, 2


def sector_sum(image, kind, index, body):
    seed = xxhash.xxh3_64_intdigest(image + struct.pack("<QQ", kind, index))
    return struct.pack("<Q", xxhash.xxh3_64_intdigest(body, seed=seed))


def sealed(image, kind, index, body):
    body = body.ljust(504, b"\0")
    return body + sector_sum(image, kind, index, body)


class Header:
    """One copy, 4096 bytes."""

    def __init__(self, data=None):
        self.data = bytearray(data or 4096)

    def get(self, name):
        at, size = FIELDS[name]
        return int.from_bytes(self.data[at:at + size], "little")

    def set(self, name, value):
        if name in STRINGS:
            self.set_string(STRINGS.index(name), os.fsencode(value))
        elif name in UUIDS:
            value = bytes.fromhex(value.replace("-", ""))
            self.data[UUIDS[name]:UUIDS[name] + 16] = value
        else:
            at, size = FIELDS[name]
            value = int(str(value), 0)
            self.data[at:at + size] = value.to_bytes(size, "little")

    def strings(self):
        found, at = [], 1024
        for _ in STRINGS:
            n, = struct.unpack_from("<H", self.data, at)
            found.append(bytes(self.data[at + 2:at + 2 + n]))
            at += 2 + n
        return found

    def set_string(self, i, value):
        strings = self.strings()
        strings[i] = value
        area = b"".join(struct.pack("<H", len(s)) + s for s in strings)
        self.data[1024:4088] = area.ljust(3064, b"\0")

    def uuid(self):
        return bytes(self.data[24:40])

    def seal(self):
        body = bytes(self.data[:4088])
        self.data[4088:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def read_headers(f):
    copies = []
    for i in range(2):
        f.seek(4096 * i)
        copies.append(Header(f.read(4096).ljust(4096, b"\0")))
    return copies


def write_headers(f, copies):
    for i, h in enumerate(copies):
        h.seal()
        f.seek(4096 * i)
        f.write(h.data)


def newest(copies):
    return max((h for i, h in enumerate(copies) if h.get("seq") % 2 == i),
               key=lambda h: h.get("seq"))


def round_up(n, unit):
    return (n + unit - 1) // unit * unit


def new(path, size, *assignments):
    """An empty image, all areas in place, its file as long as it must be."""
    h = Header()
    h.data[0:8] = b"NBDCFVD\n"
    for name, value in [("version", 1), ("length", 4096), ("size", size),
                        ("block_bits", 12), ("flags", CLEAN), ("tail", 1),
                        ("journal_size", 16384)]:
        h.set(name, value)
    h.data[24:40] = uuid.uuid4().bytes
    for word in assignments:
        h.set(*word.split("=", 1))
    blocks = (int(size) + (1 << h.get("block_bits")) - 1) >> h.get("block_bits")
    pages = -(-blocks // 4032)
    sectors = max(-(-pages // 2016), 1)
    at = 8192
    for name, length in [("summary", sectors * 512), ("bitmap", pages * 512),
                         ("journal", h.get("journal_size"))]:
        h.set(name, at)
        h.set(name + "_size", round_up(length, 4096))
        at += round_up(length, 4096)
    h.set("data", round_up(at, 1 << 21))
    with open(path, "wb") as f:
        for i in range(2):
            h.set("seq", i + 2)
            h.seal()
            f.seek(4096 * i)
            f.write(h.data)
        f.seek(h.get("summary"))
        for i in range(sectors):
            f.write(sealed(h.uuid(), 1, i, b""))
        f.truncate(h.get("data") + int(size))


def change(path, *assignments):
    with open(path, "r+b") as f:
        copies = read_headers(f)
        for h in copies:
            for word in assignments:
                h.set(*word.split("=", 1))
        write_headers(f, copies)


def record_body(number, kind, ranges):
    body = struct.pack("<4sHHQQ", b"FVDJ", kind, len(ranges), number, 7)
    return body + b"".join(struct.pack("<QI", first, count)
                           for first, count in ranges[:40])


def record(path, number, kind, *texts):
    """Put a record in its place; the image becomes one in use."""
    ranges = [tuple(int(n, 0) for n in text.split(":")) for text in texts]
    number = int(number, 0)
    with open(path, "r+b") as f:
        copies = read_headers(f)
        h = newest(copies)
        index = number % (h.get("journal_size") // 512)
        f.seek(h.get("journal") + 512 * index)
        f.write(sealed(h.uuid(), 3, index,
                       record_body(number, int(kind), ranges)))
        for c in copies:
            c.set("flags", c.get("flags") & ~CLEAN)
        write_headers(f, copies)


def fill(path, text):
    first, count = (int(n, 0) for n in text.split(":"))
    with open(path, "r+b") as f:
        copies = read_headers(f)
        h = newest(copies)
        sectors, tail = h.get("journal_size") // 512, h.get("tail")
        for number in range(tail, tail + sectors):
            index = number % sectors
            f.seek(h.get("journal") + 512 * index)
            # Apart by one, so that no two are equal.
            ranges = [(first + i, count - 40) for i in range(40)]
            f.write(sealed(h.uuid(), 3, index, record_body(number, 1, ranges)))
        for c in copies:
            c.set("flags", c.get("flags") & ~CLEAN)
        write_headers(f, copies)


def seal(path):
    with open(path, "r+b") as f:
        copies = read_headers(f)
        write_headers(f, copies)
        h = newest(copies)
        for kind, area in (1, "summary"), (2, "bitmap"), (3, "journal"):
            offset, size = h.get(area), h.get(area + "_size")
            for i in range(min(size // 512, 4096)):
                f.seek(offset + 512 * i)
                body = f.read(512)[:504]
                if len(body) == 504 and (kind < 3 or body[:4] == b"FVDJ"):
                    f.seek(offset + 512 * i)
                    f.write(sealed(h.uuid(), kind, i, body))


def sweep(path, seed, n, *command):
    """N times: change a few bytes of the metadata at random, half of the time
    with right checksums, and run COMMAND, in which @ stands for the image.  It
    has to end by itself within a minute, with the exit code 0, 1 or 3 and,
    unless that is 0, a message; and nothing it prints steers a terminal."""
    rng = random.Random(int(seed))
    with open(path, "rb") as f:
        h = newest(read_headers(f))
        end = h.get("journal") + h.get("journal_size")
        f.seek(0)
        sound = f.read(end)
    places = [(16, 320), (4096 + 16, 320), (1024, 200), (5120, 200),
              (h.get("summary"), 512), (h.get("bitmap"), 1024),
              (h.get("journal"), 4096)]
    codes = {}
    for _ in range(int(n)):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            at, length = rng.choice(places)
            at += rng.randrange(length)
            value = rng.choice([rng.randbytes(1), b"\xff" * 8, b"\0" * 8,
                                rng.randbytes(8)])
            data[at:at + len(value)] = value
        with open(path, "r+b") as f:
            f.write(data[:end])
        if rng.randrange(2):
            seal(path)
        done = subprocess.run([path if word == "@" else word
                               for word in command], timeout=60,
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        codes[done.returncode] = codes.get(done.returncode, 0) + 1
        said = done.stdout + done.stderr
        odd = [c for c in said if c < 32 and c not in (9, 10, 13)]
        if (done.returncode not in (0, 1, 3) or odd or
                (done.returncode != 0 and not said.strip())):
            os.rename(path, path + ".bad")
            sys.exit("%s: exit code %d\n%s\n%s" % (
                path + ".bad", done.returncode, command, said))
    with open(path, "r+b") as f:
        f.write(sound)
    print(json.dumps(codes))


COMMANDS = {"new": new, "set": change, "record": record, "fill": fill,
            "seal": seal, "sweep": sweep}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
