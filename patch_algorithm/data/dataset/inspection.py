"""What ``patch-level data info`` and ``cat`` show."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer

from patch_algorithm.common.tables import table
from patch_algorithm.data.dataset.description import (
    TOKENIZER_JSON,
    DatasetInfo,
    StreamInfo,
    local_copy,
    read_text,
)
from patch_algorithm.data.dataset.integrity import ShardFault, check_file, check_shards, read_index

__all__ = ["Inspection", "inspect_dataset", "read_row", "row_text"]


@dataclass(frozen=True)
class Inspection:
    """A dataset and the files of it that are not what they should be; ``str`` of it is a table.

    Attributes:
        folder: Where it is.
        info: Its ``dataset.json``.
        faults: The files that are missing or corrupted.
    """

    folder: str
    info: DatasetInfo
    faults: tuple[ShardFault, ...]

    @property
    def sound(self) -> bool:
        """Whether every shard is what its index says, and the tokenizer is there."""
        return not self.faults

    def __str__(self) -> str:
        return "\n".join(
            [
                self.folder,
                *_about(self.info),
                "",
                *_table(_stream_rows(self.info)),
                "",
                *_table(_component_rows(self.info)),
                *_skipped(self.info),
                "",
                *self._verdict(),
            ]
        )

    def _verdict(self) -> list[str]:
        shards = sum(stream.shards for stream in self.info.streams)
        if self.sound:
            return [f"All {shards:,} shards are as their indexes record them (SHA-1)."]
        lines = [f"  {fault.path}: {fault.reason}" for fault in self.faults]
        return [f"{len(self.faults):,} files are not as recorded ({shards:,} shards):", *lines]


def inspect_dataset(folder: str | Path) -> Inspection:
    """Reads a dataset's ``dataset.json`` and checks every shard.

    Args:
        folder: A local folder or a URL, whose shards are then downloaded one by one.

    Raises:
        ValueError: If there is no dataset.
    """
    info = DatasetInfo.read(folder)
    faults = check_shards(folder, info)
    try:
        _read_tokenizer(folder)
    except FileNotFoundError:
        faults.append(ShardFault(TOKENIZER_JSON, "missing"))
    except ValueError:
        faults.append(ShardFault(TOKENIZER_JSON, "corrupted"))
    return Inspection(str(folder), info, tuple(faults))


def read_row(folder: str | Path, row: int, split: str = "train", component: str | None = None) -> np.ndarray:
    """The token ids ``[row_tokens]`` of a row.

    Raises:
        ValueError: If there is no dataset, no such stream, no such row, or its shard is missing or
            corrupted.
    """
    info = DatasetInfo.read(folder)
    stream = info.stream(split, component)
    if not stream.rows:
        raise ValueError(f"{stream.path} has no rows.")
    if not 0 <= row < stream.rows:
        raise ValueError(f"there is no row {row} in {stream.path}; it has the rows 0 to {stream.rows - 1}.")
    try:
        shards = read_index(folder, stream.path)
    except FileNotFoundError as error:
        raise ValueError(f"the index of {stream.path} in {folder} is missing.") from error
    left = row
    for shard in shards:
        if left < shard["samples"]:
            data = _shard_bytes(folder, stream, shard["zip_data"] or shard["raw_data"], shard["compression"])
            begin, end = np.frombuffer(data, dtype="<u4", count=2, offset=4 * (1 + left))
            return np.frombuffer(data[begin:end], dtype=np.dtype(info.dtype).newbyteorder("<"))
        left -= shard["samples"]
    raise ValueError(f"the index of {stream.path} in {folder} has fewer rows than {stream.rows}.")


def row_text(folder: str | Path, row: int, split: str = "train", component: str | None = None) -> str:
    """A row as text, decoded with the dataset's own tokenizer; special tokens are shown.

    Raises:
        ValueError: As :func:`read_row`, or if the tokenizer is missing.
    """
    ids = read_row(folder, row, split, component)
    try:
        tokenizer = _read_tokenizer(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder} lacks {TOKENIZER_JSON}, which it was written with.") from error
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def _read_tokenizer(folder: str | Path) -> Tokenizer:
    text = read_text(folder, TOKENIZER_JSON)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{TOKENIZER_JSON} in {folder} cannot be read: {error}") from error


def _shard_bytes(
    folder: str | Path, stream: StreamInfo, file: dict[str, str], compression: str | None
) -> bytes:
    if fault := check_file(folder, stream.path, file):
        raise ValueError(f"{fault.path} in {folder} is not as recorded: {fault.reason}.")
    with tempfile.TemporaryDirectory() as aside:
        data = local_copy(folder, f"{stream.path}/{file['basename']}", aside).read_bytes()
    return zstandard.ZstdDecompressor().decompress(data) if compression else data


def _about(info: DatasetInfo) -> Iterator[str]:
    tokenizer = info.tokenizer
    added = [name for name, adds in (("EOS", tokenizer.adds_eos), ("BOS", tokenizer.adds_bos)) if adds]
    read_as = "text" if tokenizer.special_tokens == "text" else "special tokens"
    stored = f"compressed with {info.compression}" if info.compression else "not compressed"
    yield f"  tokenizer    {tokenizer.name}, {tokenizer.vocab_size:,} entries"
    yield f"  fingerprint  {tokenizer.fingerprint}"
    yield f"  documents    {' and '.join(added) or 'nothing'} added; '<|...|>' and the like read as {read_as}"
    yield f"  rows         {info.dtype}, {stored}"
    yield f"  written by   {info.created_by}" + (f", {info.encoder}" if info.encoder else "")


def _stream_rows(info: DatasetInfo) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("stream", "rows", "row length", "tokens", "left out", "shards")]
    for stream in info.streams:
        numbers = (stream.rows, stream.row_tokens, stream.tokens, stream.tokens_left_out, stream.shards)
        rows.append((stream.path, *(f"{number:,}" for number in numbers)))
    return rows


def _component_rows(info: DatasetInfo) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("component", "split", "documents", "MB of text", "tokens", "share")]
    totals = {split: [0, 0, 0] for split in info.row_tokens}
    for splits in info.components.values():
        for split, counts in splits.items():
            for i, number in enumerate((counts.documents, counts.bytes, counts.tokens)):
                totals.setdefault(split, [0, 0, 0])[i] += number
    for name, splits in sorted(info.components.items()):
        for split, counts in splits.items():
            share = counts.tokens / max(1, totals[split][2])
            rows.append(_component_row(name, split, counts.documents, counts.bytes, counts.tokens, share))
    for split, (documents, size, tokens) in totals.items():
        rows.append(_component_row("all", split, documents, size, tokens, 1.0 if tokens else 0.0))
    return rows


def _component_row(
    name: str, split: str, documents: int, size: int, tokens: int, share: float
) -> tuple[str, ...]:
    return (name, split, f"{documents:,}", f"{size / 1e6:,.2f}", f"{tokens:,}", f"{share:.2%}")


def _skipped(info: DatasetInfo) -> Iterator[str]:
    if info.skipped:
        yield ""
        yield "skipped lines"
        for reason, number in sorted(info.skipped.items()):
            yield f"  {number:,}  {reason}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in table(rows)]
