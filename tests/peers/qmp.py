#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Clients of a control socket: one that behaves, and many that do not.
#
#   qmp.py script SOCKET < COMMANDS   send each line, after qmp_capabilities;
#                                     print each reply
#   qmp.py shapes SOCKET < COMMANDS   the same, but print of each reply its
#                                     error class, or the types of what it has
#   qmp.py life SOCKET                send jobs of block-stream through their
#                                     life; print the replies and what happened
#                                     in between, but for how far they came
#   qmp.py watch SOCKET               print the events, until the server goes
#   qmp.py first SOCKET               connect as soon as the socket is there;
#                                     print the greeting
#   qmp.py hostile SOCKET WHAT        misbehave; see the functions
#   qmp.py as-user UID SOCKET         come as another user; print what is said
#
# Anything unexpected ends it with an exception.

import json
import os
import socket
import sys
import time

PATIENCE = 60


def connect(path):
    """To a socket whose server may have died, and come again, or that has
    many who wait."""
    end = time.monotonic() + PATIENCE
    while True:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(path)
            return sock
        except (ConnectionRefusedError, BlockingIOError):
            sock.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


class Client:
    def __init__(self, path):
        self.sock = connect(path)
        self.lines = self.sock.makefile("rb")

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode())

    def hear(self):
        line = self.lines.readline()
        return json.loads(line) if line else None

    def reply(self):
        while True:
            message = self.hear()
            if message is None or "event" not in message:
                return message

    def hello(self):
        assert "QMP" in self.hear()
        return self

    def negotiate(self):
        self.hello().send('{"execute": "qmp_capabilities"}\n')
        assert self.reply() == {"return": {}}
        return self

    def works(self):
        self.send('{"execute": "query-version", "id": "works"}\n')
        while True:
            message = self.reply()
            assert message is not None, "hung up"
            if message.get("id") == "works":
                assert "return" in message
                return True

    def is_hung_up(self):
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


def shape(value, name=""):
    if isinstance(value, dict):
        return {k: shape(v, k) for k, v in sorted(value.items())
                if not k.startswith("x-")}
    if isinstance(value, list):
        return [shape(v) for v in value[:1]]
    return type(value).__name__


def outline(reply):
    known = {k: v for k, v in reply.items() if k == "id"}
    if "error" in reply:
        assert sorted(reply["error"]) == ["class", "desc"]
        return {"error": reply["error"]["class"], **known}
    return {"return": shape(reply["return"]), **known}


def script(path, show):
    client = Client(path).negotiate()
    for line in sys.stdin:
        client.send(line)
        print(json.dumps(show(client.reply()), sort_keys=True))


def watch(path):
    client = Client(path).negotiate()
    client.sock.settimeout(None)
    print("watching", flush=True)
    while message := client.hear():
        assert "event" in message
        print(json.dumps(message, sort_keys=True), flush=True)


def first(path):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(path)
        except FileNotFoundError:
            sock.close()
            continue
        print(sock.makefile().readline(), end="")
        return
    raise TimeoutError(path)


def without_progress(value, name=""):
    """As shape, but with the values that do not depend on the time."""
    if isinstance(value, dict):
        return {k: without_progress(v, k) for k, v in sorted(value.items())
                if not k.startswith("x-")}
    if isinstance(value, list):
        return [without_progress(v) for v in value]
    if name == "busy" or (isinstance(value, int) and name != "speed" and
                          not isinstance(value, bool)):
        return type(value).__name__
    return value


class Life:
    """Commands, each followed by the events up to one that is named."""

    def __init__(self, path):
        self.client = Client(path).negotiate()
        self.events = []

    def hear(self):
        message = self.client.hear()
        assert message is not None, "hung up"
        if "event" not in message:
            return message
        data = message["data"]
        name = message["event"]
        if name == "JOB_STATUS_CHANGE":
            name = data["status"]
        self.events.append((name, without_progress(data)))
        assert set(shape(message["timestamp"]).values()) == {"int"}
        return None

    def ask(self, command, **args):
        args = {key.replace("_", "-"): value for key, value in args.items()}
        self.client.send(json.dumps({"execute": command, "arguments": args}))
        while (reply := self.hear()) is None:
            pass
        reply = without_progress(reply)
        if "error" in reply:
            reply = outline(reply)
        print(command, json.dumps(reply, sort_keys=True))

    def until(self, *names):
        """Print what has happened since the last call."""
        for name in names:
            while name not in [event for event, _ in self.events]:
                assert self.hear() is None
        for event in self.events:
            print("   ", json.dumps(event, sort_keys=True))
        self.events = []


