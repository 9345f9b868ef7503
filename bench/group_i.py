# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group I, copy-on-read: reading an overlay whose data is remote.

The remote is nbdkit with a delay before every read; all of its disk is
data.  Each cell reads blocks that were never read before, from an empty
overlay.  What the remote's server read of its file meanwhile, also for
read-ahead, is compared with what the client read.  Small random reads go
on for some seconds, since a read brings its neighbourhood along for later
ones: in the first second next to none of them comes to where one was.
`nbdkit nbd` only passes requests on, and stores nothing: it shows what a
server between a client and the remote costs on this machine.

For the second pass a part of the disk is read once, in order, and then
4 KiB reads go to that part; `nbdkit file` serves the same from a local
file, and is how fast it could be.
"""

import os

import fio
import servers
from cells import FEW_ROUNDS
from contenders import BY_ID
from table import Group

TITLE = "Copy-on-read of a remote disk"
CONTENDERS = ["remote", "proxy", "cow", "cache", "copy-on-read", "qsd-cor"]
REFERENCE = BY_ID["remote"]
PROXY = BY_ID["proxy"]
LOCAL = BY_ID["file"]
SEQUENTIAL = fio.Job("128k seqread QD1", "read", "128k", 1, cold=True)
SEQUENTIAL_8 = fio.Job("128k seqread QD8", "read", "128k", 8, cold=True)
RANDOM = fio.Job("4k randread QD8", "randread", "4k", 8, cold=True)
JOBS = [(20, SEQUENTIAL), (20, SEQUENTIAL_8), (20, RANDOM),
        (5, SEQUENTIAL), (5, RANDOM), (0, SEQUENTIAL), (0, RANDOM)]
# Than other cells: reading ahead grows, and so does what is there already.
LONGER = 2
LONGER_RANDOM = 7

SECOND_DELAY = 20
SECOND_SIZE = 16 << 20
SECOND = fio.Job("second pass", "randread", "4k", 8)
FIRST = fio.Job("first pass", "read", "128k", 16, once=SECOND_SIZE)


def name(delay, job):
    return f"{delay} ms: {job.name}"


def remote_bytes(delay, job):
    return f"{name(delay, job)}: remote bytes per byte"


def _metrics(group, delay, job):
    sequential = job.block != "4k"
    return (group.metric(name(delay, job), "MiB/s" if sequential
                         else "kIOPS", "↑"),
            group.metric(remote_bytes(delay, job), "×", "↓"))


def _serve(bench, contender, remote):
    """Returns (server, the overlay or None)."""
    if contender is REFERENCE:
        return remote, None
    if contender.kind == "raw":
        return bench.serve_over(contender, None, remote), None
    image = bench.sets.over_remote(contender.kind, remote.uri, bench.size)
    return bench.serve_over(contender, image, remote), image


def _with_server(bench, contender, delay, measure):
    """Returns measure (server, remote) of CONTENDER over a remote."""
    remote = bench.remote(delay, bench.size, bench.sets.flat())
    server, image = _serve(bench, contender, remote)
    try:
        server.wait_ready()
        return measure(server, remote)
    finally:
        server.stop()
        remote.stop()
        if image:
            os.unlink(image)


def _cold(bench, job, server, remote):
    before = servers.bytes_read(remote.pid)
    longer = LONGER_RANDOM if job is RANDOM else LONGER
    done = fio.run(job, server.uri, bench.size, bench.seconds * longer)
    fetched = servers.bytes_read(remote.pid) - before
    rate = done.iops / 1e3 if job.block == "4k" \
        else done.bytes_per_s / (1 << 20)
    return rate, fetched / (done.ops * int(job.block[:-1]) * 1024)


def _measure(bench, group, contender, delay, job):
    values = None, None
    try:
        values = _with_server(bench, contender, delay,
                              lambda server, remote:
                              _cold(bench, job, server, remote))
    finally:
        for metric, value in zip(_metrics(group, delay, job), values):
            metric.add(contender, value)


def _twice(bench, server):
    size = min(SECOND_SIZE, bench.size)
    fio.run(FIRST, server.uri, size, bench.seconds)
    return fio.run(SECOND, server.uri, size, bench.seconds).iops / 1e3


def _measure_second(bench, group, contender):
    rate = None
    try:
        if contender is LOCAL:
            server = bench.serve(contender, bench.sets.flat())
            rate = _twice(bench, server)
            server.stop()
        else:
            rate = _with_server(bench, contender, SECOND_DELAY,
                                lambda server, _: _twice(bench, server))
    finally:
        group.metric(name(SECOND_DELAY, SECOND), "kIOPS",
                     "↑").add(contender, rate)


def run(bench):
    group = Group("I", TITLE,
                  bench.taking_part([*CONTENDERS, LOCAL.id],
                                    (REFERENCE, LOCAL)), REFERENCE)
    over_remote = [contender for contender in group.contenders
                   if contender is not LOCAL]
    bench.sets.flat()
    for delay, job in JOBS:
        bench.each(over_remote, f"I {name(delay, job)}",
                   lambda contender, delay=delay, job=job:
                   _measure(bench, group, contender, delay, job), FEW_ROUNDS)
    bench.each([contender for contender in group.contenders
                if contender not in (REFERENCE, PROXY)],
               f"I {name(SECOND_DELAY, SECOND)}",
               lambda contender: _measure_second(bench, group, contender),
               FEW_ROUNDS)
    return group
