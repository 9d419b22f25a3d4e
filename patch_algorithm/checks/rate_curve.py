"""The learning rate of a run before it runs: its own scheduler, asked at every part of its clock.

Rates are multipliers of the optimizer's ``lr``, as Composer's schedulers give them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from composer.core import Time, Timestamp, TimeUnit

from patch_algorithm.stages.plan import StageClock, StagePlan

__all__ = ["RateCurve", "RunClock", "multipliers", "rate_curve"]

_POINTS = 128  # of each stage
_ABOUT = 0.98


@dataclass(frozen=True)
class RunClock:
    """The clock of a run, by which a number of steps is a time on every counter.

    Attributes:
        plan: The stages.
        max_duration: As the trainer has it.
        samples_per_batch: Rows in a batch of the data loader; ``None`` if not known.
        tokens_per_batch: Raw tokens in one; ``None`` if not known.
        batches_per_epoch: Batches of the data loader in an epoch; ``None`` if not known.
    """

    plan: StagePlan
    max_duration: Time[Any]
    samples_per_batch: float | None = None
    tokens_per_batch: float | None = None
    batches_per_epoch: int | None = None

    def steps(self, time: Time[Any]) -> int | None:
        """The first step that starts at ``time`` or after it; ``None`` where that cannot be told."""
        if self.plan.constant_compute:
            return self._steps_of_unequal(time)
        per_step = {
            TimeUnit.BATCH: 1.0,
            TimeUnit.SAMPLE: self.samples_per_batch,
            TimeUnit.TOKEN: self.tokens_per_batch,
        }.get(time.unit)
        if time.unit == TimeUnit.EPOCH and self.batches_per_epoch is not None:
            return int(time.value) * self.batches_per_epoch
        return None if not per_step else math.ceil(time.value / per_step)

    def _steps_of_unequal(self, time: Time[Any]) -> int | None:
        """:meth:`steps`, where steps of the stages take different numbers of the data loader's batches."""
        step, taken = 0, 0
        for index in range(len(self.plan.stages) + 1):
            takes = self.plan.loader_batches_per_step(index)
            goal = self._reached(time, step, taken, takes)
            if goal is None or not self.plan.is_patch_stage(index):
                return goal
            end = self._reached(self.plan.stages[index].until, step, taken, takes)
            if end is None or goal <= end:
                return None if end is None else goal
            step, taken = end, taken + (end - step) * takes
        return None

    def _reached(self, time: Time[Any], step: int, taken: int, takes: int) -> int | None:
        """The step at which ``time`` is reached, from ``step`` on by ``takes`` batches each."""
        if time.unit == TimeUnit.BATCH:
            return max(int(time.value), step)
        sizes = {TimeUnit.SAMPLE: self.samples_per_batch, TimeUnit.TOKEN: self.tokens_per_batch}
        size = sizes.get(time.unit)
        return step + max(math.ceil((time.value / size - taken) / takes), 0) if size else None

    def loader_batches(self, step: int) -> int:
        """Batches of the data loader that the steps before ``step`` take."""
        if not self.plan.constant_compute:
            return step
        begun, taken = 0, 0
        for index, stage in enumerate(self.plan.stages):
            end = self.steps(stage.until)
            until = step if end is None else min(max(end, begun), step)
            taken += (until - begun) * self.plan.loader_batches_per_step(index)
            begun = until
        return taken + step - begun

    @property
    def raw_tokens(self) -> float | None:
        """Raw tokens of the whole run; ``None`` if not known."""
        known = self.end is not None and self.tokens_per_batch is not None
        return self.loader_batches(self.end or 0) * (self.tokens_per_batch or 0) if known else None

    @property
    def end(self) -> int | None:
        """Steps of the run."""
        return self.steps(self.max_duration)

    @property
    def switch(self) -> int | None:
        """The first step of the token stage; 0 for a run without patch stages."""
        return 0 if self.plan.switch is None else self.steps(self.plan.switch)

    def at(self, step: int) -> Timestamp:
        """The trainer's clock when a step starts. A counter that cannot be told counts steps."""
        per_epoch, taken = self.batches_per_epoch or 0, self.loader_batches(step)
        return Timestamp(
            epoch=taken // per_epoch if per_epoch else 0,
            batch=step,
            sample=round(taken * (self.samples_per_batch or 1)),
            token=round(taken * (self.tokens_per_batch or 1)),
            batch_in_epoch=taken % per_epoch if per_epoch else step,
        )


@dataclass(frozen=True)
class RateCurve:
    """What the learning rate does.

    Attributes:
        scheduler: What the scheduler is called.
        switch: The first step of the token stage; 0 for a run without patch stages.
        end: Steps of the run.
        start: The multiplier of the first step.
        peak: The largest.
        peak_at: The first step of about that.
        before_switch: Of the last patch step.
        at_switch: Of the first token step.
        token_peak: The largest of the token stage.
        last: At the end of the run.
        zero_from: The share of the run from which on it is zero; 1 where it is not before the end.
    """

    scheduler: str
    switch: int
    end: int
    start: float
    peak: float
    peak_at: int
    before_switch: float
    at_switch: float
    token_peak: float
    last: float
    zero_from: float


