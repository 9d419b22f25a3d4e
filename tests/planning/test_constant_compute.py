"""Doctor, plan and twin of a run with constant compute per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.planning.plan import make_plan
from patch_algorithm.planning.plan_picture import draw
from patch_algorithm.planning.run_clock import rates_of, run_clock
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.twin import write_twin
from tests.planning.runs import run_of, written

BATCH = 8 * 64  # raw tokens


def constant(length: str = "12ba", ratio: str = "8ba") -> dict[str, Any]:
    patch_level = {"k": 4, "ratio": ratio, "seq_len": 16, "constant_compute": True}
    return {"max_duration": length, "algorithms": {"patch_level": patch_level}}


@pytest.mark.parametrize(
    ("length", "ratio"),
    [
        ("12ba", "8ba"),
        ("288sp", "256sp"),
        (f"{36 * BATCH}tok", f"{32 * BATCH}tok"),
        ("12ba", f"{32 * BATCH}tok"),
    ],
)
def test_the_clock_counts_what_steps_take(length: str, ratio: str) -> None:
    clock = run_clock(run_of(**constant(length, ratio)))
    assert clock is not None
    assert (clock.switch, clock.end, clock.raw_tokens) == (8, 12, 36 * BATCH)
    assert [int(clock.at(step).token.value) // BATCH for step in (0, 1, 8, 9, 12)] == [0, 4, 32, 33, 36]


def test_plan_counts_equal_positions_a_step_and_the_data_of_both_stages() -> None:
    run = make_plan(run_of(**constant())).costs[1]
    assert [stage.positions_per_step for stage in run.stages] == [8 * 64, 8 * 64]
    assert [stage.raw_tokens for stage in run.stages] == [32 * BATCH, 4 * BATCH]
    token = make_plan(run_of(**constant())).costs[0]
    assert (token.steps, token.raw_tokens) == (36, run.raw_tokens)


def test_rates_know_the_switch() -> None:
    rates = rates_of(run_of(**constant(f"{36 * BATCH}tok", f"{32 * BATCH}tok"), scheduler=PER_STAGE))
    assert rates is not None
    assert (rates.switch, rates.end) == (8, 12)
    assert rates.before_switch < 0.2 < rates.token_peak


PER_STAGE = {
    "name": "per_stage",
    "scheduler": {"name": "cosine_with_warmup", "t_warmup": "0dur", "alpha_f": 0.0},
}


@pytest.mark.parametrize(("same", "steps"), [("compute", 12), ("data", 36)])
def test_the_twin_takes_its_compute_or_its_data(tmp_path: Path, same: str, steps: int) -> None:
    plan = make_plan(RunFile.read(written(tmp_path, **constant())))
    twin = write_twin(plan, str(tmp_path / "twin.yaml"), same)
    its = make_plan(RunFile.read(str(twin.path))).costs[1]
    assert (twin.steps, its.steps, its.raw_tokens) == (steps, steps, steps * BATCH)


def test_the_picture_of_equal_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="constant_compute"):
        draw(make_plan(run_of(**constant())), str(tmp_path / "plan.svg"))
