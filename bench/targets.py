# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""The targets, and whether a run reached them.

Rules, where "ratio" is the median of the per-round ratios to the
reference, or to the contender that the target names, and "value" the
median of the values:
  own spread  the ratio is not below what `nbdkit file` typically differs
              from itself: the median of its per-round ratios to itself,
              each taken below 1
  ratio >=, ratio <=, value >=, value <=    as they say
  lowest <=   the lowest value: for counters of the whole disk, to which
              other processes can only add
  layout >=, layout <=    the ratio to `nbdchain` with the linear layout
              instead; missed by less than `nbdkit file` typically differs
              from itself, it is undecided
A ratio below 1 says nothing where `nbdkit file` typically differs from
itself by more than NOISY: such a target is undecided.
"""

import collections
import statistics

import group_a
import group_i
import group_j
import group_k
import group_l
from contenders import AGAIN, BY_ID

NOISY = 0.85
UNDECIDED = "undecided, the run was too noisy"

# contenders: whom it applies to; other: whom the ratio is to, if not to
# the reference.
Target = collections.namedtuple("Target",
                                "group metric rule limit contenders other",
                                defaults=(None, ("chain", "serve"), None))

_LAYOUTS = ("data-file", "compact")
LINEAR = BY_ID["chain"]

_DATA_PATH = ("4k randread QD32, spread", "4k randread QD32, top",
              "4k randread 4conn×QD8, spread", "128k seqread QD16, spread",
              "128k seqread QD16, top", "4k randwrite QD32",
              "4k randwrite 4conn×QD8", "128k seqwrite QD16")
_FIRST_WRITE = (("4k randwrite QD16", 0.9),
                ("4k randwrite QD16 fsync/32", 0.9),
                ("64k seqwrite QD16", 0.95))
_ALL_DATA_PATH = tuple(job.name for _, job in group_a.JOBS)
# By peer: the ratio at a delay in milliseconds.
_STREAM = (("qsd-stream", {20: 20, 5: 9, 0: 1}),
           ("nbdcopy", {20: 1, 0: 1}))
_COLD = ((20, group_i.SEQUENTIAL, 30), (20, group_i.SEQUENTIAL_8, 5),
         (20, group_i.RANDOM, 1), (5, group_i.RANDOM, 1))
_MANNERS = ((group_k.allowed, "value <=", 1), (group_k.kept, "value >=", 0.25),
            (group_k.off, "value <=", 0.05))

TARGETS = [
    *(Target("A", name, "own spread") for name in _DATA_PATH),
    *(Target("A", f"{name}: server CPU/op", "ratio <=", 1.10)
      for name in _DATA_PATH),
    *(Target("A", name, "layout >=", 0.95, _LAYOUTS)
      for name in _ALL_DATA_PATH),
    *(Target("A", f"{name}: server CPU/op", "layout <=", 1 / 0.95, _LAYOUTS)
      for name in _ALL_DATA_PATH),
    *(Target("B", name, "ratio >=", limit) for name, limit in _FIRST_WRITE),
    *(Target("B", f"{name}: bytes written per byte, {where}", rule, 1.1)
      for name, _ in _FIRST_WRITE
      for where, rule in (("system calls", "value <="),
                          ("disk", "lowest <="))),
    Target("G", "64 overlays against 1: 4k randread QD32", "value >=",
           0.97),
    Target("G", "64 overlays: open to first read", "value <=", 20),
    Target("H", "8 TiB, after writes: open to first read", "value <=", 10),
    Target("H", "8 TiB: memory after writes and reads", "value <=", 24),
    Target("H", "8 TiB: space used per byte written", "value <=", 1.1),
    Target("H", "8 TiB: zero the whole disk", "value <=", 100),
    *(Target("J", group_j.name(delay), "ratio >=", limit, ("stream",), peer)
      for peer, limits in _STREAM for delay, limit in limits.items()),
    *(Target("I", group_i.name(delay, job), "ratio >=", limit,
             ("copy-on-read",)) for delay, job, limit in _COLD),
    *(Target("I", group_i.remote_bytes(delay, job), "value <=", 1.1,
             ("copy-on-read",)) for delay, job, _ in _COLD[:2]),
    Target("I", group_i.name(group_i.SECOND_DELAY, group_i.SECOND),
           "ratio >=", 0.95, ("copy-on-read",), "file"),
    *(Target("K", metric(delay), rule, limit, ("chain", "prefetch"))
      for delay in group_k.DELAYS for metric, rule, limit in _MANNERS),
    Target("L", group_l.BOOT, "ratio <=", 1.3, ("profile",), "local"),
    Target("L", group_l.REPLAY, "ratio <=", 0.2, ("profile",)),
    Target("L", group_l.REPLAY, "ratio <=", 0.5, ("copy-on-read",)),
]


def _own_spread(metric, reference):
    """How far below 1 the reference's ratio to itself typically is."""
    ratios = metric.ratios(AGAIN.id, reference.id)
    if not ratios:
        return None
    return statistics.median(min(ratio, 1 / ratio) for ratio in ratios)


