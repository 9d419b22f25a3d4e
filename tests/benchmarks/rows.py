"""Made-up results of the study, whose differences are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.settings import Settings

BYTES = [100, 300, 250, 350]
TOKENS = [50, 120, 130, 150]


def row(settings: Settings, bits_per_byte: float | None, spread: float = 0.0) -> dict[str, Any]:
    """A row of results; ``spread`` moves bits from the last document to the first."""
    nats = None
    if bits_per_byte is not None:
        nats = np.array(BYTES) * bits_per_byte * math.log(2) + np.array([spread, 0, 0, -spread])
    return {
        "id": settings.identity,
        "settings": settings.to_row(),
        "bits_per_byte": bits_per_byte,
        "document_nats": None if nats is None else nats.tolist(),
        "cpu_seconds": 10.0,
        "positions": settings.steps * settings.positions,
    }


def rows(settings: Iterable[Settings], bits: Callable[[Settings], float | None]) -> dict[str, dict[str, Any]]:
    """A row for each of the settings, by identity."""
    return {one.identity: row(one, bits(one)) for one in settings}


def pairs(
    cells: Iterable[Settings], difference: Callable[[Settings], float], seeds: Iterable[int] = (1, 2, 3)
) -> dict[str, dict[str, Any]]:
    """Patch runs of ``difference`` bits per byte against their twins, for each seed."""
    made: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for seed in seeds:
            patch = replace(cell, seed=seed)
            token = patch.twin()
            made[token.identity] = row(token, 2.0 + 0.01 * seed)
            made[patch.identity] = row(patch, 2.0 + 0.01 * seed + difference(patch), spread=0.01 * seed)
    return made


def write(folder: Path, made: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes results and the list of documents, and returns the file of results."""
    results = folder / "runs.jsonl"
    results.write_text("".join(json.dumps(one) + "\n" for one in made.values()))
    documents = {"fingerprint": "made-up", "bytes": BYTES, "tokens": TOKENS}
    (folder / "documents-pile.json").write_text(json.dumps(documents))
    return results
