"""The verdict says what the sources say, and says no."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from scipy import stats

from patch_algorithm.checks.stage_choice import BREAK_EVEN, loss_difference
from patch_algorithm.planning.costs import RunCost, run_costs, step_shape
from patch_algorithm.planning.costs_model import ModelFacts
from patch_algorithm.planning.plan_suggest import Budget, suggest
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.planning.verdict import RESIDUAL, Answer, judge
from patch_algorithm.planning.verdict_evidence import EQUAL_DATA, study_cells
from tests.planning.runs import run_of, settings

TOKENS_A_STEP = 512


def run_with(tokens: float, **changes: Any) -> RunCost:
    run = run_of(max_duration=f"{round(tokens / TOKENS_A_STEP)}ba", **changes)
    model = ModelFacts("made")
    return run_costs(step_shape(run, model), model)[1]


def test_the_fit_is_that_of_the_papers_seven_points() -> None:
    x = np.log([point.tokens_per_parameter for point in EQUAL_DATA])
    y = np.array([point.nats for point in EQUAL_DATA])
    # Least squares of the differences in three digits, as they were published with the fit.
    slope, intercept = np.polyfit(x, y.round(3), 1)
    assert (round(intercept, 4), round(slope, 5)) == (0.1368, -0.02354)
    residual = y.round(3) - (intercept + slope * x)
    assert np.sqrt((residual**2).sum() / (len(x) - 2)) == pytest.approx(RESIDUAL, abs=0.0001)
    assert np.exp(-intercept / slope) == pytest.approx(BREAK_EVEN, abs=1)
    exact = np.polyval(np.polyfit(x, y, 1), x)
    assert np.abs(exact - (intercept + slope * x)).max() < 0.0002
    for tokens in (122, 335, 973):
        assert loss_difference(tokens) == pytest.approx(intercept + slope * np.log(tokens), abs=1e-4)
    assert loss_difference(35) == pytest.approx(
        0.053, abs=0.001
    )  # where token superposition's point is +0.036


@pytest.mark.parametrize(
    ("parameters", "per_parameter", "data", "compute", "begins"),
    [
        (370e6, 973, Answer.yes, Answer.yes, "Yes. Expect a lower loss"),
        (370e6, 335, Answer.unknown, Answer.yes, "Yes. Expect about the loss"),
        (1.3e9, 20, Answer.no, Answer.yes, "Yes if compute is what limits you"),
        (30e6, 20, Answer.no, Answer.unknown, "Not known"),
        (1e6, 2, Answer.no, Answer.no, "No. Expect a higher loss"),
        (1e6, 100, Answer.no, Answer.no, "No. Expect a higher loss"),
        (1e6, 900, Answer.yes, Answer.unknown, "Not known"),
    ],
)
def test_the_answers(
    parameters: float, per_parameter: float, data: Answer, compute: Answer, begins: str
) -> None:
    verdict = judge(run_with(parameters * per_parameter), int(parameters))
    assert (verdict.equal_data, verdict.equal_compute) == (data, compute)
    assert verdict.headline.startswith(begins)
    assert verdict.loss_difference == pytest.approx(loss_difference(per_parameter), abs=1e-3)


def test_outside_its_range_the_fit_is_an_order_of_magnitude() -> None:
    inside = judge(run_with(370e6 * 200), int(370e6)).lines[0]
    below = judge(run_with(370e6 * 20), int(370e6)).lines[0]
    above = judge(run_with(370e6 * 2000), int(370e6)).lines[0]
    assert "+0.012 nats" in inside
    assert "order of magnitude" not in inside
    assert "of the order of +0.07 nats" in below
    assert "order of magnitude" in below
    assert "+0.036" in below
    assert "order of magnitude" in above


def test_runs_that_cannot_gain() -> None:
    high = run_with(1e11, algorithms={"patch_level": {"k": 4, "ratio": 0.97, "seq_len": 16}})
    assert judge(high, int(1e9)).equal_compute is Answer.no
    never = run_with(1e9, algorithms={"patch_level": {"k": 4, "ratio": 1.0, "seq_len": 16}})
    assert "cannot generate" in judge(never, int(1e9)).headline
    big = run_with(1e11, algorithms={"patch_level": {"k": 16, "ratio": 0.5, "seq_len": 16}})
    assert judge(big, int(1e9)).equal_compute is Answer.unknown
    assert any("above 8" in caveat for caveat in judge(big, int(1e9)).caveats)


def test_of_experts_it_says_how_much_is_used() -> None:
    run = run_of(max_duration="1000ba")
    parameters = int(1e9)
    for used, said in ((1e9, False), (1e8, True)):
        model = ModelFacts("made", row_flops=lambda P, used=used: 6 * used * P)
        caveats = judge(run_costs(step_shape(run, model), model)[1], parameters).caveats
        assert any("uses about 100M of the 1.00B parameters" in caveat for caveat in caveats) is said


def test_without_patches_or_a_model_there_is_nothing_to_say() -> None:
    assert "token level throughout" in judge(run_with(1e6, algorithms={}), 1000).headline
    assert judge(run_with(1e6), None).headline == "Not known."


def test_the_points_are_of_models_of_its_size_and_patches() -> None:
    large = judge(run_with(1e10), int(1e9)).points
    assert {point.k for point in large if point.parameters == 270e6} == {4}
    assert all(point.parameters >= 1e8 for point in large)
    six = run_with(1e10, algorithms={"patch_level": {"k": 2, "ratio": 0.5, "seq_len": 16}})
    assert all(point.parameters < 1e8 for point in judge(six, int(1e6)).points)


def test_the_studys_cells_are_those_of_its_results() -> None:
    from benchmarks.study.verdict import TABLE, table

    assert json.loads(TABLE.read_text()) == json.loads(json.dumps(table()))
    cells = study_cells()
    assert cells[0].low < cells[0].bits_per_byte < cells[0].high
    assert all(cell.seeds > 1 for cell in cells)


def test_the_studys_intervals_hold_those_of_student() -> None:
    # With three seeds the bootstrap's is far narrower.
    from benchmarks.study.analysis import headline
    from benchmarks.study.report import load
    from benchmarks.study.verdict import RESULTS

    differences = {one.settings.tokens_per_parameter: one.by_seed() for one in headline(load(RESULTS)[1])}
    lines = [cell for cell in study_cells() if cell.hold == "positions"]
    assert len(lines) >= 5
    for cell in lines:
        seeds = differences[cell.tokens_per_parameter]
        assert len(seeds) == cell.seeds
        half = stats.t.ppf(0.975, len(seeds) - 1) * np.std(seeds, ddof=1) / len(seeds) ** 0.5
        assert cell.bits_per_byte == pytest.approx(np.mean(seeds), abs=1e-6)
        assert cell.low <= np.mean(seeds) - half + 1e-6
        assert cell.high >= np.mean(seeds) + half - 1e-6


def model_of(parameters: float) -> ModelFacts:
    return ModelFacts("made", parameters=int(parameters), context=16, row_flops=lambda P: 6 * parameters * P)


def proposal(parameters: float, budget: Budget, **changes: Any) -> Any:
    run, model = run_of(**changes), model_of(parameters)
    return suggest(step_shape(run, model), model, budget)


@pytest.mark.parametrize(
    ("parameters", "budget", "k", "ratio"),
    [
        (1e9, Budget(flops=1e20), 4, "2/3"),
        (3e7, Budget(flops=1e18), 4, "2/3"),
        (1e6, Budget(flops=1e15), 1, "0"),
        (1e9, Budget(tokens=500e9), 4, "2/3"),
        (1e9, Budget(tokens=200e9), 4, "1/4"),
        (1e9, Budget(tokens=20e9), 1, "0"),
    ],
)
def test_what_is_proposed(parameters: float, budget: Budget, k: int, ratio: str) -> None:
    found = proposal(parameters, budget)
    assert (found.k, found.ratio) == (k, ratio)
    token, cost = found.costs
    if budget.flops is not None:
        assert cost.flops == pytest.approx(budget.flops, rel=0.001)
        assert token.flops == pytest.approx(budget.flops, rel=0.001)
    else:
        assert cost.raw_tokens == pytest.approx(budget.tokens, rel=0.001)
    if k == 4:
        assert cost.patch_share_of_tokens == pytest.approx(2 / 3 if ratio == "2/3" else 0.25, abs=0.001)


def test_a_proposal_of_token_level_training_says_that_the_algorithm_has_to_go() -> None:
    assert "Remove algorithms.patch_level" in " ".join(proposal(1e6, Budget(flops=1e15)).reasons)
    assert "Remove" not in " ".join(proposal(1e6, Budget(flops=1e15), algorithms={}).reasons)


def test_a_proposal_is_yaml_of_a_run_that_it_costs() -> None:
    found = proposal(1e9, Budget(flops=1e20), algorithms={})
    changed = settings(**yaml.safe_load(found.yaml))
    run = RunFile.from_config(OmegaConf.create(changed), "run.yaml")
    again = run_costs(step_shape(run, model_of(1e9)), model_of(1e9))[1]
    assert (again.steps, again.flops) == (found.costs[1].steps, pytest.approx(found.costs[1].flops))
    assert again.stages[0].positions_per_row == 16


def test_budgets_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="--tokens 100 is less than two steps"):
        proposal(1e9, Budget(tokens=100, said="--tokens 100"))
