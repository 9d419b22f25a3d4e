"""What an evaluation of some batches alone sees of data that is split by component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.loader.written import build, load, random_rows, rows_of, torch_loader, write_dataset

SIZES = {"ArXiv": 40, "Github": 15, "Enron Emails": 1}


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that begin with the number of their component."""
    rows: dict[tuple[str | None, str], np.ndarray] = {}
    for number, (name, size) in enumerate(SIZES.items()):
        rows[name, "val"] = random_rows(size, 8, seed=number)
        rows[name, "val"][:, 0] = number
        rows[name, "train"] = rows[name, "val"]
    return write_dataset(tmp_path_factory.mktemp("data"), tokenizer, rows)


def components(tokenizer: PreTrainedTokenizerFast, data: Path, **options: Any) -> list[int]:
    return [row[0] for row in rows_of(build(tokenizer, local=str(data), max_seq_len=8, **options))]


def test_the_first_batches_hold_every_component(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    found = components(tokenizer, data, split="val")
    assert set(found[:3]) == {0, 1, 2}
    assert [found.count(number) for number in range(3)] == list(SIZES.values())
    # Half of the rows hold half of each component, rounded up.
    assert [found[:28].count(number) for number in range(3)] == [19, 8, 1]
    assert found == components(tokenizer, data, split="val"), "the same order each time"


def test_the_streams_of_a_training_loader_keep_their_order(
    tokenizer: PreTrainedTokenizerFast, data: Path
) -> None:
    assert components(tokenizer, data, split="train") == sorted(components(tokenizer, data, split="val"))


def test_rows_of_a_component_keep_their_order(tokenizer: PreTrainedTokenizerFast, data: Path) -> None:
    spec = build(tokenizer, local=str(data), split="val", max_seq_len=8)
    rows = [row for row in rows_of(spec) if row[0] == 0]
    expected = random_rows(SIZES["ArXiv"], 8, seed=0)
    expected[:, 0] = 0
    assert rows == expected.tolist()
    assert len(torch_loader(spec)) == 14
