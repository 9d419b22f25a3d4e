"""Sums, speeds, losses and shares, by hand."""

from __future__ import annotations

import json
import math
import statistics

import pytest

from patch_algorithm.common.tables import duration, table
from patch_algorithm.monitoring.stage_costs import (
    Cost,
    EvalRecord,
    LossSeries,
    RunRecord,
    StageRecord,
    Window,
)


def make_record() -> RunRecord:
    """Three steps of each stage: 100 raw tokens in 1 second as patches of 4, in 2 as tokens; a slow first."""
    record = RunRecord([StageRecord(0, 4, 4, True), StageRecord(1, 1, 1, False)])
    for stage, seconds, positions in zip(record.stages, (1.0, 2.0), (25.0, 100.0), strict=True):
        for slower in (10, 0, 0):
            stage.add(Cost(1, seconds + slower, 100, positions, 1e12 * positions), first=slower > 0)
            stage.losses.add(seconds)
    record.stages[0].last_step, record.stages[1].last_step = 3, 6
    return record


def series(losses: list[float]) -> LossSeries:
    found = LossSeries()
    for loss in losses:
        found.add(loss)
    return found


def test_sums_and_speeds() -> None:
    record = make_record()
    patch, token = record.stages
    assert patch.total == Cost(3, 13.0, 300, 75.0, 75e12)
    assert patch.speed == Cost(2, 2.0, 200, 50.0, 50e12)
    assert token.speed.per_second(token.speed.tokens) == 50
    assert record.total == Cost(6, 29.0, 600, 375.0, 375e12)
    assert record.speedup == 2.0
    assert record.switch == 3


def test_share_counts_positions() -> None:
    record = make_record()
    assert record.compute_share() == (75 + 300) / 600
    assert record.compute_share([(2, 100.0), (1, 100.0)]) == (75 + 300 + 50 + 100) / 800
    # A patch stage of single tokens saves nothing.
    one_sided = StageRecord(0, 4, 1, True, total=Cost(3, 13.0, 300, 300.0))
    assert RunRecord([one_sided]).compute_share() == 1.0
    # Of padded rows a third are no raw tokens: what is to come has as much padding.
    padded = StageRecord(0, 4, 4, True, total=Cost(3, 13.0, 200, 75.0))
    assert RunRecord([padded]).compute_share([(1, 200.0)]) == (75 + 300) / 600
    before = Cost(steps=4, tokens=600, positions=150.0)
    assert RunRecord([one_sided], before).compute_share() == (150 + 300) / 900


def test_flops_of_which_a_part_is_not_known() -> None:
    record = make_record()
    assert record.flops == 375e12
    assert RunRecord(record.stages, Cost(steps=4)).flops is None
    silent = StageRecord(2, 1, 1, False, total=Cost(3, 13.0, 300, 300.0))  # as earlier versions saved it
    assert RunRecord([*record.stages, silent]).flops is None
    record.stages[1].add(Cost(1, 1.0, 100, 100.0), first=True)  # resumed where nobody could tell
    assert record.flops is None
    assert RunRecord().flops == 0


def test_nothing_measured() -> None:
    assert Cost().per_second(5) == 0
    assert RunRecord().compute_share() == 1
    patch, token = make_record().stages
    for alone in ([patch], [token], []):
        assert RunRecord(alone).speedup is None
        assert RunRecord(alone).switch is None
    single = StageRecord(0, 1, 1, False)
    single.add(Cost(1, 2.0, 100), first=True)
    assert single.speed == single.total


def test_window_forgets_a_first_step() -> None:
    window = Window(2)
    seen = []
    for since_start, tokens in ((1, 5), (2, 10), (3, 20), (4, 40), (1, 80), (2, 160)):
        window.add(Cost(1, 1.0, tokens), since_start)
        seen.append(window.total.tokens)
    assert seen == [5, 10, 30, 60, 80, 160]


def test_tenths_of_short_stages_are_exact() -> None:
    assert series([5.0] * 10 + [9.0] * 80 + [3.0] * 10).tenths() == (5.0, 3.0)
    assert series([5.0, 4.0, 9.0, 9.0, 9.0, 9.0, 9.0, 3.0, 2.0]).tenths() == (5.0, 2.0)
    assert series([7.0]).tenths() == (7.0, 7.0)
    assert all(math.isnan(tenth) for tenth in LossSeries().tenths())


@pytest.mark.parametrize("steps", [511, 512, 513, 1000, 1023, 1024, 5003, 100_000])
def test_losses_are_thinned_evenly_in_constant_size(steps: int) -> None:
    losses = [10 * 0.9999**step + (step * 7919 % 13) / 100 for step in range(steps)]
    thinned = series(losses)
    assert thinned.steps == steps
    assert len(thinned.means) < 512
    assert thinned.last == losses[-1]
    tenth = steps // 10
    first, last = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    assert thinned.tenths() == pytest.approx((first, last), abs=0.02 * (first - last) + 1e-3)
    whole = thinned.steps_per_mean * sum(thinned.means) + thinned.rest_sum
    assert whole == pytest.approx(sum(losses))


def test_the_saved_text_does_not_grow() -> None:
    record = make_record()
    sizes = []
    for steps in (10_000, 1_000_000):
        record.stages[0].losses = LossSeries(1024, [1 / 3] * 511, steps, 1 / 3)
        sizes.append(len(record.to_text()))
    assert max(sizes) - min(sizes) < 10 < sizes[0] < 20_000


def test_round_trip_of_the_saved_text() -> None:
    record = make_record()
    record.stages[0].last_eval, record.stages[1].peak_memory = EvalRecord(3, 5.5), 7
    record.before, record.eval_seconds = Cost(2, tokens=8), 1.5
    assert RunRecord.from_text(record.to_text()) == (record, True)


def test_a_newer_text_is_taken_as_far_as_it_is_known() -> None:
    state = json.loads(make_record().to_text())
    state |= {"version": 2, "watts": 5}
    state["stages"][0]["total"]["watts"] = state["stages"][0]["watts"] = 5
    del state["stages"][1]["losses"], state["eval_seconds"]
    expected = make_record()
    expected.stages[1].losses = LossSeries()
    assert RunRecord.from_text(json.dumps(state)) == (expected, False)


@pytest.mark.parametrize("text", ["", "None", "[]", "{}", '{"stages": 5}', '{"version": 1, "stages": [{}]}'])
def test_texts_without_a_record(text: str) -> None:
    with pytest.raises(ValueError, match=r"no stages that can be read|Expecting value"):
        RunRecord.from_text(text)


def test_table() -> None:
    assert table([("stage", "steps"), ("patch k=4", "3"), ("token", "1,234")]) == [
        "stage      steps",
        "patch k=4      3",
        "token      1,234",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.04, "9.0 s"),
        (29.04, "29 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (7260, "2 h 01 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
