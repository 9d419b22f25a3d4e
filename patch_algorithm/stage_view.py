"""A run seen from another point of its clock: what schedulers and estimates ask for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

from composer.core import State, Time, Timestamp, TimeUnit

from patch_algorithm.algorithm import PatchLevel
from patch_algorithm.clock import dataloader_len
from patch_algorithm.stages import StageClock, in_batches

__all__ = ["after_this_step", "clock_at", "coming_stages", "find_patch_level", "state_at"]


class _StateAt:
    """A trainer's state with another clock; everything else is the trainer's."""

    def __init__(self, state: State, timestamp: Timestamp, max_duration: Time[int] | None) -> None:
        self._state = state
        self.timestamp = timestamp
        self.max_duration = max_duration

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_elapsed_duration(self) -> Time[float] | None:
        """What :meth:`composer.State.get_elapsed_duration` says of this clock."""
        return State.get_elapsed_duration(cast(State, self))


def state_at(state: State, timestamp: Timestamp, max_duration: Time[int] | None = None) -> State:
    """``state`` as it is read at ``timestamp``, in a run of ``max_duration`` (default: the trainer's)."""
    return cast(State, _StateAt(state, timestamp, max_duration or state.max_duration))


def find_patch_level(state: State) -> PatchLevel | None:
    """The run's :class:`.PatchLevel`, if it has one."""
    return next((a for a in state.algorithms if isinstance(a, PatchLevel)), None)


def clock_at(algorithm: PatchLevel, state: State, timestamp: Timestamp) -> StageClock:
    """The stage that a step starting at ``timestamp`` belongs to.

    Its ``started`` is only meaningful for stages that have started.
    """
    return algorithm.stage_clock(state_at(state, timestamp))


def after_this_step(state: State) -> Timestamp:
    """Where the clock will stand when the step that starts now has ended, by the mean size of a batch."""
    now, batches = state.timestamp, dataloader_len(state)
    steps = max(int(now.batch.value), 1)
    after = now.to_next_batch(
        samples=math.ceil(now.sample.value / steps), tokens=math.ceil(now.token.value / steps)
    )
    # Composer counts an epoch only once its last batch's events are over.
    if batches is not None and int(after.batch_in_epoch.value) >= batches:
        return after.to_next_epoch()
    return after


def coming_stages(algorithm: PatchLevel, state: State) -> list[StageClock]:
    """The present stage and those to come, as far as their boundaries tell.

    Of a stage to come ``started`` is set on the counter of the boundary only; the others stay at the
    present.
    """
    batches = dataloader_len(state)
    stages = [algorithm.stage_clock(state)]
    now = state.timestamp
    while stages[-1].index + 1 < stages[-1].count:
        ends = stages[-1].ends
        now = _set(now, ends)
        if batches is not None:  # a later boundary may be in the other of the two units
            now = _set(now, in_batches(ends, batches))
        following = clock_at(algorithm, state, now)
        if following.index <= stages[-1].index:
            break
        stages.append(replace(following, started=now))
    return stages


def _set(timestamp: Timestamp, time: Time[int]) -> Timestamp:
    def value(unit: TimeUnit) -> int:
        present = int(timestamp.get(unit).value)
        return max(int(time.value), present) if time.unit == unit else present

    return timestamp.copy(
        epoch=value(TimeUnit.EPOCH),
        batch=value(TimeUnit.BATCH),
        sample=value(TimeUnit.SAMPLE),
        token=value(TimeUnit.TOKEN),
    )
