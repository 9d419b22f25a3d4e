"""The data loader ``pile``: rows of a dataset, checked, for llm-foundry."""

from __future__ import annotations

from patch_algorithm.data.loader.dataloader import build_pile_dataloader
from patch_algorithm.data.loader.mixtures import PILE, mixture_shares
from patch_algorithm.data.loader.streams import ShardError

__all__ = ["PILE", "ShardError", "build_pile_dataloader", "mixture_shares"]
