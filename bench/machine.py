# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""What the figures were measured on, and the disk's own counters."""

import os
import platform
import subprocess

from contenders import peer


def _stat_path(path):
    device = os.stat(path).st_dev
    return f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat"


def sectors_written(path):
    """Sectors written to the disk that PATH is on; None if it has no
    disk, as on tmpfs."""
    try:
        with open(_stat_path(path), encoding="ascii") as stat:
            return int(stat.read().split()[6])
    except FileNotFoundError:
        return None


def sectors_since(path, before, payload):
    """Bytes written to the disk since BEFORE, for each byte of PAYLOAD."""
    now = sectors_written(path)
    if now is None or before is None:
        return None
    return (now - before) * 512 / payload


def _first_line(argv):
    try:
        result = subprocess.run(argv, capture_output=True, text=True,
                                check=False)
    except FileNotFoundError:
        return f"{argv[-2]}: not installed"
    return (result.stdout or result.stderr).strip().partition("\n")[0]


def versions(build):
    lines = [_first_line([*command, "--version"]) for command in
             (["nbdkit"], peer("qemu-nbd"), peer("qemu-storage-daemon"),
              peer("nbdcopy"), ["fio"])]
    if build:
        lines.insert(0, _first_line([build.cli, "--version"]))
    return lines


def _file_system(path):
    path = os.path.realpath(path)
    best = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, kind, *_ = line.split()
            inside = point == "/" or (path + "/").startswith(point + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def _processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def description(directory):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (f"{os.cpu_count()} cores ({_processor()}), "
            f"{memory / (1 << 30):.0f} GiB, Linux {platform.release()}, "
            f"{_file_system(directory)}; load average at the start "
            f"{os.getloadavg()[0]:.1f}")
