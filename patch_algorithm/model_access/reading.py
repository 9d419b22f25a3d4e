"""What a model says of itself: its embedding, its context, and what it keeps documents apart by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from composer.models import ComposerModel
from torch import nn

from patch_algorithm.patching.documents import DOCUMENT_KEYS, documents_of

__all__ = ["context_length", "input_embedding", "is_mpt", "unused_documents", "unwrap", "used_document_keys"]


def used_document_keys(batch: Mapping[str, Any], model: ComposerModel) -> tuple[str, ...]:
    """Which of :data:`.DOCUMENT_KEYS` the batch holds and the model keeps documents apart by.

    These are ``sequence_id`` where MPT masks attention by it (``attn_uses_sequence_id``), and
    ``position_ids`` that start anew inside a row, where the model's forward takes them.
    """
    keys = []
    if "sequence_id" in batch and _masks_by_sequence_id(model):
        keys.append("sequence_id")
    if _takes_positions(model) and _several_documents(batch, "position_ids"):
        keys.append("position_ids")
    return tuple(keys)


def unused_documents(batch: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Whether a batch tells documents apart by a key that the model does not go by."""
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


_CONTEXT_NAMES = ("max_seq_len", "max_position_embeddings", "n_positions")


def unwrap(model: nn.Module) -> ComposerModel:
    """The Composer model inside whatever distributed wrapper the trainer put around it."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if not isinstance(inner, ComposerModel):
        raise ValueError(f"Expected a ComposerModel, got {type(inner).__name__}.")
    return inner


def input_embedding(model: ComposerModel) -> nn.Module:
    """The module that turns token ids into embeddings.

    Raises:
        ValueError: If the model names none.
    """
    inner = getattr(model, "model", model)
    find: Callable[[], Any] | None = getattr(inner, "get_input_embeddings", None)
    try:
        embedding = find() if find is not None else None
    except NotImplementedError:  # transformers' own, in models that do not say
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise ValueError(
            f"{type(inner).__name__} names no input embedding (get_input_embeddings), which patch-level "
            "training averages over. Train this model at token level."
        )
    return embedding


def context_length(model: ComposerModel) -> int | None:
    """The longest sequence the model takes, in positions; ``None`` if its config names no limit."""
    config = getattr(model, "config", None)
    for name in _CONTEXT_NAMES:
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None
