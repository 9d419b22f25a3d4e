"""A learning rate schedule that restarts in every stage."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from composer.core import State, Time, Timestamp
from composer.optim import ComposerScheduler

from patch_algorithm.stages.boundaries import in_batches
from patch_algorithm.stages.forecast import (
    StagedAlgorithm,
    after_this_step,
    at_end_of_epoch,
    clock_at,
    coming_stages,
    find_patch_level,
    state_at,
)
from patch_algorithm.stages.plan import StageClock
from patch_algorithm.stages.trainer_clock import dataloader_len, max_duration

__all__ = ["PerStageScheduler"]


class PerStageScheduler(ComposerScheduler):
    """Restarts a scheduler in every stage of :class:`.PatchLevel`.

    The inner scheduler sees a clock that starts at zero and a ``max_duration`` that is the stage's
    length, so its multipliers are those of a separate run for each stage. That is the recipe of Shao, Meng
    and Zhou (arXiv 2407.12665), where each stage has its own warm-up and its own cosine. The stages are
    the algorithm's.

    Times of the inner scheduler refer to its stage: ``0.1dur`` is a tenth of the stage. A stage in epochs
    is counted in batches. Composer's ``scale_schedule_ratio`` stretches the times as usual.

    Args:
        scheduler (ComposerScheduler | Mapping[str, Any], optional): The scheduler of every stage: a
            Composer scheduler, or the configuration of one that llm-foundry knows, with its ``name``.
            Default: ``None``.
        schedulers (Sequence[ComposerScheduler | Mapping[str, Any]], optional): Instead, one for each
            stage. Default: ``None``.

    Raises:
        ValueError: If not exactly one of the two is given, or a configuration cannot be built. When the
            trainer is built: if the run has no ``patch_level``, if the number of schedulers is not the
            number of stages, or if a scheduler refuses the length or unit of its stage.

    Example:
        .. code-block:: yaml

            scheduler:
              name: per_stage
              scheduler: {name: cosine_with_warmup, t_warmup: 2000ba, alpha_f: 0.0}
    """

    def __init__(
        self,
        scheduler: ComposerScheduler | Mapping[str, Any] | None = None,
        schedulers: Sequence[ComposerScheduler | Mapping[str, Any]] | None = None,
    ) -> None:
        if (scheduler is None) == (schedulers is None):
            raise ValueError(
                "per_stage: give either `scheduler`, which runs in every stage, or `schedulers`, one for "
                "each stage."
            )
        self._every = None if scheduler is None else _build(scheduler)
        if schedulers is not None and (isinstance(schedulers, (str, Mapping)) or not schedulers):
            raise ValueError(
                f"per_stage: schedulers={schedulers!r} is not a list with one scheduler for each stage."
            )
        self._each = [_build(entry) for entry in schedulers or ()]
        self._seen: weakref.ref[State] | None = None
        self._first_calls = 0
        self._checked: list[tuple[int, str]] = []

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The multiplier of the learning rate for the next step."""
        max_duration(state)  # raises, if there is none
        algorithm = find_patch_level(state)
        if algorithm is None:
            raise ValueError(
                "per_stage takes the stages from the patch_level algorithm, which this run does not have. "
                "Add it under `algorithms`, or use the inner scheduler without per_stage."
            )
        self._check_all_stages(algorithm, state, ssr)
        clock = algorithm.stage_clock(state)
        # The trainer steps schedulers before it advances its clock, so that each rate is one step old,
        # except the first of a run. The first of every stage is not to be the old stage's either. Where it
        # steps them once an epoch (step_schedulers_every_batch=False), the step has been counted.
        if not self._is_first_call(state) and at_end_of_epoch(state) is None:
            after = after_this_step(state)
            following = clock_at(algorithm, state, after)
            if following.index > clock.index:
                return self._multiplier(replace(following, started=after), after, state, ssr)
        return self._multiplier(clock, state.timestamp, state, ssr)

    def _is_first_call(self, state: State) -> bool:
        """Whether this call is for a run's first step; Composer makes all others at the end of a step.

        Each of them asks once for every parameter group, at the same clock.
        """
        if self._seen is None or self._seen() is not state:
            self._seen = weakref.ref(state)
            self._first_calls = sum(len(optimizer.param_groups) for optimizer in state.optimizers)
        self._first_calls -= 1
        return self._first_calls >= 0

    def _check_all_stages(self, algorithm: StagedAlgorithm, state: State, ssr: float) -> None:
        stages = coming_stages(algorithm, state)
        plan = [(stage.index, stage.ends.to_timestring()) for stage in stages]
        if plan == self._checked[-len(plan) :]:
            return
        if self._each and len(self._each) != stages[0].count:
            raise ValueError(
                f"per_stage: there are {len(self._each)} schedulers for {stages[0].count} stages. Give one "
                "for each stage, the token stage at the end included."
            )
        for stage in stages:
            try:
                self._multiplier(stage, stage.started, state, ssr)
            except (ValueError, RuntimeError) as error:
                raise ValueError(
                    f"per_stage: the scheduler of stage {stage.index + 1} of {stage.count} (k={stage.k}, "
                    f"until {stage.ends.to_timestring()}) refuses: {error}"
                ) from error
        self._checked = plan

    def _multiplier(self, clock: StageClock, now: Timestamp, state: State, ssr: float) -> float:
        scheduler = self._every or self._each[clock.index]
        inside = state_at(state, _since(clock.started, now), _length(clock, state))
        if len(inspect.signature(scheduler).parameters) > 1:
            return float(scheduler(inside, ssr))
        if ssr != 1.0:
            raise ValueError(f"{scheduler} does not support scale_schedule_ratio.")
        return float(scheduler(inside))


def _build(given: ComposerScheduler | Mapping[str, Any]) -> ComposerScheduler:
    if isinstance(given, PerStageScheduler) or (
        isinstance(given, Mapping) and given.get("name") == "per_stage"
    ):
        raise ValueError("per_stage cannot run inside per_stage.")
    if not isinstance(given, Mapping):
        if not callable(given):
            raise ValueError(
                f"per_stage: {given!r} is neither a Composer scheduler nor the configuration of one, such as "
                "{name: cosine_with_warmup, t_warmup: 2000ba}."
            )
        return given
    # Only configurations need llm-foundry, whose import takes its time.
    from llmfoundry.utils.builders import build_scheduler

    arguments = dict(given)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"per_stage: the configuration {dict(given)!r} names no scheduler (`name`).")
    try:
        return build_scheduler(name, arguments)
    except TypeError as error:
        raise ValueError(f"per_stage: {name} cannot be built from {arguments!r}: {error}") from error


def _since(start: Timestamp, now: Timestamp) -> Timestamp:
    """The clock of a stage; counts within an epoch belong to the data loader and stay."""
    return now.copy(
        epoch=max(now.epoch - start.epoch, Time.from_epoch(0)),
        batch=max(now.batch - start.batch, Time.from_batch(0)),
        sample=max(now.sample - start.sample, Time.from_sample(0)),
        token=max(now.token - start.token, Time.from_token(0)),
    )


def _length(clock: StageClock, state: State) -> Time[int]:
    """How long a stage is. In batches for epochs, of which a stage need not be a whole number."""
    batches = dataloader_len(state)
    ends = clock.ends if batches is None else in_batches(clock.ends, batches)
    return Time(max(int(ends.value) - int(clock.started.get(ends.unit).value), 1), ends.unit)
