"""Tables of the results. `docs/pictures/study.py` draws the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.analysis import Comparison, compare, documents_of, fit, noise
from benchmarks.study.hypotheses import decide
from benchmarks.study.settings import SIZES, Settings
from benchmarks.study.store import read_rows

__all__ = ["load", "tables"]


def load(results: Path) -> tuple[dict[str, dict[str, Any]], list[Comparison]]:
    """Reads results and compares all pairs."""
    rows = read_rows(results)
    names = {Settings.from_row(row["settings"]).corpus for row in rows.values()}
    documents = {name: documents_of(results, name) for name in names}
    return rows, compare(rows, documents)


def tables(results: Path) -> str:
    """All tables, as Markdown."""
    rows, comparisons = load(results)
    parts = [
        _noise_table(rows),
        _sweep_table(rows),
        _comparison_table(comparisons),
        _hypotheses_table(rows, comparisons),
        _fit_table(comparisons),
    ]
    hours = sum(row["cpu_seconds"] for row in rows.values()) / 3600
    parts.append(f"{len(rows)} runs, {hours:.1f} CPU hours.")
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    text = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in text)


def _noise_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        (
            name,
            len(values),
            f"{np.abs(values).max():.5f}",
            f"{np.std(values, ddof=1):.5f}" if len(values) > 1 else "-",
        )
        for name, values in sorted(noise(rows).items())
    ]
    return "## Noise floor (bits per byte)\n\n" + _table(("what", "runs", "largest", "s.d."), lines)


def _sweep_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Token runs by size, length, batch and rate, wherever there is more than one rate."""
    found: dict[tuple[Any, ...], dict[float, list[float]]] = {}
    for row in rows.values():
        one = Settings.from_row(row["settings"])
        if one.stages or one.nudge or one.replica or one.schedule != "wsd" or one.corpus != "pile":
            continue
        bits = float("inf") if row["bits_per_byte"] is None else row["bits_per_byte"]
        key = (SIZES[one.size].parameters, one.size, one.tokens_per_parameter, one.positions)
        found.setdefault(key, {}).setdefault(one.rate, []).append(bits)
    lines = [
        (
            size,
            tokens,
            positions,
            f"{rate:g}",
            len(bits),
            f"{np.mean(bits):.4f}",
            f"{min(bits):.4f}",
            f"{max(bits):.4f}",
        )
        for (_, size, tokens, positions), rates in sorted(found.items())
        if len(rates) > 1
        for rate, bits in sorted(rates.items())
    ]
    head = ("size", "tokens/parameter", "positions a step", "rate", "seeds", "mean", "least", "most")
    return "## Rate sweeps, token arm (bits per byte)\n\n" + _table(head, lines)


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    lines = []
    for one in comparisons:
        settings, by_seed = one.settings, one.by_seed()
        rest = {
            name: value
            for name, value in settings.to_row().items()
            if name not in {"size", "tokens_per_parameter", "rate", "seed", "stages"}
        }
        lines.append(
            (
                settings.size,
                settings.tokens_per_parameter,
                ", ".join(f"{k} until {end:g}" for k, end in settings.stages),
                f"{settings.rate:g}",
                ", ".join(f"{name} {value}" for name, value in rest.items()) or "-",
                settings.updates_after_switch,
                f"{np.mean(one.token_bits):.4f}",
                one.interval(),
                f"± {one.t_interval():.4f}",
                " ".join(f"{value:+.4f}" for value in by_seed),
                f"{one.nats_per_token():+.4f}",
            )
        )
    head = (
        "size", "tokens/parameter", "k", "rate", "other", "updates after the switch", "token arm",
        "difference (95 %, bootstrap)", "Student's t", "each seed", "nats/token",
    )  # fmt: skip
    return "## Patch minus token (bits per byte)\n\n" + _table(head, lines)


def _hypotheses_table(rows: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Comparison]) -> str:
    lines = [(one.name, one.claim, one.status, one.numbers) for one in decide(rows, comparisons)]
    return "## Hypotheses of PLAN.md\n\n" + _table(("", "claim", "so far", "bits per byte"), lines)


def _fit_table(comparisons: Sequence[Comparison]) -> str:
    try:
        found = fit(comparisons)
    except ValueError as error:
        return f"## Fit\n\nNone yet: {error}"
    lines = [
        (name, f"{value:+.5f}", f"{low:+.5f} to {high:+.5f}")
        for name, value, low, high in zip(found.names, found.values, found.low, found.high, strict=True)
    ]
    note = f"{found.cells} cells."
    if found.left_out:
        note += f" Not separable with these cells: {', '.join(found.left_out)}."
    return f"## Fit (bits per byte)\n\n{_table(('term', 'value', '95 %'), lines)}\n\n{note}"
