"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_atomically", "write_whole"]


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file beside itself and renames it."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, path)


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file so that it is there as a whole or not at all."""
    aside = path.with_name(f"{path.name}.partial")
    with aside.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
