# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Start and stop the servers, and read what they cost.

A server is a process with its descendants, since `nbdchain serve` runs
nbdkit as a child.  Every server started here is stopped by stop_all,
which the program calls however it ends.
"""

import collections
import os
import signal
import subprocess
import time

from contenders import uri
from nbdclient import Client, NbdError

START_TIMEOUT = 30              # seconds
STOP_TIMEOUT = 30

Counters = collections.namedtuple("Counters", "pids cpu_ns")
Written = collections.namedtuple("Written", "syscalls pages")

_running = []


class CellError(Exception):
    """One measurement failed.  The others go on."""


def _stat_fields(pid):
    """Fields of /proc/PID/stat from the state on: [0] state, [1] ppid."""
    with open(f"/proc/{pid}/stat", encoding="ascii",
              errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()


def _children():
    children = collections.defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(_stat_fields(name)[1])
            except OSError:
                continue
            children[parent].append(int(name))
    return children


def process_tree(pid):
    """PID and all its descendants."""
    children = _children()
    tree = [pid]
    for member in tree:
        tree += children[member]
    return tree


def _cpu_ns(pid):
    """User and system time of all threads, also of those that ended.

    This is utime + stime of /proc/PID/stat, read from the process's CPU
    clock, where it has nanoseconds instead of ticks of 10 ms.
    """
    return time.clock_gettime_ns(((~pid) << 3) | 2)


def _written(pid):
    """wchar and write_bytes of /proc/PID/io."""
    fields = {}
    with open(f"/proc/{pid}/io", encoding="ascii") as io:
        for line in io:
            key, value = line.split(":")
            fields[key] = int(value)
    return Written(fields["wchar"],
                   fields["write_bytes"] - fields["cancelled_write_bytes"])


def bytes_read(pid):
    """rchar of /proc/PID/io: from files, not from sockets by recv."""
    with open(f"/proc/{pid}/io", encoding="ascii") as io:
        for line in io:
            if line.startswith("rchar:"):
                return int(line.split()[1])
    return 0


def _rss_anon(pid):
    with open(f"/proc/{pid}/status", encoding="ascii",
              errors="replace") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _pss_shmem(pid):
    """What PID maps of memfds and of memory shared with others, in
    proportion to how many map it.  Not in RssAnon."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        for line in rollup:
            if line.startswith("Pss_Shmem:"):
                return int(line.split()[1]) * 1024
    return 0


class Server:
    """One running server.  log: file that takes what it prints."""

    def __init__(self, argv, socket, export, log, env=None):
        self.argv = argv
        self.socket = socket
        self.export = export
        self.log = log
        self.uri = uri(socket, export)
        if os.path.exists(socket):
            os.unlink(socket)
        self.started = time.monotonic()
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, env=env)
        self.pid = self.process.pid
        _running.append(self)

    def connect(self):
        """Connect, waiting until the server listens."""
        deadline = self.started + START_TIMEOUT
        while True:
            try:
                return Client(self.socket, self.export)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                self._check_alive()
                if time.monotonic() > deadline:
                    raise CellError(f"{self.argv[0]} does not listen") \
                        from error
                time.sleep(0.0001)
            except (NbdError, OSError) as error:
                self._check_alive()
                raise CellError(f"{self.argv[0]}: {error}") from error

    def _check_alive(self):
        if self.process.poll() is not None:
            with open(self.log, encoding="utf-8", errors="replace") as log:
                text = log.read().strip()[-300:]
            raise CellError(f"{self.argv[0]} ended with status "
                            f"{self.process.returncode}: {text}")

    def wait_ready(self):
        with self.connect():
            pass

    def first_read(self, offset=0):
        """Milliseconds from the start of the process to the first byte."""
        with self.connect() as client:
            client.read(offset, 4096)
            return (time.monotonic() - self.started) * 1e3

    def counters(self):
        pids = process_tree(self.pid)
        return Counters(pids, sum(_cpu_ns(pid) for pid in pids))

    def written(self):
        """Written so far by the server, while it runs."""
        counts = [_written(pid) for pid in process_tree(self.pid)]
        return Written(*map(sum, zip(*counts)))

    def rss_anon(self):
        return sum(_rss_anon(pid) for pid in process_tree(self.pid))

    def memory(self):
        """All that is its own: RssAnon, and the memfds that it maps."""
        return self.rss_anon() + sum(_pss_shmem(pid)
                                     for pid in process_tree(self.pid))

    def stop(self):
        """Stop it.  Returns what it wrote in all its life.

        The counters are read from the process after its end and before
        it is reaped, so what it writes while closing is included; those
        of a child that it has reaped are included by the kernel.
        """
        if self not in _running:
            return None
        self._check_alive()
        tree = process_tree(self.pid)
        self.process.terminate()
        killed = not self._wait_for_end()
        if killed:
            _kill(tree)
            self._wait_for_end()
        written = _written(self.pid)
        self._reap(tree)
        if killed:
            raise CellError(f"{self.argv[0]} did not stop on SIGTERM")
        return written

    def _wait_for_end(self):
        deadline = time.monotonic() + STOP_TIMEOUT
        options = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, self.pid, options) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def _reap(self, tree):
        self.process.wait()
        _kill(pid for pid in tree[1:] if _in_session(pid, self.pid))
        _running.remove(self)
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def kill(self):
        """Stop it at once, whatever state it is in."""
        if self in _running:
            tree = process_tree(self.pid)
            _kill(tree)
            self._reap(tree)


def _in_session(pid, session):
    try:
        return int(_stat_fields(pid)[3]) == session
    except OSError:
        return False


def _kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def stop_all():
    for server in list(_running):
        server.kill()
