"""The clock: pure functions of a ratio, a run's length and the trainer's timestamp."""

from __future__ import annotations

import json
import math
import warnings
from fractions import Fraction
from typing import Any

import pytest
from composer.core import Time, Timestamp
from hypothesis import given
from hypothesis import strategies as st

from patch_algorithm import PatchLevel
from patch_algorithm.stages.boundaries import is_below, parse_boundary, resolve_boundary, run_length
from patch_algorithm.stages.plan import Stage, StagePlan, settle

LENGTHS = st.integers(1, 10**13)


@pytest.mark.parametrize(
    ("given_ratio", "read"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.67, 0.67),
        ("0.67dur", 0.67),
        ("0dur", 0.0),
        ("2/3", Fraction(2, 3)),
        ("2/3dur", Fraction(2, 3)),
        (" 4 / 6 dur", Fraction(2, 3)),
        ("0/3", Fraction(0)),
        ("3/3", Fraction(1)),
        ("90000ba", Time(90000, "ba")),
        ("1e3ba", Time(1000, "ba")),
        ("240_000_000_000tok", Time(240_000_000_000, "tok")),
        ("1ep", Time(1, "ep")),
        ("500sp", Time(500, "sp")),
    ],
)
def test_ratio_is_a_fraction_or_a_time(given_ratio: float | str, read: object) -> None:
    assert parse_boundary(given_ratio) == read
    assert type(parse_boundary(given_ratio)) is type(read)


REFUSED = (
    *(-0.1, 1.1, math.nan, math.inf, True, False, None, [1], "nandur", "1.1dur", "-0.1dur", "-5ba", "-1ep"),
    *("5iter", "5sec", "1h", "5", "0.67", "1.5ba", "infba", "1e400tok", "nantok", "two thirds", "", "ba"),
    *("4/3", "2/0", "0/0", "-1/3", "2/3ba", "2/", "/3", "1/2/3", "0.5/3", "1/3/dur"),
)


@pytest.mark.parametrize("ratio", REFUSED)
def test_refused_ratios_are_named_with_the_mend(ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)ratio=.*0\.67") as error:
        parse_boundary(ratio)
    assert repr(ratio) in str(error.value)
    assert "90000ba" in str(error.value)


@pytest.mark.parametrize(
    ("max_duration", "batches", "length"),
    [
        ("1ep", 100, Time(100, "ba")),
        ("3ep", 100, Time(300, "ba")),
        ("7ba", 100, Time(7, "ba")),
        ("7ba", None, Time(7, "ba")),
        ("1000tok", None, Time(1000, "tok")),
        ("50sp", None, Time(50, "sp")),
    ],
)
def test_epochs_are_counted_in_batches(max_duration: str, batches: int | None, length: Time) -> None:
    assert run_length(Time.from_timestring(max_duration), batches) == length
    assert run_length(Time.from_timestring(max_duration), batches).unit == length.unit


@pytest.mark.parametrize(("max_duration", "batches"), [("2ep", None), ("5iter", 10), ("60sec", 10)])
def test_lengths_that_cannot_be_counted_are_refused(max_duration: str, batches: int | None) -> None:
    with pytest.raises(ValueError, match=f"'{max_duration}'.*'ba', 'sp' or 'tok'"):
        run_length(Time.from_timestring(max_duration), batches)


@pytest.mark.parametrize("fraction", ["0.07", "0.29", "0.57", "0.67", "2/3"])
@pytest.mark.parametrize("length", [1, 3, 7, 100, 300, 12_345, 360 * 10**9, 10**12 + 1])
def test_fraction_is_rounded_up_as_if_it_were_exact(fraction: str, length: int) -> None:
    exact = Fraction(fraction)
    switch = resolve_boundary(float(exact), Time(length, "tok"))
    assert switch == Time(math.ceil(exact * length), "tok")


@pytest.mark.parametrize(
    ("ratio", "length", "switch"),
    [
        ("2/3", "180ba", 120),
        ("2/3dur", "180ba", 120),
        ("2/3", "181ba", 121),
        (0.67, "180ba", 121),
        ("0.67dur", "180ba", 121),
        ("1/3", "9ba", 3),
    ],
)
def test_fractions_that_are_written_as_such_are_exact(ratio: float | str, length: str, switch: int) -> None:
    assert resolve_boundary(parse_boundary(ratio), Time.from_timestring(length)).value == switch


def test_exact_fractions_go_beyond_what_a_double_can_count() -> None:
    assert resolve_boundary(parse_boundary("2/3"), Time(3 * 10**17 + 3, "tok")).value == 2 * 10**17 + 2


@given(length=LENGTHS, part=st.data())
def test_share_of_whole_steps_is_never_off_by_one(length: int, part: st.DataObject) -> None:
    steps = part.draw(st.integers(0, length))
    assert resolve_boundary(steps / length, Time(length, "ba")).value == steps


