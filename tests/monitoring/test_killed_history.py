"""A run that is killed at any moment and resumed leaves a history without a gap or a double."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from patch_algorithm.monitoring.history import Line, read
from tests.monitoring.killed_history import BATCHES, KILLS
from tests.support import write_corpus

ROOT = Path(__file__).parents[2]


def axes(line: Line) -> tuple[float | None, ...]:
    at = line.at
    return at.stage, at.k, at.step, at.raw_tokens, at.positions, at.flops


@pytest.mark.smoke
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that are killed")
def test_no_gap_and_no_double(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", rows=256)
    command = [sys.executable, "-m", "tests.monitoring.killed_history", str(tmp_path), str(corpus)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [0, *[-signal.SIGKILL] * KILLS, 0], done.stderr[-4000:]
    whole, killed = (read(tmp_path / name / "history.jsonl") for name in ("whole", "killed"))
    assert [line.at.step for line in whole.steps] == list(range(1, BATCHES + 1))
    assert [axes(line) for line in killed.steps] == [axes(line) for line in whole.steps]
    assert [axes(line) for line in killed.evals] == [axes(line) for line in whole.evals]
    for metric in ("loss/train/total", "metrics/eval/LanguageCrossEntropy", "patch_monitor/flops"):
        assert killed.series(metric) == whole.series(metric)
    seconds = [line.at.seconds for line in killed.steps]
    assert seconds == sorted(seconds)
    assert whole.starts == [0]
    texts = (tmp_path / "killed" / "history.jsonl").read_text().splitlines()
    assert sum('"kind": "start"' in text for text in texts) == KILLS + 1
    assert sum('"kind": "step"' in text for text in texts) > BATCHES, "steps were trained again"
