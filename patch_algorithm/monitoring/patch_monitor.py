"""Speed, cost and time left of a run whose stages differ in all three."""

from __future__ import annotations

import mmap
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from composer.callbacks.speed_monitor import get_gpu_flops_available
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from patch_algorithm.common.announce import announce
from patch_algorithm.model_access.flops import FlopCounter, flop_counter
from patch_algorithm.model_access.reading import unwrap
from patch_algorithm.monitoring.stage_costs import Cost, StageMeter, compute_share, speedup, table
from patch_algorithm.stages.forecast import present_stage, tokens_left
from patch_algorithm.stages.plan import StageClock
from patch_algorithm.stages.trainer_clock import raw_tokens_of_last_step

__all__ = ["PatchMonitor"]


class PatchMonitor(Callback):
    """Logs what a run in stages takes in, computes, costs, and how long it will still take.

    Composer's own monitors extrapolate the present speed, which changes at the switch. This one knows the
    stages: it counts positions beside raw tokens, and estimates a stage to come from the seconds that a
    position takes now. It needs no configuration, and in a run without ``patch_level`` it is an ordinary
    monitor of one stage. Evaluation is left out of all speeds. What it has counted is saved in checkpoints.

    Every step logs, for all ranks together, ``patch_monitor/`` ``raw_tokens_per_sec``, ``positions_per_sec``,
    ``flops_per_sec``, ``mfu`` (on devices that Composer knows), ``flops``, ``compute_share``,
    ``compute_share_at_end``, ``seconds_left`` and ``peak_memory_gb``; the end of fit ``patch_speedup`` and a
    table.

    On a GPU the peak of allocated memory is set back at the start of each stage.

    Args:
        window (int, optional): Steps that the logged speeds are taken over; it starts anew with each stage.
            Default: ``20``.
        flops_available (float, optional): FLOPs a second that one device can do, for ``mfu``.
            Default: ``None``, what Composer knows of the device.

    Raises:
        ValueError: For a ``window`` below 1 and ``flops_available`` that is not positive.
    """

    def __init__(self, window: int = 20, flops_available: float | None = None) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"patch_monitor: window={window!r} is not a whole number of at least 1.")
        if flops_available is not None and (
            isinstance(flops_available, bool)
            or not isinstance(flops_available, (int, float))
            or not flops_available > 0
        ):
            raise ValueError(f"patch_monitor: flops_available={flops_available!r} is not a positive number.")
        self.window = window
        self.flops_available = flops_available
        self._forget_run()

    def _forget_run(self) -> None:
        self.stages: list[StageMeter] = []
        self._eval_seconds = 0.0
        self._recent: deque[Cost] = deque(maxlen=self.window)
        self._steps_since_start = 0
        self._device_flops = 0.0
        self._count_flops: FlopCounter | None = None
        self._batch = Cost()

    def state_dict(self) -> dict[str, Any]:
        """The sums, in primitives."""
        return {"stages": [s.state_dict() for s in self.stages], "eval_seconds": self._eval_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the sums of the run that is resumed."""
        self.stages = [StageMeter.from_state_dict(stage) for stage in state["stages"]]
        self._eval_seconds = state["eval_seconds"]

    def init(self, state: State, logger: Logger) -> None:
        """Counts the model's parameters, before they are sharded."""
        self._forget_run()  # of another trainer
        self._count_flops = flop_counter(unwrap(state.model))
        self._device_flops = float(self.flops_available or get_gpu_flops_available(state))

    def fit_start(self, state: State, logger: Logger) -> None:
        """Begins to measure anew; what was counted stays."""
        self._steps_since_start = 0

    def batch_start(self, state: State, logger: Logger) -> None:
        """Notes the step's stage and size: when it ends, the algorithm may have switched already."""
        clock = present_stage(state)
        meter = self.stages[-1] if self.stages else None
        if meter is None or (meter.index, meter.k) != (clock.index, clock.k):
            self.stages.append(StageMeter(clock.index, clock.k))
            self._steps_since_start = 0
        if self._steps_since_start == 0 and _on_gpu(state):
            torch.cuda.reset_peak_memory_stats()
        if self._steps_since_start < 2:  # a first step says nothing of those to come
            self._recent.clear()
        flops = self._count_flops(state.batch) if self._count_flops is not None else 0.0
        self._batch = Cost(positions=_positions(state.batch), flops=flops)

    def before_backward(self, state: State, logger: Logger) -> None:
        """Looks at the memory where it is fullest; a GPU keeps the peak itself."""
        if not _on_gpu(state):
            self._note_memory(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Counts the step and logs."""
        meter = self.stages[-1]
        step = self._step(state, meter)
        meter.add(step, first=self._steps_since_start == 0)
        self._steps_since_start += 1
        self._recent.append(step)
        self._note_memory(state)
        # The trainer logs a step's loss before it advances its clock: the two belong on one line.
        logger.log_metrics(self._metrics(state), step=int(state.timestamp.batch.value) - 1)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Adds up the time that evaluation takes."""
        if state.timestamp.batch > 0:  # one before the first step does not come again
            self._eval_seconds += state.eval_timestamp.total_wct.total_seconds()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Logs the measured speed-up, and says what was measured in a table."""
        if not self.stages:
            return
        self._share_peaks(state)
        if (faster := speedup(self.stages)) is not None:
            logger.log_metrics({"patch_monitor/patch_speedup": faster})
        available = self._device_flops * dist.get_world_size()
        announce(table(self.stages, available, self._eval_seconds))

    def _step(self, state: State, meter: StageMeter) -> Cost:
        tokens = raw_tokens_of_last_step(state)
        positions, flops = self._batch.positions, self._batch.flops
        if dist.get_world_size() > 1:
            both = state.device.tensor_to_device(torch.tensor([positions, flops], dtype=torch.float64))
            dist.all_reduce(both, reduce_operation="SUM")
            positions, flops = both.tolist()
        return Cost(
            steps=1,
            seconds=state.timestamp.batch_wct.total_seconds(),
            tokens=tokens,
            positions=positions or tokens / meter.k,
            flops=flops,
        )

    def _metrics(self, state: State) -> dict[str, float]:
        recent = sum(self._recent, Cost())
        flops = recent.per_second(recent.flops)
        metrics = {
            "patch_monitor/raw_tokens_per_sec": recent.per_second(recent.tokens),
            "patch_monitor/positions_per_sec": recent.per_second(recent.positions),
            "patch_monitor/compute_share": compute_share(self.stages),
            "patch_monitor/peak_memory_gb": self.stages[-1].peak_memory / 1e9,
        }
        if flops > 0:
            metrics["patch_monitor/flops_per_sec"] = flops
            metrics["patch_monitor/flops"] = sum(stage.total.flops for stage in self.stages)
        if flops > 0 and self._device_flops > 0:
            metrics["patch_monitor/mfu"] = flops / (self._device_flops * dist.get_world_size())
        left = tokens_left(state)
        if left is not None:
            shares = [(clock.k, tokens) for clock, tokens in left]
            metrics["patch_monitor/compute_share_at_end"] = compute_share(self.stages, shares)
            metrics["patch_monitor/seconds_left"] = self._seconds_left(left)
        return metrics

    def _seconds_left(self, left: list[tuple[StageClock, float]]) -> float:
        """Of training, by the present speed; of evaluation, by its share of the run so far."""
        recent, k = sum(self._recent, Cost()), self.stages[-1].k
        seconds = sum(tokens * recent.seconds / max(recent.tokens, 1) * k / clock.k for clock, tokens in left)
        done = sum(stage.total.tokens for stage in self.stages)
        return seconds + self._eval_seconds * sum(tokens for _, tokens in left) / max(done, 1)

    def _note_memory(self, state: State) -> None:
        used = torch.cuda.max_memory_allocated() if _on_gpu(state) else _resident_memory()
        self.stages[-1].peak_memory = max(self.stages[-1].peak_memory, used)

    def _share_peaks(self, state: State) -> None:
        if dist.get_world_size() == 1:
            return
        peaks = torch.tensor([stage.peak_memory for stage in self.stages], dtype=torch.int64)
        peaks = state.device.tensor_to_device(peaks)
        dist.all_reduce(peaks, reduce_operation="MAX")
        for stage, peak in zip(self.stages, peaks.tolist(), strict=True):
            stage.peak_memory = peak


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
