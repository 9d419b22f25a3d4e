"""The memory that the stages of a run need: the rehearsal of the token stage, and the microbatch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from composer.core import State
from composer.utils import dist

from patch_algorithm.algorithm.rehearsal import first_rows, rehearse, steps_in_backward
from patch_algorithm.algorithm.row_folding import RowFolder
from patch_algorithm.common.announce import announce

__all__ = ["StageMemory"]


class StageMemory:
    """Rehearses the token stage once a run, and lets microbatches grow in patch stages.

    Does nothing if the trainer finds its microbatch size by itself (``'auto'``): it does so at the
    switch, too.

    Args:
        rehearses: Whether to rehearse if rows have more positions in the token stage.
        scales: Whether microbatches grow in proportion to the fewer positions per row.
    """

    def __init__(self, rehearses: bool, scales: bool) -> None:
        self._rehearses = rehearses
        self._scales = scales
        self._is_prepared = False  # for the present stage
        self._microbatches: tuple[int, int] | None = None  # the trainer's own, and as it was scaled

    def prepare(self, state: State, rows: RowFolder, raw_batch: Mapping[str, Any], positions: int) -> None:
        """Called with every patch batch, before the model sees it; acts on the first of a stage.

        Args:
            state: The trainer's state.
            rows: Knows what the token stage makes of the batch.
            raw_batch: The batch as the data loader gave it.
            positions: Positions of each of its rows in the present stage.
        """
        if self._is_prepared or state.auto_microbatching or not (self._rehearses or self._scales):
            return
        self._is_prepared = True
        token_positions = rows.positions(raw_batch["input_ids"].shape[1], len(rows.plan.stages))
        count = state.batch["input_ids"].shape[0]
        growth = token_positions // max(positions, 1)
        # Under FSDP every pass is a collective, and ranks may have rows of different lengths.
        grows, growth, count = _least(state, -int(token_positions > positions), growth, count)
        if self._rehearses and grows:
            _rehearse(state, rows.at_token_level(_of_one_step(raw_batch, rows), state))
        self._rehearses = False
        self._scale(state, growth, count)

    def _scale(self, state: State, growth: int, rows: int) -> None:
        size = state.device_train_microbatch_size
        if self._scales and growth > 1 and isinstance(size, int):
            # Composer warns, at every step, of microbatches larger than the batch.
            self._microbatches = size, max(size, min(size * growth, rows))
            state.device_train_microbatch_size = self._microbatches[1]

    def restore(self, state: State) -> None:
        """Gives the trainer its own microbatch back, at the end of a stage or a fit."""
        self._is_prepared = False
        if self._microbatches is not None:
            own, scaled = self._microbatches
            if state.device_train_microbatch_size == scaled:  # else the next fit was given another
                state.device_train_microbatch_size = own
            self._microbatches = None


def _of_one_step(raw_batch: Mapping[str, Any], rows: RowFolder) -> Mapping[str, Any]:
    """As many rows as a token step has: a patch step may have joined several batches of the data loader."""
    count = raw_batch["input_ids"].shape[0]
    return first_rows(raw_batch, count, -(-count // rows.batches_per_step))


def _rehearse(state: State, batch: Mapping[str, Any]) -> None:
    if steps_in_backward(state.model):
        announce(
            "patch_level: the token stage is not rehearsed. Parameters have hooks that run inside the "
            "backward pass (an optimizer that steps there), and a rehearsal could not undo their effect. "
            "Whether the token stage fits in memory will only show at the switch."
        )
        return
    what = rehearse(state, batch)
    announce(f"patch_level: rehearsed the token stage, {what}: it fits in memory.")


def _least(state: State, *values: int) -> list[int]:
    shared = state.device.tensor_to_device(torch.tensor(values))
    dist.all_reduce(shared, "MIN")
    return shared.tolist()
