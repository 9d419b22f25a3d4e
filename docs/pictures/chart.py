"""Token-level eval loss over compute of a measured patch run and its token-only twin."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drawing import Drawing
from runs import MeasuredRun, measured_runs

__all__ = ["HEIGHT", "WIDTH", "draw_runs"]

WIDTH, HEIGHT = 396, 418
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 388.0, 64.0, 354.0


def draw_runs(drawing: Drawing) -> None:
    """Draws the chart from the drawing's origin."""
    patch, twin = measured_runs()
    scale = _Scale((patch, twin))
    muted, blue, orange = drawing.palette.muted, *drawing.palette.theme.lines[:2]
    drawing.text(0, 14, "A measured run and its twin", 15, bold=True)
    drawing.text(
        0,
        34,
        f"eval loss at token level, nats per token; {patch.parameters / 1e6:.1f}M parameters",
        color=muted,
    )
    _axes(drawing, scale)
    assert patch.switch is not None
    switch = scale.x(patch.switch)
    drawing.box(_LEFT, _TOP, switch - _LEFT, _BOTTOM - _TOP, drawing.palette.theme.band, radius=0)
    _grid(drawing, scale)
    drawing.path([(switch, _TOP), (switch, _BOTTOM)], drawing.palette.theme.ink, 1.2, dash="4 3")
    drawing.text(switch + 6, _TOP + 14, "the switch", 13)
    for run, color, dash in ((twin, orange, "6 4"), (patch, blue, "")):
        drawing.path([(scale.x(x), scale.y(y)) for x, y in run.losses if y <= scale.high], color, 2.2, dash)
        drawing.dot(scale.x(run.losses[-1][0]), scale.y(run.losses[-1][1]), color)
    _names(drawing, scale, patch, twin)
    drawing.text(
        (_LEFT + _RIGHT) / 2,
        _BOTTOM + 36,
        "compute, FLOPs (both end at the same)",
        anchor="middle",
        color=muted,
    )


class _Scale:
    """From FLOPs and nats to places in the chart."""

    def __init__(self, runs: Sequence[MeasuredRun]) -> None:
        self.end = max(run.losses[-1][0] for run in runs)
        losses = [loss for run in runs for _, loss in run.losses]
        # The first evaluations, of untrained models, would take most of the height.
        self.low, self.high = int(min(losses) - 0.3), min(max(losses), min(losses) + 3)

    def x(self, flops: float) -> float:
        return _LEFT + (_RIGHT - 8 - _LEFT) * flops / self.end

    def y(self, loss: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (loss - self.low) / (self.high - self.low)


def _axes(drawing: Drawing, scale: _Scale) -> None:
    muted = drawing.palette.muted
    for nats in range(math.ceil(scale.low), int(scale.high) + 1):
        drawing.text(_LEFT - 8, scale.y(nats) + 4, str(nats), 12, anchor="end", color=muted)
    step = 10 ** int(f"{scale.end:e}".partition("e")[2])
    every = 2 if scale.end / step > 5 else 1
    for count in range(0, int(scale.end / step) + 1, every):
        place = scale.x(count * step)
        power = f"×10{_superscript(f'{step:e}'.partition('e')[2])}"
        words = "0" if not count else f"{count}{power}"
        drawing.text(place, _BOTTOM + 17, words, 12, anchor="middle", color=muted)


def _grid(drawing: Drawing, scale: _Scale) -> None:
    for nats in range(math.ceil(scale.low), int(scale.high) + 1):
        y = scale.y(nats)
        drawing.path([(_LEFT, y), (_RIGHT, y)], drawing.palette.theme.faint, 0.4)
    drawing.path([(_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)], drawing.palette.theme.ink, 1)


def _superscript(number: str) -> str:
    return str(int(number)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _names(drawing: Drawing, scale: _Scale, patch: MeasuredRun, twin: MeasuredRun) -> None:
    blue, orange = drawing.palette.theme.lines[:2]
    early = next(point for point in patch.losses if point[0] > 0.04 * scale.end)
    drawing.text(scale.x(0) + 4, scale.y(early[1]) + 72, f"patches, k = {patch.k}", color=blue, bold=True)
    later = next(point for point in twin.losses if point[0] > 0.42 * scale.end)
    drawing.text(scale.x(later[0]) + 4, scale.y(later[1]) - 14, "token-only", color=orange, bold=True)
    ends = sorted(((run.losses[-1][1], color) for run, color in ((patch, blue), (twin, orange))))
    for (loss, color), down in zip(ends, (20, -10), strict=True):
        drawing.text(
            scale.x(scale.end), scale.y(loss) + down, f"{loss:.2f}", anchor="end", color=color, bold=True
        )
