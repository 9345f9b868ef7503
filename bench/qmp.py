# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""A client of a QMP socket: qemu-storage-daemon's, or nbdchain's."""

import json
import socket
import time

from servers import CellError

CONNECT_TIMEOUT = 10            # seconds
POLL = 0.005


class Qmp:
    """One connection to the socket PATH, which may not be there yet."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self._connect(path)
        self.lines = self.sock.makefile("rb")
        self._message()                                 # the greeting
        self.run("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.sock.close()

    def _connect(self, path):
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while True:
            try:
                self.sock.connect(path)
                return
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() > deadline:
                    raise CellError(f"no control socket {path}") from error
                time.sleep(POLL)

    def _message(self):
        line = self.lines.readline()
        if not line:
            raise CellError("the control socket was closed")
        return json.loads(line)

    def run(self, command, **arguments):
        """Run COMMAND; "_" in the name of an argument stands for "-"."""
        self.sock.sendall(json.dumps({
            "execute": command,
            "arguments": {name.replace("_", "-"): value
                          for name, value in arguments.items()}
        }).encode() + b"\n")
        while True:
            message = self._message()
            if "error" in message:
                raise CellError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def job(self, name):
        """What query-block-jobs says of the job NAME, None if it is gone."""
        for job in self.run("query-block-jobs"):
            if job["device"] == name:
                return job
        return None

    def offset(self, name):
        """How far the job NAME has come, which must be at work.  One that
        was resumed just now may still have the status "paused"."""
        job = self.job(name)
        if not job or job["paused"] or \
                job["status"] not in ("created", "running", "paused"):
            raise CellError(f"job {name} does not run: {job}")
        return job["offset"]

    def wait_beyond(self, name, offset):
        """Until the job is beyond OFFSET.  Returns how far it is."""
        while (now := self.offset(name)) <= offset:
            time.sleep(POLL)
        return now

    def wait_for_end(self, name):
        """Of a job with auto-dismiss false; dismiss it."""
        while (job := self.job(name)) and job["status"] != "concluded":
            time.sleep(POLL)
        if not job or "error" in job:
            raise CellError(f"job {name}: {job and job['error']}")
        self.run("job-dismiss", id=name)
