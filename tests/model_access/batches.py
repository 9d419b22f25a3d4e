"""Folded and token-level batches, and a model armed with one.

Shapes: B rows, P positions, K patch size.
"""

from __future__ import annotations

from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor

from patch_algorithm.model_access.hooks import ModelHooks
from patch_algorithm.patching import fold_batch
from tests.runs.short import make_padded_rows, make_rows

B, P, K = 2, 4, 3


def make_batch(seed: int = 0, padded: bool = False) -> dict[str, Any]:
    """A folded batch, as patch_level gives it to the model."""
    rows = (make_padded_rows if padded else make_rows)(B, P * K, seed)
    return fold_batch({key: torch.stack([row[key] for row in rows]) for key in rows[0]}, K)


def tokens(seed: int) -> dict[str, Tensor]:
    """A token-level batch of the same shape as the folded one's."""
    return {"input_ids": torch.stack([row["input_ids"] for row in make_rows(B, P, seed)])}


def armed(model: ComposerModel, batch: dict[str, Any]) -> ModelHooks:
    hooks = ModelHooks(model)
    hooks.attach()
    model.train()(batch)
    return hooks


def embeddings(model: Any, batch: dict[str, Any]) -> Tensor:
    """What the layers behind the embedding are given."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(batch)
    handle.remove()
    return seen[0]
