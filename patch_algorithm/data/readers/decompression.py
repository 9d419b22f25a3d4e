"""Text files, which may be compressed, read from any place on."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import zstandard

from patch_algorithm.data.readers.arrays import array_lines, is_array
from patch_algorithm.data.readers.blocks import SourceDamage

__all__ = ["COMPRESSED", "DAMAGED", "TRUNCATED", "text_pieces"]

TRUNCATED = "truncated file"
DAMAGED = "damaged file"

_PIECE = 2**20
# A zstd frame can hold 32,000 times its size: read in small sips, even that many zeros fit in memory.
_SIP = 2**12
# As much as zstd's --long=31 asks for.
_ZSTD_LARGEST_WINDOW = 2**31


def text_pieces(handle: BinaryIO, name: str, offset: int) -> Iterator[bytes]:
    """The lines of a file from a place on; the elements of a JSON array are lines, too.

    Args:
        handle: The file.
        name: Its name, the end of which says how it is compressed.
        offset: The place, in bytes of text. What is before it has been read when this returns.

    Returns:
        The text in pieces of some length.

    Raises:
        SourceDamage: Where the file cannot be decompressed further; all that can be has been handed out.
    """
    name = name.lower()
    form = next((ending for ending in COMPRESSED if name.endswith(ending)), None)
    pieces = COMPRESSED[form](handle) if form else iter(lambda: handle.read(_PIECE), b"")
    if name.removesuffix(form or "").endswith(".json"):
        beginning = _beginning(pieces)
        pieces = chain((beginning,), pieces)
        if is_array(beginning):
            form, pieces = ".json", array_lines(pieces)
    if form is None:
        handle.seek(offset)
        return iter(lambda: handle.read(_PIECE), b"")
    for piece in pieces:
        if offset < len(piece):
            return chain((piece[offset:],), pieces)
        offset -= len(piece)
    return iter(())


def _beginning(pieces: Iterator[bytes]) -> bytes:
    beginning = b""
    for piece in pieces:
        beginning += piece
        if len(beginning) > 3 and not beginning.isspace():  # a byte order mark has three
            break
    return beginning


def _unzstd(handle: BinaryIO) -> Iterator[bytes]:
    frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_LARGEST_WINDOW)
    return _decompressed(handle, frames.decompressobj, zstandard.ZstdError, "zstd frame")


def _ungzip(handle: BinaryIO) -> Iterator[bytes]:
    # Unlike the gzip module's, this one hands out all that can be read of a truncated file.
    member = partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)
    # Tapes and block devices pad with zeros; gzip reads past them as well.
    return _decompressed(handle, member, zlib.error, "gzip member", padding=b"\0")


def _unxz(handle: BinaryIO) -> Iterator[bytes]:
    return _decompressed(handle, lzma.LZMADecompressor, lzma.LZMAError, "xz stream", padding=b"\0")


def _unbzip2(handle: BinaryIO) -> Iterator[bytes]:
    return _decompressed(handle, bz2.BZ2Decompressor, OSError, "bzip2 stream")


COMPRESSED: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".zst": _unzstd,
    ".gz": _ungzip,
    ".xz": _unxz,
    ".bz2": _unbzip2,
}
"""How the text of a file is had, by the end of its name."""


def _decompressed(
    handle: BinaryIO, begin: Callable[[], Any], failure: type[Exception], part: str, padding: bytes = b""
) -> Iterator[bytes]:
    # Both formats may hold several parts, one after the other.
    current = None
    try:
        while sip := handle.read(_SIP):
            while sip := sip if current else sip.lstrip(padding):
                current = current or begin()
                if piece := current.decompress(sip):
                    yield piece
                sip = b""
                if current.eof:
                    sip, current = current.unused_data, None
    except failure as error:
        raise SourceDamage(DAMAGED, f"it cannot be decompressed: {error}") from error
    if current is not None:
        raise SourceDamage(TRUNCATED, f"it ends within a {part}")
