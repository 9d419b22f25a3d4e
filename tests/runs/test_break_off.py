"""A fit interrupted anywhere leaves a model that nothing can tell from one that never saw us."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel, HuggingFaceModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import patch_algorithm
from patch_algorithm import PatchLevel
from tests.runs.families import traces
from tests.runs.short import Watch, make_model, make_padded_rows, make_rows, make_trainer, run, saving
from tests.support import VOCABULARY, metrics, weights

T, K = 16, 4
OURS = str(Path(patch_algorithm.__file__).parent)
OTHERS = make_rows(8, T // K, seed=7)
"""Rows whose microbatches have the shape of a patch step's: what stale ids would take the place of."""


def llama() -> HuggingFaceModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes)  # pyright: ignore
    return HuggingFaceModel(LlamaForCausalLM(config), shift_labels=True)


def mpt() -> ComposerModel:
    """Tied, so that its embedding is called a second time, with hidden states."""
    # Not with rotary positions: llm-foundry's cannot be deep-copied.
    return make_model(learned_pos_emb=True, attn_config={"rope": False})


MODELS: tuple[Callable[[], ComposerModel], ...] = (mpt, llama)


class AtOperation(TorchDispatchMode):
    """Raises at the n-th operation: in the forward, the loss, the backward, the optimizer, a callback."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.seen = number, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.number:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


class AtLine:
    """Raises at the n-th line of our own code: between any two statements of a hook or an event."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0

    def __enter__(self) -> AtLine:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.number:
                raise KeyboardInterrupt
        return self._trace


