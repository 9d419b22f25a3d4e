"""What a reviewer broke: each of these once went wrong without a word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event, State
from composer.models import HuggingFaceModel
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm.optimizer_reset import reset_moments
from tests.runs.short import (
    Watch,
    collate,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    run,
    saving,
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


def test_resuming_at_the_end_of_an_epoch_does_not_warn_of_going_back(tmp_path: Path) -> None:
    """The checkpoint has the switch behind it, its clock does not count the epoch yet."""
    rows = make_rows(16, 16)
    run(rows, [PatchLevel(k=2, ratio="1ep")], max_duration="2ep", **saving(tmp_path))
    trainer = make_trainer(
        rows, [PatchLevel(k=2, ratio="1ep")], max_duration="2ep", load_path=str(tmp_path / "ba4.pt")
    )
    assert trainer.state.timestamp.epoch == 0
    trainer.fit()  # warnings are errors
    assert metrics(trainer, "patch_level/stage") == [1] * 4


def test_a_run_in_patches_stays_in_patches_under_a_shorter_list(tmp_path: Path) -> None:
    rows = make_rows(32, 16)
    stages = [{"k": 4, "until": "3ba"}, {"k": 2, "until": "6ba"}]
    run(rows, [PatchLevel(stages=stages)], **saving(tmp_path))
    trainer = run(
        rows,
        [PatchLevel(k=2, ratio="6ba", on_mismatch="use_config")],
        load_path=str(tmp_path / "ba4.pt"),
    )
    assert metrics(trainer, "patch_level/k") == [2, 2, 1, 1]


def test_a_stage_starts_anew_with_the_clock() -> None:
    algorithm = PatchLevel(k=2, ratio="2ba")
    trainer = make_trainer(make_rows(16, 16), [algorithm], max_duration="4ba")
    trainer.fit()
    assert algorithm.stage_clock(trainer.state).started.batch == 2
    with warned("left before and is not entered again"):
        trainer.fit(reset_time=True)
    assert algorithm.stage_clock(trainer.state).started.batch == 0


def test_a_checkpoint_at_the_switch_is_asked_for_once(tmp_path: Path) -> None:
    """Not again at the same batch of a second fit whose clock starts anew."""
    algorithm = PatchLevel(stages=[{"k": 4, "until": "2ba"}, {"k": 2, "until": "8ba"}])
    arguments: dict[str, Any] = saving(tmp_path) | {"save_interval": "100ba", "save_overwrite": True}
    trainer = make_trainer(make_rows(32, 16), [algorithm], max_duration="4ba", **arguments)
    with warned("ends as a patch model"):
        trainer.fit()
    (tmp_path / "ba2.pt").unlink()
    with warned("left before and is not entered again"):
        trainer.fit(duration="4ba", reset_time=True)
    assert not (tmp_path / "ba2.pt").exists()


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


def test_a_fit_after_a_broken_one_may_be_given_another_microbatch() -> None:
    def break_off(state: State) -> None:
        if state.timestamp.batch == 1:
            raise RuntimeError("broken off")

    algorithm = PatchLevel(k=4, ratio=0.5, scale_microbatch=True)
    watch = Watch(Event.BEFORE_BACKWARD, break_off)
    trainer = make_trainer(
        make_rows(16, 16), [algorithm], max_duration="4ba", device_train_microbatch_size=2, callbacks=[watch]
    )
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.fit()
    watch.action = lambda state: None
    trainer.fit(device_train_microbatch_size=1)
    assert trainer.state.device_train_microbatch_size == 1


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


def test_quantized_moments_are_not_zeroed() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(4)
    optimizer.step()
    optimizer.state[weight]["exp_avg"] = torch.ones(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'exp_avg' of AdamW, which is a torch\.uint8 tensor"):
        reset_moments(optimizer)


def test_stages_may_come_from_omegaconf_and_are_kept_as_plain_mappings() -> None:
    listed = [{"k": 4, "until": "0.25dur"}, {"k": 2, "until": 0.5}]
    algorithm = PatchLevel(stages=OmegaConf.create(listed))  # pyright: ignore[reportArgumentType]
    assert algorithm.stages == listed
    assert {type(stage) for stage in algorithm.stages} == {dict}


@pytest.mark.parametrize("stages", [8, "8", [[8, 4]], {"k": 4, "until": 0.5}])
def test_stages_that_are_no_list_of_mappings(stages: Any) -> None:
    with pytest.raises(ValueError, match=r"stages.*Give a list such as"):
        PatchLevel(stages=stages)
