"""The analysis finds what was put into made-up results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.study.analysis import combined, compare, fit, headline, noise
from benchmarks.study.cells import MAIN
from benchmarks.study.report import load, tables
from benchmarks.study.settings import SIZES, Settings
from tests.benchmarks.rows import BYTES, TOKENS, pairs, row, write

PATCH = Settings("0.16M", 20, 4e-3, 1, stages=MAIN)
LINES = [replace(PATCH, size=s, tokens_per_parameter=t) for s in ("0.16M", "0.31M") for t in (20, 40, 80)]
UPDATES = replace(PATCH, positions=1024, rate=2e-3)
DOCUMENTS = {"pile": (np.array(BYTES, float), np.array(TOKENS, float))}


def law(one: Settings) -> float:
    """A difference that follows the form of the fit."""
    N, updates = SIZES[one.size].parameters, one.updates_after_switch
    return 0.9 - 0.05 * math.log(N) - 0.03 * math.log(one.tokens_per_parameter) - 0.02 * math.log(updates)


def test_the_fit_finds_the_coefficients_that_made_the_rows() -> None:
    found = fit(compare(pairs([*LINES, UPDATES], law), DOCUMENTS), draws=200)
    assert found.left_out == ()
    assert found.values == pytest.approx([0.9, -0.05, -0.03, -0.02], abs=1e-6)
    assert (found.low <= found.values + 1e-9).all()
    assert (found.values <= found.high + 1e-9).all()


def test_without_the_update_cell_the_updates_are_left_out_and_named() -> None:
    found = fit(compare(pairs(LINES, law), DOCUMENTS), draws=50)
    assert found.left_out == ("d (ln updates)",)
    assert found.values[2] == pytest.approx(-0.05, abs=1e-3)  # tokens and updates together


def test_a_difference_is_that_of_pairs_and_its_interval_holds_it() -> None:
    (one,) = compare(pairs([PATCH], lambda run: 0.01 * run.seed), DOCUMENTS)
    assert one.seeds == (1, 2, 3)
    assert one.by_seed() == pytest.approx([0.01, 0.02, 0.03])
    interval = one.interval()
    assert interval.value == pytest.approx(0.02)
    assert 0.009 < interval.low < 0.02 < interval.high < 0.031
    assert one.t_interval() == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    assert one.nats_per_token() == pytest.approx(0.02 * math.log(2) * sum(BYTES) / sum(TOKENS))


def test_the_interval_knows_of_documents() -> None:
    # One seed, and a gain in one document that is lost in another.
    made = pairs([PATCH], lambda run: 0.0, seeds=(1,))
    made[PATCH.identity] = row(PATCH, 2.01, spread=50.0)
    (one,) = compare(made, DOCUMENTS)
    interval = one.interval()
    assert abs(interval.value) < 1e-12
    assert interval.low < -0.05
    assert interval.high > 0.05


def test_runs_without_a_twin_diverged_ones_and_nudges_are_left_out() -> None:
    made = pairs([PATCH], lambda run: 0.1)
    diverged = replace(PATCH, seed=2)
    made[diverged.identity] = row(diverged, None)
    del made[replace(PATCH, seed=3).twin().identity]
    nudged = replace(PATCH, nudge=1e-6)
    made[nudged.identity] = row(nudged, 3.0)
    (one,) = compare(made, DOCUMENTS)
    assert one.seeds == (1,)


def test_pairs_of_two_machines_are_left_out() -> None:
    made = pairs([PATCH], lambda run: 0.1)
    for run in made.values():
        run["machine"] = "one"
    made[replace(PATCH, seed=3).identity]["machine"] = "another"
    (one,) = compare(made, DOCUMENTS)
    assert one.seeds == (1, 2)


def test_cells_share_their_draws() -> None:
    few, many = compare(pairs(LINES[:2], lambda run: 0.01 * run.seed), DOCUMENTS)
    same = combined([few, many], [1.0, -1.0])
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-12)
    doubled = combined([few, many], [1.0, 1.0])
    assert (doubled.value, doubled.low) == pytest.approx((2 * few.wider().value, 2 * few.wider().low))


def test_the_fit_leaves_out_cells_of_one_seed() -> None:
    made = pairs(LINES, law) | pairs([UPDATES], law, seeds=(1,))
    assert fit(compare(made, DOCUMENTS), draws=50).cells == len(LINES)


def test_the_noise_floor_is_of_nudges_and_of_seeds() -> None:
    token = PATCH.twin()
    nudged, again = replace(token, nudge=1e-6), replace(token, replica=1)
    other = replace(token, seed=2)
    bits = ((token, 2.0), (nudged, 2.003), (again, 2.0), (other, 2.02))
    found = noise({one.identity: row(one, value) for one, value in bits})
    assert found["token, nudged"] == pytest.approx([0.003])
    assert found["token, repeated"] == [0.0]
    assert found["token, seeds"] == pytest.approx([-0.01, 0.01])


def test_the_headline_is_of_the_main_arm_at_the_rate_of_the_line() -> None:
    aside = [
        replace(PATCH, rate=8e-3),
        replace(PATCH, stages=((8, 0.3),)),
        replace(PATCH, on_switch="reset"),
        UPDATES,
    ]
    comparisons = compare(pairs([*LINES, *aside], law), DOCUMENTS)
    assert {one.settings for one in headline(comparisons)} == {replace(line, seed=0) for line in LINES}


def test_tables_are_made(tmp_path: Path) -> None:
    results = write(tmp_path, pairs(LINES, law) | pairs([UPDATES], law, seeds=range(1, 11)))
    assert len(load(results)[1]) == len(LINES) + 1
    text = tables(results)
    assert f"{law(LINES[0]):+.4f}" in text
    assert "| d (ln updates) | -0.02000 |" in text
    assert "| H4 | Larger models gain more. | supported | b is -0.050 " in text
