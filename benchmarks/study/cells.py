"""The cells of the study, in the order in which they are run; PLAN.md gives the reasons.

The order depends on the results so far in one way only: the learning rate of a size is chosen from its
sweep, and later cells of that size wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.study.settings import Settings

__all__ = ["LAST", "MAIN", "SEEDS", "SMALLEST", "Cell", "next_run", "plan"]

SMALLEST, MIDDLE, LARGEST = "0.16M", "0.31M", "0.56M"
MAIN = ((4, 0.3),)
"""Stages of the patch arm: k = 4 for 30 % of the steps."""

SEEDS = {4096: (1, 2, 3), 1024: tuple(range(1, 11))}
"""Seeds that a finished cell has at the least, by the positions of a step."""
LAST = 320
"""Tokens per parameter at the end of the smallest size's line."""

_GRID = (0.25, 0.5, 1.0, 2.0, 4.0)
_FIRST_RATE = 4e-3
_SWEEP_AT = 20
_SIDE_AT = 80
_MOST_DOUBLINGS = 3
_NUDGE = 1e-6

Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A named set of runs.

    Attributes:
        name: As in PLAN.md.
        runs: In the order in which they are run.
    """

    name: str
    runs: tuple[Settings, ...]


def plan(rows: Rows, assume: bool = False) -> list[Cell]:
    """All cells that can be named, given the results so far.

    Args:
        rows: The finished runs.
        assume: Whether the middle of the grid stands in for rates that are not chosen yet, so that all
            cells can be listed.
    """
    start = Settings(SMALLEST, _SWEEP_AT, _FIRST_RATE, 1)
    cells = [Cell("noise floor", _noise(start, (1, 2, 3)))]
    sweep, rate = _sweep("rate sweep 0.16M", start, (1, 2, 3), rows, assume)
    cells.append(sweep)
    if rate is None:
        return cells
    base = replace(start, rate=rate)
    cells += [Cell(f"line 0.16M, {t}", _pairs(base, t, SEEDS[4096])) for t in (20, 40, 80, 160)]
    quarter, quarter_rate = _sweep(
        "rate sweep, quarter batch", replace(base, positions=1024), (1, 2), rows, assume
    )
    cells.append(quarter)
    if quarter_rate is None:
        return cells
    small = replace(base, positions=1024, rate=quarter_rate)
    cells.append(Cell("update cell", _pairs(small, _SWEEP_AT, SEEDS[1024])))
    cells.append(Cell("noise floor, patch arm", _noise(replace(base, stages=MAIN), (1, 2, 3))))
    cells.append(Cell(f"line 0.16M, {LAST}", _pairs(base, LAST, SEEDS[4096])))
    cells.append(
        Cell(
            "deciding seeds",
            (*_pairs(base, 20, range(4, 11)), *_pairs(base, 40, (4, 5)), *_pairs(base, 80, (4, 5))),
        )
    )
    cells += _size(MIDDLE, (1, 2), (20, 40, 80, 160), (1, 2, 3), rows, assume)
    cells += _side_cells(base)
    cells += _size(LARGEST, (1,), (20, 40, 80, 160), (1, 2, 3), rows, assume)
    return cells


def next_run(
    rows: Rows, skip: Iterable[str] = (), corpora: Iterable[str] = ("pile",)
) -> tuple[str, Settings] | None:
    """The first run of the plan that is not done.

    Args:
        rows: The finished runs.
        skip: Identities of runs to pass over, such as those that another process is at work on.
        corpora: The corpora that are prepared; runs on others are passed over.

    Returns:
        The name of its cell and its settings; ``None`` if nothing is left.
    """
    apart, known = set(skip), set(corpora)
    for cell in plan(rows):
        for run in cell.runs:
            if run.identity not in rows and run.identity not in apart and run.corpus in known:
                return cell.name, run
    return None


def _pairs(base: Settings, tokens: int, seeds: Iterable[int], **changes: Any) -> tuple[Settings, ...]:
    runs: list[Settings] = []
    for seed in seeds:
        patch = replace(base, **{"tokens_per_parameter": tokens, "seed": seed, "stages": MAIN, **changes})
        runs += [run for run in (patch.twin(), patch) if run not in runs]
    return tuple(runs)


def _noise(base: Settings, seeds: Iterable[int]) -> tuple[Settings, ...]:
    """Each seed with and without an immaterial change of its weights, and one exact repetition."""
    runs = [replace(base, seed=seed, nudge=nudge) for seed in seeds for nudge in (0.0, _NUDGE)]
    return (*runs, replace(base, seed=1, replica=1))


def _sweep(
    name: str, base: Settings, seeds: tuple[int, ...], rows: Rows, assume: bool
) -> tuple[Cell, float | None]:
    """The token-level runs at each rate, and the best rate once it is known and not at the edge."""
    token = base.twin()
    grid = [base.rate * factor for factor in _GRID]
    for _ in range(2 * _MOST_DOUBLINGS + 1):
        runs = tuple(replace(token, rate=rate, seed=seed) for rate in grid for seed in seeds)
        scores = [
            _mean([rows.get(replace(token, rate=rate, seed=s).identity) for s in seeds]) for rate in grid
        ]
        if any(score is None for score in scores):
            return Cell(name, runs), base.rate if assume else None
        best = min(range(len(grid)), key=lambda i: float(scores[i] or 0.0))
        if 0 < best < len(grid) - 1:
            return Cell(name, runs), grid[best]
        grid = [grid[0] / 2, *grid] if best == 0 else [*grid, grid[-1] * 2]
    raise ValueError(f"{name}: the best learning rate is still at the edge of {grid}.")


def _mean(found: list[Mapping[str, Any] | None]) -> float | None:
    """Mean bits per byte; infinite where a run diverged, ``None`` where one is missing."""
    if any(row is None for row in found):
        return None
    values = [row["bits_per_byte"] for row in found if row is not None]
    return float("inf") if any(value is None for value in values) else sum(values) / len(values)


def _size(
    size: str,
    sweep_seeds: tuple[int, ...],
    line: tuple[int, ...],
    seeds: tuple[int, ...],
    rows: Rows,
    assume: bool,
) -> list[Cell]:
    sweep, rate = _sweep(
        f"rate sweep {size}", Settings(size, _SWEEP_AT, _FIRST_RATE, 1), sweep_seeds, rows, assume
    )
    if rate is None:
        return [sweep]
    base = Settings(size, _SWEEP_AT, rate, 1)
    return [sweep, *(Cell(f"line {size}, {tokens}", _pairs(base, tokens, seeds)) for tokens in line)]


def _side_cells(base: Settings) -> list[Cell]:
    """One change at a time, at the smallest size and 80 tokens per parameter."""
    at, seeds = _SIDE_AT, (1, 2, 3)
    around = [replace(base, rate=base.rate * factor) for factor in (0.5, 2.0)]
    return [
        Cell("neighbouring rates", sum((_pairs(one, at, seeds) for one in around), ())),
        Cell("k=2", _pairs(base, at, seeds, stages=((2, 0.3),))),
        Cell("k=8", _pairs(base, at, seeds, stages=((8, 0.3),))),
        Cell("10 % of the steps", _pairs(base, at, seeds, stages=((4, 0.1),))),
        Cell("patched inputs only", _pairs(base, at, seeds, patch_targets=False)),
        Cell("patched targets only", _pairs(base, at, seeds, patch_inputs=False)),
        Cell("stages 8-4-2", _pairs(base, at, seeds, stages=((8, 0.1), (4, 0.2), (2, 0.3)))),
        Cell("reset at the switch", _pairs(base, at, seeds, on_switch="reset")),
        Cell("one cosine", _pairs(base, at, seeds, schedule="cosine")),
        Cell("cosine per stage", _pairs(base, at, seeds, schedule="cosine_per_stage")),
        *(
            Cell(f"equal data, {tokens}", _pairs(base, tokens, seeds, hold="tokens", stages=((4, 0.6667),)))
            for tokens in (20, 40, 80, 160)
        ),
        Cell("built-in corpus", _pairs(base, _SWEEP_AT, seeds, corpus="builtin")),
    ]
