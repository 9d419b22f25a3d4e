"""The recovery after the switch: how high the loss was, and when it was level with the baseline's curve."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from patch_algorithm.reporting.groups import Group, Point, x_of

__all__ = ["Recovery", "recovery_of", "recovery_words"]


@dataclass(frozen=True)
class Recovery:
    """What happened at a group's switch to the token stage. Losses are eval losses at token level, in nats.

    Attributes:
        subject: The group.
        step: The last step of the patch stage.
        before: The last evaluation at or before it, of a model trained on patches only.
        after: The first evaluation in the token stage.
        baseline: The group whose curve it is set against; ``None`` if there is none.
        level: The first evaluation in the token stage that is no higher than the baseline's curve at equal
            compute; ``None`` if there is none.
        steps: Steps of the token stage until then.
        tokens: Raw tokens of the token stage until then.
        text: When they were level, in words.
    """

    subject: str
    step: int
    before: Point | None
    after: Point | None
    baseline: str | None
    level: Point | None
    steps: int | None
    tokens: int | None
    text: str


def recovery_of(group: Group, baselines: Sequence[Group], axis: str) -> Recovery | None:
    """The recovery of a group after its switch.

    Args:
        group: The group.
        baselines: What it can be set against; the one that reaches the group's end with the least beyond
            it is taken.
        axis: The axis of compute.

    Returns:
        ``None`` for a group that never switched from patches to tokens.
    """
    spans = group.spans
    if len(spans) < 2 or spans[-1].k != 1 or spans[-2].k == 1:
        return None
    switch = spans[-2].end
    evals = group.evals
    before = next((p for p in reversed(evals) if p.at.step <= switch.step), None)
    later = [p for p in evals if p.at.step > switch.step]
    baseline = _baseline(group, baselines, axis)
    curve = _curve(baseline, axis)
    compared = [(p, loss) for p in later if (loss := _at(curve, x_of(p.at, axis))) is not None]
    level = next((p for p, loss in compared if p.loss <= loss), None)
    return Recovery(
        subject=group.name,
        step=switch.step,
        before=before,
        after=later[0] if later else None,
        baseline=baseline.name if baseline else None,
        level=level,
        steps=None if level is None else level.at.step - switch.step,
        tokens=None if level is None else level.at.raw_tokens - switch.raw_tokens,
        text=_words(baseline, bool(compared), level is not None, len(compared) == len(later)),
    )


def recovery_words(recovery: Recovery) -> str:
    """A recovery in a sentence."""
    before = f"{recovery.before.loss:.3f}" if recovery.before else "not evaluated"
    after = "not evaluated"
    if recovery.after:
        after = f"{recovery.after.loss:.3f} after {recovery.after.at.step - recovery.step:,} more steps"
    text = f"switch at step {recovery.step:,}: eval loss {before} before it, {after}"
    if recovery.level is None:
        return f"{text}; level with the baseline at equal compute: {recovery.text}."
    return (
        f"{text}; level with {recovery.baseline} at equal compute {recovery.steps:,} steps "
        f"({recovery.tokens:,} raw tokens) after the switch."
    )


def _baseline(group: Group, baselines: Sequence[Group], axis: str) -> Group | None:
    end = group.total(axis)
    usable = [b for b in baselines if b.evals and b.total(axis) is not None and b is not group]
    if end is None or not usable:
        return None

    def fitness(baseline: Group) -> tuple[bool, float]:
        total = baseline.total(axis) or 0.0
        return (total < 0.98 * end, abs(total - end))

    return min(usable, key=fitness)


def _curve(baseline: Group | None, axis: str) -> list[tuple[float, float]]:
    points = baseline.evals if baseline else []
    return sorted((x, p.loss) for p in points if (x := x_of(p.at, axis)) is not None)


def _at(curve: Sequence[tuple[float, float]], x: float | None) -> float | None:
    """The curve's loss at ``x``, interpolated linearly; ``None`` outside of it, give or take a thousandth."""
    if x is None or not curve or not curve[0][0] <= x <= curve[-1][0] * 1.001:
        return None
    right = bisect_left([point[0] for point in curve], x)
    if right >= len(curve):
        return curve[-1][1]
    if curve[right][0] == x:
        return curve[right][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _words(baseline: Group | None, compared: bool, level: bool, whole: bool) -> str:
    if baseline is None:
        return "no baseline to compare with"
    if level:
        return "crossed"
    if not compared:
        return f"{baseline.name} has no evaluations at this compute"
    return "not crossed" if whole else f"not crossed as far as {baseline.name} goes"
