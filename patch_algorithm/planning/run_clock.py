"""The clock and the learning rate of a run, from its YAML."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

from composer.core import Time, TimeUnit

from patch_algorithm.checks.rate_curve import RateCurve, RunClock, rate_curve
from patch_algorithm.planning.run_file import RunFile

__all__ = ["rates_of", "run_clock", "scheduler_of", "steps_of"]

_IN_ROWS_OR_TOKENS = re.compile(r"\d\s*(sp|tok)\b")


def run_clock(run: RunFile) -> RunClock | None:
    """The clock of a run; ``None`` where its stages or its length are not known."""
    if run.plan is None or run.max_duration is None:
        return None
    return RunClock(
        plan=run.plan,
        max_duration=run.max_duration,
        samples_per_batch=run.global_train_batch_size,
        tokens_per_batch=run.tokens_per_batch,
        batches_per_epoch=run.batches_per_epoch,
    )


def steps_of(time: Time[Any] | None, clock: RunClock | None) -> int | None:
    """A time in steps, shares of the run too; ``None`` where that cannot be told."""
    if time is None or clock is None:
        return None
    if time.unit == TimeUnit.DURATION:
        return None if clock.end is None else max(1, int(time.value * clock.end))
    return clock.steps(time)


def rates_of(run: RunFile) -> RateCurve | None:
    """What the learning rate of a run does, by its own scheduler.

    Returns:
        ``None`` where the YAML names no scheduler, or one that is not registered, and where the run cannot be
        counted in steps.

    Raises:
        ValueError: If the scheduler cannot be built or refuses the run.
    """
    clock, name = run_clock(run), run.scheduler.name
    if clock is None or name is None or not _counted(run.scheduler.arguments, clock):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = scheduler_of(run)
        return None if scheduler is None else rate_curve(scheduler, clock, name)


def scheduler_of(run: RunFile) -> Any | None:
    """The scheduler of a run, as llm-foundry builds it.

    Returns:
        ``None`` where the YAML names none, or one that is not registered, which a check of names says.

    Raises:
        ValueError: If it cannot be built of its arguments.
    """
    if run.scheduler.name is None:
        return None
    from catalogue import RegistryError
    from llmfoundry.utils.builders import build_scheduler

    arguments = dict(run.scheduler.arguments)
    try:
        return build_scheduler(run.scheduler.name, copy.deepcopy(arguments))
    except RegistryError:
        return None
    except TypeError as error:
        raise ValueError(f"it cannot be built from {arguments}: {error}") from error


def _counted(arguments: Mapping[str, Any], clock: RunClock) -> bool:
    """Whether the clock has the counters that a scheduler's times are on."""
    if clock.samples_per_batch and clock.tokens_per_batch:
        return True
    return _IN_ROWS_OR_TOKENS.search(str(arguments)) is None
