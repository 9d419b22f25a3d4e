"""Cuts or folds a whole batch, with all values that belong to its tokens.

Shapes: B rows, T raw tokens a row, K patch size, P positions (T / K).

Everything here is a pure function of tensors and needs only torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from patch_algorithm.loss.cross_entropy import IGNORE_INDEX
from patch_algorithm.patching.documents import documents_of, fold_documents, positions_in_documents
from patch_algorithm.patching.rows import (
    cut_rows,
    fold_rows,
    next_patch_targets,
    next_tokens_targets,
    require_multiple,
)

__all__ = ["PATCH_IDS", "PATCH_MASK", "PATCH_TARGETS", "cut_batch", "fold_batch", "keep_pinned"]

PATCH_IDS = "patch_ids"
"""Batch key of the folded token ids, ``[B, P, K]``."""


PATCH_MASK = "patch_mask"
"""Batch key of the folded attention mask, ``[B, P, K]``; absent where every token is real."""


PATCH_TARGETS = "patch_targets"
"""Batch key of the tokens each position is scored against, ``[B, P, K]``."""


# Keys that fold_batch gives a meaning of their own, or drops.
_FOLDED_KEYS = {"input_ids", "labels", "attention_mask", "sequence_id", "position_ids"}


# Per-row counts that llm-foundry's collator adds, and its trainer weighs microbatches by.
_TOTAL = "total_tokens"


_SCORED = "loss_generating_tokens"


def cut_batch(batch: Mapping[str, Any], length: int, document_keys: Collection[str] = ()) -> dict[str, Any]:
    """Cuts the rows of a batch, with all values that belong to them.

    Args:
        batch: ``input_ids`` ``[B, T]`` and any further values. Tensors of ``[B, T, ...]`` are cut
            alike, and other values with one entry per row are repeated for each piece of the row.
            llm-foundry's per-row counts are recomputed, and the documents of ``sequence_id`` are
            renumbered in each piece.
        length: Tokens per row of the result; divides T.
        document_keys: Which of :data:`.DOCUMENT_KEYS` the model uses to keep documents apart. If
            ``position_ids`` is not among them, it is dropped, and positions restart in each piece. If it
            is, positions restart in each piece and in each document.

    Returns:
        A new batch of ``B * T / length`` rows.

    Raises:
        ValueError: If T is not a multiple of ``length``.
    """
    B, T = batch["input_ids"].shape
    require_multiple(T, length, "cut into rows")
    cut = {key: _cut(value, B, T, length) for key, value in batch.items() if key != "position_ids"}
    if _TOTAL in cut:
        cut[_TOTAL] = _real_tokens(cut["input_ids"], cut.get("attention_mask"))
    if "attention_mask" in cut:
        cut["attention_mask"] = _with_a_first_token(cut["attention_mask"])
    if "sequence_id" in cut:
        # After the mask: a real token, even a made-up one, needs a document.
        cut["sequence_id"] = documents_of(cut, ("sequence_id",))
    if "position_ids" in batch and "position_ids" in document_keys:
        documents_BT = documents_of(batch, document_keys)
        if documents_BT is not None:
            cut["position_ids"] = positions_in_documents(cut_rows(documents_BT, length))
    if _SCORED in cut:
        cut[_SCORED] = (cut["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
    return cut


def _cut(value: Any, B: int, T: int, length: int) -> Any:
    pieces = T // length
    if isinstance(value, Tensor) and value.shape[:2] == (B, T):
        return cut_rows(value, length)
    if isinstance(value, Tensor) and value.shape[:1] == (B,):
        return value.repeat_interleave(pieces, dim=0)
    if isinstance(value, list) and len(value) == B:
        return [entry for entry in value for _ in range(pieces)]
    return value


def fold_batch(
    batch: Mapping[str, Any],
    k: int,
    *,
    patch_inputs: bool = True,
    patch_targets: bool = True,
    document_keys: Collection[str] = (),
) -> dict[str, Any]:
    """Folds a batch of token rows into patches.

    Rows with an attention mask whose length is not a multiple of ``k`` are padded on the right with
    tokens that are neither read nor scored. A patch without a real token is masked and predicts nothing.

    Args:
        batch: ``input_ids`` and ``labels`` ``[B, T]`` int64, aligned; ``attention_mask`` ``[B, T]``
            if there is padding. Values with one entry per row are kept.
        k: Patch size.
        patch_inputs: Whether positions read patches. If not, they read single tokens, and P = T.
        patch_targets: Whether positions are scored against the next ``k`` tokens. If not, only against
            the next token.
        document_keys: Which of :data:`.DOCUMENT_KEYS` the model uses to keep documents apart; see
            :mod:`patch_algorithm.patching.documents`. The others are dropped, which concatenates documents.
            Targets come only from ``labels``, across documents too, as at token level.

    Returns:
        A new batch. ``input_ids`` ``[B, P]`` (each patch's first token: models read its shape),
        ``attention_mask`` ``[B, P]`` if there was one, :data:`PATCH_IDS`, :data:`PATCH_TARGETS` and,
        with a mask or documents, :data:`PATCH_MASK`, all ``[B, P, K]`` (K is 1 where a side is single
        tokens); ``sequence_id`` and ``position_ids`` ``[B, P]`` if asked for; ``total_tokens`` (raw
        tokens) and ``loss_generating_tokens`` (valid pairs of position and target), lists with an
        entry per row.

    Raises:
        ValueError: If T is not a multiple of ``k`` and there is no mask, or if the batch holds a further
            value per token, which cannot be folded.
    """
    B, T = batch["input_ids"].shape
    _refuse_unknown_token_values(batch, B, T)
    K = k if patch_inputs else 1
    mask_BT: Tensor | None = batch.get("attention_mask")
    missing = -T % K if mask_BT is not None else 0
    folded = {key: value for key, value in batch.items() if key not in _FOLDED_KEYS}
    ids_BPK = fold_rows(_padded(batch["input_ids"], missing, 0), K)
    labels_BT = _padded(batch["labels"], missing, IGNORE_INDEX)
    targets_BPK = _targets(labels_BT, k, patch_inputs, patch_targets)
    mask_BPK, of_documents = _fold_masks(batch, document_keys, K, missing)
    folded |= of_documents
    if mask_BPK is not None:
        folded[PATCH_MASK] = mask_BPK
    if mask_BPK is not None and mask_BT is not None:
        mask_BP = mask_BPK.to(mask_BT.dtype).amax(dim=-1)
        targets_BPK = targets_BPK.masked_fill(~mask_BP.bool()[..., None], IGNORE_INDEX)
        folded["attention_mask"] = mask_BP
    folded["input_ids"] = ids_BPK[:, :, 0].contiguous()
    folded[PATCH_IDS] = ids_BPK
    folded[PATCH_TARGETS] = targets_BPK
    if _TOTAL not in batch:
        folded[_TOTAL] = _real_tokens(batch["input_ids"], mask_BT)
    folded[_SCORED] = (targets_BPK != IGNORE_INDEX).sum(dim=(1, 2)).tolist()
    return folded


def keep_pinned(batch: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Pins what was made from a pinned batch, so that copying it to a GPU still does not block.

    Args:
        batch: What the data loader gave.
        made: What :func:`cut_batch` or :func:`fold_batch` made of it: partly views, partly new tensors.

    Returns:
        ``made`` itself where the batch is not pinned.
    """
    if not batch["input_ids"].is_pinned():
        return made
    return {
        key: value.pin_memory() if isinstance(value, Tensor) and not value.is_pinned() else value
        for key, value in made.items()
    }


def _padded(rows_BT: Tensor, missing: int, value: int) -> Tensor:
    """Rows with ``missing`` values added on the right; the rows themselves if none is, as padding copies."""
    return F.pad(rows_BT, (0, missing), value=value) if missing else rows_BT


def _fold_masks(
    batch: Mapping[str, Any], document_keys: Collection[str], K: int, missing: int
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Which tokens each patch reads, ``[B, P, K]`` (``None``: all), and the patches' documents by key."""
    documents_BT = documents_of(batch, document_keys)
    if documents_BT is None:
        mask_BT: Tensor | None = batch.get("attention_mask")
        return None if mask_BT is None else fold_rows(_padded(mask_BT, missing, 0), K), {}
    documents = fold_documents(fold_rows(_padded(documents_BT, missing, -1), K))
    of_documents = {}
    if "sequence_id" in document_keys and "sequence_id" in batch:
        of_documents["sequence_id"] = documents.documents_BP
    if "position_ids" in document_keys and "position_ids" in batch:
        of_documents["position_ids"] = positions_in_documents(documents.documents_BP)
    return documents.mask_BPK, of_documents


def _targets(labels_BT: Tensor, k: int, patch_inputs: bool, patch_targets: bool) -> Tensor:
    if not patch_inputs:
        return next_tokens_targets(labels_BT, k if patch_targets else 1)
    targets_BPK = next_patch_targets(labels_BT, k)
    return targets_BPK if patch_targets else targets_BPK[..., :1].contiguous()


def _real_tokens(ids_BT: Tensor, mask_BT: Tensor | None) -> list[int]:
    if mask_BT is None:
        return [ids_BT.shape[1]] * ids_BT.shape[0]
    return mask_BT.sum(dim=1).tolist()


def _with_a_first_token(mask_BT: Tensor) -> Tensor:
    """Unmasks the first token of rows that are all padding, which models refuse or turn into NaN.

    Such a row is a piece of a longer one. Its labels are ignored, so it predicts nothing either way. If it
    were left out, ranks could have different numbers of microbatches.
    """
    empty_B = ~mask_BT.bool().any(dim=1)
    mask_BT = mask_BT.clone()
    mask_BT[:, 0] = mask_BT[:, 0].masked_fill(empty_B, 1)
    return mask_BT


def _refuse_unknown_token_values(batch: Mapping[str, Any], B: int, T: int) -> None:
    for key, value in batch.items():
        per_token = isinstance(value, Tensor) and value.shape[:2] == (B, T)
        if per_token and key not in _FOLDED_KEYS:
            raise ValueError(
                f"The batch holds {key!r} of shape {tuple(value.shape)}, one value per token, and "
                "patch-level training cannot fold it. Remove it from the data loader, "
                "or train this data at token level."
            )
