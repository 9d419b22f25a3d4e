"""What the stages of a run ask of memory: the rehearsal of the token stage, and the microbatch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import State

from patch_algorithm.banner import announce
from patch_algorithm.rehearsal import rehearse
from patch_algorithm.rows import RowFolder

__all__ = ["StageMemory"]


class StageMemory:
    """Rehearses the token stage once a run, and lets microbatches grow in patch stages.

    Does nothing where the trainer finds its microbatch by itself (``'auto'``): it also does at the
    switch.

    Args:
        rehearses: Whether to rehearse where rows have more positions in the token stage.
        scales: Whether microbatches grow by as much as rows have fewer positions.
    """

    def __init__(self, rehearses: bool, scales: bool) -> None:
        self._rehearses = rehearses
        self._scales = scales
        self._microbatches: tuple[int, int] | None = None  # the trainer's own, and as it was scaled

    def prepare(self, state: State, rows: RowFolder, raw_batch: Mapping[str, Any], positions: int) -> None:
        """Called with every patch batch, before the model sees it.

        Args:
            state: The trainer's state.
            rows: Knows what the token stage makes of the batch.
            raw_batch: The batch as the data loader gave it.
            positions: Positions of each of its rows in the present stage.
        """
        token_positions = rows.positions(raw_batch["input_ids"].shape[1], len(rows.plan.stages), state)
        if token_positions > positions and not state.auto_microbatching:
            if self._rehearses:
                what = rehearse(state, rows.at_token_level(raw_batch, state))
                announce(f"patch_level: rehearsed the token stage, {what}: it fits in memory.")
            self._scale(state, token_positions // max(positions, 1))
        self._rehearses = False

    def _scale(self, state: State, growth: int) -> None:
        size = state.device_train_microbatch_size
        if self._scales and self._microbatches is None and isinstance(size, int):
            # Composer warns, at every step, of microbatches larger than the batch.
            rows = state.batch["input_ids"].shape[0]
            self._microbatches = size, max(size, min(size * growth, rows))
            state.device_train_microbatch_size = self._microbatches[1]

    def restore(self, state: State) -> None:
        """Gives the trainer its own microbatch back, at the end of a stage or a fit."""
        if self._microbatches is not None:
            own, scaled = self._microbatches
            if state.device_train_microbatch_size == scaled:  # else the next fit was given another
                state.device_train_microbatch_size = own
            self._microbatches = None
