"""Files of JSON lines, which may be compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

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
            text = _Counted(text_pieces(handle, self.path.name, start.offset), start.offset)
            before = None
            for block in cut_lines(text, start, reading.block_bytes, reading.longest_line):
                if before is None:
                    before = text.place(handle, start.offset)
                now = max(before, text.place(handle, block.end.offset))
                yield replace(block, read_bytes=now - before, split=self.split)
                before = now


class _Counted:
    # Reading is ahead of the blocks by up to a piece, which is half a block long: what has been read of the
    # file so far would count that for the block.

    def __init__(self, pieces: Iterator[bytes], begin: int) -> None:
        self._pieces, self._text_bytes = pieces, begin

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._text_bytes += len(piece)
            yield piece

    def place(self, handle: BinaryIO, offset: int) -> int:
        """About where in the file a place of its text lies; exactly, unless it is compressed or an array."""
        return handle.tell() * offset // max(self._text_bytes, 1)
