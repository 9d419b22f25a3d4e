"""What a run computes, counted in positions and set against token-level training on the same tokens.

The algorithm, its banner, the monitor and the report all use this count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.core import Time, Timestamp, TimeUnit

from patch_algorithm.stages.plan import StagePlan

__all__ = ["PositionCount", "planned_share"]


@dataclass
class PositionCount:
    """Positions of a run so far, padding included.

    Attributes:
        computed: What the model has computed.
        at_token_level: What it would have computed at token level on the same rows.
    """

    computed: float = 0.0
    at_token_level: float = 0.0

    def add(self, computed: float, at_token_level: float) -> None:
        """Counts a batch."""
        self.computed += computed
        self.at_token_level += at_token_level

    @property
    def share(self) -> float:
        """Computed positions as a share of those at token level; 1 before the first."""
        return self.computed / self.at_token_level if self.at_token_level else 1.0

    def state_dict(self) -> dict[str, float]:
        """The count in primitives."""
        return {"computed": self.computed, "at_token_level": self.at_token_level}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PositionCount:
        """The count that :meth:`state_dict` was made from."""
        return cls(float(state["computed"]), float(state["at_token_level"]))


def planned_share(plan: StagePlan, end: Time[int], now: Timestamp, share_so_far: float) -> float | None:
    """The compute of a whole run as a share of token-level training on the same raw tokens.

    The data loader's batches are taken to be of one size in raw tokens.

    Args:
        plan: The stages of the run.
        end: The run's ``max_duration``.
        now: The trainer's clock.
        share_so_far: The share of what lies behind ``now``.

    Returns:
        The share; ``None`` where stages and run do not end on one counter of the clock.
    """
    lengths = [end] if plan.length is None else [end, plan.length]
    known = [n for n in lengths if all(stage.until.unit == n.unit for stage in plan.stages)]
    if not known:
        return None
    length = known[0]
    passed = min(float(now.get(length.unit).value), float(length.value))
    begun, raw, positions = 0.0, 0.0, 0.0
    for index in range(len(plan.stages) + 1):
        until = length.value if not plan.is_patch_stage(index) else plan.stages[index].until.value
        until = max(min(until, length.value), begun)
        # Steps may differ in raw tokens; samples and tokens do not.
        takes = plan.loader_batches_per_step(index) if length.unit == TimeUnit.BATCH else 1
        behind, ahead = min(max(passed, begun), until) - begun, until - min(max(passed, begun), until)
        raw += (behind + ahead) * takes
        positions += behind * takes * share_so_far + ahead * takes / plan.tokens_per_position(index)
        begun = until
    return positions / raw
