"""The sections of the loaders: what the checks before a run say of their rows, and what the loaders do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.checks.data import check_loader
from patch_algorithm.checks.finding import Severity
from patch_algorithm.planning.run_facts import loader_facts
from tests.data.loader.written import build, load, random_rows, write_dataset
from tests.planning.runs import run_of


@pytest.fixture(scope="module")
def rows_of_32(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with rows of 32 tokens in both splits."""
    rows = {(None, "train"): random_rows(8, 32), (None, "val"): random_rows(8, 32)}
    return write_dataset(tmp_path_factory.mktemp("data"), load(corpus), rows)


@pytest.mark.parametrize("asked", [8, 12, 32, 64])
@pytest.mark.parametrize("long_rows", [None, "cut", "refuse"])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("role", ["train_loader", "eval_loader"])
def test_an_error_is_found_exactly_where_the_loader_raises_one(
    role: str, split: str, long_rows: str | None, asked: int, rows_of_32: Path, corpus: Path
) -> None:
    dataset: dict[str, Any] = {"local": str(rows_of_32), "split": split, "max_seq_len": asked}
    dataset |= {} if long_rows is None else {"long_rows": long_rows}
    run = run_of(**{role: {"name": "pile", "dataset": dataset}})
    loader = run.train_loader if role == "train_loader" else run.eval_loaders[0]
    found = check_loader(loader_facts(loader, role == "train_loader", False))
    try:
        build(load(corpus), **dataset)
    except ValueError as error:
        (one,) = found
        assert one.severity is Severity.error
        assert one.found.startswith(f"{role}.dataset.max_seq_len")
        if one.id == "rows-cut-short":
            own_words = str(error).partition(" is ")[2].partition(" For evaluation")[0]
            assert own_words in one.found
    else:
        assert found == []


def test_a_misspelt_choice_for_long_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"eval_loader\.dataset\.long_rows is 'drop'; expected refuse or cut"
    ):
        run_of(eval_loader={"name": "pile", "dataset": {"long_rows": "drop"}})
