"""Progress bars on standard error."""

from __future__ import annotations

import sys

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(label: str, total: int | None, unit: str, shown: bool = True) -> tqdm:
    """A progress bar on standard error; written rarely where that is not a terminal."""
    # Where it is no terminal, each state is a line of a log.
    rarely = 0.2 if sys.stderr.isatty() else 5.0
    return tqdm(desc=label, total=total, unit=unit, unit_scale=True, mininterval=rarely, disable=not shown)
