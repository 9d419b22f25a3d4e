"""The K-target cross-entropy of patch-level training, exact and with one softmax per position.

Shapes: N positions (all leading dimensions, flattened), V vocabulary, K targets per position.

The paper scores one output distribution against every token of the next patch (arXiv 2407.12665,
equation 2); over the valid (position, target) pairs that is

    sum_i (n_i * logsumexp(z_i) - sum_j z_i[y_ij]),    n_i = number of valid targets of position i

so a single log-sum-exp and K gathered logits per position suffice, while K calls of an ordinary
cross-entropy would repeat the softmax K times. With weights by the place in the patch, n_i is the sum
of the weights of the valid targets, and each gathered logit has the weight of its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from patch_algorithm.loss.chunked import PatchCrossEntropy
from patch_algorithm.loss.kernels import chosen_kernel

__all__ = ["IGNORE_INDEX", "PatchLoss", "patch_cross_entropy"]

IGNORE_INDEX = -100
"""Label value that marks a token as not scored, as in torch and Hugging Face."""


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


def patch_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int = IGNORE_INDEX,
    weights: Tensor | None = None,
    kernel: str = "auto",
) -> PatchLoss:
    """Scores each position's distribution against all of its targets.

    The arithmetic is float32 whatever the dtype of the logits (float64 for float64 logits), upcast
    in chunks of rows; the gradient is the only buffer of the size of the logits. With one target
    per position this is ordinary cross-entropy. The order of a position's targets is irrelevant, and
    a token that occurs twice in a patch counts twice (equation 2).

    Args:
        logits: ``[..., V]``, any floating dtype.
        targets: ``[..., K]``, int64 token ids, with the same leading dimensions.
        ignore_index: Target value that is not scored.
        weights: ``[K]``, the weight of each target by its place among the position's targets; see
            :func:`target_weights`. The number of pairs is not weighted, so that microbatches can be
            averaged by it if the weights have a mean of 1.
        kernel: ``'torch'``, ``'triton'`` for the fused kernels on a CUDA device, or ``'auto'``; see
            :data:`.LOSS_KERNELS`. With ``'triton'`` a target outside the vocabulary makes the loss NaN, where
            torch raises on a CPU and aborts the process on a GPU.

    Returns:
        The sum, the number of pairs and the number of hits; divide for the mean.

    Raises:
        ValueError: If the leading dimensions differ, the number of weights is not the number of targets, or
            the kernel cannot run here.

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
    if chosen_kernel(kernel, logits.device, logits.dtype) == "triton":
        from patch_algorithm.loss.fused import FusedPatchCrossEntropy  # triton is not everywhere

        # Not flattened: of a slice of the positions that would be a copy.
        parts = FusedPatchCrossEntropy.apply(_rows(logits), _rows(targets), ignore_index, weights)
    else:
        logits_NV = logits.reshape(-1, logits.shape[-1])
        targets_NK = targets.reshape(-1, targets.shape[-1])
        parts = PatchCrossEntropy.apply(logits_NV, targets_NK, ignore_index, weights)
    return PatchLoss(*cast("tuple[Tensor, Tensor, Tensor]", parts))


def _rows(tensor: Tensor) -> Tensor:
    """``[B, P, ...]``, whatever the leading dimensions were."""
    if tensor.dim() > 3:
        return tensor.flatten(0, -3)
    return tensor[(None,) * (3 - tensor.dim())]
