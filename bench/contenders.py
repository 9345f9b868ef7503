# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Who takes part: the kind of image each serves, and its command."""

import collections
import os

# kind: of image, see images.py; ours: needs a build of nbdchain.
Contender = collections.namedtuple("Contender", "id title kind ours",
                                   defaults=(False,))

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
    Contender("qemu-nbd", "qemu-nbd qcow2", "qcow2"),
    Contender("qsd", "QSD qcow2", "qcow2"),
    Contender("qsd-extl2", "QSD extended_l2", "qcow2-extl2"),
    Contender("qsd-raw", "QSD raw", "raw"),
    Contender("remote", "remote, direct", "raw"),
    Contender("proxy", "nbdkit nbd", "raw"),
    Contender("cow", "nbdkit cow", "raw"),
    Contender("cache", "nbdkit cache", "raw"),
    Contender("copy-on-read", "nbdchain copy-on-read", "fvd", ours=True),
    Contender("prefetch", "nbdchain prefetch", "fvd", ours=True),
    Contender("reads", "reads, thrown away", "fvd", ours=True),
    Contender("profile", "nbdchain with a profile", "fvd", ours=True),
    Contender("local", "nbdchain, base local", "fvd", ours=True),
    Contender("qsd-cor", "QSD copy-on-read", "qcow2"),
    Contender("nbdcopy", "nbdcopy", "raw"),
    Contender("stream", "nbdchain stream", "fvd", ours=True),
    Contender("qsd-stream", "QSD block-stream", "qcow2"),
]
BY_ID = {contender.id: contender for contender in ALL}
REFERENCE = BY_ID["file"]
AGAIN = BY_ID["file-again"]


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


def _qsd(image, sock, *drivers):
    """drivers: of the nodes on top of the file, in their order."""
    nodes = [f"node{number}" for number in range(len(drivers))] + ["disk"]
    above = [arg for driver, below, node in zip(drivers, nodes, nodes[1:])
             for arg in ("--blockdev",
                         f"driver={driver},node-name={node},file={below}")]
    return ["qemu-storage-daemon",
            "--blockdev", f"driver=file,node-name=node0,filename={image}",
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
    if name == "qemu-nbd":
        return ["qemu-nbd", "-t", "-e", "16", "-f", "qcow2", "-k", sock,
                image]
    return _qsd(image, sock, "raw" if name == "qsd-raw" else "qcow2")


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
