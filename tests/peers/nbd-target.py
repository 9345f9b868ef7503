#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors

"""An NBD server that takes writes and misbehaves in one way.

usage: nbd-target.py SOCKET SIZE MODE [LOG]

The export is in memory, all zeros at first.  SOCKET is a path; or "tcp", then
the port is written to LOG.  What is done is written to LOG, a line each.  Modes:

  honest        nothing wrong; several connections may be used
  simple        no structured replies, one connection
  bare          the same, and neither flush, FUA, trim nor write zeroes
  error=N       answers changes with the error N
  simple-error=N
                the same without structured replies
  small-zero    answers zeroing of more than 32 MiB with EOVERFLOW
  flush-error   answers the first flush with EIO
  fua-error     answers the first write with FUA with EIO
  late-flush    takes half a second for a flush
  slow-flush    takes 11 seconds for a flush
  sip           takes a write, of up to 32 KiB, every 400 ms, and answers
                sixteen at a time
  reverse       answers writes four at a time, the last first
  accept=N      takes N connections and then listens no more
  data          answers writes with data
  status        answers writes with block status
  cookie        answers writes with another cookie
  chunk         answers writes with a chunk of an unknown type
  cut-request   honest on every second connection until a trim; on the others
                hangs up when it has read 1, 27, ... bytes of a write
  cut-reply     the same when it has made the write and sent 0, 1, ... bytes
                of the reply
  cut-simple    the same without structured replies
"""

import itertools
import os
import socket
import struct
import sys
import threading
import time

PATH, SIZE, MODE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
LOG = sys.argv[4] if len(sys.argv) > 4 else os.devnull

OPT_ABORT, OPT_INFO, OPT_GO, OPT_STRUCTURED = 2, 6, 7, 8
OPT_LIST_META, OPT_SET_META = 9, 10
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 0x80000001
READ, WRITE, DISC, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6
FUA = 1
EIO, EOVERFLOW = 5, 75
FLAGS = 1 | 4 | 8 | 32 | 64           # all but read-only and multi-conn
if MODE == "bare":
    FLAGS = 1
elif MODE in ("honest", "accept=2"):
    FLAGS |= 256
STRUCTURED = not MODE.startswith(("simple", "bare", "cut-simple"))
CUT_REQUEST = [1, 27, 28, 29, 2000, 28 + 4095]
CUT_REPLY = [0, 1, 4, 15, 19] if STRUCTURED else [0, 1, 4, 15]
N_CUTS = len(CUT_REQUEST if MODE == "cut-request" else CUT_REPLY)

HELD = {"reverse": 4, "sip": 16}

disk = bytearray(SIZE)
log_lock = threading.Lock()
log_file = open(LOG, "a", buffering=1, encoding="ascii")
connections = itertools.count()
flushes = itertools.count()
durable_writes = itertools.count()


def log(*words):
    with log_lock:
        print(*words, file=log_file)


class Cut:
    """A socket that hangs up when it has received or sent LEFT bytes."""

    def __init__(self, s, receive, send):
        self.s, self.left, self.receive = s, receive, receive
        self.send = send

    def recv(self, n):
        if self.left is None:
            return self.s.recv(n)
        data = self.s.recv(min(n, self.left)) if self.left else b""
        self.left -= len(data)
        return data

    def sendall(self, data):
        if self.send is None:
            self.s.sendall(data)
            return
        self.s.sendall(data[:self.send])
        raise EOFError


def recv_all(s, n):
    data = bytearray()
    while len(data) < n:
        if MODE == "sip" and n > 4096:
            time.sleep(0.4)
        part = s.recv(min(n - len(data), 32768))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def opt_reply(s, opt, kind, data=b""):
    s.sendall(struct.pack(">QIII", 0x3E889045565A9, opt, kind, len(data))
              + data)


def negotiate(s):
    s.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    recv_all(s, 4)
    while True:
        _, opt, n = struct.unpack(">QII", recv_all(s, 16))
        recv_all(s, n)
        if opt == OPT_STRUCTURED and STRUCTURED:
            opt_reply(s, opt, REP_ACK)
        elif opt in (OPT_LIST_META, OPT_SET_META) and STRUCTURED:
            opt_reply(s, opt, REP_ACK)
        elif opt in (OPT_INFO, OPT_GO):
            opt_reply(s, opt, REP_INFO, struct.pack(">HQH", 0, SIZE, FLAGS))
            opt_reply(s, opt, REP_ACK)
            if opt == OPT_GO:
                return
        elif opt == OPT_ABORT:
            opt_reply(s, opt, REP_ACK)
            raise EOFError
        else:
            opt_reply(s, opt, REP_ERR_UNSUP)


