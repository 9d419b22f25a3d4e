"""Evaluations and checkpoints that miss the switch, and folders they cannot go to."""

from __future__ import annotations

import dataclasses

import pytest

from patch_algorithm.checks.saving import FolderFacts, IntervalFacts, check_folder, check_intervals

GOOD = IntervalFacts(
    switch=600,
    evaluates=True,
    eval_every=250,
    eval_at_switch=True,
    saves=True,
    save_every=250,
    save_at_switch=True,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"evaluates": False}, ["no-evaluation"]),
        ({"eval_at_switch": False}, ["eval-misses-switch"]),
        ({"eval_at_switch": False, "eval_every": 200}, []),
        ({"eval_at_switch": False, "eval_every": None}, []),
        ({"save_at_switch": False}, ["save-misses-switch"]),
        ({"save_at_switch": False, "save_every": 300}, []),
        ({"save_at_switch": False, "saves": False}, []),
        ({"save_at_switch": False, "eval_at_switch": False, "switch": None}, []),
    ],
)
def test_intervals(changes: dict[str, object], expected: list[str]) -> None:
    facts = dataclasses.replace(GOOD, **changes)  # pyright: ignore[reportArgumentType]
    assert [one.id for one in check_intervals(facts)] == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (FolderFacts("runs"), []),
        (FolderFacts("runs", writable=False), ["folder-not-writable"]),
        (FolderFacts("runs", holds_checkpoints=2), ["save-folder-used"]),
        (FolderFacts("runs", holds_checkpoints=2, resumes=True), []),
        (FolderFacts("runs", free_bytes=100, checkpoint_bytes=40, kept=2), []),
        (FolderFacts("runs", free_bytes=100, checkpoint_bytes=40, kept=3), ["disk-space"]),
        (FolderFacts("runs", free_bytes=100, checkpoint_bytes=None, kept=3), []),
    ],
)
def test_folders(facts: FolderFacts, expected: list[str]) -> None:
    assert [one.id for one in check_folder(facts)] == expected


def test_space_is_said_in_gigabytes() -> None:
    (found,) = check_folder(FolderFacts("runs", free_bytes=10**10, checkpoint_bytes=15_800_000_000, kept=2))
    assert "2 checkpoints of about 15.8 GB take 31.6 GB; 10 GB are free" in found.found
