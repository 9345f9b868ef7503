# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Run one fio job through its nbd engine and read its JSON."""

import collections
import json
import os
import signal
import subprocess

from servers import CellError

# connections: each has a queue of depth; fsync: a flush every so many
# writes, 0 for none; once: bytes to write, each block at most once,
# instead of a run for a given time; cold: read no block twice, which can
# end the run before its time; rate: bytes a second at most, 0 for no limit.
Job = collections.namedtuple(
    "Job", "name rw block depth connections fsync once cold rate",
    defaults=(1, 0, 0, False, 0))

# p99, p999: completion latency; flush_p99: of the flushes, 0 for none.
Outcome = collections.namedtuple(
    "Outcome", "ops iops bytes_per_s p99_us p999_us flush_p99_us")


def command(job, uri, size, seconds):
    argv = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}",
            "--thread", f"--rw={job.rw}", f"--bs={job.block}",
            f"--iodepth={job.depth}", f"--size={size}",
            f"--numjobs={job.connections}", "--group_reporting",
            "--randseed=20261121", "--output-format=json"]
    if job.fsync:
        argv.append(f"--fsync={job.fsync}")
    if job.rate:
        argv.append(f"--rate={job.rate}")
    if job.once:
        argv.append(f"--io_size={job.once}")
    else:
        argv.append(f"--runtime={round(seconds * 1000)}ms")
        argv += [] if job.cold else ["--time_based"]
    return argv


def run(job, uri, size, seconds):
    """Run JOB.  fio's threads share one process, so one kill ends it."""
    process = subprocess.Popen(
        command(job, uri, size, seconds), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    try:
        out, err = process.communicate(timeout=seconds + 120)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CellError("fio did not end") from error
        raise
    if process.returncode:
        raise CellError(f"fio: {(err or out).strip()[-300:]}")
    return parse(out)


def parse(text):
    """fio puts messages of its engines before the JSON."""
    start = text.find("{\n")
    if start == -1:
        raise CellError(f"fio printed no JSON: {text.strip()[-300:]}")
    job = json.loads(text[start:])["jobs"][0]
    if job["error"]:
        raise CellError(f"fio reports error {job['error']}")
    done = job["read"] if job["read"]["total_ios"] else job["write"]
    if not done["total_ios"]:
        raise CellError("fio did no operation")
    return Outcome(done["total_ios"], done["iops"], done["bw_bytes"],
                   _percentile_us(done["clat_ns"], "99.000000"),
                   _percentile_us(done["clat_ns"], "99.900000"),
                   _percentile_us(job["sync"]["lat_ns"], "99.000000"))


def _percentile_us(latency, which):
    return latency.get("percentile", {}).get(which, 0) / 1e3


def cpu_per_op(before, after, outcome):
    """Microseconds of server CPU for an operation."""
    if before.pids != after.pids:
        raise CellError("the server's processes changed during the run")
    return (after.cpu_ns - before.cpu_ns) / 1e3 / outcome.ops
