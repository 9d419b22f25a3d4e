"""Checks a run at the start of a fit, as ``patch-level doctor`` checks a YAML file.

Under ``llmfoundry train``, or in a script, no other check has read the configuration.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from composer.core import State
from torch.optim import Optimizer

from patch_algorithm.checks import Finding
from patch_algorithm.checks.learning_rate import check_rate, check_weight_decay
from patch_algorithm.checks.rate_curve import RunClock, rate_curve
from patch_algorithm.checks.rendering import as_block
from patch_algorithm.checks.rows import RowFacts, check_row_length
from patch_algorithm.checks.shown import not_yet_shown
from patch_algorithm.checks.stage_choice import check_stage_choice
from patch_algorithm.common.arguments import is_whole
from patch_algorithm.stages.plan import StagePlan
from patch_algorithm.stages.trainer_clock import dataloader_len, max_duration

__all__ = ["findings_at_start"]


def findings_at_start(
    state: State, plan: StagePlan, context: int | None, resets_optimizer: bool, rehearsed: bool
) -> str:
    """What can be seen of a new run that is likely to make it worse.

    Args:
        state: The trainer's state at the start of a fit.
        plan: The stages of the run.
        context: The model's context in positions; ``None`` if it does not say.
        resets_optimizer: Whether the optimizer's state is set to zero at the switch.
        rehearsed: Whether the token stage is tried before the first step.

    Returns:
        A few lines to show; empty if nothing is found that was not shown before.
    """
    if not plan.stages or state.timestamp.batch > 0:
        return ""
    clock = RunClock(plan, max_duration(state), batches_per_epoch=dataloader_len(state))
    found = [*_rates(state, clock, resets_optimizer), *_weight_decay(state)]
    ks = [stage.k for stage in plan.stages]
    found += check_stage_choice(ks, clock.switch, clock.end, resets_optimizer, plan.constant_compute)
    found += _rows(state, plan, context, rehearsed)
    # The run has a warning of its own for a switch that does not come.
    return as_block([one for one in not_yet_shown(found) if one.id != "no-switch"], "patch_level")


def _rates(state: State, clock: RunClock, resets_optimizer: bool) -> Iterator[Finding]:
    # Of several the effects multiply, which is left to whoever wrote them.
    if len(state.schedulers) != 1 or clock.end is None:
        return
    for function in getattr(state.schedulers[0], "lr_lambdas", ())[:1]:
        # Composer wraps its schedulers, which read the trainer's clock, into functions of an epoch. To be
        # asked for another clock, one has to be taken out again.
        inside: dict[str, Any] = (
            dict(inspect.getclosurevars(function).nonlocals) if inspect.isfunction(function) else {}
        )
        scheduler: Callable[..., float] | None = inside.get("scheduler")
        # A copy is asked, because per_stage remembers; functions cannot be copied, and are left alone.
        if scheduler is None or inspect.isroutine(scheduler):
            return
        try:
            asked = copy.deepcopy(scheduler)
            curve = rate_curve(asked, clock, type(scheduler).__name__, inside.get("ssr", 1.0))
        # A user's scheduler may hold what cannot be copied, such as the model, and want more of the trainer
        # than its clock. Its code may raise anything, and advice must not end a run.
        except Exception:
            return
        if curve is not None:
            yield from check_rate(curve, resets_optimizer)


def _weight_decay(state: State) -> list[Finding]:
    found = (_of_optimizer(optimizer) for optimizer in state.optimizers)
    return next((findings for findings in found if findings), [])


def _of_optimizer(optimizer: Optimizer) -> list[Finding]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    decays = [float(group["weight_decay"]) for group in groups if group.get("weight_decay")]
    rates = [float(group["initial_lr"]) for group in groups if group.get("initial_lr")]
    return check_weight_decay(type(optimizer).__name__, max(decays, default=None), max(rates, default=None))


def _rows(state: State, plan: StagePlan, context: int | None, rehearsed: bool) -> list[Finding]:
    dataset = getattr(state.dataloader, "dataset", None)
    # llm-foundry's datasets of tokens have this name for it. Of others the banner tells at the first batch.
    T = getattr(dataset, "max_seq_len", None)
    L = plan.seq_len or context
    if not is_whole(T) or L is None:
        return []
    sizes = [plan.tokens_per_position(index) for index in range(len(plan.stages))]
    L = min(L, T) if plan.seq_len is None else L
    key = "max_seq_len of the training data"
    return check_row_length(RowFacts(T, L, max(sizes), sizes[-1], rehearsed, key))
