"""A run's stages as it goes: a line of progress, a summary at the end, and what may fail it."""

from __future__ import annotations

import math
import os
import sys
from typing import Any, Protocol

from composer.callbacks import CheckpointSaver
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist, format_name_with_dist_and_time

from patch_algorithm.monitoring.learning_check import shortcomings
from patch_algorithm.monitoring.run_summary import summary
from patch_algorithm.monitoring.stage_costs import EvalRecord, RunRecord, StageRecord
from patch_algorithm.stages.trainer_clock import raw_tokens_of_last_step

__all__ = ["StageReport", "StageReportError"]

_TRAIN_LOSS = "loss/train/total"


_EVAL_LOSS = "LanguageCrossEntropy"


class StageReportError(RuntimeError):
    """A finished run that did not learn what ``require_loss_drop`` asks for."""


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
        stages[-1].tokens.append(raw_tokens_of_last_step(state))
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
