"""The K-target cross-entropy of patch-level training, exact and with one softmax per position.

Shapes: N positions (all leading dimensions, flattened), V vocabulary, K targets per position.

The paper scores one output distribution against every token of the next patch (arXiv 2407.12665,
equation 2); over the valid (position, target) pairs that is

    sum_i (n_i * logsumexp(z_i) - sum_j z_i[y_ij]),    n_i = number of valid targets of position i

so a single log-sum-exp and K gathered logits per position suffice, where K calls of an ordinary
cross-entropy would repeat the softmax K times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["IGNORE_INDEX", "PatchLoss", "patch_cross_entropy"]

IGNORE_INDEX = -100
"""Label value that marks a token as not scored, as in torch and Hugging Face."""

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


def patch_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> PatchLoss:
    """Scores each position's distribution against all of its targets.

    The arithmetic is float32 whatever the dtype of the logits (float64 for float64 logits), upcast
    in chunks of rows; the gradient is the only buffer of the size of the logits. With one target
    per position this is ordinary cross-entropy. The order of a position's targets is irrelevant, and
    a token that stands twice in a patch counts twice (equation 2).

    Args:
        logits: ``[..., V]``, any floating dtype.
        targets: ``[..., K]``, int64 token ids, with the same leading dimensions.
        ignore_index: Target value that is not scored.

    Returns:
        The sum, the number of pairs and the number of hits; divide for the mean.

    Raises:
        ValueError: If the leading dimensions differ.

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
    logits_NV = logits.reshape(-1, logits.shape[-1])
    targets_NK = targets.reshape(-1, targets.shape[-1])
    parts = cast(
        "tuple[Tensor, Tensor, Tensor]", _PatchCrossEntropy.apply(logits_NV, targets_NK, ignore_index)
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
        ctx: Any, logits_NV: Tensor, targets_NK: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        valid_NK = targets_NK != ignore_index
        safe_NK = targets_NK.masked_fill(~valid_NK, 0)
        count_N = valid_NK.sum(dim=-1)
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
        gain = torch.where(valid_NK, chosen_NK, 0).sum()
        total = torch.where(count_N > 0, count_N * sum_N.log(), 0).sum() - gain
        hits = ((safe_NK == best_N[:, None]) & valid_NK).sum()
        count = count_N.sum()
        ctx.save_for_backward(logits_NV, max_N, sum_N, safe_NK, valid_NK, count_N)
        ctx.mark_non_differentiable(count, hits)
        return total, count, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, max_N, sum_N, safe_NK, valid_NK, count_N = ctx.saved_tensors
        weight_N1 = ((count_N * grads[0]) / sum_N)[:, None]
        minus_NK = valid_NK * -grads[0]
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
        return grad_NV, None, None
