"""Reads from a model its embeddings, its context, its router losses, and how it keeps documents apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from composer.models import ComposerModel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from patch_algorithm.common.context import stated_context
from patch_algorithm.patching.documents import DOCUMENT_KEYS, documents_of

__all__ = [
    "adds_router_loss",
    "context_length",
    "further_embeddings",
    "input_embedding",
    "is_mpt",
    "router_loss_weight",
    "unused_documents",
    "unwrap",
    "used_document_keys",
]

_ROUTER_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")


def used_document_keys(batch: Mapping[str, Any], model: ComposerModel) -> tuple[str, ...]:
    """Which of :data:`.DOCUMENT_KEYS` the batch holds and the model uses to keep documents apart.

    These are ``sequence_id`` if MPT masks attention by it (``attn_uses_sequence_id``), and
    ``position_ids`` that restart inside a row, if the model's forward takes them.
    """
    keys = []
    if "sequence_id" in batch and _masks_by_sequence_id(model):
        keys.append("sequence_id")
    if _takes_positions(model) and _several_documents(batch, "position_ids"):
        keys.append("position_ids")
    return tuple(keys)


def unused_documents(batch: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Whether a batch marks documents by a key that the model does not use."""
    return not keys and any(_several_documents(batch, key) for key in DOCUMENT_KEYS)


def _mpt_attention(model: ComposerModel) -> Mapping[str, Any] | None:
    attention = getattr(getattr(model, "config", None), "attn_config", None)
    return attention if isinstance(attention, Mapping) else None


def is_mpt(model: ComposerModel) -> bool:
    """Whether the model's config is MPT's."""
    return _mpt_attention(model) is not None


def _masks_by_sequence_id(model: ComposerModel) -> bool:
    attention = _mpt_attention(model)
    return attention is not None and bool(attention.get("attn_uses_sequence_id"))


def _takes_positions(model: ComposerModel) -> bool:
    attention = _mpt_attention(model)
    if attention is not None:  # MPT's forward names positions, whether or not anything adds them
        rope = attention.get("rope") and attention.get("rope_impl") == "hf"
        return bool(getattr(model.config, "learned_pos_emb", False) or rope)
    # Composer hands Hugging Face models what their forward names.
    return "position_ids" in getattr(model, "model_forward_args", ())


def _several_documents(batch: Mapping[str, Any], key: str) -> bool:
    documents_BT = documents_of(batch, (key,))
    return documents_BT is not None and bool((documents_BT > 0).any())


def unwrap(model: nn.Module) -> ComposerModel:
    """The Composer model inside the trainer's distributed wrapper, if there is one."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not isinstance(inner, ComposerModel):
        raise ValueError(f"Expected a ComposerModel, got {type(inner).__name__}.")
    return inner


def input_embedding(model: ComposerModel) -> nn.Module:
    """The module that turns token ids into embeddings, inside FSDP's wrapper if it has one.

    Raises:
        ValueError: If it cannot be found.
    """
    inner = getattr(model, "model", model)
    named = (_named_embedding(owner) for owner in (inner, model))
    embedding = next((module for module in named if module is not None), None)
    if embedding is None:
        raise ValueError(
            f"{type(inner).__name__} names no input embedding, and patch-level training averages its "
            "outputs. Give the model, or the Composer model around it, a method get_input_embeddings() "
            "that returns the module, or train this model at token level."
        )
    while isinstance(embedding, FullyShardedDataParallel):
        embedding = embedding.module
    return embedding


def _named_embedding(owner: object) -> nn.Module | None:
    find: Callable[[], Any] | None = getattr(owner, "get_input_embeddings", None)
    try:
        embedding = find() if find is not None else None
    except NotImplementedError:  # transformers' own, in models that do not say
        return None
    return embedding if isinstance(embedding, nn.Module) else None


def further_embeddings(model: ComposerModel) -> dict[str, nn.Module]:
    """All embedding tables other than the input embedding, by their paths."""
    embedding = input_embedding(model)
    own = set(embedding.modules())  # an adapter may have wrapped it
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(getattr(module, "num_embeddings", None), int)
        and module not in own
        and embedding not in module.modules()  # wrappers tell what is inside of them
    }


def context_length(model: ComposerModel) -> int | None:
    """The longest sequence the model takes, in positions; ``None`` if its config names no limit.

    Read from the config of the model, of the model inside it, or of its text part, under any of
    :data:`.CONTEXT_NAMES`.
    """
    owners = (model, getattr(model, "model", None))
    lengths = (stated_context(getattr(owner, "config", None)) for owner in owners)
    return next((length for length in lengths if length is not None), None)


def router_loss_weight(model: ComposerModel) -> float:
    """The weight that a Hugging Face mixture of experts gives its router loss.

    Raises:
        ValueError: If it does not say.
    """
    inner = getattr(model, "model", model)
    for owner in (inner, getattr(inner, "config", None), getattr(model, "config", None)):
        for name in _ROUTER_WEIGHTS:
            weight = getattr(owner, name, None)
            if isinstance(weight, (int, float)):
                return weight
    raise ValueError(
        f"{type(inner).__name__} returns a router loss, but neither it nor its config gives its weight "
        f"({', '.join(_ROUTER_WEIGHTS)}). Set output_router_logits to false in its config."
    )


def adds_router_loss(model: ComposerModel) -> bool:
    """Whether the model is an MPT of MegaBlocks layers, whose own loss adds a router loss."""
    layers = getattr(getattr(model, "config", None), "ffn_config", None)
    if not is_mpt(model) or not isinstance(layers, Mapping):
        return False
    from llmfoundry.layers_registry import ffns_with_megablocks

    return layers.get("ffn_type") in ffns_with_megablocks.get_all()
