"""In the middle of the patch stage everything but the training step meets an ordinary model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Evaluator, Trainer
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerModel
from llmfoundry.registry import algorithms as registry
from llmfoundry.utils.builders import build_dataloader
from torch.utils.checkpoint import checkpoint

from patch_algorithm import PatchLevel
from tests.runs.families import CONTEXT, Witness, family, plain_model
from tests.support import config, metrics, mpt, train, weights

PROMPT = torch.tensor([[3, 5, 8], [20, 22, 23]])


class At(Callback):
    """Calls a function at one event of one batch, in the middle of a fit."""

    def __init__(self, event: Event, batch: int, call: Callable[[State], None]) -> None:
        self.event, self.batch, self.call = event, batch, call

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event == self.event and state.timestamp.batch == self.batch:
            self.call(state)


def loader(cfg: dict[str, Any], name: str, model: ComposerModel, rows: int = 4) -> Any:
    return build_dataloader(cfg[f"{name}_loader"] | {}, model.tokenizer, rows)  # pyright: ignore


def composed(corpus: Path, model: ComposerModel, **changes: Any) -> Trainer:
    """A trainer built with Composer alone: patch level, six steps, a switch after the third."""
    cfg = config(corpus, {})
    options: dict[str, Any] = {"max_duration": "6ba", "algorithms": [PatchLevel(k=4, ratio=0.5)]}
    return Trainer(
        model=model,
        train_dataloader=loader(cfg, "train", model),
        eval_dataloader=Evaluator(
            label="eval", dataloader=loader(cfg, "eval", model), metric_names=["LanguageCrossEntropy"]
        ),
        eval_interval=0,
        optimizers=torch.optim.AdamW(model.parameters(), lr=1e-2),
        device_train_microbatch_size=4,
        accumulate_train_batch_on_tokens=True,
        progress_bar=False,
        seed=17,
        loggers=[InMemoryLogger()],
        **(options | changes),
    )


def evaluated(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: m.compute() for name, m in trainer.state.eval_metrics["eval"].items()}


@pytest.mark.filterwarnings("ignore:Propagating key_padding_mask")  # MPT's, for any masked batch
@pytest.mark.parametrize("name", ["mpt-tied-rope", "llama", "gpt2"])
def test_eval_predict_and_generate_in_the_patch_stage(name: str, corpus: Path, tmp_path: Path) -> None:
    """Called from inside the fit, after two patch steps, and compared with a plain trainer's."""
    cfg = family(name, tmp_path)
    seen: dict[str, Any] = {}

    def look(state: State) -> None:
        assert trainer.state.algorithms[0].in_patch_stage  # pyright: ignore
        seen["weights"] = {n: t.clone() for n, t in state.model.state_dict().items()}
        seen["outcome"] = outcome(trainer, corpus)

    model = plain_model(cfg, corpus)
    trainer = composed(corpus, model, callbacks=[At(Event.BATCH_END, 2, look)])
    trainer.fit()

    plain = plain_model(cfg, corpus)
    plain.load_state_dict(seen["weights"])
    expected = outcome(composed(corpus, plain, algorithms=[]), corpus)
    torch.testing.assert_close(seen["outcome"], expected, rtol=0, atol=0)
    assert metrics(trainer, "patch_level/stage") == [0, 0, 0, 1, 1, 1]


def outcome(trainer: Trainer, corpus: Path) -> dict[str, Any]:
    model: Any = trainer.state.model
    trainer.eval()
    with torch.no_grad():
        generated = model.generate(
            PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=4, do_sample=False
        )
    predictions = trainer.predict(loader(config(corpus, {}), "eval", model), return_outputs=True)
    return {
        "eval": evaluated(trainer),
        "generate": generated,
        "predict": torch.stack([p["logits"] for p in predictions]),
    }


def test_an_evaluation_between_forward_and_backward_is_token_level(corpus: Path) -> None:
    """The hooks are armed there: only the model's training mode tells the two apart."""
    seen: list[torch.Tensor] = []
    ids = torch.arange(CONTEXT)[None]

    def look(state: State) -> None:
        state.model.eval()
        with torch.no_grad():
            seen.append(state.model({"input_ids": ids})["logits"])
        state.model.train()

    model = plain_model(mpt(), corpus)
    events = (Event.AFTER_FORWARD, Event.BEFORE_LOSS, Event.BEFORE_BACKWARD, Event.AFTER_BACKWARD)
    trainer = composed(corpus, model, callbacks=[At(event, 0, look) for event in events])
    before = plain_model(mpt(), corpus)
    before.load_state_dict(weights(trainer))
    trainer.fit()
    with torch.no_grad():
        expected = before.eval()({"input_ids": ids})["logits"]
    assert len(seen) == len(events)
    for logits in seen:
        assert torch.equal(logits, expected)


def test_evaluating_leaves_training_as_it_was(corpus: Path) -> None:
    algorithms = {"patch_level": {"k": 4, "ratio": 0.5}}
    quiet = train(config(corpus, mpt(), algorithms=algorithms))
    busy = train(config(corpus, mpt(), algorithms=algorithms, eval_interval="1ba"))
    assert len(metrics(busy, "metrics/eval/LanguageCrossEntropy")) == 6
    for name, tensor in weights(quiet).items():
        assert torch.equal(tensor, weights(busy)[name]), name


