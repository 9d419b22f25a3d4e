"""The report in llm-foundry's own training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.monitoring.stage_costs import RunRecord
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from patch_algorithm.monitoring.stage_report import StageReportError
from tests.support import config, metrics, mpt, train


def run(corpus: Path, report: dict[str, Any] | None = None, context: int = 8, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "callbacks": {"stage_report": {"interval": "2ba"} | (report or {})},
        "algorithms": {"patch_level": {"k": 4, "ratio": "4ba"}},
        "eval_interval": "2ba",
    }
    return train(config(corpus, mpt(max_seq_len=context), **(settings | changes)))


def record_of(trainer: Any) -> RunRecord:
    return StageRecorder.of(trainer.state).record


def losses_of(record: RunRecord) -> list[float]:
    return [loss for stage in record.stages for loss in stage.losses.means]


def test_it_records_what_the_trainer_logs(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    trainer = run(corpus, save_folder=str(tmp_path / "run"), save_interval="4ba")
    record = record_of(trainer)
    assert [(s.k, s.total.steps) for s in record.stages] == [(4, 4), (1, 2)]
    assert losses_of(record) == metrics(trainer, "loss/train/total")
    assert [s.total.tokens for s in record.stages] == [4 * 32 * 4, 4 * 32 * 2]
    assert all(s.timed.seconds > 0 for s in record.stages)
    evaluated = metrics(trainer, "metrics/eval/LanguageCrossEntropy")
    assert [record.eval_at(batch) for batch in (2, 4, 6)] == [None, *evaluated[1:]]
    assert record.compute_share() == pytest.approx(metrics(trainer, "patch_level/compute_share")[-1])
    out = capsys.readouterr().out
    assert re.findall(r"^\[(\w+) stage, batch (\d+)/6\] loss", out, re.M) == [
        ("patch", "1"),
        ("patch", "2"),
        ("patch", "4"),
        ("token", "6"),
    ]
    assert "at the switch (batch 4)" in out
    assert f"checkpoint: {tmp_path}/run/ep0-ba6-rank0.pt" in out


def test_without_the_algorithm(corpus: Path, capsys: Any) -> None:
    trainer = run(corpus, algorithms=None, eval_interval=0, context=32)
    assert [(s.k, s.total.steps) for s in record_of(trainer).stages] == [(1, 6)]
    assert "compute: 1.00" in capsys.readouterr().out


@pytest.mark.parametrize("eval_interval", ["6ba", "4ba"], ids=["on the end", "beside the end"])
def test_an_evaluation_after_the_end_of_fit_is_reported(
    corpus: Path, capsys: Any, eval_interval: str
) -> None:
    trainer = run(corpus, eval_interval=eval_interval)
    record = record_of(trainer)
    assert None not in (record.eval_at(4), record.eval_at(6))
    out = capsys.readouterr().out
    assert out.count("\nSummary\n") == 1
    assert "at the end (batch 6)" in out


def test_a_run_in_epochs(corpus: Path, capsys: Any) -> None:
    run(corpus, max_duration="1ep", algorithms={"patch_level": {"k": 4, "ratio": 0.5}}, eval_interval=0)
    lines = re.findall(r"^\[(\w+) stage, batch (\d+)/64\].*", capsys.readouterr().out, re.M)
    assert ("patch", "32") in lines
    assert ("token", "34") in lines


@pytest.mark.parametrize("eval_interval", ["2ba", "4ba"])
def test_a_run_that_learns_too_little_fails_after_its_summary(
    corpus: Path, capsys: Any, eval_interval: str
) -> None:
    with pytest.raises(StageReportError, match=r"patch k=4 stage went from .* of at least 50 was required"):
        run(corpus, {"require_loss_drop": 50}, eval_interval=eval_interval)
    assert "\nSummary\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The switch at 4ba is not before the end of the run at 2ba")
def test_a_resumed_run_reports_the_whole(corpus: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    run(corpus, max_duration="2ba", save_folder=folder, save_interval="2ba", run_name="r")
    trainer = run(corpus, save_folder=folder, save_interval="2ba", run_name="r", autoresume=True)
    record = record_of(trainer)
    assert [(s.k, s.total.steps) for s in record.stages] == [(4, 4), (1, 2)]
    assert losses_of(record)[2:] == metrics(trainer, "loss/train/total")
    assert None not in (record.eval_at(4), record.eval_at(6))
