"""What a training step of a model computes, in floating point operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.models import ComposerModel
from torch import nn

__all__ = ["FlopCounter", "attention_width", "flop_counter", "matmul_parameters"]

FlopCounter = Callable[[Any], float]
"""FLOPs of the forward and the backward of a batch as the model is given it: of B rows of P positions."""


_LAYERS = ("num_hidden_layers", "n_layers", "n_layer")


_WIDTHS = ("hidden_size", "d_model", "n_embd")


_HEADS = ("num_attention_heads", "n_heads", "n_head")


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def flop_counter(model: ComposerModel) -> FlopCounter:
    """Counts a model's FLOPs as the model itself does (``flops_per_batch``), or by the usual estimate.

    The estimate is ``6 N + 12 n d P`` for a position (Kaplan et al., arXiv 2001.08361; Chowdhery et al.,
    arXiv 2204.02311, appendix B): N parameters that multiply (:func:`matmul_parameters`), n layers of
    attention of width d over P positions, masked ones included. MPT's own count is the same. The lookups
    of a patch's embeddings and the loss are left out.

    Call it before the model is wrapped: FSDP leaves each rank a shard of the parameters.

    Args:
        model: The Composer model.

    Returns:
        A function of a batch that has token ids (B, P); 0 for any other.
    """
    parameters = matmul_parameters(model)
    width = attention_width(model)
    own: Callable[[Any], float] | None = getattr(model, "flops_per_batch", None)
    if callable(own):
        # llm-foundry's models count their parameters at the first call and keep the number.
        getattr(model, "n_active_params", None)

    def count(batch: Any) -> float:
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(ids, torch.Tensor) or ids.dim() < 2:
            return 0.0
        if callable(own):
            return float(own(batch))
        B, P = ids.shape[:2]
        return float(B * P * (6 * parameters + 12 * width * P))

    return count


def matmul_parameters(model: ComposerModel) -> int:
    """Parameters that a position is multiplied by.

    Embeddings are looked up and do not count, unless they are the output layer as well; of a mixture's
    experts those that a position is sent to do.
    """
    inner = getattr(model, "model", model)
    find: Callable[[], Any] | None = getattr(inner, "get_output_embeddings", None)
    output = getattr(find() if find is not None else None, "weight", None)
    looked_up = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight is not output
    }
    active = _share_of_experts(_config(model))
    total = 0.0
    for name, parameter in model.named_parameters():
        if id(parameter) not in looked_up:
            total += parameter.numel() * (active if ".experts." in name else 1.0)
    return round(total)


def attention_width(model: ComposerModel) -> int:
    """Layers times the width of their attention; 0 where the model's config names neither."""
    config = _config(model)
    layers, width, heads = (_first(config, names) for names in (_LAYERS, _WIDTHS, _HEADS))
    head = getattr(config, "head_dim", None)
    return layers * (heads * head if isinstance(head, int) and heads else width)


def _share_of_experts(config: Any) -> float:
    experts, chosen = _first(config, _EXPERTS), _first(config, ("num_experts_per_tok",))
    return chosen / experts if experts and chosen else 1.0


def _config(model: ComposerModel) -> Any:
    return getattr(model, "config", None) or getattr(getattr(model, "model", None), "config", None)


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next((v for name in names if isinstance(v := getattr(config, name, None), int)), 0)