def test_a_checkpoint_of_the_patch_stage_is_an_ordinary_one(corpus: Path, tmp_path: Path) -> None:
    model = plain_model(mpt(), corpus)
    folder = str(tmp_path / "saved")
    trainer = composed(corpus, model, save_folder=folder, save_interval="2ba", max_duration="4ba")
    trainer.fit()
    saved = torch.load(tmp_path / "saved" / "ep0-ba2-rank0.pt", weights_only=False)["state"]
    assert list(saved["model"]) == list(plain_model(mpt(), corpus).state_dict())

    plain = composed(
        corpus,
        plain_model(mpt(), corpus),
        algorithms=[],
        load_path=str(tmp_path / "saved" / "ep0-ba2-rank0.pt"),
        load_weights_only=True,
    )
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, saved["model"][name]), name


def test_train_metrics_come_back_at_a_switch_in_an_epoch(corpus: Path) -> None:
    check_train_metrics(train(config(corpus, mpt(), algorithms={"patch_level": {"ratio": 0.5}})))


def test_train_metrics_come_back_at_a_switch_between_epochs(
    corpus: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """At an epoch's end the trainer computes its metrics: any that no step updated would be NaN."""
    trainer = train(
        config(
            corpus,
            mpt(),
            algorithms={"patch_level": {"ratio": 0.5}},
            max_duration="2ep",
            global_train_batch_size=64,
            device_train_microbatch_size=64,
        )
    )
    assert metrics(trainer, "patch_level/stage") == [0] * 4 + [1] * 4
    check_train_metrics(trainer)
    assert not [w for w in recwarn if "compute" in str(w.message) and "update" in str(w.message)]


def test_train_metrics_survive_a_fit_that_broke_off(corpus: Path) -> None:
    def fail(state: State) -> None:
        raise KeyboardInterrupt

    model = plain_model(mpt(), corpus)
    stop = At(Event.AFTER_FORWARD, 1, fail)
    trainer = composed(corpus, model, callbacks=[stop])
    names = set(trainer.state.train_metrics or {})
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    stop.batch = -1
    trainer.fit()
    assert names
    assert set(trainer.state.train_metrics or {}) == names
    check_train_metrics(trainer)


def check_train_metrics(trainer: Trainer) -> None:
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    losses = memory.data["loss/train/total"]
    stages = [value for _, value in memory.data["patch_level/stage"]]
    entropies = {t.batch.value: float(v) for t, v in memory.data["metrics/train/LanguageCrossEntropy"]}
    token_steps = {
        t.batch.value: float(v) for (t, v), stage in zip(losses, stages, strict=True) if stage == 1
    }
    assert not any(math.isnan(v) for v in entropies.values())
    for step, loss in token_steps.items():
        assert entropies.pop(step) == pytest.approx(loss, rel=1e-5)
    # What is left are the records that the trainer makes at the end of an epoch.
    assert not entropies or min(entropies) > min(token_steps)


@pytest.mark.parametrize(
    ("context", "positions", "factor"),
    [(8, (8, 8), 4.0), (32, (8, 32), None)],
    ids=["rows of k*L", "rows of L"],
)
def test_flops_of_both_stages(
    context: int, positions: tuple[int, int], factor: float | None, corpus: Path
) -> None:
    """SpeedMonitor asks the model, which counts the positions of the batch it is shown."""
    cfg = mpt(max_seq_len=context)
    changes = {"callbacks": {"speed_monitor": {"window_size": 1}}}
    trainer = train(config(corpus, cfg, algorithms={"patch_level": {"ratio": 0.5}}, **changes))
    per_second = metrics(trainer, "throughput/flops_per_sec")
    batches_per_second = metrics(trainer, "throughput/batches_per_sec")
    flops = [f / b for f, b in zip(per_second, batches_per_second, strict=True)]
    model: Any = plain_model(cfg, corpus)

    def of(rows: int, length: int) -> float:
        return model.flops_per_batch({"input_ids": torch.zeros(rows, length)})

    patch, token = of(4, positions[0]), of(4 * 32 // positions[1], positions[1])
    # The first window ends with the second step; the logger averages nothing.
    assert flops == pytest.approx([patch] * 2 + [token] * 3, rel=1e-9)
    if factor is not None:
        assert token / patch == pytest.approx(factor, rel=1e-12)


class Recompute(Algorithm):
    """Activation checkpointing: of the model's layers, or of all of it with the embedding."""

    def __init__(self, layers_only: bool) -> None:
        self.layers_only = layers_only
        self.forwards = 0

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model: Any = state.model
        inner: Any = model.model
        if self.layers_only:
            inner.gradient_checkpointing_enable({"use_reentrant": False})
            return
        body: Any = inner.base_model
        forward = body.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.forwards += 1
            return forward(*args, **kwargs)

        body.forward = lambda *a, **kw: checkpoint(counted, *a, use_reentrant=False, **kw)


if "recompute" not in registry:
    registry.register("recompute", func=Recompute)


@pytest.mark.parametrize(
    ("name", "layers_only"),
    [("llama", True), ("llama", False), ("mpt-tied-rope", False)],
)
def test_recomputed_activations_give_the_same_gradients(
    name: str, layers_only: bool, corpus: Path, tmp_path: Path
) -> None:
    def gradients(**extra: Any) -> tuple[list[dict[str, torch.Tensor]], Trainer]:
        algorithms = {"patch_level": {"ratio": 0.5}, "witness": {}} | extra
        cfg = config(corpus, family(name, tmp_path), algorithms=algorithms, max_duration="4ba")
        trainer = train(cfg | {"device_train_microbatch_size": 2})
        witness = next(a for a in trainer.state.algorithms if isinstance(a, Witness))
        return witness.gradients, trainer

    plain, _ = gradients()
    recomputed, trainer = gradients(recompute={"layers_only": layers_only})
    algorithm = next(a for a in trainer.state.algorithms if isinstance(a, Recompute))
    assert len(plain) == 2 * 2 + 2 * 8
    if not layers_only:
        assert algorithm.forwards == 2 * len(plain)  # or nothing was computed again
    torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-8)
