"""What the monitor logs: in real runs, and in runs whose seconds are made up."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.callbacks import SpeedMonitor
from composer.core import Evaluator, Event, State, Timestamp
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_costs import Cost, RunRecord
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from tests.runs.short import Watch, make_model, make_padded_rows, make_rows, make_trainer, run, saving
from tests.support import metrics

ROWS = make_rows(32, 32)
"""Eight batches of four rows of 32: 128 raw tokens, 4 x 8 positions as patches of 4, 16 x 8 as tokens."""
EVERY_STEP = {
    "raw_tokens_per_sec",
    "positions_per_sec",
    "flops_per_sec",
    "flops",
    "compute_share_at_end",
    "seconds_left",
    "peak_memory_gb",
}


def measured(*algorithms: Any, **changes: Any) -> Trainer:
    changes = {"model": make_model(max_seq_len=8)} | changes
    callbacks = [PatchMonitor(), *changes.pop("callbacks", [])]
    return run(changes.pop("rows", ROWS), algorithms, callbacks=callbacks, **changes)


def record_of(trainer: Trainer) -> RunRecord:
    return StageRecorder.of(trainer.state).record


def logged(trainer: Trainer) -> dict[str, list[float]]:
    memory = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    names = [name for name in memory.data if name.startswith("patch_monitor/")]
    return {name.removeprefix("patch_monitor/"): metrics(trainer, name) for name in names}


def test_run_in_two_stages(capsys: pytest.CaptureFixture[str]) -> None:
    speed = SpeedMonitor(window_size=100)
    trainer = measured(PatchLevel(k=4, ratio=0.5), callbacks=[speed])
    values = logged(trainer)
    assert {name for name, series in values.items() if len(series) == 8} == EVERY_STEP
    assert set(values) == EVERY_STEP | {"patch_speedup"}
    patch, token = record_of(trainer).stages
    assert (patch.index, patch.k, token.index, token.k) == (0, 4, 1, 1)
    assert (patch.total.steps, patch.timed.steps, token.total.steps, token.timed.steps) == (4, 3, 4, 3)
    assert (patch.total.tokens, token.total.tokens) == (4 * 128, 4 * 128)
    assert (patch.total.positions, token.total.positions) == (4 * 4 * 8, 4 * 16 * 8)
    # Composer's monitor sees the folded batch, too; MPT counts norms and biases as products.
    assert [b - a for a, b in zip([0, *values["flops"]], values["flops"], strict=False)] == pytest.approx(
        list(speed.history_flops), rel=0.1
    )
    assert token.total.flops == 4 * patch.total.flops
    shares = metrics(trainer, "patch_level/compute_share")
    assert shares[-1] == record_of(trainer).compute_share() == pytest.approx(0.5 / 4 + 0.5)
    assert values["compute_share_at_end"] == pytest.approx([0.5 / 4 + 0.5] * 8)
    assert values["seconds_left"][-1] == 0
    assert all(0.05 < peak < 100 for peak in values["peak_memory_gb"])
    shown = capsys.readouterr().err
    assert re.search(r"^  patch k=4 +4 +512 ", shown, re.M)
    assert f"read raw tokens {values['patch_speedup'][0]:.2f} times as fast" in shown


@pytest.mark.parametrize(
    ("max_duration", "ratio", "share"),
    [("1024tok", 0.25, 0.25 / 4 + 0.75), ("2ep", "24sp", 0.75 / 4 + 0.25), ("32sp", "1ep", 0.5 / 4 + 0.5)],
)
def test_share_at_the_end_in_every_unit(max_duration: str, ratio: Any, share: float) -> None:
    trainer = measured(PatchLevel(k=4, ratio=ratio), rows=ROWS[:16], max_duration=max_duration)
    assert logged(trainer)["compute_share_at_end"] == pytest.approx([share] * 8)


def test_several_patch_stages() -> None:
    algorithm = PatchLevel(stages=[{"k": 4, "until": 0.25}, {"k": 2, "until": 0.625}], seq_len=8)
    trainer = measured(algorithm)
    share = 0.25 / 4 + 0.375 / 2 + 0.375
    assert logged(trainer)["compute_share_at_end"] == pytest.approx([share] * 8)
    assert metrics(trainer, "patch_level/compute_share")[-1] == pytest.approx(share)
    assert [(stage.k, stage.total.steps) for stage in record_of(trainer).stages] == [(4, 2), (2, 3), (1, 3)]


def test_padding_costs_positions_but_is_no_raw_token() -> None:
    rows = make_padded_rows(32, 32)
    trainer = measured(PatchLevel(k=4, ratio=0.5), rows=rows, model=make_model())
    patch, token = record_of(trainer).stages
    assert (patch.total.positions, token.total.positions) == (4 * 4 * 8, 4 * 4 * 32)
    assert patch.total.tokens + token.total.tokens == trainer.state.timestamp.token.value < 8 * 128
    # Padding is computed in both stages alike.
    assert record_of(trainer).compute_share() == pytest.approx(0.5 / 4 + 0.5)
    assert logged(trainer)["compute_share_at_end"] == pytest.approx([0.5 / 4 + 0.5] * 8, rel=0.05)


def drive(
    seconds: list[float], algorithms: Any = None, evaluation: dict[int, float] | None = None, **settings: Any
) -> tuple[dict[str, list[float]], RunRecord]:
    """Steps of 128 raw tokens that take so many seconds, and evaluations after some of them."""
    algorithms = [PatchLevel(k=4, ratio=0.5)] if algorithms is None else algorithms
    trainer = make_trainer(
        ROWS, algorithms, model=make_model(max_seq_len=8), callbacks=[PatchMonitor(**settings)]
    )
    state = trainer.state

    def happens(event: Event) -> None:
        for callback in state.callbacks:
            callback.run_event(event, state, trainer.logger)

    def evaluate(batch: int) -> None:
        if batch in (evaluation or {}):
            state.eval_timestamp = Timestamp(total_wct=timedelta(seconds=(evaluation or {})[batch]))
            happens(Event.EVAL_END)

    evaluate(0)
    happens(Event.FIT_START)
    for batch, step in enumerate(seconds, start=1):
        in_patches = bool(algorithms) and batch <= 4
        state.batch = {"input_ids": torch.zeros(4 if in_patches else 16, 8, dtype=torch.long)}
        happens(Event.BATCH_START)
        state.previous_timestamp = state.timestamp
        state.timestamp = state.timestamp.to_next_batch(4, 128, timedelta(seconds=step))
        happens(Event.BATCH_END)
        evaluate(batch)
    happens(Event.FIT_END)
    return logged(trainer), record_of(trainer)


def test_time_left_knows_the_stages() -> None:
    values, _ = drive([10, 2, 3, 2, 20, 6, 6, 6])
    # By the position: 32 of them in 10 s, and 3 x 32 + 4 x 128 still to come. A first step is forgotten
    # at the next; the last of the patch stage is followed by 4 x 128 positions of 7/3 s in 32.
    assert values["seconds_left"] == pytest.approx(
        [3 * 10 + 4 * 40, 2 * 2 + 4 * 8, 2.5 + 4 * 10, 4 * 4 * 7 / 3, 3 * 20, 2 * 6, 6, 0]
    )
    assert values["patch_speedup"] == pytest.approx([6 / (7 / 3)])


def test_time_left_allows_for_evaluations() -> None:
    plain, _ = drive([2, 2, 2, 2, 8, 8, 8, 8])
    # One before the first step does not come again.
    values, record = drive([2, 2, 2, 2, 8, 8, 8, 8], evaluation={0: 100.0, 2: 3.0, 4: 3.0})
    added = [a - b for a, b in zip(values["seconds_left"], plain["seconds_left"], strict=True)]
    assert added == pytest.approx([0, 0, 3 * 5 / 3, 3 * 4 / 4, 6 * 3 / 5, 6 * 2 / 6, 6 * 1 / 7, 0])
    assert record.eval_seconds == 6
    assert values["raw_tokens_per_sec"] == plain["raw_tokens_per_sec"]


def test_speeds_are_of_the_window_of_one_stage() -> None:
    values, _ = drive([10, 2, 4, 2, 20, 6, 8, 6], window=2)
    tokens = [128 / 10, 128 / 2, 256 / 6, 256 / 6, 128 / 20, 128 / 6, 256 / 14, 256 / 14]
    assert values["raw_tokens_per_sec"] == pytest.approx(tokens)
    patch, token = [t / 4 for t in tokens[:4]], tokens[4:]
    assert values["positions_per_sec"] == pytest.approx(patch + token)
    a_position = values["flops"][0] / 32
    assert values["flops_per_sec"] == pytest.approx([a_position * p for p in patch + token])


def test_mfu_where_the_device_is_known() -> None:
    values, _ = drive([2, 2, 2, 2, 8, 8, 8, 8], flops_available=1e6)
    assert values["mfu"] == pytest.approx([flops / 1e6 for flops in values["flops_per_sec"]])


@pytest.mark.parametrize("algorithms", [[], [PatchLevel(k=1)]], ids=["without", "k=1"])
def test_ordinary_runs_have_one_stage(algorithms: Any) -> None:
    values, record = drive([10, 2, 2, 2], algorithms)
    assert values["seconds_left"] == pytest.approx([70, 12, 10, 8])
    assert values["compute_share_at_end"] == [1] * 4
    assert [(stage.k, stage.total.steps) for stage in record.stages] == [(1, 4)]
    assert "patch_speedup" not in values


def test_resumed_runs_go_on_counting(tmp_path: Path) -> None:
    whole = measured(PatchLevel(k=4, ratio=0.5), **saving(tmp_path))
    for batch in (2, 4, 6):
        _check_resumed(whole, batch, str(tmp_path / f"ba{batch}.pt"))


def _check_resumed(whole: Trainer, batch: int, checkpoint: str) -> None:
    def exact(cost: Cost) -> tuple[int, int, float, float]:
        return cost.steps, cost.tokens, cost.positions, cost.flops

    trainer = measured(PatchLevel(k=4, ratio=0.5), load_path=checkpoint)
    resumed = record_of(trainer)
    assert [exact(s.total) for s in resumed.stages] == [exact(s.total) for s in record_of(whole).stages]
    # The first step after a start is left out of the speeds.
    timed = [stage.timed.steps for stage in resumed.stages]
    assert timed == ([3, 3] if batch == 4 else [2, 3] if batch == 2 else [3, 2])
    assert [stage.losses.means for stage in resumed.stages] == [
        s.losses.means for s in record_of(whole).stages
    ]
    assert logged(trainer)["flops"] == logged(whole)["flops"][batch:]


def test_second_fit_adds_and_second_trainer_starts_anew() -> None:
    monitor = PatchMonitor()
    for _ in range(2):
        trainer = make_trainer(ROWS, [PatchLevel(k=4, ratio="2ba")], callbacks=[monitor], max_duration="4ba")
        trainer.fit()
        trainer.fit(duration="2ba")
        trainer.close()
        stages = record_of(trainer).stages
        assert [stage.total.steps for stage in stages] == [2, 4]
        # The second fit's first step says as little of the others as the first one's.
        assert [stage.timed.steps for stage in stages] == [1, 2]


def test_the_clock_set_back_starts_anew() -> None:
    trainer = make_trainer(ROWS, callbacks=[PatchMonitor()], max_duration="4ba")
    trainer.fit()
    trainer.fit(duration="2ba", reset_time=True)
    assert [stage.total.steps for stage in record_of(trainer).stages] == [2]


def test_evaluation_is_left_out_of_the_seconds() -> None:
    def dawdle(state: State) -> None:
        state.eval_timestamp = state.eval_timestamp.copy(total_wct=timedelta(seconds=50))

    loader: Any = DataLoader(ROWS[:4], batch_size=4)  # pyright: ignore
    watch = Watch(Event.EVAL_BATCH_END, dawdle)
    trainer = measured(
        PatchLevel(k=4, ratio=0.5),
        eval_dataloader=Evaluator(label="eval", dataloader=loader, metric_names=["LanguageCrossEntropy"]),
        eval_interval="2ba",
        callbacks=[watch],
        model=make_model(),
    )
    assert record_of(trainer).eval_seconds >= 50 * 4
    assert record_of(trainer).total.seconds < 50


def test_models_of_something_else() -> None:
    pairs = [(torch.zeros(3), torch.tensor(0))] * 8
    trainer = Trainer(
        model=ComposerClassifier(nn.Linear(3, 2), num_classes=2),
        train_dataloader=DataLoader(pairs, batch_size=2),  # pyright: ignore
        max_duration="1ep",
        callbacks=[PatchMonitor()],
        loggers=[InMemoryLogger()],
        progress_bar=False,
        device="cpu",
    )
    trainer.fit()
    assert record_of(trainer).stages[0].total.positions == 8, "samples"
    assert set(logged(trainer)) == EVERY_STEP - {"flops_per_sec", "flops"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"window": 0}, "window=0"),
        ({"window": 2.5}, "window=2.5"),
        ({"window": True}, "window=True"),
        ({"flops_available": 0}, "flops_available=0"),
        ({"flops_available": "much"}, "flops_available='much'"),
        ({"flops_available": float("nan")}, "flops_available=nan"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PatchMonitor(**arguments)
