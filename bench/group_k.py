# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group K, manners: what a guest feels of a job, and the job of a guest.

The guest reads 4 KiB at a time, at random, from the part of the disk that
is local.  Meanwhile a job brings in the rest, a stream or prefetching: so
much that it does not end while anything is measured.  What the guest may
feel is the larger of a factor and of an addend to the p99 of the same
server without the job; that is measured before and after, for the machine
may be busier at one time than at another.

In the last column there is no job: fio reads the remote at the rate that
prefetching is to keep at least, and throws away what it reads.  That shows
what a reader that does not stand back costs the guest, with the remote's
server on the same machine and nothing stored.
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
CONTENDERS = ["qsd", "chain", "prefetch", "reads"]
REFERENCE = BY_ID["qsd"]
DELAYS = (5, 0)
SIZE = 16 << 30                 # of the disk
LOCAL = 64 << 20                # of it, from its start
GUEST = fio.Job("4k randread QD1", "randread", "4k", 1)
READS = fio.Job("reads", "read", "64k", 16)
LIMIT = 32 << 20                # bytes per second
LIMIT_SECONDS = 2
SETTLE_SECONDS = 0.3            # the slice it is set in, and what is in flight
LONGER = 2                      # than other cells: a p99 of few is noise
LOOK_SECONDS = 0.05             # from one look at the job to the next
LEAVE_SECONDS = 0.3             # that fio takes to start, or end, at most
KEEPS = 0.25                    # of its rate, that a job has alone
# What the p99 may be: times what it was, or so many microseconds more.
STREAM_MAY = 2, 100
PREFETCH_MAY = 1.5, 60


def allowed(delay):
    return f"{delay} ms: p99 beside the job, of what it may be"


def kept(delay):
    return f"{delay} ms: rate of the job beside the guest, of alone"


def alone(delay):
    return f"{delay} ms: rate of the job alone"


def off(delay):
    return f"{delay} ms: rate of the job at 32 MiB/s, off by"


def _metrics(group, delay):
    return [group.metric(*row) for row in (
        (f"{delay} ms: p99 without the job", "µs", "↓"),
        (f"{delay} ms: p99 beside the job", "µs", "↓"),
        (allowed(delay), "×", "↓"),
        (alone(delay), "MiB/s", "↑"),
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
    return fio.run(GUEST, server.uri, LOCAL, _seconds(bench)).p99_us


def _rate(qmp, job, seconds):
    """Bytes a second by which JOB goes on, from one step to another."""
    start = qmp.wait_beyond(job, qmp.offset(job))
    began = time.monotonic()
    time.sleep(seconds)
    end = qmp.wait_beyond(job, qmp.offset(job))
    return (end - start) / (time.monotonic() - began)


def _beside(bench, server, qmp, job):
    """Returns (the guest's p99, bytes a second by which JOB goes on while
    the guest reads).

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
    return p99, (now - start) / (ended - began)


class _Job:
    """What is brought in while the guest reads.  Made before anything of
    the disk is local."""

    name = None

    def __init__(self, qmp):
        self.qmp = qmp

    def start(self):
        raise NotImplementedError

    def beside_guest(self, bench, server):
        """The guest's p99, and the job's figures as the metrics have
        them."""
        self.start()
        self.qmp.wait_beyond(self.name, LOCAL)
        rate = _rate(self.qmp, self.name, bench.seconds)
        p99, beside = _beside(bench, server, self.qmp, self.name)
        self.qmp.run("block-job-set-speed", device=self.name, speed=LIMIT)
        time.sleep(SETTLE_SECONDS)
        limited = _rate(self.qmp, self.name, LIMIT_SECONDS)
        self.qmp.run("block-job-cancel", device=self.name, force=True)
        return p99, rate / (1 << 20), beside / rate, abs(limited / LIMIT - 1)


class _Stream(_Job):
    name = "stream"

    def start(self):
        self.qmp.run("block-stream", device="disk", job_id=self.name)


class _Prefetch(_Job):
    """It began with the server, and is held until it is wanted."""

    name = "prefetch"

    def __init__(self, qmp):
        super().__init__(qmp)
        qmp.run("job-pause", id=self.name)

    def start(self):
        self.qmp.run("job-resume", id=self.name)


class _Reads:
    """No job: reads of REMOTE, so many bytes a second."""

    def __init__(self, remote, rate):
        self.remote = remote
        self.job = READS._replace(rate=round(rate))

    def beside_guest(self, bench, server):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reads = pool.submit(fio.run, self.job, self.remote.uri, SIZE,
                                _seconds(bench) + 3 * LEAVE_SECONDS)
            time.sleep(LEAVE_SECONDS)
            p99 = _guest(bench, server)
        reads.result()
        return (p99,)


def _job(contender, group, delay, remote, qmp):
    if contender.id == "reads":
        rates = group.metrics[alone(delay)].got("prefetch")
        if not rates:
            raise CellError("prefetching has no rate to read at a part of")
        return _Reads(remote, rates[-1] * (1 << 20) * KEEPS)
    return (_Prefetch if contender.id == "prefetch" else _Stream)(qmp)


def _measure_server(bench, server, job):
    factor, addend = STREAM_MAY if isinstance(job, _Stream) else PREFETCH_MAY
    _fill(server)
    before = _guest(bench, server)
    p99, *of_job = job.beside_guest(bench, server)
    without = (before + _guest(bench, server)) / 2
    return (without, p99, p99 / max(without * factor, without + addend),
            *of_job)


def _measure_one(bench, group, contender, delay):
    remote = bench.remote(delay, SIZE)
    image = bench.sets.over_remote(contender.kind, remote.uri, SIZE)
    try:
        server = bench.serve_over(contender, image, remote, control=True)
        server.wait_ready()
        with Qmp(bench.path("control")) as qmp:
            job = _job(contender, group, delay, remote, qmp)
            values = _measure_server(bench, server, job)
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
        values = _measure_one(bench, group, contender, delay)
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
