"""How much each token of the next patch counts in the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor

__all__ = ["TARGET_WEIGHTS", "TargetWeights", "checked_target_weights", "target_weights"]

TARGET_WEIGHTS = ("uniform", "inverse")
"""How a position's targets may be weighted by their place in the next patch, by name."""

TargetWeights = str | tuple[float, ...]
"""A name of :data:`TARGET_WEIGHTS`, or a weight for each place."""


def checked_target_weights(kind: object, ks: Sequence[int] = ()) -> TargetWeights:
    """``kind``, if it is a known name or a list of weights, one for each place of a patch.

    Args:
        kind: What was asked for.
        ks: Targets per position in each weighted stage; a list has to fit all of them.

    Raises:
        ValueError: If it is neither; or if a list holds a weight that is negative or not finite, only
            zeros, or not one weight per target.
    """
    if isinstance(kind, str) or not isinstance(kind, Sequence):
        if kind not in TARGET_WEIGHTS:
            raise ValueError(
                f"target_weights={kind!r} is neither one of {', '.join(TARGET_WEIGHTS)} nor a list of k "
                "numbers."
            )
        return cast(str, kind)
    weights = tuple(cast("Sequence[object]", kind))
    shown = f"target_weights={list(weights)!r}"
    numbers = tuple(float(one) for one in weights if _is_weight(one))
    if len(numbers) < len(weights) or not any(numbers):
        raise ValueError(f"{shown} must hold finite numbers of at least 0, not all of them 0.")
    for k in ks:
        if k != len(numbers):
            raise ValueError(
                f"{shown} holds {len(numbers)} weights where a position has {k} target{'s' * (k != 1)}; "
                "expected one for each token of the next patch, the first token's first."
            )
    return numbers


def target_weights(k: int, kind: str | Sequence[float], device: torch.device | None = None) -> Tensor | None:
    """The weights of a position's targets, by their place in the next patch; their mean is 1.

    The published ablation (arXiv 2605.06546, appendix D) finds uniform weights best up to 6
    tokens, no difference at 8, and ``1 / i`` better by about 0.002 nats from 10 on.

    Args:
        k: Targets per position.
        kind: ``'uniform'``; ``'inverse'``, which is ``1 / i`` for the i-th token, counted from 1; or ``k``
            numbers, of which only the ratios matter.
        device: Where to put them.

    Returns:
        ``[K]`` float64 (float32 on mps, which has no other), or ``None`` for uniform weights.

    Raises:
        ValueError: For another ``kind``.
    """
    kind = checked_target_weights(kind, (k,))
    if kind == "uniform":
        return None
    if isinstance(kind, str):
        weights_K = 1 / torch.arange(1, k + 1, dtype=torch.float64)
    else:
        # By the largest first: the sum of huge ones would overflow.
        weights_K = torch.tensor(kind, dtype=torch.float64) / max(kind)
    weights_K = weights_K / weights_K.mean()
    return weights_K if device is None else _on(device, weights_K)


def _is_weight(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value >= 0


def _on(device: torch.device, weights_K: Tensor) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return weights_K.to(dtype).to(device)
