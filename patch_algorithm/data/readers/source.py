"""What a source of documents is, and how sources are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_algorithm.data.readers.blocks import Block, Position

__all__ = ["FileSource", "Reading", "Source", "total_size"]


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Attributes:
        text_field: The field, or column, with the text; a dot leads into an object.
        block_bytes: Text of a block, in bytes.
        longest_line: Lines longer than this, in bytes, are bad lines.
        component_field: The field, or column, that names the component, likewise; ``None`` tries those
            that are known, :data:`patch_algorithm.data.readers.fields.COMPONENT_FIELDS`.
    """

    text_field: str = "text"
    block_bytes: int = 2 * 2**20
    longest_line: int = 200 * 10**6
    component_field: str | None = None


class Source(ABC):
    """An ordered run of documents with a name.

    Attributes:
        name: As it is shown and recorded.
        place: What its documents are counted in: lines, rows, documents.
        split: The split that all its documents belong to; ``None`` leaves it to the conversion.
    """

    name: str
    place: str
    split: str | None = None

    @abstractmethod
    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a position to the end.

        Raises:
            SourceDamage: Where it cannot be read further.
            OSError: If it cannot be opened.
        """

    @abstractmethod
    def stamp(self) -> dict[str, Any]:
        """What tells cheaply that the source has changed, fit for JSON."""

    @abstractmethod
    def size(self) -> int | None:
        """Bytes to read, or ``None`` where nobody knows."""


@dataclass(frozen=True)
class FileSource(Source):
    """A source that is one file of this machine."""

    path: Path
    name: str = ""
    place: str = "line"
    split: str | None = None

    def stamp(self) -> dict[str, Any]:
        """Size and time of the last change, and the split where it has one."""
        status = self.path.stat()
        stamp: dict[str, Any] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        return stamp | {"split": self.split} if self.split else stamp

    def size(self) -> int | None:
        """Its size."""
        return self.path.stat().st_size


def total_size(sources: Sequence[Source]) -> int | None:
    """Bytes to read of all sources, or ``None`` where nobody knows."""
    sizes = [source.size() for source in sources]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
