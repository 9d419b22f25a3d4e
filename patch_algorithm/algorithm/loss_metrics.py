"""The loss metrics of a step, over its microbatches and all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from patch_algorithm.common.step_sums import StepSums, added_up
from patch_algorithm.loss.cross_entropy import PatchLoss

__all__ = ["LossTally", "StepLoss"]


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, of all ranks.

    Attributes:
        sum: Cross-entropy in nats, summed over the valid pairs of position and target.
        count: Valid pairs.
        hits: Those whose target is the position's most likely token.
        edited: On how many ranks the ids of a microbatch were changed.
    """

    sum: float
    count: float
    hits: float
    edited: float

    def metrics(self) -> dict[str, float]:
        """Loss, perplexity and accuracy."""
        mean = self.sum / max(self.count, 1)
        return {
            "patch_level/loss": mean,
            "patch_level/perplexity": math.exp(min(mean, 700.0)),  # beyond that a float overflows
            "patch_level/token_accuracy": self.hits / max(self.count, 1),
        }


@dataclass
class LossTally:
    """Collects the parts of :class:`.PatchLoss` on the device, and reads them once a step."""

    _parts: list[Tensor] = field(default_factory=list)

    def reset(self) -> None:
        """Starts a step; an out-of-memory retry starts it again."""
        self._parts = []

    def add(self, loss: PatchLoss) -> None:
        """Counts a microbatch."""
        dtype = loss.sum.dtype
        self._parts.append(torch.stack([loss.sum.detach(), loss.count.to(dtype), loss.hits.to(dtype)]))

    def read(self, sums: StepSums, edited: Tensor | None = None) -> StepLoss | None:
        """The step's loss from all ranks: a collective call, and the one wait for the device.

        Args:
            sums: The trainer's.
            edited: Scalar boolean, whether the ids of a microbatch were changed; ``None`` if not in doubt.

        Returns:
            ``None`` if there was no microbatch.
        """
        if not self._parts:
            return None
        parts_N3 = torch.stack(self._parts)
        if edited is None:
            edited = torch.zeros((), dtype=torch.bool, device=parts_N3.device)
        sums.put("patch_level", torch.cat([added_up(parts_N3), edited[None]]))
        return StepLoss(*sums.take("patch_level"))
