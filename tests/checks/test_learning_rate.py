"""The learning rate of a run before it runs, by the run's own scheduler."""

from __future__ import annotations

from typing import Any

import pytest
from composer.core import Time
from composer.optim import (
    ComposerScheduler,
    ConstantScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingScheduler,
    CosineAnnealingWithWarmupScheduler,
)

from patch_algorithm.checks.learning_rate import check_rate, check_weight_decay
from patch_algorithm.checks.rate_curve import RateCurve, RunClock, rate_curve
from patch_algorithm.optim import PerStageScheduler, WarmupStableDecay
from patch_algorithm.stages.plan import Stage, StagePlan

COSINE = CosineAnnealingWithWarmupScheduler(t_warmup="10ba")


def clock(switch: str = "600ba", end: str = "900ba", **pace: Any) -> RunClock:
    plan = StagePlan((Stage(4, Time.from_timestring(switch)),), None, None)
    return RunClock(plan, Time.from_timestring(end), **pace)


def curve(scheduler: ComposerScheduler, run: RunClock | None = None) -> RateCurve:
    found = rate_curve(scheduler, run or clock(), "it")
    assert found is not None
    return found


def ids(scheduler: ComposerScheduler, run: RunClock | None = None, reset: bool = False) -> list[str]:
    return [one.id for one in check_rate(curve(scheduler, run), reset)]


def test_one_cosine_leaves_a_quarter_at_the_switch() -> None:
    (found,) = check_rate(curve(COSINE))
    assert found.id == "rate-low-at-switch"
    assert "25.5 % of the peak learning rate is left at the switch (step 600 of 900)" in found.found
    assert "start the token stage at the full rate" in found.why
    assert "warmup_stable_decay" in found.fix


@pytest.mark.parametrize(
    "healthy",
    [
        WarmupStableDecay("10ba", "0.2dur"),
        PerStageScheduler(COSINE),
        PerStageScheduler(schedulers=[ConstantWithWarmupScheduler("10ba"), COSINE]),
    ],
)
def test_healthy_schedules(healthy: ComposerScheduler) -> None:
    assert ids(healthy) == []
    assert ids(PerStageScheduler(COSINE), reset=True) == []


def test_each_check_of_the_rate() -> None:
    assert ids(WarmupStableDecay("10ba", "0.34dur")) == [], "the decay begins 6 steps before the switch"
    assert ids(WarmupStableDecay("10ba", "0.4dur")) == ["rate-decays-in-patch-stage"]
    assert ids(WarmupStableDecay("0ba", "0.2dur")) == ["no-warmup"]
    assert ids(ConstantWithWarmupScheduler("10ba")) == ["rate-high-at-end"]
    assert ids(ConstantScheduler()) == ["no-warmup", "rate-high-at-end"]
    assert ids(CosineAnnealingScheduler(t_max="450ba")) == [
        "no-warmup",
        "rate-zero-early",
        "rate-low-at-switch",
    ]
    assert ids(WarmupStableDecay("10ba", "0.2dur"), reset=True) == ["no-warmup-after-reset"]


def test_a_warm_up_that_outlasts_the_run() -> None:
    (found,) = check_rate(curve(CosineAnnealingWithWarmupScheduler("100ba"), clock("7ba", "10ba")))
    assert found.id == "warmup-long"
    assert "reaches its peak at step 10 of 10" in found.found
    assert ids(WarmupStableDecay("0.3dur", "0.2dur")) == ["warmup-long"]


def test_per_stage_is_asked_in_the_stage_that_it_is_in() -> None:
    found = curve(PerStageScheduler(COSINE))
    assert found.start == 0
    assert found.before_switch == pytest.approx(0, abs=1e-4)
    assert found.at_switch == 0, "the warm-up of the token stage"
    assert found.token_peak == pytest.approx(1, abs=1e-3)
    assert found.last == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("run", "switch", "end"),
    [
        (clock("2400sp", "3600sp", samples_per_batch=4), 600, 900),
        (clock("600ba", "115_200tok", samples_per_batch=4, tokens_per_batch=128), 600, 900),
        (clock("2ep", "3ep", batches_per_epoch=300), 600, 900),
        (clock("1200ba", "900ba"), 900, 900),
    ],
)
def test_other_units(run: RunClock, switch: int, end: int) -> None:
    found = curve(WarmupStableDecay("0.1dur", "0.2dur"), run)
    assert (found.switch, found.end) == (switch, end)
    assert (found.start, found.peak, found.last) == (0, 1, 0)
    cosine = curve(CosineAnnealingWithWarmupScheduler("0.1dur"), run)
    assert cosine.token_peak == pytest.approx(0.302 if switch < end else 0, abs=0.002)


def test_what_cannot_be_counted_is_not_guessed() -> None:
    assert rate_curve(COSINE, clock("600ba", "3600sp"), "it") is None
    assert rate_curve(COSINE, clock("1ep", "900ba"), "it") is None


def test_a_scheduler_that_refuses_the_run_says_why() -> None:
    with pytest.raises(ValueError, match="t_warmup"):
        rate_curve(CosineAnnealingWithWarmupScheduler("10sp"), clock(), "it")


def test_any_function_of_the_state_is_a_scheduler() -> None:
    found = rate_curve(lambda state: float(state.timestamp.batch < 300), clock(), "it")
    assert found is not None
    assert [one.id for one in check_rate(found)] == ["no-warmup", "rate-zero-early", "rate-low-at-switch"]


def test_a_run_without_patches_is_judged_by_its_ends_alone() -> None:
    run = RunClock(StagePlan((), None, None), Time.from_timestring("900ba"))
    assert ids(COSINE, run) == []
    assert ids(ConstantWithWarmupScheduler("10ba"), run) == ["rate-high-at-end"]


def test_weight_decay() -> None:
    (found,) = check_weight_decay("decoupled_adamw", 0.1, 3e-4)
    assert found.id == "weight-decay-decoupled"
    assert "removes 10 % of each weight" in found.why
    assert "3e-05" in found.fix
    assert check_weight_decay("DecoupledAdamW", 0.1, 3e-4)
    assert not check_weight_decay("adamw", 0.1, 3e-4)
    assert not check_weight_decay("decoupled_adamw", 3e-5, 3e-4)
    assert not check_weight_decay("decoupled_adamw", None, None)
