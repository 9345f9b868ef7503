# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group B, first write: into an empty overlay over a full base.

The reference writes the same blocks into a fresh sparse file, so it
pays the file system's allocation too; "overwriting" does not pay it.
Each block is written at most once.  Before each row the reference runs
once uncounted: memory that a virtual machine has not used before makes
the first large write slow.  The row with flushes is long enough for the
journal to wrap: a checkpoint that made the guest wait would show in its
latencies, most of all with the small journal.
"""

import os

import fio
import images
import machine
from contenders import REFERENCE
from table import Group

TITLE = "First write into an empty overlay"
CONTENDERS = ["file", "file-again", "overwrite", "chain", "serve",
              "small-journal", "qsd", "qsd-extl2"]

JOBS = [
    fio.Job("4k randwrite QD16", "randwrite", "4k", 16, once=128 << 20),
    fio.Job("4k randwrite QD16 fsync/32", "randwrite", "4k", 16, fsync=32,
            once=64 << 20),
    fio.Job("64k seqwrite QD16", "write", "64k", 16, once=768 << 20),
]


def _metrics(group, job):
    bytes_of = "bytes written per byte, "
    rate = group.metric(job.name, "kIOPS" if job.block == "4k" else
                        "MiB/s", "↑")
    latencies = [("p99", "µs"), ("p99.9", "µs")]
    if job.fsync:
        latencies.append(("p99 of a flush", "µs"))
    return rate, [
        group.metric(f"{job.name}: {what}", unit, "↓")
        for what, unit in (*latencies, ("server CPU/op", "µs"),
                           (bytes_of + "system calls", "×"),
                           (bytes_of + "pages", "×"),
                           (bytes_of + "disk", "×"))]


def _latencies(job, done):
    flush = [done.flush_p99_us] if job.fsync else []
    return [done.p99_us, done.p999_us, *flush]


def _write(bench, job, contender, image):
    """Run JOB.  Returns (outcome, CPU per operation, bytes per byte at
    system calls, in pages, on the disk)."""
    os.sync()
    server = bench.serve(contender, image)
    server.wait_ready()
    disk = machine.sectors_written(image)
    wrote = server.written()
    before = server.counters()
    done = fio.run(job, server.uri, bench.size, bench.seconds)
    cost = fio.cpu_per_op(before, server.counters(), done)
    after = server.stop()
    images.sync(image)
    payload = done.ops * int(job.block[:-1]) * 1024
    return (done, cost, (after.syscalls - wrote.syscalls) / payload,
            (after.pages - wrote.pages) / payload,
            machine.sectors_since(image, disk, payload))


def _write_fresh(bench, job, contender):
    job = job._replace(once=min(job.once, bench.size * 3 // 4))
    image = bench.sets.fresh(contender.kind)
    try:
        return _write(bench, job, contender, image)
    finally:
        bench.sets.discard(image)


def _measure(bench, group, job, contender):
    rate, costs = _metrics(group, job)
    try:
        done, *counted = _write_fresh(bench, job, contender)
    except Exception:
        for metric in (rate, *costs):
            metric.add(contender, None)
        raise
    rate.add(contender, done.iops / 1e3 if job.block == "4k"
             else done.bytes_per_s / (1 << 20))
    for metric, value in zip(costs, (*_latencies(job, done), *counted)):
        metric.add(contender, value)


def _contenders(group, job):
    """A small journal differs only where there are flushes."""
    return [contender for contender in group.contenders
            if job.fsync or contender.id != "small-journal"]


def run(bench):
    group = Group("B", TITLE, bench.taking_part(CONTENDERS), REFERENCE)
    bench.sets.flat()
    bench.sets.base()
    for job in JOBS:
        _write_fresh(bench, job, REFERENCE)
        bench.each(_contenders(group, job), f"B {job.name}",
                   lambda contender, job=job:
                   _measure(bench, group, job, contender))
    return group
