"""When a run switches from patches to tokens: a pure function of the trainer's clock.

The switch point is given as a fraction of the run or as a time, and resolved once to an absolute
:class:`composer.Time`. A step is a patch step if and only if the clock at its start is below it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from composer.core import Time, TimeUnit

if TYPE_CHECKING:
    from composer.core import Timestamp

__all__ = [
    "ON_MISMATCH",
    "StagePlan",
    "in_batches",
    "is_below",
    "parse_ratio",
    "resolve_switch",
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


def parse_ratio(ratio: float | str) -> float | Time[int]:
    """Reads the ``ratio`` argument.

    Args:
        ratio: A fraction of ``max_duration``, or a Composer time string.

    Returns:
        The fraction, or the time as given.

    Raises:
        ValueError: If it is neither, is negative, not a number, above 1 (as a fraction), or in a
            unit that no step counter follows (``iter``, ``sec``).
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float, str)):
        raise ValueError(f"ratio={ratio!r} is neither a fraction nor a time. {_HOW}")
    if not isinstance(ratio, str):
        return _checked_fraction(float(ratio), ratio)
    if re.fullmatch(r"[\d_.eE+-]+", ratio.strip()):  # Composer would read seconds
        raise ValueError(f"ratio={ratio!r} is a string without a unit. {_HOW}")
    try:
        time = Time.from_timestring(ratio)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"ratio={ratio!r} cannot be read as a time. {_HOW}") from error
    if time.unit == TimeUnit.DURATION:
        return _checked_fraction(float(time.value), ratio)
    if time.unit not in _UNITS:
        raise ValueError(f"ratio={ratio!r} is in {time.unit.value!r}, which is not supported. {_HOW}")
    if time.value < 0:
        raise ValueError(f"ratio={ratio!r} is negative. {_HOW}")
    return Time(int(time.value), time.unit)


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


def resolve_switch(ratio: float | Time[int], length: Time[int] | None) -> Time[int]:
    """The absolute switch point.

    Args:
        ratio: What :func:`parse_ratio` returned.
        length: What :func:`run_length` returned; only needed for a fraction.

    Returns:
        ``ceil(fraction * length)`` in the unit of ``length``, or ``ratio`` itself if it is a time.
    """
    if isinstance(ratio, Time):
        return ratio
    if length is None:
        raise ValueError("A fraction of a run needs the run's length.")
    # A product that is a whole number but for its last bits must not be rounded up: 0.07 * 100. In
    # runs of billions of tokens those bits are worth more than any fixed margin.
    product = ratio * length.value
    return Time(math.ceil(product - max(1e-9, 4 * math.ulp(product))), length.unit)


def is_below(timestamp: Timestamp, point: Time[int]) -> bool:
    """Whether a step that starts at ``timestamp`` comes before ``point``, on the point's own counter."""
    return timestamp.get(point.unit) < point


@dataclass(frozen=True)
class StagePlan:
    """What a run has settled on; saved with it, and held when it is resumed or extended.

    Attributes:
        k: Patch size of the patch stage.
        switch: Where the patch stage ends, on the trainer's clock.
        seq_len: Positions the model is trained on; ``None`` until the first batch has been seen.
        seq_len_from_rows: Whether ``seq_len`` is no more than the longest row seen, which longer rows
            that the model can take raise.
        length: The run length that a fraction was taken of; ``None`` if ``ratio`` was a time.
    """

    k: int
    switch: Time[int]
    seq_len: int | None
    length: Time[int] | None
    seq_len_from_rows: bool = False

    def state_dict(self) -> dict[str, int | str | None]:
        """The plan in primitives, as checkpoints want it."""
        return {
            "k": self.k,
            "switch": self.switch.value,
            "switch_unit": self.switch.unit.value,
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
            k=state["k"],
            switch=Time(state["switch"], state["switch_unit"]),
            seq_len=state["seq_len"],
            length=None if length is None else Time(length, state["length_unit"]),
            seq_len_from_rows=state["seq_len_from_rows"],
        )

    def __str__(self) -> str:
        return f"k={self.k}, switch at {self.switch.to_timestring()}, seq_len={self.seq_len}"


def settle(
    k: int,
    ratio: float | Time[int],
    seq_len: int | None,
    length: Time[int] | None,
    saved: StagePlan | None,
    on_mismatch: str,
) -> StagePlan:
    """The plan of this run: the checkpoint's, if there is one and the configuration agrees with it.

    Args:
        k: Patch size, as configured.
        ratio: What :func:`parse_ratio` returned.
        seq_len: Positions, as configured; ``None`` for the default.
        length: What :func:`run_length` returned; may be ``None`` where ``ratio`` is a time.
        saved: The checkpoint's plan, ``None`` for a new run.
        on_mismatch: One of :data:`ON_MISMATCH`.

    Raises:
        ValueError: If checkpoint and configuration disagree and ``on_mismatch`` is ``error``.
    """
    configured = StagePlan(
        k=k,
        switch=resolve_switch(ratio, length),
        seq_len=seq_len,
        length=None if isinstance(ratio, Time) else length,
    )
    if saved is None:
        return configured
    # A fraction means a fraction of the duration the run was started with: extending a run does
    # not move its switch.
    as_started = configured.switch
    if not isinstance(ratio, Time) and saved.length is not None:
        as_started = resolve_switch(ratio, saved.length)
    same_seq_len = None in (seq_len, saved.seq_len) or seq_len == saved.seq_len
    if k == saved.k and _same(as_started, saved.switch) and same_seq_len:
        if not _same(configured.switch, saved.switch):
            warnings.warn(
                f"The run was started with a switch at {saved.switch.to_timestring()}, which holds; the "
                f"same fraction of the present max_duration would be {configured.switch.to_timestring()}.",
                stacklevel=2,
            )
        if seq_len is not None:
            return replace(saved, seq_len=seq_len, seq_len_from_rows=False)
        return saved
    if _same(as_started, saved.switch):
        configured = replace(configured, switch=saved.switch, length=saved.length)
    if on_mismatch == "error":
        raise ValueError(
            f"The checkpoint was trained with {saved}, the configuration says {configured}. Change the "
            "configuration, or set on_mismatch to 'use_checkpoint' or 'use_config'."
        )
    return saved if on_mismatch == "use_checkpoint" else configured


def _same(one: Time[int], other: Time[int]) -> bool:
    # Composer refuses to compare times of different units, even for equality.
    return one.unit == other.unit and one.value == other.value


def _checked_fraction(fraction: float, given: object) -> float:
    if not 0.0 <= fraction <= 1.0:  # also refuses NaN
        raise ValueError(f"ratio={given!r} is not a fraction between 0 and 1. {_HOW}")
    return fraction
