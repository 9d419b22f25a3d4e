"""Results of evaluations: as JSON, as a table, and what two of them differ in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patch_algorithm.common.tables import table
from patch_algorithm.evaluation.paper import paper_row

__all__ = ["KIND", "Difference", "compare", "differences_text", "is_reported", "read_result", "result_text"]

KIND = "patch-level eval"
"""What tells a result from other JSON."""
FORMAT = 1
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


def read_result(path: str) -> dict[str, Any]:
    """Reads what ``patch-level eval --out`` has written.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no result {path}; expected what `patch-level eval --out` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is not a result of `patch-level eval --out`.")
    if content.get("format") != FORMAT or not isinstance(content.get("measures"), list):
        raise ValueError(f"{path} has format {content.get('format')!r}; this version reads format {FORMAT}.")
    return content


def result_text(result: Mapping[str, Any]) -> str:
    """A result as lines for a terminal."""
    model, data = result["model"], result["data"]
    how = (
        f"contexts of at most {result['seq_len']:,} tokens"
        if result.get("tasks")
        else f"windows of {result['seq_len']:,} tokens, stride {result['stride']:,}"
    )
    lines = [
        f"{model['path']}: {model['parameters']:,} parameters"
        + (f"; {t}" if (t := model["training"]) else ""),
        f"{data['path']}, preset {result['preset']}: {how}",
        "",
    ]
    rows = _task_rows(result) if result.get("tasks") else _measure_rows(result)
    return "\n".join([*lines, *table(rows), *(f"\n{note}" for note in result["notes"])])


def _measure_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [("", "loss", "token perplexity", "word perplexity", "bits per byte", "scored tokens")]
    return rows + [
        (
            one["name"],
            f"{one['loss']:.4f}",
            f"{one['token_perplexity']:.4g}",
            "–" if one["word_perplexity"] is None else f"{one['word_perplexity']:.4g}",
            f"{one['bits_per_byte']:.4f}",
            f"{one['scored_tokens']:,}",
        )
        for one in result["measures"]
    ]


def _task_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    row = paper_row(result["model"]["parameters"])
    header = ["", "measure", "value", "error", "items"]
    if row is not None:
        header += [f"paper's {row.name}, tokens", "patches"]
    rows = [tuple(header)]
    for one in result["tasks"]:
        cells = [
            one["task"],
            one["measure"],
            f"{one['value']:.4g}",
            "–" if one["error"] is None else f"{one['error']:.2g}",
            f"{one['items']:,}",
        ]
        if row is not None:
            # The paper reports one accuracy of a task: the normalised one where there are two.
            known = row.tasks.get(one["task"]) if is_reported(one, result["tasks"]) else None
            cells += ["–", "–"] if known is None else [f"{value / 100:.3f}" for value in known]
        rows.append(tuple(cells))
    return rows


def is_reported(score: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a score is the accuracy that papers report of its task: normalised where there is one."""
    measures = {one["measure"] for one in scores if one["task"] == score["task"]}
    return score["measure"] == ("acc_norm" if "acc_norm" in measures else "acc")


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


def differences_text(first: str, second: str, found: list[Difference]) -> str:
    """Differences as lines for a terminal."""
    what = "" if any(" " in one.name for one in found) else "bits per byte"
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
