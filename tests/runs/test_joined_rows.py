"""Constant compute reads streaming's rows in streaming's order: each once, across the switch and a resume."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import on_ranks
from tests.runs.joined_rows import RESUMED_FROM, ROW_TOKENS, found
from tests.support import write_corpus

ROWS, BATCHES = 64, 16  # of an epoch
# By hand: patch steps of 3 batches, the last one of an epoch of what is left; token steps of one.
TAKEN = [3, 3, 3, 3, 3, 1, 3, 3, 1, 1, 1, 1, 1, 1]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("few"), row=ROW_TOKENS, rows=ROWS)


@pytest.fixture(scope="module")
def one(few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found(few, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(few: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    return on_ranks(2, "tests.runs.joined_rows", folder, str(few), str(folder))


def check_order(of: dict[str, Any]) -> None:
    """The joined steps are the plain run's batches, one after the other."""
    plain, whole = of["plain"]["rows"], of["whole"]["rows"]
    assert len(plain) == 2 * BATCHES
    begun = 0
    for step, taken in zip(whole, TAKEN, strict=True):
        assert step == list(chain(*plain[begun : begun + taken]))
        begun += taken


def check_resumed(of: dict[str, Any]) -> None:
    for batch in RESUMED_FROM:
        assert of[f"from {batch}"]["rows"] == of["whole"]["rows"][batch:], batch
        assert of[f"from {batch}"]["loss"] == of["whole"]["loss"][batch:], batch


def test_the_rows_are_streamings_in_its_order(one: dict[str, Any]) -> None:
    check_order(one)


def test_every_row_is_read_once_an_epoch_across_the_switch(one: dict[str, Any]) -> None:
    whole = list(chain(*one["whole"]["rows"]))
    assert sorted(whole[:ROWS]) == list(range(ROWS))
    second = whole[ROWS:]
    assert len(second) == len(set(second)) == 12 * 4, "the switch lies within the second epoch"
    assert whole[:ROWS] != sorted(whole[:ROWS]), "they are shuffled"


def test_a_resumed_run_reads_the_rows_that_follow(one: dict[str, Any]) -> None:
    check_resumed(one)


@pytest.mark.launcher
def test_two_ranks_read_the_rows_of_one(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in two:
        check_order(rank)
        check_resumed(rank)
    for left, right, alone in zip(*(rank["whole"]["rows"] for rank in (*two, one)), strict=True):
        assert sorted(left + right) == sorted(alone)
        assert len(left) == len(right)
    assert two[0]["whole"]["loss"] == pytest.approx(one["whole"]["loss"], rel=1e-6)
