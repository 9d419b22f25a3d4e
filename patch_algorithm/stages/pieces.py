"""The steps behind a run, piece by piece: those that were trained alike, by one stage of one plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from composer.core import Timestamp

from patch_algorithm.stages.plan import StagePlan
from patch_algorithm.stages.trainer_clock import timestamp_of, timestamp_values

__all__ = ["Piece", "clipped", "pieces"]


@dataclass(frozen=True)
class Piece:
    """Steps that were trained alike, from the end of the piece before.

    Attributes:
        k: Tokens per patch; 1 at token level.
        loader_batches_per_step: Batches of the data loader that a step took.
        until: The trainer's clock at their end.
    """

    k: int
    loader_batches_per_step: int
    until: Timestamp

    def state_dict(self) -> dict[str, Any]:
        """The piece in primitives."""
        return {"k": self.k, "loader_batches": self.loader_batches_per_step, **timestamp_values(self.until)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Piece:
        """The piece that :meth:`state_dict` was made from."""
        return cls(state["k"], state["loader_batches"], timestamp_of(state))


def pieces(
    plan: StagePlan, started: Mapping[int, Timestamp], earlier: Iterable[Piece], now: Timestamp
) -> list[Piece]:
    """What a run was trained on from its first step until ``now``.

    Args:
        plan: The present plan.
        started: The trainer's clock when each of its stages began.
        earlier: What was trained under other plans, before.
        now: The trainer's clock.
    """
    found = clipped(earlier, now)
    covered, begun = (found[-1].until if found else Timestamp()), None
    for index, start in sorted(started.items()):
        start = max(covered, start, key=lambda clock: clock.batch)
        if begun is not None:
            found.append(_of_stage(plan, begun, start))
        elif start.batch > covered.batch:
            found.append(Piece(1, 1, start))  # without patch_level
        covered, begun = start, index
    found.append(Piece(1, 1, now) if begun is None else _of_stage(plan, begun, now))
    return found


def clipped(earlier: Iterable[Piece], now: Timestamp) -> list[Piece]:
    """The pieces before ``now``: the trainer's clock may have been set back."""
    found, begins = [], Timestamp()
    for piece in earlier:
        if begins.batch < now.batch:
            found.append(piece if piece.until.batch <= now.batch else replace(piece, until=now))
        begins = piece.until
    return found


def _of_stage(plan: StagePlan, index: int, until: Timestamp) -> Piece:
    return Piece(plan.k_of(index), plan.loader_batches_per_step(index), until)
