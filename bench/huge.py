# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""The data sets of group H: huge disks, nearly all of it holes.

A disk has scattered pieces of 64 KiB with data, over a sparse raw base.
What a piece holds follows from its offset, so every read can be compared
without a reference file.
"""

import os
import random
import time

import images
from images import PIECE, SEED
from servers import CellError

PIECES = 2048                   # of one overlay that is written to
SHARED = 256                    # of a chain, which its layers share


def offsets(size, count=PIECES):
    """Where COUNT pieces are, in the order in which they are written."""
    return [PIECE * number for number in
            random.Random(SEED).sample(range(size // PIECE), count)]


def _content(offset):
    return (offset + 1).to_bytes(8, "big") * (PIECE // 8)


def write(server, where):
    with server.connect() as client:
        for offset in where:
            client.write(offset, _content(offset))
        client.flush()


def check(server, where):
    """Read the pieces at WHERE; each must hold what write put there."""
    with server.connect() as client:
        for offset in where:
            if client.read(offset, PIECE) != _content(offset):
                raise CellError(f"{server.argv[0]} serves other data at "
                                f"{offset}")


def zero(server, where):
    """Zero the disk; the pieces at WHERE must then be zeros.  Returns
    the milliseconds it took, connecting and checking not included."""
    with server.connect() as client:
        began = time.monotonic()
        client.zero_all()
        elapsed = (time.monotonic() - began) * 1e3
        for offset in where:
            if any(client.read(offset, PIECE)):
                raise CellError(f"{server.argv[0]} did not zero {offset}")
    return elapsed


def _sparse(path, size):
    with open(path, "wb") as image:
        image.truncate(size)


class Huge:
    """The images, in the directory of SETS, a bench's images.Sets."""

    def __init__(self, sets):
        self.sets = sets
        self.made = set()

    def fresh(self, kind, size):
        """A new empty image of SIZE, in the place of the last one."""
        path = self.sets.path(f"huge-fresh.{kind}")
        if os.path.exists(path):
            os.unlink(path)
        self._empty(kind, path, size)
        images.sync(path)
        return path

    def _empty(self, kind, path, size):
        if kind == "raw":
            _sparse(path, size)
            return
        base = self.sets.path(f"huge-base-{size >> 30}.raw")
        if not os.path.exists(base):
            _sparse(base, size)
        self.sets.overlay(kind, path, base, "raw")

    def layers(self, kind, size, count):
        """A chain of COUNT overlays that share SHARED pieces evenly; one
        raw file for kind raw."""
        if kind == "raw":
            count = 1
        name = f"huge-{size >> 30}-{count}"
        path = self.sets.path(f"{name}-{count}.{kind}")
        if path not in self.made:
            self._make(kind, size, name, count)
            self.made.add(path)
        return path

    def _make(self, kind, size, name, count):
        where = offsets(size, SHARED)
        below = None
        for layer in range(1, count + 1):
            path = self.sets.path(f"{name}-{layer}.{kind}")
            if below is None:
                self._empty(kind, path, size)
            else:
                self.sets.snapshot(kind, below, path)
            server = self.sets.start(kind, path)
            write(server, where[layer - 1::count])
            server.stop()
            below = path
        server = self.sets.start(kind, below)
        check(server, where)
        server.stop()
