"""The figures themselves, each drawn with a theme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from matplotlib.transforms import blended_transform_factory

from patch_algorithm.reporting import series
from patch_algorithm.reporting.amounts import axis_unit
from patch_algorithm.reporting.groups import Group, Point, x_of
from patch_algorithm.reporting.recovery import Recovery
from patch_algorithm.reporting.style import DASHES, MARKERS, Theme

__all__ = ["Scene", "curve_figure", "eval_figure", "final_figure", "recovery_figure", "training_figure"]

_WIDTH = 8.6


@dataclass(frozen=True)
class Scene:
    """What all figures share.

    Attributes:
        groups: The groups, in the order of their colours.
        staged: The group whose stages are shaded.
        compute: The axis of compute.
    """

    groups: tuple[Group, ...]
    staged: Group | None
    compute: str

    def look(self, group: Group, theme: Theme) -> dict[str, Any]:
        """Colour and dashes of a group."""
        number = self.groups.index(group)
        colour, dash = theme.lines[number % len(theme.lines)], DASHES[number % len(DASHES)]
        return {"color": colour, "linestyle": dash}

    def marker(self, group: Group) -> str:
        """The mark at its end."""
        return MARKERS[self.groups.index(group) % len(MARKERS)]

    def largest(self, axis: str) -> float:
        """How far the runs go on an axis."""
        return max(
            run_end for g in self.groups for run in g.runs if (run_end := x_of(run.end, axis)) is not None
        )


def eval_figure(scene: Scene, theme: Theme, axis: str) -> Figure:
    """Eval loss over an axis."""
    figure, ax = _figure()
    by, label = axis_unit(axis, scene.largest(axis))
    for group in scene.groups:
        _eval_curve(ax, scene, theme, group, axis, by)
    losses = [(x_of(p.at, axis) or 0.0, p) for g in scene.groups for p in g.evals]
    # The first evaluations are several nats above the rest and would flatten it.
    kept = [p for x, p in losses if x >= 0.12 * scene.largest(axis)] or [p for _, p in losses]
    _limit(ax, min(p.low for p in kept), max(p.high for p in kept))
    _dress(ax, scene, theme, axis, by, label, "eval loss (nats per token)")
    return figure


def _eval_curve(ax: Axes, scene: Scene, theme: Theme, group: Group, axis: str, by: float) -> None:
    points = [(x / by, p) for p in group.evals if (x := x_of(p.at, axis)) is not None]
    if not points:
        return
    look, xs = scene.look(group, theme), [x for x, _ in points]
    ax.plot(xs, [p.loss for _, p in points], label=_label(group), **look)
    if len(group.runs) > 1:
        lows, highs = [p.low for _, p in points], [p.high for _, p in points]
        ax.fill_between(xs, lows, highs, color=look["color"], alpha=0.22, linewidth=0)
    ax.plot(xs[-1:], [points[-1][1].loss], scene.marker(group), color=look["color"], markersize=6)


def final_figure(scene: Scene, theme: Theme) -> Figure:
    """The eval loss at the end of each run, over its compute."""
    figure, ax = _figure(3.4)
    by, label = axis_unit(scene.compute, scene.largest(scene.compute))
    for group in scene.groups:
        colour, xs = scene.look(group, theme)["color"], []
        for run in group.runs:
            x = x_of(run.end, scene.compute)
            if run.final_loss is None or x is None:
                continue
            xs.append(x / by)
            fill = colour if run.unfinished() is None else theme.ground
            ax.plot(
                [x / by],
                [run.final_loss],
                scene.marker(group),
                color=colour,
                markerfacecolor=fill,
                markersize=7,
            )
        if xs and group.final_loss is not None:
            ax.plot([], [], scene.marker(group), color=colour, label=_label(group))
            if len(xs) > 1:
                ax.plot(
                    xs[:1], [group.final_loss], marker="_", markersize=26, markeredgewidth=2, color=colour
                )
    ax.set_xlim(0, scene.largest(scene.compute) / by * 1.08)
    ax.margins(y=0.18)
    ax.set_xlabel(label)
    ax.set_ylabel("eval loss (nats per token)")
    _legend(ax)
    return figure


def recovery_figure(scene: Scene, theme: Theme, recovery: Recovery) -> Figure:
    """Eval loss from just before the switch to the end, over compute."""
    figure, ax = _figure()
    axis = scene.compute
    by, label = axis_unit(axis, scene.largest(axis))
    subject = next(g for g in scene.groups if g.name == recovery.subject)
    shown = [g for g in scene.groups if g.name in (recovery.subject, recovery.baseline)]
    for group in shown:
        _eval_curve(ax, scene, theme, group, axis, by)
    switch = x_of(subject.spans[-2].end, axis) or 0.0
    end = x_of(subject.runs[0].end, axis) or 1.0
    left, right = max(switch - 0.35 * (end - switch), 0.0), end + 0.06 * (end - switch)
    near = [p for g in shown for p in g.evals if left <= (x_of(p.at, axis) or 0.0) <= right]
    if near:
        _limit(ax, min(p.low for p in near), max(p.high for p in near))
    ax.axvline(switch / by, color=theme.faint, linewidth=1)
    _mark(ax, theme, recovery.before, "before", axis, by, (-6, 10), "right")
    _mark(ax, theme, recovery.after, "after", axis, by, (8, 8), "left")
    if recovery.level is not None:
        words = f"level after {recovery.steps:,} steps"
        _mark(ax, theme, recovery.level, words, axis, by, (8, 10), "left")
    # The staged group's bands are of another run if several have patches.
    _dress(ax, replace(scene, staged=subject), theme, axis, by, label, "eval loss (nats per token)")
    ax.set_xlim(left / by, right / by)
    return figure


def _mark(
    ax: Axes, theme: Theme, point: Point | None, words: str, axis: str, by: float, offset: Any, side: str
) -> None:
    if point is None or (x := x_of(point.at, axis)) is None:
        return
    ax.plot([x / by], [point.loss], "o", color=theme.ink, markersize=5, zorder=5)
    ax.annotate(
        f"{words}: {point.loss:.3f}",
        (x / by, point.loss),
        textcoords="offset points",
        xytext=offset,
        ha=side,
        fontsize=9,
        bbox={"facecolor": theme.ground, "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )


def training_figure(scene: Scene, theme: Theme) -> Figure:
    """Training losses: patch stages and token stages apart."""
    kinds = [
        (series.patch_loss, "patch stages: nats per token of the next patch"),
        (series.token_loss, "token stages: nats per next token"),
    ]
    used = [(c, title) for c, title in kinds if any(curve for g in scene.groups for curve in c(g))]
    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    by, label = axis_unit("raw_tokens", scene.largest("raw_tokens"))
    for number, (curves, title) in enumerate(used, 1):
        ax = figure.add_subplot(1, len(used), number)
        _curves(ax, scene, theme, curves, by)
        ys = sorted(y for g in scene.groups for curve in curves(g) for _, y in curve)
        if ys:
            _limit(ax, ys[0], ys[min(int(len(ys) * 0.97), len(ys) - 1)])
        ax.set_xlim(0, scene.largest("raw_tokens") / by * 1.02)
        ax.set_xlabel(label)
        ax.set_title(title)
        _legend(ax)
    if len(used) == 2:
        figure.suptitle("two losses on two scales: the panels are not comparable", fontsize=10)
    return figure


def curve_figure(
    scene: Scene, theme: Theme, curves: Callable[[Group], list[Any]], label: str, from_zero: bool
) -> Figure:
    """Any other curve, over raw tokens."""
    figure, ax = _figure(3.2)
    by, x_label = axis_unit("raw_tokens", scene.largest("raw_tokens"))
    _curves(ax, scene, theme, curves, by)
    if from_zero:
        ax.set_ylim(0, ax.get_ylim()[1] * 1.12)
    if ax.get_ylim()[1] >= 1000:
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _dress(ax, scene, theme, "raw_tokens", by, x_label, label)
    return figure


def _curves(ax: Axes, scene: Scene, theme: Theme, curves: Callable[[Group], list[Any]], by: float) -> None:
    for group in scene.groups:
        label: str | None = _label(group)
        for curve in curves(group):
            if curve:
                ax.plot(
                    [x / by for x, _ in curve], [y for _, y in curve], label=label, **scene.look(group, theme)
                )
                label = None


def _figure(height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _dress(ax: Axes, scene: Scene, theme: Theme, axis: str, by: float, x_label: str, y_label: str) -> None:
    ax.set_xlim(0, scene.largest(axis) / by * 1.02)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    _bands(ax, scene, theme, axis, by)
    _legend(ax)


def _bands(ax: Axes, scene: Scene, theme: Theme, axis: str, by: float) -> None:
    for group in scene.groups:
        if group is not scene.staged and group.has_patches:
            for span in group.spans[:-1]:
                ax.axvline(
                    (x_of(span.end, axis) or 0.0) / by, linewidth=1.2, alpha=0.8, **scene.look(group, theme)
                )
    if scene.staged is None:
        return
    above = blended_transform_factory(ax.transData, ax.transAxes)
    for span in scene.staged.spans:
        left, right = ((x_of(at, axis) or 0.0) / by for at in (span.begin, span.end))
        if span.k > 1:
            ax.axvspan(left, right, color=theme.band, zorder=0, linewidth=0)
        ax.text(
            (left + right) / 2,
            1.015,
            span.label,
            transform=above,
            ha="center",
            va="bottom",
            fontsize=9,
            color=theme.ink,
            clip_on=False,
        )


def _limit(ax: Axes, low: float, high: float) -> None:
    margin = 0.08 * (high - low) or 0.05
    ax.set_ylim(low - margin, high + margin)


def _label(group: Group) -> str:
    return group.name if len(group.runs) == 1 else f"{group.name} ({len(group.runs)} seeds)"


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best", fontsize=9)
