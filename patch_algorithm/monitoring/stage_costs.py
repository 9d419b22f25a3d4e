"""What a run has cost, stage by stage, in plain numbers, and the table made of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from patch_algorithm.common.tables import duration

__all__ = [
    "Cost",
    "EvalRecord",
    "RunRecord",
    "StageMeter",
    "StageRecord",
    "compute_share",
    "speedup",
    "table",
]


@dataclass
class Cost:
    """Sums over steps, on all ranks.

    Attributes:
        steps: How many.
        seconds: Wall-clock time, evaluation left out.
        tokens: Raw tokens; samples, where the data loader counts no tokens.
        positions: Positions the model has computed, padding included.
        flops: FLOPs of the model, forward and backward; 0 if nobody can tell.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    positions: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.steps + other.steps,
            self.seconds + other.seconds,
            self.tokens + other.tokens,
            self.positions + other.positions,
            self.flops + other.flops,
        )

    def per_second(self, amount: float) -> float:
        """``amount`` by the time these steps took; 0 if they took none."""
        return amount / self.seconds if self.seconds > 0 else 0.0


@dataclass
class StageMeter:
    """What one stage has cost so far.

    Attributes:
        index: Which stage of the run.
        k: Raw tokens per position.
        total: All its steps.
        steady: The same without the first step of each start, which compiles, allocates and fills caches.
        peak_memory: In bytes.
    """

    index: int
    k: int
    total: Cost = field(default_factory=Cost)
    steady: Cost = field(default_factory=Cost)
    peak_memory: int = 0

    def add(self, step: Cost, first: bool) -> None:
        """Counts a step; ``first``: of this stage since the run was started or resumed."""
        self.total += step
        if not first:
            self.steady += step

    @property
    def speed(self) -> Cost:
        """The steps that speeds are taken from."""
        return self.steady if self.steady.steps else self.total

    @property
    def name(self) -> str:
        """``token``, or ``patch`` with its k."""
        return "token" if self.k == 1 else f"patch k={self.k}"

    def state_dict(self) -> dict[str, Any]:
        """The meter in primitives."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> StageMeter:
        """The meter that :meth:`state_dict` was made of."""
        costs = {name: Cost(**state[name]) for name in ("total", "steady")}
        return cls(state["index"], state["k"], peak_memory=state["peak_memory"], **costs)


def speedup(stages: Sequence[StageMeter]) -> float | None:
    """How many times as many raw tokens a second the patch stages have taken as the token stage.

    Returns:
        ``None`` unless there were both.
    """
    patch = sum((stage.speed for stage in stages if stage.k > 1), Cost())
    token = sum((stage.speed for stage in stages if stage.k == 1), Cost())
    slow = token.per_second(token.tokens)
    return patch.per_second(patch.tokens) / slow if slow > 0 and patch.seconds > 0 else None


def compute_share(stages: Sequence[StageMeter], left: Sequence[tuple[int, float]] = ()) -> float:
    """Positions as a share of token-only training on the same raw tokens.

    Args:
        stages: What is done.
        left: What is to come: pairs of k and raw tokens.
    """
    amounts = [(stage.k, float(stage.total.tokens)) for stage in stages] + list(left)
    tokens = sum(amount for _, amount in amounts)
    return sum(amount / k for k, amount in amounts) / tokens if tokens > 0 else 1.0


def table(
    stages: Sequence[StageMeter],
    flops_available: float,
    eval_seconds: float,
) -> str:
    """The text that ends a run.

    Args:
        stages: The stages of the run in their order.
        flops_available: What all devices together can do in a second; 0 if nobody can tell.
        eval_seconds: Time spent evaluating.
    """
    rows = [("stage", "steps", "raw tokens", "raw tokens/s", "positions/s", "TFLOP/s", "MFU", "peak memory")]
    rows += [_row(stage, flops_available) for stage in stages]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["patch_monitor"]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join([row[0].ljust(widths[0]), *cells]))
    total = sum((stage.total for stage in stages), Cost())
    if (faster := speedup(stages)) is not None:
        lines.append(f"  speed: the patch stage took {faster:.2f} times the raw tokens a second")
    lines.append(
        f"  compute: {compute_share(stages):.3f} of token-only training on the same raw tokens"
        + (f", {total.flops:.3g} FLOPs" if total.flops else "")
    )
    lines.append(f"  time: {duration(total.seconds)} of training, {duration(eval_seconds)} of evaluation")
    return "\n".join(lines)


def _row(stage: StageMeter, flops_available: float) -> tuple[str, ...]:
    speed = stage.speed
    flops = speed.per_second(speed.flops)
    return (
        stage.name,
        f"{stage.total.steps:,}",
        f"{stage.total.tokens:,}",
        f"{speed.per_second(speed.tokens):,.0f}",
        f"{speed.per_second(speed.positions):,.0f}",
        f"{flops / 1e12:.3g}" if flops else "-",
        f"{flops / flops_available:.1%}" if flops and flops_available else "-",
        f"{stage.peak_memory / 1e9:.2f} GB",
    )


@dataclass
class StageRecord:
    """What was measured in one stage, a value per step.

    Attributes:
        k: Raw tokens per position.
        losses: The trainer's loss of each step.
        seconds: Wall-clock time of each step, evaluation left out.
        tokens: Raw tokens of each step, on all ranks.
    """

    k: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """``patch`` or ``token``."""
        return "patch" if self.k > 1 else "token"

    @property
    def positions(self) -> int:
        """Positions the model has computed in this stage."""
        return sum(self.tokens) // self.k

    @property
    def step_seconds(self) -> float:
        """The median time of a step; 0 before the first."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The median speed in raw tokens."""
        speeds = [n / s for n, s in zip(self.tokens, self.seconds, strict=True) if s > 0]
        return statistics.median(speeds) if speeds else 0.0


@dataclass
class EvalRecord:
    """A token-level evaluation: after how many batches, and its loss."""

    batch: int
    loss: float


@dataclass
class RunRecord:
    """The stages of a run in their order, and its evaluations. Holds primitives only."""

    stages: list[StageRecord] = field(default_factory=list)
    evals: list[EvalRecord] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(len(stage.losses) for stage in self.stages)

    @property
    def switch(self) -> int | None:
        """The batch after which the patch stage ended; ``None`` if there was no such moment."""
        if len(self.stages) < 2 or self.stages[0].k == 1:
            return None
        return len(self.stages[0].losses)

    @property
    def compute_share(self) -> float:
        """Positions computed as a share of token-only training on the same raw tokens."""
        tokens = sum(sum(stage.tokens) for stage in self.stages)
        return sum(stage.positions for stage in self.stages) / tokens if tokens else 1.0

    def eval_at(self, batch: int | None) -> float | None:
        """The loss evaluated after ``batch``, if there was an evaluation."""
        return next((e.loss for e in reversed(self.evals) if e.batch == batch), None)

    def state_dict(self) -> dict[str, Any]:
        """The record in primitives."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RunRecord:
        """The record that :meth:`state_dict` was made of."""
        return cls(
            stages=[StageRecord(**stage) for stage in state["stages"]],
            evals=[EvalRecord(**evaluation) for evaluation in state["evals"]],
        )
