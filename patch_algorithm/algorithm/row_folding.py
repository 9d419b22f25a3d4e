"""Cuts and folds the rows of a batch as each stage needs them.

Shapes: B rows, T raw tokens a row, K patch size, P positions, L the model's context in positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from composer.algorithms.warnings import NoEffectWarning
from composer.core import State

from patch_algorithm.algorithm.banner import banner
from patch_algorithm.algorithm.batch_checks import (
    check_batch,
    check_labels,
    check_microbatch,
    check_padding_side,
    check_rows,
)
from patch_algorithm.common.announce import announce, warn
from patch_algorithm.loss import TargetWeights
from patch_algorithm.model_access.reading import context_length, unused_documents, unwrap, used_document_keys
from patch_algorithm.patching.batches import PATCH_MASK, cut_batch, fold_batch, keep_pinned
from patch_algorithm.stages.compute import PositionCount
from patch_algorithm.stages.plan import StagePlan
from patch_algorithm.stages.timeline import Timeline
from patch_algorithm.stages.trainer_clock import max_duration

__all__ = ["RowFolder"]


class RowFolder:
    """Cuts and folds batches by the plan of a run, and settles what only the rows show.

    Args:
        timeline: The stages of the run; its plan learns ``seq_len`` from the rows.
        count: The positions of the run so far, for the banner.
        weights: How much each target of a position counts, for the banner.
    """

    def __init__(self, timeline: Timeline, count: PositionCount, weights: TargetWeights = "uniform") -> None:
        self._timeline = timeline
        self._count = count
        self._weights = weights
        self._announced = False
        self._documents_announced = False
        self.start_fit()

    def start_fit(self) -> None:
        """Forgets the rows of an earlier fit, whose data loader may have been another."""
        self._row_lengths: set[int] = set()

    @property
    def plan(self) -> StagePlan:
        """What the run has settled on so far."""
        return self._timeline.plan

    @property
    def batches_per_step(self) -> int:
        """Batches of the data loader that a step of the present stage takes."""
        return self.plan.loader_batches_per_step(self._timeline.stage)

    def positions(self, T: int, stage: int) -> int:
        """Positions of a piece of a row of ``T`` tokens in a stage; rows of this length have been folded."""
        return -(-self._piece(T, stage) // self.plan.tokens_per_position(stage))

    def _piece(self, T: int, stage: int) -> int:
        """Raw tokens of the pieces that rows of ``T`` are cut into."""
        return self.plan.row_tokens(stage, T)

    def fold(self, batch: Any, stage: int, state: State) -> Any:
        """The batch that the model is trained on in a stage.

        Raises:
            ValueError: If its rows cannot be trained on in this stage or a later one.
        """
        in_patches = self.plan.is_patch_stage(stage)
        if in_patches:
            check_batch(batch)
        T = batch["input_ids"].shape[1]
        if T not in self._row_lengths:
            self._on_new_length(batch, stage, state)
        piece = self._piece(T, stage)
        if not in_patches and T == piece:
            return batch
        keys = used_document_keys(batch, unwrap(state.model))
        if not self._documents_announced and unused_documents(batch, keys):
            self._warn_of_documents()
        loaded = batch
        if T > piece:
            batch = cut_batch(batch, piece, keys)
        if not in_patches:
            return keep_pinned(loaded, batch)
        sides = self.plan.sides
        folded = fold_batch(
            batch,
            self.plan.k_of(stage),
            patch_inputs=sides.inputs,
            patch_targets=sides.targets,
            document_keys=keys,
        )
        if keys:
            self._announce_unread_tokens(batch, folded)
        if not any(scored := folded["loss_generating_tokens"]):
            # Rows are too short, and the patch loss is 0. Composer divides by the sum over ranks, which may
            # be 0; asking the others would cost each step a collective for one pair in all of theirs.
            scored[:1] = [1]
        return keep_pinned(loaded, folded)

    def at_token_level(self, batch: Any, state: State) -> Any:
        """The batch as the token stage will have it."""
        return self.fold(batch, len(self.plan.stages), state)

    def _settle_seq_len(self, T: int, state: State) -> int:
        """Settles the positions L that rows are cut to, as only the rows can; longer rows raise it."""
        L, from_rows = self.plan.seq_len, self.plan.seq_len_from_rows
        if L is None or (from_rows and T > L):
            context = context_length(unwrap(state.model))
            L = T if context is None else min(T, context)
            from_rows = context is None or T <= context
            self._timeline.plan = replace(self.plan, seq_len=L, seq_len_from_rows=from_rows)
        return L

    def _on_new_length(self, batch: Any, stage: int, state: State) -> None:
        """Checks rows of a length not seen before, for every stage; padded batches come in several."""
        T = batch["input_ids"].shape[1]
        L = self._settle_seq_len(T, state)
        remaining = [self.plan.tokens_per_position(i) for i in range(stage, len(self.plan.stages))]
        if remaining or T > L:
            check_batch(batch)
            if remaining:
                check_labels(batch)
            check_padding_side(batch, unwrap(state.model))
            padded = "attention_mask" in batch
            for K in remaining or [1]:
                check_rows(T, K, L, padded, first=not self._row_lengths)
            if padded and T > L:
                size, automatic = state.device_train_microbatch_size, state.auto_microbatching
                check_microbatch(T // L, size, automatic, unwrap(state.model))
        elif not self.plan.stages and not self._row_lengths:
            warn(
                f"patch_level has no effect: the run trains at token level, and rows of {T} tokens need no "
                f"cutting to seq_len={L}.",
                NoEffectWarning,
            )
        self._row_lengths.add(T)
        if not self._announced:
            end, now = max_duration(state), state.timestamp
            announce(banner(self.plan, T, stage, end, now, self._count.share, self._weights))
            self._announced = True

    def _warn_of_documents(self) -> None:
        self._documents_announced = True
        warn(
            "The batch marks its documents (sequence_id or position_ids), but the model ignores the marks: "
            "documents are concatenated, as in the paper. To keep them apart, set attn_uses_sequence_id: "
            "true for MPT, or use a Hugging Face model whose forward takes position_ids."
        )

    def _announce_unread_tokens(self, batch: Mapping[str, Any], folded: Mapping[str, Any]) -> None:
        if self._documents_announced or PATCH_MASK not in folded:
            return
        mask = batch.get("attention_mask")
        real = int(batch["input_ids"].numel() if mask is None else mask.sum())
        unread = real - int(folded[PATCH_MASK].sum())
        if unread:
            self._documents_announced = True
            announce(
                f"patch_level: documents are kept apart. {unread} of this batch's {real} tokens share a "
                "patch with the document after theirs, to which it belongs: they are predicted but not read."
            )
