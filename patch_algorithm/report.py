"""A run's stages in plain numbers: a line of progress, a summary at the end, and what may fail it.

:class:`StageReport` listens to the trainer; the numbers and the text are made by pure functions.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from composer.callbacks import CheckpointSaver
from composer.core import Callback, Event, State, Time, Timestamp, TimeUnit
from composer.loggers import Logger
from composer.utils import dist, format_name_with_dist_and_time

__all__ = [
    "EvalRecord",
    "RunRecord",
    "StageRecord",
    "StageReport",
    "StageReportError",
    "loss_drop",
    "shortcomings",
    "summary",
]

_TRAIN_LOSS = "loss/train/total"
_EVAL_LOSS = "LanguageCrossEntropy"
_WIDTHS = (9, 18, 18, 14, 9)  # 999,999,999,999 raw tokens fit


class StageReportError(RuntimeError):
    """A finished run that did not learn what ``require_loss_drop`` asks for."""


@dataclass
class StageRecord:
    """What was measured in one stage, a value per step.

    Attributes:
        k: Raw tokens per position.
        losses: The trainer's loss of each step.
        seconds: Wall-clock time of each step, evaluation left out.
        tokens: Raw tokens of each step, on all ranks.
    """

    k: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``patch`` or ``token``."""
        return "patch" if self.k > 1 else "token"

    @property
    def positions(self) -> int:
        """Positions the model has computed in this stage."""
        return sum(self.tokens) // self.k

    @property
    def step_seconds(self) -> float:
        """The median time of a step; 0 before the first."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The median speed in raw tokens."""
        speeds = [n / s for n, s in zip(self.tokens, self.seconds, strict=True) if s > 0]
        return statistics.median(speeds) if speeds else 0.0


@dataclass
class EvalRecord:
    """A token-level evaluation: after how many batches, and its loss."""

    batch: int
    loss: float


