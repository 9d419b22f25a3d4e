"""Differences between patch runs and their token-level twins, with bootstrap intervals, and the fit.

Shapes: S seeds, D held-out documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.study.cells import MAIN
from benchmarks.study.settings import SIZES, Settings

__all__ = [
    "Comparison",
    "Fit",
    "Interval",
    "combined",
    "compare",
    "documents_of",
    "fit",
    "headline",
    "is_main",
    "noise",
    "student",
    "widened",
]

Rows = Mapping[str, Mapping[str, Any]]
_DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


@dataclass(frozen=True)
class Comparison:
    """A patch arm against its twin, over all seeds that both have.

    Attributes:
        settings: The patch arm, with the seed set to 0.
        seeds: The seeds.
        differences_SD: Nats of each document, patch minus token.
        token_bits: Bits per byte of each twin.
        bytes_D: Bytes of each document.
        tokens_D: Tokens of each document.
    """

    settings: Settings
    seeds: tuple[int, ...]
    differences_SD: np.ndarray
    token_bits: tuple[float, ...]
    bytes_D: np.ndarray
    tokens_D: np.ndarray

    def by_seed(self) -> np.ndarray:
        """Difference of each seed in bits per byte, ``[S]``."""
        return self.differences_SD.sum(axis=1) / math.log(2) / self.bytes_D.sum()

    def of_seed(self, seed: int) -> float:
        """Difference of one seed in bits per byte."""
        return float(self.by_seed()[self.seeds.index(seed)])

    def interval(self, draws: int = _DRAWS) -> Interval:
        """Mean difference in bits per byte; both seeds and documents are drawn anew."""
        found = self.draws(draws)
        low, high = np.quantile(found, [0.025, 0.975])
        return Interval(float(self.by_seed().mean()), float(low), float(high))

    def draws(self, draws: int = _DRAWS, seed: int = 0) -> np.ndarray:
        """Bootstrap draws of the mean difference in bits per byte."""
        rng = np.random.default_rng(seed)
        S, D = self.differences_SD.shape
        counts_D = rng.multinomial(D, np.full(D, 1 / D), size=draws)
        counts_S = rng.multinomial(S, np.full(S, 1 / S), size=draws) / S
        nats = np.einsum("xs,sd,xd->x", counts_S, self.differences_SD, counts_D, optimize=True)
        return nats / math.log(2) / (counts_D @ self.bytes_D)

    def nats_per_token(self) -> float:
        """Mean difference in nats per token of this study's tokenizer."""
        return float(self.differences_SD.sum(axis=1).mean() / self.tokens_D.sum())

    def t_interval(self) -> float:
        """Half the width of Student's 95 % interval over seeds; infinite for one seed."""
        return student(self.by_seed())

    def wider(self) -> Interval:
        """Both intervals together: nothing is decided that they do not agree on."""
        return widened(self.interval(), self.t_interval())


@dataclass(frozen=True)
class Fit:
    """D = a + b ln N + c ln(tokens / N) + d ln(updates after the switch), in bits per byte.

    Attributes:
        names: Of the coefficients that the cells determine.
        values: The coefficients.
        low: Lower ends of their 95 % intervals.
        high: Upper ends.
        left_out: Terms that the cells so far cannot tell from the others.
        cells: Number of cells.
    """

    names: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    left_out: tuple[str, ...]
    cells: int


def student(values: np.ndarray) -> float:
    """Half the width of Student's 95 % interval of a mean; infinite for one value."""
    n = len(values)
    if n < 2:
        return math.inf
    quantile = stats.t.ppf(0.975, n - 1)
    return float(quantile * values.std(ddof=1) / math.sqrt(n))


def combined(cells: Sequence[Comparison], weights: Sequence[float], draws: int = _DRAWS) -> Interval:
    """A weighted sum of the differences of several cells, by the wider of both intervals.

    The cells share their held-out documents, and those with as many seeds their seeds, so a draw of the
    bootstrap is the same in all of them. Student's interval is over the seeds that all cells have.
    """
    value = float(sum(one.by_seed().mean() * weight for one, weight in zip(cells, weights, strict=True)))
    drawn = sum(one.draws(draws) * weight for one, weight in zip(cells, weights, strict=True))
    low, high = np.quantile(drawn, [0.025, 0.975])
    common = sorted(set.intersection(*(set(one.seeds) for one in cells)))
    each = np.array([[one.of_seed(seed) for one in cells] for seed in common]).reshape(-1, len(cells))
    return widened(Interval(value, float(low), float(high)), student(each @ np.asarray(weights)))


def widened(bootstrap: Interval, half: float) -> Interval:
    """Both intervals together."""
    value = bootstrap.value
    return Interval(value, min(bootstrap.low, value - half), max(bootstrap.high, value + half))


