"""Sums, speeds and the table, by hand."""

from __future__ import annotations

import pytest

from patch_algorithm.common.tables import duration
from patch_algorithm.monitoring.stage_costs import Cost, StageMeter, compute_share, speedup, table


def make_stages() -> list[StageMeter]:
    """Three steps of each stage: 100 raw tokens in 1 second as patches of 4, in 2 as tokens; a slow first."""
    stages = [StageMeter(0, 4), StageMeter(1, 1)]
    for stage, seconds, positions in zip(stages, (1.0, 2.0), (25.0, 100.0), strict=True):
        for slower in (10, 0, 0):
            stage.add(Cost(1, seconds + slower, 100, positions, 1e12 * positions), first=slower > 0)
    return stages


def test_sums_and_speeds() -> None:
    patch, token = make_stages()
    assert patch.total == Cost(3, 13.0, 300, 75.0, 75e12)
    assert patch.speed == Cost(2, 2.0, 200, 50.0, 50e12)
    assert token.speed.per_second(token.speed.tokens) == 50
    assert speedup([patch, token]) == 2.0
    assert compute_share([patch, token]) == (300 / 4 + 300) / 600
    assert compute_share([patch], [(4, 100.0), (2, 100.0), (1, 100.0)]) == (300 / 4 + 25 + 50 + 100) / 600


def test_nothing_measured() -> None:
    assert Cost().per_second(5) == 0
    assert compute_share([]) == 1
    patch, token = make_stages()
    assert speedup([patch]) is None
    assert speedup([token]) is None
    single = StageMeter(0, 1)
    single.add(Cost(1, 2.0, 100), first=True)
    assert single.speed == single.total


def test_round_trip() -> None:
    for stage in make_stages():
        stage.peak_memory = 7
        assert StageMeter.from_state_dict(stage.state_dict()) == stage


def test_table() -> None:
    stages = make_stages()
    stages[0].peak_memory, stages[1].peak_memory = 1_500_000_000, 2_000_000_000
    assert table(stages, 1e14, eval_seconds=75.0).splitlines() == [
        "patch_monitor",
        "  stage      steps  raw tokens  raw tokens/s  positions/s  TFLOP/s    MFU  peak memory",
        "  patch k=4      3         300           100           25       25  25.0%      1.50 GB",
        "  token          3         300            50           50       50  50.0%      2.00 GB",
        "  speed: the patch stage took 2.00 times the raw tokens a second",
        "  compute: 0.625 of token-only training on the same raw tokens, 3.75e+14 FLOPs",
        "  time: 29.0 s of training, 1 min 15 s of evaluation",
    ]
    stages[1].steady.flops = stages[1].total.flops = 0
    assert table(stages[1:], 0, 0).splitlines()[2:4] == [
        "  token      3         300            50           50        -    -      2.00 GB",
        "  compute: 1.000 of token-only training on the same raw tokens",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (29.04, "29.0 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
