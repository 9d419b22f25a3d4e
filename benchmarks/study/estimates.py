"""How long runs take, from those that are finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.study.settings import SIZES, Settings

__all__ = ["hours"]

# CPU seconds of a million positions through the trainer on one core of an AMD EPYC, before there are rows.
_SECONDS = {"0.16M": 28.0, "0.31M": 51.0, "0.56M": 78.0, "5M": 500.0}
_EVALUATION = 0.25  # of a training step's time, per position
_HELD_OUT = 1.6


def hours(settings: Settings, rows: Mapping[str, Mapping[str, Any]]) -> float:
    """Estimated CPU hours of a run."""
    million = settings.steps * settings.positions / 1e6
    known = [
        row["cpu_seconds"] / (row["positions"] / 1e6 + _EVALUATION * _HELD_OUT)
        for row in rows.values()
        if row["settings"]["size"] == settings.size
        and row["settings"].get("positions", 4096) == settings.positions
    ]
    a_million = (
        float(np.median(known))
        if known
        else _SECONDS.get(settings.size, SIZES[settings.size].parameters / 1e4)
    )
    return a_million * (million + _EVALUATION * _HELD_OUT) / 3600
