"""The one record that a run keeps of its steps and evaluations, for all callbacks that report them."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from patch_algorithm.common.announce import announce
from patch_algorithm.common.step_sums import StepSums
from patch_algorithm.model_access.flops import FlopCounter, flop_counter
from patch_algorithm.model_access.reading import unwrap
from patch_algorithm.monitoring.moment import Moment
from patch_algorithm.monitoring.stage_costs import Cost, EvalRecord, RunRecord, StageRecord
from patch_algorithm.stages.forecast import find_patch_level, present_stage, tokens_left
from patch_algorithm.stages.trainer_clock import raw_tokens, raw_tokens_of_last_step

__all__ = ["Moment", "StageRecorder"]

_TRAIN_LOSS = "loss/train/total"
_SUMS = "stage_recorder"
_EVAL_LOSS = "LanguageCrossEntropy"


class StageRecorder(Callback):
    """Counts what each stage takes in, computes, costs and learns.

    It needs no configuration: ``patch_monitor``, ``stage_report`` and ``history`` add one to their trainer
    with :meth:`of` and read it. It is saved in checkpoints as one string of constant size.

    Args:
        state: The trainer's state, before the model is sharded.
    """

    def __init__(self, state: State) -> None:
        self.record = RunRecord()
        self.step = Cost()
        """The latest step."""
        self.steps_since_start = 0
        """Steps of the present stage since the run was started or resumed."""
        self._batch = Cost()
        self._count_flops: FlopCounter | None = flop_counter(unwrap(state.model))

    @classmethod
    def of(cls, state: State) -> StageRecorder:
        """The recorder of a trainer, which is added if there is none."""
        for callback in state.callbacks:
            if isinstance(callback, cls):
                return callback
        recorder = cls(state)
        state.callbacks.insert(0, recorder)  # a step is counted before anybody tells of it
        return recorder

    def state_dict(self) -> dict[str, Any]:
        """The record as one leaf: sharded checkpoints are asked for every leaf that a fresh run has."""
        return {"record": self.record.to_text()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the record of the run that is resumed."""
        self.take(str(state.get("record")))

    def take(self, text: str) -> None:
        """Loads a saved record as far as it can be read, and says so if a part cannot be."""
        try:
            self.record, same_version = RunRecord.from_text(text)
        except ValueError as error:
            announce(f"The checkpoint's record of costs and losses cannot be read and is ignored: {error}")
            return
        if not same_version:
            announce(
                "The checkpoint's record of costs and losses was written by another version of "
                "patch-algorithm. What this version understands of it is used."
            )

    def fit_start(self, state: State, logger: Logger) -> None:
        """Starts measuring again; what was counted stays."""
        self.steps_since_start = 0
        steps = int(state.timestamp.batch.value)
        if self.record.total.steps > steps:  # the clock was set back
            self.record = RunRecord()
        if self.record.total.steps < steps:
            self._ask_for_the_past(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Notes the step's stage and size: when it ends, the algorithm may have switched already."""
        clock, stages = present_stage(state), self.record.stages
        stage = StageRecord(clock.index, clock.k, clock.tokens_per_position, clock.in_patches)
        if not stages or stages[-1].key != stage.key:
            stages.append(stage)
            self.steps_since_start = 0
        if self.steps_since_start == 0 and _on_gpu(state):
            torch.cuda.reset_peak_memory_stats()
        flops = self._count_flops(state.batch) if self._count_flops is not None else 0.0
        self._batch = Cost(positions=_positions(state.batch), flops=flops)
        # Added up with what the algorithm reads of the step, so that both wait for the device once.
        StepSums.of(state).put(_SUMS, (self._batch.positions, flops))

    def before_backward(self, state: State, logger: Logger) -> None:
        """Looks at the memory where it is fullest; a GPU keeps the peak itself."""
        if not _on_gpu(state):
            self._note_memory(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Counts the step."""
        stage = self.record.stages[-1]
        self.step = self._counted(state)
        stage.add(self.step, first=self.steps_since_start == 0)
        self.steps_since_start += 1
        stage.last_step = int(state.timestamp.batch.value)
        losses: Mapping[str, Any] = getattr(state, "total_loss_dict", None) or {}
        if _TRAIN_LOSS in losses:
            stage.losses.add(float(losses[_TRAIN_LOSS]))
        self._note_memory(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Counts an evaluation; its loss, if no other of this round has measured a language model's."""
        if state.timestamp.batch == 0:  # one before the first step does not come again
            return
        self.record.eval_seconds += state.eval_timestamp.total_wct.total_seconds()
        if not self.record.stages or (loss := eval_loss(state)) is None:
            return
        stage, step = self.record.stages[-1], int(state.timestamp.batch.value)
        if stage.last_eval is None or stage.last_eval.step != step:
            stage.last_eval = EvalRecord(step, loss)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Takes the most memory that any rank has used."""
        if dist.get_world_size() == 1 or not self.record.stages:
            return
        peaks = torch.tensor([stage.peak_memory for stage in self.record.stages], dtype=torch.int64)
        peaks = state.device.tensor_to_device(peaks)
        dist.all_reduce(peaks, reduce_operation="MAX")
        for stage, peak in zip(self.record.stages, peaks.tolist(), strict=True):
            stage.peak_memory = peak

    def moment(self, state: State) -> Moment:
        """Where the run stands after its latest step."""
        total = self.record.total
        index, k = 0, 1
        if self.record.stages:
            index, k = self.record.stages[-1].index, self.record.stages[-1].k
        elif state.max_duration is not None:  # else the trainer only evaluates
            index, k = (clock := present_stage(state)).index, clock.k
        return Moment(
            stage=index,
            k=k,
            step=int(state.timestamp.batch.value),
            raw_tokens=raw_tokens(state.timestamp),
            positions=round(total.positions),
            flops=None if self._count_flops is None else self.record.flops,
            seconds=state.timestamp.total_wct.total_seconds(),
        )

    def seconds_left(self, state: State, recent: Cost) -> float | None:
        """Time left: of training by the present speed, of evaluation by its share of the run so far.

        Args:
            state: The trainer's.
            recent: Steps of the present stage.

        Returns:
            ``None`` if the end of a stage is not known.
        """
        left = tokens_left(state)
        if left is None or not self.record.stages:
            return None
        per_position = recent.seconds / max(recent.tokens, 1) * self.record.stages[-1].tokens_per_position
        seconds = sum(tokens * per_position / clock.tokens_per_position for clock, tokens in left)
        done = sum(stage.total.tokens for stage in self.record.stages)
        return seconds + self.record.eval_seconds * sum(tokens for _, tokens in left) / max(done, 1)

    def _ask_for_the_past(self, state: State) -> None:
        """Fills what the record lacks with what the algorithm has counted."""
        done = self.record.total
        steps, tokens = int(state.timestamp.batch.value), raw_tokens(state.timestamp)
        share = getattr(find_patch_level(state), "compute_share", 1.0)
        lacking = Cost(
            steps=steps - done.steps,
            tokens=tokens - done.tokens,
            positions=max(tokens * share - done.positions, 0.0),
        )
        self.record.before += lacking
        announce(
            f"The checkpoint has no record of {lacking.steps} of its {steps} steps. Their positions come "
            "from the algorithm's own count; their FLOPs, losses and speed are not known."
        )

    def _counted(self, state: State) -> Cost:
        tokens = raw_tokens_of_last_step(state)
        positions, flops = StepSums.of(state).take(_SUMS)
        return Cost(
            steps=1,
            seconds=state.timestamp.batch_wct.total_seconds(),
            tokens=tokens,
            positions=positions or tokens,  # a model without input_ids computes samples
            flops=flops,
        )

    def _note_memory(self, state: State) -> None:
        used = torch.cuda.max_memory_allocated() if _on_gpu(state) else _resident_memory()
        stage = self.record.stages[-1]
        stage.peak_memory = max(stage.peak_memory, used)


def eval_loss(state: State) -> float | None:
    """The loss of the evaluator that has just ended, if it measures a language model's."""
    label = state.dataloader_label
    if label is None or _EVAL_LOSS not in state.eval_metrics.get(label, {}):
        return None
    return float(state.eval_metric_values[_EVAL_LOSS])


def _positions(batch: Any) -> float:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return float(ids.shape[0] * ids.shape[1]) if isinstance(ids, torch.Tensor) and ids.dim() >= 2 else 0.0


def _on_gpu(state: State) -> bool:
    return state.device.name == "gpu"


def _resident_memory() -> int:
    """Bytes of this process in memory; where the system does not say, the most there have been."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
    except OSError:
        import resource  # not on Windows

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * mmap.PAGESIZE