@given(length=LENGTHS, fraction=st.floats(0, 1))
def test_switch_is_the_first_whole_step_at_or_after_the_fraction(length: int, fraction: float) -> None:
    switch = resolve_boundary(fraction, Time(length, "ba")).value
    exact = Fraction(fraction) * length
    # A double cannot tell two neighbouring products apart; nothing more may be given away.
    slack = max(Fraction(1, 10**9), exact / 2**49)
    assert isinstance(switch, int)
    assert 0 <= switch <= length
    assert exact - slack <= switch < exact + 1


@given(length=LENGTHS, fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_larger_fraction_never_switches_earlier(length: int, fractions: tuple[float, float]) -> None:
    less, more = (resolve_boundary(f, Time(length, "ba")).value for f in sorted(fractions))
    assert less <= more


@pytest.mark.parametrize("unit", ["ep", "ba", "sp", "tok"])
def test_point_is_compared_with_the_counter_of_its_unit(unit: str) -> None:
    clock = Timestamp(epoch=2, batch=30, sample=400, token=5000)
    now = clock.get(unit).value
    assert is_below(clock, Time(now + 1, unit))
    assert not is_below(clock, Time(now, unit))
    assert not is_below(clock, Time(now - 1, unit))


@given(
    k=st.integers(1, 64),
    switch=st.integers(0, 10**13),
    unit=st.sampled_from(["ep", "ba", "sp", "tok"]),
    seq_len=st.none() | st.integers(1, 10**6),
    length=st.none() | LENGTHS,
)
def test_plan_survives_a_checkpoint_as_primitives(
    k: int, switch: int, unit: str, seq_len: int | None, length: int | None
) -> None:
    stages = (Stage(k, Time(switch, unit)), Stage(2, Time(5, "ep")))
    plan = StagePlan(stages, seq_len, None if length is None else Time(length, unit))
    assert StagePlan.from_state_dict(json.loads(json.dumps(plan.state_dict()))) == plan


def plan(
    k: int = 4, switch: str = "67ba", seq_len: int | None = 8, length: str | None = "100ba"
) -> StagePlan:
    whole = None if length is None else Time.from_timestring(length)
    return StagePlan((Stage(k, Time.from_timestring(switch)),), seq_len, whole)


def settled(saved: StagePlan | None, on_mismatch: str = "error", **config: Any) -> StagePlan:
    arguments = {"k": 4, "ratio": 0.67, "seq_len": None, "length": Time(100, "ba")} | config
    asked = [(arguments.pop("k"), arguments.pop("ratio"))]
    return settle(asked, saved=saved, on_mismatch=on_mismatch, **arguments)


def test_new_run_takes_the_configuration() -> None:
    assert settled(None, seq_len=8) == plan()
    assert settled(None, ratio=Time(5, "ep"), length=None) == plan(switch="5ep", seq_len=None, length=None)


@pytest.mark.parametrize(
    ("saved", "config"),
    [
        (plan(), {}),
        (plan(), {"seq_len": 8}),
        (plan(), {"ratio": Time(67, "ba"), "length": None}),
        (plan(switch="67ba", length=None), {}),
    ],
)
def test_checkpoint_that_agrees_is_taken_in_silence(saved: StagePlan, config: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settled(saved, **config) == saved


@pytest.mark.parametrize("length", ["200ba", "50ba", "5000tok"])
def test_fraction_of_a_changed_duration_is_no_conflict(length: str) -> None:
    with pytest.warns(UserWarning, match="started with k=4, switch at 67ba") as caught:
        assert settled(plan(), length=Time.from_timestring(length)) == plan()
    (warning,) = caught
    now = resolve_boundary(0.67, Time.from_timestring(length)).to_timestring()
    assert now in str(warning.message)


CONFLICTS = [
    {"k": 2},
    {"seq_len": 16},
    {"ratio": 0.5},
    {"ratio": Time(66, "ba"), "length": None},
    {"ratio": Time(67, "sp"), "length": None},
    {"k": 1},
]


@pytest.mark.parametrize("config", CONFLICTS)
def test_conflict_is_an_error_that_names_both_sides(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="on_mismatch") as error:
        settled(plan(), **config)
    message = str(error.value)
    assert "k=4, switch at 67ba, seq_len=8" in message
    for name, value in config.items():
        if name in ("k", "seq_len"):
            assert f"{name}={value}" in message


@pytest.mark.parametrize("config", CONFLICTS)
def test_conflict_is_settled_as_asked(config: dict[str, Any]) -> None:
    assert settled(plan(), "use_checkpoint", **config) == plan()
    assert settled(plan(), "use_config", **config) == settled(None, **config)


@pytest.mark.parametrize("ratio", ["0.67", "1", "1e3"])
def test_a_number_in_a_string_has_no_unit(ratio: str) -> None:
    with pytest.raises(ValueError, match="without a unit"):
        PatchLevel(k=2, ratio=ratio)
