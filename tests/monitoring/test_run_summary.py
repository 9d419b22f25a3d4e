"""The report's arithmetic and text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.monitoring.learning_check import shortcomings
from patch_algorithm.monitoring.run_summary import cost_table, summary
from patch_algorithm.monitoring.stage_costs import Cost, EvalRecord, RunRecord, StageRecord
from patch_algorithm.monitoring.stage_report import StageReport
from tests.monitoring.test_stage_costs import make_record, series

ROOT = Path(__file__).parents[2]
SWITCH, END = EvalRecord(400, 6.0), EvalRecord(600, 4.4)


def stage(k: int, losses: list[float], seconds: float = 0.5) -> StageRecord:
    n = len(losses)
    cost = Cost(n, seconds * n, 4096 * n, 4096 * n / k)
    return StageRecord(0, k, k, k > 1, total=cost, timed=cost, losses=series(losses))


def falling(first: float, last: float, steps: int) -> list[float]:
    return [first + (last - first) * i / (steps - 1) for i in range(steps)]


def record(
    patch: list[float] | None = None,
    token: list[float] | None = None,
    at_switch: EvalRecord | None = SWITCH,
    at_end: EvalRecord | None = END,
) -> RunRecord:
    stages = [stage(4, patch or falling(8, 6, 400)), stage(1, token or falling(5.5, 4.5, 200), 2.0)]
    stages[0].last_step, stages[1].last_step = 400, 600
    stages[0].last_eval, stages[1].last_eval = at_switch, at_end
    return RunRecord(stages)


def test_a_run_that_learns_is_not_faulted() -> None:
    assert shortcomings(record(), 0.3) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": falling(8, 7.8, 400)}, ["patch k=4 stage went from 7."]),
        ({"token": falling(6, 5.8, 200)}, ["token stage went from 5."]),
        (
            {"patch": [8.0] * 399 + [math.nan]},
            ["patch k=4 stage went from 8.000 (mean of its first tenth) to nan"],
        ),
        ({"at_switch": EvalRecord(400, 4.4)}, ["not below 4.400 at the switch"]),
        ({"at_end": EvalRecord(600, math.nan)}, ["not below 6.000 at the switch"]),
        ({"at_switch": None}, ["no evaluation at the switch (batch 400)"]),
        ({"at_switch": EvalRecord(300, 4.4)}, ["no evaluation at the switch (batch 400)"]),
        ({"at_end": EvalRecord(500, 4.4)}, ["no evaluation at the end (batch 600)"]),
    ],
)
def test_a_run_that_does_not_learn_is_faulted(changes: dict[str, Any], words: list[str]) -> None:
    found = shortcomings(record(**changes), 0.3)
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence


def test_a_run_of_one_stage_needs_no_evaluation() -> None:
    assert shortcomings(RunRecord([stage(1, falling(6, 4, 20))]), 0.3) == []


def test_exactly_the_required_drop_is_enough() -> None:
    run = RunRecord([stage(1, [2.5, 2.0])])
    assert shortcomings(run, 0.5) == []
    assert len(shortcomings(run, 0.51)) == 1


def test_summary() -> None:
    text = summary(record(), {"checkpoint": "runs/x/latest.pt"}, "  No claim is made.\n")
    assert text.splitlines() == [
        "",
        "Summary",
        "  stage      steps  raw tokens  positions  raw tokens/s  steps/s  loss, first to last tenth",
        "  patch k=4    400   1,638,400    409,600         8,192     2.00             7.902 -> 6.098",
        "  token        200     819,200    819,200         2,048     0.50             5.452 -> 4.548",
        "  speed: the patch stage read raw tokens 4.00 times as fast",
        "  compute: 0.500 of token-only training on the same raw tokens",
        "  eval loss (token level): 6.000 at the switch (batch 400), 4.400 at the end (batch 600)",
        "  checkpoint: runs/x/latest.pt",
        "  No claim is made.",
    ]


def test_summary_of_one_stage_without_evaluation() -> None:
    text = summary(RunRecord([stage(1, [5.0, 4.0])]), {})
    assert "eval loss" not in text
    assert "times as fast" not in text
    assert "compute: 1.000" in text


def test_cost_table() -> None:
    run = make_record()
    run.stages[0].peak_memory, run.stages[1].peak_memory = 1_500_000_000, 2_000_000_000
    run.eval_seconds = 75.0
    shown = [
        "patch_monitor",
        "  stage      steps  raw tokens  raw tokens/s  positions/s  TFLOP/s    MFU  peak memory",
        "  patch k=4      3         300           100           25       25  25.0%      1.50 GB",
        "  token          3         300            50           50       50  50.0%      2.00 GB",
        "  speed: the patch stage read raw tokens 2.00 times as fast",
        "  compute: 0.625 of token-only training on the same raw tokens, 3.75e+14 FLOPs",
        "  time: 29 s of training, 1 min 15 s of evaluation",
    ]
    assert cost_table(run, 1e14).splitlines() == shown
    assert f"```text\n{cost_table(run, 1e14)}\n```" in (ROOT / "docs" / "monitor.md").read_text("utf-8")
    run.stages[1].timed.flops = run.stages[1].total.flops = 0
    assert cost_table(RunRecord(run.stages[1:]), 0).splitlines()[2:4] == [
        "  token      3         300            50           50        -    -      2.00 GB",
        "  compute: 1.000 of token-only training on the same raw tokens",
    ]


@pytest.mark.parametrize("interval", ["0ba", "1ep", "ten", "10tok", None])
def test_bad_interval(interval: Any) -> None:
    with pytest.raises(ValueError, match="stage_report: interval="):
        StageReport(interval=interval)


@pytest.mark.parametrize("drop", ["0.3", float("nan"), float("inf"), True])
def test_bad_required_drop(drop: Any) -> None:
    with pytest.raises(ValueError, match="require_loss_drop="):
        StageReport(require_loss_drop=drop)
