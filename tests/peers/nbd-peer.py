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
  outside         sends data for an offset outside the request
  status-zero     block status: an extent of no bytes
  status-long     block status: an extent far beyond the request
  status-tiny     block status: as many extents of one byte as fit
  status-none     block status: an answer without extents
  status-error    block status: EIO
  status-twice    block status: two answers
  minimum-odd     a minimum block size that is no power of two
"""

import os
import socket
import struct
import sys
import threading

PATH, SIZE, MODE = sys.argv[1], int(sys.argv[2]), sys.argv[3]

OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = 8, 9, 10
REP_ACK, REP_INFO, REP_META = 1, 3, 4
REP_ERR_UNSUP = 0x80000001
FLAGS = 1 | 2 | 1 << 8                # has flags, read-only, multi-conn
EIO, ESHUTDOWN = 5, 108
CONTEXT = 7


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


def negotiate(s):
    s.sendall(b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3))
    recv_all(s, 4)
    while True:
        _, opt, n = struct.unpack(">QII", recv_all(s, 16))
        data = recv_all(s, n)
        if opt == OPT_STRUCTURED:
            opt_reply(s, opt, REP_ACK)
        elif opt in (OPT_LIST_META, OPT_SET_META):
            opt_reply(s, opt, REP_META,
                      struct.pack(">I", CONTEXT) + b"base:allocation")
            opt_reply(s, opt, REP_ACK)
        elif opt in (OPT_INFO, OPT_GO):
            opt_reply(s, opt, REP_INFO,
                      struct.pack(">HQH", 0, SIZE, FLAGS))
            if MODE == "minimum-odd":
                opt_reply(s, opt, REP_INFO,
                          struct.pack(">HIII", 3, 777, 4096, 1 << 25))
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
    elif MODE == "outside":
        data(s, cookie, offset + count, count)
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
    payload = struct.pack(">I", CONTEXT)
    payload += b"".join(struct.pack(">II", *e) for e in extents)
    if MODE == "status-twice":
        chunk(s, cookie, 5, payload, False)
    chunk(s, cookie, 5, payload)


def serve(s):
    if MODE == "garbage":
        s.sendall(os.urandom(4096))
        return
    if MODE == "silent":
        s.recv(1)
        return
    negotiate(s)
    while True:
        _, _, kind, cookie, offset, count = struct.unpack(
            ">IHHQQI", recv_all(s, 28))
        if kind == 2 or MODE == "drop":
            return
        if MODE == "mute":
            continue
        if kind == 0:
            read(s, cookie, offset, count)
        elif kind == 7:
            status(s, cookie, count)
        else:
            error(s, cookie, 22)


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
