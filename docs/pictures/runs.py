"""The evaluations of a measured patch run and of its twin, from the histories that the runs wrote.

The runs are the quickstart and its token-only twin of the same compute, evaluated every ten steps:

    often="eval_interval=10ba eval_subset_num_batches=8"
    composer train.py yamls/quickstart.yaml save_folder=runs/patch $often
    patch-level plan yamls/quickstart.yaml --twin=twin.yaml --same compute
    composer train.py twin.yaml save_folder=runs/token $often
    python docs/pictures/runs.py runs/patch/history.jsonl runs/token/history.jsonl

The last command writes ``runs.json``, from which the pictures are drawn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.monitoring.history_file import History, read

__all__ = ["MeasuredRun", "measured_runs"]

_FILE = Path(__file__).with_name("runs.json")
_METRIC = "metrics/eval/LanguageCrossEntropy"


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run.

    Attributes:
        parameters: Of the model.
        k: Patch size of its first stage; 1 for the twin.
        switch: FLOPs at the switch; ``None`` for the twin.
        raw_tokens: Of the whole run.
        losses: FLOPs and token-level eval loss of each evaluation.
        seconds: Of training.
    """

    parameters: int
    k: int
    switch: float | None
    raw_tokens: int
    seconds: float
    losses: tuple[tuple[float, float], ...]


def measured_runs() -> tuple[MeasuredRun, MeasuredRun]:
    """The patch run and its token-level twin."""
    patch, twin = (
        MeasuredRun(**run | {"losses": tuple((x, y) for x, y in run["losses"])})
        for run in json.loads(_FILE.read_text("utf-8"))
    )
    return patch, twin


def _reduced(history: History) -> dict[str, Any]:
    if not history.ends or history.ends[-1][1] != 1.0:
        raise ValueError("a run did not come to its end")
    in_patches = [line.at.flops or 0.0 for line in history.steps if line.at.k > 1]
    end = history.steps[-1].at
    return {
        "parameters": history.settings[-1]["parameters"],
        "k": history.steps[0].at.k,
        "switch": max(in_patches) if in_patches else None,
        "raw_tokens": end.raw_tokens,
        "seconds": round(end.seconds, 1),
        "losses": [[flops, round(loss, 4)] for flops, loss in history.series(_METRIC, x="flops")],
    }


if __name__ == "__main__":
    runs = [_reduced(read(path)) for path in sys.argv[1:3]]
    _FILE.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
