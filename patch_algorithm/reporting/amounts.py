"""How a report writes amounts, and in which unit it draws them."""

from __future__ import annotations

import math

from patch_algorithm.common.tables import duration

__all__ = ["axis_unit", "compute", "nats", "seconds", "tokens"]

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_WORDS = {0: "", 3: "thousand", 6: "million", 9: "billion", 12: "trillion"}
_TIMES = ((86400.0 * 3, 86400.0, "days"), (3600.0 * 2, 3600.0, "hours"), (300.0, 60.0, "minutes"))


def tokens(amount: float) -> str:
    """Raw tokens: whole below ten million, then in three figures."""
    if amount < 1e7:
        return f"{amount:,.0f}"
    exponent = min(int(math.log10(amount)) // 3 * 3, 12)
    return f"{amount / 10**exponent:.4g} {_WORDS[exponent]}"


def compute(amount: float, axis: str = "flops") -> str:
    """FLOPs, or positions where no FLOPs are known."""
    if axis != "flops":
        return f"{tokens(amount)} positions"
    if amount <= 0:
        return "0 FLOPs"
    exponent = math.floor(math.log10(amount))
    return f"{amount / 10**exponent:.2f} × 10{str(exponent).translate(_SUPERSCRIPTS)} FLOPs"


def seconds(amount: float) -> str:
    """A time."""
    return duration(amount)


def nats(difference: float) -> str:
    """A difference in loss, with its sign."""
    return f"{difference:+.3f} nats".replace("-", "−")


def axis_unit(axis: str, largest: float) -> tuple[float, str]:
    """What to divide an axis by, and its label."""
    if axis == "seconds":
        by, unit = next(((by, unit) for least, by, unit in _TIMES if largest >= least), (1.0, "seconds"))
        return by, f"training time ({unit}, without evaluation)"
    exponent = int(math.log10(largest)) // 3 * 3 if largest >= 1 else 0
    if axis == "flops":
        return 10.0**exponent, f"compute (10{str(exponent).translate(_SUPERSCRIPTS)} FLOPs)"
    exponent = min(exponent, 12)
    names = {
        "raw_tokens": "raw tokens",
        "positions": "compute (positions, FLOPs not recorded)",
        "step": "steps",
    }
    word = _WORDS[exponent]
    return 10.0**exponent, names[axis] + (f" ({word}s)" if word else "")
