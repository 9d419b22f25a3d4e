"""What a run's stages will be at a later point of the trainer's clock, for schedulers and estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from composer.core import State, Time, Timestamp, TimeUnit

from patch_algorithm.stages.boundaries import in_batches
from patch_algorithm.stages.plan import StageClock
from patch_algorithm.stages.trainer_clock import dataloader_len, ends_epoch, max_duration, raw_tokens

__all__ = [
    "StagedAlgorithm",
    "after_this_step",
    "at_end_of_epoch",
    "at_end_of_run",
    "clock_at",
    "coming_stages",
    "epochs_in_batches",
    "find_patch_level",
    "present_stage",
    "state_at",
    "tokens_left",
    "total_batches",
    "trainers_state",
]


class StagedAlgorithm(Protocol):
    """What is read of an algorithm that divides a run into stages; :class:`.PatchLevel` is one."""

    def stage_clock(self, state: State) -> StageClock:
        """The stage that a step at the trainer's present clock belongs to."""
        ...


class _StateAt:
    """A trainer's state with another clock; everything else is the trainer's."""

    def __init__(
        self,
        state: State,
        timestamp: Timestamp,
        max_duration: Time[int] | None,
        previous: Timestamp | None = None,
    ) -> None:
        self.of = trainers_state(state)
        self.timestamp = timestamp
        self.max_duration = max_duration
        self.previous_timestamp = previous or self.of.previous_timestamp

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def get_elapsed_duration(self) -> Time[float] | None:
        """What :meth:`composer.State.get_elapsed_duration` says of this clock."""
        return State.get_elapsed_duration(cast(State, self))


def state_at(state: State, timestamp: Timestamp, max_duration: Time[int] | None = None) -> State:
    """``state`` as it is read at ``timestamp``, in a run of ``max_duration`` (default: the trainer's)."""
    return cast(State, _StateAt(state, timestamp, max_duration or state.max_duration))


def trainers_state(state: State) -> State:
    """The trainer's own state behind one of :func:`state_at`."""
    return state.of if isinstance(state, _StateAt) else state


def at_end_of_run(state: State) -> State:
    """``state`` as it is read when the run has ended."""
    end = max_duration(state)
    return _with_previous(state, _set(state.timestamp, end))


def at_end_of_epoch(state: State) -> State | None:
    """``state`` as it is read when the epoch has ended, if the present step is its last."""
    if not ends_epoch(state, state.timestamp):
        return None
    return _with_previous(state, state.timestamp.to_next_epoch())


def _with_previous(state: State, timestamp: Timestamp) -> State:
    return cast(State, _StateAt(state, timestamp, state.max_duration, state.timestamp))


def find_patch_level(state: State) -> StagedAlgorithm | None:
    """The run's :class:`.PatchLevel`, if it has one."""
    # By what is read of it: importing the algorithm from here would turn the house upside down.
    found = (algorithm for algorithm in state.algorithms if hasattr(algorithm, "stage_clock"))
    return cast("StagedAlgorithm | None", next(found, None))


def clock_at(algorithm: StagedAlgorithm, state: State, timestamp: Timestamp) -> StageClock:
    """The stage that a step starting at ``timestamp`` belongs to.

    Its ``started`` is only meaningful for stages that have started.
    """
    return algorithm.stage_clock(state_at(state, timestamp))


def after_this_step(state: State) -> Timestamp:
    """Where the clock will stand when the step that starts now has ended, by the mean size of a batch."""
    now, clock = state.timestamp, present_stage(state)
    taken, takes = max(_loader_batches(clock, now), 1), clock.loader_batches_per_step
    after = now.to_next_batch(
        samples=math.ceil(now.sample.value * takes / taken), tokens=math.ceil(now.token.value * takes / taken)
    )
    # Composer counts an epoch only once its last batch's events are over.
    return after.to_next_epoch() if ends_epoch(state, after) else after


