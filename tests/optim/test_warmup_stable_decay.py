"""WSD against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from composer.core import State, Time

from patch_algorithm import PatchLevel
from patch_algorithm.optim.warmup_stable_decay import WarmupStableDecay
from tests.optim.rates import ROWS, multipliers, rates, start

# Two batches up, two flat, four down.
SHAPE = [0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0]


@pytest.fixture(scope="module")
def state() -> State:
    """The state of a trainer with four batches an epoch."""
    return start([], rows=ROWS[:16])[0].state


@pytest.mark.parametrize(
    ("t_warmup", "t_decay", "max_duration"),
    [
        ("2ba", "4ba", "8ba"),
        ("0.25dur", "0.5dur", "8ba"),
        (Time.from_batch(2), "0.5dur", "8ba"),
        ("8sp", "16sp", "32sp"),
        ("128tok", "256tok", "512tok"),
        ("2ba", "0.5dur", "512tok"),
        ("128tok", "4ba", "8ba"),
        ("2ba", "1ep", "2ep"),
        ("2ba", "4ba", "2ep"),
        ("2ba", "1ep", "8ba"),
        ("0.25dur", "0.5dur", "2ep"),
    ],
)
def test_shape_in_every_unit(state: State, t_warmup: Any, t_decay: Any, max_duration: str) -> None:
    assert multipliers(WarmupStableDecay(t_warmup, t_decay), state, max_duration) == pytest.approx(SHAPE)


@pytest.mark.parametrize(
    ("decay", "shares"),
    [
        ("linear", [0.25, 0.5, 0.75, 1]),
        ("cosine", [0.5 - math.sqrt(0.125), 0.5, 0.5 + math.sqrt(0.125), 1]),
        ("1-sqrt", [0.5, math.sqrt(0.5), math.sqrt(0.75), 1]),
    ],
)
def test_shapes_of_the_decay(state: State, decay: str, shares: list[float]) -> None:
    found = multipliers(WarmupStableDecay("2ba", "4ba", alpha_f=0.2, decay=decay), state, "8ba")
    assert found[5:] == pytest.approx([1 - 0.8 * share for share in shares])


def test_decay_of_the_last_tenth_is_the_default(state: State) -> None:
    # The last 51.2 of 512 tokens: after seven batches 64 are left, after eight none.
    assert multipliers(WarmupStableDecay("2ba"), state, "512tok") == [0, 0.5, 1, 1, 1, 1, 1, 1, 0]


def test_no_warmup_and_no_decay(state: State) -> None:
    for max_duration in ("8ba", "512tok"):
        assert multipliers(WarmupStableDecay("0ba", "0ba"), state, max_duration) == [1] * 9
    straight = multipliers(WarmupStableDecay("0dur", "1dur"), state, "8ba")
    assert straight == pytest.approx([1 - batch / 8 for batch in range(9)])


def test_warmup_and_decay_that_meet_leave_no_plateau(state: State) -> None:
    met = multipliers(WarmupStableDecay("4ba", "4ba"), state, "8ba")
    assert met == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])
    multipliers(WarmupStableDecay("0.7dur", "0.3dur"), state, "8ba")


def test_the_smaller_counts_where_units_cannot_be_compared(state: State) -> None:
    both = multipliers(WarmupStableDecay("256tok", "6ba"), state, "8ba")
    assert both == pytest.approx([0, 0.25, 0.5, 0.75, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])


def test_scale_schedule_ratio_stretches_the_decay_and_the_warmup_if_wanted(state: State) -> None:
    both = WarmupStableDecay("1ba", "2ba", scale_warmup=True)
    assert multipliers(both, state, "4ba", ssr=2.0) == pytest.approx(SHAPE)
    decay_only = WarmupStableDecay("1ba", "2ba")
    assert multipliers(decay_only, state, "4ba", ssr=2.0) == pytest.approx([0, 1, *SHAPE[2:]])


def test_in_the_trainer_stages_do_not_show() -> None:
    # Composer reads a rate before it advances its clock: all but the first are a step late.
    # Schedules are built before it stretches max_duration: 2 and 2 * 2 batches fit into 4 * 2, not into 4.
    stretched = {"max_duration": "4ba", "scale_schedule_ratio": 2.0}
    for t_decay, changes in (("4ba", {}), ("2ba", stretched)):
        used = rates(WarmupStableDecay("2ba", t_decay), PatchLevel(k=4, ratio=0.5), **changes)
        assert used == pytest.approx([0, *SHAPE[:7]])
    # 2 * 3 of 8 batches are longer than the 4 that it is built for.
    used = rates(WarmupStableDecay("0ba", "3ba"), **stretched)
    assert used == pytest.approx([1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"t_warmup": "2000"}, "t_warmup='2000'"),
        ({"t_warmup": "soon"}, "cannot be read"),
        ({"t_warmup": 2000}, "t_warmup=2000"),
        ({"t_warmup": "10sec"}, "t_warmup='10sec'"),
        ({"t_warmup": Time(-2, "ba")}, "not a time of at least 0"),
        ({"t_warmup": "2ba", "t_decay": "1.5dur"}, "longer than the run"),
        ({"t_warmup": "2ba", "alpha_f": 1.5}, "alpha_f=1.5"),
        ({"t_warmup": "2ba", "alpha_f": True}, "alpha_f=True"),
        ({"t_warmup": "2ba", "decay": "square"}, "linear, cosine, 1-sqrt"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WarmupStableDecay(**arguments)


@pytest.mark.parametrize(
    ("t_warmup", "t_decay", "max_duration", "match"),
    [
        ("5ba", "4ba", "8ba", "together are longer than the run of '8ba'"),
        ("0.5dur", "0.6dur", "8ba", "together are longer"),
        ("2ba", "100tok", "8ba", "Give it in 'ba'"),
        ("2ba", "4ba", "512tok", "Give it in 'tok'"),
    ],
)
def test_what_does_not_fit_is_refused(
    state: State, t_warmup: str, t_decay: str, max_duration: str, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        multipliers(WarmupStableDecay(t_warmup, t_decay), state, max_duration)


def test_refusals_come_before_training() -> None:
    with pytest.raises(ValueError, match="together are longer"):
        start(WarmupStableDecay("5ba", "4ba"))
    with pytest.raises(ValueError, match="does not know its length"):
        start(WarmupStableDecay("1ep", "4ba"), known_length=False)
    with pytest.raises(ValueError, match="max_duration"):
        start(WarmupStableDecay("2ba", "4ba"), max_duration=None)
