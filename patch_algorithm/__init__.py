"""Patch-level training for MosaicML Composer and llm-foundry.

For a first share of a pre-training run the model reads *patches*, each the mean of ``k`` consecutive
token embeddings, and predicts from each position all ``k`` tokens of the next patch with one
softmax. Then it switches to ordinary next-token training and ends as an ordinary model
(Shao, Meng and Zhou, ICLR 2025, arXiv 2407.12665).

Importing this package is cheap: :class:`PatchLevel` (which needs Composer) is loaded on first
use; :mod:`patch_algorithm.patching` and :mod:`patch_algorithm.loss` need only torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patch_algorithm.common.version import __version__

if TYPE_CHECKING:
    from patch_algorithm.algorithm import PatchLevel

__all__ = ["PatchLevel", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "PatchLevel":
        from patch_algorithm.algorithm import PatchLevel

        return PatchLevel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
