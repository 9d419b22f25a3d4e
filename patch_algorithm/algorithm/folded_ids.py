"""Finds edits of a folded batch's ``input_ids``, which the model does not read in a patch step.

Shapes: B rows, P positions, K patch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from patch_algorithm.patching.batches import PATCH_IDS

__all__ = ["FoldedIds", "refuse_edits"]


class FoldedIds:
    """Checks that ``input_ids`` are still the first tokens of the patches that stand for them.

    What lies on an accelerator is compared there, and the answer is read with the loss at the end of the
    step. In the first step of a fit it is read once more, after the backward and before weights change.
    """

    def __init__(self) -> None:
        self.start_fit()

    def start_fit(self) -> None:
        """Forgets an earlier fit."""
        self._has_waited = False
        self._edited: Tensor | None = None

    def check_batch(self, batch: Any) -> None:
        """Checks a whole batch before it is trained on, if that costs no waiting for a device.

        Raises:
            ValueError: If its ids were edited.
        """
        self._edited = None  # a step that ran out of memory is tried again
        patches_BPK = batch.get(PATCH_IDS) if isinstance(batch, Mapping) else None
        if isinstance(patches_BPK, Tensor) and patches_BPK.device.type == "cpu":
            refuse_edits(bool(_edited(batch)))

    def check_microbatch(self, batch: Mapping[str, Any]) -> None:
        """Compares a microbatch that the model has just read.

        Raises:
            ValueError: If its ids were edited, and lie where nobody waits to see it.
        """
        edited = _edited(batch)
        if edited.device.type == "cpu":
            refuse_edits(bool(edited))
        else:
            self._edited = edited if self._edited is None else self._edited | edited

    def check_before_update(self) -> None:
        """Reads the answer if this is the first step of a fit.

        Raises:
            ValueError: If the ids of a microbatch were edited.
        """
        if self._edited is not None and not self._has_waited:
            self._has_waited = True
            refuse_edits(bool(self._edited))

    def take(self) -> Tensor | None:
        """The answer of the step, on its device; ``None`` where nothing is left to read."""
        edited, self._edited = self._edited, None
        return edited


def _edited(batch: Mapping[str, Any]) -> Tensor:
    """Scalar boolean."""
    ids_BP, patches_BPK = batch.get("input_ids"), batch.get(PATCH_IDS)
    if not isinstance(ids_BP, Tensor) or not isinstance(patches_BPK, Tensor):
        return torch.tensor(True)
    if ids_BP.shape != patches_BPK.shape[:-1] or ids_BP.device != patches_BPK.device:
        return torch.tensor(True)
    return (ids_BP != patches_BPK[..., 0]).any()


def refuse_edits(edited: bool) -> None:
    """Refuses a batch whose ids were edited.

    Raises:
        ValueError: If they were.
    """
    if edited:
        raise ValueError(
            "'input_ids' were changed after patch_level folded the batch (by a callback or "
            f"microbatch_transforms). In patch steps the model reads {PATCH_IDS!r} [rows, positions, k] "
            "instead, so the change would be lost. Edit the tokens in the data loader or its collator, or "
            f"edit {PATCH_IDS!r} to match: the first token of each patch must equal 'input_ids'."
        )
