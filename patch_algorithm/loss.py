"""The K-target cross-entropy of patch-level training, exact and with one softmax per position.

Shapes: N positions (all leading dimensions, flattened), V vocabulary, K targets per position.

The paper scores one output distribution against every token of the next patch (arXiv 2407.12665,
equation 2); over the valid (position, target) pairs that is

    sum_i (n_i * logsumexp(z_i) - sum_j z_i[y_ij]),    n_i = number of valid targets of position i

so a single log-sum-exp and K gathered logits per position suffice, where K calls of an ordinary
cross-entropy would repeat the softmax K times. With weights by the place in the patch, n_i is the sum
of the weights of the valid targets, and a gathered logit counts as its target does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["IGNORE_INDEX", "TARGET_WEIGHTS", "PatchLoss", "patch_cross_entropy", "target_weights"]

IGNORE_INDEX = -100
"""Label value that marks a token as not scored, as in torch and Hugging Face."""

TARGET_WEIGHTS = ("uniform", "inverse")
"""How a position's targets may be weighed by their place in the next patch."""

# Rows are upcast and exponentiated a chunk at a time: small enough to stay in a CPU's cache, large
# enough on an accelerator that launching the kernels costs nothing beside running them.
_CHUNK_ELEMENTS_CPU = 2**19
_CHUNK_ELEMENTS_ACCELERATOR = 2**25


