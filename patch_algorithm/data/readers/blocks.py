"""Blocks: the pieces of a source that are handed to workers, cut at the ends of documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Block", "Lost", "Position", "Row", "SourceDamage", "cut_lines", "cut_rows"]


class SourceDamage(Exception):
    """A source that cannot be read to its end; what was read before it is good.

    Attributes:
        reason: In a few words, as it is counted.
        detail: What exactly.
        documents: How many documents are lost with it, as far as is known; at least 1.
    """

    def __init__(self, reason: str, detail: str, documents: int = 1) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.documents = max(1, documents)


class Position(NamedTuple):
    """A place between two documents of a source.

    Attributes:
        offset: Bytes of text before it, decompressed; rows of a table.
        number: Lines, or rows, before it.
    """

    offset: int = 0
    number: int = 0


class Lost(NamedTuple):
    """Stands for a text that cannot be read, where those after it can.

    Attributes:
        detail: Why.
        bytes: About how long the text was, so that blocks of such rows are no longer than others.
    """

    detail: str
    bytes: int


class Row(NamedTuple):
    """A document of a source that is no text file.

    Attributes:
        text: A string, its UTF-8, ``None`` where there is none, :class:`Lost`, or whatever stands in its
            place.
        component: Its component of the Pile, if it has one.
    """

    text: object
    component: str | None = None

    def size(self) -> int:
        """Bytes of UTF-8, near enough to cut by."""
        if isinstance(self.text, Lost):
            return self.text.bytes
        return len(self.text) if isinstance(self.text, str | bytes) else 0


@dataclass(frozen=True)
class Block:
    """A run of whole documents of one source.

    Attributes:
        start: Where it begins.
        end: Where it ends.
        data: Lines of text as they stand in the file, or rows.
        size: Bytes of text.
        overlong: Lines of the block, counted from 0, that were too long to be held. They are blank here.
        read_bytes: Bytes of the file that it takes up, which compression makes fewer than ``size``.
        split: The split that all its documents belong to; ``None`` leaves it to the conversion.
    """

    start: Position
    end: Position
    data: bytes | Sequence[Row]
    size: int
    overlong: tuple[int, ...] = ()
    read_bytes: int = 0
    split: str | None = None

    def digest(self) -> bytes:
        """A hash of the content, and of the split where it has one."""
        data = self.data
        if not isinstance(data, bytes):
            data = repr([tuple(row) for row in data]).encode(errors="replace")
        whole = hashlib.sha256(data)
        whole.update((self.split or "").encode())
        return whole.digest()


class _LineCutter:
    # Holds text until whole lines of it make a block. What is a block depends on the text alone, not
    # on the pieces it arrives in: the fewest whole lines that make up `block_bytes`, where a line that
    # is longer than `longest_line` counts as an empty one.

    def __init__(self, start: Position, block_bytes: int, longest_line: int) -> None:
        self.position = start
        self.block_bytes = block_bytes
        self.longest_line = longest_line
        self.held = bytearray()
        self.searched = 0
        self.dropped = 0
        self.overlong: list[int] = []
        self.inside_overlong = False

    def feed(self, piece: bytes) -> Iterator[Block]:
        if self.inside_overlong:
            end = piece.find(b"\n")
            self.dropped += len(piece) if end < 0 else end
            if end < 0:
                return
            self.inside_overlong = False
            piece = piece[end:]
        self.held += piece
        while (end := self._line_end()) > 0:
            yield from self._block(end)

    def finish(self, whole: bool) -> Iterator[Block]:
        if self.inside_overlong:
            self.held += b"\n"
        elif not whole:
            del self.held[self.held.rfind(b"\n") + 1 :]
        yield from self._block(len(self.held))

    def _line_end(self) -> int:
        # The end of the line that completes a block; 0 where there is none yet.
        while True:
            end = self.held.find(b"\n", max(self.block_bytes - 1, self.searched)) + 1
            self.searched = len(self.held)
            if (end or len(self.held)) <= self.longest_line:
                return end
            # No newline stands between the two: the line that reaches over block_bytes is the long one.
            begin = self.held.rfind(b"\n", 0, self.block_bytes - 1) + 1
            stop = end - 1 if end else len(self.held)
            if stop - begin <= self.longest_line:
                return end
            self._drop(begin, stop)
            if not end:
                self.inside_overlong = True
                return 0

    def _drop(self, begin: int, stop: int) -> None:
        self.overlong.append(self.held.count(b"\n", 0, begin))
        del self.held[begin:stop]
        self.dropped += stop - begin
        self.searched = 0

    def _block(self, size: int) -> Iterator[Block]:
        with memoryview(self.held) as view:
            data = bytes(view[:size])
        del self.held[:size]
        self.searched = 0
        lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        start = self.position
        end = Position(start.offset + size + self.dropped - self._lent(data), start.number + lines)
        overlong, self.overlong, self.dropped, self.position = tuple(self.overlong), [], 0, end
        if overlong or (data and not data.isspace()):
            yield Block(start, end, data, size, overlong)

    def _lent(self, data: bytes) -> int:
        # The newline that `finish` lends to an overlong line at the end of a file is not in the file.
        lent = self.inside_overlong and data.endswith(b"\n") and not self.held
        self.inside_overlong = False
        return int(lent)


def cut_lines(
    pieces: Iterable[bytes], start: Position, block_bytes: int, longest_line: int
) -> Iterator[Block]:
    """Cuts text into blocks of whole lines.

    Args:
        pieces: The text from ``start`` on, in pieces of any length.
        start: Where that is.
        block_bytes: A block ends with the first line that ends at or after this many bytes.
        longest_line: Longer lines, in bytes, are read past without being held; more than ``block_bytes``.

    Yields:
        The blocks; those of white space alone are left out.

    Raises:
        SourceDamage: After the last whole line, if ``pieces`` raises it.
    """
    cutter = _LineCutter(start, block_bytes, longest_line)
    damage = None
    try:
        for piece in pieces:
            yield from cutter.feed(piece)
    except SourceDamage as error:
        damage = error
    yield from cutter.finish(whole=damage is None)
    if damage is not None:
        raise damage


def cut_rows(rows: Iterable[Row], start: Position, block_bytes: int) -> Iterator[Block]:
    """Cuts rows into blocks; a block ends with the row that completes ``block_bytes`` of text."""
    held: list[Row] = []
    size = 0
    damage = None

    def block() -> Block:
        end = Position(start.offset + len(held), start.number + len(held))
        return Block(start, end, held, size)

    try:
        for row in rows:
            held.append(row)
            size += row.size()
            if size >= block_bytes:
                yield (cut := block())
                start, held, size = cut.end, [], 0
    except SourceDamage as error:
        damage = error
    if held:
        yield block()
    if damage is not None:
        raise damage
