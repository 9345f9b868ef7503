# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group J, stream: bring a remote disk into an overlay, until durable.

The remote is nbdkit with a delay before every read; all of its disk is
data.  nbdcopy and qemu-img convert, which write a plain raw file, run with
the settings that were the best of those tried at 0 and 20 ms.  QEMU's block-stream is
one request after the other: it gets a smaller disk where that takes
long, which does not change its rate.
"""

import os
import subprocess
import time

import images
import servers
from cells import FEW_ROUNDS
from contenders import BY_ID, peer
from qmp import Qmp
from servers import CellError
from table import Group

TITLE = "Stream a remote disk, until durable"
CONTENDERS = ["nbdcopy", "convert", "stream", "qsd-stream"]
REFERENCE = BY_ID["nbdcopy"]
DELAYS = (20, 5, 0)
SIZE = 512 << 20
# By delay: a part of the disk for QEMU.
SERIAL_PART = {20: 8, 5: 4, 0: 1}
PATIENCE = 300                  # seconds


def name(delay):
    return f"stream at {delay} ms"


def _metrics(group, delay):
    return (group.metric(name(delay), "MiB/s", "↑"),
            group.metric(f"{name(delay)}: remote bytes per byte", "×", "↓"))


def _run(argv, env=None):
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, env=env,
                            capture_output=True, text=True, check=False,
                            timeout=PATIENCE)
    if result.returncode:
        raise CellError(f"{argv[0]}: {result.stderr.strip()[-300:]}")


def _nbdcopy(_bench, remote, image):
    _run([*peer("nbdcopy"), "--flush", "-C", "8", "--request-size=1048576",
          remote.uri, image])


def _convert(_bench, remote, image):
    _run([*peer("qemu-img"), "convert", "-m", "16", "-W", "-f", "raw",
          "-O", "raw", remote.uri, image])


def _stream(bench, remote, image):
    _run([bench.build.cli, "stream", "--allow", remote.uri, image],
         bench.build.env)


def _qsd_stream(bench, _remote, image):
    """A server is running already, as it is where this is used."""
    with Qmp(bench.path("control")) as qmp:
        qmp.run("block-stream", device="disk", job_id="j",
                auto_dismiss=False)
        qmp.wait_for_end("j")


_HOW = {"nbdcopy": _nbdcopy, "convert": _convert, "stream": _stream, "qsd-stream": _qsd_stream}


def _timed(bench, contender, remote, image):
    """Returns the seconds until all is in IMAGE and durable."""
    server = None
    if contender.id == "qsd-stream":
        server = bench.serve_over(contender, image, remote, control=True)
        server.wait_ready()
    began = time.monotonic()
    _HOW[contender.id](bench, remote, image)
    images.sync(image)
    elapsed = time.monotonic() - began
    if server:
        server.stop()
    return elapsed


def _size(bench, contender, delay):
    size = min(SIZE, bench.size)
    return size // SERIAL_PART[delay] if contender.id == "qsd-stream" \
        else size


def _check(bench, contender, image, size):
    """IMAGE, by itself, must hold the disk."""
    server = bench.serve_kind(contender.kind, image)
    bench.sets.compare(server, size)
    server.stop()


def _measure_one(bench, contender, delay, check):
    size = _size(bench, contender, delay)
    remote = bench.remote(delay, size, bench.sets.flat())
    image = bench.sets.over_remote(contender.kind, remote.uri, size)
    try:
        before = servers.bytes_read(remote.pid)
        elapsed = _timed(bench, contender, remote, image)
        fetched = servers.bytes_read(remote.pid) - before
        remote.stop()
        if check:
            _check(bench, contender, image, size)
    finally:
        os.unlink(image)
    return size / elapsed / (1 << 20), fetched / size


def _measure(bench, group, contender, delay):
    metrics = _metrics(group, delay)
    values = None, None
    first = contender.id not in metrics[0].values
    try:
        values = _measure_one(bench, contender, delay, first)
    finally:
        for metric, value in zip(metrics, values):
            metric.add(contender, value)


def run(bench):
    group = Group("J", TITLE, bench.taking_part(CONTENDERS, [REFERENCE]),
                  REFERENCE)
    bench.sets.flat()
    for delay in DELAYS:
        bench.each(group.contenders, f"J {name(delay)}",
                   lambda contender, delay=delay:
                   _measure(bench, group, contender, delay), FEW_ROUNDS)
    return group
