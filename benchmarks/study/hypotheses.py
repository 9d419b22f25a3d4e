"""The hypotheses of PLAN.md, decided by its rules with the runs that are finished.

All numbers are bits per byte. An interval is the wider of the bootstrap's and Student's, so that a
hypothesis is supported or refuted only if both agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.study.analysis import Comparison, Interval, combined, fit, headline, is_main, noise
from benchmarks.study.cells import LAST, MAIN, SEEDS, SMALLEST

__all__ = ["Decision", "decide"]

SUPPORTED, REFUTED, OPEN = "supported", "refuted", "open"
_NO_SLOPE = 0.003
"""Bits per byte per doubling: a slope within it is none."""

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """A hypothesis and what the runs say of it.

    Attributes:
        name: As in PLAN.md.
        claim: In one sentence.
        status: ``supported``, ``refuted`` or ``open``.
        numbers: What decided, or what is missing.
    """

    name: str
    claim: str
    status: str
    numbers: str


def decide(rows: Rows, comparisons: Sequence[Comparison]) -> list[Decision]:
    """Applies the rules of PLAN.md.

    Args:
        rows: The finished runs.
        comparisons: Of their pairs.

    Returns:
        One decision for each of H1 to H5.
    """
    several = [one for one in comparisons if len(one.seeds) >= len(SEEDS[one.settings.positions])]
    line = [one for one in headline(several) if one.settings.size == SMALLEST]
    floor = max(
        (abs(value) for kind, found in noise(rows).items() if "nudged" in kind for value in found),
        default=0.0,
    )
    rules: dict[str, tuple[str, Callable[[], tuple[str, str]]]] = {
        "H1": ("With more tokens per parameter the difference falls.", lambda: _slope(line)),
        "H2": ("Patches pay at 0.16M if training is long enough.", lambda: _somewhere(line, floor)),
        "H3": (
            "What counts is the number of updates after the switch.",
            lambda: _updates(line, several, floor),
        ),
        "H4": ("Larger models gain more.", lambda: _size(several)),
        "H5": ("Under one cosine the difference is larger than under WSD.", lambda: _cosine(line, several)),
    }
    return [Decision(name, claim, *rule()) for name, (claim, rule) in rules.items()]


def _slope(line: Sequence[Comparison]) -> tuple[str, str]:
    if len(line) < 3:
        return OPEN, f"{len(line)} of the line's cells are finished; a slope needs three."
    doublings = np.log2([one.settings.tokens_per_parameter for one in line])
    weights = np.linalg.pinv(np.stack([np.ones(len(line)), doublings], axis=1))[1]
    found = combined(line, weights)
    status = OPEN
    if found.low > 0 or max(-found.low, found.high) < _NO_SLOPE:
        status = REFUTED
    elif found.high < 0:
        status = SUPPORTED
    return status, f"{_said(found)} per doubling, over {_cells(line)} tokens per parameter."


def _somewhere(line: Sequence[Comparison], floor: float) -> tuple[str, str]:
    found = {one.settings.tokens_per_parameter: one.wider() for one in line}
    told = "; ".join(f"{_said(one)} at {tokens:g}" for tokens, one in found.items())
    below = [tokens for tokens, one in found.items() if one.high < -floor]
    if below and not any(one.low > 0 for tokens, one in found.items() if tokens > below[-1]):
        # "No later cell above 0" is not known before the last cell is.
        return (SUPPORTED, f"{told}.") if LAST in found else (OPEN, f"{told}; {LAST} is not finished.")
    if all(tokens in found and found[tokens].low > 0 for tokens in (160, LAST)):
        return REFUTED, f"{told}."
    return OPEN, f"{told or 'No cell is finished'}."


def _updates(line: Sequence[Comparison], several: Sequence[Comparison], floor: float) -> tuple[str, str]:
    cells = {one.settings.tokens_per_parameter: one for one in line}
    quarter = [
        one
        for one in several
        if is_main(one.settings) and one.settings.size == SMALLEST and one.settings.positions == 1024
    ]
    if not quarter or not {20, 80} <= cells.keys():
        return OPEN, "The update cell is not finished."
    few, many, update = cells[20], cells[80], quarter[0]
    change, far = _between(update, few), _between(many, few)
    at_20, at_80, in_quarter = (_said(one.wider()) for one in (few, many, update))
    told = f"{at_20} at 20, {in_quarter} at 20 in a quarter of the batch, {at_80} at 80 tokens per parameter"
    told += f"; the quarter of the batch minus the whole: {_said(change)}"
    value, first, last = (float(one.by_seed().mean()) for one in (update, few, many))
    nearer = abs(value - last) < abs(value - first)
    if nearer and change.low * change.high > 0:
        return SUPPORTED, f"{told}."
    if abs(change.value) <= floor and far.low * far.high > 0:
        return REFUTED, f"{told}."
    return OPEN, f"{told}."


def _size(several: Sequence[Comparison]) -> tuple[str, str]:
    name = "b (ln N)"
    try:
        found = fit(several)
    except ValueError:
        return OPEN, "There are no cells to fit."
    if name not in found.names:
        return OPEN, "Cells of one size only are finished."
    place = found.names.index(name)
    interval = Interval(*(float(ends[place]) for ends in (found.values, found.low, found.high)))
    status = SUPPORTED if interval.high < 0 else REFUTED if interval.low > 0 else OPEN
    return status, f"b is {_said(interval)} per e-fold of N, over {found.cells} cells."


def _cosine(line: Sequence[Comparison], several: Sequence[Comparison]) -> tuple[str, str]:
    for one in several:
        plain = replace(one.settings, schedule="wsd")
        stock = [other for other in line if other.settings == plain]
        if one.settings.schedule == "cosine" and one.settings.stages == MAIN and stock:
            found = _between(one, stock[0])
            status = SUPPORTED if found.low > 0 else REFUTED if found.high < 0 else OPEN
            return status, f"{_said(found)}, at {plain.tokens_per_parameter:g} tokens per parameter."
    return OPEN, "The cells with one cosine are not finished."


def _between(one: Comparison, other: Comparison) -> Interval:
    """The difference of two cells' differences."""
    return combined([one, other], [1.0, -1.0])


def _said(one: Interval) -> str:
    if math.isinf(one.low):
        return f"{one.value:+.3f} (no interval)"
    return f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"


def _cells(line: Sequence[Comparison]) -> str:
    *first, last = (f"{one.settings.tokens_per_parameter:g}" for one in line)
    return f"{', '.join(first)} and {last}"
