# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""The data sets: the same disk as a raw file and as chains of images.

Every contender serves the same bytes.  Each set is made once, when it
is first wanted, then read through its server and compared with the raw
file, which also brings it into the page cache.

Kinds of image: raw, flat (raw, but an allocated file where others are
fresh), fvd, fvd-data (with a data file beside it), fvd-compact,
fvd-small-journal, qcow2, qcow2-extl2.
"""

import mmap
import os
import random
import subprocess

from contenders import peer
from nbdclient import NbdError
from servers import CellError

PIECE = 65536                   # one layer owns at least so much
CHUNK = 1 << 20                 # written at a time where that is said
SEED = 20261121
COMPACT_CHUNK = 1 << 20
DATA_FILE = ".data"             # after the name of its image


def _run(argv, env=None):
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, env=env,
                            capture_output=True, text=True, check=False)
    if result.returncode:
        raise CellError(f"{argv[0]}: {result.stderr.strip()[-300:]}")


def _write_random(path, size):
    """Fill PATH by system calls of a piece each, as the other images are
    filled.  The kernel caches a file in folios as large as the writes
    that made it, and a small write into a large folio costs more.
    """
    with open(path, "wb", buffering=0) as image:
        for offset in range(0, size, PIECE):
            image.write(os.urandom(min(PIECE, size - offset)))


def _copy(source, path):
    """Write PATH, with the bytes of SOURCE, by system calls of a chunk."""
    with open(source, "rb", buffering=0) as data, \
            open(path, "wb", buffering=0) as image:
        while chunk := data.read(CHUNK):
            image.write(chunk)


def files_of(image):
    """IMAGE, and the data file it may have."""
    return [path for path in (image, image + DATA_FILE)
            if os.path.exists(path)]


def sync(image):
    """Make IMAGE durable, so that its pages do not disturb what follows."""
    for path in files_of(image):
        fd = os.open(path, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _layout(kind, path):
    """Options of nbdchain create for an image PATH of KIND."""
    return {"fvd-data": ["--data-file", path + DATA_FILE],
            "fvd-compact": ["--compact"],
            "fvd-small-journal": ["--journal-size", "64K"]}.get(kind, [])


def _chunks_shuffled(offsets):
    """OFFSETS with their chunks in random order, as a disk that was not
    written from its start to its end has them in a compact image."""
    chunks = {}
    for offset in offsets:
        chunks.setdefault(offset // COMPACT_CHUNK, []).append(offset)
    order = sorted(chunks)
    random.Random(SEED).shuffle(order)
    return [offset for chunk in order for offset in chunks[chunk]]


class Mapped:
    """A raw file, mapped."""

    def __init__(self, path):
        self.file = open(path, "rb")
        self.map = mmap.mmap(self.file.fileno(), 0,
                             access=mmap.ACCESS_READ)

    def __enter__(self):
        return self.map

    def __exit__(self, *_):
        self.map.close()
        self.file.close()


class Sets:
    """All images of one run, in DIRECTORY.

    start: function (kind, image) that starts a server for it.
    """

    def __init__(self, directory, size, build, start):
        self.directory = directory
        self.size = size
        self.build = build
        self.start = start
        self.made = {}
        self.failed = {}

    def path(self, name):
        return os.path.join(self.directory, name)

    def _once(self, name, make):
        """Make the image NAME unless it is there; what failed once is
        not tried again."""
        if name in self.failed:
            raise CellError(f"no {name}: {self.failed[name]}")
        if name not in self.made:
            path = self.path(name)
            try:
                make(path)
            except (CellError, NbdError, OSError) as error:
                self.failed[name] = error
                raise
            sync(path)
            self.made[name] = path
        return self.made[name]

    def flat(self):
        """The reference: the disk as one allocated raw file."""
        return self._once("flat.raw",
                          lambda path: _write_random(path, self.size))

    def base(self):
        """Base of the chains: right only in the pieces it owns."""
        return self._once("base.raw", self._make_base)

    def _make_base(self, path):
        _write_random(path, self.size)
        with Mapped(self.flat()) as data, open(path, "r+b") as image:
            for offset in self._owned(0):
                image.seek(offset)
                image.write(data[offset:offset + PIECE])

    def _owned(self, layer):
        """Pieces of a disk spread over three layers that LAYER owns."""
        offsets = list(range(0, self.size, PIECE))
        random.Random(SEED).shuffle(offsets)
        return sorted(offsets[layer::3])

    # Making images of any kind.

    def overlay(self, kind, path, backing, backing_kind):
        """An empty overlay over BACKING."""
        backing_kind = backing_kind.partition("-")[0]
        if kind.startswith("fvd"):
            _run([self.build.cli, "create", *_layout(kind, path),
                  "-b", backing, "-F", backing_kind, path], self.build.env)
            return
        options = ["-o", "extended_l2=on"] if kind == "qcow2-extl2" else []
        _run([*peer("qemu-img"), "create", "-q", "-f", "qcow2", *options,
              "-b", backing, "-F", backing_kind, path])

    def snapshot(self, kind, image, new):
        if kind == "fvd":
            _run([self.build.cli, "snapshot", image, new], self.build.env)
        else:
            self.overlay(kind, new, image, kind)

    def _fill(self, kind, image, offsets, count=PIECE):
        """Write COUNT bytes of the disk at each of OFFSETS through a
        server."""
        if kind == "fvd-compact":
            offsets = _chunks_shuffled(offsets)
        server = self.start(kind, image)
        with Mapped(self.flat()) as data:
            with server.connect() as client:
                for offset in offsets:
                    client.write(offset, data[offset:offset + count])
                client.flush()
        server.stop()

    def compare(self, server, size):
        """Read all SERVER's disk; it must equal the reference's first
        SIZE bytes."""
        with Mapped(self.flat()) as data, server.connect() as client:
            if client.size != size:
                raise CellError(f"{server.argv[0]} serves {client.size} "
                                f"bytes instead of {size}")
            for offset in range(0, size, CHUNK):
                count = min(CHUNK, size - offset)
                if client.read(offset, count) != \
                        data[offset:offset + count]:
                    raise CellError(f"{server.argv[0]} serves other data "
                                    f"near {offset}")

    def _checked(self, kind, image):
        server = self.start(kind, image)
        self.compare(server, self.size)
        server.stop()

    # The sets.

    def spread(self, kind):
        """Base, mid and top, each owning a random third of the disk."""
        if kind == "raw":
            return self.flat()
        return self._once(f"spread.{kind}",
                          lambda path: self._make_spread(kind, path))

    def _mid(self, kind):
        def make(path):
            self.overlay(kind, path, self.base(), "raw")
            self._fill(kind, path, self._owned(1))
        return self._once(f"mid.{kind}", make)

    def _make_spread(self, kind, path):
        self.overlay(kind, path, self._mid(kind), kind)
        self._fill(kind, path, self._owned(2))
        self._checked(kind, path)

    def in_top(self, kind):
        """The same three layers, every block allocated in the top."""
        if kind == "raw":
            return self.flat()
        return self._once(f"in-top.{kind}",
                          lambda path: self._make_in_top(kind, path))

    def _make_in_top(self, kind, path, count=PIECE):
        self.overlay(kind, path, self._mid(kind), kind)
        self._fill(kind, path, range(0, self.size, count), count)
        self._checked(kind, path)

    def in_top_by_chunks(self, kind):
        """The same, but the top was filled by writes of 1 MiB."""
        if kind == "raw":
            return self._once("flat-by-chunks.raw",
                              lambda path: _copy(self.flat(), path))
        return self._once(f"in-top-by-chunks.{kind}",
                          lambda path: self._make_in_top(kind, path, CHUNK))

    def fresh(self, kind):
        """A new empty image: sparse file, or overlay over the base."""
        if kind == "flat":
            return self.flat()
        path = self.path(f"fresh.{kind}")
        if kind == "raw":
            with open(path, "wb") as image:
                image.truncate(self.size)
        else:
            self.overlay(kind, path, self.base(), "raw")
        sync(path)
        return path

    def over_remote(self, kind, uri, size):
        """A new empty overlay over the remote at URI, which has SIZE
        bytes; or a sparse file as large."""
        path = self.path(f"over-remote.{kind}")
        if kind == "raw":
            with open(path, "wb") as image:
                image.truncate(size)
        else:
            self.overlay(kind, path, uri, "raw")
        sync(path)
        return path

    def discard(self, path):
        """Remove what fresh made."""
        if path not in self.made.values():
            for part in files_of(path):
                os.unlink(part)

    def depth(self, kind, layers):
        """A chain of LAYERS overlays, each made by a snapshot and then
        written in one random 64th of its pieces.
        """
        if kind == "raw":
            return self.flat()
        return self._once(f"depth-{layers}-top.{kind}",
                          lambda path: self._make_depth(kind, layers, path))

    def _make_depth(self, kind, layers, path):
        rng = random.Random(SEED + layers)
        offsets = range(0, self.size, PIECE)
        below = None
        for layer in range(1, layers + 1):
            name = path if layer == layers else \
                self.path(f"depth-{layers}-{layer}.{kind}")
            if below is None:
                self.overlay(kind, name, self.flat(), "raw")
            else:
                self.snapshot(kind, below, name)
            written = rng.sample(offsets, max(1, len(offsets) // 64))
            self._fill(kind, name, written)
            below = name
        self._checked(kind, path)
