"""When the real trainer switches from patches to tokens."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from patch_algorithm import PatchLevel
from tests.runs.short import make_padded_rows, make_rows, run, saving
from tests.support import metrics

PAPER = [Fraction("0.29"), Fraction("0.57"), Fraction(2, 3)]


def expected_steps(ratio: Fraction, counts: list[int], length: int) -> int:
    """Patch steps of a run whose clock stands at ``counts[i]`` when step i starts."""
    point = math.ceil(ratio * length)
    return sum(count < point for count in counts)


@pytest.mark.parametrize("ratio", PAPER, ids=str)
@pytest.mark.parametrize(
    ("max_duration", "per_step", "length"),
    [("1ep", 1, 21), ("3ep", 1, 21), ("21ba", 1, 21), ("84sp", 4, 84), ("672tok", 32, 672)],
)
def test_fraction_switches_at_the_right_step(
    ratio: Fraction, max_duration: str, per_step: int, length: int
) -> None:
    rows = make_rows(28 if max_duration == "3ep" else 84, 8)
    trainer = run(rows, [PatchLevel(k=2, ratio=float(ratio))], max_duration=max_duration)
    patch_steps = expected_steps(ratio, list(range(0, 21 * per_step, per_step)), length)
    assert metrics(trainer, "patch_level/stage") == [0] * patch_steps + [1] * (21 - patch_steps)


@pytest.mark.parametrize(
    ("ratio", "steps"),
    [("0.5dur", 4), ("3ba", 3), ("9sp", 3), ("64tok", 2), ("65tok", 3), ("1ep", 4), ("0.07dur", 1)],
)
def test_point_in_any_unit_switches_at_the_right_step(ratio: str, steps: int) -> None:
    trainer = run(make_rows(16, 8), [PatchLevel(k=2, ratio=ratio)], max_duration="2ep")
    assert metrics(trainer, "patch_level/stage") == [0] * steps + [1] * (8 - steps)


def test_tokens_are_counted_raw_and_without_padding() -> None:
    rows = make_padded_rows(32, 12)
    real = [int(sum(row["attention_mask"].sum() for row in rows[i : i + 4])) for i in range(0, 32, 4)]
    clock = [sum(real[:i]) for i in range(8)]
    trainer = run(rows, [PatchLevel(k=2, ratio=f"{clock[3] + 1}tok")])
    assert metrics(trainer, "patch_level/stage") == [0] * 4 + [1] * 4
    assert metrics(trainer, "time/token")[:8] == clock


@pytest.mark.parametrize("known_length", [True, False])
def test_epoch_point_switches_at_the_end_of_the_epoch(tmp_path: Path, known_length: bool) -> None:
    trainer = run(
        make_rows(16, 8),
        [PatchLevel(k=2, ratio="1ep")],
        max_duration="7ba",
        known_length=known_length,
        **saving(tmp_path),
    )
    assert metrics(trainer, "patch_level/stage") == [0] * 4 + [1] * 3
    assert len(metrics(trainer, "metrics/train/LanguageCrossEntropy")) == 3
    # The checkpoint after the last patch step belongs to the token stage; where nobody knows that
    # the epoch is over, it is found out by the next step.
    assert saved_stage(tmp_path / "ba3.pt") is False
    assert saved_stage(tmp_path / "ba4.pt") is known_length
    assert saved_stage(tmp_path / "ba5.pt") is True


def saved_stage(checkpoint: Path) -> bool:
    """Whether a checkpoint has left the patch stage."""
    state = torch.load(checkpoint, weights_only=False)["state"]["algorithms"]
    return dict(state)["PatchLevel"]["stage"] == 1


def test_checkpoint_of_the_last_patch_step_belongs_to_the_token_stage(tmp_path: Path) -> None:
    run(make_rows(32, 8), [PatchLevel(k=2, ratio="3ba")], **saving(tmp_path))
    assert [saved_stage(tmp_path / f"ba{ba}.pt") for ba in (2, 3, 4)] == [False, True, True]


def test_fraction_of_epochs_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"samples.*tokens"):
        run(make_rows(16, 8), [PatchLevel(k=2)], max_duration="1ep", known_length=False)


def test_fraction_of_a_time_that_counts_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2iter.*'ba', 'sp' or 'tok'"):
        run(make_rows(16, 8), [PatchLevel(k=2, ratio=0.5)], max_duration="2iter")
