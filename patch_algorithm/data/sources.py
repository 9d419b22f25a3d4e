"""Sources of documents: files of the Pile's format, tables, Hugging Face datasets, texts in memory."""

from __future__ import annotations

import glob
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from patch_algorithm.data.blocks import Block, Lost, Position, Row, SourceDamage, cut_lines, cut_rows
from patch_algorithm.data.decompression import DAMAGED, text_pieces

__all__ = [
    "BUILTIN",
    "SUFFIXES",
    "HubSource",
    "LineSource",
    "Reading",
    "Source",
    "TableSource",
    "TextSource",
    "find_sources",
    "total_size",
]

BUILTIN = "builtin"
HUB_PREFIX = "hf://"
SUFFIXES: tuple[str, ...] = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")

_COMPONENT = ("meta", "pile_set_name")
_TABLE_BUFFER = 2**20
_TABLE_BATCH = 1024


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Attributes:
        text_field: The field, or column, with the text.
        block_bytes: Text of a block, in bytes.
        longest_line: Lines longer than this, in bytes, are bad lines.
    """

    text_field: str = "text"
    block_bytes: int = 2 * 2**20
    longest_line: int = 200 * 10**6


class Source(ABC):
    """An ordered run of documents with a name.

    Attributes:
        name: As it is shown and recorded.
        place: What its documents are counted in: lines, rows, documents.
    """

    name: str
    place: str

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
class _FileSource(Source):
    path: Path
    name: str = ""
    place: str = "line"

    def stamp(self) -> dict[str, Any]:
        status = self.path.stat()
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def size(self) -> int | None:
        return self.path.stat().st_size


@dataclass(frozen=True)
class LineSource(_FileSource):
    """A file with a JSON object on each line, which may be compressed."""

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a position to the end; of a compressed file all that is before has to be read too."""
        with self.path.open("rb") as handle:
            pieces = text_pieces(handle, self.path.name, start.offset)
            before = handle.tell()
            for block in cut_lines(pieces, start, reading.block_bytes, reading.longest_line):
                now = handle.tell()
                yield replace(block, read_bytes=now - before)
                before = now


@dataclass(frozen=True)
class TableSource(_FileSource):
    """A Parquet file with a column of texts."""

    place: str = "row"

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a row to the end."""
        import pyarrow as pa

        share = 0.0
        try:
            rows, total = _table_rows(self.path, start.offset, reading)
        except (pa.ArrowException, OSError) as error:
            _check_readable(error)
            raise SourceDamage(DAMAGED, f"it cannot be read as Parquet: {error}") from error
        size = self.size() or 0
        for block in cut_rows(rows, start, reading.block_bytes):
            # Tables are read by column: the share of the rows stands for the share of the bytes.
            until = block.end.number / total
            yield replace(block, read_bytes=int(size * until) - int(size * share))
            share = until


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset that ``datasets`` streams: of the Hugging Face hub, or a local folder."""

    path: str
    config: str | None = None
    split: str = "train"
    place: str = "example"

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As it is named on the command line."""
        return f"{HUB_PREFIX}{self.path}"

    def open(self) -> Any:
        """The streaming dataset.

        Raises:
            ValueError: If there is no such dataset, configuration or split.
        """
        # Imported here: it takes a second, and most conversions read files.
        import datasets

        try:
            return datasets.load_dataset(self.path, self.config, split=self.split, streaming=True)
        # Whatever may go wrong in a hub, a network or a dataset's own files ends up here.
        except Exception as error:
            raise ValueError(
                f"the Hugging Face dataset {self.path!r} (config {self.config!r}, split {self.split!r}) "
                f"cannot be opened: {type(error).__name__}: {error}"
            ) from error

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from an example to the end; ``datasets`` reads past those before."""
        return cut_rows(self._rows(start.offset, reading.text_field), start, reading.block_bytes)

    def _rows(self, skipped: int, text_field: str) -> Iterator[Row]:
        examples = iter(self.open().skip(skipped))
        while True:
            try:
                example = next(examples)
            except StopIteration:
                return
            # A lost connection is no bad document: it must not be skipped over.
            except Exception as error:
                raise OSError(
                    f"the stream broke off: {type(error).__name__}: {error}. (If it breaks off there each "
                    "time, name the dataset's files themselves, .jsonl or .parquet, as the source: bad lines "
                    "are then named, and can be skipped.)"
                ) from error
            yield Row(example.get(text_field), _component(example))

    def stamp(self) -> dict[str, Any]:
        """Nothing: a hub tells no cheap sign of change."""
        return {"config": self.config, "split": self.split}

    def size(self) -> int | None:
        """Unknown: examples are streamed."""
        return None


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

    def blocks(self, start: Position, reading: Reading) -> Iterator[Block]:
        """Reads from a text to the last."""
        rows = (Row(text) for text in self.load()[start.offset :])
        for block in cut_rows(rows, start, reading.block_bytes):
            yield replace(block, read_bytes=block.size)

    def stamp(self) -> dict[str, Any]:
        """What decides the texts."""
        return dict(self.version)

    def size(self) -> int | None:
        """About how many bytes of text there are."""
        return self.text_bytes


