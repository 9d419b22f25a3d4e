"""What the tokens of the next patch count in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TARGET_WEIGHTS", "target_weights"]

TARGET_WEIGHTS = ("uniform", "inverse")
"""How a position's targets may be weighed by their place in the next patch."""


def target_weights(k: int, kind: str, device: torch.device | None = None) -> Tensor | None:
    """Weights of a position's targets by their place in the next patch; their mean is 1.

    The published ablation (arXiv 2605.06546, appendix D) finds uniform weights best up to about 6
    tokens, and ``1 / i`` slightly better from about 8 on.

    Args:
        k: Targets per position.
        kind: ``'uniform'``, or ``'inverse'`` for ``1 / i`` at the i-th place, counted from 1.
        device: Where to put them.

    Returns:
        ``[K]`` float64 (float32 on mps, which has no other), or ``None`` for uniform weights.

    Raises:
        ValueError: For another ``kind``.
    """
    if kind not in TARGET_WEIGHTS:
        raise ValueError(f"target_weights={kind!r} is none of {', '.join(TARGET_WEIGHTS)}.")
    if kind == "uniform":
        return None
    weights_K = 1 / torch.arange(1, k + 1, dtype=torch.float64)
    weights_K = weights_K / weights_K.mean()
    return weights_K if device is None else _on(device, weights_K)


def _on(device: torch.device, weights_K: Tensor) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return weights_K.to(dtype).to(device)
