#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors

"""Fail the Nth operation on a file, N = 1, 2, ... until a scenario gets
through without, and judge each run.

usage: faults.py [--list] [--all] [--every N] [--seed N] [--only N]
                 SCENARIO...

A scenario is a row of DISKS (requests to nbdkit with the plugin) or of TOOLS
(one nbdchain command).  fault.so makes the operations fail; see fault.c.

Of a run with a disk these must be true:

  - the request during which an operation fails, fails with the errno that
    fits, and every other one succeeds; a disk whose sync failed takes no
    write and no flush any more, says so, and can be read;
  - what is read is what was written; where a write failed, old or new;
  - the server is killed, and one that goes on with its memory has every
    acknowledged write, and if a sync has failed takes no new one;
  - one without the memory has what was flushed, and the check finds no fault.

Each N is tried with EIO.  Where all later operations fail, too, and with
ENOSPC, it is every second or fourth, from one that the seed chooses; --all
tries all, and --every N takes one of N.  Cut transfers and EINTR must not be noticed, so there all operations
are hit in one run.
"""

import argparse
import errno
import mmap
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import nbd

READ, WRITE, DURABLE, SYNC, ALLOCATE = 1, 2, 4, 8, 16
TRUNCATE, OPEN, NAME, MEMORY, SEEK = 32, 64, 128, 256, 512
EVERYTHING = 1023
CHANGES = WRITE | DURABLE | SYNC | ALLOCATE | TRUNCATE | OPEN | NAME
TRANSFERS = READ | WRITE | DURABLE
KINDS = {1: "read", 2: "write", 4: "durable write", 8: "sync",
         16: "allocate", 32: "truncate", 64: "open", 128: "name",
         256: "memory", 512: "seek"}
FOREVER = 1 << 62
PATIENCE = 300                          # seconds that a server may take
JOBS = 2                                # scenarios at a time
LIMIT = 2000                            # a scenario without an end

SIZE = 256 * 1024
K = 1024
COMPACT = ("--compact", "--grow-unit", "1M")
NBDCHAIN = os.environ["NBDCHAIN"]
PRELOAD = [p for p in (os.environ.get("NBDCHAIN_PRELOAD"),
                       os.environ["NBDCHAIN_FAULT"]) if p]


class Control:
    """What fault.so shares with us."""

    def __init__(self, path):
        with open(path, "wb") as f:
            f.truncate(4096)
        with open(path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 4096)
        self.off()

    def set(self, mask, at, n=1, every=1, error=errno.EIO):
        self.map[0:64] = bytes(64)
        struct.pack_into("=5Q", self.map, 0, mask, at, n, every, error)

    def off(self):
        self.set(0, 0)

    def failures(self):
        return struct.unpack_from("=Q", self.map, 48)[0]

    def kinds(self):
        return struct.unpack_from("=Q", self.map, 56)[0]


class Model:
    """What a disk may be read as."""

    def __init__(self, content):
        self.now = bytearray(content)
        self.flushed = bytearray(content)
        self.since = []                 # written, and not flushed yet
        self.failed = []                # may have been written

    def write(self, offset, data):
        self.now[offset:offset + len(data)] = data
        self.since.append((offset, data))

    def write_durably(self, offset, data):
        self.write(offset, data)
        self.flushed[offset:offset + len(data)] = data

    def may_write(self, offset, data):
        self.failed.append((offset, data))

    def flush(self):
        self.flushed[:] = self.now
        self.since = []

    def judge(self, got, durable_only):
        """Whether GOT can be what is there now, or after a crash."""
        want = self.flushed if durable_only else self.now
        others = self.failed + (self.since if durable_only else [])
        if durable_only and self.failed:
            others = others + [(0, bytes(self.now))]
        for i in range(0, len(want), 512):
            if got[i:i + 512] == want[i:i + 512]:
                continue
            for b in range(i, min(i + 512, len(want))):
                if got[b] != want[b] and not any(
                        o <= b < o + len(d) and d[b - o] == got[b]
                        for o, d in others):
                    raise Wrong("byte %d is %#x, and not %#x%s" % (
                        b, got[b], want[b],
                        " as flushed" if durable_only else ""))


class Wrong(Exception):
    pass


