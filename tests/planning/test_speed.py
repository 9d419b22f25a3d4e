"""Hours and money: from a GPU's peak, and from a run that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from composer.callbacks.speed_monitor import GPU_AVAILABLE_FLOPS

from patch_algorithm.planning.costs import run_costs, step_shape
from patch_algorithm.planning.costs_model import ModelFacts
from patch_algorithm.planning.costs_speed import GPUS, PeakSpeed, bill, gpu_of, read_speed
from tests.planning.histories import write_history
from tests.planning.runs import run_of

MODEL = ModelFacts("made", parameters=1000, row_flops=lambda P: 1e6 * P)
COSTS = run_costs(step_shape(run_of(), MODEL), MODEL)


def test_hours_of_a_peak_by_hand() -> None:
    token, this, _ = COSTS
    speed = PeakSpeed(8, "h100", 989e12, 0.4)
    taken = bill(this, speed, price=2.5)
    assert taken is not None
    assert this.flops == 1e6 * (8 * 128 + 4 * 512)
    assert taken.hours == pytest.approx(this.flops / (8 * 989e12 * 0.4) / 3600)
    assert taken.gpu_hours == pytest.approx(8 * taken.hours)
    assert taken.money == pytest.approx(20 * taken.hours)
    other = bill(token, speed)
    assert other is not None
    assert other.hours == pytest.approx(2 * taken.hours)
    assert other.money is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("a100", "a100"), ("h100", "h100-sxm"), ("h100-pcie", "h100-pcie"), ("h200", "h200-sxm")],
)
def test_peaks_are_composers(ours: str, theirs: str) -> None:
    assert GPUS[ours].peak == pytest.approx(GPU_AVAILABLE_FLOPS[theirs]["bf16"], rel=0.001)


def test_a_peak_may_be_given() -> None:
    assert gpu_of("H100") == ("h100", 989e12)
    assert gpu_of("450e12") == ("GPU", 450e12)
    for name in ("h1000", "450", "nan", "-1e12"):
        with pytest.raises(ValueError, match="expected one of a10, a100"):
            gpu_of(name)


@pytest.mark.parametrize("counts_flops", [True, False])
def test_a_measured_run_foretells_its_like(counts_flops: bool, tmp_path: Path) -> None:
    path = write_history(tmp_path / "history.jsonl", COSTS[1], {4: 2.0, 1: 5.0}, counts_flops)
    speed = read_speed(path, gpus=2)
    patch, token = COSTS[1].stages
    assert speed.seconds(patch) == pytest.approx(8 * 2.0), "the first step of a stage counts like the others"
    assert speed.seconds(token) == pytest.approx(4 * 5.0)
    longer = bill(COSTS[2], speed, price=3.0)
    assert longer is not None
    assert longer.hours == pytest.approx((16 * 2.0 + 8 * 5.0) / 3600)
    assert longer.money == pytest.approx(6 * longer.hours)
    assert speed.borrowed(COSTS[2]) == ()


def test_stages_that_were_not_measured_borrow(tmp_path: Path) -> None:
    path = write_history(tmp_path / "history.jsonl", COSTS[0], {1: 5.0})
    speed = read_speed(path)
    patch, token = COSTS[1].stages
    assert speed.seconds(token) == pytest.approx(4 * 5.0)
    assert speed.seconds(patch) == pytest.approx(8 * 5.0 / 4)
    assert speed.borrowed(COSTS[1]) == (4,)


def test_what_was_trained_again_counts_once(tmp_path: Path) -> None:
    path = Path(write_history(tmp_path / "history.jsonl", COSTS[1], {4: 2.0, 1: 5.0}))
    lines = path.read_text().splitlines()
    resumed = json.dumps({"kind": "start", "step": 9, "run_name": "made"})
    path.write_text("\n".join([*lines, resumed, *lines[10:]]))
    speed = read_speed(str(path))
    # Step 10 is the first after the resumption, and is left out with step 9, the first of its stage.
    assert speed.rates[1].seconds == pytest.approx(2 * 5.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("", "none of which can be timed"),
        ("nonsense\n", "is not a history"),
    ],
)
def test_histories_that_are_none(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_speed(str(path))
