# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Group G, depth: what 1, 8 and 64 overlays cost.

The depths of a contender run one after the other within its turn, so
that the ratio between them is of neighbours in time; every other turn
goes from 64 to 1.  `nbdkit file` has no layers: its column shows what
the machine itself does meanwhile.
"""

import fio
from contenders import REFERENCE
from table import Group

TITLE = "Depth of the chain"
CONTENDERS = ["file", "chain", "serve", "qemu-nbd", "qsd"]
DEPTHS = (1, 8, 64)
JOB = fio.Job("4k randread QD32", "randread", "4k", 32)


def _metrics(group, depth):
    return [group.metric(f"{depth} overlays: {what}", unit, better)
            for what, unit, better in (
                ("4k randread QD32", "kIOPS", "↑"),
                ("server CPU/op", "µs", "↓"),
                ("open to first read", "ms", "↓"),
                ("RssAnon after open", "MiB", "↓"),
                ("RssAnon after reads", "MiB", "↓"))]


def _measure_depth(bench, contender, depth):
    server = bench.serve(contender, bench.sets.depth(contender.kind, depth))
    opened = server.first_read()
    rss_open = server.rss_anon()
    before = server.counters()
    done = fio.run(JOB, server.uri, bench.size, bench.seconds)
    cost = fio.cpu_per_op(before, server.counters(), done)
    rss_read = server.rss_anon()
    server.stop()
    return (done.iops / 1e3, cost, opened, rss_open / (1 << 20),
            rss_read / (1 << 20))


def _order(group, contender):
    """The depths, in turn up and down."""
    turn = len(_metrics(group, DEPTHS[0])[0].values.get(contender.id, []))
    return DEPTHS if turn % 2 == 0 else DEPTHS[::-1]


def _measure(bench, group, contender):
    values = {}
    try:
        for depth in DEPTHS:            # made before anything is timed
            bench.sets.depth(contender.kind, depth)
        for depth in _order(group, contender):
            values[depth] = _measure_depth(bench, contender, depth)
    finally:
        for depth in DEPTHS:
            for metric, value in zip(_metrics(group, depth),
                                     values.get(depth, [None] * 5)):
                metric.add(contender, value)
        ratio = values[64][0] / values[1][0] if 64 in values else None
        group.metric("64 overlays against 1: 4k randread QD32", "×",
                     "↑").add(contender, ratio)


def run(bench):
    group = Group("G", TITLE, bench.taking_part(CONTENDERS), REFERENCE)
    bench.each(group.contenders, "G depth",
               lambda contender: _measure(bench, group, contender))
    return group
