"""The report's arithmetic and text."""

from __future__ import annotations

import math
from typing import Any

import pytest

from patch_algorithm.monitoring.learning_check import loss_drop, shortcomings
from patch_algorithm.monitoring.run_summary import summary
from patch_algorithm.monitoring.stage_costs import EvalRecord, RunRecord, StageRecord
from patch_algorithm.monitoring.stage_report import StageReport


def stage(k: int, losses: list[float], seconds: float = 0.5) -> StageRecord:
    n = len(losses)
    return StageRecord(k=k, losses=losses, seconds=[seconds] * n, tokens=[4096] * n)


def falling(first: float, last: float, steps: int) -> list[float]:
    return [first + (last - first) * i / (steps - 1) for i in range(steps)]


def record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "stages": [stage(4, falling(8, 6, 400)), stage(1, falling(5.5, 4.5, 200), 2.0)],
        "evals": [EvalRecord(200, 6.5), EvalRecord(400, 6.0), EvalRecord(600, 4.4)],
    }
    return RunRecord(**(values | changes))


def test_tenths() -> None:
    assert loss_drop([5.0] * 10 + [9.0] * 80 + [3.0] * 10) == (5.0, 3.0)
    assert loss_drop([5.0, 4.0, 9.0, 9.0, 9.0, 9.0, 9.0, 3.0, 2.0]) == (5.0, 2.0)
    assert loss_drop([7.0]) == (7.0, 7.0)


def test_share_and_positions() -> None:
    run = record()
    assert [s.positions for s in run.stages] == [400 * 1024, 200 * 4096]
    assert run.compute_share == pytest.approx(0.5)
    assert run.switch == 400
    assert run.steps == 600
    assert record(stages=[stage(1, [5.0, 4.0])]).compute_share == 1.0
    assert RunRecord().compute_share == 1.0


def test_speed_is_a_median() -> None:
    slow_once = StageRecord(k=1, losses=[1.0] * 3, seconds=[1.0, 100.0, 1.0], tokens=[10, 10, 10])
    assert slow_once.tokens_per_second == 10
    assert slow_once.step_seconds == 1.0


def test_a_run_that_learns_is_not_faulted() -> None:
    assert shortcomings(record(), 0.3) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"stages": [stage(4, falling(8, 7.8, 400)), stage(1, falling(6, 4, 200))]},
            ["patch stage went from 7."],
        ),
        (
            {"stages": [stage(4, falling(8, 6, 400)), stage(1, falling(6, 5.8, 200))]},
            ["token stage went from 5."],
        ),
        (
            {"stages": [stage(4, [8.0] * 399 + [math.nan]), stage(1, falling(6, 5, 200))]},
            ["patch stage went from 8.000 (mean of its first tenth) to nan"],
        ),
        ({"evals": [EvalRecord(400, 4.0), EvalRecord(600, 4.0)]}, ["not below 4.000 at the switch"]),
        ({"evals": [EvalRecord(400, 4.0), EvalRecord(600, math.nan)]}, ["not below 4.000 at the switch"]),
        ({"evals": [EvalRecord(600, 4.0)]}, ["no evaluation at the switch (batch 400)"]),
        ({"evals": [EvalRecord(400, 4.0)]}, ["no evaluation at the end (batch 600)"]),
    ],
)
def test_a_run_that_does_not_learn_is_faulted(changes: dict[str, Any], words: list[str]) -> None:
    found = shortcomings(record(**changes), 0.3)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_a_run_of_one_stage_needs_no_evaluation() -> None:
    assert shortcomings(record(stages=[stage(1, falling(6, 4, 20))], evals=[]), 0.3) == []


def test_exactly_the_required_drop_is_enough() -> None:
    run = RunRecord(stages=[stage(1, [2.5, 2.0])])
    assert shortcomings(run, 0.5) == []
    assert len(shortcomings(run, 0.51)) == 1


def test_summary() -> None:
    text = summary(record(), {"checkpoint": "runs/x/latest.pt"}, "  No claim is made.\n")
    lines = [line.split() for line in text.splitlines()]
    assert ["patch", "400", "1,638,400", "409,600", "8,192", "2.00", "7.902", "->", "6.098"] in lines
    assert ["token", "200", "819,200", "819,200", "2,048", "0.50", "5.452", "->", "4.548"] in lines
    assert "compute: 0.50 of token-only" in text
    assert "4.0 times as fast" in text
    assert "eval loss (token level): 6.000 at the switch (batch 400), 4.400 at the end (batch 600)" in text
    assert "checkpoint: runs/x/latest.pt" in text
    assert text.endswith("No claim is made.")


def test_summary_of_one_stage_without_evaluation() -> None:
    text = summary(RunRecord(stages=[stage(1, [5.0, 4.0])]), {})
    assert "eval loss" not in text
    assert "times as fast" not in text
    assert "compute: 1.00" in text


def test_state_survives_as_primitives() -> None:
    report = StageReport()
    report.record = record()
    other = StageReport()
    other.load_state_dict(report.state_dict())
    assert other.record == report.record
    assert _only_primitives(report.state_dict())


def _only_primitives(value: object) -> bool:
    if isinstance(value, dict):
        return all(_only_primitives(part) for part in value.values())
    if isinstance(value, list):
        return all(_only_primitives(part) for part in value)
    return type(value) in (int, float, str, bool)


@pytest.mark.parametrize("interval", ["0ba", "1ep", "ten", "10tok", None])
def test_bad_interval(interval: Any) -> None:
    with pytest.raises(ValueError, match="stage_report: interval="):
        StageReport(interval=interval)


@pytest.mark.parametrize("drop", ["0.3", float("nan"), float("inf"), True])
def test_bad_required_drop(drop: Any) -> None:
    with pytest.raises(ValueError, match="require_loss_drop="):
        StageReport(require_loss_drop=drop)