def chunk(cookie, kind, data=b""):
    return struct.pack(">IHHQI", 0x668E33EF, 1, kind, cookie, len(data)) + data


def reply(kind, cookie, offset, data, error):
    """The bytes of an answer; DATA is that of a read."""
    if kind == WRITE and MODE == "data":
        return chunk(cookie, 1, struct.pack(">Q", offset) + bytes(4096))
    if kind == WRITE and MODE == "status":
        return chunk(cookie, 5, struct.pack(">III", 1, 4096, 0))
    if kind == WRITE and MODE == "cookie":
        return chunk(cookie ^ 0x1000, 0)
    if kind == WRITE and MODE == "chunk":
        return chunk(cookie, 77)
    if not STRUCTURED:
        return struct.pack(">IIQ", 0x67446698, error, cookie) + data
    if error:
        return chunk(cookie, 0x8001, struct.pack(">IH", error, 0))
    if data:
        return chunk(cookie, 1, struct.pack(">Q", offset) + data)
    return chunk(cookie, 0)


def error_of(kind, flags, count):
    if "error=" in MODE and kind != READ:
        return int(MODE.split("=")[1])
    if MODE == "small-zero" and kind == ZERO and count > 32 << 20:
        return EOVERFLOW
    if MODE == "flush-error" and kind == FLUSH and next(flushes) == 0:
        return EIO
    if (MODE == "fua-error" and kind == WRITE and flags & FUA and
            next(durable_writes) == 0):
        return EIO
    return 0


def perform(number, kind, flags, offset, count, data):
    """Do what is asked.  Returns the error and the data of a read."""
    names = {READ: "read", WRITE: "write", FLUSH: "flush", TRIM: "trim",
             ZERO: "zero"}
    error = error_of(kind, flags, count)
    log(number, names[kind], offset, count, flags)
    if kind == FLUSH:
        time.sleep({"late-flush": 0.5, "slow-flush": 11}.get(MODE, 0))
    if error or offset + count > SIZE:
        return error or 22, b""
    if kind == READ:
        return 0, bytes(disk[offset:offset + count])
    if kind == WRITE:
        disk[offset:offset + count] = data
    elif kind == ZERO:
        disk[offset:offset + count] = bytes(count)
    return 0, b""


def requests(s):
    while True:
        _, flags, kind, cookie, offset, count = struct.unpack(
            ">IHHQQI", recv_all(s, 28))
        if kind == DISC:
            return
        yield (kind, flags, offset, count,
               recv_all(s, count) if kind == WRITE else b"", cookie)


def serve(s, number):
    negotiate(s)
    log(number, "begin")
    cut = MODE.startswith("cut-")
    if cut and number % 2 and number // 2 < N_CUTS:
        point = number // 2
        if MODE == "cut-request":
            s = Cut(s, CUT_REQUEST[point], None)
        else:
            s = Cut(s, None, CUT_REPLY[point])
    held = []
    for kind, flags, offset, count, data, cookie in requests(s):
        error, got = perform(number, kind, flags, offset, count, data)
        held.append(reply(kind, cookie, offset, got, error))
        if kind == WRITE and len(held) < HELD.get(MODE, 0):
            continue
        for answer in reversed(held):
            s.sendall(answer)
        held = []
        if cut and kind == TRIM:
            return


def client(s, number):
    try:
        serve(s, number)
    except (EOFError, OSError):
        pass
    s.close()
    log(number, "end")


def listen():
    if PATH != "tcp":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(PATH)
    else:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    if PATH == "tcp":
        log("port", listener.getsockname()[1])
    return listener


def main():
    listener = listen()
    limit = int(MODE.split("=")[1]) if MODE.startswith("accept=") else None
    for number in connections:
        if number == limit:
            os.unlink(PATH)
            listener.close()
            threading.Event().wait()
        s, _ = listener.accept()
        threading.Thread(target=client, args=(s, number), daemon=True).start()


main()
