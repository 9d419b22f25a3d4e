"""Progress bars on standard error."""

from __future__ import annotations

import sys

from tqdm import tqdm

__all__ = ["progress_bar"]


class _Lines:
    """Standard error where it is no terminal: each state of a bar is a line of a log."""

    def write(self, text: str) -> None:
        if state := text.strip():
            sys.stderr.write(f"{state}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(label: str, total: int | None, unit: str, shown: bool = True) -> tqdm:
    """A progress bar on standard error; now and then a line where that is not a terminal."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=True,
        mininterval=0.2 if terminal else 5.0,
        disable=not shown,
        file=None if terminal else _Lines(),
    )