def coming_stages(algorithm: StagedAlgorithm, state: State) -> list[StageClock]:
    """The present stage and those to come, as far as their boundaries are known.

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


def tokens_left(state: State) -> list[tuple[StageClock, float]] | None:
    """The raw tokens that the present stage and each stage to come will still take.

    Returns:
        ``None`` before the first step, and if the end of a stage cannot be converted to batches.
    """
    algorithm = find_patch_level(state)
    stages = [present_stage(state)] if algorithm is None else coming_stages(algorithm, state)
    ends = _loader_batches_at_ends(stages, state)
    if ends is None:
        return None
    before = _loader_batches(stages[0], state.timestamp)
    size = raw_tokens(state.timestamp) / before
    left = []
    for stage, end in zip(stages, ends, strict=True):
        left.append((stage, max(end - before, 0.0) * size))
        before = max(end, before)
    return left


def total_batches(state: State) -> int | None:
    """The batches of the whole run, if they stay as large as they have been.

    Returns:
        ``None`` before the first step, and if the end of the run cannot be converted to batches.
    """
    end, batches = max_duration(state), dataloader_len(state)
    if batches is not None:
        end = in_batches(end, batches)
    passed = state.timestamp.get(end.unit).value
    if passed <= 0:
        return None
    algorithm = find_patch_level(state)
    stages = [] if algorithm is None else coming_stages(algorithm, state)
    if end.unit != TimeUnit.BATCH and any(stage.loader_batches_per_step > 1 for stage in stages):
        return _total_steps(stages, state)
    # Whole numbers throughout: a quotient of floats could come out a hair above one, and be rounded up.
    return int(-(-end.value * state.timestamp.batch.value // passed))


def _loader_batches(clock: StageClock, now: Timestamp) -> int:
    """Batches of the data loader that the run has taken; one per step by default."""
    return int(now.batch.value) if clock.loader_batches is None else clock.loader_batches


def _loader_batches_at_ends(stages: Sequence[StageClock], state: State) -> list[float] | None:
    """The data loader's batches that will have been taken when each stage ends, if they stay of one size.

    Returns:
        ``None`` before the first step, and if an end cannot be converted to batches.
    """
    now, per_epoch = state.timestamp, dataloader_len(state)
    taken, steps = float(_loader_batches(stages[0], now)), float(now.batch.value)
    if not taken:
        return None
    size = {unit: now.get(unit).value / taken for unit in (TimeUnit.SAMPLE, TimeUnit.TOKEN)}
    found = []
    for stage in stages:
        end = stage.ends if per_epoch is None else in_batches(stage.ends, per_epoch)
        takes = stage.loader_batches_per_step
        if end.unit == TimeUnit.BATCH:
            at_end = taken + max(end.value - steps, 0) * takes
        elif size.get(end.unit):
            at_end = max(end.value / size[end.unit], taken)
        else:
            return None
        steps, taken = steps + (at_end - taken) / takes, at_end
        found.append(taken)
    return found


def _total_steps(stages: Sequence[StageClock], state: State) -> int | None:
    """The steps of a run whose stages take different numbers of the data loader's batches a step."""
    ends = _loader_batches_at_ends(stages, state)
    if ends is None:
        return None
    steps, taken = int(state.timestamp.batch.value), float(_loader_batches(stages[0], state.timestamp))
    for stage, end in zip(stages, ends, strict=True):
        more = math.ceil((end - taken) / stage.loader_batches_per_step - 1e-9)
        steps, taken = steps + more, max(taken + more * stage.loader_batches_per_step, end)
    return steps


def present_stage(state: State) -> StageClock:
    """The run's present stage; a run without ``patch_level`` is one token stage."""
    algorithm = find_patch_level(state)
    if algorithm is not None:
        return algorithm.stage_clock(state)
    return StageClock(index=0, count=1, k=1, started=Timestamp(), ends=max_duration(state))


def epochs_in_batches(time: Time[Any], state: State) -> Time[Any]:
    """``time`` with epochs turned into batches; other units stay.

    Raises:
        ValueError: For epochs, if the data loader does not know its length.
    """
    batches = dataloader_len(state)
    if time.unit != TimeUnit.EPOCH:
        return time
    if batches is None:
        raise ValueError(
            f"{time.to_timestring()!r} is in epochs, and the data loader does not know its length. Give "
            "times in batches, samples or tokens ('ba', 'sp' or 'tok')."
        )
    return in_batches(time, batches)
