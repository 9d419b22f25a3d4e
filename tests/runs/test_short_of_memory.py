"""Running out of memory at the switch shows before the first step, not days later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.launcher,
    pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does"),
]


def train(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.runs.short_of_memory", how],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_rehearsal_shows_it_before_the_first_step() -> None:
    rehearsed = train("rehearse")
    assert rehearsed.returncode == 3, rehearsed.stderr
    assert "batch 0: The token stage does not fit in memory" in rehearsed.stderr
    assert "4 rows of 2048 positions" in rehearsed.stderr
    assert "device_train_microbatch_size below 4" in rehearsed.stderr


def test_without_it_the_run_dies_at_the_switch() -> None:
    blind = train("blind")
    assert blind.returncode == 4, blind.stderr
    assert "batch 3: " in blind.stderr
    assert "allocate memory" in blind.stderr
