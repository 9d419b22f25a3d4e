"""What each stage of a run takes in, computes and holds in memory, and two runs to compare it with.

Letters: L the model's context in positions, T raw tokens in a row, K raw tokens that a position reads,
P positions in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.core import Time

from patch_algorithm.checks.rate_curve import RunClock
from patch_algorithm.planning.costs_model import ModelFacts
from patch_algorithm.planning.run_clock import run_clock
from patch_algorithm.planning.run_file import RunFile
from patch_algorithm.stages.compute import PositionCount
from patch_algorithm.stages.plan import StagePlan

__all__ = ["RunCost", "StageCost", "StepShape", "cost_of", "run_costs", "step_shape"]

_HALF_PRECISIONS = ("amp_bf16", "amp_fp16", "amp_fp8", "bf16", "fp16")


@dataclass(frozen=True)
class StepShape:
    """What a step of a run is, before the stages come in.

    Attributes:
        plan: The stages, with ``seq_len`` settled.
        clock: The run's clock.
        row_tokens: Raw tokens in a row of the data, T.
        rows: Rows in a batch of the data loader, on all devices: those of a step, of a token step with
            constant compute.
        devices: Devices that share a step.
        microbatch: Rows in a forward of a device; ``None`` where the trainer finds it (``auto``).
        scales_microbatch: Whether microbatches grow where rows have fewer positions.
        logit_bytes: Bytes of a logit.
        data_tokens: Tokens in the training split; ``None`` where no description of it is there, and for a
            mixture, which reads its components differently often.
    """

    plan: StagePlan
    clock: RunClock
    row_tokens: int
    rows: int
    devices: int
    microbatch: int | None
    scales_microbatch: bool
    logit_bytes: int
    data_tokens: int | None

    @property
    def bounds(self) -> tuple[int, ...]:
        """The steps after which each stage ends; the last is the run's end."""
        end = self.clock.end or 0
        bounds: list[int] = []
        for stage in self.plan.stages:
            until = self.clock.steps(stage.until)
            if until is None:
                raise ValueError(
                    f"algorithms.patch_level: the end of a stage, {stage.until.to_timestring()!r}, cannot be "
                    "counted in steps. Give it in batches, samples or tokens."
                )
            bounds.append(min(max(until, bounds[-1] if bounds else 0), end))
        return (*bounds, end)


@dataclass(frozen=True)
class StageCost:
    """A stage of a run.

    Attributes:
        k: Tokens per patch; 1 in the token stage.
        tokens_per_position: Raw tokens that a position reads, K.
        targets_per_position: Tokens that a position predicts.
        in_patches: Whether it is a patch stage.
        first_step: Its first step, from 0.
        steps: Its steps.
        raw_tokens: Raw tokens of all steps.
        data_rows: Rows of the data that it takes.
        rows_per_step: Rows that the models of all devices are given in a step, after cutting.
        positions_per_row: Positions in each of these.
        microbatches: Forwards of a device in a step; ``None`` where the trainer finds the microbatch.
        rows_per_forward: Rows in each forward; ``None`` likewise.
        flops: FLOPs of all steps, forward and backward; ``None`` where nobody can tell.
        logits_bytes: Memory of one copy of a forward's logits; ``None`` where that is not known.
    """

    k: int
    tokens_per_position: int
    targets_per_position: int
    in_patches: bool
    first_step: int
    steps: int
    raw_tokens: int
    data_rows: int
    rows_per_step: int
    positions_per_row: int
    microbatches: int | None
    rows_per_forward: int | None
    flops: float | None
    logits_bytes: int | None

    @property
    def name(self) -> str:
        """``token``, or ``patch`` with its k."""
        return f"patch k={self.k}" if self.in_patches else "token"

    @property
    def positions_per_step(self) -> int:
        """Positions that a step computes, on all devices."""
        return self.rows_per_step * self.positions_per_row

    @property
    def positions(self) -> int:
        """Positions of all steps."""
        return self.steps * self.positions_per_step


@dataclass(frozen=True)
class RunCost:
    """A whole run.

    Attributes:
        name: What it is.
        stages: Its stages that have steps, in their order.
        passes: How many times it reads the data; ``None`` where the data is not described.
    """

    name: str
    stages: tuple[StageCost, ...]
    passes: float | None

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return sum(stage.steps for stage in self.stages)

    @property
    def raw_tokens(self) -> int:
        """Raw tokens that it takes in."""
        return sum(stage.raw_tokens for stage in self.stages)

    @property
    def positions(self) -> int:
        """Positions that it computes."""
        return sum(stage.positions for stage in self.stages)

    @property
    def flops(self) -> float | None:
        """FLOPs, forward and backward; ``None`` where nobody can tell."""
        counted = [stage.flops for stage in self.stages if stage.flops is not None]
        return sum(counted) if len(counted) == len(self.stages) else None

    @property
    def positions_share(self) -> float:
        """Positions as a share of those of token-level training on the same rows."""
        count = PositionCount()
        for stage in self.stages:
            count.add(stage.positions, stage.positions * stage.tokens_per_position)
        return count.share

    @property
    def patch_share_of_tokens(self) -> float:
        """The share of raw tokens that patch stages take: the paper's ratio."""
        return _share([s.raw_tokens for s in self.stages if s.in_patches], self.raw_tokens)

    @property
    def patch_share_of_compute(self) -> float:
        """The share of positions that patch stages compute: token superposition's r."""
        return _share([s.positions for s in self.stages if s.in_patches], self.positions)


