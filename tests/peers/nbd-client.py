#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors

"""NBD clients that misbehave, while an honest one works and counts.

usage: nbd-client.py SOCKET ATTACK [--stay]

ATTACK is a function below.  With --stay its connections are kept until the
server ends.  The honest client writes and reads blocks of its
own all the while; it may lose its connection (a server may die of an attack,
if another one takes its place) but never a write that was acknowledged.  It
has to get on during the attack, or the exit code is 1.

The misbehaving clients use blocks below HONEST, and write nothing but "x".
"""

import os
import random
import socket
import struct
import sys
import threading
import time

PATH, ATTACK = sys.argv[1], sys.argv[2]
PATIENCE = 120

SIZE = 64 << 20                         # of the disk
HONEST = 32 << 20                       # the honest client's blocks are here
BLOCK = 4096

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA = 1
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 5, 22, 28, 75, 95
ESHUTDOWN = 108

HANDSHAKE = struct.pack(">I", 3) + \
    struct.pack(">QII", 0x49484156454F5054, 8, 0) + \
    struct.pack(">QIIIH", 0x49484156454F5054, 7, 6, 0, 0)


def connect():
    """A socket that the server has not greeted yet; waits for a server."""
    end = time.monotonic() + PATIENCE
    while True:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(PATIENCE)
        try:
            s.connect(PATH)
            return s
        except OSError:
            s.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def receive(s, n):
    data = b""
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def shake_hands(s):
    receive(s, 18)
    s.sendall(HANDSHAKE)
    done = 0
    while done < 2:                     # two options, each ends with an ack
        _, _, kind, n = struct.unpack(">QIII", receive(s, 20))
        receive(s, n)
        if kind & 1 << 31:
            raise EOFError
        done += kind == 1
    return s


def ready():
    """A connection that is ready for requests; waits for another server in the
    place of one that dies meanwhile."""
    end = time.monotonic() + PATIENCE
    while True:
        s = connect()
        try:
            return shake_hands(s)
        except (OSError, EOFError):
            s.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def send(s, kind, offset, count, flags=0, data=b"", cookie=1, magic=0x25609513):
    s.sendall(struct.pack(">IHHQQI", magic, flags, kind, cookie, offset,
                          count) + data)


def reply(s):
    """The error of the next reply, and its data."""
    data = b""
    while True:
        magic = struct.unpack(">I", receive(s, 4))[0]
        if magic == 0x67446698:
            return struct.unpack(">IQ", receive(s, 12))[0], data
        flags, kind, _, n = struct.unpack(">HHQI", receive(s, 16))
        payload = receive(s, n)
        if kind & 1 << 15:
            return struct.unpack(">I", payload[:4])[0], data
        data += payload[8:]
        if flags & 1:
            return 0, data


