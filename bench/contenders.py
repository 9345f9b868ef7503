# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Who takes part: the kind of image each serves, and its command."""

import collections
import os

# kind: of image, see images.py; ours: needs a build of nbdchain; settings:
# what the head of a table says of it.
Contender = collections.namedtuple("Contender", "id title kind ours settings",
                                   defaults=(False, ""))

_URING = "aio=io_uring, the fastest of QEMU's on this kernel"
_DEFAULTS = "as it starts without options: aio=threads"

ALL = [
    Contender("file", "nbdkit file", "raw"),
    Contender("file-again", "nbdkit file (again)", "raw"),
    Contender("overwrite", "nbdkit file overwriting", "flat"),
    Contender("chain", "nbdchain", "fvd", ours=True),
    Contender("serve", "nbdchain serve", "fvd", ours=True),
    Contender("data-file", "nbdchain data_file", "fvd-data", ours=True),
    Contender("compact", "nbdchain compact", "fvd-compact", ours=True),
    Contender("small-journal", "nbdchain, journal of 64 KiB",
              "fvd-small-journal", ours=True),
    Contender("qemu-nbd", "qemu-nbd qcow2", "qcow2", settings=_URING),
    Contender("qemu-nbd-default", "qemu-nbd qcow2, defaults", "qcow2",
              settings=_DEFAULTS),
    Contender("qsd", "QSD qcow2", "qcow2", settings=_URING),
    Contender("qsd-default", "QSD qcow2, defaults", "qcow2",
              settings=_DEFAULTS),
    Contender("qsd-extl2", "QSD extended_l2", "qcow2-extl2",
              settings=_URING + "; subclusters of 2 KiB"),
    Contender("qsd-raw", "QSD raw", "raw", settings=_URING),
    Contender("remote", "remote, direct", "raw"),
    Contender("proxy", "nbdkit nbd", "raw"),
    Contender("cow", "nbdkit cow", "raw"),
    Contender("cache", "nbdkit cache", "raw"),
    Contender("copy-on-read", "nbdchain copy-on-read", "fvd", ours=True),
    Contender("prefetch", "nbdchain prefetch", "fvd", ours=True),
    Contender("reads", "reads, thrown away", "fvd", ours=True),
    Contender("profile", "nbdchain with a profile", "fvd", ours=True),
    Contender("local", "nbdchain, base local", "fvd", ours=True),
    Contender("qsd-cor", "QSD copy-on-read", "qcow2", settings=_URING),
    Contender("nbdcopy", "nbdcopy", "raw",
              settings="-C 8 --request-size=1048576 --flush"),
    Contender("convert", "qemu-img convert", "raw",
              settings="-m 16 -W, synced afterwards"),
    Contender("stream", "nbdchain stream", "fvd", ours=True),
    Contender("qsd-stream", "QSD block-stream", "qcow2", settings=_URING),
]
BY_ID = {contender.id: contender for contender in ALL}
REFERENCE = BY_ID["file"]
AGAIN = BY_ID["file-again"]


# Where QEMU's programs and nbdcopy come from: the root of another system, or
# this one if empty.  See use_peers_of.
_peers_root = ""


def use_peers_of(root):
    """Take the peers from the system below ROOT, with its own libraries.
    nbdkit stays this system's, since our plugin is loaded into it."""
    global _peers_root          # pylint: disable=global-statement
    _peers_root = os.path.abspath(root)


