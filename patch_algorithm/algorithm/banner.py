"""What a run is about to do, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from composer.core import Time, Timestamp

from patch_algorithm.loss import TargetWeights
from patch_algorithm.stages.compute import planned_share
from patch_algorithm.stages.plan import StagePlan

__all__ = ["banner", "end_of_stage"]


def banner(
    plan: StagePlan,
    T: int,
    stage: int,
    end: Time,
    now: Timestamp | None = None,
    share_so_far: float = 1.0,
    weights: TargetWeights = "uniform",
) -> str:
    """Describes the stages of a run.

    Args:
        plan: What the run has settled on.
        T: Raw tokens in a row of the dataset.
        stage: The stage that the run is, or starts, in.
        end: The run's ``max_duration``.
        now: The trainer's clock; ``None`` for a run that starts.
        share_so_far: Positions of what lies behind ``now``, as a share of token-level training.
        weights: What the targets of a position count in the loss.
    """
    now = Timestamp() if now is None else now
    lines = [f"patch_level: {plan}, run ends at {end.to_timestring()}"]
    lines += [f"  {_stage(plan, T, index, stage)}" for index in range(stage, len(plan.stages) + 1)]
    if any(plan.tokens_per_position(index) > 1 for index in range(stage, len(plan.stages))):
        lines.append(f"  {_compute(plan, stage, end, now, share_so_far)}")
    if weights != "uniform" and plan.is_patch_stage(stage):
        lines.append(f"  {_weights(weights)}")
    if plan.constant_compute and plan.is_patch_stage(stage):
        lines.append(f"  {_batches(plan, stage)}")
    lines += _note_on_growth(plan, T, stage)
    return "\n".join(lines)


def end_of_stage(plan: StagePlan, left: int, stage: int, batch: int, reset: bool) -> str:
    """Says that a stage has ended, and what is not comparable from there on.

    Args:
        plan: The stages of the run.
        left: The stage that has ended.
        stage: The one that follows.
        batch: The trainer's batch.
        reset: Whether the optimizer's state was reset.
    """
    slower = plan.tokens_per_position(left) / plan.tokens_per_position(stage)
    speed = f" Raw tokens per second fall about {slower:.3g}-fold." if slower > 1 else ""
    moments = f"Optimizer state {'reset' if reset else 'carried over'}."
    if plan.is_patch_stage(stage):
        return (
            f"patch_level: the stage of k={plan.k_of(left)} ended at batch {batch}; k={plan.k_of(stage)} "
            f"from here on. Losses of the two stages are not comparable.{speed} {moments}"
        )
    return (
        f"patch_level: the patch stage ended at batch {batch}; token level from here on. The loss is now "
        f"the next-token loss, which is not comparable with the patch stage's.{speed} {moments}"
    )


def _stage(plan: StagePlan, T: int, index: int, present: int) -> str:
    cut, K, targets = _cut(plan, T, index), plan.tokens_per_position(index), plan.targets_per_position(index)
    positions = f"{_rows(T, cut)} {cut // K} positions"
    if not plan.is_patch_stage(index):
        begins = f"from {plan.stages[-1].until.to_timestring()}" if index > present else "from here on"
        return f"token stage, {begins}: {positions}"
    reads = "one token" if K == 1 else f"{K} tokens"
    whose = "of the next patch" if K > 1 else "that follow"
    scored = f"the {targets} tokens {whose}" if targets > 1 else "the next token"
    until = plan.stages[index].until.to_timestring()
    return f"patch stage, until {until}: {positions}, each reading {reads} and scored on {scored}"


def _weights(weights: TargetWeights) -> str:
    by_place = (
        "1/i at the i-th place" if isinstance(weights, str) else " : ".join(f"{one:g}" for one in weights)
    )
    return f"target_weights: {by_place} of the next patch, scaled to a mean of 1"


def _batches(plan: StagePlan, stage: int) -> str:
    left = range(stage, len(plan.stages))
    if len(left) == 1:
        steps = f"a patch step takes {plan.loader_batches_per_step(stage)}"
    else:
        steps = f"steps of k={_listed(plan.k_of(index) for index in left)} take "
        steps += _listed(plan.loader_batches_per_step(index) for index in left)
    return f"constant compute: {steps} batches of the data loader, a token step 1"


def _listed(numbers: Iterable[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}"


def _compute(plan: StagePlan, stage: int, end: Time, now: Timestamp, share_so_far: float) -> str:
    sizes = dict.fromkeys(plan.tokens_per_position(index) for index in range(stage, len(plan.stages)))
    costs = ", ".join(f"1/{K}" for K in sizes)
    line = f"compute: a patch step costs {costs} of a token step on the same raw tokens"
    share = planned_share(plan, end, now, share_so_far)
    return line if share is None else f"{line}; the whole run {share:.2f} of token-only training"


def _note_on_growth(plan: StagePlan, T: int, stage: int) -> Iterator[str]:
    lengths = [
        _cut(plan, T, index) // plan.tokens_per_position(index)
        for index in range(stage, len(plan.stages) + 1)
    ]
    if min(lengths) < lengths[-1]:
        wanted = plan.tokens_per_position(len(plan.stages) - 1) * _positions(plan, T)
        yield (
            f"  note: at the switch, positions per row grow from {min(lengths)} to {lengths[-1]}, and so "
            f"does the memory per row. With rows of k*seq_len={wanted} tokens both would stay constant."
        )


def _positions(plan: StagePlan, T: int) -> int:
    return T if plan.seq_len is None else plan.seq_len


def _cut(plan: StagePlan, T: int, index: int) -> int:
    """Raw tokens of the pieces that rows of ``T`` are cut into in a stage."""
    return plan.row_tokens(index, T)


def _rows(T: int, cut: int) -> str:
    if T == cut:
        return f"a row of {T} raw tokens is"
    return f"a row of {T} raw tokens is cut into {T // cut} of {cut}, each of"
