"""The rehearsal holds what a step of the token stage holds, and leaves nothing changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.core import Event
from composer.models import ComposerModel, HuggingFaceModel
from torch.distributed.optim import _apply_optimizer_in_backward  # pyright: ignore[reportPrivateUsage]
from transformers import LlamaConfig, LlamaForCausalLM

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm import stage_memory
from patch_algorithm.algorithm.rehearsal import rehearse
from tests.loss.test_loss_memory import LiveBytes
from tests.model_access.test_loss_call import NamedParts, Parts
from tests.model_access.toys import Toy
from tests.runs.short import Watch, make_model, make_rows, make_trainer, run
from tests.support import metrics

V, T, MICROBATCH = 2048, 32, 2
LOGITS = MICROBATCH * T * V * 4
"""Bytes of the logits of a token-stage microbatch, in float32."""


def mpt() -> ComposerModel:
    return make_model(vocab_size=V)


def llama() -> ComposerModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=V, max_position_embeddings=T, **sizes)  # pyright: ignore
    return HuggingFaceModel(LlamaForCausalLM(config), shift_labels=True)


def peaks(
    model: ComposerModel, monkeypatch: pytest.MonkeyPatch, batch: int, **changes: Any
) -> dict[str, int]:
    """The most bytes that live at once in the rehearsal and in a token step, on top of what was there."""
    seen: dict[str, int] = {}

    def measured(*args: Any) -> str:
        with LiveBytes() as memory:
            what = rehearse(*args)
        seen["rehearsal"] = memory.peak
        return what

    monkeypatch.setattr(stage_memory, "rehearse", measured)
    trainer = make_trainer(
        make_rows(3 * batch, T),
        [PatchLevel(k=4, ratio="1ba")],
        model=model,
        max_duration="3ba",
        batch=batch,
        device_train_microbatch_size=MICROBATCH,
        **changes,
    )
    train_batch = trainer._train_batch  # pyright: ignore[reportPrivateUsage]

    def step(*args: Any) -> Any:
        with LiveBytes() as memory:
            result = train_batch(*args)
        seen[f"step {trainer.state.timestamp.batch.value}"] = memory.peak
        return result

    monkeypatch.setattr(trainer, "_train_batch", step)
    trainer.fit()
    return seen


@pytest.mark.parametrize("model", [mpt, llama])
@pytest.mark.parametrize("batch", [MICROBATCH, 2 * MICROBATCH], ids=["one microbatch", "several"])
def test_it_holds_what_a_step_holds(
    model: Callable[[], ComposerModel], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain SGD keeps nothing, so that the two differ by the outputs alone where they are let go."""
    seen = peaks(model(), monkeypatch, batch, optimizer=torch.optim.SGD)
    assert seen["step 2"] > 4 * LOGITS, "or the outputs are not among what is measured"
    assert abs(seen["rehearsal"] - seen["step 2"]) < 0.1 * LOGITS


def test_it_takes_what_the_optimizer_will_take_at_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mpt()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    sgd = peaks(model, monkeypatch, MICROBATCH, optimizer=torch.optim.SGD)["rehearsal"]
    adam = peaks(mpt(), monkeypatch, MICROBATCH, optimizer=torch.optim.AdamW)["rehearsal"]
    assert adam - sgd == pytest.approx(2 * parameters, rel=0.01), "two moments"


def test_it_takes_what_each_parameter_group_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_momentum_in_the_second_group(parameters: Any, lr: float) -> torch.optim.Optimizer:
        first, *others = parameters
        groups = [{"params": first, "momentum": 0.0}, {"params": others, "momentum": 0.9}]
        return torch.optim.SGD(groups, lr=lr)

    model = mpt()
    _, *others = (p.numel() * p.element_size() for p in model.parameters())
    plain = peaks(model, monkeypatch, MICROBATCH, optimizer=torch.optim.SGD)["rehearsal"]
    some = peaks(mpt(), monkeypatch, MICROBATCH, optimizer=with_momentum_in_the_second_group)["rehearsal"]
    assert some - plain == pytest.approx(sum(others), rel=0.01)


