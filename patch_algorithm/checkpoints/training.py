"""What a checkpoint says of its run: stages, raw tokens, compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from composer.core import Timestamp

from patch_algorithm.stages.compute import PositionCount
from patch_algorithm.stages.pieces import Piece, pieces
from patch_algorithm.stages.plan import StagePlan
from patch_algorithm.stages.trainer_clock import timestamp_of

__all__ = ["TrainedStage", "Training"]


@dataclass(frozen=True)
class TrainedStage:
    """One stage, as far as it was trained.

    Attributes:
        k: Tokens per patch; 1 in the token stage.
        steps: Optimizer steps.
        tokens: Raw tokens.
    """

    k: int
    steps: int
    tokens: int

    @property
    def name(self) -> str:
        """Such as ``patches of 4``."""
        return "tokens" if self.k == 1 else f"patches of {self.k}"


@dataclass(frozen=True)
class Training:
    """A run until a checkpoint.

    Attributes:
        stages: The stages that it has been in.
        plan: What the run had settled on; ``None`` for a run without ``patch_level``.
        compute_share: Positions computed, as a share of token-level training on the same tokens; ``None``
            where nothing was counted.
    """

    stages: tuple[TrainedStage, ...]
    plan: StagePlan | None
    compute_share: float | None

    @property
    def k(self) -> int:
        """Tokens per patch in its last step: at the switch itself that step was still on patches."""
        trained = [stage for stage in self.stages if stage.steps]
        return (trained or self.stages)[-1].k

    @property
    def in_patch_stage(self) -> bool:
        """Whether its last step was on patches, so that the model reads single tokens badly."""
        return self.k > 1

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Raw tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def patch_share(self) -> float:
        """The share of raw tokens that was trained in patches."""
        patches = sum(stage.tokens for stage in self.stages if stage.k > 1)
        return patches / self.tokens if self.tokens else 0.0

    @classmethod
    def from_state(cls, algorithm: Mapping[str, Any] | None, timestamp: Mapping[str, Any]) -> Training:
        """Reads a checkpoint's state.

        Args:
            algorithm: The state of ``PatchLevel``; ``None`` where the checkpoint has none.
            timestamp: The trainer's clock, with ``batch`` and ``token``.
        """
        end = int(timestamp["batch"]), int(timestamp["token"])
        if algorithm is None or "stages" not in algorithm:
            return cls((TrainedStage(1, *end),), None, None)
        plan = StagePlan.from_state_dict(algorithm)
        started = {int(index): timestamp_of(clock) for index, clock in algorithm.get("started", {}).items()}
        now = Timestamp(batch=end[0], token=end[1])
        earlier = [Piece.from_state_dict(values) for values in algorithm.get("earlier", ())]
        stages = tuple(_trained(pieces(plan, started or {0: Timestamp()}, earlier, now)))
        positions = algorithm.get("positions")
        share = None if not positions else PositionCount.from_state_dict(positions).share
        return cls(stages, plan, share)

    def __str__(self) -> str:
        stages = ", ".join(
            f"{one.steps:,} step{'' if one.steps == 1 else 's'} on {one.name}" for one in self.stages
        )
        share = "" if self.compute_share is None else f"; {self.compute_share:.2f} of token-only compute"
        return f"{stages}; {self.tokens:,} raw tokens{share}"


def _trained(run: Iterable[Piece]) -> Iterator[TrainedStage]:
    batch, token = 0, 0
    for piece in run:
        ends = int(piece.until.batch.value), int(piece.until.token.value)
        yield TrainedStage(piece.k, ends[0] - batch, ends[1] - token)
        batch, token = ends
