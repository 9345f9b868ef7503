#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors

"""An NBD server that misbehaves in one way, to see that the client holds.

usage: nbd-peer.py SOCKET SIZE MODE

Every byte of the export is 0x55.  It speaks newstyle with structured
replies and base:allocation, says that many connections may be used, and
except for its MODE is honest:

  honest          nothing wrong
  silent          accepts, and never says anything
  garbage         sends noise in place of the greeting
  mute            answers no request
  drop            closes the connection on the first request
  eio             answers reads with EIO
  eshutdown       answers reads with ESHUTDOWN
  short           sends half of the data, and says that it is all
  twice           sends the first half of the data twice
  scattered       sends the second half of the data first, which it may
  outside         sends data for an offset outside the request
  status-zero     block status: an extent of no bytes
  status-long     block status: an extent far beyond the request
  status-tiny     block status: as many extents of one byte as fit
  status-none     block status: an answer without extents
  status-mute     block status: no answer
  status-error    block status: EIO
  status-twice    block status: two answers
  minimum-odd     a minimum block size that is no power of two
  minimum-huge    a minimum block size of 2 GiB
  maximum-small   a maximum block size below the minimum
  eio-some        answers reads in the second 64 KiB with EIO
  cookie          answers with another cookie
  unasked         sends a reply that nobody asked for, before any request
  magic           replies with a wrong magic number
  simple          simple replies, though structured ones were agreed on
  none            answers reads with success and no data
  unknown         a chunk of an unknown type
  chunk-long      a chunk of 4 GiB less one
  hole-outside    a hole outside the request
  hole-long       a hole of 4 GiB less one
  error-long      an error with a message of 65535 bytes, which it sends
  error-lie       an error whose message is longer than its chunk
  error-zero      an error with the number 0
  error-offset    an error at an offset outside the request
  read-status     answers reads with block status
  status-read     answers block status with data
  status-context  block status: another context
  status-flags    block status: all flags there are, and some more
  status-odd      block status: half an extent
  option-other    answers another option than the one asked
  option-long     an answer to an option that claims to have 4 GiB less one
  option-flood    endless answers to the first option
  info-short      information about the export that is too short
  meta-many       ten thousand metadata contexts
  drip            a byte of the handshake every 50 ms
  drip-reply      a byte of a reply every 50 ms
  cut-handshake   hangs up after a byte, after two bytes, ... of the handshake
  cut-reply       honest on every second connection, for one request; on the
                  others hangs up after a byte, after two, ... of the reply
"""

import itertools
import os
import socket
import struct
import sys
import threading
import time

PATH, SIZE, MODE = sys.argv[1], int(sys.argv[2]), sys.argv[3]

OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = 8, 9, 10
REP_ACK, REP_INFO, REP_META = 1, 3, 4
REP_ERR_UNSUP = 0x80000001
FLAGS = 1 | 2 | 1 << 8                # has flags, read-only, multi-conn
if MODE == "cut-reply":
    FLAGS = 1 | 2                     # one connection after the other
EIO, ESHUTDOWN = 5, 108
CONTEXT = 7
HUGE = 0xFFFFFFFF


class Cut:
    """A socket that sends LEFT bytes and then hangs up."""

    def __init__(self, s, left):
        self.s, self.left = s, left
        self.recv, self.close = s.recv, s.close

    def sendall(self, data):
        self.s.sendall(data[:self.left])
        if len(data) > self.left:
            raise EOFError
        self.left -= len(data)


class Drip:
    """A socket that sends a byte at a time."""

    def __init__(self, s):
        self.s = s
        self.recv, self.close = s.recv, s.close

    def sendall(self, data):
        for i in range(len(data)):
            self.s.sendall(data[i:i + 1])
            time.sleep(0.05)


def recv_all(s, n):
    data = b""
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def opt_reply(s, opt, kind, data=b""):
    s.sendall(struct.pack(">QIII", 0x3E889045565A9, opt, kind, len(data))
              + data)


BLOCK_SIZES = {
    "minimum-odd": (777, 4096, 1 << 25),
    "minimum-huge": (1 << 31, 1 << 31, HUGE),
    "maximum-small": (4096, 512, 1024),
}


def negotiate(s):
    s.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    recv_all(s, 4)
    while True:
        _, opt, n = struct.unpack(">QII", recv_all(s, 16))
        data = recv_all(s, n)
        if MODE == "option-other":
            opt_reply(s, opt + 1, REP_ACK)
        elif MODE == "option-long":
            s.sendall(struct.pack(">QIII", 0x3E889045565A9, opt, REP_ACK,
                                  HUGE) + bytes(1 << 20))
        elif MODE == "option-flood":
            while True:
                opt_reply(s, opt, REP_INFO, struct.pack(">HQH", 0, SIZE, FLAGS))
        elif opt == OPT_STRUCTURED:
            opt_reply(s, opt, REP_ACK)
        elif opt in (OPT_LIST_META, OPT_SET_META):
            for i in range(10000 if MODE == "meta-many" else 0):
                opt_reply(s, opt, REP_META,
                          struct.pack(">I", i) + b"x:%d" % i)
            opt_reply(s, opt, REP_META,
                      struct.pack(">I", CONTEXT) + b"base:allocation")
            opt_reply(s, opt, REP_ACK)
        elif opt in (OPT_INFO, OPT_GO):
            opt_reply(s, opt, REP_INFO,
                      struct.pack(">HQH", 0, SIZE, FLAGS))
            if MODE in BLOCK_SIZES:
                opt_reply(s, opt, REP_INFO,
                          struct.pack(">HIII", 3, *BLOCK_SIZES[MODE]))
            if MODE == "info-short":
                opt_reply(s, opt, REP_INFO, struct.pack(">HI", 0, 1))
            opt_reply(s, opt, REP_ACK)
            if opt == OPT_GO:
                return
        elif opt == OPT_ABORT:
            opt_reply(s, opt, REP_ACK)
            raise EOFError
        else:
            del data
            opt_reply(s, opt, REP_ERR_UNSUP)


