"""The K-target cross-entropy in torch, a chunk of rows at a time.

Shapes: N positions, V vocabulary, K targets per position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["PatchCrossEntropy", "refuse_second_derivative"]

# Rows are upcast and exponentiated a chunk at a time, in 5 or 6 passes each way, which should find the chunk
# in a cache: 16 MiB of float32 on an accelerator, where an A100 has 40 MB of L2 and an H100 50. On a CPU
# threads wait for each other after every pass, so that chunks of 8 MiB are faster than those that fit its L2.
_CHUNK_ELEMENTS_CPU = 2**21
_CHUNK_ELEMENTS_ACCELERATOR = 2**22

# On a CPU, torch takes 5 times as long for the place of a maximum as for the maximum.
_BLOCK = 128


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


def _max(chunk_nV: Tensor, max_n: Tensor, best_n: Tensor) -> None:
    """Writes the maximum of each row, and its first place."""
    V = chunk_nV.shape[1]
    blocks, rest = divmod(V, _BLOCK)
    if blocks < 2 or chunk_nV.device.type != "cpu":
        torch.max(chunk_nV, dim=-1, out=(max_n, best_n))
        return
    block_max_nG = chunk_nV.new_empty((len(chunk_nV), blocks + (rest > 0)))
    whole_nGb = chunk_nV[:, : V - rest].unflatten(1, (blocks, _BLOCK))
    torch.amax(whole_nGb, dim=-1, out=block_max_nG[:, :blocks])
    if rest:
        torch.amax(chunk_nV[:, V - rest :], dim=-1, out=block_max_nG[:, blocks])
    torch.max(block_max_nG, dim=-1, out=(max_n, best_n))
    places_nb = best_n[:, None] * _BLOCK + torch.arange(_BLOCK)
    places_nb.clamp_(max=V - 1)  # the last block is short
    is_best_nb = chunk_nV.gather(1, places_nb) == max_n[:, None]
    torch.amin(places_nb.masked_fill_(~is_best_nb, V), dim=-1, out=best_n)


def refuse_second_derivative() -> None:
    """Refuses a backward pass that is itself recorded: its result would silently be a constant.

    Raises:
        RuntimeError: With ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The patch loss cannot be differentiated twice, so create_graph=True is not supported. Use "
            "optimizers and algorithms that need first derivatives only, or train at token level."
        )


class PatchCrossEntropy(torch.autograd.Function):
    """Saves one log-sum-exp per row, and makes the gradient from it in one pass over the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_NK: Tensor, ignore_index: int, weights_K: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum, the number of valid pairs and the number of hits."""
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
            _max(chunk_nV, max_N[rows], best_N[rows])
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the sum.

        Raises:
            RuntimeError: If it is to be differentiated again.
        """
        refuse_second_derivative()
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
