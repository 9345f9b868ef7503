# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group H, huge disks: what the size of a sparse disk costs.

First for each size and depth: how long a chain takes to open, to the
first read of a block that has data, and what memory that takes.  Then,
for a fresh overlay of 8 TiB: zeroing all of it; 2,048 scattered writes of
64 KiB and reads of the same, the space they use, opening that again, and
zeroing all of that.  `nbdkit file` serves a sparse raw file of that size
and has no layers: its column is the floor, most of all in the last row,
where it is the file system that needs time to give the space back.

qemu-nbd is not asked to zero: 8 TiB are 16,384 tables of 64 KiB for it to
write, which takes minutes.
"""

import os

import huge
from contenders import REFERENCE
from table import Group

TITLE = "Huge disks, sparse"
CONTENDERS = ["file", "chain", "qemu-nbd", "serve"]
DEFAULT_CONTENDERS = CONTENDERS[:-1]
GIB = 1 << 30
SIZES = {"10 GiB": 10 * GIB, "1 TiB": 1024 * GIB, "8 TiB": 8192 * GIB}
DEPTHS = (1, 8, 64)
LARGEST = "8 TiB"
ROOM = 8 * GIB                  # of the storage, for everything here


def _open_metrics(group, size, depth):
    name = f"{size}, {depth} overlays: "
    return [group.metric(name + "open to first read", "ms", "↓"),
            group.metric(name + "memory after open", "MiB", "↓")]


def _write_metrics(group):
    return [group.metric(f"{LARGEST}{what}", unit, "↓") for what, unit in (
        (": memory after writes and reads", "MiB"),
        (": space used per byte written", "×"),
        (", after writes: open to first read", "ms"),
        (", after writes: memory after open", "MiB"))]


def _zero_metrics(group):
    return [group.metric(f"{LARGEST}{what}: zero the whole disk", "ms", "↓")
            for what in ("", ", after writes")]


def _open(bench, contender, image, offset):
    """Open IMAGE and read at OFFSET.  Returns (server, ms, MiB)."""
    server = bench.serve(contender, image)
    elapsed = server.first_read(offset)
    return server, elapsed, server.memory() / (1 << 20)


def _measure_open(bench, sets, contender, size, depth):
    image = sets.layers(contender.kind, SIZES[size], depth)
    server, *figures = _open(bench, contender, image,
                             huge.offsets(SIZES[size], huge.SHARED)[0])
    server.stop()
    return figures


def _write_and_read(bench, contender, image, where):
    """Returns memory afterwards in MiB."""
    server = bench.serve(contender, image)
    huge.write(server, where)
    huge.check(server, where)
    memory = server.memory() / (1 << 20)
    server.stop()
    os.sync()
    return memory


def _measure_writes(bench, sets, contender):
    size = SIZES[LARGEST]
    where = huge.offsets(size)
    image = sets.fresh(contender.kind, size)
    try:
        memory = _write_and_read(bench, contender, image, where)
        space = os.stat(image).st_blocks * 512 / (len(where) * huge.PIECE)
        server, opened, open_memory = _open(bench, contender, image,
                                            where[0])
        server.stop()
    finally:
        os.unlink(image)
    return memory, space, opened, open_memory


def _zero(bench, sets, contender, where):
    """Zero a disk with data at WHERE.  Returns milliseconds."""
    image = sets.fresh(contender.kind, SIZES[LARGEST])
    try:
        server = bench.serve(contender, image)
        huge.write(server, where)
        os.sync()
        elapsed = huge.zero(server, where)
        server.stop()
    finally:
        os.unlink(image)
    return elapsed


def _measure_zero(bench, sets, contender):
    return [_zero(bench, sets, contender, where)
            for where in ([], huge.offsets(SIZES[LARGEST]))]


def _measure(contender, metrics, measure):
    """Add what measure () returns to METRICS, None if it fails."""
    values = [None] * len(metrics)
    try:
        values = measure()
    finally:
        for metric, value in zip(metrics, values):
            metric.add(contender, value)


def run(bench):
    ids = CONTENDERS if bench.chosen else DEFAULT_CONTENDERS
    group = Group("H", TITLE, bench.taking_part(ids), REFERENCE)
    sets = huge.Huge(bench.sets)
    for size in SIZES:
        for depth in DEPTHS:
            bench.each(group.contenders, f"H {size}, {depth} overlays",
                       lambda contender, size=size, depth=depth: _measure(
                           contender, _open_metrics(group, size, depth),
                           lambda: _measure_open(bench, sets, contender,
                                                 size, depth)))
    bench.each(group.contenders, f"H {LARGEST}, writes",
               lambda contender: _measure(
                   contender, _write_metrics(group),
                   lambda: _measure_writes(bench, sets, contender)))
    bench.each([contender for contender in group.contenders
                if contender.id != "qemu-nbd"], f"H {LARGEST}, zero",
               lambda contender: _measure(
                   contender, _zero_metrics(group),
                   lambda: _measure_zero(bench, sets, contender)))
    return group
