"""Keeping documents apart in rows of patches.

Rows of packed documents come with ``sequence_id``, a document's number for each token, or with
``position_ids`` that restart in each document. A patch belongs to the document of its last real token,
and tokens of other documents are left out of its mean. So no position reads two documents, and the last
tokens of a document that ends inside another document's patch are not read.

Shapes: B rows, T raw tokens a row, K patch size, P positions (T / K).

Everything here is a pure function of tensors and needs only torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DOCUMENT_KEYS",
    "FoldedDocuments",
    "documents_of",
    "fold_documents",
    "number_documents",
    "positions_in_documents",
]

DOCUMENT_KEYS = ("sequence_id", "position_ids")
"""Batch keys that mark documents."""


def documents_of(batch: Mapping[str, Any], keys: Collection[str]) -> Tensor | None:
    """The document of each token.

    With ``sequence_id`` a document ends where the value changes, with ``position_ids`` where positions
    stop rising.

    Args:
        batch: ``sequence_id`` or ``position_ids`` ``[B, T]``, and ``attention_mask`` ``[B, T]`` where
            there is padding. Without a mask, tokens whose ``sequence_id`` is negative are padding.
        keys: Which of :data:`DOCUMENT_KEYS` to use; the first of them that the batch holds counts.

    Returns:
        ``[B, T]`` int64, 0, 1, 2... along each row, -1 on padding; ``None`` if the batch holds none of
        ``keys``.
    """
    key = next((key for key in DOCUMENT_KEYS if key in keys and key in batch), None)
    if key is None:
        return None
    value_BT: Tensor = batch[key]
    mask: Tensor | None = batch.get("attention_mask")
    if mask is not None:
        real_BT = mask.bool()
    else:
        real_BT = value_BT >= 0 if key == "sequence_id" else torch.ones_like(value_BT, dtype=torch.bool)
    before_BT = _value_before(value_BT, real_BT)
    ends_BT = value_BT != before_BT if key == "sequence_id" else value_BT <= before_BT
    return _count_starts(ends_BT, real_BT)


def number_documents(documents_BT: Tensor) -> Tensor:
    """Numbers the documents of each row densely: 0, 1, 2... in their order; -1 stays.

    Args:
        documents_BT: ``[B, T]`` integers that identify documents, -1 where there is none.
    """
    real_BT = documents_BT >= 0
    return _count_starts(documents_BT != _value_before(documents_BT, real_BT), real_BT)


def _value_before(value_BT: Tensor, real_BT: Tensor) -> Tensor:
    """The value of the nearest real token before each; the row's first where there is none."""
    place_T = torch.arange(value_BT.shape[1], device=value_BT.device)
    last_BT = torch.zeros_like(real_BT, dtype=torch.int64)
    last_BT[:, 1:] = (real_BT * place_T).cummax(dim=1).values[:, :-1]
    return value_BT.gather(1, last_BT)


def _count_starts(starts_BT: Tensor, real_BT: Tensor) -> Tensor:
    """Numbers by the starts before each token; a row's first real token is one in any case."""
    first_BT = real_BT & (real_BT.long().cumsum(dim=1) == 1)
    numbers_BT = ((starts_BT & real_BT) | first_BT).long().cumsum(dim=1) - 1
    return numbers_BT.masked_fill(~real_BT, -1)


def positions_in_documents(documents_BP: Tensor) -> Tensor:
    """Positions that start at 0 in each document.

    Args:
        documents_BP: ``[B, P]`` from :func:`number_documents`.

    Returns:
        ``[B, P]`` int64; 0 where there is no document.
    """
    place_BP = torch.arange(documents_BP.shape[1], device=documents_BP.device).expand_as(documents_BP)
    starts_BP = torch.ones_like(documents_BP, dtype=torch.bool)
    starts_BP[:, 1:] = documents_BP[:, 1:] != documents_BP[:, :-1]
    start_BP = place_BP.masked_fill(~starts_BP, 0).cummax(dim=1).values
    return (place_BP - start_BP).masked_fill(documents_BP < 0, 0)


@dataclass(frozen=True)
class FoldedDocuments:
    """Documents in patches.

    Attributes:
        mask_BPK: ``[B, P, K]`` bool, the tokens that a patch reads: real ones of its own document.
        documents_BP: ``[B, P]`` int64, each patch's document, numbered densely; -1 for patches that
            are all padding.
    """

    mask_BPK: Tensor
    documents_BP: Tensor


def fold_documents(documents_BPK: Tensor) -> FoldedDocuments:
    """Gives each patch to the document of its last real token.

    Args:
        documents_BPK: ``[B, P, K]``, the document of each token, -1 on padding.
    """
    K = documents_BPK.shape[-1]
    real_BPK = documents_BPK >= 0
    order_K = torch.arange(1, K + 1, device=documents_BPK.device)
    last_BP1 = (real_BPK * order_K).argmax(dim=-1, keepdim=True)
    owner_BP1 = documents_BPK.gather(-1, last_BP1)  # -1 where no token is real
    return FoldedDocuments(
        mask_BPK=real_BPK & (documents_BPK == owner_BP1),
        documents_BP=number_documents(owner_BP1.squeeze(-1)),
    )
