"""What two results of the same data differ in, with bootstrap errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from patch_algorithm.common.tables import table

__all__ = ["Difference", "compare", "differences_text"]

_RESAMPLES = 10_000
_AT_ONCE = 250


class Difference(NamedTuple):
    """What a second model has more than a first: in bits per byte, or in what a task is measured by.

    Attributes:
        name: The measure; of a task its name before it.
        first: Of the first model.
        second: Of the second.
        error: The standard deviation of the difference over bootstrap samples; NaN for a single unit.
        low: The end of its 95 % interval.
        high: The other end.
        units: Documents, rows or items that were drawn from.
    """

    name: str
    first: float
    second: float
    error: float
    low: float
    high: float
    units: int


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Compares two results measure by measure, with bootstrap errors over their documents, rows or items.

    A sample draws them with replacement, the same of both models, so that what is hard for both cancels.

    Raises:
        ValueError: If they are not of the same data, measured in the same way.
    """
    for name, what in (("preset", "presets"), ("seq_len", "window lengths"), ("stride", "strides")):
        if first[name] != second[name]:
            raise ValueError(f"The results have different {what}: {first[name]} and {second[name]}.")
    if first["data"]["digest"] != second["data"]["digest"]:
        raise ValueError(
            f"The results are of different data: {first['data']['path']} and {second['data']['path']}."
        )
    others = {one["name"]: one for one in second["measures"]}
    found = [_difference(one, others[one["name"]]) for one in first["measures"] if one["name"] in others]
    others = {(one["task"], one["measure"]): one for one in second.get("tasks", ())}
    return found + [
        _task_difference(one, others[one["task"], one["measure"]])
        for one in first.get("tasks", ())
        if (one["task"], one["measure"]) in others
    ]


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    # [nats, scored, tokens, bytes] a unit
    here, there = np.array(first["units"], float), np.array(second["units"], float)
    if len(here) != len(there) or not np.allclose(here[:, 3], there[:, 3]):
        raise ValueError(f"The results have different documents in {first['name']!r}.")
    return _resampled(first["name"], here, there, _bits_per_byte)


def _task_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    here, there = (np.array(one["scores"], float)[:, None] for one in (first, second))
    name = f"{first['task']} {first['measure']}"
    if len(here) != len(there):
        raise ValueError(f"The results have different numbers of items in {name}.")
    n = len(here)
    if first["measure"] == "perplexity":
        return _resampled(name, here, there, lambda sums: np.exp(-sums[..., 0] / n))
    return _resampled(name, here, there, lambda sums: sums[..., 0] / n)


def _resampled(
    name: str, here: np.ndarray, there: np.ndarray, value: Callable[[np.ndarray], np.ndarray]
) -> Difference:
    """The difference of a value that is computed from sums, of two models with a row of numbers a unit."""
    n, random = len(here), np.random.default_rng(0)
    drawn: list[np.ndarray] = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        counts = random.multinomial(n, np.full(n, 1 / n), size=_AT_ONCE).astype(float)
        drawn.append(value(counts @ there) - value(counts @ here))
    differences = np.concatenate(drawn)
    differences = differences[np.isfinite(differences)]
    low, high = np.quantile(differences, (0.025, 0.975)) if n > 1 else (math.nan, math.nan)
    return Difference(
        name,
        float(value(here.sum(0))),
        float(value(there.sum(0))),
        float(differences.std(ddof=1)) if n > 1 else math.nan,
        float(low),
        float(high),
        n,
    )


def _bits_per_byte(sums: np.ndarray) -> np.ndarray:
    nats, scored, tokens, size = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return nats / scored * tokens / size / math.log(2)


def differences_text(first: str, second: str, preset: str, found: list[Difference]) -> str:
    """Differences as lines for a terminal; tasks have their measures in their names."""
    what = "" if preset == "zero-shot" else "bits per byte"
    rows = [(what, "A", "B", "B - A", "error", "95 % interval", "units")]
    rows += [
        (
            one.name,
            f"{one.first:.4f}",
            f"{one.second:.4f}",
            f"{one.second - one.first:+.4f}",
            f"{one.error:.4f}",
            f"{one.low:+.4f} to {one.high:+.4f}",
            f"{one.units:,}",
        )
        for one in found
    ]
    return "\n".join([f"A {first}", f"B {second}", "", *table(rows)])
