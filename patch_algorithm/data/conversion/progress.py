"""The bar of a conversion."""

from __future__ import annotations

import time
from types import TracebackType

from patch_algorithm.common.progress_bar import progress_bar
from patch_algorithm.data.conversion.documents import Counts

__all__ = ["UnitsBar"]


class UnitsBar:
    """Shows how much of the input is read, and how fast text becomes tokens, over all workers.

    Args:
        total: Bytes of input, as far as they are known.
        shown: Whether anything is shown.
    """

    def __init__(self, total: int | None, shown: bool) -> None:
        self.counts = Counts()
        self._started = time.monotonic()
        self._bar = progress_bar("converting", total, "B", shown)

    def found(self, read_bytes: int) -> None:
        """Counts what an earlier run has done, which says nothing about the speed of this one."""
        if not self._bar.disable:
            self._bar.initial += read_bytes
        self._bar.update(read_bytes)

    def add(self, read_bytes: int, counts: Counts) -> None:
        """Counts a finished unit."""
        self.counts = self.counts.plus(counts)
        seconds = max(1e-6, time.monotonic() - self._started)
        self._bar.set_postfix_str(
            f"{self.counts.bytes / seconds / 1e6:.1f} MB text/s, "
            f"{self.counts.tokens / seconds / 1e6:.2f} M tokens/s, {self.counts.documents:,} documents",
            refresh=False,
        )
        self._bar.update(read_bytes)

    def __enter__(self) -> UnitsBar:
        """Shows the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
