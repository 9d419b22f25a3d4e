"""Padded rows, cut and folded, in microbatches of every kind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from patch_algorithm import PatchLevel
from tests.model_access.toys import Toy
from tests.runs.short import (
    collate,
    make_llama,
    make_padded_rows,
    make_trainer,
    run,
)
from tests.support import metrics


class WithLossModule(Toy):
    """Keeps its loss under the name that MPT has for one that guards against rows of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.loss_fn = torch.nn.CrossEntropyLoss()


@pytest.mark.parametrize("make", [make_llama, WithLossModule])
@pytest.mark.parametrize("microbatch", [1, 2])
def test_microbatches_of_nothing_but_padding_are_refused(microbatch: int, make: Any) -> None:
    trainer = make_trainer(
        make_padded_rows(8, 32),
        [PatchLevel(k=2, ratio=0.5, seq_len=8)],
        model=make(),
        max_duration="2ba",
        device_train_microbatch_size=microbatch,
    )
    message = f"4 pieces.*device_train_microbatch_size={microbatch}.*multiple of 4"
    with pytest.raises(ValueError, match=message):
        trainer.fit()


def test_microbatches_that_the_trainer_may_halve_are_refused() -> None:
    """``device_train_microbatch_size: auto`` exists on GPUs only: the state says so here."""
    trainer = make_trainer(
        make_padded_rows(8, 32),
        [PatchLevel(k=2, ratio=0.5, seq_len=8)],
        model=make_llama(),
        max_duration="2ba",
        device_train_microbatch_size=4,
    )
    trainer.state.auto_microbatching = True
    with pytest.raises(ValueError, match=r"device_train_microbatch_size=auto may become .* multiple of 4"):
        trainer.fit()


def test_microbatches_of_whole_padded_rows_train() -> None:
    trainer = run(
        make_padded_rows(8, 32), [PatchLevel(k=2, ratio=0.5)], model=make_llama(), max_duration="2ba"
    )
    losses = metrics(trainer, "loss/train/total")
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("short", [3, 4, 6])
@pytest.mark.parametrize("by_tokens", [True, False])
def test_a_late_short_padded_batch_trains_on(short: int, by_tokens: bool) -> None:
    """One of 3 or 4 tokens has no next patch to predict; Composer would divide by its 0 scored pairs."""
    lengths = iter([16, 16, short, 16, 16])

    def collate_fn(rows: Any) -> dict[str, Any]:
        T = next(lengths)
        return collate([{key: value[:T] for key, value in row.items()} for row in rows])

    trainer = run(
        make_padded_rows(20, 16),
        [PatchLevel(k=4, ratio="4ba")],
        max_duration="5ba",
        collate_fn=collate_fn,
        accumulate_train_batch_on_tokens=by_tokens,
        device_train_microbatch_size=2,
    )
    positions = -(-short // 4)
    assert metrics(trainer, "patch_level/positions_per_row") == [4, 4, positions, 4, 16]
    losses = metrics(trainer, "loss/train/total")
    assert all(map(math.isfinite, losses))
    assert (losses[2] == 0) == (positions == 1)
