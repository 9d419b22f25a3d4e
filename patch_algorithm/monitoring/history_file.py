"""Reads ``history.jsonl``, also of a run that is not finished, was killed or was resumed, without torch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patch_algorithm.monitoring.moment import Moment

__all__ = ["History", "Line", "read"]


@dataclass(frozen=True)
class Line:
    """What was logged at one step or evaluation.

    Attributes:
        at: Where the run stood.
        metrics: What was logged there, by name.
    """

    at: Moment
    metrics: dict[str, float]


@dataclass
class History:
    """A run as recorded in its file, without the steps that a resumed run repeated.

    Attributes:
        steps: The training steps, in order, each once.
        evals: The evaluations, in order; those after the same step are merged.
        others: What was logged at the end of epochs and fits.
        starts: The steps after which a process began, or a fit with another ``max_duration``; more than one
            if the run was resumed.
        settings: What was asked for at each of them: ``run_name``, ``max_duration``, ``seed``,
            ``parameters`` and others. Older versions wrote only the name.
        ends: For each fit that finished, its last step and the share of ``max_duration`` trained by then.
        damaged: Numbers, from 1, of the lines that cannot be read.
        disordered: Numbers of the lines whose step does not come after the step before.
        repeated: Number of steps dropped because a resumed run trained them again.
        replaced: Number of steps of an older run dropped because a new run replaced it.
    """

    steps: list[Line] = field(default_factory=list)
    evals: list[Line] = field(default_factory=list)
    others: list[Line] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    ends: list[tuple[int, float]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list, compare=False)
    disordered: list[int] = field(default_factory=list, compare=False)
    repeated: int = field(default=0, compare=False)
    replaced: int = field(default=0, compare=False)

    def series(self, metric: str, x: str = "step") -> list[tuple[float, float]]:
        """A metric's values and where they were logged; those whose x is not known are left out.

        Args:
            metric: Its name, such as ``loss/train/total`` or ``metrics/eval/LanguageCrossEntropy``.
            x: A field of :class:`.Moment`: ``step``, ``raw_tokens``, ``positions``, ``flops``, ``seconds``.
        """
        lines = [*self.steps, *self.evals]
        points = ((getattr(line.at, x), line.metrics[metric]) for line in lines if metric in line.metrics)
        return sorted(point for point in points if point[0] is not None)


def read(path: str | os.PathLike[str]) -> History:
    """Reads a ``history.jsonl``, also of a run that is not finished or was killed.

    Args:
        path: The file, or its URL in an object store.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a history.
    """
    if "://" not in str(path):
        return _read(_lines(Path(path), str(path)), str(path))
    from composer.utils import get_file  # takes seconds, and is not needed for a file on this machine

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "history.jsonl")
        get_file(str(path), str(local), progress_bar=False)
        return _read(_lines(local, str(path)), str(path))


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        before = path.read_bytes()[: error.start].count(b"\n")
        raise ValueError(f"{name} is not a history: line {before + 1} is not UTF-8 text.") from error


def _read(texts: Iterable[str], name: str) -> History:
    history, text = History(), ""
    for number, text in enumerate(texts, 1):
        try:
            values = json.loads(text)
        except ValueError:
            history.damaged.append(number)  # a process was killed while it wrote this line
            continue
        try:
            _take(history, values, number)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} is not a history: line {number} is {text[:80]!r} ({error!r})."
            ) from error
    # A run that was killed in its first line leaves the beginning of an object.
    if text and history == History() and not text.startswith("{"):
        raise ValueError(
            f"{name} is not a history: none of its lines is a JSON object, for example {text[:80]!r}."
        )
    return history


def _take(history: History, values: dict[str, Any], number: int) -> None:
    kind = values.pop("kind")
    if kind == "start":
        _go_back(history, values.pop("step"))
        history.settings.append(values)
        return
    if kind == "end":
        history.ends.append((values["step"], float(values["share"])))
        return
    metrics = {name: float(value) for name, value in values.pop("metrics").items()}
    line = Line(_moment(values), metrics)
    lines = {"step": history.steps, "eval": history.evals, "other": history.others}[kind]
    if kind == "step" and lines and lines[-1].at.step >= line.at.step:
        history.disordered.append(number)
    if kind == "eval" and lines and lines[-1].at.step == line.at.step:
        metrics.update({**lines.pop().metrics, **metrics})
    lines.append(line)


def _moment(values: dict[str, Any]) -> Moment:
    for name, value in values.items():
        if not isinstance(value, (int, float)) and not (name == "flops" and value is None):
            raise TypeError(f"{name}={value!r} is not a number")
    moment = Moment(**values)
    # Earlier versions wrote 0 where FLOPs could not be counted.
    return replace(moment, flops=None) if moment.flops == 0 and moment.step > 0 else moment


def _go_back(history: History, step: int) -> None:
    """Drops what lies after a step from which the run was trained again."""
    had = len(history.steps)
    # What was evaluated before any step belongs to the run that begins there.
    last = step if step > 0 or not had else -1
    for lines in (history.steps, history.evals, history.others):
        lines[:] = [line for line in lines if line.at.step <= last]
    if step > 0:
        history.repeated += had - len(history.steps)
    else:
        history.replaced, history.repeated = had, 0
        history.disordered.clear()
    kept = [index for index, start in enumerate(history.starts) if start <= step and step > 0]
    history.starts = [*(history.starts[index] for index in kept), step]
    history.settings = [history.settings[index] for index in kept]
    history.ends = [end for end in history.ends if end[0] <= step and step > 0]