def test_it_takes_nothing_where_the_optimizer_has_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run that was resumed: that state is in memory already."""
    model = mpt()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    fresh = peaks(mpt(), monkeypatch, MICROBATCH, optimizer=torch.optim.SGD)["rehearsal"]
    resumed = peaks(model, monkeypatch, MICROBATCH, optimizer=lambda *_, **__: optimizer)["rehearsal"]
    assert abs(resumed - fresh) < 0.1 * LOGITS


def rehearsed_weights(model: ComposerModel, prepare: Callable[[Trainer], None]) -> bool:
    """Whether the weights are the same before and after the rehearsal of a run."""
    same: list[bool] = []
    trainer = make_trainer(make_rows(8, T), [PatchLevel(k=4, ratio="1ba")], model=model, max_duration="2ba")
    prepare(trainer)
    before = [p.detach().clone() for p in model.parameters()]
    watch = Watch(
        Event.BEFORE_TRAIN_BATCH,
        lambda state: same.append(all(map(torch.equal, model.parameters(), before))),
    )
    trainer.state.callbacks.append(watch)
    trainer.fit()
    assert metrics(trainer, "patch_level/stage") == [0, 1]
    return same[0]


def stepping_hooks(trainer: Trainer) -> None:
    for parameter in trainer.state.model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def step(p: torch.Tensor, optimizer: Any = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)


def optimizer_in_backward(trainer: Trainer) -> None:
    model = trainer.state.model
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})


@pytest.mark.parametrize("prepare", [stepping_hooks, optimizer_in_backward])
def test_it_is_left_out_where_optimizers_step_in_the_backward(
    prepare: Callable[[Trainer], None], capfd: pytest.CaptureFixture[str]
) -> None:
    assert rehearsed_weights(make_model(), prepare)
    said = capfd.readouterr().err
    assert "the token stage is not rehearsed. Parameters have hooks" in said
    assert "it fits in memory" not in said


def test_weights_that_it_changed_all_the_same_stop_the_run() -> None:
    """By a hook that torch does not tell of, on the node that accumulates the gradient."""
    kept: list[Any] = []

    def prepare(trainer: Trainer) -> None:
        parameter = next(trainer.state.model.parameters())
        node: Any = parameter.view_as(parameter).grad_fn
        accumulate = node.next_functions[0][0]
        kept.append(accumulate)

        def step(*_: Any) -> None:
            with torch.no_grad():
                parameter.add_(1.0)

        accumulate.register_hook(step)

    with pytest.raises(RuntimeError, match=r"rehearsal .*changed the weights.*rehearse_switch: false"):
        rehearsed_weights(make_model(), prepare)


def test_without_such_hooks_it_runs_and_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert rehearsed_weights(make_model(), lambda trainer: None)
    assert "it fits in memory" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [NamedParts, Parts])
def test_losses_of_several_parts_are_rehearsed(kind: type[Toy], capfd: pytest.CaptureFixture[str]) -> None:
    run(make_rows(8, T), [PatchLevel(k=4, ratio="1ba")], model=kind(), max_duration="2ba")
    assert "it fits in memory" in capfd.readouterr().err


def test_random_numbers_of_every_kind_are_what_they_were() -> None:
    """Layers are dropped by Python's in OPT, by numpy's in Wav2Vec2, by torch's elsewhere."""

    class Draws(Toy):
        def hidden(self, ids: torch.Tensor) -> torch.Tensor:
            return self.embed(ids) * (random.random() + np.random.rand() + torch.rand(()))

    def losses(rehearse_switch: bool) -> list[float]:
        algorithm = PatchLevel(k=4, ratio="1ba", rehearse_switch=rehearse_switch)
        return metrics(
            run(make_rows(8, T), [algorithm], model=Draws(), max_duration="2ba"), "loss/train/total"
        )

    assert losses(True) == losses(False)


def test_an_optimizer_that_cannot_be_tried_out_ends_no_run() -> None:
    """Muon and others assert what the weights they are given must be."""

    class Picky(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            assert all(p.shape[0] > 4 for group in self.param_groups for p in group["params"])
            return super().step(closure)

    trainer = run(
        make_rows(8, T), [PatchLevel(k=4, ratio="1ba")], model=Toy(), max_duration="2ba", optimizer=Picky
    )
    assert metrics(trainer, "patch_level/stage") == [0, 1]
