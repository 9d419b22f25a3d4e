"""How a plan prints amounts."""

from __future__ import annotations

from patch_algorithm.common.tables import duration

__all__ = ["flops", "hours", "memory", "money", "number"]


def number(value: float) -> str:
    """An amount in three digits, with M, B or T for millions and more."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size * 0.9995:
            return f"{value / size:#.3g}".rstrip(".") + unit
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def flops(value: float | None) -> str:
    """FLOPs, such as ``1.18e20``."""
    return "-" if value is None else f"{value:.2e}".replace("e+", "e")


def memory(value: float | None) -> str:
    """Bytes in GB or MB."""
    if value is None:
        return "-"
    return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"


def hours(value: float) -> str:
    """Hours as people say them."""
    if value >= 10:
        return f"{value:,.1f} h"
    return f"{value:.2f} h" if value >= 1 else duration(value * 3600)


def money(value: float) -> str:
    """An amount of money in the unit that the price was given in."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
