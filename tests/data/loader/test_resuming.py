"""A run that is resumed in the middle of an epoch sees every row of it once, however rows are cut."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.loader.written import build, load, random_rows, torch_loader, write_dataset

PIECE, PIECES, ROWS = 8, 4, 64


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return load(corpus)


@pytest.fixture(scope="module")
def data(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = {(None, "train"): random_rows(ROWS, PIECE * PIECES)}
    return write_dataset(tmp_path_factory.mktemp("data"), tokenizer, rows)


@pytest.mark.parametrize(("workers", "batch", "done"), [(2, 4, 21), (2, 16, 5), (2, 3, 31), (0, 4, 21)])
def test_no_piece_is_lost_or_read_twice(
    workers: int, batch: int, done: int, data: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    def fresh() -> Any:
        options: dict[str, Any] = {"max_seq_len": PIECE, "long_rows": "cut", "shuffle": True}
        return torch_loader(build(tokenizer, batch, workers, local=str(data), **options))

    stopped = fresh()
    seen: Counter[tuple[int, ...]] = Counter()
    for _, found in zip(range(done), stopped, strict=False):
        seen.update(map(tuple, found["input_ids"].tolist()))
    resumed = fresh()
    resumed.dataset.load_state_dict(stopped.dataset.state_dict(done * batch, True))
    for found in resumed:
        seen.update(map(tuple, found["input_ids"].tolist()))
    expected = map(tuple, random_rows(ROWS, PIECE * PIECES).reshape(-1, PIECE).tolist())
    assert seen == Counter(expected)
