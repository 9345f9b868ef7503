# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""A small NBD client, in the standard library: one request at a time,
but where it zeros.

It fills images, compares what a server serves with a file, and times
the first read and the zeroing of a whole disk.  Nothing whose throughput
is reported goes through it.
"""

import socket
import struct

NBD_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
OPT_EXPORT_NAME = 1
FLAG_C_FIXED_NEWSTYLE = 1
FLAG_C_NO_ZEROES = 2
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_WRITE_ZEROES = 0, 1, 2, 3, 6
ZERO_MAX = (1 << 32) - (1 << 21)        # aligned, and fits into 32 bits
IN_FLIGHT = 16


class NbdError(Exception):
    """The server hung up, broke the protocol or failed a request."""


def _header(command, offset, count):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, 0, offset,
                       count)


class Client:
    """One connection to EXPORT of the server that listens on PATH."""

    def __init__(self, path, export=""):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        try:
            self.sock.connect(path)
            self.size = self._handshake(export.encode())
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._request(CMD_DISC, 0, 0)
        except OSError:
            pass
        self.sock.close()

    def _receive(self, count):
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self.sock.recv_into(view)
            if got == 0:
                raise NbdError("the server closed the connection")
            view = view[got:]
        return data

    def _handshake(self, export):
        magic, option_magic, _ = struct.unpack(">QQH", self._receive(18))
        if (magic, option_magic) != (NBD_MAGIC, OPTION_MAGIC):
            raise NbdError("not a newstyle NBD server")
        self.sock.sendall(struct.pack(
            ">IQII", FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES,
            OPTION_MAGIC, OPT_EXPORT_NAME, len(export)) + export)
        size, _ = struct.unpack(">QH", self._receive(10))
        return size

    def _request(self, command, offset, count, payload=b""):
        self.sock.sendall(_header(command, offset, count) + payload)

    def _reply(self):
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC:
            raise NbdError("bad magic in a reply")
        if error:
            raise NbdError(f"the server answered with error {error}")

    def read(self, offset, count):
        self._request(CMD_READ, offset, count)
        self._reply()
        return self._receive(count)

    def write(self, offset, data):
        self._request(CMD_WRITE, offset, len(data), bytes(data))
        self._reply()

    def zero_all(self):
        """Zero the whole disk by requests as large as can be, IN_FLIGHT
        of them at any time."""
        starts = range(0, self.size, ZERO_MAX)
        for number, start in enumerate(starts):
            if number >= IN_FLIGHT:
                self._reply()
            self._request(CMD_WRITE_ZEROES, start,
                          min(ZERO_MAX, self.size - start))
        for _ in range(min(IN_FLIGHT, len(starts))):
            self._reply()

    def flush(self):
        self._request(CMD_FLUSH, 0, 0)
        self._reply()
