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
_STEEP = 0.12
"""The first share of the longest run sets no scale: its losses are nats above the rest."""


@dataclass(frozen=True)
class Scene:
    """What all figures share.

    Attributes:
        groups: The groups, in the order of their colours.
        staged: The group whose stages are shaded.
        compute: The axis of compute.
        switches: Whether the ends of other groups' patch stages are marked.
    """

    groups: tuple[Group, ...]
    staged: Group | None
    compute: str
    switches: bool = True

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
        return max(total for g in self.groups if (total := g.total(axis)) is not None)


def eval_figure(scene: Scene, theme: Theme, axis: str) -> Figure:
    """Eval loss over an axis."""
    figure, ax = _figure()
    by, label = axis_unit(axis, scene.largest(axis))
    for group in scene.groups:
        _eval_curve(ax, scene, theme, group, axis, by)
    losses = [(x_of(p.at, axis) or 0.0, p) for g in scene.groups for p in g.evals]
    kept = [p for x, p in losses if x >= _STEEP * scene.largest(axis)] or [p for _, p in losses]
    _limit(ax, min(p.low for p in kept), max(p.high for p in kept))
    _dress(ax, scene, theme, axis, by, label, "eval loss (nats per token)")
    _legend(figure)
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
    for number, group in enumerate(scene.groups):
        # Groups of equal compute would cover each other.
        aside = (number - (len(scene.groups) - 1) / 2) * 0.014 * scene.largest(scene.compute) / by
        _final_losses(ax, scene, theme, group, by, aside)
    ax.set_xlim(0, scene.largest(scene.compute) / by * 1.08)
    ax.margins(y=0.18)
    ax.set_xlabel(label)
    ax.set_ylabel("eval loss (nats per token)")
    _legend(figure)
    return figure


def _final_losses(ax: Axes, scene: Scene, theme: Theme, group: Group, by: float, aside: float) -> None:
    colour, marker, total = scene.look(group, theme)["color"], scene.marker(group), group.total(scene.compute)
    if total is None or group.final_loss is None:
        return
    place = total / by + aside
    for run in group.runs:
        if run.final_loss is not None:
            fill = colour if run.unfinished() is None else theme.ground
            ax.plot([place], [run.final_loss], marker, color=colour, markerfacecolor=fill, markersize=7)
    if len(group.final_losses) > 1:
        ax.plot([place], [group.final_loss], "_", markersize=24, markeredgewidth=2, color=colour)
    ax.plot([], [], marker, color=colour, label=_label(group))


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
    near = [p for g in shown for p in g.evals if switch <= (x_of(p.at, axis) or 0.0) <= right]
    if near:
        _limit(ax, min(p.low for p in near), max(p.high for p in near))
    _mark(ax, theme, recovery.before, "before the switch", axis, by, "o")
    _mark(ax, theme, recovery.after, "first after it", axis, by, "D")
    if recovery.level is not None:
        _mark(ax, theme, recovery.level, f"level {recovery.steps:,} steps after it", axis, by, "*")
    # The bands are the subject's, though another group's stages may be shaded elsewhere.
    view = (left / by, right / by)
    _dress(
        ax,
        replace(scene, staged=subject, switches=False),
        theme,
        axis,
        by,
        label,
        "eval loss (nats per token)",
        view,
    )
    _legend(figure)
    return figure


def _mark(ax: Axes, theme: Theme, point: Point | None, words: str, axis: str, by: float, marker: str) -> None:
    """A point that the legend tells of: beside the curves the words would cover them."""
    if point is None or (x := x_of(point.at, axis)) is None:
        return
    size = 15 if marker == "*" else 7
    look: dict[str, Any] = {"color": theme.ink, "markersize": size, "zorder": 5 if marker == "*" else 6}
    label = f"{words}: {point.loss:.3f}"
    ax.plot([x / by], [point.loss], marker, markerfacecolor="none", markeredgewidth=1.6, label=label, **look)


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
        points = [point for g in scene.groups for curve in curves(g) for point in curve]
        kept = [y for x, y in points if x >= _STEEP * scene.largest("raw_tokens")] or [y for _, y in points]
        _limit(ax, min(kept), max(kept))
        ax.set_xlim(0, scene.largest("raw_tokens") / by * 1.02)
        ax.set_xlabel(label)
        ax.set_title(title)
    _legend(figure)
    if len(used) == 2:
        figure.suptitle("two losses on two scales: the panels are not comparable", fontsize=10)
    return figure


def curve_figure(scene: Scene, theme: Theme, curves: Callable[[Group], list[Any]], label: str) -> Figure:
    """Any other curve, over raw tokens, from zero."""
    figure, ax = _figure(3.2)
    by, x_label = axis_unit("raw_tokens", scene.largest("raw_tokens"))
    _curves(ax, scene, theme, curves, by)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.05)
    if ax.get_ylim()[1] >= 1000:
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _dress(ax, scene, theme, "raw_tokens", by, x_label, label)
    _legend(figure)
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


def _dress(
    ax: Axes,
    scene: Scene,
    theme: Theme,
    axis: str,
    by: float,
    x_label: str,
    y_label: str,
    view: tuple[float, float] | None = None,
) -> None:
    ax.set_xlim(*(view or (0, scene.largest(axis) / by * 1.02)))
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    for group in scene.groups:
        if scene.switches and group is not scene.staged and group.has_patches:
            for span in group.spans[:-1]:
                place = (x_of(span.end, axis) or 0.0) / by
                ax.axvline(place, linewidth=1.2, alpha=0.8, **scene.look(group, theme))
    if scene.staged is not None:
        _bands(ax, scene.staged, theme, axis, by)


def _bands(ax: Axes, group: Group, theme: Theme, axis: str, by: float) -> None:
    """Shades a group's patch stages and names all its stages, above the axes and as the room allows."""
    above = blended_transform_factory(ax.transData, ax.transAxes)
    low, high = ax.get_xlim()
    for span in group.spans:
        left, right = (x / by for x in group.reach(span, axis))
        left, right = max(left, low), min(right, high)
        share = (right - left) / (high - low)
        if span.k > 1 and right > left:
            ax.axvspan(left, right, color=theme.band, zorder=0, linewidth=0)
        label = (
            span.label if share > 0.022 * len(span.label) / 2 else f"k={span.k}" if span.k > 1 else "tokens"
        )
        if share > 0.03:
            ax.axvline(right, color=theme.faint, linewidth=0.8, zorder=1)
            ax.text((left + right) / 2, 1.015, label, transform=above, ha="center", va="bottom", fontsize=9)


def _limit(ax: Axes, low: float, high: float) -> None:
    margin = 0.08 * (high - low) or 0.05
    ax.set_ylim(low - margin, high + margin)


def _label(group: Group) -> str:
    return group.name if len(group.runs) == 1 else f"{group.name} ({len(group.runs)} seeds)"


def _legend(figure: Figure) -> None:
    """One below the axes, where it covers no curve."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= {
            label: handle for handle, label in zip(handles, labels, strict=True) if label not in entries
        }
    if entries:
        columns = min(len(entries), 3)
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns, fontsize=9
        )
