"""A run that is killed and resumed ends bit by bit as the one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.killed import BATCHES, CASES, QUICK
from tests.support import write_corpus

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that are killed")


def compare(names: list[str], folder: Path) -> None:
    small = write_corpus(folder / "small", rows=16)
    large = write_corpus(folder / "large", rows=64)
    command = [sys.executable, "-m", "tests.runs.killed", str(folder / "runs"), str(small), str(large)]
    done = subprocess.run([*command, *names], cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-4000:]
    for number, name in enumerate(names):
        runs = folder / "runs" / str(number)
        ended = json.loads((runs / "ended.json").read_text())
        assert ended["name"] == name
        assert (ended["whole"], ended["resumed"]) == (0, 0), (ended, done.stderr[-4000:])
        assert ended["killed"] == -signal.SIGKILL, "it was killed, not ended"
        whole = (runs / "whole.txt").read_text().splitlines()
        killed = (runs / "killed.txt").read_text().splitlines()
        resumed = (runs / "resumed.txt").read_text().splitlines()
        assert len(whole) == BATCHES
        assert killed == whole[: CASES[name].kill], name
        assert 0 < len(resumed) < BATCHES, "it went on, and did not start anew"
        assert resumed == whole[-len(resumed) :], name
        assert (runs / "resumed.sha256").read_text() == (runs / "whole.sha256").read_text(), name
        if CASES[name].from_batch is not None:
            assert len(resumed) == BATCHES - CASES[name].from_batch


@pytest.mark.smoke
def test_killed_at_the_switch_and_resumed(tmp_path: Path) -> None:
    compare(list(QUICK), tmp_path)


OTHERS = [name for name in CASES if name not in QUICK]


@pytest.mark.launcher
@pytest.mark.parametrize("names", [OTHERS[start::4] for start in range(4)], ids=", ".join)
def test_every_case(names: list[str], tmp_path: Path) -> None:
    compare(names, tmp_path)