@dataclass(frozen=True)
class PatchLoss:
    """What :func:`patch_cross_entropy` returns; all three are scalar tensors.

    Attributes:
        sum: Cross-entropy in nats, summed over the valid (position, target) pairs; differentiable.
            float32, or float64 if the logits are.
        count: Number of valid pairs, int64.
        hits: Number of valid pairs whose target is the position's most likely token, int64.
    """

    sum: Tensor
    count: Tensor
    hits: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over the valid pairs; zero where there is none."""
        return self.sum / self.count.clamp(min=1)


def target_weights(k: int, kind: str, device: torch.device | None = None) -> Tensor | None:
    """Weights of a position's targets by their place in the next patch; their mean is 1.

    The published ablation (arXiv 2605.06546, appendix D) finds uniform weights best up to about 6
    tokens, and ``1 / i`` slightly better from about 8 on.

    Args:
        k: Targets per position.
        kind: ``'uniform'``, or ``'inverse'`` for ``1 / i`` at the i-th place, counted from 1.
        device: Where to put them.

    Returns:
        ``[K]`` float64, or ``None`` for uniform weights.

    Raises:
        ValueError: For another ``kind``.
    """
    if kind not in TARGET_WEIGHTS:
        raise ValueError(f"target_weights={kind!r} is none of {', '.join(TARGET_WEIGHTS)}.")
    if kind == "uniform":
        return None
    weights_K = 1 / torch.arange(1, k + 1, dtype=torch.float64, device=device)
    return weights_K / weights_K.mean()


def patch_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int = IGNORE_INDEX,
    weights: Tensor | None = None,
) -> PatchLoss:
    """Scores each position's distribution against all of its targets.

    The arithmetic is float32 whatever the dtype of the logits (float64 for float64 logits), upcast
    in chunks of rows; the gradient is the only buffer of the size of the logits. With one target
    per position this is ordinary cross-entropy. The order of a position's targets is irrelevant, and
    a token that stands twice in a patch counts twice (equation 2).

    Args:
        logits: ``[..., V]``, any floating dtype.
        targets: ``[..., K]``, int64 token ids, with the same leading dimensions.
        ignore_index: Target value that is not scored.
        weights: ``[K]``, what a target counts by its place among the position's targets; see
            :func:`target_weights`. The number of pairs stays a plain number, so that with weights of
            mean 1 microbatches can be weighed by it.

    Returns:
        The sum, the number of pairs and the number of hits; divide for the mean.

    Raises:
        ValueError: If the leading dimensions differ, or there is not one weight for each target.

    Example:
        >>> import torch
        >>> logits_BPV = torch.zeros(1, 2, 3)
        >>> targets_BPK = torch.tensor([[[0, 1], [2, -100]]])
        >>> loss = patch_cross_entropy(logits_BPV, targets_BPK)
        >>> int(loss.count), round(float(loss.mean), 4)  # ln 3: every token is equally likely
        (3, 1.0986)
    """
    if logits.shape[:-1] != targets.shape[:-1]:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} "
            "disagree in their leading dimensions; expected [..., V] and [..., K]."
        )
    if weights is not None and weights.shape != targets.shape[-1:]:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not fit {targets.shape[-1]} targets per position."
        )
    logits_NV = logits.reshape(-1, logits.shape[-1])
    targets_NK = targets.reshape(-1, targets.shape[-1])
    parts = cast(
        "tuple[Tensor, Tensor, Tensor]",
        _PatchCrossEntropy.apply(logits_NV, targets_NK, ignore_index, weights),
    )
    return PatchLoss(*parts)


def _rows_per_chunk(logits_NV: Tensor) -> int:
    cpu = logits_NV.device.type == "cpu"
    budget = _CHUNK_ELEMENTS_CPU if cpu else _CHUNK_ELEMENTS_ACCELERATOR
    return max(1, budget // logits_NV.shape[1])


def _chunks(logits_NV: Tensor) -> list[slice]:
    step = _rows_per_chunk(logits_NV)
    return [slice(start, start + step) for start in range(0, logits_NV.shape[0], step)]


def _work(logits_NV: Tensor, dtype: torch.dtype) -> Tensor:
    """One buffer for all chunks: on a CPU, fresh memory for each costs more than the arithmetic."""
    rows = min(_rows_per_chunk(logits_NV), logits_NV.shape[0])
    return logits_NV.new_empty((rows, logits_NV.shape[1]), dtype=dtype)


def _upcast(rows_nV: Tensor, work_nV: Tensor) -> Tensor:
    if rows_nV.dtype == work_nV.dtype:
        return rows_nV
    return work_nV[: len(rows_nV)].copy_(rows_nV)


class _PatchCrossEntropy(torch.autograd.Function):
    """Saves one log-sum-exp per row, and makes the gradient from it in one pass over the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_NK: Tensor, ignore_index: int, weights_K: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        valid_NK = targets_NK != ignore_index
        safe_NK = targets_NK.masked_fill(~valid_NK, 0)
        weight_NK = valid_NK if weights_K is None else valid_NK * weights_K.to(logits_NV.device, dtype)
        weight_N = weight_NK.sum(dim=-1)
        # Relative to the maximum, as in a log-softmax: a log-sum-exp with the maximum added back
        # loses the digits that a large offset common to a position's logits takes up.
        max_N = logits_NV.new_empty(logits_NV.shape[0], dtype=dtype)
        best_N = torch.empty_like(max_N, dtype=torch.int64)
        sum_N = torch.empty_like(max_N)
        work_nV = _work(logits_NV, dtype)
        for rows in _chunks(logits_NV):
            chunk_nV = _upcast(logits_NV[rows], work_nV)
            torch.max(chunk_nV, dim=-1, out=(max_N[rows], best_N[rows]))
            exp_nV = torch.sub(chunk_nV, max_N[rows, None], out=work_nV[: len(chunk_nV)]).exp_()
            torch.sum(exp_nV, dim=-1, out=sum_N[rows])
        chosen_NK = logits_NV.gather(1, safe_NK).to(dtype) - max_N[:, None]
        # where(), not a product with the mask: the sum stays finite whatever an unscored position holds.
        gain = torch.where(valid_NK, chosen_NK if weights_K is None else chosen_NK * weight_NK, 0).sum()
        total = torch.where(weight_N > 0, weight_N * sum_N.log(), 0).sum() - gain
        hits = ((safe_NK == best_N[:, None]) & valid_NK).sum()
        count = valid_NK.sum()
        ctx.save_for_backward(logits_NV, max_N, sum_N, safe_NK, weight_NK, weight_N)
        ctx.mark_non_differentiable(count, hits)
        return total, count, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits_NV, max_N, sum_N, safe_NK, weight_NK, weight_N = ctx.saved_tensors
        weight_N1 = ((weight_N * grads[0]) / sum_N)[:, None]
        minus_NK = weight_NK * -grads[0]
        grad_NV = torch.empty_like(logits_NV)
        # Rows already in the accumulation dtype are worked on in place, in the result.
        in_place = logits_NV.dtype == sum_N.dtype
        work_nV = None if in_place else _work(logits_NV, sum_N.dtype)
        for rows in _chunks(logits_NV):
            chunk_nV = logits_NV[rows] if work_nV is None else _upcast(logits_NV[rows], work_nV)
            result_nV = grad_NV[rows] if work_nV is None else chunk_nV
            torch.sub(chunk_nV, max_N[rows, None], out=result_nV).exp_().mul_(weight_N1[rows])
            result_nV.scatter_add_(1, safe_NK[rows], minus_NK[rows])
            if not in_place:
                grad_NV[rows] = result_nV
        return grad_NV, None, None, None
