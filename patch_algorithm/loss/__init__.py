"""Tensors: the K-target cross-entropy, with one softmax per position.

Pure functions that need only torch.
"""

from __future__ import annotations

from patch_algorithm.loss.cross_entropy import IGNORE_INDEX, PatchLoss, patch_cross_entropy
from patch_algorithm.loss.kernels import LOSS_KERNELS
from patch_algorithm.loss.weights import (
    TARGET_WEIGHTS,
    TargetWeights,
    checked_target_weights,
    target_weights,
)

__all__ = [
    "IGNORE_INDEX",
    "LOSS_KERNELS",
    "TARGET_WEIGHTS",
    "PatchLoss",
    "TargetWeights",
    "checked_target_weights",
    "patch_cross_entropy",
    "target_weights",
]
