"""A picture of a plan: the stages, the learning rate and the compute over raw tokens."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patch_algorithm.planning.costs import RunCost
from patch_algorithm.planning.plan import Plan
from patch_algorithm.planning.plan_numbers import number

__all__ = ["FORMATS", "check_picture", "draw"]

FORMATS = (".svg", ".png", ".pdf")
# Okabe and Ito's colours, which colour-blind readers can tell from each other.
_PATCH, _TOKEN, _RATE, _RUN, _TOKEN_ONLY = "#E69F00", "#56B4E9", "#222222", "#0072B2", "#D55E00"
_INK = "#222222"


def check_picture(path: str) -> None:
    """Checks that a picture can be drawn there.

    Raises:
        ValueError: If the format is not known, the folder is not there, or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"--picture {path}: expected a file that ends in {', '.join(FORMATS)}.")
    if not Path(path).parent.is_dir():
        raise ValueError(f"--picture {path}: there is no folder {str(Path(path).parent)!r}.")
    if find_spec("matplotlib") is None:
        raise ValueError("--picture needs matplotlib: pip install matplotlib.")


def draw(plan: Plan, path: str) -> None:
    """Draws a plan.

    Args:
        plan: The plan.
        path: The file; its ending is the format.

    Raises:
        ValueError: As :func:`check_picture`.
    """
    check_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.35))
    scale, unit = _unit(plan.costs[1].raw_tokens)
    clock = _DataClock(plan.costs[1], scale)
    figure.suptitle(_title(plan), fontsize=11, color=_INK, x=0.01, ha="left")
    _draw_rate(axes[0], plan, clock)
    _draw_compute(axes[1], plan, clock)
    for one in axes:
        _draw_stages(one, plan.costs[1], clock)
        one.grid(True, color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
        one.set_xlim(0, clock.at(plan.costs[1].steps))
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    _name_stages(axes[0], plan.costs[1], clock)
    axes[1].set_xlabel(f"raw tokens{f', {unit}' if unit else ''}")
    figure.savefig(path, dpi=150, facecolor="white")


class _DataClock:
    """Raw tokens at a step of a run, whose stages may differ in raw tokens a step.

    Args:
        run: The run.
        scale: Tokens of a unit.
    """

    def __init__(self, run: RunCost, scale: float) -> None:
        self.scale = scale
        self._stages = run.stages

    def at(self, step: float) -> float:
        """Raw tokens that the steps before ``step`` take, in units."""
        taken = 0.0
        for stage in self._stages:
            share = min(max(step - stage.first_step, 0), stage.steps) / stage.steps
            taken += share * stage.raw_tokens
        return taken / self.scale


def _title(plan: Plan) -> str:
    parameters = "" if plan.model.parameters is None else f", {number(plan.model.parameters)} parameters"
    run = plan.costs[1]
    return (
        f"{Path(plan.run.path).name}{parameters}, {number(run.raw_tokens)} raw tokens in {run.steps:,} steps"
    )


def _unit(tokens: float) -> tuple[float, str]:
    for size, name in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if tokens >= size:
            return size, name
    return 1.0, ""


def _draw_stages(axes: Any, run: RunCost, clock: _DataClock) -> None:
    for stage in run.stages:
        first, last = clock.at(stage.first_step), clock.at(stage.first_step + stage.steps)
        # A hatch beside the colour: stages are told apart in grey, too.
        hatch = "///" if stage.in_patches else None
        color = _PATCH if stage.in_patches else _TOKEN
        axes.axvspan(first, last, facecolor=color, alpha=0.16, linewidth=0, zorder=0)
        if hatch:
            axes.axvspan(
                first, last, facecolor="none", edgecolor=color, alpha=0.25, hatch=hatch, linewidth=0, zorder=0
            )
        if first > 0:
            axes.axvline(first, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))


def _name_stages(axes: Any, run: RunCost, clock: _DataClock) -> None:
    whole = clock.at(run.steps)
    for stage in run.stages:
        first, last = clock.at(stage.first_step), clock.at(stage.first_step + stage.steps)
        middle, narrow = (first + last) / 2, (last - first) / whole < 0.14
        text = (
            f"k={stage.k}"
            if narrow and stage.in_patches
            else "token"
            if narrow
            else f"patch stage, k={stage.k}"
            if stage.in_patches
            else "token stage"
        )
        if not narrow:
            text += f"\n{stage.steps:,} steps"
        axes.annotate(
            text,
            (middle, 1.03),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=9,
            color=_INK,
        )


def _draw_rate(axes: Any, plan: Plan, clock: _DataClock) -> None:
    axes.set_ylabel("learning rate")
    rates = plan.rates
    if not rates.steps:
        axes.text(0.5, 0.5, "not known: see the text", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
        return
    axes.plot(
        [clock.at(step) for step in rates.steps], rates.values, color=_RATE, linewidth=1.8, clip_on=False
    )
    axes.set_ylim(0, 1.08 * max(max(rates.values), 1e-12))
    _exponent_into_label(axes)


def _draw_compute(axes: Any, plan: Plan, clock: _DataClock) -> None:
    token, run, _ = plan.costs
    counted = run.flops is not None and token.flops is not None
    for cost, color, style, name in (
        (token, _TOKEN_ONLY, (0, (5, 2)), "token-only, same data"),
        (run, _RUN, "solid", "this run"),
    ):
        x, y = _curve(cost, clock.scale, counted)
        axes.plot(x, y, color=color, linestyle=style, linewidth=2, clip_on=False)
        share = y[-1] / max(_curve(token, clock.scale, counted)[1][-1], 1e-12)
        # The one above its rising line, the other below: neither meets a line.
        above = cost is token
        at = _height(x, y, 0.62 if above else 0.8)
        axes.annotate(
            name if above else f"{name}: {100 * share:.0f} %",
            at,
            xytext=(-6, 4) if above else (6, -4),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            fontsize=9,
            color=color,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("compute so far, FLOPs" if counted else "positions so far")
    _exponent_into_label(axes)


def _exponent_into_label(axes: Any) -> None:
    """Moves the power of ten from above an axis, where a stage's name would meet it, into its label."""
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    offset = axes.yaxis.get_offset_text()
    offset.set_visible(False)
    axes.figure.canvas.draw()
    if offset.get_text():
        axes.set_ylabel(f"{axes.get_ylabel()} ({offset.get_text()})")


def _height(x: Sequence[float], y: Sequence[float], share: float) -> tuple[float, float]:
    """The point of a curve at a share of its length in x."""
    at = share * x[-1]
    for left, right, low, high in zip(x, x[1:], y, y[1:], strict=False):
        if left <= at <= right:
            return at, low + (high - low) * (at - left) / (right - left)
    return x[-1], y[-1]


def _curve(cost: RunCost, scale: float, counted: bool) -> tuple[list[float], Sequence[float]]:
    x, y = [0.0], [0.0]
    for stage in cost.stages:
        x.append(x[-1] + stage.raw_tokens / scale)
        y.append(y[-1] + ((stage.flops or 0.0) if counted else stage.positions))
    return x, y
