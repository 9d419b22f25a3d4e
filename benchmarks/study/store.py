"""The file of results: one line of JSON for each finished run, appended whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = ["append_row", "merge_rows", "read_rows"]


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Reads all finished runs by their identity.

    A last line without its end is what a killed process left, and is passed over.

    Raises:
        ValueError: If another line is no JSON or has no ``id``.
    """
    if not path.exists():
        return {}
    rows: dict[str, dict[str, Any]] = {}
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            rows.setdefault(row["id"], row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is not a row of results: {error!r}") from error
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> bool:
    """Appends a run, unless it is there already.

    Returns:
        Whether it was appended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if row["id"] in read_rows(path):
            return False
        _cut_torn_line(path)
        line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
        with path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    return True


def merge_rows(source: Path, target: Path) -> int:
    """Appends the runs of one file that the other lacks; returns how many."""
    return sum(append_row(target, row) for row in read_rows(source).values())


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(path, whole)
