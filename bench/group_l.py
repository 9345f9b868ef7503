# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group L, start: a Linux guest starts from a disk that is far away.

The guest is the one of the tests (scripts/make-guest).  It boots, and
compares every 40th of its files with its digest; the time is from the
start of the server to the end of the guest, so the kernel, which is not
on the disk, is in it, as it is where a guest is used.

Once, a profile of that is recorded, and what the guest reads is logged.
The replay are these reads, in their order and one at a time: the same
for all, and nothing else.
"""

import os
import re
import subprocess
import time

import images
from cells import FEW_ROUNDS
from contenders import BY_ID
from images import Mapped
from servers import CellError
from table import Group

TITLE = "Start of a guest from a remote disk"
CONTENDERS = ["remote", "local", "chain", "copy-on-read", "profile",
              "qsd-cor"]
REFERENCE = BY_ID["remote"]
LOCAL = BY_ID["local"]
PROFILE = BY_ID["profile"]
RECORDER = BY_ID["prefetch"]    # which, told so, changes no request
BOOT_DELAY = 20
REPLAY_DELAY = 5
JOB = "sample:40"
PATIENCE = 200                  # seconds
BOOT = f"{BOOT_DELAY} ms: boot"
REPLAY = f"{REPLAY_DELAY} ms: replay QD1, first pass"

_SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "scripts")
_READ = re.compile(r" Read id=.* offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+) ")


def _run(argv, env=None):
    """Run ARGV.  A script gets the time to end what it has started."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=env,
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    try:
        text, _ = process.communicate(timeout=PATIENCE)
    except BaseException as error:
        process.terminate()
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CellError(f"{argv[0]} did not end") from error
        raise
    if process.returncode:
        raise CellError(f"{argv[0]}: {text.strip()[-300:]}")


class _Guest:
    """The guest's files, and once they are recorded the profile of its
    boot, and its reads: (offset, count)."""

    def __init__(self, bench):
        self.directory = bench.build.guest if bench.build \
            else bench.path("guest")
        _run([os.path.join(_SCRIPTS, "make-guest"), self.directory])
        self.disk = os.path.join(self.directory, "disk.raw")
        self.size = os.path.getsize(self.disk)
        self.profile = bench.path("profile")
        self.reads = []

    def boot(self, server):
        _run([os.path.join(_SCRIPTS, "boot-guest"), "--limit",
              str(PATIENCE - 10), self.directory, server.uri, JOB])

    def replay(self, server):
        with Mapped(self.disk) as data, server.connect() as client:
            for offset, count in self.reads:
                if client.read(offset, count) != \
                        data[offset:offset + count]:
                    raise CellError(f"{server.argv[0]} serves other data "
                                    f"near {offset}")


def _record(bench, guest):
    """Record a boot.  Nothing is prefetched meanwhile."""
    log = bench.path("reads")
    remote = bench.remote(0, guest.size, guest.disk)
    image = bench.sets.over_remote(RECORDER.kind, remote.uri, guest.size)
    server = bench.serve_over(RECORDER, image, remote, more=[
        "prefetch=off", "prefetch-record=true", "--filter=log",
        f"logfile={log}"])
    server.wait_ready()
    guest.boot(server)
    server.stop()
    remote.stop()
    _run([bench.build.cli, "profile", "export", image, guest.profile],
         bench.build.env)
    os.unlink(image)
    with open(log, encoding="utf-8") as lines:
        guest.reads = [(int(read[1], 16), int(read[2], 16))
                       for read in map(_READ.search, lines) if read]


def _serve(bench, guest, contender, remote):
    """Returns (server, its image or None)."""
    if contender is REFERENCE:
        return remote, None
    backing = guest.disk if contender is LOCAL else remote.uri
    image = bench.sets.over_remote(contender.kind, backing, guest.size)
    if contender is PROFILE:
        _run([bench.build.cli, "profile", "import", image, guest.profile],
             bench.build.env)
    if contender is LOCAL:
        return bench.serve(contender, image, [
            f"allow={guest.directory}"]), image
    return bench.serve_over(contender, image, remote), image


def _timed(bench, guest, contender, delay, work):
    """Seconds that work (server) takes, the start of a server in it."""
    remote = bench.remote(delay, guest.size, guest.disk)
    server, image = _serve(bench, guest, contender, remote)
    began = time.monotonic() if server is remote else server.started
    try:
        server.wait_ready()
        work(server)
        elapsed = time.monotonic() - began
        server.stop()
        remote.stop()
    finally:
        for path in images.files_of(image) if image else []:
            os.unlink(path)
    return elapsed


def _measure(bench, group, guest, contender, what):
    name, delay, work = what
    seconds = None
    try:
        seconds = _timed(bench, guest, contender, delay, work)
    finally:
        group.metric(name, "s", "↓").add(contender, seconds)


def run(bench):
    group = Group("L", TITLE, bench.taking_part(CONTENDERS, [REFERENCE]),
                  REFERENCE)
    if not bench.build:
        return group                    # without a profile no replay
    guest = _Guest(bench)
    _record(bench, guest)
    # The remote itself cannot be written, which a guest does.
    for what, without in (((BOOT, BOOT_DELAY, guest.boot), REFERENCE),
                          ((REPLAY, REPLAY_DELAY, guest.replay), LOCAL)):
        bench.each([contender for contender in group.contenders
                    if contender is not without], f"L {what[0]}",
                   lambda contender, what=what:
                   _measure(bench, group, guest, contender, what),
                   FEW_ROUNDS)
    return group
