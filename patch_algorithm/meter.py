"""What a run has cost, stage by stage, in plain numbers, and the table made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Cost", "StageMeter", "compute_share", "duration", "speedup", "table"]


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


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


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
