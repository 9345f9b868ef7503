#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors

"""Stop processes of a run of the tests at random and let them go on, as a
busy machine does: what a test takes for granted and does not wait for shows.

usage: jitter.py RUN MILLISECONDS

RUN is NBDCHAIN_TEST_RUN of the run; MILLISECONDS is how long a stop takes at
most.  Ends when it is told to (SIGTERM), and leaves nothing stopped.
"""

import os
import random
import signal
import sys
import time

PER_SECOND = 20                 # stops
LOOK_EVERY = 0.15               # seconds: for new processes
AT_A_TIME = (1, 1, 1, 2, 4)     # processes, one of these


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""              # it has ended


class Processes:
    """Those of the run, as they come and go."""

    def __init__(self, run):
        self.mark = b"NBDCHAIN_TEST_RUN=" + os.fsencode(run) + b"."
        self.ids = []
        self.looked = 0

    def is_ours(self, pid):
        environ = read(f"/proc/{pid}/environ").split(b"\0")
        return any(e.startswith(self.mark) for e in environ)

    def some(self):
        if time.monotonic() - self.looked > LOOK_EVERY:
            self.ids = [int(name) for name in os.listdir("/proc")
                        if name.isdigit() and self.is_ours(name)]
            self.looked = time.monotonic()
        n = min(random.choice(AT_A_TIME), len(self.ids))
        return random.sample(self.ids, n)


def is_untouchable(pid):
    """Stopped by a test, a debugger or us, or gone; or run by script, which
    stops with what it runs, and waits for a shell to let it go on."""
    state, parent, *_ = read(f"/proc/{pid}/stat").rpartition(b") ")[2] \
        .split() or (b"", b"")
    return state in (b"T", b"t", b"") or \
        read(f"/proc/{int(parent)}/comm") == b"script\n"


def send(pid, sig):
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


def stop_for(pids, seconds):
    stopped = []
    try:
        for pid in pids:
            if not is_untouchable(pid):
                stopped.append(pid)
                send(pid, signal.SIGSTOP)
        time.sleep(seconds)
    finally:
        for pid in stopped:
            send(pid, signal.SIGCONT)


def main():
    _, run, milliseconds = sys.argv
    processes = Processes(run)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    while True:
        # Short ones most often.
        stop_for(processes.some(),
                 random.random() ** 3 * float(milliseconds) / 1000)
        time.sleep(random.expovariate(PER_SECOND))


main()