def peer(program):
    """The beginning of a command line that runs PROGRAM of a peer."""
    if not _peers_root:
        return [program]
    libraries = ":".join(os.path.join(_peers_root, directory) for directory in
                         ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
    return [os.path.join(_peers_root, "lib64/ld-linux-x86-64.so.2"),
            "--library-path", libraries,
            os.path.join(_peers_root, "usr/bin", program)]


class Build:
    """Where our own programs are: the build tree DIR."""

    def __init__(self, directory):
        self.cli = os.path.join(directory, "nbdchain")
        self.plugin = os.path.join(directory, "plugin", ".libs",
                                   "nbdkit-chain-plugin.so")
        self.filters = {name: os.path.join(
            directory, "filters", ".libs", f"nbdkit-{name}-filter.so")
            for name in ("stream", "prefetch")}
        self.guest = os.path.join(directory, "guest")
        libs = os.path.join(directory, "lib", ".libs")
        self.env = dict(os.environ)
        self.env["LD_LIBRARY_PATH"] = ":".join(
            filter(None, [libs, os.environ.get("LD_LIBRARY_PATH")]))

    def exists(self):
        return os.access(self.cli, os.X_OK) and os.path.exists(self.plugin)


def find_build(directory):
    """The build tree DIRECTORY, or one near this file; None if none."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    candidates = [directory] if directory else \
        [os.getcwd(), top, os.path.join(top, "build")]
    for candidate in candidates:
        build = Build(os.path.abspath(candidate))
        if build.exists():
            return build
    return None


def _nbdkit(sock, threads, *args):
    return ["nbdkit", "-f", "-U", sock, "-t", str(threads), *args]


def uri(sock, name=""):
    return f"nbd+unix:///{name}?socket={sock}"


def _qsd(image, sock, *drivers, aio="io_uring"):
    """drivers: of the nodes on top of the file, in their order."""
    nodes = [f"node{number}" for number in range(len(drivers))] + ["disk"]
    above = [arg for driver, below, node in zip(drivers, nodes, nodes[1:])
             for arg in ("--blockdev",
                         f"driver={driver},node-name={node},file={below}")]
    return [*peer("qemu-storage-daemon"),
            "--blockdev",
            f"driver=file,node-name=node0,filename={image},aio={aio}",
            *above, "--nbd-server",
            f"addr.type=unix,addr.path={sock},max-connections=16",
            "--export", "type=nbd,id=e,node-name=disk,writable=on"]


def command(contender, image, sock, threads, build):
    """The command that serves IMAGE read-write on SOCK."""
    name = contender.id
    if name in ("file", "file-again", "overwrite"):
        return _nbdkit(sock, threads, "file", image)
    if name in ("chain", "local", "data-file", "compact", "small-journal"):
        return _nbdkit(sock, threads, build.plugin, image)
    if name == "serve":
        return [build.cli, "serve", image, "-U", sock,
                "--threads", str(threads)]
    aio = "threads" if name.endswith("-default") else "io_uring"
    if name.startswith("qemu-nbd"):
        return [*peer("qemu-nbd"), "-t", "-e", "16", f"--aio={aio}",
                "-f", "qcow2", "-k", sock, image]
    return _qsd(image, sock, "raw" if name == "qsd-raw" else "qcow2", aio=aio)


def control(contender, path):
    """What to add to a command for a QMP socket PATH."""
    if contender.id.startswith("qsd"):
        return ["--chardev", f"socket,id=c,path={path},server=on,wait=off",
                "--monitor", "chardev=c"]
    return [f"control={path}"]


# As "nbdchain serve" loads them for --copy-on-read and --prefetch.
_FILTERS = {"copy-on-read": ["stream"], "prefetch": ["prefetch"],
            "profile": ["stream", "prefetch"]}


def over_remote(contender, image, far, sock, threads, build):
    """The command that serves on SOCK what is far, a socket.  It is the
    backing of IMAGE; nbdkit's filters have no image, but a file of their
    own."""
    if contender.id == "proxy":
        return _nbdkit(sock, threads, "nbd", f"socket={far}")
    if contender.id in ("cow", "cache"):
        return _nbdkit(sock, threads, f"--filter={contender.id}", "nbd",
                       f"socket={far}", f"{contender.id}-on-read=true")
    if contender.ours:
        filters = [f"--filter={build.filters[name]}"
                   for name in _FILTERS.get(contender.id, ())]
        return _nbdkit(sock, threads, *filters, build.plugin, image,
                       f"allow={uri(far)}")
    return _qsd(image, sock, "qcow2",
                *(["copy-on-read"] if contender.id == "qsd-cor" else []))


def remote(image, sock, threads, delay, size):
    """The command that serves SIZE bytes of IMAGE read-only on SOCK with
    a DELAY, in milliseconds.  Without IMAGE: of a pattern."""
    plugin = ["file", image] if image else ["pattern", str(size)]
    return _nbdkit(sock, threads, "-r", "--filter=truncate",
                   "--filter=delay", *plugin, f"truncate={size}",
                   f"rdelay={delay}ms")


def export(contender):
    return "disk" if contender.id.startswith("qsd") else ""
