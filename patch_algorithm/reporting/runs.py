"""Runs as a report sees them: their curves on common axes, and what is wrong with their files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patch_algorithm.monitoring import history_file
from patch_algorithm.monitoring.history_file import History, Line
from patch_algorithm.monitoring.moment import Moment
from patch_algorithm.reporting.places import HISTORY, named

__all__ = ["LOSS", "Run", "Span", "read_run"]

LOSS = "LanguageCrossEntropy"
"""The eval metric in nats per token."""
AT_MINIMUM = 0.12
"""A rate below this share of its peak counts as decayed: a usual schedule ends at 0 or at a tenth."""
_HELD = ("max_duration", "seed", "parameters", "optimizer", "weight_decay", "ranks")


@dataclass(frozen=True)
class Span:
    """A stage as it was trained.

    Attributes:
        k: Tokens per patch; 1 in the token stage.
        begin: Where the run stood before the stage's first recorded step.
        end: Where it stood after its last.
        steps: Steps recorded.
    """

    k: int
    begin: Moment
    end: Moment
    steps: int

    @property
    def positions_per_token(self) -> float:
        """Positions computed for each raw token: 1/k where positions read patches, else 1."""
        tokens = self.end.raw_tokens - self.begin.raw_tokens
        return (self.end.positions - self.begin.positions) / tokens if tokens else 1.0

    @property
    def label(self) -> str:
        """The stage in words."""
        if self.k == 1:
            return "token stage"
        reads_tokens = self.positions_per_token > 1.5 / self.k
        return f"patch stage, k={self.k}" + (" (reads tokens)" if reads_tokens else "")


@dataclass
class Run:
    """A run, from its file.

    Attributes:
        name: What the report calls it.
        path: Where it was read.
        history: Its lines.
        metric: The eval loss that is compared.
        findings: What a reader has to know about the file, in sentences.
        sound: Whether its numbers can be trusted in a comparison.
    """

    name: str
    path: str
    history: History
    metric: str
    findings: list[str] = field(default_factory=list)
    sound: bool = True
    group: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What its last process was asked to do; files of older versions have only its name."""
        return self.history.settings[-1] if self.history.settings else {}

    @property
    def seed(self) -> int | None:
        """Its seed, if the file says."""
        return self.settings.get("seed")

    @property
    def end(self) -> Moment:
        """Where its record ends."""
        return self.history.steps[-1].at

    @property
    def evals(self) -> list[tuple[Moment, float]]:
        """Its evaluations at token level: where, and the loss in nats."""
        lines = (line for line in self.history.evals if self.metric in line.metrics)
        return [
            (line.at, line.metrics[self.metric]) for line in lines if math.isfinite(line.metrics[self.metric])
        ]

    @property
    def final_loss(self) -> float | None:
        """The eval loss at its end; ``None`` where the last evaluation is not there."""
        evals = self.evals
        return evals[-1][1] if evals and evals[-1][0].step == self.end.step else None

    @property
    def diverged(self) -> bool:
        """Whether it was evaluated at its end and the loss was not a finite number."""
        return any(
            line.at.step == self.end.step and not math.isfinite(line.metrics.get(self.metric, 0.0))
            for line in self.history.evals[-1:]
        )

    @property
    def spans(self) -> list[Span]:
        """Its stages, in order."""
        return _spans(self.history.steps)

    @property
    def has_patches(self) -> bool:
        """Whether it had a patch stage."""
        return any(line.at.k > 1 for line in self.history.steps)

    @property
    def rates(self) -> list[tuple[Moment, float]]:
        """The learning rate of the first parameter group after each step, where it is recorded."""
        name = next(
            (n for line in self.history.steps[-1:] for n in sorted(line.metrics) if n.startswith("lr-")), None
        )
        return [(line.at, line.metrics[name]) for line in self.history.steps if name and name in line.metrics]

    @property
    def rate_left(self) -> float | None:
        """The learning rate at its end, as a share of the peak; ``None`` where it is not recorded."""
        rates = [rate for _, rate in self.rates]
        return rates[-1] / max(rates) if rates and max(rates) > 0 else None

    @property
    def _nearly_decayed(self) -> bool:
        """Whether one more such step ends the decay, as in runs that decay over a few steps."""
        rates = [rate for _, rate in self.rates]
        return len(rates) > 1 and 2 * rates[-1] - rates[-2] <= AT_MINIMUM * max(rates)

    @property
    def share_trained(self) -> float | None:
        """The share of its ``max_duration`` that was trained; ``None`` if the file does not say."""
        ends = [share for step, share in self.history.ends if step == self.end.step]
        if ends:
            return ends[-1]
        return _share_of(self.settings, self.end) if self.settings.get("max_duration") else None

    @property
    def completed(self) -> bool | None:
        """Whether it came to its ``max_duration``; ``None`` if the file does not say."""
        share = self.share_trained
        return None if share is None else share >= 0.999

    @property
    def state(self) -> str:
        """How it ended, in a word or two."""
        if not self.sound:
            return "mixed"
        if self.completed:
            return "completed"
        if self.completed is None:
            return "end not recorded"
        share = self.share_trained
        return "broken off" if share is None or math.isnan(share) else f"broken off at {share:.0%}"

    def cannot_be_judged(self) -> str | None:
        """Why it has no final loss that means anything, whatever its learning rate; ``None`` if it has."""
        if not self.sound:
            return "its file mixes the lines of several processes"
        if self.completed is False:
            return f"it is {self.state}"
        if self.diverged:
            return "its eval loss at its end is not finite"
        return "it has no evaluation at its end" if self.final_loss is None else None

    def unfinished(self) -> str | None:
        """Why its final loss is not that of a finished schedule; ``None`` if it is."""
        if reason := self.cannot_be_judged():
            return reason
        left = self.rate_left
        if self.completed is None and left is None:
            return "its file records neither max_duration nor the learning rate"
        if left is not None and left > AT_MINIMUM and not (self.completed and self._nearly_decayed):
            return f"its learning rate is at {left:.0%} of the peak at its end"
        return None


