"""A point of a run, as a history records it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Moment"]


@dataclass(frozen=True)
class Moment:
    """Where a run stands after a step: the possible x values of its curves.

    Attributes:
        stage: The stage of the step, from 0.
        k: Its patch size; 1 in the token stage.
        step: Batches so far.
        raw_tokens: Raw tokens so far, on all ranks.
        positions: Positions computed so far, on all ranks, padding included.
        flops: FLOPs so far; ``None`` if they cannot be counted or a part of the run is not recorded.
        seconds: Wall-clock time of training so far, by Composer's clock, without evaluation.
    """

    stage: int
    k: int
    step: int
    raw_tokens: int
    positions: int
    flops: float | None
    seconds: float
