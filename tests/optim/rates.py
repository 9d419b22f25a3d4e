"""The learning rates that the steps of short runs are made with."""

from __future__ import annotations

import functools
from typing import Any

import torch
from composer import Trainer
from composer.core import Event, State, Time, Timestamp, TimeUnit

from patch_algorithm.stages.forecast import state_at
from tests.runs.short import Watch, make_model, make_rows, make_trainer

ROWS = make_rows(32, 16)
"""Eight batches of four rows: 4 samples and 64 raw tokens a batch."""


# Most of a short run's time goes into making its model, and rates do not depend on weights.
shared_model = functools.cache(make_model)


def start(scheduler: Any, *algorithms: Any, **changes: Any) -> tuple[Trainer, list[float]]:
    """A trainer that has not started, and a list that will hold the multiplier of each of its steps."""
    used: list[float] = []

    def note(state: State) -> None:
        (group,) = state.optimizers[0].param_groups
        used.append(group["lr"])

    arguments = {"model": shared_model(), "optimizer": torch.optim.SGD, "lr": 1.0, "schedulers": scheduler}
    rows = changes.pop("rows", ROWS)
    watch = Watch(Event.BATCH_START, note)
    trainer = make_trainer(rows, algorithms, callbacks=[watch], **(arguments | changes))
    return trainer, used


def rates(scheduler: Any, *algorithms: Any, **changes: Any) -> list[float]:
    """The multiplier of each step of a run."""
    trainer, used = start(scheduler, *algorithms, **changes)
    trainer.fit()
    return used


def multipliers(scheduler: Any, state: State, max_duration: str, ssr: float = 1.0) -> list[float]:
    """What a scheduler says at the end of each batch of a run of ``max_duration``, which is 8 batches."""
    end = Time.from_timestring(max_duration)
    end = Time(int(end.value * ssr), TimeUnit(end.unit))
    clocks = (Timestamp(batch=b, sample=4 * b, token=64 * b, epoch=b // 4) for b in range(9))
    return [scheduler(state_at(state, clock, end), ssr) for clock in clocks]
