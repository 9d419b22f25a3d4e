"""A run that is killed (SIGKILL) again and again, at any moment, and resumed until it has ended.

usage: python -m tests.monitoring.killed_history OUTPUT CORPUS

Trains once without a stop into OUTPUT/whole and once with kills into OUTPUT/killed. Children are forked, so
that llm-foundry is imported once. Each is killed when the run's history has grown by so much, and a little
later: in a step, an evaluation or a checkpoint, whatever comes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.support import config, mpt, train

BATCHES = 60
KILLS = 3
_GROWTH = 7_000
"""Bytes of some eight steps; a checkpoint is saved every third step and at the switch."""


def fit(corpus: Path, folder: Path) -> None:
    """Trains from the newest complete checkpoint, as ``autoresume`` does."""
    # Not by autoresume: of a checkpoint that was cut short by the kill it says that it may not overwrite it.
    newest = folder / "latest-rank0.pt"
    changes: dict[str, Any] = {"load_path": str(newest)} if newest.exists() else {}
    cfg = config(
        corpus,
        mpt(),
        algorithms={"patch_level": {"k": 4, "ratio": "10ba"}},
        loggers={"history": {}},
        callbacks={"patch_monitor": {}, "stage_report": {}},
        max_duration=f"{BATCHES}ba",
        eval_interval="2ba",
        save_folder=str(folder),
        save_interval="3ba",
        save_overwrite=True,
        run_name="killed",
        **changes,
    )
    train(cfg)


def start(corpus: Path, folder: Path) -> int:
    """Trains in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fit(corpus, folder)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def ended(child: int, kill_at: int | None, history: Path, pause: float) -> int:
    """Waits for a child, and kills it once the history is so long; returns how it ended."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if kill_at is not None and history.exists() and history.stat().st_size >= kill_at:
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
            kill_at = None
        time.sleep(0.001)


def main(output: Path, corpus: Path) -> None:
    """Trains both ways, and writes how each child ended to standard output's last line."""
    whole, killed = output / "whole", output / "killed"
    pauses = random.Random(17)
    results = [ended(start(corpus, whole), None, whole / "history.jsonl", 0)]
    history = killed / "history.jsonl"
    for _ in range(KILLS):
        size = history.stat().st_size if history.exists() else 0
        results.append(ended(start(corpus, killed), size + _GROWTH, history, pauses.uniform(0, 0.1)))
    results.append(ended(start(corpus, killed), None, history, 0))
    sys.stdout.write(f"\n{results}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
