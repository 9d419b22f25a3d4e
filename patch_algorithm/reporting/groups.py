"""Runs of the same settings with different seeds, as one curve with a band."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from patch_algorithm.monitoring.moment import Moment
from patch_algorithm.reporting.runs import Run, Span

__all__ = ["AXES", "Group", "Point", "group_runs", "x_of"]

AXES = ("raw_tokens", "flops", "seconds")
"""What curves are drawn over."""


@dataclass(frozen=True)
class Point:
    """A loss of a group: the median of its runs, and the lowest and highest."""

    at: Moment
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: What the report calls it.
        runs: Its runs.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def has_patches(self) -> bool:
        """Whether its runs had a patch stage."""
        return self.runs[0].has_patches

    @property
    def spans(self) -> list[Span]:
        """The stages of its first run, which are those of all."""
        return self.runs[0].spans

    @property
    def evals(self) -> list[Point]:
        """The evaluations that all its runs have."""
        at = {step: [] for step in (moment.step for moment, _ in self.runs[0].evals)}
        for run in self.runs:
            for moment, loss in run.evals:
                if moment.step in at:
                    at[moment.step].append((moment, loss))
        return [_point(found) for found in at.values() if len(found) == len(self.runs)]

    @property
    def final_losses(self) -> list[float]:
        """The eval loss at the end of each run that has one."""
        return [run.final_loss for run in self.runs if run.final_loss is not None]

    @property
    def final_loss(self) -> float | None:
        """Their median."""
        return median(self.final_losses) if self.final_losses else None

    @property
    def spread(self) -> float | None:
        """Highest less lowest final loss; ``None`` of a single run."""
        losses = self.final_losses
        return max(losses) - min(losses) if len(losses) > 1 else None

    def total(self, axis: str) -> float | None:
        """The median of what its runs have taken by their end, on one of :data:`AXES` or ``positions``."""
        values = [x_of(run.end, axis) for run in self.runs]
        known = [value for value in values if value is not None]
        return median(known) if len(known) == len(values) else None

    def reach(self, span: Span, axis: str) -> tuple[float, float]:
        """Where a stage of its first run begins and ends on an axis; times are medians over its runs."""
        index = self.spans.index(span)
        alike = [run.spans[index] for run in self.runs if index < len(run.spans)]
        left, right = (median(x_of(at, axis) or 0.0 for at in ats) for ats in _ends(alike))
        return left, right

    @property
    def seeds(self) -> str:
        """How many seeds it has, as the verdict says it."""
        known = [run.seed for run in self.runs]
        if len(self.runs) == 1:
            return "one seed"
        if None in known:
            return f"{len(self.runs)} runs, seeds not recorded"
        distinct = len(set(known))
        return f"{distinct} seeds" if distinct == len(known) else f"{len(known)} runs of {distinct} seeds"


def _ends(spans: Sequence[Span]) -> tuple[list[Moment], list[Moment]]:
    return [span.begin for span in spans], [span.end for span in spans]


def x_of(moment: Moment, axis: str) -> float | None:
    """Where a moment lies on an axis."""
    value = getattr(moment, axis)
    return None if value is None else float(value)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Puts runs of the same settings together, those that were named ``NAME=`` by their name.

    Raises:
        ValueError: If runs were put in a group by name whose stages differ.
    """
    members: dict[Any, list[Run]] = {}
    for run in runs:
        members.setdefault(run.group if run.group is not None else _signature(run), []).append(run)
    groups, taken = [], set()
    for key, group in members.items():
        if isinstance(key, str) and len({_stages(run) for run in group}) > 1:
            raise ValueError(
                f"The runs named {key!r} differ in their stages: {', '.join(run.path for run in group)}. "
                "Runs of a group may differ in their seed only; give the others another name."
            )
        name = key if isinstance(key, str) else _common_name(group)
        while name in taken:
            name = f"{name}'"
        taken.add(name)
        groups.append(Group(name, tuple(group)))
    return groups


# Settings that a seed does not change, with what files hold that do not name them.
_SETTINGS = {
    "max_duration": None,
    "parameters": None,
    "optimizer": None,
    "weight_decay": None,
    "on_switch": "carry",
    "target_weights": "uniform",
}


def _signature(run: Run) -> tuple[Any, ...]:
    given = {name: run.settings.get(name) for name in _SETTINGS}
    settings = tuple(
        str(default if given[name] is None else given[name]) for name, default in _SETTINGS.items()
    )
    rates = run.rates
    peak = max((rate for _, rate in rates), default=0.0)
    shape = [f"{rates[(len(rates) - 1) * part // 16][1]:.3g}" for part in range(17)] if rates else []
    return (_stages(run), settings, f"{peak:.4g}", *shape, run.sound, run.metric)


def _stages(run: Run) -> tuple[Any, ...]:
    return tuple(
        (span.k, span.end.step, span.end.raw_tokens, round(span.positions_per_token, 3)) for span in run.spans
    )


def _common_name(runs: Sequence[Run]) -> str:
    """What the names have in common at their beginning; the first name where that is nothing."""
    if len(runs) == 1:
        return runs[0].name
    common = os.path.commonprefix([run.name for run in runs])
    if any(run.name[len(common) :][:1].isdigit() for run in runs):  # seeds 17 and 18 share a digit
        common = common.rstrip("0123456789")
    common = common.rstrip("-_. ").removesuffix("seed").rstrip("-_. ")
    return common or f"{runs[0].name} and {len(runs) - 1} more"


def _point(found: Sequence[tuple[Moment, float]]) -> Point:
    losses = [loss for _, loss in found]
    first = found[0][0]
    seconds = median(moment.seconds for moment, _ in found)
    at = Moment(first.stage, first.k, first.step, first.raw_tokens, first.positions, first.flops, seconds)
    return Point(at, median(losses), min(losses), max(losses))
