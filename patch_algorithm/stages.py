"""When a run passes from stage to stage: a pure function of the trainer's clock.

Boundaries are given as fractions of the run or as times, and resolved once to absolute
:class:`composer.Time`. A step belongs to the first stage whose end the clock at its start is below.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.core import Time, Timestamp, TimeUnit

__all__ = [
    "ON_MISMATCH",
    "Stage",
    "StageClock",
    "StagePlan",
    "in_batches",
    "is_below",
    "parse_boundary",
    "parse_stages",
    "resolve_boundary",
    "run_length",
    "settle",
]

ON_MISMATCH = ("error", "use_checkpoint", "use_config")
"""What to do where a checkpoint and the configuration disagree."""

_UNITS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN)
_HOW = (
    "Give a fraction of the run between 0 and 1 (0.67 or '0.67dur'), or a time in batches, samples, "
    "tokens or epochs ('90000ba', '500sp', '240_000_000_000tok', '1ep')."
)
_STAGES_HOW = "Give a list such as [{k: 8, until: 0.3dur}, {k: 4, until: 0.6dur}]."


def parse_boundary(value: float | str, name: str = "ratio") -> float | Time[int]:
    """Reads where a stage ends.

    Args:
        value: A fraction of ``max_duration``, or a Composer time string.
        name: What the errors call it.

    Returns:
        The fraction, or the time as given.

    Raises:
        ValueError: If it is neither, is negative, not a number, above 1 (as a fraction), or in a
            unit that no step counter follows (``iter``, ``sec``).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{name}={value!r} is neither a fraction nor a time. {_HOW}")
    if not isinstance(value, str):
        return _checked_fraction(float(value), value, name)
    if re.fullmatch(r"[\d_.eE+-]+", value.strip()):  # Composer would read seconds
        raise ValueError(f"{name}={value!r} is a string without a unit. {_HOW}")
    try:
        time = Time.from_timestring(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}={value!r} cannot be read as a time. {_HOW}") from error
    if time.unit == TimeUnit.DURATION:
        return _checked_fraction(float(time.value), value, name)
    if time.unit not in _UNITS:
        raise ValueError(f"{name}={value!r} is in {time.unit.value!r}, which is not supported. {_HOW}")
    if time.value < 0:
        raise ValueError(f"{name}={value!r} is negative. {_HOW}")
    return Time(int(time.value), time.unit)


def parse_stages(stages: object) -> tuple[tuple[int, float | Time[int]], ...]:
    """Reads the ``stages`` argument.

    Args:
        stages: A list of mappings with ``k`` and ``until``.

    Returns:
        Pairs of patch size and end, as :func:`parse_boundary` gives it.

    Raises:
        ValueError: If it is no such list, a ``k`` is below 2, or an end is not after the one before
            it (where both are in one unit; the others are compared when the run's length is known).
    """
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
        raise ValueError(f"stages={stages!r} is not a list of stages. {_STAGES_HOW}")
    parsed: list[tuple[int, float | Time[int]]] = []
    for number, stage in enumerate(stages):
        name = f"stages[{number}]"
        if not isinstance(stage, Mapping) or set(stage) != {"k", "until"}:
            raise ValueError(f"{name}={stage!r} is not a mapping of 'k' and 'until'. {_STAGES_HOW}")
        k = stage["k"]
        if isinstance(k, bool) or not isinstance(k, int) or k < 2:
            raise ValueError(
                f"{name}.k={k!r} is not a whole number of at least 2. The token stage, k=1, follows the "
                "last stage by itself."
            )
        parsed.append((k, parse_boundary(stage["until"], f"{name}.until")))
    for number in range(1, len(parsed)):
        _require_order(parsed[number - 1][1], parsed[number][1], number)
    return tuple(parsed)


def in_batches(time: Time, batches_per_epoch: int) -> Time:
    """``time`` with epochs turned into batches; other units stay."""
    if time.unit != TimeUnit.EPOCH:
        return time
    return Time(int(time.value) * batches_per_epoch, TimeUnit.BATCH)


def run_length(max_duration: Time, dataloader_len: int | None) -> Time[int]:
    """The length of a run in a unit that a fraction of it can be expressed in.

    Args:
        max_duration: The trainer's ``max_duration``.
        dataloader_len: Batches per epoch, ``None`` if unknown.

    Returns:
        ``max_duration``, with epochs turned into batches.

    Raises:
        ValueError: If epochs cannot be turned into batches, or for ``iter`` and ``sec``.
    """
    mend = "give max_duration or ratio in batches, samples or tokens ('ba', 'sp' or 'tok')."
    if max_duration.unit == TimeUnit.EPOCH:
        if dataloader_len is None:
            raise ValueError(
                f"ratio is a fraction of max_duration={max_duration.to_timestring()!r}, and the data "
                f"loader does not know its length, so epochs cannot be counted in batches: {mend}"
            )
        return in_batches(max_duration, dataloader_len)
    if max_duration.unit not in _UNITS:
        raise ValueError(
            f"ratio is a fraction of max_duration={max_duration.to_timestring()!r}, whose unit is not "
            f"supported: {mend}"
        )
    return Time(int(max_duration.value), max_duration.unit)


def resolve_boundary(end: float | Time[int], length: Time[int] | None) -> Time[int]:
    """The absolute end of a stage.

    Args:
        end: What :func:`parse_boundary` returned.
        length: What :func:`run_length` returned; only needed for a fraction.

    Returns:
        ``ceil(fraction * length)`` in the unit of ``length``, or ``end`` itself if it is a time.
    """
    if isinstance(end, Time):
        return end
    if length is None:
        raise ValueError("A fraction of a run needs the run's length.")
    # A product that is a whole number but for its last bits must not be rounded up: 0.07 * 100. In
    # runs of billions of tokens those bits are worth more than any fixed margin.
    product = end * length.value
    return Time(math.ceil(product - max(1e-9, 4 * math.ulp(product))), length.unit)