class Server:
    """An nbdkit with one connection, over a socket pair."""

    def __init__(self, image, memory=None, args=()):
        ours, theirs = socket.socketpair()
        env = dict(os.environ, LD_PRELOAD=":".join(PRELOAD))
        keep = [] if memory is None else ["memory=%d" % memory]
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.messages = ""
        self.hung = False
        self.process = subprocess.Popen(
            [os.environ["NBDKIT"], "-s", os.environ["NBDCHAIN_PLUGIN"],
             image] + keep + list(args),
            stdin=theirs, stdout=theirs, stderr=self.errors, env=env,
            pass_fds=[] if memory is None else [memory])
        theirs.close()
        self.gone = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()
        self.h = nbd.NBD()
        self.h.set_strict_mode(0)
        self.h.add_meta_context("base:allocation")
        self.up = True
        try:
            self.h.connect_socket(ours.detach())
        except nbd.Error:
            self.up = False

    def kill(self):
        self.process.kill()
        self.close()

    def watch(self):
        """Kill it if it hangs, which is wrong."""
        if not self.gone.wait(PATIENCE):
            self.hung = True
            self.process.kill()

    def end(self):
        """In order.  Returns the exit code."""
        if self.up:
            self.h.shutdown()
        return self.close()

    def close(self):
        self.h = None
        self.up = False
        code = self.process.wait()
        self.gone.set()
        if not self.errors.closed:
            self.errors.seek(0)
            self.messages = self.errors.read()
            self.errors.close()
        return code


