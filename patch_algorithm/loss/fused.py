"""The K-target cross-entropy by Triton kernels, as an autograd function that never waits for the device.

Shapes: B rows, P positions, N = B * P, V vocabulary, K targets per position.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from patch_algorithm.loss import triton_kernels
from patch_algorithm.loss.chunked import refuse_second_derivative

__all__ = ["SUMMED_AT_ONCE", "WARPS", "FusedPatchCrossEntropy", "choices"]

WARPS = 8
SUMMED_AT_ONCE = 1024
_TILE_BYTES = 8192  # two loads of 16 bytes for each thread
_GROUP_BYTES = 16

# Triton's launchers have no types.
_forward_kernel: Any = triton_kernels.forward_kernel
_backward_kernel: Any = triton_kernels.backward_kernel
_sum_kernel: Any = triton_kernels.sum_kernel


def choices(logits_BPV: Tensor, grad_BPV: Tensor, K: int, weighted: bool) -> dict[str, Any]:
    """The constants that the kernels are compiled for.

    Args:
        logits_BPV: The logits.
        grad_BPV: What has the strides of their gradient.
        K: Targets per position.
        weighted: Whether targets are weighted.
    """
    size = logits_BPV.element_size()
    group = _GROUP_BYTES // size
    strides = logits_BPV.stride(), grad_BPV.stride()
    unit = all(stride[-1] == 1 for stride in strides)
    # Where rows start at any address, as with a vocabulary of 50257, the logits up to the next multiple of
    # 16 bytes are taken apart, so that all others can still be read 16 bytes at a time.
    peel = unit and strides[0] == strides[1] and any(stride % group for stride in strides[0][:2])
    most = max(group, triton.next_power_of_2(logits_BPV.shape[-1]))
    return {
        "WEIGHTED": weighted,
        "UNIT": unit,
        "PEEL": peel,
        "BLOCK": min(_TILE_BYTES // size, most),
        "G": group,
        "K_BLOCK": triton.next_power_of_2(K),
        "num_warps": WARPS,
    }


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


class FusedPatchCrossEntropy(torch.autograd.Function):
    """Saves the logits, and two numbers of each position."""

    @staticmethod
    def forward(
        ctx: Any, logits_BPV: Tensor, targets_BPK: Tensor, ignore_index: int, weights_K: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum, the number of valid pairs and the number of hits."""
        (B, P, V), K = logits_BPV.shape, targets_BPK.shape[-1]
        new = logits_BPV.new_empty
        if weights_K is not None:
            weights_K = weights_K.to(logits_BPV.device, torch.float32).contiguous()
        max_N, sum_N, loss_N = (new(B * P, dtype=torch.float32) for _ in range(3))
        count_N, hits_N = (new(B * P, dtype=torch.int32) for _ in range(2))
        total, count, hits = (new((), dtype=dtype) for dtype in (torch.float32, torch.int64, torch.int64))
        with _on_device_of(logits_BPV):
            if B * P > 0:
                _forward_kernel[(B * P,)](
                    logits_BPV, targets_BPK, weights_K, max_N, sum_N, loss_N, count_N, hits_N,
                    P, V, K, ignore_index, *logits_BPV.stride(), *targets_BPK.stride(),
                    **choices(logits_BPV, logits_BPV, K, weights_K is not None),
                )  # fmt: skip
            _sum_kernel[(1,)](loss_N, count_N, hits_N, total, count, hits, B * P, BLOCK=SUMMED_AT_ONCE)
        ctx.save_for_backward(logits_BPV, targets_BPK, weights_K, max_N, sum_N)
        ctx.ignore_index = ignore_index
        ctx.mark_non_differentiable(count, hits)
        return total, count, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the sum.

        Raises:
            RuntimeError: If it is to be differentiated again.
        """
        refuse_second_derivative()
        logits_BPV, targets_BPK, weights_K, max_N, sum_N = ctx.saved_tensors
        (B, P, V), K = logits_BPV.shape, targets_BPK.shape[-1]
        # A buffer of its own: nothing says that callbacks, other terms of the loss, a soft-cap's own backward
        # or a second pass over this graph will not read the logits once more.
        grad_BPV = torch.empty_like(logits_BPV)
        if B * P > 0:
            with _on_device_of(logits_BPV):
                _backward_kernel[(B * P,)](
                    logits_BPV, grad_BPV, targets_BPK, weights_K, max_N, sum_N, grads[0],
                    P, V, K, ctx.ignore_index,
                    *logits_BPV.stride(), *grad_BPV.stride(), *targets_BPK.stride(),
                    **choices(logits_BPV, grad_BPV, K, weights_K is not None),
                )  # fmt: skip
        return grad_BPV, None, None, None
