"""The learning rate of a run over its steps, by its own scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from patch_algorithm.checks.rate_curve import RunClock, multipliers
from patch_algorithm.planning.run_clock import scheduler_of
from patch_algorithm.planning.run_file import RunFile

__all__ = ["Rates", "rates_of_run"]

_POINTS = 150  # of each stage


@dataclass(frozen=True)
class Rates:
    """A learning rate, at steps that do not lie evenly.

    Attributes:
        steps: The steps, rising; the last is the run's end.
        values: The rate at the start of each.
        fault: Why there is none; empty where there is one.
    """

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    fault: str = ""


def rates_of_run(run: RunFile, clock: RunClock, bounds: Sequence[int]) -> Rates:
    """Asks the scheduler of a run for its rates.

    Args:
        run: The run.
        clock: Its clock.
        bounds: The steps after which each stage ends.
    """
    peak = run.optimizer.arguments.get("lr")
    if not isinstance(peak, (int, float)):
        return Rates(fault="the YAML has no optimizer.lr")
    steps = sorted({point for stage in zip((0, *bounds), bounds, strict=False) for point in _spread(*stage)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = scheduler_of(run)
            if scheduler is None:
                return Rates(fault=f"the YAML's scheduler ({run.scheduler.name}) is not registered")
            found = multipliers(scheduler, clock, steps)
        except (TypeError, ValueError) as error:
            return Rates(fault=f"the scheduler {run.scheduler.name} refuses the run: {error}")
    return Rates(tuple(steps), tuple(peak * value for value in found))


def _spread(first: int, last: int) -> list[int]:
    """Steps of a stage, with the last of the stage before it so that a jump shows as one."""
    count = max(min(_POINTS, last - first), 1)
    return [max(first - 1, 0), *(first + (last - first) * i // count for i in range(count)), last]