class AtEvent(Callback):
    """Raises at the n-th event of the steps: in a callback, after the algorithm's part of the event."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, 0
        self._steps = False

    def __enter__(self) -> AtEvent:
        self._steps = True
        return self

    def __exit__(self, *_: object) -> None:
        self._steps = False

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if not self._steps:
            return
        self.seen += 1
        if self.seen == self.number:
            raise KeyboardInterrupt


POINTS: dict[str, Callable[[int], Any]] = {"operation": AtOperation, "line": AtLine, "event": AtEvent}


def interrupt(model: ComposerModel, point: Any) -> None:
    """Rehearses, trains two patch steps of two microbatches, and a token step, unless ``point`` raises."""
    rows = make_padded_rows(12, T) if isinstance(model, HuggingFaceModel) else make_rows(12, T)
    trainer = make_trainer(
        rows,
        [PatchLevel(k=K, ratio="2ba")],
        model=model,
        max_duration="3ba",
        device_train_microbatch_size=2,
        callbacks=[point] if isinstance(point, Callback) else [],
    )
    with point:
        trainer.fit()


def points(kind: str, make: Callable[[], ComposerModel]) -> int:
    """How many points of a kind a whole run has, at least; the first run of a process may have more."""
    seen: list[int] = []
    for _ in range(2):
        point = POINTS[kind](-1)
        interrupt(make(), point)
        seen.append(point.seen)
    return min(seen)


def plain_run(model: ComposerModel) -> list[float]:
    trainer = make_trainer(OTHERS, model=model, max_duration="2ba", device_train_microbatch_size=2)
    trainer.fit()
    return metrics(trainer, "loss/train/total")


def run_in_patches(model: ComposerModel) -> list[float]:
    algorithm = PatchLevel(k=2, ratio="1ba", rehearse_switch=False)
    trainer = make_trainer(
        make_rows(8, 2 * T // K, seed=3),
        [algorithm],
        model=model,
        max_duration="2ba",
        device_train_microbatch_size=2,
    )
    trainer.fit()
    assert metrics(trainer, "patch_level/stage") == [0, 1]
    return metrics(trainer, "loss/train/total")


def forward(model: Any, batch: dict[str, Tensor], training: bool) -> list[Tensor]:
    """Logits of every way to call a model, and the gradient of the embedding."""
    model.train(training)
    model.zero_grad(set_to_none=True)
    outputs = model(batch)
    outputs["logits"].square().mean().backward()
    inner = model.model(input_ids=batch["input_ids"])["logits"]
    unhooked = model.forward(batch)["logits"]
    weight = model.model.get_input_embeddings().weight
    return [outputs["logits"].detach(), inner.detach(), unhooked.detach(), weight.grad.clone()]


def everything(model: ComposerModel, weights: dict[str, Tensor], copied: ComposerModel) -> dict[str, Any]:
    """What a model, and a copy made of it, do in the hands of whoever comes next."""
    batch = {key: torch.stack([row[key] for row in OTHERS[:2]]) for key in ("input_ids", "labels")}

    def on(target: ComposerModel, action: Callable[[ComposerModel], Any]) -> Any:
        target.load_state_dict(weights)
        return action(target), {name: t.clone() for name, t in target.state_dict().items()}

    outcome = {
        f"{name}, {'training' if training else 'evaluating'}": forward(target, batch, training)
        for name, target in (("model", model), ("copy", copied))
        for training in (True, False)
    }
    return outcome | {
        "plain": on(model, plain_run),
        "in patches": on(model, run_in_patches),
        "plain again": on(model, plain_run),
        "copy": on(copied, plain_run),
        "copy in patches": on(copied, run_in_patches),
    }


def check(kind: str, number: int, make: Callable[[], ComposerModel]) -> None:
    broken = make()
    with pytest.raises(KeyboardInterrupt):
        interrupt(broken, POINTS[kind](number))
    copied = copy.deepcopy(broken)
    weights = {name: tensor.clone() for name, tensor in broken.state_dict().items()}
    unseen = make()
    unseen.load_state_dict(weights)
    expected = everything(unseen, weights, copy.deepcopy(unseen))
    torch.testing.assert_close(everything(broken, weights, copied), expected, rtol=0, atol=0)


def chosen(kind: str, number: int) -> list[int]:
    """Points spread over a whole run, at random within each of the equal parts."""
    total, draw = min(points(kind, make) for make in MODELS), random.Random(17)
    return [1 + int((part + draw.random()) * total / number) for part in range(number)]


@pytest.mark.parametrize(("kind", "number"), [("operation", 8), ("line", 8), ("event", 4)])
def test_broken_off_anywhere(kind: str, number: int) -> None:
    for index, point in enumerate(chosen(kind, number)):
        check(kind, point, MODELS[index % 2])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("operation", 45), ("line", 40), ("event", 15)])
def test_broken_off_at_a_hundred_points(kind: str, number: int) -> None:
    for index, point in enumerate(chosen(kind, number)):
        check(kind, point, MODELS[index % 2])


def test_resuming_on_the_same_model_object(tmp_path: Path) -> None:
    """As in a notebook: a new trainer and a new PatchLevel on the model that is there."""

    def trainer(model: ComposerModel, *callbacks: Callback, **changes: Any) -> Any:
        algorithm = PatchLevel(k=K, ratio="3ba")
        return make_trainer(
            make_rows(24, T), [algorithm], model=model, max_duration="5ba", callbacks=callbacks, **changes
        )

    whole = trainer(mpt())
    whole.fit()
    for event in (Event.AFTER_FORWARD, Event.BEFORE_LOSS, Event.BEFORE_BACKWARD):
        model, folder = mpt(), tmp_path / event.value
        with pytest.raises(KeyboardInterrupt):
            trainer(model, Watch(event, stop_at_second_step), **saving(folder)).fit()
        resumed = trainer(model, load_path=str(folder / "ba1.pt"))
        resumed.fit()
        assert metrics(resumed, "loss/train/total") == metrics(whole, "loss/train/total")[1:]
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


def test_a_new_trainer_takes_the_hooks_off_when_it_is_made() -> None:
    """Whether it trains in patches or not."""
    model, algorithm = mpt(), PatchLevel(k=K, ratio="2ba")
    untouched = traces(model)
    stop = Watch(Event.BEFORE_LOSS, stop_at_second_step)
    with pytest.raises(KeyboardInterrupt):
        run(make_rows(12, T), [algorithm], model=model, max_duration="3ba", callbacks=[stop])
    assert traces(model) != untouched
    make_trainer(make_rows(4, T), [PatchLevel(k=1)], model=model)
    # Composer gives the model its logger.
    left = {path: trace for path, trace in traces(model).items() if path}
    assert left == {path: trace for path, trace in untouched.items() if path}
    assert "loss" not in vars(model)
    assert not model._forward_pre_hooks


def stop_at_second_step(state: State) -> None:
    if state.timestamp.batch == 1:
        raise KeyboardInterrupt
