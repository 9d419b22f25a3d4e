"""Runs recorded only by tensorboard, as far as its files hold what a history does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patch_algorithm.monitoring.history_file import History, Line
from patch_algorithm.monitoring.moment import Moment

__all__ = ["SOURCE", "read_folder"]

SOURCE = "tensorboard"
_LOSS, _TOKENS = "loss/train/total", "time/token"


def read_folder(folder: Path) -> History:
    """Reads a folder of event files.

    Composer logs what belongs to step n + 1 as step n, except evaluations and rates. Raw tokens are those of
    ``time/token``, FLOPs those of ``patch_monitor``, positions those of ``patch_level/compute_share``, and
    seconds are wall-clock time since the first step, evaluation included.

    Raises:
        ValueError: If the package is missing, or the folder holds several runs or no training run.
    """
    scalars = _scalars(folder)
    if _LOSS not in scalars or not any(value for _, value in scalars.get(_TOKENS, {}).values()):
        raise ValueError(
            f"{folder} holds tensorboard files without {_LOSS} or {_TOKENS}, which common axes need. "
            "Give a history.jsonl: `loggers: {history: {}}` writes one."
        )
    history = History(starts=[0], settings=[{"run_name": folder.resolve().name, "source": SOURCE}])
    steps = sorted(scalars[_LOSS])
    for step in steps:
        metrics = {n: v[step][1] for n, v in scalars.items() if step in v and not _is_late(n)}
        metrics |= {n: v[step + 1][1] for n, v in scalars.items() if step + 1 in v and n.startswith("lr-")}
        history.steps.append(Line(_moment(scalars, step, scalars[_LOSS][steps[0]][0]), metrics))
    at = {line.at.step: line.at for line in history.steps}
    for step in sorted(
        {step for name, v in scalars.items() if name.startswith("metrics/eval") for step in v}
    ):
        if step in at:
            metrics = {
                n: v[step][1] for n, v in scalars.items() if n.startswith("metrics/eval") and step in v
            }
            history.evals.append(Line(at[step], metrics))
    return history


def _scalars(folder: Path) -> dict[str, dict[int, tuple[float, float]]]:
    """For each tag the wall-clock time and the value at each step; the last if it was logged twice."""
    try:
        from tensorboard.backend.event_processing import event_accumulator  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"{folder} holds tensorboard files, and reading them needs another package: pip install "
            "tensorboard."
        ) from error
    folders = {path.parent for path in folder.rglob("*tfevents*")}
    if len(folders) > 1:
        raise ValueError(
            f"{folder} holds several tensorboard runs. Give one: {', '.join(map(str, folders))}."
        )
    accumulator: Any = event_accumulator.EventAccumulator(str(folders.pop()), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: {event.step: (event.wall_time, event.value) for event in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["scalars"]
    }


def _is_late(name: str) -> bool:
    return name.startswith(("metrics/eval", "lr-"))


def _moment(scalars: dict[str, dict[int, tuple[float, float]]], step: int, began: float) -> Moment:
    def value(name: str, default: float) -> float:
        return scalars.get(name, {}).get(step, (0.0, default))[1]

    tokens = scalars[_TOKENS]
    before = tokens[step][1] if step in tokens else 0.0
    if step + 1 in tokens:
        after = tokens[step + 1][1]
    else:  # the last step takes as many as the one before
        after = before + (before - tokens[step - 1][1] if step - 1 in tokens else before)
    has_flops = step in scalars.get("patch_monitor/flops", {})
    return Moment(
        stage=int(value("patch_level/stage", 0)),
        k=int(value("patch_level/k", 1)),
        step=step + 1,
        raw_tokens=round(after),
        positions=round(after * value("patch_level/compute_share", 1.0)),
        flops=value("patch_monitor/flops", 0.0) if has_flops else None,
        seconds=scalars[_LOSS][step][0] - began,
    )
