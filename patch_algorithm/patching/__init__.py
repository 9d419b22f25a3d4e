"""Tensors: cutting rows of tokens, folding them into patches, averaging a patch's embeddings.

Pure functions that need only torch.
"""

from __future__ import annotations

from patch_algorithm.loss import IGNORE_INDEX
from patch_algorithm.patching.batches import (
    PATCH_IDS,
    PATCH_MASK,
    PATCH_TARGETS,
    cut_batch,
    fold_batch,
)
from patch_algorithm.patching.rows import (
    cut_rows,
    fold_rows,
    mean_of_patch,
    next_patch_targets,
    next_tokens_targets,
)

__all__ = [
    "IGNORE_INDEX",
    "PATCH_IDS",
    "PATCH_MASK",
    "PATCH_TARGETS",
    "cut_batch",
    "cut_rows",
    "fold_batch",
    "fold_rows",
    "mean_of_patch",
    "next_patch_targets",
    "next_tokens_targets",
]
