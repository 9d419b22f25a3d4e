"""Histories written line by line, of runs that never were, for what real runs seldom show."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TOKENS = 4096
"""Raw tokens of a step."""
FLOPS = 1e9
"""FLOPs of a position."""
EVAL = "metrics/eval/LanguageCrossEntropy"
Stages = Sequence[tuple[int, int]]
PATCHES: Stages = ((4, 80), (1, 40))
"""Patch size and steps of each stage."""
SAME_DATA: Stages = ((1, 120),)
SAME_COMPUTE: Stages = ((1, 60),)


def decayed(share: float) -> float:
    """A rate that is flat for 80 % of the run and zero at its end."""
    return min(1.0, (1 - share) / 0.2)


def lines(
    stages: Stages = PATCHES,
    *,
    seed: int | None = 17,
    name: str | None = None,
    rate: Callable[[float], float] = decayed,
    loss: Callable[[int, int], float] | None = None,
    every: int = 10,
    stop: int | None = None,
    ends: bool = True,
    planned: str | None = None,
    flops: bool = True,
    uncounted: float | None = None,
    reads_patches: bool = True,
    seconds_per_position: float = 1e-4,
    **settings: Any,
) -> list[dict[str, Any]]:
    """The lines of a run.

    Args:
        stages: Patch size and steps of each.
        seed: ``None`` for a file of an older version, which has no settings.
        name: The run's name.
        rate: The learning rate, as a share of the peak, by the share of the run.
        loss: The eval loss after a step of a stage (step, k).
        every: Steps between evaluations; 0 for none.
        stop: The step at which the run is broken off.
        ends: Whether the end of the fit is recorded.
        planned: The run's ``max_duration``; by default its steps.
        flops: Whether FLOPs are counted.
        uncounted: What is written where they are not; earlier versions wrote 0.
        reads_patches: Whether positions of the patch stages read patches.
        seconds_per_position: The machine's speed.
        settings: Further ones of the run.
    """
    total = sum(steps for _, steps in stages)
    loss = loss or (lambda step, k: 6.0 - step / total + (1.0 if k > 1 else 0.0))
    start: dict[str, Any] = {"kind": "start", "step": 0, "run_name": name or f"run-{seed}"}
    if seed is not None:
        start |= {"seed": seed, "max_duration": planned or f"{total}ba", "batches_per_epoch": 500}
        start |= {"parameters": 1_000_000, "optimizer": "AdamW", "weight_decay": 0.1, "ranks": 1}
        start |= settings
    written, step, positions = [start], 0, 0
    switches = {sum(steps for _, steps in stages[: n + 1]) for n in range(len(stages))}
    for index, (k, steps) in enumerate(stages):
        for _ in range(steps):
            step += 1
            positions += TOKENS // (k if reads_patches else 1)
            at = {
                "stage": index,
                "k": k,
                "step": step,
                "raw_tokens": step * TOKENS,
                "positions": positions,
                "flops": positions * FLOPS if flops else uncounted,
                "seconds": positions * seconds_per_position,
            }
            metrics = {
                "loss/train/total": 9 - 3 * step / total,
                "lr-AdamW/group0": 1e-3 * rate(step / total),
                "patch_monitor/peak_memory_gb": 1.0 if k > 1 else 1.5,
            }
            if k > 1:
                metrics["patch_level/loss"] = metrics["loss/train/total"]
            written.append({"kind": "step", **at, "metrics": metrics})
            if every and (step % every == 0 or step in switches):
                written.append({"kind": "eval", **at, "metrics": {EVAL: loss(step, k)}})
            if step == stop:
                return written
    if ends and seed is not None:
        written.append({"kind": "end", "step": step, "share": 1.0})
    return written


def write(folder: Path, written: Sequence[dict[str, Any]]) -> str:
    """Writes them as a run's folder does, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in written)
    return str(folder)


def run(folder: Path, stages: Stages = PATCHES, **changes: Any) -> str:
    """Writes a run into ``folder``, named after it."""
    return write(folder, lines(stages, **{"name": folder.name} | changes))


def ends_at(loss: float, high: float = 9.0) -> Callable[[int, int], float]:
    """An eval loss that falls from ``high`` to ``loss``, which it has at steps 60 and 120 of its run."""
    return lambda step, k: loss if step in (60, 120) else loss + (high - loss) / (1 + step / 4)
