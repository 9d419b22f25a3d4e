"""What the loss's own pass says of a step, over its microbatches and all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from composer.utils import dist
from torch import Tensor

from patch_algorithm.loss.cross_entropy import PatchLoss

__all__ = ["LossTally"]


@dataclass
class LossTally:
    """Collects the parts of :class:`.PatchLoss` and makes metrics of them."""

    _parts: list[Tensor] = field(default_factory=list)

    def reset(self) -> None:
        """Starts a step; an out-of-memory retry starts it anew."""
        self._parts = []

    def add(self, loss: PatchLoss) -> None:
        """Counts a microbatch."""
        dtype = loss.sum.dtype
        self._parts.append(torch.stack([loss.sum.detach(), loss.count.to(dtype), loss.hits.to(dtype)]))

    def metrics(self) -> dict[str, float]:
        """Loss, perplexity and accuracy of the step, from all ranks: a collective call."""
        if not self._parts:
            return {}
        # Added up in float64, for which some devices (mps) have no type: on the CPU.
        sums = torch.stack(self._parts).cpu().double().sum(dim=0)
        if dist.get_world_size() > 1:
            sums = sums.to(self._parts[0])
            dist.all_reduce(sums, reduce_operation="SUM")
        loss_sum, count, hits = sums.tolist()
        mean = loss_sum / max(count, 1)
        return {
            "patch_level/loss": mean,
            "patch_level/perplexity": math.exp(min(mean, 700.0)),  # beyond that a float overflows
            "patch_level/token_accuracy": hits / max(count, 1),
        }
