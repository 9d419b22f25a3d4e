"""The rules of PLAN.md decide made-up results as PLAN.md says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.study.analysis import compare
from benchmarks.study.cells import MAIN
from benchmarks.study.hypotheses import Decision, decide
from benchmarks.study.settings import SIZES, Settings
from tests.benchmarks.rows import BYTES, TOKENS, pairs, row

PATCH = Settings("0.16M", 20, 4e-3, 1, stages=MAIN)
LINE = [replace(PATCH, tokens_per_parameter=tokens) for tokens in (20, 40, 80, 160, 320)]
UPDATES = replace(PATCH, positions=1024, rate=2e-3)
NUDGED = replace(PATCH.twin(), nudge=1e-6)
DOCUMENTS = {"pile": (np.array(BYTES, float), np.array(TOKENS, float))}


def decided(
    cells: Iterable[Settings], difference: Callable[[Settings], float], seeds: Iterable[int] = (1, 2, 3)
) -> dict[str, Decision]:
    made = pairs(cells, difference, seeds)
    made[NUDGED.identity] = row(NUDGED, 2.01 + 0.004)  # of seed 1, whose twin has 2.01: a floor of 0.004
    return {one.name: one for one in decide(made, compare(made, DOCUMENTS))}


def falling(per_doubling: float, at_20: float = 0.1) -> Callable[[Settings], float]:
    return lambda one: at_20 + per_doubling * math.log2(one.tokens_per_parameter / 20) + 1e-4 * one.seed


@pytest.mark.parametrize(
    ("slope", "status"),
    [(-0.05, "supported"), (0.05, "refuted"), (-0.001, "refuted"), (-0.0031, "supported")],
)
def test_more_tokens(slope: float, status: str) -> None:
    found = decided(LINE, falling(slope))["H1"]
    assert found.status == status
    assert found.numbers.startswith(f"{slope:+.3f} (")
    assert found.numbers.endswith("per doubling, over 20, 40, 80, 160 and 320 tokens per parameter.")


def test_a_slope_whose_seeds_disagree_is_open() -> None:
    signs = {1: 1, 2: -1, 3: -1}
    found = decided(LINE, lambda one: 0.02 * signs[one.seed] * math.log2(one.tokens_per_parameter))
    assert found["H1"].status == "open"


def test_too_few_cells_or_seeds_decide_nothing() -> None:
    assert {one.status for one in decided(LINE[:2], falling(-0.05)).values()} == {"open"}
    assert {one.status for one in decided(LINE, falling(-0.05), seeds=(1,)).values()} == {"open"}


def test_a_gain_somewhere() -> None:
    assert decided(LINE, falling(-0.06))["H2"].status == "supported"
    assert decided(LINE, falling(-0.01))["H2"].status == "refuted"  # 160 and 320 still above zero
    assert decided(LINE[:4], falling(-0.01))["H2"].status == "open"  # 320 is not there
    # A gain below the noise floor is none; of a gain that is lost, a later one counts.
    assert decided(LINE, lambda one: -0.003 + 1e-4 * one.seed)["H2"].status == "open"
    lost_again = {20: -0.05, 40: -0.05, 80: -0.05, 160: 0.05, 320: -0.05}
    assert decided(LINE, lambda one: lost_again[int(one.tokens_per_parameter)])["H2"].status == "supported"
    lost_for_good = lost_again | {320: 0.05}
    assert decided(LINE, lambda one: lost_for_good[int(one.tokens_per_parameter)])["H2"].status == "refuted"
    # A gain, and no longer run to say whether it lasts.
    unfinished = decided(LINE[:4], falling(-0.06))["H2"]
    assert (unfinished.status, unfinished.numbers[-22:]) == ("open", "; 320 is not finished.")


@pytest.mark.parametrize(("update", "status"), [(0.01, "supported"), (0.101, "refuted"), (0.07, "open")])
def test_what_the_updates_explain(update: float, status: str) -> None:
    def difference(one: Settings) -> float:
        by_line = {20: 0.1, 80: 0.0}
        return (update if one.positions == 1024 else by_line[int(one.tokens_per_parameter)]) + 1e-4 * one.seed

    found = decided([LINE[0], LINE[2], UPDATES], difference, range(1, 11))["H3"]
    assert found.status == status
    assert decided([LINE[0], LINE[2], UPDATES], difference)["H3"].status == "open"  # 3 of 10 seeds
    assert f"minus the whole: {update - 0.1:+.3f}" in found.numbers
    assert decided([LINE[0], LINE[2]], falling(-0.05))["H3"].status == "open"


@pytest.mark.parametrize(("b", "status"), [(-0.05, "supported"), (0.05, "refuted")])
def test_larger_models(b: float, status: str) -> None:
    cells = [replace(cell, size=size) for size in ("0.16M", "0.31M", "0.56M") for cell in LINE[:3]]
    found = decided(cells, lambda one: b * math.log(SIZES[one.size].parameters) + 1e-4 * one.seed)
    assert found["H4"].status == status
    assert "over 9 cells" in found["H4"].numbers
    assert decided(LINE, falling(-0.05))["H4"].status == "open"


@pytest.mark.parametrize(("more", "status"), [(0.05, "supported"), (-0.05, "refuted")])
def test_one_cosine(more: float, status: str) -> None:
    cosine = replace(LINE[2], schedule="cosine")
    found = decided([*LINE, cosine], lambda one: more * (one.schedule == "cosine") + 1e-4 * one.seed)["H5"]
    assert found.status == status
    assert found.numbers == f"{more:+.3f} ({more:+.3f} to {more:+.3f}), at 80 tokens per parameter."
    assert decided(LINE, falling(-0.05))["H5"].status == "open"