def is_below(timestamp: Timestamp, point: Time[int]) -> bool:
    """Whether a step that starts at ``timestamp`` comes before ``point``, on the point's own counter."""
    return timestamp.get(point.unit) < point


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
        k: Tokens per position of the present stage; 1 in the token stage.
        started: The trainer's clock when the present stage began.
        ends: Where the present stage ends; ``max_duration`` for the token stage.
    """

    index: int
    count: int
    k: int
    started: Timestamp
    ends: Time[int]


@dataclass(frozen=True)
class StagePlan:
    """What a run has settled on; saved with it, and held when it is resumed or extended.

    Attributes:
        stages: The patch stages in their order; the token stage follows them.
        seq_len: Positions the model is trained on; ``None`` until the first batch has been seen.
        length: The run length that fractions were taken of; ``None`` if all ends were times.
        seq_len_from_rows: Whether ``seq_len`` is no more than the longest row seen, which longer rows
            that the model can take raise.
    """

    stages: tuple[Stage, ...]
    seq_len: int | None
    length: Time[int] | None
    seq_len_from_rows: bool = False

    def k_of(self, index: int) -> int:
        """Tokens per position in a stage; 1 in the token stage."""
        return self.stages[index].k if index < len(self.stages) else 1

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
        )

    def __str__(self) -> str:
        if not self.stages:
            return f"token level throughout, seq_len={self.seq_len}"
        if len(self.stages) == 1:
            (stage,) = self.stages
            return f"k={stage.k}, switch at {stage.until.to_timestring()}, seq_len={self.seq_len}"
        listed = ", ".join(f"k={stage.k} until {stage.until.to_timestring()}" for stage in self.stages)
        return f"{listed}, seq_len={self.seq_len}"


def settle(
    asked: Sequence[tuple[int, float | Time[int]]],
    seq_len: int | None,
    length: Time[int] | None,
    saved: StagePlan | None,
    on_mismatch: str,
) -> StagePlan:
    """The plan of this run: the checkpoint's, if there is one and the configuration agrees with it.

    Args:
        asked: Patch sizes and ends, as configured; see :func:`parse_stages`.
        seq_len: Positions, as configured; ``None`` for the default.
        length: What :func:`run_length` returned; may be ``None`` where all ends are times.
        saved: The checkpoint's plan, ``None`` for a new run.
        on_mismatch: One of :data:`ON_MISMATCH`.

    Raises:
        ValueError: If stages are out of order, or checkpoint and configuration disagree and
            ``on_mismatch`` is ``error``.
    """
    fractions = not all(isinstance(end, Time) for _, end in asked)
    configured = StagePlan(_resolved(asked, length), seq_len, length if fractions else None)
    if saved is None:
        return configured
    # A fraction means a fraction of the duration the run was started with: extending a run does
    # not move its switch.
    as_started = configured.stages
    if fractions and saved.length is not None:
        as_started = _resolved(asked, saved.length)
    same_stages = _same_stages(as_started, saved.stages)
    if same_stages and (None in (seq_len, saved.seq_len) or seq_len == saved.seq_len):
        if not _same_stages(configured.stages, saved.stages):
            warnings.warn(
                f"The run was started with {saved}, which holds; the same fractions of the present "
                f"max_duration would be {configured}.",
                stacklevel=2,
            )
        if seq_len is not None:
            return replace(saved, seq_len=seq_len, seq_len_from_rows=False)
        return saved
    if same_stages:
        configured = replace(configured, stages=saved.stages, length=saved.length)
    if on_mismatch == "error":
        raise ValueError(
            f"The checkpoint was trained with {saved}, the configuration says {configured}. Change the "
            "configuration, or set on_mismatch to 'use_checkpoint' or 'use_config'."
        )
    return saved if on_mismatch == "use_checkpoint" else configured


def _resolved(asked: Sequence[tuple[int, float | Time[int]]], length: Time[int] | None) -> tuple[Stage, ...]:
    stages = tuple(Stage(k, resolve_boundary(end, length)) for k, end in asked)
    for number in range(1, len(stages)):
        _require_order(stages[number - 1].until, stages[number].until, number)
    return stages


def _require_order(before: float | Time[int], after: float | Time[int], number: int) -> None:
    if isinstance(before, Time) != isinstance(after, Time):
        return  # not to be told before the run's length is known
    if isinstance(before, Time) and isinstance(after, Time):
        if before.unit != after.unit:
            return  # epochs and tokens, say: the stages take their turns whatever comes first
        before, after = before.value, after.value
    if after <= before:
        raise ValueError(
            f"stages[{number}].until={after} is not after stages[{number - 1}].until={before}. List the "
            "stages in their order, each with a later end."
        )


def _same_stages(one: tuple[Stage, ...], other: tuple[Stage, ...]) -> bool:
    # Composer refuses to compare times of different units, even for equality.
    def key(stages: tuple[Stage, ...]) -> list[tuple[int, object, TimeUnit]]:
        return [(stage.k, stage.until.value, stage.until.unit) for stage in stages]

    return key(one) == key(other)


def _checked_fraction(fraction: float, given: object, name: str) -> float:
    if not 0.0 <= fraction <= 1.0:  # also refuses NaN
        raise ValueError(f"{name}={given!r} is not a fraction between 0 and 1. {_HOW}")
    return fraction
