"""Refuses learning rate schedules in epochs where a step takes several batches of the data loader.

An epoch is no fixed number of steps there. Composer would convert it by the length of the data loader, which
counts batches, or stop after the first update.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from composer.core import State, Time, TimeUnit
from composer.optim import ComposerScheduler

__all__ = ["refuse_schedules_in_epochs"]


def refuse_schedules_in_epochs(state: State) -> None:
    """Looks through the arguments of the trainer's schedulers.

    Raises:
        ValueError: If one of them is a time in epochs.
    """
    for scheduler in state.schedulers:
        for function in getattr(scheduler, "lr_lambdas", ())[:1]:
            # Composer wraps its schedulers into functions of an epoch.
            inside = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
            for name, given in _times_in_epochs("", inside.get("scheduler")):
                raise ValueError(
                    f"constant_compute does not work with {name}={given!r} of the scheduler "
                    f"{type(inside['scheduler']).__name__}: the number of steps in an epoch depends on where "
                    "the switch falls. Give the schedule's times as shares of the run ('0.1dur') or in "
                    "batches, samples or tokens ('ba', 'sp' or 'tok'), or set constant_compute: false."
                )


def _times_in_epochs(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names and values of the times in epochs, in schedulers inside schedulers and in lists, too."""
    if ComposerScheduler in type(value).__mro__:
        value = vars(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _times_in_epochs(str(key).lstrip("_"), inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _times_in_epochs(name, inner)
    elif isinstance(value, (str, Time)) and _is_in_epochs(value):
        yield name, value if isinstance(value, str) else value.to_timestring()


def _is_in_epochs(value: str | Time[Any]) -> bool:
    try:
        time = Time.from_timestring(value) if isinstance(value, str) else value
    except (ValueError, TypeError, OverflowError):  # another argument, such as the name of a shape
        return False
    return time.unit == TimeUnit.EPOCH and time.value > 0