def find_sources(
    names: Sequence[str | Source],
    *,
    hub_config: str | None = None,
    hub_split: str = "train",
    builtin: Callable[[], Source] | None = None,
) -> list[Source]:
    """Finds out what is meant by each name, in the order given; folders and globs by name.

    Args:
        names: Files, folders, globs, ``builtin``, ``hf://NAME``, a dataset ``OWNER/NAME`` of the hub, or
            sources as they are.
        hub_config: The configuration of Hugging Face datasets.
        hub_split: The split of Hugging Face datasets.
        builtin: Makes the source that ``builtin`` stands for.

    Raises:
        ValueError: If one is missing, of no known kind, empty of files, or named twice.
    """
    found: list[Source] = []
    for name in names:
        if isinstance(name, Source):
            found.append(name)
        elif name == BUILTIN and builtin is not None:
            found.append(builtin())
        elif name.startswith(HUB_PREFIX):
            found.append(HubSource(name.removeprefix(HUB_PREFIX), hub_config, hub_split))
        elif files := _files(name):
            found.extend(map(_file_source, files))
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(SUFFIXES):
            found.append(HubSource(name, hub_config, hub_split))
        else:
            raise ValueError(
                f"--source {name}: there is no such file or folder, and nothing matches it as a pattern. "
                f"(A Hugging Face dataset is named OWNER/NAME or {HUB_PREFIX}NAME.)"
            )
    seen: set[str | Path] = set()
    for source in found:
        if isinstance(source, HubSource):
            source.open()
        identity = source.path.resolve() if isinstance(source, _FileSource) else source.name
        if identity in seen:
            raise ValueError(f"--source: {source.name} is named twice; its documents would count double.")
        seen.add(identity)
    return found


def total_size(sources: Sequence[Source]) -> int | None:
    """Bytes to read of all sources, or ``None`` where nobody knows."""
    sizes = [source.size() for source in sources]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _files(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir():
        inside = sorted(
            file.as_posix()
            for file in path.rglob("*")
            if file.name.endswith(SUFFIXES) and file.is_file() and not _is_hidden(file.relative_to(path))
        )
        if not inside:
            raise ValueError(f"--source {name}: the folder holds no file ending in {', '.join(SUFFIXES)}.")
        return inside
    if path.exists():
        return [name]
    return sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_source(file: str) -> Source:
    if file.endswith(".parquet"):
        return TableSource(Path(file), file)
    if file.endswith(SUFFIXES):
        return LineSource(Path(file), file)
    raise ValueError(f"--source {file}: expected a file ending in {', '.join(SUFFIXES)}.")


def _table_rows(path: Path, skipped: int, reading: Reading) -> tuple[Iterator[Row], int]:
    import pyarrow.parquet as pq

    # Through a buffer: a row group may be larger than memory, and would be read as a whole otherwise.
    table = pq.ParquetFile(path, buffer_size=_TABLE_BUFFER, pre_buffer=False, page_checksum_verification=True)
    schema, footer = table.schema_arrow, table.metadata
    if reading.text_field not in schema.names:
        raise SourceDamage(
            "without text", f"it has no column {reading.text_field!r}, only {', '.join(schema.names)}"
        )
    groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]

    def rows() -> Iterator[Row]:
        before = skipped
        for group, size in enumerate(groups):
            if before < size:
                yield from islice(_group_rows(table, group, reading), before, None)
            before -= min(before, size)

    return rows(), sum(groups)


def _group_rows(table: Any, group: int, reading: Reading) -> Iterator[Row]:
    # From its first row, whatever was read before: rows are read in the same batches again, so that the
    # same ones are lost with a damaged page.
    import pyarrow as pa

    footer = table.metadata.row_group(group)
    row_bytes = max(1, footer.total_byte_size // max(1, footer.num_rows))
    at_once = max(1, min(_TABLE_BATCH, reading.block_bytes // row_bytes))
    columns = [reading.text_field, ".".join(_COMPONENT)]
    whole, why = 0, "its row group is shorter than the file says"
    try:
        for batch in table.iter_batches(batch_size=at_once, row_groups=[group], columns=columns):
            yield from _batch_rows(batch, reading.text_field)
            whole += len(batch)
    except (pa.ArrowException, OSError) as error:
        _check_readable(error)
        why = f"its row group cannot be read as Parquet from there on: {error}"
    for _ in range(footer.num_rows - whole):
        yield Row(Lost(why, row_bytes))


def _check_readable(error: Exception) -> None:
    """Raises what the system says of a file; what Arrow itself says of its content has no number."""
    if isinstance(error, OSError) and error.errno:
        raise error


def _batch_rows(batch: Any, text_field: str) -> Iterator[Row]:
    import pyarrow as pa

    labels: list[Any] = [None] * len(batch)
    field, name = _COMPONENT
    meta = batch.column(field) if field in batch.schema.names else None
    if meta is not None and pa.types.is_struct(meta.type) and meta.type.get_field_index(name) >= 0:
        labels = _as_bytes(meta.flatten()[meta.type.get_field_index(name)]).to_pylist()
    for text, label in zip(_as_bytes(batch.column(text_field)).to_pylist(), labels, strict=True):
        yield Row(text, (label.decode(errors="replace") or None) if isinstance(label, bytes) else None)


def _as_bytes(column: Any) -> Any:
    """Strings as bytes: that they are UTF-8 in a table is nothing but a claim."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    for kind, as_bytes in ((pa.string(), pa.binary()), (pa.large_string(), pa.large_binary())):
        if column.type == kind:
            return column.cast(as_bytes)
    return column


def _component(example: Mapping[str, Any]) -> str | None:
    meta = example.get(_COMPONENT[0])
    name = meta.get(_COMPONENT[1]) if isinstance(meta, Mapping) else None
    return name if isinstance(name, str) and name else None
