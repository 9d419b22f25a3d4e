"""Writes the study's finished comparisons to the table that ``patch-level plan`` reads.

    python -m benchmarks.study.verdict

The main line (k = 4 for 30 % of the steps, each size's own rate, equal compute), and pairs on equal data.
What ``docs/plan.md`` shows of the command is printed anew, because the table is part of it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.study.analysis import Comparison, headline
from benchmarks.study.report import load
from benchmarks.study.settings import SIZES, Settings

__all__ = ["refresh_page", "table", "write"]

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
PAGE = ROOT / "docs" / "plan.md"
TABLE = ROOT / "patch_algorithm" / "planning" / "verdict_study.json"


def table(results: Path = RESULTS) -> dict[str, Any]:
    """The comparisons of the main line, each with its seeds and interval."""
    rows, comparisons = load(results)
    equal_data = [one for one in comparisons if one.settings.hold == "tokens" and _is_plain(one.settings)]
    # One seed has no interval.
    cells = [_cell(one) for one in [*headline(comparisons), *equal_data] if len(one.seeds) > 1]
    return {"written_by": "benchmarks.study.verdict", "runs": len(rows), "cells": cells}


def write(results: Path = RESULTS, path: Path = TABLE) -> None:
    """Writes the table."""
    path.write_text(json.dumps(table(results), indent=1) + "\n", encoding="utf-8")


def refresh_page(page: Path = PAGE) -> None:
    """Runs the commands of a page again, and puts what they print in place of what it shows."""

    def printed(shown: re.Match[str]) -> str:
        command = "from patch_algorithm.cli import app; app()"
        words = [sys.executable, "-c", command, *shlex.split(shown[1])[1:]]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return f"```console\n{shown[1]}```\n\n```text\n{done.stdout.rstrip()}\n```"

    pattern = r"^```console\n([^`]*?)^```\n\n```text\n.*?^```$"
    page.write_text(re.sub(pattern, printed, page.read_text("utf-8"), flags=re.M | re.S), "utf-8")


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
    # The plan decides nothing that the bootstrap and Student's interval do not agree on.
    settings, interval = one.settings, one.wider()
    return {
        "parameters": SIZES[settings.size].parameters,
        "tokens_per_parameter": settings.tokens_per_parameter,
        "stages": [list(stage) for stage in settings.stages],
        "hold": settings.hold,
        "seeds": len(one.seeds),
        "bits_per_byte": round(interval.value, 6),
        "low": round(interval.low, 6),
        "high": round(interval.high, 6),
        "nats_per_token": round(one.nats_per_token(), 6),
    }


if __name__ == "__main__":
    write()
    refresh_page()
