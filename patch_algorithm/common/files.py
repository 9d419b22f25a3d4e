"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_atomically", "write_whole"]


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file under a temporary name and renames it."""
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, path)


def write_whole(path: Path, *parts: bytes | memoryview, lasting: bool = True) -> None:
    """Writes a file so that it is there as a whole or not at all.

    Args:
        path: The file.
        parts: Its content.
        lasting: Whether that holds after a loss of power, too, for which it waits for the disk.
    """
    aside = path.with_name(f"{path.name}.partial")
    with aside.open("wb") as file:
        for part in parts:
            file.write(part)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    aside.replace(path)