class Disk:
    """A server, and what it should answer."""

    def __init__(self, server, model, rnd):
        self.server, self.model, self.rnd = server, model, rnd

    # Requests.  Each returns None or the errno, and tells the model.

    def call(self, function, *args):
        try:
            function(*args)
            return None
        except nbd.Error as e:
            return e.errnum or errno.EIO

    def change(self, err, offset, data, flags):
        if err:
            self.model.may_write(offset, data)
        elif flags & nbd.CMD_FLAG_FUA:
            self.model.write_durably(offset, data)
        else:
            self.model.write(offset, data)
        return err

    def write(self, offset, count, flags=0):
        data = bytes(self.rnd.randrange(1, 256) for _ in range(64))
        data = (data * (count // 64 + 1))[:count]
        err = self.call(self.server.h.pwrite, data, offset, flags)
        return self.change(err, offset, data, flags)

    def zero(self, offset, count, flags=0):
        err = self.call(self.server.h.zero, count, offset, flags)
        return self.change(err, offset, bytes(count), flags)

    def trim(self, offset, count, flags=0):
        # Zeros or what was there, for each byte.
        self.model.may_write(offset, bytes(count))
        return self.call(self.server.h.trim, count, offset, flags)

    def flush(self):
        err = self.call(self.server.h.flush)
        if err is None:
            self.model.flush()
        return err

    def cache(self, offset, count):
        return self.call(self.server.h.cache, count, offset)

    def status(self):
        return self.call(self.server.h.block_status, SIZE, 0,
                         lambda c, o, e, err: 0)

    def read(self):
        for offset in range(0, SIZE, 64 * K):
            err = self.call(self.read_part, offset)
            if err:
                return err
        return None

    def read_part(self, offset):
        got = bytearray(self.model.now)
        got[offset:offset + 64 * K] = self.server.h.pread(64 * K, offset)
        self.model.judge(got, False)

    def finish(self):
        """The end of the server: tells no error."""
        self.server.end()
        return None


# What the scenarios start from: images that are made once.

def chain_tool(*args):
    return subprocess.run([NBDCHAIN] + list(args), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)


def must(*args):
    r = chain_tool(*args)
    if r.returncode != 0:
        raise Wrong("%s: %s" % (" ".join(args), r.stdout))


def make_images(directory, rnd):
    """In DIRECTORY/NAME, top.fvd on base.raw, with the content of the disk in
    "content".  Each is: as created; closed in order with blocks of its own; as
    killed with half the journal used; as killed with the journal full; with
    its data in another file; compact, in each of these ways; a chain of two."""
    base = bytes(rnd.randrange(1, 256) for _ in range(4 * K)) * (SIZE // 4 // K)

    def make(name, *args):
        os.mkdir(os.path.join(directory, name))
        os.chdir(os.path.join(directory, name))
        with open("base.raw", "wb") as f:
            f.write(base)
        must("create", "-b", "base.raw", "-F", "raw", "--journal-size", "16K",
             "top.fvd", *args)

    def fill(image, model, flushes, killed):
        disk = Disk(Server(image), model, rnd)
        for i in range(flushes):
            disk.write(16 * K * (i % 4), 2 * K * (1 + i // 4))
            if disk.flush():
                raise Wrong("flush failed")
        disk.server.kill() if killed else disk.server.end()

    def save(model):
        with open("content", "wb") as f:
            f.write(model.now)

    for name, flushes, killed, *args in (
            ("new", 0, False), ("closed", 10, False), ("used", 15, True),
            ("data", 10, True, "--data-file", "data.raw"),
            ("compact-new", 0, False, *COMPACT),
            ("compact", 10, False, *COMPACT),
            ("compact-used", 10, True, *COMPACT)):
        make(name, *args)
        model = Model(base)
        if flushes:
            fill("top.fvd", model, flushes, killed)
        save(model)

    # Each of 31 rounds makes a record, and there is room for 32; the place of
    # the chunk takes one, too.
    for name, rounds, args in (("full", 31, ()), ("full-compact", 30, COMPACT)):
        make(name, *args)
        model = Model(base)
        disk = Disk(Server("top.fvd"), model, rnd)
        for i in range(rounds):
            disk.write(8 * K * i, 4 * K)
            disk.flush()
        disk.server.kill()
        save(model)

    make("two")
    model = Model(base)
    fill("top.fvd", model, 10, False)
    must("snapshot", "top.fvd", "over.fvd")
    os.rename("top.fvd", "low.fvd")
    shutil.copy("low.fvd", "top.fvd")
    disk = Disk(Server("over.fvd"), model, rnd)
    disk.write(100 * K, 8 * K)
    disk.server.end()
    save(model)


FUA = nbd.CMD_FLAG_FUA
NO_HOLE = nbd.CMD_FLAG_NO_HOLE

# Requests that fail once a sync has failed.
CHANGING = ("write", "zero", "flush", "trim", "cache")

# NAME: (images, requests before, requests during which operations fail).
# "open" among the latter: the server is started in that time.  A request is
# the name of a method of Disk and its arguments.
DISKS = {
    "open": ("new", [], [("open",), ("read",)]),
    "open-closed": ("closed", [], [("open",), ("read",)]),
    "open-used": ("used", [], [("open",), ("read",)]),
    "open-two": ("two", [], [("open",), ("read",), ("status",)]),
    "first-write": ("new", [], [
        ("write", 0, 8 * K), ("write", 64 * K, 64 * K), ("flush",)]),
    "part": ("new", [], [
        ("write", 5000, 100), ("write", 10001, 6000), ("flush",),
        ("write", 5200, 100), ("flush",)]),
    "part-closed": ("closed", [], [
        ("write", 1000, 100), ("write", 5001, 6000), ("flush",)]),
    "part-two": ("two", [], [
        ("write", 1000, 100), ("write", 99 * K + 1, 6000), ("flush",)]),
    "overwrite": ("closed", [], [
        ("write", 0, 4 * K), ("flush",), ("write", 100, 50), ("flush",)]),
    "fua": ("new", [], [
        ("write", 0, 4 * K, FUA), ("write", 9000, 10, FUA),
        ("zero", 32 * K, 8 * K, FUA), ("zero", 70000, 9000, FUA),
        ("trim", 0, 4 * K, FUA)]),
    "zero": ("new", [], [
        ("zero", 64 * K, 64 * K), ("zero", 5000, 20000),
        ("zero", 200 * K, 8 * K, NO_HOLE), ("flush",)]),
    "zero-own": ("closed", [], [
        ("zero", 0, 4 * K), ("zero", 8 * K + 100, 1000, NO_HOLE),
        ("zero", 0, 64 * K), ("flush",)]),
    "trim": ("closed", [], [("trim", 0, SIZE), ("flush",)]),
    "cache": ("closed", [], [("cache", 0, 128 * K), ("read",), ("flush",)]),
    "status": ("two", [], [("status",)]),
    "checkpoint": ("full", [], [
        ("write", 4 * K, 4 * K), ("flush",), ("write", 12 * K, 4 * K),
        ("flush",), ("write", 20 * K, 4 * K), ("flush",)]),
    "open-compact": ("compact-used", [], [("open",), ("read",)]),
    "write-compact": ("compact-new", [], [
        ("write", 5001, 6000), ("flush",), ("zero", 64 * K, 20000),
        ("write", 100 * K, 4 * K, FUA), ("flush",)]),
    "checkpoint-compact": ("full-compact", [], [
        ("write", 4 * K, 4 * K), ("flush",), ("write", 12 * K, 4 * K),
        ("flush",)]),
    "finish-compact": ("compact-new", [("write", 4 * K, 4 * K)],
                       [("finish",)]),
    "open-data": ("data", [], [("open",), ("read",)]),
    "write-data": ("data", [], [
        ("write", 100 * K, 4 * K), ("write", 5001, 6000), ("flush",),
        ("zero", 0, 20000), ("zero", 128 * K, 8 * K, FUA)]),
    "finish-data": ("data", [("write", 0, 4 * K), ("flush",),
                             ("write", 200 * K, 4 * K)], [("finish",)]),
    "finish": ("used", [("write", 4 * K, 4 * K), ("flush",),
                        ("write", 12 * K, 4 * K)], [("finish",)]),
}

# NAME: (images, command, image that is the disk after it).
TOOLS = {
    "create": ("new", ["create", "-b", "base.raw", "-F", "raw", "next.fvd"],
               None),
    "create-data": ("new", ["create", "--data-file", "next.raw", "next.fvd",
                            "256K"], None),
    "snapshot-data": ("data", ["snapshot", "top.fvd", "next.fvd"],
                      "next.fvd"),
    "snapshot": ("closed", ["snapshot", "top.fvd", "next.fvd"], "next.fvd"),
    "snapshot-used": ("used", ["snapshot", "top.fvd", "next.fvd"],
                      "next.fvd"),
    "resize": ("used", ["resize", "top.fvd", "300K"], "top.fvd"),
    "resize-compact": ("compact-used", ["resize", "top.fvd", "3M"],
                       "top.fvd"),
    "rebase": ("closed", ["rebase", "-b", "", "top.fvd"], "top.fvd"),
    "check": ("used", ["check", "--chain", "top.fvd"], None),
    "info": ("two", ["info", "--chain", "over.fvd"], None),
    "map": ("two", ["map", "over.fvd"], None),
}

# Commands that change top.fvd; and those that do it when they are run again.
IN_PLACE = ("snapshot", "resize", "rebase")
AGAIN = IN_PLACE + ("create",)


class Runner:
    def __init__(self, work, seed):
        self.work = work
        self.seed = seed
        self.control = Control(os.path.join(work, "control"))
        self.images = os.path.join(work, "images")
        self.dir = os.path.join(work, "dir")
        os.environ["NC_FAULT_CONTROL"] = os.path.join(work, "control")
        os.environ["NC_FAULT_DIR"] = self.dir
        os.mkdir(self.images)
        os.mkdir(self.dir)
        make_images(self.images, random.Random(seed))
        os.chdir(work)

    def fresh(self, images):
        os.chdir(self.work)
        shutil.rmtree(self.dir)
        shutil.copytree(os.path.join(self.images, images), self.dir)
        os.chdir(self.dir)
        with open("content", "rb") as f:
            content = f.read()
        os.unlink("content")
        return Model(content)

    def sync_failed(self):
        return not self.harmless and \
            bool(self.control.kinds() & (SYNC | DURABLE))

    def judge_request(self, what, err, before, fault):
        """What one request returned, BEFORE failures having come before."""
        hit = self.control.failures() > before
        failed_before = self.failed_for_good
        self.failed_for_good = self.sync_failed()
        if err is None:
            # A trim that finds nothing to do may succeed; and so may a write
            # while a checkpoint in the background is about to find out.
            if failed_before and what[0] in CHANGING and \
               what[0] != "trim" and \
               not (self.background and what[0] == "write"):
                raise Wrong("%s succeeded after a failed sync" % (what,))
            if hit and not self.harmless and not self.background and \
               what[0] not in ("status", "finish"):
                raise Wrong("%s: %s failed with %d, and the client was not "
                            "told" % (what, KINDS.get(self.control.kinds()),
                                      fault[4]))
            return
        want = errno.EIO if self.failed_for_good else fault[4]
        if not hit and not self.failed_for_good or what[0] == "read" and \
           not hit or self.harmless:
            raise Wrong("%s failed with %d, and nothing else had" % (
                what, err))
        if err != want:
            raise Wrong("%s failed with %d, and not %d" % (what, err, want))

    def run_disk(self, name, fault):
        """Returns false if nothing failed."""
        images, before, during = DISKS[name]
        model = self.fresh(images)
        rnd = random.Random(self.seed)
        image = os.path.join(
            self.dir, "over.fvd" if images == "two" else "top.fvd")
        memory = os.memfd_create("memory", 0)
        server = None
        self.failed_for_good = False
        # Cut transfers, and interrupted calls that are made again.
        self.harmless = fault[4] in (0, errno.EINTR)
        # What fails in a checkpoint of the background nobody has asked for.
        self.background = images.startswith("full")
        try:
            if during[0][0] != "open":
                server = Server(image, memory)
                disk = Disk(server, model, rnd)
                for what, *args in before:
                    if getattr(disk, what)(*args):
                        raise Wrong("%s failed without any fault" % what)
            self.control.set(*fault)
            for request in during:
                what, *args = request
                if what == "open":
                    server = Server(image, memory)
                    disk = Disk(server, model, rnd)
                    if not self.judge_open(server):
                        break
                    continue
                failures = self.control.failures()
                err = getattr(disk, what)(*args)
                self.judge_request(request, err, failures, fault)
            reached = self.control.failures() > 0
            self.failed_for_good = self.sync_failed()
            self.control.off()
            if server.up:
                self.judge_rest(disk)
            self.judge_files(image, memory, model)
            if server.hung:
                raise Wrong("nbdkit hung")
            return reached
        finally:
            self.control.off()
            os.close(memory)
            if server:
                server.kill()

    def judge_open(self, server):
        """Returns whether it is open."""
        if server.up:
            return True
        server.kill()
        if self.control.failures() == 0 or self.harmless:
            raise Wrong("does not open: " + server.messages)
        if not server.messages.strip():
            raise Wrong("does not open, and does not say why")
        return False

    def judge_rest(self, disk):
        """The server, when nothing fails any more."""
        want = errno.EIO if self.failed_for_good else None
        end = time.monotonic() + PATIENCE
        while self.background and self.failed_for_good and \
                time.monotonic() < end and disk.write(240 * K, 4 * K) is None:
            time.sleep(0.01)
        for what, *args in (("write", 240 * K, 4 * K), ("flush",),
                            ("write", 248 * K + 1, 3 * K)):
            err = getattr(disk, what)(*args)
            if err != want:
                raise Wrong("%s at the end: %s, and not %s" % (
                    what, err, want))
        if self.failed_for_good and disk.flush() != errno.EIO:
            raise Wrong("the second flush after a failed sync succeeded")
        if disk.read():
            raise Wrong("cannot be read")
        disk.server.kill()
        if self.failed_for_good and \
           "could not be made durable" not in disk.server.messages:
            raise Wrong("does not say that a sync failed: " +
                        disk.server.messages)

    def judge_files(self, image, memory, model):
        """What is left when the server is gone."""
        server = Server(image, memory)
        if not self.failed_for_good:
            self.judge_server(server, model, False, "with its memory")
        elif server.up:
            self.judge_server(server, model, False, "after a failed sync")
            disk = Disk(server, model, random.Random(self.seed))
            if disk.write(0, 512) != errno.EIO or disk.flush() != errno.EIO:
                raise Wrong("is written again after a failed sync")
        server.kill()
        if self.failed_for_good and "a sync failed" not in server.messages:
            raise Wrong("does not say that a sync failed: " + server.messages)
        must("check", image)
        server = Server(image)
        self.judge_server(server, model, True, "without its memory")
        if server.end() != 0:
            raise Wrong("does not end: " + server.messages)

    def judge_server(self, server, model, durable_only, how):
        if not server.up:
            server.kill()
            raise Wrong("does not open %s: %s" % (how, server.messages))
        try:
            model.judge(server.h.pread(SIZE, 0), durable_only)
        except (Wrong, nbd.Error) as e:
            raise Wrong("%s: %s" % (how, e)) from e

    # Tools.

    def run_tool(self, name, fault):
        images, command, disk = TOOLS[name]
        model = self.fresh(images)
        known = self.files()
        self.control.set(*fault)
        r = subprocess.run(
            [NBDCHAIN] + command, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace",
            env=dict(os.environ, LD_PRELOAD=os.environ["NBDCHAIN_FAULT"]))
        reached = self.control.failures() > 0
        kinds = self.control.kinds()
        self.control.off()
        self.judge_tool(r, reached, kinds, fault)
        self.judge_left(name, known, r)
        if disk:
            server = Server(os.path.join(self.dir, disk))
            self.judge_server(server, model, False, "afterwards")
            server.end()
        return reached

    def judge_tool(self, r, reached, kinds, fault):
        if r.returncode == 0:
            # A file can get its name in two ways; maps can be without holes.
            if reached and fault[4] not in (0, errno.EINTR) and \
               kinds & ~(NAME | SEEK):
                raise Wrong("%s failed, and the command did not" %
                            KINDS.get(kinds))
            return
        if not reached or fault[4] in (0, errno.EINTR):
            raise Wrong("failed for no reason: " + r.stderr)
        if r.returncode != 1:
            raise Wrong("exit code %d: %s" % (r.returncode, r.stderr))
        if not r.stderr.startswith("nbdchain: "):
            raise Wrong("no message: '%s'" % r.stderr)

    def files(self):
        """What must stay as it is, whatever a tool does."""
        contents = {}
        for name in os.listdir(self.dir):
            with open(os.path.join(self.dir, name), "rb") as f:
                contents[name] = f.read()
        return contents

    def judge_left(self, name, known, r):
        now = self.files()
        for image in known:
            if name.startswith(IN_PLACE) and image == "top.fvd":
                must("check", image)
            elif now[image] != known[image]:
                raise Wrong("changed " + image)
        left = set(now) - set(known)
        # All or nothing; what fails last only describes the new image.
        if left and left != {a for a in TOOLS[name][1] if a[:5] == "next."}:
            raise Wrong("left " + str(left))
        if "next.fvd" in left:
            must("check", "next.fvd")
        if r.returncode == 0 or not name.startswith(AGAIN):
            return
        # Again: it is done now, or it had been done.
        again = chain_tool(*TOOLS[name][1])
        if again.returncode != 0 and not (
                left and ("exists" in again.stdout or
                          "was retired when" in again.stdout)):
            raise Wrong("again: " + again.stdout)
        must("check", TOOLS[name][2] or "next.fvd")

    # All of them.

    def attempt(self, name, how, fault):
        """Returns whether anything failed, or None if it was wrong."""
        run = self.run_disk if name in DISKS else self.run_tool
        try:
            return run(name, fault)
        except (Wrong, nbd.Error, subprocess.TimeoutExpired) as e:
            print("%s: %s at operation %d: %s" % (name, how, fault[1], e),
                  flush=True)
            return None

    def sweep(self, name, how, mask, n, error, first=1, step=1):
        """Returns the runs, and those that were wrong."""
        runs = wrong = 0
        for at in range(first, LIMIT, step):
            r = self.attempt(name, how, (mask, at, n, 1, error))
            runs += 1
            wrong += r is None
            if r is False:
                return runs, wrong
        raise Wrong("%s: no end of operations" % name)


def hows(options, rnd):
    """What is done to each scenario: name, mask, n, error, first, step."""
    rows = [
        ("EIO", EVERYTHING, 1, errno.EIO, 1),
        ("EIO for ever", EVERYTHING & ~SYNC, FOREVER, errno.EIO, 4),
        ("ENOSPC", CHANGES, 1, errno.ENOSPC, 4),
        ("ENOSPC for ever", WRITE | ALLOCATE, FOREVER, errno.ENOSPC, 2),
    ]
    for how, mask, n, error, step in rows:
        step = 1 if options.all else step * options.every
        yield how, mask, n, error, rnd.randrange(1, step + 1), step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="N")
    parser.add_argument("--work", default=".")
    parser.add_argument("scenario", nargs="*")
    options = parser.parse_args()
    if options.list:
        print("\n".join(list(DISKS) + list(TOOLS)))
        return 0
    names = options.scenario or list(DISKS) + list(TOOLS)
    jobs = [os.fork() or job(options, i, names[i::JOBS])
            for i in range(min(JOBS, len(names)))]
    return any([os.waitpid(pid, 0)[1] for pid in jobs])


def job(options, i, names):
    """Run these scenarios, and exit with whether any was wrong."""
    work = os.path.join(os.path.abspath(options.work), "job%d" % i)
    os.mkdir(work)
    runner = Runner(work, options.seed)
    rnd = random.Random(options.seed)
    runs = wrong = 0
    for name in names:
        for how, mask, n, error, first, step in hows(options, rnd):
            if options.only:
                wrong += runner.attempt(
                    name, how, (mask, options.only, n, 1, error)) is None
                continue
            r, w = runner.sweep(name, how, mask, n, error, first, step)
            runs += r
            wrong += w
        for how, fault in (
                ("cut", (TRANSFERS, 1, FOREVER, 1, 0)),
                ("EINTR", (TRANSFERS | ALLOCATE, 1, FOREVER, 2,
                           errno.EINTR))):
            runs += 1
            wrong += runner.attempt(name, how, fault) is None
    print("%s: %d runs, %d wrong" % (" ".join(names), runs, wrong),
          flush=True)
    os._exit(wrong != 0)


if __name__ == "__main__":
    sys.exit(main())
