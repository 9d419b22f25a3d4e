"""From a stream of tokens to rows in MDS shards.

The shards are those that streaming's ``MDSWriter`` makes of the same rows, byte for byte (but for the
library that compresses them). They are written here for two reasons: a worker need not import streaming
and torch, which takes seconds and most of a gigabyte, and a shard goes to disk in slices that never stand
in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import zstandard

from patch_algorithm.common.files import write_atomically
from patch_algorithm.data.dataset.description import INDEX

__all__ = ["LARGEST_SHARD", "Piece", "ShardPlan", "StreamPlan", "finish_stream", "pack_shard", "write_shard"]

LARGEST_SHARD = 1 << 27
"""Most bytes of a shard before compression."""

_SLICE = 1 << 22  # bytes
_ZSTD_LEVEL = 3  # streaming's own default


@dataclass(frozen=True)
class Piece:
    """A run of tokens in a flat file of little-endian ids.

    Args:
        path: The file.
        start: Tokens before the run, from the file's beginning.
        tokens: Tokens of the run; may be 0.
    """

    path: str
    start: int
    tokens: int


@dataclass(frozen=True)
class ShardPlan:
    """One shard of a stream; small enough to be sent to a worker by the thousand.

    Args:
        stream: The stream's path within the data set.
        number: The shard's number in the stream.
        row_tokens: Tokens in a row.
        dtype: ``uint16`` or ``uint32``.
        compression: ``None`` or ``zstd``.
        size_limit: The stream's ``shard_bytes``, which the index records.
        pieces: The shard's tokens, a whole number of rows.
    """

    stream: str
    number: int
    row_tokens: int
    dtype: str
    compression: str | None
    size_limit: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        return sum(piece.tokens for piece in self.pieces) // self.row_tokens

    @property
    def basename(self) -> str:
        """The name of the shard without compression."""
        return f"shard.{self.number:05}.mds"

    @property
    def filename(self) -> str:
        """The name of the file that is written."""
        return f"{self.basename}.{self.compression}" if self.compression else self.basename

    @property
    def config(self) -> dict[str, Any]:
        """What the shard and the index say of the format."""
        return {
            "version": 2,
            "format": "mds",
            "compression": self.compression,
            "hashes": ["sha1"],
            "size_limit": self.size_limit,
            "column_names": ["tokens"],
            "column_encodings": [f"ndarray:{self.dtype}:{self.row_tokens}"],
            "column_sizes": [self.row_tokens * np.dtype(self.dtype).itemsize],
        }

    @property
    def header_bytes(self) -> int:
        """Bytes of a shard that are there whatever its number of rows."""
        return 8 + len(_config_bytes(self))


@dataclass(frozen=True)
class StreamPlan:
    """The rows of one stream: row ``i`` is tokens ``[i * row_tokens, (i + 1) * row_tokens)`` of its pieces.

    Args:
        path: The stream's path within the data set, such as ``train`` or ``arxiv/train``.
        row_tokens: Tokens in a row.
        dtype: ``uint16`` or ``uint32``.
        compression: ``None`` or ``zstd``.
        pieces: The stream's tokens in order.
        shard_bytes: Most bytes of a shard before compression.

    Raises:
        ValueError: For values out of range, or a row that does not fit into a shard.
    """

    path: str
    row_tokens: int
    dtype: str
    compression: str | None
    pieces: tuple[Piece, ...]
    shard_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        if self.row_tokens < 1:
            raise ValueError(f"the rows of {self.path} have {self.row_tokens} tokens; expected at least 1.")
        if self.dtype not in ("uint16", "uint32"):
            raise ValueError(f"the dtype of {self.path} is {self.dtype!r}; expected uint16 or uint32.")
        if self.compression not in (None, "zstd"):
            raise ValueError(
                f"the compression of {self.path} is {self.compression!r}; expected zstd or none."
            )
        if not 0 < self.shard_bytes <= LARGEST_SHARD:
            raise ValueError(
                f"shards of {self.shard_bytes:,} bytes are asked for; expected 1 to {LARGEST_SHARD:,}."
            )
        if self.rows_per_shard < 1:
            raise ValueError(
                f"a row of {self.row_tokens:,} tokens ({self.dtype}) does not fit into a shard of "
                f"{self.shard_bytes:,} bytes."
            )

    @property
    def rows(self) -> int:
        """Whole rows."""
        return self._ends[-1] // self.row_tokens if self._ends else 0

    @property
    def tokens(self) -> int:
        """Tokens in whole rows."""
        return self.rows * self.row_tokens

    @property
    def tokens_left_out(self) -> int:
        """Tokens at the end that do not fill a row."""
        return (self._ends[-1] if self._ends else 0) - self.tokens

    @property
    def shards(self) -> int:
        """Shards; 0 where no row is whole."""
        return -(-self.rows // self.rows_per_shard)

    @cached_property
    def rows_per_shard(self) -> int:
        """Rows in every shard but the last, which may have fewer."""
        empty = self._shard_plan(0, ())
        # A row has its offset in the shard's table.
        return (self.shard_bytes - empty.header_bytes) // (empty.config["column_sizes"][0] + 4)

    def shard(self, number: int) -> ShardPlan:
        """The plan of one shard.

        Raises:
            ValueError: If there is no such shard.
        """
        if not 0 <= number < self.shards:
            raise ValueError(f"{self.path} has {self.shards} shards; there is no shard {number}.")
        begin = number * self.rows_per_shard * self.row_tokens
        end = min(begin + self.rows_per_shard * self.row_tokens, self.tokens)
        pieces = []
        for index in range(bisect_right(self._ends, begin), len(self.pieces)):
            piece = self.pieces[index]
            first = self._ends[index] - piece.tokens
            if first >= end:
                break
            skip = max(0, begin - first)
            tokens = min(end, self._ends[index]) - first - skip
            if tokens:
                pieces.append(Piece(piece.path, piece.start + skip, tokens))
        return self._shard_plan(number, tuple(pieces))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(piece.tokens for piece in self.pieces))

    def _shard_plan(self, number: int, pieces: tuple[Piece, ...]) -> ShardPlan:
        return ShardPlan(
            self.path, number, self.row_tokens, self.dtype, self.compression, self.shard_bytes, pieces
        )


def pack_shard(plan: StreamPlan, shard: int, folder: Path) -> None:
    """Writes one shard of a stream; see :func:`write_shard`, which workers are better sent to."""
    write_shard(plan.shard(shard), folder)


def write_shard(shard: ShardPlan, folder: Path) -> None:
    """Writes a shard and ``shard.<number>.entry.json``, its part of the index, unless both are there.

    Args:
        shard: The shard.
        folder: The data set's folder; the files go to the stream's folder in it.

    Raises:
        ValueError: If a file of tokens is shorter than the plan says.
    """
    target = folder / shard.stream
    target.mkdir(parents=True, exist_ok=True)
    entry = target / _entry_name(shard.number)
    if entry.exists() and (target / shard.filename).exists():
        return
    entry.unlink(missing_ok=True)
    aside = target / f".{shard.filename}.partial"
    info = _write_files(shard, aside)
    os.replace(aside, target / shard.filename)
    write_atomically(entry, json.dumps(info, sort_keys=True))


def finish_stream(plan: StreamPlan, folder: Path) -> None:
    """Writes the stream's ``index.json`` from the entries of its shards, and removes those.

    A stream without a whole row has no folder: streaming cannot read an index without shards.

    Args:
        plan: The stream, all of whose shards are written.
        folder: The data set's folder.

    Raises:
        FileNotFoundError: If a shard has not been written.
    """
    target = folder / plan.path
    entries = [target / _entry_name(number) for number in range(plan.shards)]
    if not entries:
        return
    if not (target / INDEX).exists():
        shards = [json.loads(entry.read_text()) for entry in entries]
        write_atomically(target / INDEX, json.dumps({"version": 2, "shards": shards}, sort_keys=True))
    for entry in entries:
        entry.unlink(missing_ok=True)


class _HashedFile:
    """Counts and hashes what is written to it, and passes it on."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._bytes = 0

    def write(self, data: Any) -> int:
        self._sha1.update(data)
        self._bytes += memoryview(data).nbytes
        self._out.write(data)
        return memoryview(data).nbytes

    def info(self, basename: str) -> dict[str, Any]:
        return {"basename": basename, "bytes": self._bytes, "hashes": {"sha1": self._sha1.hexdigest()}}