def life(path):
    job = Life(path)
    slow = {"device": "disk", "job_id": "j", "speed": 65536}

    # One that is steered, and cancelled.
    job.ask("block-stream", **slow)
    job.until("running")
    for command in ("query-jobs", "query-block-jobs"):
        job.ask(command)
    for wrong in ({"job_id": "j"}, {"job_id": "k", "device": "none"},
                  {"job_id": "k", "speed": -1}, {"job_id": "k", "x": 1},
                  {"job_id": "k", "on_error": "never"}, {"job_id": "1k"},
                  {"job_id": "k", "base": "none"},
                  {"job_id": "k", "base_node": "none"}):
        job.ask("block-stream", **{"device": "disk", **wrong})
    for command in ("job-complete", "job-finalize", "job-dismiss",
                    "job-resume"):
        job.ask(command, id="j")
    job.ask("job-pause", id="j")
    job.until("paused")
    job.ask("query-jobs")
    job.ask("job-pause", id="j")
    job.ask("block-job-set-speed", device="j", speed=131072)
    job.ask("block-job-resume", device="j")
    job.until("running")
    job.ask("block-job-cancel", device="j")
    job.until("null")
    job.ask("query-jobs")

    # One that is cancelled while it is paused.
    job.ask("block-stream", **slow)
    job.until("running")
    job.ask("block-job-pause", device="j")
    job.until("paused")
    job.ask("job-cancel", id="j")
    job.until("null")

    # One that waits for everything.
    job.ask("block-stream", device="disk", job_id="j", auto_finalize=False,
            auto_dismiss=False)
    job.until("BLOCK_JOB_PENDING")
    for command in ("job-dismiss", "job-pause", "job-resume", "job-complete"):
        job.ask(command, id="j")
    job.ask("query-block-jobs")
    job.ask("job-finalize", id="j")
    job.until("concluded")
    for command in ("job-finalize", "job-cancel", "job-pause"):
        job.ask(command, id="j")
    job.ask("query-jobs")
    job.ask("job-dismiss", id="j")
    job.until("null")

    # One that has nothing to do.
    job.ask("block-stream", device="disk", job_id="j", on_error="stop")
    job.until("null")
    job.ask("block-job-dismiss", id="j")


# Each misbehaves, and shows that a client who came before is served as ever.

def garbage(path):
    """Bytes that are no JSON, and then sense."""
    client = Client(path).negotiate()
    for junk in (b"\x00\x01\xff\xfe\n", b"GET / HTTP/1.1\r\n", b'"\n', b"}]\n",
                 b'{"execute": "query-ver\n', os.urandom(3000).replace(
                     b"{", b"").replace(b"[", b"") + b"\n"):
        client.send(junk)
    assert client.works()


def huge(path):
    """A command that does not end."""
    client = Client(path).negotiate()
    try:
        client.send(b'{"execute": "' + b"x" * (8 << 20))
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert client.is_hung_up()


def deep(path):
    """Lists in lists."""
    client = Client(path).negotiate()
    client.send("[" * 33)
    assert client.reply()["error"]["class"] == "GenericError"
    assert client.is_hung_up()


def half(path):
    """Commands in pieces, and one that never ends."""
    client = Client(path).negotiate()
    for byte in b'{"execute":\n"query-version"}' * 3:
        client.send(bytes([byte]))
    for _ in range(3):
        assert "return" in client.reply()
    client.send('{"execute": "quit"')
    client.sock.close()


def pipelined(path):
    """A thousand commands at once, answered in order."""
    client = Client(path).negotiate()
    client.sock.setblocking(True)
    if os.fork() == 0:
        client.send("".join('{"execute":"query-jobs","id":%d}' % i
                            for i in range(1000)))
        os._exit(0)
    for i in range(1000):
        assert client.reply() == {"return": [], "id": i}
    assert os.wait()[1] == 0


def flood(path):
    """Commands without end, and no reply is read."""
    client = Client(path).negotiate()
    client.sock.settimeout(0.5)
    try:
        for _ in range(10000):
            client.send('{"execute": "query-commands"}' * 100)
        raise AssertionError("it takes everything")
    except socket.timeout:
        pass


def crowd(path):
    """Fifty clients who do nothing, while one works."""
    others = [Client(path) for _ in range(50)]
    for other in others[:25]:
        other.negotiate()
    for other in others[25:]:
        other.hello()
    assert Client(path).negotiate().works()
    assert all(other.works() for other in others[:25])


def too_many(path):
    """More than there is room for: the last are told, and room is made."""
    others = []
    while True:
        client = Client(path)
        message = client.hear()
        if "QMP" not in message:
            break
        others.append(client)
        assert len(others) <= 64
    assert message["error"]["class"] == "GenericError"
    assert client.is_hung_up()
    others.pop().sock.close()
    while "QMP" not in Client(path).hear():
        pass


def hasty(path):
    """Five hundred who hang up at once, some before the greeting.  While those
    before are not gone yet, there may be no room."""
    for i in range(500):
        client = Client(path)
        try:
            if i % 3:
                client.send('{"execute": "qmp_capabilities"}' * (i % 7))
            if i % 2:
                client.hear()
        except (BrokenPipeError, ConnectionResetError):
            pass
        client.sock.close()


def hostile(path, what):
    # For a while there may be as many clients as there can be.
    while True:
        before = Client(path)
        if "QMP" in before.hear():
            break
    before.send('{"execute": "qmp_capabilities"}\n')
    assert before.reply() == {"return": {}}
    globals()[what](path)
    assert before.works()


def as_user(uid, path):
    os.setgid(uid)
    os.setuid(uid)
    try:
        print(json.dumps(Client(path).hear()))
    except PermissionError:
        print("permission denied")


def main():
    what, *args = sys.argv[1:]
    if what == "script":
        script(args[0], lambda reply: reply)
    elif what == "shapes":
        script(args[0], outline)
    elif what == "life":
        life(args[0])
    elif what == "watch":
        watch(args[0])
    elif what == "first":
        first(args[0])
    elif what == "hostile":
        hostile(*args)
    else:
        as_user(int(args[0]), args[1])


main()
