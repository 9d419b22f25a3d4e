"""The study's headline plot: the difference to the twin over tokens per parameter, and public pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from drawing import Drawing
from tables import size

from benchmarks.study.analysis import Comparison, headline
from benchmarks.study.report import load
from patch_algorithm.planning.verdict_evidence import EQUAL_COMPUTE

__all__ = ["HEIGHT", "WIDTH", "draw_study", "finished"]

WIDTH, HEIGHT = 820, 400
_RESULTS = Path(__file__).parents[2] / "benchmarks" / "study" / "results" / "runs.jsonl"
_TOP, _BOTTOM = 62.0, 340.0


@dataclass(frozen=True)
class _Axes:
    """A chart with a logarithmic x and a linear y."""

    left: float
    right: float
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def x(self, value: float) -> float:
        low, high = math.log(self.xs[0] / 1.35), math.log(self.xs[-1] * 1.35)
        return self.left + (self.right - self.left) * (math.log(value) - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.ys[0], self.ys[-1]
        return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)


@cache
def finished() -> tuple[Comparison, ...]:
    """The cells of the main line that more than one seed has finished."""
    return tuple(one for one in headline(load(_RESULTS)[1]) if len(one.seeds) > 1)


def draw_study(drawing: Drawing) -> None:
    """Draws both charts from the drawing's origin."""
    _ours(drawing, _Axes(52, 400, (20, 40, 80, 160, 320), _gridlines(_heights())))
    public = _gridlines(point.nats for point in EQUAL_COMPUTE)
    _public(drawing, _Axes(490, WIDTH - 8, (2, 10, 50, 250, 1250), public))


def _gridlines(values: Iterable[float], step: float = 0.05) -> tuple[float, ...]:
    """Multiples of ``step`` that enclose zero and the values, with some room at both ends."""
    values = [0.0, *values]
    low, high = math.floor(min(values) / step - 0.2), math.ceil(max(values) / step + 0.2)
    return tuple(step * line for line in range(low, high + 1))


def _heights() -> list[float]:
    """All that is drawn of our study."""
    intervals = [one.wider() for one in finished()]
    seeds = [float(value) for one in finished() for value in one.by_seed()]
    return [*seeds, *(one.low for one in intervals), *(one.high for one in intervals)]


def _ours(drawing: Drawing, axes: _Axes) -> None:
    _frame(drawing, axes, "Our study", "patch minus token-only, bits per byte; 0.16M parameters")
    color = drawing.palette.theme.lines[0]
    cells = finished()
    points = [(axes.x(one.settings.tokens_per_parameter), axes.y(one.by_seed().mean())) for one in cells]
    drawing.path(points, color, 2.2)
    for (x, y), one in zip(points, cells, strict=True):
        interval = one.wider()
        drawing.path([(x, axes.y(interval.low)), (x, axes.y(interval.high))], color, 1.4)
        for end in (interval.low, interval.high):
            drawing.path([(x - 5, axes.y(end)), (x + 5, axes.y(end))], color, 1.4)
        for value in one.by_seed():
            drawing.dot(x + 9, axes.y(value), drawing.palette.muted, 2.2)
        drawing.dot(x, y, color, 4)
    drawing.text(axes.right, _TOP + 12, "line: mean, and its 95 % interval", 12, "end", color)
    drawing.text(axes.right, _TOP + 28, "grey: each seed", 12, "end", drawing.palette.muted)


def _public(drawing: Drawing, axes: _Axes) -> None:
    _frame(drawing, axes, "Public pairs", "patch minus token-only, nats per token; one run each")
    color = drawing.palette.theme.lines[1]
    shown = [point for point in EQUAL_COMPUTE if point.tokens_per_parameter is not None]
    places = [(axes.x(point.tokens_per_parameter or 1), axes.y(point.nats)) for point in shown]
    named: set[tuple[float, float]] = set()
    for point, (x, y) in zip(shown, places, strict=True):
        drawing.dot(x, y, color, 4)
        # Two pairs of one model that differ in k lie close together.
        if (point.parameters, x) not in named:
            crowded = any(0 < other - x < 48 and abs(height - y) < 12 for other, height in places)
            at_the_edge = x + 42 > axes.right
            side, anchor = (-7, "end") if crowded or at_the_edge else (7, "start")
            drawing.text(x + side, y + 4, size(point.parameters), 12, anchor, drawing.palette.muted)
        named.add((point.parameters, x))


def _frame(drawing: Drawing, axes: _Axes, title: str, unit: str) -> None:
    muted, ink = drawing.palette.muted, drawing.palette.theme.ink
    drawing.text(axes.left - 44, 14, title, 15, bold=True)
    drawing.text(axes.left - 44, 34, unit, 12.5, color=muted)
    for value in axes.ys:
        y, zero = axes.y(value), value == 0
        drawing.path(
            [(axes.left, y), (axes.right, y)],
            ink if zero else drawing.palette.theme.faint,
            1 if zero else 0.4,
        )
        drawing.text(
            axes.left - 8, y + 4, f"{value:+.2f}".replace("-", "−") if value else "0", 12, "end", muted
        )
    drawing.text(axes.left + 4, axes.y(0) + 15, "patches better below", 12, color=muted)
    for value in axes.xs:
        drawing.text(axes.x(value), _BOTTOM + 18, f"{value:g}", 12, "middle", muted)
    middle = (axes.left + axes.right) / 2
    drawing.text(
        middle, _BOTTOM + 40, "tokens per parameter of the token-only run", anchor="middle", color=muted
    )