def rate_curve(
    scheduler: Callable[..., float], clock: RunClock, name: str, scale_schedule_ratio: float = 1.0
) -> RateCurve | None:
    """Asks a scheduler for its multipliers over the whole run.

    Args:
        scheduler: A Composer scheduler.
        clock: The run's clock.
        name: What to call the scheduler.
        scale_schedule_ratio: The trainer's.

    Returns:
        What the rate does; ``None`` where the run's stages or its length cannot be counted in steps.

    Raises:
        ValueError: If the scheduler refuses the run.
    """
    end, switch = clock.end, clock.switch
    if end is None or switch is None or end < 1:
        return None
    switch = min(switch, end)

    def rate(step: int) -> float:
        return _ask(scheduler, clock, step, scale_schedule_ratio)

    patch = {step: rate(step) for step in _spread(0, switch)}
    token = {step: rate(step) for step in _spread(switch, end)}
    every = patch | token
    peak = max(every.values())
    last_above = max((step for step, value in every.items() if value > 1e-6 * peak), default=0)
    return RateCurve(
        scheduler=name,
        switch=switch,
        end=end,
        start=every[0],
        peak=peak,
        peak_at=next(step for step, value in every.items() if value >= _ABOUT * peak),
        before_switch=rate(max(switch - 1, 0)),
        at_switch=token[switch],
        token_peak=max(token.values()),
        last=token[end],
        zero_from=1.0 if last_above >= end - end // _POINTS - 1 else last_above / end,
    )


def multipliers(
    scheduler: Callable[..., float], clock: RunClock, steps: Sequence[int], scale_schedule_ratio: float = 1.0
) -> list[float]:
    """What a scheduler multiplies the optimizer's ``lr`` by at the start of some steps.

    Raises:
        ValueError: If the scheduler refuses the run.
    """
    return [_ask(scheduler, clock, step, scale_schedule_ratio) for step in steps]


def _spread(first: int, last: int) -> list[int]:
    """Steps from ``first`` to ``last``, both among them."""
    count = min(_POINTS, last - first)
    return sorted({first, last} | {first + (last - first) * i // max(count, 1) for i in range(count)})


def _ask(scheduler: Callable[..., float], clock: RunClock, step: int, ratio: float) -> float:
    state = _StateAt(clock, step)
    try:
        if len(inspect.signature(scheduler).parameters) == 1:
            return float(scheduler(state))
        return float(scheduler(state, ratio))
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error


class _StateAt:
    """What schedulers read of a trainer's state, at the start of a step of a run that does not exist yet.

    A new one for every question: ``per_stage`` tells the first call for a state from later ones.
    """

    def __init__(self, clock: RunClock, step: int) -> None:
        self.timestamp = clock.at(step)
        self.previous_timestamp = clock.at(max(step - 1, 0))
        self.max_duration = clock.max_duration
        # Where steps take several batches, an epoch is no number of steps; a schedule in epochs is refused.
        joins = clock.plan.constant_compute and clock.plan.stages
        epoch = None if joins else clock.batches_per_epoch
        self.dataloader_len = None if epoch is None else Time(epoch, TimeUnit.BATCH)
        self.optimizers = [SimpleNamespace(param_groups=[{}])]
        self.algorithms = [_PlannedStages(clock)]

    def get_elapsed_duration(self) -> Time[float]:
        """The share of the run that has passed."""
        passed = self.timestamp.get(self.max_duration.unit).value / max(self.max_duration.value, 1)
        return Time(float(passed), TimeUnit.DURATION)


class _PlannedStages:
    """The stages of a run that does not exist yet, as :class:`.PatchLevel` tells them."""

    def __init__(self, clock: RunClock) -> None:
        self._clock = clock

    def stage_clock(self, state: Any) -> StageClock:
        """The stage that a step at the state's clock belongs to."""
        plan = self._clock.plan
        index = plan.index_at(state.timestamp)
        begins = self._clock.steps(plan.stages[index - 1].until) if index else 0
        return StageClock(
            index=index,
            count=len(plan.stages) + 1,
            k=plan.k_of(index),
            started=state.timestamp if begins is None else self._clock.at(begins),
            ends=plan.stages[index].until if plan.is_patch_stage(index) else self._clock.max_duration,
            tokens_per_position=plan.tokens_per_position(index),
            targets_per_position=plan.targets_per_position(index),
            loader_batches_per_step=plan.loader_batches_per_step(index),
            loader_batches=self._clock.loader_batches(int(state.timestamp.batch.value)),
        )