@dataclass
class RunRecord:
    """The stages of a run in their order, and its evaluations. Holds primitives only."""

    stages: list[StageRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(len(stage.losses) for stage in self.stages)

    @property
    def switch(self) -> int | None:
        """The batch after which the patch stage ended; ``None`` if there was no such moment."""
        if len(self.stages) < 2 or self.stages[0].k == 1:
            return None
        return len(self.stages[0].losses)

    @property
    def compute_share(self) -> float:
        """Positions computed as a share of token-only training on the same raw tokens."""
        tokens = sum(sum(stage.tokens) for stage in self.stages)
        return sum(stage.positions for stage in self.stages) / tokens if tokens else 1.0

    def eval_at(self, batch: int | None) -> float | None:
        """The loss evaluated after ``batch``, if there was an evaluation."""
        return next((e.loss for e in reversed(self.evals) if e.batch == batch), None)

    def state_dict(self) -> dict[str, Any]:
        """The record in primitives."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RunRecord:
        """The record that :meth:`state_dict` was made of."""
        return cls(
            stages=[StageRecord(**stage) for stage in state["stages"]],
            evals=[EvalRecord(**evaluation) for evaluation in state["evals"]],
        )


def loss_drop(losses: Sequence[float]) -> tuple[float, float]:
    """The mean loss of the first and of the last tenth of the steps, at least one step each."""
    tenth = max(1, len(losses) // 10)
    return statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])


def shortcomings(record: RunRecord, required_drop: float) -> list[str]:
    """What keeps a finished run from having learnt something in every stage.

    Args:
        record: The finished run.
        required_drop: What the mean loss of the last tenth of a stage must at least be below that of
            its first tenth, in nats.

    Returns:
        A sentence for each shortcoming; none where all is well.
    """
    found = []
    for stage in record.stages:
        first, last = loss_drop(stage.losses)
        if not first - last >= required_drop:  # written so that NaN falls short, too
            found.append(
                f"The loss of the {stage.name} stage went from {first:.3f} (mean of its first tenth) to "
                f"{last:.3f} (last tenth); a drop of at least {required_drop} was required."
            )
    if record.switch is None:
        return found
    at_switch, at_end = record.eval_at(record.switch), record.eval_at(record.steps)
    for moment, loss, batch in (
        ("switch", at_switch, record.switch),
        ("end", at_end, record.steps),
    ):
        if loss is None:
            found.append(
                f"There was no evaluation at the {moment} (batch {batch}): let eval_interval divide it."
            )
    if at_switch is not None and at_end is not None and not at_end < at_switch:
        found.append(f"The eval loss at the end, {at_end:.3f}, is not below {at_switch:.3f} at the switch.")
    return found


def summary(record: RunRecord, places: Mapping[str, str], note: str | None = None) -> str:
    """The text that ends a run.

    Args:
        record: The finished run.
        places: Where what was saved lies, by its name.
        note: A last paragraph.
    """
    titles = ("stage", "steps", "raw tokens", "positions", "raw tokens/s", "steps/s")
    lines = ["", "Summary", f"  {_columns(titles)}   loss, first and last tenth"]
    lines += [f"  {_stage_line(stage)}" for stage in record.stages]
    lines.append(
        f"  compute: {record.compute_share:.2f} of token-only training on the same raw tokens "
        "(positions / raw tokens)"
    )
    if record.switch is not None:
        patch, token = record.stages[0], record.stages[1]
        if token.tokens_per_second:
            faster = patch.tokens_per_second / token.tokens_per_second
            lines.append(f"  speed: the patch stage took in raw tokens {faster:.1f} times as fast")
    if record.evals:
        lines.append(f"  eval loss (token level): {_eval_line(record)}")
    lines += [f"  {name}: {place}" for name, place in places.items()]
    if note:
        lines.append(f"  {note.strip()}")
    return "\n".join(lines)


def _stage_line(stage: StageRecord) -> str:
    first, last = loss_drop(stage.losses)
    per_second = 1 / stage.step_seconds if stage.step_seconds else 0.0
    cells = (
        stage.name,
        f"{len(stage.losses):,}",
        f"{sum(stage.tokens):,}",
        f"{stage.positions:,}",
        f"{stage.tokens_per_second:,.0f}",
        f"{per_second:.2f}",
    )
    return f"{_columns(cells)}   {first:.3f} -> {last:.3f}"


def _columns(cells: Sequence[str]) -> str:
    return f"{cells[0]:<7}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells[1:], _WIDTHS, strict=True)
    )


def _eval_line(record: RunRecord) -> str:
    parts = []
    if (loss := record.eval_at(record.switch)) is not None:
        parts.append(f"{loss:.3f} at the switch (batch {record.switch})")
    last = record.evals[-1]
    when = "at the end" if last.batch == record.steps else "at the last evaluation"
    parts.append(f"{last.loss:.3f} {when} (batch {last.batch})")
    return ", ".join(parts)


class _PatchLevel(Protocol):
    """What is read of the algorithm."""

    k: int
    in_patch_stage: bool
    switch_point: Time[int] | None


class StageReport(Callback):
    """Reports progress, speed, cost and losses by stage, and may fail a run that learns nothing.

    Prints a line every ``interval`` on the first rank and a summary when fit ends. Runs with
    ``patch_level`` and without it, where the run is one token stage. Its record is saved in
    checkpoints, so that a resumed run reports the whole.

    Args:
        interval (str, optional): How often a line of progress is printed. Default: ``'10ba'``.
        require_loss_drop (float, optional): Fails the run, when it has ended and all is saved, if the
            mean of the last tenth of a stage's losses is not at least this much below that of its
            first tenth, or if the eval loss at the end is not below that at the switch. Default: ``None``,
            nothing is required.
        note (str, optional): A last paragraph of the summary. Default: ``None``.

    Raises:
        ValueError: For an ``interval`` that is no Composer time in batches, and a
            ``require_loss_drop`` that is no finite number.
        StageReportError: When fit ends, if what ``require_loss_drop`` asks for was not reached.
    """

    def __init__(
        self,
        interval: str = "10ba",
        require_loss_drop: float | None = None,
        note: str | None = None,
    ) -> None:
        self.interval = _batches(interval)
        if require_loss_drop is not None and (
            isinstance(require_loss_drop, bool)
            or not isinstance(require_loss_drop, int | float)
            or not math.isfinite(require_loss_drop)
        ):
            raise ValueError(f"stage_report: require_loss_drop={require_loss_drop!r} is no finite number.")
        self.require_loss_drop = require_loss_drop
        self.note = note
        self.record = RunRecord()
        self._k_of_step = 1
        self._last_eval_due = False

    def state_dict(self) -> dict[str, Any]:
        """The record, in primitives."""
        return self.record.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the record of the run that is resumed."""
        self.record = RunRecord.from_state_dict(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Notes the stage of the step: at its end the algorithm may have switched already."""
        algorithm = _find_patch_level(state)
        in_patches = algorithm is not None and algorithm.in_patch_stage
        self._k_of_step = algorithm.k if algorithm is not None and in_patches else 1

    def batch_end(self, state: State, logger: Logger) -> None:
        """Records the step, and prints a line where one is due."""
        stages = self.record.stages
        if not stages or stages[-1].k != self._k_of_step:
            stages.append(StageRecord(k=self._k_of_step))
        stages[-1].losses.append(float(state.total_loss_dict[_TRAIN_LOSS]))
        stages[-1].seconds.append(state.timestamp.batch_wct.total_seconds())
        stages[-1].tokens.append(_raw_tokens(state.timestamp) - _raw_tokens(state.previous_timestamp))
        batch = int(state.timestamp.batch.value)
        if batch % self.interval == 0 or batch == 1:
            self._say(self._progress_line(state))

    def eval_start(self, state: State, logger: Logger) -> None:
        """Says why no step is taken."""
        self._say(f"[batch {int(state.timestamp.batch.value)}] evaluating ({state.dataloader_label}) ...")

    def eval_end(self, state: State, logger: Logger) -> None:
        """Records the first evaluator that measures a language model's loss."""
        batch = int(state.timestamp.batch.value)
        label = state.dataloader_label
        if label is None or _EVAL_LOSS not in state.eval_metrics.get(label, {}):
            return
        if self.record.eval_at(batch) is None:
            loss = float(state.eval_metric_values[_EVAL_LOSS])
            self.record.evals.append(EvalRecord(batch, loss))
            self._say(f"[batch {batch}] eval loss (token level) {loss:.3f}")

    def fit_end(self, state: State, logger: Logger) -> None:
        """Ends the report, or leaves that to an evaluation that is still to come."""
        self._last_eval_due = any(
            evaluator.eval_interval(state, Event.FIT_END)
            for evaluator in state.evaluators
            if callable(evaluator.eval_interval)
        )
        if not self._last_eval_due:
            self._finish(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Ends the report after the evaluation that Composer runs when fit has ended."""
        if self._last_eval_due:
            self._last_eval_due = False
            self._finish(state)

    def _finish(self, state: State) -> None:
        if not self.record.stages:
            return
        self._say(summary(self.record, _places(state), self.note))
        if self.require_loss_drop is None:
            return
        if found := shortcomings(self.record, self.require_loss_drop):
            raise StageReportError("This run did not learn what was required. " + " ".join(found))

    def _progress_line(self, state: State) -> str:
        stage, steps = self.record.stages[-1], int(state.timestamp.batch.value)
        recent = slice(-self.interval, None)
        seconds = sum(stage.seconds[recent])
        speed = sum(stage.tokens[recent]) / seconds if seconds > 0 else 0.0
        total = _total_batches(state, stage)
        line = f"[{stage.name} stage, batch {steps}/{'?' if total is None else total}] "
        line += f"loss {stage.losses[-1]:.3f}, {speed:,.0f} raw tokens/s"
        if total is not None and steps < total:
            left = _seconds_left(self.record, total, _switch_batch(state, stage))
            line += f", about {_clock(left)} left"
        return line

    def _say(self, text: str) -> None:
        # Not through logging, which llm-foundry leaves at WARNING for everybody else.
        if dist.get_global_rank() == 0:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


def _find_patch_level(state: State) -> _PatchLevel | None:
    # By what is read of it: a subclass or another stage algorithm does as well.
    return next((a for a in state.algorithms if hasattr(a, "in_patch_stage")), None)  # pyright: ignore[reportReturnType]


def _seconds_left(record: RunRecord, total: int, switch: int | None) -> float:
    """Steps left in each stage by their median time; a stage to come is scaled by positions."""
    stage, done = record.stages[-1], record.steps
    if stage.k == 1 or switch is None:
        return (total - done) * stage.step_seconds
    patch_steps = max(0, min(switch, total) - done)
    token_steps = max(0, total - max(switch, done))
    return (patch_steps + token_steps * stage.k) * stage.step_seconds


def _total_batches(state: State, stage: StageRecord) -> int | None:
    return None if state.max_duration is None else _in_batches(state.max_duration, state, stage)


def _switch_batch(state: State, stage: StageRecord) -> int | None:
    algorithm = _find_patch_level(state)
    if algorithm is None or algorithm.switch_point is None:
        return None
    return _in_batches(algorithm.switch_point, state, stage)


def _in_batches(time: Time[Any], state: State, stage: StageRecord) -> int | None:
    """A time of the run's clock as a number of batches, for the estimate of what is left."""
    now = state.timestamp
    if time.unit == TimeUnit.BATCH:
        return int(time.value)
    if time.unit == TimeUnit.EPOCH:
        return None if state.dataloader_len is None else int(time.value * state.dataloader_len.value)
    if time.unit in (TimeUnit.TOKEN, TimeUnit.SAMPLE) and now.get(time.unit).value > 0:
        return math.ceil(time.value * now.batch.value / now.get(time.unit).value)
    return None


def _places(state: State) -> dict[str, str]:
    places = {}
    for callback in state.callbacks:
        if isinstance(callback, CheckpointSaver) and callback.saved_checkpoints:
            places["checkpoint"] = callback.saved_checkpoints[-1]
        # llm-foundry's HuggingFaceCheckpointer, known by its attributes: this file needs Composer only.
        elif hasattr(callback, "huggingface_folder_name_fstr"):
            folder = os.path.join(callback.save_dir_format_str, callback.huggingface_folder_name_fstr)  # pyright: ignore[reportAttributeAccessIssue]
            place = format_name_with_dist_and_time(folder, state.run_name, state.timestamp)
            if os.path.isdir(place):
                places["Hugging Face export"] = place
    return places


def _raw_tokens(timestamp: Timestamp | None) -> int:
    # A loader whose DataSpec counts no tokens still counts samples.
    return 0 if timestamp is None else int(timestamp.token.value or timestamp.sample.value)


def _batches(interval: object) -> int:
    try:
        time = Time.from_input(interval, TimeUnit.BATCH)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"stage_report: interval={interval!r} is no time such as '10ba'.") from error
    if time.unit != TimeUnit.BATCH or time.value < 1:
        raise ValueError(f"stage_report: interval={interval!r} must be at least one batch, as '10ba'.")
    return int(time.value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
