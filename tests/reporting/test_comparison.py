"""The verdict: its numbers, and when it is not given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from patch_algorithm.reporting.places import same_place
from patch_algorithm.reporting.report import Report, make_report
from tests.reporting.synthetic import FLOPS, SAME_COMPUTE, SAME_DATA, TOKENS, ends_at, run

FLAT: dict[str, Any] = {"rate": lambda share: 1.0}
COMPUTE = 60 * TOKENS * FLOPS
"""Of the patch run: 80 steps at a quarter of a position a token, and 40 at one."""


def both(report: Report) -> tuple[Any, Any]:
    data, compute = report.verdicts
    assert (data.basis, compute.basis) == ("data", "compute")
    return data, compute


def test_one_seed_against_both_twins(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / "patch", loss=ends_at(5.10)),
        run(tmp_path / "data", SAME_DATA, loss=ends_at(5.00)),
        run(tmp_path / "compute", SAME_COMPUTE, loss=ends_at(5.25)),
    ]
    report = make_report(paths)
    data, compute = both(report)
    assert data.baseline == "data"
    assert data.difference == pytest.approx(0.10)
    assert "+0.100 nats, worse. One seed: no spread known." in data.text
    assert data.text.startswith("equal data (491,520 raw tokens): patch ends at 5.100, data at 5.000")
    assert compute.baseline == "compute"
    assert compute.difference == pytest.approx(-0.15)
    assert "−0.150 nats, better" in compute.text
    assert compute.apart is None
    # 5.10 lies 0.15 / 0.25 = 3/5 of the way from 60 to 120 token steps, on a logarithmic scale.
    (up,) = report.speed_ups
    assert up.low == up.high == pytest.approx(2**0.6)
    assert up.text == (
        "speed-up in compute: 1.52; token-only training reaches the same loss with 1.52 times the compute "
        "(interpolated between compute and data). One seed: no spread known."
    )
    assert report.groups[0].total("flops") == COMPUTE


def test_seeds_whose_ranges_overlap_and_do_not(tmp_path: Path) -> None:
    paths = []
    for seed, (patch, twin) in {1: (5.00, 5.02), 2: (5.03, 5.06), 3: (5.01, 5.05)}.items():
        paths.append(run(tmp_path / f"patch-{seed}", seed=seed, loss=ends_at(patch)))
        paths.append(run(tmp_path / f"twin-{seed}", SAME_DATA, seed=seed, loss=ends_at(twin)))
    data, compute = both(make_report(paths))
    assert data.difference == pytest.approx(5.01 - 5.05)
    assert data.apart is False
    assert "−0.040 nats, no difference beyond the seeds' spread" in data.text
    assert "3 seeds that spread over 0.030 nats, and 3 seeds that spread over 0.040" in data.text
    assert not compute.stated
    for seed in (1, 2, 3):
        run(tmp_path / f"low-{seed}", SAME_COMPUTE, seed=seed, loss=ends_at(5.2 + seed / 100))
    _, compute = both(make_report([*paths, *(str(tmp_path / f"low-{seed}") for seed in (1, 2, 3))]))
    assert compute.apart is True
    assert compute.difference == pytest.approx(5.01 - 5.22)
    assert "better" in compute.text
    assert "one time in 10" in compute.text


def test_one_seed_against_three(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / f"twin-{seed}", SAME_DATA, seed=seed, loss=ends_at(5 + seed / 50)) for seed in (1, 2)
    ]
    data, _ = both(make_report([run(tmp_path / "patch", loss=ends_at(5.0)), *paths]))
    assert "One seed of patch: no spread known; twin spreads 0.020 nats." in data.text


def test_bounds_where_nothing_can_be_interpolated(tmp_path: Path) -> None:
    twin = run(tmp_path / "twin", SAME_DATA, loss=ends_at(5.0))
    better = make_report([run(tmp_path / "better", loss=ends_at(4.9)), twin]).speed_ups[0]
    assert (better.low, better.high) == (pytest.approx(2.0), None)
    assert "at least 2.00" in better.text
    worse = make_report([run(tmp_path / "worse", loss=ends_at(5.1)), twin]).speed_ups[0]
    assert (worse.low, worse.high) == (None, pytest.approx(2.0))
    assert "below 2.00" in worse.text
    small = run(tmp_path / "small", SAME_COMPUTE, loss=ends_at(5.05))
    none = make_report([str(tmp_path / "worse"), small]).speed_ups[0]
    assert none.high == pytest.approx(1.0)


def test_a_loss_between_the_twins_below_one(tmp_path: Path) -> None:
    quarter = ((1, 30),)
    paths = [
        run(tmp_path / "patch", loss=ends_at(5.2)),
        run(tmp_path / "compute", SAME_COMPUTE, loss=ends_at(5.1)),
        run(tmp_path / "quarter", quarter, loss=lambda step, k: 5.3),
    ]
    (up,) = make_report(paths).speed_ups
    assert up.high == pytest.approx(math.sqrt(0.5))
    assert up.text.startswith("speed-up: none; token-only training reaches the same loss with 0.71 times")


def test_a_baseline_in_the_middle_of_its_schedule_is_not_read(tmp_path: Path) -> None:
    report = make_report([run(tmp_path / "patch"), run(tmp_path / "twin", SAME_DATA)])
    _, compute = both(report)
    assert not compute.stated
    assert compute.difference is None
    assert "no run of twin ends at as much compute" in compute.text
    assert "twin passes that point at 100% of its peak rate" in compute.text
    assert "Run a token-only twin of 245,760 raw tokens (about 60 steps)" in compute.text
    assert "`patch-level plan RUN.yaml --twin TWIN.yaml`" in compute.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"planned": "240ba", "ends": False}, "twin cannot be judged: it is broken off at 50%"),
        (FLAT, "twin cannot be judged: its learning rate is at 100% of the peak at its end"),
        ({"every": 0}, "twin cannot be judged: it has no evaluation at its end"),
    ],
)
def test_an_unfinished_baseline_gets_no_verdict(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    report = make_report([run(tmp_path / "patch"), run(tmp_path / "twin", SAME_DATA, **changes)])
    data, _ = both(report)
    assert not data.stated
    assert reason in data.text
    assert (
        "Run a token-only twin of 491,520 raw tokens (about 120 steps) whose schedule ends there" in data.text
    )
    assert report.speed_ups[0].low is report.speed_ups[0].high is None
    assert "not stated" in report.speed_ups[0].text


def test_an_unfinished_subject_has_to_end_first(tmp_path: Path) -> None:
    patch = run(tmp_path / "patch", planned="240ba", ends=False)
    data, _ = both(make_report([patch, run(tmp_path / "twin", SAME_DATA)]))
    assert not data.stated
    assert "patch cannot be judged: it is broken off at 50%" in data.text
    assert "Let patch reach the end of the schedule first." in data.text


def test_a_subject_without_an_evaluation_at_its_end_needs_one(tmp_path: Path) -> None:
    data, _ = both(make_report([run(tmp_path / "patch", every=0), run(tmp_path / "twin", SAME_DATA)]))
    assert "patch cannot be judged: it has no evaluation at its end" in data.text
    assert "Repeat it with an eval_loader and eval_interval: 1dur, which evaluates at the end." in data.text


def test_a_broken_off_subject_is_told_to_end_whatever_the_baselines(tmp_path: Path) -> None:
    patch = run(tmp_path / "patch", stop=50, ends=False)
    for verdict in make_report([patch, run(tmp_path / "twin", SAME_DATA)]).verdicts:
        assert "it is broken off at 42%. Let patch reach the end" in verdict.text
        assert "twin of" not in verdict.text


def test_schedules_that_never_decay_are_compared_with_each_other(tmp_path: Path) -> None:
    paths = [run(tmp_path / "patch", **FLAT), run(tmp_path / "twin", SAME_DATA, **FLAT)]
    data, _ = both(make_report(paths))
    assert data.stated
    assert "No run's rate decayed (all end at 100% of the peak)." in data.text


def test_a_mixed_file_is_drawn_and_not_compared(tmp_path: Path) -> None:
    twin = Path(run(tmp_path / "twin", SAME_DATA)) / "history.jsonl"
    first, *rest = twin.read_text().splitlines(keepends=True)
    twin.write_text(first + "".join(line * 2 for line in rest))
    data, _ = both(make_report([run(tmp_path / "patch"), str(twin)]))
    assert not data.stated
    assert "its file mixes the lines of several processes" in data.text


@pytest.mark.parametrize("uncounted", [None, 0.0])
@pytest.mark.parametrize("counts_patch", [True, False])
def test_compute_in_positions_where_flops_are_missing(
    tmp_path: Path, uncounted: float | None, counts_patch: bool
) -> None:
    paths = [
        run(tmp_path / "patch", flops=counts_patch, uncounted=uncounted),
        run(tmp_path / "twin", SAME_COMPUTE, flops=False, uncounted=uncounted),
    ]
    report = make_report(paths)
    (up,) = report.speed_ups
    assert up.low is not None or up.high is not None
    assert report.compute == "positions"
    _, compute = both(report)
    assert compute.stated
    assert compute.text.startswith("equal compute (245,760 positions)")
    assert any("counted in positions" in note for note in report.notes)


def test_a_baseline_that_was_named(tmp_path: Path) -> None:
    paths = [run(tmp_path / "four"), run(tmp_path / "eight", ((8, 80), (1, 40)))]
    report = make_report(paths, [paths[1]])
    assert [v.subject for v in report.verdicts] == ["four", "four"]
    assert report.verdicts[0].baseline == "eight"
    with pytest.raises(ValueError, match="--baseline elsewhere is not one of the runs"):
        make_report(paths, ["elsewhere"])


def test_a_baseline_is_the_same_run_however_its_place_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "four")
    run(tmp_path / "eight", ((8, 80), (1, 40)))
    monkeypatch.chdir(tmp_path)
    for given, baseline in (
        ("eight/", "./eight"),
        ("./eight", "eight/"),
        ("eight", "eight/history.jsonl"),
        ("other=eight", f"other={tmp_path}/eight/"),
    ):
        assert make_report(["four", given], [baseline]).verdicts[0].baseline in ("eight", "other")
    assert same_place("s3://bucket/run/history.jsonl") == same_place("s3://bucket/run/")


def test_runs_that_cannot_be_told_apart(tmp_path: Path) -> None:
    paths = [run(tmp_path / name, seed=1) for name in ("patch-a", "patch-b")]
    report = make_report([*paths, run(tmp_path / "twin", SAME_DATA)])
    assert (
        "patch-a and patch-b have the same seed (1): their difference is not a spread over seeds."
        in report.notes
    )
    assert report.groups[0].seeds == "2 runs of 1 seeds"
    with pytest.raises(ValueError, match="are the same run"):
        make_report([paths[0], f"{paths[0]}/history.jsonl"])


def test_token_only_runs_alone_are_not_judged(tmp_path: Path) -> None:
    report = make_report([run(tmp_path / "twin", SAME_DATA)])
    assert report.verdicts == report.speed_ups == report.recoveries == []
    assert any("no run has a patch stage" in note for note in report.notes)
