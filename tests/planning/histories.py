"""Histories of runs that were not run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from patch_algorithm.planning.costs import RunCost

FIRST_STEP = 30.0
"""Seconds of the first step of a stage, which compiles."""


def history_lines(run: RunCost, seconds: dict[int, float], counts_flops: bool = True) -> Iterable[str]:
    """The lines of a run whose steps all take as long, by patch size, but the first of each stage."""
    yield json.dumps({"kind": "start", "step": 0, "run_name": "made"})
    at = {"step": 0, "raw_tokens": 0, "positions": 0, "flops": 0.0, "seconds": 0.0}
    for index, stage in enumerate(run.stages):
        for number in range(stage.steps):
            at["step"] += 1
            at["raw_tokens"] += stage.raw_tokens // stage.steps
            at["positions"] += stage.positions_per_step
            at["flops"] += (stage.flops or 0.0) / stage.steps
            at["seconds"] += seconds[stage.k] if number else FIRST_STEP
            moment = at | {"stage": index, "k": stage.k, "flops": at["flops"] if counts_flops else None}
            yield json.dumps({"kind": "step", **moment, "metrics": {"loss/train/total": 1.0}})


def write_history(path: Path, run: RunCost, seconds: dict[int, float], counts_flops: bool = True) -> str:
    """Writes a history and gives its path back."""
    path.write_text("".join(f"{line}\n" for line in history_lines(run, seconds, counts_flops)))
    return str(path)
