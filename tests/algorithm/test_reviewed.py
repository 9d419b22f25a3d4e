"""What a reviewer broke: each of these once went wrong without a word."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from composer.core import Event, State
from composer.models import HuggingFaceModel
from transformers import LlamaConfig, LlamaForCausalLM

from patch_algorithm import PatchLevel
from tests.algorithm.runs import (
    Watch,
    collate,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    run,
    warned,
)
from tests.support import VOCABULARY, metrics


def make_llama(context: int = 8) -> HuggingFaceModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
    )
    return HuggingFaceModel(LlamaForCausalLM(config), shift_labels=True)


def test_a_loss_of_the_instance_is_given_back() -> None:
    model = make_model()
    of_class, calls = model.loss, []

    def loss(outputs: Any, batch: Any) -> Any:
        calls.append(batch["labels"].shape)
        return of_class(outputs, batch)

    model.loss = loss
    run(
        make_rows(16, 16),
        [PatchLevel(k=2, ratio=0.5, rehearse_switch=False)],
        model=model,
        max_duration="4ba",
        device_train_microbatch_size=2,
    )
    assert vars(model)["loss"] is loss
    assert len(calls) == 8, "called for every microbatch of both stages"
    assert calls[-1] == (2, 16), "and in the token stage with the trainer's own batch"


def test_an_algorithm_may_serve_a_second_trainer() -> None:
    algorithm = PatchLevel(k=2, ratio=0.5)
    for duration in ("4ba", "2ba", "4ba"):
        trainer = run(make_rows(16, 16), [algorithm], max_duration=duration)
        half = int(duration[0]) // 2
        assert metrics(trainer, "patch_level/stage") == [0] * half + [1] * half

    def break_off(state: State) -> None:
        raise RuntimeError("broken off")

    watch = Watch(Event.BEFORE_BACKWARD, break_off)
    with pytest.raises(RuntimeError, match="broken off"):
        run(make_rows(16, 16), [algorithm], max_duration="4ba", callbacks=[watch])
    trainer = run(make_rows(16, 16), [algorithm], max_duration="4ba")
    assert metrics(trainer, "patch_level/stage") == [0, 0, 1, 1]


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


def test_a_run_that_never_switches_warns_in_any_unit() -> None:
    with warned("ends as a patch model, which cannot generate"):
        run(make_rows(8, 16), [PatchLevel(k=2, ratio="100000tok")], max_duration="2ba")


def test_a_second_embedding_is_not_the_wrapped_first() -> None:
    """FSDP1 may put a module of its own around the embedding."""

    class Wrapped(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.module(ids)

    model = make_llama(context=16)
    inner: Any = model.model
    inner.set_input_embeddings(Wrapped(inner.get_input_embeddings()))
    trainer = run(make_rows(8, 16), [PatchLevel(k=2, ratio=0.5)], model=model, max_duration="2ba")
    assert metrics(trainer, "patch_level/stage") == [0, 1]


@pytest.mark.parametrize("ratio", ["0.67", "1", "1e3"])
def test_a_number_in_a_string_has_no_unit(ratio: str) -> None:
    with pytest.raises(ValueError, match="without a unit"):
        PatchLevel(k=2, ratio=ratio)


def test_metrics_stand_at_the_step_they_belong_to() -> None:
    trainer = make_trainer(make_rows(8, 16), [PatchLevel(k=2, ratio=0.5)], max_duration="2ba")
    steps: dict[str, list[int | None]] = {}
    log = trainer.logger.log_metrics

    def log_metrics(values: dict[str, Any], step: int | None = None) -> None:
        step = int(trainer.state.timestamp.batch.value) if step is None else step
        for name in values:
            steps.setdefault(name, []).append(step)
        log(values, step)

    trainer.logger.log_metrics = log_metrics
    trainer.fit()
    assert steps["patch_level/stage"] == steps["loss/train/total"] == [0, 1]