def documents_of(results: Path, corpus: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and tokens of each held-out document of a corpus, as kept beside the results."""
    record = json.loads((results.parent / f"documents-{corpus}.json").read_text())
    return np.array(record["bytes"], dtype=float), np.array(record["tokens"], dtype=float)


def compare(rows: Rows, documents: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[Comparison]:
    """All patch arms with at least one seed that the twin has too.

    Args:
        rows: The finished runs.
        documents: For each corpus what :func:`documents_of` returns.

    Returns:
        In order of size, length and arm. Runs with a nudge, replicas and diverged runs are left out, and
        pairs whose runs are from different machines, whose processors round differently.
    """
    groups: dict[Settings, dict[int, tuple[np.ndarray, float]]] = {}
    for row in rows.values():
        settings = Settings.from_row(row["settings"])
        twin = rows.get(settings.twin().identity)
        if not settings.stages or settings.nudge or settings.replica or twin is None:
            continue
        if row["document_nats"] is None or twin["document_nats"] is None:
            continue
        if row.get("machine") != twin.get("machine"):
            continue
        difference_D = np.array(row["document_nats"]) - np.array(twin["document_nats"])
        found = groups.setdefault(replace(settings, seed=0), {})
        found[settings.seed] = difference_D, twin["bits_per_byte"]
    comparisons = []
    for settings, by_seed in groups.items():
        seeds = tuple(sorted(by_seed))
        differences_SD = np.stack([by_seed[seed][0] for seed in seeds])
        bits = tuple(by_seed[seed][1] for seed in seeds)
        comparisons.append(Comparison(settings, seeds, differences_SD, bits, *documents[settings.corpus]))
    return sorted(comparisons, key=_order)


def headline(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The main arm along the lines: k = 4 for 30 % of the steps, full batch, at the size's own rate."""
    plain = [one for one in comparisons if is_main(one.settings) and one.settings.positions == 4096]
    # Neighbouring rates were run at one length only; the line's rate is the one with most lengths.
    lines: dict[str, dict[float, int]] = {}
    for one in plain:
        rates = lines.setdefault(one.settings.size, {})
        rates[one.settings.rate] = rates.get(one.settings.rate, 0) + 1
    best = {size: max(rates, key=lambda rate: rates[rate]) for size, rates in lines.items()}
    return [one for one in plain if one.settings.rate == best[one.settings.size]]


def fit(comparisons: Sequence[Comparison], draws: int = _DRAWS) -> Fit:
    """Least squares over the cells of the main arm, quarter batch included, that have more than one seed.

    Raises:
        ValueError: If there are fewer than two cells.
    """
    cells = [*headline(comparisons)]
    cells += [one for one in comparisons if is_main(one.settings) and one.settings.positions != 4096]
    cells = [one for one in cells if len(one.seeds) > 1]  # one seed has no interval
    if len(cells) < 2:
        raise ValueError(f"a fit needs at least two cells, and there are {len(cells)}.")
    design, names, left_out = _design([one.settings for one in cells])
    found = [combined(cells, weights, draws) for weights in np.linalg.pinv(design)]
    values, low, high = np.array([(one.value, one.low, one.high) for one in found]).T
    return Fit(names, values, low, high, left_out, len(cells))


def noise(rows: Rows) -> dict[str, list[float]]:
    """The noise floor, in bits per byte.

    Returns:
        For each arm: ``nudged`` (a run with a nudge minus the same run without), ``repeated`` (a replica
        minus its original), and ``seeds`` (runs of different seeds, minus their mean), for the settings of
        the runs that have a nudge.
    """
    found: dict[str, list[float]] = {}
    bases: dict[Settings, None] = {}
    for row in rows.values():
        settings = Settings.from_row(row["settings"])
        original = rows.get(replace(settings, nudge=0.0, replica=0).identity)
        if not (settings.nudge or settings.replica) or original is None or row["bits_per_byte"] is None:
            continue
        arm = "patch" if settings.stages else "token"
        kind = f"{arm}, {'nudged' if settings.nudge else 'repeated'}"
        found.setdefault(kind, []).append(row["bits_per_byte"] - original["bits_per_byte"])
        bases[replace(settings, nudge=0.0, replica=0, seed=0)] = None
    for base in bases:
        bits = [
            row["bits_per_byte"]
            for row in rows.values()
            if replace(Settings.from_row(row["settings"]), seed=0) == base
            and row["bits_per_byte"] is not None
        ]
        arm = "patch" if base.stages else "token"
        found[f"{arm}, seeds"] = [value - sum(bits) / len(bits) for value in bits]
    return found


def is_main(settings: Settings) -> bool:
    """Whether an arm is the main one at some size, length, rate and batch."""
    plain = Settings(
        settings.size,
        settings.tokens_per_parameter,
        settings.rate,
        settings.seed,
        stages=MAIN,
        positions=settings.positions,
    )
    return settings == plain


def _design(cells: Sequence[Settings]) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Columns that are independent of those before them; the others' names."""
    columns = {
        "a": np.ones(len(cells)),
        "b (ln N)": np.log([SIZES[one.size].parameters for one in cells]),
        "c (ln tokens/N)": np.log([one.tokens_per_parameter for one in cells]),
        "d (ln updates)": np.log([one.updates_after_switch for one in cells]),
    }
    kept: list[str] = []
    for name in columns:
        # Rounding of step counts makes dependent columns independent in the fourth digit.
        tried = np.stack([columns[other] for other in (*kept, name)], axis=1)
        if np.linalg.matrix_rank(tried / np.linalg.norm(tried, axis=0), tol=1e-3) == len(kept) + 1:
            kept.append(name)
    left_out = tuple(name for name in columns if name not in kept)
    return np.stack([columns[name] for name in kept], axis=1), tuple(kept), left_out


def _order(one: Comparison) -> tuple[Any, ...]:
    settings = one.settings
    return (SIZES[settings.size].parameters, settings.tokens_per_parameter, str(settings.to_row()))
