"""The tables of the study's page, from its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.analysis import Comparison, Interval, noise
from benchmarks.study.cells import plan
from benchmarks.study.hypotheses import decide
from benchmarks.study.report import load
from benchmarks.study.settings import SIZES, Settings

__all__ = ["TABLES"]

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "study" / "results" / "runs.jsonl"


def _cells() -> str:
    rows, comparisons = load(_RESULTS)
    lines = [
        "| size | tokens per parameter | arm | seeds | token-only | difference (95 %) | each seed | CPU h |",
        "|--:|--:|---|--:|--:|--:|---|--:|",
    ]
    for one in comparisons:
        if len(one.seeds) < 2:
            continue
        settings = one.settings
        cells = (
            f"{SIZES[settings.size].parameters / 1e6:.2f}M",
            f"{settings.tokens_per_parameter:g}",
            _arm(settings),
            f"{len(one.seeds)}",
            f"{np.mean(one.token_bits):.3f}",
            _interval(one.wider()),
            ", ".join(_signed(value) for value in one.by_seed()),
            f"{_hours(rows, one):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _arm(settings: Settings) -> str:
    stages = ", ".join(f"k = {k} until {100 * end:.3g} %" for k, end in settings.stages)
    batch = "" if settings.positions == 4096 else f", {settings.positions:,} positions a step"
    rest = {
        name: value
        for name, value in settings.to_row().items()
        if name not in {"size", "tokens_per_parameter", "rate", "seed", "stages", "positions"}
    }
    return f"{stages}{batch}" + "".join(f", {name} {value}" for name, value in rest.items())


def _hours(rows: dict[str, dict[str, Any]], one: Comparison) -> float:
    pairs = [replace(one.settings, seed=seed) for seed in one.seeds]
    return sum(rows[run.identity]["cpu_seconds"] for pair in pairs for run in (pair, pair.twin())) / 3600


def _noise() -> str:
    rows, _ = load(_RESULTS)
    names = {
        "nudged": "initial weights changed by a relative 1e-6",
        "repeated": "an exact repetition",
        "seeds": "another seed (difference to the mean)",
    }
    lines = ["| arm | what was changed | runs | largest difference, bits per byte |", "|---|---|--:|--:|"]
    for kind, values in sorted(noise(rows).items()):
        arm, _, what = kind.partition(", ")
        lines.append(f"| {arm} | {names[what]} | {len(values)} | {max(abs(value) for value in values):.5f} |")
    return "\n".join(lines)


def _sweep() -> str:
    rows, _ = load(_RESULTS)
    cells = [cell for cell in plan(rows) if cell.name.startswith("rate sweep")]
    lines = ["| sweep | learning rate | seeds | mean, bits per byte |", "|---|--:|--:|--:|"]
    for cell in cells:
        rates: dict[float, list[float]] = {}
        for run in cell.runs:
            if run.identity in rows:
                rates.setdefault(run.rate, []).append(rows[run.identity]["bits_per_byte"] or float("inf"))
        means = {rate: float(np.mean(bits)) for rate, bits in rates.items()}
        # The best rate of an unfinished sweep is not chosen yet.
        best = min(means.values()) if all(run.identity in rows for run in cell.runs) else None
        for rate, mean in sorted(means.items()):
            shown = f"**{mean:.3f}**" if mean == best else f"{mean:.3f}"
            name = cell.name.removeprefix("rate sweep").lstrip(", ")
            lines.append(f"| {name} | {rate:g} | {len(rates[rate])} | {shown} |")
    return "\n".join(lines)


def _hypotheses() -> str:
    lines = ["| | hypothesis | so far | numbers, bits per byte |", "|---|---|---|---|"]
    for one in decide(*load(_RESULTS)):
        lines.append(f"| {one.name} | {one.claim} | **{one.status}** | {one.numbers.replace('-0.', '−0.')} |")
    return "\n".join(lines)


def _size() -> str:
    rows, _ = load(_RESULTS)
    hours = sum(row["cpu_seconds"] for row in rows.values()) / 3600
    left = [run for cell in plan(rows, assume=True) for run in cell.runs if run.identity not in rows]
    return f"{len(rows)} runs are finished, {hours:.1f} CPU hours; {len(left)} of the plan are left."


def _interval(one: Interval) -> str:
    return f"{_signed(one.value)} ({_signed(one.low)} to {_signed(one.high)})"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


TABLES = {
    "study cells": _cells,
    "study noise": _noise,
    "study sweep": _sweep,
    "study hypotheses": _hypotheses,
    "study size": _size,
}
