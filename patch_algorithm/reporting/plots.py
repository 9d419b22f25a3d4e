"""The figures of a report. matplotlib without a display and without its global state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from patch_algorithm.reporting import figures, series
from patch_algorithm.reporting.groups import Group
from patch_algorithm.reporting.recovery import Recovery
from patch_algorithm.reporting.style import Theme

__all__ = ["Picture", "draw", "pictures"]


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: Its file's, without the ending.
        title: Its heading.
        caption: What has to be known to read it.
        paint: Draws it with a theme.
    """

    name: str
    title: str
    caption: str
    paint: Callable[[Theme], Figure]


def pictures(groups: Sequence[Group], recoveries: Sequence[Recovery], compute: str) -> list[Picture]:
    """The figures that these groups give something to draw for."""
    scene = figures.Scene(tuple(groups), next((g for g in groups if g.has_patches), None), compute)
    found: list[Picture] = []
    bands = f" Shaded: patch stages of {scene.staged.name}." if scene.staged else ""
    bands += _other_switches(scene)
    several = any(len(group.runs) > 1 for group in groups)
    seeds = " Line: median of the seeds; band: lowest to highest." if several else ""
    if any(group.evals for group in groups):
        for axis, name, words in (
            ("raw_tokens", "eval-by-tokens", "raw tokens"),
            (compute, "eval-by-compute", "compute"),
            ("seconds", "eval-by-time", "training time"),
        ):
            found.append(
                Picture(
                    name,
                    f"Eval loss against {words}",
                    f"At token level in every stage, so that all points can be compared.{seeds}{bands}"
                    + (" Times compare only runs on the same machine." if axis == "seconds" else ""),
                    lambda theme, axis=axis: figures.eval_figure(scene, theme, axis),
                )
            )
    if any(group.final_losses for group in groups):
        found.append(
            Picture(
                "final-by-compute",
                "Eval loss at the end of each run",
                "Filled: the run finished its schedule. Hollow: it did not, and is not compared. "
                "Bar: the median of the seeds. Groups of equal compute are drawn side by side.",
                lambda theme: figures.final_figure(scene, theme),
            )
        )
    for recovery in recoveries:
        found.append(
            Picture(
                f"recovery-{_slug(recovery.subject)}",
                f"Recovery of {recovery.subject} after the switch",
                "Eval loss at token level over compute. A baseline in the middle of its schedule is "
                "higher than a run that ends there: crossing it proves nothing." + seeds,
                lambda theme, recovery=recovery: figures.recovery_figure(scene, theme, recovery),
            )
        )
    if any(curve for group in groups for curve in (*series.patch_loss(group), *series.token_loss(group))):
        found.append(
            Picture(
                "training-loss",
                "Training loss, stage by stage",
                "A patch-stage loss is the mean over the k tokens of the next patch, which the "
                "model has not read: it is higher by nature. Compare it neither with a next-token loss nor "
                "with the patch loss of another k.",
                lambda theme: figures.training_figure(scene, theme),
            )
        )
    found += [picture for picture in _resources(scene, bands) if picture]
    return found


def draw(picture: Picture, theme: Theme, kind: str, dpi: int = 150) -> bytes:
    """A figure as a file's bytes, ``svg`` or ``png``."""
    settings: Any = theme.rc()  # matplotlib types its keys as literals
    with matplotlib.rc_context(settings):
        figure, out = picture.paint(theme), BytesIO()
        metadata = {"Date": None} if kind == "svg" else None  # the same runs give the same bytes
        figure.savefig(out, format=kind, dpi=dpi, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
    return out.getvalue()


def _resources(scene: figures.Scene, bands: str) -> Iterator[Picture]:
    for name, title, caption, curves, label in (
        (
            "learning-rate",
            "Learning rate",
            "After each step, of the first parameter group.",
            series.rates,
            "learning rate",
        ),
        (
            "speed",
            "Speed",
            "Raw tokens per second of training, without evaluation and first steps.",
            series.speed,
            "raw tokens / s",
        ),
        (
            "memory",
            "Memory",
            "Peak of the stage so far, on the logging rank: allocated on a GPU, else resident.",
            series.memory,
            "GB",
        ),
    ):
        if any(curve for group in scene.groups for curve in curves(group)):
            yield Picture(
                name,
                title,
                caption + bands,
                lambda theme, curves=curves, label=label: figures.curve_figure(scene, theme, curves, label),
            )


def _other_switches(scene: figures.Scene) -> str:
    others = [g.name for g in scene.groups if g is not scene.staged and g.has_patches]
    return f" Vertical lines: ends of the patch stages of {' and '.join(others)}." if others else ""


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-").lower() or "run"
