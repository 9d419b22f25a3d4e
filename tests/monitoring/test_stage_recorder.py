"""What is counted in runs of several stages and of one-sided patches, and where a checkpoint lacks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer

from patch_algorithm import PatchLevel
from patch_algorithm.monitoring.patch_monitor import PatchMonitor
from patch_algorithm.monitoring.stage_costs import RunRecord
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from patch_algorithm.monitoring.stage_report import StageReport
from tests.runs.short import make_model, make_rows, make_trainer, run, saving
from tests.support import metrics

ROWS = make_rows(32, 32)
HALF = {"k": 4, "ratio": 0.5}


def reported(rows: Any = ROWS, patch_level: dict[str, Any] | None = None, **changes: Any) -> Trainer:
    changes = {"model": make_model(max_seq_len=8), "callbacks": [PatchMonitor(), StageReport()]} | changes
    return run(rows, [PatchLevel(**(patch_level or HALF))], **changes)


def record_of(trainer: Trainer) -> RunRecord:
    return StageRecorder.of(trainer.state).record


def test_patches_of_two_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{"k": 8, "until": "4ba"}, {"k": 4, "until": "8ba"}]
    trainer = reported(make_rows(48, 64), {"stages": stages, "seq_len": 8}, max_duration="12ba")
    record = record_of(trainer)
    assert [(stage.name, stage.total.positions) for stage in record.stages] == [
        ("patch k=8", 4 * 4 * 8),
        ("patch k=4", 4 * 4 * 16),
        ("token", 4 * 4 * 64),
    ]
    assert sum(stage.total.positions for stage in record.stages if stage.in_patches) == 384
    assert record.switch == 8
    share = (1 / 8 + 1 / 4 + 1) / 3
    assert record.compute_share() == pytest.approx(share)
    assert metrics(trainer, "patch_monitor/compute_share_at_end") == pytest.approx([share] * 12)
    assert metrics(trainer, "patch_level/compute_share")[-1] == pytest.approx(share)
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "compute: 0.458 of token-only training" in text
        assert "patch k=8" in text


def test_positions_that_read_single_tokens_save_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = reported(patch_level={**HALF, "patch_inputs": False})
    record = record_of(trainer)
    assert [(stage.name, stage.total.positions) for stage in record.stages] == [
        ("patch k=4", 4 * 4 * 32),
        ("token", 4 * 4 * 32),
    ]
    assert record.compute_share() == 1.0
    assert metrics(trainer, "patch_monitor/compute_share_at_end") == [1.0] * 8
    assert metrics(trainer, "patch_level/compute_share") == [1.0] * 8
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert "compute: 1.000 of token-only training" in text


def test_both_callbacks_say_the_same_speed(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = reported()
    told = capsys.readouterr()
    faster = f"{metrics(trainer, 'patch_monitor/patch_speedup')[0]:.2f} times as fast"
    assert faster in told.out
    assert faster in told.err
    assert sum(isinstance(callback, StageRecorder) for callback in trainer.state.callbacks) == 1


def resumed_with(change: Callable[[dict[str, Any]], None], tmp_path: Path, batch: int = 6) -> Trainer:
    """A run that goes on from a checkpoint whose callbacks' state was changed."""
    reported(**saving(tmp_path))
    path = tmp_path / f"ba{batch}.pt"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint["state"]["callbacks"])
    torch.save(checkpoint, path)
    return reported(load_path=str(path))


def check_that_the_algorithm_was_asked(trainer: Trainer, told: str) -> None:
    record = record_of(trainer)
    assert record.compute_share() == pytest.approx(0.625)
    assert metrics(trainer, "patch_monitor/compute_share_at_end") == pytest.approx([0.625] * 2)
    assert [(stage.name, stage.total.steps) for stage in record.stages] == [("token", 2)]
    assert (record.before.steps, record.before.tokens) == (6, 6 * 128)
    assert record.before.positions == pytest.approx(4 * 32 + 2 * 128)
    moment = StageRecorder.of(trainer.state).moment(trainer.state)
    assert moment.positions == 4 * 32 + 4 * 128
    assert moment.flops is None
    assert "no record of 6 of its 6 steps" in told


@pytest.mark.filterwarnings("ignore:StageRecorder is not in the state_dict")
def test_without_a_record_the_algorithm_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = resumed_with(lambda saved: saved.pop("StageRecorder"), tmp_path)
    check_that_the_algorithm_was_asked(trainer, capsys.readouterr().err)


NO_NUMBER = '{"stages": [{"index": 0, "k": 4, "total": {"steps": "x"}}]}'


@pytest.mark.parametrize(
    "saved", [{}, {"record": "[]"}, {"record": b"\0"}, {"record": NO_NUMBER}, {"stages": []}], ids=str
)
def test_what_cannot_be_read_stops_no_resume(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = resumed_with(lambda callbacks: callbacks.update(StageRecorder=saved), tmp_path)
    told = capsys.readouterr().err
    check_that_the_algorithm_was_asked(trainer, told)
    assert "cannot be read and is ignored" in told


def saved_by_version_0_1_0(callbacks: dict[str, Any]) -> None:
    def cost(steps: int, positions: float) -> dict[str, float]:
        flops = 1000 * positions
        return {"steps": steps, "seconds": 1.0, "tokens": 128 * steps, "positions": positions, "flops": flops}

    patch = {"index": 0, "k": 4, "total": cost(4, 4 * 32), "steady": cost(3, 3 * 32), "peak_memory": 7}
    token = {"index": 1, "k": 1, "total": cost(2, 2 * 128), "steady": cost(1, 128), "peak_memory": 8}
    callbacks["PatchMonitor"] = {"stages": [patch, token], "eval_seconds": 2.5}
    del callbacks["StageRecorder"]


@pytest.mark.filterwarnings("ignore:StageRecorder is not in the state_dict")
def test_the_sums_of_version_0_1_0_are_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = resumed_with(saved_by_version_0_1_0, tmp_path)
    record = record_of(trainer)
    assert [(stage.name, stage.total.steps, stage.timed.steps) for stage in record.stages] == [
        ("patch k=4", 4, 3),
        ("token", 4, 2),
    ]
    assert record.before.steps == 0
    assert record.compute_share() == pytest.approx(0.625)
    assert record.total.flops > 1000 * (4 * 32 + 2 * 128)
    assert record.eval_seconds == 2.5
    assert "was written by another version of patch-algorithm" in capsys.readouterr().err


def test_callbacks_added_in_the_middle(tmp_path: Path) -> None:
    reported(callbacks=[], **saving(tmp_path))
    trainer = make_trainer(
        ROWS, [PatchLevel(**HALF)], model=make_model(max_seq_len=8), callbacks=[PatchMonitor()]
    )
    assert record_of(trainer) == RunRecord()
    trainer = reported(load_path=str(tmp_path / "ba2.pt"))
    assert record_of(trainer).compute_share() == pytest.approx(0.625)
    assert record_of(trainer).switch == 4
