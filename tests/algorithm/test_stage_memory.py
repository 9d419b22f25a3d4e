"""The rehearsal of the token stage, and microbatches that grow in patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event, State

from patch_algorithm import PatchLevel
from tests.runs.short import (
    Watch,
    make_model,
    make_rows,
    make_trainer,
    run,
)


def rehearsed(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the ids that the model is given before the first step of a run."""
    shapes: list[tuple[int, ...]] = []
    steps: list[State] = []
    trainer.state.callbacks.append(Watch(Event.BEFORE_FORWARD, steps.append))
    forward = trainer.state.model.forward

    def watched(batch: Any) -> Any:
        if not steps:
            shapes.append(tuple(batch["input_ids"].shape))
        return forward(batch)

    monkeypatch.setattr(trainer.state.model, "forward", watched)
    trainer.fit()
    return shapes


def test_rows_that_grow_by_less_than_twice_are_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    # 24 patches of 4 at first, three pieces of 32 tokens after the switch.
    trainer = make_trainer(make_rows(8, 96), [PatchLevel(k=4, ratio=0.5)], max_duration="2ba")
    assert rehearsed(trainer, monkeypatch) == [(4, 32), (4, 32)]


@pytest.mark.filterwarnings("ignore:.*microbatch")
@pytest.mark.parametrize(("microbatch", "shapes"), [(16, [(4, 16)]), (4, [(4, 16)]), (2, [(2, 16)] * 2)])
def test_no_more_rows_are_rehearsed_than_a_token_step_has(
    monkeypatch: pytest.MonkeyPatch, microbatch: int, shapes: list[tuple[int, int]]
) -> None:
    # A patch step of 16 rows, token steps of 4.
    trainer = make_trainer(
        make_rows(32, 16),
        [PatchLevel(k=4, ratio=0.5, constant_compute=True)],
        max_duration="2ba",
        device_train_microbatch_size=microbatch,
    )
    assert rehearsed(trainer, monkeypatch) == shapes


def test_a_microbatch_may_be_a_float(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loaders that split batches themselves may be given one.
    trainer = make_trainer(make_rows(8, 16), [PatchLevel(k=4, ratio=0.5)], max_duration="2ba")
    trainer.state.device_train_microbatch_size = 1.0
    data: Any = trainer._train_data_spec  # pyright: ignore[reportPrivateUsage]
    split = data.split_batch
    monkeypatch.setattr(data, "split_batch", lambda batch, size: split(batch, int(size)))
    assert rehearsed(trainer, monkeypatch) == [(1, 16), (1, 16)]


def test_scaled_microbatches_are_no_larger_than_the_batch() -> None:
    sizes: list[Any] = []
    watch = Watch(Event.BEFORE_TRAIN_BATCH, lambda state: sizes.append(state.device_train_microbatch_size))
    run(
        make_rows(16, 16),
        [PatchLevel(k=4, ratio=0.5, scale_microbatch=True)],
        max_duration="4ba",
        device_train_microbatch_size=2,
        callbacks=[watch],
    )  # Composer would warn, which is an error
    assert sizes == [4, 4, 2, 2]


def test_rehearsal_leaves_buffers_that_a_forward_replaces() -> None:
    counts = []
    for rehearse in (True, False):
        model = make_model()
        body: Any = model.model.transformer
        body.register_buffer("steps", torch.zeros(1))

        def count(module: Any, *_: Any) -> None:
            if module.training:
                module.steps = module.steps + 1

        body.register_forward_hook(count)
        algorithm = PatchLevel(k=2, ratio=0.5, rehearse_switch=rehearse)
        run(make_rows(16, 16), [algorithm], model=model, max_duration="4ba")
        counts.append(body.steps.item())
    assert counts == [4, 4]