def read_run(text: str, metric: str | None = None) -> Run:
    """Reads a run.

    Args:
        text: A history file, a folder with ``history.jsonl`` or tensorboard's files, a URL of a history, or
            any of these after ``NAME=``, which puts the run in a group of this name.
        metric: The eval metric; by default the cross-entropy of the run's evaluator.

    Raises:
        ValueError: If there is no run, or nothing in it.
    """
    group, place = named(text)
    history = _history(place)
    if not history.steps:
        raise ValueError(f"{place} holds no training steps yet. Give a run that has trained.")
    run = Run(_name(history, place), place, history, metric or _metric(history, place), group=group)
    run.findings += _of_the_file(run) + _of_the_run(run)
    run.sound = not history.disordered
    return run


def _history(place: str) -> History:
    if "://" in place:
        url = place if place.endswith(".jsonl") else f"{place.rstrip('/')}/{HISTORY}"
        return history_file.read(url)
    path = Path(place)
    if path.is_dir():
        if (path / HISTORY).is_file():
            return history_file.read(path / HISTORY)
        if any(path.rglob("*tfevents*")):
            from patch_algorithm.reporting.tensorboard import read_folder

            return read_folder(path)
        raise ValueError(
            f"{place} is a folder without history.jsonl. Give a save folder, or the file; runs write it with "
            "`loggers: {history: {}}`."
        )
    if not path.is_file():
        raise ValueError(f"{place} does not exist. Expected a history.jsonl, or the folder that holds one.")
    return history_file.read(path)


def _name(history: History, place: str) -> str:
    for settings in reversed(history.settings):
        if settings.get("run_name"):
            return str(settings["run_name"])
    path = Path(place)
    return (path.parent.resolve().name if path.name == HISTORY else path.stem) or place


def _metric(history: History, place: str) -> str:
    names = sorted({name for line in history.evals for name in line.metrics if name.endswith(f"/{LOSS}")})
    standard = f"metrics/eval/{LOSS}"
    if not names or standard in names:
        return standard
    if len(names) > 1:
        raise ValueError(f"{place} has several eval losses. Choose one with --metric: {', '.join(names)}.")
    return names[0]


