"""Checks of single arguments, with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

__all__ = ["a_bool", "a_number", "is_number", "is_whole", "one_of", "positive_int", "whole_number"]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer; to Python a bool is one, to a user it is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is an integer or a float, and finite."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def whole_number(name: str, value: object, least: int, advice: str = "") -> int:
    """``value``, if it is a whole number of at least ``least``.

    Raises:
        ValueError: If not; ``advice`` follows.
    """
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}={value!r} is not a whole number of at least {least}.{advice}")
    return value


def positive_int(name: str, value: object) -> int:
    """``value``, if it is a whole number of at least 1.

    Raises:
        ValueError: If not.
    """
    return whole_number(name, value, 1)


def a_number(name: str, value: object, above: float = -math.inf) -> float:
    """``value``, if it is a finite number above ``above``.

    Raises:
        ValueError: If not.
    """
    if not is_number(value) or value <= above:
        bound = f" above {above:g}" if above > -math.inf else ""
        raise ValueError(f"{name}={value!r} is not a finite number{bound}.")
    return value


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """``value``, if it is one of the known ones.

    Raises:
        ValueError: If not.
    """
    if value not in known:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}.")
    return value


def a_bool(name: str, value: object) -> bool:
    """``value``, if it is a bool.

    Raises:
        ValueError: If not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is neither true nor false.")
    return value
