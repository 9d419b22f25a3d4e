"""What the loss's own pass says of a step, over its microbatches and all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from composer.utils import dist

from patch_algorithm.loss.cross_entropy import PatchLoss

__all__ = ["LossTally"]


@dataclass
class LossTally:
    """Adds up the parts of :class:`.PatchLoss` and makes metrics of them."""

    _sums: torch.Tensor | None = None

    def reset(self) -> None:
        """Starts a step; an out-of-memory retry starts it anew."""
        self._sums = None

    def add(self, loss: PatchLoss) -> None:
        """Counts a microbatch."""
        parts = torch.stack([part.detach().double() for part in (loss.sum, loss.count, loss.hits)])
        self._sums = parts if self._sums is None else self._sums + parts

    def metrics(self) -> dict[str, float]:
        """Loss, perplexity and accuracy of the step, from all ranks: a collective call."""
        if self._sums is None:
            return {}
        dist.all_reduce(self._sums, reduce_operation="SUM")
        loss_sum, count, hits = self._sums.tolist()
        mean = loss_sum / max(count, 1)
        return {
            "patch_level/loss": mean,
            "patch_level/perplexity": math.exp(min(mean, 700.0)),  # beyond that a float overflows
            "patch_level/token_accuracy": hits / max(count, 1),
        }
