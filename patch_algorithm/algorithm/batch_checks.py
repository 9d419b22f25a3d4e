"""What a batch must look like to be trained in patches, said before any weight changes.

Shapes: B rows, T raw tokens a row, K patch size, L the model's context in positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.models import ComposerModel
from torch import Tensor

from patch_algorithm.loss.cross_entropy import IGNORE_INDEX
from patch_algorithm.model_access.reading import is_mpt
from patch_algorithm.patching.documents import DOCUMENT_KEYS

__all__ = [
    "check_batch",
    "check_labels",
    "check_microbatch",
    "check_padding_side",
    "check_positions",
    "check_rows",
]


def check_batch(batch: Any) -> None:
    """Checks that a batch has token rows, and labels, mask and documents of their shape.

    Raises:
        ValueError: If not.
    """
    keys = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    for key in ("input_ids", "labels"):
        value = batch.get(key) if isinstance(batch, Mapping) else None
        if not isinstance(value, Tensor) or value.dim() != 2:
            raise ValueError(
                f"Patch-level training needs batches with {key!r} of shape [rows, tokens]; this one holds "
                f"{keys}. Use a causal language modelling data loader (llm-foundry's 'text')."
            )
    if batch["input_ids"].shape != batch["labels"].shape:
        raise ValueError(
            f"'input_ids' of shape {tuple(batch['input_ids'].shape)} and 'labels' of shape "
            f"{tuple(batch['labels'].shape)} differ; patch targets need labels aligned with the tokens."
        )
    _check_values_of_tokens(batch)


def _check_values_of_tokens(batch: Mapping[str, Any]) -> None:
    for key in ("attention_mask", *DOCUMENT_KEYS):
        shape = getattr(batch.get(key), "shape", None)
        if key in batch and shape != batch["input_ids"].shape:
            raise ValueError(
                f"The batch holds {key!r} of shape {None if shape is None else tuple(shape)} but "
                f"'input_ids' of shape {tuple(batch['input_ids'].shape)}; patch-level training needs one "
                "value per token. Correct it in the data loader's collator, or remove it from the batch."
            )


def check_labels(batch: Mapping[str, Tensor]) -> None:
    """Checks that labels are aligned with the tokens, as far as the rows show.

    Labels that the dataset has shifted already, as nanoGPT's loaders do, would be shifted twice. At token
    level the model's own loss, which does not shift them, would be right.

    Args:
        batch: A batch that :func:`check_batch` accepts.

    Raises:
        ValueError: If every scored label is the next token, or a label is neither a token nor ignored.
    """
    ids_BT, labels_BT = batch["input_ids"], batch["labels"]
    scored_BT = labels_BT != IGNORE_INDEX
    if bool((scored_BT & (labels_BT < 0)).any()):
        raise ValueError(
            f"'labels' holds {int(labels_BT[scored_BT].min())}, which is not a token. In patch-level "
            f"training, the label of a token that is not scored must be {IGNORE_INDEX}. Set it in the data "
            "loader, and as ignore_index of the model's own loss."
        )
    before_BT = scored_BT[:, :-1]
    shifted = bool(before_BT.any()) and bool((labels_BT[:, :-1] == ids_BT[:, 1:])[before_BT].all())
    if shifted and not bool((labels_BT == ids_BT)[scored_BT].all()):
        raise ValueError(
            "'labels' holds the next token at every position, but patch targets need labels that are aligned "
            "with the tokens (labels[t] is input_ids[t], or -100). Leave the shift to the model's loss: "
            "logits[:, :-1] against labels[:, 1:]."
        )


def check_rows(T: int, k: int, L: int, padded: bool, first: bool = True) -> None:
    """Checks the length of the rows against every stage of the run.

    Args:
        T: Raw tokens in a row.
        k: Patch size of the patch stage; 1 if the run has none.
        L: Positions the model is trained on.
        padded: Whether the batch has an attention mask, so that rows can be padded to full patches.
        first: Whether this is the first batch. Later padded batches may well be shorter than two
            patches; they then predict nothing.

    Raises:
        ValueError: If some stage could neither cut nor fold the rows; it says what would.
    """
    patches = -(-T // k) if padded else T // k
    if patches < 2 and (first or not padded):
        raise ValueError(
            f"Rows of {T} tokens are shorter than two patches of k={k}, so no position has a next patch to "
            f"predict. Use rows of at least {2 * k} tokens (max_seq_len of the training dataset), "
            f"preferably k*seq_len={k * L}."
        )
    _check_cuts(T, k, L)
    if T % k and not padded:
        raise ValueError(
            f"Rows of {T} tokens are not a multiple of the patch size k={k}. Use rows of a multiple of {k} "
            f"tokens, such as {T - T % k}, or another k; only rows with an attention_mask are padded."
        )


def _check_cuts(T: int, k: int, L: int) -> None:
    if L < 2:
        raise ValueError(
            f"seq_len={L} leaves one position in each row, which has nothing to predict. Set seq_len to at "
            "least 2."
        )
    if k > 1 and T > k * L and T % (k * L):
        raise ValueError(
            f"Rows of {T} tokens are longer than k*seq_len={k}*{L}={k * L} but not a multiple of it, so they "
            f"cannot be cut without losing tokens. Use rows of a multiple of {k * L} tokens, or set seq_len."
        )
    if T > L and T % L:
        raise ValueError(
            f"Rows of {T} tokens are longer than seq_len={L} but not a multiple of it, so the token stage "
            f"cannot cut them. Use rows of a multiple of {L} tokens, or set seq_len to a divisor of {T}."
        )


def check_microbatch(pieces: int, microbatch: object, automatic: bool, model: ComposerModel) -> None:
    """Checks that every microbatch of cut, padded rows has a scored label.

    Args:
        pieces: Pieces that the token stage cuts a row into.
        microbatch: The trainer's ``device_train_microbatch_size``.
        automatic: Whether the trainer halves it where memory is short.
        model: A mean over scored labels, such as that of Hugging Face's models and of
            ``torch.nn.functional.cross_entropy``, is NaN where there is none. MPT guards against it.

    Raises:
        ValueError: If a microbatch can hold only the padding of a row.
    """
    if is_mpt(model) or not isinstance(microbatch, int) or (not automatic and microbatch % pieces == 0):
        return
    given = "auto" if automatic else microbatch
    fault = "may become a size that is not" if automatic else "is not"
    raise ValueError(
        f"The token stage cuts each row into {pieces} pieces, and device_train_microbatch_size={given} "
        f"{fault} a multiple of {pieces}: a microbatch that holds only padding would make the loss NaN. "
        f"Set it to a multiple of {pieces}, or pack the rows."
    )


def check_padding_side(batch: Mapping[str, Any], model: ComposerModel) -> None:
    """Checks that rows for MPT are not padded on the left.

    MPT raises its own error if a row's first position is masked. In patches this does not happen as long
    as fewer than ``k`` tokens are padded, and the run would fail at the switch.

    Raises:
        ValueError: If they are.
    """
    mask_BT = batch.get("attention_mask")
    if mask_BT is not None and is_mpt(model) and not bool(mask_BT[:, 0].all()):
        raise ValueError(
            "The rows are padded on the left, and MPT cannot be trained on such rows. Pad them on the right "
            "(set the tokenizer's padding_side: right)."
        )


def check_positions(seq_len: int, context: int | None) -> None:
    """Checks that the positions asked for fit the model.

    Raises:
        ValueError: If they do not.
    """
    if context is not None and seq_len > context:
        raise ValueError(
            f"seq_len={seq_len} positions exceed the model's context of {context}. Set seq_len to at most "
            f"{context} (a row may hold k times as many tokens), or enlarge the model's max_seq_len."
        )
