"""Checks of single arguments, with errors that name them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["a_bool", "one_of", "positive_int"]


def positive_int(name: str, value: object) -> int:
    """``value``, if it is a whole number of at least 1.

    Raises:
        ValueError: If not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} is not a whole number of at least 1.")
    return value


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """``value``, if it is one of the known ones.

    Raises:
        ValueError: If not.
    """
    if value not in known:
        raise ValueError(f"{name}={value!r} is none of {', '.join(known)}.")
    return value


def a_bool(name: str, value: object) -> bool:
    """``value``, if it is a bool.

    Raises:
        ValueError: If not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is neither true nor false.")
    return value
