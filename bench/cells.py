# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""What the groups share: a run's options, servers, and the rounds."""

import os
import sys

import contenders as who
from images import Sets
from nbdclient import NbdError
from servers import CellError, Server, stop_all

FEW_ROUNDS = 3                  # where the ratios are large


class Bench:
    """One run of the program.  directory: where all its files go."""

    def __init__(self, options, directory, build):
        self.rounds = options.rounds
        self.seconds = options.seconds
        self.size = options.size << 20
        self.threads = options.threads
        self.chosen = options.contender
        self.directory = directory
        self.build = build
        self.sets = Sets(directory, self.size, build, self.serve_kind)
        self.failures = []

    def taking_part(self, ids, always=(who.REFERENCE, who.AGAIN)):
        """The contenders of IDS that the user chose and that exist.
        Those of ALWAYS, the reference above all, take part anyway."""
        return [who.BY_ID[name] for name in ids
                if who.BY_ID[name] in always
                or ((not self.chosen or name in self.chosen)
                    and (self.build or not who.BY_ID[name].ours))]

    def path(self, name):
        return os.path.join(self.directory, name)

    def serve(self, contender, image, more=()):
        """Start CONTENDER on IMAGE; it may not listen yet.  MORE:
        arguments."""
        sock = self.path("sock")
        argv = who.command(contender, image, sock, self.threads, self.build)
        return self._start(contender, [*argv, *more], sock)

    def serve_over(self, contender, image, remote, control=False, more=()):
        """Start CONTENDER on IMAGE, which has REMOTE as its backing, or
        on that alone.  MORE: arguments."""
        sock = self.path("sock")
        argv = who.over_remote(contender, image, remote.socket, sock,
                               self.threads, self.build)
        if control:
            argv += who.control(contender, self.path("control"))
        return self._start(contender, [*argv, *more], sock)

    def _start(self, contender, argv, sock):
        return Server(argv, sock, who.export(contender), self.path("log"),
                      self.build.env if contender.ours else None)

    def remote(self, delay, size, image=None):
        """Serve the first SIZE bytes of IMAGE, without it of a pattern,
        with a delay of so many milliseconds before every read."""
        sock = self.path("remote")
        server = Server(who.remote(image, sock, self.threads, delay, size),
                        sock, "", self.path("remote.log"))
        server.wait_ready()
        return server

    def serve_kind(self, kind, image):
        """The plainest server for a kind of image, to prepare it."""
        if kind == "raw":
            name = "file"
        else:
            name = "chain" if kind.startswith("fvd") else "qemu-nbd"
        return self.serve(who.BY_ID[name], image)

    def each(self, contenders, label, measure, most=None):
        """Call measure (contender) for every contender of every round,
        of which there are at most MOST.

        Each round starts with another one, so that none always runs
        behind the same neighbour.  A contender that fails gets no value
        in that round.
        """
        rounds = min(self.rounds, most or self.rounds)
        for number in range(rounds):
            progress(f"{label}: round {number + 1} of {rounds}")
            start = number % len(contenders)
            for contender in contenders[start:] + contenders[:start]:
                try:
                    measure(contender)
                except (CellError, NbdError, OSError) as error:
                    self._failed(label, contender, error)
                finally:
                    stop_all()
        progress("")

    def _failed(self, label, contender, error):
        text = f"{label}, {contender.title}: {error}"
        self.failures.append(text)
        progress("")
        print(f"failed: {text}", file=sys.stderr)


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
