"""What monitor, history and report tell of a run whose steps compute equally much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composer import Trainer
from composer.core import Evaluator
from composer.loggers import InMemoryLogger
from composer.optim import CosineAnnealingScheduler
from torch.utils.data import DataLoader

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.history import HistoryLogger
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from patch_algorithm.reporting.report import make_report
from tests.runs.short import collate, make_model, make_rows, run, saving
from tests.support import metrics

POSITIONS = 4 * 16
"""Of every step: patch steps read k times as many tokens."""
DOWN = [{"k": 8, "until": "2ba"}, {"k": 4, "until": "4ba"}, {"k": 2, "until": "6ba"}]
RUNS = {
    # 4 steps of 4 batches and 4 of one: 8 steps on 20 batches.
    "one stage": ({"k": 4, "ratio": 0.5}, "8ba", 8 / 20),
    "one stage, tokens": ({"k": 4, "ratio": f"{16 * POSITIONS}tok"}, f"{20 * POSITIONS}tok", 8 / 20),
    # 2 steps each of 8, 4, 2 and one batch: 8 steps on 30 batches.
    "stages": ({"stages": DOWN}, "8ba", 8 / 30),
}


def measured(arguments: dict[str, Any], length: str, **changes: Any) -> Trainer:
    algorithm = PatchLevel(**arguments, constant_compute=True)
    return run(make_rows(128, 16), [algorithm], max_duration=length, callbacks=[PatchMonitor()], **changes)


@pytest.mark.parametrize("name", RUNS)
def test_share_and_time_left_are_those_of_equal_steps(name: str) -> None:
    arguments, length, share = RUNS[name]
    trainer = measured(arguments, length)
    assert metrics(trainer, "patch_monitor/compute_share_at_end") == pytest.approx([share] * 8)
    left = zip(
        metrics(trainer, "patch_monitor/seconds_left"),
        metrics(trainer, "patch_monitor/positions_per_sec"),
        strict=True,
    )
    # However long steps took: what is left is the steps to come.
    assert [seconds * speed for seconds, speed in left] == pytest.approx(
        [POSITIONS * (7 - step) for step in range(8)], abs=1e-6
    )
    stages = StageRecorder.of(trainer.state).record.stages
    assert {stage.total.positions / stage.total.steps for stage in stages} == {POSITIONS}


def test_a_resumed_run_goes_on_with_the_same_estimates(tmp_path: Path) -> None:
    arguments, length, share = RUNS["stages"]
    measured(arguments, length, **saving(tmp_path))
    resumed = measured(arguments, length, load_path=str(tmp_path / "ba3.pt"))
    assert metrics(resumed, "patch_monitor/compute_share_at_end") == pytest.approx([share] * 5)


def recorded(folder: Path, name: str, algorithms: list[Any]) -> str:
    loader: Any = DataLoader(make_rows(4, 16, seed=1), batch_size=4, collate_fn=collate)  # pyright: ignore
    path = folder / f"{name}.jsonl"
    run(
        make_rows(128, 64),
        algorithms,
        model=make_model(max_seq_len=16),
        max_duration="8ba",
        eval_dataloader=Evaluator(label="eval", dataloader=loader, metric_names=["LanguageCrossEntropy"]),
        eval_interval="4ba",
        schedulers=[CosineAnnealingScheduler()],  # a run whose rate has not decayed is not compared
        loggers=[InMemoryLogger(), HistoryLogger(str(path))],
    )
    return str(path)


def test_the_report_sets_it_beside_the_twin_of_as_many_steps(tmp_path: Path) -> None:
    paths = [
        recorded(tmp_path, "patch", [PatchLevel(k=4, ratio=0.5, constant_compute=True)]),
        recorded(tmp_path, "token", [PatchLevel(k=1, seq_len=16)]),
    ]
    report = make_report(paths)
    patch, token = report.groups
    batch = 4 * 64  # rows of four times the context
    assert (patch.total("raw_tokens"), token.total("raw_tokens")) == (20 * batch, 8 * batch)
    assert patch.total("positions") == token.total("positions") == 8 * batch
    assert patch.total("flops") == token.total("flops")
    assert [(span.k, span.steps, span.end.raw_tokens) for span in patch.spans] == [
        (4, 4, 16 * batch),
        (1, 4, 20 * batch),
    ]
    assert {run.state for run in report.runs} == {"completed"}
    _, at_equal_compute = report.verdicts
    ends = [run.final_loss for run in report.runs]
    assert ends[0] is not None
    assert ends[1] is not None
    assert at_equal_compute.difference == pytest.approx(ends[0] - ends[1])