def _spans(steps: Sequence[Line]) -> list[Span]:
    spans: list[Span] = []
    first, before = 0, _before(steps)
    for index, line in enumerate(steps):
        last = index + 1 == len(steps)
        if last or (steps[index + 1].at.stage, steps[index + 1].at.k) != (line.at.stage, line.at.k):
            spans.append(Span(line.at.k, before, line.at, index + 1 - first))
            first, before = index + 1, line.at
    return spans


def _before(steps: Sequence[Line]) -> Moment:
    """Where the run stood before its first recorded step: zero, unless the file begins later."""
    at = steps[0].at
    if at.step <= 1 or len(steps) == 1:
        flops = None if at.flops is None else 0.0
        return Moment(at.stage, at.k, 0, 0, 0, flops, 0.0)
    return at


def _share_of(settings: dict[str, Any], end: Moment) -> float:
    """The share of ``max_duration`` by the settings alone; not a number where its unit cannot be counted."""
    text = str(settings.get("max_duration"))
    done = {"ba": end.step, "tok": end.raw_tokens}
    batches = settings.get("batches_per_epoch")
    for unit, passed in done.items():
        if text.endswith(unit) and text.removesuffix(unit).isdigit():
            return passed / max(int(text.removesuffix(unit)), 1)
    if text.endswith("ep") and text.removesuffix("ep").isdigit() and batches:
        return end.step / max(int(text.removesuffix("ep")) * batches, 1)
    return math.nan


def _of_the_file(run: Run) -> list[str]:
    history, found = run.history, []
    if history.damaged:
        where = ", ".join(map(str, history.damaged[:5])) + (" ..." if len(history.damaged) > 5 else "")
        found.append(f"truncated or damaged lines were left out: line {where}")
    if history.disordered:
        found.append(
            f"mixed: from line {history.disordered[0]} on, steps come out of order, so two processes wrote "
            "to this file; it is drawn but not compared"
        )
    if history.replaced:
        found.append(f"an older run of {history.replaced} steps in the same file was left out")
    if history.starts[:1] == [0] and (later := history.starts[1:]):
        fits = {step for step, _ in history.ends}
        how = [
            f"{'extended' if start in fits else 'resumed'} after step {start}"
            for start in dict.fromkeys(later)
        ]
        again = f"; {history.repeated} steps trained twice are shown once" if history.repeated else ""
        found.append(", ".join(how) + again)
    for name in (*_HELD, "run_name"):
        values = list(dict.fromkeys(str(s[name]) for s in history.settings if name in s))
        if len(values) > 1:
            found.append(f"{name} changed during the run: {' -> '.join(values)}")
    return found


def _of_the_run(run: Run) -> list[str]:
    steps, found = [line.at.step for line in run.history.steps], []
    if steps[0] > 1:
        found.append(f"begins at step {steps[0]}: what came before is in another file")
    for start in run.history.starts:
        last = max((step for step in steps if step <= start), default=start)
        if steps[0] <= start != last:
            found.append(f"steps {last + 1} to {start} are missing, though it went on after step {start}")
    if run.completed is False:
        planned = run.settings.get("max_duration")
        found.append(f"broken off or still running: it has trained {run.end.step} steps of {planned}")
    if run.settings.get("source"):
        found.append(
            "read from tensorboard: its time includes evaluation, and its planned end is not recorded"
        )
    elif run.completed is None:
        found.append("written by an older version: whether it came to its planned end is not recorded")
    if run.diverged:
        found.append("the eval loss is not finite at its end")
    elif not run.evals:
        found.append(f"no evaluation with {run.metric} is recorded")
    elif run.final_loss is None:
        found.append(f"its last evaluation is at step {run.evals[-1][0].step}, not at its end")
    if not run.rates:
        found.append("the learning rate is not recorded")
    if run.end.flops is None:
        found.append("FLOPs are not recorded")
    losses = [
        line for line in run.history.steps if not math.isfinite(line.metrics.get("loss/train/total", 0.0))
    ]
    if losses:
        found.append(f"the training loss is not finite at step {losses[0].at.step}")
    return found
