"""The stages of a run: what it has settled on, saved with it, and held when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.core import Time, Timestamp, TimeUnit

from patch_algorithm.common.announce import warn
from patch_algorithm.stages.boundaries import Boundary, is_below, require_order, resolve_boundary

__all__ = [
    "BOTH_SIDES",
    "ON_MISMATCH",
    "Sides",
    "Stage",
    "StageClock",
    "StagePlan",
    "require_equal_steps",
    "settle",
]


@dataclass(frozen=True)
class Sides:
    """Which sides of the model work in patches; both are the method.

    Attributes:
        inputs: Whether positions read patches; else single tokens.
        targets: Whether positions are scored against the next ``k`` tokens; else against the next one.
    """

    inputs: bool = True
    targets: bool = True


BOTH_SIDES = Sides()
"""Positions read and predict patches: the method."""

ON_MISMATCH = ("error", "use_checkpoint", "use_config")
"""What to do if a checkpoint and the configuration disagree."""


@dataclass(frozen=True)
class Stage:
    """A patch stage.

    Attributes:
        k: Tokens per patch.
        until: Where the stage ends, on the trainer's clock.
    """

    k: int
    until: Time[int]


@dataclass(frozen=True)
class StageClock:
    """Where a run stands; what the learning rate and the monitor go by.

    Attributes:
        index: The present stage, from 0; ``count - 1`` is the token stage.
        count: Stages of the run, the token stage among them.
        k: Patch size of the present stage; 1 in the token stage.
        started: The trainer's clock when the present stage began.
        ends: Where the present stage ends; ``max_duration`` for the token stage.
        tokens_per_position: Raw tokens that a position reads.
        targets_per_position: Tokens that a position predicts.
        loader_batches_per_step: Batches of the data loader that a step takes.
        loader_batches: Batches of the data loader that the run has taken so far.
    """

    index: int
    count: int
    k: int
    started: Timestamp
    ends: Time[int]
    tokens_per_position: int = 1
    targets_per_position: int = 1
    loader_batches_per_step: int = 1
    loader_batches: int | None = None

    @property
    def in_patches(self) -> bool:
        """Whether this is a patch stage."""
        return self.index < self.count - 1


@dataclass(frozen=True)
class StagePlan:
    """What a run has settled on; saved with it, and held when it is resumed or extended.

    Attributes:
        stages: The patch stages in their order; the token stage follows them.
        seq_len: Positions the model is trained on; ``None`` until the first batch has been seen.
        length: The run length that fractions were taken of; ``None`` if all ends were times.
        seq_len_from_rows: Whether ``seq_len`` is no more than the longest row seen, which longer rows
            that the model can take raise.
        sides: Which sides of the model work in patches. The configuration's; not saved.
        constant_compute: Whether a patch step takes as many batches of the data loader as a position
            reads tokens, so that steps of all stages compute equally many positions.
    """

    stages: tuple[Stage, ...]
    seq_len: int | None
    length: Time[int] | None
    seq_len_from_rows: bool = False
    sides: Sides = BOTH_SIDES
    constant_compute: bool = False

    def is_patch_stage(self, index: int) -> bool:
        """Whether a stage is one of patches; the token stage follows them."""
        return index < len(self.stages)

    def k_of(self, index: int) -> int:
        """Patch size of a stage; 1 in the token stage."""
        return self.stages[index].k if self.is_patch_stage(index) else 1

    def tokens_per_position(self, index: int) -> int:
        """Raw tokens that a position of a stage reads."""
        return self.k_of(index) if self.sides.inputs else 1

    def targets_per_position(self, index: int) -> int:
        """Tokens that a position of a stage predicts."""
        return self.k_of(index) if self.sides.targets else 1

    def loader_batches_per_step(self, index: int) -> int:
        """Batches of the data loader that a step of a stage takes."""
        return self.tokens_per_position(index) if self.constant_compute else 1

    def row_tokens(self, index: int, T: int) -> int:
        """Raw tokens of the rows that rows of ``T`` are cut into in a stage."""
        return T if self.seq_len is None else min(T, self.tokens_per_position(index) * self.seq_len)

    def index_at(self, timestamp: Timestamp, entered: int = 0) -> int:
        """The stage of a step that starts at ``timestamp``.

        Args:
            timestamp: The trainer's clock.
            entered: The latest stage entered so far: none before it is entered again.
        """
        index = entered
        while index < len(self.stages) and not is_below(timestamp, self.stages[index].until):
            index += 1
        return index

    @property
    def switch(self) -> Time[int] | None:
        """Where the last patch stage ends and the token stage begins; ``None`` without a patch stage."""
        return self.stages[-1].until if self.stages else None

    def state_dict(self) -> dict[str, Any]:
        """The plan in primitives, as checkpoints want it."""
        return {
            "stages": [
                {"k": stage.k, "until": stage.until.value, "unit": stage.until.unit.value}
                for stage in self.stages
            ],
            "seq_len": self.seq_len,
            "seq_len_from_rows": self.seq_len_from_rows,
            "length": None if self.length is None else self.length.value,
            "length_unit": None if self.length is None else self.length.unit.value,
            "constant_compute": self.constant_compute,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> StagePlan:
        """The plan that :meth:`state_dict` was made from."""
        length = state["length"]
        return cls(
            stages=tuple(Stage(entry["k"], Time(entry["until"], entry["unit"])) for entry in state["stages"]),
            seq_len=state["seq_len"],
            length=None if length is None else Time(length, state["length_unit"]),
            seq_len_from_rows=state["seq_len_from_rows"],
            constant_compute=state.get("constant_compute", False),  # older checkpoints had none
        )

    def __str__(self) -> str:
        constant = ", constant compute" if self.constant_compute else ""
        return f"{self._in_words()}{constant}"

    def _in_words(self) -> str:
        if not self.stages:
            return f"token level throughout, seq_len={self.seq_len}"
        if len(self.stages) == 1:
            (stage,) = self.stages
            return f"k={stage.k}, switch at {stage.until.to_timestring()}, seq_len={self.seq_len}"
        listed = ", ".join(f"k={stage.k} until {stage.until.to_timestring()}" for stage in self.stages)
        return f"{listed}, seq_len={self.seq_len}"


def require_equal_steps(max_duration: Time) -> None:
    """Checks that a run of this length can have steps of equal compute.

    Raises:
        ValueError: For a run in epochs, whose steps depend on where the switch falls.
    """
    if max_duration.unit == TimeUnit.EPOCH:
        raise ValueError(
            f"constant_compute=True does not work with max_duration={max_duration.to_timestring()!r}: the "
            "number of steps in an epoch depends on where the switch falls. Give max_duration in batches, "
            "samples or tokens ('ba', 'sp' or 'tok'), or set constant_compute: false."
        )


def settle(
    asked: Sequence[tuple[int, Boundary]],
    seq_len: int | None,
    length: Time[int] | None,
    saved: StagePlan | None,
    on_mismatch: str,
    sides: Sides = BOTH_SIDES,
    constant_compute: bool = False,
) -> StagePlan:
    """The plan of this run: the checkpoint's, if there is one and the configuration agrees with it.

    Args:
        asked: Patch sizes and ends, as configured; see :func:`parse_stages`.
        seq_len: Positions, as configured; ``None`` for the default.
        length: What :func:`run_length` returned; may be ``None`` where all ends are times.
        saved: The checkpoint's plan, ``None`` for a new run.
        on_mismatch: One of :data:`ON_MISMATCH`.
        sides: Which sides of the model work in patches, as configured.
        constant_compute: Whether steps of all stages compute equally much, as configured.

    Raises:
        ValueError: If stages are out of order, or checkpoint and configuration disagree and
            ``on_mismatch`` is ``error``.
    """
    fractions = not all(isinstance(end, Time) for _, end in asked)
    configured = StagePlan(
        stages=_resolved(asked, length),
        seq_len=seq_len,
        length=length if fractions else None,
        sides=sides,
        constant_compute=constant_compute,
    )
    return (
        configured if saved is None else _agreed(asked, configured, replace(saved, sides=sides), on_mismatch)
    )


def _agreed(
    asked: Sequence[tuple[int, Boundary]], configured: StagePlan, saved: StagePlan, on_mismatch: str
) -> StagePlan:
    # A fraction means a fraction of the duration the run was started with: extending a run does
    # not move its switch.
    as_started, seq_len = configured.stages, configured.seq_len
    if configured.length is not None and saved.length is not None:
        as_started = _resolved(asked, saved.length)
    same_stages = _same_stages(as_started, saved.stages)
    same_steps = configured.constant_compute == saved.constant_compute
    if same_stages and same_steps and (None in (seq_len, saved.seq_len) or seq_len == saved.seq_len):
        if not _same_stages(configured.stages, saved.stages):
            warn(
                f"The run was started with {saved}, and keeps that. The same fractions of the present "
                f"max_duration would give {configured}."
            )
        if seq_len is not None:
            return replace(saved, seq_len=seq_len, seq_len_from_rows=False)
        return saved
    if same_stages:
        configured = replace(configured, stages=saved.stages, length=saved.length)
    if on_mismatch == "error":
        raise ValueError(
            f"The checkpoint was trained with {saved}, but the configuration says {configured}. Change the "
            "configuration, or set on_mismatch to 'use_checkpoint' or 'use_config'."
        )
    return saved if on_mismatch == "use_checkpoint" else configured


def _resolved(asked: Sequence[tuple[int, Boundary]], length: Time[int] | None) -> tuple[Stage, ...]:
    stages = tuple(Stage(k, resolve_boundary(end, length)) for k, end in asked)
    for number in range(1, len(stages)):
        require_order(stages[number - 1].until, stages[number].until, number)
    return stages


def _same_stages(one: tuple[Stage, ...], other: tuple[Stage, ...]) -> bool:
    # Composer refuses to compare times of different units, even for equality.
    def key(stages: tuple[Stage, ...]) -> list[tuple[int, object, TimeUnit]]:
        return [(stage.k, stage.until.value, stage.until.unit) for stage in stages]

    return key(one) == key(other)
