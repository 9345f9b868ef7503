# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group A, data path: every block is local and in the page cache.

Chains have three layers.  In "spread" each layer owns a random third of
the 64 KiB pieces; in "top" every block is in the active layer, which is
also what the writes go to.  All images are filled by writes of 64 KiB, but
in "top by 1 MiB": the kernel caches what a large write made in large folios,
and a small write into one of them costs several times as much.  The
contenders "data_file" and "compact" have both overlays in that layout.
"""

import fio
import images
from contenders import REFERENCE
from table import Group

TITLE = "Data path, all blocks local, 3 layers"
CONTENDERS = ["file", "file-again", "chain", "data-file", "compact",
              "qemu-nbd", "qemu-nbd-default", "qsd", "qsd-default",
              "qsd-raw", "serve"]
DEFAULT_CONTENDERS = CONTENDERS[:-2]

JOBS = [
    ("spread", fio.Job("4k randread QD32, spread", "randread", "4k", 32)),
    ("top", fio.Job("4k randread QD32, top", "randread", "4k", 32)),
    ("spread", fio.Job("4k randread 4conn×QD8, spread", "randread", "4k",
                       8, connections=4)),
    ("spread", fio.Job("128k seqread QD16, spread", "read", "128k", 16)),
    ("top", fio.Job("128k seqread QD16, top", "read", "128k", 16)),
    ("top", fio.Job("4k randwrite QD32", "randwrite", "4k", 32)),
    ("top", fio.Job("4k randwrite 4conn×QD8", "randwrite", "4k", 8,
                    connections=4)),
    ("top", fio.Job("128k seqwrite QD16", "write", "128k", 16)),
    ("top", fio.Job("4k randwrite QD32 fsync/32", "randwrite", "4k", 32,
                    fsync=32)),
    ("spread", fio.Job("4k randread QD1, spread", "randread", "4k", 1)),
    ("top by 1 MiB", fio.Job("4k randwrite QD32, filled by 1 MiB",
                             "randwrite", "4k", 32)),
]


def _image(bench, contender, shape):
    sets = bench.sets
    make = {"spread": sets.spread, "top": sets.in_top,
            "top by 1 MiB": sets.in_top_by_chunks}[shape]
    return make(contender.kind)


def _metrics(group, job):
    sequential = job.block != "4k"
    rate = group.metric(job.name, "MiB/s" if sequential else "kIOPS", "↑")
    cpu = group.metric(f"{job.name}: server CPU/op", "µs", "↓")
    p99 = group.metric(f"{job.name}: p99", "µs", "↓") \
        if job.depth == 1 else None
    return rate, cpu, p99


def _measure(bench, group, job, shape, contender):
    rate, cpu, p99 = row = _metrics(group, job)
    try:
        image = _image(bench, contender, shape)
        server = bench.serve(contender, image)
        server.wait_ready()
        before = server.counters()
        done = fio.run(job, server.uri, bench.size, bench.seconds)
        cost = fio.cpu_per_op(before, server.counters(), done)
        server.stop()
        if "write" in job.rw:
            images.sync(image)
    except Exception:
        for metric in filter(None, row):
            metric.add(contender, None)
        raise
    rate.add(contender, done.iops / 1e3 if job.block == "4k"
             else done.bytes_per_s / (1 << 20))
    cpu.add(contender, cost)
    if p99:
        p99.add(contender, done.p99_us)


def run(bench):
    ids = CONTENDERS if bench.chosen else DEFAULT_CONTENDERS
    group = Group("A", TITLE, bench.taking_part(ids), REFERENCE)
    for shape, job in JOBS:
        bench.each(group.contenders, f"A {job.name}",
                   lambda contender, job=job, shape=shape:
                   _measure(bench, group, job, shape, contender))
    return group
