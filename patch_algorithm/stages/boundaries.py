"""Where stages end: fractions of the run or times, read once and resolved to absolute times."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias, TypeVar

from composer.core import Time, Timestamp, TimeUnit

from patch_algorithm.common.arguments import whole_number

__all__ = [
    "Boundary",
    "in_batches",
    "is_below",
    "parse_boundary",
    "parse_stages",
    "require_order",
    "resolve_boundary",
    "run_length",
]

Boundary: TypeAlias = float | Fraction | Time[int]
"""Where a stage ends: a fraction of the run, which is exact if it was written as one, or a time."""

_Fraction = TypeVar("_Fraction", float, Fraction)

_UNITS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN)


_FRACTION = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*(?:dur)?\s*")

_HOW = (
    "Give a fraction of the run between 0 and 1 ('2/3', 0.67 or '0.67dur'), or a time in batches, samples, "
    "tokens or epochs ('90000ba', '500sp', '240_000_000_000tok', '1ep')."
)


_STAGES_HOW = "Give a list such as [{k: 8, until: 1/3}, {k: 4, until: 0.6dur}]."


def parse_boundary(value: float | str, name: str = "ratio") -> Boundary:
    """Reads where a stage ends.

    Args:
        value: A fraction of ``max_duration`` (``0.67``, ``'0.67dur'``, ``'2/3'``, ``'2/3dur'``), or a
            Composer time string.
        name: What the errors call it.

    Returns:
        The fraction, exact if it was written with a slash, or the time as given.

    Raises:
        ValueError: If it is neither, is negative, not a number, above 1 (as a fraction), or in a
            unit that is not supported (``iter``, ``sec``).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{name}={value!r} is neither a fraction nor a time. {_HOW}")
    if not isinstance(value, str):
        return _checked_fraction(float(value), value, name)
    if (exact := _FRACTION.fullmatch(value)) is not None and int(exact[2]) > 0:
        return _checked_fraction(Fraction(int(exact[1]), int(exact[2])), value, name)
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


def parse_stages(stages: object) -> tuple[tuple[int, Boundary], ...]:
    """Reads the ``stages`` argument.

    Args:
        stages: A list of mappings with ``k`` and ``until``.

    Returns:
        Pairs of patch size and end, as :func:`parse_boundary` gives it.

    Raises:
        ValueError: If it is not such a list, a ``k`` is below 2, or an end is not after the end before
            it. Ends in different units are compared when the run's length is known.
    """
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
        raise ValueError(f"stages={stages!r} is not a list of stages. {_STAGES_HOW}")
    parsed: list[tuple[int, Boundary]] = []
    for number, stage in enumerate(stages):
        name = f"stages[{number}]"
        if not isinstance(stage, Mapping) or set(stage) != {"k", "until"}:
            raise ValueError(f"{name}={stage!r} is not a mapping of 'k' and 'until'. {_STAGES_HOW}")
        k = whole_number(
            f"{name}.k", stage["k"], 2, " The token stage (k=1) follows the last stage automatically."
        )
        parsed.append((k, parse_boundary(stage["until"], f"{name}.until")))
    for number in range(1, len(parsed)):
        require_order(parsed[number - 1][1], parsed[number][1], number)
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
    fix = "give max_duration or ratio in batches, samples or tokens ('ba', 'sp' or 'tok')."
    if max_duration.unit == TimeUnit.EPOCH:
        if dataloader_len is None:
            raise ValueError(
                f"ratio is a fraction of max_duration={max_duration.to_timestring()!r}, and the data "
                f"loader does not know its length, so epochs cannot be converted to batches: {fix}"
            )
        return in_batches(max_duration, dataloader_len)
    if max_duration.unit not in _UNITS:
        raise ValueError(
            f"ratio is a fraction of max_duration={max_duration.to_timestring()!r}, whose unit is not "
            f"supported: {fix}"
        )
    return Time(int(max_duration.value), max_duration.unit)


def resolve_boundary(end: Boundary, length: Time[int] | None) -> Time[int]:
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
    if isinstance(end, Fraction):
        return Time(math.ceil(end * length.value), length.unit)
    # A product that is a whole number but for its last bits must not be rounded up: 0.07 * 100. In
    # runs of billions of tokens those bits are worth more than any fixed margin.
    product = end * length.value
    return Time(math.ceil(product - max(1e-9, 4 * math.ulp(product))), length.unit)


def is_below(timestamp: Timestamp, point: Time[int]) -> bool:
    """Whether a step that starts at ``timestamp`` comes before ``point``, on the point's own counter."""
    return timestamp.get(point.unit) < point


def require_order(before: Boundary, after: Boundary, number: int) -> None:
    """Checks that stage ``number`` ends after the one before it, as far as the two can be compared.

    Raises:
        ValueError: If not.
    """
    if isinstance(before, Time) and isinstance(after, Time):
        if before.unit != after.unit:
            return  # epochs and tokens, say: the stages take their turns whatever comes first
        in_order = before.value < after.value
    elif isinstance(before, Time) or isinstance(after, Time):
        return  # not to be told before the run's length is known
    else:
        in_order = before < after
    if not in_order:
        given, earlier = (t.value if isinstance(t, Time) else t for t in (after, before))
        raise ValueError(
            f"stages[{number}].until={given} is not after stages[{number - 1}].until={earlier}. List the "
            "stages in their order, each with a later end."
        )


def _checked_fraction(fraction: _Fraction, given: object, name: str) -> _Fraction:
    if not 0.0 <= fraction <= 1.0:  # also refuses NaN
        raise ValueError(f"{name}={given!r} is not a fraction between 0 and 1. {_HOW}")
    return fraction
