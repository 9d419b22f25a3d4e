"""What a run or a result is named by on the command line: ``[NAME=]PLACE``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["HISTORY", "named", "same_place"]

HISTORY = "history.jsonl"


def named(text: str) -> tuple[str | None, str]:
    """The name in front of a place, if there is one, and the place."""
    before, equals, after = text.partition("=")
    if equals and before and after and "/" not in before and not Path(text).exists():
        return before, after
    return None, text


def same_place(place: str) -> str:
    """What is equal for all ways to write a place: a run's folder and its history are the same run."""
    real = place if "://" in place else str(Path(place).resolve())
    return real.rstrip("/").removesuffix(f"/{HISTORY}")
