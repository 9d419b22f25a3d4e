"""The stages of one run on the trainer's clock: settled once, saved with it, never gone back in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from composer.core import State, Time, Timestamp

from patch_algorithm.common.announce import warn
from patch_algorithm.stages.boundaries import Boundary, in_batches, run_length
from patch_algorithm.stages.pieces import Piece, clipped, pieces
from patch_algorithm.stages.plan import BOTH_SIDES, Sides, StageClock, StagePlan, settle
from patch_algorithm.stages.trainer_clock import dataloader_len, max_duration, timestamp_of, timestamp_values

__all__ = ["Timeline"]


class Timeline:
    """Where a run stands among its stages.

    Args:
        asked: Patch sizes and ends, as configured; see :func:`.parse_stages`.
        seq_len: Positions, as configured; ``None`` for the default.
        on_mismatch: What to do where a checkpoint disagrees; one of :data:`.ON_MISMATCH`.
        sides: Which sides of the model work in patches, as configured.
        constant_compute: Whether steps of all stages compute equally much, as configured.
    """

    def __init__(
        self,
        asked: Sequence[tuple[int, Boundary]],
        seq_len: int | None,
        on_mismatch: str,
        sides: Sides = BOTH_SIDES,
        constant_compute: bool = False,
    ) -> None:
        self._asked = asked
        self._constant_compute = constant_compute
        self._sides = sides
        self._seq_len = seq_len
        self._on_mismatch = on_mismatch
        self._fractions = not all(isinstance(end, Time) for _, end in asked)
        self._saved: StagePlan | None = None  # of a checkpoint, until a fit has started
        self._plan: StagePlan | None = None
        self._trainers_length: Time | None = None
        self._started: dict[int, Timestamp] = {}
        self._earlier: list[Piece] = []  # trained under other plans
        self.stage = 0
        """The latest stage entered; none before it is entered again."""

    @property
    def plan(self) -> StagePlan:
        """What the run has settled on.

        Raises:
            RuntimeError: Before the first fit has started.
        """
        if self._plan is None:
            raise RuntimeError("patch_level has not seen the start of a fit.")
        return self._plan

    @plan.setter
    def plan(self, plan: StagePlan) -> None:
        self._plan = plan

    @property
    def is_settled(self) -> bool:
        """Whether a fit has started."""
        return self._plan is not None

    @property
    def in_patch_stage(self) -> bool:
        """Whether the present stage is one of patches."""
        return self._plan is not None and self._plan.is_patch_stage(self.stage)

    @property
    def k(self) -> int:
        """Tokens per patch in the present stage; 1 in the token stage."""
        return self.plan.k_of(self.stage)

    def plan_for(self, length: Time[int] | None) -> StagePlan | None:
        """The stages of a new run of a given length; ``None`` if they depend on a length not known.

        Raises:
            ValueError: If stages are out of order in a run of this length.
        """
        if length is None and self._fractions:
            return None
        return self._settle_with(length, None)

    def note_length(self, max_duration: Time | None) -> None:
        """Keeps the length that the trainer was built with: a fit of a part of it sets ``max_duration``."""
        self._trainers_length = max_duration

    def settle(self, state: State) -> None:
        """Settles the plan when a fit starts.

        Raises:
            ValueError: If stages do not fit the run, or the checkpoint and ``on_mismatch`` is ``error``.
        """
        saved = self._saved if self._plan is None else self._plan
        plan = self._settled(state, saved)
        started = self._started.get(self.stage)
        changed = saved is not None and _steps(saved) != _steps(plan)
        if saved is not None and changed:  # by on_mismatch='use_config': what is behind stays as it was
            self._earlier = self._pieces(saved, state.timestamp)
        self._plan = plan
        # By on_mismatch='use_config' the two may differ in their number of stages: a run that has not
        # left patches goes on in them, in whichever stage the clock says.
        left_patches = saved is not None and self.stage >= len(saved.stages)
        count = len(self._plan.stages)
        self.stage = count if left_patches else min(self.stage, max(count - 1, 0))
        if changed and started is not None:
            self._started = {self.stage: started}

    @property
    def has_begun(self) -> bool:
        """Whether the run was in some stage before: it goes on, or a checkpoint of it was loaded."""
        return bool(self._started)

    def enter(self, clock: Timestamp, now: Timestamp) -> bool:
        """Goes where the clock stands when a fit starts, and never back.

        Args:
            clock: The clock at the start of the next step; at the end of an epoch it is ahead of ``now``.
            now: The trainer's clock.

        Returns:
            Whether a stage that the run was in is left by that.
        """
        if (of_step := self.plan.index_at(clock)) < self.stage:
            warn(
                f"By the clock, this step belongs to stage {of_step} of {self.plan}. The run has left that "
                "stage, and a stage is never entered again. To train it again, start a new run from the "
                "weights (load_weights_only: true)."
            )
        # The clock may have been set back (reset_time), to before what is remembered.
        self._started = {i: start for i, start in self._started.items() if start.batch <= now.batch}
        self._earlier = clipped(self._earlier, now)
        left = self.has_begun and self.advance(now, now)
        self.stage = max(self.plan.index_at(now), self.stage)
        self._started.setdefault(self.stage, self._start_of(self.stage, now))
        return left

    def _start_of(self, stage: int, now: Timestamp) -> Timestamp:
        """When a stage began: now, if it is not remembered."""
        # Checkpoints of version 0.1 had no starts; without a plan, what is behind was not trained by one.
        return Timestamp() if stage == 0 and self._saved is not None else now

    def advance(self, clock: Timestamp, now: Timestamp) -> bool:
        """Passes to the stage that the next step belongs to.

        Args:
            clock: The clock at the start of the next step.
            now: The trainer's clock, from which the new stage counts.

        Returns:
            Whether that is another stage.
        """
        stage = self.plan.index_at(clock, self.stage)
        if stage == self.stage:
            return False
        self.stage = stage
        self._started[stage] = now
        return True

    def clock(self, state: State) -> StageClock:
        """See :meth:`.PatchLevel.stage_clock`."""
        plan = self._plan or self._saved
        if plan is None:
            plan = self._settled(state, None)
        index = plan.index_at(state.timestamp, self.stage)
        return StageClock(
            index=index,
            count=len(plan.stages) + 1,
            k=plan.k_of(index),
            started=self._started.get(index, self._start_of(index, state.timestamp)),
            ends=plan.stages[index].until if plan.is_patch_stage(index) else max_duration(state),
            tokens_per_position=plan.tokens_per_position(index),
            targets_per_position=plan.targets_per_position(index),
            loader_batches_per_step=plan.loader_batches_per_step(index),
            loader_batches=self._loader_batches(plan, state.timestamp),
        )

    def _loader_batches(self, plan: StagePlan, now: Timestamp) -> int:
        """Batches of the data loader that the steps before ``now`` have taken."""
        begins, taken = 0, 0
        for piece in self._pieces(plan, now):
            ends = min(int(piece.until.batch.value), int(now.batch.value))
            taken += max(ends - begins, 0) * piece.loader_batches_per_step
            begins = max(ends, begins)
        return taken

    def _pieces(self, plan: StagePlan, now: Timestamp) -> list[Piece]:
        return pieces(plan, self._started or {0: self._start_of(0, now)}, self._earlier, now)

    def loader_batches_of_step(self, batch: int) -> int:
        """Batches of the data loader that make up the run's step ``batch``, which may be past."""
        for piece in self._earlier:
            if batch < int(piece.until.batch.value):
                return piece.loader_batches_per_step
        begun = [i for i, start in self._started.items() if int(start.batch.value) <= batch]
        if self._started and not begun:
            return 1  # before the first stage: trained without patch_level
        return self.plan.loader_batches_per_step(max(begun, default=self.stage))

    def never_switches(self, state: State) -> bool:
        """Whether the last patch stage ends no earlier than the run, as far as can be told."""
        switch, end = self.plan.switch, max_duration(state)
        if switch is None:
            return False
        batches = dataloader_len(state)
        if batches is not None and switch.unit != end.unit:
            switch, end = in_batches(switch, batches), in_batches(end, batches)
        return switch.unit == end.unit and switch >= end

    def state_dict(self) -> dict[str, Any]:
        """The timeline in primitives."""
        return {
            **({} if self._plan is None else self._plan.state_dict()),
            "stage": self.stage,
            "started": {index: timestamp_values(clock) for index, clock in self._started.items()},
            **({"earlier": [piece.state_dict() for piece in self._earlier]} if self._earlier else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a checkpoint's; it is compared with the configuration by :meth:`settle`."""
        if "stages" in state:
            self._saved = replace(StagePlan.from_state_dict(state), sides=self._sides)
        self.stage = state.get("stage", 0)
        self._started = {index: timestamp_of(values) for index, values in state.get("started", {}).items()}
        self._earlier = [Piece.from_state_dict(values) for values in state.get("earlier", ())]

    def _settled(self, state: State, saved: StagePlan | None) -> StagePlan:
        return self._settle_with(self._length(state), saved)

    def _settle_with(self, length: Time[int] | None, saved: StagePlan | None) -> StagePlan:
        asked, sides, constant = self._asked, self._sides, self._constant_compute
        return settle(asked, self._seq_len, length, saved, self._on_mismatch, sides, constant)

    def _length(self, state: State) -> Time[int] | None:
        if not self._fractions:
            return None
        length = run_length(max_duration(state), dataloader_len(state))
        built_with = self._trainers_length
        if built_with is not None and (batches := dataloader_len(state)) is not None:
            built_with = in_batches(built_with, batches)
        # The longer of the two: fit(duration=...) may train a part of the run, or extend it.
        if built_with is None or built_with.unit != length.unit:
            return length
        return max(length, Time(int(built_with.value), built_with.unit))


def _steps(plan: StagePlan) -> list[tuple[int, int]]:
    """What the steps of each stage take."""
    return [(plan.k_of(i), plan.loader_batches_per_step(i)) for i in range(len(plan.stages) + 1)]
