"""Texts in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Position, Row, cut_rows
from patch_algorithm.data.readers.source import Reading, Source

__all__ = ["TextSource"]


@dataclass(frozen=True)
class TextSource(Source):
    """Texts that a function returns.

    Attributes:
        load: Returns the texts, the same ones each time; it is called when they are needed.
        version: What decides the texts, fit for JSON.
        text_bytes: About how many bytes of text there are.
    """

    name: str
    load: Callable[[], Sequence[str]] = field(compare=False)
    version: Mapping[str, Any]
    text_bytes: int
    place: str = "document"
    split: str | None = None

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a text to the last."""
        rows = (Row(text) for text in self.load()[start.offset :])
        for block in cut_rows(rows, start, reading.block_bytes):
            yield replace(block, read_bytes=block.size, split=self.split)

    def stamp(self) -> dict[str, Any]:
        """What decides the texts."""
        return dict(self.version)

    def size(self) -> int | None:
        """About how many bytes of text there are."""
        return self.text_bytes
