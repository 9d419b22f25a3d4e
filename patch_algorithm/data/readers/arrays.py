"""A JSON array as lines, one for each element, without holding it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from patch_algorithm.data.readers.blocks import SourceDamage

__all__ = ["array_lines", "is_array"]

_STRUCTURE = re.compile(rb'["\[\]{},\n\r]')
_STRING = re.compile(rb'["\\]')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def is_array(beginning: bytes) -> bool:
    """Whether a text is a JSON array, from its beginning."""
    return beginning.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] == b"["


def array_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The elements of an array, each followed by the end of a line, in pieces of any length.

    Args:
        pieces: The text of the array, in pieces of any length.

    Raises:
        SourceDamage: If the text ends within the array, or goes on behind it.
    """
    lines = _ArrayLines()
    for piece in pieces:
        out = bytearray()
        try:
            lines.feed(piece, out)
        except SourceDamage:
            yield bytes(out)  # what was read before is good
            raise
        yield bytes(out)
    if lines.depth or not lines.begun:
        raise SourceDamage("truncated file", "it ends within a JSON array")


class _ArrayLines:
    def __init__(self) -> None:
        self.depth = 0  # 1 between the elements of the array
        self.begun = False
        self._in_string = False
        self._escaped = False

    def feed(self, piece: bytes, out: bytearray) -> None:
        at = 0
        while at < len(piece):
            at = self._string(piece, at, out) if self._in_string else self._structure(piece, at, out)

    def _string(self, piece: bytes, at: int, out: bytearray) -> int:
        if self._escaped:
            self._escaped = False
            out.append(piece[at])
            return at + 1
        found = _STRING.search(piece, at)
        end = found.end() if found else len(piece)
        # A bare end of line makes a string that no parser takes; it must not end the line here.
        out += piece[at:end].replace(b"\n", b"\r")
        if found:
            self._escaped = found[0] == b"\\"
            self._in_string = self._escaped
        return end

    def _structure(self, piece: bytes, at: int, out: bytearray) -> int:
        found = _STRUCTURE.search(piece, at)
        end = found.start() if found else len(piece)
        between = piece[at:end]
        if self.depth:
            out += between
        elif between.strip() not in (b"", _BYTE_ORDER_MARK):
            raise SourceDamage("damaged file", "there is text outside of its JSON array")
        if found:
            self._sign(found[0], out)
            end += 1
        return end

    def _sign(self, sign: bytes, out: bytearray) -> None:
        if sign in b"\n\r":
            out += b" " * bool(self.depth)
            return
        if not self.depth and (self.begun or sign != b"["):
            raise SourceDamage("damaged file", "there is text outside of its JSON array")
        before, self.begun = self.depth, True
        self.depth += (sign in b"[{") - (sign in b"]}")
        self._in_string = sign == b'"'
        ends_element = (before == 1 and sign == b",") or not self.depth
        out += b"\n" if ends_element else sign if before else b""