def _share(parts: Sequence[int], whole: int) -> float:
    return sum(parts) / whole if whole else 0.0


def step_shape(run: RunFile, model: ModelFacts, devices: int = 1) -> StepShape:
    """What a step of a run is.

    Args:
        run: The run.
        model: Its model, which knows the context where the YAML does not.
        devices: Devices that share a step.

    Raises:
        ValueError: If the YAML leaves open what a step or the run's length is; it names the key.
    """
    T, rows = run.T, run.global_train_batch_size
    if T is None:
        raise ValueError(f"{run.train_loader.dataset.key}.max_seq_len, the tokens of a row, is missing.")
    if rows is None:
        raise ValueError("global_train_batch_size, the rows of a step, is missing.")
    if run.max_duration is None:
        raise ValueError("max_duration is missing.")
    clock = run_clock(run)
    if clock is None or clock.end is None:
        folder = None if run.changes_data else run.train_loader.dataset.local
        raise ValueError(_uncounted(run.max_duration, folder))
    if clock.end < 1:
        raise ValueError(f"max_duration={run.max_duration.to_timestring()!r} is less than a step.")
    # Without the algorithm nobody cuts rows.
    L = None if run.algorithm is None else run.L or min(T, model.context or T)
    given = run.device_train_microbatch_size
    return StepShape(
        plan=replace(clock.plan, seq_len=L or T),
        clock=clock,
        row_tokens=T,
        rows=rows,
        devices=devices,
        microbatch=given if isinstance(given, int) else None,
        scales_microbatch=run.algorithm is not None and run.algorithm.scale_microbatch,
        logit_bytes=2 if run.precision in _HALF_PRECISIONS else 4,
        data_tokens=None if run.changes_data else run.train_loader.dataset.pass_tokens,
    )


def _uncounted(max_duration: Time[Any], folder: str | None) -> str:
    where = f" No description of the data was found in {folder!r}." if folder else ""
    return (
        f"max_duration={max_duration.to_timestring()!r} cannot be counted in steps.{where} Give it in "
        "batches, samples or tokens ('ba', 'sp' or 'tok')."
    )


def run_costs(shape: StepShape, model: ModelFacts) -> tuple[RunCost, RunCost, RunCost]:
    """A run beside token-level training.

    Returns:
        Token-level training on the same data; the run; the run on so much more data that it takes as many
        FLOPs (positions, where FLOPs cannot be counted) as the first.
    """
    bounds = shape.bounds
    no_patches = replace(shape, plan=StagePlan((), shape.plan.seq_len, None))
    same_data = (shape.clock.loader_batches(bounds[-1]),)
    token = cost_of(no_patches, model, same_data, "token-only, same data")
    run = cost_of(shape, model, bounds, "this run")
    token_flops, flops = token.flops, run.flops
    longer = token_flops / flops if token_flops and flops else token.positions / max(run.positions, 1)
    stretched = tuple(round(bound * longer) for bound in bounds)
    return token, run, cost_of(shape, model, stretched, "this run, longer: equal compute")


def cost_of(shape: StepShape, model: ModelFacts, bounds: Sequence[int], name: str) -> RunCost:
    """What a run of the given step costs.

    Args:
        shape: Its step and stages.
        model: Its model.
        bounds: The steps after which each stage ends.
        name: What it is.
    """
    firsts = (0, *bounds[:-1])
    stages = tuple(
        _stage(shape, model, index, first, end - first)
        for index, (first, end) in enumerate(zip(firsts, bounds, strict=True))
        if end > first
    )
    cost = RunCost(name, stages, None)
    return replace(cost, passes=cost.raw_tokens / shape.data_tokens) if shape.data_tokens else cost


def _stage(shape: StepShape, model: ModelFacts, index: int, first: int, steps: int) -> StageCost:
    plan, T = shape.plan, shape.row_tokens
    K, piece = plan.tokens_per_position(index), plan.row_tokens(index, T)
    data_rows = shape.rows * plan.loader_batches_per_step(index)
    rows, P = data_rows * (T // piece), piece // K
    per_device = -(-rows // shape.devices)
    forward = _rows_per_forward(shape, P, per_device)
    flops = None if model.row_flops is None else steps * rows * model.row_flops(P)
    logits = None
    if forward is not None and model.vocabulary is not None:
        logits = forward * P * model.vocabulary * shape.logit_bytes
    return StageCost(
        k=plan.k_of(index),
        tokens_per_position=K,
        targets_per_position=plan.targets_per_position(index),
        in_patches=plan.is_patch_stage(index),
        first_step=first,
        steps=steps,
        raw_tokens=steps * data_rows * T,
        data_rows=steps * data_rows,
        rows_per_step=rows,
        positions_per_row=P,
        microbatches=None if forward is None else -(-per_device // forward),
        rows_per_forward=forward,
        flops=flops,
        logits_bytes=logits,
    )


def _rows_per_forward(shape: StepShape, P: int, per_device: int) -> int | None:
    if shape.microbatch is None:
        return None
    plan, growth = shape.plan, 1
    if shape.scales_microbatch:
        growth = max(plan.row_tokens(len(plan.stages), shape.row_tokens) // P, 1)
    return min(shape.microbatch * growth, per_device)
