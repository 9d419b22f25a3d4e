"""Cutting rows of tokens, folding them into patches, and averaging a patch's embeddings.

Shapes: B rows, T raw tokens a row, K patch size, P positions (T / K), D hidden size.

Everything here is a pure function of tensors and needs only torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_algorithm.loss.cross_entropy import IGNORE_INDEX

__all__ = [
    "cut_rows",
    "fold_rows",
    "mean_of_patch",
    "next_patch_targets",
    "next_tokens_targets",
    "require_multiple",
]


def cut_rows(rows_BT: Tensor, length: int) -> Tensor:
    """Cuts each row into consecutive rows of ``length``; no token is lost or reordered.

    Args:
        rows_BT: ``[B, T, ...]``.
        length: Tokens per row of the result; divides T.

    Returns:
        ``[B * T / length, length, ...]``, a view where possible.

    Raises:
        ValueError: If T is not a multiple of ``length``.
    """
    require_multiple(rows_BT.shape[1], length, "cut into rows")
    return rows_BT.reshape(-1, length, *rows_BT.shape[2:])


def fold_rows(rows_BT: Tensor, k: int) -> Tensor:
    """Groups each row into patches of ``k`` consecutive tokens.

    Args:
        rows_BT: ``[B, T]``.
        k: Patch size; divides T.

    Returns:
        ``[B, T / k, k]``, a view where possible.

    Raises:
        ValueError: If T is not a multiple of ``k``.
    """
    require_multiple(rows_BT.shape[1], k, "folded into patches")
    return rows_BT.reshape(rows_BT.shape[0], -1, k)


def next_patch_targets(labels_BT: Tensor, k: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The tokens each position is scored against: those of the next patch (equation 2).

    Args:
        labels_BT: ``[B, T]`` int64, aligned with the tokens (``labels[t]`` is token ``t`` or
            ``ignore_index``), as llm-foundry and Hugging Face give them.
        k: Patch size; divides T. With 1 these are the ordinary shifted labels.
        ignore_index: What the last position's targets, which lie beyond the row, are set to.

    Returns:
        ``[B, P, K]`` int64.

    Example:
        >>> next_patch_targets(torch.tensor([[1, 2, 3, 4]]), k=2).tolist()
        [[[3, 4], [-100, -100]]]
    """
    targets_BPK = torch.full_like(fold_rows(labels_BT, k), ignore_index)
    targets_BPK[:, :-1] = fold_rows(labels_BT, k)[:, 1:]
    return targets_BPK


def mean_of_patch(embeds_BPKD: Tensor, mask_BPK: Tensor | None = None) -> Tensor:
    """The embedding of a patch: the mean of its tokens' embeddings (equation 1).

    The mean is accumulated in float32 (float64 for float64 embeddings) and cast back.

    Args:
        embeds_BPKD: ``[B, P, K, D]``, any floating dtype.
        mask_BPK: ``[B, P, K]``, true or 1 where the token is real. Only real tokens are averaged; a
            patch without any is zero.

    Returns:
        ``[B, P, D]`` in the dtype of the embeddings.
    """
    dtype = torch.promote_types(embeds_BPKD.dtype, torch.float32)
    if mask_BPK is None:
        return embeds_BPKD.mean(dim=-2, dtype=dtype).to(embeds_BPKD.dtype)
    kept_BPKD = embeds_BPKD * mask_BPK[..., None].to(embeds_BPKD.dtype)
    real_BP1 = mask_BPK.sum(dim=-1, keepdim=True).clamp(min=1)
    return (kept_BPKD.sum(dim=-2, dtype=dtype) / real_BP1).to(embeds_BPKD.dtype)


def next_tokens_targets(labels_BT: Tensor, k: int, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The ``k`` tokens that follow each token: patch targets for positions that read single tokens.

    Args:
        labels_BT: As for :func:`next_patch_targets`; T may be any length.
        k: Tokens each position is scored against.
        ignore_index: What targets beyond the row are set to.

    Returns:
        ``[B, T, K]`` int64.

    Example:
        >>> next_tokens_targets(torch.tensor([[1, 2, 3]]), k=2).tolist()
        [[[2, 3], [3, -100], [-100, -100]]]
    """
    padded_BT = F.pad(labels_BT, (0, k), value=ignore_index)
    return padded_BT[:, 1:].unfold(1, k, 1).contiguous()


def require_multiple(T: int, of: int, what: str) -> None:
    """Checks that rows of ``T`` tokens are whole multiples of ``of``; ``what`` says what is done to them.

    Raises:
        ValueError: If not.
    """
    if of < 1:
        raise ValueError(f"Rows cannot be {what} of {of}: the size must be at least 1.")
    if T % of:
        raise ValueError(f"Rows of {T} tokens cannot be {what} of {of}: {T} is not a multiple of {of}.")
