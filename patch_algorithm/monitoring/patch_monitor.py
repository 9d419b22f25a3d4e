"""Speed, cost and time left of a run whose stages differ in all three."""

from __future__ import annotations

import json
from typing import Any

from composer.callbacks.speed_monitor import get_gpu_flops_available
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from patch_algorithm.common.announce import announce
from patch_algorithm.common.arguments import a_number, positive_int
from patch_algorithm.monitoring.run_summary import cost_table
from patch_algorithm.monitoring.stage_costs import Window
from patch_algorithm.monitoring.stage_recorder import StageRecorder
from patch_algorithm.stages.forecast import tokens_left

__all__ = ["PatchMonitor"]


class PatchMonitor(Callback):
    """Logs the throughput, compute, cost and time left of a run in stages.

    Composer's own monitors extrapolate the present speed, which changes at the switch. This one knows the
    stages: it counts positions as well as raw tokens, and estimates the time of a later stage from the
    present time per position. It needs no configuration. In a run without ``patch_level`` it is an ordinary
    monitor of one stage. All speeds exclude evaluation. The counts are saved in checkpoints.

    Every step logs, for all ranks together, ``patch_monitor/`` ``raw_tokens_per_sec``, ``positions_per_sec``,
    ``flops_per_sec``, ``mfu`` (on devices that Composer knows), ``flops``, ``compute_share_at_end``,
    ``seconds_left`` and ``peak_memory_gb``. The end of fit logs ``patch_speedup`` and prints a table.

    On a GPU the peak of allocated memory is reset at the start of each stage.

    Args:
        window (int, optional): Number of latest steps that the logged speeds are averaged over; it restarts
            with each stage. Default: ``20``.
        flops_available (float, optional): Peak FLOPs per second of one device, for ``mfu``.
            Default: ``None``, which is what Composer knows of the device.

    Raises:
        ValueError: If ``window`` is below 1 or ``flops_available`` is not positive.
    """

    def __init__(self, window: int = 20, flops_available: float | None = None) -> None:
        self.window = positive_int("patch_monitor: window", window)
        self.flops_available = (
            None
            if flops_available is None
            else a_number("patch_monitor: flops_available", flops_available, above=0)
        )

    def init(self, state: State, logger: Logger) -> None:
        """Finds the trainer's recorder, before the model is sharded."""
        self._recorder = StageRecorder.of(state)
        self._recent = Window(self.window)
        self._device_flops = float(self.flops_available or get_gpu_flops_available(state))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives the recorder the sums that version 0.1.0 has saved here."""
        if state:
            self._recorder.take(json.dumps(state, default=repr))

    def batch_end(self, state: State, logger: Logger) -> None:
        """Logs the step."""
        self._recent.add(self._recorder.step, self._recorder.steps_since_start)
        # The trainer logs a step's loss before it advances its clock: the two belong on one line.
        logger.log_metrics(self._metrics(state), step=int(state.timestamp.batch.value) - 1)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Logs the measured speed-up, and prints what was measured as a table."""
        record = self._recorder.record
        if not record.stages:
            return
        if record.speedup is not None:
            logger.log_metrics({"patch_monitor/patch_speedup": record.speedup})
        announce(cost_table(record, self._device_flops * dist.get_world_size()))

    def _metrics(self, state: State) -> dict[str, float]:
        record, recent = self._recorder.record, self._recent.total
        flops = recent.per_second(recent.flops)
        metrics = {
            "patch_monitor/raw_tokens_per_sec": recent.per_second(recent.tokens),
            "patch_monitor/positions_per_sec": recent.per_second(recent.positions),
            "patch_monitor/peak_memory_gb": record.stages[-1].peak_memory / 1e9,
        }
        if flops > 0:
            metrics["patch_monitor/flops_per_sec"] = flops
            if record.flops is not None:  # a part of a sum would pass for a smaller run
                metrics["patch_monitor/flops"] = record.flops
        if flops > 0 and self._device_flops > 0:
            metrics["patch_monitor/mfu"] = flops / (self._device_flops * dist.get_world_size())
        left = tokens_left(state)
        if left is not None:
            shares = [(clock.tokens_per_position, tokens) for clock, tokens in left]
            metrics["patch_monitor/compute_share_at_end"] = record.compute_share(shares)
        if (seconds := self._recorder.seconds_left(state, recent)) is not None:
            metrics["patch_monitor/seconds_left"] = seconds
        return metrics
