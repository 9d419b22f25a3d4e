"""Reports a run's stages: lines of progress, a summary at the end, and checks that can fail the run."""

from __future__ import annotations

import os
import sys

from composer.callbacks import CheckpointSaver
from composer.core import Callback, Event, State, Time, TimeUnit
from composer.loggers import Logger
from composer.utils import dist, format_name_with_dist_and_time

from patch_algorithm.common.arguments import a_number
from patch_algorithm.common.tables import duration
from patch_algorithm.monitoring.learning_check import shortcomings
from patch_algorithm.monitoring.run_summary import summary
from patch_algorithm.monitoring.stage_costs import Window
from patch_algorithm.monitoring.stage_recorder import StageRecorder, eval_loss
from patch_algorithm.stages.forecast import total_batches

__all__ = ["StageReport", "StageReportError"]


class StageReportError(RuntimeError):
    """A finished run that did not learn what ``require_loss_drop`` asks for."""


class StageReport(Callback):
    """Reports progress, speed, cost and losses by stage, and can fail a run that learns nothing.

    Prints a line every ``interval`` on the first rank and a summary when fit ends. Works with and without
    ``patch_level``; without it, the run is one token stage. The counts are saved in checkpoints, so that a
    resumed run reports the whole.

    Args:
        interval (str, optional): How often a line of progress is printed. Default: ``'10ba'``.
        require_loss_drop (float, optional): The loss drop that each stage must reach, from the mean of its
            first tenth of steps to the mean of its last tenth. It is checked when the run has ended and
            everything is saved. The eval loss at the end must also be below that at the switch; otherwise
            the run fails. Default: ``None``, nothing is required.
        note (str, optional): A last paragraph of the summary. Default: ``None``.

    Raises:
        ValueError: If ``interval`` is not a Composer time in batches, or ``require_loss_drop`` is not a
            finite number.
        StageReportError: When fit ends, if what ``require_loss_drop`` asks for was not reached.
    """

    def __init__(
        self,
        interval: str = "10ba",
        require_loss_drop: float | None = None,
        note: str | None = None,
    ) -> None:
        self.interval = _batches(interval)
        if require_loss_drop is not None:
            require_loss_drop = a_number("stage_report: require_loss_drop", require_loss_drop)
        self.require_loss_drop = require_loss_drop
        self.note = note
        self._last_eval_due = False

    def init(self, state: State, logger: Logger) -> None:
        """Finds the trainer's recorder, before the model is sharded."""
        self._recorder = StageRecorder.of(state)
        self._recent = Window(self.interval)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Prints a line where one is due."""
        self._recent.add(self._recorder.step, self._recorder.steps_since_start)
        batch = int(state.timestamp.batch.value)
        if batch % self.interval == 0 or batch == 1:
            self._say(self._progress_line(state))

    def eval_start(self, state: State, logger: Logger) -> None:
        """Says why there is no step at the moment."""
        self._say(f"[batch {int(state.timestamp.batch.value)}] evaluating ({state.dataloader_label}) ...")

    def eval_end(self, state: State, logger: Logger) -> None:
        """Prints the loss of an evaluation."""
        if (loss := eval_loss(state)) is not None:
            self._say(f"[batch {int(state.timestamp.batch.value)}] eval loss (token level) {loss:.3f}")

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
        record = self._recorder.record
        if not record.stages:
            return
        self._say(summary(record, _places(state), self.note))
        if self.require_loss_drop is None:
            return
        if found := shortcomings(record, self.require_loss_drop):
            raise StageReportError("This run did not learn what was required. " + " ".join(found))

    def _progress_line(self, state: State) -> str:
        stage, recent = self._recorder.record.stages[-1], self._recent.total
        batch, total = int(state.timestamp.batch.value), total_batches(state)
        line = f"[{'patch' if stage.in_patches else 'token'} stage, batch {batch}/{total or '?'}] "
        line += f"loss {stage.losses.last:.3f}, {recent.per_second(recent.tokens):,.0f} raw tokens/s"
        left = self._recorder.seconds_left(state, recent)
        return line if not left else f"{line}, about {duration(left)} left"

    def _say(self, text: str) -> None:
        # Not through logging, which llm-foundry leaves at WARNING for everybody else.
        if dist.get_global_rank() == 0:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


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
        raise ValueError(f"stage_report: interval={interval!r} is not a time such as '10ba'.") from error
    if time.unit != TimeUnit.BATCH or time.value < 1:
        raise ValueError(f"stage_report: interval={interval!r} must be at least one batch, as '10ba'.")
    return int(time.value)