def _own_remark(metric, reference):
    """What the reference reached against itself."""
    ratios = metric.ratios(AGAIN.id, reference.id)
    if not ratios:
        return ""
    return (f"; {AGAIN.title} ×{statistics.median(ratios):.2f}, rounds "
            f"{min(ratios):.2f}..{max(ratios):.2f}")


def _reference_remark(metric, reference, pick):
    values = metric.got(reference.id)
    return f"; {reference.title} {pick(values):.2f}" if values else ""


def _ratios_to(target, reference):
    """Whom the ratios of TARGET are to."""
    if target.rule.startswith("layout"):
        return LINEAR
    return BY_ID[target.other] if target.other else reference


def _figures(target, metric, contender, reference):
    """(figure, limit, remark), or None where nothing was measured."""
    values = metric.got(contender.id)
    ratios = metric.ratios(contender.id, _ratios_to(target, reference).id)
    if not values:
        return None
    if target.rule.startswith("lowest"):
        return (min(values), target.limit,
                _reference_remark(metric, reference, min))
    if target.rule.startswith("value"):
        return (statistics.median(values), target.limit,
                _reference_remark(metric, reference, statistics.median))
    spread = _own_spread(metric, reference)
    limit = target.limit or spread
    if not ratios or limit is None:
        return None
    return (statistics.median(ratios), limit,
            _own_remark(metric, reference))


def _verdict(target, figure, limit, spread):
    at_most = target.rule.endswith("<=")
    if figure > limit if at_most else figure < limit:
        goodness = 1 / figure if at_most else figure
        within = spread is not None and goodness >= spread
        return UNDECIDED if target.rule.startswith("layout") and within \
            else "MISSED"
    if target.rule == "own spread" and limit < NOISY and figure < 1:
        return UNDECIDED
    return "reached"


def _judge(target, metric, contender, reference):
    name = f"target {target.group}, {target.metric}, {contender.title}: "
    figures = _figures(target, metric, contender, reference)
    if figures is None:
        return name + "not measured"
    figure, limit, remark = figures
    spread = _own_spread(metric, reference)
    bound = "at most" if target.rule.endswith("<=") else "at least"
    if target.other:
        remark += f"; to {BY_ID[target.other].title}"
    ratio = "" if target.rule.startswith(("value", "lowest")) else "×"
    return (f"{name}{ratio}{figure:.2f}, "
            f"{_verdict(target, figure, limit, spread)} "
            f"({bound} {limit:.2f}{remark})")


def lines(groups):
    """A line for every target, for every contender of ours."""
    result = []
    for group in groups:
        for target in TARGETS:
            metric = group.metrics.get(target.metric)
            if target.group == group.name and metric:
                result += [_judge(target, metric, contender,
                                  group.reference)
                           for contender in group.contenders
                           if contender.id in target.contenders]
    return result
