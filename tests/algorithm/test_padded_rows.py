"""Padded rows, cut and folded, in microbatches of every kind."""

from __future__ import annotations

import math
from typing import Any

import pytest

from patch_algorithm import PatchLevel
from tests.runs.short import (
    collate,
    make_llama,
    make_padded_rows,
    make_trainer,
    run,
)
from tests.support import metrics


@pytest.mark.parametrize("microbatch", [1, 2])
def test_microbatches_of_nothing_but_padding_are_refused(microbatch: int) -> None:
    trainer = make_trainer(
        make_padded_rows(8, 32),
        [PatchLevel(k=2, ratio=0.5)],
        model=make_llama(),
        max_duration="2ba",
        device_train_microbatch_size=microbatch,
    )
    message = f"4 pieces.*device_train_microbatch_size={microbatch}.*multiple of 4"
    with pytest.raises(ValueError, match=message):
        trainer.fit()


def test_microbatches_of_whole_padded_rows_train() -> None:
    trainer = run(
        make_padded_rows(8, 32), [PatchLevel(k=2, ratio=0.5)], model=make_llama(), max_duration="2ba"
    )
    losses = metrics(trainer, "loss/train/total")
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_a_late_short_padded_batch_trains_on() -> None:
    lengths = iter([16, 16, 6, 16, 16])

    def collate_fn(rows: Any) -> dict[str, Any]:
        T = next(lengths)
        return collate([{key: value[:T] for key, value in row.items()} for row in rows])

    trainer = run(
        make_padded_rows(20, 16),
        [PatchLevel(k=4, ratio="4ba")],
        max_duration="5ba",
        collate_fn=collate_fn,
    )
    assert metrics(trainer, "patch_level/positions_per_row") == [4, 4, 2, 4, 16]
