"""Writes the study's finished comparisons to the table that ``patch-level plan`` reads.

    python -m benchmarks.study.verdict

The main line (k = 4 for 30 % of the steps, each size's own rate, equal compute), and pairs on equal data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.study.analysis import Comparison, headline
from benchmarks.study.report import load
from benchmarks.study.settings import SIZES, Settings

__all__ = ["table", "write"]

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
TABLE = ROOT / "patch_algorithm" / "planning" / "verdict_study.json"


def table(results: Path = RESULTS) -> dict[str, Any]:
    """The comparisons of the main line, each with its seeds and interval."""
    rows, comparisons = load(results)
    equal_data = [one for one in comparisons if one.settings.hold == "tokens" and _is_plain(one.settings)]
    cells = [_cell(one) for one in [*headline(comparisons), *equal_data]]
    return {"written_by": "benchmarks.study.verdict", "runs": len(rows), "cells": cells}


def write(results: Path = RESULTS, path: Path = TABLE) -> None:
    """Writes the table."""
    path.write_text(json.dumps(table(results), indent=1) + "\n", encoding="utf-8")


def _is_plain(settings: Settings) -> bool:
    plain = Settings(
        settings.size,
        settings.tokens_per_parameter,
        settings.rate,
        settings.seed,
        stages=settings.stages,
        hold=settings.hold,
    )
    return settings == plain and len(settings.stages) == 1


def _cell(one: Comparison) -> dict[str, Any]:
    settings, interval = one.settings, one.interval()
    return {
        "parameters": SIZES[settings.size].parameters,
        "tokens_per_parameter": settings.tokens_per_parameter,
        "stages": [list(stage) for stage in settings.stages],
        "hold": settings.hold,
        "seeds": len(one.seeds),
        "bits_per_byte": round(interval.value, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "nats_per_token": round(one.nats_per_token(), 4),
    }


if __name__ == "__main__":
    write()