def _write_files(shard: ShardPlan, path: Path) -> dict[str, Any]:
    size = shard.header_bytes + shard.rows * (shard.config["column_sizes"][0] + 4)
    zipped = None
    with ExitStack() as stack:
        out = stack.enter_context(path.open("wb"))
        if shard.compression:
            zipped = _HashedFile(out)
            # One thread, and the size in the frame, which streaming's reader asks for.
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
            writer = compressor.stream_writer(cast("IO[bytes]", zipped), size=size, closefd=False)
            raw = _HashedFile(stack.enter_context(writer))
        else:
            raw = _HashedFile(out)
        for data in _content(shard):
            raw.write(data)
    with path.open("rb+") as written:
        os.fsync(written.fileno())
    return {
        "samples": shard.rows,
        "raw_data": raw.info(shard.basename),
        "zip_data": zipped.info(shard.filename) if zipped else None,
        **shard.config,
    }


def _content(shard: ShardPlan) -> Iterator[bytes | np.ndarray]:
    """The number of rows, their offsets in the file, the format, the rows."""
    row_bytes = shard.config["column_sizes"][0]
    yield np.uint32(shard.rows).tobytes()
    offsets = np.arange(shard.rows + 1, dtype=np.int64) * row_bytes + shard.header_bytes + 4 * shard.rows
    yield offsets.astype("<u4").tobytes()
    yield _config_bytes(shard)
    for piece in shard.pieces:
        yield from _tokens(piece, np.dtype(shard.dtype).newbyteorder("<"))


def _tokens(piece: Piece, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
    with open(piece.path, "rb") as file:
        file.seek(piece.start * dtype.itemsize)
        left = piece.tokens
        while left:
            tokens = np.fromfile(file, dtype=dtype, count=min(left, _SLICE // dtype.itemsize))
            if not len(tokens):
                raise ValueError(
                    f"{piece.path} ends {left:,} tokens before what it should hold; remove the work folder, "
                    "or convert again with --overwrite."
                )
            yield tokens
            left -= len(tokens)


def _config_bytes(shard: ShardPlan) -> bytes:
    return json.dumps(shard.config, sort_keys=True).encode()


def _entry_name(number: int) -> str:
    return f"shard.{number:05}.entry.json"
