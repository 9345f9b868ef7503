# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group K, manners: what a guest feels of a job, and the job of a guest.

The guest reads 4 KiB at a time, at random, from the part of the disk that
is local.  Meanwhile a job brings in the rest, a stream or, in the last
column, prefetching: so much that it does not end while anything is
measured.  What the guest may feel is the larger of a factor and of an
addend to the p99 of the same server without the job.
"""

import concurrent.futures
import os
import time

import fio
import images
from cells import FEW_ROUNDS
from contenders import BY_ID
from images import PIECE
from qmp import Qmp
from servers import CellError
from table import Group

TITLE = "Guest reads of local data while a job runs"
CONTENDERS = ["qsd", "chain", "prefetch"]
REFERENCE = BY_ID["qsd"]
DELAYS = (5, 0)
SIZE = 16 << 30                 # of the disk
LOCAL = 64 << 20                # of it, from its start
JOB = fio.Job("4k randread QD1", "randread", "4k", 1)
LIMIT = 32 << 20                # bytes per second
LIMIT_SECONDS = 2
SETTLE_SECONDS = 0.3            # the slice it is set in, and what is in flight
LONGER = 2                      # than other cells: a p99 of few is noise
LOOK_SECONDS = 0.05             # from one look at the job to the next
LEAVE_SECONDS = 0.3             # that fio takes to end, at most
# What the p99 may be: times what it was, or so many microseconds more.
STREAM_MAY = 2, 100
PREFETCH_MAY = 1.5, 60


def allowed(delay):
    return f"{delay} ms: p99 beside the job, of what it may be"


def kept(delay):
    return f"{delay} ms: rate of the job beside the guest, of alone"


def off(delay):
    return f"{delay} ms: rate of the job at 32 MiB/s, off by"


def _metrics(group, delay):
    return [group.metric(*row) for row in (
        (f"{delay} ms: p99 without the job", "µs", "↓"),
        (f"{delay} ms: p99 beside the job", "µs", "↓"),
        (allowed(delay), "×", "↓"),
        (f"{delay} ms: rate of the job alone", "MiB/s", "↑"),
        (kept(delay), "×", "↑"),
        (off(delay), "×", "↓"))]


def _fill(server):
    """Make the start of the disk local."""
    data = os.urandom(PIECE)
    with server.connect() as client:
        for offset in range(0, LOCAL, PIECE):
            client.write(offset, data)
        client.flush()


def _seconds(bench):
    """How long the guest reads."""
    return max(bench.seconds * LONGER, 2 * LEAVE_SECONDS)


def _guest(bench, server):
    return fio.run(JOB, server.uri, LOCAL, _seconds(bench)).p99_us


class _Stream:
    """A stream that has yet to be started."""

    name = "stream"

    def __init__(self, qmp):
        self.qmp = qmp

    def start(self):
        self.qmp.run("block-stream", device="disk", job_id=self.name)


class _Prefetch:
    """Prefetching began with the server: it is held until it is wanted."""

    name = "prefetch"

    def __init__(self, qmp):
        self.qmp = qmp
        qmp.run("job-pause", id=self.name)

    def start(self):
        self.qmp.run("job-resume", id=self.name)


def _alone(qmp, job, seconds):
    """Bytes a second by which JOB goes on, from one step to another."""
    start = qmp.wait_beyond(job, qmp.offset(job))
    began = time.monotonic()
    time.sleep(seconds)
    end = qmp.wait_beyond(job, qmp.offset(job))
    return (end - start) / (time.monotonic() - began)


def _beside(bench, server, qmp, job):
    """Returns (bytes a second by which JOB goes on while the guest reads,
    the guest's p99).

    fio takes a while to start, in which the guest is idle, so what counts is
    found from its end."""
    looks = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        guest = pool.submit(_guest, bench, server)
        while not guest.done():
            looks.append((time.monotonic(), qmp.offset(job)))
            time.sleep(LOOK_SECONDS)
        end = time.monotonic()
    p99 = guest.result()
    looks = [look for look in looks
             if LEAVE_SECONDS < end - look[0] < _seconds(bench)]
    if len(looks) < 2:
        raise CellError("the guest read for too short a time to take a rate")
    (began, start), (ended, now) = looks[0], looks[-1]
    return (now - start) / (ended - began), p99


def _during_job(bench, server, qmp, job):
    """Returns (rate without a guest, with one, its p99, rate with a
    limit)."""
    qmp.wait_beyond(job, LOCAL)
    alone = _alone(qmp, job, bench.seconds)
    beside, p99 = _beside(bench, server, qmp, job)
    qmp.run("block-job-set-speed", device=job, speed=LIMIT)
    time.sleep(SETTLE_SECONDS)
    limited = _alone(qmp, job, LIMIT_SECONDS)
    return alone, beside, p99, limited


def _measure_server(bench, contender, server):
    prefetch = contender.id == "prefetch"
    factor, addend = PREFETCH_MAY if prefetch else STREAM_MAY
    with Qmp(bench.path("control")) as qmp:
        job = (_Prefetch if prefetch else _Stream)(qmp)
        _fill(server)
        before = _guest(bench, server)
        job.start()
        alone, beside, p99, limited = _during_job(bench, server, qmp,
                                                  job.name)
        qmp.run("block-job-cancel", device=job.name, force=True)
    return (before, p99, p99 / max(before * factor, before + addend),
            alone / (1 << 20), beside / alone, abs(limited / LIMIT - 1))


def _measure_one(bench, contender, delay):
    remote = bench.remote(delay, SIZE)
    image = bench.sets.over_remote(contender.kind, remote.uri, SIZE)
    try:
        server = bench.serve_over(contender, image, remote, control=True)
        server.wait_ready()
        values = _measure_server(bench, contender, server)
        server.stop()
        remote.stop()
    finally:
        for path in images.files_of(image):
            os.unlink(path)
    return values


def _measure(bench, group, contender, delay):
    metrics = _metrics(group, delay)
    values = [None] * len(metrics)
    try:
        values = _measure_one(bench, contender, delay)
    finally:
        for metric, value in zip(metrics, values):
            metric.add(contender, value)


def run(bench):
    group = Group("K", TITLE, bench.taking_part(CONTENDERS, [REFERENCE]),
                  REFERENCE)
    for delay in DELAYS:
        bench.each(group.contenders, f"K {delay} ms",
                   lambda contender, delay=delay:
                   _measure(bench, group, contender, delay), FEW_ROUNDS)
    return group
