"""Learning rates of a run in stages: a schedule afresh in every stage, and one over the whole run."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from composer.core import State, Time, Timestamp, TimeUnit
from composer.optim import ComposerScheduler

from patch_algorithm.algorithm import PatchLevel
from patch_algorithm.clock import dataloader_len, max_duration
from patch_algorithm.stage_view import (
    after_this_step,
    clock_at,
    coming_stages,
    find_patch_level,
    state_at,
)
from patch_algorithm.stages import StageClock, in_batches

__all__ = ["DECAYS", "PerStageScheduler", "WarmupStableDecay"]

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
}
"""Shapes of the decay: from 1 to 0 as the share of it that has passed goes from 0 to 1."""

_UNITS = (TimeUnit.DURATION, TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN)


class PerStageScheduler(ComposerScheduler):
    """Runs a scheduler afresh in every stage of :class:`.PatchLevel`.

    The scheduler inside sees a clock that starts at zero and a ``max_duration`` that is the stage's
    length: its multipliers are those of as many separate runs. That is the recipe of Shao, Meng and
    Zhou (arXiv 2407.12665), where each stage has its own warm-up and its own cosine. The boundaries are
    the algorithm's own.

    Times of the scheduler inside are in its stage's: ``0.1dur`` is a tenth of the stage, and a stage of
    epochs is counted in batches. Composer's ``scale_schedule_ratio`` stretches them as ever.

    Args:
        scheduler (ComposerScheduler | Mapping[str, Any], optional): The scheduler of every stage: a
            Composer scheduler, or the configuration of one that llm-foundry knows, with its ``name``.
            Default: ``None``.
        schedulers (Sequence[ComposerScheduler | Mapping[str, Any]], optional): Instead, one for each
            stage. Default: ``None``.

    Raises:
        ValueError: If not exactly one of the two is given, or a configuration cannot be built. When the
            trainer is built: without ``patch_level`` in the run, for a number of schedulers that is not
            that of the stages, or if the scheduler of any stage refuses the stage's length or unit.

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
            raise ValueError(f"per_stage: schedulers={schedulers!r} is not a list with one for each stage.")
        self._each = [_build(entry) for entry in schedulers or ()]
        self._seen: weakref.ref[State] | None = None
        self._checked: list[tuple[int, str]] = []

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The multiplier of the learning rate for the next step."""
        max_duration(state)  # raises, if there is none
        algorithm = find_patch_level(state)
        if algorithm is None:
            raise ValueError(
                "per_stage takes the stages from the patch_level algorithm, which this run does not have. "
                "Add it under `algorithms`, or use the scheduler inside per_stage by itself."
            )
        self._check_all_stages(algorithm, state, ssr)
        clock = algorithm.stage_clock(state)
        # The trainer steps schedulers before it advances its clock, so that each rate is one step old,
        # except the first of a run. The first of every stage is not to be the old stage's either.
        if self._steps(state):
            after = after_this_step(state)
            following = clock_at(algorithm, state, after)
            if following.index > clock.index:
                return self._multiplier(replace(following, started=after), after, state, ssr)
        return self._multiplier(clock, state.timestamp, state, ssr)

    def _steps(self, state: State) -> bool:
        """Whether a step has just been done; the first call for a run comes before any."""
        known = self._seen is not None and self._seen() is state
        if not known:
            self._seen = weakref.ref(state)
        return known

    def _check_all_stages(self, algorithm: PatchLevel, state: State, ssr: float) -> None:
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
            raise ValueError(f"{scheduler} takes no scale_schedule_ratio.")
        return float(scheduler(inside))


class WarmupStableDecay(ComposerScheduler):
    """Warm-up, plateau, decay (WSD) over the whole run; the stages do not show in it.

    The multiplier rises straight from 0 to 1 in ``t_warmup``, stays there, and falls to ``alpha_f`` in
    the last ``t_decay`` of the run. Token superposition (arXiv 2605.06546) trained so, with the switch
    on the plateau.

    Args:
        t_warmup (str | Time): Length of the warm-up, in any of ``dur``, ``ep``, ``ba``, ``sp``, ``tok``.
        t_decay (str | Time, optional): Length of the decay, as a share of the run (``dur``) or in the unit of
            the trainer's ``max_duration``; batches and epochs may stand for each other where the data
            loader knows its length. Default: ``'0.1dur'``.
        alpha_f (float, optional): Multiplier at the end of the run. Default: ``0.0``.
        decay (str, optional): Shape of the decay: ``linear``, ``cosine`` or ``1-sqrt``.
            Default: ``'linear'``.
        scale_warmup (bool, optional): Whether ``scale_schedule_ratio`` stretches the warm-up as well; it
            always stretches the decay. Default: ``False``, as in Composer.

    Raises:
        ValueError: For arguments that are not of these kinds; when the trainer is built, if warm-up and
            decay do not fit into the run, or units cannot be brought together.
    """

    def __init__(
        self,
        t_warmup: str | Time[Any],
        t_decay: str | Time[Any] = "0.1dur",
        alpha_f: float = 0.0,
        decay: str = "linear",
        scale_warmup: bool = False,
    ) -> None:
        self.t_warmup = _parse("t_warmup", t_warmup)
        self.t_decay = _parse("t_decay", t_decay)
        if isinstance(alpha_f, bool) or not isinstance(alpha_f, (int, float)) or not 0.0 <= alpha_f <= 1.0:
            raise ValueError(f"warmup_stable_decay: alpha_f={alpha_f!r} is not a number between 0 and 1.")
        self.alpha_f = float(alpha_f)
        if decay not in DECAYS:
            raise ValueError(f"warmup_stable_decay: decay={decay!r} is none of {', '.join(DECAYS)}.")
        self.decay = decay
        self.scale_warmup = scale_warmup

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """The multiplier of the learning rate at the state's clock."""
        end = _in_batches(max_duration(state), state)
        warmup, warmup_unit = _resolve(self.t_warmup, end, state, ssr if self.scale_warmup else 1.0)
        decay, decay_unit = _resolve(self.t_decay, end, state, ssr)
        if decay > 0 and decay_unit != end.unit:
            raise ValueError(
                f"warmup_stable_decay: t_decay={self.t_decay.to_timestring()!r} cannot be counted back from "
                f"a max_duration of {end.to_timestring()!r}. Give it in {end.unit.value!r}, or as a share of "
                "the run such as '0.1dur'."
            )
        taken = decay + (warmup if warmup_unit == end.unit else 0)
        # Shares such as 0.7 + 0.3 may add up to a little more than 1, and the trainer builds schedules
        # before it stretches max_duration.
        if taken > end.value * max(ssr, 1.0) * (1 + 1e-9):
            raise ValueError(
                f"warmup_stable_decay: t_warmup={self.t_warmup.to_timestring()!r} and "
                f"t_decay={self.t_decay.to_timestring()!r} together are longer than the run of "
                f"{end.to_timestring()!r}. Shorten one of them."
            )
        passed = state.timestamp.get(warmup_unit).value
        risen = min(passed / warmup, 1.0) if warmup > 0 else 1.0
        left = max(end.value - state.timestamp.get(end.unit).value, 0)
        share = 1 - min(left / decay, 1.0) if decay > 0 else 0.0
        # The smaller of the two: where their units differ nobody can tell that they do not overlap.
        return min(risen, self.alpha_f + (1 - self.alpha_f) * DECAYS[self.decay](share))


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
        raise ValueError(f"per_stage: {name} cannot be built of {arguments!r}: {error}") from error