def chunk(s, cookie, kind, data=b"", last=True):
    s.sendall(struct.pack(">IHHQI", 0x668E33EF, int(last), kind, cookie,
                          len(data)) + data)


def error(s, cookie, code):
    chunk(s, cookie, 0x8001, struct.pack(">IH", code, 0))


def data(s, cookie, offset, count, last=True):
    chunk(s, cookie, 1, struct.pack(">Q", offset) + b"\x55" * count, last)


def read(s, cookie, offset, count):
    half = count // 2
    if MODE == "eio":
        error(s, cookie, EIO)
    elif MODE == "eshutdown":
        error(s, cookie, ESHUTDOWN)
    elif MODE == "short":
        data(s, cookie, offset, half)
    elif MODE == "twice":
        data(s, cookie, offset, half, False)
        data(s, cookie, offset, count - half)
    elif MODE == "scattered":
        data(s, cookie, offset + half, count - half, False)
        data(s, cookie, offset, half)
    elif MODE == "outside":
        data(s, cookie, offset + count, count)
    elif MODE == "eio-some" and offset < 128 << 10 and offset + count > 64 << 10:
        error(s, cookie, EIO)
    elif MODE == "cookie":
        data(s, cookie ^ 0x1000, offset, count)
    elif MODE == "magic":
        s.sendall(struct.pack(">IHHQI", 0x12345678, 1, 0, cookie, 0))
    elif MODE == "simple":
        s.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + b"\x55" * count)
    elif MODE == "none":
        chunk(s, cookie, 0)
    elif MODE == "unknown":
        chunk(s, cookie, 77, b"what", False)
        data(s, cookie, offset, count)
    elif MODE == "chunk-long":
        s.sendall(struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, cookie, HUGE,
                              offset) + b"\x55" * (1 << 20))
    elif MODE in ("hole-outside", "hole-long"):
        chunk(s, cookie, 2, struct.pack(
            ">QI", offset + (count if MODE == "hole-outside" else 0),
            count if MODE == "hole-outside" else HUGE))
    elif MODE == "error-long":
        chunk(s, cookie, 0x8001, struct.pack(">IH", EIO, 65535) +
              b"\x1b[31m\n%s" * 9362 + b"x")
    elif MODE == "error-lie":
        chunk(s, cookie, 0x8001, struct.pack(">IH", EIO, 65535) + b"short")
    elif MODE == "error-zero":
        error(s, cookie, 0)
    elif MODE == "error-offset":
        chunk(s, cookie, 0x8002, struct.pack(">IHQ", EIO, 0, 1 << 63))
    elif MODE == "read-status":
        chunk(s, cookie, 5, struct.pack(">III", CONTEXT, count, 0))
    else:
        data(s, cookie, offset, count)


def status(s, cookie, count):
    extents = [(count, 3)]
    if MODE == "status-zero":
        extents = [(0, 3), (count, 3)]
    elif MODE == "status-long":
        extents = [(4096, 0), (0xFFFFFFFF, 3), (0xFFFFFFFF, 0)]
    elif MODE == "status-tiny":
        extents = [(1, 3 * (i & 1)) for i in range(min(count, 200000))]
    elif MODE == "status-none":
        chunk(s, cookie, 0)
        return
    elif MODE == "status-error":
        error(s, cookie, EIO)
        return
    elif MODE == "status-read":
        data(s, cookie, 0, 4096)
        return
    elif MODE == "status-flags":
        extents = [(4096, HUGE - 3), (count, HUGE - 3)]
    payload = struct.pack(">I", CONTEXT ^ (MODE == "status-context"))
    payload += b"".join(struct.pack(">II", *e) for e in extents)
    if MODE == "status-odd":
        payload = payload[:-4]
    if MODE == "status-twice":
        chunk(s, cookie, 5, payload, False)
    chunk(s, cookie, 5, payload)


connections = itertools.count()
# All of the header, then here and there up to the last byte but one.
cut_points = list(range(30)) + list(range(30, 539, 37)) + [539]


def serve(s):
    if MODE == "garbage":
        s.sendall(os.urandom(4096))
        return
    if MODE == "silent":
        s.recv(1)
        return
    n = next(connections)
    if MODE == "cut-handshake":
        s = Cut(s, n)
    elif MODE == "drip":
        s = Drip(s)
    negotiate(s)
    if MODE == "unasked":
        data(s, 12345, 0, 512)
    elif MODE == "drip-reply":
        s = Drip(s)
    elif MODE == "cut-reply" and n % 2:
        s = Cut(s, cut_points[min(n // 2, len(cut_points) - 1)])
    while True:
        _, _, kind, cookie, offset, count = struct.unpack(
            ">IHHQQI", recv_all(s, 28))
        if kind == 2 or MODE == "drop":
            return
        if MODE == "mute" or (MODE == "status-mute" and kind == 7):
            continue
        if kind == 0:
            read(s, cookie, offset, count)
        elif kind == 7:
            status(s, cookie, count)
        else:
            error(s, cookie, 22)
        if MODE == "cut-reply":
            return


def client(s):
    try:
        serve(s)
    except (EOFError, OSError):
        pass
    s.close()


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(PATH)
    listener.listen(16)
    while True:
        s, _ = listener.accept()
        threading.Thread(target=client, args=(s,), daemon=True).start()


main()
