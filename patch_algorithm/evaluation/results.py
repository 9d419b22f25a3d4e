"""Results of evaluations: as JSON, as a table, and what two of them differ in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patch_algorithm.common.tables import table

__all__ = ["KIND", "Difference", "compare", "differences_text", "read_result", "result_text"]

KIND = "patch-level eval"
"""What tells a result from other JSON."""
FORMAT = 1
_RESAMPLES = 10_000
_AT_ONCE = 250


class Difference(NamedTuple):
    """What a second model has more than a first, in bits per byte.

    Attributes:
        name: The measure.
        first: Of the first model.
        second: Of the second.
        error: The standard deviation of the difference over bootstrap samples; NaN for a single unit.
        low: The end of its 95 % interval.
        high: The other end.
        units: Documents, or rows, that were drawn from.
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
    lines = [
        f"{model['path']}: {model['parameters']:,} parameters"
        + (f"; {t}" if (t := model["training"]) else ""),
        f"{data['path']}, preset {result['preset']}: windows of {result['seq_len']:,} tokens, stride "
        f"{result['stride']:,}",
        "",
    ]
    rows = [("", "loss", "token perplexity", "word perplexity", "bits per byte", "scored tokens")]
    rows += [
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
    return "\n".join([*lines, *table(rows), *(f"\n{note}" for note in result["notes"])])


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Compares two results measure by measure, with bootstrap errors over the documents, or rows, of both.

    A sample draws documents with replacement, the same of both models, so that what is hard for both cancels.

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
    return [_difference(one, others[one["name"]]) for one in first["measures"] if one["name"] in others]


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    # [nats, scored, tokens, bytes] a unit
    here, there = np.array(first["units"], float), np.array(second["units"], float)
    if len(here) != len(there) or not np.allclose(here[:, 3], there[:, 3]):
        raise ValueError(f"The results have different documents in {first['name']!r}.")
    n, random = len(here), np.random.default_rng(0)
    drawn: list[np.ndarray] = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        counts = random.multinomial(n, np.full(n, 1 / n), size=_AT_ONCE).astype(float)
        drawn.append(_bits_per_byte(counts @ there) - _bits_per_byte(counts @ here))
    differences = np.concatenate(drawn)
    differences = differences[np.isfinite(differences)]
    low, high = np.quantile(differences, (0.025, 0.975)) if n > 1 else (math.nan, math.nan)
    return Difference(
        first["name"],
        float(_bits_per_byte(here.sum(0))),
        float(_bits_per_byte(there.sum(0))),
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
    rows = [("bits per byte", "A", "B", "B - A", "error", "95 % interval", "units")]
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