def _parse(name: str, given: str | Time[Any]) -> Time[Any]:
    try:
        time = Time.from_timestring(given) if isinstance(given, str) else given
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"warmup_stable_decay: {name}={given!r} cannot be read as a time.") from error
    if not isinstance(time, Time) or time.unit not in _UNITS or not 0 <= time.value < math.inf:
        raise ValueError(
            f"warmup_stable_decay: {name}={given!r} is not a time of at least 0 in 'dur', 'ep', 'ba', 'sp' "
            "or 'tok', such as '2000ba' or '0.1dur'."
        )
    if time.unit == TimeUnit.DURATION and time.value > 1:
        raise ValueError(f"warmup_stable_decay: {name}={given!r} is longer than the run.")
    return time


def _resolve(time: Time[Any], end: Time[Any], state: State, ssr: float) -> tuple[float, TimeUnit]:
    """``time`` on a counter of the clock, and which."""
    if time.unit == TimeUnit.DURATION:
        return float(time.value * end.value), end.unit
    time = _in_batches(time, state)
    return float(time.value * ssr), time.unit


def _in_batches(time: Time[Any], state: State) -> Time[Any]:
    batches = dataloader_len(state)
    if time.unit != TimeUnit.EPOCH:
        return time
    if batches is None:
        raise ValueError(
            f"{time.to_timestring()!r} is in epochs, and the data loader does not know its length. Give "
            "times in batches, samples or tokens ('ba', 'sp' or 'tok')."
        )
    return in_batches(time, batches)


def _since(start: Timestamp, now: Timestamp) -> Timestamp:
    """The clock of a stage; what is counted within an epoch is the data loader's and stays."""
    return now.copy(
        epoch=max(now.epoch - start.epoch, Time.from_epoch(0)),
        batch=max(now.batch - start.batch, Time.from_batch(0)),
        sample=max(now.sample - start.sample, Time.from_sample(0)),
        token=max(now.token - start.token, Time.from_token(0)),
        total_wct=now.total_wct - start.total_wct,
    )


def _length(clock: StageClock, state: State) -> Time[int]:
    """How long a stage is. In batches for epochs, of which a stage need not be a whole number."""
    ends, start = clock.ends, clock.started
    if dataloader_len(state) is not None or int(start.batch_in_epoch.value) > 0:
        ends = _in_batches(ends, state)
    return Time(max(int(ends.value) - int(start.get(ends.unit).value), 1), ends.unit)
