"""The curves of a group other than its eval loss: training losses, speed, memory and learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean, median

from patch_algorithm.monitoring.history_file import Line
from patch_algorithm.reporting.groups import Group
from patch_algorithm.reporting.runs import Run

__all__ = ["memory", "patch_loss", "rates", "speed", "token_loss"]

Curve = list[tuple[float, float]]
_MOST_POINTS = 60
_MEMORY = ("patch_monitor/peak_memory_gb", "memory/peak_allocated_mem")


def patch_loss(group: Group) -> list[Curve]:
    """The training loss of the patch stages, one curve for each: nats per target token, over raw tokens."""
    return _by_stage(group, lambda line: line.metrics.get("patch_level/loss", _total(line)), patches=True)


def token_loss(group: Group) -> list[Curve]:
    """The training loss of the token stages: nats per token, over raw tokens."""
    return _by_stage(group, _total, patches=False)


def memory(group: Group) -> list[Curve]:
    """The most memory of each stage so far, in gigabytes, over raw tokens."""

    def peak(line: Line) -> float | None:
        return next((line.metrics[name] for name in _MEMORY if name in line.metrics), None)

    return [_medians([[(x, y) for x, y in _values(run.history.steps, peak)] for run in group.runs])]


def rates(group: Group) -> list[Curve]:
    """The learning rate over raw tokens, of the group's first run."""
    found = group.runs[0].rates
    return [[(float(moment.raw_tokens), rate) for moment, rate in found if math.isfinite(rate)]]


def speed(group: Group) -> list[Curve]:
    """Raw tokens per second over raw tokens, one curve for each stage."""
    return [
        _medians([_speeds(run, index) for run in group.runs if index < len(run.spans)])
        for index in range(len(group.spans))
    ]


def _total(line: Line) -> float | None:
    return line.metrics.get("loss/train/total")


def _stage_lines(run: Run, index: int) -> list[Line]:
    span = run.spans[index]
    first = span.begin.step if span.begin != span.end else span.end.step - 1
    return [line for line in run.history.steps if first < line.at.step <= span.end.step]


def _by_stage(group: Group, value: Callable[[Line], float | None], patches: bool) -> list[Curve]:
    indexes = [index for index, span in enumerate(group.spans) if (span.k > 1) == patches]
    return [
        _medians([_values(_stage_lines(run, index), value) for run in group.runs if index < len(run.spans)])
        for index in indexes
    ]


def _values(lines: Sequence[Line], value: Callable[[Line], float | None]) -> Curve:
    """What can be drawn: a diverged run's losses are not numbers, and would leave the axes without limits."""
    found = ((float(line.at.raw_tokens), value(line)) for line in lines)
    return [(x, y) for x, y in found if y is not None and math.isfinite(y)]


def _speeds(run: Run, index: int) -> Curve:
    """Means over a twelfth of the stage each; the first step of a start compiles and is left out."""
    lines = _stage_lines(run, index)
    starts = {start + 1 for start in run.history.starts} | {run.spans[index].begin.step + 1}
    pairs = [
        (before.at, after.at)
        for before, after in pairwise(lines)
        if after.at.step not in starts and after.at.seconds > before.at.seconds
    ]
    parts = min(len(pairs), 12)
    curve: Curve = []
    for part in range(parts):
        chunk = pairs[part * len(pairs) // parts : (part + 1) * len(pairs) // parts]
        tokens = sum(after.raw_tokens - before.raw_tokens for before, after in chunk)
        seconds = sum(after.seconds - before.seconds for before, after in chunk)
        curve.append((float(chunk[-1][1].raw_tokens), tokens / seconds))
    return curve


def _medians(curves: Sequence[Curve]) -> Curve:
    """The median of curves at the places that all have, in at most 60 points, which are means."""
    tables = [dict(curve) for curve in curves if curve]
    if not tables:
        return []
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    points = [(x, median(table[x] for table in tables)) for x in shared]
    width = -(-len(points) // _MOST_POINTS)
    chunks = [points[start : start + width] for start in range(0, len(points), width)] if points else []
    return [(chunk[-1][0], mean(y for _, y in chunk)) for chunk in chunks]
