"""What every step logs, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from composer.core import Event, State
from composer.loggers import InMemoryLogger

from patch_algorithm import PatchLevel
from patch_algorithm.algorithm import patch_run
from patch_algorithm.algorithm.loss_metrics import LossTally
from patch_algorithm.common.step_sums import StepSums
from patch_algorithm.loss.cross_entropy import PatchLoss, patch_cross_entropy
from tests.runs.short import (
    Watch,
    make_model,
    make_padded_rows,
    make_rows,
    make_trainer,
    run,
)
from tests.support import metrics

EVERY_STEP = ("stage", "k", "positions_per_row", "share_of_run", "compute_share")
PATCH_STEPS = ("loss", "perplexity", "token_accuracy")
STEPS = 8


@pytest.fixture(scope="module")
def logged() -> dict[str, dict[int, float]]:
    """What a run of two epochs of four batches, half of it in patches of 4, logged at which batch."""
    trainer = run(
        make_rows(16, 32), [PatchLevel(k=4, ratio=0.5)], model=make_model(max_seq_len=8), max_duration="2ep"
    )
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    return {
        name: {int(clock.batch.value): float(value) for clock, value in entries}
        for name, entries in memory.data.items()
    }


def patch_level(logged: dict[str, dict[int, float]], name: str) -> list[float]:
    values = logged[f"patch_level/{name}"]
    assert list(values) == list(range(1, len(values) + 1)), "one value after each batch"
    return list(values.values())


def test_every_key_is_there_at_every_step(logged: dict[str, dict[int, float]]) -> None:
    names = {name.removeprefix("patch_level/") for name in logged if name.startswith("patch_level/")}
    assert names == {*EVERY_STEP, *PATCH_STEPS}
    for name in EVERY_STEP:
        assert len(patch_level(logged, name)) == STEPS
    for name in PATCH_STEPS:
        assert len(patch_level(logged, name)) == STEPS // 2


def test_values_of_each_stage(logged: dict[str, dict[int, float]]) -> None:
    assert patch_level(logged, "stage") == [0] * 4 + [1] * 4
    assert patch_level(logged, "k") == [4] * 4 + [1] * 4
    assert patch_level(logged, "positions_per_row") == [8] * 8
    # A quarter while in patches; then a quarter of four batches, and all of the others.
    assert patch_level(logged, "compute_share") == pytest.approx(
        [0.25] * 4 + [(4 * 0.25 + token) / (4 + token) for token in (1, 2, 3, 4)]
    )
    assert patch_level(logged, "compute_share")[-1] == pytest.approx(0.5 / 4 + 1 - 0.5)
    assert patch_level(logged, "share_of_run") == pytest.approx([step / 8 for step in range(1, 9)])


def test_one_name_for_the_loss_in_both_stages(logged: dict[str, dict[int, float]]) -> None:
    assert [name for name in logged if name.startswith("loss/")] == ["loss/train/total"]
    total = list(logged["loss/train/total"].values())
    assert len(total) == STEPS
    assert patch_level(logged, "loss") == pytest.approx(total[:4], rel=1e-6)
    assert patch_level(logged, "perplexity") == pytest.approx([math.exp(x) for x in total[:4]], rel=1e-5)
    # In the token stage the model's own metrics are back, and agree with the loss.
    own = logged["metrics/train/LanguageCrossEntropy"]
    assert set(own) == {4, 5, 6, 7, 8}
    assert next(iter(own.values())) == pytest.approx(total[4], rel=1e-6)


@pytest.mark.parametrize(
    ("max_duration", "expected"),
    [("8ba", 1 / 8), ("2ep", 1 / 8), ("32sp", 4 / 32), ("1024tok", 128 / 1024)],
)
def test_share_of_run_in_every_unit(max_duration: str, expected: float) -> None:
    trainer = run(make_rows(16, 32), [PatchLevel(k=4, ratio=0.25)], max_duration=max_duration)
    shares = metrics(trainer, "patch_level/share_of_run")
    assert shares == pytest.approx([expected * step for step in range(1, 9)])


@pytest.mark.filterwarnings("ignore:The switch at")
@pytest.mark.parametrize("microbatch", [4, 1])
def test_loss_and_accuracy_against_the_model_fed_by_hand(microbatch: int) -> None:
    k, rows = 4, make_padded_rows(4, 16)
    trainer = run(
        rows, [PatchLevel(k=k, ratio=1.0)], max_duration="1ba", device_train_microbatch_size=microbatch
    )
    model: Any = make_model().model
    losses, hits = [], []
    for row in rows:
        real = int(row["attention_mask"].sum())
        patches = [row["input_ids"][i : min(i + k, real)] for i in range(0, real, k)]
        table_VD = model.transformer.wte.weight
        embeds_1PD = torch.stack([table_VD[patch].mean(dim=0) for patch in patches])[None]
        with torch.no_grad():
            logits_PV = model(inputs_embeds=embeds_1PD).logits[0]
        for position, next_start in enumerate(range(k, 16, k)):
            for token in row["labels"][next_start : next_start + k].tolist():
                if token >= 0 and position < len(patches):
                    losses.append(-logits_PV[position].log_softmax(-1)[token].item())
                    hits.append(logits_PV[position].argmax().item() == token)
    expected = sum(losses) / len(losses)
    assert metrics(trainer, "patch_level/loss") == pytest.approx([expected], rel=1e-5)
    assert metrics(trainer, "loss/train/total") == pytest.approx([expected], rel=1e-5)
    assert metrics(trainer, "patch_level/perplexity") == pytest.approx([math.exp(expected)], rel=1e-4)
    assert metrics(trainer, "patch_level/token_accuracy") == pytest.approx([sum(hits) / len(hits)])


@pytest.mark.filterwarnings("ignore:The switch at")
def test_accuracy_is_right_where_some_pairs_hit() -> None:
    # One token throughout: after a few steps every target is the most likely token.
    row = {"input_ids": torch.full((16,), 7), "labels": torch.full((16,), 7)}
    trainer = run([row] * 32, [PatchLevel(k=4, ratio=1.0)], lr=0.05)
    accuracy = metrics(trainer, "patch_level/token_accuracy")
    assert accuracy[-1] == 1.0
    assert set(accuracy) <= {0.0, 1.0}


@pytest.mark.filterwarnings("ignore:The switch at")
def test_batch_that_is_tried_again_is_not_counted_twice() -> None:
    # What Composer does after running out of memory: the batch starts anew, in smaller microbatches.
    def retry(state: State) -> None:
        if not retried:
            retried.append(True)
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")

    retried: list[bool] = []
    rows = make_rows(4, 16)
    watch = Watch(Event.AFTER_BACKWARD, retry)
    trainer = make_trainer(
        rows,
        [PatchLevel(k=4, ratio=1.0)],
        callbacks=[watch],
        max_duration="1ba",
        device_train_microbatch_size=2,
    )
    trainer.state.auto_microbatching = True
    trainer.fit()
    plain = run(rows, [PatchLevel(k=4, ratio=1.0)], max_duration="1ba")
    assert retried
    assert trainer.state.device_train_microbatch_size == 1
    for name in ("patch_level/loss", "loss/train/total", "patch_level/token_accuracy"):
        assert metrics(trainer, name) == pytest.approx(metrics(plain, name), rel=1e-6)
    assert metrics(trainer, "patch_level/compute_share") == [0.25]


def test_positions_per_row_where_rows_are_not_cut() -> None:
    trainer = run(make_rows(16, 32), [PatchLevel(k=4, ratio=0.5)], max_duration="4ba")
    assert metrics(trainer, "patch_level/positions_per_row") == [8, 8, 32, 32]
    assert metrics(trainer, "patch_level/compute_share") == pytest.approx([0.25, 0.25, 0.5, 0.625])


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


def test_weights_of_targets_are_made_once_and_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def note(*args: Any, weights: Any, **kwargs: Any) -> PatchLoss:
        given.append(weights)
        return patch_cross_entropy(*args, weights=weights, **kwargs)

    monkeypatch.setattr(patch_run, "patch_cross_entropy", note)
    algorithm = PatchLevel(k=4, ratio=0.5, target_weights="inverse")
    run(make_rows(8, 16), [algorithm], max_duration="2ba", device_train_microbatch_size=1)
    assert len(given) == 4, "one for each microbatch of the patch stage"
    assert all(weights is given[0] for weights in given)
    assert given[0].dtype == torch.float32


def test_a_list_of_weights_reaches_the_loss_and_the_banner(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[Any] = []

    def note(*args: Any, weights: Any, **kwargs: Any) -> PatchLoss:
        given.append(weights)
        return patch_cross_entropy(*args, weights=weights, **kwargs)

    monkeypatch.setattr(patch_run, "patch_cross_entropy", note)
    algorithm = PatchLevel(k=4, ratio=0.5, target_weights=[4, 2, 1, 1])
    with caplog.at_level("INFO", logger="patch_algorithm"):
        run(make_rows(8, 16), [algorithm], max_duration="2ba")
    assert given[0].tolist() == [2, 1, 0.5, 0.5]
    assert "target_weights: 4 : 2 : 1 : 1 of the next patch" in caplog.text


class OnMps(torch.Tensor):
    """Stands for a tensor on a device without float64."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("mps")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to:  # it is there already
            args = args[0], args[-1]
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("the MPS framework does not support float64")
        return result


def test_devices_without_float64_are_counted_on() -> None:
    def on_mps(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(value, dtype=dtype).as_subclass(OnMps)

    tally = LossTally()
    for loss_sum, count, hits in ((30.0, 10, 4), (2.0, 6, 2)):
        parts = on_mps(loss_sum, torch.float32), on_mps(count, torch.int64), on_mps(hits, torch.int64)
        tally.add(PatchLoss(*parts))
    loss = tally.read(StepSums(torch.device("mps")), torch.tensor(False).as_subclass(OnMps))
    assert loss is not None
    assert loss.metrics()["patch_level/loss"] == 2
    assert loss.metrics()["patch_level/token_accuracy"] == 6 / 16
