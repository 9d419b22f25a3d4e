"""The recovery after the switch, against a baseline's curve at equal compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from patch_algorithm.reporting.report import make_report
from tests.reporting.synthetic import SAME_COMPUTE, SAME_DATA, TOKENS, run


def patch(step: int, k: int) -> float:
    """High after the patch stage, and 0.02 lower with each step of the token stage."""
    return 7.0 if k > 1 else 6.5 - 0.02 * (step - 80)


def straight(step: int, k: int) -> float:
    """The patch run's compute after step s of its token stage is that of 20 + s token steps: 6.2 there."""
    return 6.2


def test_where_the_curves_cross(tmp_path: Path) -> None:
    paths = [run(tmp_path / "patch", loss=patch), run(tmp_path / "twin", SAME_COMPUTE, loss=straight)]
    (found,) = make_report(paths).recoveries
    assert found.step == 80
    assert found.before is not None
    assert (found.before.at.step, found.before.loss) == (80, 7.0)
    assert found.after is not None
    assert (found.after.at.step, found.after.loss) == (90, pytest.approx(6.3))
    assert found.level is not None
    assert found.level.at.step == 100, "6.1 is the first below 6.2"
    assert (found.steps, found.tokens, found.text) == (20, 20 * TOKENS, "crossed")


def test_the_baseline_is_read_between_its_evaluations(tmp_path: Path) -> None:
    def falling(step: int, k: int) -> float:
        return 6.6 - 0.01 * step

    # At step 90, of the compute of 30 token steps, it is 6.3 where the patch run has 6.3.
    paths = [
        run(tmp_path / "patch", loss=patch),
        run(tmp_path / "twin", SAME_COMPUTE, loss=falling, every=20),
    ]
    (found,) = make_report(paths).recoveries
    assert found.level is not None
    assert found.level.at.step in (90, 100)


def test_not_crossed(tmp_path: Path) -> None:
    low = [run(tmp_path / "patch", loss=patch), run(tmp_path / "twin", SAME_COMPUTE, loss=lambda s, k: 5.0)]
    (found,) = make_report(low).recoveries
    assert (found.level, found.steps, found.tokens, found.text) == (None, None, None, "not crossed")


def test_a_baseline_that_ends_early(tmp_path: Path) -> None:
    short = [run(tmp_path / "patch", loss=patch), run(tmp_path / "twin", ((1, 40),), loss=lambda s, k: 5.0)]
    (found,) = make_report(short).recoveries
    assert found.text == "not crossed as far as twin goes"
    none = [str(tmp_path / "patch"), run(tmp_path / "shorter", ((1, 20),), loss=lambda s, k: 5.0)]
    (found,) = make_report(none).recoveries
    assert found.text == "shorter has no evaluations at this compute"
    (found,) = make_report([str(tmp_path / "patch")]).recoveries
    assert found.text == "no baseline to compare with"


def test_the_twin_of_the_same_compute_is_the_one(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / "patch", loss=patch),
        run(tmp_path / "data", SAME_DATA),
        run(tmp_path / "compute", SAME_COMPUTE),
    ]
    (found,) = make_report(paths).recoveries
    assert found.baseline == "compute"


def test_runs_without_a_switch(tmp_path: Path) -> None:
    only_patches = run(tmp_path / "patches", ((4, 60),))
    broken_off = run(tmp_path / "broken", stop=50, ends=False)
    report = make_report([only_patches, broken_off, run(tmp_path / "twin", SAME_DATA)])
    assert report.recoveries == []


def test_the_last_of_several_switches(tmp_path: Path) -> None:
    stages = ((8, 40), (4, 40), (1, 40))
    (found,) = make_report([run(tmp_path / "three", stages, loss=patch)]).recoveries
    assert found.step == 80


def test_a_switch_without_evaluations(tmp_path: Path) -> None:
    (found,) = make_report([run(tmp_path / "patch", every=0)]).recoveries
    assert (found.before, found.after, found.level) == (None, None, None)
