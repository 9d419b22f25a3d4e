"""Files of JSON lines, which may be compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from patch_algorithm.data.readers.blocks import Block, Position, cut_lines
from patch_algorithm.data.readers.decompression import text_pieces
from patch_algorithm.data.readers.source import FileSource, Reading

__all__ = ["LineSource"]


@dataclass(frozen=True)
class LineSource(FileSource):
    """A file with a JSON object on each line, which may be compressed."""

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a position to the end; of a compressed file all that is before has to be read too."""
        with self.path.open("rb") as handle:
            pieces = text_pieces(handle, self.path.name, start.offset)
            before = handle.tell()
            for block in cut_lines(pieces, start, reading.block_bytes, reading.longest_line):
                now = handle.tell()
                yield replace(block, read_bytes=now - before, split=self.split)
                before = now