class Honest(threading.Thread):
    """Writes block after block, each time with something new, reads it back
    and sometimes flushes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopping = False
        self.steps = 0
        self.lost = 0                   # connections
        self.why = None
        self.blocks = {}                # acknowledged
        self.sent = {}                  # and maybe done

    def run(self):
        try:
            while not self.stopping:
                try:
                    self.work(ready())
                except (OSError, EOFError):
                    self.lost += 1
        except Exception as e:          # told by the main thread
            self.why = repr(e)

    def work(self, s):
        rnd = random.Random(self.lost)
        with s:
            for at in list(self.blocks):
                self.verify(s, at)
            while not self.stopping:
                at = HONEST + rnd.randrange(256) * BLOCK
                data = struct.pack(">QQ", self.steps + 1, at) * (BLOCK // 16)
                self.sent[at] = data
                send(s, WRITE, at, BLOCK, 0, data)
                self.expect_done(reply(s)[0], "write")
                self.blocks[at] = data
                self.verify(s, at)
                if self.steps % 16 == 0:
                    send(s, FLUSH, 0, 0)
                    self.expect_done(reply(s)[0], "flush")
                self.steps += 1

    def verify(self, s, at):
        send(s, READ, at, BLOCK)
        err, data = reply(s)
        self.expect_done(err, "read")
        if data not in (self.blocks[at], self.sent[at]):
            raise AssertionError("an acknowledged write is lost at %d" % at)

    def expect_done(self, err, what):
        if err == ESHUTDOWN:            # of a connection that is given up
            raise EOFError
        if err:
            raise AssertionError("a %s failed with %d" % (what, err))

    def advances(self, n=20):
        """Wait until it has done that many steps more."""
        end = time.monotonic() + PATIENCE
        want = self.steps + n
        while self.steps < want:
            if self.why or time.monotonic() > end:
                raise AssertionError("the honest client does not get on: %s"
                                     % self.why)
            time.sleep(0.005)


# The attacks.  Each gets the honest client, and sees to it that it gets on.

def half_handshakes(honest):
    """Hang up after each byte of the handshake, and after none; some stay."""
    stay = []
    for n in range(len(HANDSHAKE) + 1):
        s = connect()
        s.sendall(HANDSHAKE[:n])
        if n % 4 == 0:
            stay.append(s)
        else:
            s.close()
    honest.advances()
    return stay


def garbage(honest):
    """Noise in place of the handshake, of an option, and of a request."""
    rnd = random.Random(1)
    for i in range(60):
        s = ready() if i % 3 == 0 else connect()
        try:
            s.sendall((HANDSHAKE[:4] if i % 3 == 1 else b"") +
                      rnd.randbytes(rnd.randrange(1, 5000)))
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except OSError:
            pass
        s.close()
    honest.advances()


def options(honest):
    """Options that claim to be huge, are unknown, or contradict themselves."""
    for option, n, data in (
            (7, 0xFFFFFFFF, b""), (7, 6, b"\xff" * 6), (7, 5, b"\0" * 5),
            (7, 100, struct.pack(">I", 0xFFFFFFFF) + bytes(96)),
            (7, 10, struct.pack(">I", 0) + b"\xff\xff" + bytes(4)),
            (10, 8, b"\0\0\0\0\xff\xff\xff\xff"), (10, 4, b"\xff" * 4),
            (1, 5000, b"n" * 5000), (999, 10, bytes(10)), (3, 7, bytes(7)),
            (5, 3, b"tls"), (8, 9, b"structure")):
        s = connect()
        try:
            receive(s, 18)
            s.sendall(HANDSHAKE[:4] + struct.pack(
                ">QII", 0x49484156454F5054, option, n) + data)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except (OSError, EOFError):
            pass
        s.close()
    honest.advances()


def absurd(honest):
    """Requests that make no sense: each is refused, or the connection is
    ended, and a connection that is not goes on to work."""
    top = 0xFFFFFFFFFFFFFFFF
    requests = [
        (READ, 0, 0xFFFFFFFF, 0), (READ, 0, (64 << 20) + 1, 0),
        (READ, SIZE, 1, 0), (READ, SIZE - 1, 2, 0), (READ, top, 1, 0),
        (READ, top - 4095, 4096, 0), (READ, 1 << 63, 4096, 0),
        (READ, 0, 0, 0), (READ, 0, 512, 0xFFFF),
        (ZEROES, 0, 0, 0), (ZEROES, SIZE - 1, 0xFFFFFFFF, 0),
        (ZEROES, top, 0xFFFFFFFF, 0), (ZEROES, 0, 512, 0xFF00),
        (TRIM, 0, 0, 0), (TRIM, SIZE, 512, 0), (TRIM, top - 1, 512, 0),
        (CACHE, 0, 0, 0), (CACHE, SIZE - 5, 6, 0), (CACHE, 0, 512, FUA << 7),
        (STATUS, 0, 0, 0), (STATUS, 0, 4096, 0), (STATUS, SIZE, 1, 0),
        (FLUSH, 512, 512, 0), (FLUSH, 0, 0, 0x8000),
        (8, 0, 512, 0), (99, 0, 512, 0), (0xFFFF, top, 0xFFFFFFFF, 0xFFFF),
    ]
    for request in requests:
        with ready() as s:
            send(s, *request)
            try:
                err, _ = reply(s)
                assert err in (EPERM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP), \
                    (request, err)
                send(s, READ, 0, 512)
                assert reply(s)[0] == 0, request
            except (OSError, EOFError):
                pass
    for count, data in ((0, b""), (0xFFFFFFFF, b"x" * 100000)):
        with ready() as s:
            try:
                send(s, WRITE, 0, count, 0, data)
                s.shutdown(socket.SHUT_WR)
                assert reply(s)[0] != 0
            except (OSError, EOFError):
                pass
    with ready() as s:
        send(s, READ, 0, 512, magic=0x12345678)
        try:
            assert reply(s)[0] != 0
        except (OSError, EOFError):
            pass
    honest.advances()


def cut_writes(honest):
    """Hang up in the middle of a write, after more and more bytes."""
    for n in list(range(28)) + [28 + i * 131 for i in range(64)]:
        s = ready()
        message = struct.pack(">IHHQQI", 0x25609513, FUA, WRITE, 1, 0,
                              2 * BLOCK) + b"x" * 2 * BLOCK
        s.sendall(message[:n])
        s.close()
    honest.advances()


def unread(honest):
    """Many large reads, of which no reply is ever received."""
    stay = []
    for _ in range(8):
        s = ready()
        s.setblocking(False)
        try:
            for i in range(5000):
                s.send(struct.pack(">IHHQQI", 0x25609513, 0, READ, i,
                                   i % 30 << 20, 1 << 20))
        except BlockingIOError:
            pass
        stay.append(s)
        honest.advances(5)
    honest.advances()
    return stay


def vanish(honest):
    """Connect, ask for much, and hang up at once, again and again."""
    for i in range(100):
        s = ready()
        try:
            for k in range(1 + i % 32):
                send(s, READ, k << 20, 1 << 16, cookie=k)
            s.close()
        except (OSError, EOFError):
            pass                        # the server died of the one before
    honest.advances()


def owed(honest):
    """Leave with many replies under way: hang up, ask nonsense, stop in the
    middle of a request or of the data of a write, take no more replies."""
    ends = (lambda s: None,
            lambda s: s.sendall(bytes(28)),
            lambda s: s.sendall(struct.pack(">IHHQ", 0x25609513, 0, READ, 1)),
            lambda s: send(s, WRITE, 0, 2 * BLOCK, 0, b"x" * BLOCK),
            lambda s: send(s, WRITE, 0, 0xFFFFFFFF, 0, b"x" * BLOCK),
            lambda s: s.shutdown(socket.SHUT_RD))
    for i in range(120):
        with ready() as s:
            try:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                for k in range(64):
                    send(s, READ, k << 16, 1 << 18, cookie=k)
                if i % 3 > 0:
                    reply(s)
                ends[i % len(ends)](s)
                if i % 4 == 0:
                    s.shutdown(socket.SHUT_WR)
            except (OSError, EOFError):
                pass                    # the server has ended it
    honest.advances()
    assert honest.lost == 0, honest.lost


def greedy(honest):
    """As many of the largest reads as a connection can have under way, of
    which no reply is received."""
    stay = []
    for _ in range(2):
        s = ready()
        s.setblocking(False)
        try:
            for i in range(200):
                send(s, READ, 0, 60 << 20, cookie=i)
        except BlockingIOError:
            pass
        stay.append(s)
    # One that takes its replies gets on beside them.
    with ready() as s:
        for i in range(3):
            send(s, READ, 0, 32 << 20, cookie=i)
            assert reply(s)[0] == 0
    honest.advances()
    return stay


def late(honest):
    """Ten handshakes that do not end, each at another step.  The server ends
    them, and others are served meanwhile."""
    stay = []
    for i in range(10):
        s = connect()
        s.sendall(HANDSHAKE[:i * 2])
        stay.append(s)
    honest.advances()
    for s in stay:
        try:
            while s.recv(65536):
                pass
        except OSError:
            pass
        s.close()


def loiter(honest):
    """More handshakes that do not end than connections may be open.  Each
    new client is served all the same, and none that was is ended."""
    stay = [connect() for _ in range(100)]
    for _ in range(10):
        with ready() as s:
            send(s, READ, 0, 512)
            assert reply(s)[0] == 0
        stay.append(connect())
    honest.advances()
    assert honest.lost == 0, honest.lost
    return stay


def crowd(honest):
    """200 connections at a time, all of them idle, and one more that works."""
    stay = []
    for _ in range(200):
        stay.append(ready())
    honest.advances()
    with ready() as s:
        send(s, READ, 0, 512)
        assert reply(s)[0] == 0
    return stay


def refused(honest):
    """200 connections, most of which are one too many."""
    stay = []
    lost = 0
    for _ in range(200):
        try:
            stay.append(shake_hands(connect()))
        except (OSError, EOFError):
            lost += 1
    assert lost >= 50, lost
    honest.advances()
    return stay


def main():
    honest = Honest()
    honest.start()
    honest.advances()
    stay = globals()[ATTACK](honest)
    print("done, %d connections lost" % honest.lost, flush=True)
    if "--stay" in sys.argv:
        while os.path.exists(PATH):
            time.sleep(0.01)
        return 0
    # All the others hang up, which an nbdkit may die of.
    for s in stay or []:
        s.close()
    honest.advances()
    honest.stopping = True
    honest.join(PATIENCE)
    assert honest.why is None, honest.why
    return 0


sys.exit(main())
