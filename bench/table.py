# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
"""Values by metric, contender and round, and the table made of them."""

import statistics


class Metric:
    """One row: values[contender id] = one value a round, None if it
    failed.  better: "↑" or "↓"."""

    def __init__(self, name, unit, better):
        self.name = name
        self.unit = unit
        self.better = better
        self.values = {}

    def add(self, contender, value):
        self.values.setdefault(contender.id, []).append(value)

    def got(self, contender_id):
        """Values of the rounds that did not fail."""
        return [value for value in self.values.get(contender_id, [])
                if value is not None]

    def ratios(self, contender_id, reference_id):
        """Per-round ratios, of rounds where neither failed."""
        pairs = zip(self.values.get(contender_id, []),
                    self.values.get(reference_id, []))
        return [value / reference for value, reference in pairs
                if value is not None and reference]


class Group:
    """One table: contenders in columns, metrics in rows.  reference:
    the contender that ratios are to."""

    def __init__(self, name, title, contenders, reference):
        self.name = name
        self.title = title
        self.contenders = contenders
        self.reference = reference
        self.metrics = {}

    def metric(self, name, unit, better):
        return self.metrics.setdefault(name, Metric(name, unit, better))

    def as_json(self):
        return {"group": self.name, "title": self.title,
                "reference": self.reference.id,
                "metrics": [{"name": metric.name, "unit": metric.unit,
                             "values": metric.values}
                            for metric in self.metrics.values()]}


def number(value):
    if value >= 1000:
        return f"{value:.0f}"
    if value >= 100:
        return f"{value:.1f}"
    return f"{value:.2f}"


def _cell(metric, contender, reference):
    values = metric.got(contender.id)
    if contender.id not in metric.values:
        return "-"
    if not values:
        return "failed"
    text = (f"{number(statistics.median(values))} "
            f"({number(min(values))}..{number(max(values))})")
    missing = len(metric.values[contender.id]) - len(values)
    if missing:
        text += f" [{missing} failed]"
    ratios = metric.ratios(contender.id, reference.id)
    if contender is not reference and ratios:
        text += f" **×{statistics.median(ratios):.2f}**"
    return text


def _settings(group):
    """What the columns were started with, where that is a choice."""
    lines = [f"- {contender.title}: {contender.settings}"
             for contender in group.contenders if contender.settings]
    return lines + [""] if lines else []


def markdown(group):
    """The group as a Markdown table."""
    titles = [contender.title for contender in group.contenders]
    lines = [f"## {group.name}. {group.title}", "",
             *_settings(group),
             "| metric | " + " | ".join(titles) + " |",
             "|---" * (len(titles) + 1) + "|"]
    for metric in group.metrics.values():
        cells = [_cell(metric, contender, group.reference)
                 for contender in group.contenders]
        lines.append(f"| {metric.name} [{metric.unit} {metric.better}] | "
                     + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
