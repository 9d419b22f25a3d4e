"""One run of two ranks against one, short enough for every submission."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.data_parallel import run_cases
from tests.runs.short import relative_difference
from tests.runs.test_two_ranks import check_costs, on_two_ranks

CASE = "padded unevenly"


@pytest.mark.smoke
def test_two_ranks_equal_one(corpus: Path, tmp_path: Path) -> None:
    first, second = on_two_ranks([CASE], corpus, tmp_path)
    one = run_cases([CASE], corpus)[CASE]
    assert first == second
    assert first[CASE]["patch_level/stage"] == one["patch_level/stage"] == [0] * 3 + [1] * 3
    assert relative_difference(first[CASE]["loss/train/total"], one["loss/train/total"]) < 1e-6
    check_costs(first[CASE], one)
